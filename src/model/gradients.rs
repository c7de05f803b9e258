//! The scratch of a backward, and what it is asked for.

use super::activations::{counted, some};
use super::distillation::LogitLosses;
use super::full::WeightLayout;
use super::layout::Layout;
use super::param_id::ParamId;
use super::table_buffers::TableGradients;
use crate::Result;
use crate::arch::{Mlp, ModelConfig, Projection};
use crate::backend::Backend;
use crate::backend::ops::HeadGradient;

/// Scratch of a backward, for packs of up to `rows` rows of which up to `labels` bear a loss.
pub struct Gradients<B: Backend> {
    pub(super) rows: usize,
    pub(super) labels: usize,
    /// Losses of the label rows of the last pass `[M]`.
    pub losses: B::Acc,
    /// Of the residual stream `[N, C]`.
    pub(super) d_resid: B::Acc,
    /// Of the embedding rows `[N, E]`, where something stands between them and the first block.
    pub(super) d_embed: Option<B::Acc>,
    /// Of a norm's output `[N, C]`.
    pub(super) d_norm: B::Acc,
    /// Of a sublayer's output, rounded for the products `[N, C]`.
    pub(super) d_out: B::Compute,
    /// Of the MLP's activation `[N, F]`; then, where there are output rows, the stream `[M, C]` that a parallel MLP read, the
    /// gradient of the attention's output `[M, H D]`, and the MLP's part of that of a norm that is both's `[N, C]`.
    pub(super) d_act: B::Acc,
    pub(super) d_gate: Option<B::Compute>,
    /// Of the activation's input `[N, F]`; after the MLP, `z` at the output rows `[M, H D]`.
    pub(super) d_up: B::Compute,
    pub(super) d_z: B::Acc,
    pub(super) d_q: B::Compute,
    pub(super) d_k: B::Compute,
    pub(super) d_v: B::Compute,
    pub(super) delta: B::Acc,
    pub(super) label_x: B::Compute,
    pub(super) d_label_x: B::Acc,
    pub(super) projected: Option<ProjectedLabels<B>>,
    /// What adapted tables of tokens need.
    pub(super) tables: Option<TableGradients<B>>,
    /// What a loss towards a teacher's distributions needs, and the losses; none without one.
    pub distillation: Option<LogitLosses<B>>,
}

/// Label rows after the projection to the head's width `[M, E]`.
pub(super) struct ProjectedLabels<B: Backend> {
    pub x: B::Compute,
    pub d_x: B::Acc,
    pub d_x_compute: B::Compute,
}

impl<B: Backend> Gradients<B> {
    /// Scratch for packs of up to `rows` rows with up to `labels` label rows.
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn new(backend: &mut B, config: &ModelConfig, rows: usize, labels: usize) -> Result<Self> {
        let (n, c, q, kv, f) =
            (rows, config.hidden_size, config.q_width(), config.kv_width(), config.intermediate_size);
        let (e, projects) = (config.embed_size, config.embed_size != c);
        let projected = || {
            let (x, d_x_compute) = (backend.compute(labels * e)?, backend.compute(labels * e)?);
            Ok(ProjectedLabels { x, d_x: backend.acc(labels * e)?, d_x_compute })
        };
        let projected = some(projects, projected)?;
        config.lay_beside(backend, Projection::Q, 3);
        let d_q = backend.compute(n * q)?;
        config.lay_beside(backend, Projection::K, 2);
        let (d_k, d_v) = (backend.compute(n * kv)?, backend.compute(n * kv)?);
        if f >= q {
            config.lay_beside(backend, Projection::Gate, 2);
        }
        let d_gate = some(matches!(config.mlp, Mlp::Gated(_)), || backend.compute(n * f))?;
        let d_up = backend.compute(n * f.max(q))?;
        Ok(Self {
            rows,
            labels,
            losses: backend.acc(labels)?,
            d_resid: backend.acc(n * c)?,
            d_embed: some(projects || config.embed_norm, || backend.acc(n * e))?,
            d_norm: backend.acc(n * c)?,
            d_out: backend.compute(n * c)?,
            // Beside an MLP, the attention's output and the stream that both read.
            d_act: backend.acc(n * f.max(q).max(if config.parallel { c } else { 0 }))?,
            d_gate,
            d_up,
            d_z: backend.acc(n * q)?,
            d_q,
            d_k,
            d_v,
            delta: backend.acc(n * config.num_attention_heads)?,
            label_x: backend.compute(labels * c)?,
            d_label_x: backend.acc(labels * c)?,
            projected,
            tables: None,
            distillation: None,
        })
    }

    /// With room for what a layout adapts outside the blocks.
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn with_layout(mut self, backend: &mut B, config: &ModelConfig, layout: Option<&Layout>) -> Result<Self> {
        self.tables = TableGradients::new(backend, config, layout, (self.rows, self.labels))?;
        Ok(self)
    }

    /// Bytes of what [`Gradients::with_layout`] adds.
    pub fn layout_bytes(
        config: &ModelConfig,
        layout: Option<&Layout>,
        (rows, labels): (usize, usize),
        element_sizes: (usize, usize),
    ) -> usize {
        counted(element_sizes, |device| TableGradients::new(device, config, layout, (rows, labels)))
    }

    /// Bytes of this scratch, without making it.
    pub fn bytes(config: &ModelConfig, rows: usize, labels: usize, element_sizes: (usize, usize)) -> usize {
        counted(element_sizes, |device| Gradients::new(device, config, rows, labels))
    }

    /// Label rows that there is room for.
    pub fn label_rows(&self) -> usize {
        self.labels
    }

    /// After a backward that was asked for it: the gradients of the embedding rows, a soft prompt's included `[N, E]`.
    pub fn d_embed(&self) -> &B::Acc {
        self.d_embed.as_ref().unwrap_or(&self.d_resid)
    }

    /// The same, on the way back.
    pub(super) fn d_embed_mut(&mut self) -> &mut B::Acc {
        self.d_embed.as_mut().unwrap_or(&mut self.d_resid)
    }
}

/// The gradients that a backward is to leave.
pub struct GradientRequest<'a, B: Backend> {
    /// `+=` those of the adapters `[runs, stride]`; needed if the pass went through adapters.
    pub d_params: Option<&'a mut B::Acc>,
    /// Whether they are `=` instead, of the runs in the pass, which must be of a layout of LoRAs alone ([`Layout::is_set`]).
    ///
    /// [`Layout::is_set`]: super::Layout::is_set
    pub sets_params: bool,
    /// `+=` those of all base weights, laid out by [`WeightLayout`].
    pub d_weights: Option<(&'a mut B::Acc, &'a WeightLayout)>,
    /// Where the saved modules of a run lie in `d_params`.
    pub own: Option<&'a WeightLayout>,
    /// Whether [`Gradients::d_embed`] shall be there.
    pub d_embed: bool,
}

impl<B: Backend> GradientRequest<'_, B> {
    /// Nothing yet.
    pub fn none() -> Self {
        Self { d_params: None, sets_params: false, d_weights: None, own: None, d_embed: false }
    }

    /// Where the gradient of a weight goes, if it is wanted: the flat gradients, and where its own begin.
    pub(super) fn weight(&mut self, id: ParamId) -> Option<(&mut B::Acc, usize)> {
        if let (Some(offset), Some(d_params)) = (self.own.and_then(|own| own.get(id)), &mut self.d_params) {
            return Some((&mut **d_params, offset));
        }
        self.d_weights.as_mut().map(|(d_weights, layout)| (&mut **d_weights, layout.offset(id)))
    }

    /// The same of the head and of its bias.
    pub(super) fn head(&mut self, config: &ModelConfig) -> Option<HeadGradient<'_, B>> {
        let bias = config.head_bias.then(|| self.weight(ParamId::HeadBias).map(|(_, offset)| offset));
        let (d, weight) = self.weight(if config.tie_word_embeddings { ParamId::Embed } else { ParamId::Head })?;
        Some(HeadGradient { d, weight, bias: bias.flatten() })
    }
}
