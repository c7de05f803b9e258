//! Where soft prompts begin.

use super::Model;
use crate::Result;
use crate::backend::{AccElement, Backend};
use crate::pack::{Label, PackBuilder, Parent, Token};
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

impl<B: Backend> Model<B> {
    /// The rows `[ids, C]` of the embedding table.
    ///
    /// # Errors
    /// If the device fails.
    pub fn embeddings(&self, backend: &mut B, ids: &[u32]) -> Result<Vec<f32>> {
        let mut builder = PackBuilder::default();
        let tokens: Vec<Token> = ids.iter().map(|&id| Token::Id(id)).collect();
        builder.push(&tokens, Parent::None, None, Label::Text);
        let pack = backend.pack(&builder.build())?;
        let width = self.config.embed_size;
        let mut out = backend.acc(ids.len() * width)?;
        backend.embed_fwd(&mut out, &pack, &self.weights.embed, None, width);
        let mut host = vec![B::Element::default(); ids.len() * width];
        backend.download(&mut host, &out, 0)?;
        backend.sync()?;
        Ok(host.into_iter().map(|x| x.to_f64() as f32).collect())
    }
}
