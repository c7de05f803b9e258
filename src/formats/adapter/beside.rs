//! What an adapter has outside the blocks' projections: LoRA of the embedding table and of the head, and modules that are trained
//! whole (`modules_to_save`).
//!
//! | file (behind `base_model.model.`) | shape | what it is |
//! |---|---|---|
//! | `model.embed_tokens.lora_embedding_A` | `[R, V]` | A of the table: token t reads column t |
//! | `model.embed_tokens.lora_embedding_B` | `[E, R]` | its B |
//! | `lm_head.lora_A.weight`, `lm_head.lora_B.weight` | `[R, E]`, `[V, R]` | those of the head |
//! | `model.embed_tokens.base_layer.weight`, `lm_head.base_layer.weight` | `[V, E]` | the base model's own, which PEFT saves (`save_embedding_layers`) where `target_modules` names `embed_tokens` or `lm_head` |
//! | `lm_head.base_layer.bias` | `[V]` | the same of a head that has one |
//! | `lm_head.weight`, `model.norm.weight`, ... | as in the base model's file | the copies of `modules_to_save` |

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use super::names::todays_name;
use crate::arch::{Family, ModelConfig};
use crate::formats::safetensors::Checkpoint;
use crate::{Error, Result};

/// A table of a row for each token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Table {
    /// The embedding table.
    Embed,
    /// The output projection (`lm_head`), whose rows are logits of tokens.
    Head,
}

impl Table {
    /// Both, in the order of a forward.
    pub const ALL: [Self; 2] = [Self::Embed, Self::Head];
}

/// Where a configuration adapts a table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TableSlot {
    /// The adapted table.
    pub at: Table,
    /// Rank R.
    pub r: usize,
    /// Multiplier of `B A`.
    pub scale: f64,
}

/// A LoRA of a table: `W + scale * (B A)^T` of the embedding table, `W + scale * B A` of the head.
#[derive(Clone, Debug, PartialEq)]
pub struct TableLora {
    /// The adapted table.
    pub at: Table,
    /// Rank R, at least 1.
    pub r: usize,
    /// Multiplier of `B A`.
    pub scale: f64,
    /// A: `[R, V]` of the embedding table, `[R, E]` of the head.
    pub a: Vec<f32>,
    /// B: `[E, R]` of the embedding table, `[V, R]` of the head.
    pub b: Vec<f32>,
    /// The base model's own, where the file has it.
    pub base: Option<Arc<BaseTable>>,
}

/// A table of the base model.
#[derive(Clone, Debug, PartialEq)]
pub struct BaseTable {
    /// `[V, E]`.
    pub weight: Vec<f32>,
    /// `[V]`, of a head that has one.
    pub bias: Option<Vec<f32>>,
}

impl TableLora {
    /// A and B of zeros.
    pub fn zeros(TableSlot { at, r, scale }: TableSlot, model: &ModelConfig) -> Self {
        let [a, b] = shapes(at, r, model);
        Self { at, r, scale, a: vec![0.0; a[0] * a[1]], b: vec![0.0; b[0] * b[1]], base: None }
    }

    /// The tensors of a file: name, shape, elements.
    pub(super) fn tensors(&self, family: Family) -> Vec<(String, Vec<usize>, Cow<'_, [f32]>)> {
        let [a, b] = names(family.table_path(self.at), self.at);
        let (by_a, by_b) = (self.a.len() / self.r, self.b.len() / self.r);
        let mut tensors = vec![
            (a, vec![self.r, by_a], Cow::Borrowed(self.a.as_slice())),
            (b, vec![by_b, self.r], Cow::Borrowed(self.b.as_slice())),
        ];
        if let Some(base) = &self.base {
            let shape = if self.at == Table::Embed { [by_a, by_b] } else { [by_b, by_a] };
            let [weight, bias] = base_names(family.table_path(self.at));
            tensors.push((weight, shape.to_vec(), Cow::Borrowed(base.weight.as_slice())));
            tensors
                .extend(base.bias.iter().map(|values| (bias.clone(), vec![values.len()], Cow::Borrowed(&values[..]))));
        }
        tensors
    }

    /// What a file has for a slot.
    ///
    /// # Errors
    /// A or B is missing, or a tensor is of another shape or not finite.
    pub(super) fn read(slot: TableSlot, model: &ModelConfig, path: &str, tensors: &mut Tensors<'_>) -> Result<Self> {
        let TableSlot { at, r, scale } = slot;
        let ([a, b], [a_shape, b_shape]) = (names(path, at), shapes(at, r, model));
        let (a, b) = (tensors.load(&a, &a_shape)?, tensors.load(&b, &b_shape)?);
        let [weight, bias] = base_names(path);
        let base = match tensors.load_if_there(&weight, &[model.vocab_size, model.embed_size])? {
            Some(weight) => {
                let biased = at == Table::Head && model.head_bias;
                let bias = if biased { tensors.load_if_there(&bias, &[model.vocab_size])? } else { None };
                Some(Arc::new(BaseTable { weight, bias }))
            }
            None => None,
        };
        Ok(Self { at, r, scale, a, b, base })
    }
}

/// A tensor of a module that is trained whole.
#[derive(Clone, Debug, PartialEq)]
pub struct SavedTensor {
    /// As transformers names it in the base model: `model.norm.weight`.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Its elements.
    pub values: Vec<f32>,
}

impl SavedTensor {
    /// Its name in an adapter's file.
    pub(super) fn file_name(&self) -> String {
        format!("base_model.model.{}", self.name)
    }

    /// The tensors of a module, of which there is a weight.
    ///
    /// # Errors
    /// There is none, or one that is not finite.
    pub(super) fn of_module(path: &str, level: Option<&str>, tensors: &mut Tensors<'_>) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for end in ["weight", "bias"] {
            let name = format!("{path}.{end}");
            let of_file = level.and_then(|level| name.strip_prefix(level)).unwrap_or(&name);
            let of_file = format!("base_model.model.{of_file}");
            let Some(shape) = tensors.tensors.get(&of_file).map(|view| view.shape.clone()) else {
                if end == "weight" {
                    // Says that it is missing.
                    tensors.load(&of_file, &[])?;
                }
                continue;
            };
            found.push(Self { values: tensors.load(&of_file, &shape)?, name, shape });
        }
        Ok(found)
    }
}

/// Shapes of A and B.
fn shapes(at: Table, r: usize, model: &ModelConfig) -> [[usize; 2]; 2] {
    let (vocab, width) = (model.vocab_size, model.embed_size);
    match at {
        Table::Embed => [[r, vocab], [width, r]],
        Table::Head => [[r, width], [vocab, r]],
    }
}

/// Names of A and B in a file.
fn names(path: &str, at: Table) -> [String; 2] {
    ["A", "B"].map(|part| match at {
        Table::Embed => format!("base_model.model.{path}.lora_embedding_{part}"),
        Table::Head => format!("base_model.model.{path}.lora_{part}.weight"),
    })
}

/// Names of the base model's weight and bias in a file.
fn base_names(path: &str) -> [String; 2] {
    ["weight", "bias"].map(|kind| format!("base_model.model.{path}.base_layer.{kind}"))
}

/// The tensors of an adapter's file, of which those that have been read are known.
pub(super) struct Tensors<'a> {
    pub file: &'a Path,
    pub tensors: &'a Checkpoint,
    pub family: Family,
    pub known: HashSet<String>,
}

impl Tensors<'_> {
    /// The name in the file of a tensor: PEFT also reads the one with the adapter's name in it, and that of an older release.
    fn spelling(&self, name: &str) -> Option<String> {
        let long = match name.strip_suffix(".weight") {
            Some(path) => format!("{path}.default.weight"),
            None => format!("{name}.default"),
        };
        let there = |name: &str| self.tensors.get(name).is_some();
        let older = || self.tensors.names().find(|other| todays_name(other, self.family) == name).map(str::to_owned);
        [long, name.to_owned()].into_iter().find(|name| there(name)).or_else(older)
    }

    /// Whether the file has the tensor.
    pub fn has(&self, name: &str) -> bool {
        self.spelling(name).is_some()
    }

    /// Elements of the tensor, in row-major order.
    ///
    /// # Errors
    /// It is missing, of another shape, or not finite.
    pub fn load(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let name = self.spelling(name).unwrap_or_else(|| name.to_owned());
        let view = self.tensors.expect(&name, shape)?;
        self.known.insert(name);
        view.check_finite().and_then(|()| view.to_f32()).map_err(Error::file(self.file))
    }

    /// The same of one that may be missing.
    pub fn load_if_there(&mut self, name: &str, shape: &[usize]) -> Result<Option<Vec<f32>>> {
        self.has(name).then(|| self.load(name, shape)).transpose()
    }
}
