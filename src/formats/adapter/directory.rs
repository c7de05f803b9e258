//! The directory of an adapter, read strictly and written whole.

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::beside::{SavedTensor, Table, TableLora, TableSlot, Tensors};
use super::card::{self, CARD};
use super::config::check_biases;
use super::fields;
use super::ia3::Ia3Adapter;
use super::names::{by_head, fused, missing_level, of_images, todays_name, unfused, warn_of_level};
use super::prompt::{ENCODER, PromptAdapter, PromptKind};
use super::tokens::TrainedTokens;
use super::weights::{self, PICKLE, WEIGHTS};
use super::{Adapter, AdapterConfig, LoraAdapter, LoraConfig, LoraModule, Slot};
use serde_json::Value;

use crate::arch::{Family, ModelConfig};
use crate::formats::atomic::{foreign_entry, replace_dir, write_json};
use crate::formats::gguf::{self, Gguf};
use crate::formats::json::{self, Fields};
use crate::formats::safetensors::{self, Checkpoint, Dtype, Tensor};
use crate::{Error, Result};

const CONFIG: &str = "adapter_config.json";
/// What lies in an adapter's directory; one with nothing else may be replaced.
pub const FILES: [&str; 4] = [CONFIG, WEIGHTS, ENCODER, CARD];

/// The base model that an adapter beside no model names: its name or path, and its revision; `None` of a directory that
/// is no adapter, or a model as well.
///
/// # Errors
/// `adapter_config.json` is invalid or does not name its base model.
pub fn base_model(dir: &Path) -> Result<Option<(String, Option<String>)>> {
    let path = dir.join(CONFIG);
    if !is_adapter(dir) || dir.join("config.json").exists() {
        return Ok(None);
    }
    let value = json::read(&path)?;
    let f = Fields::new(&path, &value)?;
    let expected = "the base model of this directory without config.json, or --model BASE and --adapter DIR";
    let name = f.str("base_model_name_or_path")?.filter(|name| !name.is_empty());
    let name = f.require("base_model_name_or_path", name, expected)?;
    Ok(Some((name.to_owned(), f.str("revision")?.map(String::from))))
}

/// Whether an adapter lies in a directory, be it beside a model.
pub fn is_adapter(dir: &Path) -> bool {
    dir.join(CONFIG).is_file()
}

/// The configuration and the weights of an adapter's directory.
///
/// # Errors
/// The path is a file, or the adapter lies in a folder of the directory.
pub fn files(dir: &Path) -> Result<[PathBuf; 2]> {
    if dir.is_file() {
        return Err(Error::field(dir, "adapter", format!("a directory with {CONFIG} and {WEIGHTS}"), "a file"));
    }
    if dir.is_dir() && !is_adapter(dir) {
        let mut inner: Vec<String> = std::fs::read_dir(dir)
            .map_err(Error::io("list", dir))?
            .filter_map(|entry| entry.ok().filter(|entry| is_adapter(&entry.path())))
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        inner.sort_unstable();
        if !inner.is_empty() {
            let found = format!("none; it lies in {}: give that directory", inner.join(" and in "));
            return Err(Error::field(dir, CONFIG, "an adapter's configuration", found));
        }
    }
    // As PEFT, which reads the other one only where this is not.
    let pickled = dir.join(PICKLE).is_file() && !dir.join(WEIGHTS).exists();
    Ok([dir.join(CONFIG), dir.join(if pickled { PICKLE } else { WEIGHTS })])
}

impl Adapter {
    /// What PEFT can be told that an adapter is for (`task_type`).
    pub const TASK_TYPES: [&str; 6] =
        ["CAUSAL_LM", "FEATURE_EXTRACTION", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "SEQ_2_SEQ_LM"];

    /// The fields of a configuration that PEFT 0.21 does not know.
    pub fn unknown_fields(config: &Value) -> Vec<&str> {
        let kind = config.get("peft_type").and_then(Value::as_str);
        let table = match kind {
            Some("IA3") => fields::IA3,
            kind if kind.and_then(PromptKind::parse).is_some() => fields::PROMPT,
            _ => fields::LORA,
        };
        let keys = config.as_object().into_iter().flatten().map(|(key, _)| key.as_str());
        keys.filter(|key| !table.knows(key)).collect()
    }

    /// Reads a directory of any kind, or a LoRA of llama.cpp in a GGUF file, for a base model.
    ///
    /// # Errors
    /// As [`LoraAdapter::read`] and [`super::PromptConfig::read`]; another `peft_type`.
    pub fn read(dir: impl AsRef<Path>, model: &ModelConfig) -> Result<Self> {
        let dir = dir.as_ref();
        if Gguf::is_one(dir) {
            return LoraAdapter::read(dir, model).map(Self::Lora);
        }
        let [path, weights] = files(dir)?;
        let value = json::read(&path)?;
        let f = Fields::new(&path, &value)?;
        match f.str("peft_type")? {
            Some("LORA") => LoraAdapter::read(dir, model).map(Self::Lora),
            Some("IA3") => Ia3Adapter::read([&path, &weights], model).map(Self::Ia3),
            Some(name) if PromptKind::parse(name).is_some() => {
                PromptAdapter::read(&path, &weights, model).map(Self::Prompt)
            }
            _ => Err(f.error("peft_type", "LORA, IA3, PROMPT_TUNING, P_TUNING or PREFIX_TUNING")),
        }
    }

    /// Writes a directory that PEFT loads, in f32; see [`LoraAdapter::write`].
    ///
    /// # Errors
    /// The files cannot be written; an adapter that was there before then still is.
    pub fn write(&self, dir: impl AsRef<Path>) -> Result<()> {
        match self {
            Self::Lora(adapter) => adapter.write(dir),
            Self::Ia3(ia3) => write_dir(dir.as_ref(), |dir| ia3.write_files([&dir.join(CONFIG), &dir.join(WEIGHTS)])),
            Self::Prompt(prompt) => {
                write_dir(dir.as_ref(), |dir| prompt.write_files(&dir.join(CONFIG), &dir.join(WEIGHTS)))
            }
        }
    }

    /// What its `adapter_config.json` says.
    pub fn config(&self) -> AdapterConfig {
        match self {
            Self::Lora(adapter) => AdapterConfig::Lora(adapter.config.clone()),
            Self::Ia3(adapter) => AdapterConfig::Ia3(adapter.config.clone()),
            Self::Prompt(prompt) => AdapterConfig::Prompt(prompt.config.clone()),
        }
    }
}

/// Writes files of an adapter, and its card last: into a directory that is absent, empty or holds only an adapter as a whole,
/// into another one by one.
fn write_dir(dir: &Path, write: impl Fn(&Path) -> Result<()>) -> Result<()> {
    let before = card::read(dir)?;
    let write = |dir: &Path| {
        write(dir)?;
        card::write(dir, &dir.join(CONFIG), before.as_deref())
    };
    if foreign_entry(dir, &FILES)?.is_some() {
        return write(dir);
    }
    replace_dir(dir, &FILES, write)
}

impl LoraAdapter {
    /// Reads a directory, for a base model. Weights of f32, f16 and bf16 become f32.
    ///
    /// # Errors
    /// A file is missing or invalid, the configuration is not supported ([`LoraConfig::read`]), a tensor is missing,
    /// unexpected, of another shape than rank and model demand, or not finite.
    pub fn read(dir: impl AsRef<Path>, model: &ModelConfig) -> Result<Self> {
        if Gguf::is_one(dir.as_ref()) {
            return gguf::lora::read(dir.as_ref(), model);
        }
        let [path, file] = files(dir.as_ref())?;
        let (family, head_dim) = (model.family, model.head_dim);
        let value = json::read(&path)?;
        let config = LoraConfig::of_value(&path, &value, family)?;
        let slots = config.slots_of(&path, family, model.num_hidden_layers)?;
        config.wrong_tokens(model).map_err(|(field, expected, found)| Error::field(&path, field, expected, found))?;
        let tensors = weights::open(&file)?;
        let level = missing_level(tensors.names(), family);
        warn_of_level(&file, level);
        let mut known = HashSet::new();
        let mut modules = Vec::with_capacity(slots.blocks.len());
        for Slot { layer, target, r, scale } in slots.blocks {
            let (input, output) = target.widths(model.block_widths());
            let mut load = |part: Part, shape: &[usize]| {
                let path = family.path(layer, target);
                let path = level.and_then(|level| path.strip_prefix(level)).unwrap_or(&path);
                let name = spelling(&tensors, path, part, family);
                let view = tensors.expect(&name, shape)?;
                known.insert(name);
                view.check_finite().and_then(|()| view.to_f32()).map_err(Error::file(&file))
            };
            let a = load(Part::A, &[r, input])?;
            let mut b = load(Part::B, &[output, r])?;
            let mut magnitude = config.use_dora.then(|| load(Part::Magnitude, &[output])).transpose()?;
            if by_head(family, target) {
                b = unfused(&b, r * head_dim);
                magnitude = magnitude.map(|values| unfused(&values, head_dim));
            }
            modules.push(LoraModule { layer, target, r, scale, a, b, magnitude });
        }
        let mut outside = Tensors { file: &file, tensors: &tensors, family, known };
        let read = |slot: TableSlot| {
            let path = family.table_path(slot.at);
            let path = level.and_then(|level| path.strip_prefix(level)).unwrap_or(path);
            TableLora::read(slot, model, path, &mut outside)
        };
        let tables = slots.tables.into_iter().map(read).collect::<Result<_>>()?;
        let mut saved = Vec::new();
        for module in config.saved_of(&path, model)? {
            saved.extend(SavedTensor::of_module(&module, level, &mut outside)?);
        }
        let ties_head = has_tied_head(&config, model, &saved, &outside);
        if ties_head {
            untie(&mut saved, family, &mut outside)?;
        }
        let tokens = TrainedTokens::read(&config.trainable_token_indices, model, level, &mut outside)?.map(Box::new);
        let known = outside.known;
        let beside: Vec<&str> = tensors.names().filter(|name| is_beside(name) || of_images(name, family)).collect();
        if let Some(first) = beside.first() {
            let (path, n) = (file.display(), beside.len());
            log::warn!("{path}: {n} tensors beside the model of texts are not used, such as {first}");
        }
        let expected = |name: &str| known.contains(name) || beside.contains(&name);
        let bias = tensors.names().find(|name| name.ends_with(".bias") && !expected(name));
        check_biases(&path, &value, bias)?;
        tensors.deny_unexpected(expected)?;
        Ok(Self { config, family, head_dim, modules, tables, saved, ties_head, tokens })
    }

    /// Writes a directory that PEFT loads, in f32, with its model card. A directory that is absent, empty or holds only an
    /// adapter is replaced as a whole; in one with other files its files are replaced one by one, weights first. A card
    /// that is there is updated as PEFT does.
    ///
    /// # Errors
    /// The files cannot be written; an adapter that was there before then still is.
    ///
    /// # Panics
    /// When the modules' sizes do not fit each other.
    pub fn write(&self, dir: impl AsRef<Path>) -> Result<()> {
        write_dir(dir.as_ref(), |dir| self.write_files(dir))
    }

    /// B of a module with its rows in the order of the base model's file, `[output, R]`.
    pub fn stored_b<'m>(&self, module: &'m LoraModule) -> Cow<'m, [f32]> {
        match by_head(self.family, module.target) {
            true => Cow::Owned(fused(&module.b, module.r * self.head_dim)),
            false => Cow::Borrowed(&module.b),
        }
    }

    /// The magnitudes of a module in the order of the base model's file, `[output]`.
    pub fn stored_magnitude<'m>(&self, module: &'m LoraModule) -> Option<Cow<'m, [f32]>> {
        let magnitude = module.magnitude.as_deref()?;
        Some(match by_head(self.family, module.target) {
            true => Cow::Owned(fused(magnitude, self.head_dim)),
            false => Cow::Borrowed(magnitude),
        })
    }

    fn write_files(&self, dir: &Path) -> Result<()> {
        let mut parts = Vec::with_capacity(2 * self.modules.len());
        for m in &self.modules {
            let path = self.family.path(m.layer, m.target);
            let (a, b, r) = (Cow::Borrowed(m.a.as_slice()), self.stored_b(m), m.r);
            let [input, output] = [a.len(), b.len()].map(|len| len / r);
            assert!((input * r, output * r) == (a.len(), b.len()), "{path}: A or B is no matrix of rank {r}");
            parts.push((tensor_name(&path, Part::A, ""), vec![r, input], a));
            parts.push((tensor_name(&path, Part::B, ""), vec![output, r], b));
            if let Some(magnitude) = self.stored_magnitude(m) {
                assert!(magnitude.len() == output, "{path}: {} magnitudes of {output} rows", magnitude.len());
                parts.push((tensor_name(&path, Part::Magnitude, ""), vec![output], magnitude));
            }
        }
        parts.extend(self.tables.iter().flat_map(|table| table.tensors(self.family)));
        for tensor in &self.saved {
            parts.push((tensor.file_name(), tensor.shape.clone(), Cow::Borrowed(tensor.values.as_slice())));
        }
        if let Some(TrainedTokens { ids, rows }) = self.tokens.as_deref() {
            let name = TrainedTokens::file_name(self.family.table_path(Table::Embed));
            parts.push((name, vec![ids.len(), rows.len() / ids.len()], Cow::Borrowed(rows.as_slice())));
        }
        // PEFT writes a tied head too, as it demands it back.
        if let Some(table) = self.tied_table() {
            let name = format!("base_model.model.{}.weight", self.family.table_path(Table::Head));
            parts.push((name, table.shape.clone(), Cow::Borrowed(table.values.as_slice())));
        }
        let tensors: Vec<_> = parts
            .iter()
            .map(|(name, shape, data)| Tensor {
                name,
                dtype: Dtype::F32,
                shape,
                data: bytemuck::cast_slice(data.as_ref()),
            })
            .collect();
        safetensors::write(dir.join(WEIGHTS), &tensors, &[("format", "pt")])?;
        write_json(dir.join(CONFIG), &self.config.to_json(self.family))
    }
}

impl LoraAdapter {
    /// The embedding table of its own that is the tied head too.
    fn tied_table(&self) -> Option<&SavedTensor> {
        let table = format!("{}.weight", self.family.table_path(Table::Embed));
        self.saved.iter().find(|tensor| self.ties_head && tensor.name == table)
    }
}

/// Whether the head follows a table of an adapter's own. Where PEFT was told of `lm_head` and does not know the table by name
/// (GPT-2's `wte`), the file's `modules_to_save` has the table alone, and only the head's tensor beside it says so.
fn has_tied_head(config: &LoraConfig, model: &ModelConfig, saved: &[SavedTensor], tensors: &Tensors<'_>) -> bool {
    let [table, head] = Table::ALL.map(|at| format!("{}.weight", model.family.table_path(at)));
    let is_saved = |name: &str| saved.iter().any(|tensor| tensor.name == name);
    let both = || tensors.has(&format!("base_model.model.{head}")) && is_saved(&table) && !is_saved(&head);
    config.ties_head(model) || config.ensure_weight_tying && model.tie_word_embeddings && both()
}

/// Reads the head that is tied to a table of an adapter's own, and checks that it is.
fn untie(saved: &mut Vec<SavedTensor>, family: Family, tensors: &mut Tensors<'_>) -> Result<()> {
    let [table, head] = Table::ALL.map(|at| format!("{}.weight", family.table_path(at)));
    saved.retain(|tensor| tensor.name != head);
    let Some(table) = saved.iter().find(|tensor| tensor.name == table) else { return Ok(()) };
    let name = format!("base_model.model.{head}");
    let values = tensors.load(&name, &table.shape)?;
    if values != table.values {
        return Err(Error::field(
            tensors.file,
            name,
            format!("the values of {}, to which it is tied", table.name),
            "others",
        ));
    }
    Ok(())
}

/// Heads that trainers put beside a causal model, and PEFT's classifiers: nothing here computes them.
fn is_beside(name: &str) -> bool {
    let name = name.strip_prefix("base_model.model.").unwrap_or(name);
    ["score.", "classifier.", "v_head.", "value_head.", "reward_head."].iter().any(|head| name.starts_with(head))
}

/// A tensor of a module's adapter.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    A,
    B,
    /// The magnitudes of a DoRA.
    Magnitude,
}

fn tensor_name(path: &str, part: Part, adapter: &str) -> String {
    let (part, end) = match part {
        Part::A => ("A", ".weight"),
        Part::B => ("B", ".weight"),
        // Without an end for as long as it was a parameter of its own, and for that reason still.
        Part::Magnitude => ("magnitude_vector", if adapter.is_empty() { "" } else { ".weight" }),
    };
    format!("base_model.model.{path}.lora_{part}{adapter}{end}")
}

/// The name in the file: PEFT also reads the one with the adapter's name in it, and the one of an older release.
fn spelling(tensors: &Checkpoint, path: &str, part: Part, family: Family) -> String {
    let short = tensor_name(path, part, "");
    let long = tensor_name(path, part, ".default");
    let older = tensors.names().find(|name| *name != short && todays_name(name, family) == short);
    let as_module = (part == Part::Magnitude).then(|| format!("{short}.weight"));
    let others = [Some(long.as_str()), older, as_module.as_deref()];
    let found = others.into_iter().flatten().find(|name| tensors.get(name).is_some());
    found.map_or(short.clone(), str::to_owned)
}
