//! Skinny products with quantised weights in pairs of bfloat16, decoded in registers.
//!
//! 32 columns of the result go at a time, 64 elements along k at a step. Not the values are transposed but the codes, of which a
//! lane has several: codes of four rows, 16 bytes of each, are brought into one vector, and then of two such vectors four bytes of
//! each of eight rows, twice side by side. One lane of a row gives the even elements of pairs and the other the odd ones, by a shift
//! of its own for each pair; what the shift leaves is looked up or taken as a number, scaled, and rounded into pairs of 16 rows.
//! These are multiplied at once: an element of the result is the same chain of multiply-adds as elsewhere.
//!
//! While a step is multiplied the codes of the next are brought together, so that rows which share sets of the cache, as rows of
//! 4096 bytes do, are not read all at the same time: int8 in the second-level cache goes at twice the rate (AMD Zen 5).

mod ahead;
mod formats;
mod registers;

use std::arch::x86_64::*;
use std::mem::transmute;

use self::formats::{Int8, Nf4, Q4K, Q8_0, are_short};
use self::registers::{NO_CODES, QUADS, Rows, STEP, Staged};
use super::super::operand::{Elements, Operand};
use super::super::tile::DEPTH;
use super::{COLUMNS, SkinnyProduct};
use crate::arch::Dtype;
use crate::quantization::{BlockFormat, QuantizedMatrix, Scales};

/// Rows of the left operand, at most.
pub const ROWS: usize = 4;
/// Pairs along k of a step.
const PAIRS: usize = STEP / 2;

/// Whether an operand of `k` elements along k is one that is decoded in registers.
pub fn takes(operand: &Operand<'_, f32>, k: usize) -> bool {
    let Elements::Quantized(matrix) = operand.data else { return false };
    let column = operand.from % operand.stride;
    let step = match matrix.format {
        BlockFormat::Nf4 { block: 64 } | BlockFormat::Int8Rows | BlockFormat::Q8_0 => STEP,
        BlockFormat::Q4K => 256,
        _ => return false,
    };
    let whole = [column, k, matrix.columns].iter().all(|x| x.is_multiple_of(step));
    whole && matches!(matrix.rounding, None | Some(Dtype::F32 | Dtype::BF16))
}

/// The product, on a CPU that has AVX-512 with pairs of bfloat16.
///
/// # Panics
/// If the operand is not [taken](takes), or operands are too short.
pub fn multiply(product: SkinnyProduct<'_, f32>) {
    let SkinnyProduct { sums, left, right, next, m, columns, k, block } = product;
    let Elements::Quantized(matrix) = right.data else { panic!("skinny: an operand that is not quantised") };
    assert!(takes(&right, 2 * k) && k > 0, "skinny: a quantised operand of {k} pairs in rows of {}", right.stride);
    assert!((1..=ROWS).contains(&m) && (1..=COLUMNS).contains(&columns), "skinny: {m} rows, {columns} columns");
    assert!((16..=DEPTH).contains(&block) && block.is_multiple_of(16), "skinny: blocks of {block}");
    let packed = k.div_ceil(block).checked_mul(m * DEPTH);
    assert!(packed.is_some_and(|packed| left.len() >= packed), "skinny: {} of {packed:?} packed", left.len());
    assert!(sums.len() >= m * COLUMNS, "skinny: {} sums of {m} rows", sums.len());
    let (first, column) = (right.from / right.stride, right.from % right.stride);
    assert!(first + columns <= matrix.rows && column + 2 * k <= matrix.columns, "skinny: outside of {matrix:?}");
    matrix.check_parts().unwrap_or_else(|error| panic!("skinny: {error}"));
    // Rows behind the last repeat it, and are not stored.
    let rows = [first, first + next.unwrap_or(0)].map(|first| stored_rows(&matrix, first));
    let range = [column, 2 * k];
    let work = Work { out: sums.as_mut_ptr(), left: left.as_ptr(), k, block };
    // SAFETY: all rows have codes and scales of so many elements from the column on by the checks above, the left operand and the
    // sums are as long; the caller has an `Isa` that is proof of the instructions.
    unsafe {
        match (matrix.format, matrix.scales) {
            (BlockFormat::Int8Rows, _) if are_short(&matrix, &rows[0]) => int8_short(&matrix, &rows, range, work, m),
            (BlockFormat::Int8Rows, _) => int8(&matrix, &rows, range, work, m),
            (BlockFormat::Q8_0, _) => q8_0(&matrix, &rows, range, work, m),
            (BlockFormat::Q4K, _) => q4_k(&matrix, &rows, range, work, m),
            (_, Scales::Nested { .. }) => nf4_nested(&matrix, &rows, range, work, m),
            _ => nf4(&matrix, &rows, range, work, m),
        }
    }
}

/// The stored rows from row `first` on; behind the last they repeat it, and their sums are not stored.
fn stored_rows(matrix: &QuantizedMatrix<'_>, first: usize) -> [usize; COLUMNS] {
    let mut rows = [0; COLUMNS];
    for (i, row) in rows.iter_mut().enumerate() {
        *row = matrix.stored_row((first + i).min(matrix.rows - 1));
        assert!(*row < matrix.stored_rows, "skinny: a row outside of {matrix:?}");
    }
    rows
}

/// Where a product's numbers are.
#[derive(Clone, Copy)]
struct Work {
    out: *mut f32,
    left: *const f32,
    /// Pairs along k, and of a block.
    k: usize,
    block: usize,
}

/// Kernels of up to [`ROWS`] rows of the left operand.
macro_rules! kernels {
    ($($name:ident: $rows:ty;)*) => {
        $(
        /// # Safety
        /// All of the work is there, and the CPU has AVX-512 with pairs of bfloat16.
        #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
        unsafe fn $name(
            matrix: &QuantizedMatrix<'_>,
            rows: &[[usize; COLUMNS]; 2],
            range: [usize; 2],
            work: Work,
            m: usize,
        ) {
            let mut rows = <$rows>::new(matrix, rows, range);
            // SAFETY: the caller's promise.
            unsafe {
                match m {
                    1 => product::<_, 1>(&mut rows, work),
                    2 => product::<_, 2>(&mut rows, work),
                    3 => product::<_, 3>(&mut rows, work),
                    _ => product::<_, 4>(&mut rows, work),
                }
            }
        })*
    };
}
kernels! {
    nf4: Nf4<'_, false>;
    nf4_nested: Nf4<'_, true>;
    int8: Int8<false>;
    int8_short: Int8<true>;
    q8_0: Q8_0;
    q4_k: Q4K;
}

/// Of the rows of the left operand: what was summed up in earlier blocks of k, and in the current one, of 32 columns.
struct Sums<const M: usize> {
    totals: [[__m512; 2]; M],
    sums: [[__m512; 2]; M],
    /// The packed block of the left operand, from pair `begin` along k up to `end`.
    left: *const f32,
    begin: usize,
    end: usize,
    work: Work,
}

impl<const M: usize> Sums<M> {
    /// `sums += ` the products of four pairs from pair `p` on with those of a half of the columns.
    ///
    /// # Safety
    /// They are of the block, and the CPU has AVX-512 with pairs of bfloat16.
    #[inline(always)]
    unsafe fn add(&mut self, p: usize, half: usize, pairs: [__m512i; 4]) {
        // SAFETY: the caller's promise; the types are of one size.
        unsafe {
            let x = self.left.add(p - self.begin);
            for (row, sums) in self.sums.iter_mut().enumerate() {
                for (i, pair) in pairs.into_iter().enumerate() {
                    let x = transmute::<__m512, __m512bh>(_mm512_set1_ps(*x.add(row * DEPTH + i)));
                    sums[half] = _mm512_dpbf16_ps(sums[half], x, transmute::<__m512i, __m512bh>(pair));
                }
            }
        }
    }

    /// Goes on to the next block of k.
    ///
    /// # Safety
    /// The CPU has AVX-512 F.
    #[inline(always)]
    unsafe fn next_block(&mut self) {
        // SAFETY: the caller's promise; behind the last block nothing is read.
        unsafe {
            for (total, sum) in self.totals.as_flattened_mut().iter_mut().zip(self.sums.as_flattened_mut()) {
                *total = if self.begin == 0 { *sum } else { _mm512_add_ps(*total, *sum) };
                *sum = _mm512_setzero_ps();
            }
        }
        self.left = self.left.wrapping_add(M * DEPTH);
        (self.begin, self.end) = (self.end, (self.end + self.work.block).min(self.work.k));
    }
}

/// # Safety
/// As for the kernels.
#[inline(always)]
unsafe fn product<R: Rows, const M: usize>(rows: &mut R, work: Work) {
    let Work { out, left, k, block } = work;
    let steps = k / PAIRS;
    // SAFETY: the caller's promise; steps exist in the rows, blocks in the left operand, and these are of whole sixteens of pairs.
    unsafe {
        let zeros = [[_mm512_setzero_ps(); 2]; M];
        let mut sums = Sums { totals: zeros, sums: zeros, left, begin: 0, end: block.min(k), work };
        let mut buffers = [const { Staged([[NO_CODES; QUADS]; STEP / 16]) }; 2];
        let [one, other] = &mut buffers;
        let (mut current, mut next) = (one, other);
        for quad in 0..QUADS {
            rows.stage(quad, 0, current);
        }
        for step in 0..steps {
            rows.begin(step);
            macro_rules! fours {
                ($($four:literal)*) => {$(
                    if step + 1 < steps {
                        rows.stage($four, step + 1, next);
                    }
                    let p = step * PAIRS + 4 * $four;
                    sums.add(p, 0, rows.pairs::<$four>(current, 0));
                    sums.add(p, 1, rows.pairs::<$four>(current, 1));
                    if $four % 4 == 3 && p + 4 == sums.end {
                        sums.next_block();
                    }
                )*};
            }
            fours!(0 1 2 3 4 5 6 7);
            std::mem::swap(&mut current, &mut next);
        }
        for (row, totals) in sums.totals.iter().enumerate() {
            _mm512_storeu_ps(out.add(row * COLUMNS), totals[0]);
            _mm512_storeu_ps(out.add(row * COLUMNS + 16), totals[1]);
        }
    }
}
