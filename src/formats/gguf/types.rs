//! The types of ggml's tensors.

use crate::formats::safetensors::Dtype;
use crate::quantization::BlockFormat;

/// How the elements of a tensor are stored, by the number that the file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// bfloat16.
    BF16,
    /// 64-bit floats.
    F64,
    /// Blocks that are decoded here.
    Blocks(BlockFormat),
    /// Another one, of which only the name may be known.
    Other(u32),
}

/// What is read, with ggml's numbers.
const READ: [(u32, TensorType); 14] = [
    (0, TensorType::F32),
    (1, TensorType::F16),
    (30, TensorType::BF16),
    (28, TensorType::F64),
    (8, TensorType::Blocks(BlockFormat::Q8_0)),
    (2, TensorType::Blocks(BlockFormat::Q4_0)),
    (3, TensorType::Blocks(BlockFormat::Q4_1)),
    (6, TensorType::Blocks(BlockFormat::Q5_0)),
    (7, TensorType::Blocks(BlockFormat::Q5_1)),
    (10, TensorType::Blocks(BlockFormat::Q2K)),
    (11, TensorType::Blocks(BlockFormat::Q3K)),
    (12, TensorType::Blocks(BlockFormat::Q4K)),
    (13, TensorType::Blocks(BlockFormat::Q5K)),
    (14, TensorType::Blocks(BlockFormat::Q6K)),
];

/// The names of others that one may meet (`ggml.h`).
const OTHERS: [(u32, &str); 17] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
];

impl TensorType {
    /// The type of a number.
    pub fn new(number: u32) -> Self {
        READ.iter().find(|(n, _)| *n == number).map_or(Self::Other(number), |(_, kind)| *kind)
    }

    /// Its number in a file's list of tensors (`ggml_type`).
    ///
    /// # Panics
    /// Of blocks that GGUF does not have.
    pub fn number(self) -> u32 {
        match self {
            Self::Other(number) => number,
            known => READ.iter().find(|(_, kind)| *kind == known).expect("gguf: a type of the format").0,
        }
    }

    /// The names of the types that are read.
    pub fn names() -> String {
        READ.iter().map(|(_, kind)| kind.to_string()).collect::<Vec<_>>().join(", ")
    }

    /// The dtype of floats that are no blocks.
    pub const fn float(self) -> Option<Dtype> {
        match self {
            Self::F32 => Some(Dtype::F32),
            Self::F16 => Some(Dtype::F16),
            Self::BF16 => Some(Dtype::BF16),
            Self::F64 => Some(Dtype::F64),
            Self::Blocks(_) | Self::Other(_) => None,
        }
    }

    /// The blocks that it is.
    pub const fn blocks(self) -> Option<BlockFormat> {
        if let Self::Blocks(format) = self { Some(format) } else { None }
    }

    /// Elements and bytes of a block; of a type that is not read 1 and 0.
    pub(super) fn block(self) -> (usize, usize) {
        match (self, self.float()) {
            (Self::Blocks(format), _) => (format.block_values(), format.block_bytes()),
            (_, Some(dtype)) => (1, dtype.bitsize() / 8),
            _ => (1, 0),
        }
    }
}

impl std::fmt::Display for TensorType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::F32 => f.write_str("F32"),
            Self::F16 => f.write_str("F16"),
            Self::BF16 => f.write_str("BF16"),
            Self::F64 => f.write_str("F64"),
            Self::Blocks(format) => f.write_str(format.name()),
            Self::Other(number) => match OTHERS.iter().find(|(n, _)| n == number) {
                Some((_, name)) => f.write_str(name),
                None => write!(f, "type {number}"),
            },
        }
    }
}
