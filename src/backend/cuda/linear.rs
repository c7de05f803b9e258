//! Dense products by cuBLASLt, and the gradient of the bias.

use super::Cuda;
use super::context::Context;
use super::gemm::{Gemm, GemmShape, Operands};
use super::launch::{Kernel, LaunchDims, acc_ptr, compute_ptr, int};
use super::memory::DevicePtr;
use super::projections::{Product, Projections, Shared};
use crate::backend::ops::{LinearBwdBias, LinearBwdInput, LinearBwdWeight, LinearDims, LinearFwd, LinearOps, Op};

const FILE: &str = "linear";

/// A product of which nothing is said yet but its sizes.
fn shape(m: usize, n: usize, k: usize) -> GemmShape {
    let (transpose_a, transpose_b, acc_out, bias, accumulate) = (false, false, false, false, false);
    let (count, strides, alignment) = (1, [0; 3], 1);
    GemmShape { m, n, k, transpose_a, transpose_b, acc_out, bias, accumulate, count, strides, alignment }
}

/// Addresses of a forward product.
pub struct ForwardOperands {
    /// `[N, output]`, set.
    pub out: DevicePtr,
    /// Whether `out` is of the accumulation dtype.
    pub acc_out: bool,
    /// `[N, input]`.
    pub x: DevicePtr,
    /// `[output, input]`.
    pub weight: DevicePtr,
    /// `[output]`.
    pub bias: Option<DevicePtr>,
}

/// `out [N, output] = x [N, input] weight^T + bias`.
pub fn forward(cx: &mut Context, op: &'static str, operands: ForwardOperands, dims: LinearDims) {
    cx.gemm(op, forward_gemm(operands, dims));
}

/// The same, not on the list yet.
pub fn forward_gemm(operands: ForwardOperands, dims: LinearDims) -> Gemm {
    let LinearDims { rows, input, output } = dims;
    let ForwardOperands { out, acc_out, x, weight, bias } = operands;
    let shape = GemmShape { transpose_a: true, acc_out, bias: bias.is_some(), ..shape(output, rows, input) };
    Gemm::new(shape, Operands { a: weight, b: x, d: out, bias })
}

/// Addresses of the gradient of a product's input.
pub struct InputGradOperands {
    /// `[N, input]` of the accumulation dtype.
    pub d_x: DevicePtr,
    /// `[N, output]`.
    pub d_out: DevicePtr,
    /// `[output, input]`.
    pub weight: DevicePtr,
}

/// `d_x [N, input] = d_out [N, output] weight`, or `+=`.
pub fn input_grad(cx: &mut Context, op: &'static str, operands: InputGradOperands, dims: LinearDims, accumulate: bool) {
    cx.gemm(op, input_grad_gemm(operands, dims, accumulate));
}

fn input_grad_gemm(operands: InputGradOperands, dims: LinearDims, accumulate: bool) -> Gemm {
    let InputGradOperands { d_x, d_out, weight } = operands;
    let LinearDims { rows, input, output } = dims;
    let shape = GemmShape { acc_out: true, accumulate, ..shape(input, rows, output) };
    Gemm::new(shape, Operands { a: weight, b: d_out, d: d_x, bias: None })
}

/// Addresses of the gradient of a product's weight.
pub struct WeightGradOperands {
    /// `[output, input]` of the accumulation dtype, added to.
    pub d_weight: DevicePtr,
    /// `[N, output]`.
    pub d_out: DevicePtr,
    /// `[N, input]`.
    pub x: DevicePtr,
}

/// `d_weight [output, input] += d_out^T x`.
pub fn weight_grad(
    cx: &mut Context,
    op: &'static str,
    WeightGradOperands { d_weight, d_out, x }: WeightGradOperands,
    dims: LinearDims,
) {
    let LinearDims { rows, input, output } = dims;
    let shape = GemmShape { transpose_b: true, acc_out: true, accumulate: true, ..shape(input, output, rows) };
    cx.gemm(op, Gemm::new(shape, Operands { a: x, b: d_out, d: d_weight, bias: None }));
}

/// `d_bias [output] +=` the sum over rows of `d_out [N, output]`.
pub fn bias_grad(cx: &mut Context, op: &'static str, [d_bias, d_out]: [DevicePtr; 2], dims: LinearDims) {
    let args = [acc_ptr(d_bias), compute_ptr(d_out), int(dims.rows), int(dims.output)];
    cx.launch(op, Kernel::new(FILE, "linear_bwd_bias"), LaunchDims::columns(dims.output), &args);
}

impl LinearOps for Cuda {
    fn linear_fwd(&mut self, op: LinearFwd<'_, Self>) {
        self.begin(&op);
        let bias = op.bias.map(|bias| bias.dense().ptr(0));
        let Some(weight) = op.weight.forward_operand(&mut self.cx, op.dims.rows) else { return };
        let (out, x) = (op.out.ptr(0), op.x.ptr(0));
        let operands = ForwardOperands { out, acc_out: false, x, weight: weight.ptr(), bias };
        let gemm = forward_gemm(operands, op.dims);
        let product = Product::new(LinearFwd::<Self>::NAME, gemm, weight);
        Projections::add_product(&mut self.cx, Shared::Input(x), product);
    }

    fn linear_bwd_input(&mut self, op: LinearBwdInput<'_, Self>) {
        self.begin(&op);
        let Some(weight) = op.weight.operand(&mut self.cx) else { return };
        let operands = InputGradOperands { d_x: op.d_x.ptr(0), d_out: op.d_out.ptr(0), weight: weight.ptr() };
        let shared = Shared::InputGradient(Some(operands.d_x));
        let gemm = input_grad_gemm(operands, op.dims, op.accumulate);
        Projections::add_product(&mut self.cx, shared, Product::new(LinearBwdInput::<Self>::NAME, gemm, weight));
    }

    fn linear_bwd_weight(&mut self, op: LinearBwdWeight<'_, Self>) {
        self.begin(&op);
        let (d_weight, d_out, x) = (op.d_weight.ptr(op.offset), op.d_out.ptr(0), op.x.ptr(0));
        let operands = WeightGradOperands { d_weight, d_out, x };
        weight_grad(&mut self.cx, LinearBwdWeight::<Self>::NAME, operands, op.dims);
    }

    fn linear_bwd_bias(&mut self, op: LinearBwdBias<'_, Self>) {
        self.begin(&op);
        let dims = LinearDims { rows: op.rows, input: 0, output: op.output };
        bias_grad(&mut self.cx, LinearBwdBias::<Self>::NAME, [op.d_bias.ptr(op.offset), op.d_out.ptr(0)], dims);
    }
}
