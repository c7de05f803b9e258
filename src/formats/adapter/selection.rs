//! The settings of a LoRA, and which modules they adapt by PEFT's rules: lists, expressions, layers, and patterns of ranks
//! and alphas.

use std::path::Path;

use regex::Regex;
use serde_json::Value;

use super::beside::{Table, TableSlot};
use super::modules::{Module, ModuleKind};
use crate::arch::{Family, ModelConfig, Projection};
use crate::{Error, Result};

/// Limit of a rank; beyond any matrix.
pub(super) const MAX_RANK: usize = 1 << 16;
/// Limit of the steps back that an expression may take; one that needs more matches nothing that anyone names.
const MAX_STEPS_BACK: u32 = 1_000_000;

/// The names by which PEFT knows tables of tokens (`EMBEDDING_LAYER_NAMES`).
const TABLES: [&str; 2] = ["embed_tokens", "lm_head"];

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

/// How A and B start (`init_lora_weights`), for the record where a file is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InitLoraWeights {
    /// A uniform in `±1 / sqrt(input)`, B zero.
    #[default]
    True,
    /// A and B both uniform, within the roots of their own inputs: not the base model at first.
    False,
    /// A normal with deviation `1 / r`, B zero.
    Gaussian,
    /// Both random and orthogonal to each other, so that `B A` is zero.
    Orthogonal,
    /// The leading singular vectors of the base weight, which gives them up (Meng et al., arXiv 2404.02948).
    Pissa,
}

impl InitLoraWeights {
    /// Of a file's field; what starts otherwise, or says nothing, counts as [`InitLoraWeights::True`].
    pub(super) fn of(value: Option<&Value>) -> Self {
        match value {
            Some(Value::Bool(false)) => Self::False,
            Some(Value::String(name)) if name.eq_ignore_ascii_case("gaussian") => Self::Gaussian,
            Some(Value::String(name)) if name == "orthogonal" => Self::Orthogonal,
            _ => Self::True,
        }
    }

    /// As the file has it.
    pub(super) fn to_json(self) -> Value {
        match self {
            Self::True => true.into(),
            Self::False => false.into(),
            Self::Gaussian => "gaussian".into(),
            Self::Orthogonal => "orthogonal".into(),
            Self::Pissa => "pissa".into(),
        }
    }
}

/// One module that a configuration adapts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slot {
    /// Index of the block, from 0.
    pub layer: usize,
    /// The projection, or fused projections, of the block.
    pub target: Projection,
    /// Rank R: that of `rank_pattern`, where it names the module.
    pub r: usize,
    /// `lora_alpha / r`, or `lora_alpha / sqrt(r)`.
    pub scale: f64,
}

/// All modules that a configuration adapts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Slots {
    /// Projections, by layer, then in the family's order.
    pub blocks: Vec<Slot>,
    /// The embedding table, then the head.
    pub tables: Vec<TableSlot>,
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
    /// Which projections are adapted: names, an expression or all.
    pub target_modules: Modules,
    /// Modules that are not adapted even so.
    pub exclude_modules: Option<Modules>,
    /// Layers, where not all; acts on a list of modules only.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Names of the module that holds the layers; empty for any.
    pub layers_pattern: Vec<String>,
    /// Other ranks: expressions for the end of a path, the first that matches counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// Other alphas, matched as `rank_pattern` is.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Whether the scale is divided by the root of the rank.
    pub use_rslora: bool,
    /// Whether each row of the adapted weights has a magnitude of its own (DoRA).
    pub use_dora: bool,
    /// How A and B start.
    pub init_lora_weights: InitLoraWeights,
    /// Modules that are trained whole beside it: ends of their paths, be it in the middle of a word.
    pub modules_to_save: Vec<String>,
    /// Tokens whose rows of the embedding table are trained, those of a head that is tied to it too.
    pub trainable_token_indices: Box<[u32]>,
    /// Whether what is trained of tables that are tied is tied too.
    pub ensure_weight_tying: bool,
    /// Name of the base model, for the record.
    pub base_model_name_or_path: Option<String>,
}

/// What is wrong with a field: its name, what was expected, what was found.
pub(super) type Wrong = (String, String, String);

pub(super) fn wrong(field: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) -> Wrong {
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
            use_dora: false,
            init_lora_weights: InitLoraWeights::True,
            modules_to_save: Vec::new(),
            trainable_token_indices: Box::default(),
            ensure_weight_tying: false,
            base_model_name_or_path: None,
        }
    }

    /// Whether the head follows an embedding table that is trained whole: where they are tied and PEFT knows either by its name.
    pub fn ties_head(&self, model: &ModelConfig) -> bool {
        let known = |name: &String| TABLES.contains(&name.rsplit('.').next().unwrap_or(name));
        self.ensure_weight_tying && model.tie_word_embeddings && self.modules_to_save.iter().any(known)
    }

    /// The paths of the modules that are trained whole. Of tables that are tied to each other only that of the embedding.
    ///
    /// # Errors
    /// An entry that names no module, or one that is adapted, or holds others; tied tables that PEFT does not know by name.
    pub fn saved_modules(&self, model: &ModelConfig) -> Result<Vec<String>> {
        let (paths, notes) =
            self.saved(model).map_err(|(field, expected, found)| Error::argument(field, expected, found))?;
        match notes.into_iter().next() {
            None => Ok(paths),
            Some(name) => Err(Error::argument("modules_to_save", "names of the model's modules", format!("{name:?}"))),
        }
    }

    /// The same of a file, where an entry that names nothing is a warning.
    pub(super) fn saved_of(&self, path: &Path, model: &ModelConfig) -> Result<Vec<String>> {
        let (paths, notes) =
            self.saved(model).map_err(|(field, expected, found)| Error::field(path, field, expected, found))?;
        for name in notes {
            log::warn!("{}: modules_to_save: no module of the model is named {name:?}", path.display());
        }
        Ok(paths)
    }

    /// The paths, and entries that name no module.
    fn saved(&self, model: &ModelConfig) -> Result<(Vec<String>, Vec<String>), Wrong> {
        let (family, field) = (model.family, "modules_to_save");
        let [table, head] = Table::ALL.map(|at| family.table_path(at));
        let mut names = self.modules_to_save.clone();
        if names.iter().any(String::is_empty) {
            return Err(wrong(field, "names of modules", "an empty one"));
        }
        if self.ties_head(model) {
            if !table.ends_with(TABLES[0]) && !names.iter().any(|name| head.ends_with(name.as_str())) {
                return Err(wrong(
                    "ensure_weight_tying",
                    "false, of a model whose table PEFT does not know by name",
                    "true",
                ));
            }
            names.retain(|name| !head.ends_with(name.as_str()));
            names.push(table.to_owned());
        }
        let modules = family.all_modules(model.num_hidden_layers);
        let named = |name: &String| modules.iter().any(|module| module.path.ends_with(name.as_str()));
        let notes: Vec<String> = names.iter().filter(|name| !named(name)).cloned().collect();
        let selection = Selection::new(self)?;
        let mut paths = Vec::new();
        for module in modules.iter().filter(|module| names.iter().any(|name| module.path.ends_with(name.as_str()))) {
            let path = &module.path;
            let last = path.rsplit('.').next().unwrap_or(path);
            let whole = module.kind != ModuleKind::Other || last.contains("norm") || last.starts_with("ln_");
            if !whole || family == Family::Gemma3Images {
                return Err(wrong(field, "tables, norms, matrices or the output layer of a model of texts", path));
            }
            if selection.takes(module) {
                return Err(wrong(field, "modules that are not adapted too", path));
            }
            paths.push(path.clone());
        }
        Ok((paths, notes))
    }

    /// For adapters of twice the rank with the same scales.
    pub(super) fn doubled(&self) -> Self {
        // The scale is alpha / r, or alpha / sqrt(r).
        let more = if self.use_rslora { std::f64::consts::SQRT_2 } else { 2.0 };
        Self {
            r: 2 * self.r,
            lora_alpha: more * self.lora_alpha,
            rank_pattern: self.rank_pattern.iter().map(|(key, r)| (key.clone(), 2 * r)).collect(),
            alpha_pattern: self.alpha_pattern.iter().map(|(key, alpha)| (key.clone(), more * alpha)).collect(),
            ..self.clone()
        }
    }

    /// The modules of a model of `layers` layers that this adapts, by layer, then in the family's order.
    ///
    /// # Errors
    /// A rank of zero, an expression that does not compile, a module that is neither a projection of a block nor a table of
    /// tokens, an entry or layer that matches nothing, or nothing at all to adapt.
    pub fn slots(&self, family: Family, layers: usize) -> Result<Slots> {
        let argument = |(field, expected, found)| Error::argument(field, expected, found);
        let (slots, notes) = self.resolve(family, layers).map_err(argument)?;
        notes.into_iter().next().map_or(Ok(slots), |note| Err(argument(note)))
    }

    /// As [`LoraConfig::slots`], for settings that came from a file, where an entry or layer that matches nothing is a
    /// warning, since the file's tensors show what was adapted.
    pub(super) fn slots_of(&self, path: &Path, family: Family, layers: usize) -> Result<Slots> {
        let (slots, notes) = self
            .resolve(family, layers)
            .map_err(|(field, expected, found)| Error::field(path, field, expected, found))?;
        for (field, expected, found) in notes {
            log::warn!("{}: {field}: expected {expected}, found {found}, which is left aside", path.display());
        }
        Ok(slots)
    }

    /// Those of a model's modules that PEFT adapts, or stops at.
    ///
    /// # Errors
    /// An expression that does not compile, or fields that PEFT does not take beside each other.
    pub fn targeted<'m>(&self, modules: &'m [Module]) -> Result<Vec<&'m Module>> {
        let selection =
            Selection::new(self).map_err(|(field, expected, found)| Error::argument(field, expected, found))?;
        Ok(modules.iter().filter(|module| selection.takes(module)).collect())
    }

    /// Whether PEFT saves the base weights of adapted tables beside the adapter (`save_embedding_layers`): where the choice of
    /// modules names one of these, in no other family's words, and no tokens are trained.
    ///
    /// # Errors
    /// An expression that does not compile.
    pub fn saves_tables(&self, family: Family) -> Result<bool> {
        match &self.target_modules {
            _ if !self.trainable_token_indices.is_empty() => Ok(false),
            Modules::List(list) => Ok(list.iter().any(|entry| TABLES.contains(&entry.as_str()))),
            Modules::AllLinear => Ok(false),
            Modules::Regex(_) => {
                let argument = |(field, expected, found)| Error::argument(field, expected, found);
                let matcher = Matcher::new("target_modules", &self.target_modules).map_err(argument)?;
                let named = |path: &str| TABLES.iter().any(|name| names(name, path));
                Ok(family.all_modules(0).iter().any(|m| named(&m.path) && matcher.matches(&m.path)))
            }
        }
    }

    /// The rank of a module, and its multiplier of `B A x`.
    ///
    /// # Errors
    /// An expression that does not compile.
    pub fn rank(&self, path: &str) -> Result<usize> {
        let ranks = patterns("rank_pattern", &self.rank_pattern);
        let ranks = ranks.map_err(|(field, expected, found)| Error::argument(field, expected, found))?;
        Ok(first_match(&ranks, path).unwrap_or(self.r))
    }

    /// The slots, and what of the fields matches nothing.
    pub(super) fn resolve(&self, family: Family, layers: usize) -> Result<(Slots, Vec<Wrong>), Wrong> {
        let selection = Selection::new(self)?;
        let ranks = patterns("rank_pattern", &self.rank_pattern)?;
        let alphas = patterns("alpha_pattern", &self.alpha_pattern)?;
        let modules = family.all_modules(layers);
        let mut slots = Slots::default();
        for module in modules.iter().filter(|module| selection.takes(module)) {
            let path = &module.path;
            let table = match module.kind {
                ModuleKind::Projection { .. } => None,
                ModuleKind::Embedding => Some(Table::Embed),
                ModuleKind::Head => Some(Table::Head),
                ModuleKind::Positions | ModuleKind::Matrix | ModuleKind::Other => {
                    let expected = "projections of the blocks, the table of tokens or the output layer";
                    return Err(wrong("target_modules", expected, path));
                }
            };
            if table.is_some() && self.ensure_weight_tying {
                // PEFT trains two adapters over one storage then, each with moments of its own.
                return Err(wrong("ensure_weight_tying", format!("false beside an adapter of {path}"), "true"));
            }
            if table.is_some() && self.use_dora {
                return Err(wrong("use_dora", format!("false beside an adapter of {path}"), "true"));
            }
            let own_field = |of_pattern: bool, pattern, common| if of_pattern { pattern } else { common };
            let (own_rank, own_alpha) = (first_match(&ranks, path), first_match(&alphas, path));
            let (r, alpha) = (own_rank.unwrap_or(self.r), own_alpha.unwrap_or(self.lora_alpha));
            if r == 0 || r > MAX_RANK {
                let field = own_field(own_rank.is_some(), "rank_pattern", "r");
                return Err(wrong(field, format!("a rank from 1 to {MAX_RANK} for {path}"), r.to_string()));
            }
            let scale = if self.use_rslora { alpha / (r as f64).sqrt() } else { alpha / r as f64 };
            if !scale.is_finite() {
                let field = own_field(own_alpha.is_some(), "alpha_pattern", "lora_alpha");
                return Err(wrong(field, format!("a finite scale for {path}"), scale.to_string()));
            }
            match (module.kind, table) {
                (ModuleKind::Projection { layer, target }, _) => slots.blocks.push(Slot { layer, target, r, scale }),
                (_, Some(at)) => slots.tables.push(TableSlot { at, r, scale }),
                _ => {}
            }
        }
        let notes = self.unmatched(&selection, &modules, family, layers);
        if !slots.blocks.is_empty() || !slots.tables.is_empty() {
            return Ok((slots, notes));
        }
        // What is empty because of an entry is better said of the entry.
        Err(notes
            .into_iter()
            .next()
            .unwrap_or_else(|| wrong("target_modules", "at least one module of the model", "none")))
    }

    /// What of the fields matches nothing. PEFT passes over it, for some of it with a warning.
    fn unmatched(&self, selection: &Selection, modules: &[Module], family: Family, layers: usize) -> Vec<Wrong> {
        let none = |matches: &dyn Fn(&str) -> bool| !modules.iter().any(|module| matches(&module.path));
        let mut notes = Vec::new();
        if let Modules::List(list) = &self.target_modules {
            let lost = list.iter().filter(|entry| none(&|path| names(entry, path)));
            let expected = format!("names of projections, as {}", family.module_names());
            notes.extend(lost.map(|entry| wrong("target_modules", &expected, format!("{entry:?}"))));
        }
        if let (Modules::List(list), Some([_, ..])) = (&self.target_modules, self.layers_to_transform.as_deref()) {
            let of_no_layer = |entry: &&String| {
                let mut named = modules.iter().filter(|module| names(entry, &module.path)).peekable();
                let in_none = |module: &Module| !selection.in_layers(&module.path);
                let is_table = |kind| matches!(kind, ModuleKind::Embedding | ModuleKind::Head);
                named.peek().is_some() && named.all(|module| is_table(module.kind) && in_none(module))
            };
            let expected = "modules of layers beside layers_to_transform";
            notes.extend(list.iter().filter(of_no_layer).map(|m| wrong("target_modules", expected, format!("{m:?}"))));
        }
        if let Some(l) = self.layers_to_transform.iter().flatten().find(|l| **l >= layers) {
            let found = if *l == usize::MAX { "a negative number".to_owned() } else { l.to_string() };
            notes.push(wrong("layers_to_transform", format!("layers below {layers}"), found));
        }
        if none(&|path| selection.excludes(path)) && self.exclude_modules.is_some() {
            notes.push(wrong("exclude_modules", "names of the model's modules", "none that it has"));
        }
        let taken: Vec<&Module> = modules.iter().filter(|module| selection.takes(module)).collect();
        let ranks = self.rank_pattern.iter().map(|(key, _)| ("rank_pattern", key));
        for (field, key) in ranks.chain(self.alpha_pattern.iter().map(|(key, _)| ("alpha_pattern", key))) {
            let matches = |pattern: Pattern| taken.iter().any(|module| pattern.is_match(&module.path));
            if !end_pattern(field, key).is_ok_and(matches) {
                notes.push(wrong(field, "expressions for modules that are adapted", format!("{key:?}")));
            }
        }
        notes
    }

    /// The layer numbers, where they and what stands beside them are as PEFT takes them.
    fn layer_holders(&self) -> Result<Vec<Regex>, Wrong> {
        if self.layers_to_transform.is_none() && !self.layers_pattern.is_empty() {
            return Err(wrong("layers_pattern", "layers_to_transform beside it", "none"));
        }
        if self.layers_to_transform.is_some() && !matches!(self.target_modules, Modules::List(_)) {
            return Err(wrong("layers_to_transform", "a list of target_modules", "an expression"));
        }
        let compile = |pattern: &String| {
            let whole = format!(r"^(?:|.*?\.){pattern}\.(?P<idx>\d+)\.");
            Regex::new(&whole)
                .map_err(|e| wrong("layers_pattern", "a regular expression", format!("{pattern:?} ({e})")))
        };
        self.layers_pattern.iter().map(compile).collect()
    }
}

/// The compiled fields that choose modules.
struct Selection<'a> {
    config: &'a LoraConfig,
    targets: Matcher<'a>,
    exclude: Option<Matcher<'a>>,
    holders: Vec<Regex>,
}

impl<'a> Selection<'a> {
    fn new(config: &'a LoraConfig) -> Result<Self, Wrong> {
        Ok(Self {
            config,
            targets: Matcher::new("target_modules", &config.target_modules)?,
            exclude: config.exclude_modules.as_ref().map(|m| Matcher::new("exclude_modules", m)).transpose()?,
            holders: config.layer_holders()?,
        })
    }

    fn excludes(&self, path: &str) -> bool {
        self.exclude.as_ref().is_some_and(|matcher| matcher.matches(path))
    }

    fn takes(&self, module: &Module) -> bool {
        let linear = matches!(module.kind, ModuleKind::Projection { .. });
        let path = &module.path;
        let wanted = self.targets.matches(path) && (linear || self.config.target_modules != Modules::AllLinear);
        // Where a module is trained whole, what lies in it is.
        let saved = self.config.modules_to_save.iter().any(|name| lies_in(path, name));
        wanted && !saved && !self.excludes(path) && self.in_layers(path)
    }

    fn in_layers(&self, path: &str) -> bool {
        match (&self.config.layers_to_transform, &self.config.target_modules) {
            // An empty list is no restriction, and neither is one on modules named by their full path.
            (Some(wanted), Modules::List(list)) if !wanted.is_empty() && !list.iter().any(|m| m == path) => {
                let layer = if self.holders.is_empty() {
                    // The first number between names, as `3` in `model.layers.3.mlp`.
                    let parts: Vec<&str> = path.split('.').collect();
                    let inner = parts.len().saturating_sub(1);
                    (2..inner).find_map(|i| parts[i].parse().ok())
                } else {
                    self.holders.iter().find_map(|h| h.captures(path)).and_then(|c| c["idx"].parse().ok())
                };
                layer.is_some_and(|layer| wanted.contains(&layer))
            }
            _ => true,
        }
    }
}

/// An expression of Python, compiled for the whole of a path.
enum Pattern {
    Linear(Regex),
    Backtracking(Box<onig::Regex>),
}

impl Pattern {
    /// Compiles an expression for the whole of a path.
    fn whole(field: &str, shown: &str, pattern: &str) -> Result<Self, Wrong> {
        // Linear-time matching wherever it does; what Python has beyond it is matched with a limit.
        if let Ok(linear) = Regex::new(&format!("^(?:{pattern})$")) {
            return Ok(Self::Linear(linear));
        }
        let (options, syntax) = (onig::RegexOptions::REGEX_OPTION_NONE, onig::Syntax::python());
        let compiled = onig::Regex::with_options(&format!(r"\A(?:{pattern})\Z"), options, syntax);
        compiled
            .map(|regex| Self::Backtracking(Box::new(regex)))
            .map_err(|e| wrong(field, "a regular expression of Python", format!("{shown:?} ({})", e.description())))
    }

    fn is_match(&self, path: &str) -> bool {
        match self {
            Self::Linear(regex) => regex.is_match(path),
            Self::Backtracking(regex) => {
                let mut limits = onig::MatchParam::default();
                limits.set_retry_limit_in_match(MAX_STEPS_BACK);
                let options = onig::SearchOptions::SEARCH_OPTION_NONE;
                matches!(regex.match_with_param(path, 0, options, None, limits), Ok(Some(_)))
            }
        }
    }
}

/// PEFT's matching of a dictionary's keys: at the end of the path, at a dot.
fn end_pattern(field: &str, key: &str) -> Result<Pattern, Wrong> {
    Pattern::whole(field, key, &format!(r"(?:.*\.)?(?:{key})"))
}

fn patterns<T: Copy>(field: &str, entries: &[(String, T)]) -> Result<Vec<(Pattern, T)>, Wrong> {
    entries.iter().map(|(key, value)| Ok((end_pattern(field, key)?, *value))).collect()
}

fn first_match<T: Copy>(patterns: &[(Pattern, T)], path: &str) -> Option<T> {
    patterns.iter().find(|(p, _)| p.is_match(path)).map(|(_, v)| *v)
}

/// What a [`Modules`] says, ready to be asked about many paths.
enum Matcher<'a> {
    List(&'a [String]),
    Regex(Pattern),
    All,
}

impl<'a> Matcher<'a> {
    fn new(field: &str, modules: &'a Modules) -> Result<Self, Wrong> {
        Ok(match modules {
            Modules::List(list) => Self::List(list),
            Modules::Regex(pattern) => Self::Regex(Pattern::whole(field, pattern, pattern)?),
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
}

/// Whether IA3 multiplies the input of a module: one whose path ends in an entry, be it in the middle of a word, as in PEFT.
pub(super) fn is_feedforward(modules: &Modules, path: &str) -> Result<bool, Wrong> {
    let field = "feedforward_modules";
    match modules {
        Modules::List(list) => Ok(list.iter().any(|entry| path.ends_with(entry.as_str()))),
        Modules::Regex(pattern) => Ok(Pattern::whole(field, pattern, pattern)?.is_match(path)),
        Modules::AllLinear => Err(wrong(field, "a list of modules or an expression", "all-linear")),
    }
}

/// Whether a path is that of a module, or of what lies in it, by the module's path or its end after a dot.
fn lies_in(path: &str, module: &str) -> bool {
    path.match_indices(module).any(|(at, _)| {
        let (before, behind) = (&path[..at], &path[at + module.len()..]);
        (before.is_empty() || before.ends_with('.')) && (behind.is_empty() || behind.starts_with('.'))
    })
}

/// Whether a list's entry is the path, or its end after a dot.
fn names(entry: &str, path: &str) -> bool {
    path.strip_suffix(entry).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}
