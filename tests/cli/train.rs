//! `train-lora`.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::trained::{DATA, files, log, survives};
use super::{leftovers, line, put, tensor, workplace};
use crate::support::skips::{Reason, skip};

#[test]
fn lora_is_trained_logged_and_applied() {
    let dir = workplace();
    let d = dir.path();
    put(d, "train.jsonl", DATA);
    let json = line(
        d,
        "train-lora --model {}/model --train {}/train.jsonl --out {}/out --r 4 --lora-alpha 8 --learning-rate 1e-2 \
         --batch-size 5 --max-steps 40 --lr-scheduler-type constant --seed 0 --save-steps 25 --json",
    )
    .json();
    assert_eq!(json["steps"], 40);
    let lines = log(&d.join("out"));
    assert_eq!(lines.len(), 40);
    for (i, line) in lines.iter().enumerate() {
        assert_eq!(line["current_steps"], i + 1);
        for field in [
            "total_steps",
            "loss",
            "lr",
            "epoch",
            "percentage",
            "elapsed_time",
            "remaining_time",
            "throughput",
            "total_tokens",
            "grad_norm",
        ] {
            assert!(line.get(field).is_some(), "{field} in {line}");
        }
    }
    let loss = |i: usize| lines[i]["loss"].as_f64().expect("a loss");
    assert!(loss(39) < 0.8 * loss(0), "{} to {}", loss(0), loss(39));
    let config: Value = serde_json::from_slice(&files(&d.join("out"))[1]).expect("JSON");
    assert_eq!(
        (&config["r"], &config["peft_type"], &config["task_type"]),
        (&4.into(), &"LORA".into(), &"CAUSAL_LM".into())
    );
    assert_eq!(config["target_modules"], serde_json::json!(["q_proj", "v_proj"]));
    let name = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight";
    let (shape, values) = tensor(&d.join("out/adapter_model.safetensors"), name);
    assert_eq!(shape, [16, 4]);
    assert!(values.iter().any(|&x| x != 0.0), "B has not moved");
    assert!(d.join("out/checkpoint-25/adapter_model.safetensors").exists());
    assert!(leftovers(d).is_empty());

    line(d, "capture --model {}/model --input {}/texts.jsonl --out {}/base").ok();
    line(d, "capture --model {}/model --input {}/texts.jsonl --out {}/tuned --adapter {}/out").ok();
    let states = |name: &str| tensor(&d.join(name).join("activations.safetensors"), "blocks.1.hook_resid_post").1;
    assert_ne!(states("base"), states("tuned"), "the adapter has no effect");
}

#[test]
fn lora_init_adapter_is_that_adapter() {
    let dir = workplace();
    let d = dir.path();
    put(d, "train.jsonl", DATA);
    let train =
        "train-lora --model {}/model --train {}/train.jsonl --no-shuffle --lr 0.01 --lr-scheduler-type constant";
    line(d, &format!("{train} --out {{}}/a --max-steps 1 --target-modules all-linear --r 2")).ok();
    let other = line(d, &format!("{train} --out {{}}/b --max-steps 1 --init-adapter {{}}/a --lr 0")).ok();
    assert!(!other.err.contains("--init-adapter"), "{}", other.err);
    for (flags, flag) in [
        ("--r 8", "--r"),
        ("--lora-alpha 3", "--lora-alpha"),
        ("--target-modules q_proj", "--target-modules"),
        ("--layers-to-transform 1", "--layers-to-transform"),
        ("--use-dora", "--use-dora"),
        ("--use-rslora", "--use-rslora"),
        ("--rank-pattern {\"q_proj\":1}", "--rank-pattern"),
        ("--modules-to-save lm_head", "--modules-to-save"),
        ("--trainable-token-indices 5", "--trainable-token-indices"),
    ] {
        let refused = line(d, &format!("{train} --out {{}}/x --max-steps 1 --init-adapter {{}}/a {flags}")).refused();
        let expected = format!("{flag}: expected what --init-adapter has (r 2, lora_alpha 16), or no such flag");
        assert!(refused.contains(&expected), "{flags}: {refused}");
    }
    let shape = "--target-modules all-linear --r 2";
    let same = line(d, &format!("{train} --out {{}}/d --max-steps 1 --init-adapter {{}}/a --lr 0 {shape}")).ok();
    assert!(!same.err.contains("--init-adapter"), "{}", same.err);
    assert_eq!(files(&d.join("a"))[0], files(&d.join("b"))[0], "nothing is learnt at a rate of 0");
    line(d, "train-lora --config {}/b/llamaprobe.yaml --out {}/e").ok();
    assert_eq!(files(&d.join("e"))[0], files(&d.join("b"))[0], "the configuration that it wrote");
    line(d, &format!("{train} --out {{}}/c --max-steps 1 --target-modules .*layers\\.1\\..*(up|down)_proj")).ok();
    let file = d.join("c/adapter_model.safetensors");
    let bytes = fs::read(&file).expect("weights");
    let names = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors").len();
    assert_eq!(names, 4, "two projections of one layer");
}

#[test]
fn dry_run_plans_and_writes_nothing() {
    let dir = workplace();
    let d = dir.path();
    put(d, "train.jsonl", DATA);
    let plan = line(d, "train-lora --model {}/model --train {}/train.jsonl --out {}/out --dry-run --json").json();
    for purpose in ["adapters", "activations", "gradients", "optimiser", "total"] {
        assert!(plan["plan"][purpose].as_u64().is_some_and(|n| n > 0), "{purpose}: {plan}");
    }
    line(d, "capture --model {}/model --input {}/texts.jsonl --out {}/out --dry-run").ok();
    assert!(!d.join("out").exists());
}

#[test]
fn lora_refuses_bad_data_and_settings_before_writing() {
    let dir = workplace();
    let d = dir.path();
    let train = "train-lora --model {}/model --train {}/train.jsonl --out {}/out";
    for (text, expected) in [
        ("", "train.jsonl"),
        ("{\"prompt\": \"a\"}\n", "train.jsonl:1"),
        ("{\"text\": \"a\"}\n{\"input_ids\": [1, 2], \"labels\": [1]}\n", "train.jsonl:2"),
        ("{\"input_ids\": [1, 2], \"labels\": [-100, -100]}\n", "train.jsonl: labels: expected at least one"),
        ("{\"input_ids\": [1, 5000]}\n", "5000"),
        ("{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n", "chat_template"),
    ] {
        put(d, "train.jsonl", text);
        let found = line(d, train).refused();
        assert!(found.contains(expected), "{text}: {found}");
    }
    put(d, "train.jsonl", DATA);
    for (args, expected) in [
        ("--r 0", "r"),
        ("--lora-alpha nan", "alpha"),
        ("--lora-dropout 1", "--lora-dropout"),
        ("--target-modules norm", "--target-modules: expected projections"),
        ("--target-modules lm_head --use-dora", "lm_head"),
        ("--target-modules embed_tokens --seeds 2", "one run, if model.embed_tokens is adapted"),
        ("--target-modules embed_tokens --loraplus-lr-ratio 4", "--loraplus-lr-ratio"),
        ("--target-modules lm_head --init-lora-weights pissa", "--init-lora-weights"),
        ("--target-modules q_proj,x_proj", "x_proj"),
        ("--learning-rate nan", "--learning-rate"),
        ("--batch-size 0", "--batch-size"),
        ("--max-steps 0", "--max-steps"),
        ("--epochs 0", "--epochs"),
        ("--max-length 1", "labels"),
        ("--init-adapter {}/none", "adapter_config.json"),
        ("--resume-from-checkpoint {}/none", "--resume-from-checkpoint"),
    ] {
        let found = line(d, &format!("{train} {args}")).refused();
        assert!(found.contains(expected), "{args}: {found}");
    }
    assert!(!d.join("out").exists() && leftovers(d).is_empty());
}

#[test]
fn lora_training_resumes_after_a_kill_to_the_same_bytes() {
    let dir = workplace();
    let d = dir.path();
    put(d, "train.jsonl", DATA);
    let train = "train-lora --model {}/model --train {}/train.jsonl --batch-size 2 --max-steps 60 --lora-dropout 0.1 \
                 --gradient-accumulation-steps 2 --save-steps 3 --save-total-limit 2 --learning-rate 0.01";
    survives(d, train, &["."], 60);
    // Without the word, a directory with checkpoints is not overwritten.
    line(d, &format!("{train} --out {{}}/torn")).refused();
}

/// A small file system of its own, if the test may make one.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(at: &'a Path) -> Option<Self> {
        fs::create_dir_all(at).expect("a folder");
        let options = ["-t", "tmpfs", "-o", "size=64k", "tmpfs"];
        let mounted = Command::new("mount").args(options).arg(at).stderr(Stdio::null()).status();
        mounted.is_ok_and(|s| s.success()).then_some(Self(at))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

#[test]
fn full_disk_is_one_error_and_loses_nothing() {
    let dir = workplace();
    let d = dir.path();
    put(d, "train.jsonl", DATA);
    let at = d.join("disk");
    let Some(_disk) = SmallDisk::mount(&at) else {
        skip(Reason::Mount);
        return;
    };
    let train =
        "train-lora --model {}/model --train {}/train.jsonl --out {}/disk/out --save-steps 1 --save-total-limit 0";
    let text = line(d, &format!("{train} --max-steps 500 --r 4")).refused();
    assert!(text.contains("disk/out") && text.contains("space"), "{text}");
    // What was complete is intact: the training goes on from it where there is room.
    let copied = Command::new("cp").arg("-r").arg(at.join("out")).arg(d.join("out")).status().expect("cp");
    assert!(copied.success());
    let resumed = train.replace("disk/out", "out").replace("--save-steps 1 ", "");
    line(d, &format!("{resumed} --max-steps 500 --r 4 --resume-from-checkpoint latest --dry-run")).ok();
    line(d, "capture --model {}/model --input {}/texts.jsonl --out {}/disk/states").refused();
    assert!(!at.join("states/activations.safetensors").exists() && leftovers(&at).is_empty());
}
