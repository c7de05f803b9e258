//! Layer norm: `out = (x - mean) * rstd * weight + bias`, `rstd = 1 / sqrt(mean((x - mean)^2) + eps)` (Ba et al. 2016).
//!
//! Backward, with `g = d_out * weight` and `n = (x - mean) * rstd`: `d_x = rstd * (g - mean(g) - n * mean(g * n))`.

use super::context::Exec;
use super::parallel::{each_part, rows};
use super::simd::{Element, Float, multiversion, sum};
use super::weight::Weight;

/// Columns of the gradients of weight and bias that are summed together.
const COLUMNS: usize = 64;

/// See [`Backend::layer_norm_fwd`](crate::backend::Backend::layer_norm_fwd); `affine` is scratch of `[C]` elements each.
#[allow(clippy::too_many_arguments)]
pub fn fwd<W: Float, R: Element<W>>(
    exec: &Exec,
    [scale, shift]: [&mut [W]; 2],
    out: &mut [R],
    [mean, rstd]: [&mut [W]; 2],
    x: &[W],
    [weight, bias]: [&Weight<W, R>; 2],
    count: usize,
    eps: W,
) {
    weight.read(exec.isa, scale, 0);
    bias.read(exec.isa, shift, 0);
    let (op, width) = ("layer_norm_fwd", scale.len());
    let outs = (rows(op, out, count, width), (rows(op, mean, count, 1), rows(op, rstd, count, 1)));
    each_part(&exec.pool, count, width, outs, |first, (out, (mean, rstd))| {
        fwd_rows::<W, R>(exec.isa, out, mean, rstd, &x[first * width..], scale, shift, eps);
    });
}

multiversion! {
    fn fwd_rows[W: Float, R: Element<W>](
        out: &mut [R],
        mean: &mut [W],
        rstd: &mut [W],
        x: &[W],
        scale: &[W],
        shift: &[W],
        eps: W,
    ) {
        let (width, count) = (scale.len(), W::from_f64(scale.len() as f64));
        for (row, (out, x)) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)).enumerate() {
            let middle = sum(width, |i| x[i]) / count;
            let spread = sum(width, |i| (x[i] - middle) * (x[i] - middle)) / count;
            let factor = W::ONE / (spread + eps).sqrt();
            (mean[row], rstd[row]) = (middle, factor);
            for i in 0..width {
                out[i] = R::narrow((x[i] - middle) * factor * scale[i] + shift[i]);
            }
        }
    }
}

/// See [`Backend::layer_norm_bwd`](crate::backend::Backend::layer_norm_bwd); `scale` holds `[C]` elements of scratch.
#[allow(clippy::too_many_arguments)]
pub fn bwd<W: Float, R: Element<W>>(
    exec: &Exec,
    scale: &mut [W],
    d_x: &mut [W],
    d_out: &[W],
    x: &[W],
    [mean, rstd]: [&[W]; 2],
    weight: &Weight<W, R>,
    count: usize,
) {
    weight.read(exec.isa, scale, 0);
    let width = scale.len();
    each_part(&exec.pool, count, width, rows("layer_norm_bwd", d_x, count, width), |first, d_x| {
        let from = first * width;
        bwd_rows(exec.isa, d_x, &d_out[from..], &x[from..], &mean[first..], &rstd[first..], scale);
    });
}

multiversion! {
    fn bwd_rows[W: Float](d_x: &mut [W], d_out: &[W], x: &[W], mean: &[W], rstd: &[W], scale: &[W]) {
        let (width, count) = (scale.len(), W::from_f64(scale.len() as f64));
        for (row, d_x) in d_x.chunks_exact_mut(width).enumerate() {
            let (d_out, x) = (&d_out[row * width..][..width], &x[row * width..][..width]);
            let (mean, rstd) = (mean[row], rstd[row]);
            let level = sum(width, |i| d_out[i] * scale[i]) / count;
            let along = sum(width, |i| d_out[i] * scale[i] * (x[i] - mean)) * rstd * rstd / count;
            for i in 0..width {
                d_x[i] += rstd * (d_out[i] * scale[i] - level - (x[i] - mean) * along);
            }
        }
    }
}

/// See [`Backend::layer_norm_bwd_affine`](crate::backend::Backend::layer_norm_bwd_affine).
pub fn bwd_affine<W: Float>(exec: &Exec, d_affine: &mut [W], d_out: &[W], x: &[W], [mean, rstd]: [&[W]; 2]) {
    let (op, width) = ("layer_norm_bwd_affine", d_affine.len() / 2);
    let (d_weight, d_bias) = d_affine.split_at_mut(width);
    let outs = (rows(op, d_weight, width, 1), rows(op, d_bias, width, 1));
    each_part(&exec.pool, width, mean.len(), outs, |first, (d_weight, d_bias)| {
        bwd_columns(exec.isa, d_weight, d_bias, &d_out[first..], &x[first..], mean, rstd, width);
    });
}

multiversion! {
    /// Sums of columns, each from the first row to the last.
    fn bwd_columns[W: Float](
        d_weight: &mut [W],
        d_bias: &mut [W],
        d_out: &[W],
        x: &[W],
        mean: &[W],
        rstd: &[W],
        width: usize,
    ) {
        let parts = d_weight.chunks_mut(COLUMNS).zip(d_bias.chunks_mut(COLUMNS));
        for (part, (d_weight, d_bias)) in parts.enumerate() {
            let (mut scales, mut shifts) = ([W::ZERO; COLUMNS], [W::ZERO; COLUMNS]);
            for (row, (&mean, &rstd)) in mean.iter().zip(rstd).enumerate() {
                let from = row * width + part * COLUMNS;
                let (d_out, x) = (&d_out[from..][..d_weight.len()], &x[from..][..d_weight.len()]);
                for i in 0..d_weight.len() {
                    scales[i] += d_out[i] * (x[i] - mean) * rstd;
                    shifts[i] += d_out[i];
                }
            }
            for i in 0..d_weight.len() {
                d_weight[i] += scales[i];
                d_bias[i] += shifts[i];
            }
        }
    }
}
