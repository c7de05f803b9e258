//! Rows of data: examples to train on or to capture, as JSON by lines or as one JSON list.
//!
//! The form of an example is found by its keys. Keys that belong to no form are left alone (data sets carry ids and
//! sources); a key that is almost one that would be read is an error, and so is one that would make another example of
//! the row and is not read. Everything else is strict: a line that is not an object, a repeated key, a field of another
//! type or an example of no known or of two forms is an error with its line number, or its index in a list. A byte order
//! mark and blank lines are skipped.

mod conversation;
mod ids;
mod marks;
mod near;

use std::path::{Path, PathBuf};

use serde_json::Value;

pub use conversation::Conversation;

use super::chat::Message;
use super::json::{self, Fields};
use super::lines::{Lines, at, full};
use crate::{Error, Result};
use near::Kind;

/// What a row of a data file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Example {
    /// `{"text"}`: all of it is learnt.
    Text(String),
    /// `{"prompt", "completion"}`, both text: the completion is learnt.
    Completion {
        /// What is given, and not learnt.
        prompt: String,
        /// What is to be said.
        completion: String,
    },
    /// `{"messages"}` or `{"conversations"}`, of which the assistant's turns are learnt; or `{"prompt", "completion"}`,
    /// both messages, of which those of the completion are.
    Messages(Box<Conversation>),
    /// `{"instruction", "input", "output"}` (Alpaca), the first two joined by a newline; `system` and `history`
    /// precede it as messages.
    Instruction {
        /// Earlier turns: the system's, and pairs of user and assistant.
        before: Vec<Message>,
        /// Instruction and input, joined by a newline where there is an input.
        prompt: String,
        /// What is to be said.
        output: String,
    },
    /// `{"demonstrations", "query", "completion"}`: the demonstrations, each a text that is shown as it is, then the
    /// query; the completion is learnt.
    Demonstrated {
        /// The demonstrations, one after another.
        demonstrations: Vec<String>,
        /// What is asked after the demonstrations, and not learnt.
        query: String,
        /// What is to be said.
        completion: String,
    },
    /// `{"input_ids", "labels"}`: tokenised already. A label of -100 is none; without labels all is learnt. Padding,
    /// which `attention_mask` has at 0, is cut.
    Ids {
        /// Ids of the tokens, without padding.
        input_ids: Vec<u32>,
        /// The label of each token.
        labels: Option<Vec<Option<u32>>>,
    },
}

/// The keys of which an example has one.
const FORMS: [&str; 7] = ["text", "prompt", "messages", "conversations", "instruction", "demonstrations", "input_ids"];

impl Example {
    /// The form's name, to show what was detected.
    pub fn form(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Messages(conversation) if conversation.given == 0 => "messages",
            Self::Completion { .. } | Self::Messages(_) => "prompt/completion",
            Self::Instruction { .. } => "instruction/output",
            Self::Demonstrated { .. } => "demonstrations",
            Self::Ids { .. } => "input_ids",
        }
    }

    /// Parses one line; `location` is its `path:line`.
    ///
    /// # Errors
    /// See the module's documentation.
    pub fn parse(location: &Path, line: &str) -> Result<Self> {
        Self::of(location, &json::parse(location, line)?)
    }

    fn of(location: &Path, value: &Value) -> Result<Self> {
        let f = Fields::new(location, value)?;
        let found: Vec<_> = FORMS.into_iter().filter(|key| f.get(key).is_some()).collect();
        match found[..] {
            ["text"] => Ok(Self::Text(text(&f, "text")?)),
            ["prompt"] => completion(&f),
            [key @ ("messages" | "conversations")] => Ok(Self::Messages(Conversation::read(&f, key)?.into())),
            ["instruction"] => instruction(&f),
            ["demonstrations"] => demonstrated(&f),
            ["input_ids"] => {
                let (input_ids, labels) = ids::ids(&f)?;
                Ok(Self::Ids { input_ids, labels })
            }
            [] => {
                if let Some(key) = f.keys().find(|key| FORMS.contains(key)) {
                    return Err(f.error(key, "a value"));
                }
                let keys: Vec<_> = f.keys().collect();
                Err(Error::field(location, "keys", format!("one of {}", FORMS.join(", ")), format!("{keys:?}")))
            }
            _ => Err(Error::field(location, "keys", "an example of one form", found.join(" and "))),
        }
    }
}

/// An example with its place in its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// `path:line`, or `path[index]` in a list.
    pub location: PathBuf,
    /// What the row is by its keys.
    pub example: Example,
    /// The row's own marks that say whether it is learnt.
    marks: Vec<(&'static str, Value)>,
}

impl Row {
    /// An example without marks.
    pub fn new(location: PathBuf, example: Example) -> Self {
        Self { location, example, marks: Vec::new() }
    }

    /// The same row with another example.
    pub fn with(&self, example: Example) -> Self {
        Self { example, ..self.clone() }
    }

    fn of((location, value): (PathBuf, Value)) -> Result<Self> {
        let example = Example::of(&location, &value)?;
        let is_mark = |value: &&Value| value.is_boolean() || value.is_number();
        let mark = |key| Some((key, value.get(key).filter(is_mark)?.clone()));
        let marks = marks::OF_ROWS.into_iter().filter_map(mark).collect();
        Ok(Self { location, example, marks })
    }

    /// Whether the row is learnt, by its own `weight`, `train` or `trainable`.
    ///
    /// # Errors
    /// A mark is a number other than 0 and 1.
    pub fn learnt(&self) -> Result<bool> {
        marks::of_row(&self.location, &self.marks)
    }
}

/// Reads the examples of a file.
///
/// # Errors
/// The file cannot be read, is empty, or has a bad row.
pub fn examples(path: impl AsRef<Path>) -> Result<Vec<Row>> {
    let path = path.as_ref();
    let all = rows(path)?.map(|row| Row::of(row?)).collect::<Result<Vec<_>>>()?;
    if all.is_empty() {
        return Err(Error::field(path, "lines", "at least one example", "an empty file"));
    }
    Ok(all)
}

/// JSON values with their places.
pub type Rows<'a> = Box<dyn Iterator<Item = Result<(PathBuf, Value)>> + 'a>;

/// The JSON values of a file with their places: of its lines, `path:line`, or of the one list that it is, `path[index]`.
///
/// # Errors
/// The file cannot be read, or a line is not JSON.
pub fn rows(path: &Path) -> Result<Rows<'_>> {
    // Opened once, since a pipe has its text but once.
    let mut lines = full(path)?.peekable();
    if matches!(lines.peek(), Some(Ok((_, line))) if line.trim_start().starts_with('['))
        && let Value::Array(list) = json::parse(path, &joined(lines.by_ref())?)?
    {
        let located = |(i, value)| Ok((PathBuf::from(format!("{}[{i}]", path.display())), value));
        return Ok(Box::new(list.into_iter().enumerate().map(located)));
    }
    let parse = |line: Result<(usize, String)>| {
        let (number, text) = line?;
        let location = at(path, number);
        let value = json::parse(&location, &text).map_err(|error| no_row(path, &location, &text, error))?;
        Ok((location, value))
    };
    Ok(Box::new(lines.map(parse)))
}

/// Lines as one text, in which each has its number.
fn joined(lines: impl Iterator<Item = Result<(usize, String)>>) -> Result<String> {
    let (mut text, mut last) = (String::new(), 1);
    for line in lines {
        let (number, line) = line?;
        text.extend(std::iter::repeat_n('\n', number - last));
        text.push_str(&line);
        last = number;
    }
    Ok(text)
}

/// The error of a line that is no JSON, in other words where the file is of another known kind.
fn no_row(path: &Path, location: &Path, line: &str, error: Error) -> Error {
    let expected = "a JSON object a line, or one list of objects";
    if !line.trim_start().starts_with(['{', '[']) {
        let kind = if line.contains([',', '\t', ';']) { "another text, such as CSV" } else { "another text" };
        return Error::field(location, "line", expected, format!("{kind}: {}", json::show(&line.into())));
    }
    if line.trim_end().ends_with("},") {
        return Error::field(location, "line", expected, "an object with a comma behind it");
    }
    match path.is_file().then(|| json::read(path)) {
        Some(Ok(Value::Object(map))) => {
            let list = map.iter().find(|(_, value)| value.is_array()).map(|(key, _)| format!("; its {key} is a list"));
            let found = format!("one object over many lines{}", list.unwrap_or_default());
            Error::field(path, "rows", expected, found)
        }
        _ => error,
    }
}

/// Reads every line as a JSON value, for logs and reports.
///
/// # Errors
/// The file cannot be read, or has a line that is not JSON.
pub fn values(path: impl AsRef<Path>) -> Result<Vec<Value>> {
    let path = path.as_ref();
    Lines::open(path)?.map(|line| line.and_then(|(number, text)| json::parse(at(path, number), &text))).collect()
}

fn text(f: &Fields, key: &str) -> Result<String> {
    f.require(key, f.str(key)?.map(String::from), "a string")
}

/// What the output of an example is, of which many names are in use: the error says what the row has.
fn output(f: &Fields, key: &str) -> Result<String> {
    match f.get(key) {
        Some(_) => text(f, key),
        None => Err(without(f, key, "a string")),
    }
}

fn without(f: &Fields, key: &str, expected: &str) -> Error {
    let keys: Vec<_> = f.keys().collect();
    Error::field(f.path(), key, expected, format!("nothing beside {}", keys.join(", ")))
}

fn completion(f: &Fields) -> Result<Example> {
    let is_list = |key: &str| f.get(key).is_some_and(Value::is_array);
    if f.get("completion").is_none() {
        return Err(without(f, "completion", "a string or a list of messages"));
    }
    match (is_list("prompt"), is_list("completion")) {
        (true, true) => Ok(Example::Messages(Conversation::read_completion(f)?.into())),
        (false, false) => {
            if f.str("system").is_ok_and(|system| system.is_some_and(|system| !system.is_empty())) {
                return Err(f.error("system", "nothing beside a prompt that is text, or messages"));
            }
            let turn = |key: &str| f.require(key, f.str(key)?.map(String::from), "a string or a list of messages");
            Ok(Example::Completion { prompt: turn("prompt")?, completion: turn("completion")? })
        }
        _ => Err(f.error("completion", "the same kind as prompt: both strings, or both lists of messages")),
    }
}

fn instruction(f: &Fields) -> Result<Example> {
    let known = [("input", Kind::Text), ("system", Kind::Text), ("history", Kind::List)];
    near::check(f.path(), f.map(), &known, str::to_owned)?;
    let mut prompt = text(f, "instruction")?;
    if let Some(input) = f.str("input")?.filter(|i| !i.is_empty()) {
        prompt = format!("{prompt}\n{input}");
    }
    let system = f.str("system")?.filter(|s| !s.is_empty());
    let mut before: Vec<_> = system.map(|s| Message::new("system", s)).into_iter().collect();
    for pair in f.list("history")?.unwrap_or_default() {
        let Some([Value::String(user), Value::String(assistant)]) = pair.as_array().map(Vec::as_slice) else {
            return Err(f.error("history", "a list of pairs of strings"));
        };
        before.extend([Message::new("user", user), Message::new("assistant", assistant)]);
    }
    Ok(Example::Instruction { before, prompt, output: output(f, "output")? })
}

fn demonstrated(f: &Fields) -> Result<Example> {
    let shown = f.require("demonstrations", f.list("demonstrations")?, "a list of strings")?;
    let one = |v: &Value| v.as_str().map(String::from).ok_or_else(|| f.error("demonstrations", "a list of strings"));
    Ok(Example::Demonstrated {
        demonstrations: shown.iter().map(one).collect::<Result<_>>()?,
        query: text(f, "query")?,
        completion: output(f, "completion")?,
    })
}
