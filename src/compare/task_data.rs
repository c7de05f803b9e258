//! What a task brings to a comparison: queries, the pool, what is retrieved for whom, all as tokens.

use std::collections::{BTreeMap, HashSet};

use rayon::prelude::*;
use serde_json::{Value, json};

use super::cells::Generation;
use super::inputs::{Comparison, Source};
use super::retrieval::{Chosen, Index};
use super::settings::CompareSettings;
use crate::arch::ModelConfig;
use crate::backend::Backend;
use crate::formats::tokenizer::Tokenizer;
use crate::model::Model;
use crate::probe::arm::Arm;
use crate::random::Rng;
use crate::task::demonstrations::sample_for;
use crate::task::prompts::Prompts;
use crate::task::retrieval::Retrieved;
use crate::task::{Example, Task, Template, Turn, unreachable};
use crate::train::data::{IGNORE_INDEX, TrainSequence};
use crate::{Error, Result, hash};

/// In the counts, examples that cannot be shown since they have the input of a query.
const OF_QUERIES: &str = "train examples left out: input of a query";

/// A prompt of an arm.
pub struct PromptContext {
    /// The query's index in the test data.
    pub query: usize,
    /// Of demonstrations and query.
    pub token_ids: Vec<u32>,
    /// The demonstrations in it.
    pub retrieved: Vec<Retrieved>,
    /// Number of demonstrations that were dropped for length.
    pub dropped: usize,
}

/// A task's examples, chosen.
pub struct TaskData<'a> {
    /// Whose examples they are.
    pub task: &'a Task,
    /// How they become text.
    pub template: &'a Template,
    /// Demonstrations are taken from these.
    pub pool: Chosen,
    /// The examples that every cell is judged on.
    pub queries: Chosen,
    tokenizer: &'a Tokenizer,
    settings: &'a CompareSettings,
    room: Room,
    index: Index,
    /// Rows and examples by what became of them.
    counts: BTreeMap<String, usize>,
    /// Of all texts of queries and pool.
    fingerprint: u64,
}

impl<'a> TaskData<'a> {
    /// Chooses queries and pool, in an order shuffled by the split's seed. No example of the pool has the input of a
    /// query. Examples too long for the greatest length are left out of both.
    ///
    /// # Errors
    /// Fewer than two examples are left, or no query; vectors that do not fit; a failure of tokenizer or device.
    pub fn new<B: Backend>(
        backend: &mut B,
        model: &Model<B>,
        comparison: &'a Comparison<'a>,
        source: &'a Source,
    ) -> Result<Self> {
        let Comparison { tokenizer, settings, .. } = *comparison;
        source.template.check_columns(source.train.examples.iter().chain(&source.test.examples))?;
        let mut counts = BTreeMap::new();
        let room = Room::new(settings, comparison.base.config);
        let (pool, queries) = choose(tokenizer, (settings, room), source, &mut counts)?;
        if queries.examples.is_empty() || pool.examples.len() < 2 {
            let shared = counts.get(OF_QUERIES).is_some_and(|n| *n > 0);
            if shared && !queries.examples.is_empty() {
                let expected = format!("so few that two examples of {} have the input of none", source.task);
                return Err(Error::argument("queries", expected, queries.examples.len()));
            }
            let counts = counts.iter().map(|(what, n)| format!("{what}: {n}")).collect::<Vec<_>>().join("; ");
            let found = format!("{} and {} ({counts})", queries.examples.len(), pool.examples.len());
            return Err(Error::argument(format!("{} data", source.task), "a query and two examples that fit", found));
        }
        if settings.demonstrations >= pool.examples.len() {
            let most = format!("at most {}, one less than the pool of {}", pool.examples.len() - 1, source.task);
            return Err(Error::argument("demonstrations", most, settings.demonstrations));
        }
        let index = Index::new(backend, model, comparison, source, &pool, &queries)?;
        let examples = queries.examples.iter().chain(&pool.examples);
        let texts = examples.flat_map(|e| [e.input.as_str(), "\0", &e.output, "\0"]);
        let fingerprint = hash::fnv1a(texts.flat_map(str::bytes));
        let (task, template) = (&source.task, &source.template);
        Ok(Self { task, template, pool, queries, tokenizer, settings, room, index, counts, fingerprint })
    }

    /// The positions that the model learned, where they are what prompts must fit into, and how many test and train examples
    /// are left out since they do not.
    pub fn learned(&self) -> Option<(usize, [usize; 2])> {
        let left_out =
            ["test", "train"].map(|side| self.counts.get(&self.room.left_out(side, 1)).copied().unwrap_or(0));
        Some((self.room.learned?, left_out))
    }

    /// Says which queries no output can match.
    ///
    /// # Errors
    /// A failure of the tokenizer.
    pub fn warn(&self) -> Result<()> {
        let stops: Vec<&str> = self.settings.stop.iter().map(String::as_str).chain(self.template.stop()).collect();
        let prompts = Prompts::new(self.tokenizer, self.template);
        let (queries, most) = (&self.queries.examples, self.settings.max_new_tokens);
        unreachable::warn_of_cut(self.task, (&prompts, self.template), queries, &stops, most)
    }

    /// What the examples are, for the plan.
    pub fn describe(&self) -> Value {
        json!({
            "task": self.task,
            "template": self.template,
            "metric": self.signature(),
            "counts": self.counts,
            "queries": self.queries.indices,
            "hash": format!("{:016x}", self.fingerprint),
        })
    }

    /// The metric's signature over the queries.
    pub fn signature(&self) -> String {
        self.task.metric().signature(self.queries.examples.iter().map(|q| q.gold().count()))
    }

    /// How like each query the most like demonstration is.
    ///
    /// # Errors
    /// A pool without another example.
    pub fn similarities(&self) -> Result<Vec<f64>> {
        let queries = self.queries.examples.par_iter().enumerate();
        queries.map(|(i, q)| Ok(self.index.nearest_to_query(i, &q.input, 1)?[0].similarity)).collect()
    }

    /// The prompt of every query in an arm; `seed` draws random demonstrations.
    ///
    /// # Errors
    /// Too few examples, or a failure of the tokenizer.
    pub fn contexts(&self, arm: Arm, seed: Option<u64>) -> Result<Vec<PromptContext>> {
        let count = self.settings.demonstrations;
        let context = |i: usize| {
            let query = &self.queries.examples[i];
            let retrieved = match arm {
                Arm::ZeroShot | Arm::Lora | Arm::Pt | Arm::ItAct | Arm::ItKl => Vec::new(),
                Arm::IclRetrieved | Arm::Ipt => self.index.nearest_to_query(i, &query.input, count)?,
                Arm::Icl | Arm::IclRandom => {
                    let drawn = sample_for(&self.pool.examples, query, None, count, seed.unwrap_or(0), i as u64)?;
                    let similarities = self.index.similarities(i, &query.input);
                    drawn.iter().map(|&index| Retrieved { index, similarity: similarities[index] }).collect()
                }
            };
            let index = self.queries.indices[i];
            self.fitted(retrieved, query, self.settings.max_new_tokens, |prompts, text| {
                Ok(prompts.prompt::<&str>(text, &[])?.token_ids)
            })
            .map(|(token_ids, retrieved, dropped)| PromptContext {
                query: index,
                token_ids,
                retrieved,
                dropped,
            })
        };
        (0..self.queries.examples.len()).into_par_iter().map(context).collect()
    }

    /// The text of a query's prompt, with the demonstrations that were shown.
    ///
    /// # Errors
    /// A failure of the tokenizer's chat template.
    pub fn text(&self, generation: &Generation, query: &Example) -> Result<String> {
        let shown = generation.demonstrations.iter().filter_map(|index| {
            let at = self.pool.indices.iter().position(|other| other == index)?;
            Some(self.template.turn(&self.pool.examples[at]))
        });
        let shown: Vec<Turn> = shown.collect();
        Ok(Prompts::new(self.tokenizer, self.template).texts(&shown, &self.template.query(query))?.concat())
    }

    /// What an arm is trained on: the first examples of the pool, each with its answer and the end of it; for IPT behind
    /// demonstrations like it.
    ///
    /// # Errors
    /// Too few examples, or a failure of the tokenizer.
    pub fn training_examples(&self, arm: Arm) -> Result<Vec<TrainSequence>> {
        let sequence = |i: usize| {
            let example = &self.pool.examples[i];
            let retrieved = match arm {
                Arm::Ipt => self.index.nearest_to_example(i, &example.input, self.settings.demonstrations)?,
                _ => Vec::new(),
            };
            let mut labels = Vec::new();
            let (ids, ..) = self.fitted(retrieved, example, 0, |prompts, text| {
                let learnt = prompts.ended_example(text, &example.output)?;
                labels = learnt.labels;
                Ok(learnt.input_ids)
            })?;
            debug_assert!(labels[0] == IGNORE_INDEX);
            Ok(TrainSequence { ids, labels, teacher: None })
        };
        let count = self.settings.train_examples.min(self.pool.examples.len());
        (0..count).into_par_iter().map(sequence).collect()
    }

    /// The tokens of an example behind demonstrations, of which the first are dropped until there is room for `reserve`
    /// tokens more; the demonstrations that remain, and how many were dropped.
    fn fitted(
        &self,
        mut retrieved: Vec<Retrieved>,
        example: &Example,
        reserve: usize,
        mut encode: impl FnMut(&Prompts, &str) -> Result<Vec<u32>>,
    ) -> Result<(Vec<u32>, Vec<Retrieved>, usize)> {
        let (all, prompts) = (retrieved.len(), Prompts::new(self.tokenizer, self.template));
        loop {
            let turn = |r: &Retrieved| self.template.turn(&self.pool.examples[r.index]);
            let shown: Vec<Turn> = retrieved.iter().map(turn).collect();
            let ids = encode(&prompts, &prompts.texts(&shown, &self.template.query(example))?.concat())?;
            if retrieved.is_empty() || self.room.fits(ids.len() + reserve) {
                let dropped = all - retrieved.len();
                return Ok((ids, retrieved, dropped));
            }
            retrieved.remove(0);
        }
    }
}

/// Positions of a sequence beside the longest soft prompt.
#[derive(Clone, Copy)]
struct Room {
    /// None means any number.
    most: Option<usize>,
    /// The positions that the model learned, where they are the limit.
    learned: Option<usize>,
}

impl Room {
    fn new(settings: &CompareSettings, config: &ModelConfig) -> Self {
        let (asked, learned) = (settings.max_length, config.learned_positions());
        let learned = learned.filter(|&learned| asked.is_none_or(|asked| learned < asked));
        let most = learned.or(asked).map(|most| most.saturating_sub(settings.longest_prompt()));
        Self { most, learned }
    }

    /// The key of the count of a side's examples that do not fit.
    fn left_out(self, side: &str, count: usize) -> String {
        // A plan of before, under which none was left out, has the other.
        let why = match self.learned {
            Some(_) if count > 0 => "longer than the positions that the model learned",
            _ => "longer than --max-length",
        };
        format!("{side} examples left out: {why}")
    }

    fn fits(self, positions: usize) -> bool {
        self.most.is_none_or(|most| positions <= most)
    }
}

/// Chooses pool and queries, and counts what becomes of the rows. The counts' keys are those of the plan.
fn choose(
    tokenizer: &Tokenizer,
    (settings, room): (&CompareSettings, Room),
    source: &Source,
    counts: &mut BTreeMap<String, usize>,
) -> Result<(Chosen, Chosen)> {
    let mut count = |what: &str, n: usize| {
        counts.insert(what.to_string(), n);
    };
    for (side, data) in [("train", &source.train), ("test", &source.test)] {
        count(&format!("{side} rows used"), data.examples.len());
        data.skipped.iter().for_each(|(why, n)| count(&format!("{side} rows left out: {why}"), *n));
    }
    let pick = |all: &[Example], indices: Vec<usize>| Chosen {
        examples: indices.iter().map(|&i| all[i].clone()).collect(),
        indices,
    };
    let (mut indices, long) = shuffled(tokenizer, (settings, room), source, &source.test.examples)?;
    count(&room.left_out("test", long), long);
    indices.truncate(settings.queries);
    let queries = pick(&source.test.examples, indices);
    let inputs: HashSet<&str> = queries.examples.iter().map(|q| q.input.as_str()).collect();
    let (mut indices, long) = shuffled(tokenizer, (settings, room), source, &source.train.examples)?;
    count(&room.left_out("train", long), long);
    let before = indices.len();
    indices.retain(|&i| !inputs.contains(source.train.examples[i].input.as_str()));
    count(OF_QUERIES, before - indices.len());
    indices.truncate(settings.pool.unwrap_or(usize::MAX));
    count("queries", queries.indices.len());
    count("pool", indices.len());
    Ok((pick(&source.train.examples, indices), queries))
}

/// The indices of the examples that fit the greatest length, in an order shuffled by the split's seed, and how many do
/// not fit.
fn shuffled(
    tokenizer: &Tokenizer,
    (settings, room): (&CompareSettings, Room),
    source: &Source,
    all: &[Example],
) -> Result<(Vec<usize>, usize)> {
    let prompts = Prompts::new(tokenizer, &source.template);
    // Every sequence of an example alone must fit: with its answer to learn from, with new tokens as a query.
    let length = |example: &Example| -> Result<usize> {
        let query = prompts.texts(&[], &source.template.query(example))?.concat();
        let generated = prompts.prompt::<&str>(&query, &[])?.token_ids.len() + settings.max_new_tokens;
        Ok(generated.max(prompts.ended_example(&query, &example.output)?.input_ids.len()))
    };
    let fits = |example: &Example| Ok(room.most.is_none() || room.fits(length(example)?));
    let fits: Vec<bool> = all.par_iter().map(fits).collect::<Result<_>>()?;
    let mut order: Vec<usize> = (0..all.len()).filter(|&i| fits[i]).collect();
    Rng::new(settings.split_seed).shuffle(&mut order);
    let long = all.len() - order.len();
    Ok((order, long))
}
