//! Linear probes: whether a label can be read off states by logistic regression, with what controls give.

use rayon::prelude::*;

use super::linear::{add_scaled, centred, dot, gram};
use super::logistic::Classifier;
use super::similarity::gaussian_rows;
use crate::random::Rng;

/// How a probe is fitted and validated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProbeFit {
    /// Folds of the cross-validation.
    pub folds: usize,
    /// Inverse of the penalty's strength, scikit-learn's `C`.
    pub c: f64,
    /// Seed of the folds, of the shuffled labels and of the random features.
    pub seed: u64,
}

impl Default for ProbeFit {
    fn default() -> Self {
        Self { folds: 5, c: 1.0, seed: 0 }
    }
}

/// Accuracies of cross-validated probes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinearProbe {
    /// Of the states and their labels.
    pub accuracy: f64,
    /// With the labels shuffled among the queries: what a probe makes of as many labels that the states know nothing of
    /// (the selectivity control of Hewitt and Liang 2019).
    pub shuffled_labels: f64,
    /// With standard normal features of the same shape in the place of the states.
    pub random_features: f64,
}

/// A fitted logistic regression in the space of the states.
#[derive(Clone, Debug, PartialEq)]
pub struct LogisticRegression {
    /// Rows `[width]` of weights: one for two classes (the second's, as scikit-learn has it), one of each class for more.
    pub weights: Vec<Vec<f64>>,
    /// One for each row of `weights`.
    pub intercepts: Vec<f64>,
}

/// Fits a logistic regression with an L2 penalty on rows `[n, width]` with labels below `classes`: the optimum that
/// scikit-learn's `LogisticRegression(C=c)` goes to. None for fewer than two classes, or a class without rows.
///
/// # Panics
/// If the lengths do not agree, a label is out of range, or `c` is not positive and finite.
pub fn logistic_regression(
    rows: &[f32],
    width: usize,
    labels: &[usize],
    classes: usize,
    c: f64,
) -> Option<LogisticRegression> {
    check(rows, width, labels, c);
    if classes < 2 || (0..classes).any(|class| !labels.contains(&class)) {
        return None;
    }
    let x: Vec<f64> = rows.iter().map(|&x| f64::from(x)).collect();
    let mut mean = vec![0.0; width];
    x.chunks_exact(width).for_each(|row| add_scaled(&mut mean, 1.0 / labels.len() as f64, row));
    // A free intercept takes what centred rows leave out, and inner products without large means keep their digits.
    let less: Vec<f64> = x.chunks_exact(width).flat_map(|row| row.iter().zip(&mean).map(|(x, m)| x - m)).collect();
    let fitted = Classifier::fit(&gram(&less, width), labels, classes, c);
    let back = |(dual, intercept): (&Vec<f64>, &f64)| {
        let mut weights = vec![0.0; width];
        less.chunks_exact(width).zip(dual).for_each(|(row, a)| add_scaled(&mut weights, *a, row));
        let intercept = intercept - dot(&weights, &mean);
        (weights, intercept)
    };
    let (weights, intercepts) = fitted.dual.iter().zip(&fitted.intercepts).map(back).unzip();
    Some(LogisticRegression { weights, intercepts })
}

/// Probes states `[n, width]` for `labels`, with both controls. Rows of one query (`queries[i]` is row `i`'s) stay in one
/// fold. None where [`Folds::new`] finds too few.
///
/// # Panics
/// As [`ProbeFeatures::new`] and [`ProbeFeatures::cross_validated`].
pub fn linear_probe(
    states: &[f32],
    width: usize,
    labels: &[usize],
    queries: &[usize],
    fit: ProbeFit,
) -> Option<LinearProbe> {
    let folds = Folds::new(labels, queries, fit)?;
    let shuffled = shuffled_labels(labels, queries, fit.seed);
    let of_shuffled = Folds::new(&shuffled, queries, fit)?;
    let features = ProbeFeatures::new(states, width);
    Some(LinearProbe {
        accuracy: features.cross_validated(labels, &folds, fit.c),
        shuffled_labels: features.cross_validated(&shuffled, &of_shuffled, fit.c),
        random_features: ProbeFeatures::gaussian(labels.len(), width, fit.seed).cross_validated(labels, &folds, fit.c),
    })
}

/// The labels in another order: those of a query's rows go together to another query with as many rows.
pub fn shuffled_labels(labels: &[usize], queries: &[usize], seed: u64) -> Vec<usize> {
    let members = members(queries);
    let mut out = labels.to_vec();
    let mut rng = Rng::with_stream(seed, 1);
    let mut sizes: Vec<usize> = members.iter().map(Vec::len).collect();
    sizes.sort_unstable();
    sizes.dedup();
    for size in sizes {
        let same: Vec<&Vec<usize>> = members.iter().filter(|rows| rows.len() == size).collect();
        let mut order: Vec<usize> = (0..same.len()).collect();
        rng.shuffle(&mut order);
        for (to, &from) in same.iter().zip(&order) {
            to.iter().zip(same[from]).for_each(|(&to, &from)| out[to] = labels[from]);
        }
    }
    out
}

/// The rows of each query, in the order of the queries' first rows.
fn members(queries: &[usize]) -> Vec<Vec<usize>> {
    let mut found: Vec<(usize, Vec<usize>)> = Vec::new();
    let mut index = std::collections::HashMap::new();
    for (row, &query) in queries.iter().enumerate() {
        let at = *index.entry(query).or_insert_with(|| {
            found.push((query, Vec::new()));
            found.len() - 1
        });
        found[at].1.push(row);
    }
    found.into_iter().map(|(_, rows)| rows).collect()
}

/// The fold of each row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folds {
    /// The fold of each row, below `count`.
    of: Vec<usize>,
    count: usize,
}

impl Folds {
    /// Deals the queries to the folds like cards: in a random order, those of one label (of a query's first row) after
    /// another's, so that every fold has its share of every label. None where there are fewer queries than folds, fewer than
    /// two folds, or one label only.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn new(labels: &[usize], queries: &[usize], fit: ProbeFit) -> Option<Self> {
        assert!(labels.len() == queries.len(), "folds: {} labels of {} rows", labels.len(), queries.len());
        let mut members = members(queries);
        if fit.folds < 2 || members.len() < fit.folds || labels.iter().all(|label| *label == labels[0]) {
            return None;
        }
        Rng::new(fit.seed).shuffle(&mut members);
        members.sort_by_key(|rows| labels[rows[0]]);
        let mut of = vec![0; labels.len()];
        for (i, rows) in members.iter().enumerate() {
            rows.iter().for_each(|&row| of[row] = i % fit.folds);
        }
        Some(Self { of, count: fit.folds })
    }

    /// The fold of each row.
    pub fn of_rows(&self) -> &[usize] {
        &self.of
    }
}

/// Features of a probe as inner products, of which every fold is made.
pub struct ProbeFeatures {
    /// `[n, n]`, of centred rows.
    gram: Vec<f64>,
    n: usize,
}

impl ProbeFeatures {
    /// States `[n, width]`.
    ///
    /// # Panics
    /// If `width` is 0, there is no row, or the length is no multiple of `width`.
    pub fn new(states: &[f32], width: usize) -> Self {
        let rows = width > 0 && !states.is_empty() && states.len().is_multiple_of(width);
        assert!(rows, "features: {} elements of width {width}", states.len());
        let (x, scale) = centred(states, width);
        let gram = gram(&x, width).iter().map(|product| product / (scale * scale)).collect();
        Self { gram, n: states.len() / width }
    }

    /// Standard normal features `[n, width]`, the same for every layer and arm.
    pub fn gaussian(n: usize, width: usize, seed: u64) -> Self {
        let rows: Vec<f32> = gaussian_rows(seed, 0, n, width).into_iter().map(|x| x as f32).collect();
        Self::new(&rows, width)
    }

    /// The share of the rows that a probe fitted on the other folds labels right.
    ///
    /// A probe knows the labels that its training rows have.
    ///
    /// # Panics
    /// If the numbers of rows differ, or `c` is not positive and finite.
    pub fn cross_validated(&self, labels: &[usize], folds: &Folds, c: f64) -> f64 {
        let rows = (labels.len(), folds.of.len());
        assert!(rows == (self.n, self.n), "features: {} rows, {rows:?} labels and folds", self.n);
        assert!(c > 0.0 && c.is_finite(), "features: a penalty of {c}");
        let right: usize = (0..folds.count).into_par_iter().map(|fold| self.right(labels, folds, fold, c)).sum();
        right as f64 / self.n as f64
    }

    /// How many rows of a fold are labelled right.
    fn right(&self, labels: &[usize], folds: &Folds, fold: usize, c: f64) -> usize {
        let (test, train): (Vec<usize>, Vec<usize>) = (0..self.n).partition(|&row| folds.of[row] == fold);
        let mut known: Vec<usize> = train.iter().map(|&row| labels[row]).collect();
        let as_known = known.clone();
        known.sort_unstable();
        known.dedup();
        if known.len() < 2 {
            return test.iter().filter(|&&row| known.first() == Some(&labels[row])).count();
        }
        let classes: Vec<usize> = as_known.iter().map(|label| known.partition_point(|known| known < label)).collect();
        let line = |row: usize| train.iter().map(|&of| self.gram[row * self.n + of]).collect::<Vec<f64>>();
        let of_train: Vec<f64> = train.iter().flat_map(|&row| line(row)).collect();
        let fitted = Classifier::fit(&of_train, &classes, known.len(), c);
        test.iter().filter(|&&row| known[fitted.class(&line(row))] == labels[row]).count()
    }
}

fn check(rows: &[f32], width: usize, labels: &[usize], c: f64) {
    let agree = width > 0 && rows.len() == labels.len() * width;
    assert!(agree, "logistic regression: {} elements of {} rows of width {width}", rows.len(), labels.len());
    assert!(c > 0.0 && c.is_finite(), "logistic regression: a penalty of {c}");
}
