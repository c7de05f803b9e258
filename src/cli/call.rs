//! Subcommands called by a program: the same flags through the same parser, results and errors as values.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{ArgAction, CommandFactory};
use serde_json::{Value, json};

use super::args::{Cli, Command, CommonArgs, GenerateArgs};
use super::device::{Job, dispatch};
use super::host::{self, Host};
use super::resolve::{self, ModelFiles};
use super::{Failure, notes, parse, run};
use crate::formats::adapter::Adapter;
use crate::formats::yaml;
use crate::{Error, Result};

/// Why a call has no result.
#[derive(Debug)]
pub enum Refusal {
    /// The flags are not the subcommand's, in its words.
    Usage(String),
    /// The library's error.
    Error(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Usage(error) => {
                // How to call the program helps nobody here.
                let text = error.to_string();
                let text = text.split("\n\n").next().unwrap_or_default();
                Self::Usage(text.strip_prefix("error: ").unwrap_or(text).to_owned())
            }
            Failure::Error(error) => Self::Error(error),
            Failure::Closed => Self::Error(Error::Interrupted),
        }
    }
}

/// The line that a subcommand's flags, as a mapping in JSON, are.
fn parsed(command: &str, flags: &str) -> Result<Cli, Refusal> {
    let origin = PathBuf::from(format!("{}()", command.replace('-', "_")));
    let mapping = yaml::parse(flags).map_err(Error::file(&origin))?;
    let (_, cli) = parse::parse(parse::line(command, mapping, &origin)?)?;
    Ok(cli)
}

/// Runs a subcommand, heard by `host`; its result in JSON, or in words where it has no JSON, and its output directory or
/// file. `flags` is a mapping in JSON.
///
/// # Errors
/// As the subcommand.
pub fn call(command: &str, flags: &str, host: &Arc<Host>) -> Result<(String, Option<String>), Refusal> {
    host::hosting(host, || {
        notes::begin();
        let cli = parsed(command, flags)?;
        let out = out(&cli.command).map(|out| out.display().to_string());
        run(cli).map_err(|failure| failure.in_words_of(command))?;
        notes::release();
        Ok((host.take_results(), out))
    })
}

/// The directory or file that a subcommand writes, if it writes any.
fn out(command: &Command) -> Option<&Path> {
    match command {
        Command::Capture(args) => Some(&args.out),
        Command::TrainLora(args) => Some(&args.training.out),
        Command::TrainPrompt(args) => Some(&args.training.out),
        Command::Probe(args) => Some(&args.out),
        Command::Compare(args) => Some(&args.out),
        Command::Report(args) => args.out.as_deref(),
        Command::Merge(args) => Some(&args.new.out),
        Command::Quantize(args) => Some(&args.new.out),
        Command::ControlVector(args) => Some(&args.out),
        Command::ExportEmbedded(args) => Some(&args.out),
        Command::Pretrain(args) => Some(&args.out),
        Command::Sweep(args) => args.out.as_deref(),
        Command::Man(args) => args.out.as_deref(),
        Command::Analyze(_)
        | Command::Generate(_)
        | Command::Inspect(_)
        | Command::Task(_)
        | Command::Completions(_) => None,
    }
}

/// A model's files, and where it is to compute.
pub struct Loaded {
    /// The model.
    pub files: ModelFiles,
    /// What is applied to it.
    pub adapter: Option<Adapter>,
    common: CommonArgs,
}

/// Finds a model by the flags that all commands have for it, as a mapping in JSON.
///
/// # Errors
/// No such model or adapter, or one that does not fit.
pub fn load(flags: &str, host: &Arc<Host>) -> Result<Loaded, Refusal> {
    host::hosting(host, || {
        notes::begin();
        let Command::Inspect(args) = parsed("inspect", flags)?.command else { unreachable!("inspect was parsed") };
        let files = resolve::model(&args.model.model, &args.common)?;
        let adapter = resolve::adapter(args.model.adapter.as_deref(), &files)?;
        notes::release();
        Ok(Loaded { files, adapter, common: args.common })
    })
}

/// Runs a job where a model is to compute.
///
/// # Errors
/// Of the device, or the job's.
pub fn dispatched<J: Job>(loaded: Loaded, job: impl FnOnce(Loaded) -> J) -> Result<(), Refusal> {
    let (common, dtype) = (loaded.common.clone(), loaded.files.dtype);
    Ok(dispatch(&common, dtype, job(loaded))?)
}

/// The flags of `generate`, of a mapping in JSON.
///
/// # Errors
/// Flags that it has not.
pub fn generate_args(flags: &str) -> Result<GenerateArgs, Refusal> {
    match parsed("generate", flags)?.command {
        Command::Generate(args) => Ok(args),
        other => unreachable!("generate was parsed, not {other:?}"),
    }
}

/// An error of a subcommand in its words.
pub fn in_words_of(command: &str, error: Error) -> Error {
    super::flags::in_words_of(command, error)
}

/// The page of a study's or a training's directory as HTML, and the series of its plots as CSV.
///
/// # Errors
/// There is nothing to show of it.
pub fn page(run: &Path) -> Result<(String, String)> {
    let page = super::report::page_of(run)?;
    Ok((crate::page::render(&page)?, crate::page::series(&page)))
}

/// The flags of a subcommand, in JSON: its help, and of each name, help, default, choices, and what it takes.
///
/// # Errors
/// There is no such subcommand.
pub fn describe(command: &str) -> Result<String> {
    let cli = Cli::command();
    let found = cli.find_subcommand(command).ok_or_else(|| Error::argument("command", "a subcommand", command))?;
    // What a caller has in other ways.
    let own = ["help", "version", "json"];
    let flags = found.get_arguments().filter(|arg| !own.contains(&arg.get_id().as_str()));
    let flags: Vec<Value> = flags.map(flag).collect();
    let about = found.get_about().map(ToString::to_string);
    let examples = found.get_after_help().map(ToString::to_string);
    Ok(json!({ "about": about, "examples": examples, "flags": flags }).to_string())
}

fn flag(arg: &clap::Arg) -> Value {
    let choices: Vec<String> = arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
    let defaults: Vec<String> =
        arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
    json!({
        "name": arg.get_long().unwrap_or(arg.get_id().as_str()).replace('-', "_"),
        "help": arg.get_help().map(ToString::to_string),
        "operand": arg.is_positional(),
        "required": arg.is_required_set(),
        "switch": matches!(arg.get_action(), ArgAction::SetTrue),
        "list": matches!(arg.get_action(), ArgAction::Append) || arg.get_value_delimiter().is_some(),
        "default": defaults,
        "choices": choices,
    })
}
