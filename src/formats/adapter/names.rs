//! Names of an adapter's tensors as PEFT and its older releases write them, and the order of fused rows in a file.

use std::borrow::Cow;
use std::path::Path;

use crate::arch::{Family, Projection};

/// Says that an adapter was written for the body alone.
pub(super) fn warn_of_level(file: &Path, level: Option<&str>) {
    if let Some(level) = level {
        let path = file.display();
        log::warn!("{path}: names are without {level}, as PEFT writes them for the body alone; it is applied to that");
    }
}

/// Whether a file orders the rows of a module by head, each with its query, key and value.
pub(super) fn by_head(family: Family, target: Projection) -> bool {
    matches!(family, Family::Bloom | Family::GptNeox) && target == Projection::Qkv
}

/// Query, key and value of head after head to all queries, all keys, all values; a head's part is `block` long.
pub(super) fn unfused(values: &[f32], block: usize) -> Vec<f32> {
    let part = |which: usize| values.chunks_exact(block).skip(which).step_by(3).flatten();
    (0..3).flat_map(part).copied().collect()
}

/// The inverse of [`unfused`].
pub(super) fn fused(values: &[f32], block: usize) -> Vec<f32> {
    let parts: Vec<&[f32]> = values.chunks_exact(values.len() / 3).collect();
    let heads = (0..values.len() / 3).step_by(block);
    heads.flat_map(|at| parts.iter().flat_map(move |part| &part[at..at + block])).copied().collect()
}

/// The first level of the model's names that those of an adapter's file are without: PEFT writes them so for the body
/// alone, as `AutoModel` loads it.
pub fn missing_level<'a>(names: impl Iterator<Item = &'a str>, family: Family) -> Option<&'static str> {
    let level = match family {
        Family::Gpt2 | Family::Bloom | Family::GptJ => "transformer.",
        Family::GptNeox => "gpt_neox.",
        _ => "model.",
    };
    let names: Vec<Cow<str>> = names
        .map(|name| todays_name(name, family))
        .filter(|name| !of_images(name, family))
        .filter_map(|name| name.strip_prefix("base_model.model.").map(|rest| Cow::Owned(rest.to_owned())))
        .collect();
    // The output layer is outside the body.
    let of_body = |name: &str| !name.starts_with("lm_head.");
    let parts = [".lora_A.", ".lora_B.", ".lora_embedding_", ".ia3_l"];
    let of_lora = |name: &str| of_body(name) && parts.iter().any(|part| name.contains(part));
    let whole = names.iter().any(|name| name.starts_with(level));
    (!whole && names.iter().any(|name| of_lora(name))).then_some(level)
}

/// A tensor's name as PEFT writes it today, which reads those of older releases too: before transformers 4.52 a model of
/// texts and images held a whole model of texts.
pub fn todays_name(name: &str, family: Family) -> Cow<'_, str> {
    const OLD: &str = "base_model.model.language_model.model.";
    match name.strip_prefix(OLD).filter(|_| family == Family::Gemma3Images) {
        Some(rest) => Cow::Owned(format!("base_model.model.model.language_model.{rest}")),
        None => Cow::Borrowed(name),
    }
}

/// Whether a tensor adapts the part of images, which does not concern texts.
pub fn of_images(name: &str, family: Family) -> bool {
    let name = name.strip_prefix("base_model.model.").unwrap_or(name);
    let name = name.strip_prefix("model.").unwrap_or(name);
    family == Family::Gemma3Images
        && ["vision_tower.", "multi_modal_projector."].iter().any(|part| name.starts_with(part))
}
