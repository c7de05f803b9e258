//! The header of a safetensors file, and every way in which it can be wrong.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{Error as _, MapAccess, Visitor};

use super::Dtype;

/// Headers larger than this are refused, as by the reference implementation.
pub(super) const MAX_HEADER: u64 = 100_000_000;

/// Why a safetensors file, or a tensor of it, cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[allow(missing_docs)] // The fields are the parts of the message.
#[non_exhaustive]
pub enum SafetensorsError {
    /// No room for the header length.
    #[error("header length: expected 8 bytes, found a file of {len}")]
    TooShort { len: usize },
    /// The header length is over the limit of 100 MB.
    #[error("header length: expected at most {MAX_HEADER}, found {found}")]
    HeaderTooLarge { found: u64 },
    /// The header ends after the file.
    #[error("header length: expected at most the {available} bytes after it, found {found}")]
    HeaderOutOfRange { found: u64, available: u64 },
    /// The header is not UTF-8.
    #[error("header: expected UTF-8, found an invalid byte at {at}")]
    HeaderNotUtf8 { at: usize },
    /// The header does not start with `{`.
    #[error("header: expected it to start with {{, found {found:?}")]
    HeaderStart { found: char },
    /// The header is not JSON of the right form.
    #[error("header: {0}")]
    HeaderJson(String),
    /// A name stands twice in the header.
    #[error("header: tensor {name}: expected once, found twice")]
    DuplicateName { name: String },
    /// An element type that the format does not have.
    #[error("tensor {name}: dtype: expected one of {}, found {found}", names())]
    UnknownDtype { name: String, found: String },
    /// `data_offsets` whose end is before the start.
    #[error("tensor {name}: data_offsets: expected start <= end, found [{begin}, {end}]")]
    OffsetsReversed { name: String, begin: usize, end: usize },
    /// `data_offsets` beyond the data.
    #[error("tensor {name}: data_offsets: expected an end of at most {len}, found {end}")]
    OutOfRange { name: String, end: usize, len: usize },
    /// Two tensors share bytes.
    #[error("tensor {name}: data_offsets: expected a start of {expected} (after {other}), found {begin}: overlap")]
    Overlap { name: String, other: String, expected: usize, begin: usize },
    /// Bytes between tensors that belong to none.
    #[error("tensor {name}: data_offsets: expected a start of {expected}, found {begin}: a gap")]
    Gap { name: String, expected: usize, begin: usize },
    /// Bytes after the last tensor.
    #[error("data: expected {expected} bytes (the end of the last tensor), found {found}")]
    TrailingBytes { expected: usize, found: usize },
    /// The byte range does not match shape and dtype.
    #[error("tensor {name}: expected {expected} bytes for shape {shape:?} of {dtype}, found {found}")]
    WrongLength { name: String, shape: Vec<usize>, dtype: Dtype, expected: usize, found: usize },
    /// The product of the shape does not fit a machine word.
    #[error("tensor {name}: shape {shape:?}: expected a size that fits 64 bits, found an overflow")]
    ShapeOverflow { name: String, shape: Vec<usize> },
    /// The data does not lie at a multiple of the element size.
    #[error("tensor {name}: expected data aligned for {dtype}, found it {offset} bytes off; save the file again")]
    Misaligned { name: String, dtype: Dtype, offset: usize },
    /// A needed tensor is absent.
    #[error("tensor {name}: expected it, found none of that name{hint}")]
    Missing { name: String, hint: String },
    /// A tensor that nothing uses.
    #[error("tensor {name}: expected no such tensor, found one of shape {shape:?}")]
    Unexpected { name: String, shape: Vec<usize> },
    /// A shape other than the configuration demands.
    #[error("tensor {name}: expected shape {expected:?}, found {found:?}")]
    WrongShape { name: String, expected: Vec<usize>, found: Vec<usize> },
    /// An element type other than the one asked for.
    #[error("tensor {name}: expected dtype {expected}, found {found}")]
    WrongDtype { name: String, expected: String, found: Dtype },
    /// A NaN or infinity.
    #[error("tensor {name}: expected finite values, found {value} at element {index}")]
    NotFinite { name: String, index: usize, value: f64 },
}

fn names() -> String {
    Dtype::ALL.map(Dtype::name).join(", ")
}

/// Where a tensor lies.
#[derive(Clone, Debug)]
pub(super) struct Info {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Byte range of the file.
    pub begin: usize,
    pub end: usize,
}

/// A checked header: tensors in order of position, and the metadata.
pub(super) struct Header {
    pub tensors: Vec<Info>,
    pub metadata: BTreeMap<String, String>,
}

impl Header {
    /// Parses and checks the start of `file`, which is the whole file.
    pub(super) fn parse(file: &[u8]) -> Result<Self, SafetensorsError> {
        use SafetensorsError as E;
        let (length, rest) = file.split_first_chunk::<8>().ok_or(E::TooShort { len: file.len() })?;
        let found = u64::from_le_bytes(*length);
        if found > MAX_HEADER {
            return Err(E::HeaderTooLarge { found });
        }
        if found > rest.len() as u64 {
            return Err(E::HeaderOutOfRange { found, available: rest.len() as u64 });
        }
        let (text, data) = rest.split_at(found as usize);
        let text = std::str::from_utf8(text).map_err(|e| E::HeaderNotUtf8 { at: e.valid_up_to() })?;
        if !text.starts_with('{') {
            return Err(E::HeaderStart { found: text.chars().next().unwrap_or(' ') });
        }
        let raw: RawHeader = serde_json::from_str(text).map_err(|e| E::HeaderJson(e.to_string()))?;
        let mut seen = HashSet::new();
        if let Some((name, _)) = raw.tensors.iter().find(|(name, _)| !seen.insert(name.as_str())) {
            return Err(E::DuplicateName { name: name.clone() });
        }
        let start = 8 + found as usize;
        let mut tensors = raw
            .tensors
            .into_iter()
            .map(|(name, info)| check(name, info, start, data.len()))
            .collect::<Result<Vec<_>, _>>()?;
        tensors.sort_by_key(|t| (t.begin, t.end));
        let (mut expected, mut other) = (start, "the header");
        for t in &tensors {
            let (name, begin) = (t.name.clone(), t.begin - start);
            if t.begin < expected {
                return Err(E::Overlap { name, other: other.to_string(), expected: expected - start, begin });
            }
            if t.begin > expected {
                return Err(E::Gap { name, expected: expected - start, begin });
            }
            (expected, other) = (t.end, &t.name);
        }
        if expected != file.len() {
            return Err(E::TrailingBytes { expected: expected - start, found: data.len() });
        }
        Ok(Self { tensors, metadata: raw.metadata })
    }
}

/// Checks one tensor against the `len` bytes of data, which begin at `start` of the file.
fn check(name: String, raw: RawInfo, start: usize, len: usize) -> Result<Info, SafetensorsError> {
    use SafetensorsError as E;
    let Some(dtype) = Dtype::from_name(&raw.dtype) else {
        return Err(E::UnknownDtype { name, found: raw.dtype });
    };
    let [begin, end] = raw.data_offsets;
    if begin > end {
        return Err(E::OffsetsReversed { name, begin, end });
    }
    if end > len {
        return Err(E::OutOfRange { name, end, len });
    }
    let shape = raw.shape;
    let Some(expected) = bytes_of(&shape, dtype) else {
        return Err(E::ShapeOverflow { name, shape });
    };
    if expected != end - begin {
        return Err(E::WrongLength { name, shape, dtype, expected, found: end - begin });
    }
    Ok(Info { name, dtype, shape, begin: start + begin, end: start + end })
}

/// Bytes of a tensor; `None` on overflow.
pub(super) fn bytes_of(shape: &[usize], dtype: Dtype) -> Option<usize> {
    shape.iter().try_fold(dtype.size(), |n, &d| n.checked_mul(d))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawInfo {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

/// The header as written, repeated names kept so that they can be refused.
struct RawHeader {
    tensors: Vec<(String, RawInfo)>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: serde::Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        de.deserialize_map(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut tensors = Vec::new();
        let mut metadata = None;
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                let value = map.next_value().map_err(|e| A::Error::custom(format!("__metadata__: {e}")))?;
                if metadata.replace(value).is_some() {
                    return Err(A::Error::custom("__metadata__: expected once, found twice"));
                }
            } else {
                let info = map.next_value().map_err(|e| A::Error::custom(format!("tensor {name}: {e}")))?;
                tensors.push((name, info));
            }
        }
        Ok(RawHeader { tensors, metadata: metadata.unwrap_or_default() })
    }
}
