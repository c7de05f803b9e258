//! Room for logits of a few rows.

use super::activations::{counted, some};
use super::layout::Layout;
use super::table_buffers::HeadLora;
use crate::Result;
use crate::arch::ModelConfig;
use crate::backend::Backend;

/// Room for the logits after some rows.
pub(super) struct LogitBuffers<B: Backend> {
    /// `[rows, C]`.
    pub x: B::Compute,
    /// `[rows, E]`, where the head's width is another.
    pub projected: Option<B::Compute>,
    /// `[rows, V]`.
    pub logits: B::Acc,
    /// Of an adapted head.
    pub lora: Option<HeadLora<B>>,
}

impl<B: Backend> LogitBuffers<B> {
    /// Room for the logits after `rows` rows, of a model with the adapters of `layout`.
    pub fn new(backend: &mut B, config: &ModelConfig, layout: Option<&Layout>, rows: usize) -> Result<Self> {
        let projects = config.embed_size != config.hidden_size;
        Ok(Self {
            x: backend.compute(rows * config.hidden_size)?,
            projected: some(projects, || backend.compute(rows * config.embed_size))?,
            logits: backend.acc(rows * config.vocab_size)?,
            lora: HeadLora::new(backend, config, layout, rows)?,
        })
    }

    /// Bytes of this room, without making it; `element_sizes` as in
    /// [`Planning::element_sizes`](crate::backend::Planning::element_sizes).
    pub fn bytes(config: &ModelConfig, layout: Option<&Layout>, rows: usize, element_sizes: (usize, usize)) -> usize {
        counted(element_sizes, |device| LogitBuffers::new(device, config, layout, rows))
    }
}
