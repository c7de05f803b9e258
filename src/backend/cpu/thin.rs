//! Products of a few rows, as when text is generated: the time goes into reading the weights.
//!
//! Packing would cost as much as the product, so the weights go from memory straight into registers, where squares of
//! them are transposed. An element of the result is the same chain of multiply-adds in the order of k as elsewhere.

use super::gemm::Operand;
use super::simd::Isa;
#[cfg(target_arch = "x86_64")]
use super::simd::{Element, Visit};

/// Rows up to which this pays.
pub const ROWS: usize = 4;
/// Columns of the result that are computed at once, at most.
pub const COLUMNS: usize = 32;

/// A product `sums [m, COLUMNS] = left [m, k] right [columns, k]^T`.
pub struct Thin<'a, W> {
    /// The result, of which `columns` columns are set.
    pub sums: &'a mut [W],
    /// Packed: for each block of k, `m` rows at distance [`DEPTH`](super::tile::DEPTH).
    pub left: &'a [W],
    /// Contiguous along k, and not to be rounded.
    pub right: Operand<'a, W>,
    /// At most [`ROWS`].
    pub m: usize,
    /// At most [`COLUMNS`].
    pub columns: usize,
    /// Length of the sums.
    pub k: usize,
    /// Elements along k that are summed up before they are added to what came before; a multiple of 8.
    pub block: usize,
}

/// What computes a [`Thin`] product, if the instruction set has something for it.
pub fn thin_f32(isa: Isa) -> Option<fn(Thin<'_, f32>)> {
    #[cfg(target_arch = "x86_64")]
    if isa != Isa::Plain {
        // Both other instruction sets include AVX2 and FMA, and an `Isa` is only made where it was detected.
        return Some(|thin| super::simd::Float::visit(thin.right.data, Avx2(thin)));
    }
    let _ = isa;
    None
}

/// As [`thin_f32`], for operands in pairs of bfloat16 that lie as the tile reads them.
pub fn thin_pairs(isa: Isa) -> Option<fn(Thin<'_, f32>)> {
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512Bf16 {
        return Some(|thin| {
            let right = thin.right.direct().expect("thin: pairs that do not lie as the tile reads them");
            multiply::<f32, true>(thin, right.data, right.row);
        });
    }
    let _ = isa;
    None
}

/// A product on a processor with AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
struct Avx2<'a>(Thin<'a, f32>);

#[cfg(target_arch = "x86_64")]
impl Visit<f32> for Avx2<'_> {
    fn visit<S: Element<f32>>(self, data: &[S]) {
        let (from, stride) = (self.0.right.from, self.0.right.stride);
        multiply::<S, false>(self.0, &data[from..], stride);
    }
}

/// The product with `data`, whose rows are at distance `stride`; of pairs on a processor with AVX512-BF16, else on one
/// with AVX2.
#[cfg(target_arch = "x86_64")]
fn multiply<S: Element<f32>, const PAIRS: bool>(thin: Thin<'_, f32>, data: &[S], stride: usize) {
    let Thin { sums, left, m, columns, k, block, .. } = thin;
    let packed = m * x86::DEPTH * k.max(1).div_ceil(block);
    assert!(left.len() >= packed && sums.len() >= m * COLUMNS, "thin: {} of {packed} packed", left.len());
    assert!((1..=COLUMNS).contains(&columns) && block <= x86::DEPTH, "thin: {columns} columns, blocks of {block}");
    assert!(data.len() >= (columns - 1) * stride + k, "thin: right operand of {} elements", data.len());
    let product = match (m, PAIRS) {
        (1, false) => x86::numbers::<S, 1, 4>,
        (2, false) => x86::numbers::<S, 2, 2>,
        (3, false) => x86::numbers::<S, 3, 2>,
        (4, false) => x86::numbers::<S, 4, 2>,
        (1, true) => x86::pairs::<S, 1, 2>,
        (2, true) => x86::pairs::<S, 2, 2>,
        (3, true) => x86::pairs::<S, 3, 2>,
        (4, true) => x86::pairs::<S, 4, 2>,
        _ => panic!("thin: {m} rows of at most {ROWS}"),
    };
    // SAFETY: the operands reach as far by the checks above; a function is only chosen where its instructions were
    // detected.
    unsafe { product(sums.as_mut_ptr(), left.as_ptr(), data.as_ptr(), stride, columns, k, block) };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::mem::transmute;

    use super::super::pack::transpose::turn_vectors;
    use super::super::simd::Element;
    pub use super::super::tile::DEPTH;
    use super::COLUMNS;

    /// Edge of a square, elements of a vector.
    const SQUARE: usize = 8;
    /// Elements ahead of the current ones that are called into the cache.
    const AHEAD: usize = 128;

    /// # Safety
    /// The operands are as long as [`Thin`](super::Thin) says, with `M` rows, and the processor has AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn numbers<S: Element<f32>, const M: usize, const GROUPS: usize>(
        out: *mut f32,
        left: *const f32,
        right: *const S,
        stride: usize,
        columns: usize,
        k: usize,
        block: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe { product::<S, M, GROUPS, false>(out, left, right, stride, columns, k, block) }
    }

    /// # Safety
    /// As for [`numbers`]; elements are pairs of bfloat16, and the processor has AVX512-BF16 too.
    #[target_feature(enable = "avx2,fma,avx512f,avx512vl,avx512bf16")]
    pub unsafe fn pairs<S: Element<f32>, const M: usize, const GROUPS: usize>(
        out: *mut f32,
        left: *const f32,
        right: *const S,
        stride: usize,
        columns: usize,
        k: usize,
        block: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe { product::<S, M, GROUPS, true>(out, left, right, stride, columns, k, block) }
    }

    /// # Safety
    /// As for [`numbers`] or [`pairs`].
    #[inline(always)]
    unsafe fn product<S: Element<f32>, const M: usize, const GROUPS: usize, const PAIRS: bool>(
        out: *mut f32,
        left: *const f32,
        right: *const S,
        stride: usize,
        columns: usize,
        k: usize,
        block: usize,
    ) {
        // SAFETY: blocks and columns exist in the operands, columns behind the last repeat it, and rows of the result have
        // `COLUMNS` elements, a multiple of a vector's; the instructions are the caller's promise.
        unsafe {
            for first in (0..columns).step_by(GROUPS * SQUARE) {
                let mut rows = [[right; SQUARE]; GROUPS];
                for (i, row) in rows.as_flattened_mut().iter_mut().enumerate() {
                    // Lanes behind the last column repeat it, and are not stored.
                    *row = right.add((first + i).min(columns - 1) * stride);
                }
                let mut totals = [[_mm256_setzero_ps(); M]; GROUPS];
                for (index, k0) in (0..k).step_by(block).enumerate() {
                    let x = left.add(index * M * DEPTH);
                    let depth = block.min(k - k0);
                    let mut sums = [[_mm256_setzero_ps(); M]; GROUPS];
                    // Two squares side by side use up a line of the cache; the groups' chains overlap.
                    let whole = depth - depth % (2 * SQUARE);
                    for p in (0..whole).step_by(2 * SQUARE) {
                        for (sums, rows) in sums.iter_mut().zip(&rows) {
                            for row in rows {
                                let ahead = row.wrapping_add(k0 + p + AHEAD).cast();
                                // What lies in the same sets of the first level would push each other out before its turn;
                                // narrow elements, which are fewer lines, had better be there all the same.
                                match size_of::<S>() < size_of::<f32>() {
                                    true => _mm_prefetch::<_MM_HINT_T0>(ahead),
                                    false => _mm_prefetch::<_MM_HINT_T1>(ahead),
                                }
                            }
                            step::<S, M, PAIRS>(sums, x.add(p), rows, k0 + p, SQUARE);
                            step::<S, M, PAIRS>(sums, x.add(p + SQUARE), rows, k0 + p + SQUARE, SQUARE);
                        }
                    }
                    for p in (whole..depth).step_by(SQUARE) {
                        for (sums, rows) in sums.iter_mut().zip(&rows) {
                            step::<S, M, PAIRS>(sums, x.add(p), rows, k0 + p, SQUARE.min(depth - p));
                        }
                    }
                    for (total, sum) in totals.as_flattened_mut().iter_mut().zip(sums.as_flattened()) {
                        *total = if k0 == 0 { *sum } else { _mm256_add_ps(*total, *sum) };
                    }
                }
                for (group, totals) in totals.iter().enumerate() {
                    for (row, total) in totals.iter().enumerate() {
                        let column = first + group * SQUARE;
                        if column < COLUMNS {
                            _mm256_storeu_ps(out.add(row * COLUMNS + column), *total);
                        }
                    }
                }
            }
        }
    }

    /// `sums += x [M, count] rows [8, count]^T`, where the rows begin at `p`.
    ///
    /// # Safety
    /// The operands have `count <= 8` elements, and the processor has AVX2 and FMA.
    #[inline(always)]
    unsafe fn step<S: Element<f32>, const M: usize, const PAIRS: bool>(
        sums: &mut [__m256; M],
        x: *const f32,
        rows: &[*const S; SQUARE],
        p: usize,
        count: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut square = [_mm256_setzero_ps(); SQUARE];
            for (vector, row) in square.iter_mut().zip(rows) {
                let mut wide = [0.0; SQUARE];
                if count == SQUARE {
                    let stored = row.add(p).cast::<[S; SQUARE]>().read_unaligned();
                    for (w, s) in wide.iter_mut().zip(stored) {
                        *w = s.widen();
                    }
                } else {
                    for (i, w) in wide.iter_mut().enumerate().take(count) {
                        *w = (*row.add(p + i)).widen();
                    }
                }
                *vector = _mm256_loadu_ps(wide.as_ptr());
            }
            for (i, lane) in turn_vectors(square).into_iter().enumerate().take(count) {
                for (row, sum) in sums.iter_mut().enumerate() {
                    let x = _mm256_broadcast_ss(&*x.add(row * DEPTH + i));
                    *sum = if PAIRS {
                        let x = transmute::<__m256, __m256bh>(x);
                        _mm256_dpbf16_ps(*sum, x, transmute::<__m256, __m256bh>(lane))
                    } else {
                        _mm256_fmadd_ps(x, lane, *sum)
                    };
                }
            }
        }
    }
}
