//! JSON by lines: examples to train on or to capture.
//!
//! The form of an example is found by its keys; keys beyond the form's own are left alone (data sets carry ids and
//! sources). Everything else is strict: a blank line, a line that is not an object, a repeated key, a field of
//! another type or an example of no known or of two forms is an error with its line number.

use std::path::Path;

use serde_json::Value;

use super::chat::Message;
use super::json::{self, Fields, show};
use super::lines::{Lines, at};
use crate::{Error, Result};

/// The prompt or the completion of an example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Plain text.
    Text(String),
    /// Messages for the chat template.
    Messages(Vec<Message>),
}

/// One line of a data file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Example {
    /// `{"text"}`: all of it is learnt.
    Text(String),
    /// `{"prompt", "completion"}`: the completion is learnt. Both are text, or both are messages.
    Completion {
        /// What is given.
        prompt: Turn,
        /// What is to be said.
        completion: Turn,
    },
    /// `{"messages"}`, or `{"conversations"}` in ShareGPT's terms: the assistant's turns are learnt.
    Messages(Vec<Message>),
    /// `{"instruction", "input", "output"}` (Alpaca), the first two joined by a newline; `system` and `history`
    /// precede it as messages.
    Instruction {
        /// Earlier turns: the system's, and pairs of user and assistant.
        before: Vec<Message>,
        /// Instruction and input.
        prompt: String,
        /// What is to be said.
        output: String,
    },
    /// `{"demonstrations", "query", "completion"}`: the demonstrations, each a text that is shown as it is, then the
    /// query; the completion is learnt.
    Demonstrated {
        /// The demonstrations, one after another.
        demonstrations: Vec<String>,
        /// What is asked.
        query: String,
        /// What is to be said.
        completion: String,
    },
    /// `{"input_ids", "labels"}`: tokenised already. A label of -100 is none; without labels all is learnt.
    Ids {
        /// Token ids.
        input_ids: Vec<u32>,
        /// The label of each token.
        labels: Option<Vec<Option<u32>>>,
    },
}

impl Example {
    /// The form's name, to show what was detected.
    pub fn form(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Completion { .. } => "prompt/completion",
            Self::Messages(_) => "messages",
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
        if line.trim().is_empty() {
            return Err(Error::field(location, "line", "a JSON object", "a blank line"));
        }
        let value = json::parse(location, line)?;
        let f = Fields::new(location, &value)?;
        let forms = ["text", "prompt", "messages", "conversations", "instruction", "demonstrations", "input_ids"];
        let found: Vec<_> = forms.into_iter().filter(|key| f.get(key).is_some()).collect();
        match found[..] {
            ["text"] => Ok(Self::Text(text(&f, "text")?)),
            ["prompt"] => completion(&f),
            ["messages"] => Ok(Self::Messages(messages(&f, "messages", &OPENAI)?)),
            ["conversations"] => Ok(Self::Messages(messages(&f, "conversations", &SHAREGPT)?)),
            ["instruction"] => instruction(&f),
            ["demonstrations"] => demonstrated(&f),
            ["input_ids"] => ids(&f),
            [] => {
                let keys: Vec<_> = f.keys().collect();
                Err(Error::field(location, "keys", format!("one of {}", forms.join(", ")), format!("{keys:?}")))
            }
            _ => Err(Error::field(location, "keys", "an example of one form", found.join(" and "))),
        }
    }
}

/// Reads the examples of a file.
///
/// # Errors
/// The file cannot be read, is empty, or has a bad line.
pub fn examples(path: impl AsRef<Path>) -> Result<Vec<Example>> {
    let path = path.as_ref();
    let all = Lines::open(path)?
        .map(|line| line.and_then(|(number, text)| Example::parse(&at(path, number), &text)))
        .collect::<Result<Vec<_>>>()?;
    if all.is_empty() {
        return Err(Error::field(path, "lines", "at least one example", "an empty file"));
    }
    Ok(all)
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

fn completion(f: &Fields) -> Result<Example> {
    let turn = |key: &str| match f.get(key) {
        Some(Value::Array(_)) => messages(f, key, &OPENAI).map(Turn::Messages),
        _ => f.require(key, f.str(key)?.map(|t| Turn::Text(t.to_string())), "a string or a list of messages"),
    };
    let (prompt, completion) = (turn("prompt")?, turn("completion")?);
    if matches!(prompt, Turn::Text(_)) != matches!(completion, Turn::Text(_)) {
        return Err(f.error("completion", "the same kind as prompt: both strings, or both lists of messages"));
    }
    Ok(Example::Completion { prompt, completion })
}

fn instruction(f: &Fields) -> Result<Example> {
    let mut prompt = text(f, "instruction")?;
    if let Some(input) = f.str("input")?.filter(|i| !i.is_empty()) {
        prompt = format!("{prompt}\n{input}");
    }
    let message = |role: &str, content: &str| Message { role: role.to_string(), content: content.to_string() };
    let system = f.str("system")?.filter(|s| !s.is_empty());
    let mut before: Vec<_> = system.map(|s| message("system", s)).into_iter().collect();
    for pair in f.list("history")?.unwrap_or_default() {
        let Some([Value::String(user), Value::String(assistant)]) = pair.as_array().map(Vec::as_slice) else {
            return Err(f.error("history", "a list of pairs of strings"));
        };
        before.extend([message("user", user), message("assistant", assistant)]);
    }
    Ok(Example::Instruction { before, prompt, output: text(f, "output")? })
}

fn demonstrated(f: &Fields) -> Result<Example> {
    let shown = f.require("demonstrations", f.list("demonstrations")?, "a list of strings")?;
    let one = |v: &Value| v.as_str().map(String::from).ok_or_else(|| f.error("demonstrations", "a list of strings"));
    Ok(Example::Demonstrated {
        demonstrations: shown.iter().map(one).collect::<Result<_>>()?,
        query: text(f, "query")?,
        completion: text(f, "completion")?,
    })
}

fn ids(f: &Fields) -> Result<Example> {
    let list = |key: &str| f.require(key, f.list(key)?, "a list of token ids");
    let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    let ids = list("input_ids")?
        .iter()
        .map(|v| id(v).ok_or_else(|| Error::field(f.path(), "input_ids", "token ids", show(v))));
    let input_ids: Vec<u32> = ids.collect::<Result<_>>()?;
    if input_ids.is_empty() {
        return Err(f.error("input_ids", "at least one token"));
    }
    let labels = match f.list("labels")? {
        None => None,
        Some(list) => {
            let label = |v: &Value| match (v.as_i64(), id(v)) {
                (Some(-100), _) => Ok(None),
                (_, Some(id)) => Ok(Some(id)),
                _ => Err(Error::field(f.path(), "labels", "token ids or -100", show(v))),
            };
            Some(list.iter().map(label).collect::<Result<Vec<_>>>()?)
        }
    };
    if let Some(n) = labels.as_ref().map(Vec::len).filter(|&n| n != input_ids.len()) {
        let expected = format!("as many as input_ids, {}", input_ids.len());
        return Err(Error::field(f.path(), "labels", expected, n.to_string()));
    }
    Ok(Example::Ids { input_ids, labels })
}

/// Keys and roles of a list of messages.
struct Dialect {
    role: &'static str,
    content: &'static str,
    roles: &'static [(&'static str, &'static str)],
}

const OPENAI: Dialect = Dialect {
    role: "role",
    content: "content",
    roles: &[("system", "system"), ("user", "user"), ("assistant", "assistant"), ("tool", "tool")],
};
const SHAREGPT: Dialect = Dialect {
    role: "from",
    content: "value",
    roles: &[
        ("system", "system"),
        ("human", "user"),
        ("user", "user"),
        ("gpt", "assistant"),
        ("assistant", "assistant"),
    ],
};

fn messages(f: &Fields, key: &str, dialect: &Dialect) -> Result<Vec<Message>> {
    let list = f.require(key, f.list(key)?, "a list of messages")?;
    if list.is_empty() {
        return Err(f.error(key, "at least one message"));
    }
    let message = |(i, value): (usize, &Value)| {
        let field = |name: &str| format!("{key}[{i}].{name}");
        let part = |name: &str| {
            let found = value.get(name);
            found.and_then(Value::as_str).ok_or_else(|| {
                Error::field(f.path(), field(name), "a string", found.map_or("nothing".to_string(), show))
            })
        };
        let (role, content) = (part(dialect.role)?, part(dialect.content)?);
        match dialect.roles.iter().find(|(name, _)| *name == role) {
            Some((_, role)) => Ok(Message { role: role.to_string(), content: content.to_string() }),
            None => {
                let names: Vec<_> = dialect.roles.iter().map(|r| r.0).collect();
                Err(Error::field(f.path(), field(dialect.role), names.join(", "), format!("{role:?}")))
            }
        }
    };
    list.iter().enumerate().map(message).collect()
}
