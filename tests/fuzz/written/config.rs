use llamaprobe::arch::ModelConfig;
use serde_json::{Value, json};

use super::{Case, case, put};

pub fn cases() -> Vec<Case> {
    let text = |name: &str, text: Vec<u8>, words: &[&str]| {
        let words = [&["config.json"], words].concat();
        case(format!("config: {name}"), &words, move |dir| {
            put(dir, "config.json", &text);
            ModelConfig::load(dir).map(|_| ())
        })
    };
    let with = |patch: Value, words: &[&str]| {
        let mut config = json!({"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "vocab_size": 100,
            "num_hidden_layers": 4, "num_attention_heads": 8});
        config.as_object_mut().expect("object").extend(patch.as_object().expect("object").clone());
        text(&patch.to_string(), config.to_string().into_bytes(), words)
    };
    let family = |model_type: &str, patch: Value, words: &[&str]| {
        let mut config = match model_type {
            "opt" => json!({"hidden_size": 12, "ffn_dim": 20, "num_hidden_layers": 2, "num_attention_heads": 3}),
            _ => json!({"n_embd": 12, "n_layer": 2, "n_head": 3}),
        };
        let map = config.as_object_mut().expect("object");
        map.extend([("model_type".to_owned(), model_type.into()), ("vocab_size".to_owned(), 29.into())]);
        map.extend(patch.as_object().expect("object").clone());
        text(&format!("{model_type} {patch}"), config.to_string().into_bytes(), words)
    };
    // Of LLaMA's make, from Qwen 3 on.
    let recent = |model_type: &str, patch: Value, words: &[&str]| {
        let mut config = json!({"model_type": model_type, "hidden_size": 64, "intermediate_size": 96, "vocab_size": 100,
            "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2});
        config.as_object_mut().expect("object").extend(patch.as_object().expect("object").clone());
        text(&format!("{model_type} {patch}"), config.to_string().into_bytes(), words)
    };
    let rope = |rope: Value, words: &[&str]| with(json!({"rope_scaling": rope}), words);
    let mut cases = vec![
        case("config: absent", &["config.json"], |dir| ModelConfig::load(dir).map(|_| ())),
        text("empty", vec![], &["EOF"]),
        text("not UTF-8", vec![b'{', 0xFF], &["utf-8"]),
        text("a list", b"[1]".to_vec(), &["object"]),
        text("cut off", br#"{"model_type": "llama""#.to_vec(), &["EOF"]),
        text("a key twice", br#"{"model_type": "llama", "model_type": "llama"}"#.to_vec(), &["model_type", "twice"]),
        text("deep", [b"{\"a\":".to_vec(), vec![b'['; 100_000]].concat(), &["recursion"]),
        text("NaN", br#"{"rms_norm_eps": NaN}"#.to_vec(), &["rms_norm_eps", "NaN"]),
        text("no model_type", b"{}".to_vec(), &["model_type"]),
    ];
    for key in ["hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers", "num_attention_heads"] {
        for bad in [json!(null), json!(0), json!(-1), json!(1.5), json!("64"), json!(u64::MAX)] {
            cases.push(with(json!({ key: bad }), &[key]));
        }
    }
    cases.extend([
        with(json!({"model_type": "gpt_neo"}), &["model_type", "gpt_neo", "mistral"]),
        with(json!({"model_type": 3}), &["model_type", "3"]),
        with(json!({"hidden_act": "quick_gelu"}), &["hidden_act", "quick_gelu", "silu"]),
        with(json!({"num_attention_heads": 7}), &["num_attention_heads", "64"]),
        with(json!({"num_attention_heads": 64}), &["num_attention_heads", "even"]),
        with(json!({"head_dim": 7}), &["head_dim", "even"]),
        with(json!({"head_dim": 0}), &["head_dim", "0"]),
        with(json!({"num_key_value_heads": 3}), &["num_key_value_heads", "8"]),
        with(json!({"num_key_value_heads": 16}), &["num_key_value_heads", "8"]),
        with(json!({"num_key_value_heads": 0}), &["num_key_value_heads", "0"]),
        with(json!({"rms_norm_eps": -1e-5}), &["rms_norm_eps"]),
        with(json!({"rms_norm_eps": "1e-5"}), &["rms_norm_eps"]),
        with(json!({"rms_norm_eps": 2}), &["rms_norm_eps"]),
        with(json!({"max_position_embeddings": 0}), &["max_position_embeddings"]),
        with(json!({"tie_word_embeddings": "yes"}), &["tie_word_embeddings"]),
        with(json!({"attention_bias": 1}), &["attention_bias"]),
        with(json!({"eos_token_id": "</s>"}), &["eos_token_id"]),
        with(json!({"bos_token_id": [1]}), &["bos_token_id"]),
        with(json!({"is_causal": "no"}), &["is_causal"]),
        with(json!({"compression_config": {}}), &["compression_config", "no such key"]),
        with(json!({"is_encoder_decoder": true}), &["is_encoder_decoder", "false"]),
        with(json!({"torch_dtype": "int8"}), &["torch_dtype", "int8"]),
        with(json!({"dtype": "float8_e4m3fn"}), &["dtype", "float8_e4m3fn"]),
        with(json!({"quantization_config": {"bits": 4}}), &["quantization_config"]),
        with(json!({"layer_types": ["full_attention"]}), &["layer_types", "4", "1"]),
        with(json!({"layer_types": ["full_attention", "linear_attention", "full_attention", "full_attention"]}), &["layer_types", "linear_attention"]),
        with(json!({"model_type": "mistral", "num_key_value_heads": 3}), &["num_key_value_heads"]),
        with(json!({"model_type": "mistral", "sliding_window": 0}), &["sliding_window"]),
        with(json!({"model_type": "mistral", "layer_types": ["full_attention", "full_attention", "full_attention", "full_attention"]}), &["layer_types[0]"]),
        with(json!({"model_type": "qwen2"}), &["num_key_value_heads", "32"]),
        with(json!({"model_type": "qwen2", "num_key_value_heads": 2, "use_mrope": true}), &["use_mrope"]),
        with(json!({"model_type": "qwen2", "num_key_value_heads": 2, "layer_types": ["sliding_attention", "full_attention", "full_attention", "full_attention"]}), &["layer_types[0]"]),
        with(json!({"rope_theta": 0}), &["rope_theta", "0"]),
        with(json!({"rope_theta": "10000"}), &["rope_theta"]),
        with(json!({"rope_theta": 5000.0, "rope_parameters": {"rope_theta": 10000.0}}), &["rope_parameters.rope_theta"]),
        with(json!({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "linear", "factor": 4.0}}), &["rope_scaling", "rope_parameters"]),
        rope(json!("linear"), &["rope_scaling", "object"]),
        rope(json!({"type": "su", "factor": 2.0}), &["rope_type", "su", "llama3"]),
        rope(json!({"rope_type": "longrope"}), &["short_factor", "4 positive numbers"]),
        rope(json!({"rope_type": "proportional"}), &["rope_type", "proportional"]),
        rope(json!({"rope_type": 1}), &["rope_scaling.rope_type"]),
        rope(json!({"rope_type": "linear", "type": "yarn", "factor": 2.0}), &["rope_scaling.type", "yarn"]),
        rope(json!({"type": "linear"}), &["rope_scaling.factor"]),
        rope(json!({"type": "linear", "factor": 0.5}), &["rope_scaling.factor", "0.5"]),
        rope(json!({"type": "linear", "factor": "8"}), &["rope_scaling.factor"]),
        rope(json!({"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 7}), &["rope_scaling.original_max_position_embeddings", "2048"]),
        rope(json!({"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0}), &["rope_scaling.low_freq_factor"]),
        rope(json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}), &["rope_scaling.high_freq_factor"]),
        rope(json!({"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}), &["rope_scaling.factor"]),
        rope(json!({"rope_type": "yarn", "factor": 4.0, "beta_fast": 1.0, "beta_slow": 32.0}), &["rope_scaling.beta_fast"]),
        rope(json!({"rope_type": "yarn", "factor": 4.0, "attention_factor": -1.0}), &["rope_scaling.attention_factor"]),
        rope(json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 0}), &["original_max_position_embeddings"]),
        rope(json!({"rope_type": "yarn", "factor": 4.0, "truncate": 1}), &["rope_scaling.truncate"]),
        rope(json!({"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.25}), &["rope_scaling.partial_rotary_factor"]),
        family("gpt2", json!({"n_embd": null}), &["n_embd"]),
        family("gpt2", json!({"hidden_size": 16}), &["hidden_size", "n_embd", "12"]),
        family("gpt2", json!({"n_head": 5}), &["n_head", "12"]),
        family("gpt2", json!({"activation_function": "quick_gelu"}), &["activation_function", "quick_gelu", "gelu_new"]),
        family("gpt2", json!({"add_cross_attention": true}), &["add_cross_attention"]),
        family("gpt2", json!({"position_embedding_type": "relative_key"}), &["position_embedding_type", "absolute"]),
        family("gpt2", json!({"layer_norm_epsilon": 1}), &["layer_norm_epsilon"]),
        family("gpt2", json!({"quantization_config": {"bits": 4}}), &["quantization_config"]),
        family("opt", json!({"ffn_dim": null}), &["ffn_dim"]),
        family("opt", json!({"activation_function": "mish"}), &["activation_function", "mish", "relu"]),
        family("opt", json!({"layer_norm_elementwise_affine": false}), &["layer_norm_elementwise_affine"]),
        family("opt", json!({"word_embed_proj_dim": 0}), &["word_embed_proj_dim"]),
        family("bloom", json!({"apply_residual_connection_post_layernorm": true}), &["apply_residual_connection_post_layernorm"]),
        family("bloom", json!({"position_embedding_type": "rotary"}), &["position_embedding_type", "alibi"]),
        family("bloom", json!({"n_embed": 24}), &["n_embed", "n_embd"]),
    ]);
    let layers = |third: &str| json!(["full_attention", "full_attention", third, "full_attention"]);
    let default = json!({"rope_type": "default"});
    cases.extend([
        recent("qwen3", json!({"rope_parameters": {"full_attention": default}}), &["rope_parameters.full_attention", "one rotation"]),
        recent("gemma2", json!({"sliding_window": null}), &["sliding_window", "sliding_attention"]),
        recent("gemma2", json!({"num_key_value_heads": null}), &["num_key_value_heads", "positive integer"]),
        recent("gemma3_text", json!({"rope_local_base_freq": "10000"}), &["rope_local_base_freq"]),
        recent("gemma3_text", json!({"rope_scaling": {"type": "linear", "factor": 8.0}}), &["rope_scaling.type", "rope_type"]),
        recent("gemma3_text", json!({"rope_scaling": default, "rope_parameters": {"full_attention": default}}), &["rope_scaling", "rope_parameters"]),
        recent("gemma3_text", json!({"rope_theta": 5.0, "rope_parameters": {"full_attention": {"rope_theta": 6.0}}}), &["rope_parameters.full_attention.rope_theta", "5"]),
        recent("olmo2", json!({"num_attention_heads": 3, "num_key_value_heads": 3}), &["num_attention_heads", "even", "21"]),
        recent("olmo3", json!({"sliding_window": null}), &["sliding_window", "sliding_attention"]),
        recent("olmo3", json!({"rope_parameters": {"sliding_attention": {"rope_type": "ntk"}}}), &["rope_type", "ntk", "yarn"]),
        recent("gpt_neox", json!({"rotary_emb_base": 1}), &["rotary_emb_base", "above 1"]),
        recent("gpt_neox", json!({"use_parallel_residual": "no"}), &["use_parallel_residual"]),
        recent("phi3", json!({"rope_scaling": {"type": "longrope", "short_factor": [1, 1, 1, 1, 1, 1, 1, 0]}}), &["rope_scaling.short_factor", "8 positive numbers"]),
        recent("phi3", json!({"partial_rotary_factor": 0.0}), &["partial_rotary_factor", "0"]),
        recent("phi3", json!({"original_max_position_embeddings": 0, "rope_scaling": {"type": "longrope", "short_factor": [1, 1, 1, 1, 1, 1, 1, 1], "long_factor": [1, 1, 1, 1, 1, 1, 1, 1]}}), &["original_max_position_embeddings"]),
        recent("phi3", json!({"layer_types": layers("sliding_attention")}), &["layer_types[2]"]),
    ]);
    cases
}
