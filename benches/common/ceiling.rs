//! What the processor can do at best, on all threads: multiply-adds in registers, and reading and copying memory.

use std::hint::black_box;
use std::sync::OnceLock;
use std::time::Instant;

use llamaprobe::backend::cpu::Isa;
use rayon::prelude::*;

use super::{Subject, subject};

/// Accumulators: enough to hide the latency of an addition in two pipes, and no more than registers hold.
const CHAINS: usize = 12;

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

/// Steps on the widest vectors; returns what depends on them, and the lanes of a vector.
fn best_vectors(steps: usize) -> (f32, usize) {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the instructions were detected.
            return (unsafe { avx512(steps) }, 16);
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: as above.
            return (unsafe { avx2(steps) }, 8);
        }
    }
    (plain(steps), 4)
}

/// What is multiplied.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub enum Factors {
    /// Numbers in single precision.
    Single,
    /// Pairs of bfloat16, where the backend multiplies those in vectors.
    Pairs,
}

/// Multiply-adds on some threads; returns the floating-point operations done.
pub fn multiply_add(factors: Factors, steps: usize, threads: usize) -> u64 {
    let work = |_| {
        #[cfg(target_arch = "x86_64")]
        if factors == Factors::Pairs {
            // SAFETY: the caller found the instructions.
            black_box(unsafe { pairs(steps) });
            return (4 * steps * CHAINS * 16) as u64;
        }
        let (sum, lanes) = best_vectors(steps);
        black_box(sum);
        (2 * steps * CHAINS * lanes) as u64
    };
    (0..threads).into_par_iter().map(work).sum()
}

/// What the backend multiplies weights in, for a group's dtype. (In tiles, the ceiling is that of single precision still.)
pub fn factors(group: &str) -> Factors {
    match Isa::detect().name() {
        "avx512bf16" if group.contains("bf16") => Factors::Pairs,
        _ => Factors::Single,
    }
}

/// Two stretches of memory that no cache holds.
pub fn stretches() -> [Vec<f32>; 2] {
    let len = if subject() == Subject::Tiny { 1 << 16 } else { 1 << 27 };
    [vec![1.0; len], vec![0.0; len]]
}

/// Reads a stretch; returns its bytes.
pub fn read(from: &[f32]) -> u64 {
    let sum = |part: &[f32]| part.as_chunks::<64>().0.iter().map(|x| x[0] + x[16] + x[32] + x[48]).sum::<f32>();
    black_box(from.par_chunks(part(from)).map(sum).sum::<f32>());
    size_of_val(from) as u64
}

/// Copies a stretch; returns the bytes read and written.
pub fn copy(to: &mut [f32], from: &[f32]) -> u64 {
    let parts = to.par_chunks_mut(part(from)).zip(from.par_chunks(part(from)));
    parts.for_each(|(to, from)| to.copy_from_slice(from));
    2 * size_of_val(from) as u64
}

fn part(from: &[f32]) -> usize {
    from.len().div_ceil(rayon::current_num_threads())
}

/// The best rate of something over a few repetitions, in whatever it returns a second.
fn best(mut f: impl FnMut() -> u64) -> f64 {
    let rate = |_| {
        let start = Instant::now();
        f() as f64 / start.elapsed().as_secs_f64()
    };
    (0..5).map(rate).fold(0.0, f64::max)
}

impl Factors {
    /// What the ceiling is of.
    pub fn name(self) -> &'static str {
        match self {
            Self::Single => "multiply-adds in f32",
            Self::Pairs => "multiply-adds of pairs of bf16",
        }
    }
}

/// Floating-point operations a second that the products of a group could do; measured once in a run.
pub fn of_products(group: &str) -> f64 {
    static RATES: [OnceLock<f64>; 2] = [const { OnceLock::new() }; 2];
    let steps = if subject() == Subject::Tiny { 1 << 16 } else { 1 << 20 };
    let factors = factors(group);
    *RATES[factors as usize].get_or_init(|| best(|| multiply_add(factors, steps, rayon::current_num_threads())))
}

/// Bytes a second that memory gives, read or copied, whichever is more; measured once in a run.
pub fn of_memory() -> f64 {
    static MEMORY: OnceLock<f64> = OnceLock::new();
    *MEMORY.get_or_init(|| {
        let [from, mut to] = stretches();
        best(|| read(&from)).max(best(|| copy(&mut to, &from)))
    })
}
