//! Matrix products `out [m, n] = left [m, k] right [n, k]^T` for operands of any dtype and layout.
//!
//! **Bits.** An element of the result is a sum over blocks of k of chains of multiply-adds in the order of k. The
//! blocks depend on k alone, so a row of the result has the same bits whatever the other rows are, however many there
//! are, whatever the layout of the operands, and however many threads share the work.
//!
//! **Memory.** The left operand (activations) is packed whole, in chunks of rows of at most [`LEFT`] elements; of the
//! right operand (weights) each thread packs one block of columns and k at a time. Packing converts to the type that
//! arithmetic is done in, so weights of another dtype are never expanded as a whole.
//!
//! **Layout.** One operand is packed into rows (`[rows, DEPTH]` per block of k), whose elements the tile broadcasts; the
//! other into panels (`[k, lanes]`), which it loads as vectors. The right operand becomes whichever needs no
//! transposition, since it is the larger one: rows if it is contiguous along k, panels otherwise. (Goto and van de
//! Geijn 2008 describe the loops around the tile.) With a few rows on the left it is not packed: see [`thin`].

use super::pack::{pack_panels, pack_rows, transpose};
use super::parallel::{Shared, workers};
use super::simd::{Element, Float, Isa};
use super::thin::{self, Thin};
use super::tile::{DEPTH, Tiles};
use crate::backend::HostSlice;

/// Elements of the left operand that are packed at once, at most (if a single panel has no more).
const LEFT: usize = 1 << 22;
/// Multiply-adds below which a product stays on the calling thread.
const SMALL: usize = 1 << 20;
/// Narrow tiles' worth of packed rows that stay in the second-level cache while panels pass by.
const CACHED_TILES: usize = 8;
/// Wide panels of the right operand that are packed at once.
const PANELS: usize = 4;

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

    fn check(&self, what: &str, rows: usize, k: usize) {
        let (outer, inner) = if self.transposed { (k, rows) } else { (rows, k) };
        let needed = if outer == 0 || inner == 0 { 0 } else { self.from + (outer - 1) * self.stride + inner };
        assert!(self.data.len() >= needed, "gemm: {what} operand of {} elements, needs {needed}", self.data.len());
    }
}

/// Memory and kernels of matrix products.
pub struct Gemm<W> {
    isa: Isa,
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

/// What the left operand is packed into, and where its parts are.
#[derive(Clone, Copy)]
struct Packed {
    /// Whether into panels, or else into rows.
    panels: bool,
    /// Rows, and with padding.
    rows: usize,
    padded: usize,
    k: usize,
    block: usize,
}

impl Packed {
    fn len(&self) -> usize {
        self.padded * if self.panels { self.k } else { self.k.max(1).div_ceil(self.block) * DEPTH }
    }

    /// The start of the block of k from `k0` on.
    fn at(&self, k0: usize) -> usize {
        self.padded * if self.panels { k0 } else { k0 / self.block * DEPTH }
    }
}

impl<W: Float> Gemm<W> {
    /// The instruction set it uses.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// With memory for `threads` threads.
    pub fn new(isa: Isa, threads: usize) -> Self {
        let slots = (0..threads.max(1)).map(|_| Slot::default()).collect();
        Self { isa, tiles: W::tiles(isa), left: Vec::new(), slots }
    }

    /// `store(row, column, part of the row)` for all of `left [m, k] right [n, k]^T`, in no particular order and from
    /// several threads.
    pub fn product(&mut self, [m, n, k]: [usize; 3], left: Operand<'_, W>, right: Operand<'_, W>, store: Store<'_, W>) {
        if m == 0 || n == 0 {
            return;
        }
        left.check("left", m, k);
        right.check("right", n, k);
        let lanes = self.tiles.lanes;
        let chunk = (LEFT / k.max(1) / (2 * lanes) * 2 * lanes).max(2 * lanes);
        let mut first = 0;
        while first < m {
            let rows = chunk.min(m - first);
            let part = |row: usize, column: usize, x: &[W]| store(first + row, column, x);
            self.chunk([rows, n, k], left.skip(first), right, &part);
            first += rows;
        }
    }

    fn chunk(&mut self, [m, n, k]: [usize; 3], left: Operand<'_, W>, right: Operand<'_, W>, store: Store<'_, W>) {
        let Self { isa, tiles, left: memory, slots } = self;
        let (isa, tiles) = (*isa, *tiles);
        let step = 2 * tiles.lanes;
        let used = if m * n * k < SMALL { 1 } else { slots.len() };
        let slots = &mut slots[..used];
        let few = m <= thin::ROWS && !right.transposed && right.rounding.is_none();
        let thin = if few { W::thin(isa) } else { None };
        let panels = !right.transposed && thin.is_none();
        let padded = match (panels, thin) {
            (true, _) => m.next_multiple_of(tiles.lanes),
            (false, None) => m.next_multiple_of(tiles.narrow_rows),
            (false, Some(_)) => m,
        };
        let block = k.div_ceil(k.div_ceil(DEPTH).max(1)).max(1).next_multiple_of(8).min(DEPTH);
        let packed = Packed { panels, rows: m, padded, k, block };
        let memory = grow(memory, packed.len());
        pack_left(isa, tiles, slots, memory, packed, left);
        let memory = &*memory;
        if let Some(thin) = thin {
            return workers(slots, n.div_ceil(thin::COLUMNS), |slot, task| {
                let column = task * thin::COLUMNS;
                let columns = thin::COLUMNS.min(n - column);
                let sums = grow(&mut slot.sums, m * thin::COLUMNS);
                thin(Thin { sums, left: memory, right: right.skip(column), m, columns, k, block });
                for (row, line) in sums.chunks_exact(thin::COLUMNS).enumerate() {
                    store(row, column, &line[..columns]);
                }
            });
        }
        // A few rows wait for memory: what was packed is used at once, from the first-level cache.
        let width = match (panels, m <= tiles.lanes) {
            (true, true) => tiles.narrow_rows,
            (true, false) => 4 * tiles.narrow_rows,
            (false, _) => PANELS * step,
        };
        workers(slots, n.div_ceil(width), |slot, task| {
            let column = task * width;
            let columns = width.min(n - column);
            let right = right.skip(column);
            if panels {
                let rows = columns.next_multiple_of(tiles.narrow_rows);
                let sums = grow(&mut slot.sums, rows * padded);
                let buffer = grow(&mut slot.right, rows * DEPTH);
                for k0 in blocks(k, block) {
                    let depth = block.min(k - k0);
                    pack_rows(isa, buffer, right.along(k0), columns, rows, depth);
                    let panels = &memory[packed.at(k0)..][..padded * depth];
                    multiply(tiles, depth, buffer, columns, panels, padded, sums, k0 > 0);
                }
                let lines = grow(&mut slot.lines, step * columns);
                for lane in (0..m).step_by(step) {
                    let count = step.min(m - lane);
                    transpose(isa, lines, columns, &sums[lane..], padded, columns, count);
                    for (i, line) in lines.chunks_exact(columns).take(count).enumerate() {
                        store(lane + i, column, line);
                    }
                }
            } else {
                let lanes = columns.next_multiple_of(tiles.lanes);
                let sums = grow(&mut slot.sums, lanes * padded);
                let buffer = grow(&mut slot.right, lanes * DEPTH);
                for k0 in blocks(k, block) {
                    let depth = block.min(k - k0);
                    pack_panels(isa, tiles.lanes, buffer, right.along(k0), columns, depth);
                    let rows = &memory[packed.at(k0)..][..padded * DEPTH];
                    multiply(tiles, depth, rows, m, &buffer[..lanes * depth], lanes, sums, k0 > 0);
                }
                for (row, line) in sums.chunks_exact(lanes).take(m).enumerate() {
                    store(row, column, &line[..columns]);
                }
            }
        });
    }
}

/// Where the blocks of k begin; one even if k is 0, so that sums are set.
fn blocks(k: usize, block: usize) -> impl Iterator<Item = usize> {
    (0..k.max(1)).step_by(block)
}

/// The leading `len` elements of memory, which grows if it has fewer.
pub fn grow<T: Default + Clone>(memory: &mut Vec<T>, len: usize) -> &mut [T] {
    if memory.len() < len {
        memory.resize(len, T::default());
    }
    &mut memory[..len]
}

fn pack_left<W: Float>(
    isa: Isa,
    tiles: Tiles<W>,
    slots: &mut [Slot<W>],
    memory: &mut [W],
    packed: Packed,
    left: Operand<'_, W>,
) {
    let Packed { panels, rows, padded, k, block } = packed;
    let part = if panels { 2 * tiles.lanes } else { 2 * tiles.narrow_rows };
    let shared = Shared::new(memory);
    let slots = if rows * k < 1 << 16 { &mut slots[..1] } else { slots };
    workers(slots, padded.div_ceil(part), |_, task| {
        let row = task * part;
        let count = part.min(rows - row);
        let width = part.min(padded - row);
        for k0 in blocks(k, block) {
            let depth = block.min(k - k0);
            let source = left.along(k0).skip(row);
            let distance = if panels { depth } else { DEPTH };
            // SAFETY: each task has rows of its own, and packed rows and panels lie in row order in each block.
            let to = unsafe { shared.at(packed.at(k0) + row * distance, width * distance) };
            if panels {
                pack_panels(isa, tiles.lanes, to, source, count, depth);
            } else {
                pack_rows(isa, to, source, count, width, depth);
            }
        }
    });
}

/// `sums [rows, ld] (+)= rows [rows, depth] * panels`, where `lanes` of panels lie side by side.
#[allow(clippy::too_many_arguments)]
fn multiply<W: Float>(
    tiles: Tiles<W>,
    depth: usize,
    rows: &[W],
    count: usize,
    panels: &[W],
    lanes: usize,
    sums: &mut [W],
    add: bool,
) {
    let (wide, narrow) = (2 * tiles.lanes, !lanes.is_multiple_of(2 * tiles.lanes));
    assert!(rows.len() >= count.next_multiple_of(tiles.narrow_rows) * DEPTH, "gemm: {} packed rows", rows.len());
    assert!(sums.len() >= count.next_multiple_of(tiles.narrow_rows) * lanes, "gemm: {} sums", sums.len());
    assert!(
        panels.len() == lanes * depth && lanes.is_multiple_of(tiles.lanes),
        "gemm: {} panels of {lanes}",
        panels.len()
    );
    let (b, v, c) = (rows.as_ptr(), panels.as_ptr(), sums.as_mut_ptr());
    let cached = CACHED_TILES * tiles.narrow_rows;
    for part in (0..count).step_by(cached) {
        let end = count.min(part + cached);
        for lane in (0..lanes - lanes % wide).step_by(wide) {
            for row in (part..end).step_by(tiles.wide_rows) {
                // SAFETY: the operands reach as far by the checks above, since `wide_rows` divides `narrow_rows`; the
                // tiles are those of an instruction set that was detected.
                unsafe {
                    (tiles.wide)(depth, b.add(row * DEPTH), v.add(lane * depth), c.add(row * lanes + lane), lanes, add)
                }
            }
        }
        if narrow {
            let lane = lanes - tiles.lanes;
            for row in (part..end).step_by(tiles.narrow_rows) {
                // SAFETY: as above.
                unsafe {
                    (tiles.narrow)(
                        depth,
                        b.add(row * DEPTH),
                        v.add(lane * depth),
                        c.add(row * lanes + lane),
                        lanes,
                        add,
                    )
                }
            }
        }
    }
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
            let mut gemm = Gemm::new(isa, 3);
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
            let all = run(&mut Gemm::<f32>::new(isa, 1), [m, n, k], Operand::new(&a, k), Operand::new(&b, k));
            let mut gemm = Gemm::<f32>::new(isa, 4);
            for (first, rows) in
                [(0, 300), (0, 1), (299, 1), (5, 2), (9, 3), (4, 4), (7, 5), (100, 8), (33, 64), (1, 255)]
            {
                let part = run(&mut gemm, [rows, n, k], Operand::new(&a[first * k..], k), Operand::new(&b, k));
                assert!(part == all[first * n..(first + rows) * n], "{isa:?}: {rows} rows from {first}");
            }
        }
    }
}
