//! The commands on a real trained model and real data.

use std::fs;

use serde_json::Value;

use super::{line, put, tensor};
use crate::support::{self, shared};

#[test]
fn real_model_generates_captures_and_probes() {
    let Some(shared) = shared() else { return };
    let dir = support::temp();
    let d = dir.path();
    let model = shared.join("models/stories260K");
    let m = model.display();
    put(d, "prompts.jsonl", "{\"text\": \"Once upon a time\"}\n");
    let told = line(d, &format!("generate --model {m} --input {{}}/prompts.jsonl --max-new-tokens 24")).ok().out;
    assert!(told.starts_with("Once upon a time, there was"), "{told}");
    line(d, &format!("capture --model {m} --input {{}}/prompts.jsonl --sites final_norm --out {{}}/states")).ok();
    let (shape, _) = tensor(&d.join("states/activations.safetensors"), "ln_final.hook_out");
    assert_eq!(shape[1], 64);
    let sst2 = shared.join("data/sst2");
    let (train, test) = (sst2.join("train.tsv"), sst2.join("dev.tsv"));
    let report = line(
        d,
        &format!(
            "probe --model {m} --task sst2 --train {} --test {} --demos 4 --queries 8 --seeds 2 --epochs 3 \
             --out {{}}/run --json",
            train.display(),
            test.display()
        ),
    )
    .json();
    let last = &report["summary"]["layers"][5];
    assert_eq!(last["layer"], "final");
    let loss = |i: usize| report["summary"]["loss"][i]["mean"].as_f64().expect("a loss");
    assert!(loss(2) < loss(0), "the tuning learns");
}

#[test]
fn real_model_is_found_in_the_hub_cache_by_name() {
    let dir = support::temp();
    let d = dir.path();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let repository = d.join("hub/models--org--name");
    support::tiny_model::TinyModel::default().write(&repository.join("snapshots").join(commit));
    fs::create_dir_all(repository.join("refs")).expect("refs");
    put(&repository.join("refs"), "main", commit);
    let mut command = super::program(["inspect", "--model", "org/name", "--json"]);
    let out = command.env("HF_HOME", d).output().expect("run");
    let json: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!(json["model"]["layers"], 2);
    let out = super::program(["inspect", "--model", "org/other"]).env("HF_HOME", d).output().expect("run");
    assert_eq!(out.status.code(), Some(1));
}
