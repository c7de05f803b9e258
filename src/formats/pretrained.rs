//! A model's directory as transformers saves it: what lies beside the weights, and the directory written as a whole.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::atomic;
use crate::arch::Dtype;
use crate::{Error, Result};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";

/// The files beside the weights that say what a model is and how texts become its tokens; those of a tokenizer last.
const BESIDE: [&str; 15] = [
    CONFIG,
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "tokenizer.model",
];

/// Whether a file is of the tokenizer.
pub fn is_of_tokenizer(name: &str) -> bool {
    // There may be several of one release each, such as tokenizer.4.0.0.json.
    name.starts_with("tokenizer") || BESIDE[4..].contains(&name)
}

/// Whether a file lies beside the weights and belongs to the model.
fn is_beside(name: &str) -> bool {
    BESIDE.contains(&name) || is_of_tokenizer(name)
}

/// What lies beside the weights in a model's directory: its configuration and its tokenizer.
///
/// # Errors
/// A file cannot be read.
pub fn beside(dir: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    for path in atomic::entries(dir) {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if let Some(bytes) = if is_beside(name) && path.is_file() { atomic::read_if_there(&path)? } else { None } {
            found.insert(name.to_owned(), bytes);
        }
    }
    Ok(found)
}

/// What the configuration of a model's new weights says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Their dtype, where it is another.
    pub dtype: Option<Dtype>,
    /// Whether the head is no longer tied to the embedding table.
    pub untied: bool,
    /// How they are quantised, where they are.
    pub quantization: Option<Value>,
}

/// Writes a directory with the files of `beside`, the configuration with what has `changed`, and the weights that `weights`
/// writes to the path it is given.
///
/// # Errors
/// `dir` is there and not empty; a configuration that is no JSON object; the file system refuses.
pub fn write(
    dir: &Path,
    mut beside: BTreeMap<String, Vec<u8>>,
    changed: Changed,
    weights: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    // What lies there may be the base model itself, or another that took weeks.
    if let Some(other) = atomic::foreign_entry(dir, &[])? {
        return Err(Error::argument("out", format!("a new or empty directory, {}", dir.display()), other));
    }
    if let Some(config) = beside.get_mut(CONFIG) {
        *config = configured(&dir.join(CONFIG), config, &changed)?;
    }
    beside.retain(|name, _| is_beside(name));
    atomic::replace_dir(dir, &[], |stage| {
        beside.iter().try_for_each(|(name, bytes)| atomic::write(stage.join(name), bytes))?;
        weights(&stage.join(WEIGHTS))
    })
}

/// The configuration for new weights, under the usual name.
fn configured(path: &Path, text: &[u8], changed: &Changed) -> Result<Vec<u8>> {
    let &Changed { dtype, untied, ref quantization } = changed;
    let mut config: Value = serde_json::from_slice(text).map_err(Error::file(path))?;
    let Some(map) = config.as_object_mut() else {
        return Err(Error::field(path, "the file", "an object", "something else"));
    };
    let renamed = map.shift_remove("transformers_weights").is_some();
    if dtype.is_none() && !renamed && !untied && quantization.is_none() {
        return Ok(text.to_vec());
    }
    if untied {
        const TIED: &str = "tie_word_embeddings";
        // A model of texts and images says it for its parts too.
        let parts = map.iter_mut().filter(|(key, _)| key.ends_with("_config"));
        for part in parts.filter_map(|(_, part)| part.as_object_mut()) {
            part.get_mut(TIED).into_iter().for_each(|value| *value = json!(false));
        }
        map.insert(TIED.to_owned(), json!(false));
    }
    if let Some(quantization) = quantization {
        map.insert("quantization_config".to_owned(), quantization.clone());
    }
    if let Some(dtype) = dtype {
        let name = json!(dtype.full_name());
        // A model of texts and images says it for its parts too; older files call it torch_dtype.
        let parts = map.iter_mut().filter(|(key, _)| key.ends_with("_config"));
        for (key, value) in parts.filter_map(|(_, part)| part.as_object_mut()).flatten() {
            if ["dtype", "torch_dtype"].contains(&key.as_str()) {
                *value = name.clone();
            }
        }
        map.shift_remove("torch_dtype");
        map.insert("dtype".to_owned(), name);
    }
    serde_json::to_vec_pretty(&config).map_err(Error::file(path))
}
