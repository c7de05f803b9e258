//! Writing safetensors files: all at once, or row by row into a file whose shapes are known before.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::Dtype;
use super::header::bytes_of;
use crate::formats::atomic::AtomicFile;
use crate::{Error, Result};

/// Bytes buffered per tensor before they go to the file: few enough for hundreds of tensors, and enough that a write
/// costs little.
const CHUNK: usize = 1 << 18;

/// A tensor to be written.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// Name in the file.
    pub name: &'a str,
    /// Element type, one of [`DTYPES`](super::DTYPES).
    pub dtype: Dtype,
    /// Shape, outermost dimension first.
    pub shape: &'a [usize],
    /// The elements, row-major and little-endian.
    pub data: &'a [u8],
}

/// Name, type and shape of a tensor whose data comes later.
#[derive(Clone, Debug)]
pub struct TensorSpec {
    /// Name in the file.
    pub name: String,
    /// Element type, one of [`DTYPES`](super::DTYPES).
    pub dtype: Dtype,
    /// Shape, outermost dimension first.
    pub shape: Vec<usize>,
}

/// Writes a file atomically. The same tensors and metadata give the same bytes in whatever order they come, and the
/// layout is that of the format's own library: by dtype (the largest first), then by name.
///
/// # Errors
/// The file cannot be written, or two tensors have one name.
///
/// # Panics
/// When `data` is not as long as shape and dtype say.
pub fn write(path: impl AsRef<Path>, tensors: &[Tensor], metadata: &[(&str, &str)]) -> Result<()> {
    let specs = tensors
        .iter()
        .map(|t| TensorSpec { name: t.name.to_string(), dtype: t.dtype, shape: t.shape.to_vec() })
        .collect();
    let mut file = TensorFile::create(path, specs, metadata)?;
    for t in tensors {
        file.append(t.name, t.data)?;
    }
    file.finish()
}

struct Slot {
    spec: TensorSpec,
    /// Where the next flushed byte goes.
    cursor: u64,
    /// End of the tensor in the file.
    end: u64,
    pending: Vec<u8>,
}

/// A safetensors file being written. Each tensor is filled from its start by appends, in any interleaving; only
/// small buffers are in memory. The file appears under its name in [`TensorFile::finish`], or never.
pub struct TensorFile {
    file: AtomicFile,
    slots: Vec<Slot>,
    index: HashMap<String, usize>,
}

impl TensorFile {
    /// Lays the file out.
    ///
    /// # Errors
    /// The file cannot be created, two tensors have one name, or a shape overflows.
    pub fn create(path: impl AsRef<Path>, mut specs: Vec<TensorSpec>, metadata: &[(&str, &str)]) -> Result<Self> {
        let path = path.as_ref();
        specs.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name)));
        let mut header = Map::new();
        if !metadata.is_empty() {
            let meta: Map<String, Value> = metadata.iter().map(|(k, v)| (k.to_string(), json!(v))).collect();
            header.insert("__metadata__".to_string(), Value::Object(meta));
        }
        let mut offset = 0usize;
        let mut slots = Vec::with_capacity(specs.len());
        for spec in specs {
            let end = bytes_of(&spec.shape, spec.dtype).and_then(|n| offset.checked_add(n));
            let Some(end) = end else {
                return Err(Error::field(path, spec.name, "a size that fits 64 bits", format!("{:?}", spec.shape)));
            };
            let entry = json!({"dtype": spec.dtype, "shape": spec.shape, "data_offsets": [offset, end]});
            if header.insert(spec.name.clone(), entry).is_some() {
                return Err(Error::field(path, spec.name, "a tensor's name once", "twice"));
            }
            slots.push(Slot { spec, cursor: offset as u64, end: end as u64, pending: Vec::new() });
            offset = end;
        }
        let mut text = Value::Object(header).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        let mut file = AtomicFile::create(path)?;
        file.write(&(text.len() as u64).to_le_bytes())?;
        file.write(&text)?;
        let start = 8 + text.len() as u64;
        for slot in &mut slots {
            slot.cursor += start;
            slot.end += start;
        }
        file.set_len(start + offset as u64)?;
        let index = slots.iter().enumerate().map(|(i, slot)| (slot.spec.name.clone(), i)).collect();
        Ok(Self { file, slots, index })
    }

    /// Appends elements to a tensor.
    ///
    /// # Errors
    /// The write fails.
    ///
    /// # Panics
    /// For a name that was not announced, or more bytes than its shape holds.
    pub fn append(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let slot = self.index.get(name).map(|&i| &mut self.slots[i]);
        let slot = slot.unwrap_or_else(|| panic!("append to {name}, which is not a tensor of this file"));
        let room = slot.end - slot.cursor - slot.pending.len() as u64;
        assert!(bytes.len() as u64 <= room, "append to {name}: {} bytes, room for {room}", bytes.len());
        if slot.pending.len() + bytes.len() < CHUNK {
            slot.pending.extend_from_slice(bytes);
            return Ok(());
        }
        flush(&mut self.file, slot)?;
        self.file.write_at(slot.cursor, bytes)?;
        slot.cursor += bytes.len() as u64;
        Ok(())
    }

    /// Completes the file and gives it its name.
    ///
    /// # Errors
    /// The write fails; no file is left.
    ///
    /// # Panics
    /// When a tensor is not full.
    pub fn finish(mut self) -> Result<()> {
        for slot in &mut self.slots {
            flush(&mut self.file, slot)?;
            assert!(slot.cursor == slot.end, "finish: {} lacks {} bytes", slot.spec.name, slot.end - slot.cursor);
        }
        self.file.finish()
    }
}

fn flush(file: &mut AtomicFile, slot: &mut Slot) -> Result<()> {
    if !slot.pending.is_empty() {
        file.write_at(slot.cursor, &slot.pending)?;
        slot.cursor += slot.pending.len() as u64;
        slot.pending.clear();
    }
    Ok(())
}
