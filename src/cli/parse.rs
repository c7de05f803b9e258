//! From words to [`Cli`]: spellings, the `--config` file, and what is a usage error.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgAction, CommandFactory, FromArgMatches};
use serde_norway::{Mapping, Value};

use super::Failure;
use super::args::Cli;
use crate::error::nearest;
use crate::formats::{atomic, yaml};
use crate::{Error, Result};

/// Parses the words of a command line, its first being the program's name.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Cli, Failure> {
    let mut words: Vec<OsString> = words.into_iter().map(dashed).collect();
    let config = match config_words(&words)? {
        None => None,
        Some((path, from_file)) => {
            // The subcommand is the first word, so the file's flags come before the typed ones, which win.
            words.splice(2..2, from_file);
            Some(path)
        }
    };
    let matches = Cli::command().try_get_matches_from(words);
    matches.and_then(|m| Cli::from_arg_matches(&m)).map_err(|e| match config {
        // The typed flags alone were in order, so it is a value of the file that is not.
        Some(path) if !is_missing(&e) && e.use_stderr() => Error::file(path)(first_line(&e)).into(),
        _ => Failure::Usage(e),
    })
}

/// `--lora_alpha` as `--lora-alpha`: the flags of other trainers are spelt with underscores.
fn dashed(word: OsString) -> OsString {
    let Some(flag) = word.to_str().filter(|w| w.starts_with("--") && w.len() > 2) else { return word };
    match flag.split_once('=') {
        Some((name, value)) => format!("{}={value}", name.replace('_', "-")).into(),
        None => flag.replace('_', "-").into(),
    }
}

/// The `--config` file, if one is named, and its keys as words.
fn config_words(words: &[OsString]) -> Result<Option<(PathBuf, Vec<OsString>)>, Failure> {
    let mut lenient = Cli::command();
    let names: Vec<String> = lenient.get_subcommands().map(|s| s.get_name().to_owned()).collect();
    for name in names {
        lenient = lenient.mut_subcommand(name, |s| s.mut_args(|a| a.required(false)));
    }
    let matches = lenient.clone().try_get_matches_from(words).map_err(Failure::Usage)?;
    let Some((name, typed)) = matches.subcommand() else { return Ok(None) };
    let Ok(Some(path)) = typed.try_get_one::<PathBuf>("config") else { return Ok(None) };
    let command = lenient.find_subcommand(name).expect("clap matched this subcommand");
    let mapping = read(path)?;
    let mut from_file = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for (key, value) in &mapping {
        let key =
            key.as_str().ok_or_else(|| Error::field(path, format!("{key:?}"), "a name as key", "another type"))?;
        let arg = find(command, key, path)?;
        let id = arg.get_id().as_str();
        if seen.contains(&id) {
            return Err(Error::field(path, key, "one value", "the same setting under two names").into());
        }
        seen.push(id);
        if typed.value_source(id) != Some(ValueSource::CommandLine) {
            from_file.extend(flag(arg, key, value, path)?);
        }
    }
    Ok(Some((path.clone(), from_file)))
}

fn read(path: &Path) -> Result<Mapping> {
    let text = atomic::read_to_string(path)?;
    match yaml::parse(&text).map_err(Error::file(path))? {
        Value::Mapping(mapping) => Ok(mapping),
        Value::Null => Ok(Mapping::new()),
        _ => Err(Error::field(path, "the file", "a mapping of flags to values", "something else")),
    }
}

/// The flag of a key, by its name or any alias.
fn find<'a>(command: &'a clap::Command, key: &str, path: &Path) -> Result<&'a clap::Arg> {
    let dashed = key.replace('_', "-");
    let named = |a: &&clap::Arg| a.get_long().is_some_and(|l| l != "config" && l != "help");
    let spellings = |a: &clap::Arg| {
        let mut all: Vec<String> = a.get_all_aliases().unwrap_or_default().into_iter().map(str::to_owned).collect();
        all.extend(a.get_long().map(str::to_owned));
        all
    };
    command.get_arguments().filter(named).find(|a| spellings(a).contains(&dashed)).ok_or_else(|| {
        let flags = command.get_arguments().filter(named).flat_map(spellings);
        let nearest = nearest(&dashed, flags).unwrap_or_default();
        Error::field(
            path,
            key,
            format!("a flag of {} (nearest: {})", command.get_name(), nearest.replace('-', "_")),
            "an unknown key",
        )
    })
}

/// A key with its value as the words that say the same.
fn flag(arg: &clap::Arg, key: &str, value: &Value, path: &Path) -> Result<Vec<OsString>> {
    let long = arg.get_long().expect("only flags with a long name are found");
    let wrong = |expected: &str| Error::field(path, key, expected, kind(value));
    let scalar = |value: &Value| match value {
        Value::String(s) => Some(s.clone()),
        Value::Number(n) => Some(n.to_string()),
        // A template; a flow mapping of YAML is also JSON.
        Value::Mapping(_) => serde_json::to_string(value).ok(),
        _ => None,
    };
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        return match value {
            Value::Bool(true) => Ok(vec![format!("--{long}").into()]),
            Value::Bool(false) | Value::Null => Ok(Vec::new()),
            _ => Err(wrong("true or false")),
        };
    }
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Sequence(items) if matches!(arg.get_action(), ArgAction::Append) => {
            let items: Vec<String> =
                items.iter().map(scalar).collect::<Option<_>>().ok_or_else(|| wrong("a list of scalars"))?;
            Ok(match arg.get_value_delimiter() {
                Some(d) => vec![format!("--{long}={}", items.join(&d.to_string())).into()],
                None => items.iter().map(|i| format!("--{long}={i}").into()).collect(),
            })
        }
        value => Ok(vec![format!("--{long}={}", scalar(value).ok_or_else(|| wrong("a single value"))?).into()]),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Sequence(_) => "a list",
        Value::Mapping(_) | Value::Tagged(_) => "a mapping",
    }
}

fn is_missing(error: &clap::Error) -> bool {
    error.kind() == clap::error::ErrorKind::MissingRequiredArgument
}

fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}
