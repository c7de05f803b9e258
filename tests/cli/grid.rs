//! Grids of `train-lora`, evaluation while training, and the logs beside the log.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::trained::{DATA, files, log, survives};
use super::{leftovers, line, put, workplace};

/// Held-out lines with prompts.
pub const ASKED: &str = "{\"prompt\": \"the pen is\", \"completion\": \" thin\"}\n\
                     {\"prompt\": \"the pot is\", \"completion\": \" in the pen\"}\n\
                     {\"instruction\": \"there is\", \"input\": \"\", \"output\": \"a pot\"}\n\
                     {\"input_ids\": [1, 30, 31, 32], \"labels\": [-100, -100, 31, 32]}\n";

/// Held-out lines.
const HELD_OUT: &str = "{\"prompt\": \"the pen is\", \"completion\": \" thin\"}\n{\"text\": \"there is a pot\"}\n";

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("a file")).expect("JSON")
}

/// The lines of a run's steps, without what differs from one day to another.
fn steps(lines: &[Value], run: Option<usize>) -> Vec<Value> {
    let of_run = lines.iter().filter(|line| line.get("run") == run.map(Value::from).as_ref());
    let fixed = |line: &Value| {
        let mut line = line.as_object().expect("an object").clone();
        let _ = ["run", "elapsed_time", "remaining_time", "throughput", "tokens_per_sec"].map(|key| line.remove(key));
        Value::Object(line)
    };
    of_run.map(fixed).collect()
}

#[test]
fn grid_runs_equal_runs_alone_whatever_their_ranks_and_modules() {
    let dir = workplace();
    let d = dir.path();
    put(d, "train.jsonl", DATA);
    put(d, "held.jsonl", HELD_OUT);
    let train = "train-lora --model {}/model --train {}/train.jsonl --batch-size 2 --max-steps 5 --save-steps 3 \
                 --weight-decay 0.1 --lora-dropout 0.1 --max-grad-norm 0.5 --eval {}/held.jsonl --eval-steps 2";
    let grid = "--r 1,3 --lora-alpha 2,9 --learning-rate 1e-2,1e-3 --seeds 2 --seed 5 \
                --target-modules q_proj,v_proj;k_proj,down_proj";
    let out = line(d, &format!("{train} --out {{}}/grid {grid} --json")).json();
    let (runs, lines) = (out["runs"].as_array().expect("runs"), log(&d.join("grid")));
    assert_eq!(runs.len(), 32);
    let results = json(&d.join("grid/results.json"));
    let mut lowest: Option<(f64, usize)> = None;
    for (i, run) in runs.iter().enumerate() {
        let folder = format!("run-{i:03}");
        assert_eq!(run["adapter"], d.join("grid").join(&folder).display().to_string());
        let settings = json(&d.join("grid").join(&folder).join("run.json"));
        for key in ["r", "lora_alpha", "learning_rate", "seed", "target_modules"] {
            assert_eq!(run[key], settings[key], "{folder}: {key}");
            assert_eq!(run[key], results["runs"][i][key], "{folder}: {key}");
        }
        let loss = run["eval_loss"].as_f64().expect("a loss");
        if lowest.is_none_or(|(lowest, _)| loss < lowest) {
            lowest = Some((loss, i));
        }
        // One of each rank, of each set, of each alpha.
        if ![0, 7, 10, 13, 17, 22, 28, 31].contains(&i) {
            continue;
        }
        let text = |key: &str| run[key].to_string().replace('"', "");
        let alone = format!(
            "--r {} --lora-alpha {} --learning-rate {} --seed {} --target-modules {}",
            text("r"),
            text("lora_alpha"),
            text("learning_rate"),
            text("seed"),
            text("target_modules")
        );
        line(d, &format!("{train} --out {{}}/alone-{i} {alone}")).ok();
        let alone = d.join(format!("alone-{i}"));
        assert_eq!(files(&d.join("grid").join(&folder)), files(&alone), "{folder}");
        let checkpoint = d.join(format!("grid/checkpoint-3/run-{i:03}"));
        assert_eq!(files(&checkpoint), files(&alone.join("checkpoint-3")), "{folder}");
        assert_eq!(steps(&lines, Some(i)), steps(&log(&alone), None), "{folder}");
        assert!(!alone.join("run.json").exists() && !alone.join("results.json").exists());
    }
    let best = format!("run-{:03}", lowest.expect("runs").1);
    assert_eq!(results["best"], best.as_str());
    assert_eq!(out["best"], d.join("grid").join(&best).display().to_string());
    assert!(leftovers(d).is_empty());
    let shown = line(d, &format!("{train} --out {{}}/table --r 1,2")).ok().out;
    assert!(shown.contains("eval_accuracy") && shown.contains("\nbest: "), "{shown}");
    // The written configuration has the lists, and repeats the grid.
    line(d, "train-lora --config {}/table/llamaprobe.yaml --out {}/again").ok();
    assert_eq!(json(&d.join("again/results.json")), json(&d.join("table/results.json")));
}

#[test]
fn grid_resumes_after_kills_to_the_same_bytes() {
    let dir = workplace();
    let d = dir.path();
    put(d, "train.jsonl", DATA);
    put(d, "held.jsonl", ASKED);
    // Six runs: 30 steps and 10 evaluations each, of which the patient ones see the end.
    let train = "train-lora --model {}/model --train {}/train.jsonl --batch-size 2 --max-steps 30 --lora-dropout 0.1 \
                 --save-steps 2 --r 2,3 --learning-rate 0.02,0.002,0 --eval {}/held.jsonl --eval-steps 3 \
                 --load-best-model-at-end --early-stopping-patience 2 --report-to tensorboard,csv \
                 --predict-with-generate --max-new-tokens 4 --metrics chrf,exact_match --metric-for-best-model chrf";
    line(d, &format!("{train} --out {{}}/count")).ok();
    let lines = log(&d.join("count")).len();
    let outputs: Vec<String> = (0..6).map(|run| format!("run-{run:03}")).collect();
    let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
    survives(d, train, &outputs, lines);
    assert_eq!(json(&d.join("calm/results.json")), json(&d.join("torn/results.json")));
    // The table has the log's numbers, each once.
    let table = fs::read_to_string(d.join("torn/trainer_log.csv")).expect("the table");
    let mut rows = table.lines();
    let header: Vec<&str> = rows.next().expect("a header").split(',').collect();
    let logged = log(&d.join("torn"));
    assert_eq!(rows.clone().count(), logged.len());
    for (row, logged) in rows.zip(&logged) {
        for (column, cell) in header.iter().zip(row.split(',')) {
            let found = if cell.is_empty() { Value::Null } else { cell.parse::<f64>().expect("a number").into() };
            let expected = logged.get(*column).map_or(Value::Null, |value| value.as_f64().into());
            assert_eq!(found, expected, "{column} of {row}");
        }
    }
    // A rate of 0 learns nothing: its first evaluation is the best, and two more are the end.
    let still = &json(&d.join("calm/results.json"))["runs"][2];
    assert_eq!((&still["steps"], &still["eval_step"]), (&9.into(), &3.into()), "{still}");
    assert_eq!(still["stopped_early"], true);
}

#[test]
fn best_adapter_is_that_of_the_lowest_evaluation() {
    let dir = workplace();
    let d = dir.path();
    put(d, "train.jsonl", DATA);
    put(d, "held.jsonl", HELD_OUT);
    // Too high a rate: the held-out loss rises again.
    let train = "train-lora --model {}/model --train {}/train.jsonl --batch-size 5 --max-steps 40 --learning-rate 0.05 \
                 --lr-scheduler-type constant --r 4 --save-steps 2 --save-total-limit 0 --eval {}/held.jsonl --eval-steps 2";
    let last = line(d, &format!("{train} --out {{}}/last --json")).json();
    let best = line(d, &format!("{train} --out {{}}/best --load-best-model-at-end --json")).json();
    let evaluations: Vec<Value> =
        log(&d.join("last")).into_iter().filter(|line| line.get("eval_loss").is_some()).collect();
    assert_eq!(evaluations.len(), 20);
    let loss = |line: &Value| line["eval_loss"].as_f64().expect("a loss");
    let lowest = evaluations.iter().min_by(|a, b| loss(a).total_cmp(&loss(b))).expect("evaluations");
    assert!(lowest["current_steps"] != 40, "the held-out loss never rose: nothing is tested");
    assert_eq!((&best["eval_loss"], &best["eval_step"]), (&lowest["eval_loss"], &lowest["current_steps"]));
    assert_eq!(last["eval_loss"], evaluations[19]["eval_loss"]);
    let checkpoint = d.join(format!("best/checkpoint-{}", lowest["current_steps"]));
    assert_eq!(files(&d.join("best")), files(&checkpoint));
    assert_ne!(files(&d.join("best")), files(&d.join("last")));
    let stopped = line(d, &format!("{train} --out {{}}/early --early-stopping-patience 3 --json")).json();
    let best_step = lowest["current_steps"].as_u64().expect("a step");
    assert!(stopped["steps"].as_u64().expect("steps") <= best_step + 6, "{stopped}");
    assert!(stopped["stopped_early"] == true && stopped["steps"] != 40, "{stopped}");
    // What is written is not what the last checkpoint has: another training may not continue it.
    let other = format!("{train} --out {{}}/best --resume-from-checkpoint latest");
    assert!(line(d, &other).refused().contains("load_best"), "evaluation is part of a training");
}

#[test]
fn evaluation_is_of_the_label_tokens() {
    let dir = workplace();
    let d = dir.path();
    put(d, "train.jsonl", DATA);
    // At a rate of 0 the whole data are one batch, whose loss the training computes by itself.
    let still = "train-lora --model {}/model --train {}/train.jsonl --eval {}/train.jsonl --max-steps 1";
    let json = line(d, &format!("{still} --batch-size 5 --lr 0 --out {{}}/still --json")).json();
    let number = |json: &Value, key: &str| json[key].as_f64().expect("a number");
    let (loss, of_step) = (number(&json, "eval_loss"), number(&json, "loss"));
    assert!((loss - of_step).abs() < 1e-5 * of_step, "{loss} {of_step}");
    // One label token in the end, of which everything can be learnt.
    put(d, "one.jsonl", "{\"input_ids\": [1, 30, 31, 32], \"labels\": [-100, -100, -100, 40]}\n");
    let one = "train-lora --model {}/model --train {}/one.jsonl --eval {}/one.jsonl --r 4 --lr 0.02 --json \
               --lr-scheduler-type constant";
    let learnt = line(d, &format!("{one} --max-steps 60 --out {{}}/learnt")).json();
    assert_eq!(learnt["eval_accuracy"], 1.0, "{learnt}");
    put(d, "one.jsonl", "{\"input_ids\": [1, 30, 31, 32], \"labels\": [-100, -100, 41, 40]}\n");
    let half = line(d, &format!("{one} --max-steps 1 --lr 0 --init-adapter {{}}/learnt --out {{}}/half")).json();
    assert_eq!(half["eval_accuracy"], 0.5, "{half}");
}

#[test]
fn grid_refuses_what_it_cannot_do() {
    let dir = workplace();
    let d = dir.path();
    put(d, "train.jsonl", DATA);
    let train = "train-lora --model {}/model --train {}/train.jsonl --out {}/out --max-steps 1";
    line(d, "train-lora --model {}/model --train {}/train.jsonl --max-steps 1 --out {}/one").ok();
    for (args, expected) in [
        ("--r 4,0", "r: expected a rank from 1"),
        ("--seeds 0", "--seeds"),
        ("--seeds 99999999999", "--seeds: expected from 1 to 4096"),
        ("--seeds 4000 --r 2,4", "lists: expected at most 4096 combinations, found 1 x 2 x 1 x 1 x 4000"),
        ("--r 1048576", "--r: expected a rank from 1 to 65536"),
        (r#"--rank-pattern {"q_proj":0}"#, "--rank-pattern: expected a rank from 1"),
        (r#"--init-lora-weights orthogonal --rank-pattern {"q_proj":3}"#, "--rank-pattern: expected an even rank"),
        ("--target-modules q_proj;", "--target-modules: expected modules before and after every semicolon"),
        ("--target-modules q_proj;x_proj", "x_proj"),
        ("--learning-rate 1e-3,nan", "--learning-rate"),
        ("--r 4,4", "--r: expected each value once, found 4 again"),
        ("--lora-alpha 8,8", "--lora-alpha: expected each value once"),
        ("--learning-rate 1e-3,0.001", "--learning-rate: expected each value once"),
        ("--target-modules q_proj,v_proj;v_proj,q_proj", "--target-modules: expected each value once"),
        ("--report-to none,csv", "--report-to: expected none alone"),
        ("--init-adapter {}/one --r 2,4", "--init-adapter"),
        ("--init-adapter {}/one --seeds 2 --no-shuffle", "--seeds: expected 1"),
        ("--init-lora-weights pissa --seeds 2 --no-shuffle", "--seeds: expected 1"),
        (
            "--eval {}/train.jsonl --metric-for-best-model bleu",
            "--metric-for-best-model: expected loss, accuracy; others",
        ),
        ("--eval {}/train.jsonl --predict-with-generate", "train.jsonl:3: keys: expected an example with a prompt"),
        ("--interleave-probs 0.5,0.5", "--interleave-probs: expected one for each of 1 files"),
        ("--interleave-probs 1 --mix-strategy concat", "--interleave-probs: expected a mix_strategy"),
        ("--neftune-noise-alpha 0", "--neftune-noise-alpha: expected a number above 0"),
        ("--eval {}/none.jsonl", "none.jsonl"),
    ] {
        let found = line(d, &format!("{train} {args}")).refused();
        assert!(found.contains(expected), "{args}: {found}");
    }
    assert!(!d.join("out").exists());
    // Found before the first step, not after the last.
    for (args, target) in
        [("", "adapter_model.safetensors"), ("--seeds 2", "results.json"), ("--seeds 2", "run-001/run.json")]
    {
        fs::create_dir_all(d.join("out").join(target)).expect("a directory");
        let found = line(d, &format!("{train} {args}")).refused();
        assert!(found.contains(&format!("{target}: expected a file to write, found a directory")), "{found}");
        fs::remove_dir(d.join("out").join(target)).expect("empty");
        assert!(!d.join("out/trainer_log.jsonl").exists());
    }
}
