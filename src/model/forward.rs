//! The forward of every model, over a pack that is a forest, through any adapters, past any taps.

use super::Model;
use super::activations::{Activations, LayerActivations};
use super::adaptation::Adaptation;
use super::spec::Spec;
use super::weights::Layer;
use crate::Result;
use crate::backend::{Backend, Dropout, KvCache, LinearDims, Tensor};
use crate::formats::adapter::Target;
use crate::hooks::{Site, Tapped, Taps};
use crate::shape::{KeptSegment, Pack, Parent};

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
}

impl<'a, B: Backend> Input<'a, B> {
    /// The base model on a pack.
    pub fn new(pack: &'a Pack, device: &'a B::Pack) -> Self {
        Self { pack, device, adaptation: None, dropout: None }
    }

    /// With adapters.
    pub fn adapted(self, adaptation: &'a Adaptation<B>) -> Self {
        Self { adaptation: Some(adaptation), ..self }
    }

    pub(super) fn dropout(&self, layer: usize, target: Target) -> Option<Dropout<'a>> {
        self.dropout.map(|plan| Dropout {
            p: plan.p,
            seeds: plan.seeds,
            site: (layer * Target::ALL.len() + target as usize) as u64,
            keys: plan.keys,
        })
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
    /// Runs the model over a pack. Afterwards `acts.final_norm` holds the final norm's output `[N, C]`, unless the taps
    /// stop earlier.
    ///
    /// # Errors
    /// If the device has no memory for a longer rotation table or for a tensor computed on demand; what
    /// [`Taps::finish`] reports.
    ///
    /// # Panics
    /// If the pack is larger than the buffers or than what is left of the cache, or names runs that are not there.
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
        let spec = &self.spec;
        input.check(acts.rows);
        acts.cover(backend, spec, input.pack.longest())?;
        if let Some(cache) = &cache {
            check_room(cache, input.pack);
        }
        let prompt = input.adaptation.and_then(|a| a.layout.prompt.map(|site| (&a.params, site)));
        let n = input.pack.len();
        backend.embed_fwd(&mut acts.resid[0], input.device, &self.weights.embed, prompt, spec.width);
        tap(backend, taps, input.pack, Site::Embed, 0, Tensor::Wide(&acts.resid[0]), spec.width);
        let stop = taps.stop_at_layer().unwrap_or(spec.layers).min(spec.layers);
        assert!(cache.is_none() || stop == spec.layers, "forward: a kept segment goes through every layer");
        for layer in 0..stop {
            let (pre, post) = (acts.resid_slot(layer), acts.resid_slot(layer + 1));
            let [resid_pre, resid_post] =
                acts.resid.get_disjoint_mut([pre, post]).expect("forward: two residual buffers");
            let slot = layer % acts.layers.len();
            let block = Block { spec, weights: &self.weights.layers[layer], layer, input };
            let saved = &mut acts.layers[slot];
            tap(backend, taps, input.pack, Site::ResidPre, layer, Tensor::Wide(resid_pre), spec.width);
            block.attention(
                backend,
                saved,
                Passing { q: &mut acts.q, k: &mut acts.k, out: &mut acts.attn_out },
                resid_pre,
                &acts.rope.0,
                cache.as_mut(),
                taps,
            )?;
            backend.residual_fwd(&mut saved.resid_mid, resid_pre, &acts.attn_out, n * spec.width);
            tap(backend, taps, input.pack, Site::ResidMid, layer, Tensor::Wide(&saved.resid_mid), spec.width);
            block.mlp(backend, saved, &mut acts.mlp_out, taps)?;
            backend.residual_fwd(resid_post, &saved.resid_mid, &acts.mlp_out, n * spec.width);
            tap(backend, taps, input.pack, Site::ResidPost, layer, Tensor::Wide(resid_post), spec.width);
        }
        if let Some(cache) = cache {
            enter(cache, input.pack);
        }
        if stop < spec.layers || taps.stop_at_layer().is_some() {
            return Ok(());
        }
        let last = acts.resid_slot(spec.layers);
        let (weight, resid) = (&self.weights.final_norm, &acts.resid[last]);
        backend.rms_norm_fwd(&mut acts.final_norm, &mut acts.final_rstd, resid, weight, n, spec.width, spec.eps);
        tap(backend, taps, input.pack, Site::FinalScale, 0, Tensor::Wide(&acts.final_rstd), 1);
        tap(backend, taps, input.pack, Site::FinalNorm, 0, Tensor::Real(&acts.final_norm), spec.width);
        if taps.wants(Site::Logits, 0) {
            let rows = rows_on_demand(taps, input.pack);
            let logits = self.logits_on_device(backend, acts, &rows)?;
            tap_rows(backend, taps, input.pack, Site::Logits, 0, &logits, spec.vocab, &rows);
        }
        Ok(())
    }

    /// The logits `[M, V]` after the pack rows `rows` of the last forward: row r speaks of the token after row r.
    ///
    /// # Errors
    /// If the device has no memory for them, or reports an error.
    pub fn logits(&self, backend: &mut B, acts: &Activations<B>, rows: &[usize]) -> Result<Vec<B::Element>> {
        let logits = self.logits_on_device(backend, acts, rows)?;
        let mut host = vec![B::Element::default(); rows.len() * self.spec.vocab];
        backend.download(&mut host, &logits, 0)?;
        backend.sync()?;
        Ok(host)
    }

    fn logits_on_device(&self, backend: &mut B, acts: &Activations<B>, rows: &[usize]) -> Result<B::Wide> {
        let spec = &self.spec;
        let index = backend.index(&rows.iter().map(|&row| row as u32).collect::<Vec<_>>())?;
        let mut x = backend.real(rows.len() * spec.width)?;
        let mut logits = backend.wide(rows.len() * spec.vocab)?;
        backend.gather_real(&mut x, &acts.final_norm, &index, spec.width);
        let dims = LinearDims { rows: rows.len(), input: spec.width, output: spec.vocab };
        backend.logits_fwd(&mut logits, &x, self.weights.head(), dims);
        Ok(logits)
    }
}

/// Buffers that pass through a layer and that no backward reads.
struct Passing<'a, B: Backend> {
    q: &'a mut B::Real,
    k: &'a mut B::Real,
    out: &'a mut B::Real,
}

/// One block of the model on one pack.
struct Block<'a, B: Backend> {
    spec: &'a Spec,
    weights: &'a Layer<B>,
    layer: usize,
    input: &'a Input<'a, B>,
}

impl<B: Backend> Block<'_, B> {
    /// `out = attention(norm(resid_pre))`.
    #[allow(clippy::too_many_arguments)]
    fn attention<T: Taps<B>>(
        &self,
        backend: &mut B,
        saved: &mut LayerActivations<B>,
        passing: Passing<'_, B>,
        resid_pre: &B::Wide,
        rope: &B::Wide,
        cache: Option<&mut Cache<'_, B>>,
        taps: &mut T,
    ) -> Result<()> {
        let (spec, pack, device) = (self.spec, self.input.pack, self.input.device);
        let (n, c, d) = (pack.len(), spec.width, spec.head_dim);
        let Passing { q, k, out } = passing;
        backend.rms_norm_fwd(
            &mut saved.attn_norm,
            &mut saved.attn_rstd,
            resid_pre,
            &self.weights.attn_norm,
            n,
            c,
            spec.eps,
        );
        self.tap(backend, taps, Site::Ln1Scale, Tensor::Wide(&saved.attn_rstd), 1);
        self.tap(backend, taps, Site::Ln1Normalized, Tensor::Real(&saved.attn_norm), c);
        self.project(backend, taps, Target::Q, q, &mut saved.lora_xa, &saved.attn_norm)?;
        self.project(backend, taps, Target::K, k, &mut saved.lora_xa, &saved.attn_norm)?;
        self.project(backend, taps, Target::V, &mut saved.v, &mut saved.lora_xa, &saved.attn_norm)?;
        self.tap(backend, taps, Site::Q, Tensor::Real(q), spec.q_width());
        self.tap(backend, taps, Site::K, Tensor::Real(k), spec.kv_width());
        self.tap(backend, taps, Site::V, Tensor::Real(&saved.v), spec.kv_width());
        backend.rope_fwd(&mut saved.rot_q, q, device, rope, spec.heads, d);
        backend.rope_fwd(&mut saved.rot_k, k, device, rope, spec.kv_heads, d);
        self.tap(backend, taps, Site::RotQ, Tensor::Real(&saved.rot_q), spec.q_width());
        self.tap(backend, taps, Site::RotK, Tensor::Real(&saved.rot_k), spec.kv_width());
        let dims = spec.attention(self.layer);
        let kept = cache.as_ref().map(|cache| &cache.cache.layers[self.layer]).map(|(keys, values)| (keys, values));
        backend.attention_fwd(&mut saved.z, &mut saved.lse, &saved.rot_q, &saved.rot_k, &saved.v, kept, device, dims);
        for (site, normalised) in [(Site::AttnScores, false), (Site::Pattern, true)] {
            if taps.wants(site, self.layer) {
                let (rows, longest) = (rows_on_demand(taps, pack), pack.longest());
                let mut pattern = backend.wide(rows.len() * spec.heads * longest)?;
                let keys = kept.map(|(keys, _)| keys);
                let (q, k) = (&saved.rot_q, &saved.rot_k);
                backend.attention_pattern(
                    &mut pattern,
                    q,
                    k,
                    keys,
                    &saved.lse,
                    &rows,
                    device,
                    dims,
                    longest,
                    normalised,
                );
                tap_rows(backend, taps, pack, site, self.layer, &pattern, spec.heads * longest, &rows);
            }
        }
        self.tap(backend, taps, Site::Z, Tensor::Real(&saved.z), spec.q_width());
        if taps.wants(Site::Result, self.layer) {
            let rows = rows_on_demand(taps, pack);
            let mut result = backend.wide(rows.len() * spec.heads * c)?;
            let weight = &self.weights.projection(Target::O).weight;
            backend.attention_result(&mut result, &saved.z, weight, &rows, spec.heads, d, c);
            tap_rows(backend, taps, pack, Site::Result, self.layer, &result, spec.heads * c, &rows);
        }
        if let Some(Cache { cache, keep }) = cache {
            let (keys, values) = &mut cache.layers[self.layer];
            let mut to = cache.used;
            for &g in *keep {
                let rows = pack.segments()[g].rows.clone();
                backend.keep(keys, to, &saved.rot_k, rows.clone(), spec.kv_width());
                backend.keep(values, to, &saved.v, rows.clone(), spec.kv_width());
                to += rows.len();
            }
        }
        self.project(backend, taps, Target::O, out, &mut saved.lora_xa, &saved.z)?;
        self.tap(backend, taps, Site::AttnOut, Tensor::Real(out), c);
        Ok(())
    }

    /// `out = down(silu(gate(x)) * up(x))`, x the norm of the middle residual stream.
    fn mlp<T: Taps<B>>(
        &self,
        backend: &mut B,
        saved: &mut LayerActivations<B>,
        out: &mut B::Real,
        taps: &mut T,
    ) -> Result<()> {
        let (spec, n, c, f) = (self.spec, self.input.pack.len(), self.spec.width, self.spec.ffn);
        let weight = &self.weights.mlp_norm;
        backend.rms_norm_fwd(&mut saved.mlp_norm, &mut saved.mlp_rstd, &saved.resid_mid, weight, n, c, spec.eps);
        self.tap(backend, taps, Site::Ln2Scale, Tensor::Wide(&saved.mlp_rstd), 1);
        self.tap(backend, taps, Site::Ln2Normalized, Tensor::Real(&saved.mlp_norm), c);
        self.project(backend, taps, Target::Gate, &mut saved.gate, &mut saved.lora_xa, &saved.mlp_norm)?;
        self.project(backend, taps, Target::Up, &mut saved.up, &mut saved.lora_xa, &saved.mlp_norm)?;
        self.tap(backend, taps, Site::MlpPre, Tensor::Real(&saved.gate), f);
        self.tap(backend, taps, Site::MlpPreLinear, Tensor::Real(&saved.up), f);
        backend.swiglu_fwd(&mut saved.act, &saved.gate, &saved.up, n * f);
        self.tap(backend, taps, Site::MlpPost, Tensor::Real(&saved.act), f);
        self.project(backend, taps, Target::Down, out, &mut saved.lora_xa, &saved.act)?;
        self.tap(backend, taps, Site::MlpOut, Tensor::Real(out), c);
        Ok(())
    }

    /// A projection with its bias and its adapter.
    fn project<T: Taps<B>>(
        &self,
        backend: &mut B,
        taps: &mut T,
        target: Target,
        out: &mut B::Real,
        lora_xa: &mut [Option<B::Wide>; 7],
        x: &B::Real,
    ) -> Result<()> {
        let (pack, device) = (self.input.pack, self.input.device);
        let projection = self.weights.projection(target);
        let (input, output) = self.spec.widths(target);
        let dims = LinearDims { rows: pack.len(), input, output };
        backend.linear_fwd(out, x, &projection.weight, projection.bias.as_ref(), dims);
        let Some(adaptation) = self.input.adaptation else { return Ok(()) };
        let Some(site) = adaptation.layout.site(self.layer, target) else { return Ok(()) };
        let xa = lora_xa[target as usize].as_mut().expect("forward: the buffers were planned with this layout");
        backend.lora_fwd(out, xa, x, &adaptation.params, device, site, self.input.dropout(self.layer, target));
        self.tap(backend, taps, Site::LoraA(target), Tensor::Wide(xa), site.rank);
        let delta = Site::LoraDelta(target);
        if taps.wants(delta, self.layer) {
            let mut buffer = backend.wide(pack.len() * output)?;
            backend.lora_delta(&mut buffer, xa, &adaptation.params, device, site);
            self.tap(backend, taps, delta, Tensor::Wide(&buffer), output);
        }
        Ok(())
    }

    fn tap<T: Taps<B>>(&self, backend: &mut B, taps: &mut T, site: Site, data: Tensor<'_, B>, width: usize) {
        tap(backend, taps, self.input.pack, site, self.layer, data, width);
    }
}

/// Hands over a tensor of all rows, if it is wanted.
#[inline(always)]
fn tap<B: Backend, T: Taps<B>>(
    backend: &mut B,
    taps: &mut T,
    pack: &Pack,
    site: Site,
    layer: usize,
    data: Tensor<'_, B>,
    width: usize,
) {
    if taps.wants(site, layer) {
        taps.tap(backend, Tapped { site, layer, rows: None, width, data, pack });
    }
}

/// Hands over a tensor that was computed for some rows only.
#[allow(clippy::too_many_arguments)]
fn tap_rows<B: Backend, T: Taps<B>>(
    backend: &mut B,
    taps: &mut T,
    pack: &Pack,
    site: Site,
    layer: usize,
    data: &B::Wide,
    width: usize,
    rows: &[usize],
) {
    taps.tap(backend, Tapped { site, layer, rows: Some(rows), width, data: Tensor::Wide(data), pack });
}

fn rows_on_demand<B: Backend>(taps: &impl Taps<B>, pack: &Pack) -> Vec<usize> {
    taps.rows().map_or_else(|| (0..pack.len()).collect(), <[usize]>::to_vec)
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
            Parent::Kept(k) => Some(k),
            Parent::Pack(p) => {
                let place = keep.iter().position(|&kept| kept == p);
                Some(first + place.unwrap_or_else(|| panic!("forward: segment {g} is kept, its parent {p} is not")))
            }
        };
        let rows = cache.used..cache.used + segment.rows.len();
        cache.used = rows.end;
        cache.segments.push(KeptSegment { rows, parent, run: segment.run, end: segment.position + segment.rows.len() });
    }
}
