//! The keys of a tokenizer's files: those that are used, those that change nothing here, and what is said of others.

use std::path::Path;

use serde_json::Value;

use super::added::Written;
use crate::formats::json::Fields;
use crate::formats::keys::Keys;
use crate::{Error, Result};

/// Keys of `tokenizer_config.json` and `special_tokens_map.json`.
pub const KEYS: Keys = Keys {
    used: &[
        "*_token",
        "add_bos_token",
        "add_eos_token",
        "add_prefix_space",
        "added_tokens_decoder",
        "additional_special_tokens",
        "auto_map",
        "chat_template",
        "clean_up_tokenization_spaces",
        "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
        "extra_special_tokens",
        "fast_tokenizer_files",
        "fix_mistral_regex",
        "init_inputs",
        "legacy",
        "model_specific_special_tokens",
        "split_special_tokens",
        "tokenizer_class",
    ],
    harmless: &[
        (
            "nothing is cut off or padded unless a call asks for it, and none does",
            &[
                "max_len",
                "max_length",
                "model_max_length",
                "pad_to_multiple_of",
                "pad_token_type_id",
                "padding",
                "padding_side",
                "stride",
                "truncation",
                "truncation_side",
                "truncation_strategy",
            ],
        ),
        (
            "what a call returns beside ids, or says",
            &["model_input_names", "return_attention_mask", "return_token_type_ids", "verbose"],
        ),
        (
            "files are those of the directory, whatever paths they were saved with",
            &[
                "added_tokens_file",
                "files_loaded",
                "gguf_file",
                "merges",
                "merges_file",
                "special_tokens_map_file",
                "tokenizer_file",
                "vocab",
                "vocab_file",
            ],
        ),
        (
            "where the tokenizer came from, and what loaded it",
            &[
                "_commit_hash",
                "_from_auto",
                "backend",
                "is_local",
                "local_files_only",
                "name_or_path",
                "processor_class",
                "slow_tokenizer_class",
                "tokenizer_type",
                "trust_remote_code",
                "transformers_version",
                "use_fast",
                "vocab_size",
            ],
        ),
        (
            "beside the chat template, which is used; transformers reads them only when asked to",
            &["chat_control_tokens", "response_schema", "response_template", "use_default_system_prompt"],
        ),
        (
            "of tokenizers written in Python or of sentencepiece; the classes here keep or ignore them",
            &["errors", "sp_model", "sp_model_kwargs", "spaces_between_special_tokens", "trim_offsets", "unk_id"],
        ),
        (
            "arguments of classes that are refused; to the classes here, and to the generic one, they are nothing",
            &[
                "do_basic_tokenize",
                "do_lower_case",
                "from_slow",
                "keep_accents",
                "never_split",
                "remove_space",
                "strip_accents",
                "tokenize_chinese_chars",
                "wordpieces_prefix",
            ],
        ),
    ],
    refused: &[],
};

/// The keys among the used that are true or false.
const FLAGS: [&str; 8] = [
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "clean_up_tokenization_spaces",
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
    "fix_mistral_regex",
    "legacy",
    "split_special_tokens",
];

/// Keys of `tokenizer.json`.
pub const FILE: Keys = Keys {
    used: &["added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model", "padding"],
    harmless: &[("nothing is cut off unless a call asks for it", &["truncation"]), ("of the format", &["version"])],
    refused: &[],
};

/// Looks at every key of a configuration file: notes the unknown ones.
///
/// # Errors
/// A key that transformers acts upon and this program does not, or a value that is none of its key's.
pub(super) fn check(fields: &Fields) -> Result<()> {
    for key in ["additional_special_tokens", "extra_special_tokens"] {
        let whole = match fields.get(key) {
            None => true,
            Some(Value::Array(list)) => list.iter().all(|token| Written::read(token).is_some()),
            Some(Value::Object(named)) => named.values().all(|token| Written::read(token).is_some()),
            Some(_) => false,
        };
        if !whole {
            return Err(fields.error(key, "a list of tokens, or tokens by their names"));
        }
    }
    for key in FLAGS {
        fields.bool(key)?;
    }
    if fields.get("init_inputs").is_some_and(|inputs| inputs != &Value::Array(Vec::new())) {
        return Err(fields.error("init_inputs", "none (arguments of a tokenizer's class without a name are not read)"));
    }
    let other = |file: &Value| file != "tokenizer.json";
    if fields.list("fast_tokenizer_files")?.is_some_and(|files| files.iter().any(other)) {
        return Err(fields.error("fast_tokenizer_files", "tokenizer.json alone (no file for a version is chosen)"));
    }
    KEYS.check(fields)
}

/// Looks at the keys of a `tokenizer.json`, and at its model.
///
/// # Errors
/// The model drops merges at random; a template of the post-processor has a token that it does not define, of which the
/// tokenizers crate would make a panic.
pub(super) fn check_file(path: &Path, file: &Value) -> Result<()> {
    FILE.check(&Fields::new(path, file)?)?;
    check_templates(path, &file["post_processor"])?;
    let dropout = &file["model"]["dropout"];
    if !dropout.is_null() && dropout.as_f64() != Some(0.0) {
        let expected = "null or 0 (merges that are left out at random give other ids at every call)";
        return Err(Error::field(path, "model.dropout", expected, dropout.to_string()));
    }
    Ok(())
}

/// Checks that every template of a post-processor defines its special tokens.
fn check_templates(path: &Path, processor: &Value) -> Result<()> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    list(&processor["processors"]).iter().try_for_each(|part| check_templates(path, part))?;
    let pieces = [list(&processor["single"]), list(&processor["pair"])].concat();
    let tokens = pieces.iter().filter_map(|piece| piece["SpecialToken"]["id"].as_str());
    match tokens.into_iter().find(|token| processor["special_tokens"].get(token).is_none()) {
        Some(token) => {
            let field = "post_processor.special_tokens";
            Err(Error::field(path, field, format!("{token:?}, which the template has"), "no such token"))
        }
        None => Ok(()),
    }
}
