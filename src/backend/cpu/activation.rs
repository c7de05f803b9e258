//! SwiGLU and activations without a gate, element by element; a task is a stretch of elements.

use super::Cpu;
use super::context::Context;
use super::kernel::Kernel;
use super::parallel::{each_part, rows};
use super::simd::{Element, Float, multiversion};
use crate::arch::Activation;
use crate::backend::ops::{ActivationBwd, ActivationFwd, ActivationOps, Op, SwigluBwd, SwigluFwd};

impl<A: Float> ActivationOps for Cpu<A> {
    fn swiglu_fwd(&mut self, op: SwigluFwd<'_, Self>) {
        op.check();
        self.run(op);
    }

    fn swiglu_bwd(&mut self, op: SwigluBwd<'_, Self>) {
        op.check();
        self.run(op);
    }

    fn activation_fwd(&mut self, op: ActivationFwd<'_, Self>) {
        op.check();
        self.run(op);
    }

    fn activation_bwd(&mut self, op: ActivationBwd<'_, Self>) {
        op.check();
        self.run(op);
    }
}

impl<A: Float> Kernel<A> for SwigluFwd<'_, Cpu<A>> {
    fn run<C: Element<A>>(self, cx: &mut Context<A>) {
        let Self { act, gate, up, len } = self;
        let (exec, act, gate, up) = (&cx.exec, C::slice_mut(act), C::slice(gate), C::slice(up));
        each_part(&exec.pool, len, 1, rows("swiglu_fwd", act, len, 1), |from, act| {
            let range = from..from + act.len();
            fwd_part::<A, C>(exec.isa, act, &gate[range.clone()], &up[range]);
        });
    }
}

impl<A: Float> Kernel<A> for SwigluBwd<'_, Cpu<A>> {
    fn run<C: Element<A>>(self, cx: &mut Context<A>) {
        let Self { d_gate, d_up, d_act, gate, up, len } = self;
        let (exec, gate, up) = (&cx.exec, C::slice(gate), C::slice(up));
        let outs = [C::slice_mut(d_gate), C::slice_mut(d_up)].map(|out| rows("swiglu_bwd", out, len, 1));
        let [d_gate, d_up] = outs;
        each_part(&exec.pool, len, 1, (d_gate, d_up), |from, (d_gate, d_up)| {
            let range = from..from + d_gate.len();
            bwd_part::<A, C>(exec.isa, d_gate, d_up, &d_act[range.clone()], &gate[range.clone()], &up[range]);
        });
    }
}

impl<A: Float> Kernel<A> for ActivationFwd<'_, Cpu<A>> {
    fn run<C: Element<A>>(self, cx: &mut Context<A>) {
        let Self { act, x, f, len } = self;
        let (exec, x) = (&cx.exec, C::slice(x));
        each_part(&exec.pool, len, 1, rows("activation_fwd", C::slice_mut(act), len, 1), |from, act| {
            let x = &x[from..from + act.len()];
            match f {
                Activation::Relu => relu_fwd::<A, C>(exec.isa, act, x),
                Activation::Gelu => gelu_fwd::<A, C>(exec.isa, act, x),
                Activation::GeluTanh => gelu_tanh_fwd::<A, C>(exec.isa, act, x),
                Activation::Tanh => tanh_fwd::<A, C>(exec.isa, act, x),
            }
        });
    }
}

impl<A: Float> Kernel<A> for ActivationBwd<'_, Cpu<A>> {
    fn run<C: Element<A>>(self, cx: &mut Context<A>) {
        let Self { d_x, d_act, x, f, len } = self;
        let (exec, x) = (&cx.exec, C::slice(x));
        each_part(&exec.pool, len, 1, rows("activation_bwd", C::slice_mut(d_x), len, 1), |from, d_x| {
            let range = from..from + d_x.len();
            let (d_act, x) = (&d_act[range.clone()], &x[range]);
            match f {
                Activation::Relu => relu_bwd::<A, C>(exec.isa, d_x, d_act, x),
                Activation::Gelu => gelu_bwd::<A, C>(exec.isa, d_x, d_act, x),
                Activation::GeluTanh => gelu_tanh_bwd::<A, C>(exec.isa, d_x, d_act, x),
                Activation::Tanh => tanh_bwd::<A, C>(exec.isa, d_x, d_act, x),
            }
        });
    }
}

multiversion! {
    fn fwd_part[A: Float, C: Element<A>](act: &mut [C], gate: &[C], up: &[C]) {
        for ((act, gate), up) in act.iter_mut().zip(gate).zip(up) {
            let (gate, up): (A, A) = (gate.widen(), up.widen());
            *act = C::narrow(gate / (A::ONE + (-gate).exp::<false>()) * up);
        }
    }
}

multiversion! {
    fn bwd_part[A: Float, C: Element<A>](d_gate: &mut [C], d_up: &mut [C], d_act: &[A], gate: &[C], up: &[C]) {
        for (i, &d) in d_act.iter().enumerate() {
            let (gate, up): (A, A) = (gate[i].widen(), up[i].widen());
            let sigmoid = A::ONE / (A::ONE + (-gate).exp::<false>());
            d_up[i] = C::narrow(d * gate * sigmoid);
            d_gate[i] = C::narrow(d * up * sigmoid * (A::ONE + gate * (A::ONE - sigmoid)));
        }
    }
}

multiversion! {
    fn relu_fwd[A: Float, C: Element<A>](act: &mut [C], x: &[C]) {
        for (act, x) in act.iter_mut().zip(x) {
            let x: A = x.widen();
            *act = C::narrow(if x < A::ZERO { A::ZERO } else { x });
        }
    }
}

multiversion! {
    fn relu_bwd[A: Float, C: Element<A>](d_x: &mut [C], d_act: &[A], x: &[C]) {
        for ((d_x, &d), x) in d_x.iter_mut().zip(d_act).zip(x) {
            let x: A = x.widen();
            *d_x = C::narrow(if x > A::ZERO { d } else { A::ZERO });
        }
    }
}

/// The normal distribution function `(1 + erf(x / sqrt(2))) / 2`.
#[inline(always)]
fn normal<A: Float>(x: A) -> A {
    A::from_f64(0.5) * (A::ONE + (x * A::from_f64(std::f64::consts::FRAC_1_SQRT_2)).erf())
}

multiversion! {
    fn gelu_fwd[A: Float, C: Element<A>](act: &mut [C], x: &[C]) {
        for (act, x) in act.iter_mut().zip(x) {
            let x: A = x.widen();
            *act = C::narrow(x * normal(x));
        }
    }
}

multiversion! {
    fn gelu_bwd[A: Float, C: Element<A>](d_x: &mut [C], d_act: &[A], x: &[C]) {
        let peak = A::from_f64(1.0 / std::f64::consts::TAU.sqrt());
        for ((d_x, &d), x) in d_x.iter_mut().zip(d_act).zip(x) {
            let x: A = x.widen();
            let density = peak * (x * x * A::from_f64(-0.5)).exp::<false>();
            *d_x = C::narrow(d * (normal(x) + x * density));
        }
    }
}

/// `tanh(x) = 1 - 2 / (1 + exp(2 x))`, of which a large exponential leaves 1.
#[inline(always)]
fn tanh<A: Float>(x: A) -> A {
    let two = A::from_f64(2.0);
    A::ONE - two / (A::ONE + (two * x).exp::<false>())
}

multiversion! {
    fn tanh_fwd[A: Float, C: Element<A>](act: &mut [C], x: &[C]) {
        for (act, x) in act.iter_mut().zip(x) {
            *act = C::narrow(tanh::<A>(x.widen()));
        }
    }
}

multiversion! {
    fn tanh_bwd[A: Float, C: Element<A>](d_x: &mut [C], d_act: &[A], x: &[C]) {
        for ((d_x, &d), x) in d_x.iter_mut().zip(d_act).zip(x) {
            let act = tanh::<A>(x.widen());
            *d_x = C::narrow(d * (A::ONE - act * act));
        }
    }
}

/// The factor of the cube.
const CUBE: f64 = 0.044715;

/// `(1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u))` for `u = sqrt(2 / pi) * (x + 0.044715 x^3)`.
#[inline(always)]
fn gelu_gate<A: Float>(x: A) -> A {
    let twice = A::from_f64(-2.0 * (2.0 / std::f64::consts::PI).sqrt());
    A::ONE / (A::ONE + (twice * (x + A::from_f64(CUBE) * x * x * x)).exp::<false>())
}

multiversion! {
    fn gelu_tanh_fwd[A: Float, C: Element<A>](act: &mut [C], x: &[C]) {
        for (act, x) in act.iter_mut().zip(x) {
            let x: A = x.widen();
            *act = C::narrow(x * gelu_gate(x));
        }
    }
}

multiversion! {
    fn gelu_tanh_bwd[A: Float, C: Element<A>](d_x: &mut [C], d_act: &[A], x: &[C]) {
        let twice = A::from_f64(2.0 * (2.0 / std::f64::consts::PI).sqrt());
        for ((d_x, &d), x) in d_x.iter_mut().zip(d_act).zip(x) {
            let x: A = x.widen();
            let slope = twice * (A::ONE + A::from_f64(3.0 * CUBE) * x * x);
            // The gate is 1 - gate(-x), but near 1 that difference would have few digits.
            *d_x = C::narrow(d * gelu_gate(x) * (A::ONE + x * gelu_gate(-x) * slope));
        }
    }
}
