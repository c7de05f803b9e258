//! The buffers of a forward, planned once from the spec and a number of rows.

use super::adaptation::Layout;
use super::spec::Spec;
use crate::Result;
use crate::backend::{Backend, WideElement};
use crate::formats::adapter::Target;

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
    pub attn_rstd: B::Wide,
    pub attn_norm: B::Real,
    pub v: B::Real,
    pub rot_q: B::Real,
    pub rot_k: B::Real,
    pub lse: B::Wide,
    pub z: B::Real,
    pub resid_mid: B::Wide,
    pub mlp_rstd: B::Wide,
    pub mlp_norm: B::Real,
    pub gate: B::Real,
    pub up: B::Real,
    pub act: B::Real,
    pub lora_xa: [Option<B::Wide>; 7],
}

/// The buffers of a forward for packs of up to `rows` rows.
pub struct Activations<B: Backend> {
    /// Rows that there is room for.
    pub rows: usize,
    /// What outlives its layer.
    pub keep: Keep,
    /// Final norm's output `[N, C]`, weight applied.
    pub final_norm: B::Real,
    pub(super) final_rstd: B::Wide,
    pub(super) resid: Vec<B::Wide>,
    pub(super) layers: Vec<LayerActivations<B>>,
    /// Queries and keys before the rotation, and what the two halves of a block add to the residual stream.
    pub(super) q: B::Real,
    pub(super) k: B::Real,
    pub(super) attn_out: B::Real,
    pub(super) mlp_out: B::Real,
    /// The rotation's table and the positions it covers.
    pub(super) rope: (B::Wide, usize),
}

/// Elements of the wide and of the compute-dtype buffers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Size {
    wide: usize,
    real: usize,
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
                let mut xa = |target| match rank(spec, layout, keep, layer, target) {
                    0 => Ok(None),
                    rank => backend.wide(n * rank).map(Some),
                };
                let mut lora_xa = [const { None }; 7];
                for target in Target::ALL {
                    lora_xa[target as usize] = xa(target)?;
                }
                Ok(LayerActivations {
                    attn_rstd: backend.wide(n)?,
                    attn_norm: backend.real(n * c)?,
                    v: backend.real(n * kv)?,
                    rot_q: backend.real(n * q)?,
                    rot_k: backend.real(n * kv)?,
                    lse: backend.wide(n * spec.heads)?,
                    z: backend.real(n * q)?,
                    resid_mid: backend.wide(n * c)?,
                    mlp_rstd: backend.wide(n)?,
                    mlp_norm: backend.real(n * c)?,
                    gate: backend.real(n * f)?,
                    up: backend.real(n * f)?,
                    act: backend.real(n * f)?,
                    lora_xa,
                })
            })
            .collect::<Result<_>>()?;
        let resid = (0..resid).map(|_| backend.wide(n * c)).collect::<Result<_>>()?;
        Ok(Self {
            rows,
            keep,
            final_norm: backend.real(n * c)?,
            final_rstd: backend.wide(n)?,
            resid,
            layers,
            q: backend.real(n * q)?,
            k: backend.real(n * kv)?,
            attn_out: backend.real(n * c)?,
            mlp_out: backend.real(n * c)?,
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
        let (c, q, kv, f) = (spec.width, spec.q_width(), spec.kv_width(), spec.ffn);
        let (layers, resid) = buffers(spec, keep);
        let mut size = Size { wide: resid * c + 1, real: c + q + kv + 2 * c };
        for layer in 0..layers {
            let xa: usize = Target::ALL.iter().map(|&target| rank(spec, layout, keep, layer, target)).sum();
            size.wide += 2 + spec.heads + c + xa;
            size.real += 2 * c + 2 * kv + 2 * q + 3 * f;
        }
        rows * (size.wide * element_sizes.0 + size.real * element_sizes.1 + spec.head_dim * element_sizes.0)
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
        if positions > self.rope.1 || (spec.rope_depends_on_length() && positions != self.rope.1) {
            self.rope = rope(backend, spec, positions)?;
        }
        Ok(())
    }
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
