//! The leading singular values and vectors of a matrix, in f64.

use rayon::prelude::*;

use super::linear::{Eigen, add_scaled, dot};
use crate::random::Rng;

/// A side up to which the whole matrix is decomposed.
const SMALL: usize = 256;
/// Vectors beside those that are asked for: they make these converge sooner.
const BESIDE: usize = 8;
/// Vectors of the subspace in which they are sought before it is begun anew with the best of them.
const MOST: usize = 256;
/// Times that it is begun anew, at most.
const ROUNDS: usize = 200;
/// Residual, as a share of the greatest eigenvalue, at which a vector is found: beyond the rounding of f32.
const FOUND: f64 = 1e-11;

/// Singular values in descending order, and a row for each one's vectors.
pub struct Singular {
    /// `[r]`.
    pub values: Vec<f64>,
    /// `[r, rows]`.
    pub left: Vec<f64>,
    /// `[r, columns]`.
    pub right: Vec<f64>,
}

/// The `r` leading triplets of a matrix `[rows, columns]`; vectors of a singular value of 0 are 0 on the longer side.
///
/// A small matrix is decomposed whole, of a larger one a block Krylov subspace of its product with its transpose (Musco and
/// Musco, arXiv 1504.05477), restarted until every vector is found, at most 200 times, which a warning says. The signs of a pair are chance.
///
/// # Panics
/// If `r` is more than the shorter side.
pub fn leading(matrix: &[f32], columns: usize, r: usize) -> Singular {
    let rows = matrix.len() / columns;
    assert!(r <= rows.min(columns), "singular: {r} of {rows} x {columns}");
    // The shorter side's vectors are sought.
    let wide = rows <= columns;
    let x: Vec<f64> = match wide {
        true => matrix.iter().map(|&x| f64::from(x)).collect(),
        false => (0..columns).flat_map(|j| matrix.iter().skip(j).step_by(columns).map(|&x| f64::from(x))).collect(),
    };
    let short = Short { x, side: rows.min(columns), other: rows.max(columns) };
    let (eigenvalues, own) = if short.side <= SMALL { short.whole() } else { short.krylov(r) };
    let values: Vec<f64> = eigenvalues.iter().take(r).map(|value| value.max(0.0).sqrt()).collect();
    let own: Vec<f64> = own.into_iter().take(r).flatten().collect();
    let others = own.par_chunks_exact(short.side).zip(&values).flat_map_iter(|(vector, &value)| {
        let mut other = short.down(vector);
        // What is left of a singular value of 0 is rounding.
        let inverse = if value > values[0] * 1e-12 { 1.0 / value } else { 0.0 };
        other.iter_mut().for_each(|y| *y *= inverse);
        other
    });
    let others: Vec<f64> = others.collect();
    let (left, right) = if wide { (own, others) } else { (others, own) };
    Singular { values, left, right }
}

/// A matrix `[side, other]` of rows of the longer side.
struct Short {
    x: Vec<f64>,
    side: usize,
    other: usize,
}

/// Eigenvalues of `X X'`, and their vectors.
type Pairs = (Vec<f64>, Vec<Vec<f64>>);

impl Short {
    /// `X' v`.
    fn down(&self, v: &[f64]) -> Vec<f64> {
        let mut out = vec![0.0; self.other];
        v.iter().zip(self.x.chunks_exact(self.other)).for_each(|(&s, row)| add_scaled(&mut out, s, row));
        out
    }

    /// `X X' v` of several vectors.
    fn product(&self, vectors: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let one = |v: &Vec<f64>| {
            let down = self.down(v);
            self.x.chunks_exact(self.other).map(|row| dot(row, &down)).collect()
        };
        vectors.par_iter().map(one).collect()
    }

    fn whole(&self) -> Pairs {
        let found = Eigen::of(&super::linear::gram(&self.x, self.other), self.side);
        (found.values, found.vectors.chunks_exact(self.side).map(<[f64]>::to_vec).collect())
    }

    fn krylov(&self, r: usize) -> Pairs {
        let width = (r + BESIDE).min(self.side);
        let most = MOST.max(3 * width).min(self.side);
        let mut rng = Rng::new(0);
        let mut first: Vec<Vec<f64>> = (0..width).map(|_| (0..self.side).map(|_| rng.normal()).collect()).collect();
        for round in 1..=ROUNDS {
            let mut basis: Vec<Vec<f64>> = Vec::with_capacity(most);
            let mut images: Vec<Vec<f64>> = Vec::with_capacity(most);
            while !first.is_empty() && basis.len() < most {
                let from = basis.len();
                for vector in first {
                    if basis.len() < most {
                        basis.extend(orthogonal(vector, &basis));
                    }
                }
                images.extend(self.product(&basis[from..]));
                first = images[from..].to_vec();
            }
            let (values, vectors) = combined(&basis, &images, width);
            let images = self.product(&vectors);
            let limit = FOUND * values[0];
            let found = |i: usize| {
                let off = images[i].iter().zip(&vectors[i]).map(|(y, x)| (y - values[i] * x).powi(2)).sum::<f64>();
                off.sqrt() <= limit
            };
            let done = basis.len() == self.side || (0..r).all(found);
            if !done && round == ROUNDS {
                log::warn!(
                    "singular vectors of a matrix of {} rows: not all are exact after {ROUNDS} rounds",
                    self.side
                );
            }
            if done || round == ROUNDS {
                return (values, vectors);
            }
            first = vectors;
        }
        unreachable!("singular: the last round returns")
    }
}

/// A vector's part that is orthogonal to a basis, of length 1; none where nothing is left of it.
fn orthogonal(mut vector: Vec<f64>, basis: &[Vec<f64>]) -> Option<Vec<f64>> {
    let before = dot(&vector, &vector).sqrt();
    for _ in 0..2 {
        for other in basis {
            let along = dot(&vector, other);
            add_scaled(&mut vector, -along, other);
        }
    }
    let norm = dot(&vector, &vector).sqrt();
    vector.iter_mut().for_each(|x| *x /= norm);
    (norm > before * 1e-13).then_some(vector)
}

/// The `count` best eigenvectors within a basis (Rayleigh and Ritz), given its images.
fn combined(basis: &[Vec<f64>], images: &[Vec<f64>], count: usize) -> Pairs {
    let n = basis.len();
    let small: Vec<f64> = basis.par_iter().flat_map_iter(|x| images.iter().map(|y| dot(x, y))).collect();
    let found = Eigen::of(&small, n);
    let side = basis[0].len();
    let vector = |weights: &[f64]| {
        let mut out = vec![0.0; side];
        weights.iter().zip(basis).for_each(|(&s, x)| add_scaled(&mut out, s, x));
        out
    };
    let vectors = found.vectors.par_chunks_exact(n).take(count).map(vector).collect();
    (found.values.into_iter().take(count).collect(), vectors)
}
