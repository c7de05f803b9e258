//! The fields of `adapter_config.json` that PEFT 0.21 knows, and what becomes of each here.

use crate::formats::keys::{FALSE, Keys};

const MLP: &str = "how an MLP made the rows; the file has the rows";
const STARTS: &str = "how a training starts; the file's tensors replace what it started from";
const RECORD: (&str, &[&str]) =
    ("records, which nothing reads when an adapter is loaded", &["auto_mapping", "peft_version"]);
const MODE: (&str, &[&str]) = ("set by PEFT when it loads, whatever the file says", &["inference_mode"]);

/// `LoraConfig`.
pub const LORA: Keys = Keys {
    used: &[
        "peft_type",
        "task_type",
        "base_model_name_or_path",
        "revision",
        "r",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",
        "alpha_pattern",
        "use_dora",
        "use_rslora",
        "bias",
        "fan_in_fan_out",
        "init_lora_weights",
        "modules_to_save",
        "trainable_token_indices",
        "ensure_weight_tying",
    ],
    harmless: &[
        RECORD,
        MODE,
        (STARTS, &["corda_config", "eva_config", "loftq_config", "lora_ga_config"]),
        ("acts on GPTQ weights alone, which are not read here", &["use_qalora", "qalora_group_size"]),
        ("names a package that only megatron_config makes PEFT use", &["megatron_core"]),
    ],
    refused: &[
        ("alora_invocation_tokens", FALSE),
        ("arrow_config", &[]),
        ("kasa_config", &[]),
        ("layer_replication", FALSE),
        ("lora_bias", FALSE),
        ("megatron_config", FALSE),
        ("monteclora_config", &[]),
        ("target_parameters", FALSE),
        ("use_bdlora", &[]),
        ("velora_config", &[]),
    ],
};

/// `IA3Config`.
pub const IA3: Keys = Keys {
    used: &[
        "peft_type",
        "task_type",
        "base_model_name_or_path",
        "revision",
        "target_modules",
        "exclude_modules",
        "feedforward_modules",
        "fan_in_fan_out",
        "modules_to_save",
    ],
    harmless: &[RECORD, MODE, (STARTS, &["init_ia3_weights"])],
    refused: &[],
};

/// `PromptTuningConfig`, `PromptEncoderConfig` and `PrefixTuningConfig`.
pub const PROMPT: Keys = Keys {
    used: &[
        "peft_type",
        "task_type",
        "base_model_name_or_path",
        "revision",
        "num_virtual_tokens",
        "token_dim",
        "num_transformer_submodules",
        "num_attention_heads",
        "num_layers",
        "encoder_hidden_size",
        "prefix_projection",
    ],
    harmless: &[
        RECORD,
        MODE,
        (MLP, &["encoder_dropout", "encoder_num_layers", "encoder_reparameterization_type"]),
        (
            STARTS,
            &[
                "init_weights",
                "prompt_tuning_init",
                "prompt_tuning_init_text",
                "tokenizer_kwargs",
                "tokenizer_name_or_path",
            ],
        ),
    ],
    refused: &[("modules_to_save", FALSE)],
};

#[cfg(test)]
mod tests {
    use super::*;

    /// `dataclasses.fields` of PEFT 0.21.2, without `runtime_config`, which PEFT drops from a file with a warning.
    #[test]
    fn tables_have_the_fields_of_peft() {
        let lora = "task_type peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode r \
            target_modules exclude_modules lora_alpha lora_dropout fan_in_fan_out bias use_rslora modules_to_save \
            init_lora_weights layers_to_transform layers_pattern rank_pattern alpha_pattern megatron_config \
            megatron_core trainable_token_indices loftq_config eva_config corda_config lora_ga_config use_dora \
            velora_config alora_invocation_tokens use_qalora qalora_group_size monteclora_config layer_replication \
            lora_bias target_parameters use_bdlora arrow_config kasa_config ensure_weight_tying";
        let prompt = "task_type peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode \
            num_virtual_tokens token_dim num_transformer_submodules num_attention_heads num_layers modules_to_save \
            prompt_tuning_init prompt_tuning_init_text tokenizer_name_or_path tokenizer_kwargs init_weights \
            encoder_hidden_size prefix_projection encoder_reparameterization_type encoder_num_layers encoder_dropout";
        let ia3 = "task_type peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode \
            target_modules exclude_modules feedforward_modules fan_in_fan_out modules_to_save init_ia3_weights";
        for (table, of_peft) in [(LORA, lora), (IA3, ia3), (PROMPT, prompt)] {
            let harmless = table.harmless.iter().flat_map(|(_, keys)| keys.iter());
            let refused = table.refused.iter().map(|(key, _)| key);
            let mut ours: Vec<_> = table.used.iter().chain(harmless).chain(refused).copied().collect();
            let mut theirs: Vec<_> = of_peft.split_whitespace().collect();
            ours.sort_unstable();
            theirs.sort_unstable();
            assert_eq!(ours, theirs);
        }
    }
}
