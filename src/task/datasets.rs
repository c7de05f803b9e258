//! The built-in tasks: their data sets, labels, templates and metrics.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::example::{Dataset, Example};
use super::metrics::Metric;
use super::readers;
use super::synthetic;
use super::templates::{self, Template};
use crate::formats::tables::aligned;
use crate::{Error, Result};

/// A built-in task: data set, labels, template and metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Task {
    /// Binary sentiment (SST-2; Socher et al. 2013) as GLUE distributes it.
    #[serde(rename = "sst2")]
    Sst2,
    /// Translation from English to Czech.
    #[serde(rename = "en-cs")]
    EnCs,
    /// Text from highlighted cells of a table (ToTTo; Parikh et al. 2020).
    #[serde(rename = "totto")]
    Totto,
    /// Text from triples (DART; Nan et al. 2021).
    #[serde(rename = "dart")]
    Dart,
    /// Text from a logical form (Logic2Text; Chen et al. 2020).
    #[serde(rename = "logic2text")]
    Logic2Text,
    /// SQL from a question (Spider; Yu et al. 2018).
    #[serde(rename = "spider")]
    Spider,
    /// A parse from an utterance (MTOP; Li et al. 2021).
    #[serde(rename = "mtop")]
    Mtop,
    /// Good and bad events of the invented world ([`synthetic::events`]); needs no data.
    #[serde(rename = "events")]
    Events,
}

impl Task {
    /// Every task, in the order of messages that list them.
    pub const ALL: [Self; 8] =
        [Self::Sst2, Self::EnCs, Self::Totto, Self::Dart, Self::Logic2Text, Self::Spider, Self::Mtop, Self::Events];

    /// As the command line and reports spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sst2 => "sst2",
            Self::EnCs => "en-cs",
            Self::Totto => "totto",
            Self::Dart => "dart",
            Self::Logic2Text => "logic2text",
            Self::Spider => "spider",
            Self::Mtop => "mtop",
            Self::Events => "events",
        }
    }

    /// The words of the labels, those that the data set calls 0, 1, ...; none for free text.
    pub fn labels(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Sst2 => Some(&["negative", "positive"]),
            Self::Events => Some(&synthetic::PROBED_LABELS),
            _ => None,
        }
    }

    /// The template of the task unless another is given.
    pub fn template(self) -> Template {
        let (query, answer) = match self {
            Self::Sst2 => templates::SENTIMENT,
            Self::EnCs => templates::TRANSLATION,
            Self::Totto => templates::TABLE,
            Self::Dart => templates::TRIPLES,
            Self::Logic2Text => templates::LOGIC,
            Self::Spider => templates::QUESTION,
            Self::Mtop => templates::UTTERANCE,
            Self::Events => templates::SYNTHETIC,
        };
        Template::new(query, answer).expect("task: built-in templates are valid")
    }

    /// The metric by which the task's outputs are judged.
    pub fn metric(self) -> Metric {
        match self {
            Self::Sst2 | Self::Events => Metric::Exact,
            Self::EnCs => Metric::ChrF,
            Self::Totto | Self::Dart => Metric::Bleu,
            Self::Logic2Text => Metric::Blec,
            Self::Spider => Metric::Sql,
            Self::Mtop => Metric::Parse,
        }
    }

    /// Reads a data set.
    ///
    /// `en-cs` is two files of the same number of lines, English and Czech, one sentence a line. The others are the
    /// original files, see [`readers`]. White space around a text is removed.
    ///
    /// # Errors
    /// Not that number of files, a file that cannot be read or is not of that form (with its line), an empty text, or
    /// nothing but rows that are skipped.
    pub fn load(self, files: &[PathBuf]) -> Result<Dataset> {
        let data = match (self, files) {
            (Self::Sst2, [file]) => {
                let labels = self.labels().and_then(|labels| labels.try_into().ok());
                readers::sst2(file, labels.expect("task: sst2 has two labels"))?
            }
            (Self::EnCs, [english, czech]) => {
                let pair = |(e, c): (String, String)| Example::new(e.trim(), c.trim());
                aligned(english, czech)?.into_iter().map(pair).collect::<Vec<_>>().into()
            }
            (Self::Events, _) => return Err(Error::argument("events data", "no files", files.len())),
            (Self::Totto, [file]) => readers::totto(file)?,
            (Self::Dart, [file]) => readers::dart(file)?,
            (Self::Mtop, [file]) => readers::mtop(file)?,
            (Self::Logic2Text, files) => readers::logic2text(files)?,
            (Self::Spider, files) => readers::spider(files)?,
            (Self::EnCs, _) => {
                return Err(Error::argument("en-cs data", "two aligned files, English and Czech", files.len()));
            }
            (task, _) => return Err(Error::argument(format!("{task} data"), "one file", files.len())),
        };
        match (data.examples.is_empty(), files) {
            (true, [first, ..]) => Err(Error::field(first, "rows", "a row that can be used", "none")),
            _ => Ok(data),
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Task {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|task| task.name() == name);
        found.ok_or_else(|| Error::unsupported("task", name, Self::ALL.map(Self::name).join(", ")))
    }
}
