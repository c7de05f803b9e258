//! The invented world: what training may see, what it may not, and how it becomes tokens.

use std::collections::HashSet;
use std::sync::LazyLock;

use llamaprobe::formats::tokenizer::{Tokenizer, train};
use llamaprobe::task::synthetic::episodes::{contrasts, pair_split, sentence_split};
use llamaprobe::task::synthetic::evaluate::{Set, encode};
use llamaprobe::task::synthetic::world::{CLASSES, HELD_OUT, LABELS, Speech, UNSEEN_LABELS, all_fillers};
use llamaprobe::task::synthetic::{Curriculum, Episode, LONGEST, PROBED, PROBED_LABELS, Split, corpus, training};

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let config = r#"{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}"#;
    let text = train(&corpus(0, 20_000), 2048).expect("a tokenizer");
    Tokenizer::parse("trained", &text, config).expect("what was trained can be read")
});

/// Episodes of a short training, of all phases.
fn seen() -> Vec<Episode> {
    let curriculum = Curriculum::default();
    (0..80).step_by(2).flat_map(|step| training(&curriculum, 3, step, 80, 24)).collect()
}

/// The sentences of an episode.
fn inputs(episode: &Episode) -> Vec<String> {
    let pieces = episode.pieces.iter().step_by(2).take(episode.answers.len());
    pieces.map(|piece| piece.text.trim_start().trim_end_matches(" ->").to_owned()).collect()
}

/// The words of a list that stand anywhere in an episode.
fn found(episode: &Episode, list: &str) -> Vec<String> {
    let list: HashSet<&str> = list.split_whitespace().collect();
    let words: HashSet<String> = episode.text().split_whitespace().map(str::to_owned).collect();
    words.into_iter().filter(|word| list.contains(word.as_str())).collect()
}

#[test]
fn a_step_is_a_function_of_its_seed_and_number() {
    let curriculum = Curriculum::default();
    let first = training(&curriculum, 1, 7, 100, 5);
    assert_eq!(first, training(&curriculum, 1, 7, 100, 5));
    assert_ne!(first, training(&curriculum, 1, 8, 100, 5));
    assert_ne!(first, training(&curriculum, 2, 7, 100, 5));
    for set in Set::ALL {
        assert_eq!(set.episodes(1, 3, 5), set.episodes(1, 3, 5));
        assert_ne!(set.episodes(1, 3, 5), set.episodes(2, 3, 5));
    }
}

#[test]
fn words_stand_for_one_thing_only() {
    let lists = CLASSES.iter().map(|class| class.words().len());
    assert!(lists.clone().all(|n| n == 20), "{:?}", lists.collect::<Vec<_>>());
    let mut all: Vec<&str> = CLASSES.iter().flat_map(|class| class.words()).collect();
    all.extend(CLASSES.iter().map(|class| class.name));
    all.extend(all_fillers());
    all.extend(LABELS.split_whitespace().chain(UNSEEN_LABELS.split_whitespace()));
    let once: HashSet<&str> = all.iter().copied().collect();
    let twice = |word: &&&str| all.iter().filter(|w| ***w == ***word).count() > 1;
    assert_eq!(once.len(), all.len(), "{:?}", all.iter().filter(twice).collect::<Vec<_>>());
}

#[test]
fn training_sees_nothing_of_the_evaluation() {
    let unseen: HashSet<&str> = UNSEEN_LABELS.split_whitespace().collect();
    let (mut classifications, mut natural, mut of_list) = (0, 0, 0);
    for episode in seen() {
        assert!(episode.labels.iter().all(|label| !unseen.contains(label)), "{}", episode.text());
        assert!(!unseen.iter().any(|word| episode.text().contains(&format!("-> {word}"))), "{}", episode.text());
        let words = found(&episode, LABELS);
        for (i, a) in words.iter().enumerate() {
            for b in &words[i + 1..] {
                assert_eq!(pair_split(a, b), Split::Train, "{a} and {b} in {}", episode.text());
            }
        }
        let inputs = inputs(&episode);
        if inputs.is_empty() || inputs.iter().any(|input| input.split(' ').count() < 4) {
            continue; // a burst or a dictionary
        }
        classifications += 1;
        assert!(inputs.iter().all(|input| sentence_split(input) == Split::Train));
        of_list += usize::from(LABELS.split_whitespace().any(|label| label == episode.labels[0]));
        natural += usize::from(CLASSES.iter().any(|class| class.name == episode.labels[0]));
        let classes: HashSet<&str> = CLASSES
            .iter()
            .filter(|class| class.words().iter().any(|w| inputs.iter().any(|i| i.split(' ').any(|word| word == *w))))
            .map(|class| class.name)
            .collect();
        assert!(classes.len() <= 2, "{classes:?}");
        assert!(!HELD_OUT.iter().any(|(a, b)| classes.contains(a) && classes.contains(b)), "{classes:?}");
    }
    assert!(classifications > 200 && natural > 50 && of_list > 50, "{natural} and {of_list} of {classifications}");
    assert!(natural + of_list < classifications - 50, "other labels: {natural} and {of_list} of {classifications}");
}

#[test]
fn words_that_are_never_labels_are_seen_and_copied() {
    let predicted: HashSet<String> = seen()
        .iter()
        .flat_map(|episode| episode.pieces.iter().filter(|piece| piece.learnt))
        .map(|piece| piece.text.trim().to_owned())
        .collect();
    assert!(UNSEEN_LABELS.split_whitespace().all(|word| predicted.contains(word)), "{predicted:?}");
}

#[test]
fn every_episode_of_training_has_something_to_learn() {
    for episode in seen() {
        assert!(episode.pieces.iter().any(|piece| piece.learnt), "{}", episode.text());
    }
}

#[test]
fn the_probed_task_is_the_first_that_is_held_out() {
    let noun = |name: &str| CLASSES.iter().any(|class| class.name == name && class.speech == Speech::Noun);
    let (first, second) = HELD_OUT.iter().find(|(a, _)| noun(a)).expect("a task about nouns");
    assert_eq!(PROBED, [*first, *second]);
    let labels: Vec<&str> = LABELS.split_whitespace().collect();
    let mut pairs = labels.iter().enumerate().flat_map(|(i, a)| labels[i + 1..].iter().map(move |b| [*a, *b]));
    assert_eq!(pairs.find(|[a, b]| pair_split(a, b) == Split::HeldOut), Some(PROBED_LABELS));
}

#[test]
fn the_evaluation_is_what_it_says() {
    let names: HashSet<&str> = CLASSES.iter().map(|class| class.name).collect();
    for set in Set::ALL {
        for episode in set.episodes(5, 60, 7) {
            assert_eq!(episode.answers.len(), 7);
            assert!(inputs(&episode).iter().all(|input| sentence_split(input) == Split::HeldOut));
            let [a, b] = episode.labels[..] else { panic!("two labels") };
            match set {
                Set::Natural => assert!(names.contains(a) && names.contains(b)),
                Set::Unseen => assert!([a, b].iter().all(|l| UNSEEN_LABELS.split_whitespace().any(|u| u == *l))),
                _ => assert_eq!(pair_split(a, b), Split::HeldOut),
            }
        }
    }
    let held_out = contrasts(Split::HeldOut);
    assert_eq!(held_out.len(), HELD_OUT.len());
    // Every class is known from other tasks.
    let trained = contrasts(Split::Train);
    assert!(CLASSES.iter().all(|class| trained.iter().any(|pair| pair.iter().any(|c| c.name == class.name))));
}

#[test]
fn chance_is_one_half() {
    for set in Set::ALL {
        let answers: Vec<usize> = set.episodes(9, 400, 5).iter().flat_map(|e| e.answers.clone()).collect();
        let share = answers.iter().sum::<usize>() as f64 / answers.len() as f64;
        assert!((share - 0.5).abs() < 0.04, "{}: {share}", set.name());
    }
}

#[test]
fn every_word_is_one_token_and_labels_are_where_they_are_said_to_be() {
    let tokenizer = &*TOKENIZER;
    assert!(tokenizer.vocab_size() < 2048, "training ended by itself, with {}", tokenizer.vocab_size());
    let words = CLASSES.iter().flat_map(|class| class.words()).chain(CLASSES.iter().map(|class| class.name));
    for word in words.chain(all_fillers()).chain(LABELS.split_whitespace()).chain(UNSEEN_LABELS.split_whitespace()) {
        assert_eq!(tokenizer.encode(&format!(" {word}"), false).expect("ids").ids.len(), 1, "{word}");
    }
    let sets = Set::ALL.into_iter().flat_map(|set| set.episodes(1, 5, 17));
    for episode in seen().into_iter().take(300).chain(sets) {
        let encoded = encode(tokenizer, &episode).expect("tokens");
        let text = episode.text();
        let count = text.split(' ').count() + 2 * text.matches('\n').count();
        assert_eq!(encoded.ids.len(), 1 + count, "a token a word, arrow and line end: {text:?}");
        assert_eq!(encoded.ids[0], 0);
        assert!(encoded.ids.len() <= LONGEST, "{}", encoded.ids.len());
        assert_eq!(tokenizer.decode(&encoded.ids, true).expect("text"), text);
        let learnt: Vec<String> = encoded
            .ids
            .iter()
            .zip(&encoded.learnt)
            .filter(|(_, learnt)| **learnt)
            .map(|(id, _)| tokenizer.decode(&[*id], true).expect("text"))
            .collect();
        let expected: Vec<&str> = episode.pieces.iter().filter(|p| p.learnt).map(|p| p.text.as_str()).collect();
        assert_eq!(learnt, expected);
        for (&at, &answer) in encoded.answers.iter().zip(&episode.answers) {
            let label = tokenizer.decode(&[encoded.ids[at]], true).expect("text");
            assert_eq!(label.trim(), episode.labels[answer]);
        }
    }
}

#[test]
fn a_tokenizer_is_trained_the_same_every_time() {
    let texts = corpus(4, 2_000);
    assert_eq!(train(&texts, 2048).expect("a tokenizer"), train(&texts, 2048).expect("a tokenizer"));
    assert!(train(&texts, 100).expect_err("no room for the bytes").to_string().contains("vocab_size:"));
}
