//! GGUF, the container of llama.cpp: metadata and tensors, read strictly and where they lie.
//!
//! A file is the magic `GGUF`, a version (2 or 3), the counts of tensors and of metadata, the metadata (a key, a type and a
//! value each), for each tensor its name, dimensions (the fastest first), type and offset, then, at the next multiple of
//! `general.alignment` (32 if it is not there), the data. All numbers are little-endian. Everything that the header claims
//! is checked before a tensor is given out; a tensor of a type that is not read here is refused by its name when it is asked
//! for, and so is a file in which one lies that is not asked for only if its data would be outside.

pub mod export;
pub mod lora;
pub mod model;
mod names;
mod neutral;
mod read;
pub mod tokenizer;
mod types;
pub mod vocabulary;
mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::quantized::{QuantizedView, RowOrderView, ScalesView, WeightView};
use super::safetensors::{Bytes, Loading, TensorView};
use crate::{Error, Result};

pub use types::TensorType;
pub use write::{GgufFile, TensorSpec, write, write_typed};

/// The value of a metadata key.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of 8 to 64 bits.
    Unsigned(u64),
    /// Of 8 to 64 bits.
    Signed(i64),
    /// Of 32 or 64 bits.
    Float(f64),
    /// A byte that is 0 or 1.
    Bool(bool),
    /// Text in UTF-8.
    String(String),
    /// Values of one type, none of them a list.
    List(Vec<Value>),
}

/// A tensor of 32-bit floats.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Elements along each dimension, the fastest first.
    pub dims: Vec<usize>,
    /// The tensor's elements, in row-major order.
    pub values: Vec<f32>,
}

/// What the header says of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Elements along each dimension, the fastest first.
    pub dims: Vec<usize>,
    /// How the elements are stored.
    pub kind: TensorType,
    /// Its first byte and the one behind its last, in the file; of a type whose size is not known, empty.
    pub range: std::ops::Range<usize>,
}

impl Entry {
    /// The dimensions in the order of every other format, the slowest first.
    pub fn shape(&self) -> Vec<usize> {
        self.dims.iter().rev().copied().collect()
    }
}

/// A file whose header has been read.
#[derive(Clone, Debug)]
pub struct Gguf {
    path: PathBuf,
    bytes: Bytes,
    /// The metadata, each by its key, such as `general.architecture`.
    pub metadata: BTreeMap<String, Value>,
    /// What the header says of the tensors, each by its name.
    pub entries: BTreeMap<String, Entry>,
}

impl Gguf {
    /// Reads a file into memory.
    ///
    /// # Errors
    /// As [`Gguf::open`].
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        Self::open(path, Loading::Copied)
    }

    /// Opens a file, mapped or copied; of a mapped one the data are read when they are touched.
    ///
    /// # Errors
    /// What is no GGUF file or is cut off; a key or a tensor that is there twice; a tensor that lies outside the file or is
    /// misaligned, or whose rows are no whole blocks; lists of lists.
    pub fn open(path: impl AsRef<Path>, loading: Loading) -> Result<Self> {
        let path = path.as_ref();
        let bytes = Bytes::open(path, loading)?;
        let (metadata, entries) = read::header(path, &bytes)?;
        Ok(Self { path: path.to_path_buf(), bytes, metadata, entries })
    }

    /// Whether a file begins as one of this format.
    pub fn is_one(path: &Path) -> bool {
        path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
    }

    /// Path of the file, for errors.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A tensor where it lies.
    ///
    /// # Errors
    /// It is not there; its type is not read here; a quantised one that is no matrix.
    pub fn tensor(&self, name: &str) -> Result<WeightView> {
        let entry = self.entries.get(name).ok_or_else(|| self.error(name, "a tensor of this name", "none"))?;
        let data = self.bytes.slice(entry.range.clone());
        if let Some(dtype) = entry.kind.float() {
            let data = data.aligned(dtype.bitsize() / 8);
            return Ok(TensorView { name: name.to_owned(), dtype, shape: entry.shape(), data }.into());
        }
        let Some(format) = entry.kind.blocks() else {
            let what = format!("{}: {name}: type of a tensor", self.path.display());
            return Err(Error::unsupported(what, entry.kind, TensorType::names()));
        };
        let shape: [usize; 2] = entry.shape().try_into().map_err(|_| {
            self.error(name, format!("a matrix, of type {}", entry.kind), format!("dimensions {:?}", entry.dims))
        })?;
        let view = QuantizedView {
            name: name.to_owned(),
            format,
            shape,
            stored_rows: shape[0],
            codes: data,
            scales: ScalesView::Inline,
            order: RowOrderView::From(0),
            rounding: None,
        };
        view.check().map_err(|error| self.error(name, error.expected, format!("{} {}", error.part, error.found)))?;
        Ok(view.into())
    }

    /// A tensor of 32-bit floats, copied.
    ///
    /// # Errors
    /// It is not there, or of another type.
    pub fn floats(&self, name: &str) -> Result<Tensor> {
        let entry = self.entries.get(name).ok_or_else(|| self.error(name, "a tensor of this name", "none"))?;
        if entry.kind != TensorType::F32 {
            return Err(self.error(name, "the type F32", entry.kind.to_string()));
        }
        let data = &self.bytes[entry.range.clone()];
        let values = data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Ok(Tensor { dims: entry.dims.clone(), values })
    }

    /// A text of the metadata.
    ///
    /// # Errors
    /// It is not there, or is no text.
    pub fn string(&self, key: &str) -> Result<&str> {
        self.required(key, "a text", Value::as_str)
    }

    /// A text that may not be there.
    ///
    /// # Errors
    /// It is no text.
    pub fn optional_string(&self, key: &str) -> Result<Option<&str>> {
        self.optional(key, "a text", Value::as_str)
    }

    /// A number from 0 on that may not be there.
    ///
    /// # Errors
    /// It is something else.
    pub fn optional_usize(&self, key: &str) -> Result<Option<usize>> {
        self.optional(key, "a whole number from 0 on", Value::as_usize)
    }

    /// A finite number that may not be there.
    ///
    /// # Errors
    /// It is something else.
    pub fn optional_f64(&self, key: &str) -> Result<Option<f64>> {
        self.optional(key, "a finite number", Value::as_f64)
    }

    /// A truth value that may not be there.
    ///
    /// # Errors
    /// It is something else.
    pub fn optional_bool(&self, key: &str) -> Result<Option<bool>> {
        self.optional(key, "a boolean", |value| if let Value::Bool(value) = value { Some(*value) } else { None })
    }

    /// A list of which every element is read by `read`; none where the key is not there.
    ///
    /// # Errors
    /// It is no list, or an element is something else.
    pub fn optional_list<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        let list = |value: &'a Value| match value {
            Value::List(list) => list.iter().map(&read).collect(),
            _ => None,
        };
        self.optional(key, expected, list)
    }

    /// What `read` makes of a value that must be there.
    ///
    /// # Errors
    /// It is not there, or something else.
    pub fn required<'a, T>(&'a self, key: &str, expected: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<T> {
        self.optional(key, expected, read)?.ok_or_else(|| self.error(key, expected, "nothing"))
    }

    fn optional<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.error(key, expected, value.show()))
    }

    /// An error about a key or a tensor of this file.
    pub fn error(&self, field: &str, expected: impl Into<String>, found: impl Into<String>) -> Error {
        read::field_error(&self.path, field, expected, found)
    }
}

impl Value {
    /// The text that it is.
    pub fn as_str(&self) -> Option<&str> {
        if let Self::String(text) = self { Some(text) } else { None }
    }

    /// The whole number from 0 on that it is.
    pub fn as_usize(&self) -> Option<usize> {
        match self {
            Self::Unsigned(n) => usize::try_from(*n).ok(),
            Self::Signed(n) => usize::try_from(*n).ok(),
            _ => None,
        }
    }

    /// The finite number that it is.
    pub fn as_f64(&self) -> Option<f64> {
        let number = match self {
            Self::Unsigned(n) => *n as f64,
            Self::Signed(n) => *n as f64,
            Self::Float(x) => *x,
            _ => return None,
        };
        Some(number).filter(|number| number.is_finite())
    }

    /// The same in JSON; null for a number that is not finite.
    pub fn json(&self) -> serde_json::Value {
        match self {
            Self::Unsigned(n) => (*n).into(),
            Self::Signed(n) => (*n).into(),
            Self::Float(x) => (*x).into(),
            Self::Bool(value) => (*value).into(),
            Self::String(text) => text.as_str().into(),
            Self::List(list) => list.iter().map(Self::json).collect(),
        }
    }

    /// For an error: long ones cut short.
    fn show(&self) -> String {
        match self {
            Self::List(list) => format!("a list of {}", list.len()),
            other => format!("{other:?}").chars().take(100).collect(),
        }
    }
}
