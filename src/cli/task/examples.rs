//! A task of examples: its rows as prompts, a check of its data, a model's scores by number of demonstrations.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use serde::Serialize;
use serde_json::json;

use super::super::args::TaskArgs;
use super::super::device::{Job, dispatch};
use super::super::resolve::{self, ModelFiles};
use super::super::{Failure, output};
use crate::backend::Backend;
use crate::formats::embedded;
use crate::formats::tokenizer::Tokenizer;
use crate::model::Model;
use crate::probe::statistics::MeanSd;
use crate::probe::{Evaluation, ProbeSettings};
use crate::task::prompts::Prompts;
use crate::task::unreachable::NEVER_CHOSEN;
use crate::task::{Candidates, Dataset, Example, LengthNormalization, Side, Task, Template, unreachable};
use crate::{Error, Result};

/// Numbers of demonstrations unless others are asked for.
const SHOTS: [usize; 5] = [0, 1, 2, 4, 8];

pub fn run(args: &TaskArgs) -> Result<(), Failure> {
    let task = Task::named(&args.task)?;
    let template = resolve::template(&task, args.template.as_deref(), args.apply_chat_template)?;
    if args.evaluate {
        let name = args.model.as_deref().unwrap_or(embedded::NAME);
        let files = resolve::base_model(name, &args.common)?;
        files.config.require_causal()?;
        let tokenizer = files.tokenizer()?;
        let data = |side: Side, given: &[PathBuf]| -> Result<Vec<Example>> {
            let data = task.data(side, given, &template)?;
            notes(&task, side, &data);
            Ok(data.examples)
        };
        let (pool, all) = (data(Side::Train, &args.train)?, data(Side::Test, &args.test)?);
        let queries = queries(args, &task, all)?;
        let job = Evaluate { args, name, tokenizer, pool, queries, task, template, files };
        let dtype = job.files.dtype;
        return dispatch(&args.common, dtype, job);
    }
    if args.check {
        return check(args, &task, &template);
    }
    if let Some(model) = &args.model {
        return Err(Error::argument("--model", "--check or --evaluate", model).into());
    }
    if template.is_chat() {
        let flag = if args.apply_chat_template { "--apply-chat-template" } else { "template.chat" };
        return Err(Error::argument(flag, "--check or --evaluate beside it", "neither").into());
    }
    show(args, &task, &template)
}

/// Tells of rows that are skipped.
fn notes(task: &Task, side: Side, data: &Dataset) {
    for (why, n) in &data.skipped {
        output::note(format_args!("{task}: {n} {} rows skipped: {why}", side.name()));
    }
}

/// Prints the first rows as demonstrations: those of the pool, or where there is none the queries.
fn show(args: &TaskArgs, task: &Task, template: &Template) -> Result<(), Failure> {
    let only_test = args.train.is_empty() && !args.test.is_empty();
    let (side, files) = if only_test { (Side::Test, &args.test) } else { (Side::Train, &args.train) };
    let data = task.data(side, files, template)?;
    notes(task, side, &data);
    let shown = data.examples.iter().take(args.show.unwrap_or(5));
    if args.common.json {
        let row = |example: &Example| -> Result<_> {
            let Candidates { outputs, gold } = Candidates::of(task, example)?;
            let (query, answer) = (template.query(example), template.answer(&example.output));
            Ok(json!({"query": query, "answer": answer, "candidates": outputs, "gold": gold}))
        };
        let rows = shown.map(row).collect::<Result<Vec<_>>>()?;
        return output::json(&json!({"task": task, "side": side.name(), "rows": rows}));
    }
    for example in shown {
        let separated = template.demonstration(example);
        output::line(separated.strip_suffix('\n').unwrap_or(&separated))?;
        if let Some(choices) = &example.choices {
            output::line(format_args!("  ({})\n", choices.join(" | ")))?;
        }
    }
    Ok(())
}

/// What the data of one side are.
#[derive(Serialize)]
struct Checked {
    examples: usize,
    skipped: BTreeMap<&'static str, usize>,
    /// Examples by label; none where there are no labels.
    labels: Option<BTreeMap<String, usize>>,
    /// Examples whose input an earlier one has.
    repeated_inputs: usize,
    /// Tokens of the longest query with an answer, of all candidates.
    longest: Option<usize>,
    /// Tokens of the shortest and of the longest answer that is compared with others; none for free text.
    answers: Option<[usize; 2]>,
    /// Examples of free text whose gold output holds the string at which what is written ends.
    beyond_stop: usize,
    /// Tokens of the longest gold output of free text; of several outputs of an example the shortest.
    longest_gold: Option<usize>,
    /// A label or choice that begins another one.
    begins: Option<[String; 2]>,
}

impl Checked {
    fn of(task: &Task, template: &Template, data: &Dataset, tokenizer: Option<&Tokenizer>) -> Result<Self> {
        let mut inputs = HashSet::new();
        let tokens = tokenizer.map(|tokenizer| tokens(task, template, data, tokenizer)).transpose()?;
        let labels = task.labels().map(|labels| {
            let count = |label: &String| data.examples.iter().filter(|e| e.output == *label).count();
            labels.iter().map(|label| (label.clone(), count(label))).collect()
        });
        Ok(Self {
            examples: data.examples.len(),
            skipped: data.skipped.clone(),
            labels,
            repeated_inputs: data.examples.iter().filter(|e| !inputs.insert(&e.input)).count(),
            longest: tokens.map(|(longest, _)| longest),
            answers: tokens.and_then(|(_, answers)| answers).filter(|_| task.is_closed()),
            beyond_stop: match task.is_closed() {
                true => 0,
                false => unreachable::beyond_stop(&data.examples, &template.stop().into_iter().collect::<Vec<_>>()),
            },
            longest_gold: match tokenizer.filter(|_| !task.is_closed()) {
                Some(tokenizer) => {
                    let prompts = Prompts::new(tokenizer, template);
                    unreachable::gold_tokens(&prompts, template, &data.examples)?.into_iter().max()
                }
                None => None,
            },
            begins: unreachable::beginning(task, template, &data.examples)
                .map(|(short, long)| [short.to_owned(), long.to_owned()]),
        })
    }
}

/// Tokens of the longest query with any of its answers, and of the shortest and the longest answer.
fn tokens(
    task: &Task,
    template: &Template,
    data: &Dataset,
    tokenizer: &Tokenizer,
) -> Result<(usize, Option<[usize; 2]>)> {
    let prompts = Prompts::new(tokenizer, template);
    let (mut longest, mut of_answers) = (0, None);
    for example in &data.examples {
        let text = prompts.texts(&[], &template.query(example))?.concat();
        let prompt = prompts.prompt(&text, &Candidates::of(task, example)?.outputs)?;
        for answer in &prompt.answers {
            longest = longest.max(answer.after(&prompt.token_ids).len());
            let [least, most] = of_answers.unwrap_or([answer.scored; 2]);
            of_answers = Some([answer.scored.min(least), answer.scored.max(most)]);
        }
    }
    Ok((longest, of_answers))
}

fn check(args: &TaskArgs, task: &Task, template: &Template) -> Result<(), Failure> {
    let files = args.model.as_ref().map(|name| resolve::model(name, &args.common)).transpose()?;
    let tokenizer = files.as_ref().map(ModelFiles::tokenizer).transpose()?;
    let (mut sides, mut inputs) = (Vec::new(), Vec::new());
    for (side, given, other) in [(Side::Train, &args.train, &args.test), (Side::Test, &args.test, &args.train)] {
        // One side may be checked alone.
        if given.is_empty() && !task.has_data(side) && !other.is_empty() {
            continue;
        }
        let data = task.data(side, given, template)?;
        sides.push((side.name(), Checked::of(task, template, &data, tokenizer.as_ref())?));
        inputs.push(data.examples.into_iter().map(|e| e.input).collect::<HashSet<String>>());
    }
    let shared = match &inputs[..] {
        [train, test] => Some(train.intersection(test).count()),
        _ => None,
    };
    let limit = files.as_ref().map(|files| files.config.max_position_embeddings);
    if args.common.json {
        let sides: BTreeMap<_, _> = sides.iter().map(|(side, checked)| (*side, json!(checked))).collect();
        return output::json(&json!({
            "task": task, "metric": task.metric().name(), "sides": sides, "shared_inputs": shared,
            "max_position_embeddings": limit,
        }));
    }
    output::line(format_args!("{task}: {}, {}", kind(task), task.metric().name()))?;
    for (side, checked) in &sides {
        output::line(format_args!("{side}: {} examples", checked.examples))?;
        for (why, n) in &checked.skipped {
            output::line(format_args!("  skipped: {n} rows: {why}"))?;
        }
        for (label, n) in checked.labels.iter().flatten() {
            let share = 100.0 * *n as f64 / checked.examples as f64;
            output::line(format_args!("  {label}: {n} ({share:.1}%)"))?;
        }
        if checked.repeated_inputs > 0 {
            output::line(format_args!("  repeated inputs: {}", checked.repeated_inputs))?;
        }
        if checked.beyond_stop > 0 {
            let n = checked.beyond_stop;
            output::line(format_args!("  gold answers that hold a newline, where what is written ends: {n}"))?;
        }
        if let Some(longest) = checked.longest_gold {
            output::line(format_args!(
                "  longest gold answer: {longest} tokens (--max-new-tokens is 32, of compare 64)"
            ))?;
        }
        if let Some([least, most]) = checked.answers {
            let compared =
                if least < most { ", compared by their sums unless --length-normalization says other" } else { "" };
            output::line(format_args!("  answers: {least} to {most} tokens{compared}"))?;
        }
        if let Some([short, long]) = &checked.begins {
            output::line(format_args!("  {short:?} begins {long:?}, which {NEVER_CHOSEN}"))?;
        }
        if let (Some(longest), Some(limit)) = (checked.longest, limit) {
            output::line(format_args!("  longest prompt: {longest} tokens, of {limit} that the model supports"))?;
        }
    }
    if let Some(shared) = shared {
        output::line(format_args!("inputs in both: {shared} (never shown to themselves)"))?;
    }
    Ok(())
}

fn kind(task: &Task) -> String {
    match task.labels() {
        Some(labels) => format!("labels {}", labels.join(", ")),
        None if task.is_closed() => "choices of each row".to_owned(),
        None => "free text".to_owned(),
    }
}

/// The queries of an evaluation.
fn queries(args: &TaskArgs, task: &Task, mut all: Vec<Example>) -> Result<Vec<Example>> {
    let count = args.queries.or(ProbeSettings::new(task.clone()).queries.map(|most| most.min(all.len())));
    let count = count.unwrap_or(all.len());
    if count == 0 || count > all.len() {
        return Err(Error::argument("queries", format!("from 1 to {}", all.len()), count));
    }
    all.truncate(count);
    Ok(all)
}

struct Evaluate<'a> {
    args: &'a TaskArgs,
    name: &'a str,
    tokenizer: Tokenizer,
    pool: Vec<Example>,
    queries: Vec<Example>,
    task: Task,
    template: Template,
    files: ModelFiles,
}

impl Job for Evaluate<'_> {
    fn run<B: Backend>(self, mut backend: B) -> Result<(), Failure> {
        let Self { args, name, tokenizer, pool, queries, task, template, mut files } = self;
        let seeds = resolve::seeds(args.seed, args.seeds.unwrap_or(3))?;
        if seeds.is_empty() {
            return Err(Error::argument("seeds", "at least 1", 0).into());
        }
        let asked: HashSet<&str> = queries.iter().map(|q| q.input.as_str()).collect();
        let left = pool.iter().filter(|e| !asked.contains(e.input.as_str())).count();
        let shots = match &args.shots[..] {
            [] => SHOTS.into_iter().filter(|&shots| shots <= left).collect(),
            shots => shots.to_vec(),
        };
        let by = args.length_normalization.map_or(LengthNormalization::None, Into::into);
        by.check(task.is_closed())?;
        // Of labels and choices nothing is written.
        let model = match task.is_closed() {
            true => Model::new(&mut backend, &files.config, &files.checkpoint)?,
            false => Model::for_generation(&mut backend, &files.config, &mut files.checkpoint)?,
        };
        let evaluation = Evaluation {
            tokenizer: &tokenizer,
            task: &task,
            template: &template,
            pool: &pool,
            queries: &queries,
            length_normalization: by,
            max_new_tokens: args.max_new_tokens.unwrap_or(32),
            rows: args.batch_tokens.unwrap_or(4096),
        };
        evaluation.warn()?;
        let mut scores: Vec<Vec<f64>> = Vec::with_capacity(shots.len());
        for &shots in &shots {
            // Without demonstrations all seeds are the same.
            let seeds = if shots == 0 { &seeds[..1] } else { &seeds[..] };
            let score = |&seed: &u64| evaluation.score(&mut backend, &model, shots, seed);
            scores.push(seeds.iter().map(score).collect::<Result<_>>()?);
        }
        let metric = if task.is_closed() { "accuracy" } else { task.metric().name() };
        if args.common.json {
            let one = |(shots, scores): (&usize, &Vec<f64>)| {
                let MeanSd { mean, sd } = MeanSd::of(scores.iter().copied());
                json!({"shots": shots, "mean": mean, "sd": sd, "seeds": scores})
            };
            let shots: Vec<_> = shots.iter().zip(&scores).map(one).collect();
            let mut found = json!({
                "task": task, "model": name, "metric": metric, "queries": queries.len(), "shots": shots,
            });
            if by != LengthNormalization::None {
                found["length_normalization"] = json!(by);
            }
            return output::json(&found);
        }
        let header = std::iter::once("demonstrations".to_owned()).chain(shots.iter().map(usize::to_string));
        output::markdown_header(header.collect::<Vec<_>>().into_iter())?;
        let spread = |scores: &Vec<f64>| MeanSd::of(scores.iter().copied());
        let show = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.3}"));
        let row =
            |title: &str, values: Vec<String>| output::markdown_row(std::iter::once(title.to_owned()).chain(values));
        let title = if task.is_closed() { by.accuracy() } else { metric };
        row(title, scores.iter().map(|s| show(spread(s).mean)).collect())?;
        row("SD over seeds", scores.iter().map(|s| show(spread(s).sd)).collect())
    }
}
