//! SwiGLU: `act = silu(gate) * up`, `silu(x) = x / (1 + exp(-x))` (Shazeer 2020).

use super::context::Machine;
use super::parallel::{each_part, rows};
use super::simd::{Element, Float, multiversion};

/// See [`Backend::swiglu_fwd`](crate::backend::Backend::swiglu_fwd).
pub fn swiglu_fwd<W: Float, R: Element<W>>(on: &Machine, act: &mut [R], gate: &[R], up: &[R], len: usize) {
    each_part(&on.team, len, 1, rows("swiglu_fwd", act, len, 1), |from, act| {
        let range = from..from + act.len();
        fwd_part::<W, R>(on.isa, act, &gate[range.clone()], &up[range]);
    });
}

multiversion! {
    fn fwd_part[W: Float, R: Element<W>](act: &mut [R], gate: &[R], up: &[R]) {
        for ((act, gate), up) in act.iter_mut().zip(gate).zip(up) {
            let (gate, up): (W, W) = (gate.widen(), up.widen());
            *act = R::narrow(gate / (W::ONE + (-gate).exp::<false>()) * up);
        }
    }
}

/// See [`Backend::swiglu_bwd`](crate::backend::Backend::swiglu_bwd).
pub fn swiglu_bwd<W: Float, R: Element<W>>(
    on: &Machine,
    d_gate: &mut [R],
    d_up: &mut [R],
    d_act: &[W],
    gate: &[R],
    up: &[R],
    len: usize,
) {
    let outs = (rows("swiglu_bwd", d_gate, len, 1), rows("swiglu_bwd", d_up, len, 1));
    each_part(&on.team, len, 1, outs, |from, (d_gate, d_up)| {
        let range = from..from + d_gate.len();
        bwd_part(on.isa, d_gate, d_up, &d_act[range.clone()], &gate[range.clone()], &up[range]);
    });
}

multiversion! {
    fn bwd_part[W: Float, R: Element<W>](d_gate: &mut [R], d_up: &mut [R], d_act: &[W], gate: &[R], up: &[R]) {
        for (i, &d) in d_act.iter().enumerate() {
            let (gate, up): (W, W) = (gate[i].widen(), up[i].widen());
            let sigmoid = W::ONE / (W::ONE + (-gate).exp::<false>());
            d_up[i] = R::narrow(d * gate * sigmoid);
            d_gate[i] = R::narrow(d * up * sigmoid * (W::ONE + gate * (W::ONE - sigmoid)));
        }
    }
}
