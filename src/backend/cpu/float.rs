//! Element types: what is stored, what is accumulated in, and the conversions between the two.

use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

use half::{bf16, f16};

use super::buffer::HostBuffer;
use crate::arch::Dtype;
use crate::backend::{AccElement, HostSlice};

/// The accumulation dtype, in which all arithmetic is done: `f32`, or `f64` in the oracle.
pub trait Float:
    AccElement
    + Element<Self>
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
{
    /// 0.0
    const ZERO: Self;
    /// 1.0
    const ONE: Self;
    /// `-inf`, the score of a masked key and the largest of no elements.
    const NEG_INFINITY: Self;
    /// As error messages and reports have it: `f32`.
    const NAME: &'static str;
    /// `e^x`; 1 at 0, 0 at minus infinity. `FUSED` rounds multiply-adds once, which is fast where the instruction set
    /// has them and very slow elsewhere.
    fn exp<const FUSED: bool>(self) -> Self;
    /// [`exp`](Self::exp) for the weights of a softmax, whose arguments are differences to the largest score: right up
    /// to 88, and exactly 0 below -87.
    fn softmax_exp<const FUSED: bool>(self) -> Self;
    /// The natural logarithm, as the standard library has it.
    fn ln(self) -> Self;
    /// The square root, correctly rounded.
    fn sqrt(self) -> Self;
    /// The error function, as `libm` has it.
    fn erf(self) -> Self;
    /// The elements, if they are of this type already.
    fn same(slice: HostSlice<'_>) -> Option<&[Self]>;
    /// The compute dtypes that it accumulates for.
    const DTYPES: &'static [Dtype];
    /// Calls the visitor with the type of a compute dtype.
    ///
    /// # Panics
    /// If it is not one of [`Float::DTYPES`].
    fn with_dtype<V: DtypeVisitor<Self>>(dtype: Dtype, visitor: V) -> V::Output;
    /// Calls the visitor with the elements as what they are.
    fn visit<V: Visit<Self>>(slice: HostSlice<'_>, visitor: V);

    /// The larger; `self` if `other` is NaN.
    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        if other > self { other } else { self }
    }
}

/// A stored number that converts to and from the accumulation dtype `A` with one rounding to nearest, ties to even.
pub trait Element<A>: bytemuck::Pod + Default + Send + Sync {
    /// To the accumulation dtype; exact unless this is wider.
    fn widen(self) -> A;
    /// From the accumulation dtype, rounded.
    fn narrow(x: A) -> Self;
    /// The nearest bfloat16, ties to even.
    fn to_bf16(self) -> bf16;
    /// What rounding to bfloat16 leaves of it, rounded again.
    fn rest(self) -> bf16;
    /// The host's view of a slice.
    fn host(slice: &[Self]) -> HostSlice<'_>;
    /// The elements of a buffer of this type.
    ///
    /// # Panics
    /// If it is of another.
    fn slice(buffer: &HostBuffer) -> &[Self];
    /// The elements of a buffer of this type.
    ///
    /// # Panics
    /// If it is of another.
    fn slice_mut(buffer: &mut HostBuffer) -> &mut [Self];
}

fn other_dtype(wanted: &str, found: HostSlice<'_>) -> ! {
    let found = match found {
        HostSlice::F64(_) => "f64",
        HostSlice::F32(_) => "f32",
        HostSlice::Bf16(_) => "bf16",
        HostSlice::F16(_) => "f16",
    };
    panic!("cpu: a buffer of {found} where the compute dtype is {wanted}")
}

macro_rules! elements {
    ($($acc:ty, $stored:ty, $host:ident, $x:ident: $accn:expr, $narrow:expr, $bf16:expr;)*) => {
        $(impl Element<$acc> for $stored {
            #[inline(always)]
            fn widen(self) -> $acc {
                let $x = self;
                $accn
            }
            #[inline(always)]
            fn narrow($x: $acc) -> Self {
                $narrow
            }
            #[inline(always)]
            fn to_bf16(self) -> bf16 {
                let $x = self;
                $bf16
            }
            #[inline(always)]
            fn rest(self) -> bf16 {
                let (whole, high): ($acc, $acc) = (self.widen(), Element::<$acc>::to_bf16(self).widen());
                Element::<$acc>::to_bf16(whole - high)
            }
            fn host(slice: &[Self]) -> HostSlice<'_> {
                HostSlice::$host(slice)
            }
            fn slice(buffer: &HostBuffer) -> &[Self] {
                match buffer {
                    HostBuffer::$host(elements) => elements,
                    other => other_dtype(stringify!($stored), other.view()),
                }
            }
            fn slice_mut(buffer: &mut HostBuffer) -> &mut [Self] {
                match buffer {
                    HostBuffer::$host(elements) => elements,
                    other => other_dtype(stringify!($stored), other.view()),
                }
            }
        })*
    };
}
elements! {
    f32, f32, F32, x: x, x, bf16::from_bits(bf16_bits(x));
    f32, f64, F64, x: x as f32, f64::from(x), bf16::from_f64(x);
    f32, bf16, Bf16, x: f32::from_bits(u32::from(x.to_bits()) << 16), bf16::from_bits(bf16_bits(x)), x;
    f32, f16, F16, x: f16_to_f32(x.to_bits()), f16::from_bits(f16_bits(x)), bf16::from_bits(bf16_bits(f16_to_f32(x.to_bits())));
    f64, f64, F64, x: x, x, bf16::from_f64(x);
    f64, f32, F32, x: f64::from(x), x as f32, bf16::from_bits(bf16_bits(x));
    f64, bf16, Bf16, x: f64::from(x.to_f32()), bf16::from_f64(x), x;
    f64, f16, F16, x: f64::from(x.to_f32()), f16::from_f64(x), bf16::from_f32(x.to_f32());
}

#[inline(always)]
fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let nan = (bits >> 16) | 0x40;
    (if bits & 0x7fff_ffff > 0x7f80_0000 { nan } else { rounded }) as u16
}

#[inline(always)]
fn f16_to_f32(bits: u16) -> f32 {
    // The exponent is rebased by a multiplication, which also turns subnormals into normal numbers.
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let scaled = f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23);
    let special = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(scaled.to_bits() | special | (u32::from(bits & 0x8000) << 16))
}

#[inline(always)]
fn f16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = (bits >> 16) & 0x8000;
    let magnitude = bits & 0x7fff_ffff;
    // Below 2^-14 the sum with 0.5 leaves the rounded subnormal in the low mantissa bits.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let normal = magnitude.wrapping_add(0xfff + ((magnitude >> 13) & 1)).wrapping_sub(112 << 23) >> 13;
    let finite = if magnitude < (113 << 23) { subnormal } else { normal.min(0x7c00) };
    (sign | if magnitude > 0x7f80_0000 { 0x7e00 } else { finite }) as u16
}

/// `e^x` as `p * 2^n`, and `n` on top of `round`, which adding and taking away rounds to integers.
#[inline(always)]
#[allow(clippy::excessive_precision)]
fn exp_parts<const FUSED: bool>(x: f32, round: f32) -> (f32, f32) {
    let add_product = |a: f32, b: f32, c: f32| if FUSED { a.mul_add(b, c) } else { a * b + c };
    let shifted = add_product(x, std::f32::consts::LOG2_E, round);
    let n = shifted - round;
    // ln 2 in two parts; the product with the first is exact.
    let r = add_product(n, 2.121_944_4e-4, add_product(n, -0.693_359_375, x));
    let p = 1.987_569_15e-4;
    let p = add_product(p, r, 1.398_199_95e-3);
    let p = add_product(p, r, 8.333_451_9e-3);
    let p = add_product(p, r, 4.166_579_6e-2);
    let p = add_product(p, r, 1.666_666_55e-1);
    let p = add_product(p, r, 0.5);
    (add_product(p, r * r, r) + 1.0, shifted)
}

impl Float for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const NEG_INFINITY: Self = f32::NEG_INFINITY;
    const NAME: &'static str = "f32";
    const DTYPES: &'static [Dtype] = &[Dtype::F32, Dtype::BF16, Dtype::F16];

    /// Within 2 units in the last place, also where the result is subnormal. No branches, so that it vectorises.
    #[inline(always)]
    fn exp<const FUSED: bool>(self) -> Self {
        // 1.5 * 2^23: adding it rounds to an integer, whose two's complement is then in the low bits.
        const ROUND: f32 = 12_582_912.0;
        let x = if self < -104.0 { -104.0 } else { self };
        let x = if x > 89.0 { 89.0 } else { x };
        let (p, shifted) = exp_parts::<FUSED>(x, ROUND);
        // 2^n in two factors: the whole would not be a normal number near the ends of the range.
        let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
        let half = n >> 1;
        let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
        p * power(half) * power(n.wrapping_sub(half))
    }
    #[inline(always)]
    fn softmax_exp<const FUSED: bool>(self) -> Self {
        // As there, and the bias of exponents on top: what is rounded to is the exponent as it is stored.
        const ROUND: f32 = 12_582_912.0 + 127.0;
        let (p, shifted) = exp_parts::<FUSED>(self, ROUND);
        let power = f32::from_bits(shifted.to_bits() << 23);
        if self < -87.0 { 0.0 } else { p * power }
    }
    #[inline(always)]
    fn ln(self) -> Self {
        self.ln()
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        self.sqrt()
    }
    fn erf(self) -> Self {
        libm::erff(self)
    }
    fn same(slice: HostSlice<'_>) -> Option<&[Self]> {
        if let HostSlice::F32(slice) = slice { Some(slice) } else { None }
    }
    fn with_dtype<V: DtypeVisitor<Self>>(dtype: Dtype, visitor: V) -> V::Output {
        match dtype {
            Dtype::F32 => visitor.visit::<f32>(),
            Dtype::BF16 => visitor.visit::<bf16>(),
            Dtype::F16 => visitor.visit::<f16>(),
            Dtype::F64 => panic!("cpu: f64 accumulated in f32"),
        }
    }
    fn visit<V: Visit<Self>>(slice: HostSlice<'_>, visitor: V) {
        visit_elements(slice, visitor);
    }
}

impl Float for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const NEG_INFINITY: Self = f64::NEG_INFINITY;
    const NAME: &'static str = "f64";
    const DTYPES: &'static [Dtype] = &[Dtype::F64];

    #[inline(always)]
    fn exp<const FUSED: bool>(self) -> Self {
        self.exp()
    }
    #[inline(always)]
    fn softmax_exp<const FUSED: bool>(self) -> Self {
        self.exp()
    }
    #[inline(always)]
    fn ln(self) -> Self {
        self.ln()
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        self.sqrt()
    }
    fn erf(self) -> Self {
        libm::erf(self)
    }
    fn same(slice: HostSlice<'_>) -> Option<&[Self]> {
        if let HostSlice::F64(slice) = slice { Some(slice) } else { None }
    }
    fn with_dtype<V: DtypeVisitor<Self>>(dtype: Dtype, visitor: V) -> V::Output {
        assert!(dtype == Dtype::F64, "cpu: {dtype} accumulated in f64");
        visitor.visit::<f64>()
    }
    fn visit<V: Visit<Self>>(slice: HostSlice<'_>, visitor: V) {
        visit_elements(slice, visitor);
    }
}

/// A function of the elements of a [`HostSlice`], whatever their type.
pub trait Visit<A> {
    /// Called once, by [`Float::visit`].
    fn visit<S: Element<A>>(self, slice: &[S]);
}

/// A function of the type of a compute dtype.
pub trait DtypeVisitor<A> {
    /// What it returns.
    type Output;
    /// Called once, by [`Float::with_dtype`].
    fn visit<C: Element<A>>(self) -> Self::Output;
}

fn visit_elements<A, V: Visit<A>>(slice: HostSlice<'_>, visitor: V)
where
    f64: Element<A>,
    f32: Element<A>,
    bf16: Element<A>,
    f16: Element<A>,
{
    match slice {
        HostSlice::F64(s) => visitor.visit(s),
        HostSlice::F32(s) => visitor.visit(s),
        HostSlice::Bf16(s) => visitor.visit(s),
        HostSlice::F16(s) => visitor.visit(s),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_over_the_whole_range() {
        assert_eq!(Float::exp::<false>(0.0f32), 1.0);
        assert_eq!(Float::exp::<false>(f32::NEG_INFINITY), 0.0);
        assert_eq!(Float::exp::<false>(f32::INFINITY), f32::INFINITY);
        assert!(Float::exp::<false>(f32::NAN).is_nan() && f32::NAN.softmax_exp::<false>().is_nan());
        assert_eq!((f32::NEG_INFINITY.softmax_exp::<true>(), 0.0f32.softmax_exp::<true>()), (0.0, 1.0));
        let mut worst = 0.0f64;
        for i in 0..4_000_000 {
            let x = -105.0 + (i / 2) as f32 * 1e-4;
            let found = if i % 2 == 0 { Float::exp::<true>(x) } else { Float::exp::<false>(x) };
            let clamped = if i % 2 == 0 { x.softmax_exp::<true>() } else { x.softmax_exp::<false>() };
            let same =
                if x < -87.0 { clamped == 0.0 } else { x > 88.0 || clamped.to_bits().abs_diff(found.to_bits()) <= 1 };
            assert!(same, "softmax_exp of {x}: {clamped}, exp {found}");
            let (found, exact) = (f64::from(found), f64::from(x).exp());
            if exact > f64::from(f32::MAX) {
                assert!(found >= f64::from(f32::MAX), "exp({x}) = {found}");
                continue;
            }
            let ulp = f64::from((exact as f32).next_up()) - f64::from(exact as f32);
            worst = worst.max((found - exact).abs() / ulp);
        }
        assert!(worst < 2.0, "{worst} units in the last place");
    }

    #[test]
    fn sixteen_bit_conversions_agree_with_half() {
        for bits in 0..=u16::MAX {
            let (half, brain) = (f16::from_bits(bits), bf16::from_bits(bits));
            let (h, b): (f32, f32) = (half.widen(), brain.widen());
            assert!(h.to_bits() == half.to_f32().to_bits() || h.is_nan() && half.is_nan(), "f16 {bits:#x}");
            assert!(b.to_bits() == brain.to_f32().to_bits() || b.is_nan() && brain.is_nan(), "bf16 {bits:#x}");
        }
        for i in 0..=u32::MAX / 977 {
            let x = f32::from_bits(i * 977);
            let (h, b) = (<f16 as Element<f32>>::narrow(x), <bf16 as Element<f32>>::narrow(x));
            if x.is_nan() {
                assert!(h.is_nan() && b.is_nan());
            } else {
                assert_eq!(h.to_bits(), f16::from_f32(x).to_bits(), "f16 of {x}");
                assert_eq!(b.to_bits(), bf16::from_f32(x).to_bits(), "bf16 of {x}");
            }
        }
    }
}
