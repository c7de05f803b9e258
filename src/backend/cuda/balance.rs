//! How evenly blocks of attention lie on a device's multiprocessors.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::forest::{PAIR_COST, QueryBlocks};
use crate::backend::scratch::{MIN_PART_ROWS, MOST_SHARED};

/// Multiprocessors of a large device, an H100 or H200: what is decided for their sake is the same on every device.
const MULTIPROCESSORS: usize = 132;
/// Blocks of the attention on a multiprocessor at a time, of width 128 in 2 bytes (`tests/counts/compiled.csv`).
const RESIDENT: usize = 2;

/// What the blocks of one head take, in some unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    longest: usize,
    total: usize,
}

impl Load {
    /// Of blocks that take so much each.
    pub fn new(blocks: impl Iterator<Item = usize>) -> Self {
        blocks.fold(Self::default(), |Self { longest, total }, block| Self {
            longest: longest.max(block),
            total: total + block,
        })
    }

    /// Of blocks of queries: their tiles.
    pub fn of_tiles(blocks: &QueryBlocks) -> Self {
        Self::new(blocks.lists().map(<[_]>::len))
    }

    /// What the multiprocessor that works longest takes at least, with as many blocks for each of `heads`.
    pub fn bound(self, heads: usize) -> usize {
        self.longest.max((self.total * heads).div_ceil(MULTIPROCESSORS))
    }
}

/// Whether the forward of so many heads ends sooner with blocks of 128 rows than with blocks of 64.
pub fn pairs_are_worth_it(pairs: Load, blocks: Load, heads: usize) -> bool {
    2 * PAIR_COST[1] * pairs.bound(heads) <= PAIR_COST[0] * blocks.bound(heads)
}

/// Which of `rows` the block at this place of a grid of so many heads works on: `rows_of_block` of `attention.cuh`.
fn rows_of_block([at, head]: [usize; 2], [rows, heads]: [usize; 2]) -> usize {
    let [second, third] = [1, 2].map(|blocks| ((blocks * MULTIPROCESSORS + heads - 1 - head) / heads).min(rows));
    if (second..third).contains(&at) { second + third - 1 - at } else { at }
}

/// What the multiprocessor with the most work does, if blocks of these works, each of so many heads, begin in order where there is room
/// first: on each multiprocessor one, and then a second one.
fn busiest(works: &[usize], heads: usize) -> usize {
    let mut ends: BinaryHeap<_> = (0..MULTIPROCESSORS * RESIDENT).map(|slot| Reverse((0, slot))).collect();
    let mut all = [0; MULTIPROCESSORS];
    for place in (0..works.len()).flat_map(|at| (0..heads).map(move |head| [at, head])) {
        let work = works[rows_of_block(place, [works.len(), heads])];
        let Some(mut next) = ends.peek_mut() else { break };
        let Reverse((end, slot)) = &mut *next;
        *end += work;
        all[*slot % MULTIPROCESSORS] += work;
    }
    all.into_iter().max().unwrap_or(0)
}

/// How many rows see each block of keys, the most first.
#[derive(Clone, Debug)]
pub struct KeyLoad {
    seen_by: Vec<usize>,
    /// What was chosen for so many heads of queries and of keys: layers ask for the same.
    chosen: RefCell<HashMap<[usize; 2], Option<Parts>>>,
}

/// Rows of a step of a block of keys.
const STEP: usize = 32;
/// Steps that a part takes for the sums that it leaves and reads: an estimate, since no GPU has measured it. In the mean it leaves one to
/// two and reads half as many, each 64 KB (width 128) at what a multiprocessor gets of the second-level cache where all of them ask,
/// beside a step's products of 64 keys and [`STEP`] rows at half of what tensor cores can.
const PART_STEPS: usize = 6;

impl KeyLoad {
    /// Of blocks that so many rows see each.
    pub fn new(seen_by: impl Iterator<Item = usize>) -> Self {
        Self { seen_by: seen_by.collect(), chosen: RefCell::default() }
    }

    /// The parts of all blocks with which the gradients of keys end soonest; none where whole blocks are even enough, or no parts end
    /// sooner.
    pub fn parts(&self, heads: usize, kv_heads: usize) -> Option<Parts> {
        let heads = [heads, kv_heads];
        *self.chosen.borrow_mut().entry(heads).or_insert_with(|| self.choose(heads))
    }

    fn choose(&self, heads: [usize; 2]) -> Option<Parts> {
        let (whole, kv_heads) = (self.steps(heads, None), heads[1]);
        let (&longest, all) = (whole.first()?, whole.iter().sum::<usize>() * kv_heads);
        // Blocks that begin where there is room first end no further apart than the longest is.
        if 10 * longest * MULTIPROCESSORS <= all {
            return None;
        }
        let end = busiest(&whole, kv_heads);
        if 10 * end * MULTIPROCESSORS <= 11 * all {
            return None;
        }
        let parts = part_sizes(all * STEP / MULTIPROCESSORS)
            .take_while(|&rows| rows < longest * STEP)
            .map(|rows| self.parts_of(rows, heads))
            .filter(|parts| parts.shared * kv_heads <= MOST_SHARED);
        let ends = parts.map(|parts| (busiest(&self.steps(heads, Some(parts)), kv_heads), parts));
        ends.min_by_key(|&(end, _)| end).filter(|&(in_parts, _)| in_parts < end).map(|(_, parts)| parts)
    }

    /// Parts of at most so many rows and heads.
    fn parts_of(&self, rows: usize, [heads, kv_heads]: [usize; 2]) -> Parts {
        let counts = self.seen_by.iter().map(|seen_by| (seen_by * heads / kv_heads).div_ceil(rows));
        let shared = counts.clone().take_while(|&count| count > 1).sum();
        let more = counts.sum::<usize>() - self.seen_by.len();
        Parts { rows, shared, count: self.seen_by.len() + more.next_power_of_two() }
    }

    /// Steps of each block, or part of one, of a head in the order of their launch.
    fn steps(&self, [heads, kv_heads]: [usize; 2], parts: Option<Parts>) -> Vec<usize> {
        let (group, mut all) = (heads / kv_heads, Vec::new());
        for seen_by in &self.seen_by {
            let steps = seen_by.div_ceil(STEP) * group;
            let count = parts.map_or(1, |parts| (seen_by * group).div_ceil(parts.rows));
            let more = if count > 1 { PART_STEPS } else { 0 };
            all.extend((0..count).map(|part| steps * (part + 1) / count - steps * part / count + more));
        }
        // Those to spare.
        all.resize(parts.map_or(all.len(), |parts| parts.count), 0);
        all
    }
}

/// Rows and heads of a part that are tried, where a multiprocessor has so many to do in the mean: from a quarter of them on. Few sizes,
/// so that few launches differ.
fn part_sizes(mean: usize) -> impl Iterator<Item = usize> {
    let sizes = (0..).flat_map(|power| (4..8).map(move |quarters| (quarters * MIN_PART_ROWS / 4) << power));
    sizes.skip_while(move |&rows| 4 * rows < mean).take_while(move |&rows| rows <= mean.max(MIN_PART_ROWS))
}

/// Parts of what blocks of keys collect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Rows and heads that a part is for, at most.
    pub rows: usize,
    /// Number of parts, and of parts to spare.
    pub count: usize,
    /// How many of them, the first ones, share a block with others.
    pub shared: usize,
}

#[cfg(test)]
#[path = "../../../tests/support/counts.rs"]
mod counts;

#[cfg(test)]
mod tests {
    use super::counts::{Column, Table, high, low};
    use super::*;
    use crate::backend::cuda::forest::Forest;
    use crate::backend::scratch::{BLOCK_ROWS, most_shared};
    use crate::pack::{Label, Pack, PackBuilder, Parent, Token};

    /// Query heads of LLaMA-2-7B; as many of keys and values, a quarter (LLaMA 3), or an eighth.
    const HEADS: usize = 32;
    const KV_HEADS: [usize; 3] = [32, 8, 4];
    /// Most work of a multiprocessor, of what it works on average.
    const MOST: f64 = 1.2;

    /// A beginning, if it is not empty, that all of `count` others of `rows` continue.
    fn pack(beginning: usize, count: usize, rows: usize) -> Pack {
        let mut builder = PackBuilder::default();
        let mut push = |rows, parent| builder.push(&vec![Token::Id(0); rows], parent, None, Label::Text);
        let parent = if beginning > 0 { Parent::Pack(push(beginning, Parent::None)) } else { Parent::None };
        for _ in 0..count {
            push(rows, parent);
        }
        builder.build()
    }

    /// The most that a multiprocessor works, of what it does on average, if blocks of these works, each of so many heads, are launched.
    fn balance(works: &[usize], heads: usize) -> f64 {
        (busiest(works, heads) * MULTIPROCESSORS) as f64 / (works.iter().sum::<usize>() * heads) as f64
    }

    fn lists(blocks: &QueryBlocks) -> Vec<usize> {
        blocks.lists().map(<[_]>::len).collect()
    }

    fn key_load(forest: &Forest) -> KeyLoad {
        KeyLoad::new(forest.key_blocks.iter().map(|&[_, seen_by]| seen_by as usize))
    }

    /// Pairs of query and key that are seen, of those that warps of 16 rows compute.
    fn useful(pack: &Pack, forest: &Forest) -> f64 {
        let seen: usize = (0..pack.len()).map(|row| pack.visible(row, None).len()).sum();
        seen as f64 / (forest.blocks.computed(&forest.lasts, BLOCK_ROWS, 16) * BLOCK_ROWS) as f64
    }

    #[test]
    fn busiest_has_two_blocks_at_a_time_of_which_the_longest_lie_beside_the_shortest() {
        assert_eq!(busiest(&[], 1), 0);
        let works: Vec<usize> = (1..=2 * MULTIPROCESSORS).rev().collect();
        assert_eq!(busiest(&works, 1), 2 * MULTIPROCESSORS + 1);
        // A third one begins where one ends first.
        assert_eq!(busiest(&[&[5; 2 * MULTIPROCESSORS - 1][..], &[2, 4]].concat(), 1), 5 + 2 + 4);
        assert_eq!(busiest(&[7; 2 * MULTIPROCESSORS / 8 + 1], 8), 3 * 7);
        // Each block once, whatever the heads.
        for (rows, heads) in [(1, 32), (36, 8), (20, 5), (9, 32), (200, 1), (2, 300)] {
            for head in 0..heads {
                let of_block = |at| rows_of_block([at, head], [rows, heads]);
                let mut all: Vec<usize> = (0..rows).map(of_block).collect();
                all.sort_unstable();
                assert!(all.into_iter().eq(0..rows), "{rows} rows, head {head} of {heads}");
            }
        }
    }

    #[test]
    fn balance_of_attention_is_that_of_the_table() {
        static COLUMNS: [Column; 6] = [
            low("queries"),
            low("pairs of queries"),
            low("keys"),
            low("keys of 8 heads"),
            low("keys of 4 heads"),
            high("useful"),
        ];
        let mut table = Table::new(&COLUMNS);
        for (beginning, count, rows) in
            [(0, 1, 512), (0, 1, 2048), (0, 8, 256), (0, 32, 64), (800, 25, 50), (800, 80, 16), (100, 60, 32)]
        {
            let pack = pack(beginning, count, rows);
            let forest = Forest::new(&pack);
            let pairs = forest
                .pairs
                .as_ref()
                .filter(|pairs| pairs_are_worth_it(Load::of_tiles(pairs), Load::of_tiles(&forest.blocks), HEADS));
            let pairs = pairs.map_or(0.0, |pairs| balance(&lists(pairs), HEADS));
            let load = key_load(&forest);
            let keys = KV_HEADS.map(|kv_heads| {
                let parts = load.parts(HEADS, kv_heads);
                assert!(
                    parts.is_none_or(|parts| parts.shared * kv_heads <= most_shared(pack.len(), HEADS)),
                    "{parts:?}"
                );
                balance(&load.steps([HEADS, kv_heads], parts), kv_heads)
            });
            let counts = [&[balance(&lists(&forest.blocks), HEADS), pairs][..], &keys].concat();
            let shared = if beginning > 0 { format!("{beginning} and ") } else { String::new() };
            let name = format!("{shared}{count} of {rows}");
            // Of 4 heads not all reach it: parts that are more even would end later.
            assert!(counts[..4].iter().all(|&count| count <= MOST), "{name}: {counts:?}, at most {MOST}");
            table.add(name, &[&counts[..], &[useful(&pack, &forest)]].concat());
        }
        table.hold("balance", "--lib balance_of_attention");
    }

    /// What the order of the blocks and the parts are there for.
    #[test]
    fn blocks_as_they_come_are_not_balanced() {
        let whole = |forest: &Forest, heads| key_load(forest).steps([HEADS, heads], None);
        let longest_first = whole(&Forest::new(&pack(800, 25, 50)), HEADS);
        let shortest_first: Vec<usize> = longest_first.iter().rev().copied().collect();
        let by_head = longest_first.repeat(HEADS);
        assert!(balance(&shortest_first, HEADS) > MOST && balance(&by_head, 1) > MOST);
        assert!(balance(&whole(&Forest::new(&pack(100, 60, 32)), HEADS), HEADS) > MOST);
        // A quarter of the heads has blocks of keys that four times as many rows and heads see.
        for (beginning, count, rows) in [(0, 1, 512), (800, 25, 50), (800, 80, 16)] {
            let whole = whole(&Forest::new(&pack(beginning, count, rows)), 8);
            assert!(balance(&whole, 8) > MOST, "{count} of {rows}");
        }
        // The pack's own order is that of the sequence.
        let longest_first = lists(&Forest::new(&pack(0, 1, 2048)).blocks);
        let as_they_come: Vec<usize> = longest_first.iter().rev().copied().collect();
        assert!(balance(&as_they_come, HEADS) > balance(&longest_first, HEADS));
    }
}
