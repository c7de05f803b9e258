//! The model: one forward and one backward for every family, generic over the backend.

use std::path::Path;

use self::param_id::ParamId;
use crate::Result;
use crate::arch::ModelConfig;
use crate::backend::Backend;
use crate::backend::trace::Trace;
use crate::formats::gguf::Gguf;
use crate::formats::gguf::model::GgufModel;
use crate::formats::prequantized;
use crate::formats::quantized::WeightView;
use crate::formats::safetensors::{Checkpoint, Loading};

pub mod activations;
pub mod adaptation;
mod attention;
mod backward;
mod block;
mod config;
pub mod decoder;
pub mod distillation;
pub mod edits;
mod embedding;
pub mod encoder;
mod forward;
pub mod full;
pub mod generate;
pub mod gradients;
pub mod head;
pub mod input;
mod installed;
pub mod kv_cache;
pub mod layout;
mod location;
mod logit_buffers;
pub mod lora_start;
pub mod merge;
mod mlp;
mod norm;
pub mod output_rows;
pub mod param_id;
pub mod prompt;
pub mod quantize;
mod reach;
mod rope;
mod rounded;
pub mod sampling;
pub mod saved_modules;
mod search;
mod table_buffers;
mod tables;
mod taps;
pub mod token_site;
mod tokens;
mod unembedding;
pub mod weights;

pub use activations::{Activations, Save};
pub use adaptation::Adaptation;
pub use decoder::{Decoder, DecoderSize};
pub use distillation::{LogitLosses, PassTeacher, StateLosses, Teacher, TunedRows};
pub use edits::{EditSet, PassEdits};
pub use encoder::Encoder;
pub use full::{FullTuning, WeightLayout};
pub use generate::Prompt;
pub use gradients::{GradientRequest, Gradients};
pub use head::Labels;
pub use input::{DropoutPlan, EmbedNoise, Input, Start, StartRows};
pub use kv_cache::{Cache, KvCache};
pub use layout::{Layout, LoraShape};
pub use output_rows::OutputRows;
pub use param_id::Source;
pub use prompt::PromptStart;
pub use sampling::{GenerationConfig, Sampling};
pub use unembedding::{Unembedding, inverse_scale};
pub use weights::Weights;

#[cfg(test)]
thread_local! {
    /// Models that were loaded on this thread.
    pub(crate) static LOADED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// A model on a device.
pub struct Model<B: Backend> {
    /// What it is.
    pub config: ModelConfig,
    /// Its weights.
    pub weights: Weights<B>,
}

impl<B: Backend> Model<B> {
    /// Loads a checkpoint directory (`config.json` and the weights beside it), or a GGUF file.
    ///
    /// # Errors
    /// A file that is missing or malformed, or weights that do not fit the configuration.
    pub fn load(backend: &mut B, path: &Path) -> Result<Self> {
        if Gguf::is_one(path) {
            let model = GgufModel::open(path, Loading::Mapped)?;
            return Self::new(backend, &model.config, &model.checkpoint);
        }
        let config = ModelConfig::load(path)?;
        let weights = ModelConfig::weights_file(path)?;
        let checkpoint = Checkpoint::open(weights.as_deref().unwrap_or(path))?;
        Self::new(backend, &config, &prequantized::quantized_model(path, checkpoint)?)
    }

    /// A model from an opened checkpoint, its architecture as the checkpoint completes `config` ([`Source::new`]).
    ///
    /// # Errors
    /// Weights that do not fit the configuration; a device out of memory.
    pub fn new(backend: &mut B, config: &ModelConfig, checkpoint: &Checkpoint) -> Result<Self> {
        let model = Self::for_states(backend, config, checkpoint)?;
        if model.config.lm_head {
            backend.expect_whole(model.weights.head());
        }
        Ok(model)
    }

    /// The same for passes of many rows that end before the head.
    ///
    /// # Errors
    /// As [`Model::new`].
    pub fn for_states(backend: &mut B, config: &ModelConfig, checkpoint: &Checkpoint) -> Result<Self> {
        let source = Source::new(config, checkpoint)?;
        let model = Self::of_views(backend, &source.config, source.weights())?;
        model.weights.before_head().for_each(|weight| backend.expect_whole(weight));
        Ok(model)
    }

    /// The same for passes of a few rows, as when text is generated: with quantised weights as they are fastest there, in memory of the
    /// device's own ([`Buffers::expect_few_rows`](crate::backend::Buffers::expect_few_rows)). The checkpoint lets go of those that are in
    /// memory and in no file, so that none is there twice. Products of many rows are as fast as otherwise. Not for a model that is trained, also
    /// where it writes to be evaluated: what goes back needs rows of a weight one by one, and the CPU decodes a whole group for each.
    ///
    /// # Errors
    /// As [`Model::new`].
    pub fn for_generation(backend: &mut B, config: &ModelConfig, checkpoint: &mut Checkpoint) -> Result<Self> {
        let source = Source::new(config, checkpoint)?;
        let (config, all) = (source.config.clone(), ParamId::all(&source.config));
        let places: Vec<_> = all.iter().map(|&id| source.location(id)).collect();
        let quantized = all.into_iter().map(|id| source.quantized(id)).collect::<Result<Vec<_>>>()?;
        checkpoint.release_quantized();
        let views = places.into_iter().zip(quantized).map(|(place, quantized)| match quantized {
            Some(view) => Ok(view.into()),
            None => place.weight(checkpoint),
        });
        backend.expect_few_rows(true);
        let model = Self::of_views(backend, &config, views);
        backend.expect_few_rows(false);
        model
    }

    fn of_views(
        backend: &mut B,
        config: &ModelConfig,
        views: impl Iterator<Item = Result<WeightView>>,
    ) -> Result<Self> {
        #[cfg(test)]
        LOADED.set(LOADED.get() + 1);
        Ok(Self { config: config.clone(), weights: Weights::load(backend, config, views)? })
    }
}

impl Model<Trace> {
    /// A model of weights that have lengths alone, and those that are quantised so many bytes.
    pub fn planned(device: &mut Trace, config: &ModelConfig, quantized: impl Fn(ParamId) -> Option<usize>) -> Self {
        let weight = |id: ParamId| device.null_weight(id.len(config), quantized(id));
        let weights = ParamId::all(config).into_iter().map(weight).collect();
        Self { config: config.clone(), weights: Weights::assemble(config, weights) }
    }
}
