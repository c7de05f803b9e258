use std::path::Path;

use llamaprobe::formats::chat::Message;
use llamaprobe::formats::jsonl::{Conversation, Example, Row, examples, values};
use llamaprobe::formats::tables::{aligned, columns, tsv};

use crate::support::{shared, temp};

fn parse(line: &str) -> Example {
    Example::parse(Path::new("x.jsonl:1"), line).unwrap_or_else(|e| panic!("{line}: {e}"))
}

fn message(role: &str, content: &str) -> Message {
    Message::new(role, content)
}

#[test]
fn forms_are_found_by_their_keys() {
    assert_eq!(parse(r#"{"text": "é", "id": 7}"#), Example::Text("é".to_string()));
    assert_eq!(
        parse(r#"{"prompt": "a", "completion": " b"}"#),
        Example::Completion { prompt: "a".to_string(), completion: " b".to_string() }
    );
    let (user, assistant) = (message("user", "hi"), message("assistant", "yo"));
    let talk = Example::Messages(Box::new(Conversation::from(vec![user.clone(), assistant.clone()])));
    assert_eq!(
        parse(r#"{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}"#),
        talk
    );
    assert_eq!(
        parse(r#"{"instruction": "do", "input": "this", "output": "done"}"#),
        Example::Instruction { before: vec![], prompt: "do\nthis".to_string(), output: "done".to_string() }
    );
    assert_eq!(
        parse(r#"{"instruction": "do", "input": "", "output": "done", "system": "s", "history": [["hi", "yo"]]}"#),
        Example::Instruction {
            before: vec![message("system", "s"), user, assistant],
            prompt: "do".to_string(),
            output: "done".to_string()
        }
    );
    assert_eq!(
        parse(r#"{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}"#),
        Example::Ids { input_ids: vec![1, 2, 3], labels: Some(vec![None, Some(2), Some(3)]) }
    );
    assert_eq!(parse(r#"{"input_ids": [1]}"#), Example::Ids { input_ids: vec![1], labels: None });
}

#[test]
fn files_are_read_by_lines_of_any_length() {
    let dir = temp();
    let path = dir.path().join("x.jsonl");
    let long = "x".repeat(3_000_000);
    std::fs::write(&path, format!("{{\"text\": \"a\"}}\r\n{{\"text\": \"{long}\"}}")).expect("writes");
    let read: Vec<Example> = examples(&path).expect("reads").into_iter().map(|row| row.example).collect();
    assert_eq!(read, [Example::Text("a".to_string()), Example::Text(long)]);
    assert_eq!(values(&path).expect("reads").len(), 2);
}

/// The places and texts of the rows of a file.
fn texts(name: &str, bytes: &[u8]) -> Vec<(String, Example)> {
    let dir = temp();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).expect("writes");
    let place = |row: &Row| row.location.strip_prefix(dir.path()).expect("in the folder").display().to_string();
    let rows = examples(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
    rows.into_iter().map(|row| (place(&row), row.example)).collect()
}

#[test]
fn rows_of_lists_and_lines_keep_their_places() {
    let text = |place: &str, s: &str| (place.to_string(), Example::Text(s.to_string()));
    let lines = "\u{FEFF}\r\n{\"text\": \"a\"}\r\n\n  \n{\"text\": \"b\"}";
    assert_eq!(texts("x.jsonl", lines.as_bytes()), [text("x.jsonl:2", "a"), text("x.jsonl:5", "b")]);
    let list = "\u{FEFF}\n [{\"text\":\n\"a\"}, {\"text\": \"b\"}\n]\n";
    assert_eq!(texts("x.json", list.as_bytes()), [text("x.json[0]", "a"), text("x.json[1]", "b")]);
}

#[test]
fn tables_pass_over_marks_and_blank_lines() {
    let dir = temp();
    let write = |name: &str, text: &str| {
        std::fs::write(dir.path().join(name), text).expect("writes");
        dir.path().join(name)
    };
    let table = write("a.tsv", "\u{FEFF}sentence\tlabel\r\na\t1\r\n\r\nb\t0\r\n\r\n");
    let row = |line: usize, a: &str, b: &str| (line, [a.to_string(), b.to_string()]);
    assert_eq!(tsv(&table, ["label", "sentence"]).expect("reads"), [row(2, "1", "a"), row(4, "0", "b")]);
    assert_eq!(columns(&table, 2, [1, 0]).expect("reads")[1..], [row(2, "1", "a"), row(4, "0", "b")]);
    let (a, b) = (write("a.en", "\u{FEFF}one\ntwo\n\n"), write("a.cs", "jedna\ndva"));
    let pair = |a: &str, b: &str| (a.to_string(), b.to_string());
    assert_eq!(aligned(a, b).expect("reads"), [pair("one", "jedna"), pair("two", "dva")]);
}

#[test]
fn task_tables_are_read() {
    let Some(shared) = shared() else { return };
    let dir = shared.join("data/sst2");
    let file = ["dev.tsv", "validation.tsv", "train.tsv"].map(|n| dir.join(n)).into_iter().find(|p| p.exists());
    if let Some(file) = file {
        let rows = tsv(&file, ["label", "sentence"]).expect("reads");
        assert!(rows.iter().all(|(_, [label, sentence])| ["0", "1"].contains(&label.as_str()) && !sentence.is_empty()));
    }
    let pairs = aligned(shared.join("data/encs/pud.en"), shared.join("data/encs/pud.cs")).expect("reads");
    assert!(pairs.len() > 100);
}
