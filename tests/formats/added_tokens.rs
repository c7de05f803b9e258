//! Where tokens come from, and which file has the last word.
//!
//! Each line of `added_tokens.jsonl` is a rule: the files of a directory that shows it, and the ids, the text without
//! special tokens, BOS and EOS that `AutoTokenizer` of transformers 5.24.0 (tokenizers 0.23.3) has for these very files.

use llamaprobe::formats::tokenizer::Tokenizer;
use serde_json::{Value, json};

use crate::support::temp;

/// The rules in their order.
fn cases() -> Vec<Value> {
    let lines = include_str!("added_tokens.jsonl").lines();
    lines.map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// A `tokenizer.json` of a few pieces in LLaMA's older form, with other values of some keys, and further added tokens.
fn tokenizer_json(patch: &Value) -> Value {
    let pieces = ["<unk>", "<s>", "</s>", "▁", "a", "b", "t", "e", "x", "y", "<", ">", "▁a", "▁t", "▁te", "|"]
        .iter()
        .enumerate();
    let vocab: serde_json::Map<_, _> = pieces.map(|(id, piece)| (piece.to_string(), json!(id))).collect();
    let special = |id: usize, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let sequence = |id: &str, type_id: usize| json!({"Sequence": {"id": id, "type_id": type_id}});
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let marks = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    let mut file = json!({
        "version": "1.0", "truncation": null, "padding": null, "pre_tokenizer": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, spaces]},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, sequence("A", 0)],
            "pair": [sequence("A", 0), sequence("B", 1)],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [marks, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
            "merges": ["▁ a", "▁ t", "▁t e"]},
    });
    for (key, value) in patch.as_object().into_iter().flatten() {
        match (&mut file[key], value) {
            (Value::Array(tokens), Value::Array(more)) => tokens.extend(more.iter().cloned()),
            (before, value) => *before = value.clone(),
        }
    }
    file
}

/// The tokenizer of a case, from a directory.
fn load(case: &Value) -> Tokenizer {
    let dir = temp();
    let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("writes");
    if case["vocabulary"] == "file" {
        put("tokenizer.json", &tokenizer_json(&case["tokenizer.json"]).to_string());
    } else {
        // In the alphabet of bytes.
        let pieces = ["a", "b", "t", "e", "x", "y", "<", ">", "Ġ", "Ġa", "Ġt", "Ġte", "/", "s", ","].iter();
        let vocab: serde_json::Map<_, _> = pieces.enumerate().map(|(id, p)| (p.to_string(), json!(id))).collect();
        put("vocab.json", &Value::Object(vocab).to_string());
        put("merges.txt", "Ġ a\nĠ t\nĠt e\n");
    }
    for (name, content) in case["files"].as_object().expect("files") {
        put(name, &content.to_string());
    }
    Tokenizer::load(dir.path()).unwrap_or_else(|error| panic!("{}: {error}", case["rule"]))
}

#[test]
fn added_tokens_are_those_of_transformers() {
    for case in cases() {
        let (tok, rule) = (load(&case), &case["rule"]);
        let ids = tok.encode(case["text"].as_str().expect("a text"), true).expect("encodes").ids;
        assert_eq!(json!(ids), case["ids"], "{rule}");
        assert_eq!(json!(tok.decode(&ids, true).expect("decodes")), case["decoded"], "{rule}");
        assert_eq!(json!([tok.bos(), tok.eos()]), json!([case["bos"], case["eos"]]), "{rule}");
        let mut stream = tok.stream();
        let mut streamed: String = ids.iter().map(|&id| stream.push(id).expect("decodes")).collect();
        streamed += &stream.finish().expect("decodes");
        assert_eq!(json!(streamed), case["decoded"], "{rule}: streamed");
    }
}

/// Offsets of a text with a gap are those of the text as it was written.
#[test]
fn offsets_around_a_gap_are_those_of_the_text() {
    let case = cases().into_iter().find(|case| case["rule"] == "CodeLlama fills a gap").expect("the case");
    let tok = load(&case);
    let offsets = tok.encode("te<FILL_ME> ab", false).expect("encodes").offsets;
    // `<PRE> te <SUF> ▁a b <MID>`: the mark is characters 2 to 10.
    assert_eq!(offsets, [(0, 0), (0, 2), (0, 0), (11, 13), (13, 14), (0, 0)]);
    let error = tok.encode("a<FILL_ME>b<FILL_ME>", false).expect_err("two gaps").to_string();
    assert!(error.contains("fill_token") && error.contains("<FILL_ME>"), "{error}");
}

/// `fix_mistral_regex` counts for many tokens, beside a Mistral from before transformers 5 (ids of transformers 5.24.0).
#[test]
fn words_of_mistral_are_corrected_where_transformers_corrects_them() {
    let words = ["a", "b", "A", "B", "1", "2", "Ġ", "aB", "12", "Ġa", "ab"].iter().map(|word| word.to_string());
    let vocab: serde_json::Map<_, _> =
        words.chain((0..100_000).map(|i| format!("z{i}"))).enumerate().map(|(id, word)| (word, json!(id))).collect();
    let file = json!({"version": "1.0", "added_tokens": [],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": ["a B", "1 2", "Ġ a", "a b"]}});
    let dir = temp();
    let put = |name: &str, value: Value| std::fs::write(dir.path().join(name), value.to_string()).expect("writes");
    put("tokenizer.json", file);
    let (plain, corrected): (&[u32], &[u32]) = (&[7, 8, 9, 1], &[0, 3, 4, 5, 9, 1]);
    for (config, fix, ids) in [
        (json!({"model_type": "mistral"}), json!(null), plain),
        (json!({"model_type": "mistral"}), json!(true), corrected),
        (json!({"model_type": "llama"}), json!(true), plain),
        (json!({"model_type": "mistral", "transformers_version": "5.0.0"}), json!(true), plain),
        (json!({"model_type": "mistral", "transformers_version": "5.0.0.dev0"}), json!(true), corrected),
        (json!({"model_type": "mistral", "transformers_version": "4.57.1"}), json!(false), plain),
    ] {
        put("config.json", config.clone());
        put("tokenizer_config.json", json!({"fix_mistral_regex": fix}));
        let tok = Tokenizer::load(dir.path()).expect("loads");
        assert_eq!(tok.encode("aB12 ab", true).expect("encodes").ids, ids, "{config} {fix}");
    }
}
