//! Evaluation of runs by what they write: held-out prompts are continued, and metrics judge the continuations.

use std::sync::Arc;

use serde_json::{Value, json};

use super::trainable::Trainable;
use crate::Result;
use crate::arch::ModelConfig;
use crate::backend::Backend;
use crate::hash;
use crate::model::generate::decoder_bytes;
use crate::model::sampling::Ends;
use crate::model::{GenerationConfig, Prompt};

/// The scores of continuations `[prompts]`, one for each metric.
pub type Judge = Arc<dyn Fn(&[Vec<u32>]) -> Result<Vec<f64>> + Send + Sync>;

/// Whether new tokens end a continuation.
pub type Stop = Arc<dyn Fn(&[u32]) -> bool + Send + Sync>;

/// What runs write, and how it is judged.
#[derive(Clone)]
pub struct GenerationEval {
    /// Token ids of the prompts, the same for every run.
    pub prompts: Vec<Vec<u32>>,
    /// New tokens at most.
    pub max_new_tokens: usize,
    /// Tokens that end a continuation.
    pub stop: Vec<u32>,
    /// What else ends one, if anything does.
    pub ends: Option<Stop>,
    /// As in [`GenerationConfig`].
    pub repetition_penalty: f64,
    /// As in [`GenerationConfig`].
    pub min_new_tokens: usize,
    /// As in [`GenerationConfig`].
    pub min_length: usize,
    /// Names of the metrics.
    pub metrics: Vec<String>,
    /// Their values.
    pub judge: Judge,
    /// What decides the values beside the prompts.
    pub identity: Value,
}

impl GenerationEval {
    /// What a continuation of a training must share.
    pub(super) fn fingerprint(&self) -> Value {
        let words = self.prompts.iter().flat_map(|ids| ids.iter().map(|&id| u64::from(id)).chain([u64::MAX]));
        let prompts = format!("{:016x}", hash::fnv1a(words.flat_map(u64::to_le_bytes)));
        json!({ "prompts": prompts, "metrics": self.metrics, "identity": self.identity })
    }

    /// What `generation_config.json` of the model says of it.
    pub fn of_model(&self) -> Value {
        json!({
            "stop": self.stop,
            "repetition_penalty": self.repetition_penalty,
            "min_new_tokens": self.min_new_tokens,
            "min_length": self.min_length,
        })
    }

    /// How the prompts are continued: greedily.
    pub(super) fn generation(&self) -> GenerationConfig<'_> {
        GenerationConfig {
            stop: self.stop.clone(),
            ends: self.ends.as_deref().map(|ends| ends as &Ends<'_>),
            repetition_penalty: self.repetition_penalty,
            min_new_tokens: self.min_new_tokens,
            min_length: self.min_length,
            ..GenerationConfig::greedy(self.max_new_tokens)
        }
    }

    /// The prompts of some runs, one run after another.
    pub(super) fn prompts(&self, runs: &[usize], adapted: bool) -> Vec<Prompt> {
        let of_run =
            |&run: &usize| self.prompts.iter().map(move |ids| Prompt { ids: ids.clone(), run: adapted.then_some(run) });
        runs.iter().flat_map(of_run).collect()
    }

    /// Refuses what the model cannot continue.
    ///
    /// # Errors
    /// See [`GenerationConfig::validate`] and [`ModelConfig::check_prompts`].
    pub(super) fn check<B: Backend>(&self, config: &ModelConfig, trainable: &Trainable<B>) -> Result<()> {
        let generation = self.generation();
        generation.validate()?;
        config.check_prompts(&self.lengths(trainable), &generation)
    }

    /// Positions of the prompts of all runs, behind their soft prompts.
    fn lengths<B: Backend>(&self, trainable: &Trainable<B>) -> Vec<usize> {
        let runs: Vec<usize> = (0..trainable.shape().0).collect();
        let prompts = self.prompts(&runs, trainable.adaptation().is_some());
        let soft = |run| trainable.adaptation().map_or(0, |adaptation| adaptation.prompts[run]);
        prompts.iter().map(|prompt| prompt.run.map_or(0, soft) + prompt.ids.len()).collect()
    }

    /// Bytes at most that the continuations take while they are made, and rows of the largest pass.
    pub(super) fn bytes<B: Backend>(
        &self,
        config: &ModelConfig,
        trainable: &Trainable<B>,
        element_sizes: (usize, usize),
    ) -> (usize, usize) {
        decoder_bytes(config, trainable.layout(), &self.lengths(trainable), &self.generation(), element_sizes)
    }
}
