//! Transposition, in squares.

use std::array::from_fn;

use super::super::simd::{Element, Float, Isa, multiversion};

/// Edge of the squares that are transposed at once.
const SQUARE: usize = 8;

/// A square of elements.
pub type Square<W> = [[W; SQUARE]; SQUARE];

/// Transposes a matrix of whole squares: `to`, its distance of rows, `from`, its distance of rows, rows and columns.
pub type Whole<W> = unsafe fn(*mut W, usize, *const W, usize, usize, usize);

/// Transposes a square, element by element.
pub fn turn<W: Copy>(square: &mut Square<W>) {
    let old = *square;
    *square = from_fn(|r| from_fn(|c| old[c][r]));
}

/// [`Whole`] in vectors, if the instruction set has them.
pub fn whole_f32(isa: Isa) -> Option<Whole<f32>> {
    #[cfg(target_arch = "x86_64")]
    if isa != Isa::Plain {
        return Some(whole_avx2);
    }
    let _ = isa;
    None
}

/// [`turn`] in vectors, if the instruction set has them.
pub fn turn_f32(isa: Isa) -> fn(&mut Square<f32>) {
    #[cfg(target_arch = "x86_64")]
    if isa != Isa::Plain {
        // SAFETY: both other instruction sets include AVX2, and an `Isa` is only made where it was detected.
        return |square| unsafe { turn_avx2(square) };
    }
    let _ = isa;
    turn
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn turn_avx2(square: &mut Square<f32>) {
    use std::arch::x86_64::*;
    // SAFETY: every row of the square has the eight elements of a vector; the instructions are enabled here.
    unsafe {
        let turned = turn_vectors(from_fn(|i| _mm256_loadu_ps(square[i].as_ptr())));
        for (row, vector) in square.iter_mut().zip(turned) {
            _mm256_storeu_ps(row.as_mut_ptr(), vector);
        }
    }
}

/// # Safety
/// The processor has AVX2, and both are as large as is said, in whole squares.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn whole_avx2(to: *mut f32, to_stride: usize, from: *const f32, stride: usize, rows: usize, columns: usize) {
    use std::arch::x86_64::*;
    for r in (0..rows).step_by(SQUARE) {
        for c in (0..columns).step_by(SQUARE) {
            // SAFETY: the caller's promise.
            unsafe {
                let (from, to) = (from.add(r * stride + c), to.add(c * to_stride + r));
                let mut square = [_mm256_setzero_ps(); SQUARE];
                for (i, row) in square.iter_mut().enumerate() {
                    *row = _mm256_loadu_ps(from.add(i * stride));
                }
                for (i, row) in turn_vectors(square).into_iter().enumerate() {
                    _mm256_storeu_ps(to.add(i * to_stride), row);
                }
            }
        }
    }
}

/// Transposes a square whose rows are vectors.
///
/// # Safety
/// The processor has AVX2.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub unsafe fn turn_vectors(r: [std::arch::x86_64::__m256; SQUARE]) -> [std::arch::x86_64::__m256; SQUARE] {
    use std::arch::x86_64::*;
    // SAFETY: the caller's promise.
    unsafe {
        // Pairs of rows, then fours, within the halves of the vectors; then the halves. Without closures: they would not
        // have the instructions, and every step would be a call.
        let (a, b) = (_mm256_unpacklo_ps(r[0], r[1]), _mm256_unpackhi_ps(r[0], r[1]));
        let (c, d) = (_mm256_unpacklo_ps(r[2], r[3]), _mm256_unpackhi_ps(r[2], r[3]));
        let (e, f) = (_mm256_unpacklo_ps(r[4], r[5]), _mm256_unpackhi_ps(r[4], r[5]));
        let (g, h) = (_mm256_unpacklo_ps(r[6], r[7]), _mm256_unpackhi_ps(r[6], r[7]));
        let (u0, l0) = (_mm256_shuffle_ps::<0x44>(a, c), _mm256_shuffle_ps::<0x44>(e, g));
        let (u1, l1) = (_mm256_shuffle_ps::<0xee>(a, c), _mm256_shuffle_ps::<0xee>(e, g));
        let (u2, l2) = (_mm256_shuffle_ps::<0x44>(b, d), _mm256_shuffle_ps::<0x44>(f, h));
        let (u3, l3) = (_mm256_shuffle_ps::<0xee>(b, d), _mm256_shuffle_ps::<0xee>(f, h));
        [
            _mm256_permute2f128_ps::<0x20>(u0, l0),
            _mm256_permute2f128_ps::<0x20>(u1, l1),
            _mm256_permute2f128_ps::<0x20>(u2, l2),
            _mm256_permute2f128_ps::<0x20>(u3, l3),
            _mm256_permute2f128_ps::<0x31>(u0, l0),
            _mm256_permute2f128_ps::<0x31>(u1, l1),
            _mm256_permute2f128_ps::<0x31>(u2, l2),
            _mm256_permute2f128_ps::<0x31>(u3, l3),
        ]
    }
}

/// `to[c * to_stride + r] = from[r * stride + c]`.
pub fn transpose<W: Float, S: Element<W>>(
    isa: Isa,
    to: &mut [W],
    to_stride: usize,
    from: &[S],
    stride: usize,
    rows: usize,
    columns: usize,
) {
    let squares = [rows - rows % SQUARE, columns - columns % SQUARE];
    let [whole_rows, whole_columns] = squares;
    if whole_rows > 0 && whole_columns > 0 {
        match (W::same(S::host(from)), W::whole(isa)) {
            (Some(from), Some(whole)) => {
                assert!(from.len() >= (whole_rows - 1) * stride + whole_columns, "transpose: {} elements", from.len());
                assert!(to.len() >= (whole_columns - 1) * to_stride + whole_rows, "transpose: into {}", to.len());
                // SAFETY: both are large enough, and an `Isa` is only made where it was detected.
                unsafe { whole(to.as_mut_ptr(), to_stride, from.as_ptr(), stride, whole_rows, whole_columns) };
            }
            _ => transpose_squares(isa, to, to_stride, from, stride, squares, W::turn(isa)),
        }
    }
    for r in 0..rows {
        for c in if r < whole_rows { whole_columns } else { 0 }..columns {
            to[c * to_stride + r] = from[r * stride + c].widen();
        }
    }
}

multiversion! {
    fn transpose_squares[W: Float, S: Element<W>](
        to: &mut [W],
        to_stride: usize,
        from: &[S],
        stride: usize,
        squares: [usize; 2],
        turn: fn(&mut Square<W>),
    ) {
        let mut square = [[W::ZERO; SQUARE]; SQUARE];
        for r in (0..squares[0]).step_by(SQUARE) {
            for c in (0..squares[1]).step_by(SQUARE) {
                for (i, row) in square.iter_mut().enumerate() {
                    let from = &from[(r + i) * stride + c..][..SQUARE];
                    for (x, s) in row.iter_mut().zip(from) {
                        *x = s.widen();
                    }
                }
                turn(&mut square);
                for (i, row) in square.iter().enumerate() {
                    to[(c + i) * to_stride + r..][..SQUARE].copy_from_slice(row);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::backend::cpu::isa::tests::isas;

    #[test]
    fn every_element_finds_its_place_and_no_other_is_touched() {
        for isa in isas() {
            for [rows, columns] in [[1, 1], [8, 8], [7, 9], [17, 8], [40, 23], [5, 64], [0, 3]] {
                let (stride, to_stride) = (columns + 3, rows + 2);
                let from: Vec<f32> = (0..rows * stride).map(|i| (i % 251) as f32).collect();
                let narrow: Vec<bf16> = from.iter().map(|&x| bf16::from_f32(x)).collect();
                let mut expected = vec![-1.0f32; columns * to_stride];
                (0..rows * columns).for_each(|i| {
                    expected[i % columns * to_stride + i / columns] = from[i / columns * stride + i % columns];
                });
                let [mut wide, mut widened] = [(); 2].map(|()| vec![-1.0f32; columns * to_stride]);
                transpose(isa, &mut wide, to_stride, &from, stride, rows, columns);
                transpose(isa, &mut widened, to_stride, &narrow, stride, rows, columns);
                assert!(wide == expected && widened == expected, "{isa:?} {rows} x {columns}");
            }
        }
    }
}
