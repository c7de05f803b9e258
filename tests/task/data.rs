//! The data sets of the generation tasks in their original files, and demonstrations retrieved from them.

use std::path::{Path, PathBuf};

use llamaprobe::task::demonstrations::sample_for;
use llamaprobe::task::retrieval::{Query, Retriever, read_vectors};
use llamaprobe::task::{Dataset, Example, Task};

use crate::support;

fn built_in(name: &str) -> Task {
    name.parse().expect("a built-in task")
}

fn put(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).expect("writes");
    path
}

fn one(task: Task, files: &[PathBuf]) -> Example {
    let mut data = task.load(files).expect("loads");
    assert_eq!(data.examples.len(), 1);
    data.examples.remove(0)
}

#[test]
fn triples_become_text() {
    let dir = support::temp();
    let text = r#"[{"tripleset": [["A & B", "JOINED", "1973"], ["A", "IN", "x"]], "subtree_was_extended": true,
        "annotations": [{"source": "s", "text": " First\nline. "}, {"source": "s", "text": "Second."}]}]"#;
    let example = one(built_in("dart"), &[put(dir.path(), "dart.json", text)]);
    assert_eq!(example.input, "A & B : JOINED : 1973 | A : IN : x");
    assert_eq!(example.gold().collect::<Vec<_>>(), ["First line.", "Second."]);
    assert_eq!(
        built_in("dart").template().demonstration(&example),
        "Triples: A & B : JOINED : 1973 | A : IN : x\nSentence: First line.\n\n"
    );
    assert_eq!(built_in("dart").template().stop(), Some("\n"));
}

#[test]
fn highlighted_cells_bring_their_headers() {
    let dir = support::temp();
    let cell = |value: &str, header: bool, span: usize| {
        format!(r#"{{"value": "{value}", "is_header": {header}, "column_span": {span}, "row_span": 1}}"#)
    };
    let rows = [
        [cell("Year", true, 1), cell("Both", true, 2)].join(","),
        [cell("", true, 1), cell("Home", true, 1), cell("Away", true, 1)].join(","),
        [cell("2001", true, 1), cell("3", false, 1), cell("4", false, 1)].join(","),
    ];
    let row = |highlighted: &str, sentences: &str| {
        format!(
            r#"{{"table": [[{}]], "table_page_title": "Page", "table_section_title": "", "highlighted_cells": {highlighted},
            "sentence_annotations": {sentences}}}"#,
            rows.join("],[")
        )
        .replace('\n', "")
    };
    let said = r#"[{"final_sentence": "It was 4."}, {"final_sentence": "Four."}]"#;
    let text = [row("[[2, 2]]", said), row("[[0, 0]]", "[]"), row("[]", said)].join("\n");
    let data = built_in("totto").load(&[put(dir.path(), "totto.jsonl", &text)]).expect("loads");
    assert_eq!(data.examples.len(), 1);
    assert_eq!(
        data.examples[0].input,
        "<page_title> Page </page_title> <table> <cell> 4 <col_header> Both </col_header> <col_header> Away </col_header> \
         <row_header> 2001 </row_header> </cell> </table>"
    );
    assert_eq!(data.examples[0].gold().count(), 2);
    assert_eq!(data.skipped.into_iter().collect::<Vec<_>>(), [("no highlighted cell", 1), ("no reference", 1)]);
    let error =
        built_in("totto").load(&[put(dir.path(), "bad.jsonl", &row("[[2, 3]]", said))]).expect_err("no such cell");
    assert!(error.to_string().contains("bad.jsonl:1: highlighted_cells"), "{error}");
}

#[test]
fn logic_comes_with_its_table_or_alone() {
    let dir = support::temp();
    let text = r#"[{"topic": "a cup", "sent": "it rains .", "logic_str": "eq { x ; 1 } = true", "table_header": ["a", "b c"]}]"#;
    let example = one(built_in("logic2text"), &[put(dir.path(), "dev.json", text)]);
    assert_eq!(example.input, "Caption: a cup\nColumns: a | b c\nLogic: eq { x ; 1 } = true");
    assert_eq!(example.logical_form.as_deref(), Some("eq { x ; 1 } = true"));
    let pair = [put(dir.path(), "t.sql", "only { x } = true\n"), put(dir.path(), "t.en", "only x .\n")];
    let example = one(built_in("logic2text"), &pair);
    assert_eq!((example.input.as_str(), example.output.as_str()), ("Logic: only { x } = true", "only x ."));
    assert_eq!(example.logical_form.as_deref(), Some("only { x } = true"));
}

const TABLES: &str = r#"[
    {"db_id": "pets", "table_names_original": ["Dog", "Owner"],
     "column_names_original": [[-1, "*"], [0, "Age"], [0, "name"], [1, "Name"]]},
    {"db_id": "zoo", "table_names_original": ["Dog"], "column_names_original": [[-1, "*"], [0, "weight"]]}]"#;

#[test]
fn questions_bring_their_schema() {
    let dir = support::temp();
    let tables = put(dir.path(), "tables.json", TABLES);
    let dev = put(
        dir.path(),
        "dev.json",
        r#"[{"db_id": "zoo", "question": "How many?", "query": "SELECT count(*) FROM dog"}]"#,
    );
    let example = one(built_in("spider"), &[dev, tables.clone()]);
    assert_eq!(example.input, "How many? | zoo | Dog : weight");
    let questions = put(dir.path(), "t.en", "a\nb\nc\n");
    let queries =
        "SELECT T1.age FROM dog AS T1 WHERE T1.name = 'weight'\nSELECT count(*) FROM Dog\nSELECT x FROM dog\n";
    let data = built_in("spider").load(&[questions, put(dir.path(), "t.sql", queries), tables.clone()]).expect("loads");
    assert_eq!(data.examples.len(), 1, "one query fits one database");
    assert_eq!(data.examples[0].input, "a | pets | Dog : Age , name | Owner : Name");
    assert_eq!(data.skipped.values().collect::<Vec<_>>(), [&1, &1], "{:?}", data.skipped);
    let wrong = put(dir.path(), "wrong.json", r#"[{"db_id": "sea", "question": "?", "query": "SELECT 1"}]"#);
    let error = built_in("spider").load(&[wrong, tables]).expect_err("no such database").to_string();
    assert!(error.contains("wrong.json[0]: db_id: expected a database of"), "{error}");
}

#[test]
fn malformed_files_are_named() {
    let dir = support::temp();
    for (task, name, text, says) in [
        (built_in("dart"), "a.json", "{}", "a.json: top level: expected a list"),
        (built_in("dart"), "b.json", "[]", "b.json: rows: expected at least one"),
        (built_in("dart"), "c.json", r#"[{"tripleset": [["a", "b"]], "annotations": []}]"#, "c.json[0]: tripleset"),
        (
            built_in("dart"),
            "d.json",
            r#"[{"tripleset": [["a", "b", "c"]], "annotations": []}]"#,
            "d.json: rows: expected a row",
        ),
        (built_in("mtop"), "e.jsonl", "{\"question\": \"a\", \"logical_form\": \"[IN:A\"}", "e.jsonl:1: logical_form"),
        (
            built_in("mtop"),
            "f.jsonl",
            "{\"question\": \"a\"}",
            "f.jsonl:1: logical_form: expected a text, found nothing",
        ),
        (
            built_in("mtop"),
            "e.txt",
            "1\tIN:A\t\ta\tb\ten_XX\t[IN:A\t{}\n",
            "e.txt:1: decoupled form: expected one bracketed",
        ),
        (built_in("mtop"), "f.txt", "\n1\tIN:A\t\t \tb\ten_XX\t[IN:A ]\t{}\n", "f.txt:2: utterance: expected a text"),
        (
            built_in("mtop"),
            "g.txt",
            "domain\tutterance\tsemantic_parse\n",
            "g.txt:1: fields: expected 8 columns, found 3",
        ),
        (built_in("sst2"), "a.tsv", "a film\t2\n", "a.tsv:1: header"),
        (built_in("sst2"), "b.tsv", "a film\t1\n\nno film\t2\n", "b.tsv:3: label: expected 0 or 1"),
        (built_in("sst2"), "c.jsonl", "{\"sentence\": \"a\", \"label\": -1}", "c.jsonl:1: label"),
        (built_in("totto"), "g.jsonl", "{\"table\": 1}", "g.jsonl:1: table"),
        (built_in("logic2text"), "h.json", r#"[{"topic": "a", "sent": "b", "logic_str": ""}]"#, "h.json[0]"),
    ] {
        let error = task.load(&[put(dir.path(), name, text)]).expect_err(name).to_string();
        assert!(error.contains(says), "{name}: {error}");
    }
    for task in Task::all() {
        assert!(task.load(&[]).is_err(), "{task}");
    }
}

#[test]
fn published_forms_give_the_same_examples() {
    let dir = support::temp();
    let parse = "[IN:CREATE_ALARM [SL:DATE_TIME at noon ] ]";
    let rows = format!("{{\"question\": \"wake me\", \"logical_form\": \"{parse}\"}}");
    for (name, text) in [
        ("a.jsonl", rows.clone()),
        ("a.json", format!("[\n{rows}\n]")),
        (
            "a.txt",
            format!("7\tIN:CREATE_ALARM\t8:15:SL:DATE_TIME\twake me\talarm\ten_XX\t{parse}\t{{\"tokens\":[]}}\r\n\n"),
        ),
    ] {
        let example = one(built_in("mtop"), &[put(dir.path(), name, &text)]);
        assert_eq!((example.input.as_str(), example.output.as_str()), ("wake me", parse), "{name}");
    }
    for (name, text) in [
        ("b.tsv", "sentence\tlabel\na fine film \t1\n"),
        ("c.tsv", "\u{FEFF}a fine film\t1\n"),
        ("d.jsonl", "{\"idx\": 0, \"sentence\": \"a fine film\", \"label\": 1}"),
    ] {
        let example = one(built_in("sst2"), &[put(dir.path(), name, text)]);
        assert_eq!((example.input.as_str(), example.output.as_str()), ("a fine film", "positive"), "{name}");
    }
    let schema = |name: &str| {
        format!(
            r#"{{"db_id": "{name}", "table_names_original": ["t"], "column_names_original": [[-1, "*"], [0, "a"]]}}"#
        )
    };
    let tables = put(dir.path(), "tables.json", &format!("[{}, {}]", schema("d"), schema("e")));
    let questions = put(dir.path(), "q.txt", "How many?\n");
    // The query fits both databases; the gold file names one.
    let gold = put(dir.path(), "gold.sql", "SELECT count(*) FROM t\te\n");
    let example = one(built_in("spider"), &[questions, gold, tables]);
    assert_eq!(example.output, "SELECT count(*) FROM t");
    assert!(example.input.contains(" e "), "{}", example.input);
}

fn real(shared: &Path, task: &Task, files: &[&str]) -> Dataset {
    let files: Vec<PathBuf> = files.iter().map(|f| shared.join("data").join(task.name()).join(f)).collect();
    task.load(&files).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn the_original_files_are_read_whole() {
    let Some(shared) = support::shared() else { return };
    let read = |task: Task, files: &[&str], rows: usize, left_out: usize| {
        let data = real(&shared, &task, files);
        assert_eq!((data.examples.len(), data.skipped.values().sum::<usize>()), (rows, left_out), "{task} {files:?}");
        let metric = task.metric();
        for example in &data.examples {
            assert!(!example.input.is_empty() && !example.output.contains('\n'), "{example:?}");
            // BLEC doubts some right texts, and BLEU needs four tokens.
            if [built_in("spider"), built_in("mtop")].contains(&task) {
                assert_eq!(metric.score(&metric.judge(&example.output, example)), 100.0, "{example:?}");
            }
        }
        data.examples
    };
    let dart = read(built_in("dart"), &["dart-v1.1.1-full-dev.json"], 2768, 0);
    assert_eq!(
        dart[0].input,
        "Mars Hill College : JOINED : 1973 | Mars Hill College : LOCATION : Mars Hill, North Carolina"
    );
    assert_eq!(dart.iter().map(|e| e.gold().count()).sum::<usize>(), 6980);
    let totto = read(built_in("totto"), &["tiny_raw_totto_dev.jsonl"], 50, 0);
    assert!(totto[0].input.contains("<col_header> Governor </col_header>"), "{}", totto[0].input);
    read(built_in("totto"), &["dev_sample.jsonl"], 5, 0);
    read(built_in("totto"), &["train_sample.jsonl"], 3, 0);
    read(built_in("logic2text"), &["dev.json"], 1095, 0);
    let logic = read(built_in("logic2text"), &["train.sql", "train.en"], 8566, 0);
    let right = |e: &Example| built_in("logic2text").metric().judge(&e.output, e)[0];
    let share = logic.iter().map(right).sum::<f64>() / logic.len() as f64;
    println!("BLEC of the right texts: {share:.3}");
    assert!((0.8..1.0).contains(&share), "{share}");
    let spider = read(built_in("spider"), &["dev.json", "tables.json"], 1034, 0);
    assert!(spider[0].input.starts_with("How many singers do we have? | concert_singer | stadium : Stadium_ID , "));
    let pairs = real(&shared, &built_in("spider"), &["train.en", "train.sql", "tables.json"]);
    println!("spider pairs: {} and {:?}", pairs.examples.len(), pairs.skipped);
    assert_eq!(pairs.examples.len() + pairs.skipped.values().sum::<usize>(), 5600);
    assert!(pairs.examples.len() > 4500);
    read(built_in("mtop"), &["train.jsonl"], 15667, 0);
    read(built_in("mtop"), &["dev.jsonl"], 2235, 0);
    read(built_in("mtop"), &["test.jsonl"], 1000, 0);
}

fn pool() -> Vec<Example> {
    let inputs =
        ["call my mother", "call my brother now", "set an alarm", "set an alarm at eight", "call my mother", "rain"];
    inputs.iter().enumerate().map(|(i, input)| Example::new(*input, format!("out {i}"))).collect()
}

#[test]
fn retrieval_by_words_never_shows_the_query() {
    let pool = pool();
    let retriever = Retriever::bm25(&pool);
    let query = |input| Query { input, vector: &[], pool_index: None };
    let shown = retriever.nearest(&query("Set the alarm at eight!"), 2).expect("enough");
    assert_eq!(shown.iter().map(|s| s.index).collect::<Vec<_>>(), [2, 3], "the most like stands last");
    assert!(0.0 < shown[0].similarity && shown[0].similarity < shown[1].similarity && shown[1].similarity < 1.0);
    let own = Query { pool_index: Some(0), ..query("call my mother") };
    assert_eq!(retriever.nearest(&own, 1).expect("enough")[0].index, 1, "4 has the same input, and 0 is itself");
    assert!(retriever.nearest(&own, 5).is_err(), "four are left");
    // A query of the pool would score 1 against itself, whatever its length.
    for input in ["rain", "set an alarm at eight"] {
        let own = pool.iter().position(|e| e.input == input).expect("of the pool");
        let similarity = retriever.similarities(&query(input))[own];
        assert!((similarity - 1.0).abs() < 1e-5, "{input}: {similarity}");
    }
    assert!(retriever.similarities(&query("")).iter().all(|s| *s == 0.0));
}

#[test]
fn retrieval_by_vectors_is_by_cosine() {
    let pool = pool()[..3].to_vec();
    let retriever = Retriever::dense(&pool, vec![2.0, 0.0, 0.0, 0.5, 3.0, 3.0]);
    let query = Query { input: "", vector: &[0.0, 9.0], pool_index: None };
    let found = retriever.similarities(&query);
    for (found, expected) in found.iter().zip([0.0, 1.0, 0.5f64.sqrt()]) {
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    }
    assert_eq!(retriever.nearest(&query, 3).expect("all").iter().map(|s| s.index).collect::<Vec<_>>(), [0, 2, 1]);
}

#[test]
fn random_demonstrations_differ_by_query_and_never_show_it() {
    let pool = pool();
    let draw = |own, stream| sample_for(&pool, &pool[0], own, 3, 1, stream).expect("enough");
    let all: Vec<Vec<usize>> = (0..50).map(|stream| draw(Some(0), stream)).collect();
    assert!(all.iter().all(|drawn| !drawn.contains(&0) && !drawn.contains(&4)), "the query, or its twin");
    assert_eq!(all[7], draw(Some(0), 7));
    assert!(all.iter().any(|drawn| *drawn != all[0]));
    assert!(sample_for(&pool, &pool[0], Some(0), 5, 1, 0).is_err());
}

#[test]
fn vectors_of_a_file_are_checked() {
    let dir = support::temp();
    let path = dir.path().join("vectors.safetensors");
    let write = |values: &[f32], shape: Vec<usize>| {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, &bytes).expect("a tensor");
        safetensors::serialize_to_file([("train", view)], None, &path).expect("writes");
    };
    write(&[1.0, 2.0, 3.0, 4.0], vec![2, 2]);
    assert_eq!(read_vectors(&path, "train", 2).expect("reads"), [1.0, 2.0, 3.0, 4.0]);
    for (name, count, says) in [("test", 2, "test: expected a tensor"), ("train", 3, "[3, width]")] {
        let error = read_vectors(&path, name, count).expect_err("refused").to_string();
        assert!(error.contains(says), "{error}");
    }
    write(&[1.0, f32::NAN], vec![1, 2]);
    assert!(read_vectors(&path, "train", 1).is_err());
}
