//! IA3 (Liu et al., arXiv 2205.05638): vectors that multiply what projections put out, or what feed-forward ones take in.

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::config::{check_task_type, fan_in_fan_out, module_json, modules, saved_modules};
use super::names::{by_head, fused, missing_level, unfused, warn_of_level};
use super::selection::{LoraConfig, Modules, Slot, Slots, Wrong, is_feedforward};
use super::{fields, weights};
use crate::arch::{Family, ModelConfig, Projection};
use crate::formats::atomic::write_json;
use crate::formats::json::{self, Fields};
use crate::formats::safetensors::{self, Dtype, Tensor};
use crate::{Error, Result};

/// An adapter's settings, with PEFT's names and meanings.
#[derive(Clone, Debug, PartialEq)]
pub struct Ia3Config {
    /// The modules.
    pub target_modules: Modules,
    /// Modules that are not adapted even so.
    pub exclude_modules: Option<Modules>,
    /// Those of them whose input is multiplied, in place of the output: ends of their paths, or an expression.
    pub feedforward_modules: Modules,
    /// Name of the base model, for the record.
    pub base_model_name_or_path: Option<String>,
}

/// A module's vector.
#[derive(Clone, Debug, PartialEq)]
pub struct Ia3Module {
    /// Layer, from 0.
    pub layer: usize,
    /// The projection, or fused projections, that it adapts.
    pub target: Projection,
    /// Whether it multiplies the input.
    pub feedforward: bool,
    /// Of the width of the input, or of the output; of fused queries, keys and values those of all queries come first.
    pub vector: Vec<f32>,
}

/// An IA3 adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct Ia3Adapter {
    /// What `adapter_config.json` says.
    pub config: Ia3Config,
    /// The base model's family, which names the modules.
    pub family: Family,
    /// Width of the base model's heads, by which some files order fused rows.
    pub head_dim: usize,
    /// Modules, by layer, then in the family's order.
    pub modules: Vec<Ia3Module>,
}

impl Ia3Config {
    /// What of a model of `layers` layers this adapts, by layer, then in the family's order: layer, module, whether the input is
    /// multiplied.
    ///
    /// # Errors
    /// As [`LoraConfig::slots`]; a feed-forward module that is not adapted or whose input others read.
    pub fn slots(&self, family: Family, layers: usize) -> Result<Vec<(usize, Projection, bool)>> {
        let slots = self.selection().slots(family, layers)?;
        self.directions(slots, family).map_err(|(field, expected, found)| Error::argument(field, expected, found))
    }

    /// The choice of modules as that of a LoRA.
    fn selection(&self) -> LoraConfig {
        let exclude_modules = self.exclude_modules.clone();
        LoraConfig { exclude_modules, ..LoraConfig::new(1, 1.0, self.target_modules.clone()) }
    }

    fn directions(&self, slots: Slots, family: Family) -> Result<Vec<(usize, Projection, bool)>, Wrong> {
        if let Some(table) = slots.tables.first() {
            let found = family.table_path(table.at).to_owned();
            return Err(("target_modules".to_owned(), "projections of the blocks, of an IA3".to_owned(), found));
        }
        let wrong = |expected: &str, found: String| ("feedforward_modules".to_owned(), expected.to_owned(), found);
        if let (Modules::List(inner), Modules::List(all)) = (&self.feedforward_modules, &self.target_modules)
            && let Some(other) = inner.iter().find(|name| !all.contains(name))
        {
            return Err(wrong("a subset of target_modules", format!("{other:?}")));
        }
        let direction = |Slot { layer, target, .. }: Slot| {
            let path = family.path(layer, target);
            let inward = is_feedforward(&self.feedforward_modules, &path)?;
            if inward && !matches!(target, Projection::O | Projection::Down) {
                return Err(wrong("modules whose input no other module reads", path));
            }
            Ok((layer, target, inward))
        };
        slots.blocks.into_iter().map(direction).collect()
    }

    /// Reads `adapter_config.json`.
    ///
    /// # Errors
    /// The file is missing or not JSON; modules are missing (PEFT would take defaults silently); a field asks for something
    /// that PEFT 0.21 computes and this library does not.
    pub fn read(path: &Path, family: Family) -> Result<Self> {
        Self::of_value(path, &json::read(path)?, family)
    }

    /// The same of a configuration that is the file `path`.
    ///
    /// # Errors
    /// As [`Ia3Config::read`].
    pub fn of_value(path: &Path, value: &Value, family: Family) -> Result<Self> {
        let f = Fields::new(path, value)?;
        fields::IA3.check(&f)?;
        check_task_type(&f)?;
        fan_in_fan_out(&f, family)?;
        saved_modules(&f, family)?;
        let expected = "a list of modules or an expression";
        Ok(Self {
            target_modules: f.require("target_modules", modules(&f, "target_modules")?, expected)?,
            exclude_modules: modules(&f, "exclude_modules")?
                .filter(|m| *m != Modules::Regex(String::new()) && *m != Modules::List(Vec::new())),
            feedforward_modules: f.require("feedforward_modules", modules(&f, "feedforward_modules")?, expected)?,
            base_model_name_or_path: f.str("base_model_name_or_path")?.map(String::from),
        })
    }

    /// The file's content, keys sorted, as PEFT writes them.
    fn to_json(&self, family: Family) -> Value {
        let mut map = Map::new();
        let mut put = |key: &str, value: Value| map.insert(key.to_string(), value);
        put("auto_mapping", Value::Null);
        put("base_model_name_or_path", json!(self.base_model_name_or_path));
        put("exclude_modules", self.exclude_modules.as_ref().map_or(Value::Null, |m| module_json(family, m)));
        put("fan_in_fan_out", json!(family == Family::Gpt2));
        put("feedforward_modules", module_json(family, &self.feedforward_modules));
        put("inference_mode", json!(true));
        put("init_ia3_weights", json!(true));
        put("modules_to_save", Value::Null);
        put("peft_type", json!("IA3"));
        put("revision", Value::Null);
        put("target_modules", module_json(family, &self.target_modules));
        put("task_type", json!("CAUSAL_LM"));
        map.sort_keys();
        Value::Object(map)
    }
}

impl Ia3Module {
    /// The width that a model has where its vector is.
    pub fn width(config: &ModelConfig, target: Projection, feedforward: bool) -> usize {
        let (input, output) = target.widths(config.block_widths());
        if feedforward { input } else { output }
    }
}

impl Ia3Adapter {
    /// An adapter of ones, which changes nothing.
    ///
    /// # Errors
    /// As [`Ia3Config::slots`].
    pub fn ones(config: Ia3Config, model: &ModelConfig) -> Result<Self> {
        let ones = |(layer, target, feedforward)| {
            let vector = vec![1.0; Ia3Module::width(model, target, feedforward)];
            Ia3Module { layer, target, feedforward, vector }
        };
        let modules = config.slots(model.family, model.num_hidden_layers)?.into_iter().map(ones).collect();
        Ok(Self { config, family: model.family, head_dim: model.head_dim, modules })
    }

    /// Reads the configuration and the weights, for a base model. Weights of f32, f16 and bf16 become f32.
    ///
    /// # Errors
    /// A file is missing or invalid, the configuration is not supported ([`Ia3Config::read`]), a tensor is missing,
    /// unexpected, of another shape than the model demands, or not finite.
    pub(super) fn read([path, file]: [&Path; 2], model: &ModelConfig) -> Result<Self> {
        let (family, head_dim) = (model.family, model.head_dim);
        let config = Ia3Config::read(path, family)?;
        let slots = config.selection().slots_of(path, family, model.num_hidden_layers)?;
        let slots = config
            .directions(slots, family)
            .map_err(|(field, expected, found)| Error::field(path, field, expected, found))?;
        let tensors = weights::open(file)?;
        let level = missing_level(tensors.names(), family);
        warn_of_level(file, level);
        let (mut known, mut modules) = (HashSet::new(), Vec::with_capacity(slots.len()));
        for (layer, target, feedforward) in slots {
            let path = family.path(layer, target);
            let path = level.and_then(|level| path.strip_prefix(level)).unwrap_or(&path);
            let long = format!("{}.default", tensor_name(path));
            let name = if tensors.get(&long).is_some() { long } else { tensor_name(path) };
            let width = Ia3Module::width(model, target, feedforward);
            let view = tensors.expect(&name, &shape(width, feedforward))?;
            known.insert(name);
            let mut vector = view.check_finite().and_then(|()| view.to_f32()).map_err(Error::file(file))?;
            if by_head(family, target) && !feedforward {
                vector = unfused(&vector, head_dim);
            }
            modules.push(Ia3Module { layer, target, feedforward, vector });
        }
        tensors.deny_unexpected(|name| known.contains(name))?;
        Ok(Self { config, family, head_dim, modules })
    }

    /// The vector of a module in the order of the base model's file.
    pub fn stored<'m>(&self, module: &'m Ia3Module) -> Cow<'m, [f32]> {
        match by_head(self.family, module.target) && !module.feedforward {
            true => Cow::Owned(fused(&module.vector, self.head_dim)),
            false => Cow::Borrowed(&module.vector),
        }
    }

    /// Writes the configuration and the weights, in f32.
    pub(super) fn write_files(&self, [config, file]: [&Path; 2]) -> Result<()> {
        let part = |module: &Ia3Module| {
            let path = self.family.path(module.layer, module.target);
            (tensor_name(&path), shape(module.vector.len(), module.feedforward), self.stored(module).into_owned())
        };
        let parts: Vec<_> = self.modules.iter().map(part).collect();
        let tensors: Vec<_> = parts
            .iter()
            .map(|(name, shape, data)| Tensor { name, dtype: Dtype::F32, shape, data: bytemuck::cast_slice(data) })
            .collect();
        safetensors::write(file, &tensors, &[("format", "pt")])?;
        write_json(config, &self.config.to_json(self.family))
    }
}

fn tensor_name(path: &str) -> String {
    format!("base_model.model.{path}.ia3_l")
}

/// A column beside the output, a row beside the input.
const fn shape(width: usize, feedforward: bool) -> [usize; 2] {
    if feedforward { [1, width] } else { [width, 1] }
}
