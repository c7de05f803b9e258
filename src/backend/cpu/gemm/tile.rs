//! Tiles: a block of the result, made of microkernels.
//!
//! Both operands are read where they lie, packed or not, if one of the strides of the broadcast operand is 1. Loops:
//! `cached` rows of the broadcast operand, which stay in the second-level cache (112 rows of 320 numbers are 140 KiB),
//! for each of them all panels of the vector operand, for each of these the rows, in microkernels from the tallest that
//! fits downwards. A panel of two vectors over [`DEPTH`] stays in the first-level cache meanwhile (320 times 128 bytes are
//! 40 KiB in AVX-512, 20 KiB in AVX2).

use super::super::aligned::LINE;
#[cfg(target_arch = "x86_64")]
use super::amx::AmxGuard;
use super::microkernel::{Alongside, BlockKernel, Microkernel, PIECES, TileOperands};

/// No instruction set of other architectures has tiles.
#[cfg(not(target_arch = "x86_64"))]
pub type AmxGuard = std::convert::Infallible;

/// Elements along k that are multiplied at once, and the distance of two packed rows: a panel of two vectors stays in the
/// first-level cache, and the distance is no multiple of a page, so that packed rows do not share sets of it. A multiple
/// of every kernel's step.
pub const DEPTH: usize = 320;
/// The same for tiles that accumulate onto sums from memory, as AMX does: a chain is as long as one likes, and bits do not depend
/// on where it is cut. Best is all of k at once, up to so many elements, since sums then never go through memory (K = 2048 in
/// one block against two: 1.09 to 1.20 of the rate on AMX), ...
const DEEPEST: usize = 1024;
/// ... or else equal blocks of at most so many, whose panels leave room in the second-level cache (K = 11008: 1.18 of the
/// rate of blocks of 1024).
const DEEP: usize = 768;
/// Elements along k of a block of any tiles, at most.
pub const DEPTHS: usize = DEEPEST;
/// Bytes at a multiple of whose distance elements share a set of the first-level cache.
const ALIASED: usize = 4096;
/// Lines that a set holds.
const WAYS: usize = 8;

/// The operand whose elements are broadcast: `(i, p)` is `data[i * row + p * k]`.
#[derive(Clone, Copy)]
pub struct BroadcastOperand<'a, A> {
    /// The elements.
    pub data: &'a [A],
    /// Distance of two rows.
    pub row: usize,
    /// Distance of two elements of a row; one of the two is 1.
    pub k: usize,
}

impl<A> BroadcastOperand<'_, A> {
    /// The rows from `row` on and of these the elements from `k` on; without elements if that is behind the last.
    pub fn skip(self, row: usize, k: usize) -> Self {
        Self { data: self.data.get(row * self.row + k * self.k..).unwrap_or(&[]), ..self }
    }

    /// Whether every row begins with a line of the cache.
    pub fn in_lines(&self) -> bool {
        self.k == 1
            && self.data.as_ptr().addr().is_multiple_of(LINE)
            && self.row.wrapping_mul(size_of::<A>()).is_multiple_of(LINE)
    }

    /// Whether the same elements of all rows share a set of the first-level cache.
    pub fn aliased(&self) -> bool {
        self.k == 1 && self.row.wrapping_mul(size_of::<A>()).is_multiple_of(ALIASED)
    }
}

/// The operand that is read in vectors. Panel `j` of two vectors begins at `j * panel`, and goes on after `k` elements
/// for the next step along k; a last panel of one vector goes on after `last`.
#[derive(Clone, Copy)]
pub struct VectorOperand<'a, A> {
    /// The elements.
    pub data: &'a [A],
    /// Distance of two panels.
    pub panel: usize,
    /// Distance along k.
    pub k: usize,
    /// Distance along k in a last panel of one vector.
    pub last: usize,
}

impl<'a, A> VectorOperand<'a, A> {
    /// A matrix `[k, columns]` at row distance `stride`, as it lies in memory, for vectors of `lanes`.
    pub fn plain(data: &'a [A], stride: usize, lanes: usize) -> Self {
        Self { data, panel: 2 * lanes, k: stride, last: stride }
    }

    /// Panels of `depth` steps, one after the other.
    pub fn packed(data: &'a [A], depth: usize, lanes: usize) -> Self {
        Self { data, panel: 2 * lanes * depth, k: 2 * lanes, last: lanes }
    }
}

/// Microkernels of so many rows: for rows that are contiguous along k, and for elements of one k that are contiguous.
pub type Height<A> = (usize, [Microkernel<A>; 2]);

/// The tiles of an instruction set that this CPU has.
#[derive(Clone, Copy)]
pub struct Tiles<A> {
    /// Elements of a vector.
    pub lanes: usize,
    /// Elements along k that are multiplied at once: `k` is a multiple of it.
    pub step: usize,
    /// Rows of the tallest microkernel over two vectors.
    pub rows: usize,
    /// Whether a line of each row is read at once, not an element at a time: then rows that share sets of the cache cost
    /// conflict misses.
    pub whole_lines: bool,
    /// Rows that stay in the second-level cache while panels pass by; a multiple of `rows`.
    pub(super) cached: usize,
    /// Over two vectors, from the tallest to one row.
    pub(super) wide: [Height<A>; 6],
    /// Over one vector.
    pub(super) narrow: [Height<A>; 6],
    /// Whole blocks alongside something else, if the instruction set has something for it.
    pub(super) block: Option<BlockKernel<A>>,
    /// Whether a thread has to have AMX's tiles while it multiplies.
    pub(super) amx: bool,
}

/// A block of the result, of at most [`rows`](Tiles::rows) rows and two vectors: `out [rows, columns] (+)= broadcast [rows, k]
/// vector [k, columns]`, where the vector operand is a packed panel.
pub struct Block<'a, A> {
    /// Rows, columns, k.
    pub shape: [usize; 3],
    /// The operand whose elements are broadcast.
    pub broadcast: BroadcastOperand<'a, A>,
    /// The panel.
    pub panel: &'a [A],
    /// Whether to add to what is there.
    pub add: bool,
    /// What else is done meanwhile.
    pub alongside: Alongside<'a, A>,
}

/// Elements from the first to the last of a matrix with these counts and strides, unless they are more than there can be.
fn reach(dims: &[(usize, usize)]) -> Option<usize> {
    dims.iter().try_fold(1usize, |sum, &(count, stride)| sum.checked_add(count.checked_sub(1)?.checked_mul(stride)?))
}

impl<A> Tiles<A> {
    /// Has ready on this thread what multiplying needs, which each product alone would otherwise do for itself.
    pub fn acquire_tiles(&self) -> Option<AmxGuard> {
        #[cfg(target_arch = "x86_64")]
        if self.amx {
            // SAFETY: only the tiles of AMX have the flag, and tiles are only had for an `Isa`, proof that it is there.
            return Some(unsafe { AmxGuard::new() });
        }
        None
    }

    /// How `k` elements, in multiples of `step`, are cut into blocks: the length of all but the last.
    pub fn block_of(&self, k: usize, step: usize) -> usize {
        let depth = match self.block {
            None => DEPTH,
            Some(_) if k <= DEEPEST => DEEPEST,
            Some(_) => DEEP,
        };
        k.div_ceil(k.div_ceil(depth).max(1)).max(1).next_multiple_of(step).min(depth)
    }

    /// A block, in `out` with rows at distance `out_row`.
    ///
    /// # Panics
    /// As [`multiply`](Self::multiply).
    pub fn multiply_block(&self, block: Block<'_, A>, out: &mut [A], out_row: usize) {
        let Block { shape: [rows, columns, k], broadcast, panel, add, alongside } = block;
        let vector = VectorOperand::packed(panel, k, self.lanes);
        match self.block {
            Some(kernel) if rows == self.rows && columns == 2 * self.lanes => {
                self.check([rows, columns, k], &broadcast, &vector, out.len(), out_row);
                let _tiles = self.acquire_tiles();
                let operands = TileOperands {
                    k,
                    broadcast: broadcast.data.as_ptr(),
                    broadcast_row: broadcast.row,
                    broadcast_k: broadcast.k,
                    vector: panel.as_ptr(),
                    vector_k: vector.k,
                    out: out.as_mut_ptr(),
                    out_row,
                    add,
                };
                // SAFETY: the operands reach as far by `check`; the kernel is of an instruction set that this CPU has, with
                // the tiles that it needs.
                unsafe { kernel(operands, alongside) };
            }
            _ => {
                if let Some(work) = alongside.work {
                    (0..PIECES).for_each(work);
                }
                self.multiply([rows, columns, k], broadcast, vector, out, out_row, add);
            }
        }
    }

    /// `out [rows, columns] (+)= broadcast [rows, k] vector [k, columns]`, where `out` has rows at distance `out_row`.
    ///
    /// # Panics
    /// If the operands are too short, `columns` is no multiple of [`lanes`](Self::lanes), or, of tiles with a
    /// [`step`](Self::step), `k` is 0 or no multiple of it or the broadcast operand not contiguous along k.
    pub fn multiply(
        &self,
        [rows, columns, k]: [usize; 3],
        broadcast: BroadcastOperand<'_, A>,
        vector: VectorOperand<'_, A>,
        out: &mut [A],
        out_row: usize,
        add: bool,
    ) {
        if rows == 0 || columns == 0 {
            return;
        }
        let sums = reach(&[(rows, out_row), (columns, 1)]);
        assert!(sums.is_some_and(|sums| out.len() >= sums), "tile: {} sums at distance {out_row}", out.len());
        // SAFETY: the sums reach as far.
        unsafe { self.multiply_at([rows, columns, k], broadcast, vector, (out.as_mut_ptr(), out_row), add) };
    }

    /// [`multiply`](Self::multiply) into memory of which others may write other parts meanwhile.
    ///
    /// # Safety
    /// At `out` are `rows` rows of `columns` elements at distance `out_row`, which nobody else uses meanwhile.
    ///
    /// # Panics
    /// As [`multiply`](Self::multiply).
    pub unsafe fn multiply_at(
        &self,
        [rows, columns, k]: [usize; 3],
        broadcast: BroadcastOperand<'_, A>,
        vector: VectorOperand<'_, A>,
        (out, out_row): (*mut A, usize),
        add: bool,
    ) {
        if rows == 0 || columns == 0 {
            return;
        }
        self.check([rows, columns, k], &broadcast, &vector, usize::MAX, out_row);
        let wide = 2 * self.lanes;
        let (whole, panels) = (columns / wide, columns.div_ceil(wide));
        let unit = usize::from(broadcast.k != 1);
        // More rows than a set has lines would be conflict misses.
        let tallest = if broadcast.aliased() && !self.whole_lines { WAYS } else { usize::MAX };
        let _tiles = self.acquire_tiles();
        for part in (0..rows).step_by(self.cached) {
            let end = rows.min(part + self.cached);
            for panel in 0..panels {
                let (heights, vector_k) =
                    if panel < whole { (&self.wide, vector.k) } else { (&self.narrow, vector.last) };
                let mut row = part;
                for (height, kernels) in heights.iter().filter(|(height, _)| *height <= tallest) {
                    while row + height <= end {
                        // SAFETY: the operands reach as far by `check`, and are not moved through if k is 0, the sums by the
                        // caller's promise; the kernels are those of an instruction set that this CPU has, with the tiles
                        // that they need.
                        unsafe {
                            kernels[unit](TileOperands {
                                k,
                                broadcast: broadcast.data.as_ptr().wrapping_add(row * broadcast.row),
                                broadcast_row: broadcast.row,
                                broadcast_k: broadcast.k,
                                vector: vector.data.as_ptr().wrapping_add(panel * vector.panel),
                                vector_k,
                                out: out.add(row * out_row + panel * wide),
                                out_row,
                                add,
                            });
                        }
                        row += height;
                    }
                }
            }
        }
    }

    /// Panics unless the operands of a product that is not empty reach as far as it does, and are such as the kernels take.
    fn check(
        &self,
        [rows, columns, k]: [usize; 3],
        broadcast: &BroadcastOperand<'_, A>,
        vector: &VectorOperand<'_, A>,
        out: usize,
        out_row: usize,
    ) {
        let wide = 2 * self.lanes;
        let (whole, narrow) = (columns / wide, columns % wide);
        assert!(narrow == 0 || narrow == self.lanes, "tile: {columns} columns, vectors of {}", self.lanes);
        let [row, along] = [broadcast.row, broadcast.k];
        assert!(row == 1 || along == 1, "tile: broadcast operand at distances {row} and {along}");
        let steps = self.step == 1 || k > 0 && k.is_multiple_of(self.step) && along == 1;
        assert!(steps, "tile: {k} elements along k at distance {along}, steps of {}", self.step);
        let sums = reach(&[(rows, out_row), (columns, 1)]);
        assert!(sums.is_some_and(|sums| out >= sums) && out_row >= columns, "tile: {out} sums at distance {out_row}");
        if k == 0 {
            return;
        }
        let needed = reach(&[(rows, row), (k, along)]);
        assert!(
            needed.is_some_and(|needed| broadcast.data.len() >= needed),
            "tile: {} elements in a broadcast operand [{rows}, {k}] at distances {row} and {along}",
            broadcast.data.len()
        );
        let body = if whole > 0 { reach(&[(whole, vector.panel), (k, vector.k), (wide, 1)]) } else { Some(0) };
        let tail =
            if narrow > 0 { reach(&[(whole + 1, vector.panel), (k, vector.last), (narrow, 1)]) } else { Some(0) };
        assert!(
            body.zip(tail).is_some_and(|(body, tail)| vector.data.len() >= body.max(tail)),
            "tile: {} elements in a vector operand [{k}, {columns}]",
            vector.data.len()
        );
    }
}
