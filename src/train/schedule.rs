//! Learning-rate schedules, step for step those of transformers' `get_scheduler`.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::{Error, Result};

/// The course of the learning rate after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Down to zero in a straight line.
    #[default]
    Linear,
    /// Down to zero along half a cosine.
    Cosine,
    /// No change. Unlike in transformers, where only `constant_with_warmup` has a warm-up and `constant` ignores
    /// the one it is given, a warm-up that is asked for is made.
    Constant,
}

impl Schedule {
    /// Multiplier of the learning rate at optimiser step `step` (from 0) of `total`, of which the first `warmup` rise
    /// from zero in a straight line.
    pub fn factor(self, step: u64, warmup: u64, total: u64) -> f64 {
        if step < warmup {
            return step as f64 / warmup as f64;
        }
        let left = total.saturating_sub(warmup).max(1) as f64;
        match self {
            Self::Linear => total.saturating_sub(step) as f64 / left,
            Self::Cosine => {
                let progress = (step - warmup) as f64 / left;
                (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0)
            }
            Self::Constant => 1.0,
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linear => "linear",
            Self::Cosine => "cosine",
            Self::Constant => "constant",
        })
    }
}

impl FromStr for Schedule {
    type Err = Error;

    /// Reads a name of transformers; `constant_with_warmup` is `constant`.
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "linear" => Ok(Self::Linear),
            "cosine" => Ok(Self::Cosine),
            "constant" | "constant_with_warmup" => Ok(Self::Constant),
            other => Err(Error::unsupported("schedule", other, "linear, cosine, constant, constant_with_warmup")),
        }
    }
}

/// Length of the rise at the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Warmup {
    /// A number of optimiser steps.
    Steps(u64),
    /// Part of all optimiser steps, rounded up.
    Ratio(f64),
}

impl Warmup {
    /// The steps of warm-up out of `total`.
    pub fn steps(self, total: u64) -> u64 {
        match self {
            Self::Steps(n) => n,
            Self::Ratio(r) => (total as f64 * r).ceil() as u64,
        }
    }
}
