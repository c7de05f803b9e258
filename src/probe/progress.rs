//! How far a probe is.

use std::time::Instant;

use super::arm::Arm;

/// How far a probe is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// Prompts read, or steps taken, in this phase.
    pub done: usize,
    /// Prompts or steps of the whole phase.
    pub total: usize,
}

/// A phase of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Training an arm's adapters, of all seeds at once.
    Tune(Arm),
    /// Reading the states and scores of an arm's prompts.
    Read(Arm),
    /// Putting states into the run of the queries alone.
    Patch,
}

/// Counts the prompts of a phase.
pub(super) struct Count<'a> {
    pub phase: Phase,
    pub done: usize,
    pub total: usize,
    pub progress: &'a mut dyn FnMut(Progress),
}

impl Count<'_> {
    /// Adds prompts that have been read.
    pub fn add(&mut self, prompts: usize) {
        self.done += prompts;
        (self.progress)(Progress { phase: self.phase, done: self.done, total: self.total });
    }
}

/// Seconds since `since`, which becomes now.
pub(super) fn lap(since: &mut Instant) -> f64 {
    let now = Instant::now();
    now.duration_since(std::mem::replace(since, now)).as_secs_f64()
}
