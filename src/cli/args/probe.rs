//! `probe`.

use std::path::PathBuf;
use std::sync::LazyLock;

use clap::{ArgAction, Args, ValueEnum};
use serde::Serialize;

use super::common::{
    APPLY_CHAT_TEMPLATE, BaseModelArgs, CommonArgs, LENGTH_NORMALIZATION, LengthNormalizationArg, LoraArgs, TEMPLATE,
    task_word,
};
use super::optim::RegularizationArgs;
use crate::probe::arm::{Arm, FURTHER_ARMS};
use crate::probe::{Position, SimilarityBy, SoftSettings, TuningKind};

static SOFT: LazyLock<SoftSettings> = LazyLock::new(SoftSettings::default);

/// What instruction tuning trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TuningArg {
    /// A LoRA over the frozen weights.
    Lora,
    /// All weights.
    Full,
}

/// What similarity is measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SimilarityByArg {
    /// Words.
    Bm25,
    /// The model's states.
    States,
}

fn position(name: &str) -> Result<Position, String> {
    Position::parse(name).map_err(|_| format!("expected {}", Position::ALL.map(Position::name).join(", ")))
}

impl From<TuningArg> for TuningKind {
    fn from(tuning: TuningArg) -> Self {
        match tuning {
            TuningArg::Lora => Self::Lora,
            TuningArg::Full => Self::Full,
        }
    }
}

impl From<SimilarityByArg> for SimilarityBy {
    fn from(by: SimilarityByArg) -> Self {
        match by {
            SimilarityByArg::Bm25 => Self::Bm25,
            SimilarityByArg::States => Self::States,
        }
    }
}

fn further_arm(name: &str) -> Result<Arm, String> {
    Arm::parse(name, &FURTHER_ARMS).map_err(|_| "expected pt, ipt, it-act or it-kl".into())
}

/// The flags of what a plan says.
pub const OF_PLAN: [&str; 30] = [
    "task",
    "train",
    "test",
    "demos",
    "queries",
    "seeds",
    "seed",
    "template",
    "apply_chat_template",
    "vary",
    "similarity_by",
    "position",
    "length_normalization",
    "measures",
    "patch",
    "tuning",
    "r",
    "lora_alpha",
    "target_modules",
    "layers_to_transform",
    "learning_rate",
    "epochs",
    "batch_size",
    "weight_decay",
    "max_grad_norm",
    "arms",
    "num_virtual_tokens",
    "prompt_learning_rate",
    "prompt_epochs",
    "batch_tokens",
];

/// `probe`.
#[derive(Clone, Debug, Args, Serialize)]
#[command(after_help = "\
Examples:
  llamaprobe probe
  llamaprobe probe --model DIR --task sst2 --train train.tsv --test dev.tsv --demos 10 --out run
  llamaprobe probe --model DIR --task antonym --out run
  llamaprobe probe --model DIR --task task.yaml --out run
  llamaprobe probe --model DIR --task en-cs --train pud.en,pud.cs --test pud.en,pud.cs --out run
  llamaprobe probe --model DIR --task sst2 --train train.tsv --test dev.tsv --arms pt,ipt --out run
  llamaprobe probe --model DIR --plan run/report.json --out again

Arms: the query alone (anchor), the query after demonstrations (ICL), and the query alone in a model
that was tuned with LoRA on those demonstrations (instruction tuning, IT). Writes run/report.json
and its page run/report.html, and prints the cosines of the arms' hidden states by layer.

In report.json, summary has mean and SD over the seeds: accuracy and log_prob by arm (anchor, icl,
it), and of each of layers the cosines icl_it, anchor_icl and anchor_it, and of the updates update,
with update_shuffled and update_gaussian. seeds has the same of each seed, conditions of each level
of --vary. --csv writes what is plotted: figure, series, x, mean, sd.",
    mut_arg("model", |arg| arg.required(false).default_value("embedded")),
    mut_arg("max_grad_norm", |arg| arg.default_value("0")))]
pub struct ProbeArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub base: BaseModelArgs,
    /// Task: a YAML file, or the name of a built-in one, such as events (synthetic, needs no data), sst2 (sentiment, TSV as in
    /// GLUE), en-cs (translation from English to Czech, two aligned text files); `llamaprobe task --help` has all
    /// [default: events for the embedded model, else sst2].
    #[arg(long, value_name = "TASK|FILE.yaml", value_parser = task_word)]
    pub task: Option<String>,
    /// Data that demonstrations are drawn from, in place of the task's own; for en-cs two files with a comma between.
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    pub train: Vec<PathBuf>,
    /// Data that queries are taken from, in the file's order, in place of the task's own.
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    pub test: Vec<PathBuf>,
    /// Number of demonstrations per seed [default: 10, or what the queries leave of a task's own rows].
    #[arg(long)]
    pub demos: Option<usize>,
    /// Number of queries [default: 100, or half of a task's own rows].
    #[arg(long)]
    pub queries: Option<usize>,
    /// Number of seeds (demonstration samples) [default: 3; 8 for synthetic tasks].
    #[arg(long)]
    pub seeds: Option<u64>,
    /// First seed; the others count up from it.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    #[arg(long, value_name = "YAML", help = TEMPLATE)]
    pub template: Option<String>,
    #[arg(long, help = APPLY_CHAT_TEMPLATE)]
    pub apply_chat_template: bool,
    /// Vary a factor over levels, which take the place of the flag of its name; may be repeated, and levels cross: demos=0,1,2,4,8,16 · labels=gold,half,flipped,random ·
    /// source=TASK,… (demonstrations of another task) · similarity=near,random,far (to the queries) ·
    /// template=default;FILE.yaml;YAML · order=N (permutations) · steps=0,1,2,5,10 (the tuning's trajectory, in place of
    /// --epochs) · r=4,8 · learning-rate=1e-4,1e-3 · target-modules=q_proj,v_proj;all-linear · model=DIR,…. In report.json
    /// every combination is one of `conditions`; the fields outside of it are those of the first.
    #[arg(long, value_name = "NAME=LEVELS", action = ArgAction::Append)]
    pub vary: Vec<String>,
    /// What the similarity of demonstrations to the queries is measured by, where it varies: words (bm25), or the model's
    /// own states (states).
    #[arg(long, value_enum, default_value = "bm25")]
    pub similarity_by: SimilarityByArg,
    /// Tokens whose states are compared: the query's last, all of them or their mean; the label's, after each; or the last
    /// before the answer of each demonstration (demos).
    #[arg(long, default_value = "last", value_name = "last|all|label|mean|demos", value_parser = position)]
    pub position: Position,
    #[arg(long, value_enum, default_value = "none", help = LENGTH_NORMALIZATION)]
    pub length_normalization: LengthNormalizationArg,
    /// What to measure beside cosines and scores: all, none, or some of cosine, update, norm_ratio, cka, cka_debiased, svcca,
    /// knn_overlap, id, subspace_overlap (of the states, each with its baselines), sim_aou, outputs (agreement, KL divergence, entropy,
    /// calibration error, Rec2FTP), lora_overlap; and with --position last logit_lens, attribution (of the logits; both of the answers' first
    /// tokens, where these differ), linear_probe, sim_am.
    #[arg(long, value_delimiter = ',', default_value = "all", value_name = "LIST")]
    pub measures: Vec<String>,
    /// Edits of the states while prompts are read, in every arm (see `capture --help`): of the prompt's tokens, never the answers';
    /// last is the prompt's last, as [-1]; query and demonstrations are those of each prompt. Trainings are not edited.
    #[arg(long, value_name = "FILE.yaml")]
    pub edit: Option<PathBuf>,
    /// Patch states into the run of the query alone, layer by layer: ICL's and IT's, their mean updates over other queries
    /// (the task vector), a random vector and the vector of another task (where source varies); reports what each recovers.
    #[arg(long)]
    pub patch: bool,
    /// What instruction tuning trains: a LoRA, or all weights.
    #[arg(long, value_enum, default_value = "lora", help_heading = "Optimiser")]
    pub tuning: TuningArg,
    #[command(flatten)]
    #[serde(flatten)]
    pub lora: LoraArgs,
    /// Learning rate of the instruction tuning, constant [default: 0.001; 0.005 for synthetic tasks].
    #[arg(long, alias = "lr", help_heading = "Optimiser")]
    pub learning_rate: Option<f64>,
    /// Number of epochs over the demonstrations; 0 leaves the adapter untrained [default: 10; 40 for synthetic tasks].
    #[arg(long, aliases = ["num-train-epochs", "num-epochs"], help_heading = "Optimiser")]
    pub epochs: Option<f64>,
    /// Number of demonstrations per optimiser step [default: all].
    #[arg(long, help_heading = "Optimiser")]
    pub batch_size: Option<usize>,
    #[command(flatten)]
    #[serde(flatten)]
    pub regularization: RegularizationArgs,
    /// Further arms, tuned on the same demonstrations: pt (a soft prompt before the query), ipt (a soft prompt before
    /// demonstrations and query), it-act and it-kl (a LoRA with the settings of IT, whatever --tuning, towards what attention
    /// puts out, or towards the answers' distributions, when each demonstration stands behind the others).
    #[arg(long, value_delimiter = ',', value_parser = further_arm, value_name = "pt,ipt,it-act,it-kl")]
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
    /// Repeat the experiment of a report: same demonstrations, queries and settings, beside which none is given.
    #[arg(long, value_name = "report.json", conflicts_with_all = OF_PLAN)]
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
