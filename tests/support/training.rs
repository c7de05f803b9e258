//! A small model and data to train on.

use llamaprobe::arch::{ModelConfig, Projection};
use llamaprobe::backend::Backend;
use llamaprobe::formats::adapter::{LoraAdapter, LoraConfig, Modules, TableLora};
use llamaprobe::model::{Adaptation, Layout, LoraShape, Model};
use llamaprobe::train::data::TrainSequence;
use llamaprobe::train::settings::{Length, RunSettings};
use llamaprobe::train::trainable::Trainable;
use llamaprobe::train::trainer::{Run, Trainer, TrainerOptions};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::tiny_model::TinyModel;

/// A model of random weights.
pub fn model<B: Backend>(backend: &mut B) -> Model<B> {
    let dir = super::temp();
    TinyModel::default().write(dir.path());
    Model::load(backend, dir.path()).expect("the model loads")
}

/// Ragged sequences, most with one of two common beginnings.
pub fn data(seed: u64, count: usize) -> Vec<TrainSequence> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut ids = |n: usize| (0..n).map(|_| rng.random_range(3..272)).collect::<Vec<u32>>();
    let stems = [ids(6), ids(11)];
    (0..count)
        .map(|i| {
            let stem: &[u32] = if i % 3 == 2 { &[] } else { &stems[i % 3] };
            let all = [&[1], stem, &ids(2 + i % 5)].concat();
            let from = all.len() - 1 - i % 2;
            TrainSequence::marked(all, |i| i >= from)
        })
        .collect()
}

/// Settings under which everything takes part: schedule, warm-up, decay, clip, accumulation, epochs' ends.
pub fn settings(seed: u64) -> RunSettings {
    RunSettings {
        seed,
        length: Length::Epochs(3.0),
        batch_size: 2,
        accumulation: 2,
        learning_rate: 1e-2,
        warmup: llamaprobe::train::schedule::Warmup::Ratio(0.2),
        weight_decay: 0.05,
        max_grad_norm: Some(0.5),
        ..RunSettings::default()
    }
}

/// Adapters of q, v and down of rank 3, started from the runs' seeds.
pub fn adaptation<B: Backend>(backend: &mut B, model: &Model<B>, seeds: &[u64]) -> Adaptation<B> {
    adaptation_of(backend, model, seeds, None)
}

/// The same in some layers.
pub fn adaptation_of<B: Backend>(
    backend: &mut B,
    model: &Model<B>,
    seeds: &[u64],
    layers: Option<Vec<usize>>,
) -> Adaptation<B> {
    let targets = vec![Projection::Q, Projection::V, Projection::Down];
    let shape = LoraShape { rank: 3, alpha: 6.0, rslora: false, dora: false, layers, targets };
    let layout = Layout::lora(&model.config, &shape);
    let mut adaptation = Adaptation::new(backend, layout, seeds.len()).expect("adapters");
    for (run, &seed) in seeds.iter().enumerate() {
        adaptation.init_run(backend, run, seed).expect("a start");
    }
    adaptation
}

/// An adapter of zeros of the embedding table and of the head.
pub fn adapter_of_tables(model: &ModelConfig) -> LoraAdapter {
    let modules = Modules::List(["embed_tokens", "lm_head"].map(str::to_owned).to_vec());
    let config = LoraConfig::new(2, 4.0, modules);
    let slots = config.slots(model.family, model.num_hidden_layers).expect("modules of the model");
    let tables = slots.tables.into_iter().map(|slot| TableLora::zeros(slot, model)).collect();
    LoraAdapter { tables, ..LoraAdapter::new(config, model, Vec::new()) }
}

/// A trainer of adapters whose starts and orders have the runs' seeds.
pub fn trainer<B: Backend>(backend: &mut B, model: &Model<B>, runs: Vec<Run>, options: TrainerOptions) -> Trainer<B> {
    let seeds: Vec<u64> = runs.iter().map(|run| run.settings.seed).collect();
    let adaptation = adaptation(backend, model, &seeds);
    Trainer::new(backend, model, Trainable::Adapters(adaptation), runs, options).expect("a trainer")
}

/// The parameters of all runs.
pub fn params<B: Backend>(backend: &mut B, trainer: &Trainer<B>) -> Vec<f64> {
    use llamaprobe::backend::AccElement;
    let (runs, stride) = trainer.trainable().shape();
    let mut values = vec![B::Element::default(); runs * stride];
    backend.download(&mut values, trainer.trainable().params(), 0).expect("parameters");
    values.into_iter().map(AccElement::to_f64).collect()
}

/// The largest difference, as a share of the largest magnitude.
pub fn difference(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(1e-30f64, |m, x| m.max(x.abs()));
    found.iter().zip(expected).fold(0.0f64, |m, (a, b)| m.max((a - b).abs())) / largest
}
