//! The optimiser's state of all runs: AdamW over flat parameters `[runs, stride]`.

use super::settings::RunSettings;
use crate::Result;
use crate::backend::{AdamwStep, Backend, WideElement};

/// Gradients and moments of `runs` runs, each `[runs, stride]`.
pub struct Optimizer<B: Backend> {
    /// Number of runs.
    pub runs: usize,
    /// Elements of a run.
    pub stride: usize,
    /// Gradient, collected over the passes of a step.
    pub d_params: B::Wide,
    /// First moment.
    pub m: B::Wide,
    /// Second moment.
    pub v: B::Wide,
    norm_sq: B::Wide,
}

impl<B: Backend> Optimizer<B> {
    /// Moments of zero.
    ///
    /// # Errors
    /// If the device has no memory for them.
    pub fn new(backend: &mut B, runs: usize, stride: usize) -> Result<Self> {
        let len = runs * stride;
        Ok(Self {
            runs,
            stride,
            d_params: backend.wide(len)?,
            m: backend.wide(len)?,
            v: backend.wide(len)?,
            norm_sq: backend.wide(runs)?,
        })
    }

    /// Bytes of these buffers, without making them.
    pub fn bytes(runs: usize, stride: usize, element_sizes: (usize, usize)) -> usize {
        runs * (3 * stride + 1) * element_sizes.0
    }

    /// Norm of each run's gradient `[runs]`, before it is cut.
    ///
    /// # Errors
    /// If the device fails.
    pub fn gradient_norms(&mut self, backend: &mut B) -> Result<Vec<f64>> {
        backend.grad_norm(&mut self.norm_sq, &self.d_params, self.runs, self.stride);
        let mut norms = vec![B::Element::default(); self.runs];
        backend.download(&mut norms, &self.norm_sq, 0)?;
        Ok(norms.into_iter().map(|x| x.to_f64().sqrt()).collect())
    }

    /// Moves `params [runs, stride]`, by the norms that [`Optimizer::gradient_norms`] has left.
    pub fn step(&mut self, backend: &mut B, params: &mut B::Wide, steps: &[AdamwStep]) {
        assert!(steps.len() == self.runs, "optimiser: {} steps for {} runs", steps.len(), self.runs);
        backend.adamw(params, &mut self.m, &mut self.v, &self.d_params, &self.norm_sq, steps, self.stride);
    }
}

/// Step number `step` (from 0) of a run's `total` as the device takes it; beyond the end an inactive one.
pub fn adamw_step(settings: &RunSettings, step: u64, total: u64) -> AdamwStep {
    let factor = settings.schedule.factor(step, settings.warmup.steps(total), total);
    AdamwStep {
        active: step < total,
        learning_rate: settings.learning_rate * factor,
        beta1: settings.beta1,
        beta2: settings.beta2,
        epsilon: settings.epsilon,
        weight_decay: settings.weight_decay,
        max_grad_norm: settings.max_grad_norm,
        step: step + 1,
    }
}
