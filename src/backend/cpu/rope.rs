//! Rotary position embedding, halves rotated: `(a, b) -> (a cos - b sin, b cos + a sin)` (Su et al. 2021). The
//! gradient is turned by the opposite angle.

use super::context::Exec;
use super::parallel::{each_part, rows};
use super::simd::{Element, Float, multiversion};
use crate::pack::Pack;

/// See [`Backend::rope_fwd`](crate::backend::Backend::rope_fwd).
pub fn fwd<W: Float, R: Element<W>>(
    exec: &Exec,
    out: &mut [R],
    x: &[R],
    pack: &Pack,
    cos_sin: &[W],
    heads: usize,
    head_dim: usize,
) {
    let width = heads * head_dim;
    each_part(&exec.pool, pack.len(), width, rows("rope_fwd", out, pack.len(), width), |first, out| {
        for (i, out) in out.chunks_exact_mut(width).enumerate() {
            let position = pack.positions()[first + i] as usize;
            out.copy_from_slice(&x[(first + i) * width..][..width]);
            turn(exec.isa, out, &cos_sin[position * head_dim..][..head_dim], W::ONE);
        }
    });
}

/// See [`Backend::rope_bwd`](crate::backend::Backend::rope_bwd).
pub fn bwd<W: Float, R: Element<W>>(
    exec: &Exec,
    d_x: &mut [R],
    pack: &Pack,
    cos_sin: &[W],
    heads: usize,
    head_dim: usize,
) {
    let width = heads * head_dim;
    each_part(&exec.pool, pack.len(), width, rows("rope_bwd", d_x, pack.len(), width), |first, d_x| {
        for (i, d_x) in d_x.chunks_exact_mut(width).enumerate() {
            let position = pack.positions()[first + i] as usize;
            turn(exec.isa, d_x, &cos_sin[position * head_dim..][..head_dim], -W::ONE);
        }
    });
}

multiversion! {
    /// Turns every head by the angles, forward or (`sign = -1`) back.
    fn turn[W: Float, R: Element<W>](x: &mut [R], cos_sin: &[W], sign: W) {
        let half = cos_sin.len() / 2;
        let (cos, sin) = cos_sin.split_at(half);
        for head in x.chunks_exact_mut(2 * half) {
            let (first, second) = head.split_at_mut(half);
            for i in 0..half {
                let (a, b): (W, W) = (first[i].widen(), second[i].widen());
                let (c, s) = (cos[i], sign * sin[i]);
                first[i] = R::narrow(a * c - b * s);
                second[i] = R::narrow(b * c + a * s);
            }
        }
    }
}
