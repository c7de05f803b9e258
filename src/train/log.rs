//! `trainer_log.jsonl`: a line per logged step and per evaluation, with the field names of LLaMA-Factory's file and, beside
//! them, `grad_norm`, `tokens_per_sec` and `eval_accuracy`; with several runs also `run`. [`super::report_to`] has other forms.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::report_to::{Point, ReportTo, Reports};
use super::run::LossParts;
use super::scores::EvalReport;
use super::trainer::{RunReport, StepReport};
use crate::formats::lines::{LineFile, at};
use crate::formats::{atomic, json};
use crate::{Error, Result};

/// Name of the file in the output directory.
pub const LOG_FILE: &str = "trainer_log.jsonl";

/// Parts the log of several runs in `dir` into logs as single runs have them: that of the `i`th run in `dirs[i]`.
///
/// # Errors
/// A file cannot be read or written.
pub fn part(dir: &Path, dirs: &[&Path]) -> Result<()> {
    let path = dir.join(LOG_FILE);
    let mut parts = vec![String::new(); dirs.len()];
    for (i, line) in atomic::read_to_string(&path)?.lines().enumerate() {
        let mut line = json::parse(at(&path, i + 1), line)?;
        let run = line.as_object_mut().and_then(|fields| fields.shift_remove("run"));
        let run = run.map_or(Some(0), |run| run.as_u64());
        let part = run.and_then(|run| parts.get_mut(run as usize));
        let part = part.ok_or_else(|| Error::field(at(&path, i + 1), "run", "the number of a run", "another"))?;
        *part += &format!("{line}\n");
    }
    dirs.iter().zip(parts).try_for_each(|(dir, part)| atomic::write(dir.join(LOG_FILE), part.as_bytes()))
}

/// One line. All but the times repeat exactly when a training does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogLine {
    /// The run, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<usize>,
    /// Optimiser steps done by the run.
    pub current_steps: u64,
    /// Optimiser steps of the whole run.
    pub total_steps: u64,
    /// Mean of the steps' losses since the last line of the run.
    pub loss: f64,
    /// The parts of an objective towards a teacher, `ce`, `activations` and `logits`, as the mean of the steps'.
    #[serde(flatten)]
    pub parts: LossParts,
    /// Learning rate of the step. (transformers writes that of the next one.)
    pub lr: f64,
    /// Passes over the data done.
    pub epoch: f64,
    /// Per cent of the steps done, to two digits.
    pub percentage: f64,
    /// Since the start, without pauses between a checkpoint and its resumption, as `H:MM:SS`.
    pub elapsed_time: String,
    /// Expected until the end, as `H:MM:SS`.
    pub remaining_time: String,
    /// Tokens of the run a second, since the start.
    pub throughput: f64,
    /// Tokens of the run so far, unlabelled ones included.
    pub total_tokens: u64,
    /// Norm of the step's gradient, before it is clipped.
    pub grad_norm: f64,
    /// Tokens of the run a second, since the last line of the run.
    pub tokens_per_sec: f64,
}

/// A line of an evaluation. All but the times repeat exactly when a training does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalLine {
    /// The run, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<usize>,
    /// Optimiser steps done by the run.
    pub current_steps: u64,
    /// Optimiser steps of the whole run.
    pub total_steps: u64,
    /// Mean loss of the label tokens of the held-out sequences.
    pub eval_loss: f64,
    /// Share of them that have the greatest logit.
    pub eval_accuracy: f64,
    /// The metrics of what was written, as `eval_NAME`.
    #[serde(flatten)]
    pub metrics: BTreeMap<String, f64>,
    /// Passes over the data done.
    pub epoch: f64,
    /// Per cent of the steps done, to two digits.
    pub percentage: f64,
    /// As in [`LogLine`].
    pub elapsed_time: String,
    /// As in [`LogLine`].
    pub remaining_time: String,
}

/// What lines of both kinds have.
#[derive(Deserialize)]
struct AnyLine {
    current_steps: u64,
}

/// What has been gathered for a run's next line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interval {
    /// Sum of the steps' losses since the last line.
    pub loss: f64,
    /// Sums of its parts.
    #[serde(default, skip_serializing_if = "no_parts")]
    pub parts: LossParts,
    /// Steps since the last line.
    pub steps: u64,
    /// Tokens since the last line, unlabelled ones included.
    pub tokens: u64,
    /// The log's seconds at the last line.
    pub since: f64,
}

fn no_parts(parts: &LossParts) -> bool {
    *parts == LossParts::default()
}

/// What a log must know to be continued.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogState {
    /// Seconds of training, without pauses between a checkpoint and its resumption.
    pub seconds: f64,
    /// One for each run, ascending.
    pub intervals: Vec<Interval>,
}

/// `trainer_log.jsonl`, open for appending.
pub struct TrainLog {
    file: LineFile,
    reports: Reports,
    every: u64,
    started: Instant,
    before: f64,
    intervals: Vec<Interval>,
}

impl TrainLog {
    /// Opens `dir/trainer_log.jsonl` for `runs` runs and a line every `every` steps. Lines after step `step` are
    /// dropped: they belong to steps that are going to be repeated. `report_to` says what is written beside it, in a table
    /// with columns for these metrics of evaluations.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn open(
        dir: &Path,
        runs: usize,
        every: u64,
        step: u64,
        state: LogState,
        (report_to, metrics): (ReportTo, &[String]),
    ) -> Result<Self> {
        if every == 0 {
            return Err(Error::argument("logging_steps", "at least 1", every));
        }
        let file = LineFile::open(dir.join(LOG_FILE), |line| {
            serde_json::from_str::<AnyLine>(line).is_ok_and(|line| line.current_steps <= step)
        })?;
        let mut intervals = state.intervals;
        intervals.resize(runs, Interval::default());
        let reports = Reports::open(dir, runs, step, report_to, metrics)?;
        Ok(Self { file, reports, every, started: Instant::now(), before: state.seconds, intervals })
    }

    /// Takes a step into account, and writes the lines that are due: every `every` steps and at a run's last one.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn record(&mut self, report: &StepReport) -> Result<()> {
        let seconds = self.seconds();
        for run in &report.runs {
            let interval = &mut self.intervals[run.run];
            interval.loss += run.loss;
            interval.parts = run.parts.map_or(interval.parts, |parts| interval.parts.plus(parts));
            interval.steps += 1;
            interval.tokens += run.tokens;
            if run.step % self.every == 0 || run.step == run.total_steps {
                self.write(run, seconds)?;
            }
        }
        Ok(())
    }

    /// Writes the lines of a step's evaluations, and of a run that stops what its log still lacks.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn record_scores(&mut self, report: &StepReport, scores: &[EvalReport]) -> Result<()> {
        let seconds = self.seconds();
        for EvalReport { run, score, stops } in scores {
            let Some(run) = report.runs.iter().find(|of_step| of_step.run == *run) else { continue };
            if *stops && self.intervals[run.run].steps > 0 {
                self.write(run, seconds)?;
            }
            let line = EvalLine {
                run: (self.intervals.len() > 1).then_some(run.run),
                current_steps: run.step,
                total_steps: run.total_steps,
                eval_loss: score.loss,
                eval_accuracy: score.accuracy,
                metrics: score.metrics.iter().map(|(name, value)| (format!("eval_{name}"), *value)).collect(),
                epoch: run.epoch,
                percentage: percentage(run),
                elapsed_time: clock(seconds),
                remaining_time: clock(remaining(run, seconds)),
            };
            self.file.append(&serde_json::to_string(&line).map_err(Error::file(LOG_FILE))?)?;
            let mut values = vec![
                ("total_steps", line.total_steps as f64),
                ("eval_loss", line.eval_loss),
                ("eval_accuracy", line.eval_accuracy),
                ("epoch", line.epoch),
            ];
            values.extend(line.metrics.iter().map(|(name, value)| (name.as_str(), *value)));
            self.reports.append(&Point { run: run.run, step: run.step, values: &values })?;
        }
        Ok(())
    }

    /// Writes a run's line of a step, and begins the interval of its next one.
    fn write(&mut self, run: &RunReport, seconds: f64) -> Result<()> {
        let several = self.intervals.len() > 1;
        let interval = &mut self.intervals[run.run];
        let line = line(run, interval, seconds, several);
        *interval = Interval { since: seconds, ..Interval::default() };
        self.file.append(&serde_json::to_string(&line).map_err(Error::file(LOG_FILE))?)?;
        let parts = [("ce", line.parts.ce), ("activations", line.parts.activations), ("logits", line.parts.logits)];
        let mut values = vec![
            ("total_steps", line.total_steps as f64),
            ("loss", line.loss),
            ("lr", line.lr),
            ("epoch", line.epoch),
            ("grad_norm", line.grad_norm),
            ("total_tokens", line.total_tokens as f64),
            ("tokens_per_sec", line.tokens_per_sec),
        ];
        values.extend(parts.into_iter().filter_map(|(name, value)| Some((name, value?))));
        self.reports.append(&Point { run: run.run, step: run.step, values: &values })
    }

    /// What a checkpoint saves of the log.
    pub fn state(&self) -> LogState {
        LogState { seconds: self.seconds(), intervals: self.intervals.clone() }
    }

    fn seconds(&self) -> f64 {
        self.before + self.started.elapsed().as_secs_f64()
    }
}

fn line(run: &RunReport, interval: &Interval, seconds: f64, several: bool) -> LogLine {
    let per_second = |tokens: u64, seconds: f64| (tokens as f64 / seconds.max(1e-9) * 100.0).round() / 100.0;
    LogLine {
        run: several.then_some(run.run),
        current_steps: run.step,
        total_steps: run.total_steps,
        loss: interval.loss / interval.steps as f64,
        parts: interval.parts.over(interval.steps as f64),
        lr: run.learning_rate,
        epoch: run.epoch,
        percentage: percentage(run),
        elapsed_time: clock(seconds),
        remaining_time: clock(remaining(run, seconds)),
        throughput: per_second(run.total_tokens, seconds),
        total_tokens: run.total_tokens,
        grad_norm: run.grad_norm,
        tokens_per_sec: per_second(interval.tokens, seconds - interval.since),
    }
}

/// Per cent of a run's steps that are done, to two digits.
fn percentage(run: &RunReport) -> f64 {
    (run.step as f64 / run.total_steps as f64 * 1e4).round() / 100.0
}

/// Seconds until a run's end, at the pace so far.
fn remaining(run: &RunReport, seconds: f64) -> f64 {
    seconds * (run.total_steps - run.step) as f64 / run.step as f64
}

/// Whole seconds as `H:MM:SS`, with the days before it where there are any, as Python writes a duration.
fn clock(seconds: f64) -> String {
    let s = Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs();
    let time = format!("{}:{:02}:{:02}", s / 3600 % 24, s / 60 % 60, s % 60);
    match s / 86400 {
        0 => time,
        1 => format!("1 day, {time}"),
        days => format!("{days} days, {time}"),
    }
}

#[cfg(test)]
mod tests {
    use super::clock;

    #[test]
    fn durations_read_as_python_writes_them() {
        assert_eq!(clock(0.9), "0:00:00");
        assert_eq!(clock(3_725.2), "1:02:05");
        assert_eq!(clock(86_400.0), "1 day, 0:00:00");
        assert_eq!(clock(2.0 * 86_400.0 + 36_000.0), "2 days, 10:00:00");
    }
}
