//! What Slurm says of tasks: `squeue`, and `sacct` where there is an accounting.

use std::io::Read;
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// How long a command of Slurm may take: commands give up themselves after some times `MessageTimeout`, 10 s as a rule.
const ANSWER: Duration = Duration::from_secs(120);
/// The same of the accounting, which is asked for words alone.
const ACCOUNT: Duration = Duration::from_secs(10);
/// Between two looks at whether it has ended.
const PAUSE: Duration = Duration::from_millis(10);

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
    let text = output_within(command, ACCOUNT).ok()?;
    let (state, code) = text.lines().next_back()?.split_once('|')?;
    Some(format!("{state}, exit code {code}"))
}

/// What a command of Slurm prints.
pub fn output(command: Command) -> Result<String> {
    output_within(command, ANSWER)
}

fn output_within(mut command: Command, limit: Duration) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(Error::io("start", &name))?;
    let [out, err] = [child.stdout.take().map(text_of), child.stderr.take().map(text_of)];
    let since = Instant::now();
    let status = loop {
        match child.try_wait().map_err(Error::io("wait for", &name))? {
            Some(status) => break status,
            None if since.elapsed() > limit => {
                // One that has ended meanwhile needs neither.
                let _ = child.kill();
                let _ = child.wait();
                return Err(Error::argument(name, "an answer of Slurm", format!("none in {} s", limit.as_secs())));
            }
            None => thread::sleep(PAUSE),
        }
    };
    let text = |of: Option<JoinHandle<String>>| of.and_then(|of| of.join().ok()).unwrap_or_default();
    match status.success() {
        true => Ok(text(out).trim().to_owned()),
        false => {
            let said = text(err).trim().lines().next_back().unwrap_or("nothing").to_owned();
            Err(Error::argument(name, "an answer of Slurm", format!("{status} ({said})")))
        }
    }
}

/// Reads what a process writes until it ends.
fn text_of(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // Of a pipe that breaks there is what came before.
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn command_that_never_answers_is_given_up() {
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        };
        let error = output_within(shell("exec sleep 1000"), Duration::ZERO).expect_err("no answer").to_string();
        assert_eq!(error, "sh: expected an answer of Slurm, found none in 0 s");
        let error = output(shell("echo no >&2; exit 3")).expect_err("refused").to_string();
        assert!(error.contains("exit status: 3 (no)"), "{error}");
        assert_eq!(output(shell("echo 17")).expect("an answer"), "17");
    }

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
