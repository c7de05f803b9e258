//! The header of a safetensors file, and every way in which it can be wrong.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use safetensors::tensor::{SafeTensorError, SafeTensors, TensorInfo};
use serde::Deserialize;
use serde::de::{Error as _, MapAccess, Visitor};

use super::{DTYPES, Dtype, element_size};

/// Headers larger than this are refused, as by the format's crate.
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
    DTYPES.map(|dtype| dtype.to_string()).join(", ")
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

/// A checked header: tensors in no order, and the metadata.
pub(super) struct Header {
    pub tensors: Vec<Info>,
    pub metadata: BTreeMap<String, String>,
}

impl Header {
    /// Reads and checks the start of `file`, which is the whole file.
    ///
    /// The format's crate decides whether a file is valid, and what its tensors are. It keeps the last of equal names,
    /// skips keys and spaces that do not belong there, and its errors name no tensor and no number: so the header is
    /// also read as [`Entries`], to refuse the former and to word the latter.
    pub(super) fn parse(file: &[u8]) -> Result<Self, SafetensorsError> {
        use SafetensorsError as E;
        let read = SafeTensors::read_metadata(file);
        let length = file.first_chunk::<8>().map_or(0, |length| u64::from_le_bytes(*length));
        match &read {
            Err(SafeTensorError::HeaderTooSmall) => return Err(E::TooShort { len: file.len() }),
            Err(SafeTensorError::HeaderTooLarge) => return Err(E::HeaderTooLarge { found: length }),
            Err(SafeTensorError::InvalidHeaderLength) => {
                return Err(E::HeaderOutOfRange { found: length, available: file.len() as u64 - 8 });
            }
            Err(SafeTensorError::InvalidHeader(e)) => return Err(E::HeaderNotUtf8 { at: e.valid_up_to() }),
            _ => {}
        }
        // The crate has found the length in range and the text UTF-8.
        let (text, data) = file[8..].split_at(length as usize);
        let text = std::str::from_utf8(text).map_err(|e| E::HeaderNotUtf8 { at: e.valid_up_to() })?;
        if !text.starts_with('{') {
            return Err(E::HeaderStart { found: text.chars().next().unwrap_or(' ') });
        }
        let entries: Entries = serde_json::from_str(text).map_err(|e| E::HeaderJson(e.to_string()))?;
        let mut seen = HashSet::new();
        if let Some((name, _)) = entries.tensors.iter().find(|(name, _)| !seen.insert(name)) {
            return Err(E::DuplicateName { name: name.clone() });
        }
        let (_, found) =
            read.map_err(|e| entries.explain(data.len()).unwrap_or_else(|| E::HeaderJson(e.to_string())))?;
        let start = file.len() - data.len();
        let info = |(name, info): (String, &TensorInfo)| {
            if !DTYPES.contains(&info.dtype) {
                return Err(E::UnknownDtype { name, found: info.dtype.to_string() });
            }
            let (begin, end) = info.data_offsets;
            Ok(Info { name, dtype: info.dtype, shape: info.shape.clone(), begin: start + begin, end: start + end })
        };
        let tensors = found.tensors().into_iter().map(info).collect::<Result<_, _>>()?;
        Ok(Self { tensors, metadata: entries.metadata })
    }
}

/// Bytes of a tensor of a dtype of [`DTYPES`]; `None` on overflow.
pub(super) fn bytes_of(shape: &[usize], dtype: Dtype) -> Option<usize> {
    shape.iter().try_fold(element_size(dtype), |n, &d| n.checked_mul(d))
}

/// The header as written: repeated names kept, and no key that does not belong there.
struct Entries {
    tensors: Vec<(String, Entry)>,
    metadata: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

impl Entries {
    /// What is wrong with the first tensor that is wrong, by their order in the header and then in the `len` bytes of
    /// data; `None` where each is right.
    fn explain(&self, len: usize) -> Option<SafetensorsError> {
        use SafetensorsError as E;
        if let Some(error) = self.tensors.iter().find_map(|(name, entry)| entry.explain(name.clone(), len)) {
            return Some(error);
        }
        let mut order: Vec<_> = self.tensors.iter().map(|(name, entry)| (entry.data_offsets, name)).collect();
        order.sort_by_key(|(offsets, _)| *offsets);
        let (mut expected, mut other) = (0, "the header");
        for ([begin, end], name) in order {
            if begin < expected {
                return Some(E::Overlap { name: name.clone(), other: other.to_string(), expected, begin });
            }
            if begin > expected {
                return Some(E::Gap { name: name.clone(), expected, begin });
            }
            (expected, other) = (end, name);
        }
        (expected != len).then_some(E::TrailingBytes { expected, found: len })
    }
}

impl Entry {
    fn explain(&self, name: String, len: usize) -> Option<SafetensorsError> {
        use SafetensorsError as E;
        let Some(dtype) = DTYPES.into_iter().find(|dtype| dtype.to_string() == self.dtype) else {
            return Some(E::UnknownDtype { name, found: self.dtype.clone() });
        };
        let ([begin, end], shape) = (self.data_offsets, self.shape.clone());
        match bytes_of(&shape, dtype) {
            _ if begin > end => Some(E::OffsetsReversed { name, begin, end }),
            _ if end > len => Some(E::OutOfRange { name, end, len }),
            None => Some(E::ShapeOverflow { name, shape }),
            Some(n) if n != end - begin => Some(E::WrongLength { name, shape, dtype, expected: n, found: end - begin }),
            Some(_) => None,
        }
    }
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: serde::Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        de.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
        let mut tensors = Vec::new();
        let mut metadata = None;
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                let value = map.next_value().map_err(|e| A::Error::custom(format!("__metadata__: {e}")))?;
                if metadata.replace(value).is_some() {
                    return Err(A::Error::custom("__metadata__: expected once, found twice"));
                }
            } else {
                let entry = map.next_value().map_err(|e| A::Error::custom(format!("tensor {name}: {e}")))?;
                tensors.push((name, entry));
            }
        }
        Ok(Entries { tensors, metadata: metadata.unwrap_or_default() })
    }
}
