//! A pack's tables, and lists of row numbers or ids, on the device.
//!
//! Command lists repeat where grids and addresses do, and those shall follow from a pack's number of rows alone. So each table
//! has the room that packs of so many rows usually need, filled up with entries of which kernels make nothing: groups and
//! tiles without rows, query blocks whose rows are [`NO_ROW`]. A pack that needs more has twice the room, or four times.

use std::ops::Range;

use super::balance::{KeyLoad, Load};
use super::context::Context;
use super::forest::{Forest, NO_ROW, QueryBlocks};
use super::geometry::{self, Groups, entry};
use super::launch::{Arg, table};
use super::memory::{DevicePtr, TableBuffer};
use crate::Result;
use crate::backend::ops::RunRange;
use crate::backend::scratch::{BLOCK_ROWS, usual};
use crate::backend::{DeviceIndex, DevicePack};
use crate::pack::{Pack, Token};

/// Tables start at multiples of this many entries, so that kernels may read them in vectors.
const ALIGN: usize = 4;

/// Several tables of `int`, one after another.
#[derive(Default)]
struct Tables {
    entries: Vec<i32>,
}

impl Tables {
    /// Adds a table and returns where it begins.
    fn add(&mut self, table: &[i32]) -> usize {
        self.entries.resize(self.entries.len().next_multiple_of(ALIGN), 0);
        let start = self.entries.len();
        self.entries.extend_from_slice(table);
        start
    }

    /// Adds a table with room for `room` entries, filled up with `filler`, and returns where it begins.
    ///
    /// # Panics
    /// If there is no room for it.
    fn add_filled(&mut self, table: &[i32], room: usize, filler: i32) -> usize {
        assert!(table.len() <= room, "pack: {} entries in a table of {room}", table.len());
        let start = self.add(table);
        self.entries.resize(start + room, filler);
        start
    }

    /// Adds blocks of so many rows, with room for `count` of them, and usually no more than `usual` entries of tile lists: blocks to
    /// spare have no rows and no tiles.
    fn add_blocks(&mut self, blocks: &QueryBlocks, block_rows: usize, count: usize, usual: usize) -> QueryTables {
        let QueryBlocks { rows, tile_list_starts: starts, tile_lists: lists, .. } = blocks;
        QueryTables {
            count,
            by_warpgroups: blocks.by_warpgroups,
            load: Load::of_tiles(blocks),
            rows: self.add_filled(rows, count * block_rows, NO_ROW),
            starts: self.add_filled(starts, count + 1, starts.last().copied().unwrap_or_default()),
            lists: self.add_filled(lists.as_flattened(), 4 * room(lists.len(), usual), 0),
        }
    }

    /// Moves all of them to the device.
    fn upload(self, cx: &mut Context, op: &'static str) -> Result<TableBuffer> {
        let block = cx.block(op, size_of_val(self.entries.as_slice()))?;
        let buffer = TableBuffer::new(block, self.entries.len());
        cx.write(op, buffer.ptr(0), bytemuck::cast_slice(&self.entries))?;
        Ok(buffer)
    }
}

/// Room for `count` entries where there are usually no more than `usual`: that many, or twice, or four times.
fn room(count: usize, usual: usize) -> usize {
    let mut room = usual.max(1);
    while room < count {
        room *= 2;
    }
    room
}

/// Where [`QueryBlocks`] lie among some tables.
#[derive(Clone, Copy, Debug)]
struct QueryTables {
    count: usize,
    by_warpgroups: bool,
    load: Load,
    rows: usize,
    starts: usize,
    lists: usize,
}

/// Blocks of queries as a kernel takes them.
#[derive(Clone, Copy, Debug)]
pub struct DeviceQueryBlocks {
    /// The rows of each `[blocks, 64 or 128]`.
    rows: DevicePtr,
    /// Where the tile list of each begins, and the end `[blocks + 1]`.
    starts: DevicePtr,
    /// The tile lists `[_, 4]`.
    lists: DevicePtr,
    /// Number of blocks, those without rows included.
    pub count: usize,
    /// Tiles of the blocks of a head.
    pub load: Load,
}

impl DeviceQueryBlocks {
    /// The arguments: rows, starts, lists.
    pub fn tables(&self) -> [Arg; 3] {
        [self.rows, self.starts, self.lists].map(table)
    }
}

/// Where [`Groups`] lie among some tables.
#[derive(Clone, Copy, Debug)]
struct GroupTables {
    count: usize,
    starts: usize,
    order: usize,
}

impl GroupTables {
    /// Tables of groups of at most `rows` rows, with room for as many groups.
    fn add<K>(tables: &mut Tables, groups: &Groups<K>, rows: usize) -> Self {
        let end = entry(groups.order.len());
        let starts = tables.add_filled(&groups.starts, rows + 1, end);
        Self { count: rows, starts, order: tables.add_filled(&groups.order, rows, 0) }
    }

    fn on_device(self, buffer: &TableBuffer, ids: usize) -> DeviceGroups {
        let Self { count, starts, order } = self;
        DeviceGroups { ids: buffer.ptr(ids), starts: buffer.ptr(starts), order: buffer.ptr(order), count }
    }
}

/// Groups of rows as a kernel takes them.
#[derive(Clone, Copy, Debug)]
pub struct DeviceGroups {
    /// What each group adds into `[count]`.
    ids: DevicePtr,
    /// Where each group's rows begin, and the end `[count + 1]`.
    starts: DevicePtr,
    /// The rows, group by group, ascending in each.
    order: DevicePtr,
    /// Number of groups, those without rows included.
    pub count: usize,
}

impl DeviceGroups {
    /// The arguments: ids, starts, order.
    pub fn tables(&self) -> [Arg; 3] {
        [self.ids, self.starts, self.order].map(table)
    }
}

/// A list of row numbers or ids, as it is and grouped by value.
pub struct Index {
    buffer: TableBuffer,
    len: usize,
    bound: usize,
    ids: usize,
    groups: GroupTables,
}

impl Index {
    /// The list on the device.
    ///
    /// # Errors
    /// If the device fails.
    pub(super) fn new(cx: &mut Context, values: &[u32]) -> Result<Self> {
        let signed = |values: &[u32]| -> Vec<i32> { values.iter().map(|&v| v as i32).collect() };
        let groups = geometry::groups(values.iter().copied().enumerate());
        let mut tables = Tables::default();
        tables.add(&signed(values));
        let ids = tables.add_filled(&signed(&groups.ids), values.len(), 0);
        let groups = GroupTables::add(&mut tables, &groups, values.len());
        let bound = values.iter().max().map_or(0, |&v| v as usize + 1);
        Ok(Self { buffer: tables.upload(cx, "index")?, len: values.len(), bound, ids, groups })
    }

    /// The entries, as `int`.
    pub(super) fn ptr(&self) -> DevicePtr {
        self.buffer.ptr(0)
    }

    /// The places in the list by entry.
    pub(super) fn groups(&self) -> DeviceGroups {
        self.groups.on_device(&self.buffer, self.ids)
    }
}

impl DeviceIndex for Index {
    fn len(&self) -> usize {
        self.len
    }

    fn bound(&self) -> usize {
        self.bound
    }
}

/// A pack's tables on the device, known by their place in the one buffer.
pub struct DeviceTables {
    host: Pack,
    buffer: TableBuffer,
    tokens: usize,
    positions: usize,
    run: usize,
    blocks: QueryTables,
    pairs: Option<QueryTables>,
    tiles: usize,
    key_blocks: usize,
    key_load: KeyLoad,
    order: usize,
    begins: usize,
    ends: usize,
    lasts: usize,
    lora_tiles: usize,
    lora_tile_count: usize,
    lora_runs: usize,
    /// The runs' tiles on the host.
    adapted_runs: Vec<[i32; 3]>,
    ids: usize,
    by_token: GroupTables,
    position_ids: usize,
    by_position: GroupTables,
    prompt_ids: usize,
    prompt_runs: usize,
    by_prompt: GroupTables,
}

impl DevicePack for DeviceTables {
    fn host(&self) -> &Pack {
        &self.host
    }
}

/// A table, and its entries.
type Table = (DevicePtr, usize);

impl DeviceTables {
    /// Makes the tables and moves them to the device.
    ///
    /// # Errors
    /// If the device fails.
    pub(super) fn new(cx: &mut Context, pack: &Pack) -> Result<Self> {
        let mut run = vec![-1; pack.len()];
        pack.runs().iter().for_each(|(r, rows)| run[rows.clone()].fill(*r as i32));
        let id = |token: &Token| match token {
            Token::Id(id) => *id as i32,
            Token::Virtual(p) => -(*p as i32) - 1,
        };
        let tokens: Vec<i32> = pack.tokens().iter().map(id).collect();
        let positions: Vec<i32> = pack.positions().iter().map(|&p| p as i32).collect();
        let rows = || tokens.iter().copied().enumerate();
        let by_token = geometry::groups(rows().filter(|(_, token)| *token >= 0));
        let by_position = geometry::groups(positions.iter().copied().enumerate());
        let by_prompt = geometry::groups(rows().filter(|(_, t)| *t < 0).map(|(row, t)| (row, (run[row], -t - 1))));
        let (prompt_runs, prompt_ids): (Vec<i32>, Vec<i32>) = by_prompt.ids.iter().copied().unzip();
        let forest = Forest::new(pack);
        let adapted = geometry::adapted(pack);
        let (n, [blocks, lora_tiles, tiles]) = (pack.len(), usual(pack.len()));
        let block_count = room(forest.blocks.lists().count(), blocks);
        let lora_tile_count = room(adapted.tiles.len(), lora_tiles);
        let prompt_rows = by_prompt.order.len();
        let mut tables = Tables::default();
        Ok(Self {
            host: pack.clone(),
            tokens: tables.add(&tokens),
            positions: tables.add(&positions),
            run: tables.add(&run),
            key_blocks: tables.add(forest.key_blocks.as_flattened()),
            key_load: KeyLoad::new(forest.key_blocks.iter().map(|&[_, seen_by]| seen_by as usize)),
            order: tables.add(&forest.order),
            begins: tables.add(&forest.begins),
            ends: tables.add(&forest.ends),
            lasts: tables.add(&forest.lasts),
            ids: tables.add_filled(&by_token.ids, n, 0),
            by_token: GroupTables::add(&mut tables, &by_token, n),
            position_ids: tables.add_filled(&by_position.ids, n, 0),
            by_position: GroupTables::add(&mut tables, &by_position, n),
            // What has room by its own number, or little else, comes last.
            prompt_ids: tables.add_filled(&prompt_ids, prompt_rows, 0),
            prompt_runs: tables.add_filled(&prompt_runs, prompt_rows, 0),
            by_prompt: GroupTables::add(&mut tables, &by_prompt, prompt_rows),
            lora_runs: tables.add(adapted.runs.as_flattened()),
            adapted_runs: adapted.runs,
            lora_tiles: tables.add_filled(adapted.tiles.as_flattened(), 3 * lora_tile_count, 0),
            lora_tile_count,
            blocks: tables.add_blocks(&forest.blocks, BLOCK_ROWS, block_count, tiles),
            pairs: forest.pairs.map(|pairs| tables.add_blocks(&pairs, 2 * BLOCK_ROWS, block_count.div_ceil(2), tiles)),
            tiles: tables.add_filled(&forest.tiles, room(forest.tiles.len(), tiles * BLOCK_ROWS), NO_ROW),
            buffer: tables.upload(cx, "pack")?,
        })
    }

    /// Number N of rows.
    pub(super) fn len(&self) -> usize {
        self.host.len()
    }

    /// Each row's token, or `-(p + 1)` for row `p` of the prompt `[N]`.
    pub(super) fn tokens(&self) -> DevicePtr {
        self.buffer.ptr(self.tokens)
    }

    /// Each row's position `[N]`.
    pub(super) fn positions(&self) -> DevicePtr {
        self.buffer.ptr(self.positions)
    }

    /// Each row's run, -1 for none `[N]`.
    pub(super) fn run(&self) -> DevicePtr {
        self.buffer.ptr(self.run)
    }

    /// Blocks of 64 queries.
    pub(super) fn query_blocks(&self) -> DeviceQueryBlocks {
        self.on_device(self.blocks)
    }

    /// The same of 128 rows; none where their rows see too little in common.
    pub(super) fn query_block_pairs(&self) -> Option<DeviceQueryBlocks> {
        self.pairs.map(|pairs| self.on_device(pairs))
    }

    /// Blocks of 128 rows, if warpgroups of 64 rows may take whole tiles; none where too little of what they would multiply is seen.
    pub(super) fn pairs_for_warpgroups(&self) -> Option<DeviceQueryBlocks> {
        self.pairs.filter(|pairs| pairs.by_warpgroups).map(|pairs| self.on_device(pairs))
    }

    fn on_device(&self, QueryTables { count, load, rows, starts, lists, .. }: QueryTables) -> DeviceQueryBlocks {
        let [rows, starts, lists] = [rows, starts, lists].map(|at| self.buffer.ptr(at));
        DeviceQueryBlocks { rows, starts, lists, count, load }
    }

    /// The key rows of each tile `[tiles, 64]`.
    pub(super) fn tiles(&self) -> DevicePtr {
        self.buffer.ptr(self.tiles)
    }

    /// Which 64 rows of the depth-first order each block of keys is, and how many rows see them `[ceil(N / 64), 2]`.
    pub(super) fn key_blocks(&self) -> DevicePtr {
        self.buffer.ptr(self.key_blocks)
    }

    /// How many rows see each of them.
    pub(super) fn key_load(&self) -> &KeyLoad {
        &self.key_load
    }

    /// The rows in depth-first order `[N]`.
    pub(super) fn order(&self) -> DevicePtr {
        self.buffer.ptr(self.order)
    }

    /// Where in that order the rows that see a row begin and end, `[N]` each.
    pub(super) fn seen_by(&self) -> [DevicePtr; 2] {
        [self.begins, self.ends].map(|at| self.buffer.ptr(at))
    }

    /// The last position that each row sees, without a window `[N]`.
    pub(super) fn lasts(&self) -> DevicePtr {
        self.buffer.ptr(self.lasts)
    }

    /// Tiles of the rows of some runs `[T, 3]`, which lie together since runs ascend; of all runs with those that fill the
    /// table up.
    pub(super) fn lora_tiles(&self, runs: RunRange) -> Table {
        let tiles = |entries: &[[i32; 3]]| entries.iter().map(|entry| entry[2] as usize).sum::<usize>();
        let entries = self.adapted_entries(runs);
        if !entries.is_empty() && entries.len() == self.adapted_runs.len() {
            return (self.buffer.ptr(self.lora_tiles), self.lora_tile_count);
        }
        let first = tiles(&self.adapted_runs[..entries.start]);
        (self.buffer.ptr(self.lora_tiles + 3 * first), tiles(&self.adapted_runs[entries]))
    }

    /// The tiles of some runs by run `[U, 3]`.
    pub(super) fn lora_runs(&self, runs: RunRange) -> Table {
        let entries = self.adapted_entries(runs);
        (self.buffer.ptr(self.lora_runs + 3 * entries.start), entries.len())
    }

    /// Which of the adapted runs some runs are.
    fn adapted_entries(&self, runs: RunRange) -> Range<usize> {
        let before = |end: usize| self.adapted_runs.partition_point(|entry| (entry[0] as usize) < end);
        before(runs.first)..before(runs.end)
    }

    /// Rows that have the same token, for the gradient of the embedding.
    pub(super) fn by_token(&self) -> DeviceGroups {
        self.by_token.on_device(&self.buffer, self.ids)
    }

    /// Rows at the same position, for the gradient of learned positions.
    pub(super) fn by_position(&self) -> DeviceGroups {
        self.by_position.on_device(&self.buffer, self.position_ids)
    }

    /// Rows by run and row of the prompt, and each group's run.
    pub(super) fn by_prompt(&self) -> (DeviceGroups, DevicePtr) {
        let groups = self.by_prompt.on_device(&self.buffer, self.prompt_ids);
        (groups, self.buffer.ptr(self.prompt_runs))
    }
}
