//! `config.json` of every family, in both dialects of transformers: here what LLaMA's kin have in common.
//!
//! Absent keys take the family's own defaults, as transformers 5 does. What that library would ignore with or
//! without a warning, and so compute something other than the file says, is an error here: unknown `rope_type`,
//! `model_type` and activation, partial rotation, quantised weights but those of bitsandbytes and torchao, keys of the two dialects that contradict. What
//! becomes of every key is in `config/keys.rs`.

mod families;
pub mod keys;
mod recent;
mod rope;

use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use super::json::{self, Fields, show};
use super::prequantized;
use crate::arch::{
    Activation, Dtype, Family, Mlp, ModelConfig, Norm, NormPlacement, Positions, QkNorm, RmsWeight, Rope,
};
use crate::{Error, Result};

/// Upper limit of widths; a larger value is a damaged file, not a model.
const MAX_WIDTH: usize = 1 << 24;
/// Upper limit of the layer count.
const MAX_LAYERS: usize = 10_000;

impl Family {
    /// The tokens that begin and end a sequence where the file is silent.
    const fn special_tokens(self) -> (Option<u32>, Option<u32>) {
        match self {
            Self::Llama | Self::Mistral | Self::Bloom => (Some(1), Some(2)),
            Self::Qwen2 | Self::Qwen3 => (None, None),
            Self::Gpt2 | Self::GptJ | Self::Starcoder2 => (Some(50256), Some(50256)),
            Self::StableLm => (Some(0), Some(0)),
            Self::Opt => (Some(2), Some(2)),
            Self::Gemma2 | Self::Gemma3 | Self::Gemma3Images => (Some(2), Some(1)),
            Self::Olmo2 | Self::Olmo3 => (None, Some(50279)),
            Self::GptNeox => (Some(0), Some(2)),
            Self::Phi3 => (Some(1), Some(32000)),
            Self::Phi => (Some(1), Some(2)),
            Self::SmolLm3 => (Some(128_000), Some(128_001)),
        }
    }
}

impl ModelConfig {
    /// Reads `config.json`, or the one in a directory.
    ///
    /// # Errors
    /// The file is missing or not JSON, lacks a dimension, or says something that this library does not compute.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.is_dir() {
            return Self::load(path.join("config.json"));
        }
        Self::from_value(path, &json::read(path)?)
    }

    /// Parses the text of a `config.json`; `path` names it in errors.
    ///
    /// # Errors
    /// As [`ModelConfig::load`].
    pub fn parse(path: impl AsRef<Path>, text: &str) -> Result<Self> {
        Self::from_value(path.as_ref(), &json::parse(&path, text)?)
    }

    /// The architecture of the object that a `config.json` is; `path` names it in errors.
    pub(super) fn from_value(path: &Path, value: &Value) -> Result<Self> {
        let f = Fields::new(path, value)?;
        let name = f.require("model_type", f.str("model_type")?, "a model type")?;
        let Some(family) = Family::ALL.into_iter().find(|family| family.name() == name) else {
            let names: Vec<_> = Family::ALL.iter().map(|family| family.name()).collect();
            return Err(unsupported(path, "model_type", name, &names.join(", ")));
        };
        keys::of(family).check(&f)?;
        prequantized::check_config(&f)?;
        match family {
            Family::Gemma2 | Family::Gemma3 => recent::gemma(&f, family),
            Family::Gemma3Images => recent::gemma_images(&f),
            Family::Olmo2 | Family::Olmo3 => recent::olmo(&f, family),
            Family::Gpt2 => families::gpt2(&f),
            Family::Opt => families::opt(&f),
            Family::Bloom => families::bloom(&f),
            Family::GptNeox => families::gpt_neox(&f),
            Family::Phi => families::phi(&f),
            Family::GptJ => families::gptj(&f),
            Family::Starcoder2 => families::starcoder2(&f),
            Family::StableLm => families::stablelm(&f),
            Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 | Family::Phi3 | Family::SmolLm3 => {
                llama(&f, family)
            }
        }
    }

    /// The file of the weights that `config.json` (of a directory) names, if it names one.
    ///
    /// # Errors
    /// The file cannot be read, or names something that is no safetensors file or index in its own directory.
    pub fn weights_file(directory: &Path) -> Result<Option<PathBuf>> {
        let path = directory.join("config.json");
        let value = json::read(&path)?;
        let f = Fields::new(&path, &value)?;
        let Some(name) = f.str("transformers_weights")? else { return Ok(None) };
        let inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        if !inside || !(name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json")) {
            return Err(f.error("transformers_weights", "a .safetensors file or index in this directory"));
        }
        Ok(Some(directory.join(name)))
    }
}

fn unsupported(path: &Path, field: &str, found: &str, supported: &str) -> Error {
    Error::unsupported(format!("{}: {field}", path.display()), found, supported)
}

/// The families of LLaMA's make.
fn llama(f: &Fields, family: Family) -> Result<ModelConfig> {
    unread_by(f, family)?;
    let width = |key: &str| match f.usize_in(key, 1..=MAX_WIDTH)? {
        // What Gemma 3's files leave out.
        None if family == Family::Gemma3 && key == "num_attention_heads" => Ok(8),
        None if family == Family::Gemma3 && key == "vocab_size" => Ok(262_208),
        value => f.require(key, value, "a positive integer"),
    };
    let hidden_size = width("hidden_size")?;
    let num_hidden_layers =
        f.require("num_hidden_layers", f.usize_in("num_hidden_layers", 1..=MAX_LAYERS)?, "a positive integer")?;
    let num_attention_heads = width("num_attention_heads")?;
    let head_dim = head_dim(f, family, hidden_size, num_attention_heads)?;
    let num_key_value_heads = kv_heads(f, family, num_attention_heads)?;
    let max_position_embeddings = f.usize_in("max_position_embeddings", 1..=usize::MAX)?.unwrap_or(match family {
        Family::Llama | Family::Olmo2 | Family::Olmo3 => 2048,
        Family::Mistral | Family::Gemma3 => 4096 * 32,
        Family::Phi3 => 4096,
        Family::Gemma2 => 8192,
        _ => 32768,
    });
    let default_eps = if matches!(family, Family::Olmo2 | Family::Olmo3 | Family::Phi3) { 1e-5 } else { 1e-6 };
    let norm_eps = f.f64("rms_norm_eps")?.unwrap_or(default_eps);
    if !(0.0..1.0).contains(&norm_eps) {
        return Err(f.error("rms_norm_eps", "a number from 0 to 1"));
    }
    let (qkv_bias, o_bias, mlp_bias) = biases(f, family)?;
    let vocab_size = width("vocab_size")?;
    let (begin, end) = family.special_tokens();
    let no_rope_layers = no_rope_layers(f, family, num_hidden_layers)?;
    let windows = windows(f, family, num_hidden_layers, &no_rope_layers)?;
    let ropes = ropes(f, family, &windows, head_dim, max_position_embeddings)?;
    Ok(ModelConfig {
        family,
        hidden_size,
        embed_size: hidden_size,
        intermediate_size: width("intermediate_size")?,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads,
        head_dim,
        vocab_size,
        max_position_embeddings,
        norm: Norm::Rms(RmsWeight::Rounded),
        norm_eps,
        norm_placement: NormPlacement::Pre,
        qk_norm: (family == Family::Qwen3).then_some(QkNorm::Head),
        parallel: false,
        one_norm: false,
        embed_scale: 1.0,
        embed_norm: false,
        final_norm: true,
        mlp: Mlp::Gated(match family {
            // In old files hidden_act stands beside it, which is not read.
            Family::Gemma2 | Family::Gemma3 => activation(f, "hidden_activation", Activation::GeluTanh)?,
            _ => activation(f, "hidden_act", Activation::Silu)?,
        }),
        qkv_bias,
        o_bias,
        mlp_bias,
        lm_head: true,
        head_bias: false,
        tie_word_embeddings: f
            .bool("tie_word_embeddings")?
            .unwrap_or(matches!(family, Family::Gemma2 | Family::Gemma3 | Family::SmolLm3)),
        is_causal: f.bool("is_causal")?.unwrap_or(true),
        windows,
        score_scales: vec![1.0 / (head_dim as f64).sqrt(); num_hidden_layers],
        score_softcap: None,
        logit_softcap: None,
        positions: Positions::Rope(ropes),
        no_rope_layers,
        bos_token_id: token(f, "bos_token_id", begin, vocab_size)?,
        eos_token_id: end_tokens(f, end, vocab_size)?,
        pad_token_id: pad(f),
        dropout: keys::dropout(f, family)?,
        dtype: dtype(f)?,
    })
}

/// The rotation of each layer: families that have two rotate layers with a window otherwise than those without.
fn ropes(
    f: &Fields,
    family: Family,
    windows: &[Option<usize>],
    head_dim: usize,
    max_positions: usize,
) -> Result<Vec<Rope>> {
    let reader = rope::RopeReader { f, family, head_dim, max_positions };
    if !reader.has_two() {
        return Ok(vec![reader.all_layers()?; windows.len()]);
    }
    let [sliding, full] = reader.by_layer_type()?;
    Ok(windows.iter().map(|window| if window.is_some() { &sliding } else { &full }).cloned().collect())
}

/// Warns of keys that only other families read.
fn unread_by(f: &Fields, family: Family) -> Result<()> {
    if !matches!(family, Family::Llama | Family::SmolLm3) {
        if f.bool("mlp_bias")?.unwrap_or(false) {
            no_effect(f, "mlp_bias", family);
        }
        let fixed = matches!(family, Family::Mistral | Family::Qwen2 | Family::Phi3);
        if fixed && f.bool("attention_bias")?.is_some_and(|b| b != (family == Family::Qwen2)) {
            no_effect(f, "attention_bias", family);
        }
    }
    Ok(())
}

/// The function of an MLP by transformers' names, of which several mean one.
fn activation(f: &Fields, key: &str, default: Activation) -> Result<Activation> {
    match f.str(key)? {
        None => Ok(default),
        Some("relu") => Ok(Activation::Relu),
        Some("gelu" | "gelu_python") => Ok(Activation::Gelu),
        Some("gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" | "gelu_python_tanh" | "gelu_accurate") => {
            Ok(Activation::GeluTanh)
        }
        Some("silu" | "swish") => Ok(Activation::Silu),
        Some(other) => {
            let known = "relu, gelu, gelu_new, gelu_fast, gelu_accurate, gelu_pytorch_tanh, silu, swish";
            Err(unsupported(f.path(), key, other, known))
        }
    }
}

/// Warns of a key that the family's model in transformers 5.24 does not read either.
fn no_effect(f: &Fields, key: &str, family: Family) {
    let path = f.path().display();
    log::warn!("{path}: {key}: has no effect on a model of type {}, as in transformers", family.name());
}

fn head_dim(f: &Fields, family: Family, hidden_size: usize, heads: usize) -> Result<usize> {
    let head_dim = match f.usize_in("head_dim", 1..=MAX_WIDTH)? {
        Some(d) => d,
        None if family == Family::Qwen3 => 128,
        None if matches!(family, Family::Gemma2 | Family::Gemma3) => 256,
        // What is left over is of no head.
        None if matches!(family, Family::Olmo2 | Family::Olmo3 | Family::Phi3) && hidden_size >= heads => {
            hidden_size / heads
        }
        None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => return Err(f.error("num_attention_heads", format!("a divisor of hidden_size {hidden_size}"))),
    };
    if !head_dim.is_multiple_of(2) && family != Family::Phi3 {
        let field = if f.get("head_dim").is_some() { "head_dim" } else { "num_attention_heads" };
        return Err(f.error(field, format!("an even head width for rotary embedding, not {head_dim}")));
    }
    Ok(head_dim)
}

fn kv_heads(f: &Fields, family: Family, heads: usize) -> Result<usize> {
    let key = "num_key_value_heads";
    let gemma = matches!(family, Family::Gemma2 | Family::Gemma3);
    let default = match family {
        // An explicit null means "as many as query heads" but in Gemma, which has none; absence is the family's default.
        _ if f.has(key) && !gemma => heads,
        Family::Mistral => 8,
        Family::Gemma2 | Family::Gemma3 | Family::SmolLm3 => 4,
        Family::Starcoder2 => 2,
        Family::Qwen2 | Family::Qwen3 | Family::StableLm => 32,
        _ => heads,
    };
    let given = f.usize_in(key, 1..=MAX_WIDTH)?;
    if gemma && f.has(key) {
        f.require(key, given, "a positive integer")?;
    }
    let kv = given.unwrap_or(default);
    if kv > heads || !heads.is_multiple_of(kv) {
        return Err(f.error(key, format!("a divisor of num_attention_heads {heads} (default here {default})")));
    }
    Ok(kv)
}

fn biases(f: &Fields, family: Family) -> Result<(bool, bool, bool)> {
    Ok(match family {
        Family::Llama | Family::SmolLm3 => {
            let attention = f.bool("attention_bias")?.unwrap_or(false);
            (attention, attention, f.bool("mlp_bias")?.unwrap_or(false))
        }
        Family::Qwen2 => (true, false, false),
        Family::Mistral | Family::Phi3 => (false, false, false),
        _ => {
            let attention = f.bool("attention_bias")?.unwrap_or(false);
            (attention, attention, false)
        }
    })
}

/// The layers that rotate nothing: those of a 0 in a list, or each last of so many.
fn no_rope_layers(f: &Fields, family: Family, layers: usize) -> Result<Vec<usize>> {
    let (key, interval) = ("no_rope_layers", "no_rope_layer_interval");
    if family != Family::SmolLm3 {
        return Ok(Vec::new());
    }
    let every = f.usize_in(interval, 1..=usize::MAX)?.unwrap_or(4);
    let Some(list) = f.list(key)? else {
        return Ok((0..layers).filter(|layer| (layer + 1).is_multiple_of(every)).collect());
    };
    let rotates: Option<Vec<u64>> = list.iter().map(|value| value.as_u64().filter(|&x| x < 2)).collect();
    let rotates = rotates.filter(|rotates| rotates.len() == layers);
    let rotates = f.require(key, rotates, &format!("num_hidden_layers = {layers} entries, each 0 or 1"))?;
    Ok((0..layers).filter(|&layer| rotates[layer] == 0).collect())
}

/// The window of each layer.
fn windows(f: &Fields, family: Family, layers: usize, unrotated: &[usize]) -> Result<Vec<Option<usize>>> {
    let key = "sliding_window";
    let given = f.usize_in(key, 1..=usize::MAX)?;
    let window = match family {
        Family::Llama | Family::Olmo2 => {
            if given.is_some() {
                no_effect(f, key, family);
            }
            None
        }
        Family::Qwen2 | Family::Qwen3 | Family::SmolLm3 if !f.bool("use_sliding_window")?.unwrap_or(false) => None,
        Family::Phi3 | Family::SmolLm3 => given,
        _ if f.has(key) => given,
        _ => Some(4096),
    };
    // The first layer with a window; or of how many the last has none.
    let (first, pattern) = match family {
        Family::Qwen2 | Family::Qwen3 => (f.usize("max_window_layers")?.unwrap_or(28), 0),
        Family::Gemma2 => (0, 2),
        Family::Gemma3 => (0, f.usize_in("sliding_window_pattern", 1..=usize::MAX)?.unwrap_or(6)),
        Family::Olmo3 => (0, 4),
        _ => (0, 0),
    };
    let has = |i: usize| match family {
        Family::SmolLm3 => unrotated.contains(&i),
        _ => i >= first && (pattern == 0 || !(i + 1).is_multiple_of(pattern)),
    };
    let by_rule = |i: usize| window.filter(|_| has(i));
    let Some(types) = f.list("layer_types")? else {
        if window.is_none() && pattern > 0 && (0..layers).any(|i| !(i + 1).is_multiple_of(pattern)) {
            return Err(f.error(key, "a window for the layers of type sliding_attention"));
        }
        return Ok((0..layers).map(by_rule).collect());
    };
    if types.len() != layers {
        let expected = format!("num_hidden_layers = {layers} entries");
        return Err(Error::field(f.path(), "layer_types", expected, types.len().to_string()));
    }
    let mut windows = Vec::with_capacity(layers);
    for (i, value) in types.iter().enumerate() {
        let here = match value.as_str() {
            Some("full_attention" | "attention") => None,
            Some("sliding_attention") if window.is_some() => window,
            Some("sliding_attention") => {
                return Err(Error::field(
                    f.path(),
                    format!("layer_types[{i}]"),
                    "a window for it",
                    "sliding_window off",
                ));
            }
            _ => return Err(unsupported(f.path(), "layer_types", &show(value), "full_attention, sliding_attention")),
        };
        // The other families would silently follow sliding_window.
        use Family::{Gemma2, Gemma3, Olmo3, Qwen2, Qwen3, SmolLm3};
        let reads = matches!(family, Qwen2 | Qwen3 | Gemma2 | Gemma3 | Olmo3 | SmolLm3);
        if !reads && here != by_rule(i) {
            let expected = format!("agreement with sliding_window ({window:?})");
            return Err(Error::field(f.path(), format!("layer_types[{i}]"), expected, show(value)));
        }
        windows.push(here);
    }
    Ok(windows)
}

/// A special token, `default` where the file is silent. One outside the vocabulary is none: it matters when it is fed, and
/// that is checked where ids are read.
fn token(f: &Fields, key: &str, default: Option<u32>, vocab: usize) -> Result<Option<u32>> {
    let id = if f.has(key) { f.get(key).map(|v| token_id(f, key, v)).transpose()?.flatten() } else { default };
    Ok(id.filter(|&id| (id as usize) < vocab))
}

fn end_tokens(f: &Fields, default: Option<u32>, vocab: usize) -> Result<Vec<u32>> {
    let key = "eos_token_id";
    let Some(Value::Array(list)) = f.get(key) else { return Ok(token(f, key, default, vocab)?.into_iter().collect()) };
    let ids = list.iter().map(|v| token_id(f, key, v)).collect::<Result<Vec<_>>>()?;
    Ok(ids.into_iter().flatten().filter(|&id| (id as usize) < vocab).collect())
}

/// Never used to compute, and often out of the table in published files, so not checked.
fn pad(f: &Fields) -> Option<u32> {
    f.get("pad_token_id").and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok())
}

/// An id; negative ones, which some files have, are none.
fn token_id(f: &Fields, key: &str, value: &Value) -> Result<Option<u32>> {
    match value.as_i64() {
        Some(id) => Ok(u32::try_from(id).ok()),
        None => Err(f.error(key, "a token id, or a list of them")),
    }
}

/// `dtype` (new dialect) goes before `torch_dtype` (old one).
fn dtype(f: &Fields) -> Result<Option<Dtype>> {
    let key = if f.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
    match f.str(key)?.map(|name| name.strip_prefix("torch.").unwrap_or(name)) {
        None | Some("auto") => Ok(None),
        Some("float32") => Ok(Some(Dtype::F32)),
        Some("float16") => Ok(Some(Dtype::F16)),
        Some("bfloat16") => Ok(Some(Dtype::BF16)),
        Some("float64") => Ok(Some(Dtype::F64)),
        Some(other) => Err(unsupported(f.path(), key, other, "float32, float16, bfloat16, float64")),
    }
}
