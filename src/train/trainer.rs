//! The trainer: optimiser steps of many runs at once.
//!
//! Nothing in a step waits for the device: gradients are cut there, and a loss or gradient that is not finite keeps the
//! parameters where they are there. So the device can go on with a step while the host reads what the last one did.

use std::collections::VecDeque;

use super::data::TrainSequence;
use super::optim::{Optimizer, adamw_step};
use super::order::{Cursor, Order};
use super::passes::{Before, MIN_SHARED, Packing, Pass, Piece, ROW_BUDGET, pass_size};
use super::settings::{Length, RunSettings};
use super::tuned::Tuned;
use crate::arch::ModelConfig;
use crate::backend::ops::{AdamwStep, Zero};
use crate::backend::{AccElement, Backend, PassSize};
use crate::formats::adapter::{Adapter, AdapterConfig};
use crate::hooks::NoTaps;
use crate::model::{
    Activations, DropoutPlan, FullTuning, GradientRequest, Gradients, Input, Labels, Model, OutputRows, Save,
};
use crate::pack::Pack;
use crate::{Error, Result, hash};

/// The data and settings of one run.
#[derive(Clone, Debug)]
pub struct Run {
    /// What it learns from.
    pub data: Vec<TrainSequence>,
    /// How.
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
}

impl Default for TrainerOptions {
    fn default() -> Self {
        Self { dropout: 0.0, row_budget: ROW_BUDGET }
    }
}

/// One run's part of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct RunReport {
    /// The run.
    pub run: usize,
    /// Optimiser steps that it has done.
    pub step: u64,
    /// Optimiser steps that it has in all.
    pub total_steps: u64,
    /// Mean loss of the step's label tokens.
    pub loss: f64,
    /// Norm of the gradient, before it is cut.
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

/// What a step did.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// Number of the step, from 1.
    pub step: u64,
    /// The runs that took it, ascending.
    pub runs: Vec<RunReport>,
}

/// A run's data and its place in it.
pub(super) struct RunState {
    pub data: Vec<TrainSequence>,
    pub settings: RunSettings,
    pub total_steps: u64,
    pub order: Order,
    pub total_tokens: u64,
}

/// What a step has taken from a run's data.
struct Batch {
    run: usize,
    sequences: Vec<usize>,
    tokens: u64,
    labels: u64,
    learning_rate: f64,
    epoch: f64,
}

/// The losses of a pass on their way, with the run of each and what it counts.
struct Losses<B: Backend> {
    coming: B::PendingReadback,
    runs: Vec<usize>,
    weights: Vec<f64>,
}

/// A step that the device has been given and nobody has reported.
struct Begun<B: Backend> {
    before: Vec<Cursor>,
    batches: Vec<Batch>,
    losses: Vec<Losses<B>>,
    norms: B::PendingReadback,
}

/// Trains the runs of one [`Tuned`].
///
/// A run's numbers do not depend on which other runs it advances with.
pub struct Trainer<B: Backend> {
    pub(super) tuned: Tuned<B>,
    pub(super) optimizer: Optimizer<B>,
    pub(super) runs: Vec<RunState>,
    pub(super) options: TrainerOptions,
    pub(super) steps: u64,
    /// Steps after those, oldest first.
    begun: VecDeque<Begun<B>>,
    /// Why no step could be begun, to be said when those before it are reported.
    failed: Option<Error>,
    packing: Packing,
    pub(super) stream: Option<Stream>,
    acts: Activations<B>,
    grads: Gradients<B>,
    /// Gradient of the prompts that an MLP makes, collected over the passes of a step.
    d_prompts: B::Acc,
}

impl<B: Backend> Trainer<B> {
    /// A trainer of `tuned` with one entry of `runs` for each of its runs.
    ///
    /// # Errors
    /// Settings or options out of their domain; a run without data; a sequence without a label, or with a token or
    /// label that the model does not know; a device out of memory.
    pub fn new(
        backend: &mut B,
        model: &Model<B>,
        tuned: Tuned<B>,
        runs: Vec<Run>,
        options: TrainerOptions,
    ) -> Result<Self> {
        let (count, stride) = tuned.shape();
        assert!(runs.len() == count, "trainer: data of {} runs for {count}", runs.len());
        let packing = packing(&tuned, options)?;
        for (run, Run { data, settings }) in runs.iter().enumerate() {
            settings.validate()?;
            check_data(run, data, model.config.vocab_size, packing.prompt(run))?;
            model.config.check_unscaled(packing.longest(run, data))?;
        }
        let sizes = runs.iter().map(|run| (run.data.as_slice(), run.settings.batch_size));
        let (rows, labels) = packing.capacity(sizes);
        let runs = runs.into_iter().map(|Run { data, settings }| RunState {
            total_steps: settings.total_steps(data.len()),
            order: Order::new(data.len(), settings.shuffle.then_some(settings.seed)),
            data,
            settings,
            total_tokens: 0,
        });
        Ok(Self {
            optimizer: Optimizer::new(backend, count, stride)?,
            acts: Activations::new(backend, &model.config, tuned.layout(), rows, Save::All)?,
            grads: Gradients::new(backend, &model.config, rows, labels)?,
            d_prompts: backend.acc(tuned.folded())?,
            runs: runs.collect(),
            steps: 0,
            begun: VecDeque::new(),
            failed: None,
            stream: None,
            packing,
            options,
            tuned,
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
        settings.validate()?;
        let Length::Steps(total_steps) = settings.length else {
            return Err(Error::argument("--epochs", "a number of steps, since a stream has no end", "epochs"));
        };
        let tuned = Tuned::Weights(full);
        let packing = packing(&tuned, options)?;
        let rows = packing.budget.max(stream.longest);
        let total = tuned.shape().1;
        let run = RunState { data: Vec::new(), settings, total_steps, order: Order::new(1, None), total_tokens: 0 };
        Ok(Self {
            optimizer: Optimizer::new(backend, 1, total)?,
            acts: Activations::new(backend, &model.config, None, rows, Save::All)?,
            grads: Gradients::new(backend, &model.config, rows, rows)?,
            d_prompts: backend.acc(tuned.folded())?,
            runs: vec![run],
            steps: 0,
            begun: VecDeque::new(),
            failed: None,
            stream: Some(stream),
            packing,
            options,
            tuned,
        })
    }

    /// Bytes of activations, gradients and optimiser that [`Trainer::new`] would take, in this order, and the size of its
    /// passes.
    ///
    /// # Errors
    /// Options out of their domain.
    pub fn plan(
        config: &ModelConfig,
        tuned: &Tuned<B>,
        runs: &[Run],
        options: TrainerOptions,
        element_sizes: (usize, usize),
    ) -> Result<([usize; 3], PassSize)> {
        let sizes = runs.iter().map(|run| (run.data.as_slice(), run.settings.batch_size));
        let (rows, labels) = packing(tuned, options)?.capacity(sizes);
        let (count, stride) = tuned.shape();
        let bytes = [
            Activations::<B>::bytes(config, tuned.layout(), rows, Save::All, element_sizes),
            Gradients::<B>::bytes(config, rows, labels, element_sizes),
            Optimizer::<B>::bytes(count, stride, element_sizes) + tuned.folded() * element_sizes.0,
        ];
        Ok((bytes, pass_size(config, tuned.layout(), count, (rows, labels))))
    }

    /// Steps done and reported.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Steps of the longest run.
    pub fn total_steps(&self) -> u64 {
        self.runs.iter().map(|run| run.total_steps).max().unwrap_or(0)
    }

    /// Whether every run is at its end.
    pub fn done(&self) -> bool {
        self.steps >= self.total_steps()
    }

    /// What is trained, as it is after every step that was begun.
    pub fn tuned(&self) -> &Tuned<B> {
        &self.tuned
    }

    /// Reads out what a run has learnt, described by `config`.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If base weights are tuned, which are no adapter.
    pub fn adapter(&self, backend: &mut B, run: usize, config: &AdapterConfig) -> Result<Adapter> {
        let adaptation = self.tuned.adaptation().expect("trainer: adapters are tuned");
        let mut adapter = adaptation.read_out(backend, run, config)?;
        if let (Tuned::Encoded(encoder), Adapter::Prompt(prompt)) = (&self.tuned, &mut adapter) {
            prompt.encoder = Some(encoder.state(backend, run)?);
        }
        Ok(adapter)
    }

    /// Ends the training.
    pub fn finish(self) -> Tuned<B> {
        self.tuned
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
        if self.begun.is_empty() {
            self.failed.take().map_or(Ok(()), Err)?;
            self.begin(backend, model)?;
        }
        let ahead = B::RUNS_AHEAD && self.begun.len() == 1 && !pauses(self.steps + 1);
        let next = ahead && self.steps + 1 < self.total_steps();
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

    /// Gives the device the next step; it is not waited for.
    ///
    /// # Errors
    /// A failure of the device; the step is then not begun.
    ///
    /// # Panics
    /// When every run is at its end.
    pub fn begin(&mut self, backend: &mut B, model: &mut Model<B>) -> Result<()> {
        let number = self.steps + self.begun.len() as u64;
        assert!(number < self.total_steps(), "trainer: step {} of {}", number + 1, self.total_steps());
        let before: Vec<Cursor> = self.runs.iter().map(|run| run.order.cursor()).collect();
        let adamw: Vec<AdamwStep> =
            self.runs.iter().map(|run| adamw_step(&run.settings, number, run.total_steps)).collect();
        if let Some(stream) = &self.stream {
            let data = (stream.batch)(number)?;
            check_data(0, &data, model.config.vocab_size, self.packing.prompt(0))?;
            self.runs[0].data = data;
        }
        let batches = self.take_batches(number, &adamw);
        let (losses, norms) = match self.gradients(backend, model, &batches, number) {
            Ok(coming) => coming,
            Err(error) => {
                self.return_to(&before);
                return Err(error);
            }
        };
        self.optimizer.step(backend, self.tuned.params_mut(), &adamw);
        self.tuned.refresh(backend, model);
        self.begun.push_back(Begun { before, batches, losses, norms });
        Ok(())
    }

    /// Waits for the oldest step that was begun, and says what it did.
    ///
    /// # Errors
    /// See [`Trainer::step`]; the steps begun after it are undone too.
    ///
    /// # Panics
    /// If none was begun.
    pub fn end(&mut self, backend: &mut B) -> Result<StepReport> {
        let Begun { before, batches, losses, norms } = self.begun.pop_front().expect("trainer: a step was begun");
        match self.read(backend, &batches, losses, norms) {
            Ok((losses, norms)) => Ok(self.report(batches, &losses, &norms)),
            Err(error) => {
                self.return_to(&before);
                self.forget_begun();
                self.optimizer.go_on(backend);
                Err(error)
            }
        }
    }

    /// Whether a step has been begun and not reported.
    pub(super) fn is_ahead(&self) -> bool {
        !self.begun.is_empty()
    }

    /// Nobody will ask for the steps that have been begun.
    pub(super) fn forget_begun(&mut self) {
        self.begun.clear();
        self.failed = None;
    }

    fn return_to(&mut self, before: &[Cursor]) {
        self.runs.iter_mut().zip(before).for_each(|(run, &cursor)| {
            run.order.seek(cursor);
        });
    }

    fn take_batches(&mut self, number: u64, adamw: &[AdamwStep]) -> Vec<Batch> {
        let (packing, streams) = (&self.packing, self.stream.is_some());
        let active = self.runs.iter_mut().enumerate().filter(|(_, run)| number < run.total_steps);
        active
            .map(|(run, RunState { data, settings, order, .. })| {
                let sequences: Vec<usize> = match streams {
                    true => (0..data.len()).collect(),
                    false => order.take(settings.batch_size * settings.accumulation).to_vec(),
                };
                let prompt = packing.prompt(run);
                let tokens = sequences.iter().map(|&s| data[s].ids.len() as u64).sum();
                let labels = sequences.iter().map(|&s| prompt.targets(&data[s]).count() as u64).sum();
                let (learning_rate, epoch) = (adamw[run].learning_rate, order.epochs());
                Batch { run, sequences, tokens, labels, learning_rate, epoch }
            })
            .collect()
    }

    /// Collects the gradients of a step; losses and squared norms by run are on their way.
    fn gradients(
        &mut self,
        backend: &mut B,
        model: &Model<B>,
        batches: &[Batch],
        number: u64,
    ) -> Result<(Vec<Losses<B>>, B::PendingReadback)> {
        let pieces: Vec<Vec<Piece>> = batches
            .iter()
            .map(|batch| {
                let RunState { data, settings, .. } = &self.runs[batch.run];
                let size = if self.stream.is_some() { batch.sequences.len() } else { settings.batch_size };
                let passes = batch.sequences.chunks(size);
                passes.flat_map(|sequences| self.packing.pieces(batch.run, data, sequences)).collect()
            })
            .collect();
        let seeds: Vec<u64> = self.runs.iter().map(|run| step_seed(run.settings.seed, number)).collect();
        let mut labels = vec![0; self.runs.len()];
        batches.iter().for_each(|batch| labels[batch.run] = batch.labels);
        let mut rows_before = vec![0; self.runs.len()];
        let mut losses = Vec::new();
        backend.zero(Zero { x: &mut self.optimizer.d_params });
        if let Tuned::Encoded(_) = &self.tuned {
            backend.zero(Zero { x: &mut self.d_prompts });
        }
        for pieces in self.packing.group(pieces) {
            let pass = self.packing.pass(&pieces, |run| &self.runs[run].data);
            losses.push(self.pass(backend, model, pass, &labels, &seeds, &mut rows_before)?);
        }
        if let Tuned::Encoded(encoder) = &mut self.tuned {
            encoder.backward(backend, &mut self.optimizer.d_params, &self.d_prompts);
        }
        Ok((losses, self.optimizer.gradient_norms(backend)?))
    }

    /// Forward and backward of one pack: gradients into the optimiser, losses on their way.
    fn pass(
        &mut self,
        backend: &mut B,
        model: &Model<B>,
        pass: Pass,
        label_tokens: &[u64],
        seeds: &[u64],
        rows_before: &mut [u32],
    ) -> Result<Losses<B>> {
        let weight = |i: usize| f64::from(pass.counts[i]) / label_tokens[pass.runs[i]] as f64;
        let weights: Vec<f64> = (0..pass.rows.len()).map(weight).collect();
        let read = OutputRows::new(backend, &pass.pack, pass.rows.iter().map(|&row| row as usize))?;
        let labels = Labels::new(backend, read.as_ref(), &pass.rows, &pass.targets, &weights)?;
        let device = backend.pack(&pass.pack)?;
        let keys = (self.options.dropout > 0.0).then(|| dropout_keys(&pass.pack, rows_before));
        let mut input = Input::new(&pass.pack, &device).with_output_rows(read.as_ref());
        input.adaptation = self.tuned.adaptation();
        input.dropout = keys.as_deref().map(|keys| DropoutPlan { p: self.options.dropout, seeds, keys });
        model.forward(backend, &mut self.acts, &input, None, &mut NoTaps)?;
        let d_params = &mut self.optimizer.d_params;
        let wanted = match &self.tuned {
            Tuned::Adapters(_) => GradientRequest { d_params: Some(d_params), d_weights: None, d_embed: false },
            Tuned::Encoded(_) => {
                GradientRequest { d_params: Some(&mut self.d_prompts), d_weights: None, d_embed: false }
            }
            Tuned::Weights(full) => {
                GradientRequest { d_params: None, d_weights: Some((d_params, &full.layout)), d_embed: false }
            }
        };
        model.backward(backend, &self.acts, &mut self.grads, &input, &labels, wanted);
        self.optimizer.check_losses(backend, &self.grads.losses, labels.count);
        let coming = backend.download_async(&self.grads.losses, labels.count)?;
        Ok(Losses { coming, runs: pass.runs, weights })
    }

    /// Losses and gradient norms of a step by run, once they are there.
    fn read(
        &mut self,
        backend: &mut B,
        batches: &[Batch],
        passes: Vec<Losses<B>>,
        norms: B::PendingReadback,
    ) -> Result<(Vec<f64>, Vec<f64>)> {
        let mut losses = vec![0.0; self.runs.len()];
        for Losses { coming, runs, weights } in passes {
            let of_pass = backend.wait_readback(coming)?.into_iter().zip(weights).zip(runs);
            of_pass.for_each(|((loss, weight), run)| losses[run] += weight * loss.to_f64());
        }
        let norms: Vec<f64> = backend.wait_readback(norms)?.into_iter().map(|x| x.to_f64().sqrt()).collect();
        for batch in batches {
            for (what, values) in [("loss", &losses), ("gradient norm", &norms)] {
                let found = values[batch.run];
                if !found.is_finite() {
                    let what = format!("{what} of run {} at step {}", batch.run, self.steps + 1);
                    return Err(Error::NotFinite { what, found });
                }
            }
        }
        Ok((losses, norms))
    }

    /// Counts a step, and says what happened.
    fn report(&mut self, batches: Vec<Batch>, losses: &[f64], norms: &[f64]) -> StepReport {
        self.steps += 1;
        let runs = batches.into_iter().map(|batch| {
            let run = &mut self.runs[batch.run];
            run.total_tokens += batch.tokens;
            RunReport {
                run: batch.run,
                step: self.steps,
                total_steps: run.total_steps,
                loss: losses[batch.run],
                grad_norm: norms[batch.run],
                learning_rate: batch.learning_rate,
                epoch: batch.epoch,
                tokens: batch.tokens,
                label_tokens: batch.labels,
                total_tokens: run.total_tokens,
            }
        });
        StepReport { step: self.steps, runs: runs.collect() }
    }
}

fn packing<B: Backend>(tuned: &Tuned<B>, options: TrainerOptions) -> Result<Packing> {
    if !(0.0..1.0).contains(&options.dropout) {
        return Err(Error::argument("--lora-dropout", "a number from 0 to below 1", options.dropout));
    }
    if options.row_budget == 0 {
        return Err(Error::argument("row budget", "at least 1", options.row_budget));
    }
    Ok(Packing {
        budget: options.row_budget,
        min_shared: if options.dropout > 0.0 { usize::MAX } else { MIN_SHARED },
        prompts: tuned.adaptation().map_or_else(Vec::new, |adaptation| adaptation.prompts.clone()),
        silent: tuned.layout().is_some_and(|layout| layout.prefix.is_some()),
        adapted: tuned.adaptation().is_some(),
    })
}

fn check_data(run: usize, data: &[TrainSequence], vocab: usize, prompt: Before) -> Result<()> {
    if data.is_empty() {
        return Err(Error::argument(format!("data of run {run}"), "at least one sequence", "none"));
    }
    for (i, sequence) in data.iter().enumerate() {
        let name = || format!("sequence {i} of run {run}");
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

/// For each row, its number within its run's part of the step, of which `rows_before` (by run) are in earlier passes.
fn dropout_keys(pack: &Pack, rows_before: &mut [u32]) -> Vec<u32> {
    let mut keys = vec![0; pack.len()];
    for (run, rows) in pack.runs() {
        for (key, row) in (rows_before[*run]..).zip(rows.clone()) {
            keys[row] = key;
        }
        rows_before[*run] += rows.len() as u32;
    }
    keys
}

/// The seed of a run's dropout in step `step`: the pair, mixed.
fn step_seed(seed: u64, step: u64) -> u64 {
    hash::finalize(seed ^ step.wrapping_add(1).wrapping_mul(hash::GOLDEN_GAMMA))
}
