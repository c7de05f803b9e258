//! `compare`.

use std::path::PathBuf;

use clap::{ArgAction, Args};
use serde::Serialize;

use super::{CommonArgs, LoraArgs};
use crate::compare::{ARMS, Retrieval};
use crate::probe::arm::Arm;
use crate::task::Task;

/// `compare`.
#[derive(Debug, Args, Serialize)]
#[command(after_help = "\
Examples:
  llamaprobe compare --model DIR --task mtop --train train.jsonl --test dev.jsonl --num-virtual-tokens 8,32 --out run
  llamaprobe compare --model DIR --task logic2text --train train.sql,train.en --test dev.json --arms icl-random,icl-retrieved \\
      --max-new-tokens 80 --out run
  llamaprobe compare --model DIR --task mtop --transfer dart --out run \\
      --data '{mtop: {train: train.jsonl, test: dev.jsonl}, dart: {train: dart.json, test: dart.json}}'

Data are the original files: sst2 (tsv), en-cs (two text files), totto (jsonl), dart (json), logic2text (json, or two
aligned files: logic, text), spider (json,tables.json or questions,queries,tables.json), mtop (jsonl).
Every arm, length, seed, source and target is a file in out/cells; the same command goes on where it was interrupted,
and ends in the same out/report.json.")]
pub struct CompareArgs {
    /// A directory with config.json and safetensors, or org/name in the Hugging Face cache.
    #[arg(long, value_name = "DIR|org/name", aliases = ["model-name-or-path", "base-model"])]
    pub model: String,
    /// The task: sst2, en-cs, totto, dart, logic2text, spider or mtop.
    #[arg(long)]
    pub task: Task,
    /// The task's data for demonstrations and training; several files with commas between.
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    pub train: Vec<PathBuf>,
    /// The task's data for queries; may be the same.
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    pub test: Vec<PathBuf>,
    /// Tasks to train on and to judge on beside the task, for the source by target matrix.
    #[arg(long, value_name = "TASKS", value_delimiter = ',', requires = "data")]
    pub transfer: Vec<Task>,
    /// Data of several tasks: {task: {train: FILE, test: FILE}, …} in YAML, lists for several files; or a file of it.
    #[arg(long, value_name = "YAML|FILE")]
    pub data: Option<String>,
    /// The arms: zero-shot, icl-random, icl-retrieved, lora, pt, ipt.
    #[arg(
        long,
        value_delimiter = ',',
        value_parser = |name: &str| Arm::parse(name, &ARMS),
        default_value = "zero-shot,icl-random,icl-retrieved,pt,ipt"
    )]
    pub arms: Vec<Arm>,
    /// Demonstrations before a query.
    #[arg(long, default_value_t = 1)]
    pub demos: usize,
    /// How demonstrations are retrieved: bm25 (words), states (the model's own mean states) or vectors (of --vectors).
    #[arg(long, default_value = "bm25")]
    pub retrieval: Retrieval,
    /// safetensors of a sentence-encoder's vectors: TASK.train and TASK.test, a row for each example.
    #[arg(long, value_name = "FILE")]
    pub vectors: Option<PathBuf>,
    /// Rows of the soft prompts; several with commas between.
    #[arg(long, value_name = "ROWS", value_delimiter = ',', default_value = "20")]
    pub num_virtual_tokens: Vec<usize>,
    /// Resamplings of random demonstrations, and trainings.
    #[arg(long, default_value_t = 3)]
    pub seeds: u64,
    /// The first of their seeds; the others follow it.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Seed of the order in which examples become queries and pool.
    #[arg(long, default_value_t = 0)]
    pub split_seed: u64,
    /// Most queries.
    #[arg(long, default_value_t = 100)]
    pub queries: usize,
    /// Most examples to take demonstrations from [default: all that are no queries].
    #[arg(long)]
    pub pool: Option<usize>,
    /// Examples of the pool to train on.
    #[arg(long, default_value_t = 1000)]
    pub train_examples: usize,
    /// Most tokens of soft prompt, demonstrations, query and answer; what is longer loses demonstrations or is left out
    /// [default: any number].
    #[arg(long, value_name = "TOKENS", aliases = ["cutoff-len", "sequence-len"])]
    pub max_length: Option<usize>,
    /// Most tokens of an output.
    #[arg(long, default_value_t = 64)]
    pub max_new_tokens: usize,
    /// Beams of the search; 1 is greedy.
    #[arg(long, default_value_t = 1)]
    pub num_beams: usize,
    /// A string at which an output ends, beside the template's line end and the end-of-sequence token; may be repeated.
    #[arg(long, value_name = "TEXT", action = ArgAction::Append)]
    pub stop: Vec<String>,
    /// A mapping {query: "Text: {input}\nLabel:", answer: " {output}\n"} in place of the task's own.
    #[arg(long, value_name = "YAML")]
    pub template: Option<String>,
    #[command(flatten)]
    #[serde(flatten)]
    pub lora: LoraArgs,
    /// Peak learning rate of soft prompts; it falls linearly.
    #[arg(long, default_value_t = 1e-2, alias = "lr", help_heading = "Optimiser")]
    pub learning_rate: f64,
    /// Peak learning rate of the LoRA; it falls linearly.
    #[arg(long, default_value_t = 1e-3, help_heading = "Optimiser")]
    pub lora_learning_rate: f64,
    /// Steps of every training.
    #[arg(long, default_value_t = 300, value_name = "STEPS", help_heading = "Optimiser")]
    pub max_steps: u64,
    /// Examples of a step.
    #[arg(long, default_value_t = 8, help_heading = "Optimiser")]
    pub batch_size: usize,
    /// Decoupled weight decay.
    #[arg(long, default_value_t = 0.0, help_heading = "Optimiser")]
    pub weight_decay: f64,
    /// Norm to which a larger gradient is cut; 0 never cuts.
    #[arg(long, value_name = "NORM", default_value_t = 1.0, help_heading = "Optimiser")]
    pub max_grad_norm: f64,
    /// Groups of queries by the similarity of their nearest demonstration.
    #[arg(long, default_value_t = 3)]
    pub bins: usize,
    /// Resamples of the confidence intervals.
    #[arg(long, default_value_t = 1000)]
    pub resamples: usize,
    /// Most rows of one pass.
    #[arg(long, default_value_t = 4096, value_name = "ROWS")]
    pub batch_tokens: usize,
    /// Directory to write, or to go on in.
    #[arg(long, value_name = "DIR", alias = "output-dir")]
    pub out: PathBuf,
    #[command(flatten)]
    #[serde(flatten)]
    pub common: CommonArgs,
}
