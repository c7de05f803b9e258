//! What the CPU can do at best ([`llamaprobe::backend::cpu::ceiling`]), for the groups of the benches.

use std::sync::OnceLock;

use llamaprobe::arch::Dtype;
use llamaprobe::backend::cpu::{self, Factors, Isa, ThreadPool};

#[cfg(target_arch = "x86_64")]
use rayon::prelude::*;

use super::{Subject, subject};

/// A pool of so many threads.
pub fn pool(threads: usize) -> ThreadPool {
    ThreadPool::new(threads)
}

/// Multiply-adds on some threads; returns the floating-point operations done.
pub fn multiply_add(factors: Factors, steps: usize, pool: &ThreadPool) -> u64 {
    cpu::multiply_add(pool, Isa::detect(), factors, steps)
}

/// What the backend multiplies weights in, for a group's dtype.
pub fn factors(group: &str) -> Factors {
    Factors::of(Isa::detect(), if group.contains("bf16") { Dtype::BF16 } else { Dtype::F32 })
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

    /// `steps` products of blocks, in whole rounds over the operands.
    ///
    /// # Panics
    /// If there are no operands, or parts of a round.
    ///
    /// # Safety
    /// The CPU has AMX, and this process may use it.
    pub unsafe fn multiply(steps: usize, operands: &[Line]) {
        let round = size_of_val(operands) / STEP;
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
                "tileloadd tmm4, [{at} + {line}*1]",
                "tileloadd tmm6, [{at} + {line}*1 + 2048]",
                "tileloadd tmm7, [{at} + {line}*1 + 3072]",
                "tileloadd tmm5, [{at} + {line}*1 + 1024]",
                "add {at}, 4096",
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

/// Multiply-adds in tiles on some threads, over operands of as many bytes each, read at every step; returns the
/// floating-point operations done.
///
/// # Panics
/// If the backend does not multiply in tiles here.
#[cfg(target_arch = "x86_64")]
pub fn multiply_add_tiles(bytes: usize, steps: usize, threads: usize) -> u64 {
    assert!(factors("bf16") == Factors::Tiles, "no tiles");
    let work = |_| {
        let operands = tiles::operands(bytes);
        // SAFETY: the backend found AMX, and asked for it.
        unsafe { tiles::multiply(steps, &operands) };
        (tiles::FLOPS * steps) as u64
    };
    (0..threads).into_par_iter().map(work).sum()
}

/// Two stretches of memory that no cache holds.
pub fn stretches() -> [Vec<f32>; 2] {
    cpu::stretches(if subject() == Subject::Tiny { 1 << 16 } else { 1 << 27 })
}

/// Floating-point operations a second that the products of a group could do; measured once in a run.
pub fn of_products(group: &str) -> f64 {
    static RATES: [OnceLock<f64>; 3] = [const { OnceLock::new() }; 3];
    let steps = if subject() == Subject::Tiny { 1 << 16 } else { 1 << 20 };
    let (factors, pool) = (factors(group), pool(rayon::current_num_threads()));
    *RATES[factors as usize].get_or_init(|| cpu::best(|| multiply_add(factors, steps, &pool)))
}

/// Bytes a second that memory gives, read or copied, whichever is more; measured once in a run.
pub fn of_memory() -> f64 {
    static MEMORY: OnceLock<f64> = OnceLock::new();
    *MEMORY.get_or_init(|| {
        let ([from, mut to], pool) = (stretches(), pool(rayon::current_num_threads()));
        cpu::best(|| cpu::read(&pool, &from)).max(cpu::best(|| cpu::copy(&pool, &mut to, &from)))
    })
}
