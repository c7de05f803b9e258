//! RMS norm.

use super::context::{Context, Kernel, Shape};
use super::geometry::{COLUMNS, blocks};
use super::launch::{BLOCK, float, int, real, wide, wide_at};
use super::memory::{Buffer, needs};
use super::rows::each;

const FILE: &str = "rms_norm";

/// The launch of a sum over rows, column by column.
pub fn columns(width: usize) -> Shape {
    Shape { grid: blocks(width.div_ceil(COLUMNS)), block: BLOCK, shared: 0 }
}

/// See [`Backend::rms_norm_fwd`](crate::backend::Backend::rms_norm_fwd). A sum that was asked for just before, and that
/// nobody has looked at, is made by the same kernel.
#[allow(clippy::too_many_arguments)]
pub fn fwd<R>(
    cx: &mut Context,
    out: &Buffer<R>,
    rstd: &Buffer<f32>,
    x: &Buffer<f32>,
    weight: &Buffer<R>,
    rows: usize,
    width: usize,
    eps: f64,
) {
    let op = "rms_norm_fwd";
    out.need(op, "out", rows * width);
    rstd.need(op, "rstd", rows);
    x.need(op, "x", rows * width);
    weight.need(op, "weight", width);
    if let Some([a, b]) = cx.take_residual(x, rows * width) {
        let args = [wide(x), real(out), wide(rstd), a, b, real(weight), int(rows), int(width), float(eps)];
        cx.launch(op, Kernel::new(FILE, "residual_rms_norm_fwd"), each(rows), &args);
        return;
    }
    let args = [real(out), wide(rstd), wide(x), real(weight), int(rows), int(width), float(eps)];
    cx.launch(op, Kernel::new(FILE, op), each(rows), &args);
}

/// See [`Backend::rms_norm_bwd`](crate::backend::Backend::rms_norm_bwd).
#[allow(clippy::too_many_arguments)]
pub fn bwd<R>(
    cx: &mut Context,
    d_x: &Buffer<f32>,
    d_out: &Buffer<f32>,
    x: &Buffer<f32>,
    rstd: &Buffer<f32>,
    weight: &Buffer<R>,
    rows: usize,
    width: usize,
) {
    let op = "rms_norm_bwd";
    needs(op, rows * width, &[("d_x", d_x), ("d_out", d_out), ("x", x)]);
    rstd.need(op, "rstd", rows);
    weight.need(op, "weight", width);
    let args = [wide(d_x), wide(d_out), wide(x), wide(rstd), real(weight), int(rows), int(width)];
    cx.launch(op, Kernel::new(FILE, op), each(rows), &args);
}

/// See [`Backend::rms_norm_bwd_weight`](crate::backend::Backend::rms_norm_bwd_weight).
#[allow(clippy::too_many_arguments)]
pub fn bwd_weight(
    cx: &mut Context,
    d_weight: &Buffer<f32>,
    offset: usize,
    d_out: &Buffer<f32>,
    x: &Buffer<f32>,
    rstd: &Buffer<f32>,
    rows: usize,
    width: usize,
) {
    let op = "rms_norm_bwd_weight";
    d_weight.need(op, "d_weight", offset + width);
    needs(op, rows * width, &[("d_out", d_out), ("x", x)]);
    rstd.need(op, "rstd", rows);
    let args = [wide_at(d_weight, offset), wide(d_out), wide(x), wide(rstd), int(rows), int(width)];
    cx.launch(op, Kernel::new(FILE, op), columns(width), &args);
}
