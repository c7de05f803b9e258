//! The MLP sublayer of a block, forward and backward.

use super::activations::LayerActivations;
use super::block::{Block, BlockBwd, Sublayer};
use super::gradients::{GradientRequest, Gradients};
use super::output_rows::OutputRows;
use super::taps::PassTaps;
use crate::Result;
use crate::arch::{Mlp, NormPlacement, Projection};
use crate::backend::ops::{ActivationBwd, ActivationFwd, Cast, GatedBwd, GatedFwd, GatherAcc, ResidualFwd, Widen};
use crate::backend::{Backend, TensorMut};
use crate::hooks::{NormSite, Site, Taps};

impl<B: Backend> Block<'_, B> {
    /// What the MLP reads, of what its layer saved: its own input, or the attention's where one norm is both's and all rows
    /// go on.
    fn mlp_input<'a>(&self, attn_in: &'a B::Compute, mlp_in: &'a B::Compute) -> &'a B::Compute {
        if self.config.one_norm && self.outputs.is_none() { attn_in } else { mlp_in }
    }

    /// `mlp_out [N, C] = down(f(gate(x)) * up(x))` or `down(f(up(x)))`, normed where outputs are; x the norm of the middle
    /// residual stream, or that stream itself where no norm stands before. In a parallel block it is that of `stream`, which
    /// the attention read.
    pub fn mlp<T: Taps<B>>(
        &self,
        backend: &mut B,
        saved: &mut LayerActivations<B>,
        mlp_out: &mut B::Compute,
        stream: &B::Acc,
        taps: &mut PassTaps<'_, B, T>,
    ) -> Result<()> {
        let (config, width) = (self.config, self.config.intermediate_size);
        if config.norm_placement.before() && !config.one_norm {
            let x = if config.parallel { stream } else { &saved.resid_mid };
            self.norm(backend, Sublayer::Mlp, &mut saved.mlp_in, &mut saved.mlp_stats, x);
            self.tap_norm(backend, taps, NormSite::Ln2, x, &saved.mlp_stats, &mut saved.mlp_in)?;
        }
        let LayerActivations { attn_in, mlp_in, gate, up, act, adapters, output_norms, .. } = saved;
        let mlp_in = self.mlp_input(attn_in, mlp_in);
        if let Some(gate) = gate {
            self.project(backend, taps, Projection::Gate, gate, adapters, mlp_in)?;
        }
        self.project(backend, taps, Projection::Up, up, adapters, mlp_in)?;
        let len = self.input.pack.len() * width;
        match config.mlp {
            Mlp::Plain(f) => {
                taps.edit(backend, Site::MlpPre, TensorMut::Compute(&mut *up), width)?;
                backend.activation_fwd(ActivationFwd { act: &mut *act, x: up, f, len });
            }
            Mlp::Gated(f) => {
                let gate = gate.as_mut().expect("forward: a gated MLP has a buffer for its gate");
                taps.edit(backend, Site::MlpPre, TensorMut::Compute(&mut *gate), width)?;
                taps.edit(backend, Site::MlpPreLinear, TensorMut::Compute(&mut *up), width)?;
                backend.gated_fwd(GatedFwd { act: &mut *act, gate, up, f, len });
            }
        }
        taps.edit(backend, Site::MlpPost, TensorMut::Compute(&mut *act), width)?;
        match output_norms {
            // Its output is a part of the stream that leaves the block; its backward reads what its adapters read.
            None if self.recompute
                && config.norm_placement != NormPlacement::Post
                && !self.is_scaled(Projection::Down) =>
            {
                return self.adapt(backend, taps, Projection::Down, mlp_out, adapters, act);
            }
            None => self.project(backend, taps, Projection::Down, mlp_out, adapters, act)?,
            Some([_, input]) => {
                self.project(backend, taps, Projection::Down, &mut input.x, adapters, act)?;
                self.output_norm(backend, taps, Sublayer::Mlp, mlp_out, input)?;
            }
        }
        taps.edit(backend, Site::MlpOut, TensorMut::Compute(mlp_out), config.hidden_size)
    }

    /// From the MLP's output to the stream that leaves the block: `resid_post = resid_mid + mlp_out`, and in post-norm
    /// models the norm of that, by way of `post_norm [N, C]`. Computed again, a block leaves `resid_post` as it is.
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
                self.norm(backend, Sublayer::Mlp, post_norm, &mut saved.mlp_stats, sum);
                self.tap_norm(backend, taps, NormSite::Ln2, sum, &saved.mlp_stats, post_norm)?;
                if self.recompute {
                    return Ok(());
                }
                backend.widen(Widen { out: &mut *resid_post, x: post_norm, len });
            }
            _ if self.recompute => return Ok(()),
            _ => backend.residual_fwd(ResidualFwd { out: &mut *resid_post, a: &saved.resid_mid, b: mlp_out, len }),
        }
        taps.edit(backend, Site::ResidPost, TensorMut::Acc(resid_post), width)
    }
}

impl<B: Backend> BlockBwd<'_, B> {
    /// From the gradient of the stream that leaves the block to that of the middle one; `output` are the output rows, if
    /// the rows are those alone, `through` whether anybody needs the latter.
    pub fn mlp(
        &self,
        backend: &mut B,
        grads: &mut Gradients<B>,
        request: &mut GradientRequest<'_, B>,
        output: Option<&OutputRows<B>>,
        through: bool,
    ) {
        let outputs = output.is_some();
        let (config, saved, n) = (self.block.config, self.saved, self.block.input.pack.len());
        let width = config.hidden_size;
        self.site(backend, Site::ResidPost, outputs, TensorMut::Acc(&mut grads.d_resid), width);
        if config.norm_placement == NormPlacement::Post {
            self.site(backend, Site::LN2_OUT, outputs, TensorMut::Acc(&mut grads.d_resid), width);
        }
        self.post_norm(backend, grads, request, Sublayer::Mlp);
        backend.cast(Cast { out: &mut grads.d_out, x: &grads.d_resid, len: n * width });
        self.site(backend, Site::MlpOut, outputs, TensorMut::Compute(&mut grads.d_out), width);
        self.output_norm(backend, grads, request, Sublayer::Mlp, outputs);
        let inner = through || self.adapts(&[Projection::Gate, Projection::Up]);
        let d_act = (inner || self.scales_input(Projection::Down)).then_some((&mut grads.d_act, false));
        self.project(backend, request, Projection::Down, &mut grads.d_out, &saved.act, d_act);
        if !inner {
            return;
        }
        let inner_width = config.intermediate_size;
        self.site(backend, Site::MlpPost, outputs, TensorMut::Acc(&mut grads.d_act), inner_width);
        let (d_up, d_act, up, len) = (&mut grads.d_up, &mut grads.d_act, &saved.up, n * inner_width);
        match (config.mlp, &saved.gate, &mut grads.d_gate) {
            (Mlp::Plain(f), ..) => backend.activation_bwd(ActivationBwd { d_x: d_up, d_act, x: up, f, len }),
            (Mlp::Gated(f), Some(gate), Some(d_gate)) => {
                backend.gated_bwd(GatedBwd { d_gate, d_up, d_act, gate, up, f, len });
            }
            _ => unreachable!("backward: a gated MLP has buffers for its gate"),
        }
        let pre = if let Some(d_gate) = &mut grads.d_gate {
            self.site(backend, Site::MlpPreLinear, outputs, TensorMut::Compute(&mut grads.d_up), inner_width);
            d_gate
        } else {
            &mut grads.d_up
        };
        self.site(backend, Site::MlpPre, outputs, TensorMut::Compute(pre), inner_width);
        let mlp_in = self.block.mlp_input(&saved.attn_in, &saved.mlp_in);
        // Without a norm before it, a sublayer's input is the residual stream itself.
        let before = config.norm_placement.before();
        let (d_in, mut accumulate) = if before { (&mut grads.d_norm, false) } else { (&mut grads.d_resid, true) };
        if let Some(d_gate) = &mut grads.d_gate {
            let d_x = through.then_some((&mut *d_in, accumulate));
            self.project(backend, request, Projection::Gate, d_gate, mlp_in, d_x);
            accumulate = true;
        }
        let d_x = through.then_some((d_in, accumulate));
        self.project(backend, request, Projection::Up, &mut grads.d_up, mlp_in, d_x);
        if !(through && before) {
            return;
        }
        if !config.one_norm {
            self.site(backend, Site::LN2_OUT, outputs, TensorMut::Acc(&mut grads.d_norm), width);
        }
        if !config.parallel {
            return self.pre_norm(backend, grads, request, Sublayer::Mlp, Some(&saved.resid_mid));
        }
        // The attention's output has the gradient of the sum, without what goes through the MLP.
        backend.cast(Cast { out: &mut grads.d_out, x: &grads.d_resid, len: n * width });
        if config.one_norm {
            // The attention adds its part of the norm's gradient before that goes through the norm.
            return;
        }
        let stream = &self.acts.resid[self.acts.resid_slot(self.block.layer)];
        match output {
            None => self.pre_norm(backend, grads, request, Sublayer::Mlp, Some(stream)),
            Some(output) => {
                // What the activation's gradient was in holds those of its rows that went on.
                let (out, rows) = (&mut grads.d_act, &output.index);
                backend.gather_acc(GatherAcc { out, x: stream, rows, width });
                self.pre_norm(backend, grads, request, Sublayer::Mlp, None);
            }
        }
    }
}
