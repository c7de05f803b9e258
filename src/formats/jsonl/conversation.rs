//! Rows of messages: OpenAI's turns of `role` and `content`, and ShareGPT's of `from` and `value`.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::marks;
use super::near::{self, Kind};
use crate::formats::chat::{Message, Rendered, TemplateInputs};
use crate::formats::json::{self, Fields, show};
use crate::formats::tokenizer::Tokenizer;
use crate::{Error, Result};

/// A conversation with what its row has beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conversation {
    /// The turns, in order.
    pub messages: Vec<Message>,
    /// What the template sees beside them.
    pub inputs: TemplateInputs,
    /// How many of the turns, the first, are given: nothing of them is learnt.
    pub given: usize,
    /// The names of the turns in errors.
    names: Vec<String>,
    /// What the row's own mask has for each turn, and its name in errors.
    loss_mask: Vec<Option<(Value, String)>>,
}

impl From<Vec<Message>> for Conversation {
    fn from(messages: Vec<Message>) -> Self {
        let names = (0..messages.len()).map(|i| format!("messages[{i}]")).collect();
        let loss_mask = vec![None; messages.len()];
        Self { messages, names, loss_mask, ..Self::default() }
    }
}

impl Conversation {
    /// The name of a turn in the row, such as `messages[1]`.
    pub fn name(&self, turn: usize) -> &str {
        &self.names[turn]
    }

    /// The text of the first `count` turns by the chat template; with `add_generation_prompt` it ends where the
    /// assistant begins to speak. `location` names the row in errors.
    ///
    /// # Errors
    /// There is no template, or it refuses the conversation.
    pub fn render(
        &self,
        location: &Path,
        tokenizer: &Tokenizer,
        count: usize,
        add_generation_prompt: bool,
    ) -> Result<Rendered> {
        let text = tokenizer.render_chat_marked(&self.messages[..count], &self.inputs, add_generation_prompt);
        text.map_err(|error| match tokenizer.has_chat_template() {
            true => Error::field(location, "messages", "a conversation that the template takes", error.to_string()),
            false => error,
        })
    }

    /// The same with other turns, of which nothing is learnt, before all but the system's.
    pub fn behind(mut self, turns: Vec<Message>) -> Self {
        let at = self.messages.iter().take_while(|message| message.role() == "system").count();
        let count = turns.len();
        self.names.splice(at..at, (0..count).map(|i| format!("demonstrations[{i}]")));
        self.loss_mask.splice(at..at, vec![None; count]);
        self.messages.splice(at..at, turns);
        self.given = self.given.max(at) + count;
        self
    }

    /// Of each turn, whether it is learnt: those of the assistant behind the given ones, unless a mark says 0.
    ///
    /// # Errors
    /// A mark that is neither 0 nor 1, or that contradicts another; `location` names the row.
    pub fn learnt(&self, location: &Path) -> Result<Vec<bool>> {
        let turn = |i: usize| {
            let (message, name) = (&self.messages[i], &self.names[i]);
            let mark = |key: &'static str| Some((key, message.get(key)?, format!("{name}.{key}")));
            let of_the_row = self.loss_mask[i].as_ref().map(|(value, field)| ("loss_mask", value, field.clone()));
            let marks: Vec<_> = marks::names().filter_map(mark).chain(of_the_row).collect();
            let own = message.role() == "assistant";
            Ok(marks::of_turn(location, own, &marks)?.unwrap_or(true) && own && i >= self.given)
        };
        (0..self.messages.len()).map(turn).collect()
    }

    /// Reads a row whose turns are the list `key`.
    ///
    /// # Errors
    /// A turn that is none; a key beside the list that is of another type or contradicts it.
    pub fn read(f: &Fields, key: &str) -> Result<Self> {
        let messages = turns(f, key)?;
        let names = (0..messages.len()).map(|i| format!("{key}[{i}]")).collect();
        Self::with_row(f, Self { messages, names, ..Self::default() })
    }

    /// Reads a row of `prompt` and `completion`, both lists of turns, of which the second are learnt.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_completion(f: &Fields) -> Result<Self> {
        let (prompt, completion) = (turns(f, "prompt")?, turns(f, "completion")?);
        let name = |key: &'static str| move |i: usize| format!("{key}[{i}]");
        let names = (0..prompt.len()).map(name("prompt"));
        let names = names.chain((0..completion.len()).map(name("completion"))).collect();
        let given = prompt.len();
        Self::with_row(f, Self { messages: [prompt, completion].concat(), names, given, ..Self::default() })
    }

    /// Adds what a row has beside its turns.
    fn with_row(f: &Fields, mut conversation: Self) -> Result<Self> {
        near::check(f.path(), f.map(), &KNOWN, str::to_owned)?;
        for key in MEDIA {
            if f.get(key).is_some_and(|value| *value != json!([]) && *value != json!("")) {
                return Err(f.error(key, "text alone"));
            }
        }
        for (key, expected) in [
            ("functions", "tools, as chat templates take them"),
            ("system_message", "system, or a turn of the system's"),
            ("mask", "loss_mask, if what is learnt is meant"),
            ("loss_weight", "weight, 0 or 1, if what is learnt is meant"),
        ] {
            if f.get(key).is_some() {
                return Err(f.error(key, expected));
            }
        }
        let n = conversation.messages.len();
        conversation.loss_mask = match f.list("loss_mask")? {
            None => vec![None; n],
            Some(list) if list.len() != n => {
                let found = list.len().to_string();
                return Err(Error::field(f.path(), "loss_mask", format!("as many as turns, {n}"), found));
            }
            Some(list) => list.iter().enumerate().map(|(i, v)| Some((v.clone(), format!("loss_mask[{i}]")))).collect(),
        };
        conversation.inputs = inputs(f)?;
        if let Some(system) = system(f, &conversation)? {
            conversation.messages.insert(0, Message::new("system", system));
            conversation.names.insert(0, "system".to_owned());
            conversation.loss_mask.insert(0, None);
            conversation.given += usize::from(conversation.given > 0);
        }
        Ok(conversation)
    }
}

const KNOWN: [(&str, Kind); 5] = [
    ("tools", Kind::List),
    ("documents", Kind::List),
    ("chat_template_kwargs", Kind::Object),
    ("system", Kind::Text),
    ("loss_mask", Kind::List),
];
/// Keys of rows that hold what is no text.
const MEDIA: [&str; 6] = ["images", "image", "videos", "video", "audios", "audio"];
/// Arguments of `apply_chat_template`, which are no variables of a template.
const ARGUMENTS: [&str; 16] = [
    "conversation",
    "messages",
    "tools",
    "documents",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
    "sanitize_control_tokens",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "return_assistant_tokens_mask",
    "tokenizer_kwargs",
];

fn inputs(f: &Fields) -> Result<TemplateInputs> {
    let kwargs = match f.object("chat_template_kwargs")? {
        None => Map::new(),
        Some(kwargs) => match kwargs.keys().find(|key| ARGUMENTS.contains(key)) {
            Some(key) => return Err(kwargs.error(key, "a variable of the template, which this is not")),
            None => kwargs.map().clone(),
        },
    };
    Ok(TemplateInputs { tools: objects(f, "tools")?, documents: objects(f, "documents")?, kwargs })
}

/// A list of objects, which may be written as JSON in a string: data sets whose columns have one type do so.
fn objects(f: &Fields, key: &str) -> Result<Option<Value>> {
    let wrong = || f.error(key, "a list of objects, or one as JSON in a string");
    let list = match f.get(key) {
        None => return Ok(None),
        Some(Value::String(text)) if text.trim().is_empty() => return Ok(None),
        Some(Value::String(text)) => json::parse(f.path(), text).map_err(|_| wrong())?,
        Some(other) => other.clone(),
    };
    match &list {
        Value::Null => Ok(None),
        Value::Array(values) if values.iter().all(Value::is_object) => Ok(Some(list)),
        _ => Err(wrong()),
    }
}

/// The system's text beside the turns, unless they have it themselves.
fn system<'a>(f: &Fields<'a>, conversation: &Conversation) -> Result<Option<&'a str>> {
    let is_system = |message: &&Message| ["system", "developer"].contains(&message.role());
    let own = conversation.messages.iter().position(|message| is_system(&message));
    for key in ["system", "system_prompt"] {
        let Some(text) = f.str(key)?.filter(|text| !text.is_empty()) else { continue };
        match own {
            Some(i) if conversation.messages[i].get("content").and_then(Value::as_str) == Some(text) => {}
            Some(i) => {
                return Err(f.error(key, format!("nothing, or the same as in {}", conversation.names[i])));
            }
            None if key == "system" => return Ok(Some(text)),
            None => return Err(f.error(key, "nothing; the system's text is called system, or is a turn")),
        }
    }
    Ok(None)
}

/// Fields of a turn without which it is nothing, unless it has a content.
const SUBSTANCE: [&str; 6] = ["tool_calls", "function_call", "reasoning_content", "thinking", "reasoning", "refusal"];
const FIELDS: [(&str, Kind); 5] = [
    ("content", Kind::Text),
    ("content", Kind::List),
    ("tool_calls", Kind::List),
    ("reasoning_content", Kind::Text),
    ("tool_call_id", Kind::Text),
];
/// ShareGPT's names of who speaks, and the roles of chat templates.
const SPEAKERS: [(&str, &str); 12] = [
    ("system", "system"),
    ("developer", "developer"),
    ("human", "user"),
    ("user", "user"),
    ("gpt", "assistant"),
    ("chatgpt", "assistant"),
    ("assistant", "assistant"),
    ("model", "assistant"),
    ("tool", "tool"),
    ("tool_response", "tool"),
    ("function_response", "tool"),
    ("observation", "tool"),
];
/// ShareGPT's names of an assistant that calls a function; the value is the call.
const CALLERS: [&str; 2] = ["function_call", "tool_call"];

fn turns(f: &Fields, key: &str) -> Result<Vec<Message>> {
    let list = f.require(key, f.list(key)?, "a list of messages")?;
    if list.is_empty() {
        return Err(f.error(key, "at least one message"));
    }
    let sharegpt = list[0].get("from").is_some();
    let turn = |(i, value): (usize, &Value)| {
        let name = format!("{key}[{i}]");
        let turn = Turn { location: f.path(), name, map: value.as_object() };
        if sharegpt { turn.of_sharegpt() } else { turn.of_openai() }
    };
    list.iter().enumerate().map(turn).collect()
}

/// A turn that is being read.
struct Turn<'a> {
    location: &'a Path,
    name: String,
    /// Its fields, if it is an object.
    map: Option<&'a Map<String, Value>>,
}

impl Turn<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.map?.get(key)
    }

    fn error(&self, key: &str, expected: &str) -> Error {
        let found = match (self.get(key), self.map) {
            (Some(value), _) => show(value),
            (None, Some(map)) => format!("nothing beside {}", map.keys().cloned().collect::<Vec<_>>().join(", ")),
            (None, None) => "no object".to_owned(),
        };
        Error::field(self.location, format!("{}.{key}", self.name), expected, found)
    }

    fn str(&self, key: &str) -> Result<&str> {
        self.get(key).and_then(Value::as_str).ok_or_else(|| self.error(key, "a string"))
    }

    fn of_openai(&self) -> Result<Message> {
        let role = self.str("role")?;
        if self.get("from").is_some() {
            return Err(self.error("from", "nothing beside role; turns are of one form"));
        }
        let fields = self.map.cloned().unwrap_or_default();
        near::check(self.location, &fields, &FIELDS, |key| format!("{}.{key}", self.name))?;
        let marks: Vec<(&str, Kind)> = marks::names().map(|name| (name, Kind::Mark)).collect();
        near::check(self.location, &fields, &marks, |key| format!("{}.{key}", self.name))?;
        self.check_content("content")?;
        let is = |key: &&str| fields.get(*key).is_some_and(|value| !value.is_null());
        if !fields.contains_key("content") && !SUBSTANCE.iter().any(is) {
            return Err(self.error("content", "a text"));
        }
        let message = if role.is_empty() { None } else { Message::of(fields) };
        message.ok_or_else(|| self.error("role", "a role"))
    }

    fn of_sharegpt(&self) -> Result<Message> {
        let from = self.str("from")?;
        if let Some(key) = ["role", "content"].into_iter().find(|key| self.get(key).is_some_and(|v| !v.is_null())) {
            return Err(match self.get("value") {
                None => self.error("value", "a text, as the turn has from"),
                Some(_) => self.error(key, "nothing beside from and value; turns are of one form"),
            });
        }
        self.check_content("value")?;
        let value = self.get("value").filter(|value| !value.is_null());
        let value = value.ok_or_else(|| self.error("value", "a string"))?;
        let mut fields = self.map.cloned().unwrap_or_default();
        fields.retain(|key, _| !["from", "value", "role", "content"].contains(&key.as_str()));
        let mut all = Map::new();
        if CALLERS.contains(&from) {
            all.insert("role".to_owned(), json!("assistant"));
            all.insert("content".to_owned(), json!(""));
            all.insert("tool_calls".to_owned(), self.calls(value)?);
        } else {
            let speaker = SPEAKERS.iter().find(|(name, _)| *name == from);
            let names = || SPEAKERS.iter().map(|s| s.0).chain(CALLERS).collect::<Vec<_>>().join(", ");
            let (_, role) = speaker.ok_or_else(|| self.error("from", &names()))?;
            all.insert("role".to_owned(), json!(role));
            all.insert("content".to_owned(), value.clone());
        }
        all.extend(fields);
        Message::of(all).ok_or_else(|| self.error("from", "a role"))
    }

    /// The calls that a turn's value is: one `{"name", "arguments"}`, or a list of them.
    fn calls(&self, value: &Value) -> Result<Value> {
        let wrong = || self.error("value", "a call of a function as JSON, an object with name and arguments");
        let parsed = json::parse(self.location, value.as_str().unwrap_or_default()).map_err(|_| wrong())?;
        let calls = if let Value::Array(list) = parsed { list } else { vec![parsed] };
        let is_call = |call: &Value| call.get("name").is_some_and(Value::is_string) && call.get("arguments").is_some();
        match !calls.is_empty() && calls.iter().all(is_call) {
            true => Ok(calls.into_iter().map(|call| json!({"type": "function", "function": call})).collect()),
            false => Err(wrong()),
        }
    }

    /// Refuses what is no text: a content is a text, a list of parts, an object (what a tool gave) or null.
    fn check_content(&self, key: &str) -> Result<()> {
        let parts = match self.get(key) {
            Some(Value::Array(parts)) => parts,
            None | Some(Value::Null | Value::String(_) | Value::Object(_)) => return Ok(()),
            Some(_) => return Err(self.error(key, "a string, or a list of parts of text")),
        };
        for (i, part) in parts.iter().enumerate() {
            let kind = part.get("type").and_then(Value::as_str).unwrap_or_default();
            let field = |name: &str| format!("{}.{key}[{i}]{name}", self.name);
            let of_media = |word: &str| ["image", "video", "audio"].iter().any(|media| word.contains(media));
            let known =
                part.as_object().is_some_and(|map| map.iter().any(|(name, value)| of_media(name) && !value.is_null()));
            if of_media(kind) || known || kind == "file" {
                return Err(Error::field(self.location, field(".type"), "text alone", show(part)));
            }
            let text = part.get("text").is_some_and(Value::is_string);
            if !(part.is_string() || part.is_object() && (kind != "text" || text)) {
                return Err(Error::field(self.location, field(".text"), "a part of text", show(part)));
            }
        }
        Ok(())
    }
}
