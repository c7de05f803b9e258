//! Operands of matrix products as they lie in memory.

use half::bf16;

use super::super::interleaved::Interleaved;
use super::super::simd::{Element, Float, Isa};
use super::microkernel::PAIR_STEP;
use super::tile::BroadcastOperand;
use crate::backend::HostSlice;
use crate::quantization::QuantizedMatrix;

/// The elements of an operand.
#[derive(Clone, Copy)]
pub enum Elements<'a> {
    /// Numbers, one after another.
    Floats(HostSlice<'a>),
    /// Those of a quantised matrix, row after row: they are decoded where they are packed.
    Quantized(QuantizedMatrix<'a>),
    /// The same in groups of rows.
    Interleaved(&'a Interleaved),
}

impl Elements<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Floats(data) => data.len(),
            Self::Quantized(matrix) => matrix.rows * matrix.columns,
            Self::Interleaved(matrix) => matrix.shape().iter().product(),
        }
    }
}

/// A matrix `[rows, k]` in memory.
#[derive(Clone, Copy)]
pub struct Operand<'a, A> {
    pub(super) data: Elements<'a>,
    pub(super) from: usize,
    pub(super) stride: usize,
    pub(super) transposed: bool,
    pub(super) rounding: Option<Rounding<A>>,
    /// How elements are taken in pairs, if they are.
    pub(super) pairs: Option<Pairs>,
    /// Whether it is a weight: its products are split, if any are.
    pub(super) weight: bool,
}

/// Elements taken in pairs of bfloat16.
#[derive(Clone, Copy)]
pub struct Pairs {
    /// How many there are along k: those behind them are zeros.
    pub k: usize,
    /// Whether not they are taken, but what rounding leaves of them.
    pub rest: bool,
}

/// Rounds elements to a narrower type in place.
pub type Rounding<A> = fn(Isa, &mut [A]);

impl<'a, A: Float> Operand<'a, A> {
    /// Element `(i, k)` is `data[i * stride + k]`.
    pub fn new<S: Element<A>>(data: &'a [S], stride: usize) -> Self {
        Self::host(S::host(data), stride)
    }

    /// As [`new`](Self::new), for elements of whatever type.
    pub fn host(data: HostSlice<'a>, stride: usize) -> Self {
        Self::of(Elements::Floats(data), stride)
    }

    /// A weight that is quantised: element `(i, k)` is `(i, k)` of the matrix.
    pub fn quantized(matrix: QuantizedMatrix<'a>) -> Self {
        Self::of(Elements::Quantized(matrix), matrix.columns).of_weight()
    }

    /// The same of one in groups of rows.
    pub fn interleaved(matrix: &'a Interleaved) -> Self {
        Self::of(Elements::Interleaved(matrix), matrix.shape()[1]).of_weight()
    }

    fn of(data: Elements<'a>, stride: usize) -> Self {
        Self { data, from: 0, stride, transposed: false, rounding: None, pairs: None, weight: false }
    }

    /// Element `(i, k)` is `data[k * stride + i]`.
    pub fn transposed(self) -> Self {
        Self { transposed: true, ..self }
    }

    /// Rounds every element first.
    pub fn rounded(self, rounding: Option<Rounding<A>>) -> Self {
        Self { rounding, ..self }
    }

    /// The same as a weight.
    pub fn of_weight(self) -> Self {
        Self { weight: true, ..self }
    }

    /// The rows from `row` on.
    pub fn skip(self, row: usize) -> Self {
        Self { from: self.from + row * if self.transposed { 1 } else { self.stride }, ..self }
    }

    /// The columns (along k) from `k` on.
    pub fn along(self, k: usize) -> Self {
        let (k, pairs) = match self.pairs {
            None => (k, None),
            Some(Pairs { k: all, rest }) => ((2 * k).min(all), Some(Pairs { k: all.saturating_sub(2 * k), rest })),
        };
        Self { from: self.from + k * if self.transposed { self.stride } else { 1 }, pairs, ..self }
    }

    /// The same with pairs of bfloat16 for elements, where `k` of them lie along k.
    pub(super) fn in_pairs(self, k: usize) -> Self {
        Self { pairs: Some(Pairs { k, rest: false }), ..self }
    }

    /// In pairs: what rounding leaves of them, for the second part.
    pub(super) fn part(self, part: usize) -> Self {
        Self { pairs: self.pairs.map(|pairs| Pairs { rest: part > 0, ..pairs }), ..self }
    }

    pub(super) fn is_bf16(&self) -> bool {
        matches!(self.data, Elements::Floats(HostSlice::Bf16(_)))
    }

    /// Whether its elements must be decoded.
    pub(super) fn is_quantized(&self) -> bool {
        matches!(self.data, Elements::Quantized(_))
    }

    /// Whether it is quantised in groups of rows.
    pub(super) fn is_interleaved(&self) -> bool {
        matches!(self.data, Elements::Interleaved(_))
    }

    /// Its elements where they lie, if the tiles can broadcast them from there.
    pub(super) fn direct(&self) -> Option<BroadcastOperand<'a, A>> {
        if let Some(Pairs { k, .. }) = self.pairs {
            // A tile reads whole steps, in vectors of pairs.
            let whole = !self.transposed && k.is_multiple_of(2 * PAIR_STEP) && self.stride.is_multiple_of(2);
            let Elements::Floats(HostSlice::Bf16(data)) = self.data else { return None };
            let data = if whole { as_pairs(&data[self.from.min(data.len())..])? } else { return None };
            return Some(BroadcastOperand { data, row: self.stride / 2, k: 1 });
        }
        let Elements::Floats(data) = self.data else { return None };
        let data = if self.rounding.is_none() { A::same(data)? } else { return None };
        let (row, k) = if self.transposed { (1, self.stride) } else { (self.stride, 1) };
        Some(BroadcastOperand { data: &data[self.from.min(data.len())..], row, k })
    }

    /// Its elements two by two, if they are bfloat16, to be taken as they are, and each of the rows of `k` is made of whole twos.
    pub(super) fn halves(&self, k: usize) -> Option<BroadcastOperand<'a, A>> {
        let Elements::Floats(HostSlice::Bf16(data)) = self.data else { return None };
        let as_they_are = !self.transposed && self.rounding.is_none() && self.pairs.is_none();
        let whole = k.is_multiple_of(2) && self.stride.is_multiple_of(2);
        let data = if as_they_are && whole { as_pairs(&data[self.from.min(data.len())..])? } else { return None };
        Some(BroadcastOperand { data, row: self.stride / 2, k: 1 })
    }

    /// Panics unless it has `rows` rows of `k` elements.
    pub(super) fn check(&self, what: &str, rows: usize, k: usize) {
        let (outer, inner) = if self.transposed { (k, rows) } else { (rows, k) };
        if outer == 0 || inner == 0 {
            return;
        }
        let needed = (outer - 1)
            .checked_mul(self.stride)
            .and_then(|rows| self.from.checked_add(rows)?.checked_add(inner))
            .filter(|&needed| needed <= self.data.len());
        assert!(
            needed.is_some(),
            "gemm: {what} operand of {} elements, needs {outer} x {inner} at distance {} from {}",
            self.data.len(),
            self.stride,
            self.from
        );
    }
}

/// bfloat16 as pairs, which are elements of the same size as those of `A`, if there are such and they are aligned. An odd
/// element behind the last pair is left out.
pub(super) fn as_pairs<A: Float>(x: &[bf16]) -> Option<&[A]> {
    if size_of::<A>() != 2 * size_of::<bf16>() {
        return None;
    }
    bytemuck::try_cast_slice(&x[..x.len() & !1]).ok()
}
