//! The residual stream that enters the first adapted layer, kept from one epoch to the next.
//!
//! Nothing below that layer is trained, and what a row becomes there depends on its sequence's tokens alone, bit for bit. So a
//! sequence's rows are computed once; a pass of sequences that all are known begins at that layer. Runs share what their
//! sequences have in common, for below their adapters they are the base model.

use std::collections::HashMap;

use super::passes::{Packing, Pass};
use super::run::{Run, TrainerOptions};
use super::trainable::Trainable;
use crate::Result;
use crate::arch::ModelConfig;
use crate::backend::ops::{GatherAcc, ScatterAdd};
use crate::backend::{AccElement, Backend};
use crate::model::{Activations, Start, StartRows};

/// Which states are kept, and where.
#[derive(Clone, Debug)]
pub(super) struct FrozenPlan {
    /// The first adapted layer.
    layer: usize,
    /// Of each run, the distinct sequence that each sequence of its data is.
    distinct: Vec<Vec<usize>>,
    /// The first row of each distinct sequence; at the end, that of the next.
    first: Vec<usize>,
}

impl FrozenPlan {
    /// None where nothing is frozen below the adapters, where no sequence comes twice, where the states would take more memory than
    /// the activations of a pass of `rows` rows, or where a device computes other bits in a pass of another size.
    pub fn new<B: Backend>(
        config: &ModelConfig,
        trainable: &Trainable<B>,
        packing: &Packing,
        (runs, options): (&[Run], TrainerOptions),
        rows: usize,
    ) -> Option<Self> {
        let Trainable::Adapters(adaptation) = trainable else { return None };
        let layout = &adaptation.layout;
        let layer = layout.lowest().filter(|&layer| layer > 0)?;
        let alone = layout.prompt.is_none() && layout.prefix.is_none() && options.neftune_noise_alpha.is_none();
        let again = |run: &Run| {
            let settings = &run.settings;
            let steps = settings.total_steps(run.data.len());
            steps * (settings.batch_size * settings.accumulation) as u64 > run.data.len() as u64
        };
        if !B::ROW_INVARIANT || !options.keep_states || !alone || !runs.iter().any(again) {
            return None;
        }
        let mut known: HashMap<&[u32], usize> = HashMap::new();
        let mut first = vec![0];
        let mut distinct = Vec::with_capacity(runs.len());
        for (run, Run { data, .. }) in runs.iter().enumerate() {
            let mut of_run = Vec::with_capacity(data.len());
            for ids in data.iter().map(|sequence| packing.ids(run, sequence)) {
                of_run.push(*known.entry(ids).or_insert_with(|| {
                    first.push(first[first.len() - 1] + ids.len());
                    first.len() - 2
                }));
            }
            distinct.push(of_run);
        }
        let plan = Self { layer, distinct, first };
        let sizes = (size_of::<f32>(), size_of::<f32>());
        let activations = Activations::<B>::bytes(config, trainable.layout(), rows, options.save(), sizes);
        (plan.rows() * config.hidden_size * sizes.0 <= activations).then_some(plan)
    }

    fn rows(&self) -> usize {
        *self.first.last().expect("frozen states: the end is there")
    }

    /// Elements of the states, and of the room through which a pass of `rows` rows comes to them.
    pub fn elements(&self, config: &ModelConfig, rows: usize) -> usize {
        (self.rows() + rows) * config.hidden_size
    }
}

/// The states of the sequences that have been in a pass.
pub(super) struct FrozenStates<B: Backend> {
    plan: FrozenPlan,
    /// `[rows, C]`.
    states: B::Acc,
    /// Rows of a pass `[N, C]`.
    gathered: B::Acc,
    /// Whether a distinct sequence's states are there.
    known: Vec<bool>,
    width: usize,
}

impl<B: Backend> FrozenStates<B> {
    /// Room for the states of all sequences.
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn new(backend: &mut B, config: &ModelConfig, plan: FrozenPlan, rows: usize) -> Result<Self> {
        let width = config.hidden_size;
        let mut states = backend.acc(plan.rows() * width)?;
        // Rows are added to it: nothing but -0 leaves a -0 as it is.
        let zeros = vec![B::Element::from_f64(-0.0); rows.min(plan.rows()) * width];
        for first in (0..plan.rows()).step_by(rows) {
            backend.upload(&mut states, first * width, &zeros[..rows.min(plan.rows() - first) * width])?;
        }
        let known = vec![false; plan.first.len() - 1];
        Ok(Self { plan, states, gathered: backend.acc(rows * width)?, known, width })
    }

    /// For each row of a pass its row of the states, if all are there.
    pub fn rows(&self, pass: &Pass) -> Option<Vec<u32>> {
        let mut of_pack = vec![0; pass.pack.len()];
        for (run, sequence, rows) in &pass.sequences {
            let distinct = self.plan.distinct[*run][*sequence];
            if !self.known[distinct] {
                return None;
            }
            for (&row, state) in rows.iter().zip(self.plan.first[distinct]..) {
                of_pack[row as usize] = state as u32;
            }
        }
        Some(of_pack)
    }

    /// Where a forward of those rows begins.
    pub fn start<'a>(&'a self, rows: &'a B::Index) -> Start<'a, B> {
        Start { layer: self.plan.layer, resid: StartRows::Device { x: &self.states, rows } }
    }

    /// Keeps the states of the sequences of the last forward that are not yet there.
    ///
    /// # Errors
    /// If the device has no memory for the lists.
    pub fn keep(&mut self, backend: &mut B, acts: &Activations<B>, pass: &Pass) -> Result<()> {
        let (mut from, mut to, mut new) = (Vec::new(), Vec::new(), Vec::new());
        for (run, sequence, rows) in &pass.sequences {
            let distinct = self.plan.distinct[*run][*sequence];
            if self.known[distinct] || new.contains(&distinct) {
                continue;
            }
            new.push(distinct);
            from.extend(rows);
            to.extend((self.plan.first[distinct]..).take(rows.len()).map(|row| row as u32));
        }
        let (width, room) = (self.width, acts.rows);
        // Rows that sequences share in the pass are several here.
        for (from, to) in from.chunks(room).zip(to.chunks(room)) {
            let (from, to) = (&backend.index(from)?, &backend.index(to)?);
            let x = acts.stream(self.plan.layer);
            backend.gather_acc(GatherAcc { out: &mut self.gathered, x, rows: from, width });
            backend.scatter_add(ScatterAdd { d_x: &mut self.states, d_out: &self.gathered, rows: to, width });
        }
        new.into_iter().for_each(|distinct| self.known[distinct] = true);
        Ok(())
    }
}
