//! The adapters that arms train: how they start, and how PEFT describes them. One run each, all of them in the same passes.

use crate::arch::ModelConfig;
use crate::backend::Backend;
use crate::formats::adapter::{AdapterConfig, LoraConfig, Modules, PromptConfig, PromptKind};
use crate::model::{Adaptation, Layout, LoraShape, Model, PromptStart};
use crate::{Error, Result};

/// What the runs of a training have in common.
#[derive(Clone, Copy, Debug)]
pub struct AdapterSettings<'a> {
    /// The base model, as it was named.
    pub base: &'a str,
    /// Rank of every adapted module, at least 1.
    pub r: usize,
    /// The adapter's output is multiplied by `lora_alpha / r`.
    pub lora_alpha: f64,
    /// Adapted modules, by the family's names.
    pub target_modules: &'a [String],
    /// Adapted layers; none means all.
    pub layers_to_transform: Option<&'a [usize]>,
}

/// One run of a training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdapterRun {
    /// Seed of the start.
    pub seed: u64,
    /// Rows of the soft prompt that is trained; none trains a LoRA, in all runs of a training alike.
    pub rows: Option<usize>,
}

impl AdapterSettings<'_> {
    /// What the runs begin with: LoRA as PEFT starts it, soft prompts as embeddings of random tokens.
    ///
    /// # Errors
    /// A target module that the family does not have, or a failure of the device.
    pub fn start<B: Backend>(&self, backend: &mut B, model: &Model<B>, runs: &[AdapterRun]) -> Result<Adaptation<B>> {
        let Some(rows) = runs.iter().map(|run| run.rows).collect::<Option<Vec<usize>>>() else {
            let (targets, depth) = (model.config.family.targets(self.target_modules)?, model.config.num_hidden_layers);
            if let Some(layer) = self.layers_to_transform.iter().copied().flatten().find(|&&layer| layer >= depth) {
                return Err(Error::argument("layers_to_transform", format!("layers below {depth}"), layer));
            }
            let layers = self.layers_to_transform.map(<[usize]>::to_vec);
            let shape = LoraShape { rank: self.r, alpha: self.lora_alpha, rslora: false, dora: false, layers, targets };
            let mut adaptation = Adaptation::new(backend, Layout::lora(&model.config, &shape), runs.len())?;
            for (index, run) in runs.iter().enumerate() {
                adaptation.init_run(backend, index, run.seed)?;
            }
            return Ok(adaptation);
        };
        let mut adaptation = Adaptation::zeros(backend, &model.config, PromptKind::PromptTuning, rows.clone())?;
        for (index, (run, rows)) in runs.iter().zip(rows).enumerate() {
            let start = PromptStart::SampleVocab.rows(backend, model, rows, run.seed)?;
            adaptation.set_prompt(backend, index, &start)?;
        }
        Ok(adaptation)
    }

    /// A run's adapter as PEFT describes it.
    pub fn config(&self, run: AdapterRun, model: &ModelConfig) -> AdapterConfig {
        let base_model_name_or_path = Some(self.base.to_string());
        match run.rows {
            Some(rows) => {
                let config = PromptConfig::new(PromptKind::PromptTuning, rows, model);
                AdapterConfig::Prompt(PromptConfig { base_model_name_or_path, ..config })
            }
            None => {
                let modules = Modules::List(self.target_modules.to_vec());
                let config = LoraConfig::new(self.r, self.lora_alpha, modules);
                let layers_to_transform = self.layers_to_transform.map(<[usize]>::to_vec);
                AdapterConfig::Lora(LoraConfig { base_model_name_or_path, layers_to_transform, ..config })
            }
        }
    }
}
