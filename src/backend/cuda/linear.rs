//! Dense products by cuBLASLt, and the gradient of the bias.

use super::blas::{Product, Shape};
use super::context::{Context, Kernel};
use super::launch::{int, real, wide_at};
use super::memory::Buffer;
use super::rms_norm::columns;
use crate::backend::LinearDims;

const FILE: &str = "linear";

/// A product of which nothing is said yet but its sizes.
fn shape(m: usize, n: usize, k: usize) -> Shape {
    Shape { m, n, k, transpose_a: false, transpose_b: false, wide: false, bias: false, accumulate: false, alignment: 1 }
}

/// `out [N, output] = x [N, input] weight^T + bias` at addresses; `wide` says what `out` is.
#[allow(clippy::too_many_arguments)]
pub fn forward(
    cx: &mut Context,
    op: &'static str,
    out: u64,
    wide: bool,
    x: u64,
    weight: u64,
    bias: u64,
    dims: LinearDims,
) {
    let LinearDims { rows, input, output } = dims;
    let shape = Shape { transpose_a: true, wide, bias: bias != 0, ..shape(output, rows, input) };
    cx.product(op, Product::new(shape, weight, x, out, bias));
}

/// `d_x [N, input] (wide) = d_out [N, output] weight`, or `+=`, at addresses.
pub fn input(
    cx: &mut Context,
    op: &'static str,
    d_x: u64,
    d_out: u64,
    weight: u64,
    dims: LinearDims,
    accumulate: bool,
) {
    let LinearDims { rows, input, output } = dims;
    let shape = Shape { wide: true, accumulate, ..shape(input, rows, output) };
    cx.product(op, Product::new(shape, weight, d_out, d_x, 0));
}

/// `d_weight [output, input] (wide) += d_out^T x`, at addresses.
pub fn weight(cx: &mut Context, op: &'static str, d_weight: u64, d_out: u64, x: u64, dims: LinearDims) {
    let LinearDims { rows, input, output } = dims;
    let shape = Shape { transpose_b: true, wide: true, accumulate: true, ..shape(input, output, rows) };
    cx.product(op, Product::new(shape, x, d_out, d_weight, 0));
}

/// See [`Backend::linear_fwd`](crate::backend::Backend::linear_fwd).
pub fn fwd<R>(
    cx: &mut Context,
    out: &Buffer<R>,
    x: &Buffer<R>,
    weight: &Buffer<R>,
    bias: Option<&Buffer<R>>,
    dims: LinearDims,
) {
    let op = "linear_fwd";
    out.need(op, "out", dims.rows * dims.output);
    x.need(op, "x", dims.rows * dims.input);
    weight.need(op, "weight", dims.output * dims.input);
    let bias = bias.map_or(0, |bias| {
        bias.need(op, "bias", dims.output);
        bias.address(0)
    });
    forward(cx, op, out.address(0), false, x.address(0), weight.address(0), bias, dims);
}

/// See [`Backend::linear_bwd_input`](crate::backend::Backend::linear_bwd_input).
pub fn bwd_input<R>(
    cx: &mut Context,
    d_x: &Buffer<f32>,
    d_out: &Buffer<R>,
    weight: &Buffer<R>,
    dims: LinearDims,
    accumulate: bool,
) {
    let op = "linear_bwd_input";
    d_x.need(op, "d_x", dims.rows * dims.input);
    d_out.need(op, "d_out", dims.rows * dims.output);
    weight.need(op, "weight", dims.output * dims.input);
    input(cx, op, d_x.address(0), d_out.address(0), weight.address(0), dims, accumulate);
}

/// See [`Backend::linear_bwd_weight`](crate::backend::Backend::linear_bwd_weight).
pub fn bwd_weight<R>(
    cx: &mut Context,
    d_weight: &Buffer<f32>,
    offset: usize,
    d_out: &Buffer<R>,
    x: &Buffer<R>,
    dims: LinearDims,
) {
    let op = "linear_bwd_weight";
    d_weight.need(op, "d_weight", offset + dims.output * dims.input);
    d_out.need(op, "d_out", dims.rows * dims.output);
    x.need(op, "x", dims.rows * dims.input);
    weight(cx, op, d_weight.address(offset), d_out.address(0), x.address(0), dims);
}

/// See [`Backend::linear_bwd_bias`](crate::backend::Backend::linear_bwd_bias).
pub fn bwd_bias<R>(
    cx: &mut Context,
    d_bias: &Buffer<f32>,
    offset: usize,
    d_out: &Buffer<R>,
    rows: usize,
    output: usize,
) {
    let op = "linear_bwd_bias";
    d_bias.need(op, "d_bias", offset + output);
    d_out.need(op, "d_out", rows * output);
    let args = [wide_at(d_bias, offset), real(d_out), int(rows), int(output)];
    cx.launch(op, Kernel::new(FILE, op), columns(output), &args);
}
