// How the attention is compiled for a head width. A file of its own, because build.rs needs it too.

/// Dynamic shared memory that every device since compute capability 8.0 can give a block, and what those of 9 to 11 can.
const SHARED: usize = 99 << 10;
const LARGE_SHARED: usize = 227 << 10;
/// Tiles of the ring of `attention_fwd_hopper`.
pub const HOPPER_TILES: usize = 8;
/// Rows of a block of `attention_fwd_128`.
pub const LONG_BLOCK: usize = 128;

/// What a build of `attention.cu` is for; other files have one build, for heads of no width.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Heads {
    /// The model's head width.
    pub width: usize,
    /// Whether scores are capped.
    pub capped: bool,
}

/// Constants of one build of `attention.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// Head width that it is built for, a multiple of 16 that is at least the model's.
    pub head_dim: usize,
    /// Warps of a block, each with 16 rows.
    pub warps: usize,
    /// Keys that the forward handles at a time, on multiprocessors of much and of little shared memory.
    pub fwd_steps: [usize; 2],
    /// Keys that the backward handles at a time.
    pub bwd_step: usize,
    /// Whether scores are capped.
    pub capped: bool,
}

impl Variant {
    /// The build for heads of elements of `element` bytes.
    ///
    /// # Panics
    /// If a block's tiles do not fit shared memory: above 256 elements of 4 bytes.
    pub fn new(heads: Heads, element: usize) -> Self {
        let Heads { width, capped } = heads;
        let head_dim = width.next_multiple_of(16);
        let (warps, fwd_steps, bwd_step) = match head_dim * element {
            0..=192 => (4, [64, 64], 32),
            // Two blocks of the forward fit an A100 only by smaller steps.
            193..=256 => (4, [64, 32], 32),
            257..=512 => (4, [32, 32], 16),
            _ => (1, [16, 16], 16),
        };
        let variant = Self { head_dim, warps, fwd_steps, bwd_step, capped };
        let rows = 16 * warps;
        let shared = variant.fwd_shared(rows, element, (9, 0)).max(variant.bwd_shared(element));
        let long = if variant.has_long_blocks(element) { LONG_BLOCK } else { rows };
        let long = [(8, 0), (9, 0)].map(|device| variant.fwd_shared(long, element, device));
        let hopper = if Self::has_hopper(heads, element) { variant.hopper_shared(element) } else { 0 };
        assert!(shared.max(long[0]) <= SHARED && long[1].max(hopper) <= LARGE_SHARED, "heads of {width}: too wide");
        variant
    }

    /// Whether there is a forward with blocks of [`LONG_BLOCK`] rows. `ROWS_128` of `attention.cuh` is the same rule.
    pub fn has_long_blocks(&self, element: usize) -> bool {
        element == 2 && LONG_BLOCK.is_multiple_of(self.head_dim) && !self.capped
    }

    /// Whether there is a build of `attention_hopper.cu`.
    pub fn has_hopper(Heads { width, capped }: Heads, element: usize) -> bool {
        element == 2 && [64, 128].contains(&width) && !capped
    }

    /// Bytes of shared memory of the forward of `attention_hopper.cu`: a ring of tiles, rows, two barriers for each tile.
    pub fn hopper_shared(&self, element: usize) -> usize {
        1024 + HOPPER_TILES * 64 * self.head_dim * element + LONG_BLOCK * self.row(element) + HOPPER_TILES * 16
    }

    /// Bytes of shared memory that the forward with blocks of so many rows is given on a device of a compute capability: what it
    /// uses by `SMALL_SHARED` of `prelude.cuh`, which a binary for the device is compiled by. Where the driver compiles the
    /// embedded PTX of compute capability 8.0 instead (10 and 11), it takes the small steps, and uses less.
    pub fn fwd_shared(&self, rows: usize, element: usize, (major, _): (i32, i32)) -> usize {
        let [large, small] = self.fwd_steps;
        let step = if (9..12).contains(&major) { large } else { small };
        (rows + 4 * step) * self.row(element)
    }

    /// Bytes of shared memory of the backward's two parts.
    pub fn bwd_shared(&self, element: usize) -> usize {
        (32 * self.warps + 4 * self.bwd_step) * self.row(element)
    }

    fn row(&self, element: usize) -> usize {
        self.head_dim * element + 16
    }

    /// What the compiler is told.
    pub fn options(&self) -> [String; 6] {
        [
            format!("-DHEAD_DIM={}", self.head_dim),
            format!("-DWARPS={}", self.warps),
            format!("-DFWD_LARGE={}", self.fwd_steps[0]),
            format!("-DFWD_SMALL={}", self.fwd_steps[1]),
            format!("-DBWD_STEP={}", self.bwd_step),
            format!("-DSOFTCAP={}", u8::from(self.capped)),
        ]
    }
}
