//! `train-lora`: an adapter from a file of examples, written as PEFT has it.

use serde_json::{Map, json};

use super::Failure;
use super::args::TrainLoraArgs;
use super::device::{Job, dispatch};
use super::resolve::{self, Found};
use super::training::{self, Training};
use crate::Result;
use crate::backend::Backend;
use crate::formats::adapter::{AdapterConfig, LoraAdapter, LoraConfig};
use crate::model::{Adaptation, Layout, Model};
use crate::train::data::TrainSequence;
use crate::train::settings::RunSettings;
use crate::train::trainable::Trainable;
use crate::train::trainer::{Run, TrainerOptions};

pub fn run(args: &TrainLoraArgs) -> Result<(), Failure> {
    let training = &args.training;
    let found = resolve::model(&training.model, &training.common)?;
    let settings = training::settings(training, training.seed)?;
    let start = match &training.init_adapter {
        Some(path) => LoraAdapter::read(path, &found.config)?,
        None => {
            let family = found.config.family;
            let config =
                LoraConfig { use_rslora: args.use_rslora, ..resolve::lora(&args.lora, &training.model, family) };
            resolve::empty(config, &found.config)?
        }
    };
    let data = training::data(training, &found, |_| Ok(()))?;
    let dtype = found.dtype;
    dispatch(&training.common, dtype, Train { args, found, settings, start, data })
}

struct Train<'a> {
    args: &'a TrainLoraArgs,
    found: Found,
    settings: RunSettings,
    /// What the training begins with; an adapter of zeros stands for a fresh one.
    start: LoraAdapter,
    data: Vec<TrainSequence>,
}

impl Job for Train<'_> {
    fn run<B: Backend>(self, mut backend: B) -> Result<(), Failure> {
        let Self { args, found, settings, start, data } = self;
        let training = &args.training;
        let layout = Layout::of_adapter(&found.config, &start)?;
        let config = LoraConfig { lora_dropout: args.lora_dropout, ..start.config.clone() };
        let mut model = Model::new(&mut backend, &found.config, &found.checkpoint)?;
        let mut adaptation = Adaptation::new(&mut backend, layout, 1)?;
        match &training.init_adapter {
            None => adaptation.init_run(&mut backend, 0, training.seed)?,
            Some(_) => adaptation.set_run(&mut backend, &model.config, 0, &start)?,
        }
        let whole = Training {
            command: "train-lora",
            args,
            training,
            found: &found,
            options: TrainerOptions { dropout: args.lora_dropout, ..TrainerOptions::default() },
            configs: vec![AdapterConfig::Lora(config)],
            names: vec![Map::new()],
            identity: json!({ "model": training.model }),
        };
        whole.run(&mut backend, &mut model, Trainable::Adapters(adaptation), vec![Run { data, settings }])
    }
}
