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
}

/// A sequence of a case.
#[derive(Deserialize)]
pub struct Example {
    pub input_ids: Vec<u32>,
    pub labels: Vec<i64>,
}

/// A folder of the golden files.
pub fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
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
            "tiny" => Some(golden("peft/tiny")),
            name => super::shared().map(|shared| shared.join("models").join(name)),
        }
    }

    /// Its data and settings.
    pub fn run(&self) -> Run {
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

    /// Takes all its steps, each of which must be peft's.
    pub fn train<B: Backend>(&self, name: &str, backend: &mut B, model: &mut Model<B>, trainer: &mut Trainer<B>) {
        for step in 0..self.steps as usize {
            let report = trainer.step(backend, model).expect("a step");
            let run = &report.runs[0];
            for (what, found, expected, limit) in [
                ("loss", run.loss, self.losses[step], 1e-5),
                ("gradient norm", run.grad_norm, self.grad_norms[step], 1e-4),
                ("learning rate", run.learning_rate, self.learning_rates[step], 1e-12),
            ] {
                let apart = (found - expected).abs() / expected.abs().max(1e-30);
                assert!(
                    found == expected || apart <= limit,
                    "{name}, step {step}: {what} {found} for {expected}: {apart:e}"
                );
            }
        }
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
    model.logits(backend, &acts, &[pack.len() - 1]).expect("logits").into_iter().map(AccElement::to_f64).collect()
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
