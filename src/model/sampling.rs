//! What a generation is asked for: how tokens are chosen, and when it ends.

use std::collections::BTreeSet;

use crate::hooks::Edit;
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
pub struct GenerationConfig<'a> {
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
    /// Divisor of the scores of tokens that the prompt or the continuation has (a factor where they are negative; Keskar
    /// et al. 2019), applied before all else; 1 changes nothing.
    pub repetition_penalty: f64,
    /// No token of `stop` is chosen before this many new ones.
    pub min_new_tokens: usize,
    /// No token of `stop` is chosen before prompt and new tokens are this many.
    pub min_length: usize,
    /// Edits of every pass.
    pub edits: &'a [Edit],
    /// Rows of prompts and new tokens that are cached at once, unless a single prompt needs more; it changes no result.
    pub rows: usize,
}

impl GenerationConfig<'_> {
    /// New tokens at most.
    pub const MOST_NEW_TOKENS: usize = 1 << 20;
    /// Beams at most.
    pub const MOST_BEAMS: usize = 1 << 12;

    /// Refuses numbers out of their domain.
    ///
    /// # Errors
    /// `num_beams` or `max_new_tokens`.
    pub fn validate(&self) -> Result<()> {
        if !(1..=Self::MOST_BEAMS).contains(&self.width()) {
            return Err(Error::argument("num_beams", format!("from 1 to {}", Self::MOST_BEAMS), self.width()));
        }
        if self.max_new_tokens > Self::MOST_NEW_TOKENS {
            let expected = format!("at most {}", Self::MOST_NEW_TOKENS);
            return Err(Error::argument("max_new_tokens", expected, self.max_new_tokens));
        }
        Ok(())
    }

    /// Greedy, with nothing but a number of tokens to end it.
    pub fn greedy(max_new_tokens: usize) -> Self {
        Self {
            max_new_tokens,
            max_length: None,
            stop: vec![],
            ends: None,
            sampling: Sampling::Greedy,
            repetition_penalty: 1.0,
            min_new_tokens: 0,
            min_length: 0,
            edits: &[],
            rows: 1 << 14,
        }
    }

    /// Whether scores depend on the tokens before.
    pub(super) fn adjusts(&self) -> bool {
        self.repetition_penalty != 1.0 || self.min_new_tokens > 0 || self.min_length > 0
    }

    /// Changes the scores `[V]` of what follows the tokens `prompt` and `new`, as transformers' processors do.
    pub(super) fn adjust(&self, scores: &mut [f64], prompt: &[u32], new: &[u32]) {
        let seen: BTreeSet<u32> = prompt.iter().chain(new).copied().collect();
        for score in seen.into_iter().map(|id| id as usize) {
            let score = &mut scores[score];
            *score = if *score < 0.0 { *score * self.repetition_penalty } else { *score / self.repetition_penalty };
        }
        if new.len() < self.min_new_tokens || prompt.len() + new.len() < self.min_length {
            for &id in &self.stop {
                if let Some(score) = scores.get_mut(id as usize) {
                    *score = f64::NEG_INFINITY;
                }
            }
        }
    }

    /// Whether new tokens end a sequence, and not only their number.
    pub(super) fn is_ended(&self, tokens: &[u32]) -> bool {
        tokens.last().is_some_and(|token| self.stop.contains(token)) || self.ends.is_some_and(|ends| ends(tokens))
    }

    /// New tokens at most after `positions` positions.
    pub(super) fn limit(&self, positions: usize) -> usize {
        self.max_length.map_or(self.max_new_tokens, |max| self.max_new_tokens.min(max.saturating_sub(positions)))
    }

    /// Hypotheses of a prompt at most.
    pub(super) fn width(&self) -> usize {
        match self.sampling {
            Sampling::Beam { beams, .. } => beams,
            Sampling::Greedy | Sampling::Random { .. } => 1,
        }
    }
}
