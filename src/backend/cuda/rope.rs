//! Rotary position embedding. Queries and keys, one after the other, are rotated in one launch, or in that of the LoRAs before, and
//! their gradients in those of the attention's backward.

use super::Cuda;
use super::context::Context;
use super::fused::{AttentionGradients, Rotation};
use super::launch::{acc, compute, table};
use super::projections::Projections;
use crate::backend::ops::{Op, RopeBwd, RopeFwd, RopeOps};

/// Rotates where the tensor is made, or with the tensor before, or leaves it to the next.
fn rotate(cx: &mut Context, rotation: Rotation) {
    let rotated = rotation.rotated;
    let done = Projections::rotate(cx, &rotation)
        || AttentionGradients::rotate(cx, &rotation)
        || cx.fuse(|before: &Rotation| before.is_like(&rotation), |before, cx| before.launch(cx, Some(rotated)));
    if !done {
        let [positions, cos_sin] = rotation.angles;
        cx.defer(rotation.name, &[rotated.0, positions, cos_sin], rotation);
    }
}

impl RopeOps for Cuda {
    fn rope_fwd(&mut self, op: RopeFwd<'_, Self>) {
        self.begin(&op);
        let RopeFwd { heads, head_dim, rotary_dim, pairs, pack, .. } = op;
        let rotated = (compute(op.x), heads);
        let (angles, widths) = ([table(pack.positions()), acc(op.cos_sin)], [head_dim, rotary_dim]);
        let name = RopeFwd::<Self>::NAME;
        rotate(&mut self.cx, Rotation { name, rotated, rows: pack.len(), angles, widths, pairs });
    }

    fn rope_bwd(&mut self, op: RopeBwd<'_, Self>) {
        self.begin(&op);
        let RopeBwd { heads, head_dim, rotary_dim, pairs, pack, .. } = op;
        let rotated = (compute(op.d_x), heads);
        let (angles, widths) = ([table(pack.positions()), acc(op.cos_sin)], [head_dim, rotary_dim]);
        let name = RopeBwd::<Self>::NAME;
        rotate(&mut self.cx, Rotation { name, rotated, rows: pack.len(), angles, widths, pairs });
    }
}
