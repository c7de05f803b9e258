//! Learned positions: `x += table[first + position]` (Gehring et al. 2017).

use super::context::Exec;
use super::parallel::{each_part, rows};
use super::rows::accumulate;
use super::simd::{Element, Float, Isa};
use super::weight::Weight;
use crate::pack::Pack;

/// See [`Backend::position_fwd`](crate::backend::Backend::position_fwd).
pub fn fwd<W: Float, R: Element<W>>(
    exec: &Exec,
    x: &mut [W],
    pack: &Pack,
    table: &Weight<W, R>,
    first: usize,
    width: usize,
) {
    each_part(&exec.pool, pack.len(), width, rows("position_fwd", x, pack.len(), width), |from, part| {
        let mut place = vec![W::ZERO; width];
        for (x, &position) in part.chunks_exact_mut(width).zip(&pack.positions()[from..]) {
            table.read(exec.isa, &mut place, (first + position as usize) * width);
            accumulate(exec.isa, x, &place);
        }
    });
}

/// See [`Backend::position_bwd_table`](crate::backend::Backend::position_bwd_table).
pub fn bwd_table<W: Float>(isa: Isa, d_table: &mut [W], d_x: &[W], pack: &Pack, first: usize, width: usize) {
    for (d_x, &position) in d_x.chunks_exact(width).zip(pack.positions()) {
        accumulate(isa, &mut d_table[(first + position as usize) * width..][..width], d_x);
    }
}
