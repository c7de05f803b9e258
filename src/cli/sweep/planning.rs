//! From a grid's file to cells: flags are checked as those of the command are, and each cell gets its name.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::inputs::Inputs;
use crate::cli::args::{Cli, Command};
use crate::cli::{Failure, parse, train_lora};
use crate::formats::json::word;
use crate::formats::yaml;
use crate::probe::factors::{Factor, Vary};
use crate::sweep::grid::Grid;
use crate::sweep::plan::{Cell, Identity, Plan, words};
use crate::{Error, Result};

/// The commands that can be swept.
const COMMANDS: [&str; 4] = ["probe", "compare", "train-lora", "capture"];
/// Flags that the sweep sets itself, or that say nothing of the result.
const OWN: [&str; 6] = ["out", "json", "config", "dry_run", "profile", "resume_from_checkpoint"];
/// Flags on which no result depends.
const WITHOUT_EFFECT: [&str; 3] = ["out", "threads", "load_in_cache"];
/// The flags in which cells must be alike that share a loaded model.
const OF_MODEL: [&str; 6] = ["model", "revision", "load_in", "tokenizer", "device", "dtype"];
/// The further flags of a probe in which those must be alike that share passes.
const OF_PASSES: [&str; 4] = ["edit", "batch_tokens", "tuning", "measures"];
/// Where a cell writes before anybody knows where it is.
const NOWHERE: &str = "cell";

/// The plan of a grid's file.
///
/// # Errors
/// Flags that the command has not, values out of their domain, files that are not there.
pub fn plan(path: &Path, inputs: &mut Inputs) -> Result<Plan> {
    let grid = spelled(Grid::read(path)?, path)?;
    let cells = grid.levels().into_iter().map(|levels| {
        let flags = merged(&grid, &levels);
        let cli = cell_line(path, &grid.command, &flags, Path::new(NOWHERE), None).map_err(|error| match error {
            // Of which of the cells, where it is not all.
            Error::File { path, source } if !levels.is_empty() => {
                Error::File { path, source: format!("{source} (in {})", words(&levels)).into() }
            }
            other => other,
        })?;
        cell(&grid.command, levels, flags, &cli.command, inputs)
    });
    let cells = cells.collect::<Result<Vec<_>>>()?;
    Ok(Plan { inputs: inputs.content().clone(), ..Plan::new(grid, cells, path)? })
}

/// The same grid with every flag under its own name, be it given under another.
fn spelled(grid: Grid, path: &Path) -> Result<Grid> {
    if !COMMANDS.contains(&grid.command.as_str()) {
        let expected = format!("one of {}", COMMANDS.join(", "));
        return Err(Error::field(path, "command", expected, grid.command));
    }
    let mut seen: Vec<String> = Vec::new();
    let mut names = |part: &str, of: Map<String, Value>| {
        let mut named = Map::new();
        for (key, value) in of {
            let field = format!("{part}.{key}");
            let name = match factor(&grid.command, &key) {
                Some(factor) => factor.name().to_owned(),
                None => parse::flag_name(&grid.command, &key, path)?,
            };
            if OWN.contains(&name.as_str()) {
                return Err(Error::field(path, field, "a flag that is not the sweep's own", name));
            }
            if seen.contains(&name) {
                return Err(Error::field(path, field, "each flag once", format!("{name} again")));
            }
            seen.push(name.clone());
            named.insert(name, value);
        }
        Ok(named)
    };
    let (flags, varied) = (names("flags", grid.flags)?, names("grid", grid.grid)?);
    Ok(Grid { command: grid.command, flags, grid: varied })
}

/// A factor of a probe's study that is no flag itself.
fn factor(command: &str, key: &str) -> Option<Factor> {
    let factors = [Factor::Labels, Factor::Source, Factor::Similarity, Factor::Order, Factor::Steps];
    factors.into_iter().find(|factor| command == "probe" && Factor::parse(key).ok() == Some(*factor))
}

/// All flags of a cell; factors that are no flags are values of `vary`.
fn merged(grid: &Grid, levels: &Map<String, Value>) -> Map<String, Value> {
    let mut flags = Map::new();
    let mut vary = Vec::new();
    for (name, value) in grid.flags.iter().chain(levels) {
        match (factor(&grid.command, name), name.as_str()) {
            (Some(factor), _) => vary.push(json!(format!("{factor}={}", word(value)))),
            (None, "vary") => vary.extend(match value {
                Value::Array(values) => values.clone(),
                other => vec![other.clone()],
            }),
            (None, _) => drop(flags.insert(name.clone(), value.clone())),
        }
    }
    if !vary.is_empty() {
        flags.insert("vary".to_owned(), vary.into());
    }
    flags
}

/// The command of a cell that writes into `out`, on so many threads where its flags do not say; `path` names the flags in
/// errors.
///
/// # Errors
/// Flags that the command has not, or values out of their domain.
pub fn cell_line(
    path: &Path,
    command: &str,
    flags: &Map<String, Value>,
    out: &Path,
    threads: Option<usize>,
) -> Result<Cli> {
    let text = Value::Object(flags.clone()).to_string();
    let mut line = parse::line(command, yaml::parse(&text).map_err(Error::file(path))?, path)?;
    let mut own: OsString = "--out=".into();
    own.push(out);
    line.push(own);
    if let Some(threads) = threads.filter(|_| !flags.contains_key("threads")) {
        line.push(format!("--threads={threads}").into());
    }
    match parse::parse(line) {
        Ok((_, cli)) => Ok(cli),
        Err(Failure::Error(error)) => Err(error),
        Err(Failure::Usage(error)) => {
            let text = error.to_string();
            let text = text.split("\n\n").next().unwrap_or_default();
            let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
            Err(Error::file(path)(line.strip_prefix("error: ").unwrap_or(&line).to_owned()))
        }
        Err(Failure::Closed) => Err(Error::Interrupted),
    }
}

/// All flags of a command that may change its result with their values, also those that nobody gave.
pub fn resolved(command: &Command) -> Result<BTreeMap<String, Value>> {
    let value = match command {
        Command::Probe(args) => serde_json::to_value(args),
        Command::Compare(args) => serde_json::to_value(args),
        Command::TrainLora(args) => serde_json::to_value(args),
        Command::Capture(args) => serde_json::to_value(args),
        _ => unreachable!("sweep: the command was checked"),
    };
    let mut all: BTreeMap<String, Value> = value.and_then(serde_json::from_value).map_err(Error::file("flags"))?;
    all.retain(|flag, _| !WITHOUT_EFFECT.contains(&flag.as_str()));
    Ok(all)
}

fn cell(
    name: &str,
    levels: Map<String, Value>,
    flags: Map<String, Value>,
    command: &Command,
    inputs: &mut Inputs,
) -> Result<Cell> {
    let all = resolved(command)?;
    if let Command::Probe(args) = command {
        for varied in &args.vary {
            if Vary::parse(varied)?.factor == Factor::Model {
                return Err(Error::argument("vary", "models as values of the flag model of the grid", varied));
            }
        }
    }
    let inputs = inputs.of_flags(&all)?;
    let model = all.get("model").map(word).unwrap_or_default();
    let shares = shares(command, &all);
    let key = Identity { command: name, flags: all, inputs }.key();
    Ok(Cell { key, levels, flags, shares, model })
}

/// What cells must have in common that share passes, or the loaded model alone; none for one that goes alone.
fn shares(command: &Command, flags: &BTreeMap<String, Value>) -> Option<String> {
    let same = |in_common: &dyn Fn(&str) -> bool| {
        let flags: BTreeMap<_, _> = flags.iter().filter(|(flag, _)| in_common(flag)).collect();
        serde_json::to_string(&flags).ok()
    };
    match command {
        Command::Probe(args) if args.plan.is_none() => {
            same(&|flag| OF_MODEL.contains(&flag) || OF_PASSES.contains(&flag))
        }
        Command::Compare(_) | Command::Capture(_) => same(&|flag| OF_MODEL.contains(&flag)),
        Command::TrainLora(args) if train_lora::is_run(args) => same(&|flag| !train_lora::APART.contains(&flag)),
        _ => None,
    }
}
