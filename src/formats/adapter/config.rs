//! `adapter_config.json` of a LoRA, in PEFT's terms: reading and writing.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::selection::{InitLoraWeights, LoraConfig, MAX_RANK, Modules};
use super::{Adapter, fields, tokens};
use crate::arch::Family;
use crate::formats::json::{self, Fields, show};
use crate::{Error, Result};

/// PEFT's rank and alpha where a file has none.
const DEFAULT: u32 = 8;

/// The modules of the part of images.
const IMAGES: &str = r"model\.vision_tower(\..*)?";

impl LoraConfig {
    /// Reads `adapter_config.json`.
    ///
    /// # Errors
    /// The file is missing or not JSON; `peft_type`, `r`, `lora_alpha` or `target_modules` is missing (PEFT would
    /// take defaults silently); a field asks for something that PEFT 0.21 computes and this library does not. Fields that
    /// PEFT passes over are warnings.
    pub fn read(path: impl AsRef<Path>, family: Family) -> Result<Self> {
        let path = path.as_ref();
        Self::of_value(path, &json::read(path)?, family)
    }

    /// The same of the file's content.
    pub(super) fn of_value(path: &Path, value: &Value, family: Family) -> Result<Self> {
        let f = Fields::new(path, value)?;
        let peft_type = f.require("peft_type", f.str("peft_type")?, "\"LORA\"")?;
        if peft_type != "LORA" {
            return Err(f.error("peft_type", "\"LORA\""));
        }
        fields::LORA.check(&f)?;
        check_values(&f, family)?;
        Self::of_fields(&f, family)
    }

    /// The configuration as PEFT would take it: silently filled up, and without what is not a choice of modules.
    ///
    /// # Errors
    /// A field of another type.
    pub fn as_peft_takes_it(path: &Path, config: &Value, family: Family) -> Result<Self> {
        const CHOICES: [&str; 12] = [
            "r",
            "lora_alpha",
            "target_modules",
            "exclude_modules",
            "layers_to_transform",
            "layers_pattern",
            "rank_pattern",
            "alpha_pattern",
            "use_rslora",
            "use_dora",
            "modules_to_save",
            "trainable_token_indices",
        ];
        let defaults =
            Modules::List(family.default_modules().iter().map(|&t| family.short_name(t).to_owned()).collect());
        let mut map = Map::new();
        for key in CHOICES {
            let default = match key {
                "r" | "lora_alpha" => json!(DEFAULT),
                "target_modules" => module_json(family, &defaults),
                _ => Value::Null,
            };
            let value = config.get(key).filter(|value| !value.is_null()).cloned();
            map.insert(key.to_owned(), value.unwrap_or(default));
        }
        Self::of_fields(&Fields::new(path, &Value::Object(map))?, family)
    }

    fn of_fields(f: &Fields, family: Family) -> Result<Self> {
        // PEFT takes a negative one for none.
        let dropout = f.f64("lora_dropout")?.unwrap_or(0.0).max(0.0);
        if dropout > 1.0 {
            return Err(f.error("lora_dropout", "a number from 0 to 1"));
        }
        let targets = modules(f, "target_modules")?;
        for key in ["r", "lora_alpha"].iter().filter(|key| !f.has(key)) {
            log::warn!("{}: {key}: absent, and {DEFAULT} as in PEFT", f.path().display());
        }
        Ok(Self {
            r: match f.has("r") {
                true => f.require("r", f.usize_in("r", 1..=MAX_RANK)?, "a positive integer")?,
                false => DEFAULT as usize,
            },
            lora_alpha: match f.has("lora_alpha") {
                true => f.require("lora_alpha", f.f64("lora_alpha")?, "a number")?,
                false => f64::from(DEFAULT),
            },
            lora_dropout: dropout,
            target_modules: f.require("target_modules", targets, "a list of modules or an expression")?,
            exclude_modules: modules(f, "exclude_modules")?
                .filter(|m| *m != Modules::Regex(String::new()) && *m != Modules::List(Vec::new())),
            layers_to_transform: match f.get("layers_to_transform") {
                Some(Value::Number(_)) => f.usize("layers_to_transform")?.map(|l| vec![l]),
                // A negative number is that of no layer.
                _ => list(f, "layers_to_transform", "layer numbers", |v| {
                    v.as_i64().map(|n| usize::try_from(n).unwrap_or(usize::MAX))
                })?,
            },
            layers_pattern: match f.get("layers_pattern") {
                Some(Value::String(one)) if one.is_empty() => Vec::new(),
                Some(Value::String(one)) => vec![one.clone()],
                _ => list(f, "layers_pattern", "names", |v| v.as_str().map(String::from))?.unwrap_or_default(),
            },
            rank_pattern: pattern(f, "rank_pattern", |d, key| d.usize_in(key, 1..=MAX_RANK))?,
            alpha_pattern: pattern(f, "alpha_pattern", |d, key| d.f64(key))?,
            use_rslora: f.bool("use_rslora")?.unwrap_or(false),
            use_dora: f.bool("use_dora")?.unwrap_or(false),
            init_lora_weights: InitLoraWeights::of(f.get("init_lora_weights")),
            modules_to_save: list(f, "modules_to_save", "module names", |v| v.as_str().map(String::from))?
                .unwrap_or_default(),
            trainable_token_indices: tokens::of_fields(f, family)?.into(),
            ensure_weight_tying: f.bool("ensure_weight_tying")?.unwrap_or(false),
            base_model_name_or_path: f.str("base_model_name_or_path")?.map(String::from),
        })
    }

    /// The file's content: the fields that every PEFT release reads, and others only where they are used. Keys are
    /// sorted, as PEFT writes them.
    pub(super) fn to_json(&self, family: Family) -> Value {
        let mut map = Map::new();
        let mut put = |key: &str, value: Value| map.insert(key.to_string(), value);
        put("auto_mapping", Value::Null);
        put("base_model_name_or_path", json!(self.base_model_name_or_path));
        put("bias", json!("none"));
        // GPT-2 stores its matrices transposed.
        put("fan_in_fan_out", json!(family == Family::Gpt2));
        put("inference_mode", json!(true));
        put("init_lora_weights", self.init_lora_weights.to_json());
        put("layers_pattern", if self.layers_pattern.is_empty() { Value::Null } else { json!(self.layers_pattern) });
        put("layers_to_transform", json!(self.layers_to_transform));
        put("lora_alpha", number(self.lora_alpha));
        put("lora_dropout", json!(self.lora_dropout));
        put("modules_to_save", if self.modules_to_save.is_empty() { Value::Null } else { json!(self.modules_to_save) });
        put("peft_type", json!("LORA"));
        put("r", json!(self.r));
        put("revision", Value::Null);
        put("target_modules", module_json(family, &self.target_modules));
        put("task_type", json!("CAUSAL_LM"));
        // Lists of ends of names would name modules of the images' part too.
        let by_ends = family == Family::Gemma3Images && !matches!(self.target_modules, Modules::Regex(_));
        let images = by_ends.then(|| Modules::Regex(IMAGES.to_owned()));
        if let Some(exclude) = self.exclude_modules.as_ref().or(images.as_ref()) {
            put("exclude_modules", module_json(family, exclude));
        }
        if !self.rank_pattern.is_empty() {
            put("rank_pattern", self.rank_pattern.iter().map(|(k, v)| (k.clone(), json!(v))).collect());
        }
        if !self.alpha_pattern.is_empty() {
            put("alpha_pattern", self.alpha_pattern.iter().map(|(k, v)| (k.clone(), number(*v))).collect());
        }
        if self.use_rslora {
            put("use_rslora", json!(true));
        }
        if self.use_dora {
            put("use_dora", json!(true));
        }
        if !self.trainable_token_indices.is_empty() {
            put("trainable_token_indices", json!(self.trainable_token_indices));
        }
        if self.ensure_weight_tying {
            put("ensure_weight_tying", json!(true));
        }
        map.sort_keys();
        Value::Object(map)
    }
}

/// Whole numbers without a point, as PEFT has `lora_alpha`.
fn number(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e15 { json!(x as i64) } else { json!(x) }
}

pub(super) fn module_json(family: Family, modules: &Modules) -> Value {
    match modules {
        Modules::Regex(pattern) => json!(pattern),
        Modules::List(list) => {
            let mut sorted = list.clone();
            sorted.sort_unstable();
            sorted.dedup();
            json!(sorted)
        }
        Modules::AllLinear => {
            let mut names: Vec<_> = family.modules().iter().map(|&target| family.short_name(target)).collect();
            names.sort_unstable();
            json!(names)
        }
    }
}

/// The fields of which some values are computed here and others are not.
fn check_values(f: &Fields, family: Family) -> Result<()> {
    let note = |key: &str, text: &str| log::warn!("{}: {key}: {text}", f.path().display());
    if f.str("bias")?.is_some_and(|bias| !["none", "all", "lora_only"].contains(&bias)) {
        return Err(f.error("bias", "none, all or lora_only"));
    }
    check_task_type(f)?;
    match f.get("init_lora_weights") {
        None | Some(Value::Bool(_)) => {}
        // Other schemes (pissa, olora, loftq, corda) change the base weights when the adapter is loaded.
        Some(Value::String(name)) if ["orthogonal", "eva", "lora_ga"].contains(&name.as_str()) => {}
        Some(Value::String(name)) if name.eq_ignore_ascii_case("gaussian") => {}
        Some(Value::String(name)) if name == "mica" => {
            note("init_lora_weights", "mica keeps B fixed in PEFT's trainings; one here trains A and B");
        }
        _ => {
            let plain =
                "a start that leaves the base weights alone (true, false, gaussian, orthogonal, eva, lora_ga, mica)";
            return Err(f.error("init_lora_weights", plain));
        }
    }
    fan_in_fan_out(f, family)?;
    Ok(())
}

/// Refuses biases that an adapter trained: `bias` asks for them, and its file has the tensor `found`. Of a model without biases
/// there are none, and `bias` is for a training to come.
pub(super) fn check_biases(path: &Path, config: &Value, found: Option<&str>) -> Result<()> {
    let f = Fields::new(path, config)?;
    let trains = f.str("bias")?.filter(|bias| *bias != "none");
    match (trains, found) {
        (None, _) => Ok(()),
        (Some(bias), Some(name)) => {
            Err(Error::field(path, "bias", "none, since trained biases are not applied", format!("{bias}, and {name}")))
        }
        (Some(_), None) => {
            log::warn!("{}: bias: read as \"none\": a training leaves biases as they are", path.display());
            Ok(())
        }
    }
}

pub(super) fn check_task_type(f: &Fields) -> Result<()> {
    match f.str("task_type")?.is_some_and(|name| !Adapter::TASK_TYPES.contains(&name)) {
        true => Err(f.error("task_type", Adapter::TASK_TYPES.join(" or "))),
        false => Ok(()),
    }
}

/// Warns of matrices that are said to be transposed, and are not.
pub(super) fn fan_in_fan_out(f: &Fields, family: Family) -> Result<()> {
    if f.bool("fan_in_fan_out")?.unwrap_or(false) && family != Family::Gpt2 {
        let path = f.path().display();
        log::warn!("{path}: fan_in_fan_out: taken for false, as PEFT does where matrices are [output, input]");
    }
    Ok(())
}

/// `modules_to_save` may name modules that the model does not have, which PEFT passes over.
pub(super) fn saved_modules(f: &Fields, family: Family) -> Result<()> {
    let names = list(f, "modules_to_save", "module names", |v| v.as_str().map(String::from))?.unwrap_or_default();
    let modules = family.all_modules(1);
    for name in names {
        if modules.iter().any(|module| module.path.ends_with(&name) || module.path.contains(&format!("{name}."))) {
            return Err(f.error("modules_to_save", "a plain adapter (null, or no module of the model)"));
        }
        log::warn!("{}: modules_to_save: no module of the model is named {name:?}", f.path().display());
    }
    Ok(())
}

fn list<T>(f: &Fields, key: &str, what: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<Vec<T>>> {
    let Some(values) = f.list(key)? else { return Ok(None) };
    let items =
        values.iter().map(|v| read(v).ok_or_else(|| f.error(key, format!("a list of {what}, not {}", show(v)))));
    items.collect::<Result<_>>().map(Some)
}

pub(super) fn modules(f: &Fields, key: &str) -> Result<Option<Modules>> {
    Ok(match f.get(key) {
        None => None,
        Some(Value::String(text)) if text.eq_ignore_ascii_case("all-linear") => Some(Modules::AllLinear),
        Some(Value::String(text)) => Some(Modules::Regex(text.clone())),
        // PEFT holds the names as a set and saves them in any order: sorted, equal adapters are equal.
        Some(_) => list(f, key, "module names", |v| v.as_str().map(String::from))?.map(|mut names| {
            names.sort_unstable();
            names.dedup();
            Modules::List(names)
        }),
    })
}

fn pattern<T>(f: &Fields, key: &str, read: impl Fn(&Fields, &str) -> Result<Option<T>>) -> Result<Vec<(String, T)>> {
    let Some(dict) = f.object(key)? else { return Ok(Vec::new()) };
    let entry = |name: &str| Ok((name.to_string(), dict.require(name, read(&dict, name)?, "a number")?));
    dict.keys().map(entry).collect()
}
