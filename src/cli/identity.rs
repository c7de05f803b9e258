//! What tells a model's files from others under the same name, by which work that goes on knows those that it began with.

use serde_json::{Map, Value};

use super::resolve::ModelFiles;
use crate::Result;
use crate::formats::gguf::Gguf;
use crate::formats::pretrained;
use crate::hash::sha256_hex;

impl ModelFiles {
    /// Digests by name: `weights` ([`Checkpoint::fingerprint`](crate::formats::safetensors::Checkpoint::fingerprint), of what `--load-in` makes
    /// of them), `config` and `tokenizer` (SHA-256 of the files, or of those keys of a GGUF file), as far as there are such files.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn identity(&self) -> Result<Map<String, Value>> {
        let mut all = Map::from_iter([("weights".to_owned(), self.checkpoint.fingerprint().into())]);
        let (config, tokenizer) = match &self.gguf {
            Some(file) => (of_keys(file, false), of_keys(file, true)),
            None => {
                let (tokenizer, config): (Vec<_>, Vec<_>) =
                    self.beside()?.into_iter().partition(|(name, _)| pretrained::is_of_tokenizer(name));
                (config.into_iter().filter(|(name, _)| name == "config.json").collect(), tokenizer)
            }
        };
        let tokenizer = match &self.tokenizer {
            Some(dir) => {
                pretrained::beside(dir)?.into_iter().filter(|(name, _)| pretrained::is_of_tokenizer(name)).collect()
            }
            None => tokenizer,
        };
        all.extend([("config", config), ("tokenizer", tokenizer)].into_iter().filter_map(|(what, parts)| {
            let parts: Vec<&[u8]> = parts.iter().flat_map(|(name, bytes)| [name.as_bytes(), bytes]).collect();
            (!parts.is_empty()).then(|| (what.to_owned(), sha256_hex(parts).into()))
        }));
        Ok(all)
    }
}

/// The keys of a GGUF file that are those of its tokenizer, or are not.
fn of_keys(file: &Gguf, of_tokenizer: bool) -> Vec<(String, Vec<u8>)> {
    let keys = file.metadata.iter().filter(|(key, _)| key.starts_with("tokenizer.") == of_tokenizer);
    keys.map(|(key, value)| (key.clone(), value.json().to_string().into_bytes())).collect()
}
