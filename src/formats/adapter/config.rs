//! `adapter_config.json`: which modules an adapter changes, with which rank and scale, in PEFT's terms.

use std::path::Path;

use regex::Regex;
use serde_json::{Map, Value, json};

use crate::arch::Family;
use crate::arch::Projection;
use crate::formats::json::{self, Fields, show};
use crate::{Error, Result};

/// Limit of a rank; beyond any matrix.
const MAX_RANK: usize = 1 << 20;

/// A choice of modules.
#[derive(Clone, Debug, PartialEq)]
pub enum Modules {
    /// Full paths, or their ends after a dot: `q_proj`, `layers.3.mlp.up_proj`.
    List(Vec<String>),
    /// A regular expression that must match the whole path.
    Regex(String),
    /// `all-linear`: every projection; not the output layer.
    AllLinear,
}

/// One module that a configuration adapts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slot {
    /// Layer.
    pub layer: usize,
    /// Module.
    pub target: Projection,
    /// Rank.
    pub r: usize,
    /// `lora_alpha / r`, or `lora_alpha / sqrt(r)`.
    pub scale: f64,
}

/// An adapter's settings, with PEFT's names and meanings.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rank of every module that `rank_pattern` does not name.
    pub r: usize,
    /// Numerator of the scale of every module that `alpha_pattern` does not name.
    pub lora_alpha: f64,
    /// Dropout before A while training.
    pub lora_dropout: f64,
    /// The modules.
    pub target_modules: Modules,
    /// Modules that are not adapted even so.
    pub exclude_modules: Option<Modules>,
    /// Layers, where not all; acts on a list of modules only.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Names of the module that holds the layers; empty for any.
    pub layers_pattern: Vec<String>,
    /// Other ranks: expressions for the end of a path, the first that matches counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// Other alphas, likewise.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Whether the scale is divided by the root of the rank.
    pub use_rslora: bool,
    /// Name of the base model, for the record.
    pub base_model_name_or_path: Option<String>,
}

/// What is wrong with a field: its name, what was expected, what was found.
type Wrong = (String, String, String);

fn wrong(field: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) -> Wrong {
    (field.into(), expected.into(), found.into())
}

impl LoraConfig {
    /// Settings with one rank and alpha, and no dropout.
    pub fn new(r: usize, lora_alpha: f64, target_modules: Modules) -> Self {
        Self {
            r,
            lora_alpha,
            lora_dropout: 0.0,
            target_modules,
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: Vec::new(),
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            use_rslora: false,
            base_model_name_or_path: None,
        }
    }

    /// The modules of a model of `layers` layers that this adapts, by layer, then in the family's order.
    ///
    /// # Errors
    /// A rank of zero, an expression that does not compile, a module that is not a projection of a block, an entry
    /// or layer that matches nothing, or nothing at all to adapt.
    pub fn slots(&self, family: Family, layers: usize) -> Result<Vec<Slot>> {
        self.resolve(family, layers).map_err(|(field, expected, found)| Error::argument(field, expected, found))
    }

    /// As [`LoraConfig::slots`], for settings that came from a file.
    pub(super) fn slots_of(&self, path: &Path, family: Family, layers: usize) -> Result<Vec<Slot>> {
        self.resolve(family, layers).map_err(|(field, expected, found)| Error::field(path, field, expected, found))
    }

    fn resolve(&self, family: Family, layers: usize) -> Result<Vec<Slot>, Wrong> {
        let targets = Matcher::new("target_modules", &self.target_modules)?;
        let exclude = self.exclude_modules.as_ref().map(|m| Matcher::new("exclude_modules", m)).transpose()?;
        let excluded = |path: &str| exclude.as_ref().is_some_and(|m| m.matches(path));
        for other in family.outside() {
            if targets.matches(other) && self.target_modules != Modules::AllLinear && !excluded(other) {
                return Err(wrong("target_modules", "projections of the blocks", other));
            }
        }
        self.check_layers(layers)?;
        let ranks = patterns("rank_pattern", &self.rank_pattern)?;
        let alphas = patterns("alpha_pattern", &self.alpha_pattern)?;
        let holders = self.layer_holders()?;
        let mut slots = Vec::new();
        let mut used = vec![false; targets.entries()];
        for layer in 0..layers {
            for &target in family.modules() {
                let path = family.path(layer, target);
                if excluded(&path) || !targets.matches(&path) || !self.in_layers(&path, layer, &holders) {
                    targets.mark(&path, &mut used);
                    continue;
                }
                targets.mark(&path, &mut used);
                let r = first_match(&ranks, &path).unwrap_or(self.r);
                let alpha = first_match(&alphas, &path).unwrap_or(self.lora_alpha);
                if r == 0 || r > MAX_RANK {
                    return Err(wrong("r", format!("a rank from 1 to {MAX_RANK} for {path}"), r.to_string()));
                }
                let scale = if self.use_rslora { alpha / (r as f64).sqrt() } else { alpha / r as f64 };
                if !scale.is_finite() {
                    return Err(wrong("lora_alpha", format!("a finite scale for {path}"), scale.to_string()));
                }
                slots.push(Slot { layer, target, r, scale });
            }
        }
        if let (Modules::List(list), Some(i)) = (&self.target_modules, used.iter().position(|u| !u)) {
            let expected = format!("names of projections, as {}", family.module_names());
            return Err(wrong("target_modules", expected, format!("{:?}", list[i])));
        }
        if slots.is_empty() {
            return Err(wrong("target_modules", "at least one module of the model", "none"));
        }
        Ok(slots)
    }

    fn check_layers(&self, layers: usize) -> Result<(), Wrong> {
        let Some(list) = &self.layers_to_transform else {
            return if self.layers_pattern.is_empty() {
                Ok(())
            } else {
                Err(wrong("layers_pattern", "layers_to_transform beside it", "none"))
            };
        };
        if !matches!(self.target_modules, Modules::List(_)) {
            return Err(wrong("layers_to_transform", "a list of target_modules", "an expression"));
        }
        match list.iter().find(|&&l| l >= layers) {
            Some(l) => Err(wrong("layers_to_transform", format!("layers below {layers}"), l.to_string())),
            None => Ok(()),
        }
    }

    fn layer_holders(&self) -> Result<Vec<Regex>, Wrong> {
        let compile = |p: &String| regex("layers_pattern", &format!(r"^(?:|.*?\.){p}\.(?P<idx>\d+)\."));
        self.layers_pattern.iter().map(compile).collect()
    }

    fn in_layers(&self, path: &str, layer: usize, holders: &[Regex]) -> bool {
        match (&self.layers_to_transform, &self.target_modules) {
            // An empty list is no restriction, and neither is one on modules named by their full path.
            (Some(wanted), Modules::List(list)) if !wanted.is_empty() && !list.iter().any(|m| m == path) => {
                let found = if holders.is_empty() {
                    Some(layer)
                } else {
                    holders.iter().find_map(|h| h.captures(path)).and_then(|c| c["idx"].parse().ok())
                };
                found.is_some_and(|l| wanted.contains(&l))
            }
            _ => true,
        }
    }

    /// Reads `adapter_config.json`.
    ///
    /// # Errors
    /// The file is missing or not JSON; `peft_type`, `r`, `lora_alpha` or `target_modules` is missing (PEFT would
    /// take defaults silently); a field asks for something that is not supported.
    pub fn read(path: impl AsRef<Path>, family: Family) -> Result<Self> {
        let path = path.as_ref();
        let value = json::read(path)?;
        let f = Fields::new(path, &value)?;
        let peft_type = f.require("peft_type", f.str("peft_type")?, "\"LORA\"")?;
        if peft_type != "LORA" {
            return Err(f.error("peft_type", "\"LORA\""));
        }
        refuse_unsupported(&f, family)?;
        let dropout = f.f64("lora_dropout")?.unwrap_or(0.0);
        if !(0.0..1.0).contains(&dropout) {
            return Err(f.error("lora_dropout", "a number from 0 to 1"));
        }
        let targets = modules(&f, "target_modules")?;
        Ok(Self {
            r: f.require("r", f.usize_in("r", 1..=MAX_RANK)?, "a positive integer")?,
            lora_alpha: f.require("lora_alpha", f.f64("lora_alpha")?, "a number")?,
            lora_dropout: dropout,
            target_modules: f.require("target_modules", targets, "a list of modules or an expression")?,
            exclude_modules: modules(&f, "exclude_modules")?.filter(|m| !matches!(m, Modules::List(l) if l.is_empty())),
            layers_to_transform: match f.get("layers_to_transform") {
                Some(Value::Number(_)) => f.usize("layers_to_transform")?.map(|l| vec![l]),
                _ => list(&f, "layers_to_transform", "layer numbers", |v| v.as_u64().map(|n| n as usize))?,
            },
            layers_pattern: match f.get("layers_pattern") {
                Some(Value::String(one)) if one.is_empty() => Vec::new(),
                Some(Value::String(one)) => vec![one.clone()],
                _ => list(&f, "layers_pattern", "names", |v| v.as_str().map(String::from))?.unwrap_or_default(),
            },
            rank_pattern: pattern(&f, "rank_pattern", |d, key| d.usize_in(key, 1..=MAX_RANK))?,
            alpha_pattern: pattern(&f, "alpha_pattern", |d, key| d.f64(key))?,
            use_rslora: f.bool("use_rslora")?.unwrap_or(false),
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
        put("init_lora_weights", json!(true));
        put("layers_pattern", if self.layers_pattern.is_empty() { Value::Null } else { json!(self.layers_pattern) });
        put("layers_to_transform", json!(self.layers_to_transform));
        put("lora_alpha", number(self.lora_alpha));
        put("lora_dropout", json!(self.lora_dropout));
        put("modules_to_save", Value::Null);
        put("peft_type", json!("LORA"));
        put("r", json!(self.r));
        put("revision", Value::Null);
        put("target_modules", module_json(family, &self.target_modules));
        put("task_type", json!("CAUSAL_LM"));
        if let Some(exclude) = &self.exclude_modules {
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
        map.sort_keys();
        Value::Object(map)
    }
}

/// Whole numbers without a point, as PEFT has `lora_alpha`.
fn number(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e15 { json!(x as i64) } else { json!(x) }
}

fn module_json(family: Family, modules: &Modules) -> Value {
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

/// Every key that is set and does not belong to what is computed here is an error: known ones that PEFT acts on, and
/// ones from releases to come, which PEFT itself would drop with a warning.
fn refuse_unsupported(f: &Fields, family: Family) -> Result<()> {
    const READ: [&str; 14] = [
        "peft_type",
        "r",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
        "base_model_name_or_path",
        "bias",
        "task_type",
    ];
    // Without effect on a loaded adapter of this kind.
    const IGNORED: [&str; 8] = [
        "auto_mapping",
        "inference_mode",
        "init_lora_weights",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
    ];
    let expected = |key: &str, allowed: &[&str]| match f.str(key)? {
        Some(value) if !allowed.contains(&value) => Err(f.error(key, allowed.join(" or "))),
        _ => Ok(()),
    };
    expected("bias", &["none"])?;
    expected("task_type", &["CAUSAL_LM"])?;
    if f.get("init_lora_weights").is_some_and(|v| !v.is_boolean()) {
        // Other schemes (pissa, olora, loftq, corda) change the base weights when the adapter is loaded.
        expected("init_lora_weights", &["gaussian", "orthogonal", "eva"])?;
    }
    // PEFT sets it to what the base model's modules are, whatever the file says.
    let transposed = f.bool("fan_in_fan_out")?.unwrap_or(false) && family == Family::Gpt2;
    let known = |key: &str| READ.contains(&key) || IGNORED.contains(&key) || (transposed && key == "fan_in_fan_out");
    for key in f.keys().filter(|key| !known(key)) {
        let empty = match f.get(key) {
            None | Some(Value::Bool(false)) => true,
            Some(Value::Array(list)) => list.is_empty(),
            Some(Value::Object(map)) => map.is_empty(),
            Some(_) => false,
        };
        if !empty {
            return Err(f.error(key, "a plain LoRA adapter (null, false or no such field)"));
        }
    }
    Ok(())
}

fn list<T>(f: &Fields, key: &str, what: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<Vec<T>>> {
    let Some(values) = f.list(key)? else { return Ok(None) };
    let items =
        values.iter().map(|v| read(v).ok_or_else(|| f.error(key, format!("a list of {what}, not {}", show(v)))));
    items.collect::<Result<_>>().map(Some)
}

fn modules(f: &Fields, key: &str) -> Result<Option<Modules>> {
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

fn regex(field: &str, pattern: &str) -> Result<Regex, Wrong> {
    // Linear-time matching: a hostile expression cannot hang the program. The price is no look-around.
    Regex::new(pattern).map_err(|e| {
        let reason = e.to_string().lines().last().unwrap_or_default().to_string();
        wrong(field, "a regular expression without look-around and back-references", format!("{pattern:?} ({reason})"))
    })
}

/// PEFT's matching of a dictionary's keys: at the end of the path, at a dot.
fn patterns<T: Copy>(field: &str, entries: &[(String, T)]) -> Result<Vec<(Regex, T)>, Wrong> {
    entries.iter().map(|(key, value)| Ok((regex(field, &format!(r"^(?:.*\.)?(?:{key})$"))?, *value))).collect()
}

fn first_match<T: Copy>(patterns: &[(Regex, T)], path: &str) -> Option<T> {
    patterns.iter().find(|(p, _)| p.is_match(path)).map(|(_, v)| *v)
}

/// A compiled [`Modules`].
enum Matcher<'a> {
    List(&'a [String]),
    Regex(Regex),
    All,
}

impl<'a> Matcher<'a> {
    fn new(field: &str, modules: &'a Modules) -> Result<Self, Wrong> {
        Ok(match modules {
            Modules::List(list) => Self::List(list),
            Modules::Regex(pattern) => Self::Regex(regex(field, &format!("^(?:{pattern})$"))?),
            Modules::AllLinear => Self::All,
        })
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Self::List(list) => list.iter().any(|m| names(m, path)),
            Self::Regex(regex) => regex.is_match(path),
            Self::All => true,
        }
    }

    fn entries(&self) -> usize {
        if let Self::List(list) = self { list.len() } else { 0 }
    }

    /// Notes which entries of a list name this path.
    fn mark(&self, path: &str, used: &mut [bool]) {
        if let Self::List(list) = self {
            for (entry, used) in list.iter().zip(used) {
                *used |= names(entry, path);
            }
        }
    }
}

/// Whether a list's entry is the path, or its end after a dot.
fn names(entry: &str, path: &str) -> bool {
    path.strip_suffix(entry).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}
