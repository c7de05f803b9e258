//! The fields of `adapter_config.json` that PEFT 0.21 knows, and what becomes of each here.

use serde_json::Value;

use crate::Result;
use crate::formats::json::Fields;

/// What becomes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Read, or checked by the code that reads.
    Used,
    /// Nothing that a loaded adapter computes depends on it: why.
    Harmless(&'static str),
    /// PEFT acts on it and nothing here does: only `null` and what Python takes for false leave it alone.
    RefusedUnlessFalse,
    /// The same, where an empty object turns it on as well: only `null` leaves it alone.
    RefusedUnlessNull,
}

use Use::{Harmless, RefusedUnlessFalse, RefusedUnlessNull, Used};

const RECORD: &str = "a record, which nothing reads when an adapter is loaded";
const GPTQ: &str = "acts on GPTQ weights alone, which are not read here";
const MLP: &str = "says how an MLP made the rows; the file has the rows";
const STARTS: &str = "says how a training starts; the file's tensors replace what it started from";

/// `PeftConfig`: of every kind of adapter.
const COMMON: &[(&str, Use)] = &[
    ("auto_mapping", Harmless(RECORD)),
    ("base_model_name_or_path", Used),
    ("inference_mode", Harmless("PEFT sets it when it loads, whatever the file says")),
    ("peft_type", Used),
    ("peft_version", Harmless(RECORD)),
    ("revision", Used),
    ("task_type", Used),
];

/// `LoraConfig`.
pub(super) const LORA: &[(&str, Use)] = &[
    ("alora_invocation_tokens", RefusedUnlessFalse),
    ("alpha_pattern", Used),
    ("arrow_config", RefusedUnlessNull),
    ("bias", Used),
    ("corda_config", Harmless(STARTS)),
    ("ensure_weight_tying", Harmless("acts on adapted or saved embeddings alone, which are refused")),
    ("eva_config", Harmless(STARTS)),
    ("exclude_modules", Used),
    ("fan_in_fan_out", Used),
    ("init_lora_weights", Used),
    ("kasa_config", RefusedUnlessNull),
    ("layer_replication", RefusedUnlessFalse),
    ("layers_pattern", Used),
    ("layers_to_transform", Used),
    ("loftq_config", Harmless(STARTS)),
    ("lora_alpha", Used),
    ("lora_bias", RefusedUnlessFalse),
    ("lora_dropout", Used),
    ("lora_ga_config", Harmless(STARTS)),
    ("megatron_config", RefusedUnlessFalse),
    ("megatron_core", Harmless("names a package that only megatron_config makes PEFT use")),
    ("modules_to_save", Used),
    ("monteclora_config", RefusedUnlessNull),
    ("qalora_group_size", Harmless(GPTQ)),
    ("r", Used),
    ("rank_pattern", Used),
    ("target_modules", Used),
    ("target_parameters", RefusedUnlessFalse),
    ("trainable_token_indices", Used),
    ("use_bdlora", RefusedUnlessNull),
    ("use_dora", RefusedUnlessFalse),
    ("use_qalora", Harmless(GPTQ)),
    ("use_rslora", Used),
    ("velora_config", RefusedUnlessNull),
];

/// `PromptTuningConfig`, `PromptEncoderConfig` and `PrefixTuningConfig`.
pub(super) const PROMPT: &[(&str, Use)] = &[
    ("encoder_dropout", Harmless(MLP)),
    ("encoder_hidden_size", Used),
    ("encoder_num_layers", Harmless(MLP)),
    ("encoder_reparameterization_type", Harmless(MLP)),
    ("init_weights", Harmless(STARTS)),
    ("modules_to_save", RefusedUnlessFalse),
    ("num_attention_heads", Used),
    ("num_layers", Used),
    ("num_transformer_submodules", Used),
    ("num_virtual_tokens", Used),
    ("prefix_projection", Used),
    ("prompt_tuning_init", Harmless(STARTS)),
    ("prompt_tuning_init_text", Harmless(STARTS)),
    ("token_dim", Used),
    ("tokenizer_kwargs", Harmless(STARTS)),
    ("tokenizer_name_or_path", Harmless(STARTS)),
];

/// Checks the fields of a file against a table of its kind. A field that PEFT 0.21 does not know is a warning: PEFT
/// gives one too, and drops it.
///
/// # Errors
/// A refused field that is set.
pub(super) fn check(f: &Fields, table: &[(&str, Use)], plain: &str) -> Result<()> {
    let of = |key: &str| COMMON.iter().chain(table).find(|(name, _)| *name == key).map(|(_, of)| *of);
    for key in f.keys() {
        let none = match of(key) {
            Some(RefusedUnlessFalse) if !f.get(key).is_none_or(is_false) => "null, false or no such field",
            Some(RefusedUnlessNull) if f.get(key).is_some() => "null or no such field",
            _ => continue,
        };
        return Err(f.error(key, format!("{plain} ({none})")));
    }
    let unknown: Vec<&str> = f.keys().filter(|key| of(key).is_none()).collect();
    if !unknown.is_empty() {
        let (path, keys) = (f.path().display(), unknown.join(", "));
        log::warn!("{path}: {keys}: not known to PEFT 0.21, which drops such fields: so does llamaprobe");
    }
    Ok(())
}

/// The keys of a configuration that its table does not have.
pub(super) fn unknown<'a>(config: &'a Value, table: &[(&str, Use)]) -> Vec<&'a str> {
    let known = |key: &str| COMMON.iter().chain(table).any(|(name, _)| *name == key);
    config.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).filter(|key| !known(key)).collect()
}

/// What Python takes for false.
pub(super) fn is_false(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_name_every_field_once() {
        for table in [LORA, PROMPT] {
            let mut names: Vec<_> = COMMON.iter().chain(table).map(|(name, _)| *name).collect();
            names.sort_unstable();
            let all = names.len();
            names.dedup();
            assert_eq!(names.len(), all);
        }
    }

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
        for (table, of_peft) in [(LORA, lora), (PROMPT, prompt)] {
            let mut ours: Vec<_> = COMMON.iter().chain(table).map(|(name, _)| *name).collect();
            let mut theirs: Vec<_> = of_peft.split_whitespace().collect();
            ours.sort_unstable();
            theirs.sort_unstable();
            assert_eq!(ours, theirs);
        }
    }
}
