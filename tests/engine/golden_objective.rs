//! Tuning towards a teacher against a plain script of torch and peft (`tests/golden/objectives.py`).

use std::collections::BTreeMap;

use llamaprobe::arch::{Dtype, ModelConfig};
use llamaprobe::backend::Backend;
use llamaprobe::backend::cpu::{Cpu, CpuSettings, Isa};
use llamaprobe::formats::adapter::Adapter;
use llamaprobe::hooks::{Selection, Site};
use llamaprobe::model::{Adaptation, Model};
use llamaprobe::train::data::{SequenceTeacher, TrainSequence};
use llamaprobe::train::objective::Objective;
use llamaprobe::train::schedule::Schedule;
use llamaprobe::train::settings::{Length, RunSettings};
use llamaprobe::train::trainable::Trainable;
use llamaprobe::train::trainer::{Run, Trainer, TrainerOptions};
use serde::Deserialize;

use crate::support::golden;
use crate::support::peft::{Errors, Example, beyond, within};

#[derive(Deserialize)]
struct Golden {
    steps: u64,
    batch_size: usize,
    temperature: f64,
    /// What stands before a sequence, in place of its first token.
    before: Vec<u32>,
    data: Vec<Example>,
    cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    adapter: String,
    weights: [f64; 3],
    /// Of each step, of ce, activations and logits.
    losses: Vec<[f64; 3]>,
    grad_norms: Vec<f64>,
}

fn read() -> Golden {
    let text = std::fs::read_to_string(golden("objectives.json")).expect("the golden file");
    serde_json::from_str(&text).expect("cases")
}

/// Largest errors allowed, at most three times what is measured over all instruction sets.
const LIMITS: [(&str, f64); 4] = [("ce", 4e-7), ("activations", 8e-7), ("logits", 2.6e-6), ("gradient norm", 3.2e-6)];

/// A mistake in the objective, and in the tokens before each sequence.
type Mistake = (fn(&mut Objective), usize);

const NONE: Mistake = (|_| (), 0);

/// Trains a case as the script did, up to a mistake.
fn measure<B: Backend>(backend: &mut B, name: &str, options: TrainerOptions, (wrong, dropped): Mistake) -> Errors {
    let Golden { steps, batch_size, temperature, before, data, cases } = read();
    let (case, before) = (&cases[name], &before[..before.len() - dropped]);
    let dir = golden("peft/tiny");
    let config = ModelConfig::load(&dir).expect("the configuration loads");
    let mut model = Model::load(backend, &dir).expect("the model loads");
    let start = Adapter::read(golden(&case.adapter), &config).expect("an adapter");
    let adaptation = Adaptation::of_adapter(backend, &model, &start).expect("a start");
    let sequence = |e: &Example| {
        let (ids, labels) = (e.input_ids.clone(), e.labels.clone());
        let mut sequence = TrainSequence { ids, labels, teacher: None };
        let rows = sequence.targets(0).map(|(row, _)| (row + before.len() - 1) as u32).collect();
        sequence.teacher = Some(SequenceTeacher::Context { ids: [before, &e.input_ids[1..]].concat(), rows });
        sequence
    };
    let settings = RunSettings {
        shuffle: false,
        length: Length::Steps(steps),
        batch_size,
        learning_rate: 1e-2,
        schedule: Schedule::Constant,
        max_grad_norm: None,
        ..RunSettings::default()
    };
    let run = Run { data: data.iter().map(sequence).collect(), settings };
    let [ce, activations, logits] = case.weights;
    let layers: Vec<usize> = (0..config.num_hidden_layers).collect();
    let sites: &[Site] = if activations > 0.0 { &[Site::AttnOut] } else { &[] };
    let selection = Selection::new(sites, &layers);
    let mut objective = Objective { ce, activations, logits, selection, temperature, table: None };
    wrong(&mut objective);
    let trainer = Trainer::new(backend, &model, Trainable::Adapters(adaptation), vec![run], options);
    let mut trainer = trainer.expect("a trainer").with_objective(backend, &model, objective).expect("an objective");
    let mut errors = vec![("ce", 0.0f64), ("activations", 0.0), ("logits", 0.0), ("gradient norm", 0.0)];
    for step in 0..steps as usize {
        let report = trainer.step(backend, &mut model).expect("a step").runs.remove(0);
        let parts = report.parts.expect("parts");
        let found = [parts.ce, parts.activations, parts.logits, Some(report.grad_norm)];
        let [a, b, c] = case.losses[step];
        for (((_, error), found), expected) in errors.iter_mut().zip(found).zip([a, b, c, case.grad_norms[step]]) {
            *error = found.map_or(*error, |found| error.max((found - expected).abs() / expected));
        }
    }
    errors
}

#[test]
fn objective_losses_and_gradients_are_those_of_torch_and_peft() {
    let names: Vec<String> = read().cases.into_keys().collect();
    for name in &names {
        for &isa in Isa::available() {
            let backend = &mut Cpu::<f32>::open(&CpuSettings { isa, ..CpuSettings::new(Dtype::F32) });
            let errors = measure(backend, name, TrainerOptions::default(), NONE);
            within(&format!("{name}, {isa:?}"), &errors, &LIMITS);
        }
        let small = TrainerOptions { row_budget: 40, gradient_checkpointing: true, ..TrainerOptions::default() };
        within(&format!("{name}, f64"), &measure(&mut Cpu::oracle(), name, small, NONE), &LIMITS);
    }
}

#[test]
fn objective_limits_see_small_mistakes() {
    let mistakes: [(&str, &str, Mistake, &[&str]); 4] = [
        ("a temperature of 1", "lora logits", (|o| o.temperature = 1.0, 0), &["logits", "gradient norm"]),
        (
            "the last layer alone",
            "lora activations",
            (
                |o| {
                    o.selection.hooks.remove(0);
                },
                0,
            ),
            &["activations"],
        ),
        ("a token less before each", "prefix mixed", (|_| (), 1), &["ce", "activations", "logits"]),
        ("another weight", "prompt mixed", (|o| o.activations = 0.98, 0), &["ce", "gradient norm"]),
    ];
    for (what, name, mistake, seen_by) in mistakes {
        let backend = &mut Cpu::<f32>::new(Dtype::F32);
        beyond(what, &measure(backend, name, TrainerOptions::default(), mistake), &LIMITS, seen_by);
    }
}
