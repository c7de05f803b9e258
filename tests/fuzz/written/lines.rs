use llamaprobe::formats::jsonl::examples;
use llamaprobe::formats::tables::{aligned, tsv};

use super::{Case, case, put};

pub fn cases() -> Vec<Case> {
    let file = |name: &str, bytes: &[u8], words: &[&str]| {
        let (words, bytes) = ([&["data.jsonl"], words].concat(), bytes.to_vec());
        case(format!("jsonl: {name}"), &words, move |dir| {
            put(dir, "data.jsonl", &bytes);
            examples(dir.join("data.jsonl")).map(|_| ())
        })
    };
    // The bad line is the second.
    let line = |bad: &str, words: &[&str]| {
        file(bad, format!("{{\"text\": \"fine\"}}\n{bad}\n").as_bytes(), &[&["data.jsonl:2"], words].concat())
    };
    let table = |name: &str, text: &str, words: &[&str]| {
        let (words, text) = ([&["dev.tsv"], words].concat(), text.to_string());
        case(format!("tsv: {name}"), &words, move |dir| {
            put(dir, "dev.tsv", &text);
            tsv(dir.join("dev.tsv"), ["sentence", "label"]).map(|_| ())
        })
    };
    let pair = |name: &str, a: &str, b: &str, words: &[&str]| {
        let (a, b) = (a.to_string(), b.to_string());
        case(format!("aligned: {name}"), words, move |dir| {
            put(dir, "a.en", &a);
            put(dir, "b.cs", &b);
            aligned(dir.join("a.en"), dir.join("b.cs")).map(|_| ())
        })
    };
    vec![
        case("jsonl: absent", &["data.jsonl"], |dir| examples(dir.join("data.jsonl")).map(|_| ())),
        case("jsonl: a folder", &["directory"], |dir| examples(dir).map(|_| ())),
        file("empty", b"", &["empty"]),
        file("not UTF-8", b"{\"text\": \"fine\"}\n{\"text\": \"\xFF\"}\n", &["data.jsonl:2", "utf-8"]),
        file("byte order mark", "\u{FEFF}{\"text\": \"a\"}\n".as_bytes(), &["data.jsonl:1", "byte order mark"]),
        file("null bytes", b"\0\0\0\0", &["data.jsonl:1"]),
        file("a JSON list over lines", b"[\n{\"text\": \"a\"}\n]\n", &["data.jsonl:1"]),
        line("", &["blank"]),
        line("   ", &["blank"]),
        line("not json", &["line 1"]),
        line("[1]", &["object"]),
        line("{\"text\": \"a\"", &["EOF"]),
        line("{\"text\": \"a\"} {\"text\": \"b\"}", &["trailing"]),
        line("{}", &["keys", "messages"]),
        line("{\"Text\": \"a\"}", &["keys", "Text"]),
        line("{\"text\": null}", &["keys"]),
        line("{\"text\": 1}", &["text", "string"]),
        line("{\"text\": \"a\", \"text\": \"b\"}", &["text", "twice"]),
        line("{\"text\": \"\\ud800\"}", &["data.jsonl:2"]),
        line("{\"text\": \"a\", \"input_ids\": [1]}", &["text and input_ids"]),
        line("{\"prompt\": \"a\"}", &["completion"]),
        line("{\"prompt\": 1, \"completion\": \"b\"}", &["prompt"]),
        line(
            "{\"prompt\": \"a\", \"completion\": [{\"role\": \"user\", \"content\": \"b\"}]}",
            &["completion", "same kind"],
        ),
        line("{\"messages\": []}", &["messages"]),
        line("{\"messages\": \"hi\"}", &["messages"]),
        line("{\"messages\": [\"hi\"]}", &["messages[0].role"]),
        line("{\"messages\": [{\"role\": \"user\"}]}", &["messages[0].content"]),
        line("{\"messages\": [{\"role\": \"user\", \"content\": null}]}", &["messages[0].content"]),
        line("{\"messages\": [{\"role\": \"robot\", \"content\": \"a\"}]}", &["messages[0].role", "robot"]),
        line("{\"conversations\": [{\"from\": \"human\", \"content\": \"a\"}]}", &["conversations[0].value"]),
        line("{\"conversations\": [{\"from\": \"tool\", \"value\": \"a\"}]}", &["conversations[0].from", "tool"]),
        line("{\"instruction\": \"a\"}", &["output"]),
        line("{\"instruction\": \"a\", \"output\": \"b\", \"history\": [\"x\"]}", &["history"]),
        line("{\"input_ids\": []}", &["input_ids"]),
        line("{\"input_ids\": [-1]}", &["input_ids", "-1"]),
        line("{\"input_ids\": [4294967296]}", &["input_ids", "4294967296"]),
        line("{\"input_ids\": [1.5]}", &["input_ids", "1.5"]),
        line("{\"input_ids\": [1, 2], \"labels\": [1]}", &["labels", "2", "1"]),
        line("{\"input_ids\": [1], \"labels\": [-1]}", &["labels", "-1"]),
        line(&format!("{{\"text\": {}", "[".repeat(100_000)), &["recursion"]),
        table("empty", "", &["header"]),
        table("no label", "sentence\tother\na\tb\n", &["header", "label"]),
        table("no rows", "sentence\tlabel\n", &["rows"]),
        table("a field too few", "sentence\tlabel\na\t1\nb\n", &["dev.tsv:3", "2", "1"]),
        table("a field too many", "sentence\tlabel\na\t1\t2\n", &["dev.tsv:2", "3"]),
        pair("lengths differ", "a\nb\n", "c\n", &["b.cs", "2", "1"]),
        pair("blank line", "a\n\nb\n", "c\nd\ne\n", &["a.en:2", "blank"]),
        pair("empty", "", "", &["a.en", "empty"]),
    ]
}
