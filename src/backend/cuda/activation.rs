//! Activations with and without a gate.

use super::Cuda;
use super::launch::{Arg, Kernel, LaunchDims, acc, compute, int, long};
use super::projections::{Gated, Making, Projections};
use crate::arch::Activation;
use crate::backend::ops::{ActivationBwd, ActivationFwd, ActivationOps, GatedBwd, GatedFwd, Op};

const FILE: &str = "activation";

/// The function's number in the kernels.
fn kind(f: Activation) -> usize {
    match f {
        Activation::Relu => 0,
        Activation::Gelu => 1,
        Activation::GeluTanh => 2,
        Activation::Tanh => 3,
        Activation::Silu => 4,
    }
}

/// The kernel of a gate's function, and how it is told of it: SiLU has one of its own.
fn gated(f: Activation, any: &'static str, silu: &'static str) -> (Kernel, Vec<Arg>) {
    match f {
        Activation::Silu => (Kernel::new(FILE, silu), vec![]),
        f => (Kernel::new(FILE, any), vec![int(kind(f))]),
    }
}

impl ActivationOps for Cuda {
    /// What LoRAs add to the gate and the up-projection just before is added by the same kernel, which may make what the LoRA of the
    /// down-projection begins with.
    fn gated_fwd(&mut self, op: GatedFwd<'_, Self>) {
        self.begin(&op);
        let name = GatedFwd::<Self>::NAME;
        let rows = [compute(op.act), compute(op.gate), compute(op.up)];
        let (read, len) = ([op.gate.ptr(0), op.up.ptr(0)], op.len);
        let made = |group: &Projections| op.f == Activation::Silu && group.makes_gated(read, len);
        if Making::defer(&mut self.cx, name, made, Gated::Activation(rows[0])) {
            return;
        }
        let (kernel, kind) = gated(op.f, name, "swiglu_fwd");
        let args = [&rows[..], &kind, &[long(op.len)]].concat();
        self.cx.launch(name, kernel, LaunchDims::elements(op.len), &args);
    }

    /// What a LoRA adds to the activation's gradient just before is added by the same kernel, which leaves the sum nowhere
    /// and may make what the backward of the gate's and the up-projection's begins with.
    fn gated_bwd(&mut self, op: GatedBwd<'_, Self>) {
        self.begin(&op);
        let name = GatedBwd::<Self>::NAME;
        let [d_gate, d_up, gate, up] = [&*op.d_gate, &*op.d_up, op.gate, op.up].map(compute);
        let (d_act, len) = (op.d_act.ptr(0), op.len);
        let made = |group: &Projections| op.f == Activation::Silu && group.makes_gated_gradient(d_act, len);
        if Making::defer(&mut self.cx, name, made, Gated::Gradient(Box::new([d_gate, d_up, gate, up]))) {
            return;
        }
        let (kernel, kind) = gated(op.f, name, "swiglu_bwd");
        let args = [&[d_gate, d_up, acc(op.d_act), gate, up], &kind[..], &[long(op.len)]].concat();
        self.cx.launch(name, kernel, LaunchDims::elements(op.len), &args);
    }

    fn activation_fwd(&mut self, op: ActivationFwd<'_, Self>) {
        self.begin(&op);
        let name = ActivationFwd::<Self>::NAME;
        let args = [compute(op.act), compute(op.x), int(kind(op.f)), long(op.len)];
        self.cx.launch(name, Kernel::new(FILE, name), LaunchDims::elements(op.len), &args);
    }

    fn activation_bwd(&mut self, op: ActivationBwd<'_, Self>) {
        self.begin(&op);
        let name = ActivationBwd::<Self>::NAME;
        let args = [compute(op.d_x), acc(op.d_act), compute(op.x), int(kind(op.f)), long(op.len)];
        self.cx.launch(name, Kernel::new(FILE, name), LaunchDims::elements(op.len), &args);
    }
}
