//! Flags of the optimiser and of a training's checkpoints.

use std::path::PathBuf;
use std::sync::LazyLock;

use clap::{ArgAction, Args, ValueEnum};
use serde::{Serialize, Serializer};
use serde_json::json;

use crate::task::metrics::Metric;
use crate::train::schedule::Schedule;
use crate::train::settings::RunSettings;

/// The trainer's own defaults.
pub static DEFAULTS: LazyLock<RunSettings> = LazyLock::new(RunSettings::default);

/// Writes a list of one value as that value, and an empty one as nothing, as where the flag takes no list.
pub fn one_or_list<T: Serialize, S: Serializer>(values: &[T], serializer: S) -> Result<S::Ok, S::Error> {
    match values {
        [] => serializer.serialize_none(),
        [value] => value.serialize(serializer),
        values => values.serialize(serializer),
    }
}

/// What every training has, each with a default of its own.
#[derive(Clone, Debug, Args, Serialize)]
pub struct RegularizationArgs {
    /// Weight decay (decoupled, as in AdamW).
    #[arg(long, default_value_t = DEFAULTS.weight_decay, help_heading = "Optimiser")]
    pub weight_decay: f64,
    /// Gradient-norm clipping threshold; 0 disables clipping.
    #[arg(long, value_name = "NORM", default_value_t = DEFAULTS.max_grad_norm.unwrap_or(0.0), help_heading = "Optimiser")]
    pub max_grad_norm: f64,
}

/// The decays of AdamW.
#[derive(Debug, Args, Serialize)]
pub struct BetaArgs {
    /// AdamW's beta1, the decay of the first moment.
    #[arg(long, value_name = "BETA", default_value_t = DEFAULTS.beta1, help_heading = "Optimiser")]
    pub adam_beta1: f64,
    /// AdamW's beta2, the decay of the second moment.
    #[arg(long, value_name = "BETA", default_value_t = DEFAULTS.beta2, help_heading = "Optimiser")]
    pub adam_beta2: f64,
}

/// The optimiser of a training of adapters.
#[derive(Debug, Args, Serialize)]
pub struct OptimArgs {
    /// Peak learning rate; with a list, one run for each [default: 0.0002; 0.005 for the built-in examples].
    #[arg(
        long,
        alias = "lr",
        action = ArgAction::Set,
        value_delimiter = ',',
        value_name = "LEARNING_RATE",
        help_heading = "Optimiser"
    )]
    #[serde(serialize_with = "one_or_list")]
    pub learning_rate: Vec<f64>,
    /// Learning-rate schedule after the warm-up: linear, cosine or constant.
    #[arg(long, value_name = "NAME", default_value_t = DEFAULTS.schedule, alias = "lr-scheduler", help_heading = "Optimiser")]
    pub lr_scheduler_type: Schedule,
    /// Number of warm-up steps, in which the learning rate rises linearly from 0.
    #[arg(long, value_name = "STEPS", conflicts_with = "warmup_ratio", help_heading = "Optimiser")]
    pub warmup_steps: Option<u64>,
    /// Warm-up as a ratio of all steps.
    #[arg(long, value_name = "RATIO", help_heading = "Optimiser")]
    pub warmup_ratio: Option<f64>,
    #[command(flatten)]
    #[serde(flatten)]
    pub regularization: RegularizationArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub betas: BetaArgs,
    /// AdamW's epsilon.
    #[arg(long, value_name = "EPSILON", default_value_t = DEFAULTS.epsilon, help_heading = "Optimiser")]
    pub adam_epsilon: f64,
    /// Number of examples per forward and backward pass.
    #[arg(
        long,
        default_value_t = DEFAULTS.batch_size,
        aliases = ["per-device-train-batch-size", "micro-batch-size"],
        help_heading = "Optimiser"
    )]
    pub batch_size: usize,
    /// Number of passes per optimiser step; the loss is the mean over all label tokens of the step.
    #[arg(long, value_name = "PASSES", default_value_t = DEFAULTS.accumulation, help_heading = "Optimiser")]
    pub gradient_accumulation_steps: usize,
    /// Number of epochs [default: 3; 40 steps for the built-in examples].
    #[arg(long, aliases = ["num-train-epochs", "num-epochs"], help_heading = "Optimiser")]
    pub epochs: Option<f64>,
    /// Number of optimiser steps, in place of epochs.
    #[arg(long, value_name = "STEPS", conflicts_with = "epochs", help_heading = "Optimiser")]
    pub max_steps: Option<u64>,
}

/// A log beside `trainer_log.jsonl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// No log but `trainer_log.jsonl`.
    None,
    /// Event files for TensorBoard.
    Tensorboard,
    /// A table of comma-separated values.
    Csv,
}

/// Evaluation while training.
#[derive(Debug, Args, Serialize)]
pub struct EvalArgs {
    /// Held-out data, in the form of --train: loss and accuracy of its label tokens are logged for every run.
    #[arg(long, value_name = "FILE", aliases = ["eval-dataset", "eval-file", "validation-file"], help_heading = "Evaluation")]
    pub eval: Option<PathBuf>,
    /// Number of steps between evaluations; a run is also evaluated after its last step [default: 500].
    #[arg(
        long,
        value_name = "STEPS",
        requires = "eval",
        value_parser = clap::value_parser!(u64).range(1..),
        help_heading = "Evaluation"
    )]
    pub eval_steps: Option<u64>,
    /// Also let every run continue the prompts of --eval, greedily as generate does, and judge what it writes.
    #[arg(long, requires = "eval", help_heading = "Evaluation")]
    #[serde(skip_serializing_if = "is_false")]
    pub predict_with_generate: bool,
    /// Metrics of what is written, from 0 to 100: exact_match, bleu, chrf, f1, rouge_l [default: exact_match].
    #[arg(
        long,
        value_name = "METRICS",
        value_delimiter = ',',
        value_parser = written_metric,
        requires = "predict_with_generate",
        help_heading = "Evaluation"
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<Metric>,
    /// Maximum number of new tokens of what is written [default: 64].
    #[arg(
        long,
        value_name = "TOKENS",
        alias = "generation-max-new-tokens",
        requires = "predict_with_generate",
        help_heading = "Evaluation"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_new_tokens: Option<usize>,
    /// End what is written at this text (\n is a newline); may be given several times.
    #[arg(long, value_name = "TEXT", requires = "predict_with_generate", help_heading = "Evaluation")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// What the best evaluation has the best of: loss, accuracy, or one of --metrics [default: loss].
    #[arg(long, value_name = "NAME", requires = "eval", help_heading = "Evaluation")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric_for_best_model: Option<String>,
    /// Whether a greater value is a better one [default: true, unless the name ends in loss].
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        requires = "eval",
        help_heading = "Evaluation"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub greater_is_better: Option<bool>,
    /// Stop a run after so many evaluations one after another that are not better than its best.
    #[arg(
        long,
        value_name = "EVALUATIONS",
        requires = "eval",
        value_parser = clap::value_parser!(u64).range(1..),
        help_heading = "Evaluation"
    )]
    pub early_stopping_patience: Option<u64>,
    /// Write each run's adapter as it was at its best evaluation.
    #[arg(long, requires = "eval", help_heading = "Evaluation")]
    #[serde(skip_serializing_if = "is_false")]
    pub load_best_model_at_end: bool,
}

/// Reads a metric of what is written.
fn written_metric(word: &str) -> Result<Metric, String> {
    let known = [Metric::Exact, Metric::Bleu, Metric::ChrF, Metric::F1, Metric::RougeL];
    let found = known.into_iter().find(|metric| json!(metric) == word);
    found.ok_or_else(|| "expected exact_match, bleu, chrf, f1 or rouge_l".to_owned())
}

pub(super) fn is_false(value: &bool) -> bool {
    !value
}

/// Log and checkpoints of a training.
#[derive(Debug, Args, Serialize)]
pub struct CheckpointArgs {
    /// Number of steps between checkpoints; 0 writes none.
    #[arg(long, default_value_t = 500, value_name = "STEPS", help_heading = "Checkpoints")]
    pub save_steps: u64,
    /// Number of checkpoints to keep, the newest; 0 keeps all.
    #[arg(long, default_value_t = 2, value_name = "CHECKPOINTS", help_heading = "Checkpoints")]
    pub save_total_limit: usize,
    /// Number of steps between lines of the log.
    #[arg(
        long,
        default_value_t = 1,
        value_name = "STEPS",
        value_parser = clap::value_parser!(u64).range(1..),
        help_heading = "Checkpoints"
    )]
    pub logging_steps: u64,
    /// Logs beside trainer_log.jsonl: tensorboard (event files in OUT/runs), csv (OUT/trainer_log.csv).
    #[arg(long, value_enum, value_delimiter = ',', value_name = "LOGS", help_heading = "Checkpoints")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub report_to: Vec<LogFormat>,
    /// Checkpoint directory to resume from, or latest: the newest in --out, or the beginning if there is none.
    #[arg(long, value_name = "DIR|latest", help_heading = "Checkpoints")]
    #[serde(skip)]
    pub resume_from_checkpoint: Option<String>,
}
