//! The head, and cross-entropy fused with it: logits exist for a chunk of label rows at a time.

use super::Cuda;
use super::context::Context;
use super::launch::{Kernel, LaunchDims, acc_at, acc_ptr, compute, compute_ptr, float, int, long, table};
use super::linear::{self, ForwardOperands, InputGradOperands, WeightGradOperands};
use super::memory::DevicePtr;
use super::projections::Product;
use super::weight::Weight;
use crate::backend::ops::{
    CrossEntropyBwd, CrossEntropyFwd, CrossEntropyOps, HeadGradient, LinearDims, LogitsFwd, Op, logit_chunks,
};
use crate::backend::scratch::chunk_len;

const FILE: &str = "cross_entropy";

/// The logits of a chunk.
fn scratch(cx: &mut Context, what: &'static str, dims: LinearDims, element_size: usize) -> Option<DevicePtr> {
    cx.scratch(what, chunk_len(dims) * element_size)
}

/// Targets from row `from` on.
fn targets_from(targets: &super::Index, from: usize) -> DevicePtr {
    targets.ptr().add(from * size_of::<i32>())
}

/// `logits [rows, output] += bias` and then `= cap * tanh(logits / cap)`, if there are such.
fn bias_and_cap(
    cx: &mut Context,
    name: &'static str,
    logits: DevicePtr,
    (bias, softcap): (Option<&Weight>, Option<f64>),
    LinearDims { rows, output, .. }: LinearDims,
) {
    if let Some(bias) = bias {
        let args = [acc_ptr(logits), compute(bias.dense()), int(rows), int(output)];
        cx.launch(name, Kernel::new(FILE, "logits_bias"), LaunchDims::rows(rows), &args);
    }
    if let Some(cap) = softcap {
        let len = rows * output;
        let args = [acc_ptr(logits), float(cap), long(len)];
        cx.launch(name, Kernel::new(FILE, "logits_softcap"), LaunchDims::elements(len), &args);
    }
}

impl CrossEntropyOps for Cuda {
    fn logits_fwd(&mut self, op: LogitsFwd<'_, Self>) {
        self.begin(&op);
        let (name, cx) = (LogitsFwd::<Self>::NAME, &mut self.cx);
        let Some(weight) = op.head.forward_operand(cx, op.dims.rows) else { return };
        let (out, x) = (op.logits.ptr(0), op.x.ptr(0));
        let operands = ForwardOperands { out, acc_out: true, x, weight: weight.ptr(), bias: None };
        Product::new(name, linear::forward_gemm(operands, op.dims), weight).launch(cx);
        bias_and_cap(cx, name, out, (op.bias, op.softcap), op.dims);
    }

    fn cross_entropy_fwd(&mut self, op: CrossEntropyFwd<'_, Self>) {
        self.begin(&op);
        let (name, cx, dims) = (CrossEntropyFwd::<Self>::NAME, &mut self.cx, op.dims);
        let Some(logits) = scratch(cx, "logits", dims, size_of::<f32>()) else { return };
        let Some(weight) = op.head.elements(cx, name) else { return };
        for (from, chunk) in logit_chunks(dims) {
            let operands =
                ForwardOperands { out: logits, acc_out: true, x: op.x.ptr(from * dims.input), weight, bias: None };
            linear::forward(cx, name, operands, chunk);
            bias_and_cap(cx, name, logits, (op.bias, op.softcap), chunk);
            let targets = table(targets_from(op.targets, from));
            let args = [acc_at(op.loss, from), acc_ptr(logits), targets, int(chunk.rows), int(dims.output)];
            cx.launch(name, Kernel::new(FILE, name), LaunchDims::rows(chunk.rows), &args);
        }
    }

    fn cross_entropy_bwd(&mut self, op: CrossEntropyBwd<'_, Self>) {
        self.begin(&op);
        let (name, cx, dims) = (CrossEntropyBwd::<Self>::NAME, &mut self.cx, op.dims);
        let d_head = op.d_head.map(|HeadGradient { d, weight, bias }| (d.ptr(weight), bias.map(|bias| d.ptr(bias))));
        let Some(logits) = scratch(cx, "logits", dims, size_of::<f32>()) else { return };
        let Some(d_logits) = scratch(cx, "d_logits", dims, op.x.element_size()) else { return };
        let Some(weight) = op.head.elements(cx, name) else { return };
        for (from, chunk) in logit_chunks(dims) {
            let x = op.x.ptr(from * dims.input);
            let operands = ForwardOperands { out: logits, acc_out: true, x, weight, bias: None };
            linear::forward(cx, name, operands, chunk);
            bias_and_cap(cx, name, logits, (op.bias, op.softcap), chunk);
            let args = [
                acc_at(op.loss, from),
                compute_ptr(d_logits),
                acc_ptr(logits),
                table(targets_from(op.targets, from)),
                acc_at(op.row_weights, from),
                int(chunk.rows),
                int(dims.output),
                float(op.softcap.map_or(0.0, |cap| 1.0 / cap)),
            ];
            cx.launch(name, Kernel::new(FILE, name), LaunchDims::rows(chunk.rows), &args);
            let operands = InputGradOperands { d_x: op.d_x.ptr(from * dims.input), d_out: d_logits, weight };
            linear::input_grad(cx, name, operands, chunk, false);
            let Some((d_weight, d_bias)) = d_head else { continue };
            linear::weight_grad(cx, name, WeightGradOperands { d_weight, d_out: d_logits, x }, chunk);
            if let Some(d_bias) = d_bias {
                linear::bias_grad(cx, name, [d_bias, d_logits], chunk);
            }
        }
    }
}
