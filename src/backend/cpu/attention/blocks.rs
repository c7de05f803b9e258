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
fn query_rows(rows: Range<usize>, dims: AttentionDims) -> impl DoubleEndedIterator<Item = Range<usize>> {
    let step = (ROWS / dims.group()).max(1);
    let count = rows.len().div_ceil(step);
    (0..count).map(move |i| rows.start + i * step..rows.end.min(rows.start + (i + 1) * step))
}

/// Which rows of a pack come out.
#[derive(Clone, Copy)]
pub struct Outputs<'a> {
    /// The rows, ascending; none means all.
    pub rows: Option<&'a [usize]>,
    /// Lanes over which products are added up at once, a power of two.
    pub lanes: usize,
}

impl Outputs<'_> {
    /// Of the blocks of a segment's rows those with rows that come out, cut to them: nothing in front of the first, but for
    /// whole lanes that are added up at once, and nothing behind the last. What is cut off has no gradient, and adds
    /// exactly nothing to any sum: bits are those of whole blocks.
    pub fn blocks(self, rows: Range<usize>, dims: AttentionDims) -> impl DoubleEndedIterator<Item = Range<usize>> {
        let whole = self.lanes >> dims.group().trailing_zeros().min(self.lanes.trailing_zeros());
        query_rows(rows, dims).filter_map(move |block| {
            let Some(rows) = self.rows else { return Some(block) };
            let own = rows.partition_point(|&row| row < block.start)..rows.partition_point(|&row| row < block.end);
            let (first, last) = (rows[own.clone()].first()?, rows[own].last()?);
            Some(block.start + (first - block.start) / whole * whole..last + 1)
        })
    }
}

/// All blocks of queries of a pack, of the rows that come out.
pub fn query_blocks(pack: &Pack, outputs: Outputs<'_>, dims: AttentionDims) -> Vec<Block> {
    let mut blocks = Vec::new();
    for (segment, s) in pack.segments().iter().enumerate() {
        for head in 0..dims.kv_heads {
            // The last rows see the most keys: first, so that no thread is left alone with them.
            let rows = outputs.blocks(s.rows.clone(), dims).rev();
            blocks.extend(rows.map(|rows| Block { segment, head, rows }));
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
    /// The position up to which all see the same keys.
    pub common: usize,
}

/// All groups of a pack, of the rows that come out.
pub fn query_groups(pack: &Pack, outputs: Outputs<'_>, dims: AttentionDims) -> Vec<Group> {
    let most = (SHARED_ROWS / dims.group()).max(1);
    let mut groups: Vec<Group> = Vec::new();
    let mut open: HashMap<Parent, usize> = HashMap::new();
    for (segment, s) in pack.segments().iter().enumerate() {
        let rows: Vec<Range<usize>> = outputs.blocks(s.rows.clone(), dims).collect();
        let siblings = s.position >= TILE && rows.len() == 1;
        let blocks = rows.into_iter().map(|rows| Block { segment, head: 0, rows });
        let mut last = if siblings { open.get(&s.parent).copied() } else { None };
        for block in blocks {
            let group = match last {
                Some(group) if groups[group].rows.len() + block.rows.len() <= most => group,
                _ => {
                    let common = if siblings { s.position } else { pack.positions()[block.rows.start] as usize };
                    groups.push(Group { common, ..Group::default() });
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
