//! The model: one forward and one backward for every family, generic over the backend.

use std::path::Path;

use crate::Result;
use crate::backend::Backend;
use crate::formats::config::ModelConfig;
use crate::formats::safetensors::Checkpoint;

pub mod activations;
pub mod adaptation;
pub mod backward;
mod decode;
pub mod encoder;
pub mod forward;
pub mod full;
pub mod generate;
mod norm;
pub mod places;
pub mod prompt;
pub mod read;
pub mod spec;
pub mod weights;

pub use activations::{Activations, Keep};
pub use adaptation::{Adaptation, Layout, LoraShape};
pub use backward::{Gradients, Labels, Wanted};
pub use encoder::Encoder;
pub use forward::{Cache, DropoutPlan, Input};
pub use full::{FullTuning, WeightLayout};
pub use generate::{Generation, Prompt, Sampling};
pub use prompt::PromptStart;
pub use read::Read;
pub use spec::Spec;
pub use weights::Weights;

/// A model on a device.
pub struct Model<B: Backend> {
    /// What it is.
    pub spec: Spec,
    /// Its weights.
    pub weights: Weights<B>,
}

impl<B: Backend> Model<B> {
    /// Loads a checkpoint directory (`config.json` and the weights beside it).
    ///
    /// # Errors
    /// A file that is missing or malformed, or weights that do not fit the configuration.
    pub fn load(backend: &mut B, path: &Path) -> Result<Self> {
        let config = ModelConfig::load(path)?;
        Self::new(backend, &config, &Checkpoint::open(path)?)
    }

    /// A model from an opened checkpoint.
    ///
    /// # Errors
    /// Weights that do not fit the configuration; a device out of memory.
    pub fn new(backend: &mut B, config: &ModelConfig, checkpoint: &Checkpoint) -> Result<Self> {
        let spec = Spec::from_config(config);
        let weights = Weights::load(backend, &spec, checkpoint)?;
        Ok(Self { spec, weights })
    }
}
