//! What rows of all formats need: codes of four rows brought into a vector, and of a vector numbers.

use std::arch::x86_64::*;
use std::mem::transmute;

use super::super::COLUMNS;
use super::ahead::Ahead;
use crate::quantization::QuantizedMatrix;

/// Elements along k of a step.
pub const STEP: usize = 64;
/// Fours of rows, and of pairs of a step.
pub const QUADS: usize = COLUMNS / 4;

/// A vector of zeros.
// SAFETY: any bits are a vector of integers.
pub const NO_CODES: __m512i = unsafe { transmute([0u8; 64]) };

/// Codes of a step as they are brought together: of each 16 bytes of the rows the fours of rows.
#[repr(align(64))]
pub struct Staged(pub [[__m512i; QUADS]; STEP / 16]);

/// A vector for 8 rows with each of these in two lanes, for all rows.
pub type ByRow = [[__m512; 2]; 2];

/// Rows of a format.
pub trait Rows {
    /// Brings together what a four of rows has of a step, and prefetches as much of the rows that come next; fours go in turn.
    ///
    /// # Safety
    /// There is such a step, and the CPU has AVX-512 with pairs of bfloat16.
    unsafe fn stage(&mut self, quad: usize, step: usize, to: &mut Staged);

    /// Makes ready what the codes of a step that was staged are multiplied by.
    ///
    /// # Safety
    /// As above.
    unsafe fn begin(&mut self, step: usize);

    /// Pairs `4 FOUR..` of the step that was begun, each of all rows of a half.
    ///
    /// # Safety
    /// As above.
    unsafe fn pairs<const FOUR: usize>(&self, codes: &Staged, half: usize) -> [__m512i; 4];
}

/// The rows of a four, each in 128 bits: those at even places of 8, or those at odd places.
#[inline(always)]
pub fn rows_of(quad: usize) -> [usize; 4] {
    let first = quad / 2 * 8 + quad % 2;
    [first, first + 2, first + 4, first + 6]
}

/// Where rows' bytes are.
#[derive(Clone, Copy)]
pub struct Bytes {
    pub rows: [*const u8; COLUMNS],
    /// Of the rows that come next.
    pub ahead: Ahead,
}

impl Bytes {
    /// Of `k` elements from a column on, of rows and of those that come next.
    #[inline(always)]
    pub fn new(matrix: &QuantizedMatrix<'_>, rows: &[[usize; COLUMNS]; 2], [column, k]: [usize; 2]) -> Self {
        let (values, size) = (matrix.format.block_values(), matrix.format.block_bytes());
        let (first, pitch) =
            (matrix.codes.as_ptr().wrapping_add(column / values * size), matrix.columns / values * size);
        let [rows, next] = [starts(first, pitch, &rows[0]), starts(first, pitch, &rows[1])];
        Self { rows, ahead: Ahead::new(&rows, &next, k / values * size) }
    }

    /// The bytes from byte `at` on of a four of rows.
    ///
    /// # Safety
    /// They have so many.
    #[inline(always)]
    pub unsafe fn at(&self, quad: usize, at: usize) -> [*const u8; 4] {
        // SAFETY: the caller's promise.
        unsafe { rows_of(quad).map(|row| self.rows[row].add(at)) }
    }
}

/// Where rows at distance `pitch` begin, of which row 0 begins at `first`.
#[inline(always)]
pub fn starts(first: *const u8, pitch: usize, rows: &[usize; COLUMNS]) -> [*const u8; COLUMNS] {
    let mut starts = [first; COLUMNS];
    for (start, row) in starts.iter_mut().zip(rows) {
        *start = first.wrapping_add(row * pitch);
    }
    starts
}

/// 16 bytes of each of four rows.
///
/// # Safety
/// They are readable, and the CPU has AVX-512 F.
#[inline(always)]
pub unsafe fn gather_16(from: [*const u8; 4]) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe {
        let first = _mm512_castsi128_si512(_mm_loadu_si128(from[0].cast()));
        let second = _mm512_inserti32x4::<1>(first, _mm_loadu_si128(from[1].cast()));
        let third = _mm512_inserti32x4::<2>(second, _mm_loadu_si128(from[2].cast()));
        _mm512_inserti32x4::<3>(third, _mm_loadu_si128(from[3].cast()))
    }
}

/// 32 bytes of each of four rows: the first 16 of all, and the second.
///
/// # Safety
/// As above.
#[inline(always)]
pub unsafe fn gather_32(from: [*const u8; 4]) -> [__m512i; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let (a, b) = (_mm256_loadu_si256(from[0].cast()), _mm256_loadu_si256(from[1].cast()));
        let (c, d) = (_mm256_loadu_si256(from[2].cast()), _mm256_loadu_si256(from[3].cast()));
        let first = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b);
        let second = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(c), d);
        [_mm512_shuffle_i32x4::<0x88>(first, second), _mm512_shuffle_i32x4::<0xdd>(first, second)]
    }
}

/// 64 bytes of each of four rows, 16 of all after the other.
///
/// # Safety
/// As above.
#[inline(always)]
pub unsafe fn gather_64(from: [*const u8; 4]) -> [__m512i; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        let (a, b) = (_mm512_loadu_si512(from[0].cast()), _mm512_loadu_si512(from[1].cast()));
        let (c, d) = (_mm512_loadu_si512(from[2].cast()), _mm512_loadu_si512(from[3].cast()));
        let (low, high) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xee>(a, b));
        let (others_low, others_high) = (_mm512_shuffle_i32x4::<0x44>(c, d), _mm512_shuffle_i32x4::<0xee>(c, d));
        [
            _mm512_shuffle_i32x4::<0x88>(low, others_low),
            _mm512_shuffle_i32x4::<0xdd>(low, others_low),
            _mm512_shuffle_i32x4::<0x88>(high, others_high),
            _mm512_shuffle_i32x4::<0xdd>(high, others_high),
        ]
    }
}

/// Four bytes, or a number, of 8 rows, each in two lanes side by side: of two fours of rows those at `index` of their 16 bytes.
///
/// # Safety
/// The CPU has AVX-512 F.
#[inline(always)]
pub unsafe fn twice(index: usize, even: __m512i, odd: __m512i) -> __m512i {
    // SAFETY: the caller's promise; the types are of one size.
    unsafe {
        let (even, odd) = (_mm512_castsi512_ps(even), _mm512_castsi512_ps(odd));
        _mm512_castps_si512(match index {
            0 => _mm512_shuffle_ps::<0x00>(even, odd),
            1 => _mm512_shuffle_ps::<0x55>(even, odd),
            2 => _mm512_shuffle_ps::<0xaa>(even, odd),
            _ => _mm512_shuffle_ps::<0xff>(even, odd),
        })
    }
}

/// Numbers of 16 rows, each in two lanes side by side.
///
/// # Safety
/// As above.
#[inline(always)]
pub unsafe fn doubled(x: __m512) -> [__m512; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let first = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
        let second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
        [_mm512_permutexvar_ps(first, x), _mm512_permutexvar_ps(second, x)]
    }
}

/// In turn for the even and the odd element of a pair.
///
/// # Safety
/// As above.
#[inline(always)]
pub unsafe fn in_turn(even: usize, odd: usize) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe { _mm512_set1_epi64((odd << 32 | even) as i64) }
}

/// Pairs of 16 rows, rounded.
///
/// # Safety
/// The CPU has AVX-512 with pairs of bfloat16.
#[inline(always)]
pub unsafe fn rounded(first: __m512, second: __m512) -> __m512i {
    // SAFETY: the caller's promise; the types are of one size.
    unsafe { transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first)) }
}

impl Staged {
    /// Two vectors of four bytes of 8 rows each, twice: those at `index` of bytes `16 part..` of the rows of a half.
    ///
    /// # Safety
    /// The CPU has AVX-512 F.
    #[inline(always)]
    pub unsafe fn dwords(&self, part: usize, index: usize, half: usize) -> [__m512i; 2] {
        let fours = &self.0[part];
        let first = 4 * half;
        // SAFETY: the caller's promise.
        unsafe { [twice(index, fours[first], fours[first + 1]), twice(index, fours[first + 2], fours[first + 3])] }
    }
}

/// The 16 numbers of a table at codes that shifts bring to the lowest four bits, the only ones at which a permutation looks.
///
/// # Safety
/// The CPU has AVX-512 F.
#[inline(always)]
pub unsafe fn look_up(table: &[f32; 16], codes: __m512i, shifts: __m512i) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_permutexvar_ps(_mm512_srlv_epi32(codes, shifts), _mm512_loadu_ps(table.as_ptr())) }
}

/// What [`biased`] adds to a signed byte.
pub const BIAS: f32 = 32768.0 + 128.0;

/// Of each lane the signed byte that a rotation brings to the second lowest, plus [`BIAS`]: with its sign turned it is the last
/// bits of a number's fraction.
///
/// # Safety
/// The CPU has AVX-512 F.
#[inline(always)]
pub unsafe fn biased(codes: __m512i, rotations: __m512i) -> __m512 {
    const SIGN: u32 = 0x8000;
    // SAFETY: the caller's promise.
    unsafe {
        let bits = _mm512_set1_epi32((32768.0f32.to_bits() | SIGN).cast_signed());
        let byte = _mm512_set1_epi32(0xff00);
        let codes = _mm512_rolv_epi32(codes, rotations);
        // bits ^ codes & byte
        _mm512_castsi512_ps(_mm512_ternarylogic_epi32::<0x78>(bits, codes, byte))
    }
}
