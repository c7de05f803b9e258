//! How the rows of a pack are cut into blocks of queries.

use std::collections::HashMap;
use std::ops::Range;

use crate::backend::ops::AttentionDims;
use crate::pack::{Pack, Parent};

/// Positions of a tile of keys: with 64 query rows and heads of 64, a tile's keys, values and scores are 16 KiB each.
pub const TILE: usize = 64;
/// Rows of queries, over all heads of a group, that are one block: four vectors of AVX-512, two panels.
const ROWS: usize = 64;
/// Rows of queries, over all heads of a group, that pass over shared tiles together: four blocks, so that a tile is
/// gathered once for four.
const SHARED_ROWS: usize = 256;

/// Some rows of a segment with the query heads that share a key-value head.
#[derive(Clone, Debug)]
pub struct Block {
    /// The segment.
    pub segment: usize,
    /// The key-value head.
    pub head: usize,
    /// The rows of the pack.
    pub rows: Range<usize>,
}

/// Cuts the rows of a segment into blocks of queries.
pub fn query_rows(rows: Range<usize>, dims: AttentionDims) -> impl DoubleEndedIterator<Item = Range<usize>> {
    let step = (ROWS / dims.group()).max(1);
    let count = rows.len().div_ceil(step);
    (0..count).map(move |i| rows.start + i * step..rows.end.min(rows.start + (i + 1) * step))
}

/// All blocks of queries of a pack.
pub fn query_blocks(pack: &Pack, dims: AttentionDims) -> Vec<Block> {
    let mut blocks = Vec::new();
    for (segment, s) in pack.segments().iter().enumerate() {
        for head in 0..dims.kv_heads {
            // The last rows see the most keys: first, so that no thread is left alone with them.
            blocks.extend(query_rows(s.rows.clone(), dims).rev().map(|rows| Block { segment, head, rows }));
        }
    }
    blocks
}

/// Blocks of queries that see the same tiles up to the position of the first: of one segment, or of several that
/// continue the same one and are a block each. Those of head 0 stand for every head.
#[derive(Default)]
pub struct Group {
    /// The blocks.
    pub blocks: Vec<Block>,
    /// The rows of all blocks.
    pub rows: Vec<usize>,
}

/// All groups of a pack.
pub fn query_groups(pack: &Pack, dims: AttentionDims) -> Vec<Group> {
    let most = (SHARED_ROWS / dims.group()).max(1);
    let mut groups: Vec<Group> = Vec::new();
    let mut open: HashMap<Parent, usize> = HashMap::new();
    for (segment, s) in pack.segments().iter().enumerate() {
        let blocks = query_rows(s.rows.clone(), dims).map(|rows| Block { segment, head: 0, rows });
        let siblings = s.position >= TILE && query_rows(s.rows.clone(), dims).count() == 1;
        let mut last = if siblings { open.get(&s.parent).copied() } else { None };
        for block in blocks {
            let group = match last {
                Some(group) if groups[group].rows.len() + block.rows.len() <= most => group,
                _ => {
                    groups.push(Group::default());
                    groups.len() - 1
                }
            };
            last = Some(group);
            groups[group].rows.extend(block.rows.clone());
            groups[group].blocks.push(block);
        }
        if let (true, Some(group)) = (siblings, last) {
            open.insert(s.parent, group);
        }
    }
    groups
}
