//! Numbers to codes, as the libraries of the formats make them.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::nf4::NF4_VALUES;

/// Between the values of NF4: a scaled number up to the i-th, and above those before it, has code i.
fn nf4_bounds() -> [f32; 15] {
    std::array::from_fn(|i| (NF4_VALUES[i] + NF4_VALUES[i + 1]) / 2.0)
}

/// NF4 of `values`, which begin at a block: two codes a byte, the first in the high half, and a largest magnitude for each
/// block of `block`. A last block that is not full is scaled by division, a full one by the reciprocal, as bitsandbytes
/// 0.50 does on the CPU; a block of zeros has code 7 everywhere.
///
/// # Panics
/// If `codes` and `absmax` are not as long as the values need.
pub fn encode_nf4(values: &[f32], block: usize, codes: &mut [u8], absmax: &mut [f32]) {
    assert_eq!(codes.len(), values.len().div_ceil(2), "encode_nf4: codes");
    assert_eq!(absmax.len(), values.len().div_ceil(block), "encode_nf4: absmax");
    let bounds = nf4_bounds();
    let code = |scaled: f32| bounds.partition_point(|bound| *bound < scaled) as u8;
    for ((values, codes), absmax) in values.chunks(block).zip(codes.chunks_mut(block / 2)).zip(absmax) {
        let largest = values.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let floor = largest.max(1e-38);
        let full = values.len() == block;
        *absmax = if full { largest } else { floor };
        let scaled = |x: f32| if full { x * (1.0 / floor) } else { x / floor }.clamp(-1.0, 1.0);
        for (byte, pair) in codes.iter_mut().zip(values.chunks(2)) {
            // A half without an element is that of zero.
            let low = pair.get(1).map_or(0.0, |x| scaled(*x));
            *byte = code(scaled(pair[0])) << 4 | code(low);
        }
    }
}

/// LLM.int8's codes of a row, and its largest magnitude: of the values rounded to f16, `round(x * (127 / absmax))`, ties to
/// even, as bitsandbytes does; zeros for a row of zeros.
///
/// # Panics
/// If there are not as many codes as values.
pub fn encode_int8(values: &[f32], codes: &mut [u8]) -> f32 {
    assert_eq!(values.len(), codes.len(), "encode_int8: codes");
    // Added and taken off again, it leaves no fraction of numbers below 2^22, ties to even: what a vector does at once.
    const WHOLE: f32 = 12_582_912.0;
    let mut halves = vec![f16::ZERO; values.len()];
    halves.convert_from_f32_slice(values);
    let mut rounded = vec![0.0f32; values.len()];
    halves.convert_to_f32_slice(&mut rounded);
    let absmax = rounded.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    // 127 / absmax as PyTorch divides a number by a tensor: by its reciprocal, so that ties fall as they do there.
    let factor = if absmax > 0.0 { absmax.recip() * 127.0 } else { 0.0 };
    for (code, x) in codes.iter_mut().zip(&rounded) {
        *code = (((x * factor + WHOLE) - WHOLE) as i8).cast_unsigned();
    }
    absmax
}

/// A block of `Q8_0`: `d = max |x| / 127` in f16, codes `x * (1 / d)` with the d of f32, halves away from zero, as ggml
/// does.
pub fn encode_q8_0(values: &[f32; 32], block: &mut [u8; 34]) {
    let d = values.iter().fold(0.0f32, |m, x| m.max(x.abs())) / 127.0;
    let factor = if d == 0.0 { 0.0 } else { 1.0 / d };
    block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    for (code, x) in block[2..].iter_mut().zip(values) {
        *code = ((x * factor).round() as i8).cast_unsigned();
    }
}
