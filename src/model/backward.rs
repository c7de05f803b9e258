//! The backward: from the losses of label rows to adapters, soft prompts, embeddings and, on request, all weights.

use std::sync::Arc;

use super::Model;
use super::activations::{Activations, Keep, LayerActivations, counted, some};
use super::forward::Input;
use super::full::WeightLayout;
use super::norm;
use super::output_rows::{OutputRows, place};
use super::param_id::{NormAt, ParamId};
use super::weights::{Layer, Norm};
use crate::Result;
use crate::arch::Mlp;
use crate::arch::ModelConfig;
use crate::arch::Projection;
use crate::backend::ops::{
    ActivationBwd, AttentionBwd, Cast, CrossEntropyBwd, CrossEntropyFwd, EmbedBwdPrompt, EmbedBwdTable, GatherCompute,
    KvAppend, LinearBwdBias, LinearBwdInput, LinearBwdWeight, LinearDims, LinearFwd, LoraBwd, PositionBwdTable,
    RopeBwd, ScatterAdd, SwigluBwd, Widen, Zero,
};
use crate::backend::{AccElement, Backend};

/// The rows that bear a loss: after row `rows[i]` comes token `targets[i]`, and the total is
/// `sum_i weights[i] * loss_i`.
pub struct Labels<B: Backend> {
    /// Number of label rows M.
    pub count: usize,
    /// The rows that are read in the pass.
    read: Option<Arc<[usize]>>,
    rows: B::Index,
    targets: B::Index,
    weights: B::Acc,
}

impl<B: Backend> Labels<B> {
    /// Label rows of a pass of which the rows `read` are read; a row may stand several times, with several targets.
    ///
    /// # Errors
    /// If the device has no memory for them.
    ///
    /// # Panics
    /// If a label row is not read.
    pub fn new(
        backend: &mut B,
        read: Option<&OutputRows<B>>,
        rows: &[u32],
        targets: &[u32],
        weights: &[f64],
    ) -> Result<Self> {
        let count = rows.len();
        assert!(
            targets.len() == count && weights.len() == count,
            "labels: {count} rows, {} targets, {} weights",
            targets.len(),
            weights.len()
        );
        let host: Vec<B::Element> = weights.iter().map(|&w| B::Element::from_f64(w)).collect();
        let mut weights = backend.acc(count)?;
        backend.upload(&mut weights, 0, &host)?;
        let read = read.map(|read| read.rows.clone());
        let places: Vec<u32> = rows.iter().map(|&row| place(read.as_deref(), row as usize) as u32).collect();
        Ok(Self { count, read, rows: backend.index(&places)?, targets: backend.index(targets)?, weights })
    }
}

/// Scratch of a backward, for packs of up to `rows` rows of which up to `labels` bear a loss.
pub struct Gradients<B: Backend> {
    rows: usize,
    labels: usize,
    /// Losses of the label rows of the last pass `[M]`.
    pub losses: B::Acc,
    /// Gradient of the residual stream.
    d_resid: B::Acc,
    /// Of the embedding rows `[N, E]`, where something stands between them and the first block.
    d_embed: Option<B::Acc>,
    d_norm: B::Acc,
    d_out: B::Compute,
    /// Of the MLP's activation `[N, F]`; of the attention's output `[M, H D]` where only some rows are read.
    d_act: B::Acc,
    d_gate: Option<B::Compute>,
    /// Of what goes into the activation; behind the MLP, `z` at the rows that are read `[M, H D]`.
    d_up: B::Compute,
    d_z: B::Acc,
    d_q: B::Compute,
    d_k: B::Compute,
    d_v: B::Compute,
    delta: B::Acc,
    label_x: B::Compute,
    d_label_x: B::Acc,
    projected: Option<Projected<B>>,
}

/// Label rows behind the projection to the head's width `[M, E]`.
struct Projected<B: Backend> {
    x: B::Compute,
    d_x: B::Acc,
    d_x_real: B::Compute,
}

impl<B: Backend> Gradients<B> {
    /// Scratch for packs of up to `rows` rows with up to `labels` label rows.
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn new(backend: &mut B, config: &ModelConfig, rows: usize, labels: usize) -> Result<Self> {
        let (n, c, q, kv, f) =
            (rows, config.hidden_size, config.q_width(), config.kv_width(), config.intermediate_size);
        let (e, projects) = (config.embed_size, config.embed_size != c);
        let projected = || {
            let (x, d_x_real) = (backend.compute(labels * e)?, backend.compute(labels * e)?);
            Ok(Projected { x, d_x: backend.acc(labels * e)?, d_x_real })
        };
        let projected = some(projects, projected)?;
        Ok(Self {
            rows,
            labels,
            losses: backend.acc(labels)?,
            d_resid: backend.acc(n * c)?,
            d_embed: some(projects || config.embed_norm, || backend.acc(n * e))?,
            d_norm: backend.acc(n * c)?,
            d_out: backend.compute(n * c)?,
            d_act: backend.acc(n * f.max(q))?,
            d_gate: some(config.mlp == Mlp::SwiGlu, || backend.compute(n * f))?,
            d_up: backend.compute(n * f.max(q))?,
            d_z: backend.acc(n * q)?,
            d_q: backend.compute(n * q)?,
            d_k: backend.compute(n * kv)?,
            d_v: backend.compute(n * kv)?,
            delta: backend.acc(n * config.num_attention_heads)?,
            label_x: backend.compute(labels * c)?,
            d_label_x: backend.acc(labels * c)?,
            projected,
        })
    }

    /// Bytes of this scratch, without making it.
    pub fn bytes(config: &ModelConfig, rows: usize, labels: usize, element_sizes: (usize, usize)) -> usize {
        counted(element_sizes, |device| Gradients::new(device, config, rows, labels))
    }

    /// After a backward that asked for it: the gradients of the embedding rows, a soft prompt's included `[N, E]`.
    pub fn d_embed(&self) -> &B::Acc {
        self.d_embed.as_ref().unwrap_or(&self.d_resid)
    }
}

/// The gradients that a backward is to leave.
pub struct GradientRequest<'a, B: Backend> {
    /// `+=` those of the adapters `[runs, stride]`; needed if the pass went through adapters.
    pub d_params: Option<&'a mut B::Acc>,
    /// `+=` those of all base weights, laid out by [`WeightLayout`].
    pub d_weights: Option<(&'a mut B::Acc, &'a WeightLayout)>,
    /// Whether [`Gradients::d_embed`] shall be there.
    pub d_embed: bool,
}

impl<B: Backend> Model<B> {
    /// The losses `[M]` of the label rows of the last forward, into `grads.losses`.
    ///
    /// # Panics
    /// If there are more labels than the scratch has room for.
    pub fn loss(&self, backend: &mut B, acts: &Activations<B>, labels: &Labels<B>, grads: &mut Gradients<B>) {
        assert!(labels.count <= grads.labels, "loss: {} labels in scratch for {}", labels.count, grads.labels);
        let dims = self.labelled(backend, acts, labels, grads);
        let x = grads.projected.as_ref().map_or(&grads.label_x, |p| &p.x);
        backend.cross_entropy_fwd(CrossEntropyFwd {
            loss: &mut grads.losses,
            x,
            head: self.weights.head(),
            targets: &labels.targets,
            dims,
        });
    }

    /// Gathers what the head reads at the label rows.
    ///
    /// # Panics
    /// If the labels are of a pass of which other rows are read.
    fn labelled(
        &self,
        backend: &mut B,
        acts: &Activations<B>,
        labels: &Labels<B>,
        grads: &mut Gradients<B>,
    ) -> LinearDims {
        let (rows, width, head) = (labels.count, self.config.hidden_size, self.config.embed_size);
        assert!(labels.read == acts.read, "labels: the forward was told that other rows are read");
        backend.gather_compute(GatherCompute {
            out: &mut grads.label_x,
            x: &acts.final_norm,
            rows: &labels.rows,
            width,
        });
        if let (Some(weight), Some(projected)) = (&self.weights.project_out, &mut grads.projected) {
            let dims = LinearDims { rows, input: width, output: head };
            backend.linear_fwd(LinearFwd { out: &mut projected.x, x: &grads.label_x, weight, bias: None, dims });
        }
        LinearDims { rows, input: head, output: self.config.vocab_size }
    }

    /// The losses and the wanted gradients of the last forward, which must have kept all its activations.
    ///
    /// # Panics
    /// If the forward did not keep its activations, or went through a cache, or had another input; if the scratch is too
    /// small.
    pub fn backward(
        &self,
        backend: &mut B,
        acts: &Activations<B>,
        grads: &mut Gradients<B>,
        input: &Input<'_, B>,
        labels: &Labels<B>,
        mut wanted: GradientRequest<'_, B>,
    ) {
        let (config, n, c) = (&self.config, input.pack.len(), self.config.hidden_size);
        assert!(acts.keep == Keep::All, "backward: the forward kept one layer only");
        assert!(!input.pack.has_cached(), "backward: kept segments have no backward");
        assert!(n <= grads.rows, "backward: {n} rows in scratch for {}", grads.rows);
        assert!(labels.count <= grads.labels, "backward: {} labels in scratch for {}", labels.count, grads.labels);
        let lowest = self.lowest(input, &wanted);
        // A list of operations that comes again must have the same addresses, and what is wanted its place: every exchange
        // of buffers is undone. The first is undone where the rows that are read go back among all.
        let mut exchanged = input.read.is_some();
        if exchanged {
            std::mem::swap(&mut grads.d_resid, &mut grads.d_norm);
        }

        self.head(backend, acts, grads, labels, &mut wanted);
        let resid = &acts.resid[acts.resid_slot(config.num_hidden_layers)];
        backend.zero(Zero { x: &mut grads.d_resid });
        match &self.weights.final_norm {
            Some(norm) => {
                backend.zero(Zero { x: &mut grads.d_norm });
                backend.scatter_add(ScatterAdd {
                    d_x: &mut grads.d_norm,
                    d_out: &grads.d_label_x,
                    rows: &labels.rows,
                    width: c,
                });
                let d_params = wanted.of(ParamId::Norm(NormAt::Final));
                let (d_x, d_out) = (&mut grads.d_resid, &grads.d_norm);
                let rows = input.output_len();
                norm::backward(backend, config, d_x, d_params, d_out, resid, &acts.final_stats, norm, rows);
            }
            None => backend.scatter_add(ScatterAdd {
                d_x: &mut grads.d_resid,
                d_out: &grads.d_label_x,
                rows: &labels.rows,
                width: c,
            }),
        }

        for layer in (lowest..config.num_hidden_layers).rev() {
            let saved = &acts.layers[acts.layer_slot(layer)];
            let block = Block { config, weights: &self.weights.layers[layer], layer, input, saved };
            let below = layer > lowest || wanted.d_embed || wanted.d_weights.is_some() || has_prompt(input);
            let heads = below || block.adapts(&[Projection::Q, Projection::K, Projection::V]);
            let attention = heads || block.adapts(&[Projection::O]);

            let mut keys = Vec::new();
            let read = input
                .read
                .filter(|_| layer + 1 == config.num_hidden_layers)
                .map(|read| (read, read.input(input, &mut keys)));
            let behind = Block { input: read.as_ref().map_or(input, |(_, rest)| rest), ..block };
            behind.mlp(backend, grads, &mut wanted, attention);
            exchanged ^= config.post_norm;
            if !attention {
                continue;
            }
            exchanged ^= config.post_norm;
            behind.output(backend, grads, &mut wanted, read.as_ref().map(|(read, _)| *read), heads);
            if !heads {
                continue;
            }
            if let Some((read, _)) = &read {
                // From here on the rows that are not read have a part in it, as keys and values.
                backend.zero(Zero { x: &mut grads.d_z });
                backend.scatter_add(ScatterAdd {
                    d_x: &mut grads.d_z,
                    d_out: &grads.d_act,
                    rows: &read.index,
                    width: config.q_width(),
                });
                backend.zero(Zero { x: &mut grads.d_norm });
                backend.scatter_add(ScatterAdd {
                    d_x: &mut grads.d_norm,
                    d_out: &grads.d_resid,
                    rows: &read.index,
                    width: c,
                });
                std::mem::swap(&mut grads.d_resid, &mut grads.d_norm);
                exchanged = !exchanged;
            }
            block.attention(backend, grads, &mut wanted, &acts.resid[acts.resid_slot(layer)], &acts.rope.0, below);
        }
        if wanted.d_embed || wanted.d_weights.is_some() || has_prompt(input) {
            self.entrance(backend, acts, grads, input, &mut wanted);
        }
        if exchanged {
            std::mem::swap(&mut grads.d_resid, &mut grads.d_norm);
        }
    }

    /// From the losses to the final norm's output at the label rows.
    fn head(
        &self,
        backend: &mut B,
        acts: &Activations<B>,
        grads: &mut Gradients<B>,
        labels: &Labels<B>,
        wanted: &mut GradientRequest<'_, B>,
    ) {
        let dims = self.labelled(backend, acts, labels, grads);
        let place = if self.config.tie_word_embeddings { ParamId::Embed } else { ParamId::Head };
        let (d_x, x) = match &mut grads.projected {
            Some(projected) => (&mut projected.d_x, &projected.x),
            None => (&mut grads.d_label_x, &grads.label_x),
        };
        let (head, targets, d_head) = (self.weights.head(), &labels.targets, wanted.of(place));
        backend.cross_entropy_bwd(CrossEntropyBwd {
            loss: &mut grads.losses,
            d_x,
            d_head,
            x,
            head,
            targets,
            row_weights: &labels.weights,
            dims,
        });
        if let (Some(weight), Some(projected)) = (&self.weights.project_out, &mut grads.projected) {
            backend.cast(Cast { out: &mut projected.d_x_real, x: &projected.d_x, len: dims.rows * dims.input });
            let dims = LinearDims { rows: dims.rows, input: self.config.hidden_size, output: dims.input };
            backend.linear_bwd_input(LinearBwdInput {
                d_x: &mut grads.d_label_x,
                d_out: &projected.d_x_real,
                weight,
                dims,
                accumulate: false,
            });
            if let Some((d_weight, offset)) = wanted.of(ParamId::ProjectOut) {
                backend.linear_bwd_weight(LinearBwdWeight {
                    d_weight,
                    offset,
                    d_out: &projected.d_x_real,
                    x: &grads.label_x,
                    dims,
                });
            }
        }
    }

    /// From the residual stream that enters the first block to positions, soft prompt and embedding table.
    fn entrance(
        &self,
        backend: &mut B,
        acts: &Activations<B>,
        grads: &mut Gradients<B>,
        input: &Input<'_, B>,
        wanted: &mut GradientRequest<'_, B>,
    ) {
        let (config, n, width) = (&self.config, input.pack.len(), self.config.embed_size);
        if self.weights.positions.is_some()
            && let Some((d_table, offset)) = wanted.of(ParamId::Positions)
        {
            let first = config.first_position();
            backend.position_bwd_table(PositionBwdTable {
                d_table,
                offset,
                d_x: &grads.d_resid,
                pack: input.device,
                first,
                width: config.hidden_size,
            });
        }
        if let (Some(entry), Some(d_embed)) = (&acts.entry, &mut grads.d_embed) {
            if let (Some(norm), Some(stats)) = (&self.weights.embed_norm, &entry.stats) {
                backend.zero(Zero { x: d_embed });
                let d_params = wanted.of(ParamId::Norm(NormAt::Embed));
                norm::backward(backend, config, d_embed, d_params, &grads.d_resid, &entry.raw, stats, norm, n);
            }
            if let (Some(weight), Some(raw)) = (&self.weights.project_in, &entry.raw_real) {
                backend.cast(Cast { out: &mut grads.d_out, x: &grads.d_resid, len: n * config.hidden_size });
                let dims = LinearDims { rows: n, input: width, output: config.hidden_size };
                backend.linear_bwd_input(LinearBwdInput {
                    d_x: d_embed,
                    d_out: &grads.d_out,
                    weight,
                    dims,
                    accumulate: false,
                });
                if let Some((d_weight, offset)) = wanted.of(ParamId::ProjectIn) {
                    backend.linear_bwd_weight(LinearBwdWeight { d_weight, offset, d_out: &grads.d_out, x: raw, dims });
                }
            }
        }
        if let (Some(adaptation), Some(d_params)) = (input.adaptation, wanted.d_params.as_mut())
            && let Some(site) = adaptation.layout.prompt
        {
            backend.embed_bwd_prompt(EmbedBwdPrompt {
                d_prompt: d_params,
                d_out: grads.d_embed(),
                pack: input.device,
                site,
                width,
            });
        }
        if let Some((d_table, offset)) = wanted.of(ParamId::Embed) {
            backend.embed_bwd_table(EmbedBwdTable {
                d_table,
                offset,
                d_out: grads.d_embed(),
                pack: input.device,
                width,
            });
        }
    }

    /// The lowest layer whose backward anybody needs.
    fn lowest(&self, input: &Input<'_, B>, wanted: &GradientRequest<'_, B>) -> usize {
        if wanted.d_embed || wanted.d_weights.is_some() || has_prompt(input) {
            return 0;
        }
        let adapted = input.adaptation.and_then(|adaptation| adaptation.layout.lowest());
        adapted.unwrap_or(self.config.num_hidden_layers)
    }
}

fn has_prompt<B: Backend>(input: &Input<'_, B>) -> bool {
    input.adaptation.is_some_and(|adaptation| adaptation.layout.prompt.is_some())
}

impl<B: Backend> GradientRequest<'_, B> {
    /// Where the gradient of a weight goes, if it is wanted.
    fn of(&mut self, place: ParamId) -> Option<(&mut B::Acc, usize)> {
        self.d_weights.as_mut().map(|(d_weights, layout)| (&mut **d_weights, layout.offset(place)))
    }
}

/// One block of the model, over the rows of `input`.
struct Block<'a, B: Backend> {
    config: &'a ModelConfig,
    weights: &'a Layer<B>,
    layer: usize,
    input: &'a Input<'a, B>,
    saved: &'a LayerActivations<B>,
}

impl<B: Backend> Block<'_, B> {
    fn adapts(&self, targets: &[Projection]) -> bool {
        let site = |&target| self.input.adaptation.and_then(|a| a.layout.site(self.layer, target));
        targets.iter().any(|target| site(target).is_some())
    }

    /// `through` says whether anybody needs the gradient of the MLP's input.
    fn mlp(&self, backend: &mut B, grads: &mut Gradients<B>, wanted: &mut GradientRequest<'_, B>, through: bool) {
        let (config, saved, n) = (self.config, self.saved, self.input.pack.len());
        let (norm, at) = (&self.weights.mlp_norm, NormAt::Mlp(self.layer));
        if let Some([_, sum]) = &saved.sums {
            self.norm_behind(backend, grads, wanted, at, sum, &saved.mlp_stats, norm);
        }
        backend.cast(Cast { out: &mut grads.d_out, x: &grads.d_resid, len: n * config.hidden_size });
        let inner = through || self.adapts(&[Projection::Gate, Projection::Up]);
        let d_act = inner.then_some((&mut grads.d_act, false));
        self.project(backend, wanted, Projection::Down, &grads.d_out, &saved.act, d_act);
        if !inner {
            return;
        }
        let d_up = &mut grads.d_up;
        match (config.mlp, &saved.gate, &mut grads.d_gate) {
            (Mlp::Plain(activation), ..) => {
                backend.activation_bwd(ActivationBwd {
                    d_x: d_up,
                    d_act: &grads.d_act,
                    x: &saved.up,
                    f: activation,
                    len: n * config.intermediate_size,
                });
            }
            (Mlp::SwiGlu, Some(gate), Some(d_gate)) => {
                backend.swiglu_bwd(SwigluBwd {
                    d_gate,
                    d_up,
                    d_act: &grads.d_act,
                    gate,
                    up: &saved.up,
                    len: n * config.intermediate_size,
                });
            }
            _ => unreachable!("backward: a gated MLP has buffers for its gate"),
        }
        // Without a norm before it, a half's input is the residual stream itself.
        let (d_in, mut accumulate) =
            if config.post_norm { (&mut grads.d_resid, true) } else { (&mut grads.d_norm, false) };
        if let Some(d_gate) = &grads.d_gate {
            let d_x = through.then_some((&mut *d_in, accumulate));
            self.project(backend, wanted, Projection::Gate, d_gate, &saved.mlp_in, d_x);
            accumulate = true;
        }
        self.project(
            backend,
            wanted,
            Projection::Up,
            &grads.d_up,
            &saved.mlp_in,
            through.then_some((d_in, accumulate)),
        );
        if through && !config.post_norm {
            self.norm_before(backend, grads, wanted, at, &saved.resid_mid, &saved.mlp_stats, norm);
        }
    }

    /// The output projection: the gradient of its input, if `through` says that anybody needs it, into `d_z`, or into
    /// `d_act` for the rows that are read.
    fn output(
        &self,
        backend: &mut B,
        grads: &mut Gradients<B>,
        wanted: &mut GradientRequest<'_, B>,
        read: Option<&OutputRows<B>>,
        through: bool,
    ) {
        let (norm, at) = (&self.weights.attn_norm, NormAt::Attn(self.layer));
        if let Some([sum, _]) = &self.saved.sums {
            self.norm_behind(backend, grads, wanted, at, sum, &self.saved.attn_stats, norm);
        }
        backend.cast(Cast {
            out: &mut grads.d_out,
            x: &grads.d_resid,
            len: self.input.pack.len() * self.config.hidden_size,
        });
        let (d_z, z) = match read {
            None => (&mut grads.d_z, &self.saved.z),
            Some(read) => {
                backend.gather_compute(GatherCompute {
                    out: &mut grads.d_up,
                    x: &self.saved.z,
                    rows: &read.index,
                    width: self.config.q_width(),
                });
                (&mut grads.d_act, &grads.d_up)
            }
        };
        self.project(backend, wanted, Projection::O, &grads.d_out, z, through.then_some((d_z, false)));
    }

    /// From `d_z` to the block's input; `below` says whether anybody needs the gradient of that.
    fn attention(
        &self,
        backend: &mut B,
        grads: &mut Gradients<B>,
        wanted: &mut GradientRequest<'_, B>,
        resid_pre: &B::Acc,
        rope: &B::Acc,
        below: bool,
    ) {
        let (config, saved, device, d) = (self.config, self.saved, self.input.device, self.config.head_dim);
        backend.attention_bwd(AttentionBwd {
            d_q: &mut grads.d_q,
            d_k: &mut grads.d_k,
            d_v: &mut grads.d_v,
            delta: &mut grads.delta,
            d_z: &grads.d_z,
            z: &saved.z,
            lse: &saved.lse,
            q: &saved.rot_q,
            k: &saved.rot_k,
            v: &saved.v,
            pack: device,
            dims: config.attention(self.layer),
        });
        self.prefix(backend, grads, wanted);
        if config.rope().is_some() {
            backend.rope_bwd(RopeBwd {
                d_x: &mut grads.d_q,
                pack: device,
                cos_sin: rope,
                heads: config.num_attention_heads,
                head_dim: d,
            });
            backend.rope_bwd(RopeBwd {
                d_x: &mut grads.d_k,
                pack: device,
                cos_sin: rope,
                heads: config.num_key_value_heads,
                head_dim: d,
            });
        }
        let (d_in, first) = if config.post_norm { (&mut grads.d_resid, true) } else { (&mut grads.d_norm, false) };
        for (target, d_y, accumulate) in
            [(Projection::Q, &grads.d_q, first), (Projection::K, &grads.d_k, true), (Projection::V, &grads.d_v, true)]
        {
            let d_x = below.then_some((&mut *d_in, accumulate));
            self.project(backend, wanted, target, d_y, &saved.attn_in, d_x);
        }
        if below && !config.post_norm {
            let (norm, at) = (&self.weights.attn_norm, NormAt::Attn(self.layer));
            self.norm_before(backend, grads, wanted, at, resid_pre, &saved.attn_stats, norm);
        }
    }

    /// Takes the gradients of a prefix's keys and values out of those of all: what was computed at its rows has none.
    fn prefix(&self, backend: &mut B, grads: &mut Gradients<B>, wanted: &mut GradientRequest<'_, B>) {
        let Some(adaptation) = self.input.adaptation else { return };
        let (layout, width) = (&adaptation.layout, self.config.kv_width());
        let (Some(prefix), Some(prompt)) = (&adaptation.prefix, layout.prompt) else { return };
        let d_params = wanted.d_params.as_mut().expect("backward: a prefix went in, its gradient has no place");
        for (part, d) in [&mut grads.d_k, &mut grads.d_v].into_iter().enumerate() {
            let Some(site) = layout.prefix_part(self.layer, part) else { continue };
            // The gradient of the attention's output has done its part.
            backend.widen(Widen { out: &mut grads.d_z, x: d, len: self.input.pack.len() * width });
            backend.embed_bwd_prompt(EmbedBwdPrompt {
                d_prompt: d_params,
                d_out: &grads.d_z,
                pack: self.input.device,
                site,
                width,
            });
            for (row, from) in self.input.prefix(self.layer, part) {
                // The soft prompt beside a prefix is zeros.
                let zeros = prompt.offset / width;
                backend.kv_append(KvAppend { cache: d, to: row, x: prefix, from: zeros..zeros + from.len(), width });
            }
        }
    }

    /// Through a norm before a half: `d_resid += ` from `d_norm`.
    #[allow(clippy::too_many_arguments)]
    fn norm_before(
        &self,
        backend: &mut B,
        grads: &mut Gradients<B>,
        wanted: &mut GradientRequest<'_, B>,
        at: NormAt,
        x: &B::Acc,
        stats: &norm::Stats<B>,
        norm: &Norm<B>,
    ) {
        let (d_params, rows) = (wanted.of(ParamId::Norm(at)), self.input.pack.len());
        norm::backward(backend, self.config, &mut grads.d_resid, d_params, &grads.d_norm, x, stats, norm, rows);
    }

    /// Through a norm behind a half's sum: `d_resid = ` from `d_resid`.
    #[allow(clippy::too_many_arguments)]
    fn norm_behind(
        &self,
        backend: &mut B,
        grads: &mut Gradients<B>,
        wanted: &mut GradientRequest<'_, B>,
        at: NormAt,
        x: &B::Acc,
        stats: &norm::Stats<B>,
        norm: &Norm<B>,
    ) {
        let (d_params, rows) = (wanted.of(ParamId::Norm(at)), self.input.pack.len());
        backend.zero(Zero { x: &mut grads.d_norm });
        norm::backward(backend, self.config, &mut grads.d_norm, d_params, &grads.d_resid, x, stats, norm, rows);
        std::mem::swap(&mut grads.d_resid, &mut grads.d_norm);
    }

    /// Backward of a projection with its bias and adapter: `d_x` `=` or `+=` (as its flag says), the parameters `+=`.
    fn project(
        &self,
        backend: &mut B,
        wanted: &mut GradientRequest<'_, B>,
        target: Projection,
        d_y: &B::Compute,
        x: &B::Compute,
        d_x: Option<(&mut B::Acc, bool)>,
    ) {
        let (input, output) = self.config.widths(target);
        let rows = self.input.pack.len();
        let dims = LinearDims { rows, input, output };
        let projection = self.weights.projection(target);
        let d_x = d_x.map(|(d_x, accumulate)| {
            backend.linear_bwd_input(LinearBwdInput { d_x, d_out: d_y, weight: &projection.weight, dims, accumulate });
            d_x
        });
        if let Some(adaptation) = self.input.adaptation
            && let Some(site) = adaptation.layout.site(self.layer, target)
        {
            let d_params = wanted.d_params.as_mut().expect("backward: adapters went in, their gradients have no place");
            let xa = self.saved.lora_xa[target as usize].as_ref().expect("backward: the buffers have this layout");
            let dropout = self.input.dropout(self.layer, target);
            backend.lora_bwd(LoraBwd {
                d_params,
                d_x,
                d_y,
                xa,
                x,
                params: &adaptation.params,
                pack: self.input.device,
                site,
                dropout,
            });
        }
        if let Some((d_weight, offset)) = wanted.of(ParamId::Weight(self.layer, target)) {
            backend.linear_bwd_weight(LinearBwdWeight { d_weight, offset, d_out: d_y, x, dims });
        }
        if projection.bias.is_some()
            && let Some((d_bias, offset)) = wanted.of(ParamId::Bias(self.layer, target))
        {
            backend.linear_bwd_bias(LinearBwdBias { d_bias, offset, d_out: d_y, rows, output });
        }
    }
}
