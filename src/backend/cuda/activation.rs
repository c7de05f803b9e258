//! SwiGLU, and activations without a gate.

use super::context::{Context, Kernel};
use super::launch::{int, long, real, wide};
use super::memory::{Buffer, needs};
use super::rows::over;
use crate::backend::Activation;

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

/// The function's number in the kernels.
fn kind(f: Activation) -> usize {
    match f {
        Activation::Relu => 0,
        Activation::Gelu => 1,
        Activation::GeluTanh => 2,
        Activation::Tanh => 3,
    }
}

/// See [`Backend::activation_fwd`](crate::backend::Backend::activation_fwd).
pub fn fwd<R>(cx: &mut Context, act: &Buffer<R>, x: &Buffer<R>, f: Activation, len: usize) {
    let op = "activation_fwd";
    needs(op, len, &[("act", act), ("x", x)]);
    cx.launch(op, Kernel::new(FILE, op), over(len), &[real(act), real(x), int(kind(f)), long(len)]);
}

/// See [`Backend::activation_bwd`](crate::backend::Backend::activation_bwd).
pub fn bwd<R>(cx: &mut Context, d_x: &Buffer<R>, d_act: &Buffer<f32>, x: &Buffer<R>, f: Activation, len: usize) {
    let op = "activation_bwd";
    needs(op, len, &[("d_x", d_x), ("x", x)]);
    d_act.need(op, "d_act", len);
    cx.launch(op, Kernel::new(FILE, op), over(len), &[real(d_x), wide(d_act), real(x), int(kind(f)), long(len)]);
}
