//! Rows of the embedding table that a run trains (PEFT's `trainable_token_indices`): where they lie in its parameters, and what a
//! tied head computes with.
//!
//! The head that is tied to the table has `W x` of the base model's rows; to the logits of trained tokens it adds `(T - W) x`, by a
//! LoRA whose A are these differences and whose B is a one for each token.

use crate::arch::ModelConfig;
use crate::backend::ops::{EditFwd, EditMap, EmbedFwd, LoraSite, RunRange};
use crate::backend::{AccElement, Backend, TensorMut};
use crate::formats::adapter::TrainedTokens;
use crate::pack::{Label, PackBuilder, Parent, Token};
use crate::{Error, Result};

/// Where the trained rows lie in the parameters of a run; such a layout is of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenSite {
    /// The tokens, in the order of their rows.
    pub ids: Vec<u32>,
    /// The first row, of rows of E elements.
    pub first: usize,
    /// Whether the head is tied to the table.
    pub tied: bool,
    width: usize,
    vocab: usize,
}

impl TokenSite {
    /// The rows of an adapter, behind `from` elements.
    ///
    /// # Errors
    /// Rows of other tokens than the model's, or of another width; a tied head whose logits are capped.
    pub(super) fn new(config: &ModelConfig, TrainedTokens { ids, rows }: &TrainedTokens, from: usize) -> Result<Self> {
        let refuse = |expected: String, found: String| Err(Error::argument("trainable_token_indices", expected, found));
        let (width, vocab, tied) = (config.embed_size, config.vocab_size, config.tie_word_embeddings && config.lm_head);
        if let Some(cap) = config.logit_softcap.filter(|_| tied) {
            let expected = "none, of a model that caps the logits of a tied head";
            return refuse(expected.to_owned(), format!("a cap of {cap}"));
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
            return refuse(format!("tokens below {vocab}"), id.to_string());
        }
        if rows.len() != ids.len() * width {
            return refuse(format!("rows of {width} elements"), format!("{} of {} rows", rows.len(), ids.len()));
        }
        Ok(Self { ids: ids.clone(), first: from.div_ceil(width), tied, width, vocab })
    }

    /// Elements up to the end of the rows.
    pub(super) fn end(&self) -> usize {
        (self.first + self.ids.len()) * self.width
    }

    /// The elements of the rows in a run.
    pub(super) fn elements(&self) -> std::ops::Range<usize> {
        self.first * self.width..self.end()
    }

    /// The LoRA of a tied head, in a buffer of its own ([`TokenHead`]).
    pub(super) fn head(&self) -> Option<LoraSite> {
        let (rank, input, output) = (self.ids.len(), self.width, self.vocab);
        let (b, stride) = (rank * input, rank * input + output * rank);
        self.tied.then_some(LoraSite { a: 0, b, stride, rank, input, output, scale: 1.0, runs: RunRange::ALL })
    }

    /// Elements of what a tied head computes with.
    pub(crate) fn materialized(&self) -> usize {
        self.head().map_or(0, |site| site.stride + site.b)
    }
}

/// The rows of a pass whose tokens are trained.
pub(super) struct TokenRows<B: Backend> {
    /// Rows of the pass, and where their tokens' rows lie in the parameters.
    pub all: [B::Index; 2],
    /// The same of those that have a gradient (all but torch's `padding_idx`), and their numbers from 0 on.
    pub trainable: Option<[B::Index; 3]>,
}

impl<B: Backend> TokenRows<B> {
    /// Of rows of the pass with those of the parameters; `padding` is the one without a gradient. None where there are no rows.
    ///
    /// # Errors
    /// If the device has no memory for them.
    pub fn new(backend: &mut B, rows: &[(u32, u32)], padding: Option<u32>) -> Result<Option<Self>> {
        if rows.is_empty() {
            return Ok(None);
        }
        let mut index = |rows: &mut dyn Iterator<Item = u32>| backend.index(&rows.collect::<Vec<_>>());
        let all = [index(&mut rows.iter().map(|row| row.0))?, index(&mut rows.iter().map(|row| row.1))?];
        let trainable: Vec<_> = rows.iter().filter(|row| Some(row.1) != padding).collect();
        let trainable = match trainable.len() {
            0 => None,
            count => Some([
                index(&mut trainable.iter().map(|row| row.0))?,
                index(&mut trainable.iter().map(|row| row.1))?,
                index(&mut (0..count as u32))?,
            ]),
        };
        Ok(Some(Self { all, trainable }))
    }
}

/// What a tied head computes with.
pub(super) struct TokenHead<B: Backend> {
    /// Differences `[n, E]`, then the ones `[V, n]`.
    pub lora: B::Acc,
    /// The base model's rows `[n, E]`.
    base: B::Acc,
    /// The rows among the parameters.
    pub rows: B::Index,
    /// `0..n`.
    all: B::Index,
    width: usize,
}

impl<B: Backend> TokenHead<B> {
    /// Of tokens of this table `[V, E]`; none where the head is not tied to it. To be refreshed before it is used.
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn new(backend: &mut B, table: &B::Weight, tokens: &TokenSite) -> Result<Option<Self>> {
        let Some(site) = tokens.head() else { return Ok(None) };
        let (count, width) = (tokens.ids.len(), tokens.width);
        let mut builder = PackBuilder::default();
        let ids: Vec<Token> = tokens.ids.iter().map(|&id| Token::Id(id)).collect();
        builder.push(&ids, Parent::None, None, Label::Text);
        let pack = backend.pack(&builder.build())?;
        let mut base = backend.acc(count * width)?;
        backend.embed_fwd(EmbedFwd { out: &mut base, pack: &pack, table, prompt: None, width, scale: 1.0 });
        let mut ones = vec![B::Element::default(); site.output * count];
        tokens.ids.iter().enumerate().for_each(|(i, &id)| ones[id as usize * count + i] = B::Element::from_f64(1.0));
        let mut lora = backend.acc(site.stride)?;
        backend.upload(&mut lora, site.b, &ones)?;
        let index = |first: usize| (first as u32..(first + count) as u32).collect::<Vec<_>>();
        let (rows, all) = (backend.index(&index(tokens.first))?, backend.index(&index(0))?);
        Ok(Some(Self { lora, base, rows, all, width }))
    }

    /// Makes it that of these parameters.
    pub fn refresh(&mut self, backend: &mut B, params: &B::Acc) {
        let Self { lora, base, rows, all, width } = self;
        for (values, value_rows, keep, add) in [(params, &*rows, 0.0, 1.0), (&*base, &*all, 1.0, -1.0)] {
            let (x, map) = (TensorMut::Acc(&mut *lora), EditMap { keep, along: 0.0 });
            backend.edit_fwd(EditFwd { x, values, rows: all, value_rows, width: *width, map, add });
        }
    }
}
