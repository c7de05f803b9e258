//! What the model says, judged by log-probabilities.

/// How well one arm answers, over its queries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scores {
    /// Share of the queries whose right label has the highest log-probability of all labels; `None` for free text.
    pub accuracy: Option<f64>,
    /// Mean log-probability (natural) of the right answer.
    pub log_prob: f64,
}

/// Scores queries from the log-probabilities of their candidate answers.
///
/// `log_probs[i][c]` is the log-probability of candidate `c` of query `i`: the sum over all tokens of its string, not
/// divided by their number. `right[i]` is the right one. With equal log-probabilities the earlier candidate is the
/// model's answer. With `labelled = false` the only candidate is the reference, and there is no accuracy.
///
/// # Panics
/// If there are no queries, or not one `right` for each.
pub fn score(log_probs: &[Vec<f64>], right: &[usize], labelled: bool) -> Scores {
    assert!(!log_probs.is_empty() && log_probs.len() == right.len(), "score: {} of {}", log_probs.len(), right.len());
    let n = log_probs.len() as f64;
    let log_prob = log_probs.iter().zip(right).map(|(l, &r)| l[r]).sum::<f64>() / n;
    let hits = log_probs.iter().zip(right).filter(|(l, r)| best(l) == **r).count();
    Scores { accuracy: labelled.then(|| hits as f64 / n), log_prob }
}

/// The first of the largest.
fn best(values: &[f64]) -> usize {
    let mut best = 0;
    for (i, v) in values.iter().enumerate() {
        if *v > values[best] {
            best = i;
        }
    }
    best
}
