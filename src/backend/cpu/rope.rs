//! Rotary position embedding: `(a, b) -> (a cos - b sin, b cos + a sin)`; the gradient is rotated by the opposite angle. A
//! task is some rows.

use super::Cpu;
use super::context::Context;
use super::kernel::Kernel;
use super::parallel::{each_part, rows};
use super::simd::{Element, Float, each_lanes, multiversion, some, some_mut};
use crate::arch::RopePairs;
use crate::backend::ops::{RopeBwd, RopeFwd, RopeOps};
use crate::pack::Pack;

impl<A: Float> RopeOps for Cpu<A> {
    fn rope_fwd(&mut self, op: RopeFwd<'_, Self>) {
        let _span = self.begin(&op);
        self.run(op);
    }

    fn rope_bwd(&mut self, op: RopeBwd<'_, Self>) {
        let _span = self.begin(&op);
        self.run(op);
    }
}

impl<A: Float> Kernel<A> for RopeFwd<'_, Cpu<A>> {
    fn run<C: Element<A>>(self, cx: &mut Context<A>) {
        let Self { x, pack, cos_sin, heads, head_dim, rotary_dim, pairs } = self;
        let dims = [heads, head_dim, rotary_dim];
        rotate_rows(cx, "rope_fwd", C::slice_mut(x), pack, cos_sin, dims, (pairs, A::ONE));
    }
}

impl<A: Float> Kernel<A> for RopeBwd<'_, Cpu<A>> {
    fn run<C: Element<A>>(self, cx: &mut Context<A>) {
        let Self { d_x, pack, cos_sin, heads, head_dim, rotary_dim, pairs } = self;
        let dims = [heads, head_dim, rotary_dim];
        rotate_rows(cx, "rope_bwd", C::slice_mut(d_x), pack, cos_sin, dims, (pairs, -A::ONE));
    }
}

/// Pairs of numbers, all `N` first ones and all second ones, rotated by their angles.
#[inline(always)]
fn turned<A: Float, C: Element<A>, const N: usize>([a, b]: [&[C; N]; 2], cos: &[A; N], sin: &[A; N]) -> [[C; N]; 2] {
    let mut out = [[C::default(); N]; 2];
    for i in 0..N {
        let (a, b): (A, A) = (a[i].widen(), b[i].widen());
        out[0][i] = C::narrow(a * cos[i] - b * sin[i]);
        out[1][i] = C::narrow(b * cos[i] + a * sin[i]);
    }
    out
}

/// Rotates the heads of every row by the angles of its position, times `sign`.
fn rotate_rows<A: Float, C: Element<A>>(
    cx: &Context<A>,
    op: &'static str,
    x: &mut [C],
    pack: &Pack,
    cos_sin: &[A],
    [heads, head_dim, rotary_dim]: [usize; 3],
    (pairs, sign): (RopePairs, A),
) {
    let (exec, width) = (&cx.exec, heads * head_dim);
    each_part(&exec.pool, pack.len(), width, rows(op, x, pack.len(), width), |first, x| {
        for (i, x) in x.chunks_exact_mut(width).enumerate() {
            let position = pack.positions()[first + i] as usize;
            let angles = &cos_sin[position * rotary_dim..][..rotary_dim];
            match pairs {
                RopePairs::Halves => rotate(exec.isa, x, angles, head_dim, sign),
                RopePairs::Neighbours => rotate_neighbours(exec.isa, x, angles, head_dim, sign),
            }
        }
    });
}

multiversion! {
    /// The same of pairs that are neighbours.
    fn rotate_neighbours[A: Float, C: Element<A>](x: &mut [C], cos_sin: &[A], head_dim: usize, sign: A) {
        let half = cos_sin.len() / 2;
        let (cos, sin) = cos_sin.split_at(half);
        for head in x.chunks_exact_mut(head_dim) {
            for ((pair, &cos), &sin) in head[..2 * half].chunks_exact_mut(2).zip(cos).zip(sin) {
                let [[a], [b]] = turned::<A, C, 1>([&[pair[0]], &[pair[1]]], &[cos], &[sign * sin]);
                pair.copy_from_slice(&[a, b]);
            }
        }
    }
}

multiversion! {
    /// Rotates the leading elements of every head by the angles, times `sign`, in place: those of its first half with those of
    /// its second.
    fn rotate[A: Float, C: Element<A>](x: &mut [C], cos_sin: &[A], head_dim: usize, sign: A) {
        let half = cos_sin.len() / 2;
        let (cos, sin) = cos_sin.split_at(half);
        for head in x.chunks_exact_mut(head_dim) {
            let (first, second) = head[..2 * half].split_at_mut(half);
            each_lanes!(half, |at, N| {
                let sin = some::<A, N>(sin, at).map(|sin| sign * sin);
                let pairs = turned::<A, C, N>([some(first, at), some(second, at)], some(cos, at), &sin);
                [*some_mut(first, at), *some_mut(second, at)] = pairs;
            });
        }
    }
}
