//! What tells a model's files from others under the same name, by which work that goes on knows those that it began with.

use serde_json::{Map, Value};

use super::resolve::ModelFiles;
use crate::Result;
use crate::formats::gguf::Gguf;
use crate::formats::pretrained;
use crate::hash::sha256_hex;

impl ModelFiles {
    /// Digests by name: `weights` ([`Checkpoint::fingerprint`](crate::formats::safetensors::Checkpoint::fingerprint), of what `--load-in` makes
    /// of them), `config` and `tokenizer`, as far as there are such files.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn identity(&self) -> Result<Map<String, Value>> {
        let of_files = [("config", self.config_digest()?), ("tokenizer", self.tokenizer_digest()?)];
        let weights = ("weights".to_owned(), self.checkpoint.fingerprint().into());
        let present = of_files.into_iter().filter_map(|(name, digest)| Some((name.to_owned(), digest?.into())));
        Ok([weights].into_iter().chain(present).collect())
    }

    /// SHA-256 of `config.json`, or of those keys of a GGUF file.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn config_digest(&self) -> Result<Option<String>> {
        Ok(digest(match &self.gguf {
            Some(file) => of_keys(file, false),
            None => self.beside()?.into_iter().filter(|(name, _)| name == "config.json").collect(),
        }))
    }

    /// SHA-256 of the files of the tokenizer, or of those keys of a GGUF file.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn tokenizer_digest(&self) -> Result<Option<String>> {
        let beside = match (&self.tokenizer, &self.gguf) {
            (Some(dir), _) => pretrained::beside(dir)?,
            (None, Some(file)) => return Ok(digest(of_keys(file, true))),
            (None, None) => self.beside()?,
        };
        Ok(digest(beside.into_iter().filter(|(name, _)| pretrained::is_of_tokenizer(name)).collect()))
    }
}

/// Of named texts; none where there are none.
fn digest(parts: Vec<(String, Vec<u8>)>) -> Option<String> {
    let parts: Vec<&[u8]> = parts.iter().flat_map(|(name, bytes)| [name.as_bytes(), bytes]).collect();
    (!parts.is_empty()).then(|| sha256_hex(parts))
}

/// The keys of a GGUF file that are those of its tokenizer, or are not.
fn of_keys(file: &Gguf, of_tokenizer: bool) -> Vec<(String, Vec<u8>)> {
    let keys = file.metadata.iter().filter(|(key, _)| key.starts_with("tokenizer.") == of_tokenizer);
    keys.map(|(key, value)| (key.clone(), value.json().to_string().into_bytes())).collect()
}
