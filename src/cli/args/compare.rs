//! `compare`.

use std::path::PathBuf;

use clap::{ArgAction, Args};
use serde::Serialize;

use super::common::{APPLY_CHAT_TEMPLATE, BaseModelArgs, CommonArgs, LoraArgs, TEMPLATE, task_word};
use super::optim::RegularizationArgs;
use crate::compare::{ARMS, Retrieval};
use crate::probe::arm::Arm;

/// `compare`.
#[derive(Debug, Args, Serialize)]
#[command(after_help = "\
Examples:
  llamaprobe compare --model DIR --task mtop --train train.jsonl --test dev.jsonl --out run \\
      --num-virtual-tokens 8,32
  llamaprobe compare --model DIR --task logic2text --train train.sql,train.en --test dev.json \\
      --arms icl-random,icl-retrieved --max-new-tokens 80 --out run
  llamaprobe compare --model DIR --task mtop --transfer dart --out run --data \\
      '{mtop: {train: train.jsonl, test: dev.jsonl}, dart: {train: dart.json, test: dart.json}}'

Data are the data sets' original files: sst2 (tsv), en-cs (two text files), totto (jsonl), dart
(json), logic2text (json, or two aligned files: logic,text), spider (json,tables.json or
questions,queries,tables.json), mtop (jsonl).
Every arm, length, seed, source and target is a file in out/cells; the same command resumes where it
was interrupted, and ends in the same out/report.json, with its page out/report.html.
--log-samples writes a line of JSON for each query and cell, in the form of
lm-evaluation-harness 0.4: doc_id, doc, target, arguments, resps, filtered_resps, the metric's
value. So does the same command after the comparison has ended.")]
pub struct CompareArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub base: BaseModelArgs,
    /// Task: a YAML file, or the name of a built-in one, such as sst2, en-cs, totto, dart, logic2text, spider or mtop;
    /// `llamaprobe task --help` has all.
    #[arg(long, value_name = "TASK|FILE.yaml", value_parser = task_word)]
    pub task: String,
    /// The task's data for demonstrations and training; several files with commas between.
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    pub train: Vec<PathBuf>,
    /// The task's data for queries; may be the same.
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    pub test: Vec<PathBuf>,
    /// Further tasks to train and to evaluate on, for the matrix of transfer from source to target task.
    #[arg(long, value_name = "TASKS", value_delimiter = ',', value_parser = task_word)]
    pub transfer: Vec<String>,
    /// Data of several tasks: {task: {train: FILE, test: FILE}, …} in YAML, lists for several files; or a file of it. Where a
    /// task's own file names its data they may be left out.
    #[arg(long, value_name = "YAML|FILE")]
    pub data: Option<String>,
    /// Arms: zero-shot, icl-random, icl-retrieved, lora, pt (soft prompt), ipt (soft prompt before a demonstration).
    #[arg(
        long,
        value_delimiter = ',',
        value_parser = |name: &str| Arm::parse(name, &ARMS),
        default_value = "zero-shot,icl-random,icl-retrieved,pt,ipt"
    )]
    pub arms: Vec<Arm>,
    /// Number of demonstrations per query.
    #[arg(long, default_value_t = 1)]
    pub demos: usize,
    /// Retrieval of demonstrations: bm25 (words), states (the model's mean hidden states) or vectors (of --vectors).
    #[arg(long, default_value = "bm25")]
    pub retrieval: Retrieval,
    /// safetensors file of a sentence encoder's vectors: tensors TASK.train and TASK.test, one row per example.
    #[arg(long, value_name = "FILE")]
    pub vectors: Option<PathBuf>,
    /// Number of virtual tokens of the soft prompts; several with commas between.
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_value = "20")]
    pub num_virtual_tokens: Vec<usize>,
    /// Number of seeds (samples of random demonstrations, and trainings).
    #[arg(long, default_value_t = 3)]
    pub seeds: u64,
    /// First seed; the others count up from it.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Random seed of the split of examples into queries and pool.
    #[arg(long, default_value_t = 0)]
    pub split_seed: u64,
    /// Maximum number of queries [default: 100, or half of a task's own rows].
    #[arg(long)]
    pub queries: Option<usize>,
    /// Maximum number of examples to take demonstrations from [default: all that are not queries].
    #[arg(long)]
    pub pool: Option<usize>,
    /// Number of examples of the pool to train on.
    #[arg(long, default_value_t = 1000)]
    pub train_examples: usize,
    /// Maximum tokens of soft prompt, demonstrations, query and answer together; what is longer loses demonstrations or is
    /// skipped [default: the positions that the model learned (GPT-2, OPT), else no limit].
    #[arg(long, value_name = "TOKENS", aliases = ["cutoff-len", "sequence-len"])]
    pub max_length: Option<usize>,
    /// Maximum number of new tokens per answer.
    #[arg(long, default_value_t = 64, value_name = "TOKENS")]
    pub max_new_tokens: usize,
    /// Number of beams; 1 is greedy decoding.
    #[arg(long, default_value_t = 1, value_name = "BEAMS")]
    pub num_beams: usize,
    /// Stop string, beside the template's newline and the end-of-sequence token; may be repeated; \n is a newline.
    #[arg(long, value_name = "TEXT", action = ArgAction::Append)]
    pub stop: Vec<String>,
    /// Edits of the states inside the model while it writes, in every arm: a YAML list as that of `generate --help`.
    #[arg(long, value_name = "FILE")]
    pub edit: Option<PathBuf>,
    #[arg(long, value_name = "YAML", help = TEMPLATE)]
    pub template: Option<String>,
    #[arg(long, help = APPLY_CHAT_TEMPLATE)]
    pub apply_chat_template: bool,
    #[command(flatten)]
    #[serde(flatten)]
    pub lora: LoraArgs,
    /// Peak learning rate of the soft prompts; decays linearly.
    #[arg(long, default_value_t = 1e-2, alias = "lr", help_heading = "Optimiser")]
    pub learning_rate: f64,
    /// Peak learning rate of LoRA; decays linearly.
    #[arg(long, default_value_t = 1e-3, help_heading = "Optimiser")]
    pub lora_learning_rate: f64,
    /// Number of optimiser steps per training.
    #[arg(long, default_value_t = 300, value_name = "STEPS", help_heading = "Optimiser")]
    pub max_steps: u64,
    /// Number of examples per optimiser step.
    #[arg(long, default_value_t = 8, help_heading = "Optimiser")]
    pub batch_size: usize,
    #[command(flatten)]
    #[serde(flatten)]
    pub regularization: RegularizationArgs,
    /// Number of bins of queries, by the similarity of their nearest demonstration.
    #[arg(long, default_value_t = 3)]
    pub bins: usize,
    /// Number of bootstrap resamples of the confidence intervals.
    #[arg(long, default_value_t = 1000)]
    pub resamples: usize,
    /// Maximum tokens per batch; affects no result beyond rounding in the trainings.
    #[arg(long, default_value_t = 4096, value_name = "TOKENS")]
    pub batch_tokens: usize,
    /// Write what the model wrote to each query as lm-evaluation-harness does: samples/CELL/samples_TASK.jsonl in --out.
    #[arg(long)]
    pub log_samples: bool,
    /// Write the series of all plots of the page as CSV, beside it.
    #[arg(long)]
    pub csv: bool,
    /// Output directory, or that of an interrupted comparison.
    #[arg(long, value_name = "DIR", alias = "output-dir")]
    pub out: PathBuf,
    #[command(flatten)]
    #[serde(flatten)]
    pub common: CommonArgs,
}
