use llamaprobe::formats::tokenizer::Tokenizer;

use super::{Case, case, put};

/// A byte-level tokenizer of three tokens.
const TINY: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
    "pre_tokenizer": null, "post_processor": null, "decoder": null,
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "<s>": 2}, "merges": []}}"#;

pub fn cases() -> Vec<Case> {
    let with = |name: &str, files: &[(&'static str, &str)], words: &[&str]| {
        let files: Vec<_> = files.iter().map(|(file, text)| (*file, text.to_string())).collect();
        case(format!("tokenizer: {name}"), words, move |dir| {
            for (file, text) in &files {
                put(dir, file, text);
            }
            Tokenizer::load(dir).map(|_| ())
        })
    };
    let config = |text: &str, words: &[&str]| {
        with(
            text,
            &[("tokenizer.json", TINY), ("tokenizer_config.json", text)],
            &[&["tokenizer_config.json"], words].concat(),
        )
    };
    vec![
        with("nothing", &[], &["tokenizer.json", "vocab.json"]),
        with("empty", &[("tokenizer.json", "")], &["tokenizer.json", "EOF"]),
        with("an empty object", &[("tokenizer.json", "{}")], &["tokenizer.json"]),
        with("unknown model", &[("tokenizer.json", &TINY.replace("BPE", "XPE"))], &["tokenizer.json"]),
        with(
            "merges left out at random",
            &[("tokenizer.json", &TINY.replace("\"merges\"", "\"dropout\": 0.1, \"merges\""))],
            &["tokenizer.json", "model.dropout", "0.1"],
        ),
        with(
            "template of a token that it does not define",
            &[(
                "tokenizer.json",
                &TINY.replace(
                    "\"post_processor\": null",
                    r#""post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<x>", "type_id": 0}}],
                        "pair": [], "special_tokens": {}}"#,
                ),
            )],
            &["tokenizer.json", "post_processor.special_tokens", "<x>"],
        ),
        with(
            "ids that are none",
            &[("tokenizer.json", TINY), ("added_tokens.json", r#"{"<x>": "3"}"#)],
            &["added_tokens.json", "<x>"],
        ),
        with(
            "named token that is none",
            &[("tokenizer.json", TINY), ("special_tokens_map.json", r#"{"eos_token": 3}"#)],
            &["special_tokens_map.json", "eos_token", "3"],
        ),
        with(
            "merge of unknown tokens",
            &[("tokenizer.json", &TINY.replace("\"merges\": []", "\"merges\": [\"x y\"]"))],
            &["tokenizer.json"],
        ),
        with("vocabulary only", &[("vocab.json", "{\"a\": 0}")], &["merges.txt"]),
        with("vocabulary not JSON", &[("vocab.json", "{"), ("merges.txt", "")], &["vocab.json"]),
        with(
            "merges of unknown tokens",
            &[("vocab.json", "{\"a\": 0}"), ("merges.txt", "#version: 0.2\nx y\n")],
            &["merges.txt"],
        ),
        config("[]", &["object"]),
        config("{", &["EOF"]),
        config(r#"{"bos_token": ["<bos>"]}"#, &["bos_token", "<bos>"]),
        config(r#"{"added_tokens_decoder": {"three": {"content": "<x>"}}}"#, &["added_tokens_decoder"]),
        config(r#"{"added_tokens_decoder": {"3": "<x>"}}"#, &["added_tokens_decoder"]),
        config(r#"{"tokenizer_class": "BertTokenizer"}"#, &["tokenizer_class", "BertTokenizer"]),
        config(r#"{"auto_map": {"AutoTokenizer": ["own.Tokenizer", null]}}"#, &["auto_map"]),
        config(r#"{"init_inputs": ["vocab.txt"]}"#, &["init_inputs"]),
        config(r#"{"fast_tokenizer_files": ["tokenizer.4.0.0.json", "tokenizer.json"]}"#, &["fast_tokenizer_files"]),
        config(r#"{"eos_token": 2}"#, &["eos_token", "2"]),
        config(r#"{"eos_token": {"text": "<s>"}}"#, &["eos_token"]),
        config(r#"{"bos_token": "<s>", "add_bos_token": "yes"}"#, &["add_bos_token", "yes"]),
        config(r#"{"chat_template": "{% for %}"}"#, &["chat_template"]),
        config(r#"{"chat_template": 3}"#, &["chat_template"]),
        config(r#"{"chat_template": [{"name": "tool_use", "template": ""}]}"#, &["chat_template", "default"]),
        config(r#"{"additional_special_tokens": [1]}"#, &["additional_special_tokens"]),
        with(
            "stop is no id",
            &[("tokenizer.json", TINY), ("generation_config.json", r#"{"eos_token_id": "x"}"#)],
            &["generation_config.json", "eos_token_id"],
        ),
    ]
}
