//! How work is cut into blocks: grids, groups of rows that add up, tiles of adapted rows. Pure functions.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::pack::Pack;

/// Rows that a LoRA block handles.
pub const LORA_ROWS: usize = 16;
/// Elements that a block of an element-wise kernel handles.
pub const ELEMENTS: usize = 2048;
/// Columns that a block of a sum over rows handles.
pub const COLUMNS: usize = 32;

/// The grid of an element-wise kernel over `len` elements.
pub fn elements(len: usize) -> [u32; 3] {
    blocks(len.div_ceil(ELEMENTS))
}

/// A grid of `n` blocks in a row.
pub fn blocks(n: usize) -> [u32; 3] {
    [block_count(n), 1, 1]
}

/// A grid of `n` by `m` blocks.
pub fn blocks2(n: usize, m: usize) -> [u32; 3] {
    blocks3(n, m, 1)
}

/// A grid of `n` by `m` by `k` blocks.
pub fn blocks3(n: usize, m: usize, k: usize) -> [u32; 3] {
    assert!(m.max(k) <= 65535, "geometry: {m} x {k} blocks in the second and third directions, at most 65535 each");
    [block_count(n), block_count(m), block_count(k)]
}

fn block_count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or_else(|_| panic!("geometry: {n} blocks"))
}

/// An entry of a table.
pub fn entry(n: usize) -> i32 {
    i32::try_from(n).unwrap_or_else(|_| panic!("geometry: {n} in a table of int"))
}

/// Rows that add up: group `u` adds into what `ids[u]` names, and collects `order[starts[u]..starts[u + 1]]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Groups<K> {
    /// What each group adds into, ascending.
    pub ids: Vec<K>,
    /// Where each group's rows begin, and the end `[U + 1]`.
    pub starts: Vec<i32>,
    /// The rows, in each group in the order in which they came.
    pub order: Vec<i32>,
}

/// Groups `(row, id)` by id.
pub fn groups<K: Ord + Copy>(rows: impl Iterator<Item = (usize, K)>) -> Groups<K> {
    let mut by_id: BTreeMap<K, Vec<i32>> = BTreeMap::new();
    rows.for_each(|(row, id)| by_id.entry(id).or_default().push(entry(row)));
    let mut groups = Groups { ids: Vec::new(), starts: vec![0], order: Vec::new() };
    for (id, rows) in by_id {
        groups.ids.push(id);
        groups.order.extend(rows);
        groups.starts.push(entry(groups.order.len()));
    }
    groups
}

/// Cuts rows into stretches of `step` and a rest.
fn cut(rows: Range<usize>, step: usize) -> impl Iterator<Item = Range<usize>> {
    let end = rows.end;
    rows.step_by(step).map(move |start| start..end.min(start + step))
}

/// The adapted rows, tile by tile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adapted {
    /// `{run, first row, rows}`; the tiles of a run one after another, in row order.
    pub tiles: Vec<[i32; 3]>,
    /// `{run, first tile, tiles}`, ascending.
    pub runs: Vec<[i32; 3]>,
}

/// Cuts the stretches of rows of each run into tiles.
pub fn adapted(pack: &Pack) -> Adapted {
    let mut by_run: BTreeMap<usize, Vec<Range<usize>>> = BTreeMap::new();
    for (run, rows) in pack.runs() {
        by_run.entry(*run).or_default().extend(cut(rows.clone(), LORA_ROWS));
    }
    let mut adapted = Adapted::default();
    for (run, tiles) in by_run {
        adapted.runs.push([entry(run), entry(adapted.tiles.len()), entry(tiles.len())]);
        adapted.tiles.extend(tiles.into_iter().map(|rows| [entry(run), entry(rows.start), entry(rows.len())]));
    }
    adapted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::{Label, PackBuilder, Parent, Token};

    fn pack(segments: &[(usize, Parent, Option<usize>)]) -> Pack {
        let mut builder = PackBuilder::default();
        for &(rows, parent, run) in segments {
            builder.push(&vec![Token::Id(0); rows], parent, run, Label::Text);
        }
        builder.build()
    }

    #[test]
    fn groups_hold_their_rows_in_order() {
        let groups = groups([7u32, 3, 7, 9, 3, 7].into_iter().enumerate());
        assert_eq!(groups.ids, [3, 7, 9]);
        assert_eq!(groups.starts, [0, 2, 5, 6]);
        assert_eq!(groups.order, [1, 4, 0, 2, 5, 3]);
    }

    #[test]
    fn adapted_tiles_of_a_run_lie_together() {
        let tables = adapted(&pack(&[
            (20, Parent::None, Some(1)),
            (3, Parent::None, None),
            (5, Parent::None, Some(0)),
            (2, Parent::None, Some(1)),
        ]));
        assert_eq!(tables.runs, [[0, 0, 1], [1, 1, 3]]);
        assert_eq!(tables.tiles, [[0, 23, 5], [1, 0, 16], [1, 16, 4], [1, 28, 2]]);
    }

    #[test]
    fn constants_are_those_of_the_kernels() {
        let (lora, attention) =
            (include_str!("../../../kernels/lora.cuh"), include_str!("../../../kernels/attention.cuh"));
        let tiles = include_str!("../../../kernels/lora.cu");
        assert!(tiles.contains(&format!("number of rows (<= {LORA_ROWS})")));
        assert!(lora.contains(&format!("float sums[4][{LORA_ROWS} * 8 * NR]")));
        let hopper = include_str!("../../../kernels/attention_hopper.cu");
        assert!(hopper.contains(&format!("constexpr int STAGES = {};", super::super::variant::HOPPER_TILES)));
        assert!(attention.contains(&format!("constexpr int TILE = {},", crate::backend::scratch::BLOCK_ROWS)));
    }

    #[test]
    fn grids_cover_every_element() {
        for len in [0, 1, 2047, 2048, 2049, 1 << 40] {
            let blocks = elements(len)[0] as usize;
            assert!(blocks * ELEMENTS >= len && blocks.saturating_sub(1) * ELEMENTS <= len);
        }
    }
}
