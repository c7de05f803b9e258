//! A model in a GGUF file, as llama.cpp's converter writes it: its architecture in the words of `config.json`, and its
//! tensors under the names and in the order of the family's own checkpoints.
//!
//! Sources: llama.cpp's `convert_hf_to_gguf.py` (what is permuted, added and left out), `llama-model.cpp` (what it
//! reads, and what it knows of a family where the file is silent), the `gguf` package's `constants.py` (keys).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value as Json, json};

use super::names::{self, canonical};
use super::neutral;
use super::{Gguf, TensorType, Value};
use crate::arch::{Family, ModelConfig, Positions, RopeKind};
use crate::formats::quantized::WeightView;
use crate::formats::safetensors::{Bytes, Checkpoint, Dtype, Loading, TensorView};
use crate::{Error, Result};

/// Tensors that the configuration is read from, or that hold what is computed from it.
const OF_THE_CONFIG: [&str; 3] = ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

/// A model whose file has been opened, its weights mapped.
#[derive(Clone, Debug)]
pub struct GgufModel {
    /// Metadata and tensors, as they are stored.
    pub file: Gguf,
    /// Its architecture; the dtype is that of the embedding table, bfloat16 where that is quantised.
    pub config: ModelConfig,
    /// Its tensors, under the family's own names.
    pub checkpoint: Checkpoint,
}

impl GgufModel {
    /// Opens a file.
    ///
    /// # Errors
    /// See [`Gguf::open`]; an architecture that is not read here; metadata that lack a dimension or say something that is
    /// not computed; a tensor of a type that is not read, or that the architecture does not have.
    pub fn open(path: impl AsRef<Path>, loading: Loading) -> Result<Self> {
        let file = Gguf::open(path, loading)?;
        let metadata = Metadata::new(&file)?;
        let config = metadata.config()?;
        let weights = file.entries.keys().filter(|name| !OF_THE_CONFIG.contains(&name.as_str()));
        let weights = weights.map(|name| metadata.weight(name, &config)).collect::<Result<Vec<_>>>()?;
        let checkpoint = Checkpoint::of_weights(file.path(), weights).stored_as((metadata.family, names::stored));
        Ok(Self { config, checkpoint, file })
    }
}

/// The architecture that a file's metadata and tensors say.
pub(super) fn config_of(file: &Gguf) -> Result<ModelConfig> {
    Metadata::new(file)?.config()
}

/// Reads the architecture of a file.
struct Metadata<'a> {
    file: &'a Gguf,
    /// What begins the keys.
    architecture: &'a str,
    family: Family,
}

impl<'a> Metadata<'a> {
    fn new(file: &'a Gguf) -> Result<Self> {
        if let Some(kind) = file.optional_string("general.type")?.filter(|kind| *kind != "model") {
            return Err(file.error("general.type", "model", kind));
        }
        if let Some(parts) = file.optional_usize("split.count")?.filter(|&parts| parts > 1) {
            let expected = "1 (merge the parts of a split file, with llama-gguf-split --merge)";
            return Err(file.error("split.count", expected, parts.to_string()));
        }
        let key = "general.architecture";
        let architecture = file.string(key)?;
        match names::family(architecture) {
            Some(family) => Ok(Self { file, architecture, family }),
            None => {
                let what = format!("{}: {key}", file.path().display());
                let found: String = architecture.chars().take(100).flat_map(char::escape_default).collect();
                Err(Error::unsupported(what, found, names::architectures()))
            }
        }
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn config(&self) -> Result<ModelConfig> {
        let mut found = Found { map: Map::new(), keys: BTreeMap::new() };
        found.put("model_type", "general.architecture", json!(self.family.name()));
        self.refuse_experts()?;
        neutral::check(self.file, self.architecture, self.family)?;
        match self.family {
            Family::Gpt2 => self.gpt2(&mut found)?,
            _ => self.llama(&mut found)?,
        }
        let value = Json::Object(found.map);
        let config = ModelConfig::from_value(self.file.path(), &value);
        let mut config = config.map_err(|error| renamed(error, &found.keys))?;
        self.frequencies(&mut config)?;
        Ok(config)
    }

    fn refuse_experts(&self) -> Result<()> {
        let key = self.key("expert_count");
        match self.file.optional_usize(&key)? {
            None | Some(0) => Ok(()),
            Some(n) => Err(self.file.error(&key, "no experts (mixtures of them are not computed)", n.to_string())),
        }
    }

    /// A whole number that must be there; where it is a list with one for each layer, they must be equal.
    fn width(&self, name: &str) -> Result<usize> {
        let key = self.key(name);
        self.file.required(&key, "a positive number, the same for all layers", uniform)
    }

    fn optional_width(&self, name: &str) -> Result<Option<usize>> {
        let there = self.file.metadata.contains_key(&self.key(name));
        there.then(|| self.width(name)).transpose()
    }

    /// What every architecture says.
    fn common(&self, found: &mut Found) -> Result<()> {
        let table = self.entry("token_embd.weight")?;
        let [_, rows] = table[..] else {
            return Err(self.file.error("token_embd.weight", "a matrix", format!("dimensions {table:?}")));
        };
        found.put("vocab_size", "token_embd.weight", json!(rows));
        let tied = !self.file.entries.contains_key("output.weight");
        found.put("tie_word_embeddings", "output.weight", json!(tied));
        for (name, key) in [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")] {
            let key = format!("tokenizer.ggml.{key}_token_id");
            let id = self.file.optional_usize(&key)?;
            found.put(name, &key, id.map_or(Json::Null, |id| json!(id)));
        }
        found.put("dtype", "token_embd.weight", json!(self.dtype()));
        Ok(())
    }

    /// The name of the dtype of the embedding table.
    fn dtype(&self) -> &'static str {
        match self.file.entries.get("token_embd.weight").map(|entry| entry.kind) {
            Some(TensorType::F32) => "float32",
            Some(TensorType::F16) => "float16",
            Some(TensorType::F64) => "float64",
            _ => "bfloat16",
        }
    }

    fn entry(&self, name: &str) -> Result<&'a [usize]> {
        let entry = self.file.entries.get(name);
        entry.map(|entry| &entry.dims[..]).ok_or_else(|| self.file.error(name, "a tensor of this name", "none"))
    }

    fn gpt2(&self, found: &mut Found) -> Result<()> {
        for (name, key) in [
            ("n_embd", "embedding_length"),
            ("n_head", "attention.head_count"),
            ("n_layer", "block_count"),
            ("n_inner", "feed_forward_length"),
            ("n_positions", "context_length"),
        ] {
            found.put(name, &self.key(key), json!(self.width(key)?));
        }
        self.epsilon(found, "layer_norm_epsilon", "attention.layer_norm_epsilon")?;
        self.common(found)
    }

    fn llama(&self, found: &mut Found) -> Result<()> {
        for (name, key) in [
            ("hidden_size", "embedding_length"),
            ("num_attention_heads", "attention.head_count"),
            ("num_hidden_layers", "block_count"),
            ("intermediate_size", "feed_forward_length"),
            ("max_position_embeddings", "context_length"),
        ] {
            found.put(name, &self.key(key), json!(self.width(key)?));
        }
        let (hidden, heads) = (self.width("embedding_length")?, self.width("attention.head_count")?);
        let kv_heads = self.optional_width("attention.head_count_kv")?.unwrap_or(heads);
        found.put("num_key_value_heads", &self.key("attention.head_count_kv"), json!(kv_heads));
        let head_dim = match self.optional_width("attention.key_length")? {
            Some(width) => width,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                let key = self.key("attention.head_count");
                return Err(self.file.error(&key, format!("a divisor of {hidden}"), heads.to_string()));
            }
        };
        found.put("head_dim", &self.key("attention.key_length"), json!(head_dim));
        let values = self.optional_width("attention.value_length")?.unwrap_or(head_dim);
        if values != head_dim {
            let key = self.key("attention.value_length");
            return Err(self.file.error(&key, format!("that of the keys, {head_dim}"), values.to_string()));
        }
        // Rows are counted in 32 bits, and all that is computed of them is below.
        let most = i32::MAX as usize;
        let fits = [heads, kv_heads].iter().all(|n| n.checked_mul(head_dim).is_some_and(|rows| rows <= most));
        if !fits {
            let key = self.key("attention.head_count");
            let found = format!("{heads} and {kv_heads} heads of width {head_dim}");
            return Err(self.file.error(&key, format!("heads of at most {most} rows together"), found));
        }
        self.epsilon(found, "rms_norm_eps", "attention.layer_norm_rms_epsilon")?;
        self.rope(found, head_dim)?;
        if self.family == Family::Llama {
            let bias = |tensor: &str| self.file.entries.contains_key(tensor);
            found.put("attention_bias", "blk.0.attn_q.bias", json!(bias("blk.0.attn_q.bias")));
            found.put("mlp_bias", "blk.0.ffn_up.bias", json!(bias("blk.0.ffn_up.bias")));
        }
        if matches!(self.family, Family::Gemma2 | Family::Gemma3) {
            self.gemma(found, head_dim)?;
        }
        self.window(found)?;
        self.common(found)
    }

    /// A number that may not be there, under the name of `config.json`.
    fn number(&self, found: &mut Found, name: &'static str, key: &str) -> Result<()> {
        let key = self.key(key);
        if let Some(value) = self.file.optional_f64(&key)? {
            found.put(name, &key, json!(value));
        }
        Ok(())
    }

    /// What the norms add to a variance, without which there is no telling what they compute.
    fn epsilon(&self, found: &mut Found, name: &'static str, key: &str) -> Result<()> {
        let key = self.key(key);
        found.put(name, &key, json!(self.file.required(&key, "a finite number", Value::as_f64)?));
        Ok(())
    }

    /// What llama.cpp knows of Gemma where the file is silent: the scale of the scores is that of the head's width but in the
    /// models of 27 billion parameters (46 and 62 layers), where it is that of the residual width over the heads.
    fn gemma(&self, found: &mut Found, head_dim: usize) -> Result<()> {
        let (hidden, heads) = (self.width("embedding_length")?, self.width("attention.head_count")?);
        let largest = if self.family == Family::Gemma2 { 46 } else { 62 };
        let wide = self.width("block_count")? == largest;
        let scalar = if wide { hidden as f64 / heads as f64 } else { head_dim as f64 };
        found.put("query_pre_attn_scalar", &self.key("block_count"), json!(scalar));
        let caps = ["attn_logit_softcapping", "final_logit_softcapping"];
        for name in caps.iter().skip(usize::from(self.family == Family::Gemma3)) {
            self.number(found, name, name)?;
        }
        if self.family == Family::Gemma3 {
            self.number(found, "rope_local_base_freq", "rope.freq_base_swa")?;
            let key = self.key("attention.sliding_window_pattern");
            let pattern = self.file.optional_usize(&key)?.unwrap_or(6);
            found.put("sliding_window_pattern", &key, json!(pattern));
        } else if let Some(windowed) = self.file.metadata.get(&self.key("rope.freq_base_swa")) {
            let all = self.file.metadata.get(&self.key("rope.freq_base")).and_then(Value::as_f64).unwrap_or(10000.0);
            if windowed.as_f64() != Some(all) {
                let expected = format!("{all}, that of all layers (another is not computed)");
                return Err(self.file.error(&self.key("rope.freq_base_swa"), expected, windowed.show()));
            }
        }
        Ok(())
    }

    fn window(&self, found: &mut Found) -> Result<()> {
        let key = self.key("attention.sliding_window");
        let window = self.file.optional_usize(&key)?;
        match (self.family, window) {
            (Family::Gemma2 | Family::Gemma3, Some(0)) => return Err(self.file.error(&key, "a positive number", "0")),
            (Family::Gemma3, None) => return Err(self.file.error(&key, "a positive number", "nothing")),
            _ => {}
        }
        let window = window.filter(|&window| window > 0);
        match (self.family, window) {
            (Family::Gemma2 | Family::Gemma3, Some(window)) => found.put("sliding_window", &key, json!(window)),
            (Family::Phi3, window) => found.put("sliding_window", &key, json!(window)),
            // As in llama.cpp, which has no windows in these architectures.
            (_, Some(window)) if window < self.width("context_length")? => {
                log::warn!("{}: {key}: {window} has no effect, as in llama.cpp", self.file.path().display());
            }
            _ => {}
        }
        Ok(())
    }

    fn rope(&self, found: &mut Found, head_dim: usize) -> Result<()> {
        self.number(found, "rope_theta", "rope.freq_base")?;
        let dim = self.optional_width("rope.dimension_count")?.unwrap_or(head_dim);
        let key = self.key("rope.dimension_count");
        if self.family == Family::Phi3 {
            found.put("partial_rotary_factor", &key, json!(dim as f64 / head_dim as f64));
        } else if dim != head_dim {
            return Err(self.file.error(&key, format!("the width of a head, {head_dim}"), dim.to_string()));
        }
        let original_key = self.key("rope.scaling.original_context_length");
        let original = self.file.optional_usize(&original_key)?;
        let factor_key = self.key("rope.scaling.factor");
        let factor = self.file.optional_f64(&factor_key)?.or(self.file.optional_f64(&self.key("rope.scale_linear"))?);
        let kind_key = self.key("rope.scaling.type");
        let kind = self.file.optional_string(&kind_key)?;
        let scaling = match kind {
            _ if self.family == Family::Phi3 => {
                if let Some(factor) = factor.filter(|factor| *factor != 1.0) {
                    return Err(self.file.error(&factor_key, "1, for this architecture", factor.to_string()));
                }
                if let Some(other) = kind.filter(|kind| !["none", "longrope"].contains(kind)) {
                    return Err(self.file.error(&kind_key, "none or longrope", other));
                }
                return self.longrope(found, (original, &original_key), kind);
            }
            None if factor.is_none_or(|factor| factor == 1.0) => None,
            Some("none") => None,
            None | Some("linear") => Some(json!({"rope_type": "linear", "factor": factor})),
            Some("yarn") => {
                let mut scaling = json!({"rope_type": "yarn", "factor": factor});
                if let Some(original) = original {
                    scaling["original_max_position_embeddings"] = json!(original);
                }
                for (name, key) in [("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")] {
                    if let Some(beta) = self.file.optional_f64(&self.key(&format!("rope.scaling.{key}")))? {
                        scaling[name] = json!(beta);
                    }
                }
                Some(scaling)
            }
            Some(other) => return Err(self.file.error(&kind_key, "none, linear or yarn", other)),
        };
        if let Some(scaling) = scaling {
            if factor.is_none() {
                return Err(self.file.error(&factor_key, "a number, for this scaling", "nothing"));
            }
            found.put("rope_scaling", &kind_key, scaling);
        }
        Ok(())
    }

    /// Phi-3's two lists of divisors, which are tensors of the file.
    fn longrope(&self, found: &mut Found, (original, key): (Option<usize>, &str), kind: Option<&str>) -> Result<()> {
        let there = |name: &str| self.file.entries.contains_key(name);
        let [long, short] = ["rope_factors_long.weight", "rope_factors_short.weight"];
        match (there(long) || there(short), kind) {
            (false, Some("longrope")) | (true, Some("none")) => {
                let (expected, found) = (if there(long) { "longrope" } else { "none" }, kind.unwrap_or_default());
                let expected = format!("{expected}, by the tensors rope_factors_long and rope_factors_short");
                return Err(self.file.error(&self.key("rope.scaling.type"), expected, found));
            }
            _ => {}
        }
        let attention_key = self.key("rope.scaling.attn_factor");
        let attention = self.file.optional_f64(&attention_key)?;
        if !there(long) && !there(short) {
            return match attention.filter(|factor| *factor != 1.0) {
                Some(factor) => Err(self.file.error(&attention_key, "1, without factors", factor.to_string())),
                None => Ok(()),
            };
        }
        let list = |name: &str| self.file.floats(name).map(|tensor| json!(tensor.values));
        let mut scaling = json!({"rope_type": "longrope", "long_factor": list(long)?, "short_factor": list(short)?});
        if let Some(factor) = attention {
            scaling["attention_factor"] = json!(factor);
        }
        found.put("rope_scaling", "rope_factors_long.weight", scaling);
        if let Some(original) = original {
            found.put("original_max_position_embeddings", key, json!(original));
        }
        Ok(())
    }

    /// The divisors of the frequencies of `rope_freqs.weight` (LLaMA 3's scaling, computed by the converter), which hold for
    /// sequences of any length.
    fn frequencies(&self, config: &mut ModelConfig) -> Result<()> {
        let name = OF_THE_CONFIG[0];
        if !self.file.entries.contains_key(name) {
            return Ok(());
        }
        let factors: Vec<f64> = self.file.floats(name)?.values.into_iter().map(f64::from).collect();
        let width = config.ropes().first().map_or(0, |rope| rope.dim / 2);
        if factors.len() != width || !factors.iter().all(|factor| factor.is_finite() && *factor > 0.0) {
            let expected = format!("{width} positive numbers, one for each frequency");
            return Err(self.file.error(name, expected, format!("{} numbers", factors.len())));
        }
        let Positions::Rope(ropes) = &mut config.positions else { return Ok(()) };
        for rope in ropes {
            if rope.kind != RopeKind::Default {
                return Err(self.file.error(name, "no other scaling beside it", format!("{:?}", rope.kind)));
            }
            let (short, long) = (factors.clone(), factors.clone());
            rope.kind = RopeKind::LongRope { short, long, original: usize::MAX, attention_factor: 1.0 };
        }
        Ok(())
    }

    /// A tensor under the family's own name, and the order of its rows where that is another here.
    fn weight(&self, name: &str, config: &ModelConfig) -> Result<(WeightView, Option<Arc<[u32]>>)> {
        let own = canonical(self.family, name).ok_or_else(|| {
            self.file.error(name, format!("a tensor of the architecture {}", self.architecture), "one that it has not")
        })?;
        let view = match self.file.tensor(name)? {
            WeightView::Plain(view) if self.one_plus(name) => WeightView::Plain(self.less_one(view)?),
            WeightView::Plain(view) => WeightView::Plain(view),
            WeightView::Quantized(view) => WeightView::Quantized(view),
        };
        let target = name.rsplit_once('.').and_then(|(path, _)| names::target(self.family, path));
        let order = match target.filter(|(_, target)| names::is_reordered(config.family, *target)) {
            Some((_, target)) => {
                // The list of rows is made of numbers of the metadata, which the tensor must bear out.
                let (stored, width) = (self.entry(name)?.last().copied().unwrap_or_default(), config.widths(target).1);
                if stored != width {
                    return Err(self.file.error(name, format!("{width} rows"), stored.to_string()));
                }
                names::row_order(config, target)
            }
            None => None,
        };
        Ok(match view {
            WeightView::Plain(view) => (WeightView::Plain(TensorView { name: own, ..view }), order),
            WeightView::Quantized(mut view) => {
                view.name = own;
                (WeightView::Quantized(view), order)
            }
        })
    }

    /// Whether a norm's weight stands here as `1 + w`.
    fn one_plus(&self, name: &str) -> bool {
        matches!(self.family, Family::Gemma2 | Family::Gemma3) && name.ends_with("norm.weight")
    }

    fn less_one(&self, view: TensorView) -> Result<TensorView> {
        let values = view.to_f32().map_err(Error::file(self.file.path()))?;
        let bytes: Vec<u8> = values.into_iter().flat_map(|w| (w - 1.0).to_le_bytes()).collect();
        let data = Bytes::from(bytes).aligned(size_of::<f32>());
        Ok(TensorView { dtype: Dtype::F32, data, ..view })
    }
}

/// What was found, under the names of `config.json`, and the key that each is from.
struct Found {
    map: Map<String, Json>,
    keys: BTreeMap<&'static str, String>,
}

impl Found {
    fn put(&mut self, name: &'static str, key: &str, value: Json) {
        self.map.insert(name.to_owned(), value);
        self.keys.insert(name, key.to_owned());
    }
}

/// An error about a name of `config.json` as one about the key that it is from.
fn renamed(error: Error, keys: &BTreeMap<&'static str, String>) -> Error {
    match error {
        Error::Field { path, field, expected, found } => {
            let outer = field.split('.').next().unwrap_or(&field);
            let field = keys.get(outer).map_or(field.clone(), |key| format!("{key} ({field})"));
            Error::Field { path, field, expected, found }
        }
        other => other,
    }
}

/// A positive number, or the one that a list has everywhere.
fn uniform(value: &Value) -> Option<usize> {
    let positive = |value: &Value| value.as_usize().filter(|&n| n > 0);
    match value {
        Value::List(list) => {
            let first = positive(list.first()?)?;
            list.iter().all(|other| positive(other) == Some(first)).then_some(first)
        }
        value => positive(value),
    }
}
