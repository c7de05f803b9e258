//! Models of noise, and trainers of them.

use llamaprobe::arch::Projection;
use llamaprobe::backend::Backend;
use llamaprobe::model::{Adaptation, Layout, LoraShape, Model};
use llamaprobe::train::data::TrainSequence;
use llamaprobe::train::settings::{Length, RunSettings};
use llamaprobe::train::trainable::Trainable;
use llamaprobe::train::trainer::{Run, Trainer, TrainerOptions};

use super::checkpoint::{self, Weights};
use super::{MIDDLE, Shape, Subject, shapes, subject};

/// A model of a shape, its weights in a directory.
pub struct Checkpoint {
    pub name: &'static str,
    dir: tempfile::TempDir,
}

impl Checkpoint {
    /// With `layers` layers, but at most two where next to no work is asked for. A head of 32,000 tokens would hide one
    /// layer.
    pub fn new<B: Backend>(b: &B, name: &'static str, of: &str, layers: usize) -> Self {
        let mut all = shapes().iter().chain([&MIDDLE]);
        let found = all.find(|shape| shape.name == of || subject() == Subject::Tiny).expect("a shape");
        let shape = Shape { vocab: if layers == 1 { 300 } else { found.vocab }, ..*found };
        let layers = if subject() == Subject::Tiny { layers.min(2) } else { layers };
        Self::write(name, shape, layers, Weights::Noise { bytes: b.element_sizes().1 })
    }

    /// One of a shape.
    pub fn write(name: &'static str, shape: Shape, layers: usize, weights: Weights) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        checkpoint::write(dir.path(), shape, layers, weights);
        Self { name, dir }
    }

    pub fn load<B: Backend>(&self, b: &mut B) -> Model<B> {
        Model::load(b, self.dir.path()).expect("a checkpoint")
    }
}

fn ids(tokens: usize, seed: usize) -> Vec<u32> {
    (0..tokens).map(|i| ((i * 37 + seed * 11) % 300) as u32).collect()
}

/// Trainers of rank 8 on queries and values, each of so many runs of one sequence with all tokens labelled, whose passes are filled
/// up or not; none is as on the device.
pub fn trainers<B: Backend>(
    b: &mut B,
    model: &Model<B>,
    [count, runs, tokens]: [usize; 3],
    fill: Option<bool>,
) -> Vec<Trainer<B>> {
    let shape = LoraShape {
        rank: 8,
        alpha: 16.0,
        rslora: false,
        dora: false,
        layers: None,
        targets: vec![Projection::Q, Projection::V],
    };
    let settings = RunSettings { length: Length::Steps(u64::MAX), batch_size: 1, ..RunSettings::default() };
    let trainer = |i| {
        let adaptation = Adaptation::new(b, Layout::lora(&model.config, &shape), runs).expect("memory for a bench");
        let run = |run| Run { data: vec![TrainSequence::all(ids(tokens, i + run))], settings: settings.clone() };
        let runs = (0..runs).map(run).collect();
        let options = TrainerOptions { fill, ..TrainerOptions::default() };
        Trainer::new(b, model, Trainable::Adapters(adaptation), runs, options).expect("a trainer")
    };
    (0..count).map(trainer).collect()
}
