//! The trainer: optimiser steps of many runs at once.
//!
//! Nothing in a step waits for the device: gradients are clipped there, and a loss or gradient that is not finite keeps the
//! parameters where they are there. So the device can go on with a step while the host reads what the last one did.

use std::collections::VecDeque;

use super::data::TrainSequence;
use super::fill::room;
use super::frozen_states::{FrozenPlan, FrozenStates};
use super::objective::Objective;
use super::optim::Optimizer;
use super::passes::{MIN_SHARED, Packing, PromptOffset, pass_size};
use super::run::{InFlightStep, RunState};
use super::scores::Evaluator;
use super::settings::{Length, RunSettings};
use super::trainable::Trainable;
use crate::arch::ModelConfig;
use crate::backend::{Backend, PassSize};
use crate::formats::adapter::{Adapter, AdapterConfig};
use crate::model::{Activations, FullTuning, Gradients, Model, StateLosses};
use crate::{Error, Result};

pub use super::run::{LossParts, Run, RunReport, StepReport, Stream, TrainerOptions};

/// Trains the runs of one [`Trainable`].
///
/// A run's numbers do not depend on which other runs it advances with.
pub struct Trainer<B: Backend> {
    pub(super) trainable: Trainable<B>,
    pub(super) optimizer: Optimizer<B>,
    pub(super) runs: Vec<RunState>,
    pub(super) options: TrainerOptions,
    pub(super) steps: u64,
    /// Steps after those, oldest first.
    pub(super) in_flight: VecDeque<InFlightStep<B>>,
    /// Why no step could be begun, to be said when those before it are reported.
    pub(super) failed: Option<Error>,
    pub(super) packing: Packing,
    pub(super) stream: Option<Stream>,
    pub(super) acts: Activations<B>,
    pub(super) grads: Gradients<B>,
    /// Gradient of the prompts that an MLP makes, collected over the passes of a step.
    pub(super) d_prompts: B::Acc,
    /// Room for the noise of a pass `[N, E]`, if there is any.
    pub(super) noise: Option<B::Acc>,
    /// What lower layers made of the sequences, if that is kept.
    pub(super) frozen: Option<FrozenStates<B>>,
    pub(super) evaluator: Option<Evaluator<B>>,
    /// What is minimized, if not the cross-entropy alone.
    pub(super) objective: Option<Objective>,
    /// Where that compares states.
    pub(super) state_losses: Option<StateLosses<B>>,
}

impl<B: Backend> Trainer<B> {
    /// A trainer of `trainable` with one entry of `runs` for each of its runs.
    ///
    /// # Errors
    /// Settings or options out of their domain; a run without data; a sequence without a label, or with a token or
    /// label that the model does not know; a device out of memory.
    pub fn new(
        backend: &mut B,
        model: &Model<B>,
        trainable: Trainable<B>,
        runs: Vec<Run>,
        options: TrainerOptions,
    ) -> Result<Self> {
        let (count, stride) = trainable.shape();
        assert!(runs.len() == count, "trainer: data of {} runs for {count}", runs.len());
        let packing = packing(&trainable, options, model.config.is_causal)?;
        model.config.require_head()?;
        if model.config.dropout > 0.0 {
            log::warn!(
                "the model's own dropout, up to {} in config.json or by its family's default, is not applied: it is \
                 trained as it is evaluated",
                model.config.dropout
            );
        }
        for (run, Run { data, settings }) in runs.iter().enumerate() {
            settings.validate()?;
            check_data(&format!("run {run}"), data, model.config.vocab_size, packing.prompt(run))?;
            model.config.check_unscaled(packing.longest(run, data))?;
        }
        let sizes = runs.iter().map(|run| (run.data.as_slice(), run.settings.batch_size));
        let (rows, labels) = packing.capacity(sizes);
        let [rows, labels] = [rows, labels].map(|n| room::<B>(options.fill, n));
        let mut optimizer = Optimizer::new(backend, count, stride)?;
        if let Some(layout) = trainable.layout().filter(|_| has_two_rates(&runs)) {
            let decay = runs.iter().map(|run| run.settings.weight_decay).fold(0.0, f64::max);
            if decay > 0.0 && layout.saved_modules().is_some_and(|saved| saved.no_weight_decay) {
                let expected = "0 beside loraplus_lr_ratio and biases or norms in modules_to_save, which PEFT lets be";
                return Err(Error::argument("weight_decay", expected, decay));
            }
            optimizer.mark_fast(backend, &layout.ranges_of_b()?)?;
        }
        let frozen = FrozenPlan::new(&model.config, &trainable, &packing, (&runs, options), rows);
        let runs = runs.into_iter().map(|run| {
            let total_steps = run.settings.total_steps(run.data.len());
            RunState::new(run, total_steps)
        });
        Ok(Self {
            optimizer,
            noise: match options.neftune_noise_alpha {
                Some(_) => Some(backend.acc(rows * model.config.embed_size)?),
                None => None,
            },
            acts: Activations::new(backend, &model.config, trainable.layout(), rows, options.save())?,
            grads: Gradients::new(backend, &model.config, rows, labels)?.with_layout(
                backend,
                &model.config,
                trainable.layout(),
            )?,
            d_prompts: backend.acc(trainable.materialized())?,
            frozen: frozen.map(|plan| FrozenStates::new(backend, &model.config, plan, rows)).transpose()?,
            runs: runs.collect(),
            steps: 0,
            in_flight: VecDeque::new(),
            failed: None,
            stream: None,
            packing,
            options,
            trainable,
            evaluator: None,
            objective: None,
            state_losses: None,
        })
    }

    /// A trainer of all weights on a stream of sequences. `settings` must say its length in steps; its batch size is of
    /// no account.
    ///
    /// # Errors
    /// Settings or options out of their domain; a device out of memory.
    pub fn streaming(
        backend: &mut B,
        model: &Model<B>,
        full: FullTuning<B>,
        stream: Stream,
        settings: RunSettings,
        options: TrainerOptions,
    ) -> Result<Self> {
        model.config.require_head()?;
        settings.validate()?;
        let Length::Steps(total_steps) = settings.length else {
            return Err(Error::argument("epochs", "a number of steps, since a stream has no end", "epochs"));
        };
        let trainable = Trainable::Weights(full);
        let packing = packing(&trainable, options, model.config.is_causal)?;
        let rows = room::<B>(options.fill, packing.budget.max(stream.longest));
        let total = trainable.shape().1;
        let run = RunState::new(Run { data: Vec::new(), settings }, total_steps);
        Ok(Self {
            optimizer: Optimizer::new(backend, 1, total)?,
            noise: None,
            acts: Activations::new(backend, &model.config, None, rows, options.save())?,
            grads: Gradients::new(backend, &model.config, rows, rows)?,
            d_prompts: backend.acc(trainable.materialized())?,
            runs: vec![run],
            steps: 0,
            in_flight: VecDeque::new(),
            failed: None,
            stream: Some(stream),
            packing,
            options,
            trainable,
            frozen: None,
            evaluator: None,
            objective: None,
            state_losses: None,
        })
    }

    /// Bytes of activations, gradients and optimiser that [`Trainer::new`] would take, in this order, and the size of its
    /// passes.
    ///
    /// # Errors
    /// Options out of their domain.
    pub fn plan(
        config: &ModelConfig,
        trainable: &Trainable<B>,
        runs: &[Run],
        options: TrainerOptions,
        element_sizes: (usize, usize),
    ) -> Result<([usize; 3], PassSize)> {
        let sizes = runs.iter().map(|run| (run.data.as_slice(), run.settings.batch_size));
        let packing = packing(trainable, options, config.is_causal)?;
        let (rows, labels) = packing.capacity(sizes);
        let [rows, labels] = [rows, labels].map(|n| room::<B>(options.fill, n));
        let (count, stride) = trainable.shape();
        let frozen = FrozenPlan::new(config, trainable, &packing, (runs, options), rows);
        let frozen = frozen.map_or(0, |plan| plan.elements(config, rows));
        let bytes = [
            Activations::<B>::bytes(config, trainable.layout(), rows, options.save(), element_sizes)
                + options.neftune_noise_alpha.map_or(0, |_| rows * config.embed_size * element_sizes.0)
                + frozen * element_sizes.0,
            Gradients::<B>::bytes(config, rows, labels, element_sizes)
                + Gradients::<B>::layout_bytes(config, trainable.layout(), (rows, labels), element_sizes),
            Optimizer::<B>::bytes(count, stride, element_sizes)
                + (trainable.materialized() + if has_two_rates(runs) { stride } else { 0 }) * element_sizes.0,
        ];
        Ok((bytes, pass_size(config, trainable.layout(), count, (rows, labels))))
    }

    /// Steps done and reported.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Steps of the longest run.
    pub fn total_steps(&self) -> u64 {
        self.runs.iter().map(|run| run.total_steps).max().unwrap_or(0)
    }

    /// The step at which every run is at its end; some may have stopped before their schedule's.
    pub(super) fn last_step(&self) -> u64 {
        self.runs.iter().map(RunState::end).max().unwrap_or(0)
    }

    /// Whether every run is at its end.
    pub fn done(&self) -> bool {
        self.steps >= self.last_step()
    }

    /// A run's steps so far, the loss of the last one, and its tokens.
    pub fn progress(&self, run: usize) -> (u64, f64, u64) {
        let state = &self.runs[run];
        (self.steps.min(state.end()), state.loss, state.total_tokens)
    }

    /// What is trained, as it is after every step that was begun.
    pub fn trainable(&self) -> &Trainable<B> {
        &self.trainable
    }

    /// Reads out what a run has learnt, described by `config`.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If base weights are tuned, which are no adapter.
    pub fn adapter(&self, backend: &mut B, run: usize, config: &AdapterConfig) -> Result<Adapter> {
        let adaptation = self.trainable.adaptation().expect("trainer: adapters are tuned");
        let mut adapter = adaptation.read_out(backend, run, config)?;
        if let (Trainable::Reparameterized(encoder), Adapter::Prompt(prompt)) = (&self.trainable, &mut adapter) {
            prompt.encoder = Some(encoder.state(backend, run)?);
        }
        Ok(adapter)
    }

    /// Gives back what was trained, and frees all buffers beside it.
    pub fn finish(self) -> Trainable<B> {
        self.trainable
    }

    /// One optimiser step of every run that is not at its end: forward and backward over each one's next batch, then
    /// the optimiser over all of them at once. `model` is only changed where its own weights are trained.
    ///
    /// # Errors
    /// A loss or gradient that is not finite, naming run and step; a failure of the device. The parameters and
    /// everything beside them are then as before the step.
    ///
    /// # Panics
    /// When every run is at its end.
    pub fn step(&mut self, backend: &mut B, model: &mut Model<B>) -> Result<StepReport> {
        self.advance(backend, model, |_| true)
    }

    /// The same, but a device that works while the host goes on is given the step after it before this one is reported,
    /// unless `pauses` says that nothing may follow this one yet.
    ///
    /// # Errors
    /// See [`Trainer::step`].
    ///
    /// # Panics
    /// When every run is at its end.
    pub fn advance(
        &mut self,
        backend: &mut B,
        model: &mut Model<B>,
        pauses: impl Fn(u64) -> bool,
    ) -> Result<StepReport> {
        assert!(!self.done(), "trainer: step {} of {}", self.steps + 1, self.total_steps());
        if self.in_flight.is_empty() {
            self.failed.take().map_or(Ok(()), Err)?;
            self.begin(backend, model)?;
        }
        let ahead = B::RUNS_AHEAD && self.in_flight.len() == 1 && !pauses(self.steps + 1);
        let next = ahead && self.steps + 1 < self.last_step();
        let failed = if next { self.begin(backend, model).err() } else { None };
        match self.end(backend) {
            Ok(report) => {
                self.failed = failed;
                Ok(report)
            }
            // A device that is lost says so to whoever asks first.
            Err(error @ Error::Device { .. }) => Err(failed.unwrap_or(error)),
            Err(error) => Err(error),
        }
    }
}

/// Whether a run has a learning rate of its own for B.
fn has_two_rates(runs: &[Run]) -> bool {
    runs.iter().any(|run| run.settings.loraplus_lr_ratio.is_some())
}

pub(super) fn packing<B: Backend>(
    trainable: &Trainable<B>,
    options: TrainerOptions,
    is_causal: bool,
) -> Result<Packing> {
    if !(0.0..1.0).contains(&options.dropout) {
        return Err(Error::argument("dropout", "a number from 0 to below 1", options.dropout));
    }
    if options.row_budget == 0 {
        return Err(Error::argument("row_budget", "at least 1", options.row_budget));
    }
    if let Some(alpha) = options.neftune_noise_alpha.filter(|alpha| !(alpha.is_finite() && *alpha > 0.0)) {
        return Err(Error::argument("neftune_noise_alpha", "a number above 0", alpha));
    }
    if options.neftune_noise_alpha.is_some() && trainable.adaptation().is_none() {
        return Err(Error::argument("neftune_noise_alpha", "none where the base's own weights are trained", "some"));
    }
    Ok(Packing {
        budget: options.row_budget,
        min_shared: if options.draws() { usize::MAX } else { MIN_SHARED },
        prompts: trainable.adaptation().map_or_else(Vec::new, |adaptation| adaptation.prompts.clone()),
        ignore_first: trainable.layout().is_some_and(|layout| layout.prefix.is_some()),
        adapted: trainable.adaptation().is_some(),
        is_causal,
    })
}

/// Refuses what a run cannot learn from.
pub(super) fn check_data(of: &str, data: &[TrainSequence], vocab: usize, prompt: PromptOffset) -> Result<()> {
    if data.is_empty() {
        return Err(Error::argument(format!("data of {of}"), "at least one sequence", "none"));
    }
    for (i, sequence) in data.iter().enumerate() {
        let name = || format!("sequence {i} of {of}");
        assert!(sequence.ids.len() == sequence.labels.len(), "trainer: {} has ids and labels of two lengths", name());
        if let Some(id) = sequence.ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(Error::argument(name(), format!("token ids below {vocab}"), id));
        }
        let mut targets = prompt.targets(sequence).peekable();
        if targets.peek().is_none() {
            return Err(Error::argument(name(), "at least one label after the first token", "none"));
        }
        if let Some((_, label)) = targets.find(|&(_, label)| label as usize >= vocab) {
            return Err(Error::argument(name(), format!("labels below {vocab}"), label));
        }
    }
    Ok(())
}
