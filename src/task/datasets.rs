//! The examples of a task: by the columns of its files, by the reader of an original file, or made here.

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::columns;
use super::definition::{Source, Task};
use super::example::Dataset;
use super::readers::Reader;
use super::synthetic;
use super::templates::Template;
use crate::formats::records::{self, Record};
use crate::{Error, Result};

/// Most queries where nobody asks for a number.
pub const MOST_QUERIES: usize = 100;

/// Which of a task's two sets of examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// What demonstrations are drawn from and what is trained on.
    Train,
    /// What queries are taken from.
    Test,
}

impl Side {
    /// The key of a task's file, and the flag.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "test",
        }
    }
}

impl Task {
    /// Reads a data set of files: of one with columns all files one after another, otherwise those that the reader takes, see
    /// [`readers`](super::readers). White space around a text is removed.
    ///
    /// # Errors
    /// Not the files that the reader takes, a file that cannot be read or is not of that form (with its line), an empty
    /// input, an output that is no label or choice, or nothing but rows that are skipped.
    pub fn load(&self, files: &[PathBuf]) -> Result<Dataset> {
        let data = match &self.definition().source {
            Source::Reader { reader } => reader.read(self.name(), self.labels().unwrap_or_default(), files)?,
            Source::Columns(_) if files.is_empty() => {
                return Err(Error::argument(format!("{self} data"), "at least one file", "none"));
            }
            Source::Columns(columns) => {
                let read = files.iter().map(|file| records::read(file));
                let rows: Vec<Record> = read.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
                columns::examples(&rows, columns, self.labels())?
            }
        };
        match (data.examples.is_empty(), files) {
            (true, [first, ..]) => Err(Error::field(first, "rows", "a row that can be used", "none")),
            _ => Ok(data),
        }
    }

    /// The examples of one side: of `files` if there are some, otherwise of the task's own. `template` must fit them.
    ///
    /// # Errors
    /// There are no files; what [`Task::load`] refuses; columns that the template names and the data have not.
    pub fn data(&self, side: Side, files: &[PathBuf], template: &Template) -> Result<Dataset> {
        let files = if files.is_empty() { self.own_files(side) } else { files };
        let data = match (files.is_empty(), self.made(side)?) {
            (false, _) => self.load(files)?,
            (true, Some(data)) => data,
            (true, None) => return Err(Error::argument(side.name(), "the task's data", "none")),
        };
        template.check_columns(&data.examples).map_err(|error| match (error, files) {
            (Error::Argument { name, expected, found }, [file, ..]) => Error::field(file, name, expected, found),
            (other, _) => other,
        })?;
        Ok(data)
    }

    /// Whether it has examples of its own, in files that it names or without.
    pub fn has_data(&self, side: Side) -> bool {
        !self.own_files(side).is_empty() || self.rows() > 0 || self.is_synthetic()
    }

    fn own_files(&self, side: Side) -> &[PathBuf] {
        match side {
            Side::Train => &self.definition().train,
            Side::Test => &self.definition().test,
        }
    }

    /// Whether its examples are of the invented world, see [`synthetic`].
    pub fn is_synthetic(&self) -> bool {
        matches!(&self.definition().source, Source::Reader { reader: Reader::Events | Reader::Objects })
    }

    /// The number of rows in the task's file itself, which are both the examples to draw from and the queries.
    pub fn rows(&self) -> usize {
        self.definition().rows.len()
    }

    /// The number of queries where nobody asks for another: of rows of the task's own half, and the others are left to be shown.
    pub fn default_queries(&self) -> usize {
        if self.rows() > 0 { self.rows().div_ceil(2).min(MOST_QUERIES) } else { MOST_QUERIES }
    }

    /// The examples that need no files.
    fn made(&self, side: Side) -> Result<Option<Dataset>> {
        let (train, test) = match &self.definition().source {
            Source::Reader { reader: Reader::Events } => synthetic::events(),
            Source::Reader { reader: Reader::Objects } => synthetic::objects(),
            Source::Columns(columns) if self.rows() > 0 => {
                let located =
                    |(i, row): (usize, &Map<String, Value>)| (PathBuf::from(format!("{self}: rows[{i}]")), row.clone());
                let rows: Vec<Record> = self.definition().rows.iter().enumerate().map(located).collect();
                return columns::examples(&rows, columns, self.labels()).map(Some);
            }
            _ => return Ok(None),
        };
        Ok(Some(if side == Side::Train { train } else { test }.into()))
    }
}
