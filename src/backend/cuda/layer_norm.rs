//! Layer norm.

use super::context::{Context, Kernel};
use super::launch::{float, int, real, wide, wide_at};
use super::memory::{Buffer, needs};
use super::rms_norm::columns;
use super::rows::each;

const FILE: &str = "layer_norm";

/// See [`Backend::layer_norm_fwd`](crate::backend::Backend::layer_norm_fwd).
#[allow(clippy::too_many_arguments)]
pub fn fwd<R>(
    cx: &mut Context,
    out: &Buffer<R>,
    [mean, rstd]: [&Buffer<f32>; 2],
    x: &Buffer<f32>,
    [weight, bias]: [&Buffer<R>; 2],
    rows: usize,
    width: usize,
    eps: f64,
) {
    let op = "layer_norm_fwd";
    out.need(op, "out", rows * width);
    x.need(op, "x", rows * width);
    needs(op, rows, &[("mean", mean), ("rstd", rstd)]);
    needs(op, width, &[("weight", weight), ("bias", bias)]);
    let args =
        [real(out), wide(mean), wide(rstd), wide(x), real(weight), real(bias), int(rows), int(width), float(eps)];
    cx.launch(op, Kernel::new(FILE, op), each(rows), &args);
}

/// See [`Backend::layer_norm_bwd`](crate::backend::Backend::layer_norm_bwd).
#[allow(clippy::too_many_arguments)]
pub fn bwd<R>(
    cx: &mut Context,
    d_x: &Buffer<f32>,
    d_out: &Buffer<f32>,
    x: &Buffer<f32>,
    [mean, rstd]: [&Buffer<f32>; 2],
    weight: &Buffer<R>,
    rows: usize,
    width: usize,
) {
    let op = "layer_norm_bwd";
    needs(op, rows * width, &[("d_x", d_x), ("d_out", d_out), ("x", x)]);
    needs(op, rows, &[("mean", mean), ("rstd", rstd)]);
    weight.need(op, "weight", width);
    let args = [wide(d_x), wide(d_out), wide(x), wide(mean), wide(rstd), real(weight), int(rows), int(width)];
    cx.launch(op, Kernel::new(FILE, op), each(rows), &args);
}

/// See [`Backend::layer_norm_bwd_affine`](crate::backend::Backend::layer_norm_bwd_affine).
#[allow(clippy::too_many_arguments)]
pub fn bwd_affine(
    cx: &mut Context,
    d_affine: &Buffer<f32>,
    offset: usize,
    d_out: &Buffer<f32>,
    x: &Buffer<f32>,
    [mean, rstd]: [&Buffer<f32>; 2],
    rows: usize,
    width: usize,
) {
    let op = "layer_norm_bwd_affine";
    d_affine.need(op, "d_affine", offset + 2 * width);
    needs(op, rows * width, &[("d_out", d_out), ("x", x)]);
    needs(op, rows, &[("mean", mean), ("rstd", rstd)]);
    let args = [wide_at(d_affine, offset), wide(d_out), wide(x), wide(mean), wide(rstd), int(rows), int(width)];
    cx.launch(op, Kernel::new(FILE, op), columns(width), &args);
}
