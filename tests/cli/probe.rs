//! `probe`.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::{line, put, workplace};

/// Reviews of two labels: 12 to show, 6 to ask.
pub(super) fn data(d: &Path) {
    let rows = |from: usize, n: usize| {
        let row = |i: usize| format!("the pen number {} is {}\t{}\n", i, ["thin", "fine"][i % 2], i % 2);
        std::iter::once("sentence\tlabel\n".to_owned()).chain((from..from + n).map(row)).collect::<String>()
    };
    put(d, "train.tsv", &rows(0, 12));
    put(d, "dev.tsv", &rows(100, 6));
}

const PROBE: &str = "probe --model {}/model --task sst2 --train {}/train.tsv --test {}/dev.tsv --demos 3 --queries 4 \
                     --seeds 2 --epochs 2 --r 2";

fn report(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("the report")).expect("JSON")
}

#[test]
fn probe_report_has_every_arm_layer_and_seed() {
    let dir = workplace();
    let d = dir.path();
    data(d);
    let shown = line(d, &format!("{PROBE} --out {{}}/run --save-adapters")).ok().out;
    assert!(shown.contains("ICL-IT") && shown.contains("final") && shown.contains("report.json"), "{shown}");
    let report = report(&d.join("run/report.json"));
    assert_eq!(report["plan"]["queries"].as_array().map(Vec::len), Some(4));
    let seeds = report["seeds"].as_array().expect("seeds");
    assert_eq!(seeds.len(), 2);
    for (i, seed) in seeds.iter().enumerate() {
        assert_eq!(seed["seed"], i);
        assert_eq!(seed["loss"].as_array().map(Vec::len), Some(2), "a loss per step");
        let layers = seed["layers"].as_array().expect("layers");
        assert_eq!(layers.len(), 3);
        assert_eq!(layers[2]["layer"], "final");
        for layer in layers {
            for pair in ["icl_it", "anchor_icl", "anchor_it"] {
                let mean = layer[pair]["mean"].as_f64().expect("a mean");
                assert!((-1.0..=1.000_001).contains(&mean), "{pair} {mean}");
            }
        }
        for arm in ["anchor", "icl", "it"] {
            assert!(seed["accuracy"][arm].as_f64().is_some_and(|a| (0.0..=1.0).contains(&a)), "{arm}");
        }
        let adapter = d.join("run").join(seed["adapter"].as_str().expect("the adapter's folder"));
        assert!(adapter.join("adapter_config.json").exists() && adapter.join("adapter_model.safetensors").exists());
    }
    let plan = &report["plan"]["seeds"][0];
    assert_eq!(plan["icl_suffix_token_ids"].as_array().map(Vec::len), Some(4));
    assert_eq!(plan["train"].as_array().map(Vec::len), Some(3));
}

#[test]
fn probe_soft_prompts_are_further_arms() {
    let dir = workplace();
    let d = dir.path();
    data(d);
    let soft = "--arms pt,ipt --num-virtual-tokens 3 --prompt-epochs 2 --save-adapters";
    let shown = line(d, &format!("{PROBE} {soft} --out {{}}/run")).ok().out;
    assert!(shown.contains("ICL-PT") && shown.contains("PT-IPT"), "{shown}");
    let report = report(&d.join("run/report.json"));
    for seed in report["seeds"].as_array().expect("seeds") {
        for (i, name) in ["pt", "ipt"].into_iter().enumerate() {
            let arm = &seed["soft"][i];
            assert_eq!((&arm["arm"], arm["loss"].as_array().map(Vec::len)), (&name.into(), Some(2)));
            assert_eq!(arm["layers"].as_array().map(Vec::len), Some(3));
            let adapter = d.join("run").join(arm["adapter"].as_str().expect("the prompt's folder"));
            assert!(adapter.join("adapter_model.safetensors").exists(), "{}", adapter.display());
        }
    }
    let again = line(d, "probe --model {}/model --plan {}/run/report.json --out {}/b --json").json();
    assert_eq!(report["summary"], again["summary"]);
    for (args, expected) in [("--num-virtual-tokens 0", "--num-virtual-tokens"), ("--arms pt,pt", "--arms")] {
        let found = line(d, &format!("{PROBE} {args} --out {{}}/x")).refused();
        assert!(found.contains(expected) && !d.join("x").exists(), "{args}: {found}");
    }
    assert_eq!(line(d, &format!("{PROBE} --arms lora --out {{}}/x")).code, Some(2));
}

#[test]
fn probe_plan_repeats_a_run_exactly() {
    let dir = workplace();
    let d = dir.path();
    data(d);
    let first = line(d, &format!("{PROBE} --out {{}}/a --json")).json();
    assert_eq!(first, report(&d.join("a/report.json")));
    let again = line(d, "probe --model {}/model --plan {}/a/report.json --out {}/b --json").json();
    for part in ["plan", "settings", "seeds", "summary", "tokens"] {
        assert_eq!(first[part], again[part], "{part}");
    }
    // What was written beside it says the same again; a setting beside the plan would count nothing.
    for run in ["a", "b"] {
        let again = line(d, &format!("probe --config {{}}/{run}/llamaprobe.yaml --out {{}}/c --json")).json();
        assert_eq!(first["summary"], again["summary"], "{run}");
    }
    for setting in ["--demos 2", "--arms pt", "--r 4", "--batch-tokens 100", "--train {}/train.tsv"] {
        let ran = line(d, &format!("probe --model {{}}/model --plan {{}}/a/report.json --out {{}}/d {setting}"));
        assert!(ran.code == Some(2) && ran.err.contains("--plan"), "{setting}: {}", ran.err);
    }
}

#[test]
fn probe_refuses_bad_settings_and_data() {
    let dir = workplace();
    let d = dir.path();
    data(d);
    put(d, "bad.tsv", "sentence\tlabel\nno label here\n");
    for (args, expected) in [
        ("--demos 13", "--demos"),
        ("--queries 7", "--queries"),
        ("--seeds 0", "--seeds"),
        ("--train {}/bad.tsv", "bad.tsv"),
        ("--train {}/none.tsv", "none.tsv"),
        ("--task en-cs", "two"),
        ("--template {query:x}", "template"),
        ("--target-modules z_proj", "z_proj"),
        ("--device cuda:1", "cuda:1"),
    ] {
        let probe = if args.starts_with("--train") {
            PROBE.replace("--train {}/train.tsv", args)
        } else {
            format!("{PROBE} {args}")
        };
        let text = line(d, &format!("{probe} --out {{}}/out")).refused();
        assert!(text.contains(expected), "{args}: {text}");
    }
    let plan = line(d, "probe --model {}/model --plan {}/model/config.json --out {}/out").refused();
    assert!(plan.contains("config.json"), "{plan}");
    let missing = line(d, "probe --model {}/model --out {}/out").refused();
    assert!(missing.contains("--train"), "{missing}");
    assert!(!d.join("out").exists());
}

/// Token ids mean something with their own tokenizer only.
#[test]
fn probe_plan_of_another_tokenizer_is_refused() {
    let dir = workplace();
    let d = dir.path();
    let run =
        "probe --model {}/model --task antonym --demos 1 --queries 2 --seeds 1 --epochs 0 --device cpu --out {}/a";
    line(d, run).ok();
    let again = "probe --model {}/model --plan {}/a/report.json --device cpu --out {}/b";
    assert!(!line(d, again).ok().err.contains("tokenizer"));
    let mut old = report(&d.join("a/report.json"));
    old["conditions"][0]["plan"].as_object_mut().expect("a plan").remove("tokenizer").expect("its digest");
    let path = put(d, "old.json", &old.to_string());
    let said = line(d, "probe --model {}/model --plan {}/old.json --device cpu --out {}/c").ok().err;
    let note = format!("{}: says not of which tokenizer its ids are", path.display());
    assert!(said.contains(&note), "{said}");
    let file = d.join("model/tokenizer.json");
    let text = fs::read_to_string(&file)
        .expect("a tokenizer")
        .replace("\"add_prefix_space\": false", "\"add_prefix_space\": true");
    fs::write(&file, text).expect("writes");
    let refused = line(d, &again.replace("}/b", "}/x")).refused();
    assert!(refused.contains("plan.tokenizer: expected the tokenizer of the model, as it was: "), "{refused}");
    assert!(!d.join("x").exists());
}
