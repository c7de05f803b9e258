//! What an adapter directory holds, what PEFT would make of it, and what llamaprobe does.
//!
//! PEFT's loader forgives a lot in silence; llamaprobe's reader refuses what it would not apply exactly. This describes
//! an adapter without either, so that a directory that one of them mistreats can still be described. What PEFT does
//! was observed with its version 0.21.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::resolve::ModelFiles;
use super::{Failure, output};
use crate::Result;
use crate::arch::Family;
use crate::formats::adapter::{Adapter, LoraAdapter, LoraConfig, Modules, PromptKind, Slot};
use crate::formats::json as json_file;
use crate::formats::safetensors::Checkpoint;

/// What the names of PEFT's tensors begin with.
const PREFIX: &str = "base_model.model.";

/// The description of an adapter directory.
pub struct PeftReport {
    /// What `adapter_config.json` holds, as it is.
    config: Value,
    /// `(module path, rank)` of every adapted projection.
    modules: Vec<(String, usize)>,
    /// Number of tensors in the file.
    tensors: usize,
    /// Number of their elements.
    parameters: usize,
    /// What PEFT would do that the directory's author may not expect.
    peft: Vec<String>,
    /// The error of llamaprobe's own reader.
    refusal: Option<String>,
}

impl PeftReport {
    /// Describes an adapter for a model.
    pub fn new(path: &Path, files: &ModelFiles) -> Result<Self> {
        let config_path = path.join("adapter_config.json");
        let config = json_file::read(&config_path)?;
        let file = Checkpoint::open(path.join("adapter_model.safetensors"))?;
        let (tensors, parameters) = (file.len(), file.iter().map(|t| t.shape.iter().product::<usize>()).sum());
        if let Some(kind) = config.get("peft_type").and_then(Value::as_str).and_then(PromptKind::parse) {
            let peft = of_prompt(kind, &config, &file);
            let refusal = Adapter::read(path, &files.config).err().map(|e| e.to_string());
            return Ok(Self { config, modules: Vec::new(), tensors, parameters, peft, refusal });
        }
        let family = files.config.family;
        let mut peft = of_config(&config, family);
        match as_peft_takes_it(&config_path, &config, family).slots(family, files.config.num_hidden_layers) {
            Ok(slots) => peft.extend(of_tensors(&file, &expected(&slots, files))),
            Err(error) => peft.push(format!("meets settings that do not fit this model: {error}")),
        }
        let modules = file.iter().filter_map(|t| {
            let module = t.name.strip_prefix(PREFIX).unwrap_or(&t.name).split(".lora_A").next()?.to_owned();
            t.name.contains(".lora_A").then(|| (module, t.shape.first().copied().unwrap_or(0)))
        });
        let refusal = LoraAdapter::read(path, &files.config).err().map(|e| e.to_string());
        Ok(Self { modules: modules.collect(), config, tensors, parameters, peft, refusal })
    }

    /// The description as JSON, for `--json`.
    pub fn json(&self) -> Value {
        let modules: Vec<Value> =
            self.modules.iter().map(|(module, rank)| json!({"module": module, "rank": rank})).collect();
        json!({
            "config": self.config, "tensors": self.tensors, "parameters": self.parameters, "modules": modules,
            "peft": self.peft, "readable": self.refusal.is_none(), "refusal": self.refusal,
        })
    }

    /// Prints the description as a table, with a line for everything that PEFT would do silently.
    pub fn print(&self) -> Result<(), Failure> {
        output::line("")?;
        let text = |key: &str| self.config.get(key).map_or("-".to_owned(), |v| v.to_string().replace('"', ""));
        let soft = self.config.get("num_virtual_tokens").is_some();
        let keys: &[&str] = match soft {
            true => &["peft_type", "num_virtual_tokens", "token_dim", "encoder_hidden_size", "base_model_name_or_path"],
            false => &["peft_type", "r", "lora_alpha", "use_rslora", "target_modules", "base_model_name_or_path"],
        };
        let mut rows: Vec<Vec<String>> = keys.iter().map(|key| vec![(*key).to_owned(), text(key)]).collect();
        rows.push(vec!["modules".into(), self.modules.len().to_string()]);
        rows.push(vec!["tensors".into(), self.tensors.to_string()]);
        rows.push(vec!["parameters".into(), self.parameters.to_string()]);
        output::table(&["adapter", ""], rows)?;
        match self.peft.as_slice() {
            [] => output::line("PEFT: loads it as it is")?,
            found => found.iter().try_for_each(|line| output::line(format_args!("PEFT: {line}")))?,
        }
        match &self.refusal {
            None => output::line("llamaprobe: reads it"),
            Some(error) => output::line(format_args!("llamaprobe: refuses it: {error}")),
        }
    }
}

/// What PEFT does with a soft prompt.
fn of_prompt(kind: PromptKind, config: &Value, file: &Checkpoint) -> Vec<String> {
    let mut found = Vec::new();
    let text = |key: &str| config.get(key).and_then(Value::as_str);
    if text("task_type").is_none() {
        found.push("loads it and does not apply it: task_type is missing".to_owned());
    }
    let rows = config.get("num_virtual_tokens").and_then(Value::as_u64);
    match (rows, file.get("prompt_embeddings")) {
        (None, _) => found.push("stops: TypeError, num_virtual_tokens is missing".to_owned()),
        (_, None) => found.push("finds no prompt_embeddings".to_owned()),
        (Some(rows), Some(tensor)) if tensor.shape.first() != Some(&(rows as usize)) => {
            found.push(format!("stops: size mismatch, prompt_embeddings is {:?}, of {rows} rows", tensor.shape));
        }
        _ => {}
    }
    if text("prompt_tuning_init") == Some("TEXT") && text("tokenizer_name_or_path").is_none() {
        found.push("stops: ValueError, the start is a TEXT and tokenizer_name_or_path is missing".to_owned());
    }
    if kind == PromptKind::PTuning || config.get("prefix_projection") == Some(&Value::Bool(true)) {
        found.push("has only what the MLP made: the MLP itself was not saved".to_owned());
    }
    found.push("cannot train it any further: ValueError with is_trainable".to_owned());
    found.push("puts it before the padding on the left, where there is any: other logits than without".to_owned());
    found
}

/// What PEFT assumes where `adapter_config.json` is silent.
fn of_config(config: &Value, family: Family) -> Vec<String> {
    let mut found = Vec::new();
    match config.get("peft_type").and_then(Value::as_str) {
        None => found.push("stops: KeyError, peft_type is missing".to_owned()),
        Some("LORA") => {}
        Some(other) => found.push(format!("loads a {other}, which is not a LoRA")),
    }
    let modules = defaults(family).join(" and ");
    for (key, default) in [("r", "8"), ("lora_alpha", "8"), ("target_modules", modules.as_str())] {
        if config.get(key).is_none_or(Value::is_null) {
            found.push(format!("silently takes {default} for {key}, which is missing"));
        }
    }
    found
}

/// The modules that PEFT takes where the configuration names none.
fn defaults(family: Family) -> Vec<String> {
    family.default_modules().iter().map(|&target| family.short_name(target).to_owned()).collect()
}

/// The configuration as PEFT would take it, silently filled up.
fn as_peft_takes_it(path: &Path, config: &Value, family: Family) -> LoraConfig {
    LoraConfig::read(path, family).unwrap_or_else(|_| {
        let modules = match config.get("target_modules") {
            Some(Value::String(all)) if all == "all-linear" => Modules::AllLinear,
            Some(Value::String(regex)) => Modules::Regex(regex.clone()),
            Some(Value::Array(list)) => {
                Modules::List(list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
            }
            _ => Modules::List(defaults(family)),
        };
        let r = config.get("r").and_then(Value::as_u64).map_or(8, |r| r as usize);
        LoraConfig::new(r, config.get("lora_alpha").and_then(Value::as_f64).unwrap_or(8.0), modules)
    })
}

/// Name and shape of every tensor that PEFT will look for.
fn expected(slots: &[Slot], files: &ModelFiles) -> BTreeMap<String, [usize; 2]> {
    let tensors = |slot: &Slot| {
        let (input, output) = slot.target.widths(files.config.block_widths());
        let path = files.config.family.path(slot.layer, slot.target);
        [("lora_A", [slot.r, input]), ("lora_B", [output, slot.r])]
            .map(|(side, shape)| (format!("{PREFIX}{path}.{side}.weight"), shape))
    };
    slots.iter().flat_map(tensors).collect()
}

/// What PEFT does with tensors that it does not expect, and without those that it does.
fn of_tensors(file: &Checkpoint, expected: &BTreeMap<String, [usize; 2]>) -> Vec<String> {
    // `lora_A.default.weight`, as in a model's own state, is taken as `lora_A.weight`.
    let plain: BTreeMap<String, Vec<usize>> =
        file.iter().map(|t| (t.name.replace(".default.weight", ".weight"), t.shape.to_vec())).collect();
    let mut found = Vec::new();
    let example = |of: &[&String]| of.first().map_or(String::new(), |name| format!(" (such as {name})"));
    if !plain.is_empty() && plain.keys().all(|name| !name.starts_with(PREFIX)) {
        found.push(format!("finds no tensor, since no name begins with {PREFIX}: a warning, then the base model"));
        return found;
    }
    if let Some((name, shape)) =
        plain.iter().find(|(name, shape)| expected.get(*name).is_some_and(|e| e[..] != shape[..]))
    {
        found.push(format!("stops: size mismatch, {name} is {shape:?}, expected {:?}", expected[name]));
    }
    let missing: Vec<&String> = expected.keys().filter(|name| !plain.contains_key(*name)).collect();
    if !missing.is_empty() {
        found.push(format!("warns of {} missing tensors{}, and goes on", missing.len(), example(&missing)));
    }
    let extra: Vec<&String> = plain.keys().filter(|name| !expected.contains_key(*name)).collect();
    if !extra.is_empty() {
        let text = format!("{} tensors{}", extra.len(), example(&extra));
        found.push(format!("ignores {text} without a warning: target_modules does not name their modules"));
    }
    found
}
