//! `train-lora` with other starts, rates, ranks and alphas.

use std::path::Path;

use serde_json::{Value, json};

use super::trained::{DATA, files};
use super::{line, put, run, tensor, workplace};

const TRAIN: &str = "train-lora --model {}/model --train {}/data.jsonl --r 2 --max-steps 4 --batch-size 2 --device cpu";

fn place() -> tempfile::TempDir {
    let dir = workplace();
    put(dir.path(), "data.jsonl", DATA);
    dir
}

fn config(dir: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join("adapter_config.json")).expect("a file")).expect("JSON")
}

/// The bytes of an adapter's weights.
fn weights(dir: &Path, adapter: &str) -> Vec<u8> {
    std::fs::read(dir.join(adapter).join("adapter_model.safetensors")).expect("weights")
}

/// The states of all texts at the sites, by a model and what is applied to it.
fn states<const N: usize>(dir: &Path, sites: [&str; N], model: &str, out: &str) -> [Vec<f64>; N] {
    let capture = "capture --input {}/texts.jsonl --tokens all --device cpu";
    line(dir, &format!("{capture} --sites {} {model} --out {{}}/{out}", sites.join(","))).ok();
    sites.map(|site| tensor(&dir.join(out).join("activations.safetensors"), site).1)
}

fn logits(dir: &Path, model: &str, out: &str) -> Vec<f64> {
    let [logits] = states(dir, ["logits"], model, out);
    logits
}

/// The largest difference, as a share of the largest magnitude of `a`.
fn apart(a: &[f64], b: &[f64]) -> f64 {
    let largest = a.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    a.iter().zip(b).fold(0.0f64, |m, (a, b)| m.max((a - b).abs())) / largest
}

/// Trains at a rate, and again from the middle: both have the same bytes.
fn resumed_is_the_same(dir: &Path, train: &str) {
    line(dir, &format!("{train} --save-steps 2 --out {{}}/whole")).ok();
    line(dir, &format!("{train} --out {{}}/resumed --resume-from-checkpoint {{}}/whole/checkpoint-2")).ok();
    assert!(weights(dir, "whole") == weights(dir, "resumed"), "resumed");
}

/// What is merged is what was tuned, which is not the base model.
fn merged_is_the_same(dir: &Path, plain: &[f64]) {
    let tuned = logits(dir, "--model {}/model --adapter {}/whole", "tuned");
    line(dir, "merge --model {}/model --adapter {}/whole --out {}/merged").ok();
    let merged = logits(dir, "--model {}/merged", "of-merged");
    assert!(apart(plain, &tuned) > 1e-3 && apart(&tuned, &merged) <= 1e-5, "{:.1e}", apart(&tuned, &merged));
}

/// A training that does not move leaves the base model as it is: what the residual base lacks, the adapter has, and no more.
#[test]
fn pissa_adapter_is_for_the_base_model_as_it_was() {
    let dir = place();
    let d = dir.path();
    line(d, &format!("{TRAIN} --init-lora-weights pissa --learning-rate 0 --out {{}}/still")).ok();
    let written = config(&d.join("still"));
    assert_eq!(
        (&written["r"], &written["lora_alpha"], &written["init_lora_weights"]),
        (&json!(4), &json!(32), &json!(true))
    );
    let plain = logits(d, "--model {}/model", "plain");
    let still = logits(d, "--model {}/model --adapter {}/still", "tuned");
    assert!(apart(&plain, &still) <= 1e-5, "{:.1e}", apart(&plain, &still));
    line(d, &format!("{TRAIN} --init-lora-weights pissa --learning-rate 0.05 --out {{}}/moved")).ok();
    let moved = logits(d, "--model {}/model --adapter {}/moved", "further");
    assert!(apart(&plain, &moved) > 1e-3);
}

#[test]
fn pissa_with_two_rates_resumes_to_the_same_bytes() {
    let dir = place();
    let d = dir.path();
    let train = format!(
        "{TRAIN} --init-lora-weights pissa --loraplus-lr-ratio 8 --use-rslora --learning-rate 0.01 --save-steps 2"
    );
    line(d, &format!("{train} --out {{}}/whole")).ok();
    line(d, &format!("{train} --out {{}}/second --resume-from-checkpoint {{}}/whole/checkpoint-2")).ok();
    assert!(files(&d.join("whole")) == files(&d.join("second")));
    let other = line(
        d,
        &format!(
            "{} --out {{}}/third --resume-from-checkpoint {{}}/whole/checkpoint-2",
            train.replace("pissa", "true")
        ),
    );
    assert!(other.refused().contains("init_lora_weights"));
    let plain = line(d, &format!("{} --out {{}}/fourth", train.replace(" --loraplus-lr-ratio 8", "")));
    plain.ok();
    assert!(files(&d.join("whole")) != files(&d.join("fourth")));
}

/// A DoRA that does not move is the base model; one that moves is, alone, in a grid and resumed, the same bytes, and merged the
/// same model.
#[test]
fn dora_starts_at_the_base_model_and_is_the_same_in_a_grid_resumed_and_merged() {
    let dir = place();
    let d = dir.path();
    let train = format!("{TRAIN} --use-dora --learning-rate");
    line(d, &format!("{train} 0 --out {{}}/still")).ok();
    assert_eq!(config(&d.join("still"))["use_dora"], json!(true));
    let [plain, q] = states(d, ["logits", "blocks.0.attn.hook_q"], "--model {}/model", "plain");
    let still = logits(d, "--model {}/model --adapter {}/still", "at-first");
    assert!(apart(&plain, &still) <= 1e-6, "{:.1e}", apart(&plain, &still));
    resumed_is_the_same(d, &format!("{train} 0.05"));
    line(d, &format!("{train} 0.05,0.01 --r 2,3 --out {{}}/grid").replace("--r 2 ", "")).ok();
    assert!(weights(d, "whole") == weights(d, "grid/run-000"), "in a grid");
    let of_lora = ["blocks.0.q_proj.hook_lora_delta", "blocks.0.attn.hook_q"];
    let [delta, moved] = states(d, of_lora, "--model {}/model --adapter {}/whole", "added");
    let added: Vec<f64> = q.iter().zip(&delta).map(|(x, d)| x + d).collect();
    assert!(apart(&moved, &added) <= 1e-6, "what the adapter adds: {:.1e}", apart(&moved, &added));
    merged_is_the_same(d, &plain);
}

/// An IA3 that does not move is the base model; one that moves is, alone, in a grid and resumed, the same bytes, and merged the
/// same model.
#[test]
fn ia3_starts_at_the_base_model_and_is_the_same_in_a_grid_resumed_and_merged() {
    let dir = place();
    let d = dir.path();
    let train = format!("{} --peft-type ia3 --learning-rate", TRAIN.replace(" --r 2", ""));
    line(d, &format!("{train} 0 --out {{}}/still")).ok();
    let written = config(&d.join("still"));
    assert_eq!(
        (&written["peft_type"], &written["target_modules"], &written["feedforward_modules"]),
        (&json!("IA3"), &json!(["down_proj", "k_proj", "v_proj"]), &json!(["down_proj"]))
    );
    let plain = logits(d, "--model {}/model", "plain");
    let still = logits(d, "--model {}/model --adapter {}/still", "at-first");
    assert!(plain == still, "ones change nothing");
    resumed_is_the_same(d, &format!("{train} 0.05"));
    line(d, &format!("{train} 0.05,0.01 --out {{}}/grid")).ok();
    assert!(
        weights(d, "whole") == weights(d, "grid/run-000") && weights(d, "whole") != weights(d, "grid/run-001"),
        "in a grid"
    );
    line(d, &format!("{train} 0 --out {{}}/further --init-adapter {{}}/whole")).ok();
    assert!(weights(d, "whole") == weights(d, "further"), "goes on from what was written");
    merged_is_the_same(d, &plain);
}

/// Modules that are trained whole begin as the base model's; resumed, continued, captured and merged they are the same.
#[test]
fn modules_that_are_trained_whole_start_at_the_base_model_and_are_the_same_resumed_and_merged() {
    let dir = place();
    let d = dir.path();
    let train = format!("{TRAIN} --modules-to-save embed_tokens,lm_head,norm,k_proj --learning-rate");
    line(d, &format!("{train} 0 --out {{}}/still")).ok();
    let names = json!(["embed_tokens", "lm_head", "norm", "k_proj"]);
    assert_eq!(config(&d.join("still"))["modules_to_save"], names);
    let plain = logits(d, "--model {}/model", "plain");
    let still = logits(d, "--model {}/model --adapter {}/still", "at-first");
    assert!(plain == still, "copies change nothing");
    resumed_is_the_same(d, &format!("{train} 0.01"));
    line(d, &format!("{train} 0 --out {{}}/further --init-adapter {{}}/whole")).ok();
    assert!(weights(d, "whole") == weights(d, "further"), "goes on from what was written");
    let base = |name: &str| tensor(&d.join("model/model.safetensors"), name);
    for name in [
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.norm.weight",
        "model.layers.1.input_layernorm.weight",
        "model.layers.0.self_attn.k_proj.weight",
    ] {
        let own = tensor(&d.join("whole/adapter_model.safetensors"), &format!("base_model.model.{name}"));
        assert!(own.0 == base(name).0 && own.1 != base(name).1, "{name} has not moved");
    }
    merged_is_the_same(d, &plain);
    // What is left of the base model when its main parts are taken out of it.
    line(d, &format!("{train} 0 --init-lora-weights pissa --out {{}}/pissa")).ok();
    let pissa = logits(d, "--model {}/model --adapter {}/pissa", "of-pissa");
    assert!(apart(&plain, &pissa) <= 1e-5, "{:.1e}", apart(&plain, &pissa));
    for (modules, more, expected) in [
        ("norm", "--r 1,3", "modules-to-save: expected one run beside it, found 2 runs"),
        ("no_such", "", "modules-to-save: expected names of the model's modules, found \"no_such\""),
        ("mlp", "", "modules-to-save: expected tables, norms, matrices or the output layer"),
        ("norm", "--peft-type ia3", "modules-to-save: expected no setting of a LoRA beside --peft-type ia3"),
    ] {
        let train = TRAIN.replace(" --r 2", "");
        let error = line(d, &format!("{train} --modules-to-save {modules} {more} --out {{}}/no")).refused();
        assert!(error.contains(expected), "{more}: {error}");
    }
    assert!(!d.join("no").exists());
}

/// Rows of the embedding table begin as the base model's; resumed, continued, captured and merged they are the same, and the other
/// rows are what they were.
#[test]
fn rows_of_trained_tokens_start_at_the_base_model_and_are_the_same_resumed_and_merged() {
    let dir = place();
    let d = dir.path();
    let train = format!("{TRAIN} --trainable-token-indices 104,5,101 --learning-rate");
    line(d, &format!("{train} 0 --out {{}}/still")).ok();
    assert_eq!(config(&d.join("still"))["trainable_token_indices"], json!([104, 5, 101]));
    let plain = logits(d, "--model {}/model", "plain");
    let still = logits(d, "--model {}/model --adapter {}/still", "at-first");
    assert!(plain == still, "copies change nothing");
    resumed_is_the_same(d, &format!("{train} 0.05"));
    line(d, &format!("{train} 0 --out {{}}/further --init-adapter {{}}/whole")).ok();
    assert!(weights(d, "whole") == weights(d, "further"), "goes on from what was written");
    let name = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta";
    let (shape, rows) = tensor(&d.join("whole/adapter_model.safetensors"), name);
    assert_eq!(shape, [3, 24]);
    merged_is_the_same(d, &plain);
    let table = |model: &str| tensor(&d.join(model).join("model.safetensors"), "model.embed_tokens.weight").1;
    let (before, after) = (table("model"), table("merged"));
    for (id, (before, after)) in before.chunks(24).zip(after.chunks(24)).enumerate() {
        match [104, 5, 101].iter().position(|&token| token == id) {
            Some(i) => assert!(after == &rows[24 * i..][..24], "{id} is not the trained row"),
            None => assert!(before == after, "{id}"),
        }
    }
    for (more, expected) in [
        ("5 --r 1,3", "trainable-token-indices: expected one run beside it, found 2 runs"),
        ("5,272", "trainable-token-indices: expected tokens below 272, found 272"),
        ("5,5", "trainable-token-indices: expected tokens that are named once, found 5 twice"),
        ("5 --modules-to-save embed_tokens", "expected none, where model.embed_tokens is adapted or trained whole"),
        ("5 --peft-type ia3", "trainable-token-indices: expected no setting of a LoRA beside --peft-type ia3"),
    ] {
        let train = TRAIN.replace(" --r 2", "");
        let error = line(d, &format!("{train} --trainable-token-indices {more} --out {{}}/no")).refused();
        assert!(error.contains(expected), "{more}: {error}");
    }
    assert!(!d.join("no").exists());
}

#[test]
fn ranks_and_alphas_by_pattern_are_written_as_peft_has_them() {
    let dir = place();
    let d = dir.path();
    let words = [
        ("--rank-pattern", r#"{"v_proj": 1, "layers.0.self_attn.q_proj": 3}"#),
        ("--alpha-pattern", r#"{"v_proj": 2.5}"#),
    ];
    let mut args = super::words(d, &format!("{TRAIN} --use-rslora --out {{}}/out"));
    args.extend(words.iter().flat_map(|(flag, value)| [(*flag).to_owned(), (*value).to_owned()]));
    run(args).ok();
    let written = config(&d.join("out"));
    assert_eq!(written["rank_pattern"], json!({"v_proj": 1, "layers.0.self_attn.q_proj": 3}));
    assert_eq!((&written["alpha_pattern"], &written["use_rslora"]), (&json!({"v_proj": 2.5}), &json!(true)));
    let rank = |layer: usize, module: &str| {
        let name = format!("base_model.model.model.layers.{layer}.self_attn.{module}.lora_A.weight");
        tensor(&d.join("out/adapter_model.safetensors"), &name).0[0]
    };
    assert_eq!([rank(0, "q_proj"), rank(1, "q_proj"), rank(0, "v_proj"), rank(1, "v_proj")], [3, 2, 1, 1]);
    let expression = r"(?!.*k_proj).*self_attn\.[qkv]_proj";
    let mut args = super::words(d, &format!("{TRAIN} --out {{}}/around"));
    args.extend(["--target-modules", expression].map(str::to_owned));
    run(args).ok();
    assert_eq!(config(&d.join("around"))["target_modules"], json!(expression));
    let bytes = std::fs::read(d.join("around/adapter_model.safetensors")).expect("weights");
    let weights = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let adapted = |module: &str| weights.names().iter().any(|name| name.contains(module));
    assert_eq!(["q_proj", "k_proj", "v_proj", "o_proj"].map(adapted), [true, false, true, false]);
    line(d, &format!("{TRAIN} --layers-to-transform 1 --target-modules all-linear --out {{}}/upper")).ok();
    assert_eq!(config(&d.join("upper"))["layers_to_transform"], json!([1]));
    let bytes = std::fs::read(d.join("upper/adapter_model.safetensors")).expect("weights");
    let weights = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    assert!(weights.names().iter().all(|name| name.contains("layers.1.")) && weights.names().len() == 14);
    // The flags stand in the configuration that lies beside the adapter, which gives the same training.
    line(d, "train-lora --config {}/out/llamaprobe.yaml --out {}/again").ok();
    assert!(files(&d.join("out")) == files(&d.join("again")));
}

#[test]
fn starts_and_rates_out_of_their_domain_name_their_flag() {
    let dir = place();
    let d = dir.path();
    for (more, says) in [
        ("--init-lora-weights orthogonal --r 3", &["--r", "even", "3"][..]),
        ("--init-lora-weights pissa --r 500", &["--r", "singular", "500"]),
        ("--loraplus-lr-ratio 0", &["--loraplus-lr-ratio", "above 0"]),
        ("--peft-type ia3", &["--r", "ia3"]),
        ("--feedforward-modules down_proj", &["--feedforward-modules", "ia3"]),
        ("--use-dora --lora-dropout 0.1", &["--lora-dropout", "--use-dora", "0.1"]),
        ("--use-dora --init-lora-weights pissa", &["--init-lora-weights", "--use-dora", "pissa"]),
        ("--layers-to-transform 7", &["--layers-to-transform", "layers below 2", "7"]),
        ("--layers-to-transform 0 --target-modules .*q_proj", &["--target-modules", "--layers-to-transform", "q_proj"]),
        (
            "--layers-to-transform 0 --target-modules q_proj,embed_tokens",
            &["--target-modules", "modules of layers", "embed_tokens"],
        ),
        ("--layers-to-transform 0 --peft-type ia3", &["--layers-to-transform", "ia3"]),
        ("--rank-pattern {\"v_proj\":1.5}", &["--rank-pattern", "1.5"]),
        ("--rank-pattern {\"nothing\":1}", &["rank-pattern", "nothing"]),
    ] {
        let error = line(d, &format!("{TRAIN} --out {{}}/out {more}")).refused();
        assert!(says.iter().all(|part| error.contains(part)), "{more}: {error}");
        assert!(!d.join("out").exists(), "{more}");
    }
    let both = line(d, &format!("{TRAIN} --out {{}}/out --init-adapter {{}}/x --init-lora-weights gaussian"));
    assert_eq!(both.code, Some(2), "{}", both.err);
}
