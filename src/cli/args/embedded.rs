//! Flags of the commands that make and write the model that is part of the program.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::common::CommonArgs;
use super::optim::{BetaArgs, CheckpointArgs, RegularizationArgs};

/// `pretrain`. The defaults are the recipe of the embedded model.
#[derive(Debug, Args, Serialize)]
#[command(after_help = "\
Examples:
  llamaprobe pretrain --out learner
  llamaprobe pretrain --out learner --seed 1 --resume-from-checkpoint latest

Trains a tokenizer and a small LLaMA on the episodes that `llamaprobe task synthetic` shows. Writes
a Hugging Face directory, trainer_log.jsonl, evaluation.jsonl (accuracy by number of demonstrations)
and checkpoint-N. The defaults are the recipe of the embedded model.",
    mut_arg("weight_decay", |arg| arg.default_value("0.05")),
    mut_arg("adam_beta2", |arg| arg.default_value("0.98")),
    mut_arg("save_steps", |arg| arg.default_value("100")),
    mut_arg("logging_steps", |arg| arg.default_value("10")))]
pub struct PretrainArgs {
    /// Output directory.
    #[arg(long, value_name = "DIR", alias = "output-dir")]
    pub out: PathBuf,
    /// Hidden size (width of the residual stream).
    #[arg(long, default_value_t = 128, value_name = "SIZE", help_heading = "Model")]
    pub hidden_size: usize,
    /// Intermediate size of the MLP.
    #[arg(long, default_value_t = 320, value_name = "SIZE", help_heading = "Model")]
    pub intermediate_size: usize,
    /// Number of layers.
    #[arg(long, default_value_t = 4, value_name = "LAYERS", help_heading = "Model")]
    pub num_hidden_layers: usize,
    /// Number of attention heads.
    #[arg(long, default_value_t = 4, value_name = "HEADS", help_heading = "Model")]
    pub num_attention_heads: usize,
    /// Number of key-value heads (grouped-query attention).
    #[arg(long, default_value_t = 2, value_name = "HEADS", help_heading = "Model")]
    pub num_key_value_heads: usize,
    /// Maximum sequence length, written to config.json.
    #[arg(long, default_value_t = 512, value_name = "TOKENS", help_heading = "Model")]
    pub max_position_embeddings: usize,
    /// Maximum vocabulary size of the tokenizer, whose training ends earlier if every word is a token.
    #[arg(long, default_value_t = 2048, value_name = "SIZE", help_heading = "Model")]
    pub vocab_size: usize,
    /// Standard deviation of the initial weights.
    #[arg(long, default_value_t = 0.02, value_name = "STD", help_heading = "Model")]
    pub initializer_range: f64,
    /// Peak learning rate.
    #[arg(long, default_value_t = 1e-3, alias = "lr", help_heading = "Optimiser")]
    pub learning_rate: f64,
    /// Final learning rate of the cosine schedule, as a ratio of the peak.
    #[arg(long, default_value_t = 0.1, value_name = "RATIO", help_heading = "Optimiser")]
    pub min_lr_rate: f64,
    /// Number of warm-up steps, in which the learning rate rises linearly from 0.
    #[arg(long, default_value_t = 100, value_name = "STEPS", help_heading = "Optimiser")]
    pub warmup_steps: u64,
    /// Number of optimiser steps.
    #[arg(long, default_value_t = 3000, value_name = "STEPS", help_heading = "Optimiser")]
    pub max_steps: u64,
    /// Number of episodes per optimiser step.
    #[arg(long, default_value_t = 48, help_heading = "Optimiser")]
    pub batch_size: usize,
    #[command(flatten)]
    #[serde(flatten)]
    pub regularization: RegularizationArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub betas: BetaArgs,
    /// Random seed of the episodes and the initial weights.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Maximum tokens per batch; affects results in rounding only.
    #[arg(long, default_value_t = 2048, value_name = "TOKENS")]
    pub batch_tokens: usize,
    /// Number of steps between evaluations.
    #[arg(long, default_value_t = 250, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..))]
    pub eval_steps: u64,
    /// Number of episodes per evaluation set.
    #[arg(long, default_value_t = 100, value_name = "EPISODES")]
    pub eval_episodes: usize,
    #[command(flatten)]
    #[serde(flatten)]
    pub checkpoints: CheckpointArgs,
    /// Stop after this step; the learning-rate schedule still extends to --max-steps.
    #[arg(long, value_name = "STEP")]
    pub stop_after: Option<u64>,
    #[command(flatten)]
    #[serde(flatten)]
    pub common: CommonArgs,
}

/// `export-embedded`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  llamaprobe export-embedded learner")]
pub struct ExportArgs {
    /// Output directory: a Hugging Face model with its tokenizer and model card.
    #[arg(value_name = "DIR")]
    pub out: PathBuf,
}
