//! Confidence intervals by resampling the examples (Efron 1979; for BLEU, Koehn 2004).

use serde::{Deserialize, Serialize};

use super::{Metric, sums};
use crate::random::Rng;

/// An interval of scores.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interval {
    /// 2.5% of the resamples score less.
    pub low: f64,
    /// 2.5% of the resamples score more.
    pub high: f64,
}

/// The 95% percentile interval of the mean corpus score of some runs on the same examples, `runs[r][example]` being
/// [`Metric::judge`]'s statistics: of `resamples` corpora of as many examples, drawn with replacement (by random
/// numbers of `seed`), the same for every run; none without examples or resamples.
pub fn interval(metric: Metric, runs: &[Vec<Vec<f64>>], resamples: usize, seed: u64) -> Option<Interval> {
    let n = runs.first().map_or(0, Vec::len);
    if n == 0 || resamples == 0 {
        return None;
    }
    let mut rng = Rng::new(seed);
    let mut resample = || {
        let drawn: Vec<usize> = (0..n).map(|_| rng.below(n)).collect();
        let score = |run: &Vec<Vec<f64>>| metric.score(&sums(drawn.iter().map(|&i| &run[i])));
        runs.iter().map(score).sum::<f64>() / runs.len() as f64
    };
    let mut scores: Vec<f64> = (0..resamples).map(|_| resample()).collect();
    scores.sort_by(f64::total_cmp);
    // The tail's size rounded down on both sides, so that the interval is symmetric in ranks.
    let tail = resamples / 40;
    Some(Interval { low: scores[tail], high: scores[resamples - 1 - tail] })
}
