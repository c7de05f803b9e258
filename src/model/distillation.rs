//! Losses towards a teacher: of states at chosen hooks, and of the distributions of the next token.
//!
//! The teacher is the base model on other rows of the same pass, or what a file has of it. Its rows have no adapter and no
//! gradient: the backward goes through a pack without them. Losses of states, and their gradients, are made where a tap
//! sees the tensor ([`StateTaps`]); the gradient is added when the backward comes by the same point.
//!
//! | part | loss of a row |
//! |---|---|
//! | states | sum over the hooks of the mean of `(x - t)^2` over the width, as IA2 has it (Mishra et al., arXiv 2509.22621) |
//! | distributions | `T^2 KL(softmax(t / T) \|\| softmax(x / T))` (Hinton et al., arXiv 1503.02531; Snell et al., arXiv 2209.15189) |

use super::activations::{counted, some};
use super::logit_buffers::LogitBuffers;
use super::output_rows::{OutputRows, logit_rows, output_row};
use crate::arch::ModelConfig;
use crate::backend::ops::{GatherAcc, GatherCompute, ScatterAdd, ScatterAddCompute, StateLoss, Widen, Zero};
use crate::backend::{AccElement, Backend, Tensor, TensorMut};
use crate::hooks::{Selection, Site, Tapped, Taps};
use crate::{Error, Result};

impl ModelConfig {
    /// Refuses hooks whose states cannot be tuned towards a teacher's: what no gradient comes to, or adapters do not change.
    ///
    /// # Errors
    /// `sites`: such a hook.
    pub fn check_tuned(&self, selection: &Selection) -> Result<()> {
        let tuned = |site: Site| site.is_editable() && site != Site::Embed && self.has(site);
        match selection.hooks.iter().find(|(site, _)| !tuned(*site)) {
            None => Ok(()),
            Some(&(site, layer)) => {
                let names: Vec<String> = Site::all().into_iter().filter(|&site| tuned(site)).map(Site::local).collect();
                Err(Error::argument("sites", format!("of {}", names.join(", ")), site.name(layer)))
            }
        }
    }
}

/// Where the teacher of a pass is.
#[derive(Clone, Copy, Debug)]
pub enum Teacher<'a> {
    /// In these rows of the pack, one for each label row.
    Rows(&'a [u32]),
    /// On the host: rows of the states of each hook, in the order of the selection, and of logits.
    Table {
        /// The rows of the tables, one for each label row.
        rows: &'a [u32],
        /// Of each hook `[_, width]`.
        states: &'a [Vec<f32>],
        /// `[_, V]`.
        logits: &'a [f32],
    },
}

/// The label rows of a pass, and what its states and distributions are to become.
pub struct PassTeacher<'a, B: Backend> {
    /// Label rows M.
    pub count: usize,
    teacher: Teacher<'a>,
    /// `[M]` among all rows and, where only those come out, among the output rows.
    rows: [B::Index; 2],
    /// The teacher's, likewise.
    teacher_rows: Option<[B::Index; 2]>,
    /// What each row's losses of states count, `[M]`.
    state_weights: B::Acc,
    /// What those of distributions count.
    pub(super) logit_weights: B::Acc,
    /// The rows by parts of which logits exist.
    pub(super) parts: Vec<Part<B>>,
}

/// Some of the label rows.
pub(super) struct Part<B: Backend> {
    /// The first.
    pub first: usize,
    pub count: usize,
    /// Output rows `[count]`.
    pub rows: B::Index,
    pub teacher: PartTeacher<B>,
}

/// Where the teacher's logits of a part come from.
pub(super) enum PartTeacher<B: Backend> {
    /// Output rows `[count]`.
    Rows(B::Index),
    /// They are there, `[count, V]`.
    Logits(B::Acc),
}

/// The rows of a pass that are tuned towards a teacher.
#[derive(Clone, Copy, Debug)]
pub struct TunedRows<'w> {
    /// Rows of the pack, one for each label; a row may stand several times.
    pub rows: &'w [u32],
    /// What each row's losses of states count in the total.
    pub state_weights: &'w [f64],
    /// What each row's loss of distributions counts.
    pub logit_weights: &'w [f64],
}

impl<'a, B: Backend> PassTeacher<'a, B> {
    /// The rows of a pass of which the rows `output` come out (none means all), the teacher's among them.
    ///
    /// # Errors
    /// If the device has no memory for their lists.
    ///
    /// # Panics
    /// If a row does not come out.
    pub fn new(
        backend: &mut B,
        config: &ModelConfig,
        output: Option<&OutputRows<B>>,
        teacher: Teacher<'a>,
        tuned: TunedRows<'_>,
    ) -> Result<Self> {
        let count = tuned.rows.len();
        let outputs = output.map(|output| &*output.rows);
        let narrow =
            |rows: &[u32]| -> Vec<u32> { rows.iter().map(|&row| output_row(outputs, row as usize) as u32).collect() };
        let lists = |backend: &mut B, rows: &[u32]| -> Result<[B::Index; 2]> {
            Ok([backend.index(rows)?, backend.index(&narrow(rows))?])
        };
        let in_pack = match teacher {
            Teacher::Rows(rows) => Some(rows),
            Teacher::Table { .. } => None,
        };
        let weights = |backend: &mut B, weights: &[f64]| -> Result<B::Acc> {
            assert!(weights.len() == count, "teacher: {} weights of {count} rows", weights.len());
            let mut buffer = backend.acc(count)?;
            let host: Vec<B::Element> = weights.iter().map(|&w| B::Element::from_f64(w)).collect();
            backend.upload(&mut buffer, 0, &host)?;
            Ok(buffer)
        };
        let rows = lists(backend, tuned.rows)?;
        let teacher_rows = in_pack.map(|rows| lists(backend, rows)).transpose()?;
        let (state_weights, logit_weights) =
            (weights(backend, tuned.state_weights)?, weights(backend, tuned.logit_weights)?);
        let mut parts = Vec::new();
        let step = if tuned.logit_weights.iter().any(|&weight| weight != 0.0) { logit_rows(config, count) } else { 0 };
        for first in (0..if step > 0 { count } else { 0 }).step_by(step.max(1)) {
            let part = first..count.min(first + step);
            let rows = backend.index(&narrow(&tuned.rows[part.clone()]))?;
            let of_part = match teacher {
                Teacher::Rows(rows) => PartTeacher::Rows(backend.index(&narrow(&rows[part.clone()]))?),
                Teacher::Table { rows, logits, .. } => {
                    let mut buffer = backend.acc(part.len() * config.vocab_size)?;
                    upload(backend, &mut buffer, logits, &rows[part.clone()], config.vocab_size)?;
                    PartTeacher::Logits(buffer)
                }
            };
            parts.push(Part { first, count: part.len(), rows, teacher: of_part });
        }
        Ok(Self { count, teacher, rows, teacher_rows, state_weights, logit_weights, parts })
    }

    /// Bytes of a table's logits on the device, of a pass of up to `labels` label rows; `sizes` as in
    /// [`Planning::element_sizes`](crate::backend::Planning::element_sizes).
    pub fn table_bytes(config: &ModelConfig, labels: usize, sizes: (usize, usize)) -> usize {
        labels * config.vocab_size * sizes.0
    }
}

/// The losses of the states of a pass, and their gradients.
pub struct StateLosses<B: Backend> {
    selection: Selection,
    /// Sums over the hooks, of the last pass `[M]`.
    pub losses: B::Acc,
    /// Gradients at each hook `[M, width]`.
    d_states: Vec<B::Acc>,
    /// Rows of the compute dtype `[M, widest]`.
    gathered: B::Compute,
    /// The rows' states `[M, widest]`, and the teacher's.
    states: [B::Acc; 2],
    /// Room for so many label rows.
    labels: usize,
}

impl<B: Backend> StateLosses<B> {
    /// Room for the losses of up to `labels` label rows at the hooks of `selection`.
    ///
    /// # Errors
    /// Hooks that cannot be tuned, see [`ModelConfig::check_tuned`]; a device out of memory.
    pub fn new(backend: &mut B, config: &ModelConfig, selection: Selection, labels: usize) -> Result<Self> {
        config.check_tuned(&selection)?;
        let widths = selection.hooks.iter().map(|&(site, _)| config.stored_width(site));
        let widest = widths.clone().max().unwrap_or(0);
        Ok(Self {
            losses: backend.acc(labels)?,
            d_states: widths.map(|width| backend.acc(labels * width)).collect::<Result<_>>()?,
            gathered: backend.compute(labels * widest)?,
            states: [backend.acc(labels * widest)?, backend.acc(labels * widest)?],
            selection,
            labels,
        })
    }

    /// Bytes of this room, without making it.
    pub fn bytes(config: &ModelConfig, selection: &Selection, labels: usize, sizes: (usize, usize)) -> usize {
        counted(sizes, |device| StateLosses::new(device, config, selection.clone(), labels))
    }

    /// A forward's taps that compute the losses of its states.
    ///
    /// # Panics
    /// If there are more label rows than there is room for.
    pub fn taps<'s>(&'s mut self, backend: &mut B, pass: &'s PassTeacher<'s, B>) -> StateTaps<'s, B> {
        assert!(pass.count <= self.labels, "state losses: {} labels in room for {}", pass.count, self.labels);
        backend.zero(Zero { x: &mut self.losses });
        StateTaps { losses: self, pass }
    }

    /// Adds the gradient of the losses at a hook to that of its states `[rows, width]`, whose rows are the output rows or all.
    pub(super) fn backward(
        &self,
        backend: &mut B,
        pass: &PassTeacher<'_, B>,
        (site, layer): (Site, usize),
        outputs: bool,
        d_x: TensorMut<'_, B>,
        width: usize,
    ) {
        let Some(hook) = self.selection.index(site, layer) else { return };
        let (d_out, rows) = (&self.d_states[hook], &pass.rows[usize::from(outputs)]);
        match d_x {
            TensorMut::Acc(d_x) => backend.scatter_add(ScatterAdd { d_x, d_out, rows, width }),
            TensorMut::Compute(d_x) => {
                backend.scatter_add_compute(ScatterAddCompute { d_x, d_out, rows, width });
            }
        }
    }
}

/// What computes the losses of states while a forward runs.
pub struct StateTaps<'s, B: Backend> {
    losses: &'s mut StateLosses<B>,
    pass: &'s PassTeacher<'s, B>,
}

impl<B: Backend> Taps<B> for StateTaps<'_, B> {
    fn wants(&self, site: Site, layer: usize) -> bool {
        self.losses.selection.contains(site, layer)
    }

    fn tap(&mut self, backend: &mut B, tapped: Tapped<'_, B>) -> Result<()> {
        let Some(hook) = self.losses.selection.index(tapped.site, tapped.layer) else { return Ok(()) };
        let (width, narrowed) = (tapped.width, usize::from(tapped.rows.is_some()));
        let StateLosses { losses, d_states, gathered, states: [x, target], .. } = &mut *self.losses;
        let pass = self.pass;
        let mut gather = |backend: &mut B, out: &mut B::Acc, rows: &B::Index| match tapped.data {
            Tensor::Acc(x) => backend.gather_acc(GatherAcc { out, x, rows, width }),
            Tensor::Compute(x) => {
                backend.gather_compute(GatherCompute { out: &mut *gathered, x, rows, width });
                backend.widen(Widen { out, x: gathered, len: pass.count * width });
            }
        };
        gather(backend, x, &pass.rows[narrowed]);
        match (&pass.teacher_rows, pass.teacher) {
            (Some(rows), _) => gather(backend, target, &rows[narrowed]),
            (None, Teacher::Table { rows, states, .. }) => upload(backend, target, &states[hook], rows, width)?,
            (None, Teacher::Rows(_)) => unreachable!("teacher: rows of a pack have their lists"),
        }
        backend.state_loss(StateLoss {
            loss: losses,
            d_x: &mut d_states[hook],
            x,
            target,
            row_weights: &pass.state_weights,
            rows: pass.count,
            width,
        });
        Ok(())
    }
}

/// `out [M, width] =` the rows `rows` of a table on the host.
fn upload<B: Backend>(backend: &mut B, out: &mut B::Acc, table: &[f32], rows: &[u32], width: usize) -> Result<()> {
    let row = |&row: &u32| &table[row as usize * width..][..width];
    let host: Vec<B::Element> = rows.iter().flat_map(row).map(|&x| B::Element::from_f64(f64::from(x))).collect();
    backend.upload(out, 0, &host)
}

/// Scratch of the losses of distributions, and the losses.
pub struct LogitLosses<B: Backend> {
    /// Of the last pass `[M]`.
    pub losses: B::Acc,
    pub(super) temperature: f64,
    /// Logits of a part's rows.
    pub(super) student: LogitBuffers<B>,
    /// `[part, V]`.
    pub(super) teacher: B::Acc,
    /// `[part, V]`.
    pub(super) d_logits: B::Compute,
    /// Of what the head reads `[part, E]`.
    pub(super) d_x: B::Acc,
    /// The same in the compute dtype, and the gradient `[part, C]` before the projection, where there is one.
    pub(super) projected: Option<(B::Compute, B::Acc)>,
}

impl<B: Backend> LogitLosses<B> {
    /// Room for the losses of up to `labels` label rows at a temperature.
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn new(backend: &mut B, config: &ModelConfig, temperature: f64, labels: usize) -> Result<Self> {
        let (rows, projects) = (logit_rows(config, labels), config.embed_size != config.hidden_size);
        let (logits, inputs) = (rows * config.vocab_size, rows * config.embed_size);
        let mut projected = || Ok((backend.compute(inputs)?, backend.acc(rows * config.hidden_size)?));
        let projected = some(projects, &mut projected)?;
        Ok(Self {
            losses: backend.acc(labels)?,
            temperature,
            student: LogitBuffers::new(backend, config, None, rows)?,
            teacher: backend.acc(logits)?,
            d_logits: backend.compute(logits)?,
            d_x: backend.acc(inputs)?,
            projected,
        })
    }

    /// Bytes of this room, without making it.
    pub fn bytes(config: &ModelConfig, labels: usize, sizes: (usize, usize)) -> usize {
        counted(sizes, |device| LogitLosses::new(device, config, 1.0, labels))
    }
}
