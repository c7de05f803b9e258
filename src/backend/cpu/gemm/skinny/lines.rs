//! Skinny products of elements of four bytes: a number, or two of bfloat16, to be multiplied as a pair or widened and multiplied one
//! after the other. As many columns as a vector has elements go at a time, and their weights a line of the cache at a time, each
//! line once.
//!
//! Rows of many a weight are a multiple of 4 KiB long, so that the same elements of all of them share a set of the first-level
//! cache, which holds no more lines than there are rows. Weights in a file's mapping begin anywhere: rows read in vectors from their
//! own beginning on would want every line twice, and find it gone. So the first step ends where a line does. (One thread of an
//! AMD EPYC with AVX512-BF16, 2026-11-29, bfloat16, rows of 4 KiB, best of many: 22 GB/s, 17 in vectors that cross lines, 13 to 15 in
//! two groups of eight rows that take turns, 24 in plain products of eight rows in another order of sums, 29 reading alone.)

use std::arch::x86_64::*;
use std::mem::transmute;

use super::super::super::aligned::LINE;
use super::super::tile::DEPTH;
use super::super::transpose::{avx512, transpose_vectors};
use super::COLUMNS;

/// Elements ahead of the current ones that are prefetched: half a KiB of each row, and at the end of rows as much of those that
/// come next.
const AHEAD: usize = 128;
/// Elements of a line of the cache.
const OF_LINE: usize = LINE / size_of::<f32>();

/// A vector of `N` elements.
trait Lanes<const N: usize>: Copy {
    /// # Safety
    /// The CPU has the instructions of the type.
    unsafe fn zero() -> Self;
    /// # Safety
    /// As above, and `N` elements are readable.
    unsafe fn load(from: *const f32) -> Self;
    /// The first `count` elements, zeros behind them.
    ///
    /// # Safety
    /// As above, and `count` elements, at most `N`, are readable.
    unsafe fn load_some(from: *const f32, count: usize) -> Self;
    /// # Safety
    /// As above, and `N` elements are writable.
    unsafe fn store(self, to: *mut f32);
    /// # Safety
    /// The CPU has the instructions of the type.
    unsafe fn add(self, other: Self) -> Self;
    /// # Safety
    /// As above.
    unsafe fn transpose(square: [Self; N]) -> [Self; N];
}

/// What an element is: how it is multiplied with `LEFT` elements of the left operand.
trait Word<V> {
    const LEFT: usize;
    /// `sum + x lane`, where a lane is an element of each column.
    ///
    /// # Safety
    /// The CPU has the instructions of the types, and `LEFT` elements are readable.
    unsafe fn add_product(sum: V, x: *const f32, lane: V) -> V;
}

/// A number in single precision.
struct Number;
/// A pair of bfloat16, multiplied as such.
struct Pair;
/// Two of bfloat16, multiplied in single precision one after the other.
struct Halves;

macro_rules! lanes {
    ($v:ty, $n:literal, $zero:ident, $load:ident, $store:ident, $add:ident, $some:expr, $transpose:path;
     $splat:ident, $fma:ident, $to_bits:ident, $of_bits:ident, $shift:ident, $and:ident, $set:ident) => {
        impl Lanes<$n> for $v {
            #[inline(always)]
            unsafe fn zero() -> Self {
                // SAFETY: the caller's promise, here and below.
                unsafe { $zero() }
            }
            #[inline(always)]
            unsafe fn load(from: *const f32) -> Self {
                // SAFETY: as above.
                unsafe { $load(from) }
            }
            #[inline(always)]
            unsafe fn load_some(from: *const f32, count: usize) -> Self {
                // SAFETY: as above; what is masked out is not read.
                unsafe { $some(from, count) }
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut f32) {
                // SAFETY: as above.
                unsafe { $store(to, self) }
            }
            #[inline(always)]
            unsafe fn add(self, other: Self) -> Self {
                // SAFETY: as above.
                unsafe { $add(self, other) }
            }
            #[inline(always)]
            unsafe fn transpose(square: [Self; $n]) -> [Self; $n] {
                // SAFETY: as above.
                unsafe { $transpose(square) }
            }
        }

        impl Word<$v> for Number {
            const LEFT: usize = 1;
            #[inline(always)]
            unsafe fn add_product(sum: $v, x: *const f32, lane: $v) -> $v {
                // SAFETY: the caller's promise.
                unsafe { $fma($splat(*x), lane, sum) }
            }
        }

        impl Word<$v> for Halves {
            const LEFT: usize = 2;
            #[inline(always)]
            unsafe fn add_product(sum: $v, x: *const f32, lane: $v) -> $v {
                // SAFETY: the caller's promise. The first lies in the lower half; widened, it has zeros behind it.
                unsafe {
                    let first = $of_bits($shift::<16>($to_bits(lane)));
                    let second = $of_bits($and($to_bits(lane), $set(0xffff_0000_u32 as i32)));
                    $fma($splat(*x.add(1)), second, $fma($splat(*x), first, sum))
                }
            }
        }
    };
}
lanes! {
    __m512, 16, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_add_ps,
    |from, count| _mm512_maskz_loadu_ps(u16::MAX >> (16 - count), from), square_512;
    _mm512_set1_ps, _mm512_fmadd_ps, _mm512_castps_si512, _mm512_castsi512_ps, _mm512_slli_epi32, _mm512_and_si512,
    _mm512_set1_epi32
}
lanes! {
    __m256, 8, _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_add_ps,
    |from, count| some_256(from, count), transpose_vectors;
    _mm256_set1_ps, _mm256_fmadd_ps, _mm256_castps_si256, _mm256_castsi256_ps, _mm256_slli_epi32, _mm256_and_si256,
    _mm256_set1_epi32
}

impl Word<__m512> for Pair {
    const LEFT: usize = 1;
    #[inline(always)]
    unsafe fn add_product(sum: __m512, x: *const f32, lane: __m512) -> __m512 {
        // SAFETY: the caller's promise; the types are 512 bits.
        unsafe {
            let [x, lane] = [_mm512_set1_ps(*x), lane];
            _mm512_dpbf16_ps(sum, transmute::<__m512, __m512bh>(x), transmute::<__m512, __m512bh>(lane))
        }
    }
}

/// # Safety
/// The CPU has AVX-512 F.
#[inline(always)]
unsafe fn square_512(square: [__m512; 16]) -> [__m512; 16] {
    // SAFETY: the caller's promise; the types are of one size.
    unsafe {
        transmute::<[__m512i; 16], [__m512; 16]>(avx512::square_of(transmute::<[__m512; 16], [__m512i; 16]>(square)))
    }
}

/// # Safety
/// The CPU has AVX2, and `count` elements, at most 8, are readable.
#[inline(always)]
unsafe fn some_256(from: *const f32, count: usize) -> __m256 {
    const MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: the caller's promise; `count` elements of the mask are set.
    unsafe { _mm256_maskload_ps(from, _mm256_loadu_si256(MASKS.as_ptr().add(8 - count).cast())) }
}

/// Kernels of `M` rows.
macro_rules! kernels {
    ($($name:ident: $v:ty, $n:literal, $word:ty, $features:literal;)*) => {
        $(
        /// # Safety
        /// The operands are as long as [`SkinnyProduct`](super::SkinnyProduct) says, in elements of four bytes, with `M` rows, and the
        /// CPU has the instructions.
        #[target_feature(enable = $features)]
        pub unsafe fn $name<const M: usize>(
            out: *mut f32,
            left: *const f32,
            right: *const f32,
            stride: usize,
            columns: usize,
            k: usize,
            block: usize,
        ) {
            // SAFETY: the caller's promise.
            unsafe { product::<$v, $word, $n, M>(out, left, right, stride, columns, k, block) }
        })*
    };
}
kernels! {
    numbers_avx2: __m256, 8, Number, "avx2,fma";
    halves_avx2: __m256, 8, Halves, "avx2,fma";
    numbers_avx512: __m512, 16, Number, "avx2,fma,avx512f";
    halves_avx512: __m512, 16, Halves, "avx2,fma,avx512f";
    pairs_avx512: __m512, 16, Pair, "avx2,fma,avx512f,avx512bf16";
}

/// # Safety
/// As for the kernels.
#[inline(always)]
unsafe fn product<V: Lanes<N>, W: Word<V>, const N: usize, const M: usize>(
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
        let head = if stride.is_multiple_of(OF_LINE) { right.addr() / size_of::<f32>() % N } else { 0 };
        for first in (0..columns).step_by(N) {
            let mut rows = [right; N];
            for (i, row) in rows.iter_mut().enumerate() {
                // Lanes behind the last column repeat it, and are not stored.
                *row = right.add((first + i).min(columns - 1) * stride);
            }
            let zeros = [V::zero(); M];
            let mut sums = Sums { totals: zeros, sums: zeros, left, begin: 0, end: block.min(k), block, k };
            let mut p = 0;
            while p < k {
                let count = (if p == 0 { N - head } else { N }).min(k - p);
                let ahead = if p + AHEAD < k { p + AHEAD } else { (p + AHEAD - k).wrapping_add(N * stride) };
                // A line once, at its beginning.
                if (p + head) % OF_LINE < N {
                    for row in &rows {
                        _mm_prefetch::<_MM_HINT_T1>(row.wrapping_add(ahead).cast());
                    }
                }
                if count == N && p + N <= sums.end {
                    sums.step::<W, N, false>(&rows, p, N);
                } else {
                    sums.step::<W, N, true>(&rows, p, count);
                }
                p += count;
                if p == sums.end {
                    sums.next_block();
                }
            }
            for (row, total) in sums.totals.iter().enumerate() {
                total.store(out.add(row * COLUMNS + first));
            }
        }
    }
}

/// Of the rows of the left operand: what was summed up in earlier blocks of k, and in the current one.
struct Sums<V, const M: usize> {
    totals: [V; M],
    sums: [V; M],
    /// The packed block of the left operand, from element `begin` along k up to `end`.
    left: *const f32,
    begin: usize,
    end: usize,
    /// Elements of a block and of all.
    block: usize,
    k: usize,
}

impl<V: Copy, const M: usize> Sums<V, M> {
    /// `sums += left [M, count] rows [N, count]^T` from element `p` on; `PARTS` if these are fewer than `N` or of two blocks.
    ///
    /// # Safety
    /// As for [`product`].
    #[inline(always)]
    unsafe fn step<W: Word<V>, const N: usize, const PARTS: bool>(
        &mut self,
        rows: &[*const f32; N],
        p: usize,
        count: usize,
    ) where
        V: Lanes<N>,
    {
        // SAFETY: the caller's promise.
        unsafe {
            let mut square = [V::zero(); N];
            for (vector, row) in square.iter_mut().zip(rows) {
                *vector = if PARTS { V::load_some(row.add(p), count) } else { V::load(row.add(p)) };
            }
            for (i, lane) in V::transpose(square).into_iter().enumerate() {
                if PARTS && i >= count {
                    break;
                }
                if PARTS && p + i == self.end {
                    self.next_block();
                }
                let x = self.left.add(W::LEFT * (p + i - self.begin));
                for (row, sum) in self.sums.iter_mut().enumerate() {
                    *sum = W::add_product(*sum, x.add(row * DEPTH), lane);
                }
            }
        }
    }

    /// Adds the sums of a block to those of the blocks before, and goes on to the next.
    ///
    /// # Safety
    /// The CPU has the instructions of the vectors.
    #[inline(always)]
    unsafe fn next_block<const N: usize>(&mut self)
    where
        V: Lanes<N>,
    {
        for (total, sum) in self.totals.iter_mut().zip(&mut self.sums) {
            // SAFETY: the caller's promise.
            unsafe {
                *total = if self.begin == 0 { *sum } else { total.add(*sum) };
                *sum = V::zero();
            }
        }
        self.left = self.left.wrapping_add(M * DEPTH);
        (self.begin, self.end) = (self.end, (self.end + self.block).min(self.k));
    }
}
