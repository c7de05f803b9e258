//! The inner tile of the matrix product, for every instruction set.
//!
//! A tile multiplies rows of one packed operand, whose elements are broadcast, with a panel of the other, whose
//! elements lie side by side in vectors. Every element of the result is one chain of multiply-adds in the order of k,
//! whatever the tile's size and the element's place in it.

use std::array::from_fn;

use super::simd::{Float, Isa};

/// Elements along k that are packed at once; the distance of two packed rows.
pub const DEPTH: usize = 320;

/// `c (+)= rows * panel`: `k`, rows `[_, DEPTH]`, panel `[k, lanes]`, `c`, its row distance, whether to add.
pub type Tile<W> = unsafe fn(usize, *const W, *const W, *mut W, usize, bool);

/// The tiles of an instruction set.
#[derive(Clone, Copy)]
pub struct Tiles<W> {
    /// Elements of a vector; a wide panel has two vectors, a narrow one has one.
    pub lanes: usize,
    /// Rows of the wide tile; divides `narrow_rows`.
    pub wide_rows: usize,
    /// The tile over a wide panel.
    pub wide: Tile<W>,
    /// Rows of the narrow tile.
    pub narrow_rows: usize,
    /// The tile over a narrow panel.
    pub narrow: Tile<W>,
}

/// A vector of elements.
trait Lanes<W>: Copy {
    /// How many.
    const COUNT: usize;
    /// Zeros.
    unsafe fn zero() -> Self;
    /// From memory.
    unsafe fn load(from: *const W) -> Self;
    /// To memory.
    unsafe fn store(self, to: *mut W);
    /// One element everywhere.
    unsafe fn splat(x: W) -> Self;
    /// `self + a * b`.
    unsafe fn add_product(self, a: Self, b: Self) -> Self;
    /// `self + other`.
    unsafe fn add(self, other: Self) -> Self;
}

/// # Safety
/// `b` has `ROWS` rows of `k` elements at distance `DEPTH`, `v` has `k * PANEL` vectors, `c` has `ROWS` rows of
/// `PANEL` vectors at distance `ldc`, and the processor has the instructions of `V`.
#[inline(always)]
unsafe fn tile<W: Float, V: Lanes<W>, const ROWS: usize, const PANEL: usize>(
    k: usize,
    b: *const W,
    v: *const W,
    c: *mut W,
    ldc: usize,
    add: bool,
) {
    // SAFETY: every address is inside the operands as the caller describes them.
    unsafe {
        let mut sums: [[V; PANEL]; ROWS] = [[V::zero(); PANEL]; ROWS];
        for p in 0..k {
            let panel: [V; PANEL] = from_fn(|j| V::load(v.add((p * PANEL + j) * V::COUNT)));
            for (i, sums) in sums.iter_mut().enumerate() {
                let x = V::splat(*b.add(i * DEPTH + p));
                for (sum, &lane) in sums.iter_mut().zip(&panel) {
                    *sum = sum.add_product(x, lane);
                }
            }
        }
        for (i, sums) in sums.into_iter().enumerate() {
            for (j, sum) in sums.into_iter().enumerate() {
                let to = c.add(i * ldc + j * V::COUNT);
                let total = if add { V::load(to).add(sum) } else { sum };
                total.store(to);
            }
        }
    }
}

/// Vectors of the plain path: arrays, which the compiler turns into what the architecture has.
#[derive(Clone, Copy)]
struct Plain<W, const N: usize>([W; N]);

impl<W: Float, const N: usize> Lanes<W> for Plain<W, N> {
    const COUNT: usize = N;
    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([W::ZERO; N])
    }
    #[inline(always)]
    unsafe fn load(from: *const W) -> Self {
        // SAFETY: the caller's promise: N readable elements.
        Self(unsafe { from.cast::<[W; N]>().read() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut W) {
        // SAFETY: the caller's promise: N writable elements.
        unsafe { to.cast::<[W; N]>().write(self.0) }
    }
    #[inline(always)]
    unsafe fn splat(x: W) -> Self {
        Self([x; N])
    }
    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        Self(from_fn(|i| self.0[i] + a.0[i] * b.0[i]))
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(from_fn(|i| self.0[i] + other.0[i]))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Lanes;

    macro_rules! lanes {
        ($($w:ty, $v:ty, $n:literal, $zero:ident, $load:ident, $store:ident, $splat:ident, $fma:ident, $add:ident;)*) => {
            $(impl Lanes<$w> for $v {
                const COUNT: usize = $n;
                #[inline(always)]
                unsafe fn zero() -> Self {
                    // SAFETY: the caller's promise: the processor has the instruction.
                    unsafe { $zero() }
                }
                #[inline(always)]
                unsafe fn load(from: *const $w) -> Self {
                    // SAFETY: the caller's promise: the elements are readable.
                    unsafe { $load(from) }
                }
                #[inline(always)]
                unsafe fn store(self, to: *mut $w) {
                    // SAFETY: the caller's promise: the elements are writable.
                    unsafe { $store(to, self) }
                }
                #[inline(always)]
                unsafe fn splat(x: $w) -> Self {
                    // SAFETY: the caller's promise: the processor has the instruction.
                    unsafe { $splat(x) }
                }
                #[inline(always)]
                unsafe fn add_product(self, a: Self, b: Self) -> Self {
                    // SAFETY: as above.
                    unsafe { $fma(a, b, self) }
                }
                #[inline(always)]
                unsafe fn add(self, other: Self) -> Self {
                    // SAFETY: as above.
                    unsafe { $add(self, other) }
                }
            })*
        };
    }
    lanes! {
        f32, __m256, 8, _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps, _mm256_fmadd_ps, _mm256_add_ps;
        f64, __m256d, 4, _mm256_setzero_pd, _mm256_loadu_pd, _mm256_storeu_pd, _mm256_set1_pd, _mm256_fmadd_pd, _mm256_add_pd;
        f32, __m512, 16, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps, _mm512_fmadd_ps, _mm512_add_ps;
        f64, __m512d, 8, _mm512_setzero_pd, _mm512_loadu_pd, _mm512_storeu_pd, _mm512_set1_pd, _mm512_fmadd_pd, _mm512_add_pd;
    }
}

macro_rules! tiles {
    ($name:ident, $w:ty, $plain:literal, $v256:ident, $v512:ident) => {
        impl Tiles<$w> {
            /// The tiles of `isa`, which this processor must have.
            pub fn $name(isa: Isa) -> Self {
                unsafe fn plain<const ROWS: usize, const PANEL: usize>(
                    k: usize,
                    b: *const $w,
                    v: *const $w,
                    c: *mut $w,
                    ldc: usize,
                    add: bool,
                ) {
                    // SAFETY: the caller's promise; no special instructions.
                    unsafe { tile::<$w, Plain<$w, $plain>, ROWS, PANEL>(k, b, v, c, ldc, add) }
                }
                #[cfg(target_arch = "x86_64")]
                #[target_feature(enable = "avx2,fma")]
                unsafe fn avx2<const ROWS: usize, const PANEL: usize>(
                    k: usize,
                    b: *const $w,
                    v: *const $w,
                    c: *mut $w,
                    ldc: usize,
                    add: bool,
                ) {
                    // SAFETY: the caller's promise; the instructions are enabled here.
                    unsafe { tile::<$w, std::arch::x86_64::$v256, ROWS, PANEL>(k, b, v, c, ldc, add) }
                }
                #[cfg(target_arch = "x86_64")]
                #[target_feature(enable = "avx512f")]
                unsafe fn avx512<const ROWS: usize, const PANEL: usize>(
                    k: usize,
                    b: *const $w,
                    v: *const $w,
                    c: *mut $w,
                    ldc: usize,
                    add: bool,
                ) {
                    // SAFETY: the caller's promise; the instructions are enabled here.
                    unsafe { tile::<$w, std::arch::x86_64::$v512, ROWS, PANEL>(k, b, v, c, ldc, add) }
                }
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 => {
                        let lanes = size_of::<std::arch::x86_64::$v256>() / size_of::<$w>();
                        Self { lanes, wide_rows: 6, wide: avx2::<6, 2>, narrow_rows: 12, narrow: avx2::<12, 1> }
                    }
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512 => {
                        let lanes = size_of::<std::arch::x86_64::$v512>() / size_of::<$w>();
                        Self { lanes, wide_rows: 14, wide: avx512::<14, 2>, narrow_rows: 14, narrow: avx512::<14, 1> }
                    }
                    _ => {
                        Self { lanes: $plain, wide_rows: 4, wide: plain::<4, 2>, narrow_rows: 8, narrow: plain::<8, 1> }
                    }
                }
            }
        }
    };
}
tiles!(f32, f32, 4, __m256, __m512);
tiles!(f64, f64, 2, __m256d, __m512d);
