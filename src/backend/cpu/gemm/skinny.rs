//! Skinny products, of a few rows, as when text is generated: the time goes into reading the weights.
//!
//! Packing would cost as much as the product, so the weights go from memory straight into registers, where squares of
//! them are transposed. An element of the result is the same chain of multiply-adds in the order of k as elsewhere. Threads
//! share the columns, [`COLUMNS`] at a time. What lies in elements of four bytes goes by [`lines`]: with AVX-512 up to 8 rows, since
//! the 16 that the tiles would take are then no faster. What is quantised is decoded first, [`COLUMNS`] at a time, or in registers: by
//! [`blocks`] where it lies row after row, by [`interleaved`] where it lies in groups of rows.

#[cfg(target_arch = "x86_64")]
mod blocks;
#[cfg(target_arch = "x86_64")]
mod interleaved;
#[cfg(target_arch = "x86_64")]
mod lines;

use super::super::isa::Isa;
#[cfg(target_arch = "x86_64")]
use super::super::{isa::InstructionSet, simd::Element, simd::Float, simd::Visit};
#[cfg(target_arch = "x86_64")]
use super::operand::Elements;
use super::operand::Operand;
#[cfg(target_arch = "x86_64")]
use super::tile::{BroadcastOperand, DEPTH};

/// Rows up to which this pays for operands of any dtype.
#[cfg(target_arch = "x86_64")]
const ROWS: usize = 4;
/// Columns of the result that most kernels compute at once, at most: four squares, the groups of one row.
pub const COLUMNS: usize = 32;

/// A product `sums [m, columns of the kernel] = left [m, k] right [columns, k]^T`.
pub struct SkinnyProduct<'a, A> {
    /// The result, of which `columns` columns are set.
    pub sums: &'a mut [A],
    /// Packed: for each block of k, `m` rows at distance [`DEPTH`](super::tile::DEPTH).
    pub left: &'a [A],
    /// Contiguous along k, and not to be rounded.
    pub right: Operand<'a, A>,
    /// How far behind the first column are those that the thread computes next, if there are any: they may be prefetched.
    pub next: Option<usize>,
    /// At most as many as the kernel takes.
    pub m: usize,
    /// At most as many as the kernel computes at once.
    pub columns: usize,
    /// Length of the sums.
    pub k: usize,
    /// Elements along k that are summed up before they are added to what came before; a multiple of 8.
    pub block: usize,
}

/// What computes a [`SkinnyProduct`].
pub type SkinnyKernel<A> = fn(SkinnyProduct<'_, A>);

/// What computes products of up to so many rows.
#[derive(Clone, Copy)]
pub struct Skinny<A> {
    /// Rows up to which this pays, ...
    pub rows: usize,
    /// ... and from which on, unless rows of the other operand share sets of the cache.
    pub from: usize,
    /// Columns of the result that it computes at once.
    pub columns: usize,
    /// What computes them.
    pub kernel: SkinnyKernel<A>,
}

/// What computes products with quantised operands as they are.
#[derive(Clone, Copy)]
pub struct Decoding<A> {
    /// Computes up to four rows against columns that it decodes.
    pub skinny: Skinny<A>,
    /// Whether it computes that with such an operand of so many elements along k.
    pub takes: fn(&Operand<'_, A>, usize) -> bool,
}

/// For operands of any dtype, if the instruction set has something for it.
pub fn skinny_f32(isa: Isa) -> Option<Skinny<f32>> {
    #[cfg(target_arch = "x86_64")]
    if isa.set() != InstructionSet::Plain {
        // The CPU has AVX2 and FMA, which all others include.
        let kernel = |product: SkinnyProduct<'_, f32>| match product.right.data {
            Elements::Floats(data) => f32::visit(data, Avx2(product)),
            Elements::Quantized(_) | Elements::Interleaved(_) => panic!("skinny: an operand that was not decoded"),
        };
        return Some(Skinny { rows: ROWS, from: 1, columns: COLUMNS, kernel });
    }
    let _ = isa;
    None
}

/// A kernel by [`lines`] for operands as a method gives them, in elements of four bytes that are so many along k.
#[cfg(target_arch = "x86_64")]
macro_rules! in_lines {
    ($operand:expr, $numbers:literal, $kernel:ident, $from:literal: $($rows:literal)*) => {
        Some(Skinny {
            rows: [$($rows),*].len(),
            from: $from,
            columns: COLUMNS,
            kernel: |product| {
                let right = $operand(&product).expect("skinny: an operand that does not lie as the kernel reads it");
                let product = SkinnyProduct { k: product.k / $numbers, block: product.block / $numbers, ..product };
                // SAFETY: `isa` is proof that the CPU has the instructions.
                unsafe { multiply(product, right.data, right.row, [$(lines::$kernel::<$rows>),*]) };
            },
        })
    };
}

/// For numbers that lie as the tiles read them.
pub fn skinny_lines(isa: Isa) -> Option<Skinny<f32>> {
    #[cfg(target_arch = "x86_64")]
    match isa.of_loops() {
        InstructionSet::Avx512 => return in_lines!(direct, 1, numbers_avx512, 1: 1 2 3 4 5 6 7 8),
        InstructionSet::Avx2 => return in_lines!(direct, 1, numbers_avx2, 1: 1 2 3 4),
        _ => {}
    }
    let _ = isa;
    None
}

/// For [halves](Operand::halves) of elements.
pub fn skinny_halves(isa: Isa) -> Option<Skinny<f32>> {
    #[cfg(target_arch = "x86_64")]
    match isa.of_loops() {
        InstructionSet::Avx512 => return in_lines!(halves, 2, halves_avx512, 1: 1 2 3 4 5 6 7 8),
        // One or two rows are bound by their chains of multiply-adds: 0.67 and 0.82 of the rate of groups of columns side by
        // side.
        InstructionSet::Avx2 => return in_lines!(halves, 2, halves_avx2, 3: 1 2 3 4),
        _ => {}
    }
    let _ = isa;
    None
}

/// For operands in pairs of bfloat16 that lie as the tiles read them.
pub fn skinny_pairs(isa: Isa) -> Option<Skinny<f32>> {
    #[cfg(target_arch = "x86_64")]
    if isa.set() == InstructionSet::Avx512Bf16 {
        return in_lines!(direct, 1, pairs_avx512, 1: 1 2 3 4 5 6 7 8);
    }
    let _ = isa;
    None
}

/// For quantised operands that it [takes](Decoding::takes), in pairs of bfloat16: they are decoded in registers.
pub fn skinny_decoding(isa: Isa) -> Option<Decoding<f32>> {
    #[cfg(target_arch = "x86_64")]
    if isa.set() == InstructionSet::Avx512Bf16 {
        return Some(Decoding {
            skinny: Skinny { rows: blocks::ROWS, from: 1, columns: COLUMNS, kernel: blocks::multiply },
            takes: blocks::takes,
        });
    }
    let _ = isa;
    None
}

/// For quantised operands in groups of rows, in pairs of bfloat16.
pub fn skinny_interleaved(isa: Isa) -> Option<Skinny<f32>> {
    #[cfg(target_arch = "x86_64")]
    if isa.set() == InstructionSet::Avx512Bf16 {
        let (rows, columns) = (interleaved::ROWS, super::super::interleaved::COLUMNS);
        return Some(Skinny { rows, from: 1, columns, kernel: interleaved::multiply });
    }
    let _ = isa;
    None
}

#[cfg(target_arch = "x86_64")]
fn direct<'a>(product: &SkinnyProduct<'a, f32>) -> Option<BroadcastOperand<'a, f32>> {
    product.right.direct()
}

#[cfg(target_arch = "x86_64")]
fn halves<'a>(product: &SkinnyProduct<'a, f32>) -> Option<BroadcastOperand<'a, f32>> {
    product.right.halves(product.k)
}

/// A product on a CPU that has AVX2 and FMA, or else this is not made.
#[cfg(target_arch = "x86_64")]
struct Avx2<'a>(SkinnyProduct<'a, f32>);

#[cfg(target_arch = "x86_64")]
impl Visit<f32> for Avx2<'_> {
    fn visit<S: Element<f32>>(self, data: &[S]) {
        let (from, stride) = (self.0.right.from, self.0.right.stride);
        let kernels: [Kernel<S>; ROWS] =
            [avx2::product::<S, 1, 4>, avx2::product::<S, 2, 2>, avx2::product::<S, 3, 2>, avx2::product::<S, 4, 2>];
        // SAFETY: the CPU has AVX2 and FMA.
        unsafe { multiply(self.0, &data[from..], stride, kernels) };
    }
}

/// A product of a number of rows: the result, the left operand, the right one, the distance of its rows, columns, k, block.
#[cfg(target_arch = "x86_64")]
type Kernel<S> = unsafe fn(*mut f32, *const f32, *const S, usize, usize, usize, usize);

/// The product with `data`, whose rows are at distance `stride`, by the kernels of 1 to `MOST` rows.
///
/// # Panics
/// If operands are too short.
///
/// # Safety
/// The CPU has the instructions of the kernels.
#[cfg(target_arch = "x86_64")]
unsafe fn multiply<S, const MOST: usize>(
    product: SkinnyProduct<'_, f32>,
    data: &[S],
    stride: usize,
    kernels: [Kernel<S>; MOST],
) {
    let SkinnyProduct { sums, left, m, columns, k, block, .. } = product;
    let packed = k.max(1).div_ceil(block).checked_mul(m * DEPTH);
    assert!(packed.is_some_and(|packed| left.len() >= packed), "skinny: {} of {packed:?} packed", left.len());
    assert!((1..=MOST).contains(&m), "skinny: {m} rows of at most {MOST}");
    assert!(sums.len() >= m * COLUMNS, "skinny: {} sums of {m} rows", sums.len());
    assert!((1..=COLUMNS).contains(&columns) && block <= DEPTH, "skinny: {columns} columns, blocks of {block}");
    let needed = (columns - 1).checked_mul(stride).and_then(|rows| rows.checked_add(k));
    assert!(needed.is_some_and(|needed| data.len() >= needed), "skinny: right operand of {} elements", data.len());
    // SAFETY: the operands reach as far by the checks above; the caller promises the instructions.
    unsafe { kernels[m - 1](sums.as_mut_ptr(), left.as_ptr(), data.as_ptr(), stride, columns, k, block) };
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use crate::backend::cpu::gemm::skinny::COLUMNS;
    use crate::backend::cpu::gemm::tile::DEPTH;
    use crate::backend::cpu::gemm::transpose::transpose_vectors;
    use crate::backend::cpu::simd::Element;

    /// Edge of a square, elements of a vector.
    const SQUARE: usize = 8;
    /// Elements ahead of the current ones that are prefetched.
    const AHEAD: usize = 128;

    /// # Safety
    /// The operands are as long as [`SkinnyProduct`](super::SkinnyProduct) says, with `M` rows, and the CPU has AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn product<S: Element<f32>, const M: usize, const GROUPS: usize>(
        out: *mut f32,
        left: *const f32,
        right: *const S,
        stride: usize,
        columns: usize,
        k: usize,
        block: usize,
    ) {
        // SAFETY: blocks and columns exist in the operands, columns behind the last repeat it, and rows of the result have
        // `COLUMNS` elements, a multiple of a vector's; the instructions are the caller's promise.
        unsafe {
            for first in (0..columns).step_by(GROUPS * SQUARE) {
                let mut rows = [[right; SQUARE]; GROUPS];
                for (i, row) in rows.as_flattened_mut().iter_mut().enumerate() {
                    // Lanes behind the last column repeat it, and are not stored.
                    *row = right.add((first + i).min(columns - 1) * stride);
                }
                let mut totals = [[_mm256_setzero_ps(); M]; GROUPS];
                for (index, k0) in (0..k).step_by(block).enumerate() {
                    let x = left.add(index * M * DEPTH);
                    let depth = block.min(k - k0);
                    let mut sums = [[_mm256_setzero_ps(); M]; GROUPS];
                    // Two squares side by side use up a line of the cache; the groups' chains overlap.
                    let whole = depth - depth % (2 * SQUARE);
                    for p in (0..whole).step_by(2 * SQUARE) {
                        for (sums, rows) in sums.iter_mut().zip(&rows) {
                            for row in rows {
                                let ahead = row.wrapping_add(k0 + p + AHEAD).cast();
                                // Rows that share sets of the first level would be conflict misses before their turn; narrow
                                // elements, which are fewer lines, had better be there all the same.
                                match size_of::<S>() < size_of::<f32>() {
                                    true => _mm_prefetch::<_MM_HINT_T0>(ahead),
                                    false => _mm_prefetch::<_MM_HINT_T1>(ahead),
                                }
                            }
                            step::<S, M>(sums, x.add(p), rows, k0 + p, SQUARE);
                            step::<S, M>(sums, x.add(p + SQUARE), rows, k0 + p + SQUARE, SQUARE);
                        }
                    }
                    for p in (whole..depth).step_by(SQUARE) {
                        for (sums, rows) in sums.iter_mut().zip(&rows) {
                            step::<S, M>(sums, x.add(p), rows, k0 + p, SQUARE.min(depth - p));
                        }
                    }
                    for (total, sum) in totals.as_flattened_mut().iter_mut().zip(sums.as_flattened()) {
                        *total = if k0 == 0 { *sum } else { _mm256_add_ps(*total, *sum) };
                    }
                }
                for (group, totals) in totals.iter().enumerate() {
                    for (row, total) in totals.iter().enumerate() {
                        let column = first + group * SQUARE;
                        if column < COLUMNS {
                            _mm256_storeu_ps(out.add(row * COLUMNS + column), *total);
                        }
                    }
                }
            }
        }
    }

    /// `sums += x [M, count] rows [8, count]^T`, where the rows begin at `p`.
    ///
    /// # Safety
    /// The operands have `count <= 8` elements, and the CPU has AVX2 and FMA.
    #[inline(always)]
    unsafe fn step<S: Element<f32>, const M: usize>(
        sums: &mut [__m256; M],
        x: *const f32,
        rows: &[*const S; SQUARE],
        p: usize,
        count: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut square = [_mm256_setzero_ps(); SQUARE];
            for (vector, row) in square.iter_mut().zip(rows) {
                let mut wide = [0.0; SQUARE];
                if count == SQUARE {
                    let stored = row.add(p).cast::<[S; SQUARE]>().read_unaligned();
                    for (w, s) in wide.iter_mut().zip(stored) {
                        *w = s.widen();
                    }
                } else {
                    for (i, w) in wide.iter_mut().enumerate().take(count) {
                        *w = (*row.add(p + i)).widen();
                    }
                }
                *vector = _mm256_loadu_ps(wide.as_ptr());
            }
            for (i, lane) in transpose_vectors(square).into_iter().enumerate().take(count) {
                for (row, sum) in sums.iter_mut().enumerate() {
                    let x = _mm256_broadcast_ss(&*x.add(row * DEPTH + i));
                    *sum = _mm256_fmadd_ps(x, lane, *sum);
                }
            }
        }
    }
}
