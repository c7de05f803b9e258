//! Layer norm (Ba et al. 2016): `out = (x - mean) * rstd * weight + bias`, `rstd = 1 / sqrt(mean((x - mean)^2) + eps)`.
//!
//! Backward, with `g = d_out * weight` and `n = (x - mean) * rstd`: `d_x = rstd * (g - mean(g) - n * mean(g * n))`.

use super::check::{need, needs, same};
use super::{Op, Work, operations};
use crate::backend::{Buffers, Len};

/// `out [N, C] =`, `mean [N] =`, `rstd [N] =`.
pub struct LayerNormFwd<'a, B: Buffers + ?Sized> {
    /// `[N, C]`, set.
    pub out: &'a mut B::Compute,
    /// `[N]`, set.
    pub mean: &'a mut B::Acc,
    /// `[N]`, set.
    pub rstd: &'a mut B::Acc,
    /// `[N, C]`.
    pub x: &'a B::Acc,
    /// `[C]`.
    pub weight: &'a B::Weight,
    /// `[C]`.
    pub bias: &'a B::Weight,
    /// Rows of the pack, N.
    pub rows: usize,
    /// Elements of a row of the residual stream, C.
    pub width: usize,
    /// Added to the variance.
    pub eps: f64,
}

impl<B: Buffers + ?Sized> Op for LayerNormFwd<'_, B> {
    const NAME: &'static str = "layer_norm_fwd";

    fn check(&self) {
        needs(Self::NAME, self.rows * self.width, &[("out", self.out.len()), ("x", self.x.len())]);
        needs(Self::NAME, self.rows, &[("mean", self.mean.len()), ("rstd", self.rstd.len())]);
        same(Self::NAME, "the weight's length", self.weight.len(), self.width);
        same(Self::NAME, "the bias's length", self.bias.len(), self.width);
    }

    fn work(&self) -> Work {
        Work::moved(self.rows * (self.width + 2), self.rows * self.width, 2 * self.width)
    }
}

/// `d_x [N, C] +=` the gradient through the norm of `d_out [N, C]`.
pub struct LayerNormBwd<'a, B: Buffers + ?Sized> {
    /// `[N, C]`, added to.
    pub d_x: &'a mut B::Acc,
    /// `[N, C]`.
    pub d_out: &'a B::Acc,
    /// `[N, C]`, of the forward.
    pub x: &'a B::Acc,
    /// `[N]`, of the forward.
    pub mean: &'a B::Acc,
    /// `[N]`, of the forward.
    pub rstd: &'a B::Acc,
    /// `[C]`.
    pub weight: &'a B::Weight,
    /// Rows of the pack, N.
    pub rows: usize,
    /// Elements of a row of the residual stream, C.
    pub width: usize,
}

impl<B: Buffers + ?Sized> Op for LayerNormBwd<'_, B> {
    const NAME: &'static str = "layer_norm_bwd";

    fn check(&self) {
        let buffers = [("d_x", self.d_x.len()), ("d_out", self.d_out.len()), ("x", self.x.len())];
        needs(Self::NAME, self.rows * self.width, &buffers);
        needs(Self::NAME, self.rows, &[("mean", self.mean.len()), ("rstd", self.rstd.len())]);
        same(Self::NAME, "the weight's length", self.weight.len(), self.width);
    }

    fn work(&self) -> Work {
        Work::moved(self.rows * (4 * self.width + 2), 0, self.width)
    }
}

/// `d_affine [2, C] (from element `offset` on) +=` the gradient of the weight, the sum over rows of `d_out * (x - mean) *
/// rstd`, then that of the bias, the sum over rows of `d_out`; both in row order.
pub struct LayerNormBwdAffine<'a, B: Buffers + ?Sized> {
    /// `[2, C]` from element `offset` on, added to.
    pub d_affine: &'a mut B::Acc,
    /// Where the weight's gradient begins; the bias's follows it.
    pub offset: usize,
    /// `[N, C]`.
    pub d_out: &'a B::Acc,
    /// `[N, C]`, of the forward.
    pub x: &'a B::Acc,
    /// `[N]`, of the forward.
    pub mean: &'a B::Acc,
    /// `[N]`, of the forward.
    pub rstd: &'a B::Acc,
    /// Rows of the pack, N.
    pub rows: usize,
    /// Elements of a row of the residual stream, C.
    pub width: usize,
}

impl<B: Buffers + ?Sized> Op for LayerNormBwdAffine<'_, B> {
    const NAME: &'static str = "layer_norm_bwd_affine";

    fn check(&self) {
        need(Self::NAME, "d_affine", self.d_affine.len(), self.offset + 2 * self.width);
        needs(Self::NAME, self.rows * self.width, &[("d_out", self.d_out.len()), ("x", self.x.len())]);
        needs(Self::NAME, self.rows, &[("mean", self.mean.len()), ("rstd", self.rstd.len())]);
    }

    fn work(&self) -> Work {
        Work::moved(self.rows * (2 * self.width + 2) + 4 * self.width, 0, 0)
    }
}

operations! {
    /// Layer norm, forward and backward.
    LayerNormOps {
        layer_norm_fwd(LayerNormFwd);
        layer_norm_bwd(LayerNormBwd);
        layer_norm_bwd_affine(LayerNormBwdAffine);
    }
}
