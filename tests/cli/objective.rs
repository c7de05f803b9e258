//! `--objective` of `train-lora` and `train-prompt`, and `--arms it-act,it-kl` of `probe`.

use serde_json::Value;

use super::trained::{files, log};
use super::{leftovers, line, put, workplace};

const PAIRS: [[&str; 2]; 5] = [
    ["the pen is", " in the pot"],
    ["the pot is", " thin"],
    ["a pen is", " thin"],
    ["the pot has", " a pen"],
    ["there is", " a pot"],
];

/// Lines of prompt and completion.
fn rows() -> String {
    PAIRS
        .map(|[prompt, completion]| format!("{{\"prompt\": \"{prompt}\", \"completion\": \"{completion}\"}}\n"))
        .concat()
}

/// The same behind demonstrations of their own, and as one text each.
fn demonstrated() -> (String, String) {
    let shown = "is b.\\n\", \"c is d.\\n";
    let row = |[query, completion]: [&str; 2]| {
        let row = format!(
            "{{\"demonstrations\": [\"a {shown}\"], \"query\": \"{query}\", \"completion\": \"{completion}\"}}\n"
        );
        (row, format!("{{\"text\": \"a is b.\\nc is d.\\n{query}{completion}\"}}\n"))
    };
    PAIRS.into_iter().map(row).unzip()
}

fn losses(lines: &[Value], part: &str) -> Vec<f64> {
    lines.iter().map(|line| line[part].as_f64().unwrap_or_else(|| panic!("{part} of {line}"))).collect()
}

#[test]
fn objective_parts_are_logged_and_grid_runs_equal_runs_alone() {
    let dir = workplace();
    let d = dir.path();
    put(d, "train.jsonl", &rows());
    let train = "train-lora --model {}/model --train {}/train.jsonl --batch-size 2 --max-steps 4 --learning-rate 0.02 \
                 --objective mixed --logit-weight 0.5 --temperature 2 --demos 3 --report-to csv";
    line(d, &format!("{train} --out {{}}/grid --r 2,3 --seeds 2 --seed 5")).ok();
    line(d, &format!("{train} --out {{}}/alone --r 3 --seed 6")).ok();
    assert_eq!(files(&d.join("grid/run-003")), files(&d.join("alone")));
    let lines = log(&d.join("alone"));
    let [all, ce, states, logits] = ["loss", "ce", "activations", "logits"].map(|part| losses(&lines, part));
    for i in 0..4 {
        let sum = 0.02 * ce[i] + 0.98 * states[i] + 0.5 * logits[i];
        assert!((all[i] - sum).abs() < 1e-9 * sum && states[i] > 0.0 && logits[i] > 0.0, "{:?}", lines[i]);
    }
    let table = std::fs::read_to_string(d.join("alone/trainer_log.csv")).expect("a table");
    assert!(table.lines().next().expect("a header").ends_with(",ce,activations,logits"), "{table}");
    // Another seed draws other demonstrations.
    let other = log(&d.join("grid")).into_iter().filter(|line| line["run"] == 2).collect::<Vec<_>>();
    assert!(losses(&other, "activations")[0] != states[0]);
    line(d, "train-lora --config {}/alone/llamaprobe.yaml --out {}/again").ok();
    assert_eq!(files(&d.join("again")), files(&d.join("alone")), "the written configuration has the objective");
    for method in ["pt", "prefix"] {
        let train = "train-prompt --model {}/model --train {}/train.jsonl --num-virtual-tokens 3 --max-steps 3 \
                     --objective activations --objective-sites resid_post,attn.hook_z --objective-layers 1";
        line(d, &format!("{train} --method {method} --out {{}}/{method}")).ok();
        let lines = log(&d.join(method));
        assert!(lines.iter().all(|line| line.get("ce").is_none() && line["loss"] == line["activations"]), "{lines:?}");
    }
    assert!(leftovers(d).is_empty());
}

#[test]
fn objective_towards_a_capture_is_that_behind_the_same_demonstrations() {
    let dir = workplace();
    let d = dir.path();
    let (shown, whole) = demonstrated();
    put(d, "shown.jsonl", &shown);
    put(d, "alone.jsonl", &rows());
    put(d, "whole.jsonl", &whole);
    line(d, "capture --model {}/model --input {}/whole.jsonl --sites attn_out,logits --out {}/states --dtype f32").ok();
    let train = "train-lora --model {}/model --max-steps 4 --learning-rate 0.02 --dtype f32 --objective mixed --ce-weight 0 \
                 --activation-weight 1 --logit-weight 1";
    line(d, &format!("{train} --train {{}}/shown.jsonl --out {{}}/icl")).ok();
    let file = "--teacher {}/states/activations.safetensors";
    line(d, &format!("{train} --train {{}}/alone.jsonl --out {{}}/file {file}")).ok();
    let [icl, file] = ["icl", "file"].map(|out| losses(&log(&d.join(out)), "loss"));
    assert!(icl.iter().zip(&file).all(|(a, b)| (a - b).abs() < 1e-5 * a), "{icl:?} {file:?}");

    put(d, "other.jsonl", &rows().replace("thin", "here"));
    let train = "train-lora --model {}/model --out {}/no --objective activations";
    let refused = |args: &str| line(d, &format!("{train} {args}")).refused();
    let said = refused("--train {}/other.jsonl --teacher {}/states/activations.safetensors");
    assert!(said.contains("token_id") && said.contains("document 1"), "{said}");
    let said =
        refused("--train {}/alone.jsonl --teacher {}/states/activations.safetensors --objective-sites resid_post");
    assert!(said.contains("blocks.0.hook_resid_post"), "{said}");
    let said = refused("--train {}/alone.jsonl --demos 5");
    assert!(said.contains("--demos: expected from 1 to 4"), "{said}");
    let said = refused("--train {}/alone.jsonl --temperature 2");
    assert!(said.contains("--temperature: expected beside --objective logits, or mixed with"), "{said}");
    // Of a mixture too, what counts nothing has no settings.
    let mixed = |args: &str| refused(&format!("--train {{}}/alone.jsonl --objective mixed {args}"));
    assert!(mixed("--temperature 2").contains("--temperature: expected beside"));
    let said = mixed("--activation-weight 0 --logit-weight 1 --objective-sites mlp_out");
    assert!(said.contains("--objective-sites: expected beside"), "{said}");
    let said = refused("--train {}/alone.jsonl --objective-sites attn_scores");
    assert!(said.contains("--objective-sites") && said.contains("hook_attn_scores"), "{said}");
    put(d, "text.jsonl", "{\"text\": \"a pot\"}\n{\"text\": \"a pen\"}\n");
    let said = refused("--train {}/text.jsonl");
    assert!(said.contains("text.jsonl:1") && said.contains("completion"), "{said}");
    // As many demonstrations as there are others, where lines are equal; and none at all.
    let one = rows().lines().next().expect("a row").to_owned() + "\n";
    put(d, "twice.jsonl", &(rows() + &one));
    line(d, &train.replace("{}/no", "{}/twice --train {}/twice.jsonl --max-steps 1")).ok();
    put(d, "one.jsonl", &one);
    let said = refused("--train {}/one.jsonl");
    assert!(said.contains("one.jsonl:1: demonstrations: expected another example of the file"), "{said}");
}
