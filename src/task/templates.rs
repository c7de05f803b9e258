//! All templates, and how they are filled.
//!
//! A template has two strings: `query` holds `{input}`, `answer` holds `{output}`; `{{` and `}}` are literal braces. A
//! demonstration is both, filled, one after the other. The text that is learned or scored is the filled answer
//! without the template's trailing white space, which only separates a demonstration from what follows: with the
//! default sentiment template that is ` positive`, not ` positive\n\n`.
//!
//! What fills `{input}` is text. Where a data set has structures (tables, triples, schemas), a [`Linear`] template, of
//! the syntax of chat templates, makes the text.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::example::Example;
use crate::formats::{jinja, yaml};
use crate::{Error, Result};

/// Query and answer of binary sentiment.
pub const SENTIMENT: (&str, &str) = ("Review: {input}\nSentiment:", " {output}\n\n");

/// Query and answer of translation from English to Czech.
pub const TRANSLATION: (&str, &str) = ("English: {input}\nCzech:", " {output}\n\n");

/// Query and answer of text from a table.
pub const TABLE: (&str, &str) = ("Table: {input}\nSentence:", " {output}\n\n");

/// Query and answer of text from triples.
pub const TRIPLES: (&str, &str) = ("Triples: {input}\nSentence:", " {output}\n\n");

/// Query and answer of text from a logical form.
pub const LOGIC: (&str, &str) = ("{input}\nSentence:", " {output}\n\n");

/// Query and answer of SQL from a question.
pub const QUESTION: (&str, &str) = ("Question: {input}\nSQL:", " {output}\n\n");

/// Query and answer of a parse from an utterance.
pub const UTTERANCE: (&str, &str) = ("Utterance: {input}\nParse:", " {output}\n\n");

/// Query and answer of a sentence of the invented world.
pub const SYNTHETIC: (&str, &str) = ("{input} ->", " {output}\n");

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
}

/// A template as written, before the check.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Strings {
    query: Option<String>,
    answer: Option<String>,
}

impl TryFrom<Strings> for Template {
    type Error = Error;

    fn try_from(s: Strings) -> Result<Self> {
        let missing = |key: &str| Error::argument(format!("template.{key}"), "a string", "nothing");
        Self::new(&s.query.ok_or_else(|| missing("query"))?, &s.answer.ok_or_else(|| missing("answer"))?)
    }
}

impl Template {
    /// A template of the two strings.
    ///
    /// # Errors
    /// `query` lacks `{input}`, `answer` lacks `{output}`, either names anything else in braces or has a brace alone.
    pub fn new(query: &str, answer: &str) -> Result<Self> {
        check("template.query", query, "input")?;
        check("template.answer", answer, "output")?;
        Ok(Self { query: query.to_string(), answer: answer.to_string() })
    }

    /// Reads a template as a user writes it: a YAML (hence also JSON) mapping with the keys `query` and `answer`, such as
    /// `{query: "Text: {input}\nLabel:", answer: " {output}\n"}`. A key left out is that of `default`.
    ///
    /// # Errors
    /// The value is no such mapping, or the template is not valid (see [`Template::new`]).
    pub fn parse(value: &str, default: &Template) -> Result<Self> {
        let strings: Strings = yaml::parse(value).map_err(|e| {
            Error::argument("template", "a mapping with the keys query and answer", format!("{value:?} ({e})"))
        })?;
        Self::new(
            strings.query.as_deref().unwrap_or(&default.query),
            strings.answer.as_deref().unwrap_or(&default.answer),
        )
    }

    /// The query of an example.
    pub fn query(&self, example: &Example) -> String {
        fill(&self.query, &example.input)
    }

    /// A demonstration: query and answer, with the separator that ends it.
    pub fn demonstration(&self, example: &Example) -> String {
        self.query(example) + &fill(&self.answer, &example.output)
    }

    /// The string at which an answer is over: the first line end, where the template ends an answer with one.
    pub fn stop(&self) -> Option<&'static str> {
        self.answer[self.answer.trim_end().len()..].contains('\n').then_some("\n")
    }

    /// The answer that is learned or scored: without the template's trailing white space.
    pub fn answer(&self, output: &str) -> String {
        fill(self.answer.trim_end(), output)
    }
}

/// Replaces the placeholder and unfolds doubled braces; the template is valid.
fn fill(template: &str, value: &str) -> String {
    let mut out = String::with_capacity(template.len() + value.len());
    let mut chars = template.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '{' | '}' if chars.peek() == Some(&c) => {
                chars.next();
                out.push(c);
            }
            '{' => {
                out.push_str(value);
                chars.by_ref().find(|&c| c == '}');
            }
            c => out.push(c),
        }
    }
    out
}

/// Requires exactly one `{placeholder}` and no other single brace.
fn check(field: &str, template: &str, placeholder: &str) -> Result<()> {
    let error = |found: String| {
        let expected = format!("one {{{placeholder}}} (literal braces are doubled: {{{{ and }}}})");
        Err(Error::argument(field, expected, found))
    };
    let mut count = 0;
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        let brace = &rest[at..=at];
        if rest[at + 1..].starts_with(brace) {
            rest = &rest[at + 2..];
            continue;
        }
        let Some(end) = rest[at..].find('}').filter(|_| brace == "{") else {
            return error(format!("{template:?}, with a single {brace}"));
        };
        let name = &rest[at + 1..at + end];
        if name != placeholder {
            return error(format!("{template:?}, with {{{name}}}"));
        }
        count += 1;
        rest = &rest[at + end + 1..];
    }
    match count {
        1 => Ok(()),
        n => error(format!("{template:?}, with {n}")),
    }
}
