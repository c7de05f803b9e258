//! How evenly blocks of attention lie on a device's multiprocessors.

use super::forest::{PAIR_COST, QueryBlocks};
use crate::backend::scratch::MIN_PART_ROWS;

/// Multiprocessors of a large device, an H100 or H200: what is decided for their sake is the same on every device.
pub const MULTIPROCESSORS: usize = 132;

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

/// How many rows see each block of keys, the most first.
#[derive(Clone, Debug)]
pub struct KeyLoad {
    seen_by: Vec<usize>,
    load: Load,
}

impl KeyLoad {
    /// Of blocks that so many rows see each.
    pub fn new(seen_by: impl Iterator<Item = usize>) -> Self {
        let seen_by: Vec<usize> = seen_by.collect();
        Self { load: Load::new(seen_by.iter().copied()), seen_by }
    }

    /// Rows and heads of a part, where what keys collect is shared by blocks: where one is long beside what a multiprocessor has to
    /// do. A power of two, so that few launches differ.
    fn part_rows(&self, heads: usize, kv_heads: usize) -> Option<usize> {
        let (longest, all) = (self.load.longest * heads / kv_heads, self.load.total * heads);
        if 10 * longest * MULTIPROCESSORS <= 11 * all {
            return None;
        }
        let most = (4 * all / (5 * MULTIPROCESSORS)).max(MIN_PART_ROWS);
        Some(1 << most.ilog2()).filter(|&part| longest > part)
    }

    /// The parts of all blocks; none where no block has several.
    pub fn parts(&self, heads: usize, kv_heads: usize) -> Option<Parts> {
        let rows = self.part_rows(heads, kv_heads)?;
        let parts = self.seen_by.iter().map(|seen_by| (seen_by * heads / kv_heads).div_ceil(rows));
        let shared = parts.clone().take_while(|&parts| parts > 1).sum();
        let more = parts.sum::<usize>() - self.seen_by.len();
        Some(Parts { rows, shared, count: self.seen_by.len() + more.next_power_of_two() })
    }
}

/// Parts of what blocks of keys collect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Rows and heads that a part is for, at most.
    pub rows: usize,
    /// Number of parts, and of parts to spare.
    pub count: usize,
    /// How many of them, the first ones, leave sums that are to be added up.
    pub shared: usize,
}

/// The first row of a grid whose blocks are not the first ones of their multiprocessors, of rows of `heads` blocks: see
/// `rows_of_block` of `attention.cuh`.
pub fn second_row(multiprocessors: usize, heads: usize) -> usize {
    multiprocessors / heads
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

    /// Blocks of the attention on a multiprocessor at a time, of width 128 in 2 bytes (`tests/counts/compiled.csv`).
    const RESIDENT: usize = 2;
    /// Query heads of LLaMA-2-7B; as many of keys and values, or a quarter (LLaMA 3).
    const HEADS: usize = 32;
    const KV_HEADS: usize = 8;
    /// Queries that a block of keys takes at a time.
    const STEP: usize = 32;
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

    /// The most that a multiprocessor works, of what it does on average, if blocks of these works are launched for so many heads
    /// each, and begin in order, each where there is room first: on each multiprocessor one, then another.
    fn balance(rows: &[usize], heads: usize) -> f64 {
        let second = second_row(MULTIPROCESSORS, heads).min(rows.len());
        let third = (2 * second).min(rows.len());
        let order = (0..second).chain((second..third).rev()).chain(third..rows.len());
        let (mut ends, mut works) = (vec![0; MULTIPROCESSORS * RESIDENT], [0; MULTIPROCESSORS]);
        for work in order.flat_map(|row| vec![rows[row]; heads]) {
            let next = (0..ends.len()).min_by_key(|&slot| ends[slot]).expect("slots");
            ends[next] += work;
            works[next % MULTIPROCESSORS] += work;
        }
        let (most, all) = (works.iter().max().copied().unwrap_or(0), works.iter().sum::<usize>());
        (most * MULTIPROCESSORS) as f64 / all as f64
    }

    fn lists(blocks: &QueryBlocks) -> Vec<usize> {
        blocks.lists().map(<[_]>::len).collect()
    }

    /// Steps of the parts of the blocks of keys, in the order of the launch.
    fn steps(forest: &Forest, kv_heads: usize) -> Vec<usize> {
        let load = KeyLoad::new(forest.key_blocks.iter().map(|&[_, seen_by]| seen_by as usize));
        let (group, parts) = (HEADS / kv_heads, load.parts(HEADS, kv_heads));
        let of_block = |&seen_by: &usize| {
            let steps = seen_by.div_ceil(STEP) * group;
            let parts = parts.map_or(1, |parts| (seen_by * group).div_ceil(parts.rows));
            (0..parts).map(move |part| steps * (part + 1) / parts - steps * part / parts)
        };
        let steps: Vec<usize> = load.seen_by.iter().flat_map(of_block).collect();
        assert!(parts.is_none_or(
            |parts| parts.count >= steps.len() && parts.shared * kv_heads <= most_shared(forest.order.len(), HEADS)
        ));
        steps
    }

    /// Pairs of query and key that are seen, of those that warps of 16 rows compute.
    fn useful(pack: &Pack, forest: &Forest) -> f64 {
        let seen: usize = (0..pack.len()).map(|row| pack.visible(row, None).len()).sum();
        seen as f64 / (forest.blocks.computed(&forest.lasts, BLOCK_ROWS, 16) * BLOCK_ROWS) as f64
    }

    #[test]
    fn balance_of_attention_is_that_of_the_table() {
        static COLUMNS: [Column; 5] =
            [low("queries"), low("pairs of queries"), low("keys"), low("keys of 8 heads"), high("useful")];
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
            let [keys, of_group] = [HEADS, KV_HEADS].map(|heads| balance(&steps(&forest, heads), heads));
            let counts = [balance(&lists(&forest.blocks), HEADS), pairs, keys, of_group];
            let shared = if beginning > 0 { format!("{beginning} and ") } else { String::new() };
            let name = format!("{shared}{count} of {rows}");
            // Of 8 heads not all reach it: shorter parts would cost more than they even out.
            assert!(counts[..3].iter().all(|&count| count <= MOST), "{name}: {counts:?}, at most {MOST}");
            table.add(name, &[&counts[..], &[useful(&pack, &forest)]].concat());
        }
        table.hold("balance", "--lib balance_of_attention");
    }

    /// What the order of the blocks and the parts are there for.
    #[test]
    fn blocks_as_they_come_are_not_balanced() {
        let whole = |forest: &Forest| -> Vec<usize> {
            forest.key_blocks.iter().map(|&[_, seen_by]| (seen_by as usize).div_ceil(STEP)).collect()
        };
        let keys = whole(&Forest::new(&pack(800, 25, 50)));
        let (shortest_first, by_head) = (keys.iter().rev().copied().collect::<Vec<_>>(), keys.repeat(HEADS));
        assert!(balance(&shortest_first, HEADS) > MOST && balance(&by_head, 1) > MOST);
        assert!(balance(&whole(&Forest::new(&pack(100, 60, 32))), HEADS) > MOST);
        // The pack's own order is that of the sequence.
        let longest_first = lists(&Forest::new(&pack(0, 1, 2048)).blocks);
        let as_they_come: Vec<usize> = longest_first.iter().rev().copied().collect();
        assert!(balance(&as_they_come, HEADS) > balance(&longest_first, HEADS));
    }
}
