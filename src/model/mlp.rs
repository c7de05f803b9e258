//! The MLP sublayer of a block, forward and backward.

use super::activations::LayerActivations;
use super::block::{Block, BlockBwd, Sublayer};
use super::gradients::{GradientRequest, Gradients};
use super::taps::PassTaps;
use crate::Result;
use crate::arch::{Mlp, Projection};
use crate::backend::ops::{ActivationBwd, ActivationFwd, Cast, ResidualFwd, SwigluBwd, SwigluFwd, Widen};
use crate::backend::{Backend, TensorMut};
use crate::hooks::{NormSite, Site, Taps};

impl<B: Backend> Block<'_, B> {
    /// `mlp_out [N, C] = down(silu(gate(x)) * up(x))` or `down(f(up(x)))`, x the norm of the middle residual stream, or that
    /// stream itself in post-norm models.
    pub fn mlp<T: Taps<B>>(
        &self,
        backend: &mut B,
        saved: &mut LayerActivations<B>,
        mlp_out: &mut B::Compute,
        taps: &mut PassTaps<'_, B, T>,
    ) -> Result<()> {
        let (config, width) = (self.config, self.config.intermediate_size);
        if !config.post_norm {
            self.norm(backend, &mut saved.mlp_in, &mut saved.mlp_stats, &saved.resid_mid, &self.weights.mlp_norm);
            self.tap_norm(backend, taps, NormSite::Ln2, &saved.resid_mid, &saved.mlp_stats, &mut saved.mlp_in)?;
        }
        let LayerActivations { mlp_in, gate, up, act, lora_xa, .. } = saved;
        if let Some(gate) = gate {
            self.project(backend, taps, Projection::Gate, gate, lora_xa, mlp_in)?;
        }
        self.project(backend, taps, Projection::Up, up, lora_xa, mlp_in)?;
        let len = self.input.pack.len() * width;
        match config.mlp {
            Mlp::Plain(f) => {
                taps.edit(backend, Site::MlpPre, TensorMut::Compute(&mut *up), width)?;
                backend.activation_fwd(ActivationFwd { act: &mut *act, x: up, f, len });
            }
            Mlp::SwiGlu => {
                let gate = gate.as_mut().expect("forward: a gated MLP has a buffer for its gate");
                taps.edit(backend, Site::MlpPre, TensorMut::Compute(&mut *gate), width)?;
                taps.edit(backend, Site::MlpPreLinear, TensorMut::Compute(&mut *up), width)?;
                backend.swiglu_fwd(SwigluFwd { act: &mut *act, gate, up, len });
            }
        }
        taps.edit(backend, Site::MlpPost, TensorMut::Compute(&mut *act), width)?;
        self.project(backend, taps, Projection::Down, mlp_out, lora_xa, act)?;
        taps.edit(backend, Site::MlpOut, TensorMut::Compute(mlp_out), config.hidden_size)
    }

    /// From the MLP's output to the stream that leaves the block: `resid_post = resid_mid + mlp_out`, and in post-norm
    /// models the norm of that, by way of `post_norm [N, C]`.
    pub fn mlp_output<T: Taps<B>>(
        &self,
        backend: &mut B,
        saved: &mut LayerActivations<B>,
        mlp_out: &B::Compute,
        post_norm: Option<&mut B::Compute>,
        resid_post: &mut B::Acc,
        taps: &mut PassTaps<'_, B, T>,
    ) -> Result<()> {
        let width = self.config.hidden_size;
        let len = self.input.pack.len() * width;
        match (&mut saved.pre_norm_sums, post_norm) {
            (Some([_, sum]), Some(post_norm)) => {
                backend.residual_fwd(ResidualFwd { out: &mut *sum, a: &saved.resid_mid, b: mlp_out, len });
                self.norm(backend, post_norm, &mut saved.mlp_stats, sum, &self.weights.mlp_norm);
                self.tap_norm(backend, taps, NormSite::Ln2, sum, &saved.mlp_stats, post_norm)?;
                backend.widen(Widen { out: &mut *resid_post, x: post_norm, len });
            }
            _ => backend.residual_fwd(ResidualFwd { out: &mut *resid_post, a: &saved.resid_mid, b: mlp_out, len }),
        }
        taps.edit(backend, Site::ResidPost, TensorMut::Acc(resid_post), width)
    }
}

impl<B: Backend> BlockBwd<'_, B> {
    /// From the gradient of the stream that leaves the block to that of the middle one; `outputs` says that the rows are the
    /// output rows alone, `through` whether anybody needs the latter.
    pub fn mlp(
        &self,
        backend: &mut B,
        grads: &mut Gradients<B>,
        request: &mut GradientRequest<'_, B>,
        outputs: bool,
        through: bool,
    ) {
        let (config, saved, n) = (self.block.config, self.saved, self.block.input.pack.len());
        let width = config.hidden_size;
        self.edits(backend, Site::ResidPost, outputs, TensorMut::Acc(&mut grads.d_resid), width);
        if config.post_norm {
            self.edits(backend, Site::LN2_OUT, outputs, TensorMut::Acc(&mut grads.d_resid), width);
        }
        self.post_norm(backend, grads, request, Sublayer::Mlp);
        backend.cast(Cast { out: &mut grads.d_out, x: &grads.d_resid, len: n * width });
        self.edits(backend, Site::MlpOut, outputs, TensorMut::Compute(&mut grads.d_out), width);
        let inner = through || self.adapts(&[Projection::Gate, Projection::Up]);
        let d_act = inner.then_some((&mut grads.d_act, false));
        self.project(backend, request, Projection::Down, &grads.d_out, &saved.act, d_act);
        if !inner {
            return;
        }
        let inner_width = config.intermediate_size;
        self.edits(backend, Site::MlpPost, outputs, TensorMut::Acc(&mut grads.d_act), inner_width);
        let (d_up, d_act, up, len) = (&mut grads.d_up, &grads.d_act, &saved.up, n * inner_width);
        match (config.mlp, &saved.gate, &mut grads.d_gate) {
            (Mlp::Plain(f), ..) => backend.activation_bwd(ActivationBwd { d_x: d_up, d_act, x: up, f, len }),
            (Mlp::SwiGlu, Some(gate), Some(d_gate)) => {
                backend.swiglu_bwd(SwigluBwd { d_gate, d_up, d_act, gate, up, len });
            }
            _ => unreachable!("backward: a gated MLP has buffers for its gate"),
        }
        let pre = if let Some(d_gate) = &mut grads.d_gate {
            self.edits(backend, Site::MlpPreLinear, outputs, TensorMut::Compute(&mut grads.d_up), inner_width);
            d_gate
        } else {
            &mut grads.d_up
        };
        self.edits(backend, Site::MlpPre, outputs, TensorMut::Compute(pre), inner_width);
        // Without a norm before it, a sublayer's input is the residual stream itself.
        let (d_in, mut accumulate) =
            if config.post_norm { (&mut grads.d_resid, true) } else { (&mut grads.d_norm, false) };
        if let Some(d_gate) = &grads.d_gate {
            let d_x = through.then_some((&mut *d_in, accumulate));
            self.project(backend, request, Projection::Gate, d_gate, &saved.mlp_in, d_x);
            accumulate = true;
        }
        let d_x = through.then_some((d_in, accumulate));
        self.project(backend, request, Projection::Up, &grads.d_up, &saved.mlp_in, d_x);
        if through && !config.post_norm {
            self.edits(backend, Site::LN2_OUT, outputs, TensorMut::Acc(&mut grads.d_norm), width);
            self.pre_norm(backend, grads, request, Sublayer::Mlp, &saved.resid_mid);
        }
    }
}
