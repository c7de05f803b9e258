//! What is read of prompts.

use super::packing::Group;
use crate::hooks::Site;

/// What an arm made of one group of prompts.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ArmStates {
    /// The states that were read `[rows, C]`: at each of the hooks.
    pub states: Vec<Vec<f32>>,
    /// The log-probability of every answer of every prompt.
    pub log_probs: Vec<Vec<f64>>,
    /// By layer and prompt the attention scores of its last token over its own tokens `[heads, tokens]`; empty where they
    /// are not read.
    pub scores: Vec<Vec<Vec<f32>>>,
}

impl ArmStates {
    /// Before anything is read of a group.
    pub fn empty(group: &Group, hooks: &[(Site, usize)], width: usize) -> Self {
        let wide = hooks.iter().filter(|(site, _)| *site == Site::AttnScores).count();
        Self {
            states: vec![vec![0.0; group.state_rows() * width]; hooks.len() - wide],
            log_probs: group.prompts.iter().map(|p| vec![0.0; p.answers.len()]).collect(),
            scores: vec![vec![Vec::new(); group.prompts.len()]; wide],
        }
    }

    /// The same before anything is scored.
    pub fn unscored(&self) -> Self {
        let log_probs = self.log_probs.iter().map(|answers| vec![0.0; answers.len()]).collect();
        Self { log_probs, ..self.clone() }
    }
}
