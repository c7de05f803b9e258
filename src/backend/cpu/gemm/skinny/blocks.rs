//! Skinny products with quantised weights in pairs of bfloat16, decoded in registers.
//!
//! 32 columns of the result go at a time, 64 elements along k at a step. Four rows of the weights are decoded at once, a row in
//! each 128 bits of a vector: what 4-bit codes stand for in these rows' blocks are 64 numbers of bfloat16, rounded once, which
//! one permutation looks up; codes of 8 bits are widened, multiplied and rounded. Four such vectors are transposed within 128
//! bits, and then have a pair of each of 16 rows. An element of the result is the same chain of multiply-adds as elsewhere.
//!
//! While a step is multiplied the next is decoded, so that the chains' latency is no time of its own.

use std::arch::x86_64::*;
use std::mem::transmute;

use half::f16;

use super::super::super::simd::Element;
use super::super::operand::{Elements, Operand};
use super::super::tile::DEPTH;
use super::{COLUMNS, SkinnyProduct};
use crate::arch::Dtype;
use crate::quantization::{BlockFormat, INT8_STEP, NF4_VALUES, QuantizedMatrix, Scales, scales_and_minima};

/// Rows of the left operand, at most.
pub const ROWS: usize = 4;
/// Elements along k of a step, and pairs.
const STEP: usize = 64;
const PAIRS: usize = STEP / 2;
/// Fours of rows.
const QUADS: usize = COLUMNS / 4;
/// Vectors of a step of a four: each has four pairs of each row.
const VECTORS: usize = PAIRS / 4;
/// Bytes ahead of the current ones that are prefetched: at the end of rows as many of those that come next.
const AHEAD: usize = 512;
/// Steps between two prefetches of codes, and of scales that lie elsewhere, and how many scales ahead that is.
const CODES: usize = 2;
const SCALES: usize = 16;
const SCALES_AHEAD: usize = 24;

/// Whether an operand of `k` elements along k is one that is decoded in registers.
pub fn takes(operand: &Operand<'_, f32>, k: usize) -> bool {
    let Elements::Quantized(matrix) = operand.data else { return false };
    let column = operand.from % operand.stride;
    let step = match matrix.format {
        BlockFormat::Nf4 { block: 64 } | BlockFormat::Int8Rows | BlockFormat::Q8_0 => STEP,
        BlockFormat::Q4K => 256,
        _ => return false,
    };
    let whole = [column, k, matrix.columns].iter().all(|x| x.is_multiple_of(step));
    whole && matches!(matrix.rounding, None | Some(Dtype::F32 | Dtype::BF16))
}

/// The product, on a CPU that has AVX-512 with pairs of bfloat16.
///
/// # Panics
/// If the operand is not [taken](takes), or operands are too short.
pub fn multiply(product: SkinnyProduct<'_, f32>) {
    let SkinnyProduct { sums, left, right, m, columns, k, block } = product;
    let Elements::Quantized(matrix) = right.data else { panic!("skinny: an operand that is not quantised") };
    assert!(takes(&right, 2 * k) && k > 0, "skinny: a quantised operand of {k} pairs in rows of {}", right.stride);
    assert!((1..=ROWS).contains(&m) && (1..=COLUMNS).contains(&columns), "skinny: {m} rows, {columns} columns");
    assert!((16..=DEPTH).contains(&block) && block.is_multiple_of(16), "skinny: blocks of {block}");
    let packed = k.div_ceil(block).checked_mul(m * DEPTH);
    assert!(packed.is_some_and(|packed| left.len() >= packed), "skinny: {} of {packed:?} packed", left.len());
    assert!(sums.len() >= m * COLUMNS, "skinny: {} sums of {m} rows", sums.len());
    let (first, column) = (right.from / right.stride, right.from % right.stride);
    assert!(first + columns <= matrix.rows && column + 2 * k <= matrix.columns, "skinny: outside of {matrix:?}");
    matrix.check_parts().unwrap_or_else(|error| panic!("skinny: {error}"));
    // Rows behind the last repeat it, and are not stored.
    let rows: [usize; COLUMNS] = std::array::from_fn(|i| matrix.stored_row(first + i.min(columns - 1)));
    assert!(rows.iter().all(|&row| row < matrix.stored_rows), "skinny: a row outside of {matrix:?}");
    let range = [column, 2 * k];
    let work = Work { out: sums.as_mut_ptr(), left: left.as_ptr(), k, block };
    // SAFETY: all rows have codes and scales of so many elements from the column on by the checks above, the left operand and the
    // sums are as long; the caller has an `Isa` that is proof of the instructions.
    unsafe {
        match (matrix.format, matrix.scales) {
            (BlockFormat::Int8Rows, _) => int8(Int8::new(&matrix, rows, range), work, m),
            (BlockFormat::Q8_0, _) => q8_0(Q8_0(Bytes::new(&matrix, rows, range)), work, m),
            (BlockFormat::Q4K, _) => q4_k(Q4K(Bytes::new(&matrix, rows, range)), work, m),
            (_, Scales::Nested { .. }) => nf4_nested(Nf4::new(&matrix, rows, range), work, m),
            _ => nf4(Nf4::new(&matrix, rows, range), work, m),
        }
    }
}

/// Where a product's numbers are.
#[derive(Clone, Copy)]
struct Work {
    out: *mut f32,
    left: *const f32,
    /// Pairs along k, and of a block.
    k: usize,
    block: usize,
}

/// Rows of a format.
trait Rows {
    /// Decodes a step of a four, rows `4 i + j` of 16 for i below 4: the vectors of four pairs, in the order of k.
    ///
    /// # Safety
    /// There is such a step, `out` has its vectors, and the CPU has AVX-512 with pairs of bfloat16.
    unsafe fn decode(&self, quad: usize, step: usize, out: *mut __m512i);

    /// Prefetches what a row has some steps later, if it is time for that.
    fn prefetch(&self, row: usize, step: usize);
}

/// The four rows of a four.
#[inline(always)]
fn rows_of(quad: usize) -> [usize; 4] {
    let first = quad / 4 * 16 + quad % 4;
    [first, first + 4, first + 8, first + 12]
}

/// 32 bytes of each of four rows: the first 16 of all, and the second.
///
/// # Safety
/// They are readable, and the CPU has AVX-512 F.
#[inline(always)]
unsafe fn gather(from: [*const u8; 4]) -> [__m512i; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let (a, b) = (_mm256_loadu_si256(from[0].cast()), _mm256_loadu_si256(from[1].cast()));
        let (c, d) = (_mm256_loadu_si256(from[2].cast()), _mm256_loadu_si256(from[3].cast()));
        let first = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b);
        let second = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(c), d);
        [_mm512_shuffle_i32x4::<0x88>(first, second), _mm512_shuffle_i32x4::<0xdd>(first, second)]
    }
}

/// Where rows' bytes are.
#[derive(Clone, Copy)]
struct Bytes {
    rows: [*const u8; COLUMNS],
    /// How many of each are read, and from a row on to the one as many rows behind it as go at a time.
    len: usize,
    next: usize,
}

impl Bytes {
    /// Of `k` elements of rows from a column on.
    fn new(matrix: &QuantizedMatrix<'_>, rows: [usize; COLUMNS], [column, k]: [usize; 2]) -> Self {
        // Bytes of so many elements, whole blocks.
        let bytes = |elements: usize| elements / matrix.format.block_values() * matrix.format.block_bytes();
        let rows = rows.map(|row| matrix.codes[bytes(row * matrix.columns + column)..].as_ptr());
        Self { rows, len: bytes(k), next: bytes(COLUMNS * matrix.columns) }
    }

    /// Prefetches what lies some bytes behind byte `at` of a row.
    #[inline(always)]
    fn prefetch(&self, row: usize, at: usize) {
        let at = at + AHEAD;
        let at = if at < self.len { at } else { at.wrapping_sub(self.len).wrapping_add(self.next) };
        // SAFETY: changes nothing but the cache.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(self.rows[row].wrapping_add(at).cast()) };
    }

    /// The bytes from byte `at` on of four rows.
    ///
    /// # Safety
    /// They have so many.
    #[inline(always)]
    unsafe fn at(&self, rows: [usize; 4], at: usize) -> [*const u8; 4] {
        // SAFETY: the caller's promise.
        unsafe { rows.map(|row| self.rows[row].add(at)) }
    }
}

/// `x` of the four rows, each in its 128 bits.
///
/// # Safety
/// The CPU has AVX-512 F.
#[inline(always)]
unsafe fn by_row(x: [f32; 4]) -> __m512 {
    // SAFETY: the caller's promise; four numbers are read.
    unsafe {
        let order = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
        _mm512_permutexvar_ps(order, _mm512_castps128_ps512(_mm_loadu_ps(x.as_ptr())))
    }
}

/// What is added to the 4-bit codes of four rows so that they are indices into the four's table.
///
/// # Safety
/// The CPU has AVX-512 F.
#[inline(always)]
unsafe fn row_bits() -> __m512i {
    const ONE: i64 = 0x1010_1010_1010_1010;
    // SAFETY: the caller's promise.
    unsafe { _mm512_setr_epi64(0, 0, ONE, ONE, 2 * ONE, 2 * ONE, 3 * ONE, 3 * ONE) }
}

/// The values of 16 codes in each of four rows, as bfloat16.
#[derive(Clone, Copy)]
struct Table(__m512i, __m512i);

impl Table {
    /// # Safety
    /// The CPU has AVX-512 with pairs of bfloat16.
    #[inline(always)]
    unsafe fn new(rows: [__m512; 4]) -> Self {
        // SAFETY: the caller's promise; the types are of one size.
        unsafe {
            Self(
                transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(rows[1], rows[0])),
                transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(rows[3], rows[2])),
            )
        }
    }

    /// The values of the indices in the lower bytes of words.
    ///
    /// # Safety
    /// As above.
    #[inline(always)]
    unsafe fn look_up(self, words: __m512i) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { _mm512_permutex2var_epi16(self.0, words, self.1) }
    }
}

/// `codes & 15 | rows`.
///
/// # Safety
/// The CPU has AVX-512 F.
#[inline(always)]
unsafe fn indices(codes: __m512i, rows: __m512i) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe { _mm512_ternarylogic_epi32::<0xea>(codes, _mm512_set1_epi8(15), rows) }
}

/// NF4 in blocks of 64.
struct Nf4<'a, const NESTED: bool> {
    codes: Bytes,
    /// The block of each row with which it begins.
    blocks: [usize; COLUMNS],
    matrix: &'a QuantizedMatrix<'a>,
    absmax: *const f32,
    nested: Nested,
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
    fn new(matrix: &'a QuantizedMatrix<'a>, rows: [usize; COLUMNS], range: [usize; 2]) -> Self {
        let none = Nested { codes: std::ptr::null(), map: std::ptr::null(), offset: 0.0, shift: 0 };
        let (absmax, nested) = match matrix.scales {
            Scales::Nested { codes, map, absmax, offset, block } => {
                (absmax, Nested { codes: codes.as_ptr(), map: map.as_ptr(), offset, shift: block.trailing_zeros() })
            }
            Scales::Absmax(absmax) | Scales::Factor(absmax) => (absmax, none),
            Scales::Inline => panic!("skinny: NF4 with its scales among the codes"),
        };
        let blocks = rows.map(|row| (row * matrix.columns + range[0]) / STEP);
        Self { codes: Bytes::new(matrix, rows, range), blocks, matrix, absmax: absmax.as_ptr(), nested }
    }

    /// # Safety
    /// The row has such a step.
    #[inline(always)]
    unsafe fn absmax(&self, row: usize, step: usize) -> f32 {
        let block = self.blocks[row] + step;
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
}

impl<const NESTED: bool> Rows for Nf4<'_, NESTED> {
    #[inline(always)]
    unsafe fn decode(&self, quad: usize, step: usize, out: *mut __m512i) {
        let rows = rows_of(quad);
        // SAFETY: the caller's promise.
        unsafe {
            let values = _mm512_loadu_ps(NF4_VALUES.as_ptr());
            let table = Table::new([
                _mm512_mul_ps(values, _mm512_set1_ps(self.absmax(rows[0], step))),
                _mm512_mul_ps(values, _mm512_set1_ps(self.absmax(rows[1], step))),
                _mm512_mul_ps(values, _mm512_set1_ps(self.absmax(rows[2], step))),
                _mm512_mul_ps(values, _mm512_set1_ps(self.absmax(rows[3], step))),
            ]);
            let bytes = gather(self.codes.at(rows, STEP / 2 * step));
            for (half, bytes) in bytes.into_iter().enumerate() {
                // The code in the high half of a byte comes first.
                let high = indices(_mm512_srli_epi32::<4>(bytes), row_bits());
                let low = indices(bytes, row_bits());
                let (first, second) = (_mm512_unpacklo_epi8(high, low), _mm512_unpackhi_epi8(high, low));
                let out = out.add(4 * half);
                _mm512_store_si512(out, table.look_up(_mm512_unpacklo_epi8(first, first)));
                _mm512_store_si512(out.add(1), table.look_up(_mm512_unpackhi_epi8(first, first)));
                _mm512_store_si512(out.add(2), table.look_up(_mm512_unpacklo_epi8(second, second)));
                _mm512_store_si512(out.add(3), table.look_up(_mm512_unpackhi_epi8(second, second)));
            }
        }
    }

    #[inline(always)]
    fn prefetch(&self, row: usize, step: usize) {
        if step.is_multiple_of(CODES) {
            self.codes.prefetch(row, STEP / 2 * step);
        }
        if step.is_multiple_of(SCALES) {
            let at = self.blocks[row] + step + SCALES_AHEAD;
            let at: *const i8 =
                if NESTED { self.nested.codes.wrapping_add(at).cast() } else { self.absmax.wrapping_add(at).cast() };
            // SAFETY: changes nothing but the cache.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at) };
        }
    }
}

/// `out = ` 32 bytes of each of four rows, times a factor and another.
///
/// # Safety
/// `out` has four vectors, and the CPU has AVX-512 with pairs of bfloat16.
#[inline(always)]
unsafe fn widened(bytes: [__m512i; 2], factor: __m512, other: Option<__m512>, out: *mut __m512i) {
    // SAFETY: the caller's promise.
    unsafe {
        // The vectors are rounded two by two: what belongs to a row is brought together again.
        let order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
        for (half, bytes) in bytes.into_iter().enumerate() {
            let words = [_mm512_unpacklo_epi8(bytes, bytes), _mm512_unpackhi_epi8(bytes, bytes)];
            for (i, words) in words.into_iter().enumerate() {
                let (first, second) = (_mm512_unpacklo_epi16(words, words), _mm512_unpackhi_epi16(words, words));
                let mut first = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(first)), factor);
                let mut second = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(second)), factor);
                if let Some(other) = other {
                    first = _mm512_mul_ps(first, other);
                    second = _mm512_mul_ps(second, other);
                }
                let both = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first));
                _mm512_store_si512(out.add(2 * half + i), _mm512_permutexvar_epi64(order, both));
            }
        }
    }
}

/// Signed bytes with a scale a row.
struct Int8 {
    codes: Bytes,
    factors: [f32; COLUMNS],
    /// What multiplies the products.
    step: f32,
}

impl Int8 {
    fn new(matrix: &QuantizedMatrix<'_>, rows: [usize; COLUMNS], range: [usize; 2]) -> Self {
        // A product with 1 is what it was.
        let step = if matches!(matrix.scales, Scales::Factor(_)) { 1.0 } else { INT8_STEP };
        Self { codes: Bytes::new(matrix, rows, range), factors: rows.map(|row| matrix.absmax(row)), step }
    }
}

impl Rows for Int8 {
    #[inline(always)]
    unsafe fn decode(&self, quad: usize, step: usize, out: *mut __m512i) {
        let rows = rows_of(quad);
        // SAFETY: the caller's promise.
        unsafe {
            let factor = by_row(rows.map(|row| self.factors[row]));
            let other = _mm512_set1_ps(self.step);
            for half in 0..2 {
                let bytes = gather(self.codes.at(rows, STEP * step + 32 * half));
                widened(bytes, factor, Some(other), out.add(4 * half));
            }
        }
    }

    #[inline(always)]
    fn prefetch(&self, row: usize, step: usize) {
        self.codes.prefetch(row, STEP * step);
    }
}

/// Blocks of 32 signed bytes behind their scale.
struct Q8_0(Bytes);

/// Bytes of its blocks.
const Q8_0_BYTES: usize = BlockFormat::Q8_0.block_bytes();

/// The number in half precision at `at`.
///
/// # Safety
/// There is one.
#[inline(always)]
unsafe fn half_at(at: *const u8) -> f32 {
    // SAFETY: the caller's promise.
    Element::<f32>::widen(f16::from_le_bytes(unsafe { at.cast::<[u8; 2]>().read() }))
}

impl Rows for Q8_0 {
    #[inline(always)]
    unsafe fn decode(&self, quad: usize, step: usize, out: *mut __m512i) {
        let rows = rows_of(quad);
        // SAFETY: the caller's promise.
        unsafe {
            for half in 0..2 {
                let at = self.0.at(rows, (2 * step + half) * Q8_0_BYTES);
                let factor = by_row([half_at(at[0]), half_at(at[1]), half_at(at[2]), half_at(at[3])]);
                let bytes = gather([at[0].add(2), at[1].add(2), at[2].add(2), at[3].add(2)]);
                widened(bytes, factor, None, out.add(4 * half));
            }
        }
    }

    #[inline(always)]
    fn prefetch(&self, row: usize, step: usize) {
        self.0.prefetch(row, 2 * Q8_0_BYTES * step);
    }
}

/// Blocks of 256 codes of 4 bits, in 8 parts with their own scale and minimum.
struct Q4K(Bytes);

const Q4_K_BYTES: usize = BlockFormat::Q4K.block_bytes();

/// The values of the 16 codes of a part.
///
/// # Safety
/// The CPU has AVX-512 F.
#[inline(always)]
unsafe fn values_of_part(scale: f32, minimum: f32) -> __m512 {
    const CODES: [f32; 16] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];
    // SAFETY: the caller's promise. Two roundings, as everywhere.
    unsafe {
        let product = _mm512_mul_ps(_mm512_loadu_ps(CODES.as_ptr()), _mm512_set1_ps(scale));
        _mm512_sub_ps(product, _mm512_set1_ps(minimum))
    }
}

impl Rows for Q4K {
    #[inline(always)]
    unsafe fn decode(&self, quad: usize, step: usize, out: *mut __m512i) {
        let rows = rows_of(quad);
        let (block, pair) = (step / 4, step % 4);
        // SAFETY: the caller's promise.
        unsafe {
            let at = self.0.at(rows, block * Q4_K_BYTES);
            let zero = _mm512_setzero_ps();
            let (mut first, mut second) = ([zero; 4], [zero; 4]);
            for (i, at) in at.into_iter().enumerate() {
                let (d, dmin) = (half_at(at), half_at(at.add(2)));
                let (scales, minima) = scales_and_minima(&*at.add(4).cast::<[u8; 12]>());
                let part = |p: usize| (d * f32::from(scales[p]), dmin * f32::from(minima[p]));
                let [(scale, minimum), (other_scale, other_minimum)] = [part(2 * pair), part(2 * pair + 1)];
                first[i] = values_of_part(scale, minimum);
                second[i] = values_of_part(other_scale, other_minimum);
            }
            let (first, second) = (Table::new(first), Table::new(second));
            let from = 16 + 32 * pair;
            let bytes = gather([at[0].add(from), at[1].add(from), at[2].add(from), at[3].add(from)]);
            for (half, bytes) in bytes.into_iter().enumerate() {
                // The lower halves of bytes are the first part's codes.
                let low = indices(bytes, row_bits());
                let high = indices(_mm512_srli_epi32::<4>(bytes), row_bits());
                let out = out.add(2 * half);
                _mm512_store_si512(out, first.look_up(_mm512_unpacklo_epi8(low, low)));
                _mm512_store_si512(out.add(1), first.look_up(_mm512_unpackhi_epi8(low, low)));
                _mm512_store_si512(out.add(4), second.look_up(_mm512_unpacklo_epi8(high, high)));
                _mm512_store_si512(out.add(5), second.look_up(_mm512_unpackhi_epi8(high, high)));
            }
        }
    }

    #[inline(always)]
    fn prefetch(&self, row: usize, step: usize) {
        if step.is_multiple_of(CODES) {
            self.0.prefetch(row, step / 4 * Q4_K_BYTES + step % 4 * 32);
        }
    }
}

/// Kernels of up to [`ROWS`] rows of the left operand.
macro_rules! kernels {
    ($($name:ident: $rows:ty;)*) => {
        $(
        /// # Safety
        /// All of the work is there, and the CPU has AVX-512 with pairs of bfloat16.
        #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
        unsafe fn $name(rows: $rows, work: Work, m: usize) {
            // SAFETY: the caller's promise.
            unsafe {
                match m {
                    1 => product::<_, 1>(&rows, work),
                    2 => product::<_, 2>(&rows, work),
                    3 => product::<_, 3>(&rows, work),
                    _ => product::<_, 4>(&rows, work),
                }
            }
        })*
    };
}
kernels! {
    nf4: Nf4<'_, false>;
    nf4_nested: Nf4<'_, true>;
    int8: Int8;
    q8_0: Q8_0;
    q4_k: Q4K;
}

/// The decoded vectors of a step.
#[repr(align(64))]
struct Decoded([[[u8; 64]; VECTORS]; QUADS]);

/// The sums of a row of the left operand, of 32 columns.
type Sums = [__m512; 2];

/// # Safety
/// As for the kernels.
#[inline(always)]
unsafe fn product<R: Rows, const M: usize>(rows: &R, work: Work) {
    let Work { out, left, k, block } = work;
    let mut buffers = [const { Decoded([[[0; 64]; VECTORS]; QUADS]) }; 2];
    let [one, other] = &mut buffers;
    let (mut current, mut next) = (one.0.as_mut_ptr().cast::<__m512i>(), other.0.as_mut_ptr().cast::<__m512i>());
    let steps = k / PAIRS;
    // SAFETY: the caller's promise; steps exist in the rows, blocks in the left operand.
    unsafe {
        let zeros = [_mm512_setzero_ps(); 2];
        let (mut totals, mut sums) = ([zeros; M], [zeros; M]);
        let (mut begin, mut end, mut x) = (0, block.min(k), left);
        for step in 0..=steps {
            for t in 0..VECTORS {
                // The four `t` of the next step, and the pairs `4 t..` of this one.
                if step < steps {
                    for row in rows_of(t) {
                        rows.prefetch(row, step);
                    }
                    rows.decode(t, step, next.add(VECTORS * t));
                }
                if step == 0 {
                    continue;
                }
                let p = (step - 1) * PAIRS + 4 * t;
                add_products(&mut sums, x.add(p - begin), current.add(t));
                if p + 4 == end {
                    for (total, sum) in totals.as_flattened_mut().iter_mut().zip(sums.as_flattened_mut()) {
                        *total = if begin == 0 { *sum } else { _mm512_add_ps(*total, *sum) };
                        *sum = _mm512_setzero_ps();
                    }
                    x = x.add(M * DEPTH);
                    (begin, end) = (end, (end + block).min(k));
                }
            }
            std::mem::swap(&mut current, &mut next);
        }
        for (row, totals) in totals.iter().enumerate() {
            _mm512_storeu_ps(out.add(row * COLUMNS), totals[0]);
            _mm512_storeu_ps(out.add(row * COLUMNS + 16), totals[1]);
        }
    }
}

/// `sums += ` the products of four pairs from `x` on, rows at distance [`DEPTH`], with those of all columns: vectors `at` of every
/// four.
///
/// # Safety
/// They are readable, and the CPU has AVX-512 with pairs of bfloat16.
#[inline(always)]
unsafe fn add_products<const M: usize>(sums: &mut [Sums; M], x: *const f32, at: *const __m512i) {
    // SAFETY: the caller's promise; the types are of one size.
    unsafe {
        for half in 0..2 {
            let at = at.add(half * QUADS / 2 * VECTORS);
            let (v0, v1) = (_mm512_load_si512(at), _mm512_load_si512(at.add(VECTORS)));
            let (v2, v3) = (_mm512_load_si512(at.add(2 * VECTORS)), _mm512_load_si512(at.add(3 * VECTORS)));
            let (a, b) = (_mm512_unpacklo_epi32(v0, v1), _mm512_unpackhi_epi32(v0, v1));
            let (c, d) = (_mm512_unpacklo_epi32(v2, v3), _mm512_unpackhi_epi32(v2, v3));
            let pairs = [
                _mm512_unpacklo_epi64(a, c),
                _mm512_unpackhi_epi64(a, c),
                _mm512_unpacklo_epi64(b, d),
                _mm512_unpackhi_epi64(b, d),
            ];
            for (row, sums) in sums.iter_mut().enumerate() {
                for (i, pair) in pairs.into_iter().enumerate() {
                    let x = _mm512_set1_ps(*x.add(row * DEPTH + i));
                    let (x, pair) = (transmute::<__m512, __m512bh>(x), transmute::<__m512i, __m512bh>(pair));
                    sums[half] = _mm512_dpbf16_ps(sums[half], x, pair);
                }
            }
        }
    }
}
