//! The answers among which a model chooses.

use super::definition::Task;
use super::example::Example;
use crate::{Error, Result};

/// The outputs that are compared for one query, and which of them is the gold one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidates {
    /// The row's own choices, the task's labels, or the gold answer alone.
    pub outputs: Vec<String>,
    /// Index of the gold one; of equal ones the first.
    pub gold: usize,
}

impl Candidates {
    /// Those of a query.
    ///
    /// # Errors
    /// Its output is no choice or label.
    pub fn of(task: &Task, query: &Example) -> Result<Self> {
        let (outputs, what) = match (&query.choices, task.labels()) {
            (Some(choices), _) => (choices.as_slice(), "choice"),
            (None, Some(labels)) => (labels, "label"),
            (None, None) => return Ok(Self { outputs: vec![query.output.clone()], gold: 0 }),
        };
        let gold = outputs.iter().position(|output| *output == query.output);
        let gold = gold.ok_or_else(|| Error::argument(what, outputs.join(" or "), &query.output))?;
        Ok(Self { outputs: outputs.to_vec(), gold })
    }
}
