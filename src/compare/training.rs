//! What the arms train: LoRA and soft prompts, all lengths and seeds of an arm as runs of the same passes.

use super::cells::Store;
use super::inputs::Base;
use super::key::TrainingKey;
use super::settings::CompareSettings;
use super::task_data::TaskData;
use crate::backend::Backend;
use crate::formats::adapter::{Adapter, PromptKind};
use crate::model::{Adaptation, Model};
use crate::probe::tuning::{AdapterRun, AdapterSettings};
use crate::train::fit::{self, Tuning, Watch};
use crate::train::settings::RunSettings;
use crate::train::trainer::{Run, TrainerOptions};
use crate::{Error, Result};

/// Trains what is `missing` of an arm on a task, all of it in the same passes, and saves it: the adapter as PEFT has
/// it, then the losses, whose file says that the training is done.
///
/// # Errors
/// A loss that is not finite, a failure of the device, or files that cannot be written.
pub fn train<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    base: Base,
    data: &TaskData,
    missing: &[&TrainingKey],
    settings: &CompareSettings,
    store: &Store,
) -> Result<()> {
    let arm = missing[0].arm;
    let examples = data.training_examples(arm)?;
    let CompareSettings { r, lora_alpha, ref target_modules, .. } = *settings;
    let layers_to_transform = settings.layers_to_transform.as_deref();
    let adapters = AdapterSettings { base: base.name, r, lora_alpha, target_modules, layers_to_transform };
    let starts: Vec<AdapterRun> =
        missing.iter().map(|key| AdapterRun { seed: key.seed.unwrap_or(0), rows: key.length }).collect();
    let adaptation = adapters.start(backend, model, &starts)?;
    let run = |start: &AdapterRun| Run {
        data: examples.clone(),
        settings: RunSettings {
            seed: start.seed,
            ..if arm.has_soft_prompt() { settings.prompt_training.clone() } else { settings.lora_training.clone() }
        },
    };
    let options = TrainerOptions { row_budget: settings.rows, ..TrainerOptions::default() };
    let runs = starts.iter().map(run).collect();
    let watch = Watch { pauses: &|_| false, on_step: &mut |_, _, _, _| Ok(()) };
    let Tuning { adaptation, losses, .. } = fit::tune(backend, model, adaptation, (runs, None), options, watch)?;
    for (run, ((key, start), losses)) in missing.iter().zip(starts).zip(&losses).enumerate() {
        let config = adapters.config(start, base.config);
        adaptation.read_out(backend, run, &config)?.write(store.adapter(key))?;
        store.save_losses(key, losses)?;
    }
    Ok(())
}

/// The adapters of some trainings, a run each, as they were saved.
///
/// # Errors
/// Files that cannot be read, or a failure of the device.
pub fn load<B: Backend>(
    backend: &mut B,
    model: &Model<B>,
    base: Base,
    trainings: &[&TrainingKey],
    store: &Store,
) -> Result<Adaptation<B>> {
    let read = |training: &&TrainingKey| Adapter::read(store.adapter(training), base.config);
    let mut loras = Vec::new();
    let mut prompts = Vec::new();
    for adapter in trainings.iter().map(read) {
        match adapter? {
            Adapter::Lora(lora) => loras.push(lora),
            Adapter::Prompt(prompt) => prompts.push(prompt),
            Adapter::Ia3(_) => {
                return Err(Error::argument("adapter", "a LoRA or a soft prompt of this comparison", "an IA3"));
            }
        }
    }
    if prompts.is_empty() {
        return Adaptation::of_adapters(backend, model, &loras);
    }
    let rows = prompts.iter().map(|prompt| prompt.config.num_virtual_tokens).collect();
    let mut adaptation = Adaptation::zeros(backend, &model.config, PromptKind::PromptTuning, rows)?;
    for (run, prompt) in prompts.iter().enumerate() {
        adaptation.set_prompt(backend, run, &prompt.rows)?;
    }
    Ok(adaptation)
}
