//! RMS norm (Zhang and Sennrich 2019): `out = n * w`, `n = x * rstd`, `rstd = 1 / sqrt(mean(x^2) + eps)`, where w is the
//! weight or one more than it, and what is rounded when is the family's ([`RmsWeight`]).
//!
//! Backward, with `g = d_out * w`: `d_x = rstd * (g - n * mean(g * n))`.
//!
//! The residual stream is normed into what a sublayer reads by `rms_norm_fwd` and its like; the output of a sublayer, all
//! queries, or every single one, whose rows are then heads, by `rms_norm_compute_fwd` and its like.

use super::check::{need, needs, same};
use super::{Op, Projected, Work, operations};
use crate::arch::RmsWeight;
use crate::backend::{Buffers, Len};

/// `out [N, C] =`, `rstd [N] =`, rounded to the compute dtype where [`RmsWeight`] says.
pub struct RmsNormFwd<'a, B: Buffers + ?Sized> {
    /// `[N, C]`, set.
    pub out: &'a mut B::Compute,
    /// `[N]`, set.
    pub rstd: &'a mut B::Acc,
    /// `[N, C]`.
    pub x: &'a B::Acc,
    /// `[C]`.
    pub weight: &'a B::Weight,
    /// Rows of the pack, N.
    pub rows: usize,
    /// Elements of a row of the residual stream, C.
    pub width: usize,
    /// Added to the mean of the squares.
    pub eps: f64,
    /// How the weight multiplies.
    pub form: RmsWeight,
}

impl<B: Buffers + ?Sized> Op for RmsNormFwd<'_, B> {
    const NAME: &'static str = "rms_norm_fwd";

    fn check(&self) {
        needs(Self::NAME, self.rows * self.width, &[("out", self.out.len()), ("x", self.x.len())]);
        need(Self::NAME, "rstd", self.rstd.len(), self.rows);
        same(Self::NAME, "the weight's length", self.weight.len(), self.width);
    }

    fn work(&self) -> Work {
        Work::moved(self.rows * (self.width + 1), self.rows * self.width, self.width)
    }
}

/// `d_x [N, C] +=` the gradient through the norm of `d_out [N, C]`.
pub struct RmsNormBwd<'a, B: Buffers + ?Sized> {
    /// `[N, C]`, added to.
    pub d_x: &'a mut B::Acc,
    /// `[N, C]`, consumed: nobody else has need of it, and a device may leave anything there.
    pub d_out: &'a mut B::Acc,
    /// `[N, C]`, of the forward.
    pub x: &'a B::Acc,
    /// `[N]`, of the forward.
    pub rstd: &'a B::Acc,
    /// `[C]`.
    pub weight: &'a B::Weight,
    /// Rows of the pack, N.
    pub rows: usize,
    /// Elements of a row of the residual stream, C.
    pub width: usize,
    /// How the weight multiplies.
    pub form: RmsWeight,
}

impl<B: Buffers + ?Sized> Op for RmsNormBwd<'_, B> {
    const NAME: &'static str = "rms_norm_bwd";

    fn check(&self) {
        let buffers = [("d_x", self.d_x.len()), ("d_out", self.d_out.len()), ("x", self.x.len())];
        needs(Self::NAME, self.rows * self.width, &buffers);
        need(Self::NAME, "rstd", self.rstd.len(), self.rows);
        same(Self::NAME, "the weight's length", self.weight.len(), self.width);
    }

    fn work(&self) -> Work {
        Work::moved(self.rows * (4 * self.width + 1), 0, self.width)
    }

    fn projected(&self) -> Option<Projected> {
        Some(Projected::NormGradient { len: self.rows * self.width })
    }
}

/// `d_weight [C] (from element `offset` on) +=` the sum over rows of `d_out * x * rstd`, in row order.
pub struct RmsNormBwdWeight<'a, B: Buffers + ?Sized> {
    /// `[C]` from element `offset` on, added to.
    pub d_weight: &'a mut B::Acc,
    /// Where the weight's gradient begins.
    pub offset: usize,
    /// `[N, C]`.
    pub d_out: &'a B::Acc,
    /// `[N, C]`, of the forward.
    pub x: &'a B::Acc,
    /// `[N]`, of the forward.
    pub rstd: &'a B::Acc,
    /// Rows of the pack, N.
    pub rows: usize,
    /// Elements of a row of the residual stream, C.
    pub width: usize,
}

impl<B: Buffers + ?Sized> Op for RmsNormBwdWeight<'_, B> {
    const NAME: &'static str = "rms_norm_bwd_weight";

    fn check(&self) {
        need(Self::NAME, "d_weight", self.d_weight.len(), self.offset + self.width);
        needs(Self::NAME, self.rows * self.width, &[("d_out", self.d_out.len()), ("x", self.x.len())]);
        need(Self::NAME, "rstd", self.rstd.len(), self.rows);
    }

    fn work(&self) -> Work {
        Work::moved(self.rows * (2 * self.width + 1) + 2 * self.width, 0, 0)
    }
}

/// `out [N, C] =`, `rstd [N] =`: as [`RmsNormFwd`], of rows in the compute dtype.
pub struct RmsNormComputeFwd<'a, B: Buffers + ?Sized> {
    /// `[N, C]`, set.
    pub out: &'a mut B::Compute,
    /// `[N]`, set.
    pub rstd: &'a mut B::Acc,
    /// `[N, C]`.
    pub x: &'a B::Compute,
    /// `[C]`.
    pub weight: &'a B::Weight,
    /// Rows that are normed, N: of the pack, or their heads.
    pub rows: usize,
    /// Elements of such a row, C.
    pub width: usize,
    /// Added to the mean of the squares.
    pub eps: f64,
    /// How the weight multiplies.
    pub form: RmsWeight,
}

impl<B: Buffers + ?Sized> Op for RmsNormComputeFwd<'_, B> {
    const NAME: &'static str = "rms_norm_compute_fwd";

    fn check(&self) {
        needs(Self::NAME, self.rows * self.width, &[("out", self.out.len()), ("x", self.x.len())]);
        need(Self::NAME, "rstd", self.rstd.len(), self.rows);
        same(Self::NAME, "the weight's length", self.weight.len(), self.width);
    }

    fn work(&self) -> Work {
        Work::moved(self.rows, 2 * self.rows * self.width, self.width)
    }
}

/// `d_x [N, C] =` the gradient of the input: `d_x`, which holds that of the output on entry, through the norm.
pub struct RmsNormComputeBwd<'a, B: Buffers + ?Sized> {
    /// `[N, C]`, changed in place.
    pub d_x: &'a mut B::Compute,
    /// `[N, C]`, of the forward.
    pub x: &'a B::Compute,
    /// `[N]`, of the forward.
    pub rstd: &'a B::Acc,
    /// `[C]`.
    pub weight: &'a B::Weight,
    /// Rows that are normed, N.
    pub rows: usize,
    /// Elements of such a row, C.
    pub width: usize,
    /// How the weight multiplies.
    pub form: RmsWeight,
}

impl<B: Buffers + ?Sized> Op for RmsNormComputeBwd<'_, B> {
    const NAME: &'static str = "rms_norm_compute_bwd";

    fn check(&self) {
        needs(Self::NAME, self.rows * self.width, &[("d_x", self.d_x.len()), ("x", self.x.len())]);
        need(Self::NAME, "rstd", self.rstd.len(), self.rows);
        same(Self::NAME, "the weight's length", self.weight.len(), self.width);
    }

    fn work(&self) -> Work {
        Work::moved(self.rows, 3 * self.rows * self.width, self.width)
    }
}

/// `d_weight [C] (from element `offset` on) +=` the sum over rows of `d_out * x * rstd`, in row order.
pub struct RmsNormComputeBwdWeight<'a, B: Buffers + ?Sized> {
    /// `[C]` from element `offset` on, added to.
    pub d_weight: &'a mut B::Acc,
    /// Where the weight's gradient begins.
    pub offset: usize,
    /// `[N, C]`.
    pub d_out: &'a B::Compute,
    /// `[N, C]`, of the forward.
    pub x: &'a B::Compute,
    /// `[N]`, of the forward.
    pub rstd: &'a B::Acc,
    /// Rows that are normed, N.
    pub rows: usize,
    /// Elements of such a row, C.
    pub width: usize,
}

impl<B: Buffers + ?Sized> Op for RmsNormComputeBwdWeight<'_, B> {
    const NAME: &'static str = "rms_norm_compute_bwd_weight";

    fn check(&self) {
        need(Self::NAME, "d_weight", self.d_weight.len(), self.offset + self.width);
        needs(Self::NAME, self.rows * self.width, &[("d_out", self.d_out.len()), ("x", self.x.len())]);
        need(Self::NAME, "rstd", self.rstd.len(), self.rows);
    }

    fn work(&self) -> Work {
        Work::moved(self.rows + 2 * self.width, 2 * self.rows * self.width, 0)
    }
}

operations! {
    /// RMS norm, forward and backward.
    RmsNormOps {
        rms_norm_fwd(RmsNormFwd);
        rms_norm_bwd(RmsNormBwd);
        rms_norm_bwd_weight(RmsNormBwdWeight);
        rms_norm_compute_fwd(RmsNormComputeFwd);
        rms_norm_compute_bwd(RmsNormComputeBwd);
        rms_norm_compute_bwd_weight(RmsNormComputeBwdWeight);
    }
}
