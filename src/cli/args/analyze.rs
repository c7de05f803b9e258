//! `analyze`.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

/// `analyze`.
#[derive(Debug, Args, Serialize)]
#[command(after_help = "\
Examples:
  llamaprobe analyze base/activations.safetensors tuned/activations.safetensors
  llamaprobe analyze icl.safetensors it.safetensors --anchor zero.safetensors --json
  llamaprobe analyze a.safetensors b.safetensors --measures cka_debiased,knn_overlap --knn 10

Row i of every file is the same query: files have as many rows, and the same doc_id and pos where
they have these columns. (With one row of each document, only doc_id: demonstrations move a query.)
Every measure has its baselines: the rows of B shuffled, and Gaussian rows in their place.")]
pub struct AnalyzeArgs {
    /// Captured states of the first arm: a safetensors file, or the index of its shards.
    #[arg(value_name = "A.safetensors")]
    pub a: PathBuf,
    /// Captured states of the second arm.
    #[arg(value_name = "B.safetensors")]
    pub b: PathBuf,
    /// Captured states from which the arms' updates are taken, such as those of the query alone in the base model.
    #[arg(long, value_name = "C.safetensors")]
    pub anchor: Option<PathBuf>,
    /// Measures, or all: cosine, update, norm_ratio, cka, cka_debiased, svcca, knn_overlap, id, subspace_overlap.
    #[arg(long, value_delimiter = ',', default_value = "all", value_name = "LIST")]
    pub measures: Vec<String>,
    /// Number of nearest neighbours of knn_overlap [default: 30, or a quarter of the rows].
    #[arg(long, value_name = "K")]
    pub knn: Option<usize>,
    /// Number of leading principal directions of subspace_overlap [default: 10].
    #[arg(long, value_name = "K")]
    pub subspace: Option<usize>,
    /// Random seed of the baselines.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Number of CPU threads [default: all].
    #[arg(long)]
    pub threads: Option<usize>,
    /// Print results as JSON on stdout.
    #[arg(long)]
    #[serde(skip)]
    pub json: bool,
    /// YAML file with these flags as keys; the command line takes precedence.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
}
