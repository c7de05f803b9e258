//! Rotary position embedding.

use super::context::{Context, Kernel};
use super::launch::{int, real, table, wide};
use super::memory::Buffer;
use super::pack::Pack;
use super::rows::each;

const FILE: &str = "rope";

/// See [`Backend::rope_fwd`](crate::backend::Backend::rope_fwd).
pub fn fwd<R>(
    cx: &mut Context,
    out: &Buffer<R>,
    x: &Buffer<R>,
    pack: &Pack,
    cos_sin: &Buffer<f32>,
    heads: usize,
    head_dim: usize,
) {
    let op = "rope_fwd";
    out.need(op, "out", pack.len() * heads * head_dim);
    x.need(op, "x", pack.len() * heads * head_dim);
    cos_sin.need(op, "cos_sin", pack.host.longest() * head_dim);
    let args = [real(out), real(x), table(pack.positions()), wide(cos_sin), int(pack.len()), int(heads), int(head_dim)];
    cx.launch(op, Kernel::new(FILE, op), each(pack.len()), &args);
}

/// See [`Backend::rope_bwd`](crate::backend::Backend::rope_bwd).
pub fn bwd<R>(cx: &mut Context, d_x: &Buffer<R>, pack: &Pack, cos_sin: &Buffer<f32>, heads: usize, head_dim: usize) {
    let op = "rope_bwd";
    d_x.need(op, "d_x", pack.len() * heads * head_dim);
    cos_sin.need(op, "cos_sin", pack.host.longest() * head_dim);
    let args = [real(d_x), table(pack.positions()), wide(cos_sin), int(pack.len()), int(heads), int(head_dim)];
    cx.launch(op, Kernel::new(FILE, op), each(pack.len()), &args);
}
