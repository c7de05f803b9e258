//! The backward: from the losses of label rows to adapters, soft prompts, embeddings and, on request, all weights.

use super::Model;
use super::activations::{Activations, Save};
use super::block::{Block, BlockBwd};
use super::gradients::{GradientRequest, Gradients};
use super::head::Labels;
use super::input::Input;
use crate::arch::{NormPlacement, Projection};
use crate::backend::Backend;
use crate::backend::ops::{ScatterAdd, Zero};

impl<B: Backend> Model<B> {
    /// The losses and the requested gradients of the last forward, which must have saved its activations, or the inputs of
    /// its layers: then each layer is computed again, into the buffers of `acts` that all of them share.
    ///
    /// # Panics
    /// If the forward saved neither, or only the inputs and has had its backward, or went through a cache, or started above the
    /// lowest layer that has gradients, or had another input; if the scratch is too small.
    pub fn backward(
        &self,
        backend: &mut B,
        acts: &mut Activations<B>,
        grads: &mut Gradients<B>,
        input: &Input<'_, B>,
        labels: &Labels<B>,
        mut request: GradientRequest<'_, B>,
    ) {
        let (config, n) = (&self.config, input.pack.len());
        assert!(acts.save != Save::Layer, "backward: the forward saved one layer only");
        let spent = acts.save == Save::Inputs && acts.filled + 1 != config.num_hidden_layers;
        assert!(!spent, "backward: a forward that saves the layers' inputs has one backward");
        assert!(!input.pack.has_cached(), "backward: cached segments have no backward");
        assert!(n <= grads.rows, "backward: {n} rows in scratch for {}", grads.rows);
        assert!(labels.count <= grads.labels, "backward: {} labels in scratch for {}", labels.count, grads.labels);
        let own = input.adaptation.is_some_and(|adaptation| adaptation.layout.saved.is_some());
        assert!(request.own.is_some() == own, "backward: the weights of a run's own are not those of the request");
        let whole =
            own || request.d_embed || request.d_weights.is_some() || input.has_prompt() || input.adapts_embedding();
        let lowest = if whole { 0 } else { self.lowest(input) };
        let start = input.start.as_ref().map_or(0, |start| start.layer);
        assert!(start <= lowest, "backward: down to layer {lowest} of a pass that starts at layer {start}");
        // A list of operations that is repeated must have the same addresses, and what is requested its buffer: every
        // exchange of buffers is undone. The first is undone where the output rows go back among all.
        let mut exchanged = input.output_rows.is_some();
        if exchanged {
            std::mem::swap(&mut grads.d_resid, &mut grads.d_norm);
        }
        self.head_backward(backend, acts, grads, labels, input, &mut request);
        for layer in (lowest..config.num_hidden_layers).rev() {
            let below = whole || layer > lowest;
            self.recompute(backend, acts, input, layer);
            let acts = &*acts;
            let outputs = input.outputs().filter(|_| layer + 1 == config.num_hidden_layers);
            let block = Block { config, weights: &self.weights.layers[layer], layer, input, recompute: false, outputs };
            let block = BlockBwd { block, acts, saved: &acts.layers[acts.layer_slot(layer)] };
            exchanged ^= block.backward(backend, grads, &mut request, below);
        }
        if whole {
            self.embedding_backward(backend, acts, grads, input, &mut request);
        }
        if exchanged {
            std::mem::swap(&mut grads.d_resid, &mut grads.d_norm);
        }
    }

    /// The lowest layer whose backward the adapters need; beyond the last if there are none.
    fn lowest(&self, input: &Input<'_, B>) -> usize {
        let adapted = input.adaptation.and_then(|adaptation| adaptation.layout.lowest());
        adapted.unwrap_or(self.config.num_hidden_layers)
    }
}

impl<B: Backend> BlockBwd<'_, B> {
    /// The gradients of the block's parameters and, if `below` says that anybody needs it, of the stream that enters it,
    /// from that of the stream that leaves it. Returns whether `d_resid` and `d_norm` have been exchanged.
    fn backward(
        &self,
        backend: &mut B,
        grads: &mut Gradients<B>,
        request: &mut GradientRequest<'_, B>,
        below: bool,
    ) -> bool {
        let Block { config, input, layer, .. } = self.block;
        let heads = below || self.adapts(&[Projection::Q, Projection::K, Projection::V]);
        let attention = heads || self.adapts(&[Projection::O]);

        let mut keys = Vec::new();
        let output = input.output_rows.filter(|_| layer + 1 == config.num_hidden_layers);
        let narrowed = output.map(|output| input.narrowed(output, &mut keys));
        let block = Block { input: narrowed.as_ref().unwrap_or(input), ..self.block };
        let rest = BlockBwd { block, ..*self };
        rest.mlp(backend, grads, request, output, attention);
        let post_norm = config.norm_placement == NormPlacement::Post;
        let mut exchanged = post_norm;
        if !attention {
            return exchanged;
        }
        rest.attention_output(backend, grads, request, output, heads);
        exchanged ^= post_norm;
        if !heads {
            return exchanged;
        }
        if let Some(output) = output {
            // From here on the other rows take part, as keys and values.
            let (rows, width) = (&output.index, config.q_width());
            backend.zero(Zero { x: &mut grads.d_z });
            backend.scatter_add(ScatterAdd { d_x: &mut grads.d_z, d_out: &grads.d_act, rows, width });
            let width = config.hidden_size;
            if config.one_norm {
                backend.zero(Zero { x: &mut grads.d_act });
                backend.scatter_add(ScatterAdd { d_x: &mut grads.d_act, d_out: &grads.d_norm, rows, width });
            }
            backend.zero(Zero { x: &mut grads.d_norm });
            backend.scatter_add(ScatterAdd { d_x: &mut grads.d_norm, d_out: &grads.d_resid, rows, width });
            std::mem::swap(&mut grads.d_resid, &mut grads.d_norm);
            exchanged = !exchanged;
        }
        // What the MLP has given to the norm that is both's, of all rows.
        let waits = config.one_norm && output.is_some();
        if waits {
            std::mem::swap(&mut grads.d_norm, &mut grads.d_act);
        }
        self.attention(backend, grads, request, below);
        if waits {
            std::mem::swap(&mut grads.d_norm, &mut grads.d_act);
        }
        exchanged
    }
}
