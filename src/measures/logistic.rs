//! Logistic regression with an L2 penalty, binary and multinomial, to its optimum.
//!
//! With labels `y`, rows `x` and `C` the inverse of the penalty's strength, the optimum of
//! `|w|^2 / 2 + C sum ln(1 + exp(-y (w x + b)))` for two classes and of `|W|_F^2 / 2 - C sum ln softmax(W x + b)_y` for more: the
//! objective of scikit-learn's `LogisticRegression(C=C)`, whose intercepts are free.
//!
//! Two classes are the softmax of two at `C / 2`, whose optimum has `w_1 = -w_0 = w / 2`. The weights lie in the span of the
//! centred rows, so the problem is solved in its at most `n - 1` principal coordinates; there Newton's steps are solved by
//! conjugate gradients, which the coordinates' variances precondition well.

use super::linear::{Eigen, add_scaled, dot};

/// Newton's steps; each about doubles the digits, so that more than a dozen are rare.
const STEPS: usize = 100;
/// The squared length of a step, in the norm of the Hessian, below which it changes no digit that counts. The Hessian is at
/// least the identity on the weights, so they are then within its root of the optimum.
const DONE: f64 = 1e-22;

/// Rows in coordinates `[n, r]`, centred, with the sum of squares `[r]` of each coordinate.
pub(super) struct Coordinates {
    pub rows: Vec<f64>,
    pub squares: Vec<f64>,
}

/// A classifier of coordinates: for each class a row of weights and an intercept.
pub(super) struct Classifier {
    /// `[classes, r + 1]`, the intercept last; intercepts add up to 0.
    pub weights: Vec<f64>,
    /// Length of a row.
    pub stride: usize,
}

impl Coordinates {
    /// The principal coordinates of centred rows with a Gram matrix `[n, n]`, from its eigenvectors. `width` is the rows'.
    pub fn of(eigen: &Eigen, n: usize, width: usize) -> Self {
        let rank = eigen.rank(n.max(width));
        let squares = eigen.values[..rank].to_vec();
        let coordinate = |i: usize, j: usize| eigen.vectors[j * n + i] * squares[j].sqrt();
        let rows = (0..n).flat_map(|i| (0..rank).map(move |j| (i, j))).map(|(i, j)| coordinate(i, j)).collect();
        Self { rows, squares }
    }
}

impl Classifier {
    /// Fits classes `labels` below `classes`, of which each has a row, with `C`.
    pub fn fit(x: &Coordinates, labels: &[usize], classes: usize, c: f64) -> Self {
        // Two classes as a softmax.
        let c = if classes == 2 { c / 2.0 } else { c };
        let problem = Problem { x, labels, classes, c, r: x.squares.len() };
        let mut weights = vec![0.0; classes * (problem.r + 1)];
        let mut here = problem.at(&weights);
        for _ in 0..STEPS {
            let (step, squared) = problem.step(&here);
            let scale = 1.0 + dot(&weights, &weights);
            let Some((next, there)) = problem.search(&weights, &step, squared, here.objective) else { break };
            (weights, here) = (next, there);
            if squared <= DONE * scale {
                break;
            }
        }
        let stride = problem.r + 1;
        // A number that all intercepts have in common changes nothing.
        let common = weights.chunks_exact(stride).map(|row| row[stride - 1]).sum::<f64>() / classes as f64;
        weights.chunks_exact_mut(stride).for_each(|row| row[stride - 1] -= common);
        Self { weights, stride }
    }

    /// The class of coordinates `[r]`, of equally likely ones the first.
    pub fn class(&self, x: &[f64]) -> usize {
        let (r, score) = (self.stride - 1, |row: &[f64]| dot(&row[..self.stride - 1], x) + row[self.stride - 1]);
        debug_assert_eq!(x.len(), r, "coordinates of the fit");
        let scores: Vec<f64> = self.weights.chunks_exact(self.stride).map(score).collect();
        (1..scores.len()).fold(0, |best, i| if scores[i] > scores[best] { i } else { best })
    }
}

struct Problem<'a> {
    x: &'a Coordinates,
    labels: &'a [usize],
    classes: usize,
    c: f64,
    r: usize,
}

/// What a step from some weights needs.
struct Point {
    objective: f64,
    /// `[classes, r + 1]`.
    gradient: Vec<f64>,
    /// `[n, classes]`.
    probabilities: Vec<f64>,
}

impl Problem<'_> {
    fn row(&self, i: usize) -> &[f64] {
        &self.x.rows[i * self.r..(i + 1) * self.r]
    }

    /// The scores `[n, classes]` of weights.
    fn scores(&self, weights: &[f64]) -> Vec<f64> {
        let score = |x: &[f64], row: &[f64]| dot(&row[..self.r], x) + row[self.r];
        (0..self.labels.len())
            .flat_map(|i| weights.chunks_exact(self.r + 1).map(move |row| (i, row)))
            .map(|(i, row)| score(self.row(i), row))
            .collect()
    }

    /// Adds `C X' D` of some `D` `[n, classes]` to the weights, and `C` times its column sums to the intercepts.
    fn add_back(&self, out: &mut [f64], d: &[f64]) {
        for (i, d) in d.chunks_exact(self.classes).enumerate() {
            for (row, d) in out.chunks_exact_mut(self.r + 1).zip(d) {
                add_scaled(&mut row[..self.r], self.c * d, self.row(i));
                row[self.r] += self.c * d;
            }
        }
    }

    /// The penalty's gradient: the weights without intercepts.
    fn without_intercepts(&self, weights: &[f64]) -> Vec<f64> {
        let mut out = weights.to_vec();
        out.chunks_exact_mut(self.r + 1).for_each(|row| row[self.r] = 0.0);
        out
    }

    fn at(&self, weights: &[f64]) -> Point {
        let mut gradient = self.without_intercepts(weights);
        let mut objective = dot(&gradient, &gradient) / 2.0;
        let mut probabilities = self.scores(weights);
        let mut errors = Vec::with_capacity(probabilities.len());
        for (row, &label) in probabilities.chunks_exact_mut(self.classes).zip(self.labels) {
            let logs = super::outputs::log_softmax(row);
            objective -= self.c * logs[label];
            row.iter_mut().zip(&logs).for_each(|(p, log)| *p = log.exp());
            errors.extend(row.iter().enumerate().map(|(class, p)| if class == label { p - 1.0 } else { *p }));
        }
        self.add_back(&mut gradient, &errors);
        Point { objective, gradient, probabilities }
    }

    /// The Hessian times a direction.
    fn curvature(&self, at: &Point, direction: &[f64]) -> Vec<f64> {
        let mut d = self.scores(direction);
        for (d, p) in d.chunks_exact_mut(self.classes).zip(at.probabilities.chunks_exact(self.classes)) {
            let mean = dot(d, p);
            d.iter_mut().zip(p).for_each(|(d, p)| *d = p * (*d - mean));
        }
        let mut out = self.without_intercepts(direction);
        self.add_back(&mut out, &d);
        out
    }

    /// The inverse of the Hessian's diagonal, as it is if every row has the mean of the probabilities' variances.
    fn preconditioner(&self, at: &Point) -> Vec<f64> {
        let n = self.labels.len() as f64;
        let mut out = Vec::with_capacity(at.gradient.len());
        for class in 0..self.classes {
            let variances = at.probabilities.iter().skip(class).step_by(self.classes).map(|p| p * (1.0 - p));
            let scale = self.c * variances.sum::<f64>() / n;
            out.extend(self.x.squares.iter().map(|square| 1.0 / (1.0 + scale * square)));
            out.push(1.0 / (scale * n).max(f64::MIN_POSITIVE.sqrt()));
        }
        out
    }

    /// Newton's step by conjugate gradients, and its squared length in the norm of the Hessian.
    fn step(&self, at: &Point) -> (Vec<f64>, f64) {
        let inverse = self.preconditioner(at);
        let conditioned = |r: &[f64]| r.iter().zip(&inverse).map(|(r, m)| r * m).collect::<Vec<f64>>();
        let mut step = vec![0.0; at.gradient.len()];
        let mut residual: Vec<f64> = at.gradient.iter().map(|g| -g).collect();
        let mut z = conditioned(&residual);
        let mut direction = z.clone();
        let mut rz = dot(&residual, &z);
        let limit = rz * 1e-12;
        for _ in 0..2 * step.len() {
            let curved = self.curvature(at, &direction);
            let bend = dot(&direction, &curved);
            if rz <= limit || bend <= 0.0 {
                break;
            }
            let length = rz / bend;
            add_scaled(&mut step, length, &direction);
            add_scaled(&mut residual, -length, &curved);
            z = conditioned(&residual);
            let next = dot(&residual, &z);
            direction.iter_mut().zip(&z).for_each(|(d, z)| *d = z + next / rz * *d);
            rz = next;
        }
        let squared = -dot(&step, &at.gradient);
        (step, squared)
    }

    /// The first of the step, its half, its quarter, ... that lowers the objective; none where none does, which is where its
    /// last digits are reached.
    fn search(&self, from: &[f64], step: &[f64], squared: f64, objective: f64) -> Option<(Vec<f64>, Point)> {
        let mut length = 1.0;
        for _ in 0..40 {
            let mut next = from.to_vec();
            add_scaled(&mut next, length, step);
            let there = self.at(&next);
            // Near the optimum the objective's rounding hides what a good step gains.
            if there.objective <= objective - 1e-4 * length * squared + 4.0 * f64::EPSILON * objective.abs() {
                return Some((next, there));
            }
            length /= 2.0;
        }
        None
    }
}
