//! Prompt tuning against files made by peft (`tests/golden/peft_prompt.py`).

use std::path::PathBuf;

use llamaprobe::arch::Dtype;
use llamaprobe::arch::ModelConfig;
use llamaprobe::backend::Backend;
use llamaprobe::backend::cpu::{Cpu, CpuSettings, Isa};
use llamaprobe::formats::adapter::{Adapter, PromptAdapter};
use llamaprobe::model::{Adaptation, Encoder, Model};
use llamaprobe::train::schedule::Warmup;
use llamaprobe::train::trainable::Trainable;
use llamaprobe::train::trainer::{Run, Trainer, TrainerOptions};

use crate::support::peft::{Case, Errors, beyond, logits, same_tensors, within};
use crate::support::training::difference;
use crate::support::{self, golden};

/// What is trained, from a prompt as read.
fn tuned<B: Backend>(backend: &mut B, model: &Model<B>, start: &Adapter) -> Trainable<B> {
    let adaptation = Adaptation::of_adapter(backend, model, start).expect("a start");
    match &prompt(start).encoder {
        Some(state) => {
            Trainable::Reparameterized(Encoder::new(backend, adaptation, std::slice::from_ref(state)).expect("an MLP"))
        }
        None => Trainable::Adapters(adaptation),
    }
}

fn apart(found: &PromptAdapter, expected: &PromptAdapter) -> f64 {
    let wide = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
    let rows = difference(&wide(&found.rows), &wide(&expected.rows));
    match (&found.encoder, &expected.encoder) {
        (Some(found), Some(expected)) => rows.max(difference(&wide(&found.params), &wide(&expected.params))),
        (None, None) => rows,
        _ => panic!("only one has an MLP"),
    }
}

fn prompt(adapter: &Adapter) -> &PromptAdapter {
    let Adapter::Prompt(prompt) = adapter else { panic!("a prompt") };
    prompt
}

/// Largest errors allowed, at most three times what is measured over all instruction sets.
const LIMITS: [(&str, f64); 6] = [
    ("loss", 7e-7),
    ("gradient norm", 5e-6),
    ("learning rate", 0.0),
    ("parameters", 4.5e-6),
    ("logits of peft's prompt", 2.5e-6),
    ("logits of our prompt", 5e-6),
];

/// A mistake in the settings or data, and in the prompt that peft has trained.
struct Mistake {
    run: fn(&mut Run),
    prompt: fn(&mut PromptAdapter),
}

const NONE: Mistake = Mistake { run: |_| (), prompt: |_| () };

/// Trains a case as peft did, up to a mistake.
fn measure<B: Backend>(backend: &mut B, name: &str, rows: Option<usize>, mistake: &Mistake) -> Errors {
    let dir = golden("peft_prompt").join(name);
    let case = Case::read(&dir);
    let model_dir = case.model_dir().expect("a golden model");
    let config = ModelConfig::load(&model_dir).expect("the configuration loads");
    let mut model = Model::load(backend, &model_dir).expect("the model loads");
    let adapter = |part: &str| Adapter::read(dir.join(part), &config).expect("a prompt");
    let (start, mut expected) = (adapter("init"), adapter("final"));
    let mut options = TrainerOptions::default();
    options.row_budget = rows.unwrap_or(options.row_budget);
    let mut run = case.run();
    (mistake.run)(&mut run);
    let tuned = tuned(backend, &model, &start);
    let mut trainer = Trainer::new(backend, &model, tuned, vec![run], options).expect("a trainer");
    let mut errors = case.train(backend, &mut model, &mut trainer);
    let found = trainer.adapter(backend, 0, &expected.config()).expect("the prompt");
    errors.push(("parameters", apart(prompt(&found), prompt(&expected))));

    // A prompt as peft wrote it, and ours through its own files, give peft's logits.
    let ids = &case.data[0].input_ids;
    if let Adapter::Prompt(prompt) = &mut expected {
        (mistake.prompt)(prompt);
    }
    let peft = Adaptation::of_adapter(backend, &model, &expected).expect("a prompt");
    let far = difference(&logits(backend, &model, &peft, ids), &case.logits);
    errors.push(("logits of peft's prompt", far));
    let written = support::temp();
    found.write(written.path()).expect("written");
    let read = Adapter::read(written.path(), &config).expect("read back");
    assert!(read == found, "{name}: a prompt is what was written");
    let ours = Adaptation::of_adapter(backend, &model, &read).expect("a prompt");
    let our_logits = logits(backend, &model, &ours, ids);
    errors.push(("logits of our prompt", difference(&our_logits, &case.logits)));
    // For tests/golden/check_adapter.py.
    if let (Some(dir), None) = (std::env::var_os("LLAMAPROBE_KEEP"), rows) {
        let dir = PathBuf::from(dir).join(name);
        found.write(&dir).expect("kept");
        std::fs::write(dir.join("logits.json"), serde_json::to_string(&our_logits).expect("JSON")).expect("kept");
    }
    same_tensors(written.path(), &dir.join("final"));
    errors
}

/// On every instruction set of f32, with batches cut into passes of few rows, and in f64.
fn check(name: &str) {
    for &isa in Isa::available() {
        let errors =
            measure(&mut Cpu::<f32>::open(&CpuSettings { isa, ..CpuSettings::new(Dtype::F32) }), name, None, &NONE);
        within(&format!("{name} on f32 {}", isa.name()), &errors, &LIMITS);
    }
    within(&format!("{name} in small passes"), &measure(&mut Cpu::new(Dtype::F32), name, Some(12), &NONE), &LIMITS);
    within(&format!("{name} on f64"), &measure(&mut Cpu::oracle(), name, None, &NONE), &LIMITS);
}

#[test]
fn prompt_of_embeddings_is_pefts() {
    ["embeddings", "one_row"].into_iter().for_each(check);
}

#[test]
fn prompt_that_an_mlp_makes_is_pefts() {
    check("mlp");
}

#[test]
fn prefix_of_keys_and_values_is_pefts() {
    ["prefix", "projection"].into_iter().for_each(check);
}

#[test]
fn prompt_limits_see_small_mistakes() {
    let rounded = Mistake {
        prompt: |prompt| prompt.rows.iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32()),
        ..NONE
    };
    let label = Mistake { run: |run| *run.data[2].labels.last_mut().expect("a label") = -100, ..NONE };
    let warmup = Mistake { run: |run| run.settings.warmup = Warmup::Steps(4), ..NONE };
    let epsilon = Mistake { run: |run| run.settings.epsilon = 1e-6, ..NONE };
    let all = ["loss", "gradient norm", "parameters", "logits of our prompt"];
    let mistakes: [(&str, &Mistake, &[&str]); 4] = [
        ("rows in bf16", &rounded, &["logits of peft's prompt"]),
        ("a label left out", &label, &all),
        ("a warm-up of four steps", &warmup, &["learning rate"]),
        ("an epsilon of 1e-6 in AdamW", &epsilon, &["parameters"]),
    ];
    for case in ["embeddings", "one_row", "mlp", "prefix", "projection"] {
        for (what, mistake, seen_by) in mistakes {
            let errors = measure(&mut Cpu::new(Dtype::F32), case, None, mistake);
            beyond(&format!("{case}, {what}"), &errors, &LIMITS, seen_by);
        }
    }
}
