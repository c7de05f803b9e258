//! The embedding stage: from tokens and soft prompts to the residual stream that enters the first block, and back.

use super::Model;
use super::activations::Activations;
use super::gradients::{GradientRequest, Gradients};
use super::input::{EmbedNoise, Input};
use super::norm::{self, NormBwd};
use super::param_id::{NormAt, ParamId};
use super::taps::PassTaps;
use crate::Result;
use crate::arch::Positions;
use crate::backend::ops::{
    Cast, EditBwd, EditMap, EmbedBwdPrompt, EmbedBwdTable, EmbedFwd, LinearBwdInput, LinearBwdWeight, LinearDims,
    LinearFwd, PositionBwdTable, PositionFwd, ScatterAdd, Widen, Zero,
};
use crate::backend::{AccElement, Backend, Tensor, TensorMut};
use crate::hooks::{Site, Taps};
use crate::pack::{Label, PackBuilder, Parent, Token};

impl<B: Backend> Model<B> {
    /// The residual stream that enters the first block: embeddings, projected, normed, with their positions.
    pub(super) fn embed<T: Taps<B>>(
        &self,
        backend: &mut B,
        acts: &mut Activations<B>,
        input: &Input<'_, B>,
        taps: &mut PassTaps<'_, B, T>,
    ) -> Result<()> {
        let (config, n, width) = (&self.config, input.pack.len(), self.config.embed_size);
        let prompt = input.adaptation.and_then(|a| a.layout.prompt.map(|site| (&a.params, site)));
        let stream = &mut acts.resid[0];
        let embedded = acts.embedding.as_mut().map_or(&mut *stream, |stage| &mut stage.embedded);
        let (pack, table) = (input.device, &self.weights.embed);
        let scale = config.embed_scale;
        backend.embed_fwd(EmbedFwd { out: &mut *embedded, pack, table, prompt, width, scale });
        self.adapt_embedding(backend, acts.embed_lora.as_mut(), embedded, input)?;
        acts.token_rows = self.place_tokens(backend, embedded, input)?;
        acts.fixed_rows = self.fixed_rows(backend, input)?;
        if let Some(EmbedNoise { values, rows }) = &input.noise {
            backend.scatter_add(ScatterAdd { d_x: &mut *embedded, d_out: values, rows, width });
        }
        taps.edit(backend, Site::Embed, TensorMut::Acc(&mut *embedded), width)?;
        if let Some(stage) = &mut acts.embedding {
            if let (Some(weight), Some(x)) = (&self.weights.project_in, &mut stage.embedded_compute) {
                backend.cast(Cast { out: &mut *x, x: &stage.embedded, len: n * width });
                let dims = LinearDims { rows: n, input: width, output: config.hidden_size };
                backend.linear_fwd(LinearFwd { out: &mut stage.out, x, weight, bias: None, dims });
            }
            if let (Some(norm), Some(stats)) = (&self.weights.embed_norm, &mut stage.stats) {
                norm::forward(backend, config, &mut stage.out, stats, &stage.embedded, norm, n);
            }
            backend.widen(Widen { out: &mut *stream, x: &stage.out, len: n * config.hidden_size });
        }
        self.add_positions(backend, stream, input, taps)
    }

    /// The rows of a pass whose token is that of padding, and as many zeros, where the embedding table is a saved module.
    fn fixed_rows(&self, backend: &mut B, input: &Input<'_, B>) -> Result<Option<[B::Index; 2]>> {
        let saved = input.adaptation.and_then(|adaptation| adaptation.layout.saved_modules());
        let Some(fixed) =
            self.config.padding_row().filter(|_| saved.is_some_and(|saved| saved.layout.get(ParamId::Embed).is_some()))
        else {
            return Ok(None);
        };
        let rows = input.pack.tokens().iter().enumerate().filter(|(_, token)| **token == Token::Id(fixed));
        let rows: Vec<u32> = rows.map(|(row, _)| row as u32).collect();
        match rows.len() {
            0 => Ok(None),
            count => Ok(Some([backend.index(&rows)?, backend.index(&vec![0; count])?])),
        }
    }

    /// Adds learned positions to the residual stream `[N, C]`, where the model has them.
    fn add_positions<T: Taps<B>>(
        &self,
        backend: &mut B,
        stream: &mut B::Acc,
        input: &Input<'_, B>,
        taps: &mut PassTaps<'_, B, T>,
    ) -> Result<()> {
        let (&Positions::Learned { first }, Some(table)) = (&self.config.positions, &self.weights.positions) else {
            return Ok(());
        };
        let (pack, width) = (input.device, self.config.hidden_size);
        if taps.wants(Site::PosEmbed) {
            let mut alone = backend.acc(input.pack.len() * width)?;
            backend.position_fwd(PositionFwd { x: &mut alone, pack, table, first, width });
            taps.tap(backend, Site::PosEmbed, Tensor::Acc(&alone), width)?;
        }
        backend.position_fwd(PositionFwd { x: stream, pack, table, first, width });
        Ok(())
    }

    /// From the gradient of the residual stream that enters the first block to those of positions, soft prompt and
    /// embedding table.
    pub(super) fn embedding_backward(
        &self,
        backend: &mut B,
        acts: &Activations<B>,
        grads: &mut Gradients<B>,
        input: &Input<'_, B>,
        request: &mut GradientRequest<'_, B>,
    ) {
        let (config, pack, width) = (&self.config, input.device, self.config.embed_size);
        if self.weights.positions.is_some()
            && let Some((d_table, offset)) = request.weight(ParamId::Positions)
        {
            let (d_x, first, width) = (&grads.d_resid, config.first_position(), config.hidden_size);
            backend.position_bwd_table(PositionBwdTable { d_table, offset, d_x, pack, first, width });
        }
        self.embedding_stage_backward(backend, acts, grads, input.pack.len(), request);
        input.site_backward(backend, (Site::Embed, 0), false, TensorMut::Acc(grads.d_embed_mut()), width);
        if let (Some(adaptation), Some(d_params)) = (input.adaptation, request.d_params.as_mut())
            && let Some(site) = adaptation.layout.prompt
        {
            let d_out = grads.d_embed();
            backend.embed_bwd_prompt(EmbedBwdPrompt { d_prompt: &mut **d_params, d_out, pack, site, width });
        }
        self.embed_lora_backward(backend, acts.embed_lora.as_ref(), grads, input, request);
        self.tokens_backward(backend, acts.token_rows.as_ref(), grads, input, request);
        if let (Some([rows, value_rows]), Some(adaptation)) = (&acts.fixed_rows, input.adaptation) {
            let (d_x, values, map) =
                (TensorMut::Acc(grads.d_embed_mut()), &adaptation.params, EditMap { keep: 0.0, along: 0.0 });
            backend.edit_bwd(EditBwd { d_x, values, rows, value_rows, width, map });
        }
        if let Some((d_table, offset)) = request.weight(ParamId::Embed) {
            let (d_out, scale) = (grads.d_embed(), config.embed_scale);
            backend.embed_bwd_table(EmbedBwdTable { d_table, offset, d_out, pack, width, scale });
        }
    }

    /// Through the norm or the projection between the table's `rows` rows and the residual stream, where there is one.
    fn embedding_stage_backward(
        &self,
        backend: &mut B,
        acts: &Activations<B>,
        grads: &mut Gradients<B>,
        rows: usize,
        request: &mut GradientRequest<'_, B>,
    ) {
        let (Some(stage), Some(d_embed)) = (&acts.embedding, &mut grads.d_embed) else { return };
        let (config, width) = (&self.config, self.config.embed_size);
        if let (Some(norm), Some(stats)) = (&self.weights.embed_norm, &stage.stats) {
            backend.zero(Zero { x: &mut *d_embed });
            let d_params = request.weight(ParamId::Norm(NormAt::Embed));
            let (d_out, x) = (&mut grads.d_resid, &stage.embedded);
            let args = NormBwd { d_x: &mut *d_embed, d_params, d_out, x, stats, norm, rows };
            norm::backward(backend, config, args);
        }
        if let (Some(weight), Some(x)) = (&self.weights.project_in, &stage.embedded_compute) {
            backend.cast(Cast { out: &mut grads.d_out, x: &grads.d_resid, len: rows * config.hidden_size });
            let dims = LinearDims { rows, input: width, output: config.hidden_size };
            let d_out = &grads.d_out;
            backend.linear_bwd_input(LinearBwdInput { d_x: d_embed, d_out, weight, dims, accumulate: false });
            if let Some((d_weight, offset)) = request.weight(ParamId::ProjectIn) {
                backend.linear_bwd_weight(LinearBwdWeight { d_weight, offset, d_out, x, dims });
            }
        }
    }

    /// The rows `[ids, E]` of the embedding table, scaled as the model scales them: what a soft prompt starts from.
    ///
    /// # Errors
    /// If the device fails.
    pub fn embeddings(&self, backend: &mut B, ids: &[u32]) -> Result<Vec<f32>> {
        let mut builder = PackBuilder::default();
        let tokens: Vec<Token> = ids.iter().map(|&id| Token::Id(id)).collect();
        builder.push(&tokens, Parent::None, None, Label::Text);
        let pack = backend.pack(&builder.build())?;
        let (width, table) = (self.config.embed_size, &self.weights.embed);
        let mut out = backend.acc(ids.len() * width)?;
        let scale = self.config.embed_scale;
        backend.embed_fwd(EmbedFwd { out: &mut out, pack: &pack, table, prompt: None, width, scale });
        let mut host = vec![B::Element::default(); ids.len() * width];
        backend.download(&mut host, &out, 0)?;
        backend.sync()?;
        Ok(host.into_iter().map(|x| x.to_f64() as f32).collect())
    }
}
