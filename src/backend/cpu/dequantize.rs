//! Values of quantised matrices, by loops of every instruction set: bit for bit those of [`QuantizedMatrix::dequantize_row`].

use half::bf16;

use super::interleaved::Interleaved;
#[cfg(target_arch = "x86_64")]
use super::isa::InstructionSet;
use super::simd::{self, Isa, multiversion};
use crate::arch::Dtype;
use crate::quantization::{BlockFormat, NF4_VALUES, QuantizedMatrix};

/// Elements that are decoded to single precision at once where they are wanted narrower: they stay in the first-level cache.
const CHUNK: usize = 512;

/// A quantised matrix, however it lies.
#[derive(Clone, Copy)]
pub enum Coded<'a> {
    /// Row after row.
    Rows(QuantizedMatrix<'a>),
    /// In groups of rows.
    Interleaved(&'a Interleaved),
}

impl Coded<'_> {
    /// `[rows, columns]`.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Self::Rows(matrix) => [matrix.rows, matrix.columns],
            Self::Interleaved(matrix) => matrix.shape(),
        }
    }

    /// `out = ` elements of a row from element `from` on.
    ///
    /// # Panics
    /// If the matrix has no such row or element.
    pub fn dequantize(&self, isa: Isa, out: &mut [f32], row: usize, from: usize) {
        match self {
            Self::Rows(matrix) => dequantize(isa, out, matrix, row, from),
            Self::Interleaved(matrix) => {
                let mut narrow = [bf16::ZERO; CHUNK];
                for (part, out) in out.chunks_mut(CHUNK).enumerate() {
                    let narrow = &mut narrow[..out.len()];
                    matrix.read(isa, narrow, row, from + part * CHUNK);
                    simd::widen(isa, out, narrow);
                }
            }
        }
    }

    /// The same, rounded to bfloat16.
    ///
    /// # Panics
    /// As above.
    pub fn dequantize_bf16(&self, isa: Isa, out: &mut [bf16], row: usize, from: usize) {
        match self {
            Self::Rows(matrix) => dequantize_bf16(isa, out, matrix, row, from),
            Self::Interleaved(matrix) => matrix.read(isa, out, row, from),
        }
    }
}

multiversion! {
    fn by_loops[](out: &mut [f32], matrix: &QuantizedMatrix<'_>, row: usize, from: usize) {
        matrix.dequantize_row(row, from..from + out.len(), out);
    }
}

/// `out = ` elements of a row from element `from` on.
///
/// # Panics
/// If the matrix has no such row or element.
pub fn dequantize(isa: Isa, out: &mut [f32], matrix: &QuantizedMatrix<'_>, row: usize, from: usize) {
    let BlockFormat::Nf4 { block } = matrix.format else { return by_loops(isa, out, matrix, row, from) };
    let inside = row < matrix.rows && from.checked_add(out.len()).is_some_and(|end| end <= matrix.columns);
    assert!(inside, "dequantize: {} elements from {from} of row {row} of {matrix:?}", out.len());
    nf4(isa, out, matrix, block as usize, matrix.stored_row(row) * matrix.columns + from);
    if let Some(dtype @ (Dtype::BF16 | Dtype::F16)) = matrix.rounding {
        simd::rounding::<f32>(dtype)(isa, out);
    }
}

/// The same, rounded to bfloat16: where the instruction set rounds to it and blocks allow that, a unit at a time in registers.
fn dequantize_bf16(isa: Isa, out: &mut [bf16], matrix: &QuantizedMatrix<'_>, row: usize, from: usize) {
    #[cfg(target_arch = "x86_64")]
    if isa.has_pairs() && in_units(matrix, row, [from, out.len()]) {
        let at = matrix.stored_row(row) * matrix.columns + from;
        // SAFETY: an `Isa` is proof that the CPU has the instructions.
        return unsafe { x86::units_to_bf16(out.as_chunks_mut().0, matrix, at) };
    }
    let mut wide = [0.0; CHUNK];
    for (part, out) in out.chunks_mut(CHUNK).enumerate() {
        let wide = &mut wide[..out.len()];
        dequantize(isa, wide, matrix, row, from + part * CHUNK);
        simd::narrow(isa, out, wide);
    }
}

/// Elements that share their scales in every format that is decoded a unit at a time.
#[cfg(target_arch = "x86_64")]
const UNIT: usize = 32;

/// Whether elements of a row, from one on and so many, are there and whole units of a format that is decoded so.
#[cfg(target_arch = "x86_64")]
fn in_units(matrix: &QuantizedMatrix<'_>, row: usize, [from, len]: [usize; 2]) -> bool {
    let format = match matrix.format {
        BlockFormat::Nf4 { block } => (block as usize).is_multiple_of(UNIT),
        BlockFormat::Int8Rows | BlockFormat::Q8_0 | BlockFormat::Q4K => true,
        _ => false,
    };
    let inside = row < matrix.rows && from.checked_add(len).is_some_and(|end| end <= matrix.columns);
    let whole = [matrix.columns, from, len].iter().all(|x| x.is_multiple_of(UNIT));
    format && inside && whole && matches!(matrix.rounding, None | Some(Dtype::F32 | Dtype::BF16))
}

/// `out = ` elements from element `at` of the stored matrix on, of blocks of `size`.
fn nf4(isa: Isa, mut out: &mut [f32], matrix: &QuantizedMatrix<'_>, size: usize, mut at: usize) {
    while !out.is_empty() {
        let len = (size - at % size).min(out.len());
        let (part, rest) = out.split_at_mut(len);
        block_of_nf4(isa, part, matrix.codes, at, matrix.absmax(at / size));
        (out, at) = (rest, at + len);
    }
}

/// `out = ` the values of codes from code `at` on, all of one block.
fn block_of_nf4(isa: Isa, out: &mut [f32], codes: &[u8], at: usize, absmax: f32) {
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if at.is_multiple_of(2) {
        let codes = &codes[at / 2..];
        assert!(codes.len() >= out.len() / 2, "nf4: {} codes of {} bytes", out.len(), codes.len());
        done = match isa.of_loops() {
            // SAFETY: there are codes of all, by the check above, and an `Isa` is proof that the CPU has the instructions.
            InstructionSet::Avx512 => unsafe { x86::nf4_avx512(out, codes, absmax) },
            // SAFETY: as above.
            InstructionSet::Avx2 => unsafe { x86::nf4_avx2(out, codes, absmax) },
            _ => 0,
        };
    }
    let _ = isa;
    for (i, out) in out.iter_mut().enumerate().skip(done) {
        let byte = codes[(at + i) / 2];
        let code = if (at + i).is_multiple_of(2) { byte >> 4 } else { byte & 15 };
        *out = NF4_VALUES[code as usize] * absmax;
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::mem::transmute;

    use half::bf16;

    use super::UNIT;
    use crate::quantization::{BlockFormat, INT8_STEP, NF4_VALUES, QuantizedMatrix, Scales};

    /// `out = ` the units from element `at` of the stored matrix on, rounded to bfloat16.
    ///
    /// # Panics
    /// If they are not there, or of a format that is not decoded so.
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub fn units_to_bf16(out: &mut [[bf16; UNIT]], matrix: &QuantizedMatrix<'_>, at: usize) {
        let codes = matrix.codes;
        let units = out.iter_mut().zip((at..).step_by(UNIT));
        match matrix.format {
            BlockFormat::Nf4 { block } => {
                for (out, at) in units {
                    let scale = _mm512_set1_ps(matrix.absmax(at / block as usize));
                    *out = rounded(nf4(part(codes, at / 2)).map(|values| _mm512_mul_ps(values, scale)));
                }
            }
            BlockFormat::Int8Rows => {
                // A product with 1 is what it was.
                let step = if matches!(matrix.scales, Scales::Factor(_)) { 1.0 } else { INT8_STEP };
                let (factor, step) = (_mm512_set1_ps(matrix.absmax(at / matrix.columns)), _mm512_set1_ps(step));
                for (out, at) in units {
                    let values = signed(part(codes, at));
                    *out = rounded(values.map(|values| _mm512_mul_ps(_mm512_mul_ps(values, factor), step)));
                }
            }
            BlockFormat::Q8_0 => {
                for (out, at) in units {
                    let block: &[u8; BlockFormat::Q8_0.block_bytes()] = part(codes, at / UNIT * 34);
                    let scale = _mm512_cvtph_ps(_mm256_set1_epi16(half(block, 0)));
                    *out = rounded(signed(part(block, 2)).map(|values| _mm512_mul_ps(values, scale)));
                }
            }
            BlockFormat::Q4K => {
                let mut factors = [0.0; 16];
                for (i, (out, at)) in units.enumerate() {
                    let block: &[u8; BlockFormat::Q4K.block_bytes()] = part(codes, at / 256 * 144);
                    if i == 0 || at.is_multiple_of(256) {
                        factors = scales_and_minima(block);
                    }
                    let index = at % 256 / UNIT;
                    let (scale, minimum) = (_mm512_set1_ps(factors[index]), _mm512_set1_ps(factors[8 + index]));
                    let values = nibbles(part(block, 16 + index / 2 * UNIT), index % 2 == 1);
                    // The product is exact, so that the difference is rounded as elsewhere.
                    *out = rounded(values.map(|values| _mm512_fmsub_ps(values, scale, minimum)));
                }
            }
            other => panic!("dequantize: {other} a unit at a time"),
        }
    }

    /// So many bytes from byte `at` on.
    fn part<const N: usize>(bytes: &[u8], at: usize) -> &[u8; N] {
        bytes[at..].first_chunk().expect("a unit's bytes")
    }

    /// The number in half precision at `at`, its bits.
    fn half(block: &[u8], at: usize) -> i16 {
        i16::from_le_bytes(*part(block, at))
    }

    /// The scales of the 8 parts of a block of `Q4_K`, and behind them what is taken off: all at once what
    /// [`q4_k`](crate::quantization::q4_k) makes of its first 16 bytes.
    #[target_feature(enable = "avx2,avx512f")]
    fn scales_and_minima(block: &[u8]) -> [f32; 16] {
        const SIX: u32 = 0x3f3f_3f3f;
        const FOUR: u32 = 0x0f0f_0f0f;
        const HIGH: u32 = 0x3030_3030;
        let [first, second, third] = [4, 8, 12].map(|at| u32::from_le_bytes(*part(block, at)));
        let scales = [first & SIX, third & FOUR | first >> 2 & HIGH].map(u32::cast_signed);
        let minima = [second & SIX, third >> 4 & FOUR | second >> 2 & HIGH].map(u32::cast_signed);
        let codes = _mm_setr_epi32(scales[0], scales[1], minima[0], minima[1]);
        let halves = _mm256_set_m128i(_mm_set1_epi16(half(block, 2)), _mm_set1_epi16(half(block, 0)));
        let factors = _mm512_mul_ps(_mm512_cvtph_ps(halves), _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)));
        // SAFETY: the types are of one size, and any bits are numbers.
        unsafe { transmute(factors) }
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn rounded([first, second]: [__m512; 2]) -> [bf16; UNIT] {
        // SAFETY: the types are of one size, and any bits are numbers.
        unsafe { transmute(_mm512_cvtne2ps_pbh(second, first)) }
    }

    /// Signed bytes as numbers.
    #[target_feature(enable = "avx512f")]
    fn signed(codes: &[u8; UNIT]) -> [__m512; 2] {
        // SAFETY: there are as many bytes.
        let [first, second] = unsafe { [0, 16].map(|at| _mm_loadu_si128(codes.as_ptr().add(at).cast())) };
        [_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(first)), _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(second))]
    }

    /// The low or high halves of bytes as numbers.
    #[target_feature(enable = "avx2,avx512f,avx512vl")]
    fn nibbles(codes: &[u8; UNIT], high: bool) -> [__m512; 2] {
        // SAFETY: there are as many bytes.
        let bytes = unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) };
        let bytes = if high { _mm256_srli_epi16::<4>(bytes) } else { bytes };
        let bytes = _mm256_and_si256(bytes, _mm256_set1_epi8(15));
        let [first, second] = [_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes)];
        [_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(first)), _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(second))]
    }

    /// What codes of NF4 stand for.
    #[target_feature(enable = "avx512f")]
    fn nf4(codes: &[u8; UNIT / 2]) -> [__m512; 2] {
        // SAFETY: a table and shifts are 16 numbers, and of the codes 16 bytes are read.
        unsafe {
            let (table, shifts) = (_mm512_loadu_ps(NF4_VALUES.as_ptr()), _mm512_loadu_si512(SHIFTS.as_ptr().cast()));
            let codes = _mm512_broadcast_i32x4(_mm_loadu_si128(codes.as_ptr().cast()));
            let [first, second] =
                [[0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1], [2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3]]
                    .map(|order: [i32; 16]| _mm512_permutexvar_epi32(_mm512_loadu_si512(order.as_ptr().cast()), codes));
            // A permutation looks at no other bits of an index than the lowest four.
            [first, second].map(|four| _mm512_permutexvar_ps(_mm512_srlv_epi32(four, shifts), table))
        }
    }

    /// By how much four bytes are shifted so that each of their eight codes, the high half of a byte first, lies lowest.
    const SHIFTS: [i32; 16] = [4, 0, 12, 8, 20, 16, 28, 24, 4, 0, 12, 8, 20, 16, 28, 24];

    /// The values of as many codes as there are in whole vectors; how many these are.
    ///
    /// # Safety
    /// There is a code for every element, and the CPU has AVX-512 F.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn nf4_avx512(out: &mut [f32], codes: &[u8], absmax: f32) -> usize {
        let whole = out.len() - out.len() % 16;
        // SAFETY: within both by the caller's promise.
        unsafe {
            let (table, scale) = (_mm512_loadu_ps(NF4_VALUES.as_ptr()), _mm512_set1_ps(absmax));
            let shifts = _mm512_loadu_si512(SHIFTS.as_ptr().cast());
            for i in (0..whole).step_by(16) {
                let four = codes.as_ptr().add(i / 2).cast::<i32>();
                let (first, second) = (four.read_unaligned(), four.add(1).read_unaligned());
                let both = _mm512_mask_set1_epi32(_mm512_set1_epi32(first), 0xff00, second);
                // A permutation looks at no other bits of an index than the lowest four.
                let values = _mm512_permutexvar_ps(_mm512_srlv_epi32(both, shifts), table);
                _mm512_storeu_ps(out.as_mut_ptr().add(i), _mm512_mul_ps(values, scale));
            }
        }
        whole
    }

    /// As above.
    ///
    /// # Safety
    /// There is a code for every element, and the CPU has AVX2.
    #[target_feature(enable = "avx2")]
    pub unsafe fn nf4_avx2(out: &mut [f32], codes: &[u8], absmax: f32) -> usize {
        let whole = out.len() - out.len() % 8;
        // SAFETY: within both by the caller's promise.
        unsafe {
            let low = _mm256_loadu_ps(NF4_VALUES.as_ptr());
            let high = _mm256_loadu_ps(NF4_VALUES.as_ptr().add(8));
            let (scale, shifts) = (_mm256_set1_ps(absmax), _mm256_loadu_si256(SHIFTS.as_ptr().cast()));
            for i in (0..whole).step_by(8) {
                let four = codes.as_ptr().add(i / 2).cast::<i32>().read_unaligned();
                let index = _mm256_srlv_epi32(_mm256_set1_epi32(four), shifts);
                // Each permutation looks at the lowest three bits; the fourth, as a sign, says which of both counts.
                let (first, second) = (_mm256_permutevar8x32_ps(low, index), _mm256_permutevar8x32_ps(high, index));
                let values = _mm256_blendv_ps(first, second, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index)));
                _mm256_storeu_ps(out.as_mut_ptr().add(i), _mm256_mul_ps(values, scale));
            }
        }
        whole
    }
}
