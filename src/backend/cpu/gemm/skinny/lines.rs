//! Skinny products in AVX-512, of elements of four bytes: 16 columns at a time, whose weights are read a line of the cache at a
//! time, each line once.
//!
//! Rows of many a weight are a multiple of 4 KiB long, so that the same elements of all of them share a set of the first-level
//! cache, which holds fewer lines than there are rows. Weights in a file's mapping begin anywhere: rows read in vectors from their
//! own beginning on would want every line twice, and find it gone. So the first step ends where a line does. (One thread of an
//! AMD EPYC with AVX512-BF16, 2026-11-29, bfloat16, rows of 4 KiB, best of many: 22 GB/s, 17 in vectors that cross lines, 13 to 15 in
//! two groups of eight rows that take turns, 24 in plain products of four rows in another order of sums, 29 reading alone.)

use std::arch::x86_64::*;
use std::mem::transmute;

use super::super::super::aligned::LINE;
use super::super::tile::DEPTH;
use super::super::transpose::avx512::{SIDE, square_of};
use super::COLUMNS;

/// Elements ahead of the current ones that are prefetched: half a KiB of each row, and at the end of rows as much of those that
/// come next.
const AHEAD: usize = 128;

/// # Safety
/// The operands are as long as [`SkinnyProduct`](super::SkinnyProduct) says, with `M` rows, and the processor has AVX-512 F.
#[target_feature(enable = "avx512f")]
pub unsafe fn numbers<const M: usize>(
    out: *mut f32,
    left: *const f32,
    right: *const f32,
    stride: usize,
    columns: usize,
    k: usize,
    block: usize,
) {
    // SAFETY: the caller's promise.
    unsafe { product::<M, false>(out, left, right, stride, columns, k, block) }
}

/// # Safety
/// As for [`numbers`]; elements are pairs of bfloat16, and the processor has AVX512-BF16 too.
#[target_feature(enable = "avx512f,avx512bf16")]
pub unsafe fn pairs<const M: usize>(
    out: *mut f32,
    left: *const f32,
    right: *const f32,
    stride: usize,
    columns: usize,
    k: usize,
    block: usize,
) {
    // SAFETY: the caller's promise.
    unsafe { product::<M, true>(out, left, right, stride, columns, k, block) }
}

/// # Safety
/// As for [`numbers`] or [`pairs`].
#[inline(always)]
unsafe fn product<const M: usize, const PAIRS: bool>(
    out: *mut f32,
    left: *const f32,
    right: *const f32,
    stride: usize,
    columns: usize,
    k: usize,
    block: usize,
) {
    // SAFETY: blocks and columns exist in the operands, columns behind the last repeat it, and rows of the result have
    // `COLUMNS` elements, a multiple of a vector's; the instructions are the caller's promise.
    unsafe {
        // Where rows lie differently in lines, none is better than their beginning.
        let head =
            if (stride * size_of::<f32>()).is_multiple_of(LINE) { right.addr() % LINE / size_of::<f32>() } else { 0 };
        for first in (0..columns).step_by(SIDE) {
            let mut rows = [right; SIDE];
            for (i, row) in rows.iter_mut().enumerate() {
                // Lanes behind the last column repeat it, and are not stored.
                *row = right.add((first + i).min(columns - 1) * stride);
            }
            let zeros = [_mm512_setzero_ps(); M];
            let mut sums = Sums { totals: zeros, sums: zeros, left, begin: 0, end: block.min(k), block, k };
            let mut p = 0;
            while p < k {
                let count = (if p == 0 { SIDE - head } else { SIDE }).min(k - p);
                let ahead = if p + AHEAD < k { p + AHEAD } else { (p + AHEAD - k).wrapping_add(SIDE * stride) };
                for row in &rows {
                    _mm_prefetch::<_MM_HINT_T1>(row.wrapping_add(ahead).cast());
                }
                if count == SIDE && p + SIDE <= sums.end {
                    sums.step::<PAIRS, false>(&rows, p, SIDE);
                } else {
                    sums.step::<PAIRS, true>(&rows, p, count);
                }
                p += count;
                if p == sums.end {
                    sums.next_block();
                }
            }
            for (row, total) in sums.totals.iter().enumerate() {
                _mm512_storeu_ps(out.add(row * COLUMNS + first), *total);
            }
        }
    }
}

/// Of the rows of the left operand: what was summed up in earlier blocks of k, and in the current one.
struct Sums<const M: usize> {
    totals: [__m512; M],
    sums: [__m512; M],
    /// The packed block of the left operand, from element `begin` along k up to `end`.
    left: *const f32,
    begin: usize,
    end: usize,
    /// Elements of a block and of all.
    block: usize,
    k: usize,
}

impl<const M: usize> Sums<M> {
    /// `sums += left [M, count] rows [16, count]^T` from element `p` on; `PARTS` if these are fewer than 16 or of two blocks.
    ///
    /// # Safety
    /// As for [`product`].
    #[inline(always)]
    unsafe fn step<const PAIRS: bool, const PARTS: bool>(&mut self, rows: &[*const f32; SIDE], p: usize, count: usize) {
        // SAFETY: the caller's promise; what is masked out is not read.
        unsafe {
            let mut square = [_mm512_setzero_si512(); SIDE];
            for (vector, row) in square.iter_mut().zip(rows) {
                *vector = match PARTS {
                    true => _mm512_maskz_loadu_epi32(u16::MAX >> (SIDE - count), row.add(p).cast()),
                    false => _mm512_loadu_si512(row.add(p).cast()),
                };
            }
            for (i, lane) in square_of(square).into_iter().enumerate() {
                if PARTS && i >= count {
                    break;
                }
                if PARTS && p + i == self.end {
                    self.next_block();
                }
                let x = self.left.add(p + i - self.begin);
                for (row, sum) in self.sums.iter_mut().enumerate() {
                    let x = _mm512_set1_ps(*x.add(row * DEPTH));
                    *sum = match PAIRS {
                        true => {
                            let [x, lane] = [_mm512_castps_si512(x), lane].map(|x| transmute::<__m512i, __m512bh>(x));
                            _mm512_dpbf16_ps(*sum, x, lane)
                        }
                        false => _mm512_fmadd_ps(x, _mm512_castsi512_ps(lane), *sum),
                    };
                }
            }
        }
    }

    /// Adds the sums of a block to those of the blocks before, and goes on to the next.
    ///
    /// # Safety
    /// The processor has AVX-512 F.
    #[inline(always)]
    unsafe fn next_block(&mut self) {
        for (total, sum) in self.totals.iter_mut().zip(&mut self.sums) {
            // SAFETY: the caller's promise.
            unsafe {
                *total = if self.begin == 0 { *sum } else { _mm512_add_ps(*total, *sum) };
                *sum = _mm512_setzero_ps();
            }
        }
        self.left = self.left.wrapping_add(M * DEPTH);
        (self.begin, self.end) = (self.end, (self.end + self.block).min(self.k));
    }
}
