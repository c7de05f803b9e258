//! Small models of every family.

pub const LLAMA: &str = r#"{"model_type": "llama", "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4, "vocab_size": 23, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64, "rope_theta": 100.0, "attention_bias": true, "mlp_bias": true,
    "tie_word_embeddings": false}"#;
const GPT2: &str = r#"{"model_type": "gpt2", "n_embd": 12, "n_inner": 20, "n_layer": 3, "n_head": 3, "vocab_size": 23,
    "n_positions": 90, "scale_attn_by_inverse_layer_idx": true, "tie_word_embeddings": false}"#;
const OPT: &str = r#"{"model_type": "opt", "hidden_size": 12, "ffn_dim": 20, "num_hidden_layers": 3,
    "num_attention_heads": 2, "vocab_size": 23, "max_position_embeddings": 90, "do_layer_norm_before": true}"#;
const BLOOM: &str = r#"{"model_type": "bloom", "hidden_size": 12, "n_layer": 3, "n_head": 3, "vocab_size": 23}"#;

const QWEN3: &str = r#"{"model_type": "qwen3", "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "vocab_size": 23, "rope_theta": 100.0}"#;

const GEMMA2: &str = r#"{"model_type": "gemma2", "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "vocab_size": 23, "rope_theta": 100.0,
    "query_pre_attn_scalar": 5, "sliding_window": 4, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0}"#;
const GEMMA3: &str = r#"{"model_type": "gemma3_text", "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "vocab_size": 23, "sliding_window_pattern": 2,
    "rope_theta": 100.0, "rope_local_base_freq": 10.0, "sliding_window": 4, "tie_word_embeddings": false}"#;
const OLMO2: &str = r#"{"model_type": "olmo2", "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 23, "rope_theta": 100.0}"#;
const NEOX: &str = r#"{"model_type": "gpt_neox", "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3,
    "num_attention_heads": 2, "vocab_size": 23, "rotary_pct": 0.34, "rotary_emb_base": 100.0}"#;
const PHI3: &str = r#"{"model_type": "phi3", "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3,
    "num_attention_heads": 3, "num_key_value_heads": 1, "vocab_size": 23, "rope_theta": 100.0,
    "partial_rotary_factor": 0.5, "sliding_window": 5}"#;
const PHI: &str = r#"{"model_type": "phi", "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3,
    "num_attention_heads": 3, "num_key_value_heads": 1, "vocab_size": 23, "rope_theta": 100.0}"#;

const GPTJ: &str = r#"{"model_type": "gptj", "n_embd": 12, "n_inner": 20, "n_layer": 3, "n_head": 2, "vocab_size": 23,
    "rotary_dim": 4}"#;

const SMOLLM3: &str = r#"{"model_type": "smollm3", "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4, "vocab_size": 23, "no_rope_layers": [1, 0, 1]}"#;

const STARCODER2: &str = r#"{"model_type": "starcoder2", "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3,
    "num_attention_heads": 3, "num_key_value_heads": 1, "vocab_size": 23, "sliding_window": 5}"#;
const STABLELM: &str = r#"{"model_type": "stablelm", "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3,
    "num_attention_heads": 3, "num_key_value_heads": 1, "vocab_size": 23, "partial_rotary_factor": 0.5,
    "use_parallel_residual": true}"#;

/// A model of every family, and of their variants.
pub fn models() -> Vec<String> {
    let tied = LLAMA.replace("embeddings\": false", "embeddings\": true");
    let post_norm = OPT.replace("before\": true", "before\": false, \"word_embed_proj_dim\": 8");
    assert!(tied != LLAMA && post_norm != OPT);
    vec![LLAMA.into(), tied, GPT2.into(), OPT.into(), post_norm, BLOOM.into()]
        .into_iter()
        .chain([QWEN3, GEMMA2, GEMMA3, OLMO2, NEOX, PHI3, PHI, GPTJ, SMOLLM3, STARCODER2, STABLELM].map(String::from))
        .collect()
}

/// Models whose tokens all see one another.
pub fn bidirectional() -> [String; 2] {
    let window = LLAMA
        .replace("llama", "mistral")
        .replace("\"attention_bias\": true, \"mlp_bias\": true,", "\"sliding_window\": 4,");
    [window, BLOOM.to_owned()].map(|config| config.replacen('{', "{\"is_causal\": false, ", 1))
}
