use std::path::Path;

use llamaprobe::formats::chat::Message;
use llamaprobe::formats::jsonl::{Example, Turn, examples, values};
use llamaprobe::formats::tables::{aligned, tsv};

use crate::support::{shared, temp};

fn parse(line: &str) -> Example {
    Example::parse(Path::new("x.jsonl:1"), line).unwrap_or_else(|e| panic!("{line}: {e}"))
}

fn message(role: &str, content: &str) -> Message {
    Message { role: role.to_string(), content: content.to_string() }
}

#[test]
fn forms_are_found_by_their_keys() {
    let text = |s: &str| Turn::Text(s.to_string());
    assert_eq!(parse(r#"{"text": "é", "id": 7}"#), Example::Text("é".to_string()));
    assert_eq!(
        parse(r#"{"prompt": "a", "completion": " b"}"#),
        Example::Completion { prompt: text("a"), completion: text(" b") }
    );
    let (user, assistant) = (message("user", "hi"), message("assistant", "yo"));
    assert_eq!(
        parse(
            r#"{"prompt": [{"role": "user", "content": "hi"}], "completion": [{"role": "assistant", "content": "yo"}]}"#
        ),
        Example::Completion {
            prompt: Turn::Messages(vec![user.clone()]),
            completion: Turn::Messages(vec![assistant.clone()])
        }
    );
    let talk = Example::Messages(vec![user.clone(), assistant.clone()]);
    assert_eq!(
        parse(r#"{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}"#),
        talk
    );
    assert_eq!(parse(r#"{"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]}"#), talk);
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
    assert_eq!(examples(&path).expect("reads"), [Example::Text("a".to_string()), Example::Text(long)]);
    assert_eq!(values(&path).expect("reads").len(), 2);
}

#[test]
fn task_tables_are_read() {
    let Some(shared) = shared() else { return };
    let dir = shared.join("data/sst2");
    let file = ["dev.tsv", "validation.tsv", "train.tsv"].map(|n| dir.join(n)).into_iter().find(|p| p.exists());
    if let Some(file) = file {
        let rows = tsv(&file, ["label", "sentence"]).expect("reads");
        assert!(rows.iter().all(|[label, sentence]| ["0", "1"].contains(&label.as_str()) && !sentence.is_empty()));
    }
    let pairs = aligned(shared.join("data/encs/pud.en"), shared.join("data/encs/pud.cs")).expect("reads");
    assert!(pairs.len() > 100);
}
