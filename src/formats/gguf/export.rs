//! What a GGUF file of a model says, in the keys, names and types of llama.cpp's converter (`convert_hf_to_gguf.py --outtype q8_0`
//! of 2026): its architecture, how each tensor is stored, and a check that all of it is read as the model that it is of.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::model::config_of;
use super::{Entry, Gguf, TensorSpec, TensorType, Value, names, tokenizer};
use crate::arch::{Family, ModelConfig, Norm, Positions, Projection, Rope, RopeKind};
use crate::formats::safetensors::Bytes;
use crate::formats::tokenizer::Tokenizer;
use crate::quantization::BlockFormat;
use crate::{Error, Result};

/// The families that are written.
const FAMILIES: [Family; 5] = [Family::Llama, Family::Mistral, Family::Qwen2, Family::Qwen3, Family::Gpt2];
/// `general.file_type` of a file whose matrices are in Q8_0.
const MOSTLY_Q8_0: u64 = 7;
/// `general.quantization_version`.
const QUANTIZATION: u64 = 2;
/// The tensor of LLaMA 3's divisors of the frequencies.
pub const DIVISORS: &str = "rope_freqs.weight";

/// The pairs of a file's metadata, in its order.
pub type Pairs = Vec<(String, Value)>;

/// The name of a tensor of the family's own checkpoints in the file.
///
/// # Panics
/// If it is none of theirs.
pub fn tensor_name(family: Family, own: &str) -> String {
    names::stored(names::converted(family), own).expect("a tensor of the family")
}

/// Which row of a projection each stored row is, where the file has them in another order.
pub fn stored_rows(config: &ModelConfig, target: Projection) -> Option<Vec<u32>> {
    let order: Arc<[u32]> = names::row_order(config, target)?;
    let mut rows = vec![0; order.len()];
    order.iter().enumerate().for_each(|(row, &stored)| rows[stored as usize] = row as u32);
    Some(rows)
}

/// How a tensor is stored: matrices in Q8_0, or in F16 where a row is no whole blocks; learned positions, biases and norms in F32.
pub fn tensor_type(name: &str, dims: &[usize]) -> TensorType {
    let q8_0 = BlockFormat::Q8_0;
    match dims {
        [_] => TensorType::F32,
        _ if name == "position_embd.weight" => TensorType::F32,
        [columns, ..] if columns.is_multiple_of(q8_0.block_values()) => TensorType::Blocks(q8_0),
        _ => TensorType::F16,
    }
}

/// The metadata of a model, but for those of its vocabulary; `name` is that of the model.
///
/// # Errors
/// A family that is not written.
pub fn metadata(config: &ModelConfig, name: &str) -> Result<Pairs> {
    if !FAMILIES.contains(&config.family) {
        let written = FAMILIES.map(Family::name).join(", ");
        return Err(Error::unsupported("model_type in a GGUF file", config.family.name(), written));
    }
    let architecture = names::architecture(config.family);
    let mut pairs: Pairs = vec![
        ("general.architecture".to_owned(), text(architecture)),
        ("general.type".to_owned(), text("model")),
        ("general.name".to_owned(), text(name)),
    ];
    let mut put = |key: &str, value: Value| pairs.push((format!("{architecture}.{key}"), value));
    put("block_count", number(config.num_hidden_layers));
    put("context_length", number(config.max_position_embeddings));
    put("embedding_length", number(config.hidden_size));
    put("feed_forward_length", number(config.intermediate_size));
    put("attention.head_count", number(config.num_attention_heads));
    if config.family != Family::Gpt2 {
        put("attention.head_count_kv", number(config.num_key_value_heads));
    }
    if let Some(rope) = config.ropes().first() {
        rotation(rope, &mut put);
    }
    let epsilon = if config.norm == Norm::Layer { "layer_norm_epsilon" } else { "layer_norm_rms_epsilon" };
    put(&format!("attention.{epsilon}"), Value::Float(config.norm_eps));
    if config.family != Family::Gpt2 {
        put("attention.key_length", number(config.head_dim));
        put("attention.value_length", number(config.head_dim));
    }
    if names::converted(config.family) == Family::Llama {
        put("vocab_size", number(config.vocab_size));
        put("rope.dimension_count", number(config.head_dim));
    }
    pairs.push(("general.file_type".to_owned(), Value::Unsigned(MOSTLY_Q8_0)));
    pairs.push(("general.quantization_version".to_owned(), Value::Unsigned(QUANTIZATION)));
    Ok(pairs)
}

fn rotation(rope: &Rope, put: &mut impl FnMut(&str, Value)) {
    match rope.kind {
        RopeKind::Linear { factor } => {
            put("rope.scaling.type", text("linear"));
            put("rope.scaling.factor", Value::Float(factor));
        }
        RopeKind::Yarn { factor, original, beta_fast, beta_slow, .. } => {
            put("rope.scaling.type", text("yarn"));
            put("rope.scaling.factor", Value::Float(factor));
            put("rope.scaling.original_context_length", number(original));
            put("rope.scaling.yarn_beta_fast", Value::Float(beta_fast));
            put("rope.scaling.yarn_beta_slow", Value::Float(beta_slow));
        }
        // LLaMA 3's are a tensor; others are refused by the check.
        _ => {}
    }
    put("rope.freq_base", Value::Float(rope.theta));
}

/// The divisors of the frequencies `[D / 2]` where the scaling is LLaMA 3's, which is a tensor of the file.
pub fn divisors(config: &ModelConfig) -> Option<Vec<f32>> {
    let rope = config.ropes().first()?;
    let RopeKind::Llama3 { factor, low_freq_factor, high_freq_factor, original } = rope.kind else { return None };
    let divisor = |pair: usize| {
        let wavelength = std::f64::consts::TAU * rope.theta.powf((2 * pair) as f64 / rope.dim as f64);
        let turns = original as f64 / wavelength;
        let ramp = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
        (1.0 / ((1.0 - ramp) / factor + ramp)) as f32
    };
    Some((0..rope.dim / 2).map(divisor).collect())
}

/// Checks that a file of these metadata and tensors is read as this model, and its vocabulary as this tokenizer.
///
/// # Errors
/// The first thing that the format cannot say.
pub fn check(
    path: &Path,
    config: &ModelConfig,
    tokenizer: Option<&Tokenizer>,
    pairs: &[(String, Value)],
    tensors: &[TensorSpec],
) -> Result<()> {
    let divisors: Vec<u8> = divisors(config).unwrap_or_default().into_iter().flat_map(f32::to_le_bytes).collect();
    let entry = |tensor: &TensorSpec| {
        let range = if tensor.name == DIVISORS { 0..divisors.len() } else { 0..0 };
        (tensor.name.clone(), Entry { dims: tensor.dims.clone(), kind: tensor.kind, range })
    };
    let entries: BTreeMap<String, Entry> = tensors.iter().map(entry).collect();
    let metadata = pairs.iter().cloned().collect();
    let file = Gguf { path: path.to_path_buf(), bytes: Bytes::from(divisors), metadata, entries };
    let [own, read] = [config, &config_of(&file)?].map(said);
    if let Some(((field, own), (_, read))) = own.into_iter().zip(read).find(|(own, read)| own != read) {
        return Err(Error::unsupported(format!("{field} in a GGUF file"), own, read));
    }
    if let Some(window) = config.windows.iter().flatten().min().filter(|w| **w < config.max_position_embeddings) {
        log::warn!(
            "sliding_window: {window} is not in a GGUF file: longer sequences are computed without, as by llama.cpp"
        );
    }
    let Some(tokenizer) = tokenizer else { return Ok(()) };
    let read = tokenizer::tokenizer(&file)?;
    for sample in SAMPLES {
        let [own, read] = [tokenizer, &read].map(|tokenizer| Ok::<_, Error>(tokenizer.encode(sample, true)?.ids));
        let (own, read) = (own?, read?);
        if own != read {
            let expected = format!("one that cuts {sample:?} as a GGUF file's does, into {read:?}");
            return Err(Error::field(tokenizer.path(), "the tokenizer", expected, format!("{own:?}")));
        }
    }
    Ok(())
}

/// Texts in which tokenizers differ: words, numbers, spaces, letters of other scripts, bytes.
const SAMPLES: [&str; 3] = [
    "Hello world, it's 3 33 333 3333 3.14!\n\n\tI'LL  see   you\n",
    "naïve Größe — «ещё» 你好世界 🦙👩‍🚀",
    " leading, trailing ",
];

/// What of a model a file says, number by number as 32 bits hold it.
fn said(config: &ModelConfig) -> [(&'static str, String); 19] {
    let rope = |rope: &Rope| {
        let kind = match &rope.kind {
            RopeKind::Llama3 { .. } => "divisors".to_owned(),
            RopeKind::LongRope { original: usize::MAX, .. } => "divisors".to_owned(),
            RopeKind::Linear { factor } => format!("linear {}", *factor as f32),
            &RopeKind::Yarn { factor, original, beta_fast, beta_slow, attention_factor, truncate } => {
                let numbers = [factor, beta_fast, beta_slow, attention_factor].map(|x| x as f32);
                format!("yarn {numbers:?} {original} {truncate}")
            }
            other => format!("{other:?}"),
        };
        format!("{} {} {kind}", rope.theta as f32, rope.dim)
    };
    let positions = match &config.positions {
        Positions::Rope(ropes) => ropes.iter().map(rope).collect::<Vec<_>>().join(", "),
        other => format!("{other:?}"),
    };
    [
        ("hidden_size", format!("{} {}", config.hidden_size, config.embed_size)),
        ("intermediate_size", config.intermediate_size.to_string()),
        ("num_hidden_layers", config.num_hidden_layers.to_string()),
        ("num_attention_heads", format!("{} {}", config.num_attention_heads, config.num_key_value_heads)),
        ("head_dim", config.head_dim.to_string()),
        ("vocab_size", config.vocab_size.to_string()),
        ("max_position_embeddings", config.max_position_embeddings.to_string()),
        ("norm", format!("{:?} {:?} {:?}", config.norm, config.norm_placement, config.qk_norm)),
        ("norm_eps", (config.norm_eps as f32).to_string()),
        ("final_norm", format!("{} {}", config.final_norm, config.embed_norm)),
        ("parallel", config.parallel.to_string()),
        ("hidden_act", format!("{:?}", config.mlp)),
        ("attention_bias", format!("{} {}", config.qkv_bias, config.o_bias)),
        ("mlp_bias", config.mlp_bias.to_string()),
        ("tie_word_embeddings", config.tie_word_embeddings.to_string()),
        ("is_causal", config.is_causal.to_string()),
        ("scale", format!("{} {:?}", config.embed_scale, config.score_scales)),
        ("softcap", format!("{:?} {:?}", config.score_softcap, config.logit_softcap)),
        ("rope_parameters", positions),
    ]
}

fn number(n: usize) -> Value {
    Value::Unsigned(n as u64)
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}
