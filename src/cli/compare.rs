//! `compare`: demonstrations, LoRA and soft prompts by what the model generates, on one task or from tasks to tasks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::args::CompareArgs;
use super::device::{Job, dispatch};
use super::resolve::{self, ModelFiles};
use super::series::{Each, OnModel, Series};
use super::{Failure, edits, output, report, report_tables, texts};
use crate::arch::Family;
use crate::backend::Backend;
use crate::compare::{Base, CompareSettings, Comparison, Source};
use crate::formats::generation_config::{Decoding, GenerationDefaults};
use crate::formats::tokenizer::Tokenizer;
use crate::formats::{atomic, yaml};
use crate::hooks::{Edit, Naming};
use crate::model::Model;
use crate::task::{MOST_QUERIES, Side, Task};
use crate::train::settings::{Length, RunSettings};
use crate::{Error, Result};

pub fn run(args: &CompareArgs) -> Result<(), Failure> {
    let files = resolve::base_model(&args.base.model, &args.common)?;
    let inputs = Inputs::read(args, &files)?;
    let dtype = files.dtype;
    dispatch(&args.common, dtype, CompareJob { args, files, inputs })
}

/// Runs comparisons of one model, which is loaded once; `each` runs each.
///
/// # Errors
/// Of the model or the device, or of `each`.
pub fn run_in_turn(all: &[&CompareArgs], each: Each<'_>) -> Result<(), Failure> {
    let CompareArgs { base, common, .. } = all[0];
    let files = resolve::base_model(&base.model, common)?;
    let dtype = files.dtype;
    dispatch(common, dtype, Series { files, commands: all, each })
}

/// The settings that the flags ask for, not validated yet; without a number of queries those of a task with files.
pub(super) fn settings(args: &CompareArgs, family: Family, depth: usize) -> Result<CompareSettings> {
    let training = |learning_rate: f64| RunSettings {
        length: Length::Steps(args.max_steps),
        batch_size: args.batch_size,
        learning_rate,
        weight_decay: args.regularization.weight_decay,
        max_grad_norm: resolve::clip_threshold(&args.regularization),
        ..RunSettings::default()
    };
    Ok(CompareSettings {
        arms: args.arms.clone(),
        demonstrations: args.demos,
        retrieval: args.retrieval,
        lengths: args.num_virtual_tokens.clone(),
        seeds: resolve::seeds(args.seed, args.seeds)?,
        split_seed: args.split_seed,
        queries: args.queries.unwrap_or(MOST_QUERIES),
        pool: args.pool,
        train_examples: args.train_examples,
        max_length: args.max_length,
        max_new_tokens: args.max_new_tokens,
        num_beams: args.num_beams,
        stop: args.stop.iter().map(|stop| texts::unescaped(stop)).collect(),
        prompt_training: training(args.learning_rate),
        lora_training: training(args.lora_learning_rate),
        r: args.lora.r,
        lora_alpha: args.lora.lora_alpha,
        target_modules: resolve::module_names(&args.lora, family),
        layers_to_transform: resolve::layers(&args.lora.layers_to_transform, depth)?,
        bins: args.bins,
        resamples: args.resamples,
        rows: args.batch_tokens,
    })
}

/// The files of one task in `--data`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TaskFiles {
    train: OneOrMore,
    test: OneOrMore,
}

/// One path or a list of them.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(PathBuf),
    More(Vec<PathBuf>),
}

impl From<OneOrMore> for Vec<PathBuf> {
    fn from(files: OneOrMore) -> Self {
        match files {
            OneOrMore::One(file) => vec![file],
            OneOrMore::More(files) => files,
        }
    }
}

/// The task and those of `--transfer`, each with its data, and how many queries each of them has at most where no flag says it.
fn sources(args: &CompareArgs) -> Result<(Vec<Source>, usize)> {
    let mut data = match &args.data {
        None => BTreeMap::new(),
        Some(text) => {
            let from_file = Path::new(text).is_file();
            let yaml = if from_file { atomic::read_to_string(text)? } else { text.clone() };
            let parsed: Result<BTreeMap<String, TaskFiles>, _> = yaml::parse(&yaml);
            parsed.map_err(|e| {
                let expected = "a mapping, or a file of one, such as {mtop: {train: FILE, test: FILE}}";
                Error::argument("--data", expected, format!("{text:?} ({e})"))
            })?
        }
    };
    let mut tasks = vec![Task::named(&args.task)?];
    for name in &args.transfer {
        let task = Task::named(name)?;
        if tasks.iter().any(|known| known.name() == task.name()) {
            return Err(Error::argument("--transfer", "tasks of other names than --task's, each once", task));
        }
        tasks.push(task);
    }
    let known = |name: &str| tasks.iter().any(|task| task.name() == name) || name.parse::<Task>().is_ok();
    if let Some(name) = data.keys().find(|name| !known(name)) {
        let names = tasks.iter().map(Task::name).collect::<Vec<_>>().join(", ");
        return Err(Error::argument("--data", format!("names of tasks, such as {names}"), name));
    }
    let mut queries = MOST_QUERIES;
    let mut source = |(i, task): (usize, Task)| {
        let (train, test) = match data.remove(task.name()) {
            Some(files) => (files.train.into(), files.test.into()),
            None if i == 0 => (args.train.clone(), args.test.clone()),
            None => (Vec::new(), Vec::new()),
        };
        let text = args.template.as_deref().filter(|_| i == 0);
        let template = resolve::template(&task, text, args.apply_chat_template)?;
        for (side, files) in [(Side::Train, &train), (Side::Test, &test)] {
            if files.is_empty() && !task.has_data(side) {
                return Err(match i {
                    0 => Error::argument("--train and --test", "the task's data, or --data", "none"),
                    _ => Error::argument("--data", format!("files of {task}"), "none"),
                });
            }
        }
        if train.is_empty() && test.is_empty() {
            queries = queries.min(task.default_queries());
        }
        let (train, test) = (task.data(Side::Train, &train, &template)?, task.data(Side::Test, &test, &template)?);
        for (side, data) in [("train", &train), ("test", &test)] {
            for (why, n) in &data.skipped {
                output::note(format_args!("{task}: {n} {side} rows skipped: {why}"));
            }
        }
        Ok(Source { task, template, train, test })
    };
    let sources = tasks.into_iter().enumerate().map(&mut source).collect::<Result<_>>()?;
    Ok((sources, queries))
}

/// What a comparison needs beside its model.
struct Inputs {
    settings: CompareSettings,
    tokenizer: Tokenizer,
    sources: Vec<Source>,
    edits: Vec<Edit>,
    /// What tells the model's files from others.
    identity: Map<String, Value>,
}

impl Inputs {
    fn read(args: &CompareArgs, files: &ModelFiles) -> Result<Self> {
        let mut settings = settings(args, files.config.family, files.config.num_hidden_layers)?;
        settings.validate(files.config.family)?;
        let tokenizer = files.tokenizer()?;
        // The protocol of the comparison is that of the study, whatever the model's authors ask of its generation.
        let decoding = if args.num_beams > 1 { Decoding::Beams } else { Decoding::Greedy };
        if !GenerationDefaults::load(&files.path, decoding).is_ok_and(|asked| asked == GenerationDefaults::default()) {
            let path = files.path.display();
            log::warn!("{path}/generation_config.json: asks for more than where texts end, which is not done here");
        }
        let (sources, queries) = sources(args)?;
        settings.queries = args.queries.unwrap_or(queries);
        let edits = edits::of_texts(args.edit.as_deref(), &Naming::tl(&files.config))?;
        Ok(Self { settings, tokenizer, sources, edits, identity: files.identity()? })
    }

    /// Runs the comparison.
    fn run<B: Backend>(
        self,
        args: &CompareArgs,
        files: &ModelFiles,
        backend: &mut B,
        model: &mut Model<B>,
    ) -> Result<(), Failure> {
        let Self { settings, tokenizer, sources, edits, identity } = self;
        // What was said otherwise comes before what it changed.
        let mut of_files = Map::from_iter([("load_in".to_owned(), json!(args.common.load_in))]);
        of_files.extend(identity);
        // Of what `generation_config.json` says, the one thing that is done here.
        of_files.insert("stops".to_owned(), json!(tokenizer.stops()));
        let base = Base { name: &args.base.model, files: &of_files.into(), config: &files.config };
        let comparison = Comparison {
            tokenizer: &tokenizer,
            base,
            sources: &sources,
            vectors: args.vectors.as_deref(),
            settings: &settings,
            edits: &edits,
            log_samples: args.log_samples,
        };
        let report = comparison.run(backend, model, &args.out, &mut |what| output::note(what))?;
        resolve::write_config(&args.out, "compare", args)?;
        report.save(&args.out)?;
        let value = serde_json::to_value(&report).map_err(Error::file(&args.out))?;
        let files = report::write_beside(&value, &args.out, args.csv)?;
        if args.common.json {
            return output::json(&value);
        }
        output::line(report_tables::compare(&report))?;
        files.iter().try_for_each(|file| output::line(file.display()))?;
        output::line(args.out.join("report.json").display())
    }
}

impl OnModel for CompareArgs {
    fn on<B: Backend>(&self, files: &ModelFiles, backend: &mut B, model: &mut Model<B>) -> Result<(), Failure> {
        Inputs::read(self, files)?.run(self, files, backend, model)
    }
}

struct CompareJob<'a> {
    args: &'a CompareArgs,
    files: ModelFiles,
    inputs: Inputs,
}

impl Job for CompareJob<'_> {
    fn run<B: Backend>(self, mut backend: B) -> Result<(), Failure> {
        let Self { args, mut files, inputs } = self;
        let mut model = match inputs.settings.arms.iter().any(|arm| arm.trains()) {
            true => Model::new(&mut backend, &files.config, &files.checkpoint)?,
            false => Model::for_generation(&mut backend, &files.config, &mut files.checkpoint)?,
        };
        inputs.run(args, &files, &mut backend, &mut model)
    }
}
