//! In what attention's products are made: in numbers as they are, or, where everything stored is bfloat16 and the
//! processor multiplies its pairs, in those. An *element* is a number, or a pair in its place: two numbers along k.
//!
//! Weights and gradients, which are wide, are rounded to bfloat16 for the products with pairs.

use half::bf16;

use super::super::gemm::Gemm;
use super::super::pack::{copy, pairs, transpose};
use super::super::simd::{Element, Float, Isa};
use super::super::tile::{Panels, Rows, Tiles};
use super::blocks::TILE;
use crate::backend::HostSlice;

/// Width of a head from which on pairs are worth it.
const WIDE: usize = 16;

/// The tiles that multiply, and how operands lie for them.
#[derive(Clone, Copy)]
pub struct Products<W> {
    /// The instruction set.
    pub isa: Isa,
    /// What multiplies elements.
    pub tiles: Tiles<W>,
    pairs: bool,
}

impl<W: Float> Products<W> {
    /// For numbers.
    pub fn numbers(gemm: &Gemm<W>) -> Self {
        Self { isa: gemm.isa(), tiles: gemm.tiles(), pairs: false }
    }

    /// For heads of `width` numbers that are stored as `R`.
    pub fn of<R: Element<W>>(gemm: &Gemm<W>, width: usize) -> Self {
        match gemm.pair_tiles() {
            Some(tiles) if matches!(R::host(&[]), HostSlice::Bf16(_)) && width >= WIDE => {
                Self { isa: gemm.isa(), tiles, pairs: true }
            }
            _ => Self::numbers(gemm),
        }
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
    pub fn read<S: Element<W>>(
        &self,
        to: &mut [W],
        to_stride: usize,
        from: &[S],
        stride: usize,
        rows: usize,
        columns: usize,
    ) {
        if !self.pairs {
            return copy(self.isa, to, to_stride, from, stride, rows, columns);
        }
        let (to, from) = (bytemuck::cast_slice_mut(to), S::host(from));
        pairs::copy(self.isa, to, to_stride, from, stride, rows, columns, self.elements(columns));
    }

    /// Rows `[_, elements of width]` as they were read: element `(i, d)`.
    pub fn along_width<'a>(&self, rows: &'a [W], width: usize) -> Rows<'a, W> {
        Rows { data: rows, row: self.elements(width), k: 1 }
    }

    /// Memory that [`along_positions`](Self::along_positions) needs.
    pub fn turning(&self, width: usize) -> usize {
        if self.pairs { 2 * width * self.elements(TILE) } else { 0 }
    }

    /// Rows `[positions, elements of width]` as they were read, turned: element `(d, position)`.
    pub fn along_positions<'a>(
        &self,
        memory: &'a mut [W],
        rows: &'a [W],
        positions: usize,
        width: usize,
    ) -> Rows<'a, W> {
        if !self.pairs {
            return Rows { data: rows, row: 1, k: width };
        }
        let (row, k) = (self.elements(TILE), self.elements(positions));
        let (turned, pairs) = memory.split_at_mut(width * row);
        self.interleave(&mut pairs[..width * k], width, rows, self.elements(width), positions, width);
        transpose(self.isa, turned, row, pairs, width, k, width);
        Rows { data: turned, row, k: 1 }
    }

    /// Memory that [`along_lanes`](Self::along_lanes) needs for `n` lanes.
    pub fn laying(&self, n: usize, padded: usize) -> usize {
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
        memory: &'a mut [W],
        rows: &'a [W],
        lanes: usize,
        width: usize,
        padded: usize,
    ) -> Panels<'a, W> {
        if !self.pairs {
            return Panels::plain(rows, padded, self.tiles.lanes);
        }
        let to = &mut memory[..self.elements(lanes) * padded];
        self.interleave(to, padded, rows, self.elements(width), lanes, width);
        Panels::plain(to, padded, self.tiles.lanes)
    }

    /// `to [_, width] = ` pairs down the columns of `rows [count, stride]`, each of `columns` numbers.
    fn interleave(&self, to: &mut [W], width: usize, rows: &[W], stride: usize, count: usize, columns: usize) {
        let rows: &[bf16] = bytemuck::cast_slice(rows);
        pairs::interleave::<f32, bf16>(self.isa, bytemuck::cast_slice_mut(to), width, rows, 2 * stride, columns, count);
    }

    /// Turns numbers `x [count, n]` into elements along the first dimension.
    pub fn pair_rows(&self, x: &mut [W], n: usize, count: usize) {
        if self.pairs {
            pairs::pair_rows(self.isa, bytemuck::cast_slice_mut(x), n, count, self.elements(count));
        }
    }

    /// Turns numbers `x [_, n]` into elements along the second dimension, at the same distance of rows.
    pub fn pair_columns(&self, x: &mut [W], n: usize) {
        if self.pairs {
            pairs::pair_columns(self.isa, bytemuck::cast_slice_mut(x), n);
        }
    }
}
