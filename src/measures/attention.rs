//! In-context learning as implicit finetuning: SimAOU, SimAM and Rec2FTP (Dai et al., arXiv 2212.10559).

use super::similarity::{cosine, cosine_of};

/// Keeps a vector without direction from a division by 0, as the authors' code does.
const EPSILON: f64 = 1e-20;

/// SimAOU of every query: `cos(n(icl) - n(zero), n(tuned) - n(zero))`, `n(v) = v / (|v| + 1e-20)`, of the attention block's
/// outputs `[queries, width]` at the last token before they are added to the residual stream; 0 where an arm changes
/// nothing.
///
/// # Panics
/// If the lengths differ or are no multiple of `width`.
pub fn sim_aou(zero: &[f32], icl: &[f32], tuned: &[f32], width: usize) -> Vec<f64> {
    let (x, y) = (normalised_updates(zero, icl, width), normalised_updates(zero, tuned, width));
    x.iter().zip(&y).map(|(x, y)| cosine(x, y)).collect()
}

/// The baseline of [`sim_aou`]: the update of ICL against the Gaussian vectors `noise` of
/// [`gaussian_rows`](super::similarity::gaussian_rows).
///
/// # Panics
/// As [`sim_aou`].
pub fn sim_aou_gaussian(zero: &[f32], icl: &[f32], width: usize, noise: &[f64]) -> Vec<f64> {
    assert!(zero.len() == noise.len(), "sim_aou: {} elements, {} of noise", zero.len(), noise.len());
    let x = normalised_updates(zero, icl, width).into_iter().zip(noise.chunks_exact(width));
    x.map(|(x, noise)| cosine(&x, noise)).collect()
}

/// SimAM: the mean over queries and heads of the cosine between two arms' scores before the softmax, of the last token over
/// the query's own tokens; an item is one query and head. The baseline has the scores of the zero-shot run in the place of
/// ICL's. None without items.
///
/// # Panics
/// If the arms have other numbers of items or tokens.
pub fn sim_am<S: AsRef<[f32]>>(icl: &[S], tuned: &[S]) -> Option<f64> {
    assert!(icl.len() == tuned.len(), "sim_am: {} and {} items", icl.len(), tuned.len());
    let cosines = icl.iter().zip(tuned).map(|(x, y)| {
        let (x, y) = (x.as_ref(), y.as_ref());
        assert!(x.len() == y.len(), "sim_am: {} and {} tokens", x.len(), y.len());
        cosine_of(x.iter().zip(y).map(|(&x, &y)| [x, y].map(f64::from)))
    });
    let sum: f64 = cosines.sum();
    (!icl.is_empty()).then(|| sum / icl.len() as f64)
}

/// Rec2FTP, in percent: of the queries that zero-shot answers wrong and the tuned model right, the share that ICL answers
/// right too. None where there is no such query.
///
/// # Panics
/// If the lengths differ.
pub fn rec2ftp(zero: &[bool], icl: &[bool], tuned: &[bool]) -> Option<f64> {
    assert!(zero.len() == icl.len() && zero.len() == tuned.len(), "rec2ftp: other numbers of queries");
    let all = zero.iter().zip(icl).zip(tuned);
    let learned: Vec<bool> = all.filter(|((zero, _), tuned)| !**zero && **tuned).map(|((_, icl), _)| *icl).collect();
    percentage(&learned)
}

/// The baseline of [`rec2ftp`]: its expectation over all orders of ICL's answers, which is ICL's accuracy in percent.
pub fn rec2ftp_shuffled(icl: &[bool]) -> Option<f64> {
    percentage(icl)
}

fn percentage(right: &[bool]) -> Option<f64> {
    let count = right.iter().filter(|&&right| right).count();
    (!right.is_empty()).then(|| 100.0 * count as f64 / right.len() as f64)
}

/// `n(x) - n(zero)` of every query.
fn normalised_updates(zero: &[f32], x: &[f32], width: usize) -> Vec<Vec<f64>> {
    let same = zero.len() == x.len() && width > 0 && zero.len().is_multiple_of(width);
    assert!(same, "sim_aou: {} and {} elements of width {width}", zero.len(), x.len());
    let normalised = |row: &[f32]| {
        let norm = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt() + EPSILON;
        row.iter().map(|&x| f64::from(x) / norm).collect::<Vec<f64>>()
    };
    let rows = zero.chunks_exact(width).zip(x.chunks_exact(width));
    rows.map(|(zero, x)| normalised(x).iter().zip(normalised(zero)).map(|(x, zero)| x - zero).collect()).collect()
}
