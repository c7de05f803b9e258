//! The attention sublayer of a block, forward and backward.

use super::activations::{LayerActivations, LoraInputs, QkNormInputs, Rotation};
use super::block::{Block, BlockBwd, Sublayer};
use super::gradients::{GradientRequest, Gradients};
use super::kv_cache::Cache;
use super::norm::{self, Normed};
use super::output_rows::OutputRows;
use super::param_id::NormAt;
use super::taps::PassTaps;
use crate::Result;
use crate::arch::{NormPlacement, Projection, Rope};
use crate::backend::ops::{
    AttentionBwd, AttentionFwd, AttentionPattern, AttentionResult, Cast, EmbedBwdPrompt, GatherCompute, KvAppend,
    ResidualFwd, RopeBwd, RopeFwd, Widen,
};
use crate::backend::{Backend, Len, Tensor, TensorMut};
use crate::hooks::{NormPart, NormSite, Site, Taps};

impl<B: Backend> Block<'_, B> {
    /// `z = attention(norm(resid_pre))` before the output projection, or without the norm where there is none before a
    /// sublayer. Keys and values of the cache's segments are appended.
    pub fn attention<T: Taps<B>>(
        &self,
        backend: &mut B,
        saved: &mut LayerActivations<B>,
        rotation: Option<&Rotation<B>>,
        resid_pre: &B::Acc,
        cache: Option<&mut Cache<'_, B>>,
        taps: &mut PassTaps<'_, B, T>,
    ) -> Result<()> {
        let (config, pack, device) = (self.config, self.input.pack, self.input.device);
        if config.norm_placement.before() {
            self.norm(backend, Sublayer::Attention, &mut saved.attn_in, &mut saved.attn_stats, resid_pre);
            self.tap_norm(backend, taps, NormSite::Ln1, resid_pre, &saved.attn_stats, &mut saved.attn_in)?;
        } else {
            let len = pack.len() * config.hidden_size;
            backend.cast(Cast { out: &mut saved.attn_in, x: resid_pre, len });
        }
        self.heads(backend, taps, saved, rotation)?;
        let cached = cache.as_deref().map(|cache| &cache.cache.layers[self.layer]).map(|(k, v)| [k, v]);
        backend.attention_fwd(AttentionFwd {
            z: &mut saved.z,
            lse: &mut saved.lse,
            q: &saved.rot_q,
            k: &saved.rot_k,
            v: &saved.v,
            cached,
            pack: device,
            outputs: self.outputs,
            dims: config.attention(self.layer),
        });
        self.tap_patterns(backend, taps, saved, cached.map(|[k, _]| k))?;
        if taps.edits(Site::Z) {
            self.save_unedited_z(backend, saved)?;
        }
        taps.edit(backend, Site::Z, TensorMut::Compute(&mut saved.z), config.q_width())?;
        self.tap_result(backend, taps, saved)?;
        if let Some(cache) = cache {
            cache.append_rows(backend, self.layer, [&saved.rot_k, &saved.v], pack, config.kv_width());
        }
        Ok(())
    }

    /// Saves `z` as the attention made it, which its backward reads.
    fn save_unedited_z(&self, backend: &mut B, saved: &mut LayerActivations<B>) -> Result<()> {
        let (rows, width) = (self.input.pack.len(), self.config.q_width());
        if saved.unedited_z.is_none() {
            saved.unedited_z = Some(backend.compute(saved.z.len())?);
        }
        if let Some(cache) = &mut saved.unedited_z {
            backend.kv_append(KvAppend { cache, to: 0, x: &saved.z, from: 0..rows, width });
        }
        Ok(())
    }

    /// Queries, keys and values as the attention reads them.
    fn heads<T: Taps<B>>(
        &self,
        backend: &mut B,
        taps: &mut PassTaps<'_, B, T>,
        saved: &mut LayerActivations<B>,
        rotation: Option<&Rotation<B>>,
    ) -> Result<()> {
        let (config, pack, head_dim) = (self.config, self.input.device, self.config.head_dim);
        let LayerActivations { rot_q, rot_k, v, attn_in, adapters, qk_norm, .. } = saved;
        self.normed_heads(backend, taps, [rot_q, rot_k, v], qk_norm.as_mut(), attn_in, adapters)?;
        let Some(rotation) = rotation else {
            self.put_prefix(backend, 0, rot_k);
            return Ok(());
        };
        if let Some(&Rope { dim: rotary_dim, pairs, .. }) = config.rope(self.layer) {
            let cos_sin = rotation.cos_sin(self.layer);
            for (x, heads) in [(&mut *rot_q, config.num_attention_heads), (&mut *rot_k, config.num_key_value_heads)] {
                backend.rope_fwd(RopeFwd { x, pack, cos_sin, heads, head_dim, rotary_dim, pairs });
            }
        }
        self.put_prefix(backend, 0, rot_k);
        taps.edit(backend, Site::RotQ, TensorMut::Compute(rot_q), config.q_width())?;
        taps.edit(backend, Site::RotK, TensorMut::Compute(rot_k), config.kv_width())
    }

    /// Queries, keys and values before the rotation, normed if the model norms queries and keys.
    fn normed_heads<T: Taps<B>>(
        &self,
        backend: &mut B,
        taps: &mut PassTaps<'_, B, T>,
        [q, k, v]: [&mut B::Compute; 3],
        qk_norm: Option<&mut QkNormInputs<B>>,
        x: &B::Compute,
        adapters: &mut LoraInputs<B>,
    ) -> Result<()> {
        let Some(inputs) = qk_norm else { return self.project_heads(backend, taps, [q, k, v], x, adapters) };
        self.project_heads(backend, taps, [&mut inputs.q, &mut inputs.k, v], x, adapters)?;
        for (at, site, out, x, rstd) in [
            (NormAt::Q(self.layer), NormSite::Q, q, &inputs.q, &mut inputs.q_rstd),
            (NormAt::K(self.layer), NormSite::K, k, &inputs.k, &mut inputs.k_rstd),
        ] {
            let rows = self.qk_rows(at);
            norm::compute_forward(backend, self.config, out, rstd, x, self.weights.norm(at), rows);
            let heads = rows.rows / self.input.pack.len();
            let normed = Normed { x: Tensor::Compute(x), rstd, heads, width: rows.width };
            norm::tap(backend, self.config, taps, site, normed)?;
            let width = heads * rows.width;
            taps.edit(backend, Site::Norm(site, NormPart::Out), TensorMut::Compute(out), width)?;
        }
        Ok(())
    }

    /// Queries, keys and values as they are projected.
    fn project_heads<T: Taps<B>>(
        &self,
        backend: &mut B,
        taps: &mut PassTaps<'_, B, T>,
        [q, k, v]: [&mut B::Compute; 3],
        x: &B::Compute,
        adapters: &mut LoraInputs<B>,
    ) -> Result<()> {
        self.project(backend, taps, Projection::Q, q, adapters, x)?;
        self.project(backend, taps, Projection::K, k, adapters, x)?;
        self.project(backend, taps, Projection::V, v, adapters, x)?;
        self.put_prefix(backend, 1, v);
        taps.edit(backend, Site::Q, TensorMut::Compute(q), self.config.q_width())?;
        taps.edit(backend, Site::K, TensorMut::Compute(k), self.config.kv_width())?;
        taps.edit(backend, Site::V, TensorMut::Compute(v), self.config.kv_width())
    }

    /// Puts a prefix's keys (`part` 0, after the rotation) or values (1) in the place of those computed at its rows.
    fn put_prefix(&self, backend: &mut B, part: usize, out: &mut B::Compute) {
        let Some(x) = self.input.adaptation.and_then(|adaptation| adaptation.prefix.as_ref()) else { return };
        let width = self.config.kv_width();
        for (to, from) in self.input.prefix(self.layer, part) {
            backend.kv_append(KvAppend { cache: &mut *out, to, x, from, width });
        }
    }

    /// Scores and probabilities of the rows asked for, `[rows, H, longest]`.
    fn tap_patterns<T: Taps<B>>(
        &self,
        backend: &mut B,
        taps: &mut PassTaps<'_, B, T>,
        saved: &LayerActivations<B>,
        cached_k: Option<&B::Compute>,
    ) -> Result<()> {
        let (longest, dims) = (self.input.pack.longest(), self.config.attention(self.layer));
        for (site, normalized) in [(Site::AttnScores, false), (Site::Pattern, true)] {
            if !taps.wants(site) {
                continue;
            }
            let rows = taps.rows_on_demand();
            let mut out = backend.acc(rows.len() * dims.heads * longest)?;
            backend.attention_pattern(AttentionPattern {
                out: &mut out,
                q: &saved.rot_q,
                k: &saved.rot_k,
                cached_k,
                lse: &saved.lse,
                rows: &rows,
                pack: self.input.device,
                dims,
                longest,
                normalized,
            });
            taps.tap_rows(backend, site, Tensor::Acc(&out), dims.heads * longest, &rows)?;
        }
        Ok(())
    }

    /// Each head's share of the output projection at the rows asked for, `[rows, H, C]`.
    fn tap_result<T: Taps<B>>(
        &self,
        backend: &mut B,
        taps: &mut PassTaps<'_, B, T>,
        saved: &LayerActivations<B>,
    ) -> Result<()> {
        if !taps.wants(Site::Result) {
            return Ok(());
        }
        let (heads, head_dim, width) = (self.config.num_attention_heads, self.config.head_dim, self.config.hidden_size);
        let rows = taps.rows_on_demand();
        let mut out = backend.acc(rows.len() * heads * width)?;
        let weight = &self.weights.projection(Projection::O).weight;
        backend.attention_result(AttentionResult {
            out: &mut out,
            z: &saved.z,
            weight,
            rows: &rows,
            heads,
            head_dim,
            width,
        });
        taps.tap_rows(backend, Site::Result, Tensor::Acc(&out), heads * width, &rows)
    }

    /// From `z` to the middle residual stream: output projection, its norm, `+ stream`, post-norm. `narrowed` says that the block runs
    /// over the output rows alone, whose `z` stands in `act`.
    pub fn attention_output<T: Taps<B>>(
        &self,
        backend: &mut B,
        saved: &mut LayerActivations<B>,
        attn_out: &mut B::Compute,
        stream: &B::Acc,
        narrowed: bool,
        taps: &mut PassTaps<'_, B, T>,
    ) -> Result<()> {
        let width = self.config.hidden_size;
        let len = self.input.pack.len() * width;
        let LayerActivations { z, act, adapters, attn_stats, mlp_in, resid_mid, pre_norm_sums, output_norms, .. } =
            saved;
        let z = if narrowed { &*act } else { &*z };
        match output_norms {
            None => self.project(backend, taps, Projection::O, attn_out, adapters, z)?,
            Some([input, _]) => {
                self.project(backend, taps, Projection::O, &mut input.x, adapters, z)?;
                self.output_norm(backend, taps, Sublayer::Attention, attn_out, input)?;
            }
        }
        taps.edit(backend, Site::AttnOut, TensorMut::Compute(attn_out), width)?;
        match pre_norm_sums {
            None => backend.residual_fwd(ResidualFwd { out: resid_mid, a: stream, b: attn_out, len }),
            Some([sum, _]) => {
                backend.residual_fwd(ResidualFwd { out: &mut *sum, a: stream, b: attn_out, len });
                self.norm(backend, Sublayer::Attention, mlp_in, attn_stats, sum);
                self.tap_norm(backend, taps, NormSite::Ln1, sum, attn_stats, mlp_in)?;
                backend.widen(Widen { out: &mut *resid_mid, x: mlp_in, len });
            }
        }
        if self.config.parallel {
            // The MLP does not read this sum, which is half of one.
            return Ok(());
        }
        taps.edit(backend, Site::ResidMid, TensorMut::Acc(&mut *resid_mid), width)?;
        let placement = self.config.norm_placement;
        if placement == NormPlacement::Output || (placement == NormPlacement::Post && taps.edits(Site::ResidMid)) {
            // The MLP reads the stream itself.
            backend.cast(Cast { out: mlp_in, x: resid_mid, len });
        }
        Ok(())
    }
}

impl<B: Backend> BlockBwd<'_, B> {
    /// The output projection: the gradient of its input, if `through` says that anybody needs it, into `d_z`, or into
    /// `d_act` for the output rows.
    pub fn attention_output(
        &self,
        backend: &mut B,
        grads: &mut Gradients<B>,
        request: &mut GradientRequest<'_, B>,
        output: Option<&OutputRows<B>>,
        through: bool,
    ) {
        let (config, outputs) = (self.block.config, output.is_some());
        let width = config.hidden_size;
        // Of a parallel block, `d_out` has been filled before the MLP's part was added.
        if !config.parallel {
            self.site(backend, Site::ResidMid, outputs, TensorMut::Acc(&mut grads.d_resid), width);
            if config.norm_placement == NormPlacement::Post {
                self.site(backend, Site::LN1_OUT, outputs, TensorMut::Acc(&mut grads.d_resid), width);
            }
            self.post_norm(backend, grads, request, Sublayer::Attention);
            let len = self.block.input.pack.len() * width;
            backend.cast(Cast { out: &mut grads.d_out, x: &grads.d_resid, len });
        }
        self.site(backend, Site::AttnOut, outputs, TensorMut::Compute(&mut grads.d_out), width);
        self.output_norm(backend, grads, request, Sublayer::Attention, outputs);
        let (d_z, z) = match output {
            None => (&mut grads.d_z, &self.saved.z),
            Some(output) => {
                let (x, rows, width) = (&self.saved.z, &output.index, config.q_width());
                backend.gather_compute(GatherCompute { out: &mut grads.d_up, x, rows, width });
                (&mut grads.d_act, &grads.d_up)
            }
        };
        let d_z = (through || self.scales_input(Projection::O)).then_some((d_z, false));
        self.project(backend, request, Projection::O, &mut grads.d_out, z, d_z);
    }

    /// From `d_z` to the block's input; `below` says whether anybody needs the gradient of that.
    pub fn attention(
        &self,
        backend: &mut B,
        grads: &mut Gradients<B>,
        request: &mut GradientRequest<'_, B>,
        below: bool,
    ) {
        let (config, saved, layer, pack) = (self.block.config, self.saved, self.block.layer, self.block.input.device);
        let (queries, keys) = (config.q_width(), config.kv_width());
        self.site(backend, Site::Z, false, TensorMut::Acc(&mut grads.d_z), queries);
        let edited = self.block.input.edits.is_some_and(|edits| edits.at(Site::Z, layer));
        let unedited = saved.unedited_z.as_ref().filter(|_| edited);
        backend.attention_bwd(AttentionBwd {
            d_q: &mut grads.d_q,
            d_k: &mut grads.d_k,
            d_v: &mut grads.d_v,
            delta: &mut grads.delta,
            d_z: &mut grads.d_z,
            z: unedited.unwrap_or(&saved.z),
            lse: &saved.lse,
            q: &saved.rot_q,
            k: &saved.rot_k,
            v: &saved.v,
            pack,
            outputs: self.block.outputs,
            dims: config.attention(layer),
        });
        self.site(backend, Site::V, false, TensorMut::Compute(&mut grads.d_v), keys);
        if self.acts.rotation.is_some() {
            self.site(backend, Site::RotQ, false, TensorMut::Compute(&mut grads.d_q), queries);
            self.site(backend, Site::RotK, false, TensorMut::Compute(&mut grads.d_k), keys);
        }
        self.take_prefix(backend, grads, request);
        if let (Some(rotation), Some(&Rope { dim: rotary_dim, pairs, .. })) = (&self.acts.rotation, config.rope(layer))
        {
            let (cos_sin, head_dim) = (rotation.cos_sin(layer), config.head_dim);
            let heads = config.num_attention_heads;
            backend.rope_bwd(RopeBwd { d_x: &mut grads.d_q, pack, cos_sin, heads, head_dim, rotary_dim, pairs });
            let heads = config.num_key_value_heads;
            backend.rope_bwd(RopeBwd { d_x: &mut grads.d_k, pack, cos_sin, heads, head_dim, rotary_dim, pairs });
        }
        self.qk_norm(backend, grads, request);
        self.site(backend, Site::Q, false, TensorMut::Compute(&mut grads.d_q), queries);
        self.site(backend, Site::K, false, TensorMut::Compute(&mut grads.d_k), keys);
        // Without a norm before it, a sublayer's input is the residual stream itself.
        let before = config.norm_placement.before();
        let (d_in, first) = if before { (&mut grads.d_norm, config.one_norm) } else { (&mut grads.d_resid, true) };
        for (target, d_y, accumulate) in [
            (Projection::Q, &mut grads.d_q, first),
            (Projection::K, &mut grads.d_k, true),
            (Projection::V, &mut grads.d_v, true),
        ] {
            let d_x = below.then_some((&mut *d_in, accumulate));
            self.project(backend, request, target, d_y, &saved.attn_in, d_x);
        }
        if below && before {
            let d_norm = TensorMut::Acc(&mut grads.d_norm);
            self.site(backend, Site::LN1_OUT, false, d_norm, config.hidden_size);
            let resid_pre = &self.acts.resid[self.acts.resid_slot(layer)];
            self.pre_norm(backend, grads, request, Sublayer::Attention, Some(resid_pre));
        }
        if below {
            self.site(backend, Site::ResidPre, false, TensorMut::Acc(&mut grads.d_resid), config.hidden_size);
        }
    }

    /// Takes the gradients of a prefix's keys and values out of those of all: what was computed at its rows has none.
    fn take_prefix(&self, backend: &mut B, grads: &mut Gradients<B>, request: &mut GradientRequest<'_, B>) {
        let (input, layer) = (self.block.input, self.block.layer);
        let Some(adaptation) = input.adaptation else { return };
        let (layout, width) = (&adaptation.layout, self.block.config.kv_width());
        let (Some(prefix), Some(prompt)) = (&adaptation.prefix, layout.prompt) else { return };
        let d_prompt = request.d_params.as_mut().expect("backward: a prefix went in, its gradient has no buffer");
        for (part, d) in [&mut grads.d_k, &mut grads.d_v].into_iter().enumerate() {
            let Some(site) = layout.prefix_part(layer, part) else { continue };
            // The gradient of the attention's output is no longer needed: its buffer serves here.
            backend.widen(Widen { out: &mut grads.d_z, x: d, len: input.pack.len() * width });
            let (d_out, pack) = (&grads.d_z, input.device);
            backend.embed_bwd_prompt(EmbedBwdPrompt { d_prompt: &mut **d_prompt, d_out, pack, site, width });
            for (to, from) in input.prefix(layer, part) {
                // The soft prompt beside a prefix is zeros.
                let zeros = prompt.offset / width;
                let from = zeros..zeros + from.len();
                backend.kv_append(KvAppend { cache: &mut *d, to, x: prefix, from, width });
            }
        }
    }
}
