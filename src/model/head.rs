//! The head: final norm, logits and losses of a pass, and the way back from the losses to the last residual stream.

use std::sync::Arc;

use super::Model;
use super::activations::{Activations, some};
use super::gradients::{GradientRequest, Gradients};
use super::input::Input;
use super::norm::{self, NormBwd, Normed};
use super::output_rows::{OutputRows, output_row};
use super::param_id::{NormAt, ParamId};
use super::taps::PassTaps;
use crate::Result;
use crate::arch::ModelConfig;
use crate::backend::ops::{
    Cast, CrossEntropyBwd, CrossEntropyFwd, GatherCompute, LinearBwdInput, LinearBwdWeight, LinearDims, LinearFwd,
    LogitsFwd, ScatterAdd, Zero,
};
use crate::backend::{AccElement, Backend, Tensor, TensorMut};
use crate::hooks::{NormSite, Site, Taps};

/// The rows that bear a loss: after row `rows[i]` comes token `targets[i]`, and the total is
/// `sum_i weights[i] * loss_i`.
pub struct Labels<B: Backend> {
    /// Number of label rows M.
    pub count: usize,
    /// The output rows of the pass; none means all.
    outputs: Option<Arc<[usize]>>,
    /// `[M]`, counted among the output rows.
    rows: B::Index,
    /// `[M]`.
    targets: B::Index,
    /// `[M]`.
    weights: B::Acc,
}

impl<B: Backend> Labels<B> {
    /// Label rows of a pack of which the rows `output` come out (none means all); a row may stand several times, with
    /// several targets.
    ///
    /// # Errors
    /// If the device has no memory for them.
    ///
    /// # Panics
    /// If a label row does not come out.
    pub fn new(
        backend: &mut B,
        output: Option<&OutputRows<B>>,
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
        let outputs = output.map(|output| output.rows.clone());
        let rows: Vec<u32> = rows.iter().map(|&row| output_row(outputs.as_deref(), row as usize) as u32).collect();
        Ok(Self { count, outputs, rows: backend.index(&rows)?, targets: backend.index(targets)?, weights })
    }
}

/// Room for the logits after some rows.
pub(super) struct LogitBuffers<B: Backend> {
    /// `[rows, C]`.
    x: B::Compute,
    /// `[rows, E]`, where the head's width is another.
    projected: Option<B::Compute>,
    /// `[rows, V]`.
    pub logits: B::Acc,
}

impl<B: Backend> LogitBuffers<B> {
    /// Room for the logits after `rows` rows.
    pub fn new(backend: &mut B, config: &ModelConfig, rows: usize) -> Result<Self> {
        let projects = config.embed_size != config.hidden_size;
        Ok(Self {
            x: backend.compute(rows * config.hidden_size)?,
            projected: some(projects, || backend.compute(rows * config.embed_size))?,
            logits: backend.acc(rows * config.vocab_size)?,
        })
    }
}

impl<B: Backend> Model<B> {
    /// From the last residual stream to the final norm's output and, if they are tapped, logits.
    pub(super) fn final_norm<T: Taps<B>>(
        &self,
        backend: &mut B,
        acts: &mut Activations<B>,
        input: &Input<'_, B>,
        taps: &mut PassTaps<'_, B, T>,
    ) -> Result<()> {
        let (config, rows) = (&self.config, input.output_len());
        let resid = &acts.resid[acts.resid_slot(config.num_hidden_layers)];
        match &self.weights.final_norm {
            Some(norm) => {
                norm::forward(backend, config, &mut acts.final_norm, &mut acts.final_stats, resid, norm, rows);
                let width = config.hidden_size;
                let normed = Normed { x: Tensor::Acc(resid), rstd: &acts.final_stats.rstd, heads: 1, width };
                norm::tap(backend, config, taps, NormSite::Final, normed)?;
            }
            None => {
                backend.cast(Cast { out: &mut acts.final_norm, x: resid, len: rows * config.hidden_size });
            }
        }
        taps.edit(backend, Site::FINAL_NORM, TensorMut::Compute(&mut acts.final_norm), config.hidden_size)?;
        if taps.wants(Site::Logits) {
            config.require_head()?;
            let rows = taps.rows_on_demand();
            let mut buffers = LogitBuffers::new(backend, config, rows.len())?;
            self.logits_on_device(backend, acts, &rows, &mut buffers)?;
            taps.tap_rows(backend, Site::Logits, Tensor::Acc(&buffers.logits), config.vocab_size, &rows)?;
        }
        Ok(())
    }

    /// The logits `[M, V]` after the pack rows `rows` of the last forward: row r speaks of the token after row r.
    ///
    /// # Errors
    /// If the model has no head, if the device has no memory for them, or reports an error.
    ///
    /// # Panics
    /// If one of the rows is no output row of the forward.
    pub fn logits(&self, backend: &mut B, acts: &Activations<B>, rows: &[usize]) -> Result<Vec<B::Element>> {
        self.config.require_head()?;
        let mut buffers = LogitBuffers::new(backend, &self.config, rows.len())?;
        self.logits_on_device(backend, acts, rows, &mut buffers)?;
        let mut host = vec![B::Element::default(); rows.len() * self.config.vocab_size];
        backend.download(&mut host, &buffers.logits, 0)?;
        backend.sync()?;
        Ok(host)
    }

    /// The same, left in `buffers.logits`.
    pub(super) fn logits_on_device(
        &self,
        backend: &mut B,
        acts: &Activations<B>,
        rows: &[usize],
        buffers: &mut LogitBuffers<B>,
    ) -> Result<()> {
        let config = &self.config;
        let selected = acts.output_rows(rows);
        // Leading rows in their order need not be gathered.
        let mut x = &acts.final_norm;
        if !selected.iter().enumerate().all(|(i, &row)| row as usize == i) {
            let rows = backend.index(&selected)?;
            backend.gather_compute(GatherCompute { out: &mut buffers.x, x, rows: &rows, width: config.hidden_size });
            x = &buffers.x;
        }
        if let (Some(weight), Some(out)) = (&self.weights.project_out, &mut buffers.projected) {
            let dims = LinearDims { rows: rows.len(), input: config.hidden_size, output: config.embed_size };
            backend.linear_fwd(LinearFwd { out: &mut *out, x, weight, bias: None, dims });
            x = out;
        }
        let dims = LinearDims { rows: rows.len(), input: config.embed_size, output: config.vocab_size };
        let (logits, head, softcap) = (&mut buffers.logits, self.weights.head(), config.logit_softcap);
        backend.logits_fwd(LogitsFwd { logits, x, head, dims, softcap });
        Ok(())
    }

    /// The losses `[M]` of the label rows of the last forward, into `grads.losses`.
    ///
    /// # Panics
    /// If there are more labels than the scratch has room for, or the labels are of a pass with other output rows.
    pub fn loss(&self, backend: &mut B, acts: &Activations<B>, labels: &Labels<B>, grads: &mut Gradients<B>) {
        assert!(labels.count <= grads.labels, "loss: {} labels in scratch for {}", labels.count, grads.labels);
        let dims = self.label_rows(backend, acts, labels, grads);
        let x = grads.projected.as_ref().map_or(&grads.label_x, |p| &p.x);
        let (loss, head, targets) = (&mut grads.losses, self.weights.head(), &labels.targets);
        let softcap = self.config.logit_softcap;
        backend.cross_entropy_fwd(CrossEntropyFwd { loss, x, head, targets, dims, softcap });
    }

    /// Gathers what the head reads at the label rows.
    ///
    /// # Panics
    /// If the labels are of a pass with other output rows.
    fn label_rows(
        &self,
        backend: &mut B,
        acts: &Activations<B>,
        labels: &Labels<B>,
        grads: &mut Gradients<B>,
    ) -> LinearDims {
        let (rows, width, head) = (labels.count, self.config.hidden_size, self.config.embed_size);
        assert!(labels.outputs == acts.outputs, "labels: the forward had other output rows");
        let (out, x) = (&mut grads.label_x, &acts.final_norm);
        backend.gather_compute(GatherCompute { out, x, rows: &labels.rows, width });
        if let (Some(weight), Some(projected)) = (&self.weights.project_out, &mut grads.projected) {
            let dims = LinearDims { rows, input: width, output: head };
            let (out, x) = (&mut projected.x, &grads.label_x);
            backend.linear_fwd(LinearFwd { out, x, weight, bias: None, dims });
        }
        LinearDims { rows, input: head, output: self.config.vocab_size }
    }

    /// From the losses to the output rows of the last residual stream: `d_resid =`.
    pub(super) fn head_backward(
        &self,
        backend: &mut B,
        acts: &Activations<B>,
        grads: &mut Gradients<B>,
        labels: &Labels<B>,
        input: &Input<'_, B>,
        request: &mut GradientRequest<'_, B>,
    ) {
        let (width, rows) = (self.config.hidden_size, input.output_len());
        let edits = |backend: &mut B, d_x: &mut B::Acc| {
            if let Some(edits) = input.edits {
                let outputs = input.output_rows.is_some();
                edits.backward(backend, (Site::FINAL_NORM, 0), outputs, TensorMut::Acc(d_x), width);
            }
        };
        self.loss_backward(backend, acts, grads, labels, request);
        backend.zero(Zero { x: &mut grads.d_resid });
        let (d_out, indices) = (&grads.d_label_x, &labels.rows);
        match &self.weights.final_norm {
            Some(norm) => {
                backend.zero(Zero { x: &mut grads.d_norm });
                backend.scatter_add(ScatterAdd { d_x: &mut grads.d_norm, d_out, rows: indices, width });
                edits(backend, &mut grads.d_norm);
                let d_params = request.weight(ParamId::Norm(NormAt::Final));
                let x = &acts.resid[acts.resid_slot(self.config.num_hidden_layers)];
                let (d_x, d_out, stats) = (&mut grads.d_resid, &grads.d_norm, &acts.final_stats);
                norm::backward(backend, &self.config, NormBwd { d_x, d_params, d_out, x, stats, norm, rows });
            }
            None => {
                backend.scatter_add(ScatterAdd { d_x: &mut grads.d_resid, d_out, rows: indices, width });
                edits(backend, &mut grads.d_resid);
            }
        }
    }

    /// From the losses to the final norm's output at the label rows.
    fn loss_backward(
        &self,
        backend: &mut B,
        acts: &Activations<B>,
        grads: &mut Gradients<B>,
        labels: &Labels<B>,
        request: &mut GradientRequest<'_, B>,
    ) {
        let dims = self.label_rows(backend, acts, labels, grads);
        let (d_x, x) = match &mut grads.projected {
            Some(projected) => (&mut projected.d_x, &projected.x),
            None => (&mut grads.d_label_x, &grads.label_x),
        };
        backend.cross_entropy_bwd(CrossEntropyBwd {
            loss: &mut grads.losses,
            d_x,
            d_head: request.weight(if self.config.tie_word_embeddings { ParamId::Embed } else { ParamId::Head }),
            x,
            head: self.weights.head(),
            targets: &labels.targets,
            row_weights: &labels.weights,
            dims,
            softcap: self.config.logit_softcap,
        });
        if let (Some(weight), Some(projected)) = (&self.weights.project_out, &mut grads.projected) {
            let (out, x) = (&mut projected.d_x_compute, &projected.d_x);
            backend.cast(Cast { out, x, len: dims.rows * dims.input });
            let dims = LinearDims { rows: dims.rows, input: self.config.hidden_size, output: dims.input };
            let (d_x, d_out) = (&mut grads.d_label_x, &projected.d_x_compute);
            backend.linear_bwd_input(LinearBwdInput { d_x, d_out, weight, dims, accumulate: false });
            if let Some((d_weight, offset)) = request.weight(ParamId::ProjectOut) {
                backend.linear_bwd_weight(LinearBwdWeight { d_weight, offset, d_out, x: &grads.label_x, dims });
            }
        }
    }
}
