//! Activations with and without a gate, element by element; a task is a stretch of elements.

use super::Cpu;
use super::context::Context;
use super::kernel::Kernel;
use super::parallel::{each_part, rows};
use super::simd::{Element, Float, multiversion, tanh, tanh_with_slope};
use crate::arch::Activation;
use crate::backend::ops::{ActivationBwd, ActivationFwd, ActivationOps, GatedBwd, GatedFwd};

/// Does `$run` with `$f` as the type of an activation.
macro_rules! with_function {
    ($activation:expr, $f:ident => $run:expr) => {
        match $activation {
            Activation::Relu => {
                type $f = Relu;
                $run
            }
            Activation::Gelu => {
                type $f = Gelu;
                $run
            }
            Activation::GeluTanh => {
                type $f = GeluTanh;
                $run
            }
            Activation::Tanh => {
                type $f = Tanh;
                $run
            }
            Activation::Silu => {
                type $f = Silu;
                $run
            }
        }
    };
}

impl<A: Float> ActivationOps for Cpu<A> {
    fn gated_fwd(&mut self, op: GatedFwd<'_, Self>) {
        let _span = self.begin(&op);
        self.run(op);
    }

    fn gated_bwd(&mut self, op: GatedBwd<'_, Self>) {
        let _span = self.begin(&op);
        self.run(op);
    }

    fn activation_fwd(&mut self, op: ActivationFwd<'_, Self>) {
        let _span = self.begin(&op);
        self.run(op);
    }

    fn activation_bwd(&mut self, op: ActivationBwd<'_, Self>) {
        let _span = self.begin(&op);
        self.run(op);
    }
}

impl<A: Float> Kernel<A> for GatedFwd<'_, Cpu<A>> {
    fn run<C: Element<A>>(self, cx: &mut Context<A>) {
        let Self { act, gate, up, f, len } = self;
        let (exec, act, gate, up) = (&cx.exec, C::slice_mut(act), C::slice(gate), C::slice(up));
        each_part(&exec.pool, len, 1, rows("gated_fwd", act, len, 1), |from, act| {
            let range = from..from + act.len();
            let (gate, up) = (&gate[range.clone()], &up[range]);
            with_function!(f, F => gated_fwd_part::<A, C, F>(exec.isa, act, gate, up));
        });
    }
}

impl<A: Float> Kernel<A> for GatedBwd<'_, Cpu<A>> {
    fn run<C: Element<A>>(self, cx: &mut Context<A>) {
        let Self { d_gate, d_up, d_act, gate, up, f, len } = self;
        let (exec, gate, up) = (&cx.exec, C::slice(gate), C::slice(up));
        let outs = [C::slice_mut(d_gate), C::slice_mut(d_up)].map(|out| rows("gated_bwd", out, len, 1));
        let [d_gate, d_up] = outs;
        each_part(&exec.pool, len, 1, (d_gate, d_up), |from, (d_gate, d_up)| {
            let range = from..from + d_gate.len();
            let (d_act, gate, up) = (&d_act[range.clone()], &gate[range.clone()], &up[range]);
            with_function!(f, F => gated_bwd_part::<A, C, F>(exec.isa, d_gate, d_up, d_act, gate, up));
        });
    }
}

impl<A: Float> Kernel<A> for ActivationFwd<'_, Cpu<A>> {
    fn run<C: Element<A>>(self, cx: &mut Context<A>) {
        let Self { act, x, f, len } = self;
        let (exec, x) = (&cx.exec, C::slice(x));
        each_part(&exec.pool, len, 1, rows("activation_fwd", C::slice_mut(act), len, 1), |from, act| {
            let x = &x[from..from + act.len()];
            with_function!(f, F => fwd_part::<A, C, F>(exec.isa, act, x));
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
            with_function!(f, F => bwd_part::<A, C, F>(exec.isa, d_x, d_act, x));
        });
    }
}

/// `f(x)` of a [`Activation`], and `f'(x)`; a type, so that its loops are compiled for it alone.
trait Function {
    fn value<A: Float>(x: A) -> A;
    fn slope<A: Float>(x: A) -> A;
}

struct Relu;
impl Function for Relu {
    #[inline(always)]
    fn value<A: Float>(x: A) -> A {
        if x < A::ZERO { A::ZERO } else { x }
    }
    #[inline(always)]
    fn slope<A: Float>(x: A) -> A {
        if x > A::ZERO { A::ONE } else { A::ZERO }
    }
}

/// The normal distribution function `(1 + erf(x / sqrt(2))) / 2`.
#[inline(always)]
fn normal<A: Float>(x: A) -> A {
    A::from_f64(0.5) * (A::ONE + (x * A::from_f64(std::f64::consts::FRAC_1_SQRT_2)).erf())
}

struct Gelu;
impl Function for Gelu {
    #[inline(always)]
    fn value<A: Float>(x: A) -> A {
        x * normal(x)
    }
    #[inline(always)]
    fn slope<A: Float>(x: A) -> A {
        let peak = A::from_f64(1.0 / std::f64::consts::TAU.sqrt());
        normal(x) + x * (peak * (x * x * A::from_f64(-0.5)).exp::<false>())
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

struct GeluTanh;
impl Function for GeluTanh {
    #[inline(always)]
    fn value<A: Float>(x: A) -> A {
        x * gelu_gate(x)
    }
    #[inline(always)]
    fn slope<A: Float>(x: A) -> A {
        let twice = A::from_f64(2.0 * (2.0 / std::f64::consts::PI).sqrt());
        let inner = twice * (A::ONE + A::from_f64(3.0 * CUBE) * x * x);
        // The gate is 1 - gate(-x), but near 1 that difference would have few digits.
        gelu_gate(x) * (A::ONE + x * gelu_gate(-x) * inner)
    }
}

struct Tanh;
impl Function for Tanh {
    #[inline(always)]
    fn value<A: Float>(x: A) -> A {
        tanh::<A, false>(x)
    }
    #[inline(always)]
    fn slope<A: Float>(x: A) -> A {
        tanh_with_slope::<A, false>(x).1
    }
}

struct Silu;
impl Function for Silu {
    #[inline(always)]
    fn value<A: Float>(x: A) -> A {
        x / (A::ONE + (-x).exp::<false>())
    }
    #[inline(always)]
    fn slope<A: Float>(x: A) -> A {
        let sigmoid = A::ONE / (A::ONE + (-x).exp::<false>());
        sigmoid * (A::ONE + x * (A::ONE - sigmoid))
    }
}

multiversion! {
    fn fwd_part[A: Float, C: Element<A>, F: Function](act: &mut [C], x: &[C]) {
        for (act, x) in act.iter_mut().zip(x) {
            *act = C::narrow(F::value::<A>(x.widen()));
        }
    }
}

multiversion! {
    fn bwd_part[A: Float, C: Element<A>, F: Function](d_x: &mut [C], d_act: &[A], x: &[C]) {
        for ((d_x, &d), x) in d_x.iter_mut().zip(d_act).zip(x) {
            *d_x = C::narrow(d * F::slope::<A>(x.widen()));
        }
    }
}

multiversion! {
    fn gated_fwd_part[A: Float, C: Element<A>, F: Function](act: &mut [C], gate: &[C], up: &[C]) {
        for ((act, gate), up) in act.iter_mut().zip(gate).zip(up) {
            let (gate, up): (A, A) = (gate.widen(), up.widen());
            *act = C::narrow(F::value(gate) * up);
        }
    }
}

multiversion! {
    fn gated_bwd_part[A: Float, C: Element<A>, F: Function](
        d_gate: &mut [C], d_up: &mut [C], d_act: &[A], gate: &[C], up: &[C],
    ) {
        for (i, &d) in d_act.iter().enumerate() {
            let (gate, up): (A, A) = (gate[i].widen(), up[i].widen());
            d_up[i] = C::narrow(d * F::value(gate));
            d_gate[i] = C::narrow(d * up * F::slope(gate));
        }
    }
}
