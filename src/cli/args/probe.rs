//! `probe`.

use std::path::PathBuf;
use std::sync::LazyLock;

use clap::Args;
use serde::Serialize;

use super::common::{BaseModelArgs, CommonArgs, LoraArgs, TEMPLATE};
use super::optim::RegularizationArgs;
use crate::probe::arm::Arm;
use crate::probe::{SOFT_ARMS, SoftSettings};
use crate::task::Task;

static SOFT: LazyLock<SoftSettings> = LazyLock::new(SoftSettings::default);

fn soft_arm(name: &str) -> Result<Arm, String> {
    Arm::parse(name, &SOFT_ARMS).map_err(|_| "expected pt or ipt".into())
}

/// `probe`.
#[derive(Clone, Debug, Args, Serialize)]
#[command(after_help = "\
Examples:
  llamaprobe probe
  llamaprobe probe --model DIR --task sst2 --train train.tsv --test dev.tsv --demos 10 --out run
  llamaprobe probe --model DIR --task en-cs --train pud.en,pud.cs --test pud.en,pud.cs --out run
  llamaprobe probe --model DIR --task sst2 --train train.tsv --test dev.tsv --arms pt,ipt --out run
  llamaprobe probe --model DIR --plan run/report.json --out again

Arms: the query alone (anchor), the query after demonstrations (ICL), and the query alone in a model
that was tuned with LoRA on those demonstrations (instruction tuning, IT). Writes run/report.json
and its page run/report.html, and prints the cosines of the arms' hidden states by layer.",
    mut_arg("model", |arg| arg.required(false).default_value("embedded")),
    mut_arg("max_grad_norm", |arg| arg.default_value("0")))]
pub struct ProbeArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub base: BaseModelArgs,
    /// Task: events (synthetic, built in, needs no data), sst2 (sentiment, TSV as in GLUE) or en-cs (translation from English
    /// to Czech, two aligned text files) [default: events for the embedded model, else sst2].
    #[arg(long)]
    pub task: Option<Task>,
    /// Data that demonstrations are drawn from; for en-cs two files with a comma between.
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    pub train: Vec<PathBuf>,
    /// Data that queries are taken from, in the file's order.
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    pub test: Vec<PathBuf>,
    /// Number of demonstrations per seed.
    #[arg(long, default_value_t = 10)]
    pub demos: usize,
    /// Number of queries.
    #[arg(long, default_value_t = 100)]
    pub queries: usize,
    /// Number of seeds (demonstration samples) [default: 3; 8 for events].
    #[arg(long)]
    pub seeds: Option<u64>,
    /// First seed; the others count up from it.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    #[arg(long, value_name = "YAML", help = TEMPLATE)]
    pub template: Option<String>,
    #[command(flatten)]
    #[serde(flatten)]
    pub lora: LoraArgs,
    /// Learning rate of the instruction tuning, constant [default: 0.001; 0.005 for events].
    #[arg(long, alias = "lr", help_heading = "Optimiser")]
    pub learning_rate: Option<f64>,
    /// Number of epochs over the demonstrations; 0 leaves the adapter untrained [default: 10; 40 for events].
    #[arg(long, aliases = ["num-train-epochs", "num-epochs"], help_heading = "Optimiser")]
    pub epochs: Option<f64>,
    /// Number of demonstrations per optimiser step [default: all].
    #[arg(long, help_heading = "Optimiser")]
    pub batch_size: Option<usize>,
    #[command(flatten)]
    #[serde(flatten)]
    pub regularization: RegularizationArgs,
    /// Further arms, tuned on the same demonstrations: pt (a soft prompt before the query), ipt (a soft prompt before
    /// demonstrations and query).
    #[arg(long, value_delimiter = ',', value_parser = soft_arm, value_name = "pt,ipt", help_heading = "Soft prompts")]
    pub arms: Vec<Arm>,
    /// Number of virtual tokens of a soft prompt.
    #[arg(long, default_value_t = SOFT.num_virtual_tokens, value_name = "TOKENS", help_heading = "Soft prompts")]
    pub num_virtual_tokens: usize,
    /// Learning rate of the soft prompts, constant.
    #[arg(long, default_value_t = SOFT.learning_rate, value_name = "RATE", help_heading = "Soft prompts")]
    pub prompt_learning_rate: f64,
    /// Number of epochs over the demonstrations for the soft prompts.
    #[arg(long, default_value_t = SOFT.epochs, value_name = "EPOCHS", help_heading = "Soft prompts")]
    pub prompt_epochs: f64,
    /// Maximum tokens per batch; affects no result beyond rounding in the tuning.
    #[arg(long, default_value_t = 4096, value_name = "TOKENS")]
    pub batch_tokens: usize,
    /// Repeat the experiment of a report: same demonstrations, queries and settings.
    #[arg(long, value_name = "report.json")]
    pub plan: Option<PathBuf>,
    /// Save each seed's adapter as a PEFT directory.
    #[arg(long)]
    pub save_adapters: bool,
    /// Write the series of all plots of the page as CSV, beside it.
    #[arg(long)]
    pub csv: bool,
    /// Output directory.
    #[arg(long, value_name = "DIR", alias = "output-dir", default_value = "run")]
    pub out: PathBuf,
    /// Print the memory plan and exit.
    #[arg(long)]
    #[serde(skip)]
    pub dry_run: bool,
    #[command(flatten)]
    #[serde(flatten)]
    pub common: CommonArgs,
}
