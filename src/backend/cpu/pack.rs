//! Operands of matrix products brought into the order and the type in which the tile reads them.

pub mod pairs;

use std::array::from_fn;

use super::gemm::Operand;
use super::simd::{Element, Float, Isa, Visit, multiversion};
use super::tile::DEPTH;

/// Packs `count` rows of `depth` elements at distance [`DEPTH`].
pub fn pack_rows<W: Float>(isa: Isa, to: &mut [W], from: Operand<'_, W>, count: usize, depth: usize) {
    if let Some(k) = from.pairs {
        return pairs::pack_rows(isa, bytemuck::cast_slice_mut(to), from, count, depth, k);
    }
    W::visit(from.data, Packing { isa, panels: None, to, from, count, depth });
    if let Some(round) = from.rounding {
        to.chunks_mut(DEPTH).take(count).for_each(|row| round(isa, &mut row[..depth]));
    }
}

/// Packs `count` lanes of `depth` elements into panels of twice `lanes`, the last of `lanes` if that is enough, with
/// zeros for lanes that there are not.
pub fn pack_panels<W: Float>(isa: Isa, lanes: usize, to: &mut [W], from: Operand<'_, W>, count: usize, depth: usize) {
    if let Some(k) = from.pairs {
        return pairs::pack_panels(isa, lanes, to, from, count, depth, k);
    }
    W::visit(from.data, Packing { isa, panels: Some(lanes), to, from, count, depth });
    if let Some(round) = from.rounding {
        round(isa, &mut to[..count.next_multiple_of(lanes) * depth]);
    }
}

/// What is packed: into panels of twice so many lanes, or else into rows.
struct Packing<'a, 'b, W> {
    isa: Isa,
    panels: Option<usize>,
    to: &'a mut [W],
    from: Operand<'b, W>,
    count: usize,
    depth: usize,
}

impl<W: Float> Visit<W> for Packing<'_, '_, W> {
    fn visit<S: Element<W>>(self, data: &[S]) {
        let Self { isa, panels, to, from, count, depth } = self;
        let stride = from.stride;
        let Some(lanes) = panels else {
            let data = &data[from.from..];
            return match from.transposed {
                true => transpose(isa, to, DEPTH, data, stride, depth, count),
                false => copy(isa, to, DEPTH, data, stride, count, depth),
            };
        };
        if from.transposed {
            return copy_panels(isa, to, lanes, &data[from.from..], stride, count, depth);
        }
        for first in (0..count).step_by(2 * lanes) {
            let count = (count - first).min(2 * lanes);
            let width = count.next_multiple_of(lanes);
            let panel = &mut to[first * depth..][..width * depth];
            if count < width {
                panel.fill(W::ZERO);
            }
            transpose(isa, panel, width, &data[from.skip(first).from..], stride, count, depth);
        }
    }
}

/// Steps along k ahead of the current one that are called into the cache: rows of a weight lie far apart.
const AHEAD: usize = 4;
/// Bytes of a line of the cache.
const LINE: usize = 64;

/// Calls elements into the cache.
#[inline(always)]
fn prefetch<S>(x: &[S]) {
    #[cfg(target_arch = "x86_64")]
    for line in x.chunks(LINE / size_of::<S>()) {
        // SAFETY: changes nothing but the cache.
        unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = x;
}

/// Copies the first `N` elements.
#[inline(always)]
fn copy_some<W: Float, S: Element<W>, const N: usize>(to: &mut [W], from: &[S]) {
    if let (Some(to), Some(from)) = (to.first_chunk_mut::<N>(), from.first_chunk::<N>()) {
        for i in 0..N {
            to[i] = from[i].widen();
        }
    }
}

multiversion! {
    /// Cuts `depth` rows of `count` elements into panels of twice `lanes`, the last of `lanes` if that is enough.
    fn copy_panels[W: Float, S: Element<W>](
        to: &mut [W],
        lanes: usize,
        from: &[S],
        stride: usize,
        count: usize,
        depth: usize,
    ) {
        let wide = 2 * lanes;
        let whole = count - count % wide;
        for p in 0..depth {
            if p + AHEAD < depth {
                prefetch(&from[(p + AHEAD) * stride..][..count]);
            }
            let from = &from[p * stride..][..count];
            for first in (0..whole).step_by(wide) {
                let to = &mut to[first * depth + p * wide..][..wide];
                let from = &from[first..][..wide];
                // Of known length: a call for so little would take longer than the copy.
                match wide {
                    32 => copy_some::<W, S, 32>(to, from),
                    16 => copy_some::<W, S, 16>(to, from),
                    8 => copy_some::<W, S, 8>(to, from),
                    4 => copy_some::<W, S, 4>(to, from),
                    _ => unreachable!("pack: panels of {wide}"),
                }
            }
            if whole < count {
                let width = (count - whole).next_multiple_of(lanes);
                let to = &mut to[whole * depth + p * width..][..width];
                for (i, o) in to.iter_mut().enumerate() {
                    *o = if whole + i < count { from[whole + i].widen() } else { W::ZERO };
                }
            }
        }
    }
}

multiversion! {
    /// `to[r * to_stride + c] = from[r * stride + c]`.
    pub fn copy[W: Float, S: Element<W>](
        to: &mut [W],
        to_stride: usize,
        from: &[S],
        stride: usize,
        rows: usize,
        columns: usize,
    ) {
        for r in 0..rows {
            let (to, from) = (&mut to[r * to_stride..][..columns], &from[r * stride..][..columns]);
            match columns {
                8 => copy_some::<W, S, 8>(to, from),
                16 => copy_some::<W, S, 16>(to, from),
                32 => copy_some::<W, S, 32>(to, from),
                64 => copy_some::<W, S, 64>(to, from),
                _ => {
                    for (o, x) in to.iter_mut().zip(from) {
                        *o = x.widen();
                    }
                }
            }
        }
    }
}

/// Edge of the squares that are transposed at once.
const SQUARE: usize = 8;

/// A square of elements.
pub type Square<W> = [[W; SQUARE]; SQUARE];

/// Transposes a square, element by element.
pub fn turn<W: Copy>(square: &mut Square<W>) {
    let old = *square;
    *square = from_fn(|r| from_fn(|c| old[c][r]));
}

/// [`turn`] in vectors, if the instruction set has them.
pub fn turn_f32(isa: Isa) -> fn(&mut Square<f32>) {
    #[cfg(target_arch = "x86_64")]
    if isa != Isa::Plain {
        // SAFETY: both other instruction sets include AVX2, and an `Isa` is only made where it was detected.
        return |square| unsafe { turn_avx2(square) };
    }
    let _ = isa;
    turn
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn turn_avx2(square: &mut Square<f32>) {
    use std::arch::x86_64::*;
    // SAFETY: every row of the square has the eight elements of a vector; the instructions are enabled here.
    unsafe {
        let turned = turn_vectors(from_fn(|i| _mm256_loadu_ps(square[i].as_ptr())));
        for (row, vector) in square.iter_mut().zip(turned) {
            _mm256_storeu_ps(row.as_mut_ptr(), vector);
        }
    }
}

/// Transposes a square whose rows are vectors.
///
/// # Safety
/// The processor has AVX2.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub unsafe fn turn_vectors(r: [std::arch::x86_64::__m256; SQUARE]) -> [std::arch::x86_64::__m256; SQUARE] {
    use std::arch::x86_64::*;
    // SAFETY: the caller's promise.
    unsafe {
        // Pairs of rows, then fours, within the halves of the vectors; then the halves. Without closures: they would not
        // have the instructions, and every step would be a call.
        let (a, b) = (_mm256_unpacklo_ps(r[0], r[1]), _mm256_unpackhi_ps(r[0], r[1]));
        let (c, d) = (_mm256_unpacklo_ps(r[2], r[3]), _mm256_unpackhi_ps(r[2], r[3]));
        let (e, f) = (_mm256_unpacklo_ps(r[4], r[5]), _mm256_unpackhi_ps(r[4], r[5]));
        let (g, h) = (_mm256_unpacklo_ps(r[6], r[7]), _mm256_unpackhi_ps(r[6], r[7]));
        let (u0, l0) = (_mm256_shuffle_ps::<0x44>(a, c), _mm256_shuffle_ps::<0x44>(e, g));
        let (u1, l1) = (_mm256_shuffle_ps::<0xee>(a, c), _mm256_shuffle_ps::<0xee>(e, g));
        let (u2, l2) = (_mm256_shuffle_ps::<0x44>(b, d), _mm256_shuffle_ps::<0x44>(f, h));
        let (u3, l3) = (_mm256_shuffle_ps::<0xee>(b, d), _mm256_shuffle_ps::<0xee>(f, h));
        [
            _mm256_permute2f128_ps::<0x20>(u0, l0),
            _mm256_permute2f128_ps::<0x20>(u1, l1),
            _mm256_permute2f128_ps::<0x20>(u2, l2),
            _mm256_permute2f128_ps::<0x20>(u3, l3),
            _mm256_permute2f128_ps::<0x31>(u0, l0),
            _mm256_permute2f128_ps::<0x31>(u1, l1),
            _mm256_permute2f128_ps::<0x31>(u2, l2),
            _mm256_permute2f128_ps::<0x31>(u3, l3),
        ]
    }
}

/// `to[c * to_stride + r] = from[r * stride + c]`.
pub fn transpose<W: Float, S: Element<W>>(
    isa: Isa,
    to: &mut [W],
    to_stride: usize,
    from: &[S],
    stride: usize,
    rows: usize,
    columns: usize,
) {
    transpose_squares(isa, to, to_stride, from, stride, rows, columns, W::turn(isa));
}

multiversion! {
    fn transpose_squares[W: Float, S: Element<W>](
        to: &mut [W],
        to_stride: usize,
        from: &[S],
        stride: usize,
        rows: usize,
        columns: usize,
        turn: fn(&mut Square<W>),
    ) {
        let (whole_rows, whole_columns) = (rows - rows % SQUARE, columns - columns % SQUARE);
        let mut square = [[W::ZERO; SQUARE]; SQUARE];
        for r in (0..whole_rows).step_by(SQUARE) {
            for c in (0..whole_columns).step_by(SQUARE) {
                for (i, row) in square.iter_mut().enumerate() {
                    let from = &from[(r + i) * stride + c..][..SQUARE];
                    for (x, s) in row.iter_mut().zip(from) {
                        *x = s.widen();
                    }
                }
                turn(&mut square);
                for (i, row) in square.iter().enumerate() {
                    to[(c + i) * to_stride + r..][..SQUARE].copy_from_slice(row);
                }
            }
            for c in whole_columns..columns {
                for i in r..r + SQUARE {
                    to[c * to_stride + i] = from[i * stride + c].widen();
                }
            }
        }
        for r in whole_rows..rows {
            for c in 0..columns {
                to[c * to_stride + r] = from[r * stride + c].widen();
            }
        }
    }
}
