//! safetensors files: mapped or copied, checked, viewed without a further copy; and written, also row by row.
//!
//! A file is a `u64` header length, a JSON header `{name: {dtype, shape, data_offsets}}` and the data
//! (<https://github.com/huggingface/safetensors>). The format's own crate reads the header and names the dtypes; what
//! it lets pass or says too little about, `header.rs` adds. Everything that a header claims is checked before a view is
//! given out; each kind of failure is its own [`SafetensorsError`].
//!
//! With [`Loading::Mapped`] views point into a mapping of the file: weights are read from disk when first touched,
//! shared between processes, and dropped by the system under memory pressure. A mapped file must not be changed while
//! it is open ([`Bytes::map`] says what happens otherwise): write new files and rename them, as this library does, or
//! open it with [`Loading::Copied`].

#[forbid(unsafe_code)]
mod checkpoint;
#[forbid(unsafe_code)]
mod header;
#[forbid(unsafe_code)]
mod writer;

use std::fs::File;
use std::io::Read;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use bytemuck::AnyBitPattern;
use half::{bf16, f16};
use memmap2::Mmap;

pub use checkpoint::Checkpoint;
pub use header::SafetensorsError;
pub use safetensors::Dtype;
pub use writer::{Tensor, TensorFile, TensorSpec, write};

use crate::{Error, Result, arch};

#[cfg(target_endian = "big")]
compile_error!("safetensors data is little-endian, and views are given out without a copy");

/// The dtypes that this library reads, in the order in which writers lay tensors out (later first). Files of the dtypes
/// that the format also has (parts of bytes, exponents alone, complex numbers) are refused.
pub const DTYPES: [Dtype; 15] = [
    Dtype::BOOL,
    Dtype::U8,
    Dtype::I8,
    Dtype::F8_E5M2,
    Dtype::F8_E4M3,
    Dtype::I16,
    Dtype::U16,
    Dtype::F16,
    Dtype::BF16,
    Dtype::I32,
    Dtype::U32,
    Dtype::F32,
    Dtype::F64,
    Dtype::I64,
    Dtype::U64,
];

/// Bytes of one element of a dtype of [`DTYPES`].
pub(super) fn element_size(dtype: Dtype) -> usize {
    dtype.bitsize() / 8
}

/// A Rust type whose values have in memory the bytes that a file holds for one [`Dtype`]. Any bytes are a valid value
/// of it ([`AnyBitPattern`]), whatever a file holds: `bool`, of which only 0 and 1 are, cannot be one. BOOL and the
/// dtypes without a Rust type are read as the bytes of [`TensorView::data`].
pub trait Element: AnyBitPattern {
    /// The dtype whose elements this type is.
    const DTYPE: Dtype;
}

macro_rules! elements {
    ($($rust:ty => $dtype:ident),*) => { $(impl Element for $rust { const DTYPE: Dtype = Dtype::$dtype; })* };
}
elements!(f64 => F64, f32 => F32, f16 => F16, bf16 => BF16, i64 => I64, i32 => I32, u8 => U8, u64 => U64, u32 => U32);

#[derive(Clone)]
enum Owner {
    Mapped(Arc<Mmap>),
    /// A copy of a file or of a part of one, in words so that it begins at a multiple of the largest element, as a mapping does.
    Copied(Arc<Vec<u64>>),
    Owned(Arc<Vec<u8>>),
    Static(&'static [u8]),
}

/// How the bytes of a file come into memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Loading {
    /// As a mapping: read when first touched, shared with other processes, and only as constant as the file; see
    /// [`Bytes::map`] on what happens when it changes.
    #[default]
    Mapped,
    /// As a copy: read at once, and independent of the file from then on.
    Copied,
}

/// A shared range of bytes: of a mapped file, of memory, or of the program. Cloning copies no data.
#[derive(Clone)]
pub struct Bytes {
    owner: Owner,
    range: Range<usize>,
}

impl Bytes {
    /// The whole of a file, mapped or copied.
    ///
    /// # Errors
    /// The file is not a regular one, or cannot be opened, mapped or read.
    pub fn open(path: impl AsRef<Path>, loading: Loading) -> Result<Self> {
        match loading {
            Loading::Mapped => Self::map(path),
            Loading::Copied => Self::copy(path),
        }
    }

    /// Maps a whole file: shared and read-only.
    ///
    /// # The file must not change while it is mapped
    /// No system call can hold others off a file, so this function, though not marked `unsafe`, trusts whoever may
    /// write to it. Where another process (or this one) writes into the file in place, the elements of live views
    /// change under their `&[T]`: results are then wrong without an error, and the language gives no guarantee for code
    /// that relies on what it read before. Where the file is cut shorter, touching a page beyond its end kills the
    /// process (SIGBUS). Replacing a file by renaming another over it is harmless, since the mapped one lives on until
    /// it is unmapped; this library writes in no other way. For files that others may change, use [`Bytes::copy`].
    ///
    /// # Errors
    /// The file is not a regular one, or cannot be opened or mapped.
    pub fn map(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (file, len) = regular(path)?;
        if len == 0 {
            return Ok(Self::from(Vec::new()));
        }
        // SAFETY: the mapping is read-only, so nothing in this process writes through it, and it lives in the Arc as
        // long as any view of it. It is shared with the file: that nobody else writes to the file or truncates it
        // cannot be checked, and is demanded of the caller in this function's documentation; this library itself only
        // replaces files by rename, which leaves the mapped inode as it is.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))?;
        Ok(Self { range: 0..map.len(), owner: Owner::Mapped(Arc::new(map)) })
    }

    /// Reads a whole file into memory, as it is now: nothing that happens to the file afterwards reaches the bytes.
    /// (What is written to it during the call may be in them in part.)
    ///
    /// # Errors
    /// The file is not a regular one, cannot be opened or read, or is cut shorter while it is read.
    pub fn copy(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (mut file, len) = regular(path)?;
        let mut words = vec![0u64; len.div_ceil(size_of::<u64>())];
        let bytes = &mut bytemuck::cast_slice_mut(&mut words)[..len];
        file.read_exact(bytes).map_err(Error::io("read", path))?;
        Ok(Self { range: 0..len, owner: Owner::Copied(Arc::new(words)) })
    }

    /// Bytes that are part of the program (`include_bytes!`).
    pub const fn from_static(bytes: &'static [u8]) -> Self {
        Self { range: 0..bytes.len(), owner: Owner::Static(bytes) }
    }

    /// Whether they are a file's, mapped.
    pub(super) fn is_mapped(&self) -> bool {
        matches!(self.owner, Owner::Mapped(_))
    }

    /// These bytes at an address that is a multiple of `size`: themselves, or a copy.
    pub(super) fn aligned(self, size: usize) -> Self {
        if (self.as_ptr() as usize).is_multiple_of(size) {
            return self;
        }
        let mut words = vec![0u64; self.len().div_ceil(size_of::<u64>())];
        bytemuck::cast_slice_mut(&mut words)[..self.len()].copy_from_slice(&self);
        Self { range: 0..self.len(), owner: Owner::Copied(Arc::new(words)) }
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

/// Opens a regular file; its length.
fn regular(path: &Path) -> Result<(File, usize)> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let meta = file.metadata().map_err(Error::io("read", path))?;
    if !meta.is_file() {
        return Err(Error::field(path, "type", "a regular file", "something else"));
    }
    let len = usize::try_from(meta.len());
    let len = len.map_err(|_| Error::field(path, "size", "one that fits in memory", meta.len().to_string()))?;
    Ok((file, len))
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
            Owner::Copied(words) => bytemuck::cast_slice(words),
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
    /// Element type, one of [`DTYPES`].
    pub dtype: Dtype,
    /// Shape, outermost dimension first; row-major.
    pub shape: Vec<usize>,
    /// The elements, row-major and little-endian: `shape.product()` times [`TensorView::element_size`] bytes.
    pub data: Bytes,
}

impl TensorView {
    /// Bytes of one element.
    pub fn element_size(&self) -> usize {
        element_size(self.dtype)
    }

    /// The element type as one that weights may have: F64, F32, F16 or BF16; `None` for any other.
    pub fn float(&self) -> Option<arch::Dtype> {
        match self.dtype {
            Dtype::F64 => Some(arch::Dtype::F64),
            Dtype::F32 => Some(arch::Dtype::F32),
            Dtype::F16 => Some(arch::Dtype::F16),
            Dtype::BF16 => Some(arch::Dtype::BF16),
            _ => None,
        }
    }

    /// Number of elements: the product of the shape, 1 for a scalar.
    pub fn len(&self) -> usize {
        self.data.len() / self.element_size()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The elements, not copied.
    ///
    /// # Errors
    /// [`SafetensorsError::WrongDtype`] for another element type, [`SafetensorsError::Misaligned`] when the data does
    /// not lie at a multiple of the element's size.
    pub fn as_slice<T: Element>(&self) -> Result<&[T], SafetensorsError> {
        if self.dtype != T::DTYPE {
            let (name, expected) = (self.name.clone(), T::DTYPE.to_string());
            return Err(SafetensorsError::WrongDtype { name, expected, found: self.dtype });
        }
        bytemuck::try_cast_slice(&self.data).map_err(|_| SafetensorsError::Misaligned {
            name: self.name.clone(),
            dtype: self.dtype,
            offset: self.data.as_ptr() as usize % self.element_size(),
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
