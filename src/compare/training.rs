//! What the arms train: LoRA and soft prompts, all lengths and seeds of an arm as runs of the same passes.

use std::fmt;

use super::cells::Store;
use super::material::Material;
use super::{Arm, CompareSettings};
use crate::Result;
use crate::arch::ModelConfig;
use crate::backend::Backend;
use crate::formats::adapter::{Adapter, AdapterConfig, LoraConfig, Modules, PromptConfig, PromptKind};
use crate::model::{Adaptation, Layout, LoraShape, Model, PromptStart};
use crate::task::Task;
use crate::train::settings::RunSettings;
use crate::train::trainer::{Run, Trainer, TrainerOptions};
use crate::train::tuned::Tuned;

/// One training.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Training {
    /// The arm.
    pub arm: Arm,
    /// The task trained on.
    pub source: Task,
    /// Rows of the soft prompt.
    pub length: Option<usize>,
    /// The seed.
    pub seed: Option<u64>,
}

impl fmt::Display for Training {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.arm.name(), self.source)?;
        self.length.map_or(Ok(()), |length| write!(f, ".p{length}"))?;
        self.seed.map_or(Ok(()), |seed| write!(f, ".seed-{seed}"))
    }
}

/// Trains what is `missing` of an arm on a task, all of it in the same passes, and keeps it: the adapter as PEFT has
/// it, then the losses, whose file says that the training is done.
///
/// # Errors
/// A loss that is not finite, a failure of the device, or files that cannot be written.
pub fn train<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    base: Base,
    material: &Material,
    missing: &[&Training],
    settings: &CompareSettings,
    store: &Store,
) -> Result<()> {
    let arm = missing[0].arm;
    let lessons = material.lessons(arm)?;
    let configs: Vec<AdapterConfig> = missing.iter().map(|training| config(training, base, settings)).collect();
    let adaptation = start(backend, model, missing, settings)?;
    let runs = missing.iter().map(|training| Run {
        data: lessons.clone(),
        settings: RunSettings {
            seed: training.seed.unwrap_or(0),
            ..if arm.prompts() { settings.prompt_training.clone() } else { settings.lora_training.clone() }
        },
    });
    let options = TrainerOptions { row_budget: settings.rows, ..TrainerOptions::default() };
    let mut trainer = Trainer::new(backend, model, Tuned::Adapters(adaptation), runs.collect(), options)?;
    let mut losses = vec![Vec::new(); missing.len()];
    while !trainer.done() {
        trainer.step(backend, model)?.runs.iter().for_each(|run| losses[run.run].push(run.loss));
    }
    for (run, ((training, config), losses)) in missing.iter().zip(&configs).zip(&losses).enumerate() {
        trainer.adapter(backend, run, config)?.write(store.adapter(training))?;
        store.keep_losses(training, losses)?;
    }
    Ok(())
}

/// The model that adapters are for.
#[derive(Clone, Copy)]
pub struct Base<'a> {
    /// As it was named.
    pub name: &'a str,
    /// What it is.
    pub config: &'a ModelConfig,
}

/// The adapters of some trainings, a run each, as they were kept.
///
/// # Errors
/// Files that cannot be read, or a failure of the device.
pub fn load<B: Backend>(
    backend: &mut B,
    config: &ModelConfig,
    base: Base,
    trainings: &[&Training],
    store: &Store,
) -> Result<Adaptation<B>> {
    let read = |training: &&Training| Adapter::read(store.adapter(training), base.config);
    let mut loras = Vec::new();
    let mut prompts = Vec::new();
    for adapter in trainings.iter().map(read) {
        match adapter? {
            Adapter::Lora(lora) => loras.push(lora),
            Adapter::Prompt(prompt) => prompts.push(prompt),
        }
    }
    if prompts.is_empty() {
        return Adaptation::of_adapters(backend, config, &loras);
    }
    let rows = prompts.iter().map(|prompt| prompt.config.num_virtual_tokens).collect();
    let mut adaptation = Adaptation::zeros(backend, config, PromptKind::PromptTuning, rows)?;
    for (run, prompt) in prompts.iter().enumerate() {
        adaptation.set_prompt(backend, run, &prompt.rows)?;
    }
    Ok(adaptation)
}

/// What the trainings begin with: LoRA as PEFT starts it, prompts of rows of the vocabulary.
fn start<B: Backend>(
    backend: &mut B,
    model: &Model<B>,
    trainings: &[&Training],
    settings: &CompareSettings,
) -> Result<Adaptation<B>> {
    let seed = |training: &Training| training.seed.unwrap_or(0);
    if !trainings[0].arm.prompts() {
        let targets = model.config.family.targets(&settings.target_modules)?;
        let shape = LoraShape { rank: settings.r, alpha: settings.lora_alpha, rslora: false, targets };
        let mut adaptation = Adaptation::new(backend, Layout::lora(&model.config, &shape), trainings.len())?;
        for (run, training) in trainings.iter().enumerate() {
            adaptation.init_run(backend, run, seed(training))?;
        }
        return Ok(adaptation);
    }
    let rows: Vec<usize> = trainings.iter().map(|training| training.length.unwrap_or(0)).collect();
    let mut adaptation = Adaptation::zeros(backend, &model.config, PromptKind::PromptTuning, rows.clone())?;
    for (run, (training, rows)) in trainings.iter().zip(rows).enumerate() {
        let values = PromptStart::SampleVocab.rows(backend, model, rows, seed(training))?;
        adaptation.set_prompt(backend, run, &values)?;
    }
    Ok(adaptation)
}

fn config(training: &Training, base: Base, settings: &CompareSettings) -> AdapterConfig {
    let name = Some(base.name.to_string());
    match training.length {
        Some(rows) => {
            let config = PromptConfig::new(PromptKind::PromptTuning, rows, base.config);
            AdapterConfig::Prompt(PromptConfig { base_model_name_or_path: name, ..config })
        }
        None => {
            let modules = Modules::List(settings.target_modules.clone());
            let config = LoraConfig::new(settings.r, settings.lora_alpha, modules);
            AdapterConfig::Lora(LoraConfig { base_model_name_or_path: name, ..config })
        }
    }
}
