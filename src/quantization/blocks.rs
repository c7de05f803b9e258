//! The blocks of GGUF, one after another: what ggml's `dequantize_row_*` and the `gguf` package make of them.

use half::f16;

/// The f16 that lies at `at`, widened.
#[inline(always)]
fn scale(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// `out [32] = ` the values of a block of `Q8_0`: the scale, 32 signed bytes.
#[inline(always)]
pub fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = scale(block, 0);
    for (out, &code) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(code.cast_signed()) * d;
    }
}

/// `out [32] = ` the values of a block of `Q4_0`: the scale, then elements i and i + 16 in the halves of byte i.
#[inline(always)]
pub fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = scale(block, 0);
    let (low, high) = out.split_at_mut(16);
    for ((low, high), &byte) in low.iter_mut().zip(high).zip(&block[2..]) {
        *low = d * f32::from((byte & 15).cast_signed() - 8);
        *high = d * f32::from((byte >> 4).cast_signed() - 8);
    }
}

/// `out [32] = ` the values of a block of `Q4_1`: a scale and a minimum, then as `Q4_0`.
#[inline(always)]
pub fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (scale(block, 0), scale(block, 2));
    let (low, high) = out.split_at_mut(16);
    for ((low, high), &byte) in low.iter_mut().zip(high).zip(&block[4..]) {
        *low = d * f32::from(byte & 15) + m;
        *high = d * f32::from(byte >> 4) + m;
    }
}

/// The 32 codes of 5 bits whose low four lie as in `Q4_0`, and whose fifth is bit i of 4 bytes before them.
#[inline(always)]
pub fn five_bits(packed: &[u8; 20]) -> [u8; 32] {
    let fifths = u32::from_le_bytes([packed[0], packed[1], packed[2], packed[3]]);
    std::array::from_fn(|i| {
        let byte = packed[4 + i % 16];
        let low = if i < 16 { byte & 15 } else { byte >> 4 };
        low | ((fifths >> i & 1) as u8) << 4
    })
}

/// `out [32] = ` the values of a block of `Q5_0`: the scale, and codes of 5 bits.
#[inline(always)]
pub fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = scale(block, 0);
    for (out, code) in out.iter_mut().zip(five_bits(block[2..].try_into().expect("20 bytes"))) {
        *out = d * f32::from(code.cast_signed() - 16);
    }
}

/// `out [32] = ` the values of a block of `Q5_1`: a scale and a minimum, and codes of 5 bits.
#[inline(always)]
pub fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (scale(block, 0), scale(block, 2));
    for (out, code) in out.iter_mut().zip(five_bits(block[4..].try_into().expect("20 bytes"))) {
        *out = d * f32::from(code) + m;
    }
}

/// `out [256] = ` the values of a block of `Q2_K`: 16 bytes, each the scale of a part of 16 elements and above it the minimum; codes of
/// 2 bits, four parts of 32 elements of each half in 32 bytes; and what scales and minima are multiplied by.
#[inline(always)]
pub fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (d, dmin) = (scale(block, 80), scale(block, 82));
    for (part, out) in out.chunks_exact_mut(16).enumerate() {
        let (factor, minimum) = (d * f32::from(block[part] & 15), dmin * f32::from(block[part] >> 4));
        let codes = &block[16 + part / 8 * 32 + part % 2 * 16..][..16];
        for (out, &byte) in out.iter_mut().zip(codes) {
            *out = factor * f32::from(byte >> (part % 8 / 2 * 2) & 3) - minimum;
        }
    }
}

/// The scales of the 16 parts of a block of `Q3_K`, from its 12 bytes at 96: 6 bits less 32, the low four of all first.
#[inline(always)]
pub fn q3_k_scales(block: &[u8]) -> [i8; 16] {
    let packed = &block[96..108];
    std::array::from_fn(|part| {
        let low = packed[part % 8] >> (part / 8 * 4) & 15;
        let high = packed[8 + part % 4] >> (part / 4 * 2) & 3;
        (low | high << 4).cast_signed() - 32
    })
}

/// `out [256] = ` the values of a block of `Q3_K`: 32 bytes whose bit p is the third, turned around, of elements 32 p and on; codes of 2
/// bits as in `Q2_K`; the scales of parts, and one for all.
#[inline(always)]
pub fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let (d, scales) = (scale(block, 108), q3_k_scales(block));
    for (part, out) in out.chunks_exact_mut(16).enumerate() {
        let factor = d * f32::from(scales[part]);
        let thirds = &block[part % 2 * 16..][..16];
        let codes = &block[32 + part / 8 * 32 + part % 2 * 16..][..16];
        for ((out, &byte), &third) in out.iter_mut().zip(codes).zip(thirds) {
            let code = byte >> (part % 8 / 2 * 2) & 3;
            let less = if third >> (part / 2) & 1 == 0 { 4 } else { 0 };
            *out = factor * f32::from(code.cast_signed() - less);
        }
    }
}

/// The scales and the minima of the 8 parts of a block of `Q4_K` or `Q5_K`, from its 12 bytes at 4: 6 bits each, those of
/// the last four parts with their high bits above the first four's.
#[inline(always)]
fn scales_and_minima(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut minima) = ([0; 8], [0; 8]);
    for part in 0..4 {
        let (d, m, both) = (packed[part], packed[4 + part], packed[8 + part]);
        scales[part] = d & 63;
        minima[part] = m & 63;
        scales[4 + part] = both & 15 | d >> 2 & 48;
        minima[4 + part] = both >> 4 | m >> 2 & 48;
    }
    (scales, minima)
}

/// Of each of the 8 parts of a block of `Q4_K` or `Q5_K` the factor and what is taken off.
#[inline(always)]
fn factors(block: &[u8]) -> [(f32, f32); 8] {
    let (d, dmin) = (scale(block, 0), scale(block, 2));
    let packed = block[4..16].try_into().expect("12 bytes");
    let (scales, minima) = scales_and_minima(packed);
    std::array::from_fn(|part| (d * f32::from(scales[part]), dmin * f32::from(minima[part])))
}

/// `out [256] = ` the values of a block of `Q4_K`: two scales, 12 bytes of scales and minima, and for each two parts of 32
/// elements their codes in the halves of 32 bytes, the first part's low.
#[inline(always)]
pub fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let factors = factors(block);
    for (pair, (codes, out)) in block[16..].chunks_exact(32).zip(out.chunks_exact_mut(64)).enumerate() {
        let [(d_low, m_low), (d_high, m_high)] = [factors[2 * pair], factors[2 * pair + 1]];
        let (low, high) = out.split_at_mut(32);
        for ((low, high), &byte) in low.iter_mut().zip(high).zip(codes) {
            *low = d_low * f32::from(byte & 15) - m_low;
            *high = d_high * f32::from(byte >> 4) - m_high;
        }
    }
}

/// `out [256] = ` the values of a block of `Q5_K`: as `Q4_K`, with 32 bytes before the codes whose bit p is the fifth of
/// part p's elements.
#[inline(always)]
pub fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let factors = factors(block);
    let fifths = &block[16..48];
    for (pair, (codes, out)) in block[48..].chunks_exact(32).zip(out.chunks_exact_mut(64)).enumerate() {
        let [(d_low, m_low), (d_high, m_high)] = [factors[2 * pair], factors[2 * pair + 1]];
        let (low, high) = out.split_at_mut(32);
        for (((low, high), &byte), &fifth) in low.iter_mut().zip(high).zip(codes).zip(fifths) {
            let fifth = fifth >> (2 * pair);
            *low = d_low * f32::from(byte & 15 | fifth << 4 & 16) - m_low;
            *high = d_high * f32::from(byte >> 4 | fifth << 3 & 16) - m_high;
        }
    }
}

/// `out [256] = ` the values of a block of `Q6_K`: for each half of 128 elements 64 bytes with the low 4 bits, then for
/// each half 32 bytes with the high 2, then 16 scales and one for all.
#[inline(always)]
pub fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = scale(block, 208);
    for (half, out) in out.chunks_exact_mut(128).enumerate() {
        let low = &block[64 * half..][..64];
        let high = &block[128 + 32 * half..][..32];
        let scales = &block[192 + 8 * half..][..8];
        for (quarter, out) in out.chunks_exact_mut(32).enumerate() {
            let (low, shift) = (&low[32 * (quarter % 2)..][..32], 4 * (quarter / 2));
            for (i, out) in out.iter_mut().enumerate() {
                let code = low[i] >> shift & 15 | (high[i] >> (2 * quarter) & 3) << 4;
                let factor = d * f32::from(scales[2 * quarter + i / 16].cast_signed());
                *out = factor * f32::from(code.cast_signed() - 32);
            }
        }
    }
}
