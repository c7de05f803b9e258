//! AdamW (Loshchilov and Hutter 2019), in the order of operations of the reference implementation: clip, decay,
//! moments, bias-corrected step.

use super::context::Exec;
use super::parallel::{each_part, rows};
use super::simd::{Float, multiversion};
use crate::backend::AdamwStep;

/// Elements of a first-stage sum of squares.
const PART: usize = 4096;

/// See [`Backend::grad_norm`](crate::backend::Backend::grad_norm). Sums in `f64`, over parts of [`PART`] elements and
/// then over the parts; `parts` is scratch.
pub fn grad_norm<W: Float>(
    exec: &Exec,
    parts: &mut Vec<f64>,
    norm_sq: &mut [W],
    d_params: &[W],
    runs: usize,
    stride: usize,
) {
    let per_run = stride.div_ceil(PART);
    let sums = super::gemm::grow(parts, runs * per_run);
    each_part(&exec.pool, runs * per_run, PART, rows("grad_norm", sums, runs * per_run, 1), |first, sums| {
        for (i, sum) in sums.iter_mut().enumerate() {
            let (run, part) = ((first + i) / per_run, (first + i) % per_run);
            let end = stride.min((part + 1) * PART);
            *sum = squares(exec.isa, &d_params[run * stride + part * PART..run * stride + end]);
        }
    });
    for (run, norm_sq) in norm_sq[..runs].iter_mut().enumerate() {
        *norm_sq = W::from_f64(sums[run * per_run..(run + 1) * per_run].iter().sum());
    }
}

multiversion! {
    fn squares[W: Float](x: &[W]) -> f64 {
        super::simd::sum(x.len(), |i| x[i].to_f64() * x[i].to_f64())
    }
}

/// The scalars of a step, computed in `f64`.
#[derive(Clone, Copy)]
struct Factors<W> {
    clip: W,
    decay: W,
    beta1: W,
    rest1: W,
    beta2: W,
    rest2: W,
    root_correction: W,
    epsilon: W,
    step_size: W,
}

/// See [`Backend::adamw`](crate::backend::Backend::adamw).
#[allow(clippy::too_many_arguments)]
pub fn adamw<W: Float>(
    exec: &Exec,
    params: &mut [W],
    m: &mut [W],
    v: &mut [W],
    d_params: &[W],
    norm_sq: &[W],
    steps: &[AdamwStep],
    stride: usize,
) {
    for (run, step) in steps.iter().enumerate().filter(|(_, step)| step.active) {
        assert!(step.step > 0, "adamw: step {} of run {run}, must be at least 1", step.step);
        let clip = match step.max_grad_norm {
            Some(max) => (max / (norm_sq[run].to_f64().sqrt() + 1e-6)).min(1.0),
            None => 1.0,
        };
        let correction = |beta: f64| 1.0 - beta.powf(step.step as f64);
        let f = Factors {
            clip: W::from_f64(clip),
            decay: W::from_f64(1.0 - step.learning_rate * step.weight_decay),
            beta1: W::from_f64(step.beta1),
            rest1: W::from_f64(1.0 - step.beta1),
            beta2: W::from_f64(step.beta2),
            rest2: W::from_f64(1.0 - step.beta2),
            root_correction: W::from_f64(correction(step.beta2).sqrt()),
            epsilon: W::from_f64(step.epsilon),
            step_size: W::from_f64(-step.learning_rate / correction(step.beta1)),
        };
        let all = run * stride..(run + 1) * stride;
        let outs = (
            rows("adamw", &mut params[all.clone()], stride, 1),
            (rows("adamw", &mut m[all.clone()], stride, 1), rows("adamw", &mut v[all.clone()], stride, 1)),
        );
        let d_params = &d_params[all];
        each_part(&exec.pool, stride, 1, outs, |first, (params, (m, v))| {
            update(exec.isa, params, m, v, &d_params[first..], f)
        });
    }
}

multiversion! {
    fn update[W: Float](params: &mut [W], m: &mut [W], v: &mut [W], d_params: &[W], f: Factors<W>) {
        for (((p, m), v), &d) in params.iter_mut().zip(m).zip(v).zip(d_params) {
            let g = d * f.clip;
            // The reference interpolates from the nearer end.
            *m = if f.rest1.to_f64() < 0.5 { *m + f.rest1 * (g - *m) } else { g - (g - *m) * f.beta1 };
            *v = *v * f.beta2 + f.rest2 * g * g;
            let denominator = v.sqrt() / f.root_correction + f.epsilon;
            *p = *p * f.decay + f.step_size * *m / denominator;
        }
    }
}
