//! Which kernels an instruction set has for an accumulation dtype, and in what shapes.
//!
//! Microkernels are as tall as registers allow: over two vectors, `2 rows` sums, two vectors and a broadcast element live
//! at once, of 32 registers in AVX-512 and NEON (14 and 12 rows), of 16 in AVX2 (6) and in the plain path (4, in vectors of
//! 16 bytes).

use super::super::float::Float;
use super::super::isa::{InstructionSet, Isa};
#[cfg(target_arch = "x86_64")]
use super::amx;
use super::microkernel;
use super::skinny::{
    Decoding, Skinny, skinny_decoding, skinny_f32, skinny_halves, skinny_interleaved, skinny_lines, skinny_pairs,
};
use super::tile::Tiles;
use super::transpose::Transposer;

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// What an instruction set has for products accumulated in `A`.
#[derive(Clone, Copy)]
pub struct KernelSet<A> {
    /// For elements of `A`.
    pub tiles: Tiles<A>,
    /// For elements that are pairs of bfloat16 along k.
    pub pair_tiles: Option<Tiles<A>>,
    /// Transposes operands and results.
    pub transposer: Transposer<A>,
    /// For a few rows.
    pub skinny: Option<Skinny<A>>,
    /// For a few rows, whose other operand can be read where it lies.
    pub skinny_lines: Option<Skinny<A>>,
    /// The same for a few rows in single precision, whose other operand is in halves of four bytes.
    pub skinny_halves: Option<Skinny<A>>,
    /// The same in pairs.
    pub skinny_pairs: Option<Skinny<A>>,
    /// For a few rows in pairs, whose other operand is quantised.
    pub skinny_decoding: Option<Decoding<A>>,
    /// For a few rows in pairs, whose other operand is quantised in groups of rows.
    pub skinny_interleaved: Option<Skinny<A>>,
}

/// An accumulation dtype with kernels for its products: `f32` and `f64`.
pub trait Kernels: Float + sealed::Sealed {
    /// The kernels of an instruction set.
    fn kernels(isa: Isa) -> KernelSet<Self>;
}

/// The microkernels of a function over so many vectors, from the tallest to one row.
macro_rules! heights {
    ($kernel:ident, $panel:literal: $($rows:literal)*) => {
        [$((
            $rows,
            [microkernel::$kernel::<$rows, $panel, false> as _, microkernel::$kernel::<$rows, $panel, true> as _],
        )),*]
    };
}

/// The tiles of `$a` on an instruction set: microkernels, and bytes of an element.
macro_rules! tiles {
    ($isa:expr, $a:ty, $plain:ident, $avx2:ident, $avx512:ident, $neon:ident) => {{
        const BYTES: usize = size_of::<$a>();
        match $isa.set() {
            #[cfg(target_arch = "aarch64")]
            InstructionSet::Neon => Tiles {
                lanes: 16 / BYTES,
                step: 1,
                rows: 12,
                whole_lines: false,
                cached: 108,
                wide: heights!($neon, 2: 12 8 4 2 1 1),
                narrow: heights!($neon, 1: 12 8 4 2 1 1),
                block: None,
                amx: false,
            },
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => Tiles {
                lanes: 32 / BYTES,
                step: 1,
                rows: 6,
                whole_lines: false,
                cached: 108,
                wide: heights!($avx2, 2: 6 4 2 1 1 1),
                narrow: heights!($avx2, 1: 12 6 4 2 1 1),
                block: None,
                amx: false,
            },
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 | InstructionSet::Avx512Bf16 | InstructionSet::Amx => Tiles {
                lanes: 64 / BYTES,
                step: 1,
                rows: 14,
                whole_lines: false,
                cached: 112,
                wide: heights!($avx512, 2: 14 8 4 2 1 1),
                narrow: heights!($avx512, 1: 14 8 4 2 1 1),
                block: None,
                amx: false,
            },
            _ => Tiles {
                lanes: 16 / BYTES,
                step: 1,
                rows: 4,
                whole_lines: false,
                cached: 112,
                wide: heights!($plain, 2: 4 2 1 1 1 1),
                narrow: heights!($plain, 1: 8 4 2 1 1 1),
                block: None,
                amx: false,
            },
        }
    }};
}

/// Tiles for elements that are pairs of bfloat16 along k, if the instruction set has any.
fn pair_tiles(isa: Isa, tiles: Tiles<f32>) -> Option<Tiles<f32>> {
    match isa.set() {
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx512Bf16 => Some(Tiles {
            wide: heights!(avx512_pairs, 2: 14 8 4 2 1 1),
            narrow: heights!(avx512_pairs, 1: 14 8 4 2 1 1),
            ..tiles
        }),
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Amx => Some(Tiles {
            step: microkernel::PAIR_STEP,
            rows: 32,
            whole_lines: true,
            cached: 128,
            wide: amx::heights::<2>().map(|(rows, kernel)| (rows, [kernel, kernel])),
            narrow: amx::heights::<1>().map(|(rows, kernel)| (rows, [kernel, kernel])),
            block: Some(amx::block),
            amx: true,
            ..tiles
        }),
        _ => None,
    }
}

impl Kernels for f32 {
    fn kernels(isa: Isa) -> KernelSet<Self> {
        let tiles = tiles!(isa, f32, plain_f32, avx2_f32, avx512_f32, neon_f32);
        KernelSet {
            tiles,
            pair_tiles: pair_tiles(isa, tiles),
            transposer: Transposer::vectors(isa),
            skinny: skinny_f32(isa),
            skinny_lines: skinny_lines(isa),
            skinny_halves: skinny_halves(isa),
            skinny_pairs: skinny_pairs(isa),
            skinny_decoding: skinny_decoding(isa),
            skinny_interleaved: skinny_interleaved(isa),
        }
    }
}

impl Kernels for f64 {
    fn kernels(isa: Isa) -> KernelSet<Self> {
        KernelSet {
            tiles: tiles!(isa, f64, plain_f64, avx2_f64, avx512_f64, neon_f64),
            pair_tiles: None,
            transposer: Transposer::plain(isa),
            skinny: None,
            skinny_lines: None,
            skinny_halves: None,
            skinny_pairs: None,
            skinny_decoding: None,
            skinny_interleaved: None,
        }
    }
}
