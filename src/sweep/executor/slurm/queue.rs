//! What Slurm says of tasks: `squeue`, and `sacct` where there is an accounting.

use std::process::Command;

use crate::{Error, Result};

/// A task of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Task {
    /// The number of the array in the sweep.
    pub array: u64,
    /// Its index in the array, from 1.
    pub index: usize,
}

/// The jobs of one name.
pub struct Queue {
    name: String,
}

/// States in which a task will do nothing more (the manual of squeue, JOB STATE CODES). Every other is on its way.
const ENDED: [&str; 10] = [
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
];

/// Whether a task in this state is through.
pub fn has_ended(state: &str) -> bool {
    ENDED.contains(&state)
}

impl Queue {
    /// Of jobs of this name.
    pub fn new(name: String) -> Self {
        Self { name }
    }

    /// Every task with its state, also those that ended a short time ago.
    ///
    /// # Errors
    /// `squeue` cannot be run, or the controller does not answer.
    pub fn tasks(&self) -> Result<Vec<(Task, String)>> {
        let mut command = Command::new("squeue");
        command
            .args(["--noheader", "--array", "--states=all", "--format=%k|%K|%T"])
            .arg(format!("--name={}", self.name));
        Ok(output(command)?.lines().filter_map(task).collect())
    }
}

/// A line of `squeue`: comment, index, state. The comment is the array's number; other jobs of this name are nobody's.
fn task(line: &str) -> Option<(Task, String)> {
    let mut fields = line.trim().split('|');
    let (array, index, state) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?, fields.next()?);
    Some((Task { array, index }, state.to_owned()))
}

/// The state in which a task ended, of the accounting; none where there is none, or it does not know the task.
pub fn accounted(job: u64, index: usize) -> Option<String> {
    let mut command = Command::new("sacct");
    command
        .args(["--noheader", "--parsable2", "--allocations", "--format=State,ExitCode"])
        .arg(format!("--jobs={job}_{index}"));
    let text = output(command).ok()?;
    let (state, code) = text.lines().next_back()?.split_once('|')?;
    Some(format!("{state}, exit code {code}"))
}

/// What a command of Slurm prints.
pub fn output(mut command: Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let ran = command.output().map_err(Error::io("start", &name))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match ran.status.success() {
        true => Ok(text(&ran.stdout)),
        false => {
            let said = text(&ran.stderr).lines().next_back().unwrap_or("nothing").to_owned();
            Err(Error::argument(name, "an answer of Slurm", format!("{} ({said})", ran.status)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_squeue_are_tasks() {
        assert_eq!(task("7|3|RUNNING"), Some((Task { array: 7, index: 3 }, "RUNNING".to_owned())));
        for other in ["(null)|N/A|RUNNING", "", "7|3", "7|N/A|PENDING"] {
            assert_eq!(task(other), None, "{other}");
        }
        assert!(["TIMEOUT", "NODE_FAIL", "COMPLETED"].into_iter().all(has_ended));
        assert!(!["PENDING", "COMPLETING", "REQUEUED", "SUSPENDED"].into_iter().any(has_ended));
    }
}
