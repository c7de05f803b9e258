//! The modules of a model in transformers 5.24, as PEFT walks over them.

use super::beside::Table;
use crate::arch::{Family, Projection};

/// What PEFT can do with a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleKind {
    /// A projection of a block, which an adapter here can change.
    Projection {
        /// Layer, from 0.
        layer: usize,
        /// Which of its projections.
        target: Projection,
    },
    /// The output layer.
    Head,
    /// The table of the tokens' embeddings.
    Embedding,
    /// A table of positions, which LoRA here leaves alone.
    Positions,
    /// A matrix outside the blocks that is not the output layer, likewise.
    Matrix,
    /// Neither a matrix nor a table: PEFT stops at it.
    Other,
}

/// A module by its path in the model: `model.layers.3.mlp`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// From the model's root, as `named_modules` of torch gives it.
    pub path: String,
    /// What PEFT would do with it.
    pub kind: ModuleKind,
}

impl Family {
    /// The tables of embeddings: of tokens, then of positions.
    const fn embeddings(self) -> &'static [&'static str] {
        match self {
            Self::Gpt2 => &["transformer.wte", "transformer.wpe"],
            Self::Opt => &["model.decoder.embed_tokens", "model.decoder.embed_positions"],
            Self::Bloom => &["transformer.word_embeddings"],
            Self::GptJ => &["transformer.wte"],
            Self::GptNeox => &["gpt_neox.embed_in"],
            Self::Gemma3Images => &["model.language_model.embed_tokens"],
            _ => &["model.embed_tokens"],
        }
    }

    /// The path of the module that holds a table: `model.embed_tokens`.
    pub const fn table_path(self, table: Table) -> &'static str {
        match table {
            Table::Embed => self.embeddings()[0],
            Table::Head => "lm_head",
        }
    }

    /// The modules of a model of `layers` layers, but for OPT's matrices between the widths of embedding and residual
    /// stream.
    pub fn all_modules(self, layers: usize) -> Vec<Module> {
        let llama_block = self.llama_block();
        let (outside, of_block): (&[&str], &[&str]) = match self {
            Self::Gpt2 => (
                &["transformer", "transformer.drop", "transformer.h", "transformer.ln_f"],
                &["ln_1", "attn", "attn.attn_dropout", "attn.resid_dropout", "ln_2", "mlp", "mlp.act", "mlp.dropout"],
            ),
            Self::Opt => (
                &["model", "model.decoder", "model.decoder.final_layer_norm", "model.decoder.layers"],
                &["self_attn", "activation_fn", "self_attn_layer_norm", "final_layer_norm"],
            ),
            Self::Bloom => (
                &["transformer", "transformer.word_embeddings_layernorm", "transformer.h", "transformer.ln_f"],
                &[
                    "input_layernorm",
                    "self_attention",
                    "self_attention.attention_dropout",
                    "post_attention_layernorm",
                    "mlp",
                    "mlp.gelu_impl",
                ],
            ),
            Self::GptNeox => (
                &[
                    "gpt_neox",
                    "gpt_neox.emb_dropout",
                    "gpt_neox.layers",
                    "gpt_neox.final_layer_norm",
                    "gpt_neox.rotary_emb",
                ],
                &[
                    "input_layernorm",
                    "post_attention_layernorm",
                    "post_attention_dropout",
                    "post_mlp_dropout",
                    "attention",
                    "mlp",
                    "mlp.act",
                ],
            ),
            Self::GptJ => (
                &["transformer", "transformer.drop", "transformer.h", "transformer.ln_f", "transformer.rotary_emb"],
                &["ln_1", "attn", "attn.resid_dropout", "mlp", "mlp.act", "mlp.dropout"],
            ),
            Self::Phi => (
                &["model", "model.embed_dropout", "model.layers", "model.final_layernorm", "model.rotary_emb"],
                &["self_attn", "mlp", "mlp.activation_fn", "input_layernorm", "resid_dropout"],
            ),
            Self::Gemma3Images => (
                &[
                    "model",
                    // With all that is in them: no projection of the text part is.
                    "model.vision_tower",
                    "model.multi_modal_projector",
                    "model.language_model",
                    "model.language_model.layers",
                    "model.language_model.norm",
                    "model.language_model.rotary_emb",
                ],
                &llama_block,
            ),
            _ => (&["model", "model.layers", "model.norm", "model.rotary_emb"], &llama_block),
        };
        let module = |path: String, kind: ModuleKind| Module { path, kind };
        let named =
            |paths: &[&str], kind| paths.iter().map(|path| module((*path).to_owned(), kind)).collect::<Vec<_>>();
        let (tokens, positions) = self.embeddings().split_at(1);
        let mut all = named(tokens, ModuleKind::Embedding);
        all.extend(named(positions, ModuleKind::Positions));
        all.extend(named(outside, ModuleKind::Other));
        for layer in 0..layers {
            let block = format!("{}.{layer}", self.layers_path());
            all.extend(of_block.iter().map(|name| module(format!("{block}.{name}"), ModuleKind::Other)));
            all.push(module(block, ModuleKind::Other));
            for &target in self.modules() {
                all.push(module(self.path(layer, target), ModuleKind::Projection { layer, target }));
            }
        }
        all.extend(named(&["lm_head"], ModuleKind::Head));
        all
    }

    /// What is in a block beside its projections, where names are LLaMA's.
    fn llama_block(self) -> Vec<&'static str> {
        let mut names = vec!["self_attn", "mlp"];
        names.push(match self {
            Self::Phi3 => "mlp.activation_fn",
            Self::Starcoder2 => "mlp.act",
            _ => "mlp.act_fn",
        });
        if self == Self::StableLm {
            names.push("dropout");
        }
        if matches!(self, Self::Qwen3 | Self::Olmo2 | Self::Olmo3 | Self::Gemma3 | Self::Gemma3Images) {
            names.extend(["self_attn.q_norm", "self_attn.k_norm"]);
        }
        if !matches!(self, Self::Olmo2 | Self::Olmo3) {
            names.push("input_layernorm");
        }
        names.push("post_attention_layernorm");
        if matches!(self, Self::Gemma2 | Self::Gemma3 | Self::Gemma3Images) {
            names.push("pre_feedforward_layernorm");
        }
        if matches!(self, Self::Olmo2 | Self::Olmo3 | Self::Gemma2 | Self::Gemma3 | Self::Gemma3Images) {
            names.push("post_feedforward_layernorm");
        }
        if self == Self::Phi3 {
            names.extend(["resid_attn_dropout", "resid_mlp_dropout"]);
        }
        names
    }
}
