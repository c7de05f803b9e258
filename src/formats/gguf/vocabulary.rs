//! A tokenizer as the metadata of a GGUF file, in the keys of llama.cpp's converter: a BPE of SentencePiece's pieces as `llama`,
//! one of bytes as `gpt2`.

use std::collections::{HashMap, HashSet};

use serde_json::Value as Json;

use super::Value;
use super::export::Pairs;
use super::tokenizer::{
    BYTE, CONTROL, LLAMA3_WORDS, NORMAL, QWEN2_WORDS, UNKNOWN, UNUSED, USER_DEFINED, implied_merges,
};
use crate::formats::tokenizer::Tokenizer;
use crate::{Error, Result};

/// The metadata of a vocabulary for a model of `vocab_size` rows; ids without a token are padded.
///
/// # Errors
/// More tokens than rows, or a tokenizer that is none of the two kinds.
pub fn metadata(tokenizer: &Tokenizer, vocab_size: usize) -> Result<Pairs> {
    let file = tokenizer.pipeline()?;
    let model = &file["model"];
    let refused = |part: &str, expected: &str, found: &Json| {
        let found = found.to_string().chars().take(120).collect::<String>();
        Error::field(tokenizer.path(), part, expected, found)
    };
    if model["type"] != "BPE" {
        return Err(refused("model.type", "BPE (GGUF's other kinds are not written)", &model["type"]));
    }
    let ids = model["vocab"].as_object().into_iter().flat_map(|vocab| vocab.values().filter_map(Json::as_u64));
    let added: HashMap<u64, bool> = file["added_tokens"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|token| Some((token["id"].as_u64()?, token["special"] == true)))
        .collect();
    if let Some(id) = ids.chain(added.keys().copied()).max().filter(|&id| id >= vocab_size as u64) {
        let expected = format!("ids below vocab_size, {vocab_size}");
        return Err(Error::field(tokenizer.path(), "the vocabulary", expected, id.to_string()));
    }
    let pieces = model["byte_fallback"] == true;
    let (mut tokens, mut kinds) = (Vec::with_capacity(vocab_size), Vec::with_capacity(vocab_size));
    for id in 0..vocab_size {
        let found = tokenizer.token(id as u32);
        let kind = match (&found, added.get(&(id as u64))) {
            (None, _) => UNUSED,
            (_, Some(true)) => CONTROL,
            (_, Some(false)) => USER_DEFINED,
            (Some(token), None) if pieces && model["unk_token"] == **token => UNKNOWN,
            (Some(token), None) if pieces && is_byte(token) => BYTE,
            _ => NORMAL,
        };
        let token = found.unwrap_or_else(|| format!("[PAD{id}]"));
        // What stands for a space is one in tokens of their own.
        tokens.push(if kind == USER_DEFINED { token.replace('▁', " ") } else { token });
        kinds.push(kind);
    }
    let merges: Vec<(&str, &str)> = model["merges"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|pair| Some((pair[0].as_str()?, pair[1].as_str()?)))
        .collect();
    let words = match pieces {
        true => "default",
        false => words(&file).ok_or_else(|| {
            let expected = "the words of gpt-2, llama-bpe or qwen2 (GGUF's other names are not known here)";
            refused("pre_tokenizer", expected, &file["pre_tokenizer"])
        })?,
    };
    let mut pairs = Pairs::new();
    let mut put = |key: &str, value: Value| pairs.push((format!("tokenizer.ggml.{key}"), value));
    put("model", Value::String(if pieces { "llama" } else { "gpt2" }.to_owned()));
    put("pre", Value::String(words.to_owned()));
    put("tokens", Value::List(tokens.iter().cloned().map(Value::String).collect()));
    let mut joined = !pieces;
    if pieces {
        let scores = scores(&tokens, &merges);
        joined = !implies(&tokens, &scores, &merges);
        if joined {
            let path = tokenizer.path().display();
            log::warn!(
                "{path}: model.merges: not those that its vocabulary implies, so that llama.cpp may cut texts otherwise"
            );
        }
        put("scores", Value::List(scores.into_iter().map(Value::Float).collect()));
    }
    put("token_type", Value::List(kinds.into_iter().map(|kind| Value::Signed(kind as i64)).collect()));
    if joined && !merges.is_empty() {
        put("merges", Value::List(merges.iter().map(|(a, b)| Value::String(format!("{a} {b}"))).collect()));
    }
    let special = |key: &str| tokenizer.special(key);
    let ids = [
        ("bos_token_id", tokenizer.bos()),
        ("eos_token_id", tokenizer.eos()),
        ("unknown_token_id", special("unk_token")),
        ("padding_token_id", special("pad_token")),
    ];
    for (key, id) in ids {
        id.into_iter().for_each(|id| put(key, Value::Unsigned(id.into())));
    }
    let around: HashSet<u32> = tokenizer.encode("", true)?.ids.into_iter().collect();
    put("add_bos_token", Value::Bool(tokenizer.bos().is_some_and(|bos| around.contains(&bos))));
    put("add_eos_token", Value::Bool(tokenizer.eos().is_some_and(|eos| around.contains(&eos))));
    if pieces && !first_token(tokenizer, "a")?.is_some_and(|token| token.starts_with('▁')) {
        put("add_space_prefix", Value::Bool(false));
    }
    if let Some(template) = tokenizer.chat_source() {
        pairs.push(("tokenizer.chat_template".to_owned(), Value::String(template.to_owned())));
    }
    Ok(pairs)
}

fn first_token(tokenizer: &Tokenizer, text: &str) -> Result<Option<String>> {
    let ids = tokenizer.encode(text, false)?.ids;
    Ok(ids.first().and_then(|&id| tokenizer.token(id)))
}

/// Whether a piece stands for a byte: `<0x0A>`.
fn is_byte(token: &str) -> bool {
    let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// SentencePiece's scores: the earlier a token is merged, the higher; of those that are never, 0.
fn scores(tokens: &[String], merges: &[(&str, &str)]) -> Vec<f64> {
    let mut ranks: HashMap<String, usize> = HashMap::with_capacity(merges.len());
    for (rank, (a, b)) in merges.iter().enumerate() {
        ranks.entry(format!("{a}{b}")).or_insert(rank);
    }
    tokens.iter().map(|token| ranks.get(token).map_or(0.0, |&rank| -(rank as f64))).collect()
}

/// Whether the merges are those that tokens and their scores imply, in an order that gives the same tokens.
fn implies(tokens: &[String], scores: &[f64], merges: &[(&str, &str)]) -> bool {
    let vocab: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, text)| (text.as_str(), id)).collect();
    let implied = implied_merges(tokens, &vocab, |id| scores[id]);
    let own: HashSet<(&str, &str)> = merges.iter().copied().collect();
    let score = |(a, b): (&str, &str)| vocab.get(format!("{a}{b}").as_str()).map_or(f64::NAN, |&id| scores[id]);
    // Merges to one token are interchangeable, where no other stands between them.
    merges.windows(2).all(|pair| score(pair[0]) >= score(pair[1]))
        && implied.len() == merges.len()
        && implied.iter().all(|pair| pair[0].as_str().zip(pair[1].as_str()).is_some_and(|pair| own.contains(&pair)))
}

/// The name of how a text is cut into words before they are cut into bytes.
fn words(file: &Json) -> Option<&'static str> {
    let (cut, normalizer) = (&file["pre_tokenizer"], &file["normalizer"]);
    let by_itself = cut["type"] == "ByteLevel" && cut["use_regex"] == true && cut["add_prefix_space"] == false;
    if by_itself && normalizer.is_null() {
        return Some("gpt-2");
    }
    let pattern = cut["pretokenizers"][0]["pattern"]["Regex"].as_str()?;
    match (pattern, normalizer["type"].as_str(), file["model"]["ignore_merges"] == true) {
        (LLAMA3_WORDS, None, true) => Some("llama-bpe"),
        (QWEN2_WORDS, Some("NFC"), false) => Some("qwen2"),
        _ => None,
    }
}
