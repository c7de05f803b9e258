//! The arms: what is put before a query, and what of the model is trained.

use crate::hooks::{Selection, Site};
use crate::train::objective::Objective;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// An arm of a comparison. The name in configurations is the variant's in kebab case.
///
/// | arm | before the query | trained |
/// |---|---|---|
/// | zero-shot | nothing | nothing |
/// | icl | demonstrations drawn once for all queries of a seed | nothing |
/// | icl-random | demonstrations drawn for each query | nothing |
/// | icl-retrieved | demonstrations like the query | nothing |
/// | lora | nothing | LoRA |
/// | pt | a soft prompt | the soft prompt |
/// | ipt | a soft prompt, then demonstrations | the soft prompt |
/// | it-act | nothing | LoRA, towards the states of ICL (IA2, arXiv 2509.22621) |
/// | it-kl | nothing | LoRA, towards the distributions of ICL (context distillation, arXiv 2209.15189) |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arm {
    /// The query alone; the probe's anchor.
    ZeroShot,
    /// In-context learning with the same demonstrations for every query.
    Icl,
    /// In-context learning with demonstrations drawn at random for each query.
    IclRandom,
    /// In-context learning with demonstrations retrieved for each query.
    IclRetrieved,
    /// The query alone, through a LoRA; the probe's instruction tuning (IT).
    Lora,
    /// Prompt tuning (Lester et al. 2021).
    Pt,
    /// Prompt tuning with demonstrations (Sun et al., arXiv 2302.11521).
    Ipt,
    /// The query alone, through a LoRA that was tuned towards what attention puts out behind demonstrations.
    ItAct,
    /// The query alone, through a LoRA that was tuned towards the answers' distributions behind demonstrations.
    ItKl,
}

impl Arm {
    /// As the command line, plans and cells spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ZeroShot => "zero-shot",
            Self::Icl => "icl",
            Self::IclRandom => "icl-random",
            Self::IclRetrieved => "icl-retrieved",
            Self::Lora => "lora",
            Self::Pt => "pt",
            Self::Ipt => "ipt",
            Self::ItAct => "it-act",
            Self::ItKl => "it-kl",
        }
    }

    /// The arm of a name, of those that a study has.
    ///
    /// # Errors
    /// None of them has this name.
    pub fn parse(name: &str, among: &[Self]) -> Result<Self> {
        let found = among.iter().copied().find(|arm| arm.name() == name);
        let names = || among.iter().map(|arm| arm.name()).collect::<Vec<_>>().join(", ");
        found.ok_or_else(|| Error::unsupported("arm", name, names()))
    }

    /// Whether something is trained.
    pub const fn trains(self) -> bool {
        matches!(self, Self::Lora | Self::Pt | Self::Ipt | Self::ItAct | Self::ItKl)
    }

    /// What it minimizes in a model of so many layers; none for the cross-entropy of the answers, or where nothing is trained.
    pub fn objective(self, depth: usize) -> Option<Objective> {
        let layers: Vec<usize> = (0..depth).collect();
        let (activations, logits, selection) = match self {
            Self::ItAct => (1.0, 0.0, Selection::new(&[Site::AttnOut], &layers)),
            Self::ItKl => (0.0, 1.0, Selection::default()),
            _ => return None,
        };
        Some(Objective { ce: 0.0, activations, logits, selection, temperature: 1.0, table: None })
    }

    /// Whether it is trained towards the model behind demonstrations rather than towards the labels.
    pub const fn has_teacher(self) -> bool {
        matches!(self, Self::ItAct | Self::ItKl)
    }

    /// Whether a soft prompt stands before everything.
    pub const fn has_soft_prompt(self) -> bool {
        matches!(self, Self::Pt | Self::Ipt)
    }

    /// Whether demonstrations stand before the query.
    pub const fn has_demonstrations(self) -> bool {
        matches!(self, Self::Icl | Self::IclRandom | Self::IclRetrieved | Self::Ipt)
    }
}

/// The arms that a probe may have beside zero-shot, ICL and LoRA, which it always has.
pub const FURTHER_ARMS: [Arm; 4] = [Arm::Pt, Arm::Ipt, Arm::ItAct, Arm::ItKl];

/// The name of an arm in reports.
pub const fn arm_name(arm: Arm) -> &'static str {
    match arm {
        Arm::ZeroShot => "anchor",
        Arm::Lora => "it",
        other => other.name(),
    }
}

/// The arm of a name in reports.
pub(super) fn arm_named(name: &str) -> Option<Arm> {
    let known = [Arm::ZeroShot, Arm::Icl, Arm::Lora].into_iter().chain(FURTHER_ARMS);
    known.into_iter().find(|&arm| arm_name(arm) == name)
}
