//! Rotary position embedding. Queries and keys, one after the other, are rotated in one launch.

use super::Cuda;
use super::context::{Context, Deferred};
use super::geometry::blocks2;
use super::launch::{Arg, Kernel, LaunchDims, Param, acc, compute, int, table};
use crate::backend::ops::{Op, RopeBwd, RopeFwd, RopeOps};

const FILE: &str = "rope";

/// A tensor that is rotated.
#[derive(Clone)]
struct Rotated {
    /// `[rows, heads, D]`: the output and the input, or both in one.
    buffers: Vec<Arg>,
    heads: usize,
}

/// A rotation, which may be that of another tensor too.
struct Rotation {
    name: &'static str,
    rotated: Rotated,
    rows: usize,
    /// Positions and the table of cosines and sines; widths of a head and of its rotated part.
    angles: [Arg; 2],
    widths: [usize; 2],
}

impl Rotation {
    /// Whether another tensor is rotated in the same way.
    fn is_like(&self, other: &Self) -> bool {
        let key = |r: &Self| (r.name, r.rows, r.angles, r.widths);
        key(self) == key(other)
    }

    /// One launch for this tensor and another.
    fn launch(self, cx: &mut Context, other: Option<Rotated>) {
        let Self { name, rotated, rows, angles, widths } = self;
        let tensors = 1 + usize::from(other.is_some());
        let none = Rotated { buffers: rotated.buffers.iter().map(|_| Arg::null(Param::Compute)).collect(), heads: 0 };
        let other = other.unwrap_or(none);
        let heads = [rotated.heads, other.heads, widths[0], widths[1]].map(int);
        let args = [&rotated.buffers[..], &other.buffers, &angles, &[int(rows)], &heads].concat();
        cx.launch(name, Kernel::new(FILE, name), LaunchDims::new(blocks2(rows, tensors)), &args);
    }

    /// Rotates with the tensor before, or leaves it to the next.
    fn join(self, cx: &mut Context) {
        match cx.take_deferred(|before: &Self| before.is_like(&self)) {
            Some(before) => before.launch(cx, Some(self.rotated)),
            None => {
                let args = [&self.rotated.buffers[..], &self.angles].concat();
                cx.defer(self.name, &args, self);
            }
        }
    }
}

impl Deferred for Rotation {
    fn launch(self: Box<Self>, cx: &mut Context) {
        Self::launch(*self, cx, None);
    }
}

impl RopeOps for Cuda {
    fn rope_fwd(&mut self, op: RopeFwd<'_, Self>) {
        self.begin(&op);
        let RopeFwd { heads, head_dim, rotary_dim, pack, .. } = op;
        let rotated = Rotated { buffers: vec![compute(op.out), compute(op.x)], heads };
        let (angles, widths) = ([table(pack.positions()), acc(op.cos_sin)], [head_dim, rotary_dim]);
        Rotation { name: RopeFwd::<Self>::NAME, rotated, rows: pack.len(), angles, widths }.join(&mut self.cx);
    }

    fn rope_bwd(&mut self, op: RopeBwd<'_, Self>) {
        self.begin(&op);
        let RopeBwd { heads, head_dim, rotary_dim, pack, .. } = op;
        let rotated = Rotated { buffers: vec![compute(op.d_x)], heads };
        let (angles, widths) = ([table(pack.positions()), acc(op.cos_sin)], [head_dim, rotary_dim]);
        Rotation { name: RopeBwd::<Self>::NAME, rotated, rows: pack.len(), angles, widths }.join(&mut self.cx);
    }
}
