//! The tuning of an arm: an adapter per seed, all of them runs of the same passes.

use super::plan::Plan;
use super::{Phase, ProbeSettings, Progress};
use crate::Result;
use crate::backend::Backend;
use crate::model::{Adaptation, Layout, LoraShape, Model};
use crate::task::prompts::Lesson;
use crate::train::data::TrainSequence;
use crate::train::schedule::{Schedule, Warmup};
use crate::train::settings::{Length, RunSettings};
use crate::train::trainer::{Run, Trainer, TrainerOptions};
use crate::train::tuned::Tuned;

/// What the tuning leaves.
pub(super) struct Tuning<B: Backend> {
    /// The adapters, a run per seed.
    pub adaptation: Adaptation<B>,
    /// The losses of each seed, step by step.
    pub losses: Vec<Vec<f64>>,
    /// Tokens of all sequences of all steps.
    pub tokens: usize,
}

/// The LoRA with which each seed of the plan begins.
pub(super) fn lora<B: Backend>(
    backend: &mut B,
    model: &Model<B>,
    plan: &Plan,
    settings: &ProbeSettings,
) -> Result<Adaptation<B>> {
    let targets = settings.targets(model.config.family)?;
    let shape = LoraShape { rank: settings.r, alpha: settings.lora_alpha, rslora: false, targets };
    let mut adaptation = Adaptation::new(backend, Layout::lora(&model.config, &shape), plan.seeds.len())?;
    for (run, seed) in plan.seeds.iter().enumerate() {
        adaptation.init_run(backend, run, seed.seed)?;
    }
    Ok(adaptation)
}

/// Tunes an adapter for each seed of the plan on its lessons, from where `adaptation` is.
#[allow(clippy::too_many_arguments)]
pub(super) fn tune<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    adaptation: Adaptation<B>,
    plan: &Plan,
    lessons: &[&[Lesson]],
    settings: &ProbeSettings,
    phase: Phase,
    progress: &mut dyn FnMut(Progress),
) -> Result<Tuning<B>> {
    let mut losses = vec![Vec::new(); plan.seeds.len()];
    if settings.epochs == 0.0 {
        return Ok(Tuning { adaptation, losses, tokens: 0 });
    }
    let sequence = |lesson: &Lesson| TrainSequence { ids: lesson.input_ids.clone(), labels: lesson.labels.clone() };
    let runs = plan.seeds.iter().zip(lessons).map(|(seed, lessons)| Run {
        data: lessons.iter().map(sequence).collect(),
        settings: run_settings(settings, seed.seed, lessons.len()),
    });
    let options = TrainerOptions { row_budget: settings.rows, ..TrainerOptions::default() };
    let mut trainer = Trainer::new(backend, model, Tuned::Adapters(adaptation), runs.collect(), options)?;
    let total = trainer.total_steps() as usize;
    let mut tokens = 0;
    while !trainer.done() {
        let step = trainer.advance(backend, model, |_| false)?;
        for run in step.runs {
            losses[run.run].push(run.loss);
            tokens += run.tokens as usize;
        }
        progress(Progress { phase, done: step.step as usize, total });
    }
    match trainer.finish() {
        Tuned::Adapters(adaptation) => Ok(Tuning { adaptation, losses, tokens }),
        _ => unreachable!("probe: adapters were given to the trainer"),
    }
}

/// The trainer's settings for a seed with so many sequences.
pub(super) fn run_settings(settings: &ProbeSettings, seed: u64, sequences: usize) -> RunSettings {
    let batch_size = settings.batch_size.unwrap_or(sequences).min(sequences);
    RunSettings {
        seed,
        // With all demonstrations in every step their order means nothing.
        shuffle: batch_size < sequences,
        length: Length::Epochs(settings.epochs),
        batch_size,
        learning_rate: settings.learning_rate,
        schedule: Schedule::Constant,
        warmup: Warmup::Steps(0),
        weight_decay: settings.weight_decay,
        max_grad_norm: settings.max_grad_norm,
        ..RunSettings::default()
    }
}
