//! Chat templates: Jinja2 as `apply_chat_template` of transformers 5.24 runs it.

mod message;

use std::ops::Range;
use std::path::{Path, PathBuf};

use jiff::Zoned;
use serde_json::{Map, Value};

pub use message::{Message, Rendered, TemplateInputs};

use super::jinja::{Fail, Template};
use super::strftime::strftime;
use crate::{Error, Result};

/// A chat template, parsed: rendered for any number of conversations.
pub struct ChatTemplate {
    source: String,
    template: Template,
    path: PathBuf,
}

/// Bytes of a template; published ones have some thousands.
const LARGEST: usize = 256 << 10;

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
        Ok(Self { source: source.to_owned(), template, path })
    }

    /// Its text.
    pub fn source(&self) -> &str {
        &self.source
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
        Ok(self.run(messages, &TemplateInputs::default(), add_generation_prompt, specials)?.0)
    }

    /// As [`Self::render`], with what the template marks as the assistant's; `inputs` are what it sees beside the messages.
    ///
    /// # Errors
    /// As [`Self::render`]; and a marked block stands within another, a macro, or a block whose text is used later:
    /// there transformers takes other tokens for it than its own.
    pub fn render_marked(
        &self,
        messages: &[Message],
        inputs: &TemplateInputs,
        add_generation_prompt: bool,
        specials: &[(&str, &str)],
    ) -> Result<Rendered> {
        let (text, generated, misplaced) = self.run(messages, inputs, add_generation_prompt, specials)?;
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
        inputs: &TemplateInputs,
        add_generation_prompt: bool,
        specials: &[(&str, &str)],
    ) -> Result<(String, Vec<Range<usize>>, bool)> {
        let messages = serde_json::to_value(messages).map_err(Error::file(&self.path))?;
        let mut variables: Map<String, Value> = Map::new();
        variables.extend(specials.iter().map(|(name, text)| ((*name).to_owned(), Value::from(*text))));
        variables.extend(inputs.kwargs.clone());
        variables.insert("messages".to_owned(), messages);
        variables.insert("tools".to_owned(), inputs.tools.clone().unwrap_or(Value::Null));
        variables.insert("documents".to_owned(), inputs.documents.clone().unwrap_or(Value::Null));
        variables.insert("add_generation_prompt".to_owned(), add_generation_prompt.into());
        let now = |format: &str| strftime(format, &Zoned::now());
        let output = self.template.render(&variables.into(), now).map_err(|e| failed(&self.path, e))?;
        Ok((output.text, output.generated, output.misplaced))
    }
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
