//! Mean and sample standard deviation.

use serde::{Deserialize, Serialize};

/// The mean and spread of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeanSd {
    /// Arithmetic mean; `null` for an empty sample.
    pub mean: Option<f64>,
    /// Standard deviation with n - 1 below the sum; `null` for fewer than two values.
    pub sd: Option<f64>,
}

impl MeanSd {
    /// Of a sample of any size, summed in its order.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.into_iter().collect();
        let n = values.len() as f64;
        let mean = (!values.is_empty()).then(|| values.iter().sum::<f64>() / n);
        let sd = mean.filter(|_| values.len() > 1).map(|mean| {
            let squares: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
            (squares / (n - 1.0)).sqrt()
        });
        Self { mean, sd }
    }
}
