//! Templates, and how they are filled.
//!
//! A template has two strings: `query` names columns of the data in braces, of which `{input}` is the one that the task has for
//! its input; `answer` holds `{output}`, the text of the label or the answer; `{{` and `}}` are literal braces. A
//! demonstration is both, filled, one after the other. The text that is learned or scored is the filled answer
//! without the template's trailing white space, which only separates a demonstration from what follows: with the
//! default sentiment template that is ` positive`, not ` positive\n\n`.
//!
//! For a model that was tuned to converse, demonstrations and query may be turns of a conversation that its own chat template
//! makes a text of ([`Template::with_chat`]).
//!
//! What fills `{input}` is text. Where a data set has structures (tables, triples, schemas), a [`Linear`] template, of
//! the syntax of chat templates, makes the text.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::example::Example;
use crate::formats::{jinja, yaml};
use crate::{Error, Result};

/// The linearisation of a data set's structures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linear {
    /// Triples as `s : r : o | s : r : o` (the form of DART's own baselines).
    Dart,
    /// Highlighted cells with their headers, tagged as in ToTTo's own preprocessing.
    Totto,
    /// Caption and columns, where there are any, and the logic.
    Logic2Text,
    /// Question, database, and each table with its columns.
    Spider,
}

impl Linear {
    /// Every linearisation with its template.
    const ALL: [(Self, &str); 4] = [
        (Self::Dart, "{% for s, r, o in triples %}{{ s }} : {{ r }} : {{ o }}{{ ' | ' if not loop.last }}{% endfor %}"),
        (
            Self::Totto,
            "{% if page %}<page_title> {{ page }} </page_title> {% endif %}\
             {% if section %}<section_title> {{ section }} </section_title> {% endif %}\
             <table> {% for cell in cells %}<cell> {{ cell.value }} \
             {% for h in cell.column_headers %}<col_header> {{ h }} </col_header> {% endfor %}\
             {% for h in cell.row_headers %}<row_header> {{ h }} </row_header> {% endfor %}\
             </cell> {% endfor %}</table>",
        ),
        (
            Self::Logic2Text,
            "{% if caption %}Caption: {{ caption }}\nColumns: {{ columns | join(' | ') }}\n{% endif %}Logic: {{ logic }}",
        ),
        (
            Self::Spider,
            "{{ question }} | {{ database }}\
             {% for table in tables %} | {{ table.name }} : {{ table.columns | join(' , ') }}{% endfor %}",
        ),
    ];
}

/// The text of a structure.
///
/// # Errors
/// The values do not fit the template.
pub fn linearise(linear: Linear, values: &serde_json::Value) -> Result<String> {
    static TEMPLATES: LazyLock<Vec<(Linear, jinja::Template)>> = LazyLock::new(|| {
        let parse = |text: &str| jinja::Template::parse(text).expect("templates: built-in linearisations are valid");
        Linear::ALL.into_iter().map(|(linear, text)| (linear, parse(text))).collect()
    });
    let found = TEMPLATES.iter().find(|(known, _)| *known == linear);
    let (_, template) = found.expect("templates: every linearisation has one");
    let made = template.render(values, |_| String::new());
    made.map(|made| made.text).map_err(|e| Error::argument("linearisation", "values that fit", e))
}

/// The two strings of a template, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Strings")]
pub struct Template {
    query: String,
    answer: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    chat: bool,
}

/// A template as written, before the check.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Strings {
    query: Option<String>,
    answer: Option<String>,
    chat: Option<bool>,
}

impl Strings {
    /// The template, of which a key that is left out is that of `default`.
    pub(super) fn or(self, default: &Template) -> Result<Template> {
        let Self { query, answer, chat } = self;
        let (query, answer) =
            (query.as_deref().unwrap_or(&default.query), answer.as_deref().unwrap_or(&default.answer));
        Ok(Template::new(query, answer)?.with_chat(chat.unwrap_or(default.chat)))
    }
}

/// A demonstration: a filled query, and the answer to it with the separator that ends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// As a query that is asked.
    pub query: String,
    /// What follows it.
    pub answer: String,
}

impl TryFrom<Strings> for Template {
    type Error = Error;

    fn try_from(s: Strings) -> Result<Self> {
        let missing = |key: &str| Error::argument(format!("template.{key}"), "a string", "nothing");
        let template =
            Self::new(&s.query.ok_or_else(|| missing("query"))?, &s.answer.ok_or_else(|| missing("answer"))?)?;
        Ok(template.with_chat(s.chat.unwrap_or_default()))
    }
}

impl Template {
    /// A template of the two strings.
    ///
    /// # Errors
    /// `query` has nothing in braces, or `{output}`; `answer` lacks `{output}`, has it twice or names anything else in braces;
    /// either has a brace alone. Whether there are such columns only the data say, see [`Template::check_columns`].
    pub fn new(query: &str, answer: &str) -> Result<Self> {
        let names = placeholders("template.query", query, "a column such as {input}")?;
        let expected = "columns such as {input}, and not {output}";
        if names.is_empty() || names.contains(&"output") {
            return Err(Error::argument("template.query", expected, found(query, &names)));
        }
        let names = placeholders("template.answer", answer, "one {output}")?;
        if names != ["output"] {
            return Err(Error::argument(
                "template.answer",
                "one {output} and nothing else in braces",
                found(answer, &names),
            ));
        }
        Ok(Self { query: query.to_string(), answer: answer.to_string(), chat: false })
    }

    /// The same as turns of a conversation, or not: queries are what the user says and answers what the assistant says, both without
    /// white space around them, in the text that the model's chat template makes of them.
    pub fn with_chat(self, chat: bool) -> Self {
        Self { chat, ..self }
    }

    /// Whether demonstrations and queries are turns of a conversation.
    pub fn is_chat(&self) -> bool {
        self.chat
    }

    /// Reads a template as a user writes it: a YAML (hence also JSON) mapping with the keys `query`, `answer` and `chat`, such as
    /// `{query: "Text: {input}\nLabel:", answer: " {output}\n"}`. A key left out is that of `default`.
    ///
    /// # Errors
    /// The value is no such mapping, or the template is not valid (see [`Template::new`]).
    pub fn parse(value: &str, default: &Template) -> Result<Self> {
        let strings: Strings = yaml::parse(value).map_err(|e| {
            Error::argument(
                "template",
                "a mapping with the keys query and answer (and chat)",
                format!("{value:?} ({e})"),
            )
        })?;
        strings.or(default)
    }

    /// The columns that a query names beside the input, by their names in the data.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        let names = placeholders("template.query", &self.query, "").expect("templates: a template is checked");
        names.into_iter().filter(|name| *name != "input")
    }

    /// Checks that examples have the columns that queries name.
    ///
    /// # Errors
    /// One has not.
    pub fn check_columns<'a>(&self, examples: impl IntoIterator<Item = &'a Example>) -> Result<()> {
        let named: Vec<&str> = self.columns().collect();
        for example in examples.into_iter().filter(|_| !named.is_empty()) {
            if let Some(name) = named.iter().find(|name| !example.columns.contains_key(**name)) {
                let known = example.columns.keys().map(|column| format!(", {{{column}}}")).collect::<String>();
                let row = crate::formats::json::show(&example.input.as_str().into());
                let found = format!("{{{name}}}, which the row {row} has not");
                return Err(Error::argument("template.query", format!("{{input}}{known}"), found));
            }
        }
        Ok(())
    }

    /// The query of an example, which has the columns that it names.
    pub fn query(&self, example: &Example) -> String {
        fill(&self.query, |name| match name {
            "input" => &example.input,
            column => example.columns.get(column).map_or("", String::as_str),
        })
    }

    /// A demonstration.
    pub fn turn(&self, example: &Example) -> Turn {
        Turn { query: self.query(example), answer: fill(&self.answer, |_| &example.output) }
    }

    /// A demonstration as text: query and answer, with the separator that ends it.
    pub fn demonstration(&self, example: &Example) -> String {
        let Turn { query, answer } = self.turn(example);
        query + &answer
    }

    /// The string at which an answer is over: the first line end, where the template ends an answer with one. A turn of a
    /// conversation ends with the model's own end of a turn alone.
    pub fn stop(&self) -> Option<&'static str> {
        (!self.chat && self.answer[self.answer.trim_end().len()..].contains('\n')).then_some("\n")
    }

    /// The answer that is learned or scored: without the template's trailing white space.
    pub fn answer(&self, output: &str) -> String {
        fill(self.answer.trim_end(), |_| output)
    }
}

/// Replaces the placeholders and unfolds doubled braces; the template is valid.
fn fill<'a>(template: &str, value: impl Fn(&str) -> &'a str) -> String {
    let mut out = String::with_capacity(2 * template.len());
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if rest.starts_with("{{") || rest.starts_with("}}") {
            out.push_str(&rest[..1]);
            rest = &rest[2..];
        } else {
            let end = rest.find('}').unwrap_or(rest.len() - 1);
            out.push_str(value(&rest[1..end]));
            rest = &rest[end + 1..];
        }
    }
    out + rest
}

/// The names in braces, in their order; doubled braces are text.
fn placeholders<'a>(field: &str, template: &'a str, expected: &str) -> Result<Vec<&'a str>> {
    let mut names = Vec::new();
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        let brace = &rest[at..=at];
        if rest[at + 1..].starts_with(brace) {
            rest = &rest[at + 2..];
            continue;
        }
        let name = rest[at + 1..].split('}').next().filter(|name| brace == "{" && at + 1 + name.len() < rest.len());
        let Some(name) = name.filter(|name| !name.contains('{')) else {
            let expected = format!("{expected} (literal braces are doubled: {{{{ and }}}})");
            return Err(Error::argument(field, expected, format!("{template:?}, with a single {brace}")));
        };
        names.push(name);
        rest = &rest[at + name.len() + 2..];
    }
    Ok(names)
}

/// A template and the names in its braces, for an error.
fn found(template: &str, names: &[&str]) -> String {
    match names {
        [] => format!("{template:?}, with 0"),
        ["output", "output", ..] => format!("{template:?}, with {}", names.len()),
        names => format!("{template:?}, with {{{}}}", names.join("} and {")),
    }
}
