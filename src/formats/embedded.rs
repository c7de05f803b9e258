//! The model that is part of the program: a small LLaMA that learns in context, trained by `llamaprobe pretrain`. Its
//! card says on what, and what it can do.

use std::path::Path;

use super::atomic;
use super::safetensors::{Bytes, Checkpoint};
use super::tokenizer::Tokenizer;
use crate::Result;
use crate::arch::ModelConfig;

/// The model's name, which stands where others have a directory.
pub const NAME: &str = "embedded";

/// Puts weights where their elements are aligned.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

static WEIGHTS: &Aligned<[u8]> = &Aligned(*include_bytes!("embedded/learner/model.safetensors"));
const CONFIG: &str = include_str!("embedded/learner/config.json");
const TOKENIZER: &str = include_str!("embedded/learner/tokenizer.json");
const TOKENIZER_CONFIG: &str = include_str!("embedded/learner/tokenizer_config.json");
const CARD: &str = include_str!("embedded/learner/README.md");

/// Its files, as a Hugging Face directory has them.
pub fn files() -> [(&'static str, &'static [u8]); 5] {
    [
        ("README.md", CARD.as_bytes()),
        ("config.json", CONFIG.as_bytes()),
        ("tokenizer.json", TOKENIZER.as_bytes()),
        ("tokenizer_config.json", TOKENIZER_CONFIG.as_bytes()),
        ("model.safetensors", &WEIGHTS.0),
    ]
}

/// What it is.
///
/// # Errors
/// None, in a program whose tests pass; as [`ModelConfig::load`].
pub fn config() -> Result<ModelConfig> {
    ModelConfig::parse(Path::new(NAME).join("config.json"), CONFIG)
}

/// Its weights, in place.
///
/// # Errors
/// None, in a program whose tests pass; as [`Checkpoint::open`].
pub fn checkpoint() -> Result<Checkpoint> {
    Checkpoint::from_bytes(Path::new(NAME).join("model.safetensors"), Bytes::from_static(&WEIGHTS.0))
}

/// Its tokenizer.
///
/// # Errors
/// None, in a program whose tests pass; as [`Tokenizer::load`].
pub fn tokenizer() -> Result<Tokenizer> {
    Tokenizer::parse(NAME, TOKENIZER, TOKENIZER_CONFIG)
}

/// Writes it as a directory, which may hold an earlier export but nothing else.
///
/// # Errors
/// A directory with other files in it, or one that cannot be written.
pub fn export(dir: &Path) -> Result<()> {
    let files = files();
    let names = files.map(|(name, _)| name);
    atomic::replace_dir(dir, &names, |stage| {
        files.iter().try_for_each(|(name, bytes)| atomic::write(stage.join(name), bytes))
    })
}
