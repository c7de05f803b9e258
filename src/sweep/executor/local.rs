//! Processes of this machine: as many as are asked for, each again where it was killed.

use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use crate::sweep::plan::Cell;
use crate::sweep::store::{State, Store};
use crate::{Error, Result};

/// Between two looks at the processes.
const PAUSE: Duration = Duration::from_millis(50);
/// Processes that may be killed one after another, for each that works, while no cell gets its end: then it is the cells.
const DEATHS: usize = 10;

/// Processes that end with this one: each ends when its stdin does, and all are killed where an error ends this.
#[derive(Default)]
struct Children(Vec<Child>);

impl Drop for Children {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // One that has ended needs neither.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Runs `jobs` processes until all cells have their end. `start` gives the command of one, which takes whatever cell
/// nobody is at and ends when its stdin is closed; `progress` hears which cells have an end.
///
/// # Errors
/// A process cannot be started, or processes end again and again without a result.
pub fn run(
    store: &Store,
    cells: &[Cell],
    jobs: usize,
    start: impl Fn() -> Command,
    progress: &mut dyn FnMut(&State) -> Result<()>,
) -> Result<()> {
    let mut children = Children::default();
    let (mut deaths, mut settled) = (0, 0);
    loop {
        let state = store.state();
        progress(&state)?;
        let now = cells.iter().filter(|cell| state.is_settled(&cell.key)).count();
        if now > settled {
            (settled, deaths) = (now, 0);
        }
        let mut last = None;
        let mut living = Vec::with_capacity(jobs);
        for mut child in std::mem::take(&mut children.0) {
            match child.try_wait().map_err(Error::io("wait for", "a process of the sweep"))? {
                None => living.push(child),
                Some(status) if status.success() => {}
                Some(status) => {
                    deaths += 1;
                    last = Some(status);
                }
            }
        }
        children.0 = living;
        if let Some(status) = last.filter(|_| deaths >= DEATHS * jobs) {
            return Err(dying(status));
        }
        if now == cells.len() && children.0.is_empty() {
            return Ok(());
        }
        // Who ended well found nothing left to do; who was killed is followed by another.
        while now < cells.len() && children.0.len() < jobs.min(cells.len() - now) {
            let child = start().stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
            children.0.push(child.map_err(Error::io("start", "a process of the sweep"))?);
        }
        thread::sleep(PAUSE);
    }
}

fn dying(status: ExitStatus) -> Error {
    Error::argument("jobs", "processes that get on with the cells", format!("{DEATHS} for each that ended ({status})"))
}
