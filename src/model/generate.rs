//! Continuing prompts token by token, many at once, over a cache of keys and values.

use super::Model;
use super::activations::{Activations, Keep};
use super::adaptation::Adaptation;
use super::decode::Search;
use super::forward::{Cache, Input};
use super::output_rows::OutputRows;
use crate::arch::Positions;
use crate::backend::{Backend, KvCache};
use crate::hooks::NoTaps;
use crate::pack::{Label, Pack, PackBuilder, Parent, Sequence, Token, forest};
use crate::{Error, Result};

/// How the next token is chosen from the logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampling {
    /// The most probable; of equals the lowest id.
    Greedy,
    /// The continuation that beam search finds, with transformers' defaults.
    Beam {
        /// Hypotheses that are followed, at least 1.
        beams: usize,
        /// Scores are divided by the number of new tokens to this power (transformers: 1).
        length_penalty: f64,
    },
    /// Drawn at random after the cuts, in this order: temperature, top-k, top-p (Holtzman et al. 2020).
    Random {
        /// Divisor of the logits, above 0.
        temperature: f64,
        /// Only the k most probable; none means all.
        top_k: Option<usize>,
        /// Only the fewest most probable whose probabilities reach this sum; none means all.
        top_p: Option<f64>,
        /// Of the random numbers; prompt i draws from a stream of its own, whatever else is generated beside it.
        seed: u64,
    },
}

/// Says whether new tokens end a sequence.
pub type Ends<'a> = dyn Fn(&[u32]) -> bool + 'a;

/// When and how generation goes on.
#[derive(Clone)]
pub struct Generation<'a> {
    /// At most this many new tokens.
    pub max_new_tokens: usize,
    /// Positions at most, soft prompt, prompt and new tokens together; none means any number.
    pub max_length: Option<usize>,
    /// Tokens that end a sequence; they are part of the result.
    pub stop: Vec<u32>,
    /// Whether the new tokens so far end a sequence, such as by a stop string; they are part of the result.
    pub ends: Option<&'a Ends<'a>>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Rows of prompts and new tokens that are kept at once, unless a single prompt needs more; it changes no result.
    pub rows: usize,
}

impl Generation<'_> {
    /// Greedy, with nothing but a number of tokens to end it.
    pub fn greedy(max_new_tokens: usize) -> Self {
        Self { max_new_tokens, max_length: None, stop: vec![], ends: None, sampling: Sampling::Greedy, rows: 1 << 14 }
    }

    /// New tokens at most behind `positions` positions.
    fn limit(&self, positions: usize) -> usize {
        self.max_length.map_or(self.max_new_tokens, |max| self.max_new_tokens.min(max.saturating_sub(positions)))
    }

    /// Hypotheses of a prompt at most.
    fn width(&self) -> usize {
        match self.sampling {
            Sampling::Beam { beams, .. } => beams,
            Sampling::Greedy | Sampling::Random { .. } => 1,
        }
    }
}

/// A prompt to be continued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Token ids, at least one.
    pub ids: Vec<u32>,
    /// The run whose adapter or soft prompt is active; none is the base model.
    pub run: Option<usize>,
}

impl<B: Backend> Model<B> {
    /// The continuation of every prompt. `on_token(i, token)` hears of every token of prompt i, as it is chosen or, with
    /// beams, at the end.
    ///
    /// Beginnings that prompts share (within the rows kept at once) are computed once. A prompt's continuation does not
    /// depend on the others.
    ///
    /// # Errors
    /// An empty prompt, no beam, logits that are not numbers, or a failing device.
    pub fn generate(
        &self,
        backend: &mut B,
        prompts: &[Prompt],
        adaptation: Option<&Adaptation<B>>,
        generation: &Generation,
        on_token: &mut dyn FnMut(usize, u32),
    ) -> Result<Vec<Vec<u32>>> {
        if let Some(i) = prompts.iter().position(|prompt| prompt.ids.is_empty()) {
            return Err(Error::argument(format!("prompt {i}"), "at least one token", "none"));
        }
        if generation.width() == 0 {
            return Err(Error::argument("--num-beams", "at least 1", 0));
        }
        // A model that learned its positions has no others.
        let learned =
            matches!(self.config.positions, Positions::Learned { .. }).then_some(self.config.max_position_embeddings);
        let max_length = generation.max_length.into_iter().chain(learned).min();
        let generation = &Generation { max_length, ..generation.clone() };
        let soft = |run: Option<usize>| adaptation.zip(run).map_or(0, |(adaptation, run)| adaptation.prompts[run]);
        let sequences: Vec<Sequence> = prompts.iter().map(|p| Sequence::prompted(soft(p.run), &p.ids, p.run)).collect();
        let mut done = Vec::with_capacity(prompts.len());
        while done.len() < prompts.len() {
            let first = done.len();
            let mut rows = 0;
            let fits = sequences[first..].iter().take_while(|s| {
                rows += s.tokens.len() + generation.width() * generation.limit(s.tokens.len());
                rows <= generation.rows
            });
            // Sequences whose angles depend on how long they are have nothing in common.
            let together = if self.config.scales_beyond().is_some() { 1 } else { fits.count().max(1) };
            let last = first + together;
            let batch = Batch { model: self, adaptation, generation, first };
            done.extend(batch.run(backend, &sequences[first..last], on_token)?);
        }
        Ok(done)
    }
}

/// Prompts that are continued together.
struct Batch<'a, B: Backend> {
    model: &'a Model<B>,
    adaptation: Option<&'a Adaptation<B>>,
    generation: &'a Generation<'a>,
    /// Number of the first of them among all.
    first: usize,
}

impl<B: Backend> Batch<'_, B> {
    fn run(
        &self,
        backend: &mut B,
        sequences: &[Sequence],
        on_token: &mut dyn FnMut(usize, u32),
    ) -> Result<Vec<Vec<u32>>> {
        let (config, generation) = (&self.model.config, self.generation);
        let limits: Vec<usize> = sequences.iter().map(|s| generation.limit(s.tokens.len())).collect();
        let planted = forest(sequences, 1);
        let last: Vec<usize> = (0..sequences.len()).map(|i| planted.last_row(i)).collect();
        // A prompt that begins another one may end inside a segment: its continuation needs a segment that ends there.
        let leaf = |row: &usize| planted.pack.segments().iter().position(|s| s.rows.end == row + 1);
        let leaves: Vec<usize> =
            last.iter().map(leaf).collect::<Option<_>>().expect("generate: segments end where sequences do");
        let search = |(i, (&limit, &leaf))| Search::new(generation, limit, leaf, self.first + i);
        let mut searches: Vec<Search> = limits.iter().zip(&leaves).enumerate().map(search).collect();
        let new: usize = limits.iter().map(|limit| limit * generation.width()).sum();
        let mut cache = KvCache::new(backend, config.num_hidden_layers, planted.pack.len() + new, config.kv_width())?;
        let keep: Vec<usize> = (0..planted.pack.segments().len()).collect();
        // Every live hypothesis has its logits, in the order of prompts.
        let wanted: Vec<usize> = (0..last.len()).filter(|&i| limits[i] > 0).map(|i| last[i]).collect();
        let mut logits = match wanted.is_empty() {
            true => Vec::new(),
            false => self.pass(backend, &planted.pack, &mut cache, &keep, &wanted)?,
        };
        while !logits.is_empty() {
            let mut rows = logits.chunks_exact(config.vocab_size);
            let mut builder = PackBuilder::new(&cache.segments);
            let first = cache.segments.len();
            let mut pushed = 0;
            for (i, search) in searches.iter_mut().enumerate().filter(|(_, search)| !search.live.is_empty()) {
                let own: Vec<&[B::Element]> = rows.by_ref().take(search.live.len()).collect();
                let before = search.live[0].tokens.len();
                search.step(&own).ok_or_else(|| Error::NotFinite {
                    what: format!("logits of prompt {} after {before} new tokens", self.first + i),
                    found: f64::NAN,
                })?;
                for hypothesis in &mut search.live {
                    let token = *hypothesis.tokens.last().expect("generate: a step adds a token");
                    builder.push(
                        &[Token::Id(token)],
                        Parent::Cached(hypothesis.segment),
                        sequences[i].run,
                        Label::Answer,
                    );
                    hypothesis.segment = first + pushed;
                    pushed += 1;
                }
                if let Some(token) = search.newest() {
                    on_token(self.first + i, token);
                }
            }
            let all: Vec<usize> = (0..pushed).collect();
            logits = match pushed {
                0 => Vec::new(),
                _ => self.pass(backend, &builder.build(), &mut cache, &all, &all)?,
            };
        }
        let done: Vec<Vec<u32>> = searches.into_iter().map(Search::result).collect();
        if matches!(generation.sampling, Sampling::Beam { .. }) {
            let tokens = done.iter().enumerate().flat_map(|(i, tokens)| tokens.iter().map(move |&token| (i, token)));
            tokens.for_each(|(i, token)| on_token(self.first + i, token));
        }
        Ok(done)
    }

    /// One forward that keeps the segments `keep`; the logits after `rows`.
    fn pass(
        &self,
        backend: &mut B,
        pack: &Pack,
        cache: &mut KvCache<B>,
        keep: &[usize],
        rows: &[usize],
    ) -> Result<Vec<B::Element>> {
        let layout = self.adaptation.map(|adaptation| &adaptation.layout);
        let mut acts = Activations::new(backend, &self.model.config, layout, pack.len(), Keep::Layer)?;
        let device = backend.pack(pack)?;
        let read = OutputRows::new(backend, pack, rows.iter().copied())?;
        let input = Input { adaptation: self.adaptation, ..Input::new(pack, &device).with_output_rows(read.as_ref()) };
        self.model.forward(backend, &mut acts, &input, Some(Cache { cache, keep }), &mut NoTaps)?;
        self.model.logits(backend, &acts, rows)
    }
}
