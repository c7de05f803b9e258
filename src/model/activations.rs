//! The buffers of a forward, planned once from the config and a number of rows.

use std::sync::Arc;

use super::layout::Layout;
use super::norm::Stats;
use super::output_rows::{OutputRows, output_row};
use super::rope::RopeTable;
use super::table_buffers::EmbedLora;
use super::token_site::TokenRows;
use crate::Result;
use crate::arch::{Mlp, ModelConfig, NormPlacement, Projection, QkNorm, Rope, RopeKind};
use crate::backend::trace::Trace;
use crate::backend::{Backend, Buffers};
use crate::pack::Pack;

/// What a forward saves for the backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Save {
    /// Nothing: one layer's buffers serve all layers. For inference.
    Layer,
    /// The stream that enters each layer (gradient checkpointing, Chen et al. 2016): the backward computes a layer's buffers
    /// again when it comes to it, with the same bits. One layer's buffers serve all layers.
    Inputs,
    /// Everything that the backward reads, of every layer.
    All,
}

/// The buffers of one layer that the backward reads.
pub(super) struct LayerActivations<B: Backend> {
    pub attn_stats: Stats<B>,
    /// Input of q, k and v `[N, C]`: the norm of the residual stream, or the stream itself where no norm
    /// stands before the sublayer.
    pub attn_in: B::Compute,
    pub v: B::Compute,
    /// Queries `[N, H D]` and keys `[N, K D]` as the attention reads them, rotated if the model rotates.
    pub rot_q: B::Compute,
    pub rot_k: B::Compute,
    pub lse: B::Acc,
    pub z: B::Compute,
    /// `z` before it was edited `[N, H D]`, once it has been.
    pub unedited_z: Option<B::Compute>,
    /// Of a parallel block, the stream plus the attention's output.
    pub resid_mid: B::Acc,
    pub mlp_stats: Stats<B>,
    /// Input of the MLP `[N, C]`: the norm of the middle residual stream (of a parallel block, of the one entering it), or the
    /// stream itself where no norm stands before the sublayer; where one norm is both sublayers', its output rows.
    pub mlp_in: B::Compute,
    /// Before the activation, of an MLP with a gate.
    pub gate: Option<B::Compute>,
    pub up: B::Compute,
    /// `[N, F]`; in the last layer, until the MLP runs, `z` at the output rows `[M, H D]`.
    pub act: B::Compute,
    /// What post-norms read `[N, C]`: residual stream plus attention's output, residual stream plus MLP's output.
    pub pre_norm_sums: Option<[B::Acc; 2]>,
    /// Of a model that norms queries and keys.
    pub qk_norm: Option<QkNormInputs<B>>,
    /// Of a model that norms the outputs of its sublayers: attention's and MLP's.
    pub output_norms: Option<[OutputNormInput<B>; 2]>,
    pub adapters: LoraInputs<B>,
}

/// What the adapters of the projections save, by `Projection as usize`.
pub(super) struct LoraInputs<B: Buffers> {
    /// `A x [N, R]`, of each shape of the layout.
    pub xa: [Vec<Option<B::Acc>>; 7],
    /// Outputs `[N, output]` before their scale, without the bias.
    pub unscaled: [Option<B::Compute>; 7],
    /// Scaled inputs `[N, input]`, scratch of one projection after another.
    pub scaled: Option<B::Compute>,
}

/// What lies between the embedding table and the first block, where that is not the table's rows alone.
pub(super) struct EmbeddingStage<B: Backend> {
    /// Rows of the table or of the soft prompt `[N, E]`.
    pub embedded: B::Acc,
    /// The same in the compute dtype, for the projection.
    pub embedded_compute: Option<B::Compute>,
    /// Of the norm.
    pub stats: Option<Stats<B>>,
    /// Projected or normed `[N, C]`.
    pub out: B::Compute,
}

/// The tables that the rotation needs.
pub(super) struct Rotation<B: Backend> {
    /// The tables of all rotations that differ.
    tables: Vec<RopeTable<B>>,
    /// Which of them is each layer's `[L]`.
    of_layer: Vec<usize>,
}

impl<B: Backend> Rotation<B> {
    /// None for a model without a rotation.
    fn new(backend: &mut B, config: &ModelConfig, rows: usize) -> Result<Option<Self>> {
        let mut different: Vec<&Rope> = Vec::new();
        let of_layer = config.ropes().iter().map(|rope| {
            let known = different.iter().position(|&other| other == rope);
            known.unwrap_or_else(|| {
                different.push(rope);
                different.len() - 1
            })
        });
        let of_layer: Vec<usize> = of_layer.collect();
        if different.is_empty() {
            return Ok(None);
        }
        let tables = different.into_iter().map(|rope| RopeTable::new(backend, rope, rows)).collect::<Result<_>>()?;
        Ok(Some(Self { tables, of_layer }))
    }

    /// Cosines and sines of a layer.
    pub fn cos_sin(&self, layer: usize) -> &B::Acc {
        &self.tables[self.of_layer[layer]].cos_sin
    }
}

/// Queries and keys before they were normed.
pub(super) struct QkNormInputs<B: Backend> {
    /// `[N, H D]`.
    pub q: B::Compute,
    /// `[N, K D]`.
    pub k: B::Compute,
    /// Factors `[N H]`, or `[N]` where a row's heads are normed together.
    pub q_rstd: B::Acc,
    /// The same of the keys.
    pub k_rstd: B::Acc,
}

/// A sublayer's output before it was normed.
pub(super) struct OutputNormInput<B: Backend> {
    /// `[N, C]`.
    pub x: B::Compute,
    /// Factors `[N]`.
    pub rstd: B::Acc,
}

/// The buffers of a forward for packs of up to `rows` rows.
pub struct Activations<B: Backend> {
    /// Rows that there is room for.
    pub rows: usize,
    /// What is saved for the backward.
    pub save: Save,
    /// Final norm's output `[N, C]`, or `[M, C]` of the output rows, weight applied; the last residual stream where there
    /// is no final norm.
    pub final_norm: B::Compute,
    pub(super) final_stats: Stats<B>,
    pub(super) embedding: Option<EmbeddingStage<B>>,
    /// Of a LoRA of the embedding table.
    pub(super) embed_lora: Option<EmbedLora<B>>,
    /// The rows of the last forward whose tokens have no gradient in an embedding table of a run's own, and as many zeros.
    pub(super) fixed_rows: Option<[B::Index; 2]>,
    /// The rows of the last forward whose tokens are trained.
    pub(super) token_rows: Option<TokenRows<B>>,
    /// Whether the adapters of the last forward adapt the head.
    pub(super) adapts_head: bool,
    pub(super) resid: Vec<B::Acc>,
    pub(super) layers: Vec<LayerActivations<B>>,
    /// The layer whose buffers were filled last.
    pub(super) filled: usize,
    /// The output rows of the last forward; none means all.
    pub(super) outputs: Option<Arc<[usize]>>,
    pub(super) rotation: Option<Rotation<B>>,
    /// What the two sublayers of a block add to the residual stream.
    pub(super) attn_out: B::Compute,
    pub(super) mlp_out: B::Compute,
    /// Output of a block's last post-norm `[N, C]`.
    pub(super) post_norm: Option<B::Compute>,
}

impl<B: Backend> Activations<B> {
    /// Buffers for packs of up to `rows` rows through a model with the adapters of `layout`.
    ///
    /// # Errors
    /// If the device has no memory for them.
    pub fn new(
        backend: &mut B,
        config: &ModelConfig,
        layout: Option<&Layout>,
        rows: usize,
        save: Save,
    ) -> Result<Self> {
        let n = rows;
        let c = config.hidden_size;
        let (count, resid) = buffers(config, save);
        let layers = (0..count)
            .map(|layer| {
                let adapters = LoraInputs::new(backend, config, layout, n, (save, layer))?;
                LayerActivations::new(backend, config, n, layer + 1 == count, adapters)
            })
            .collect::<Result<_>>()?;
        let resid = (0..resid).map(|_| backend.acc(n * c)).collect::<Result<_>>()?;
        let projected = config.embed_size != c;
        let mut embedding = || {
            Ok(EmbeddingStage {
                embedded: backend.acc(n * config.embed_size)?,
                embedded_compute: some(projected, || backend.compute(n * config.embed_size))?,
                stats: some(config.embed_norm, || Stats::new(backend, config, n))?,
                out: backend.compute(n * c)?,
            })
        };
        let embedding = some(projected || config.embed_norm, &mut embedding)?;
        let rotation = Rotation::new(backend, config, n)?;
        Ok(Self {
            rows,
            save,
            embedding,
            embed_lora: EmbedLora::new(backend, config, layout, n)?,
            fixed_rows: None,
            token_rows: None,
            adapts_head: false,
            final_norm: backend.compute(n * c)?,
            final_stats: Stats::new(backend, config, n)?,
            resid,
            layers,
            filled: 0,
            outputs: None,
            rotation,
            attn_out: backend.compute(n * c)?,
            mlp_out: backend.compute(n * c)?,
            post_norm: some(config.norm_placement == NormPlacement::Post, || backend.compute(n * c))?,
        })
    }

    /// Bytes of these buffers, without making them; `element_sizes` are those of
    /// [`Planning::element_sizes`](crate::backend::Planning::element_sizes).
    pub fn bytes(
        config: &ModelConfig,
        layout: Option<&Layout>,
        rows: usize,
        save: Save,
        element_sizes: (usize, usize),
    ) -> usize {
        counted(element_sizes, |device| Activations::new(device, config, layout, rows, save))
    }

    /// Makes room in the rotation's table for sequences of `positions` positions, so that no pass must.
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn reserve_positions(&mut self, backend: &mut B, positions: usize) -> Result<()> {
        let mut tables = self.rotation.iter_mut().flat_map(|rotation| &mut rotation.tables);
        tables.try_for_each(|table| table.reserve(backend, positions))
    }

    /// Takes the last forward for one of its first rows alone, of which the rows `output` came out (none means all of them):
    /// what a backward through a pack of those rows reads.
    ///
    /// # Panics
    /// If those are not the first output rows.
    pub fn restrict(&mut self, rows: usize, output: Option<&OutputRows<B>>) {
        let outputs = self.outputs.as_deref();
        let first = |i: usize| outputs.map_or(i, |outputs| outputs[i]);
        let same = match output {
            Some(output) => output.rows.iter().enumerate().all(|(i, &row)| first(i) == row),
            None => (0..rows).all(|row| first(row) == row),
        };
        assert!(same, "activations: the first {rows} rows came out otherwise");
        self.outputs = output.map(|output| output.rows.clone());
    }

    /// The output rows of these pack rows in the last forward.
    pub(super) fn output_rows(&self, rows: &[usize]) -> Vec<u32> {
        let outputs = self.outputs.as_deref();
        rows.iter().map(|&row| output_row(outputs, row) as u32).collect()
    }

    /// The residual stream `[N, C]` that entered layer `layer` in the last forward.
    ///
    /// # Panics
    /// If the forward did not save it.
    pub fn stream(&self, layer: usize) -> &B::Acc {
        assert!(self.save != Save::Layer, "activations: the stream that enters layer {layer} is not saved");
        &self.resid[layer]
    }

    /// The residual stream entering layer `layer`, or leaving the last for `layer = L`.
    pub(super) fn resid_slot(&self, layer: usize) -> usize {
        layer % self.resid.len()
    }

    /// Where the buffers of layer `layer` are.
    pub(super) fn layer_slot(&self, layer: usize) -> usize {
        layer % self.layers.len()
    }

    /// Sees to it that the rotation's tables cover the positions of a pack.
    pub(super) fn cover(&mut self, backend: &mut B, config: &ModelConfig, pack: &Pack) -> Result<()> {
        let Some(rotation) = &mut self.rotation else { return Ok(()) };
        let first = pack.segments().iter().map(|segment| segment.position).min().unwrap_or(0);
        let (positions, most) = (first..pack.longest(), config.max_position_embeddings);
        // Dynamic scaling goes on beyond them by its own formula.
        let extrapolates =
            |rope: &Rope| matches!(rope.kind, RopeKind::Dynamic { original, .. } if positions.end > original);
        // Said once of a sequence that grows.
        if !config.ropes().iter().any(extrapolates) && positions.contains(&most) {
            log::warn!(
                "sequences of more than max_position_embeddings, {most} tokens, go on as far as they are rotated, as in \
                 transformers"
            );
        }
        rotation.tables.iter_mut().try_for_each(|table| table.cover(backend, positions.clone()))
    }
}

impl<B: Backend> LayerActivations<B> {
    /// For packs of up to `n` rows, of which the `last` layer may compute the output rows alone.
    fn new(backend: &mut B, config: &ModelConfig, n: usize, last: bool, adapters: LoraInputs<B>) -> Result<Self> {
        let own_input = last || !config.one_norm;
        let (c, q, kv, f) = (config.hidden_size, config.q_width(), config.kv_width(), config.intermediate_size);
        let placement = config.norm_placement;
        config.lay_beside(backend, Projection::Q, 3);
        let projected_q = backend.compute(n * q)?;
        config.lay_beside(backend, Projection::K, 2);
        let (projected_k, v) = (backend.compute(n * kv)?, backend.compute(n * kv)?);
        let (rot_q, rot_k, qk_norm) = match config.qk_norm {
            None => (projected_q, projected_k, None),
            Some(over) => {
                let [of_q, of_k] = match over {
                    QkNorm::Head => [config.num_attention_heads, config.num_key_value_heads],
                    QkNorm::Row => [1, 1],
                };
                let (q_rstd, k_rstd) = (backend.acc(n * of_q)?, backend.acc(n * of_k)?);
                let inputs = QkNormInputs { q: projected_q, k: projected_k, q_rstd, k_rstd };
                (backend.compute(n * q)?, backend.compute(n * kv)?, Some(inputs))
            }
        };
        config.lay_beside(backend, Projection::Gate, 2);
        let gate = some(matches!(config.mlp, Mlp::Gated(_)), || backend.compute(n * f))?;
        let up = backend.compute(n * f)?;
        let mut output_norm = || Ok(OutputNormInput { x: backend.compute(n * c)?, rstd: backend.acc(n)? });
        let output_norms = some(placement.of_output(), || Ok([output_norm()?, output_norm()?]))?;
        Ok(Self {
            attn_stats: Stats::new(backend, config, n)?,
            attn_in: backend.compute(n * c)?,
            v,
            rot_q,
            rot_k,
            lse: backend.acc(n * config.num_attention_heads)?,
            z: backend.compute(n * q)?,
            unedited_z: None,
            resid_mid: backend.acc(n * c)?,
            mlp_stats: Stats::new(backend, config, n)?,
            mlp_in: backend.compute(if own_input { n * c } else { 0 })?,
            gate,
            up,
            act: backend.compute(n * f.max(q))?,
            pre_norm_sums: some(placement == NormPlacement::Post, || Ok([backend.acc(n * c)?, backend.acc(n * c)?]))?,
            qk_norm,
            output_norms,
            adapters,
        })
    }
}

/// The value if it is there.
pub(super) fn some<T>(there: bool, make: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
    if there { make().map(Some) } else { Ok(None) }
}

/// Bytes of the buffers that `make` asks a device for, found on one that has none.
pub(super) fn counted<T>(element_sizes: (usize, usize), make: impl FnOnce(&mut Trace) -> Result<T>) -> usize {
    let mut device = Trace::new();
    make(&mut device).expect("activations: the null device has room for everything");
    let (acc, compute) = device.elements();
    acc * element_sizes.0 + compute * element_sizes.1
}

/// Number of layers' and of residual buffers.
fn buffers(config: &ModelConfig, save: Save) -> (usize, usize) {
    match save {
        Save::Layer => (1, 2),
        Save::Inputs => (1, config.num_hidden_layers + 1),
        Save::All => (config.num_hidden_layers, config.num_hidden_layers + 1),
    }
}

impl<B: Backend> LoraInputs<B> {
    /// For packs of up to `n` rows.
    fn new(
        backend: &mut B,
        config: &ModelConfig,
        layout: Option<&Layout>,
        n: usize,
        (save, layer): (Save, usize),
    ) -> Result<Self> {
        let (mut xa, mut unscaled, mut widest) = ([const { Vec::new() }; 7], [const { None }; 7], 0);
        for &target in config.targets() {
            let ranks = ranks(config, layout, save, layer, target).into_iter();
            xa[target as usize] = ranks.map(|rank| some(rank > 0, || backend.acc(n * rank))).collect::<Result<_>>()?;
            let layers = match save {
                Save::All => layer..layer + 1,
                Save::Layer | Save::Inputs => 0..config.num_hidden_layers,
            };
            let (input, output) = config.widths(target);
            let any = |has: &dyn Fn(&Layout, usize) -> bool| {
                layout.is_some_and(|layout| layers.clone().any(|layer| has(layout, layer)))
            };
            let scaled = any(&|layout, layer| layout.scales(layer, target).next().is_some());
            unscaled[target as usize] = some(scaled, || backend.compute(n * output))?;
            let inward = any(&|layout, layer| layout.input_scales(layer, target).next().is_some());
            widest = widest.max(if inward { input } else { 0 });
        }
        Ok(Self { xa, unscaled, scaled: some(widest > 0, || backend.compute(n * widest))? })
    }
}

/// Ranks, of each shape, for which the buffers of a layer must have room.
fn ranks(config: &ModelConfig, layout: Option<&Layout>, save: Save, layer: usize, target: Projection) -> Vec<usize> {
    let Some(layout) = layout else { return Vec::new() };
    let of_layer = |shape, layer| layout.rank(shape, layer, target);
    let of_shape = |shape| match save {
        Save::All => of_layer(shape, layer),
        Save::Layer | Save::Inputs => {
            (0..config.num_hidden_layers).map(|layer| of_layer(shape, layer)).max().unwrap_or(0)
        }
    };
    (0..layout.shapes().len()).map(of_shape).collect()
}
