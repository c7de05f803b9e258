//! Computing cells: claims, runs, names, until none is left that nobody is at.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use super::plan::Cell;
use super::store::{Claim, Store};
use crate::formats::atomic;
use crate::{Error, Result};

/// Between two looks at cells that other processes are at.
const PAUSE: Duration = Duration::from_millis(100);

/// A cell that has its result in its directory of work: what the command said beside it; or the command's error.
pub type Ran = Result<Vec<String>, Error>;

/// Hears of a cell, by its number among those that run, as soon as it is through: the seconds that it took, and its result.
pub type Done<'a> = &'a mut (dyn FnMut(usize, f64, Ran) -> Result<()> + Send);

/// Who computes cells.
pub trait Runner {
    /// Whether what was begun by another process may be gone on with in the directories of work, of cells that go together.
    fn resumes(&self, cells: &[&Cell]) -> bool;

    /// Runs cells that go together, each into its directory. Those that `done` has not heard of in the end are tried again apart
    /// from these.
    ///
    /// # Errors
    /// What is of no single cell, and errors of `done`.
    fn run(&mut self, cells: &[&Cell], outs: &[PathBuf], done: Done<'_>) -> Result<()>;

    /// Whether there is time for so many cells; where not, the work ends.
    fn has_time(&self, cells: usize) -> bool;
}

/// Computes all cells of the groups that have no result and that nobody else is at, and waits for the others: when this
/// returns true every cell has its end, when false time is up. `progress` hears of each that has one.
///
/// # Errors
/// The directory cannot be written (a full disk), or the work was interrupted. An error of a cell is its end, and is noted.
pub fn work(
    store: &Store,
    command: &str,
    groups: &[Vec<&Cell>],
    runner: &mut impl Runner,
    progress: &mut (dyn FnMut() + Send),
) -> Result<bool> {
    loop {
        let mut others = false;
        let state = store.state();
        for group in groups {
            let open: Vec<&str> =
                group.iter().map(|cell| cell.key.as_str()).filter(|key| !state.is_settled(key)).collect();
            if open.is_empty() {
                continue;
            }
            if !runner.has_time(open.len()) {
                return Ok(false);
            }
            match store.claim(&open)? {
                None => others = true,
                Some(claim) => compute((store, command), group, &claim, runner, progress)?,
            }
        }
        if !others {
            return Ok(true);
        }
        thread::sleep(PAUSE);
    }
}

/// Whether an error is of no cell: the work was interrupted, or nothing can be written any more.
fn ends_all(error: &Error) -> bool {
    match error {
        Error::Interrupted => true,
        Error::Io { source, .. } => {
            matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::ReadOnlyFilesystem)
        }
        _ => false,
    }
}

/// Computes the cells of a claim: together, and where nothing comes of that in halves, so that in the end an error is that of its
/// cell, and as many go together as there is memory for.
fn compute(
    (store, command): (&Store, &str),
    group: &[&Cell],
    claim: &Claim,
    runner: &mut impl Runner,
    progress: &mut (dyn FnMut() + Send),
) -> Result<()> {
    let cells: Vec<&Cell> = claim.keys().filter_map(|key| group.iter().find(|cell| cell.key == key)).copied().collect();
    let mut parts: Vec<Vec<&Cell>> = vec![cells];
    while let Some(cells) = parts.pop() {
        if cells.is_empty() {
            continue;
        }
        let outs: Vec<PathBuf> = cells.iter().map(|cell| store.work(&cell.key)).collect();
        let resumes = runner.resumes(&cells);
        for out in &outs {
            if !resumes {
                atomic::remove(out)?;
            }
            atomic::create_dir(out)?;
        }
        let since = Instant::now();
        let (mut left, mut is_refused) = (cells.clone(), false);
        let mut done = |i: usize, seconds: f64, ran: Ran| {
            let end = match ran {
                Ok(notes) => store.commit(claim, command, cells[i], seconds, notes),
                Err(error) if ends_all(&error) => Err(error),
                Err(error) => {
                    let line = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
                    store.fail(claim, cells[i], line)
                }
            };
            is_refused |= end.is_err();
            end?;
            left.retain(|cell| cell.key != cells[i].key);
            progress();
            Ok(())
        };
        match runner.run(&cells, &outs, &mut done) {
            Err(error) if cells.len() == 1 && !ends_all(&error) => done(0, since.elapsed().as_secs_f64(), Err(error))?,
            Err(error) if is_refused || ends_all(&error) => return Err(error),
            Ok(()) | Err(_) if left.len() < cells.len() => parts.push(left),
            Ok(()) | Err(_) => {
                assert!(cells.len() > 1, "sweep: a cell without an end");
                let (first, second) = cells.split_at(cells.len() / 2);
                parts.extend([second.to_vec(), first.to_vec()]);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cell(key: &str) -> Cell {
        let (levels, flags) = Default::default();
        Cell { key: key.to_owned(), levels, flags, shares: Some("s".into()), model: "m".into() }
    }

    /// Writes a file for each cell; fails for those that are named so, together with all that go with them.
    #[derive(Default)]
    struct Planted {
        runs: Vec<Vec<String>>,
        left: Option<usize>,
    }

    impl Runner for Planted {
        fn resumes(&self, cells: &[&Cell]) -> bool {
            cells[0].key == "resumes"
        }

        fn run(&mut self, cells: &[&Cell], outs: &[PathBuf], done: Done<'_>) -> Result<()> {
            self.runs.push(cells.iter().map(|cell| cell.key.clone()).collect());
            if cells.iter().any(|cell| cell.key == "full") {
                return Err(Error::io("write", "a file")(ErrorKind::StorageFull.into()));
            }
            if cells.iter().any(|cell| cell.key == "bad") {
                return Err(Error::argument("r", "a rank", 0));
            }
            for (i, (cell, out)) in cells.iter().zip(outs).enumerate() {
                if cell.key == "last" {
                    return done(i, 0.0, Err(Error::argument("r", "a rank", 0)));
                }
                let written = atomic::write_json(out.join("value.json"), &json!(cell.key));
                done(i, 0.0, written.map(|()| vec!["a note".to_owned()]))?;
            }
            Ok(())
        }

        fn has_time(&self, cells: usize) -> bool {
            self.left.is_none_or(|left| self.runs.len() + cells <= left)
        }
    }

    #[test]
    fn cells_are_computed_once_and_an_error_is_that_of_its_cell() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Store::open(dir.path()).expect("a store");
        let cells = ["a", "b", "bad", "c"].map(cell);
        let groups = vec![vec![&cells[0], &cells[1]], vec![&cells[2], &cells[3]]];
        let mut runner = Planted::default();
        assert!(work(&store, "probe", &groups, &mut runner, &mut || ()).expect("work"));
        assert_eq!(runner.runs, [vec!["a", "b"], vec!["bad", "c"], vec!["bad"], vec!["c"]]);
        let state = store.state();
        let mut done: Vec<&str> = state.done.iter().map(String::as_str).collect();
        done.sort_unstable();
        assert_eq!(done, ["a", "b", "c"]);
        assert_eq!(store.failure("bad").expect("noted").error, "r: expected a rank, found 0");
        let record = store.record("a").expect("a record");
        assert_eq!((record.command.as_str(), record.notes.as_slice()), ("probe", &["a note".to_owned()][..]));
        // All have their end: nothing is done twice, until the failures are forgotten.
        let mut again = Planted::default();
        assert!(work(&store, "probe", &groups, &mut again, &mut || ()).expect("work") && again.runs.is_empty());
        store.retry(&cells).expect("forgotten");
        assert!(work(&store, "probe", &groups, &mut again, &mut || ()).expect("work"));
        assert_eq!(again.runs, [["bad"]]);
    }

    #[test]
    fn cells_that_are_through_stay_so_whatever_comes_of_the_others() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Store::open(dir.path()).expect("a store");
        let cells = ["a", "last", "b", "c"].map(cell);
        let groups = vec![cells.iter().collect()];
        let (mut runner, mut ends) = (Planted::default(), 0);
        assert!(work(&store, "capture", &groups, &mut runner, &mut || ends += 1).expect("work"));
        assert_eq!(runner.runs, [vec!["a", "last", "b", "c"], vec!["b", "c"]]);
        let state = store.state();
        assert_eq!((state.done.len(), state.failed.len(), ends), (3, 1, 4));
    }

    #[test]
    fn what_a_killed_process_left_is_removed_unless_it_is_gone_on_with() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Store::open(dir.path()).expect("a store");
        let cells = ["a", "resumes"].map(cell);
        for cell in &cells {
            atomic::write_json(store.work(&cell.key).join("part.json"), &1).expect("a part");
        }
        let groups = vec![vec![&cells[0]], vec![&cells[1]]];
        assert!(work(&store, "probe", &groups, &mut Planted::default(), &mut || ()).expect("work"));
        assert!(!store.cell("a").join("part.json").exists() && store.cell("resumes").join("part.json").exists());
    }

    #[test]
    fn work_waits_for_who_is_at_a_cell_and_takes_over_what_he_leaves() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Store::open(dir.path()).expect("a store");
        let (a, b) = (cell("a"), cell("b"));
        let claim = store.claim(&["a"]).expect("locks").expect("nobody else");
        assert!(store.is_running("a").expect("locks") && !store.is_running("b").expect("locks"));
        let groups = vec![vec![&a], vec![&b]];
        let ran = thread::scope(|scope| {
            let other = scope.spawn(|| {
                let mut runner = Planted::default();
                assert!(work(&store, "probe", &groups, &mut runner, &mut || ()).expect("work"));
                runner.runs
            });
            while !store.state().done.contains("b") {
                thread::sleep(Duration::from_millis(5));
            }
            assert!(!other.is_finished(), "it did not wait");
            drop(claim);
            other.join().expect("no panic")
        });
        assert_eq!(ran, [["b"], ["a"]]);
    }

    #[test]
    fn full_disk_ends_the_work_and_fails_no_cell() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Store::open(dir.path()).expect("a store");
        let cells = ["a", "full", "b"].map(cell);
        let groups = vec![vec![&cells[0]], vec![&cells[1], &cells[2]]];
        let mut runner = Planted::default();
        let error = work(&store, "probe", &groups, &mut runner, &mut || ()).expect_err("a full disk").to_string();
        assert!(error.starts_with("a file: cannot write"), "{error}");
        let state = store.state();
        assert_eq!((state.done.len(), state.failed.len(), runner.runs.len()), (1, 0, 2));
    }

    #[test]
    fn work_ends_where_time_does() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Store::open(dir.path()).expect("a store");
        let cells = ["a", "b", "c"].map(cell);
        let groups: Vec<Vec<&Cell>> = cells.iter().map(|cell| vec![cell]).collect();
        let mut runner = Planted { left: Some(2), ..Planted::default() };
        assert!(!work(&store, "probe", &groups, &mut runner, &mut || ()).expect("work"));
        assert_eq!(store.state().done.len(), 2);
    }
}
