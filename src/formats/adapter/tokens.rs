//! Rows of the embedding table that are trained whole beside a LoRA (`trainable_token_indices`). They replace the base model's, in a
//! head that is tied to the table too; a bias of that head stays, which PEFT 0.21.2 leaves out until the adapter is merged.
//!
//! | file (behind `base_model.model.`) | shape | what it is |
//! |---|---|---|
//! | `model.embed_tokens.token_adapter.trainable_tokens_delta` | `[n, E]` | the rows themselves, whatever the name says |

use std::collections::HashSet;

use serde_json::Value;

use super::beside::{Table, Tensors};
use super::selection::{LoraConfig, Wrong, wrong};
use crate::arch::{Family, ModelConfig};
use crate::formats::json::Fields;
use crate::{Error, Result};

const FIELD: &str = "trainable_token_indices";

/// Rows of the embedding table that are an adapter's own.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainedTokens {
    /// The tokens, each once.
    pub ids: Vec<u32>,
    /// Their rows `[n, E]`.
    pub rows: Vec<f32>,
}

impl TrainedTokens {
    /// The name of the rows in an adapter's file; `path` is that of the embedding table.
    pub(super) fn file_name(path: &str) -> String {
        format!("base_model.model.{path}.token_adapter.trainable_tokens_delta")
    }

    /// What a file has of the tokens of its configuration; none where there are no such.
    ///
    /// # Errors
    /// The rows are missing, of another shape, or not finite.
    pub(super) fn read(
        ids: &[u32],
        model: &ModelConfig,
        level: Option<&str>,
        tensors: &mut Tensors<'_>,
    ) -> Result<Option<Self>> {
        if ids.is_empty() {
            return Ok(None);
        }
        let path = model.family.table_path(Table::Embed);
        let path = level.and_then(|level| path.strip_prefix(level)).unwrap_or(path);
        let rows = tensors.load(&Self::file_name(path), &[ids.len(), model.embed_size])?;
        Ok(Some(Self { ids: ids.to_vec(), rows }))
    }
}

/// The tokens of a file: a list for the embedding table, or one under the table's name.
pub(super) fn of_fields(f: &Fields, family: Family) -> Result<Vec<u32>> {
    let expected = "tokens of the embedding table, at least one";
    let table = family.table_path(Table::Embed);
    let list = match f.get(FIELD) {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) if map.is_empty() => return Ok(Vec::new()),
        Some(Value::Object(map)) => match map.iter().next() {
            Some((name, list)) if map.len() == 1 && !name.is_empty() && table.ends_with(name.as_str()) => list,
            _ => return Err(f.error(FIELD, expected)),
        },
        Some(list) => list,
    };
    let ids = list.as_array().filter(|ids| !ids.is_empty()).ok_or_else(|| f.error(FIELD, expected))?;
    let token = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| f.error(FIELD, expected));
    ids.iter().map(token).collect()
}

impl LoraConfig {
    /// Refuses tokens that a model does not have, or that are named twice; others' claims to the same rows.
    ///
    /// # Errors
    /// [`Error::Argument`] with the field.
    pub fn check_tokens(&self, model: &ModelConfig) -> Result<()> {
        self.wrong_tokens(model).map_err(|(field, expected, found)| Error::argument(field, expected, found))
    }

    /// The same, without the file.
    pub(super) fn wrong_tokens(&self, model: &ModelConfig) -> Result<(), Wrong> {
        let ids = &self.trainable_token_indices;
        if ids.is_empty() {
            return Ok(());
        }
        let mut known = HashSet::new();
        if let Some(id) = ids.iter().find(|&&id| id as usize >= model.vocab_size) {
            return Err(wrong(FIELD, format!("tokens below {}", model.vocab_size), id.to_string()));
        }
        if let Some(id) = ids.iter().find(|&&id| !known.insert(id)) {
            return Err(wrong(FIELD, "tokens that are named once", format!("{id} twice")));
        }
        let tied = model.tie_word_embeddings && model.lm_head;
        let of_rows = |path: &str| {
            path == model.family.table_path(Table::Embed) || tied && path == model.family.table_path(Table::Head)
        };
        let saved = self.saved_modules(model).unwrap_or_default();
        let (slots, _) = self.resolve(model.family, model.num_hidden_layers)?;
        let adapted = slots.tables.iter().map(|slot| model.family.table_path(slot.at).to_owned());
        match saved.into_iter().chain(adapted).find(|path| of_rows(path)) {
            None => Ok(()),
            Some(path) => Err(wrong(FIELD, format!("none, where {path} is adapted or trained whole"), "some")),
        }
    }
}
