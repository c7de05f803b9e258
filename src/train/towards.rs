//! A trainer with an objective towards a teacher.

use super::fill::room;
use super::objective::Objective;
use super::trainable::Trainable;
use super::trainer::{Run, Trainer, TrainerOptions, packing};
use crate::arch::ModelConfig;
use crate::backend::Backend;
use crate::model::{LogitLosses, Model, PassTeacher, StateLosses};
use crate::{Error, Result};

impl<B: Backend> Trainer<B> {
    /// With an objective towards the teachers that the sequences have.
    ///
    /// # Errors
    /// A field out of its domain; base weights that are trained, which are the teacher's too; a sequence without a teacher; a
    /// model that is not causal; states that no parameter of a run moves, where nothing else is minimized; a device out of
    /// memory.
    pub fn with_objective(mut self, backend: &mut B, model: &Model<B>, objective: Objective) -> Result<Self> {
        objective.validate(&model.config)?;
        if self.trainable.adaptation().is_none() {
            return Err(Error::argument("objective", "ce, where the model's own weights are trained", "a teacher"));
        }
        if self.trainable.layout().is_some_and(|layout| layout.saved_modules().is_some()) {
            let expected = "ce, where weights of the base model, which is the teacher, are replaced";
            return Err(Error::argument("objective", expected, "a teacher"));
        }
        if objective.logits > 0.0 && self.trainable.layout().is_some_and(|layout| layout.head().is_some()) {
            let expected = "ce or activations, where the head is adapted";
            return Err(Error::argument("objective", expected, "one of distributions"));
        }
        if !model.config.is_causal {
            return Err(Error::argument("objective", "ce, for a model that is not causal", "a teacher"));
        }
        if let Some(adaptation) = self.trainable.adaptation().filter(|_| objective.ce == 0.0 && objective.logits == 0.0)
        {
            let hooks = &objective.selection.hooks;
            let moved = |run: usize| hooks.iter().any(|&hook| adaptation.layout.moves(&model.config, run, hook));
            if let Some(run) = (0..self.runs.len()).find(|&run| !moved(run)) {
                let names: Vec<String> = hooks.iter().map(|(site, layer)| site.name(*layer)).collect();
                let of_run = if self.runs.len() > 1 { format!(" of run {run}") } else { String::new() };
                let expected = format!("a site that the adapter{of_run} moves: of or behind a module that it adapts");
                return Err(Error::argument("objective_sites", expected, names.join(", ")));
            }
        }
        for (run, state) in self.runs.iter().enumerate() {
            objective.check_data(&format!("run {run}"), &state.data, &model.config)?;
        }
        let labels = self.grads.label_rows();
        if objective.logits > 0.0 {
            let losses = LogitLosses::new(backend, &model.config, objective.temperature, labels)?;
            self.grads.distillation = Some(losses);
        }
        if objective.activations > 0.0 {
            let losses = StateLosses::new(backend, &model.config, objective.selection.clone(), labels)?;
            self.state_losses = Some(losses);
        }
        // Losses of lower layers' states, and teachers in the pass, have all layers computed.
        self.frozen = None;
        self.objective = Some(objective);
        Ok(self)
    }

    /// Bytes that an objective takes beside the training, and the readbacks of a step of it.
    ///
    /// # Errors
    /// Options out of their domain.
    pub fn objective_bytes(
        objective: &Objective,
        config: &ModelConfig,
        trainable: &Trainable<B>,
        runs: &[Run],
        options: TrainerOptions,
        sizes: (usize, usize),
    ) -> Result<(usize, Vec<usize>)> {
        let packing = packing(trainable, options, config.is_causal)?;
        let data = runs.iter().map(|run| (run.data.as_slice(), run.settings.batch_size));
        let labels = room::<B>(options.fill, packing.capacity(data).1);
        let (mut bytes, mut parts) = (0, 0);
        if objective.logits > 0.0 {
            bytes += LogitLosses::<B>::bytes(config, labels, sizes);
            if objective.table.is_some() {
                let passes = if B::RUNS_AHEAD { 2 } else { 1 };
                bytes += passes * PassTeacher::<B>::table_bytes(config, labels, sizes);
            }
            parts += 1;
        }
        if objective.activations > 0.0 {
            bytes += StateLosses::<B>::bytes(config, &objective.selection, labels, sizes);
            parts += 1;
        }
        // Of the step and of the one that is begun ahead.
        Ok((bytes, vec![labels * size_of::<f32>(); 2 * parts]))
    }
}
