//! A pack's tables, and lists of row numbers, on the device.

use super::context::Context;
use super::forest::Forest;
use super::geometry::{self, Groups};
use super::memory::Buffer;
use crate::Result;
use crate::pack::Token;

/// Tables start at multiples of this many numbers, so that kernels may read them in vectors.
const ALIGN: usize = 4;

/// Several tables of `int`, one after another.
#[derive(Default)]
struct Tables {
    numbers: Vec<i32>,
}

impl Tables {
    /// Adds a table and returns where it begins.
    fn add(&mut self, table: &[i32]) -> usize {
        self.numbers.resize(self.numbers.len().next_multiple_of(ALIGN), 0);
        let start = self.numbers.len();
        self.numbers.extend_from_slice(table);
        start
    }

    /// Moves all of them to the device.
    fn upload(self, cx: &mut Context, op: &'static str) -> Result<Buffer<i32>> {
        let buffer = cx.buffer(op, self.numbers.len())?;
        cx.write(op, buffer.address(0), bytemuck::cast_slice(&self.numbers))?;
        Ok(buffer)
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
    fn add<K>(tables: &mut Tables, groups: &Groups<K>) -> Self {
        Self { count: groups.ids.len(), starts: tables.add(&groups.starts), order: tables.add(&groups.order) }
    }
}

/// Groups of rows as a kernel takes them: addresses of the ids, of the runs (0 if there are none), of the starts and of
/// the order, and the number of groups.
#[derive(Clone, Copy, Debug)]
pub struct DeviceGroups {
    /// What each group adds into.
    pub ids: u64,
    /// Each group's run.
    pub runs: u64,
    /// Where each group's rows begin.
    pub starts: u64,
    /// The rows.
    pub order: u64,
    /// Number of groups.
    pub count: usize,
}

/// A list of numbers, as it is and grouped by value.
pub struct Index {
    buffer: Buffer<i32>,
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
    pub fn new(cx: &mut Context, values: &[u32]) -> Result<Self> {
        let signed = |values: &[u32]| -> Vec<i32> { values.iter().map(|&v| v as i32).collect() };
        let groups = geometry::groups(values.iter().copied().enumerate());
        let mut tables = Tables::default();
        tables.add(&signed(values));
        let ids = tables.add(&signed(&groups.ids));
        let groups = GroupTables::add(&mut tables, &groups);
        let bound = values.iter().max().map_or(0, |&v| v as usize + 1);
        Ok(Self { buffer: tables.upload(cx, "index")?, len: values.len(), bound, ids, groups })
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// One more than the greatest; 0 if there are none.
    pub fn bound(&self) -> usize {
        self.bound
    }

    /// Address of the numbers.
    pub fn address(&self) -> u64 {
        self.buffer.address(0)
    }

    /// The places in the list by number.
    pub fn groups(&self) -> DeviceGroups {
        let at = |offset| self.buffer.address(offset);
        let GroupTables { count, starts, order } = self.groups;
        DeviceGroups { ids: at(self.ids), runs: 0, starts: at(starts), order: at(order), count }
    }
}

/// A pack on the device. Tables are known by their place in the one buffer.
pub struct Pack {
    /// The pack as the host knows it.
    pub host: crate::pack::Pack,
    buffer: Buffer<i32>,
    tokens: usize,
    positions: usize,
    run: usize,
    slots: usize,
    blocks: usize,
    visit_starts: usize,
    visits: usize,
    tiles: usize,
    order: usize,
    ends: usize,
    lora_tiles: (usize, usize),
    lora_runs: (usize, usize),
    ids: usize,
    by_token: GroupTables,
    position_ids: usize,
    by_position: GroupTables,
    prompt_ids: usize,
    prompt_runs: usize,
    by_prompt: GroupTables,
}

/// Address of a table, and its entries.
pub type Table = (u64, usize);

impl Pack {
    /// Makes the tables and moves them to the device.
    ///
    /// # Errors
    /// If the device fails.
    pub fn new(cx: &mut Context, pack: &crate::pack::Pack) -> Result<Self> {
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
        let mut tables = Tables::default();
        Ok(Self {
            host: pack.clone(),
            tokens: tables.add(&tokens),
            positions: tables.add(&positions),
            run: tables.add(&run),
            slots: tables.add(&forest.slots),
            blocks: forest.visit_starts.len() - 1,
            visit_starts: tables.add(&forest.visit_starts),
            visits: tables.add(forest.visits.as_flattened()),
            tiles: tables.add(&forest.tiles),
            order: tables.add(&forest.order),
            ends: tables.add(&forest.ends),
            lora_tiles: (tables.add(adapted.tiles.as_flattened()), adapted.tiles.len()),
            lora_runs: (tables.add(adapted.runs.as_flattened()), adapted.runs.len()),
            ids: tables.add(&by_token.ids),
            by_token: GroupTables::add(&mut tables, &by_token),
            position_ids: tables.add(&by_position.ids),
            by_position: GroupTables::add(&mut tables, &by_position),
            prompt_ids: tables.add(&prompt_ids),
            prompt_runs: tables.add(&prompt_runs),
            by_prompt: GroupTables::add(&mut tables, &by_prompt),
            buffer: tables.upload(cx, "pack")?,
        })
    }

    /// Number of rows.
    pub(super) fn len(&self) -> usize {
        self.host.len()
    }

    /// One more than the greatest run; 0 if there is none.
    pub fn runs(&self) -> usize {
        self.host.runs().iter().map(|(run, _)| run + 1).max().unwrap_or(0)
    }

    /// Each row's token, or `-(p + 1)` for row `p` of the prompt `[N]`.
    pub fn tokens(&self) -> u64 {
        self.buffer.address(self.tokens)
    }

    /// Each row's position `[N]`.
    pub fn positions(&self) -> u64 {
        self.buffer.address(self.positions)
    }

    /// Each row's run, -1 for none `[N]`.
    pub fn run(&self) -> u64 {
        self.buffer.address(self.run)
    }

    /// Rows that are handled together, 64 to a block, and the number of blocks.
    pub fn slots(&self) -> Table {
        (self.buffer.address(self.slots), self.blocks)
    }

    /// Where the visits of each block begin, and the end.
    pub fn visit_starts(&self) -> u64 {
        self.buffer.address(self.visit_starts)
    }

    /// Which tiles of keys the rows of a block see `[_, 4]`.
    pub fn visits(&self) -> u64 {
        self.buffer.address(self.visits)
    }

    /// The rows of the keys of each tile.
    pub fn tiles(&self) -> u64 {
        self.buffer.address(self.tiles)
    }

    /// The rows in depth-first order `[N]`.
    pub fn order(&self) -> u64 {
        self.buffer.address(self.order)
    }

    /// Where in that order the rows that see a row end `[N]`.
    pub fn ends(&self) -> u64 {
        self.buffer.address(self.ends)
    }

    /// Tiles of adapted rows `[T, 3]`.
    pub fn lora_tiles(&self) -> Table {
        (self.buffer.address(self.lora_tiles.0), self.lora_tiles.1)
    }

    /// The runs' tiles `[U, 3]`.
    pub fn lora_runs(&self) -> Table {
        (self.buffer.address(self.lora_runs.0), self.lora_runs.1)
    }

    /// Rows by token.
    pub fn by_token(&self) -> DeviceGroups {
        self.groups(self.ids, None, self.by_token)
    }

    /// Rows by position.
    pub fn by_position(&self) -> DeviceGroups {
        self.groups(self.position_ids, None, self.by_position)
    }

    /// Rows by run and row of the prompt.
    pub fn by_prompt(&self) -> DeviceGroups {
        self.groups(self.prompt_ids, Some(self.prompt_runs), self.by_prompt)
    }

    fn groups(&self, ids: usize, runs: Option<usize>, groups: GroupTables) -> DeviceGroups {
        let at = |offset| self.buffer.address(offset);
        let GroupTables { count, starts, order } = groups;
        DeviceGroups { ids: at(ids), runs: runs.map_or(0, at), starts: at(starts), order: at(order), count }
    }
}
