//! Distances to a teacher: of states the mean squared error, of distributions the Kullback-Leibler divergence, each with its
//! gradient in the same sweep.
//!
//! States: `mean_c (x - t)^2`, torch's `mse_loss` of a row (what IA2 tunes towards; Mishra et al., arXiv 2509.22621).
//! Distributions: `T^2 KL(softmax(t / T) || softmax(x / T))`, whose gradient stays of one size whatever the temperature T
//! (Hinton et al., arXiv 1503.02531; of contexts: Snell et al., arXiv 2209.15189).

use super::check::{self, need, needs};
use super::{Op, Work, operations};
use crate::backend::{Buffers, Len};

/// `loss [M] += mean((x - target)^2)` over a row, `d_x [M, width] = row_weight * 2 / width * (x - target)`.
pub struct StateLoss<'a, B: Buffers + ?Sized> {
    /// `[M]`, added to.
    pub loss: &'a mut B::Acc,
    /// `[M, width]`, set.
    pub d_x: &'a mut B::Acc,
    /// `[M, width]`.
    pub x: &'a B::Acc,
    /// `[M, width]`.
    pub target: &'a B::Acc,
    /// `[M]`: the derivative of the total with respect to each row's loss.
    pub row_weights: &'a B::Acc,
    /// Rows M.
    pub rows: usize,
    /// Elements of a row.
    pub width: usize,
}

impl<B: Buffers + ?Sized> Op for StateLoss<'_, B> {
    const NAME: &'static str = "state_loss";

    fn check(&self) {
        needs(Self::NAME, self.rows, &[("loss", self.loss.len()), ("row_weights", self.row_weights.len())]);
        let buffers = [("d_x", self.d_x.len()), ("x", self.x.len()), ("target", self.target.len())];
        needs(Self::NAME, self.rows * self.width, &buffers);
    }

    fn work(&self) -> Work {
        Work::moved(3 * self.rows * self.width + 3 * self.rows, 0, 0)
    }
}

/// `loss [from..from + M] = T^2 KL(softmax(teacher / T) || softmax(logits / T))` and
/// `d_logits [M, V] = row_weight * T * (softmax(logits / T) - softmax(teacher / T))`, of logits under a soft cap the gradient
/// of what was capped: times `1 - (logit / cap)^2`.
pub struct KlLoss<'a, B: Buffers + ?Sized> {
    /// `[from + M]`, the last M set.
    pub loss: &'a mut B::Acc,
    /// `[M, V]`, set.
    pub d_logits: &'a mut B::Compute,
    /// `[M, V]`.
    pub logits: &'a B::Acc,
    /// `[M, V]`.
    pub teacher: &'a B::Acc,
    /// `[from + M]`, of which the last M are read: the derivative of the total with respect to each row's loss.
    pub row_weights: &'a B::Acc,
    /// Where the rows' losses and weights begin.
    pub from: usize,
    /// Rows M.
    pub rows: usize,
    /// Vocabulary V.
    pub vocab: usize,
    /// T, above 0.
    pub temperature: f64,
    /// The soft cap that the logits are under.
    pub softcap: Option<f64>,
}

impl<B: Buffers + ?Sized> Op for KlLoss<'_, B> {
    const NAME: &'static str = "kl_loss";

    fn check(&self) {
        let (op, end) = (Self::NAME, self.from + self.rows);
        needs(op, end, &[("loss", self.loss.len()), ("row_weights", self.row_weights.len())]);
        let len = self.rows * self.vocab;
        need(op, "d_logits", self.d_logits.len(), len);
        needs(op, len, &[("logits", self.logits.len()), ("teacher", self.teacher.len())]);
        assert!(self.temperature > 0.0, "{op}: a temperature is {}, must be above 0", self.temperature);
        check::softcap(op, self.softcap);
    }

    fn work(&self) -> Work {
        let len = self.rows * self.vocab;
        Work::moved(2 * len + 2 * self.rows, len, 0)
    }
}

operations! {
    /// Distances to a teacher.
    DistillationOps {
        state_loss(StateLoss);
        kl_loss(KlLoss);
    }
}
