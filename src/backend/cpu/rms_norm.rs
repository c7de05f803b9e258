//! RMS norm: `out = x * rstd * weight`, `rstd = 1 / sqrt(mean(x^2) + eps)` (Zhang and Sennrich 2019).
//!
//! Backward, with `g = d_out * weight` and `n = x * rstd`: `d_x = rstd * (g - n * mean(g * n))`.

use super::context::Machine;
use super::parallel::{each_part, rows};
use super::simd::{Element, Float, multiversion, sum};
use super::weight::Weight;

/// Columns of the weight's gradient that are summed together.
const COLUMNS: usize = 64;

/// See [`Backend::rms_norm_fwd`](crate::backend::Backend::rms_norm_fwd); `scale` holds `[C]` elements of scratch.
#[allow(clippy::too_many_arguments)]
pub fn fwd<W: Float, R: Element<W>>(
    on: &Machine,
    scale: &mut [W],
    out: &mut [R],
    rstd: &mut [W],
    x: &[W],
    weight: &Weight<W, R>,
    count: usize,
    width: usize,
    eps: f64,
) {
    weight.read(on.isa, scale, 0);
    let outs = (rows("rms_norm_fwd", out, count, width), rows("rms_norm_fwd", rstd, count, 1));
    each_part(&on.team, count, width, outs, |first, (out, rstd)| {
        fwd_rows::<W, R>(on.isa, out, rstd, &x[first * width..], scale, W::from_f64(eps));
    });
}

multiversion! {
    fn fwd_rows[W: Float, R: Element<W>](out: &mut [R], rstd: &mut [W], x: &[W], scale: &[W], eps: W) {
        let width = scale.len();
        for ((out, rstd), x) in out.chunks_exact_mut(width).zip(rstd).zip(x.chunks_exact(width)) {
            let mean = sum(width, |i| x[i] * x[i]) / W::from_f64(width as f64);
            *rstd = W::ONE / (mean + eps).sqrt();
            for ((o, &x), &s) in out.iter_mut().zip(x).zip(scale) {
                *o = R::narrow(R::narrow(x * *rstd).widen() * s);
            }
        }
    }
}

/// See [`Backend::rms_norm_bwd`](crate::backend::Backend::rms_norm_bwd); `scale` holds `[C]` elements of scratch.
#[allow(clippy::too_many_arguments)]
pub fn bwd<W: Float, R: Element<W>>(
    on: &Machine,
    scale: &mut [W],
    d_x: &mut [W],
    d_out: &[W],
    x: &[W],
    rstd: &[W],
    weight: &Weight<W, R>,
    count: usize,
    width: usize,
) {
    weight.read(on.isa, scale, 0);
    each_part(&on.team, count, width, rows("rms_norm_bwd", d_x, count, width), |first, d_x| {
        bwd_rows(on.isa, d_x, &d_out[first * width..], &x[first * width..], &rstd[first..], scale);
    });
}

multiversion! {
    fn bwd_rows[W: Float](d_x: &mut [W], d_out: &[W], x: &[W], rstd: &[W], scale: &[W]) {
        let width = scale.len();
        for (row, d_x) in d_x.chunks_exact_mut(width).enumerate() {
            let (d_out, x, rstd) = (&d_out[row * width..][..width], &x[row * width..][..width], rstd[row]);
            let dot = sum(width, |i| d_out[i] * scale[i] * x[i]);
            let along = dot * rstd * rstd / W::from_f64(width as f64);
            for i in 0..width {
                d_x[i] += rstd * (d_out[i] * scale[i] - x[i] * along);
            }
        }
    }
}

/// See [`Backend::rms_norm_bwd_weight`](crate::backend::Backend::rms_norm_bwd_weight).
#[allow(clippy::too_many_arguments)]
pub fn bwd_weight<W: Float>(
    on: &Machine,
    d_weight: &mut [W],
    d_out: &[W],
    x: &[W],
    rstd: &[W],
    count: usize,
    width: usize,
) {
    let d_weight = &mut d_weight[..width];
    let whole = width / COLUMNS;
    let (columns, rest) = d_weight.split_at_mut(whole * COLUMNS);
    let cost = COLUMNS * count;
    each_part(&on.team, whole, cost, rows("rms_norm_bwd_weight", columns, whole, COLUMNS), |first, part| {
        bwd_columns(on.isa, part, &d_out[first * COLUMNS..], &x[first * COLUMNS..], &rstd[..count], width);
    });
    bwd_columns(on.isa, rest, &d_out[whole * COLUMNS..], &x[whole * COLUMNS..], &rstd[..count], width);
}

multiversion! {
    fn bwd_columns[W: Float](d_weight: &mut [W], d_out: &[W], x: &[W], rstd: &[W], width: usize) {
        for (part, d_weight) in d_weight.chunks_mut(COLUMNS).enumerate() {
            let mut sums = [W::ZERO; COLUMNS];
            for (row, &rstd) in rstd.iter().enumerate() {
                let from = row * width + part * COLUMNS;
                let (d_out, x) = (&d_out[from..][..d_weight.len()], &x[from..][..d_weight.len()]);
                for ((s, &d), &x) in sums.iter_mut().zip(d_out).zip(x) {
                    *s += d * x * rstd;
                }
            }
            for (d, &s) in d_weight.iter_mut().zip(&sums) {
                *d += s;
            }
        }
    }
}
