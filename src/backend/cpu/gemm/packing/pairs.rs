//! Packing in pairs of bfloat16: elements `2 p` and `2 p + 1` along k lie side by side, as one element of four bytes.

use half::bf16;

use super::super::super::aligned::prefetch;
use super::super::super::isa::InstructionSet;
use super::super::super::simd::{Element, Float, Isa, Visit, multiversion};
use super::super::operand::{Operand, Pairs, as_pairs};
use super::super::tile::DEPTHS;
use super::super::transpose::Transposer;
use super::AHEAD;
use crate::backend::HostSlice;

/// Packs `count` rows of `depth` pairs at distance `row` pairs; elements behind the last along k are zeros.
pub fn pack_rows<A: Float>(
    isa: Isa,
    (to, row): (&mut [bf16], usize),
    (from, data): (Operand<'_, A>, HostSlice<'_>),
    count: usize,
    depth: usize,
    of: Pairs,
) {
    assert!(!from.transposed, "pack: rows in pairs that are not contiguous along k");
    for (i, row) in to.chunks_mut(2 * row).take(count).enumerate() {
        let (row, behind) = row[..2 * depth].split_at_mut(of.k.min(2 * depth));
        read::<A>(isa, row, (data, from.skip(i).from), of.rest);
        behind.fill(bf16::ZERO);
    }
}

/// Packs `count` columns of `depth` pairs into panels; see [`pack_panels`](super::pack_panels).
pub fn pack_panels<A: Float>(
    transposer: Transposer<A>,
    lanes: usize,
    to: &mut [A],
    (from, data): (Operand<'_, A>, HostSlice<'_>),
    [count, depth]: [usize; 2],
    Pairs { k, rest }: Pairs,
) {
    let isa = transposer.isa();
    let k = k.min(2 * depth);
    let to = &mut to[..count.next_multiple_of(lanes) * depth];
    if from.transposed {
        return A::visit(data, Columns { isa, lanes, to: bytemuck::cast_slice_mut(to), from, count, depth, k, rest });
    }
    for first in (0..count).step_by(2 * lanes) {
        let (from, count) = (from.skip(first), (count - first).min(2 * lanes));
        let width = count.next_multiple_of(lanes);
        let panel = &mut to[first * depth..][..width * depth];
        if count < width || k < 2 * depth {
            panel.fill(A::ZERO);
        }
        if let Some(pairs) = whole_pairs(&from, data, k).filter(|_| !rest) {
            transposer.transpose(panel, width, pairs, from.stride / 2, [count, k / 2]);
            continue;
        }
        let mut row = [bf16::ZERO; 2 * DEPTHS];
        for column in 0..count {
            read::<A>(isa, &mut row[..k], (data, from.skip(column).from), rest);
            let pairs = bytemuck::cast_slice_mut::<A, [bf16; 2]>(panel).chunks_exact_mut(width);
            row[k..(k + 1).min(2 * DEPTHS)].fill(bf16::ZERO);
            pairs.zip(row.as_chunks().0).take(k.div_ceil(2)).for_each(|(to, &pair)| to[column] = pair);
        }
    }
}

/// The elements as the pairs that they are in memory, if every row begins with a whole one and ends with one.
fn whole_pairs<'a, A: Float>(from: &Operand<'_, A>, data: HostSlice<'a>, k: usize) -> Option<&'a [A]> {
    match data {
        HostSlice::Bf16(x) if k.is_multiple_of(2) && from.stride.is_multiple_of(2) => as_pairs(&x[from.from..]),
        _ => None,
    }
}

/// `to = ` the elements from `from` on, or their rests.
fn read<A: Float>(isa: Isa, to: &mut [bf16], (data, from): (HostSlice<'_>, usize), rest: bool) {
    A::visit(data, Narrowing { isa, to, from, rest });
}

struct Narrowing<'a> {
    isa: Isa,
    to: &'a mut [bf16],
    from: usize,
    rest: bool,
}

impl<A: Float> Visit<A> for Narrowing<'_> {
    fn visit<S: Element<A>>(self, data: &[S]) {
        match self.rest {
            false => narrow(self.isa, self.to, &data[self.from..]),
            true => narrow_rest(self.isa, self.to, &data[self.from..]),
        }
    }
}

multiversion! {
    fn narrow[A: Float, S: Element<A>](to: &mut [bf16], from: &[S]) {
        for (o, x) in to.iter_mut().zip(from) {
            *o = x.to_bf16();
        }
    }
}

multiversion! {
    fn narrow_rest[A: Float, S: Element<A>](to: &mut [bf16], from: &[S]) {
        for (o, x) in to.iter_mut().zip(from) {
            *o = x.rest();
        }
    }
}

/// An operand that is contiguous along its columns.
struct Columns<'a, 'b, A> {
    isa: Isa,
    lanes: usize,
    to: &'a mut [u32],
    from: Operand<'b, A>,
    count: usize,
    depth: usize,
    k: usize,
    rest: bool,
}

impl<A: Float> Visit<A> for Columns<'_, '_, A> {
    fn visit<S: Element<A>>(self, data: &[S]) {
        let Self { isa, lanes, to, from, count, depth, k, rest } = self;
        assert!(to.len() == count.next_multiple_of(lanes) * depth, "pack: {} pairs", to.len());
        let data = &data[from.from..];
        #[cfg(target_arch = "x86_64")]
        if let (HostSlice::Bf16(data), false, WIDE) = (S::host(data), rest, 2 * lanes)
            && isa.of_loops() == InstructionSet::Avx512
            && count.is_multiple_of(lanes)
            && k == 2 * depth
        {
            let needed = k.saturating_sub(1).checked_mul(from.stride).and_then(|rows| rows.checked_add(count));
            assert!(needed.is_some_and(|needed| data.len() >= needed), "pack: {k} x {count} of {}", data.len());
            // SAFETY: both are large enough, and an `Isa` is proof that the CPU has the instructions.
            return unsafe { x86::interleave(to.as_mut_ptr(), data.as_ptr(), from.stride, count, depth) };
        }
        match rest {
            false => interleave_weights(isa, to, lanes, data, from.stride, count, k),
            true => interleave_rests(isa, to, lanes, data, from.stride, count, k),
        }
    }
}

/// Two elements as bfloat16, or their rests, as they lie in memory.
#[inline(always)]
fn pair<A, S: Element<A>, const REST: bool>(first: S, second: S) -> u32 {
    let [first, second] = if REST { [first.rest(), second.rest()] } else { [first.to_bf16(), second.to_bf16()] };
    u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16
}

/// `to`, panels of vectors of `lanes`, `= ` pairs of `from [k, count]`, or of their rests, and zeros behind both ends; rows
/// that lie far apart are prefetched.
#[inline(always)]
fn interleave_all<A: Float, S: Element<A>, const REST: bool, const FAR: bool>(
    to: &mut [u32],
    lanes: usize,
    from: &[S],
    stride: usize,
    count: usize,
    k: usize,
) {
    let depth = to.len() / count.max(1).next_multiple_of(lanes);
    for p in 0..depth {
        let rows = k.saturating_sub(2 * p).min(2);
        let row = |i: usize| &from[(2 * p + i) * stride..][..count];
        if FAR && 2 * (p + AHEAD) + 1 < k {
            prefetch(&from[2 * (p + AHEAD) * stride..][..count]);
            prefetch(&from[(2 * (p + AHEAD) + 1) * stride..][..count]);
        }
        for first in (0..count.max(1)).step_by(2 * lanes) {
            let columns = (count - first).min(2 * lanes);
            let width = columns.max(1).next_multiple_of(lanes);
            let to = &mut to[first * depth + p * width..][..width];
            if rows < 2 || columns < width {
                to.fill(0);
            }
            match rows {
                2 if columns == WIDE => interleave_some::<A, S, REST, WIDE>(to, &row(0)[first..], &row(1)[first..]),
                2 => {
                    for ((o, &a), &b) in to.iter_mut().zip(&row(0)[first..]).zip(&row(1)[first..]) {
                        *o = pair::<A, S, REST>(a, b);
                    }
                }
                1 => {
                    for (o, &a) in to.iter_mut().zip(&row(0)[first..]) {
                        *o = pair::<A, S, REST>(a, S::default());
                    }
                }
                _ => {}
            }
        }
    }
}

multiversion! {
    /// `to`, panels of vectors of `lanes`, `= ` pairs of `from [k, count]`, and zeros behind both ends.
    pub fn interleave[A: Float, S: Element<A>](to: &mut [u32], lanes: usize, from: &[S], stride: usize, count: usize, k: usize) {
        interleave_all::<A, S, false, false>(to, lanes, from, stride, count, k);
    }
}

multiversion! {
    /// The same of weights, which are prefetched.
    fn interleave_weights[A: Float, S: Element<A>](
        to: &mut [u32],
        lanes: usize,
        from: &[S],
        stride: usize,
        count: usize,
        k: usize,
    ) {
        interleave_all::<A, S, false, true>(to, lanes, from, stride, count, k);
    }
}

multiversion! {
    /// The same of what rounding leaves of weights.
    fn interleave_rests[A: Float, S: Element<A>](
        to: &mut [u32],
        lanes: usize,
        from: &[S],
        stride: usize,
        count: usize,
        k: usize,
    ) {
        interleave_all::<A, S, true, true>(to, lanes, from, stride, count, k);
    }
}

/// Columns of a whole panel: two vectors of AVX-512.
const WIDE: usize = 32;

/// Of known length, so that nothing but vectors is left of it.
#[inline(always)]
fn interleave_some<A, S: Element<A>, const REST: bool, const N: usize>(to: &mut [u32], first: &[S], second: &[S]) {
    if let (Some(to), Some(a), Some(b)) =
        (to.first_chunk_mut::<N>(), first.first_chunk::<N>(), second.first_chunk::<N>())
    {
        for i in 0..N {
            to[i] = pair::<A, S, REST>(a[i], b[i]);
        }
    }
}

/// `to [rows, elements] = ` pairs of `from [rows, columns]` at the distances `to_stride` and `stride`, with zeros behind.
///
/// # Panics
/// If these are neither bfloat16 nor single precision, or as [`pair_rows`].
pub fn copy(
    isa: Isa,
    to: &mut [f32],
    to_stride: usize,
    from: HostSlice<'_>,
    stride: usize,
    [rows, columns, elements]: [usize; 3],
) {
    for r in 0..rows {
        let to: &mut [bf16] = bytemuck::cast_slice_mut(&mut to[r * to_stride..][..elements]);
        let (to, behind) = to.split_at_mut(columns);
        match from {
            HostSlice::Bf16(from) => copy_some(to, &from[r * stride..][..columns]),
            HostSlice::F32(from) => round(isa, to, &from[r * stride..][..columns]),
            _ => panic!("pairs of neither bfloat16 nor single precision"),
        }
        behind.fill(bf16::ZERO);
    }
}

/// In pieces of known length: a call for a short row would take longer than the copy.
fn copy_some(to: &mut [bf16], from: &[bf16]) {
    let ((to, to_rest), (from, from_rest)) = (to.as_chunks_mut::<16>(), from.as_chunks::<16>());
    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    to_rest.copy_from_slice(from_rest);
}

/// `to = from`, rounded.
fn round(isa: Isa, to: &mut [bf16], from: &[f32]) {
    assert!(to.len() == from.len(), "pairs: {} numbers of {}", to.len(), from.len());
    #[cfg(target_arch = "x86_64")]
    if isa.has_pairs() {
        // SAFETY: an `Isa` is proof that the CPU has it, and both are as long.
        return unsafe { x86::round(to, from) };
    }
    unreachable!("pairs on {}", isa.name());
}

/// Makes of `x [count, n]` `elements` rows of pairs of one row and the next, in place, with zeros behind.
///
/// # Panics
/// If there are pairs without an instruction set that makes them, or `n` is not in whole vectors of 16.
pub fn pair_rows(isa: Isa, x: &mut [f32], n: usize, count: usize, elements: usize) {
    let needed = n.checked_mul(count.max(elements));
    assert!(needed.is_some_and(|needed| x.len() >= needed), "pairs: {count} rows of {n} in {}", x.len());
    assert!(n.is_multiple_of(16) && count.div_ceil(2) <= elements, "pairs: {count} rows of {n} as {elements}");
    #[cfg(target_arch = "x86_64")]
    if isa.has_pairs() {
        // SAFETY: an `Isa` is proof that the CPU has it, and rows are as long as was checked.
        return unsafe { x86::pair_rows(x.as_mut_ptr(), n, count, elements) };
    }
    unreachable!("pairs on {}", isa.name());
}

/// Makes of every row of `x [_, n]` pairs of its own, in place, at the same distance of rows.
///
/// # Panics
/// As [`pair_rows`].
pub fn pair_columns(isa: Isa, x: &mut [f32], n: usize) {
    assert!(n.is_multiple_of(16), "pairs: rows of {n}");
    #[cfg(target_arch = "x86_64")]
    if isa.has_pairs() {
        // SAFETY: an `Isa` is proof that the CPU has it, and rows are in whole vectors.
        return x.chunks_exact_mut(n).for_each(|row| unsafe { x86::pair_columns(row) });
    }
    unreachable!("pairs on {}: {} numbers", isa.name(), x.len());
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::mem::transmute;

    use half::bf16;

    use super::{AHEAD, WIDE};

    /// `to`, panels of 32 columns, the last of 16 if that is enough, `= ` pairs of `from [2 depth, count]`: whole lines of both
    /// rows of pairs, each made of halves of both. (On AMX 1.37 times the rate of a backward of 64 rows through the plain loop.)
    ///
    /// # Safety
    /// `from` has the rows, of `count` elements, a multiple of 16, at distance `stride`, `to` half as many pairs; the CPU has
    /// AVX-512 F and BW.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn interleave(to: *mut u32, from: *const bf16, stride: usize, count: usize, depth: usize) {
        let (mut low, mut high) = ([0u16; WIDE], [0u16; WIDE]);
        for i in 0..WIDE {
            low[i] = (i / 2 + WIDE * (i % 2)) as u16;
            high[i] = low[i] + (WIDE / 2) as u16;
        }
        // SAFETY: within both by the caller's promise; what is prefetched need not exist.
        unsafe {
            let (low, high) = (_mm512_loadu_si512(low.as_ptr().cast()), _mm512_loadu_si512(high.as_ptr().cast()));
            let whole = count - count % WIDE;
            for p in 0..depth {
                let (first, second) = (from.add(2 * p * stride), from.add((2 * p + 1) * stride));
                for column in (0..whole).step_by(WIDE) {
                    let ahead = 2 * AHEAD * stride + column;
                    _mm_prefetch::<_MM_HINT_T0>(first.wrapping_add(ahead).cast());
                    _mm_prefetch::<_MM_HINT_T0>(second.wrapping_add(ahead).cast());
                    let a = _mm512_loadu_si512(first.add(column).cast());
                    let b = _mm512_loadu_si512(second.add(column).cast());
                    let to = to.add(column * depth + p * WIDE);
                    _mm512_storeu_si512(to.cast(), _mm512_permutex2var_epi16(a, low, b));
                    _mm512_storeu_si512(to.add(WIDE / 2).cast(), _mm512_permutex2var_epi16(a, high, b));
                }
                if whole < count {
                    let half = |row: *const bf16| _mm512_castsi256_si512(_mm256_loadu_si256(row.add(whole).cast()));
                    let (a, b) = (half(first), half(second));
                    let to = to.add(whole * depth + p * (WIDE / 2));
                    _mm512_storeu_si512(to.cast(), _mm512_permutex2var_epi16(a, low, b));
                }
            }
        }
    }

    /// # Safety
    /// `x` has `n * max(count, elements)` numbers, `n` a multiple of 16, `count` at most twice `elements`.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn pair_rows(x: *mut f32, n: usize, count: usize, elements: usize) {
        let mut order = [0u16; 32];
        for (i, index) in order.iter_mut().enumerate() {
            *index = (i / 2 + 16 * (i % 2)) as u16;
        }
        // SAFETY: within `x` by the caller's promise; a pair is stored where its numbers or earlier ones were read.
        unsafe {
            let order = _mm512_loadu_si512(order.as_ptr().cast());
            for p in 0..elements {
                for first in (0..n).step_by(16) {
                    let row = |i: usize| {
                        if i < count { _mm512_loadu_ps(x.add(i * n + first)) } else { _mm512_setzero_ps() }
                    };
                    let both: __m512i = transmute(_mm512_cvtne2ps_pbh(row(2 * p + 1), row(2 * p)));
                    _mm512_storeu_si512(x.add(p * n + first).cast(), _mm512_permutexvar_epi16(order, both));
                }
            }
        }
    }

    /// # Safety
    /// Both are as long.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub unsafe fn round(to: &mut [bf16], from: &[f32]) {
        for first in (0..from.len()).step_by(16) {
            let some = u16::MAX >> (16 - (from.len() - first).min(16));
            // SAFETY: within both: what is masked out is not touched.
            unsafe {
                let numbers = _mm512_maskz_loadu_ps(some, from.as_ptr().add(first));
                let rounded: __m256i = transmute(_mm512_cvtneps_pbh(numbers));
                _mm256_mask_storeu_epi16(to.as_mut_ptr().add(first).cast(), some, rounded);
            }
        }
    }

    /// # Safety
    /// `row` has a multiple of 16 numbers.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub unsafe fn pair_columns(row: &mut [f32]) {
        let at = row.as_mut_ptr();
        for first in (0..row.len()).step_by(16) {
            // SAFETY: within the row by the caller's promise; a pair is stored where numbers were read.
            unsafe {
                let pairs: __m256i = transmute(_mm512_cvtneps_pbh(_mm512_loadu_ps(at.add(first))));
                _mm256_storeu_si256(at.add(first / 2).cast(), pairs);
            }
        }
    }
}
