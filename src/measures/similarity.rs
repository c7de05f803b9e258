//! How alike two states are, query by query, and what chance alone would give.
//!
//! All arithmetic is in f64 on the f32 states. With `a`, `x`, `y` the states `[C]` of one query and layer in the anchor
//! (the query alone in the untuned model) and in two other arms, the *updates* are `x - a` and `y - a`.

use crate::random::Rng;

/// `x . y / (|x| |y|)`, and 0 if either is the zero vector.
pub fn cosine(x: &[f64], y: &[f64]) -> f64 {
    cosine_of(x.iter().zip(y).map(|(&x, &y)| [x, y]))
}

/// [`cosine`] of the pairs of elements of two vectors.
pub(super) fn cosine_of(pairs: impl Iterator<Item = [f64; 2]>) -> f64 {
    let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
    pairs.for_each(|[x, y]| (xx, yy, xy) = (xx + x * x, yy + y * y, xy + x * y));
    // The root of the product, not the product of the roots: a vector then has cosine 1 with itself, exactly.
    let norms: f64 = (xx * yy).sqrt();
    if norms > 0.0 { (xy / norms).clamp(-1.0, 1.0) } else { 0.0 }
}

/// Two arms of one layer beside each other; each field has a value per query, none for a single query in
/// [`Updates::update_shuffled`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Updates {
    /// cos(x - a, y - a): whether the two arms move the state the same way. 0 where an arm did not move it.
    pub update: Vec<f64>,
    /// The mean over all other queries `j` of cos(x_i - a_i, y_j - a_j), which is the expectation over all shuffles
    /// that leave no query where it was: what the arms share whatever the query.
    pub update_shuffled: Vec<f64>,
}

/// cos(x, y) of every query, of two arms' states `[queries, width]` at one layer.
///
/// # Panics
/// If the lengths differ or are no multiple of `width`.
pub fn cosines(x: &[f32], y: &[f32], width: usize) -> Vec<f64> {
    check(x, y, width);
    let of = |(x, y): (&[f32], &[f32])| cosine_of(x.iter().zip(y).map(|(&x, &y)| [x, y].map(f64::from)));
    x.chunks_exact(width).zip(y.chunks_exact(width)).map(of).collect()
}

/// Compares the updates of two arms `x`, `y` from the anchor at one layer; all are `[queries, width]`.
///
/// # Panics
/// If the lengths differ or are no multiple of `width`.
pub fn updates(anchor: &[f32], x: &[f32], y: &[f32], width: usize) -> Updates {
    let (mut x, mut y) = (differences(anchor, x, width), differences(anchor, y, width));
    let update = x.chunks_exact(width).zip(y.chunks_exact(width)).map(|(u, v)| cosine(u, v)).collect();
    [&mut x, &mut y].into_iter().flat_map(|x| x.chunks_exact_mut(width)).for_each(unit);
    let mut update_shuffled = Vec::new();
    if y.len() > width {
        let mut sum = vec![0.0; width];
        y.chunks_exact(width).for_each(|v| sum.iter_mut().zip(v).for_each(|(s, x)| *s += x));
        let others = (y.len() / width - 1) as f64;
        let rows = x.chunks_exact(width).zip(y.chunks_exact(width));
        update_shuffled = rows.map(|(u, v)| (dot(u, &sum) - dot(u, v)) / others).collect();
    }
    Updates { update, update_shuffled }
}

/// cos(x - a, g) of every query, with the `g` of [`gaussian_rows`]: what an update without any direction scores (mean 0, SD
/// about `1 / sqrt(C)`).
///
/// # Panics
/// If the lengths differ or are no multiple of `width`.
pub fn gaussian_updates(anchor: &[f32], x: &[f32], width: usize, noise: &[f64]) -> Vec<f64> {
    let x = differences(anchor, x, width);
    assert!(x.len() == noise.len(), "similarity: {} elements, {} of noise", x.len(), noise.len());
    x.chunks_exact(width).zip(noise.chunks_exact(width)).map(|(u, g)| cosine(u, g)).collect()
}

/// `|x - a|` of every query.
///
/// # Panics
/// If the lengths differ or are no multiple of `width`.
pub fn norms(anchor: &[f32], x: &[f32], width: usize) -> Vec<f64> {
    differences(anchor, x, width).chunks_exact(width).map(|u| dot(u, u).sqrt()).collect()
}

/// The updates `[queries, width]` of an arm.
fn differences(anchor: &[f32], x: &[f32], width: usize) -> Vec<f64> {
    check(anchor, x, width);
    x.iter().zip(anchor).map(|(&x, &a)| f64::from(x) - f64::from(a)).collect()
}

fn check(x: &[f32], y: &[f32], width: usize) {
    assert!(
        x.len() == y.len() && x.len().is_multiple_of(width),
        "similarity: {} and {} elements of width {width}",
        x.len(),
        y.len()
    );
}

/// A standard normal vector for one seed, layer and query.
///
/// A generator with the 32-byte key `seed, layer, query, 0` (little-endian u64s) yields u64s `x`, `y`; with
/// `p = 1 - (x >> 11) / 2^53` and `q = (y >> 11) / 2^53` each two yield the elements `r cos(2 pi q)`, `r sin(2 pi q)`,
/// `r = sqrt(-2 ln p)` (Box and Muller 1958).
pub fn gaussian(seed: u64, layer: usize, query: usize, width: usize) -> Vec<f64> {
    let mut key = [0; 32];
    for (bytes, word) in key.chunks_exact_mut(8).zip([seed, layer as u64, query as u64]) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    let mut rng = Rng::with_key(key);
    let mut out = Vec::with_capacity(width + 1);
    while out.len() < width {
        let (p, q) = (1.0 - rng.unit(), rng.unit());
        let (sin, cos) = (std::f64::consts::TAU * q).sin_cos();
        let r = (-2.0 * p.ln()).sqrt();
        out.extend([r * cos, r * sin]);
    }
    out.truncate(width);
    out
}

/// [`gaussian`] of the first `rows` queries, `[rows, width]`.
pub fn gaussian_rows(seed: u64, layer: usize, rows: usize, width: usize) -> Vec<f64> {
    (0..rows).flat_map(|query| gaussian(seed, layer, query, width)).collect()
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(a, b)| a * b).sum()
}

/// `x /= |x|`; the zero vector stays.
fn unit(x: &mut [f64]) {
    let n = dot(x, x).sqrt();
    if n > 0.0 {
        x.iter_mut().for_each(|v| *v /= n);
    }
}
