//! Skinny products with quantised weights in a [layout of our own](super::super::super::interleaved), decoded in registers.
//!
//! A group of columns goes at a time, in four chains a row of the left operand: a product of pairs takes 5.9 cycles after the one before
//! it and 0.5 if there are others (AMD Zen 5). More than four rows go through it four at a time, since it then is in the second-level cache and
//! there are no registers for more. An element of the result is the same chain of multiply-adds as elsewhere.

use std::arch::x86_64::*;
use std::mem::transmute;

use super::super::super::aligned::LINE;
use super::super::super::interleaved::formats::decode;
use super::super::super::interleaved::lanes::{Decode, Work};
use super::super::super::interleaved::{COLUMNS, PAIRS};
use super::super::operand::Elements;
use super::super::tile::DEPTH;
use super::SkinnyProduct;

/// Rows of the left operand, at most, ...
pub const ROWS: usize = 16;
/// ... and of those that go through a group together.
const TOGETHER: usize = 4;
/// Bytes ahead of the current ones that are prefetched: the hardware alone gives half the rate. From 8 to 32 KiB do equally (AMD Zen 5).
const AHEAD: usize = 16 << 10;

/// The product, on a CPU that has AVX-512 with pairs of bfloat16; the operand begins with a group and has all of k.
///
/// # Panics
/// If the operand is another, or operands are too short.
pub fn multiply(product: SkinnyProduct<'_, f32>) {
    let SkinnyProduct { sums, left, right, m, columns, k, block, .. } = product;
    let Elements::Interleaved(matrix) = right.data else { panic!("skinny: an operand that is not interleaved") };
    let whole = right.from.is_multiple_of(right.stride) && 2 * k == matrix.shape()[1];
    assert!(whole && (1..=COLUMNS).contains(&columns), "skinny: {columns} columns of {k} pairs from {}", right.from);
    assert!((PAIRS..=DEPTH).contains(&block) && block.is_multiple_of(PAIRS), "skinny: blocks of {block}");
    let packed = k.div_ceil(block).checked_mul(m * DEPTH);
    assert!(packed.is_some_and(|packed| left.len() >= packed), "skinny: {} of {packed:?} packed", left.len());
    assert!((1..=ROWS).contains(&m), "skinny: {m} rows of at most {ROWS}");
    assert!(sums.len() >= m * COLUMNS, "skinny: {} sums of {m} rows", sums.len());
    let group = matrix.group(right.from / right.stride);
    let (out, left, bytes) = (sums.as_mut_ptr(), left.as_ptr(), group.as_ptr_range());
    let bytes = [bytes.start, bytes.end];
    for first in (0..m).step_by(TOGETHER) {
        let (out, left) = (out.wrapping_add(first * COLUMNS), left.wrapping_add(first * DEPTH));
        macro_rules! rows {
            ($($m:literal)*) => {
                match m - first {
                    // SAFETY: the group has all of k by the checks above, the left operand and the sums are as long; the caller has
                    // an `Isa` that is proof of the instructions.
                    $($m => unsafe { decode(matrix, group, Product::<$m> { out, left, of: m, k, block, bytes }) },)*
                    // SAFETY: as above.
                    _ => unsafe { decode(matrix, group, Product::<TOGETHER> { out, left, of: m, k, block, bytes }) },
                }
            };
        }
        rows!(1 2 3);
    }
}

/// A product of `M` rows.
struct Product<const M: usize> {
    out: *mut f32,
    left: *const f32,
    /// Rows of the left operand in all.
    of: usize,
    /// Pairs along k, and of a block.
    k: usize,
    block: usize,
    /// Where the group begins and ends.
    bytes: [*const u8; 2],
}

impl<const M: usize> Work for Product<M> {
    #[inline(always)]
    unsafe fn run<'a, D: Decode<'a>>(self, mut group: D) {
        let Self { out, mut left, of, k, block, bytes: [start, end] } = self;
        let units = k / PAIRS;
        let (len, mut ahead) = (end.addr() - start.addr(), start.wrapping_add(AHEAD));
        // SAFETY: the caller's promise; blocks of k are whole units, and what is prefetched need not exist.
        unsafe {
            let zeros = [[_mm512_setzero_ps(); COLUMNS / 16]; M];
            let (mut totals, mut unit) = (zeros, 0);
            while unit < units {
                let (first, mut sums, mut x) = (unit == 0, zeros, left);
                for _ in 0..(block / PAIRS).min(units - unit) {
                    group.begin(unit);
                    unit += 1;
                    let until = start.wrapping_add(AHEAD + len / units * unit);
                    while ahead < until {
                        _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                        ahead = ahead.wrapping_add(LINE);
                    }
                    macro_rules! pairs {
                        ($($p:literal)*) => {$(
                            for quarter in 0..COLUMNS / 16 {
                                let pairs = transmute::<__m512i, __m512bh>(group.pairs::<$p>(quarter));
                                for (row, sums) in sums.iter_mut().enumerate() {
                                    let x = transmute::<__m512, __m512bh>(_mm512_set1_ps(*x.add(row * DEPTH + $p)));
                                    sums[quarter] = _mm512_dpbf16_ps(sums[quarter], x, pairs);
                                }
                            }
                        )*};
                    }
                    pairs!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
                    x = x.add(PAIRS);
                }
                for (total, sum) in totals.as_flattened_mut().iter_mut().zip(sums.as_flattened()) {
                    *total = if first { *sum } else { _mm512_add_ps(*total, *sum) };
                }
                left = left.wrapping_add(of * DEPTH);
            }
            for (i, total) in totals.as_flattened().iter().enumerate() {
                _mm512_storeu_ps(out.add(16 * i), *total);
            }
        }
    }
}
