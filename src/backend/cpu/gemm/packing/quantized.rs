//! Packing of quantised operands: some rows of some length are decoded into a buffer that stays in the first-level cache, and
//! packed from there as numbers are.

use half::bf16;

use super::super::super::aligned::prefetch;
use super::super::super::dequantize::Coded;
use super::super::super::interleaved::COLUMNS;
use super::super::super::simd::{self, Element, Float, Isa};
use super::super::operand::{Operand, Pairs};
use super::super::transpose::Transposer;
use crate::backend::HostSlice;

/// Elements along k that are decoded at once of the rows of a panel, which are contiguous along k: 32 rows are 16 KiB.
const ALONG: usize = 128;
/// Rows of a panel, at most: two vectors of AVX-512.
const WIDEST: usize = 32;
/// Columns of the rows that are decoded at once where these are contiguous along the panels: a multiple of every panel, ...
const ACROSS: usize = 192;
/// ... and how many rows.
const DEEP: usize = 16;

/// The element of a matrix with which an operand begins: row and column.
fn first<A>(from: &Operand<'_, A>) -> [usize; 2] {
    [from.from / from.stride, from.from % from.stride]
}

/// See [`pack_rows`](super::pack_rows).
pub fn pack_rows<A: Float>(
    isa: Isa,
    (to, row): (&mut [A], usize),
    matrix: &Coded<'_>,
    from: Operand<'_, A>,
    count: usize,
    depth: usize,
) {
    assert!(!from.transposed, "pack: rows of a quantised operand that are not contiguous along k");
    for (i, to) in to.chunks_mut(row).take(count).enumerate() {
        let at = first(&from.skip(i));
        prefetch_next(matrix, at, if from.pairs.is_some() { 2 * depth } else { depth });
        match from.pairs {
            None => read(isa, &mut to[..depth], matrix, at, from),
            Some(pairs) => read_pairs(isa, bytemuck::cast_slice_mut(&mut to[..depth]), matrix, at, pairs),
        }
    }
}

/// Prefetches what a row has behind `count` elements, as many: the next block along k, which is packed when this one is multiplied.
/// Rows lie far apart and a block of one is a few lines.
fn prefetch_next(matrix: &Coded<'_>, [row, column]: [usize; 2], count: usize) {
    let Coded::Rows(matrix) = matrix else { return };
    let from = (column + count).min(matrix.columns);
    let to = (from + count).min(matrix.columns);
    let [from, to] = [from, to].map(|column| {
        let element = matrix.stored_row(row) * matrix.columns + column;
        element / matrix.format.block_values() * matrix.format.block_bytes()
    });
    prefetch(matrix.codes.get(from..to).unwrap_or(&[]));
}

/// `to = ` elements of a row, rounded as the operand is.
fn read<A: Float>(isa: Isa, to: &mut [A], matrix: &Coded<'_>, [row, column]: [usize; 2], from: Operand<'_, A>) {
    let mut wide = [0.0f32; 2 * ALONG];
    for (part, to) in to.chunks_mut(2 * ALONG).enumerate() {
        let wide = &mut wide[..to.len()];
        matrix.dequantize(isa, wide, row, column + part * 2 * ALONG);
        simd::read(isa, to, HostSlice::F32(wide), 0);
    }
    if let Some(round) = from.rounding {
        round(isa, to);
    }
}

/// `to = ` elements of a row as bfloat16, or their rests, and zeros behind the last.
fn read_pairs(isa: Isa, to: &mut [bf16], matrix: &Coded<'_>, [row, column]: [usize; 2], of: Pairs) {
    let (to, behind) = to.split_at_mut(of.k.min(to.len()));
    behind.fill(bf16::ZERO);
    if !of.rest {
        return matrix.dequantize_bf16(isa, to, row, column);
    }
    let mut wide = [0.0f32; 2 * ALONG];
    for (part, to) in to.chunks_mut(2 * ALONG).enumerate() {
        let wide = &mut wide[..to.len()];
        matrix.dequantize(isa, wide, row, column + part * 2 * ALONG);
        to.iter_mut().zip(wide).for_each(|(o, x)| *o = Element::<f32>::rest(*x));
    }
}

/// See [`pack_panels`](super::pack_panels).
pub fn pack_panels<A: Float>(
    transposer: Transposer<A>,
    lanes: usize,
    to: &mut [A],
    matrix: &Coded<'_>,
    from: Operand<'_, A>,
    [count, depth]: [usize; 2],
) {
    assert!(2 * lanes <= WIDEST && ACROSS.is_multiple_of(2 * lanes), "pack: panels of two vectors of {lanes}");
    let to = &mut to[..count.next_multiple_of(lanes) * depth];
    if let Coded::Interleaved(matrix) = matrix
        && let Some(Pairs { k, rest: false }) = from.pairs
        && let at @ [row, column] = first(&from)
        && !from.transposed
        && row.is_multiple_of(COLUMNS)
        && 2 * depth <= k
        && matrix.has_units(column, 2 * depth)
    {
        return matrix.panels(transposer.isa(), bytemuck::cast_slice_mut(to), at, [count, depth]);
    }
    let mut panels = Panels { transposer, lanes, matrix, from, depth, buffer: Buffer::new() };
    if from.transposed {
        for first in (0..count).step_by(ACROSS) {
            panels.across(&mut to[first * depth..], first, ACROSS.min(count - first));
        }
    } else {
        for first in (0..count).step_by(2 * lanes) {
            panels.along(&mut to[first * depth..], first, (2 * lanes).min(count - first));
        }
    }
}

/// Elements of one row on their way from blocks into a panel, in single precision and in the compute dtype.
struct Buffer {
    wide: [f32; BUFFER],
    narrow: [bf16; BUFFER],
}

const BUFFER: usize = if ALONG * WIDEST > ACROSS * DEEP { ALONG * WIDEST } else { ACROSS * DEEP };

impl Buffer {
    fn new() -> Self {
        Self { wide: [0.0; BUFFER], narrow: [bf16::ZERO; BUFFER] }
    }

    /// Decodes elements of a row to `at`, to bfloat16 if they are wanted so.
    fn decode(
        &mut self,
        isa: Isa,
        range: std::ops::Range<usize>,
        matrix: &Coded<'_>,
        [row, column]: [usize; 2],
        narrow: bool,
    ) {
        match narrow {
            true => matrix.dequantize_bf16(isa, &mut self.narrow[range], row, column),
            false => matrix.dequantize(isa, &mut self.wide[range], row, column),
        }
    }

    fn elements(&self, from: usize, narrow: bool) -> HostSlice<'_> {
        if narrow { HostSlice::Bf16(&self.narrow[from..]) } else { HostSlice::F32(&self.wide[from..]) }
    }
}

/// What is packed into panels.
struct Panels<'a, A> {
    transposer: Transposer<A>,
    lanes: usize,
    matrix: &'a Coded<'a>,
    from: Operand<'a, A>,
    depth: usize,
    buffer: Buffer,
}

impl<A: Float> Panels<'_, A> {
    /// Elements along k of a step, and how many of those that `at` steps come before there are.
    fn elements(&self, steps: usize, at: usize) -> usize {
        match self.from.pairs {
            None => steps,
            Some(Pairs { k, .. }) => (2 * steps).min(k.saturating_sub(2 * at)),
        }
    }

    /// Whether elements are wanted as bfloat16.
    fn narrow(&self) -> bool {
        self.from.pairs.is_some_and(|pairs| !pairs.rest)
    }

    /// The decoded elements from `at` of the buffer on, rows at distance `stride`, as they are packed.
    fn decoded(&self, at: usize, stride: usize, k: usize) -> Operand<'_, A> {
        let operand = Operand::host(self.buffer.elements(at, self.narrow()), stride).rounded(self.from.rounding);
        match self.from.pairs {
            None => operand,
            Some(Pairs { rest, .. }) => operand.in_pairs(k).part(usize::from(rest)),
        }
    }

    /// A panel of rows that are contiguous along k.
    fn along(&mut self, to: &mut [A], row: usize, count: usize) {
        let (isa, width, narrow) = (self.transposer.isa(), count.next_multiple_of(self.lanes), self.narrow());
        let most = if self.from.pairs.is_some() { ALONG / 2 } else { ALONG };
        for p in (0..self.depth).step_by(most) {
            let steps = most.min(self.depth - p);
            let k = self.elements(steps, p);
            for i in 0..if k > 0 { count } else { 0 } {
                let at = first(&self.from.skip(row + i).along(p));
                self.buffer.decode(isa, i * ALONG..i * ALONG + k, self.matrix, at, narrow);
            }
            let to = &mut to[p * width..][..steps * width];
            super::pack_panels(self.transposer, self.lanes, to, self.decoded(0, ALONG, k), count, steps);
        }
    }

    /// Panels of `count` columns from `column` on, along which rows are contiguous.
    fn across(&mut self, to: &mut [A], column: usize, count: usize) {
        let (isa, narrow) = (self.transposer.isa(), self.narrow());
        let most = if self.from.pairs.is_some() { DEEP / 2 } else { DEEP };
        for p in (0..self.depth).step_by(most) {
            let steps = most.min(self.depth - p);
            let k = self.elements(steps, p);
            for i in 0..k {
                let [row, column] = first(&self.from.skip(column).along(p));
                self.buffer.decode(isa, i * ACROSS..i * ACROSS + count, self.matrix, [row + i, column], narrow);
            }
            for panel in (0..count).step_by(2 * self.lanes) {
                let columns = (2 * self.lanes).min(count - panel);
                let width = columns.next_multiple_of(self.lanes);
                let to = &mut to[panel * self.depth + p * width..][..steps * width];
                let decoded = self.decoded(panel, ACROSS, k).transposed();
                super::pack_panels(self.transposer, self.lanes, to, decoded, columns, steps);
            }
        }
    }
}
