//! Cells as commands of this process.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::planning::cell_line;
use crate::cli::args::Cli;
use crate::cli::host::{self, Host};
use crate::cli::{Failure, notes, run_command};
use crate::formats::atomic;
use crate::sweep::plan::{Cell, PLAN_FILE};
use crate::sweep::values::RESULT;
use crate::sweep::work::{Ran, Runner};
use crate::{Error, Result};

/// How much longer than the slowest so far the next cell may take.
const MARGIN: f64 = 1.25;

/// Runs cells here.
pub struct InProcess<'a, F> {
    command: &'a str,
    threads: Option<usize>,
    ended: F,
    /// When the work is to have ended, if it is to.
    end: Option<Instant>,
    /// The most seconds that a cell has taken.
    slowest: Option<f64>,
}

impl<'a, F: FnMut(&Cell)> InProcess<'a, F> {
    /// Of cells of a command, on so many threads where their flags do not say; `ended` hears of each that has its end.
    pub fn new(command: &'a str, threads: Option<usize>, ended: F) -> Self {
        Self { command, threads, ended, end: None, slowest: None }
    }

    /// With so much time from now on.
    pub fn within(self, time: Option<Duration>) -> Self {
        Self { end: time.map(|time| Instant::now() + time), ..self }
    }

    fn line(&self, cell: &Cell, out: &Path) -> Result<Cli> {
        cell_line(Path::new(PLAN_FILE), self.command, &cell.flags, out, self.threads)
    }

    /// Runs one cell's command; gives what it said.
    fn alone(&self, cell: &Cell, out: &Path) -> Ran {
        let cli = self.line(cell, out)?;
        let (done, results, said) = heard(|| run_command(cli.command));
        done.map_err(|failure| match failure.in_words_of(self.command) {
            Failure::Error(error) => error,
            Failure::Usage(error) => Error::argument("flags", "those of the command", error),
            Failure::Closed => Error::Interrupted,
        })?;
        // A report is a file already.
        if ["train-lora", "capture"].contains(&self.command) {
            atomic::write(out.join(RESULT), results.as_bytes())?;
        }
        Ok(said)
    }
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
    fn resumes(&self, _: &Cell) -> bool {
        // The cells of a comparison are files of their own, and what is there is not computed again.
        self.command == "compare"
    }

    fn run(&mut self, cells: &[&Cell], outs: &[PathBuf]) -> Result<Vec<Ran>> {
        Ok(cells.iter().zip(outs).map(|(cell, out)| self.alone(cell, out)).collect())
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
