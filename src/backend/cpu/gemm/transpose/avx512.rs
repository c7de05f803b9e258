//! Transposition in AVX-512, in squares of 16.

use std::arch::x86_64::*;

use half::bf16;

use super::whole_avx2;

/// Edge of a square, elements of a vector.
pub const SIDE: usize = 16;

/// Transposes a matrix in squares of 16, and in those of AVX2 what is left.
///
/// # Safety
/// The CPU has AVX-512 F, and both are as large as is said, in whole squares of AVX2.
#[target_feature(enable = "avx2,avx512f")]
pub unsafe fn whole(to: *mut f32, to_stride: usize, from: *const f32, stride: usize, rows: usize, columns: usize) {
    let (whole_rows, whole_columns) = (rows - rows % SIDE, columns - columns % SIDE);
    // SAFETY: the caller's promise.
    unsafe {
        for r in (0..whole_rows).step_by(SIDE) {
            for c in (0..whole_columns).step_by(SIDE) {
                let (from, to) = (from.add(r * stride + c), to.add(c * to_stride + r));
                let mut square = [_mm512_setzero_si512(); SIDE];
                for (i, row) in square.iter_mut().enumerate() {
                    *row = _mm512_loadu_si512(from.add(i * stride).cast());
                }
                for (i, row) in square_of(square).into_iter().enumerate() {
                    _mm512_storeu_si512(to.add(i * to_stride).cast(), row);
                }
            }
        }
        if whole_columns < columns {
            let (to, from) = (to.add(whole_columns * to_stride), from.add(whole_columns));
            whole_avx2(to, to_stride, from, stride, whole_rows, columns - whole_columns);
        }
        if whole_rows < rows {
            let (to, from) = (to.add(whole_rows), from.add(whole_rows * stride));
            whole_avx2(to, to_stride, from, stride, rows - whole_rows, columns);
        }
    }
}

/// Transposes a square whose rows are vectors.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn square_of(x: [__m512i; SIDE]) -> [__m512i; SIDE] {
    let mut a = x;
    for i in 0..8 {
        a[2 * i] = _mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
    }
    let mut b = a;
    for i in 0..4 {
        b[4 * i] = _mm512_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 1] = _mm512_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm512_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm512_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
    }
    // Vector 4 g + j now holds, in its 128 bits number q, elements 4 g .. 4 g + 4 of row 4 q + j.
    let mut out = b;
    for j in 0..4 {
        let low = _mm512_shuffle_i32x4::<0x88>(b[j], b[4 + j]);
        let high = _mm512_shuffle_i32x4::<0xdd>(b[j], b[4 + j]);
        let low_behind = _mm512_shuffle_i32x4::<0x88>(b[8 + j], b[12 + j]);
        let high_behind = _mm512_shuffle_i32x4::<0xdd>(b[8 + j], b[12 + j]);
        out[j] = _mm512_shuffle_i32x4::<0x88>(low, low_behind);
        out[8 + j] = _mm512_shuffle_i32x4::<0xdd>(low, low_behind);
        out[4 + j] = _mm512_shuffle_i32x4::<0x88>(high, high_behind);
        out[12 + j] = _mm512_shuffle_i32x4::<0xdd>(high, high_behind);
    }
    out
}

/// The bits of the nearest bfloat16, ties to even, in the upper half, and a rest in the lower. (VCVTNE2PS2BF16 would do for
/// sums of AMX, but counts subnormal numbers, which a bias or sums of blocks may give, as 0.)
#[inline]
#[target_feature(enable = "avx512f")]
fn rounded_bits(x: __m512) -> __m512i {
    let bits = _mm512_castps_si512(x);
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
    _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x40_0000))
}

/// See [`transpose_rounded`](super::transpose_rounded).
///
/// # Safety
/// `to` has `rows` rows of `columns` elements at its distance, `from` `columns` rows of `rows`, `bias` `columns` elements, and the
/// CPU has AVX-512 F and BW.
#[target_feature(enable = "avx512f,avx512bw")]
pub unsafe fn rounded(
    (to, to_stride): (*mut bf16, usize),
    (from, stride): (*const f32, usize),
    bias: Option<*const f32>,
    [rows, columns]: [usize; 2],
) {
    let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    for r in (0..rows).step_by(SIDE) {
        let count = (rows - r).min(SIDE);
        let of_rows = u16::MAX >> (SIDE - count);
        for c in (0..columns).step_by(2 * SIDE) {
            let some = (columns - c).min(2 * SIDE);
            let of_columns = u32::MAX >> (2 * SIDE - some);
            // SAFETY: the caller's promise; what is masked out is not touched.
            unsafe {
                // A pair of columns makes a vector of pairs, as they lie in a row of the result.
                let mut square = [_mm512_setzero_si512(); SIDE];
                for (pair, x) in square.iter_mut().enumerate().take(some.div_ceil(2)) {
                    let column = c + 2 * pair;
                    let mut halves = [_mm512_setzero_si512(); 2];
                    for (i, half) in halves.iter_mut().enumerate().take(columns - column) {
                        let mut sums = _mm512_maskz_loadu_ps(of_rows, from.add((column + i) * stride + r));
                        if let Some(bias) = bias {
                            sums = _mm512_add_ps(sums, _mm512_set1_ps(*bias.add(column + i)));
                        }
                        *half = rounded_bits(sums);
                    }
                    let [first, second] = halves;
                    *x = _mm512_or_si512(_mm512_srli_epi32::<16>(first), _mm512_and_si512(second, upper));
                }
                for (i, row) in square_of(square).into_iter().enumerate().take(count) {
                    _mm512_mask_storeu_epi16(to.add((r + i) * to_stride + c).cast(), of_columns, row);
                }
            }
        }
    }
}
