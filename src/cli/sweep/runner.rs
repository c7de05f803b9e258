//! Cells as commands of this process.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::inputs::Inputs;
use super::planning::{NOWHERE, cell_line, resolved};
use crate::cli::args::{Cli, Command, ProbeArgs, TrainLoraArgs};
use crate::cli::host::{self, Host};
use crate::cli::{Failure, notes, probe, run_command, train_lora};
use crate::formats::atomic;
use crate::formats::memory::available_memory;
use crate::sweep::plan::{Cell, PLAN_FILE, Plan};
use crate::sweep::values::RESULT;
use crate::sweep::work::{Ran, Runner};
use crate::{Error, Result};

/// How much longer than the slowest so far the next cell may take.
const MARGIN: f64 = 1.25;

/// Runs cells here.
pub struct InProcess<'a, F> {
    plan: &'a Plan,
    /// What the files of a cell have now.
    inputs: Inputs,
    threads: Option<usize>,
    ended: F,
    /// Bytes that cells which share passes may take.
    memory: Option<usize>,
    /// When the work is to have ended, if it is to.
    end: Option<Instant>,
    /// The most seconds that a cell has taken.
    slowest: Option<f64>,
}

impl<'a, F: FnMut(&Cell)> InProcess<'a, F> {
    /// Of cells of a plan, on so many threads where their flags do not say, one of so many processes of this machine; `ended`
    /// hears of each that has its end.
    pub fn new(plan: &'a Plan, inputs: Inputs, (threads, processes): (Option<usize>, usize), ended: F) -> Self {
        Self { plan, inputs, threads, ended, memory: memory(processes), end: None, slowest: None }
    }

    /// With so much time from now on.
    pub fn within(self, time: Option<Duration>) -> Self {
        Self { end: time.and_then(|time| Instant::now().checked_add(time)), ..self }
    }

    /// Refuses a cell whose files are not what they were when it was named by them.
    fn check(&mut self, cell: &Cell) -> Result<()> {
        let flags = resolved(&self.line(cell, Path::new(NOWHERE))?.command)?;
        self.inputs.check(&flags, &self.plan.inputs)
    }

    fn line(&self, cell: &Cell, out: &Path) -> Result<Cli> {
        cell_line(Path::new(PLAN_FILE), &self.plan.grid.command, &cell.flags, out, self.threads)
    }

    /// Runs cells in the same passes; gives what was said, which is of all of them.
    fn together(&self, cells: &[&Cell], outs: &[PathBuf]) -> Result<Vec<Ran>> {
        let lines = cells.iter().zip(outs).map(|(cell, out)| Ok(self.line(cell, out)?.command));
        let commands: Vec<Command> = lines.collect::<Result<_>>()?;
        let probes: Vec<&ProbeArgs> = commands.iter().filter_map(Command::as_probe).collect();
        let trainings: Vec<&TrainLoraArgs> = commands.iter().filter_map(Command::as_train_lora).collect();
        let (done, _, said) = heard(|| match (&probes[..], &trainings[..]) {
            (probes @ [_, ..], []) => probe::run_together(probes, self.memory),
            ([], trainings @ [_, ..]) => train_lora::run_together(trainings, self.memory),
            _ => unreachable!("sweep: only probes and trainings share passes"),
        });
        done.map_err(|failure| self.error(failure))?;
        Ok(cells.iter().map(|_| Ok(said.clone())).collect())
    }

    fn error(&self, failure: Failure) -> Error {
        match failure.in_words_of(&self.plan.grid.command) {
            Failure::Error(error) => error,
            Failure::Usage(error) => Error::argument("flags", "those of the command", error),
            Failure::Closed => Error::Interrupted,
        }
    }

    /// Runs one cell's command; gives what it said.
    fn alone(&self, cell: &Cell, out: &Path) -> Ran {
        let mut cli = self.line(cell, out)?;
        if let Command::TrainLora(args) = &mut cli.command {
            // What a process that was killed has left: a part of a log that nobody needs, or a checkpoint.
            atomic::sweep(out)?;
            args.training.checkpoints.resume_from_checkpoint = Some("latest".to_owned());
        }
        let (done, results, said) = heard(|| run_command(cli.command));
        done.map_err(|failure| self.error(failure))?;
        // A report is a file already.
        if ["train-lora", "capture"].contains(&self.plan.grid.command.as_str()) {
            atomic::write(out.join(RESULT), results.as_bytes())?;
        }
        Ok(said)
    }
}

/// Bytes that one of so many processes may take: what Slurm gives its task, or an equal part of what is free; none where the
/// system does not say.
fn memory(processes: usize) -> Option<usize> {
    let megabytes = std::env::var("SLURM_MEM_PER_NODE").ok().and_then(|text| text.parse::<usize>().ok());
    megabytes.map(|megabytes| megabytes << 20).or_else(|| Some(available_memory()? / processes.max(1)))
}

/// Runs what would print; gives what it would have printed and said. Whoever hears this thread may stop it.
fn heard<T>(work: impl FnOnce() -> T) -> (T, String, Vec<String>) {
    let interrupt = host::current().map(|host| host.interrupt.clone()).unwrap_or_default();
    let host = Arc::new(Host::stopped_by(interrupt));
    let done = host::heard_by(host.clone(), || {
        notes::begin();
        let done = work();
        notes::release();
        done
    });
    (done, host.take_results(), host.take_notes())
}

impl<F: FnMut(&Cell)> Runner for InProcess<'_, F> {
    fn resumes(&self, cells: &[&Cell]) -> bool {
        // A comparison has files of what is done, a training its checkpoints.
        let command = self.plan.grid.command.as_str();
        command == "compare" || command == "train-lora" && cells.len() == 1
    }

    fn run(&mut self, cells: &[&Cell], outs: &[PathBuf]) -> Result<Vec<Ran>> {
        cells.iter().try_for_each(|cell| self.check(cell))?;
        let all = match (cells, outs) {
            ([cell], [out]) => vec![self.alone(cell, out)],
            _ => self.together(cells, outs)?,
        };
        // What was read while they ran may be another content than their names stand for.
        Ok(cells.iter().zip(all).map(|(cell, ran)| ran.and_then(|said| self.check(cell).map(|()| said))).collect())
    }

    fn has_time(&self, cells: usize) -> bool {
        // The first is tried whatever it takes: nobody knows, and otherwise it never would be.
        let (Some(end), Some(slowest)) = (self.end, self.slowest) else { return true };
        end.saturating_duration_since(Instant::now()).as_secs_f64() > MARGIN * slowest * cells as f64
    }

    fn ended(&mut self, cell: &Cell, seconds: f64, _: Option<&Error>) {
        self.slowest = Some(self.slowest.map_or(seconds, |slowest| slowest.max(seconds)));
        (self.ended)(cell);
    }
}
