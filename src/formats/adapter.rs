//! PEFT adapter directories: `adapter_config.json` and `adapter_model.safetensors`; LoRA, IA3 and soft prompts.
//!
//! An adapted projection computes `W x + scale * B A x` with `scale = lora_alpha / r`, or `/ sqrt(r)` with
//! `use_rslora` (Hu et al., arXiv 2106.09685; Kalajdzievski, arXiv 2312.03732).
//!
//! PEFT loads many wrong adapters without a word: an extra tensor, a missing `r`. Here a missing and an unexpected tensor
//! are errors, and so is every field that asks for something that PEFT 0.21 computes and this library does not. What PEFT
//! passes over with a warning (a field of another release, an entry of `target_modules` that names nothing) is one here.

mod beside;
mod card;
mod config;
mod directory;
pub mod fields;
mod ia3;
mod modules;
mod names;
mod prompt;
mod selection;
mod tokens;
mod weights;

pub use beside::{BaseTable, SavedTensor, Table, TableLora, TableSlot};
pub use directory::{FILES, base_model, files, is_adapter};
pub use ia3::{Ia3Adapter, Ia3Config, Ia3Module};
pub use modules::{Module, ModuleKind};
pub use names::{missing_level, of_images, todays_name};
pub use prompt::{EncoderShape, EncoderState, PromptAdapter, PromptConfig, PromptKind, Reparameterization};
pub use selection::{InitLoraWeights, LoraConfig, Modules, Slot, Slots};
pub use tokens::TrainedTokens;
pub use weights::open as open_weights;

/// An adapter of any kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Adapter {
    /// Low-rank updates of projections.
    Lora(LoraAdapter),
    /// Vectors that multiply outputs and inputs of projections.
    Ia3(Ia3Adapter),
    /// Rows before every sequence.
    Prompt(PromptAdapter),
}

/// The settings of an adapter of any kind.
#[derive(Clone, Debug, PartialEq)]
pub enum AdapterConfig {
    /// Low-rank updates of projections.
    Lora(LoraConfig),
    /// Vectors that multiply outputs and inputs of projections.
    Ia3(Ia3Config),
    /// Rows before every sequence.
    Prompt(PromptConfig),
}

use crate::arch::{Family, ModelConfig, Projection};
use crate::{Error, Result};

impl Family {
    /// The modules of a block that an adapter can change, in the order of a block.
    pub const fn modules(self) -> &'static [Projection] {
        match self {
            Self::Phi3 => &[Projection::Qkv, Projection::O, Projection::GateUp, Projection::Down],
            Self::Opt | Self::Phi | Self::GptJ | Self::Starcoder2 => {
                &[Projection::Q, Projection::K, Projection::V, Projection::O, Projection::Up, Projection::Down]
            }
            Self::Gpt2 | Self::Bloom | Self::GptNeox => {
                &[Projection::Qkv, Projection::O, Projection::Up, Projection::Down]
            }
            _ => &Projection::ALL,
        }
    }

    /// Whether PEFT 0.21 knows which modules to adapt where nobody says which; for other families it stops.
    pub const fn has_peft_defaults(self) -> bool {
        !matches!(self, Self::Gemma3Images | Self::Olmo2 | Self::Olmo3 | Self::Phi3 | Self::SmolLm3 | Self::Starcoder2)
    }

    /// The modules that are adapted where nobody says which: those of PEFT, or where it has none
    /// ([`Family::has_peft_defaults`]) queries and values, or what they are fused into.
    pub const fn default_modules(self) -> &'static [Projection] {
        match self {
            Self::Gpt2 | Self::Bloom | Self::GptNeox | Self::Phi3 => &[Projection::Qkv],
            Self::Phi => &[Projection::Q, Projection::V, Projection::Up, Projection::Down],
            _ => &[Projection::Q, Projection::V],
        }
    }

    /// The modules that IA3 adapts where nobody says which, those of them whose input it multiplies among them, as in PEFT 0.21;
    /// none where PEFT stops.
    pub fn ia3_modules(self) -> Option<[&'static [Projection]; 2]> {
        const DOWN: &[Projection] = &[Projection::Down];
        match self {
            Self::Gpt2 | Self::Bloom | Self::GptNeox => Some([&[Projection::Qkv, Projection::Down], DOWN]),
            Self::Opt => Some([&[Projection::Q, Projection::K, Projection::Down], DOWN]),
            Self::Llama | Self::Mistral => Some([&[Projection::K, Projection::V, Projection::Down], DOWN]),
            Self::Qwen2 | Self::Qwen3 | Self::Gemma2 | Self::Gemma3 | Self::Phi | Self::GptJ => {
                Some([&[Projection::Q, Projection::V, Projection::Down], DOWN])
            }
            _ => None,
        }
    }

    /// The module that holds a projection, without its layer's path: `attn.c_attn`.
    pub fn module(self, target: Projection) -> &'static str {
        let [qkv, q, k, v, o, gate, up, down] = match self {
            Self::Phi3 => {
                let [qkv, both] = ["self_attn.qkv_proj", "mlp.gate_up_proj"];
                [qkv, qkv, qkv, qkv, "self_attn.o_proj", both, both, "mlp.down_proj"]
            }
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
            Self::Starcoder2 => [
                "",
                "self_attn.q_proj",
                "self_attn.k_proj",
                "self_attn.v_proj",
                "self_attn.o_proj",
                "",
                "mlp.c_fc",
                "mlp.c_proj",
            ],
            Self::GptJ => {
                ["", "attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.out_proj", "", "mlp.fc_in", "mlp.fc_out"]
            }
            Self::Phi => [
                "",
                "self_attn.q_proj",
                "self_attn.k_proj",
                "self_attn.v_proj",
                "self_attn.dense",
                "",
                "mlp.fc1",
                "mlp.fc2",
            ],
            Self::Bloom => {
                let fused = "self_attention.query_key_value";
                let o = "self_attention.dense";
                [fused, fused, fused, fused, o, "", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"]
            }
            Self::GptNeox => {
                let fused = "attention.query_key_value";
                [fused, fused, fused, fused, "attention.dense", "", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"]
            }
            _ => [
                "",
                "self_attn.q_proj",
                "self_attn.k_proj",
                "self_attn.v_proj",
                "self_attn.o_proj",
                "mlp.gate_proj",
                "mlp.up_proj",
                "mlp.down_proj",
            ],
        };
        match target {
            Projection::Qkv => qkv,
            Projection::Q => q,
            Projection::K => k,
            Projection::V => v,
            Projection::O => o,
            Projection::Gate | Projection::GateUp => gate,
            Projection::Up => up,
            Projection::Down => down,
        }
    }

    /// The path of the module that holds a projection: `model.layers.3.self_attn.q_proj`.
    pub fn path(self, layer: usize, target: Projection) -> String {
        format!("{}.{layer}.{}", self.layers_path(), self.module(target))
    }

    /// The path of the module that holds the layers.
    const fn layers_path(self) -> &'static str {
        match self {
            Self::Gpt2 | Self::Bloom | Self::GptJ => "transformer.h",
            Self::Opt => "model.decoder.layers",
            Self::GptNeox => "gpt_neox.layers",
            Self::Gemma3Images => "model.language_model.layers",
            _ => "model.layers",
        }
    }

    /// The shortest name that means this module and no other of the family's: its last part, or more where several
    /// modules end alike.
    pub fn short_name(self, target: Projection) -> &'static str {
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
    pub fn targets(self, names: &[String]) -> Result<Vec<Projection>> {
        if names.is_empty() {
            return Err(Error::argument("target_modules", format!("some of {}", self.module_names()), "none"));
        }
        let mut targets = Vec::new();
        for name in names {
            let named = |target: &&Projection| {
                let rest = self.module(**target).strip_suffix(name.as_str());
                rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            };
            let before = targets.len();
            targets.extend(self.modules().iter().filter(named));
            if targets.len() == before {
                return Err(Error::argument(
                    "target_modules",
                    format!("names of projections, as {}", self.module_names()),
                    name,
                ));
            }
        }
        targets.dedup();
        Ok(targets)
    }
}

/// One adapted projection: its A and B.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraModule {
    /// Index of the block, from 0.
    pub layer: usize,
    /// The projection, or fused projections, that it adapts.
    pub target: Projection,
    /// Rank R, at least 1.
    pub r: usize,
    /// Multiplier of `B A x`.
    pub scale: f64,
    /// A `[R, input]`.
    pub a: Vec<f32>,
    /// B `[output, R]`; of fused queries, keys and values those of all queries come first, then of all keys.
    pub b: Vec<f32>,
    /// Magnitudes of the rows of the adapted weight `[output]`, in the order of B's rows, of a DoRA (Liu et al., arXiv
    /// 2402.09353): `W` is in effect `magnitude / |W + scale B A| (W + scale B A)`, norms and products by row.
    pub magnitude: Option<Vec<f32>>,
}

/// A LoRA adapter: read with [`LoraAdapter::read`], written with [`LoraAdapter::write`].
#[derive(Clone, Debug, PartialEq)]
pub struct LoraAdapter {
    /// What `adapter_config.json` says.
    pub config: LoraConfig,
    /// The base model's family, which names the modules.
    pub family: Family,
    /// Width of the base model's heads, by which some files order fused rows.
    pub head_dim: usize,
    /// Modules, by layer, then in the family's order.
    pub modules: Vec<LoraModule>,
    /// The adapted tables of tokens: the embedding table, then the head.
    pub tables: Vec<TableLora>,
    /// Modules that are trained whole; of a head that is tied to such a table nothing.
    pub saved: Vec<SavedTensor>,
    /// Whether the head follows an embedding table among them, to which it is tied ([`LoraConfig::ties_head`]).
    pub ties_head: bool,
    /// Rows of the embedding table that are trained.
    pub tokens: Option<Box<TrainedTokens>>,
}

impl LoraAdapter {
    /// An adapter of modules of the model's blocks alone.
    pub fn new(config: LoraConfig, model: &ModelConfig, modules: Vec<LoraModule>) -> Self {
        let (family, head_dim) = (model.family, model.head_dim);
        let (tables, saved) = (Vec::new(), Vec::new());
        Self { config, family, head_dim, modules, tables, saved, ties_head: false, tokens: None }
    }

    /// What an adapter has learnt since it began at `start`, as one of twice the rank for the base model that was whole
    /// before: `B A - B0 A0 = [B, -B0] [A; A0]`. It is what PEFT saves with `path_initial_model_for_weight_conversion`.
    ///
    /// # Panics
    /// If the modules or their sizes are others.
    pub fn since(&self, start: &[LoraModule]) -> Self {
        assert!(start.len() == self.modules.len(), "since: {} of {} modules", start.len(), self.modules.len());
        assert!(self.tables.is_empty(), "since: a table of tokens has no start of this kind");
        let doubled = |(now, before): (&LoraModule, &LoraModule)| {
            assert!((now.a.len(), now.b.len()) == (before.a.len(), before.b.len()), "since: modules of two sizes");
            let rows = now.b.chunks_exact(now.r).zip(before.b.chunks_exact(now.r));
            let b = rows.flat_map(|(now, before)| now.iter().copied().chain(before.iter().map(|x| -x))).collect();
            LoraModule { r: 2 * now.r, a: [now.a.as_slice(), &before.a].concat(), b, magnitude: None, ..*now }
        };
        let modules = self.modules.iter().zip(start).map(doubled).collect();
        let config = LoraConfig { init_lora_weights: InitLoraWeights::True, ..self.config.doubled() };
        Self { config, modules, tables: Vec::new(), saved: self.saved.clone(), tokens: self.tokens.clone(), ..*self }
    }
}
