//! The norms of every family: RMS norm or layer norm of the residual stream, RMS norm of what sublayers put out and of
//! queries and keys.

use super::weights::Norm;
use crate::Result;
use crate::arch::Norm as Kind;
use crate::arch::{ModelConfig, RmsWeight};
use crate::backend::Backend;
use crate::backend::ops::{
    LayerNormBwd, LayerNormBwdAffine, LayerNormFwd, RmsNormBwd, RmsNormBwdWeight, RmsNormComputeBwd,
    RmsNormComputeBwdWeight, RmsNormComputeFwd, RmsNormFwd,
};

/// What a norm's forward leaves for its backward, per row.
pub(super) struct Stats<B: Backend> {
    /// Means `[N]`, of a layer norm.
    mean: Option<B::Acc>,
    /// Factors `[N]`.
    pub rstd: B::Acc,
}

impl<B: Backend> Stats<B> {
    pub fn new(backend: &mut B, config: &ModelConfig, rows: usize) -> Result<Self> {
        let mean = if config.norm == Kind::Layer { Some(backend.acc(rows)?) } else { None };
        Ok(Self { mean, rstd: backend.acc(rows)? })
    }
}

/// `out [rows, C] = norm(x)`.
pub(super) fn forward<B: Backend>(
    backend: &mut B,
    config: &ModelConfig,
    out: &mut B::Compute,
    stats: &mut Stats<B>,
    x: &B::Acc,
    norm: &Norm<B>,
    rows: usize,
) {
    let (width, eps, rstd) = (config.hidden_size, config.norm_eps, &mut stats.rstd);
    match (&mut stats.mean, &norm.bias) {
        (Some(mean), Some(bias)) => {
            backend.layer_norm_fwd(LayerNormFwd { out, mean, rstd, x, weight: &norm.weight, bias, rows, width, eps });
        }
        _ => {
            let form = form(config);
            backend.rms_norm_fwd(RmsNormFwd { out, rstd, x, weight: &norm.weight, rows, width, eps, form });
        }
    }
}

/// How the weights of a model's RMS norms multiply.
fn form(config: &ModelConfig) -> RmsWeight {
    config.rms_weight().expect("norm: a model whose norms have no bias has RMS norms")
}

/// A norm's backward: `d_x [rows, C] +=` the gradient through it, and on request the parameters'.
pub(super) struct NormBwd<'a, B: Backend> {
    /// `[rows, C]`, added to.
    pub d_x: &'a mut B::Acc,
    /// Flat gradients and where the weight's begins, added to; the bias's follow.
    pub d_params: Option<(&'a mut B::Acc, usize)>,
    /// `[rows, C]`.
    pub d_out: &'a B::Acc,
    /// `[rows, C]`, of the forward.
    pub x: &'a B::Acc,
    /// Of the forward.
    pub stats: &'a Stats<B>,
    pub norm: &'a Norm<B>,
    pub rows: usize,
}

/// See [`NormBwd`].
pub(super) fn backward<B: Backend>(backend: &mut B, config: &ModelConfig, args: NormBwd<'_, B>) {
    let NormBwd { d_x, d_params, d_out, x, stats: Stats { mean, rstd }, norm, rows } = args;
    let (width, weight) = (config.hidden_size, &norm.weight);
    match mean {
        Some(mean) => {
            backend.layer_norm_bwd(LayerNormBwd { d_x, d_out, x, mean, rstd, weight, rows, width });
            if let Some((d_affine, offset)) = d_params {
                backend.layer_norm_bwd_affine(LayerNormBwdAffine {
                    d_affine,
                    offset,
                    d_out,
                    x,
                    mean,
                    rstd,
                    rows,
                    width,
                });
            }
        }
        None => {
            let form = form(config);
            backend.rms_norm_bwd(RmsNormBwd { d_x, d_out, x, rstd, weight, rows, width, form });
            if let Some((d_weight, offset)) = d_params {
                backend.rms_norm_bwd_weight(RmsNormBwdWeight { d_weight, offset, d_out, x, rstd, rows, width });
            }
        }
    }
}

/// What a norm of rows in the compute dtype is over: `rows` of `width`, of the pack or of its heads.
#[derive(Clone, Copy)]
pub(super) struct NormRows {
    pub rows: usize,
    pub width: usize,
}

/// `out = norm(x)`, of rows in the compute dtype.
pub(super) fn compute_forward<B: Backend>(
    backend: &mut B,
    config: &ModelConfig,
    out: &mut B::Compute,
    rstd: &mut B::Acc,
    x: &B::Compute,
    norm: &Norm<B>,
    NormRows { rows, width }: NormRows,
) {
    let (weight, eps, form) = (&norm.weight, config.norm_eps, form(config));
    backend.rms_norm_compute_fwd(RmsNormComputeFwd { out, rstd, x, weight, rows, width, eps, form });
}

/// Through such a norm, in place: `d_x =` the gradient of its input, from that of its output in `d_x`; on request the
/// weight's, added to flat gradients from an offset on.
pub(super) fn compute_backward<B: Backend>(
    backend: &mut B,
    config: &ModelConfig,
    d_x: &mut B::Compute,
    d_weight: Option<(&mut B::Acc, usize)>,
    (x, rstd): (&B::Compute, &B::Acc),
    norm: &Norm<B>,
    NormRows { rows, width }: NormRows,
) {
    if let Some((d_weight, offset)) = d_weight {
        let d_out = &*d_x;
        backend.rms_norm_compute_bwd_weight(RmsNormComputeBwdWeight { d_weight, offset, d_out, x, rstd, rows, width });
    }
    let (weight, form) = (&norm.weight, form(config));
    backend.rms_norm_compute_bwd(RmsNormComputeBwd { d_x, x, rstd, weight, rows, width, form });
}
