//! What the CPU can do at best: multiply-adds in registers, and reading and copying memory.
//!
//! Profiles and benches say which share of it they reach. Measured anew each time, in some tenths of a second, since a
//! machine that is shared is not the same an hour later; the best of five, since others can only slow it down.

use std::hint::black_box;
use std::time::Instant;

use super::isa::{InstructionSet, Isa};
use super::parallel::{Shared, workers};
use super::thread_pool::ThreadPool;
use super::{CpuSettings, Kernels};
use crate::arch::Dtype;
use crate::backend::profile::Ceiling;

/// Accumulators: enough to hide the latency of an addition in two pipes, and no more than registers hold.
const CHAINS: usize = 12;
/// Steps of all chains in one measurement.
const STEPS: usize = 1 << 19;
/// Elements of a stretch of memory that no cache holds: 128 MiB.
const STRETCH: usize = 1 << 25;
/// Measurements, of which the best counts.
const TIMES: usize = 5;

/// In what products are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Factors {
    /// Numbers in single precision, in vectors.
    Single,
    /// Pairs of bfloat16, in vectors.
    Pairs,
    /// Pairs of bfloat16, in tiles.
    Tiles,
}

impl Factors {
    /// What the backend multiplies weights in, in this compute dtype; what has no kernels of its own is widened.
    pub fn of(isa: Isa, dtype: Dtype) -> Self {
        match (isa.set(), dtype) {
            (InstructionSet::Amx, Dtype::BF16) => Self::Tiles,
            (InstructionSet::Avx512Bf16, Dtype::BF16) => Self::Pairs,
            _ => Self::Single,
        }
    }

    /// What the ceiling is of.
    pub fn name(self) -> &'static str {
        match self {
            Self::Single => "multiply-adds in f32",
            Self::Pairs => "multiply-adds of pairs of bf16",
            Self::Tiles => "multiply-adds of pairs of bf16 in tiles",
        }
    }
}

/// Steps of all chains of vectors; what is returned depends on every one.
#[cfg(target_arch = "x86_64")]
macro_rules! chains {
    ($name:ident, $features:literal, $set:ident, $multiply_add:ident, $first:ident) => {
        #[target_feature(enable = $features)]
        fn $name(steps: usize) -> f32 {
            use std::arch::x86_64::{$first, $multiply_add, $set};
            let (by, plus) = ($set(black_box(0.999)), $set(black_box(1e-3)));
            let mut sums = [$set(1.0); CHAINS];
            for _ in 0..steps {
                for sum in &mut sums {
                    *sum = $multiply_add(*sum, by, plus);
                }
            }
            sums.into_iter().map(|sum| $first(sum)).sum()
        }
    };
}

#[cfg(target_arch = "x86_64")]
chains!(avx512, "avx512f", _mm512_set1_ps, _mm512_fmadd_ps, _mm512_cvtss_f32);
#[cfg(target_arch = "x86_64")]
chains!(avx2, "avx2,fma", _mm256_set1_ps, _mm256_fmadd_ps, _mm256_cvtss_f32);

/// Steps of all chains of pairs of bfloat16; as above.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn pairs(steps: usize) -> f32 {
    use std::arch::x86_64::{_mm512_cvtss_f32, _mm512_dpbf16_ps, _mm512_set1_epi32, _mm512_set1_ps};
    // Both of a pair are 0.5.
    let by = _mm512_set1_epi32(black_box(0x3f00_3f00));
    // SAFETY: both types are 512 bits.
    let by = unsafe { std::mem::transmute::<std::arch::x86_64::__m512i, std::arch::x86_64::__m512bh>(by) };
    let mut sums = [_mm512_set1_ps(1.0); CHAINS];
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, by, by);
        }
    }
    sums.into_iter().map(|sum| _mm512_cvtss_f32(sum)).sum()
}

/// Tile registers that are summed in; two more hold the factors.
#[cfg(target_arch = "x86_64")]
const TILE_CHAINS: usize = 6;

/// Steps of all chains of tiles, whose factors are zeros.
///
/// # Safety
/// This thread has AMX's tiles, of 16 rows of 64 bytes.
#[cfg(target_arch = "x86_64")]
unsafe fn tiles(steps: usize) {
    // SAFETY: the caller's promise; nothing but tile registers is written.
    unsafe {
        std::arch::asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
            "2:",
            "tdpbf16ps tmm0, tmm6, tmm7",
            "tdpbf16ps tmm1, tmm6, tmm7",
            "tdpbf16ps tmm2, tmm6, tmm7",
            "tdpbf16ps tmm3, tmm6, tmm7",
            "tdpbf16ps tmm4, tmm6, tmm7",
            "tdpbf16ps tmm5, tmm6, tmm7",
            "dec {steps}",
            "jnz 2b",
            steps = inout(reg) steps.max(1) => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, nomem),
        );
    }
}

/// Without instructions that we know: lanes of 4, as the compiler sees fit.
fn plain(steps: usize) -> f32 {
    let (by, plus) = (black_box(0.999_f32), black_box(1e-3_f32));
    let mut sums = [[1.0f32; 4]; CHAINS];
    for _ in 0..steps {
        for x in sums.as_flattened_mut() {
            *x = *x * by + plus;
        }
    }
    sums.iter().flatten().sum()
}

/// So many steps on this thread, of an instruction set that has the factors; returns the floating-point operations done.
fn steps_of(factors: Factors, isa: Isa, steps: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    match (factors, isa.of_loops()) {
        (Factors::Tiles, _) => {
            let _tiles = f32::kernels(isa).pair_tiles.and_then(|tiles| tiles.acquire_tiles());
            assert!(_tiles.is_some(), "ceiling: {} has no tiles", isa.name());
            // A step of a chain takes as long as sixteen of vectors.
            let steps = steps.div_ceil(16);
            // SAFETY: the guard above is that of this thread.
            unsafe { tiles(steps) };
            return 2 * steps * TILE_CHAINS * 16 * 16 * 32;
        }
        (Factors::Pairs, _) => {
            assert!(isa.has_pairs(), "ceiling: {} has no pairs in vectors", isa.name());
            // SAFETY: an `Isa` is proof that the CPU has the instructions.
            black_box(unsafe { pairs(steps) });
            return 4 * steps * CHAINS * 16;
        }
        (Factors::Single, InstructionSet::Avx512) => {
            // SAFETY: as above.
            black_box(unsafe { avx512(steps) });
            return 2 * steps * CHAINS * 16;
        }
        (Factors::Single, InstructionSet::Avx2) => {
            // SAFETY: as above.
            black_box(unsafe { avx2(steps) });
            return 2 * steps * CHAINS * 8;
        }
        _ => {}
    }
    assert!(factors == Factors::Single, "ceiling: {} has no {}", isa.name(), factors.name());
    black_box(plain(steps));
    2 * steps * CHAINS * 4
}

/// Multiply-adds in registers, on all threads of a pool; returns the floating-point operations done.
///
/// # Panics
/// If the instruction set does not have the factors.
pub fn multiply_add(pool: &ThreadPool, isa: Isa, factors: Factors, steps: usize) -> u64 {
    let mut done = vec![0; pool.threads()];
    let tasks = done.len();
    // A thread that is late leaves its share to the others, which only lowers the rate.
    workers(pool, &mut done, tasks, |done, _| *done += steps_of(factors, isa, steps));
    done.iter().sum::<usize>() as u64
}

/// Two stretches of memory that no cache holds, of so many elements each.
pub fn stretches(len: usize) -> [Vec<f32>; 2] {
    [vec![1.0; len], vec![0.0; len]]
}

/// Elements of each of `threads` parts.
fn part(len: usize, threads: usize) -> usize {
    len.div_ceil(threads).max(1)
}

/// Reads a stretch on all threads of a pool; returns its bytes.
pub fn read(pool: &ThreadPool, from: &[f32]) -> u64 {
    let part = part(from.len(), pool.threads());
    let mut sums = vec![0.0; pool.threads()];
    let tasks = from.len().div_ceil(part);
    let sum = |part: &[f32]| part.as_chunks::<64>().0.iter().map(|x| x[0] + x[16] + x[32] + x[48]).sum::<f32>();
    workers(pool, &mut sums, tasks, |to, i| *to += sum(&from[i * part..from.len().min((i + 1) * part)]));
    black_box(sums);
    size_of_val(from) as u64
}

/// Copies a stretch on all threads of a pool; returns the bytes read and written.
///
/// # Panics
/// If they differ in length.
pub fn copy(pool: &ThreadPool, to: &mut [f32], from: &[f32]) -> u64 {
    assert!(to.len() == from.len(), "copy: {} elements of {}", to.len(), from.len());
    let part = part(from.len(), pool.threads());
    let tasks = from.len().div_ceil(part);
    let to = Shared::new(to);
    let mut slots = vec![(); pool.threads()];
    workers(pool, &mut slots, tasks, |(), i| {
        let from = &from[i * part..from.len().min((i + 1) * part)];
        // SAFETY: a task is run once, and has a part of its own.
        unsafe { to.at(i * part, from.len()) }.copy_from_slice(from);
    });
    2 * size_of_val(from) as u64
}

/// The best rate of something over a few repetitions, in whatever it returns a second.
pub fn best(mut f: impl FnMut() -> u64) -> f64 {
    let rate = |_| {
        let start = Instant::now();
        f() as f64 / start.elapsed().as_secs_f64()
    };
    (0..TIMES).map(rate).fold(0.0, f64::max)
}

/// What the CPU can do at best, used as a backend opened so uses it.
pub fn ceiling(settings: &CpuSettings) -> Ceiling {
    let CpuSettings { dtype, threads, isa, .. } = *settings;
    let pool = ThreadPool::new(threads);
    let factors = Factors::of(isa, dtype);
    let flops = best(|| multiply_add(&pool, isa, factors, STEPS));
    let [from, mut to] = stretches(STRETCH);
    let read = best(|| read(&pool, &from));
    Ceiling { flops, bytes: read.max(best(|| copy(&pool, &mut to, &from))) }
}

#[cfg(test)]
mod tests {
    use super::super::isa::tests::isas;
    use super::*;

    #[test]
    fn multiply_adds_are_counted_and_memory_is_read_and_copied() {
        let pool = ThreadPool::new(2);
        for isa in isas() {
            let lanes = match isa.of_loops() {
                InstructionSet::Avx512 => 16,
                InstructionSet::Avx2 => 8,
                _ => 4,
            };
            let of_step = |factors| match factors {
                Factors::Single => 2 * CHAINS * lanes,
                Factors::Pairs => 4 * CHAINS * 16,
                // Six products of 16 by 32 by 16, every sixteenth step.
                Factors::Tiles => 6 * 2 * 16 * 32 * 16 / 16,
            };
            for factors in [Factors::Single, Factors::of(isa, Dtype::BF16)] {
                let done = multiply_add(&pool, isa, factors, 32);
                assert_eq!(done, (2 * 32 * of_step(factors)) as u64, "{isa:?} {factors:?}");
            }
        }
        let [from, mut to] = stretches(1000);
        assert_eq!((read(&pool, &from), copy(&pool, &mut to, &from)), (4000, 8000));
        assert_eq!(to, from);
    }

    #[test]
    #[should_panic(expected = "ceiling: plain has no pairs in vectors")]
    fn factors_that_an_instruction_set_has_not_are_refused() {
        multiply_add(&ThreadPool::alone(), Isa::PLAIN, Factors::Pairs, 1);
    }
}
