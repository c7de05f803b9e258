// How the attention is compiled for a head width. A file of its own, because build.rs needs it too.

/// Dynamic shared memory that every device since compute capability 8.0 can give a block.
const SHARED: usize = 99 << 10;

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
    /// Keys that the forward handles at a time.
    pub fwd_step: usize,
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
    pub fn new(Heads { width, capped }: Heads, element: usize) -> Self {
        let head_dim = width.next_multiple_of(16);
        let (warps, fwd_step, bwd_step) = match head_dim * element {
            0..=256 => (4, 64, 32),
            257..=512 => (4, 32, 16),
            _ => (1, 16, 16),
        };
        let variant = Self { head_dim, warps, fwd_step, bwd_step, capped };
        assert!(variant.fwd_shared(element).max(variant.bwd_shared(element)) <= SHARED, "heads of {width}: too wide");
        variant
    }

    /// Bytes of shared memory of the forward.
    pub fn fwd_shared(&self, element: usize) -> usize {
        (16 * self.warps + 4 * self.fwd_step) * self.row(element)
    }

    /// Bytes of shared memory of the backward's two parts.
    pub fn bwd_shared(&self, element: usize) -> usize {
        (32 * self.warps + 4 * self.bwd_step) * self.row(element)
    }

    fn row(&self, element: usize) -> usize {
        self.head_dim * element + 16
    }

    /// What the compiler is told.
    pub fn options(&self) -> [String; 5] {
        [
            format!("-DHEAD_DIM={}", self.head_dim),
            format!("-DWARPS={}", self.warps),
            format!("-DFWD_STEP={}", self.fwd_step),
            format!("-DBWD_STEP={}", self.bwd_step),
            format!("-DSOFTCAP={}", u8::from(self.capped)),
        ]
    }
}
