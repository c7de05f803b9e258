//! Writes small, randomly initialised LLaMA checkpoints with a byte-level tokenizer, so that tests need no download.

use std::fs;
use std::path::Path;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

/// Ids below 3 are `<unk>`, `<s>`, `</s>`; then 256 bytes, then merges.
const SPECIAL: [&str; 3] = ["<unk>", "<s>", "</s>"];
const MERGES: [(&str, &str); 6] = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("e", "r"), ("Ġ", "p")];

/// Dimensions and variants of a checkpoint.
#[derive(Clone, Debug)]
pub struct TinyModel {
    /// Vocabulary; at least [`TinyModel::TOKENS`] for the tokenizer's ids to exist.
    pub vocab: usize,
    /// Residual width.
    pub width: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Head width.
    pub head_dim: usize,
    /// Feed-forward width.
    pub ffn: usize,
    /// Whether the head is the embedding table.
    pub tied: bool,
    /// Biases of attention (all four projections) and MLP.
    pub bias: bool,
    /// Merged into `config.json`.
    pub config: Value,
    /// `F32`, `BF16` or `F16`.
    pub dtype: safetensors::Dtype,
    /// Standard deviation of the weights; large enough that layers matter.
    pub scale: f32,
    /// Seed of the weights.
    pub seed: u64,
}

impl Default for TinyModel {
    fn default() -> Self {
        Self {
            vocab: 272,
            width: 24,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 8,
            ffn: 40,
            tied: false,
            bias: false,
            config: json!({}),
            dtype: safetensors::Dtype::F32,
            scale: 0.2,
            seed: 0,
        }
    }
}

impl TinyModel {
    /// Number of ids of the tokenizer.
    pub const TOKENS: usize = SPECIAL.len() + 256 + MERGES.len();

    /// Writes `config.json`, `model.safetensors`, `tokenizer.json` and `tokenizer_config.json`.
    pub fn write(&self, dir: &Path) {
        fs::create_dir_all(dir).expect("create the model's directory");
        let put = |name: &str, value: &Value| {
            fs::write(dir.join(name), serde_json::to_vec_pretty(value).expect("JSON")).expect("write a model file");
        };
        put("config.json", &self.config_json());
        put("tokenizer.json", &tokenizer_json());
        put(
            "tokenizer_config.json",
            &json!({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
                "unk_token": "<unk>", "add_bos_token": true, "add_eos_token": false}),
        );
        self.write_weights(&dir.join("model.safetensors"));
    }

    /// The content of `config.json`.
    pub fn config_json(&self) -> Value {
        if self.config["n_positions"].is_u64() {
            return self.config.clone();
        }
        let dtype = match self.dtype {
            safetensors::Dtype::BF16 => "bfloat16",
            safetensors::Dtype::F16 => "float16",
            _ => "float32",
        };
        let mut config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": self.width,
            "intermediate_size": self.ffn, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim, "vocab_size": self.vocab,
            "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
            "attention_bias": self.bias, "mlp_bias": self.bias, "tie_word_embeddings": self.tied, "bos_token_id": 1,
            "eos_token_id": 2, "torch_dtype": dtype,
        });
        if let (Value::Object(config), Value::Object(more)) = (&mut config, &self.config) {
            config.extend(more.clone());
        }
        config
    }

    /// A GPT-2 of so many learned positions.
    pub fn gpt2(positions: usize) -> Self {
        let tiny = Self::default();
        let config = json!({"model_type": "gpt2", "n_positions": positions, "n_embd": tiny.width, "n_inner": tiny.ffn,
            "n_layer": tiny.layers, "n_head": tiny.heads, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
            "tie_word_embeddings": true, "vocab_size": tiny.vocab, "bos_token_id": 1, "eos_token_id": 2, "attn_pdrop": 0.0,
            "embd_pdrop": 0.0, "resid_pdrop": 0.0});
        Self { config, ..tiny }
    }

    fn gpt2_tensors(&self, positions: usize) -> Vec<(String, Vec<usize>)> {
        let (c, f) = (self.width, self.ffn);
        let mut all =
            vec![("wte.weight".to_owned(), vec![self.vocab, c]), ("wpe.weight".to_owned(), vec![positions, c])];
        let mut norm = |name: String| ["weight", "bias"].map(|part| all.push((format!("{name}.{part}"), vec![c])));
        for layer in 0..self.layers {
            norm(format!("h.{layer}.ln_1"));
            norm(format!("h.{layer}.ln_2"));
        }
        norm("ln_f".to_owned());
        for layer in 0..self.layers {
            for (name, input, out) in
                [("attn.c_attn", c, 3 * c), ("attn.c_proj", c, c), ("mlp.c_fc", c, f), ("mlp.c_proj", f, c)]
            {
                all.push((format!("h.{layer}.{name}.weight"), vec![input, out]));
                all.push((format!("h.{layer}.{name}.bias"), vec![out]));
            }
        }
        all
    }

    /// `(name, shape)` of every tensor.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        if let Some(positions) = self.config["n_positions"].as_u64() {
            return self.gpt2_tensors(positions as usize);
        }
        let (q, kv, c, f) = (self.heads * self.head_dim, self.kv_heads * self.head_dim, self.width, self.ffn);
        let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab, c])];
        for layer in 0..self.layers {
            let mut add =
                |name: &str, shape: &[usize]| all.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
            add("input_layernorm.weight", &[c]);
            add("post_attention_layernorm.weight", &[c]);
            if self.config["model_type"] == "qwen3" {
                add("self_attn.q_norm.weight", &[self.head_dim]);
                add("self_attn.k_norm.weight", &[self.head_dim]);
            }
            for (name, out, input) in [
                ("self_attn.q_proj", q, c),
                ("self_attn.k_proj", kv, c),
                ("self_attn.v_proj", kv, c),
                ("self_attn.o_proj", c, q),
                ("mlp.gate_proj", f, c),
                ("mlp.up_proj", f, c),
                ("mlp.down_proj", c, f),
            ] {
                add(&format!("{name}.weight"), &[out, input]);
                if self.bias {
                    add(&format!("{name}.bias"), &[out]);
                }
            }
        }
        all.push(("model.norm.weight".to_owned(), vec![c]));
        if !self.tied {
            all.push(("lm_head.weight".to_owned(), vec![self.vocab, c]));
        }
        all
    }

    fn write_weights(&self, path: &Path) {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = self
            .tensors()
            .into_iter()
            .map(|(name, shape)| {
                let norm = name.contains("norm");
                let bytes = (0..shape.iter().product()).flat_map(|_| {
                    // A sum of three uniforms is near enough to a normal, and the same on every platform.
                    let unit = (0..3).map(|_| rng.random_range(-1.0f32..1.0)).sum::<f32>();
                    self.encode(if norm { 1.0 + 0.1 * unit } else { self.scale * unit })
                });
                (name, shape, bytes.collect())
            })
            .collect();
        let views = tensors.iter().map(|(name, shape, bytes)| {
            (name.as_str(), TensorView::new(self.dtype, shape.clone(), bytes).expect("a consistent tensor"))
        });
        let metadata = [("format".to_owned(), "pt".to_owned())].into();
        safetensors::serialize_to_file(views, Some(metadata), path).expect("write the weights");
    }

    fn encode(&self, x: f32) -> Vec<u8> {
        match self.dtype {
            safetensors::Dtype::F32 => x.to_le_bytes().to_vec(),
            safetensors::Dtype::BF16 => half::bf16::from_f32(x).to_le_bytes().to_vec(),
            safetensors::Dtype::F16 => half::f16::from_f32(x).to_le_bytes().to_vec(),
            other => panic!("tiny model: dtype {other:?}"),
        }
    }
}

/// A byte-level BPE with a few merges that puts `<s>` first.
pub fn tokenizer_json() -> Value {
    let mut vocab = serde_json::Map::new();
    let mut add = |token: String| {
        let id = vocab.len();
        vocab.insert(token, id.into());
    };
    SPECIAL.iter().for_each(|s| add((*s).to_owned()));
    (0..=255).for_each(|b| add(byte_char(b).to_string()));
    MERGES.iter().for_each(|(a, b)| add(format!("{a}{b}")));
    let added: Vec<Value> = SPECIAL
        .iter()
        .enumerate()
        .map(|(id, s)| {
            json!({"id": id, "content": s, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": level, "decoder": level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": MERGES.iter().map(|(a, b)| json!([a, b])).collect::<Vec<_>>(),
        },
    })
}

/// The printable character that stands for a byte in byte-level vocabularies (GPT-2's table).
fn byte_char(byte: u8) -> char {
    let plain = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    match plain(byte) {
        true => char::from(byte),
        false => char::from_u32(256 + (0..byte).filter(|&b| !plain(b)).count() as u32).expect("below 512"),
    }
}
