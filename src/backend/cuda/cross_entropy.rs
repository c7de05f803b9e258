//! Cross-entropy fused with the head: logits exist for a chunk of label rows at a time.

use super::context::{Context, Kernel};
use super::launch::{floats, int, reals, table, wide_at};
use super::linear;
use super::memory::Buffer;
use super::pack::Index;
use super::rows::each;
use crate::backend::LinearDims;

const FILE: &str = "cross_entropy";
/// Logits of a chunk at most.
const LOGITS: usize = 16 << 20;

/// See [`Backend::logits_fwd`](crate::backend::Backend::logits_fwd).
pub fn logits<R>(cx: &mut Context, logits: &Buffer<f32>, x: &Buffer<R>, head: &Buffer<R>, dims: LinearDims) {
    let op = "logits_fwd";
    logits.need(op, "logits", dims.rows * dims.output);
    x.need(op, "x", dims.rows * dims.input);
    head.need(op, "head", dims.output * dims.input);
    linear::forward(cx, op, logits.address(0), true, x.address(0), head.address(0), 0, dims);
}

fn check<R>(op: &'static str, loss: &Buffer<f32>, x: &Buffer<R>, head: &Buffer<R>, targets: &Index, dims: LinearDims) {
    loss.need(op, "loss", dims.rows);
    x.need(op, "x", dims.rows * dims.input);
    head.need(op, "head", dims.output * dims.input);
    assert!(targets.len() >= dims.rows, "{op}: {} targets, needs {}", targets.len(), dims.rows);
    assert!(targets.bound() <= dims.output, "{op}: targets below {}, must be below {}", targets.bound(), dims.output);
}

/// The chunks of label rows: first row, and the dimensions of the chunk.
fn chunks(dims: LinearDims) -> impl Iterator<Item = (usize, LinearDims)> {
    let step = (LOGITS / dims.output.max(1)).clamp(1, dims.rows.max(1));
    (0..dims.rows).step_by(step).map(move |from| (from, LinearDims { rows: step.min(dims.rows - from), ..dims }))
}

/// Logits of the largest chunk.
pub fn chunk(dims: LinearDims) -> usize {
    chunks(dims).map(|(_, chunk)| chunk.rows).max().unwrap_or(0) * dims.output
}

/// Address of the logits of a chunk.
fn scratch(cx: &mut Context, op: &'static str, dims: LinearDims, element: usize) -> Option<u64> {
    cx.scratch(op, chunk(dims) * element)
}

/// See [`Backend::cross_entropy_fwd`](crate::backend::Backend::cross_entropy_fwd).
pub fn fwd<R>(
    cx: &mut Context,
    loss: &Buffer<f32>,
    x: &Buffer<R>,
    head: &Buffer<R>,
    targets: &Index,
    dims: LinearDims,
) {
    let op = "cross_entropy_fwd";
    check(op, loss, x, head, targets, dims);
    let Some(logits) = scratch(cx, "logits", dims, size_of::<f32>()) else { return };
    for (from, chunk) in chunks(dims) {
        linear::forward(cx, op, logits, true, x.address(from * dims.input), head.address(0), 0, chunk);
        let args = [
            wide_at(loss, from),
            floats(logits),
            table(targets.address() + 4 * from as u64),
            int(chunk.rows),
            int(dims.output),
        ];
        cx.launch(op, Kernel::new(FILE, op), each(chunk.rows), &args);
    }
}

/// See [`Backend::cross_entropy_bwd`](crate::backend::Backend::cross_entropy_bwd).
#[allow(clippy::too_many_arguments)]
pub fn bwd<R>(
    cx: &mut Context,
    loss: &Buffer<f32>,
    d_x: &Buffer<f32>,
    d_head: Option<(&Buffer<f32>, usize)>,
    x: &Buffer<R>,
    head: &Buffer<R>,
    targets: &Index,
    row_weights: &Buffer<f32>,
    dims: LinearDims,
) {
    let op = "cross_entropy_bwd";
    check(op, loss, x, head, targets, dims);
    d_x.need(op, "d_x", dims.rows * dims.input);
    row_weights.need(op, "row_weights", dims.rows);
    if let Some((d_head, offset)) = d_head {
        d_head.need(op, "d_head", offset + dims.output * dims.input);
    }
    let Some(logits) = scratch(cx, "logits", dims, size_of::<f32>()) else { return };
    let Some(d_logits) = scratch(cx, "d_logits", dims, size_of::<R>()) else { return };
    for (from, chunk) in chunks(dims) {
        let x = x.address(from * dims.input);
        linear::forward(cx, op, logits, true, x, head.address(0), 0, chunk);
        let args = [
            wide_at(loss, from),
            reals(d_logits),
            floats(logits),
            table(targets.address() + 4 * from as u64),
            wide_at(row_weights, from),
            int(chunk.rows),
            int(dims.output),
        ];
        cx.launch(op, Kernel::new(FILE, op), each(chunk.rows), &args);
        linear::input(cx, op, d_x.address(from * dims.input), d_logits, head.address(0), chunk, false);
        if let Some((d_head, offset)) = d_head {
            linear::weight(cx, op, d_head.address(offset), d_logits, x, chunk);
        }
    }
}
