//! safetensors files: mapped, checked, viewed without a copy; and written, also row by row.
//!
//! A file is a `u64` header length, a JSON header `{name: {dtype, shape, data_offsets}}` and the data. Everything
//! that the header claims is checked before a view is given out; each kind of failure is its own
//! [`SafetensorsError`]. Format: <https://github.com/huggingface/safetensors>.
//!
//! Views point into the mapping: weights are read from disk when first touched, shared between processes, and
//! dropped by the system under memory pressure. A mapped file must not be changed while it is open: write new files
//! and rename them, as this library does.

#[forbid(unsafe_code)]
mod checkpoint;
#[forbid(unsafe_code)]
mod header;
#[forbid(unsafe_code)]
mod writer;

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use bytemuck::AnyBitPattern;
use half::{bf16, f16};
use memmap2::Mmap;

pub use checkpoint::Checkpoint;
pub use header::SafetensorsError;
pub use writer::{Tensor, TensorFile, TensorSpec, write};

use crate::{Error, Result, arch};

#[cfg(target_endian = "big")]
compile_error!("safetensors data is little-endian, and views are given out without a copy");

/// Element types, in the order in which writers lay tensors out (later first).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // The names say all there is.
pub enum Dtype {
    Bool,
    U8,
    I8,
    F8E5M2,
    F8E4M3,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    F64,
    I64,
    U64,
}

impl Dtype {
    /// Every dtype.
    pub const ALL: [Self; 15] = [
        Self::Bool,
        Self::U8,
        Self::I8,
        Self::F8E5M2,
        Self::F8E4M3,
        Self::I16,
        Self::U16,
        Self::F16,
        Self::BF16,
        Self::I32,
        Self::U32,
        Self::F32,
        Self::F64,
        Self::I64,
        Self::U64,
    ];

    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::Bool | Self::U8 | Self::I8 | Self::F8E5M2 | Self::F8E4M3 => 1,
            Self::I16 | Self::U16 | Self::F16 | Self::BF16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::F64 | Self::I64 | Self::U64 => 8,
        }
    }

    /// The name in a header.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::U8 => "U8",
            Self::I8 => "I8",
            Self::F8E5M2 => "F8_E5M2",
            Self::F8E4M3 => "F8_E4M3",
            Self::I16 => "I16",
            Self::U16 => "U16",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::I32 => "I32",
            Self::U32 => "U32",
            Self::F32 => "F32",
            Self::F64 => "F64",
            Self::I64 => "I64",
            Self::U64 => "U64",
        }
    }

    /// The dtype of a header's name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|d| d.name() == name)
    }

    /// As the dtype of weights, if they may have it: F64, F32, F16 or BF16.
    pub const fn float(self) -> Option<arch::Dtype> {
        match self {
            Self::F64 => Some(arch::Dtype::F64),
            Self::F32 => Some(arch::Dtype::F32),
            Self::F16 => Some(arch::Dtype::F16),
            Self::BF16 => Some(arch::Dtype::BF16),
            _ => None,
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A Rust type that is one [`Dtype`] in memory.
pub trait Element: AnyBitPattern {
    /// The dtype.
    const DTYPE: Dtype;
}

macro_rules! elements {
    ($($rust:ty => $dtype:ident),*) => { $(impl Element for $rust { const DTYPE: Dtype = Dtype::$dtype; })* };
}
elements!(f64 => F64, f32 => F32, f16 => F16, bf16 => BF16, i64 => I64, i32 => I32, u8 => U8, u64 => U64, u32 => U32);

#[derive(Clone)]
enum Owner {
    Mapped(Arc<Mmap>),
    Owned(Arc<Vec<u8>>),
    Static(&'static [u8]),
}

/// A shared range of bytes: of a mapped file, of memory, or of the program. Cloning copies no data.
#[derive(Clone)]
pub struct Bytes {
    owner: Owner,
    range: Range<usize>,
}

impl Bytes {
    /// Maps a whole file.
    ///
    /// # Errors
    /// The file cannot be opened or mapped.
    pub fn map(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(Error::io("open", path))?;
        let meta = file.metadata().map_err(Error::io("read", path))?;
        if !meta.is_file() {
            return Err(Error::field(path, "type", "a regular file", "something else"));
        }
        if meta.len() == 0 {
            return Ok(Self::from(Vec::new()));
        }
        // SAFETY: the mapping is read-only and private, and lives in the Arc as long as any view of it. What Rust
        // cannot rule out is another process changing or truncating the file meanwhile; the module's documentation
        // demands that it does not, and this library itself only ever replaces files by rename, which leaves the
        // mapped inode as it is.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))?;
        Ok(Self { range: 0..map.len(), owner: Owner::Mapped(Arc::new(map)) })
    }

    /// Bytes that are part of the program (`include_bytes!`).
    pub const fn from_static(bytes: &'static [u8]) -> Self {
        Self { range: 0..bytes.len(), owner: Owner::Static(bytes) }
    }

    /// A part, sharing the owner.
    ///
    /// # Panics
    /// When `range` is outside; validated headers never ask for that.
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len(), "slice {range:?} of {} bytes", self.len());
        Self { owner: self.owner.clone(), range: self.range.start + range.start..self.range.start + range.end }
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self { range: 0..bytes.len(), owner: Owner::Owned(Arc::new(bytes)) }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let all = match &self.owner {
            Owner::Mapped(map) => map.as_ref(),
            Owner::Owned(vec) => vec.as_slice(),
            Owner::Static(bytes) => bytes,
        };
        &all[self.range.clone()]
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Bytes({})", self.len())
    }
}

/// One tensor of an open file.
#[derive(Clone, Debug)]
pub struct TensorView {
    /// Name in the file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Shape, outermost dimension first; row-major.
    pub shape: Vec<usize>,
    /// The elements, `shape.product() * dtype.size()` bytes.
    pub data: Bytes,
}

impl TensorView {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.data.len() / self.dtype.size()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The elements, in place.
    ///
    /// # Errors
    /// [`SafetensorsError::WrongDtype`] for another element type, [`SafetensorsError::Misaligned`] when the data does
    /// not lie at a multiple of the element's size.
    pub fn as_slice<T: Element>(&self) -> Result<&[T], SafetensorsError> {
        if self.dtype != T::DTYPE {
            let (name, expected) = (self.name.clone(), T::DTYPE.name().to_string());
            return Err(SafetensorsError::WrongDtype { name, expected, found: self.dtype });
        }
        bytemuck::try_cast_slice(&self.data).map_err(|_| SafetensorsError::Misaligned {
            name: self.name.clone(),
            dtype: self.dtype,
            offset: self.data.as_ptr() as usize % self.dtype.size(),
        })
    }

    /// The elements as f32, rounded from f64 and widened from f16 and bf16.
    ///
    /// # Errors
    /// [`SafetensorsError::WrongDtype`] for a type that is not a float, [`SafetensorsError::Misaligned`].
    pub fn to_f32(&self) -> Result<Vec<f32>, SafetensorsError> {
        match self.dtype {
            Dtype::F32 => Ok(self.as_slice::<f32>()?.to_vec()),
            Dtype::F64 => Ok(self.as_slice::<f64>()?.iter().map(|&x| x as f32).collect()),
            Dtype::F16 => Ok(self.as_slice::<f16>()?.iter().map(|x| x.to_f32()).collect()),
            Dtype::BF16 => Ok(self.as_slice::<bf16>()?.iter().map(|x| x.to_f32()).collect()),
            found => Err(SafetensorsError::WrongDtype {
                name: self.name.clone(),
                expected: "F32, F16, BF16 or F64".to_string(),
                found,
            }),
        }
    }

    /// Checks that every element is finite; integers always are.
    ///
    /// # Errors
    /// [`SafetensorsError::NotFinite`] with the first offending element's flat index.
    pub fn check_finite(&self) -> Result<(), SafetensorsError> {
        let found = match self.dtype {
            Dtype::F32 => find(self.as_slice::<f32>()?, |x| x.is_finite(), f64::from),
            Dtype::F64 => find(self.as_slice::<f64>()?, |x| x.is_finite(), |x| x),
            Dtype::F16 => find(self.as_slice::<f16>()?, |x| x.is_finite(), |x| x.to_f64()),
            Dtype::BF16 => find(self.as_slice::<bf16>()?, |x| x.is_finite(), |x| x.to_f64()),
            _ => None,
        };
        match found {
            Some((index, value)) => Err(SafetensorsError::NotFinite { name: self.name.clone(), index, value }),
            None => Ok(()),
        }
    }
}

fn find<T: Copy>(all: &[T], finite: impl Fn(T) -> bool, widen: impl Fn(T) -> f64) -> Option<(usize, f64)> {
    all.iter().position(|&x| !finite(x)).map(|i| (i, widen(all[i])))
}
