//! PEFT adapter directories: `adapter_config.json` and `adapter_model.safetensors`; LoRA and soft prompts.
//!
//! An adapted projection computes `W x + scale * B A x` with `scale = lora_alpha / r`, or `/ sqrt(r)` with
//! `use_rslora` (Hu et al., arXiv 2106.09685; Kalajdzievski, arXiv 2312.03732).
//!
//! PEFT loads many wrong adapters without a word: an extra tensor, a missing `r`, a feature it does not know. Here a
//! missing and an unexpected tensor are errors, and so is every field that asks for something this library does not
//! compute.

mod config;
mod directory;
mod prompt;

pub use config::{LoraConfig, Modules, Slot};
pub use directory::FILES;
pub use prompt::{EncoderShape, EncoderState, PromptAdapter, PromptConfig, PromptKind, Reparameterization};

/// An adapter of any kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Adapter {
    /// Low-rank updates of projections.
    Lora(LoraAdapter),
    /// Rows before every sequence.
    Prompt(PromptAdapter),
}

/// The settings of an adapter of any kind.
#[derive(Clone, Debug, PartialEq)]
pub enum AdapterConfig {
    /// Low-rank updates of projections.
    Lora(LoraConfig),
    /// Rows before every sequence.
    Prompt(PromptConfig),
}

/// A projection of a block that an adapter can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Output of the attention.
    O,
    /// Gate of the MLP.
    Gate,
    /// Up-projection of the MLP.
    Up,
    /// Down-projection of the MLP.
    Down,
}

impl Target {
    /// All, in the order of a block.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// The module's name in a checkpoint.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::O => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// The module's path in a checkpoint: `model.layers.3.self_attn.q_proj`.
    pub fn path(self, layer: usize) -> String {
        let part = match self {
            Self::Q | Self::K | Self::V | Self::O => "self_attn",
            Self::Gate | Self::Up | Self::Down => "mlp",
        };
        format!("model.layers.{layer}.{part}.{}", self.name())
    }

    /// Widths of the input and the output in a block of the given widths: residual stream C, queries H D, keys K D and
    /// feed-forward layer F.
    pub const fn widths(self, [c, q, kv, f]: [usize; 4]) -> (usize, usize) {
        match self {
            Self::Q => (c, q),
            Self::K | Self::V => (c, kv),
            Self::O => (q, c),
            Self::Gate | Self::Up => (c, f),
            Self::Down => (f, c),
        }
    }
}

/// One adapted projection.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraModule {
    /// Layer.
    pub layer: usize,
    /// Projection.
    pub target: Target,
    /// Rank R.
    pub r: usize,
    /// Multiplier of `B A x`.
    pub scale: f64,
    /// A `[R, input]`.
    pub a: Vec<f32>,
    /// B `[output, R]`.
    pub b: Vec<f32>,
}

/// A LoRA adapter: read with [`LoraAdapter::read`], written with [`LoraAdapter::write`].
#[derive(Clone, Debug, PartialEq)]
pub struct LoraAdapter {
    /// Settings.
    pub config: LoraConfig,
    /// Modules, by layer, then by target.
    pub modules: Vec<LoraModule>,
}
