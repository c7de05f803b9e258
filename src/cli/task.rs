//! `task` and `export-embedded`: tasks shown, checked and evaluated, the episodes of the embedded model, and that model as files.

mod examples;

use serde_json::json;

use super::args::{ExportArgs, SYNTHETIC, TaskArgs};
use super::device::{Job, dispatch};
use super::resolve::{self, ModelFiles};
use super::{Failure, output};
use crate::backend::Backend;
use crate::formats::embedded;
use crate::formats::tokenizer::Tokenizer;
use crate::model::Model;
use crate::probe::arm::Arm;
use crate::probe::plan::Plan;
use crate::probe::statistics::MeanSd;
use crate::probe::{self, ProbeSettings};
use crate::task::synthetic::evaluate::{Set, accuracies};
use crate::task::synthetic::{self, Curriculum, Episode, PROBED_LABELS};
use crate::task::{Example, Task};
use crate::{Error, Result};

/// The episodes of a training, unless a set of queries is asked for.
const TRAIN: &str = "train";
/// Number of lines of a printed episode.
const EPISODE_LINES: usize = 9;
/// Numbers of demonstrations (shots) of the evaluation.
const SHOTS: [usize; 7] = [0, 1, 2, 4, 8, 10, 16];
/// Episodes at most that are printed, or evaluated of a set.
const MOST_EPISODES: usize = 100_000;
/// Maximum tokens per batch of the evaluation.
const BATCH_TOKENS: usize = 4096;

pub fn run(args: &TaskArgs) -> Result<(), Failure> {
    if args.task != SYNTHETIC {
        for (flag, given) in [("--set", args.set.is_some()), ("--episodes", args.episodes.is_some())] {
            if given {
                return Err(Error::argument(flag, "the task synthetic", &args.task).into());
            }
        }
        return examples::run(args);
    }
    let of_examples = [
        ("--check", args.check),
        ("--train", !args.train.is_empty()),
        ("--test", !args.test.is_empty()),
        ("--template", args.template.is_some()),
        ("--apply-chat-template", args.apply_chat_template),
        ("--shots", !args.shots.is_empty()),
        ("--queries", args.queries.is_some()),
        ("--seeds", args.seeds.is_some()),
        ("--max-new-tokens", args.max_new_tokens.is_some()),
        ("--batch-tokens", args.batch_tokens.is_some()),
    ];
    if let Some((flag, _)) = of_examples.iter().find(|(_, given)| *given) {
        return Err(Error::argument(*flag, "a task of examples", SYNTHETIC).into());
    }
    if args.evaluate {
        if let Some(count) = args.episodes.filter(|count| !(1..=MOST_EPISODES).contains(count)) {
            return Err(Error::argument("--episodes", format!("from 1 to {MOST_EPISODES}"), count).into());
        }
        let files = resolve::base_model(model_name(args), &args.common)?;
        let (tokenizer, dtype) = (files.tokenizer()?, files.dtype);
        return dispatch(&args.common, dtype, Evaluate { args, files, tokenizer });
    }
    let episodes = episodes(args)?;
    if args.common.json {
        let texts: Vec<_> = episodes.iter().map(Episode::text).collect();
        let set = args.set.as_deref().unwrap_or(TRAIN);
        return output::json(&json!({"task": SYNTHETIC, "set": set, "episodes": texts}));
    }
    for episode in episodes {
        output::line(format_args!("{}\n", episode.text()))?;
    }
    Ok(())
}

/// The model that an evaluation asks.
fn model_name(args: &TaskArgs) -> &str {
    args.model.as_deref().unwrap_or(embedded::NAME)
}

/// The episodes to print.
fn episodes(args: &TaskArgs) -> Result<Vec<Episode>> {
    let (wanted, show) = (args.set.as_deref().unwrap_or(TRAIN), args.show.unwrap_or(5));
    if show > MOST_EPISODES {
        return Err(Error::argument("--show", format!("at most {MOST_EPISODES} episodes"), show));
    }
    if wanted == TRAIN {
        return Ok(synthetic::training(&Curriculum::default(), args.seed, 1, 2, show));
    }
    let names = || Set::ALL.map(Set::name).join(", ");
    let set = Set::ALL.into_iter().find(|set| set.name() == wanted);
    let set = set.ok_or_else(|| Error::unsupported("--set", wanted, format!("train, {}", names())))?;
    Ok(set.episodes(args.seed, show, EPISODE_LINES))
}

/// A change of the probed task's demonstrations.
struct Condition {
    name: &'static str,
    demonstrations: usize,
    pool: Vec<Example>,
}

/// The demonstrations under every condition; the queries stay the same.
fn conditions(pool: &[Example]) -> Vec<Condition> {
    let [first, second] = PROBED_LABELS;
    let swapped =
        |e: &Example| Example { output: if e.output == first { second } else { first }.to_owned(), ..e.clone() };
    // Every other demonstration of each class is wrong, so that labels say nothing.
    let mixed = |(i, e): (usize, &Example)| if i % 4 < 2 { e.clone() } else { swapped(e) };
    let condition = |name, demonstrations, pool| Condition { name, demonstrations, pool };
    vec![
        condition("10 demonstrations", 10, pool.to_vec()),
        condition("4 demonstrations", 4, pool.to_vec()),
        condition("2 demonstrations", 2, pool.to_vec()),
        condition("half of the labels wrong", 10, pool.iter().enumerate().map(mixed).collect()),
        condition("all labels wrong", 10, pool.iter().map(swapped).collect()),
        condition("of another task", 10, synthetic::objects().0),
    ]
}

struct Evaluate<'a> {
    args: &'a TaskArgs,
    files: ModelFiles,
    tokenizer: Tokenizer,
}

impl Job for Evaluate<'_> {
    fn run<B: Backend>(self, mut backend: B) -> Result<(), Failure> {
        let Self { args, files, tokenizer } = self;
        let mut model = Model::new(&mut backend, &files.config, &files.checkpoint)?;
        let header = [vec!["demonstrations".to_owned()], SHOTS.map(|k| k.to_string()).to_vec()].concat();
        output::markdown_header(header.into_iter())?;
        let lines = SHOTS.iter().max().copied().unwrap_or(0) + 1;
        for set in Set::ALL {
            let episodes = set.episodes(args.seed, args.episodes.unwrap_or(1000), lines);
            let accuracy = accuracies(&mut backend, &model, &tokenizer, &episodes, BATCH_TOKENS)?;
            let values = SHOTS.map(|k| format!("{:.3}", accuracy[k]));
            output::markdown_row(std::iter::once(set.name().to_owned()).chain(values))?;
        }
        probe_conditions(&mut backend, &mut model, &tokenizer, model_name(args))
    }
}

/// Prints the probe's results under every condition of the demonstrations.
fn probe_conditions<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    tokenizer: &Tokenizer,
    name: &str,
) -> Result<(), Failure> {
    let header = ["", "anchor", "ICL", "IT", "ICL-IT", "anchor-ICL", "anchor-IT", "update", "Gaussian", "shuffled"];
    output::line("")?;
    output::markdown_header(header.map(str::to_owned).into_iter())?;
    let (pool, queries) = synthetic::events();
    let events: Task = "events".parse()?;
    for condition in conditions(&pool) {
        let settings = ProbeSettings { demonstrations: condition.demonstrations, ..ProbeSettings::new(events.clone()) };
        let plan = Plan::new(tokenizer, &events, &condition.pool, &queries, &settings)?;
        let report = probe::run(backend, model, name, &plan, &settings, &mut |_| ())?.report;
        let accuracy = |arm| report.summary.arm(arm).expect("every probe has it").accuracy;
        let last = report.summary.layers.last().expect("a model has layers");
        let pair = |x, y| last.pair(x, y).expect("every pair is compared");
        let icl_it = pair(Arm::Icl, Arm::Lora);
        let updates = icl_it.updates.expect("two arms beside the anchor");
        let show = |v: MeanSd| v.mean.map_or("-".to_owned(), |mean| format!("{mean:.3}"));
        let values = [
            accuracy(Arm::ZeroShot),
            accuracy(Arm::Icl),
            accuracy(Arm::Lora),
            icl_it.cosine,
            pair(Arm::ZeroShot, Arm::Icl).cosine,
            pair(Arm::ZeroShot, Arm::Lora).cosine,
            updates.update,
            last.update_gaussian,
            updates.update_shuffled,
        ];
        output::markdown_row(std::iter::once(condition.name.to_owned()).chain(values.map(show)))?;
    }
    Ok(())
}

pub fn export(args: &ExportArgs) -> Result<(), Failure> {
    embedded::export(&args.out)?;
    output::line(args.out.display())
}
