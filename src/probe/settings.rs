//! The settings of a probe.

use serde::{Deserialize, Serialize};

use super::arm::{Arm, FURTHER_ARMS};
use super::demonstrations::{LabelNoise, Similarity, SimilarityBy};
use super::measured::Measures;
use super::position::Position;
use crate::arch::{Family, Projection};
use crate::formats::adapter::PromptConfig;
use crate::task::{LengthNormalization, Task, Template};
use crate::train::schedule::{Schedule, Warmup};
use crate::train::settings::{Length, RunSettings};
use crate::{Error, Result};

/// What is compared, and how it is tuned. Defaults are our own choices, not those of a paper.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeSettings {
    /// Whose data, labels and metric are used.
    pub task: Task,
    /// How an example becomes text (default: the task's template).
    pub template: Template,
    /// Demonstrations per seed (default 10, or what the queries leave of a task's own rows); with 0, ICL is the query alone,
    /// and nothing is tuned.
    pub demonstrations: usize,
    /// What their labels are (default gold).
    #[serde(default, skip_serializing_if = "is_default")]
    pub labels: LabelNoise,
    /// The task whose examples they are; none is `task` itself (the default).
    #[serde(default, skip_serializing_if = "is_default")]
    pub source: Option<String>,
    /// How like the queries they are (default random).
    #[serde(default, skip_serializing_if = "is_default")]
    pub similarity: Similarity,
    /// By what that is measured (default BM25).
    #[serde(default, skip_serializing_if = "is_default")]
    pub similarity_by: SimilarityBy,
    /// In which order they are shown: 0 is as drawn (the default), others are permutations of it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub order: u64,
    /// Queries, the first of the data set; none means all (default 100, or half of a task's own rows).
    pub queries: Option<usize>,
    /// Seeds of the draws of demonstrations (default 0 to 2; to 7 for synthetic tasks).
    pub seeds: Vec<u64>,
    /// LoRA rank (default 8).
    pub r: usize,
    /// LoRA alpha (default 16).
    pub lora_alpha: f64,
    /// Adapted modules, by the family's names (default `q_proj`, `v_proj`).
    pub target_modules: Vec<String>,
    /// Adapted layers; none means all (the default).
    #[serde(default, skip_serializing_if = "is_default")]
    pub layers_to_transform: Option<Vec<usize>>,
    /// Learning rate, the same at every step (default 1e-3; 5e-3 for synthetic tasks).
    pub learning_rate: f64,
    /// Epochs over the demonstrations (default 10; 40 for synthetic tasks); with 0 the LoRA changes nothing.
    pub epochs: f64,
    /// Optimiser steps of LoRA or full tuning, in place of epochs.
    #[serde(default, skip_serializing_if = "is_default")]
    pub max_steps: Option<u64>,
    /// What the tuning trains (default LoRA).
    #[serde(default, skip_serializing_if = "is_default")]
    pub tuning: TuningKind,
    /// The tokens whose states are compared (default the last one).
    #[serde(default, skip_serializing_if = "is_default")]
    pub position: Position,
    /// By what an answer's log-probability is divided before labels or choices are compared (default none).
    #[serde(default, skip_serializing_if = "is_default")]
    pub length_normalization: LengthNormalization,
    /// What is measured beside cosines and scores (default nothing).
    #[serde(default, skip_serializing_if = "is_default")]
    pub measures: Measures,
    /// Whether states are put into the run of the query alone (default not).
    #[serde(default, skip_serializing_if = "is_default")]
    pub patch: bool,
    /// Demonstrations of a step, shuffled by the seed; none means all of them in every step (the default).
    pub batch_size: Option<usize>,
    /// Decoupled weight decay (default 0).
    pub weight_decay: f64,
    /// Threshold to which the gradient's norm is clipped; none never clips (the default).
    pub max_grad_norm: Option<f64>,
    /// Token rows of a pass at most, unless a single prompt needs more (default 4096). States and scores do not depend on it; a
    /// tuning does in rounding, since it divides the sums of its gradients.
    pub rows: usize,
    /// The further arms.
    #[serde(default)]
    pub soft: SoftSettings,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What the tuning on demonstrations trains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TuningKind {
    /// A LoRA over the frozen weights.
    #[default]
    Lora,
    /// All weights.
    Full,
}

/// How soft prompts are tuned. Defaults are our own choices, not those of a paper.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SoftSettings {
    /// The further arms, of [`FURTHER_ARMS`], each at most once (default none); of those without a soft prompt nothing else
    /// here counts.
    pub arms: Vec<Arm>,
    /// Rows of a prompt (default 20). It begins as embeddings of random tokens.
    pub num_virtual_tokens: usize,
    /// Learning rate, the same at every step (default 1e-2).
    pub learning_rate: f64,
    /// Epochs over the demonstrations (default 10).
    pub epochs: f64,
}

impl Default for SoftSettings {
    fn default() -> Self {
        Self { arms: Vec::new(), num_virtual_tokens: 20, learning_rate: 1e-2, epochs: 10.0 }
    }
}

impl SoftSettings {
    /// Checks what the settings of the other tuning do not share.
    fn validate(&self) -> Result<()> {
        let rows = self.num_virtual_tokens;
        if rows == 0 || rows > PromptConfig::MAX_ROWS {
            return Err(Error::argument(
                "soft.num_virtual_tokens",
                format!("from 1 to {}", PromptConfig::MAX_ROWS),
                rows,
            ));
        }
        for (i, arm) in self.arms.iter().enumerate() {
            if !FURTHER_ARMS.contains(arm) {
                let names = FURTHER_ARMS.map(Arm::name).join(", ");
                return Err(Error::argument("soft.arms", format!("of {names}"), arm.name()));
            }
            if self.arms[..i].contains(arm) {
                return Err(Error::argument("soft.arms", "each arm once", format!("{} twice", arm.name())));
            }
        }
        Ok(())
    }
}

impl ProbeSettings {
    /// The defaults for a task. That of the embedded model is cheap enough for more seeds, and a model so small learns
    /// little at rates for large ones.
    pub fn new(task: Task) -> Self {
        let (seeds, learning_rate, epochs) = if task.is_synthetic() { (8, 5e-3, 40.0) } else { (3, 1e-3, 10.0) };
        let queries = task.default_queries();
        Self {
            template: task.template().clone(),
            demonstrations: if task.rows() > 0 { (task.rows() - queries).min(10) } else { 10 },
            labels: LabelNoise::Gold,
            source: None,
            similarity: Similarity::Random,
            similarity_by: SimilarityBy::Bm25,
            order: 0,
            queries: Some(queries),
            seeds: (0..seeds).collect(),
            r: 8,
            lora_alpha: 16.0,
            target_modules: vec!["q_proj".to_string(), "v_proj".to_string()],
            layers_to_transform: None,
            learning_rate,
            epochs,
            max_steps: None,
            tuning: TuningKind::Lora,
            position: Position::Last,
            length_normalization: LengthNormalization::None,
            measures: Measures::default(),
            patch: false,
            batch_size: None,
            weight_decay: 0.0,
            max_grad_norm: None,
            rows: 4096,
            soft: SoftSettings::default(),
            task,
        }
    }

    /// Checks every field's domain.
    ///
    /// # Errors
    /// [`Error::Argument`] with the field, as a path (`soft.learning_rate`) where it is of settings inside of these.
    pub fn validate(&self, family: Family) -> Result<()> {
        let check = |ok: bool, name: &str, expected: &str, found: String| {
            if ok { Ok(()) } else { Err(Error::argument(name, expected, found)) }
        };
        check(!self.seeds.is_empty(), "seeds", "at least 1", "none".to_string())?;
        check(self.r > 0, "r", "at least 1", self.r.to_string())?;
        let alpha = self.lora_alpha;
        check(alpha.is_finite() && alpha > 0.0, "lora_alpha", "a number above 0", alpha.to_string())?;
        check(self.epochs.is_finite() && self.epochs >= 0.0, "epochs", "a number from 0", self.epochs.to_string())?;
        check(self.rows > 0, "rows", "at least 1", self.rows.to_string())?;
        let mut seeds = self.seeds.clone();
        seeds.sort_unstable();
        let twice = seeds.windows(2).find(|pair| pair[0] == pair[1]);
        check(twice.is_none(), "seeds", "each seed once", format!("{} twice", twice.map_or(0, |pair| pair[0])))?;
        check(
            !self.patch || self.position == Position::Last,
            "position",
            "last, where states are patched",
            self.position.name().to_owned(),
        )?;
        let of_the_last = self.measures.only_of_the_last();
        check(
            of_the_last.is_empty() || self.position == Position::Last,
            "position",
            &format!("last, which {} is of", of_the_last.join(", ")),
            self.position.name().to_owned(),
        )?;
        self.targets(family)?;
        self.soft.validate()?;
        // Without an epoch or demonstration there is nothing to train, which is no error here as it is to the trainer.
        let (epochs, max_steps) =
            (if self.epochs == 0.0 { 1.0 } else { self.epochs }, self.max_steps.map(|n| n.max(1)));
        let sequences = self.demonstrations.max(1);
        Self { epochs, max_steps, ..self.clone() }.training(Arm::Lora, 0, sequences).validate()?;
        self.training(Arm::Pt, 0, sequences).validate_in("soft")
    }

    /// Whether a measure of the query's last token is taken.
    pub(super) fn measures_last(&self, name: &str) -> bool {
        self.measures.has(name) && self.position == Position::Last
    }

    /// The adapted modules of a model of some family.
    ///
    /// # Errors
    /// None, or a name that is not of a module.
    pub fn targets(&self, family: Family) -> Result<Vec<Projection>> {
        family.targets(&self.target_modules)
    }

    /// Every arm, in the order in which they are computed and reported.
    pub fn arms(&self) -> Vec<Arm> {
        [Arm::ZeroShot, Arm::Icl, Arm::Lora].into_iter().chain(self.soft.arms.iter().copied()).collect()
    }

    /// Length of an arm's training.
    pub fn length(&self, arm: Arm) -> Length {
        match self.max_steps {
            Some(steps) if !arm.has_soft_prompt() => Length::Steps(steps),
            _ => Length::Epochs(if arm.has_soft_prompt() { self.soft.epochs } else { self.epochs }),
        }
    }

    /// Optimiser steps of an arm's training on so many sequences.
    pub fn steps(&self, arm: Arm, sequences: usize) -> u64 {
        match self.length(arm) {
            Length::Steps(0) => 0,
            Length::Epochs(0.0) => 0,
            _ if sequences == 0 => 0,
            _ => self.training(arm, 0, sequences).total_steps(sequences),
        }
    }

    /// The trainer's settings for an arm and a seed with so many sequences.
    pub fn training(&self, arm: Arm, seed: u64, sequences: usize) -> RunSettings {
        let batch_size = self.batch_size.unwrap_or(sequences).min(sequences);
        RunSettings {
            seed,
            // With all demonstrations in every step their order means nothing.
            shuffle: batch_size < sequences,
            length: self.length(arm),
            batch_size,
            learning_rate: if arm.has_soft_prompt() { self.soft.learning_rate } else { self.learning_rate },
            schedule: Schedule::Constant,
            warmup: Warmup::Steps(0),
            weight_decay: self.weight_decay,
            max_grad_norm: self.max_grad_norm,
            ..RunSettings::default()
        }
    }
}
