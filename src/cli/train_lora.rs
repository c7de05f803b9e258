//! `train-lora`: trains a LoRA adapter on a file of examples, and writes it in PEFT's format.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use super::Failure;
use super::args::{LoraInit, TrainLoraArgs};
use super::device::{Job, dispatch};
use super::resolve::{self, ModelFiles};
use super::training::{self, Training};
use crate::Result;
use crate::backend::Backend;
use crate::formats::adapter::{AdapterConfig, InitLoraWeights, LoraAdapter, LoraConfig};
use crate::model::{Adaptation, Layout, Model, Source, lora_start};
use crate::train::data::TrainSequence;
use crate::train::settings::RunSettings;
use crate::train::trainable::Trainable;
use crate::train::trainer::{Run, TrainerOptions};

pub fn run(args: &TrainLoraArgs) -> Result<(), Failure> {
    let training = &args.training;
    let files = resolve::base_model(&training.base.model, &training.common)?;
    let settings = training::settings(training, training.seed)?;
    let settings = RunSettings { loraplus_lr_ratio: args.loraplus_lr_ratio, ..settings };
    let family = files.config.family;
    let asked = LoraConfig {
        use_rslora: args.use_rslora,
        rank_pattern: resolve::pattern("--rank-pattern", &args.rank_pattern, |v| v.as_u64()?.try_into().ok())?,
        alpha_pattern: resolve::pattern("--alpha-pattern", &args.alpha_pattern, Value::as_f64)?,
        init_lora_weights: match args.init_lora_weights {
            LoraInit::True => InitLoraWeights::True,
            LoraInit::False => InitLoraWeights::False,
            LoraInit::Gaussian => InitLoraWeights::Gaussian,
            LoraInit::Orthogonal => InitLoraWeights::Orthogonal,
            LoraInit::Pissa => InitLoraWeights::Pissa,
        },
        ..resolve::lora(&args.lora, &training.base.model, family)
    };
    let init = match &training.init_adapter {
        None => resolve::zero_adapter(asked, &files.config)?,
        Some(path) => {
            let init = LoraAdapter::read(resolve::trained_adapter("init_adapter", path)?, &files.config)?;
            let slots = |config: &LoraConfig| config.slots(family, files.config.num_hidden_layers).ok();
            if slots(&asked) != slots(&init.config) {
                let LoraConfig { r, lora_alpha, .. } = init.config;
                log::warn!(
                    "--init-adapter: goes on as it is (r {r}, lora_alpha {lora_alpha}), whatever --r, --lora-alpha, \
                     --target-modules and --use-rslora say"
                );
            }
            init
        }
    };
    let data = training::data(training, &files, |_| Ok(()))?;
    let dtype = files.dtype;
    dispatch(&training.common, dtype, Train { args, files, settings, init, data })
}

struct Train<'a> {
    args: &'a TrainLoraArgs,
    files: ModelFiles,
    settings: RunSettings,
    /// What the training begins with; an adapter of zeros stands for a new one, whose start may depend on the weights.
    init: LoraAdapter,
    data: Vec<TrainSequence>,
}

impl Job for Train<'_> {
    fn run<B: Backend>(self, mut backend: B) -> Result<(), Failure> {
        let Self { args, files, settings, mut init, data } = self;
        let training = &args.training;
        let layout = Layout::of_adapter(&files.config, &init)?;
        let config =
            LoraConfig { lora_dropout: args.lora_dropout.unwrap_or(init.config.lora_dropout), ..init.config.clone() };
        let mut checkpoint = Cow::Borrowed(&files.checkpoint);
        let mut start = Vec::new();
        let mut identity = json!({ "model": training.base.model });
        if training.init_adapter.is_none() {
            let source = Source::new(&files.config, &files.checkpoint)?;
            lora_start::start(&mut init, &source, training.seed)?;
            if config.init_lora_weights == InitLoraWeights::Pissa {
                checkpoint = Cow::Owned(lora_start::without(&init, &source)?);
                start = init.modules.clone();
            }
            if config.init_lora_weights != InitLoraWeights::True {
                identity["init_lora_weights"] = json!(args.init_lora_weights);
            }
        }
        let mut model = Model::new(&mut backend, &files.config, &checkpoint)?;
        let mut adaptation = Adaptation::new(&mut backend, layout, 1)?.started_at(start);
        adaptation.set_run(&mut backend, &model.config, 0, &init)?;
        let whole = Training {
            command: "train-lora",
            args,
            training,
            files: &files,
            options: TrainerOptions { dropout: config.lora_dropout, ..TrainerOptions::default() },
            configs: vec![AdapterConfig::Lora(config)],
            names: vec![Map::new()],
            identity,
        };
        whole.run(&mut backend, &mut model, Trainable::Adapters(adaptation), vec![Run { data, settings }])
    }
}
