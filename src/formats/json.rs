//! JSON configuration files, read strictly: a repeated key is an error, and so is a value of another type.
//!
//! [`Fields`] reads one object of such a file; its errors carry the file and the dotted path of the key.

use std::fmt;
use std::path::Path;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::atomic::read_to_string;
use crate::{Error, Result};

/// Reads a JSON file.
///
/// # Errors
/// The file cannot be read, is not UTF-8, is not JSON, or repeats a key in an object.
pub fn read(path: impl AsRef<Path>) -> Result<Value> {
    let path = path.as_ref();
    parse(path, &read_to_string(path)?)
}

/// Parses JSON text, before which a byte order mark may stand; `path` is only for the error.
///
/// # Errors
/// As [`read`]; a number that is not finite, as Python writes it, is named with its field.
pub fn parse(path: impl AsRef<Path>, text: &str) -> Result<Value> {
    let text = text.strip_prefix('\u{FEFF}').unwrap_or(text);
    strict(text).map_err(|error| match not_finite(text) {
        Some((field, found)) => Error::field(path, field, "a finite number, as JSON has them", found),
        None => Error::file(path)(error),
    })
}

/// A value in one line of a table: a text without its quotes, a list with commas between.
pub fn word(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(word).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

fn strict(text: &str) -> serde_json::Result<Value> {
    let mut de = serde_json::Deserializer::from_str(text);
    Strict.deserialize(&mut de).and_then(|v| de.end().map(|()| v))
}

/// What begins a string that stands for a number which is not finite.
const NOT_FINITE: &str = "\u{0}not finite: ";

/// The first number of a text that JSON does not have, and its field, if such numbers are all that is wrong with it.
fn not_finite(text: &str) -> Option<(String, String)> {
    let (mut quoted, mut escaped, mut fixed, mut copied) = (false, false, String::new(), 0);
    for (at, c) in text.char_indices().filter(|(_, c)| c.is_ascii()) {
        let word = ["NaN", "Infinity", "-Infinity"].into_iter().find(|word| !quoted && text[at..].starts_with(word));
        if let (Some(word), true) = (word, at >= copied) {
            fixed += &text[copied..at];
            fixed += &Value::from(format!("{NOT_FINITE}{word}")).to_string();
            copied = at + word.len();
        }
        quoted ^= c == '"' && !escaped;
        escaped = quoted && c == '\\' && !escaped;
    }
    let fixed = fixed + &text[copied..];
    let (field, found) = first_not_finite(&strict(&fixed).ok()?)?;
    Some((field.trim_start_matches('.').to_owned(), found))
}

fn first_not_finite(value: &Value) -> Option<(String, String)> {
    let inside = |step: String, value: &Value| first_not_finite(value).map(|(field, found)| (step + &field, found));
    match value {
        Value::String(text) => text.strip_prefix(NOT_FINITE).map(|found| (String::new(), found.to_owned())),
        Value::Array(list) => list.iter().enumerate().find_map(|(i, value)| inside(format!("[{i}]"), value)),
        Value::Object(map) => map.iter().find_map(|(key, value)| inside(format!(".{key}"), value)),
        _ => None,
    }
}

/// A value of another format that reads like JSON, without repeated keys.
pub struct StrictValue(pub Value);

impl<'de> serde::Deserialize<'de> for StrictValue {
    fn deserialize<D: serde::Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        Strict.deserialize(de).map(StrictValue)
    }
}

/// A [`Value`] without repeated keys. serde_json keeps the last one, other readers the first: nobody may guess.
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, de: D) -> Result<Value, D::Error> {
        de.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = seq.next_element_seed(Strict)? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(Strict)?;
            if object.contains_key(&key) {
                return Err(A::Error::custom(format!("{key}: expected once, found twice")));
            }
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

/// One object of a JSON file. `null` and an absent key are the same, except to [`Fields::has`].
#[derive(Clone)]
pub struct Fields<'a> {
    path: &'a Path,
    prefix: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The top object of a file.
    ///
    /// # Errors
    /// The value is not an object.
    pub fn new(path: &'a Path, value: &'a Value) -> Result<Self> {
        match value {
            Value::Object(map) => Ok(Self { path, prefix: String::new(), map }),
            other => Err(Error::field(path, "top level", "an object", show(other))),
        }
    }

    /// The objects of a file that is a list of such.
    ///
    /// # Errors
    /// The value is no list, or has other elements.
    pub fn of_list(path: &'a Path, value: &'a Value) -> Result<Vec<Self>> {
        let Value::Array(list) = value else {
            return Err(Error::field(path, "top level", "a list", show(value)));
        };
        let object = |(i, value): (usize, &'a Value)| match value {
            Value::Object(map) => Ok(Self { path, prefix: format!("[{i}]."), map }),
            other => Err(Error::field(path, format!("[{i}]"), "a mapping", show(other))),
        };
        list.iter().enumerate().map(object).collect()
    }

    /// The file this object is from.
    pub fn path(&self) -> &'a Path {
        self.path
    }

    /// The keys, in file order.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.map.keys().map(String::as_str)
    }

    /// The object with all its keys, known or not.
    pub fn map(&self) -> &'a Map<String, Value> {
        self.map
    }

    /// Whether the key is there at all, be it `null`.
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// The value of a key that is there and not `null`.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// The error that this key holds the wrong thing.
    pub fn error(&self, key: &str, expected: impl Into<String>) -> Error {
        let found = self.map.get(key).map_or("nothing".to_string(), show);
        Error::field(self.path, format!("{}{key}", self.prefix), expected, found)
    }

    /// A value that must be there.
    ///
    /// # Errors
    /// It is `None`.
    pub fn require<T>(&self, key: &str, value: Option<T>, expected: &str) -> Result<T> {
        value.ok_or_else(|| self.error(key, expected))
    }

    /// A non-negative integer.
    ///
    /// # Errors
    /// The value is something else; a float such as `8.0` is.
    pub fn usize(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a non-negative integer", |v| v.as_u64().and_then(|n| usize::try_from(n).ok()))
    }

    /// An integer from `range`.
    ///
    /// # Errors
    /// The value is something else.
    pub fn usize_in(&self, key: &str, range: std::ops::RangeInclusive<usize>) -> Result<Option<usize>> {
        match self.usize(key)? {
            Some(n) if !range.contains(&n) => {
                Err(self.error(key, format!("an integer from {} to {}", range.start(), range.end())))
            }
            other => Ok(other),
        }
    }

    /// A finite number.
    ///
    /// # Errors
    /// The value is something else.
    pub fn f64(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a finite number", |v| v.as_f64().filter(|x| x.is_finite()))
    }

    /// A boolean.
    ///
    /// # Errors
    /// The value is something else.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// A string.
    ///
    /// # Errors
    /// The value is something else.
    pub fn str(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a string", Value::as_str)
    }

    /// A list of any values.
    ///
    /// # Errors
    /// The value is something else.
    pub fn list(&self, key: &str) -> Result<Option<&'a [Value]>> {
        self.typed(key, "a list", |v| v.as_array().map(Vec::as_slice))
    }

    /// An object.
    ///
    /// # Errors
    /// The value is something else.
    pub fn object(&self, key: &str) -> Result<Option<Fields<'a>>> {
        let map = self.typed(key, "an object", Value::as_object)?;
        Ok(map.map(|map| Fields { path: self.path, prefix: format!("{}{key}.", self.prefix), map }))
    }

    fn typed<T>(&self, key: &str, expected: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        self.get(key).map(|v| read(v).ok_or_else(|| self.error(key, expected))).transpose()
    }
}

/// A value as an error message shows it: its JSON, cut to a line.
pub fn show(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// Takes `files`, the digests of a model's files, from what a file of before they were written is compared with, and says so.
pub fn forgive_missing_files(path: &Path, ours: &mut Value, theirs: &Value) {
    if theirs.get("files").is_none() && ours.as_object_mut().is_some_and(|ours| ours.shift_remove("files").is_some()) {
        let path = path.display();
        log::warn!("{path}: does not say with which files of the model it was begun: it is taken to be with these");
    }
}

/// The first difference of two values: where, ours, theirs.
pub fn difference(path: &str, ours: &Value, theirs: &Value) -> Option<(String, String, String)> {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            let keys = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key)));
            let value = |map: &Map<String, Value>, key: &str| map.get(key).cloned().unwrap_or(Value::Null);
            keys.map(|key| (key, value(a, key), value(b, key)))
                .find_map(|(key, a, b)| difference(&format!("{path}.{key}"), &a, &b))
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            let pairs = a.iter().zip(b).enumerate();
            pairs.into_iter().find_map(|(i, (a, b))| difference(&format!("{path}[{i}]"), a, b))
        }
        (a, b) => (a != b).then(|| (path.to_owned(), show(a), show(b))),
    }
}
