//! A whole training: steps to the end, with a log and checkpoints.

use std::path::Path;

use serde_json::Value;

use super::checkpoint;
use super::log::{LogState, TrainLog};
use super::trainer::{StepReport, Trainer};
use crate::backend::Backend;
use crate::formats::adapter::AdapterConfig;
use crate::formats::atomic;
use crate::model::Model;
use crate::{Error, Result};

/// Where a training writes, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Output<'a> {
    /// The directory of log and checkpoints.
    pub dir: &'a Path,
    /// Steps between lines of the log.
    pub logging_steps: u64,
    /// Steps between checkpoints; none for no checkpoints.
    pub save_steps: Option<u64>,
    /// Checkpoints that are kept; none keeps all.
    pub save_total_limit: Option<usize>,
    /// Steps between those after which `on_step` looks at the model, so that nothing may have gone on by then; none for
    /// never.
    pub look_steps: Option<u64>,
    /// The step after which the training ends, although its schedule goes on; none for the last of the schedule.
    pub stop_after: Option<u64>,
    /// The adapters' settings, one a run; empty where weights are tuned.
    pub configs: &'a [AdapterConfig],
    /// What a continuation must share beside settings and data, such as the model's name.
    pub identity: &'a Value,
}

impl Output<'_> {
    fn validate(&self) -> Result<()> {
        for (name, value) in
            [("--save-steps", self.save_steps), ("--save-total-limit", self.save_total_limit.map(|n| n as u64))]
        {
            if value == Some(0) {
                return Err(Error::argument(name, "at least 1", 0));
            }
        }
        Ok(())
    }
}

/// Trains to the end, from the checkpoint `resume` on if there is one, and calls `on_step` after every step, before its
/// checkpoint is written.
///
/// # Errors
/// A checkpoint that is not of this training; without one, a directory that has checkpoints already; whatever
/// [`Trainer::step`] or `on_step` meets; files that cannot be written. What has been written by then stays.
pub fn fit<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    trainer: &mut Trainer<B>,
    output: &Output<'_>,
    resume: Option<&Path>,
    mut on_step: impl FnMut(&mut B, &Model<B>, &StepReport) -> Result<()>,
) -> Result<()> {
    output.validate()?;
    atomic::sweep(output.dir)?;
    let state = match resume {
        Some(path) => trainer.restore(backend, model, path, output.identity)?,
        None => match checkpoint::latest(output.dir)? {
            Some(found) => {
                let expected = "a directory without checkpoints, unless --resume-from-checkpoint continues from one";
                return Err(Error::argument("--output-dir", expected, found.display()));
            }
            None => LogState::default(),
        },
    };
    let mut log = TrainLog::open(output.dir, trainer.tuned().shape().0, output.logging_steps, trainer.steps(), state)?;
    // A checkpoint is of the steps done: none may be ahead of it.
    let saves = |step: u64| output.save_steps.is_some_and(|every| step.is_multiple_of(every));
    let saves_or_looks = |step: u64| {
        saves(step)
            || output.stop_after == Some(step)
            || output.look_steps.is_some_and(|every| step.is_multiple_of(every))
    };
    while !trainer.done() && output.stop_after.is_none_or(|last| trainer.steps() < last) {
        let report = trainer.advance(backend, model, saves_or_looks)?;
        log.record(&report)?;
        on_step(backend, model, &report)?;
        if saves(report.step) {
            trainer.save(backend, output.dir, output.configs, output.identity, log.state())?;
            if let Some(limit) = output.save_total_limit {
                checkpoint::prune(output.dir, limit)?;
            }
        }
    }
    Ok(())
}
