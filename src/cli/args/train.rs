//! Flags of the trainings of adapters.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{CommonArgs, DEFAULTS, LoraArgs, OptimArgs};

/// Flags of every training of an adapter.
#[derive(Debug, Args, Serialize)]
pub struct TrainingArgs {
    /// A directory with config.json and safetensors, org/name in the Hugging Face cache, or embedded.
    #[arg(long, value_name = "DIR|org/name", default_value = "embedded", aliases = ["model-name-or-path", "base-model"])]
    pub model: String,
    /// JSONL of examples [default: ten events, for the embedded model].
    #[arg(long, value_name = "FILE", aliases = ["dataset", "train-file"])]
    pub train: Option<PathBuf>,
    /// Directory to write: the adapter, trainer_log.jsonl, checkpoint-N.
    #[arg(long, value_name = "DIR", alias = "output-dir", default_value = "adapter")]
    pub out: PathBuf,
    #[command(flatten)]
    #[serde(flatten)]
    pub optim: OptimArgs,
    /// Seed of the adapter's start, the order of the data and the dropout.
    #[arg(long, default_value_t = DEFAULTS.seed)]
    pub seed: u64,
    /// Take the examples in the file's order in every epoch.
    #[arg(long)]
    pub no_shuffle: bool,
    /// Longest example in tokens; longer ones are cut at the end.
    #[arg(long, aliases = ["cutoff-len", "sequence-len"])]
    pub max_length: Option<usize>,
    /// A PEFT adapter directory to start from, in place of a fresh one.
    #[arg(long, value_name = "DIR")]
    pub init_adapter: Option<PathBuf>,
    /// Append the end-of-sequence token to every text and completion, and learn it.
    #[arg(long)]
    pub add_eos: bool,
    /// Steps between two checkpoints; 0 writes none.
    #[arg(long, default_value_t = 500)]
    pub save_steps: u64,
    /// Checkpoints that are kept, the newest; 0 keeps all.
    #[arg(long, default_value_t = 2)]
    pub save_total_limit: usize,
    /// Steps between two lines of the log.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub logging_steps: u64,
    /// Continue from a checkpoint directory; latest is the newest one in --out, or the beginning if there is none.
    #[arg(long, value_name = "DIR|latest")]
    #[serde(skip)]
    pub resume_from_checkpoint: Option<String>,
    /// Print the memory plan and stop.
    #[arg(long)]
    #[serde(skip)]
    pub dry_run: bool,
    #[command(flatten)]
    #[serde(flatten)]
    pub common: CommonArgs,
}

/// `train-lora`.
#[derive(Debug, Args, Serialize)]
#[command(after_help = "\
Examples:
  llamaprobe train-lora
  llamaprobe train-lora --model DIR --train data.jsonl --out adapter --epochs 3
  llamaprobe train-lora --config run.yaml --resume-from-checkpoint latest

Lines of the data: {\"prompt\",\"completion\"} (loss on the completion), {\"text\"}, {\"messages\"} (loss on the assistant)
or {\"input_ids\",\"labels\"} (-100 carries no loss).")]
pub struct TrainLoraArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub lora: LoraArgs,
    /// Multiply the adapter's output by lora-alpha / sqrt(r) instead.
    #[arg(long, help_heading = "Adapter")]
    pub use_rslora: bool,
    /// Probability of dropping an input of the adapter.
    #[arg(long, default_value_t = 0.0, help_heading = "Adapter")]
    pub lora_dropout: f64,
    #[command(flatten)]
    #[serde(flatten)]
    pub training: TrainingArgs,
}

/// What is learnt before the sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Prompt tuning: embeddings.
    Pt,
    /// The same, before demonstrations that the data brings for every example.
    Ipt,
    /// P-tuning: embeddings that an MLP makes.
    PTuning,
    /// Prefix tuning: keys and values of every layer.
    Prefix,
}

/// Where a prompt begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
pub enum Start {
    /// Embeddings of random tokens.
    #[value(name = "SAMPLE_VOCAB")]
    #[serde(rename = "SAMPLE_VOCAB")]
    SampleVocab,
    /// Embeddings of a text's tokens, cut or repeated.
    #[value(name = "TEXT")]
    #[serde(rename = "TEXT")]
    Text,
    /// Normal numbers of mean 0 and variance 1, far from any embedding.
    #[value(name = "RANDOM")]
    #[serde(rename = "RANDOM")]
    Random,
}

/// How a prompt is re-parameterised while it is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoder {
    /// Not at all.
    None,
    /// Three layers, as PEFT's PromptEncoder; for a prefix two, as its PrefixEncoder.
    Mlp,
    /// Two layers, whose output is added to the embeddings; at the start it is zero.
    Residual,
}

/// `train-prompt`.
#[derive(Debug, Args, Serialize)]
#[command(after_help = "\
Examples:
  llamaprobe train-prompt --model DIR --train data.jsonl --out prompt --method pt --num-virtual-tokens 20
  llamaprobe train-prompt --model DIR --train data.jsonl --out grid --method p-tuning --num-virtual-tokens 5,20 --seeds 3
  llamaprobe train-prompt --model DIR --train data.jsonl --out more --method pt --init-adapter prompt

Lines of the data are those of train-lora; with --method ipt {\"demonstrations\": [\"...\"],\"query\",\"completion\"} (loss on
the completion). Every pair of a length and a seed is a run of its own; several runs go through the model together, and
are written to OUT/run-N.",
    mut_arg("learning_rate", |a| a.default_value("1e-2")))]
pub struct TrainPromptArgs {
    /// What is learnt: pt, ipt (with demonstrations), p-tuning, prefix.
    #[arg(long, value_enum, default_value = "pt", help_heading = "Prompt")]
    pub method: Method,
    /// Rows of the prompt; of several numbers each is tuned [default: 20, or those of --init-adapter].
    #[arg(long, value_delimiter = ',', value_name = "ROWS", help_heading = "Prompt")]
    pub num_virtual_tokens: Vec<usize>,
    /// Number of seeds, counted from --seed; each is tuned.
    #[arg(long, default_value_t = 1, help_heading = "Prompt")]
    pub seeds: u64,
    /// Where the prompt begins [default: SAMPLE_VOCAB; RANDOM for p-tuning and prefix].
    #[arg(long, value_enum, ignore_case = true, conflicts_with = "init_adapter", help_heading = "Prompt")]
    pub prompt_tuning_init: Option<Start>,
    /// The text of TEXT.
    #[arg(long, value_name = "TEXT", help_heading = "Prompt")]
    pub prompt_tuning_init_text: Option<String>,
    /// Re-parameterise the prompt while it is trained [default: none; mlp for p-tuning].
    #[arg(long, value_enum, value_name = "FORM", alias = "reparameterization", help_heading = "Prompt")]
    pub encoder_reparameterization_type: Option<Encoder>,
    /// Width of the hidden layers of the re-parameterisation [default: that of its input].
    #[arg(long, value_name = "WIDTH", help_heading = "Prompt")]
    pub encoder_hidden_size: Option<usize>,
    #[command(flatten)]
    #[serde(flatten)]
    pub training: TrainingArgs,
}
