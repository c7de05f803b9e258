//! Data sets as lists of examples.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::metrics::Metric;
use super::readers;
use super::synthetic;
use super::templates::{self, Template};
use crate::formats::lines::at;
use crate::formats::tables::{aligned, tsv};
use crate::{Error, Result};

/// One example: what is asked and what is right.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Example {
    /// The text that fills `{input}`.
    pub input: String,
    /// The text that fills `{output}`.
    pub output: String,
    /// Further right outputs, which only metrics read.
    pub references: Vec<String>,
    /// The formal meaning that an output must agree with, where a metric needs it (Logic2Text's logic).
    pub meaning: Option<String>,
}

impl Example {
    /// With one right output.
    pub fn new(input: impl Into<String>, output: impl Into<String>) -> Self {
        Self { input: input.into(), output: output.into(), ..Self::default() }
    }

    /// Every right output, `output` first.
    pub fn right(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.output).chain(&self.references).map(String::as_str)
    }
}

/// The examples of a file, and what is not among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dataset {
    /// In the file's order.
    pub examples: Vec<Example>,
    /// Rows left out, by reason.
    pub left_out: BTreeMap<&'static str, usize>,
}

impl Dataset {
    /// Adds an example, or counts why there is none.
    pub(super) fn take(&mut self, row: Result<Example, &'static str>) {
        match row {
            Ok(example) => self.examples.push(example),
            Err(reason) => *self.left_out.entry(reason).or_default() += 1,
        }
    }
}

/// A built-in task.
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
    /// Every task.
    pub const ALL: [Self; 8] =
        [Self::Sst2, Self::EnCs, Self::Totto, Self::Dart, Self::Logic2Text, Self::Spider, Self::Mtop, Self::Events];

    /// The name on the command line.
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
    /// `sst2` is one tab-separated file with the columns `sentence` and `label` (0 or 1); `en-cs` two files of the same
    /// number of lines, English and Czech, one sentence a line. The others are the original files, see
    /// [`readers`]. White space around a text is removed.
    ///
    /// # Errors
    /// Not that number of files, a file that cannot be read or is not of that form (with its line), an empty text, or
    /// nothing but rows that are left out.
    pub fn load(self, files: &[PathBuf]) -> Result<Dataset> {
        let all = |examples| Dataset { examples, left_out: BTreeMap::new() };
        let data = match (self, files) {
            (Self::Sst2, [file]) => all(sst2(file)?),
            (Self::EnCs, [english, czech]) => {
                let pair = |(e, c): (String, String)| Example::new(e.trim(), c.trim());
                all(aligned(english, czech)?.into_iter().map(pair).collect())
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

fn sst2(path: &Path) -> Result<Vec<Example>> {
    let labels = Task::Sst2.labels().expect("task: sst2 has labels");
    let rows = tsv(path, ["sentence", "label"])?.into_iter().enumerate();
    let example = |(i, [sentence, label]): (usize, [String; 2])| {
        let place = at(path, i + 2);
        let output = match label.trim() {
            "0" => labels[0],
            "1" => labels[1],
            _ => return Err(Error::field(place, "label", "0 or 1", format!("{label:?}"))),
        };
        match sentence.trim() {
            "" => Err(Error::field(place, "sentence", "a text", "nothing")),
            input => Ok(Example::new(input, output)),
        }
    };
    rows.map(example).collect()
}
