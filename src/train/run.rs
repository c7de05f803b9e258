//! The runs of a trainer: what they are given, where they are, and what their steps report.

use serde::{Deserialize, Serialize};

use super::data::TrainSequence;
use super::order::{DataCursor, Order};
use super::passes::ROW_BUDGET;
use super::settings::RunSettings;
use crate::Result;
use crate::backend::Backend;
use crate::model::Save;

/// The data and settings of one run.
#[derive(Clone, Debug)]
pub struct Run {
    /// Sequences, at least one and each with a label.
    pub data: Vec<TrainSequence>,
    /// Length, optimiser, schedule and order.
    pub settings: RunSettings,
}

/// Sequences that are made when they are needed, those of a step (from 0) by a function of the step: the training of
/// weights on more data than is worth keeping.
pub struct Stream {
    /// Makes the sequences of a step; all of them are one batch.
    #[allow(clippy::type_complexity)]
    pub batch: Box<dyn Fn(u64) -> Result<Vec<TrainSequence>>>,
    /// Tokens of the longest sequence that it makes.
    pub longest: usize,
}

/// What holds for all runs of a trainer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainerOptions {
    /// Probability with which an element of an adapted projection's input is dropped (default 0). Rows with dropout
    /// are never shared between sequences, so that each draws its own.
    pub dropout: f64,
    /// Rows of a pass at most (default [`ROW_BUDGET`]); it bounds memory, and larger batches take several passes.
    pub row_budget: usize,
    /// Alpha of the noise on embeddings ([`super::noise`]); none is no noise (default none). Rows with noise are never shared.
    pub neftune_noise_alpha: Option<f64>,
    /// Whether only the inputs of layers are saved for the backward, which computes each layer again: less memory for more
    /// time, and the same bits (default false).
    pub gradient_checkpointing: bool,
    /// Whether the residual stream that enters the first adapted layer is kept from one epoch to the next, if it takes no more
    /// memory than the activations of a pass and the device is [`ROW_INVARIANT`](crate::backend::Planning::ROW_INVARIANT): fewer
    /// layers to compute, and the same bits (default true).
    pub keep_states: bool,
    /// Whether passes are filled up to few sizes, with rows that nobody asks for; none is where the device
    /// [repeats](crate::backend::Planning::REPEATS) (default none). Not those with teachers.
    pub fill: Option<bool>,
}

impl TrainerOptions {
    /// Whether every row is to draw its own numbers, so that none may stand for several sequences.
    pub fn draws(&self) -> bool {
        self.dropout > 0.0 || self.neftune_noise_alpha.is_some()
    }

    /// The same where an objective has a teacher, or not: of its losses all layers have a part, so that no states are kept.
    pub fn towards(self, has_teacher: bool) -> Self {
        Self { keep_states: self.keep_states && !has_teacher, ..self }
    }

    /// What a forward saves for the backward.
    pub fn save(&self) -> Save {
        if self.gradient_checkpointing { Save::Inputs } else { Save::All }
    }
}

impl Default for TrainerOptions {
    fn default() -> Self {
        Self {
            dropout: 0.0,
            row_budget: ROW_BUDGET,
            neftune_noise_alpha: None,
            gradient_checkpointing: false,
            keep_states: true,
            fill: None,
        }
    }
}

/// One run's part of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct RunReport {
    /// Number of the run, from 0.
    pub run: usize,
    /// Optimiser steps that it has done.
    pub step: u64,
    /// Optimiser steps that it has in all.
    pub total_steps: u64,
    /// Mean loss of the step's label tokens; of an objective towards a teacher, the weighted sum of its parts.
    pub loss: f64,
    /// Those parts, where there is such an objective.
    pub parts: Option<LossParts>,
    /// Norm of the gradient, before it is clipped.
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Passes over the data done.
    pub epoch: f64,
    /// Tokens of the step's sequences, unlabelled ones included.
    pub tokens: u64,
    /// Label tokens of the step.
    pub label_tokens: u64,
    /// Tokens since the beginning.
    pub total_tokens: u64,
}

/// The parts of an objective's loss, means over the step's label tokens; none for what counts nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossParts {
    /// Cross-entropy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ce: Option<f64>,
    /// Distance of the states.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activations: Option<f64>,
    /// Divergence of the distributions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logits: Option<f64>,
}

impl LossParts {
    /// Those of `ce`, `activations` and `logits` that count, by whether their weights are above 0.
    pub(super) fn new(weights: [f64; 3], parts: [f64; 3]) -> Self {
        let part = |i: usize| (weights[i] > 0.0).then_some(parts[i]);
        Self { ce: part(0), activations: part(1), logits: part(2) }
    }

    /// The sum of each.
    pub(super) fn plus(self, other: Self) -> Self {
        let sum = |a: Option<f64>, b: Option<f64>| b.map(|b| a.unwrap_or(0.0) + b);
        Self {
            ce: sum(self.ce, other.ce),
            activations: sum(self.activations, other.activations),
            logits: sum(self.logits, other.logits),
        }
    }

    /// Each divided by `n`.
    pub(super) fn over(self, n: f64) -> Self {
        let [ce, activations, logits] = [self.ce, self.activations, self.logits].map(|part| part.map(|part| part / n));
        Self { ce, activations, logits }
    }
}

/// What a step did.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// Number of the step, from 1.
    pub step: u64,
    /// The runs that took it, ascending.
    pub runs: Vec<RunReport>,
}

/// A run's data and how far it is in it.
pub(super) struct RunState {
    pub data: Vec<TrainSequence>,
    pub settings: RunSettings,
    pub total_steps: u64,
    pub order: Order,
    pub total_tokens: u64,
    /// Loss of its last step; 0 before the first.
    pub loss: f64,
    /// The step after which it takes none, if that is not the last of its schedule.
    pub stopped: Option<u64>,
}

impl RunState {
    /// A run before its first step.
    pub fn new(Run { data, settings }: Run, total_steps: u64) -> Self {
        let order = Order::new(data.len().max(1), settings.shuffle.then_some(settings.seed));
        Self { data, settings, total_steps, order, total_tokens: 0, loss: 0.0, stopped: None }
    }

    /// The number of its last step.
    pub fn end(&self) -> u64 {
        self.stopped.unwrap_or(self.total_steps)
    }
}

/// What a step has taken from a run's data.
pub(super) struct Batch {
    pub run: usize,
    /// Indices of the sequences in the run's data.
    pub sequences: Vec<usize>,
    pub tokens: u64,
    pub labels: u64,
    pub learning_rate: f64,
    /// Epochs done after it.
    pub epoch: f64,
}

/// The losses of a pass on their way to the host.
pub(super) struct PassLosses<B: Backend> {
    /// Of cross-entropy, of states and of distributions; none where it counts nothing.
    pub parts: [Option<B::PendingReadback>; 3],
    /// The run of each loss.
    pub runs: Vec<usize>,
    /// The share of each in its run's loss.
    pub shares: Vec<f64>,
}

/// A step that the device has been given and nobody has reported.
pub(super) struct InFlightStep<B: Backend> {
    /// Every run's cursor before the step.
    pub before: Vec<DataCursor>,
    pub batches: Vec<Batch>,
    pub losses: Vec<PassLosses<B>>,
    /// Squared gradient norms `[runs]` on their way to the host.
    pub norms: B::PendingReadback,
}
