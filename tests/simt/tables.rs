//! The tables that the kernels read, made in the plainest way from a pack, apart from those that the backend makes.

use std::collections::HashMap;

use llamaprobe::pack::{CachedSegment, Pack, Parent};

use crate::ops::attention;

/// No row stands here.
pub const NO_ROW: i32 = i32::MIN;
/// Rows of a block, and keys of a tile.
pub const TILE: usize = 64;

/// Groups of rows by where they add up: what each group is, where its rows begin, and the rows.
pub fn groups<K: PartialEq + Copy>(ids: impl Iterator<Item = (usize, K)>) -> (Vec<K>, Vec<i32>, Vec<i32>) {
    let mut groups: Vec<(K, Vec<i32>)> = Vec::new();
    for (row, id) in ids {
        match groups.iter_mut().find(|(other, _)| *other == id) {
            Some((_, rows)) => rows.push(row as i32),
            None => groups.push((id, vec![row as i32])),
        }
    }
    let mut starts = vec![0];
    for (_, rows) in &groups {
        starts.push(starts.last().unwrap() + rows.len() as i32);
    }
    (groups.iter().map(|g| g.0).collect(), starts, groups.iter().flat_map(|g| g.1.clone()).collect())
}

/// LoRA: the tiles `{run, first row, rows}`, and `{run, first tile, tiles}`.
pub fn adapted(pack: &Pack, step: usize) -> (Vec<i32>, Vec<i32>) {
    let (mut tiles, mut runs) = (Vec::new(), Vec::new());
    let last = pack.runs().iter().map(|(run, _)| run + 1).max().unwrap_or(0);
    for run in 0..last {
        let first = tiles.len();
        for (_, rows) in pack.runs().iter().filter(|(r, _)| *r == run) {
            let starts = rows.clone().step_by(step);
            tiles.extend(starts.map(|from| [run, from, step.min(rows.end - from)]));
        }
        if tiles.len() > first {
            runs.push([run, first, tiles.len() - first]);
        }
    }
    let flat = |list: Vec<[usize; 3]>| list.into_iter().flatten().map(|n| n as i32).collect();
    (flat(tiles), flat(runs))
}

/// The key at each position of a row's path: a row, or `-(r + 1)` for row `r` of the cache.
pub fn path(pack: &Pack, cached: &[CachedSegment], row: usize) -> Vec<i32> {
    let path = attention::path(pack, cached, row).into_iter();
    path.map(|(in_cache, row)| if in_cache { -(row as i32) - 1 } else { row as i32 }).collect()
}

/// Attention; see the head of `kernels/attention.cu`.
#[derive(Default)]
pub struct Forest {
    pub block_rows: Vec<i32>,
    pub list_starts: Vec<i32>,
    pub tile_lists: Vec<i32>,
    /// The same of blocks of twice as many rows.
    pub pair_starts: Vec<i32>,
    pub pair_lists: Vec<i32>,
    pub tiles: Vec<i32>,
    /// In descending order: no kernel asks for one.
    pub key_blocks: Vec<[i32; 2]>,
    pub order: Vec<i32>,
    pub begins: Vec<i32>,
    pub ends: Vec<i32>,
    pub lasts: Vec<i32>,
}

impl Forest {
    pub fn new(pack: &Pack, cached: &[CachedSegment]) -> Self {
        let mut forest = Self::default();
        for g in 0..pack.segments().len() {
            if !matches!(pack.segments()[g].parent, Parent::Pack(_)) {
                forest.descend(pack, g);
            }
        }
        let mut ids = HashMap::new();
        [forest.list_starts, forest.tile_lists] = forest.lists(pack, cached, TILE, &mut ids);
        [forest.pair_starts, forest.pair_lists] = forest.lists(pack, cached, 2 * TILE, &mut ids);
        forest.block_rows.clone_from(&forest.order);
        forest.block_rows.resize(forest.order.len().next_multiple_of(2 * TILE), NO_ROW);
        for block in (0..pack.len().div_ceil(TILE)).rev() {
            let keys = block * TILE..pack.len().min((block + 1) * TILE);
            let sees = |row: &i32| keys.clone().any(|key| (forest.begins[key]..forest.ends[key]).contains(row));
            let seen_by = (0..pack.len() as i32).filter(sees).count();
            forest.key_blocks.push([block as i32, seen_by as i32]);
        }
        for segment in pack.segments() {
            let end = segment.position + segment.rows.len();
            let last = |row| if pack.is_bidirectional() { end as i32 - 1 } else { pack.positions()[row] as i32 };
            forest.lasts.extend(segment.rows.clone().map(last));
        }
        forest
    }

    /// Where the tile lists of blocks of so many rows begin, and the lists; tiles have numbers in the order in which they come.
    fn lists(
        &mut self,
        pack: &Pack,
        cached: &[CachedSegment],
        block_rows: usize,
        ids: &mut HashMap<Vec<i32>, i32>,
    ) -> [Vec<i32>; 2] {
        let (mut starts, mut lists) = (Vec::new(), Vec::new());
        for block in self.order.chunks(block_rows) {
            starts.push(lists.len() as i32 / 4);
            let mut tile_list: Vec<[i32; 4]> = Vec::new();
            for (block_row, &row) in block.iter().enumerate() {
                let g = pack.segments().iter().position(|s| s.rows.contains(&(row as usize))).unwrap();
                let whole = path(pack, cached, pack.segments()[g].rows.end - 1);
                let seen =
                    if pack.is_bidirectional() { whole.len() } else { pack.positions()[row as usize] as usize + 1 };
                for (place, keys) in whole.chunks(TILE).take(seen.div_ceil(TILE)).enumerate() {
                    let next = ids.len() as i32;
                    let id = *ids.entry(keys.to_vec()).or_insert_with(|| {
                        self.tiles.extend(keys);
                        self.tiles.resize(self.tiles.len().next_multiple_of(TILE), NO_ROW);
                        next
                    });
                    match tile_list.iter_mut().find(|v| v[0] == id && v[3] == block_row as i32) {
                        Some(entry) => entry[3] += 1,
                        None => tile_list.push([id, (place * TILE) as i32, block_row as i32, block_row as i32 + 1]),
                    }
                }
            }
            tile_list.sort_by_key(|entry| (entry[1], entry[2]));
            lists.extend(tile_list.into_iter().flatten());
        }
        starts.push(lists.len() as i32 / 4);
        [starts, lists]
    }

    /// Rows and heads that a part of the work on a block of keys is for, 0 for all, and the number of parts, one to spare among them.
    pub fn key_parts(&self, group: usize) -> [usize; 2] {
        const ROWS: usize = 40;
        let parts = |&[_, seen_by]: &[i32; 2]| (seen_by as usize * group).div_ceil(ROWS);
        match self.key_blocks.len() {
            1 => [0, 1],
            _ => [ROWS, self.key_blocks.iter().map(parts).sum::<usize>() + 1],
        }
    }

    fn descend(&mut self, pack: &Pack, g: usize) {
        let first = self.order.len();
        let own = pack.segments()[g].rows.clone();
        self.order.extend(own.clone().map(|row| row as i32));
        let begin = |i| if pack.is_bidirectional() { first } else { first + i };
        self.begins.extend((0..own.len()).map(|i| begin(i) as i32));
        self.ends.resize(self.order.len(), 0);
        for child in 0..pack.segments().len() {
            if pack.segments()[child].parent == Parent::Pack(g) {
                self.descend(pack, child);
            }
        }
        let end = self.order.len() as i32;
        self.ends[first..first + own.len()].fill(end);
    }
}
