//! The result of a probe: `report.json`.

mod json;
pub mod measures;

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use self::measures::{
    ArmMeasures, ExampleReport, LoraOverlap, OutputMeasures, PairMeasures, PcaReport, Values, over_arms, over_pairs,
};
use super::arm::Arm;
pub use super::arm::arm_name;
use super::factors::Levels;
pub use super::layer::{Final, Layer};
use super::plan::Plan;
use super::settings::ProbeSettings;
use super::statistics::MeanSd;
use crate::formats::adapter::Adapter;
use crate::formats::{self, atomic};
use crate::{Error, Result};

/// One value for each phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, bound(deserialize = "T: Deserialize<'de> + Default"))]
pub struct Phases<T> {
    /// Reading the queries alone.
    pub anchor: T,
    /// Reading the queries after the demonstrations.
    pub icl: T,
    /// Training the LoRA of all seeds.
    pub tune: T,
    /// Reading the queries (and at last the tuning sequences) through the adapters.
    pub it: T,
    /// The same after soft prompts. (As a time, their training is in it.)
    #[serde(default)]
    pub soft: T,
    /// Training the soft prompts of all seeds and arms.
    #[serde(default)]
    pub soft_tune: T,
    /// Patching.
    #[serde(default)]
    pub patch: T,
    /// Measuring what was read.
    #[serde(default)]
    pub measure: T,
    /// The sum of all phases.
    pub total: T,
}

impl<T: std::ops::AddAssign> Phases<T> {
    /// Adds another's, phase by phase.
    fn add(&mut self, other: Self) {
        let Self { anchor, icl, tune, it, soft, soft_tune, patch, measure, total } = other;
        self.anchor += anchor;
        self.icl += icl;
        self.tune += tune;
        self.it += it;
        self.soft += soft;
        self.soft_tune += soft_tune;
        self.patch += patch;
        self.measure += measure;
        self.total += total;
    }
}

impl<T> Phases<T> {
    /// That of reading an arm's prompts.
    pub(super) fn read(&mut self, arm: Arm) -> &mut T {
        match arm {
            Arm::ZeroShot => &mut self.anchor,
            Arm::Icl | Arm::IclRandom | Arm::IclRetrieved => &mut self.icl,
            Arm::Lora | Arm::ItAct | Arm::ItKl => &mut self.it,
            Arm::Pt | Arm::Ipt => &mut self.soft,
        }
    }

    /// That of an arm's training.
    pub(super) fn tune(&mut self, arm: Arm) -> &mut T {
        if arm.has_soft_prompt() { &mut self.soft_tune } else { &mut self.tune }
    }
}

/// What an arm scored: of one seed, or over the seeds (`A` and `S` are then [`MeanSd`]).
#[derive(Clone, Debug, PartialEq)]
pub struct ArmReport<A, S> {
    /// The arm that was read.
    pub arm: Arm,
    /// Share of the queries answered right, see [`crate::task::metrics::score`]; none for free text.
    pub accuracy: A,
    /// Mean log-probability of the gold answer.
    pub log_prob: S,
    /// Of the training; none where nothing is trained.
    pub tuning: Option<TuningReport<S>>,
}

/// What a training of an arm did.
#[derive(Clone, Debug, PartialEq)]
pub struct TuningReport<S> {
    /// Mean loss over the label tokens at each step, before the step.
    pub loss: Vec<S>,
    /// The same over all training sequences after the last step; none without any.
    pub final_loss: Option<S>,
}

/// The similarities of all arms at one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerReport {
    /// Where the states are read.
    pub layer: Layer,
    /// Every pair of arms, in the order of the arms: each with all before it.
    pub pairs: Vec<PairReport>,
    /// The update of ICL against Gaussian noise, see [`crate::measures::similarity::gaussian_updates`].
    pub update_gaussian: MeanSd,
    /// The measures of the states that were asked for, of the same pairs.
    pub measures: Vec<PairMeasures>,
    /// What each arm's states say of the labels: `lens_accuracy`, `lens_margin`, `lens_margin_shuffled`; `attention_attribution`,
    /// `mlp_attribution`; `probe_accuracy`, `probe_shuffled_labels`, `probe_random_features`. See
    /// [`crate::measures::readouts`].
    pub readouts: Vec<ArmMeasures>,
    /// `sim_aou` and `sim_aou_gaussian`, `sim_am` and `sim_am_zero_shot` (where the query's last token is compared): see [`crate::measures::attention`].
    pub attention: Values,
}

/// Two arms at one layer: over the queries of one seed, or over the seeds, of the means over the queries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairReport {
    /// In the order in which they are computed.
    pub arms: [Arm; 2],
    /// Of their states, see [`crate::measures::similarity::cosines`].
    pub cosine: MeanSd,
    /// Of their updates; none beside the anchor, from which updates are taken.
    pub updates: Option<UpdateReport>,
}

/// The updates of two arms, see [`crate::measures::similarity::Updates`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UpdateReport {
    /// On the same query.
    pub update: MeanSd,
    /// Of the first arm against those of the second on the other queries.
    pub update_shuffled: MeanSd,
}

/// A layer into whose output states were put, in the run of the query alone: of one seed, or over the seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PatchLayer {
    /// The layer whose `hook_resid_post` was replaced.
    pub layer: usize,
    /// What was put in.
    pub vectors: Vec<PatchVector>,
}

/// What came of a patch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PatchVector {
    /// `icl` and `it`, the arm's state of the same query; `task_vector` and `it_vector`, its mean update over the other
    /// queries; `random`, a Gaussian vector of the task vector's norm; `other_task`, the mean update of ICL with another
    /// task's demonstrations.
    pub vector: String,
    /// Share of the queries answered right; empty for free text.
    pub accuracy: MeanSd,
    /// Mean log-probability of the gold answer.
    pub log_prob: MeanSd,
    /// `(patched - anchor) / (ICL - anchor)` of the accuracies; empty where ICL gains nothing. Over seeds a share of the
    /// mean gain, since a share of a seed's own gain is of any size where that is next to nothing.
    pub recovery_accuracy: MeanSd,
    /// The same of the log-probabilities.
    pub recovery_log_prob: MeanSd,
}

/// The result of one seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "json::Seed", try_from = "json::Seed")]
pub struct SeedReport {
    /// Seed of the demonstrations, the start and the baseline.
    pub seed: u64,
    /// Zero-shot, ICL and LoRA, then the arms with soft prompts.
    pub arms: Vec<ArmReport<Option<f64>, f64>>,
    /// Directories of the adapters that were saved, relative to the report.
    pub adapters: BTreeMap<Arm, String>,
    /// Every layer's `hook_resid_post`, then `final`.
    pub layers: Vec<LayerReport>,
    /// Every layer, where states were put in.
    pub patching: Vec<PatchLayer>,
    /// What the arms answer.
    pub outputs: Option<OutputMeasures>,
}

/// Mean and SD over the seeds, of each seed's value (of its mean over the queries).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "json::Summary", try_from = "json::Summary")]
pub struct Summary {
    /// See [`SeedReport::arms`].
    pub arms: Vec<ArmReport<MeanSd, MeanSd>>,
    /// See [`SeedReport::layers`].
    pub layers: Vec<LayerReport>,
    /// See [`SeedReport::patching`].
    pub patching: Vec<PatchLayer>,
    /// See [`SeedReport::outputs`].
    pub outputs: Option<OutputMeasures>,
}

type PatchScore = fn(&PatchVector) -> MeanSd;

impl LayerReport {
    /// Two arms beside each other, in either order.
    pub fn pair(&self, x: Arm, y: Arm) -> Option<&PairReport> {
        self.pairs.iter().find(|pair| pair.arms == [x, y] || pair.arms == [y, x])
    }
}

impl SeedReport {
    /// The scores of an arm.
    pub fn arm(&self, arm: Arm) -> Option<&ArmReport<Option<f64>, f64>> {
        self.arms.iter().find(|report| report.arm == arm)
    }
}

impl Summary {
    /// Of at least one seed, all of the same arms, model and numbers of steps.
    pub fn of(seeds: &[SeedReport]) -> Self {
        Self {
            arms: (0..seeds[0].arms.len()).map(|a| Self::of_arm(seeds, a)).collect(),
            layers: (0..seeds[0].layers.len()).map(|l| Self::of_layer(seeds, l)).collect(),
            patching: (0..seeds[0].patching.len()).map(|l| Self::of_patch(seeds, l)).collect(),
            outputs: seeds
                .iter()
                .map(|seed| seed.outputs.as_ref())
                .collect::<Option<Vec<_>>>()
                .map(|all| OutputMeasures::over(&all)),
        }
    }

    /// The scores of an arm.
    pub fn arm(&self, arm: Arm) -> Option<&ArmReport<MeanSd, MeanSd>> {
        self.arms.iter().find(|report| report.arm == arm)
    }

    fn of_arm(seeds: &[SeedReport], a: usize) -> ArmReport<MeanSd, MeanSd> {
        let all = || seeds.iter().map(|seed| &seed.arms[a]);
        let tunings = || all().filter_map(|arm| arm.tuning.as_ref());
        let first = &seeds[0].arms[a];
        ArmReport {
            arm: first.arm,
            accuracy: MeanSd::of(all().filter_map(|arm| arm.accuracy)),
            log_prob: MeanSd::of(all().map(|arm| arm.log_prob)),
            tuning: first.tuning.as_ref().map(|tuning| TuningReport {
                loss: (0..tuning.loss.len()).map(|i| MeanSd::of(tunings().map(|t| t.loss[i]))).collect(),
                final_loss: tuning.final_loss.map(|_| MeanSd::of(tunings().filter_map(|t| t.final_loss))),
            }),
        }
    }

    fn of_patch(seeds: &[SeedReport], l: usize) -> PatchLayer {
        let vector = |(v, first): (usize, &PatchVector)| {
            let patched = |seed: &SeedReport, get: PatchScore| get(&seed.patching[l].vectors[v]).mean;
            let over = |get: PatchScore| MeanSd::of(seeds.iter().filter_map(|seed| patched(seed, get)));
            let share = |get: PatchScore, score: fn(&ArmReport<Option<f64>, f64>) -> Option<f64>| {
                let gains = |seed: &SeedReport| {
                    let anchor = score(seed.arm(Arm::ZeroShot)?)?;
                    Some((patched(seed, get)? - anchor, score(seed.arm(Arm::Icl)?)? - anchor))
                };
                let gains: Vec<(f64, f64)> = seeds.iter().filter_map(gains).collect();
                let whole = MeanSd::of(gains.iter().map(|(_, icl)| *icl)).mean.filter(|gain| *gain != 0.0);
                MeanSd::of(whole.iter().flat_map(|whole| gains.iter().map(move |(patched, _)| patched / whole)))
            };
            PatchVector {
                vector: first.vector.clone(),
                accuracy: over(|v| v.accuracy),
                log_prob: over(|v| v.log_prob),
                recovery_accuracy: share(|v| v.accuracy, |arm| arm.accuracy),
                recovery_log_prob: share(|v| v.log_prob, |arm| Some(arm.log_prob)),
            }
        };
        let first = &seeds[0].patching[l];
        PatchLayer { layer: first.layer, vectors: first.vectors.iter().enumerate().map(vector).collect() }
    }

    fn of_layer(seeds: &[SeedReport], l: usize) -> LayerReport {
        let over = |get: &dyn Fn(&LayerReport) -> Option<MeanSd>| {
            MeanSd::of(seeds.iter().filter_map(|seed| get(&seed.layers[l])?.mean))
        };
        let first = &seeds[0].layers[l];
        let pair = |(p, pair): (usize, &PairReport)| PairReport {
            arms: pair.arms,
            cosine: over(&|layer| Some(layer.pairs[p].cosine)),
            updates: pair.updates.map(|_| UpdateReport {
                update: over(&|layer| Some(layer.pairs[p].updates?.update)),
                update_shuffled: over(&|layer| Some(layer.pairs[p].updates?.update_shuffled)),
            }),
        };
        LayerReport {
            layer: first.layer,
            pairs: first.pairs.iter().enumerate().map(pair).collect(),
            update_gaussian: over(&|layer| Some(layer.update_gaussian)),
            measures: over_pairs(&seeds.iter().map(|seed| &seed.layers[l].measures[..]).collect::<Vec<_>>()),
            readouts: over_arms(&seeds.iter().map(|seed| &seed.layers[l].readouts[..]).collect::<Vec<_>>()),
            attention: measures::over(seeds.iter().map(|seed| &seed.layers[l].attention)),
        }
    }
}

/// The content of `report.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Version of llamaprobe that made the report.
    pub version: String,
    /// The model, as it was named.
    pub model: String,
    /// Device of the computation.
    pub device: String,
    /// Compute dtype of the device.
    pub dtype: String,
    /// A digest of the edits that were made in every arm, see [`Edit::fingerprint`](crate::hooks::Edit::fingerprint).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edits: Option<String>,
    /// The longest sequence, and the longest that the model was made for.
    pub positions: Positions,
    /// What was asked for.
    pub settings: ProbeSettings,
    /// Results over the seeds.
    pub summary: Summary,
    /// Results of each seed, in the order of the settings.
    pub seeds: Vec<SeedReport>,
    /// Wall-clock seconds by phase.
    pub seconds: Phases<f64>,
    /// Tokens by phase. Reading: the rows computed, where what prompts share counts once. Tuning: the tokens of all
    /// sequences of all steps.
    pub tokens: Phases<usize>,
    /// What was done, down to the token.
    pub plan: Plan,
    /// Every condition of the study, the first of which the fields above are of.
    #[serde(default)]
    pub conditions: Vec<ConditionReport>,
    /// The arms' states of the first condition and seed as points of a plane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pca: Option<PcaReport>,
    /// The first queries of the first condition and seed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<ExampleReport>,
}

/// One condition of a study.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConditionReport {
    /// The levels of the factors that vary; none in a study of a single condition.
    pub levels: Levels,
    /// What was asked for, with those levels.
    pub settings: ProbeSettings,
    /// Results over the seeds.
    pub summary: Summary,
    /// Results of each seed, in the order of the settings.
    pub seeds: Vec<SeedReport>,
    /// What was done, down to the token.
    pub plan: Plan,
    /// What LoRA updates have in common: between the seeds, and with earlier conditions that adapt the same modules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lora_overlap: Vec<LoraOverlap>,
}

/// Lengths of sequences in tokens.
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
        serde_json::from_value(formats::json::read(path)?).map_err(Error::file(path))
    }

    /// Gives the tokens of the examples their texts.
    pub fn show_tokens(&mut self, text: impl Fn(u32) -> String) {
        for example in &mut self.examples {
            example.tokens = self.plan.queries[example.query].token_ids.iter().map(|&id| text(id)).collect();
        }
    }

    /// Adds the conditions of another report, such as of another model.
    pub fn join(&mut self, other: Self) {
        let before = self.conditions.len();
        for mut condition in other.conditions {
            // Conditions are named by their number, which is now another.
            let named = condition.lora_overlap.iter_mut().filter_map(|overlap| overlap.with.as_mut());
            named.for_each(|with| *with += before);
            self.conditions.push(condition);
        }
        self.seconds.add(other.seconds);
        self.tokens.add(other.tokens);
        self.positions.longest = self.positions.longest.max(other.positions.longest);
    }

    /// Writes `report.json` into `directory`, and before it each of `adapters` (by condition and arm, one per seed) as a PEFT
    /// directory: `adapters/seed-{seed}` for LoRA, `adapters/{arm}-seed-{seed}` for others, those of conditions after the
    /// first in `adapters/condition-{number}` instead of `adapters`.
    ///
    /// # Errors
    /// A file cannot be written. The report then does not appear.
    pub fn save(&mut self, directory: &Path, adapters: &[Vec<(Arm, Vec<Adapter>)>]) -> Result<()> {
        for (c, (condition, adapters)) in self.conditions.iter_mut().zip(adapters).enumerate() {
            let folder = if c == 0 { "adapters".to_owned() } else { format!("adapters/condition-{c}") };
            for (arm, adapters) in adapters {
                let prefix = if *arm == Arm::Lora { String::new() } else { format!("{}-", arm.name()) };
                for (seed, adapter) in condition.seeds.iter_mut().zip(adapters) {
                    let name = format!("{folder}/{prefix}seed-{}", seed.seed);
                    adapter.write(directory.join(&name))?;
                    seed.adapters.insert(*arm, name);
                }
            }
        }
        if let Some(first) = self.conditions.first() {
            self.seeds.clone_from(&first.seeds);
        }
        atomic::write_json(directory.join("report.json"), self)
    }
}
