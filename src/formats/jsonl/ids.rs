//! Rows of token ids, as tokenizers and collators of transformers and trl write them.

use serde_json::{Value, json};

use super::near::{self, Kind};
use crate::formats::json::{Fields, show};
use crate::{Error, Result};

/// Token ids, and for each its label if it has one.
pub type Ids = (Vec<u32>, Option<Vec<Option<u32>>>);

/// Masks of what is learnt: a token that one of them has at 0 has no label.
const LABEL_MASKS: [&str; 4] = ["loss_mask", "completion_mask", "assistant_masks", "assistant_mask"];
const KNOWN: [(&str, Kind); 7] = [
    ("labels", Kind::List),
    ("attention_mask", Kind::List),
    ("loss_mask", Kind::List),
    ("completion_mask", Kind::List),
    ("assistant_masks", Kind::List),
    ("assistant_mask", Kind::List),
    ("position_ids", Kind::List),
];

/// Reads `input_ids`, `labels` and the masks beside them. What `attention_mask` has at 0, at the ends of the row, is
/// padding, and is cut.
///
/// # Errors
/// A list of another length or of other values, padding between tokens, or positions and types that are not those
/// of a plain sequence.
pub fn ids(f: &Fields) -> Result<Ids> {
    near::check(f.path(), f.map(), &KNOWN, str::to_owned)?;
    let list = f.require("input_ids", f.list("input_ids")?, "a list of token ids")?;
    let one = |v: &Value| id(v).ok_or_else(|| Error::field(f.path(), "input_ids", "token ids", show(v)));
    let mut input_ids: Vec<u32> = list.iter().map(one).collect::<Result<_>>()?;
    if input_ids.is_empty() {
        return Err(f.error("input_ids", "at least one token"));
    }
    let n = input_ids.len();
    let mut labels = labels(f, n)?;
    for key in LABEL_MASKS {
        if let Some(mask) = mask(f, key, n)? {
            let labels = labels.get_or_insert_with(|| input_ids.iter().copied().map(Some).collect());
            labels.iter_mut().zip(mask).filter(|(_, learnt)| !learnt).for_each(|(label, _)| *label = None);
        }
    }
    let tokens = tokens(f, n)?;
    plain(f, n, &tokens)?;
    input_ids = input_ids[tokens.clone()].to_vec();
    Ok((input_ids, labels.map(|labels| labels[tokens].to_vec())))
}

fn id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|n| u32::try_from(n).ok())
}

/// The list of a key, one value for each of `n` tokens.
fn per_token<'a>(f: &Fields<'a>, key: &str, n: usize) -> Result<Option<&'a [Value]>> {
    match f.list(key)? {
        Some(list) if list.len() != n => {
            let expected = format!("as many as input_ids, {n}");
            Err(Error::field(f.path(), key, expected, list.len().to_string()))
        }
        other => Ok(other),
    }
}

fn labels(f: &Fields, n: usize) -> Result<Option<Vec<Option<u32>>>> {
    let label = |v: &Value| match (v.as_i64(), id(v)) {
        (Some(-100), _) => Ok(None),
        (_, Some(id)) => Ok(Some(id)),
        _ => Err(Error::field(f.path(), "labels", "token ids or -100", show(v))),
    };
    per_token(f, "labels", n)?.map(|list| list.iter().map(label).collect()).transpose()
}

fn mask(f: &Fields, key: &str, n: usize) -> Result<Option<Vec<bool>>> {
    let one = |v: &Value| match (v.as_bool(), v.as_f64()) {
        (Some(is), _) => Ok(is),
        (_, Some(0.0)) => Ok(false),
        (_, Some(1.0)) => Ok(true),
        _ => Err(Error::field(f.path(), key, "0 or 1 for each token", show(v))),
    };
    per_token(f, key, n)?.map(|list| list.iter().map(one).collect()).transpose()
}

/// Where the tokens are among the padding.
fn tokens(f: &Fields, n: usize) -> Result<std::ops::Range<usize>> {
    let Some(mask) = mask(f, "attention_mask", n)? else { return Ok(0..n) };
    let begin = mask.iter().position(|&there| there).unwrap_or(n);
    let end = mask.iter().rposition(|&there| there).map_or(n, |last| last + 1);
    match mask[begin..end].contains(&false) || begin == end {
        true => Err(f.error("attention_mask", "ones, with zeros at the ends only")),
        false => Ok(begin..end),
    }
}

/// Refuses what makes of a row something else than one sequence of text tokens.
fn plain(f: &Fields, n: usize, tokens: &std::ops::Range<usize>) -> Result<()> {
    if let Some(list) = per_token(f, "position_ids", n)?
        && !list[tokens.clone()].iter().enumerate().all(|(i, position)| position.as_u64() == Some(i as u64))
    {
        return Err(f.error("position_ids", "0, 1, 2, ... for the tokens, as without it"));
    }
    if let Some(list) = per_token(f, "token_type_ids", n)?
        && list.iter().any(|kind| kind.as_u64() != Some(0))
    {
        return Err(f.error("token_type_ids", "zeros, as the model has no types of tokens"));
    }
    if f.get("seq_lengths").is_some_and(|lengths| *lengths != json!([n])) {
        return Err(f.error("seq_lengths", "one sequence; packed ones are rows of their own"));
    }
    for key in ["inputs_embeds", "pixel_values", "input_features", "decoder_input_ids", "label_ids"] {
        if f.get(key).is_some() {
            return Err(f.error(key, "nothing beside input_ids; labels are labels"));
        }
    }
    for key in ["loss_weights", "weights", "prompt_mask"] {
        if f.get(key).is_some() {
            return Err(f.error(key, "labels, completion_mask or loss_mask, which say what is learnt"));
        }
    }
    for key in PACKED {
        if f.get(key).is_some() {
            return Err(f.error(key, "one sequence; packed ones are rows of their own"));
        }
    }
    Ok(())
}

/// Columns in which trainers keep where packed sequences begin.
const PACKED: [&str; 10] = [
    "seq_lens",
    "cu_seqlens",
    "cu_seq_lens",
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "seq_idx",
    "doc_ids",
    "document_ids",
    "sequence_ids",
    "segment_ids",
];
