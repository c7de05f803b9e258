//! The optimiser's state of all runs: AdamW over flat parameters `[runs, stride]`.

use std::ops::Range;

use super::settings::RunSettings;
use crate::Result;
use crate::backend::ops::{Adamw, AdamwStep, CheckFinite, GradNorm, Zero};
use crate::backend::{AccElement, Backend};

/// Gradients and moments of `runs` runs, each `[runs, stride]`.
pub struct Optimizer<B: Backend> {
    /// Rows of the buffers.
    pub runs: usize,
    /// Elements of a run.
    pub stride: usize,
    /// Gradient, collected over the passes of a step.
    pub d_params: B::Acc,
    /// Runs whose gradients may be there; those of others are zeros.
    pub gradients_of: Vec<usize>,
    /// First moment `[runs, stride]`: the running mean of the gradient.
    pub m: B::Acc,
    /// Second moment `[runs, stride]`: that of its square.
    pub v: B::Acc,
    norm_sq: B::Acc,
    /// Set when a loss or a gradient was not finite: from then on nothing moves.
    stop: B::Acc,
    /// Which elements of a run have a learning rate of their own, `[stride]`.
    fast: Option<B::Acc>,
}

impl<B: Backend> Optimizer<B> {
    /// Buffers for so many runs, the moments zero.
    ///
    /// # Errors
    /// If the device has no memory for them.
    pub fn new(backend: &mut B, runs: usize, stride: usize) -> Result<Self> {
        let len = runs * stride;
        Ok(Self {
            runs,
            stride,
            d_params: backend.acc(len)?,
            gradients_of: Vec::new(),
            m: backend.acc(len)?,
            v: backend.acc(len)?,
            norm_sq: backend.acc(runs)?,
            stop: backend.acc(1)?,
            fast: None,
        })
    }

    /// Bytes of these buffers, without making them.
    pub fn bytes(runs: usize, stride: usize, element_sizes: (usize, usize)) -> usize {
        (runs * (3 * stride + 1) + 1) * element_sizes.0
    }

    /// Gives the elements of some ranges of every run a learning rate of their own.
    ///
    /// # Errors
    /// If the device has no memory for their marks.
    pub fn mark_fast(&mut self, backend: &mut B, ranges: &[Range<usize>]) -> Result<()> {
        let mut marks = vec![B::Element::default(); self.stride];
        ranges.iter().for_each(|range| marks[range.clone()].fill(B::Element::from_f64(1.0)));
        let mut fast = backend.acc(self.stride)?;
        backend.upload(&mut fast, 0, &marks)?;
        self.fast = Some(fast);
        Ok(())
    }

    /// Sees to it that nothing moves if one of the losses `[len]` is not finite.
    pub fn check_losses(&mut self, backend: &mut B, losses: &B::Acc, len: usize) {
        backend.check_finite(CheckFinite { stop: &mut self.stop, values: losses, len });
    }

    /// Squared norm of each run's gradient `[runs]`, before it is clipped. Nothing moves if one is not finite.
    ///
    /// # Errors
    /// If the device fails.
    pub fn gradient_norms(&mut self, backend: &mut B) -> Result<B::PendingReadback> {
        backend.grad_norm(GradNorm {
            norm_sq: &mut self.norm_sq,
            d_params: &self.d_params,
            runs: self.runs,
            stride: self.stride,
        });
        backend.check_finite(CheckFinite { stop: &mut self.stop, values: &self.norm_sq, len: self.runs });
        backend.download_async(&self.norm_sq, self.runs)
    }

    /// Lets parameters move again after a loss or gradient that was not finite.
    pub fn clear_stop(&mut self, backend: &mut B) {
        backend.zero(Zero { x: &mut self.stop });
    }

    /// Moves `params [runs, stride]`, by the norms that [`Optimizer::gradient_norms`] has left.
    pub fn step(&mut self, backend: &mut B, params: &mut B::Acc, steps: &[AdamwStep]) {
        assert!(steps.len() == self.runs, "optimiser: {} steps for {} runs", steps.len(), self.runs);
        let Self { m, v, d_params, norm_sq, stop, fast, .. } = self;
        backend.adamw(Adamw { params, m, v, d_params, norm_sq, stop, steps, fast: fast.as_ref(), stride: self.stride });
    }
}

/// Step number `step` (from 0) of a run whose schedule has `total`, as the device takes it; from step `end` on an inactive one.
pub fn adamw_step(settings: &RunSettings, step: u64, total: u64, end: u64) -> AdamwStep {
    let warmup = settings.warmup.steps(total);
    let factor = match settings.schedule.factor(step, warmup, total) {
        rising if step < warmup => rising,
        falling => settings.min_lr_rate + (1.0 - settings.min_lr_rate) * falling,
    };
    AdamwStep {
        active: step < end,
        learning_rate: settings.learning_rate * factor,
        fast_learning_rate: settings.learning_rate * settings.loraplus_lr_ratio.unwrap_or(1.0) * factor,
        beta1: settings.beta1,
        beta2: settings.beta2,
        epsilon: settings.epsilon,
        weight_decay: settings.weight_decay,
        max_grad_norm: settings.max_grad_norm,
        step: step + 1,
    }
}
