//! Values of quantised matrices, by loops of every instruction set: bit for bit those of [`QuantizedMatrix::dequantize_row`].

use half::bf16;

#[cfg(target_arch = "x86_64")]
use super::isa::InstructionSet;
use super::simd::{self, Isa, multiversion};
use crate::arch::Dtype;
use crate::quantization::{BlockFormat, NF4_VALUES, QuantizedMatrix};

/// Elements that are decoded to single precision at once where they are wanted narrower: they stay in the first-level cache.
const CHUNK: usize = 512;

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

/// The same, rounded to bfloat16.
pub fn dequantize_bf16(isa: Isa, out: &mut [bf16], matrix: &QuantizedMatrix<'_>, row: usize, from: usize) {
    let mut wide = [0.0; CHUNK];
    for (part, out) in out.chunks_mut(CHUNK).enumerate() {
        let wide = &mut wide[..out.len()];
        dequantize(isa, wide, matrix, row, from + part * CHUNK);
        simd::narrow(isa, out, wide);
    }
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

    use crate::quantization::NF4_VALUES;

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
