//! `task`.

use std::path::PathBuf;

use clap::Args;

use super::common::{
    APPLY_CHAT_TEMPLATE, CommonArgs, LENGTH_NORMALIZATION, LengthNormalizationArg, MODEL, TEMPLATE, task_word,
};

/// The name of the episodes that the embedded model is trained on, which are no task of examples.
pub const SYNTHETIC: &str = "synthetic";

fn word(word: &str) -> Result<String, String> {
    if word == SYNTHETIC { Ok(word.to_owned()) } else { task_word(word) }
}

/// `task`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llamaprobe task antonym
  llamaprobe task sst2 --train train.tsv --test dev.tsv --check
  llamaprobe task task.yaml --check --model DIR
  llamaprobe task task.yaml --evaluate --model DIR --shots 0,1,4
  llamaprobe task synthetic --show 5
  llamaprobe task synthetic --show 2 --set reviews
  llamaprobe task synthetic --evaluate --model learner

Built-in tasks that need files: sst2, en-cs, totto, dart, logic2text, spider, mtop (the original
files of these data sets), agnews, mmlu, mmlu-letters (rows with their columns). Without files:
events, objects (both synthetic, for the embedded model), antonym, capital, plural, translation.
synthetic: the episodes of the synthetic world that the embedded model is trained and evaluated on.

A task is a file:
  name: reviews                      # letters, digits, - _ .
  train: train.csv                   # .jsonl, .json (a list), .csv or .tsv, or a list of files;
  test: dev.csv                      # relative to this file; --train and --test take their place
  input: text                        # column of the input [default: input]
  output: label                      # column of the label or answer [default: output]
  labels: [negative, positive]       # none for free text; output may be an index into them
  metric: accuracy                   # accuracy, exact_match, bleu, chrf, f1 or rouge_l
  template:
    query: \"Review: {input}\\nSentiment:\"   # any column by its name, also list[0] and object.key
    answer: \" {output}\\n\\n\"
    chat: true                     # turns of the model's chat template [default: false]
Multiple choice: choices is the column with each row's answers (a list, in CSV and TSV as JSON),
or a list of columns with one answer each; output is then the answer's text or its index.
In place of train and test, rows has the examples themselves; reader names the data set of a
built-in task whose original files are to be read, in place of input, output and choices.")]
pub struct TaskArgs {
    /// Task: a YAML file, the name of a built-in one, or synthetic.
    #[arg(value_name = "NAME|FILE.yaml", value_parser = word)]
    pub task: String,
    /// Number of rows to show as prompts, or of episodes to print [default: 5].
    #[arg(long, value_name = "ROWS")]
    pub show: Option<usize>,
    /// Check the task's data in place of showing them: rows used and skipped, labels, longest prompt in tokens of --model.
    #[arg(long, conflicts_with_all = ["evaluate", "show"])]
    pub check: bool,
    /// Evaluate a model by number of demonstrations: accuracy of labels and choices, otherwise the task's metric of what the
    /// model writes. (synthetic: on the evaluation sets; prints the tables of its model card.)
    #[arg(long, conflicts_with = "show")]
    pub evaluate: bool,
    /// Data that demonstrations are drawn from, in place of the task's own; several files with commas between.
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    pub train: Vec<PathBuf>,
    /// Data that queries are taken from, in place of the task's own.
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    pub test: Vec<PathBuf>,
    #[arg(long, value_name = "YAML", help = TEMPLATE)]
    pub template: Option<String>,
    #[arg(long, help = APPLY_CHAT_TEMPLATE)]
    pub apply_chat_template: bool,
    /// Model, whose tokens --check counts and which --evaluate asks [default of --evaluate: embedded].
    #[arg(long, value_name = "DIR|org/name", long_help = MODEL)]
    pub model: Option<String>,
    /// Numbers of demonstrations [default: 0,1,2,4,8, as far as there are examples].
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', requires = "evaluate")]
    pub shots: Vec<usize>,
    /// Number of queries, the first of the data [default: 100, or half of a task's own rows].
    #[arg(long, requires = "evaluate")]
    pub queries: Option<usize>,
    /// Number of seeds (demonstration samples) [default: 3].
    #[arg(long, requires = "evaluate")]
    pub seeds: Option<u64>,
    #[arg(long, value_enum, requires = "evaluate", help = LENGTH_NORMALIZATION.to_owned() + " [default: none]")]
    pub length_normalization: Option<LengthNormalizationArg>,
    /// Maximum number of new tokens per answer that the model writes [default: 32].
    #[arg(long, value_name = "TOKENS", requires = "evaluate")]
    pub max_new_tokens: Option<usize>,
    /// Maximum tokens per batch; affects no result [default: 4096].
    #[arg(long, value_name = "TOKENS", requires = "evaluate")]
    pub batch_tokens: Option<usize>,
    /// Episodes of synthetic to print: train, or an evaluation set: pairs, tasks, reviews, events, unseen, natural [default:
    /// train].
    #[arg(long)]
    pub set: Option<String>,
    /// Number of episodes of synthetic per evaluation set [default: 1000].
    #[arg(long)]
    pub episodes: Option<usize>,
    /// Random seed of the episodes, or the first seed of demonstrations; the others count up from it.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    #[command(flatten)]
    pub common: CommonArgs,
}
