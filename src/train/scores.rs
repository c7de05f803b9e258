//! What evaluations of runs find on held-out sequences, and what is remembered of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::data::{TrainSequence, words};
use super::generation_eval::GenerationEval;
use super::passes::Packing;
use crate::backend::Backend;
use crate::hash;
use crate::model::Activations;

/// By which value of an evaluation the best one is found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BestBy {
    /// `loss`, `accuracy`, or a metric of what is written.
    pub name: String,
    /// Whether a greater value is a better one.
    pub greater_is_better: bool,
}

impl Default for BestBy {
    fn default() -> Self {
        Self { name: "loss".to_owned(), greater_is_better: false }
    }
}

impl BestBy {
    /// Whether `x` is better than `y`.
    pub fn is_better(&self, x: f64, y: f64) -> bool {
        if self.greater_is_better { x > y } else { x < y }
    }
}

/// How runs are evaluated.
#[derive(Clone)]
pub struct Evaluation {
    /// The held-out sequences, the same for every run.
    pub data: Vec<TrainSequence>,
    /// Steps between evaluations; a run is also evaluated after its last step.
    pub every: u64,
    /// What the runs are to write, if anything.
    pub generation: Option<GenerationEval>,
    /// Which evaluation of a run is its best.
    pub best_by: BestBy,
    /// A run stops after so many evaluations one after another that are not better than its best; none goes on.
    pub patience: Option<u64>,
    /// Whether the parameters of a run's best evaluation are kept, to be restored at the end.
    pub load_best: bool,
}

/// The held-out data under a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Score {
    /// Optimiser steps that the run has done.
    pub step: u64,
    /// Mean negative log-likelihood of the label tokens, in nats.
    pub loss: f64,
    /// Share of them that have the greatest logit.
    pub accuracy: f64,
    /// The metrics of what it wrote, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, f64>,
}

impl Score {
    /// A value by its name in [`BestBy`].
    pub fn value(&self, name: &str) -> Option<f64> {
        match name {
            "loss" => Some(self.loss),
            "accuracy" => Some(self.accuracy),
            name => self.metrics.get(name).copied(),
        }
    }
}

/// The evaluations of a run so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunScores {
    /// The most recent evaluation, if there was one.
    pub last: Option<Score>,
    /// The best one, the first of equal ones.
    pub best: Option<Score>,
    /// Evaluations since then.
    pub evals_since_best: u64,
    /// The step after which it was stopped.
    pub stopped: Option<u64>,
}

/// A run's evaluation after a step.
#[derive(Clone, Debug, PartialEq)]
pub struct EvalReport {
    /// Number of the run.
    pub run: usize,
    /// What was found.
    pub score: Score,
    /// Whether the run takes no further steps although its schedule goes on.
    pub stops: bool,
}

/// The buffers and the state of an evaluation.
pub(super) struct Evaluator<B: Backend> {
    pub settings: Evaluation,
    pub acts: Activations<B>,
    pub scores: Vec<RunScores>,
    /// The parameters of each run's best evaluation, if they are kept: `[runs, stride]`.
    pub best: Vec<B::Element>,
}

impl Evaluation {
    /// What a continuation of a training must share.
    pub(super) fn fingerprint(&self) -> Value {
        let data = format!("{:016x}", hash::fnv1a(words(&self.data).flat_map(u64::to_le_bytes)));
        let mut value = json!({
            "sequences": self.data.len(),
            "data": data,
            "every": self.every,
            "best_by": self.best_by,
            "patience": self.patience,
            "load_best": self.load_best,
        });
        if let Some(generation) = &self.generation {
            value["generation"] = generation.fingerprint();
        }
        value
    }

    /// Rows, and label rows, of its largest passes.
    pub(super) fn capacity(&self, packing: &Packing, runs: usize) -> (usize, usize) {
        packing.capacity((0..runs).map(|_| (self.data.as_slice(), self.data.len())))
    }
}
