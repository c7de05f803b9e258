//! Finding and assembling a tokenizer from the files of a model directory.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};
use tokenizers::models::ModelWrapper;
use tokenizers::normalizers::Precompiled;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer as Inner};

use super::Tokenizer;
use super::added::{self, Written};
use super::class::{Class, corrects_mistral, with_mistral_words};
use super::infill::Infill;
use super::keys;
use super::settings::{Settings, Source, Tokens, source};
use crate::formats::atomic::read_to_string;
use crate::formats::chat::ChatTemplate;
use crate::formats::generation_config::special_ids;
use crate::formats::json::{self, Fields};
use crate::{Error, Result};

/// Texts that are special when a directory has a vocabulary and nothing that names its special tokens: OPT's, else
/// GPT-2's (which OPT has too, as an ordinary token).
const USUAL: [&[&str]; 2] = [&["</s>", "<pad>"], &["<|endoftext|>"]];
/// From how many tokens on a tokenizer may be one of Mistral's whose words transformers corrects.
const MISTRAL: usize = 100_000;

impl Tokenizer {
    /// Loads from a model directory (`tokenizer.json`, or `vocab.json` with `merges.txt`, and the configuration
    /// files beside them) or from a `tokenizer.json`. A special token that the vocabulary lacks is added to it.
    ///
    /// # Errors
    /// No vocabulary, a file that does not follow its format, or a setting that is not followed here.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (dir, file) = if path.is_dir() {
            (path, path.join("tokenizer.json"))
        } else {
            (path.parent().unwrap_or(Path::new("")), path.to_path_buf())
        };
        let sources = Sources::read(dir, |path| match path.exists() {
            true => json::read(path).map(Some),
            false => Ok(None),
        })?;
        if file.exists() || !path.is_dir() {
            assemble(dir, &file, Vocabulary::file(&file, &read_to_string(&file)?)?, &sources)
        } else if dir.join("vocab.json").exists() && dir.join("merges.txt").exists() {
            assemble(dir, &dir.join("vocab.json"), Vocabulary::pair(dir)?, &sources)
        } else {
            Err(Error::field(dir, "tokenizer", "tokenizer.json, or vocab.json and merges.txt", "neither"))
        }
    }

    /// Whether a model directory has a tokenizer at all.
    pub fn is_in(directory: &Path) -> bool {
        ["tokenizer.json", "vocab.json", "tokenizer_config.json"].iter().any(|name| directory.join(name).exists())
    }

    /// A tokenizer of the texts of its `tokenizer.json` and `tokenizer_config.json`; `dir` names them in errors.
    ///
    /// # Errors
    /// As [`Tokenizer::load`].
    pub fn parse(dir: impl AsRef<Path>, tokenizer: &str, tokenizer_config: &str) -> Result<Self> {
        let dir = dir.as_ref();
        let mut sources = Sources::read(Path::new(""), |_| Ok(None))?;
        sources.tokenizer_config.0 = dir.join("tokenizer_config.json");
        sources.tokenizer_config.1 = json::parse(&sources.tokenizer_config.0, tokenizer_config)?;
        let path = dir.join("tokenizer.json");
        assemble(dir, &path, Vocabulary::file(&path, tokenizer)?, &sources)
    }

    /// A tokenizer of the objects that a `tokenizer.json` and a `tokenizer_config.json` would be, and of what a `config.json`
    /// would say of special tokens; `path` is the file that they are made of.
    ///
    /// # Errors
    /// As [`Tokenizer::load`].
    pub(in crate::formats) fn of_values(path: &Path, file: Value, config: Value, model: Value) -> Result<Self> {
        let mut sources = Sources::read(Path::new(""), |_| Ok(None))?;
        sources.tokenizer_config = (path.to_path_buf(), config);
        sources.model_config = (path.to_path_buf(), model);
        let vocabulary = Vocabulary { file, whole: true, byte_level: false, path: path.to_path_buf() };
        assemble(path, path, vocabulary, &sources)
    }
}

/// What a tokenizer is made of.
struct Vocabulary {
    /// A `tokenizer.json`, or what GPT-2's two files hold in that form.
    file: Value,
    /// Whether it is a `tokenizer.json`.
    whole: bool,
    /// Whether its text speaks of a byte-level alphabet.
    byte_level: bool,
    /// Where errors are, if not in the vocabulary.
    path: PathBuf,
}

impl Vocabulary {
    /// The text of a `tokenizer.json`.
    fn file(path: &Path, text: &str) -> Result<Self> {
        let file = serde_json::from_str(text).map_err(Error::file(path))?;
        Ok(Self { file, whole: true, byte_level: text.contains("\"ByteLevel\""), path: path.to_path_buf() })
    }

    /// That of `vocab.json` and `merges.txt`, in which GPT-2's tokenizer was published.
    fn pair(dir: &Path) -> Result<Self> {
        let (vocab, path) = (json::read(dir.join("vocab.json"))?, dir.join("merges.txt"));
        let mut merges = Vec::new();
        for line in read_to_string(&path)?.lines().filter(|line| !line.starts_with("#version")) {
            let Some((a, b)) = line.split_once(' ').filter(|(_, b)| !b.contains(' ')) else {
                return Err(Error::field(&path, "merge", "two tokens, parted by a space", format!("{line:?}")));
            };
            merges.push(json!([a, b]));
        }
        let file = json!({"version": "1.0", "model": {"type": "BPE", "vocab": vocab, "merges": merges}});
        Ok(Self { file, whole: false, byte_level: false, path })
    }

    /// The tokenizer with a class's pipeline, and as yet without added tokens; those of the file beside it.
    fn build(mut self, class: Class, fields: &Fields, unk: Option<&str>) -> Result<(Inner, Vec<AddedToken>)> {
        let class = match class {
            // Without a tokenizer.json there is only one way to read two files.
            Class::File if !self.whole => Class::Gpt2,
            Class::Llama | Class::CodeLlama | Class::Gemma if !self.whole => {
                let expected = "a class that reads vocab.json and merges.txt (or a tokenizer.json)";
                return Err(Error::field(fields.path(), "tokenizer_class", expected, format!("{class:?}Tokenizer")));
            }
            class => class,
        };
        if self.file.get("model").is_some_and(Value::is_object) {
            class.rebuild(&mut self.file, fields, unk)?;
            keys::check_file(&self.path, &self.file)?;
        }
        let mut stated = Vec::new();
        if let Some(tokens) = self.file.get_mut("added_tokens") {
            let tokens = std::mem::replace(tokens, json!([]));
            if class == Class::File {
                stated = Deserialize::deserialize(tokens).map_err(Error::file(&self.path))?;
            }
        }
        check_precompiled(self.file.get("normalizer")).map_err(Error::file(&self.path))?;
        let mut inner = Inner::deserialize(&self.file).map_err(Error::file(&self.path))?;
        inner.with_truncation(None).map_err(Error::file(&self.path))?.with_padding(None);
        Ok((inner, stated))
    }
}

/// Builds the tokenizer that transformers' `AutoTokenizer` builds, in its order: class, settings, pipeline, tokens, what
/// stands around a text.
fn assemble(dir: &Path, path: &Path, vocabulary: Vocabulary, sources: &Sources) -> Result<Tokenizer> {
    let [config, map, model] =
        [&sources.tokenizer_config, &sources.special_tokens_map, &sources.model_config].map(|(p, v)| Fields::new(p, v));
    let (config, model) = (config?, model?);
    keys::check(&config)?;
    keys::check(&map?)?;
    let class = Class::of(&config, &model, vocabulary.byte_level)?;
    let file = Some(&vocabulary.file).filter(|_| vocabulary.whole);
    let settings =
        Settings::merge(&sources.tokenizer_config, &sources.special_tokens_map, &sources.added_tokens, file)?;
    let fields = settings.fields()?;
    let tokens = settings.tokens(class, vocabulary.file["padding"]["pad_token"].as_str())?;
    let whole = vocabulary.whole;
    let (mut inner, stated) = vocabulary.build(class, &fields, tokens.text("unk_token"))?;
    let mut lists = vec![stated];
    lists.push(missing(&lists[0], &settings, &tokens));
    if class == Class::Qwen2 {
        // This class adds its special tokens once more, without their properties.
        lists.push(tokens.all().map(|token| AddedToken::from(&token.content, true)).collect());
    }
    if !whole && tokens.all().next().is_none() {
        let known = USUAL.into_iter().find(|set| set.iter().all(|text| inner.token_to_id(text).is_some()));
        lists.push(known.unwrap_or_default().iter().map(|text| AddedToken::from(*text, true)).collect());
    }
    let shown = added::add(&mut inner, &lists).map_err(Error::file(path))?;
    for (id, token) in settings.listed() {
        if let Some(given) = inner.token_to_id(&token.content).filter(|given| i64::from(*given) != id) {
            let (path, text) = (path.display(), &token.content);
            log::warn!(
                "{path}: added token {text:?}: a file gives it id {id}, its place gives it {given}, which counts"
            );
        }
    }
    inner.set_encode_special_tokens(fields.bool("split_special_tokens")?.unwrap_or(false));
    correct_words(&mut inner, &fields, &model)?;
    let ends = around(&mut inner, class, &fields, &tokens)?;
    let id = |key: &str| inner.token_to_id(tokens.text(key)?);
    let generation = Some(&sources.generation_config).filter(|_| sources.has_generation_config).map(of_file);
    let (model_bos, mut stops) = special_ids(generation.transpose()?.as_ref(), &of_file(&sources.model_config)?)?;
    stops.extend(id("eos_token").filter(|eos| !stops.contains(eos)));
    Ok(Tokenizer {
        bos: id("bos_token").or(model_bos),
        eos: id("eos_token").or(stops.first().copied()),
        stops,
        chat: sources.chat(dir, "default")?,
        tool_chat: sources.chat(dir, "tool_use")?,
        clean: cleans(&inner, &fields)?,
        infill: infill(&inner, &tokens, ends),
        specials: tokens.named.into_iter().map(|(key, token)| (key, token.content)).collect(),
        shown,
        inner,
        path: path.to_path_buf(),
    })
}

/// The tokens to add to those of the file: what has an id elsewhere in the order of the ids, then the special tokens
/// that are in neither.
fn missing(stated: &[AddedToken], settings: &Settings, tokens: &Tokens) -> Vec<AddedToken> {
    let mut known: HashSet<&str> = stated.iter().map(|token| token.content.as_str()).collect();
    let mut found: Vec<&Written> = settings.listed().map(|(_, token)| token).collect();
    known.extend(found.iter().map(|token| token.content.as_str()));
    for token in tokens.all() {
        if !known.contains(token.content.as_str()) && !found.iter().any(|other| other.same(token)) {
            found.push(token);
        }
    }
    let named: HashSet<&str> = tokens.named.iter().map(|(_, token)| token.content.as_str()).collect();
    let special = |token: &Written| match named.contains(token.content.as_str()) {
        true => token.clone().special().token(),
        false => token.token(),
    };
    found.into_iter().map(special).collect()
}

/// The correction of `fix_mistral_regex`.
fn correct_words(inner: &mut Inner, fields: &Fields, model: &Fields) -> Result<()> {
    let wanted = fields.get("fix_mistral_regex") == Some(&Value::Bool(true));
    if wanted
        && inner.get_vocab_size(true) > MISTRAL
        && corrects_mistral(model)?
        && let Some(words) = inner.get_pre_tokenizer()
    {
        let words = serde_json::to_value(words).map_err(Error::file(fields.path()))?;
        let corrected = PreTokenizerWrapper::deserialize(&with_mistral_words(words));
        inner.with_pre_tokenizer(Some(corrected.map_err(Error::file(fields.path()))?));
    }
    Ok(())
}

/// Puts BOS and EOS around a text where the class or the settings do so themselves; gives the two.
fn around(inner: &mut Inner, class: Class, fields: &Fields, tokens: &Tokens) -> Result<[Option<u32>; 2]> {
    let wanted = |key: &str, default: bool| match fields.has(key) {
        true => Ok(fields.bool(key)?.unwrap_or(false)),
        false => Ok(default),
    };
    let code = class == Class::CodeLlama;
    let [bos, eos] = [
        wanted("add_bos_token", code)?.then(|| tokens.text("bos_token")).flatten(),
        wanted("add_eos_token", false)?.then(|| tokens.text("eos_token")).flatten(),
    ];
    let ends = [bos, eos].map(|text| text.and_then(|text| Some((text, inner.token_to_id(text)?))));
    let stated = fields.has("add_bos_token") || fields.has("add_eos_token");
    if code || stated || class == Class::GptNeoX {
        inner.with_post_processor(Some(template(ends).map_err(Error::file(fields.path()))?));
    }
    Ok(ends.map(|end| end.map(|(_, id)| id)))
}

/// Whether spaces before punctuation are removed from decoded text: transformers does so for a BPE only when told twice.
fn cleans(inner: &Inner, fields: &Fields) -> Result<bool> {
    let on = |key| Ok::<_, Error>(fields.bool(key)?.unwrap_or(false));
    let bpe = matches!(inner.get_model(), ModelWrapper::BPE(_));
    let sure = on("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output")?;
    Ok(on("clean_up_tokenization_spaces")? && (!bpe || sure))
}

/// How CodeLlama fills a gap.
fn infill(inner: &Inner, tokens: &Tokens, ends: [Option<u32>; 2]) -> Option<Infill> {
    let [prefix, middle, suffix, _, mark] = tokens.infill.each_ref().map(|token| token.as_ref().map(|t| &t.content));
    let id = |text: Option<&String>| inner.token_to_id(text?);
    let around = id(prefix).zip(id(suffix)).zip(id(middle)).map(|((prefix, suffix), middle)| [prefix, suffix, middle]);
    Some(Infill { mark: mark.filter(|text| !text.is_empty())?.clone(), around, ends })
}

/// The object of a file.
fn of_file((path, value): &Source) -> Result<Fields<'_>> {
    Fields::new(path, value)
}

/// The configuration files beside a vocabulary; an absent one is an empty object.
struct Sources {
    tokenizer_config: Source,
    special_tokens_map: Source,
    added_tokens: Source,
    generation_config: Source,
    has_generation_config: bool,
    model_config: Source,
}

impl Sources {
    fn read(dir: &Path, read: impl Fn(&Path) -> Result<Option<Value>>) -> Result<Self> {
        Ok(Self {
            tokenizer_config: source(dir, "tokenizer_config.json", &read)?,
            special_tokens_map: source(dir, "special_tokens_map.json", &read)?,
            added_tokens: source(dir, "added_tokens.json", &read)?,
            generation_config: source(dir, "generation_config.json", &read)?,
            has_generation_config: read(&dir.join("generation_config.json"))?.is_some(),
            model_config: source(dir, "config.json", &read)?,
        })
    }

    fn config(&self) -> Result<Fields<'_>> {
        Fields::new(&self.tokenizer_config.0, &self.tokenizer_config.1)
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

/// Checks every precompiled normalizer of a normalizer.
fn check_precompiled(normalizer: Option<&Value>) -> serde_json::Result<()> {
    let Some(normalizer) = normalizer else { return Ok(()) };
    if normalizer.get("type").and_then(Value::as_str) == Some("Precompiled") {
        Precompiled::deserialize(normalizer)?;
    }
    let parts = normalizer.get("normalizers").and_then(Value::as_array);
    parts.into_iter().flatten().try_for_each(|part| check_precompiled(Some(part)))
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
