//! Data sets as lists of examples.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::templates::{SENTIMENT, TRANSLATION, Template};
use crate::formats::lines::at;
use crate::formats::tables::{aligned, tsv};
use crate::{Error, Result};

/// One example: what is asked and what is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The text that fills `{input}`.
    pub input: String,
    /// The text that fills `{output}`.
    pub output: String,
}

/// A built-in task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// Binary sentiment (SST-2; Socher et al. 2013) as GLUE distributes it.
    #[serde(rename = "sst2")]
    Sst2,
    /// Translation from English to Czech.
    #[serde(rename = "en-cs")]
    EnCs,
}

impl Task {
    /// The words of the labels, those that the data set calls 0, 1, ...; none for free text.
    pub fn labels(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Sst2 => Some(&["negative", "positive"]),
            Self::EnCs => None,
        }
    }

    /// The template of the task unless another is given.
    pub fn template(self) -> Template {
        let (query, answer) = match self {
            Self::Sst2 => SENTIMENT,
            Self::EnCs => TRANSLATION,
        };
        Template::new(query, answer).expect("task: built-in templates are valid")
    }

    /// Reads a data set.
    ///
    /// `sst2` is one tab-separated file with the columns `sentence` and `label` (0 or 1); `en-cs` two files of the same
    /// number of lines, English and Czech, one sentence a line. White space around a text is removed.
    ///
    /// # Errors
    /// Not that number of files, a file that cannot be read or is not of that form (with its line), an empty text.
    pub fn load(self, files: &[PathBuf]) -> Result<Vec<Example>> {
        match (self, files) {
            (Self::Sst2, [file]) => sst2(file),
            (Self::EnCs, [english, czech]) => {
                let pair = |(e, c): (String, String)| Example { input: e.trim().into(), output: c.trim().into() };
                Ok(aligned(english, czech)?.into_iter().map(pair).collect())
            }
            (Self::Sst2, _) => Err(Error::argument("sst2 data", "one file", files.len())),
            (Self::EnCs, _) => Err(Error::argument("en-cs data", "two aligned files, English and Czech", files.len())),
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sst2 => "sst2",
            Self::EnCs => "en-cs",
        })
    }
}

impl FromStr for Task {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "sst2" => Ok(Self::Sst2),
            "en-cs" => Ok(Self::EnCs),
            other => Err(Error::unsupported("task", other, "sst2, en-cs")),
        }
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
            input => Ok(Example { input: input.to_string(), output: output.to_string() }),
        }
    };
    rows.map(example).collect()
}
