//! Packing: operands of matrix products brought into the order and the dtype in which the tiles read them.
//!
//! The broadcast operand becomes rows at a distance; the vector operand panels of two vectors, `[depth, 2 lanes]`
//! one after the other, the last of one vector if that is enough.

pub mod pairs;
pub mod quantized;

use super::super::aligned::prefetch;
use super::super::dequantize::Coded;
use super::super::simd::{Element, Float, Visit, multiversion};
use super::operand::{Elements, Operand};
use super::transpose::Transposer;

/// Packs `count` rows of `depth` elements at distance `row`.
pub fn pack_rows<A: Float>(
    transposer: Transposer<A>,
    (to, row): (&mut [A], usize),
    from: Operand<'_, A>,
    count: usize,
    depth: usize,
) {
    let isa = transposer.isa();
    let data = match from.data {
        Elements::Floats(data) => data,
        Elements::Quantized(matrix) => {
            return quantized::pack_rows(isa, (to, row), &Coded::Rows(matrix), from, count, depth);
        }
        Elements::Interleaved(matrix) => {
            return quantized::pack_rows(isa, (to, row), &Coded::Interleaved(matrix), from, count, depth);
        }
    };
    if let Some(k) = from.pairs {
        return pairs::pack_rows(isa, (bytemuck::cast_slice_mut(to), row), (from, data), count, depth, k);
    }
    A::visit(data, Packing { transposer, layout: Layout::Rows(row), to, from, count, depth });
    if let Some(round) = from.rounding {
        to.chunks_mut(row).take(count).for_each(|row| round(isa, &mut row[..depth]));
    }
}

/// Packs `count` columns of `depth` elements into panels of vectors of `lanes`, with zeros behind the last column.
pub fn pack_panels<A: Float>(
    transposer: Transposer<A>,
    lanes: usize,
    to: &mut [A],
    from: Operand<'_, A>,
    count: usize,
    depth: usize,
) {
    let data = match from.data {
        Elements::Floats(data) => data,
        Elements::Quantized(matrix) => {
            return quantized::pack_panels(transposer, lanes, to, &Coded::Rows(matrix), from, [count, depth]);
        }
        Elements::Interleaved(matrix) => {
            return quantized::pack_panels(transposer, lanes, to, &Coded::Interleaved(matrix), from, [count, depth]);
        }
    };
    if let Some(k) = from.pairs {
        return pairs::pack_panels(transposer, lanes, to, (from, data), [count, depth], k);
    }
    A::visit(data, Packing { transposer, layout: Layout::Panels(lanes), to, from, count, depth });
    if let Some(round) = from.rounding {
        round(transposer.isa(), &mut to[..count.next_multiple_of(lanes) * depth]);
    }
}

/// What an operand is packed into.
enum Layout {
    /// Rows at this distance.
    Rows(usize),
    /// Panels of vectors of so many lanes.
    Panels(usize),
}

/// What is packed.
struct Packing<'a, 'b, A> {
    transposer: Transposer<A>,
    layout: Layout,
    to: &'a mut [A],
    from: Operand<'b, A>,
    count: usize,
    depth: usize,
}

impl<A: Float> Visit<A> for Packing<'_, '_, A> {
    fn visit<S: Element<A>>(self, data: &[S]) {
        let Self { transposer, layout, to, from, count, depth } = self;
        let (isa, stride) = (transposer.isa(), from.stride);
        let lanes = match layout {
            Layout::Rows(row) if from.transposed => {
                return transposer.transpose(to, row, &data[from.from..], stride, [depth, count]);
            }
            Layout::Rows(row) => return copy(isa, to, row, &data[from.from..], stride, count, depth),
            Layout::Panels(lanes) => lanes,
        };
        if from.transposed {
            return copy_panels(isa, to, lanes, &data[from.from..], stride, count, depth);
        }
        for first in (0..count).step_by(2 * lanes) {
            let count = (count - first).min(2 * lanes);
            let width = count.next_multiple_of(lanes);
            let panel = &mut to[first * depth..][..width * depth];
            if count < width {
                panel.fill(A::ZERO);
            }
            transposer.transpose(panel, width, &data[from.skip(first).from..], stride, [count, depth]);
        }
    }
}

/// Steps along k ahead of the current one that are prefetched: rows of a weight lie far apart.
const AHEAD: usize = 4;

/// Copies the first `N` elements.
#[inline(always)]
fn copy_some<A: Float, S: Element<A>, const N: usize>(to: &mut [A], from: &[S]) {
    if let (Some(to), Some(from)) = (to.first_chunk_mut::<N>(), from.first_chunk::<N>()) {
        for i in 0..N {
            to[i] = from[i].widen();
        }
    }
}

multiversion! {
    /// Cuts `depth` rows of `count` elements into panels of vectors of `lanes`.
    fn copy_panels[A: Float, S: Element<A>](
        to: &mut [A],
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
                    32 => copy_some::<A, S, 32>(to, from),
                    16 => copy_some::<A, S, 16>(to, from),
                    8 => copy_some::<A, S, 8>(to, from),
                    4 => copy_some::<A, S, 4>(to, from),
                    _ => unreachable!("pack: panels of {wide}"),
                }
            }
            if whole < count {
                let width = (count - whole).next_multiple_of(lanes);
                let to = &mut to[whole * depth + p * width..][..width];
                for (i, o) in to.iter_mut().enumerate() {
                    *o = if whole + i < count { from[whole + i].widen() } else { A::ZERO };
                }
            }
        }
    }
}

multiversion! {
    /// `to[r * to_stride + c] = from[r * stride + c]`.
    pub fn copy[A: Float, S: Element<A>](
        to: &mut [A],
        to_stride: usize,
        from: &[S],
        stride: usize,
        rows: usize,
        columns: usize,
    ) {
        for r in 0..rows {
            let (to, from) = (&mut to[r * to_stride..][..columns], &from[r * stride..][..columns]);
            match columns {
                8 => copy_some::<A, S, 8>(to, from),
                16 => copy_some::<A, S, 16>(to, from),
                32 => copy_some::<A, S, 32>(to, from),
                64 => copy_some::<A, S, 64>(to, from),
                _ => {
                    for (o, x) in to.iter_mut().zip(from) {
                        *o = x.widen();
                    }
                }
            }
        }
    }
}
