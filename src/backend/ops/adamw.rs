//! The optimiser, over all runs at once: AdamW (Loshchilov and Hutter 2019) with bias correction as in Kingma and Ba 2015.
//! Parameters and everything beside them are `[runs, stride]`.

use super::check::{need, needs};
use super::{Launch, Op, Work, operations};
use crate::backend::{Buffers, Len};

/// Optimiser settings of one run for one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamwStep {
    /// Whether the run takes this step; otherwise its parameters and moments stay untouched.
    pub active: bool,
    /// Learning rate of the elements that [`Adamw::fast`] does not mark.
    pub learning_rate: f64,
    /// That of the elements that [`Adamw::fast`] marks.
    pub fast_learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay: parameters shrink by `learning_rate * weight_decay` of themselves.
    pub weight_decay: f64,
    /// The gradient's norm is clipped to this first (`g * max_norm / (norm + 1e-6)` if that is less than `g`).
    pub max_grad_norm: Option<f64>,
    /// Number of this step, from 1.
    pub step: u64,
}

/// `norm_sq [runs] =` the sum of squares of each run's gradient.
pub struct GradNorm<'a, B: Buffers + ?Sized> {
    /// `[runs]`, set.
    pub norm_sq: &'a mut B::Acc,
    /// `[runs, stride]`.
    pub d_params: &'a B::Acc,
    /// Runs whose gradients lie side by side.
    pub runs: usize,
    /// Elements of a run.
    pub stride: usize,
}

impl<B: Buffers + ?Sized> Op for GradNorm<'_, B> {
    const NAME: &'static str = "grad_norm";

    fn check(&self) {
        need(Self::NAME, "norm_sq", self.norm_sq.len(), self.runs);
        need(Self::NAME, "d_params", self.d_params.len(), self.runs * self.stride);
    }

    fn work(&self) -> Work {
        Work::moved(self.runs * (self.stride + 1), 0, 0)
    }

    /// Parts, and their sum.
    fn launches(&self) -> Vec<Launch> {
        vec![Launch::kernel(self.work()), Launch::kernel(Work::default())]
    }
}

/// `stop[0] = 1` if any of `values [len]` is not finite; otherwise it stays as it is.
pub struct CheckFinite<'a, B: Buffers + ?Sized> {
    /// `[1]`.
    pub stop: &'a mut B::Acc,
    /// `[len]`.
    pub values: &'a B::Acc,
    /// Elements that are read and written.
    pub len: usize,
}

impl<B: Buffers + ?Sized> Op for CheckFinite<'_, B> {
    const NAME: &'static str = "check_finite";

    fn check(&self) {
        need(Self::NAME, "values", self.values.len(), self.len);
        need(Self::NAME, "stop", self.stop.len(), 1);
    }

    fn work(&self) -> Work {
        Work::moved(self.len, 0, 0)
    }
}

/// One step of every active run; gradients are clipped by `norm_sq` first. Nothing moves if `stop[0]` is not 0.
pub struct Adamw<'a, B: Buffers + ?Sized> {
    /// `[runs, stride]`, updated.
    pub params: &'a mut B::Acc,
    /// First moments `[runs, stride]`, updated.
    pub m: &'a mut B::Acc,
    /// Second moments `[runs, stride]`, updated.
    pub v: &'a mut B::Acc,
    /// Gradients `[runs, stride]`.
    pub d_params: &'a B::Acc,
    /// `[runs]`, of [`GradNorm`].
    pub norm_sq: &'a B::Acc,
    /// `[1]`, of [`CheckFinite`].
    pub stop: &'a B::Acc,
    /// `[runs]`.
    pub steps: &'a [AdamwStep],
    /// `[stride]`, not 0 where an element of every run has its own learning rate; none where no element has.
    pub fast: Option<&'a B::Acc>,
    /// Elements of a run.
    pub stride: usize,
}

impl<B: Buffers + ?Sized> Op for Adamw<'_, B> {
    const NAME: &'static str = "adamw";

    fn check(&self) {
        let (op, runs) = (Self::NAME, self.steps.len());
        needs(op, runs * self.stride, &[("params", self.params.len()), ("m", self.m.len())]);
        needs(op, runs * self.stride, &[("v", self.v.len()), ("d_params", self.d_params.len())]);
        need(op, "norm_sq", self.norm_sq.len(), runs);
        need(op, "stop", self.stop.len(), 1);
        if let Some(fast) = self.fast {
            need(op, "fast", fast.len(), self.stride);
        }
        for step in self.steps.iter().filter(|step| step.active) {
            assert!(step.step > 0, "{op}: step is {}, must be at least 1", step.step);
        }
    }

    fn work(&self) -> Work {
        // Parameters and both moments are read and written, gradients read.
        let active = self.steps.iter().filter(|step| step.active).count();
        Work::moved(7 * active * self.stride, 0, 0)
    }

    /// The steps' numbers come from the host.
    fn launches(&self) -> Vec<Launch> {
        vec![Launch::copy(Work::default()), Launch::kernel(self.work())]
    }
}

/// `weight = params` from element `offset` on, rounded to the compute dtype: after a step of full tuning.
pub struct RefreshWeight<'a, B: Buffers + ?Sized> {
    /// A trainable weight, set.
    pub weight: &'a mut B::Weight,
    /// All trainable parameters, flat in the accumulation dtype.
    pub params: &'a B::Acc,
    /// Where the weight begins.
    pub offset: usize,
}

impl<B: Buffers + ?Sized> Op for RefreshWeight<'_, B> {
    const NAME: &'static str = "refresh_weight";

    fn check(&self) {
        need(Self::NAME, "params", self.params.len(), self.offset + self.weight.len());
    }

    fn work(&self) -> Work {
        Work::moved(self.weight.len(), 0, self.weight.len())
    }
}

operations! {
    /// AdamW over the parameters of all runs, and what it needs before a step.
    AdamwOps {
        grad_norm(GradNorm);
        check_finite(CheckFinite);
        adamw(Adamw);
        refresh_weight(RefreshWeight);
    }
}
