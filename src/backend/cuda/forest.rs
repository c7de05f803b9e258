//! The forest as the attention's kernels read it (see the head of `kernels/attention.cu`). Pure functions.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::geometry::entry;
use crate::backend::scratch::BLOCK_ROWS;
use crate::pack::{Pack, Parent};

/// Length of a query block's tile list that is allowed in any case; beyond it, at most twice as many tiles as one of its
/// rows sees. A block takes its tiles one after another: with the rows of unrelated sequences side by side, as when many
/// are generated at once, it would go through all their keys.
const MAX_TILES: usize = 8;
/// Instructions of the forward for as many rows and keys with 16 rows a warp, and with 32 (`tests/counts/compiled.csv`, bf16, width
/// 128, sm_90a).
pub const PAIR_COST: [usize; 2] = [557, 449];
/// Rows of a warpgroup, and the share of useful products from which on whole tiles for all of them cost less than the same tiles for
/// warps of 32 rows: an estimate, since no GPU has measured it.
const WARPGROUP_ROWS: usize = 64;
const LEAST_USEFUL: f64 = 0.75;
/// No row stands here.
pub const NO_ROW: i32 = i32::MIN;

/// The tables of one pack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forest {
    /// The query blocks.
    pub blocks: QueryBlocks,
    /// The same of two query blocks that follow one another in the order of the rows, as one of 128 rows; none where rows of such
    /// blocks see too little in common.
    pub pairs: Option<QueryBlocks>,
    /// The key rows at 64 consecutive positions of a path `[tiles, 64]`: of the pack, `-(r + 1)` for row `r` of the
    /// cache, or [`NO_ROW`].
    pub tiles: Vec<i32>,
    /// Which 64 rows of `order` each block of keys is, and how many rows see any of them, the most first `[ceil(N / 64)]`.
    pub key_blocks: Vec<[i32; 2]>,
    /// The rows in depth-first order `[N]`.
    pub order: Vec<i32>,
    /// Row `order[j]` sees row `order[i]` if `begins[i] <= j < ends[i]` `[N]`.
    pub begins: Vec<i32>,
    /// See `begins`.
    pub ends: Vec<i32>,
    /// The last position that each row of the pack sees, without a window `[N]`.
    pub lasts: Vec<i32>,
}

/// Blocks of queries, those with the longest tile lists first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueryBlocks {
    /// The rows of each `[blocks, 64 or 128]`, or [`NO_ROW`].
    pub rows: Vec<i32>,
    /// Where the tile list of each begins, and the end `[blocks + 1]`.
    pub tile_list_starts: Vec<i32>,
    /// `{tile, position of its first key, first block row that sees it, end of the block rows}`, in each list ascending by
    /// position.
    pub tile_lists: Vec<[i32; 4]>,
    /// Whether warpgroups of 64 rows may take whole tiles: of the rows and keys that they multiply, enough see each other.
    pub by_warpgroups: bool,
}

impl QueryBlocks {
    /// Those of so many rows each, in this order.
    fn new(mut blocks: Vec<Block>, block_rows: usize) -> Self {
        blocks.sort_by_key(|block| Reverse(block.tiles.len()));
        let mut all = Self::default();
        for Block { rows, tiles } in blocks {
            all.rows.extend(rows);
            all.rows.resize(all.rows.len().next_multiple_of(block_rows), NO_ROW);
            all.tile_list_starts.push(entry(all.tile_lists.len()));
            all.tile_lists.extend(tiles);
        }
        all.tile_list_starts.push(entry(all.tile_lists.len()));
        all
    }

    /// The tile list of each block.
    pub fn lists(&self) -> impl Iterator<Item = &[[i32; 4]]> {
        self.tile_list_starts.windows(2).map(|list| &self.tile_lists[list[0] as usize..list[1] as usize])
    }

    /// Pairs of a row and a key that a kernel computes, seen or not, in units of a tile's keys: blocks of `block` rows go through
    /// their tile lists, and a warp of `warp` rows takes a tile that any of them sees.
    pub(super) fn computed(&self, lasts: &[i32], block: usize, warp: usize) -> usize {
        let mut tiles = 0;
        for (rows, list) in self.rows.chunks(block).zip(self.lists()) {
            for (at, rows) in rows.chunks(warp).enumerate() {
                let last = rows.iter().filter(|&&row| row != NO_ROW).map(|&row| lasts[row as usize]).max();
                let (first, end, last) = (entry(at * warp), entry((at + 1) * warp), last.unwrap_or(-1));
                tiles += list.iter().filter(|listed| listed[3] > first && listed[2] < end && listed[1] <= last).count();
            }
        }
        tiles * warp
    }
}

/// A block of queries: its rows and its tile list.
#[derive(Clone, Debug)]
struct Block {
    rows: Vec<i32>,
    tiles: Vec<[i32; 4]>,
}

impl Block {
    /// One of two that follow one another.
    fn pair(two: &[Self]) -> Self {
        let mut pair = two[0].clone();
        let Some(next) = two.get(1) else { return pair };
        // Behind the last row of the first block nobody sees anything.
        let filled = entry(pair.rows.len());
        pair.rows.resize(BLOCK_ROWS, NO_ROW);
        pair.rows.extend(&next.rows);
        for &[tile, position, first, end] in &next.tiles {
            let (first, end) = (first + entry(BLOCK_ROWS), end + entry(BLOCK_ROWS));
            let goes_on = |listed: &&mut [i32; 4]| listed[0] == tile && listed[3] == filled;
            match pair.tiles.iter_mut().find(goes_on).filter(|_| first == entry(BLOCK_ROWS)) {
                Some(listed) => listed[3] = end,
                None => pair.tiles.push([tile, position, first, end]),
            }
        }
        pair.tiles.sort_by_key(|listed| (listed[1], listed[2]));
        pair
    }
}

impl Forest {
    /// The tables of a pack.
    pub fn new(pack: &Pack) -> Self {
        let (mut forest, pairs) = Self::with_pairs(pack);
        let narrow = forest.blocks.computed(&forest.lasts, BLOCK_ROWS, 16);
        let wide = pairs.computed(&forest.lasts, 2 * BLOCK_ROWS, 32);
        let worth = pack.len() >= 2 * BLOCK_ROWS && wide * PAIR_COST[1] <= narrow * PAIR_COST[0];
        forest.pairs = worth.then_some(pairs);
        forest
    }

    /// The tables, and the pairs, worth it or not.
    fn with_pairs(pack: &Pack) -> (Self, QueryBlocks) {
        let mut forest = Self::default();
        let mut walk = Walk::new(pack);
        for g in walk.roots.clone() {
            walk.descend(&mut forest, g);
        }
        let blocks: Vec<Block> =
            walk.blocks(&mut forest).into_iter().map(|rows| walk.block(&mut forest, rows)).collect();
        let mut pairs = QueryBlocks::new(blocks.chunks(2).map(Block::pair).collect(), 2 * BLOCK_ROWS);
        forest.blocks = QueryBlocks::new(blocks, BLOCK_ROWS);
        let key_block = |block| [entry(block), entry(forest.seen_by(block))];
        let mut key_blocks: Vec<_> = (0..pack.len().div_ceil(BLOCK_ROWS)).map(key_block).collect();
        key_blocks.sort_by_key(|&[_, seen_by]| Reverse(seen_by));
        forest.key_blocks = key_blocks;
        forest.lasts = (0..pack.len()).map(|row| entry(pack.visible(row, None).end) - 1).collect();
        let computed = pairs.computed(&forest.lasts, 2 * BLOCK_ROWS, WARPGROUP_ROWS);
        let seen: usize = forest.lasts.iter().map(|&last| last as usize + 1).sum();
        pairs.by_warpgroups = seen as f64 >= LEAST_USEFUL * (computed * BLOCK_ROWS) as f64;
        (forest, pairs)
    }

    /// Rows from the first to the last one in `order` that see any row of a block of keys.
    fn seen_by(&self, block: usize) -> usize {
        let rows = block * BLOCK_ROWS..self.order.len().min((block + 1) * BLOCK_ROWS);
        let (begins, ends) = (&self.begins[rows.clone()], &self.ends[rows]);
        (begins.iter().min().copied().unwrap_or(0)..ends.iter().max().copied().unwrap_or(0)).len()
    }
}

/// The tile at a place of the path of a segment of the pack, or of a cached one.
type TileKey = (Parent, usize);

struct Walk<'a> {
    pack: &'a Pack,
    roots: Vec<usize>,
    children: Vec<Vec<usize>>,
    /// The segment of each row in depth-first order.
    segments: Vec<usize>,
    tiles: HashMap<TileKey, i32>,
}

impl<'a> Walk<'a> {
    fn new(pack: &'a Pack) -> Self {
        let (mut roots, mut children) = (Vec::new(), vec![Vec::new(); pack.segments().len()]);
        for (g, segment) in pack.segments().iter().enumerate() {
            match segment.parent {
                Parent::Pack(p) => children[p].push(g),
                Parent::None | Parent::Cached(_) => roots.push(g),
            }
        }
        Self { pack, roots, children, segments: Vec::new(), tiles: HashMap::new() }
    }

    /// Appends a segment and all its descendants to the order.
    fn descend(&mut self, forest: &mut Forest, root: usize) {
        // Parents and children by hand: a chain of segments may be longer than the stack is deep.
        let mut open: Vec<(usize, usize, usize)> = Vec::new();
        let mut next = Some(root);
        loop {
            if let Some(g) = next.take() {
                open.push((g, 0, forest.order.len()));
                let rows = self.pack.segments()[g].rows.clone();
                self.segments.extend(rows.clone().map(|_| g));
                let (first, own) = (forest.order.len(), rows.len());
                let begin = |i| if self.pack.is_bidirectional() { first } else { first + i };
                forest.begins.extend((0..own).map(|i| entry(begin(i))));
                forest.order.extend(rows.map(entry));
                forest.ends.resize(forest.order.len(), 0);
            }
            let Some((g, child, first)) = open.last_mut() else { return };
            next = self.children[*g].get(*child).copied();
            *child += 1;
            if next.is_none() {
                let own = self.pack.segments()[*g].rows.len();
                let end = entry(forest.order.len());
                forest.ends[*first..*first + own].fill(end);
                open.pop();
            }
        }
    }

    /// Where the stretch of rows of one segment that begins at `from` ends, at most at `end`.
    fn stretch(&self, from: usize, end: usize) -> usize {
        let g = self.segments[from];
        (from..end).find(|&i| self.segments[i] != g).unwrap_or(end)
    }

    /// Tiles that the rows `from..to` of the order, all of one segment, see.
    fn seen(&mut self, forest: &mut Forest, from: usize, to: usize) -> Vec<i32> {
        let end = self.pack.visible(forest.order[to - 1] as usize, None).end;
        (0..end.div_ceil(BLOCK_ROWS)).map(|place| self.tile(forest, self.segments[from], place)).collect()
    }

    /// Cuts the order into blocks of at most [`BLOCK_ROWS`] rows.
    fn blocks(&mut self, forest: &mut Forest) -> Vec<Range<usize>> {
        let (mut blocks, mut tiles) = (Vec::new(), HashSet::new());
        let (mut first, mut from, n) = (0, 0, forest.order.len());
        while from < n {
            let to = self.stretch(from, n.min(first + BLOCK_ROWS));
            let seen = self.seen(forest, from, to);
            let new = seen.iter().filter(|tile| !tiles.contains(*tile)).count();
            if from > first && tiles.len() + new > MAX_TILES.max(2 * seen.len()) {
                blocks.push(first..from);
                (first, tiles) = (from, HashSet::new());
                continue;
            }
            tiles.extend(seen);
            from = to;
            if from == first + BLOCK_ROWS || from == n {
                blocks.push(first..from);
                (first, tiles) = (from, HashSet::new());
            }
        }
        blocks
    }

    /// The block of the rows `first..end` of the order.
    fn block(&mut self, forest: &mut Forest, Range { start: first, end }: Range<usize>) -> Block {
        let (mut tiles, mut last): (Vec<[i32; 4]>, HashMap<i32, usize>) = Default::default();
        let mut from = first;
        while from < end {
            let to = self.stretch(from, end);
            for (place, tile) in self.seen(forest, from, to).into_iter().enumerate() {
                let (row, end_row) = (entry(from - first), entry(to - first));
                // The rows under the segment that owns a tile follow one another.
                match last.get(&tile).map(|&at| &mut tiles[at]).filter(|listed| listed[3] == row) {
                    Some(listed) => listed[3] = end_row,
                    None => {
                        last.insert(tile, tiles.len());
                        tiles.push([tile, entry(place * BLOCK_ROWS), row, end_row]);
                    }
                }
            }
            from = to;
        }
        tiles.sort_by_key(|listed| (listed[1], listed[2]));
        Block { rows: forest.order[first..end].to_vec(), tiles }
    }

    /// The tile at positions `place * 64..` of the path of segment `g`, itself included.
    fn tile(&mut self, forest: &mut Forest, g: usize, place: usize) -> i32 {
        // A tile that lies wholly among the ancestors is theirs.
        let mut owner = Parent::Pack(g);
        let mut under = g;
        while let Parent::Pack(s) = owner
            && (place + 1) * BLOCK_ROWS <= self.pack.segments()[s].position
        {
            under = s;
            owner = self.pack.segments()[s].parent;
        }
        if let Some(&tile) = self.tiles.get(&(owner, place)) {
            return tile;
        }
        let range = place * BLOCK_ROWS..(place + 1) * BLOCK_ROWS;
        let tile = entry(forest.tiles.len() / BLOCK_ROWS);
        let mut position = 0;
        let own = match owner {
            Parent::Pack(s) => {
                under = s;
                Some((false, self.pack.segments()[s].rows.clone()))
            }
            Parent::None | Parent::Cached(_) => None,
        };
        for (cached, rows) in self.pack.path(under).iter().map(|span| (span.cached, span.rows.clone())).chain(own) {
            let from = range.start.saturating_sub(position).min(rows.len());
            let to = range.end.saturating_sub(position).min(rows.len());
            position += rows.len();
            let row = |row| if cached { -entry(row) - 1 } else { entry(row) };
            forest.tiles.extend((rows.start + from..rows.start + to).map(row));
        }
        forest.tiles.resize((tile as usize + 1) * BLOCK_ROWS, NO_ROW);
        self.tiles.insert((owner, place), tile);
        tile
    }
}

/// The key row at each position of the path of each of `rows` `[rows, longest]`, or [`NO_ROW`] where the row sees none.
pub fn keys(pack: &Pack, rows: &[usize], longest: usize, window: Option<usize>) -> Vec<i32> {
    let mut keys = vec![NO_ROW; rows.len() * longest];
    for (keys, &row) in keys.chunks_exact_mut(longest.max(1)).zip(rows) {
        let g = pack.segment_of(row);
        let own = pack.segments()[g].rows.clone();
        let spans = pack.path(g).iter().map(|span| (span.cached, span.rows.clone())).chain([(false, own)]);
        let path = spans.flat_map(|(cached, rows)| rows.map(move |r| if cached { -entry(r) - 1 } else { entry(r) }));
        let seen = pack.visible(row, window);
        let path = path.enumerate().take(seen.end).skip(seen.start);
        path.for_each(|(position, row)| keys[position] = row);
    }
    keys
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::pack::{CachedSegment, Label, PackBuilder, Token};

    fn pack(cached: &[CachedSegment], segments: &[(usize, Parent)]) -> Pack {
        let mut builder = PackBuilder::new(cached);
        for &(rows, parent) in segments {
            builder.push(&vec![Token::Id(0); rows], parent, None, Label::Text);
        }
        builder.build()
    }

    /// What a row sees by the tile lists, as `(position, key)`, must be what the pack allows, each once; the same by the
    /// order and its ends.
    fn check(pack: &Pack) {
        let (forest, pairs) = Forest::with_pairs(pack);
        let n = pack.len();
        let longest = pack.longest();
        let rows: Vec<usize> = (0..n).collect();
        let allowed = keys(pack, &rows, longest, None);
        let rows_see = |blocks: &QueryBlocks, block_rows: usize| {
            let mut seen: Vec<BTreeSet<(usize, i32)>> = vec![BTreeSet::new(); n];
            assert!(
                blocks.lists().is_sorted_by_key(|tiles| Reverse(tiles.len())),
                "those with the longest lists first"
            );
            assert_eq!(blocks.rows.len(), block_rows * (blocks.tile_list_starts.len() - 1));
            for (rows, tiles) in blocks.rows.chunks(block_rows).zip(blocks.lists()) {
                assert!(tiles.is_sorted_by_key(|listed| listed[1]), "ascending by position");
                for &[tile, position, first, end] in tiles {
                    let tile = &forest.tiles[tile as usize * BLOCK_ROWS..][..BLOCK_ROWS];
                    for &row in rows[first as usize..end as usize].iter().filter(|&&row| row != NO_ROW) {
                        for (p, &key) in (position as usize..).zip(tile) {
                            if p < pack.visible(row as usize, None).end {
                                assert!(seen[row as usize].insert((p, key)), "row {row} sees {key} twice");
                            }
                        }
                    }
                }
            }
            seen
        };
        let seen = rows_see(&forest.blocks, BLOCK_ROWS);
        assert_eq!(rows_see(&pairs, 2 * BLOCK_ROWS), seen, "in pairs");
        assert!(forest.key_blocks.is_sorted_by_key(|&[_, seen_by]| Reverse(seen_by)), "keys that most rows see first");
        let mut key_blocks: Vec<i32> = forest.key_blocks.iter().map(|&[block, _]| block).collect();
        key_blocks.sort_unstable();
        assert!(key_blocks.into_iter().eq(0..n.div_ceil(BLOCK_ROWS) as i32), "all keys");
        for &[block, seen_by] in &forest.key_blocks {
            let keys = forest.order.iter().skip(block as usize * BLOCK_ROWS).take(BLOCK_ROWS);
            let sees = |row: &i32| keys.clone().any(|key| seen[*row as usize].iter().any(|(_, seen)| seen == key));
            assert_eq!(
                forest.order.iter().filter(|row| sees(row)).count(),
                seen_by as usize,
                "rows that see block {block}"
            );
        }
        let mut order = forest.order.clone();
        order.sort_unstable();
        assert!(order.iter().map(|&row| row as usize).eq(0..n), "each row once");
        for row in 0..n {
            let path = allowed[row * longest..][..longest].iter().copied().enumerate();
            let expected: BTreeSet<_> = path.filter(|(_, key)| *key != NO_ROW).collect();
            assert_eq!(seen[row], expected, "row {row}");
        }
        for (j, &row) in forest.order.iter().enumerate() {
            let sees = |i: &usize| (forest.begins[*i] as usize..forest.ends[*i] as usize).contains(&j);
            let by_order = (0..n).filter(sees).map(|i| forest.order[i]);
            let expected = seen[row as usize].iter().map(|(_, key)| *key).filter(|key| *key >= 0);
            assert!(by_order.collect::<BTreeSet<_>>() == expected.collect(), "row {row} by the order");
        }
    }

    #[test]
    fn forest_shows_every_row_its_path_once() {
        use Parent::{None as Root, Pack as Under};
        for segments in [
            vec![(1, Root)],
            vec![(64, Root)],
            vec![(200, Root)],
            vec![(3, Root), (70, Root), (5, Root)],
            vec![(100, Root), (7, Under(0)), (60, Under(0)), (9, Under(0))],
            vec![(64, Root), (7, Under(0)), (60, Under(0)), (9, Under(1))],
            vec![(10, Root), (5, Under(0)), (4, Under(1)), (6, Under(1)), (8, Under(0)), (130, Under(4)), (2, Root)],
            vec![(70, Root), (1, Root), (70, Under(0)), (70, Under(1)), (3, Under(2)), (3, Under(0))],
        ] {
            check(&pack(&[], &segments));
        }
    }

    #[test]
    fn forest_puts_cached_ancestors_before_the_pack() {
        use Parent::{Cached, None as Root, Pack as Under};
        let cached = [
            CachedSegment { rows: 5..75, parent: None, run: None, end: 70 },
            CachedSegment { rows: 75..78, parent: Some(0), run: None, end: 73 },
        ];
        check(&pack(&cached, &[(4, Cached(0)), (90, Cached(1)), (5, Root), (3, Under(1)), (2, Cached(0))]));
    }

    #[test]
    fn forest_siblings_share_the_tiles_of_their_ancestors() {
        let mut segments = vec![(128, Parent::None)];
        segments.extend([(16, Parent::Pack(0)); 8]);
        let forest = Forest::new(&pack(&[], &segments));
        // Two tiles of the parent, and one for each child.
        assert_eq!(forest.tiles.len() / BLOCK_ROWS, 2 + 8);
        let lists: Vec<_> = forest.blocks.lists().collect();
        assert_eq!(lists[0][..2], [[0, 0, 0, 64], [1, 64, 0, 64]], "all children of the block at once");
        // The blocks of the parent come last.
        assert!(lists.iter().map(|list| list.len()).eq([2 + 4, 2 + 4, 2, 1]));
    }

    #[test]
    fn forest_of_sequences_generated_at_once_has_short_tile_lists() {
        let long = |i: usize| CachedSegment { rows: 300 * i..300 * (i + 1), parent: None, run: None, end: 300 };
        let cached: Vec<CachedSegment> = (0..40).map(long).collect();
        let next: Vec<(usize, Parent)> = (0..40).map(|i| (1, Parent::Cached(i))).collect();
        let pack = pack(&cached, &next);
        check(&pack);
        let blocks = Forest::new(&pack).blocks;
        assert_eq!(blocks.lists().count(), 20, "one row sees five tiles");
        assert!(blocks.lists().all(|list| list.len() == 10));
        // Short ones share blocks, and so do those that continue one beginning, of four tiles and one of their own.
        let short: Vec<(usize, Parent)> = (0..40).map(|_| (2, Parent::None)).collect();
        let same: Vec<(usize, Parent)> = (0..40).map(|_| (1, Parent::Cached(0))).collect();
        for (next, blocks) in [(short, 5), (same, 7)] {
            let pack = self::pack(&cached, &next);
            check(&pack);
            assert_eq!(Forest::new(&pack).blocks.lists().count(), blocks);
        }
    }

    #[test]
    fn forest_is_taken_in_pairs_where_rows_share_tiles() {
        let mut prefix = vec![(800, Parent::None)];
        prefix.extend([(50, Parent::Pack(0)); 25]);
        let apart = vec![(16, Parent::None); 64];
        for (segments, in_pairs) in [(vec![(2048, Parent::None)], true), (prefix, true), (apart, false)] {
            let forest = Forest::new(&pack(&[], &segments));
            assert_eq!(forest.pairs.is_some(), in_pairs, "{segments:?}");
        }
        // A tile that both blocks of a pair see whole is listed once.
        let forest = Forest::new(&pack(&[], &[(256, Parent::None)]));
        let pairs = forest.pairs.expect("shared");
        assert_eq!(pairs.lists().last().expect("two"), [[0, 0, 0, 128], [1, 64, 64, 128]]);
    }

    /// The most tiles that a block of a grid of `blocks` takes in `attention_fwd_hopper`, for each that it takes in the mean.
    fn imbalance(pairs: &QueryBlocks, heads: usize, blocks: usize) -> f64 {
        let lengths = pairs.tile_list_starts.windows(2).map(|list| f64::from(list[1] - list[0]));
        let works: Vec<f64> = lengths.flat_map(|length| vec![length; heads]).collect();
        let mut tiles = vec![0.0; blocks];
        for (round, works) in works.chunks(blocks).enumerate() {
            for (place, tiles_of) in works.iter().enumerate() {
                tiles[if round % 2 == 1 { blocks - 1 - place } else { place }] += tiles_of;
            }
        }
        tiles.iter().copied().fold(0.0, f64::max) * blocks as f64 / tiles.iter().sum::<f64>()
    }

    #[test]
    fn forest_says_where_warpgroups_are_worth_it_and_keeps_all_blocks_busy() {
        let mut prefix = vec![(800, Parent::None)];
        prefix.extend([(50, Parent::Pack(0)); 25]);
        let mut short = vec![(100, Parent::None)];
        short.extend([(32, Parent::Pack(0)); 60]);
        let one = |n: usize| vec![(n, Parent::None)];
        let same = |n: usize, times: usize| vec![(n, Parent::None); times];
        let packs = [
            (one(2048), true),
            (one(512), true),
            (same(1024, 4), true),
            (prefix, true),
            (short, false),
            (same(64, 32), false),
        ];
        for (segments, worth) in packs {
            let (forest, pairs) = Forest::with_pairs(&pack(&[], &segments));
            assert_eq!(pairs.by_warpgroups, worth, "{segments:?}");
            let (n, found) = (forest.order.len(), imbalance(&pairs, 32, 132));
            assert!(n < 1024 || !worth || found <= 1.2, "{n} rows: {found:.2}");
        }
    }

    #[test]
    fn keys_hide_what_is_outside_of_the_window() {
        let pack = pack(&[], &[(4, Parent::None), (2, Parent::Pack(0))]);
        assert_eq!(keys(&pack, &[5], 6, Some(3)), [NO_ROW, NO_ROW, NO_ROW, 3, 4, 5]);
        assert_eq!(keys(&pack, &[1], 4, None), [0, 1, NO_ROW, NO_ROW]);
    }
}
