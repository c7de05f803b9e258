//! The microkernels of the matrix product in vectors: a few rows of the result by one or two vectors of its columns.
//!
//! Elements of one operand are broadcast, the other is read in vectors; the result stays in registers. Every element of
//! it is one chain of multiply-adds in the order of k, whatever the kernel's size and the element's place in it, so that
//! the shape of a kernel changes no bits.

use std::array::from_fn;

use super::super::float::Float;

/// Pairs of bfloat16 along k that a kernel of AMX reads at once: a row of a tile register. All operands in pairs are as
/// long as a multiple of this, so that every instruction set gives the same blocks of k.
pub const PAIR_STEP: usize = 16;

/// What a microkernel works on: `out [rows, vectors] (+)= broadcast [rows, k] vector [k, vectors]`.
#[derive(Clone, Copy)]
pub struct TileOperands<A> {
    /// Elements along k.
    pub k: usize,
    /// The operand whose elements are broadcast: `(i, p)` is at `i * broadcast_row + p * broadcast_k`.
    pub broadcast: *const A,
    /// Distance of its rows.
    pub broadcast_row: usize,
    /// Distance of its elements along k; one of the two is 1.
    pub broadcast_k: usize,
    /// The operand that is read in vectors, `(p, j)` at `p * vector_k + j`.
    pub vector: *const A,
    /// Its distance along k.
    pub vector_k: usize,
    /// The result, `(i, j)` at `i * out_row + j`.
    pub out: *mut A,
    /// Distance of its rows.
    pub out_row: usize,
    /// Whether to add to what is there.
    pub add: bool,
}

/// A microkernel of a number of rows and of vectors.
///
/// # Safety
/// To be called with operands that have all rows and vectors of the kernel, the result exclusively, where the CPU
/// has the kernel's instructions.
pub type Microkernel<A> = unsafe fn(TileOperands<A>);

/// In how many pieces a kernel of a block does what is to be done alongside.
pub const PIECES: usize = 2;

/// What else is done while a block is multiplied.
#[derive(Clone, Copy)]
pub struct Alongside<'a, A> {
    /// Of how many rows, from where on, at the distance of the broadcast operand's, the same elements are prefetched into the
    /// second-level cache. They need not exist.
    pub ahead: Option<(*const A, usize)>,
    /// Work, called with the number of each of its [`PIECES`].
    pub work: Option<&'a dyn Fn(usize)>,
}

/// A microkernel of a whole block: the rows of the tallest microkernel by two vectors.
///
/// # Safety
/// As for a [`Microkernel`]; the vector operand is packed.
pub type BlockKernel<A> = unsafe fn(TileOperands<A>, Alongside<'_, A>);

/// A vector of elements.
///
/// # Safety
/// [`load`](Self::load) reads and [`store`](Self::store) writes [`COUNT`](Self::COUNT) consecutive elements and nothing
/// else, at any alignment that suits `A`; no function needs more than its caller promises.
unsafe trait Vector<A>: Copy {
    /// Elements of a vector.
    const COUNT: usize;

    /// Zeros.
    ///
    /// # Safety
    /// The CPU has the instructions of the type.
    unsafe fn zero() -> Self;

    /// The `COUNT` elements from `from` on.
    ///
    /// # Safety
    /// They are readable, and the CPU has the instructions of the type.
    unsafe fn load(from: *const A) -> Self;

    /// `to[..COUNT] = self`.
    ///
    /// # Safety
    /// The `COUNT` elements from `to` on are writable, and the CPU has the instructions of the type.
    unsafe fn store(self, to: *mut A);

    /// `x` in every element.
    ///
    /// # Safety
    /// The CPU has the instructions of the type.
    unsafe fn splat(x: A) -> Self;

    /// `self + a * b`, in one rounding where the instruction set has that.
    ///
    /// # Safety
    /// The CPU has the instructions of the type.
    unsafe fn add_product(self, a: Self, b: Self) -> Self;

    /// `self + other`.
    ///
    /// # Safety
    /// The CPU has the instructions of the type.
    unsafe fn add(self, other: Self) -> Self;
}

/// # Safety
/// The operands are as [`TileOperands`] says, with `ROWS` rows and `PANEL` vectors; if `UNIT`, `broadcast_row` is 1, else
/// `broadcast_k` is; and the CPU has the instructions of `V`.
#[inline(always)]
unsafe fn microkernel<A: Float, V: Vector<A>, const ROWS: usize, const PANEL: usize, const UNIT: bool>(
    operands: TileOperands<A>,
) {
    let TileOperands { k, broadcast, broadcast_row, broadcast_k, vector, vector_k, out, out_row, add } = operands;
    // SAFETY: every address is inside the operands as the caller describes them. There are no closures, which would
    // not have the instructions.
    unsafe {
        let mut sums: [[V; PANEL]; ROWS] = [[V::zero(); PANEL]; ROWS];
        let (mut broadcast, mut vector) = (broadcast, vector);
        for _ in 0..k {
            let mut panel = [V::zero(); PANEL];
            for (j, lane) in panel.iter_mut().enumerate() {
                *lane = V::load(vector.add(j * V::COUNT));
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                let x = V::splat(*broadcast.add(if UNIT { i } else { i * broadcast_row }));
                for (sum, &lane) in sums.iter_mut().zip(&panel) {
                    *sum = sum.add_product(x, lane);
                }
            }
            broadcast = broadcast.wrapping_add(if UNIT { broadcast_k } else { 1 });
            vector = vector.wrapping_add(vector_k);
        }
        for (i, sums) in sums.into_iter().enumerate() {
            for (j, sum) in sums.into_iter().enumerate() {
                let to = out.add(i * out_row + j * V::COUNT);
                let total = if add { V::load(to).add(sum) } else { sum };
                total.store(to);
            }
        }
    }
}

/// Vectors of the plain path: arrays, which the compiler turns into what the architecture has.
#[derive(Clone, Copy)]
struct Plain<A, const N: usize>([A; N]);

// SAFETY: an array of `N` elements is what is read and written.
unsafe impl<A: Float, const N: usize> Vector<A> for Plain<A, N> {
    const COUNT: usize = N;
    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([A::ZERO; N])
    }
    #[inline(always)]
    unsafe fn load(from: *const A) -> Self {
        // SAFETY: the caller's promise: N readable elements.
        Self(unsafe { from.cast::<[A; N]>().read() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut A) {
        // SAFETY: the caller's promise: N writable elements.
        unsafe { to.cast::<[A; N]>().write(self.0) }
    }
    #[inline(always)]
    unsafe fn splat(x: A) -> Self {
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
macro_rules! vectors {
    ($($a:ty, $v:ty, $n:literal, $zero:ident, $load:ident, $store:ident, $splat:ident, $fma:ident, $add:ident;)*) => {
        $(
        // SAFETY: the intrinsics read and write one vector of `$n` elements, wherever it lies.
        unsafe impl Vector<$a> for $v {
            const COUNT: usize = $n;
            #[inline(always)]
            unsafe fn zero() -> Self {
                // SAFETY: the caller's promise: the CPU has the instruction.
                unsafe { $zero() }
            }
            #[inline(always)]
            unsafe fn load(from: *const $a) -> Self {
                // SAFETY: the caller's promise: the elements are readable.
                unsafe { $load(from) }
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut $a) {
                // SAFETY: the caller's promise: the elements are writable.
                unsafe { $store(to, self) }
            }
            #[inline(always)]
            unsafe fn splat(x: $a) -> Self {
                // SAFETY: the caller's promise: the CPU has the instruction.
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

    use crate::backend::cpu::gemm::microkernel::Vector;

    /// Pairs of bfloat16, of whose products both are added to a sum in single precision; subnormal numbers count as 0.
    #[derive(Clone, Copy)]
    pub struct Pairs(__m512);

    // SAFETY: as for a vector of single precision, which reads and writes it.
    unsafe impl Vector<f32> for Pairs {
        const COUNT: usize = 16;
        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: the caller's promise: the CPU has the instruction.
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
            // SAFETY: the caller's promise: the CPU has the instruction.
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

    vectors! {
        f32, __m256, 8, _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps, _mm256_fmadd_ps, _mm256_add_ps;
        f64, __m256d, 4, _mm256_setzero_pd, _mm256_loadu_pd, _mm256_storeu_pd, _mm256_set1_pd, _mm256_fmadd_pd, _mm256_add_pd;
        f32, __m512, 16, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps, _mm512_fmadd_ps, _mm512_add_ps;
        f64, __m512d, 8, _mm512_setzero_pd, _mm512_loadu_pd, _mm512_storeu_pd, _mm512_set1_pd, _mm512_fmadd_pd, _mm512_add_pd;
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use std::arch::aarch64::*;

    use crate::backend::cpu::gemm::microkernel::Vector;

    macro_rules! operations {
        ($($a:ty, $v:ty, $zero:ident, $splat:ident, $fma:ident, $add_product:ident;)*) => {
            $(
            /// # Safety
            /// None beyond the architecture: every CPU of it has the instruction.
            #[inline(always)]
            unsafe fn $zero() -> $v {
                // SAFETY: every CPU of the architecture has the instruction.
                unsafe { $splat(0.0) }
            }
            /// # Safety
            /// As above.
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
    vectors! {
        f32, float32x4_t, 4, zero_f32, vld1q_f32, vst1q_f32, vdupq_n_f32, fma_f32, vaddq_f32;
        f64, float64x2_t, 2, zero_f64, vld1q_f64, vst1q_f64, vdupq_n_f64, fma_f64, vaddq_f64;
    }
}

/// A microkernel of every size in the vectors `$v`, with the features that these need.
macro_rules! microkernels {
    ($name:ident, $a:ty, $v:ty $(, $features:literal)?) => {
        /// # Safety
        /// As for [`microkernel`].
        $(#[target_feature(enable = $features)])?
        pub unsafe fn $name<const ROWS: usize, const PANEL: usize, const UNIT: bool>(operands: TileOperands<$a>) {
            // SAFETY: the caller's promise; the instructions are enabled here.
            unsafe { microkernel::<$a, $v, ROWS, PANEL, UNIT>(operands) }
        }
    };
}
microkernels!(plain_f32, f32, Plain<f32, 4>);
microkernels!(plain_f64, f64, Plain<f64, 2>);
#[cfg(target_arch = "x86_64")]
microkernels!(avx2_f32, f32, std::arch::x86_64::__m256, "avx2,fma");
#[cfg(target_arch = "x86_64")]
microkernels!(avx2_f64, f64, std::arch::x86_64::__m256d, "avx2,fma");
#[cfg(target_arch = "x86_64")]
microkernels!(avx512_f32, f32, std::arch::x86_64::__m512, "avx512f");
#[cfg(target_arch = "x86_64")]
microkernels!(avx512_f64, f64, std::arch::x86_64::__m512d, "avx512f");
#[cfg(target_arch = "x86_64")]
microkernels!(avx512_pairs, f32, x86::Pairs, "avx512f,avx512bf16");
#[cfg(target_arch = "aarch64")]
microkernels!(neon_f32, f32, std::arch::aarch64::float32x4_t);
#[cfg(target_arch = "aarch64")]
microkernels!(neon_f64, f64, std::arch::aarch64::float64x2_t);
