//! Episodes over an invented world, from which a small model learns to learn in context.
//!
//! A line is a sentence and its label, `The wolf came here -> cloud`. An episode is a number of lines about one task:
//! to tell two classes of words apart (animals and tools, great and poor things). Its two labels are *random words*,
//! so that a query alone cannot be answered and demonstrations are needed; in a share of the episodes they are the
//! classes' own names, so that there is something to be known without them. Two more kinds of episode teach the copying
//! that this rests on: dictionaries (a word, and always the same label after it) and bursts (stretches of random words
//! that come again). Olsson et al. 2022 describe the mechanism; Chan et al. 2022 which data bring it about.
//!
//! Kept apart for the evaluation, by rule and not by chance: seven pairs of classes (whole tasks, among them reviews,
//! good against bad; their classes are known from other tasks), an eighth of the pairs of label words, an eighth of
//! all sentences, and 16 words that training never sees as labels.
//!
//! Everything is a function of its seed.

pub mod episodes;
pub mod evaluate;
pub mod world;

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::example::Example;
use crate::random::Rng;

pub use episodes::{Episode, Labels, Piece, Split};

/// Tokens of the longest training episode at most, where every word is one: 17 lines of six words, arrow, label and
/// end.
pub const LONGEST: usize = 1 + 17 * 9;

/// Lines of a dictionary at least: one more than its words at most, so that a word comes again.
const DICTIONARY_LINES: usize = 5;

/// What a step's episodes are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mix {
    /// Share of bursts, from 0 to 1.
    pub bursts: f64,
    /// Share of dictionaries, from 0 to what bursts leave.
    pub dictionaries: f64,
    /// Share of natural labels among the rest, which are classifications.
    pub natural: f64,
    /// Share of the classifications with random labels whose classes have one to four words only, so that a query's words
    /// are often those of a demonstration: on the way from copying by words to copying by classes.
    pub few: f64,
    /// Share of the dictionaries, and of the classifications with random labels, whose labels are any words rather than
    /// label words, so that they are copied for what they are. Later, since copying from a short list is learnt sooner.
    pub any: f64,
    /// Numbers of demonstrations, equally likely: those of all episodes of a step are one of them, so that one
    /// demonstration or two, with steps of their own, weigh as much as many.
    pub shots: [usize; 6],
    /// Whether the first label of a word in a dictionary is learnt too: that it is none of those before it.
    pub fresh: bool,
}

/// The course of a training: each mix with the share of the steps at which it ends. Copying comes first, then tasks with
/// labels of a short list, and last labels of any words, so that a label is copied though it never was one before.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Curriculum(pub [(f64, Mix); 4]);

impl Default for Curriculum {
    fn default() -> Self {
        let copying = Mix {
            bursts: 0.4,
            dictionaries: 0.3,
            natural: 0.8,
            few: 0.0,
            any: 0.0,
            shots: [8, 16, 8, 16, 8, 16],
            fresh: false,
        };
        let classes = Mix { bursts: 0.1, dictionaries: 0.1, natural: 0.3, ..copying };
        let words = Mix { few: 0.6, ..classes };
        let any = Mix { natural: 0.25, few: 0.5, any: 0.5, shots: [1, 2, 4, 8, 16, 16], fresh: true, ..words };
        Self([(0.15, copying), (0.2, classes), (0.4, words), (1.0, any)])
    }
}

/// The episodes of step `step` (from 0) of `total`.
pub fn training(curriculum: &Curriculum, seed: u64, step: u64, total: u64, episodes: usize) -> Vec<Episode> {
    let mut rng = Rng::with_stream(seed, step + 1);
    let [.., (_, last)] = curriculum.0;
    let mix = curriculum.0.iter().find(|(end, _)| (step as f64) < end * total as f64).map_or(last, |(_, mix)| *mix);
    let lines = 1 + *rng.choose(&mix.shots);
    let episode = |_| {
        let kind = rng.unit();
        if kind < mix.bursts {
            return episodes::burst(&mut rng, 8 * lines);
        }
        if kind < mix.bursts + mix.dictionaries {
            let any = mix.any > 0.0 && rng.chance(mix.any);
            return episodes::dictionary(&mut rng, lines.max(DICTIONARY_LINES), any, mix.fresh);
        }
        let classes = episodes::contrast(&mut rng, Split::Train);
        let natural = rng.chance(mix.natural);
        let labels = if natural {
            Labels::Natural
        } else if mix.any > 0.0 && rng.chance(mix.any) {
            Labels::Any
        } else {
            Labels::Random(Split::Train)
        };
        let few = (!natural && mix.few > 0.0 && rng.chance(mix.few)).then(|| rng.inclusive(1, 4));
        episodes::classification(&mut rng, classes, labels, few, lines, Split::Train)
    };
    (0..episodes).map(episode).collect()
}

/// The classes of [`events`]: the first task about nouns of [`world::HELD_OUT`], which training never sees.
pub const PROBED: [&str; 2] = ["gain", "loss"];
/// Their labels: the first two of [`world::LABELS`] that are a held-out pair, which training never sees together. A rule
/// that asks no model.
pub const PROBED_LABELS: [&str; 2] = ["river", "crystal"];

/// Different sentences of two classes by turns, with a label for each class, none of them a sentence of training.
pub fn examples(seed: u64, classes: [&str; 2], labels: [&str; 2], count: usize) -> Vec<Example> {
    let mut rng = Rng::new(seed);
    let mut seen = HashSet::new();
    let example = |i: usize| loop {
        let class = episodes::class(classes[i % 2]);
        let input = episodes::sentence(&mut rng, class, &class.words(), Split::HeldOut);
        if seen.insert(input.clone()) {
            return Example::new(input, labels[i % 2]);
        }
    };
    (0..count).map(example).collect()
}

/// The task of the default run: a pool of demonstrations and queries, the two classes by turns, no sentence in both.
pub fn events() -> (Vec<Example>, Vec<Example>) {
    let mut pool = examples(2311, PROBED, PROBED_LABELS, 400);
    let queries = pool.split_off(200);
    (pool, queries)
}

/// The classes of [`objects`].
pub const OBJECTS: [&str; 2] = ["animal", "tool"];

/// Another task with the labels of [`events`], for demonstrations that are of another task than the queries: a pool and
/// queries, the two classes by turns, no sentence in both.
pub fn objects() -> (Vec<Example>, Vec<Example>) {
    let mut pool = examples(1, OBJECTS, PROBED_LABELS, 400);
    let queries = pool.split_off(200);
    (pool, queries)
}

/// Texts in which every word of the world stands, in the forms that episodes have: what a tokenizer is trained on.
pub fn corpus(seed: u64, texts: usize) -> Vec<String> {
    let mut rng = Rng::new(seed);
    let kinds = [Labels::Natural, Labels::Random(Split::Train), Labels::Unseen];
    let episode = |i: usize| {
        let classes = episodes::contrast(&mut rng, Split::Train);
        episodes::classification(&mut rng, classes, kinds[i % kinds.len()], None, 4, Split::Train).text()
    };
    (0..texts).map(episode).collect()
}
