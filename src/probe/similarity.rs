//! How alike two states are, query by query, and what chance alone would give.
//!
//! All arithmetic is in f64 on the f32 states. With `a`, `c`, `t` the states `[C]` of one query and layer in the anchor,
//! ICL and IT arms, the *updates* are `c - a` and `t - a`.

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// `x . y / (|x| |y|)`, and 0 if either is the zero vector.
pub fn cosine(x: &[f64], y: &[f64]) -> f64 {
    // The root of the product, not the product of the roots: a vector then has cosine 1 with itself, exactly.
    let norms = (dot(x, x) * dot(y, y)).sqrt();
    if norms > 0.0 { (dot(x, y) / norms).clamp(-1.0, 1.0) } else { 0.0 }
}

/// The similarities of one layer, one value per query.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Similarities {
    /// cos(c, t).
    pub icl_it: Vec<f64>,
    /// cos(a, c).
    pub anchor_icl: Vec<f64>,
    /// cos(a, t).
    pub anchor_it: Vec<f64>,
    /// cos(c - a, t - a): whether the two arms move the state the same way. 0 where an arm did not move it.
    pub update: Vec<f64>,
    /// cos(c - a, g) with `g` from [`gaussian`]: what an update without any direction scores (mean 0, SD about
    /// `1 / sqrt(C)`).
    pub update_gaussian: Vec<f64>,
    /// The mean over all other queries `j` of cos(c_i - a_i, t_j - a_j), which is the expectation over all shuffles
    /// that leave no query in its place: what the arms share whatever the query. Empty for a single query.
    pub update_shuffled: Vec<f64>,
}

/// Compares the three arms at one layer; `anchor`, `icl`, `it` are `[queries, width]`.
///
/// `seed` and `layer` choose the Gaussian baseline (see [`gaussian`]).
///
/// # Panics
/// If the lengths differ or are no multiple of `width`.
pub fn compare(anchor: &[f32], icl: &[f32], it: &[f32], width: usize, seed: u64, layer: usize) -> Similarities {
    assert!(
        anchor.len() == icl.len() && anchor.len() == it.len() && anchor.len().is_multiple_of(width),
        "compare: {} anchor, {} icl, {} it elements of width {width}",
        anchor.len(),
        icl.len(),
        it.len()
    );
    let mut out = Similarities::default();
    let mut tuned = Vec::new();
    let mut shown = Vec::new();
    for (i, ((a, c), t)) in
        anchor.chunks_exact(width).zip(icl.chunks_exact(width)).zip(it.chunks_exact(width)).enumerate()
    {
        let (a, c, t) = (widen(a), widen(c), widen(t));
        let (u, v) = (minus(&c, &a), minus(&t, &a));
        out.icl_it.push(cosine(&c, &t));
        out.anchor_icl.push(cosine(&a, &c));
        out.anchor_it.push(cosine(&a, &t));
        out.update.push(cosine(&u, &v));
        out.update_gaussian.push(cosine(&u, &gaussian(seed, layer, i, width)));
        shown.push(unit(u));
        tuned.push(unit(v));
    }
    if tuned.len() > 1 {
        let mut sum = vec![0.0; width];
        tuned.iter().for_each(|v| sum.iter_mut().zip(v).for_each(|(s, x)| *s += x));
        let others = (tuned.len() - 1) as f64;
        out.update_shuffled = shown.iter().zip(&tuned).map(|(u, v)| (dot(u, &sum) - dot(u, v)) / others).collect();
    }
    out
}

/// A standard normal vector for one seed, layer and query.
///
/// ChaCha8 with the 32-byte key `seed, layer, query, 0` (little-endian u64s) yields u64s `x`, `y`; with
/// `p = 1 - (x >> 11) / 2^53` and `q = (y >> 11) / 2^53` each two yield the elements `r cos(2 pi q)`, `r sin(2 pi q)`,
/// `r = sqrt(-2 ln p)` (Box and Muller 1958).
pub fn gaussian(seed: u64, layer: usize, query: usize, width: usize) -> Vec<f64> {
    let mut key = [0; 32];
    for (bytes, word) in key.chunks_exact_mut(8).zip([seed, layer as u64, query as u64]) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    let mut rng = ChaCha8Rng::from_seed(key);
    let mut uniform = || (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    let mut out = Vec::with_capacity(width + 1);
    while out.len() < width {
        let (p, q) = (1.0 - uniform(), uniform());
        let (sin, cos) = (std::f64::consts::TAU * q).sin_cos();
        let r = (-2.0 * p.ln()).sqrt();
        out.extend([r * cos, r * sin]);
    }
    out.truncate(width);
    out
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(a, b)| a * b).sum()
}

fn minus(x: &[f64], y: &[f64]) -> Vec<f64> {
    x.iter().zip(y).map(|(a, b)| a - b).collect()
}

fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&v| f64::from(v)).collect()
}

/// `x / |x|`; the zero vector stays.
fn unit(mut x: Vec<f64>) -> Vec<f64> {
    let n = dot(&x, &x).sqrt();
    if n > 0.0 {
        x.iter_mut().for_each(|v| *v /= n);
    }
    x
}
