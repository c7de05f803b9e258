//! The result of a probe: `report.json`, and the table for the terminal.

use std::path::Path;

use comfy_table::{Table, presets};
use serde::{Deserialize, Serialize};

use super::ProbeSettings;
use super::plan::Plan;
use super::similarity::Similarities;
use super::soft::SoftArm;
use super::statistics::MeanSd;
use crate::formats::adapter::{Adapter, LoraAdapter, PromptAdapter};
use crate::formats::{atomic, json};
use crate::{Error, Result};

/// One value for each arm.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arms<T> {
    /// Pretrained, the query alone.
    pub anchor: T,
    /// Pretrained, the query after the demonstrations.
    pub icl: T,
    /// Tuned on the demonstrations, the query alone.
    pub it: T,
}

impl<T> Arms<T> {
    /// Each arm's value, changed.
    pub fn map<U>(self, f: impl Fn(T) -> U) -> Arms<U> {
        Arms { anchor: f(self.anchor), icl: f(self.icl), it: f(self.it) }
    }
}

/// One value for each phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, bound(deserialize = "T: Deserialize<'de> + Default"))]
pub struct Phases<T> {
    /// Reading the queries alone.
    pub anchor: T,
    /// Reading the queries after the demonstrations.
    pub icl: T,
    /// Tuning.
    pub tune: T,
    /// Reading the queries (and at last the tuning sequences) through the adapters.
    pub it: T,
    /// The same after soft prompts. (As a time, their tuning is in it.)
    #[serde(default)]
    pub soft: T,
    /// Tuning soft prompts.
    #[serde(default)]
    pub soft_tune: T,
    /// All of them.
    pub total: T,
}

/// Where a state is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Layer {
    /// `blocks.{i}.hook_resid_post`.
    Block(usize),
    /// After the final norm.
    Final(Final),
}

/// Spells `"final"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Final {
    /// After the final norm.
    Final,
}

/// The name of the `i`th of `count` states of a query: every block's, then the final norm's.
pub(super) fn layer_name(i: usize, count: usize) -> Layer {
    if i + 1 == count { Layer::Final(Final::Final) } else { Layer::Block(i) }
}

impl std::fmt::Display for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Block(i) => write!(f, "{i}"),
            Self::Final(_) => f.write_str("final"),
        }
    }
}

/// The similarities of one layer; each is defined at the field of [`Similarities`] that has its name.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerReport {
    /// Where.
    pub layer: Layer,
    /// ICL against IT.
    pub icl_it: MeanSd,
    /// Anchor against ICL.
    pub anchor_icl: MeanSd,
    /// Anchor against IT.
    pub anchor_it: MeanSd,
    /// The update of ICL against that of IT.
    pub update: MeanSd,
    /// The update of ICL against Gaussian noise.
    pub update_gaussian: MeanSd,
    /// The update of ICL against those of IT on the other queries.
    pub update_shuffled: MeanSd,
}

impl LayerReport {
    /// Mean and SD over the queries.
    pub fn over_queries(layer: Layer, s: Similarities) -> Self {
        Self {
            layer,
            icl_it: MeanSd::of(s.icl_it),
            anchor_icl: MeanSd::of(s.anchor_icl),
            anchor_it: MeanSd::of(s.anchor_it),
            update: MeanSd::of(s.update),
            update_gaussian: MeanSd::of(s.update_gaussian),
            update_shuffled: MeanSd::of(s.update_shuffled),
        }
    }

    /// Mean and SD over the seeds, of the means over the queries.
    fn over_seeds(seeds: &[SeedReport], i: usize) -> Self {
        let over = |get: fn(&LayerReport) -> MeanSd| MeanSd::of(seeds.iter().filter_map(|s| get(&s.layers[i]).mean));
        Self {
            layer: seeds[0].layers[i].layer,
            icl_it: over(|l| l.icl_it),
            anchor_icl: over(|l| l.anchor_icl),
            anchor_it: over(|l| l.anchor_it),
            update: over(|l| l.update),
            update_gaussian: over(|l| l.update_gaussian),
            update_shuffled: over(|l| l.update_shuffled),
        }
    }
}

/// An arm of soft prompts beside another, at one layer; each value is defined at the field of [`Similarities`] that has
/// its name, this arm in the place of IT.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// The other arm, which stands in the place of ICL: icl, it, or an arm of soft prompts before this one.
    pub with: String,
    /// Their cosine.
    pub cosine: MeanSd,
    /// Of their updates.
    pub update: MeanSd,
    /// Of the other's update with this one's on the other queries.
    pub update_shuffled: MeanSd,
}

/// An arm of soft prompts at one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArmLayer {
    /// Where.
    pub layer: Layer,
    /// Its cosine with the anchor.
    pub anchor: MeanSd,
    /// Beside every arm before it.
    pub pairs: Vec<Pair>,
}

impl ArmLayer {
    /// Mean and SD over the seeds, of the means over the queries.
    fn over_seeds(seeds: &[SeedReport], arm: usize, i: usize) -> Self {
        let first = &seeds[0].soft[arm].layers[i];
        let over =
            |get: &dyn Fn(&Self) -> MeanSd| MeanSd::of(seeds.iter().filter_map(|s| get(&s.soft[arm].layers[i]).mean));
        let pair = |(p, pair): (usize, &Pair)| Pair {
            with: pair.with.clone(),
            cosine: over(&|l| l.pairs[p].cosine),
            update: over(&|l| l.pairs[p].update),
            update_shuffled: over(&|l| l.pairs[p].update_shuffled),
        };
        let pairs = first.pairs.iter().enumerate().map(pair).collect();
        Self { layer: first.layer, anchor: over(&|l| l.anchor), pairs }
    }
}

/// The result of an arm of soft prompts for one seed. Each field is as that of [`SeedReport`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SoftReport {
    /// Which arm.
    pub arm: SoftArm,
    /// Share of the queries answered right.
    pub accuracy: Option<f64>,
    /// Mean log-probability of the right answer.
    pub log_prob: f64,
    /// Mean loss at each tuning step, before the step.
    pub loss: Vec<f64>,
    /// The same after the last step.
    pub final_loss: f64,
    /// Directory of the prompt, relative to the report; `null` if it was not saved.
    pub adapter: Option<String>,
    /// Every layer's `hook_resid_post`, then `final`.
    pub layers: Vec<ArmLayer>,
}

/// An arm of soft prompts over the seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SoftSummary {
    /// Which arm.
    pub arm: SoftArm,
    /// See [`SoftReport::accuracy`].
    pub accuracy: MeanSd,
    /// See [`SoftReport::log_prob`].
    pub log_prob: MeanSd,
    /// See [`SoftReport::loss`].
    pub loss: Vec<MeanSd>,
    /// See [`SoftReport::final_loss`].
    pub final_loss: MeanSd,
    /// See [`SoftReport::layers`].
    pub layers: Vec<ArmLayer>,
}

impl SoftSummary {
    fn of(seeds: &[SeedReport], arm: usize) -> Self {
        let first = &seeds[0].soft[arm];
        let all = || seeds.iter().map(|s| &s.soft[arm]);
        Self {
            arm: first.arm,
            accuracy: MeanSd::of(all().filter_map(|s| s.accuracy)),
            log_prob: MeanSd::of(all().map(|s| s.log_prob)),
            loss: (0..first.loss.len()).map(|i| MeanSd::of(all().map(|s| s.loss[i]))).collect(),
            final_loss: MeanSd::of(all().map(|s| s.final_loss)),
            layers: (0..first.layers.len()).map(|i| ArmLayer::over_seeds(seeds, arm, i)).collect(),
        }
    }
}

/// The result of one seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedReport {
    /// The seed.
    pub seed: u64,
    /// Share of the queries answered right, see [`crate::task::metrics::score`]; `null` for free text.
    pub accuracy: Arms<Option<f64>>,
    /// Mean log-probability of the right answer.
    pub log_prob: Arms<f64>,
    /// Mean loss over the label tokens at each tuning step, before the step.
    pub loss: Vec<f64>,
    /// The same over all tuning sequences after the last step.
    pub final_loss: f64,
    /// Directory of the adapter, relative to the report; `null` if it was not saved.
    pub adapter: Option<String>,
    /// Every layer's `hook_resid_post`, then `final`.
    pub layers: Vec<LayerReport>,
    /// The arms of soft prompts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub soft: Vec<SoftReport>,
}

/// Mean and SD over the seeds, of each seed's value (of its mean over the queries).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// See [`SeedReport::accuracy`].
    pub accuracy: Arms<MeanSd>,
    /// See [`SeedReport::log_prob`].
    pub log_prob: Arms<MeanSd>,
    /// See [`SeedReport::loss`].
    pub loss: Vec<MeanSd>,
    /// See [`SeedReport::final_loss`].
    pub final_loss: MeanSd,
    /// See [`SeedReport::layers`].
    pub layers: Vec<LayerReport>,
    /// See [`SeedReport::soft`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub soft: Vec<SoftSummary>,
}

impl Summary {
    /// Of at least one seed, all of the same model and number of steps.
    pub fn of(seeds: &[SeedReport]) -> Self {
        let accuracy =
            |arm: fn(&Arms<Option<f64>>) -> Option<f64>| MeanSd::of(seeds.iter().filter_map(|s| arm(&s.accuracy)));
        let log_prob = |arm: fn(&Arms<f64>) -> f64| MeanSd::of(seeds.iter().map(|s| arm(&s.log_prob)));
        Self {
            accuracy: Arms { anchor: accuracy(|a| a.anchor), icl: accuracy(|a| a.icl), it: accuracy(|a| a.it) },
            log_prob: Arms { anchor: log_prob(|a| a.anchor), icl: log_prob(|a| a.icl), it: log_prob(|a| a.it) },
            loss: (0..seeds[0].loss.len()).map(|i| MeanSd::of(seeds.iter().map(|s| s.loss[i]))).collect(),
            final_loss: MeanSd::of(seeds.iter().map(|s| s.final_loss)),
            layers: (0..seeds[0].layers.len()).map(|i| LayerReport::over_seeds(seeds, i)).collect(),
            soft: (0..seeds[0].soft.len()).map(|arm| SoftSummary::of(seeds, arm)).collect(),
        }
    }
}

/// All of `report.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Version of llamaprobe.
    pub version: String,
    /// The model, as it was named.
    pub model: String,
    /// Device of the computation.
    pub device: String,
    /// Its dtype.
    pub dtype: String,
    /// The longest sequence, and the longest that the model was made for.
    pub positions: Positions,
    /// Settings.
    pub settings: ProbeSettings,
    /// Results over the seeds.
    pub summary: Summary,
    /// Results by seed.
    pub seeds: Vec<SeedReport>,
    /// Wall-clock seconds by phase.
    pub seconds: Phases<f64>,
    /// Tokens by phase. Reading: the rows computed, where what prompts share counts once. Tuning: the tokens of all
    /// sequences of all steps.
    pub tokens: Phases<usize>,
    /// What was done.
    pub plan: Plan,
}

/// Lengths in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Positions {
    /// Of the longest sequence of the plan.
    pub longest: usize,
    /// `max_position_embeddings` of the model; a longer sequence is computed all the same.
    pub supported: usize,
}

impl Report {
    /// Reads a `report.json`, for its settings and plan (which is checked by [`Plan::validate`], not here).
    ///
    /// # Errors
    /// The file cannot be read or has another form.
    pub fn read(path: &Path) -> Result<Self> {
        serde_json::from_value(json::read(path)?).map_err(Error::file(path))
    }

    /// Writes `report.json` into `directory`, and before it each of `adapters` (one per seed, or none at all) as a PEFT
    /// directory `adapters/seed-{seed}`, and each of `prompts` (by arm, then by seed) as `adapters/{arm}-seed-{seed}`.
    ///
    /// # Errors
    /// A file cannot be written. The report then does not appear.
    pub fn save(&mut self, directory: &Path, adapters: &[LoraAdapter], prompts: &[Vec<PromptAdapter>]) -> Result<()> {
        for (seed, adapter) in self.seeds.iter_mut().zip(adapters) {
            let name = format!("adapters/seed-{}", seed.seed);
            adapter.write(directory.join(&name))?;
            seed.adapter = Some(name);
        }
        for (i, prompts) in prompts.iter().enumerate() {
            for (seed, prompt) in self.seeds.iter_mut().zip(prompts) {
                let name = format!("adapters/{}-seed-{}", seed.soft[i].arm.name(), seed.seed);
                Adapter::Prompt(prompt.clone()).write(directory.join(&name))?;
                seed.soft[i].adapter = Some(name);
            }
        }
        atomic::write_json(directory.join("report.json"), self)
    }

    /// The summary as tables: the cosines by layer, then the arms.
    pub fn table(&self) -> String {
        let show = |v: MeanSd| match (v.mean, v.sd) {
            (Some(mean), Some(sd)) => format!("{mean:.4} ± {sd:.4}"),
            (Some(mean), None) => format!("{mean:.4}"),
            (None, _) => "-".to_string(),
        };
        let new = |header: &[&str]| {
            let mut table = Table::new();
            table.load_preset(presets::UTF8_FULL_CONDENSED).set_header(header);
            table
        };
        let header = ["layer", "ICL-IT", "anchor-ICL", "anchor-IT", "update", "Gaussian", "shuffled"];
        let mut layers = new(&header);
        for l in &self.summary.layers {
            let values = [l.icl_it, l.anchor_icl, l.anchor_it, l.update, l.update_gaussian, l.update_shuffled];
            layers.add_row(std::iter::once(l.layer.to_string()).chain(values.map(show)));
        }
        let mut tables = layers.to_string();
        let soft = &self.summary.soft;
        for arm in soft {
            let name = arm.arm.name().to_uppercase();
            let mut header = vec!["layer".to_string(), format!("anchor-{name}")];
            for pair in arm.layers.iter().take(1).flat_map(|l| &l.pairs) {
                header.extend([format!("{}-{name}", pair.with.to_uppercase()), "update".into(), "shuffled".into()]);
            }
            let mut table = new(&header.iter().map(String::as_str).collect::<Vec<_>>());
            for l in &arm.layers {
                let pairs = l.pairs.iter().flat_map(|p| [p.cosine, p.update, p.update_shuffled]);
                let values = std::iter::once(l.anchor).chain(pairs).map(show);
                table.add_row(std::iter::once(l.layer.to_string()).chain(values));
            }
            tables = format!("{tables}\n{table}");
        }
        let names = soft.iter().map(|arm| arm.arm.name().to_uppercase());
        let header: Vec<String> = ["", "anchor", "ICL", "IT"].map(String::from).into_iter().chain(names).collect();
        let mut arms = new(&header.iter().map(String::as_str).collect::<Vec<_>>());
        let row = |name: &str, a: &Arms<MeanSd>, soft: Vec<MeanSd>| {
            let values = [a.anchor, a.icl, a.it].into_iter().chain(soft).map(show);
            std::iter::once(name.to_string()).chain(values).collect::<Vec<_>>()
        };
        arms.add_row(row("accuracy", &self.summary.accuracy, soft.iter().map(|s| s.accuracy).collect()));
        arms.add_row(row("log-probability", &self.summary.log_prob, soft.iter().map(|s| s.log_prob).collect()));
        format!("{tables}\n{arms}")
    }
}
