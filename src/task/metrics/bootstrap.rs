//! Confidence intervals by resampling the examples (Efron 1979; for BLEU, Koehn 2004).

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{Metric, sums};

/// An interval of scores.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interval {
    /// 2.5% of the resamples score less.
    pub low: f64,
    /// 2.5% of the resamples score more.
    pub high: f64,
}

/// The 95% percentile interval of the corpus score: of `resamples` corpora of as many examples, drawn with
/// replacement (ChaCha8 from `seed`); none without examples or resamples.
pub fn interval(metric: Metric, statistics: &[Vec<f64>], resamples: usize, seed: u64) -> Option<Interval> {
    if statistics.is_empty() || resamples == 0 {
        return None;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let n = statistics.len();
    let mut scores: Vec<f64> =
        (0..resamples).map(|_| metric.score(&sums((0..n).map(|_| &statistics[rng.random_range(0..n)])))).collect();
    scores.sort_by(f64::total_cmp);
    // The tail's size rounded down on both sides, so that the interval is symmetric in ranks.
    let tail = resamples / 40;
    Some(Interval { low: scores[tail], high: scores[resamples - 1 - tail] })
}
