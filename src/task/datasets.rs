//! Data sets as lists of examples.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::templates::{SENTIMENT, TRANSLATION, Template};
use crate::formats::atomic::read_to_string;
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
            (Self::EnCs, [english, czech]) => aligned(english, czech),
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
    let text = read_to_string(path)?;
    let mut lines = text.lines().enumerate();
    let header: Vec<&str> = lines.next().map_or(vec![], |(_, line)| line.split('\t').collect());
    let column = |name: &str| {
        let place = header.iter().position(|h| h.trim() == name);
        place.ok_or_else(|| Error::field(path, "header", format!("a column {name}"), header.join(", ")))
    };
    let (sentence, label) = (column("sentence")?, column("label")?);
    let labels = Task::Sst2.labels().expect("task: sst2 has labels");
    let example = |(number, line): (usize, &str)| {
        let place = format!("{}:{}", path.display(), number + 1);
        let fields: Vec<&str> = line.split('\t').collect();
        if fields.len() != header.len() {
            return Err(Error::field(place, "line", format!("{} columns", header.len()), fields.len().to_string()));
        }
        let output = match fields[label].trim() {
            "0" => labels[0],
            "1" => labels[1],
            other => return Err(Error::field(place, "label", "0 or 1", format!("{other:?}"))),
        };
        Ok(Example { input: text_of(&place, "sentence", fields[sentence])?, output: output.to_string() })
    };
    lines.filter(|(_, line)| !line.trim().is_empty()).map(example).collect()
}

fn aligned(english: &Path, czech: &Path) -> Result<Vec<Example>> {
    let (inputs, outputs) = (read_to_string(english)?, read_to_string(czech)?);
    let (lines, found) = (inputs.lines().count(), outputs.lines().count());
    if lines != found {
        return Err(Error::field(czech, "lines", format!("{lines}, as {}", english.display()), found.to_string()));
    }
    let example = |(number, (input, output)): (usize, (&str, &str))| {
        let place = |path: &Path| format!("{}:{}", path.display(), number + 1);
        Ok(Example {
            input: text_of(&place(english), "sentence", input)?,
            output: text_of(&place(czech), "sentence", output)?,
        })
    };
    inputs.lines().zip(outputs.lines()).enumerate().map(example).collect()
}

/// A text without the white space around it; it must not be empty.
fn text_of(place: &str, field: &str, text: &str) -> Result<String> {
    match text.trim() {
        "" => Err(Error::field(place, field, "a text", "nothing")),
        text => Ok(text.to_string()),
    }
}
