//! What an arm did in a condition.

use super::arm::Arm;
use super::arm_states::ArmStates;
use super::report::TuningReport;
use crate::formats::adapter::Adapter;
use crate::task::by_length;

/// What an arm did.
pub(super) struct ArmRun {
    pub arm: Arm,
    /// Of the queries: those of every seed, or one for all seeds.
    pub states: Vec<ArmStates>,
    /// By what the log-probabilities of each query's answers are divided where these are compared: of the queries in `states`.
    pub lengths: Vec<Vec<Vec<f64>>>,
    /// By seed; empty where nothing is trained.
    pub tunings: Vec<TuningReport<f64>>,
    /// By seed; empty where nothing is trained, or where that is no adapter.
    pub adapters: Vec<Adapter>,
}

impl ArmRun {
    /// Before it has done anything.
    pub fn new(arm: Arm) -> Self {
        Self { arm, states: Vec::new(), lengths: Vec::new(), tunings: Vec::new(), adapters: Vec::new() }
    }

    /// The states of a seed.
    pub fn seed(&self, s: usize) -> &ArmStates {
        self.states.get(s).unwrap_or(&self.states[0])
    }

    /// The lengths of a seed's answers.
    pub fn lengths(&self, s: usize) -> &[Vec<f64>] {
        self.lengths.get(s).unwrap_or(&self.lengths[0])
    }

    /// By what a seed's answers are compared.
    pub fn scores(&self, s: usize) -> Vec<Vec<f64>> {
        by_length(&self.seed(s).log_probs, self.lengths(s))
    }
}
