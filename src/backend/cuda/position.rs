//! Learned positions.

use super::context::{Context, Kernel};
use super::launch::{int, real, table, wide, wide_at};
use super::memory::Buffer;
use super::pack::Pack;
use super::rows::each;

const FILE: &str = "position";

/// See [`Backend::position_fwd`](crate::backend::Backend::position_fwd).
pub fn fwd<R>(cx: &mut Context, x: &Buffer<f32>, pack: &Pack, weight: &Buffer<R>, first: usize, width: usize) {
    let op = "position_fwd";
    x.need(op, "x", pack.len() * width);
    weight.need(op, "table", (first + pack.host.longest()) * width);
    let args = [wide(x), real(weight), table(pack.positions()), int(pack.len()), int(width), int(first)];
    cx.launch(op, Kernel::new(FILE, op), each(pack.len()), &args);
}

/// See [`Backend::position_bwd_table`](crate::backend::Backend::position_bwd_table).
pub fn bwd_table(
    cx: &mut Context,
    d_table: &Buffer<f32>,
    offset: usize,
    d_x: &Buffer<f32>,
    pack: &Pack,
    first: usize,
    width: usize,
) {
    let op = "position_bwd_table";
    d_table.need(op, "d_table", offset + (first + pack.host.longest()) * width);
    d_x.need(op, "d_x", pack.len() * width);
    let groups = pack.by_position();
    let args = [
        wide_at(d_table, offset),
        wide(d_x),
        table(groups.ids),
        table(groups.starts),
        table(groups.order),
        int(groups.count),
        int(width),
        int(first),
    ];
    cx.launch(op, Kernel::new(FILE, op), each(groups.count), &args);
}
