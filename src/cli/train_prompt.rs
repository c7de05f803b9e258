//! `train-prompt`: soft prompts from a file of examples, written as PEFT has them.

use std::path::Path;

use serde_json::{Map, json};

use super::args::{Encoder, Method, Start, TrainPromptArgs};
use super::device::{Job, dispatch};
use super::resolve::{self, Found};
use super::training::{self, Training};
use super::{Failure, output};
use crate::backend::Backend;
use crate::formats::adapter::{
    Adapter, AdapterConfig, EncoderShape, PromptAdapter, PromptConfig, PromptKind, Reparameterization,
};
use crate::formats::embedded;
use crate::formats::jsonl::Example;
use crate::model::{self, Adaptation, Model, PromptStart, encoder, prompt};
use crate::train::data::TrainSequence;
use crate::train::settings::RunSettings;
use crate::train::trainer::{Run, TrainerOptions};
use crate::train::tuned::Tuned;
use crate::{Error, Result};

/// Rows of a prompt where nothing says how many.
const ROWS: usize = 20;

pub fn run(args: &TrainPromptArgs) -> Result<(), Failure> {
    let training = &args.training;
    let found = resolve::model(&training.model, &training.common)?;
    let (kind, form) = form(args)?;
    let start = start(args, &found, form)?;
    let planned = planned(args, &start)?;
    let data = training::data(training, &found, |examples| check(args, examples))?;
    let dtype = found.dtype;
    dispatch(&training.common, dtype, Train { args, found, kind, form, start, planned, data })
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

/// What is learnt: the prompt's kind, and how it is re-parameterised.
fn form(args: &TrainPromptArgs) -> Result<(PromptKind, Option<Reparameterization>)> {
    let asked = args.encoder_reparameterization_type;
    let wrong =
        |expected: &str, found: &str| Err(Error::argument("--encoder-reparameterization-type", expected, found));
    let form = match (args.method, asked) {
        (Method::Prefix, Some(Encoder::Residual)) => return wrong("none or mlp for a prefix", "residual"),
        (Method::Prefix, Some(Encoder::Mlp)) => (PromptKind::PrefixTuning, Some(Reparameterization::Projection)),
        (Method::Prefix, _) => (PromptKind::PrefixTuning, None),
        (Method::PTuning, Some(Encoder::None)) => return wrong("mlp or residual for p-tuning", "none"),
        (_, Some(Encoder::Residual)) => (PromptKind::PromptTuning, Some(Reparameterization::Residual)),
        (_, Some(Encoder::Mlp)) | (Method::PTuning, None) => (PromptKind::PTuning, Some(Reparameterization::Mlp)),
        (Method::Pt | Method::Ipt, _) => (PromptKind::PromptTuning, None),
    };
    match args.encoder_hidden_size {
        Some(0) => Err(Error::argument("--encoder-hidden-size", "at least 1", 0)),
        Some(_) if form.1.is_none() => wrong("a form, beside --encoder-hidden-size", "none"),
        _ => Ok(form),
    }
}

fn start(args: &TrainPromptArgs, found: &Found, form: Option<Reparameterization>) -> Result<Beginning> {
    let text = args.prompt_tuning_init_text.as_deref();
    if text.is_some() && args.prompt_tuning_init != Some(Start::Text) {
        return Err(Error::argument("--prompt-tuning-init", "TEXT beside --prompt-tuning-init-text", "another"));
    }
    if let Some(path) = &args.training.init_adapter {
        let Adapter::Prompt(prompt) = Adapter::read(path, &found.config)? else {
            return Err(Error::argument("--init-adapter", "a soft prompt", format!("{}, a LoRA", path.display())));
        };
        return continued(args, prompt, path, form);
    }
    let default = match args.method {
        Method::Pt | Method::Ipt => Start::SampleVocab,
        Method::PTuning | Method::Prefix => Start::Random,
    };
    Ok(Beginning::Fresh(match args.prompt_tuning_init.unwrap_or(default) {
        Start::Random => PromptStart::Random,
        _ if args.method == Method::Prefix => {
            return Err(Error::argument(
                "--prompt-tuning-init",
                "RANDOM for a prefix, which is no embedding",
                "another",
            ));
        }
        Start::SampleVocab => PromptStart::SampleVocab,
        Start::Text => {
            let text =
                text.ok_or_else(|| Error::argument("--prompt-tuning-init-text", "a text to begin with", "none"))?;
            let ids = found.tokenizer()?.encode(text, true)?.ids;
            if let Some(id) = ids.iter().find(|&&id| id as usize >= found.config.vocab_size) {
                let expected = format!("tokens below the model's {}", found.config.vocab_size);
                return Err(Error::argument("--prompt-tuning-init-text", expected, id));
            }
            if ids.is_empty() {
                return Err(Error::argument("--prompt-tuning-init-text", "at least one token", "none"));
            }
            PromptStart::Ids(ids)
        }
    }))
}

/// A training that goes on from a prompt.
fn continued(
    args: &TrainPromptArgs,
    mut prompt: PromptAdapter,
    path: &Path,
    form: Option<Reparameterization>,
) -> Result<Beginning> {
    let kind = prompt.config.kind;
    if (kind == PromptKind::PrefixTuning) != (args.method == Method::Prefix) {
        let expected = if args.method == Method::Prefix { "a PREFIX_TUNING adapter" } else { "a prompt of embeddings" };
        return Err(Error::argument("--init-adapter", expected, format!("{}, a {}", path.display(), kind.name())));
    }
    prompt.encoder = prompt.encoder.filter(|encoder| Some(encoder.shape.kind) == form);
    if let (Some(encoder), Some(hidden)) = (&prompt.encoder, args.encoder_hidden_size)
        && encoder.shape.hidden != hidden
    {
        let expected = format!("the {} of --init-adapter", encoder.shape.hidden);
        return Err(Error::argument("--encoder-hidden-size", expected, hidden));
    }
    match form {
        // PEFT, where it is made to, takes the rows for the MLP's input, and makes another prompt of them.
        Some(Reparameterization::Mlp | Reparameterization::Projection) if prompt.encoder.is_none() => {
            let expected = "the MLP's own file beside the prompt, since PEFT keeps only what it made";
            Err(Error::argument("--init-adapter", expected, format!("{}, without it", path.display())))
        }
        None if kind == PromptKind::PTuning || prompt.config.prefix_projection => {
            output::note(format_args!("{}: an MLP made this; training goes on from its rows", path.display()));
            Ok(Beginning::Adapter(prompt))
        }
        _ => Ok(Beginning::Adapter(prompt)),
    }
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
        _ => (false, "an example without demonstrations, which are for --method ipt"),
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
    kind: PromptKind,
    form: Option<Reparameterization>,
    start: Beginning,
    planned: Vec<Planned>,
    data: Vec<TrainSequence>,
}

impl Train<'_> {
    /// The settings that a run's prompt is written with.
    fn config(&self, run: &Planned) -> PromptConfig {
        let config = PromptConfig::new(self.kind, run.rows, &self.found.config);
        PromptConfig {
            encoder_hidden_size: (self.kind != PromptKind::PromptTuning).then(|| self.hidden(&config)),
            prefix_projection: self.form == Some(Reparameterization::Projection),
            base_model_name_or_path: Some(self.args.training.model.clone()),
            ..config
        }
    }

    fn hidden(&self, config: &PromptConfig) -> usize {
        let known = match &self.start {
            Beginning::Adapter(prompt) => prompt.encoder.as_ref().map(|encoder| encoder.shape.hidden),
            Beginning::Fresh(_) => None,
        };
        known.or(self.args.encoder_hidden_size).unwrap_or(config.token_dim)
    }

    /// The rows with which a run begins: of a projection those of its embedding.
    fn rows<B: Backend>(&self, backend: &mut B, model: &Model<B>, run: &Planned) -> Result<Vec<f32>> {
        match &self.start {
            Beginning::Adapter(prompt) => Ok(prompt.rows.clone()),
            Beginning::Fresh(_) if self.kind == PromptKind::PrefixTuning => {
                let config = self.config(run);
                let width = if self.form.is_some() { config.token_dim } else { config.width() };
                Ok(prompt::normal(run.rows * width, run.settings.seed))
            }
            Beginning::Fresh(start) => start.rows(backend, model, run.rows, run.settings.seed),
        }
    }

    /// What is trained, as it begins.
    fn tuned<B: Backend>(&self, backend: &mut B, model: &Model<B>) -> Result<Tuned<B>> {
        let rows = self.planned.iter().map(|run| run.rows).collect();
        let mut adaptation = Adaptation::zeros(backend, &model.config, self.kind, rows)?;
        let Some(form) = self.form else {
            for (i, run) in self.planned.iter().enumerate() {
                let rows = self.rows(backend, model, run)?;
                adaptation.set_prompt(backend, i, &rows)?;
            }
            return Ok(Tuned::Adapters(adaptation));
        };
        let mut states = Vec::with_capacity(self.planned.len());
        for run in &self.planned {
            let kept = match &self.start {
                Beginning::Adapter(prompt) => prompt.encoder.clone(),
                Beginning::Fresh(_) => None,
            };
            states.push(match kept {
                Some(state) => state,
                None => {
                    let config = self.config(run);
                    let shape = EncoderShape::new(form, &config, self.hidden(&config));
                    encoder::fresh(shape, run.rows, &self.rows(backend, model, run)?, run.settings.seed)
                }
            });
        }
        Ok(Tuned::Encoded(model::Encoder::new(backend, adaptation, &states)?))
    }
}

impl Job for Train<'_> {
    fn run<B: Backend>(self, mut backend: B) -> Result<(), Failure> {
        let mut model = Model::new(&mut backend, &self.found.config, &self.found.checkpoint)?;
        let tuned = self.tuned(&mut backend, &model)?;
        let training = &self.args.training;
        let name = |run: &Planned| {
            let mut name = Map::new();
            name.insert("num_virtual_tokens".into(), json!(run.rows));
            name.insert("seed".into(), json!(run.settings.seed));
            name
        };
        let whole = Training {
            command: "train-prompt",
            args: self.args,
            training,
            found: &self.found,
            options: TrainerOptions::default(),
            configs: self.planned.iter().map(|run| AdapterConfig::Prompt(self.config(run))).collect(),
            names: self.planned.iter().map(name).collect(),
            identity: json!({ "model": training.model, "method": self.args.method }),
        };
        let run = |run: &Planned| Run { data: self.data.clone(), settings: run.settings.clone() };
        whole.run(&mut backend, &mut model, tuned, self.planned.iter().map(run).collect())
    }
}
