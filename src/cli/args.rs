//! The command line as typed: every flag, its aliases, its default and its help. What it means is `resolve`'s.
//!
//! This is the only list of flags. The keys of a `--config` file are these same flags, and the resolved configuration
//! written beside the outputs is these structures serialised.

mod compare;
mod own;
mod train;

use std::path::PathBuf;
use std::sync::LazyLock;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use crate::probe::arm::Arm;
use crate::probe::{SOFT_ARMS, SoftSettings};
use crate::task::Task;
use crate::train::schedule::Schedule;
use crate::train::settings::RunSettings;

pub use compare::CompareArgs;
pub use own::{ExportArgs, PretrainArgs, TaskArgs, TaskName};
pub use train::{Encoder, Method, Start, TrainLoraArgs, TrainPromptArgs, TrainingArgs};

const EXAMPLES: &str = "\
Examples:
  llamaprobe probe
  llamaprobe probe --model org/name --task sst2 --train train.tsv --test dev.tsv --demos 10 --seeds 3 --out run
  llamaprobe compare --model DIR --task mtop --train train.jsonl --test dev.jsonl --num-virtual-tokens 8,32 --out study
  llamaprobe train-lora --model DIR --train data.jsonl --out adapter --r 8 --max-steps 100
  llamaprobe train-prompt --model DIR --train data.jsonl --out prompt --method pt --num-virtual-tokens 20
  llamaprobe capture --model DIR --input texts.jsonl --sites resid_post --tokens last --out states
  llamaprobe generate --model DIR --adapter adapter --prompt 'Once upon a time'
  llamaprobe inspect --model DIR --adapter adapter

Every flag can stand in a YAML file given with --config; a flag on the command line wins over the file. Of a flag that is
given twice the last counts, or, where it takes a list, all together.";

/// The trainer's own defaults.
static DEFAULTS: LazyLock<RunSettings> = LazyLock::new(RunSettings::default);
static SOFT: LazyLock<SoftSettings> = LazyLock::new(SoftSettings::default);

fn soft_arm(name: &str) -> Result<Arm, String> {
    Arm::parse(name, &SOFT_ARMS).map_err(|_| "expected pt or ipt".into())
}

/// Compare in-context learning, instruction tuning and prompt tuning inside a language model.
#[derive(Debug, Parser)]
#[command(name = "llamaprobe", version, after_help = EXAMPLES, args_override_self = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Writes internal states of a model, token by token, to a safetensors file.
    Capture(CaptureArgs),
    /// Tunes a LoRA adapter, and writes it as PEFT does.
    TrainLora(TrainLoraArgs),
    /// Tunes soft prompts, many at once, and writes them as PEFT does.
    TrainPrompt(TrainPromptArgs),
    /// Compares in-context learning with instruction tuning on the same demonstrations, layer by layer.
    Probe(ProbeArgs),
    /// Compares demonstrations, soft prompts and both together on a task, by what the model writes.
    Compare(CompareArgs),
    /// Continues prompts.
    Generate(GenerateArgs),
    /// Shows a model's shape, its memory plan, and what an adapter holds and what PEFT would make of it.
    Inspect(InspectArgs),
    /// Writes the embedded model as a Hugging Face directory.
    ExportEmbedded(ExportArgs),
    /// Trains a small model from nothing to learn in context.
    Pretrain(PretrainArgs),
    /// Shows what a built-in task asks, and evaluates a model on it.
    Task(TaskArgs),
}

/// Where to compute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub enum Device {
    /// The best there is.
    Auto,
    /// The processor.
    Cpu,
    /// A CUDA device by its number.
    Cuda(usize),
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        match device {
            Device::Auto => "auto".into(),
            Device::Cpu => "cpu".into(),
            Device::Cuda(n) => format!("cuda:{n}"),
        }
    }
}

impl std::str::FromStr for Device {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => s
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| "expected auto, cpu or cuda:N".into()),
        }
    }
}

/// The dtype of the matrix products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DtypeArg {
    /// The checkpoint's own.
    Auto,
    /// 32-bit floats.
    F32,
    /// 32-bit floats whose products with weights are made of two or three of bfloat16; cpu with AMX or AVX512-BF16 only.
    F32x3,
    /// bfloat16, accumulated in f32.
    Bf16,
    /// IEEE half precision, accumulated in f32.
    F16,
}

/// Flags of every command.
#[derive(Clone, Debug, Args, Serialize)]
pub struct CommonArgs {
    /// Where to compute: auto, cpu or cuda:N.
    #[arg(long, default_value = "auto", help_heading = "Running")]
    pub device: Device,
    /// Dtype of the matrix products; auto is the checkpoint's own.
    #[arg(long, value_enum, default_value = "auto", alias = "torch-dtype", help_heading = "Running")]
    pub dtype: DtypeArg,
    /// Branch, tag or commit of a model in the cache [default: main].
    #[arg(long, help_heading = "Running")]
    pub revision: Option<String>,
    /// Threads of the processor to use [default: all].
    #[arg(long, help_heading = "Running")]
    pub threads: Option<usize>,
    /// Print results as JSON on stdout.
    #[arg(long, help_heading = "Running")]
    #[serde(skip)]
    pub json: bool,
    /// A YAML file of these flags as keys; the command line wins.
    #[arg(long, value_name = "FILE", help_heading = "Running")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
}

/// Which model and adapter.
#[derive(Debug, Args, Serialize)]
pub struct ModelArgs {
    /// A directory with config.json and safetensors, org/name in the Hugging Face cache, or embedded.
    #[arg(long, value_name = "DIR|org/name", aliases = ["model-name-or-path", "base-model"])]
    pub model: String,
    /// A PEFT adapter directory to apply.
    #[arg(long, value_name = "DIR", alias = "lora")]
    pub adapter: Option<PathBuf>,
}

/// Which tokens of each input are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tokens {
    /// All of them.
    All,
    /// The last one.
    Last,
}

/// A dtype to store activations in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreDtype {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
}

/// `capture`.
#[derive(Debug, Args, Serialize)]
#[command(after_help = "\
Example:
  llamaprobe capture --model DIR --input texts.jsonl --sites resid_post,ln_final.hook_normalized --layers 0,3 \\
      --tokens last --out states

Writes states/activations.safetensors: one tensor [tokens, width] per site and layer, named as TransformerLens names
hooks (blocks.3.hook_resid_post, hook_embed, ln_final.hook_normalized, logits), and doc_id, pos, token_id [tokens].")]
pub struct CaptureArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelArgs,
    /// JSONL; each line {"text": …} or {"input_ids": […]}.
    #[arg(long, value_name = "FILE")]
    pub input: PathBuf,
    /// Sites to keep: resid_post, attn_out, mlp_out, embed, ln_final.hook_normalized, logits, blocks.3.hook_z, …
    #[arg(long, value_delimiter = ',', default_value = "resid_post", alias = "hooks")]
    pub sites: Vec<String>,
    /// Layers of the sites that name none: all, or numbers such as 0,3.
    #[arg(long, default_value = "all")]
    pub layers: String,
    /// Tokens of each input to keep.
    #[arg(long, value_enum, default_value = "all")]
    pub tokens: Tokens,
    /// Dtype of the file.
    #[arg(long, value_enum, default_value = "f32")]
    pub store_dtype: StoreDtype,
    /// Most rows of one pass.
    #[arg(long, default_value_t = 2048, value_name = "ROWS")]
    pub batch_tokens: usize,
    /// Split the file into shards of this many tokens, with an index.
    #[arg(long, value_name = "TOKENS")]
    pub shard_tokens: Option<usize>,
    /// Directory to write.
    #[arg(long, value_name = "DIR", alias = "output-dir")]
    pub out: PathBuf,
    /// Print the memory plan and stop.
    #[arg(long)]
    #[serde(skip)]
    pub dry_run: bool,
    #[command(flatten)]
    #[serde(flatten)]
    pub common: CommonArgs,
}

/// A new adapter's shape.
#[derive(Clone, Debug, Args, Serialize)]
pub struct LoraArgs {
    /// Rank of the adapter.
    #[arg(long, default_value_t = 8, aliases = ["lora-r", "lora-rank"], help_heading = "Adapter")]
    pub r: usize,
    /// The adapter's output is multiplied by lora-alpha / r.
    #[arg(long, default_value_t = 16.0, help_heading = "Adapter")]
    pub lora_alpha: f64,
    /// Modules to adapt, by the names of the model's checkpoint (q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj,
    /// down_proj; c_attn; query_key_value; fc1, ...), all-linear, or (in train-lora) a regular expression for whole module
    /// paths. If not given, those that PEFT adapts: q_proj and v_proj, or what holds queries, keys and values as one.
    #[arg(
        long,
        value_delimiter = ',',
        aliases = ["lora-target", "lora-target-modules"],
        help_heading = "Adapter"
    )]
    pub target_modules: Option<Vec<String>>,
}

/// The optimiser.
#[derive(Debug, Args, Serialize)]
pub struct OptimArgs {
    /// Peak learning rate [default: 0.0002; 0.005 for the example of the embedded model].
    #[arg(long, alias = "lr", help_heading = "Optimiser")]
    pub learning_rate: Option<f64>,
    /// How it moves after the warm-up: linear, cosine or constant.
    #[arg(long, value_name = "NAME", default_value_t = DEFAULTS.schedule, alias = "lr-scheduler", help_heading = "Optimiser")]
    pub lr_scheduler_type: Schedule,
    /// Steps in which the learning rate rises from 0.
    #[arg(long, value_name = "STEPS", conflicts_with = "warmup_ratio", help_heading = "Optimiser")]
    pub warmup_steps: Option<u64>,
    /// The same as a part of all steps.
    #[arg(long, value_name = "PART", help_heading = "Optimiser")]
    pub warmup_ratio: Option<f64>,
    /// Decoupled weight decay.
    #[arg(long, default_value_t = DEFAULTS.weight_decay, help_heading = "Optimiser")]
    pub weight_decay: f64,
    /// Norm to which a larger gradient is cut; 0 never cuts.
    #[arg(long, value_name = "NORM", default_value_t = DEFAULTS.max_grad_norm.unwrap_or(0.0), help_heading = "Optimiser")]
    pub max_grad_norm: f64,
    /// Decay of AdamW's first moment.
    #[arg(long, value_name = "BETA", default_value_t = DEFAULTS.beta1, help_heading = "Optimiser")]
    pub adam_beta1: f64,
    /// Decay of AdamW's second moment.
    #[arg(long, value_name = "BETA", default_value_t = DEFAULTS.beta2, help_heading = "Optimiser")]
    pub adam_beta2: f64,
    /// Added to the root of AdamW's second moment.
    #[arg(long, value_name = "EPSILON", default_value_t = DEFAULTS.epsilon, help_heading = "Optimiser")]
    pub adam_epsilon: f64,
    /// Examples of one pass.
    #[arg(
        long,
        default_value_t = DEFAULTS.batch_size,
        aliases = ["per-device-train-batch-size", "micro-batch-size"],
        help_heading = "Optimiser"
    )]
    pub batch_size: usize,
    /// Passes of one step; the loss is the mean over all label tokens of the step.
    #[arg(long, value_name = "PASSES", default_value_t = DEFAULTS.accumulation, help_heading = "Optimiser")]
    pub gradient_accumulation_steps: usize,
    /// Times through the data [default: 3].
    #[arg(long, aliases = ["num-train-epochs", "num-epochs"], help_heading = "Optimiser")]
    pub epochs: Option<f64>,
    /// Number of steps, in place of epochs.
    #[arg(long, value_name = "STEPS", conflicts_with = "epochs", help_heading = "Optimiser")]
    pub max_steps: Option<u64>,
}

/// `probe`.
#[derive(Clone, Debug, Args, Serialize)]
#[command(after_help = "\
Examples:
  llamaprobe probe
  llamaprobe probe --model DIR --task sst2 --train train.tsv --test dev.tsv --demos 10 --queries 100 --seeds 3 --out run
  llamaprobe probe --model DIR --task en-cs --train pud.en,pud.cs --test pud.en,pud.cs --out run
  llamaprobe probe --model DIR --plan run/report.json --out again

Arms: the query alone (anchor), after demonstrations (ICL), and alone in a model tuned on those demonstrations (IT).
Writes run/report.json and prints the table of cosines by layer.")]
pub struct ProbeArgs {
    /// A directory with config.json and safetensors, org/name in the Hugging Face cache, or embedded.
    #[arg(long, value_name = "DIR|org/name", default_value = "embedded", aliases = ["model-name-or-path", "base-model"])]
    pub model: String,
    /// The task: events (of the invented world; needs no data), sst2 (binary sentiment, GLUE's tsv) or en-cs (English to
    /// Czech, two aligned text files) [default: events for the embedded model, else sst2].
    #[arg(long)]
    pub task: Option<Task>,
    /// Demonstrations are drawn from here; for en-cs two files with a comma between.
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    pub train: Vec<PathBuf>,
    /// Queries are taken from here, in order.
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    pub test: Vec<PathBuf>,
    /// Demonstrations of each seed.
    #[arg(long, default_value_t = 10)]
    pub demos: usize,
    /// Queries.
    #[arg(long, default_value_t = 100)]
    pub queries: usize,
    /// Resamplings of the demonstrations [default: 3; 8 for events].
    #[arg(long)]
    pub seeds: Option<u64>,
    /// The first of their seeds; the others follow it.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// A mapping {query: "Text: {input}\nLabel:", answer: " {output}\n"} in place of the task's own.
    #[arg(long, value_name = "YAML")]
    pub template: Option<String>,
    #[command(flatten)]
    #[serde(flatten)]
    pub lora: LoraArgs,
    /// Learning rate of the tuning [default: 0.001; 0.005 for events].
    #[arg(long, alias = "lr", help_heading = "Optimiser")]
    pub learning_rate: Option<f64>,
    /// Times through the demonstrations; 0 leaves an adapter that changes nothing [default: 10; 40 for events].
    #[arg(long, aliases = ["num-train-epochs", "num-epochs"], help_heading = "Optimiser")]
    pub epochs: Option<f64>,
    /// Demonstrations of a step [default: all].
    #[arg(long, help_heading = "Optimiser")]
    pub batch_size: Option<usize>,
    /// Decoupled weight decay.
    #[arg(long, default_value_t = 0.0, help_heading = "Optimiser")]
    pub weight_decay: f64,
    /// Norm to which a larger gradient is cut; 0 never cuts.
    #[arg(long, value_name = "NORM", default_value_t = 0.0, help_heading = "Optimiser")]
    pub max_grad_norm: f64,
    /// Further arms: pt (a soft prompt before the query), ipt (before demonstrations and query), tuned on the same
    /// demonstrations.
    #[arg(long, value_delimiter = ',', value_parser = soft_arm, value_name = "pt,ipt", help_heading = "Soft prompts")]
    pub arms: Vec<Arm>,
    /// Rows of a soft prompt.
    #[arg(long, default_value_t = SOFT.num_virtual_tokens, value_name = "ROWS", help_heading = "Soft prompts")]
    pub num_virtual_tokens: usize,
    /// Learning rate of the soft prompts.
    #[arg(long, default_value_t = SOFT.learning_rate, value_name = "RATE", help_heading = "Soft prompts")]
    pub prompt_learning_rate: f64,
    /// Times through the demonstrations for the soft prompts.
    #[arg(long, default_value_t = SOFT.epochs, value_name = "EPOCHS", help_heading = "Soft prompts")]
    pub prompt_epochs: f64,
    /// Most rows of one pass; changes no result.
    #[arg(long, default_value_t = 4096, value_name = "ROWS")]
    pub batch_tokens: usize,
    /// Repeat the experiment of a report.
    #[arg(long, value_name = "report.json")]
    pub plan: Option<PathBuf>,
    /// Write each seed's adapter as a PEFT directory.
    #[arg(long)]
    pub save_adapters: bool,
    /// Directory to write.
    #[arg(long, value_name = "DIR", alias = "output-dir", default_value = "run")]
    pub out: PathBuf,
    /// Print the memory plan and stop.
    #[arg(long)]
    #[serde(skip)]
    pub dry_run: bool,
    #[command(flatten)]
    #[serde(flatten)]
    pub common: CommonArgs,
}

/// `generate`.
#[derive(Debug, Args, Serialize)]
#[command(after_help = "\
Examples:
  llamaprobe generate --model DIR --prompt 'Once upon a time' --max-new-tokens 40
  llamaprobe generate --model DIR --input prompts.jsonl --temperature 0.8 --top-p 0.95 --seed 1 --json
  llamaprobe generate --model DIR --prompt 'Review: fine\nSentiment:' --num-beams 4 --stop '\n'")]
pub struct GenerateArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelArgs,
    /// A text to continue; may be repeated.
    #[arg(long, action = ArgAction::Append, conflicts_with = "input")]
    pub prompt: Vec<String>,
    /// JSONL of prompts; each line {"text": …} or {"input_ids": […]}.
    #[arg(long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Most tokens to add.
    #[arg(long, default_value_t = 64)]
    pub max_new_tokens: usize,
    /// Most tokens of soft prompt, prompt and continuation together [default: any number].
    #[arg(long, value_name = "TOKENS")]
    pub max_length: Option<usize>,
    /// A string at which a continuation ends, and which is left out; may be repeated; \n is a line end.
    #[arg(long, value_name = "TEXT", action = ArgAction::Append)]
    pub stop: Vec<String>,
    /// Search with this many beams, as transformers does; 1 takes the most probable token.
    #[arg(long, default_value_t = 1, conflicts_with = "temperature")]
    pub num_beams: usize,
    /// Power of the number of new tokens by which a beam's score is divided.
    #[arg(long, default_value_t = 1.0, requires = "num_beams", allow_negative_numbers = true)]
    pub length_penalty: f64,
    /// Temperature of the sampling; 0 takes the most probable token.
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f64,
    /// Sample from this many most probable tokens only; 0 from all.
    #[arg(long, default_value_t = 0)]
    pub top_k: usize,
    /// Sample from the most probable tokens that make up this probability.
    #[arg(long, default_value_t = 1.0)]
    pub top_p: f64,
    /// Seed of the sampling.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    #[command(flatten)]
    #[serde(flatten)]
    pub common: CommonArgs,
}

/// `inspect`.
#[derive(Debug, Args, Serialize)]
#[command(after_help = "\
Example:
  llamaprobe inspect --model DIR --adapter adapter --json")]
pub struct InspectArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelArgs,
    /// Rows of the pass that the memory plan is for.
    #[arg(long, default_value_t = 512)]
    pub rows: usize,
    #[command(flatten)]
    #[serde(flatten)]
    pub common: CommonArgs,
}
