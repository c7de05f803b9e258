//! What is measured beside cosines and scores: of pairs of arms, of single arms, of answers and of adapters.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::arm::Arm;
use super::super::layer::Layer;
use super::super::statistics::MeanSd;
use crate::measures::{Baselines, StateMeasures};

/// Values by their names: over the queries of a seed (where a measure has no value for each, without SD), or over the
/// seeds.
pub type Values = BTreeMap<String, MeanSd>;

/// Two arms beside each other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairMeasures {
    /// In the order in which they are computed; a and b of the measures.
    #[serde(with = "arm_names")]
    pub arms: [Arm; 2],
    /// What was measured.
    pub values: Values,
    /// The same with b's queries in another order, where that has a value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shuffled: Values,
    /// The same with Gaussian rows in the place of b's, where that has a value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub gaussian: Values,
}

/// An arm by itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArmMeasures {
    /// The arm.
    #[serde(with = "arm_name")]
    pub arm: Arm,
    /// What was measured.
    pub values: Values,
}

/// What the arms answer, beside whether it is right.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputMeasures {
    /// `agreement` and `kl_divergence` (of the second arm's labels from the first's), see [`crate::measures::outputs`].
    pub pairs: Vec<PairMeasures>,
    /// `entropy` and `calibration_error`.
    pub arms: Vec<ArmMeasures>,
    /// `rec2ftp`, and `rec2ftp_shuffled`, its baseline.
    pub values: Values,
}

/// The arms' states at one layer as points of a plane, see [`projection`](crate::measures::projection()).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PcaReport {
    /// Seed of the demonstrations.
    pub seed: u64,
    /// Where the states are read: the block after which the updates of ICL and IT are most alike, over the seeds.
    pub layer: Layer,
    /// The share of the variance along each of the two components.
    pub variance: [f64; 2],
    /// The points of each arm's rows.
    pub arms: Vec<PcaArm>,
}

/// An arm's points.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PcaArm {
    /// The arm.
    #[serde(with = "arm_name")]
    pub arm: Arm,
    /// One for each row of states.
    pub points: Vec<[f64; 2]>,
}

/// What the arms answer to one query of the first seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExampleReport {
    /// Its number in the plan.
    pub query: usize,
    /// The text of each of its tokens; empty where there is no tokenizer.
    pub tokens: Vec<String>,
    /// The gold answer, as text where the task has labels or choices.
    pub gold: String,
    /// By arm.
    pub answers: Vec<ExampleAnswer>,
}

/// An arm's answer to a query.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExampleAnswer {
    /// The arm.
    #[serde(with = "arm_name")]
    pub arm: Arm,
    /// The arm's answer: the likeliest, by length where lengths count.
    pub predicted: String,
    /// The log-probability of each answer, in the order of the labels or choices: sums, whatever the lengths.
    pub log_probs: Vec<f64>,
}

/// How much LoRA updates have in common, see [`lora_overlap`](crate::measures::lora_overlap).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraOverlap {
    /// The condition whose adapters of the same seeds are beside; none where those of this condition's seeds are beside each
    /// other.
    pub with: Option<usize>,
    /// By layer: mean over modules, mean and SD over pairs of adapters.
    pub layers: Vec<MeanSd>,
    /// What two random updates of these ranks have in common, on the mean over modules.
    pub expected: f64,
}

/// The measures of two arms' states.
pub(in crate::probe) fn of_states(arms: [Arm; 2], found: &StateMeasures, null: Option<&Baselines>) -> PairMeasures {
    PairMeasures {
        arms,
        values: values(found),
        shuffled: null.map_or_else(Values::new, |null| values(&null.shuffled)),
        gaussian: null.map_or_else(Values::new, |null| values(&null.gaussian)),
    }
}

/// The values that there are.
fn values(found: &StateMeasures) -> Values {
    let all = crate::measures::Measure::ALL.into_iter().flat_map(|measure| found.values(measure));
    all.filter_map(|(name, value)| Some((name.to_owned(), MeanSd::of([value?])))).collect()
}

/// The mean and SD over some of each of their values.
pub(super) fn over<'a>(all: impl Iterator<Item = &'a Values> + Clone) -> Values {
    let names: std::collections::BTreeSet<&String> = all.clone().flat_map(BTreeMap::keys).collect();
    let one = |name: &String| MeanSd::of(all.clone().filter_map(|values| values.get(name)?.mean));
    names.into_iter().map(|name| (name.clone(), one(name))).collect()
}

/// The same of lists that have the same pairs in the same order.
pub(super) fn over_pairs(lists: &[&[PairMeasures]]) -> Vec<PairMeasures> {
    let pair = |(p, first): (usize, &PairMeasures)| PairMeasures {
        arms: first.arms,
        values: over(lists.iter().map(|list| &list[p].values)),
        shuffled: over(lists.iter().map(|list| &list[p].shuffled)),
        gaussian: over(lists.iter().map(|list| &list[p].gaussian)),
    };
    lists[0].iter().enumerate().map(pair).collect()
}

/// The same of lists that have the same arms in the same order.
pub(super) fn over_arms(lists: &[&[ArmMeasures]]) -> Vec<ArmMeasures> {
    let arm = |(a, first): (usize, &ArmMeasures)| ArmMeasures {
        arm: first.arm,
        values: over(lists.iter().map(|list| &list[a].values)),
    };
    lists[0].iter().enumerate().map(arm).collect()
}

impl OutputMeasures {
    /// Over the seeds.
    pub(super) fn over(seeds: &[&Self]) -> Self {
        let pairs: Vec<&[PairMeasures]> = seeds.iter().map(|seed| &seed.pairs[..]).collect();
        let arms: Vec<&[ArmMeasures]> = seeds.iter().map(|seed| &seed.arms[..]).collect();
        Self { pairs: over_pairs(&pairs), arms: over_arms(&arms), values: over(seeds.iter().map(|seed| &seed.values)) }
    }
}

/// An arm by its name in reports.
mod arm_name {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    use crate::probe::arm::Arm;

    pub fn serialize<S: Serializer>(arm: &Arm, serializer: S) -> Result<S::Ok, S::Error> {
        crate::probe::arm::arm_name(*arm).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arm, D::Error> {
        let name = String::deserialize(deserializer)?;
        crate::probe::arm::arm_named(&name).ok_or_else(|| D::Error::custom(format!("{name} is no arm of a probe")))
    }
}

/// Two of them.
mod arm_names {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    use crate::probe::arm::Arm;

    pub fn serialize<S: Serializer>(arms: &[Arm; 2], serializer: S) -> Result<S::Ok, S::Error> {
        arms.map(crate::probe::arm::arm_name).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[Arm; 2], D::Error> {
        let names = <[String; 2]>::deserialize(deserializer)?;
        let arm = |name: &String| {
            crate::probe::arm::arm_named(name).ok_or_else(|| D::Error::custom(format!("{name} is no arm of a probe")))
        };
        Ok([arm(&names[0])?, arm(&names[1])?])
    }
}
