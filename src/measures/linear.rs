//! The linear algebra of the measures, in f64; the only file that names the crate that decomposes matrices.
//!
//! Matrices are row-major slices. Sums are taken in a fixed order, whatever the machine and its number of threads.

use nalgebra::{DMatrix, SymmetricEigen};
use rayon::prelude::*;

/// `x . y`, in eight partial sums so that it compiles to vector instructions.
pub(super) fn dot(x: &[f64], y: &[f64]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0.0; LANES];
    let (x, y) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let rest: f64 = x.remainder().iter().zip(y.remainder()).map(|(a, b)| a * b).sum();
    for (x, y) in x.zip(y) {
        for i in 0..LANES {
            sums[i] += x[i] * y[i];
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// `x . y` of several rows `x`, each as [`dot`] has it: their chains of sums run side by side.
fn dots<const ROWS: usize>(x: [&[f64]; ROWS], y: &[f64]) -> [f64; ROWS] {
    const LANES: usize = 8;
    let mut sums = [[0.0; LANES]; ROWS];
    let (whole, rest) = y.as_chunks::<LANES>();
    let x = x.map(|x| x[..y.len()].as_chunks::<LANES>());
    for (k, y) in whole.iter().enumerate() {
        for (sums, (x, _)) in sums.iter_mut().zip(&x) {
            let x = &x[k];
            for i in 0..LANES {
                sums[i] += x[i] * y[i];
            }
        }
    }
    // As a sum of an iterator begins.
    let (mut totals, mut rests) = ([-0.0; ROWS], [-0.0; ROWS]);
    for i in 0..LANES {
        totals.iter_mut().zip(&sums).for_each(|(total, sums)| *total += sums[i]);
    }
    for (i, y) in rest.iter().enumerate() {
        rests.iter_mut().zip(&x).for_each(|(sum, (_, x))| *sum += x[i] * y);
    }
    std::array::from_fn(|row| totals[row] + rests[row])
}

/// `y += s x`.
pub(super) fn add_scaled(y: &mut [f64], s: f64, x: &[f64]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += s * x);
}

/// The rows `[n, width]` without their column means, times a power of two, which is returned, that brings the largest element
/// below 2: most of what is made of them depends on no scale, and fourth powers must stay within f64.
///
/// The means are taken of the differences from the first row: a column of equal values becomes exactly 0, and equal rows
/// stay equal.
pub(super) fn centred(rows: &[f32], width: usize) -> (Vec<f64>, f64) {
    let n = rows.len() / width;
    let first: Vec<f64> = rows[..width].iter().map(|&x| f64::from(x)).collect();
    let mut out: Vec<f64> = rows.iter().map(|&x| f64::from(x)).collect();
    out.chunks_exact_mut(width).for_each(|row| row.iter_mut().zip(&first).for_each(|(x, f)| *x -= f));
    let mut mean = vec![0.0; width];
    out.chunks_exact(width).for_each(|row| add_scaled(&mut mean, 1.0 / n as f64, row));
    out.chunks_exact_mut(width).for_each(|row| add_scaled(row, -1.0, &mean));
    let most = out.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
    let scale = if most > 0.0 { 2f64.powi(-(most.log2().floor() as i32)) } else { 1.0 };
    out.iter_mut().for_each(|x| *x *= scale);
    (out, scale)
}

/// `X X'` `[n, n]` of rows `X` `[n, width]`, exactly symmetric.
pub(super) fn gram(rows: &[f64], width: usize) -> Vec<f64> {
    let n = rows.len() / width;
    let row = |i: usize| &rows[i * width..(i + 1) * width];
    let mut out = vec![0.0; n * n];
    out.par_chunks_exact_mut(n.max(1)).enumerate().for_each(|(i, line)| {
        line[..=i].iter_mut().enumerate().for_each(|(j, value)| *value = dot(row(i), row(j)));
    });
    for i in 0..n {
        for j in 0..i {
            out[j * n + i] = out[i * n + j];
        }
    }
    out
}

/// `X Y'` `[n, m]` of rows `X` `[n, width]` and `Y` `[m, width]`.
pub(super) fn product(x: &[f64], y: &[f64], width: usize) -> Vec<f64> {
    x.par_chunks_exact(width).flat_map_iter(|x| y.chunks_exact(width).map(move |y| dot(x, y))).collect()
}

/// `X'` `[width, n]` of rows `X` `[n, width]`.
pub(super) fn transposed(rows: &[f64], width: usize) -> Vec<f64> {
    let n = rows.len() / width;
    let mut out = vec![0.0; rows.len()];
    for (i, row) in rows.chunks_exact(width).enumerate() {
        row.iter().enumerate().for_each(|(j, &x)| out[j * n + i] = x);
    }
    out
}

/// Eigenvalues in descending order, and a row for the unit eigenvector of each.
pub(super) struct Eigen {
    pub values: Vec<f64>,
    /// `[n, n]`.
    pub vectors: Vec<f64>,
}

impl Eigen {
    /// Of a symmetric matrix `[n, n]` (of which the lower triangle is read).
    pub fn of(matrix: &[f64], n: usize) -> Self {
        let found = SymmetricEigen::new(DMatrix::from_row_slice(n, n, matrix));
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&i, &j| found.eigenvalues[j].total_cmp(&found.eigenvalues[i]));
        Self {
            values: order.iter().map(|&i| found.eigenvalues[i]).collect(),
            vectors: order
                .iter()
                .flat_map(|&i| found.eigenvectors.column(i).iter().copied().collect::<Vec<_>>())
                .collect(),
        }
    }

    /// How many eigenvalues of a positive semidefinite matrix are beyond the rounding of the greatest. `size` is the larger
    /// side of the matrix whose product with itself was decomposed.
    pub fn rank(&self, size: usize) -> usize {
        let limit = self.values.first().map_or(0.0, |&most| most.max(0.0) * f64::EPSILON * size as f64);
        self.values.iter().take_while(|&&value| value > limit).count()
    }
}

/// The factor `L` of a positive definite matrix `L L'`.
pub(super) struct Cholesky {
    /// `[n, n]`; what is above the diagonal has no meaning.
    factor: Vec<f64>,
    n: usize,
}

impl Cholesky {
    /// Of a matrix `[n, n]`, of which the lower triangle is read; none where it is not positive definite.
    pub fn of(mut matrix: Vec<f64>, n: usize) -> Option<Self> {
        for first in (0..n).step_by(Self::TOGETHER) {
            let (above, rows) = matrix.split_at_mut(first * n);
            let count = Self::TOGETHER.min(n - first);
            if count == Self::TOGETHER {
                Self::eliminate::<{ Self::TOGETHER }>(rows, above, n);
            } else {
                rows.chunks_exact_mut(n).for_each(|row| Self::eliminate::<1>(row, above, n));
            }
            for i in first..first + count {
                let (above, row) = rows.split_at_mut((i - first) * n);
                for (j, other) in (first..).zip(above.chunks_exact(n)) {
                    row[j] = (row[j] - dot(&row[..j], &other[..j])) / other[j];
                }
                let square = row[i] - dot(&row[..i], &row[..i]);
                if square <= 0.0 || !square.is_finite() {
                    return None;
                }
                row[i] = square.sqrt();
            }
        }
        Some(Self { factor: matrix, n })
    }

    /// Rows whose elements are computed side by side: an element needs all before it in its row, so that a row alone waits for
    /// each of its sums.
    const TOGETHER: usize = 4;

    /// The elements of the first rows of `rows` up to where these begin, from the factor's rows `above` them.
    fn eliminate<const ROWS: usize>(rows: &mut [f64], above: &[f64], n: usize) {
        for (j, other) in above.chunks_exact(n).enumerate() {
            let found = dots(std::array::from_fn::<_, ROWS, _>(|r| &rows[r * n..][..j]), &other[..j]);
            for (r, found) in found.into_iter().enumerate() {
                let x = &mut rows[r * n + j];
                *x = (*x - found) / other[j];
            }
        }
    }

    /// The `x` of `L L' x = y`.
    pub fn solve(&self, mut y: Vec<f64>) -> Vec<f64> {
        let rows = || self.factor.chunks_exact(self.n).enumerate();
        for (i, row) in rows() {
            y[i] = (y[i] - dot(&row[..i], &y[..i])) / row[i];
        }
        for (i, row) in rows().rev() {
            y[i] /= row[i];
            let (before, rest) = y.split_at_mut(i);
            add_scaled(before, -rest[0], &row[..i]);
        }
        y
    }

    /// The inverse `[n, n]` of the matrix.
    pub fn inverse(&self) -> Vec<f64> {
        let n = self.n;
        // Row i is column i of the factor's inverse, which is 0 before i.
        let mut columns = vec![0.0; n * n];
        for (i, column) in columns.chunks_exact_mut(n).enumerate() {
            column[i] = 1.0 / self.factor[i * n + i];
            for (k, row) in self.factor.chunks_exact(n).enumerate().skip(i + 1) {
                column[k] = -dot(&row[i..k], &column[i..k]) / row[k];
            }
        }
        let mut out = vec![0.0; n * n];
        for i in 0..n {
            for j in 0..=i {
                out[i * n + j] = dot(&columns[i * n + i..(i + 1) * n], &columns[j * n + i..(j + 1) * n]);
                out[j * n + i] = out[i * n + j];
            }
        }
        out
    }
}

/// The singular values of `M` `[n, m]`, as many as its smaller side, in descending order; small ones to the root of the
/// rounding of the greatest.
pub(super) fn singular_values(matrix: &[f64], m: usize) -> Vec<f64> {
    let n = matrix.len() / m;
    let square = if n <= m { gram(matrix, m) } else { gram(&transposed(matrix, m), n) };
    let side = n.min(m);
    let mut values: Vec<f64> =
        DMatrix::from_row_slice(side, side, &square).symmetric_eigenvalues().iter().copied().collect();
    values.sort_by(|a, b| b.total_cmp(a));
    values.into_iter().map(|value| value.max(0.0).sqrt()).collect()
}
