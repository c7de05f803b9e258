//! What an arm did in a condition.

use super::arm::Arm;
use super::arm_states::ArmStates;
use super::report::TuningReport;
use crate::formats::adapter::Adapter;

/// What an arm did.
pub(super) struct ArmRun {
    pub arm: Arm,
    /// Of the queries: those of every seed, or one for all seeds.
    pub states: Vec<ArmStates>,
    /// By seed; empty where nothing is trained.
    pub tunings: Vec<TuningReport<f64>>,
    /// By seed; empty where nothing is trained, or where that is no adapter.
    pub adapters: Vec<Adapter>,
}

impl ArmRun {
    /// The states of a seed.
    pub fn seed(&self, s: usize) -> &ArmStates {
        self.states.get(s).unwrap_or(&self.states[0])
    }
}
