//! PEFT soft prompts: PROMPT_TUNING, P_TUNING and PREFIX_TUNING directories, and beside them what PEFT drops.
//!
//! All three save one tensor, `prompt_embeddings`: rows that stand before a sequence's first token (Lester et al.,
//! arXiv 2104.08691; Liu et al., arXiv 2103.10385), or keys and values of every layer (Li and Liang, arXiv 2101.00190).
//! Rows that an MLP made are saved as its output; the MLP itself ([`EncoderState`]) goes to a file of our own, without
//! which nobody can continue the training.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::fields;
use super::weights::open;
use crate::arch::ModelConfig;
use crate::formats::json::{self, Fields};
use crate::formats::safetensors::{self, Checkpoint, Dtype, Tensor};
use crate::{Error, Result};

/// The tensor of every kind.
const ROWS: &str = "prompt_embeddings";
/// The file of the re-parameterisation.
pub(super) const ENCODER: &str = "prompt_encoder.safetensors";
/// What its tensors' names begin with: PEFT's own, while it trains.
const ENCODER_PREFIX: &str = "prompt_encoder.default";
/// Key of its metadata.
const KIND: &str = "reparameterization";

/// What the rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptKind {
    /// Embeddings, each trained as it is.
    PromptTuning,
    /// Embeddings that an MLP made.
    PTuning,
    /// Keys (after the rotation) and values of every layer.
    PrefixTuning,
}

impl PromptKind {
    const ALL: [Self; 3] = [Self::PromptTuning, Self::PTuning, Self::PrefixTuning];

    /// `peft_type`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PromptTuning => "PROMPT_TUNING",
            Self::PTuning => "P_TUNING",
            Self::PrefixTuning => "PREFIX_TUNING",
        }
    }

    /// The kind of a `peft_type`.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// A prompt's settings, with PEFT's names and meanings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptConfig {
    /// What the rows are.
    pub kind: PromptKind,
    /// Number P of rows, at least 1: positions before the sequence, or keys and values of every layer.
    pub num_virtual_tokens: usize,
    /// Width of an embedding, or of the keys `[K, D]` of a layer.
    pub token_dim: usize,
    /// Layers of the model.
    pub num_layers: usize,
    /// Its heads; for a prefix those of keys and values.
    pub num_attention_heads: usize,
    /// Width of the MLP's hidden layers, for the record.
    pub encoder_hidden_size: Option<usize>,
    /// Whether an MLP made the prefix, for the record.
    pub prefix_projection: bool,
    /// Name of the base model, for the record.
    pub base_model_name_or_path: Option<String>,
}

impl PromptConfig {
    /// Limit of the rows; beyond any context.
    pub const MAX_ROWS: usize = 1 << 20;

    /// The settings of a prompt of `rows` rows for a model.
    pub fn new(kind: PromptKind, rows: usize, model: &ModelConfig) -> Self {
        let prefix = kind == PromptKind::PrefixTuning;
        Self {
            kind,
            num_virtual_tokens: rows,
            token_dim: if prefix { model.block_widths()[2] } else { model.embed_size },
            num_layers: model.num_hidden_layers,
            num_attention_heads: if prefix { model.num_key_value_heads } else { model.num_attention_heads },
            encoder_hidden_size: None,
            prefix_projection: false,
            base_model_name_or_path: None,
        }
    }

    /// Elements of a row. A prefix's is, layer by layer, the keys and then the values `[K, D]`.
    pub const fn width(&self) -> usize {
        match self.kind {
            PromptKind::PromptTuning | PromptKind::PTuning => self.token_dim,
            PromptKind::PrefixTuning => self.num_layers * 2 * self.token_dim,
        }
    }

    /// Reads `adapter_config.json`, for a base model.
    ///
    /// # Errors
    /// The file is missing or not JSON; `task_type` is missing (PEFT would load the prompt and not apply it);
    /// `num_virtual_tokens` is; a dimension is not the model's; a field asks for something that is not supported.
    pub fn read(path: impl AsRef<Path>, model: &ModelConfig) -> Result<Self> {
        let path = path.as_ref();
        let value = json::read(path)?;
        let f = Fields::new(path, &value)?;
        let expected = PromptKind::ALL.map(PromptKind::name).join(" or ");
        let name = f.require("peft_type", f.str("peft_type")?, &expected)?;
        let kind = PromptKind::parse(name).ok_or_else(|| f.error("peft_type", expected))?;
        match f.str("task_type")? {
            Some("CAUSAL_LM" | "FEATURE_EXTRACTION") => {}
            Some("SEQ_CLS") if kind != PromptKind::PrefixTuning => {}
            None => return Err(f.error("task_type", "\"CAUSAL_LM\" (without one PEFT does not apply the prompt)")),
            Some(_) => return Err(f.error("task_type", "CAUSAL_LM or FEATURE_EXTRACTION")),
        }
        fields::PROMPT.check(&f)?;
        if f.usize("num_transformer_submodules")?.is_some_and(|n| n != 1) {
            return Err(f.error("num_transformer_submodules", "1, as every decoder has"));
        }
        let rows = f.usize_in("num_virtual_tokens", 1..=Self::MAX_ROWS)?;
        let ours = Self::new(kind, f.require("num_virtual_tokens", rows, "a positive integer")?, model);
        // PEFT builds the prompt by what stands here, whatever the model is; where keys have heads of their own, by the
        // model. Rows of embeddings have neither layers nor heads.
        let (prefix, by_model) = (kind == PromptKind::PrefixTuning, model.family.has_kv_heads());
        for (key, expected, counts) in [
            ("token_dim", ours.token_dim, !(prefix && by_model)),
            ("num_layers", ours.num_layers, prefix),
            ("num_attention_heads", ours.num_attention_heads, prefix && !by_model),
        ] {
            if f.usize(key)?.is_some_and(|found| found != expected && counts) {
                return Err(f.error(key, format!("{expected}, as the model has it")));
            }
        }
        Ok(Self {
            encoder_hidden_size: f.usize("encoder_hidden_size")?,
            prefix_projection: f.bool("prefix_projection")?.unwrap_or(false),
            base_model_name_or_path: f.str("base_model_name_or_path")?.map(String::from),
            ..ours
        })
    }

    /// The file's content, keys sorted as PEFT writes them. `prompt_tuning_init` is RANDOM whatever the start was: with
    /// TEXT, PEFT wants a tokenizer even to apply the prompt.
    fn to_json(&self) -> Value {
        let mut map = Map::new();
        let mut put = |key: &str, value: Value| map.insert(key.to_string(), value);
        put("auto_mapping", Value::Null);
        put("base_model_name_or_path", json!(self.base_model_name_or_path));
        put("inference_mode", json!(true));
        put("num_attention_heads", json!(self.num_attention_heads));
        put("num_layers", json!(self.num_layers));
        put("num_transformer_submodules", json!(1));
        put("num_virtual_tokens", json!(self.num_virtual_tokens));
        put("peft_type", json!(self.kind.name()));
        put("revision", Value::Null);
        put("task_type", json!("CAUSAL_LM"));
        put("token_dim", json!(self.token_dim));
        match self.kind {
            PromptKind::PromptTuning => {
                put("prompt_tuning_init", json!("RANDOM"));
                put("prompt_tuning_init_text", Value::Null);
                put("tokenizer_name_or_path", Value::Null);
            }
            PromptKind::PTuning => {
                put("encoder_dropout", json!(0.0));
                put("encoder_hidden_size", json!(self.encoder_hidden_size));
                put("encoder_num_layers", json!(2));
                put("encoder_reparameterization_type", json!("MLP"));
            }
            PromptKind::PrefixTuning => {
                put("encoder_hidden_size", json!(self.encoder_hidden_size));
                put("prefix_projection", json!(self.prefix_projection));
            }
        }
        map.sort_keys();
        Value::Object(map)
    }
}

/// How rows come from an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reparameterization {
    /// PEFT's PromptEncoder: `W3 relu(W2 relu(W1 e + b1) + b2) + b3`.
    Mlp,
    /// `e + W2 relu(W1 e + b1) + b2`: a row keeps what it was, and the MLP adds to it (after Razdaibiedina et al.,
    /// arXiv 2305.03937, without their norm).
    Residual,
    /// PEFT's PrefixEncoder: `W2 tanh(W1 e + b1) + b2`, from the width of one layer's keys to all layers'.
    Projection,
}

impl Reparameterization {
    const ALL: [Self; 3] = [Self::Mlp, Self::Residual, Self::Projection];

    /// As the side file and the command line spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mlp => "mlp",
            Self::Residual => "residual",
            Self::Projection => "projection",
        }
    }
}

/// The dimensions of a re-parameterisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncoderShape {
    /// Which layers it has, and what lies between them.
    pub kind: Reparameterization,
    /// Width of a row of the embedding.
    pub input: usize,
    /// Width of the hidden layers.
    pub hidden: usize,
    /// Width of a row that it makes.
    pub output: usize,
}

impl EncoderShape {
    /// Limit of the width of the hidden layers.
    pub const MAX_HIDDEN: usize = 1 << 15;

    /// The shape that makes prompts of these settings.
    pub fn new(kind: Reparameterization, prompt: &PromptConfig, hidden: usize) -> Self {
        Self { kind, input: prompt.token_dim, hidden, output: prompt.width() }
    }

    /// Input and output width of each linear layer, first to last.
    pub fn linears(&self) -> Vec<(usize, usize)> {
        let Self { kind, input, hidden, output } = *self;
        match kind {
            Reparameterization::Mlp => vec![(input, hidden), (hidden, hidden), (hidden, output)],
            Reparameterization::Residual | Reparameterization::Projection => vec![(input, hidden), (hidden, output)],
        }
    }

    /// Name, shape and first element of every parameter of a run whose prompt has `rows` rows: the embedding, then each
    /// layer's weight `[output, input]` and bias. They lie one after another.
    pub fn parts(&self, rows: usize) -> Vec<(String, Vec<usize>, usize)> {
        let module = if self.kind == Reparameterization::Projection { "transform" } else { "mlp_head" };
        let mut parts = vec![(format!("{ENCODER_PREFIX}.embedding.weight"), vec![rows, self.input], 0)];
        let mut next = rows * self.input;
        for (i, (input, output)) in self.linears().into_iter().enumerate() {
            let name = |part: &str| format!("{ENCODER_PREFIX}.{module}.{}.{part}", 2 * i);
            parts.push((name("weight"), vec![output, input], next));
            parts.push((name("bias"), vec![output], next + output * input));
            next += output * input + output;
        }
        parts
    }

    /// Parameters of a run whose prompt has `rows` rows.
    pub fn len(&self, rows: usize) -> usize {
        rows * self.input + self.linears().iter().map(|(input, output)| input * output + output).sum::<usize>()
    }

    /// Whether there are no parameters.
    pub fn is_empty(&self, rows: usize) -> bool {
        self.len(rows) == 0
    }
}

/// The parameters of a re-parameterisation: what PEFT does not save.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderState {
    /// Its dimensions, by which `params` are divided.
    pub shape: EncoderShape,
    /// The parameters, laid out by [`EncoderShape::parts`].
    pub params: Vec<f32>,
}

impl EncoderState {
    /// Reads the side file of a prompt's directory, if it is there, for a prompt of `rows` rows.
    ///
    /// # Errors
    /// A file that is invalid, or does not fit the prompt.
    pub fn read(dir: impl AsRef<Path>, config: &PromptConfig) -> Result<Option<Self>> {
        let path = dir.as_ref().join(ENCODER);
        if !path.exists() {
            return Ok(None);
        }
        let file = Checkpoint::open(&path)?;
        let found = file.metadata().get(KIND).cloned().unwrap_or_default();
        let kind = Reparameterization::ALL.into_iter().find(|kind| kind.name() == found);
        let known = || Reparameterization::ALL.map(Reparameterization::name).join(" or ");
        let kind = kind.ok_or_else(|| Error::field(&path, KIND, known(), format!("{found:?}")))?;
        if (kind == Reparameterization::Projection) != (config.kind == PromptKind::PrefixTuning) {
            return Err(Error::field(&path, KIND, format!("that of a {}", config.kind.name()), found));
        }
        let mut shape = EncoderShape::new(kind, config, 1);
        let rows = config.num_virtual_tokens;
        let (first, ..) = &shape.parts(rows)[1];
        let weight = file.get(first).ok_or_else(|| Error::field(&path, first, "a tensor", "none"))?;
        let hidden = weight.shape.first().copied().filter(|n| (1..=EncoderShape::MAX_HIDDEN).contains(n));
        shape.hidden = hidden.ok_or_else(|| {
            let expected = format!("from 1 to {} rows", EncoderShape::MAX_HIDDEN);
            Error::field(&path, first, expected, format!("{:?}", weight.shape))
        })?;
        let parts = shape.parts(rows);
        file.deny_unexpected(|name| parts.iter().any(|(known, ..)| known == name))?;
        // Not by the shape that the file claims: its tensors are not checked yet.
        let mut params = Vec::new();
        for (name, dims, _) in &parts {
            let view = file.expect(name, dims)?;
            params.extend(view.check_finite().and_then(|()| view.to_f32()).map_err(Error::file(&path))?);
        }
        Ok(Some(Self { shape, params }))
    }

    fn write(&self, path: &Path, rows: usize) -> Result<()> {
        assert!(self.params.len() == self.shape.len(rows), "encoder: {} parameters", self.params.len());
        let parts = self.shape.parts(rows);
        let tensors: Vec<Tensor> = parts
            .iter()
            .map(|(name, shape, from)| {
                let values = &self.params[*from..*from + shape.iter().product::<usize>()];
                Tensor { name, dtype: Dtype::F32, shape, data: bytemuck::cast_slice(values) }
            })
            .collect();
        safetensors::write(path, &tensors, &[("format", "pt"), (KIND, self.shape.kind.name())])
    }
}

/// A soft prompt: read with [`super::Adapter::read`], written with [`super::Adapter::write`].
#[derive(Clone, Debug, PartialEq)]
pub struct PromptAdapter {
    /// What `adapter_config.json` says.
    pub config: PromptConfig,
    /// `[num_virtual_tokens, width]`, see [`PromptConfig::width`].
    pub rows: Vec<f32>,
    /// What made the rows, if anything did.
    pub encoder: Option<EncoderState>,
}

impl PromptAdapter {
    pub(super) fn read(config_path: &Path, weights: &Path, model: &ModelConfig) -> Result<Self> {
        let config = PromptConfig::read(config_path, model)?;
        let file = open(weights)?;
        let view = file.expect(ROWS, &[config.num_virtual_tokens, config.width()])?;
        let rows = view.check_finite().and_then(|()| view.to_f32()).map_err(Error::file(weights))?;
        file.deny_unexpected(|name| name == ROWS)?;
        let encoder = EncoderState::read(config_path.parent().unwrap_or(Path::new(".")), &config)?;
        Ok(Self { config, rows, encoder })
    }

    /// The side file (if there is something to save), the rows, the settings.
    pub(super) fn write_files(&self, config_path: &Path, weights: &Path) -> Result<()> {
        let side = config_path.with_file_name(ENCODER);
        match &self.encoder {
            Some(encoder) => encoder.write(&side, self.config.num_virtual_tokens)?,
            // One of an earlier adapter would be taken for this one's.
            None if side.exists() => std::fs::remove_file(&side).map_err(Error::io("remove", &side))?,
            None => {}
        }
        let shape = [self.config.num_virtual_tokens, self.config.width()];
        assert!(self.rows.len() == shape[0] * shape[1], "prompt: {} elements of {shape:?}", self.rows.len());
        let data = bytemuck::cast_slice(&self.rows);
        let tensor = Tensor { name: ROWS, dtype: Dtype::F32, shape: &shape, data };
        safetensors::write(weights, &[tensor], &[("format", "pt")])?;
        crate::formats::atomic::write_json(config_path, &self.config.to_json())
    }
}
