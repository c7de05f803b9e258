//! What the files beside a vocabulary say of its tokens, put together as transformers does.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::added::Written;
use super::class::{Class, INFILL, truthy};
use crate::formats::json::{Fields, show};
use crate::{Error, Result};

/// The special tokens that every class may have, in the order in which they are added.
const SPECIALS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A file and its object; an absent one is empty.
pub(super) type Source = (PathBuf, Value);

/// The settings of a tokenizer, and the tokens that they add.
pub(super) struct Settings {
    /// `tokenizer_config.json`, with what `special_tokens_map.json` sets: an object.
    keys: Value,
    path: PathBuf,
    /// Keys that are from `special_tokens_map.json`, and its path.
    mapped: (PathBuf, HashSet<String>),
    /// Tokens that a file gives an id, by that id.
    listed: BTreeMap<i64, Written>,
    /// The same by text, with those whose id another one has taken.
    texts: HashMap<String, Written>,
}

/// The tokens of a tokenizer that have a meaning.
pub(super) struct Tokens {
    /// Special tokens by their key; the usual ones first.
    pub named: Vec<(String, Written)>,
    /// Special tokens that no key of their own names.
    pub extra: Vec<Written>,
    /// CodeLlama's tokens in the order of [`INFILL`], as its class is told them: not by tokenizer_config.json, whose
    /// texts under these keys only become special tokens.
    pub infill: [Option<Written>; 5],
}

impl Tokens {
    /// The text of a named token.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.named.iter().find(|(k, _)| k == key).map(|(_, token)| token.content.as_str())
    }

    /// All of them, in the order in which they are added.
    pub(super) fn all(&self) -> impl Iterator<Item = &Written> {
        self.named.iter().map(|(_, token)| token).chain(&self.extra)
    }
}

impl Settings {
    /// Puts together the files' settings. `file` is the `tokenizer.json`, where there is one.
    ///
    /// # Errors
    /// A key holds the wrong thing.
    pub(super) fn merge(config: &Source, map: &Source, added: &Source, file: Option<&Value>) -> Result<Self> {
        let mut keys = config.1.as_object().cloned().unwrap_or_default();
        if file.is_some() {
            // A tokenizer.json says itself what stands around a text.
            keys.shift_remove("add_bos_token");
            keys.shift_remove("add_eos_token");
        }
        if !keys.get("extra_special_tokens").is_some_and(truthy)
            && let Some(list) = keys.shift_remove("additional_special_tokens")
        {
            keys.insert("extra_special_tokens".into(), list);
        }
        name_by_key(&mut keys);
        let mut settings = Self {
            keys: Value::Object(keys),
            path: config.0.clone(),
            mapped: (map.0.clone(), HashSet::new()),
            listed: BTreeMap::new(),
            texts: HashMap::new(),
        };
        if settings.keys.get("added_tokens_decoder").is_some() {
            settings.decoder()?;
        } else {
            settings.older(map, added, file)?;
        }
        Ok(settings)
    }

    /// The settings' keys, for reading.
    pub(super) fn fields(&self) -> Result<Fields<'_>> {
        Fields::new(&self.path, &self.keys)
    }

    /// Tokens to which a file gives an id, in the order of the ids.
    pub(super) fn listed(&self) -> impl Iterator<Item = (i64, &Written)> {
        self.listed.iter().map(|(id, token)| (*id, token))
    }

    fn list(&mut self, id: i64, token: Written) {
        self.texts.insert(token.content.clone(), token.clone());
        self.listed.insert(id, token);
    }

    /// The ids of `added_tokens_decoder`; nothing else is then read of the older files.
    fn decoder(&mut self) -> Result<()> {
        let fields = self.fields()?;
        let expected = "tokens by their ids, each an object with its content and properties";
        let error = || fields.error("added_tokens_decoder", expected);
        let object = self.keys.get("added_tokens_decoder").and_then(Value::as_object).ok_or_else(error)?;
        let mut tokens = Vec::new();
        for (id, token) in object {
            let id = id.trim().parse::<i64>().map_err(|_| error())?;
            tokens.push((id, Some(token).filter(|t| t.is_object()).and_then(Written::read).ok_or_else(error)?));
        }
        tokens.into_iter().for_each(|(id, token)| self.list(id, token));
        Ok(())
    }

    /// `special_tokens_map.json`, `added_tokens.json` and the tokens of `tokenizer.json`, the later one's word for it.
    fn older(&mut self, map: &Source, added: &Source, file: Option<&Value>) -> Result<()> {
        for (key, value) in map.1.as_object().into_iter().flatten() {
            let value = match value {
                Value::Object(_) if key != "extra_special_tokens" => special(value.clone()),
                Value::Array(list) if key == "extra_special_tokens" => self.further(list),
                Value::Array(list) => list.iter().cloned().map(special).collect(),
                value => value.clone(),
            };
            self.keys[key] = value;
            self.mapped.1.insert(key.clone());
        }
        if let Value::Object(keys) = &mut self.keys
            && let Some(Value::Object(tokens)) = keys.get("extra_special_tokens").cloned()
        {
            keys.shift_remove("extra_special_tokens");
            let named = keys.entry("model_specific_special_tokens").or_insert_with(|| json!({}));
            named.as_object_mut().into_iter().for_each(|named| named.extend(tokens.clone()));
        }
        self.added_file(added)?;
        for token in file.and_then(|file| file["added_tokens"].as_array()).into_iter().flatten() {
            if let (Some(id), Some(token)) = (token["id"].as_i64(), Written::read(token)) {
                self.list(id, token);
            }
        }
        Ok(())
    }

    /// The list of `special_tokens_map.json`, behind that of `tokenizer_config.json`.
    fn further(&self, list: &[Value]) -> Value {
        let mut all = self.keys.get("extra_special_tokens").and_then(Value::as_array).cloned().unwrap_or_default();
        for token in list.iter().cloned().map(special) {
            if !all.contains(&token) {
                all.push(token);
            }
        }
        Value::Array(all)
    }

    /// Texts with ids; those that are a special token elsewhere are special here.
    fn added_file(&mut self, (path, value): &Source) -> Result<()> {
        let fields = Fields::new(path, value)?;
        let mut special = HashSet::new();
        for key in SPECIALS {
            match self.keys.get(key) {
                Some(Value::String(text)) => special.insert(text.clone()),
                Some(token @ Value::Object(_)) if self.mapped.1.contains(key) => {
                    special.insert(token["content"].as_str().unwrap_or_default().to_owned())
                }
                _ => false,
            };
        }
        let extra = self.keys.get("extra_special_tokens").and_then(Value::as_array);
        let texts = extra.into_iter().flatten().filter_map(|token| match token {
            Value::String(text) => Some(text.clone()),
            // One of tokenizer_config.json says of itself that it is a token, and is not looked at here.
            token if token.get("__type").is_some() => None,
            token => token["content"].as_str().map(str::to_owned),
        });
        special.extend(texts);
        for (text, id) in value.as_object().into_iter().flatten() {
            let id = id.as_i64().ok_or_else(|| fields.error(text, "a token id"))?;
            self.list(id, Written::listed(text, special.contains(text)));
        }
        Ok(())
    }

    fn error(&self, key: &str) -> Error {
        let path = if self.mapped.1.contains(key) { &self.mapped.0 } else { &self.path };
        Error::field(path, key, "a token's text, or an object with its content", show(&self.keys[key]))
    }

    /// The token of a key; outside, whether the key is there at all.
    fn token(&self, key: &str) -> Result<Option<Option<Written>>> {
        match self.keys.get(key) {
            None => Ok(None),
            Some(Value::Null) => Ok(Some(None)),
            Some(value) => Written::read(value).map(|token| Some(Some(token))).ok_or_else(|| self.error(key)),
        }
    }

    /// The named and the further special tokens of a class. `padding` is the text with which `tokenizer.json` pads.
    ///
    /// # Errors
    /// A key holds no token.
    pub(super) fn tokens(&self, class: Class, padding: Option<&str>) -> Result<Tokens> {
        let mut named = Vec::new();
        for key in SPECIALS {
            let default = class.default(key).or((key == "pad_token").then_some(padding));
            let token = match self.token(key)? {
                // What has an id has its properties there.
                Some(token) => token.map(|token| self.texts.get(&token.content).cloned().unwrap_or(token)),
                None => default.flatten().map(Written::bare),
            };
            named.extend(token.map(|token| (key.to_owned(), token)));
        }
        let mut infill = [const { None }; 5];
        if class == Class::CodeLlama {
            for (slot, (key, text)) in infill.iter_mut().zip(INFILL) {
                *slot = self.token(key)?.unwrap_or_else(|| Some(Written::bare(text)));
            }
        }
        for (key, token) in self.own(class, &infill)? {
            match named.iter_mut().find(|(k, _)| *k == key) {
                Some((_, before)) => *before = token,
                None => named.push((key, token)),
            }
        }
        Ok(Tokens { named, extra: self.extra(&infill), infill })
    }

    /// The special tokens that other classes do not have, by keys that end in `_token`.
    fn own(&self, class: Class, infill: &[Option<Written>; 5]) -> Result<Vec<(String, Written)>> {
        let mut own: Vec<(String, Written)> =
            INFILL.iter().zip(infill).filter_map(|((key, _), token)| Some((key.to_string(), token.clone()?))).collect();
        let known = |key: &str| {
            SPECIALS.contains(&key) || class == Class::CodeLlama && INFILL.iter().any(|(infill, _)| *infill == key)
        };
        // An object that does not say that it is a token is one only in special_tokens_map.json.
        let token = |(key, value): &(&String, &Value)| {
            is_token_key(key)
                && !known(key)
                && (value.is_string() || value.get("__type").is_some() || self.mapped.1.contains(*key))
        };
        for (key, value) in self.keys.as_object().into_iter().flatten().filter(token) {
            own.extend(Written::read(value).map(|token| (key.clone(), token)));
        }
        let specific = "model_specific_special_tokens";
        self.fields()?.object(specific)?;
        for (key, value) in self.keys.get(specific).and_then(Value::as_object).into_iter().flatten() {
            own.push((key.clone(), Written::read(value).ok_or_else(|| self.error(specific))?));
        }
        Ok(own)
    }

    fn extra(&self, infill: &[Option<Written>; 5]) -> Vec<Written> {
        let read = |key: &str| {
            let list = self.keys.get(key).and_then(Value::as_array);
            list.into_iter().flatten().filter_map(Written::read).collect::<Vec<_>>()
        };
        if self.keys.get("extra_special_tokens").is_some() {
            return read("extra_special_tokens");
        }
        [read("additional_special_tokens"), infill.iter().flatten().cloned().collect()].concat()
    }
}

/// Whether a key may name a special token.
pub(super) fn is_token_key(key: &str) -> bool {
    key.ends_with("_token")
}

/// Gathers the texts under keys of their own, and those of a dictionary of further tokens.
fn name_by_key(keys: &mut Map<String, Value>) {
    let own = |key: &str, value: &Value| is_token_key(key) && !SPECIALS.contains(&key) && value.is_string();
    let mut named: Map<String, Value> =
        keys.iter().filter(|(key, value)| own(key, value)).map(|(key, value)| (key.clone(), value.clone())).collect();
    keys.retain(|key, _| !named.contains_key(key));
    if let Some(Value::Object(_)) = keys.get("extra_special_tokens")
        && let Some(Value::Object(tokens)) = keys.shift_remove("extra_special_tokens")
    {
        named.extend(tokens);
    }
    if !named.is_empty() {
        keys.insert("model_specific_special_tokens".into(), Value::Object(named));
    }
}

/// The file that is there, or an empty object under its path.
pub(super) fn source(dir: &Path, name: &str, read: impl Fn(&Path) -> Result<Option<Value>>) -> Result<Source> {
    let path = dir.join(name);
    let value = read(&path)?.unwrap_or_else(|| json!({}));
    Fields::new(&path, &value)?;
    Ok((path, value))
}

/// A token's object, said to be special.
fn special(mut token: Value) -> Value {
    if let Some(token) = token.as_object_mut() {
        token.insert("special".into(), json!(true));
    }
    token
}
