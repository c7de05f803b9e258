//! Rows with named columns as examples.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::example::{Dataset, Example};
use crate::formats::json::show;
use crate::formats::records::Record;
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
#[serde(untagged, expecting = "choices: expected a column or a list of columns")]
pub(super) enum Choices {
    /// A column of lists.
    Column(String),
    /// A column for each.
    Columns(Vec<String>),
}

impl Choices {
    /// The columns of which each has an answer; none of a column of lists.
    fn names(&self) -> &[String] {
        match self {
            Self::Column(_) => &[],
            Self::Columns(names) => names,
        }
    }
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
        let name = match choices {
            Choices::Columns(names) => {
                let one = |name: &String| self.trimmed(name)?.ok_or_else(|| self.error(name, "a text", "nothing"));
                return names.iter().map(one).collect();
            }
            Choices::Column(name) => name,
        };
        let all = self.list(name)?;
        match all.len() {
            0 | 1 => Err(self.error(name, "at least 2 answers", all.len().to_string())),
            _ => Ok(all),
        }
    }

    /// The index of the choice that an output means.
    fn choice(
        &self,
        column: &str,
        found: &str,
        answers: &[String],
        choices: &Choices,
        evidence: Evidence,
    ) -> Result<usize> {
        let meanings = Meanings::of(found, answers, choices.names());
        let Meanings { by_text, by_index } = meanings;
        let integer = self.get(column)?.is_u64() && !self.numbers(choices)?;
        match (by_text, by_index) {
            (_, Some(index)) if integer => Ok(index),
            (Some(text), Some(index)) if meanings.differ(answers) => match evidence {
                Evidence { texts: true, indices: false } => Ok(text),
                Evidence { texts: false, indices: true } => Ok(index),
                _ => {
                    let expected = "other rows that show whether outputs are texts or indices of choices";
                    Err(self.error(column, expected, format!("{found}, which may be either")))
                }
            },
            _ => by_text.or(by_index).ok_or_else(|| self.none_of(column, found, answers, "choices")),
        }
    }

    /// Whether the answers of a row are JSON numbers, so that an integer may be one of them.
    fn numbers(&self, choices: &Choices) -> Result<bool> {
        Ok(match choices {
            Choices::Column(name) => self.get(name)?.as_array().is_some_and(|list| list.iter().any(Value::is_number)),
            Choices::Columns(names) => names.iter().any(|name| self.values.get(name).is_some_and(Value::is_number)),
        })
    }

    fn none_of(&self, column: &str, found: &str, answers: &[String], what: &str) -> Error {
        let expected = format!("one of the {what} {}, or an index from 0 to {}", answers.join(", "), answers.len() - 1);
        self.error(column, expected, format!("{found:?}"))
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

/// The two things that an output may mean: an answer by its text, or by its index.
struct Meanings {
    by_text: Option<usize>,
    by_index: Option<usize>,
}

impl Meanings {
    /// What the output `found` of a row means among `answers`, which stand in the columns `names` if they have some.
    fn of(found: &str, answers: &[String], names: &[String]) -> Self {
        let position = |all: &[String]| all.iter().position(|one| one == found);
        let digits = found.bytes().all(|byte| byte.is_ascii_digit());
        let index = found.parse().ok().filter(|&index: &usize| digits && index < answers.len());
        Self { by_text: position(answers).or_else(|| position(names)), by_index: index }
    }

    /// Whether the two are different answers.
    fn differ(&self, answers: &[String]) -> bool {
        self.by_text.zip(self.by_index).is_some_and(|(text, index)| answers[text] != answers[index])
    }
}

/// How outputs that may be meant by text or by index are meant, as the other rows show.
#[derive(Clone, Copy, Default)]
struct Evidence {
    texts: bool,
    indices: bool,
}

/// The examples of rows, those without an output (`null` or an empty text) skipped.
///
/// A label is found by its text, or else by its index. Among choices that are numbers an output may be both the text of one
/// and the index of another: then it is what the outputs of the other rows are, of which one that is the text of no choice is
/// an index, and one that is no index is a text; a JSON integer among choices that are texts is always an index.
///
/// # Errors
/// A column is missing; an input is empty; an output is none of the labels or choices, nor the index of one, or may be two
/// choices; choices are no list of texts.
pub fn examples(rows: &[Record], columns: &Columns, labels: Option<&[String]>) -> Result<Dataset> {
    let mut evidence = Evidence::default();
    if let Some(choices) = &columns.choices {
        for (location, values) in rows {
            let row = Row { location, values };
            let (answers, found) = (row.choices(choices)?, row.trimmed(&columns.output)?.unwrap_or_default());
            let meanings = Meanings::of(&found, &answers, choices.names());
            evidence.texts |= meanings.by_text.is_some() && meanings.by_index.is_none();
            evidence.indices |= meanings.by_index.is_some() && meanings.by_text.is_none();
        }
    }
    let mut data = Dataset::default();
    for (location, values) in rows {
        data.push(example(&Row { location, values }, columns, labels, evidence)?);
    }
    Ok(data)
}

fn example(
    row: &Row,
    columns: &Columns,
    labels: Option<&[String]>,
    evidence: Evidence,
) -> Result<Result<Example, &'static str>> {
    let Columns { input, output, choices } = columns;
    let text = row.trimmed(input)?.ok_or_else(|| row.error(input, "a text", "nothing"))?;
    let mut example = Example { columns: texts(row.values), ..Example::new(text, "") };
    let Some(found) = row.trimmed(output)? else { return Ok(Err("no output")) };
    if let Some(choices) = choices {
        let answers = row.choices(choices)?;
        example.output = answers[row.choice(output, &found, &answers, choices, evidence)?].clone();
        example.choices = Some(answers);
    } else if let Some(labels) = labels {
        let Meanings { by_text, by_index } = Meanings::of(&found, labels, &[]);
        let label = by_text.or(by_index).ok_or_else(|| row.none_of(output, &found, labels, "labels"))?;
        example.output.clone_from(&labels[label]);
    } else if row.get(output)?.is_array() {
        let mut gold = row.list(output)?.into_iter();
        let Some(first) = gold.next() else { return Ok(Err("no output")) };
        example.output = first;
        example.references = gold.collect();
    } else {
        example.output = found;
    }
    Ok(Ok(example))
}
