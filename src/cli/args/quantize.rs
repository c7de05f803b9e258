//! `quantize`.

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::common::NewModelArgs;

/// What `quantize` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
pub enum QuantizeToArg {
    /// A directory of bitsandbytes with projections of 4 bits.
    #[serde(rename = "nf4")]
    Nf4,
    /// A directory of bitsandbytes with projections of 8 bits, LLM.int8 without outliers.
    #[serde(rename = "int8")]
    Int8,
    /// A GGUF file with all matrices in blocks of 32 signed bytes, for llama.cpp.
    #[value(name = "q8_0", alias = "gguf-q8_0")]
    #[serde(rename = "q8_0")]
    Q8_0,
}

/// `quantize`.
#[derive(Debug, Args, Serialize)]
#[command(after_help = "\
Examples:
  llamaprobe quantize --model DIR --to nf4 --out model-nf4
  llamaprobe quantize --model org/name --to int8 --out model-int8
  llamaprobe quantize --model DIR --to q8_0 --out model-q8_0.gguf

nf4 and int8: the projections of the blocks are quantised as bitsandbytes does it, to NF4 in blocks
of 64, or to int8 with a scale a row (LLM.int8 without outliers). Embedding table, head, norms and
biases stay as they are. The directory is one that transformers loads with bitsandbytes, and every
command here; it computes what --load-in computes on the original.

q8_0: a GGUF file as llama.cpp's convert_hf_to_gguf.py --outtype q8_0 writes it, with the tokenizer,
of LLaMA, Mistral, Qwen2, Qwen3 and GPT-2. All matrices, table and head too, are in Q8_0 (in F16
where a row is no multiple of 32), norms and biases in F32.")]
pub struct QuantizeArgs {
    /// Model to quantise: a directory, org/name in the Hugging Face cache, or embedded.
    #[arg(long, value_name = "DIR|org/name", aliases = ["model-name-or-path", "base-model"])]
    pub model: String,
    /// Format of the matrices.
    #[arg(long, value_name = "FORMAT", value_enum, ignore_case = true)]
    pub to: QuantizeToArg,
    #[command(flatten)]
    #[serde(flatten)]
    pub new: NewModelArgs,
}
