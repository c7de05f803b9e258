//! Flags that several commands share: device, model, LoRA.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::backend::profile::Recorder;
use crate::model::quantize::QuantizeTo;
use crate::task::{LengthNormalization, Task};

/// What `--model` takes.
pub const MODEL: &str = "Model: a directory with config.json and safetensors, a GGUF file, org/name in the local Hugging Face \
                         cache, or embedded";
/// What `--template` takes.
pub const TEMPLATE: &str = "Prompt template in place of the task's own, in YAML: {query: \"Text: {input}\\nLabel:\", \
                            answer: \" {output}\\n\", chat: false}";
/// What `--apply-chat-template` does.
pub const APPLY_CHAT_TEMPLATE: &str = "Ask through the model's chat template: every demonstration is what the user says and what the assistant \
                                       answers, the query what the user says last (of a --template that says chat: true or \
                                       false, as that says); needs a tokenizer that has one";

/// What `--length-normalization` does.
pub const LENGTH_NORMALIZATION: &str = "By what an answer's log-probability is divided before labels or choices are compared: none (the sum over its \
                                        tokens), or the length of its text in characters (lm-evaluation-harness's acc_norm) or bytes \
                                        (acc_bytes), or in tokens (their mean)";

/// What stands for a task: the name of a built-in one, or the path of a file, which is read later.
pub fn task_word(word: &str) -> Result<String, String> {
    if Task::is_file(word) {
        return Ok(word.to_owned());
    }
    word.parse().map(|task: Task| task.name().to_owned()).map_err(|error| error.to_string())
}

/// Where to compute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub enum Device {
    /// The first GPU, or else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA device by its ordinal.
    Cuda(usize),
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        match device {
            Device::Auto => "auto".into(),
            Device::Cpu => "cpu".into(),
            Device::Cuda(ordinal) => format!("cuda:{ordinal}"),
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
                .and_then(|ordinal| ordinal.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| "expected auto, cpu or cuda:N".into()),
        }
    }
}

/// A file for a profile, and what is recorded for it.
#[derive(Clone, Debug)]
pub struct ProfileArg {
    /// Where it is written.
    pub path: PathBuf,
    /// Where every device of the command records.
    pub recorder: Recorder,
}

impl From<OsString> for ProfileArg {
    fn from(path: OsString) -> Self {
        Self { path: path.into(), recorder: Recorder::default() }
    }
}

/// The dtype of the matrix products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DtypeArg {
    /// The checkpoint's own dtype.
    Auto,
    /// 32-bit floats.
    F32,
    /// 32-bit floats, with products with weights computed as two or three bfloat16 products; CPU with AMX or AVX512-BF16 only.
    F32x3,
    /// bfloat16, accumulated in f32.
    Bf16,
    /// IEEE half precision, accumulated in f32.
    F16,
}

/// By what the log-probabilities of answers are divided before they are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LengthNormalizationArg {
    /// Nothing: the sum over the answer's tokens; acc of lm-evaluation-harness.
    None,
    /// The answer's characters; acc_norm of lm-evaluation-harness.
    Characters,
    /// The answer's bytes in UTF-8; acc_bytes of lm-evaluation-harness.
    Bytes,
    /// The answer's tokens: their mean.
    Tokens,
}

impl From<LengthNormalizationArg> for LengthNormalization {
    fn from(by: LengthNormalizationArg) -> Self {
        match by {
            LengthNormalizationArg::None => Self::None,
            LengthNormalizationArg::Characters => Self::Characters,
            LengthNormalizationArg::Bytes => Self::Bytes,
            LengthNormalizationArg::Tokens => Self::Tokens,
        }
    }
}

/// What a model's projections are quantised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LoadInArg {
    /// 4 bits, of bitsandbytes.
    Nf4,
    /// 8 bits, LLM.int8 without outliers.
    Int8,
}

impl LoadInArg {
    /// The format.
    pub const fn format(self) -> QuantizeTo {
        match self {
            Self::Nf4 => QuantizeTo::Nf4,
            Self::Int8 => QuantizeTo::Int8,
        }
    }
}

/// Flags of every command that computes.
#[derive(Clone, Debug, Args, Serialize)]
pub struct CommonArgs {
    /// Device: auto (the first GPU, or else the CPU), cpu or cuda:N.
    #[arg(long, default_value = "auto", help_heading = "Running")]
    pub device: Device,
    /// Dtype of the matrix products.
    #[arg(long, value_enum, default_value = "auto", alias = "torch-dtype", help_heading = "Running")]
    pub dtype: DtypeArg,
    /// Branch, tag or commit of a model in the Hugging Face cache [default: main].
    #[arg(long, help_heading = "Running")]
    pub revision: Option<String>,
    /// Quantise the projections of the model while it is loaded: to bitsandbytes' NF4 in blocks of 64, or to int8 by rows.
    #[arg(long, value_name = "FORMAT", value_enum, help_heading = "Running")]
    pub load_in: Option<LoadInArg>,
    /// Directory that keeps what --load-in makes, one file for each model and format, for the next time.
    #[arg(long, value_name = "DIR", requires = "load_in", help_heading = "Running")]
    pub load_in_cache: Option<PathBuf>,
    /// Tokenizer of the model, in place of its own: a directory with tokenizer.json.
    #[arg(long, value_name = "DIR", help_heading = "Running")]
    pub tokenizer: Option<PathBuf>,
    /// Number of CPU threads [default: all].
    #[arg(long, help_heading = "Running")]
    pub threads: Option<usize>,
    /// Write what was computed, operation by operation, as a trace for Perfetto or chrome://tracing, and print a table of times
    /// on stderr.
    #[arg(long, value_name = "FILE", help_heading = "Running")]
    #[serde(skip)]
    pub profile: Option<ProfileArg>,
    /// Print results as JSON on stdout.
    #[arg(long, help_heading = "Running")]
    #[serde(skip)]
    pub json: bool,
    /// YAML file with these flags as keys; the command line takes precedence.
    #[arg(long, value_name = "FILE", help_heading = "Running")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
}

/// The base model of a command that has its own adapters, or none.
#[derive(Clone, Debug, Args, Serialize)]
pub struct BaseModelArgs {
    #[arg(long, value_name = "DIR|org/name", aliases = ["model-name-or-path", "base-model"], help = MODEL)]
    pub model: String,
}

/// A base model, and an adapter to apply to it.
#[derive(Debug, Args, Serialize)]
pub struct ModelArgs {
    #[arg(long, value_name = "DIR|org/name", aliases = ["model-name-or-path", "base-model"], help = MODEL)]
    pub model: String,
    /// Adapter to apply: a directory of PEFT, llama.cpp's GGUF file of a LoRA, or org/name in the Hugging Face cache.
    #[arg(long, value_name = "DIR|FILE.gguf|org/name", alias = "lora")]
    pub adapter: Option<PathBuf>,
}

/// Flags of a command that makes another model of one.
#[derive(Debug, Args, Serialize)]
pub struct NewModelArgs {
    /// Directory to write, absent or empty; with `quantize --to q8_0` the path of a GGUF file.
    #[arg(long, value_name = "PATH", alias = "output-dir")]
    pub out: PathBuf,
    /// Branch, tag or commit of a model in the Hugging Face cache [default: main].
    #[arg(long)]
    pub revision: Option<String>,
    /// Print results as JSON on stdout.
    #[arg(long)]
    #[serde(skip)]
    pub json: bool,
    /// YAML file with these flags as keys; the command line takes precedence.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
}

/// The shape of a new LoRA adapter.
#[derive(Clone, Debug, Args, Serialize)]
pub struct LoraArgs {
    /// LoRA rank.
    #[arg(long, default_value_t = 8, aliases = ["lora-r", "lora-rank"], help_heading = "LoRA")]
    pub r: usize,
    /// LoRA alpha: the adapter's output is scaled by lora_alpha / r.
    #[arg(long, default_value_t = 16.0, help_heading = "LoRA")]
    pub lora_alpha: f64,
    /// Modules to adapt: names as in the model's checkpoint (q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj;
    /// c_attn; query_key_value; fc1, ...), all-linear
    /// [default: as in PEFT, q_proj and v_proj, or the fused projection of queries, keys and values].
    #[arg(
        long,
        value_delimiter = ',',
        aliases = ["lora-target", "lora-target-modules"],
        help_heading = "LoRA"
    )]
    pub target_modules: Option<Vec<String>>,
    /// Layers to adapt: all, or a list such as 8,9 or 8-11 [default: all].
    #[arg(long, value_name = "LAYERS", help_heading = "LoRA")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers_to_transform: Option<String>,
}
