//! The directory of a sweep: which cells are there, who is at which, and how one gets its name.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::plan::Cell;
use crate::formats::lock::FileLock;
use crate::formats::{atomic, json};
use crate::{Error, Result};

/// The file of a cell's [`Record`] in its directory.
const RECORD: &str = "cell.json";
/// What is written to the directory of a cell's locks beside them.
const LOCK: &str = "lock";

/// The directory of a sweep.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

/// What a cell says of itself beside the files of its command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Digest of all that the result depends on; the name of its directory.
    pub key: String,
    /// The subcommand that computed it, such as `probe`.
    pub command: String,
    /// Its flags of the grid.
    pub levels: Map<String, Value>,
    /// All flags that were given.
    pub flags: Map<String, Value>,
    /// What it took: of cells that shared passes, an equal part.
    pub seconds: f64,
    /// What the command said beside its results.
    pub notes: Vec<String>,
}

/// Why a cell has no result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// The cell's name.
    pub key: String,
    /// The command's error.
    pub error: String,
}

/// Which cells have an end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Those with a result.
    pub done: HashSet<String>,
    /// Those that failed.
    pub failed: HashSet<String>,
}

impl State {
    /// Whether a cell needs nothing more.
    pub fn is_settled(&self, key: &str) -> bool {
        self.done.contains(key) || self.failed.contains(key)
    }
}

/// Cells that this process alone may compute, until it is dropped or the process ends.
#[derive(Debug)]
pub struct Claim {
    held: Vec<(String, FileLock)>,
}

impl Claim {
    fn check(&self, key: &str) {
        assert!(self.held.iter().any(|(held, _)| held == key), "sweep: {key} is written without its lock");
    }
}

impl Store {
    /// Of a directory, which is made where there is none.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self> {
        let store = Self { dir: dir.into() };
        ["cells", "failed", "work", "locks"]
            .into_iter()
            .try_for_each(|part| atomic::create_dir(store.dir.join(part)))?;
        Ok(store)
    }

    /// The directory that was opened.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory of a cell's result, whether it is there or not.
    pub fn cell(&self, key: &str) -> PathBuf {
        self.dir.join("cells").join(key)
    }

    /// Where the command of a cell writes before the cell has its name.
    pub fn work(&self, key: &str) -> PathBuf {
        self.dir.join("work").join(key)
    }

    fn failure_file(&self, key: &str) -> PathBuf {
        self.dir.join("failed").join(format!("{key}.json"))
    }

    /// Which cells have an end, as the directory says it now.
    pub fn state(&self) -> State {
        let stems = |part: &str| {
            let names = atomic::entries(self.dir.join(part)).into_iter();
            names.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect()
        };
        State { done: stems("cells"), failed: stems("failed") }
    }

    /// The cells among `keys` that have no end yet, for this process alone; none where another is at one of them.
    ///
    /// # Errors
    /// The file system has no locks.
    pub fn claim(&self, keys: &[&str]) -> Result<Option<Claim>> {
        let mut held = Vec::with_capacity(keys.len());
        for key in keys {
            match FileLock::try_acquire(self.dir.join("locks").join(format!("{key}.{LOCK}")))? {
                Some(lock) => held.push(((*key).to_owned(), lock)),
                None => return Ok(None),
            }
        }
        // Another may have ended one since somebody looked.
        held.retain(|(key, _)| !self.cell(key).exists() && !self.failure_file(key).exists());
        Ok(Some(Claim { held }))
    }

    /// Whether a process is at a cell.
    ///
    /// # Errors
    /// The file system has no locks.
    pub fn is_running(&self, key: &str) -> Result<bool> {
        let lock = self.dir.join("locks").join(format!("{key}.{LOCK}"));
        Ok(lock.exists() && FileLock::try_acquire(lock)?.is_none())
    }

    /// Gives what a command has written for a cell the cell's name.
    ///
    /// # Errors
    /// The file system refuses.
    ///
    /// # Panics
    /// If the claim is not of this cell.
    pub fn commit(&self, claim: &Claim, command: &str, cell: &Cell, seconds: f64, notes: Vec<String>) -> Result<()> {
        claim.check(&cell.key);
        let work = self.work(&cell.key);
        let (levels, flags) = (cell.levels.clone(), cell.flags.clone());
        let record = Record { key: cell.key.clone(), command: command.to_owned(), levels, flags, seconds, notes };
        atomic::write_json(work.join(RECORD), &record)?;
        atomic::publish_dir(&work, &self.cell(&cell.key))
    }

    /// Notes why a cell has no result.
    ///
    /// # Errors
    /// The file system refuses.
    ///
    /// # Panics
    /// If the claim is not of this cell.
    pub fn fail(&self, claim: &Claim, cell: &Cell, error: String) -> Result<()> {
        claim.check(&cell.key);
        atomic::remove(self.work(&cell.key))?;
        let failure = Failure { key: cell.key.clone(), error };
        atomic::write_json(self.failure_file(&cell.key), &failure)
    }

    /// Forgets that cells failed, so that they are tried again.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn retry<'a>(&self, cells: impl IntoIterator<Item = &'a Cell>) -> Result<()> {
        let failed = self.state().failed;
        let again = cells.into_iter().filter(|cell| failed.contains(&cell.key));
        again.map(|cell| self.failure_file(&cell.key)).try_for_each(atomic::remove)
    }

    /// Why a cell failed.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn failure(&self, key: &str) -> Result<Failure> {
        let path = self.failure_file(key);
        serde_json::from_value(json::read(&path)?).map_err(Error::file(&path))
    }

    /// What a cell that is done says of itself.
    ///
    /// # Errors
    /// The file cannot be read, or is another cell's.
    pub fn record(&self, key: &str) -> Result<Record> {
        let path = self.cell(key).join(RECORD);
        let record: Record = serde_json::from_value(json::read(&path)?).map_err(Error::file(&path))?;
        match record.key == key {
            true => Ok(record),
            false => Err(Error::field(&path, "key", key, record.key)),
        }
    }
}

impl Store {
    /// Refuses a cell that counts as done whose record cannot be read or is another's.
    ///
    /// # Errors
    /// See there; it names the directory that is to be removed.
    pub fn check(&self, key: &str) -> Result<()> {
        self.record(key).map(drop).map_err(|error| self.damaged(key, &error))
    }

    /// The error of a cell that counts as done, with the directory that is to be removed so that it is computed again.
    pub fn damaged(&self, key: &str, error: &Error) -> Error {
        let dir = self.cell(key).display().to_string();
        Error::argument(dir, "the result of a cell (remove this directory, and it is computed again)", error)
    }
}

impl Claim {
    /// The names of the cells that are to be computed.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.held.iter().map(|(key, _)| key.as_str())
    }
}
