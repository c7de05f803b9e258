//! LoRA adapters in llama.cpp's form (`convert_lora_to_gguf.py`): `general.type` is `adapter`, `adapter.type` is `lora`, and beside
//! each adapted tensor's name stand `.lora_a` `[R, input]` and `.lora_b` `[output, R]`, the latter's rows in the order of the
//! base model's GGUF file. The scale is `adapter.lora.alpha / R`, or 1 where alpha is 0 (`llama-adapter.h`).

use std::collections::BTreeMap;
use std::path::Path;

use super::names;
use super::{Gguf, Tensor};
use crate::Result;
use crate::arch::{ModelConfig, Projection};
use crate::formats::adapter::{LoraAdapter, LoraConfig, LoraModule, Modules};

/// What is adapted, in the order of a model's modules, and its two tensors.
type Found = BTreeMap<(usize, usize), (Projection, String)>;

/// Reads an adapter for a base model, whatever format that is in.
///
/// # Errors
/// See [`Gguf::open`]; another kind of file or of adapter, or one for another architecture; a tensor of another shape, that is
/// not of F32, not finite or of no projection of a block; one of the two without the other.
pub fn read(path: &Path, model: &ModelConfig) -> Result<LoraAdapter> {
    let file = Gguf::read(path)?;
    for (key, expected) in [("general.type", "adapter"), ("adapter.type", "lora")] {
        let found = file.string(key)?;
        if found != expected {
            return Err(file.error(key, expected, found));
        }
    }
    let key = "general.architecture";
    let architecture = file.string(key)?;
    if names::family(architecture) != Some(names::converted(model.family)) {
        return Err(file.error(key, format!("that of the base model, {}", model.family.name()), architecture));
    }
    let key = "adapter.alora.invocation_tokens";
    if file.metadata.contains_key(key) {
        return Err(file.error(key, "nothing (an adapter that some tokens switch on is not computed)", "a value"));
    }
    let key = "adapter.lora.alpha";
    let alpha = file.optional_f64(key)?.ok_or_else(|| file.error(key, "a number", "nothing"))?;
    let found = adapted(&file, model)?;
    let mut modules = Vec::with_capacity(found.len());
    for ((layer, _), (target, name)) in found {
        modules.push(module(&file, model, layer, target, &name, alpha)?);
    }
    let Some(LoraModule { r, .. }) = modules.first() else {
        return Err(file.error("tensors", "at least one pair .lora_a and .lora_b", "none"));
    };
    let paths: Vec<String> = modules.iter().map(|module| model.family.path(module.layer, module.target)).collect();
    let mut config = LoraConfig::new(*r, if alpha == 0.0 { *r as f64 } else { alpha }, Modules::List(paths.clone()));
    for (path, module) in paths.into_iter().zip(&modules).filter(|(_, module)| module.r != config.r) {
        if alpha == 0.0 {
            config.alpha_pattern.push((path.clone(), module.r as f64));
        }
        config.rank_pattern.push((path, module.r));
    }
    Ok(LoraAdapter::new(config, model, modules))
}

/// The adapted projections; every tensor of the file is of one.
fn adapted(file: &Gguf, model: &ModelConfig) -> Result<Found> {
    let mut found = Found::new();
    for name in file.entries.keys() {
        let base = name.strip_suffix(".lora_a").or_else(|| name.strip_suffix(".lora_b"));
        let place = base.and_then(|base| names::weight_of(names::converted(model.family), base));
        let order = |target| model.family.modules().iter().position(|&module| module == target);
        let place = place.and_then(|(layer, target)| Some((layer, target, order(target)?)));
        let place = place.filter(|(layer, ..)| *layer < model.num_hidden_layers);
        let Some((layer, target, at)) = place else {
            let expected = format!("the .lora_a or .lora_b of a projection of {} blocks", model.num_hidden_layers);
            return Err(file.error(name, expected, "another tensor"));
        };
        found.insert((layer, at), (target, base.unwrap_or_default().to_owned()));
    }
    Ok(found)
}

fn module(
    file: &Gguf,
    model: &ModelConfig,
    layer: usize,
    target: Projection,
    name: &str,
    alpha: f64,
) -> Result<LoraModule> {
    let (input, output) = target.widths(model.block_widths());
    let load = |end: &str, expected: &dyn Fn(&[usize]) -> bool, shape: &str| {
        let name = format!("{name}.{end}");
        let tensor: Tensor = file.floats(&name)?;
        if !expected(&tensor.dims) {
            return Err(file.error(&name, format!("dimensions {shape}"), format!("{:?}", tensor.dims)));
        }
        match tensor.values.iter().find(|x| !x.is_finite()) {
            Some(x) => Err(file.error(&name, "finite elements", x.to_string())),
            None => Ok(tensor),
        }
    };
    let a = load("lora_a", &|dims| matches!(dims, [i, r] if *i == input && *r > 0), &format!("[{input}, R]"))?;
    let r = a.dims[1];
    let b = load("lora_b", &|dims| dims == [r, output], &format!("[{r}, {output}]"))?;
    let b = match names::row_order(model, target) {
        None => b.values,
        Some(rows) => rows.iter().flat_map(|&row| &b.values[row as usize * r..][..r]).copied().collect(),
    };
    let scale = if alpha == 0.0 { 1.0 } else { alpha / r as f64 };
    Ok(LoraModule { layer, target, r, scale, a: a.values, b, magnitude: None })
}
