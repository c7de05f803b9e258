//! SwiGLU, and activations without a gate.

use super::Cuda;
use super::launch::{Kernel, LaunchDims, acc, compute, int, long};
use crate::arch::Activation;
use crate::backend::ops::{ActivationBwd, ActivationFwd, ActivationOps, Op, SwigluBwd, SwigluFwd};

const FILE: &str = "activation";

/// The function's number in the kernels.
fn kind(f: Activation) -> usize {
    match f {
        Activation::Relu => 0,
        Activation::Gelu => 1,
        Activation::GeluTanh => 2,
        Activation::Tanh => 3,
    }
}

impl ActivationOps for Cuda {
    fn swiglu_fwd(&mut self, op: SwigluFwd<'_, Self>) {
        op.check();
        let name = SwigluFwd::<Self>::NAME;
        let args = [compute(op.act), compute(op.gate), compute(op.up), long(op.len)];
        self.cx.launch(name, Kernel::new(FILE, name), LaunchDims::elements(op.len), &args);
    }

    fn swiglu_bwd(&mut self, op: SwigluBwd<'_, Self>) {
        op.check();
        let name = SwigluBwd::<Self>::NAME;
        let outputs = [compute(op.d_gate), compute(op.d_up)];
        let args = [&outputs[..], &[acc(op.d_act), compute(op.gate), compute(op.up), long(op.len)]].concat();
        self.cx.launch(name, Kernel::new(FILE, name), LaunchDims::elements(op.len), &args);
    }

    fn activation_fwd(&mut self, op: ActivationFwd<'_, Self>) {
        op.check();
        let name = ActivationFwd::<Self>::NAME;
        let args = [compute(op.act), compute(op.x), int(kind(op.f)), long(op.len)];
        self.cx.launch(name, Kernel::new(FILE, name), LaunchDims::elements(op.len), &args);
    }

    fn activation_bwd(&mut self, op: ActivationBwd<'_, Self>) {
        op.check();
        let name = ActivationBwd::<Self>::NAME;
        let args = [compute(op.d_x), acc(op.d_act), compute(op.x), int(kind(op.f)), long(op.len)];
        self.cx.launch(name, Kernel::new(FILE, name), LaunchDims::elements(op.len), &args);
    }
}
