//! `train-prompt`: trains soft prompts on a file of examples, and writes them in PEFT's format.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::args::{Method, PromptInit, ReparameterizationType as Type, TrainPromptArgs};
use super::device::{Job, dispatch};
use super::objective;
use super::resolve::{self, ModelFiles};
use super::training::{self, Apart, Named, Training};
use super::{Failure, output};
use crate::backend::Backend;
use crate::formats::adapter::{
    Adapter, AdapterConfig, EncoderShape, PromptAdapter, PromptConfig, PromptKind, Reparameterization,
};
use crate::formats::jsonl::{Example, Row};
use crate::model::{self, Adaptation, Model, PromptStart, encoder, prompt};
use crate::train::settings::RunSettings;
use crate::train::trainable::Trainable;
use crate::train::trainer::Run;
use crate::{Error, Result};

/// Number of virtual tokens where nothing says how many.
const NUM_VIRTUAL_TOKENS: usize = 20;

pub fn run(args: &TrainPromptArgs) -> Result<(), Failure> {
    training::check_logs(&args.training.checkpoints)?;
    let training = &args.training;
    let files = resolve::base_model(&training.base.model, &training.common)?;
    let (kind, reparameterization) = method(args)?;
    let init = init(args, &files, reparameterization)?;
    let runs = runs(args, &init, reparameterization)?;
    if args.method == Method::Ipt && objective::in_context(&training.objective) {
        let expected = "pt, p-tuning or prefix beside --teacher icl, which has the demonstrations";
        return Err(Error::argument("--method", expected, "ipt").into());
    }
    let seeds = runs.iter().map(|run| run.settings.seed);
    let data = training::data(training, &files, seeds, |examples| check(args, examples))?;
    let dtype = files.dtype;
    dispatch(&training.common, dtype, Train { args, files, kind, reparameterization, init, runs, data })
}

/// What the training begins with.
enum Init {
    /// A new prompt, initialized in one of PEFT's ways.
    New(PromptStart),
    /// A prompt that has been trained before.
    Adapter(PromptAdapter),
}

/// The prompt of one run.
struct PromptRun {
    num_virtual_tokens: usize,
    /// With the run's seed.
    settings: RunSettings,
}

/// The kind of the prompt, and how it is reparameterized while it is trained.
fn method(args: &TrainPromptArgs) -> Result<(PromptKind, Option<Reparameterization>)> {
    let refuse =
        |expected: &str, found: &str| Err(Error::argument("--encoder-reparameterization-type", expected, found));
    let method = match (args.method, args.encoder_reparameterization_type) {
        (Method::Prefix, Some(Type::Residual)) => return refuse("none or mlp for a prefix", "residual"),
        (Method::Prefix, Some(Type::Mlp)) => (PromptKind::PrefixTuning, Some(Reparameterization::Projection)),
        (Method::Prefix, _) => (PromptKind::PrefixTuning, None),
        (Method::PTuning, Some(Type::None)) => return refuse("mlp or residual for p-tuning", "none"),
        (_, Some(Type::Residual)) => (PromptKind::PromptTuning, Some(Reparameterization::Residual)),
        (_, Some(Type::Mlp)) | (Method::PTuning, None) => (PromptKind::PTuning, Some(Reparameterization::Mlp)),
        (Method::Pt | Method::Ipt, _) => (PromptKind::PromptTuning, None),
    };
    match args.encoder_hidden_size {
        Some(hidden) if hidden == 0 || hidden > EncoderShape::MAX_HIDDEN => {
            let expected = format!("from 1 to {}", EncoderShape::MAX_HIDDEN);
            Err(Error::argument("--encoder-hidden-size", expected, hidden))
        }
        Some(_) if method.1.is_none() => refuse("mlp or residual, beside --encoder-hidden-size", "none"),
        _ => Ok(method),
    }
}

/// What the training begins with, by `--init-adapter` or `--prompt-tuning-init`.
fn init(args: &TrainPromptArgs, files: &ModelFiles, reparameterization: Option<Reparameterization>) -> Result<Init> {
    let text = args.prompt_tuning_init_text.as_deref();
    if text.is_some() && args.prompt_tuning_init != Some(PromptInit::Text) {
        return Err(Error::argument("--prompt-tuning-init", "TEXT beside --prompt-tuning-init-text", "another"));
    }
    if let Some(path) = &args.training.init_adapter {
        let Adapter::Prompt(prompt) = Adapter::read(resolve::trained_adapter("init_adapter", path)?, &files.config)?
        else {
            return Err(Error::argument("--init-adapter", "a soft prompt", format!("{}, a LoRA", path.display())));
        };
        return resumed(args, prompt, path, reparameterization);
    }
    let default = match args.method {
        Method::Pt | Method::Ipt => PromptInit::SampleVocab,
        Method::PTuning | Method::Prefix => PromptInit::Random,
    };
    Ok(Init::New(match args.prompt_tuning_init.unwrap_or(default) {
        PromptInit::Random => PromptStart::Random,
        _ if args.method == Method::Prefix => {
            return Err(Error::argument(
                "--prompt-tuning-init",
                "RANDOM for a prefix, which is no embedding",
                "another",
            ));
        }
        PromptInit::SampleVocab => PromptStart::SampleVocab,
        PromptInit::Text => {
            let text =
                text.ok_or_else(|| Error::argument("--prompt-tuning-init-text", "a text to begin with", "none"))?;
            let ids = files.tokenizer()?.encode(text, true)?.ids;
            if let Some(id) = ids.iter().find(|&&id| id as usize >= files.config.vocab_size) {
                let expected = format!("tokens below the model's {}", files.config.vocab_size);
                return Err(Error::argument("--prompt-tuning-init-text", expected, id));
            }
            if ids.is_empty() {
                return Err(Error::argument("--prompt-tuning-init-text", "at least one token", "none"));
            }
            PromptStart::Ids(ids)
        }
    }))
}

/// The prompt of `--init-adapter`, if the training can go on from it.
fn resumed(
    args: &TrainPromptArgs,
    mut prompt: PromptAdapter,
    path: &Path,
    reparameterization: Option<Reparameterization>,
) -> Result<Init> {
    let kind = prompt.config.kind;
    if (kind == PromptKind::PrefixTuning) != (args.method == Method::Prefix) {
        let expected = if args.method == Method::Prefix { "a PREFIX_TUNING adapter" } else { "a prompt of embeddings" };
        return Err(Error::argument("--init-adapter", expected, format!("{}, a {}", path.display(), kind.name())));
    }
    prompt.encoder = prompt.encoder.filter(|encoder| Some(encoder.shape.kind) == reparameterization);
    if let (Some(encoder), Some(hidden)) = (&prompt.encoder, args.encoder_hidden_size)
        && encoder.shape.hidden != hidden
    {
        let expected = format!("the {} of --init-adapter", encoder.shape.hidden);
        return Err(Error::argument("--encoder-hidden-size", expected, hidden));
    }
    match reparameterization {
        // PEFT, if it is made to, takes the rows for the MLP's input, and makes another prompt of them.
        Some(Reparameterization::Mlp | Reparameterization::Projection) if prompt.encoder.is_none() => {
            let expected = "the MLP's own file beside the prompt, since PEFT keeps only what it made";
            Err(Error::argument("--init-adapter", expected, format!("{}, without it", path.display())))
        }
        None if kind == PromptKind::PTuning || prompt.config.prefix_projection => {
            output::note(format_args!("{}: an MLP made this; training goes on from its rows", path.display()));
            Ok(Init::Adapter(prompt))
        }
        _ => Ok(Init::Adapter(prompt)),
    }
}

/// A run for every combination of a number of virtual tokens, a learning rate and a seed.
fn runs(args: &TrainPromptArgs, init: &Init, reparameterization: Option<Reparameterization>) -> Result<Vec<PromptRun>> {
    let training = &args.training;
    let lengths = match init {
        Init::Adapter(prompt) => {
            let saved = prompt.config.num_virtual_tokens;
            if let Some(other) = args.num_virtual_tokens.iter().find(|&&n| n != saved) {
                let expected = format!("the {saved} of --init-adapter");
                return Err(Error::argument("--num-virtual-tokens", expected, other));
            }
            vec![saved]
        }
        Init::New(_) if args.num_virtual_tokens.is_empty() => vec![NUM_VIRTUAL_TOKENS],
        Init::New(_) => args.num_virtual_tokens.clone(),
    };
    if let Some(&n) = lengths.iter().find(|&&n| n == 0 || n > PromptConfig::MAX_ROWS) {
        return Err(Error::argument("--num-virtual-tokens", format!("from 1 to {}", PromptConfig::MAX_ROWS), n));
    }
    training::distinct("--num-virtual-tokens", &lengths)?;
    let (rates, seeds) = (training::learning_rates(training)?, resolve::seeds(training.seed, args.seeds)?);
    training::check_count(&[lengths.len(), rates.len(), seeds.len()])?;
    let same = match init {
        Init::Adapter(_) => true,
        Init::New(PromptStart::Ids(_)) => reparameterization.is_none(),
        Init::New(_) => false,
    };
    training::check_seeds(training, args.seeds, same)?;
    let mut runs = Vec::new();
    for num_virtual_tokens in lengths {
        for &rate in &rates {
            for &seed in &seeds {
                let settings = training::settings(training, rate, seed)?;
                runs.push(PromptRun { num_virtual_tokens, settings });
            }
        }
    }
    Ok(runs)
}

/// Demands demonstrations in all examples for `--method ipt`, and else in none.
fn check(args: &TrainPromptArgs, rows: &[Row]) -> Result<()> {
    let (demonstrated, expected) = match args.method {
        Method::Ipt => (true, "demonstrations, query and completion, as --method ipt needs them"),
        _ => (false, "an example without demonstrations, which are for --method ipt"),
    };
    let misplaced = |row: &&Row| matches!(row.example, Example::Demonstrated { .. }) != demonstrated;
    match rows.iter().find(misplaced) {
        Some(row) => Err(Error::field(&row.location, "keys", expected, row.example.form())),
        None => Ok(()),
    }
}

/// The training, for whatever backend.
struct Train<'a> {
    args: &'a TrainPromptArgs,
    files: ModelFiles,
    kind: PromptKind,
    reparameterization: Option<Reparameterization>,
    init: Init,
    runs: Vec<PromptRun>,
    data: training::Data,
}

impl Train<'_> {
    /// The configuration that a run's prompt is written with.
    fn config(&self, run: &PromptRun) -> PromptConfig {
        let config = PromptConfig::new(self.kind, run.num_virtual_tokens, &self.files.config);
        PromptConfig {
            encoder_hidden_size: (self.kind != PromptKind::PromptTuning).then(|| self.hidden_size(&config)),
            prefix_projection: self.reparameterization == Some(Reparameterization::Projection),
            base_model_name_or_path: Some(self.args.training.base.model.clone()),
            ..config
        }
    }

    /// Width of the hidden layers of the reparameterization.
    fn hidden_size(&self, config: &PromptConfig) -> usize {
        let saved = match &self.init {
            Init::Adapter(prompt) => prompt.encoder.as_ref().map(|encoder| encoder.shape.hidden),
            Init::New(_) => None,
        };
        saved.or(self.args.encoder_hidden_size).unwrap_or(config.token_dim)
    }

    /// The values with which a run begins, `[num_virtual_tokens, width]`; of a prefix's projection those of its embedding.
    fn rows<B: Backend>(&self, backend: &mut B, model: &Model<B>, run: &PromptRun) -> Result<Vec<f32>> {
        match &self.init {
            Init::Adapter(prompt) => Ok(prompt.rows.clone()),
            Init::New(_) if self.kind == PromptKind::PrefixTuning => {
                let config = self.config(run);
                let width = if self.reparameterization.is_some() { config.token_dim } else { config.width() };
                Ok(prompt::normal(run.num_virtual_tokens * width, run.settings.seed))
            }
            Init::New(start) => start.rows(backend, model, run.num_virtual_tokens, run.settings.seed),
        }
    }

    /// The trained parameters of all runs, initialized.
    fn tuned<B: Backend>(&self, backend: &mut B, model: &Model<B>) -> Result<Trainable<B>> {
        let rows = self.runs.iter().map(|run| run.num_virtual_tokens).collect();
        let mut adaptation = Adaptation::zeros(backend, &model.config, self.kind, rows)?;
        let Some(reparameterization) = self.reparameterization else {
            for (i, run) in self.runs.iter().enumerate() {
                let rows = self.rows(backend, model, run)?;
                adaptation.set_prompt(backend, i, &rows)?;
            }
            return Ok(Trainable::Adapters(adaptation));
        };
        let mut states = Vec::with_capacity(self.runs.len());
        for run in &self.runs {
            let saved = match &self.init {
                Init::Adapter(prompt) => prompt.encoder.clone(),
                Init::New(_) => None,
            };
            states.push(match saved {
                Some(state) => state,
                None => {
                    let config = self.config(run);
                    let shape = EncoderShape::new(reparameterization, &config, self.hidden_size(&config));
                    encoder::fresh(shape, run.num_virtual_tokens, &self.rows(backend, model, run)?, run.settings.seed)
                }
            });
        }
        Ok(Trainable::Reparameterized(model::Encoder::new(backend, adaptation, &states)?))
    }
}

impl Job for Train<'_> {
    fn run<B: Backend>(self, mut backend: B) -> Result<(), Failure> {
        let mut model = Model::new(&mut backend, &self.files.config, &self.files.checkpoint)?;
        let tuned = self.tuned(&mut backend, &model)?;
        let training = &self.args.training;
        let name = |run: &PromptRun| {
            let mut name = Map::new();
            name.insert("num_virtual_tokens".into(), json!(run.num_virtual_tokens));
            if training.optim.learning_rate.len() > 1 {
                name.insert("learning_rate".into(), json!(run.settings.learning_rate));
            }
            name.insert("seed".into(), json!(run.settings.seed));
            name
        };
        let named = |run: &PromptRun| Named {
            config: AdapterConfig::Prompt(self.config(run)),
            name: name(run),
            settings: Value::Null,
        };
        let whole = Training {
            command: "train-prompt",
            args: self.args,
            training,
            files: &self.files,
            options: training::options(training),
            runs: self.runs.iter().map(named).collect(),
            is_grid: false,
            identity: json!({ "model": training.base.model, "method": self.args.method }),
            objective: self.data.objective.clone(),
            apart: Apart::default(),
        };
        let run = |run: &PromptRun| Run { data: self.data.of_run(run.settings.seed), settings: run.settings.clone() };
        let runs = self.runs.iter().map(run).collect();
        whole.run(&mut backend, &mut model, tuned, runs, self.data.eval.clone())
    }
}
