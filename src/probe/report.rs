//! The result of a probe: `report.json`, and the table for the terminal.

use std::path::Path;

use comfy_table::{Table, presets};
use serde::{Deserialize, Serialize};

use super::ProbeSettings;
use super::plan::Plan;
use super::similarity::Similarities;
use super::statistics::MeanSd;
use crate::formats::adapter::LoraAdapter;
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
#[serde(deny_unknown_fields)]
pub struct Phases<T> {
    /// Reading the queries alone.
    pub anchor: T,
    /// Reading the queries after the demonstrations.
    pub icl: T,
    /// Tuning.
    pub tune: T,
    /// Reading the queries (and at last the tuning sequences) through the adapters.
    pub it: T,
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
    /// directory `adapters/seed-{seed}`.
    ///
    /// # Errors
    /// A file cannot be written. The report then does not appear.
    pub fn save(&mut self, directory: &Path, adapters: &[LoraAdapter]) -> Result<()> {
        for (seed, adapter) in self.seeds.iter_mut().zip(adapters) {
            let name = format!("adapters/seed-{}", seed.seed);
            adapter.write(directory.join(&name))?;
            seed.adapter = Some(name);
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
        let mut arms = new(&["", "anchor", "ICL", "IT"]);
        for (name, a) in [("accuracy", &self.summary.accuracy), ("log-probability", &self.summary.log_prob)] {
            arms.add_row([name.to_string(), show(a.anchor), show(a.icl), show(a.it)]);
        }
        format!("{layers}\n{arms}")
    }
}
