//! Rows with named columns as examples.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::example::Example;
use crate::formats::json::show;
use crate::{Error, Result};

/// The columns of an example.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Columns {
    pub input: String,
    pub output: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choices: Option<Choices>,
}

/// Where the answers stand among which a row's own is the right one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Choices {
    /// A column of lists.
    Column(String),
    /// A column for each.
    Columns(Vec<String>),
}

/// The columns that templates may name: the values of a row as texts. The parts of lists and objects have names of their own,
/// `column[0]` and `column.key`. A value `null` is no column.
fn texts(row: &Map<String, Value>) -> BTreeMap<String, String> {
    fn add(out: &mut BTreeMap<String, String>, name: String, value: &Value) {
        match value {
            Value::Array(list) => list.iter().enumerate().for_each(|(i, v)| add(out, format!("{name}[{i}]"), v)),
            Value::Object(map) => map.iter().for_each(|(key, v)| add(out, format!("{name}.{key}"), v)),
            _ => {}
        }
        if let Some(text) = text(value) {
            out.insert(name, text);
        }
    }
    let mut out = BTreeMap::new();
    row.iter().for_each(|(name, value)| add(&mut out, name.clone(), value));
    out
}

/// A value as the text that stands for it; none for `null`.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// A row with its place, for errors.
struct Row<'a> {
    location: &'a Path,
    values: &'a Map<String, Value>,
}

impl<'a> Row<'a> {
    /// The value of a column, or of `column.key` in an object.
    fn get(&self, column: &str) -> Result<&'a Value> {
        fn find<'a>(map: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
            map.get(name).or_else(|| {
                let mut splits = name.match_indices('.');
                splits.find_map(|(at, _)| find(map.get(&name[..at])?.as_object()?, &name[at + 1..]))
            })
        }
        find(self.values, column).ok_or_else(|| {
            let known: Vec<&str> = self.values.keys().map(String::as_str).collect();
            Error::field(self.location, column, "a column of that name", format!("the columns {}", known.join(", ")))
        })
    }

    fn error(&self, column: &str, expected: impl Into<String>, found: impl Into<String>) -> Error {
        Error::field(self.location, column, expected, found)
    }

    /// The text of a column without white space around it; none if it is empty or `null`.
    fn trimmed(&self, column: &str) -> Result<Option<String>> {
        let text = text(self.get(column)?).map(|text| text.trim().to_owned());
        Ok(text.filter(|text| !text.is_empty()))
    }

    /// The row's own answers.
    fn choices(&self, choices: &Choices) -> Result<Vec<String>> {
        let all = match choices {
            Choices::Columns(names) => {
                let one = |name: &String| self.trimmed(name)?.ok_or_else(|| self.error(name, "a text", "nothing"));
                return names.iter().map(one).collect();
            }
            Choices::Column(name) => self.list(name)?,
        };
        let Choices::Column(name) = choices else { unreachable!("choices: columns have returned") };
        match all.len() {
            0 | 1 => Err(self.error(name, "at least 2 answers", all.len().to_string())),
            _ => Ok(all),
        }
    }

    /// A column that is a list of texts, in CSV and TSV the JSON of one.
    fn list(&self, column: &str) -> Result<Vec<String>> {
        let wrong = |value: &Value| {
            let expected = "a list of answers (as JSON, in CSV and TSV)";
            self.error(column, expected, show(value))
        };
        let value = self.get(column)?;
        let parsed;
        let list = match value {
            Value::String(cell) => {
                parsed = serde_json::from_str(cell).map_err(|_| wrong(value))?;
                &parsed
            }
            other => other,
        };
        let one = |element: &Value| {
            let scalar = !element.is_array() && !element.is_object();
            let trimmed = text(element).map(|text| text.trim().to_owned());
            trimmed.filter(|text| scalar && !text.is_empty()).ok_or_else(|| wrong(value))
        };
        list.as_array().ok_or_else(|| wrong(value))?.iter().map(one).collect()
    }
}

/// The answer among `answers` that a text means: one of them, or else the index of one. `what` they are is for the error.
fn among(row: &Row, column: &str, found: &str, answers: &[String], what: &str) -> Result<String> {
    let exact = answers.iter().find(|answer| *answer == found);
    let by_index = || found.parse::<usize>().ok().and_then(|index| answers.get(index));
    exact.or_else(by_index).cloned().ok_or_else(|| {
        let expected = format!("one of the {what} {}, or an index from 0 to {}", answers.join(", "), answers.len() - 1);
        row.error(column, expected, format!("{found:?}"))
    })
}

/// The example of a row, or the reason why it is skipped: it has no output (`null` or an empty text).
///
/// # Errors
/// A column is missing; an input is empty; an output is none of the labels or choices, nor the index of one; choices are no
/// list of texts.
pub fn example(
    location: &Path,
    values: &Map<String, Value>,
    columns: &Columns,
    labels: Option<&[String]>,
) -> Result<Result<Example, &'static str>> {
    let row = Row { location, values };
    let Columns { input, output, choices } = columns;
    let text = row.trimmed(input)?.ok_or_else(|| row.error(input, "a text", "nothing"))?;
    let choices = choices.as_ref().map(|choices| row.choices(choices)).transpose()?;
    let mut example = Example { columns: texts(values), ..Example::new(text, "") };
    let Some(found) = row.trimmed(output)? else { return Ok(Err("no output")) };
    example.output = match (&choices, labels) {
        (Some(choices), _) => among(&row, output, &found, choices, "choices")?,
        (None, Some(labels)) => among(&row, output, &found, labels, "labels")?,
        (None, None) if row.get(output)?.is_array() => {
            let mut gold = row.list(output)?.into_iter();
            let Some(first) = gold.next() else { return Ok(Err("no output")) };
            example.references = gold.collect();
            first
        }
        (None, None) => found,
    };
    example.choices = choices;
    Ok(Ok(example))
}
