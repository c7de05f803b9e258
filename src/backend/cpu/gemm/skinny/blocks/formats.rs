//! Rows of each format: how codes and scales lie, and what codes stand for.

use std::arch::x86_64::*;
use std::mem::transmute;

use super::super::COLUMNS;
use super::ahead::Ahead;
use super::registers::{
    BIAS, ByRow, Bytes, NO_CODES, QUADS, Rows, STEP, Staged, biased, doubled, gather_16, gather_32, gather_64, in_turn,
    look_up, rounded, rows_of, starts, twice,
};
use crate::quantization::{BlockFormat, INT8_STEP, NF4_VALUES, QuantizedMatrix, Scales};

/// No scales yet.
// SAFETY: any bits are a vector of numbers.
const NO_SCALES: ByRow = unsafe { transmute([0u8; size_of::<ByRow>()]) };

/// What a signed byte stands for.
trait Scaled {
    /// Of biased bytes of 8 rows.
    ///
    /// # Safety
    /// The CPU has AVX-512 F.
    unsafe fn scaled(&self, half: usize, eight: usize, biased: __m512) -> __m512;
}

/// Four pairs of signed bytes of a half, the first of which are the `four`-th of 8 along k.
///
/// # Safety
/// The CPU has AVX-512 with pairs of bfloat16.
#[inline(always)]
unsafe fn pairs_of_bytes(scale: &impl Scaled, codes: &Staged, four: usize, half: usize) -> [__m512i; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut pairs = [NO_CODES; 4];
        for (i, pair) in pairs.iter_mut().enumerate() {
            let codes = codes.dwords(four / 2, four % 2 * 2 + i / 2, half);
            let rotations = if i % 2 == 0 { in_turn(8, 0) } else { in_turn(24, 16) };
            let first = scale.scaled(half, 0, biased(codes[0], rotations));
            *pair = rounded(first, scale.scaled(half, 1, biased(codes[1], rotations)));
        }
        pairs
    }
}

/// NF4 in blocks of 64.
pub struct Nf4<'a, const NESTED: bool> {
    codes: Bytes,
    /// The block of each row with which it begins, the last of these, and how many blocks there are.
    blocks: [usize; COLUMNS],
    last: usize,
    count: usize,
    matrix: &'a QuantizedMatrix<'a>,
    absmax: *const f32,
    nested: Nested,
    /// Of the rows that come next what is stored of the scales.
    ahead: Ahead,
    /// Of four blocks: of fours of rows as they are gathered, and of each block.
    gathered: [__m512i; QUADS],
    scales: [ByRow; 4],
    block: usize,
}

/// Scales that are quantised themselves.
#[derive(Clone, Copy)]
struct Nested {
    codes: *const u8,
    map: *const f32,
    offset: f32,
    /// The logarithm of how many share a scale.
    shift: u32,
}

impl<'a, const NESTED: bool> Nf4<'a, NESTED> {
    /// Bytes of what is stored of a block's scale.
    const SCALE: usize = if NESTED { 1 } else { size_of::<f32>() };

    #[inline(always)]
    pub fn new(matrix: &'a QuantizedMatrix<'a>, rows: &[[usize; COLUMNS]; 2], range: [usize; 2]) -> Self {
        let none = Nested { codes: std::ptr::null(), map: std::ptr::null(), offset: 0.0, shift: 0 };
        let (absmax, nested) = match matrix.scales {
            Scales::Nested { codes, map, absmax, offset, block } => {
                (absmax, Nested { codes: codes.as_ptr(), map: map.as_ptr(), offset, shift: block.trailing_zeros() })
            }
            Scales::Absmax(absmax) | Scales::Factor(absmax) => (absmax, none),
            Scales::Inline => panic!("skinny: NF4 with its scales among the codes"),
        };
        let (first, pitch) = (range[0] / STEP, matrix.columns / STEP);
        let (mut blocks, mut last) = ([0; COLUMNS], 0);
        for (block, row) in blocks.iter_mut().zip(&rows[0]) {
            *block = row * pitch + first;
            last = last.max(*block);
        }
        let scales: *const u8 = if NESTED { nested.codes } else { absmax.as_ptr().cast() };
        let scales = scales.wrapping_add(first * Self::SCALE);
        let [these, next] = [0, 1].map(|i| starts(scales, pitch * Self::SCALE, &rows[i]));
        Self {
            codes: Bytes::new(matrix, rows, range),
            blocks,
            last,
            count: matrix.stored_rows * matrix.columns / STEP,
            matrix,
            absmax: absmax.as_ptr(),
            nested,
            ahead: Ahead::new(&these, &next, range[1] / STEP * Self::SCALE),
            gathered: [NO_CODES; QUADS],
            scales: [NO_SCALES; 4],
            block: 0,
        }
    }

    /// # Safety
    /// There is such a block.
    #[inline(always)]
    unsafe fn absmax(&self, block: usize) -> f32 {
        debug_assert!(block < self.matrix.stored_rows * self.matrix.columns / STEP);
        // SAFETY: the matrix was checked: it has a scale for every block, in each of which codes are bytes.
        unsafe {
            if !NESTED {
                return *self.absmax.add(block);
            }
            let code = *self.nested.codes.add(block);
            *self.nested.map.add(usize::from(code)) * *self.absmax.add(block >> self.nested.shift) + self.nested.offset
        }
    }

    /// The scales of four blocks, from that of a step on, of a four of rows; zeros where the matrix has no more blocks.
    ///
    /// # Safety
    /// The rows have such a step, and the CPU has AVX-512 F.
    #[inline(always)]
    unsafe fn gather_scales(&self, quad: usize, step: usize) -> __m512i {
        let rows = rows_of(quad);
        // SAFETY: the caller's promise; blocks that do not exist are not read.
        unsafe {
            if self.last + step + 4 <= self.count {
                let first = rows.map(|row| self.blocks[row] + step);
                if !NESTED {
                    return gather_16(first.map(|first| self.absmax.add(first).cast()));
                }
                let shift = self.nested.shift;
                if first.iter().all(|first| first >> shift == (first + 3) >> shift) {
                    return self.nested_scales(first);
                }
            }
            let mut some = [[0.0f32; 4]; 4];
            for i in 0..4 {
                let first = self.blocks[rows[i]] + step;
                for (b, absmax) in some[i].iter_mut().enumerate().take(self.count - first) {
                    *absmax = self.absmax(first + b);
                }
            }
            _mm512_loadu_si512(some.as_ptr().cast())
        }
    }

    /// Four scales each from four blocks on that are quantised, where the four share what multiplies them.
    ///
    /// # Safety
    /// There are such blocks, and the CPU has AVX-512 F.
    #[inline(always)]
    unsafe fn nested_scales(&self, first: [usize; 4]) -> __m512i {
        let Nested { codes, map, offset, shift } = self.nested;
        // SAFETY: as for one block.
        unsafe {
            let mut values = [[0.0; 4]; 4];
            for (values, first) in values.iter_mut().zip(first) {
                for (b, value) in values.iter_mut().enumerate() {
                    *value = *map.add(usize::from(*codes.add(first + b)));
                }
            }
            let [a, b, c, d] = values;
            let values = _mm512_setr_ps(
                a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3],
            );
            let [a, b, c, d] = first.map(|first| *self.absmax.add(first >> shift));
            let absmax = _mm512_setr_ps(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d);
            _mm512_castps_si512(_mm512_add_ps(_mm512_mul_ps(values, absmax), _mm512_set1_ps(offset)))
        }
    }
}

impl<const NESTED: bool> Rows for Nf4<'_, NESTED> {
    #[inline(always)]
    unsafe fn stage(&mut self, quad: usize, step: usize, to: &mut Staged) {
        // SAFETY: the caller's promise.
        unsafe {
            let at = STEP / 2 * step;
            [to.0[0][quad], to.0[1][quad]] = gather_32(self.codes.at(quad, at));
            self.codes.ahead.prefetch(4 * STEP / 2);
            if step.is_multiple_of(4) {
                self.gathered[quad] = self.gather_scales(quad, step);
            }
            if quad == 0 {
                self.ahead.prefetch(COLUMNS * Self::SCALE);
            }
        }
    }

    #[inline(always)]
    unsafe fn begin(&mut self, step: usize) {
        self.block = step % 4;
        if self.block > 0 {
            return;
        }
        for (block, scales) in self.scales.iter_mut().enumerate() {
            for (scale, fours) in scales.as_flattened_mut().iter_mut().zip(self.gathered.as_chunks::<2>().0) {
                // SAFETY: the caller's promise.
                *scale = unsafe { _mm512_castsi512_ps(twice(block, fours[0], fours[1])) };
            }
        }
    }

    #[inline(always)]
    unsafe fn pairs<const FOUR: usize>(&self, codes: &Staged, half: usize) -> [__m512i; 4] {
        let scales = &self.scales[self.block % 4][half];
        // SAFETY: the caller's promise.
        unsafe {
            let codes = codes.dwords(FOUR / 4, FOUR % 4, half);
            let mut pairs = [NO_CODES; 4];
            for (i, pair) in pairs.iter_mut().enumerate() {
                // A byte is a pair, the first in its high half.
                let shifts = in_turn(8 * i + 4, 8 * i);
                let first = _mm512_mul_ps(look_up(&NF4_VALUES, codes[0], shifts), scales[0]);
                *pair = rounded(first, _mm512_mul_ps(look_up(&NF4_VALUES, codes[1], shifts), scales[1]));
            }
            pairs
        }
    }
}

/// Signed bytes with a scale a row; `SHORT` if these are numbers of 15 bits at most, as those that bitsandbytes makes are: f16.
pub struct Int8<const SHORT: bool> {
    codes: Bytes,
    factors: [f32; COLUMNS],
    /// The factors, and of short ones their products with [`BIAS`], a number of 9 bits: these are exact.
    by_row: [ByRow; 2],
    /// What multiplies the products.
    step: f32,
}

/// Whether the factors of rows have 15 significant bits at most.
pub fn are_short(matrix: &QuantizedMatrix<'_>, rows: &[usize; COLUMNS]) -> bool {
    let all = rows.iter().fold(0, |all, &row| all | matrix.absmax(row).to_bits());
    all.trailing_zeros() >= f32::MANTISSA_DIGITS - 15
}

impl<const SHORT: bool> Int8<SHORT> {
    #[inline(always)]
    pub fn new(matrix: &QuantizedMatrix<'_>, rows: &[[usize; COLUMNS]; 2], range: [usize; 2]) -> Self {
        // A product with 1 is what it was.
        let step = if matches!(matrix.scales, Scales::Factor(_)) { 1.0 } else { INT8_STEP };
        let mut factors = [0.0; COLUMNS];
        for (factor, &row) in factors.iter_mut().zip(&rows[0]) {
            *factor = matrix.absmax(row);
        }
        Self { codes: Bytes::new(matrix, rows, range), factors, by_row: [NO_SCALES; 2], step }
    }
}

impl<const SHORT: bool> Scaled for Int8<SHORT> {
    #[inline(always)]
    unsafe fn scaled(&self, half: usize, eight: usize, biased: __m512) -> __m512 {
        let (factor, product) = (self.by_row[0][half][eight], self.by_row[1][half][eight]);
        // SAFETY: the caller's promise.
        unsafe {
            let scaled = match SHORT {
                // The exact product of code and factor, as the difference is rounded once.
                true => _mm512_fmsub_ps(biased, factor, product),
                false => _mm512_mul_ps(_mm512_sub_ps(biased, _mm512_set1_ps(BIAS)), factor),
            };
            _mm512_mul_ps(scaled, _mm512_set1_ps(self.step))
        }
    }
}

impl<const SHORT: bool> Rows for Int8<SHORT> {
    #[inline(always)]
    unsafe fn stage(&mut self, quad: usize, step: usize, to: &mut Staged) {
        // SAFETY: the caller's promise.
        unsafe {
            self.codes.ahead.prefetch(4 * STEP);
            let parts = gather_64(self.codes.at(quad, STEP * step));
            to.0.iter_mut().zip(parts).for_each(|(to, part)| to[quad] = part);
        }
    }

    #[inline(always)]
    unsafe fn begin(&mut self, step: usize) {
        let [factors, products] = &mut self.by_row;
        for (half, (factors, products)) in
            factors.iter_mut().zip(products).enumerate().take(if step == 0 { 2 } else { 0 })
        {
            // SAFETY: the caller's promise; there are 32 factors.
            unsafe {
                *factors = doubled(_mm512_loadu_ps(self.factors[16 * half..].as_ptr()));
                let bias = _mm512_set1_ps(BIAS);
                *products = [_mm512_mul_ps(factors[0], bias), _mm512_mul_ps(factors[1], bias)];
            }
        }
    }

    #[inline(always)]
    unsafe fn pairs<const FOUR: usize>(&self, codes: &Staged, half: usize) -> [__m512i; 4] {
        // SAFETY: the caller's promise.
        unsafe { pairs_of_bytes(self, codes, FOUR, half) }
    }
}

/// Blocks of 32 signed bytes behind their scale.
pub struct Q8_0 {
    blocks: Bytes,
    /// Of the two blocks of a step the scales, and their products with [`BIAS`]: numbers of 11 and 9 bits, so that these are exact.
    scales: [[ByRow; 2]; 2],
}

/// Bytes of its blocks.
const Q8_0_BYTES: usize = BlockFormat::Q8_0.block_bytes();

impl Q8_0 {
    #[inline(always)]
    pub fn new(matrix: &QuantizedMatrix<'_>, rows: &[[usize; COLUMNS]; 2], range: [usize; 2]) -> Self {
        Self { blocks: Bytes::new(matrix, rows, range), scales: [[NO_SCALES; 2]; 2] }
    }
}

/// The scales of a block of [`Q8_0`].
struct OfBlock<'a>(&'a [ByRow; 2]);

impl Scaled for OfBlock<'_> {
    #[inline(always)]
    unsafe fn scaled(&self, half: usize, eight: usize, biased: __m512) -> __m512 {
        let [scales, products] = self.0;
        // SAFETY: the caller's promise. The exact product of code and scale, as the difference is rounded once.
        unsafe { _mm512_fmsub_ps(biased, scales[half][eight], products[half][eight]) }
    }
}

impl Rows for Q8_0 {
    #[inline(always)]
    unsafe fn stage(&mut self, quad: usize, step: usize, to: &mut Staged) {
        // SAFETY: the caller's promise.
        unsafe {
            let at = 2 * Q8_0_BYTES * step;
            self.blocks.ahead.prefetch(4 * 2 * Q8_0_BYTES);
            [to.0[0][quad], to.0[1][quad]] = gather_32(self.blocks.at(quad, at + 2));
            [to.0[2][quad], to.0[3][quad]] = gather_32(self.blocks.at(quad, at + Q8_0_BYTES + 2));
        }
    }

    #[inline(always)]
    unsafe fn begin(&mut self, step: usize) {
        for (block, [scales, products]) in self.scales.iter_mut().enumerate() {
            for (half, (scales, products)) in scales.iter_mut().zip(products).enumerate() {
                let mut halves = [0u16; 16];
                for (i, to) in halves.iter_mut().enumerate() {
                    // SAFETY: the caller's promise; each of the rows has the block.
                    let at = unsafe { self.blocks.rows[16 * half + i].add((2 * step + block) * Q8_0_BYTES) };
                    // SAFETY: a block begins with two bytes of its scale.
                    *to = u16::from_le_bytes(unsafe { at.cast::<[u8; 2]>().read() });
                }
                // SAFETY: the caller's promise; 16 are read.
                unsafe {
                    *scales = doubled(_mm512_cvtph_ps(_mm256_loadu_si256(halves.as_ptr().cast())));
                    let bias = _mm512_set1_ps(BIAS);
                    *products = [_mm512_mul_ps(scales[0], bias), _mm512_mul_ps(scales[1], bias)];
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn pairs<const FOUR: usize>(&self, codes: &Staged, half: usize) -> [__m512i; 4] {
        // SAFETY: the caller's promise.
        unsafe { pairs_of_bytes(&OfBlock(&self.scales[FOUR / 4]), codes, FOUR, half) }
    }
}

/// Blocks of 256 codes of 4 bits, in 8 parts with their own scale and minimum.
pub struct Q4K {
    blocks: Bytes,
    /// Of each part of a block the scales and the minima: numbers of 11 and 6 bits multiplied, so that these are exact.
    parts: [[ByRow; 2]; 8],
    /// The first part of the step.
    part: usize,
}

/// Bytes of its blocks, and steps of one.
const Q4_K_BYTES: usize = BlockFormat::Q4K.block_bytes();
const Q4_K_STEPS: usize = BlockFormat::Q4K.block_values() / STEP;

impl Q4K {
    #[inline(always)]
    pub fn new(matrix: &QuantizedMatrix<'_>, rows: &[[usize; COLUMNS]; 2], range: [usize; 2]) -> Self {
        Self { blocks: Bytes::new(matrix, rows, range), parts: [[NO_SCALES; 2]; 8], part: 0 }
    }

    /// Makes the scales and minima of 8 rows from the 16 bytes with which a block begins, as
    /// [`q4_k`](crate::quantization::q4_k) does of one.
    ///
    /// # Safety
    /// The rows have such a block, and the CPU has AVX-512 F.
    #[inline(always)]
    unsafe fn set_parts(&mut self, eight: usize, block: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let at = block * Q4_K_BYTES;
            let even = gather_16(self.blocks.at(2 * eight, at));
            let odd = gather_16(self.blocks.at(2 * eight + 1, at));
            let (both, first) = (twice(0, even, odd), twice(1, even, odd));
            let (second, third) = (twice(2, even, odd), twice(3, even, odd));
            let d = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(both));
            let dmin = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(both)));
            // 6 bits of a byte, or 4 with the 2 highest of another above them.
            let six = |x: __m512i| _mm512_and_si512(x, _mm512_set1_epi8(63));
            let high = |x: __m512i| _mm512_and_si512(_mm512_srli_epi32::<2>(x), _mm512_set1_epi8(48));
            let four = |x: __m512i| _mm512_and_si512(x, _mm512_set1_epi8(15));
            let scales = [six(first), _mm512_or_si512(four(third), high(first))];
            let minima = [six(second), _mm512_or_si512(four(_mm512_srli_epi32::<4>(third)), high(second))];
            for (part, to) in self.parts.iter_mut().enumerate() {
                let shift = _mm512_set1_epi32(8 * (part % 4) as i32);
                let scale = _mm512_and_si512(_mm512_srlv_epi32(scales[part / 4], shift), _mm512_set1_epi32(255));
                let minimum = _mm512_and_si512(_mm512_srlv_epi32(minima[part / 4], shift), _mm512_set1_epi32(255));
                to[0].as_flattened_mut()[eight] = _mm512_mul_ps(d, _mm512_cvtepi32_ps(scale));
                to[1].as_flattened_mut()[eight] = _mm512_mul_ps(dmin, _mm512_cvtepi32_ps(minimum));
            }
        }
    }
}

impl Rows for Q4K {
    #[inline(always)]
    unsafe fn stage(&mut self, quad: usize, step: usize, to: &mut Staged) {
        // SAFETY: the caller's promise.
        unsafe {
            let at = step / Q4_K_STEPS * Q4_K_BYTES + 16 + step % Q4_K_STEPS * (STEP / 2);
            [to.0[0][quad], to.0[1][quad]] = gather_32(self.blocks.at(quad, at));
            self.blocks.ahead.prefetch(4 * Q4_K_BYTES / Q4_K_STEPS);
        }
    }

    #[inline(always)]
    unsafe fn begin(&mut self, step: usize) {
        self.part = step % Q4_K_STEPS * 2;
        for eight in 0..if self.part == 0 { COLUMNS / 8 } else { 0 } {
            // SAFETY: the caller's promise.
            unsafe { self.set_parts(eight, step / Q4_K_STEPS) };
        }
    }

    #[inline(always)]
    unsafe fn pairs<const FOUR: usize>(&self, codes: &Staged, half: usize) -> [__m512i; 4] {
        const CODES: [f32; 16] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];
        let [scales, minima] = &self.parts[(self.part + FOUR / 4) % 8];
        let (scales, minima) = (&scales[half], &minima[half]);
        // SAFETY: the caller's promise.
        unsafe {
            let mut pairs = [NO_CODES; 4];
            for (i, pair) in pairs.iter_mut().enumerate() {
                let codes = codes.dwords(FOUR % 4 / 2, FOUR % 2 * 2 + i / 2, half);
                // The lower halves of bytes are the first part's codes.
                let shift = FOUR / 4 * 4 + i % 2 * 16;
                let shifts = in_turn(shift, shift + 8);
                // The product of code and scale is exact, so that the difference is rounded as elsewhere.
                let first = _mm512_fmsub_ps(look_up(&CODES, codes[0], shifts), scales[0], minima[0]);
                *pair = rounded(first, _mm512_fmsub_ps(look_up(&CODES, codes[1], shifts), scales[1], minima[1]));
            }
            pairs
        }
    }
}
