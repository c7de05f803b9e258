//! Chat templates: Jinja2 as `apply_chat_template` of transformers 5.24 runs it.

use std::ops::Range;
use std::path::{Path, PathBuf};

use jiff::Zoned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::jinja::{Fail, Template};
use super::strftime::strftime;
use crate::{Error, Result};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: "system", "user", "assistant".
    pub role: String,
    /// What is said.
    pub content: String,
}

/// A conversation as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// Byte ranges of the text that the template marks as the assistant's (`{% generation %}`), in order; none where it
    /// has no such tags, empty where none of them was met.
    pub generated: Option<Vec<Range<usize>>>,
}

/// A parsed template.
pub struct ChatTemplate {
    template: Template,
    path: PathBuf,
}

/// Bytes of a template; published ones have some thousands.
const LARGEST: usize = 256 << 10;
/// The names that a message's reasoning goes by; templates read the first, that of gpt-oss the second.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

impl ChatTemplate {
    /// Parses a template; `path` is the file it came from.
    ///
    /// # Errors
    /// It is not valid Jinja2, or uses what is not supported.
    pub fn new(path: impl AsRef<Path>, source: &str) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        if source.len() > LARGEST {
            let expected = format!("a template of at most {LARGEST} bytes");
            return Err(Error::field(&path, "chat_template", expected, source.len().to_string()));
        }
        let template = Template::parse(source).map_err(|e| failed(&path, e))?;
        Ok(Self { template, path })
    }

    /// Whether the template marks what the assistant says (`{% generation %}`).
    pub fn marks_generation(&self) -> bool {
        self.template.marks_generation()
    }

    /// The text of a conversation. `specials` are the variables such as `("bos_token", "<s>")`; with
    /// `add_generation_prompt` the text ends where the assistant begins to speak.
    ///
    /// # Errors
    /// The template refuses the conversation (`raise_exception`), fails, or reaches a limit.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        specials: &[(&str, &str)],
    ) -> Result<String> {
        Ok(self.run(messages, None, add_generation_prompt, specials)?.0)
    }

    /// As [`Self::render`], with what the template marks as the assistant's; `tools` is a list of functions' schemas.
    ///
    /// # Errors
    /// As [`Self::render`]; and a marked block stands within another, a macro, or a block whose text is used later:
    /// there transformers takes other tokens for it than its own.
    pub fn render_marked(
        &self,
        messages: &[Message],
        tools: Option<&Value>,
        add_generation_prompt: bool,
        specials: &[(&str, &str)],
    ) -> Result<Rendered> {
        let (text, generated, misplaced) = self.run(messages, tools, add_generation_prompt, specials)?;
        if misplaced {
            let expected = "generation blocks that write to the text directly";
            let found = "one within another, a macro, or a set, call or filter block";
            return Err(Error::field(&self.path, "chat_template", expected, found));
        }
        Ok(Rendered { text, generated: self.marks_generation().then_some(generated) })
    }

    fn run(
        &self,
        messages: &[Message],
        tools: Option<&Value>,
        add_generation_prompt: bool,
        specials: &[(&str, &str)],
    ) -> Result<(String, Vec<Range<usize>>, bool)> {
        let messages = messages.iter().map(|message| serde_json::to_value(message).map(as_seen));
        let messages: Vec<Value> = messages.collect::<Result<_, _>>().map_err(Error::file(&self.path))?;
        let mut variables: Map<String, Value> = Map::new();
        variables.extend(specials.iter().map(|(name, text)| ((*name).to_owned(), Value::from(*text))));
        variables.insert("messages".to_owned(), messages.into());
        variables.insert("tools".to_owned(), tools.cloned().unwrap_or(Value::Null));
        variables.insert("documents".to_owned(), Value::Null);
        variables.insert("add_generation_prompt".to_owned(), add_generation_prompt.into());
        let now = |format: &str| strftime(format, &Zoned::now());
        let output = self.template.render(&variables.into(), now).map_err(|e| failed(&self.path, e))?;
        Ok((output.text, output.generated, output.misplaced))
    }
}

/// A message as transformers shows it to a template: without what is null, its reasoning under all names.
fn as_seen(message: Value) -> Value {
    let Value::Object(mut message) = message else { return message };
    message.retain(|_, value| !value.is_null());
    let Some(reasoning) = REASONING.iter().find_map(|name| message.get(*name)).cloned() else {
        return message.into();
    };
    let mut out = Map::new();
    out.insert("thinking".to_owned(), reasoning.clone());
    out.extend(message);
    out.insert("reasoning_content".to_owned(), reasoning);
    out.into()
}

fn failed(path: &Path, e: Fail) -> Error {
    match e {
        Fail::Template { message, line } => {
            let line = if line == 0 { String::new() } else { format!(", line {line}") };
            let message = message.replace('\n', "\\n");
            Error::field(path, format!("chat_template{line}"), "a template that renders", message)
        }
        Fail::Endless(limit) => {
            let expected = format!("a template that renders within {limit}");
            Error::field(path, "chat_template", expected, "one that goes on")
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// As `_normalize_chat_messages` and `_alias_reasoning_fields` of transformers 5.24 do.
    #[test]
    fn templates_see_messages_as_in_transformers() {
        for (given, seen) in [
            (json!({"role": "user", "content": null}), r#"{"role":"user"}"#),
            (
                json!({"role": "assistant", "content": "a", "reasoning": "r"}),
                r#"{"thinking":"r","role":"assistant","content":"a","reasoning":"r","reasoning_content":"r"}"#,
            ),
            (
                json!({"reasoning_content": "r", "thinking": "t", "content": "a"}),
                r#"{"thinking":"t","reasoning_content":"r","content":"a"}"#,
            ),
        ] {
            assert_eq!(as_seen(given).to_string(), seen);
        }
    }
}
