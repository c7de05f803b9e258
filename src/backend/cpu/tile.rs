//! The inner tile of the matrix product, for every instruction set.
//!
//! A tile multiplies rows, whose elements are broadcast, with columns that lie side by side in vectors (lanes). Every
//! element of the result is one chain of multiply-adds in the order of k, whatever the tile's size and the element's
//! place in it. Both operands are read where they lie, packed or not, if one of their strides is 1.

use std::array::from_fn;

#[cfg(target_arch = "x86_64")]
use super::amx::{self, Tiled};
use super::simd::{Float, Isa};

/// Elements along k that are multiplied at once; the distance of two packed rows.
pub const DEPTH: usize = 320;
/// Bytes at a multiple of whose distance elements share a set of the first-level cache.
const ALIASED: usize = 4096;
/// Lines that a set holds.
const WAYS: usize = 8;

/// The operand whose elements are broadcast: `(i, p)` is `data[i * row + p * k]`.
#[derive(Clone, Copy)]
pub struct Rows<'a, W> {
    /// The elements.
    pub data: &'a [W],
    /// Distance of two rows.
    pub row: usize,
    /// Distance of two elements of a row; one of the two is 1.
    pub k: usize,
}

impl<W> Rows<'_, W> {
    /// Whether the same elements of all rows share a set of the first-level cache.
    pub fn aliased(&self) -> bool {
        self.k == 1 && (self.row * size_of::<W>()).is_multiple_of(ALIASED)
    }
}

/// The operand that lies in vectors. Panel `j` of two vectors begins at `j * panel`, and goes on after `k` elements
/// for the next step along k; a last panel of one vector goes on after `last`.
#[derive(Clone, Copy)]
pub struct Panels<'a, W> {
    /// The elements.
    pub data: &'a [W],
    /// Distance of two panels.
    pub panel: usize,
    /// Distance along k.
    pub k: usize,
    /// Distance along k in a last panel of one vector.
    pub last: usize,
}

impl<'a, W> Panels<'a, W> {
    /// A matrix `[k, lanes]` at row distance `stride`, as it lies in memory.
    pub fn plain(data: &'a [W], stride: usize, lanes: usize) -> Self {
        Self { data, panel: 2 * lanes, k: stride, last: stride }
    }

    /// Panels of `depth` steps, one after the other.
    pub fn packed(data: &'a [W], depth: usize, lanes: usize) -> Self {
        Self { data, panel: 2 * lanes * depth, k: 2 * lanes, last: lanes }
    }
}

/// `c (+)= b v`: `k`, `b` with its distance of rows and along k, `v` with its distance along k, `c` with its distance
/// of rows, whether to add.
pub type Kernel<W> = unsafe fn(usize, *const W, usize, usize, *const W, usize, *mut W, usize, bool);

/// Kernels of so many rows: for rows that are contiguous along k, and for elements of one k that are contiguous.
type Height<W> = (usize, [Kernel<W>; 2]);

/// The tiles of an instruction set.
#[derive(Clone, Copy)]
pub struct Tiles<W> {
    /// Elements of a vector.
    pub lanes: usize,
    /// Elements along k that are multiplied at once: `k` is a multiple of it.
    pub step: usize,
    /// Rows of the tallest tile over two vectors.
    pub rows: usize,
    /// Whether a line of each row is read at once, not an element at a time: then rows may push each other out of the cache.
    pub whole_lines: bool,
    /// Rows that stay in the second-level cache while lanes pass by; a multiple of `rows`.
    cached: usize,
    /// Over two vectors, from the tallest to one row.
    wide: [Height<W>; 6],
    /// Over one vector.
    narrow: [Height<W>; 6],
    /// What a thread has to have while it multiplies.
    #[cfg(target_arch = "x86_64")]
    tiled: fn() -> Option<Tiled>,
}

/// While it lives, this thread has what the tiles need.
pub struct Held {
    #[cfg(target_arch = "x86_64")]
    _tiled: Option<Tiled>,
}

impl<W: Float> Tiles<W> {
    /// Has ready on this thread what multiplying needs, which each product alone would otherwise do for itself.
    pub fn hold(&self) -> Held {
        Held {
            #[cfg(target_arch = "x86_64")]
            _tiled: (self.tiled)(),
        }
    }

    /// `c [rows, lanes] (+)= rows [rows, k] panels [k, lanes]`, where `c` has rows at distance `c_row`.
    ///
    /// # Panics
    /// If the operands are too short, or `lanes` is no multiple of a vector's.
    pub fn multiply(
        &self,
        [rows, lanes, k]: [usize; 3],
        b: Rows<'_, W>,
        v: Panels<'_, W>,
        c: &mut [W],
        c_row: usize,
        add: bool,
    ) {
        if rows == 0 || lanes == 0 {
            return;
        }
        let wide = 2 * self.lanes;
        let (whole, narrow) = (lanes / wide, lanes % wide);
        assert!(narrow == 0 || narrow == self.lanes, "tile: {lanes} lanes, vectors of {}", self.lanes);
        assert!(b.row == 1 || b.k == 1, "tile: rows at distances {} and {}", b.row, b.k);
        assert!(c.len() >= (rows - 1) * c_row + lanes && c_row >= lanes, "tile: {} sums at {c_row}", c.len());
        if k > 0 {
            let reach = (rows - 1) * b.row + (k - 1) * b.k + 1;
            assert!(b.data.len() >= reach, "tile: {} elements in rows, needs {reach}", b.data.len());
            let body = if whole > 0 { (whole - 1) * v.panel + (k - 1) * v.k + wide } else { 0 };
            let tail = if narrow > 0 { whole * v.panel + (k - 1) * v.last + narrow } else { 0 };
            assert!(v.data.len() >= body.max(tail), "tile: {} elements in panels of {lanes}", v.data.len());
        }
        let unit = usize::from(b.k != 1);
        let tallest = if b.aliased() && !self.whole_lines { WAYS } else { usize::MAX };
        let _held = self.hold();
        for part in (0..rows).step_by(self.cached) {
            let end = rows.min(part + self.cached);
            for panel in 0..whole + usize::from(narrow > 0) {
                let (heights, v_k) = if panel < whole { (&self.wide, v.k) } else { (&self.narrow, v.last) };
                let mut row = part;
                for (height, kernels) in heights.iter().filter(|(height, _)| *height <= tallest) {
                    while row + height <= end {
                        // SAFETY: the operands reach as far by the checks above; the kernels are those of an
                        // instruction set that was detected.
                        unsafe {
                            let b_at = b.data.as_ptr().wrapping_add(row * b.row);
                            let v_at = v.data.as_ptr().wrapping_add(panel * v.panel);
                            let c_at = c.as_mut_ptr().add(row * c_row + panel * wide);
                            kernels[unit](k, b_at, b.row, b.k, v_at, v_k, c_at, c_row, add);
                        }
                        row += height;
                    }
                }
            }
        }
    }
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
/// `b` has `ROWS` rows of `k` elements, `v` has `PANEL` vectors `k` times, `c` has `ROWS` rows of `PANEL` vectors, all
/// at the given distances, of which that of elements (`UNIT`: of rows) of `b` is 1; and the processor has the
/// instructions of `V`.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn tile<W: Float, V: Lanes<W>, const ROWS: usize, const PANEL: usize, const UNIT: bool>(
    k: usize,
    b: *const W,
    b_row: usize,
    b_k: usize,
    v: *const W,
    v_k: usize,
    c: *mut W,
    c_row: usize,
    add: bool,
) {
    // SAFETY: every address is inside the operands as the caller describes them. There are no closures, which would
    // not have the instructions.
    unsafe {
        let mut sums: [[V; PANEL]; ROWS] = [[V::zero(); PANEL]; ROWS];
        let (mut b, mut v) = (b, v);
        for _ in 0..k {
            let mut panel = [V::zero(); PANEL];
            for (j, lane) in panel.iter_mut().enumerate() {
                *lane = V::load(v.add(j * V::COUNT));
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                let x = V::splat(*b.add(if UNIT { i } else { i * b_row }));
                for (sum, &lane) in sums.iter_mut().zip(&panel) {
                    *sum = sum.add_product(x, lane);
                }
            }
            b = b.wrapping_add(if UNIT { b_k } else { 1 });
            v = v.wrapping_add(v_k);
        }
        for (i, sums) in sums.into_iter().enumerate() {
            for (j, sum) in sums.into_iter().enumerate() {
                let to = c.add(i * c_row + j * V::COUNT);
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

/// Vectors of an instruction set: their type, how many elements, and what each operation is called.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
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

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::mem::transmute;

    use super::Lanes;

    /// Pairs of bfloat16, of whose products both are added to a sum in single precision; subnormal numbers count as 0.
    #[derive(Clone, Copy)]
    pub struct Pairs(__m512);

    impl Lanes<f32> for Pairs {
        const COUNT: usize = 16;
        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: the caller's promise: the processor has the instruction.
            Self(unsafe { __m512::zero() })
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: the caller's promise: the elements are readable.
            Self(unsafe { __m512::load(from) })
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: the caller's promise: the elements are writable.
            unsafe { self.0.store(to) }
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: the caller's promise: the processor has the instruction.
            Self(unsafe { __m512::splat(x) })
        }
        #[inline(always)]
        unsafe fn add_product(self, a: Self, b: Self) -> Self {
            // SAFETY: as above; both types are 512 bits.
            Self(unsafe {
                _mm512_dpbf16_ps(self.0, transmute::<__m512, __m512bh>(a.0), transmute::<__m512, __m512bh>(b.0))
            })
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: as above.
            Self(unsafe { self.0.add(other.0) })
        }
    }

    lanes! {
        f32, __m256, 8, _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps, _mm256_fmadd_ps, _mm256_add_ps;
        f64, __m256d, 4, _mm256_setzero_pd, _mm256_loadu_pd, _mm256_storeu_pd, _mm256_set1_pd, _mm256_fmadd_pd, _mm256_add_pd;
        f32, __m512, 16, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps, _mm512_fmadd_ps, _mm512_add_ps;
        f64, __m512d, 8, _mm512_setzero_pd, _mm512_loadu_pd, _mm512_storeu_pd, _mm512_set1_pd, _mm512_fmadd_pd, _mm512_add_pd;
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use std::arch::aarch64::*;

    use super::Lanes;

    macro_rules! operations {
        ($($w:ty, $v:ty, $zero:ident, $splat:ident, $fma:ident, $add_product:ident;)*) => {
            $(#[inline(always)]
            unsafe fn $zero() -> $v {
                // SAFETY: every processor of the architecture has the instruction.
                unsafe { $splat(0.0) }
            }
            #[inline(always)]
            unsafe fn $fma(a: $v, b: $v, sum: $v) -> $v {
                // SAFETY: as above.
                unsafe { $add_product(sum, a, b) }
            })*
        };
    }
    operations! {
        f32, float32x4_t, zero_f32, vdupq_n_f32, fma_f32, vfmaq_f32;
        f64, float64x2_t, zero_f64, vdupq_n_f64, fma_f64, vfmaq_f64;
    }
    lanes! {
        f32, float32x4_t, 4, zero_f32, vld1q_f32, vst1q_f32, vdupq_n_f32, fma_f32, vaddq_f32;
        f64, float64x2_t, 2, zero_f64, vld1q_f64, vst1q_f64, vdupq_n_f64, fma_f64, vaddq_f64;
    }
}

macro_rules! tiles {
    ($name:ident, $w:ty, $plain:literal, $v128:ident, $v256:ident, $v512:ident) => {
        impl Tiles<$w> {
            /// The tiles of `isa`, which this processor must have.
            pub fn $name(isa: Isa) -> Self {
                tiles!(kernel plain, $w, Plain<$w, $plain>,);
                #[cfg(target_arch = "x86_64")]
                tiles!(kernel avx2, $w, std::arch::x86_64::$v256, #[target_feature(enable = "avx2,fma")]);
                #[cfg(target_arch = "x86_64")]
                tiles!(kernel avx512, $w, std::arch::x86_64::$v512, #[target_feature(enable = "avx512f")]);
                #[cfg(target_arch = "aarch64")]
                tiles!(kernel neon, $w, std::arch::aarch64::$v128,);
                match isa.of_loops() {
                    #[cfg(target_arch = "aarch64")]
                    Isa::Neon => Self {
                        lanes: size_of::<std::arch::aarch64::$v128>() / size_of::<$w>(),
                        step: 1,
                        rows: 12,
                        whole_lines: false,
                        cached: 108,
                        wide: tiles!(heights neon, 2: 12 8 4 2 1 1),
                        narrow: tiles!(heights neon, 1: 12 8 4 2 1 1),
                    },
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 => Self {
                        lanes: size_of::<std::arch::x86_64::$v256>() / size_of::<$w>(),
                        step: 1,
                        rows: 6,
                        whole_lines: false,
                        cached: 108,
                        tiled: || None,
                        wide: tiles!(heights avx2, 2: 6 4 2 1 1 1),
                        narrow: tiles!(heights avx2, 1: 12 6 4 2 1 1),
                    },
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512 => Self {
                        lanes: size_of::<std::arch::x86_64::$v512>() / size_of::<$w>(),
                        step: 1,
                        rows: 14,
                        whole_lines: false,
                        cached: 112,
                        tiled: || None,
                        wide: tiles!(heights avx512, 2: 14 8 4 2 1 1),
                        narrow: tiles!(heights avx512, 1: 14 8 4 2 1 1),
                    },
                    _ => Self {
                        lanes: $plain,
                        step: 1,
                        rows: 4,
                        whole_lines: false,
                        cached: 112,
                        #[cfg(target_arch = "x86_64")]
                        tiled: || None,
                        wide: tiles!(heights plain, 2: 4 2 1 1 1 1),
                        narrow: tiles!(heights plain, 1: 8 4 2 1 1 1),
                    },
                }
            }
        }
    };
    (kernel $isa:ident, $w:ty, $v:ty, $(#[$feature:meta])?) => {
        $(#[$feature])?
        #[allow(clippy::too_many_arguments)]
        unsafe fn $isa<const ROWS: usize, const PANEL: usize, const UNIT: bool>(
            k: usize,
            b: *const $w,
            b_row: usize,
            b_k: usize,
            v: *const $w,
            v_k: usize,
            c: *mut $w,
            c_row: usize,
            add: bool,
        ) {
            // SAFETY: the caller's promise; the instructions are enabled here.
            unsafe { tile::<$w, $v, ROWS, PANEL, UNIT>(k, b, b_row, b_k, v, v_k, c, c_row, add) }
        }
    };
    (heights $isa:ident, $panel:literal: $($rows:literal)*) => {
        [$(($rows, [$isa::<$rows, $panel, false>, $isa::<$rows, $panel, true>])),*]
    };
}
tiles!(f32, f32, 4, float32x4_t, __m256, __m512);
tiles!(f64, f64, 2, float64x2_t, __m256d, __m512d);

impl Tiles<f32> {
    /// The tiles of `isa` for operands whose elements are pairs of bfloat16 along k, if it has any; for those of AMX `k`
    /// is a multiple of [`step`](Self::step).
    pub fn pairs(isa: Isa) -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        tiles!(kernel pairs, f32, x86::Pairs, #[target_feature(enable = "avx512f,avx512bf16")]);
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => Some(Self {
                wide: tiles!(heights pairs, 2: 14 8 4 2 1 1),
                narrow: tiles!(heights pairs, 1: 14 8 4 2 1 1),
                ..Self::f32(isa)
            }),
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => Some(Self {
                step: amx::STEP,
                rows: 32,
                whole_lines: true,
                cached: 128,
                wide: amx::heights::<2>().map(|(rows, kernel)| (rows, [kernel, kernel])),
                narrow: amx::heights::<1>().map(|(rows, kernel)| (rows, [kernel, kernel])),
                // SAFETY: an `Isa` is only made where it was detected.
                tiled: || Some(unsafe { Tiled::new() }),
                ..Self::f32(isa)
            }),
            _ => None,
        }
    }
}
