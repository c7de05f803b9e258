//! Examples of data files as sequences with labels, through a real tokenizer and chat template.

use std::path::Path;

use llamaprobe::formats::jsonl::{Row, examples};
use llamaprobe::formats::tokenizer::Tokenizer;
use llamaprobe::train::data::{IGNORE_INDEX, TrainSequence};
use llamaprobe::train::examples::{DataOptions, Prepared, prepare};
use llamaprobe::{Error, Result};
use serde_json::json;

use crate::support::{self, tiny_model::TinyModel};

const VOCAB: usize = 272;
const CHAT: &str = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.role == 'assistant' %}\
                    {{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";

pub fn tokenizer(chat: Option<&str>) -> Tokenizer {
    let dir = support::temp();
    TinyModel::default().write(dir.path());
    if let Some(chat) = chat {
        std::fs::write(dir.path().join("chat_template.jinja"), chat).expect("write the template");
    }
    Tokenizer::load(dir.path()).expect("the tokenizer loads")
}

pub fn read(tokenizer: &Tokenizer, lines: &[serde_json::Value], options: DataOptions) -> Result<Prepared> {
    prepare(Path::new("data.jsonl"), &rows(lines), Some(tokenizer), VOCAB, options)
}

/// The lines as rows of a file, whose name is left out of their places.
fn rows(lines: &[serde_json::Value]) -> Vec<Row> {
    let dir = support::temp();
    let path = dir.path().join("data.jsonl");
    let text: Vec<String> = lines.iter().map(serde_json::Value::to_string).collect();
    std::fs::write(&path, text.join("\n")).expect("writes");
    let mut rows = examples(&path).expect("rows");
    let place = |row: &Row| row.location.strip_prefix(dir.path()).expect("in the folder").to_owned();
    rows.iter_mut().for_each(|row| row.location = place(row));
    rows
}

pub fn one(tokenizer: &Tokenizer, line: serde_json::Value, options: DataOptions) -> TrainSequence {
    read(tokenizer, &[line], options).expect("a sequence").sequences.remove(0)
}

/// The text of all tokens, and that of those that are learnt.
pub fn texts(tokenizer: &Tokenizer, sequence: &TrainSequence) -> (String, String) {
    assert_eq!(sequence.ids.len(), sequence.labels.len());
    let learnt: Vec<u32> = sequence
        .ids
        .iter()
        .zip(&sequence.labels)
        .filter(|(_, label)| **label != IGNORE_INDEX)
        .map(|(&id, &label)| {
            assert_eq!(i64::from(id), label);
            id
        })
        .collect();
    let decode = |ids: &[u32]| tokenizer.decode(ids, false).expect("text");
    (decode(&sequence.ids), decode(&learnt))
}

pub const PLAIN: DataOptions = DataOptions { max_length: None, add_eos: false };

#[test]
fn examples_of_each_form_say_what_is_learnt() {
    let t = tokenizer(Some(CHAT));
    let user = json!({"role": "user", "content": "Is it?"});
    let yes = json!({"role": "assistant", "content": "Yes."});
    let eos = DataOptions { add_eos: true, ..PLAIN };
    let cases = [
        (json!({"text": "the in"}), PLAIN, "<s>the in", "<s>the in"),
        (json!({"text": "the in"}), eos, "<s>the in</s>", "<s>the in</s>"),
        (json!({"prompt": "Say it:", "completion": " the end"}), PLAIN, "<s>Say it: the end", " the end"),
        (json!({"prompt": "Say it:", "completion": " the end"}), eos, "<s>Say it: the end</s>", " the end</s>"),
        (json!({"prompt": "Say", "completion": " it</s>"}), eos, "<s>Say it</s>", " it</s>"),
        (json!({"messages": [user, yes]}), eos, "<s>[user]Is it?[assistant]Yes.</s>", "Yes.</s>"),
        (
            json!({"messages": [user, yes, user, yes]}),
            PLAIN,
            "<s>[user]Is it?[assistant]Yes.</s>[user]Is it?[assistant]Yes.</s>",
            "Yes.</s>Yes.</s>",
        ),
        (
            json!({"prompt": [user, yes, user], "completion": [yes]}),
            PLAIN,
            "<s>[user]Is it?[assistant]Yes.</s>[user]Is it?[assistant]Yes.</s>",
            "Yes.</s>",
        ),
        (
            json!({"instruction": "Add", "input": "1 1", "output": "2", "system": "Sum"}),
            PLAIN,
            "<s>[system]Sum[user]Add\n1 1[assistant]2</s>",
            "2</s>",
        ),
    ];
    for (line, options, all, learnt) in cases {
        let sequence = one(&t, line.clone(), options);
        assert_eq!(texts(&t, &sequence), (all.to_owned(), learnt.to_owned()), "{line}");
    }
    let plain = tokenizer(None);
    let sequence = one(&plain, json!({"instruction": "Add", "input": "1 1", "output": "2"}), PLAIN);
    assert_eq!(texts(&plain, &sequence), ("<s>Add\n1 1\n2".to_owned(), "2".to_owned()));
}

#[test]
fn token_across_the_seam_is_learnt_and_pieces_are_never_tokenised_apart() {
    let t = tokenizer(None);
    // "Ġthe" is one token of the whole text, which no pieces tokenised apart have.
    let sequence = one(&t, json!({"prompt": "in ", "completion": "the"}), PLAIN);
    let whole = t.encode("in the", true).expect("ids").ids;
    assert_eq!(sequence.ids, whole);
    assert_eq!(texts(&t, &sequence), ("<s>in the".to_owned(), " the".to_owned()));
}

#[test]
fn examples_of_ids_are_taken_as_they_are() {
    let t = tokenizer(None);
    let sequence =
        one(&t, json!({"input_ids": [5, 6, 7], "labels": [-100, -100, 9]}), DataOptions { add_eos: true, ..PLAIN });
    assert_eq!((sequence.ids, sequence.labels), (vec![5, 6, 7], vec![IGNORE_INDEX, IGNORE_INDEX, 9]));
    let sequence = one(&t, json!({"input_ids": [5, 6]}), PLAIN);
    assert_eq!(sequence, TrainSequence::all(vec![5, 6]));
}

#[test]
fn truncation_is_counted() {
    let t = tokenizer(None);
    let lines = [
        json!({"input_ids": [5, 6, 7, 8]}),
        json!({"input_ids": [5, 6]}),
        json!({"input_ids": [5, 6, 7, 8], "labels": [-100, -100, -100, 8]}),
    ];
    let options = DataOptions { max_length: Some(3), add_eos: false };
    let prepared = read(&t, &lines, options).expect("two sequences");
    assert_eq!((prepared.truncated, prepared.dropped), (2, 1));
    assert_eq!(prepared.sequences, [TrainSequence::all(vec![5, 6, 7]), TrainSequence::all(vec![5, 6])]);
    let error = read(&t, &lines[2..], options).expect_err("nothing is left").to_string();
    assert!(error.starts_with("data.jsonl:") && error.contains("within 3 tokens"), "{error}");
    assert!(matches!(
        read(&t, &lines, DataOptions { max_length: Some(0), add_eos: false }),
        Err(Error::Argument { .. })
    ));
}

#[test]
fn examples_that_are_bad_are_named_by_line() {
    let t = tokenizer(Some(CHAT));
    let good = json!({"input_ids": [5, 6]});
    let bad = [
        (json!({"input_ids": [5, 272]}), "272"),
        (json!({"input_ids": [5, 6], "labels": [-100, 300]}), "300"),
        (json!({"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]}), "messages[0].weight"),
        (json!({"messages": [{"role": "assistant", "content": "a", "mask": 1}]}), "messages[0].mask"),
        (json!({"messages": [{"role": "user", "content": "a", "train": true}]}), "messages[0].train"),
        (
            json!({"messages": [{"role": "assistant", "content": "a", "weight": 0}], "loss_mask": [1]}),
            "loss_mask[0]: expected 0, as messages[0].weight has it, found 1",
        ),
        (json!({"input_ids": [5, 6], "weight": 0.5}), "weight"),
    ];
    for (line, part) in bad {
        let error = read(&t, &[good.clone(), line.clone()], PLAIN).expect_err("a bad line").to_string();
        assert!(error.starts_with("data.jsonl:2: ") && error.contains(part), "{line}: {error}");
    }
    // A template that forgets earlier turns has no spans to learn.
    let forgetful = tokenizer(Some("{{ messages[-1].content }}{% if add_generation_prompt %}!{% endif %}"));
    let line = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]});
    let error = read(&forgetful, &[line], PLAIN).expect_err("no span").to_string();
    assert!(error.starts_with("data.jsonl:1: messages[1]"), "{error}");
}

#[test]
fn rows_with_nothing_to_learn_are_skipped_and_counted() {
    let t = tokenizer(Some(CHAT));
    let nothing = [
        json!({"input_ids": [5, 6], "labels": [5, -100]}),
        json!({"input_ids": [5]}),
        json!({"input_ids": [5, 6], "completion_mask": [1, 0]}),
        json!({"input_ids": [5, 6], "weight": 0}),
        json!({"prompt": "a", "completion": ""}),
        json!({"messages": [{"role": "user", "content": "a"}]}),
        json!({"messages": [{"role": "assistant", "content": "a", "train": false}]}),
        json!({"messages": [{"role": "assistant", "content": "a"}], "train": false}),
    ];
    let good = json!({"input_ids": [5, 6], "weight": 1.0});
    let prepared = read(&t, &[nothing.as_slice(), &[good]].concat(), PLAIN).expect("one sequence");
    assert_eq!((prepared.unlearnt, prepared.truncated, prepared.dropped), (8, 0, 0));
    assert_eq!(prepared.sequences, [TrainSequence::all(vec![5, 6])]);
    let error = read(&t, &nothing, PLAIN).expect_err("nothing is left").to_string();
    assert!(error.starts_with("data.jsonl: labels: expected at least one token to be learnt"), "{error}");
}
