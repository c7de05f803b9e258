//! Continuing prompts token by token, many at once, over a cache of keys and values.

use super::Model;
use super::adaptation::Adaptation;
use super::decoder::{Decoder, DecoderSize};
use super::layout::Layout;
use super::sampling::{GenerationConfig, Sampling};
use super::search::{Scratch, Search};
use crate::arch::{ModelConfig, Rope, RopeKind};
use crate::backend::Backend;
use crate::hooks::{EditPlan, EditRows};
use crate::pack::{Label, Pack, PackBuilder, Parent, Sequence, Token};
use crate::{Error, Result};

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
    /// Beginnings that prompts share (within the rows cached at once) are computed once. A prompt's continuation does not
    /// depend on the others.
    ///
    /// # Errors
    /// A model without a head, an empty prompt, a prompt behind which a model that learned its positions has none left,
    /// settings out of their domain, logits that are not numbers, or a failing device.
    pub fn generate(
        &self,
        backend: &mut B,
        prompts: &[Prompt],
        adaptation: Option<&Adaptation<B>>,
        generation: &GenerationConfig,
        on_token: &mut dyn FnMut(usize, u32),
    ) -> Result<Vec<Vec<u32>>> {
        if let Some(i) = prompts.iter().position(|prompt| prompt.ids.is_empty()) {
            return Err(Error::argument(format!("prompt {i}"), "at least one token", "none"));
        }
        self.config.require_head()?;
        generation.validate()?;
        let soft = |run: Option<usize>| adaptation.zip(run).map_or(0, |(adaptation, run)| adaptation.prompts[run]);
        let mut sequences: Vec<Sequence> =
            prompts.iter().map(|p| Sequence::prompted(soft(p.run), &p.ids, p.run)).collect();
        let lengths: Vec<usize> = sequences.iter().map(|s| s.tokens.len()).collect();
        self.config.check_prompts(&lengths, generation)?;
        let asked = generation;
        let max_length = asked.max_length.into_iter().chain(self.config.learned_positions()).min();
        let generation = &GenerationConfig { max_length, ..asked.clone() };
        self.check_window(lengths.iter().map(|&len| len + generation.limit(len)).max().unwrap_or(0))?;
        let plan = &EditPlan::new(generation.edits, &mut sequences)?;
        let mut done = Vec::with_capacity(prompts.len());
        while done.len() < prompts.len() {
            let first = done.len();
            let last = first + fitting(&self.config, &lengths[first..], generation);
            let batch = Batch { model: self, adaptation, generation, plan, prompts: &prompts[first..last], first };
            done.extend(batch.run(backend, &sequences[first..last], on_token)?);
        }
        let cut = |(tokens, len): &(&Vec<u32>, &usize)| {
            tokens.len() < asked.limit(**len) && tokens.len() == generation.limit(**len) && !generation.is_ended(tokens)
        };
        let (cut, all) = (done.iter().zip(&lengths).filter(cut).count(), done.len());
        if let Some(learned) = self.config.learned_positions().filter(|_| cut > 0) {
            log::warn!(
                "{cut} of {all} continuations end at the last of the {learned} positions that the model learned"
            );
        }
        Ok(done)
    }
}

impl ModelConfig {
    /// Refuses prompts of these positions, a soft prompt's included, of which one leaves none that the model learned to the
    /// first new token.
    ///
    /// # Errors
    /// `prompt` and its number: its length.
    pub fn check_prompts(&self, lengths: &[usize], generation: &GenerationConfig) -> Result<()> {
        let Some(learned) = self.learned_positions() else { return Ok(()) };
        match lengths.iter().position(|&len| len >= learned && generation.limit(len) > 0) {
            Some(i) => {
                let most = learned.saturating_sub(1);
                let expected =
                    format!("at most {most} tokens, one less than the {learned} positions that the model learned");
                Err(Error::argument(format!("prompt {i}"), expected, lengths[i]))
            }
            None => Ok(()),
        }
    }
}

impl<B: Backend> Model<B> {
    /// Refuses sequences of so many positions that leave a two-sided window: what is cached has another edge in
    /// transformers than what is computed whole.
    fn check_window(&self, positions: usize) -> Result<()> {
        let window = self.config.windows.iter().flatten().min().filter(|window| **window < positions);
        match window {
            Some(window) if !self.config.is_causal => {
                let expected = format!("at most {window} tokens, the window of a model that is not causal");
                Err(Error::argument("a sequence", expected, positions))
            }
            _ => Ok(()),
        }
    }
}

/// Bytes at most, of a model with the adapters of `layout`, that greedy continuations of prompts of `lengths` positions take
/// while they are made, and the rows of the largest pass.
pub fn decoder_bytes(
    config: &ModelConfig,
    layout: Option<&Layout>,
    lengths: &[usize],
    generation: &GenerationConfig,
    element_sizes: (usize, usize),
) -> (usize, usize) {
    let (mut most, mut first) = ((0, 0), 0);
    while first < lengths.len() {
        let together = fitting(config, &lengths[first..], generation);
        let batch = &lengths[first..first + together];
        let size = decoder_size(config, batch.iter().sum(), batch, generation);
        most = (most.0.max(size.bytes(config, layout, element_sizes)), most.1.max(size.rows));
        first += together;
    }
    most
}

/// How many of the first prompts of these lengths are continued together. Sequences whose angles depend on how long they are have
/// nothing in common.
fn fitting(config: &ModelConfig, lengths: &[usize], generation: &GenerationConfig) -> usize {
    if config.scales_beyond().is_some() {
        return 1;
    }
    let mut rows = 0;
    let fits = lengths.iter().take_while(|&&len| {
        rows += len + generation.width() * generation.limit(len);
        rows <= generation.rows
    });
    fits.count().max(1)
}

/// What continuing prompts of these lengths, of `rows` rows together, has to have room for.
fn decoder_size(config: &ModelConfig, rows: usize, lengths: &[usize], generation: &GenerationConfig) -> DecoderSize {
    let limits = lengths.iter().map(|&len| generation.limit(len));
    let hypotheses = limits.clone().filter(|&limit| limit > 0).count() * generation.width();
    let positions = lengths.iter().zip(limits.clone()).map(|(len, limit)| len + limit).max().unwrap_or(0);
    let mut size = DecoderSize {
        rows: rows.max(hypotheses),
        cache_rows: rows + limits.sum::<usize>() * generation.width(),
        logit_rows: hypotheses,
        positions,
    };
    // There all rows are computed again, and cached again.
    for switch in longrope_switches(config).filter(|&switch| lengths.iter().any(|&len| len < switch)) {
        size.rows = size.rows.max(hypotheses * switch.min(positions));
        size.cache_rows = size.cache_rows.max(hypotheses * positions);
    }
    size
}

/// The lengths at which all rows of a sequence are rotated anew, so that what is cached is of no more use: as Phi-3 does in
/// transformers. None where the angles are the same at any length; two of a family with two rotations, several times each.
fn longrope_switches(config: &ModelConfig) -> impl Iterator<Item = usize> {
    let longrope = |rope: &Rope| match rope.kind {
        RopeKind::LongRope { original, .. } => original.checked_add(1),
        _ => None,
    };
    config.ropes().iter().filter_map(longrope)
}

/// Prompts that are continued together.
struct Batch<'a, B: Backend> {
    model: &'a Model<B>,
    adaptation: Option<&'a Adaptation<B>>,
    generation: &'a GenerationConfig<'a>,
    /// Which tokens of all prompts are edited.
    plan: &'a EditPlan,
    prompts: &'a [Prompt],
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
        let generation = self.generation;
        let limits: Vec<usize> = sequences.iter().map(|s| generation.limit(s.tokens.len())).collect();
        let prompts = self.model.config.pack(sequences, 1);
        let last: Vec<usize> = (0..sequences.len()).map(|i| prompts.last_row(i)).collect();
        // A prompt that begins another one may end inside a segment: its continuation needs a segment that ends there.
        let leaf = |row: &usize| prompts.pack.segments().iter().position(|s| s.rows.end == row + 1);
        let leaves: Vec<usize> =
            last.iter().map(leaf).collect::<Option<_>>().expect("generate: segments end where sequences do");
        let search = |(i, (&limit, &leaf)): (usize, (&usize, &usize))| {
            Search::new(generation, &self.prompts[i].ids, limit, leaf, self.first + i)
        };
        let mut searches: Vec<Search> = limits.iter().zip(&leaves).enumerate().map(search).collect();
        // Every live hypothesis has its logits, in the order of prompts.
        let rows: Vec<usize> = (0..last.len()).filter(|&i| limits[i] > 0).map(|i| last[i]).collect();
        if !rows.is_empty() {
            let lengths: Vec<usize> = sequences.iter().map(|s| s.tokens.len()).collect();
            let size = decoder_size(&self.model.config, prompts.pack.len(), &lengths, generation);
            let passed = |switch: &usize| lengths[0] < *switch && size.positions >= *switch;
            if let Some(switch) = longrope_switches(&self.model.config).filter(passed).min()
                && !generation.edits.is_empty()
            {
                let expected =
                    format!("sequences that stay below {switch} tokens, where longrope rotates all rows anew");
                return Err(Error::argument("edits", expected, format!("one of up to {}", size.positions)));
            }
            let decoder = Decoder::new(backend, self.model, self.adaptation, size).map_err(|error| match error {
                // Of that memory the most is for keys and values of tokens that are still to come.
                Error::Device { .. } if 2 * prompts.pack.len() < size.cache_rows => {
                    let most = limits.iter().max().copied().unwrap_or(0);
                    Error::argument(
                        "max_new_tokens",
                        "so few that memory is enough for them",
                        format!("{most} ({error})"),
                    )
                }
                error => error,
            })?;
            let mut decoder = decoder.edited(backend, generation.edits)?;
            let edited = self.plan.rows(self.first..self.first + sequences.len(), |s, i| prompts.row(s, i));
            let start = (prompts.pack, rows, edited);
            self.decode(backend, &mut decoder, start, sequences, &mut searches, on_token)?;
        }
        let done: Vec<Vec<u32>> = searches.into_iter().map(Search::result).collect();
        if matches!(generation.sampling, Sampling::Beam { .. }) {
            let tokens = done.iter().enumerate().flat_map(|(i, tokens)| tokens.iter().map(move |&token| (i, token)));
            tokens.for_each(|(i, token)| on_token(self.first + i, token));
        }
        Ok(done)
    }

    /// Passes and steps, until every search is over; the first pass is over `pack`, edited at `edited`, for the logits after
    /// `rows`.
    fn decode(
        &self,
        backend: &mut B,
        decoder: &mut Decoder<'_, B>,
        (mut pack, mut rows, mut edited): (Pack, Vec<usize>, EditRows),
        sequences: &[Sequence],
        searches: &mut [Search],
        on_token: &mut dyn FnMut(usize, u32),
    ) -> Result<()> {
        let mut append: Vec<usize> = (0..pack.segments().len()).collect();
        let mut scratch = Scratch::default();
        while !rows.is_empty() {
            let logits = decoder.edited_pass(backend, &pack, &append, &rows, &edited)?;
            self.step(searches, logits, &mut scratch, on_token)?;
            let len = |search: &Search| search.live.first().map(|live| sequences[0].tokens.len() + live.tokens.len());
            let len = searches.first().and_then(len);
            if longrope_switches(&self.model.config).any(|switch| len == Some(switch)) {
                decoder.forget();
                (pack, rows) = whole_pack(searches, sequences);
                append = (0..pack.segments().len()).collect();
                continue;
            }
            let builder = PackBuilder::new(decoder.cached()).bidirectional(!self.model.config.is_causal);
            pack = next_pack(builder, searches, sequences, decoder.cached().len());
            let runs: Vec<Option<usize>> = pack.segments().iter().map(|segment| segment.run).collect();
            edited = EditRows::newest(self.generation.edits, &runs);
            rows.clear();
            rows.extend(0..pack.len());
            append.clone_from(&rows);
        }
        Ok(())
    }

    /// One step of every search that goes on, from the logits after each of its hypotheses.
    fn step(
        &self,
        searches: &mut [Search],
        logits: &[B::Element],
        scratch: &mut Scratch,
        on_token: &mut dyn FnMut(usize, u32),
    ) -> Result<()> {
        let mut rows = logits.chunks_exact(self.model.config.vocab_size);
        for (i, search) in searches.iter_mut().enumerate().filter(|(_, search)| !search.live.is_empty()) {
            let own: Vec<&[B::Element]> = rows.by_ref().take(search.live.len()).collect();
            let before = search.live[0].tokens.len();
            search.step(&own, scratch).ok_or_else(|| Error::NotFinite {
                what: format!("logits of prompt {} after {before} new tokens", self.first + i),
                found: f64::NAN,
            })?;
            if let Some(token) = search.newest() {
                on_token(self.first + i, token);
            }
        }
        Ok(())
    }
}

/// Every live hypothesis with its prompt from the start, and the last row of each.
fn whole_pack(searches: &mut [Search], sequences: &[Sequence]) -> (Pack, Vec<usize>) {
    let (mut builder, mut rows, mut count) = (PackBuilder::default(), Vec::new(), 0);
    for (search, sequence) in searches.iter_mut().zip(sequences) {
        for hypothesis in &mut search.live {
            let mut tokens = sequence.tokens.clone();
            tokens.extend(hypothesis.tokens.iter().map(|&id| Token::Id(id)));
            count += tokens.len();
            rows.push(count - 1);
            hypothesis.segment = builder.push(&tokens, Parent::None, sequence.run, Label::Text);
        }
    }
    (builder.build(), rows)
}

/// The token that each live hypothesis chose last, as a segment of its own that continues the hypothesis.
fn next_pack(mut builder: PackBuilder, searches: &mut [Search], sequences: &[Sequence], cached: usize) -> Pack {
    for (search, sequence) in searches.iter_mut().zip(sequences) {
        for hypothesis in &mut search.live {
            let token = *hypothesis.tokens.last().expect("generate: a step adds a token");
            let parent = Parent::Cached(hypothesis.segment);
            let segment = builder.push(&[Token::Id(token)], parent, sequence.run, Label::Answer);
            hypothesis.segment = cached + segment;
        }
    }
    builder.build()
}
