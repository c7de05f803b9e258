//! What a training minimizes: the cross-entropy of the labels, or distances to a teacher, or a weighted sum of all.
//!
//! | part | a label token's loss | weight |
//! |---|---|---|
//! | `ce` | cross-entropy of the token | [`Objective::ce`] |
//! | `activations` | sum over hooks of the mean over the width of `(x - t)^2`, x and t being the states that predict the token | [`Objective::activations`] |
//! | `logits` | `T^2 KL(softmax(t / T) \|\| softmax(x / T))` of the distributions of the token | [`Objective::logits`] |
//!
//! Each part is the mean over a step's label tokens, as the loss of a training without a teacher is. `activations` with the
//! outputs of attention in all layers is the loss of IA2 (Mishra et al., "IA2: Alignment with ICL Activations Improves
//! Supervised Fine-Tuning", arXiv 2509.22621: `mse_loss` of the outputs of `self_attn` times the number of layers; there the mean
//! is over an example's tokens first, here over all tokens of a step). `logits` is context distillation (Snell et al., arXiv
//! 2209.15189) with the temperature and the factor T^2 of Hinton et al. (arXiv 1503.02531).
//!
//! The teacher is frozen: the base model on each sequence with demonstrations before it, in the same pass, or a table of states
//! and logits that was captured before. Label tokens are those of the training data, which the teacher reads too; IA2 has the
//! teacher write them.

use std::sync::Arc;

use serde_json::{Value, json};

use super::data::{SequenceTeacher, TrainSequence};
use super::passes::Pass;
use crate::arch::ModelConfig;
use crate::backend::Backend;
use crate::hash;
use crate::hooks::Selection;
use crate::model::{OutputRows, PassTeacher, Teacher, TunedRows};
use crate::{Error, Result};

/// Rows of a teacher's states and logits that were computed before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TeacherTable {
    /// Of each hook of the objective, in the selection's order, `[rows, width]`.
    pub states: Vec<Vec<f32>>,
    /// `[rows, V]`; empty where no part needs them.
    pub logits: Vec<f32>,
}

impl TeacherTable {
    /// Rows that every one of its arrays has.
    fn rows(&self, selection: &Selection, config: &ModelConfig) -> usize {
        let widths = selection.hooks.iter().map(|&(site, _)| config.stored_width(site));
        let states = self.states.iter().zip(widths).map(|(states, width)| states.len() / width);
        let logits = (!self.logits.is_empty()).then_some(self.logits.len() / config.vocab_size);
        states.chain(logits).min().unwrap_or(0)
    }

    fn digest(&self) -> u64 {
        let all = self.states.iter().flatten().chain(&self.logits);
        hash::fnv1a(all.flat_map(|x| x.to_bits().to_le_bytes()))
    }
}

/// What a training towards a teacher minimizes, of all runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Objective {
    /// What the cross-entropy of the labels counts in the sum.
    pub ce: f64,
    /// What the distance of the states counts.
    pub activations: f64,
    /// What the divergence of the distributions counts.
    pub logits: f64,
    /// The hooks whose states are compared; none where `activations` is 0.
    pub selection: Selection,
    /// Temperature of the distributions.
    pub temperature: f64,
    /// The table that teachers of sequences count rows of; none where all read a context.
    pub table: Option<Arc<TeacherTable>>,
}

impl Objective {
    /// Checks every field's domain.
    ///
    /// # Errors
    /// [`Error::Argument`] with the field.
    pub fn validate(&self, config: &ModelConfig) -> Result<()> {
        for (name, weight) in [("ce", self.ce), ("activations", self.activations), ("logits", self.logits)] {
            if !(weight.is_finite() && weight >= 0.0) {
                return Err(Error::argument(format!("weight of {name}"), "a number from 0", weight));
            }
        }
        if self.activations == 0.0 && self.logits == 0.0 {
            let expected = "one above 0, beside that of ce, which needs no teacher";
            return Err(Error::argument("weights", expected, "zeros"));
        }
        if !(self.temperature.is_finite() && self.temperature > 0.0) {
            return Err(Error::argument("temperature", "a number above 0", self.temperature));
        }
        if (self.activations > 0.0) == self.selection.hooks.is_empty() {
            let expected = "hooks to compare the states of where these count, and only there";
            return Err(Error::argument("sites", expected, self.selection.hooks.len()));
        }
        config.check_tuned(&self.selection)
    }

    /// The weights of `ce`, `activations` and `logits`.
    pub(super) fn weights(&self) -> [f64; 3] {
        [self.ce, self.activations, self.logits]
    }

    /// What decides what it computes, but for the teachers of the sequences.
    pub(super) fn fingerprint(&self) -> Value {
        let hooks: Vec<String> = self.selection.hooks.iter().map(|(site, layer)| site.name(*layer)).collect();
        let [ce, activations, logits] = self.weights();
        json!({
            "ce": ce,
            "activations": activations,
            "logits": logits,
            "hooks": hooks,
            "temperature": self.temperature,
            "teacher": if self.table.is_some() { "captured" } else { "in context" },
            "table": self.table.as_ref().map(|table| format!("{:016x}", table.digest())),
        })
    }

    /// The teacher of a pass whose label rows have these shares in their runs' losses.
    pub(super) fn teacher<'a, B: Backend>(
        &'a self,
        backend: &mut B,
        config: &ModelConfig,
        output: Option<&OutputRows<B>>,
        pass: &'a Pass,
        shares: &[f64],
    ) -> Result<PassTeacher<'a, B>> {
        let scaled = |by: f64| shares.iter().map(|share| by * share).collect::<Vec<f64>>();
        let (of_states, of_logits) = (scaled(self.activations), scaled(self.logits));
        let rows = pass.teachers.as_slice();
        let teacher = match &self.table {
            None => Teacher::Rows(rows),
            Some(table) => Teacher::Table { rows, states: &table.states, logits: &table.logits },
        };
        let tuned = TunedRows { rows: &pass.rows, state_weights: &of_states, logit_weights: &of_logits };
        PassTeacher::new(backend, config, output, teacher, tuned)
    }

    /// Refuses sequences without a teacher of the kind that this has.
    pub(super) fn check_data(&self, of: &str, data: &[TrainSequence], config: &ModelConfig) -> Result<()> {
        let vocab = config.vocab_size as u32;
        for (i, sequence) in data.iter().enumerate() {
            let name = || format!("teacher of sequence {i} of {of}");
            match (&sequence.teacher, &self.table) {
                (None, _) => return Err(Error::argument(name(), "one, for an objective that has teachers", "none")),
                (Some(SequenceTeacher::Context { ids, .. }), None) => {
                    if let Some(id) = ids.iter().find(|&&id| id >= vocab) {
                        return Err(Error::argument(name(), format!("token ids below {vocab}"), id));
                    }
                }
                (Some(SequenceTeacher::Table(table_rows)), Some(table)) => {
                    let count = table.rows(&self.selection, config);
                    if let Some(row) = table_rows.iter().find(|&&row| row as usize >= count) {
                        return Err(Error::argument(name(), format!("rows of the table's {count}"), row));
                    }
                }
                (Some(_), table) => {
                    let expected = if table.is_some() { "rows of the table" } else { "a context" };
                    return Err(Error::argument(name(), expected, "the other"));
                }
            }
        }
        Ok(())
    }
}
