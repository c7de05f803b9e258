//! Instruction sets, and which of them this processor has.

use std::sync::OnceLock;

/// An instruction set that loops are compiled for; each of an architecture includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// What every processor of the architecture has.
    Plain,
    /// NEON, with multiply-adds: every 64-bit ARM processor.
    Neon,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// The same with products of pairs of bfloat16 in vectors.
    Avx512Bf16,
    /// The same with products of pairs of bfloat16 in tiles.
    Amx,
}

/// What a processor has, the plainest first, and which of it is best.
struct Found {
    available: Vec<Isa>,
    best: Isa,
}

impl Isa {
    /// The best of this processor.
    pub fn detect() -> Self {
        found().best
    }

    /// The one that plain loops are compiled for.
    pub(super) fn of_loops(self) -> Self {
        match self {
            Self::Avx512Bf16 | Self::Amx => Self::Avx512,
            other => other,
        }
    }

    /// Its name, as `LLAMAPROBE_ISA` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512bf16",
            Self::Amx => "amx",
        }
    }

    /// Whether it multiplies pairs of bfloat16.
    pub fn has_pairs(self) -> bool {
        matches!(self, Self::Avx512Bf16 | Self::Amx)
    }

    /// Those this processor has, the plainest first.
    pub fn available() -> &'static [Self] {
        &found().available
    }
}

fn found() -> &'static Found {
    static FOUND: OnceLock<Found> = OnceLock::new();
    FOUND.get_or_init(|| {
        let found = Found { available: vec![Isa::Plain], best: Isa::Plain };
        #[cfg(target_arch = "x86_64")]
        let found = x86::look(found);
        #[cfg(target_arch = "aarch64")]
        let found = Found { available: [found.available, vec![Isa::Neon]].concat(), best: Isa::Neon };
        found
    })
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{__cpuid, __cpuid_count};

    use super::{Found, Isa};

    pub fn look(mut found: Found) -> Found {
        let mut has = |isa: Isa, here: bool, best: bool| {
            if here {
                found.available.push(isa);
                if best {
                    found.best = isa;
                }
            }
            here
        };
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        if !has(Isa::Avx2, avx2, true) || !has(Isa::Avx512, avx512, true) {
            return found;
        }
        // Intel's cores multiply pairs at half the rate of single precision, unless in tiles; AMD's at twice the rate.
        let pairs = has(Isa::Avx512Bf16, is_x86_feature_detected!("avx512bf16"), by_amd());
        has(Isa::Amx, pairs && amx(), true);
        found
    }

    fn by_amd() -> bool {
        let id = __cpuid(0);
        [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
    }

    /// Whether there are tiles with products of bfloat16, and the system lets this process use them, which it must be
    /// asked for: the state of tiles is large.
    fn amx() -> bool {
        const BF16: u32 = 1 << 22;
        const TILE: u32 = 1 << 24;
        __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & (BF16 | TILE) == BF16 | TILE && permitted()
    }

    #[cfg(target_os = "linux")]
    fn permitted() -> bool {
        const REQUEST_STATE: libc::c_ulong = 0x1023;
        const TILE_DATA: libc::c_ulong = 18;
        // SAFETY: the call reads no memory; a kernel that does not know it says so.
        unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_STATE, TILE_DATA) == 0 }
    }

    #[cfg(not(target_os = "linux"))]
    fn permitted() -> bool {
        false
    }
}

#[cfg(test)]
pub mod tests {
    use super::Isa;

    /// Those of this processor, and tiles that are emulated where it has none.
    pub fn isas() -> Vec<Isa> {
        let isas = Isa::available().to_vec();
        #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
        if !isas.contains(&Isa::Avx512Bf16) {
            eprintln!("skipped: the tiles of AMX, around which is AVX512-BF16, which this processor has not");
        } else if !isas.contains(&Isa::Amx) {
            crate::backend::cpu::amx::emulator::install();
            return [isas, vec![Isa::Amx]].concat();
        }
        isas
    }
}
