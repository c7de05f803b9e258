//! LoRA tuning against files made by peft (`tests/golden/peft_train.py`).

mod support;

use std::path::{Path, PathBuf};

use llamaprobe::backend::cpu::Cpu;
use llamaprobe::backend::{Backend, WideElement};
use llamaprobe::formats::adapter::{LoraAdapter, LoraModule};
use llamaprobe::formats::config::ModelConfig;
use llamaprobe::formats::safetensors::Checkpoint;
use llamaprobe::hooks::NoTaps;
use llamaprobe::model::{Activations, Adaptation, Input, Keep, Model};
use llamaprobe::shape::{Label, Sequence, forest};
use llamaprobe::train::data::TrainSequence;
use llamaprobe::train::schedule::Warmup;
use llamaprobe::train::settings::{Length, RunSettings};
use llamaprobe::train::trainer::{Run, Trainer, TrainerOptions, Tuned};
use serde::Deserialize;
use support::training::difference;

/// `case.json`.
#[derive(Deserialize)]
struct Case {
    model: String,
    steps: u64,
    learning_rate: f64,
    schedule: String,
    warmup: u64,
    weight_decay: f64,
    max_grad_norm: Option<f64>,
    batch_size: usize,
    accumulation: usize,
    data: Vec<Example>,
    losses: Vec<f64>,
    grad_norms: Vec<f64>,
    learning_rates: Vec<f64>,
    logits: Vec<f64>,
}

#[derive(Deserialize)]
struct Example {
    input_ids: Vec<u32>,
    labels: Vec<i64>,
}

fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/peft")
}

fn read(name: &str) -> Case {
    let text = std::fs::read_to_string(golden().join(name).join("case.json")).expect("the case");
    serde_json::from_str(&text).expect("a case")
}

impl Case {
    fn model_dir(&self) -> Option<PathBuf> {
        match self.model.as_str() {
            "tiny" => Some(golden().join("tiny")),
            name => support::shared().map(|shared| shared.join("models").join(name)),
        }
    }

    fn run(&self) -> Run {
        let sequence = |e: &Example| TrainSequence { ids: e.input_ids.clone(), labels: e.labels.clone() };
        let settings = RunSettings {
            shuffle: false,
            length: Length::Steps(self.steps),
            batch_size: self.batch_size,
            accumulation: self.accumulation,
            learning_rate: self.learning_rate,
            schedule: self.schedule.parse().expect("a schedule"),
            warmup: Warmup::Steps(self.warmup),
            weight_decay: self.weight_decay,
            max_grad_norm: self.max_grad_norm,
            ..RunSettings::default()
        };
        Run { data: self.data.iter().map(sequence).collect(), settings }
    }
}

/// The logits after the last token of `ids`.
fn logits<B: Backend>(backend: &mut B, model: &Model<B>, adaptation: &Adaptation<B>, ids: &[u32]) -> Vec<f64> {
    let pack = forest(&[Sequence::ids(ids, Some(0), Label::Text)], 1).pack;
    let device = backend.pack(&pack).expect("a pack");
    let layout = Some(&adaptation.layout);
    let mut acts = Activations::new(backend, &model.spec, layout, pack.len(), Keep::Layer).expect("buffers");
    let input = Input::new(&pack, &device).adapted(adaptation);
    model.forward(backend, &mut acts, &input, None, &mut NoTaps).expect("a forward");
    model.logits(backend, &acts, &[ids.len() - 1]).expect("logits").into_iter().map(WideElement::to_f64).collect()
}

/// The largest difference of all A, and of all B, as shares of their largest magnitudes.
fn apart(found: &LoraAdapter, expected: &LoraAdapter) -> (f64, f64) {
    let all = |adapter: &LoraAdapter, part: fn(&LoraModule) -> &Vec<f32>| {
        adapter.modules.iter().flat_map(|m| part(m).iter().map(|&x| f64::from(x))).collect::<Vec<f64>>()
    };
    let of = |part| difference(&all(found, part), &all(expected, part));
    (of(|m| &m.a), of(|m| &m.b))
}

fn compare<B: Backend>(backend: &mut B, name: &str, rows: Option<usize>) {
    let case = read(name);
    let Some(dir) = case.model_dir() else { return };
    let config = ModelConfig::load(&dir).expect("the configuration loads");
    let mut model = Model::load(backend, &dir).expect("the model loads");
    let adapter = |part: &str| LoraAdapter::read(golden().join(name).join(part), &config).expect("an adapter");
    let (start, expected) = (adapter("init"), adapter("final"));
    let adaptation = Adaptation::of_adapters(backend, &model.spec, &[start]).expect("a start");
    let mut options = TrainerOptions::default();
    options.row_budget = rows.unwrap_or(options.row_budget);
    let tuned = Tuned::Adapters(adaptation);
    let mut trainer = Trainer::new(backend, &model, tuned, vec![case.run()], options).expect("a trainer");
    for step in 0..case.steps as usize {
        let report = trainer.step(backend, &mut model).expect("a step");
        let run = &report.runs[0];
        for (what, found, expected, limit) in [
            ("loss", run.loss, case.losses[step], 1e-5),
            ("gradient norm", run.grad_norm, case.grad_norms[step], 1e-4),
            ("learning rate", run.learning_rate, case.learning_rates[step], 1e-12),
        ] {
            let apart = (found - expected).abs() / expected.abs().max(1e-30);
            assert!(
                found == expected || apart <= limit,
                "{name}, step {step}: {what} {found} for {expected}: {apart:e}"
            );
        }
    }
    let Tuned::Adapters(trained) = trainer.finish() else { panic!("adapters were given") };
    let found = trained.adapter(backend, 0, &expected.config).expect("the adapter");
    let (a, b) = apart(&found, &expected);
    println!("{name} on {}: A {a:.1e}, B {b:.1e} of their largest", backend.name());
    assert!(a <= 1e-4 && b <= 1e-4, "{name}: A {a:e}, B {b:e}");

    // An adapter as peft wrote it, and ours through its own files, give peft's logits.
    let ids = &case.data[0].input_ids;
    let theirs = Adaptation::of_adapters(backend, &model.spec, std::slice::from_ref(&expected)).expect("an adapter");
    let apart = difference(&logits(backend, &model, &theirs, ids), &case.logits);
    assert!(apart <= 2e-5, "{name}: logits of peft's adapter {apart:e}");
    let written = support::temp();
    found.write(written.path()).expect("written");
    let ours = LoraAdapter::read(written.path(), &config).expect("read back");
    assert!(ours.modules == found.modules, "{name}: an adapter is what was written");
    let ours = Adaptation::of_adapters(backend, &model.spec, &[ours]).expect("an adapter");
    let our_logits = logits(backend, &model, &ours, ids);
    let apart = difference(&our_logits, &case.logits);
    assert!(apart <= 1e-4, "{name}: logits of our adapter {apart:e}");
    // For tests/golden/check_adapter.py.
    if let (Some(dir), None) = (std::env::var_os("LLAMAPROBE_KEEP"), rows) {
        let dir = PathBuf::from(dir).join(name);
        found.write(&dir).expect("kept");
        let text = serde_json::to_string(&our_logits).expect("JSON");
        std::fs::write(dir.join("logits.json"), text).expect("kept");
    }
    same_tensors(written.path(), &golden().join(name).join("final"));
}

/// What we write has exactly the tensors that peft writes: names, shapes, dtypes.
fn same_tensors(ours: &Path, theirs: &Path) {
    let header = |dir: &Path| {
        let file = Checkpoint::open(dir.join("adapter_model.safetensors")).expect("an adapter");
        let tensors: Vec<_> = file.iter().map(|t| (t.name.clone(), t.shape.clone(), t.dtype)).collect();
        (tensors, file.metadata().clone())
    };
    assert_eq!(header(ours), header(theirs));
}

#[test]
fn query_and_value() {
    compare(&mut Cpu::<f32>::new(), "query_value", None);
    compare(&mut Cpu::<f64>::new(), "query_value", None);
}

#[test]
fn all_projections_with_everything_on() {
    compare(&mut Cpu::<f32>::new(), "all_linear", None);
    compare(&mut Cpu::<f32>::new(), "all_linear", Some(16));
    compare(&mut Cpu::<f64>::new(), "all_linear", None);
}

#[test]
fn ranks_and_alphas_by_pattern() {
    compare(&mut Cpu::<f32>::new(), "patterns", None);
    compare(&mut Cpu::<f64>::new(), "patterns", None);
}

#[test]
fn a_real_model() {
    compare(&mut Cpu::<f32>::new(), "stories260K", None);
}
