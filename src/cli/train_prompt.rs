//! `train-prompt`: soft prompts from a file of examples, written as PEFT has them.

use std::path::Path;

use serde_json::{Map, json};

use super::args::{Method, Start, TrainPromptArgs};
use super::device::{Job, dispatch};
use super::resolve::{self, Found};
use super::training::{self, Training};
use super::{Failure, output};
use crate::backend::Backend;
use crate::formats::adapter::{Adapter, AdapterConfig, PromptAdapter, PromptConfig, PromptKind};
use crate::formats::embedded;
use crate::formats::jsonl::Example;
use crate::model::{Adaptation, Model, PromptStart};
use crate::train::data::TrainSequence;
use crate::train::settings::RunSettings;
use crate::train::trainer::{Run, TrainerOptions, Tuned};
use crate::{Error, Result};

/// Rows of a prompt where nothing says how many.
const ROWS: usize = 20;

pub fn run(args: &TrainPromptArgs) -> Result<(), Failure> {
    let training = &args.training;
    let found = resolve::model(&training.model, &training.common)?;
    let start = start(args, &found)?;
    let planned = planned(args, &start)?;
    let data = training::data(training, &found, |examples| check(args, examples))?;
    let dtype = found.dtype;
    dispatch(&training.common, dtype, Train { args, found, start, planned, data })
}

/// Where a prompt begins.
enum Beginning {
    /// Anew.
    Fresh(PromptStart),
    /// From one that has been trained.
    Adapter(PromptAdapter),
}

/// One run: rows of its prompt, settings with its seed.
struct Planned {
    rows: usize,
    settings: RunSettings,
}

fn start(args: &TrainPromptArgs, found: &Found) -> Result<Beginning> {
    let text = args.prompt_tuning_init_text.as_deref();
    if text.is_some() && args.prompt_tuning_init != Some(Start::Text) {
        return Err(Error::argument("--prompt-tuning-init", "TEXT beside --prompt-tuning-init-text", "another"));
    }
    if let Some(path) = &args.training.init_adapter {
        let Adapter::Prompt(prompt) = Adapter::read(path, &found.config)? else {
            return Err(Error::argument("--init-adapter", "a soft prompt", format!("{}, a LoRA", path.display())));
        };
        match prompt.config.kind {
            PromptKind::PromptTuning => {}
            PromptKind::PTuning => output::note(format_args!(
                "{}: of a P_TUNING adapter only what its MLP made is there; training goes on from these rows",
                path.display()
            )),
            PromptKind::PrefixTuning => {
                return Err(Error::argument("--init-adapter", "a prompt of embeddings", "a PREFIX_TUNING adapter"));
            }
        }
        return Ok(Beginning::Adapter(prompt));
    }
    Ok(Beginning::Fresh(match args.prompt_tuning_init.unwrap_or(Start::SampleVocab) {
        Start::SampleVocab => PromptStart::SampleVocab,
        Start::Random => PromptStart::Random,
        Start::Text => {
            let text =
                text.ok_or_else(|| Error::argument("--prompt-tuning-init-text", "a text to begin with", "none"))?;
            let ids = found.tokenizer()?.encode(text, true)?.ids;
            if let Some(id) = ids.iter().find(|&&id| id as usize >= found.spec.vocab) {
                let expected = format!("tokens below the model's {}", found.spec.vocab);
                return Err(Error::argument("--prompt-tuning-init-text", expected, id));
            }
            if ids.is_empty() {
                return Err(Error::argument("--prompt-tuning-init-text", "at least one token", "none"));
            }
            PromptStart::Ids(ids)
        }
    }))
}

/// Every pair of a length and a seed.
fn planned(args: &TrainPromptArgs, start: &Beginning) -> Result<Vec<Planned>> {
    let training = &args.training;
    let lengths = match start {
        Beginning::Adapter(prompt) => {
            let rows = prompt.config.num_virtual_tokens;
            if let Some(other) = args.num_virtual_tokens.iter().find(|&&n| n != rows) {
                let expected = format!("the {rows} of --init-adapter");
                return Err(Error::argument("--num-virtual-tokens", expected, other));
            }
            vec![rows]
        }
        Beginning::Fresh(_) if args.num_virtual_tokens.is_empty() => vec![ROWS],
        Beginning::Fresh(_) => args.num_virtual_tokens.clone(),
    };
    if let Some(&n) = lengths.iter().find(|&&n| n == 0 || n > PromptConfig::MAX_ROWS) {
        return Err(Error::argument("--num-virtual-tokens", format!("from 1 to {}", PromptConfig::MAX_ROWS), n));
    }
    let seeds = training.seed.checked_add(args.seeds).filter(|_| args.seeds > 0);
    let last = seeds.ok_or_else(|| Error::argument("--seeds", "at least 1, up to the greatest seed", args.seeds))?;
    let mut planned = Vec::new();
    for rows in lengths {
        for seed in training.seed..last {
            let settings = training::settings(training, seed)?;
            planned.push(Planned { rows, settings });
        }
    }
    Ok(planned)
}

/// Demonstrations stand in all examples, or in none.
fn check(args: &TrainPromptArgs, examples: &[Example]) -> Result<()> {
    let (wanted, expected) = match args.method {
        Method::Ipt => (true, "demonstrations, query and completion, as --method ipt needs them"),
        Method::Pt => (false, "an example without demonstrations, which are for --method ipt"),
    };
    let wrong = |example: &Example| matches!(example, Example::Demonstrated { .. }) != wanted;
    match examples.iter().position(wrong) {
        Some(i) => {
            let path = args.training.train.as_deref().unwrap_or(Path::new(embedded::NAME));
            let place = crate::formats::lines::at(path, i + 1);
            Err(Error::field(place, "keys", expected, examples[i].form()))
        }
        None => Ok(()),
    }
}

struct Train<'a> {
    args: &'a TrainPromptArgs,
    found: Found,
    start: Beginning,
    planned: Vec<Planned>,
    data: Vec<TrainSequence>,
}

impl Job for Train<'_> {
    fn run<B: Backend>(self, mut backend: B) -> Result<(), Failure> {
        let Self { args, found, start, planned, data } = self;
        let training = &args.training;
        let mut model = Model::new(&mut backend, &found.config, &found.checkpoint)?;
        let rows = planned.iter().map(|run| run.rows).collect();
        let mut adaptation = Adaptation::of_rows(&mut backend, &model.spec, rows)?;
        for (run, Planned { rows, settings }) in planned.iter().enumerate() {
            let rows = match &start {
                Beginning::Fresh(start) => start.rows(&mut backend, &model, *rows, settings.seed)?,
                Beginning::Adapter(prompt) => prompt.rows.clone(),
            };
            adaptation.set_prompt(&mut backend, run, &rows)?;
        }
        let config = |run: &Planned| PromptConfig {
            base_model_name_or_path: Some(training.model.clone()),
            ..PromptConfig::new(PromptKind::PromptTuning, run.rows, &found.config)
        };
        let name = |run: &Planned| {
            let mut name = Map::new();
            name.insert("num_virtual_tokens".into(), json!(run.rows));
            name.insert("seed".into(), json!(run.settings.seed));
            name
        };
        let whole = Training {
            command: "train-prompt",
            args,
            training,
            found: &found,
            options: TrainerOptions::default(),
            configs: planned.iter().map(|run| AdapterConfig::Prompt(config(run))).collect(),
            names: planned.iter().map(name).collect(),
            identity: json!({ "model": training.model, "method": args.method }),
        };
        let runs = planned.into_iter().map(|run| Run { data: data.clone(), settings: run.settings }).collect();
        whole.run(&mut backend, &mut model, Tuned::Adapters(adaptation), runs)
    }
}
