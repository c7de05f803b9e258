//! The backward: from the losses of label rows to adapters, soft prompts, embeddings and, on request, all weights.

use super::Model;
use super::activations::{Activations, Keep, LayerActivations};
use super::forward::Input;
use super::full::WeightLayout;
use super::spec::Spec;
use super::weights::{Layer, Place};
use crate::Result;
use crate::backend::{Backend, LinearDims, WideElement};
use crate::formats::adapter::Target;

/// The rows that bear a loss: after row `rows[i]` comes token `targets[i]`, and the total is
/// `sum_i weights[i] * loss_i`.
pub struct Labels<B: Backend> {
    /// Number of label rows M.
    pub count: usize,
    rows: B::Index,
    targets: B::Index,
    weights: B::Wide,
}

impl<B: Backend> Labels<B> {
    /// Label rows; a row may stand several times, with several targets.
    ///
    /// # Errors
    /// If the device has no memory for them.
    pub fn new(backend: &mut B, rows: &[u32], targets: &[u32], weights: &[f64]) -> Result<Self> {
        let count = rows.len();
        assert!(
            targets.len() == count && weights.len() == count,
            "labels: {count} rows, {} targets, {} weights",
            targets.len(),
            weights.len()
        );
        let host: Vec<B::Element> = weights.iter().map(|&w| B::Element::from_f64(w)).collect();
        let mut weights = backend.wide(count)?;
        backend.upload(&mut weights, 0, &host)?;
        Ok(Self { count, rows: backend.index(rows)?, targets: backend.index(targets)?, weights })
    }
}

/// Scratch of a backward, for packs of up to `rows` rows of which up to `labels` bear a loss.
pub struct Gradients<B: Backend> {
    rows: usize,
    labels: usize,
    /// Losses of the label rows of the last pass `[M]`.
    pub losses: B::Wide,
    /// Gradient of the residual stream; after a backward that asked for it, of the embeddings `[N, C]`.
    pub d_resid: B::Wide,
    d_norm: B::Wide,
    d_out: B::Real,
    d_act: B::Wide,
    d_gate: B::Real,
    d_up: B::Real,
    d_z: B::Wide,
    d_q: B::Real,
    d_k: B::Real,
    d_v: B::Real,
    delta: B::Wide,
    label_x: B::Real,
    d_label_x: B::Wide,
}

impl<B: Backend> Gradients<B> {
    /// Scratch for packs of up to `rows` rows with up to `labels` label rows.
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn new(backend: &mut B, spec: &Spec, rows: usize, labels: usize) -> Result<Self> {
        let (n, c, q, kv, f) = (rows, spec.width, spec.q_width(), spec.kv_width(), spec.ffn);
        Ok(Self {
            rows,
            labels,
            losses: backend.wide(labels)?,
            d_resid: backend.wide(n * c)?,
            d_norm: backend.wide(n * c)?,
            d_out: backend.real(n * c)?,
            d_act: backend.wide(n * f)?,
            d_gate: backend.real(n * f)?,
            d_up: backend.real(n * f)?,
            d_z: backend.wide(n * q)?,
            d_q: backend.real(n * q)?,
            d_k: backend.real(n * kv)?,
            d_v: backend.real(n * kv)?,
            delta: backend.wide(n * spec.heads)?,
            label_x: backend.real(labels * c)?,
            d_label_x: backend.wide(labels * c)?,
        })
    }

    /// Bytes of this scratch, without making it.
    pub fn bytes(spec: &Spec, rows: usize, labels: usize, element_sizes: (usize, usize)) -> usize {
        let (c, q, kv, f) = (spec.width, spec.q_width(), spec.kv_width(), spec.ffn);
        let wide = rows * (2 * c + f + q + spec.heads) + labels * (1 + c);
        let real = rows * (c + 2 * f + q + 2 * kv) + labels * c;
        wide * element_sizes.0 + real * element_sizes.1
    }
}

/// The gradients that a backward is to leave.
pub struct Wanted<'a, B: Backend> {
    /// `+=` those of the adapters `[runs, stride]`; needed if the pass went through adapters.
    pub d_params: Option<&'a mut B::Wide>,
    /// `+=` those of all base weights, laid out by [`WeightLayout`].
    pub d_weights: Option<(&'a mut B::Wide, &'a WeightLayout)>,
    /// Whether [`Gradients::d_resid`] shall be those of the embeddings.
    pub d_embed: bool,
}

impl<B: Backend> Model<B> {
    /// The losses `[M]` of the label rows of the last forward, into `grads.losses`.
    ///
    /// # Panics
    /// If there are more labels than the scratch has room for.
    pub fn loss(&self, backend: &mut B, acts: &Activations<B>, labels: &Labels<B>, grads: &mut Gradients<B>) {
        assert!(labels.count <= grads.labels, "loss: {} labels in scratch for {}", labels.count, grads.labels);
        let width = self.spec.width;
        backend.gather_real(&mut grads.label_x, &acts.final_norm, &labels.rows, width);
        let dims = LinearDims { rows: labels.count, input: width, output: self.spec.vocab };
        backend.cross_entropy_fwd(&mut grads.losses, &grads.label_x, self.weights.head(), &labels.targets, dims);
    }

    /// The losses and the wanted gradients of the last forward, which must have kept all its activations.
    ///
    /// # Panics
    /// If the forward did not keep its activations, or went through a cache, or the scratch is too small.
    pub fn backward(
        &self,
        backend: &mut B,
        acts: &Activations<B>,
        grads: &mut Gradients<B>,
        input: &Input<'_, B>,
        labels: &Labels<B>,
        mut wanted: Wanted<'_, B>,
    ) {
        let (spec, n, c) = (&self.spec, input.pack.len(), self.spec.width);
        assert!(acts.keep == Keep::All, "backward: the forward kept one layer only");
        assert!(!input.pack.has_kept(), "backward: kept segments have no backward");
        assert!(n <= grads.rows, "backward: {n} rows in scratch for {}", grads.rows);
        assert!(labels.count <= grads.labels, "backward: {} labels in scratch for {}", labels.count, grads.labels);
        let lowest = self.lowest(input, &wanted);

        backend.gather_real(&mut grads.label_x, &acts.final_norm, &labels.rows, c);
        let head = if spec.tied { Place::Embed } else { Place::Head };
        let d_head = wanted.d_weights.as_mut().map(|(d, layout)| (&mut **d, layout.offset(head)));
        let dims = LinearDims { rows: labels.count, input: c, output: spec.vocab };
        let (x, targets) = (&grads.label_x, &labels.targets);
        backend.cross_entropy_bwd(
            &mut grads.losses,
            &mut grads.d_label_x,
            d_head,
            x,
            self.weights.head(),
            targets,
            &labels.weights,
            dims,
        );
        backend.zero(&mut grads.d_norm);
        backend.scatter_add(&mut grads.d_norm, &grads.d_label_x, &labels.rows, c);
        backend.zero(&mut grads.d_resid);
        let resid = &acts.resid[acts.resid_slot(spec.layers)];
        norm(backend, &mut wanted, Place::FinalNorm, grads, resid, &acts.final_rstd, &self.weights.final_norm, n, c);

        for layer in (lowest..spec.layers).rev() {
            let saved = &acts.layers[acts.layer_slot(layer)];
            let block = Block { spec, weights: &self.weights.layers[layer], layer, input, saved };
            let below = layer > lowest || wanted.d_embed || wanted.d_weights.is_some() || has_prompt(input);
            block.mlp(backend, grads, &mut wanted);
            if below || block.adapts_attention() {
                block.attention(backend, grads, &mut wanted, &acts.resid[acts.resid_slot(layer)], &acts.rope.0, below);
            }
        }

        if let (Some(adaptation), Some(d_params)) = (input.adaptation, wanted.d_params.as_mut())
            && let Some(site) = adaptation.layout.prompt
        {
            backend.embed_bwd_prompt(d_params, &grads.d_resid, input.device, site, c);
        }
        if let Some((d_weights, layout)) = wanted.d_weights.as_mut() {
            backend.embed_bwd_table(d_weights, layout.offset(Place::Embed), &grads.d_resid, input.device, c);
        }
    }

    /// The lowest layer whose backward anybody needs.
    fn lowest(&self, input: &Input<'_, B>, wanted: &Wanted<'_, B>) -> usize {
        if wanted.d_embed || wanted.d_weights.is_some() || has_prompt(input) {
            return 0;
        }
        let adapted = input.adaptation.and_then(|adaptation| adaptation.layout.lowest());
        adapted.unwrap_or(self.spec.layers)
    }
}

fn has_prompt<B: Backend>(input: &Input<'_, B>) -> bool {
    input.adaptation.is_some_and(|adaptation| adaptation.layout.prompt.is_some())
}

/// Backward of a norm: `d_resid += ` through it, from `d_norm`, and the gradient of its weight.
#[allow(clippy::too_many_arguments)]
fn norm<B: Backend>(
    backend: &mut B,
    wanted: &mut Wanted<'_, B>,
    place: Place,
    grads: &mut Gradients<B>,
    x: &B::Wide,
    rstd: &B::Wide,
    weight: &B::Weight,
    rows: usize,
    width: usize,
) {
    backend.rms_norm_bwd(&mut grads.d_resid, &grads.d_norm, x, rstd, weight, rows, width);
    if let Some((d_weights, layout)) = wanted.d_weights.as_mut() {
        backend.rms_norm_bwd_weight(d_weights, layout.offset(place), &grads.d_norm, x, rstd, rows, width);
    }
}

struct Block<'a, B: Backend> {
    spec: &'a Spec,
    weights: &'a Layer<B>,
    layer: usize,
    input: &'a Input<'a, B>,
    saved: &'a LayerActivations<B>,
}

impl<B: Backend> Block<'_, B> {
    fn adapts_attention(&self) -> bool {
        let site = |target| self.input.adaptation.and_then(|a| a.layout.site(self.layer, target));
        [Target::Q, Target::K, Target::V, Target::O].into_iter().any(|target| site(target).is_some())
    }

    fn mlp(&self, backend: &mut B, grads: &mut Gradients<B>, wanted: &mut Wanted<'_, B>) {
        let (n, c, f) = (self.input.pack.len(), self.spec.width, self.spec.ffn);
        let saved = self.saved;
        backend.cast(&mut grads.d_out, &grads.d_resid, n * c);
        self.project(backend, wanted, Target::Down, &grads.d_out, &saved.act, Some((&mut grads.d_act, false)));
        backend.swiglu_bwd(&mut grads.d_gate, &mut grads.d_up, &grads.d_act, &saved.gate, &saved.up, n * f);
        self.project(backend, wanted, Target::Gate, &grads.d_gate, &saved.mlp_norm, Some((&mut grads.d_norm, false)));
        self.project(backend, wanted, Target::Up, &grads.d_up, &saved.mlp_norm, Some((&mut grads.d_norm, true)));
        let weight = &self.weights.mlp_norm;
        norm(backend, wanted, Place::MlpNorm(self.layer), grads, &saved.resid_mid, &saved.mlp_rstd, weight, n, c);
    }

    /// `below` says whether anybody needs the gradient of the block's input.
    fn attention(
        &self,
        backend: &mut B,
        grads: &mut Gradients<B>,
        wanted: &mut Wanted<'_, B>,
        resid_pre: &B::Wide,
        rope: &B::Wide,
        below: bool,
    ) {
        let (spec, saved, device) = (self.spec, self.saved, self.input.device);
        let (n, c, d) = (self.input.pack.len(), spec.width, spec.head_dim);
        backend.cast(&mut grads.d_out, &grads.d_resid, n * c);
        self.project(backend, wanted, Target::O, &grads.d_out, &saved.z, Some((&mut grads.d_z, false)));
        backend.attention_bwd(
            &mut grads.d_q,
            &mut grads.d_k,
            &mut grads.d_v,
            &mut grads.delta,
            &grads.d_z,
            &saved.z,
            &saved.lse,
            &saved.rot_q,
            &saved.rot_k,
            &saved.v,
            device,
            spec.attention(self.layer),
        );
        backend.rope_bwd(&mut grads.d_q, device, rope, spec.heads, d);
        backend.rope_bwd(&mut grads.d_k, device, rope, spec.kv_heads, d);
        let x = &saved.attn_norm;
        for (target, d_y, accumulate) in
            [(Target::Q, &grads.d_q, false), (Target::K, &grads.d_k, true), (Target::V, &grads.d_v, true)]
        {
            let d_x = below.then_some((&mut grads.d_norm, accumulate));
            self.project(backend, wanted, target, d_y, x, d_x);
        }
        if below {
            let weight = &self.weights.attn_norm;
            norm(backend, wanted, Place::AttnNorm(self.layer), grads, resid_pre, &saved.attn_rstd, weight, n, c);
        }
    }

    /// Backward of a projection with its bias and adapter: `d_x` `=` or `+=` (as its flag says), the parameters `+=`.
    fn project(
        &self,
        backend: &mut B,
        wanted: &mut Wanted<'_, B>,
        target: Target,
        d_y: &B::Real,
        x: &B::Real,
        d_x: Option<(&mut B::Wide, bool)>,
    ) {
        let (input, output) = self.spec.widths(target);
        let rows = self.input.pack.len();
        let dims = LinearDims { rows, input, output };
        let projection = self.weights.projection(target);
        let d_x = d_x.map(|(d_x, accumulate)| {
            backend.linear_bwd_input(d_x, d_y, &projection.weight, dims, accumulate);
            d_x
        });
        if let Some(adaptation) = self.input.adaptation
            && let Some(site) = adaptation.layout.site(self.layer, target)
        {
            let d_params = wanted.d_params.as_mut().expect("backward: adapters went in, their gradients have no place");
            let xa = self.saved.lora_xa[target as usize].as_ref().expect("backward: the buffers have this layout");
            let dropout = self.input.dropout(self.layer, target);
            backend.lora_bwd(d_params, d_x, d_y, xa, x, &adaptation.params, self.input.device, site, dropout);
        }
        if let Some((d_weights, layout)) = wanted.d_weights.as_mut() {
            backend.linear_bwd_weight(d_weights, layout.offset(Place::Weight(self.layer, target)), d_y, x, dims);
            if projection.bias.is_some() {
                backend.linear_bwd_bias(d_weights, layout.offset(Place::Bias(self.layer, target)), d_y, rows, output);
            }
        }
    }
}
