//! AdamW, in the order of operations of PyTorch's: clip, decay, moments, bias-corrected step. Sums of squares are `f64`, over
//! parts of [`PART`] elements and then over the parts, so that they do not depend on the threads.

use super::Cpu;
use super::context::Context;
use super::parallel::{each_part, rows};
use super::simd::{self, Float, multiversion};
use crate::backend::ops::{Adamw, AdamwOps, AdamwStep, CheckFinite, GradNorm, RefreshWeight};

/// Elements of a first-stage sum of squares: a task of some microseconds.
const PART: usize = 4096;

impl<A: Float> AdamwOps for Cpu<A> {
    fn grad_norm(&mut self, op: GradNorm<'_, Self>) {
        let _span = self.begin(&op);
        let GradNorm { norm_sq, d_params, runs, stride } = op;
        let Context { exec, sums, .. } = &mut self.cx;
        let per_run = stride.div_ceil(PART);
        let sums = sums.grow(runs * per_run);
        each_part(&exec.pool, runs * per_run, PART, rows("grad_norm", sums, runs * per_run, 1), |first, sums| {
            for (i, sum) in sums.iter_mut().enumerate() {
                let (run, part) = ((first + i) / per_run, (first + i) % per_run);
                let end = stride.min((part + 1) * PART);
                *sum = squares(exec.isa, &d_params[run * stride + part * PART..run * stride + end]);
            }
        });
        for (run, norm_sq) in norm_sq[..runs].iter_mut().enumerate() {
            *norm_sq = A::from_f64(sums[run * per_run..(run + 1) * per_run].iter().sum());
        }
    }

    fn check_finite(&mut self, op: CheckFinite<'_, Self>) {
        let _span = self.begin(&op);
        if op.values[..op.len].iter().any(|x| !x.to_f64().is_finite()) {
            op.stop[0] = A::ONE;
        }
    }

    fn adamw(&mut self, op: Adamw<'_, Self>) {
        let _span = self.begin(&op);
        let Adamw { params, m, v, d_params, norm_sq, stop, steps, fast, stride } = op;
        if stop[0].to_f64() != 0.0 {
            return;
        }
        let exec = &self.cx.exec;
        for (run, step) in steps.iter().enumerate().filter(|(_, step)| step.active) {
            let [factors, of_fast] =
                [step.learning_rate, step.fast_learning_rate].map(|rate| Factors::new(step, rate, norm_sq[run]));
            let all = run * stride..(run + 1) * stride;
            let [params, m, v] =
                [&mut *params, &mut *m, &mut *v].map(|values| rows("adamw", &mut values[all.clone()], stride, 1));
            let d_params = &d_params[all];
            each_part(&exec.pool, stride, 1, (params, (m, v)), |first, (params, (m, v))| {
                let Some(fast) = fast else { return update(exec.isa, params, m, v, &d_params[first..], factors) };
                let fast = &fast[first..first + params.len()];
                let mut at = 0;
                // A and B of a module are long stretches.
                for stretch in fast.chunk_by(|a, b| (a.to_f64() == 0.0) == (b.to_f64() == 0.0)) {
                    let part = at..at + stretch.len();
                    let factors = if stretch[0].to_f64() == 0.0 { factors } else { of_fast };
                    let [params, m, v] = [&mut *params, &mut *m, &mut *v].map(|values| &mut values[part.clone()]);
                    update(exec.isa, params, m, v, &d_params[first + at..], factors);
                    at = part.end;
                }
            });
        }
    }

    fn refresh_weight(&mut self, op: RefreshWeight<'_, Self>) {
        let _span = self.begin(&op);
        op.weight.refresh(self.cx.exec.isa, &op.params[op.offset..]);
    }
}

multiversion! {
    fn squares[A: Float](x: &[A]) -> f64 {
        simd::sum(x.len(), |i| x[i].to_f64() * x[i].to_f64())
    }
}

/// The scalars of a step, computed in `f64`.
#[derive(Clone, Copy)]
struct Factors<A> {
    clip: A,
    decay: A,
    beta1: A,
    rest1: A,
    beta2: A,
    rest2: A,
    root_correction: A,
    epsilon: A,
    step_size: A,
}

impl<A: Float> Factors<A> {
    /// Of a step of a run whose gradient has the squared norm `norm_sq`, at a learning rate.
    fn new(step: &AdamwStep, learning_rate: f64, norm_sq: A) -> Self {
        let clip = match step.max_grad_norm {
            Some(max) => (max / (norm_sq.to_f64().sqrt() + 1e-6)).min(1.0),
            None => 1.0,
        };
        let correction = |beta: f64| 1.0 - beta.powf(step.step as f64);
        Self {
            clip: A::from_f64(clip),
            decay: A::from_f64(1.0 - learning_rate * step.weight_decay),
            beta1: A::from_f64(step.beta1),
            rest1: A::from_f64(1.0 - step.beta1),
            beta2: A::from_f64(step.beta2),
            rest2: A::from_f64(1.0 - step.beta2),
            root_correction: A::from_f64(correction(step.beta2).sqrt()),
            epsilon: A::from_f64(step.epsilon),
            step_size: A::from_f64(-learning_rate / correction(step.beta1)),
        }
    }
}

multiversion! {
    fn update[A: Float](params: &mut [A], m: &mut [A], v: &mut [A], d_params: &[A], f: Factors<A>) {
        for (((p, m), v), &d) in params.iter_mut().zip(m).zip(v).zip(d_params) {
            let g = d * f.clip;
            // PyTorch interpolates from the nearer end.
            *m = if f.rest1.to_f64() < 0.5 { *m + f.rest1 * (g - *m) } else { g - (g - *m) * f.beta1 };
            *v = *v * f.beta2 + f.rest2 * g * g;
            let denominator = v.sqrt() / f.root_correction + f.epsilon;
            *p = *p * f.decay + f.step_size * *m / denominator;
        }
    }
}
