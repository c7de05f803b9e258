//! What a comparison is given: a model, tasks with their data, and settings.

use std::path::Path;

use serde_json::Value;

use super::settings::CompareSettings;
use crate::arch::ModelConfig;
use crate::formats::tokenizer::Tokenizer;
use crate::hooks::Edit;
use crate::task::{Dataset, Task, Template};

/// The model that adapters are for.
#[derive(Clone, Copy)]
pub struct Base<'a> {
    /// As it was named.
    pub name: &'a str,
    /// What tells its files from others under that name: digests, and where texts end; `null` of none.
    pub files: &'a Value,
    /// Its architecture, against which adapters are checked.
    pub config: &'a ModelConfig,
}

/// A task with its examples.
pub struct Source {
    /// Whose data it is.
    pub task: Task,
    /// How its examples become text.
    pub template: Template,
    /// Examples for the pool.
    pub train: Dataset,
    /// Examples for the queries; may be those of the pool.
    pub test: Dataset,
}

/// A comparison to be made.
pub struct Comparison<'a> {
    /// That of the model.
    pub tokenizer: &'a Tokenizer,
    /// To be trained and judged.
    pub base: Base<'a>,
    /// The tasks. With several, everything trained on each is judged on each.
    pub sources: &'a [Source],
    /// A file of a sentence-encoder's vectors: for every task the tensors `{task}.train` and `{task}.test`, a row for
    /// each example of the data.
    pub vectors: Option<&'a Path>,
    /// What is compared, and how.
    pub settings: &'a CompareSettings,
    /// Edits of the passes in which the model writes, in every arm; trainings are not edited.
    pub edits: &'a [Edit],
    /// Whether what the model wrote is also written example by example, see `compare/samples.rs`.
    pub log_samples: bool,
}
