//! A quantised matrix, borrowed from wherever its bytes lie.

use std::ops::Range;

use half::{bf16, f16};

use super::blocks;
use super::format::BlockFormat;
use super::nf4::NF4_VALUES;
use crate::arch::Dtype;

/// What bitsandbytes multiplies an int8 code times its row's largest magnitude by: 1 / 127 in f32.
pub const INT8_STEP: f32 = 7.874_016e-3;

/// The scales that lie outside the codes.
#[derive(Clone, Copy, Debug)]
pub enum Scales<'a> {
    /// They lie among the codes: the formats of GGUF.
    Inline,
    /// The largest magnitude of each row (`Int8Rows`: times [`INT8_STEP`]) or of each block (`Nf4`).
    Absmax(&'a [f32]),
    /// A factor for each row of `Int8Rows`.
    Factor(&'a [f32]),
    /// Largest magnitudes that are quantised themselves: of block b `map[codes[b]] * absmax[b / block] + offset`.
    Nested {
        /// One a block of the matrix.
        codes: &'a [u8],
        /// The values of the 256 codes.
        map: &'a [f32; 256],
        /// One for each `block` codes.
        absmax: &'a [f32],
        /// Added to all.
        offset: f32,
        /// Codes that share one of `absmax`: a power of two.
        block: u32,
    },
}

/// Which row of the stored matrix is row r of this one.
#[derive(Clone, Copy, Debug)]
pub enum RowOrder<'a> {
    /// Row `first + r`: the rows of one of several matrices that are stored one below another.
    From(usize),
    /// Row `list[r]`, such as of a matrix whose rows were permuted.
    Listed(&'a [u32]),
}

/// A quantised matrix `[rows, columns]`: rows of a stored one of `stored_rows`.
#[derive(Clone, Copy, Debug)]
pub struct QuantizedMatrix<'a> {
    /// What the bytes mean.
    pub format: BlockFormat,
    /// Rows of this matrix.
    pub rows: usize,
    /// Elements of a row, of the stored matrix too.
    pub columns: usize,
    /// Rows of the matrix that the codes are.
    pub stored_rows: usize,
    /// The codes of the stored matrix, row after row.
    pub codes: &'a [u8],
    /// What the codes of each block, or row, are multiplied by.
    pub scales: Scales<'a>,
    /// Where the rows are among the stored ones.
    pub order: RowOrder<'a>,
    /// The dtype to which the library that wrote the matrix rounds the values that it decodes, where that is not f32.
    pub rounding: Option<Dtype>,
}

/// A part of a matrix that has another length than its shape says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{part}: expected {expected}, found {found}")]
pub struct Mismatch {
    /// The part: `codes`, `absmax`, ...
    pub part: &'static str,
    /// What it must be.
    pub expected: String,
    /// What it is.
    pub found: usize,
}

fn equal(part: &'static str, expected: usize, found: usize) -> Result<(), Mismatch> {
    if expected == found { Ok(()) } else { Err(Mismatch { part, expected: expected.to_string(), found }) }
}

impl<'a> QuantizedMatrix<'a> {
    /// Checks that all parts are as long as the shape says, so that every row can be decoded.
    ///
    /// # Errors
    /// The first part that is not; rows that are no whole blocks; scales that the format does not have.
    pub fn check(&self) -> Result<(), Mismatch> {
        self.check_parts()?;
        let RowOrder::Listed(list) = self.order else { return Ok(()) };
        match list.iter().find(|&&row| row as usize >= self.stored_rows) {
            Some(&row) => {
                let expected = format!("below {}", self.stored_rows);
                Err(Mismatch { part: "row", expected, found: row as usize })
            }
            None => Ok(()),
        }
    }

    /// The same without a look at each of the rows that are listed: those below [`stored_rows`](Self::stored_rows) can be decoded.
    ///
    /// # Errors
    /// As [`QuantizedMatrix::check`], but for a listed row.
    pub fn check_parts(&self) -> Result<(), Mismatch> {
        let wrong = |part, expected: &str, found| Err(Mismatch { part, expected: expected.to_owned(), found });
        if let BlockFormat::Nf4 { block } = self.format
            && (block < 2 || !block.is_power_of_two())
        {
            return wrong("blocksize", "a power of two", block as usize);
        }
        if self.stored_rows.checked_mul(self.columns).is_none() {
            return wrong("shape", "fewer elements", self.stored_rows);
        }
        let Some(bytes) = self.format.code_bytes(self.stored_rows, self.columns) else {
            return wrong("columns", &format!("a multiple of {}", self.format.block_values()), self.columns);
        };
        equal("codes", bytes, self.codes.len())?;
        let count = self.format.scale_count(self.stored_rows, self.columns);
        match (self.format, self.scales) {
            (BlockFormat::Int8Rows | BlockFormat::Nf4 { .. }, Scales::Absmax(absmax)) => {
                equal("absmax", count, absmax.len())?;
            }
            (BlockFormat::Int8Rows, Scales::Factor(scales)) => equal("scales", count, scales.len())?,
            (BlockFormat::Nf4 { .. }, Scales::Nested { codes, absmax, block, .. }) => {
                if !block.is_power_of_two() {
                    return wrong("nested_blocksize", "a power of two", block as usize);
                }
                equal("absmax", count, codes.len())?;
                equal("nested_absmax", count.div_ceil(block as usize), absmax.len())?;
            }
            (BlockFormat::Int8Rows | BlockFormat::Nf4 { .. }, _) | (_, Scales::Nested { .. }) => {
                return wrong("scales", "those of the format", count);
            }
            (_, Scales::Absmax(scales) | Scales::Factor(scales)) => equal("scales", 0, scales.len())?,
            (_, Scales::Inline) => {}
        }
        match self.order {
            RowOrder::From(first) if first.checked_add(self.rows).is_none_or(|end| end > self.stored_rows) => {
                wrong("rows", &format!("at most {}", self.stored_rows.saturating_sub(first)), self.rows)
            }
            RowOrder::From(_) => Ok(()),
            RowOrder::Listed(list) => equal("rows", list.len(), self.rows),
        }
    }

    /// The stored row that is row `row`.
    #[inline(always)]
    pub fn stored_row(&self, row: usize) -> usize {
        match self.order {
            RowOrder::From(first) => first + row,
            RowOrder::Listed(list) => list[row] as usize,
        }
    }

    /// The codes of row `row`, of a format whose rows are whole blocks.
    ///
    /// # Panics
    /// If the format is flattened.
    #[inline(always)]
    pub fn row_codes(&self, row: usize) -> &'a [u8] {
        assert!(!self.format.flattened(), "row_codes: blocks of {} run over the ends of rows", self.format);
        let bytes = self.columns / self.format.block_values() * self.format.block_bytes();
        &self.codes[self.stored_row(row) * bytes..][..bytes]
    }

    /// The largest magnitude of block `block` of the stored matrix, of `Nf4`.
    ///
    /// # Panics
    /// If the scales lie among the codes.
    #[inline(always)]
    pub fn absmax(&self, block: usize) -> f32 {
        match self.scales {
            Scales::Absmax(absmax) | Scales::Factor(absmax) => absmax[block],
            Scales::Nested { codes, map, absmax, offset, block: size } => {
                map[codes[block] as usize] * absmax[block / size as usize] + offset
            }
            Scales::Inline => panic!("absmax: the scales of {} lie among its codes", self.format),
        }
    }

    /// `out = ` elements `columns` of row `row`.
    ///
    /// # Panics
    /// If a row or a column is outside, or `out` is not as long as `columns`.
    #[inline(always)]
    pub fn dequantize_row(&self, row: usize, columns: Range<usize>, out: &mut [f32]) {
        assert!(row < self.rows && columns.end <= self.columns, "dequantize_row: {row}, {columns:?}");
        assert_eq!(columns.len(), out.len(), "dequantize_row: columns and their values");
        match self.format {
            BlockFormat::Int8Rows => self.int8(row, columns, out),
            BlockFormat::Nf4 { block } => self.nf4(block as usize, row, columns, out),
            BlockFormat::Q8_0 => by_block(self.row_codes(row), columns, out, blocks::q8_0),
            BlockFormat::Q4_0 => by_block(self.row_codes(row), columns, out, blocks::q4_0),
            BlockFormat::Q4_1 => by_block(self.row_codes(row), columns, out, blocks::q4_1),
            BlockFormat::Q5_0 => by_block(self.row_codes(row), columns, out, blocks::q5_0),
            BlockFormat::Q5_1 => by_block(self.row_codes(row), columns, out, blocks::q5_1),
            BlockFormat::Q2K => by_block(self.row_codes(row), columns, out, blocks::q2_k),
            BlockFormat::Q3K => by_block(self.row_codes(row), columns, out, blocks::q3_k),
            BlockFormat::Q4K => by_block(self.row_codes(row), columns, out, blocks::q4_k),
            BlockFormat::Q5K => by_block(self.row_codes(row), columns, out, blocks::q5_k),
            BlockFormat::Q6K => by_block(self.row_codes(row), columns, out, blocks::q6_k),
        }
        match self.rounding {
            None | Some(Dtype::F32 | Dtype::F64) => {}
            Some(Dtype::BF16) => out.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32()),
            Some(Dtype::F16) => out.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32()),
        }
    }

    #[inline(always)]
    fn int8(&self, row: usize, columns: Range<usize>, out: &mut [f32]) {
        let codes = &self.row_codes(row)[columns];
        let stored = self.stored_row(row);
        let codes = codes.iter().map(|&code| f32::from(code.cast_signed()));
        match self.scales {
            Scales::Factor(scales) => {
                let scale = scales[stored];
                out.iter_mut().zip(codes).for_each(|(out, code)| *out = code * scale);
            }
            _ => {
                let absmax = self.absmax(stored);
                out.iter_mut().zip(codes).for_each(|(out, code)| *out = code * absmax * INT8_STEP);
            }
        }
    }

    #[inline(always)]
    fn nf4(&self, size: usize, row: usize, columns: Range<usize>, out: &mut [f32]) {
        let mut at = self.stored_row(row) * self.columns + columns.start;
        let mut left = out;
        while !left.is_empty() {
            let in_block = (size - at % size).min(left.len());
            let absmax = self.absmax(at / size);
            let (part, rest) = left.split_at_mut(in_block);
            for (i, out) in part.iter_mut().enumerate() {
                let byte = self.codes[(at + i) / 2];
                let code = if (at + i).is_multiple_of(2) { byte >> 4 } else { byte & 15 };
                *out = NF4_VALUES[code as usize] * absmax;
            }
            at += in_block;
            left = rest;
        }
    }
}

/// `out = ` elements `columns` of a row of blocks of `BYTES` bytes and `VALUES` elements.
#[inline(always)]
fn by_block<const BYTES: usize, const VALUES: usize>(
    codes: &[u8],
    columns: Range<usize>,
    out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; VALUES]),
) {
    let mut at = columns.start;
    let mut left = out;
    while !left.is_empty() {
        let (block, from) = (at / VALUES, at % VALUES);
        let bytes = codes[block * BYTES..][..BYTES].try_into().expect("a block");
        let len = (VALUES - from).min(left.len());
        let (part, rest) = left.split_at_mut(len);
        match part.try_into() {
            Ok(whole) => decode(bytes, whole),
            Err(_) => {
                let mut values = [0.0; VALUES];
                decode(bytes, &mut values);
                part.copy_from_slice(&values[from..from + len]);
            }
        }
        at += len;
        left = rest;
    }
}
