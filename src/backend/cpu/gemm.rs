//! Matrix products `out [m, n] = left [m, k] right [n, k]^T` for operands of any dtype and layout.
//!
//! **Bits.** An element of the result is a sum over blocks of k of chains of multiply-adds in the order of k. The
//! blocks depend on k alone, so a row of the result has the same bits whatever the other rows are, however many there
//! are, whatever the layout of the operands, and however many threads share the work.
//!
//! **Layout.** The tile broadcasts the elements of one operand, its *rows*, and reads the other in vectors, its *lanes*.
//! Rows may lie anywhere in memory, so they are packed only to be converted. Lanes are packed into panels, which is a
//! copy for an operand that is contiguous along them and a transposition for one that is contiguous along k. So:
//! - the right operand (weights) contiguous along n, as in the gradient of an input: its columns are lanes;
//! - contiguous along k, as in a forward: its rows are rows, the left operand's are lanes, and the result is turned;
//! - but if the right operand is smaller than the left and the result together, or k is small, it is cheaper to turn that
//!   than to pack the left and turn the result: again its columns are lanes.
//!
//! **Pairs.** Where the instruction set multiplies pairs of bfloat16 and both operands are bfloat16, a pair of elements
//! along k takes the place of an element everywhere below: packing puts them side by side, and k is half as long.
//!
//! **Parts.** A [split](Gemm::split) product of single precision is made of products in pairs: `x = high + low + ...`,
//! where `high` is x rounded to bfloat16 and `low` the rest, rounded. `high high + high low + low high` are added up, or,
//! where the weight is bfloat16 itself and has no rest, two of them. Each operand is then right to `2^-18` of an element
//! and the product of both rests is missing, so that an element is wrong by at most `3 * 2^-18 sum |left right|`, beside
//! the rounding of the sums. For random operands, K = 64 to 4096, the rms of the errors is below 4e-6 of that of the
//! result, 2.4e-6 with weights in bfloat16. What overflows bfloat16 (from 3.39e38 on) or is not finite makes NaN.
//!
//! Weights of another dtype are never expanded as a whole, but in blocks that stay in cache. With a few rows on the
//! left nothing is packed: see [`thin`]. (Goto and van de Geijn 2008 describe the loops around the tile.)

use super::pack::{pack_panels, pack_rows, transpose};
use super::parallel::{Shared, workers};
use super::simd::{Element, Float, Isa};
use super::thin::{self, Thin};
use super::thread_pool::ThreadPool;
use super::tile::{DEPTH, Panels, Rows, Tiles};
use crate::backend::HostSlice;

/// Rows of the left operand that are multiplied at once; a multiple of every tile's rows and lanes.
const CHUNK: usize = 672;
/// Multiply-adds below which a product stays on the calling thread.
const SMALL: usize = 1 << 17;
/// Vectors of the right operand's columns in a task, at most.
const VECTORS: usize = 12;
/// Tiles' worth of the right operand's rows in a task, at most.
const TILES: usize = 8;
/// Pairs that a tile reads at once: operands in pairs are as long as a multiple of this.
const PAIRS: usize = 16;
/// Length of k below which turning the right operand is cheaper than turning the result.
const SHALLOW: usize = 128;

/// A matrix `[rows, k]` in memory.
#[derive(Clone, Copy)]
pub struct Operand<'a, W> {
    pub(super) data: HostSlice<'a>,
    pub(super) from: usize,
    pub(super) stride: usize,
    pub(super) transposed: bool,
    pub(super) rounding: Option<Rounding<W>>,
    /// How elements are taken in pairs, if they are.
    pub(super) pairs: Option<Pairs>,
    /// Whether it is a weight: its products are split, if any are.
    weight: bool,
}

/// Elements taken in pairs of bfloat16.
#[derive(Clone, Copy)]
pub struct Pairs {
    /// How many there are along k: those behind them are zeros.
    pub k: usize,
    /// Whether not they are taken, but what rounding leaves of them.
    pub rest: bool,
}

/// Rounds elements to a narrower type in place.
pub type Rounding<W> = fn(Isa, &mut [W]);

impl<'a, W: Float> Operand<'a, W> {
    /// Element `(i, k)` is `data[i * stride + k]`.
    pub fn new<S: Element<W>>(data: &'a [S], stride: usize) -> Self {
        Self::host(S::host(data), stride)
    }

    /// As [`new`](Self::new), for elements of whatever type.
    pub fn host(data: HostSlice<'a>, stride: usize) -> Self {
        Self { data, from: 0, stride, transposed: false, rounding: None, pairs: None, weight: false }
    }

    /// Element `(i, k)` is `data[k * stride + i]`.
    pub fn transposed(self) -> Self {
        Self { transposed: true, ..self }
    }

    /// Rounds every element first.
    pub fn rounded(self, rounding: Option<Rounding<W>>) -> Self {
        Self { rounding, ..self }
    }

    /// The same as a weight.
    pub fn of_weight(self) -> Self {
        Self { weight: true, ..self }
    }

    /// The rows from `row` on.
    pub(super) fn skip(self, row: usize) -> Self {
        Self { from: self.from + row * if self.transposed { 1 } else { self.stride }, ..self }
    }

    /// The columns (along k) from `k` on.
    pub(super) fn along(self, k: usize) -> Self {
        let (k, pairs) = match self.pairs {
            None => (k, None),
            Some(Pairs { k: all, rest }) => ((2 * k).min(all), Some(Pairs { k: all.saturating_sub(2 * k), rest })),
        };
        Self { from: self.from + k * if self.transposed { self.stride } else { 1 }, pairs, ..self }
    }

    /// The same with pairs of bfloat16 for elements, where `k` of them lie along k.
    fn in_pairs(self, k: usize) -> Self {
        Self { pairs: Some(Pairs { k, rest: false }), ..self }
    }

    /// In pairs: what rounding leaves of them, for the second part.
    fn part(self, part: usize) -> Self {
        Self { pairs: self.pairs.map(|pairs| Pairs { rest: part > 0, ..pairs }), ..self }
    }

    fn is_bf16(&self) -> bool {
        matches!(self.data, HostSlice::Bf16(_))
    }

    /// Its elements where they lie, if the tile can read them there.
    pub(super) fn direct(&self) -> Option<Rows<'a, W>> {
        if let Some(Pairs { k, .. }) = self.pairs {
            // A tile reads whole steps, in vectors of pairs.
            let whole = !self.transposed && k.is_multiple_of(2 * PAIRS) && self.stride.is_multiple_of(2);
            let HostSlice::Bf16(data) = self.data else { return None };
            let data = if whole { W::pairs(&data[self.from.min(data.len())..])? } else { return None };
            return Some(Rows { data, row: self.stride / 2, k: 1 });
        }
        let data = if self.rounding.is_none() { W::same(self.data)? } else { return None };
        let (row, k) = if self.transposed { (1, self.stride) } else { (self.stride, 1) };
        Some(Rows { data: &data[self.from.min(data.len())..], row, k })
    }

    fn check(&self, what: &str, rows: usize, k: usize) {
        let (outer, inner) = if self.transposed { (k, rows) } else { (rows, k) };
        let needed = if outer == 0 || inner == 0 { 0 } else { self.from + (outer - 1) * self.stride + inner };
        assert!(self.data.len() >= needed, "gemm: {what} operand of {} elements, needs {needed}", self.data.len());
    }
}

/// Memory and kernels of matrix products.
pub struct Gemm<W> {
    isa: Isa,
    pool: ThreadPool,
    tiles: Tiles<W>,
    pair_tiles: Option<Tiles<W>>,
    split: bool,
    left: Vec<W>,
    slots: Vec<Slot<W>>,
}

/// Memory of one thread.
#[derive(Default)]
struct Slot<W> {
    right: Vec<W>,
    sums: Vec<W>,
    lines: Vec<W>,
}

/// What is done with `out[row, column..]`.
pub type Store<'a, W> = &'a (dyn Fn(usize, usize, &[W]) + Sync);

/// A product, how k is cut, and what multiplies.
#[derive(Clone, Copy)]
struct Shape<W> {
    m: usize,
    n: usize,
    k: usize,
    block: usize,
    tiles: Tiles<W>,
    /// Of the left operand and of the right.
    parts: [usize; 2],
}

impl<W> Shape<W> {
    /// The blocks of k, where each begins and how long it is; one even if k is 0, so that sums are set.
    fn blocks(&self) -> impl Iterator<Item = (usize, usize)> + use<W> {
        let (k, block) = (self.k, self.block);
        (0..k.max(1)).step_by(block).map(move |k0| (k0, block.min(k - k0)))
    }

    /// Where the block of k from `k0` on begins in `rows` packed rows.
    fn at(&self, k0: usize, rows: usize) -> usize {
        rows * (k0 / self.block) * DEPTH
    }

    /// Elements of a part of `rows` packed rows.
    fn packed(&self, rows: usize) -> usize {
        rows * self.k.max(1).div_ceil(self.block) * DEPTH
    }

    /// The products that are added up: of which part of the left operand with which of the right, and whether there was
    /// one before.
    fn terms(&self) -> impl Iterator<Item = (usize, usize, bool)> + use<W> {
        let [left, right] = self.parts;
        let terms = [(0, 0, false), (0, 1, true), (1, 0, true)];
        terms.into_iter().filter(move |&(l, r, _)| l < left && r < right)
    }
}

/// Whether operands may be taken in pairs: they are bfloat16, and an operand is only rounded to the other's dtype.
fn in_pairs<W: Float>(left: &Operand<'_, W>, right: &Operand<'_, W>) -> bool {
    left.is_bf16() && !left.transposed && (right.is_bf16() || right.rounding.is_some())
}

/// Cuts `units` into equal tasks of at most `most`, as many as keep all of `members` busy to the end.
fn share(units: usize, members: usize, most: usize) -> usize {
    let tasks = members * units.div_ceil(members * most);
    units.div_ceil(tasks).max(1)
}

impl<W: Float> Gemm<W> {
    /// The instruction set it uses.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The tiles it uses.
    pub fn tiles(&self) -> Tiles<W> {
        self.tiles
    }

    /// The tiles it uses for operands in pairs of bfloat16, if it has any.
    pub fn pair_tiles(&self) -> Option<Tiles<W>> {
        self.pair_tiles
    }

    /// The threads that share its work.
    pub fn pool(&self) -> &ThreadPool {
        &self.pool
    }

    /// With memory for a pool.
    pub fn new(isa: Isa, pool: ThreadPool) -> Self {
        let slots = (0..pool.threads()).map(|_| Slot::default()).collect();
        Self { isa, pool, tiles: W::tiles(isa), pair_tiles: W::pair_tiles(isa), split: false, left: Vec::new(), slots }
    }

    /// The same, whose products with weights are sums of products in pairs.
    ///
    /// # Panics
    /// If the instruction set has no pairs.
    pub fn split(self) -> Self {
        assert!(self.pair_tiles.is_some(), "gemm: {:?} has no pairs to split products into", self.isa);
        Self { split: true, ..self }
    }

    /// Whether products with weights are sums of products in pairs.
    pub fn splits(&self) -> bool {
        self.split
    }

    /// `store(row, column, part of the row)` for all of `left [m, k] right [n, k]^T`, in no particular order and from
    /// several threads.
    pub fn product(&mut self, [m, n, k]: [usize; 3], left: Operand<'_, W>, right: Operand<'_, W>, store: Store<'_, W>) {
        if m == 0 || n == 0 {
            return;
        }
        left.check("left", m, k);
        right.check("right", n, k);
        let (mut k, mut left, mut right, mut tiles, mut step) = (k, left, right, self.tiles, 8);
        let split = self.split && right.weight && !left.transposed && !in_pairs(&left, &right);
        let pairs = self.pair_tiles.filter(|_| k > 0 && (split || in_pairs(&left, &right)));
        let parts = [left, right].map(|operand| if split && !operand.is_bf16() { 2 } else { 1 });
        if let Some(pair_tiles) = pairs {
            (left, right, tiles, step) = (left.in_pairs(k), right.in_pairs(k), pair_tiles, PAIRS);
            k = k.div_ceil(2).next_multiple_of(PAIRS);
        }
        let block = k.div_ceil(k.div_ceil(DEPTH).max(1)).max(1).next_multiple_of(step).min(DEPTH);
        let used = if m * n * k < SMALL { 1 } else { self.slots.len() };
        let thin = match pairs {
            _ if m > thin::ROWS || right.transposed || split => None,
            None if right.rounding.is_none() => W::thin(self.isa),
            Some(_) if right.direct().is_some() => W::thin_pairs(self.isa),
            _ => None,
        };
        let small = n * k < m.min(CHUNK) * (n + k);
        let turned = right.transposed || n <= 2 * tiles.lanes || k < SHALLOW || small;
        for first in (0..m).step_by(CHUNK) {
            let shape = Shape { m: CHUNK.min(m - first), n, k, block, tiles, parts };
            let left = left.skip(first);
            let store = |row: usize, column: usize, x: &[W]| store(first + row, column, x);
            match thin {
                Some(thin) => self.thin(shape, used, thin, left, right, &store),
                None if turned => self.columns_as_lanes(shape, used, left, right, &store),
                None => self.columns_as_rows(shape, used, left, right, &store),
            }
        }
    }

    fn thin(
        &mut self,
        shape: Shape<W>,
        used: usize,
        thin: fn(Thin<'_, W>),
        left: Operand<'_, W>,
        right: Operand<'_, W>,
        store: Store<'_, W>,
    ) {
        let Shape { m, n, k, block, .. } = shape;
        let Self { isa, pool, left: memory, slots, .. } = self;
        let memory = pack_left(*isa, memory, shape, left);
        workers(pool, &mut slots[..used], n.div_ceil(thin::COLUMNS), |slot, task| {
            let column = task * thin::COLUMNS;
            let columns = thin::COLUMNS.min(n - column);
            let sums = grow(&mut slot.sums, m * thin::COLUMNS);
            thin(Thin { sums, left: memory, right: right.skip(column), m, columns, k, block });
            for (row, line) in sums.chunks_exact(thin::COLUMNS).enumerate() {
                store(row, column, &line[..columns]);
            }
        });
    }

    /// The columns of the result are lanes, its rows rows.
    fn columns_as_lanes(
        &mut self,
        shape: Shape<W>,
        used: usize,
        left: Operand<'_, W>,
        right: Operand<'_, W>,
        store: Store<'_, W>,
    ) {
        let Shape { m, n, tiles, parts, .. } = shape;
        let Self { isa, pool, left: memory, slots, .. } = self;
        let isa = *isa;
        let direct = left.direct();
        let memory = if direct.is_none() { pack_left(isa, memory, shape, left) } else { &[] };
        let vectors = n.div_ceil(tiles.lanes);
        let width = share(vectors, used, VECTORS) * tiles.lanes;
        let across = n.div_ceil(width);
        // Where there are too few columns for all threads, the rows are cut as well.
        let down = share(m.div_ceil(tiles.rows), used.div_ceil(across), CHUNK) * tiles.rows;
        workers(pool, &mut slots[..used], across * m.div_ceil(down), |slot, task| {
            let (column, row) = (task % across * width, task / across * down);
            let (columns, rows) = (width.min(n - column), down.min(m - row));
            let _held = tiles.hold();
            let lanes = columns.next_multiple_of(tiles.lanes);
            let sums = grow(&mut slot.sums, lanes * rows);
            let right = right.skip(column);
            for (k0, depth) in shape.blocks() {
                let buffer = grow(&mut slot.right, parts[1] * lanes * depth);
                for (part, buffer) in buffer.chunks_exact_mut((lanes * depth).max(1)).enumerate() {
                    pack_panels(isa, tiles.lanes, buffer, right.part(part).along(k0), columns, depth);
                }
                for (l, r, more) in shape.terms() {
                    let b = match &direct {
                        Some(b) => Rows { data: b.data.get(row * b.row + k0 * b.k..).unwrap_or(&[]), ..*b },
                        None => {
                            let at = l * shape.packed(m) + shape.at(k0, m) + row * DEPTH;
                            Rows { data: &memory[at..], row: DEPTH, k: 1 }
                        }
                    };
                    let panels = Panels::packed(&buffer[r * lanes * depth..], depth, tiles.lanes);
                    tiles.multiply([rows, lanes, depth], b, panels, sums, lanes, more || k0 > 0);
                }
            }
            for (i, line) in sums.chunks_exact(lanes).enumerate() {
                store(row + i, column, &line[..columns]);
            }
        });
    }

    /// The rows of the result are lanes, its columns rows: the result is turned.
    fn columns_as_rows(
        &mut self,
        shape: Shape<W>,
        used: usize,
        left: Operand<'_, W>,
        right: Operand<'_, W>,
        store: Store<'_, W>,
    ) {
        let Shape { m, n, k, tiles, parts, .. } = shape;
        let Self { isa, pool, left: memory, slots, .. } = self;
        let isa = *isa;
        let lanes = m.next_multiple_of(tiles.lanes);
        let memory = grow(memory, parts[0] * lanes * k);
        let shared = Shared::new(memory);
        let part = 2 * tiles.lanes;
        let packing = if m * k < 1 << 13 { 1 } else { used };
        workers(pool, &mut slots[..packing], lanes.div_ceil(part), |_, task| {
            let first = task * part;
            let width = part.min(lanes - first);
            for (k0, depth) in shape.blocks() {
                for l in 0..parts[0] {
                    // SAFETY: each task has lanes of its own, and panels lie in the order of lanes in each block of a part.
                    let to = unsafe { shared.at(lanes * (l * k + k0) + first * depth, width * depth) };
                    let left = left.part(l).along(k0).skip(first);
                    pack_panels(isa, tiles.lanes, to, left, part.min(m - first), depth);
                }
            }
        });
        let memory = &*memory;
        // In tiles that read whole lines, rows at some distances would push each other out of the cache: a loss where they
        // are used often. With few lanes the time goes into reading them, along them, as memory likes it.
        let few = tiles.whole_lines && lanes <= 2 * part;
        let direct = right.direct().filter(|rows| few || !tiles.whole_lines || !rows.aliased());
        let down = share(n.div_ceil(tiles.rows), used, if few { 1 } else { TILES }) * tiles.rows;
        workers(pool, &mut slots[..used], n.div_ceil(down), |Slot { right: buffer, sums, lines }, task| {
            let column = task * down;
            let columns = down.min(n - column);
            let _held = tiles.hold();
            let right = right.skip(column);
            let sums = grow(sums, columns * lanes);
            for (k0, depth) in shape.blocks() {
                if direct.is_none() {
                    let buffer = grow(buffer, parts[1] * columns * DEPTH);
                    for (r, buffer) in buffer.chunks_exact_mut(columns * DEPTH).enumerate() {
                        pack_rows(isa, buffer, right.part(r).along(k0), columns, depth);
                    }
                }
                for (l, r, more) in shape.terms() {
                    let b = match &direct {
                        Some(b) => Rows { data: b.data.get(column * b.row + k0 * b.k..).unwrap_or(&[]), ..*b },
                        None => Rows { data: &buffer[r * columns * DEPTH..], row: DEPTH, k: 1 },
                    };
                    let panels = &memory[lanes * (l * k + k0)..][..lanes * depth];
                    let panels = Panels::packed(panels, depth, tiles.lanes);
                    tiles.multiply([columns, lanes, depth], b, panels, sums, lanes, more || k0 > 0);
                }
            }
            let lines = grow(lines, part * columns);
            for lane in (0..m).step_by(part) {
                let count = part.min(m - lane);
                transpose(isa, lines, columns, &sums[lane..], lanes, columns, count);
                for (i, line) in lines.chunks_exact(columns).take(count).enumerate() {
                    store(lane + i, column, line);
                }
            }
        });
    }
}

/// The leading `len` elements of memory, which grows if it has fewer.
pub fn grow<T: Default + Clone>(memory: &mut Vec<T>, len: usize) -> &mut [T] {
    if memory.len() < len {
        memory.resize(len, T::default());
    }
    &mut memory[..len]
}

/// The left operand as rows, block after block of k.
fn pack_left<'a, W: Float>(isa: Isa, memory: &'a mut Vec<W>, shape: Shape<W>, left: Operand<'_, W>) -> &'a [W] {
    let part = shape.packed(shape.m);
    let memory = grow(memory, shape.parts[0] * part);
    for (l, memory) in memory.chunks_exact_mut(part).enumerate() {
        for (k0, depth) in shape.blocks() {
            pack_rows(isa, &mut memory[shape.at(k0, shape.m)..], left.part(l).along(k0), shape.m, depth);
        }
    }
    memory
}

mod tests;
