//! `train-lora`: an adapter from a file of examples, written as PEFT has it.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::args::TrainLoraArgs;
use super::device::{Job, dispatch};
use super::plan::Plan;
use super::resolve::{self, Found};
use super::{Failure, output};
use crate::backend::Backend;
use crate::formats::adapter::{LoraAdapter, LoraConfig};
use crate::formats::jsonl::{self, Example};
use crate::formats::tokenizer::Tokenizer;
use crate::model::{Adaptation, Layout, Model};
use crate::train::checkpoint;
use crate::train::data::TrainSequence;
use crate::train::examples::{self, DataOptions};
use crate::train::fit::{self, Output};
use crate::train::settings::RunSettings;
use crate::train::trainer::{Run, Trainer, TrainerOptions, Tuned};
use crate::{Error, Result};

pub fn run(args: &TrainLoraArgs) -> Result<(), Failure> {
    let found = resolve::model(&args.model, &args.common)?;
    let settings = resolve::settings(&args.optim, args.seed, !args.no_shuffle)?;
    let start = match &args.init_adapter {
        Some(path) => LoraAdapter::read(path, &found.config)?,
        None => {
            let config = LoraConfig { use_rslora: args.use_rslora, ..resolve::lora(&args.lora, &args.model) };
            resolve::empty(config, &found.config)?
        }
    };
    let options = DataOptions { max_length: args.max_length, add_eos: args.add_eos };
    let lines = jsonl::examples(&args.train)?;
    // Ids need no tokenizer, and a model may have none.
    let texts = lines.iter().any(|example| !matches!(example, Example::Ids { .. }));
    let tokenizer = texts.then(|| Tokenizer::load(&found.path)).transpose()?;
    let prepared = examples::prepare(&args.train, &lines, tokenizer.as_ref(), found.spec.vocab, options)?;
    if prepared.truncated > 0 {
        let (cut, lost) = (prepared.truncated, prepared.dropped);
        output::note(format_args!("{cut} examples cut to --max-length, {lost} of them left out for lack of a label"));
    }
    let dtype = found.dtype;
    dispatch(&args.common, dtype, Train { args, found, settings, start, data: prepared.sequences })
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
        let layout = Layout::of_adapter(&found.spec, &start)?;
        let config = LoraConfig { lora_dropout: args.lora_dropout, ..start.config.clone() };
        let mut model = Model::new(&mut backend, &found.config, &found.checkpoint)?;
        let mut adaptation = Adaptation::new(&mut backend, layout, 1)?;
        match &args.init_adapter {
            None => adaptation.init_run(&mut backend, 0, args.seed)?,
            Some(_) => adaptation.set_run(&mut backend, &model.spec, 0, &start)?,
        }
        let options = TrainerOptions { dropout: args.lora_dropout, ..TrainerOptions::default() };
        let tuned = Tuned::Adapters(adaptation);
        let runs = vec![Run { data, settings }];
        if args.dry_run {
            let sizes = backend.element_sizes();
            let [activations, gradients, optimiser] = Trainer::plan(&model.spec, &tuned, &runs, options, sizes)?;
            let (runs, stride) = tuned.shape();
            return Plan::new(&backend, &found)
                .with("adapters", runs * stride * sizes.0)
                .with("activations", activations)
                .with("gradients", gradients)
                .with("optimiser", optimiser)
                .print(args.common.json);
        }
        let resume = resume(args)?;
        let mut trainer = Trainer::new(&mut backend, &model, tuned, runs, options)?;
        resolve::write_config(&args.out, "train-lora", args)?;
        let bar = output::progress(trainer.total_steps(), "steps");
        let mut last = None;
        let output = Output {
            dir: &args.out,
            logging_steps: args.logging_steps,
            save_steps: (args.save_steps > 0).then_some(args.save_steps),
            save_total_limit: (args.save_total_limit > 0).then_some(args.save_total_limit),
            configs: std::slice::from_ref(&config),
            identity: &json!({ "model": args.model }),
        };
        let done = fit::fit(&mut backend, &mut model, &mut trainer, &output, resume.as_deref(), |step| {
            if let Some(run) = step.runs.first() {
                bar.set_position(step.step);
                bar.set_message(format!("loss {:.4}", run.loss));
                last = Some(run.clone());
            }
        });
        bar.finish_and_clear();
        done?;
        let steps = trainer.steps();
        let tuned = trainer.finish();
        let adaptation = tuned.adaptation().expect("train-lora: adapters were given");
        adaptation.adapter(&mut backend, 0, &config)?.write(&args.out)?;
        let loss = last.as_ref().map(|run| run.loss);
        if args.common.json {
            let tokens = last.as_ref().map(|run| run.total_tokens);
            return output::json(&json!({"adapter": args.out, "steps": steps, "loss": loss, "tokens": tokens}));
        }
        let loss = loss.map_or(String::new(), |loss| format!(", loss {loss:.4}"));
        output::line(format_args!("{}: {steps} steps{loss}", args.out.display()))
    }
}

/// The checkpoint to continue from.
fn resume(args: &TrainLoraArgs) -> Result<Option<PathBuf>> {
    match args.resume_from_checkpoint.as_deref() {
        None => match checkpoint::latest(&args.out)? {
            None => Ok(None),
            // Before anything is written, since what lies there belongs to another training.
            Some(found) => {
                let expected = "a directory without checkpoints, or --resume-from-checkpoint to continue from one";
                Err(Error::argument("--out", expected, found.display()))
            }
        },
        Some("latest") => {
            let found = checkpoint::latest(&args.out)?;
            if found.is_none() {
                output::note(format_args!("no checkpoint in {}: from the beginning", args.out.display()));
            }
            Ok(found)
        }
        Some(path) if Path::new(path).is_dir() => Ok(Some(path.into())),
        Some(path) => Err(Error::argument("--resume-from-checkpoint", "a checkpoint's directory, or latest", path)),
    }
}
