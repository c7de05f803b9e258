//! SwiGLU: `act = silu(gate) * up`, `silu(x) = x / (1 + exp(-x))` (Shazeer 2020), and activations without a gate.

use super::context::Exec;
use super::parallel::{each_part, rows};
use super::simd::{Element, Float, multiversion};
use crate::backend::Activation;

/// See [`Backend::swiglu_fwd`](crate::backend::Backend::swiglu_fwd).
pub fn swiglu_fwd<W: Float, R: Element<W>>(exec: &Exec, act: &mut [R], gate: &[R], up: &[R], len: usize) {
    each_part(&exec.pool, len, 1, rows("swiglu_fwd", act, len, 1), |from, act| {
        let range = from..from + act.len();
        fwd_part::<W, R>(exec.isa, act, &gate[range.clone()], &up[range]);
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
    exec: &Exec,
    d_gate: &mut [R],
    d_up: &mut [R],
    d_act: &[W],
    gate: &[R],
    up: &[R],
    len: usize,
) {
    let outs = (rows("swiglu_bwd", d_gate, len, 1), rows("swiglu_bwd", d_up, len, 1));
    each_part(&exec.pool, len, 1, outs, |from, (d_gate, d_up)| {
        let range = from..from + d_gate.len();
        bwd_part(exec.isa, d_gate, d_up, &d_act[range.clone()], &gate[range.clone()], &up[range]);
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

/// See [`Backend::activation_fwd`](crate::backend::Backend::activation_fwd).
pub fn fwd<W: Float, R: Element<W>>(exec: &Exec, act: &mut [R], x: &[R], f: Activation, len: usize) {
    each_part(&exec.pool, len, 1, rows("activation_fwd", act, len, 1), |from, act| {
        let x = &x[from..from + act.len()];
        match f {
            Activation::Relu => relu_fwd::<W, R>(exec.isa, act, x),
            Activation::Gelu => gelu_fwd::<W, R>(exec.isa, act, x),
            Activation::GeluTanh => gelu_tanh_fwd::<W, R>(exec.isa, act, x),
            Activation::Tanh => tanh_fwd::<W, R>(exec.isa, act, x),
        }
    });
}

/// See [`Backend::activation_bwd`](crate::backend::Backend::activation_bwd).
pub fn bwd<W: Float, R: Element<W>>(exec: &Exec, d_x: &mut [R], d_act: &[W], x: &[R], f: Activation, len: usize) {
    each_part(&exec.pool, len, 1, rows("activation_bwd", d_x, len, 1), |from, d_x| {
        let range = from..from + d_x.len();
        let (d_act, x) = (&d_act[range.clone()], &x[range]);
        match f {
            Activation::Relu => relu_bwd(exec.isa, d_x, d_act, x),
            Activation::Gelu => gelu_bwd(exec.isa, d_x, d_act, x),
            Activation::GeluTanh => gelu_tanh_bwd(exec.isa, d_x, d_act, x),
            Activation::Tanh => tanh_bwd(exec.isa, d_x, d_act, x),
        }
    });
}

multiversion! {
    fn relu_fwd[W: Float, R: Element<W>](act: &mut [R], x: &[R]) {
        for (act, x) in act.iter_mut().zip(x) {
            let x: W = x.widen();
            *act = R::narrow(if x < W::ZERO { W::ZERO } else { x });
        }
    }
}

multiversion! {
    fn relu_bwd[W: Float, R: Element<W>](d_x: &mut [R], d_act: &[W], x: &[R]) {
        for ((d_x, &d), x) in d_x.iter_mut().zip(d_act).zip(x) {
            let x: W = x.widen();
            *d_x = R::narrow(if x > W::ZERO { d } else { W::ZERO });
        }
    }
}

/// The normal distribution function `(1 + erf(x / sqrt(2))) / 2`.
#[inline(always)]
fn normal<W: Float>(x: W) -> W {
    W::from_f64(0.5) * (W::ONE + (x * W::from_f64(std::f64::consts::FRAC_1_SQRT_2)).erf())
}

multiversion! {
    fn gelu_fwd[W: Float, R: Element<W>](act: &mut [R], x: &[R]) {
        for (act, x) in act.iter_mut().zip(x) {
            let x: W = x.widen();
            *act = R::narrow(x * normal(x));
        }
    }
}

multiversion! {
    fn gelu_bwd[W: Float, R: Element<W>](d_x: &mut [R], d_act: &[W], x: &[R]) {
        let peak = W::from_f64(1.0 / std::f64::consts::TAU.sqrt());
        for ((d_x, &d), x) in d_x.iter_mut().zip(d_act).zip(x) {
            let x: W = x.widen();
            let density = peak * (x * x * W::from_f64(-0.5)).exp::<false>();
            *d_x = R::narrow(d * (normal(x) + x * density));
        }
    }
}

/// `tanh(x) = 1 - 2 / (1 + exp(2 x))`, of which a large exponential leaves 1.
#[inline(always)]
fn tanh<W: Float>(x: W) -> W {
    let two = W::from_f64(2.0);
    W::ONE - two / (W::ONE + (two * x).exp::<false>())
}

multiversion! {
    fn tanh_fwd[W: Float, R: Element<W>](act: &mut [R], x: &[R]) {
        for (act, x) in act.iter_mut().zip(x) {
            *act = R::narrow(tanh::<W>(x.widen()));
        }
    }
}

multiversion! {
    fn tanh_bwd[W: Float, R: Element<W>](d_x: &mut [R], d_act: &[W], x: &[R]) {
        for ((d_x, &d), x) in d_x.iter_mut().zip(d_act).zip(x) {
            let act = tanh::<W>(x.widen());
            *d_x = R::narrow(d * (W::ONE - act * act));
        }
    }
}

/// The factor of the cube.
const CUBE: f64 = 0.044715;

/// `(1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u))` for `u = sqrt(2 / pi) * (x + 0.044715 x^3)`.
#[inline(always)]
fn gelu_gate<W: Float>(x: W) -> W {
    let twice = W::from_f64(-2.0 * (2.0 / std::f64::consts::PI).sqrt());
    W::ONE / (W::ONE + (twice * (x + W::from_f64(CUBE) * x * x * x)).exp::<false>())
}

multiversion! {
    fn gelu_tanh_fwd[W: Float, R: Element<W>](act: &mut [R], x: &[R]) {
        for (act, x) in act.iter_mut().zip(x) {
            let x: W = x.widen();
            *act = R::narrow(x * gelu_gate(x));
        }
    }
}

multiversion! {
    fn gelu_tanh_bwd[W: Float, R: Element<W>](d_x: &mut [R], d_act: &[W], x: &[R]) {
        let twice = W::from_f64(2.0 * (2.0 / std::f64::consts::PI).sqrt());
        for ((d_x, &d), x) in d_x.iter_mut().zip(d_act).zip(x) {
            let x: W = x.widen();
            let slope = twice * (W::ONE + W::from_f64(3.0 * CUBE) * x * x);
            // The gate is 1 - gate(-x), but near 1 that difference would have few digits.
            *d_x = R::narrow(d * gelu_gate(x) * (W::ONE + x * gelu_gate(-x) * slope));
        }
    }
}
