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

use super::config::Family;
use crate::{Error, Result};

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
    /// Queries, keys and values as one module of the checkpoint: one A for the three, and their Bs one below another.
    Qkv,
}

impl Target {
    /// The single projections, in the order of a block.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// The projections that a module consists of.
    pub const fn parts(self) -> &'static [Self] {
        match self {
            Self::Q => &[Self::Q],
            Self::K => &[Self::K],
            Self::V => &[Self::V],
            Self::O => &[Self::O],
            Self::Gate => &[Self::Gate],
            Self::Up => &[Self::Up],
            Self::Down => &[Self::Down],
            Self::Qkv => &[Self::Q, Self::K, Self::V],
        }
    }

    /// The name of the projection in the names of hooks, the same for every family: that of LLaMA's checkpoints.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::O => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
            Self::Qkv => "qkv_proj",
        }
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
            Self::Qkv => (c, q + 2 * kv),
        }
    }
}

impl Family {
    /// The modules of a block that an adapter can change, in the order of a block.
    pub const fn modules(self) -> &'static [Target] {
        match self {
            Self::Llama | Self::Mistral | Self::Qwen2 => &Target::ALL,
            Self::Opt => &[Target::Q, Target::K, Target::V, Target::O, Target::Up, Target::Down],
            Self::Gpt2 | Self::Bloom => &[Target::Qkv, Target::O, Target::Up, Target::Down],
        }
    }

    /// The modules that PEFT adapts where nobody says which.
    pub const fn default_modules(self) -> &'static [Target] {
        match self {
            Self::Llama | Self::Mistral | Self::Qwen2 | Self::Opt => &[Target::Q, Target::V],
            Self::Gpt2 | Self::Bloom => &[Target::Qkv],
        }
    }

    /// The module that holds a projection, without its layer's path: `attn.c_attn`.
    pub fn module(self, target: Target) -> &'static str {
        let [qkv, q, k, v, o, gate, up, down] = match self {
            Self::Llama | Self::Mistral | Self::Qwen2 => [
                "",
                "self_attn.q_proj",
                "self_attn.k_proj",
                "self_attn.v_proj",
                "self_attn.o_proj",
                "mlp.gate_proj",
                "mlp.up_proj",
                "mlp.down_proj",
            ],
            Self::Gpt2 => [
                "attn.c_attn",
                "attn.c_attn",
                "attn.c_attn",
                "attn.c_attn",
                "attn.c_proj",
                "",
                "mlp.c_fc",
                "mlp.c_proj",
            ],
            Self::Opt => {
                ["", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "", "fc1", "fc2"]
            }
            Self::Bloom => {
                let fused = "self_attention.query_key_value";
                let o = "self_attention.dense";
                [fused, fused, fused, fused, o, "", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"]
            }
        };
        match target {
            Target::Qkv => qkv,
            Target::Q => q,
            Target::K => k,
            Target::V => v,
            Target::O => o,
            Target::Gate => gate,
            Target::Up => up,
            Target::Down => down,
        }
    }

    /// The path of the module that holds a projection: `model.layers.3.self_attn.q_proj`.
    pub fn path(self, layer: usize, target: Target) -> String {
        let layers = match self {
            Self::Llama | Self::Mistral | Self::Qwen2 => "model.layers",
            Self::Gpt2 | Self::Bloom => "transformer.h",
            Self::Opt => "model.decoder.layers",
        };
        format!("{layers}.{layer}.{}", self.module(target))
    }

    /// The shortest name that means this module and no other of the family's: its last part, or more where several
    /// modules end alike.
    pub fn short_name(self, target: Target) -> &'static str {
        let path = self.module(target);
        let last = |path: &'static str| path.rsplit('.').next().unwrap_or(path);
        let alike = self.modules().iter().filter(|&&other| last(self.module(other)) == last(path)).count();
        if alike > 1 { path } else { last(path) }
    }

    /// The names of all modules, as people choose from them.
    pub fn module_names(self) -> String {
        self.modules().iter().map(|&target| self.short_name(target)).collect::<Vec<_>>().join(", ")
    }

    /// The modules of some names, each of which may be the end of several modules' paths, as in PEFT.
    ///
    /// # Errors
    /// No name, or one that is not of a module.
    pub fn targets(self, names: &[String]) -> Result<Vec<Target>> {
        if names.is_empty() {
            return Err(Error::argument("--target-modules", format!("some of {}", self.module_names()), "none"));
        }
        let mut targets = Vec::new();
        for name in names {
            let named = |target: &&Target| {
                let rest = self.module(**target).strip_suffix(name.as_str());
                rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            };
            let before = targets.len();
            targets.extend(self.modules().iter().filter(named));
            if targets.len() == before {
                return Err(Error::unsupported("target module", name, self.module_names()));
            }
        }
        targets.dedup();
        Ok(targets)
    }

    /// The modules outside the blocks that names could mean: the head and the embedding table.
    pub(super) const fn outside(self) -> [&'static str; 2] {
        let table = match self {
            Self::Llama | Self::Mistral | Self::Qwen2 => "model.embed_tokens",
            Self::Gpt2 => "transformer.wte",
            Self::Opt => "model.decoder.embed_tokens",
            Self::Bloom => "transformer.word_embeddings",
        };
        ["lm_head", table]
    }
}

/// One adapted projection.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraModule {
    /// Layer.
    pub layer: usize,
    /// Module.
    pub target: Target,
    /// Rank R.
    pub r: usize,
    /// Multiplier of `B A x`.
    pub scale: f64,
    /// A `[R, input]`.
    pub a: Vec<f32>,
    /// B `[output, R]`; of fused queries, keys and values those of all queries come first, then of all keys.
    pub b: Vec<f32>,
}

/// A LoRA adapter: read with [`LoraAdapter::read`], written with [`LoraAdapter::write`].
#[derive(Clone, Debug, PartialEq)]
pub struct LoraAdapter {
    /// Settings.
    pub config: LoraConfig,
    /// The base model's family, which names the modules.
    pub family: Family,
    /// Width of the base model's heads, by which some files order fused rows.
    pub head_dim: usize,
    /// Modules, by layer, then in the family's order.
    pub modules: Vec<LoraModule>,
}
