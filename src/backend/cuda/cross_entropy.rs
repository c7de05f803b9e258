//! The head, and cross-entropy fused with it: logits exist for a chunk of label rows at a time.

use super::Cuda;
use super::context::Context;
use super::launch::{Arg, Kernel, LaunchDims, acc, acc_at, acc_ptr, compute_ptr, float, int, long, table};
use super::linear::{self, ForwardOperands, InputGradOperands, WeightGradOperands};
use super::memory::DevicePtr;
use crate::backend::ops::{CrossEntropyBwd, CrossEntropyFwd, CrossEntropyOps, LinearDims, LogitsFwd, Op};

const FILE: &str = "cross_entropy";
/// Logits of a chunk at most.
const LOGITS: usize = 16 << 20;

/// The chunks of label rows: first row, and the dimensions of the chunk.
fn chunks(dims: LinearDims) -> impl Iterator<Item = (usize, LinearDims)> {
    let step = (LOGITS / dims.output.max(1)).clamp(1, dims.rows.max(1));
    (0..dims.rows).step_by(step).map(move |from| (from, LinearDims { rows: step.min(dims.rows - from), ..dims }))
}

/// Logits of the largest chunk.
pub fn chunk_len(dims: LinearDims) -> usize {
    chunks(dims).map(|(_, chunk)| chunk.rows).max().unwrap_or(0) * dims.output
}

/// The logits of a chunk.
fn scratch(cx: &mut Context, what: &'static str, dims: LinearDims, element_size: usize) -> Option<DevicePtr> {
    cx.scratch(what, chunk_len(dims) * element_size)
}

/// Targets from row `from` on.
fn targets_from(targets: &super::Index, from: usize) -> DevicePtr {
    targets.ptr().add(from * size_of::<i32>())
}

/// How the kernels are told of a soft cap; 0 is none.
fn cap(softcap: Option<f64>) -> Arg {
    float(softcap.unwrap_or(0.0))
}

impl CrossEntropyOps for Cuda {
    fn logits_fwd(&mut self, op: LogitsFwd<'_, Self>) {
        op.check();
        let (out, x, weight) = (op.logits.ptr(0), op.x.ptr(0), op.head.ptr(0));
        let operands = ForwardOperands { out, acc_out: true, x, weight, bias: None };
        let (name, len) = (LogitsFwd::<Self>::NAME, op.dims.rows * op.dims.output);
        linear::forward(&mut self.cx, name, operands, op.dims);
        if op.softcap.is_some() {
            let args = [acc(op.logits), cap(op.softcap), long(len)];
            self.cx.launch(name, Kernel::new(FILE, "logits_softcap"), LaunchDims::elements(len), &args);
        }
    }

    fn cross_entropy_fwd(&mut self, op: CrossEntropyFwd<'_, Self>) {
        op.check();
        let (name, cx, dims) = (CrossEntropyFwd::<Self>::NAME, &mut self.cx, op.dims);
        let Some(logits) = scratch(cx, "logits", dims, size_of::<f32>()) else { return };
        for (from, chunk) in chunks(dims) {
            let (x, weight) = (op.x.ptr(from * dims.input), op.head.ptr(0));
            let operands = ForwardOperands { out: logits, acc_out: true, x, weight, bias: None };
            linear::forward(cx, name, operands, chunk);
            let targets = table(targets_from(op.targets, from));
            let sizes = [int(chunk.rows), int(dims.output), cap(op.softcap)];
            let args = [&[acc_at(op.loss, from), acc_ptr(logits), targets], &sizes[..]].concat();
            cx.launch(name, Kernel::new(FILE, name), LaunchDims::rows(chunk.rows), &args);
        }
    }

    fn cross_entropy_bwd(&mut self, op: CrossEntropyBwd<'_, Self>) {
        op.check();
        let (name, cx, dims) = (CrossEntropyBwd::<Self>::NAME, &mut self.cx, op.dims);
        let d_head = op.d_head.map(|(d_head, offset)| d_head.ptr(offset));
        let Some(logits) = scratch(cx, "logits", dims, size_of::<f32>()) else { return };
        let Some(d_logits) = scratch(cx, "d_logits", dims, op.x.element_size()) else { return };
        for (from, chunk) in chunks(dims) {
            let (x, weight) = (op.x.ptr(from * dims.input), op.head.ptr(0));
            let operands = ForwardOperands { out: logits, acc_out: true, x, weight, bias: None };
            linear::forward(cx, name, operands, chunk);
            let args = [
                acc_at(op.loss, from),
                compute_ptr(d_logits),
                acc_ptr(logits),
                table(targets_from(op.targets, from)),
                acc_at(op.row_weights, from),
                int(chunk.rows),
                int(dims.output),
                cap(op.softcap),
            ];
            cx.launch(name, Kernel::new(FILE, name), LaunchDims::rows(chunk.rows), &args);
            let operands = InputGradOperands { d_x: op.d_x.ptr(from * dims.input), d_out: d_logits, weight };
            linear::input_grad(cx, name, operands, chunk, false);
            if let Some(d_weight) = d_head {
                linear::weight_grad(cx, name, WeightGradOperands { d_weight, d_out: d_logits, x }, chunk);
            }
        }
    }
}
