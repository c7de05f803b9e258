//! Cells as files: what has been computed is never computed again.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Arm;
use super::training::Training;
use crate::formats::{atomic, json};
use crate::task::Task;
use crate::task::metrics::Interval;
use crate::{Error, Result};

/// What a cell is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// The arm.
    pub arm: Arm,
    /// The task trained on; none for arms that train nothing.
    pub source: Option<Task>,
    /// The task judged on.
    pub target: Task,
    /// Rows of the soft prompt.
    pub length: Option<usize>,
    /// The seed; none where nothing is random.
    pub seed: Option<u64>,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.arm.name())?;
        self.source.map_or(Ok(()), |source| write!(f, ".{source}"))?;
        write!(f, ".{}", self.target)?;
        self.length.map_or(Ok(()), |length| write!(f, ".p{length}"))?;
        self.seed.map_or(Ok(()), |seed| write!(f, ".seed-{seed}"))
    }
}

/// What the model wrote for one query.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Written {
    /// The query's number in the test data.
    pub query: usize,
    /// The demonstrations' numbers in the training data, in the order shown.
    pub demonstrations: Vec<usize>,
    /// How like the query each of them is.
    pub similarity: Vec<f64>,
    /// Demonstrations that were left out for length.
    pub shortened: usize,
    /// The text.
    pub output: String,
    /// The metric's statistics of it.
    pub statistics: Vec<f64>,
}

/// A cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// What it is of.
    pub key: Key,
    /// The score of all queries.
    pub score: f64,
    /// Its 95% bootstrap interval over the queries.
    pub interval: Option<Interval>,
    /// What was written, query by query.
    pub answers: Vec<Written>,
}

/// The cells and trainings in an output directory.
pub struct Store {
    cells: PathBuf,
    adapters: PathBuf,
}

impl Store {
    /// Of an output directory, without what a killed program has left unfinished there.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn open(out: &Path) -> Result<Self> {
        let store = Self { cells: out.join("cells"), adapters: out.join("adapters") };
        [out, &store.cells, &store.adapters].into_iter().try_for_each(atomic::sweep)?;
        Ok(store)
    }

    /// A cell, if it is there.
    ///
    /// # Errors
    /// A file that is no such cell.
    pub fn cell(&self, key: &Key) -> Result<Option<Cell>> {
        let path = self.cells.join(format!("{key}.json"));
        if !path.exists() {
            return Ok(None);
        }
        let cell: Cell = serde_json::from_value(json::read(&path)?).map_err(Error::file(&path))?;
        match cell.key == *key {
            true => Ok(Some(cell)),
            false => Err(Error::field(&path, "key", key.to_string(), cell.key.to_string())),
        }
    }

    /// Keeps a cell.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep(&self, cell: &Cell) -> Result<()> {
        atomic::write_json(self.cells.join(format!("{}.json", cell.key)), cell)
    }

    /// The directory of what a training made.
    pub fn adapter(&self, training: &Training) -> PathBuf {
        self.adapters.join(training.to_string())
    }

    /// Whether a training is done.
    pub fn trained(&self, training: &Training) -> bool {
        self.losses_file(training).exists()
    }

    /// Keeps the losses of a training, whose adapter is there already.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep_losses(&self, training: &Training, losses: &[f64]) -> Result<()> {
        atomic::write_json(self.losses_file(training), &losses)
    }

    /// The losses of a training, step by step.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn losses(&self, training: &Training) -> Result<Vec<f64>> {
        let path = self.losses_file(training);
        serde_json::from_value(json::read(&path)?).map_err(Error::file(&path))
    }

    fn losses_file(&self, training: &Training) -> PathBuf {
        self.adapters.join(format!("{training}.losses.json"))
    }
}
