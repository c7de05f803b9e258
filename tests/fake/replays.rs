//! Command lists that come again: in a training on shuffled data of many lengths, what is on the device must be found where it
//! was, in as many blocks.

use llamaprobe::arch::{Dtype, ModelConfig};
use llamaprobe::backend::cuda::{Cuda, DeviceTables, Settings};
use llamaprobe::backend::ops::{Cast, RowOps};
use llamaprobe::backend::{Buffers, Transfer};
use llamaprobe::model::FullTuning;
use llamaprobe::pack::{Label, PackBuilder, Parent, Token};
use llamaprobe::train::data::TrainSequence;
use llamaprobe::train::settings::{Length, RunSettings};
use llamaprobe::train::trainer::{Run, TrainerOptions};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{child, cuda, support};
use crate::counts::{Column, Table, high, low};

static COLUMNS: [Column; 3] = [high("replayed steps of a hundred"), low("lists of a step"), low("lists remembered")];
const STEPS: usize = 200;
const CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 1, "vocab_size": 40}"#;

/// Prompts of the lengths of SST-2's sentences (most of 8 to 30 tokens, some of 60) with an answer of one or two tokens.
fn data() -> Vec<TrainSequence> {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let sequence = |_| {
        let sum: f64 = (0..4).map(|_| rng.random_range(0.0..1.0f64)).sum::<f64>() / 4.0;
        let length = (8.0 * (60.0f64 / 8.0).powf(sum)).round() as usize;
        let answer = length - rng.random_range(1..=2);
        TrainSequence::marked((0..length).map(|_| rng.random_range(3..40)).collect(), |i| i >= answer)
    };
    (0..400).map(sequence).collect()
}

/// What a training leaves: losses and parameters, and in how many steps all lists came again.
#[derive(Default)]
struct Outcome {
    losses: Vec<u64>,
    params: Vec<f64>,
    replayed: usize,
    lists: u64,
    remembered: usize,
}

/// Some steps; `before` each of them something else is asked of the device.
fn training(steps: usize, blocking: bool, fill: Option<bool>, mut before: impl FnMut(&mut Cuda)) -> Outcome {
    let gpu = &mut Cuda::open(0, Dtype::F32, &Settings { blocking, ..cuda::settings() }).expect("a device");
    let config = ModelConfig::parse("config.json", CONFIG).expect("a config");
    let (mut model, _) = FullTuning::random(gpu, config, 0.2, 0).expect("a model");
    let settings = RunSettings { length: Length::Steps(STEPS as u64), batch_size: 8, ..support::training::settings(1) };
    let runs = vec![Run { data: data(), settings: RunSettings { accumulation: 1, ..settings } }];
    let options = TrainerOptions { fill, ..TrainerOptions::default() };
    let mut trainer = support::training::trainer(gpu, &model, runs, options);
    let mut outcome = Outcome::default();
    for _ in 0..steps {
        before(gpu);
        let from = gpu.replays();
        let report = trainer.step(gpu, &mut model).expect("a step");
        let to = gpu.replays();
        outcome.losses.push(report.runs[0].loss.to_bits());
        let lists = to.lists - from.lists;
        outcome.replayed += usize::from(lists > 0 && lists == to.replayed - from.replayed);
        outcome.lists += lists;
    }
    outcome.params = support::training::params(gpu, &trainer);
    outcome.remembered = gpu.replays().remembered;
    outcome
}

#[test]
#[ignore = "started on the fake driver"]
fn shuffled_steps() {
    let found = training(STEPS, false, None, |_| ());
    let mut table = Table::new(&COLUMNS);
    let share = found.replayed as f64 / STEPS as f64;
    let counts = [100.0 * share, found.lists as f64 / STEPS as f64, found.remembered as f64];
    println!("{} of {STEPS} steps, {counts:?}", found.replayed);
    table.add(format!("{STEPS} steps of 8 shuffled sequences"), &counts);
    // Of all steps, those in which a size is seen for the first time among them.
    assert!(share >= 0.9, "{} of {STEPS} steps came again", found.replayed);
    let same = |what: &str, other: &Outcome, steps: usize| {
        assert_eq!(found.losses[..steps], other.losses[..], "losses {what}");
        assert!(steps < STEPS || found.params == other.params, "parameters {what}");
    };
    same("without graphs", &training(STEPS, true, None, |_| ()), STEPS);
    const SOME: usize = 30;
    let bare = training(SOME, false, Some(false), |_| ());
    assert!(bare.replayed < SOME / 2, "{} of {SOME} steps came again of passes that are not filled", bare.replayed);
    same("of passes that are not filled", &bare, SOME);
    // Tables at another address in every step: one that holds the memory of those before.
    let mut held: Vec<DeviceTables> = Vec::new();
    let moved = training(SOME, false, None, |gpu| {
        held.extend((64..=512).step_by(64).map(|rows| {
            let mut builder = PackBuilder::default();
            for _ in 0..rows / 16 {
                builder.push(&[Token::Id(3); 16], Parent::None, Some(0), Label::Text);
            }
            gpu.pack(&builder.build()).expect("a pack")
        }));
    });
    assert!(moved.replayed < SOME / 2, "{} of {SOME} steps came again whose tables move", moved.replayed);
    same("of tables that move", &moved, SOME);
    table.hold("replays", "--test cuda_fake shuffled");
}

#[test]
fn shuffled_ragged_steps_come_again() {
    child("replays::shuffled_steps");
}

#[test]
#[ignore = "started on the fake driver"]
fn many_lists() {
    let gpu = &mut Cuda::open(0, Dtype::F32, &cuda::settings()).expect("a device");
    let (mut out, x) = (gpu.compute(400).expect("a buffer"), gpu.acc(400).expect("a buffer"));
    for len in 1..=200 {
        (0..4).for_each(|_| gpu.cast(Cast { out: &mut out, x: &x, len }));
        gpu.sync().expect("the device works");
    }
    let replays = gpu.replays();
    assert!(replays.lists == 200 && replays.replayed == 0 && replays.remembered == 64, "{replays:?}");
}

#[test]
fn lists_that_are_remembered_are_bounded() {
    child("replays::many_lists");
}
