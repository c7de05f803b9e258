//! Transposition, in squares that fit the registers.

#[cfg(target_arch = "x86_64")]
pub mod avx512;

use std::array::from_fn;

use half::bf16;

use super::super::isa::{InstructionSet, Isa};
use super::super::simd::{Element, Float, multiversion};

/// Edge of the squares that are transposed at once: a vector of AVX2.
const SQUARE: usize = 8;

/// A square of elements.
type Square<A> = [[A; SQUARE]; SQUARE];

/// Transposes a matrix of whole squares: `to`, its distance of rows, `from`, its distance of rows, rows and columns.
type Whole<A> = unsafe fn(*mut A, usize, *const A, usize, usize, usize);

/// Transposition on an instruction set that this CPU has.
#[derive(Clone, Copy)]
pub struct Transposer<A> {
    isa: Isa,
    square: fn(&mut Square<A>),
    /// For matrices of whole squares that are of `A` already, if the instruction set has something for it.
    whole: Option<Whole<A>>,
}

impl<A: Float> Transposer<A> {
    /// Element by element.
    pub fn plain(isa: Isa) -> Self {
        Self { isa, square: transpose_square, whole: None }
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// `to[c * to_stride + r] = from[r * stride + c]`.
    ///
    /// # Panics
    /// If either is too short for `rows` and `columns`.
    pub fn transpose<S: Element<A>>(
        &self,
        to: &mut [A],
        to_stride: usize,
        from: &[S],
        stride: usize,
        [rows, columns]: [usize; 2],
    ) {
        let squares = [rows - rows % SQUARE, columns - columns % SQUARE];
        let [whole_rows, whole_columns] = squares;
        if whole_rows > 0 && whole_columns > 0 {
            match (A::same(S::host(from)), self.whole) {
                (Some(from), Some(whole)) => {
                    let reaches = |len: usize, rows: usize, stride: usize, columns: usize| {
                        (rows - 1)
                            .checked_mul(stride)
                            .and_then(|row| row.checked_add(columns))
                            .is_some_and(|x| len >= x)
                    };
                    assert!(
                        reaches(from.len(), whole_rows, stride, whole_columns)
                            && reaches(to.len(), whole_columns, to_stride, whole_rows),
                        "transpose: {rows} x {columns} of {} elements at distance {stride} into {} at {to_stride}",
                        from.len(),
                        to.len()
                    );
                    // SAFETY: both are large enough, and `isa` is proof that the CPU has the instructions.
                    unsafe { whole(to.as_mut_ptr(), to_stride, from.as_ptr(), stride, whole_rows, whole_columns) };
                }
                _ => transpose_squares(self.isa, to, to_stride, from, stride, squares, self.square),
            }
        }
        for r in 0..rows {
            for c in if r < whole_rows { whole_columns } else { 0 }..columns {
                to[c * to_stride + r] = from[r * stride + c].widen();
            }
        }
    }
}

impl Transposer<f32> {
    /// In vectors, if the instruction set has them.
    pub fn vectors(isa: Isa) -> Self {
        #[cfg(target_arch = "x86_64")]
        if isa.set() != InstructionSet::Plain {
            let whole = if isa.of_loops() == InstructionSet::Avx512 { avx512::whole } else { whole_avx2 };
            // SAFETY: all others include AVX2, and an `Isa` is proof that the CPU has it.
            return Self { isa, square: |square| unsafe { square_avx2(square) }, whole: Some(whole) };
        }
        Self::plain(isa)
    }
}

/// `to [rows, columns] = from^T + bias`, rounded to bfloat16 as elsewhere, where element `(r, c)` is `from[c * stride + r]`, if
/// the instruction set has something for it: then rows of `to` are at distance `to_stride`, and true is returned.
///
/// # Safety
/// `to` has `rows` rows of `columns` elements at the distance, which nobody else uses meanwhile.
///
/// # Panics
/// If the others are too short.
pub unsafe fn transpose_rounded(
    isa: Isa,
    to: (*mut bf16, usize),
    (from, stride): (&[f32], usize),
    bias: Option<&[f32]>,
    [rows, columns]: [usize; 2],
) -> bool {
    if isa.of_loops() != InstructionSet::Avx512 {
        return false;
    }
    #[cfg(target_arch = "x86_64")]
    if rows > 0 && columns > 0 {
        let reach = (columns - 1).checked_mul(stride).and_then(|x| x.checked_add(rows));
        let long = reach.is_some_and(|reach| from.len() >= reach) && bias.is_none_or(|bias| bias.len() >= columns);
        assert!(long, "transpose: {rows} x {columns} of {} elements at distance {stride}", from.len());
        // SAFETY: all are as large, and an `Isa` is proof that the CPU has the instructions.
        unsafe { avx512::rounded(to, (from.as_ptr(), stride), bias.map(<[f32]>::as_ptr), [rows, columns]) };
    }
    let _ = (to, from, stride, bias, rows, columns);
    true
}

/// Transposes a square, element by element.
fn transpose_square<A: Copy>(square: &mut Square<A>) {
    let old = *square;
    *square = from_fn(|r| from_fn(|c| old[c][r]));
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn square_avx2(square: &mut Square<f32>) {
    use std::arch::x86_64::*;
    // SAFETY: every row of the square has the eight elements of a vector; the instructions are enabled here.
    unsafe {
        let transposed = transpose_vectors(from_fn(|i| _mm256_loadu_ps(square[i].as_ptr())));
        for (row, vector) in square.iter_mut().zip(transposed) {
            _mm256_storeu_ps(row.as_mut_ptr(), vector);
        }
    }
}

/// # Safety
/// The CPU has AVX2, and both are as large as is said, in whole squares.
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
                for (i, row) in transpose_vectors(square).into_iter().enumerate() {
                    _mm256_storeu_ps(to.add(i * to_stride), row);
                }
            }
        }
    }
}

/// Transposes a square whose rows are vectors.
///
/// # Safety
/// The CPU has AVX2.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub unsafe fn transpose_vectors(r: [std::arch::x86_64::__m256; SQUARE]) -> [std::arch::x86_64::__m256; SQUARE] {
    use std::arch::x86_64::*;
    // SAFETY: the caller's promise.
    unsafe {
        // Pairs of rows, then fours, within 128 bits of the vectors; then these. Without closures: they would not
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

multiversion! {
    fn transpose_squares[A: Float, S: Element<A>](
        to: &mut [A],
        to_stride: usize,
        from: &[S],
        stride: usize,
        squares: [usize; 2],
        transpose_square: fn(&mut Square<A>),
    ) {
        let mut square = [[A::ZERO; SQUARE]; SQUARE];
        for r in (0..squares[0]).step_by(SQUARE) {
            for c in (0..squares[1]).step_by(SQUARE) {
                for (i, row) in square.iter_mut().enumerate() {
                    let from = &from[(r + i) * stride + c..][..SQUARE];
                    for (x, s) in row.iter_mut().zip(from) {
                        *x = s.widen();
                    }
                }
                transpose_square(&mut square);
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
    fn transpose_moves_every_element_and_touches_no_other() {
        for isa in isas() {
            for [rows, columns] in [[1, 1], [8, 8], [7, 9], [17, 8], [40, 23], [5, 64], [0, 3], [35, 52]] {
                let (stride, to_stride) = (columns + 3, rows + 2);
                let from: Vec<f32> = (0..rows * stride).map(|i| (i % 251) as f32).collect();
                let narrow: Vec<bf16> = from.iter().map(|&x| bf16::from_f32(x)).collect();
                let mut expected = vec![-1.0f32; columns * to_stride];
                (0..rows * columns).for_each(|i| {
                    expected[i % columns * to_stride + i / columns] = from[i / columns * stride + i % columns];
                });
                let [mut wide, mut widened] = [(); 2].map(|()| vec![-1.0f32; columns * to_stride]);
                let transposer = Transposer::vectors(isa);
                transposer.transpose(&mut wide, to_stride, &from, stride, [rows, columns]);
                transposer.transpose(&mut widened, to_stride, &narrow, stride, [rows, columns]);
                assert!(wide == expected && widened == expected, "{isa:?} {rows} x {columns}");
            }
        }
    }

    #[test]
    fn transpose_rounded_gives_the_bits_of_rounding_each_element() {
        // Ties, subnormal numbers, infinities and those that are no numbers among ordinary ones.
        let special =
            [0x3f80_8000, 0x3f81_8000, 0x0000_8001, 0x7f80_0000, 0xff80_0001, 0x7fff_ffff, 0x8000_0000, 0x7f7f_ffff];
        let number = |i: usize| match i % 7 {
            0 => f32::from_bits(special[i / 7 % special.len()]),
            _ => (i as f32 * 0.37).sin() * 3.0,
        };
        for isa in isas() {
            for [rows, columns] in [[1, 1], [16, 32], [32, 32], [15, 31], [17, 33], [5, 64], [40, 3], [0, 2]] {
                let (stride, to_stride) = (rows + 3, columns + 5);
                let from: Vec<f32> = (0..columns * stride).map(number).collect();
                let bias: Vec<f32> = (0..columns).map(|i| i as f32 * 0.7 - 2.0).collect();
                for bias in [None, Some(&bias[..])] {
                    let mut to = vec![bf16::ZERO; rows * to_stride];
                    // SAFETY: `to` has the rows.
                    let done = unsafe {
                        transpose_rounded(isa, (to.as_mut_ptr(), to_stride), (&from, stride), bias, [rows, columns])
                    };
                    assert_eq!(done, isa.of_loops() == InstructionSet::Avx512);
                    let expected = |i: usize| match (i % to_stride < columns && done, i / to_stride, i % to_stride) {
                        (true, r, c) => {
                            let x = from[c * stride + r];
                            Element::<f32>::to_bf16(bias.map_or(x, |bias| x + bias[c])).to_bits()
                        }
                        _ => 0,
                    };
                    let wrong = (0..to.len()).find(|&i| to[i].to_bits() != expected(i));
                    assert_eq!(wrong, None, "{isa:?} {rows} x {columns}");
                }
            }
        }
    }
}
