//! Flags of the commands about the model that is part of the program.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::CommonArgs;

/// `pretrain`. The defaults are the recipe of the embedded model.
#[derive(Debug, Args, Serialize)]
#[command(after_help = "\
Examples:
  llamaprobe pretrain --out learner
  llamaprobe pretrain --out learner --seed 1 --resume-from-checkpoint latest

Trains a tokenizer and a small LLaMA on the episodes that `llamaprobe task synthetic` shows. Writes a Hugging Face
directory, trainer_log.jsonl, evaluation.jsonl (accuracy by number of demonstrations) and checkpoint-N.")]
pub struct PretrainArgs {
    /// Directory to write.
    #[arg(long, value_name = "DIR", alias = "output-dir")]
    pub out: PathBuf,
    /// Width of the residual stream.
    #[arg(long, default_value_t = 128, help_heading = "Model")]
    pub hidden_size: usize,
    /// Width of the feed-forward layers.
    #[arg(long, default_value_t = 320, help_heading = "Model")]
    pub intermediate_size: usize,
    /// Layers.
    #[arg(long, default_value_t = 4, help_heading = "Model")]
    pub num_hidden_layers: usize,
    /// Query heads.
    #[arg(long, default_value_t = 4, help_heading = "Model")]
    pub num_attention_heads: usize,
    /// Key and value heads.
    #[arg(long, default_value_t = 2, help_heading = "Model")]
    pub num_key_value_heads: usize,
    /// Longest sequence that the model is said to be made for.
    #[arg(long, default_value_t = 512, help_heading = "Model")]
    pub max_position_embeddings: usize,
    /// Tokens at most; training stops adding them when every word is one.
    #[arg(long, default_value_t = 2048, help_heading = "Model")]
    pub vocab_size: usize,
    /// Standard deviation of the first weights.
    #[arg(long, default_value_t = 0.02, help_heading = "Model")]
    pub initializer_range: f64,
    /// Peak learning rate.
    #[arg(long, default_value_t = 1e-3, alias = "lr", help_heading = "Optimiser")]
    pub learning_rate: f64,
    /// Share of it to which the cosine falls.
    #[arg(long, default_value_t = 0.1, help_heading = "Optimiser")]
    pub min_lr_rate: f64,
    /// Steps in which the learning rate rises from 0.
    #[arg(long, default_value_t = 100, value_name = "STEPS", help_heading = "Optimiser")]
    pub warmup_steps: u64,
    /// Steps.
    #[arg(long, default_value_t = 3000, value_name = "STEPS", help_heading = "Optimiser")]
    pub max_steps: u64,
    /// Episodes of a step.
    #[arg(long, default_value_t = 48, help_heading = "Optimiser")]
    pub batch_size: usize,
    /// Decoupled weight decay.
    #[arg(long, default_value_t = 0.05, help_heading = "Optimiser")]
    pub weight_decay: f64,
    /// Norm to which a larger gradient is cut; 0 never cuts.
    #[arg(long, value_name = "NORM", default_value_t = 1.0, help_heading = "Optimiser")]
    pub max_grad_norm: f64,
    /// Decay of AdamW's first moment.
    #[arg(long, value_name = "BETA", default_value_t = 0.9, help_heading = "Optimiser")]
    pub adam_beta1: f64,
    /// Decay of AdamW's second moment.
    #[arg(long, value_name = "BETA", default_value_t = 0.98, help_heading = "Optimiser")]
    pub adam_beta2: f64,
    /// Seed of episodes and first weights.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Most rows of one pass; changes results in rounding only.
    #[arg(long, default_value_t = 2048, value_name = "ROWS")]
    pub batch_tokens: usize,
    /// Steps between two evaluations.
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u64).range(1..))]
    pub eval_steps: u64,
    /// Episodes of an evaluation.
    #[arg(long, default_value_t = 100)]
    pub eval_episodes: usize,
    /// Steps between two checkpoints; 0 writes none.
    #[arg(long, default_value_t = 100)]
    pub save_steps: u64,
    /// Checkpoints that are kept, the newest; 0 keeps all.
    #[arg(long, default_value_t = 2)]
    pub save_total_limit: usize,
    /// Steps between two lines of the log.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    pub logging_steps: u64,
    /// End after this step, although the learning rate is on its way to --max-steps.
    #[arg(long, value_name = "STEP")]
    pub stop_after: Option<u64>,
    /// Continue from a checkpoint directory; latest is the newest one in --out, or the beginning if there is none.
    #[arg(long, value_name = "DIR|latest")]
    #[serde(skip)]
    pub resume_from_checkpoint: Option<String>,
    #[command(flatten)]
    #[serde(flatten)]
    pub common: CommonArgs,
}

/// The tasks that have something to show.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum TaskName {
    /// Episodes of the invented world that the embedded model is trained and tested on.
    Synthetic,
}

/// `task`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llamaprobe task synthetic --show 5
  llamaprobe task synthetic --show 2 --set reviews
  llamaprobe task synthetic --evaluate --model learner")]
pub struct TaskArgs {
    /// Which.
    #[arg(value_enum, value_name = "NAME")]
    pub task: TaskName,
    /// Print so many episodes.
    #[arg(long, default_value_t = 5, value_name = "EPISODES")]
    pub show: usize,
    /// Of which kind: train, or a set of the evaluation: pairs, tasks, reviews, events, unseen, natural.
    #[arg(long, default_value = "train")]
    pub set: String,
    /// Print what a model makes of the evaluation instead, as the tables of its card.
    #[arg(long)]
    pub evaluate: bool,
    /// The model to evaluate: a directory, org/name in the Hugging Face cache, or embedded.
    #[arg(long, value_name = "DIR|org/name", default_value = "embedded")]
    pub model: String,
    /// Episodes of each set.
    #[arg(long, default_value_t = 1000)]
    pub episodes: usize,
    /// Seed of the episodes.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    #[command(flatten)]
    pub common: CommonArgs,
}

/// `export-embedded`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  llamaprobe export-embedded learner")]
pub struct ExportArgs {
    /// Directory to write: a Hugging Face model with its tokenizer and card.
    #[arg(value_name = "DIR")]
    pub out: PathBuf,
}
