//! Groups of each format: how scales and codes lie, and what codes stand for, by the operations and roundings that
//! [`QuantizedMatrix::dequantize_row`](crate::quantization::QuantizedMatrix::dequantize_row) has.

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

use super::lanes::{Decode, Doubled, WHOLE, Work, codes, doubled, halves, look_up, signed, singles, zeros};
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
            BlockFormat::Nf4 { .. } => run::<Scaled<Nf4>, _>(at, matrix, work),
            BlockFormat::Int8Rows => run::<Int8, _>(at, matrix, work),
            BlockFormat::Q8_0 => run::<Scaled<Q8_0>, _>(at, matrix, work),
            BlockFormat::Q4_0 => run::<Scaled<Q4_0>, _>(at, matrix, work),
            BlockFormat::Q4_1 => run::<Shifted<Q4_1>, _>(at, matrix, work),
            BlockFormat::Q5_0 => run::<Scaled<Q5_0>, _>(at, matrix, work),
            BlockFormat::Q5_1 => run::<Shifted<Q5_1>, _>(at, matrix, work),
            BlockFormat::Q2K => run::<TwoBits, _>(at, matrix, work),
            BlockFormat::Q3K => run::<Sixteen<Q3K>, _>(at, matrix, work),
            BlockFormat::Q4K => run::<KQuant<Q4K>, _>(at, matrix, work),
            BlockFormat::Q5K => run::<KQuant<Q5K>, _>(at, matrix, work),
            BlockFormat::Q6K => run::<Sixteen<Q6K>, _>(at, matrix, work),
        }
    }
}

/// # Safety
/// As for [`decode`].
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn run<'a, D: Decode<'a>, W: Work>(group: *const u8, matrix: &'a Interleaved, work: W) {
    // Vectors for which there is no register go to the stack, and across lines of the cache, unless something else there is aligned.
    std::hint::black_box(&MaybeUninit::<__m512>::uninit());
    // SAFETY: the caller's promise.
    unsafe { work.run(D::new(group, matrix)) }
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

/// A format, and what is known of it.
trait Format {
    const FORMAT: BlockFormat;
    const LAYOUT: Layout = match Layout::of(Self::FORMAT) {
        Some(layout) => layout,
        None => panic!("a format without a layout"),
    };
    /// What codes of up to 5 bits stand for. Where they have fewer, other bits are above them, and numbers come again.
    const NUMBERS: [f32; 32] = {
        let less = match Self::FORMAT {
            BlockFormat::Q4_0 => 8.0,
            BlockFormat::Q5_0 => 16.0,
            BlockFormat::Q3K => 4.0,
            _ => 0.0,
        };
        let (mut numbers, mut i) = ([0.0; 32], 0);
        while i < numbers.len() {
            numbers[i] = match Self::FORMAT {
                BlockFormat::Nf4 { .. } => NF4_VALUES[i % 16],
                _ => (i % (1 << Self::LAYOUT.bits())) as f32 - less,
            };
            i += 1;
        }
        numbers
    };
}

macro_rules! formats {
    ($($name:ident)*) => {$(
        struct $name;

        impl Format for $name {
            const FORMAT: BlockFormat = BlockFormat::$name;
        }
    )*};
}

formats!(Int8Rows Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2K Q3K Q4K Q5K Q6K);

/// Blocks of 64.
struct Nf4;

impl Format for Nf4 {
    const FORMAT: BlockFormat = BlockFormat::NF4;
}

/// Codes of a format: those of a unit, and what they stand for.
struct Codes<F> {
    at: *const u8,
    numbers: [__m512; 2],
    of: PhantomData<F>,
}

impl<F: Format> Codes<F> {
    /// # Safety
    /// As for [`Work`].
    #[inline(always)]
    unsafe fn new() -> Self {
        let numbers = const { &F::NUMBERS }.as_ptr();
        // SAFETY: the caller's promise.
        let numbers = unsafe { [_mm512_loadu_ps(numbers), _mm512_loadu_ps(numbers.add(16))] };
        Self { at: std::ptr::null(), numbers, of: PhantomData }
    }

    /// Goes to a unit. Returns where its block begins.
    ///
    /// # Safety
    /// There is such a unit.
    #[inline(always)]
    unsafe fn begin(&mut self, group: *const u8, unit: usize) -> *const u8 {
        // SAFETY: the caller's promise.
        let [block, codes] = unsafe { at(group, const { F::LAYOUT }, unit) };
        self.at = codes;
        block
    }

    /// The numbers that the codes of pair `P` stand for, of vector `vector` of 8 columns.
    ///
    /// # Safety
    /// There is a unit; as for [`Work`].
    #[inline(always)]
    unsafe fn numbers<const P: usize>(&self, vector: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            if const { F::LAYOUT.bits() == 8 } {
                return signed::<P>(self.at, vector);
            }
            let [first, second] = self.numbers;
            let codes = codes::<P>(const { F::LAYOUT.bits() }, self.at, vector);
            match const { F::LAYOUT.bits() } {
                5 => _mm512_permutex2var_ps(first, codes, second),
                6 => {
                    let whole = _mm512_set1_epi32(WHOLE.to_bits().cast_signed());
                    // whole | codes & 63
                    let number = _mm512_ternarylogic_epi32::<0xf8>(whole, codes, _mm512_set1_epi32(63));
                    _mm512_sub_ps(_mm512_castsi512_ps(number), _mm512_set1_ps(WHOLE + 32.0))
                }
                _ => look_up(first, codes),
            }
        }
    }
}

/// Blocks with one scale.
struct Scaled<F> {
    group: *const u8,
    codes: Codes<F>,
    scales: Doubled,
}

impl<F: Format> Decode<'_> for Scaled<F> {
    #[inline(always)]
    unsafe fn new(group: *const u8, _: &Interleaved) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self { group, codes: Codes::new(), scales: zeros() } }
    }

    #[inline(always)]
    unsafe fn begin(&mut self, unit: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let block = self.codes.begin(self.group, unit);
            self.scales = doubled(match F::FORMAT {
                BlockFormat::Nf4 { .. } => singles(block),
                _ => halves(block),
            });
        }
    }

    #[inline(always)]
    unsafe fn values<const P: usize>(&self, vector: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_mul_ps(self.codes.numbers::<P>(vector), self.scales[vector / 2][vector % 2]) }
    }
}

/// NF4 with scales that are quantised.
struct NestedNf4<'a> {
    /// The windows, and behind them the blocks, of which there are so many.
    windows: *const u8,
    group: *const u8,
    count: usize,
    nested: &'a Nested,
    /// Of an even and an odd block what the codes of its scales stand for, and of which block it is: looked up before these are wanted.
    values: [[f32; COLUMNS]; 2],
    of: [usize; 2],
    nf4: Scaled<Nf4>,
}

impl NestedNf4<'_> {
    const LAYOUT: Layout = Nf4::LAYOUT.nested(0, 1);

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
            let nf4 = Scaled::new(group, matrix);
            Self { windows: group, group: group.add(layout.head), count, nested, values, of, nf4 }
        }
    }

    #[inline(always)]
    unsafe fn begin(&mut self, unit: usize) {
        let block = unit / 2;
        // SAFETY: the caller's promise.
        unsafe {
            let [_, codes] = at(self.group, Self::LAYOUT, unit);
            self.nf4.codes.at = codes;
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
    codes: Codes<Int8Rows>,
    scales: Doubled,
    step: f32,
}

impl Decode<'_> for Int8 {
    #[inline(always)]
    unsafe fn new(group: *const u8, matrix: &Interleaved) -> Self {
        // SAFETY: the caller's promise: a group begins with its scales.
        unsafe { Self { group, codes: Codes::new(), scales: doubled(singles(group)), step: matrix.step } }
    }

    #[inline(always)]
    unsafe fn begin(&mut self, unit: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.codes.begin(self.group, unit) };
    }

    #[inline(always)]
    unsafe fn values<const P: usize>(&self, vector: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let scaled = _mm512_mul_ps(self.codes.numbers::<P>(vector), self.scales[vector / 2][vector % 2]);
            _mm512_mul_ps(scaled, _mm512_set1_ps(self.step))
        }
    }
}

/// Blocks with a scale and a minimum, both in half precision.
struct Shifted<F> {
    scaled: Scaled<F>,
    minima: Doubled,
}

impl<F: Format> Decode<'_> for Shifted<F> {
    #[inline(always)]
    unsafe fn new(group: *const u8, matrix: &Interleaved) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self { scaled: Scaled::new(group, matrix), minima: zeros() } }
    }

    #[inline(always)]
    unsafe fn begin(&mut self, unit: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            self.scaled.begin(unit);
            let [block, _] = at(self.scaled.group, const { F::LAYOUT }, unit);
            self.minima = doubled(halves(block.add(2 * COLUMNS)));
        }
    }

    #[inline(always)]
    unsafe fn values<const P: usize>(&self, vector: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let Scaled { codes, scales, .. } = &self.scaled;
            // The product of code and scale is exact, so that the sum is rounded as elsewhere.
            let (numbers, minima) = (codes.numbers::<P>(vector), self.minima[vector / 2][vector % 2]);
            _mm512_fmadd_ps(numbers, scales[vector / 2][vector % 2], minima)
        }
    }
}

/// Blocks of 256 codes in 8 parts with their own scale and minimum.
struct KQuant<F> {
    group: *const u8,
    codes: Codes<F>,
    block: *const u8,
    /// What multiplies the scales and the minima of a block.
    factors: [[__m512; COLUMNS / 16]; 2],
    scales: Doubled,
    minima: Doubled,
}

impl<F: Format> Decode<'_> for KQuant<F> {
    #[inline(always)]
    unsafe fn new(group: *const u8, _: &Interleaved) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let factors = [[_mm512_setzero_ps(); COLUMNS / 16]; 2];
            let (codes, block) = (Codes::new(), std::ptr::null());
            Self { group, codes, block, factors, scales: zeros(), minima: zeros() }
        }
    }

    #[inline(always)]
    unsafe fn begin(&mut self, unit: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let block = self.codes.begin(self.group, unit);
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
            let numbers = self.codes.numbers::<P>(vector);
            // The product of code and scale is exact, so that the difference is rounded as elsewhere.
            _mm512_fmsub_ps(numbers, self.scales[vector / 2][vector % 2], self.minima[vector / 2][vector % 2])
        }
    }
}

/// Blocks of 256 codes in 16 parts, whose scales are signed bytes.
struct Sixteen<F> {
    group: *const u8,
    codes: Codes<F>,
    /// Of the first and of the second half of a unit.
    scales: [Doubled; 2],
}

impl<F: Format> Decode<'_> for Sixteen<F> {
    #[inline(always)]
    unsafe fn new(group: *const u8, _: &Interleaved) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self { group, codes: Codes::new(), scales: [zeros(); 2] } }
    }

    #[inline(always)]
    unsafe fn begin(&mut self, unit: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let block = self.codes.begin(self.group, unit);
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
            let numbers = self.codes.numbers::<P>(vector);
            _mm512_mul_ps(numbers, self.scales[P / 8][vector / 2][vector % 2])
        }
    }
}

/// Blocks of 256 codes of 2 bits in 16 parts, whose scales and minima are of 4 bits.
struct TwoBits {
    group: *const u8,
    codes: Codes<Q2K>,
    /// Of the first and of the second half of a unit.
    scales: [Doubled; 2],
    minima: [Doubled; 2],
}

impl Decode<'_> for TwoBits {
    #[inline(always)]
    unsafe fn new(group: *const u8, _: &Interleaved) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self { group, codes: Codes::new(), scales: [zeros(); 2], minima: [zeros(); 2] } }
    }

    #[inline(always)]
    unsafe fn begin(&mut self, unit: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let block = self.codes.begin(self.group, unit);
            let factors = [halves(block), halves(block.add(2 * COLUMNS))];
            for half in 0..2 {
                let bytes = block.add(4 * COLUMNS + COLUMNS * (unit % 8 * 2 + half));
                let [mut scales, mut minima] = factors;
                for (i, (scale, minimum)) in scales.iter_mut().zip(&mut minima).enumerate() {
                    let both = _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.add(16 * i).cast()));
                    let low = _mm512_and_si512(both, _mm512_set1_epi32(15));
                    *scale = _mm512_mul_ps(*scale, _mm512_cvtepi32_ps(low));
                    *minimum = _mm512_mul_ps(*minimum, _mm512_cvtepi32_ps(_mm512_srli_epi32::<4>(both)));
                }
                (self.scales[half], self.minima[half]) = (doubled(scales), doubled(minima));
            }
        }
    }

    #[inline(always)]
    unsafe fn values<const P: usize>(&self, vector: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let numbers = self.codes.numbers::<P>(vector);
            let (scales, minima) = (&self.scales[P / 8][vector / 2], &self.minima[P / 8][vector / 2]);
            // The product of code and scale is exact, as in `KQuant`.
            _mm512_fmsub_ps(numbers, scales[vector % 2], minima[vector % 2])
        }
    }
}
