//! Where commands write: what is there already, who else is at work there, and what they go on from.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use super::compare::{COMPARE, data};
use super::trained::DATA;
use super::{line, program, put, words, workplace};
use crate::support::tiny_model::TinyModel;

const TRAIN: &str = "--model {}/model --train {}/lora.jsonl --max-steps 2 --save-steps 1 --device cpu";
const SHORT: &str = "--model {}/model --train {}/lora.jsonl --max-steps 1 --device cpu";
const RESUME: &str = "--resume-from-checkpoint latest";

/// Changes a file of the model, and back.
fn with_other(d: &Path, name: &str, change: impl FnOnce(&Path), then: impl FnOnce()) {
    let path = d.join("model").join(name);
    let before = fs::read(&path).ok();
    change(&path);
    then();
    match before {
        Some(bytes) => fs::write(&path, bytes).expect("writes"),
        None => fs::remove_file(&path).expect("removes"),
    }
}

/// Another epsilon, seed of the weights, text of a token: each under the model's own name.
fn with_others(d: &Path, mut then: impl FnMut(&str)) {
    let replace = |from: &'static str, to: &'static str| {
        move |path: &Path| {
            let text = fs::read_to_string(path).expect("reads");
            assert!(text.contains(from), "{from}");
            fs::write(path, text.replace(from, to)).expect("writes");
        }
    };
    let reseed = |path: &Path| {
        let other = path.parent().expect("a folder").with_file_name("reseeded");
        TinyModel { seed: 77, ..TinyModel::default() }.write(&other);
        fs::copy(other.join("model.safetensors"), path).expect("copies");
    };
    with_other(d, "model.safetensors", reseed, || then("files.weights: expected "));
    with_other(d, "config.json", replace("0.00001", "0.00002"), || then("files.config: expected "));
    let longer = replace("\"add_eos_token\": false", "\"add_eos_token\": false, \"model_max_length\": 99");
    with_other(d, "tokenizer_config.json", longer, || then("files.tokenizer: expected "));
}

#[test]
fn trainings_resume_with_the_files_of_the_model_alone() {
    let dir = workplace();
    let d = dir.path();
    put(d, "lora.jsonl", DATA);
    for command in ["train-lora --r 2", "train-prompt --num-virtual-tokens 2"] {
        let train = format!("{command} {TRAIN} --out {{}}/out");
        line(d, &train).ok();
        with_others(d, |expected| {
            let error = line(d, &format!("{train} {RESUME}")).refused();
            assert!(error.contains(expected) && error.contains("as in this training"), "{error}");
        });
        // A checkpoint of before there were digests goes on, and a note says what nobody knows.
        let path = d.join("out/checkpoint-2/trainer_state.json");
        let mut state: Value = serde_json::from_slice(&fs::read(&path).expect("reads")).expect("JSON");
        let identity = state["settings"]["identity"].as_object_mut().expect("an object");
        assert!(identity.remove("files").is_some());
        fs::write(&path, state.to_string()).expect("writes");
        let said = line(d, &format!("{train} {RESUME}")).ok().err;
        assert!(said.contains("trainer_state.json: does not say with which files of the model"), "{said}");
        fs::remove_dir_all(d.join("out")).expect("removes");
    }
}

#[test]
fn comparisons_go_on_with_the_files_of_the_model_alone() {
    let dir = workplace();
    let d = dir.path();
    data(d);
    let compare = format!("{COMPARE} --arms zero-shot --out {{}}/out");
    line(d, &compare).ok();
    let refused = |flags: &str, expected: &str| {
        let error = line(d, &format!("{compare} {flags}")).refused();
        assert!(error.contains(expected) && error.contains("as asked for now"), "{flags}: {error}");
    };
    with_others(d, |expected| refused("", expected));
    refused("--load-in nf4", "plan.files.load_in: expected \"nf4\" as asked for now, found null");
    // Of what the model's authors say of generation, compare takes where texts end.
    let ends = |text: &'static str| move |path: &Path| fs::write(path, text).expect("writes");
    with_other(d, "generation_config.json", ends("{\"eos_token_id\": [2, 5]}"), || refused("", "plan.files.stops"));
    with_other(d, "generation_config.json", ends("{\"repetition_penalty\": 5.0}"), || drop(line(d, &compare).ok()));
    fs::create_dir(d.join("other")).expect("makes");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(d.join("model").join(name), d.join("other").join(name)).expect("copies");
    }
    line(d, &format!("{compare} --tokenizer {{}}/other")).ok();
    fs::write(d.join("other/added_tokens.json"), "{}").expect("writes");
    refused("--tokenizer {}/other", "plan.files.tokenizer: expected ");
}

#[test]
fn captures_are_appended_to_with_the_files_of_the_model_alone() {
    let dir = workplace();
    let d = dir.path();
    let capture =
        "capture --model {}/model --input {}/texts.jsonl --layers 0 --shard-tokens 6 --device cpu --out {}/out";
    line(d, capture).ok();
    let config = |path: &Path| {
        let text = fs::read_to_string(path).expect("reads");
        fs::write(path, text.replace("0.00001", "0.00002")).expect("writes");
    };
    with_other(d, "config.json", config, || {
        let error = line(d, &format!("{capture} --append")).refused();
        assert!(error.contains(": config: expected "), "{error}");
    });
    line(d, &format!("{capture} --append")).ok();
}

#[test]
fn only_what_a_killed_llamaprobe_left_is_swept() {
    let dir = workplace();
    let d = dir.path();
    put(d, "lora.jsonl", DATA);
    data(d);
    for command in [
        format!("train-lora {TRAIN} {RESUME}"),
        format!("{COMPARE} --arms zero-shot"),
        format!("capture --model {{}}/model --input {{}}/texts.jsonl --shard-tokens 6 {RESUME}"),
    ] {
        let out = d.join("out");
        let begin = |name: &str| {
            fs::create_dir_all(out.join(name)).expect("makes");
            fs::write(out.join(name).join("file"), "precious").expect("writes");
        };
        if command.starts_with("compare") {
            // It begins in an empty directory, and goes on in its own.
            line(d, &format!("{command} --out {{}}/out")).ok();
        }
        begin(".tmp-mine");
        begin(".tmp-llamaprobe-dead");
        begin(".tmp-llamaprobe-living");
        let living = File::open(out.join(".tmp-llamaprobe-living")).expect("opens");
        living.lock().expect("a lock");
        line(d, &format!("{command} --out {{}}/out")).ok();
        let is_there = |name: &str| out.join(name).exists();
        assert!(is_there(".tmp-mine/file") && is_there(".tmp-llamaprobe-living/file"), "{command}");
        assert!(!is_there(".tmp-llamaprobe-dead"), "{command}");
        fs::remove_dir_all(&out).expect("removes");
    }
}

#[test]
fn two_commands_in_one_directory_are_an_error_of_the_second() {
    let dir = workplace();
    let d = dir.path();
    put(d, "lora.jsonl", DATA);
    data(d);
    fs::create_dir(d.join("out")).expect("makes");
    let first = File::open(d.join("out")).expect("opens");
    first.lock().expect("a lock");
    for command in [
        format!("train-lora {TRAIN}"),
        format!("train-prompt {TRAIN}"),
        format!("{COMPARE} --arms zero-shot"),
        "capture --model {}/model --input {}/texts.jsonl".to_owned(),
    ] {
        let error = line(d, &format!("{command} --out {{}}/out")).refused();
        assert!(
            error.contains("--out: expected a directory in which no other llamaprobe is at work, found "),
            "{error}"
        );
        assert_eq!(fs::read_dir(d.join("out")).expect("lists").count(), 0, "{command}");
    }
}

#[test]
fn refused_resumption_changes_nothing() {
    let dir = workplace();
    let d = dir.path();
    put(d, "lora.jsonl", DATA);
    line(d, &format!("train-lora {TRAIN} --r 2 --out {{}}/out")).ok();
    let config = || fs::read(d.join("out/llamaprobe.yaml")).expect("reads");
    let before = config();
    for flags in ["--r 4", "--learning-rate 9", "--load-in int8"] {
        let error = line(d, &format!("train-lora {TRAIN} --r 2 --out {{}}/out {RESUME} {flags}")).refused();
        assert!(error.contains("trainer_state.json: settings."), "{error}");
        assert!(config() == before, "{flags}");
    }
}

#[cfg(unix)]
#[test]
fn models_are_written_where_a_link_leads() {
    let dir = workplace();
    let d = dir.path();
    fs::create_dir(d.join("real")).expect("makes");
    for (link, target) in [("link", "real"), ("loose", "nothing")] {
        std::os::unix::fs::symlink(d.join(target), d.join(link)).expect("links");
    }
    let quantize = "quantize --model {}/model --to int8 --out";
    let error = line(d, &format!("{quantize} {{}}/loose")).refused();
    assert!(error.contains("loose: expected a directory, or nothing yet, found a link to nothing"), "{error}");
    line(d, &format!("{quantize} {{}}/link")).ok();
    assert!(d.join("link").is_symlink() && d.join("real/model.safetensors").exists());
    let error = line(d, &format!("{quantize} {{}}/link")).refused();
    assert!(error.contains("a new or empty directory"), "{error}");
}

#[test]
fn files_of_an_earlier_training_that_stay_are_named() {
    let dir = workplace();
    let d = dir.path();
    put(d, "lora.jsonl", DATA);
    let train = |flags: &str| line(d, &format!("train-lora {SHORT} --out {{}}/out {flags}")).ok().err;
    let again = |flags: &str, expected: &str| {
        let said = train(flags);
        let wanted = format!("out: {expected} of an earlier training stay beside what this one writes");
        assert_eq!(said.contains("of an earlier training"), !expected.is_empty(), "{flags}: {said}");
        assert!(expected.is_empty() || said.contains(&wanted), "{flags}: {said}");
    };
    again("--r 2,4,8", "");
    again("--r 2,4,8", "");
    again("--r 2,4", "run-002");
    again("--r 2", "results.json, run-000, run-001, run-002");
    again("--r 4,8", "adapter_config.json, adapter_model.safetensors, run-002");
}

#[cfg(unix)]
#[test]
fn rows_come_through_pipes() {
    let dir = workplace();
    let d = dir.path();
    let rows = ["{\"prompt\": \"a\", \"completion\": \" b\"}", "{\"prompt\": \"the\", \"completion\": \" pot\"}"];
    let lines = format!("\n{}\n\n{}\n", rows[0], rows[1]);
    let list = format!("[{},\n\n{}]", rows[0], rows[1]);
    for (text, out) in [(&lines, "lines"), (&list, "list")] {
        put(d, "rows.jsonl", text);
        let train = |from: &str, out: &str| {
            let flags = "--max-steps 1 --device cpu --json";
            words(d, &format!("train-lora --model {{}}/model --train {from} --out {{}}/{out} {flags}"))
        };
        let mut child =
            program(train("/dev/stdin", out)).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("starts");
        child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("writes");
        assert!(child.wait().expect("a child").success(), "{out}");
        super::run(train("{}/rows.jsonl", &format!("{out}-file"))).ok();
        let weights = |name: &str| fs::read(d.join(name).join("adapter_model.safetensors")).expect("an adapter");
        assert!(weights(out) == weights(&format!("{out}-file")), "{out}");
    }
}
