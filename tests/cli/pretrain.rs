//! `pretrain` and `task synthetic`.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::{line, support};

const SMALL: &str = "--hidden-size 16 --intermediate-size 24 --num-hidden-layers 2 --num-attention-heads 2 \
                     --num-key-value-heads 1 --batch-size 4 --max-steps 6 --warmup-steps 2 --eval-steps 2 \
                     --eval-episodes 4 --logging-steps 1 --device cpu";

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines().map(|l| serde_json::from_str(l).expect("a line of JSON")).collect()
}

#[test]
fn pretrain_makes_a_usable_model_and_resumes_after_a_kill_to_the_same_bytes() {
    let dir = support::temp();
    let d = dir.path();
    line(d, &format!("pretrain --out {{}}/whole {SMALL} --save-steps 2 --save-total-limit 0")).ok();
    let whole = d.join("whole");
    let log = lines(&whole.join("trainer_log.jsonl"));
    assert_eq!(log.len(), 6);
    let loss = |i: usize| log[i]["loss"].as_f64().expect("a loss");
    // Each stage of the curriculum has data of its own, so that the last losses may be above earlier ones.
    let least = (1..6).map(loss).fold(f64::INFINITY, f64::min);
    assert!(loss(0) > 6.5 && least < loss(0), "{} to {least}", loss(0));
    assert!((log[5]["lr"].as_f64().expect("a rate") - 1e-3 * (0.1 + 0.9 * 0.146_446_6)).abs() < 1e-9, "{}", log[5]);
    let evaluation = lines(&whole.join("evaluation.jsonl"));
    let steps: Vec<u64> = evaluation.iter().filter_map(|l| l["step"].as_u64()).collect();
    assert_eq!(steps, [2, 4, 6]);
    for set in ["pairs", "tasks", "reviews", "events", "unseen", "natural"] {
        for shown in ["0", "1", "2", "4", "8", "16"] {
            let share = evaluation[2][set][shown].as_f64().unwrap_or_else(|| panic!("{set}, {shown}"));
            assert!((0.0..=1.0).contains(&share));
        }
    }

    // What a killed training leaves: the checkpoint, and logs that have gone on without it.
    let rest = d.join("rest");
    fs::create_dir_all(rest.join("checkpoint-2")).expect("a folder");
    for file in fs::read_dir(whole.join("checkpoint-2")).expect("the checkpoint") {
        let file = file.expect("a file").path();
        fs::copy(&file, rest.join("checkpoint-2").join(file.file_name().expect("a name"))).expect("copied");
    }
    let evaluated = fs::read_to_string(whole.join("evaluation.jsonl")).expect("the evaluation");
    let half: String = evaluated.split_inclusive('\n').take(2).collect();
    fs::write(rest.join("evaluation.jsonl"), half).expect("written");
    line(d, &format!("pretrain --out {{}}/rest {SMALL} --save-steps 2 --resume-from-checkpoint latest")).ok();
    for name in ["model.safetensors", "tokenizer.json", "config.json", "evaluation.jsonl"] {
        let read = |dir: &Path| fs::read(dir.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(read(&whole) == read(&rest), "{name} differs");
    }

    let other =
        line(d, &format!("pretrain --out {{}}/rest {SMALL} --seed 1 --resume-from-checkpoint latest")).refused();
    assert!(other.contains("seed"), "{other}");
    line(d, &format!("pretrain --out {{}}/whole {SMALL}")).refused();
    line(d, "generate --model {}/whole --prompt My --max-new-tokens 2").ok();
    let inspected = line(d, "inspect --model {}/whole --json").json();
    assert_eq!(inspected["model"]["layers"].as_u64().or(inspected["layers"].as_u64()), Some(2), "{inspected}");
}

#[test]
fn pretrain_refuses_bad_settings_before_writing() {
    let dir = support::temp();
    let d = dir.path();
    for (flags, part) in [
        ("--min-lr-rate 2", "--min-lr-rate"),
        ("--vocab-size 100", "--vocab-size"),
        ("--vocab-size 300 --eval-episodes 1", "--vocab-size: expected so many that each label is a token ("),
        ("--hidden-size 15", "--num-attention-heads: expected a divisor of hidden_size 15, found 4"),
        ("--hidden-size 12", "--num-attention-heads: expected an even head width"),
        ("--num-hidden-layers 0", "--num-hidden-layers: expected "),
        ("--max-steps 0", "--max-steps"),
    ] {
        let error = line(d, &format!("pretrain --out {{}}/out {flags} --device cpu")).refused();
        assert!(error.contains(part), "{flags}: {error}");
    }
    assert!(!d.join("out").exists());
}

#[test]
fn task_episodes_are_reproducible() {
    let dir = support::temp();
    let d = dir.path();
    let shown = line(d, "task synthetic --show 3").ok().out;
    assert_eq!(shown.trim_end().split("\n\n").count(), 3, "{shown}");
    assert!(shown.contains(" -> "), "{shown}");
    assert_eq!(line(d, "task synthetic --show 3").ok().out, shown);
    let json = line(d, "task synthetic --show 3 --json").json();
    let texts: Vec<_> = json["episodes"].as_array().expect("a list").iter().map(|text| text.as_str()).collect();
    assert!(texts.len() == 3 && texts.iter().all(|text| shown.contains(text.expect("a text"))), "{json}");
    assert_ne!(line(d, "task synthetic --show 3 --seed 1").ok().out, shown);
    let reviews = line(d, "task synthetic --show 1 --set reviews").ok().out;
    assert_eq!(reviews.trim_end().lines().count(), 9, "{reviews}");
    let error = line(d, "task synthetic --set nonsense").refused();
    assert!(error.contains("train, pairs, tasks, reviews, events, unseen, natural"), "{error}");
}

#[test]
fn pretrain_reproduces_the_recorded_curve() {
    let dir = support::temp();
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/formats/embedded");
    let recipe = assets.join("recipe.yaml");
    let flags = "--stop-after 20 --save-steps 0 --eval-episodes 1 --device cpu";
    line(dir.path(), &format!("pretrain --config {} --out {{}}/out {flags}", recipe.display())).ok();
    let recorded = lines(&assets.join("curve.jsonl"));
    let log = lines(&dir.path().join("out/trainer_log.jsonl"));
    assert_eq!(log.len(), 2);
    for (found, recorded) in log.iter().zip(&recorded) {
        assert_eq!(found["current_steps"], recorded["step"]);
        assert_eq!(found["total_tokens"], recorded["tokens"]);
        let [a, b] = [&found["loss"], &recorded["loss"]].map(|loss| loss.as_f64().expect("a loss"));
        assert!((a / b - 1.0).abs() < 1e-4, "step {}: {a}, recorded {b}", recorded["step"]);
    }
}

#[test]
fn embedded_model_needs_no_flags() {
    let dir = support::temp();
    let d = dir.path();
    line(d, "probe --out {}/run --seeds 2 --queries 20 --device cpu").ok();
    let report: Value =
        serde_json::from_str(&fs::read_to_string(d.join("run/report.json")).expect("a report")).expect("JSON");
    assert_eq!((&report["model"], &report["settings"]["task"]), (&"embedded".into(), &"events".into()));
    let config = fs::read_to_string(d.join("run/llamaprobe.yaml")).expect("the configuration");
    assert!(config.contains("learning_rate: 0.005") && config.contains("task: events"), "{config}");
    line(d, "train-lora --out {}/adapter --device cpu").ok();
    line(d, "generate --model embedded --adapter {}/adapter --prompt My --max-new-tokens 3 --device cpu").ok();
    line(d, "export-embedded {}/learner").ok();
    line(d, "inspect --model {}/learner --adapter {}/adapter --device cpu").ok();
    let shown = line(d, "task synthetic --evaluate --episodes 3 --model {}/learner --device cpu").ok().out;
    assert!(shown.contains("| pairs |") && shown.contains("| all labels wrong |"), "{shown}");
}
