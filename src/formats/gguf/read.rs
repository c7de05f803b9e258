//! Reading what stands before the data of a GGUF file.

use std::collections::BTreeMap;
use std::path::Path;

use super::types::TensorType;
use super::{Entry, Value};
use crate::{Error, Result};

const MAGIC: &[u8; 4] = b"GGUF";
/// The newest version.
const VERSION: u32 = 3;
/// Where `general.alignment` is not there.
const ALIGNMENT: usize = 32;
const ALIGNMENT_KEY: &str = "general.alignment";
/// Most dimensions of a tensor.
const MOST_DIMS: u32 = 4;
/// Longest name of a tensor or a key.
const LONGEST_NAME: usize = 65535;

/// Reads from the front of a file.
struct Reader<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

/// A tensor as the header has it.
struct Listed {
    name: String,
    dims: Vec<usize>,
    kind: TensorType,
    /// Bytes of its data.
    len: usize,
    /// From the beginning of the data.
    offset: usize,
}

/// The metadata and the tensors.
type Header = (BTreeMap<String, Value>, BTreeMap<String, Entry>);

/// Reads what stands before the data.
pub(super) fn header(path: &Path, bytes: &[u8]) -> Result<Header> {
    Reader { path, bytes, at: 0 }.file()
}

/// An error about a key or a tensor, whose name comes from the file.
pub(super) fn field_error(path: &Path, field: &str, expected: impl Into<String>, found: impl Into<String>) -> Error {
    let field: String = field.chars().take(100).flat_map(char::escape_default).collect();
    Error::field(path, field, expected, found)
}

impl<'a> Reader<'a> {
    fn file(mut self) -> Result<Header> {
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
        for Listed { name, dims, kind, len, offset } in entries {
            if !offset.is_multiple_of(alignment) {
                return Err(self.error(&name, format!("an offset that is a multiple of {alignment}"), offset));
            }
            let range = start.checked_add(offset).and_then(|from| Some(from..from.checked_add(len)?));
            let range = range.filter(|range| range.end <= self.bytes.len()).ok_or_else(|| {
                let found = format!("{len} bytes at {offset} of {}", self.bytes.len().saturating_sub(start));
                self.error(&name, "data within the file", found)
            })?;
            if read.insert(name.clone(), Entry { dims, kind, range }).is_some() {
                return Err(self.error(&name, "one tensor of this name", "two"));
            }
        }
        Ok((metadata, read))
    }

    fn alignment(&self, metadata: &BTreeMap<String, Value>) -> Result<usize> {
        match metadata.get(ALIGNMENT_KEY) {
            None => Ok(ALIGNMENT),
            Some(Value::Unsigned(n)) if n.is_power_of_two() && *n <= 1 << 20 => Ok(*n as usize),
            Some(other) => Err(self.error(ALIGNMENT_KEY, "a power of two up to 2^20", format!("{other:?}"))),
        }
    }

    fn entry(&mut self) -> Result<Listed> {
        let name = self.name("tensor name")?;
        let count = self.u32(&name)?;
        if count == 0 || count > MOST_DIMS {
            return Err(self.error(&name, format!("1 to {MOST_DIMS} dimensions"), count));
        }
        let dims = (0..count).map(|_| self.u64(&name)).collect::<Result<Vec<_>>>()?;
        let (kind, offset) = (TensorType::new(self.u32(&name)?), self.u64(&name)?);
        let (values, bytes) = kind.block();
        let elements = dims.iter().try_fold(1usize, |len, &dim| len.checked_mul(usize::try_from(dim).ok()?));
        let most = self.bytes.len().checked_div(bytes).map_or(usize::MAX, |blocks| blocks * values);
        let elements = elements.filter(|&elements| elements <= most);
        let elements = elements
            .ok_or_else(|| self.error(&name, format!("at most {most} elements of {kind}"), format!("{dims:?}")))?;
        if !dims[0].is_multiple_of(values as u64) {
            return Err(self.error(&name, format!("rows of a multiple of {values} elements, of {kind}"), dims[0]));
        }
        let offset = usize::try_from(offset).map_err(|_| self.error(&name, "an offset within the file", offset))?;
        let dims = dims.into_iter().map(|dim| dim as usize).collect();
        Ok(Listed { name, dims, kind, len: elements / values * bytes, offset })
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
        field_error(self.path, field, expected, found.to_string())
    }
}
