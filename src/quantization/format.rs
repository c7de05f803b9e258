//! The block formats.

/// How the elements of a quantised matrix lie in its bytes.
///
/// In the formulas `d`, `m`, `s` are scales, `q` codes; products and differences are of f32, from the left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockFormat {
    /// A signed byte an element and one scale a row, outside the codes: `q * absmax * (1 / 127)` as bitsandbytes
    /// (LLM.int8 without its outliers, `CB` and `SCB`), or `q * scale` as torchao's int8 weight-only.
    Int8Rows,
    /// bitsandbytes' NormalFloat of 4 bits: the elements of the whole matrix, row after row, in blocks of `block`, two a
    /// byte with the first in the high half; `NF4_VALUES[q] * absmax`. A block may go over the end of a row. The scales
    /// lie outside the codes, as f32 or quantised themselves (double quantisation).
    Nf4 {
        /// Elements that share one scale: a power of two.
        block: u32,
    },
    /// GGUF: 32 signed bytes behind a scale in f16; `q * d`.
    Q8_0,
    /// GGUF: 32 codes of 4 bits less 8 behind a scale in f16, elements i and i + 16 in byte i; `d * q`.
    Q4_0,
    /// GGUF: 32 codes of 4 bits behind a scale and a minimum in f16, elements as in `Q4_0`; `d * q + m`.
    Q4_1,
    /// GGUF: as `Q4_0` with codes of 5 bits less 16, the fifth ones in 4 bytes of their own.
    Q5_0,
    /// GGUF: as `Q4_1` with codes of 5 bits.
    Q5_1,
    /// GGUF: 256 codes of 2 bits in 16 parts with a scale and a minimum of 4 bits each; `d * s * q - dmin * m`.
    Q2K,
    /// GGUF: 256 codes of 3 bits less 4 in 16 parts with a scale of 6 bits less 32 each; `d * s * q`.
    Q3K,
    /// GGUF: 256 codes of 4 bits in 8 parts with a scale and a minimum of 6 bits each; `d * s * q - dmin * m`.
    Q4K,
    /// GGUF: as `Q4K` with codes of 5 bits, the fifth ones in bytes of their own.
    Q5K,
    /// GGUF: 256 codes of 6 bits less 32 in 16 parts with a scale of a signed byte each; `d * s * q`.
    Q6K,
}

impl BlockFormat {
    /// The usual NF4: blocks of 64.
    pub const NF4: Self = Self::Nf4 { block: 64 };

    /// The name that users read.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Int8Rows => "int8",
            Self::Nf4 { .. } => "nf4",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Elements of one block; of `Int8Rows` one, since a row is as long as the matrix has it.
    pub const fn block_values(self) -> usize {
        match self {
            Self::Int8Rows => 1,
            Self::Nf4 { block } => block as usize,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of one block in the codes, with the scales that lie among them.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::Int8Rows => 1,
            Self::Nf4 { block } => block as usize / 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Where in a block numbers in f16 lie: its scale, and its minimum where it has one; none where the scales lie outside.
    pub const fn halves(self) -> &'static [usize] {
        match self {
            Self::Int8Rows | Self::Nf4 { .. } => &[],
            Self::Q8_0 | Self::Q4_0 | Self::Q5_0 => &[0],
            Self::Q4_1 | Self::Q5_1 | Self::Q4K | Self::Q5K => &[0, 2],
            Self::Q2K => &[80, 82],
            Self::Q3K => &[108],
            Self::Q6K => &[208],
        }
    }

    /// Whether blocks run over the ends of rows; if not, a row is whole blocks.
    pub const fn flattened(self) -> bool {
        matches!(self, Self::Nf4 { .. })
    }

    /// Bytes of the codes of a matrix; none if its rows are no whole blocks, or if there are too many of them.
    pub fn code_bytes(self, rows: usize, columns: usize) -> Option<usize> {
        let elements = rows.checked_mul(columns)?;
        if self.flattened() {
            return Some(elements.div_ceil(2));
        }
        let blocks = columns.is_multiple_of(self.block_values()).then(|| elements / self.block_values())?;
        blocks.checked_mul(self.block_bytes())
    }

    /// The scales outside the codes of a matrix; 0 where they lie among the codes.
    pub fn scale_count(self, rows: usize, columns: usize) -> usize {
        match self {
            Self::Int8Rows => rows,
            Self::Nf4 { block } => (rows * columns).div_ceil(block as usize),
            _ => 0,
        }
    }
}

impl std::fmt::Display for BlockFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nf4 { block } if *self != Self::NF4 => write!(f, "nf4 (blocks of {block})"),
            _ => f.write_str(self.name()),
        }
    }
}
