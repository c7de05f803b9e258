//! What evaluations of runs find on held-out sequences, and what is remembered of them.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::data::{TrainSequence, words};
use super::passes::Packing;
use crate::backend::Backend;
use crate::hash;
use crate::model::Activations;

/// How runs are evaluated.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// The held-out sequences, the same for every run.
    pub data: Vec<TrainSequence>,
    /// Steps between evaluations; a run is also evaluated after its last step.
    pub every: u64,
    /// A run stops after so many evaluations one after another without a loss below its lowest; none goes on.
    pub patience: Option<u64>,
    /// Whether the parameters of a run's lowest loss are kept, to be restored at the end.
    pub load_best: bool,
}

/// The label tokens of the held-out sequences under a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Score {
    /// Optimiser steps that the run has done.
    pub step: u64,
    /// Mean negative log-likelihood, in nats.
    pub loss: f64,
    /// Share of them that have the greatest logit.
    pub accuracy: f64,
}

/// The evaluations of a run so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunScores {
    /// The most recent evaluation, if there was one.
    pub last: Option<Score>,
    /// The one of the lowest loss, the first of equal ones.
    pub best: Option<Score>,
    /// Evaluations since then.
    pub worse: u64,
    /// The step after which it was stopped.
    pub stopped: Option<u64>,
}

/// A run's evaluation after a step.
#[derive(Clone, Copy, Debug, PartialEq)]
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
        json!({
            "sequences": self.data.len(),
            "data": data,
            "every": self.every,
            "patience": self.patience,
            "load_best": self.load_best,
        })
    }

    /// Rows, and label rows, of its largest passes.
    pub(super) fn capacity(&self, packing: &Packing, runs: usize) -> (usize, usize) {
        packing.capacity((0..runs).map(|_| (self.data.as_slice(), self.data.len())))
    }
}
