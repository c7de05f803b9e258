//! Files of edits (`--edit FILE.yaml`): a list of mappings, each what is done to some sites of some layers at some positions.
//!
//! | key | |
//! |---|---|
//! | `site` | a hook site by any of its names, such as `resid_post` or `blocks.3.attn.hook_z` |
//! | `layers` | `all` (as if left out), a number, a list of numbers, or a text such as `0-3` |
//! | `positions` | `last`, `all`, `query`, `demonstrations`, or a list of numbers, from 0, negative ones from the end |
//! | `op` | `add`, `replace`, `scale`, `zero`, `mean`, `project_out` |
//! | `value` | `FILE.safetensors#tensor`, `[C]` or `[rows, C]`; or `FILE.gguf`, a control vector |
//! | `scale` | the factor of `scale`; of `add`, `replace` and `mean` what multiplies the value (1 if left out) |
//!
//! Paths are relative to the file. A value of several rows goes row by row to a list of as many positions; `mean` takes the mean
//! of the rows. A control vector is added to `resid_post` of every layer that it has a direction for, or of those of `layers`, at
//! all positions if none are named.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::atomic;
use super::control_vector::ControlVector;
use super::json::{Fields, StrictValue};
use super::safetensors::Checkpoint;
use super::yaml;
use crate::error::nearest;
use crate::{Error, Result};

const KEYS: [&str; 6] = ["site", "layers", "positions", "op", "value", "scale"];
const OPS: [&str; 6] = ["add", "replace", "scale", "zero", "mean", "project_out"];

/// Which tokens of a sequence are edited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Positions {
    /// The last one; of a prompt whose answers are scored the prompt's last; in a generation that and each new one.
    Last,
    /// Every one; of a prompt whose answers are scored the prompt's; in a generation those and all new ones.
    All,
    /// These, from 0, negative ones from the end; in a generation the prompt's.
    At(Vec<i64>),
    /// Those of the query.
    Query,
    /// Those of the demonstrations.
    Demonstrations,
}

impl Positions {
    /// Whether a token that a generation adds is one of them.
    pub fn include_new(&self) -> bool {
        matches!(self, Self::Last | Self::All)
    }
}

/// Rows `[rows, width]` that an edit takes its values from.
#[derive(Clone, Debug, PartialEq)]
pub struct Values {
    /// All rows, one after another.
    pub rows: Vec<f32>,
    /// Elements of a row.
    pub width: usize,
}

impl Values {
    /// A single row, of all positions.
    pub fn one(vector: Vec<f32>) -> Self {
        Self { width: vector.len(), rows: vector }
    }

    /// Number of rows, each of `width` elements.
    pub fn count(&self) -> usize {
        self.rows.len() / self.width.max(1)
    }

    fn times(mut self, factor: f64) -> Self {
        self.rows.iter_mut().for_each(|x| *x = (f64::from(*x) * factor) as f32);
        self
    }
}

/// What is done to a row x. Of `Add` and `Replace` the values have one row for all positions, or one for each position of a
/// list, in its order.
#[derive(Clone, Debug, PartialEq)]
pub enum EditOp {
    /// `x + v`.
    Add(Values),
    /// `v`.
    Replace(Values),
    /// `s x`.
    Scale(f64),
    /// 0 in every element: zero ablation.
    Zero,
    /// `x - (x . v) v / (v . v)`, v of any length but 0.
    ProjectOut(Vec<f32>),
}

impl EditOp {
    /// Mean ablation: the replacement by the mean of `values`, summed in `f64` in row order.
    pub fn mean(values: &Values) -> Self {
        let mut sum = vec![0.0f64; values.width];
        for row in values.rows.chunks_exact(values.width) {
            sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
        }
        let count = values.count() as f64;
        Self::Replace(Values::one(sum.iter().map(|sum| (sum / count) as f32).collect()))
    }

    /// The values of a row, if it has any.
    pub fn values(&self) -> Option<(&[f32], usize)> {
        match self {
            Self::Add(values) | Self::Replace(values) => Some((&values.rows, values.width)),
            Self::ProjectOut(direction) => Some((direction, direction.len())),
            Self::Scale(_) | Self::Zero => None,
        }
    }
}

/// What an entry does.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// The same at all its layers.
    Op(EditOp),
    /// Adds each block's own vector to what it leaves.
    Control(BTreeMap<usize, Vec<f32>>),
}

/// An entry of a file; sites and layers are what a model makes of them.
#[derive(Clone, Debug, PartialEq)]
pub struct EditEntry {
    /// Path of the file that the entry stands in, for errors.
    pub path: String,
    /// Where it stands in the file, `[2]`.
    pub at: String,
    /// The name of a site.
    pub site: String,
    /// `all`, or numbers and ranges.
    pub layers: String,
    /// The tokens of each sequence whose rows are edited.
    pub positions: Positions,
    /// What is done to those rows.
    pub action: Action,
}

/// What the key `value` holds.
#[derive(Clone, Copy)]
enum Given<'a> {
    /// `FILE.safetensors#tensor`, or `FILE.gguf`.
    Named(&'a str),
    /// The rows themselves.
    Rows(&'a Values),
}

impl<'a> Given<'a> {
    fn name(self) -> Option<&'a str> {
        match self {
            Self::Named(name) => Some(name),
            Self::Rows(_) => None,
        }
    }
}

/// Reads a file of edits.
///
/// # Errors
/// What is no list of mappings with the keys of this module's documentation; a value that is missing, of another form, not
/// finite, or where none belongs.
pub fn read(path: impl AsRef<Path>) -> Result<Vec<EditEntry>> {
    let path = path.as_ref();
    let text = atomic::read_to_string(path)?;
    if text.trim().is_empty() {
        return Err(Error::field(path, "top level", "a list of edits", "an empty file"));
    }
    let StrictValue(value) = yaml::parse(&text).map_err(Error::file(path))?;
    entries(path, &value, &[])
}

/// The same of a list that is no file's, whose relative paths are the process's: `name` stands for it in errors. A `value` may be
/// the number of one of `values`.
///
/// # Errors
/// As [`read`]; a number beyond those of the values.
pub fn entries(name: impl AsRef<Path>, list: &Value, values: &[Values]) -> Result<Vec<EditEntry>> {
    let path = name.as_ref();
    let entries: Vec<EditEntry> = Fields::of_list(path, list)?
        .iter()
        .enumerate()
        .map(|(i, fields)| entry(i, fields, values))
        .collect::<Result<_>>()?;
    match entries.is_empty() {
        true => Err(Error::field(path, "top level", "at least one edit", "an empty list")),
        false => Ok(entries),
    }
}

fn entry(i: usize, fields: &Fields, given: &[Values]) -> Result<EditEntry> {
    for key in fields.keys() {
        if !KEYS.contains(&key) {
            let nearest = nearest(key, KEYS).unwrap_or_default();
            return Err(fields.error(key, format!("one of the keys {} (nearest: {nearest})", KEYS.join(", "))));
        }
        if fields.get(key).is_none() {
            return Err(fields.error(key, "a value, or no such key"));
        }
    }
    let op = fields.require("op", fields.str("op")?, &format!("one of {}", OPS.join(", ")))?;
    let value = match fields.get("value").and_then(Value::as_u64).filter(|_| !given.is_empty()) {
        Some(number) => {
            let values = usize::try_from(number).ok().and_then(|number| given.get(number));
            Some(Given::Rows(fields.require("value", values, &format!("a number below {}", given.len()))?))
        }
        None => fields.str("value")?.map(Given::Named),
    };
    let control = value.and_then(Given::name).filter(|value| !value.contains('#') && value.ends_with(".gguf"));
    let action = match control {
        Some(file) => control_vector(fields, op, file)?,
        None => Action::Op(operation(fields, op, value)?),
    };
    // A control vector says itself where it belongs.
    let or = |key: &str, default: &'static str, expected: &str| -> Result<&str> {
        let given = fields.str(key)?;
        fields.require(key, given.or(control.map(|_| default)), expected)
    };
    let site = or("site", "resid_post", "the name of a hook site")?.to_owned();
    let positions = match fields.get("positions") {
        None if control.is_some() => Positions::All,
        _ => positions(fields)?,
    };
    let path = fields.path().display().to_string();
    Ok(EditEntry { path, at: format!("[{i}]"), site, layers: layers(fields)?, positions, action })
}

fn layers(fields: &Fields) -> Result<String> {
    let number = |value: &Value| value.as_u64().map(|n| n.to_string());
    let text = match fields.get("layers") {
        None => Some("all".to_owned()),
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Array(list)) if !list.is_empty() => {
            list.iter().map(number).collect::<Option<Vec<_>>>().map(|list| list.join(","))
        }
        Some(other) => number(other),
    };
    fields.require("layers", text, "all, a number, a list of numbers, or a text such as 0-3")
}

fn positions(fields: &Fields) -> Result<Positions> {
    let named = |name: &str| match name {
        "last" => Some(Positions::Last),
        "all" => Some(Positions::All),
        "query" => Some(Positions::Query),
        "demonstrations" => Some(Positions::Demonstrations),
        _ => None,
    };
    let found = match fields.get("positions") {
        Some(Value::String(name)) => named(name),
        Some(Value::Array(list)) if !list.is_empty() => {
            list.iter().map(Value::as_i64).collect::<Option<Vec<_>>>().map(Positions::At)
        }
        _ => None,
    };
    fields.require("positions", found, "last, all, query, demonstrations, or a list of positions")
}

/// The operation of an entry, whose value is none or a tensor.
fn operation(fields: &Fields, op: &str, value: Option<Given<'_>>) -> Result<EditOp> {
    let scale = fields.f64("scale")?;
    let none = |key: &str| match fields.has(key) {
        true => Err(fields.error(key, format!("no {key} of the operation {op}"))),
        false => Ok(()),
    };
    if matches!(op, "scale" | "zero") {
        none("value")?;
    }
    if matches!(op, "zero" | "project_out") {
        none("scale")?;
    }
    let values = || -> Result<Values> {
        let value = fields.require("value", value, "FILE.safetensors#tensor, or FILE.gguf")?;
        let values = match value {
            Given::Named(name) => tensor(fields, name)?,
            Given::Rows(values) => values.clone(),
        };
        Ok(values.times(scale.unwrap_or(1.0)))
    };
    Ok(match op {
        "add" => EditOp::Add(values()?),
        "replace" => EditOp::Replace(values()?),
        "mean" => EditOp::mean(&values()?),
        "scale" => EditOp::Scale(fields.require("scale", scale, "the factor, a finite number")?),
        "zero" => EditOp::Zero,
        "project_out" => {
            let values = values()?;
            if values.count() != 1 {
                return Err(fields.error("value", format!("one direction, not {} rows", values.count())));
            }
            EditOp::ProjectOut(values.rows)
        }
        _ => return Err(fields.error("op", format!("one of {}", OPS.join(", ")))),
    })
}

/// The tensor `FILE.safetensors#tensor`.
fn tensor(fields: &Fields, value: &str) -> Result<Values> {
    let (file, name) = value
        .split_once('#')
        .filter(|(file, name)| !file.is_empty() && !name.is_empty())
        .ok_or_else(|| fields.error("value", "FILE.safetensors#tensor, or FILE.gguf"))?;
    let (rows, width) = Checkpoint::open(beside(fields, file))?.rows(name)?;
    Ok(Values { rows, width })
}

fn control_vector(fields: &Fields, op: &str, file: &str) -> Result<Action> {
    if op != "add" {
        return Err(fields.error("op", "add, of a control vector"));
    }
    let scale = fields.f64("scale")?.unwrap_or(1.0);
    let ControlVector { directions, .. } = ControlVector::read(beside(fields, file))?;
    let scaled = |(layer, vector)| (layer, Values::one(vector).times(scale).rows);
    Ok(Action::Control(directions.into_iter().map(scaled).collect()))
}

/// A path that is relative to the file.
fn beside(fields: &Fields, file: &str) -> std::path::PathBuf {
    fields.path().parent().unwrap_or(Path::new("")).join(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_is_that_of_the_rows() {
        let values = Values { rows: vec![1.0, 2.0, 3.0, 6.0], width: 2 };
        assert_eq!(EditOp::mean(&values), EditOp::Replace(Values::one(vec![2.0, 4.0])));
    }
}
