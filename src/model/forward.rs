//! The forward of every model, over a pack that is a forest, through any adapters, past any taps.

use std::ops::Range;

use super::Model;
use super::activations::{Activations, LayerActivations};
use super::adaptation::Adaptation;
use super::norm;
use super::output_rows::OutputRows;
use super::weights::{Layer, Norm};
use crate::arch::ModelConfig;
use crate::arch::Projection;
use crate::arch::{Mlp, Positions};
use crate::backend::ops::{
    ActivationFwd, AttentionFwd, AttentionPattern, AttentionResult, Cast, Dropout, EmbedFwd, GatherAcc, GatherCompute,
    KvAppend, LinearDims, LinearFwd, LogitsFwd, LoraDelta, LoraFwd, PositionFwd, ResidualFwd, RopeFwd, SwigluFwd,
    Widen,
};
use crate::backend::{Backend, KvCache, Tensor};
use crate::hooks::{Site, Tapped, Taps};
use crate::pack::{CachedSegment, Pack, Parent, Segment, Token};
use crate::{Error, Result};

/// Dropout of a pass; see [`Dropout`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DropoutPlan<'a> {
    /// Probability of dropping.
    pub p: f64,
    /// One seed per run, new for every step.
    pub seeds: &'a [u64],
    /// One key per row `[N]`: the row's number within its run.
    pub keys: &'a [u32],
}

/// What goes into a pass.
pub struct Input<'a, B: Backend> {
    /// The pack.
    pub pack: &'a Pack,
    /// The pack on the device.
    pub device: &'a B::Pack,
    /// The adapters that the pack's runs stand for.
    pub adaptation: Option<&'a Adaptation<B>>,
    /// Dropout before the adapters.
    pub dropout: Option<DropoutPlan<'a>>,
    /// The rows that are read; none means all of them.
    pub read: Option<&'a OutputRows<B>>,
}

impl<'a, B: Backend> Input<'a, B> {
    /// The base model on a pack.
    pub fn new(pack: &'a Pack, device: &'a B::Pack) -> Self {
        Self { pack, device, adaptation: None, dropout: None, read: None }
    }

    /// With adapters.
    pub fn adapted(self, adaptation: &'a Adaptation<B>) -> Self {
        Self { adaptation: Some(adaptation), ..self }
    }

    /// Of which only some rows are read.
    pub fn with_output_rows(self, read: Option<&'a OutputRows<B>>) -> Self {
        Self { read, ..self }
    }

    /// The rows that come out of a pass M.
    pub(super) fn output_len(&self) -> usize {
        self.read.map_or(self.pack.len(), |read| read.rows.len())
    }

    /// Dropout of a projection's input; the parts of a fused module read one input, so they drop the same of it.
    pub(super) fn dropout(&self, layer: usize, target: Projection) -> Option<Dropout<'a>> {
        let first = self.adaptation.map_or(target, |a| a.layout.module_of(target).parts()[0]);
        self.dropout.map(|plan| Dropout {
            p: plan.p,
            seeds: plan.seeds,
            site: (layer * Projection::ALL.len() + first as usize) as u64,
            keys: plan.keys,
        })
    }

    /// The rows whose keys (`part` 0) or values (1) in a layer are a prefix's: the first of each stretch in the pack, and
    /// where the stretch lies in the adapters as attention reads them, counted in rows of keys.
    pub(super) fn prefix(&self, layer: usize, part: usize) -> Vec<(usize, Range<usize>)> {
        let layout = self.adaptation.map(|adaptation| &adaptation.layout);
        let Some((layout, site)) = layout.and_then(|layout| Some((layout, layout.prefix_part(layer, part)?))) else {
            return Vec::new();
        };
        let stretch = |segment: &Segment| {
            let tokens = &self.pack.tokens()[segment.rows.clone()];
            let (Token::Virtual(first), Some(run)) = (tokens[0], segment.run) else { return None };
            let count = tokens.iter().take_while(|token| matches!(token, Token::Virtual(_))).count();
            let from = (run * site.stride + site.offset) / layout.kv_width + first as usize;
            Some((segment.rows.start, from..from + count))
        };
        self.pack.segments().iter().filter_map(stretch).collect()
    }

    fn check(&self, capacity: usize) {
        let pack = self.pack;
        assert!(pack.len() <= capacity, "forward: a pack of {} rows in buffers for {capacity}", pack.len());
        let runs = self.adaptation.map_or(0, |a| a.runs);
        let highest = pack.runs().iter().map(|(run, _)| run + 1).max().unwrap_or(0);
        assert!(highest <= runs, "forward: a pack of {highest} runs through {runs} adapters");
    }
}

/// Keys and values of earlier passes, and which segments of this one to add to them.
pub struct Cache<'a, B: Backend> {
    /// The cache.
    pub cache: &'a mut KvCache<B>,
    /// Segments of the pack to keep, ascending; a kept segment's parent must be kept as well.
    pub keep: &'a [usize],
}

impl<B: Backend> Model<B> {
    /// Runs the model over a pack. Afterwards `acts.final_norm` holds the final norm's output `[N, C]`, or `[M, C]` of the
    /// rows that are read, unless the taps stop earlier.
    ///
    /// # Errors
    /// If the pack has a sequence beyond the last learned position; if the device has no memory for a longer rotation
    /// table or for a tensor computed on demand; what [`Taps::finish`] reports.
    ///
    /// # Panics
    /// If the pack is larger than the buffers or than what is left of the cache, or names runs that are not there; if a
    /// tap takes a row that is not read.
    pub fn forward<T: Taps<B>>(
        &self,
        backend: &mut B,
        acts: &mut Activations<B>,
        input: &Input<'_, B>,
        cache: Option<Cache<'_, B>>,
        taps: &mut T,
    ) -> Result<()> {
        self.layers(backend, acts, input, cache, taps)?;
        taps.finish(backend)
    }

    fn layers<T: Taps<B>>(
        &self,
        backend: &mut B,
        acts: &mut Activations<B>,
        input: &Input<'_, B>,
        mut cache: Option<Cache<'_, B>>,
        taps: &mut T,
    ) -> Result<()> {
        let config = &self.config;
        input.check(acts.rows);
        config.check_one_length(input.pack)?;
        acts.cover(backend, config, input.pack.longest())?;
        if let Some(cache) = &cache {
            check_room(cache, input.pack);
        }
        acts.read = input.read.map(|read| read.rows.clone());
        self.embed(backend, acts, input, taps)?;
        let stop = taps.stop_at_layer().unwrap_or(config.num_hidden_layers).min(config.num_hidden_layers);
        assert!(
            cache.is_none() || stop == config.num_hidden_layers,
            "forward: a kept segment goes through every layer"
        );
        for layer in 0..stop {
            let (pre, post) = (acts.resid_slot(layer), acts.resid_slot(layer + 1));
            let [resid_pre, resid_post] =
                acts.resid.get_disjoint_mut([pre, post]).expect("forward: two residual buffers");
            let slot = layer % acts.layers.len();
            let block = Block { config, weights: &self.weights.layers[layer], layer, input, at: At::all(input) };
            let saved = &mut acts.layers[slot];
            block.tap(backend, taps, Site::ResidPre, Tensor::Acc(resid_pre), config.hidden_size);
            block.attention(backend, saved, acts.turned.as_mut(), &acts.rope.0, resid_pre, cache.as_mut(), taps)?;
            let mut keys = Vec::new();
            let read = input.read.filter(|_| layer + 1 == stop).map(|read| (read, read.input(input, &mut keys)));
            let (block, z, stream) = match &read {
                None => (block, &saved.z, &*resid_pre),
                Some((read, rest)) => {
                    // Until they are there, the activation's place and the output's hold the rows that go on.
                    backend.gather_compute(GatherCompute {
                        out: &mut saved.act,
                        x: &saved.z,
                        rows: &read.index,
                        width: config.q_width(),
                    });
                    backend.gather_acc(GatherAcc {
                        out: resid_post,
                        x: resid_pre,
                        rows: &read.index,
                        width: config.hidden_size,
                    });
                    (Block { input: rest, at: At::read(input), ..block }, &saved.act, &*resid_post)
                }
            };
            let len = block.input.pack.len() * config.hidden_size;
            block.project(backend, taps, Projection::O, &mut acts.attn_out, &mut saved.lora_xa, z)?;
            block.tap(backend, taps, Site::AttnOut, Tensor::Compute(&acts.attn_out), config.hidden_size);
            match &mut saved.sums {
                None => {
                    backend.residual_fwd(ResidualFwd { out: &mut saved.resid_mid, a: stream, b: &acts.attn_out, len })
                }
                Some([sum, _]) => {
                    backend.residual_fwd(ResidualFwd { out: sum, a: stream, b: &acts.attn_out, len });
                    let norm = &block.weights.attn_norm;
                    block.norm(backend, &mut saved.mlp_in, &mut saved.attn_stats, sum, norm);
                    let sites = [Site::Ln1Scale, Site::Ln1Normalized];
                    block.tap_norm(backend, taps, sites, &saved.attn_stats, &saved.mlp_in);
                    backend.widen(Widen { out: &mut saved.resid_mid, x: &saved.mlp_in, len });
                }
            }
            block.tap(backend, taps, Site::ResidMid, Tensor::Acc(&saved.resid_mid), config.hidden_size);
            block.mlp(backend, saved, &mut acts.mlp_out, taps)?;
            match (&mut saved.sums, &mut acts.normed) {
                (Some([_, sum]), Some(normed)) => {
                    backend.residual_fwd(ResidualFwd { out: sum, a: &saved.resid_mid, b: &acts.mlp_out, len });
                    block.norm(backend, normed, &mut saved.mlp_stats, sum, &block.weights.mlp_norm);
                    block.tap_norm(backend, taps, [Site::Ln2Scale, Site::Ln2Normalized], &saved.mlp_stats, normed);
                    backend.widen(Widen { out: resid_post, x: normed, len });
                }
                _ => backend.residual_fwd(ResidualFwd { out: resid_post, a: &saved.resid_mid, b: &acts.mlp_out, len }),
            }
            block.tap(backend, taps, Site::ResidPost, Tensor::Acc(resid_post), config.hidden_size);
        }
        if let Some(cache) = cache {
            enter(cache, input.pack);
        }
        if stop < config.num_hidden_layers || taps.stop_at_layer().is_some() {
            let at = if stop == 0 { At::all(input) } else { At::read(input) };
            let resid = Tensor::Acc(&acts.resid[acts.resid_slot(stop)]);
            tap(backend, taps, at, Site::ResidPre, stop, resid, config.hidden_size);
            return Ok(());
        }
        let resid = &acts.resid[acts.resid_slot(config.num_hidden_layers)];
        let (at, n) = (At::read(input), input.output_len());
        match &self.weights.final_norm {
            Some(norm) => {
                norm::forward(backend, config, &mut acts.final_norm, &mut acts.final_stats, resid, norm, n);
                tap(backend, taps, at, Site::FinalScale, 0, Tensor::Acc(&acts.final_stats.rstd), 1);
            }
            None => backend.cast(Cast { out: &mut acts.final_norm, x: resid, len: n * config.hidden_size }),
        }
        tap(backend, taps, at, Site::FinalNorm, 0, Tensor::Compute(&acts.final_norm), config.hidden_size);
        if taps.wants(Site::Logits, 0) {
            let rows = rows_on_demand(taps, at);
            let logits = self.logits_on_device(backend, acts, &rows)?;
            tap_rows(backend, taps, input.pack, Site::Logits, 0, &logits, config.vocab_size, &rows);
        }
        Ok(())
    }

    /// The residual stream that enters the first block: embeddings, projected, normed, with their positions.
    fn embed<T: Taps<B>>(
        &self,
        backend: &mut B,
        acts: &mut Activations<B>,
        input: &Input<'_, B>,
        taps: &mut T,
    ) -> Result<()> {
        let (config, n, width) = (&self.config, input.pack.len(), self.config.embed_size);
        let prompt = input.adaptation.and_then(|a| a.layout.prompt.map(|site| (&a.params, site)));
        let stream = &mut acts.resid[0];
        let raw = acts.entry.as_mut().map_or(&mut *stream, |entry| &mut entry.raw);
        backend.embed_fwd(EmbedFwd { out: raw, pack: input.device, table: &self.weights.embed, prompt, width });
        tap(backend, taps, At::all(input), Site::Embed, 0, Tensor::Acc(raw), width);
        if let Some(entry) = &mut acts.entry {
            if let (Some(weight), Some(raw)) = (&self.weights.project_in, &mut entry.raw_real) {
                backend.cast(Cast { out: raw, x: &entry.raw, len: n * width });
                let dims = LinearDims { rows: n, input: width, output: config.hidden_size };
                backend.linear_fwd(LinearFwd { out: &mut entry.out, x: raw, weight, bias: None, dims });
            }
            if let (Some(norm), Some(stats)) = (&self.weights.embed_norm, &mut entry.stats) {
                norm::forward(backend, config, &mut entry.out, stats, &entry.raw, norm, n);
            }
            backend.widen(Widen { out: stream, x: &entry.out, len: n * config.hidden_size });
        }
        if let (Positions::Learned { first }, Some(table)) = (&config.positions, &self.weights.positions) {
            let longest = input.pack.longest();
            if longest > config.max_position_embeddings {
                let expected = format!(
                    "at most {} positions, which is all that the model learned",
                    config.max_position_embeddings
                );
                return Err(Error::argument("a sequence", expected, longest));
            }
            if taps.wants(Site::PosEmbed, 0) {
                let mut places = backend.acc(n * config.hidden_size)?;
                backend.position_fwd(PositionFwd {
                    x: &mut places,
                    pack: input.device,
                    table,
                    first: *first,
                    width: config.hidden_size,
                });
                tap(backend, taps, At::all(input), Site::PosEmbed, 0, Tensor::Acc(&places), config.hidden_size);
            }
            backend.position_fwd(PositionFwd {
                x: stream,
                pack: input.device,
                table,
                first: *first,
                width: config.hidden_size,
            });
        }
        Ok(())
    }

    /// The logits `[M, V]` after the pack rows `rows` of the last forward: row r speaks of the token after row r.
    ///
    /// # Errors
    /// If the device has no memory for them, or reports an error.
    ///
    /// # Panics
    /// If the forward was told that one of the rows is not read.
    pub fn logits(&self, backend: &mut B, acts: &Activations<B>, rows: &[usize]) -> Result<Vec<B::Element>> {
        let logits = self.logits_on_device(backend, acts, rows)?;
        let mut host = vec![B::Element::default(); rows.len() * self.config.vocab_size];
        backend.download(&mut host, &logits, 0)?;
        backend.sync()?;
        Ok(host)
    }

    fn logits_on_device(&self, backend: &mut B, acts: &Activations<B>, rows: &[usize]) -> Result<B::Acc> {
        let config = &self.config;
        let index = acts.places(backend, rows)?;
        let mut x = backend.compute(rows.len() * config.hidden_size)?;
        let mut logits = backend.acc(rows.len() * config.vocab_size)?;
        backend.gather_compute(GatherCompute {
            out: &mut x,
            x: &acts.final_norm,
            rows: &index,
            width: config.hidden_size,
        });
        if let Some(weight) = &self.weights.project_out {
            let mut projected = backend.compute(rows.len() * config.embed_size)?;
            let dims = LinearDims { rows: rows.len(), input: config.hidden_size, output: config.embed_size };
            backend.linear_fwd(LinearFwd { out: &mut projected, x: &x, weight, bias: None, dims });
            x = projected;
        }
        let dims = LinearDims { rows: rows.len(), input: config.embed_size, output: config.vocab_size };
        backend.logits_fwd(LogitsFwd { logits: &mut logits, x: &x, head: self.weights.head(), dims });
        Ok(logits)
    }
}

/// The rows that the tensors of a pass belong to.
#[derive(Clone, Copy)]
struct At<'a> {
    pack: &'a Pack,
    rows: Option<&'a [usize]>,
}

impl<'a> At<'a> {
    fn all<B: Backend>(input: &Input<'a, B>) -> Self {
        Self { pack: input.pack, rows: None }
    }

    /// Behind the last attention.
    fn read<B: Backend>(input: &Input<'a, B>) -> Self {
        Self { pack: input.pack, rows: input.read.map(|read| &*read.rows) }
    }
}

/// One block of the model on one pack.
struct Block<'a, B: Backend> {
    config: &'a ModelConfig,
    weights: &'a Layer<B>,
    layer: usize,
    /// What the operations run over.
    input: &'a Input<'a, B>,
    /// Where that is in the pass.
    at: At<'a>,
}

impl<B: Backend> Block<'_, B> {
    /// `z = attention(norm(resid_pre))` before the output projection, or without the norm where it stands behind. `turned`
    /// holds queries and keys before the rotation by `rope`.
    #[allow(clippy::too_many_arguments)]
    fn attention<T: Taps<B>>(
        &self,
        backend: &mut B,
        saved: &mut LayerActivations<B>,
        turned: Option<&mut [B::Compute; 2]>,
        rope: &B::Acc,
        resid_pre: &B::Acc,
        cache: Option<&mut Cache<'_, B>>,
        taps: &mut T,
    ) -> Result<()> {
        let (config, pack, device) = (self.config, self.input.pack, self.input.device);
        let (c, d) = (config.hidden_size, config.head_dim);
        if config.post_norm {
            backend.cast(Cast { out: &mut saved.attn_in, x: resid_pre, len: pack.len() * c });
        } else {
            self.norm(backend, &mut saved.attn_in, &mut saved.attn_stats, resid_pre, &self.weights.attn_norm);
            self.tap_norm(backend, taps, [Site::Ln1Scale, Site::Ln1Normalized], &saved.attn_stats, &saved.attn_in);
        }
        match turned {
            None => {
                self.heads(backend, taps, saved, None)?;
                self.prefix(backend, 0, &mut saved.rot_k);
            }
            Some([q, k]) => {
                self.heads(backend, taps, saved, Some([&mut *q, &mut *k]))?;
                backend.rope_fwd(RopeFwd {
                    out: &mut saved.rot_q,
                    x: q,
                    pack: device,
                    cos_sin: rope,
                    heads: config.num_attention_heads,
                    head_dim: d,
                });
                backend.rope_fwd(RopeFwd {
                    out: &mut saved.rot_k,
                    x: k,
                    pack: device,
                    cos_sin: rope,
                    heads: config.num_key_value_heads,
                    head_dim: d,
                });
                self.prefix(backend, 0, &mut saved.rot_k);
                self.tap(backend, taps, Site::RotQ, Tensor::Compute(&saved.rot_q), config.q_width());
                self.tap(backend, taps, Site::RotK, Tensor::Compute(&saved.rot_k), config.kv_width());
            }
        }
        let dims = config.attention(self.layer);
        let cached = cache.as_ref().map(|cache| &cache.cache.layers[self.layer]).map(|(keys, values)| [keys, values]);
        backend.attention_fwd(AttentionFwd {
            z: &mut saved.z,
            lse: &mut saved.lse,
            q: &saved.rot_q,
            k: &saved.rot_k,
            v: &saved.v,
            cached,
            pack: device,
            dims,
        });
        for (site, normalised) in [(Site::AttnScores, false), (Site::Pattern, true)] {
            if taps.wants(site, self.layer) {
                let (rows, longest) = (rows_on_demand(taps, self.at), pack.longest());
                let mut pattern = backend.acc(rows.len() * config.num_attention_heads * longest)?;
                let cached_k = cached.map(|[keys, _]| keys);
                let (q, k) = (&saved.rot_q, &saved.rot_k);
                backend.attention_pattern(AttentionPattern {
                    out: &mut pattern,
                    q,
                    k,
                    cached_k,
                    lse: &saved.lse,
                    rows: &rows,
                    pack: device,
                    dims,
                    longest,
                    normalized: normalised,
                });
                tap_rows(backend, taps, pack, site, self.layer, &pattern, config.num_attention_heads * longest, &rows);
            }
        }
        self.tap(backend, taps, Site::Z, Tensor::Compute(&saved.z), config.q_width());
        if taps.wants(Site::Result, self.layer) {
            let rows = rows_on_demand(taps, self.at);
            let mut result = backend.acc(rows.len() * config.num_attention_heads * c)?;
            let weight = &self.weights.projection(Projection::O).weight;
            backend.attention_result(AttentionResult {
                out: &mut result,
                z: &saved.z,
                weight,
                rows: &rows,
                heads: config.num_attention_heads,
                head_dim: d,
                width: c,
            });
            tap_rows(backend, taps, pack, Site::Result, self.layer, &result, config.num_attention_heads * c, &rows);
        }
        if let Some(Cache { cache, keep }) = cache {
            let (keys, values) = &mut cache.layers[self.layer];
            let mut to = cache.used;
            for &g in *keep {
                let rows = pack.segments()[g].rows.clone();
                backend.kv_append(KvAppend {
                    cache: keys,
                    to,
                    x: &saved.rot_k,
                    from: rows.clone(),
                    width: config.kv_width(),
                });
                backend.kv_append(KvAppend {
                    cache: values,
                    to,
                    x: &saved.v,
                    from: rows.clone(),
                    width: config.kv_width(),
                });
                to += rows.len();
            }
        }
        Ok(())
    }

    /// Puts a prefix's keys (`part` 0, after the rotation) or values (1) in the place of those computed at its rows.
    fn prefix(&self, backend: &mut B, part: usize, out: &mut B::Compute) {
        let Some(prefix) = self.input.adaptation.and_then(|adaptation| adaptation.prefix.as_ref()) else { return };
        for (row, from) in self.input.prefix(self.layer, part) {
            backend.kv_append(KvAppend { cache: out, to: row, x: prefix, from, width: self.config.kv_width() });
        }
    }

    /// Queries, keys and values; queries and keys into `turned` if they are still to be turned.
    fn heads<T: Taps<B>>(
        &self,
        backend: &mut B,
        taps: &mut T,
        saved: &mut LayerActivations<B>,
        turned: Option<[&mut B::Compute; 2]>,
    ) -> Result<()> {
        let LayerActivations { attn_in, rot_q, rot_k, v, lora_xa, .. } = saved;
        let [q, k] = turned.unwrap_or([rot_q, rot_k]);
        self.project(backend, taps, Projection::Q, q, lora_xa, attn_in)?;
        self.project(backend, taps, Projection::K, k, lora_xa, attn_in)?;
        self.project(backend, taps, Projection::V, v, lora_xa, attn_in)?;
        self.prefix(backend, 1, v);
        self.tap(backend, taps, Site::Q, Tensor::Compute(q), self.config.q_width());
        self.tap(backend, taps, Site::K, Tensor::Compute(k), self.config.kv_width());
        self.tap(backend, taps, Site::V, Tensor::Compute(v), self.config.kv_width());
        Ok(())
    }

    /// `out = down(silu(gate(x)) * up(x))` or `down(f(up(x)))`, x the norm of the middle residual stream, or that stream
    /// itself where the norm stands behind.
    fn mlp<T: Taps<B>>(
        &self,
        backend: &mut B,
        saved: &mut LayerActivations<B>,
        out: &mut B::Compute,
        taps: &mut T,
    ) -> Result<()> {
        let (config, n, c, f) =
            (self.config, self.input.pack.len(), self.config.hidden_size, self.config.intermediate_size);
        if !config.post_norm {
            self.norm(backend, &mut saved.mlp_in, &mut saved.mlp_stats, &saved.resid_mid, &self.weights.mlp_norm);
            self.tap_norm(backend, taps, [Site::Ln2Scale, Site::Ln2Normalized], &saved.mlp_stats, &saved.mlp_in);
        }
        if let Some(gate) = &mut saved.gate {
            self.project(backend, taps, Projection::Gate, gate, &mut saved.lora_xa, &saved.mlp_in)?;
        }
        self.project(backend, taps, Projection::Up, &mut saved.up, &mut saved.lora_xa, &saved.mlp_in)?;
        match (config.mlp, &saved.gate) {
            (Mlp::Plain(activation), _) => {
                self.tap(backend, taps, Site::MlpPre, Tensor::Compute(&saved.up), f);
                backend.activation_fwd(ActivationFwd { act: &mut saved.act, x: &saved.up, f: activation, len: n * f });
            }
            (Mlp::SwiGlu, gate) => {
                let gate = gate.as_ref().expect("forward: a gated MLP has a buffer for its gate");
                self.tap(backend, taps, Site::MlpPre, Tensor::Compute(gate), f);
                self.tap(backend, taps, Site::MlpPreLinear, Tensor::Compute(&saved.up), f);
                backend.swiglu_fwd(SwigluFwd { act: &mut saved.act, gate, up: &saved.up, len: n * f });
            }
        }
        self.tap(backend, taps, Site::MlpPost, Tensor::Compute(&saved.act), f);
        self.project(backend, taps, Projection::Down, out, &mut saved.lora_xa, &saved.act)?;
        self.tap(backend, taps, Site::MlpOut, Tensor::Compute(out), c);
        Ok(())
    }

    /// A projection with its bias and its adapter.
    fn project<T: Taps<B>>(
        &self,
        backend: &mut B,
        taps: &mut T,
        target: Projection,
        out: &mut B::Compute,
        lora_xa: &mut [Option<B::Acc>; 7],
        x: &B::Compute,
    ) -> Result<()> {
        let (pack, device) = (self.input.pack, self.input.device);
        let projection = self.weights.projection(target);
        let (input, output) = self.config.widths(target);
        let dims = LinearDims { rows: pack.len(), input, output };
        backend.linear_fwd(LinearFwd { out, x, weight: &projection.weight, bias: projection.bias.as_ref(), dims });
        let Some(adaptation) = self.input.adaptation else { return Ok(()) };
        let Some(site) = adaptation.layout.site(self.layer, target) else { return Ok(()) };
        let xa = lora_xa[target as usize].as_mut().expect("forward: the buffers were planned with this layout");
        backend.lora_fwd(LoraFwd {
            y: out,
            xa,
            x,
            params: &adaptation.params,
            pack: device,
            site,
            dropout: self.input.dropout(self.layer, target),
        });
        self.tap(backend, taps, Site::LoraA(target), Tensor::Acc(xa), site.rank);
        let delta = Site::LoraDelta(target);
        if taps.wants(delta, self.layer) {
            let mut buffer = backend.acc(pack.len() * output)?;
            backend.lora_delta(LoraDelta { out: &mut buffer, xa, params: &adaptation.params, pack: device, site });
            self.tap(backend, taps, delta, Tensor::Acc(&buffer), output);
        }
        Ok(())
    }

    fn norm(&self, backend: &mut B, out: &mut B::Compute, stats: &mut norm::Stats<B>, x: &B::Acc, norm: &Norm<B>) {
        norm::forward(backend, self.config, out, stats, x, norm, self.input.pack.len());
    }

    fn tap_norm<T: Taps<B>>(
        &self,
        backend: &mut B,
        taps: &mut T,
        [scale, normalized]: [Site; 2],
        stats: &norm::Stats<B>,
        out: &B::Compute,
    ) {
        self.tap(backend, taps, scale, Tensor::Acc(&stats.rstd), 1);
        self.tap(backend, taps, normalized, Tensor::Compute(out), self.config.hidden_size);
    }

    fn tap<T: Taps<B>>(&self, backend: &mut B, taps: &mut T, site: Site, data: Tensor<'_, B>, width: usize) {
        tap(backend, taps, self.at, site, self.layer, data, width);
    }
}

/// Hands over a tensor, if it is wanted.
#[inline(always)]
fn tap<B: Backend, T: Taps<B>>(
    backend: &mut B,
    taps: &mut T,
    At { pack, rows }: At<'_>,
    site: Site,
    layer: usize,
    data: Tensor<'_, B>,
    width: usize,
) {
    if taps.wants(site, layer) {
        taps.tap(backend, Tapped { site, layer, rows, width, data, pack });
    }
}

/// Hands over a tensor that was computed for these rows.
#[allow(clippy::too_many_arguments)]
fn tap_rows<B: Backend, T: Taps<B>>(
    backend: &mut B,
    taps: &mut T,
    pack: &Pack,
    site: Site,
    layer: usize,
    data: &B::Acc,
    width: usize,
    rows: &[usize],
) {
    taps.tap(backend, Tapped { site, layer, rows: Some(rows), width, data: Tensor::Acc(data), pack });
}

/// The rows, ascending, for which what is computed on demand is wanted.
fn rows_on_demand<B: Backend>(taps: &impl Taps<B>, at: At<'_>) -> Vec<usize> {
    let rows = taps.rows().or(at.rows);
    let mut rows = rows.map_or_else(|| (0..at.pack.len()).collect(), <[usize]>::to_vec);
    rows.sort_unstable();
    rows.dedup();
    rows
}

fn check_room<B: Backend>(cache: &Cache<'_, B>, pack: &Pack) {
    let rows: usize = cache.keep.iter().map(|&g| pack.segments()[g].rows.len()).sum();
    let Cache { cache, .. } = cache;
    assert!(
        cache.used + rows <= cache.capacity,
        "forward: {} + {rows} rows in a cache of {}",
        cache.used,
        cache.capacity
    );
}

/// Enters the kept segments into the cache's forest.
fn enter<B: Backend>(cache: Cache<'_, B>, pack: &Pack) {
    let Cache { cache, keep } = cache;
    let first = cache.segments.len();
    for &g in keep {
        let segment = &pack.segments()[g];
        let parent = match segment.parent {
            Parent::None => None,
            Parent::Cached(k) => Some(k),
            Parent::Pack(p) => {
                let place = keep.iter().position(|&kept| kept == p);
                Some(first + place.unwrap_or_else(|| panic!("forward: segment {g} is kept, its parent {p} is not")))
            }
        };
        let rows = cache.used..cache.used + segment.rows.len();
        cache.used = rows.end;
        cache.segments.push(CachedSegment {
            rows,
            parent,
            run: segment.run,
            end: segment.position + segment.rows.len(),
        });
    }
}
