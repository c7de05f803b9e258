//! `capture` in shards: interrupted and resumed, and appended to.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use llamaprobe::formats::activations::ActivationFile;

use super::{TEXTS, leftovers, line, program, put, words, workplace};
use crate::support::tiny_model::TinyModel;

const CAPTURE: &str =
    "capture --model {}/model --input {}/texts.jsonl --sites resid_post,pattern --shard-tokens 6 --out {}/out";
const RESUME: &str = "--resume-from-checkpoint latest";
const INDEX: &str = "activations.safetensors.index.json";

/// Every file of a folder.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).expect("lists").map(|entry| entry.expect("an entry").path());
    entries
        .map(|path| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, fs::read(&path).expect("reads"))
        })
        .collect()
}

fn shards(dir: &Path) -> usize {
    let names = fs::read_dir(dir).into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.starts_with("activations-") && name.ends_with(".safetensors")).count()
}

/// A signal that was ignored when the program began stays so.
#[cfg(unix)]
#[test]
fn signals_leave_nothing_unfinished() {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    let dir = workplace();
    let d = dir.path();
    let ids: Vec<String> = (0..40).map(|i| (i % 30 + 1).to_string()).collect();
    put(d, "long.jsonl", &format!("{{\"input_ids\": [{}]}}\n", ids.join(", ")).repeat(5000));
    let capture = "capture --model {}/model --input {}/long.jsonl --out {}/new/out --batch-tokens 64 --device cpu";
    let mut child = Command::new("sh")
        .args(["-c", "trap '' INT; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_llamaprobe")])
        .args(words(d, capture))
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    while leftovers(d).is_empty() {
        assert!(child.try_wait().expect("a child").is_none(), "ended before a signal came");
        std::thread::sleep(Duration::from_micros(200));
    }
    for signal in ["INT", "TERM"] {
        let sent = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status();
        assert!(sent.expect("kill").success(), "{signal}");
    }
    assert_eq!(child.wait().expect("a child").signal(), Some(15));
    assert!(!d.join("new").exists(), "{:?}", leftovers(d));
}

#[test]
fn killed_captures_are_resumed_to_the_same_bytes() {
    let dir = workplace();
    let d = dir.path();
    let document = |i: usize| {
        let ids: Vec<String> = (0..1 + i * 5 % 13).map(|k| ((i * 7 + k * 3) % 30 + 1).to_string()).collect();
        format!("{{\"input_ids\": [{}]}}\n", ids.join(", "))
    };
    put(d, "texts.jsonl", &(0..150).map(document).collect::<String>());
    let capture = CAPTURE.replace("--shard-tokens 6", "--shard-tokens 20 --batch-tokens 33");
    line(d, &capture).ok();
    let out = d.join("out");
    let whole = files(&out);
    assert!(whole.len() > 40, "{}", whole.len());
    for at in [1, 9, 30] {
        fs::remove_dir_all(&out).expect("removes");
        let mut killed = program(words(d, &capture)).spawn().expect("starts");
        while shards(&out) < at && killed.try_wait().expect("a child").is_none() {
            std::thread::sleep(Duration::from_micros(200));
        }
        killed.kill().expect("kills");
        killed.wait().expect("a child");
        if out.join(INDEX).exists() {
            // It was faster than the one who kills: what a kill would have left.
            fs::remove_file(out.join(INDEX)).expect("removes");
            let last = whole.keys().rfind(|name| name.ends_with(".safetensors")).expect("a shard");
            fs::remove_file(out.join(last)).expect("removes");
        }
        assert!(shards(&out) >= at, "killed between shards");
        put(&out, ".tmp-llamaprobe-left", "of a write that was going on");
        let refused = line(d, &capture).refused();
        assert!(refused.contains("interrupted capture (resume it, or remove them)"), "{refused}");
        let said = line(d, &format!("{capture} {RESUME}")).ok().err;
        assert!(said.contains("tokens were in whole shards of"), "{said}");
        assert!(!said.contains(" 0 of"), "{said}");
        assert_eq!(files(&out), whole, "killed after {at} shards");
    }
    // One that is whole stays; where there is nothing it begins.
    line(d, &format!("{capture} {RESUME}")).ok();
    assert_eq!(files(&out), whole);
    fs::remove_dir_all(&out).expect("removes");
    line(d, &format!("{capture} {RESUME}")).ok();
    assert_eq!(files(&out), whole);
}

#[test]
fn resuming_another_capture_names_what_is_another() {
    let dir = workplace();
    let d = dir.path();
    let out = d.join("out");
    line(d, CAPTURE).ok();
    fs::remove_file(out.join(INDEX)).expect("removes");
    let before = files(&out);
    put(d, "edit.yaml", "- {site: resid_post, layers: 0, positions: last, op: scale, scale: 2.0}\n");
    put(d, "more.jsonl", &TEXTS.replace("thin", "thick"));
    TinyModel { seed: 7, ..TinyModel::default() }.write(&d.join("model2"));
    fs::create_dir(d.join("other")).expect("makes");
    fs::rename(d.join("model2"), d.join("other/model")).expect("moves");
    put(d, "train.jsonl", "{\"prompt\": \"a\", \"completion\": \" b\"}\n");
    line(d, "train-lora --model {}/model --train {}/train.jsonl --out {}/adapter --r 3 --max-steps 1").ok();
    for (flags, expected) in [
        ("--sites embed", "layout: expected {\"hook_embed\""),
        ("--layers 0", "blocks.1.attn.hook_pattern: expected no such tensor as in this capture, found one"),
        ("--store-dtype f16", "expected F16 ["),
        ("--names tl4", "layout: expected {"),
        ("--batch-tokens 99", "batch_tokens: expected 99 as in this capture, found 2048"),
        ("--dtype bf16", "dtype: expected bf16 as in this capture, found f32"),
        ("--edit {}/edit.yaml", "edits: expected edit.yaml as in this capture, found none"),
        ("--model {}/other/model", "weights: expected "),
        ("--adapter {}/adapter", "adapter: expected adapter as in this capture, found none"),
        ("--input {}/more.jsonl", "-00001-of-00003.safetensors: doc_"),
    ] {
        let ran = line(d, &format!("{CAPTURE} {RESUME} {flags}"));
        assert_eq!(ran.code, Some(1), "{flags}");
        let error = ran.refused();
        assert!(error.contains(expected), "{flags}: {error}");
        assert_eq!(files(&out), before, "{flags}");
    }
    let error = line(d, &format!("{} {RESUME}", CAPTURE.replace("--shard-tokens 6", "--shard-tokens 60"))).refused();
    assert!(error.contains("files of 1 in all, which these documents make"), "{error}");
    put(d, "fewer.jsonl", &TEXTS.lines().take(2).collect::<Vec<_>>().join("\n"));
    let error = line(d, &format!("{CAPTURE} {RESUME} --input {{}}/fewer.jsonl")).refused();
    assert!(error.contains("which these documents make at this size of shards, found "), "{error}");
    for flags in ["--resume-from-checkpoint latest", "--append"] {
        let ran = line(d, &format!("{} {flags}", CAPTURE.replace("--shard-tokens 6", "")));
        assert!(ran.code == Some(2) && ran.err.contains("--shard-tokens"), "{}", ran.err);
    }
    assert_eq!(line(d, &format!("{CAPTURE} --resume-from-checkpoint first")).code, Some(2));
}

#[test]
fn appended_documents_follow_the_earlier_ones() {
    let dir = workplace();
    let d = dir.path();
    let out = d.join("out");
    let lines: Vec<&str> = TEXTS.lines().collect();
    // The longest first, since patterns have the width of the first capture.
    let order = [3, 1, 0, 2].map(|i: usize| format!("{}\n", lines[i]));
    put(d, "whole.jsonl", &order.concat());
    put(d, "texts.jsonl", &order[..2].concat());
    put(d, "more.jsonl", &order[2..].concat());
    put(d, "long.jsonl", &format!("{{\"input_ids\": {:?}}}\n", [5; 60]));
    line(d, &CAPTURE.replace("texts.jsonl", "whole.jsonl").replace("{}/out", "{}/one")).ok();
    let append = format!("{} --append", CAPTURE.replace("texts.jsonl", "more.jsonl"));
    let error = line(d, &append).refused();
    assert!(error.contains("--append: expected an earlier capture in shards there, found no "), "{error}");
    line(d, CAPTURE).ok();
    let first = files(&out);
    for (flags, expected) in [
        ("--store-dtype bf16", "expected BF16"),
        ("--tokens last", "tokens: expected last as in this capture, found all"),
        ("--input {}/long.jsonl", "--append: expected documents of at most "),
    ] {
        let error = line(d, &format!("{append} {flags}")).refused();
        assert!(error.contains(expected), "{flags}: {error}");
        assert_eq!(files(&out), first, "{flags}");
    }
    line(d, &append).ok();
    let whole = files(&out);
    assert!(first.iter().filter(|(name, _)| *name != INDEX).all(|(name, bytes)| whole.get(name) == Some(bytes)));
    let [one, both] = ["one", "out"].map(|name| ActivationFile::open(d.join(name).join(INDEX)).expect("opens"));
    for column in ["doc_id", "pos", "token_id"] {
        assert_eq!(both.labels(column).expect("labels"), one.labels(column).expect("labels"), "{column}");
    }
    assert!(one.sites().len() == 4);
    for site in one.sites() {
        assert_eq!(both.rows(site).expect("rows"), one.rows(site).expect("rows"), "{site}");
    }
    // An interrupted one: the new index is missing, and the last shard.
    fs::write(out.join(INDEX), &first[INDEX]).expect("writes");
    let last = whole.keys().rfind(|name| name.ends_with(".safetensors")).expect("a shard");
    fs::remove_file(out.join(last)).expect("removes");
    let error = line(d, &append).refused();
    assert!(error.contains("interrupted"), "{error}");
    line(d, &format!("{append} {RESUME}")).ok();
    assert_eq!(files(&out), whole);
    // One that is through stays as it is, as often as it is resumed.
    for _ in 0..2 {
        let said = line(d, &format!("{append} {RESUME}")).ok().err;
        assert!(!said.contains(" 0 of"), "{said}");
        assert_eq!(files(&out), whole);
    }
    // Without the flag the same documents follow once more.
    line(d, &append).ok();
    assert!(files(&out).len() > whole.len());
    assert!(leftovers(d).is_empty());
}

#[test]
fn damaged_numbers_of_documents_are_named() {
    let dir = workplace();
    let d = dir.path();
    let out = d.join("out");
    line(d, CAPTURE).ok();
    let last = files(&out).into_iter().rfind(|(name, _)| name.ends_with(".safetensors")).expect("a shard").0;
    let bytes = fs::read(out.join(&last)).expect("reads");
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("a header");
    let at = bytes.len() - header.data_len() + header.info("doc_id").expect("a column").data_offsets.1 - 8;
    for id in [-1, i64::MAX, 9999] {
        let mut damaged = bytes.clone();
        damaged[at..at + 8].copy_from_slice(&id.to_le_bytes());
        fs::write(out.join(&last), damaged).expect("writes");
        let error = line(d, &format!("{CAPTURE} --append")).refused();
        assert!(error.contains(&format!("{last}: doc_id: expected numbers of documents below ")), "{error}");
        assert!(error.contains(&format!("found {id}")), "{error}");
    }
}
