//! The buffers of a forward, planned once from the config and a number of rows.

use std::sync::Arc;

use super::adaptation::Layout;
use super::norm::Stats;
use super::output_rows::place;
use crate::Result;
use crate::arch::Mlp;
use crate::arch::ModelConfig;
use crate::arch::Projection;
use crate::backend::trace::Trace;
use crate::backend::{AccElement, Backend};

/// How much of a forward outlives its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: one layer's buffers serve all layers. For inference.
    Layer,
    /// Everything that the backward reads.
    All,
}

/// The buffers of one layer that the backward reads.
pub(super) struct LayerActivations<B: Backend> {
    pub attn_stats: Stats<B>,
    /// What q, k and v read: the norm of the residual stream, or (norms behind the halves) the stream itself.
    pub attn_in: B::Compute,
    pub v: B::Compute,
    /// Queries and keys as the attention reads them.
    pub rot_q: B::Compute,
    pub rot_k: B::Compute,
    pub lse: B::Acc,
    pub z: B::Compute,
    pub resid_mid: B::Acc,
    pub mlp_stats: Stats<B>,
    /// What the MLP reads: the norm of the middle residual stream, or (norms behind the halves) that stream itself.
    pub mlp_in: B::Compute,
    /// Before the activation, of an MLP with a gate.
    pub gate: Option<B::Compute>,
    pub up: B::Compute,
    /// `[N, F]`; in the last layer, until the MLP comes, `z` at the rows that are read `[M, H D]`.
    pub act: B::Compute,
    /// The sums that norms behind the halves read: of the attention half and of the MLP half.
    pub sums: Option<[B::Acc; 2]>,
    pub lora_xa: [Option<B::Acc>; 7],
}

/// What lies between the embedding table and the first block, where that is not the table's rows alone.
pub(super) struct Entry<B: Backend> {
    /// Rows of the table or of the soft prompt `[N, E]`.
    pub raw: B::Acc,
    /// The same in the compute dtype, for the projection.
    pub raw_real: Option<B::Compute>,
    /// Of the norm.
    pub stats: Option<Stats<B>>,
    /// Projected or normed `[N, C]`.
    pub out: B::Compute,
}

/// The buffers of a forward for packs of up to `rows` rows.
pub struct Activations<B: Backend> {
    /// Rows that there is room for.
    pub rows: usize,
    /// What outlives its layer.
    pub keep: Keep,
    /// Final norm's output `[N, C]`, or `[M, C]` of the rows that are read, weight applied; the last residual stream where
    /// there is no final norm.
    pub final_norm: B::Compute,
    pub(super) final_stats: Stats<B>,
    pub(super) entry: Option<Entry<B>>,
    pub(super) resid: Vec<B::Acc>,
    pub(super) layers: Vec<LayerActivations<B>>,
    /// The rows that the last forward was told to be read; none means all.
    pub(super) read: Option<Arc<[usize]>>,
    /// Queries and keys before the rotation, if there is one.
    pub(super) turned: Option<[B::Compute; 2]>,
    /// What the two halves of a block add to the residual stream.
    pub(super) attn_out: B::Compute,
    pub(super) mlp_out: B::Compute,
    /// A block's output as its last norm gives it, where norms stand behind the halves.
    pub(super) normed: Option<B::Compute>,
    /// The rotation's table and the positions it covers.
    pub(super) rope: (B::Acc, usize),
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
        keep: Keep,
    ) -> Result<Self> {
        let n = rows;
        let (c, q, kv, f) = (config.hidden_size, config.q_width(), config.kv_width(), config.intermediate_size);
        let (layers, resid) = buffers(config, keep);
        let layers = (0..layers)
            .map(|layer| {
                let mut lora_xa = [const { None }; 7];
                for &target in config.targets() {
                    let rank = rank(config, layout, keep, layer, target);
                    lora_xa[target as usize] = some(rank > 0, || backend.acc(n * rank))?;
                }
                Ok(LayerActivations {
                    attn_stats: Stats::new(backend, config, n)?,
                    attn_in: backend.compute(n * c)?,
                    v: backend.compute(n * kv)?,
                    rot_q: backend.compute(n * q)?,
                    rot_k: backend.compute(n * kv)?,
                    lse: backend.acc(n * config.num_attention_heads)?,
                    z: backend.compute(n * q)?,
                    resid_mid: backend.acc(n * c)?,
                    mlp_stats: Stats::new(backend, config, n)?,
                    mlp_in: backend.compute(n * c)?,
                    gate: some(config.mlp == Mlp::SwiGlu, || backend.compute(n * f))?,
                    up: backend.compute(n * f)?,
                    act: backend.compute(n * f.max(q))?,
                    sums: some(config.post_norm, || Ok([backend.acc(n * c)?, backend.acc(n * c)?]))?,
                    lora_xa,
                })
            })
            .collect::<Result<_>>()?;
        let resid = (0..resid).map(|_| backend.acc(n * c)).collect::<Result<_>>()?;
        let projected = config.embed_size != c;
        let entry = || {
            Ok(Entry {
                raw: backend.acc(n * config.embed_size)?,
                raw_real: some(projected, || backend.compute(n * config.embed_size))?,
                stats: some(config.embed_norm, || Stats::new(backend, config, n))?,
                out: backend.compute(n * c)?,
            })
        };
        Ok(Self {
            rows,
            keep,
            entry: some(projected || config.embed_norm, entry)?,
            final_norm: backend.compute(n * c)?,
            final_stats: Stats::new(backend, config, n)?,
            resid,
            layers,
            read: None,
            turned: some(config.rope().is_some(), || Ok([backend.compute(n * q)?, backend.compute(n * kv)?]))?,
            attn_out: backend.compute(n * c)?,
            mlp_out: backend.compute(n * c)?,
            normed: some(config.post_norm, || backend.compute(n * c))?,
            rope: rope(backend, config, n)?,
        })
    }

    /// Bytes of these buffers, without making them; `element_sizes` are those of [`Planning::element_sizes`](crate::backend::Planning::element_sizes).
    pub fn bytes(
        config: &ModelConfig,
        layout: Option<&Layout>,
        rows: usize,
        keep: Keep,
        element_sizes: (usize, usize),
    ) -> usize {
        counted(element_sizes, |device| Activations::new(device, config, layout, rows, keep))
    }

    /// Where the results of pack rows of the last forward are.
    pub(super) fn places(&self, backend: &mut B, rows: &[usize]) -> Result<B::Index> {
        let read = self.read.as_deref();
        backend.index(&rows.iter().map(|&row| place(read, row) as u32).collect::<Vec<_>>())
    }

    /// The residual stream entering layer `layer`, or leaving the last for `layer = L`.
    pub(super) fn resid_slot(&self, layer: usize) -> usize {
        layer % self.resid.len()
    }

    /// Where the buffers of layer `layer` are.
    pub(super) fn layer_slot(&self, layer: usize) -> usize {
        layer % self.layers.len()
    }

    /// Sees to it that the rotation's table covers `positions` positions.
    pub(super) fn cover(&mut self, backend: &mut B, config: &ModelConfig, positions: usize) -> Result<()> {
        // Under dynamic scaling the table is that of this very length.
        if config.rope().is_none() {
            return Ok(());
        }
        if positions > self.rope.1 || (config.scales_beyond().is_some() && positions != self.rope.1) {
            self.rope = rope(backend, config, positions)?;
        }
        Ok(())
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
    let (wide, real) = device.elements();
    wide * element_sizes.0 + real * element_sizes.1
}

/// Number of layers' and of residual buffers.
fn buffers(config: &ModelConfig, keep: Keep) -> (usize, usize) {
    match keep {
        Keep::Layer => (1, 2),
        Keep::All => (config.num_hidden_layers, config.num_hidden_layers + 1),
    }
}

/// Rank for which the buffers of a layer must have room.
fn rank(config: &ModelConfig, layout: Option<&Layout>, keep: Keep, layer: usize, target: Projection) -> usize {
    layout.map_or(0, |layout| match keep {
        Keep::All => layout.rank(layer, target),
        Keep::Layer => (0..config.num_hidden_layers).map(|layer| layout.rank(layer, target)).max().unwrap_or(0),
    })
}

fn rope<B: Backend>(backend: &mut B, config: &ModelConfig, positions: usize) -> Result<(B::Acc, usize)> {
    let table: Vec<B::Element> = config.rope_table(positions).into_iter().map(B::Element::from_f64).collect();
    let mut buffer = backend.acc(table.len())?;
    backend.upload(&mut buffer, 0, &table)?;
    Ok((buffer, positions))
}
