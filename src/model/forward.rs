//! The forward of every model, over a pack that is a forest, through any adapters, past any taps.

use super::Model;
use super::activations::{Activations, Save};
use super::block::Block;
use super::input::{Input, Start, StartRows};
use super::kv_cache::Cache;
use super::taps::PassTaps;
use crate::Result;
use crate::backend::ops::{GatherAcc, GatherCompute};
use crate::backend::{AccElement, Backend, TensorMut};
use crate::hooks::{NoTaps, Site, Taps};

impl<B: Backend> Model<B> {
    /// Runs the model over a pack. Afterwards `acts.final_norm` holds the final norm's output `[N, C]`, or `[M, C]` of the
    /// output rows, unless the taps stop earlier.
    ///
    /// # Errors
    /// If the pack was made for another kind of attention or has a sequence beyond the last learned position; if the device has no memory for a longer rotation
    /// table or for a tensor computed on demand; the first error of [`Taps::tap`] or [`Taps::finish`].
    ///
    /// # Panics
    /// If the pack is larger than the buffers or than what is left of the cache, or names runs that are not there; if a
    /// tap takes a row that is no output row; if a pass that starts at a layer has other rows than the pack, or appends to a
    /// cache.
    pub fn forward<T: Taps<B>>(
        &self,
        backend: &mut B,
        acts: &mut Activations<B>,
        input: &Input<'_, B>,
        mut cache: Option<Cache<'_, B>>,
        taps: &mut T,
    ) -> Result<()> {
        let depth = self.config.num_hidden_layers;
        input.check(acts.rows, depth, self.config.hidden_size);
        let owned = input.adaptation.is_some_and(|adaptation| adaptation.layout.saved.is_some());
        assert!(owned == self.weights.owned, "forward: the model's weights are not those of the adapters");
        let start = input.start.as_ref().map_or(0, |start| start.layer);
        self.config.check_attention(input.pack)?;
        self.config.check_positions(input.pack)?;
        self.config.check_one_length(input.pack)?;
        acts.cover(backend, &self.config, input.pack)?;
        cache.iter().for_each(|cache| cache.check_room(input.pack, start));
        acts.outputs = input.output_rows.map(|output| output.rows.clone());
        acts.adapts_head = input.adapts_head();
        let mut points = PassTaps::new(taps, input.pack, input.edits);
        match &input.start {
            None => self.embed(backend, acts, input, &mut points)?,
            Some(start) => self.start(backend, acts, input, start)?,
        }
        let asked = points.stop_at_layer();
        let stop = asked.unwrap_or(depth).clamp(start, depth);
        assert!(cache.is_none() || stop == depth, "forward: a cached segment goes through every layer");
        for layer in start..stop {
            let pass = Pass { input, cache: cache.as_mut(), last: layer + 1 == stop, recompute: false };
            self.block(backend, acts, pass, layer, &mut points)?;
        }
        if let Some(cache) = cache {
            cache.append_segments(input.pack);
        }
        if asked.is_some() {
            let slot = acts.resid_slot(stop);
            let rows = if stop == start { None } else { input.outputs() };
            let resid = TensorMut::Acc(&mut acts.resid[slot]);
            points.at(stop, rows).edit(backend, Site::ResidPre, resid, self.config.hidden_size)?;
        } else {
            self.final_norm(backend, acts, input, &mut points.at(0, input.outputs()))?;
        }
        taps.finish(backend)
    }

    /// The residual stream that enters the first layer of a pass that does not begin with its tokens.
    fn start(
        &self,
        backend: &mut B,
        acts: &mut Activations<B>,
        input: &Input<'_, B>,
        Start { layer, resid }: &Start<'_, B>,
    ) -> Result<()> {
        let width = self.config.hidden_size;
        // Of a stream that has left the last layer only the output rows go on: the others lie in a buffer that is free.
        let output = input.output_rows.filter(|_| *layer == self.config.num_hidden_layers);
        let [to, narrowed] = [acts.resid_slot(layer + usize::from(output.is_some())), acts.resid_slot(*layer)];
        let stream = &mut acts.resid[to];
        match resid {
            StartRows::Host(x) => {
                let x: Vec<B::Element> = x.iter().map(|&x| B::Element::from_f64(f64::from(x))).collect();
                backend.upload(stream, 0, &x)?;
            }
            StartRows::Device { x, rows } => backend.gather_acc(GatherAcc { out: stream, x, rows, width }),
        }
        if let Some(output) = output {
            let [x, out] = acts.resid.get_disjoint_mut([to, narrowed]).expect("forward: two residual buffers");
            backend.gather_acc(GatherAcc { out, x, rows: &output.index, width });
        }
        Ok(())
    }

    /// One block: `resid[layer + 1]` from `resid[layer]`, in the last block computed only at the output rows.
    fn block<T: Taps<B>>(
        &self,
        backend: &mut B,
        acts: &mut Activations<B>,
        pass: Pass<'_, '_, B>,
        layer: usize,
        taps: &mut PassTaps<'_, B, T>,
    ) -> Result<()> {
        let (config, Pass { input, cache, last, recompute }) = (&self.config, pass);
        acts.filled = layer;
        let (slot, slots) = (acts.layer_slot(layer), [acts.resid_slot(layer), acts.resid_slot(layer + 1)]);
        let [resid_pre, resid_post] = acts.resid.get_disjoint_mut(slots).expect("forward: two residual buffers");
        let saved = &mut acts.layers[slot];
        let output = input.output_rows.filter(|_| last);
        let outputs = output.map(|output| &*output.rows);
        let block = Block { config, weights: &self.weights.layers[layer], layer, input, recompute, outputs };
        let mut points = taps.at(layer, None);
        if !recompute {
            points.edit(backend, Site::ResidPre, TensorMut::Acc(&mut *resid_pre), config.hidden_size)?;
        }
        block.attention(backend, saved, acts.rotation.as_ref(), resid_pre, cache, &mut points)?;

        let mut keys = Vec::new();
        let narrowed = output.map(|output| input.narrowed(output, &mut keys));
        let mut stream = &*resid_pre;
        if let Some(output) = output {
            // Until those are computed, the activation's buffer and the output's hold the rows that go on.
            let (rows, width) = (&output.index, config.q_width());
            backend.gather_compute(GatherCompute { out: &mut saved.act, x: &saved.z, rows, width });
            let width = config.hidden_size;
            backend.gather_acc(GatherAcc { out: &mut *resid_post, x: resid_pre, rows, width });
            if config.one_norm {
                backend.gather_compute(GatherCompute { out: &mut saved.mlp_in, x: &saved.attn_in, rows, width });
            }
            stream = &*resid_post;
        }
        let block = Block { input: narrowed.as_ref().unwrap_or(input), ..block };
        let mut points = taps.at(layer, outputs);
        block.attention_output(backend, saved, &mut acts.attn_out, stream, output.is_some(), &mut points)?;
        block.mlp(backend, saved, &mut acts.mlp_out, stream, &mut points)?;
        block.mlp_output(backend, saved, &acts.mlp_out, acts.post_norm.as_mut(), resid_post, &mut points)
    }
}

impl<B: Backend> Model<B> {
    /// Fills the buffers that the backward of a layer reads, if they are another layer's; the last layer's never are.
    pub(super) fn recompute(&self, backend: &mut B, acts: &mut Activations<B>, input: &Input<'_, B>, layer: usize) {
        if acts.save != Save::Inputs || acts.filled == layer {
            return;
        }
        let mut taps = NoTaps;
        let mut points = PassTaps::new(&mut taps, input.pack, input.edits);
        let pass = Pass { input, cache: None, last: false, recompute: true };
        let done = self.block(backend, acts, pass, layer, &mut points);
        // Nothing is tapped, and there is room for all that the forward made room for.
        done.expect("backward: a layer that was computed is computed again");
    }
}

/// What a block needs to know of its pass.
struct Pass<'a, 'c, B: Backend> {
    input: &'a Input<'a, B>,
    cache: Option<&'a mut Cache<'c, B>>,
    /// Whether nothing but the head comes after it.
    last: bool,
    /// Whether the stream that enters it has been edited, since it is computed again.
    recompute: bool,
}
