//! Cases that peft has computed (`tests/golden/peft_train.py`, `peft_prompt.py`).

use std::path::{Path, PathBuf};

use llamaprobe::backend::{AccElement, Backend};
use llamaprobe::formats::safetensors::Checkpoint;
use llamaprobe::hooks::NoTaps;
use llamaprobe::model::{Activations, Adaptation, Input, Model, Save};
use llamaprobe::pack::{Sequence, forest};
use llamaprobe::train::data::TrainSequence;
use llamaprobe::train::schedule::Warmup;
use llamaprobe::train::settings::{Length, RunSettings};
use llamaprobe::train::trainer::{Run, Trainer};
use serde::Deserialize;

/// `case.json`.
#[derive(Deserialize)]
pub struct Case {
    pub model: String,
    pub steps: u64,
    learning_rate: f64,
    schedule: String,
    warmup: u64,
    weight_decay: f64,
    max_grad_norm: Option<f64>,
    batch_size: usize,
    accumulation: usize,
    pub data: Vec<Example>,
    pub losses: Vec<f64>,
    pub grad_norms: Vec<f64>,
    pub learning_rates: Vec<f64>,
    pub logits: Vec<f64>,
    /// LoRA+'s ratio of rates.
    #[serde(default)]
    ratio: Option<f64>,
    /// Euclidean distance of the final tensors from the same in f64.
    #[serde(default)]
    pub gap: f64,
}

/// A sequence of a case.
#[derive(Deserialize)]
pub struct Example {
    pub input_ids: Vec<u32>,
    pub labels: Vec<i64>,
}

/// What was measured, by name: the largest difference of all steps or elements, relative to what was expected.
pub type Errors = Vec<(&'static str, f64)>;

/// Prints errors, and demands that none is above its limit.
pub fn within(what: &str, errors: &Errors, limits: &[(&str, f64)]) {
    println!(
        "{what}: {}",
        errors.iter().map(|(name, error)| format!("{name} {error:.1e}")).collect::<Vec<_>>().join(", ")
    );
    for (name, error) in errors {
        let limit = limit_of(name, limits);
        assert!(*error <= limit, "{what}: {name} is off by {error:.1e}, limit {limit:.1e}");
    }
}

/// Demands that a mistake brings each of `seen_by`'s errors above its limit.
pub fn beyond(what: &str, errors: &Errors, limits: &[(&str, f64)], seen_by: &[&str]) {
    for name in seen_by {
        let error = limit_of(name, errors);
        let limit = limit_of(name, limits);
        println!("{what}: {name} {error:.1e}, limit {limit:.1e}");
        assert!(error > limit, "{what} goes unseen: {name} is off by {error:.1e}, limit {limit:.1e}");
    }
}

fn limit_of(name: &str, limits: &[(&str, f64)]) -> f64 {
    limits.iter().find(|(limited, _)| *limited == name).unwrap_or_else(|| panic!("{name} has no limit")).1
}

impl Case {
    /// The case of a folder.
    pub fn read(dir: &Path) -> Self {
        let text = std::fs::read_to_string(dir.join("case.json")).expect("the case");
        serde_json::from_str(&text).expect("a case")
    }

    /// Its model's directory, if it is there.
    pub fn model_dir(&self) -> Option<PathBuf> {
        match self.model.as_str() {
            "tiny" => Some(super::golden("peft/tiny")),
            "gpt2" => Some(super::golden("model-gpt2")),
            "qwen2" => Some(super::golden("model-qwen2")),
            name => super::shared().map(|shared| shared.join("models").join(name)),
        }
    }

    /// Its data and settings.
    pub fn run(&self) -> Run {
        let sequence =
            |e: &Example| TrainSequence { ids: e.input_ids.clone(), labels: e.labels.clone(), teacher: None };
        let settings = RunSettings {
            shuffle: false,
            length: Length::Steps(self.steps),
            batch_size: self.batch_size,
            accumulation: self.accumulation,
            learning_rate: self.learning_rate,
            loraplus_lr_ratio: self.ratio,
            schedule: self.schedule.parse().expect("a schedule"),
            warmup: Warmup::Steps(self.warmup),
            weight_decay: self.weight_decay,
            max_grad_norm: self.max_grad_norm,
            ..RunSettings::default()
        };
        Run { data: self.data.iter().map(sequence).collect(), settings }
    }

    /// Takes all its steps; how far they are from peft's.
    pub fn train<B: Backend>(&self, backend: &mut B, model: &mut Model<B>, trainer: &mut Trainer<B>) -> Errors {
        let mut errors = vec![("loss", 0.0f64), ("gradient norm", 0.0), ("learning rate", 0.0)];
        for step in 0..self.steps as usize {
            let report = trainer.step(backend, model).expect("a step");
            let run = &report.runs[0];
            let pairs = [
                (run.loss, self.losses[step]),
                (run.grad_norm, self.grad_norms[step]),
                (run.learning_rate, self.learning_rates[step]),
            ];
            for ((_, worst), (found, expected)) in errors.iter_mut().zip(pairs) {
                let apart = if found == expected { 0.0 } else { (found - expected).abs() / expected.abs().max(1e-30) };
                *worst = if apart.is_nan() { f64::INFINITY } else { worst.max(apart) };
            }
        }
        errors
    }
}

/// The logits after the last token of `ids`.
pub fn logits<B: Backend>(backend: &mut B, model: &Model<B>, adaptation: &Adaptation<B>, ids: &[u32]) -> Vec<f64> {
    let pack = forest(&[Sequence::prompted(adaptation.prompts[0], ids, Some(0))], 1).pack;
    let device = backend.pack(&pack).expect("a pack");
    let layout = Some(&adaptation.layout);
    let mut acts = Activations::new(backend, &model.config, layout, pack.len(), Save::Layer).expect("buffers");
    let input = Input::new(&pack, &device).adapted(adaptation);
    model.forward(backend, &mut acts, &input, None, &mut NoTaps).expect("a forward");
    model
        .logits_of(backend, &acts, &input, &[pack.len() - 1])
        .expect("logits")
        .into_iter()
        .map(AccElement::to_f64)
        .collect()
}

/// How far the tensors of an adapter's directory are from those of a file of the same tensors: Euclidean, over all.
pub fn distance(ours: &Path, exact: &Path) -> f64 {
    let file = Checkpoint::open(ours.join("adapter_model.safetensors")).expect("an adapter");
    let exact = Checkpoint::open(exact).expect("tensors");
    assert_eq!(file.names().count(), exact.names().count(), "tensors");
    let squares = exact.iter().map(|tensor| {
        let found = file.expect(&tensor.name, &tensor.shape).map(|found| found.to_f32().expect("floats"));
        let (found, expected) = (found.expect("a tensor"), tensor.to_f32().expect("floats"));
        found.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>()
    });
    squares.sum::<f64>().sqrt()
}

/// What we write has exactly the tensors that peft writes: names, shapes, dtypes.
pub fn same_tensors(ours: &Path, theirs: &Path) {
    let header = |dir: &Path| {
        let file = Checkpoint::open(dir.join("adapter_model.safetensors")).expect("an adapter");
        let tensors: Vec<_> = file.iter().map(|t| (t.name.clone(), t.shape.clone(), t.dtype)).collect();
        (tensors, file.metadata().clone())
    };
    assert_eq!(header(ours), header(theirs));
}
