//! What an adapter's directory or GGUF file holds, what PEFT would make of it, and what llamaprobe does.
//!
//! PEFT's loader forgives a lot in silence; llamaprobe's reader refuses what it would not apply exactly. This describes
//! an adapter without either, so that a directory that one of them mistreats can still be described. What PEFT does
//! was observed with its version 0.21.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::resolve::{self, ModelFiles};
use super::{Failure, output};
use crate::Result;
use crate::arch::ModelConfig;
use crate::formats::adapter::{self, Ia3Config, LoraConfig, PromptKind};
use crate::formats::gguf::Gguf;
use crate::formats::json as json_file;

mod checks;
mod state;

use state::{Loaded, PREFIX, State};

/// The one tensor of a soft prompt.
const ROWS: &str = "prompt_embeddings";

/// The description of an adapter.
pub struct PeftReport {
    /// What `adapter_config.json` holds, as it is, or the metadata of a GGUF file.
    config: Value,
    /// Every adapted projection: its path, and its rank, or of a vector of IA3 what it multiplies.
    modules: Vec<Value>,
    /// Number of tensors in the file.
    tensors: usize,
    /// Number of their elements.
    parameters: usize,
    /// What PEFT would do that the directory's author may not expect.
    peft: Vec<String>,
    /// The tensors of the file that PEFT would load, and those that it would not.
    loaded: Vec<String>,
    ignored: Vec<String>,
    /// The error of llamaprobe's own reader.
    refusal: Option<String>,
}

impl PeftReport {
    /// Describes an adapter for a model.
    pub fn new(path: &Path, files: &ModelFiles) -> Result<Self> {
        if Gguf::is_one(path) {
            return Self::of_gguf(path, files);
        }
        let [config_path, weights] = adapter::files(path)?;
        let config = json_file::read(&config_path)?;
        let file = adapter::open_weights(&weights)?;
        let level = adapter::missing_level(file.names(), files.config.family);
        let whole = |name: &str| match level.zip(name.strip_prefix(PREFIX)) {
            Some((level, rest)) => format!("{PREFIX}{level}{rest}"),
            None => adapter::todays_name(name, files.config.family).into_owned(),
        };
        let shapes: BTreeMap<String, Vec<usize>> = file.iter().map(|t| (whole(&t.name), t.shape.to_vec())).collect();
        let (mut peft, loaded) = of_peft(&config_path, &config, &shapes, &files.config);
        if let Some(level) = level {
            peft.insert(
                0,
                format!("applies it to the body (AutoModel), not with a head around that, where names have {level}"),
            );
        }
        let modules = file.iter().filter_map(|t| {
            let name = t.name.strip_prefix(PREFIX).unwrap_or(&t.name);
            let first = t.shape.first().copied().unwrap_or(0);
            match (name.split_once(".lora_A"), name.split_once(".ia3_l")) {
                (Some((module, _)), _) => Some(json!({"module": module, "rank": first})),
                (None, Some((module, _))) => {
                    let multiplies = if first == 1 { "input" } else { "output" };
                    Some(json!({"module": module, "multiplies": multiplies}))
                }
                _ => None,
            }
        });
        Ok(Self {
            modules: modules.collect(),
            config,
            tensors: shapes.len(),
            parameters: shapes.values().map(|shape| shape.iter().product::<usize>()).sum(),
            peft,
            loaded: [loaded.plain, loaded.beside, loaded.replaced].concat(),
            ignored: loaded.ignored,
            refusal: resolve::read_adapter(path, files).err().map(|e| e.to_string()),
        })
    }

    /// Describes an adapter in llama.cpp's form.
    fn of_gguf(path: &Path, files: &ModelFiles) -> Result<Self> {
        let file = Gguf::read(path)?;
        let modules = file.entries.iter().filter_map(|(name, entry)| {
            Some(json!({"module": name.strip_suffix(".lora_a")?, "rank": entry.dims.last()}))
        });
        Ok(Self {
            modules: modules.collect(),
            config: file.metadata.iter().map(|(key, value)| (key.clone(), value.json())).collect(),
            tensors: file.entries.len(),
            parameters: file.entries.values().map(|entry| entry.dims.iter().product::<usize>()).sum(),
            peft: vec!["stops: ValueError, it reads directories with adapter_config.json alone".to_owned()],
            loaded: Vec::new(),
            ignored: Vec::new(),
            refusal: resolve::read_adapter(path, files).err().map(|e| e.to_string()),
        })
    }

    /// The description as JSON, for `--json`.
    pub fn json(&self) -> Value {
        json!({
            "config": self.config, "tensors": self.tensors, "parameters": self.parameters, "modules": self.modules,
            "peft": self.peft, "loaded": self.loaded, "ignored": self.ignored, "readable": self.refusal.is_none(), "refusal": self.refusal,
        })
    }

    /// Prints the description as a table, with a line for everything that PEFT would do silently.
    pub fn print(&self) -> Result<(), Failure> {
        output::line("")?;
        let text = |key: &str| self.config.get(key).map_or("-".to_owned(), |v| v.to_string().replace('"', ""));
        let soft = self.config.get("num_virtual_tokens").is_some();
        let keys: &[&str] = match soft {
            _ if self.config.get("general.architecture").is_some() => {
                &["general.architecture", "adapter.type", "adapter.lora.alpha"]
            }
            _ if self.config["peft_type"] == "IA3" => {
                &["peft_type", "target_modules", "feedforward_modules", "base_model_name_or_path"]
            }
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

/// What PEFT says and does, and what becomes of the file's tensors.
fn of_peft(
    path: &Path,
    config: &Value,
    file: &BTreeMap<String, Vec<usize>>,
    model: &ModelConfig,
) -> (Vec<String>, Loaded) {
    let stops = |why: &str| (vec![format!("stops: {why}")], Loaded::default());
    let kind = match config.get("peft_type").and_then(Value::as_str) {
        None => return stops("KeyError, peft_type is missing"),
        Some(kind) => kind,
    };
    let (mut found, loaded) = match PromptKind::parse(kind) {
        Some(kind) => of_prompt(kind, config, file, model),
        None if kind == "LORA" => of_lora(path, config, file, model),
        None if kind == "IA3" => of_ia3(path, config, file, model),
        None if checks::TYPES.contains(&kind) => {
            return (vec![format!("loads an adapter of type {kind}, which is not described here")], Loaded::default());
        }
        None => return stops(&format!("KeyError, {kind:?} is no peft_type")),
    };
    if let Some(why) = &loaded.stops {
        found.push(format!("stops: {why}"));
        return (found, Loaded::default());
    }
    found.extend(checks::dropped(config));
    let say = |list: &[String], before: &str, behind: &str| {
        list.first().map(|name| format!("{before} {} tensors (such as {name}){behind}", list.len()))
    };
    found.extend(say(&loaded.missing, "warns of", " that the file does not have, and goes on from how it starts them"));
    found.extend(say(&loaded.beside, "loads, beside A and B,", ""));
    found.extend(say(&loaded.replaced, "replaces by the file's", " what the model has"));
    found.extend(say(
        &loaded.ignored,
        "ignores",
        " without a warning: nothing that the configuration makes has their names",
    ));
    (found, loaded)
}

/// What PEFT does with a LoRA.
fn of_lora(
    path: &Path,
    config: &Value,
    file: &BTreeMap<String, Vec<usize>>,
    model: &ModelConfig,
) -> (Vec<String>, Loaded) {
    let stopped = |why: String| Loaded { stops: Some(why), ..Loaded::default() };
    if let Some(why) = checks::stops(config, model.family) {
        return (Vec::new(), stopped(why));
    }
    let found = checks::silent(config, model.family);
    let lora = LoraConfig::as_peft_takes_it(path, config, model.family);
    let state = lora.map_err(|error| error.to_string()).and_then(|lora| State::adapt(model, config, &lora));
    let (images, file): (BTreeMap<_, _>, BTreeMap<_, _>) =
        file.clone().into_iter().partition(|(name, _)| adapter::of_images(name, model.family));
    let mut found = found;
    if let Some(name) = images.keys().next() {
        let n = images.len();
        found.push(format!("loads {n} tensors (such as {name}) into the part of images, which is not described here"));
    }
    match state {
        Ok(state) => (found, state.load(&file, PREFIX)),
        Err(why) => (found, stopped(why)),
    }
}

/// What PEFT does with an IA3.
fn of_ia3(
    path: &Path,
    config: &Value,
    file: &BTreeMap<String, Vec<usize>>,
    model: &ModelConfig,
) -> (Vec<String>, Loaded) {
    let (whole, found) = match checks::ia3_with_defaults(config, model.family) {
        Ok(whole) => whole,
        Err(why) => return (Vec::new(), Loaded { stops: Some(why), ..Loaded::default() }),
    };
    let layers = model.num_hidden_layers;
    let slots = Ia3Config::of_value(path, &whole, model.family).and_then(|ia3| ia3.slots(model.family, layers));
    match slots {
        Ok(slots) => (found, State::with_vectors(model, config, &slots).load(file, PREFIX)),
        Err(error) => {
            (vec![format!("loads an IA3 whose settings are not described here ({error})")], Loaded::default())
        }
    }
}

/// What PEFT does with a soft prompt.
fn of_prompt(
    kind: PromptKind,
    config: &Value,
    file: &BTreeMap<String, Vec<usize>>,
    model: &ModelConfig,
) -> (Vec<String>, Loaded) {
    let mut found = Vec::new();
    if let Some(why) = checks::prompt_stops(kind, config) {
        return (found, Loaded { stops: Some(why), ..Loaded::default() });
    }
    if !state::is_there(config, "task_type") {
        found.push("loads it and does not apply it: task_type is missing".to_owned());
    }
    if kind == PromptKind::PTuning || config.get("prefix_projection") == Some(&Value::Bool(true)) {
        found.push("has only what the MLP made: the MLP itself was not saved".to_owned());
    }
    found.push("cannot train it any further: ValueError with is_trainable".to_owned());
    found.push("puts it before the padding on the left, where there is any: other logits than without".to_owned());
    // Its model has one level less in the names, and its rows a place of their own.
    let mut state = State::new(model);
    state.save(model, config, &state.modules(model.family));
    let (own, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
        file.clone().into_iter().partition(|(name, _)| [ROWS, "word_embeddings.weight"].contains(&name.as_str()));
    let mut loaded = state.load(&others, "base_model.");
    let expected = checks::rows(kind, config, model);
    let stops = match own.get(ROWS) {
        None => Some(format!("KeyError, the file has no {ROWS}")),
        Some(shape) if shape[..] != expected => {
            Some(format!("size mismatch, {ROWS} is {shape:?}, expected {expected:?}"))
        }
        Some(_) => None,
    };
    loaded.stops = loaded.stops.or(stops);
    for name in own.into_keys() {
        if name == ROWS { &mut loaded.plain } else { &mut loaded.replaced }.push(name);
    }
    (found, loaded)
}
