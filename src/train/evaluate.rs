//! Evaluation while training: loss and accuracy of the label tokens of held-out sequences, metrics of what is written for held-out
//! prompts, and what follows from them for each run: which parameters were the best, and whether it stops early.

use std::collections::BTreeMap;

use super::generation_eval::GenerationEval;
use super::passes::Piece;
use super::run::StepReport;
use super::scores::{EvalReport, Evaluation, Evaluator, RunScores, Score};
use super::trainable::Trainable;
use super::trainer::{Trainer, TrainerOptions, check_data, packing};
use crate::arch::ModelConfig;
use crate::backend::{AccElement, Backend};
use crate::hooks::NoTaps;
use crate::model::{Activations, Input, Model, OutputRows, Save};
use crate::{Error, Result};

/// Logits that are on the host at once; the rows of a pass are taken in parts.
const LOGITS: usize = 1 << 24;

/// Rows whose logits are on the host at once.
fn host_logit_rows(config: &ModelConfig) -> usize {
    (LOGITS / config.vocab_size).max(1)
}

impl<B: Backend> Trainer<B> {
    /// Bytes that an evaluation takes beside the training, and rows of its largest pass.
    ///
    /// # Errors
    /// Options out of their domain.
    pub fn evaluation_bytes(
        evaluation: &Evaluation,
        config: &ModelConfig,
        trainable: &Trainable<B>,
        options: TrainerOptions,
        element_sizes: (usize, usize),
    ) -> Result<(usize, usize)> {
        let packing = packing(trainable, options, config.is_causal)?;
        let (rows, labels) = evaluation.capacity(&packing, trainable.shape().0);
        let (layout, part) = (trainable.layout(), labels.min(host_logit_rows(config)));
        let logits = Model::<B>::logits_bytes(config, layout, part, element_sizes);
        let acts = Activations::<B>::bytes(config, layout, rows, Save::Layer, element_sizes);
        let (generation, generation_rows) = evaluation
            .generation
            .as_ref()
            .map_or((0, 0), |generation| generation.bytes(config, trainable, element_sizes));
        // What is written takes its buffers beside those of the losses, and only while it is.
        Ok((acts + logits.max(generation), rows.max(generation_rows)))
    }

    /// With an evaluation of all runs; [`super::fit::fit`] makes it when it is due.
    ///
    /// # Errors
    /// A setting out of its domain; data that a run cannot be evaluated on; a device out of memory.
    pub fn with_evaluation(mut self, backend: &mut B, model: &Model<B>, settings: Evaluation) -> Result<Self> {
        for (name, value) in [("eval_steps", Some(settings.every)), ("early_stopping_patience", settings.patience)] {
            if value == Some(0) {
                return Err(Error::argument(name, "at least 1", 0));
            }
        }
        let generation = settings.generation.as_ref();
        let known =
            |name: &str| generation.is_some_and(|generation| generation.metrics.iter().any(|metric| metric == name));
        let name = settings.best_by.name.as_str();
        if !["loss", "accuracy"].contains(&name) && !known(name) {
            return Err(Error::argument("metric_for_best_model", "a value that is evaluated", name));
        }
        if generation.is_some_and(|generation| generation.prompts.is_empty()) {
            return Err(Error::argument("prompts of the held-out data", "at least one", "none"));
        }
        generation.map_or(Ok(()), |generation| generation.check(&model.config, &self.trainable))?;
        let (runs, stride) = self.trainable.shape();
        for run in 0..runs {
            check_data("the held-out data", &settings.data, model.config.vocab_size, self.packing.prompt(run))?;
            model.config.check_unscaled(self.packing.longest(run, &settings.data))?;
        }
        let (rows, _) = settings.capacity(&self.packing, runs);
        let acts = Activations::new(backend, &model.config, self.trainable.layout(), rows, Save::Layer)?;
        let best = if settings.load_best { vec![B::Element::default(); runs * stride] } else { Vec::new() };
        self.evaluator = Some(Evaluator { settings, acts, scores: vec![RunScores::default(); runs], best });
        Ok(self)
    }

    /// The evaluations of each run so far; empty without an evaluation.
    pub fn scores(&self) -> &[RunScores] {
        self.evaluator.as_ref().map_or(&[], |evaluator| &evaluator.scores)
    }

    /// Names of the metrics of what runs write.
    pub fn metrics(&self) -> &[String] {
        let generation = self.evaluator.as_ref().and_then(|evaluator| evaluator.settings.generation.as_ref());
        generation.map_or(&[], |generation| &generation.metrics)
    }

    /// Whether a run is evaluated after a step, so that none may be ahead of it.
    pub fn evaluates(&self, step: u64) -> bool {
        let due = |every: u64| step.is_multiple_of(every) || self.runs.iter().any(|run| run.total_steps == step);
        self.evaluator.as_ref().is_some_and(|evaluator| due(evaluator.settings.every))
    }

    /// Evaluates the runs for which it is due after a step; those whose patience is at its end stop.
    ///
    /// # Errors
    /// A loss that is not finite, naming the run; a failure of the device.
    ///
    /// # Panics
    /// If an evaluation is due and a step has been begun and not reported.
    pub fn evaluate(&mut self, backend: &mut B, model: &Model<B>, report: &StepReport) -> Result<Vec<EvalReport>> {
        if !self.evaluates(report.step) {
            return Ok(Vec::new());
        }
        assert!(!self.is_ahead(), "evaluation: a step has been begun after step {}", self.steps);
        let Some(mut evaluator) = self.evaluator.take() else { return Ok(Vec::new()) };
        let every = evaluator.settings.every;
        let due = report.runs.iter().filter(|run| run.step % every == 0 || run.step == run.total_steps);
        let runs: Vec<usize> = due.map(|run| run.run).collect();
        let found = self.scored(backend, model, &mut evaluator, &runs);
        self.evaluator = Some(evaluator);
        found
    }

    fn scored(
        &mut self,
        backend: &mut B,
        model: &Model<B>,
        evaluator: &mut Evaluator<B>,
        runs: &[usize],
    ) -> Result<Vec<EvalReport>> {
        let (stride, sums) = (self.trainable.shape().1, self.sums(backend, model, evaluator, runs)?);
        let metrics = self.metrics_of(backend, model, evaluator.settings.generation.as_ref(), runs)?;
        let best_by = evaluator.settings.best_by.clone();
        let mut reports = Vec::with_capacity(runs.len());
        for (&run, metrics) in runs.iter().zip(metrics) {
            let Sums { loss, hits, labels } = sums[run];
            let (loss, accuracy) = (loss / labels as f64, hits as f64 / labels as f64);
            let score = Score { step: self.steps, loss, accuracy, metrics };
            if !score.loss.is_finite() {
                let what = format!("evaluation loss of run {run} at step {}", self.steps);
                return Err(Error::NotFinite { what, found: score.loss });
            }
            let of_run = &mut evaluator.scores[run];
            of_run.last = Some(score.clone());
            let value = |score: &Score| score.value(&best_by.name).unwrap_or(f64::NAN);
            if of_run.best.as_ref().is_none_or(|best| best_by.is_better(value(&score), value(best))) {
                (of_run.best, of_run.evals_since_best) = (Some(score.clone()), 0);
                if let Some(best) = evaluator.best.get_mut(run * stride..(run + 1) * stride) {
                    backend.download(best, self.trainable.params(), run * stride)?;
                    backend.sync()?;
                }
            } else {
                of_run.evals_since_best += 1;
            }
            let spent = evaluator.settings.patience.is_some_and(|patience| of_run.evals_since_best >= patience);
            let stops = spent && self.steps < self.runs[run].total_steps;
            if stops {
                of_run.stopped = Some(self.steps);
                self.runs[run].stopped = Some(self.steps);
            }
            reports.push(EvalReport { run, score, stops });
        }
        Ok(reports)
    }

    /// The metrics of what each of `runs` writes.
    fn metrics_of(
        &self,
        backend: &mut B,
        model: &Model<B>,
        generation: Option<&GenerationEval>,
        runs: &[usize],
    ) -> Result<Vec<BTreeMap<String, f64>>> {
        let Some(generation) = generation else { return Ok(vec![BTreeMap::new(); runs.len()]) };
        let adaptation = self.trainable.adaptation();
        let prompts = generation.prompts(runs, adaptation.is_some());
        let done = model.generate(backend, &prompts, adaptation, &generation.generation(), &mut |_, _| ())?;
        let of_run = |continuations: &[Vec<u32>]| {
            let values = (generation.judge)(continuations)?;
            Ok(generation.metrics.iter().cloned().zip(values).collect())
        };
        done.chunks(generation.prompts.len()).map(of_run).collect()
    }

    /// Sums over the label tokens by run, of which only those of `runs` are filled.
    fn sums(
        &self,
        backend: &mut B,
        model: &Model<B>,
        evaluator: &mut Evaluator<B>,
        runs: &[usize],
    ) -> Result<Vec<Sums>> {
        let Evaluator { settings: Evaluation { data, .. }, acts, .. } = evaluator;
        let all: Vec<usize> = (0..data.len()).collect();
        let mut pieces: Vec<Vec<Piece>> = vec![Vec::new(); self.runs.len()];
        runs.iter().for_each(|&run| pieces[run] = self.packing.pieces(run, data, &all));
        let mut sums = vec![Sums::default(); self.runs.len()];
        for pieces in self.packing.group(pieces) {
            let pass = self.packing.pass(&pieces, |_| data.as_slice());
            let read = OutputRows::new(backend, &pass.pack, pass.rows.iter().map(|&row| row as usize))?;
            let device = backend.pack(&pass.pack)?;
            let mut input = Input::new(&pass.pack, &device).with_output_rows(read.as_ref());
            input.adaptation = self.trainable.adaptation();
            model.forward(backend, acts, &input, None, &mut NoTaps)?;
            let (part, vocab) = (host_logit_rows(&model.config), model.config.vocab_size);
            for first in (0..pass.rows.len()).step_by(part) {
                let labels = first..pass.rows.len().min(first + part);
                let rows: Vec<usize> = pass.rows[labels.clone()].iter().map(|&row| row as usize).collect();
                let logits = model.logits_of(backend, acts, &input, &rows)?;
                for (i, logits) in labels.zip(logits.chunks_exact(vocab)) {
                    sums[pass.runs[i]].add(logits, pass.targets[i] as usize, u64::from(pass.counts[i]));
                }
            }
        }
        Ok(sums)
    }

    /// Takes each run back to the parameters of its best evaluation, if they were kept.
    ///
    /// # Errors
    /// If the device fails.
    pub fn load_best(&mut self, backend: &mut B, model: &mut Model<B>) -> Result<()> {
        let Some(evaluator) = self.evaluator.as_ref().filter(|evaluator| evaluator.settings.load_best) else {
            return Ok(());
        };
        let stride = self.trainable.shape().1;
        for (run, _) in evaluator.scores.iter().enumerate().filter(|(_, scores)| scores.best.is_some()) {
            backend.upload(
                self.trainable.params_mut(),
                run * stride,
                &evaluator.best[run * stride..(run + 1) * stride],
            )?;
        }
        self.trainable.refresh(backend, model);
        backend.sync()
    }
}

/// Sums over label tokens.
#[derive(Clone, Copy, Default)]
struct Sums {
    loss: f64,
    hits: u64,
    labels: u64,
}

impl Sums {
    /// Takes `count` label tokens with the same logits and target into account.
    fn add<E: AccElement>(&mut self, logits: &[E], target: usize, count: u64) {
        let logits = || logits.iter().map(|x| x.to_f64());
        let (best, greatest) =
            logits().enumerate().fold((0, f64::NEG_INFINITY), |best, (i, x)| if x > best.1 { (i, x) } else { best });
        let sum: f64 = logits().map(|x| (x - greatest).exp()).sum();
        let of_target = logits().nth(target).unwrap_or(f64::NAN);
        self.loss += count as f64 * (greatest + sum.ln() - of_target);
        self.hits += if best == target { count } else { 0 };
        self.labels += count;
    }
}
