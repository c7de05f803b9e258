//! Rotary position embedding (Su et al. 2021): each pair of a head's leading R elements ([`RopePairs`]) by the angle of the row's
//! position and the pair's number, halves as in the LLaMA checkpoints or neighbours as in GPT-J. R is D, or less in GPT-NeoX, Phi
//! and GPT-J, whose other elements pass through.

use super::check::{need, same};
use super::{AttentionBwd, Op, Projected, Work, operations};
use crate::arch::RopePairs;
use crate::backend::{Buffers, DevicePack, Len};

#[track_caller]
fn check_rotary(op: &'static str, rotary_dim: usize, head_dim: usize) {
    same(op, "the rotated width modulo 2", rotary_dim % 2, 0);
    need(op, "a head", head_dim, rotary_dim);
}

/// Of rows that are read and written, and an angle's cosine and sine for every pair of a head, once a row.
fn rotated(rows: usize, width: usize, rotary_dim: usize) -> Work {
    Work::moved(rows * rotary_dim, 2 * rows * width, 0)
}

/// `x [N, heads, D] =` the rotated `x`.
pub struct RopeFwd<'a, B: Buffers + ?Sized> {
    /// `[N, heads, D]`, rotated in place.
    pub x: &'a mut B::Compute,
    /// N rows with their positions.
    pub pack: &'a B::Pack,
    /// `[positions, R]`: of each position the cosines `[R/2]`, then the sines `[R/2]`, any attention factor multiplied in.
    pub cos_sin: &'a B::Acc,
    /// Heads of a row: query heads H or key-value heads K.
    pub heads: usize,
    /// Elements of a head, D.
    pub head_dim: usize,
    /// Leading elements of a head that are rotated, R: an even number, at most D.
    pub rotary_dim: usize,
    /// Which of them are a pair.
    pub pairs: RopePairs,
}

impl<B: Buffers + ?Sized> Op for RopeFwd<'_, B> {
    const NAME: &'static str = "rope_fwd";

    fn check(&self) {
        let pack = self.pack.host();
        check_rotary(Self::NAME, self.rotary_dim, self.head_dim);
        need(Self::NAME, "x", self.x.len(), pack.len() * self.heads * self.head_dim);
        need(Self::NAME, "cos_sin", self.cos_sin.len(), pack.longest() * self.rotary_dim);
    }

    fn work(&self) -> Work {
        rotated(self.pack.host().len(), self.heads * self.head_dim, self.rotary_dim)
    }

    /// Where heads are rotated wholly by halves, which are of 32 elements.
    fn projected(&self) -> Option<Projected> {
        let halves = self.pairs == RopePairs::Halves && self.rotary_dim == self.head_dim;
        let whole = halves && self.head_dim.is_multiple_of(64);
        whole.then_some(Projected::Rotated { len: self.pack.host().len() * self.heads * self.head_dim })
    }
}

/// `d_x [N, heads, D] =` the gradient of the input: `d_x`, which holds that of the output on entry, rotated back.
pub struct RopeBwd<'a, B: Buffers + ?Sized> {
    /// `[N, heads, D]`, rotated in place.
    pub d_x: &'a mut B::Compute,
    /// N rows with their positions.
    pub pack: &'a B::Pack,
    /// The same as in the forward.
    pub cos_sin: &'a B::Acc,
    /// Heads of a row: query heads H or key-value heads K.
    pub heads: usize,
    /// Elements of a head, D.
    pub head_dim: usize,
    /// The same as in the forward, R.
    pub rotary_dim: usize,
    /// The same as in the forward.
    pub pairs: RopePairs,
}

impl<B: Buffers + ?Sized> Op for RopeBwd<'_, B> {
    const NAME: &'static str = "rope_bwd";

    fn check(&self) {
        let pack = self.pack.host();
        check_rotary(Self::NAME, self.rotary_dim, self.head_dim);
        need(Self::NAME, "d_x", self.d_x.len(), pack.len() * self.heads * self.head_dim);
        need(Self::NAME, "cos_sin", self.cos_sin.len(), pack.longest() * self.rotary_dim);
    }

    fn work(&self) -> Work {
        rotated(self.pack.host().len(), self.heads * self.head_dim, self.rotary_dim)
    }

    fn projected(&self) -> Option<Projected> {
        let rotates = AttentionBwd::<B>::rotates([self.head_dim, self.rotary_dim], self.pairs);
        rotates.then_some(Projected::RotatedGradient)
    }
}

operations! {
    /// Rotary position embedding, forward and backward.
    RopeOps {
        rope_fwd(RopeFwd);
        rope_bwd(RopeBwd);
    }
}
