//! The states of an arm at one layer, with what the measures of all its pairs share.

use std::borrow::Cow;

use rayon::prelude::*;

use super::linear::{Eigen, centred, dot, gram, product, transposed};
use super::settings::{Measure, Settings};

/// The share of the variance that SVCCA keeps.
const KEPT: f64 = 0.99;
/// The share of the ratios that TwoNN fits, from the smallest.
const FITTED: f64 = 0.9;
/// Squared distances below this share of the squared norms are taken from the rows themselves: from inner products they
/// would lose their digits.
const CLOSE: f64 = 1e-6;

/// States `[n, C]` of an arm at one layer, and what its measures need.
pub struct States<'a> {
    pub(super) values: Cow<'a, [f32]>,
    pub(super) width: usize,
    /// The centred rows as inner products, where a measure of spread is asked for.
    pub(super) spread: Option<Spread>,
    /// For each row its nearest rows by index, nearest first; none where the measure is not asked for or has no value.
    pub(super) neighbours: Option<Vec<Vec<u32>>>,
    pub(super) id: Option<f64>,
    pub(super) principal: Option<Principal>,
}

/// Centred rows `X` `[n, C]` and the form of them that inner products are taken of.
pub(super) struct Spread {
    /// `X X'` `[n, n]` where there are no more rows than columns, else `X'` `[C, n]`.
    pub form: Form,
    /// Squared norms of the rows.
    pub norms: Vec<f64>,
    /// `|X X'|_F^2`.
    pub own: f64,
}

pub(super) enum Form {
    Gram(Vec<f64>),
    Columns(Vec<f64>),
}

/// The principal directions of centred rows.
pub(super) struct Principal {
    /// `[kept, n]`: left singular vectors of the fewest directions with at least [`KEPT`] of the variance.
    pub left: Vec<f64>,
    /// `[k, C]`: right singular vectors of the leading directions; none where fewer have any variance.
    pub right: Option<Vec<f64>>,
}

impl<'a> States<'a> {
    /// Prepares states `[n, width]` for the measures of the settings.
    ///
    /// # Panics
    /// If `width` is 0 or the length is no multiple of it.
    pub fn new(values: &'a [f32], width: usize, settings: &Settings) -> Self {
        Self::prepared(Cow::Borrowed(values), width, settings)
    }

    /// Standard normal states: `noise` of [`gaussian_rows`](super::similarity::gaussian_rows), rounded to f32.
    pub fn gaussian(noise: &[f64], width: usize, settings: &Settings) -> States<'static> {
        States::prepared(noise.iter().map(|&x| x as f32).collect(), width, settings)
    }

    /// Number of rows: queries, as a rule.
    pub fn rows(&self) -> usize {
        self.values.len() / self.width
    }

    fn prepared(values: Cow<'a, [f32]>, width: usize, settings: &Settings) -> Self {
        assert!(width > 0 && values.len().is_multiple_of(width), "states: {} elements of width {width}", values.len());
        let mut out = Self { values, width, spread: None, neighbours: None, id: None, principal: None };
        let wants = |some: &[Measure]| some.iter().any(|&measure| settings.has(measure));
        let near = wants(&[Measure::KnnOverlap, Measure::Id]);
        let directions = wants(&[Measure::Svcca, Measure::SubspaceOverlap]);
        let n = out.rows();
        if n == 0 || !(near || directions || wants(&[Measure::Cka, Measure::CkaDebiased])) {
            return out;
        }
        let (x, _) = centred(&out.values, width);
        let spread = Spread::new(&x, width);
        if near {
            let k = settings.neighbours(n).filter(|_| settings.has(Measure::KnnOverlap));
            let near = Distances { rows: &x, width, spread: &spread }.near(k);
            // Where all rows are equal there is no nearest one.
            let differ = k.is_some() && spread.total() > 0.0;
            out.neighbours = differ.then(|| near.iter().map(|row| row.nearest.clone()).collect());
            out.id = settings.has(Measure::Id).then(|| two_nn(&near)).flatten();
        }
        if directions {
            let k = settings.has(Measure::SubspaceOverlap).then_some(settings.subspace);
            out.principal = Principal::new(&x, width, &spread, k);
        }
        out.spread = Some(spread);
        out
    }
}

impl Spread {
    fn new(x: &[f64], width: usize) -> Self {
        let n = x.len() / width;
        let form = if n <= width { Form::Gram(gram(x, width)) } else { Form::Columns(transposed(x, width)) };
        let norms = x.chunks_exact(width).map(|row| dot(row, row)).collect();
        let mut out = Self { form, norms, own: 0.0 };
        out.own = out.inner(&out);
        out
    }

    /// The sum of squares of all elements.
    pub fn total(&self) -> f64 {
        self.norms.iter().sum()
    }

    /// `<X X', Y Y'>_F = |X' Y|_F^2`.
    pub fn inner(&self, other: &Self) -> f64 {
        match (&self.form, &other.form) {
            (Form::Gram(x), Form::Gram(y)) => dot(x, y),
            (Form::Columns(x), Form::Columns(y)) => {
                let cross = product(x, y, self.norms.len());
                dot(&cross, &cross)
            }
            _ => unreachable!("states of one shape have one form"),
        }
    }
}

impl Principal {
    /// None where no row differs from another. `k` directions are kept for the overlap of subspaces.
    fn new(x: &[f64], width: usize, spread: &Spread, k: Option<usize>) -> Option<Self> {
        let n = x.len() / width;
        let (eigen, of_rows) = match &spread.form {
            Form::Gram(gram) => (Eigen::of(gram, n), true),
            Form::Columns(columns) => (Eigen::of(&gram(columns, n), width), false),
        };
        let rank = eigen.rank(n.max(width));
        let total: f64 = eigen.values[..rank].iter().sum();
        let mut sum = 0.0;
        let before = eigen.values[..rank].iter().take_while(|&&value| {
            sum += value;
            sum < KEPT * total
        });
        let kept = (before.count() + 1).min(rank);
        if kept == 0 {
            return None;
        }
        let k = k.filter(|&k| k > 0 && k <= rank);
        let (side, columns) = if of_rows { (n, transposed(x, width)) } else { (width, x.to_vec()) };
        // The other side's vectors: X' u / sigma of a left one, X v / sigma of a right one.
        let others = |count: usize| -> Vec<f64> {
            let all = product(&eigen.vectors[..count * side], &columns, side);
            let each = all.chunks_exact(columns.len() / side).zip(&eigen.values);
            each.flat_map(|(vector, value)| vector.iter().map(move |x| x / value.sqrt())).collect()
        };
        let own = |count: usize| eigen.vectors[..count * side].to_vec();
        let (left, right) = if of_rows { (own(kept), k.map(others)) } else { (others(kept), k.map(own)) };
        Some(Self { left, right })
    }
}

/// Euclidean distances between rows.
struct Distances<'a> {
    rows: &'a [f64],
    width: usize,
    spread: &'a Spread,
}

impl Distances<'_> {
    /// Squared, of row `i` from every row; exactly 0 between equal rows.
    fn squared(&self, i: usize) -> Vec<f64> {
        let n = self.spread.norms.len();
        let row = |i: usize| &self.rows[i * self.width..(i + 1) * self.width];
        let direct = |j: usize| row(i).iter().zip(row(j)).map(|(a, b)| (a - b) * (a - b)).sum();
        let of = |j: usize| {
            let norms = self.spread.norms[i] + self.spread.norms[j];
            let squared = match &self.spread.form {
                Form::Gram(gram) => norms - 2.0 * gram[i * n + j],
                Form::Columns(_) => norms - 2.0 * dot(row(i), row(j)),
            };
            if squared > CLOSE * norms { squared } else { direct(j) }
        };
        (0..n).map(of).collect()
    }

    /// What is near each row.
    fn near(&self, k: Option<usize>) -> Vec<Near> {
        let rows = 0..self.spread.norms.len();
        let of = |i: usize| {
            let distances = self.squared(i);
            let two = two_smallest(&distances, |j| j != i);
            let repeats = distances[..i].contains(&0.0);
            Near { nearest: k.map_or(Vec::new(), |k| smallest(&distances, i, k)), repeats, two }
        };
        let mut all: Vec<Near> = rows.clone().into_par_iter().map(of).collect();
        let repeats: Vec<bool> = all.iter().map(|row| row.repeats).collect();
        if repeats.contains(&true) {
            // A row that stands twice is one neighbour, not two at the same distance.
            let of = |i: usize| two_smallest(&self.squared(i), |j| j != i && !repeats[j]);
            let twos: Vec<[f64; 2]> = rows.into_par_iter().map(of).collect();
            all.iter_mut().zip(twos).for_each(|(row, two)| row.two = two);
        }
        all
    }
}

/// What is near a row.
struct Near {
    /// The nearest rows, nearest first; of equally near ones the first.
    nearest: Vec<u32>,
    /// Whether an earlier row is the same.
    repeats: bool,
    /// Squared distances of the two nearest rows, of equal ones counted once.
    two: [f64; 2],
}

/// The indices of the `k` least distances but row `i`'s own, in ascending order.
fn smallest(distances: &[f64], i: usize, k: usize) -> Vec<u32> {
    let mut others: Vec<u32> = (0..distances.len() as u32).filter(|&j| j as usize != i).collect();
    let order = |a: &u32, b: &u32| distances[*a as usize].total_cmp(&distances[*b as usize]).then_with(|| a.cmp(b));
    others.select_nth_unstable_by(k - 1, order);
    others.truncate(k);
    others.sort_unstable_by(order);
    others
}

/// The two least distances of some rows; infinite where there are fewer.
fn two_smallest(distances: &[f64], some: impl Fn(usize) -> bool) -> [f64; 2] {
    let mut two = [f64::INFINITY; 2];
    for (_, &d) in distances.iter().enumerate().filter(|(j, _)| some(*j)) {
        if d < two[0] {
            two = [d, two[0]];
        } else if d < two[1] {
            two[1] = d;
        }
    }
    two
}

/// The intrinsic dimension by TwoNN, as the documentation of [`super`] has it.
fn two_nn(near: &[Near]) -> Option<f64> {
    // Half the logarithm of the squares' ratio is that of the distances'.
    let ratios = near.iter().filter(|row| !row.repeats).map(|row| 0.5 * (row.two[1] / row.two[0]).ln());
    let mut logs: Vec<f64> = ratios.collect();
    if logs.len() < 3 {
        return None;
    }
    logs.sort_unstable_by(f64::total_cmp);
    let fitted = (logs.len() as f64 * FITTED) as usize;
    let mut sums = (0.0, 0.0);
    for (i, x) in logs[..fitted].iter().enumerate() {
        let y = -(1.0 - (i + 1) as f64 / logs.len() as f64).ln();
        sums = (sums.0 + x * y, sums.1 + x * x);
    }
    (sums.1 > 0.0).then(|| sums.0 / sums.1)
}
