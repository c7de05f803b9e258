//! The search for one prompt's continuation: from the logits after each of its live hypotheses to the next ones.

use std::cmp::Ordering;

use super::sampling::{GenerationConfig, Sampling};
use crate::backend::AccElement;
use crate::random::Rng;

/// A continuation as far as it is known.
#[derive(Clone, Debug)]
pub struct Hypothesis {
    /// Its new tokens.
    pub tokens: Vec<u32>,
    /// The cached segment that the next token continues.
    pub segment: usize,
    /// Sum of its tokens' log-probabilities (of beam search only).
    score: f64,
}

/// The hypotheses of one prompt.
pub struct Search<'a> {
    generation: &'a GenerationConfig<'a>,
    /// Token ids of the prompt.
    prompt: &'a [u32],
    /// New tokens at most.
    limit: usize,
    rng: Rng,
    /// The hypotheses that go on, the best first.
    pub live: Vec<Hypothesis>,
    /// Finished ones with their scores, the best first; no more than there are beams.
    finished: Vec<(f64, Vec<u32>)>,
}

impl<'a> Search<'a> {
    /// The search after `prompt` and the cached segment `segment`, for at most `limit` tokens; `stream` numbers the
    /// prompt's stream of random numbers.
    pub fn new(
        generation: &'a GenerationConfig<'a>,
        prompt: &'a [u32],
        limit: usize,
        segment: usize,
        stream: usize,
    ) -> Self {
        let seed = match generation.sampling {
            Sampling::Random { seed, .. } => seed,
            Sampling::Greedy | Sampling::Beam { .. } => 0,
        };
        let rng = Rng::with_stream(seed, stream as u64);
        let start = Hypothesis { tokens: Vec::new(), segment, score: 0.0 };
        let live = if limit > 0 { vec![start] } else { Vec::new() };
        Self { generation, prompt, limit, rng, live, finished: Vec::new() }
    }

    /// Takes a step: `logits` are those after each live hypothesis. None if one of them is not a number.
    pub fn step<E: AccElement>(&mut self, logits: &[&[E]], scratch: &mut Scratch) -> Option<()> {
        if logits.iter().any(|row| row.iter().any(|x| x.to_f64().is_nan())) {
            return None;
        }
        if let Sampling::Beam { beams, length_penalty } = self.generation.sampling {
            self.beams(logits, beams, length_penalty, &mut scratch.candidates);
            return Some(());
        }
        let mut hypothesis = self.live.pop()?;
        let token = match self.generation.adjusts() {
            false => self.choose(logits[0], scratch)?,
            true => {
                let mut scores: Vec<f64> = logits[0].iter().map(|x| x.to_f64()).collect();
                self.generation.adjust(&mut scores, self.prompt, &hypothesis.tokens);
                self.choose(&scores, scratch)?
            }
        };
        hypothesis.tokens.push(token);
        match self.is_over(&hypothesis.tokens) {
            true => self.finished.push((0.0, hypothesis.tokens)),
            false => self.live.push(hypothesis),
        }
        Some(())
    }

    /// The token chosen last, where there is one hypothesis only.
    pub fn newest(&self) -> Option<u32> {
        let one = self.live.first().map(|h| &h.tokens).or(self.finished.first().map(|(_, tokens)| tokens));
        one.filter(|_| !matches!(self.generation.sampling, Sampling::Beam { .. }))
            .and_then(|tokens| tokens.last().copied())
    }

    /// The best continuation.
    pub fn result(mut self) -> Vec<u32> {
        match self.finished.is_empty() {
            false => self.finished.swap_remove(0).1,
            true => self.live.pop().map_or_else(Vec::new, |h| h.tokens),
        }
    }

    fn is_over(&self, tokens: &[u32]) -> bool {
        tokens.len() >= self.limit || self.generation.is_ended(tokens)
    }

    /// Beam search as transformers has it (`early_stopping=False`), with sums in `f64`: of the best continuations of all
    /// live hypotheses, `beams` that are not over go on, and those over among the best `beams` may become results. It
    /// ends when there are `beams` results, none worse than the best live hypothesis at its present length.
    fn beams<E: AccElement>(
        &mut self,
        logits: &[&[E]],
        beams: usize,
        length_penalty: f64,
        candidates: &mut Vec<Candidate>,
    ) {
        candidates.clear();
        for (i, (hypothesis, logits)) in self.live.iter().zip(logits).enumerate() {
            let logits = logits.iter().map(|x| x.to_f64());
            let highest = logits.clone().fold(f64::NEG_INFINITY, f64::max);
            let norm = highest + logits.clone().map(|x| (x - highest).exp()).sum::<f64>().ln();
            if !self.generation.adjusts() {
                candidates.extend(logits.enumerate().map(|(id, x)| (hypothesis.score + x - norm, i, id as u32)));
                continue;
            }
            let mut scores: Vec<f64> = logits.map(|x| x - norm).collect();
            self.generation.adjust(&mut scores, self.prompt, &hypothesis.tokens);
            candidates.extend(scores.iter().enumerate().map(|(id, x)| (hypothesis.score + x, i, id as u32)));
        }
        let order = |a: &Candidate, b: &Candidate| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2)));
        leading(candidates, (1 + self.generation.stop.len()).max(2) * beams, order);
        let mut next = Vec::with_capacity(beams);
        for (rank, (score, from, token)) in candidates.drain(..).enumerate() {
            let Hypothesis { tokens, segment, .. } = &self.live[from];
            let tokens = [tokens, &[token][..]].concat();
            if !self.is_over(&tokens) {
                if next.len() < beams {
                    next.push(Hypothesis { tokens, segment: *segment, score });
                }
            } else if rank < beams {
                self.finished.push((score / (tokens.len() as f64).powf(length_penalty), tokens));
            }
        }
        self.live = next;
        // A stable sort: of equals the earlier result stays.
        self.finished.sort_by(|a, b| b.0.total_cmp(&a.0));
        self.finished.truncate(beams);
        let worst = self.finished.get(beams - 1).map(|(score, _)| *score);
        let hope = self.live.first().map(|h| h.score / (h.tokens.len() as f64).powf(length_penalty));
        if worst.zip(hope).is_some_and(|(worst, hope)| hope <= worst) {
            self.live.clear();
        }
    }

    /// The next token, greedily or drawn; none if no token is possible.
    fn choose<E: AccElement>(&mut self, logits: &[E], scratch: &mut Scratch) -> Option<u32> {
        let Sampling::Random { temperature, top_k, top_p, .. } = self.generation.sampling else {
            let best = (0..logits.len()).reduce(|best, i| if logits[i] > logits[best] { i } else { best })?;
            return Some(best as u32);
        };
        let Scratch { ids, shares, .. } = scratch;
        ids.clear();
        ids.extend(0..logits.len());
        let logit = |i: usize| logits[i].to_f64();
        leading(ids, top_k.unwrap_or(usize::MAX).max(1), |&a, &b| logit(b).total_cmp(&logit(a)).then(a.cmp(&b)));
        let highest = logit(*ids.first()?);
        shares.clear();
        shares.extend(ids.iter().map(|&i| ((logit(i) - highest) / temperature).exp()));
        let total: f64 = shares.iter().sum();
        let mut sum = 0.0;
        let wanted = top_p.unwrap_or(1.0) * total;
        let enough = shares.iter().position(|share| {
            sum += share;
            sum >= wanted
        });
        shares.truncate(enough.map_or(shares.len(), |i| i + 1));
        let mut left = self.rng.unit() * shares.iter().sum::<f64>();
        let chosen = shares.iter().position(|share| {
            left -= share;
            left < 0.0
        });
        Some(ids[chosen.unwrap_or(shares.len() - 1)] as u32)
    }
}

/// A continuation by one token: its score, the live hypothesis that it continues, and the token.
type Candidate = (f64, usize, u32);

/// Memory of a step, of the vocabulary's size: one step after another uses the same.
#[derive(Default)]
pub struct Scratch {
    ids: Vec<usize>,
    shares: Vec<f64>,
    candidates: Vec<Candidate>,
}

/// Leaves the first `count` of `items` in a total `order`, sorted.
fn leading<T>(items: &mut Vec<T>, count: usize, order: impl Fn(&T, &T) -> Ordering) {
    if count < items.len() {
        items.select_nth_unstable_by(count - 1, &order);
        items.truncate(count);
    }
    items.sort_unstable_by(order);
}
