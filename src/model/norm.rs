//! The norms of every family: RMS norm or layer norm, whichever the weights are of.

use super::weights::Norm;
use crate::Result;
use crate::arch::ModelConfig;
use crate::arch::Norm as Kind;
use crate::backend::Backend;
use crate::backend::ops::{LayerNormBwd, LayerNormBwdAffine, LayerNormFwd, RmsNormBwd, RmsNormBwdWeight, RmsNormFwd};

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
        _ => backend.rms_norm_fwd(RmsNormFwd { out, rstd, x, weight: &norm.weight, rows, width, eps }),
    }
}

/// `d_x [rows, C] +=` the gradient through the norm, and on request the parameters' into the flat `(d_weights, offset)`:
/// the bias lies behind the weight.
#[allow(clippy::too_many_arguments)]
pub(super) fn backward<B: Backend>(
    backend: &mut B,
    config: &ModelConfig,
    d_x: &mut B::Acc,
    d_params: Option<(&mut B::Acc, usize)>,
    d_out: &B::Acc,
    x: &B::Acc,
    stats: &Stats<B>,
    norm: &Norm<B>,
    rows: usize,
) {
    let (width, rstd) = (config.hidden_size, &stats.rstd);
    match &stats.mean {
        Some(mean) => {
            backend.layer_norm_bwd(LayerNormBwd { d_x, d_out, x, mean, rstd, weight: &norm.weight, rows, width });
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
            backend.rms_norm_bwd(RmsNormBwd { d_x, d_out, x, rstd, weight: &norm.weight, rows, width });
            if let Some((d_weight, offset)) = d_params {
                backend.rms_norm_bwd_weight(RmsNormBwdWeight { d_weight, offset, d_out, x, rstd, rows, width });
            }
        }
    }
}
