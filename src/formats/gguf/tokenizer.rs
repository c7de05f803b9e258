//! The tokenizer of a GGUF file, made of the vocabulary in its metadata (`tokenizer.ggml.*`).
//!
//! Two kinds are read: `llama`, SentencePiece's, as the BPE of its pieces that transformers makes of it, and `gpt2`, BPE of
//! bytes, with the words that `tokenizer.ggml.pre` names. What a GGUF file does not say is what transformers 5.24 takes for
//! its architecture (`integrations/gguf/gguf_tokenizer_mapping.py`): Gemma's class and merges in the order of its
//! vocabulary, Phi-3's space before a text. Control tokens become special tokens, user-defined ones added tokens.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value as Json, json};

use super::{Gguf, Value};
use crate::Result;
use crate::formats::tokenizer::Tokenizer;

/// `tokenizer.ggml.token_type` of an ordinary token.
pub(super) const NORMAL: usize = 1;
/// Of the one for what the vocabulary lacks.
pub(super) const UNKNOWN: usize = 2;
/// Of tokens that are special.
pub(super) const CONTROL: usize = 3;
/// Of tokens that texts are cut at, and that are not special.
pub(super) const USER_DEFINED: usize = 4;
/// Of an id that no text becomes.
pub(super) const UNUSED: usize = 5;
/// Of a token that stands for a byte.
pub(super) const BYTE: usize = 6;

pub(super) const LLAMA3_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(super) const QWEN2_WORDS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How a text is cut into words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Words {
    Gpt2,
    Llama3,
    Qwen2,
}

/// The names of `tokenizer.ggml.pre` that are known (`llama-vocab.cpp`).
const WORDS: [(&str, Words); 8] = [
    ("gpt-2", Words::Gpt2),
    ("llama-bpe", Words::Llama3),
    ("llama3", Words::Llama3),
    ("llama-v3", Words::Llama3),
    ("qwen2", Words::Qwen2),
    ("deepseek-r1-qwen", Words::Qwen2),
    ("megrez", Words::Qwen2),
    ("falcon3", Words::Llama3),
];

/// What the metadata say of the vocabulary.
struct Vocabulary<'a> {
    file: &'a Gguf,
    /// Texts, by token id.
    tokens: Vec<&'a str>,
    /// By id; none where the file has no kinds.
    kinds: Vec<usize>,
}

/// Whether a file has a vocabulary.
pub fn is_in(file: &Gguf) -> bool {
    file.metadata.contains_key("tokenizer.ggml.model")
}

/// The tokenizer of a file.
///
/// # Errors
/// No vocabulary in the metadata, one of a kind that is not read, lists of other lengths than the vocabulary's, ids outside
/// it, or a chat template that cannot be compiled.
pub fn tokenizer(file: &Gguf) -> Result<Tokenizer> {
    let vocabulary = Vocabulary::read(file)?;
    let key = "tokenizer.ggml.model";
    let (class, tokenizer) = match file.string(key)? {
        "llama" => vocabulary.sentence_piece()?,
        "gpt2" => ("PreTrainedTokenizerFast", vocabulary.byte_level()?),
        other => {
            let expected = "llama or gpt2 (for others name the folder of a tokenizer)";
            return Err(file.error(key, expected, other));
        }
    };
    let mut config = vocabulary.config()?;
    config.insert("tokenizer_class".to_owned(), json!(class));
    let stops = ["eos", "eot", "eom"].map(|name| vocabulary.special(&format!("{name}_token_id")));
    let mut ids = Vec::new();
    for stop in stops {
        ids.extend(stop?.map(|(id, _)| id).filter(|id| !ids.contains(id)));
    }
    let model = if ids.is_empty() { json!({}) } else { json!({"eos_token_id": ids}) };
    Tokenizer::of_values(file.path(), tokenizer, Json::Object(config), model)
}

impl<'a> Vocabulary<'a> {
    fn read(file: &'a Gguf) -> Result<Self> {
        let key = "tokenizer.ggml.tokens";
        let tokens = file.optional_list(key, "a list of texts", Value::as_str)?;
        let tokens = tokens.ok_or_else(|| file.error(key, "a list of texts", "nothing"))?;
        let key = "tokenizer.ggml.token_type";
        let kinds = file.optional_list(key, "a list of numbers", Value::as_usize)?.unwrap_or_default();
        if !kinds.is_empty() && kinds.len() != tokens.len() {
            return Err(file.error(key, format!("{} numbers", tokens.len()), kinds.len().to_string()));
        }
        let key = "tokenizer.ggml.tokens";
        let mut seen = HashSet::with_capacity(tokens.len());
        for (id, text) in tokens.iter().enumerate() {
            let found = match (text.is_empty(), seen.insert(*text)) {
                (true, _) => format!("an empty one, of id {id}"),
                (_, false) => format!("{} again, of id {id}", shown(text)),
                _ => continue,
            };
            return Err(file.error(key, "texts, each once and none of them empty", found));
        }
        Ok(Self { file, tokens, kinds })
    }

    fn kind(&self, id: usize) -> usize {
        self.kinds.get(id).copied().unwrap_or(NORMAL)
    }

    /// A special token by its key: its id and its text.
    fn special(&self, name: &str) -> Result<Option<(usize, &'a str)>> {
        let key = format!("tokenizer.ggml.{name}");
        let Some(id) = self.file.optional_usize(&key)? else { return Ok(None) };
        // What stands for no token.
        if id == u32::MAX as usize {
            return Ok(None);
        }
        match self.tokens.get(id) {
            Some(text) => Ok(Some((id, text))),
            None => Err(self.file.error(&key, format!("an id below {}", self.tokens.len()), id.to_string())),
        }
    }

    /// What stands in a `tokenizer_config.json`.
    fn config(&self) -> Result<Map<String, Json>> {
        let mut config = Map::new();
        for (key, name) in
            [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")]
        {
            let text = self.special(&format!("{name}_token_id"))?.map(|(_, text)| text);
            config.insert(key.to_owned(), json!(text));
        }
        let added = (0..self.tokens.len()).filter(|&id| [CONTROL, USER_DEFINED].contains(&self.kind(id)));
        let added = added.map(|id| {
            let token = json!({
                "content": self.tokens[id], "special": self.kind(id) == CONTROL, "normalized": false, "lstrip": false,
                "rstrip": false, "single_word": false,
            });
            (id.to_string(), token)
        });
        config.insert("added_tokens_decoder".to_owned(), Json::Object(added.collect()));
        if let Some(prefix) = self.file.optional_bool("tokenizer.ggml.add_space_prefix")? {
            config.insert("add_prefix_space".to_owned(), json!(prefix));
        }
        if let Some(template) = self.file.optional_string("tokenizer.chat_template")? {
            config.insert("chat_template".to_owned(), json!(template));
        }
        Ok(config)
    }

    /// The merges of the file, each of two tokens of `vocab` to a third; none where it has none.
    fn merges(&self, vocab: impl Fn(&str) -> bool) -> Result<Option<Vec<(&'a str, &'a str)>>> {
        let expected = "a list of pairs of tokens, each parted by a space";
        // The space is never the first character, which may be one itself.
        let pair = |value: &'a Value| {
            let text = value.as_str()?;
            let at = text.char_indices().skip(1).find(|(_, c)| *c == ' ')?.0;
            Some((&text[..at], &text[at + 1..]))
        };
        let key = "tokenizer.ggml.merges";
        let merges = self.file.optional_list(key, expected, pair)?;
        let strange = |&&(a, b): &&(&str, &str)| !(vocab(a) && vocab(b) && vocab(&format!("{a}{b}")));
        match merges.iter().flatten().find(strange) {
            Some((a, b)) => {
                let expected = "pairs of tokens of the vocabulary that are one of it together";
                Err(self.file.error(key, expected, format!("{} and {}", shown(a), shown(b))))
            }
            None => Ok(merges),
        }
    }

    /// What is put around a text where the file, or else `bos`, says so.
    fn around(&self, bos: bool) -> Result<Json> {
        // A token that is wanted by default alone may be one that the vocabulary does not have.
        let token = |name: &str, default: bool| {
            let said = self.file.optional_bool(&format!("tokenizer.ggml.add_{name}_token"))?;
            let key = format!("{name}_token_id");
            let token = if said.unwrap_or(default) { self.special(&key)? } else { None };
            if said == Some(true) && token.is_none() {
                let key = format!("tokenizer.ggml.{key}");
                return Err(self.file.error(&key, format!("an id, which add_{name}_token adds"), "none"));
            }
            Ok(token)
        };
        let (bos, eos) = (token("bos", bos)?, token("eos", false)?);
        if bos.is_none() && eos.is_none() {
            return Ok(Json::Null);
        }
        let part = |(_, text): (usize, &str)| json!({"SpecialToken": {"id": text, "type_id": 0}});
        let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
        let single: Vec<Json> = bos.map(part).into_iter().chain([text("A")]).chain(eos.map(part)).collect();
        let tokens = [bos, eos].into_iter().flatten();
        let tokens: Map<String, Json> =
            tokens.map(|(id, text)| (text.to_owned(), json!({"id": text, "ids": [id], "tokens": [text]}))).collect();
        let pair =
            [single.clone(), single.iter().map(|p| if *p == text("A") { text("B") } else { p.clone() }).collect()];
        Ok(json!({
            "type": "TemplateProcessing", "single": single, "pair": pair.concat(), "special_tokens": tokens,
        }))
    }

    /// A class of transformers and what its `tokenizer.json` would be.
    fn sentence_piece(&self) -> Result<(&'static str, Json)> {
        let architecture = self.file.string("general.architecture")?;
        let gemma = architecture.starts_with("gemma");
        // Runs of spaces stand as such in Gemma's files.
        let spelled = |text: &str| match gemma && text.contains(' ') && text.trim_matches(' ').is_empty() {
            true => "▁".repeat(text.chars().count()),
            false => text.to_owned(),
        };
        let tokens: Vec<String> = self.tokens.iter().map(|text| spelled(text)).collect();
        let vocab: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, text)| (text.as_str(), id)).collect();
        let merges = match self.merges(|text| vocab.contains_key(text))? {
            Some(merges) => merges.into_iter().map(|(a, b)| json!([a, b])).collect(),
            None if gemma => implied_merges(&tokens, &vocab, |id| -(id as f64)),
            None => {
                let key = "tokenizer.ggml.scores";
                let scores = self.file.optional_list(key, "a list of numbers", Value::as_f64)?;
                let found = scores.as_ref().map_or_else(|| "nothing".to_owned(), |scores| scores.len().to_string());
                let scores = scores
                    .filter(|scores| scores.len() == tokens.len())
                    .ok_or_else(|| self.file.error(key, format!("{} numbers", tokens.len()), found))?;
                implied_merges(&tokens, &vocab, |id| scores[id])
            }
        };
        let vocab: Map<String, Json> = vocab.iter().map(|(text, id)| ((*text).to_owned(), json!(id))).collect();
        let unk = self.special("unknown_token_id")?.map(|(_, text)| text);
        let mut file = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": self.around(true)?, "decoder": null,
            "model": {
                "type": "BPE", "dropout": null, "unk_token": unk, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                "vocab": vocab, "merges": merges,
            },
        });
        if architecture == "phi3" {
            let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
            let prefix = json!({"type": "Prepend", "prepend": "▁"});
            file["normalizer"] = json!({"type": "Sequence", "normalizers": [prefix, spaces]});
            file["decoder"] = json!({"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ]});
        }
        let class = match architecture {
            "phi3" => "PreTrainedTokenizerFast",
            _ if gemma => "GemmaTokenizer",
            _ => "LlamaTokenizer",
        };
        Ok((class, file))
    }

    fn byte_level(&self) -> Result<Json> {
        let key = "tokenizer.ggml.pre";
        let pre = match (self.file.optional_string(key)?, self.file.string("general.architecture")?) {
            (Some(pre), _) => pre,
            (None, "gpt2") => "gpt-2",
            (None, _) => "nothing",
        };
        let Some(&(_, words)) = WORDS.iter().find(|(name, _)| *name == pre) else {
            let known = WORDS.map(|(name, _)| name).join(", ");
            return Err(self.file.error(key, format!("{known} (for others give the folder of a tokenizer)"), pre));
        };
        let spelling = byte_characters();
        let letters: Vec<char> = spelling.to_vec();
        let spelled = |(id, text): (usize, &&str)| {
            let added = [CONTROL, USER_DEFINED].contains(&self.kind(id));
            let own = added || text.chars().all(|c| letters.contains(&c));
            let text =
                if own { (*text).to_owned() } else { text.bytes().map(|byte| spelling[byte as usize]).collect() };
            (text, json!(id))
        };
        let vocab: Map<String, Json> = self.tokens.iter().enumerate().map(spelled).collect();
        let key = "tokenizer.ggml.merges";
        let merges = self.merges(|text| vocab.contains_key(text))?;
        let merges = merges.ok_or_else(|| self.file.error(key, "a list of merges", "nothing"))?;
        let merges: Vec<Json> = merges.into_iter().map(|(a, b)| json!([a, b])).collect();
        let bytes = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
        let cut = |pattern: &str| {
            let split =
                json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
            json!({"type": "Sequence", "pretokenizers": [split, bytes(false)]})
        };
        let (normalizer, cut) = match words {
            Words::Gpt2 => (Json::Null, bytes(true)),
            Words::Llama3 => (Json::Null, cut(LLAMA3_WORDS)),
            Words::Qwen2 => (json!({"type": "NFC"}), cut(QWEN2_WORDS)),
        };
        Ok(json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": normalizer,
            "pre_tokenizer": cut, "post_processor": self.around(words == Words::Llama3)?, "decoder": bytes(true),
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": words == Words::Llama3, "vocab": vocab, "merges": merges,
            },
        }))
    }
}

/// A text of the file for an error: its beginning, in one line.
fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(100).collect::<String>())
}

/// The merges that a vocabulary implies: every way to cut a token into two of it, the best token first; of one token the cut
/// whose first part is longer, of equals the one whose parts have the smaller ids (`generate_merges` of transformers).
pub(super) fn implied_merges(
    tokens: &[String],
    vocab: &HashMap<&str, usize>,
    score: impl Fn(usize) -> f64,
) -> Vec<Json> {
    let mut found = Vec::new();
    for (id, text) in tokens.iter().enumerate() {
        // A text that stands twice has the last one's id and score.
        if vocab[text.as_str()] != id {
            continue;
        }
        let cuts = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
        let mut local: Vec<_> = cuts.filter_map(|(a, b)| Some((*vocab.get(a)?, *vocab.get(b)?, a, b))).collect();
        local.sort_by_key(|&(a, b, ..)| (a, b));
        let lengths = |a: &str, b: &str| (a.chars().count(), b.chars().count());
        found.extend(local.into_iter().map(|(_, _, a, b)| (score(id), lengths(a, b), a, b)));
    }
    found.sort_by(|x, y| y.0.total_cmp(&x.0).then(y.1.cmp(&x.1)));
    found.into_iter().map(|(.., a, b)| json!([a, b])).collect()
}

/// GPT-2's characters for the 256 bytes: printable ones are themselves, others follow from U+0100 on.
fn byte_characters() -> [char; 256] {
    let own = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut next = 0x100;
    std::array::from_fn(|byte| {
        let byte = byte as u8;
        if own(byte) {
            return char::from(byte);
        }
        next += 1;
        char::from_u32(next - 1).expect("a character")
    })
}
