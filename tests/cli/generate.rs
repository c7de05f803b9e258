//! `generate`.

use std::process::Stdio;

use serde_json::json;

use super::support::tiny_model::TinyModel;
use super::{compare, line, program, put, words, workplace};

/// A chat template.
pub const CHAT: &str = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.role == 'assistant' %}\
    {{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";

#[test]
fn generate_is_reproducible_and_independent_of_other_prompts() {
    let dir = workplace();
    let d = dir.path();
    put(d, "prompts.jsonl", "{\"text\": \"the pen\"}\n{\"text\": \"the pen\"}\n{\"input_ids\": [1, 9, 10]}\n");
    let both = line(d, "generate --model {}/model --input {}/prompts.jsonl --max-new-tokens 6 --json").json();
    let results = both["results"].as_array().expect("results");
    assert_eq!(results.len(), 3);
    assert_eq!(results[0], results[1], "the same prompt, greedily");
    assert_eq!(results[2]["prompt_ids"], json!([1, 9, 10]));
    let one = line(d, "generate --model {}/model --prompt the --prompt in --max-new-tokens 6 --json").json();
    let alone = line(d, "generate --model {}/model --prompt in --max-new-tokens 6 --json").json();
    assert_eq!(one["results"][1], alone["results"][0], "a neighbour changes a continuation");
    let drawn = |seed: u32| {
        let text = format!("generate --model {{}}/model --prompt the --temperature 1.5 --seed {seed} --json");
        line(d, &text).json()
    };
    assert_eq!(drawn(1), drawn(1));
    assert_ne!(drawn(1), drawn(2));
}

#[test]
fn generate_prints_prompt_and_continuation() {
    let dir = workplace();
    let shown = line(dir.path(), "generate --model {}/model --prompt the --max-new-tokens 0").ok();
    assert_eq!(shown.out, "the\n");
    let error = line(dir.path(), "generate --model {}/model --prompt the --num-beams 0").refused();
    assert!(error.contains("--num-beams: expected at least 1, found 0"), "{error}");
}

/// What no release of transformers knows is said; what published files have and changes nothing is not.
#[test]
fn unknown_keys_of_a_tokenizer_are_notes() {
    let dir = workplace();
    let said = |keys: &str| {
        let path = put(dir.path(), "model/tokenizer_config.json", keys);
        let ran = line(dir.path(), "generate --model {}/model --prompt the --max-new-tokens 1").ok();
        (path.display().to_string(), ran.err)
    };
    let (path, err) = said(r#"{"model_max_length": 4, "add_bos_tokens": true}"#);
    let note = format!("llamaprobe: {path}: keys that nothing is known to read: add_bos_tokens\n");
    assert_eq!(err.matches(&note).count(), 1, "{err}");
    assert!(!err.contains("model_max_length"), "{err}");
    let published = r#"{"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 1000000000000000019884624838656,
        "padding_side": "left", "sp_model_kwargs": {}, "use_default_system_prompt": false, "special_tokens_map_file": null,
        "name_or_path": "x", "spaces_between_special_tokens": false, "processor_class": "Y", "backend": "tokenizers",
        "is_local": true, "errors": "replace", "trim_offsets": true, "model_input_names": ["input_ids"], "legacy": false,
        "clean_up_tokenization_spaces": true, "tokenizer_file": "/nowhere", "return_token_type_ids": false}"#;
    let (_, err) = said(published);
    assert!(!err.contains("nothing is known to read"), "{err}");
}

/// The ids are those of `apply_chat_template` of transformers 5.24 with `add_generation_prompt` true and false: special
/// tokens are the template's own.
#[test]
fn generate_continues_conversations() {
    let dir = workplace();
    let d = dir.path();
    put(d, "model/chat_template.jinja", CHAT);
    put(d, "one.json", r#"[{"messages": [{"role": "user", "content": "the pen"}]}]"#);
    put(d, "two.jsonl", r#"{"conversations": [{"from": "human", "value": "the pen"}]}"#);
    let without = json!([1, 94, 120, 118, 263, 96, 260, 264, 104, 113]);
    let with =
        json!([1, 94, 120, 118, 263, 96, 260, 264, 104, 113, 94, 100, 118, 118, 108, 118, 119, 100, 113, 119, 96]);
    for (flags, ids) in [
        ("one.json", &with),
        ("two.jsonl --add-generation-prompt", &with),
        ("one.json --add-generation-prompt false", &without),
    ] {
        let ran =
            line(d, &format!("generate --model {{}}/model --max-new-tokens 0 --json --input {{}}/{flags}")).json();
        assert_eq!(ran["results"][0]["prompt_ids"], *ids, "{flags}");
    }
    put(d, "bad.jsonl", r#"{"prompt": "a", "completion": "b"}"#);
    let error = line(d, "generate --model {}/model --input {}/bad.jsonl").refused();
    assert!(error.contains("bad.jsonl:1: keys: expected text, messages or input_ids"), "{error}");
    std::fs::remove_file(d.join("model/chat_template.jinja")).expect("removes");
    let error = line(d, "generate --model {}/model --input {}/one.json").refused();
    assert!(error.contains("chat_template"), "{error}");
}

#[cfg(target_os = "linux")]
#[test]
fn stdout_full_is_an_error_and_closed_is_none() {
    let dir = workplace();
    let args = words(dir.path(), "inspect --model {}/model --device cpu");
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    let status = program(&args).stdout(full).stderr(Stdio::null()).status().expect("run");
    assert_eq!(status.code(), Some(1), "results that could not be written");
    let mut child = program(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start");
    drop(child.stdout.take());
    let out = child.wait_with_output().expect("run");
    assert_eq!((out.status.code(), out.stderr.len()), (Some(0), 0), "a reader that has enough");
}

/// What a command does not use is not demanded.
#[test]
fn generate_continues_ids_of_a_model_without_a_tokenizer() {
    let dir = workplace();
    let d = dir.path();
    put(d, "ids.jsonl", "{\"input_ids\": [1, 9, 10]}\n{\"input_ids\": [7]}\n");
    let command = "generate --model {}/model --input {}/ids.jsonl --max-new-tokens 4";
    let with = line(d, &format!("{command} --json")).json();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::remove_file(d.join("model").join(file)).expect("removes");
    }
    let without = line(d, &format!("{command} --json")).json();
    for i in 0..2 {
        assert_eq!(with["results"][i]["ids"], without["results"][i]["ids"]);
        assert!(without["results"][i]["text"].is_null() && with["results"][i]["text"].is_string());
    }
    let shown = line(d, command).ok().out;
    assert!(shown.starts_with("[1,9,10,") && shown.lines().count() == 2, "{shown}");
    let error = line(d, &format!("{command} --stop x")).refused();
    assert!(error.contains("tokenizer.json"), "{error}");
}

/// A model that learned its positions has no others: what they are too few for is never answered with nothing.
#[test]
fn prompts_beyond_learned_positions_are_refused_or_shortened_and_said() {
    let dir = workplace();
    let d = dir.path();
    TinyModel::gpt2(40).write(&d.join("gpt2"));
    put(d, "long.jsonl", &format!("{{\"text\": \"{}\"}}\n", "a long one ".repeat(5)));
    put(d, "eval.jsonl", &format!("{{\"prompt\": \"{}\", \"completion\": \"x\"}}\n", "a long one ".repeat(5)));
    put(d, "train.jsonl", "{\"prompt\": \"a\", \"completion\": \"x\"}\n");
    let beyond = "prompt 0: expected at most 39 tokens, one less than the 40 positions that the model learned";
    for command in [
        "generate --model {}/gpt2 --input {}/long.jsonl --max-new-tokens 5",
        "generate --model {}/gpt2 --prompt one,two,three,four,five,six,seven,eight,nine,ten",
        "train-lora --model {}/gpt2 --train {}/train.jsonl --eval {}/eval.jsonl --predict-with-generate --max-steps 1 --out {}/t",
        "task antonym --evaluate --model {}/gpt2 --shots 0,2 --seeds 1 --queries 2",
    ] {
        let text = line(d, &format!("{command} --device cpu")).refused();
        assert!(text.contains(beyond), "{command}: {text}");
    }
    assert!(!d.join("t/adapter_config.json").exists());
    let two =
        "generate --model {}/gpt2 --prompt a --prompt one,two,three,four,five,six,seven,eight,nine,ten --device cpu";
    assert!(line(d, two).refused().contains("prompt 1: expected at most 39 tokens"));
    // Whoever asks for no token gets none.
    line(d, "generate --model {}/gpt2 --input {}/long.jsonl --max-new-tokens 0 --device cpu").ok();
    let ran =
        line(d, "generate --model {}/gpt2 --prompt one --prompt two --max-new-tokens 60 --json --device cpu").ok();
    let said = "2 of 2 continuations end at the last of the 40 positions that the model learned";
    assert!(ran.err.contains(said), "{}", ran.err);
    let ran = line(d, "generate --model {}/gpt2 --prompt one --max-new-tokens 10 --device cpu").ok();
    assert!(!ran.err.contains("positions"), "{}", ran.err);
}

#[test]
fn numbers_beyond_all_measure_are_refused_by_their_flag() {
    let dir = workplace();
    let d = dir.path();
    compare::data(d);
    put(d, "pairs.jsonl", "{\"prompt\": \"a\", \"completion\": \"x\"}\n");
    let most = u64::MAX;
    for (command, expected) in [
        (
            "generate --model {}/model --prompt a --stop x --max-new-tokens",
            "--max-new-tokens: expected at most 1048576",
        ),
        ("generate --model {}/model --prompt a --num-beams", "--num-beams: expected from 1 to 4096"),
        ("task antonym --evaluate --model {}/model --queries 1 --max-new-tokens", "--max-new-tokens: expected at most"),
        (
            "train-lora --model {}/model --train {}/pairs.jsonl --eval {}/pairs.jsonl --predict-with-generate --max-steps 1 \
             --out {}/x --max-new-tokens",
            "--max-new-tokens: expected from 1 to 1048576",
        ),
        ("task synthetic --show", "--show: expected at most 100000"),
        ("task synthetic --set pairs --show", "--show: expected at most 100000"),
        ("task synthetic --evaluate --model {}/model --episodes", "--episodes: expected from 1 to 100000"),
    ] {
        let text = line(d, &format!("{command} {most} --device cpu")).refused();
        assert!(text.contains(expected), "{command}: {text}");
    }
    for flag in ["--max-new-tokens", "--num-beams", "--resamples", "--bins"] {
        let command = format!("{} --arms zero-shot --out {{}}/y", compare::COMPARE).replace("--resamples 50 ", "");
        let command = command.replace("--max-new-tokens 8 ", "");
        let text = line(d, &format!("{command} {flag} {most}")).refused();
        assert!(text.contains(&format!("{flag}: expected from ")), "{flag}: {text}");
    }
    assert!(!d.join("y").exists());
}
