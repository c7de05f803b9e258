//! What a table says of a cell: rows of values, as its command has written them.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::formats::digest::Digests;
use crate::formats::{atomic, json as json_file};
use crate::{Error, Result};

/// The report of a probe or a comparison in the directory of a cell.
const REPORT: &str = "report.json";
/// What a training or a capture has printed as JSON, in the directory of its cell.
pub const RESULT: &str = "result.json";
/// The runs of a training that is a grid itself.
const RUNS: &str = "results.json";
/// The log of a training.
const LOG: &str = "trainer_log.jsonl";

/// A row of the table: a cell, or a part of one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Values {
    /// Which part of the cell: an arm of a comparison, a condition of a probe, a run of a training; empty where it is all.
    pub part: Map<String, Value>,
    /// The values by name; `null` where there is none. Those of several seeds are a mean, with the SD as `NAME_sd`.
    pub values: Map<String, Value>,
}

/// The rows of a cell, of what a command has written into its directory. No row has a time or a path.
///
/// # Errors
/// A file is not there or not what the command writes.
pub fn of_cell(command: &str, dir: &Path) -> Result<Vec<Values>> {
    match command {
        "probe" => probe(&dir.join(REPORT)),
        "compare" => compare(&dir.join(REPORT)),
        "train-lora" => training(dir),
        "capture" => capture(dir),
        other => Err(Error::unsupported("command", other, "probe, compare, train-lora, capture")),
    }
}

/// A field of a report, by its path.
fn get<'a>(path: &Path, value: &'a Value, fields: &[&str]) -> Result<&'a Value> {
    let found = fields.iter().try_fold(value, |value, field| value.get(field));
    found.ok_or_else(|| Error::field(path, fields.join("."), "what the command writes", "nothing"))
}

impl Values {
    /// Adds a mean, and its SD where there is one.
    fn mean_sd(&mut self, name: &str, value: &Value) {
        self.values.insert(name.to_owned(), value["mean"].clone());
        if !value["sd"].is_null() {
            self.values.insert(format!("{name}_sd"), value["sd"].clone());
        }
    }
}

/// A row for every condition.
fn probe(path: &Path) -> Result<Vec<Values>> {
    let report = json_file::read(path)?;
    let conditions = get(path, &report, &["conditions"])?.as_array().cloned().unwrap_or_default();
    let row = |condition: &Value| {
        let mut row = Values::default();
        // A single condition needs no name: its levels are flags of the cell.
        if conditions.len() > 1 {
            row.part = condition["levels"].as_object().cloned().unwrap_or_default();
        }
        let summary = get(path, condition, &["summary"])?;
        for score in ["accuracy", "log_prob"] {
            for arm in ["anchor", "icl", "it"] {
                row.mean_sd(&format!("{score}_{arm}"), get(path, summary, &[score, arm])?);
            }
            for further in summary["soft"].as_array().into_iter().flatten() {
                row.mean_sd(&format!("{score}_{}", further["arm"].as_str().unwrap_or_default()), &further[score]);
            }
        }
        if !summary["final_loss"].is_null() {
            row.mean_sd("final_loss", &summary["final_loss"]);
        }
        let layers = get(path, summary, &["layers"])?.as_array().cloned().unwrap_or_default();
        for name in ["update", "update_shuffled", "icl_it", "anchor_icl", "anchor_it"] {
            let of_layer = |layer: &Value| layer.get(name)?.get("mean")?.as_f64();
            let values: Vec<f64> = layers.iter().filter_map(of_layer).collect();
            let mean = (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
            row.values.insert(name.to_owned(), json!(mean));
        }
        Ok(row)
    };
    conditions.iter().map(row).collect()
}

/// A row for every arm, source, target and length.
fn compare(path: &Path) -> Result<Vec<Values>> {
    let report = json_file::read(path)?;
    let rows = get(path, &report, &["rows"])?.as_array().cloned().unwrap_or_default();
    let row = |of: &Value| {
        let mut row = Values::default();
        for name in ["arm", "source", "target", "length"] {
            row.part.insert(name.to_owned(), get(path, of, &[name])?.clone());
        }
        row.mean_sd("score", get(path, of, &["score"])?);
        Ok(row)
    };
    rows.iter().map(row).collect()
}

/// A row for every run.
fn training(dir: &Path) -> Result<Vec<Values>> {
    let grid = dir.join(RUNS);
    let (path, runs) = match grid.exists() {
        true => {
            let results = json_file::read(&grid)?;
            let runs = get(&grid, &results, &["runs"])?.as_array().cloned().unwrap_or_default();
            (grid, runs)
        }
        false => {
            let path = dir.join(RESULT);
            let result = json_file::read(&path)?;
            (path, vec![result])
        }
    };
    let last = last_losses(&dir.join(LOG))?;
    let row = |(i, run): (usize, &Value)| {
        let run = run.as_object().ok_or_else(|| Error::field(&path, "runs", "objects", "something else"))?;
        let mut row = Values::default();
        for (name, value) in run {
            match name.as_str() {
                // Where it lies; and what a run that goes on at its last checkpoint does not know.
                "adapter" | "tokens" => {}
                "loss" => drop(row.values.insert("loss".to_owned(), json!(last.get(i)))),
                "steps" => drop(row.values.insert("steps".to_owned(), value.clone())),
                "stopped_early" => drop(row.values.insert(name.clone(), json!(value.as_bool().map(u8::from)))),
                name if name.starts_with("eval_") => drop(row.values.insert(name.to_owned(), value.clone())),
                name => drop(row.part.insert(name.to_owned(), value.clone())),
            }
        }
        Ok(row)
    };
    runs.iter().enumerate().map(row).collect()
}

/// The loss of every run's last line in a log.
fn last_losses(path: &Path) -> Result<Vec<f64>> {
    let mut last: Vec<f64> = Vec::new();
    for (i, line) in atomic::read_to_string(path)?.lines().enumerate() {
        let line = json_file::parse(crate::formats::lines::at(path, i + 1), line)?;
        let run = line.get("run").and_then(Value::as_u64).unwrap_or(0) as usize;
        if let Some(loss) = line.get("loss").and_then(Value::as_f64) {
            last.resize(last.len().max(run + 1), f64::NAN);
            last[run] = loss;
        }
    }
    Ok(last)
}

/// One row: how much was captured, and the digest of it.
fn capture(dir: &Path) -> Result<Vec<Values>> {
    let path = dir.join(RESULT);
    let result = json_file::read(&path)?;
    let mut row = Values::default();
    for name in ["documents", "tokens"] {
        row.values.insert(name.to_owned(), get(&path, &result, &[name])?.clone());
    }
    let tensors = get(&path, &result, &["tensors"])?.as_array().map_or(0, Vec::len);
    row.values.insert("tensors".to_owned(), json!(tensors));
    let is_states = |path: &std::path::PathBuf| path.extension().is_some_and(|e| e == "safetensors" || e == "npy");
    let files: Vec<_> = atomic::entries(dir).into_iter().filter(is_states).collect();
    let mut digests = Digests::default();
    let digests = files.iter().map(|file| digests.of_file(file)).collect::<Result<Vec<_>>>()?;
    row.part.insert("sha256".to_owned(), json!(digests.join(" ")));
    Ok(vec![row])
}
