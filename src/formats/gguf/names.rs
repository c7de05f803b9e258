//! The architectures of llama.cpp that are read, the names of their tensors, and the order of their rows.

use std::sync::Arc;

use crate::arch::{Family, ModelConfig, Projection};

/// The architectures that are read, and what they are here.
const ARCHITECTURES: [(&str, Family); 7] = [
    ("llama", Family::Llama),
    ("qwen2", Family::Qwen2),
    ("qwen3", Family::Qwen3),
    ("gemma2", Family::Gemma2),
    ("gemma3", Family::Gemma3),
    ("gpt2", Family::Gpt2),
    ("phi3", Family::Phi3),
];

/// What stands behind the layer in the names of tensors.
const PARTS: [&str; 14] = [
    "attn_norm",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_qkv",
    "attn_q_norm",
    "attn_k_norm",
    "attn_output",
    "post_attention_norm",
    "ffn_norm",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
    "post_ffw_norm",
];

/// The family of an architecture.
pub(super) fn family(architecture: &str) -> Option<Family> {
    ARCHITECTURES.iter().find(|(name, _)| *name == architecture).map(|(_, family)| *family)
}

/// The architecture as which llama.cpp's converter writes a family.
///
/// # Panics
/// If it is none that is read.
pub(super) fn architecture(family: Family) -> &'static str {
    let family = converted(family);
    ARCHITECTURES.iter().find(|(_, other)| *other == family).expect("gguf: a family of the format").0
}

/// The names of the architectures.
pub(super) fn architectures() -> String {
    ARCHITECTURES.map(|(name, _)| name).join(", ")
}

/// The family as which llama.cpp's converter writes a model of this one.
pub(super) fn converted(family: Family) -> Family {
    match family {
        Family::Mistral => Family::Llama,
        Family::Gemma3Images => Family::Gemma3,
        other => other,
    }
}

/// Whether the rows of a projection are in another order in a GGUF file.
pub(super) fn is_reordered(family: Family, target: Projection) -> bool {
    converted(family) == Family::Llama && matches!(target, Projection::Q | Projection::K)
}

/// Which stored row each row of a projection is, where the order in a GGUF file is another.
pub(super) fn row_order(config: &ModelConfig, target: Projection) -> Option<Arc<[u32]>> {
    let heads = if target == Projection::Q { config.num_attention_heads } else { config.num_key_value_heads };
    is_reordered(config.family, target).then(|| unpermuted(heads, config.head_dim))
}

/// The layer and what is behind it: `blk.3.attn_q`.
fn block(path: &str) -> Option<(usize, &str)> {
    let (layer, part) = path.strip_prefix("blk.")?.split_once('.')?;
    Some((layer.parse().ok().filter(|n: &usize| n.to_string() == layer)?, part))
}

/// The projection of a path without its `.weight` or `.bias`.
pub(super) fn target(family: Family, path: &str) -> Option<(usize, Projection)> {
    let (layer, part) = block(path)?;
    Some((layer, projection(family, part)?))
}

/// The projection whose weight has this name.
pub(super) fn weight_of(family: Family, name: &str) -> Option<(usize, Projection)> {
    target(family, name.strip_suffix(".weight")?)
}

/// The stored row of each row of queries or keys: the converter of the architecture `llama` puts the two halves of each
/// head, which are rotated together, one beside the other (`LlamaModel.permute`).
fn unpermuted(heads: usize, head_dim: usize) -> Arc<[u32]> {
    let half = head_dim / 2;
    let row = |row: usize| {
        let (head, at) = (row / head_dim, row % head_dim);
        (head * head_dim + 2 * (at % half) + at / half) as u32
    };
    (0..heads * head_dim).map(row).collect()
}

/// The name of a tensor in the family's own checkpoints.
pub(super) fn canonical(family: Family, name: &str) -> Option<String> {
    let (path, kind) = name.rsplit_once('.').filter(|(_, kind)| ["weight", "bias"].contains(kind))?;
    let gpt2 = family == Family::Gpt2;
    let own = match path {
        "token_embd" if gpt2 => "transformer.wte".to_owned(),
        "token_embd" => "model.embed_tokens".to_owned(),
        "position_embd" if gpt2 => "transformer.wpe".to_owned(),
        "output_norm" if gpt2 => "transformer.ln_f".to_owned(),
        "output_norm" => "model.norm".to_owned(),
        "output" => "lm_head".to_owned(),
        _ => {
            let (layer, part) = block(path)?;
            match projection(family, part) {
                Some(target) => family.path(layer, target),
                None if gpt2 => format!("transformer.h.{layer}.{}", norm(family, part)?),
                None => format!("model.layers.{layer}.{}", norm(family, part)?),
            }
        }
    };
    Some(format!("{own}.{kind}"))
}

/// The name in a GGUF file of a tensor of the family's own checkpoints.
pub(super) fn stored(family: Family, own: &str) -> Option<String> {
    let layer = own.split('.').find(|part| part.parse::<usize>().is_ok());
    let paths = ["token_embd", "position_embd", "output_norm", "output"].map(str::to_owned);
    let blocks = layer.into_iter().flat_map(|layer| PARTS.map(|part| format!("blk.{layer}.{part}")));
    let mut names =
        paths.into_iter().chain(blocks).flat_map(|path| ["weight", "bias"].map(|kind| format!("{path}.{kind}")));
    names.find(|name| canonical(family, name).as_deref() == Some(own))
}

fn projection(family: Family, part: &str) -> Option<Projection> {
    Some(match (part, family) {
        ("attn_qkv", Family::Gpt2 | Family::Phi3) => Projection::Qkv,
        ("attn_q" | "attn_k" | "attn_v", Family::Gpt2 | Family::Phi3) => return None,
        ("attn_q", _) => Projection::Q,
        ("attn_k", _) => Projection::K,
        ("attn_v", _) => Projection::V,
        ("attn_output", _) => Projection::O,
        ("ffn_up", Family::Phi3) => Projection::GateUp,
        ("ffn_gate", Family::Gpt2 | Family::Phi3) => return None,
        ("ffn_gate", _) => Projection::Gate,
        ("ffn_up", _) => Projection::Up,
        ("ffn_down", _) => Projection::Down,
        _ => return None,
    })
}

fn norm(family: Family, part: &str) -> Option<&'static str> {
    let gemma = matches!(family, Family::Gemma2 | Family::Gemma3);
    Some(match part {
        "attn_norm" if family == Family::Gpt2 => "ln_1",
        "ffn_norm" if family == Family::Gpt2 => "ln_2",
        "attn_norm" => "input_layernorm",
        "ffn_norm" if gemma => "pre_feedforward_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "post_attention_norm" if gemma => "post_attention_layernorm",
        "post_ffw_norm" if gemma => "post_feedforward_layernorm",
        "attn_q_norm" if matches!(family, Family::Qwen3 | Family::Gemma3) => "self_attn.q_norm",
        "attn_k_norm" if matches!(family, Family::Qwen3 | Family::Gemma3) => "self_attn.k_norm",
        _ => return None,
    })
}
