//! A whole training: steps to the end, with a log and checkpoints ([`fit`]) or in memory alone ([`tune`]).

use std::path::Path;

use serde_json::Value;

use super::checkpoint;
use super::log::{LogState, TrainLog};
use super::objective::Objective;
use super::report_to::ReportTo;
use super::trainable::Trainable;
use super::trainer::{Run, StepReport, Trainer, TrainerOptions};
use crate::backend::Backend;
use crate::formats::adapter::AdapterConfig;
use crate::formats::atomic;
use crate::model::{Adaptation, Model};
use crate::{Error, Result};

/// Where a training writes, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Output<'a> {
    /// The directory of log and checkpoints.
    pub dir: &'a Path,
    /// Steps between lines of the log.
    pub logging_steps: u64,
    /// What is written beside the log.
    pub report_to: ReportTo,
    /// Steps between checkpoints; none for no checkpoints.
    pub save_steps: Option<u64>,
    /// Checkpoints that are retained, the latest; none retains all.
    pub save_total_limit: Option<usize>,
    /// Steps between those after which `on_step` looks at the model, so that nothing may have gone on by then; none for
    /// never.
    pub look_steps: Option<u64>,
    /// The step after which the training ends, although its schedule goes on; none for the last of the schedule.
    pub stop_after: Option<u64>,
    /// The adapters' settings, one a run; empty where weights are trainable.
    pub configs: &'a [AdapterConfig],
    /// What a continuation must share beside settings and data, such as the model's name.
    pub identity: &'a Value,
}

impl Output<'_> {
    fn validate(&self) -> Result<()> {
        for (name, value) in
            [("save_steps", self.save_steps), ("save_total_limit", self.save_total_limit.map(|n| n as u64))]
        {
            if value == Some(0) {
                return Err(Error::argument(name, "at least 1", 0));
            }
        }
        Ok(())
    }
}

/// Trains to the end, from the checkpoint `resume` on if there is one, and calls `on_start` before anything is written, when nothing is
/// left to refuse, and `on_step` after every step and its evaluations, before its checkpoint is written. At the end each run has its
/// best parameters, if they were kept.
///
/// # Errors
/// A checkpoint that is not of this training; without one, a directory that has checkpoints already; whatever
/// [`Trainer::step`], `on_start` or `on_step` meets; files that cannot be written. What has been written by then stays.
pub fn fit<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    trainer: &mut Trainer<B>,
    output: &Output<'_>,
    resume: Option<&Path>,
    on_start: impl FnOnce() -> Result<()>,
    mut on_step: impl FnMut(&mut B, &Model<B>, &StepReport) -> Result<()>,
) -> Result<()> {
    output.validate()?;
    let state = match resume {
        Some(path) => trainer.restore(backend, model, path, output.identity)?,
        None => match checkpoint::latest(output.dir)? {
            Some(found) => {
                let expected = "a directory without checkpoints, unless resume_from_checkpoint continues from one";
                return Err(Error::argument("output_dir", expected, found.display()));
            }
            None => LogState::default(),
        },
    };
    on_start()?;
    atomic::sweep(output.dir)?;
    let runs = trainer.trainable().shape().0;
    let report_to = (output.report_to, trainer.metrics());
    let mut log = TrainLog::open(output.dir, runs, output.logging_steps, trainer.steps(), state, report_to)?;
    // A checkpoint is of the steps done: none may be ahead of it.
    let saves = |step: u64| output.save_steps.is_some_and(|every| step.is_multiple_of(every));
    let saves_or_looks = |step: u64| saves(step) || output.look_steps.is_some_and(|every| step.is_multiple_of(every));
    steps(backend, model, trainer, output.stop_after, saves_or_looks, |backend, model, trainer, report| {
        log.record(report)?;
        let scores = trainer.evaluate(backend, model, report)?;
        log.record_scores(report, &scores)?;
        on_step(backend, model, report)?;
        if saves(report.step) {
            trainer.save(backend, output.dir, output.configs, output.identity, log.state())?;
            if let Some(limit) = output.save_total_limit {
                checkpoint::prune(output.dir, limit)?;
            }
        }
        Ok(())
    })?;
    if trainer.done() { trainer.load_best(backend, model) } else { Ok(()) }
}

/// A training in memory after its last step.
pub struct Tuning<B: Backend> {
    /// The adapters after the last step.
    pub adaptation: Adaptation<B>,
    /// The losses of each run, step by step.
    pub losses: Vec<Vec<f64>>,
    /// Tokens of all sequences of all steps.
    pub tokens: usize,
}

/// What looks at a training in memory.
pub struct Watch<'a, B: Backend> {
    /// The steps after which `on_step` looks at what is trained, so that nothing may have gone on by then.
    pub pauses: &'a dyn Fn(u64) -> bool,
    /// Called after every step.
    #[allow(clippy::type_complexity)]
    pub on_step: &'a mut dyn FnMut(&mut B, &Model<B>, &Trainer<B>, &StepReport) -> Result<()>,
}

/// Trains to the end of the longest run in memory.
///
/// # Errors
/// Whatever [`Trainer::step`] or `on_step` meets.
pub fn watch<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    trainer: &mut Trainer<B>,
    watch: Watch<'_, B>,
) -> Result<()> {
    let Watch { pauses, on_step } = watch;
    steps(backend, model, trainer, None, pauses, |backend, model, trainer, step| on_step(backend, model, trainer, step))
}

/// Trains adapters to the end in memory, from where `adaptation` is, with one entry of `runs` for each of its runs, towards an
/// objective where there is one.
///
/// # Errors
/// See [`Trainer::new`] and [`watch`].
pub fn tune<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    adaptation: Adaptation<B>,
    (runs, objective): (Vec<Run>, Option<Objective>),
    options: TrainerOptions,
    looks: Watch<'_, B>,
) -> Result<Tuning<B>> {
    let (mut losses, mut tokens) = (vec![Vec::new(); runs.len()], 0);
    let options = options.towards(objective.is_some());
    let mut trainer = Trainer::new(backend, model, Trainable::Adapters(adaptation), runs, options)?;
    if let Some(objective) = objective {
        trainer = trainer.with_objective(backend, model, objective)?;
    }
    let mut on_step = |backend: &mut B, model: &Model<B>, trainer: &Trainer<B>, report: &StepReport| {
        for run in &report.runs {
            losses[run.run].push(run.loss);
            tokens += run.tokens as usize;
        }
        (looks.on_step)(backend, model, trainer, report)
    };
    watch(backend, model, &mut trainer, Watch { pauses: looks.pauses, on_step: &mut on_step })?;
    match trainer.finish() {
        Trainable::Adapters(adaptation) => Ok(Tuning { adaptation, losses, tokens }),
        _ => unreachable!("tune: adapters were given to the trainer"),
    }
}

/// The steps up to number `last`, or to the end of the longest run. After a step for which `pauses` is true, and after the
/// last, none is ahead when `on_step` hears of it.
fn steps<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    trainer: &mut Trainer<B>,
    last: Option<u64>,
    pauses: impl Fn(u64) -> bool,
    mut on_step: impl FnMut(&mut B, &Model<B>, &mut Trainer<B>, &StepReport) -> Result<()>,
) -> Result<()> {
    while !trainer.done() && last.is_none_or(|last| trainer.steps() < last) {
        let next = trainer.steps() + 1;
        let evaluates = trainer.evaluates(next);
        let pauses = |step| last == Some(step) || evaluates && step == next || pauses(step);
        let report = trainer.advance(backend, model, pauses)?;
        on_step(backend, model, trainer, &report)?;
    }
    Ok(())
}
