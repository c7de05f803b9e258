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
        Self { data, from: 0, stride, transposed: false, rounding: None }
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
        Self { from: self.from + k * if self.transposed { self.stride } else { 1 }, ..self }
    }

    /// Its elements where they lie, if the tile can read them there.
    fn direct(&self) -> Option<Rows<'a, W>> {
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

/// A product, and how k is cut.
#[derive(Clone, Copy)]
struct Shape {
    m: usize,
    n: usize,
    k: usize,
    block: usize,
}

impl Shape {
    /// The blocks of k, where each begins and how long it is; one even if k is 0, so that sums are set.
    fn blocks(self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.k.max(1)).step_by(self.block).map(move |k0| (k0, self.block.min(self.k - k0)))
    }

    /// Where the block of k from `k0` on begins in `rows` packed rows.
    fn at(self, k0: usize, rows: usize) -> usize {
        rows * (k0 / self.block) * DEPTH
    }

    /// Elements of `rows` packed rows.
    fn packed(self, rows: usize) -> usize {
        rows * self.k.max(1).div_ceil(self.block) * DEPTH
    }
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

    /// The threads that share its work.
    pub fn team(&self) -> &Team {
        &self.team
    }

    /// With memory for a team.
    pub fn new(isa: Isa, team: Team) -> Self {
        let slots = (0..team.members()).map(|_| Slot::default()).collect();
        Self { isa, team, tiles: W::tiles(isa), left: Vec::new(), slots }
    }

    /// `store(row, column, part of the row)` for all of `left [m, k] right [n, k]^T`, in no particular order and from
    /// several threads.
    pub fn product(&mut self, [m, n, k]: [usize; 3], left: Operand<'_, W>, right: Operand<'_, W>, store: Store<'_, W>) {
        if m == 0 || n == 0 {
            return;
        }
        left.check("left", m, k);
        right.check("right", n, k);
        let block = k.div_ceil(k.div_ceil(DEPTH).max(1)).max(1).next_multiple_of(8).min(DEPTH);
        let used = if m * n * k < SMALL { 1 } else { self.slots.len() };
        let few = m <= thin::ROWS && !right.transposed && right.rounding.is_none();
        let thin = if few { W::thin(self.isa) } else { None };
        let turned = right.transposed || n <= 2 * self.tiles.lanes || k < SHALLOW;
        for first in (0..m).step_by(CHUNK) {
            let shape = Shape { m: CHUNK.min(m - first), n, k, block };
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
        shape: Shape,
        used: usize,
        thin: fn(Thin<'_, W>),
        left: Operand<'_, W>,
        right: Operand<'_, W>,
        store: Store<'_, W>,
    ) {
        let Shape { m, n, k, block } = shape;
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
        shape: Shape,
        used: usize,
        left: Operand<'_, W>,
        right: Operand<'_, W>,
        store: Store<'_, W>,
    ) {
        let Shape { m, n, .. } = shape;
        let Self { isa, team, tiles, left: memory, slots } = self;
        let (isa, tiles) = (*isa, *tiles);
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
        shape: Shape,
        used: usize,
        left: Operand<'_, W>,
        right: Operand<'_, W>,
        store: Store<'_, W>,
    ) {
        let Shape { m, n, k, .. } = shape;
        let Self { isa, team, tiles, left: memory, slots } = self;
        let (isa, tiles) = (*isa, *tiles);
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
        let direct = right.direct();
        let down = share(n.div_ceil(tiles.rows), used, TILES) * tiles.rows;
        workers(team, &mut slots[..used], n.div_ceil(down), |Slot { right: buffer, sums, lines }, task| {
            let column = task * down;
            let columns = down.min(n - column);
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
fn pack_left<'a, W: Float>(isa: Isa, memory: &'a mut Vec<W>, shape: Shape, left: Operand<'_, W>) -> &'a [W] {
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

    fn check<W: Float, S: Element<W>>(shape: [usize; 3], tolerance: f64) {
        let [m, n, k] = shape;
        let (a, b): (Vec<W>, Vec<S>) = (stored(&numbers(m * k, 1)), stored::<W, S>(&numbers(n * k, 2)));
        let flip = |rows: usize, columns: usize| move |i: usize| (i % rows) * columns + i / rows;
        let at: Vec<W> = (0..m * k).map(flip(m, k)).map(|i| a[i]).collect();
        let bt: Vec<S> = (0..n * k).map(flip(n, k)).map(|i| b[i]).collect();
        let exact: Vec<f64> = (0..m * n)
            .map(|i| (0..k).map(|p| a[i / n * k + p].to_f64() * b[i % n * k + p].widen().to_f64()).sum())
            .collect();
        for &isa in Isa::available() {
            let mut gemm = Gemm::new(isa, Team::new(3));
            let results = [
                run(&mut gemm, shape, Operand::new(&a, k), Operand::new(&b, k)),
                run(&mut gemm, shape, Operand::new(&a, k), Operand::new(&bt, n).transposed()),
                run(&mut gemm, shape, Operand::new(&at, m).transposed(), Operand::new(&bt, n).transposed()),
                run(&mut gemm, shape, Operand::new(&at, m).transposed(), Operand::new(&b, k)),
            ];
            for result in &results {
                assert!(*result == results[0], "{shape:?} {isa:?}: layouts differ");
            }
            for (i, (found, exact)) in results[0].iter().zip(&exact).enumerate() {
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
            check::<f32, f32>(shape, 1e-6);
            check::<f32, bf16>(shape, 1e-6);
            check::<f32, f16>(shape, 1e-6);
            check::<f32, f64>(shape, 1e-6);
            check::<f64, f64>(shape, 1e-15);
            check::<f64, f32>(shape, 1e-15);
            check::<f64, bf16>(shape, 1e-15);
            check::<f64, f16>(shape, 1e-15);
        }
    }

    #[test]
    fn a_rows_bits_depend_on_no_other_row_and_on_no_thread() {
        let [m, n, k] = [300, 100, 777];
        let (a, b) = (stored::<f32, f32>(&numbers(m * k, 3)), stored::<f32, bf16>(&numbers(n * k, 4)));
        for &isa in Isa::available() {
            let all =
                run(&mut Gemm::<f32>::new(isa, Team::alone()), [m, n, k], Operand::new(&a, k), Operand::new(&b, k));
            let mut gemm = Gemm::<f32>::new(isa, Team::new(4));
            for (first, rows) in
                [(0, 300), (0, 1), (299, 1), (5, 2), (9, 3), (4, 4), (7, 5), (100, 8), (33, 64), (1, 255)]
            {
                let part = run(&mut gemm, [rows, n, k], Operand::new(&a[first * k..], k), Operand::new(&b, k));
                assert!(part == all[first * n..(first + rows) * n], "{isa:?}: {rows} rows from {first}");
            }
        }
    }
}
