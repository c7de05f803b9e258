//! LoRA of the tables of tokens: of the embedding table by what it adds to its rows, of the head by what it adds to the logits, which
//! then exist for a part of the label rows at a time.
//!
//! A of the embedding table lies transposed in the parameters, `[V, R]`, so that a token's column is a row there.

use std::sync::Arc;

use super::Model;
use super::adaptation::Adaptation;
use super::gradients::{GradientRequest, Gradients};
use super::input::Input;
use super::logit_buffers::LogitBuffers;
use super::output_rows::logit_rows;
use super::table_buffers::{EmbedGradients, EmbedLora, EmbedRows, HeadGradients, HeadLora, TableGradients};
use super::token_site::TokenHead;
use crate::Result;
use crate::arch::{ModelConfig, Projection};
use crate::backend::Backend;
use crate::backend::ops::{
    Cast, Dropout, GatherAcc, KlLoss, KvAppend, LinearBwdInput, LinearDims, LogitsFwd, LoraBwd, LoraDelta,
    LoraDeltaBwd, LoraFwd, LoraSite, ScatterAdd, Zero,
};
use crate::formats::adapter::Table;
use crate::pack::{Label, PackBuilder, Parent, Token};

impl<'a, B: Backend> Input<'a, B> {
    /// The adapters of a table, where it has some.
    fn table(&self, at: Table) -> Option<(&'a Adaptation<B>, LoraSite)> {
        self.adaptation.and_then(|adaptation| Some((adaptation, adaptation.layout.table(at)?)))
    }

    /// Dropout of what the head's adapter reads, of label rows with these keys; none of trained rows.
    fn table_dropout<'k>(&self, keys: &'k [u32]) -> Option<Dropout<'k>>
    where
        'a: 'k,
    {
        self.table(Table::Head)?;
        let layers = self.adaptation.map_or(0, |adaptation| adaptation.layout.layers);
        // Behind the sites of the blocks' projections.
        let site = (layers * Projection::ALL.len()) as u64;
        self.dropout.map(|plan| Dropout { p: plan.p, seeds: plan.seeds, site, keys })
    }

    /// Whether the embedding table is adapted, or rows of it are trained.
    pub(super) fn adapts_embedding(&self) -> bool {
        self.table(Table::Embed).is_some() || self.tokens().is_some()
    }

    /// Whether the head is adapted, or rows of it are trained.
    pub(super) fn adapts_head(&self) -> bool {
        self.adaptation.is_some_and(|adaptation| adaptation.layout.head().is_some())
    }
}

impl<B: Backend> Model<B> {
    /// Adds what a LoRA of the embedding table makes of the tokens to their rows `[N, E]`.
    pub(super) fn adapt_embedding(
        &self,
        backend: &mut B,
        lora: Option<&mut EmbedLora<B>>,
        embedded: &mut B::Acc,
        input: &Input<'_, B>,
    ) -> Result<()> {
        let Some((Adaptation { params, .. }, site)) = input.table(Table::Embed) else { return Ok(()) };
        let EmbedLora { xa, delta, rows } = lora.expect("forward: the buffers were planned with this layout");
        let rows = rows.insert(EmbedRows::new(backend, &self.config, input.pack, site)?);
        backend.gather_acc(GatherAcc { out: &mut *xa, x: params, rows: &rows.a, width: site.rank });
        let (pack, site) = (input.device, self.embed_site(site));
        backend.lora_delta(LoraDelta { out: &mut *delta, xa, params, pack, site });
        backend.scatter_add(ScatterAdd { d_x: embedded, d_out: delta, rows: &rows.all, width: site.output });
        Ok(())
    }

    /// The site of the embedding table, which scales what it adds as the model scales its rows.
    fn embed_site(&self, site: LoraSite) -> LoraSite {
        LoraSite { scale: site.scale * self.config.embed_scale, ..site }
    }

    /// From the gradient of the embedded rows to that of the embedding table's LoRA.
    ///
    /// # Panics
    /// If the forward was another's, or the scratch was planned without this layout.
    pub(super) fn embed_lora_backward(
        &self,
        backend: &mut B,
        lora: Option<&EmbedLora<B>>,
        grads: &mut Gradients<B>,
        input: &Input<'_, B>,
        request: &mut GradientRequest<'_, B>,
    ) {
        let Some((Adaptation { params, .. }, site)) = input.table(Table::Embed) else { return };
        let Some(EmbedLora { xa, rows: Some(rows), .. }) = lora else { panic!("backward: no forward of this layout") };
        let d_params = request.d_params.as_deref_mut();
        let d_params = d_params.expect("backward: adapters went in, their gradients have no buffer");
        let mut scratch = grads.tables.take().expect("backward: the scratch was planned with this layout");
        if let TableGradients { embed: Some(EmbedGradients { d_y, d_xa, trained }), .. } = &mut scratch {
            backend.cast(Cast { out: &mut *d_y, x: grads.d_embed(), len: input.pack.len() * site.output });
            // The forward may have had more rows, behind these.
            backend.zero(Zero { x: &mut *d_xa });
            let (pack, site) = (input.device, self.embed_site(site));
            backend.lora_delta_bwd(LoraDeltaBwd { d_params: &mut *d_params, d_xa, d_y, xa, params, pack, site });
            let width = site.rank;
            let (d_out, rows) = match &rows.trained {
                None => (&*d_xa, &rows.a),
                Some([of, a]) => {
                    backend.gather_acc(GatherAcc { out: &mut *trained, x: d_xa, rows: of, width });
                    (&*trained, a)
                }
            };
            backend.scatter_add(ScatterAdd { d_x: d_params, d_out, rows, width });
        }
        grads.tables = Some(scratch);
    }

    /// Adds what the head's LoRA makes of rows to their logits.
    fn adapt_logits(
        backend: &mut B,
        (params, site): (&B::Acc, LoraSite),
        HeadRows { x, pack: RowPack { device: pack, all, .. }, dropout }: HeadRows<'_, B>,
        HeadLora { xa, delta }: &mut HeadLora<B>,
        logits: &mut B::Acc,
    ) {
        backend.lora_fwd(LoraFwd { y: None, xa: &mut *xa, x, params, pack, site, dropout });
        backend.lora_delta(LoraDelta { out: &mut *delta, xa, params, pack, site });
        backend.scatter_add(ScatterAdd { d_x: logits, d_out: delta, rows: all, width: site.output });
    }

    /// The same to `buffers.logits` of the pack rows `rows` of a pass, from `x` as the head reads it.
    pub(super) fn adapt_row_logits(
        &self,
        backend: &mut B,
        input: &Input<'_, B>,
        rows: &[usize],
        buffers: &mut LogitBuffers<B>,
        gathered: Option<&B::Compute>,
    ) -> Result<()> {
        let Some(head) = input.head() else { return Ok(()) };
        let runs: Vec<Option<usize>> = rows.iter().map(|&row| input.pack.run_of(row)).collect();
        let pack = RowPack::new(backend, &runs)?;
        let LogitBuffers { x, projected, logits, lora } = buffers;
        let lora = lora.as_mut().expect("logits: the buffers were planned with this layout");
        let x = projected.as_ref().unwrap_or(gathered.unwrap_or(x));
        Self::adapt_logits(backend, head, HeadRows { x, pack: &pack, dropout: None }, lora, logits);
        Ok(())
    }

    /// The losses of label rows under an adapted head, into `grads.losses`, and with a request the gradients: `d_x =` of what the
    /// head reads, which is `grads.label_x` or what that is projected to, and `+=` those of A and B.
    ///
    /// # Panics
    /// If the labels were made without the adapters, or the scratch without their layout.
    pub(super) fn adapted_loss_backward(
        &self,
        backend: &mut B,
        grads: &mut Gradients<B>,
        labels: &HeadLabels<B>,
        row_weights: &B::Acc,
        input: &Input<'_, B>,
        request: &mut GradientRequest<'_, B>,
    ) {
        let (params, site) = input.head().expect("loss: labels of an adapted head");
        let mut tables = grads.tables.take().expect("backward: the scratch was planned with this layout");
        let scratch = tables.head.as_mut().expect("backward: the scratch was planned with this layout");
        let d_params = request.d_params.as_deref_mut();
        let d_params = d_params.expect("backward: adapters went in, their gradients have no buffer");
        let HeadGradients { x, logits, lora, d_logits, d_x, certain, d_tokens } = scratch;
        let (width, vocab) = (self.config.embed_size, self.config.vocab_size);
        d_tokens.iter_mut().for_each(|d_tokens| backend.zero(Zero { x: d_tokens }));
        let d_lora = d_tokens.as_mut().unwrap_or(&mut *d_params);
        let (all_d_x, all_x) = match &mut grads.projected {
            Some(projected) => (&mut projected.d_x, &projected.x),
            None => (&mut grads.d_label_x, &grads.label_x),
        };
        let keys: Vec<u32> = match input.dropout {
            Some(plan) => labels.pack_rows.iter().map(|&row| plan.keys[row as usize]).collect(),
            None => Vec::new(),
        };
        backend.zero(Zero { x: &mut *all_d_x });
        for HeadPart { first, pack, label_rows, one_hot } in &labels.parts {
            let (first, count) = (*first, pack.count);
            backend.kv_append(KvAppend { cache: &mut *x, to: 0, x: all_x, from: first..first + count, width });
            let dims = LinearDims { rows: count, input: width, output: vocab };
            let weight = self.weights.head();
            let bias = self.weights.head_bias.as_ref();
            backend.logits_fwd(LogitsFwd { logits: &mut *logits, x, head: weight, bias, dims, softcap: None });
            let dropout = input.table_dropout(&keys[first.min(keys.len())..]);
            Self::adapt_logits(backend, (params, site), HeadRows { x, pack, dropout }, lora, logits);
            // Cross-entropy is the divergence from a distribution that is certain of the label.
            let HeadLora { xa, delta: teacher } = &mut *lora;
            backend.zero(Zero { x: &mut *teacher });
            backend.scatter_add(ScatterAdd { d_x: &mut *teacher, d_out: certain, rows: one_hot, width: 1 });
            backend.kl_loss(KlLoss {
                loss: &mut grads.losses,
                d_logits: &mut *d_logits,
                logits,
                teacher,
                row_weights,
                from: first,
                rows: count,
                vocab,
                temperature: 1.0,
                softcap: None,
            });
            backend.linear_bwd_input(LinearBwdInput {
                d_x: &mut *d_x,
                d_out: d_logits,
                weight,
                dims,
                accumulate: false,
            });
            backend.lora_bwd(LoraBwd {
                d_params: &mut *d_lora,
                accumulate: true,
                d_x: Some(&mut *d_x),
                d_y: d_logits,
                xa,
                x,
                params,
                pack: &pack.device,
                site,
                dropout,
            });
            backend.scatter_add(ScatterAdd { d_x: &mut *all_d_x, d_out: d_x, rows: label_rows, width });
        }
        if let (Some(d_out), Some(Adaptation { token_head: Some(TokenHead { rows, .. }), .. })) =
            (d_tokens, input.adaptation)
        {
            backend.scatter_add(ScatterAdd { d_x: d_params, d_out, rows, width });
        }
        grads.tables = Some(tables);
    }
}

/// What the head's LoRA reads.
struct HeadRows<'a, B: Backend> {
    /// `[rows, E]`.
    x: &'a B::Compute,
    pack: &'a RowPack<B>,
    dropout: Option<Dropout<'a>>,
}

/// Rows in their order, each of the run of a row of a pass.
pub(super) struct RowPack<B: Backend> {
    count: usize,
    device: B::Pack,
    /// `0..count`.
    all: B::Index,
}

impl<B: Backend> RowPack<B> {
    /// Rows of these runs.
    fn new(backend: &mut B, runs: &[Option<usize>]) -> Result<Self> {
        let mut builder = PackBuilder::default();
        for rows in runs.chunk_by(|a, b| a == b) {
            builder.push(&vec![Token::Id(0); rows.len()], Parent::None, rows[0], Label::Text);
        }
        let all: Vec<u32> = (0..runs.len() as u32).collect();
        Ok(Self { count: runs.len(), device: backend.pack(&builder.build())?, all: backend.index(&all)? })
    }
}

/// Label rows under an adapted head.
pub(super) struct HeadLabels<B: Backend> {
    parts: Vec<HeadPart<B>>,
    /// `[M]` rows of the pass.
    pack_rows: Arc<[u32]>,
}

/// Label rows whose logits exist at one time.
struct HeadPart<B: Backend> {
    /// The first of its label rows, among those of the pass.
    first: usize,
    pack: RowPack<B>,
    /// `first..first + count`.
    label_rows: B::Index,
    /// Where among `[count, V]` logits those of the labels are.
    one_hot: B::Index,
}

impl<B: Backend> HeadLabels<B> {
    /// The label rows `rows [M]` of a pass with their `targets`; none where the head has no LoRA.
    pub fn new(
        backend: &mut B,
        config: &ModelConfig,
        input: &Input<'_, B>,
        rows: &[u32],
        targets: &[u32],
    ) -> Result<Option<Self>> {
        if !input.adapts_head() {
            return Ok(None);
        }
        let (step, vocab) = (logit_rows(config, rows.len()), config.vocab_size);
        let starts = (0..rows.len()).step_by(step);
        let part = |first: usize| {
            let part = first..rows.len().min(first + step);
            let runs: Vec<_> = rows[part.clone()].iter().map(|&row| input.pack.run_of(row as usize)).collect();
            let label_rows: Vec<u32> = part.clone().map(|row| row as u32).collect();
            let labels = targets[part].iter().enumerate();
            let one_hot: Vec<u32> = labels.map(|(i, &target)| (i * vocab) as u32 + target).collect();
            let (label_rows, one_hot) = (backend.index(&label_rows)?, backend.index(&one_hot)?);
            Ok(HeadPart { first, pack: RowPack::new(backend, &runs)?, label_rows, one_hot })
        };
        Ok(Some(Self { parts: starts.map(part).collect::<Result<_>>()?, pack_rows: rows.into() }))
    }
}
