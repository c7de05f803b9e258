//! The operations, one file each: formula, source, shapes, and the one check of lengths for all devices.
//!
//! An operation's arguments are a struct with named fields, in this order: outputs, what is saved for the backward, inputs,
//! weights, dimensions, scalars. Its trait is what a device implements, in the file of the same name
//! (`backend/cpu/rms_norm.rs`, `backend/cuda/rms_norm.rs`, `kernels/rms_norm.cu`); [`Trace`](super::trace::Trace)
//! implements all of them here, since it does nothing but check and log.
//!
//! Letters: N rows of the pack, C residual width, E embedding width, H query heads, K key-value heads, D head width, F
//! feed-forward width, V vocabulary, R LoRA rank, P soft-prompt rows, M selected rows. Matrices are row-major and dense. A
//! buffer may be longer than its shape: an operation uses its leading elements. `=` and `+=` say whether an output is set or
//! added to.

mod activation;
mod adamw;
mod attention;
mod check;
mod cross_entropy;
mod distillation;
mod edit;
mod embed;
mod layer_norm;
mod linear;
mod lora;
mod position;
mod rms_norm;
mod rope;
mod rows;
mod scale;

pub use activation::{ActivationBwd, ActivationFwd, ActivationOps, GatedBwd, GatedFwd};
pub use adamw::{Adamw, AdamwOps, AdamwStep, CheckFinite, GradNorm, RefreshWeight};
pub use attention::{AttentionBwd, AttentionDims, AttentionFwd, AttentionOps, AttentionPattern, AttentionResult};
pub(super) use cross_entropy::chunks as logit_chunks;
pub use cross_entropy::{CrossEntropyBwd, CrossEntropyFwd, CrossEntropyOps, HeadGradient, LogitsFwd};
pub use distillation::{DistillationOps, KlLoss, StateLoss};
pub use edit::{EditBwd, EditFwd, EditMap, EditOps};
pub use embed::{EmbedBwdPrompt, EmbedBwdTable, EmbedFwd, EmbedOps, PromptSite};
pub use layer_norm::{LayerNormBwd, LayerNormBwdAffine, LayerNormFwd, LayerNormOps};
pub use linear::{LinearBwdBias, LinearBwdInput, LinearBwdWeight, LinearDims, LinearFwd, LinearOps};
pub use lora::{Dropout, LoraBwd, LoraDelta, LoraDeltaBwd, LoraFwd, LoraOps, LoraSite, RunRange};
pub use position::{PositionBwdTable, PositionFwd, PositionOps};
pub use rms_norm::{
    RmsNormBwd, RmsNormBwdWeight, RmsNormComputeBwd, RmsNormComputeBwdWeight, RmsNormComputeFwd, RmsNormFwd, RmsNormOps,
};
pub use rope::{RopeBwd, RopeFwd, RopeOps};
pub use rows::{
    Cast, GatherAcc, GatherCompute, KvAppend, ResidualFwd, RowOps, ScatterAdd, ScatterAddCompute, Widen, Zero,
};
pub use scale::{NormSite, ScaleBwd, ScaleDelta, ScaleFwd, ScaleOps, ScaleSite, WeightNorm};

pub use super::op::{Launch, LaunchKind, Op, Projected, ProjectedLora, Work};

/// Makes the trait of a file's operations and implements it for the null device.
macro_rules! operations {
    ($(#[$meta:meta])* $name:ident { $($method:ident($op:ident);)* }) => {
        $(#[$meta])*
        pub trait $name: $crate::backend::Buffers {
            $(#[doc = concat!("Does what [`", stringify!($op), "`] says.")]
            fn $method(&mut self, op: $op<'_, Self>);)*
        }

        impl $name for $crate::backend::trace::Trace {
            $(fn $method(&mut self, op: $op<'_, Self>) {
                self.record(&op);
            })*
        }
    };
}
use operations;
