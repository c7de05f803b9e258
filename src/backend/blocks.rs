//! Quantised matrices as a GPU has them, known without a device: the codes and scales of a file in an order that kernels read in
//! vectors (`kernels/quantized.cuh`).
//!
//! A matrix has its own rows, one after another, wherever they were stored, and every row begins with a block: NF4, whose blocks may
//! go over the ends of rows, is in parts of blocks that do not. Scales and minima of 16 bits lie apart where they would put the codes
//! out of line, with the others: all codes, then all scales, row by row.

use rayon::prelude::*;

use super::scratch::ALIGN;
use crate::quantization::{BlockFormat, QuantizedMatrix};

/// Most rows whose product with a quantised matrix decodes it in registers: its values are not written.
pub const FEW_ROWS: usize = 8;

/// Where the codes and scales of a matrix `[rows, columns]` lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockLayout {
    /// What the bytes mean.
    pub format: BlockFormat,
    /// Rows of the matrix.
    pub rows: usize,
    /// Elements of a row.
    pub columns: usize,
}

impl BlockLayout {
    /// That of a matrix.
    pub fn new(matrix: &QuantizedMatrix<'_>) -> Self {
        Self { format: matrix.format, rows: matrix.rows, columns: matrix.columns }
    }

    /// The number by which kernels know the format.
    pub const fn number(self) -> usize {
        match self.format {
            BlockFormat::Int8Rows => 0,
            BlockFormat::Nf4 { .. } => 1,
            BlockFormat::Q8_0 => 2,
            BlockFormat::Q4_0 => 3,
            BlockFormat::Q4_1 => 4,
            BlockFormat::Q5_0 => 5,
            BlockFormat::Q5_1 => 6,
            BlockFormat::Q2K => 7,
            BlockFormat::Q3K => 8,
            BlockFormat::Q4K => 9,
            BlockFormat::Q5K => 10,
            BlockFormat::Q6K => 11,
        }
    }

    /// Where in a block of the file the numbers in f16 lie, one behind the other, that lie apart here, and their bytes.
    const fn moved(self) -> (usize, usize) {
        let halves = self.format.halves();
        match halves {
            [first, ..] if !self.format.block_bytes().is_multiple_of(16) => (*first, 2 * halves.len()),
            _ => (0, 0),
        }
    }

    /// The binary logarithm of the elements that share a scale of `Nf4`: a whole number of them is a row, and one of them is of one
    /// block.
    pub const fn shift(self) -> u32 {
        match self.format {
            BlockFormat::Nf4 { block } => {
                let (block, row) = (block.trailing_zeros(), self.columns.trailing_zeros());
                if block < row { block } else { row }
            }
            _ => 0,
        }
    }

    /// Bytes of the codes of a row.
    const fn row_codes(self) -> usize {
        match self.format {
            BlockFormat::Nf4 { .. } => self.columns.div_ceil(2),
            format => self.columns / format.block_values() * (format.block_bytes() - self.moved().1),
        }
    }

    /// Bytes of the scales of a row that lie outside its codes.
    const fn row_scales(self) -> usize {
        match self.format {
            BlockFormat::Int8Rows => 4,
            BlockFormat::Nf4 { .. } => 4 * (self.columns >> self.shift()),
            format => self.columns / format.block_values() * self.moved().1,
        }
    }

    /// Where the scales begin, behind the codes.
    pub const fn scales_at(self) -> usize {
        (self.rows * self.row_codes()).next_multiple_of(ALIGN)
    }

    /// Bytes of all.
    pub const fn bytes(self) -> usize {
        self.scales_at() + self.rows * self.row_scales()
    }

    /// `bytes = ` those of a matrix of this layout from byte `at` on.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn write(self, matrix: &QuantizedMatrix<'_>, at: usize, bytes: &mut [u8]) {
        assert!(at + bytes.len() <= self.bytes(), "blocks: {} bytes at {at} of {}", bytes.len(), self.bytes());
        let (codes, scales) = bytes.split_at_mut(self.scales_at().saturating_sub(at).min(bytes.len()));
        let filled = (self.rows * self.row_codes()).saturating_sub(at).min(codes.len());
        let (codes, between) = codes.split_at_mut(filled);
        between.fill(0);
        by_row(codes, at, self.row_codes(), |row, out| self.write_codes(matrix, row, out));
        let at = at.saturating_sub(self.scales_at());
        by_row(scales, at, self.row_scales(), |row, out| self.write_scales(matrix, row, out));
    }

    fn write_codes(self, matrix: &QuantizedMatrix<'_>, row: usize, out: &mut [u8]) {
        let (at, bytes) = self.moved();
        match self.format {
            BlockFormat::Nf4 { .. } => {
                let at = matrix.stored_row(row) * self.columns;
                let code = |i: usize| match matrix.codes.get(i / 2) {
                    Some(byte) if i.is_multiple_of(2) => byte >> 4,
                    byte => byte.map_or(0, |byte| byte & 15),
                };
                let both = |i: usize| code(at + 2 * i) << 4 | code(at + 2 * i + 1);
                match at % 2 {
                    0 => out.copy_from_slice(&matrix.codes[at / 2..][..out.len()]),
                    _ => out.iter_mut().enumerate().for_each(|(i, out)| *out = both(i)),
                }
            }
            _ if bytes == 0 => out.copy_from_slice(matrix.row_codes(row)),
            format => {
                let blocks = matrix.row_codes(row).chunks_exact(format.block_bytes());
                for (out, block) in out.chunks_exact_mut(format.block_bytes() - bytes).zip(blocks) {
                    let (before, after) = out.split_at_mut(at);
                    before.copy_from_slice(&block[..at]);
                    after.copy_from_slice(&block[at + bytes..]);
                }
            }
        }
    }

    fn write_scales(self, matrix: &QuantizedMatrix<'_>, row: usize, out: &mut [u8]) {
        let stored = matrix.stored_row(row);
        match self.format {
            BlockFormat::Int8Rows => out.copy_from_slice(&matrix.absmax(stored).to_le_bytes()),
            BlockFormat::Nf4 { block } => {
                for (i, out) in out.chunks_exact_mut(4).enumerate() {
                    let at = stored * self.columns + (i << self.shift());
                    out.copy_from_slice(&matrix.absmax(at / block as usize).to_le_bytes());
                }
            }
            format => {
                let (at, bytes) = self.moved();
                let blocks = matrix.row_codes(row).chunks_exact(format.block_bytes());
                out.chunks_exact_mut(bytes)
                    .zip(blocks)
                    .for_each(|(out, block)| out.copy_from_slice(&block[at..at + bytes]));
            }
        }
    }
}

/// Bytes of the values `[rows, columns]` of a matrix in elements of so many bytes, up to where those of the next may begin.
pub const fn decoded_bytes([rows, columns]: [usize; 2], element: usize) -> usize {
    (rows * columns * element).next_multiple_of(ALIGN)
}

/// `bytes = ` those from byte `at` on of rows of `row` bytes, each of which `write` writes whole.
fn by_row(bytes: &mut [u8], at: usize, row: usize, write: impl Fn(usize, &mut [u8]) + Sync) {
    if row == 0 || bytes.is_empty() {
        return;
    }
    let cut = |index: usize, from: usize, out: &mut [u8]| {
        if out.len() == row {
            return write(index, out);
        }
        let mut whole = vec![0; row];
        write(index, &mut whole);
        out.copy_from_slice(&whole[from..][..out.len()]);
    };
    let (first, skipped) = (at / row, at % row);
    let (head, rest) = bytes.split_at_mut(((row - skipped) % row).min(bytes.len()));
    if !head.is_empty() {
        cut(first, skipped, head);
    }
    let first = at.div_ceil(row);
    rest.par_chunks_mut(row).enumerate().for_each(|(i, out)| cut(first + i, 0, out));
}
