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
        file("null bytes", b"\0\0\0\0", &["data.jsonl:1"]),
        file("blank lines", b"\n  \n", &["empty"]),
        file("a list of none", b"[]", &["empty"]),
        file("a list over lines", b"\n[\n{\"text\": \"a\"},\n{\"text\": 1}]\n", &["data.jsonl[1]", "text", "string"]),
        file("a list of no objects", b"[[1]]", &["data.jsonl[0]", "object"]),
        file("a list that goes on", b"[{\"text\": \"a\"}] 1", &["data.jsonl", "trailing"]),
        file("behind a blank line", b"{\"text\": \"a\"}\n\n{}\n", &["data.jsonl:3", "keys"]),
        line("not json", &["line", "another text"]),
        line("text,label", &["line", "CSV"]),
        line("{\"text\": \"a\"},", &["line", "comma"]),
        file("rows of another object", b"{\n\"data\": [\n{\"text\": \"a\"}]\n}\n", &["rows", "data is a list"]),
        file("parquet", b"PAR1\x15\x04", &["type", "Parquet", "to_json"]),
        file("gzip", b"\x1f\x8b\x08\x00", &["type", "gzip"]),
        file("utf-16", b"\xff\xfe{\x00", &["type", "UTF-16"]),
        line(
            r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "Weight": 0}]}"#,
            &["messages[1].Weight", "weight"],
        ),
        line(
            r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weigth": 0}]}"#,
            &["messages[1].weigth", "weight"],
        ),
        line(r#"{"messages": [{"role": "user", "content": "a"}], "mask": [0]}"#, &["mask", "loss_mask"]),
        line(
            r#"{"messages": [{"role": "user", "content": "a"}], "system_message": "s"}"#,
            &["system_message", "system"],
        ),
        line(r#"{"input_ids": [1, 2], "cu_seqlens": [0, 1, 2]}"#, &["cu_seqlens", "packed"]),
        line(r#"{"input_ids": [1, 2], "loss_weights": [0, 1]}"#, &["loss_weights", "loss_mask"]),
        line("[1]", &["object"]),
        line("{\"text\": \"a\"", &["EOF"]),
        line("{\"text\": \"a\"} {\"text\": \"b\"}", &["trailing"]),
        line("{}", &["keys", "messages"]),
        line("{\"Text\": \"a\"}", &["keys", "Text"]),
        line("{\"text\": null}", &["text", "a value", "null"]),
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
        line(r#"{"messages": [{"role": "user", "text": "a"}]}"#, &["messages[0].content", "text"]),
        line(r#"{"messages": [{"role": "user", "contnet": "a"}]}"#, &["messages[0].contnet", "content"]),
        line(r#"{"messages": [{"role": "user", "content": 1}]}"#, &["messages[0].content", "1"]),
        line(r#"{"messages": [{"role": "", "content": "a"}]}"#, &["messages[0].role"]),
        line(r#"{"messages": [{"role": 1, "content": "a"}]}"#, &["messages[0].role", "1"]),
        line(
            r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}]}"#,
            &["messages[0].content[1]", "text alone"],
        ),
        line(r#"{"messages": [{"role": "user", "content": [{"type": "text"}]}]}"#, &["messages[0].content[0].text"]),
        line(r#"{"messages": [{"role": "user", "content": "a"}], "images": ["a.png"]}"#, &["images", "text alone"]),
        line(r#"{"messages": [{"role": "user", "content": "a"}], "functions": [{}]}"#, &["functions", "tools"]),
        line(r#"{"messages": [{"role": "user", "content": "a"}], "tools": ["f"]}"#, &["tools", "objects"]),
        line(r#"{"messages": [{"role": "user", "content": "a"}], "tools": "f(x)"}"#, &["tools", "objects"]),
        line(r#"{"messages": [{"role": "user", "content": "a"}], "loss_mask": [1, 0]}"#, &["loss_mask", "1", "2"]),
        line(
            r#"{"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"tools": []}}"#,
            &["chat_template_kwargs.tools"],
        ),
        line(r#"{"messages": [{"role": "developer", "content": "a"}], "system": "b"}"#, &["system", "messages[0]"]),
        line(r#"{"messages": [{"role": "user", "content": "a"}], "system_prompt": "b"}"#, &["system_prompt", "system"]),
        line("{\"conversations\": [{\"from\": \"human\", \"content\": \"a\"}]}", &["conversations[0].value"]),
        line("{\"conversations\": [{\"from\": \"robot\", \"value\": \"a\"}]}", &["conversations[0].from", "robot"]),
        line(r#"{"conversations": [{"from": "function_call", "value": "a"}]}"#, &["conversations[0].value", "call"]),
        line(
            r#"{"conversations": [{"from": "human", "value": "a"}, {"role": "assistant", "content": "b"}]}"#,
            &["conversations[1].from"],
        ),
        line(
            r#"{"conversations": [{"role": "user", "content": "a"}, {"from": "gpt", "value": "b"}]}"#,
            &["conversations[1].role"],
        ),
        line(r#"{"prompt": "a", "response": "b"}"#, &["completion", "response"]),
        line(r#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#, &["completion", "chosen, rejected"]),
        line(r#"{"chosen": "b", "rejected": "c"}"#, &["keys", "chosen"]),
        line(r#"{"prompt": "a", "completion": "b", "system": "c"}"#, &["system"]),
        line(r#"{"instruction": "a", "Input": "b", "output": "c"}"#, &["Input", "input"]),
        line(r#"{"instruction": "a", "response": "c"}"#, &["output", "response"]),
        line(r#"{"text": NaN}"#, &["text", "finite", "NaN"]),
        line(r#"{"text": "a NaN \"", "scores": [1, {"x": -Infinity}, NaN]}"#, &["scores[1].x", "-Infinity"]),
        line(r#"{"text": nan}"#, &["line 1"]),
        line("{\"instruction\": \"a\"}", &["output"]),
        line("{\"instruction\": \"a\", \"output\": \"b\", \"history\": [\"x\"]}", &["history"]),
        line("{\"input_ids\": []}", &["input_ids"]),
        line("{\"input_ids\": [-1]}", &["input_ids", "-1"]),
        line("{\"input_ids\": [4294967296]}", &["input_ids", "4294967296"]),
        line("{\"input_ids\": [1.5]}", &["input_ids", "1.5"]),
        line("{\"input_ids\": [1, 2], \"labels\": [1]}", &["labels", "2", "1"]),
        line("{\"input_ids\": [1], \"labels\": [-1]}", &["labels", "-1"]),
        line(r#"{"input_ids": [1, 2], "lables": [1, 2]}"#, &["lables", "labels"]),
        line(r#"{"input_ids": [1, 2], "attentionMask": [1, 1]}"#, &["attentionMask", "attention_mask"]),
        line(r#"{"input_ids": [1, 2], "attention_mask": [1]}"#, &["attention_mask", "2", "1"]),
        line(r#"{"input_ids": [1, 2], "attention_mask": [1, 2]}"#, &["attention_mask", "2"]),
        line(r#"{"input_ids": [1, 2, 3], "attention_mask": [1, 0, 1]}"#, &["attention_mask", "ones", "[1,0,1]"]),
        line(r#"{"input_ids": [1, 2], "attention_mask": [0, 0]}"#, &["attention_mask", "ones"]),
        line(r#"{"input_ids": [1, 2], "position_ids": [0, 0]}"#, &["position_ids", "[0,0]"]),
        line(r#"{"input_ids": [1, 2], "token_type_ids": [0, 1]}"#, &["token_type_ids", "[0,1]"]),
        line(r#"{"input_ids": [1, 2], "completion_mask": [0, 0.5]}"#, &["completion_mask", "0.5"]),
        line(r#"{"input_ids": [1, 2], "seq_lengths": [1, 1]}"#, &["seq_lengths", "[1,1]"]),
        line(r#"{"input_ids": [1, 2], "label_ids": [1, 1]}"#, &["label_ids", "labels"]),
        line(&format!("{{\"text\": {}", "[".repeat(100_000)), &["recursion"]),
        table("empty", "", &["header"]),
        table("no label", "sentence\tother\na\tb\n", &["header", "label"]),
        table("no rows", "sentence\tlabel\n", &["rows"]),
        table("a field too few", "sentence\tlabel\na\t1\nb\n", &["dev.tsv:3", "2", "1"]),
        table("a field too many", "sentence\tlabel\na\t1\t2\n", &["dev.tsv:2", "3"]),
        pair("lengths differ", "a\nb\n", "c\n", &["b.cs", "2", "1"]),
        table("behind a blank line", "\nsentence\tlabel\n\na\n", &["dev.tsv:4", "2", "1"]),
        pair("blank line", "a\n\nb\n", "c\nd\ne\n", &["a.en:2", "blank"]),
        pair("empty", "", "", &["a.en", "empty"]),
    ]
}
