//! The norms of every family: RMS norm or layer norm of the residual stream, RMS norm of what sublayers put out and of
//! queries and keys.

use super::taps::PassTaps;
use super::weights::Norm;
use crate::Result;
use crate::arch::Norm as Kind;
use crate::arch::{ModelConfig, RmsWeight};
use crate::backend::ops::{
    GatherAcc, GatherCompute, LayerNormBwd, LayerNormBwdAffine, LayerNormFwd, RmsNormBwd, RmsNormBwdWeight,
    RmsNormComputeBwd, RmsNormComputeBwdWeight, RmsNormComputeFwd, RmsNormFwd,
};
use crate::backend::{AccElement, Backend, Tensor};
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

/// What a norm has made of some rows: `heads` norms of `width` elements in each.
pub(super) struct Normed<'a, B: Backend> {
    /// What was normed, `[N, heads, width]`.
    pub x: Tensor<'a, B>,
    /// Factors `[N, heads]`.
    pub rstd: &'a B::Acc,
    pub heads: usize,
    pub width: usize,
}

/// Hands over what a norm has made but its output. No pass needs the denominator or the normalized rows by themselves: they
/// are computed at the rows asked for, as norms with weights that leave them as they are.
pub(super) fn tap<B: Backend, T: Taps<B>>(
    backend: &mut B,
    config: &ModelConfig,
    taps: &mut PassTaps<'_, B, T>,
    at: NormSite,
    Normed { x, rstd, heads, width }: Normed<'_, B>,
) -> Result<()> {
    let [site, scale, normalized] = [NormPart::Rstd, NormPart::Scale, NormPart::Normalized].map(|p| Site::Norm(at, p));
    taps.tap(backend, site, Tensor::Acc(rstd), heads)?;
    if taps.wants(scale) {
        let rows = taps.rows_on_demand();
        let x = gather(backend, rstd, &taps.indices(scale, &rows), heads)?;
        // A row of one element has 1 / |x| for a factor.
        let count = rows.len() * heads;
        let (mut out, mut reciprocal) = (backend.compute(count)?, backend.acc(count)?);
        let (weight, rstd, form) = (filled(backend, 1, 1.0)?, &mut reciprocal, RmsWeight::Rounded);
        let rms = RmsNormFwd { out: &mut out, rstd, x: &x, weight: &weight, rows: count, width: 1, eps: 0.0, form };
        backend.rms_norm_fwd(rms);
        taps.tap_rows(backend, scale, Tensor::Acc(&reciprocal), heads, &rows)?;
    }
    if taps.wants(normalized) {
        let rows = taps.rows_on_demand();
        let (indices, count) = (taps.indices(normalized, &rows), rows.len() * heads);
        let neutral = if config.rms_weight() == Some(RmsWeight::OnePlus) { 0.0 } else { 1.0 };
        let bias = if config.norm == Kind::Layer { Some(filled(backend, width, 0.0)?) } else { None };
        let unit = Norm { weight: filled(backend, width, neutral)?, bias };
        let mut out = backend.compute(count * width)?;
        match x {
            Tensor::Acc(x) => {
                let x = gather(backend, x, &indices, heads * width)?;
                let mut stats = Stats::new(backend, config, count)?;
                forward(backend, config, &mut out, &mut stats, &x, &unit, count);
            }
            Tensor::Compute(x) => {
                let (mut gathered, mut rstd) = (backend.compute(count * width)?, backend.acc(count)?);
                let rows = backend.index(&indices)?;
                backend.gather_compute(GatherCompute { out: &mut gathered, x, rows: &rows, width: heads * width });
                let rows = NormRows { rows: count, width };
                compute_forward(backend, config, &mut out, &mut rstd, &gathered, &unit, rows);
            }
        }
        taps.tap_rows(backend, normalized, Tensor::Compute(&out), heads * width, &rows)?;
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
    /// `[rows, C]`, consumed.
    pub d_out: &'a mut B::Acc,
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
            if let Some((d_weight, offset)) = d_params {
                backend.rms_norm_bwd_weight(RmsNormBwdWeight { d_weight, offset, d_out, x, rstd, rows, width });
            }
            backend.rms_norm_bwd(RmsNormBwd { d_x, d_out, x, rstd, weight, rows, width, form });
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
