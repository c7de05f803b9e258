//! Flags of `control-vector`.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

/// `control-vector`.
#[derive(Debug, Args, Serialize)]
#[command(after_help = "\
Examples:
  llamaprobe capture --model DIR --input happy.jsonl --tokens last --out happy
  llamaprobe capture --model DIR --input sad.jsonl --tokens last --out sad
  llamaprobe control-vector --positive happy/activations.safetensors \\
      --negative sad/activations.safetensors --out happy.gguf
  echo '[{op: add, value: happy.gguf, scale: 2.0}]' > happy.yaml
  llamaprobe generate --model DIR --prompt 'Today I feel' --edit happy.yaml

The tensor direction.N is added to what block N leaves, blocks counted from 0: to
blocks.N.hook_resid_post, hidden_states[N + 1] of transformers. The form has no place for block 0,
whose states are left out.")]
pub struct ControlVectorArgs {
    /// Captured states with blocks.N.hook_resid_post of what the vector is to bring about.
    #[arg(long, value_name = "FILE")]
    pub positive: PathBuf,
    /// Captured states of its opposite, at the same blocks.
    #[arg(long, value_name = "FILE")]
    pub negative: PathBuf,
    /// GGUF file to write.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Name of the model's architecture for the file's controlvector.model_hint, such as llama.
    #[arg(long, default_value = "", value_name = "NAME")]
    pub model_hint: String,
    /// Print results as JSON on stdout.
    #[arg(long)]
    #[serde(skip)]
    pub json: bool,
    /// YAML file with these flags as keys; the command line takes precedence.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
}
