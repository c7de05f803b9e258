//! Instruction sets, and proof of which of them this CPU has.

use std::fmt;
use std::sync::OnceLock;

/// An instruction set that loops are compiled for; each of an architecture includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstructionSet {
    /// What every CPU of the architecture has.
    Plain,
    /// NEON, with multiply-adds: every 64-bit ARM CPU.
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

/// Proof that this CPU has an instruction set. Safe functions execute its instructions for whoever holds one, so it
/// is only made by detection.
///
/// ```
/// use llamaprobe::backend::cpu::{InstructionSet, Isa};
/// assert_eq!(Isa::PLAIN.set(), InstructionSet::Plain);
/// ```
///
/// Nobody else says what the CPU has:
///
/// ```compile_fail,E0423
/// use llamaprobe::backend::cpu::{InstructionSet, Isa};
/// let isa = Isa(InstructionSet::Amx);
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Isa(InstructionSet);

/// What a CPU has, the plainest first, and which of it is best.
struct Detected {
    available: Vec<Isa>,
    best: Isa,
}

impl Isa {
    /// What every CPU has.
    pub const PLAIN: Self = Self(InstructionSet::Plain);

    /// The best of this CPU.
    pub fn detect() -> Self {
        detected().best
    }

    /// Those this CPU has, the plainest first.
    pub fn available() -> &'static [Self] {
        &detected().available
    }

    /// That of a [`name`](Self::name), if this CPU has it.
    pub fn named(name: &str) -> Option<Self> {
        Self::available().iter().copied().find(|isa| isa.name() == name)
    }

    /// Which it is.
    pub fn set(self) -> InstructionSet {
        self.0
    }

    /// The one that plain loops are compiled for.
    pub(super) fn of_loops(self) -> InstructionSet {
        match self.0 {
            InstructionSet::Avx512Bf16 | InstructionSet::Amx => InstructionSet::Avx512,
            other => other,
        }
    }

    /// As `LLAMAPROBE_ISA` has it: `avx512bf16`.
    pub fn name(self) -> &'static str {
        match self.0 {
            InstructionSet::Plain => "plain",
            InstructionSet::Neon => "neon",
            InstructionSet::Avx2 => "avx2",
            InstructionSet::Avx512 => "avx512",
            InstructionSet::Avx512Bf16 => "avx512bf16",
            InstructionSet::Amx => "amx",
        }
    }

    /// Whether it multiplies pairs of bfloat16.
    pub fn has_pairs(self) -> bool {
        matches!(self.0, InstructionSet::Avx512Bf16 | InstructionSet::Amx)
    }
}

impl fmt::Debug for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn detected() -> &'static Detected {
    static DETECTED: OnceLock<Detected> = OnceLock::new();
    DETECTED.get_or_init(|| {
        let detected = Detected { available: vec![Isa::PLAIN], best: Isa::PLAIN };
        #[cfg(target_arch = "x86_64")]
        let detected = x86::detect(detected);
        #[cfg(target_arch = "aarch64")]
        let detected = {
            let neon = Isa(InstructionSet::Neon);
            Detected { available: [detected.available, vec![neon]].concat(), best: neon }
        };
        detected
    })
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{__cpuid, __cpuid_count};

    use super::{Detected, InstructionSet, Isa};

    pub fn detect(mut detected: Detected) -> Detected {
        let mut has = |set: InstructionSet, here: bool, best: bool| {
            if here {
                detected.available.push(Isa(set));
                if best {
                    detected.best = Isa(set);
                }
            }
            here
        };
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        if !has(InstructionSet::Avx2, avx2, true) || !has(InstructionSet::Avx512, avx512, true) {
            return detected;
        }
        // Intel's cores multiply pairs at half the rate of single precision, unless in tiles; AMD's at twice the rate.
        let pairs = has(InstructionSet::Avx512Bf16, is_x86_feature_detected!("avx512bf16"), by_amd());
        has(InstructionSet::Amx, pairs && amx(), true);
        detected
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
    use super::*;

    impl Isa {
        /// # Safety
        /// Something executes the instructions: the CPU, or an emulator.
        pub unsafe fn assume(set: InstructionSet) -> Self {
            Self(set)
        }
    }

    /// Those of this CPU, and tiles that are emulated where it has none.
    pub fn isas() -> Vec<Isa> {
        let isas = Isa::available().to_vec();
        #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
        if !isas.iter().any(|isa| isa.set() == InstructionSet::Avx512Bf16) {
            eprintln!("skipped: the tiles of AMX, around which is AVX512-BF16, which this CPU has not");
        } else if !isas.iter().any(|isa| isa.set() == InstructionSet::Amx) {
            crate::backend::cpu::gemm::amx::emulator::install();
            // SAFETY: the emulator is installed, and the CPU has what is around the tiles.
            return [isas, vec![unsafe { Isa::assume(InstructionSet::Amx) }]].concat();
        }
        isas
    }

    #[test]
    fn isa_is_had_by_name_only_where_it_was_detected() {
        for set in [InstructionSet::Neon, InstructionSet::Avx2, InstructionSet::Avx512Bf16, InstructionSet::Amx] {
            // SAFETY: nothing but the name is asked for.
            let isa = unsafe { Isa::assume(set) };
            assert_eq!(Isa::named(isa.name()), Isa::available().contains(&isa).then_some(isa), "{isa:?}");
        }
        assert_eq!(Isa::named("plain"), Some(Isa::PLAIN));
        assert_eq!(Isa::named("sse9"), None);
    }
}
