//! `--config`: the same flags from a file.

use std::fs;

use super::{line, put, workplace};

#[test]
fn config_file_is_the_same_as_flags_and_flags_win() {
    let dir = workplace();
    let d = dir.path();
    let yaml = format!(
        "model: {0}/model\ninput: {0}/texts.jsonl\nsites: [resid_post, logits]\nlayers: 1\ntokens: last\njson: true\nout: {0}/file\n",
        d.display()
    );
    put(d, "run.yaml", &yaml);
    let json = line(d, "capture --config {}/run.yaml").json();
    assert_eq!(json["tokens"], 4);
    assert_eq!(json["tensors"][0]["name"], "blocks.1.hook_resid_post");
    let other = line(d, "capture --config {}/run.yaml --layers 0 --out {}/flags --sites resid_post").json();
    assert_eq!(other["tensors"].as_array().map(Vec::len), Some(1), "the list of the file is replaced, not added to");
    assert_eq!(other["tensors"][0]["name"], "blocks.0.hook_resid_post");
    // Underscores, dashes and other trainers' names are the same flags.
    put(d, "alias.yaml", &yaml.replace("model:", "model_name_or_path:").replace("out:", "output-dir:"));
    assert_eq!(line(d, "capture --config {}/alias.yaml").json()["tokens"], 4);
    line(d, "capture --model_name_or_path {}/model --input {}/texts.jsonl --batch_tokens=7 --out {}/dashes").ok();
}

#[test]
fn repeated_flags_replace_values_and_join_lists() {
    let dir = workplace();
    let flags = "--layers 0 --sites resid_post --layers 1 --sites logits,embed";
    let line_of =
        |flags: &str| format!("capture --model {{}}/model --input {{}}/texts.jsonl --out {{}}/out --json {flags}");
    let json = line(dir.path(), &line_of(flags)).json();
    let names: Vec<_> = json["tensors"].as_array().expect("tensors").iter().map(|t| t["name"].clone()).collect();
    assert_eq!(names, ["hook_embed", "blocks.1.hook_resid_post", "logits"]);
}

#[test]
fn resolved_config_repeats_its_run() {
    let dir = workplace();
    let d = dir.path();
    put(d, "train.jsonl", "{\"prompt\": \"the\", \"completion\": \" pen\"}\n{\"text\": \"in the pot\"}\n");
    line(
        d,
        "train-lora --model {}/model --train {}/train.jsonl --out {}/a --max-steps 3 --lr 0.01 --lora-rank 2 \
         --lora_target q_proj,o_proj --use-rslora --lr-scheduler-type cosine --warmup-ratio 0.5 --seed 7",
    )
    .ok();
    let yaml = fs::read_to_string(d.join("a/llamaprobe.yaml")).expect("the resolved configuration");
    assert!(
        yaml.contains("learning_rate: 0.01") && yaml.contains("r: 2") && yaml.contains("warmup_ratio: 0.5"),
        "{yaml}"
    );
    line(d, "train-lora --config {}/a/llamaprobe.yaml --out {}/b").ok();
    let adapter = |name: &str| fs::read(d.join(name).join("adapter_model.safetensors")).expect("an adapter");
    assert_eq!(adapter("a"), adapter("b"));
}

#[test]
fn config_file_errors_name_the_key() {
    let dir = workplace();
    let d = dir.path();
    let refused = |yaml: &str| {
        put(d, "bad.yaml", yaml);
        line(d, "train-lora --config {}/bad.yaml --model {}/model --train {}/texts.jsonl --out {}/out").refused()
    };
    assert!(refused("lora_rnak: 4\n").contains("nearest: lora_rank"));
    assert!(refused("r: many\n").contains("many"));
    assert!(refused("r: {a: 1}\n").contains("r"));
    assert!(refused("no_shuffle: 3\n").contains("true or false"));
    assert!(refused("lr: 0.1\nlearning_rate: 0.2\n").contains("two names"));
    assert!(refused("- a\n- b\n").contains("mapping"));
    assert!(refused("r: [1\n").contains("bad.yaml"));
    assert!(refused("config: other.yaml\n").contains("config"));
    assert!(line(d, "train-lora --config {}/none.yaml --model m --train t --out o").refused().contains("none.yaml"));
    assert!(!d.join("out").exists());
}
