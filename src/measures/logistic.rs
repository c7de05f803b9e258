//! Logistic regression with an L2 penalty, binary and multinomial, to its optimum.
//!
//! With labels `y`, rows `x` and `C` the inverse of the penalty's strength, the optimum of
//! `|w|^2 / 2 + C sum ln(1 + exp(-y (w x + b)))` for two classes and of `|W|_F^2 / 2 - C sum ln softmax(W x + b)_y` for more: the
//! objective of scikit-learn's `LogisticRegression(C=C)`, whose intercepts are free.
//!
//! The weights are `w = X' a` with as many numbers `a` as there are rows, so that rows come in as inner products `K` alone, and
//! the scores are `f = K a + b`. Newton's step is the solution of a weighted least-squares problem: with `H` the loss's second
//! derivatives in the scores and `M = (K + H^-1)^-1`, it is `a = r - M K r - M b`, `r = C (y - p) + H f`, and `b` is such that
//! `a` adds up to 0. `M` of several classes, whose `H` is singular, is that of Rasmussen and Williams (2006), equation 3.47
//! and algorithm 3.3.

use super::linear::{Cholesky, add_scaled, dot};
use super::outputs::log_softmax_in_place;

/// Newton's steps; each about doubles the digits, so that more than two dozen are rare.
const STEPS: usize = 200;
/// The squared length of a step, in the norm of the Hessian, below which it changes no digit that counts. The Hessian is at
/// least the identity on the weights, so they are then within its root of the optimum.
const DONE: f64 = 1e-20;

/// A classifier of rows by their inner products with the rows that it was fitted on.
pub(super) struct Classifier {
    /// For each score (one for two classes, one of each class for more) a number per row.
    pub dual: Vec<Vec<f64>>,
    /// One for each score.
    pub intercepts: Vec<f64>,
}

impl Classifier {
    /// Fits rows with inner products `gram` `[n, n]` and `labels` below `classes`, of which each has a row, with `C`.
    pub fn fit(gram: &[f64], labels: &[usize], classes: usize, c: f64) -> Self {
        let scores = if classes == 2 { 1 } else { classes };
        let problem = Problem { gram, labels, scores, c };
        let n = labels.len();
        let mut here = problem.at(vec![vec![0.0; n]; scores], vec![0.0; scores]);
        for _ in 0..STEPS {
            let Some(step) = problem.step(&here) else { break };
            let squared = problem.descent(&here, &step);
            let Some(next) = problem.search(&here, &step, squared) else { break };
            here = next;
            if squared <= DONE * (1.0 + here.penalty) {
                break;
            }
        }
        Self { dual: here.dual, intercepts: here.intercepts }
    }

    /// The class of a row with these inner products, of equally likely ones the first.
    pub fn class(&self, products: &[f64]) -> usize {
        let scores: Vec<f64> = self.dual.iter().zip(&self.intercepts).map(|(a, b)| dot(a, products) + b).collect();
        match scores[..] {
            [score] => usize::from(score > 0.0),
            _ => (1..scores.len()).fold(0, |best, i| if scores[i] > scores[best] { i } else { best }),
        }
    }
}

struct Problem<'a> {
    gram: &'a [f64],
    labels: &'a [usize],
    /// 1, or the number of classes.
    scores: usize,
    c: f64,
}

/// What a step from some weights needs. Lists are by score, then by row.
struct Point {
    dual: Vec<Vec<f64>>,
    intercepts: Vec<f64>,
    /// `K a`.
    products: Vec<Vec<f64>>,
    probabilities: Vec<Vec<f64>>,
    penalty: f64,
    loss: f64,
}

/// A step, with its products.
struct Step {
    dual: Vec<Vec<f64>>,
    intercepts: Vec<f64>,
    products: Vec<Vec<f64>>,
}

impl Problem<'_> {
    fn n(&self) -> usize {
        self.labels.len()
    }

    fn product(&self, x: &[f64]) -> Vec<f64> {
        self.gram.chunks_exact(self.n()).map(|row| dot(row, x)).collect()
    }

    /// Whether a row's label is that of a score; the second class is that of the one score of two.
    fn is(&self, row: usize, score: usize) -> f64 {
        let class = if self.scores == 1 { 1 } else { score };
        f64::from(u8::from(self.labels[row] == class))
    }

    fn at(&self, dual: Vec<Vec<f64>>, intercepts: Vec<f64>) -> Point {
        let products = dual.iter().map(|a| self.product(a)).collect();
        self.with_products(dual, intercepts, products)
    }

    fn with_products(&self, dual: Vec<Vec<f64>>, intercepts: Vec<f64>, products: Vec<Vec<f64>>) -> Point {
        let penalty = dual.iter().zip(&products).map(|(a, k)| dot(a, k)).sum::<f64>() / 2.0;
        let mut probabilities = vec![vec![0.0; self.n()]; self.scores];
        let mut loss = 0.0;
        // Two classes are the softmax of a score and 0.
        let first = usize::from(self.scores == 1);
        let mut logs = vec![0.0; first + self.scores];
        for row in 0..self.n() {
            logs[..first].fill(0.0);
            let scores = logs[first..].iter_mut().zip(products.iter().zip(&intercepts));
            scores.for_each(|(score, (k, b))| *score = k[row] + b);
            log_softmax_in_place(&mut logs);
            loss -= self.c * logs[self.labels[row]];
            let own = &logs[first..];
            own.iter().zip(&mut probabilities).for_each(|(log, p)| p[row] = log.exp());
        }
        Point { dual, intercepts, products, probabilities, penalty, loss }
    }

    /// `C (y - p)`, minus the derivatives of the loss in the scores.
    fn residuals(&self, at: &Point) -> Vec<Vec<f64>> {
        let of = |(score, p): (usize, &Vec<f64>)| {
            p.iter().enumerate().map(|(row, p)| self.c * (self.is(row, score) - p)).collect()
        };
        at.probabilities.iter().enumerate().map(of).collect()
    }

    /// `H v`.
    fn curved(&self, at: &Point, mut v: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
        for row in 0..self.n() {
            let p = |score: usize| at.probabilities[score][row];
            let mean: f64 = (0..self.scores).map(|score| p(score) * v[score][row]).sum();
            v.iter_mut().enumerate().for_each(|(score, v)| v[row] = self.c * p(score) * (v[row] - mean));
        }
        v
    }

    /// Newton's step; none where its equations cannot be solved, which is where the last digits are reached.
    fn step(&self, at: &Point) -> Option<Step> {
        let inverse = Inverse::new(self, at)?;
        let scores = at.products.iter().zip(&at.intercepts).map(|(k, b)| k.iter().map(|k| k + b).collect()).collect();
        let mut dual = self.curved(at, scores);
        dual.iter_mut().zip(self.residuals(at)).for_each(|(r, residuals)| add_scaled(r, 1.0, &residuals));
        let products = dual.iter().map(|r| self.product(r)).collect();
        let taken = inverse.times(products);
        dual.iter_mut().zip(&taken).for_each(|(a, taken)| add_scaled(a, -1.0, taken));
        // M of intercepts, by the score that has one.
        let ones = |of: usize| (0..self.scores).map(|s| vec![f64::from(u8::from(s == of)); self.n()]).collect();
        let offsets: Vec<Vec<Vec<f64>>> = (0..self.scores).map(|score| inverse.times(ones(score))).collect();
        let sums = |x: &[Vec<f64>]| x.iter().map(|x| x.iter().sum::<f64>()).collect::<Vec<f64>>();
        let mut matrix: Vec<f64> = offsets.iter().flat_map(|offset| sums(offset)).collect();
        if self.scores > 1 {
            // A number that all intercepts have in common changes nothing: theirs is 0.
            let scale = (0..self.scores).map(|s| matrix[s * self.scores + s]).sum::<f64>() / self.scores as f64;
            matrix.iter_mut().for_each(|x| *x += scale);
        }
        let intercepts = Cholesky::of(matrix, self.scores)?.solve(sums(&dual));
        for (offset, b) in offsets.iter().zip(&intercepts) {
            dual.iter_mut().zip(offset).for_each(|(a, offset)| add_scaled(a, -b, offset));
        }
        let less = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x - y).collect::<Vec<f64>>();
        let dual: Vec<Vec<f64>> = dual.iter().zip(&at.dual).map(|(x, y)| less(x, y)).collect();
        let products = dual.iter().map(|a| self.product(a)).collect();
        Some(Step { intercepts: less(&intercepts, &at.intercepts), dual, products })
    }

    /// By how much the objective falls per length of a step, to first order: of Newton's its squared length in the norm of the
    /// Hessian.
    fn descent(&self, at: &Point, step: &Step) -> f64 {
        let residuals = self.residuals(at);
        let of = |score: usize| {
            let rest: Vec<f64> = residuals[score].iter().zip(&at.dual[score]).map(|(r, a)| r - a).collect();
            dot(&step.products[score], &rest) + step.intercepts[score] * residuals[score].iter().sum::<f64>()
        };
        (0..self.scores).map(of).sum()
    }

    /// The first of the step, its half, its quarter, ... that lowers the objective; none where none does, which is where its
    /// last digits are reached.
    fn search(&self, from: &Point, step: &Step, squared: f64) -> Option<Point> {
        let objective = from.penalty + from.loss;
        let mut length = 1.0;
        for _ in 0..40 {
            let moved = |x: &[Vec<f64>], by: &[Vec<f64>]| -> Vec<Vec<f64>> {
                x.iter().zip(by).map(|(x, by)| x.iter().zip(by).map(|(x, by)| x + length * by).collect()).collect()
            };
            let intercepts = from.intercepts.iter().zip(&step.intercepts).map(|(b, by)| b + length * by).collect();
            let products = moved(&from.products, &step.products);
            let there = self.with_products(moved(&from.dual, &step.dual), intercepts, products);
            // Near the optimum the objective's rounding hides what a good step gains.
            let slack = 8.0 * f64::EPSILON * objective.abs();
            if there.penalty + there.loss <= objective - 1e-4 * length * squared + slack {
                return Some(there);
            }
            length /= 2.0;
        }
        None
    }
}

/// `M = (K + H^-1)^-1`.
///
/// With `D` the diagonal of `H` for one score and `C p` for several, `E = (K + D^-1)^-1 = sqrt(D) (I + sqrt(D) K sqrt(D))^-1
/// sqrt(D)` of each score: `M` is `E` for one, and `E - E R (sum E)^-1 R' E`, `R` the sum over the scores, for several.
struct Inverse {
    /// Of each score `sqrt(D)` and the decomposition of `I + sqrt(D) K sqrt(D)`.
    parts: Vec<(Vec<f64>, Cholesky)>,
    /// Of `sum E`; none for one score.
    sum: Option<Cholesky>,
}

impl Inverse {
    fn new(problem: &Problem, at: &Point) -> Option<Self> {
        let n = problem.n();
        let one = problem.scores == 1;
        let part = |p: &Vec<f64>| {
            let root = |p: &f64| (problem.c * if one { p * (1.0 - p) } else { *p }).sqrt();
            let roots: Vec<f64> = p.iter().map(root).collect();
            let mut matrix: Vec<f64> = Vec::with_capacity(n * n);
            for (i, row) in problem.gram.chunks_exact(n).enumerate() {
                matrix.extend(row.iter().zip(&roots).map(|(k, root)| k * root * roots[i]));
                matrix[i * n + i] += 1.0;
            }
            Some((roots, Cholesky::of(matrix, n)?))
        };
        let parts: Vec<(Vec<f64>, Cholesky)> = at.probabilities.iter().map(part).collect::<Option<_>>()?;
        let mut sum = vec![0.0; if one { 0 } else { n * n }];
        for (roots, part) in parts.iter().filter(|_| !one) {
            for (i, row) in part.inverse().chunks_exact(n).enumerate() {
                let of_row = sum[i * n..(i + 1) * n].iter_mut().zip(row).zip(roots);
                of_row.for_each(|((sum, x), root)| *sum += roots[i] * x * root);
            }
        }
        let sum = if one { None } else { Some(Cholesky::of(sum, n)?) };
        Some(Self { parts, sum })
    }

    /// `M v`.
    fn times(&self, v: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
        let scaled = |x: &[f64], roots: &[f64]| x.iter().zip(roots).map(|(x, root)| x * root).collect::<Vec<f64>>();
        let e = |v: &[f64], (roots, part): &(Vec<f64>, Cholesky)| scaled(&part.solve(scaled(v, roots)), roots);
        let mut out: Vec<Vec<f64>> = v.iter().zip(&self.parts).map(|(v, part)| e(v, part)).collect();
        if let Some(sum) = &self.sum {
            let mut all = vec![0.0; out[0].len()];
            out.iter().for_each(|x| add_scaled(&mut all, 1.0, x));
            let shared = sum.solve(all);
            out.iter_mut().zip(&self.parts).for_each(|(x, part)| add_scaled(x, -1.0, &e(&shared, part)));
        }
        out
    }
}
