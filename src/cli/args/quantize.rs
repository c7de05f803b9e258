//! `quantize`.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::common::LoadInArg;

/// `quantize`.
#[derive(Debug, Args, Serialize)]
#[command(after_help = "\
Examples:
  llamaprobe quantize --model DIR --to nf4 --out model-nf4
  llamaprobe quantize --model org/name --to int8 --out model-int8

The projections of the blocks are quantised as bitsandbytes does it: to NF4 in blocks of 64, or to
int8 with a scale a row (LLM.int8 without outliers). Embedding table, head, norms and biases stay as
they are. The directory is one that transformers loads with bitsandbytes, and every command here;
it computes what --load-in computes on the original.")]
pub struct QuantizeArgs {
    /// Model to quantise: a directory, org/name in the Hugging Face cache, or embedded.
    #[arg(long, value_name = "DIR|org/name", aliases = ["model-name-or-path", "base-model"])]
    pub model: String,
    /// Format of the projections.
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub to: LoadInArg,
    /// Directory to write: absent or empty.
    #[arg(long, value_name = "DIR", alias = "output-dir")]
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
