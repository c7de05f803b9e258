//! Matrix products `out [m, n] = left [m, k] right [n, k]^T` for operands of any dtype and layout.
//!
//! **Bits.** An element of the result is a sum over blocks of k of chains of multiply-adds in the order of k. The
//! blocks depend on k alone, so a row of the result has the same bits whatever the other rows are, however many there
//! are, whatever the layout of the operands, and however many threads share the work.
//!
//! **Layout.** A tile multiplies a *broadcast operand*, of which single elements are broadcast, with a *vector operand*,
//! which it reads in vectors ([`tile`]). The broadcast operand may lie anywhere in memory, so it is packed only to be
//! converted. The vector operand is packed into panels, which is a copy for one that is contiguous along its columns and a
//! transposition for one that is contiguous along k. So the right operand (weights),
//! - contiguous along n, as in the gradient of an input, is the vector operand;
//! - contiguous along k, as in a forward, is broadcast, the left operand is the vector operand, and the result comes out
//!   transposed;
//! - but if it is smaller than the left and the result together, or k is small, it is cheaper to transpose it than to pack
//!   the left and transpose the result: again it is the vector operand. On AMX so it is from [`MANY`] rows on.
//!
//! **Blocking and parallel split.** The rows of the left operand are taken in equal chunks of at most [`CHUNK`], k in blocks
//! ([`block_of`](Tiles::block_of)). What all tasks of a chunk read, the left operand, is packed once, before them. Tasks are cut
//! from the columns of the result, [`VECTORS`] or [`TILES`] at most, and, where these are too few for all threads, from its
//! rows as well; never from k. A task packs its part of the right operand, block by block of k, multiplies it with all that
//! it needs of the left one ([`Tiles::multiply`]), and adds up in memory of its own, until it stores the result. Scratch
//! begins with a line of the cache. The tiles of AMX have loops of their own ([`blocks`]), of the same bits.
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
//! Weights of another dtype, and quantised ones, are never expanded as a whole, but in blocks that stay in cache: packing decodes
//! them. So a product with a quantised weight has the bits of that with its values, rounded to the compute dtype, in a file. With
//! a few rows on the left nothing is packed: see [`skinny`]. Quantised weights in groups of rows
//! ([`interleaved`](super::interleaved)) are the vector operand, since they are decoded to panels. (Goto and van de Geijn 2008 describe the loops around the tile.)
//!
//! The files, from the bottom: [`microkernel`] and `amx`, loops in registers; [`tile`], blocks of the result;
//! [`operand`], matrices in memory; [`transpose`], [`packing`] and [`skinny`]; [`kernels`], which of them an instruction set
//! has; [`blocks`], the loops of AMX; and this, the product.

#[cfg(target_arch = "x86_64")]
pub mod amx;
mod blocks;
pub mod kernels;
mod microkernel;
pub mod operand;
pub mod packing;
mod skinny;
pub mod tile;
pub mod transpose;

use self::kernels::{KernelSet, Kernels};
use self::microkernel::PAIR_STEP;
pub use self::operand::Operand;
use self::packing::{pack_panels, pack_rows};
use self::skinny::{Skinny, SkinnyProduct};
use self::tile::{BroadcastOperand, DEPTH, Tiles, VectorOperand};
use self::transpose::Transposer;
use super::aligned::AlignedVec;
use super::interleaved;
use super::parallel::{Shared, workers, workers_ahead};
use super::simd::{Float, Isa};
use super::thread_pool::ThreadPool;
use crate::backend::HostSlice;

/// Rows of the left operand that are multiplied at once, at most: a block of their packed k, 672 x 320 numbers or 840 KiB,
/// stays in the second-level cache of a core that has 1 MiB or more, as those with AVX-512 do.
const CHUNK: usize = 672;
/// Rows that a chunk is a multiple of: two vectors of every instruction set.
const CHUNK_STEP: usize = 32;
/// Bytes of a block's packed panels of a chunk on AMX, at most: half of the second-level cache.
const PANEL_BYTES: usize = 1 << 20;
/// Rows from which on AMX takes the right operand as the vector operand, which also cures what is misaligned: 1.05 to 1.25 of the
/// rate at 512 rows and more, as much at 256, 0.8 at 64 (2026-11-28, two cores of a Xeon with AMX).
const MANY: usize = 384;
/// Multiply-adds below which a product stays on the calling thread: some microseconds, as long as a hand-off takes.
const SMALL: usize = 1 << 17;
/// Elements of the left operand below which the calling thread packs it alone.
const SMALL_PACKING: usize = 1 << 13;
/// Vectors of columns of a task, at most, where the right operand is the vector operand: 12 x 16 columns over 320 elements
/// of k are 240 KiB of panels, which leave room for the sums in the second-level cache; divisible by 2, 3, 4 and 6, so that
/// tasks are whole panels more often.
const VECTORS: usize = 12;
/// Tiles' worth of rows of a task, at most, where the right operand is broadcast: 8 x 14 rows are what a tile keeps in the
/// second-level cache (`cached`), so that a task passes once over the panels of the left operand.
const TILES: usize = 8;
/// Columns of a task of a few rows with a quantised operand, at most: with tasks of 128 columns int8 in rows of 11008 bytes has 0.97
/// of the rate, of 32 0.85 (AMD Zen 5).
const SKINNY_COLUMNS: usize = 512;
/// Length of k below which transposing the right operand is cheaper than transposing the result.
const SHALLOW: usize = 128;

/// Memory and kernels of matrix products accumulated in `A`.
pub struct Gemm<A> {
    isa: Isa,
    pool: ThreadPool,
    kernels: KernelSet<A>,
    split: bool,
    left: AlignedVec<A>,
    slots: Vec<Slot<A>>,
}

/// Memory of one thread.
struct Slot<A> {
    right: AlignedVec<A>,
    sums: AlignedVec<A>,
    lines: AlignedVec<A>,
}

/// What is done with `out[row, column..]`.
pub type Store<'a, A> = &'a (dyn Fn(usize, usize, &[A]) + Sync);

/// Where a product goes.
pub trait Sink<A>: Sync {
    /// Does with `out[row, column..]` whatever is done.
    fn row(&self, row: usize, column: usize, sums: &[A]);

    /// Does it with `out[row.., column..]`, `rows` by `columns`, of which element `(i, j)` is `sums[j * stride + i]`; false if it
    /// cannot, so that the rows are wanted.
    fn transposed(&self, _at: [usize; 2], _sums: &[A], _stride: usize, _shape: [usize; 2]) -> bool {
        false
    }

    /// Where `out[row.., column..]`, `rows` by `columns`, begins, and its distance of rows, if sums are to lie there as they are;
    /// none if its rows are wanted.
    fn place(&self, _at: [usize; 2], _shape: [usize; 2]) -> Option<(*mut A, usize)> {
        None
    }
}

/// Rows go to a function.
struct Rowwise<'a, A>(Store<'a, A>);

impl<A> Sink<A> for Rowwise<'_, A> {
    fn row(&self, row: usize, column: usize, sums: &[A]) {
        self.0(row, column, sums);
    }
}

/// The rows from `first` on go to another sink.
struct Below<'a, A> {
    first: usize,
    sink: &'a dyn Sink<A>,
}

impl<A> Sink<A> for Below<'_, A> {
    fn row(&self, row: usize, column: usize, sums: &[A]) {
        self.sink.row(self.first + row, column, sums);
    }

    fn transposed(&self, [row, column]: [usize; 2], sums: &[A], stride: usize, shape: [usize; 2]) -> bool {
        self.sink.transposed([self.first + row, column], sums, stride, shape)
    }

    fn place(&self, [row, column]: [usize; 2], shape: [usize; 2]) -> Option<(*mut A, usize)> {
        self.sink.place([self.first + row, column], shape)
    }
}

/// A product, how k is cut, and what multiplies.
#[derive(Clone, Copy)]
struct Shape<A> {
    m: usize,
    n: usize,
    k: usize,
    block: usize,
    /// Distance of packed rows.
    row: usize,
    tiles: Tiles<A>,
    /// Of the left operand and of the right.
    parts: [usize; 2],
}

impl<A> Shape<A> {
    /// The blocks of k, where each begins and how long it is; one even if k is 0, so that sums are set.
    fn blocks(&self) -> impl Iterator<Item = (usize, usize)> + use<A> {
        let (k, block) = (self.k, self.block);
        (0..k.max(1)).step_by(block).map(move |k0| (k0, block.min(k - k0)))
    }

    /// Where the block of k from `k0` on begins in `rows` packed rows.
    fn at(&self, k0: usize, rows: usize) -> usize {
        rows * (k0 / self.block) * self.row
    }

    /// Elements of a part of `rows` packed rows.
    fn packed(&self, rows: usize) -> usize {
        rows * self.k.max(1).div_ceil(self.block) * self.row
    }

    /// The products that are added up: of which part of the left operand with which of the right, and whether there was
    /// one before.
    fn terms(&self) -> impl Iterator<Item = (usize, usize, bool)> + use<A> {
        let [left, right] = self.parts;
        let terms = [(0, 0, false), (0, 1, true), (1, 0, true)];
        terms.into_iter().filter(move |&(l, r, _)| l < left && r < right)
    }
}

impl<A: Float> Slot<A> {
    fn new() -> Self {
        let [right, sums, lines] = [const { AlignedVec::new() }; 3];
        Self { right, sums, lines }
    }
}

/// Whether operands may be taken in pairs: they are bfloat16, and an operand is only rounded to the other's dtype.
fn in_pairs<A: Float>(left: &Operand<'_, A>, right: &Operand<'_, A>) -> bool {
    left.is_bf16() && !left.transposed && (right.is_bf16() || right.rounding.is_some())
}

/// Cuts `units` into equal tasks of at most `most`, as many as keep all of `threads` busy to the end.
fn share(units: usize, threads: usize, most: usize) -> usize {
    let tasks = threads * units.div_ceil(threads * most);
    units.div_ceil(tasks).max(1)
}

impl<A: Kernels> Gemm<A> {
    /// With memory for the threads of a pool.
    pub fn new(isa: Isa, pool: ThreadPool) -> Self {
        let slots = (0..pool.threads()).map(|_| Slot::new()).collect();
        Self { isa, pool, kernels: A::kernels(isa), split: false, left: AlignedVec::new(), slots }
    }
}

impl<A: Float> Gemm<A> {
    /// The instruction set it uses.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The tiles it uses.
    pub fn tiles(&self) -> Tiles<A> {
        self.kernels.tiles
    }

    /// The tiles it uses for operands in pairs of bfloat16, if it has any.
    pub fn pair_tiles(&self) -> Option<Tiles<A>> {
        self.kernels.pair_tiles
    }

    /// What it transposes with.
    pub fn transposer(&self) -> Transposer<A> {
        self.kernels.transposer
    }

    /// The threads that share its work.
    pub fn pool(&self) -> &ThreadPool {
        &self.pool
    }

    /// The same, whose products with weights are sums of products in pairs.
    ///
    /// # Panics
    /// If the instruction set has no pairs.
    pub fn split(self) -> Self {
        assert!(self.pair_tiles().is_some(), "gemm: {:?} has no pairs to split products into", self.isa);
        Self { split: true, ..self }
    }

    /// Whether products with weights are sums of products in pairs.
    pub fn splits(&self) -> bool {
        self.split
    }

    /// `store(row, column, part of the row)` for all of `left [m, k] right [n, k]^T`, in no particular order and from
    /// several threads.
    pub fn product(&mut self, shape: [usize; 3], left: Operand<'_, A>, right: Operand<'_, A>, store: Store<'_, A>) {
        self.product_into(shape, left, right, &Rowwise(store));
    }

    /// All of `left [m, k] right [n, k]^T` into `sink`, in no particular order and from several threads.
    pub fn product_into(
        &mut self,
        [m, n, k]: [usize; 3],
        left: Operand<'_, A>,
        right: Operand<'_, A>,
        sink: &dyn Sink<A>,
    ) {
        if m == 0 || n == 0 {
            return;
        }
        left.check("left", m, k);
        right.check("right", n, k);
        let (mut k, mut left, mut right, mut tiles, mut step) = (k, left, right, self.kernels.tiles, 8);
        let split = self.split && right.weight && !left.transposed && !in_pairs(&left, &right);
        let pairs = self.kernels.pair_tiles.filter(|_| k > 0 && (split || in_pairs(&left, &right)));
        let parts = [left, right].map(|operand| if split && !operand.is_bf16() { 2 } else { 1 });
        if let Some(pair_tiles) = pairs {
            (left, right, tiles, step) = (left.in_pairs(k), right.in_pairs(k), pair_tiles, PAIR_STEP);
            k = k.div_ceil(2).next_multiple_of(PAIR_STEP);
        }
        let block = tiles.block_of(k, step);
        // A line more, so that packed rows of deep blocks do not share sets of the cache.
        let row = if tiles.whole_lines { block + PAIR_STEP } else { DEPTH };
        let used = if m * n * k < SMALL { 1 } else { self.slots.len() };
        let skinny = if split { None } else { self.skinny_for(m, k, &right) };
        let small = if tiles.whole_lines { m >= MANY } else { n * k < m.min(CHUNK) * (n + k) };
        let right_in_vectors =
            right.transposed || right.is_interleaved() || n <= 2 * tiles.lanes || k < SHALLOW || small;
        let most = match tiles.whole_lines && !right_in_vectors {
            true => PANEL_BYTES / (size_of::<A>() * parts[0] * block) / CHUNK_STEP * CHUNK_STEP,
            false => CHUNK,
        };
        let chunk = m.div_ceil(m.div_ceil(most.max(CHUNK_STEP))).next_multiple_of(CHUNK_STEP);
        for first in (0..m).step_by(chunk) {
            let shape = Shape { m: chunk.min(m - first), n, k, block, row, tiles, parts };
            let left = left.skip(first);
            let sink = &Below { first, sink };
            match skinny {
                Some(kernel) => self.skinny(shape, used, kernel, left, right, sink),
                None if tiles.whole_lines && right_in_vectors => self.strips(shape, used, left, right, sink),
                None if tiles.whole_lines => self.transposed_blocks(shape, used, left, right, sink),
                None if right_in_vectors => self.right_in_vectors(shape, used, left, right, sink),
                None => self.result_transposed(shape, used, left, right, sink),
            }
        }
    }

    /// What multiplies `m` rows with an operand, if they are few, and whether it decodes what is quantised itself.
    fn skinny_for(&self, m: usize, k: usize, right: &Operand<'_, A>) -> Option<(Skinny<A>, bool)> {
        let few = |skinny: &Skinny<A>| m <= skinny.rows;
        let KernelSet { skinny, skinny_lines, skinny_halves, skinny_pairs, skinny_decoding, .. } = self.kernels;
        if right.transposed {
            return None;
        }
        if let Some(decoding) =
            skinny_decoding.filter(|decoding| right.pairs.is_some() && (decoding.takes)(right, 2 * k))
            && few(&decoding.skinny)
        {
            return Some((decoding.skinny, true));
        }
        if right.is_interleaved() {
            let whole = right.pairs.is_some() && right.from.is_multiple_of(right.stride) && 2 * k == right.stride;
            return self.kernels.skinny_interleaved.filter(|skinny| whole && few(skinny)).map(|skinny| (skinny, true));
        }
        let is_there = right.is_quantized() || right.direct().is_some();
        let chosen = match right.pairs {
            Some(_) => skinny_pairs.filter(|_| is_there),
            None if right.is_quantized() => skinny_lines,
            None => {
                let pays = |skinny: &Skinny<A>| right.halves(k).is_some_and(|rows| m >= skinny.from || rows.aliased());
                let halves = skinny_halves.filter(pays);
                skinny_lines.filter(|_| is_there).or(halves).or(skinny.filter(|_| right.rounding.is_none()))
            }
        };
        chosen.filter(few).map(|skinny| (skinny, false))
    }

    /// A product of a few rows, by a kernel that decodes what is quantised or not.
    fn skinny(
        &mut self,
        shape: Shape<A>,
        used: usize,
        (Skinny { kernel, columns: most, .. }, decodes): (Skinny<A>, bool),
        left: Operand<'_, A>,
        right: Operand<'_, A>,
        sink: &dyn Sink<A>,
    ) {
        let Shape { m, n, k, block, .. } = shape;
        let Self { isa, pool, kernels, left: memory, slots, .. } = self;
        let isa = *isa;
        let memory = pack_left(pool, &mut slots[..used], kernels.transposer, memory, shape, left);
        let groups = if decodes { share(n.div_ceil(most), used, SKINNY_COLUMNS / most) } else { 1 };
        let width = groups * most;
        let compute = |slot: &mut Slot<A>, task: usize, next: Option<usize>| {
            let end = n.min((task + 1) * width);
            for column in (task * width..end).step_by(most) {
                let columns = most.min(n - column);
                let sums = slot.sums.grow(m * most);
                let right = right.skip(column);
                let right = match right.is_quantized() && !decodes {
                    true => decoded(isa, &mut slot.right, right, [columns, k]),
                    false => right,
                };
                let next = Some(column + columns).filter(|&next| next < end).or(next.map(|task| task * width));
                let next = next.map(|next| next - column);
                kernel(SkinnyProduct { sums, left: memory, right, next, m, columns, k, block });
                for (row, line) in sums.chunks_exact(most).enumerate() {
                    sink.row(row, column, &line[..columns]);
                }
            }
        };
        let (slots, tasks) = (&mut slots[..used], n.div_ceil(width));
        match decodes {
            // What comes next is prefetched, so a thread's next task must be known while it computes one.
            true => workers_ahead(pool, slots, tasks, compute),
            false => workers(pool, slots, tasks, |slot, task| compute(slot, task, None)),
        }
    }

    /// The right operand is the vector operand, the left one is broadcast.
    fn right_in_vectors(
        &mut self,
        shape: Shape<A>,
        used: usize,
        left: Operand<'_, A>,
        right: Operand<'_, A>,
        sink: &dyn Sink<A>,
    ) {
        let Shape { m, n, tiles, parts, .. } = shape;
        let Self { pool, kernels, left: memory, slots, .. } = self;
        let transposer = kernels.transposer;
        let direct = left.direct();
        let memory = match direct {
            None => pack_left(pool, &mut slots[..used], transposer, memory, shape, left),
            Some(_) => &[],
        };
        // What is in groups is decoded a group at a time.
        let unit = if right.is_interleaved() { interleaved::COLUMNS } else { tiles.lanes };
        let width = share(n.div_ceil(unit), used, VECTORS * tiles.lanes / unit) * unit;
        let across = n.div_ceil(width);
        // Where there are too few columns for all threads, the rows are cut as well.
        let down = share(m.div_ceil(tiles.rows), used.div_ceil(across), CHUNK) * tiles.rows;
        workers(pool, &mut slots[..used], across * m.div_ceil(down), |slot, task| {
            let (column, row) = (task % across * width, task / across * down);
            let (columns, rows) = (width.min(n - column), down.min(m - row));
            let padded = columns.next_multiple_of(tiles.lanes);
            let once = columns == padded && shape.terms().count() * shape.blocks().count() == 1;
            let place = if once { sink.place([row, column], [rows, columns]) } else { None };
            let sums = slot.sums.grow(if place.is_some() { 0 } else { padded * rows });
            let (out, out_row) = place.unwrap_or((sums.as_mut_ptr(), padded));
            let right = right.skip(column);
            for (k0, depth) in shape.blocks() {
                let buffer = slot.right.grow(parts[1] * padded * depth);
                for (part, buffer) in buffer.chunks_exact_mut((padded * depth).max(1)).enumerate() {
                    pack_panels(transposer, tiles.lanes, buffer, right.part(part).along(k0), columns, depth);
                }
                for (l, r, more) in shape.terms() {
                    let broadcast = match &direct {
                        Some(b) => b.skip(row, k0),
                        None => {
                            let at = l * shape.packed(m) + shape.at(k0, m) + row * shape.row;
                            BroadcastOperand { data: &memory[at..], row: shape.row, k: 1 }
                        }
                    };
                    let panels = VectorOperand::packed(&buffer[r * padded * depth..], depth, tiles.lanes);
                    let add = more || k0 > 0;
                    // SAFETY: the sums are as large, or the sink's, of which a product stores every element once.
                    unsafe { tiles.multiply_at([rows, padded, depth], broadcast, panels, (out, out_row), add) };
                }
            }
            if place.is_some() {
                return;
            }
            for (i, line) in sums.chunks_exact(padded).enumerate() {
                sink.row(row + i, column, &line[..columns]);
            }
        });
    }

    /// The left operand is the vector operand, the right one is broadcast: tiles are of the transposed result.
    fn result_transposed(
        &mut self,
        shape: Shape<A>,
        used: usize,
        left: Operand<'_, A>,
        right: Operand<'_, A>,
        sink: &dyn Sink<A>,
    ) {
        let Shape { m, n, k, tiles, parts, .. } = shape;
        let Self { pool, kernels, left: memory, slots, .. } = self;
        let transposer = kernels.transposer;
        let (padded, panel) = (m.next_multiple_of(tiles.lanes), 2 * tiles.lanes);
        let memory = pack_left_panels(pool, &mut slots[..used], transposer, memory, shape, left);
        let direct = right.direct();
        let down = share(n.div_ceil(tiles.rows), used, TILES) * tiles.rows;
        workers(pool, &mut slots[..used], n.div_ceil(down), |Slot { right: buffer, sums, lines }, task| {
            let column = task * down;
            let columns = down.min(n - column);
            let right = right.skip(column);
            let sums = sums.grow(columns * padded);
            for (k0, depth) in shape.blocks() {
                if direct.is_none() {
                    let buffer = buffer.grow(parts[1] * columns * shape.row);
                    for (r, buffer) in buffer.chunks_exact_mut(columns * shape.row).enumerate() {
                        pack_rows(transposer, (buffer, shape.row), right.part(r).along(k0), columns, depth);
                    }
                }
                for (l, r, more) in shape.terms() {
                    let broadcast = match &direct {
                        Some(b) => b.skip(column, k0),
                        None => BroadcastOperand { data: &buffer[r * columns * shape.row..], row: shape.row, k: 1 },
                    };
                    let panels = &memory[padded * (l * k + k0)..][..padded * depth];
                    let panels = VectorOperand::packed(panels, depth, tiles.lanes);
                    tiles.multiply([columns, padded, depth], broadcast, panels, sums, padded, more || k0 > 0);
                }
            }
            let lines = lines.grow(panel * columns);
            for row in (0..m).step_by(panel) {
                let count = panel.min(m - row);
                store_transposed(transposer, sink, lines, [row, column], (&sums[row..], padded), [count, columns]);
            }
        });
    }
}

/// A quantised operand of `k` elements along k, decoded in `memory` as its product wants it.
fn decoded<'a, A: Float>(
    isa: Isa,
    memory: &'a mut AlignedVec<A>,
    operand: Operand<'_, A>,
    [rows, k]: [usize; 2],
) -> Operand<'a, A> {
    // A line more, so that rows do not share sets of the cache.
    let stride = k.next_multiple_of(PAIR_STEP) + PAIR_STEP;
    let memory = memory.grow(rows * stride);
    pack_rows(Transposer::plain(isa), (memory, stride), operand, rows, k);
    match operand.pairs {
        None => Operand::new(memory, stride),
        Some(_) => Operand::host(HostSlice::Bf16(bytemuck::cast_slice(memory)), 2 * stride).in_pairs(2 * k),
    }
}

/// Hands to a sink what was computed transposed: `out[row.., column..]`, of which element `(i, j)` is at `j * stride + i`.
fn store_transposed<A: Float>(
    transposer: Transposer<A>,
    sink: &dyn Sink<A>,
    lines: &mut [A],
    [row, column]: [usize; 2],
    (sums, stride): (&[A], usize),
    [rows, columns]: [usize; 2],
) {
    if sink.transposed([row, column], sums, stride, [rows, columns]) {
        return;
    }
    transposer.transpose(lines, columns, sums, stride, [columns, rows]);
    for (i, line) in lines.chunks_exact(columns).take(rows).enumerate() {
        sink.row(row + i, column, line);
    }
}

/// Rows of the left operand that a thread packs at once, in rows.
const PACKED_ROWS: usize = 32;

/// The left operand packed to be broadcast, block after block of k.
fn pack_left<'a, A: Float>(
    pool: &ThreadPool,
    slots: &mut [Slot<A>],
    transposer: Transposer<A>,
    memory: &'a mut AlignedVec<A>,
    shape: Shape<A>,
    left: Operand<'_, A>,
) -> &'a [A] {
    let (m, part, row) = (shape.m, shape.packed(shape.m), shape.row);
    let memory = memory.grow(shape.parts[0] * part);
    let shared = Shared::new(&mut *memory);
    let packing = if m * shape.k < SMALL_PACKING { 1 } else { slots.len() };
    workers(pool, &mut slots[..packing], m.div_ceil(PACKED_ROWS), |_, task| {
        let first = task * PACKED_ROWS;
        let count = PACKED_ROWS.min(m - first);
        for l in 0..shape.parts[0] {
            for (k0, depth) in shape.blocks() {
                // SAFETY: each task has rows of its own in each block of a part.
                let to = unsafe { shared.at(l * part + shape.at(k0, m) + first * row, count * row) };
                pack_rows(transposer, (to, row), left.part(l).along(k0).skip(first), count, depth);
            }
        }
    });
    memory
}

/// The left operand packed in panels: those of a block of k one after the other, block after block, part after part.
fn pack_left_panels<'a, A: Float>(
    pool: &ThreadPool,
    slots: &mut [Slot<A>],
    transposer: Transposer<A>,
    memory: &'a mut AlignedVec<A>,
    shape: Shape<A>,
    left: Operand<'_, A>,
) -> &'a [A] {
    let Shape { m, k, tiles, parts, .. } = shape;
    let (padded, panel) = (m.next_multiple_of(tiles.lanes), 2 * tiles.lanes);
    let memory = memory.grow(parts[0] * padded * k);
    let shared = Shared::new(&mut *memory);
    let packing = if m * k < SMALL_PACKING { 1 } else { slots.len() };
    workers(pool, &mut slots[..packing], padded.div_ceil(panel), |_, task| {
        let first = task * panel;
        let width = panel.min(padded - first);
        for (k0, depth) in shape.blocks() {
            for l in 0..parts[0] {
                // SAFETY: each task has panels of its own, which lie in their order in each block of a part.
                let to = unsafe { shared.at(padded * (l * k + k0) + first * depth, width * depth) };
                let left = left.part(l).along(k0).skip(first);
                pack_panels(transposer, tiles.lanes, to, left, panel.min(m - first), depth);
            }
        }
    });
    memory
}

mod tests;
mod tests_quantized;
