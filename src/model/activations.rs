//! The buffers of a forward, planned once from the spec and a number of rows.

use std::sync::Arc;

use super::adaptation::Layout;
use super::norm::Stats;
use super::read::place;
use super::spec::Spec;
use crate::Result;
use crate::backend::trace::Trace;
use crate::backend::{Backend, WideElement};
use crate::formats::adapter::Target;
use crate::formats::config::Mlp;

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
    pub attn_in: B::Real,
    pub v: B::Real,
    /// Queries and keys as the attention reads them.
    pub rot_q: B::Real,
    pub rot_k: B::Real,
    pub lse: B::Wide,
    pub z: B::Real,
    pub resid_mid: B::Wide,
    pub mlp_stats: Stats<B>,
    /// What the MLP reads: the norm of the middle residual stream, or (norms behind the halves) that stream itself.
    pub mlp_in: B::Real,
    /// Before the activation, of an MLP with a gate.
    pub gate: Option<B::Real>,
    pub up: B::Real,
    /// `[N, F]`; in the last layer, until the MLP comes, `z` at the rows that are read `[M, H D]`.
    pub act: B::Real,
    /// The sums that norms behind the halves read: of the attention half and of the MLP half.
    pub sums: Option<[B::Wide; 2]>,
    pub lora_xa: [Option<B::Wide>; 7],
}

/// What lies between the embedding table and the first block, where that is not the table's rows alone.
pub(super) struct Entry<B: Backend> {
    /// Rows of the table or of the soft prompt `[N, E]`.
    pub raw: B::Wide,
    /// The same in the compute dtype, for the projection.
    pub raw_real: Option<B::Real>,
    /// Of the norm.
    pub stats: Option<Stats<B>>,
    /// Projected or normed `[N, C]`.
    pub out: B::Real,
}

/// The buffers of a forward for packs of up to `rows` rows.
pub struct Activations<B: Backend> {
    /// Rows that there is room for.
    pub rows: usize,
    /// What outlives its layer.
    pub keep: Keep,
    /// Final norm's output `[N, C]`, or `[M, C]` of the rows that are read, weight applied; the last residual stream where
    /// there is no final norm.
    pub final_norm: B::Real,
    pub(super) final_stats: Stats<B>,
    pub(super) entry: Option<Entry<B>>,
    pub(super) resid: Vec<B::Wide>,
    pub(super) layers: Vec<LayerActivations<B>>,
    /// The rows that the last forward was told to be read; none means all.
    pub(super) read: Option<Arc<[usize]>>,
    /// Queries and keys before the rotation, if there is one.
    pub(super) turned: Option<[B::Real; 2]>,
    /// What the two halves of a block add to the residual stream.
    pub(super) attn_out: B::Real,
    pub(super) mlp_out: B::Real,
    /// A block's output as its last norm gives it, where norms stand behind the halves.
    pub(super) normed: Option<B::Real>,
    /// The rotation's table and the positions it covers.
    pub(super) rope: (B::Wide, usize),
}

impl<B: Backend> Activations<B> {
    /// Buffers for packs of up to `rows` rows through a model with the adapters of `layout`.
    ///
    /// # Errors
    /// If the device has no memory for them.
    pub fn new(backend: &mut B, spec: &Spec, layout: Option<&Layout>, rows: usize, keep: Keep) -> Result<Self> {
        let n = rows;
        let (c, q, kv, f) = (spec.width, spec.q_width(), spec.kv_width(), spec.ffn);
        let (layers, resid) = buffers(spec, keep);
        let layers = (0..layers)
            .map(|layer| {
                let mut lora_xa = [const { None }; 7];
                for &target in spec.targets() {
                    let rank = rank(spec, layout, keep, layer, target);
                    lora_xa[target as usize] = some(rank > 0, || backend.wide(n * rank))?;
                }
                Ok(LayerActivations {
                    attn_stats: Stats::new(backend, spec, n)?,
                    attn_in: backend.real(n * c)?,
                    v: backend.real(n * kv)?,
                    rot_q: backend.real(n * q)?,
                    rot_k: backend.real(n * kv)?,
                    lse: backend.wide(n * spec.heads)?,
                    z: backend.real(n * q)?,
                    resid_mid: backend.wide(n * c)?,
                    mlp_stats: Stats::new(backend, spec, n)?,
                    mlp_in: backend.real(n * c)?,
                    gate: some(spec.mlp == Mlp::SwiGlu, || backend.real(n * f))?,
                    up: backend.real(n * f)?,
                    act: backend.real(n * f.max(q))?,
                    sums: some(spec.post_norm, || Ok([backend.wide(n * c)?, backend.wide(n * c)?]))?,
                    lora_xa,
                })
            })
            .collect::<Result<_>>()?;
        let resid = (0..resid).map(|_| backend.wide(n * c)).collect::<Result<_>>()?;
        let projected = spec.embed_width != c;
        let entry = || {
            Ok(Entry {
                raw: backend.wide(n * spec.embed_width)?,
                raw_real: some(projected, || backend.real(n * spec.embed_width))?,
                stats: some(spec.embed_norm, || Stats::new(backend, spec, n))?,
                out: backend.real(n * c)?,
            })
        };
        Ok(Self {
            rows,
            keep,
            entry: some(projected || spec.embed_norm, entry)?,
            final_norm: backend.real(n * c)?,
            final_stats: Stats::new(backend, spec, n)?,
            resid,
            layers,
            read: None,
            turned: some(spec.rope().is_some(), || Ok([backend.real(n * q)?, backend.real(n * kv)?]))?,
            attn_out: backend.real(n * c)?,
            mlp_out: backend.real(n * c)?,
            normed: some(spec.post_norm, || backend.real(n * c))?,
            rope: rope(backend, spec, n)?,
        })
    }

    /// Bytes of these buffers, without making them; `element_sizes` are those of [`Backend::element_sizes`].
    pub fn bytes(
        spec: &Spec,
        layout: Option<&Layout>,
        rows: usize,
        keep: Keep,
        element_sizes: (usize, usize),
    ) -> usize {
        counted(element_sizes, |device| Activations::new(device, spec, layout, rows, keep))
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
    pub(super) fn cover(&mut self, backend: &mut B, spec: &Spec, positions: usize) -> Result<()> {
        // Under dynamic scaling the table is that of this very length.
        if spec.rope().is_none() {
            return Ok(());
        }
        if positions > self.rope.1 || (spec.scales_beyond().is_some() && positions != self.rope.1) {
            self.rope = rope(backend, spec, positions)?;
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
fn buffers(spec: &Spec, keep: Keep) -> (usize, usize) {
    match keep {
        Keep::Layer => (1, 2),
        Keep::All => (spec.layers, spec.layers + 1),
    }
}

/// Rank for which the buffers of a layer must have room.
fn rank(spec: &Spec, layout: Option<&Layout>, keep: Keep, layer: usize, target: Target) -> usize {
    layout.map_or(0, |layout| match keep {
        Keep::All => layout.rank(layer, target),
        Keep::Layer => (0..spec.layers).map(|layer| layout.rank(layer, target)).max().unwrap_or(0),
    })
}

fn rope<B: Backend>(backend: &mut B, spec: &Spec, positions: usize) -> Result<(B::Wide, usize)> {
    let table: Vec<B::Element> = spec.rope_table(positions).into_iter().map(B::Element::from_f64).collect();
    let mut buffer = backend.wide(table.len())?;
    backend.upload(&mut buffer, 0, &table)?;
    Ok((buffer, positions))
}
