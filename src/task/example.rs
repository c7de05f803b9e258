//! The examples of a data set: what every task's readers give and everything after them takes.

use std::collections::BTreeMap;

/// One example: an input and its gold output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Example {
    /// The text that fills a template's `{input}`.
    pub input: String,
    /// The text that fills `{output}`: the first gold output, and the only one that is shown or learnt.
    pub output: String,
    /// Further gold outputs, which only metrics read.
    pub references: Vec<String>,
    /// The logical form that an output must agree with, where a metric needs it (Logic2Text).
    pub logical_form: Option<String>,
    /// The answers among which the output is, where every row has its own.
    pub choices: Option<Vec<String>>,
    /// The columns of the row, which templates may name; none where a reader of an original file made the example.
    pub columns: BTreeMap<String, String>,
}

impl Example {
    /// With one gold output.
    pub fn new(input: impl Into<String>, output: impl Into<String>) -> Self {
        Self { input: input.into(), output: output.into(), ..Self::default() }
    }

    /// Every gold output, `output` first.
    pub fn gold(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.output).chain(&self.references).map(String::as_str)
    }
}

/// The examples of a file, and what is not among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dataset {
    /// In the file's order.
    pub examples: Vec<Example>,
    /// Number of rows that are no examples, by reason.
    pub skipped: BTreeMap<&'static str, usize>,
}

impl Dataset {
    /// Adds an example, or counts why there is none.
    pub(super) fn push(&mut self, row: Result<Example, &'static str>) {
        match row {
            Ok(example) => self.examples.push(example),
            Err(reason) => *self.skipped.entry(reason).or_default() += 1,
        }
    }
}

impl From<Vec<Example>> for Dataset {
    fn from(examples: Vec<Example>) -> Self {
        Self { examples, skipped: BTreeMap::new() }
    }
}
