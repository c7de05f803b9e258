//! The norms of every family: RMS norm or layer norm, whichever the weights are of.

use super::taps::PassTaps;
use super::weights::Norm;
use crate::Result;
use crate::arch::ModelConfig;
use crate::arch::Norm as Kind;
use crate::backend::ops::{
    GatherAcc, LayerNormBwd, LayerNormBwdAffine, LayerNormFwd, RmsNormBwd, RmsNormBwdWeight, RmsNormFwd,
};
use crate::backend::{AccElement, Backend, Len, Tensor};
use crate::hooks::{NormPart, NormSite, Site, Taps};

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

/// Hands over what a norm has made of `x [N, C]` but its output. No pass needs the denominator or the normalized rows by
/// themselves: they are computed at the rows asked for, as norms with weights of 1.
pub(super) fn tap<B: Backend, T: Taps<B>>(
    backend: &mut B,
    config: &ModelConfig,
    taps: &mut PassTaps<'_, B, T>,
    at: NormSite,
    x: &B::Acc,
    stats: &Stats<B>,
) -> Result<()> {
    let [rstd, scale, normalized] = [NormPart::Rstd, NormPart::Scale, NormPart::Normalized].map(|p| Site::Norm(at, p));
    taps.tap(backend, rstd, Tensor::Acc(&stats.rstd), 1)?;
    if taps.wants(scale) {
        let rows = taps.rows_on_demand();
        let x = gather(backend, &stats.rstd, &taps.indices(scale, &rows), 1)?;
        // A row of one element has 1 / |x| for a factor.
        let (mut out, mut reciprocal) = (backend.compute(rows.len())?, backend.acc(rows.len())?);
        let (weight, rstd) = (filled(backend, 1, 1.0)?, &mut reciprocal);
        let rms = RmsNormFwd { out: &mut out, rstd, x: &x, weight: &weight, rows: rows.len(), width: 1, eps: 0.0 };
        backend.rms_norm_fwd(rms);
        taps.tap_rows(backend, scale, Tensor::Acc(&reciprocal), 1, &rows)?;
    }
    if taps.wants(normalized) {
        let (rows, width) = (taps.rows_on_demand(), config.hidden_size);
        let x = gather(backend, x, &taps.indices(normalized, &rows), width)?;
        let bias = if config.norm == Kind::Layer { Some(filled(backend, width, 0.0)?) } else { None };
        let unit = Norm { weight: filled(backend, width, 1.0)?, bias };
        let (mut out, mut stats) = (backend.compute(x.len())?, Stats::new(backend, config, rows.len())?);
        forward(backend, config, &mut out, &mut stats, &x, &unit, rows.len());
        taps.tap_rows(backend, normalized, Tensor::Compute(&out), width, &rows)?;
    }
    Ok(())
}

/// The rows `rows` of `x`, of `width` elements.
fn gather<B: Backend>(backend: &mut B, x: &B::Acc, rows: &[u32], width: usize) -> Result<B::Acc> {
    let mut out = backend.acc(rows.len() * width)?;
    let rows = backend.index(rows)?;
    backend.gather_acc(GatherAcc { out: &mut out, x, rows: &rows, width });
    Ok(out)
}

/// A weight of equal elements.
fn filled<B: Backend>(backend: &mut B, len: usize, value: f64) -> Result<B::Weight> {
    let mut params = backend.acc(len)?;
    backend.upload(&mut params, 0, &vec![B::Element::from_f64(value); len])?;
    backend.trainable_weight(&params, 0, len)
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
            backend.rms_norm_bwd(RmsNormBwd { d_x, d_out, x, rstd, weight, rows, width });
            if let Some((d_weight, offset)) = d_params {
                backend.rms_norm_bwd_weight(RmsNormBwdWeight { d_weight, offset, d_out, x, rstd, rows, width });
            }
        }
    }
}
