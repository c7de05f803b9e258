//! Models that another library quantised before they were saved: whose format it is, and their weights as such.

use std::path::Path;

use serde_json::Value;

use super::json::{self, Fields};
use super::safetensors::Checkpoint;
use super::{bitsandbytes, torchao};
use crate::quantization::BlockFormat;
use crate::{Error, Result};

const CONFIG: &str = "quantization_config";

/// A checkpoint with its quantised weights as such, of the model of this directory or `config.json`.
///
/// # Errors
/// As [`bitsandbytes::quantized`] and [`torchao::quantized`]; a `quantization_config` that says `load_in_4bit` or `load_in_8bit`
/// where no weight is of this kind, or denies it where one is.
pub fn quantized_model(path: &Path, checkpoint: Checkpoint) -> Result<Checkpoint> {
    let checkpoint = torchao::quantized(bitsandbytes::quantized(checkpoint)?)?;
    let path = if path.is_dir() { path.join("config.json") } else { path.to_path_buf() };
    let value = json::read(&path)?;
    let f = Fields::new(&path, &value)?;
    let Some(said) = f.object(CONFIG)? else { return Ok(checkpoint) };
    for (key, int8) in [("load_in_4bit", false), ("load_in_8bit", true)] {
        let mut weights = checkpoint.quantized();
        let weight = weights.find(|view| matches!(view.format, BlockFormat::Int8Rows) == int8);
        let (expected, found) = match (said.bool(key)?, weight) {
            (Some(true), None) => ("false, as no weight is quantised so".to_owned(), "true"),
            (Some(false), Some(view)) => (format!("true, as {} is quantised so", view.name), "false"),
            _ => continue,
        };
        return Err(Error::field(&path, format!("{CONFIG}.{key}"), expected, found));
    }
    Ok(checkpoint)
}

/// Checks what `config.json` says of the quantisation of its weights.
///
/// # Errors
/// Another method than those of bitsandbytes and torchao, or a format of theirs that is not decoded.
pub(super) fn check_config(f: &Fields) -> Result<()> {
    let Some(config) = f.object(CONFIG)? else { return Ok(()) };
    let implied = ["load_in_4bit", "load_in_8bit"].iter().any(|key| config.get(key) == Some(&Value::Bool(true)));
    match config.str("quant_method")? {
        Some("bitsandbytes") => bitsandbytes::check_config(&config),
        None if implied => bitsandbytes::check_config(&config),
        Some("torchao") => torchao::check_config(&config),
        Some(other) => {
            let what = format!("{}: {CONFIG}.quant_method", f.path().display());
            Err(Error::unsupported(what, other, "bitsandbytes, torchao"))
        }
        None => Err(config.error("quant_method", "bitsandbytes or torchao")),
    }
}
