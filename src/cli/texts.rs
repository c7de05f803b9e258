//! Inputs of a model that is not trained on them: texts, conversations or token ids.

use std::path::Path;

use super::resolve::ModelFiles;
use crate::arch::ModelConfig;
use crate::formats::atomic;
use crate::formats::jsonl::{self, Example};
use crate::formats::tokenizer::Tokenizer;
use crate::hash::sha256_hex;
use crate::{Error, Result};

/// A text of a flag, in which \\n stands for a newline.
pub fn unescaped(text: &str) -> String {
    text.replace("\\n", "\n")
}

/// The token ids of every row of a file of `{"text"}`, `{"messages"}` or `{"input_ids"}`. Messages go through the chat
/// template, whose text has all special tokens itself; with `add_generation_prompt` it ends where the assistant begins
/// to speak.
pub fn read(path: &Path, files: &ModelFiles, add_generation_prompt: bool) -> Result<Vec<Vec<u32>>> {
    read_with_tokenizer(path, files, add_generation_prompt).map(|(docs, _)| docs)
}

/// The same, with the name and digest of the tokenizer's file, if there was anything for it to do.
pub fn read_with_tokenizer(
    path: &Path,
    files: &ModelFiles,
    add_generation_prompt: bool,
) -> Result<(Vec<Vec<u32>>, Option<String>)> {
    let rows = jsonl::examples(path)?;
    // Ids need no tokenizer, and a model may have none.
    let texts = rows.iter().any(|row| !matches!(row.example, Example::Ids { .. }));
    let tokenizer = texts.then(|| files.tokenizer()).transpose()?;
    let mut docs = Vec::with_capacity(rows.len());
    for row in rows {
        let location = row.location.display().to_string();
        let ids = match (row.example, &tokenizer) {
            (Example::Ids { input_ids, .. }, _) => input_ids,
            (Example::Text(text), Some(tokenizer)) => tokenizer.encode(&text, true)?.ids,
            (Example::Messages(conversation), Some(tokenizer)) if conversation.given == 0 => {
                let count = conversation.messages.len();
                let rendered = conversation.render(&row.location, tokenizer, count, add_generation_prompt)?;
                tokenizer.encode(&rendered.text, false)?.ids
            }
            (other, _) => return Err(Error::field(location, "keys", "text, messages or input_ids", other.form())),
        };
        docs.push(check_ids(ids, &location, &files.config)?);
    }
    Ok((docs, tokenizer.map(|tokenizer| identity(&tokenizer)).transpose()?))
}

/// The name of a tokenizer's file, and the digest of what is in it.
fn identity(tokenizer: &Tokenizer) -> Result<String> {
    let path = tokenizer.path();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let Some(bytes) = atomic::read_if_there(path)? else { return Ok(name.into_owned()) };
    Ok(format!("{name} sha256:{}", sha256_hex([bytes.as_slice()])))
}

/// The token ids of a text; `location` names it in errors.
pub fn encode(tokenizer: &Tokenizer, text: &str, location: &str, config: &ModelConfig) -> Result<Vec<u32>> {
    check_ids(tokenizer.encode(text, true)?.ids, location, config)
}

/// Refuses token ids that are none of the model's, or none at all; `location` names them in errors.
pub fn check_ids(ids: Vec<u32>, location: &str, config: &ModelConfig) -> Result<Vec<u32>> {
    if ids.is_empty() {
        return Err(Error::argument(location, "at least one token", "none"));
    }
    match ids.iter().find(|&&id| id as usize >= config.vocab_size) {
        Some(id) => Err(Error::argument(location, format!("token ids below {}", config.vocab_size), id)),
        None => Ok(ids),
    }
}
