//! What a training of an adapter minimizes.

use clap::{Args, ValueEnum};
use serde::Serialize;

/// What is minimized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ObjectiveKind {
    /// The cross-entropy of the labels.
    Ce,
    /// The distance of the states that predict the labels to a teacher's (IA2).
    Activations,
    /// The divergence of the distributions of the labels from a teacher's (context distillation).
    Logits,
    /// A weighted sum of these.
    Mixed,
}

/// Flags of the objective.
#[derive(Debug, Args, Serialize)]
pub struct ObjectiveArgs {
    /// What is minimized: the cross-entropy of the label tokens (ce), the distance of the states that predict them to a
    /// teacher's (activations: IA2, arXiv 2509.22621), the divergence of their distributions from a teacher's (logits: context
    /// distillation, arXiv 2209.15189), or a weighted sum (mixed).
    #[arg(long, value_enum, default_value = "ce", help_heading = "Objective")]
    pub objective: ObjectiveKind,
    /// Teacher: icl, the base model on each example behind demonstrations, in the same pass; or an activations.safetensors of
    /// capture whose document k is example k behind what the teacher is to read [default: icl].
    #[arg(long, value_name = "icl|FILE", help_heading = "Objective")]
    pub teacher: Option<String>,
    /// Demonstrations of --teacher icl before each example, drawn from the other examples by the run's seed; those of lines
    /// that have "demonstrations" are these [default: 5, or all others where there are fewer].
    #[arg(long, value_name = "N", help_heading = "Objective")]
    pub demos: Option<usize>,
    /// Text behind each of these demonstrations, where they are no conversations; \n is a newline [default: two newlines].
    #[arg(long, value_name = "TEXT", help_heading = "Objective")]
    pub demos_separator: Option<String>,
    /// Sites whose states are compared, by the names of capture [default: attn_out, as IA2].
    #[arg(long, value_delimiter = ',', value_name = "SITES", help_heading = "Objective")]
    pub objective_sites: Option<Vec<String>>,
    /// Their layers: all, or a list such as 0,3 or 0-3 [default: all].
    #[arg(long, value_name = "LAYERS", help_heading = "Objective")]
    pub objective_layers: Option<String>,
    /// Weight of the cross-entropy in mixed [default: 0.02, as IA2].
    #[arg(long, value_name = "WEIGHT", help_heading = "Objective")]
    pub ce_weight: Option<f64>,
    /// Weight of the states in mixed [default: 0.98, as IA2].
    #[arg(long, value_name = "WEIGHT", alias = "activations-weight", help_heading = "Objective")]
    pub activation_weight: Option<f64>,
    /// Weight of the distributions in mixed [default: 0].
    #[arg(long, value_name = "WEIGHT", alias = "logits-weight", help_heading = "Objective")]
    pub logit_weight: Option<f64>,
    /// Temperature of the distributions, whose divergence is multiplied by its square [default: 1].
    #[arg(long, value_name = "T", help_heading = "Objective")]
    pub temperature: Option<f64>,
}
