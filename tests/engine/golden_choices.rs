//! Answers chosen by log-probabilities and their lengths, against lm-evaluation-harness's rules in a plain script with transformers
//! (`tests/golden/choices.py`).

use std::collections::BTreeMap;
use std::path::Path;

use llamaprobe::arch::Dtype;
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::formats::tokenizer::Tokenizer;
use llamaprobe::model::Model;
use llamaprobe::probe::arm::Arm;
use llamaprobe::probe::plan::Plan;
use llamaprobe::probe::report::Report;
use llamaprobe::probe::{Evaluation, ProbeSettings, run};
use llamaprobe::task::{Example, LengthNormalization, Task, Template};
use serde::Deserialize;

use crate::support::golden;

#[derive(Deserialize)]
struct Golden {
    query: String,
    answer: String,
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    question: String,
    choices: Vec<String>,
    log_probs: Vec<f64>,
    tokens: Vec<usize>,
    chosen: BTreeMap<String, usize>,
}

impl Golden {
    fn read() -> Self {
        let text = std::fs::read_to_string(golden("choices/case.json")).expect("the golden file");
        serde_json::from_str(&text).expect("rows")
    }

    fn template(&self) -> Template {
        Template::new(&self.query, &self.answer).expect("a template")
    }

    /// The queries, of which the gold answers are those that are chosen by a rule.
    fn queries(&self, gold: &str) -> Vec<Example> {
        let query = |row: &Row| {
            let output = &row.choices[row.chosen[gold]];
            Example { choices: Some(row.choices.clone()), ..Example::new(&row.question, output) }
        };
        self.rows.iter().map(query).collect()
    }

    /// The share of queries that two rules answer alike.
    fn alike(&self, a: &str, b: &str) -> f64 {
        let same = self.rows.iter().filter(|row| row.chosen[a] == row.chosen[b]).count();
        same as f64 / self.rows.len() as f64
    }
}

const RULES: [(&str, LengthNormalization); 4] = [
    ("none", LengthNormalization::None),
    ("characters", LengthNormalization::Characters),
    ("bytes", LengthNormalization::Bytes),
    ("tokens", LengthNormalization::Tokens),
];

/// The model with its tokenizer, and the task `mmlu`, whose rows have choices.
fn opened(golden_dir: &Path) -> (Cpu<f32>, Model<Cpu<f32>>, Tokenizer, Task) {
    let mut backend = Cpu::<f32>::new(Dtype::F32);
    let model = Model::load(&mut backend, golden_dir).expect("the model loads");
    let tokenizer = Tokenizer::load(golden("tokenizers/qwen2")).expect("the tokenizer loads");
    (backend, model, tokenizer, "mmlu".parse().expect("built in"))
}

#[test]
fn choices_by_every_length_are_those_of_the_harness_rules() {
    let golden_rows = Golden::read();
    let (mut backend, model, tokenizer, task) = opened(&golden("choices"));
    for (gold, _) in RULES {
        let queries = golden_rows.queries(gold);
        for (name, length_normalization) in RULES {
            let evaluation = Evaluation {
                tokenizer: &tokenizer,
                task: &task,
                template: &golden_rows.template(),
                pool: &queries,
                queries: &queries,
                length_normalization,
                max_new_tokens: 1,
                rows: 512,
            };
            let score = evaluation.score(&mut backend, &model, 0, 0).expect("scores");
            assert_eq!(score, golden_rows.alike(gold, name), "gold by {gold}, chosen by {name}");
        }
    }
}

/// A probe without training, with a single demonstration.
fn probe(golden_rows: &Golden, length_normalization: LengthNormalization) -> Report {
    let (mut backend, mut model, tokenizer, task) = opened(&golden("choices"));
    let queries = golden_rows.queries("bytes");
    let pool = [Example { choices: queries[0].choices.clone(), ..Example::new("who", &queries[0].output) }];
    let settings = ProbeSettings {
        template: golden_rows.template(),
        demonstrations: 1,
        queries: None,
        seeds: vec![0],
        epochs: 0.0,
        patch: true,
        length_normalization,
        measures: llamaprobe::probe::Measures::parse(&["outputs".to_owned()]).expect("measures"),
        ..ProbeSettings::new(task.clone())
    };
    let plan = Plan::new(&tokenizer, &task, &pool, &queries, &settings).expect("a plan");
    run(&mut backend, &mut model, "tiny", &plan, &settings, &mut |_| ()).expect("runs").report
}

#[test]
fn probe_chooses_by_length_and_reports_sums() {
    let golden_rows = Golden::read();
    let mut log_probs_of_gold = Vec::new();
    for (name, rule) in RULES {
        let report = probe(&golden_rows, rule);
        let seed = &report.seeds[0];
        let anchor = seed.arm(Arm::ZeroShot).expect("an arm");
        assert_eq!(anchor.accuracy, Some(golden_rows.alike("bytes", name)), "{name}");
        log_probs_of_gold.push(anchor.log_prob);
        // An untrained LoRA answers as the anchor does; so does the anchor into which its own state is put.
        let patched = &seed.patching[0].vectors;
        let of_it = patched.iter().find(|vector| vector.vector == "it").expect("IT's state");
        assert_eq!(of_it.accuracy.mean, anchor.accuracy, "{name}");
        let outputs = seed.outputs.as_ref().expect("answers");
        let pair = outputs.pairs.iter().find(|pair| pair.arms == [Arm::ZeroShot, Arm::Lora]).expect("a pair");
        assert_eq!(pair.values["agreement"].mean, Some(1.0));
        for example in &report.examples {
            let (row, answer) = (&golden_rows.rows[example.query], &example.answers[0]);
            assert_eq!(example.gold, row.choices[row.chosen["bytes"]]);
            assert_eq!(answer.predicted, row.choices[row.chosen[name]], "{name}");
            let far = answer.log_probs.iter().zip(&row.log_probs).map(|(x, y)| (x / y - 1.0).abs());
            let far = far.fold(0.0, f64::max);
            assert!(far < LIMIT, "{name}: {far:.1e}");
            println!("{name}: {far:.1e}");
        }
        for (query, row) in report.plan.queries.iter().zip(&golden_rows.rows) {
            assert_eq!(query.choices, row.choices);
            assert!(query.answers.iter().map(|answer| answer.scored).eq(row.tokens.iter().copied()));
        }
    }
    assert!(log_probs_of_gold.iter().all(|x| *x == log_probs_of_gold[0]), "sums, whatever the lengths");
}

/// Largest relative error of a log-probability.
const LIMIT: f64 = 6e-7;
