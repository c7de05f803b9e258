//! Operands of matrix products brought into the order and the type in which the tile reads them.

pub mod pairs;
pub mod transpose;

pub use self::transpose::transpose;
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

/// Calls elements into the cache.
#[inline(always)]
fn prefetch<S>(x: &[S]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        const LINE: usize = 64;
        for line in x.chunks(LINE / size_of::<S>()) {
            // SAFETY: changes nothing but the cache.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
        }
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
