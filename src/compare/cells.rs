//! Cells as files: what has been computed is never computed again.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::key::{CellKey, TrainingKey};
use crate::formats::{atomic, json};
use crate::task::metrics::Interval;
use crate::{Error, Result};

/// What the model wrote for one query.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generation {
    /// The query's index in the test data.
    pub query: usize,
    /// The demonstrations' indices in the training data, in the order shown.
    pub demonstrations: Vec<usize>,
    /// How like the query each of them is.
    pub similarity: Vec<f64>,
    /// Number of demonstrations that were dropped for length.
    pub shortened: usize,
    /// The text up to a stop, trimmed.
    pub output: String,
    /// The same before it was trimmed, where that is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The metric's statistics of it.
    pub statistics: Vec<f64>,
}

/// Everything that was generated for one key, and its score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// What it is of; also its file name.
    pub key: CellKey,
    /// The score of all queries.
    pub score: f64,
    /// Its 95% bootstrap interval over the queries.
    pub interval: Option<Interval>,
    /// One for each query, in the order of the task's queries.
    #[serde(rename = "answers")]
    pub generations: Vec<Generation>,
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
    pub fn cell(&self, key: &CellKey) -> Result<Option<Cell>> {
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

    /// Writes the file of a cell, whole or not at all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, cell: &Cell) -> Result<()> {
        atomic::write_json(self.cells.join(format!("{}.json", cell.key)), cell)
    }

    /// The directory of what a training made.
    pub fn adapter(&self, training: &TrainingKey) -> PathBuf {
        self.adapters.join(training.to_string())
    }

    /// Whether a training is done.
    pub fn trained(&self, training: &TrainingKey) -> bool {
        self.losses_file(training).exists()
    }

    /// Saves the losses of a training, whose adapter is there already.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save_losses(&self, training: &TrainingKey, losses: &[f64]) -> Result<()> {
        atomic::write_json(self.losses_file(training), &losses)
    }

    /// The losses of a training, step by step.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn losses(&self, training: &TrainingKey) -> Result<Vec<f64>> {
        let path = self.losses_file(training);
        serde_json::from_value(json::read(&path)?).map_err(Error::file(&path))
    }

    fn losses_file(&self, training: &TrainingKey) -> PathBuf {
        self.adapters.join(format!("{training}.losses.json"))
    }
}
