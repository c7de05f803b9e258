//! The command line as typed: every flag, its aliases, its default and its help. What it means is `resolve`'s.
//!
//! This is the only list of flags. The keys of a `--config` file are these same flags, and the resolved configuration
//! written beside the outputs is these structures serialised.

mod analyze;
mod common;
mod compare;
mod control_vector;
mod embedded;
mod inference;
mod merge;
mod objective;
mod optim;
mod probe;
mod quantize;
mod report;
mod shell;
mod sweep;
mod task;
mod train;

use clap::{Parser, Subcommand};

pub use analyze::AnalyzeArgs;
pub use common::{CommonArgs, Device, DtypeArg, LoraArgs, ProfileArg};
pub use compare::CompareArgs;
pub use control_vector::ControlVectorArgs;
pub use embedded::{ExportArgs, PretrainArgs};
pub use inference::{CaptureArgs, FormatArg, GenerateArgs, InspectArgs, MAX_NEW_TOKENS, NamesArg, StoreDtype, Tokens};
pub use merge::MergeArgs;
pub use objective::{ObjectiveArgs, ObjectiveKind};
pub use optim::{CheckpointArgs, EvalArgs, LogFormat, OptimArgs, RegularizationArgs};
pub use probe::OF_PLAN;
pub use probe::ProbeArgs;
pub use quantize::{QuantizeArgs, QuantizeToArg};
pub use report::ReportArgs;
pub use shell::{CompletionsArgs, ManArgs};
pub use sweep::{Executor, MergeSweepArgs, StatusArgs, SweepAction, SweepArgs, WorkerArgs};
pub use task::{SYNTHETIC, TaskArgs};
pub use train::{
    DEFAULT_LORA_ALPHA, DEFAULT_R, LoraInit, Method, MixArg, Pattern, PeftType, PromptInit, ReparameterizationType,
    TrainLoraArgs, TrainPromptArgs, TrainingArgs,
};

const EXAMPLES: &str = "\
Examples:
  llamaprobe probe
  llamaprobe probe --model org/name --task sst2 --train train.tsv --test dev.tsv --seeds 3 --out run
  llamaprobe probe --model DIR --task task.yaml --out run
  llamaprobe compare --model DIR --task mtop --train train.jsonl --test dev.jsonl --out study
  llamaprobe task task.yaml --check
  llamaprobe sweep grid.yaml --out sweep --jobs 4
  llamaprobe report study --csv
  llamaprobe train-lora --model DIR --train data.jsonl --out adapter --r 8 --max-steps 100
  llamaprobe train-prompt --model DIR --train data.jsonl --out prompt --num-virtual-tokens 20
  llamaprobe capture --model DIR --input texts.jsonl --sites resid_post --tokens last --out states
  llamaprobe analyze base/activations.safetensors tuned/activations.safetensors
  llamaprobe generate --model DIR --adapter adapter --prompt 'Once upon a time'
  llamaprobe inspect --model DIR --adapter adapter
  llamaprobe merge --model DIR --adapter adapter --out merged

A model is a directory as transformers saves it, org/name in the local Hugging Face cache (nothing
is downloaded), or `embedded`: a small model inside this program, the default of probe, train-lora
and train-prompt.

Every flag can be set in a YAML file given with --config; the command line takes precedence.
Underscores count as dashes (--lora_alpha), and usual names of other trainers are aliases (--lr,
--output_dir, --num_train_epochs). Of a flag that is given twice the last value counts (of --r,
--lora-alpha and --learning-rate the last list), or, where it takes a list, all values together.";

/// Compare in-context learning, instruction tuning and prompt tuning inside a language model.
#[derive(Debug, Parser)]
#[command(name = "llamaprobe", version, after_help = EXAMPLES, args_override_self = true)]
pub struct Cli {
    /// The subcommand with its flags.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Capture activations of a model (hidden states, attention patterns, logits, ...) in a safetensors file.
    Capture(CaptureArgs),
    /// Train a LoRA, DoRA or IA3 adapter, and save it as PEFT does.
    TrainLora(Box<TrainLoraArgs>),
    /// Train soft prompts (prompt tuning, P-tuning, prefix tuning), many at once, and save them as PEFT does.
    TrainPrompt(Box<TrainPromptArgs>),
    /// Compare in-context learning with instruction tuning on the same demonstrations, layer by layer.
    Probe(ProbeArgs),
    /// Compare demonstrations, LoRA, soft prompts, and soft prompts with demonstrations, by what the model generates.
    Compare(CompareArgs),
    /// Compare captured states, layer by layer: CKA, SVCCA, neighbours, intrinsic dimension, subspaces, updates.
    Analyze(AnalyzeArgs),
    /// Write the page of a probe, a comparison or a training, from its report.json or its log.
    Report(ReportArgs),
    /// Generate continuations of prompts.
    Generate(GenerateArgs),
    /// Show a model's shape and memory plan, and what an adapter contains and what PEFT would make of it.
    Inspect(InspectArgs),
    /// Merge a LoRA, DoRA or IA3 adapter into the weights, and save the model as transformers does.
    Merge(MergeArgs),
    /// Quantise a model to NF4 or int8, saved as transformers and bitsandbytes do, or to a GGUF file of Q8_0 for llama.cpp.
    Quantize(QuantizeArgs),
    /// Make a steering vector from two captures, in llama.cpp's form of control vectors (GGUF).
    ControlVector(ControlVectorArgs),
    /// Write the embedded model as a Hugging Face directory.
    ExportEmbedded(ExportArgs),
    /// Pretrain a small model from scratch to learn in context.
    Pretrain(PretrainArgs),
    /// Show a task as prompts, check its data, or evaluate a model on it.
    Task(TaskArgs),
    /// Print what completes this program's words in a shell.
    Completions(CompletionsArgs),
    /// Print a manual page, or write all of them.
    Man(ManArgs),
    /// Run a command over a grid of flags, here or on a cluster, and merge the results.
    Sweep(SweepArgs),
}

impl Command {
    /// The flags of a probe.
    pub fn as_probe(&self) -> Option<&ProbeArgs> {
        match self {
            Self::Probe(args) => Some(args),
            _ => None,
        }
    }

    /// The flags of a training of adapters.
    pub fn as_train_lora(&self) -> Option<&TrainLoraArgs> {
        match self {
            Self::TrainLora(args) => Some(args),
            _ => None,
        }
    }

    /// The flags of a capture.
    pub fn as_capture(&self) -> Option<&CaptureArgs> {
        match self {
            Self::Capture(args) => Some(args),
            _ => None,
        }
    }

    /// The flags of a comparison.
    pub fn as_compare(&self) -> Option<&CompareArgs> {
        match self {
            Self::Compare(args) => Some(args),
            _ => None,
        }
    }

    /// The profile that is asked for, of a command that computes.
    pub fn profile(&self) -> Option<&ProfileArg> {
        let common = match self {
            Self::Capture(args) => &args.common,
            Self::TrainLora(args) => &args.training.common,
            Self::TrainPrompt(args) => &args.training.common,
            Self::Probe(args) => &args.common,
            Self::Compare(args) => &args.common,
            Self::Generate(args) => &args.common,
            Self::Inspect(args) => &args.common,
            Self::Pretrain(args) => &args.common,
            Self::Task(args) => &args.common,
            Self::Analyze(_)
            | Self::Report(_)
            | Self::Merge(_)
            | Self::Quantize(_)
            | Self::ControlVector(_)
            | Self::ExportEmbedded(_)
            | Self::Completions(_)
            | Self::Man(_)
            | Self::Sweep(_) => return None,
        };
        common.profile.as_ref()
    }
}
