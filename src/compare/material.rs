//! What a task brings to a comparison: queries, the pool, what is retrieved for whom, all as tokens.

use std::collections::{BTreeMap, HashSet};

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde_json::{Value, json};

use super::{Arm, CompareSettings, Retrieval, Source, Study};
use crate::backend::Backend;
use crate::formats::tokenizer::Tokenizer;
use crate::model::Model;
use crate::task::demonstrations::sample_for;
use crate::task::embedding::mean_states;
use crate::task::prompts::Prompts;
use crate::task::retrieval::{Query, Retriever, Shown, read_vectors};
use crate::task::{Example, Task, Template};
use crate::train::data::{IGNORE_INDEX, TrainSequence};
use crate::{Error, Result, hash};

/// A prompt of an arm.
pub struct Context {
    /// The query's number in the test data.
    pub number: usize,
    /// Its tokens.
    pub token_ids: Vec<u32>,
    /// The demonstrations in it.
    pub shown: Vec<Shown>,
    /// Demonstrations left out for length.
    pub dropped: usize,
}

/// A task's examples, chosen.
pub struct Material<'a> {
    /// The task.
    pub task: Task,
    /// Its template.
    pub template: &'a Template,
    /// Demonstrations are taken from these.
    pub pool: Vec<Example>,
    /// Their numbers in the training data.
    pub pool_numbers: Vec<usize>,
    /// What is asked.
    pub queries: Vec<Example>,
    query_numbers: Vec<usize>,
    tokenizer: &'a Tokenizer,
    settings: &'a CompareSettings,
    retriever: Retriever,
    query_vectors: Vec<f32>,
    pool_vectors: Vec<f32>,
    /// Rows and examples by what became of them.
    counts: BTreeMap<String, usize>,
    data: u64,
}

impl<'a> Material<'a> {
    /// Chooses queries and pool, in an order shuffled by the split's seed. No example of the pool has the input of a
    /// query. Examples too long for the greatest length are left out of both.
    ///
    /// # Errors
    /// Fewer than two examples are left, or no query; vectors that do not fit; a failure of tokenizer or device.
    pub fn new<B: Backend>(
        backend: &mut B,
        model: &Model<B>,
        study: &'a Study<'a>,
        source: &'a Source,
    ) -> Result<Self> {
        let Study { tokenizer, vectors, settings, .. } = *study;
        let mut counts = BTreeMap::new();
        let mut count = |what: &str, n: usize| {
            counts.insert(what.to_string(), n);
        };
        let prompts = Prompts::new(tokenizer, &source.template);
        let room = settings.max_length.map(|max| max.saturating_sub(settings.longest()));
        // Every sequence of an example alone must fit: with its answer as a lesson, with new tokens as a query.
        let length = |example: &Example| -> Result<usize> {
            let query = source.template.query(example);
            let asked = prompts.prompt::<&str>(&query, &[])?.token_ids.len() + settings.max_new_tokens;
            Ok(asked.max(prompts.lesson(&query, &example.output)?.input_ids.len() + 1))
        };
        let chosen = |all: &[Example]| -> Result<(Vec<usize>, usize)> {
            let fits = |example: &Example| match room {
                None => Ok(true),
                Some(room) => Ok(length(example)? <= room),
            };
            let fits: Vec<bool> = all.par_iter().map(fits).collect::<Result<_>>()?;
            let mut order: Vec<usize> = (0..all.len()).filter(|&i| fits[i]).collect();
            order.shuffle(&mut ChaCha8Rng::seed_from_u64(settings.split_seed));
            let long = all.len() - order.len();
            Ok((order, long))
        };
        for (side, data) in [("train", &source.train), ("test", &source.test)] {
            count(&format!("{side} rows used"), data.examples.len());
            data.left_out.iter().for_each(|(why, n)| count(&format!("{side} rows left out: {why}"), *n));
        }
        let (mut query_numbers, long) = chosen(&source.test.examples)?;
        count("test examples left out: longer than --max-length", long);
        query_numbers.truncate(settings.queries);
        let queries: Vec<Example> = query_numbers.iter().map(|&i| source.test.examples[i].clone()).collect();
        let asked: HashSet<&str> = queries.iter().map(|q| q.input.as_str()).collect();
        let (mut pool_numbers, long) = chosen(&source.train.examples)?;
        count("train examples left out: longer than --max-length", long);
        let before = pool_numbers.len();
        pool_numbers.retain(|&i| !asked.contains(source.train.examples[i].input.as_str()));
        count("train examples left out: input of a query", before - pool_numbers.len());
        pool_numbers.truncate(settings.pool.unwrap_or(usize::MAX));
        count("queries", queries.len());
        count("pool", pool_numbers.len());
        if queries.is_empty() || pool_numbers.len() < 2 {
            let found = format!("{} and {}, of {counts:?}", queries.len(), pool_numbers.len());
            return Err(Error::argument(format!("{} data", source.task), "a query and two examples that fit", found));
        }
        if settings.demonstrations >= pool_numbers.len() {
            let most = format!("at most {}, one less than the pool of {}", pool_numbers.len() - 1, source.task);
            return Err(Error::argument("--demos", most, settings.demonstrations));
        }
        let pool: Vec<Example> = pool_numbers.iter().map(|&i| source.train.examples[i].clone()).collect();
        let (retriever, pool_vectors, query_vectors) = match settings.retrieval {
            Retrieval::Bm25 => (Retriever::bm25(&pool), Vec::new(), Vec::new()),
            dense => {
                let (of_pool, of_queries) = match (dense, vectors) {
                    (Retrieval::Vectors, Some(path)) => {
                        let read = |side: &str, all: &[Example], numbers: &[usize]| -> Result<Vec<f32>> {
                            let rows = read_vectors(path, &format!("{}.{side}", source.task), all.len())?;
                            let width = rows.len() / all.len();
                            Ok(numbers.iter().flat_map(|&i| rows[i * width..][..width].to_vec()).collect())
                        };
                        let of_pool = read("train", &source.train.examples, &pool_numbers)?;
                        let of_queries = read("test", &source.test.examples, &query_numbers)?;
                        if of_pool.len() * queries.len() != of_queries.len() * pool.len() {
                            let expected = format!("the width of {}.train", source.task);
                            return Err(Error::field(path, format!("{}.test", source.task), expected, "another"));
                        }
                        (of_pool, of_queries)
                    }
                    (Retrieval::Vectors, None) => {
                        return Err(Error::argument("--vectors", "a file, for --retrieval vectors", "none"));
                    }
                    _ => {
                        let mut embed = |all: &[Example]| {
                            let ids = |e: &Example| Ok(tokenizer.encode(&e.input, true)?.ids);
                            let ids: Vec<Vec<u32>> = all.par_iter().map(ids).collect::<Result<_>>()?;
                            mean_states(backend, model, &ids, settings.rows)
                        };
                        (embed(&pool)?, embed(&queries)?)
                    }
                };
                (Retriever::dense(&pool, of_pool.clone()), of_pool, of_queries)
            }
        };
        let texts = queries.iter().chain(&pool).flat_map(|e| [e.input.as_str(), "\0", &e.output, "\0"]);
        let data = hash::fnv1a(texts.flat_map(str::bytes));
        Ok(Self {
            task: source.task,
            template: &source.template,
            pool,
            pool_numbers,
            queries,
            query_numbers,
            tokenizer,
            settings,
            retriever,
            query_vectors,
            pool_vectors,
            counts,
            data,
        })
    }

    /// What the examples are, for the plan.
    pub fn describe(&self) -> Value {
        json!({
            "task": self.task,
            "template": self.template,
            "metric": self.signature(),
            "counts": self.counts,
            "queries": self.query_numbers,
            "hash": format!("{:016x}", self.data),
        })
    }

    /// The metric's signature over the queries.
    pub fn signature(&self) -> String {
        self.task.metric().signature(self.queries.iter().map(|q| q.right().count()))
    }

    /// How like each query the most like demonstration is.
    ///
    /// # Errors
    /// A pool without another example.
    pub fn similarities(&self) -> Result<Vec<f64>> {
        let best = |i: usize| Ok(self.retriever.nearest(&self.query(i), 1)?[0].similarity);
        (0..self.queries.len()).into_par_iter().map(best).collect()
    }

    /// The prompt of every query in an arm; `seed` draws random demonstrations.
    ///
    /// # Errors
    /// Too few examples, or a failure of the tokenizer.
    pub fn contexts(&self, arm: Arm, seed: Option<u64>) -> Result<Vec<Context>> {
        let count = self.settings.demonstrations;
        let context = |i: usize| {
            let query = &self.queries[i];
            let shown = match arm {
                Arm::ZeroShot | Arm::Lora | Arm::Pt => Vec::new(),
                Arm::IclRetrieved | Arm::Ipt => self.retriever.nearest(&self.query(i), count)?,
                Arm::IclRandom => {
                    let drawn = sample_for(&self.pool, query, None, count, seed.unwrap_or(0), i as u64)?;
                    let similarities = self.retriever.similarities(&self.query(i));
                    drawn.iter().map(|&index| Shown { index, similarity: similarities[index] }).collect()
                }
            };
            let number = self.query_numbers[i];
            self.fitted(shown, query, self.settings.max_new_tokens, |text| {
                Ok(Prompts::new(self.tokenizer, self.template).prompt::<&str>(text, &[])?.token_ids)
            })
            .map(|(token_ids, shown, dropped)| Context { number, token_ids, shown, dropped })
        };
        (0..self.queries.len()).into_par_iter().map(context).collect()
    }

    /// What an arm is trained on: the first examples of the pool, each with its answer, and an end-of-sequence token
    /// where the tokenizer has one; for IPT behind demonstrations like it.
    ///
    /// # Errors
    /// Too few examples, or a failure of the tokenizer.
    pub fn lessons(&self, arm: Arm) -> Result<Vec<TrainSequence>> {
        let lesson = |i: usize| {
            let example = &self.pool[i];
            let shown = match arm {
                Arm::Ipt => {
                    let width = self.pool_vectors.len() / self.pool.len();
                    let vector = &self.pool_vectors[i * width..][..width];
                    let query = Query { input: &example.input, vector, own: Some(i) };
                    self.retriever.nearest(&query, self.settings.demonstrations)?
                }
                _ => Vec::new(),
            };
            let prompts = Prompts::new(self.tokenizer, self.template);
            let mut labels = Vec::new();
            let (mut ids, ..) = self.fitted(shown, example, 1, |text| {
                let lesson = prompts.lesson(text, &example.output)?;
                labels = lesson.labels;
                Ok(lesson.input_ids)
            })?;
            if let Some(eos) = self.tokenizer.eos() {
                ids.push(eos);
                labels.push(i64::from(eos));
            }
            debug_assert!(labels[0] == IGNORE_INDEX);
            Ok(TrainSequence { ids, labels })
        };
        let count = self.settings.train_examples.min(self.pool.len());
        (0..count).into_par_iter().map(lesson).collect()
    }

    /// The tokens of an example behind demonstrations, of which the first are dropped until there is room for `reserve`
    /// tokens more.
    fn fitted(
        &self,
        mut shown: Vec<Shown>,
        example: &Example,
        reserve: usize,
        mut encode: impl FnMut(&str) -> Result<Vec<u32>>,
    ) -> Result<(Vec<u32>, Vec<Shown>, usize)> {
        let room = self.settings.max_length.map(|max| max.saturating_sub(self.settings.longest()));
        let all = shown.len();
        loop {
            let before: String = shown.iter().map(|s| self.template.demonstration(&self.pool[s.index])).collect();
            let ids = encode(&(before + &self.template.query(example)))?;
            if shown.is_empty() || room.is_none_or(|room| ids.len() + reserve <= room) {
                let dropped = all - shown.len();
                return Ok((ids, shown, dropped));
            }
            shown.remove(0);
        }
    }

    fn query(&self, i: usize) -> Query<'_> {
        let width = self.query_vectors.len() / self.queries.len();
        Query { input: &self.queries[i].input, vector: &self.query_vectors[i * width..][..width], own: None }
    }
}
