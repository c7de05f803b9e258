//! What a file of captured states says of itself, so that it can be read without the model: its header's `__metadata__`.
//!
//! | key | value |
//! |---|---|
//! | `format` | `pt`, for which transformers asks |
//! | `version` | of the program that wrote it |
//! | `names`, `conventions` | [`Names`](crate::hooks::Names) of the tensors, and in words what the names of norms mean |
//! | `family`, `norm` | the model's family; `rms_norm` or `layer_norm` |
//! | `n_layers`, `d_model`, `n_heads`, `n_kv_heads`, `d_head`, `d_mlp`, `d_vocab` | its sizes |
//! | `tokens` | `all` or `last`: which tokens of a document have a row |
//! | `layout` | JSON: by name without a block, the axes of a row ([`Site::axes`]) |
//! | `first_doc`, `doc_start` | number of the file's first document; JSON: the first row of each, without it beyond a million |
//! | `n_positions` | positions of scores and patterns: those of the longest document |
//! | `doc_sha256` | of shards: SHA-256 of the documents' token ids, each document's behind their number, as 64-bit integers, little-endian |
//!
//! Beside these stands what the caller knows ([`CaptureSettings::metadata`](super::CaptureSettings::metadata)).

use std::ops::Range;

use serde_json::{Map, Value};

use super::{CaptureSettings, Tokens};
use crate::arch::{ModelConfig, Norm, QkNorm};
use crate::hash::sha256_hex;
use crate::hooks::{Naming, NormPart, NormSite, Site};
use crate::{Error, Result};

/// Documents of which the header has the first row: a header may have 100 MB.
const MOST_STARTS: usize = 1_000_000;

/// What each file says of its own documents.
const OF_DOCUMENTS: [&str; 4] = ["first_doc", "doc_start", "n_positions", "doc_sha256"];

/// What all files of a capture say.
///
/// # Errors
/// The caller's metadata have a key of these, or one twice.
pub fn of_capture(config: &ModelConfig, settings: &CaptureSettings) -> Result<Vec<(String, String)>> {
    let naming = Naming { names: settings.names, config };
    let mut layout = Map::new();
    for &(site, _) in &settings.selection.hooks {
        if let Some(local) = naming.local(site) {
            layout.insert(local, Value::from(axes(site, config)));
        }
    }
    let norm = match config.norm {
        Norm::Rms(_) => "rms_norm",
        Norm::Layer => "layer_norm",
    };
    let tokens = match settings.tokens {
        Tokens::All => "all",
        Tokens::Last => "last",
    };
    let sizes = [
        ("n_layers", config.num_hidden_layers),
        ("d_model", config.hidden_size),
        ("n_heads", config.num_attention_heads),
        ("n_kv_heads", config.num_key_value_heads),
        ("d_head", config.head_dim),
        ("d_mlp", config.intermediate_size),
        ("d_vocab", config.vocab_size),
    ];
    let words = [
        ("format", "pt"),
        ("version", concat!("llamaprobe ", env!("CARGO_PKG_VERSION"))),
        ("names", settings.names.name()),
        ("conventions", settings.names.conventions()),
        ("family", config.family.name()),
        ("norm", norm),
        ("tokens", tokens),
    ];
    let mut all: Vec<(String, String)> = words.map(|(key, word)| (key.to_owned(), word.to_owned())).to_vec();
    all.extend(sizes.map(|(key, size)| (key.to_owned(), size.to_string())));
    all.push(("layout".to_owned(), Value::Object(layout).to_string()));
    for (key, value) in &settings.metadata {
        if OF_DOCUMENTS.contains(&key.as_str()) || all.iter().any(|(known, _)| known == key) {
            return Err(Error::argument("metadata", "each key once, and none that a capture has itself", key));
        }
        all.push((key.clone(), value.clone()));
    }
    Ok(all)
}

/// The axes of a row, of which the embedding's is the stream's in most models, and norms of queries and keys may be of whole
/// rows.
pub fn axes(site: Site, config: &ModelConfig) -> &'static str {
    match site {
        Site::Embed if config.embed_size == config.hidden_size => "d_model",
        Site::Norm(NormSite::Q | NormSite::K, part) if config.qk_norm == Some(QkNorm::Row) => match part {
            NormPart::Rstd | NormPart::Scale => "1",
            NormPart::Normalized | NormPart::Out => "d_heads",
        },
        _ => site.axes(),
    }
}

/// What one file says of its documents, which have so many rows; `first` is the number of its first one, `longest` the positions of
/// the longest of all, `ids` the token ids of each where the file is a shard.
pub fn of_documents(first: usize, rows: &[usize], longest: usize, ids: Option<&[Vec<u32>]>) -> Vec<(String, String)> {
    let [first_doc, doc_start, n_positions, doc_sha256] = OF_DOCUMENTS.map(str::to_owned);
    let mut all = vec![(first_doc, first.to_string())];
    if rows.len() <= MOST_STARTS {
        let starts = rows.iter().scan(0, |next, rows| Some(std::mem::replace(next, *next + rows)));
        all.push((doc_start, Value::from(starts.collect::<Vec<usize>>()).to_string()));
    }
    all.push((n_positions, longest.to_string()));
    if let Some(ids) = ids {
        let words = |ids: &Vec<u32>| -> Vec<u8> {
            let ids = ids.iter().map(|&id| u64::from(id));
            std::iter::once(ids.len() as u64).chain(ids).flat_map(u64::to_le_bytes).collect()
        };
        let documents: Vec<Vec<u8>> = ids.iter().map(words).collect();
        all.push((doc_sha256, sha256_hex(documents.iter().map(Vec::as_slice))));
    }
    all
}

/// The documents of each file, of at most `most` rows unless a single document has more.
pub fn shards(rows: &[usize], most: usize) -> Vec<Range<usize>> {
    let mut shards: Vec<Range<usize>> = Vec::new();
    let mut held = 0;
    for (document, &rows) in rows.iter().enumerate() {
        match shards.last_mut() {
            Some(shard) if held + rows <= most => (shard.end, held) = (document + 1, held + rows),
            _ => (held, _) = (rows, shards.push(document..document + 1)),
        }
    }
    if shards.is_empty() {
        shards.push(0..0);
    }
    shards
}
