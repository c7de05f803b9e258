//! Where soft prompts begin.

use super::Model;
use crate::Result;
use crate::backend::Backend;
use crate::random::Rng;

/// The rows of a soft prompt before any training, as PEFT has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PromptStart {
    /// Embeddings of tokens drawn uniformly, with repetition.
    SampleVocab,
    /// Embeddings of these tokens, cut or repeated to the prompt's length.
    Ids(Vec<u32>),
    /// Normal numbers of mean 0 and variance 1.
    Random,
}

impl PromptStart {
    /// `rows` rows of the embedding table's width `[rows, E]`. The same seed gives the same rows on every device.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If there are no tokens to repeat, or one that the model does not know.
    pub fn rows<B: Backend>(&self, backend: &mut B, model: &Model<B>, rows: usize, seed: u64) -> Result<Vec<f32>> {
        let mut rng = Rng::new(seed);
        let ids: Vec<u32> = match self {
            Self::SampleVocab => (0..rows).map(|_| rng.below(model.config.vocab_size) as u32).collect(),
            Self::Ids(ids) => ids.iter().copied().cycle().take(rows).collect(),
            Self::Random => return Ok(normal(rows * model.config.embed_size, seed)),
        };
        assert!(ids.len() == rows, "prompt: no tokens to begin with");
        model.embeddings(backend, &ids)
    }
}

/// `len` normal numbers of mean 0 and variance 1.
pub fn normal(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = Rng::new(seed);
    (0..len).map(|_| rng.normal() as f32).collect()
}
