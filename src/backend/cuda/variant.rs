// How the attention is compiled for a head width. A file of its own, because build.rs needs it too.

/// Dynamic shared memory that every device since compute capability 8.0 can give a block.
const SHARED: usize = 99 << 10;

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
}

impl Variant {
    /// The build for heads of width `width` and elements of `element` bytes.
    ///
    /// # Panics
    /// If a block's tiles do not fit shared memory: above 256 elements of 4 bytes.
    pub fn new(width: usize, element: usize) -> Self {
        let head_dim = width.next_multiple_of(16);
        let (warps, fwd_step, bwd_step) = match head_dim * element {
            0..=256 => (4, 64, 32),
            257..=512 => (4, 32, 16),
            _ => (1, 16, 16),
        };
        let variant = Self { head_dim, warps, fwd_step, bwd_step };
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
    pub fn options(&self) -> [String; 4] {
        [
            format!("-DHEAD_DIM={}", self.head_dim),
            format!("-DWARPS={}", self.warps),
            format!("-DFWD_STEP={}", self.fwd_step),
            format!("-DBWD_STEP={}", self.bwd_step),
        ]
    }
}
