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
//! - but if the right operand is small, or k is, it is cheaper to turn that: again its columns are lanes.
//!
//! **Pairs.** Where the instruction set multiplies pairs of bfloat16 and both operands are bfloat16, a pair of elements
//! along k takes the place of an element everywhere below: packing puts them side by side, and k is half as long.
//!
//! Weights of another dtype are never expanded as a whole, but in blocks that stay in cache. With a few rows on the
//! left nothing is packed: see [`thin`]. (Goto and van de Geijn 2008 describe the loops around the tile.)

use super::pack::{pack_panels, pack_rows, transpose};
use super::parallel::{Shared, workers};
use super::simd::{Element, Float, Isa};
use super::team::Team;
use super::thin::{self, Thin};
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
/// Bytes at a multiple of whose distance elements share a set of the first-level cache.
const ALIASED: usize = 4096;
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
    /// How many elements along k there are, if they are taken in pairs: those behind them are zeros.
    pub(super) pairs: Option<usize>,
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
        Self { data, from: 0, stride, transposed: false, rounding: None, pairs: None }
    }

    /// Element `(i, k)` is `data[k * stride + i]`.
    pub fn transposed(self) -> Self {
        Self { transposed: true, ..self }
    }

    /// Rounds every element first.
    pub fn rounded(self, rounding: Option<Rounding<W>>) -> Self {
        Self { rounding, ..self }
    }

    /// The rows from `row` on.
    pub(super) fn skip(self, row: usize) -> Self {
        Self { from: self.from + row * if self.transposed { 1 } else { self.stride }, ..self }
    }

    /// The columns (along k) from `k` on.
    pub(super) fn along(self, k: usize) -> Self {
        let (k, pairs) = match self.pairs {
            None => (k, None),
            Some(left) => ((2 * k).min(left), Some(left.saturating_sub(2 * k))),
        };
        Self { from: self.from + k * if self.transposed { self.stride } else { 1 }, pairs, ..self }
    }

    /// The same with pairs of bfloat16 for elements, where `k` of them lie along k.
    fn in_pairs(self, k: usize) -> Self {
        Self { pairs: Some(k), ..self }
    }

    /// Its elements where they lie, if the tile can read them there.
    pub(super) fn direct(&self) -> Option<Rows<'a, W>> {
        if let Some(k) = self.pairs {
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
    team: Team,
    tiles: Tiles<W>,
    pair_tiles: Option<Tiles<W>>,
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

    /// Elements of `rows` packed rows.
    fn packed(&self, rows: usize) -> usize {
        rows * self.k.max(1).div_ceil(self.block) * DEPTH
    }
}

/// Whether operands may be taken in pairs: they are bfloat16, and an operand is only rounded to the other's dtype.
fn in_pairs<W>(left: &Operand<'_, W>, right: &Operand<'_, W>) -> bool {
    let bf16 = |operand: &Operand<'_, W>| matches!(operand.data, HostSlice::Bf16(_));
    bf16(left) && !left.transposed && (bf16(right) || right.rounding.is_some())
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
    pub fn team(&self) -> &Team {
        &self.team
    }

    /// With memory for a team.
    pub fn new(isa: Isa, team: Team) -> Self {
        let slots = (0..team.members()).map(|_| Slot::default()).collect();
        Self { isa, team, tiles: W::tiles(isa), pair_tiles: W::pair_tiles(isa), left: Vec::new(), slots }
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
        let pairs = self.pair_tiles.filter(|_| k > 0 && in_pairs(&left, &right));
        if let Some(pair_tiles) = pairs {
            (left, right, tiles, step) = (left.in_pairs(k), right.in_pairs(k), pair_tiles, PAIRS);
            k = k.div_ceil(2).next_multiple_of(PAIRS);
        }
        let block = k.div_ceil(k.div_ceil(DEPTH).max(1)).max(1).next_multiple_of(step).min(DEPTH);
        let used = if m * n * k < SMALL { 1 } else { self.slots.len() };
        let thin = match pairs {
            _ if m > thin::ROWS || right.transposed => None,
            None if right.rounding.is_none() => W::thin(self.isa),
            Some(_) if right.direct().is_some() => W::thin_pairs(self.isa),
            _ => None,
        };
        let turned = right.transposed || n <= 2 * tiles.lanes || k < SHALLOW;
        for first in (0..m).step_by(CHUNK) {
            let shape = Shape { m: CHUNK.min(m - first), n, k, block, tiles };
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
        let Self { isa, team, left: memory, slots, .. } = self;
        let memory = pack_left(*isa, memory, shape, left);
        workers(team, &mut slots[..used], n.div_ceil(thin::COLUMNS), |slot, task| {
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
        let Shape { m, n, tiles, .. } = shape;
        let Self { isa, team, left: memory, slots, .. } = self;
        let isa = *isa;
        let direct = left.direct();
        let memory = if direct.is_none() { pack_left(isa, memory, shape, left) } else { &[] };
        let vectors = n.div_ceil(tiles.lanes);
        let width = share(vectors, used, VECTORS) * tiles.lanes;
        let across = n.div_ceil(width);
        // Where there are too few columns for all threads, the rows are cut as well.
        let down = share(m.div_ceil(tiles.rows), used.div_ceil(across), CHUNK) * tiles.rows;
        workers(team, &mut slots[..used], across * m.div_ceil(down), |slot, task| {
            let (column, row) = (task % across * width, task / across * down);
            let (columns, rows) = (width.min(n - column), down.min(m - row));
            let _held = tiles.hold();
            let lanes = columns.next_multiple_of(tiles.lanes);
            let sums = grow(&mut slot.sums, lanes * rows);
            let right = right.skip(column);
            for (k0, depth) in shape.blocks() {
                let buffer = grow(&mut slot.right, lanes * depth);
                pack_panels(isa, tiles.lanes, buffer, right.along(k0), columns, depth);
                let panels = Panels::packed(buffer, depth, tiles.lanes);
                let b = match &direct {
                    Some(b) => Rows { data: b.data.get(row * b.row + k0 * b.k..).unwrap_or(&[]), ..*b },
                    None => Rows { data: &memory[shape.at(k0, m) + row * DEPTH..], row: DEPTH, k: 1 },
                };
                tiles.multiply([rows, lanes, depth], b, panels, sums, lanes, k0 > 0);
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
        let Shape { m, n, k, tiles, .. } = shape;
        let Self { isa, team, left: memory, slots, .. } = self;
        let isa = *isa;
        let lanes = m.next_multiple_of(tiles.lanes);
        let memory = grow(memory, lanes * k);
        let shared = Shared::new(memory);
        let part = 2 * tiles.lanes;
        let packing = if m * k < 1 << 13 { 1 } else { used };
        workers(team, &mut slots[..packing], lanes.div_ceil(part), |_, task| {
            let first = task * part;
            let width = part.min(lanes - first);
            for (k0, depth) in shape.blocks() {
                // SAFETY: each task has lanes of its own, and panels lie in the order of lanes in each block.
                let to = unsafe { shared.at(lanes * k0 + first * depth, width * depth) };
                pack_panels(isa, tiles.lanes, to, left.along(k0).skip(first), part.min(m - first), depth);
            }
        });
        let memory = &*memory;
        // With few lanes the time goes into reading the rows: along them, as memory likes it. With many, rows are used
        // often, and at some distances would push each other out of the cache.
        let few = lanes <= 2 * part;
        let aliased = |rows: &Rows<'_, W>| (rows.row * size_of::<W>()).is_multiple_of(ALIASED);
        let direct = right.direct().filter(|rows| few || !aliased(rows));
        let down = share(n.div_ceil(tiles.rows), used, if few { 1 } else { TILES }) * tiles.rows;
        workers(team, &mut slots[..used], n.div_ceil(down), |Slot { right: buffer, sums, lines }, task| {
            let column = task * down;
            let columns = down.min(n - column);
            let _held = tiles.hold();
            let right = right.skip(column);
            let sums = grow(sums, columns * lanes);
            for (k0, depth) in shape.blocks() {
                let b = match &direct {
                    Some(b) => Rows { data: b.data.get(column * b.row + k0 * b.k..).unwrap_or(&[]), ..*b },
                    None => {
                        let buffer = grow(buffer, columns * DEPTH);
                        pack_rows(isa, buffer, right.along(k0), columns, depth);
                        Rows { data: buffer, row: DEPTH, k: 1 }
                    }
                };
                let panels = Panels::packed(&memory[lanes * k0..][..lanes * depth], depth, tiles.lanes);
                tiles.multiply([columns, lanes, depth], b, panels, sums, lanes, k0 > 0);
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
    let memory = grow(memory, shape.packed(shape.m));
    for (k0, depth) in shape.blocks() {
        pack_rows(isa, &mut memory[shape.at(k0, shape.m)..], left.along(k0), shape.m, depth);
    }
    memory
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::backend::cpu::isa::tests::isas;

    fn numbers(count: usize, seed: u64) -> Vec<f64> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / f64::from(1 << 24) - 0.5
        };
        (0..count).map(|_| next()).collect()
    }

    fn stored<W: Float, S: Element<W>>(x: &[f64]) -> Vec<S> {
        x.iter().map(|&x| S::narrow(W::from_f64(x))).collect()
    }

    fn run<W: Float>(gemm: &mut Gemm<W>, [m, n, k]: [usize; 3], left: Operand<W>, right: Operand<W>) -> Vec<W> {
        let mut out = vec![W::from_f64(f64::NAN); m * n];
        let shared = Shared::new(&mut out);
        gemm.product([m, n, k], left, right, &|row, column, x: &[W]| {
            // SAFETY: every element is stored by one task.
            unsafe { shared.at(row * n + column, x.len()) }.copy_from_slice(x);
        });
        out
    }

    fn check<W: Float, A: Element<W>, S: Element<W>>(shape: [usize; 3], tolerance: f64) {
        let [m, n, k] = shape;
        let (a, b): (Vec<A>, Vec<S>) = (stored::<W, A>(&numbers(m * k, 1)), stored::<W, S>(&numbers(n * k, 2)));
        let flip = |rows: usize, columns: usize| move |i: usize| (i % rows) * columns + i / rows;
        let at: Vec<A> = (0..m * k).map(flip(m, k)).map(|i| a[i]).collect();
        let bt: Vec<S> = (0..n * k).map(flip(n, k)).map(|i| b[i]).collect();
        let exact: Vec<f64> = (0..m * n)
            .map(|i| (0..k).map(|p| a[i / n * k + p].widen().to_f64() * b[i % n * k + p].widen().to_f64()).sum())
            .collect();
        for isa in isas() {
            let mut gemm = Gemm::new(isa, Team::new(3));
            let results = [
                run(&mut gemm, shape, Operand::new(&a, k), Operand::new(&b, k)),
                run(&mut gemm, shape, Operand::new(&a, k), Operand::new(&bt, n).transposed()),
                run(&mut gemm, shape, Operand::new(&at, m).transposed(), Operand::new(&bt, n).transposed()),
                run(&mut gemm, shape, Operand::new(&at, m).transposed(), Operand::new(&b, k)),
            ];
            // A left operand that is contiguous along its rows is not taken in pairs, and gives other bits.
            let pairs = gemm.pair_tiles.is_some() && in_pairs::<W>(&Operand::new(&a, k), &Operand::new(&b, k));
            for result in &results[..if pairs { 2 } else { 4 }] {
                assert!(*result == results[0], "{shape:?} {isa:?}: layouts differ");
            }
            for (i, (found, exact)) in results.iter().flat_map(|result| result.iter().zip(&exact)).enumerate() {
                let error = (found.to_f64() - exact).abs();
                assert!(
                    error <= tolerance * (k as f64).sqrt(),
                    "{shape:?} {isa:?} element {i}: {found:?}, not {exact}"
                );
            }
        }
    }

    #[test]
    fn products_of_every_dtype_layout_and_instruction_set_agree_with_sums() {
        let shapes = [[1, 1, 1], [1, 50, 7], [3, 17, 320], [8, 49, 321], [9, 97, 33], [31, 64, 641], [70, 130, 100]];
        for shape in shapes.into_iter().chain([[129, 200, 700], [2, 3, 0], [2, 40, 333], [4, 70, 651]]) {
            check::<f32, f32, f32>(shape, 1e-6);
            check::<f32, f32, bf16>(shape, 1e-6);
            check::<f32, f32, f16>(shape, 1e-6);
            check::<f32, f32, f64>(shape, 1e-6);
            check::<f32, bf16, bf16>(shape, 1e-6);
            check::<f64, f64, f64>(shape, 1e-15);
            check::<f64, f64, f32>(shape, 1e-15);
            check::<f64, f64, bf16>(shape, 1e-15);
            check::<f64, f64, f16>(shape, 1e-15);
        }
    }

    #[test]
    fn weights_that_are_rounded_to_bfloat16_give_the_bits_of_rounded_weights() {
        for [m, n, k] in [[3, 50, 100], [40, 20, 96], [70, 130, 333]] {
            let a = stored::<f32, bf16>(&numbers(m * k, 5));
            for isa in isas() {
                let mut gemm = Gemm::new(isa, Team::alone());
                for transposed in [false, true] {
                    let laid = |x| if transposed { Operand { stride: n, transposed, ..x } } else { x };
                    let (wide, narrow) =
                        (stored::<f32, f32>(&numbers(n * k, 6)), stored::<f32, bf16>(&numbers(n * k, 6)));
                    let round: Rounding<f32> = |_, x| x.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
                    let wide = laid(Operand::new(&wide, k)).rounded(Some(round));
                    let found = run(&mut gemm, [m, n, k], Operand::new(&a, k), wide);
                    let expected = run(&mut gemm, [m, n, k], Operand::new(&a, k), laid(Operand::new(&narrow, k)));
                    assert!(found == expected, "{isa:?} {m} {n} {k} transposed {transposed}");
                }
            }
        }
    }

    #[test]
    fn a_rows_bits_depend_on_no_other_row_and_on_no_thread() {
        for isa in isas() {
            rows_alone::<f32, bf16>(isa, [300, 100, 777]);
            rows_alone::<bf16, bf16>(isa, [70, 100, 352]);
            rows_alone::<bf16, bf16>(isa, [40, 100, 777]);
        }
    }

    fn rows_alone<A: Element<f32>, S: Element<f32>>(isa: Isa, [m, n, k]: [usize; 3]) {
        let (a, b) = (stored::<f32, A>(&numbers(m * k, 3)), stored::<f32, S>(&numbers(n * k, 4)));
        let right = Operand::new(&b, k);
        let all = run(&mut Gemm::<f32>::new(isa, Team::alone()), [m, n, k], Operand::new(&a, k), right);
        let mut gemm = Gemm::<f32>::new(isa, Team::new(4));
        for (first, rows) in [(0, 300), (0, 1), (299, 1), (5, 2), (9, 3), (4, 4), (7, 5), (100, 8), (33, 64), (1, 255)]
        {
            let (first, rows) = (first.min(m - 1), rows.min(m - first.min(m - 1)));
            let part = run(&mut gemm, [rows, n, k], Operand::new(&a[first * k..], k), right);
            assert!(part == all[first * n..(first + rows) * n], "{isa:?}: {rows} rows from {first}");
        }
    }
}
