//! How well a model does a task after so many demonstrations: without tuning and states, so that a task can be checked first.

use rayon::prelude::*;

use super::arm::Arm;
use super::packing::Group;
use super::points::Points;
use super::progress::{Count, Phase};
use super::states::{Reading, hooks};
use crate::backend::Backend;
use crate::formats::stops::Stops;
use crate::formats::tokenizer::Tokenizer;
use crate::model::{self, GenerationConfig, Model};
use crate::task::demonstrations::sample;
use crate::task::metrics::score;
use crate::task::prompts::{Prompt, Prompts};
use crate::task::{Candidates, Example, LengthNormalization, Task, Template, Turn, unreachable};
use crate::{Error, Result};

/// What a model is evaluated on.
pub struct Evaluation<'a> {
    /// That of the model.
    pub tokenizer: &'a Tokenizer,
    /// Whose labels or metric are used.
    pub task: &'a Task,
    /// How examples become text.
    pub template: &'a Template,
    /// Demonstrations are drawn from these.
    pub pool: &'a [Example],
    /// At least one.
    pub queries: &'a [Example],
    /// By what log-probabilities are divided before labels or choices are compared.
    pub length_normalization: LengthNormalization,
    /// New tokens of an answer at most, where the model writes it.
    pub max_new_tokens: usize,
    /// Token rows of a pass at most, unless a single prompt needs more.
    pub rows: usize,
}

impl Evaluation<'_> {
    /// Says which answers of the queries can never be chosen, or written whole.
    ///
    /// # Errors
    /// A failure of the tokenizer.
    pub fn warn(&self) -> Result<()> {
        let Self { tokenizer, task, template, queries, .. } = *self;
        unreachable::warn_of_beginning(task, template, queries, self.length_normalization);
        if task.is_closed() {
            return Ok(());
        }
        let (prompts, stops) = (Prompts::new(tokenizer, template), Vec::from_iter(template.stop()));
        unreachable::warn_of_cut(task, (&prompts, template), queries, &stops, self.max_new_tokens)
    }

    /// The score after `shots` demonstrations of a seed, the same before every query: of labels and choices the accuracy by
    /// log-probability, from 0 to 1; otherwise the task's metric of what the model writes greedily, from 0 to 100. Of one
    /// seed the demonstrations of a smaller number are the first of a larger one.
    ///
    /// # Errors
    /// Too few examples, lengths of free text, a query whose output is no label or choice, columns that the template names and examples have not,
    /// or a failure of tokenizer or device.
    pub fn score<B: Backend>(&self, backend: &mut B, model: &Model<B>, shots: usize, seed: u64) -> Result<f64> {
        let (template, prompts) = (self.template, Prompts::new(self.tokenizer, self.template));
        self.length_normalization.check(self.task.is_closed())?;
        template.check_columns(self.pool.iter().chain(self.queries))?;
        if self.queries.is_empty() {
            return Err(Error::argument("queries", "at least 1", 0));
        }
        let drawn = sample(self.pool, self.queries, shots, seed)?;
        let shown: Vec<Turn> = drawn.iter().map(|&i| template.turn(&self.pool[i])).collect();
        let text = |query: &Example| Ok(prompts.texts(&shown, &template.query(query))?.concat());
        if !self.task.is_closed() {
            let prompt = |query: &Example| Ok(prompts.prompt::<&str>(&text(query)?, &[])?.token_ids);
            return self.written(backend, model, self.queries.par_iter().map(prompt).collect::<Result<_>>()?);
        }
        let closed = |query: &Example| {
            let Candidates { outputs, gold } = Candidates::of(self.task, query)?;
            let prompt = prompts.prompt(&text(query)?, &outputs)?;
            let lengths = self.length_normalization.lengths(&outputs, &prompt.answers);
            Ok((prompt, (lengths, gold)))
        };
        let asked: Vec<(Prompt, (Vec<f64>, usize))> = self.queries.par_iter().map(closed).collect::<Result<_>>()?;
        let (prompts, asked): (Vec<Prompt>, Vec<(Vec<f64>, usize)>) = asked.into_iter().unzip();
        let (lengths, gold): (Vec<Vec<f64>>, Vec<usize>) = asked.into_iter().unzip();
        let total = prompts.len();
        let points = prompts.iter().map(|_| Points::none()).collect();
        let group = Group { run: None, soft: 0, demonstrations: true, prompts, points };
        let mut count = Count { phase: Phase::Read(Arm::Icl), done: 0, total, progress: &mut |_| () };
        // No state is read, but the pass has to go to its end.
        let end = hooks(0, &[]);
        let reading = Reading { model, adaptation: None, hooks: &end, rows: self.rows, edits: &[], below: None };
        let (states, _) = reading.read(backend, &[vec![group]], &mut count)?;
        let scores = score(&states[0].log_probs, &lengths, &gold, true);
        Ok(scores.accuracy.expect("evaluate: there are candidates"))
    }

    /// The metric of what the model writes after prompts, one for each query.
    fn written<B: Backend>(&self, backend: &mut B, model: &Model<B>, prompts: Vec<Vec<u32>>) -> Result<f64> {
        let stops = Stops::new(self.tokenizer, self.template.stop());
        let ends = |ids: &[u32]| stops.reached(ids);
        let config = GenerationConfig {
            stop: self.tokenizer.stops().to_vec(),
            ends: Some(&ends),
            rows: self.rows,
            ..GenerationConfig::greedy(self.max_new_tokens)
        };
        let prompts: Vec<model::Prompt> = prompts.into_iter().map(|ids| model::Prompt { ids, run: None }).collect();
        let made = model.generate(backend, &prompts, None, &config, &mut |_, _| ())?;
        let metric = self.task.metric();
        let judged = |(tokens, query): (&Vec<u32>, &Example)| Ok(metric.judge(stops.text(tokens)?.trim(), query));
        let statistics = made.iter().zip(self.queries).map(judged).collect::<Result<Vec<_>>>()?;
        Ok(metric.corpus(&statistics))
    }
}
