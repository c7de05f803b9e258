//! What tells cells, and the trainings behind them, apart; their file names.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::probe::arm::Arm;

/// What a cell is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CellKey {
    /// How it asks or trains.
    pub arm: Arm,
    /// Name of the task trained on; none for arms that train nothing.
    pub source: Option<String>,
    /// Name of the task judged on.
    pub target: String,
    /// Rows of the soft prompt.
    pub length: Option<usize>,
    /// The seed; none where nothing is random.
    pub seed: Option<u64>,
}

impl fmt::Display for CellKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.arm.name())?;
        self.source.as_ref().map_or(Ok(()), |source| write!(f, ".{source}"))?;
        write!(f, ".{}", self.target)?;
        self.length.map_or(Ok(()), |length| write!(f, ".p{length}"))?;
        self.seed.map_or(Ok(()), |seed| write!(f, ".seed-{seed}"))
    }
}

/// What one training is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainingKey {
    /// How it asks or trains.
    pub arm: Arm,
    /// Name of the task trained on.
    pub source: String,
    /// Rows of the soft prompt.
    pub length: Option<usize>,
    /// Seed of the start and of the data's order.
    pub seed: Option<u64>,
}

impl fmt::Display for TrainingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.arm.name(), self.source)?;
        self.length.map_or(Ok(()), |length| write!(f, ".p{length}"))?;
        self.seed.map_or(Ok(()), |seed| write!(f, ".seed-{seed}"))
    }
}
