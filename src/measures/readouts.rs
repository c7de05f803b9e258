//! What the states of a layer say of the label words, through the model's own unembedding.
//!
//! Letters: n queries, C width, K label words. `words` `[n, K, C]` are rows of the unembedding: of each query's label words
//! (their first tokens), which may be the same for all queries (`[K, C]`).

use super::linear::dot;

/// The rows of the unembedding that queries' label words have.
#[derive(Clone, Copy, Debug)]
pub enum Words<'a> {
    /// `[K, C]`: the same words for every query.
    Shared(&'a [f32]),
    /// `[K, C]` of each query, with its own number of words.
    Each(&'a [Vec<f32>]),
}

impl Words<'_> {
    fn of(&self, query: usize) -> &[f32] {
        match self {
            Self::Shared(rows) => rows,
            Self::Each(all) => &all[query],
        }
    }
}

/// The logit lens (nostalgebraist 2020): the logits of the label words, `[n][K]`, if the states `[n, width]` of a layer were
/// the last: through the final norm (of a query's number and state), then the words' rows of the unembedding. Of them [`super::outputs`] has the agreement,
/// entropy and calibration, and [`margins`] the margins.
///
/// # Panics
/// If a length is no multiple of `width`.
pub fn logit_lens(
    states: &[f32],
    width: usize,
    norm: impl Fn(usize, &[f64]) -> Vec<f64>,
    words: Words<'_>,
) -> Vec<Vec<f64>> {
    assert!(width > 0 && states.len().is_multiple_of(width), "logit lens: {} of width {width}", states.len());
    let of = |(query, state): (usize, &[f32])| {
        let normed = norm(query, &widened(state));
        let words = words.of(query);
        assert!(words.len().is_multiple_of(width), "logit lens: {} elements of words of width {width}", words.len());
        words.chunks_exact(width).map(|word| dot(&widened(word), &normed)).collect()
    };
    states.chunks_exact(width).enumerate().map(of).collect()
}

/// Of every query the gold label's logit minus the mean of the others'; none where there is no other.
///
/// # Panics
/// If the numbers of queries differ, or a gold label is none of the labels.
pub fn margins(logits: &[Vec<f64>], gold: &[usize]) -> Vec<Option<f64>> {
    assert!(logits.len() == gold.len(), "margins: {} queries and {} gold labels", logits.len(), gold.len());
    let margin = |(row, &gold): (&Vec<f64>, &usize)| {
        let others = row.iter().sum::<f64>() - row[gold];
        (row.len() > 1).then(|| row[gold] - others / (row.len() - 1) as f64)
    };
    logits.iter().zip(gold).map(margin).collect()
}

/// The baseline of [`margins`]: its mean over all pairs of a query and another one's gold label, which is what a layer says
/// whatever the query. None for fewer than two queries.
///
/// # Panics
/// If the numbers of queries differ.
pub fn margins_shuffled(logits: &[Vec<f64>], gold: &[usize]) -> Option<f64> {
    assert!(logits.len() == gold.len(), "margins: {} queries and {} gold labels", logits.len(), gold.len());
    let (mut sum, mut count) = (0.0, 0usize);
    for (i, row) in logits.iter().enumerate().filter(|(_, row)| row.len() > 1) {
        for (_, &other) in gold.iter().enumerate().filter(|&(j, &other)| j != i && other < row.len()) {
            let others = row.iter().sum::<f64>() - row[other];
            (sum, count) = (sum + row[other] - others / (row.len() - 1) as f64, count + 1);
        }
    }
    (count > 0).then(|| sum / count as f64)
}

/// The final norm of a run, as the linear map that it is once its statistics are those of the run.
#[derive(Clone, Copy, Debug)]
pub struct FinalNorm<'a> {
    /// `[C]`: the weight; ones where a model has none.
    pub weight: &'a [f32],
    /// Of each query `1 / sqrt(mean(x^2) + eps)` of the last residual stream, or of LayerNorm `1 / sqrt(var(x) + eps)`.
    pub inverse_scale: &'a [f64],
    /// Whether the mean is taken off, as LayerNorm does.
    pub centred: bool,
}

/// Direct logit attribution (Elhage et al. 2021; `accumulated_resid` and `logit_attrs` of TransformerLens): of every query,
/// what a term `[n, width]` of the last residual stream (the embedding, or the output of a sublayer) adds to the gold label's
/// logit minus the mean of the other labels', the norm's scale kept as the run has it. None where there is no other label.
///
/// The attributions of all terms add up to [`margins`] of the last state, but for what the norm's and the unembedding's
/// biases add.
///
/// # Panics
/// If lengths do not agree, or a gold label is none of the labels.
pub fn attributions(
    term: &[f32],
    width: usize,
    norm: FinalNorm<'_>,
    words: Words<'_>,
    gold: &[usize],
) -> Vec<Option<f64>> {
    let n = gold.len();
    let agree = term.len() == n * width && norm.weight.len() == width && norm.inverse_scale.len() == n;
    assert!(agree, "attributions: {} elements of {n} queries of width {width}", term.len());
    let scaled = |query: usize, x: &[f64]| {
        let mean = if norm.centred { x.iter().sum::<f64>() / width as f64 } else { 0.0 };
        let scale = norm.inverse_scale[query];
        x.iter().zip(norm.weight).map(|(x, &weight)| (x - mean) * scale * f64::from(weight)).collect()
    };
    margins(&logit_lens(term, width, scaled, words), gold)
}

fn widened(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}
