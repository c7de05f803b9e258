//! Measures of states, answers and updates: against numpy, SciPy, scikit-learn and dadapy's formula, at their identity, at
//! their baselines, and where they have no value.

#[path = "../support/mod.rs"]
mod support;

mod baselines;
mod degenerate;
mod golden;
mod probes;
mod singular;

use llamaprobe::measures::{Measure, Settings, StateMeasures, similarity};

/// Standard normal rows `[n, width]` of a stream.
fn noise(stream: u64, n: usize, width: usize) -> Vec<f32> {
    (0..n).flat_map(|row| similarity::gaussian(stream, 0, row, width)).map(|x| x as f32).collect()
}

/// `x + s y`, rounded once.
fn plus(x: &[f32], s: f32, y: &[f32]) -> Vec<f32> {
    x.iter().zip(y).map(|(x, y)| x + s * y).collect()
}

/// All values by name.
fn named(measures: &StateMeasures) -> Vec<(&'static str, Option<f64>)> {
    Measure::ALL.into_iter().flat_map(|measure| measures.values(measure)).collect()
}

fn with(knn: Option<usize>, subspace: usize) -> Settings {
    Settings { knn, subspace, ..Settings::default() }
}

fn near(found: f64, expected: f64, limit: f64, what: &str) {
    assert!((found - expected).abs() <= limit, "{what}: {found}, expected {expected}");
}
