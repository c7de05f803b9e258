//! Writing GGUF files.

use std::path::Path;

use super::types::TensorType;
use super::{Tensor, Value};
use crate::Result;
use crate::formats::atomic;

const VERSION: u32 = 3;
const ALIGNMENT: usize = 32;

/// A tensor of any type: its name, its dimensions (the fastest first), its type and its bytes.
pub type Typed<'a> = (&'a str, &'a [usize], TensorType, &'a [u8]);

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

/// Writes a file of tensors of any type. Whole numbers have 32 bits, or 64 where they do not fit; floats have 32.
///
/// # Errors
/// The file cannot be written.
///
/// # Panics
/// If a list of the metadata has no elements, or elements of several types.
pub fn write_typed(path: impl AsRef<Path>, metadata: &[(&str, Value)], tensors: &[Typed]) -> Result<()> {
    let mut out = b"GGUF".to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_string(&mut out, key);
        out.extend(kind(value).to_le_bytes());
        put(&mut out, value);
    }
    let mut offset = 0;
    for (name, dims, kind, bytes) in tensors {
        put_string(&mut out, name);
        out.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|&dim| out.extend((dim as u64).to_le_bytes()));
        out.extend(kind.number().to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        offset = (offset + bytes.len()).next_multiple_of(ALIGNMENT);
    }
    for (.., bytes) in tensors {
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        out.extend(*bytes);
    }
    // The last tensor is padded too, as the other writers have it.
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    atomic::write(path, &out)
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
