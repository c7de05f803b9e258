//! The keys of `config.json`, as transformers 5.24 knows them.

use crate::Result;
use crate::arch::Family;
use crate::formats::json::Fields;
use crate::formats::keys::{Harmless, Keys};

/// What a model of a family has to say.
pub fn of(family: Family) -> Keys {
    let used = match family {
        Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 => LLAMA,
        Family::Gpt2 => GPT2,
        Family::Opt => OPT,
        Family::Bloom => BLOOM,
        Family::Gemma2 => GEMMA2,
        Family::Gemma3 => GEMMA3,
        Family::Gemma3Images => GEMMA3_IMAGES,
        Family::Olmo2 | Family::Olmo3 => OLMO,
        Family::GptNeox => GPT_NEOX,
        Family::Phi3 => PHI3,
        Family::Phi => PHI,
        Family::GptJ => GPTJ,
        Family::Starcoder2 => STARCODER2,
        Family::StableLm => STABLELM,
        Family::SmolLm3 => SMOLLM3,
    };
    Keys { used, harmless: HARMLESS, refused: REFUSED }
}

macro_rules! used {
    ($name:ident: $($key:literal)*) => {
        const $name: &[&str] = &[
            "model_type", "dtype", "torch_dtype", "vocab_size", "tie_word_embeddings", "is_causal", "bos_token_id",
            "eos_token_id", "pad_token_id", "transformers_weights", "quantization_config", $($key),*
        ];
    };
}

used! { LLAMA:
    "hidden_size" "intermediate_size" "num_hidden_layers" "num_attention_heads" "num_key_value_heads" "head_dim"
    "hidden_act" "max_position_embeddings" "rms_norm_eps" "attention_bias" "mlp_bias" "rope_theta" "rope_scaling"
    "rope_parameters" "partial_rotary_factor" "original_max_position_embeddings" "sliding_window" "use_sliding_window"
    "max_window_layers" "layer_types"
}
used! { GEMMA2:
    "hidden_size" "intermediate_size" "num_hidden_layers" "num_attention_heads" "num_key_value_heads" "head_dim"
    "hidden_activation" "hidden_act" "max_position_embeddings" "rms_norm_eps" "attention_bias" "rope_theta" "rope_scaling"
    "rope_parameters" "original_max_position_embeddings" "sliding_window" "layer_types" "query_pre_attn_scalar"
    "attn_logit_softcapping"
    "final_logit_softcapping" "use_bidirectional_attention"
}
used! { GEMMA3:
    "hidden_size" "intermediate_size" "num_hidden_layers" "num_attention_heads" "num_key_value_heads" "head_dim"
    "hidden_activation" "hidden_act" "max_position_embeddings" "rms_norm_eps" "attention_bias" "rope_theta" "rope_scaling"
    "rope_parameters" "rope_local_base_freq" "original_max_position_embeddings" "sliding_window"
    "sliding_window_pattern" "layer_types"
    "query_pre_attn_scalar" "attn_logit_softcapping" "final_logit_softcapping" "use_bidirectional_attention"
}
/// The outer keys of a model of texts and images; those of the text part are [`GEMMA3`].
const GEMMA3_IMAGES: &[&str] = &[
    "model_type",
    "dtype",
    "torch_dtype",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "transformers_weights",
    "quantization_config",
    "text_config",
];
used! { OLMO:
    "hidden_size" "intermediate_size" "num_hidden_layers" "num_attention_heads" "num_key_value_heads" "head_dim"
    "hidden_act" "max_position_embeddings" "rms_norm_eps" "attention_bias" "rope_theta" "rope_scaling" "rope_parameters"
    "original_max_position_embeddings" "sliding_window" "layer_types"
}
used! { GPT_NEOX:
    "hidden_size" "num_attention_heads" "num_hidden_layers" "intermediate_size" "hidden_act" "max_position_embeddings"
    "layer_norm_eps" "use_parallel_residual" "attention_bias" "rotary_pct" "rotary_emb_base" "rope_scaling"
    "rope_parameters" "partial_rotary_factor" "original_max_position_embeddings"
}
used! { PHI3:
    "hidden_size" "intermediate_size" "num_hidden_layers" "num_attention_heads" "num_key_value_heads" "head_dim"
    "hidden_act" "max_position_embeddings" "original_max_position_embeddings" "rms_norm_eps" "attention_bias" "rope_theta"
    "rope_scaling" "rope_parameters" "partial_rotary_factor" "sliding_window" "layer_types"
}
used! { PHI:
    "hidden_size" "intermediate_size" "num_hidden_layers" "num_attention_heads" "num_key_value_heads" "head_dim" "hidden_act"
    "max_position_embeddings" "layer_norm_eps" "qk_layernorm" "rope_theta" "rope_scaling" "rope_parameters"
    "partial_rotary_factor" "original_max_position_embeddings"
}
used! { SMOLLM3:
    "hidden_size" "intermediate_size" "num_hidden_layers" "num_attention_heads" "num_key_value_heads" "head_dim" "hidden_act"
    "max_position_embeddings" "rms_norm_eps" "attention_bias" "mlp_bias" "rope_theta" "rope_scaling" "rope_parameters"
    "partial_rotary_factor" "original_max_position_embeddings" "sliding_window" "use_sliding_window" "layer_types"
    "no_rope_layers" "no_rope_layer_interval"
}
used! { STARCODER2:
    "hidden_size" "intermediate_size" "num_hidden_layers" "num_attention_heads" "num_key_value_heads" "head_dim" "hidden_act"
    "max_position_embeddings" "norm_epsilon" "use_bias" "rope_theta" "rope_scaling" "rope_parameters" "sliding_window"
    "partial_rotary_factor" "original_max_position_embeddings"
}
used! { STABLELM:
    "hidden_size" "intermediate_size" "num_hidden_layers" "num_attention_heads" "num_key_value_heads" "hidden_act"
    "max_position_embeddings" "layer_norm_eps" "use_qkv_bias" "qk_layernorm" "use_parallel_residual" "rope_theta"
    "rope_scaling" "rope_parameters" "partial_rotary_factor" "original_max_position_embeddings"
}
used! { GPT2:
    "n_embd" "hidden_size" "n_head" "num_attention_heads" "n_layer" "num_hidden_layers" "n_inner" "n_positions"
    "max_position_embeddings" "activation_function" "layer_norm_epsilon" "scale_attn_weights"
    "scale_attn_by_inverse_layer_idx" "add_cross_attention" "position_embedding_type"
}
used! { GPTJ:
    "n_embd" "hidden_size" "n_head" "num_attention_heads" "n_layer" "num_hidden_layers" "n_inner" "n_positions"
    "max_position_embeddings" "activation_function" "layer_norm_epsilon" "rotary_dim"
}
used! { OPT:
    "hidden_size" "num_attention_heads" "num_hidden_layers" "ffn_dim" "word_embed_proj_dim" "max_position_embeddings"
    "activation_function" "do_layer_norm_before" "_remove_final_layer_norm" "enable_bias" "layer_norm_elementwise_affine"
    "position_embedding_type"
}
used! { BLOOM:
    "hidden_size" "n_embed" "n_embd" "n_head" "num_attention_heads" "n_layer" "num_hidden_layers" "layer_norm_epsilon"
    "apply_residual_connection_post_layernorm" "seq_length" "position_embedding_type" "slow_but_exact"
}

/// The dropouts of a model: transformers applies them in training, this library trains the model as it is evaluated.
const DROPOUTS: &[&str] = &[
    "attention_dropout",
    "attn_pdrop",
    "resid_pdrop",
    "embd_pdrop",
    "dropout",
    "hidden_dropout",
    "layerdrop",
    "residual_dropout",
    "embedding_dropout",
];

/// The largest of the model's dropouts, where the file is silent those of the family.
///
/// # Errors
/// A dropout that is no number.
pub fn dropout(f: &Fields, family: Family) -> Result<f64> {
    let defaults: &[&str] = match family {
        Family::Gpt2 => &["attn_pdrop", "resid_pdrop", "embd_pdrop"],
        Family::Opt => &["dropout"],
        _ => &[],
    };
    DROPOUTS.iter().try_fold(0.0f64, |largest, key| {
        let default = if defaults.contains(key) && !f.has(key) { 0.1 } else { 0.0 };
        Ok(largest.max(f.f64(key)?.unwrap_or(default)))
    })
}

const HARMLESS: &[Harmless] = &[
    (
        "names, versions, and code of others that is not run",
        &[
            "architectures",
            "auto_map",
            "transformers_version",
            "_name_or_path",
            "name_or_path",
            "_commit_hash",
            "unsloth_version",
            "unsloth_fixed",
            "model_name",
            "finetuning_task",
            "license",
        ],
    ),
    (
        "how it is computed, not what",
        &[
            "use_cache",
            "attn_implementation",
            "_attn_implementation",
            "_attn_implementation_internal",
            "_attn_implementation_autoset",
            "_experts_implementation_internal",
            "pretraining_tp",
            "reorder_and_upcast_attn",
            "attention_softmax_in_fp32",
            "masked_softmax_fusion",
            "bias_dropout_fusion",
            "gradient_checkpointing",
            "chunk_size_feed_forward",
            "torchscript",
            "use_bfloat16",
            "tp_size",
        ],
    ),
    ("of training, which says that it does not apply them", DROPOUTS),
    ("of the start of training", &["initializer_range", "init_std", "classifier_dropout", "activation_dropout"]),
    (
        "of classifiers, whose heads are not loaded",
        &[
            "num_labels",
            "id2label",
            "label2id",
            "problem_type",
            "summary_type",
            "summary_use_proj",
            "summary_activation",
            "summary_proj_to_labels",
            "summary_first_dropout",
            "summary_last_dropout",
            "task_specific_params",
            "score_bias",
        ],
    ),
    (
        "which tensors are returned, and under which index; here each has its name",
        &["output_hidden_states", "output_attentions", "return_dict", "use_return_dict", "tie_last_hidden_states"],
    ),
    (
        "of images, which are not read",
        &[
            "vision_config",
            "mm_tokens_per_image",
            "image_token_index",
            "boi_token_index",
            "eoi_token_index",
            "image_token_id",
            "boi_token_id",
            "eoi_token_id",
        ],
    ),
    (
        "of the tokenizer and of encoders",
        &[
            "unk_token_id",
            "sep_token_id",
            "cls_token_id",
            "mask_token_id",
            "model_max_length",
            "tokenizer_class",
            "prefix",
            "decoder_start_token_id",
            "is_decoder",
            "predict_special_tokens",
            "cross_attention_hidden_size",
            "tie_encoder_decoder",
        ],
    ),
    (
        "read by no release since 5.0, or only for other families",
        &[
            "n_ctx",
            "max_sequence_length",
            "seq_length",
            "max_window_layers",
            "use_sliding_window",
            "skip_bias_add",
            "skip_bias_add_qkv",
            "unk_token",
            "rotary",
            "rotary_emb_base",
            "scale_attn_weights",
            "pruned_heads",
            "remove_invalid_values",
            "offset_alibi",
            "bias",
            "rope_theta",
            "fuse_matmul",
            "_sliding_window_pattern",
        ],
    ),
    (
        "of generation, which are those of generation_config.json where there is none",
        &[
            "max_length",
            "max_new_tokens",
            "min_length",
            "min_new_tokens",
            "do_sample",
            "early_stopping",
            "num_beams",
            "num_beam_groups",
            "diversity_penalty",
            "temperature",
            "top_k",
            "top_p",
            "min_p",
            "typical_p",
            "repetition_penalty",
            "encoder_repetition_penalty",
            "length_penalty",
            "no_repeat_ngram_size",
            "encoder_no_repeat_ngram_size",
            "bad_words_ids",
            "num_return_sequences",
            "output_scores",
            "return_dict_in_generate",
            "forced_bos_token_id",
            "forced_eos_token_id",
            "exponential_decay_length_penalty",
            "suppress_tokens",
            "begin_suppress_tokens",
            "renormalize_logits",
            "epsilon_cutoff",
            "eta_cutoff",
            "stop_strings",
            "cache_implementation",
        ],
    ),
];

const REFUSED: &[(&str, &[&str])] = &[
    ("compression_config", &[]),
    ("per_layer_config", &["{}"]),
    ("is_encoder_decoder", &["false"]),
    ("use_mrope", &["false"]),
];
