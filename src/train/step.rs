//! One optimiser step: given to the device, and read back.

use super::fill::fills;
use super::noise::Noise;
use super::optim::adamw_step;
use super::order::DataCursor;
use super::passes::{Pass, Piece};
use super::run::{Batch, InFlightStep, LossParts, PassLosses, RunReport, RunState, StepReport};
use super::trainable::Trainable;
use super::trainer::{Trainer, check_data};
use crate::backend::ops::{AdamwStep, Zero};
use crate::backend::{AccElement, Backend};
use crate::hooks::NoTaps;
use crate::model::{
    Activations, DropoutPlan, EmbedNoise, GradientRequest, Input, Labels, Model, OutputRows, PassTeacher, StateLosses,
};
use crate::{Error, Result, hash};

impl<B: Backend> Trainer<B> {
    /// Gives the device the next step; it is not waited for.
    ///
    /// # Errors
    /// A failure of the device; the step is then not begun.
    ///
    /// # Panics
    /// When every run is at its end.
    pub fn begin(&mut self, backend: &mut B, model: &mut Model<B>) -> Result<()> {
        let number = self.steps + self.in_flight.len() as u64;
        assert!(number < self.last_step(), "trainer: step {} of {}", number + 1, self.last_step());
        let before: Vec<DataCursor> = self.runs.iter().map(|run| run.order.cursor()).collect();
        let adamw: Vec<AdamwStep> =
            self.runs.iter().map(|run| adamw_step(&run.settings, number, run.total_steps, run.end())).collect();
        if let Some(stream) = &self.stream {
            let data = (stream.batch)(number)?;
            check_data("run 0", &data, model.config.vocab_size, self.packing.prompt(0))?;
            self.runs[0].data = data;
        }
        let batches = self.take_batches(number, &adamw);
        let (losses, norms) = match self.gradients(backend, model, &batches, number) {
            Ok(readback) => readback,
            Err(error) => {
                self.rewind(&before);
                return Err(error);
            }
        };
        self.optimizer.step(backend, self.trainable.params_mut(), &adamw);
        self.trainable.refresh(backend, model);
        self.in_flight.push_back(InFlightStep { before, batches, losses, norms });
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
        let InFlightStep { before, batches, losses, norms } =
            self.in_flight.pop_front().expect("trainer: a step was begun");
        match self.read(backend, &batches, losses, norms) {
            Ok((losses, norms)) => Ok(self.report(batches, &losses, &norms)),
            Err(error) => {
                self.rewind(&before);
                self.discard_in_flight();
                self.optimizer.clear_stop(backend);
                Err(error)
            }
        }
    }

    /// Whether a step has been begun and not reported.
    pub(super) fn is_ahead(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Drops the steps that have been begun and not reported.
    pub(super) fn discard_in_flight(&mut self) {
        self.in_flight.clear();
        self.failed = None;
    }

    /// Takes every run back to where it was in its data.
    fn rewind(&mut self, before: &[DataCursor]) {
        for (run, &cursor) in self.runs.iter_mut().zip(before) {
            run.order.seek(cursor);
        }
    }

    fn take_batches(&mut self, number: u64, adamw: &[AdamwStep]) -> Vec<Batch> {
        let (packing, streams) = (&self.packing, self.stream.is_some());
        let active = self.runs.iter_mut().enumerate().filter(|(_, run)| number < run.end());
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
    ) -> Result<(Vec<PassLosses<B>>, B::PendingReadback)> {
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
        let active: Vec<usize> = batches.iter().map(|batch| batch.run).collect();
        if let Trainable::Reparameterized(_) = &self.trainable {
            backend.zero(Zero { x: &mut self.d_prompts });
        }
        for (i, pieces) in self.packing.group(pieces).into_iter().enumerate() {
            let mut pass = self.packing.pass(&pieces, |run| &self.runs[run].data);
            if self.objective.is_none() && fills::<B>(self.options.fill) {
                pass.fill(self.acts.rows);
            }
            let sets = i == 0 && self.sets_gradients(&active, &pass);
            if i == 0 && !sets {
                backend.zero(Zero { x: &mut self.optimizer.d_params });
            }
            self.optimizer.gradients_of.clone_from(&active);
            losses.push(self.pass(backend, model, (pass, sets), &labels, &seeds, &mut rows_before)?);
        }
        if let Trainable::Reparameterized(encoder) = &mut self.trainable {
            encoder.backward(backend, &mut self.optimizer.d_params, &self.d_prompts);
        }
        Ok((losses, self.optimizer.gradient_norms(backend)?))
    }

    /// Whether the first pass of a step sets all gradients of the active runs, so that no zeros need be there, and those of others are
    /// zeros already.
    fn sets_gradients(&self, active: &[usize], pass: &Pass) -> bool {
        let alone = matches!(&self.trainable, Trainable::Adapters(adaptation) if adaptation.layout.is_set());
        let others = self.optimizer.gradients_of.iter().any(|run| !active.contains(run));
        // The last layer has the rows of labels alone.
        alone && !others && self.objective.is_none() && active.iter().all(|run| pass.runs.contains(run))
    }

    /// Forward and backward of one pack: gradients into the optimiser, set or added, losses on their way.
    fn pass(
        &mut self,
        backend: &mut B,
        model: &Model<B>,
        (pass, sets_params): (Pass, bool),
        label_tokens: &[u64],
        seeds: &[u64],
        rows_before: &mut [u32],
    ) -> Result<PassLosses<B>> {
        let share = |i: usize| f64::from(pass.counts[i]) / label_tokens[pass.runs[i]] as f64;
        let shares: Vec<f64> = (0..pass.counts.len()).map(share).collect();
        let [of_ce, ..] = self.weights();
        let read = OutputRows::new(backend, &pass.pack, pass.outputs())?;
        let device = backend.pack(&pass.pack)?;
        let keys = self.options.draws().then(|| row_keys(&pass, rows_before));
        let noisy = self.draw_noise(backend, &pass, model.config.embed_size, seeds, keys.as_deref())?;
        let p = self.options.dropout;
        let dropped = keys.as_deref().filter(|_| p > 0.0);
        let mut input = Input::new(&pass.pack, &device).with_output_rows(read.as_ref());
        input.adaptation = self.trainable.adaptation();
        input.dropout = dropped.map(|keys| DropoutPlan { p, seeds, keys });
        input.noise = self.noise.as_ref().zip(noisy.as_ref()).map(|(values, rows)| EmbedNoise { values, rows });
        let teacher = match &self.objective {
            Some(of) => Some(of.teacher(backend, &model.config, read.as_ref(), &pass, &shares)?),
            None => None,
        };
        let known = self.frozen.as_ref().and_then(|frozen| frozen.rows(&pass));
        let known = known.map(|rows| backend.index(&rows)).transpose()?;
        input.start = self.frozen.as_ref().zip(known.as_ref()).map(|(frozen, rows)| frozen.start(rows));
        forward(backend, model, &mut self.acts, &input, self.state_losses.as_mut().zip(teacher.as_ref()))?;
        // The teachers' rows come last, and have no gradient.
        let students = match &pass.students {
            None => None,
            Some(pack) => {
                let rows = pass.rows.iter().map(|&row| row as usize);
                Some((pack, OutputRows::new(backend, pack, rows)?, backend.pack(pack)?))
            }
        };
        if let Some((pack, read, device)) = &students {
            self.acts.restrict(pack.len(), read.as_ref());
            let adaptation = input.adaptation;
            input = Input::new(pack, device).with_output_rows(read.as_ref());
            input.adaptation = adaptation;
            input.dropout = dropped.map(|keys| DropoutPlan { p, seeds, keys: &keys[..pack.len()] });
        }
        let labels = match of_ce > 0.0 {
            true => {
                let mut weights: Vec<f64> = shares.iter().map(|share| of_ce * share).collect();
                weights.resize(pass.rows.len(), 0.0);
                Labels::of_pass(backend, &model.config, &input, (&pass.rows, &pass.targets), &weights)?
            }
            false => Labels::of_pass(backend, &model.config, &input, (&[], &[]), &[])?,
        };
        input.teacher = teacher.as_ref().map(|teacher| (teacher, self.state_losses.as_ref()));
        let d_params = &mut self.optimizer.d_params;
        let none = GradientRequest { sets_params, ..GradientRequest::none() };
        let request = match &self.trainable {
            Trainable::Adapters(adaptation) => GradientRequest {
                d_params: Some(d_params),
                own: adaptation.layout.saved_modules().map(|saved| &saved.layout),
                ..none
            },
            Trainable::Reparameterized(_) => GradientRequest { d_params: Some(&mut self.d_prompts), ..none },
            Trainable::Weights(full) => GradientRequest { d_weights: Some((d_params, &full.layout)), ..none },
        };
        model.backward(backend, &mut self.acts, &mut self.grads, &input, &labels, request);
        if let Some(frozen) = self.frozen.as_mut().filter(|_| known.is_none()) {
            frozen.keep(backend, &self.acts, &pass)?;
        }
        let parts = self.read_losses(backend, pass.rows.len())?;
        Ok(PassLosses { parts, runs: pass.runs, shares })
    }

    /// What cross-entropy, states and distributions count in the loss.
    fn weights(&self) -> [f64; 3] {
        self.objective.as_ref().map_or([1.0, 0.0, 0.0], |of| of.weights())
    }

    /// Checks the losses of the last pass's `count` label rows on the device, and begins to read them.
    fn read_losses(&mut self, backend: &mut B, count: usize) -> Result<[Option<B::PendingReadback>; 3]> {
        let [ce, ..] = self.weights();
        let of = [
            (ce > 0.0).then_some(&self.grads.losses),
            self.state_losses.as_ref().map(|states| &states.losses),
            self.grads.distillation.as_ref().map(|distillation| &distillation.losses),
        ];
        let mut parts = [None, None, None];
        for (part, losses) in parts.iter_mut().zip(of) {
            let Some(losses) = losses else { continue };
            self.optimizer.check_losses(backend, losses, count);
            *part = Some(backend.download_async(losses, count)?);
        }
        Ok(parts)
    }

    /// Draws the noise of a pass, if there is any; the rows that it is added to.
    fn draw_noise(
        &mut self,
        backend: &mut B,
        pass: &Pass,
        width: usize,
        seeds: &[u64],
        keys: Option<&[u32]>,
    ) -> Result<Option<B::Index>> {
        let (Some(alpha), Some(buffer), Some(keys)) = (self.options.neftune_noise_alpha, &mut self.noise, keys) else {
            return Ok(None);
        };
        let noise = Noise::new(pass, alpha, width, seeds, keys);
        let values: Vec<B::Element> = noise.values.iter().map(|&x| B::Element::from_f64(f64::from(x))).collect();
        backend.upload(buffer, 0, &values)?;
        Ok(Some(backend.index(&noise.rows)?))
    }

    /// Losses and gradient norms of a step by run, once they are there.
    #[allow(clippy::type_complexity)]
    fn read(
        &mut self,
        backend: &mut B,
        batches: &[Batch],
        passes: Vec<PassLosses<B>>,
        norms: B::PendingReadback,
    ) -> Result<(Vec<[f64; 3]>, Vec<f64>)> {
        let mut parts = vec![[0.0; 3]; self.runs.len()];
        for PassLosses { parts: readbacks, runs, shares } in passes {
            for (part, readback) in readbacks.into_iter().enumerate() {
                let Some(readback) = readback else { continue };
                let of_pass = backend.wait_readback(readback)?.into_iter().zip(&shares).zip(&runs);
                of_pass.for_each(|((loss, share), &run)| parts[run][part] += share * loss.to_f64());
            }
        }
        let norms: Vec<f64> = backend.wait_readback(norms)?.into_iter().map(|x| x.to_f64().sqrt()).collect();
        let losses: Vec<f64> = parts.iter().map(|parts| self.total(parts)).collect();
        for batch in batches {
            for (what, values) in [("loss", &losses), ("gradient norm", &norms)] {
                let found = values[batch.run];
                if !found.is_finite() {
                    let what = format!("{what} of run {} at step {}", batch.run, self.steps + 1);
                    return Err(Error::NotFinite { what, found });
                }
            }
        }
        Ok((parts, norms))
    }

    /// The loss that these parts make.
    fn total(&self, parts: &[f64; 3]) -> f64 {
        match &self.objective {
            None => parts[0],
            Some(of) => of.weights().iter().zip(parts).map(|(weight, part)| weight * part).sum(),
        }
    }

    /// Counts a step, and says what happened.
    fn report(&mut self, batches: Vec<Batch>, losses: &[[f64; 3]], norms: &[f64]) -> StepReport {
        self.steps += 1;
        let totals: Vec<f64> = losses.iter().map(|parts| self.total(parts)).collect();
        let weights = self.objective.as_ref().map(|of| of.weights());
        let runs = batches.into_iter().map(|batch| {
            let run = &mut self.runs[batch.run];
            run.total_tokens += batch.tokens;
            run.loss = totals[batch.run];
            RunReport {
                run: batch.run,
                step: self.steps,
                total_steps: run.total_steps,
                loss: totals[batch.run],
                parts: weights.map(|weights| LossParts::new(weights, losses[batch.run])),
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

/// A forward that compares the states of its label rows with their teachers', where that is asked for.
fn forward<B: Backend>(
    backend: &mut B,
    model: &Model<B>,
    acts: &mut Activations<B>,
    input: &Input<'_, B>,
    compared: Option<(&mut StateLosses<B>, &PassTeacher<'_, B>)>,
) -> Result<()> {
    match compared {
        None => model.forward(backend, acts, input, None, &mut NoTaps),
        Some((states, teacher)) => {
            let mut taps = states.taps(backend, teacher);
            model.forward(backend, acts, input, None, &mut taps)
        }
    }
}

/// For each row, its number within its run's part of the step, of which `rows_before` (by run) are in earlier passes.
fn row_keys(pass: &Pass, rows_before: &mut [u32]) -> Vec<u32> {
    let mut keys = vec![0; pass.pack.len()];
    for (run, rows) in pass.pack.runs() {
        for (key, row) in (rows_before[*run]..).zip(rows.clone()) {
            keys[row] = key;
        }
        // Rows that fill the pack up count in no later pass.
        rows_before[*run] += rows.end.min(pass.own_rows()).saturating_sub(rows.start) as u32;
    }
    keys
}

/// The seed of a run's dropout in step `step`: the pair, mixed by the finaliser of SplitMix64 (Steele et al. 2014).
fn step_seed(seed: u64, step: u64) -> u64 {
    hash::finalize(seed ^ step.wrapping_add(1).wrapping_mul(hash::GOLDEN_GAMMA))
}
