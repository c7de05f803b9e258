//! SwiGLU.

use super::context::{Context, Kernel};
use super::launch::{long, real, wide};
use super::memory::{Buffer, needs};
use super::rows::over;

const FILE: &str = "activation";

/// See [`Backend::swiglu_fwd`](crate::backend::Backend::swiglu_fwd).
pub fn swiglu_fwd<R>(cx: &mut Context, act: &Buffer<R>, gate: &Buffer<R>, up: &Buffer<R>, len: usize) {
    let op = "swiglu_fwd";
    needs(op, len, &[("act", act), ("gate", gate), ("up", up)]);
    cx.launch(op, Kernel::new(FILE, op), over(len), &[real(act), real(gate), real(up), long(len)]);
}

/// See [`Backend::swiglu_bwd`](crate::backend::Backend::swiglu_bwd).
pub fn swiglu_bwd<R>(
    cx: &mut Context,
    d_gate: &Buffer<R>,
    d_up: &Buffer<R>,
    d_act: &Buffer<f32>,
    gate: &Buffer<R>,
    up: &Buffer<R>,
    len: usize,
) {
    let op = "swiglu_bwd";
    needs(op, len, &[("d_gate", d_gate), ("d_up", d_up), ("gate", gate), ("up", up)]);
    d_act.need(op, "d_act", len);
    let args = [real(d_gate), real(d_up), wide(d_act), real(gate), real(up), long(len)];
    cx.launch(op, Kernel::new(FILE, op), over(len), &args);
}
