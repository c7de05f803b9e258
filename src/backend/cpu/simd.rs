//! Functions compiled for every instruction set, and the vectorised loops that operations share.
//!
//! Loops are written plainly and compiled once per instruction set ([`multiversion`]); only the microkernels of
//! [`gemm`](super::gemm) are written in vectors. Nothing but those and the exponentials of attention contracts
//! `a * b + c` into one rounding, so that every instruction set gives the same bits elsewhere.

use super::buffer::HostBuffer;
pub use super::float::{DtypeVisitor, Element, Float, Visit};
pub use super::isa::Isa;
use crate::arch::Dtype;
use crate::backend::HostSlice;

/// Compiles a function for every [`Isa`], its first argument. A name after the generic types, as in `[A: Float; FUSED]`,
/// is a constant that says whether the instruction set has fused multiply-adds.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident[$($generic:ident: $bound:path),* $(; $fused:ident)?](
        $($arg:ident: $type:ty),* $(,)?
    ) $(-> $result:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name<$($generic: $bound),*>(isa: $crate::backend::cpu::simd::Isa, $($arg: $type),*) $(-> $result)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body<$($generic: $bound,)* $(const $fused: bool)?>($($arg: $type),*) $(-> $result)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            fn avx2<$($generic: $bound),*>($($arg: $type),*) $(-> $result)? {
                body::<$($generic,)* $({ const $fused: bool = true; $fused })?>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
            #[allow(clippy::too_many_arguments)]
            fn avx512<$($generic: $bound),*>($($arg: $type),*) $(-> $result)? {
                body::<$($generic,)* $({ const $fused: bool = true; $fused })?>($($arg),*)
            }
            match isa.of_loops() {
                // SAFETY: an `Isa` is proof that the CPU has the instructions.
                #[cfg(target_arch = "x86_64")]
                $crate::backend::cpu::isa::InstructionSet::Avx2 => unsafe { avx2::<$($generic),*>($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::backend::cpu::isa::InstructionSet::Avx512 => unsafe { avx512::<$($generic),*>($($arg),*) },
                #[cfg(target_arch = "aarch64")]
                $crate::backend::cpu::isa::InstructionSet::Neon => {
                    body::<$($generic,)* $({ const $fused: bool = true; $fused })?>($($arg),*)
                }
                _ => body::<$($generic,)* $({ const $fused: bool = false; $fused })?>($($arg),*),
            }
        }
    };
}
pub(crate) use multiversion;

/// `$body` for all of `$n` elements, so many at a time as fit vectors of every instruction set, the most first: of known length,
/// they are nothing but vectors.
macro_rules! each_lanes {
    ($n:expr, |$first:ident, $count:ident| $body:expr) => {
        let mut $first = 0;
        while $first < $n {
            let left = $n - $first;
            if left >= 16 {
                const $count: usize = 16;
                $body;
                $first += 16;
            } else if left >= 8 {
                const $count: usize = 8;
                $body;
                $first += 8;
            } else if left >= 4 {
                const $count: usize = 4;
                $body;
                $first += 4;
            } else {
                const $count: usize = 1;
                $body;
                $first += 1;
            }
        }
    };
}
pub(crate) use each_lanes;

/// `N` elements of a row.
#[inline(always)]
pub fn some<A, const N: usize>(x: &[A], from: usize) -> &[A; N] {
    x[from..].first_chunk().expect("simd: rows hold whole vectors")
}

/// [`some`], to be written.
#[inline(always)]
pub fn some_mut<A, const N: usize>(x: &mut [A], from: usize) -> &mut [A; N] {
    x[from..].first_chunk_mut().expect("simd: rows hold whole vectors")
}

multiversion! {
    /// `out = x`, in the accumulation dtype.
    pub fn widen[A: Float, S: Element<A>](out: &mut [A], x: &[S]) {
        for (o, &x) in out.iter_mut().zip(x) {
            *o = x.widen();
        }
    }
}

multiversion! {
    /// `out = x`, rounded.
    pub fn narrow[A: Float, S: Element<A>](out: &mut [S], x: &[A]) {
        for (o, &x) in out.iter_mut().zip(x) {
            *o = S::narrow(x);
        }
    }
}

multiversion! {
    /// `x = x`, rounded to `S`.
    fn round[A: Float, S: Element<A>](x: &mut [A]) {
        for v in x {
            *v = S::narrow(*v).widen();
        }
    }
}

/// What rounds elements to a compute dtype of [`Float::DTYPES`] in place.
pub fn rounding<A: Float>(dtype: Dtype) -> fn(Isa, &mut [A]) {
    struct Rounding;
    impl<A: Float> DtypeVisitor<A> for Rounding {
        type Output = fn(Isa, &mut [A]);
        fn visit<C: Element<A>>(self) -> Self::Output {
            round::<A, C>
        }
    }
    A::with_dtype(dtype, Rounding)
}

/// `out = x`, rounded to the buffer's dtype, which is one of [`Float::DTYPES`].
pub fn narrow_into<A: Float>(isa: Isa, out: &mut HostBuffer, x: &[A]) {
    struct NarrowInto<'a, A>(Isa, &'a mut HostBuffer, &'a [A]);
    impl<A: Float> DtypeVisitor<A> for NarrowInto<'_, A> {
        type Output = ();
        fn visit<C: Element<A>>(self) {
            let Self(isa, out, x) = self;
            narrow(isa, C::slice_mut(out), x);
        }
    }
    A::with_dtype(out.dtype(), NarrowInto(isa, out, x));
}

struct Read<'a, A> {
    isa: Isa,
    out: &'a mut [A],
    from: usize,
}

impl<A: Float> Visit<A> for Read<'_, A> {
    fn visit<S: Element<A>>(self, slice: &[S]) {
        widen(self.isa, self.out, &slice[self.from..self.from + self.out.len()]);
    }
}

/// `out = x[from..]`, in the accumulation dtype.
pub fn read<A: Float>(isa: Isa, out: &mut [A], x: HostSlice<'_>, from: usize) {
    A::visit(x, Read { isa, out, from });
}

/// `tanh(x)` and its slope, to the last digits also where they are small: near 0 the former is a quotient of polynomials
/// (Moshier's Cephes), elsewhere both are of `e = exp(-2 |x|)`, which nothing cancels.
#[inline(always)]
pub fn tanh_with_slope<A: Float, const FUSED: bool>(x: A) -> (A, A) {
    let polynomial = |x: A, coefficients: &[f64]| {
        coefficients.iter().skip(1).fold(A::from_f64(coefficients[0]), |sum, &c| sum * x + A::from_f64(c))
    };
    const P: [f64; 3] = [-9.643_991_794_250_522e-1, -9.928_772_310_019_185e1, -1.614_687_684_417_084_5e3];
    const Q: [f64; 4] = [1.0, 1.128_116_784_916_329_3e2, 2.235_488_390_601_004_5e3, 4.844_063_053_251_255e3];
    let square = x * x;
    let small = x + x * square * (polynomial(square, &P) / polynomial(square, &Q));
    let e = (A::from_f64(-2.0) * x.larger(-x)).exp::<FUSED>();
    let whole = A::ONE + e;
    let large = (A::ONE - e) / whole;
    let large = if x < A::ZERO { -large } else { large };
    let value = if square < A::from_f64(0.625 * 0.625) { small } else { large };
    (value, A::from_f64(4.0) * e / (whole * whole))
}

/// `tanh(x)`.
#[inline(always)]
pub fn tanh<A: Float, const FUSED: bool>(x: A) -> A {
    tanh_with_slope::<A, FUSED>(x).0
}

/// A soft cap: `cap * tanh(x / cap)`, and its slope.
#[inline(always)]
pub fn softcap<A: Float, const FUSED: bool>(x: A, cap: A) -> (A, A) {
    let (value, slope) = tanh_with_slope::<A, FUSED>(x / cap);
    (cap * value, slope)
}

/// Independent partial sums of a row, so that it vectorises: one vector of AVX-512, two of AVX2. Their number fixes the
/// order of summation.
const SUMS: usize = 16;

/// The sum of `f(i)` for `i < len`: partial sum `l` takes `i = l, l + 16, ...` in this order; the partial sums are added up
/// as a tree, those 8 apart first.
#[inline(always)]
pub fn sum<A: Float>(len: usize, f: impl Fn(usize) -> A) -> A {
    let mut sums = [A::ZERO; SUMS];
    let whole = len - len % SUMS;
    for i in (0..whole).step_by(SUMS) {
        for (l, s) in sums.iter_mut().enumerate() {
            *s += f(i + l);
        }
    }
    for i in whole..len {
        sums[i - whole] += f(i);
    }
    let mut width = SUMS / 2;
    while width > 0 {
        for l in 0..width {
            let other = sums[l + width];
            sums[l] += other;
        }
        width /= 2;
    }
    sums[0]
}

/// The largest of `x`; minus infinity if there are none. NaNs are ignored.
#[inline(always)]
pub fn largest<A: Float>(x: &[A]) -> A {
    let mut best = [A::NEG_INFINITY; SUMS];
    let whole = x.len() - x.len() % SUMS;
    for part in x[..whole].chunks_exact(SUMS) {
        for (b, &v) in best.iter_mut().zip(part) {
            *b = b.larger(v);
        }
    }
    let rest = x[whole..].iter().fold(A::NEG_INFINITY, |b, &v| b.larger(v));
    best.iter().fold(rest, |b, &v| b.larger(v))
}
