//! The head: final norm, logits and losses of a pass, and the way back from the losses to the last residual stream.

use std::sync::Arc;

use super::Model;
use super::activations::Activations;
use super::distillation::{LogitLosses, Part, PartTeacher, PassTeacher};
use super::gradients::{GradientRequest, Gradients};
use super::input::Input;
use super::layout::Layout;
use super::logit_buffers::LogitBuffers;
use super::norm::{self, NormBwd, Normed};
use super::output_rows::{OutputRows, output_row};
use super::param_id::{NormAt, ParamId};
use super::tables::HeadLabels;
use super::taps::PassTaps;
use crate::Result;
use crate::arch::ModelConfig;
use crate::backend::ops::{
    Cast, CrossEntropyBwd, CrossEntropyFwd, GatherCompute, KlLoss, LinearBwdInput, LinearBwdWeight, LinearDims,
    LinearFwd, LogitsFwd, ScatterAdd, Zero,
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
    /// Where the head is adapted.
    head: Option<HeadLabels<B>>,
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
        let (rows, targets) = (backend.index(&rows)?, backend.index(targets)?);
        Ok(Self { count, outputs, rows, targets, weights, head: None })
    }

    /// Label rows of a pass through adapters, which may adapt the head.
    ///
    /// # Errors
    /// As [`Labels::new`].
    ///
    /// # Panics
    /// As [`Labels::new`].
    pub fn of_pass(
        backend: &mut B,
        config: &ModelConfig,
        input: &Input<'_, B>,
        (rows, targets): (&[u32], &[u32]),
        weights: &[f64],
    ) -> Result<Self> {
        let labels = Self::new(backend, input.output_rows, rows, targets, weights)?;
        Ok(Self { head: HeadLabels::new(backend, config, input, rows, targets)?, ..labels })
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
            let layout = input.adaptation.map(|adaptation| &adaptation.layout);
            let mut buffers = LogitBuffers::new(backend, config, layout, rows.len())?;
            self.logits_on_device(backend, acts, Some(input), &rows, &mut buffers)?;
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
    /// If one of the rows is no output row of the forward; if its adapters adapt the head, see [`Model::logits_of`].
    pub fn logits(&self, backend: &mut B, acts: &Activations<B>, rows: &[usize]) -> Result<Vec<B::Element>> {
        self.read_logits(backend, acts, None, rows)
    }

    /// The same with the input of that forward, whose adapters may adapt the head.
    ///
    /// # Errors
    /// See [`Model::logits`].
    ///
    /// # Panics
    /// If one of the rows is no output row of the forward.
    pub fn logits_of(
        &self,
        backend: &mut B,
        acts: &Activations<B>,
        input: &Input<'_, B>,
        rows: &[usize],
    ) -> Result<Vec<B::Element>> {
        self.read_logits(backend, acts, Some(input), rows)
    }

    /// Bytes that the logits after `rows` rows take on the device while they are read; `element_sizes` as in
    /// [`Planning::element_sizes`](crate::backend::Planning::element_sizes).
    pub fn logits_bytes(
        config: &ModelConfig,
        layout: Option<&Layout>,
        rows: usize,
        element_sizes: (usize, usize),
    ) -> usize {
        LogitBuffers::<B>::bytes(config, layout, rows, element_sizes)
    }

    fn read_logits(
        &self,
        backend: &mut B,
        acts: &Activations<B>,
        input: Option<&Input<'_, B>>,
        rows: &[usize],
    ) -> Result<Vec<B::Element>> {
        self.config.require_head()?;
        let layout = input.and_then(|input| input.adaptation).map(|adaptation| &adaptation.layout);
        let mut buffers = LogitBuffers::new(backend, &self.config, layout, rows.len())?;
        self.logits_on_device(backend, acts, input, rows, &mut buffers)?;
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
        input: Option<&Input<'_, B>>,
        rows: &[usize],
        buffers: &mut LogitBuffers<B>,
    ) -> Result<()> {
        let config = &self.config;
        let adapted = input.filter(|input| input.adapts_head());
        assert!(acts.adapts_head == adapted.is_some(), "logits: the head is adapted, and how was not said");
        let selected = acts.output_rows(rows);
        // Leading rows in their order need not be gathered.
        let mut x = &acts.final_norm;
        let in_order = selected.iter().enumerate().all(|(i, &row)| row as usize == i);
        if !in_order {
            let rows = backend.index(&selected)?;
            backend.gather_compute(GatherCompute { out: &mut buffers.x, x, rows: &rows, width: config.hidden_size });
            x = &buffers.x;
        }
        self.head_logits(backend, x, buffers.projected.as_mut(), &mut buffers.logits, rows.len());
        let Some(input) = adapted else { return Ok(()) };
        let read = in_order.then_some(&acts.final_norm);
        self.adapt_row_logits(backend, input, rows, buffers, read)
    }

    /// `logits [rows, V]` of rows of the final norm's output `x [rows, C]`, by way of `projected [rows, E]`, where the head's
    /// width is another.
    pub(super) fn head_logits<'x>(
        &self,
        backend: &mut B,
        mut x: &'x B::Compute,
        projected: Option<&'x mut B::Compute>,
        logits: &mut B::Acc,
        rows: usize,
    ) {
        let config = &self.config;
        if let (Some(weight), Some(out)) = (&self.weights.project_out, projected) {
            let dims = LinearDims { rows, input: config.hidden_size, output: config.embed_size };
            backend.linear_fwd(LinearFwd { out: &mut *out, x, weight, bias: None, dims });
            x = out;
        }
        let dims = LinearDims { rows, input: config.embed_size, output: config.vocab_size };
        let (head, bias, softcap) = (self.weights.head(), self.weights.head_bias.as_ref(), config.logit_softcap);
        backend.logits_fwd(LogitsFwd { logits, x, head, bias, dims, softcap });
    }

    /// The losses `[M]` of the label rows of the last forward, into `grads.losses`.
    ///
    /// # Panics
    /// If there are more labels than the scratch has room for, or the labels are of a pass with other output rows.
    pub fn loss(&self, backend: &mut B, acts: &Activations<B>, labels: &Labels<B>, grads: &mut Gradients<B>) {
        assert!(labels.count <= grads.labels, "loss: {} labels in scratch for {}", labels.count, grads.labels);
        assert!(!acts.adapts_head, "loss: of an adapted head there is a backward alone");
        let dims = self.label_rows(backend, acts, labels, grads);
        let x = grads.projected.as_ref().map_or(&grads.label_x, |p| &p.x);
        let (loss, head, targets) = (&mut grads.losses, self.weights.head(), &labels.targets);
        let (bias, softcap) = (self.weights.head_bias.as_ref(), self.config.logit_softcap);
        backend.cross_entropy_fwd(CrossEntropyFwd { loss, x, head, bias, targets, dims, softcap });
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
        let normed = self.weights.final_norm.is_some();
        self.loss_backward(backend, acts, grads, labels, input, request);
        backend.zero(Zero { x: &mut grads.d_resid });
        if normed {
            backend.zero(Zero { x: &mut grads.d_norm });
        }
        let d_x = if normed { &mut grads.d_norm } else { &mut grads.d_resid };
        backend.scatter_add(ScatterAdd { d_x, d_out: &grads.d_label_x, rows: &labels.rows, width });
        if let Some((pass, _)) = input.teacher {
            self.distill(backend, acts, grads, pass);
        }
        let d_x = TensorMut::Acc(if normed { &mut grads.d_norm } else { &mut grads.d_resid });
        input.site_backward(backend, (Site::FINAL_NORM, 0), input.output_rows.is_some(), d_x, width);
        if let Some(norm) = &self.weights.final_norm {
            let d_params = request.weight(ParamId::Norm(NormAt::Final));
            let x = &acts.resid[acts.resid_slot(self.config.num_hidden_layers)];
            let (d_x, d_out, stats) = (&mut grads.d_resid, &mut grads.d_norm, &acts.final_stats);
            norm::backward(backend, &self.config, NormBwd { d_x, d_params, d_out, x, stats, norm, rows });
        }
    }

    /// The losses of distributions, into `grads.distillation`, and `+=` their gradient with respect to what the final norm put
    /// out, into its buffer.
    fn distill(&self, backend: &mut B, acts: &Activations<B>, grads: &mut Gradients<B>, pass: &PassTeacher<'_, B>) {
        let Gradients { distillation: Some(distillation), d_norm, d_resid, .. } = grads else { return };
        let d_out = if self.weights.final_norm.is_some() { d_norm } else { d_resid };
        let LogitLosses { losses, temperature, student, teacher, d_logits, d_x, projected } = distillation;
        let (config, x) = (&self.config, &acts.final_norm);
        let (width, vocab) = (config.hidden_size, config.vocab_size);
        for Part { first, count, rows: selected, teacher: of_part } in &pass.parts {
            let rows = *count;
            let teacher = match of_part {
                PartTeacher::Logits(logits) => logits,
                PartTeacher::Rows(rows) => {
                    backend.gather_compute(GatherCompute { out: &mut student.x, x, rows, width });
                    let LogitBuffers { x, projected, .. } = &mut *student;
                    self.head_logits(backend, x, projected.as_mut(), teacher, *count);
                    &*teacher
                }
            };
            backend.gather_compute(GatherCompute { out: &mut student.x, x, rows: selected, width });
            let LogitBuffers { x, projected: to_head, logits, .. } = &mut *student;
            self.head_logits(backend, x, to_head.as_mut(), logits, rows);
            backend.kl_loss(KlLoss {
                loss: losses,
                d_logits,
                logits,
                teacher,
                row_weights: &pass.logit_weights,
                from: *first,
                rows,
                vocab,
                temperature: *temperature,
                softcap: config.logit_softcap,
            });
            let dims = LinearDims { rows, input: config.embed_size, output: vocab };
            let weight = self.weights.head();
            backend.linear_bwd_input(LinearBwdInput { d_x, d_out: d_logits, weight, dims, accumulate: false });
            let of_rows = match (&self.weights.project_out, projected.as_mut()) {
                (Some(weight), Some((rounded, before))) => {
                    backend.cast(Cast { out: rounded, x: d_x, len: rows * config.embed_size });
                    let dims = LinearDims { rows, input: width, output: config.embed_size };
                    let (d_x, d_out) = (&mut *before, &*rounded);
                    backend.linear_bwd_input(LinearBwdInput { d_x, d_out, weight, dims, accumulate: false });
                    &*before
                }
                _ => &*d_x,
            };
            backend.scatter_add(ScatterAdd { d_x: &mut *d_out, d_out: of_rows, rows: selected, width });
        }
    }

    /// From the losses to the final norm's output at the label rows.
    fn loss_backward(
        &self,
        backend: &mut B,
        acts: &Activations<B>,
        grads: &mut Gradients<B>,
        labels: &Labels<B>,
        input: &Input<'_, B>,
        request: &mut GradientRequest<'_, B>,
    ) {
        let dims = self.label_rows(backend, acts, labels, grads);
        assert!(labels.head.is_some() == input.adapts_head(), "backward: the labels were made for another head");
        if let Some(head) = &labels.head {
            self.adapted_loss_backward(backend, grads, head, &labels.weights, input, request);
        } else {
            let (d_x, x) = match &mut grads.projected {
                Some(projected) => (&mut projected.d_x, &projected.x),
                None => (&mut grads.d_label_x, &grads.label_x),
            };
            backend.cross_entropy_bwd(CrossEntropyBwd {
                loss: &mut grads.losses,
                d_x,
                d_head: request.head(&self.config),
                x,
                head: self.weights.head(),
                bias: self.weights.head_bias.as_ref(),
                targets: &labels.targets,
                row_weights: &labels.weights,
                dims,
                softcap: self.config.logit_softcap,
            });
        }
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
