//! Writing GGUF files.

use std::path::Path;

use super::types::TensorType;
use super::{Tensor, Value};
use crate::Result;
use crate::formats::atomic::AtomicFile;

const VERSION: u32 = 3;
const ALIGNMENT: usize = 32;

/// A tensor of any type: its name, its dimensions (the fastest first), its type and its bytes.
pub type Typed<'a> = (&'a str, &'a [usize], TensorType, &'a [u8]);

/// What the header says of a tensor whose bytes come later.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// Name in the file.
    pub name: String,
    /// Elements along each dimension, the fastest first.
    pub dims: Vec<usize>,
    /// How the elements are stored.
    pub kind: TensorType,
}

impl TensorSpec {
    /// Bytes of its data.
    ///
    /// # Panics
    /// Of a type that is not read here.
    pub fn bytes(&self) -> usize {
        let (values, bytes) = self.kind.block();
        assert!(bytes > 0, "gguf: {} of type {}", self.name, self.kind);
        self.dims.iter().product::<usize>() / values * bytes
    }
}

/// A file being written, a tensor at a time. It appears under its name in [`GgufFile::finish`], or never.
pub struct GgufFile {
    file: AtomicFile,
    /// Of the tensors that are still to come, the last first.
    sizes: Vec<usize>,
}

impl GgufFile {
    /// Writes what stands before the data. Whole numbers have 32 bits, or 64 where they do not fit; floats have 32.
    ///
    /// # Errors
    /// The file cannot be created or written.
    ///
    /// # Panics
    /// If a list of the metadata has no elements, or elements of several types.
    pub fn create(
        path: impl AsRef<Path>,
        metadata: &[(impl AsRef<str>, Value)],
        tensors: &[TensorSpec],
    ) -> Result<Self> {
        Self::sized(path, metadata, tensors, tensors.iter().map(TensorSpec::bytes).collect())
    }

    /// The same for tensors of any type, of so many bytes each.
    fn sized(
        path: impl AsRef<Path>,
        metadata: &[(impl AsRef<str>, Value)],
        tensors: &[TensorSpec],
        mut sizes: Vec<usize>,
    ) -> Result<Self> {
        let mut out = b"GGUF".to_vec();
        out.extend(VERSION.to_le_bytes());
        out.extend((tensors.len() as u64).to_le_bytes());
        out.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata {
            put_string(&mut out, key.as_ref());
            out.extend(kind(value).to_le_bytes());
            put(&mut out, value);
        }
        let mut offset = 0;
        for (tensor, size) in tensors.iter().zip(&sizes) {
            put_string(&mut out, &tensor.name);
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|&dim| out.extend((dim as u64).to_le_bytes()));
            out.extend(tensor.kind.number().to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset += size.next_multiple_of(ALIGNMENT);
        }
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        let mut file = AtomicFile::create(path)?;
        file.write(&out)?;
        sizes.reverse();
        Ok(Self { file, sizes })
    }

    /// Writes the data of the next tensor.
    ///
    /// # Errors
    /// The write fails.
    ///
    /// # Panics
    /// If none is left, or `data` is not as long as its dimensions and type say.
    pub fn append(&mut self, data: &[u8]) -> Result<()> {
        assert_eq!(self.sizes.pop(), Some(data.len()), "gguf: bytes of a tensor");
        self.file.write(data)?;
        // The last tensor is padded too, as the other writers have it.
        self.file.write(&[0; ALIGNMENT][..data.len().next_multiple_of(ALIGNMENT) - data.len()])
    }

    /// Completes the file and gives it its name.
    ///
    /// # Errors
    /// The write fails; no file is left.
    ///
    /// # Panics
    /// If a tensor is missing.
    pub fn finish(self) -> Result<()> {
        assert!(self.sizes.is_empty(), "gguf: {} tensors are missing", self.sizes.len());
        self.file.finish()
    }
}

/// Writes a file of 32-bit floats.
///
/// # Errors
/// The file cannot be written.
///
/// # Panics
/// As [`write_typed`].
pub fn write(path: impl AsRef<Path>, metadata: &[(&str, Value)], tensors: &[(String, Tensor)]) -> Result<()> {
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(_, t)| t.values.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let typed = tensors.iter().zip(&bytes);
    let typed: Vec<Typed> =
        typed.map(|((name, t), bytes)| (name.as_str(), &t.dims[..], TensorType::F32, &bytes[..])).collect();
    write_typed(path, metadata, &typed)
}

/// Writes a file of tensors of any type.
///
/// # Errors
/// The file cannot be written.
///
/// # Panics
/// As [`GgufFile::create`] and [`GgufFile::append`].
pub fn write_typed(path: impl AsRef<Path>, metadata: &[(&str, Value)], tensors: &[Typed]) -> Result<()> {
    let spec = |&(name, dims, kind, _): &Typed| TensorSpec { name: name.to_owned(), dims: dims.to_vec(), kind };
    let specs: Vec<TensorSpec> = tensors.iter().map(spec).collect();
    let sizes = tensors.iter().map(|(.., bytes)| bytes.len()).collect();
    let mut file = GgufFile::sized(path, metadata, &specs, sizes)?;
    tensors.iter().try_for_each(|(.., bytes)| file.append(bytes))?;
    file.finish()
}

/// The number of a value's type.
fn kind(value: &Value) -> u32 {
    match value {
        Value::Unsigned(n) if u32::try_from(*n).is_err() => 10,
        Value::Unsigned(_) => 4,
        Value::Signed(n) if i32::try_from(*n).is_err() => 11,
        Value::Signed(_) => 5,
        Value::Float(_) => 6,
        Value::Bool(_) => 7,
        Value::String(_) => 8,
        Value::List(_) => 9,
    }
}

fn put(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Unsigned(n) if kind(value) == 4 => out.extend((*n as u32).to_le_bytes()),
        Value::Unsigned(n) => out.extend(n.to_le_bytes()),
        Value::Signed(n) if kind(value) == 5 => out.extend((*n as i32).to_le_bytes()),
        Value::Signed(n) => out.extend(n.to_le_bytes()),
        Value::Float(x) => out.extend((*x as f32).to_le_bytes()),
        Value::Bool(x) => out.push(u8::from(*x)),
        Value::String(text) => put_string(out, text),
        Value::List(list) => {
            let first = kind(list.first().expect("gguf: a list of elements"));
            out.extend(first.to_le_bytes());
            out.extend((list.len() as u64).to_le_bytes());
            for value in list {
                assert_eq!(kind(value), first, "gguf: a list of one type");
                put(out, value);
            }
        }
    }
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}
