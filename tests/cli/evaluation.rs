//! Evaluation by what runs write, several training files, noise.

use std::fs;
use std::path::Path;

use llamaprobe::formats::tokenizer::Tokenizer;
use llamaprobe::task::{Example, Metric};
use serde_json::Value;

use super::grid::ASKED;
use super::trained::{DATA, files, log};
use super::{line, put, workplace};

/// The text of some tokens of the model.
fn decoded(dir: &Path, ids: &[u32]) -> String {
    let tokenizer = Tokenizer::load(dir.join("model")).expect("the tokenizer");
    tokenizer.decode(ids, true).expect("a text")
}

#[test]
fn evaluation_by_generation_is_generate_and_the_metric() {
    let dir = workplace();
    let d = dir.path();
    put(d, "train.jsonl", DATA);
    put(d, "held.jsonl", ASKED);
    // What `generate` reads of the same examples, and what they should say.
    put(
        d,
        "prompts.jsonl",
        "{\"text\": \"the pen is\"}\n{\"text\": \"the pot is\"}\n{\"text\": \"there is\\n\"}\n{\"input_ids\": [1, 30]}\n",
    );
    let gold = [" thin", " in the pen", "a pot", ""].map(str::to_owned);
    let train = "train-lora --model {}/model --train {}/train.jsonl --batch-size 5 --max-steps 12 --r 4 --eval {}/held.jsonl \
                 --lr-scheduler-type constant --eval-steps 3 --predict-with-generate --metrics chrf,rouge_l --stop k \
                 --max-new-tokens 6 --report-to csv";
    let grid = line(
        d,
        &format!("{train} --out {{}}/grid --learning-rate 0.05,0.005 --metric-for-best-model eval_chrf --json"),
    );
    let grid = grid.json();
    for (i, run) in grid["runs"].as_array().expect("runs").iter().enumerate() {
        let command = "generate --model {}/model --input {}/prompts.jsonl --max-new-tokens 6 --stop k --json --adapter";
        let out = line(d, &format!("{command} {{}}/grid/run-00{i}")).json();
        let results = out["results"].as_array().expect("results");
        let ids = |at: usize| serde_json::from_value::<Vec<u32>>(results[at]["prompt_ids"].clone()).expect("ids");
        assert_eq!(ids(3), [1, 30]);
        // The last gold answer is said in ids, whatever text they are.
        let mut gold = gold.to_vec();
        gold[3] = decoded(d, &[31, 32]);
        for (metric, key) in [(Metric::ChrF, "eval_chrf"), (Metric::RougeL, "eval_rouge_l")] {
            let judged = |(result, gold): (&Value, &String)| {
                metric.judge(result["text"].as_str().expect("text"), &Example::new("", gold))
            };
            let expected = metric.corpus(&results.iter().zip(&gold).map(judged).collect::<Vec<_>>());
            assert_eq!(run[key].as_f64(), Some(expected), "run {i}, {key}");
        }
        assert!(run["eval_chrf"].as_f64().is_some_and(|x| x > 0.0), "nothing is compared: {run}");
    }
    let table = fs::read_to_string(d.join("grid/trainer_log.csv")).expect("the table");
    assert!(table.starts_with("run,current_steps,total_steps,loss,eval_loss,eval_accuracy,eval_chrf,eval_rouge_l,lr,"));
    // The best is the greatest, which is neither the last nor that of the lowest loss.
    let best = line(
        d,
        &format!(
            "{train} --out {{}}/best --learning-rate 0.05 --metric-for-best-model chrf --load-best-model-at-end --json"
        ),
    );
    let (best, lines) = (best.json(), log(&d.join("best")));
    let evaluations: Vec<&Value> = lines.iter().filter(|line| line.get("eval_chrf").is_some()).collect();
    assert_eq!(evaluations.len(), 4);
    let value = |line: &Value| line["eval_chrf"].as_f64().expect("a value");
    let greatest = evaluations.iter().map(|line| value(line)).fold(0.0, f64::max);
    let first = evaluations.iter().find(|line| value(line) == greatest).expect("evaluations");
    assert_eq!((&best["eval_chrf"], &best["eval_step"]), (&first["eval_chrf"], &first["current_steps"]));
    let least = format!(
        "{train} --out {{}}/least --learning-rate 0.05 --metric-for-best-model chrf --greater-is-better false \
                         --load-best-model-at-end --json"
    );
    let smallest = evaluations.iter().map(|line| value(line)).fold(f64::INFINITY, f64::min);
    assert!(smallest < greatest, "every evaluation is the same: nothing is compared");
    assert_eq!(line(d, &least).json()["eval_chrf"].as_f64(), Some(smallest));
}

#[test]
fn several_files_are_one_training() {
    let dir = workplace();
    let d = dir.path();
    let (first, second) = DATA.split_at(DATA.find("{\"text\"").expect("the third line"));
    for (name, text) in [("all.jsonl", DATA), ("a.jsonl", first), ("b.jsonl", second)] {
        put(d, name, text);
    }
    let train = |files: &str, out: &str| {
        line(d, &format!("train-lora --model {{}}/model --batch-size 2 --max-steps 4 --train {files} --out {{}}/{out}"))
            .ok()
            .err
    };
    train("{}/all.jsonl", "all");
    train("{}/a.jsonl,{}/b.jsonl", "two");
    assert_eq!(files(&d.join("all")), files(&d.join("two")), "one after another they are the whole");
    let mixed = "{}/a.jsonl,{}/b.jsonl --interleave-probs 0.3,0.7 --mix-strategy interleave_over";
    let said = train(&format!("{mixed} --max-length 12"), "mixed");
    assert!(said.contains("a.jsonl: ") && said.contains("b.jsonl: ") && said.contains("truncated"), "{said}");
    assert_ne!(files(&d.join("mixed")), files(&d.join("two")));
    // Each run of a grid has the mixture of its own seed.
    train(&format!("{mixed} --seeds 2 --seed 42"), "grid");
    for (run, seed) in [("run-000", 42), ("run-001", 43)] {
        train(&format!("{mixed} --seed {seed}"), run);
        assert_eq!(files(&d.join("grid").join(run)), files(&d.join(run)), "{run}");
    }
    // The configuration that is written says it all.
    line(d, "train-lora --config {}/grid/llamaprobe.yaml --out {}/again").ok();
    assert_eq!(files(&d.join("again/run-001")), files(&d.join("grid/run-001")));
}

#[test]
fn noise_is_the_seeds_and_of_the_training_alone() {
    let dir = workplace();
    let d = dir.path();
    put(d, "train.jsonl", DATA);
    let train = |flags: &str, out: &str| {
        let command = "train-lora --model {}/model --train {}/train.jsonl --max-steps 1 --batch-size 5 --eval {}/train.jsonl --json";
        line(d, &format!("{command} {flags} --out {{}}/{out}")).json()
    };
    let [plain, noisy, again] =
        [("", "plain"), ("--neftune-noise-alpha 50", "noisy"), ("--neftune-noise-alpha 50", "again")]
            .map(|(flags, out)| train(&format!("{flags} --lr 0"), out));
    assert_ne!(plain["loss"], noisy["loss"]);
    assert_eq!(noisy["loss"], again["loss"]);
    assert_eq!(plain["eval_loss"], noisy["eval_loss"], "an evaluation has no noise");
    let other = train("--neftune-noise-alpha 50 --lr 0 --seed 7 --init-adapter {}/noisy", "other");
    assert_ne!(other["loss"], noisy["loss"]);
    for (alpha, out) in [("1e-6", "faint"), ("50", "loud")] {
        train(&format!("--neftune-noise-alpha {alpha}"), out);
    }
    assert_ne!(files(&d.join("faint")), files(&d.join("loud")));
}
