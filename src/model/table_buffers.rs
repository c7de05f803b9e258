//! What the LoRA of the tables of tokens saves, and what it computes with (`tables`).

use super::layout::Layout;
use super::output_rows::logit_rows;
use super::token_site::TokenSite;
use crate::Result;
use crate::arch::{Family, ModelConfig};
use crate::backend::ops::LoraSite;
use crate::backend::{AccElement, Backend};
use crate::formats::adapter::Table;
use crate::pack::{Pack, Token};

/// The logit of a label among zeros that makes of their softmax a one and zeros, in single precision and in double.
const ONE_HOT_LOGIT: f64 = 1e4;

impl ModelConfig {
    /// The token whose row of the embedding table torch gives no gradient (`padding_idx`).
    pub(super) fn padding_row(&self) -> Option<u32> {
        match self.family {
            Family::Gpt2 | Family::Bloom | Family::GptNeox | Family::GptJ => None,
            _ => self.pad_token_id,
        }
    }
}

/// What the LoRA of an embedding table saves, and what it computes with.
pub(super) struct EmbedLora<B: Backend> {
    /// Rows of A `[N, R]`.
    pub xa: B::Acc,
    /// What is added `[N, E]`.
    pub delta: B::Acc,
    pub rows: Option<EmbedRows<B>>,
}

/// The rows of a pass and those of A.
pub(super) struct EmbedRows<B: Backend> {
    /// `0..N`.
    pub all: B::Index,
    /// Where each row's token has its column of A: rows of R in the parameters.
    pub a: B::Index,
    /// Where some rows' tokens have no gradient of their own: the others, and where those have their columns.
    pub trained: Option<[B::Index; 2]>,
}

impl<B: Backend> EmbedLora<B> {
    /// For packs of up to `rows` rows; none where the table has no LoRA.
    pub fn new(backend: &mut B, config: &ModelConfig, layout: Option<&Layout>, rows: usize) -> Result<Option<Self>> {
        let Some(site) = layout.and_then(|layout| layout.table(Table::Embed)) else { return Ok(None) };
        let (xa, delta) = (backend.acc(rows * site.rank)?, backend.acc(rows * config.embed_size)?);
        Ok(Some(Self { xa, delta, rows: None }))
    }
}

impl<B: Backend> EmbedRows<B> {
    /// Those of a pack.
    ///
    /// # Panics
    /// If it has virtual tokens.
    pub fn new(backend: &mut B, config: &ModelConfig, pack: &Pack, site: LoraSite) -> Result<Self> {
        let token = |token: &Token| match *token {
            Token::Id(id) => id,
            Token::Virtual(_) => panic!("forward: virtual tokens beside a LoRA of the embedding table"),
        };
        let tokens: Vec<u32> = pack.tokens().iter().map(token).collect();
        let at = |&token: &u32| (site.a / site.rank) as u32 + token;
        let (every, a): (Vec<u32>, Vec<u32>) = ((0..pack.len() as u32).collect(), tokens.iter().map(at).collect());
        let fixed = config.padding_row().filter(|fixed| tokens.contains(fixed));
        let trained = match fixed {
            None => None,
            Some(fixed) => {
                let rows: Vec<u32> = every.iter().copied().filter(|&row| tokens[row as usize] != fixed).collect();
                let of_rows: Vec<u32> = rows.iter().map(|&row| a[row as usize]).collect();
                Some([backend.index(&rows)?, backend.index(&of_rows)?])
            }
        };
        Ok(Self { all: backend.index(&every)?, a: backend.index(&a)?, trained })
    }
}

/// What the head's LoRA computes with.
pub(super) struct HeadLora<B: Backend> {
    /// `[rows, R]`.
    pub xa: B::Acc,
    /// What is added `[rows, V]`.
    pub delta: B::Acc,
}

impl<B: Backend> HeadLora<B> {
    /// For `rows` rows; none where the head has no LoRA.
    pub fn new(backend: &mut B, config: &ModelConfig, layout: Option<&Layout>, rows: usize) -> Result<Option<Self>> {
        let Some(site) = layout.and_then(Layout::head) else { return Ok(None) };
        Ok(Some(Self { xa: backend.acc(rows * site.rank)?, delta: backend.acc(rows * config.vocab_size)? }))
    }
}

/// What a backward through adapted tables computes with.
pub(super) struct TableGradients<B: Backend> {
    pub embed: Option<EmbedGradients<B>>,
    pub head: Option<HeadGradients<B>>,
    /// Of embedded rows whose tokens are trained `[N, E]`.
    pub tokens: Option<B::Acc>,
}

/// Of the embedding table's.
pub(super) struct EmbedGradients<B: Backend> {
    /// Of what the LoRA adds `[N, E]`.
    pub d_y: B::Compute,
    /// Of the rows of A `[N, R]`.
    pub d_xa: B::Acc,
    /// Those that have a gradient of their own `[N, R]`.
    pub trained: B::Acc,
}

/// Of the head's.
pub(super) struct HeadGradients<B: Backend> {
    /// What the head reads `[part, E]`.
    pub x: B::Compute,
    /// `[part, V]`.
    pub logits: B::Acc,
    pub lora: HeadLora<B>,
    /// `[part, V]`.
    pub d_logits: B::Compute,
    /// Of what the head reads `[part, E]`.
    pub d_x: B::Acc,
    /// [`ONE_HOT_LOGIT`] `[part]`.
    pub certain: B::Acc,
    /// Of the LoRA that stands for trained rows of a tied head.
    pub d_tokens: Option<B::Acc>,
}

impl<B: Backend> TableGradients<B> {
    /// For packs of up to `rows` rows with up to `labels` label rows; none where no table has a LoRA.
    pub fn new(
        backend: &mut B,
        config: &ModelConfig,
        layout: Option<&Layout>,
        (rows, labels): (usize, usize),
    ) -> Result<Option<Self>> {
        let Some(layout) = layout else { return Ok(None) };
        let part = logit_rows(config, labels);
        let embed = layout.table(Table::Embed).map(|site| {
            let (d_y, d_xa) = (backend.compute(rows * config.embed_size)?, backend.acc(rows * site.rank)?);
            Ok(EmbedGradients { d_y, d_xa, trained: backend.acc(rows * site.rank)? })
        });
        let embed = embed.transpose()?;
        let head = match HeadLora::new(backend, config, Some(layout), part)? {
            None => None,
            Some(lora) => {
                let mut certain = backend.acc(part)?;
                backend.upload(&mut certain, 0, &vec![B::Element::from_f64(ONE_HOT_LOGIT); part])?;
                Some(HeadGradients {
                    x: backend.compute(part * config.embed_size)?,
                    logits: backend.acc(part * config.vocab_size)?,
                    lora,
                    d_logits: backend.compute(part * config.vocab_size)?,
                    d_x: backend.acc(part * config.embed_size)?,
                    certain,
                    d_tokens: match layout.tokens.as_ref().and_then(TokenSite::head) {
                        Some(site) => Some(backend.acc(site.stride)?),
                        None => None,
                    },
                })
            }
        };
        let tokens = layout.tokens.as_ref().map(|_| backend.acc(rows * config.embed_size)).transpose()?;
        Ok((embed.is_some() || head.is_some() || tokens.is_some()).then_some(Self { embed, head, tokens }))
    }
}
