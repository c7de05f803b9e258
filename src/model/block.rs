//! One block of the model: what its two sublayers have in common, forward and backward.

use super::activations::{Activations, LayerActivations, LoraInputs, OutputNormInput, QkNormInputs};
use super::gradients::{GradientRequest, Gradients};
use super::input::Input;
use super::norm::{self, NormBwd, NormRows, Normed, Stats};
use super::param_id::{NormAt, ParamId};
use super::taps::PassTaps;
use super::weights::{Layer, Norm};
use crate::arch::{ModelConfig, Projection};
use crate::backend::ops::{
    KvAppend, LinearBwdBias, LinearBwdInput, LinearBwdWeight, LinearDims, LinearFwd, LoraBwd, LoraDelta, LoraFwd,
    ScaleBwd, ScaleDelta, ScaleFwd, Zero,
};
use crate::backend::{Backend, Tensor, TensorMut};
use crate::hooks::{NormPart, NormSite, Site, Taps};
use crate::{Error, Result};

/// A block, over the rows of `input`.
pub(super) struct Block<'a, B: Backend> {
    pub config: &'a ModelConfig,
    pub weights: &'a Layer<B>,
    pub layer: usize,
    pub input: &'a Input<'a, B>,
    /// Whether it is computed again for its backward, so that what only later layers read is left out.
    pub recompute: bool,
    /// The rows that come out of its attention, ascending; none means all. Nobody reads `z` and the log-sum-exps of others.
    pub outputs: Option<&'a [usize]>,
}

impl<B: Backend> Block<'_, B> {
    /// A projection with its bias and its adapter: `out [N, output]` from `x [N, input]`.
    pub fn project<T: Taps<B>>(
        &self,
        backend: &mut B,
        taps: &mut PassTaps<'_, B, T>,
        target: Projection,
        out: &mut B::Compute,
        adapters: &mut LoraInputs<B>,
        x: &B::Compute,
    ) -> Result<()> {
        let rows = self.input.pack.len();
        let projection = self.weights.projection(target);
        let (input, output) = self.config.widths(target);
        let dims = LinearDims { rows, input, output };
        let (weight, bias) = (&projection.weight, projection.bias.as_ref());
        let scaled = self.scale_input(backend, target, adapters, x);
        backend.linear_fwd(LinearFwd { out: &mut *out, x: scaled, weight, bias, dims });
        self.adapt(backend, taps, target, out, adapters, x)
    }

    /// A projection's input `x [N, input]`, as its weight multiplies it: scaled where a run says so.
    fn scale_input<'x>(
        &self,
        backend: &mut B,
        target: Projection,
        adapters: &'x mut LoraInputs<B>,
        x: &'x B::Compute,
    ) -> &'x B::Compute {
        let (rows, width) = (self.input.pack.len(), self.config.widths(target).0);
        let Some(adaptation) = self.input.adaptation else { return x };
        let mut sites = adaptation.layout.input_scales(self.layer, target).peekable();
        if sites.peek().is_none() {
            return x;
        }
        let scaled = adapters.scaled.as_mut().expect("forward: the buffers were planned with this layout");
        backend.kv_append(KvAppend { cache: &mut *scaled, to: 0, x, from: 0..rows, width });
        for site in sites {
            let (params, pack) = (&adaptation.params, self.input.device);
            let y = &mut *scaled;
            backend.scale_fwd(ScaleFwd { y, unscaled: None, params, norms: None, bias: None, pack, site });
        }
        scaled
    }

    /// Whether any run scales a projection's output.
    pub fn is_scaled(&self, target: Projection) -> bool {
        let adaptation = self.input.adaptation;
        adaptation.is_some_and(|adaptation| adaptation.layout.scales(self.layer, target).next().is_some())
    }

    /// What a projection's adapters make of it: `out [N, output]` in place, from `x [N, input]`.
    pub fn adapt<T: Taps<B>>(
        &self,
        backend: &mut B,
        taps: &mut PassTaps<'_, B, T>,
        target: Projection,
        out: &mut B::Compute,
        adapters: &mut LoraInputs<B>,
        x: &B::Compute,
    ) -> Result<()> {
        let Some(adaptation) = self.input.adaptation else { return Ok(()) };
        let (pack, bias) = (self.input.device, self.weights.projection(target).bias.as_ref());
        let (params, dropout) = (&adaptation.params, self.input.dropout(self.layer, target));
        let several = adaptation.layout.sites(self.layer, target).nth(1).is_some();
        if several && (taps.wants(Site::LoraA(target)) || taps.wants(Site::LoraDelta(target))) {
            let expected = "runs of one rank and one choice of modules where the adapter's sites are looked at";
            return Err(Error::argument("adapter", expected, "several"));
        }
        for (shape, site) in adaptation.layout.sites(self.layer, target) {
            let xa = adapters.xa[target as usize].get_mut(shape).and_then(Option::as_mut);
            let xa = xa.expect("forward: the buffers were planned with this layout");
            let y = Some(&mut *out);
            backend.lora_fwd(LoraFwd { y, xa, x, params, pack, site, dropout });
            taps.tap(backend, Site::LoraA(target), Tensor::Acc(xa), site.rank)?;
        }
        for site in adaptation.layout.scales(self.layer, target) {
            let (unscaled, norms) = (adapters.unscaled[target as usize].as_mut(), adaptation.norms());
            assert!(unscaled.is_some(), "forward: the buffers were planned with another layout");
            // A vector multiplies the bias too; a magnitude is of the weight alone.
            let (norms, bias) = if site.norms.is_some() { (norms, bias) } else { (None, None) };
            backend.scale_fwd(ScaleFwd { y: &mut *out, unscaled, params, norms, bias, pack, site });
        }
        if taps.wants(Site::LoraDelta(target)) {
            self.tap_delta(backend, taps, target, adapters)?;
        }
        Ok(())
    }

    /// What the adapter adds to a projection's output `[N, output]`.
    fn tap_delta<T: Taps<B>>(
        &self,
        backend: &mut B,
        taps: &mut PassTaps<'_, B, T>,
        target: Projection,
        adapters: &LoraInputs<B>,
    ) -> Result<()> {
        let (pack, output) = (self.input.device, self.config.widths(target).1);
        let Some(adaptation) = self.input.adaptation else { return Ok(()) };
        let (params, norms) = (&adaptation.params, adaptation.norms());
        for (shape, site) in adaptation.layout.sites(self.layer, target) {
            let mut out = backend.acc(self.input.pack.len() * output)?;
            if let Some(xa) = &adapters.xa[target as usize][shape] {
                backend.lora_delta(LoraDelta { out: &mut out, xa, params, pack, site });
            }
            if let (Some(unscaled), Some(site)) =
                (&adapters.unscaled[target as usize], adaptation.layout.scales(self.layer, target).next())
            {
                backend.scale_delta(ScaleDelta { out: &mut out, unscaled, params, norms, pack, site });
            }
            taps.tap(backend, Site::LoraDelta(target), Tensor::Acc(&out), output)?;
        }
        Ok(())
    }

    /// `out [N, C] = norm(x)`, by the norm of the sublayer.
    pub fn norm(&self, backend: &mut B, sublayer: Sublayer, out: &mut B::Compute, stats: &mut Stats<B>, x: &B::Acc) {
        let norm = self.weights.norm(sublayer.norm(self.layer));
        norm::forward(backend, self.config, out, stats, x, norm, self.input.pack.len());
    }

    /// `out [N, C] = norm(input.x)`, by the norm of the sublayer's output.
    pub fn output_norm<T: Taps<B>>(
        &self,
        backend: &mut B,
        taps: &mut PassTaps<'_, B, T>,
        sublayer: Sublayer,
        out: &mut B::Compute,
        OutputNormInput { x, rstd }: &mut OutputNormInput<B>,
    ) -> Result<()> {
        let (norm, width) = (self.weights.norm(sublayer.output_norm(self.layer)), self.config.hidden_size);
        taps.edit(backend, sublayer.raw_site(), TensorMut::Compute(&mut *x), width)?;
        norm::compute_forward(backend, self.config, out, rstd, x, norm, self.stream_rows());
        let normed = Normed { x: Tensor::Compute(x), rstd, heads: 1, width };
        norm::tap(backend, self.config, taps, sublayer.output_norm_site(), normed)
    }

    /// The rows of the residual stream.
    fn stream_rows(&self) -> NormRows {
        NormRows { rows: self.input.pack.len(), width: self.config.hidden_size }
    }

    /// What the norm of queries or of keys is over.
    pub fn qk_rows(&self, at: NormAt) -> NormRows {
        let (rows, width) = (self.input.pack.len(), at.width(self.config));
        let all = if matches!(at, NormAt::Q(_)) { self.config.q_width() } else { self.config.kv_width() };
        NormRows { rows: rows * (all / width), width }
    }

    /// Hands over what a norm makes of `x [N, C]`, of which the output may be edited.
    pub fn tap_norm<T: Taps<B>>(
        &self,
        backend: &mut B,
        taps: &mut PassTaps<'_, B, T>,
        at: NormSite,
        x: &B::Acc,
        stats: &Stats<B>,
        out: &mut B::Compute,
    ) -> Result<()> {
        let normed = Normed { x: Tensor::Acc(x), rstd: &stats.rstd, heads: 1, width: self.config.hidden_size };
        norm::tap(backend, self.config, taps, at, normed)?;
        taps.edit(backend, Site::Norm(at, NormPart::Out), TensorMut::Compute(out), self.config.hidden_size)
    }
}

/// One of the two sublayers of a block.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sublayer {
    Attention,
    Mlp,
}

impl Sublayer {
    /// The norm before it, or after its sum in post-norm models.
    pub const fn norm(self, layer: usize) -> NormAt {
        match self {
            Self::Attention => NormAt::Attn(layer),
            Self::Mlp => NormAt::Mlp(layer),
        }
    }

    /// The site of the norm of its output.
    pub const fn output_norm_site(self) -> NormSite {
        match self {
            Self::Attention => NormSite::Ln1Post,
            Self::Mlp => NormSite::Ln2Post,
        }
    }

    /// The site of its output before that norm.
    pub const fn raw_site(self) -> Site {
        match self {
            Self::Attention => Site::AttnRaw,
            Self::Mlp => Site::MlpRaw,
        }
    }

    /// The norm of its output.
    pub const fn output_norm(self, layer: usize) -> NormAt {
        match self {
            Self::Attention => NormAt::AttnOut(layer),
            Self::Mlp => NormAt::MlpOut(layer),
        }
    }
}

/// A block on the way back.
pub(super) struct BlockBwd<'a, B: Backend> {
    pub block: Block<'a, B>,
    pub acts: &'a Activations<B>,
    /// What the block's forward saved.
    pub saved: &'a LayerActivations<B>,
}

impl<B: Backend> BlockBwd<'_, B> {
    /// Whether any of these projections has an adapter.
    pub fn adapts(&self, targets: &[Projection]) -> bool {
        let adaptation = self.block.input.adaptation;
        targets.iter().any(|&target| adaptation.is_some_and(|a| a.layout.adapts(self.block.layer, target)))
    }

    /// Through a site, whose tensor `[rows, width]` had a row for each of the block's input; see [`Input::site_backward`].
    /// `outputs` says that these are the output rows alone.
    pub fn site(&self, backend: &mut B, site: Site, outputs: bool, d_x: TensorMut<'_, B>, width: usize) {
        self.block.input.site_backward(backend, (site, self.block.layer), outputs, d_x, width);
    }

    /// A sublayer's norm: its name, its weights, and what its forward saved.
    fn norm(&self, sublayer: Sublayer) -> (NormAt, &Norm<B>, &Stats<B>) {
        let Block { layer, weights, .. } = self.block;
        let (at, stats) = (sublayer.norm(layer), [&self.saved.attn_stats, &self.saved.mlp_stats]);
        (at, weights.norm(at), stats[sublayer as usize])
    }

    /// Through the norm of a sublayer's output, where there is one: `d_out` in place. `outputs` as in [`BlockBwd::site`].
    pub fn output_norm(
        &self,
        backend: &mut B,
        grads: &mut Gradients<B>,
        request: &mut GradientRequest<'_, B>,
        sublayer: Sublayer,
        outputs: bool,
    ) {
        let Some(inputs) = &self.saved.output_norms else { return };
        let Block { config, weights, layer, .. } = self.block;
        let (at, OutputNormInput { x, rstd }) = (sublayer.output_norm(layer), &inputs[sublayer as usize]);
        let (d_x, d_weight) = (&mut grads.d_out, request.weight(ParamId::Norm(at)));
        let (norm, rows) = (weights.norm(at), self.block.stream_rows());
        norm::compute_backward(backend, config, d_x, d_weight, (x, rstd), norm, rows);
        self.site(backend, sublayer.raw_site(), outputs, TensorMut::Compute(&mut grads.d_out), config.hidden_size);
    }

    /// Through the norms of queries and keys, where there are any: `d_q` and `d_k` in place.
    pub fn qk_norm(&self, backend: &mut B, grads: &mut Gradients<B>, request: &mut GradientRequest<'_, B>) {
        let Some(QkNormInputs { q, k, q_rstd, k_rstd }) = &self.saved.qk_norm else { return };
        let Block { config, weights, layer, .. } = self.block;
        for (at, site, d_x, input) in [
            (NormAt::Q(layer), NormSite::Q, &mut grads.d_q, (q, q_rstd)),
            (NormAt::K(layer), NormSite::K, &mut grads.d_k, (k, k_rstd)),
        ] {
            let width = config.norm_width(site);
            self.site(backend, Site::Norm(site, NormPart::Out), false, TensorMut::Compute(&mut *d_x), width);
            let (d_weight, rows) = (request.weight(ParamId::Norm(at)), self.block.qk_rows(at));
            norm::compute_backward(backend, config, d_x, d_weight, input, weights.norm(at), rows);
        }
    }

    /// Through the norm before a sublayer, whose input is `x`, or lies in `d_act`: `d_resid +=` from `d_norm`.
    pub fn pre_norm(
        &self,
        backend: &mut B,
        grads: &mut Gradients<B>,
        request: &mut GradientRequest<'_, B>,
        sublayer: Sublayer,
        x: Option<&B::Acc>,
    ) {
        let (at, norm, stats) = self.norm(sublayer);
        let (d_params, rows) = (request.weight(ParamId::Norm(at)), self.block.input.pack.len());
        let Gradients { d_resid: d_x, d_norm: d_out, d_act, .. } = grads;
        let args = NormBwd { d_x, d_params, d_out, x: x.unwrap_or(d_act), stats, norm, rows };
        norm::backward(backend, self.block.config, args);
    }

    /// Through the norm after a sublayer's sum, in post-norm models: `d_resid =` from `d_resid`, exchanged with `d_norm`.
    pub fn post_norm(
        &self,
        backend: &mut B,
        grads: &mut Gradients<B>,
        request: &mut GradientRequest<'_, B>,
        sublayer: Sublayer,
    ) {
        let Some(sums) = &self.saved.pre_norm_sums else { return };
        let (at, norm, stats) = self.norm(sublayer);
        let (d_params, rows) = (request.weight(ParamId::Norm(at)), self.block.input.pack.len());
        backend.zero(Zero { x: &mut grads.d_norm });
        let (d_x, x) = (&mut grads.d_norm, &sums[sublayer as usize]);
        norm::backward(
            backend,
            self.block.config,
            NormBwd { d_x, d_params, d_out: &mut grads.d_resid, x, stats, norm, rows },
        );
        std::mem::swap(&mut grads.d_resid, &mut grads.d_norm);
    }

    /// Backward of a projection with its bias and adapter: `d_x [N, input]` `=` or `+=` (as its flag says), the parameters
    /// `+=`, from `d_y [N, output]`, which is scaled as the output was.
    pub fn project(
        &self,
        backend: &mut B,
        request: &mut GradientRequest<'_, B>,
        target: Projection,
        d_y: &mut B::Compute,
        x: &B::Compute,
        d_x: Option<(&mut B::Acc, bool)>,
    ) {
        let Block { config, weights, layer, input, .. } = self.block;
        let (rows, (width, output)) = (input.pack.len(), config.widths(target));
        let dims = LinearDims { rows, input: width, output };
        let projection = weights.projection(target);
        let bias = |backend: &mut B, request: &mut GradientRequest<'_, B>, d_out: &B::Compute| {
            if projection.bias.is_some()
                && let Some((d_bias, offset)) = request.weight(ParamId::Bias(layer, target))
            {
                backend.linear_bwd_bias(LinearBwdBias { d_bias, offset, d_out, rows, output });
            }
        };
        // A magnitude leaves the bias alone, a vector multiplies it.
        let scales = input.adaptation.map(|adaptation| adaptation.layout.scales(layer, target));
        let vector = scales.is_some_and(|mut scales| scales.any(|site| site.norms.is_none()));
        if !vector {
            bias(backend, request, d_y);
        }
        self.unscale(backend, request, target, d_y);
        let d_y = &*d_y;
        if vector {
            bias(backend, request, d_y);
        }
        let d_x = d_x.map(|(d_x, accumulate)| {
            let weight = &projection.weight;
            backend.linear_bwd_input(LinearBwdInput { d_x: &mut *d_x, d_out: d_y, weight, dims, accumulate });
            self.unscale_input(backend, request, target, x, (&mut *d_x, accumulate));
            d_x
        });
        if let Some(adaptation) = input.adaptation {
            let mut d_x = d_x;
            for (shape, site) in adaptation.layout.sites(layer, target) {
                let d_params =
                    request.d_params.as_mut().expect("backward: adapters went in, their gradients have no buffer");
                let xa = self.saved.adapters.xa[target as usize].get(shape).and_then(Option::as_ref);
                let xa = xa.expect("backward: the buffers have this layout");
                let (params, pack, dropout) = (&adaptation.params, input.device, input.dropout(layer, target));
                let (d_x, accumulate) = (d_x.as_deref_mut(), !request.sets_params);
                backend.lora_bwd(LoraBwd { d_params, accumulate, d_x, d_y, xa, x, params, pack, site, dropout });
            }
        }
        if let Some((d_weight, offset)) = request.weight(ParamId::Weight(layer, target)) {
            backend.linear_bwd_weight(LinearBwdWeight { d_weight, offset, d_out: d_y, x, dims });
        }
    }

    /// Whether any run scales the input of a projection, whose vector then needs the gradient of that.
    pub fn scales_input(&self, target: Projection) -> bool {
        let adaptation = self.block.input.adaptation;
        adaptation.is_some_and(|adaptation| adaptation.layout.input_scales(self.block.layer, target).next().is_some())
    }

    /// Through the scale of a projection's input, where there is one: `d_x [N, input]` in place.
    fn unscale_input(
        &self,
        backend: &mut B,
        request: &mut GradientRequest<'_, B>,
        target: Projection,
        x: &B::Compute,
        (d_x, accumulate): (&mut B::Acc, bool),
    ) {
        let Block { layer, input, .. } = self.block;
        let Some(adaptation) = input.adaptation else { return };
        for site in adaptation.layout.input_scales(layer, target) {
            assert!(!accumulate, "backward: the input of {} is scaled, and others read it", target.name());
            let d_params = request.d_params.as_mut();
            let d_params = d_params.expect("backward: adapters went in, their gradients have no buffer");
            let (params, pack, d_y) = (&adaptation.params, input.device, TensorMut::Acc(&mut *d_x));
            backend.scale_bwd(ScaleBwd { d_params, d_y, unscaled: x, params, norms: None, pack, site });
        }
    }

    /// Through the scale of a projection's output, where there is one: `d_y [N, output]` in place.
    fn unscale(&self, backend: &mut B, request: &mut GradientRequest<'_, B>, target: Projection, d_y: &mut B::Compute) {
        let Block { layer, input, .. } = self.block;
        let Some(adaptation) = input.adaptation else { return };
        for site in adaptation.layout.scales(layer, target) {
            let d_params = request.d_params.as_mut();
            let d_params = d_params.expect("backward: adapters went in, their gradients have no buffer");
            let unscaled = self.saved.adapters.unscaled[target as usize].as_ref();
            let unscaled = unscaled.expect("backward: the buffers have this layout");
            let (params, pack) = (&adaptation.params, input.device);
            let norms = if site.norms.is_some() { adaptation.norms() } else { None };
            let d_y = TensorMut::Compute(&mut *d_y);
            backend.scale_bwd(ScaleBwd { d_params, d_y, unscaled, params, norms, pack, site });
        }
    }
}
