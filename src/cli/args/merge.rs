//! `merge`.

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::common::{ModelArgs, NewModelArgs};
use crate::arch::Dtype;

/// The dtype of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SavedDtype {
    /// That of each tensor of the base model.
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl SavedDtype {
    /// The dtype, where one was chosen.
    pub const fn chosen(self) -> Option<Dtype> {
        match self {
            Self::Auto => None,
            Self::F32 => Some(Dtype::F32),
            Self::Bf16 => Some(Dtype::BF16),
            Self::F16 => Some(Dtype::F16),
        }
    }
}

/// `merge`.
#[derive(Debug, Args, Serialize)]
#[command(after_help = "\
Examples:
  llamaprobe merge --model DIR --adapter adapter --out merged
  llamaprobe merge --model org/name --adapter adapter --out merged --dtype f32

Every adapted weight becomes W + scale B A (DoRA: with its rows rescaled to the magnitudes; IA3:
with rows or columns multiplied), computed in f32 and rounded once. The directory has the base
model's configuration and tokenizer, and all its tensors, in one model.safetensors.")]
pub struct MergeArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelArgs,
    /// Dtype of the tensors.
    #[arg(long, value_enum, default_value = "auto", alias = "torch-dtype")]
    pub dtype: SavedDtype,
    #[command(flatten)]
    #[serde(flatten)]
    pub new: NewModelArgs,
}
