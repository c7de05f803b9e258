//! What a model makes of episodes that training never sees.

use super::episodes::{self, Episode, Labels, Split};
use crate::backend::{AccElement, Backend};
use crate::formats::tokenizer::Tokenizer;
use crate::hooks::NoTaps;
use crate::model::{Activations, Input, Model, OutputRows, Save};
use crate::pack::{Label, Sequence};
use crate::random::Rng;
use crate::{Error, Result};

/// Which episodes; every sentence is one that training does not see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// Tasks of training, pairs of label words that it never sees together.
    Pairs,
    /// Tasks that training never sees, and such pairs.
    Tasks,
    /// One of those tasks: reviews, good against bad, and such pairs.
    Reviews,
    /// Another: events, gain against loss, and such pairs.
    Events,
    /// Tasks of training, label words that it never sees as labels.
    Unseen,
    /// Tasks of training, natural labels.
    Natural,
}

impl Set {
    /// In the order of the tables of an evaluation.
    pub const ALL: [Self; 6] = [Self::Pairs, Self::Tasks, Self::Reviews, Self::Events, Self::Unseen, Self::Natural];

    /// The column of reports of a training.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pairs => "pairs",
            Self::Tasks => "tasks",
            Self::Reviews => "reviews",
            Self::Events => "events",
            Self::Unseen => "unseen",
            Self::Natural => "natural",
        }
    }

    /// `count` episodes of `lines` lines.
    pub fn episodes(self, seed: u64, count: usize, lines: usize) -> Vec<Episode> {
        // Stream 0 and those above are the training's.
        let stream = match self {
            Self::Pairs => 0,
            Self::Tasks => 1,
            Self::Reviews => 2,
            Self::Unseen => 3,
            Self::Natural => 4,
            Self::Events => 5,
        };
        let mut rng = Rng::with_stream(seed, u64::MAX - stream);
        let episode = |_| {
            let classes = match self {
                Self::Pairs | Self::Unseen | Self::Natural => episodes::contrast(&mut rng, Split::Train),
                Self::Tasks => episodes::contrast(&mut rng, Split::HeldOut),
                Self::Reviews => ["good", "bad"].map(episodes::class),
                Self::Events => super::PROBED.map(episodes::class),
            };
            let labels = match self {
                Self::Natural => Labels::Natural,
                Self::Unseen => Labels::Unseen,
                Self::Pairs | Self::Tasks | Self::Reviews | Self::Events => Labels::Random(Split::HeldOut),
            };
            episodes::classification(&mut rng, classes, labels, None, lines, Split::HeldOut)
        };
        (0..count).map(episode).collect()
    }
}

/// An episode as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// One for each token.
    pub ids: Vec<u32>,
    /// Whether each is to be predicted.
    pub learnt: Vec<bool>,
    /// The first token of every line's label.
    pub answers: Vec<usize>,
}

/// The tokens of an episode.
///
/// # Errors
/// The tokenizer fails on a piece.
pub fn encode(tokenizer: &Tokenizer, episode: &Episode) -> Result<Encoded> {
    let pieces: Vec<&str> = episode.pieces.iter().map(|piece| piece.text.as_str()).collect();
    let (encoding, owners) = tokenizer.encode_pieces(&pieces, true)?;
    let first = |piece: usize| owners.partition_point(|&owner| owner < piece);
    Ok(Encoded {
        learnt: owners.iter().map(|&owner| episode.pieces[owner].learnt).collect(),
        // A line is a sentence and a label.
        answers: (0..episode.answers.len()).map(|line| first(2 * line + 1)).collect(),
        ids: encoding.ids,
    })
}

/// The share of `episodes` in which the gold label has the higher probability of the episode's labels, by line: line
/// `i` has `i` demonstrations before it. All episodes have the same number of lines. `rows` is the most rows of a pass.
///
/// # Errors
/// A label of several tokens; a failure of tokenizer or device.
pub fn accuracies<B: Backend>(
    backend: &mut B,
    model: &Model<B>,
    tokenizer: &Tokenizer,
    episodes: &[Episode],
    rows: usize,
) -> Result<Vec<f64>> {
    let encoded: Vec<Encoded> = episodes.iter().map(|episode| encode(tokenizer, episode)).collect::<Result<_>>()?;
    let longest = encoded.iter().map(|e| e.ids.len()).max().unwrap_or(0);
    let capacity = rows.max(longest);
    let mut acts = Activations::new(backend, &model.config, None, capacity, Save::Layer)?;
    let mut correct = vec![0usize; episodes.first().map_or(0, |episode| episode.answers.len())];
    let at_once = (capacity / longest.max(1)).max(1);
    for (encoded, episodes) in encoded.chunks(at_once).zip(episodes.chunks(at_once)) {
        let sequences: Vec<Sequence> = encoded.iter().map(|e| Sequence::ids(&e.ids, None, Label::Text)).collect();
        let packed = model.config.pack(&sequences, usize::MAX);
        let answers =
            encoded.iter().enumerate().flat_map(|(s, e)| e.answers.iter().map(move |&answer| (s, answer - 1)));
        let rows: Vec<usize> = answers.map(|(s, token)| packed.row(s, token)).collect();
        let (device, read) =
            (backend.pack(&packed.pack)?, OutputRows::new(backend, &packed.pack, rows.iter().copied())?);
        let input = Input::new(&packed.pack, &device).with_output_rows(read.as_ref());
        model.forward(backend, &mut acts, &input, None, &mut NoTaps)?;
        let logits = model.logits(backend, &acts, &rows)?;
        let mut logits = logits.chunks_exact(model.config.vocab_size);
        for episode in episodes {
            let labels = episode.labels.iter().map(|label| label_id(tokenizer, label)).collect::<Result<Vec<_>>>()?;
            for (line, &answer) in episode.answers.iter().enumerate() {
                let row = logits.next().expect("evaluate: a row of logits for each line");
                let logit = |label: usize| row[labels[label] as usize].to_f64();
                correct[line] += usize::from((0..labels.len()).all(|l| l == answer || logit(l) < logit(answer)));
            }
        }
    }
    Ok(correct.into_iter().map(|correct| correct as f64 / episodes.len() as f64).collect())
}

/// Refuses a tokenizer with which [`accuracies`] cannot be had of these episodes.
///
/// # Errors
/// A label of several tokens, as the field.
pub fn check_labels(tokenizer: &Tokenizer, episodes: &[Episode]) -> Result<()> {
    episodes.iter().flat_map(|episode| &episode.labels).try_for_each(|label| label_id(tokenizer, label).map(drop))
}

/// The token of a label word.
///
/// # Errors
/// It is not one token.
fn label_id(tokenizer: &Tokenizer, label: &str) -> Result<u32> {
    let ids = tokenizer.encode(&format!(" {label}"), false)?.ids;
    match ids[..] {
        [id] => Ok(id),
        _ => Err(Error::field(tokenizer.path(), label, "one token", format!("{}", ids.len()))),
    }
}
