//! Quantised matrices in a layout of our own, in memory of our own: for products of a few rows, whose time goes into reading and
//! decoding weights.
//!
//! [`COLUMNS`] rows of the matrix, columns of the product, are a *group*, whose bytes lie one after the other along k, so that memory is
//! read in one stream. A group is blocks along k: of each the scales of all its columns, as they are stored, and then
//! *units* of [`UNIT`] elements along k, of which a vector has codes of 8 columns: in each two neighbouring lanes one column's, of even
//! elements in the first and of odd ones in the second. So codes are shifted all alike, and what is decoded lies as a product of pairs
//! of bfloat16 wants it, without a shuffle of codes (`interleaved/formats.rs`). The 16 codes of a lane fill whole words of 32 bits, with whole
//! codes (5 of 6 bits, 6 of 5), and of 3 and 5 bits half a word more, which neighbouring vectors share; the last code is in the bits that
//! all these have over. All formats take as many bytes as in a file, but `Q3_K`, whose scales of 6 bits become bytes: 114 where it has 110.
//!
//! Where scales are quantised themselves, blocks share largest magnitudes over the ends of rows. Among as many blocks of a row as share one
//! it changes once at most: of each such window of a row the group begins with the largest magnitude before the change, the one behind it,
//! and the block with which that begins.
//!
//! Scales of 16 columns are in the order of [`scale_lane`], so that doubling the even and the odd lanes of a vector gives those of
//! columns 0 to 7 and of 8 to 15. Behind the last row of the matrix its last one is repeated.

#[cfg(target_arch = "x86_64")]
pub mod formats;
#[cfg(target_arch = "x86_64")]
pub mod lanes;
mod repack;

use half::bf16;

use super::aligned::AlignedVec;
use super::isa::{InstructionSet, Isa};
use super::thread_pool::ThreadPool;
use crate::Result;
use crate::arch::Dtype;
use crate::quantization::{BlockFormat, INT8_STEP, QuantizedMatrix, Scales};

/// Columns of a group: four vectors of pairs, whose chains of multiply-adds hide their latency.
pub const COLUMNS: usize = 64;
/// Elements along k of a unit.
pub const UNIT: usize = 32;
/// Columns of a panel.
const PANEL: usize = 32;
/// Pairs of a unit.
pub const PAIRS: usize = UNIT / 2;

/// A quantised matrix `[rows, columns]`, whose values are bfloat16.
pub struct Interleaved {
    format: BlockFormat,
    rows: usize,
    columns: usize,
    /// What multiplies the product of a code of int8 and its scale.
    step: f32,
    nested: Option<Nested>,
    /// Bytes of a group.
    group: usize,
    data: AlignedVec<u8>,
}

/// What scales that are quantised are made of beside what groups have.
struct Nested {
    /// The values of their codes.
    map: [f32; 256],
    /// Added to all.
    offset: f32,
    /// The logarithm of how many blocks share a largest magnitude.
    shift: u32,
}

/// How a group lies.
#[derive(Clone, Copy)]
struct Layout {
    /// Bytes before the blocks.
    head: usize,
    /// Elements along k of a block.
    block: usize,
    /// Bytes of a column's scales in a block.
    scales: usize,
    /// Bytes of a unit's codes, of all columns.
    unit: usize,
}

impl Layout {
    /// Of a format; none of one that has no such layout.
    const fn of(format: BlockFormat) -> Option<Self> {
        let (head, block, scales, bits) = match format {
            // The scales of rows.
            BlockFormat::Int8Rows => (4 * COLUMNS, UNIT, 0, 8),
            BlockFormat::Nf4 { block: 64 } => (0, 64, 4, 4),
            BlockFormat::Nf4 { .. } => return None,
            BlockFormat::Q8_0 => (0, 32, 2, 8),
            BlockFormat::Q4_0 => (0, 32, 2, 4),
            BlockFormat::Q4_1 => (0, 32, 4, 4),
            BlockFormat::Q5_0 => (0, 32, 2, 5),
            BlockFormat::Q5_1 => (0, 32, 4, 5),
            BlockFormat::Q2K => (0, 256, 20, 2),
            // Its scales of 6 bits as bytes.
            BlockFormat::Q3K => (0, 256, 18, 3),
            BlockFormat::Q4K => (0, 256, 16, 4),
            BlockFormat::Q5K => (0, 256, 16, 5),
            BlockFormat::Q6K => (0, 256, 18, 6),
        };
        Some(Self { head, block, scales, unit: COLUMNS * UNIT / 8 * bits })
    }

    /// Bits of a code.
    const fn bits(self) -> usize {
        self.unit * 8 / (COLUMNS * UNIT)
    }

    /// Of a format whose scales are codes of a byte, in rows of so many elements, where `share` blocks share a largest magnitude.
    const fn nested(self, columns: usize, share: usize) -> Self {
        Self { head: (columns / self.block).div_ceil(share) * WINDOW, scales: 1, ..self }
    }

    /// Bytes of a block.
    const fn block_bytes(self) -> usize {
        COLUMNS * self.scales + self.block / UNIT * self.unit
    }
}

/// Bytes of the largest magnitudes of so many blocks of each column as share one: three numbers.
const WINDOW: usize = 3 * 4 * COLUMNS;

/// In which lane the scale of a column of 16 is.
const fn scale_lane(column: usize) -> usize {
    2 * (column % 8) + column / 8
}

impl Interleaved {
    /// The values of a matrix that was [checked](QuantizedMatrix::check); none where the instruction set has nothing that reads them or
    /// the format no such layout.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn of(isa: Isa, pool: &ThreadPool, matrix: &QuantizedMatrix<'_>) -> Result<Option<Self>> {
        let &QuantizedMatrix { format, rows, columns, scales, .. } = matrix;
        let read =
            isa.set() == InstructionSet::Avx512Bf16 && matches!(matrix.rounding, None | Some(Dtype::F32 | Dtype::BF16));
        let nested = match scales {
            Scales::Nested { map, offset, block, .. } => {
                Some(Nested { map: *map, offset, shift: block.trailing_zeros() })
            }
            _ => None,
        };
        let Some(layout) = Layout::of(format).filter(|layout| read && columns.is_multiple_of(layout.block)) else {
            return Ok(None);
        };
        let layout = nested.as_ref().map_or(layout, |nested| layout.nested(columns, 1 << nested.shift));
        let group = layout.head + columns / layout.block * layout.block_bytes();
        let data = AlignedVec::in_parts(pool, rows.div_ceil(COLUMNS), group, |at, out| {
            repack::group(out, matrix, layout, at * COLUMNS);
        })?;
        // A product with 1 is what it was.
        let step = if matches!(scales, Scales::Factor(_)) { 1.0 } else { INT8_STEP };
        Ok(Some(Self { format, rows, columns, step, nested, group, data }))
    }

    /// `[rows, columns]`.
    pub const fn shape(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// Whether elements of a row, from one on and so many, are there and whole units.
    pub fn has_units(&self, from: usize, len: usize) -> bool {
        from.is_multiple_of(UNIT)
            && len.is_multiple_of(UNIT)
            && from.checked_add(len).is_some_and(|end| end <= self.columns)
    }

    /// `out = ` elements of a row from element `from` on.
    ///
    /// # Panics
    /// If there is no such row or element.
    pub fn read(&self, isa: Isa, out: &mut [bf16], row: usize, from: usize) {
        let mut pairs = [0u32; PAIRS * COLUMNS];
        let (first, column) = (row / COLUMNS * COLUMNS, row % COLUMNS);
        let mut at = from;
        while at < from + out.len() {
            let unit = at / UNIT * UNIT;
            self.panels(isa, &mut pairs, [first, unit], [COLUMNS, PAIRS]);
            let of_row = pairs[column / PANEL * PANEL * PAIRS + column % PANEL..].iter().step_by(PANEL);
            let elements = of_row.flat_map(|&pair| [pair as u16, (pair >> 16) as u16]).take(UNIT).skip(at - unit);
            for (out, bits) in out[at - from..].iter_mut().zip(elements) {
                *out = bf16::from_bits(bits);
            }
            at = unit + UNIT;
        }
    }

    /// `to`, panels of [`PANEL`] columns, the last of half as many if that is enough, `= ` pairs of `count` rows from `row` on, `depth` of
    /// each from element `column` on; rows behind the last repeat it.
    ///
    /// # Panics
    /// If there are no such rows or [units](Self::has_units), the first row is no group's first, or the panels are longer.
    pub fn panels(&self, isa: Isa, to: &mut [u32], [row, column]: [usize; 2], [count, depth]: [usize; 2]) {
        let (width, shape) = (count.next_multiple_of(PANEL / 2), self.shape());
        let groups = row.is_multiple_of(COLUMNS) && row + width <= self.rows.next_multiple_of(COLUMNS);
        assert!(
            groups && self.has_units(column, 2 * depth),
            "interleaved: {count} x {depth} from {row}, {column} of {shape:?}"
        );
        for (at, to) in to[..width * depth].chunks_mut((COLUMNS * depth).max(1)).enumerate() {
            #[cfg(target_arch = "x86_64")]
            if isa.has_pairs() {
                let group = self.group(row + COLUMNS * at);
                let work = lanes::Panels { to, depth, first: column / UNIT };
                // SAFETY: an `Isa` is proof of the instructions; the group has the units by the check above, and a matrix is made whole.
                unsafe { formats::decode(self, group, work) };
                continue;
            }
            unreachable!("interleaved: {at} of {} elements on {}", to.len(), isa.name());
        }
    }

    /// The bytes of the group of row `row`.
    ///
    /// # Panics
    /// If there is no such row, or it is no group's first.
    pub fn group(&self, row: usize) -> &[u8] {
        assert!(
            row < self.rows && row.is_multiple_of(COLUMNS),
            "interleaved: group of row {row} of {:?}",
            self.shape()
        );
        &self.data[row / COLUMNS * self.group..][..self.group]
    }
}
