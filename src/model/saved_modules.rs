//! The saved modules of a run of adapters (PEFT's `modules_to_save`): copies of tables, norms, or other modules that are trained
//! whole beside a LoRA.

use std::ops::Range;

use super::full::WeightLayout;
use super::param_id::{ParamId, Source};
use crate::arch::{ModelConfig, Norm};
use crate::formats::adapter::{LoraAdapter, SavedTensor};
use crate::{Error, Result};

/// The saved modules of a run, behind its adapters.
#[derive(Clone, Debug, PartialEq)]
pub struct SavedModules {
    /// Where each lies in the run's parameters.
    pub layout: WeightLayout,
    /// Whether an embedding table among them is the tied head too.
    pub(crate) ties_head: bool,
    /// Where those of one dimension lie.
    pub(super) vectors: Vec<Range<usize>>,
    /// Whether there is one among these from which PEFT's LoRA+ keeps weight decay: a bias, or of torch's `LayerNorm`.
    pub(crate) no_weight_decay: bool,
}

impl SavedModules {
    /// Those of an adapter, from element `first` of a run's parameters on; none where it has none.
    ///
    /// # Errors
    /// Those of [`saved_params`].
    pub(super) fn new(config: &ModelConfig, adapter: &LoraAdapter, first: usize) -> Result<Option<Self>> {
        if adapter.saved.is_empty() {
            return Ok(None);
        }
        let layout = WeightLayout::of(config, saved_params(config, adapter)?, first);
        let vectors = || layout.params().iter().filter(|(id, _)| id.shape(config).len() == 1);
        let no_weight_decay = |id: &ParamId| match id {
            ParamId::Norm(_) => config.norm == Norm::Layer,
            _ => true,
        };
        Ok(Some(Self {
            ties_head: adapter.ties_head,
            vectors: vectors().map(|&(id, offset)| offset..offset + id.len(config)).collect(),
            no_weight_decay: vectors().any(|(id, _)| no_weight_decay(id)),
            layout,
        }))
    }
}

/// The weights of an adapter's saved modules, in the order of [`ParamId::all`].
///
/// # Errors
/// A tensor that holds no weight of the model as a whole or is of another shape; a module of which a part is missing.
pub fn saved_params(config: &ModelConfig, adapter: &LoraAdapter) -> Result<Vec<ParamId>> {
    for SavedTensor { name, shape, values } in &adapter.saved {
        let Some(id) = ParamId::of_peft(config, name) else {
            let expected = "names of modules that the model has, and holds unfused";
            return Err(Error::argument("modules_to_save", expected, name));
        };
        if *shape != id.shape(config) || values.len() != id.len(config) {
            return Err(Error::argument(name, format!("{:?}", id.shape(config)), format!("{shape:?}")));
        }
    }
    let all = ParamId::all_untied(config);
    let saved = |name: &str| adapter.saved.iter().any(|tensor| tensor.name == name);
    let ids: Vec<ParamId> = all.iter().copied().filter(|id| saved(&id.peft_name(config))).collect();
    let module = |id: &ParamId| id.peft_name(config).rsplit_once('.').map(|(path, _)| path.to_owned());
    let missing = |id: &&ParamId| !ids.contains(id) && ids.iter().any(|other| module(other) == module(id));
    match all.iter().find(missing) {
        None => Ok(ids),
        Some(id) => Err(Error::argument(id.peft_name(config), "the module whole", "a part of it")),
    }
}

/// The tensors of the base model that an adapter's saved modules begin as.
///
/// # Errors
/// A module that the model does not have, or holds fused with others; a tensor that is missing or not finite.
pub fn saved_tensors(source: &Source, paths: &[String]) -> Result<Vec<SavedTensor>> {
    let config = &source.config;
    let mut saved = Vec::new();
    for path in paths {
        let ids: Vec<ParamId> = ParamId::all_untied(config)
            .into_iter()
            .filter(|id| id.peft_name(config).rsplit_once('.').is_some_and(|(at, _)| at == path))
            .collect();
        if ids.is_empty() {
            let expected = "modules that the model has, and holds unfused";
            return Err(Error::argument("modules_to_save", expected, path));
        }
        for id in ids {
            let tied = id == ParamId::Head && config.tie_word_embeddings;
            let view = source.view(if tied { ParamId::Embed } else { id })?;
            let values = view.check_finite().and_then(|()| view.to_f32());
            let values = values.map_err(Error::file(source.checkpoint().path()))?;
            saved.push(SavedTensor { name: id.peft_name(config), shape: id.shape(config), values });
        }
    }
    Ok(saved)
}
