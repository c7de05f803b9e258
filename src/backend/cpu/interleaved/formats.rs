//! Groups of each format: how scales and codes lie, and what codes stand for, by the operations and roundings that
//! [`QuantizedMatrix::dequantize_row`](crate::quantization::QuantizedMatrix::dequantize_row) has.

use std::arch::x86_64::*;

use super::lanes::{
    Decode, Doubled, WHOLE, Work, counting, doubled, fours, halves, joined, look_up, signed, singles, zeros,
};
use super::{COLUMNS, Interleaved, Layout, Nested, UNIT, WINDOW};
use crate::quantization::{BlockFormat, NF4_VALUES};

/// Goes through a group of a matrix.
///
/// # Safety
/// The bytes are a group of its; as for [`Work`].
pub unsafe fn decode(matrix: &Interleaved, group: &[u8], work: impl Work) {
    let at = group.as_ptr();
    // SAFETY: the caller's promise.
    unsafe {
        match matrix.format {
            BlockFormat::Nf4 { .. } if matrix.nested.is_some() => run::<NestedNf4<'_>, _>(at, matrix, work),
            BlockFormat::Nf4 { .. } => run::<Nf4, _>(at, matrix, work),
            BlockFormat::Int8Rows => run::<Int8, _>(at, matrix, work),
            BlockFormat::Q8_0 => run::<Q8_0, _>(at, matrix, work),
            BlockFormat::Q4_0 => run::<Q4_0, _>(at, matrix, work),
            BlockFormat::Q4K => run::<KQuant<Q4K>, _>(at, matrix, work),
            BlockFormat::Q5K => run::<KQuant<Q5K>, _>(at, matrix, work),
            BlockFormat::Q6K => run::<Q6K, _>(at, matrix, work),
            other => unreachable!("interleaved: {other}"),
        }
    }
}

/// # Safety
/// As for [`decode`].
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn run<'a, D: Decode<'a>, W: Work>(group: *const u8, matrix: &'a Interleaved, work: W) {
    // SAFETY: the caller's promise.
    unsafe { work.run(D::new(group, matrix)) }
}

/// NF4 in blocks of 64.
struct Nf4 {
    group: *const u8,
    codes: *const u8,
    scales: Doubled,
    table: __m512,
}

/// How a format lies.
const fn layout(format: BlockFormat) -> Layout {
    match Layout::of(format) {
        Some(layout) => layout,
        None => panic!("a format without a layout"),
    }
}

/// Where a block of a format begins, and the codes of its `unit`-th unit.
///
/// # Safety
/// There is such a unit.
#[inline(always)]
unsafe fn at(group: *const u8, layout: Layout, unit: usize) -> [*const u8; 2] {
    let units = layout.block / UNIT;
    // SAFETY: the caller's promise.
    unsafe {
        let block = group.add(layout.head + unit / units * layout.block_bytes());
        [block, block.add(COLUMNS * layout.scales + unit % units * layout.unit)]
    }
}

impl Decode<'_> for Nf4 {
    #[inline(always)]
    unsafe fn new(group: *const u8, _: &Interleaved) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self { group, codes: group, scales: zeros(), table: _mm512_loadu_ps(NF4_VALUES.as_ptr()) } }
    }

    #[inline(always)]
    unsafe fn begin(&mut self, unit: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let [block, codes] = at(self.group, const { layout(BlockFormat::NF4) }, unit);
            (self.codes, self.scales) = (codes, doubled(singles(block)));
        }
    }

    #[inline(always)]
    unsafe fn values<const P: usize>(&self, vector: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            _mm512_mul_ps(look_up(self.table, fours::<P>(self.codes, vector)), self.scales[vector / 2][vector % 2])
        }
    }
}

/// The same with scales that are quantised.
struct NestedNf4<'a> {
    /// The windows, and behind them the blocks, of which there are so many.
    windows: *const u8,
    group: *const u8,
    count: usize,
    nested: &'a Nested,
    /// Of an even and an odd block what the codes of its scales stand for, and of which block it is: looked up before these are wanted.
    values: [[f32; COLUMNS]; 2],
    of: [usize; 2],
    nf4: Nf4,
}

impl NestedNf4<'_> {
    const LAYOUT: Layout = layout(BlockFormat::NF4).nested(0, 1);

    /// Looks up what the codes of a block's scales stand for.
    ///
    /// # Safety
    /// There is such a block.
    #[inline(always)]
    unsafe fn look_up(&mut self, block: usize) {
        // SAFETY: the caller's promise.
        let codes = unsafe { self.group.add(block * Self::LAYOUT.block_bytes()).cast::<[u8; COLUMNS]>().read() };
        for (value, code) in self.values[block % 2].iter_mut().zip(codes) {
            *value = self.nested.map[usize::from(code)];
        }
        self.of[block % 2] = block;
    }
}

impl<'a> Decode<'a> for NestedNf4<'a> {
    #[inline(always)]
    unsafe fn new(group: *const u8, matrix: &'a Interleaved) -> Self {
        let nested = matrix.nested.as_ref().expect("scales that are quantised");
        let layout = Self::LAYOUT.nested(matrix.columns, 1 << nested.shift);
        let (values, of) = ([[0.0; COLUMNS]; 2], [usize::MAX; 2]);
        let count = matrix.columns / layout.block;
        // SAFETY: the caller's promise.
        unsafe {
            let nf4 = Nf4::new(group, matrix);
            Self { windows: group, group: group.add(layout.head), count, nested, values, of, nf4 }
        }
    }

    #[inline(always)]
    unsafe fn begin(&mut self, unit: usize) {
        let block = unit / 2;
        // SAFETY: the caller's promise.
        unsafe {
            let [_, codes] = at(self.group, Self::LAYOUT, unit);
            self.nf4.codes = codes;
            if self.of[block % 2] != block {
                self.look_up(block);
            }
            if block + 1 < self.count && self.of[(block + 1) % 2] != block + 1 {
                self.look_up(block + 1);
            }
            let window = self.windows.add((block >> self.nested.shift) * WINDOW);
            let [before, behind] = [singles(window), singles(window.add(WINDOW / 3))];
            let mut scales = singles(self.values[block % 2].as_ptr().cast());
            for (i, scale) in scales.iter_mut().enumerate() {
                let from = _mm512_loadu_si512(window.add(2 * WINDOW / 3 + 64 * i).cast());
                let changed = _mm512_cmple_epu32_mask(from, _mm512_set1_epi32(block as i32));
                let absmax = _mm512_mask_blend_ps(changed, before[i], behind[i]);
                *scale = _mm512_add_ps(_mm512_mul_ps(*scale, absmax), _mm512_set1_ps(self.nested.offset));
            }
            self.nf4.scales = doubled(scales);
        }
    }

    #[inline(always)]
    unsafe fn values<const P: usize>(&self, vector: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { self.nf4.values::<P>(vector) }
    }
}

/// Signed bytes with a scale a row.
struct Int8 {
    group: *const u8,
    codes: *const u8,
    scales: Doubled,
    step: f32,
}

impl Decode<'_> for Int8 {
    #[inline(always)]
    unsafe fn new(group: *const u8, matrix: &Interleaved) -> Self {
        // SAFETY: the caller's promise: a group begins with its scales.
        unsafe { Self { group, codes: group, scales: doubled(singles(group)), step: matrix.step } }
    }

    #[inline(always)]
    unsafe fn begin(&mut self, unit: usize) {
        // SAFETY: the caller's promise.
        let [_, codes] = unsafe { at(self.group, const { layout(BlockFormat::Int8Rows) }, unit) };
        self.codes = codes;
    }

    #[inline(always)]
    unsafe fn values<const P: usize>(&self, vector: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let scaled = _mm512_mul_ps(signed::<P>(self.codes, vector), self.scales[vector / 2][vector % 2]);
            _mm512_mul_ps(scaled, _mm512_set1_ps(self.step))
        }
    }
}

/// Blocks of 32 signed bytes.
struct Q8_0 {
    group: *const u8,
    codes: *const u8,
    scales: Doubled,
}

impl Decode<'_> for Q8_0 {
    #[inline(always)]
    unsafe fn new(group: *const u8, _: &Interleaved) -> Self {
        // SAFETY: the caller's promise.
        Self { group, codes: group, scales: unsafe { zeros() } }
    }

    #[inline(always)]
    unsafe fn begin(&mut self, unit: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let [block, codes] = at(self.group, const { layout(BlockFormat::Q8_0) }, unit);
            (self.codes, self.scales) = (codes, doubled(halves(block)));
        }
    }

    #[inline(always)]
    unsafe fn values<const P: usize>(&self, vector: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_mul_ps(signed::<P>(self.codes, vector), self.scales[vector / 2][vector % 2]) }
    }
}

/// Blocks of 32 codes of 4 bits less 8.
struct Q4_0 {
    group: *const u8,
    codes: *const u8,
    scales: Doubled,
    table: __m512,
}

impl Decode<'_> for Q4_0 {
    #[inline(always)]
    unsafe fn new(group: *const u8, _: &Interleaved) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self { group, codes: group, scales: zeros(), table: _mm512_sub_ps(counting(), _mm512_set1_ps(8.0)) } }
    }

    #[inline(always)]
    unsafe fn begin(&mut self, unit: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let [block, codes] = at(self.group, const { layout(BlockFormat::Q4_0) }, unit);
            (self.codes, self.scales) = (codes, doubled(halves(block)));
        }
    }

    #[inline(always)]
    unsafe fn values<const P: usize>(&self, vector: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            _mm512_mul_ps(look_up(self.table, fours::<P>(self.codes, vector)), self.scales[vector / 2][vector % 2])
        }
    }
}

/// What codes of `Q4_K` and `Q5_K` stand for.
trait Codes {
    const FORMAT: BlockFormat;

    /// With the table of the numbers from 0 to 15.
    ///
    /// # Safety
    /// As for [`fours`].
    unsafe fn numbers<const P: usize>(table: __m512, codes: *const u8, vector: usize) -> __m512;
}

/// 4 bits.
struct Q4K;

impl Codes for Q4K {
    const FORMAT: BlockFormat = BlockFormat::Q4K;

    #[inline(always)]
    unsafe fn numbers<const P: usize>(table: __m512, codes: *const u8, vector: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { look_up(table, fours::<P>(codes, vector)) }
    }
}

/// 4 bits, and behind those of all columns the fifth ones.
struct Q5K;

impl Codes for Q5K {
    const FORMAT: BlockFormat = BlockFormat::Q5K;

    #[inline(always)]
    unsafe fn numbers<const P: usize>(_: __m512, codes: *const u8, vector: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let fifths = _mm256_loadu_si256(codes.add(COLUMNS * UNIT / 2 + 32 * vector).cast());
            let fifths = _mm512_sllv_epi32(_mm512_cvtepu16_epi32(fifths), _mm512_set1_epi32(16));
            let fifths = _mm512_srlv_epi32(fifths, _mm512_set1_epi32(12 + P as i32));
            let number = joined(fours::<P>(codes, vector), fifths, 16);
            _mm512_sub_ps(number, _mm512_set1_ps(WHOLE))
        }
    }
}

/// Blocks of 256 codes in 8 parts with their own scale and minimum.
struct KQuant<C> {
    group: *const u8,
    codes: *const u8,
    block: *const u8,
    /// What multiplies the scales and the minima of a block.
    factors: [[__m512; COLUMNS / 16]; 2],
    scales: Doubled,
    minima: Doubled,
    table: __m512,
    of: std::marker::PhantomData<C>,
}

impl<C: Codes> Decode<'_> for KQuant<C> {
    #[inline(always)]
    unsafe fn new(group: *const u8, _: &Interleaved) -> Self {
        let (codes, block, of) = (group, std::ptr::null(), std::marker::PhantomData);
        // SAFETY: the caller's promise.
        unsafe {
            let factors = [[_mm512_setzero_ps(); COLUMNS / 16]; 2];
            Self { group, codes, block, factors, scales: zeros(), minima: zeros(), table: counting(), of }
        }
    }

    #[inline(always)]
    unsafe fn begin(&mut self, unit: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let [block, codes] = at(self.group, const { layout(C::FORMAT) }, unit);
            self.codes = codes;
            // Four numbers of 32 bits, each of all columns: two scales, and then 12 bytes, as `quantization::blocks` takes them apart.
            let field = |field: usize, i: usize| _mm512_loadu_si512(block.add(64 * (4 * field + i)).cast());
            if block != self.block {
                self.block = block;
                for i in 0..COLUMNS / 16 {
                    let both = field(0, i);
                    let minimum = _mm512_srli_epi32::<16>(both);
                    self.factors[0][i] = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(both));
                    self.factors[1][i] = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(minimum));
                }
            }
            let (part, byte) = (unit % 8, _mm_cvtsi64_si128(8 * (unit % 4) as i64));
            let bits = |x: __m512i, bits: i32| _mm512_and_si512(x, _mm512_set1_epi32(bits));
            let [mut scales, mut minima] = self.factors;
            for i in 0..COLUMNS / 16 {
                let [first, second] = [1, 2].map(|at| _mm512_srl_epi32(field(at, i), byte));
                let codes = if part < 4 {
                    [bits(first, 63), bits(second, 63)]
                } else {
                    let third = _mm512_srl_epi32(field(3, i), byte);
                    let high = |x: __m512i| bits(_mm512_srli_epi32::<2>(x), 48);
                    [
                        _mm512_or_si512(bits(third, 15), high(first)),
                        _mm512_or_si512(bits(_mm512_srli_epi32::<4>(third), 15), high(second)),
                    ]
                };
                // Numbers of 11 and 6 bits multiplied, so that these are exact.
                scales[i] = _mm512_mul_ps(scales[i], _mm512_cvtepi32_ps(codes[0]));
                minima[i] = _mm512_mul_ps(minima[i], _mm512_cvtepi32_ps(codes[1]));
            }
            (self.scales, self.minima) = (doubled(scales), doubled(minima));
        }
    }

    #[inline(always)]
    unsafe fn values<const P: usize>(&self, vector: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let numbers = C::numbers::<P>(self.table, self.codes, vector);
            // The product of code and scale is exact, so that the difference is rounded as elsewhere.
            _mm512_fmsub_ps(numbers, self.scales[vector / 2][vector % 2], self.minima[vector / 2][vector % 2])
        }
    }
}

/// Blocks of 256 codes of 6 bits less 32 in 16 parts with a scale of a signed byte: 4 bits, and behind those of all columns the others.
struct Q6K {
    group: *const u8,
    codes: *const u8,
    /// Of the first and of the second half of a unit.
    scales: [Doubled; 2],
}

impl Decode<'_> for Q6K {
    #[inline(always)]
    unsafe fn new(group: *const u8, _: &Interleaved) -> Self {
        // SAFETY: the caller's promise.
        Self { group, codes: group, scales: unsafe { [zeros(); 2] } }
    }

    #[inline(always)]
    unsafe fn begin(&mut self, unit: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let [block, codes] = at(self.group, const { layout(BlockFormat::Q6K) }, unit);
            self.codes = codes;
            let factors = halves(block);
            for (half, to) in self.scales.iter_mut().enumerate() {
                let bytes = block.add(2 * COLUMNS + COLUMNS * (unit % 8 * 2 + half));
                let mut scales = factors;
                for (i, scale) in scales.iter_mut().enumerate() {
                    let bytes = _mm512_cvtepi8_epi32(_mm_loadu_si128(bytes.add(16 * i).cast()));
                    *scale = _mm512_mul_ps(*scale, _mm512_cvtepi32_ps(bytes));
                }
                *to = doubled(scales);
            }
        }
    }

    #[inline(always)]
    unsafe fn values<const P: usize>(&self, vector: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let high = _mm512_loadu_si512(self.codes.add(COLUMNS * UNIT / 2 + 64 * vector).cast());
            let by = 2 * P as i32 - 4;
            let high = match by < 0 {
                true => _mm512_sllv_epi32(high, _mm512_set1_epi32(-by)),
                false => _mm512_srlv_epi32(high, _mm512_set1_epi32(by)),
            };
            let number = joined(fours::<P>(self.codes, vector), high, 48);
            let number = _mm512_sub_ps(number, _mm512_set1_ps(WHOLE + 32.0));
            _mm512_mul_ps(number, self.scales[P / 8][vector / 2][vector % 2])
        }
    }
}
