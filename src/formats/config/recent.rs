//! `config.json` of Gemma and OLMo: LLaMA's make with other norms, caps, windows and rotations.

use super::{dtype, keys, llama, no_effect, unsupported};
use crate::Result;
use crate::arch::{Family, ModelConfig, Norm, NormPlacement, QkNorm, RmsWeight};
use crate::formats::json::Fields;

/// Whether all tokens see one another: EmbeddingGemma.
const TWO_SIDED: &str = "use_bidirectional_attention";

/// Gemma 2 and the text part of Gemma 3.
pub(super) fn gemma(f: &Fields, family: Family) -> Result<ModelConfig> {
    let base = llama(f, family)?;
    let two_sided = f.bool(TWO_SIDED)?.unwrap_or(false);
    if two_sided && (family == Family::Gemma2 || !base.is_causal) {
        return Err(f.error(TWO_SIDED, "false (nothing else is computed here)"));
    }
    // Of each side transformers takes half of the file's window.
    let windows = base.windows.iter().map(|window| window.map(|w| if two_sided { w / 2 } else { w })).collect();
    if two_sided && base.windows.contains(&Some(1)) {
        return Err(f.error("sliding_window", format!("at least 2 beside {TWO_SIDED}")));
    }
    // In old files it stands beside another key, which is not read.
    if f.get("hidden_act").is_some_and(|act| f.get("hidden_activation").is_some_and(|read| read != act)) {
        no_effect(f, "hidden_act", family);
    }
    let cap = |key: &str, default: Option<f64>| match f.f64(key)? {
        Some(cap) if cap > 0.0 => Ok(Some(cap)),
        Some(_) => Err(f.error(key, "a positive number, or null")),
        None if f.has(key) => Ok(None),
        None => Ok(default),
    };
    let [of_scores, of_logits] = ["attn_logit_softcapping", "final_logit_softcapping"];
    let score_softcap = match family {
        Family::Gemma2 => cap(of_scores, Some(50.0))?,
        // Gemma 3's attention does not pass it on.
        _ => {
            if f.get(of_scores).is_some() {
                no_effect(f, of_scores, family);
            }
            None
        }
    };
    let scalar = f.f64("query_pre_attn_scalar")?.unwrap_or(256.0);
    if scalar <= 0.0 {
        return Err(f.error("query_pre_attn_scalar", "a positive number"));
    }
    Ok(ModelConfig {
        norm: Norm::Rms(RmsWeight::OnePlus),
        norm_placement: NormPlacement::PreAndOutput,
        qk_norm: (family == Family::Gemma3).then_some(QkNorm::Head),
        embed_scale: (base.hidden_size as f64).sqrt(),
        score_scales: vec![scalar.powf(-0.5); base.num_hidden_layers],
        is_causal: base.is_causal && !two_sided,
        windows,
        score_softcap,
        logit_softcap: cap(of_logits, (family == Family::Gemma2).then_some(30.0))?,
        ..base
    })
}

/// The text part of a model of texts and images. Of the outer keys the dtype and the tying count, and only Gemma 3's text
/// model alone caps its logits, as in transformers 5.24.
pub(super) fn gemma_images(f: &Fields) -> Result<ModelConfig> {
    let text = f.require("text_config", f.object("text_config")?, "the configuration of the text part")?;
    match text.str("model_type")? {
        None | Some("gemma3_text") => {}
        Some(other) => return Err(unsupported(f.path(), "text_config.model_type", other, "gemma3_text")),
    }
    keys::of(Family::Gemma3).check(&text)?;
    if text.bool(TWO_SIDED)?.unwrap_or(false) {
        return Err(text.error(TWO_SIDED, "false, of a model of texts and images"));
    }
    let config = gemma(&text, Family::Gemma3)?;
    if config.logit_softcap.is_some() {
        no_effect(&text, "final_logit_softcapping", Family::Gemma3Images);
    }
    Ok(ModelConfig {
        family: Family::Gemma3Images,
        logit_softcap: None,
        tie_word_embeddings: f.bool("tie_word_embeddings")?.unwrap_or(true),
        dtype: dtype(f)?.or(config.dtype),
        ..config
    })
}

/// OLMo 2 and 3.
pub(super) fn olmo(f: &Fields, family: Family) -> Result<ModelConfig> {
    Ok(ModelConfig {
        norm: Norm::Rms(RmsWeight::Exact),
        norm_placement: NormPlacement::Output,
        qk_norm: Some(QkNorm::Row),
        ..llama(f, family)?
    })
}
