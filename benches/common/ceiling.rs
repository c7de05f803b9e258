//! What the processor can do at best, on all threads: multiply-adds in registers, and reading and copying memory.

use std::hint::black_box;
use std::sync::OnceLock;
use std::time::Instant;

use llamaprobe::backend::cpu::{InstructionSet, Isa};
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

/// Multiply-adds in the tiles of AMX: blocks of two tiles each way, whose operands stay in registers, or come from memory that
/// a cache holds.
#[cfg(target_arch = "x86_64")]
mod tiles {
    use std::arch::asm;

    /// What LDTILECFG loads: eight registers of 16 rows of 64 bytes.
    #[repr(C, align(64))]
    struct Shapes([u8; 64]);

    /// Bytes of a register.
    const TILE: usize = 1024;
    /// Bytes of the operands of a step: two registers of each.
    const STEP: usize = 4 * TILE;
    /// Floating-point operations of a step: four products of 16 x 16 x 32.
    pub const FLOPS: usize = 4 * 2 * 16 * 16 * 32;

    /// Lines that begin lines of the cache, of pairs of bfloat16, all 0.5.
    #[repr(C, align(64))]
    #[derive(Clone, Copy)]
    pub struct Line([u32; 16]);

    /// Operands of as many bytes, a whole number of steps.
    pub fn operands(bytes: usize) -> Vec<Line> {
        vec![Line([0x3f00_3f00; 16]); bytes / STEP * STEP / size_of::<Line>()]
    }

    fn shapes() -> Shapes {
        let mut shapes = Shapes([0; 64]);
        shapes.0[0] = 1;
        for register in 0..8 {
            shapes.0[16 + 2 * register] = 64;
            shapes.0[48 + register] = 16;
        }
        shapes
    }

    /// `steps` products of blocks, in whole rounds over the operands if these are read at each.
    ///
    /// # Panics
    /// If there are no operands, or parts of a round.
    ///
    /// # Safety
    /// The processor has AMX, and this process may use it.
    pub unsafe fn multiply(steps: usize, operands: &[Line], reads: bool) {
        let round = if reads { size_of_val(operands) / STEP } else { 1 };
        assert!(size_of_val(operands) >= STEP && steps > 0 && steps.is_multiple_of(round), "{steps} steps");
        // SAFETY: tiles are read from the operands, whose steps are counted, and belong to this block; the caller promises AMX.
        unsafe {
            asm!(
                "ldtilecfg [{shapes}]",
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "tileloadd tmm4, [{from} + {line}*1]",
                "tileloadd tmm5, [{from} + {line}*1 + 1024]",
                "tileloadd tmm6, [{from} + {line}*1 + 2048]",
                "tileloadd tmm7, [{from} + {line}*1 + 3072]",
                "2:",
                "mov {at}, {from}",
                "mov {left}, {round}",
                "3:",
                "test {reads}, {reads}",
                "jz 4f",
                "tileloadd tmm4, [{at} + {line}*1]",
                "tileloadd tmm6, [{at} + {line}*1 + 2048]",
                "tileloadd tmm7, [{at} + {line}*1 + 3072]",
                "tileloadd tmm5, [{at} + {line}*1 + 1024]",
                "add {at}, 4096",
                "4:",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "dec {left}",
                "jnz 3b",
                "sub {steps}, {round}",
                "ja 2b",
                "tilerelease",
                shapes = in(reg) &shapes(),
                from = in(reg) operands.as_ptr(),
                line = in(reg) size_of::<Line>(),
                reads = in(reg) usize::from(reads),
                round = in(reg) round,
                at = out(reg) _,
                left = out(reg) _,
                steps = inout(reg) steps => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

/// Multiply-adds in tiles on some threads, over operands of as many bytes each, read at every step if `reads`; returns the
/// floating-point operations done.
///
/// # Panics
/// If the backend does not multiply in tiles here.
#[cfg(target_arch = "x86_64")]
pub fn multiply_add_tiles(bytes: usize, reads: bool, steps: usize, threads: usize) -> u64 {
    assert!(factors("bf16") == Factors::Tiles, "no tiles");
    let work = |_| {
        let operands = tiles::operands(bytes);
        // SAFETY: the backend found AMX, and asked for it.
        unsafe { tiles::multiply(steps, &operands, reads) };
        (tiles::FLOPS * steps) as u64
    };
    (0..threads).into_par_iter().map(work).sum()
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub enum Factors {
    /// Numbers in single precision.
    Single,
    /// Pairs of bfloat16, where the backend multiplies those in vectors.
    Pairs,
    /// Pairs of bfloat16, where the backend multiplies those in the tiles of AMX.
    Tiles,
}

/// Bytes of operands that stay in registers.
#[cfg(target_arch = "x86_64")]
const TILE_OPERANDS: usize = 4096;

/// Multiply-adds on some threads; returns the floating-point operations done.
pub fn multiply_add(factors: Factors, steps: usize, threads: usize) -> u64 {
    let work = |_| {
        #[cfg(target_arch = "x86_64")]
        if factors == Factors::Tiles {
            return multiply_add_tiles(TILE_OPERANDS, false, steps, 1);
        }
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

/// What the backend multiplies weights in, for a group's dtype.
pub fn factors(group: &str) -> Factors {
    match Isa::detect().set() {
        InstructionSet::Avx512Bf16 if group.contains("bf16") => Factors::Pairs,
        InstructionSet::Amx if group.contains("bf16") => Factors::Tiles,
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
            Self::Tiles => "multiply-adds of bf16 in tiles",
        }
    }
}

/// Floating-point operations a second that the products of a group could do; measured once in a run.
pub fn of_products(group: &str) -> f64 {
    static RATES: [OnceLock<f64>; 3] = [const { OnceLock::new() }; 3];
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
