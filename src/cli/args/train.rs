//! `train-lora` and `train-prompt`.

use std::path::PathBuf;

use clap::builder::ArgPredicate;
use clap::{ArgAction, Args, ValueEnum};
use serde::Serialize;
use serde_json::Value;

use super::common::{BaseModelArgs, CommonArgs};
use super::objective::ObjectiveArgs;
use super::optim::{CheckpointArgs, DEFAULTS, EvalArgs, OptimArgs, is_false, one_or_list};
use crate::formats::json;

/// How several files of examples are mixed; underscores as LLaMA-Factory writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum MixArg {
    /// One after another.
    Concat,
    /// Until the first is used up.
    InterleaveUnder,
    /// Until all have been used up.
    InterleaveOver,
}

/// Rank of a LoRA where nothing says what it is.
pub const DEFAULT_R: usize = 8;
/// Its alpha, likewise: a scale of 2.
pub const DEFAULT_LORA_ALPHA: f64 = 16.0;

/// Flags of every training of an adapter.
#[derive(Debug, Args, Serialize)]
#[command(mut_arg("model", |arg| arg.required(false).default_value("embedded")))]
pub struct TrainingArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub base: BaseModelArgs,
    /// Training data as JSONL; several files are separated by commas [default: ten built-in examples, for the embedded
    /// model].
    #[arg(long, value_name = "FILES", value_delimiter = ',', aliases = ["dataset", "train-file"])]
    #[serde(serialize_with = "one_or_list")]
    pub train: Vec<PathBuf>,
    /// How several files are mixed: concat (one after another), interleave_under (from one and another until the first is
    /// used up), interleave_over (until all have been used up, of which the shorter ones begin again) [default: concat, or
    /// interleave_under with --interleave-probs].
    #[arg(long, value_enum, value_name = "STRATEGY")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mix_strategy: Option<MixArg>,
    /// Probabilities with which examples are drawn from the files, one for each file, of sum 1 [default: in turn].
    #[arg(long, value_name = "PROBABILITIES", value_delimiter = ',', alias = "train-weights")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interleave_probs: Vec<f64>,
    /// Output directory: the adapter, trainer_log.jsonl, checkpoint-N.
    #[arg(long, value_name = "DIR", alias = "output-dir", default_value = "adapter")]
    pub out: PathBuf,
    #[command(flatten)]
    #[serde(flatten)]
    pub optim: OptimArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub objective: ObjectiveArgs,
    /// Random seed of the adapter's initialization, the mixture and order of the data, dropout and noise.
    #[arg(long, default_value_t = DEFAULTS.seed)]
    pub seed: u64,
    /// Do not shuffle: every epoch takes the examples in the file's order.
    #[arg(long)]
    pub no_shuffle: bool,
    /// Maximum tokens per example; longer ones are truncated at the end [default: no limit].
    #[arg(long, value_name = "TOKENS", aliases = ["cutoff-len", "sequence-len"])]
    pub max_length: Option<usize>,
    /// PEFT adapter directory to continue training from, in place of a new adapter.
    #[arg(long, value_name = "DIR")]
    pub init_adapter: Option<PathBuf>,
    /// NEFTune: add uniform noise to the embeddings of tokens, of at most alpha / sqrt(tokens * width) of the sequence
    /// [default: none].
    #[arg(long, value_name = "ALPHA", help_heading = "Optimiser")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub neftune_noise_alpha: Option<f64>,
    /// Append the end-of-sequence token to every text and completion, and train on it.
    #[arg(long)]
    pub add_eos: bool,
    #[command(flatten)]
    #[serde(flatten)]
    pub evaluation: EvalArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub checkpoints: CheckpointArgs,
    /// Save only the inputs of the layers for the backward pass, which computes each layer again: a fraction of the memory
    /// of activations for about a fifth more time, and the same bytes.
    #[arg(long, help_heading = "Running")]
    #[serde(skip_serializing_if = "is_false")]
    pub gradient_checkpointing: bool,
    /// Print the memory plan and exit.
    #[arg(long)]
    #[serde(skip)]
    pub dry_run: bool,
    #[command(flatten)]
    #[serde(flatten)]
    pub common: CommonArgs,
}

/// `train-lora`.
#[derive(Debug, Args, Serialize)]
#[command(after_help = "\
Examples:
  llamaprobe train-lora
  llamaprobe train-lora --model DIR --train data.jsonl --out adapter --epochs 3
  llamaprobe train-lora --config run.yaml --resume-from-checkpoint latest
  llamaprobe train-lora --model DIR --train data.jsonl --out grid --r 4,8,16 --seeds 3 \\
      --learning-rate 1e-4,1e-3 --target-modules 'q_proj,v_proj;all-linear' --eval held-out.jsonl
  llamaprobe train-lora --model DIR --train data.jsonl --out ia2 --objective activations --demos 8

Lines of the data: {\"prompt\",\"completion\"} (loss on the completion), {\"text\"}, {\"messages\"} (loss
on the assistant's turns), {\"instruction\",\"input\",\"output\"} (loss on the output) or
{\"input_ids\",\"labels\"} (labels of -100 are ignored). Every combination of the lists is a run of
its own; several runs go through the model together, and are written to OUT/run-000, OUT/run-001,
..., each with its settings in run.json; OUT/results.json compares them.")]
pub struct TrainLoraArgs {
    /// What is trained: lora, or ia3, vectors that multiply what projections put out or take in.
    #[arg(long, value_enum, value_name = "TYPE", default_value = "lora", help_heading = "Adapter")]
    #[serde(skip_serializing_if = "PeftType::is_lora")]
    pub peft_type: PeftType,
    /// IA3: those of the target modules whose input is multiplied, in place of the output [default: as in PEFT, the MLP's second
    /// projection].
    #[arg(long, value_delimiter = ',', help_heading = "Adapter")]
    pub feedforward_modules: Option<Vec<String>>,
    /// LoRA rank; with a list, one run for each. An adapter to go on from (--init-adapter) has its own.
    #[arg(long, action = ArgAction::Set, value_delimiter = ',', default_values_t = [DEFAULT_R],
        default_value_if("init_adapter", ArgPredicate::IsPresent, None), aliases = ["lora-r", "lora-rank"], help_heading = "LoRA")]
    #[serde(serialize_with = "one_or_list", skip_serializing_if = "Vec::is_empty")]
    pub r: Vec<usize>,
    /// LoRA alpha: the adapter's output is scaled by lora_alpha / r; with a list, one run for each. An adapter to go on from has its own.
    #[arg(long, action = ArgAction::Set, value_delimiter = ',', default_values_t = [DEFAULT_LORA_ALPHA],
        default_value_if("init_adapter", ArgPredicate::IsPresent, None), help_heading = "LoRA")]
    #[serde(serialize_with = "one_or_list", skip_serializing_if = "Vec::is_empty")]
    pub lora_alpha: Vec<f64>,
    /// Modules to adapt: names as in the model's checkpoint (q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj;
    /// c_attn; query_key_value; fc1, ...; embed_tokens or wte; lm_head), all-linear (of the blocks), or a regular expression for full module paths; with several sets
    /// separated by semicolons, one run for each [default: as in PEFT, q_proj and v_proj, or the fused projection of
    /// queries, keys and values].
    #[arg(
        long,
        value_delimiter = ',',
        aliases = ["lora-target", "lora-target-modules"],
        help_heading = "LoRA"
    )]
    pub target_modules: Option<Vec<String>>,
    /// Layers to adapt: all, or a list such as 8,9 or 8-11. As in PEFT a list rules out embed_tokens (wte), which is of no layer;
    /// lm_head, whose name is its full path, stays [default: all].
    #[arg(long, value_name = "LAYERS", help_heading = "LoRA")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers_to_transform: Option<String>,
    /// Modules that are trained whole beside the adapter, and saved in it: ends of their names, as embed_tokens, lm_head or
    /// norm; for one run.
    #[arg(long, value_name = "MODULES", value_delimiter = ',', help_heading = "LoRA")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub modules_to_save: Vec<String>,
    /// Tokens whose rows of the embedding table are trained beside the adapter, those of a tied output layer too, such as 5,9; for
    /// one run.
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', help_heading = "LoRA")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trainable_token_indices: Vec<u32>,
    /// Keep a tied output layer tied to an embedding table of --modules-to-save; without it each goes its own way.
    #[arg(long, requires = "modules_to_save", help_heading = "LoRA")]
    #[serde(skip_serializing_if = "is_false")]
    pub ensure_weight_tying: bool,
    /// Number of seeds, counted up from --seed; one run for each.
    #[arg(long, default_value_t = 1)]
    #[serde(skip_serializing_if = "is_one")]
    pub seeds: u64,
    /// Rank-stabilized LoRA: scale the adapter's output by lora_alpha / sqrt(r) instead.
    #[arg(long, help_heading = "LoRA")]
    pub use_rslora: bool,
    /// DoRA: train a magnitude for every row of the adapted weights beside A and B; without dropout, and not after pissa.
    #[arg(long, help_heading = "LoRA")]
    #[serde(skip_serializing_if = "is_false")]
    pub use_dora: bool,
    /// Other ranks, as JSON: {"expression for the end of a module's path": rank}; the first that matches counts.
    #[arg(long, value_name = "JSON", value_parser = pattern, help_heading = "LoRA")]
    pub rank_pattern: Option<Pattern>,
    /// Other alphas, likewise.
    #[arg(long, value_name = "JSON", value_parser = pattern, help_heading = "LoRA")]
    pub alpha_pattern: Option<Pattern>,
    /// How A and B start. After pissa the adapter saved is one of twice the rank for the unchanged base model; since it changes
    /// that for the training, it stands beside one rank, alpha and set of modules.
    #[arg(
        long,
        value_enum,
        ignore_case = true,
        value_name = "INIT",
        default_value = "true",
        conflicts_with = "init_adapter",
        help_heading = "LoRA"
    )]
    // A written configuration is read beside --init-adapter too.
    #[serde(skip_serializing_if = "LoraInit::is_usual")]
    pub init_lora_weights: LoraInit,
    /// LoRA+: learning rate of B, of DoRA's magnitudes and of vectors in --modules-to-save, over that of A; for one rank and
    /// one set of modules [default: one rate for all].
    #[arg(long, value_name = "RATIO", help_heading = "LoRA")]
    pub loraplus_lr_ratio: Option<f64>,
    /// Dropout probability of the adapter's input [default: 0, or that of --init-adapter].
    #[arg(long, help_heading = "LoRA")]
    pub lora_dropout: Option<f64>,
    #[command(flatten)]
    #[serde(flatten)]
    pub training: TrainingArgs,
}

fn is_one(value: &u64) -> bool {
    *value == 1
}

/// Ranks or alphas by the modules' paths.
pub type Pattern = serde_json::Map<String, Value>;

fn pattern(text: &str) -> Result<Pattern, String> {
    match json::parse("", text) {
        Ok(Value::Object(entries)) => Ok(entries),
        Ok(other) => Err(format!("expected an object, found {}", json::show(&other))),
        Err(error) => Err(error.to_string().trim_start_matches([':', ' ']).to_owned()),
    }
}

/// What `train-lora` trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PeftType {
    /// Low-rank updates.
    Lora,
    /// Vectors (Liu et al., arXiv 2205.05638).
    Ia3,
}

impl PeftType {
    fn is_lora(&self) -> bool {
        *self == Self::Lora
    }
}

/// How A and B start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LoraInit {
    /// A uniform (Kaiming's with a = sqrt 5), B zero.
    True,
    /// A and B both uniform: not the base model at first.
    False,
    /// A normal with deviation 1 / r, B zero.
    Gaussian,
    /// A and B random and orthogonal, so that B A is zero; r must be even.
    Orthogonal,
    /// The leading singular vectors of each weight, which is trained without them (PiSSA).
    Pissa,
}

impl LoraInit {
    fn is_usual(&self) -> bool {
        *self == Self::True
    }
}

/// How a soft prompt is tuned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Prompt tuning: trainable embeddings before the input.
    Pt,
    /// Instruction prompt tuning: the same, before demonstrations that every example of the data has.
    Ipt,
    /// P-tuning: embeddings that an MLP computes.
    PTuning,
    /// Prefix tuning: trainable keys and values in every layer.
    Prefix,
}

/// The initialization of a soft prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
pub enum PromptInit {
    /// Embeddings of random tokens of the vocabulary.
    #[value(name = "SAMPLE_VOCAB")]
    #[serde(rename = "SAMPLE_VOCAB")]
    SampleVocab,
    /// Embeddings of the tokens of --prompt-tuning-init-text, truncated or repeated.
    #[value(name = "TEXT")]
    #[serde(rename = "TEXT")]
    Text,
    /// Standard normal values, which are far from any token's embedding.
    #[value(name = "RANDOM")]
    #[serde(rename = "RANDOM")]
    Random,
}

/// How a prompt is reparameterized while it is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReparameterizationType {
    /// No reparameterization.
    None,
    /// An MLP: of three layers, as PEFT's PromptEncoder, or for a prefix of two, as its PrefixEncoder.
    Mlp,
    /// An MLP of two layers whose output, at first zero, is added to the embeddings.
    Residual,
}

/// `train-prompt`.
#[derive(Debug, Args, Serialize)]
#[command(after_help = "\
Examples:
  llamaprobe train-prompt --model DIR --train data.jsonl --out prompt --num-virtual-tokens 20
  llamaprobe train-prompt --model DIR --train data.jsonl --out grid --method p-tuning \\
      --num-virtual-tokens 5,20 --seeds 3
  llamaprobe train-prompt --model DIR --train data.jsonl --out more --init-adapter prompt

Lines of the data are those of train-lora; with --method ipt they are
{\"demonstrations\": [\"...\"],\"query\",\"completion\"} (loss on the completion). Every combination
of a number of virtual tokens, a learning rate and a seed is a run of its own; several runs go
through the model together, and are written to OUT/run-N.",
    mut_arg("learning_rate", |arg| arg.default_value("0.01").help("Peak learning rate; with a list, one run for each").long_help(None::<&str>)))]
pub struct TrainPromptArgs {
    /// What is trained.
    #[arg(long, value_enum, default_value = "pt", help_heading = "Prompt")]
    pub method: Method,
    /// Number of virtual tokens; with a list, one run for each [default: 20, or that of --init-adapter].
    #[arg(long, value_delimiter = ',', value_name = "TOKENS", help_heading = "Prompt")]
    pub num_virtual_tokens: Vec<usize>,
    /// Number of seeds, counted up from --seed; one run for each.
    #[arg(long, default_value_t = 1, help_heading = "Prompt")]
    pub seeds: u64,
    /// Initialization of the prompt [default: SAMPLE_VOCAB; RANDOM for p-tuning and prefix].
    #[arg(
        long,
        value_enum,
        value_name = "INIT",
        ignore_case = true,
        conflicts_with = "init_adapter",
        help_heading = "Prompt"
    )]
    pub prompt_tuning_init: Option<PromptInit>,
    /// Text whose embeddings the prompt begins with, for --prompt-tuning-init TEXT.
    #[arg(long, value_name = "TEXT", help_heading = "Prompt")]
    pub prompt_tuning_init_text: Option<String>,
    /// Reparameterization of the prompt while it is trained [default: none; mlp for p-tuning].
    #[arg(long, value_enum, value_name = "TYPE", alias = "reparameterization", help_heading = "Prompt")]
    pub encoder_reparameterization_type: Option<ReparameterizationType>,
    /// Hidden size of the reparameterization [default: the size of its input].
    #[arg(long, value_name = "SIZE", help_heading = "Prompt")]
    pub encoder_hidden_size: Option<usize>,
    #[command(flatten)]
    #[serde(flatten)]
    pub training: TrainingArgs,
}
