//! What operations are told: views of buffers, dimensions, the places of parameters, settings.

use std::sync::Arc;

use super::Backend;
use crate::Result;
use crate::pack::CachedSegment;

/// The host's view of a buffer's elements, borrowed where the device lets the host read them in place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HostSlice<'a> {
    /// 64-bit floats (the oracle).
    F64(&'a [f64]),
    /// 32-bit floats.
    F32(&'a [f32]),
    /// bfloat16.
    Bf16(&'a [half::bf16]),
    /// IEEE half precision.
    F16(&'a [half::f16]),
}

impl HostSlice<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F64(s) => s.len(),
            Self::F32(s) => s.len(),
            Self::Bf16(s) => s.len(),
            Self::F16(s) => s.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Element `i`, as `f64` (exact for every dtype).
    pub fn get(&self, i: usize) -> f64 {
        match self {
            Self::F64(s) => s[i],
            Self::F32(s) => f64::from(s[i]),
            Self::Bf16(s) => f64::from(s[i].to_f32()),
            Self::F16(s) => f64::from(s[i].to_f32()),
        }
    }

    /// The elements `from..from + out.len()` as `f32` (rounded for `f64`, exact otherwise).
    pub fn copy_f32(&self, from: usize, out: &mut [f32]) {
        let range = from..from + out.len();
        match self {
            Self::F64(s) => out.iter_mut().zip(&s[range]).for_each(|(o, &x)| *o = x as f32),
            Self::F32(s) => out.copy_from_slice(&s[range]),
            Self::Bf16(s) => out.iter_mut().zip(&s[range]).for_each(|(o, x)| *o = x.to_f32()),
            Self::F16(s) => out.iter_mut().zip(&s[range]).for_each(|(o, x)| *o = x.to_f32()),
        }
    }
}

/// A buffer of either role, to be read.
pub enum Tensor<'a, B: Backend + ?Sized> {
    /// In the wide dtype.
    Acc(&'a B::Acc),
    /// In the compute dtype.
    Compute(&'a B::Compute),
}

impl<B: Backend + ?Sized> Clone for Tensor<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend + ?Sized> Copy for Tensor<'_, B> {}

/// Captured rows that the device is still to write, or has written.
pub trait Readback: Send + Sync {
    /// The elements, once they are there.
    fn rows(&self) -> Option<&[f32]>;
}

/// Captured rows `[rows, width]`.
#[derive(Clone)]
pub enum Captured {
    /// They are there.
    Ready(Vec<f32>),
    /// The device writes them into memory of the host, from which they are read without a copy. The memory goes back to
    /// the device when the last clone is dropped.
    Pending(Arc<dyn Readback>),
}

impl Captured {
    /// Whether they are there.
    pub fn is_ready(&self) -> bool {
        match self {
            Self::Ready(_) => true,
            Self::Pending(landing) => landing.rows().is_some(),
        }
    }

    /// The elements.
    ///
    /// # Panics
    /// Before the [`Backend::sync`] that they need.
    pub fn rows(&self) -> &[f32] {
        match self {
            Self::Ready(rows) => rows,
            Self::Pending(landing) => landing.rows().expect("capture: read before the device was waited for"),
        }
    }
}

impl std::fmt::Debug for Captured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ready(rows) => f.debug_tuple("Ready").field(rows).finish(),
            Self::Pending(landing) => f.debug_tuple("Pending").field(&landing.rows()).finish(),
        }
    }
}

/// What the passes of a plan are at most.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PassSize {
    /// Rows N.
    pub rows: usize,
    /// Label rows M; 0 where there is no backward.
    pub labels: usize,
    /// Width of all query heads.
    pub queries: usize,
    /// Vocabulary V.
    pub vocab: usize,
    /// Rank of an adapted matrix; 0 for none.
    pub rank: usize,
    /// Runs that are trained.
    pub runs: usize,
    /// Bytes of each capture and download that may be on its way to the host at one time.
    pub landing: Vec<usize>,
}

/// Bytes that a backend takes of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnMemory {
    /// On the device: workspaces, scratch of operations, tables of packs.
    pub scratch: usize,
    /// Of the host, pinned, at most.
    pub pinned: usize,
}

/// Element of [`Backend::Acc`] as the host sees it: `f32` everywhere but in the oracle.
pub trait AccElement: bytemuck::Pod + Default + PartialOrd + std::fmt::Debug + Send + Sync {
    /// From `f64`, rounded.
    fn from_f64(x: f64) -> Self;
    /// To `f64`, exact.
    fn to_f64(self) -> f64;
}

impl AccElement for f32 {
    #[inline(always)]
    fn from_f64(x: f64) -> Self {
        x as f32
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
}

impl AccElement for f64 {
    #[inline(always)]
    fn from_f64(x: f64) -> Self {
        x
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
}

/// `in` and `out` widths of a matrix product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearDims {
    /// Rows N.
    pub rows: usize,
    /// Input width.
    pub input: usize,
    /// Output width.
    pub output: usize,
}

/// Heads of an attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionDims {
    /// Query heads H, a multiple of `kv_heads`; head `h` reads key-value head `h / (H / K)`.
    pub heads: usize,
    /// Key-value heads K.
    pub kv_heads: usize,
    /// Head width D.
    pub head_dim: usize,
    /// Multiplier of the scores, usually `1 / sqrt(D)`.
    pub scale: f64,
    /// A row at position p attends to positions greater than `p - window` only.
    pub window: Option<usize>,
    /// Whether scores fall with the distance: ALiBi (Press et al. 2022).
    pub alibi: bool,
}

impl AttentionDims {
    /// Query heads of a key-value head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// By how much a score of query head `head` is less for every position that its key lies further back; 0 without
    /// ALiBi. With H a power of two it is `2^(-8 (head + 1) / H)`; the heads beyond the greatest power of two below H take
    /// every second slope of the next one.
    pub fn slope(&self, head: usize) -> f64 {
        match self.alibi_base() {
            0 => 0.0,
            base if head < base => (-8.0 * (head + 1) as f64 / base as f64).exp2(),
            base => (-4.0 * (2 * (head - base) + 1) as f64 / base as f64).exp2(),
        }
    }

    /// The greatest power of two that is not above the number of query heads; 0 without ALiBi.
    pub fn alibi_base(&self) -> usize {
        if self.alibi { 1 << self.heads.ilog2() } else { 0 }
    }
}

/// The place of one adapted projection inside the flat parameters `[runs, stride]`.
///
/// Run `r` has A `[rank, input]` from element `r * stride + a` on and B `[output, rank]` from `r * stride + b` on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraSite {
    /// Offset of A within a run.
    pub a: usize,
    /// Offset of B within a run.
    pub b: usize,
    /// Elements of a run.
    pub stride: usize,
    /// Rank R.
    pub rank: usize,
    /// Input width.
    pub input: usize,
    /// Output width.
    pub output: usize,
    /// Multiplier of `B A x`: `alpha / R`, or `alpha / sqrt(R)` for rsLoRA.
    pub scale: f64,
}

/// Dropout of the input of one adapted projection: an element survives, multiplied by `1 / (1 - p)`, with
/// probability `1 - p`. The decision is a hash of `(seed of the row's run, site, row's key, column)`, so that the
/// backward repeats it, and so that it does not depend on what else is in the pack.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout<'a> {
    /// Probability of dropping, in `[0, 1)`.
    pub p: f64,
    /// One seed per run, new for every step.
    pub seeds: &'a [u64],
    /// Number of the projection, so that two projections drop independently.
    pub site: u64,
    /// One key per row `[N]`: the row's number within its run.
    pub keys: &'a [u32],
}

/// Optimiser settings of one run for one step (AdamW, Loshchilov and Hutter 2019, with bias correction as in
/// Kingma and Ba 2015).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamwStep {
    /// Whether the run takes this step; otherwise its parameters and moments stay untouched.
    pub active: bool,
    /// Learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// The gradient's norm is cut to this first (`g * max_norm / (norm + 1e-6)` if that is less than `g`).
    pub max_grad_norm: Option<f64>,
    /// Number of this step, from 1.
    pub step: u64,
}

/// The place of a soft prompt inside the flat parameters `[runs, stride]`: P rows of width C from `offset` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptSite {
    /// Offset of the prompt within a run.
    pub offset: usize,
    /// Elements of a run.
    pub stride: usize,
    /// Rows P.
    pub rows: usize,
}

/// A cache of keys and values by layer, and the forest of the segments kept in it.
pub struct KvCache<B: Backend> {
    /// Keys (after the rotation) and values of each layer, `[capacity, K, D]`.
    pub layers: Vec<(B::Compute, B::Compute)>,
    /// What lies in it.
    pub segments: Vec<CachedSegment>,
    /// Rows in use.
    pub used: usize,
    /// Rows there are.
    pub capacity: usize,
}

impl<B: Backend> KvCache<B> {
    /// An empty cache of `capacity` rows for `layers` layers of `width = K * D`.
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn new(backend: &mut B, layers: usize, capacity: usize, width: usize) -> Result<Self> {
        let layers = (0..layers)
            .map(|_| Ok((backend.compute(capacity * width)?, backend.compute(capacity * width)?)))
            .collect::<Result<_>>()?;
        Ok(Self { layers, segments: Vec::new(), used: 0, capacity })
    }
}
