//! Episodes: what one training sequence, or one question of the evaluation, says.

use super::world::{self, CLASSES, Class, HELD_OUT, Speech};
use crate::hash::fnv1a_mixed;
use crate::random::Rng;

/// One sentence in so many is kept for the evaluation.
const SENTENCES_APART: u64 = 8;
/// One pair of label words in so many is kept for the evaluation.
const PAIRS_APART: u64 = 8;
/// Stands between a sentence and its label.
const ARROW: &str = " ->";

/// Which of two disjoint sets of sentences, and of pairs of label words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Seven eighths of the sentences and pairs: what training sees.
    Train,
    /// The other eighth, of the evaluation.
    HeldOut,
}

/// What stands for the two classes of an episode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Labels {
    /// The classes' names, always the same.
    Natural,
    /// Two random label words, a pair of this split.
    Random(Split),
    /// Two random words that are no class's name and none of the episode's classes, a pair of training: label words, words
    /// of other classes, fillers.
    Any,
    /// Two random words that training never sees as labels.
    Unseen,
}

/// A part of an episode's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The text; the episode's is that of all its pieces, one after the other.
    pub text: String,
    /// Whether it is to be predicted.
    pub learnt: bool,
}

/// A text with the parts of it that are to be predicted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Episode {
    /// Its text, in order.
    pub pieces: Vec<Piece>,
    /// The labels in use, none in a burst.
    pub labels: Vec<&'static str>,
    /// The label of each line, by its index in `labels`.
    pub answers: Vec<usize>,
}

impl Episode {
    /// All pieces, one after the other.
    pub fn text(&self) -> String {
        self.pieces.iter().map(|piece| piece.text.as_str()).collect()
    }

    fn push(&mut self, text: String, learnt: bool) {
        self.pieces.push(Piece { text, learnt });
    }

    /// A line that ends in label number `answer`.
    fn line(&mut self, input: &str, answer: usize, learnt: bool) {
        let end = if self.pieces.is_empty() { "" } else { "\n" };
        self.push(format!("{end}{input}{ARROW}"), false);
        self.push(format!(" {}", self.labels[answer]), learnt);
        self.answers.push(answer);
    }
}

/// The two classes of an episode: of one part of speech, which is that of adjectives one time in four, as one class
/// in four is.
pub fn contrast(rng: &mut Rng, split: Split) -> [&'static Class; 2] {
    let speech = if rng.chance(0.25) { Speech::Adjective } else { Speech::Noun };
    let pairs = contrasts(split).into_iter().filter(|pair| pair[0].speech == speech);
    let mut pair = rng.choose_unsized(pairs).expect("every part of speech has pairs of both splits");
    if rng.coin() {
        pair.swap(0, 1);
    }
    pair
}

/// All pairs of classes of one part of speech that belong to a split.
pub fn contrasts(split: Split) -> Vec<[&'static Class; 2]> {
    let held_out = |a: &Class, b: &Class| HELD_OUT.contains(&(a.name, b.name));
    let pairs = CLASSES.iter().enumerate().flat_map(|(i, a)| CLASSES[i + 1..].iter().map(move |b| [a, b]));
    pairs.filter(|[a, b]| a.speech == b.speech && held_out(a, b) == (split == Split::HeldOut)).collect()
}

/// The class of a name.
///
/// # Panics
/// If there is none.
pub fn class(name: &str) -> &'static Class {
    CLASSES.iter().find(|class| class.name == name).unwrap_or_else(|| panic!("world: no class {name}"))
}

/// A sentence with one or two words of a class, taken from `words`.
pub fn sentence(rng: &mut Rng, class: &Class, words: &[&'static str], split: Split) -> String {
    let patterns = match class.speech {
        Speech::Noun => &world::NOUN_PATTERNS,
        Speech::Adjective => &world::ADJECTIVE_PATTERNS,
    };
    loop {
        let pattern = rng.choose(patterns);
        let mut filled: Vec<&str> = Vec::with_capacity(6);
        for word in pattern.split(' ') {
            filled.push(match word.strip_prefix('{').and_then(|w| w.strip_suffix('}')) {
                None => word,
                Some(slot) => match world::fillers(slot) {
                    Some(list) => pick(rng, list),
                    None => pick_of(rng, words),
                },
            });
        }
        let text = filled.join(" ");
        if sentence_split(&text) == split {
            return text;
        }
    }
}

/// The split of a sentence.
pub fn sentence_split(text: &str) -> Split {
    apart(fnv1a_mixed(text.bytes()), SENTENCES_APART)
}

/// The split of a pair of label words.
pub fn pair_split(a: &str, b: &str) -> Split {
    let (first, second) = if a < b { (a, b) } else { (b, a) };
    apart(fnv1a_mixed(format!("{first} {second}").bytes()), PAIRS_APART)
}

/// Two label words for an episode of two classes.
pub fn labels(rng: &mut Rng, classes: [&'static Class; 2], labels: Labels) -> [&'static str; 2] {
    let words = |list: &'static str| list.split_whitespace().collect::<Vec<_>>();
    let (list, split) = match labels {
        Labels::Natural => return classes.map(|class| class.name),
        Labels::Random(split) => (words(world::LABELS), Some(split)),
        Labels::Any => (any_labels(&classes), Some(Split::Train)),
        Labels::Unseen => (words(world::UNSEEN_LABELS), None),
    };
    loop {
        let pair = [pick_of(rng, &list), pick_of(rng, &list)];
        if pair[0] != pair[1] && split.is_none_or(|split| pair_split(pair[0], pair[1]) == split) {
            return pair;
        }
    }
}

/// Lines of sentences of two classes with their labels: `lines - 1` demonstrations and a query. With `few`, the
/// episode has so many words of each class, rather than all.
pub fn classification(
    rng: &mut Rng,
    classes: [&'static Class; 2],
    kind: Labels,
    few: Option<usize>,
    lines: usize,
    split: Split,
) -> Episode {
    let mut episode = Episode { labels: labels(rng, classes, kind).to_vec(), ..Episode::default() };
    let words = classes.map(|class| match few {
        Some(count) => rng.choose_many(class.words().into_iter(), count),
        None => class.words(),
    });
    for _ in 0..lines {
        let answer = rng.below(2);
        let input = sentence(rng, classes[answer], &words[answer], split);
        episode.line(&input, answer, true);
    }
    episode
}

/// Lines of two to four words, each with its own label whenever it comes; learnt when it comes again, and with `fresh`
/// the first time too. With `any`, labels are any words, else label words.
pub fn dictionary(rng: &mut Rng, lines: usize, any: bool, fresh: bool) -> Episode {
    let count = rng.inclusive(2, 4);
    let items = rng.choose_many(known_words().into_iter().chain(world::UNSEEN_LABELS.split_whitespace()), count);
    let pool = if any { any_labels(&[]) } else { world::LABELS.split_whitespace().collect() };
    let mut episode = Episode::default();
    while episode.labels.len() < items.len() {
        let word = pick_of(rng, &pool);
        if !items.contains(&word) {
            add_apart(&mut episode.labels, word);
        }
    }
    let mut seen = vec![false; items.len()];
    for _ in 0..lines {
        let answer = rng.below(items.len());
        let starter = pick(rng, world::STARTERS);
        let between = if rng.coin() { format!(" {}", pick_of(rng, &world::all_fillers())) } else { String::new() };
        episode.line(&format!("{starter}{between} {}", items[answer]), answer, fresh || seen[answer]);
        seen[answer] = true;
    }
    episode
}

/// About `words` random words in which stretches come again after gaps of random length, to be predicted then. (With
/// a fixed distance a model learns to copy by position, of which nothing carries over to labels.)
pub fn burst(rng: &mut Rng, words: usize) -> Episode {
    let label_words: Vec<&str> = world::LABELS.split_whitespace().collect();
    let (pool, mut labels) = (burst_words(), Vec::new());
    let mut draw = |rng: &mut Rng| loop {
        let word = pick_of(rng, &pool);
        if !label_words.contains(&word) || add_apart(&mut labels, word) {
            return word;
        }
    };
    let mut stream: Vec<(&str, bool)> = Vec::with_capacity(words + 32);
    while stream.len() < words {
        let stretch: Vec<&str> = (0..2 + rng.below(7)).map(|_| draw(rng)).collect();
        stream.extend(stretch.iter().map(|word| (*word, false)));
        for _ in 0..1 + rng.below(3) {
            for _ in 0..rng.below(5) {
                stream.push((draw(rng), false));
            }
            stream.extend(stretch.iter().enumerate().map(|(i, word)| (*word, i > 0)));
        }
    }
    stream.truncate(words);
    let mut episode = Episode::default();
    episode.push(pick(rng, world::STARTERS).to_owned(), false);
    for (word, learnt) in stream {
        episode.push(format!(" {word}"), learnt);
    }
    episode
}

/// Adds a label word, unless it makes a pair that is held out with one that is there; says whether it is there now.
fn add_apart(labels: &mut Vec<&'static str>, word: &'static str) -> bool {
    if labels.contains(&word) {
        return true;
    }
    let fits = labels.iter().all(|label| pair_split(label, word) == Split::Train);
    if fits {
        labels.push(word);
    }
    fits
}

/// Every word that training may use as a label, but those of some classes.
fn any_labels(but: &[&'static Class]) -> Vec<&'static str> {
    let classes = CLASSES.iter().filter(|class| but.iter().all(|b| b.name != class.name));
    classes.flat_map(Class::words).chain(world::all_fillers()).chain(world::LABELS.split_whitespace()).collect()
}

/// Every word that does not begin a line and is no class's name.
fn burst_words() -> Vec<&'static str> {
    any_labels(&[]).into_iter().chain(world::UNSEEN_LABELS.split_whitespace()).collect()
}

/// Words of classes, and fillers that do not begin a line.
fn known_words() -> Vec<&'static str> {
    CLASSES.iter().flat_map(Class::words).chain(world::all_fillers()).collect()
}

fn pick(rng: &mut Rng, list: &'static str) -> &'static str {
    pick_of(rng, &list.split_whitespace().collect::<Vec<_>>())
}

fn pick_of(rng: &mut Rng, list: &[&'static str]) -> &'static str {
    rng.choose::<&str>(list)
}

fn apart(hash: u64, parts: u64) -> Split {
    if hash.is_multiple_of(parts) { Split::HeldOut } else { Split::Train }
}
