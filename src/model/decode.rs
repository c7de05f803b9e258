//! The search for one prompt's continuation: from the logits after each of its live hypotheses to the next ones.

use super::generate::{Generation, Sampling};
use crate::backend::AccElement;
use crate::random::Rng;

/// A continuation as far as it is known.
#[derive(Clone, Debug)]
pub struct Hypothesis {
    /// Its new tokens.
    pub tokens: Vec<u32>,
    /// The kept segment that the next token continues.
    pub segment: usize,
    /// Sum of its tokens' log-probabilities (of beam search only).
    score: f64,
}

/// The hypotheses of one prompt.
pub struct Search<'a> {
    generation: &'a Generation<'a>,
    /// New tokens at most.
    limit: usize,
    rng: Rng,
    /// The hypotheses that go on, the best first.
    pub live: Vec<Hypothesis>,
    /// Finished ones with their scores, the best first; no more than there are beams.
    finished: Vec<(f64, Vec<u32>)>,
}

impl<'a> Search<'a> {
    /// The search behind the kept segment `segment`, for at most `limit` tokens; `stream` numbers the prompt's random
    /// numbers.
    pub fn new(generation: &'a Generation<'a>, limit: usize, segment: usize, stream: usize) -> Self {
        let seed = match generation.sampling {
            Sampling::Random { seed, .. } => seed,
            Sampling::Greedy | Sampling::Beam { .. } => 0,
        };
        let rng = Rng::with_stream(seed, stream as u64);
        let start = Hypothesis { tokens: Vec::new(), segment, score: 0.0 };
        let live = if limit > 0 { vec![start] } else { Vec::new() };
        Self { generation, limit, rng, live, finished: Vec::new() }
    }

    /// Takes a step: `logits` are those after each live hypothesis. None if one of them is not a number.
    pub fn step<E: AccElement>(&mut self, logits: &[&[E]]) -> Option<()> {
        let logits: Vec<Vec<f64>> = logits.iter().map(|row| row.iter().map(|x| x.to_f64()).collect()).collect();
        if logits.iter().flatten().any(|x| x.is_nan()) {
            return None;
        }
        if let Sampling::Beam { beams, length_penalty } = self.generation.sampling {
            self.beams(&logits, beams, length_penalty);
            return Some(());
        }
        let mut hypothesis = self.live.pop()?;
        hypothesis.tokens.push(self.choose(&logits[0])?);
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
        let last = tokens.last().is_some_and(|token| self.generation.stop.contains(token));
        last || tokens.len() >= self.limit || self.generation.ends.is_some_and(|ends| ends(tokens))
    }

    /// Beam search as transformers has it (`early_stopping=False`), with sums in `f64`: of the best continuations of all
    /// live hypotheses, `beams` that are not over go on, and those over among the best `beams` may become results. It
    /// ends when there are `beams` results, none worse than the best live hypothesis at its present length.
    fn beams(&mut self, logits: &[Vec<f64>], beams: usize, length_penalty: f64) {
        let mut all: Vec<(f64, usize, u32)> = Vec::with_capacity(logits.len() * logits[0].len());
        for (i, (hypothesis, logits)) in self.live.iter().zip(logits).enumerate() {
            let highest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let norm = highest + logits.iter().map(|x| (x - highest).exp()).sum::<f64>().ln();
            all.extend(logits.iter().enumerate().map(|(id, x)| (hypothesis.score + x - norm, i, id as u32)));
        }
        let kept = ((1 + self.generation.stop.len()).max(2) * beams).min(all.len());
        let order =
            |a: &(f64, usize, u32), b: &(f64, usize, u32)| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2)));
        if kept < all.len() {
            all.select_nth_unstable_by(kept - 1, order);
            all.truncate(kept);
        }
        all.sort_by(order);
        let mut next = Vec::with_capacity(beams);
        for (rank, (score, from, token)) in all.into_iter().enumerate() {
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
    fn choose(&mut self, logits: &[f64]) -> Option<u32> {
        let Sampling::Random { temperature, top_k, top_p, .. } = self.generation.sampling else {
            let best = (0..logits.len()).reduce(|best, i| if logits[i] > logits[best] { i } else { best })?;
            return Some(best as u32);
        };
        let mut ids: Vec<usize> = (0..logits.len()).collect();
        ids.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        ids.truncate(top_k.unwrap_or(usize::MAX).max(1));
        let highest = logits[*ids.first()?];
        let mut shares: Vec<f64> = ids.iter().map(|&i| ((logits[i] - highest) / temperature).exp()).collect();
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
