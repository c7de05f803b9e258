//! Rows: casts, sums, gathers and their backward, copies.

use std::ops::Range;

use super::context::{Context, Kernel, Shape};
use super::geometry::{blocks, elements};
use super::launch::{Arg, BLOCK, floats, int, long, real, table, wide, wide_at};
use super::memory::Buffer;
use super::pack::Index;
use super::queue::Work;

const FILE: &str = "rows";

/// The launch of an element-wise kernel over `len` elements.
pub fn over(len: usize) -> Shape {
    Shape { grid: elements(len), block: BLOCK, shared: 0 }
}

/// The launch of a kernel with one block for each of `rows`.
pub fn each(rows: usize) -> Shape {
    Shape { grid: blocks(rows), block: BLOCK, shared: 0 }
}

/// `out [len] = x` from element `from` on, rounded.
pub fn cast<R>(cx: &mut Context, op: &'static str, out: &Buffer<R>, x: &Buffer<f32>, from: usize, len: usize) {
    out.need(op, "out", len);
    x.need(op, "x", from + len);
    cx.launch(op, Kernel::new(FILE, "cast"), over(len), &[real(out), wide_at(x, from), long(len)]);
}

/// See [`Backend::widen`](crate::backend::Backend::widen).
pub fn widen<R>(cx: &mut Context, out: &Buffer<f32>, x: &Buffer<R>, len: usize) {
    let op = "widen";
    out.need(op, "out", len);
    x.need(op, "x", len);
    cx.launch(op, Kernel::new(FILE, "cast_wide"), over(len), &[wide(out), real(x), long(len)]);
}

/// See [`Backend::residual_fwd`](crate::backend::Backend::residual_fwd).
pub fn residual_fwd<R>(cx: &mut Context, out: &Buffer<f32>, a: &Buffer<f32>, b: &Buffer<R>, len: usize) {
    let op = "residual_fwd";
    out.need(op, "out", len);
    a.need(op, "a", len);
    b.need(op, "b", len);
    cx.launch(op, Kernel::new(FILE, op), over(len), &[wide(out), wide(a), real(b), long(len)]);
    cx.note_residual(out, len, [wide(a), real(b)]);
}

/// See [`Backend::gather_compute`](crate::backend::Backend::gather_compute).
pub fn gather_compute<R>(cx: &mut Context, out: &Buffer<R>, x: &Buffer<R>, rows: &Index, width: usize) {
    let op = "gather_compute";
    out.need(op, "out", rows.len() * width);
    x.need(op, "x", rows.bound() * width);
    pick(cx, op, real(out), real(x), rows.address(), rows.len(), width);
}

/// See [`Backend::gather_acc`](crate::backend::Backend::gather_acc).
pub fn gather_acc(cx: &mut Context, out: &Buffer<f32>, x: &Buffer<f32>, rows: &Index, width: usize) {
    let op = "gather_acc";
    out.need(op, "out", rows.len() * width);
    x.need(op, "x", rows.bound() * width);
    pick(cx, op, wide(out), wide(x), rows.address(), rows.len(), width);
}

/// See [`Backend::scatter_add`](crate::backend::Backend::scatter_add).
pub fn scatter_add(cx: &mut Context, d_x: &Buffer<f32>, d_out: &Buffer<f32>, rows: &Index, width: usize) {
    let op = "scatter_add";
    d_x.need(op, "d_x", rows.bound() * width);
    d_out.need(op, "d_out", rows.len() * width);
    let groups = rows.groups();
    let args = [
        wide(d_x),
        wide(d_out),
        table(groups.ids),
        table(groups.starts),
        table(groups.order),
        int(groups.count),
        int(width),
    ];
    cx.launch(op, Kernel::new(FILE, op), each(groups.count), &args);
}

/// `out [rows, width] = x` at the `count` rows listed at `rows`, as `f32`, where `out` is memory of the host that the
/// device sees; `x` is wide or of the compute dtype.
pub fn capture(cx: &mut Context, out: u64, x: Arg, rows: u64, count: usize, width: usize) {
    let kernel = if x.param == floats(0).param { "capture_wide" } else { "capture_real" };
    let args = [floats(out), x, table(rows), int(count), int(width)];
    cx.launch("capture", Kernel::new(FILE, kernel), each(count), &args);
}

fn pick(cx: &mut Context, op: &'static str, out: Arg, x: Arg, rows: u64, count: usize, width: usize) {
    cx.launch(op, Kernel::new(FILE, op), each(count), &[out, x, table(rows), int(count), int(width)]);
}

/// See [`Backend::keep`](crate::backend::Backend::keep).
pub fn keep<R>(cx: &mut Context, cache: &Buffer<R>, to: usize, x: &Buffer<R>, from: Range<usize>, width: usize) {
    let op = "keep";
    cache.need(op, "cache", (to + from.len()) * width);
    x.need(op, "x", from.end * width);
    let bytes = from.len() * width * size_of::<R>();
    if bytes > 0 {
        let work = Work::Copy { to: cache.address(to * width), from: x.address(from.start * width), bytes };
        cx.push(op, work);
    }
}
