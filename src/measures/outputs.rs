//! What two arms answer: measures of the log-probabilities of each query's candidate labels.
//!
//! A query's distribution is the softmax over its candidates, in nats where a logarithm is taken; its answer is the likeliest
//! candidate, of equals the first. Queries may differ in their number of candidates.

use super::linear::dot;

/// Bins of confidence of [`calibration_error`], of equal width.
pub const BINS: usize = 15;

/// The share of the queries that both arms answer alike. None without queries.
///
/// # Panics
/// If the numbers of queries differ, or a query has no candidates.
pub fn agreement(a: &[Vec<f64>], b: &[Vec<f64>]) -> Option<f64> {
    check(a, b);
    share(a.iter().zip(b).map(|(a, b)| answer(a) == answer(b)))
}

/// The baseline of [`agreement`]: its expectation over all pairs of a query and another one. None for fewer than two queries.
///
/// # Panics
/// As [`agreement`].
pub fn agreement_shuffled(a: &[Vec<f64>], b: &[Vec<f64>]) -> Option<f64> {
    check(a, b);
    let (a, b): (Vec<_>, Vec<_>) = (a.iter().map(|a| answer(a)).collect(), b.iter().map(|b| answer(b)).collect());
    share(others(a.len()).map(|(i, j)| a[i] == b[j]))
}

/// Mean over the queries of `KL(a | b) = sum p_a ln(p_a / p_b)`. None without queries, or where it is not finite.
///
/// # Panics
/// If the numbers of queries or of a query's candidates differ.
pub fn kl_divergence(a: &[Vec<f64>], b: &[Vec<f64>]) -> Option<f64> {
    check(a, b);
    mean(a.iter().zip(b).map(|(a, b)| kl(&log_softmax(a), &log_softmax(b))))
}

/// The baseline of [`kl_divergence`]: its expectation over all pairs of a query and another one with as many candidates.
///
/// # Panics
/// If the numbers of queries differ.
pub fn kl_divergence_shuffled(a: &[Vec<f64>], b: &[Vec<f64>]) -> Option<f64> {
    check(a, b);
    let all = |some: &[Vec<f64>]| some.iter().map(|row| log_softmax(row)).collect::<Vec<_>>();
    let (a, b) = (all(a), all(b));
    mean(others(a.len()).filter(|&(i, j)| a[i].len() == b[j].len()).map(|(i, j)| kl(&a[i], &b[j])))
}

/// Mean entropy of the distributions; at most the logarithm of the number of candidates, which a guess has. None without
/// queries.
pub fn entropy(a: &[Vec<f64>]) -> Option<f64> {
    mean(a.iter().map(|row| -expected(&log_softmax(row), |log| log)))
}

/// Expected calibration error (Guo et al. 2017, equation 3): over [`BINS`] bins of confidence `((m - 1) / 15, m / 15]`, the
/// mean of |accuracy - mean confidence| weighted by the number of queries, where a query's confidence is the probability of its
/// answer: of `answers`, its likeliest candidates unless lengths count. None without queries.
///
/// # Panics
/// If the numbers of queries differ.
pub fn calibration_error(a: &[Vec<f64>], answers: &[usize], gold: &[usize]) -> Option<f64> {
    let queries = [a.len(), answers.len(), gold.len()];
    assert!(queries == [a.len(); 3], "calibration: queries, answers and gold labels: {queries:?}");
    let mut gaps = [0.0; BINS];
    for ((row, answer), gold) in a.iter().zip(answers).zip(gold) {
        let confidence = log_softmax(row)[*answer].exp();
        let bin = (confidence * BINS as f64).ceil() as usize;
        gaps[bin.clamp(1, BINS) - 1] += f64::from(u8::from(answer == gold)) - confidence;
    }
    (!a.is_empty()).then(|| gaps.iter().map(|gap| gap.abs()).sum::<f64>() / a.len() as f64)
}

/// The logarithms of the softmax of some log-probabilities.
pub fn log_softmax(log_probs: &[f64]) -> Vec<f64> {
    let mut out = log_probs.to_vec();
    log_softmax_in_place(&mut out);
    out
}

/// [`log_softmax`] in place.
pub(super) fn log_softmax_in_place(log_probs: &mut [f64]) {
    let most = log_probs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = log_probs.iter().map(|x| (x - most).exp()).sum::<f64>().ln();
    log_probs.iter_mut().for_each(|x| *x = *x - most - log_sum);
}

/// The likeliest candidate, of equals the first.
pub fn answer(row: &[f64]) -> usize {
    assert!(!row.is_empty(), "outputs: a query without candidates");
    (1..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

fn kl(a: &[f64], b: &[f64]) -> f64 {
    assert!(a.len() == b.len(), "outputs: {} and {} candidates", a.len(), b.len());
    let mut at = 0;
    expected(a, |log| {
        at += 1;
        log - b[at - 1]
    })
}

/// `sum p f(ln p)`, to which what has no probability adds nothing.
fn expected(logs: &[f64], mut f: impl FnMut(f64) -> f64) -> f64 {
    let (p, values): (Vec<f64>, Vec<f64>) = logs.iter().map(|&log| (log.exp(), f(log))).unzip();
    let counted: Vec<f64> = p.iter().zip(values).map(|(&p, value)| if p > 0.0 { value } else { 0.0 }).collect();
    dot(&p, &counted)
}

/// All pairs of a query and another one.
fn others(n: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..n).flat_map(move |i| (0..n).filter(move |&j| j != i).map(move |j| (i, j)))
}

fn share(hits: impl Iterator<Item = bool>) -> Option<f64> {
    mean(hits.map(|hit| f64::from(u8::from(hit))))
}

/// The mean of some values; none without any, and none where it is not finite.
fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0usize);
    values.for_each(|value| (sum, count) = (sum + value, count + 1));
    let mean = sum / count as f64;
    mean.is_finite().then_some(mean)
}

fn check(a: &[Vec<f64>], b: &[Vec<f64>]) {
    assert!(a.len() == b.len(), "outputs: {} and {} queries", a.len(), b.len());
}
