//! Processes of this machine: as many as are asked for, each again where it was killed.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::sweep::plan::Cell;
use crate::sweep::store::{State, Store};
use crate::{Error, Result};

/// Between two looks at the processes.
const PAUSE: Duration = Duration::from_millis(50);
/// Processes that may be killed one after another, for each that works, while no cell gets its end: then it is the cells.
const DEATHS: usize = 10;

/// Exit codes of an error that is of no cell: another process would end with it too.
const OF_ALL: [i32; 2] = [1, 2];

/// A process, and who reads what it says: all but the last line goes on at once.
struct Worker {
    child: Child,
    last: JoinHandle<Option<String>>,
}

impl Worker {
    fn start(mut command: Command, lines: Sender<String>) -> Result<Self> {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(Error::io("start", "a process of the sweep"))?;
        let said = child.stderr.take();
        let last = thread::spawn(move || {
            let mut last = None;
            for line in said.into_iter().flat_map(|said| BufReader::new(said).lines()).map_while(Result::ok) {
                // Whoever does not listen any more has an error of his own.
                last.replace(line).map(|line| lines.send(line).ok());
            }
            last
        });
        Ok(Self { child, last })
    }

    /// The last line that a process that has ended said.
    fn last(self) -> Option<String> {
        self.last.join().ok().flatten()
    }
}

/// Processes that end with this one: each ends when its stdin does, and all are killed where an error ends this.
#[derive(Default)]
struct Workers(Vec<Worker>);

impl Drop for Workers {
    fn drop(&mut self) {
        for Worker { child, .. } in &mut self.0 {
            // One that has ended needs neither.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Runs `jobs` processes until all cells have their end. `start` gives the command of one, which takes whatever cell
/// nobody is at and ends when its stdin is closed; `say` hears what processes say, `progress` which cells have an end.
///
/// # Errors
/// A process cannot be started or ends with an error of its own, which is of no cell; or processes end again and again without
/// a result, killed or by themselves.
pub fn run(
    store: &Store,
    cells: &[Cell],
    jobs: usize,
    start: impl Fn() -> Command,
    say: &mut dyn FnMut(String),
    progress: &mut dyn FnMut(&State) -> Result<()>,
) -> Result<()> {
    let mut workers = Workers::default();
    let (lines, said) = mpsc::channel();
    let (mut deaths, mut settled) = (0, 0);
    loop {
        let state = store.state();
        progress(&state)?;
        let now = cells.iter().filter(|cell| state.is_settled(&cell.key)).count();
        if now > settled {
            (settled, deaths) = (now, 0);
        }
        let mut last = None;
        let mut living = Vec::new();
        for mut worker in std::mem::take(&mut workers.0) {
            match worker.child.try_wait().map_err(Error::io("wait for", "a process of the sweep"))? {
                None => living.push(worker),
                Some(status) if status.code().is_some_and(|code| OF_ALL.contains(&code)) => {
                    workers.0.extend(living);
                    return Err(of_all(status, worker.last()));
                }
                Some(status) => {
                    worker.last().into_iter().for_each(&mut *say);
                    // Who ends well has seen all cells with their end.
                    if !(status.success() && all_settled(&store.state(), cells)) {
                        deaths += 1;
                        last = Some(status);
                    }
                }
            }
        }
        workers.0 = living;
        said.try_iter().for_each(&mut *say);
        if let Some(status) = last.filter(|_| deaths >= DEATHS.saturating_mul(jobs)) {
            return Err(dying(status));
        }
        if now == cells.len() && workers.0.is_empty() {
            return Ok(());
        }
        // Who ended before the cells did is followed by another.
        while now < cells.len() && workers.0.len() < jobs.min(cells.len() - now) {
            workers.0.push(Worker::start(start(), lines.clone())?);
        }
        thread::sleep(PAUSE);
    }
}

fn all_settled(state: &State, cells: &[Cell]) -> bool {
    cells.iter().all(|cell| state.is_settled(&cell.key))
}

fn dying(status: ExitStatus) -> Error {
    Error::argument("jobs", "processes that get on with the cells", format!("{DEATHS} for each that ended ({status})"))
}

/// The error of all that a process ended with, in its words.
fn of_all(status: ExitStatus, said: Option<String>) -> Error {
    let said = said.map_or_else(|| status.to_string(), |line| line.trim_start_matches("llamaprobe: ").to_owned());
    Error::argument("jobs", "processes that get on with the cells", format!("one that ended: {said}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The error of two processes that run a script, and what they said.
    fn error_of(script: &str) -> (String, Vec<String>) {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Store::open(dir.path()).expect("a store");
        let cell = |key: &str| {
            let (levels, flags) = Default::default();
            Cell { key: key.into(), levels, flags, shares: None, model: "m".into() }
        };
        let start = || {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        };
        let mut said = Vec::new();
        let ran = run(&store, &["a", "b"].map(cell), 2, start, &mut |line| said.push(line), &mut |_| Ok(()))
            .map_err(|error| error.to_string());
        (ran.expect_err("nobody works"), said)
    }

    #[test]
    fn processes_that_end_well_and_leave_cells_are_given_up() {
        let (error, said) = error_of("echo a note >&2");
        assert!(error.contains("10 for each that ended") && said.iter().all(|line| line == "a note"), "{error}");
    }

    #[test]
    fn error_of_no_cell_ends_all_with_its_words() {
        let (error, said) = error_of("echo 'llamaprobe: out: cannot write: no space' >&2; exit 1");
        assert_eq!(
            error,
            "jobs: expected processes that get on with the cells, found one that ended: out: cannot write: no space"
        );
        assert!(said.is_empty(), "{said:?}");
    }
}
