//! Inputs that are read, not learnt: texts or token ids.

use std::path::Path;

use super::resolve::Found;
use crate::arch::ModelConfig;
use crate::formats::jsonl::{self, Example};
use crate::formats::lines;
use crate::formats::tokenizer::Tokenizer;
use crate::{Error, Result};

/// The token ids of every line of a JSONL file of `{"text"}` or `{"input_ids"}`.
pub fn read(path: &Path, found: &Found) -> Result<Vec<Vec<u32>>> {
    let examples = jsonl::examples(path)?;
    // Ids need no tokenizer, and a model may have none.
    let mut tokenizer = None;
    let mut docs = Vec::with_capacity(examples.len());
    for (i, example) in examples.into_iter().enumerate() {
        let place = lines::at(path, i + 1).display().to_string();
        docs.push(match example {
            Example::Text(text) => {
                let tokenizer = match &mut tokenizer {
                    Some(tokenizer) => tokenizer,
                    none => none.insert(found.tokenizer()?),
                };
                encode(tokenizer, &text, &place, &found.config)?
            }
            Example::Ids { input_ids, .. } => checked(input_ids, &place, &found.config)?,
            other => return Err(Error::field(place, "keys", "text or input_ids", other.form())),
        });
    }
    Ok(docs)
}

/// The token ids of a text; `place` names it in errors.
pub fn encode(tokenizer: &Tokenizer, text: &str, place: &str, config: &ModelConfig) -> Result<Vec<u32>> {
    checked(tokenizer.encode(text, true)?.ids, place, config)
}

fn checked(ids: Vec<u32>, place: &str, config: &ModelConfig) -> Result<Vec<u32>> {
    if ids.is_empty() {
        return Err(Error::argument(place, "at least one token", "none"));
    }
    match ids.iter().find(|&&id| id as usize >= config.vocab_size) {
        Some(id) => Err(Error::argument(place, format!("token ids below {}", config.vocab_size), id)),
        None => Ok(ids),
    }
}
