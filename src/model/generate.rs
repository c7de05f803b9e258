//! Continuing prompts token by token, many at once, over a cache of keys and values.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::activations::{Activations, Keep};
use super::adaptation::Adaptation;
use super::forward::{Cache, Input};
use super::{Layout, Model};
use crate::backend::{Backend, KvCache, WideElement};
use crate::hooks::NoTaps;
use crate::shape::{Label, PackBuilder, Parent, Sequence, Token, forest};
use crate::{Error, Result};

/// How the next token is chosen from the logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampling {
    /// The most probable; of equals the lowest id.
    Greedy,
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

/// When and how generation goes on.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// At most this many new tokens.
    pub max_new_tokens: usize,
    /// Tokens that end a sequence; they are part of the result.
    pub stop: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
}

/// A prompt to be continued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Token ids, at least one.
    pub ids: Vec<u32>,
    /// The run whose adapter is active; none is the base model.
    pub run: Option<usize>,
}

impl<B: Backend> Model<B> {
    /// The continuation of every prompt. `on_token(i, token)` hears of every token of prompt i as it is chosen.
    ///
    /// Beginnings that prompts share are computed once. A prompt's continuation does not depend on the others.
    ///
    /// # Errors
    /// An empty prompt, logits that are not numbers, or a failing device.
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
        let mut done: Vec<Vec<u32>> = vec![Vec::new(); prompts.len()];
        if generation.max_new_tokens == 0 || prompts.is_empty() {
            return Ok(done);
        }
        let mut choosers: Vec<Chooser> = (0..prompts.len()).map(|i| Chooser::new(generation.sampling, i)).collect();
        let layout = adaptation.map(|adaptation| &adaptation.layout);
        let soft = |run: Option<usize>| adaptation.zip(run).map_or(0, |(adaptation, run)| adaptation.prompts[run]);
        let sequences: Vec<Sequence> = prompts.iter().map(|p| Sequence::prompted(soft(p.run), &p.ids, p.run)).collect();
        let planted = forest(&sequences, 1);
        let rows = planted.pack.len() + prompts.len() * generation.max_new_tokens;
        let mut cache = KvCache::new(backend, self.spec.layers, rows, self.spec.kv_width())?;
        let keep: Vec<usize> = (0..planted.pack.segments().len()).collect();
        let last: Vec<usize> = (0..prompts.len()).map(|i| planted.last_row(i)).collect();
        // A prompt that begins another one may end inside a segment: its continuation needs a segment that ends there.
        let leaves: Vec<usize> = last
            .iter()
            .map(|&row| planted.pack.segments().iter().position(|s| s.rows.end == row + 1))
            .collect::<Option<_>>()
            .expect("generate: the forest splits segments where a sequence ends");
        let mut logits = self.pass(backend, adaptation, layout, &planted.pack, &mut cache, &keep, &last)?;
        let mut active: Vec<(usize, usize)> = leaves.into_iter().enumerate().collect();
        for step in 0.. {
            let mut next = Vec::new();
            for (&(i, parent), logits) in active.iter().zip(logits.chunks_exact(self.spec.vocab)) {
                let token = choosers[i].choose(logits).ok_or_else(|| Error::NotFinite {
                    what: format!("logits of prompt {i} after {step} new tokens"),
                    found: f64::NAN,
                })?;
                done[i].push(token);
                on_token(i, token);
                if !generation.stop.contains(&token) {
                    next.push((i, parent, token));
                }
            }
            if next.is_empty() || step + 1 == generation.max_new_tokens {
                break;
            }
            let mut builder = PackBuilder::new(&cache.segments);
            for &(i, parent, token) in &next {
                builder.push(&[Token::Id(token)], Parent::Kept(parent), prompts[i].run, Label::Answer);
            }
            let pack = builder.build();
            let first = cache.segments.len();
            let all: Vec<usize> = (0..next.len()).collect();
            logits = self.pass(backend, adaptation, layout, &pack, &mut cache, &all, &all)?;
            active = next.iter().enumerate().map(|(slot, &(i, _, _))| (i, first + slot)).collect();
        }
        Ok(done)
    }

    /// One forward that keeps the segments `keep`; the logits after `rows`.
    #[allow(clippy::too_many_arguments)]
    fn pass(
        &self,
        backend: &mut B,
        adaptation: Option<&Adaptation<B>>,
        layout: Option<&Layout>,
        pack: &crate::shape::Pack,
        cache: &mut KvCache<B>,
        keep: &[usize],
        rows: &[usize],
    ) -> Result<Vec<B::Element>> {
        let mut acts = Activations::new(backend, &self.spec, layout, pack.len(), Keep::Layer)?;
        let device = backend.pack(pack)?;
        let input = Input { pack, device: &device, adaptation, dropout: None };
        self.forward(backend, &mut acts, &input, Some(Cache { cache, keep }), &mut NoTaps)?;
        self.logits(backend, &acts, rows)
    }
}

/// Chooses the tokens of one prompt.
struct Chooser {
    sampling: Sampling,
    rng: ChaCha8Rng,
}

impl Chooser {
    fn new(sampling: Sampling, stream: usize) -> Self {
        let seed = match sampling {
            Sampling::Greedy => 0,
            Sampling::Random { seed, .. } => seed,
        };
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream as u64);
        Self { sampling, rng }
    }

    /// The next token, or none if a logit is not a number.
    fn choose<E: WideElement>(&mut self, logits: &[E]) -> Option<u32> {
        let logits: Vec<f64> = logits.iter().map(|x| x.to_f64()).collect();
        if logits.iter().any(|x| x.is_nan()) {
            return None;
        }
        match self.sampling {
            Sampling::Greedy => {
                let best = (0..logits.len()).reduce(|best, i| if logits[i] > logits[best] { i } else { best })?;
                Some(best as u32)
            }
            Sampling::Random { temperature, top_k, top_p, .. } => {
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
                let mut left = self.rng.random::<f64>() * shares.iter().sum::<f64>();
                let chosen = shares.iter().position(|share| {
                    left -= share;
                    left < 0.0
                });
                Some(ids[chosen.unwrap_or(shares.len() - 1)] as u32)
            }
        }
    }
}
