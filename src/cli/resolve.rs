//! What the command line means: names become paths, lists become numbers, and what was left out gets its default.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};

use super::args::{CheckpointArgs, CommonArgs, LoraArgs, OptimArgs, Pattern, RegularizationArgs};
use super::output;
use crate::arch::{Dtype, Family, ModelConfig};
use crate::backend::Backend;
use crate::formats::adapter::{self, Adapter, LoraAdapter, LoraConfig, LoraModule, Modules, Slot, TableLora};
use crate::formats::atomic;
use crate::formats::embedded;
use crate::formats::gguf::model::GgufModel;
use crate::formats::gguf::{self, Gguf};
use crate::formats::hub::{self, CacheEnv};
use crate::formats::prequantized;
use crate::formats::pretrained;
use crate::formats::safetensors::{Checkpoint, Loading};
use crate::formats::tokenizer::Tokenizer;
use crate::hooks::site;
use crate::model::quantize;
use crate::model::{Source, lora_start, saved_modules};
use crate::task::{Task, Template};
use crate::train::checkpoint;
use crate::train::schedule::Warmup;
use crate::train::settings::{Length, RunSettings};
use crate::{Error, Result};

/// Name of the resolved configuration in an output directory.
pub const CONFIG_FILE: &str = "llamaprobe.yaml";

/// The files of a model, its weights not loaded yet.
pub struct ModelFiles {
    /// Its directory; of the embedded model its name.
    pub path: PathBuf,
    /// Its architecture, from `config.json`.
    pub config: ModelConfig,
    /// Its safetensors files, their headers read and checked.
    pub checkpoint: Checkpoint,
    /// Dtype of its weights: config.json's, or else that of the first tensor of floats.
    pub dtype: Dtype,
    /// The directory of `--tokenizer`.
    pub tokenizer: Option<PathBuf>,
    /// The file of the model, where it is a GGUF file.
    pub gguf: Option<Gguf>,
    /// The directory of `--model` where it holds an adapter: beside the model, or of a base model that it names.
    pub adapter: Option<PathBuf>,
}

impl ModelFiles {
    /// An error about a computed value that is not finite, replaced by one about the weight that is not finite either, if
    /// there is one. (A check before the pass would read weights that it does not need.)
    pub fn with_bad_weight(&self, error: Error) -> Error {
        match error {
            Error::NotFinite { .. } => self.checkpoint.check_finite().err().unwrap_or(error),
            other => other,
        }
    }

    /// Loads its tokenizer.
    ///
    /// # Errors
    /// No `tokenizer.json` in its directory, or no vocabulary in its file, or one that cannot be read.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match (&self.tokenizer, &self.gguf) {
            (Some(dir), _) => Tokenizer::load(dir),
            (None, Some(file)) => gguf::tokenizer::tokenizer(file),
            (None, None) if self.is_embedded() => embedded::tokenizer(),
            (None, None) => Tokenizer::load(self.tokenizer_dir()),
        }
    }

    /// The same for what is token ids already: none where the model has no tokenizer.
    ///
    /// # Errors
    /// A tokenizer that cannot be read.
    pub fn tokenizer_if_any(&self) -> Result<Option<Tokenizer>> {
        let is_there = match (&self.tokenizer, &self.gguf) {
            (Some(_), _) => true,
            (None, Some(file)) => gguf::tokenizer::is_in(file),
            (None, None) => self.is_embedded() || Tokenizer::is_in(self.tokenizer_dir()),
        };
        is_there.then(|| self.tokenizer()).transpose()
    }

    /// As AutoTokenizer does with the same name: an adapter may have added tokens.
    pub fn tokenizer_dir(&self) -> &Path {
        self.adapter.as_ref().filter(|dir| dir.join("tokenizer.json").exists()).unwrap_or(&self.path)
    }

    /// What lies beside its weights, of which a directory of the same model has a copy; nothing of a GGUF file.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn beside(&self) -> Result<BTreeMap<String, Vec<u8>>> {
        if self.is_embedded() {
            return Ok(embedded::files().map(|(name, bytes)| (name.to_owned(), bytes.to_vec())).into());
        }
        let mut beside = pretrained::beside(&self.path)?;
        if self.tokenizer_dir() != self.path {
            let others = pretrained::beside(self.tokenizer_dir())?;
            beside.extend(others.into_iter().filter(|(name, _)| pretrained::is_of_tokenizer(name)));
        }
        Ok(beside)
    }

    /// Whether this is the model that is part of the program.
    pub fn is_embedded(&self) -> bool {
        self.path == Path::new(embedded::NAME)
    }
}

/// Finds `--model`: `embedded`, a directory, a GGUF file, or a repository in the Hugging Face cache. One with an adapter in it is the
/// model beside the adapter, or else the base model that the adapter names, as in transformers.
pub fn model(name: &str, common: &CommonArgs) -> Result<ModelFiles> {
    let files = model_of(name, common.revision.as_deref())?;
    let checkpoint = match common.load_in {
        None => files.checkpoint,
        Some(to) => {
            let source = Source::new(&files.config, &files.checkpoint)?;
            match &common.load_in_cache {
                None => quantize::quantized(&source, to.format())?,
                Some(cache) => quantize::cached(&source, to.format(), cache)?,
            }
        }
    };
    Ok(ModelFiles { checkpoint, tokenizer: common.tokenizer.clone(), ..files })
}

/// The same for a revision.
pub fn model_of(name: &str, revision: Option<&str>) -> Result<ModelFiles> {
    if name == embedded::NAME {
        without_revision("the embedded model", revision)?;
        let (config, checkpoint) = (embedded::config()?, embedded::checkpoint()?);
        let dtype = config.dtype.unwrap_or(Dtype::BF16);
        return Ok(ModelFiles {
            path: name.into(),
            config,
            checkpoint,
            dtype,
            tokenizer: None,
            gguf: None,
            adapter: None,
        });
    }
    if Gguf::is_one(Path::new(name)) {
        return gguf_model(name, revision);
    }
    let env = cache_env();
    let found = hub::resolve(name, revision, &env)?;
    let path = match adapter::base_model(&found)? {
        None => found.clone(),
        Some((base, revision)) if Gguf::is_one(Path::new(&base)) => {
            return Ok(ModelFiles { adapter: Some(found), ..gguf_model(&base, revision.as_deref())? });
        }
        Some((base, revision)) => {
            let path = hub::resolve(&base, revision.as_deref(), &env).map_err(|error| match error {
                Error::Argument { found: places, .. } => other_base(&found, places),
                other => other,
            })?;
            if adapter::base_model(&path)?.is_some() {
                return Err(other_base(&found, format!("{base:?}, an adapter")));
            }
            path
        }
    };
    let adapter = adapter::is_adapter(&found).then_some(found);
    let config = ModelConfig::load(&path)?;
    let checkpoint = Checkpoint::open(ModelConfig::weights_file(&path)?.as_ref().unwrap_or(&path))?;
    let checkpoint = prequantized::quantized_model(&path, checkpoint)?;
    let source = Source::new(&config, &checkpoint)?;
    source.check()?;
    let config = source.config;
    // This is the rule of transformers.
    let first = || checkpoint.iter().find_map(|t| t.float());
    let dtype = config.dtype.or_else(first).unwrap_or(Dtype::F32);
    Ok(ModelFiles { path, config, checkpoint, dtype, tokenizer: None, gguf: None, adapter })
}

/// Refuses a revision of what has none.
fn without_revision(what: &str, revision: Option<&str>) -> Result<()> {
    match revision {
        None => Ok(()),
        Some(revision) => Err(Error::argument("revision", format!("none for {what}"), revision)),
    }
}

/// A model that is a GGUF file.
fn gguf_model(name: &str, revision: Option<&str>) -> Result<ModelFiles> {
    without_revision(&format!("the file {name}"), revision)?;
    let GgufModel { file, config, checkpoint } = GgufModel::open(name, Loading::Mapped)?;
    let source = Source::new(&config, &checkpoint)?;
    source.check()?;
    let config = source.config;
    let dtype = config.dtype.unwrap_or(Dtype::F32);
    Ok(ModelFiles { path: name.into(), config, checkpoint, dtype, tokenizer: None, gguf: Some(file), adapter: None })
}

/// The same for what needs logits or losses, and so a head.
pub fn model_with_head(name: &str, common: &CommonArgs) -> Result<ModelFiles> {
    let files = model(name, common)?;
    files.config.require_head()?;
    Ok(files)
}

/// The error of an adapter that names a base model which is no model here.
fn other_base(adapter: &Path, found: String) -> Error {
    let expected = "a base model that is here; or give both, as --model BASE and --adapter DIR";
    Error::field(adapter.join("adapter_config.json"), "base_model_name_or_path", expected, found)
}

/// The variables that say where the Hugging Face cache is.
fn cache_env() -> CacheEnv {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    CacheEnv {
        hf_hub_cache: variable("HF_HUB_CACHE"),
        huggingface_hub_cache: variable("HUGGINGFACE_HUB_CACHE"),
        hf_home: variable("HF_HOME"),
        xdg_cache_home: variable("XDG_CACHE_HOME"),
        home: variable("HOME"),
    }
}

/// [`model_with_head`] of a command that applies no adapter to it.
///
/// # Errors
/// As [`model_with_head`]; an adapter in its directory, which may not be passed over.
pub fn base_model(name: &str, common: &CommonArgs) -> Result<ModelFiles> {
    let files = model_with_head(name, common)?;
    match &files.adapter {
        None => Ok(files),
        Some(dir) => {
            let expected = "a model without an adapter (train-lora and train-prompt take one with --init-adapter, capture \
                            and generate with --adapter)";
            Err(Error::argument("model", expected, dir.join("adapter_config.json").display()))
        }
    }
}

/// The directory of the adapter to apply: that of `--adapter`, or else that of the model.
///
/// # Errors
/// There are both; `--adapter` is not there.
pub fn adapter_dir(given: Option<&Path>, model: &ModelFiles) -> Result<Option<PathBuf>> {
    match (given, &model.adapter) {
        (Some(given), Some(dir)) => {
            let other = dir.join("adapter_config.json");
            let expected = format!("none, where --model has an adapter already ({})", other.display());
            Err(Error::argument("adapter", expected, given.display()))
        }
        (Some(given), None) => trained_adapter("adapter", given).map(Some),
        (None, Some(dir)) => Ok(Some(dir.clone())),
        (None, None) => Ok(None),
    }
}

/// Finds the adapter that a flag names: a directory, or a repository in the Hugging Face cache.
pub fn trained_adapter(flag: &str, path: &Path) -> Result<PathBuf> {
    match path.to_str() {
        // What is no name of a repository is described by its reader.
        Some(name) if !path.exists() && hub::is_adapter_name(name) => hub::resolve_adapter(flag, name, &cache_env()),
        _ => Ok(path.to_path_buf()),
    }
}

/// Reads the adapter to apply, if there is one ([`adapter_dir`]), and checks that it fits the model.
pub fn adapter(given: Option<&Path>, model: &ModelFiles) -> Result<Option<Adapter>> {
    let Some(dir) = adapter_dir(given, model)? else { return Ok(None) };
    if given.is_none() {
        log::warn!("{}: applied, since --model has it", dir.join("adapter_config.json").display());
    }
    let adapter = read_adapter(&dir, model)?;
    if let Adapter::Lora(lora) = &adapter {
        check_base(lora, &dir, model)?;
    }
    Ok(Some(adapter))
}

/// Reads an adapter, and checks that its saved modules are the model's.
pub fn read_adapter(path: impl AsRef<Path>, model: &ModelFiles) -> Result<Adapter> {
    let path = path.as_ref();
    let adapter = Adapter::read(path, &model.config)?;
    if let Adapter::Lora(lora) = &adapter {
        saved_modules::saved_params(&model.config, lora).map_err(|error| match error {
            Error::Argument { name, expected, found } => Error::field(path, name, expected, found),
            other => other,
        })?;
    }
    Ok(adapter)
}

/// Refuses an adapter whose file has another base model's tables of tokens ([`lora_start::check_base`]).
pub fn check_base(adapter: &LoraAdapter, path: &Path, model: &ModelFiles) -> Result<()> {
    if adapter.tables.is_empty() {
        return Ok(());
    }
    lora_start::check_base(adapter, path, &Source::new(&model.config, &model.checkpoint)?)
}

/// `--target-modules`: a list of names, `all-linear`, or a regular expression; the family's own choice if not given.
pub fn modules(names: Option<&[String]>, family: Family) -> Modules {
    let Some(names) = names else {
        return Modules::List(family.default_modules().iter().map(|&t| family.short_name(t).to_owned()).collect());
    };
    let plain = |name: &String| name.chars().all(|c| c.is_alphanumeric() || "._-".contains(c));
    match names {
        [all] if all == "all-linear" => Modules::AllLinear,
        names if names.iter().all(plain) => Modules::List(names.to_vec()),
        // The commas at which the flag was split are the expression's own.
        names => Modules::Regex(names.join(",")),
    }
}

/// A choice of modules as the flag has it.
pub fn modules_name(modules: &Modules) -> Value {
    match modules {
        Modules::List(names) => json!(names.join(",")),
        Modules::Regex(pattern) => json!(pattern),
        Modules::AllLinear => json!("all-linear"),
    }
}

/// `--target-modules` as a list of names.
pub fn module_names(args: &LoraArgs, family: Family) -> Vec<String> {
    match modules(args.target_modules.as_deref(), family) {
        Modules::AllLinear => all_linear(family),
        Modules::List(names) => names,
        Modules::Regex(regex) => vec![regex],
    }
}

/// The names of all linear modules of a family.
pub fn all_linear(family: Family) -> Vec<String> {
    family.modules().iter().map(|&t| family.short_name(t).to_owned()).collect()
}

/// The error of an argument under its flag.
pub fn flag_of(flag: &str) -> impl Fn(Error) -> Error {
    move |error| match error {
        Error::Argument { expected, found, .. } => Error::Argument { name: flag.to_owned(), expected, found },
        other => other,
    }
}

/// The layers of `--layers-to-transform`, of a model of `depth` layers; none for all.
pub fn layers(text: &Option<String>, depth: usize) -> Result<Option<Vec<usize>>> {
    let Some(text) = text else { return Ok(None) };
    let layers = site::layers(text, depth).map_err(flag_of("--layers-to-transform"))?;
    Ok((layers.len() < depth).then_some(layers))
}

/// The entries of `--rank-pattern` or `--alpha-pattern`.
pub fn pattern<T>(flag: &str, given: &Option<Pattern>, read: impl Fn(&Value) -> Option<T>) -> Result<Vec<(String, T)>> {
    let entry = |(key, value): (&String, &Value)| {
        let number = read(value).ok_or_else(|| Error::argument(flag, format!("a number for {key:?}"), value))?;
        Ok((key.clone(), number))
    };
    given.iter().flatten().map(entry).collect()
}

/// An adapter of zeros, which has the layout that its configuration asks for.
pub fn zero_adapter(config: LoraConfig, model: &ModelConfig) -> Result<LoraAdapter> {
    let zeros = |slot: Slot| {
        let (input, output) = slot.target.widths(model.block_widths());
        let Slot { layer, target, r, scale } = slot;
        let magnitude = config.use_dora.then(|| vec![0.0; output]);
        LoraModule { layer, target, r, scale, a: vec![0.0; r * input], b: vec![0.0; output * r], magnitude }
    };
    let slots = config.slots(model.family, model.num_hidden_layers)?;
    let modules = slots.blocks.into_iter().map(zeros).collect();
    let tables = slots.tables.into_iter().map(|slot| TableLora::zeros(slot, model)).collect();
    let ties_head = config.ties_head(model);
    Ok(LoraAdapter { tables, ties_head, ..LoraAdapter::new(config, model, modules) })
}

/// The settings of a run as the optimiser's flags ask for, validated, with a learning rate of their list.
pub fn settings(args: &OptimArgs, learning_rate: Option<f64>, seed: u64, shuffle: bool) -> Result<RunSettings> {
    let defaults = RunSettings::default();
    let settings = RunSettings {
        seed,
        shuffle,
        length: match (args.max_steps, args.epochs) {
            (Some(steps), _) => Length::Steps(steps),
            (None, Some(epochs)) => Length::Epochs(epochs),
            (None, None) => defaults.length,
        },
        batch_size: args.batch_size,
        accumulation: args.gradient_accumulation_steps,
        learning_rate: learning_rate.unwrap_or(defaults.learning_rate),
        loraplus_lr_ratio: None,
        schedule: args.lr_scheduler_type,
        min_lr_rate: 0.0,
        warmup: match (args.warmup_steps, args.warmup_ratio) {
            (Some(steps), _) => Warmup::Steps(steps),
            (None, Some(ratio)) => Warmup::Ratio(ratio),
            (None, None) => defaults.warmup,
        },
        beta1: args.betas.adam_beta1,
        beta2: args.betas.adam_beta2,
        epsilon: args.adam_epsilon,
        weight_decay: args.regularization.weight_decay,
        max_grad_norm: clip_threshold(&args.regularization),
    };
    settings.validate()?;
    Ok(settings)
}

/// The checkpoint to resume from, if any.
pub fn resume(args: &CheckpointArgs, out: &Path) -> Result<Option<PathBuf>> {
    match args.resume_from_checkpoint.as_deref() {
        None => match checkpoint::latest(out)? {
            None => Ok(None),
            // Before anything is written, since what lies there belongs to another training.
            Some(found) => {
                let expected = "a directory without checkpoints, or --resume-from-checkpoint to continue from one";
                Err(Error::argument("--out", expected, found.display()))
            }
        },
        Some("latest") => {
            let found = checkpoint::latest(out)?;
            if found.is_none() {
                output::note(format_args!("no checkpoint in {}: from the beginning", out.display()));
            }
            Ok(found)
        }
        Some(path) if Path::new(path).is_dir() => Ok(Some(path.into())),
        Some(path) => Err(Error::argument("--resume-from-checkpoint", "a checkpoint's directory, or latest", path)),
    }
}

/// The gradient-norm clipping threshold of `--max-grad-norm`, where 0 disables clipping, as in other trainers.
pub fn clip_threshold(args: &RegularizationArgs) -> Option<f64> {
    (args.max_grad_norm != 0.0).then_some(args.max_grad_norm)
}

/// Most runs of one training, and most seeds of an experiment.
pub const MAX_RUNS: usize = 4096;

/// How a task's examples become text: as `--template` says, of which keys that are left out are the task's, and with
/// `--apply-chat-template` in turns unless it says otherwise.
pub fn template(task: &Task, text: Option<&str>, apply_chat_template: bool) -> Result<Template> {
    let own = task.template().clone();
    let chat = apply_chat_template || own.is_chat();
    let own = own.with_chat(chat);
    text.map_or(Ok(own.clone()), |text| Template::parse(text, &own))
}

/// `count` seeds, counted up from `first`.
pub fn seeds(first: u64, count: u64) -> Result<Vec<u64>> {
    if count == 0 || count > MAX_RUNS as u64 {
        return Err(Error::argument("--seeds", format!("from 1 to {MAX_RUNS}"), count));
    }
    let end = first.checked_add(count).ok_or_else(|| Error::argument("--seed", "a smaller seed", first))?;
    Ok((first..end).collect())
}

/// What a computation ran on, in place of `auto`.
pub struct Used {
    /// `cpu`, or `cuda:N`.
    pub device: String,
    /// The dtype of the matrix products, as a flag has it.
    pub dtype: String,
    /// Threads of the CPU backend.
    pub threads: usize,
}

impl Used {
    /// What a job runs on, asked inside it.
    pub fn of<B: Backend>(backend: &B) -> Self {
        let name = backend.name();
        let (device, dtype) = name.split_once(' ').unwrap_or((&name, "auto"));
        Self { device: device.to_owned(), dtype: dtype.to_owned(), threads: rayon::current_num_threads() }
    }
}

/// Writes the resolved configuration beside the outputs, in the form that `--config` reads.
pub fn write_config(out: &Path, command: &str, args: &impl Serialize) -> Result<()> {
    write_keys(out, command, args, [])
}

/// The same with what was used of what may have been left to choose.
pub fn write_used_config(out: &Path, command: &str, args: &impl Serialize, used: &Used) -> Result<()> {
    let (device, dtype) = (used.device.as_str().into(), used.dtype.as_str().into());
    write_keys(out, command, args, [("device", device), ("dtype", dtype), ("threads", used.threads.into())])
}

fn write_keys<const N: usize>(
    out: &Path,
    command: &str,
    args: &impl Serialize,
    used: [(&str, Value); N],
) -> Result<()> {
    let path = out.join(CONFIG_FILE);
    let mut keys: BTreeMap<String, Value> =
        serde_json::to_value(args).and_then(serde_json::from_value).map_err(Error::file(&path))?;
    keys.extend(used.map(|(key, value)| (key.to_owned(), value)));
    keys.retain(|_, value| !value.is_null());
    let yaml = serde_norway::to_string(&keys).map_err(Error::file(&path))?;
    atomic::write(&path, format!("# llamaprobe {} {command}\n{yaml}", env!("CARGO_PKG_VERSION")).as_bytes())
}
