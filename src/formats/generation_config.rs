//! `generation_config.json`: what a model's authors ask of its generation, as transformers 5.24 reads it.
//!
//! How tokens are chosen is said by whoever generates; the file says what holds in any case. Where generation ends
//! ([`Tokenizer::stops`](super::tokenizer::Tokenizer::stops)) is read with the tokenizer.

use std::path::Path;

use serde_json::{Map, Value};

use super::json::{self, Fields};
use super::keys::{Harmless, Keys};
use crate::Result;

/// What holds however tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GenerationDefaults {
    /// Divisor of the scores of tokens that were seen (Keskar et al. 2019); 1 is none.
    pub repetition_penalty: f64,
    /// New tokens at least.
    pub min_new_tokens: usize,
    /// Tokens at least, prompt and new ones together.
    pub min_length: usize,
}

impl Default for GenerationDefaults {
    fn default() -> Self {
        Self { repetition_penalty: 1.0, min_new_tokens: 0, min_length: 0 }
    }
}

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoding {
    /// The most probable token every time.
    Greedy,
    /// Beam search with more than one beam.
    Beams,
    /// Tokens drawn at random, by temperature, top-k and top-p.
    Sampling,
}

impl GenerationDefaults {
    /// Reads the file of a model directory, or where there is none the same keys of its `config.json`. Keys that
    /// transformers would act upon with this `decoding` and nothing here does must be neutral.
    ///
    /// # Errors
    /// The file cannot be read; a value that is out of its domain, or that of a key that is refused.
    pub fn load(directory: &Path, decoding: Decoding) -> Result<Self> {
        let [own, model] = ["generation_config.json", "config.json"].map(|name| directory.join(name));
        let path = if own.exists() { &own } else { &model };
        if !path.exists() {
            return Ok(Self::default());
        }
        let value = json::read(path)?;
        let f = Fields::new(path, &value)?;
        if *path == own {
            KEYS.check(&f)?
        } else {
            KEYS.refuse(&f)?
        }
        match decoding {
            Decoding::Greedy => {}
            Decoding::Beams => OF_BEAMS.refuse(&f)?,
            Decoding::Sampling => OF_SAMPLING.refuse(&f)?,
        }
        if f.bool("do_sample")?.unwrap_or(false) && decoding != Decoding::Sampling {
            log::warn!("{}: do_sample is true; tokens are chosen as asked here, not drawn", path.display());
        }
        if f.usize("num_beams")?.is_some_and(|beams| beams > 1) && decoding != Decoding::Beams {
            log::warn!("{}: num_beams is not 1; tokens are chosen as asked here, without beams", path.display());
        }
        let repetition_penalty = f.f64("repetition_penalty")?.unwrap_or(1.0);
        if repetition_penalty <= 0.0 {
            return Err(f.error("repetition_penalty", "a number above 0"));
        }
        Ok(Self {
            repetition_penalty,
            min_new_tokens: f.usize("min_new_tokens")?.unwrap_or(0),
            // The one replaces the other.
            min_length: f.usize("min_length")?.filter(|_| f.get("min_new_tokens").is_none()).unwrap_or(0),
        })
    }
}

/// The token that begins a text, of `config.json` (of a model of texts and images the outer one, or else that of the text
/// part); and those that end one, of `generation_config.json` where there is
/// one, or else of `config.json`. Negative ids, which some files have, are none.
///
/// # Errors
/// Something that is no token id.
pub fn special_ids(generation: Option<&Fields>, model: &Fields) -> Result<(Option<u32>, Vec<u32>)> {
    let id = |f: &Fields, key: &str, value: &Value| {
        let id = value.as_i64().ok_or_else(|| f.error(key, "a token id"))?;
        Ok(u32::try_from(id).ok())
    };
    let text_part = model.object("text_config")?;
    let bos = match model.get("bos_token_id").or(text_part.as_ref().and_then(|f| f.get("bos_token_id"))) {
        Some(value) => id(model, "bos_token_id", value)?,
        None => None,
    };
    let key = "eos_token_id";
    let f = generation.unwrap_or(model);
    let inner = text_part.as_ref().filter(|_| generation.is_none());
    let Some(value) = f.get(key).or(inner.and_then(|f| f.get(key))) else { return Ok((bos, Vec::new())) };
    let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    let ends: Vec<Option<u32>> = list.iter().map(|value| id(f, key, value)).collect::<Result<_>>()?;
    Ok((bos, ends.into_iter().flatten().collect()))
}

/// The tokens that end a text, of a model directory ([`special_ids`]).
///
/// # Errors
/// A file that cannot be read; something that is no token id.
pub fn ends(directory: &Path) -> Result<Vec<u32>> {
    let [generation, model] = ["generation_config.json", "config.json"].map(|name| directory.join(name));
    let of_generation = generation.exists().then(|| json::read(&generation)).transpose()?;
    let of_generation = of_generation.as_ref().map(|value| Fields::new(&generation, value)).transpose()?;
    let of_model = if model.exists() { json::read(&model)? } else { Value::Object(Map::new()) };
    Ok(special_ids(of_generation.as_ref(), &Fields::new(&model, &of_model)?)?.1)
}

const HARMLESS: &[Harmless] = &[
    ("names and versions", &["transformers_version", "_from_model_config", "_commit_hash", "trust_remote_code"]),
    (
        "said by whoever generates",
        &[
            "max_length",
            "max_new_tokens",
            "do_sample",
            "temperature",
            "top_k",
            "top_p",
            "num_beams",
            "length_penalty",
            "early_stopping",
            "min_p",
            "top_h",
            "typical_p",
            "epsilon_cutoff",
            "eta_cutoff",
            "renormalize_logits",
            "use_cache",
            "num_return_sequences",
        ],
    ),
    (
        "how it is computed or returned, not what",
        &[
            "cache_config",
            "max_cache_len",
            "return_dict_in_generate",
            "output_attentions",
            "output_hidden_states",
            "output_scores",
            "output_logits",
            "prefill_chunk_size",
            "compile_config",
            "disable_compile",
            "continuous_batching_config",
            "low_memory",
            "is_assistant",
            "num_assistant_tokens",
            "num_assistant_tokens_schedule",
            "assistant_confidence_threshold",
            "max_matching_ngram_size",
            "assistant_early_exit",
            "assistant_lookbehind",
            "target_lookbehind",
            "assistant_ensemble_weight",
            "speculation_type",
            "use_mtp",
        ],
    ),
    (
        "of padding and of encoders",
        &["pad_token_id", "decoder_start_token_id", "encoder_no_repeat_ngram_size", "forced_decoder_ids"],
    ),
];

/// The keys of the file.
pub const KEYS: Keys = Keys {
    used: &["bos_token_id", "eos_token_id", "repetition_penalty", "min_new_tokens", "min_length"],
    harmless: HARMLESS,
    refused: &[
        ("max_time", &[]),
        ("stop_strings", &["[]"]),
        ("encoder_repetition_penalty", &["1"]),
        ("no_repeat_ngram_size", &["0"]),
        ("bad_words_ids", &["[]"]),
        ("forced_bos_token_id", &[]),
        ("forced_eos_token_id", &[]),
        ("remove_invalid_values", &["false"]),
        ("exponential_decay_length_penalty", &[]),
        ("suppress_tokens", &["[]"]),
        ("begin_suppress_tokens", &["[]"]),
        ("sequence_bias", &["{}", "[]"]),
        ("token_healing", &["false"]),
        ("guidance_scale", &["1"]),
        ("watermarking_config", &[]),
        ("penalty_alpha", &["0"]),
        ("dola_layers", &[]),
        ("diversity_penalty", &["0"]),
        ("num_beam_groups", &["1"]),
        ("constraints", &[]),
        ("force_words_ids", &[]),
        ("prompt_lookup_num_tokens", &[]),
        ("cache_implementation", &["\"static\"", "\"dynamic\"", "\"hybrid\"", "\"offloaded\"", "\"sliding_window\""]),
    ],
};

/// Keys that matter to beam search.
pub const OF_BEAMS: Keys = Keys {
    used: &[],
    harmless: &[],
    refused: &[("early_stopping", &["false"]), ("renormalize_logits", &["false"]), ("num_return_sequences", &["1"])],
};

/// Keys that matter to sampling.
pub const OF_SAMPLING: Keys = Keys {
    used: &[],
    harmless: &[],
    refused: &[
        ("min_p", &["0"]),
        ("top_h", &[]),
        ("typical_p", &["1"]),
        ("epsilon_cutoff", &["0"]),
        ("eta_cutoff", &["0"]),
        ("num_return_sequences", &["1"]),
    ],
};
