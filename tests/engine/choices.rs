//! A probe of queries with answers of their own, against probes of one query and one answer.

use llamaprobe::arch::Dtype;
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::formats::tokenizer::Tokenizer;
use llamaprobe::model::Model;
use llamaprobe::probe::arm::Arm;
use llamaprobe::probe::plan::Plan;
use llamaprobe::probe::report::SeedReport;
use llamaprobe::probe::{Evaluation, ProbeSettings, run};
use llamaprobe::task::{Example, LengthNormalization, Task};

use crate::support::{self, tiny_model::TinyModel};

const ARMS: [Arm; 3] = [Arm::ZeroShot, Arm::Icl, Arm::Lora];

/// The seed's only report of a probe.
fn probe(dir: &std::path::Path, task: &Task, pool: &[Example], queries: &[Example]) -> SeedReport {
    let mut backend = Cpu::<f32>::new(Dtype::F32);
    let mut model = Model::load(&mut backend, dir).expect("loads");
    let tokenizer = Tokenizer::load(dir).expect("loads");
    let quiz: Task = "mmlu".parse().expect("built in");
    let settings = ProbeSettings {
        template: quiz.template().clone(),
        demonstrations: 3,
        queries: None,
        seeds: vec![5],
        epochs: 2.0,
        ..ProbeSettings::new(task.clone())
    };
    let plan = Plan::new(&tokenizer, task, pool, queries, &settings).expect("a plan");
    let outcome = run(&mut backend, &mut model, "tiny", &plan, &settings, &mut |_| ()).expect("runs");
    outcome.report.seeds.into_iter().next().expect("a seed")
}

#[test]
fn choices_are_compared_as_answers_alone_are_scored() {
    let dir = support::temp();
    TinyModel { tied: true, ..TinyModel::default() }.write(dir.path());
    // Choices of different numbers, some the beginning of others or the same.
    let sets: [&[&str]; 4] =
        [&["the", "the inn", "there"], &["winter", "winter"], &["a", "path", "then", "prince", "in"], &["père", "re"]];
    let example = |i: usize| {
        let choices: Vec<String> = sets[i % 4].iter().map(ToString::to_string).collect();
        let output = choices[i % choices.len()].clone();
        Example { choices: Some(choices), ..Example::new(format!("the inner path {i}"), output) }
    };
    let pool: Vec<Example> = (0..12).map(example).collect();
    let queries: Vec<Example> = (20..27).map(example).collect();
    let [quiz, open]: [Task; 2] = ["mmlu", "antonym"].map(|name| name.parse().expect("built in"));
    let found = probe(dir.path(), &quiz, &pool, &queries);
    let (mut hits, mut log_probs) = ([0usize; 3], [0.0; 3]);
    for query in &queries {
        let choices = query.choices.as_ref().expect("choices");
        let alone = |output: &String| {
            let one = [Example::new(&query.input, output)];
            let seed = probe(dir.path(), &open, &pool, &one);
            ARMS.map(|arm| seed.arm(arm).expect("an arm").log_prob)
        };
        let scores: Vec<[f64; 3]> = choices.iter().map(alone).collect();
        let gold = choices.iter().position(|choice| *choice == query.output).expect("a choice");
        for a in 0..3 {
            // The first of the best, but for the last bits of equal choices.
            let best = scores.iter().map(|s| s[a]).fold(f64::NEG_INFINITY, f64::max);
            let first = scores.iter().position(|s| s[a] > best - 1e-6).expect("a best");
            hits[a] += usize::from(first == gold);
            log_probs[a] += scores[gold][a] / queries.len() as f64;
        }
    }
    for (a, arm) in ARMS.into_iter().enumerate() {
        let report = found.arm(arm).expect("an arm");
        assert_eq!(report.accuracy, Some(hits[a] as f64 / queries.len() as f64), "{arm:?}");
        assert!((report.log_prob - log_probs[a]).abs() < 1e-5, "{arm:?}: {} and {}", report.log_prob, log_probs[a]);
    }
    assert!(hits.iter().any(|&h| h > 0 && h < queries.len()), "{hits:?}");

    let mut backend = Cpu::<f32>::new(Dtype::F32);
    let model = Model::load(&mut backend, dir.path()).expect("loads");
    let tokenizer = Tokenizer::load(dir.path()).expect("loads");
    let evaluation = Evaluation {
        tokenizer: &tokenizer,
        task: &quiz,
        template: quiz.template(),
        pool: &pool,
        queries: &queries,
        length_normalization: LengthNormalization::None,
        max_new_tokens: 4,
        rows: 64,
    };
    for (shots, arm) in [(0, Arm::ZeroShot), (3, Arm::Icl)] {
        let score = evaluation.score(&mut backend, &model, shots, 5).expect("scores");
        assert_eq!(Some(score), found.arm(arm).expect("an arm").accuracy, "{shots} demonstrations");
    }
}
