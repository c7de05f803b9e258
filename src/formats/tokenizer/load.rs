//! Finding and assembling a tokenizer from the files of a model directory.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::Precompiled;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer as Inner};

use super::Tokenizer;
use crate::formats::atomic::read_to_string;
use crate::formats::chat::ChatTemplate;
use crate::formats::json::{self, Fields};
use crate::{Error, Result};

/// Special tokens a file may name, in the order in which they are registered.
const SPECIALS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Texts that are special when a directory has a vocabulary and nothing that names its special tokens: OPT's, else
/// GPT-2's (which OPT has too, as an ordinary token).
const USUAL: [&[&str]; 2] = [&["</s>", "<pad>"], &["<|endoftext|>"]];

impl Tokenizer {
    /// Loads from a model directory (`tokenizer.json`, or `vocab.json` with `merges.txt`, and the configuration
    /// files beside them) or from a `tokenizer.json`.
    ///
    /// # Errors
    /// No vocabulary, a file that does not follow its format, or a special token that the vocabulary lacks.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (dir, file) = if path.is_dir() {
            (path, path.join("tokenizer.json"))
        } else {
            (path.parent().unwrap_or(Path::new("")), path.to_path_buf())
        };
        let config = Sources::read(dir, |path| match path.exists() {
            true => json::read(path).map(Some),
            false => Ok(None),
        })?;
        let (vocab_only, path, mut inner) = if file.exists() || !path.is_dir() {
            (false, file.clone(), from_json(&file, &config)?)
        } else if dir.join("vocab.json").exists() && dir.join("merges.txt").exists() {
            (true, dir.join("vocab.json"), from_vocab(dir, &config)?)
        } else {
            return Err(Error::field(dir, "tokenizer", "tokenizer.json, or vocab.json and merges.txt", "neither"));
        };
        inner.with_truncation(None).map_err(Error::file(&path))?.with_padding(None);
        Self::assemble(dir, path, inner, vocab_only, &config)
    }

    /// A tokenizer of the texts of its `tokenizer.json` and `tokenizer_config.json`; `dir` names them in errors.
    ///
    /// # Errors
    /// As [`Tokenizer::load`].
    pub fn parse(dir: impl AsRef<Path>, tokenizer: &str, tokenizer_config: &str) -> Result<Self> {
        let dir = dir.as_ref();
        let path = dir.join("tokenizer.json");
        let inner = from_text(&path, tokenizer)?;
        let mut config = Sources::read(Path::new(""), |_| Ok(None))?;
        config.tokenizer_config.0 = dir.join("tokenizer_config.json");
        config.tokenizer_config.1 = json::parse(&config.tokenizer_config.0, tokenizer_config)?;
        Self::assemble(dir, path, inner, false, &config)
    }

    fn assemble(dir: &Path, path: PathBuf, mut inner: Inner, vocab_only: bool, config: &Sources) -> Result<Self> {
        let specials = config.specials()?;
        register(&mut inner, &specials, vocab_only && specials.is_empty(), config)?;
        let text = |key: &str| specials.iter().find(|(k, _, _)| *k == key);
        let id = |key: &str| match text(key) {
            None => Ok(None),
            Some((_, token, file)) => match inner.token_to_id(token) {
                Some(id) => Ok(Some(id)),
                None => Err(Error::field(dir.join(file), key, "a token of the vocabulary", format!("{token:?}"))),
            },
        };
        let (bos, eos) = (id("bos_token")?, id("eos_token")?);
        let bos_text = text("bos_token").map(|(_, token, _)| token.as_str());
        let eos_text = text("eos_token").map(|(_, token, _)| token.as_str());
        let [add_bos, add_eos] = config.added()?;
        if vocab_only && (add_bos.is_some() || add_eos.is_some()) {
            let wanted = |add: Option<bool>, token| if add == Some(true) { token } else { None };
            let ends = [wanted(add_bos, bos_text.zip(bos)), wanted(add_eos, eos_text.zip(eos))];
            inner.with_post_processor(Some(template(ends).map_err(Error::file(&config.tokenizer_config.0))?));
        }
        let (model_bos, mut stops) = config.model_tokens()?;
        if let Some(eos) = eos
            && !stops.contains(&eos)
        {
            stops.push(eos);
        }
        Ok(Self {
            bos: bos.or(model_bos),
            eos: eos.or(stops.first().copied()),
            stops,
            chat: config.chat(dir, "default")?,
            tool_chat: config.chat(dir, "tool_use")?,
            specials: specials.into_iter().map(|(key, token, _)| (key, token)).collect(),
            inner,
            path,
        })
    }
}

/// What a text goes through before its words are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pipeline {
    /// What `tokenizer.json` says.
    File,
    /// That of transformers' LLaMA tokenizer.
    Llama,
    /// That of its GPT-2 tokenizer.
    Gpt2,
    /// That of its Qwen2 tokenizer.
    Qwen2,
}

/// The configuration files beside a vocabulary; an absent one is an empty object.
struct Sources {
    tokenizer_config: (PathBuf, Value),
    special_tokens_map: (PathBuf, Value),
    generation_config: (PathBuf, Value),
    model_config: (PathBuf, Value),
}

impl Sources {
    fn read(dir: &Path, read: impl Fn(&Path) -> Result<Option<Value>>) -> Result<Self> {
        let read = |name: &str| {
            let path = dir.join(name);
            let value = read(&path)?.unwrap_or_else(|| json!({}));
            Fields::new(&path, &value)?;
            Ok::<_, Error>((path, value))
        };
        Ok(Self {
            tokenizer_config: read("tokenizer_config.json")?,
            special_tokens_map: read("special_tokens_map.json")?,
            generation_config: read("generation_config.json")?,
            model_config: read("config.json")?,
        })
    }

    fn config(&self) -> Result<Fields<'_>> {
        Fields::new(&self.tokenizer_config.0, &self.tokenizer_config.1)
    }

    /// Whose pipeline transformers builds: its class's own, or the file's. Of some families it knows that
    /// published files name a wrong class.
    fn pipeline(&self) -> Result<Pipeline> {
        let class = self.config()?.str("tokenizer_class")?.unwrap_or_default();
        let model = Fields::new(&self.model_config.0, &self.model_config.1)?;
        Ok(match (model.str("model_type")?, class.strip_suffix("Fast").unwrap_or(class)) {
            (Some("mistral"), _) => Pipeline::File,
            (Some("qwen2"), _) | (_, "Qwen2Tokenizer") => Pipeline::Qwen2,
            (_, "LlamaTokenizer") => Pipeline::Llama,
            (_, "GPT2Tokenizer") | (Some("gpt2" | "opt"), "") => Pipeline::Gpt2,
            _ => Pipeline::File,
        })
    }

    /// Named special tokens: key, text and the file that names it.
    fn specials(&self) -> Result<Vec<(&'static str, String, &'static str)>> {
        let mut found = Vec::new();
        let llama = self.pipeline()? == Pipeline::Llama;
        for key in SPECIALS {
            let files = [
                ("tokenizer_config.json", &self.tokenizer_config),
                ("special_tokens_map.json", &self.special_tokens_map),
            ];
            for (name, (path, value)) in files {
                let f = Fields::new(path, value)?;
                let text = match f.get(key) {
                    None => continue,
                    Some(Value::String(text)) => Some(text.as_str()),
                    Some(Value::Object(token)) => token.get("content").and_then(Value::as_str),
                    Some(_) => None,
                };
                let text = text.ok_or_else(|| f.error(key, "a token's text, or an object with its content"))?;
                found.push((key, text.to_string(), name));
                break;
            }
            let default = match key {
                "bos_token" => "<s>",
                "eos_token" => "</s>",
                "unk_token" => "<unk>",
                _ => continue,
            };
            if llama && !self.config()?.has(key) && found.last().is_none_or(|(k, _, _)| *k != key) {
                found.push((key, default.to_string(), "tokenizer_config.json"));
            }
        }
        Ok(found)
    }

    /// Further special tokens, of either name of the list.
    fn extra(&self) -> Result<Vec<String>> {
        let f = self.config()?;
        let mut extra = Vec::new();
        for key in ["additional_special_tokens", "extra_special_tokens"] {
            let Some(Value::Array(list)) = f.get(key) else { continue };
            for value in list {
                let text = value.as_str().or_else(|| value.get("content").and_then(Value::as_str));
                extra.push(text.ok_or_else(|| f.error(key, "a list of tokens' texts"))?.to_string());
            }
        }
        Ok(extra)
    }

    /// `add_bos_token` and `add_eos_token`. They count beside a vocabulary alone: a `tokenizer.json` says itself what
    /// it adds, and transformers then reads neither.
    fn added(&self) -> Result<[Option<bool>; 2]> {
        let f = self.config()?;
        Ok([f.bool("add_bos_token")?, f.bool("add_eos_token")?])
    }

    /// BOS of `config.json`; ends of `generation_config.json`, else of `config.json`.
    fn model_tokens(&self) -> Result<(Option<u32>, Vec<u32>)> {
        let mut stops = Vec::new();
        let mut bos = None;
        for (path, value) in [&self.generation_config, &self.model_config] {
            let f = Fields::new(path, value)?;
            let id = |key: &str, v: &Value| {
                v.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| f.error(key, "a token id"))
            };
            if let (true, Some(value)) = (stops.is_empty(), f.get("eos_token_id")) {
                let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
                stops = list.iter().map(|v| id("eos_token_id", v)).collect::<Result<_>>()?;
            }
            bos = f.get("bos_token_id").map(|v| id("bos_token_id", v)).transpose()?.or(bos);
        }
        Ok((bos, stops))
    }

    /// The template of a name, of which only the default one must be there. `chat_template.jinja` goes before the key
    /// of `tokenizer_config.json`, and other names' files lie in a folder beside it.
    fn chat(&self, dir: &Path, name: &str) -> Result<Option<ChatTemplate>> {
        let default = dir.join("chat_template.jinja");
        let is_default = name == "default";
        let file = match is_default {
            true => default.clone(),
            false => dir.join("additional_chat_templates").join(format!("{name}.jinja")),
        };
        if file.exists() {
            return ChatTemplate::new(&file, &read_to_string(&file)?).map(Some);
        }
        if default.exists() {
            return Ok(None);
        }
        let f = self.config()?;
        let expected = "a template, or a list of named ones with one named default";
        let source = match f.get("chat_template") {
            None => return Ok(None),
            Some(Value::String(source)) => Some(source.as_str()).filter(|_| is_default),
            Some(Value::Array(list)) => list
                .iter()
                .find(|t| t.get("name").and_then(Value::as_str) == Some(name))
                .and_then(|t| t.get("template").and_then(Value::as_str)),
            Some(_) => None,
        };
        if source.is_none() && !is_default {
            return Ok(None);
        }
        let source = source.ok_or_else(|| f.error("chat_template", expected))?;
        ChatTemplate::new(f.path(), source).map(Some)
    }
}

/// Makes the special tokens whole in text. Those the vocabulary lacks are left out: they have no embedding.
fn register(inner: &mut Inner, specials: &[(&str, String, &str)], usual: bool, config: &Sources) -> Result<()> {
    let mut texts: Vec<String> = specials.iter().map(|(_, text, _)| text.clone()).collect();
    texts.extend(config.extra()?);
    if usual {
        let known = USUAL.into_iter().find(|set| set.iter().all(|text| inner.token_to_id(text).is_some()));
        texts.extend(known.unwrap_or_default().iter().map(|text| text.to_string()));
    }
    let known: Vec<AddedToken> = texts
        .into_iter()
        .filter(|text| inner.token_to_id(text).is_some())
        .map(|text| AddedToken::from(text, true).normalized(false))
        .collect();
    inner.add_special_tokens(&known);
    Ok(())
}

fn from_json(path: &Path, config: &Sources) -> Result<Inner> {
    let text = read_to_string(path)?;
    let pipeline = config.pipeline()?;
    // A class whose alphabet is not the file's would make nonsense of every text.
    let own = (pipeline == Pipeline::Llama) != text.contains("\"ByteLevel\"");
    if pipeline == Pipeline::File || !own {
        return from_text(path, &text);
    }
    let mut value = json::parse(path, &text)?;
    if !value.get("model").is_some_and(Value::is_object) {
        return from_text(path, &text);
    }
    let f = config.config()?;
    // Older files do not name the kind of a model with merges.
    if value.pointer("/model/type").and_then(Value::as_str).unwrap_or("BPE") == "BPE" {
        let prefix = f.bool("add_prefix_space")?;
        let legacy = f.bool("legacy")?.unwrap_or(false);
        match pipeline {
            Pipeline::Llama => metaspace(&mut value, prefix.unwrap_or(true), legacy),
            _ => byte_level(&mut value, prefix.unwrap_or(false), pipeline == Pipeline::Qwen2),
        }
    }
    from_text(path, &value.to_string())
}

/// A tokenizer of the text of its `tokenizer.json`. The crate that reads it panics where the text is no JSON inside a
/// decoder, and where a precompiled normalizer is none: both are refused before it sees them.
fn from_text(path: &Path, text: &str) -> Result<Inner> {
    let value: Value = serde_json::from_str(text).map_err(Error::file(path))?;
    check_precompiled(value.get("normalizer")).map_err(Error::file(path))?;
    Inner::from_bytes(text).map_err(Error::file(path))
}

/// Checks every precompiled normalizer of a normalizer.
fn check_precompiled(normalizer: Option<&Value>) -> serde_json::Result<()> {
    let Some(normalizer) = normalizer else { return Ok(()) };
    if normalizer.get("type").and_then(Value::as_str) == Some("Precompiled") {
        Precompiled::deserialize(normalizer)?;
    }
    let parts = normalizer.get("normalizers").and_then(Value::as_array);
    parts.into_iter().flatten().try_for_each(|part| check_precompiled(Some(part)))
}

/// How transformers' Qwen2 tokenizer cuts a text into words.
const QWEN2_WORDS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The pipeline of transformers' GPT-2 tokenizer, which takes text as it is, or of its Qwen2 tokenizer, which composes
/// characters and takes digits one by one.
fn byte_level(tokenizer: &mut Value, prefix: bool, qwen2: bool) {
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": !qwen2});
    let words = json!({"type": "Split", "pattern": {"Regex": QWEN2_WORDS}, "behavior": "Isolated", "invert": false});
    tokenizer["normalizer"] = if qwen2 { json!({"type": "NFC"}) } else { Value::Null };
    tokenizer["pre_tokenizer"] =
        if qwen2 { json!({"type": "Sequence", "pretokenizers": [words, bytes]}) } else { bytes };
    tokenizer["decoder"] =
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let model = &mut tokenizer["model"];
    model["unk_token"] = Value::Null;
    model["dropout"] = Value::Null;
    model["fuse_unk"] = json!(false);
    model["byte_fallback"] = json!(false);
    model["ignore_merges"] = json!(false);
}

/// The pipeline of transformers' LLaMA tokenizer: spaces become ▁, one is put before the text (before every part
/// between special tokens with `legacy`), unknown characters become bytes.
fn metaspace(tokenizer: &mut Value, prefix: bool, legacy: bool) {
    let scheme = match (prefix, legacy) {
        (false, _) => "never",
        (true, true) => "always",
        (true, false) => "first",
    };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    tokenizer["normalizer"] = Value::Null;
    tokenizer["pre_tokenizer"] =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
    tokenizer["decoder"] = json!({"type": "Sequence", "decoders": decoders});
    let model = &mut tokenizer["model"];
    model["fuse_unk"] = json!(true);
    model["byte_fallback"] = json!(true);
    model["unk_token"] = Value::Null;
    model["dropout"] = Value::Null;
    model["ignore_merges"] = json!(false);
}

/// Puts a token before and one after every text.
fn template([bos, eos]: [Option<(&str, u32)>; 2]) -> std::result::Result<TemplateProcessing, String> {
    let single: Vec<String> = [bos.map(|b| b.0), Some("$A"), eos.map(|e| e.0)]
        .into_iter()
        .flatten()
        .map(|part| format!("{part}:0"))
        .collect();
    let specials: Vec<(String, u32)> = [bos, eos].into_iter().flatten().map(|(t, id)| (t.to_string(), id)).collect();
    TemplateProcessing::builder().try_single(single)?.special_tokens(specials).build().map_err(|e| e.to_string())
}

/// Byte-level BPE of GPT-2 and OPT from its two files.
fn from_vocab(dir: &Path, config: &Sources) -> Result<Inner> {
    let (vocab, merges) = (dir.join("vocab.json"), dir.join("merges.txt"));
    // The crate's own reader takes names; checking first gives the error a file.
    json::read(&vocab)?;
    read_to_string(&merges)?;
    let bpe = BPE::from_file(&vocab.to_string_lossy(), &merges.to_string_lossy());
    let prefix = config.config()?.bool("add_prefix_space")?.unwrap_or(false);
    let mut inner = Inner::new(bpe.build().map_err(Error::file(&merges))?);
    inner
        .with_pre_tokenizer(Some(ByteLevel::new(prefix, false, true)))
        .with_post_processor(Some(ByteLevel::new(false, false, true)))
        .with_decoder(Some(ByteLevel::new(false, false, true)));
    Ok(inner)
}
