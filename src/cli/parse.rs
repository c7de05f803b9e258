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

/// The subcommand's name and the flags of a command line, whose first word is the program's name.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<(String, Cli), Failure> {
    let mut words: Vec<OsString> = words.into_iter().map(dashed).collect();
    let config = match config_words(&words)? {
        None => None,
        Some((path, from_file)) => {
            // The subcommand is the first word, so the file's flags come before the typed ones, which win.
            words.splice(2..2, from_file);
            Some(path)
        }
    };
    let parsed = Cli::command().try_get_matches_from(words).and_then(|matches| {
        let command = matches.subcommand_name().unwrap_or_default().to_owned();
        Ok((command, Cli::from_arg_matches(&matches)?))
    });
    parsed.map_err(|e| match config {
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
    // A wrong usage, or a call for help, is for the command as it is, whose usage shows what is required.
    let Ok(matches) = lenient.clone().try_get_matches_from(words) else { return Ok(None) };
    let Some((name, typed)) = matches.subcommand() else { return Ok(None) };
    let Ok(Some(path)) = typed.try_get_one::<PathBuf>("config") else { return Ok(None) };
    let command = lenient.find_subcommand(name).expect("clap matched this subcommand");
    let is_typed = |id: &str| typed.value_source(id) == Some(ValueSource::CommandLine);
    Ok(Some((path.clone(), words_of(command, &read(path)?, path, is_typed)?)))
}

/// The flags that the keys of a mapping stand for, except those of which `skip` has the id; `path` names the mapping in errors.
fn words_of(
    command: &clap::Command,
    mapping: &Mapping,
    path: &Path,
    skip: impl Fn(&str) -> bool,
) -> Result<Vec<OsString>> {
    let mut words = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for (key, value) in mapping {
        let key =
            key.as_str().ok_or_else(|| Error::field(path, format!("{key:?}"), "a name as key", "another type"))?;
        let arg = find(command, key, path)?;
        let id = arg.get_id().as_str();
        if seen.contains(&id) {
            return Err(Error::field(path, key, "one value", "the same setting under two names"));
        }
        seen.push(id);
        if !skip(id) {
            words.extend(flag(arg, key, value, path)?);
        }
    }
    Ok(words)
}

/// The name of the flag of a subcommand, with underscores, that a key of a mapping stands for; `path` names the mapping in errors.
///
/// # Errors
/// There is no such subcommand or flag.
pub fn flag_name(name: &str, key: &str, path: &Path) -> Result<String> {
    let cli = Cli::command();
    Ok(find(subcommand(&cli, name)?, key, path)?.get_long().unwrap_or(key).replace('-', "_"))
}

fn subcommand<'a>(cli: &'a clap::Command, name: &str) -> Result<&'a clap::Command> {
    cli.find_subcommand(name).ok_or_else(|| {
        let names = cli.get_subcommands().map(clap::Command::get_name).collect::<Vec<_>>().join(", ");
        Error::argument("command", format!("one of {names}"), name)
    })
}

/// The line that calls a subcommand with the keys of a mapping as its flags, and as its operands those that are named so; what
/// it prints is JSON where it can be. `path` names the mapping in errors.
///
/// # Errors
/// There is no such subcommand, or it has not these flags.
pub fn line(name: &str, mut mapping: Mapping, path: &Path) -> Result<Vec<OsString>> {
    let cli = Cli::command();
    let command = subcommand(&cli, name)?;
    let mut operands: Vec<OsString> = Vec::new();
    for operand in command.get_positionals() {
        let key = operand.get_id().as_str();
        match mapping.remove(key) {
            None | Some(Value::Null) => {}
            Some(Value::String(word)) => operands.push(word.into()),
            Some(other) => return Err(Error::field(path, key, "a text", kind(&other))),
        }
    }
    let mut words: Vec<OsString> = vec!["llamaprobe".into(), name.into()];
    words.extend(words_of(command, &mapping, path, |_| false)?);
    if command.get_arguments().any(|arg| arg.get_id() == "json") {
        words.push("--json".into());
    }
    if !operands.is_empty() {
        words.push("--".into());
        words.extend(operands);
    }
    Ok(words)
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

/// A key with its value, as words of a command line.
fn flag(arg: &clap::Arg, key: &str, value: &Value, path: &Path) -> Result<Vec<OsString>> {
    let long = arg.get_long().expect("only flags with a long name are found");
    let wrong = |expected: &str| Error::field(path, key, expected, kind(value));
    let scalar = |value: &Value| match value {
        Value::String(s) => Some(s.clone()),
        Value::Number(n) => Some(n.to_string()),
        Value::Bool(is) if arg.get_possible_values().iter().any(|v| v.matches("true", false)) => Some(is.to_string()),
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
        Value::Sequence(items) if items.is_empty() => Ok(Vec::new()),
        Value::Sequence(items)
            if matches!(arg.get_action(), ArgAction::Append) || arg.get_value_delimiter().is_some() =>
        {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The words of a line of a shell, of whose quotes only single ones occur, without what becomes of its output.
    fn shell_words(line: &str) -> Vec<OsString> {
        let mut words = vec![String::new()];
        let mut quoted = false;
        for c in line.chars() {
            match c {
                '\'' => quoted = !quoted,
                ' ' if !quoted => words.push(String::new()),
                c => words.last_mut().expect("at least one word").push(c),
            }
        }
        let words = words.into_iter().filter(|word| !word.is_empty());
        words.take_while(|word| word != ">").map(OsString::from).collect()
    }

    #[test]
    fn help_examples_are_valid_and_fit_the_width_of_help() {
        let cli = Cli::command();
        for command in std::iter::once(&cli).chain(cli.get_subcommands()) {
            let help = command.get_after_help().unwrap_or_else(|| panic!("{}: no examples", command.get_name()));
            let help = help.to_string();
            // clap breaks longer lines, in which case they cannot be copied.
            assert!(help.lines().all(|line| line.chars().count() <= 100), "{}: {help}", command.get_name());
            let joined = help.replace("\\\n", "");
            let mut examples = joined.lines().filter(|line| line.starts_with("  llamaprobe ")).peekable();
            assert!(examples.peek().is_some(), "{}: {help}", command.get_name());
            for example in examples.filter(|example| !example.contains("--config")) {
                assert!(parse(shell_words(example)).is_ok(), "{}: {example}", command.get_name());
            }
        }
    }
}
