//! GGUF, the container of llama.cpp: metadata and tensors, read strictly.
//!
//! A file is the magic `GGUF`, a version (2 or 3), the counts of tensors and of metadata, the metadata (a key, a type and a
//! value each), for each tensor its name, dimensions (the fastest first), type and offset, then, at the next multiple of
//! `general.alignment` (32 if it is not there), the data. All numbers are little-endian. Tensors of `F32` are read; any other
//! type is refused by its name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::atomic;
use super::safetensors::Bytes;
use crate::{Error, Result};

const MAGIC: &[u8; 4] = b"GGUF";
const VERSION: u32 = 3;
const ALIGNMENT: usize = 32;
const ALIGNMENT_KEY: &str = "general.alignment";
/// Most dimensions of a tensor.
const MOST_DIMS: u32 = 4;
/// Longest name of a tensor or a key.
const LONGEST_NAME: usize = 65535;
const F32: u32 = 0;

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

/// A file that has been read.
#[derive(Clone, Debug, PartialEq)]
pub struct Gguf {
    path: PathBuf,
    /// The metadata, each by its key, such as `general.architecture`.
    pub metadata: BTreeMap<String, Value>,
    /// The tensors, all of them of 32-bit floats, each by its name.
    pub tensors: BTreeMap<String, Tensor>,
}

impl Gguf {
    /// Reads a file.
    ///
    /// # Errors
    /// What is no GGUF file or is cut off; a key or a tensor that is there twice; a tensor that is not of F32, lies outside
    /// the file or is misaligned; lists of lists.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = Bytes::copy(path)?;
        Reader { path, bytes: &bytes, at: 0 }.file()
    }

    /// A text of the metadata.
    ///
    /// # Errors
    /// It is not there, or is no text.
    pub fn string(&self, key: &str) -> Result<&str> {
        match self.metadata.get(key) {
            Some(Value::String(text)) => Ok(text),
            Some(other) => Err(Error::field(&self.path, key, "a text", format!("{other:?}"))),
            None => Err(Error::field(&self.path, key, "a text", "nothing")),
        }
    }
}

/// Reads from the front of a file.
struct Reader<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

/// What the header says of one tensor.
struct Entry {
    name: String,
    dims: Vec<usize>,
    len: usize,
    offset: usize,
}

impl<'a> Reader<'a> {
    fn file(mut self) -> Result<Gguf> {
        let magic = self.take("magic", MAGIC.len())?;
        if magic != MAGIC {
            return Err(self.error("magic", "GGUF", magic.escape_ascii()));
        }
        let version = self.u32("version")?;
        if !(2..=VERSION).contains(&version) {
            return Err(self.error("version", "2 or 3, little-endian", version));
        }
        // An entry takes more bytes than this, so that a count is bounded by the file's length.
        let tensors = self.count("tensor_count", 24)?;
        let pairs = self.count("metadata_kv_count", 13)?;
        let mut metadata = BTreeMap::new();
        for _ in 0..pairs {
            let key = self.name("metadata key")?;
            let kind = self.u32(&key)?;
            let value = self.value(&key, kind, true)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(self.error(&key, "once", "twice"));
            }
        }
        let entries = (0..tensors).map(|_| self.entry()).collect::<Result<Vec<_>>>()?;
        let alignment = self.alignment(&metadata)?;
        let start = self.at.next_multiple_of(alignment);
        let mut read = BTreeMap::new();
        for Entry { name, dims, len, offset } in entries {
            if !offset.is_multiple_of(alignment) {
                return Err(self.error(&name, format!("an offset that is a multiple of {alignment}"), offset));
            }
            let range = start.checked_add(offset).and_then(|from| Some(from..from.checked_add(len * 4)?));
            let data = range.clone().and_then(|range| self.bytes.get(range)).ok_or_else(|| {
                let found = format!("{len} elements at {offset} of {} bytes", self.bytes.len().saturating_sub(start));
                self.error(&name, "data within the file", found)
            })?;
            let values = data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            if read.insert(name.clone(), Tensor { dims, values }).is_some() {
                return Err(self.error(&name, "one tensor of this name", "two"));
            }
        }
        Ok(Gguf { path: self.path.to_path_buf(), metadata, tensors: read })
    }

    fn alignment(&self, metadata: &BTreeMap<String, Value>) -> Result<usize> {
        match metadata.get(ALIGNMENT_KEY) {
            None => Ok(ALIGNMENT),
            Some(Value::Unsigned(n)) if n.is_power_of_two() && *n <= 1 << 20 => Ok(*n as usize),
            Some(other) => Err(self.error(ALIGNMENT_KEY, "a power of two up to 2^20", format!("{other:?}"))),
        }
    }

    fn entry(&mut self) -> Result<Entry> {
        let name = self.name("tensor name")?;
        let count = self.u32(&name)?;
        if count == 0 || count > MOST_DIMS {
            return Err(self.error(&name, format!("1 to {MOST_DIMS} dimensions"), count));
        }
        let dims = (0..count).map(|_| self.u64(&name)).collect::<Result<Vec<_>>>()?;
        let (kind, offset) = (self.u32(&name)?, self.u64(&name)?);
        if kind != F32 {
            return Err(self.error(&name, "the type F32", type_name(kind)));
        }
        let most = self.bytes.len() / 4;
        let len = dims.iter().try_fold(1usize, |len, &dim| len.checked_mul(usize::try_from(dim).ok()?));
        let len = len.filter(|&len| len <= most);
        let len = len.ok_or_else(|| self.error(&name, format!("at most {most} elements"), format!("{dims:?}")))?;
        let offset = usize::try_from(offset).map_err(|_| self.error(&name, "an offset within the file", offset))?;
        Ok(Entry { name, dims: dims.into_iter().map(|dim| dim as usize).collect(), len, offset })
    }

    fn value(&mut self, key: &str, kind: u32, lists: bool) -> Result<Value> {
        Ok(match kind {
            0 => Value::Unsigned(u64::from(self.number::<1>(key)?[0])),
            1 => Value::Signed(i64::from(i8::from_le_bytes(self.number(key)?))),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.number(key)?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(self.number(key)?))),
            4 => Value::Unsigned(u64::from(self.u32(key)?)),
            5 => Value::Signed(i64::from(i32::from_le_bytes(self.number(key)?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.number(key)?))),
            7 => match self.number::<1>(key)?[0] {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                other => return Err(self.error(key, "a boolean, 0 or 1", other)),
            },
            8 => Value::String(self.string(key, usize::MAX)?),
            9 if lists => {
                let kind = self.u32(key)?;
                let count = self.count(key, if kind == 8 { 8 } else { 1 })?;
                Value::List((0..count).map(|_| self.value(key, kind, false)).collect::<Result<_>>()?)
            }
            10 => Value::Unsigned(self.u64(key)?),
            11 => Value::Signed(i64::from_le_bytes(self.number(key)?)),
            12 => Value::Float(f64::from_le_bytes(self.number(key)?)),
            9 => return Err(self.error(key, "no list of lists", "one")),
            other => return Err(self.error(key, "a type from 0 to 12", other)),
        })
    }

    /// A number of things that take at least so many bytes each.
    fn count(&mut self, what: &str, bytes: usize) -> Result<usize> {
        let (count, most) = (self.u64(what)?, (self.bytes.len() - self.at) / bytes);
        let fits = usize::try_from(count).ok().filter(|&count| count <= most);
        fits.ok_or_else(|| self.error(what, format!("at most {most}, in a file of this length"), count))
    }

    fn name(&mut self, what: &str) -> Result<String> {
        self.string(what, LONGEST_NAME)
    }

    fn string(&mut self, what: &str, most: usize) -> Result<String> {
        let len = self.u64(what)?;
        let len = usize::try_from(len).ok().filter(|&len| len <= most);
        let len = len.ok_or_else(|| self.error(what, format!("at most {most} bytes"), "a longer text"))?;
        let bytes = self.take(what, len)?;
        let text = std::str::from_utf8(bytes).map_err(|_| self.error(what, "UTF-8", "other bytes"))?;
        Ok(text.to_owned())
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        self.number(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        self.number(what).map(u64::from_le_bytes)
    }

    fn number<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(what, N)?);
        Ok(bytes)
    }

    fn take(&mut self, what: &str, len: usize) -> Result<&'a [u8]> {
        let left = &self.bytes[self.at..];
        let found = || format!("{} bytes to the end of the file", left.len());
        let taken = left.get(..len).ok_or_else(|| self.error(what, format!("{len} bytes"), found()))?;
        self.at += len;
        Ok(taken)
    }

    fn error(&self, field: &str, expected: impl Into<String>, found: impl ToString) -> Error {
        // A key comes from the file.
        let field: String = field.chars().take(100).flat_map(char::escape_default).collect();
        Error::field(self.path, field, expected, found.to_string())
    }
}

/// Of the types of ggml those that one may meet, others by number.
fn type_name(kind: u32) -> String {
    let name = match kind {
        1 => "F16",
        2 => "Q4_0",
        8 => "Q8_0",
        12 => "Q4_K",
        14 => "Q6_K",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        30 => "BF16",
        other => return format!("type {other}"),
    };
    name.to_owned()
}

/// Writes a file of 32-bit floats; of the metadata, texts and signed numbers of 32 bits.
///
/// # Errors
/// The file cannot be written.
///
/// # Panics
/// If a value of the metadata is of another kind.
pub fn write(path: impl AsRef<Path>, metadata: &[(&str, Value)], tensors: &[(String, Tensor)]) -> Result<()> {
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_string(&mut out, key);
        match value {
            Value::String(text) => {
                out.extend(8u32.to_le_bytes());
                put_string(&mut out, text);
            }
            Value::Signed(n) => {
                out.extend(5u32.to_le_bytes());
                out.extend(i32::try_from(*n).expect("gguf: a number of 32 bits").to_le_bytes());
            }
            other => panic!("gguf: {key} is {other:?}"),
        }
    }
    let mut offset = 0;
    for (name, Tensor { dims, values }) in tensors {
        put_string(&mut out, name);
        out.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|&dim| out.extend((dim as u64).to_le_bytes()));
        out.extend(F32.to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        offset = (offset + values.len() * 4).next_multiple_of(ALIGNMENT);
    }
    for (_, Tensor { values, .. }) in tensors {
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        values.iter().for_each(|x| out.extend(x.to_le_bytes()));
    }
    // The last tensor is padded too, as the other writers have it.
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    atomic::write(path, &out)
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}
