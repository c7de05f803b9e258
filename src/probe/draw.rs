//! Drawing a plan: which examples are the demonstrations of a seed, with which labels, in which order.

use rayon::prelude::*;

use super::arm::Arm;
use super::demonstrations::{LabelNoise, Similarity};
use super::plan::{Plan, Query, SeedPlan};
use super::position::Position;
use super::settings::ProbeSettings;
use crate::formats::tokenizer::Tokenizer;
use crate::random::Rng;
use crate::task::demonstrations::sample_of;
use crate::task::prompts::{Prompt, Prompts, TrainingExample};
use crate::task::retrieval::{self, Retriever};
use crate::task::{Candidates, Example, Task, Template, Turn, unreachable};
use crate::{Error, Result};

/// What a plan is drawn from.
#[derive(Clone, Copy)]
pub struct PlanInputs<'a> {
    /// Of the model.
    pub tokenizer: &'a Tokenizer,
    /// Whose labels the queries have.
    pub task: &'a Task,
    /// What demonstrations are drawn from, of `task` or of another task.
    pub demonstrations: DemonstrationPool<'a>,
    /// The first of them are asked.
    pub queries: &'a [Example],
    /// How like the queries each example of the pool is; needed where `similarity` is not random, see
    /// [`similarity_to_queries`](super::similarity_to_queries).
    pub similarities: Option<&'a [f64]>,
}

/// Examples to demonstrate with.
#[derive(Clone, Copy)]
pub struct DemonstrationPool<'a> {
    /// Whose labels they have.
    pub task: &'a Task,
    /// How they become text.
    pub template: &'a Template,
    /// In the order of their file.
    pub examples: &'a [Example],
}

impl Plan {
    /// Draws the demonstrations of every seed from `pool`, and makes tokens of everything. The queries are the first
    /// of `queries`.
    ///
    /// # Errors
    /// Too few examples, an output that is not a label of the task, or a failure of the tokenizer.
    pub fn new(
        tokenizer: &Tokenizer,
        task: &Task,
        pool: &[Example],
        queries: &[Example],
        settings: &ProbeSettings,
    ) -> Result<Self> {
        let demonstrations = DemonstrationPool { task, template: &settings.template, examples: pool };
        Self::draw(&PlanInputs { tokenizer, task, demonstrations, queries, similarities: None }, settings)
    }

    /// The same with demonstrations of any task, like the queries or not.
    ///
    /// # Errors
    /// See [`Plan::new`]; a change of labels of a task that has none.
    pub fn draw(inputs: &PlanInputs<'_>, settings: &ProbeSettings) -> Result<Self> {
        let PlanInputs { tokenizer, task, queries, .. } = *inputs;
        let count = settings.queries.unwrap_or(queries.len());
        if count == 0 || count > queries.len() {
            return Err(Error::argument("queries", format!("from 1 to {}", queries.len()), count));
        }
        let queries = &queries[..count];
        settings.template.check_columns(queries)?;
        inputs.demonstrations.template.check_columns(inputs.demonstrations.examples)?;
        unreachable::warn_of_beginning(task, &settings.template, queries, settings.length_normalization);
        let prompts = Prompts::new(tokenizer, &settings.template);
        let candidates: Vec<Candidates> = queries.iter().map(|q| Candidates::of(task, q)).collect::<Result<_>>()?;
        let read = |shown: &[Turn], (query, candidates): (&Example, &Candidates)| {
            let [before, query] = prompts.texts(shown, &settings.template.query(query))?;
            prompts.prompt_behind(&before, &query, &candidates.outputs)
        };
        let read_all = |shown: &[Turn]| -> Result<Vec<(Prompt, usize)>> {
            queries.par_iter().zip(&candidates).map(|pair| read(shown, pair)).collect()
        };
        let draw = Draw { pool: inputs.demonstrations, queries, similarities: inputs.similarities, settings };
        let seed_plan = |&seed: &u64| {
            let drawn = draw.seed(seed)?;
            let shown = drawn.shown.iter().map(|&i| &drawn.examples[i]);
            let turns: Vec<Turn> = shown.map(|d| draw.pool.template.turn(d)).collect();
            let plan = SeedPlan::new(seed, drawn.indices(), read_all(&turns)?);
            drawn.learnt(plan, &draw, tokenizer)
        };
        let seeds = settings.seeds.iter().map(seed_plan).collect::<Result<_>>()?;
        let alone = read_all(&[])?.into_iter().zip(&candidates).enumerate().map(|(index, ((p, _), c))| Query {
            index,
            token_ids: p.token_ids,
            answers: p.answers,
            choices: if task.labels().is_none() && task.is_closed() { c.outputs.clone() } else { Vec::new() },
            gold: c.gold,
        });
        Ok(Self { labels: task.labels().map(<[String]>::to_vec), queries: alone.collect(), seeds, tokenizer: None })
    }
}

/// Streams of a seed's random numbers, beside the one that examples are drawn by.
const LABELS: u64 = 1 << 32;
const ORDERS: u64 = 2 << 32;
/// `near` and `far` are this part of the pool.
const NEAR_PART: usize = 4;

/// What demonstrations are drawn from, and how.
pub(super) struct Draw<'a> {
    pub pool: DemonstrationPool<'a>,
    pub queries: &'a [Example],
    pub similarities: Option<&'a [f64]>,
    pub settings: &'a ProbeSettings,
}

/// The demonstrations of a seed.
pub(super) struct Drawn {
    /// Their indices in the pool, in the order drawn.
    pool_indices: Vec<usize>,
    /// Their examples, with the labels that they are shown with.
    pub examples: Vec<Example>,
    /// Which of them is shown first, second, ...
    pub shown: Vec<usize>,
}

/// The mean over the queries of how like each example of a pool is to them: by BM25, or by the cosine of vectors of pool
/// and queries (`[pool, width]`, `[queries, width]`).
pub fn similarity_to_queries(pool: &[Example], queries: &[Example], vectors: Option<(Vec<f32>, Vec<f32>)>) -> Vec<f64> {
    let (retriever, of_queries) = match vectors {
        Some((of_pool, of_queries)) => (Retriever::dense(pool, of_pool), of_queries),
        None => (Retriever::bm25(pool), Vec::new()),
    };
    let width = of_queries.len() / queries.len().max(1);
    let mut mean = vec![0.0; pool.len()];
    for (i, query) in queries.iter().enumerate() {
        let vector = &of_queries[i * width..(i + 1) * width];
        let found = retriever.similarities(&retrieval::Query { input: &query.input, vector, pool_index: None });
        mean.iter_mut().zip(found).for_each(|(mean, x)| *mean += x / queries.len() as f64);
    }
    mean
}

impl Draw<'_> {
    /// Draws for a seed. A larger number of demonstrations continues a smaller one, of near and far ones as long as the
    /// quarter has so many.
    pub fn seed(&self, seed: u64) -> Result<Drawn> {
        let (pool, settings) = (self.pool.examples, self.settings);
        let pool_indices = sample_of(pool, &self.part(), self.queries, settings.demonstrations, seed)?;
        let mut rng = Rng::with_stream(seed, LABELS);
        let label = |(i, &index): (usize, &usize)| self.labelled(&pool[index], i, &mut rng);
        let examples = pool_indices.iter().enumerate().map(label).collect::<Result<_>>()?;
        let mut shown: Vec<usize> = (0..pool_indices.len()).collect();
        if settings.order > 0 {
            Rng::with_stream(seed, ORDERS + settings.order).shuffle(&mut shown);
        }
        Ok(Drawn { pool_indices, examples, shown })
    }

    /// The indices of the examples that may be drawn, ascending.
    fn part(&self) -> Vec<usize> {
        let pool = self.pool.examples;
        let mut all: Vec<usize> = (0..pool.len()).collect();
        if self.settings.similarity == Similarity::Random {
            return all;
        }
        let own;
        let similarities = match self.similarities {
            Some(similarities) => similarities,
            None => {
                own = similarity_to_queries(pool, self.queries, None);
                &own
            }
        };
        let sign = if self.settings.similarity == Similarity::Near { -1.0 } else { 1.0 };
        // Examples that are never drawn, since they are queries, are no part of the quarter either.
        all.retain(|&i| self.queries.iter().all(|query| query.input != pool[i].input));
        all.sort_by(|&a, &b| (sign * similarities[a]).total_cmp(&(sign * similarities[b])));
        all.truncate(all.len().div_ceil(NEAR_PART).max(self.settings.demonstrations));
        all.sort_unstable();
        all
    }

    /// The `i`th demonstration with the label that it is shown with.
    fn labelled(&self, example: &Example, i: usize, rng: &mut Rng) -> Result<Example> {
        let noise = self.settings.labels;
        if noise == LabelNoise::Gold {
            return Ok(example.clone());
        }
        let labels = self.pool.task.labels().or(example.choices.as_deref()).ok_or_else(|| {
            let expected = format!("gold as level of labels, since the outputs of {} are no labels", self.pool.task);
            Error::argument("vary", expected, format!("{noise:?}").to_lowercase())
        })?;
        let any = &labels[rng.below(labels.len())];
        let others: Vec<&String> = labels.iter().filter(|label| **label != example.output).collect();
        let wrong = others.get(rng.below(others.len().max(1))).copied().unwrap_or(any);
        let output = match noise {
            LabelNoise::Random => any,
            LabelNoise::Half if i.is_multiple_of(2) => return Ok(example.clone()),
            _ => wrong,
        };
        Ok(Example { output: output.clone(), ..example.clone() })
    }
}

impl Drawn {
    /// Their indices in the pool, in the order shown.
    pub fn indices(&self) -> Vec<usize> {
        self.shown.iter().map(|&i| self.pool_indices[i]).collect()
    }

    /// A seed's plan with what is learnt, and where states of demonstrations are read.
    pub fn learnt(&self, plan: SeedPlan, draw: &Draw<'_>, tokenizer: &Tokenizer) -> Result<SeedPlan> {
        let (template, settings) = (draw.pool.template, draw.settings);
        let prompts = Prompts::new(tokenizer, template);
        let text = |shown: &mut dyn Iterator<Item = &usize>, i: usize| -> Result<String> {
            let turns: Vec<Turn> = shown.map(|&i| template.turn(&self.examples[i])).collect();
            Ok(prompts.texts(&turns, &template.query(&self.examples[i]))?.concat())
        };
        let after = |shown: &mut dyn Iterator<Item = &usize>, i: usize| -> Result<TrainingExample> {
            prompts.training_example(&text(shown, i)?, &self.examples[i].output)
        };
        let all = 0..self.examples.len();
        let train = all.clone().map(|i| after(&mut std::iter::empty(), i)).collect::<Result<_>>()?;
        let after_others = |i| after(&mut self.shown.iter().filter(|&&other| other != i), i);
        let ipt_train = match settings.soft.arms.iter().any(|&arm| arm == Arm::Ipt || arm.has_teacher()) {
            true => all.clone().map(after_others).collect::<Result<_>>()?,
            false => Vec::new(),
        };
        let in_context = |i: usize| -> Result<Vec<u32>> {
            let text = text(&mut self.shown.iter().take_while(|&&other| other != i), i)?;
            Ok(prompts.prompt::<&str>(&text, &[])?.token_ids)
        };
        let icl_demonstration_token_ids = match settings.position == Position::Demos {
            true => all.map(in_context).collect::<Result<_>>()?,
            false => Vec::new(),
        };
        Ok(SeedPlan { train, ipt_train, icl_demonstration_token_ids, ..plan })
    }
}
