//! Products in the tiles of AMX, which read whole lines: blocks of two tiles each way, whose results are stored while the
//! next are multiplied.
//!
//! A block's sums go from tile registers to memory, and what is to be done with them (transposing, rounding, adding) waits for
//! these stores. So they are left until the next block is a few steps under way: 1.15 of the rate of storing at once
//! (2026-11-28, two cores of a Xeon with AMX).
//!
//! - **Up to [`MANY`](super::MANY) rows on the left** ([`transposed_blocks`](Gemm::transposed_blocks)): panels of the left operand,
//!   which all tasks read, are packed once and stay in the second-level cache; a task has some strips of 32 columns of the
//!   result and reads only their weights, where they lie: at the head of the next strip's rows they are prefetched. Weights that
//!   are no lines of the cache are copied if they are used often.
//! - **From there on, and where the right operand is contiguous along n** ([`strips`](Gemm::strips)): a task packs its columns of the
//!   right operand in panels, and multiplies strips of 32 rows of the left operand with them, where these lie if they are lines.

use super::super::aligned::AlignedVec;
use super::super::parallel::{Shared, workers};
use super::super::simd::Float;
use super::microkernel::{Alongside, PIECES};
use super::operand::Operand;
use super::packing::{pack_panels, pack_rows};
use super::tile::{Block, BroadcastOperand};
use super::transpose::Transposer;
use super::{CHUNK, Gemm, Shape, Sink, Slot, TILES, pack_left, pack_left_panels, share, store_transposed};

/// Rows on the left from which on a copy of rows that are no lines of the cache pays: rows that cross lines are read in two.
const REUSED: usize = 192;
/// Panels from which on rows that come next are prefetched: with fewer it would be too many at a step (0.88 of the rate where
/// weights are in the cache; else 1.05 to 1.15).
const PREFETCHING: usize = 4;
/// Bytes of the panels of a strip's task, at most, and how many panels.
const STRIP_BYTES: usize = 1 << 20;
const STRIP_PANELS: usize = 6;

/// Sums that are complete and wait to be stored.
#[derive(Clone, Copy)]
struct Waiting {
    /// Where they begin.
    sums: usize,
    row: usize,
    column: usize,
    rows: usize,
    columns: usize,
}

/// A product in blocks, and how its operands are had.
pub(super) struct BlockProduct<'a, A> {
    shape: Shape<A>,
    transposer: Transposer<A>,
    /// The left operand, packed, unless it is read where it lies.
    left: &'a [A],
    /// The operand that is broadcast, where it lies, if it is read there.
    direct: Option<BroadcastOperand<'a, A>>,
    right: Operand<'a, A>,
    sink: &'a dyn Sink<A>,
}

impl<A: Float> Gemm<A> {
    /// The left operand is the vector operand, the right one is broadcast: blocks are of the transposed result.
    pub(super) fn transposed_blocks(
        &mut self,
        shape: Shape<A>,
        used: usize,
        left: Operand<'_, A>,
        right: Operand<'_, A>,
        sink: &dyn Sink<A>,
    ) {
        let Shape { m, n, tiles, .. } = shape;
        let Self { pool, kernels, left: memory, slots, .. } = self;
        let transposer = kernels.transposer;
        let left = pack_left_panels(pool, &mut slots[..used], transposer, memory, shape, left);
        let direct = right.direct().filter(|rows| m < REUSED || rows.in_lines());
        let product = BlockProduct { shape, transposer, left, direct, right, sink };
        let down = share(n.div_ceil(tiles.rows), used, TILES) * tiles.rows;
        workers(pool, &mut slots[..used], n.div_ceil(down), |slot, task| {
            let _tiles = tiles.acquire_tiles();
            let column = task * down;
            product.transposed(slot, column, down.min(n - column));
        });
    }

    /// The right operand is the vector operand, the left one is broadcast.
    pub(super) fn strips(
        &mut self,
        shape: Shape<A>,
        used: usize,
        left: Operand<'_, A>,
        right: Operand<'_, A>,
        sink: &dyn Sink<A>,
    ) {
        let Shape { m, n, tiles, parts, block, .. } = shape;
        let Self { pool, kernels, left: memory, slots, .. } = self;
        let transposer = kernels.transposer;
        let direct = left.direct().filter(BroadcastOperand::in_lines);
        let left = match direct {
            None => pack_left(pool, &mut slots[..used], transposer, memory, shape, left),
            Some(_) => &[],
        };
        let product = BlockProduct { shape, transposer, left, direct, right, sink };
        let panel = 2 * tiles.lanes;
        let panels = (STRIP_BYTES / (size_of::<A>() * panel * block * parts[1])).clamp(1, STRIP_PANELS);
        let width = share(n.div_ceil(panel), used, panels) * panel;
        let across = n.div_ceil(width);
        // Where there are too few columns for all threads, the rows are cut as well.
        let down = share(m.div_ceil(tiles.rows), used.div_ceil(across), CHUNK) * tiles.rows;
        workers(pool, &mut slots[..used], across * m.div_ceil(down), |slot, task| {
            let _tiles = tiles.acquire_tiles();
            let (column, row) = (task % across * width, task / across * down);
            product.strips(slot, [row, column], [down.min(m - row), width.min(n - column)]);
        });
    }
}

impl<A: Float> BlockProduct<'_, A> {
    /// Some columns of the result, blocks of which are transposed.
    fn transposed(&self, Slot { right: buffer, sums, lines }: &mut Slot<A>, first: usize, columns: usize) {
        let Shape { m, k, block, row, tiles, .. } = self.shape;
        let (height, panel) = (tiles.rows, 2 * tiles.lanes);
        let (strips, panels) = (columns.div_ceil(height), m.div_ceil(panel));
        let (size, padded, blocks) = (height * panel, m.next_multiple_of(tiles.lanes), k.max(1).div_ceil(block));
        let sums = Shared::new(sums.grow(size * if blocks > 1 { strips * panels } else { 2 }));
        let lines = Shared::new(lines.grow(size));
        let store = |waiting: Waiting, piece: usize| {
            let from = piece * tiles.lanes;
            let rows = tiles.lanes.min(waiting.rows.saturating_sub(from));
            if rows > 0 {
                // SAFETY: nothing is written to sums that wait, and the lines are used here alone.
                let (sums, lines) = unsafe { (sums.at(waiting.sums, size), lines.at(0, size)) };
                let at = [waiting.row + from, waiting.column];
                store_transposed(
                    self.transposer,
                    self.sink,
                    lines,
                    at,
                    (&sums[from..], panel),
                    [rows, waiting.columns],
                );
            }
        };
        let mut waiting: Option<Waiting> = None;
        for (k0, depth) in self.shape.blocks() {
            self.copy_rows(buffer, [first, columns], k0, depth);
            for number in 0..strips * panels {
                let (strip, of_rows) = (number / panels * height, number % panels * panel);
                let rows = height.min(columns - strip);
                let width = panel.min(padded - of_rows);
                let at = size * if blocks > 1 { number } else { number % 2 };
                // SAFETY: these do not wait: others do, or were stored before.
                let out = unsafe { sums.at(at, size) };
                let before = waiting.take();
                let work = |piece: usize| before.into_iter().for_each(|before| store(before, piece));
                for (l, r, more) in self.shape.terms() {
                    let broadcast = match &self.direct {
                        Some(direct) => direct.skip(first + strip, k0),
                        None => BroadcastOperand { data: &buffer[(r * columns + strip) * row..], row, k: 1 },
                    };
                    let part = &self.left[padded * (l * k + k0) + of_rows * depth..][..width * depth];
                    let alongside = Alongside {
                        ahead: self.ahead([first, strip, columns], k0, [number % panels, panels]),
                        work: if more || before.is_none() { None } else { Some(&work) },
                    };
                    let shape = [rows, width, depth];
                    let block = Block { shape, broadcast, panel: part, add: more || k0 > 0, alongside };
                    tiles.multiply_block(block, out, panel);
                }
                if k0 + block >= k {
                    let (row, column) = (of_rows, first + strip);
                    waiting = Some(Waiting { sums: at, row, column, rows: panel.min(m - row), columns: rows });
                }
            }
        }
        waiting.into_iter().for_each(|waiting| (0..PIECES).for_each(|piece| store(waiting, piece)));
    }

    /// The block of k from `k0` on of some columns' rows of the right operand in `buffer`, unless they are read where they lie.
    fn copy_rows(&self, buffer: &mut AlignedVec<A>, [first, columns]: [usize; 2], k0: usize, depth: usize) {
        let Shape { row, parts, .. } = self.shape;
        if self.direct.is_none() {
            let buffer = buffer.grow(parts[1] * columns * row);
            for (r, buffer) in buffer.chunks_exact_mut(columns * row).enumerate() {
                let right = self.right.skip(first).part(r).along(k0);
                pack_rows(self.transposer, (buffer, row), right, columns, depth);
            }
        }
    }

    /// What is prefetched during panel `number` of `panels` of the strip `strip` columns behind `first`, of `columns`: its share of
    /// the rows that come next, those of the next strip, of the same columns' next block of k, or of the next columns.
    fn ahead(
        &self,
        [first, strip, columns]: [usize; 3],
        k0: usize,
        [number, panels]: [usize; 2],
    ) -> Option<(*const A, usize)> {
        let Shape { k, block, tiles, .. } = self.shape;
        let direct = self.direct.as_ref().filter(|_| panels >= PREFETCHING)?;
        let (rows, next) = (tiles.rows.div_ceil(panels), strip + tiles.rows);
        let (next, k0) = match (next < columns, k0 + block < k) {
            (true, _) => (next, k0),
            (false, true) => (0, k0 + block),
            (false, false) => (columns, 0),
        };
        Some((direct.data.as_ptr().wrapping_add((first + next + number * rows) * direct.row + k0), rows))
    }

    /// Some columns of some rows of the result.
    fn strips(
        &self,
        Slot { right: buffer, sums, .. }: &mut Slot<A>,
        [row, column]: [usize; 2],
        [rows, columns]: [usize; 2],
    ) {
        let Shape { m, k, block, tiles, parts, .. } = self.shape;
        let (height, panel, padded) = (tiles.rows, 2 * tiles.lanes, columns.next_multiple_of(tiles.lanes));
        let (strips, panels, blocks) = (rows.div_ceil(height), padded.div_ceil(panel), k.max(1).div_ceil(block));
        let size = height * padded;
        let sums = Shared::new(sums.grow(size * if blocks > 1 { strips } else { 2 }));
        // Rows of a strip that are stored during a piece of the next strip's blocks.
        let some = height.div_ceil(PIECES * panels);
        let store = |waiting: Waiting, piece: usize| {
            for i in piece * some..((piece + 1) * some).min(waiting.rows) {
                // SAFETY: nothing is written to sums that wait.
                let sums = unsafe { sums.at(waiting.sums + i * padded, columns) };
                self.sink.row(waiting.row + i, waiting.column, sums);
            }
        };
        let mut waiting: Option<Waiting> = None;
        for (k0, depth) in self.shape.blocks() {
            let buffer = buffer.grow(parts[1] * padded * depth);
            for (r, buffer) in buffer.chunks_exact_mut((padded * depth).max(1)).enumerate() {
                let right = self.right.skip(column).part(r).along(k0);
                pack_panels(self.transposer, tiles.lanes, buffer, right, columns, depth);
            }
            for strip in 0..strips {
                let first = row + strip * height;
                let count = height.min(row + rows - first);
                let at = size * if blocks > 1 { strip } else { strip % 2 };
                for (number, from) in (0..padded).step_by(panel).enumerate() {
                    let width = panel.min(padded - from);
                    // SAFETY: these do not wait: others do, or were stored before.
                    let out = unsafe { sums.at(at + from, (count - 1) * padded + width) };
                    let work =
                        |piece: usize| waiting.into_iter().for_each(|before| store(before, PIECES * number + piece));
                    for (l, r, more) in self.shape.terms() {
                        let broadcast = match &self.direct {
                            Some(direct) => direct.skip(first, k0),
                            None => {
                                let at = l * self.shape.packed(m) + self.shape.at(k0, m) + first * self.shape.row;
                                BroadcastOperand { data: &self.left[at..], row: self.shape.row, k: 1 }
                            }
                        };
                        let part = &buffer[(r * padded + from) * depth..][..width * depth];
                        let work: Option<&dyn Fn(usize)> = if more || waiting.is_none() { None } else { Some(&work) };
                        let alongside = Alongside { ahead: None, work };
                        let shape = [count, width, depth];
                        let block = Block { shape, broadcast, panel: part, add: more || k0 > 0, alongside };
                        tiles.multiply_block(block, out, padded);
                    }
                }
                waiting = (k0 + block >= k).then_some(Waiting { sums: at, row: first, column, rows: count, columns });
            }
        }
        waiting.into_iter().for_each(|waiting| (0..PIECES * panels).for_each(|piece| store(waiting, piece)));
    }
}
