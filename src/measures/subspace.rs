//! How much of one subspace lies in another.

use super::linear::{Eigen, dot, gram, product, transposed};

/// `(1/k) |U V'|_F^2` of orthonormal rows `U` `[j, width]`, `V` `[k, width]`, over the smaller of their numbers.
pub(super) fn overlap(u: &[f64], v: &[f64], width: usize) -> Option<f64> {
    let fewest = u.len().min(v.len()) / width;
    let cosines = product(u, v, width);
    (fewest > 0).then(|| (dot(&cosines, &cosines) / fewest as f64).min(1.0))
}

/// The overlap `(1/r) |U1' U2|_F^2` of two LoRA updates of one module (IA2, arXiv 2509.22621), from the factors `b1`
/// `[out, r1]` and `b2` `[out, r2]` of the updates `B A`, as PEFT keeps them. `U` are the left singular vectors of `B`, and `r`
/// is the smaller number of them: where ranks differ, 1 says that the smaller update's range lies in the greater's.
///
/// None for a factor that is zero, such as that of an adapter at its start. Singular values below the rounding of the
/// greatest count as none.
///
/// # Panics
/// If `out` is 0 or a length is no multiple of it.
pub fn lora_overlap(b1: &[f32], b2: &[f32], out: usize) -> Option<f64> {
    overlap(&left_singular_vectors(b1, out), &left_singular_vectors(b2, out), out)
}

/// The expectation of [`lora_overlap`] of two updates of ranks `r1`, `r2` of independent random directions: each direction
/// of the one has `r / out` of its square in the range of the other.
pub fn lora_overlap_expected(r1: usize, r2: usize, out: usize) -> f64 {
    r1.max(r2).min(out) as f64 / out as f64
}

/// A row for each left singular vector of a matrix `[out, r]`.
fn left_singular_vectors(matrix: &[f32], out: usize) -> Vec<f64> {
    assert!(out > 0 && matrix.len().is_multiple_of(out), "overlap: {} elements of {out} rows", matrix.len());
    let most = matrix.iter().fold(0f32, |most, x| most.max(x.abs()));
    if most == 0.0 {
        return Vec::new();
    }
    let r = matrix.len() / out;
    let matrix: Vec<f64> = matrix.iter().map(|&x| f64::from(x) / f64::from(most)).collect();
    let columns = transposed(&matrix, r);
    if r > out {
        let eigen = Eigen::of(&gram(&matrix, r), out);
        let rank = eigen.rank(r);
        return eigen.vectors[..rank * out].to_vec();
    }
    let eigen = Eigen::of(&gram(&columns, out), r);
    let rank = eigen.rank(out);
    let scaled = product(&eigen.vectors[..rank * r], &matrix, r);
    scaled.chunks_exact(out).zip(&eigen.values).flat_map(|(u, value)| u.iter().map(move |x| x / value.sqrt())).collect()
}
