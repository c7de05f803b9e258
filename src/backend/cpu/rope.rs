//! Rotary position embedding: `(a, b) -> (a cos - b sin, b cos + a sin)`; the gradient is rotated by the opposite angle. A
//! task is some rows.

use super::Cpu;
use super::context::Context;
use super::kernel::Kernel;
use super::parallel::{each_part, rows};
use super::simd::{Element, Float, each_lanes, multiversion, some, some_mut};
use crate::backend::ops::{RopeBwd, RopeFwd, RopeOps};

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
        let Self { out, x, pack, cos_sin, heads, head_dim, rotary_dim } = self;
        let (exec, x, width) = (&cx.exec, C::slice(x), heads * head_dim);
        let out = rows("rope_fwd", C::slice_mut(out), pack.len(), width);
        each_part(&exec.pool, pack.len(), width, out, |first, out| {
            for (i, out) in out.chunks_exact_mut(width).enumerate() {
                let position = pack.positions()[first + i] as usize;
                let x = &x[(first + i) * width..][..width];
                rotate(exec.isa, out, x, &cos_sin[position * rotary_dim..][..rotary_dim], head_dim);
            }
        });
    }
}

impl<A: Float> Kernel<A> for RopeBwd<'_, Cpu<A>> {
    fn run<C: Element<A>>(self, cx: &mut Context<A>) {
        let Self { d_x, pack, cos_sin, heads, head_dim, rotary_dim } = self;
        let (exec, width) = (&cx.exec, heads * head_dim);
        let d_x = rows("rope_bwd", C::slice_mut(d_x), pack.len(), width);
        each_part(&exec.pool, pack.len(), width, d_x, |first, d_x| {
            for (i, d_x) in d_x.chunks_exact_mut(width).enumerate() {
                let position = pack.positions()[first + i] as usize;
                rotate_back(exec.isa, d_x, &cos_sin[position * rotary_dim..][..rotary_dim], head_dim);
            }
        });
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

multiversion! {
    /// `out = ` the heads of `x`, their leading elements rotated by the angles: each is read and written once.
    fn rotate[A: Float, C: Element<A>](out: &mut [C], x: &[C], cos_sin: &[A], head_dim: usize) {
        let half = cos_sin.len() / 2;
        let (cos, sin) = cos_sin.split_at(half);
        for (out, x) in out.chunks_exact_mut(head_dim).zip(x.chunks_exact(head_dim)) {
            let ((out, rest), (x, x_rest)) = (out.split_at_mut(2 * half), x.split_at(2 * half));
            let ((first, second), (a, b)) = (out.split_at_mut(half), x.split_at(half));
            each_lanes!(half, |at, N| {
                let pairs = turned::<A, C, N>([some(a, at), some(b, at)], some(cos, at), some(sin, at));
                [*some_mut(first, at), *some_mut(second, at)] = pairs;
            });
            rest.copy_from_slice(x_rest);
        }
    }
}

multiversion! {
    /// Rotates the leading elements of every head by the opposite angles, in place.
    fn rotate_back[A: Float, C: Element<A>](x: &mut [C], cos_sin: &[A], head_dim: usize) {
        let half = cos_sin.len() / 2;
        let (cos, sin) = cos_sin.split_at(half);
        for head in x.chunks_exact_mut(head_dim) {
            let (first, second) = head[..2 * half].split_at_mut(half);
            each_lanes!(half, |at, N| {
                let back = some::<A, N>(sin, at).map(|sin| -sin);
                let pairs = turned::<A, C, N>([some(first, at), some(second, at)], some(cos, at), &back);
                [*some_mut(first, at), *some_mut(second, at)] = pairs;
            });
        }
    }
}
