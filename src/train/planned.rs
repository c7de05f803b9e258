//! A step of training that is planned and not computed: what a GPU would be given for it.

use super::data::TrainSequence;
use super::settings::{Length, RunSettings};
use super::trainable::Trainable;
use super::trainer::{Run, Trainer, TrainerOptions};
use crate::Result;
use crate::arch::ModelConfig;
use crate::backend::launches::Launches;
use crate::backend::trace::Trace;
use crate::model::param_id::ParamId;
use crate::model::{Adaptation, Layout, Model};

/// Sequences of so many rows together, each as long as the model has positions, but for the last; every row has a label, and
/// no two share a beginning.
pub fn sequences(config: &ModelConfig, rows: usize) -> Vec<TrainSequence> {
    let longest = config.max_position_embeddings.max(1);
    let of = |from: usize| {
        // The last token is a label alone.
        let ids = 0..=longest.min(rows - from);
        TrainSequence::all(ids.map(|i| ((i + from / longest) % config.vocab_size) as u32).collect())
    };
    (0..rows).step_by(longest).map(of).collect()
}

/// What a GPU would be given for one step of a run of this layout over these sequences, in one pass: the trainer itself takes the
/// step, on a device that computes nothing. `quantized` says how many bytes a weight has that is quantised.
///
/// # Errors
/// A model without a head, or sequences that it cannot be trained on.
pub fn step(
    config: &ModelConfig,
    quantized: impl Fn(ParamId) -> Option<usize>,
    layout: Layout,
    sequences: Vec<TrainSequence>,
) -> Result<Launches> {
    let device = &mut Trace::new();
    // Its note is for who trains.
    let mut model = Model::planned(device, &ModelConfig { dropout: 0.0, ..config.clone() }, quantized);
    let mut adaptation = Adaptation::new(device, layout, 1)?;
    adaptation.update_norms(device, &model);
    let options = TrainerOptions {
        row_budget: sequences.iter().map(|sequence| sequence.ids.len()).sum(),
        keep_states: false,
        // As on the device that it is a plan of.
        fill: Some(true),
        ..TrainerOptions::default()
    };
    let settings = RunSettings { length: Length::Steps(1), batch_size: sequences.len(), ..RunSettings::default() };
    let run = Run { data: sequences, settings };
    let mut trainer = Trainer::new(device, &model, Trainable::Adapters(adaptation), vec![run], options)?;
    device.clear();
    trainer.begin(device, &mut model)?;
    Ok(device.launches())
}
