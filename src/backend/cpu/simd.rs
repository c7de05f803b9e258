//! Element types, instruction sets and the vectorised functions that the operations share.
//!
//! Loops are written plainly and compiled once per instruction set ([`multiversion`]); only the matrix product's
//! inner tile is written in vectors. Nothing but that tile and the exponentials of attention contracts
//! `a * b + c` into one rounding, so that every instruction set gives the same bits elsewhere.

use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

use half::{bf16, f16};

use super::buffer::HostBuffer;
use super::context::Context;
pub use super::isa::Isa;
use super::kernel::Kernel;
use super::pack::transpose::{self, Square, Whole};
use super::thin::{self, Thin};
use super::tile::Tiles;
use crate::arch::Dtype;
use crate::backend::{AccElement, HostSlice};

/// What arithmetic is done in: `f32`, or `f64` in the oracle.
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
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// Minus infinity.
    const NEG_INFINITY: Self;
    /// Its name.
    const NAME: &'static str;
    /// The compute dtypes that it accumulates for.
    const DTYPES: &'static [Dtype];
    /// Runs an operation's loops for a compute dtype of [`Float::DTYPES`].
    fn dispatch<K: Kernel<Self>>(dtype: Dtype, kernel: K, cx: &mut Context<Self>);
    /// What rounds to a compute dtype of [`Float::DTYPES`] in place.
    fn rounding(dtype: Dtype) -> fn(Isa, &mut [Self]);
    /// `out = x`, rounded to the buffer's dtype, which is one of [`Float::DTYPES`].
    fn narrow_into(isa: Isa, out: &mut HostBuffer, x: &[Self]);
    /// `e^x`; 1 at 0, 0 at minus infinity. `FUSED` rounds multiply-adds once, which is fast where the instruction set
    /// has them and very slow elsewhere.
    fn exp<const FUSED: bool>(self) -> Self;
    /// [`exp`](Self::exp) of at most 88; 0 below -87.
    fn weight<const FUSED: bool>(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Error function.
    fn erf(self) -> Self;
    /// The tile kernels for an instruction set.
    fn tiles(isa: Isa) -> Tiles<Self>;
    /// The tile kernels for operands in pairs of bfloat16, if the instruction set has any.
    fn pair_tiles(isa: Isa) -> Option<Tiles<Self>>;
    /// Pairs of bfloat16 as elements of the same size, if there are such and they lie right in memory.
    fn pairs(x: &[bf16]) -> Option<&[Self]>;
    /// What transposes squares of elements.
    fn turn(isa: Isa) -> fn(&mut Square<Self>);
    /// What transposes matrices of whole squares where they lie, if the instruction set has something for it.
    fn whole(isa: Isa) -> Option<Whole<Self>>;
    /// What multiplies a few rows, if the instruction set has something for it.
    fn thin(isa: Isa) -> Option<fn(Thin<'_, Self>)>;
    /// The same for operands in pairs of bfloat16 that can be read where they lie.
    fn thin_pairs(isa: Isa) -> Option<fn(Thin<'_, Self>)>;
    /// The elements, if they are of this type.
    fn same(slice: HostSlice<'_>) -> Option<&[Self]>;
    /// Does something with elements of whatever type.
    fn visit<V: Visit<Self>>(slice: HostSlice<'_>, visitor: V);

    /// The larger; `self` if `other` is not a number.
    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        if other > self { other } else { self }
    }
}

/// A stored number that converts to and from the wide type `W` with one rounding to nearest, ties to even.
pub trait Element<W>: bytemuck::Pod + Default + Send + Sync {
    /// To wide; exact unless this is wider.
    fn widen(self) -> W;
    /// From wide, rounded.
    fn narrow(x: W) -> Self;
    /// To bfloat16, rounded.
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
    ($($wide:ty, $stored:ty, $host:ident, $x:ident: $widen:expr, $narrow:expr, $bf16:expr;)*) => {
        $(impl Element<$wide> for $stored {
            #[inline(always)]
            fn widen(self) -> $wide {
                let $x = self;
                $widen
            }
            #[inline(always)]
            fn narrow($x: $wide) -> Self {
                $narrow
            }
            #[inline(always)]
            fn to_bf16(self) -> bf16 {
                let $x = self;
                $bf16
            }
            #[inline(always)]
            fn rest(self) -> bf16 {
                let (whole, high): ($wide, $wide) = (self.widen(), Element::<$wide>::to_bf16(self).widen());
                Element::<$wide>::to_bf16(whole - high)
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

    fn dispatch<K: Kernel<Self>>(dtype: Dtype, kernel: K, cx: &mut Context<Self>) {
        match dtype {
            Dtype::F32 => kernel.run::<f32>(cx),
            Dtype::BF16 => kernel.run::<bf16>(cx),
            Dtype::F16 => kernel.run::<f16>(cx),
            Dtype::F64 => unreachable!("cpu: f64 accumulated in f32"),
        }
    }
    fn rounding(dtype: Dtype) -> fn(Isa, &mut [Self]) {
        match dtype {
            Dtype::F32 => round::<f32, f32>,
            Dtype::BF16 => round::<f32, bf16>,
            Dtype::F16 => round::<f32, f16>,
            Dtype::F64 => unreachable!("cpu: f64 accumulated in f32"),
        }
    }
    fn narrow_into(isa: Isa, out: &mut HostBuffer, x: &[Self]) {
        match out {
            HostBuffer::F64(out) => narrow(isa, out, x),
            HostBuffer::F32(out) => narrow(isa, out, x),
            HostBuffer::Bf16(out) => narrow(isa, out, x),
            HostBuffer::F16(out) => narrow(isa, out, x),
        }
    }

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
    fn weight<const FUSED: bool>(self) -> Self {
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
    fn tiles(isa: Isa) -> Tiles<Self> {
        Tiles::f32(isa)
    }
    fn pair_tiles(isa: Isa) -> Option<Tiles<Self>> {
        Tiles::pairs(isa)
    }
    fn pairs(x: &[bf16]) -> Option<&[Self]> {
        bytemuck::try_cast_slice(&x[..x.len() & !1]).ok()
    }
    fn turn(isa: Isa) -> fn(&mut Square<Self>) {
        transpose::turn_f32(isa)
    }
    fn whole(isa: Isa) -> Option<Whole<Self>> {
        transpose::whole_f32(isa)
    }
    fn thin(isa: Isa) -> Option<fn(Thin<'_, Self>)> {
        thin::thin_f32(isa)
    }
    fn thin_pairs(isa: Isa) -> Option<fn(Thin<'_, Self>)> {
        thin::thin_pairs(isa)
    }
    fn same(slice: HostSlice<'_>) -> Option<&[Self]> {
        if let HostSlice::F32(slice) = slice { Some(slice) } else { None }
    }
    fn visit<V: Visit<Self>>(slice: HostSlice<'_>, visitor: V) {
        match slice {
            HostSlice::F64(s) => visitor.visit(s),
            HostSlice::F32(s) => visitor.visit(s),
            HostSlice::Bf16(s) => visitor.visit(s),
            HostSlice::F16(s) => visitor.visit(s),
        }
    }
}

impl Float for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const NEG_INFINITY: Self = f64::NEG_INFINITY;
    const NAME: &'static str = "f64";
    const DTYPES: &'static [Dtype] = &[Dtype::F64];

    fn dispatch<K: Kernel<Self>>(_: Dtype, kernel: K, cx: &mut Context<Self>) {
        kernel.run::<f64>(cx);
    }
    fn rounding(_: Dtype) -> fn(Isa, &mut [Self]) {
        round::<f64, f64>
    }
    fn narrow_into(isa: Isa, out: &mut HostBuffer, x: &[Self]) {
        narrow(isa, <Self as Element<Self>>::slice_mut(out), x);
    }

    #[inline(always)]
    fn exp<const FUSED: bool>(self) -> Self {
        self.exp()
    }
    #[inline(always)]
    fn weight<const FUSED: bool>(self) -> Self {
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
    fn tiles(isa: Isa) -> Tiles<Self> {
        Tiles::f64(isa)
    }
    fn pair_tiles(_: Isa) -> Option<Tiles<Self>> {
        None
    }
    fn pairs(_: &[bf16]) -> Option<&[Self]> {
        None
    }
    fn turn(_: Isa) -> fn(&mut Square<Self>) {
        transpose::turn
    }
    fn whole(_: Isa) -> Option<Whole<Self>> {
        None
    }
    fn thin(_: Isa) -> Option<fn(Thin<'_, Self>)> {
        None
    }
    fn thin_pairs(_: Isa) -> Option<fn(Thin<'_, Self>)> {
        None
    }
    fn same(slice: HostSlice<'_>) -> Option<&[Self]> {
        if let HostSlice::F64(slice) = slice { Some(slice) } else { None }
    }
    fn visit<V: Visit<Self>>(slice: HostSlice<'_>, visitor: V) {
        match slice {
            HostSlice::F64(s) => visitor.visit(s),
            HostSlice::F32(s) => visitor.visit(s),
            HostSlice::Bf16(s) => visitor.visit(s),
            HostSlice::F16(s) => visitor.visit(s),
        }
    }
}

/// Compiles a function for every [`Isa`]; its first argument chooses, and must be one that this processor has. A name
/// after the generic types, as in `[W: Float; FUSED]`, is a constant that says whether there are fused multiply-adds.
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
                // SAFETY: the value is only made where detection found the instructions.
                #[cfg(target_arch = "x86_64")]
                $crate::backend::cpu::simd::Isa::Avx2 => unsafe { avx2::<$($generic),*>($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::backend::cpu::simd::Isa::Avx512 => unsafe { avx512::<$($generic),*>($($arg),*) },
                #[cfg(target_arch = "aarch64")]
                $crate::backend::cpu::simd::Isa::Neon => {
                    body::<$($generic,)* $({ const $fused: bool = true; $fused })?>($($arg),*)
                }
                _ => body::<$($generic,)* $({ const $fused: bool = false; $fused })?>($($arg),*),
            }
        }
    };
}
pub(crate) use multiversion;

multiversion! {
    /// `out = x`, widened.
    pub fn widen[W: Float, S: Element<W>](out: &mut [W], x: &[S]) {
        for (o, &x) in out.iter_mut().zip(x) {
            *o = x.widen();
        }
    }
}

multiversion! {
    /// `out = x`, rounded.
    pub fn narrow[W: Float, S: Element<W>](out: &mut [S], x: &[W]) {
        for (o, &x) in out.iter_mut().zip(x) {
            *o = S::narrow(x);
        }
    }
}

multiversion! {
    /// `x = x`, rounded to `S`.
    pub fn round[W: Float, S: Element<W>](x: &mut [W]) {
        for v in x {
            *v = S::narrow(*v).widen();
        }
    }
}

/// Something done with the elements of a [`HostSlice`], whatever their type.
pub trait Visit<W> {
    /// Does it.
    fn visit<S: Element<W>>(self, slice: &[S]);
}

struct Read<'a, W> {
    isa: Isa,
    out: &'a mut [W],
    from: usize,
}

impl<W: Float> Visit<W> for Read<'_, W> {
    fn visit<S: Element<W>>(self, slice: &[S]) {
        widen(self.isa, self.out, &slice[self.from..self.from + self.out.len()]);
    }
}

/// `out = x[from..]`, widened.
pub fn read<W: Float>(isa: Isa, out: &mut [W], x: HostSlice<'_>, from: usize) {
    W::visit(x, Read { isa, out, from });
}

/// Sums that are kept apart while a row is added up, so that it vectorises; their number fixes the order.
const SUMS: usize = 16;

/// The sum of `f(i)` for `i < len`, always in the same order.
#[inline(always)]
pub fn sum<W: Float>(len: usize, f: impl Fn(usize) -> W) -> W {
    let mut sums = [W::ZERO; SUMS];
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

/// The largest of `x`; minus infinity if there are none. Not-a-numbers are passed over.
#[inline(always)]
pub fn largest<W: Float>(x: &[W]) -> W {
    let mut best = [W::NEG_INFINITY; SUMS];
    let whole = x.len() - x.len() % SUMS;
    for part in x[..whole].chunks_exact(SUMS) {
        for (b, &v) in best.iter_mut().zip(part) {
            *b = b.larger(v);
        }
    }
    let rest = x[whole..].iter().fold(W::NEG_INFINITY, |b, &v| b.larger(v));
    best.iter().fold(rest, |b, &v| b.larger(v))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_over_the_whole_range() {
        assert_eq!(Float::exp::<false>(0.0f32), 1.0);
        assert_eq!(Float::exp::<false>(f32::NEG_INFINITY), 0.0);
        assert_eq!(Float::exp::<false>(f32::INFINITY), f32::INFINITY);
        assert!(Float::exp::<false>(f32::NAN).is_nan() && f32::NAN.weight::<false>().is_nan());
        assert_eq!((f32::NEG_INFINITY.weight::<true>(), 0.0f32.weight::<true>()), (0.0, 1.0));
        let mut worst = 0.0f64;
        for i in 0..4_000_000 {
            let x = -105.0 + (i / 2) as f32 * 1e-4;
            let found = if i % 2 == 0 { Float::exp::<true>(x) } else { Float::exp::<false>(x) };
            let weight = if i % 2 == 0 { x.weight::<true>() } else { x.weight::<false>() };
            let same =
                if x < -87.0 { weight == 0.0 } else { x > 88.0 || weight.to_bits().abs_diff(found.to_bits()) <= 1 };
            assert!(same, "weight of {x}: {weight}, exp {found}");
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
    fn sixteen_bit_conversions_agree_with_the_reference_crate() {
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
