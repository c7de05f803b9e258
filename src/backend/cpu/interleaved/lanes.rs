//! Groups decoded in registers: what is done with pairs of bfloat16 of 16 columns at a time, and what all formats need to make them.

use std::arch::x86_64::*;
use std::mem::transmute;

use super::{COLUMNS, Interleaved, PAIRS, PANEL};

/// What goes through the units of a group.
pub trait Work {
    /// Does it with a group that a decoder has.
    ///
    /// # Safety
    /// The group has the units, and the CPU has AVX-512 with pairs of bfloat16.
    unsafe fn run<'a, D: Decode<'a>>(self, group: D);
}

/// A group of a format.
pub trait Decode<'a> {
    /// # Safety
    /// `group` are the bytes of one of the matrix; as for [`Work`].
    unsafe fn new(group: *const u8, matrix: &'a Interleaved) -> Self;

    /// Makes ready what the codes of a unit are multiplied by.
    ///
    /// # Safety
    /// There is such a unit; as for [`Work`].
    unsafe fn begin(&mut self, unit: usize);

    /// The values of pair `P` of the unit that was begun, of vector `vector` of 8 columns.
    ///
    /// # Safety
    /// As for [`Work`].
    unsafe fn values<const P: usize>(&self, vector: usize) -> __m512;

    /// The same of 16 columns, rounded.
    ///
    /// # Safety
    /// As for [`Work`].
    #[inline(always)]
    unsafe fn pairs<const P: usize>(&self, quarter: usize) -> __m512i {
        // SAFETY: the caller's promise; the types are of one size.
        unsafe {
            let [first, second] = [self.values::<P>(2 * quarter), self.values::<P>(2 * quarter + 1)];
            transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first))
        }
    }
}

/// A group as panels, `depth` pairs from unit `first` on.
pub struct Panels<'a> {
    pub to: &'a mut [u32],
    pub depth: usize,
    pub first: usize,
}

impl Work for Panels<'_> {
    #[inline(always)]
    unsafe fn run<'a, D: Decode<'a>>(self, mut group: D) {
        let Self { to, depth, first } = self;
        let width = to.len() / depth;
        // SAFETY: the caller's promise.
        unsafe {
            for unit in 0..depth / PAIRS {
                group.begin(first + unit);
                for (panel, to) in to.chunks_mut(PANEL * depth).enumerate() {
                    let vectors = (width - PANEL * panel).min(PANEL) / 16;
                    let to = to[unit * PAIRS * 16 * vectors..][..PAIRS * 16 * vectors].as_mut_ptr();
                    macro_rules! pairs {
                        ($($p:literal)*) => {$(
                            for vector in 0..vectors {
                                let pairs = group.pairs::<$p>(2 * panel + vector);
                                _mm512_storeu_si512(to.add(16 * ($p * vectors + vector)).cast(), pairs);
                            }
                        )*};
                    }
                    pairs!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
                }
            }
        }
    }
}

/// Of each 16 columns a vector for the first 8, each in two lanes side by side, and one for the others.
pub type Doubled = [[__m512; 2]; COLUMNS / 16];

/// # Safety
/// The CPU has AVX-512 F.
#[inline(always)]
pub unsafe fn zeros() -> Doubled {
    // SAFETY: the caller's promise.
    unsafe { [[_mm512_setzero_ps(); 2]; COLUMNS / 16] }
}

/// Numbers of all columns, doubled.
///
/// # Safety
/// As above.
#[inline(always)]
pub unsafe fn doubled(numbers: [__m512; COLUMNS / 16]) -> Doubled {
    // SAFETY: the caller's promise.
    unsafe { numbers.map(|x| [_mm512_moveldup_ps(x), _mm512_movehdup_ps(x)]) }
}

/// 64 numbers.
///
/// # Safety
/// They are there; as above.
#[inline(always)]
pub unsafe fn singles(at: *const u8) -> [__m512; COLUMNS / 16] {
    // SAFETY: the caller's promise.
    unsafe { [0, 1, 2, 3].map(|i| _mm512_loadu_ps(at.add(64 * i).cast())) }
}

/// 64 numbers in half precision.
///
/// # Safety
/// As above.
#[inline(always)]
pub unsafe fn halves(at: *const u8) -> [__m512; COLUMNS / 16] {
    // SAFETY: the caller's promise.
    unsafe { [0, 1, 2, 3].map(|i| _mm512_cvtph_ps(_mm256_loadu_si256(at.add(32 * i).cast()))) }
}

/// Codes of so many bits, 2 to 6, of 8 columns: those of pair `P` lowest, and others above them.
///
/// # Safety
/// A unit of such codes lies from `codes` on; the CPU has AVX-512 F.
#[inline(always)]
pub unsafe fn codes<const P: usize>(bits: usize, codes: *const u8, vector: usize) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe {
        let (each, whole) = (32 / bits, bits / 2);
        // Words of 32 bits that each lane has, and halves of words behind those.
        let word = |word: usize| _mm512_loadu_si512(codes.add(64 * (8 * word + vector)).cast());
        let half = || _mm512_loadu_si512(codes.add(64 * (8 * whole + vector / 2)).cast());
        let shifted = |x, by: usize| _mm512_srlv_epi32(x, _mm512_set1_epi32(by as i32));
        let (at, high) = (P / each, vector % 2 * 16);
        if at < whole {
            return shifted(word(at), P % each * bits);
        }
        if P < 15 {
            return shifted(half(), high + (P - each * whole) * bits);
        }
        // Two bits of the last one are what a word has over, and one what a half has.
        let (words, mut last) = match bits % 2 {
            0 => (whole - 1, shifted(word(whole - 1), 32 - bits)),
            _ => (whole, shifted(half(), high + 15 - 2 * whole)),
        };
        for i in (0..words).rev() {
            let low = _mm512_set1_epi32((4 << (2 * i)) - 1);
            // low ? word : last
            last = _mm512_ternarylogic_epi32::<0xca>(low, shifted(word(i), 30 - 2 * i), last);
        }
        last
    }
}

/// The 16 numbers of a table at codes; a permutation looks at no other bits of these than the lowest four.
///
/// # Safety
/// As above.
#[inline(always)]
pub unsafe fn look_up(table: __m512, codes: __m512i) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_permutexvar_ps(codes, table) }
}

/// Signed bytes of 8 columns as numbers, those of pair `P`.
///
/// # Safety
/// As for [`codes`].
#[inline(always)]
pub unsafe fn signed<const P: usize>(codes: *const u8, vector: usize) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe {
        let codes = _mm_loadu_si128(codes.add(16 * (8 * P + vector)).cast());
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes))
    }
}

/// The numbers from here on have no fraction: the last bits of theirs are a whole number that is added.
pub const WHOLE: f32 = 8_388_608.0;
