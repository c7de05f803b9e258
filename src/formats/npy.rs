//! Arrays of NumPy, `.npy`, format version 1.0: a dictionary in Python's words, padded so that the data are aligned to 64 bytes, then the
//! elements, row-major and little-endian. The same bytes as `numpy.save` writes.

use std::path::Path;

use super::atomic::AtomicFile;
use super::safetensors::{Dtype, element_size};
use crate::{Error, Result};

/// Data are aligned to so many bytes.
const ALIGNMENT: usize = 64;
/// Characters that NumPy keeps free for a first dimension that grows.
const GROWTH: usize = 21;

/// An array being written, row by row. The file appears under its name in [`NpyFile::finish`], or never.
pub struct NpyFile {
    file: AtomicFile,
    /// Bytes still to come.
    left: usize,
}

impl NpyFile {
    /// Starts a file.
    ///
    /// # Errors
    /// A dtype other than F32, F16 and I64, or a file that cannot be made.
    pub fn create(path: impl AsRef<Path>, dtype: Dtype, shape: &[usize]) -> Result<Self> {
        let header = header(dtype, shape)?;
        let mut file = AtomicFile::create(path)?;
        file.write(&header)?;
        Ok(Self { file, left: shape.iter().product::<usize>() * element_size(dtype) })
    }

    /// Appends rows, little-endian, in row-major order.
    ///
    /// # Errors
    /// The write fails.
    ///
    /// # Panics
    /// For more bytes than the shape holds.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        assert!(bytes.len() <= self.left, "append: {} bytes, room for {}", bytes.len(), self.left);
        self.left -= bytes.len();
        self.file.write(bytes)
    }

    /// Completes the file and gives it its name.
    ///
    /// # Errors
    /// The write fails; no file is left.
    ///
    /// # Panics
    /// When elements are missing.
    pub fn finish(self) -> Result<()> {
        assert!(self.left == 0, "finish: {} lacks {} bytes", self.file.path().display(), self.left);
        self.file.finish()
    }
}

/// What stands before the elements.
fn header(dtype: Dtype, shape: &[usize]) -> Result<Vec<u8>> {
    let descr = match dtype {
        Dtype::F32 => "<f4",
        Dtype::F16 => "<f2",
        Dtype::I64 => "<i8",
        other => return Err(Error::argument("store_dtype", "f32 or f16 (NumPy has no bfloat16)", other)),
    };
    let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
    let tuple = if let [one] = &shape[..] { format!("{one},") } else { shape.join(", ") };
    let free = shape.first().map_or(0, |first| GROWTH - first.len());
    let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({tuple}), }}{:free$}", "");
    // Magic, version and length are 10 bytes; a newline ends the header. As NumPy counts, there is always some padding.
    let before = 10 + text.len() + 1;
    let padding = ALIGNMENT - before % ALIGNMENT;
    let len = u16::try_from(text.len() + padding + 1).expect("a dictionary of a few numbers");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend(text.into_bytes());
    bytes.resize(bytes.len() + padding, b' ');
    bytes.push(b'\n');
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_those_of_numpy() {
        for (dtype, shape, expected) in HEADERS {
            let header = header(dtype, shape).expect("a header");
            assert_eq!(header.len() % ALIGNMENT, 0);
            assert_eq!(crate::hash::sha256_hex([header.as_slice()]), expected, "{dtype} {shape:?}");
        }
        let error = header(Dtype::BF16, &[1]).expect_err("refused").to_string();
        assert!(error.contains("no bfloat16"), "{error}");
    }

    /// SHA-256 of what `numpy.lib.format.write_array_header_1_0` of NumPy 2.4.6 writes.
    const HEADERS: [(Dtype, &[usize], &str); 6] = [
        (Dtype::F32, &[35, 24], "d486d5f6d57226e0c09d98eadedbafd3b54d4dfe94e08dd880cdd700418a297e"),
        (Dtype::F32, &[7], "adbaedb2a4d3e3b90feccddcfcf6a903934ebbe531fb8e2d44145f14b173c982"),
        (Dtype::F32, &[0, 3], "f12304587232b93be216cce0f81674635df2730385202e391e39cc9f8942d779"),
        (Dtype::F32, &[123456789, 4096], "1bb9df01fad3e2a41a2e1dd0ab9fb6f2dfe5bf2515533f860a933ec2ce86d6bd"),
        (Dtype::F16, &[1, 1], "03f4867e8ff982f2ff9de0e0808d32ee2a4707e5e420bfa940ccac51e9b6ec63"),
        (Dtype::I64, &[20], "a3efbfe9c247a68e32541f9c97fba12b8a79da0f81c362d5aae9d07f6fa0a54b"),
    ];
}
