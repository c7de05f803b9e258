//! In what attention's products are made: in numbers as they are, or, where everything stored is bfloat16 and the
//! CPU multiplies its pairs, in those. An *element* is a number, or a pair in its place: two numbers along k.
//!
//! Softmax weights and gradients, which are in the accumulation dtype, are rounded to bfloat16 for the products with pairs.

use half::bf16;

use super::super::gemm::Gemm;
use super::super::gemm::packing::{copy, pairs};
use super::super::gemm::tile::{BroadcastOperand, Tiles, VectorOperand};
use super::super::gemm::transpose::Transposer;
use super::super::simd::{Element, Float, Isa};
use super::blocks::{Outputs, TILE};
use crate::backend::HostSlice;

/// Width of a head from which on pairs are worth it: below, padding to a step of the tiles costs more.
const WIDE: usize = 16;

/// Bytes at a multiple of whose distance rows share sets of the first-level cache.
const ALIASED: usize = 4096;

/// Rows of keys or values of one head, as elements along D.
#[derive(Clone, Copy)]
pub struct HeadRows<'a, A> {
    /// The elements.
    pub data: &'a [A],
    /// Distance of two rows.
    pub distance: usize,
}

/// The tiles that multiply, and how operands lie for them.
#[derive(Clone, Copy)]
pub struct Products<A> {
    /// The instruction set.
    pub isa: Isa,
    /// What multiplies elements.
    pub tiles: Tiles<A>,
    /// What transposes elements.
    pub transposer: Transposer<A>,
    pairs: bool,
}

impl<A: Float> Products<A> {
    /// For numbers.
    pub fn numbers(gemm: &Gemm<A>) -> Self {
        Self { isa: gemm.isa(), tiles: gemm.tiles(), transposer: gemm.transposer(), pairs: false }
    }

    /// For heads of `width` numbers that are stored as `C`.
    pub fn of<C: Element<A>>(gemm: &Gemm<A>, width: usize) -> Self {
        match gemm.pair_tiles() {
            Some(tiles) if matches!(C::host(&[]), HostSlice::Bf16(_)) && width >= WIDE => {
                Self { tiles, pairs: true, ..Self::numbers(gemm) }
            }
            _ => Self::numbers(gemm),
        }
    }

    /// Rows that come out, for products over lanes.
    pub fn outputs<'a>(&self, rows: Option<&'a [usize]>) -> Outputs<'a> {
        Outputs { rows, lanes: if self.pairs { (2 * self.tiles.step).next_power_of_two() } else { 1 } }
    }

    /// Whether elements are pairs.
    pub fn in_pairs(&self) -> bool {
        self.pairs
    }

    /// How many elements `count` numbers along k are.
    pub fn elements(&self, count: usize) -> usize {
        if self.pairs { count.div_ceil(2).next_multiple_of(self.tiles.step) } else { count }
    }

    /// What a number of lanes is a multiple of, if they are also multiplied along.
    pub fn vector(&self) -> usize {
        if self.pairs { self.tiles.lanes.max(2 * self.tiles.step) } else { self.tiles.lanes }
    }

    /// `to [rows, elements] = from [rows, columns]`, at the distances `to_stride` and `stride`.
    pub fn read<S: Element<A>>(
        &self,
        to: &mut [A],
        to_stride: usize,
        from: &[S],
        stride: usize,
        rows: usize,
        columns: usize,
    ) {
        if !self.pairs {
            // Rows that follow each other, such as heads of a group, are one.
            let (rows, columns) =
                if to_stride == columns && stride == columns { (1, rows * columns) } else { (rows, columns) };
            return copy(self.isa, to, to_stride, from, stride, rows, columns);
        }
        let (to, from) = (bytemuck::cast_slice_mut(to), S::host(from));
        pairs::copy(self.isa, to, to_stride, from, stride, [rows, columns, self.elements(columns)]);
    }

    /// Rows of `width` numbers at distance `stride`, where they lie: if they are stored as elements, whole and aligned, and
    /// not at a distance at which they are conflict misses of each other.
    pub fn lying<'a, S: Element<A>>(&self, x: &'a [S], stride: usize, width: usize) -> Option<HeadRows<'a, A>> {
        let (data, distance) = match S::host(x) {
            HostSlice::Bf16(x) if self.pairs => {
                let whole = width == 2 * self.elements(width) && stride.is_multiple_of(2);
                let pairs = if whole { bytemuck::try_cast_slice(&x[..x.len() & !1]).ok()? } else { return None };
                (pairs, stride / 2)
            }
            x => (A::same(x)?, stride),
        };
        let aliased = (distance * size_of::<A>()).is_multiple_of(ALIASED);
        (!aliased).then_some(HeadRows { data, distance })
    }

    /// Rows that were read, one after the other.
    pub fn gathered<'a>(&self, data: &'a [A], width: usize) -> HeadRows<'a, A> {
        HeadRows { data, distance: self.elements(width) }
    }

    /// Rows `[_, elements of D]`: element `(i, d)`.
    pub fn along_width<'a>(&self, rows: HeadRows<'a, A>) -> BroadcastOperand<'a, A> {
        BroadcastOperand { data: rows.data, row: rows.distance, k: 1 }
    }

    /// Memory that [`along_positions`](Self::along_positions) needs.
    pub fn transposing_len(&self, width: usize) -> usize {
        if self.pairs { 2 * width * self.elements(TILE) } else { 0 }
    }

    /// Rows `[positions, elements of width]`, transposed: element `(d, position)`.
    pub fn along_positions<'a>(
        &self,
        memory: &'a mut [A],
        rows: HeadRows<'a, A>,
        positions: usize,
        width: usize,
    ) -> BroadcastOperand<'a, A> {
        let HeadRows { data: rows, distance } = rows;
        if !self.pairs {
            return BroadcastOperand { data: rows, row: 1, k: distance };
        }
        let (row, k) = (self.elements(TILE), self.elements(positions));
        let (transposed, pairs) = memory.split_at_mut(width * row);
        self.interleave(&mut pairs[..width * k], width, rows, distance, positions, width);
        self.transposer.transpose(transposed, row, pairs, width, [k, width]);
        BroadcastOperand { data: transposed, row, k: 1 }
    }

    /// Memory that [`along_lanes`](Self::along_lanes) needs for `n` lanes.
    pub fn interleaving_len(&self, n: usize, padded: usize) -> usize {
        if self.pairs { self.elements(n) * padded } else { 0 }
    }

    /// Distance of rows that [`along_lanes`](Self::along_lanes) can take.
    pub fn stride(&self, width: usize, padded: usize) -> usize {
        if self.pairs { self.elements(width) } else { padded }
    }

    /// Rows `[lanes, stride]` as they were read, as panels of `padded` numbers, which are zeros from `width` on: element
    /// `(lane, d)`.
    pub fn along_lanes<'a>(
        &self,
        memory: &'a mut [A],
        rows: &'a [A],
        lanes: usize,
        width: usize,
        padded: usize,
    ) -> VectorOperand<'a, A> {
        if !self.pairs {
            return VectorOperand::plain(rows, padded, self.tiles.lanes);
        }
        let to = &mut memory[..self.elements(lanes) * padded];
        self.interleave(to, padded, rows, self.elements(width), lanes, width);
        VectorOperand::plain(to, padded, self.tiles.lanes)
    }

    /// `to [_, width] = ` pairs down the columns of `rows [count, stride]`, each of `columns` numbers.
    fn interleave(&self, to: &mut [A], width: usize, rows: &[A], stride: usize, count: usize, columns: usize) {
        let rows: &[bf16] = bytemuck::cast_slice(rows);
        pairs::interleave::<f32, bf16>(self.isa, bytemuck::cast_slice_mut(to), width, rows, 2 * stride, columns, count);
    }

    /// Makes of numbers `x [count, n]` elements along the first dimension, in place.
    pub fn pair_rows(&self, x: &mut [A], n: usize, count: usize) {
        if self.pairs {
            pairs::pair_rows(self.isa, bytemuck::cast_slice_mut(x), n, count, self.elements(count));
        }
    }

    /// Makes of numbers `x [_, n]` elements along the second dimension, in place, at the same distance of rows.
    pub fn pair_columns(&self, x: &mut [A], n: usize) {
        if self.pairs {
            pairs::pair_columns(self.isa, bytemuck::cast_slice_mut(x), n);
        }
    }
}
