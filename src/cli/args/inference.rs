//! Flags of the commands that only run a model: `capture`, `generate` and `inspect`.

use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};
use serde::Serialize;

use super::common::{CommonArgs, LoraArgs, ModelArgs};
use crate::backend::prediction::DeviceModel;

/// New tokens where nothing says how many.
pub const MAX_NEW_TOKENS: usize = 64;

/// Which tokens of each input are captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tokens {
    /// Every token.
    All,
    /// The last token only.
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

/// A form of captured states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FormatArg {
    /// One safetensors file, or shards.
    Safetensors,
    /// One array of NumPy per tensor, and activations.json.
    Npy,
}

/// Names of the captured tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NamesArg {
    /// TransformerLens's aliases, as 4.3 means them: blocks.3.hook_resid_post, ln_final.hook_out, logits.
    Tl,
    /// TransformerLens 4's canonical names: blocks.3.hook_out, ln_final.hook_out, unembed.hook_out.
    Tl4,
    /// As llamaprobe 0.1: tl, but hook_normalized is the norm's output, hook_scale the reciprocal of TransformerLens's.
    Llamaprobe1,
}

/// `capture`.
#[derive(Debug, Args, Serialize)]
#[command(after_help = "\
Examples:
  llamaprobe capture --model DIR --input texts.jsonl --tokens last --out states
  llamaprobe capture --model DIR --input texts.jsonl --layers 0,3 --out states \\
      --sites resid_post,ln_final.hook_out
  llamaprobe capture --model DIR --adapter adapter --input texts.jsonl --out states \\
      --sites q_proj.hook_lora_a
  llamaprobe capture --model DIR --input chats.jsonl --add-generation-prompt --out states
  llamaprobe capture --model DIR --input texts.jsonl --out states --shard-tokens 100000 \\
      --resume-from-checkpoint latest
  llamaprobe capture --model DIR --input more.jsonl --out states --shard-tokens 100000 --append

Writes states/activations.safetensors: one tensor [tokens, width] per site and layer, named as
TransformerLens names hooks (blocks.3.hook_resid_post, hook_embed, ln_final.hook_out, logits), and
doc_id, pos, token_id [tokens]. Its metadata say which model, names and layout. --sites takes
the names of TransformerLens 4.3, canonical, alias or short, of the tensors that are here.

A norm of x has hook_scale (sqrt(mean((x - m)^2) + eps), m the mean of a layer norm, else 0),
hook_normalized ((x - m) / hook_scale) and hook_out (that after weight and bias), as in
TransformerLens 4.3. In version 0.1 hook_normalized was the output, and hook_scale the reciprocal:
--names llamaprobe1 reads, in --edit too, and writes them so. The file's metadata say which.

With --shard-tokens the states are in activations-00001-of-0000N.safetensors, ... and an index,
which comes last. A capture that was killed goes on with --resume-from-checkpoint latest: the files
are those of a capture without an interruption, byte for byte. --append writes further shards and
then an index of all. Both refuse shards of another model, adapter, input or setting, and name it.
--format npy writes blocks.3.hook_resid_post.npy, ..., doc_id.npy, pos.npy and token_id.npy, which
numpy.load maps (mmap_mode=\"r\"), and last activations.json with metadata, shapes and dtypes.

--edit FILE.yaml holds a list such as
  [{site: resid_post, layers: 0-3, positions: last, op: add, value: v.safetensors#v, scale: 2.0}]
op: add, replace, scale, zero, mean (of the value's rows), project_out. positions: last, all, or a
list, from 0, negative ones from the end, a soft prompt's rows included. value: a tensor [width] or
[rows, width] of a file beside the YAML file, or a control vector, FILE.gguf. What is captured at an
edited site is what the edit left.")]
pub struct CaptureArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelArgs,
    /// Inputs as JSONL or one JSON list; each row {"text": …}, {"messages": […]} or {"input_ids": […]}.
    #[arg(long, value_name = "FILE")]
    pub input: PathBuf,
    /// End messages with the chat template's generation prompt, where the assistant begins to speak.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, default_value_t = false, default_missing_value = "true",
        value_name = "BOOL")]
    pub add_generation_prompt: bool,
    /// Hook sites to capture: resid_post, attn_out, mlp_out, embed, ln_final.hook_out, logits, blocks.3.attn.hook_z, …
    #[arg(long, value_delimiter = ',', default_value = "resid_post", alias = "hooks")]
    pub sites: Vec<String>,
    /// Names of the tensors, and what hook_scale and hook_normalized mean in --sites, --edit and the file, see below.
    #[arg(long, value_enum, default_value = "tl")]
    pub names: NamesArg,
    /// Layers of the sites that name none: all, or numbers and ranges such as 0,3 or 0-3.
    #[arg(long, default_value = "all")]
    pub layers: String,
    /// Tokens of each input to capture.
    #[arg(long, value_enum, default_value = "all")]
    pub tokens: Tokens,
    /// Edits of the states inside the model: a YAML list of {site, layers, positions, op, value, scale}, see below.
    #[arg(long, value_name = "FILE")]
    pub edit: Option<PathBuf>,
    /// Dtype of the stored activations.
    #[arg(long, value_enum, default_value = "f32")]
    pub store_dtype: StoreDtype,
    /// Form of the files.
    #[arg(long, value_enum, default_value = "safetensors")]
    pub format: FormatArg,
    /// Maximum tokens per batch; a longer input is a batch of its own.
    #[arg(long, default_value_t = 2048, value_name = "TOKENS")]
    pub batch_tokens: usize,
    /// Maximum tokens per file: more are split into shards of whole inputs with an index; a longer input has its own.
    #[arg(long, value_name = "TOKENS")]
    pub shard_tokens: Option<usize>,
    /// Go on behind the last whole shard in --out of an interrupted capture; the only value is latest.
    #[arg(long, value_name = "latest", value_parser = ["latest"], requires = "shard_tokens")]
    #[serde(skip)]
    pub resume_from_checkpoint: Option<String>,
    /// Append the inputs, as further shards, to the capture in --out, which has the same settings; resumed, not those whose
    /// shards are the last already.
    #[arg(long, requires = "shard_tokens")]
    #[serde(skip)]
    pub append: bool,
    /// Output directory.
    #[arg(long, value_name = "DIR", alias = "output-dir")]
    pub out: PathBuf,
    /// Print the memory plan and exit.
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
  llamaprobe generate --model DIR --input prompts.jsonl --temperature 0.8 --top-p 0.95 --json
  echo '{\"messages\": [{\"role\": \"user\", \"content\": \"Why?\"}]}' > chat.jsonl
  llamaprobe generate --model DIR --input chat.jsonl
  llamaprobe generate --model DIR --prompt $'Review: fine\\nSentiment:' --num-beams 4 --stop '\\n'
  llamaprobe generate --model DIR --prompt 'Today I feel' --edit happy.yaml

--edit FILE.yaml holds a list such as
  [{site: resid_post, layers: 0-3, positions: last, op: add, value: v.safetensors#v, scale: 2.0}]
op: add, replace, scale, zero, mean (of the value's rows), project_out. positions: last (the
prompt's last token and each new one), all (of prompt and continuation), or a list of positions of
the prompt, from 0, negative ones from its end, a soft prompt's rows included. value: a tensor
[width] or [rows, width] of a file beside the YAML file, or a control vector, FILE.gguf.")]
pub struct GenerateArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelArgs,
    /// Prompt to continue; may be repeated.
    #[arg(long, action = ArgAction::Append, conflicts_with = "input")]
    pub prompt: Vec<String>,
    /// Prompts as JSONL or one JSON list; each row {"text": …}, {"messages": […]} or {"input_ids": […]}.
    #[arg(long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// End messages with the chat template's generation prompt, where the assistant begins to speak; with false the
    /// last message is continued behind its end.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, default_value_t = true, default_missing_value = "true",
        value_name = "BOOL")]
    pub add_generation_prompt: bool,
    /// Edits of the states inside the model: a YAML list of {site, layers, positions, op, value, scale}, see below.
    #[arg(long, value_name = "FILE")]
    pub edit: Option<PathBuf>,
    /// Maximum number of new tokens.
    #[arg(long, default_value_t = MAX_NEW_TOKENS, value_name = "TOKENS")]
    pub max_new_tokens: usize,
    /// Minimum number of new tokens before one that ends a text [default: generation_config.json's].
    #[arg(long, value_name = "TOKENS")]
    pub min_new_tokens: Option<usize>,
    /// Divisor of the scores of tokens that were seen; 1 disables it [default: generation_config.json's].
    #[arg(long, value_name = "PENALTY")]
    pub repetition_penalty: Option<f64>,
    /// Maximum tokens of soft prompt, prompt and continuation together [default: no limit].
    #[arg(long, value_name = "TOKENS")]
    pub max_length: Option<usize>,
    /// Stop string, which ends a continuation and is not part of it; may be repeated; \n is a newline.
    #[arg(long, value_name = "TEXT", action = ArgAction::Append)]
    pub stop: Vec<String>,
    /// Number of beams of the search, which is that of transformers; 1 is greedy decoding.
    #[arg(long, default_value_t = 1, conflicts_with = "temperature", value_name = "BEAMS")]
    pub num_beams: usize,
    /// Length penalty of the beam search: a score is divided by (number of new tokens)^penalty.
    #[arg(long, default_value_t = 1.0, requires = "num_beams", allow_negative_numbers = true, value_name = "PENALTY")]
    pub length_penalty: f64,
    /// Sampling temperature; 0 is greedy decoding.
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f64,
    /// Sample from the k most probable tokens only; 0 disables the limit.
    #[arg(long, default_value_t = 0, value_name = "K")]
    pub top_k: usize,
    /// Nucleus sampling: sample from the most probable tokens that make up this probability; 1 disables the limit.
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    pub top_p: f64,
    /// Random seed of the sampling.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    #[command(flatten)]
    #[serde(flatten)]
    pub common: CommonArgs,
}

/// A GPU that need not be here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceModelArg {
    /// NVIDIA A100 80 GB SXM.
    A100,
    /// NVIDIA H100 SXM.
    H100,
    /// NVIDIA H200 SXM.
    H200,
}

impl DeviceModelArg {
    /// What is known of it.
    pub const fn model(self) -> DeviceModel {
        match self {
            Self::A100 => DeviceModel::A100,
            Self::H100 => DeviceModel::H100,
            Self::H200 => DeviceModel::H200,
        }
    }
}

/// `inspect`.
#[derive(Debug, Args, Serialize)]
#[command(after_help = "\
Of weights only names, shapes and formats are read: one that is not finite, or has blocks with
such a scale, is named by the command that computes with it (capture, generate, train-lora, ...).

Examples:
  llamaprobe inspect --model DIR --rows 4096
  llamaprobe inspect --model DIR --device-model h200 --r 16 --target-modules all-linear --rows 512
  llamaprobe inspect --model DIR --adapter adapter --json",
    mut_arg("adapter", |arg| arg.help("Adapter to describe: a directory of PEFT, or llama.cpp's GGUF file of a LoRA")))]
pub struct InspectArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelArgs,
    /// Number of tokens per batch that the memory plan is for.
    #[arg(long, default_value_t = 512, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub rows: u32,
    /// Predict, by constants and without any measurement, how long a step of train-lora on so many tokens would take on such a
    /// GPU, and say whether it fits in its memory.
    #[arg(long, value_name = "GPU", value_enum)]
    pub device_model: Option<DeviceModelArg>,
    #[command(flatten)]
    #[serde(flatten)]
    pub lora: LoraArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub common: CommonArgs,
}
