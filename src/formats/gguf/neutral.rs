//! Metadata that change what a model computes and are not computed here: refused by name unless they say what is computed
//! anyway.

use super::{Gguf, Value};
use crate::Result;
use crate::arch::Family;

/// What of a key is computed.
#[derive(Clone, Copy)]
enum Neutral {
    /// This alone.
    Bool(bool),
    /// Each of these; llama.cpp takes 0 for "none" in several factors.
    Numbers(&'static [f64]),
}

/// The keys behind the architecture's name, and what of them is computed.
const KEYS: [(&str, Neutral); 17] = [
    ("attention.causal", Neutral::Bool(true)),
    ("attention.scale", Neutral::Numbers(&[0.0])),
    ("attention.clamp_kqv", Neutral::Numbers(&[0.0])),
    ("attention.max_alibi_bias", Neutral::Numbers(&[0.0])),
    ("attention.temperature_scale", Neutral::Numbers(&[0.0])),
    ("attention.sliding_window_pattern", Neutral::Numbers(&[1.0])),
    ("attn_logit_softcapping", Neutral::Numbers(&[0.0])),
    ("final_logit_softcapping", Neutral::Numbers(&[0.0])),
    ("logit_scale", Neutral::Numbers(&[1.0, 0.0])),
    ("embedding_scale", Neutral::Numbers(&[1.0, 0.0])),
    ("residual_scale", Neutral::Numbers(&[1.0, 0.0])),
    ("use_parallel_residual", Neutral::Bool(false)),
    ("rope.scaling.attn_factor", Neutral::Numbers(&[1.0])),
    ("rope.scaling.yarn_attn_factor", Neutral::Numbers(&[1.0])),
    ("rope.scaling.yarn_ext_factor", Neutral::Numbers(&[1.0])),
    ("rope.scaling.yarn_log_multiplier", Neutral::Numbers(&[0.0])),
    ("rope.scaling.alpha", Neutral::Numbers(&[1.0, 0.0])),
];

/// What of a key is computed in this family; nothing where the family reads it.
fn of_family(family: Family, key: &str, common: Neutral) -> Option<Neutral> {
    match (family, key) {
        (Family::Phi3, "rope.scaling.attn_factor")
        | (Family::Gemma2, "attn_logit_softcapping")
        | (Family::Gemma2 | Family::Gemma3, "final_logit_softcapping")
        | (Family::Gemma3, "attention.sliding_window_pattern") => None,
        // Every second layer has no window; in Phi-3 every layer has one.
        (Family::Gemma2, "attention.sliding_window_pattern") => Some(Neutral::Numbers(&[2.0])),
        (Family::Phi3, "attention.sliding_window_pattern") => Some(Neutral::Numbers(&[0.0])),
        _ => Some(common),
    }
}

/// Whether the file asks for YaRN, in which 1 is the ramp's usual factor; without it llama.cpp takes 0, no ramp.
fn is_yarn(file: &Gguf, architecture: &str) -> bool {
    file.metadata.get(&format!("{architecture}.rope.scaling.type")).and_then(Value::as_str) == Some("yarn")
}

/// Refuses what is not computed.
///
/// # Errors
/// The first key of the list with another value.
pub(super) fn check(file: &Gguf, architecture: &str, family: Family) -> Result<()> {
    for (name, common) in KEYS {
        let Some(neutral) = of_family(family, name, common) else { continue };
        let ramp = name == "rope.scaling.yarn_ext_factor" && !is_yarn(file, architecture);
        let neutral = if ramp { Neutral::Numbers(&[0.0]) } else { neutral };
        let key = format!("{architecture}.{name}");
        let Some(value) = file.metadata.get(&key) else { continue };
        let (fits, expected) = match neutral {
            Neutral::Bool(only) => (*value == Value::Bool(only), only.to_string()),
            Neutral::Numbers(those) => (value.as_f64().is_some_and(|x| those.contains(&x)), those[0].to_string()),
        };
        if !fits {
            let found = value.as_f64().map_or_else(|| value.show(), |x| x.to_string());
            return Err(file.error(&key, format!("{expected} (another is not computed)"), found));
        }
    }
    Ok(())
}
