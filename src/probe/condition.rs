//! What is run: the conditions of a study, and its model.

use super::factors::Levels;
use super::plan::Plan;
use super::settings::ProbeSettings;
use crate::formats::safetensors::Checkpoint;
use crate::hooks::Edit;

/// A probe that is planned, one of a study's.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    /// What sets it apart from the others.
    pub levels: Levels,
    /// With those levels.
    pub settings: ProbeSettings,
    /// With those settings.
    pub plan: Plan,
}

/// The model of a study.
#[derive(Clone, Copy)]
pub struct Base<'a> {
    /// Its name in reports and adapters.
    pub name: &'a str,
    /// Its weights, which full tuning starts from and direct logit attribution reads.
    pub checkpoint: Option<&'a Checkpoint>,
    /// What is written into the states of every arm while its prompts are read; trainings are not edited.
    pub edits: &'a [Edit],
}
