//! Inputs of a model that is not trained on them: texts or token ids.

use std::path::Path;

use super::resolve::ModelFiles;
use crate::arch::ModelConfig;
use crate::formats::jsonl::{self, Example};
use crate::formats::lines;
use crate::formats::tokenizer::Tokenizer;
use crate::{Error, Result};

/// The token ids of every line of a JSONL file of `{"text"}` or `{"input_ids"}`.
pub fn read(path: &Path, files: &ModelFiles) -> Result<Vec<Vec<u32>>> {
    let examples = jsonl::examples(path)?;
    // Ids need no tokenizer, and a model may have none.
    let mut tokenizer = None;
    let mut docs = Vec::with_capacity(examples.len());
    for (i, example) in examples.into_iter().enumerate() {
        let location = lines::at(path, i + 1).display().to_string();
        docs.push(match example {
            Example::Text(text) => {
                let tokenizer = match &mut tokenizer {
                    Some(tokenizer) => tokenizer,
                    none => none.insert(files.tokenizer()?),
                };
                encode(tokenizer, &text, &location, &files.config)?
            }
            Example::Ids { input_ids, .. } => check_ids(input_ids, &location, &files.config)?,
            other => return Err(Error::field(location, "keys", "text or input_ids", other.form())),
        });
    }
    Ok(docs)
}

/// The token ids of a text; `location` names it in errors.
pub fn encode(tokenizer: &Tokenizer, text: &str, location: &str, config: &ModelConfig) -> Result<Vec<u32>> {
    check_ids(tokenizer.encode(text, true)?.ids, location, config)
}

fn check_ids(ids: Vec<u32>, location: &str, config: &ModelConfig) -> Result<Vec<u32>> {
    if ids.is_empty() {
        return Err(Error::argument(location, "at least one token", "none"));
    }
    match ids.iter().find(|&&id| id as usize >= config.vocab_size) {
        Some(id) => Err(Error::argument(location, format!("token ids below {}", config.vocab_size), id)),
        None => Ok(ids),
    }
}
