//! The state of a model with an adapter in it, by name, as PEFT 0.21 builds it and loads a file into it.
//!
//! PEFT renames the tensors of a file that are the adapter's, and gives all of them to `load_state_dict`, strict about
//! nothing: so every tensor whose name is in the model's state is loaded, be it the adapter's or the base model's.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::arch::{Family, ModelConfig, Projection};
use crate::formats::adapter::{LoraConfig, Module, ModuleKind};
use crate::model::param_id::ParamId;

/// What the names of PEFT's tensors begin with.
pub const PREFIX: &str = "base_model.model.";
/// The adapter's name in the model, which the file's names do not have.
const NAME: &str = ".default";

/// The state of a model with a LoRA in it; names without [`PREFIX`].
pub struct State {
    /// Name and shape of every tensor; no shape where it is not known here.
    tensors: BTreeMap<String, Option<Vec<usize>>>,
    /// The name in a file of every tensor that is the adapter's, and its name in the state.
    adapter: BTreeMap<String, String>,
    /// The names that a file must have, and their names in the state.
    demanded: BTreeMap<String, String>,
    /// Number of layers, which `layer_replication` changes.
    pub layers: usize,
}

/// What becomes of a file's tensors.
#[derive(Default)]
pub struct Loaded {
    /// Those that are loaded into A and B.
    pub plain: Vec<String>,
    /// Those that are loaded into something else of the adapter.
    pub beside: Vec<String>,
    /// Those that replace weights of the model.
    pub replaced: Vec<String>,
    /// Those that nothing loads.
    pub ignored: Vec<String>,
    /// The adapter's tensors that no tensor of the file is loaded into, of which PEFT warns.
    pub missing: Vec<String>,
    /// Why PEFT stops, if it does.
    pub stops: Option<String>,
}

/// A key of the configuration that is there and that Python takes for true.
pub fn is_set(config: &Value, key: &str) -> bool {
    match config.get(key) {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Array(list)) => !list.is_empty(),
        Some(Value::Object(map)) => !map.is_empty(),
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Number(number)) => number.as_f64() != Some(0.0),
        Some(Value::Bool(true)) => true,
    }
}

/// A key of the configuration that is there and not `null`.
pub fn is_there(config: &Value, key: &str) -> bool {
    config.get(key).is_some_and(|value| !value.is_null())
}

/// The names in a list of the configuration.
fn names(config: &Value, key: &str) -> Vec<String> {
    let list = config.get(key).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

impl State {
    /// The state of the model alone.
    pub fn new(model: &ModelConfig) -> Self {
        let family = model.family;
        let mut tensors: BTreeMap<_, _> =
            ParamId::all(model).into_iter().map(|id| (id.tensor(family), Some(id.stored_shape(model)))).collect();
        // A tied head is in the state as well; there it has one name in all families.
        let table = tensors[&ParamId::Embed.tensor(family)].clone();
        let head = tensors.remove(&ParamId::Head.tensor(family)).unwrap_or(table);
        tensors.insert("lm_head.weight".to_owned(), head);
        let layers = model.num_hidden_layers;
        Self { tensors, adapter: BTreeMap::new(), demanded: BTreeMap::new(), layers }
    }

    /// The model's modules, with those matrices that only some models of a family have.
    pub fn modules(&self, family: Family) -> Vec<Module> {
        let mut modules = family.all_modules(self.layers);
        for path in ["model.decoder.project_in", "model.decoder.project_out"] {
            if self.tensors.contains_key(&format!("{path}.weight")) {
                modules.push(Module { path: path.to_owned(), kind: ModuleKind::Matrix });
            }
        }
        modules
    }

    /// Puts all that a configuration asks for into a model.
    ///
    /// # Errors
    /// Where PEFT stops, and why.
    pub fn adapt(model: &ModelConfig, config: &Value, lora: &LoraConfig) -> Result<Self, String> {
        let mut state = Self::new(&replicated(model, config)?);
        let modules = state.modules(model.family);
        let saved = names(config, "modules_to_save");
        let targeted = lora.targeted(&modules).map_err(|error| error.to_string())?;
        let targeted: Vec<&Module> =
            targeted.into_iter().filter(|module| !saved.iter().any(|name| within(name, &module.path))).collect();
        if targeted.is_empty() && !is_set(config, "target_parameters") {
            return Err("NoMatchingPeftModuleError, target_modules names no module of this model".to_owned());
        }
        for module in &targeted {
            if module.kind == ModuleKind::Other {
                return Err(format!("ValueError, target_modules names {}, which is no matrix", module.path));
            }
            let rank = lora.rank(&module.path).map_err(|error| error.to_string())?;
            state.add_lora(model, config, module, rank)?;
        }
        if is_set(config, "ensure_weight_tying") && model.tie_word_embeddings {
            let tied = |module: &&Module| module.kind == ModuleKind::Head;
            let embedding = |module: &Module| module.kind == ModuleKind::Embedding;
            if let Some(head) = modules.iter().find(tied).filter(|_| targeted.iter().any(|m| embedding(m))) {
                state.add_lora(model, config, head, lora.r)?;
            }
        }
        state.wrap_parameters(&names(config, "target_parameters"));
        state.save(model, config, &modules);
        state.add_tokens(model, config, &modules)?;
        Ok(state)
    }

    /// Puts the vectors of an IA3 into a model: layer, module, whether its input is multiplied.
    pub fn with_vectors(model: &ModelConfig, config: &Value, slots: &[(usize, Projection, bool)]) -> Self {
        let mut state = Self::new(model);
        let modules = state.modules(model.family);
        for &(layer, target, feedforward) in slots {
            let path = model.family.path(layer, target);
            state.wrap(&path, "base_layer");
            let (input, output) = target.widths(model.block_widths());
            let shape = if feedforward { vec![1, input] } else { vec![output, 1] };
            state.add(&format!("{path}.ia3_l"), "", Some(shape));
        }
        state.save(model, config, &modules);
        state
    }

    /// Moves a module's own tensors to where the adapter keeps them.
    fn wrap(&mut self, path: &str, inner: &str) {
        let own = format!("{path}.");
        let moved: Vec<String> = self.tensors.keys().filter(|name| name.starts_with(&own)).cloned().collect();
        for name in moved {
            let shape = self.tensors.remove(&name).flatten();
            self.tensors.insert(format!("{own}{inner}.{}", &name[own.len()..]), shape);
        }
    }

    /// A tensor of the adapter: its path, and what its name ends in behind the adapter's.
    fn add(&mut self, path: &str, end: &str, shape: Option<Vec<usize>>) {
        let name = format!("{path}{NAME}{end}");
        self.adapter.insert(format!("{path}{end}"), name.clone());
        self.tensors.insert(name, shape);
    }

    fn add_lora(&mut self, model: &ModelConfig, config: &Value, module: &Module, r: usize) -> Result<(), String> {
        let path = &module.path;
        let stored = self.tensors.get(&format!("{path}.weight")).cloned().flatten();
        self.wrap(path, "base_layer");
        let (input, output) = match (module.kind, stored.as_deref()) {
            (ModuleKind::Projection { target, .. }, _) => target.widths(model.block_widths()),
            (_, Some([rows, width])) => (*width, *rows),
            _ => return Err(format!("ValueError, {path} has no matrix")),
        };
        if matches!(module.kind, ModuleKind::Embedding | ModuleKind::Positions) {
            self.add(&format!("{path}.lora_embedding_A"), "", Some(vec![r, output]));
            self.add(&format!("{path}.lora_embedding_B"), "", Some(vec![input, r]));
            if is_set(config, "use_dora") {
                self.add(&format!("{path}.lora_magnitude_vector"), ".weight", Some(vec![input]));
            }
            return Ok(());
        }
        let [a, b] = blocks(config, path)?;
        self.add(&format!("{path}.lora_A"), ".weight", Some(vec![r, input / a]));
        self.add(&format!("{path}.lora_B"), ".weight", Some(vec![output, r / b]));
        if is_set(config, "lora_bias") {
            self.add(&format!("{path}.lora_B"), ".bias", Some(vec![output]));
        }
        if is_set(config, "use_dora") {
            self.add(&format!("{path}.lora_magnitude_vector"), ".weight", Some(vec![output]));
        }
        if is_there(config, "kasa_config") {
            self.add(&format!("{path}.lora_diag"), "", Some(vec![r]));
        }
        if is_there(config, "velora_config") {
            self.add(&format!("{path}.lora_velora_embed"), "", None);
        }
        if is_there(config, "monteclora_config") {
            for part in [".expert_weights", ".expert_weights_prior", ".gaussian_var_prior", ".std_prior"] {
                self.add(&format!("{path}.lora_monteclora_sampler"), part, None);
            }
        }
        Ok(())
    }

    /// `target_parameters`: the modules that hold parameters of these names or ends.
    fn wrap_parameters(&mut self, parameters: &[String]) {
        let named = |name: &String| parameters.iter().any(|p| name == p || name.ends_with(&format!(".{p}")));
        let found: BTreeSet<String> = self.tensors.keys().filter(|name| named(name)).cloned().collect();
        for path in found.iter().filter_map(|name| name.rsplit_once('.')).map(|(path, _)| path) {
            self.wrap(path, "base_layer");
            self.add(&format!("{path}.lora_A"), ".weight", None);
            self.add(&format!("{path}.lora_B"), ".weight", None);
        }
    }

    /// `modules_to_save`: the modules whose path ends in a name, be it in the middle of a word.
    pub fn save(&mut self, model: &ModelConfig, config: &Value, modules: &[Module]) {
        let mut saved = names(config, "modules_to_save");
        let table = ParamId::Embed.tensor(model.family);
        if is_set(config, "ensure_weight_tying")
            && model.tie_word_embeddings
            && saved.iter().any(|name| table.ends_with(&format!("{name}.weight")))
        {
            saved.push("lm_head".to_owned());
        }
        for module in modules.iter().filter(|module| saved.iter().any(|name| module.path.ends_with(name))) {
            let own = format!("{}.", module.path);
            let tensors: Vec<String> = self.tensors.keys().filter(|name| name.starts_with(&own)).cloned().collect();
            for tensor in tensors {
                let shape = self.tensors.remove(&tensor).flatten();
                let rest = &tensor[own.len()..];
                let copy = format!("{own}modules_to_save{NAME}.{rest}");
                self.tensors.insert(copy.clone(), shape.clone());
                self.tensors.insert(format!("{own}original_module.{rest}"), shape);
                self.demanded.insert(tensor, copy);
            }
        }
    }

    /// `trainable_token_indices`: a list for the embedding table, or lists by module.
    fn add_tokens(&mut self, model: &ModelConfig, config: &Value, modules: &[Module]) -> Result<(), String> {
        let table = ParamId::Embed.tensor(model.family).replace(".weight", "");
        let wanted: Vec<(String, usize)> = match config.get("trainable_token_indices") {
            Some(Value::Array(tokens)) => vec![(table.clone(), tokens.len())],
            Some(Value::Object(map)) => {
                map.iter().map(|(name, tokens)| (name.clone(), tokens.as_array().map_or(0, Vec::len))).collect()
            }
            _ => return Ok(()),
        };
        for (name, tokens) in wanted {
            let found: Vec<&Module> = modules.iter().filter(|module| module.path.ends_with(&name)).collect();
            if found.is_empty() {
                return Err(format!(
                    "ValueError, trainable_token_indices names {name:?}, which this model does not have"
                ));
            }
            for module in found {
                let path = &module.path;
                self.wrap(path, "token_adapter.base_layer");
                let file = format!("{path}.token_adapter.trainable_tokens_delta");
                self.tensors.insert(format!("{file}{NAME}"), Some(vec![tokens, model.embed_size]));
                self.demanded.insert(file.clone(), format!("{file}{NAME}"));
                if model.tie_word_embeddings && *path == table {
                    self.wrap("lm_head", "token_adapter.base_layer");
                }
            }
        }
        Ok(())
    }

    /// What becomes of a file's tensors, by name and shape; the model's own begin with `prefix` there.
    pub fn load(&self, file: &BTreeMap<String, Vec<usize>>, prefix: &str) -> Loaded {
        let mut loaded = Loaded::default();
        if let Some(name) = self.demanded.keys().find(|name| !file.contains_key(&format!("{prefix}{name}"))) {
            loaded.stops = Some(format!("KeyError, the file has no {prefix}{name}"));
            return loaded;
        }
        let mut taken: BTreeMap<&str, &str> = BTreeMap::new();
        for (name, shape) in file {
            let Some(here) = name.strip_prefix(prefix).map(|bare| self.name_here(bare)) else {
                loaded.ignored.push(name.clone());
                continue;
            };
            let Some((here, expected)) = self.tensors.get_key_value(here.as_str()) else {
                loaded.ignored.push(name.clone());
                continue;
            };
            if expected.as_ref().is_some_and(|expected| expected != shape) {
                let expected = expected.as_deref().unwrap_or_default();
                loaded.stops = Some(format!("size mismatch, {name} is {shape:?}, expected {expected:?}"));
                return loaded;
            }
            // Of two names for one tensor the last in order counts.
            if let Some(first) = taken.insert(here, name) {
                loaded.ignored.push(first.to_owned());
            }
        }
        for (here, name) in &taken {
            let of_lora = ["lora_A", "lora_B"].iter().any(|part| here.ends_with(&format!(".{part}{NAME}.weight")));
            let plain = of_lora || here.ends_with(&format!(".ia3_l{NAME}"));
            let list = match (plain, here.contains(NAME)) {
                (true, _) => &mut loaded.plain,
                (false, true) => &mut loaded.beside,
                (false, false) => &mut loaded.replaced,
            };
            list.push((*name).to_owned());
        }
        let missing = self.adapter.iter().filter(|(_, here)| !taken.contains_key(here.as_str()));
        loaded.missing = missing.map(|(name, _)| format!("{prefix}{name}")).collect();
        loaded
    }

    /// The name in the state of a file's tensor.
    fn name_here(&self, name: &str) -> String {
        if let Some(here) = self.demanded.get(name) {
            return here.clone();
        }
        // A magnitude was a parameter once, and is a module's weight today.
        let name = if name.ends_with("lora_magnitude_vector") { format!("{name}.weight") } else { name.to_owned() };
        self.adapter.get(&name).cloned().unwrap_or(name)
    }
}

/// The model with the layers of `layer_replication`.
fn replicated(model: &ModelConfig, config: &Value) -> Result<ModelConfig, String> {
    let mut model = model.clone();
    if !is_set(config, "layer_replication") {
        return Ok(model);
    }
    if !(model.family.named_as_llama() || matches!(model.family, Family::Phi | Family::Starcoder2)) {
        return Err("ValueError, layer_replication finds no layers in a model of this family".to_owned());
    }
    let ends = |range: &Value| Some((range.get(0)?.as_u64()?, range.get(1)?.as_u64()?));
    let ranges: Option<Vec<_>> =
        config["layer_replication"].as_array().and_then(|list| list.iter().map(ends).collect());
    let ranges = ranges.ok_or("an error, layer_replication is no list of pairs")?;
    if ranges.iter().any(|(_, end)| *end > model.num_hidden_layers as u64) {
        return Err("IndexError, layer_replication names a layer that the model does not have".to_owned());
    }
    model.num_hidden_layers = ranges.iter().map(|(start, end)| end.saturating_sub(*start) as usize).sum();
    Ok(model)
}

/// Into how many blocks `use_bdlora` divides A and B of a module.
fn blocks(config: &Value, path: &str) -> Result<[usize; 2], String> {
    let Some(settings) = config.get("use_bdlora").filter(|settings| settings.is_object()) else { return Ok([1, 1]) };
    let [a, b] = ["target_modules_bd_a", "target_modules_bd_b"].map(|key| names(settings, key));
    let [a, b] = [a, b].map(|patterns| patterns.iter().any(|pattern| path.contains(pattern.as_str())));
    let blocks = settings.get("nblocks").and_then(Value::as_u64).unwrap_or(1).max(1) as usize;
    match (a, b) {
        (true, true) => Err(format!("ValueError, use_bdlora names {path} for both A and B")),
        (false, false) if settings.get("match_strict") != Some(&Value::Bool(false)) => {
            Err(format!("ValueError, use_bdlora names {path} for neither A nor B"))
        }
        _ => Ok([a, b].map(|divided| if divided { blocks } else { 1 })),
    }
}

/// Whether a module is one of `modules_to_save`, or lies in one.
fn within(name: &str, path: &str) -> bool {
    path == name
        || path.starts_with(&format!("{name}."))
        || path.ends_with(&format!(".{name}"))
        || path.contains(&format!(".{name}."))
}
