//! Tasks as files: their YAML, their data in every form, labels, choices and templates.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use llamaprobe::Result;
use llamaprobe::formats::tokenizer::Tokenizer;
use llamaprobe::probe::ProbeSettings;
use llamaprobe::probe::plan::Plan;
use llamaprobe::task::synthetic::PROBED_LABELS;
use llamaprobe::task::{Candidates, Dataset, Example, Metric, Side, Task};
use serde_json::{Value, json};

use crate::support;

/// Writes a task's file beside its data, and reads the rows to draw from.
fn load(dir: &Path, task: &str, name: &str, data: &str) -> Result<Dataset> {
    std::fs::write(dir.join(name), data).expect("writes");
    std::fs::write(dir.join("task.yaml"), format!("name: t\ntrain: {name}\n{task}")).expect("writes");
    let task = Task::read(&dir.join("task.yaml"))?;
    task.data(Side::Train, &[], task.template())
}

fn pairs(data: &Dataset) -> Vec<(&str, &str)> {
    data.examples.iter().map(|e| (e.input.as_str(), e.output.as_str())).collect()
}

#[test]
fn every_form_of_data_gives_the_same_examples() {
    let dir = support::temp();
    let task = "input: text\noutput: label\nlabels: [bad, good]\n";
    let rows = json!([
        {"text": "a, \"b\"\nc", "label": 1, "id": "7"},
        {"text": " d ", "label": "bad", "id": "8"},
        {"text": "e\tf", "label": "1", "id": "9"},
    ]);
    let lines: String = rows.as_array().expect("rows").iter().map(|row| format!("{row}\n")).collect();
    let delimited = |d: &str| {
        let rows = ["text|label|id", "\"a, \"\"b\"\"\nc\"|1|7", " d |bad|8", "\"e\tf\"|1|9"].join("\r\n");
        format!("\u{FEFF}{}\r\n", rows.replace('|', d))
    };
    let expected = vec![("a, \"b\"\nc", "good"), ("d", "bad"), ("e\tf", "good")];
    for (name, text) in [
        ("a.jsonl", format!("{lines}\n")),
        ("a.json", rows.to_string()),
        ("b.json", format!("{rows:#}")),
        ("a.csv", delimited(",")),
        ("a.CSV", delimited(",")),
        ("a.tsv", delimited("\t")),
    ] {
        let data = load(dir.path(), task, name, &text).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(pairs(&data), expected, "{name}");
        let ids: Vec<&str> = data.examples.iter().map(|e| e.columns["id"].as_str()).collect();
        assert_eq!(ids, ["7", "8", "9"], "{name}");
        assert_eq!(data.examples[1].columns["text"], " d ", "{name}: columns are raw");
    }
}

#[test]
fn tsv_is_quoted_only_where_it_shows() {
    let dir = support::temp();
    let read = |text: &str| -> Vec<String> {
        let data = load(dir.path(), "", "a.tsv", text).unwrap_or_else(|e| panic!("{text:?}: {e}"));
        data.examples.into_iter().map(|e| e.input).collect()
    };
    assert_eq!(read("input\toutput\n\"so\" he said\tx\n"), ["\"so\" he said"], "a field goes on behind the quote");
    assert_eq!(read("input\toutput\n\"so\"\tx\n"), ["\"so\""], "quotes that nothing needs are text");
    assert_eq!(read("input\toutput\n\"so\tx\nb\"\ty\n"), ["\"so", "b\""], "a quote alone is text");
    assert_eq!(read("\"input\"\t\"output\"\n\"so\"\t\"x\"\n"), ["so"], "all of the header is quoted");
    assert_eq!(read("input\toutput\n\"a \"\"so\"\"\"\tx\nb\ty\n"), ["a \"so\"", "b"], "a quote is doubled inside");
    assert_eq!(read("input\toutput\n\"a\"\"b\"\tx\n\"c\"\ty\n"), ["\"a\"\"b\"", "\"c\""], "one of them needs none");
}

#[test]
fn choices_are_a_rows_own_answers() {
    let dir = support::temp();
    let task = "input: q\noutput: a\nchoices: c\n";
    let csv = "q,c,a\nx,\"[\"\"one\"\", \"\"two\"\"]\",1\ny,\"[\"\"p\"\", \"\"q\"\", \"\"r\"\"]\",q\n";
    let jsonl = "{\"q\": \"x\", \"c\": [\"one\", \"two\"], \"a\": 1}\n{\"q\": \"y\", \"c\": [\"p\", \" q\", \"r\"], \"a\": \"q \"}\n";
    for (name, text) in [("a.csv", csv), ("a.jsonl", jsonl)] {
        let data = load(dir.path(), task, name, text).expect("loads");
        assert_eq!(pairs(&data), [("x", "two"), ("y", "q")], "{name}");
        let choices: Vec<_> = data.examples.iter().map(|e| e.choices.clone().expect("choices")).collect();
        assert_eq!(choices, [vec!["one", "two"], vec!["p", "q", "r"]], "{name}");
    }
    let task = "input: q\noutput: a\nchoices: [A, B]\ntemplate: {query: \"{q} {A} {B}:\"}\n";
    let data = load(dir.path(), task, "b.csv", "q,A,B,a\nx,one,two,B\ny,p,q,0\nz,r,s,r\n").expect("loads");
    assert_eq!(pairs(&data), [("x", "two"), ("y", "p"), ("z", "r")], "by column, index and text");
}

#[test]
fn an_output_among_numbers_is_what_the_other_rows_show() {
    let dir = support::temp();
    let task = "input: q\noutput: a\nchoices: c\n";
    let read = |name: &str, rows: &str| load(dir.path(), task, name, rows);
    let outputs = |rows: &str| -> Vec<String> {
        let data = read("a.jsonl", rows).unwrap_or_else(|e| panic!("{rows}: {e}"));
        data.examples.into_iter().map(|e| e.output).collect()
    };
    let row = |choices: &str, output: &str| format!("{{\"q\": \"x\", \"c\": {choices}, \"a\": {output}}}\n");
    let ambiguous = row("[\"2\", \"1\", \"0\"]", "\"0\"");
    assert_eq!(outputs(&(ambiguous.clone() + &row("[\"x\", \"y\"]", "\"1\""))), ["2", "y"], "indices");
    assert_eq!(outputs(&(ambiguous.clone() + &row("[\"x\", \"y\"]", "\"y\""))), ["0", "y"], "texts");
    assert_eq!(outputs(&row("[\"2\", \"1\", \"0\"]", "0")), ["2"], "an integer among texts is an index");
    assert_eq!(outputs(&row("[\"0\", \"1\"]", "\"1\"")), ["1"], "both are the same");
    for rows in [
        ambiguous.clone(),
        row("[2, 1, 0]", "0"),
        ambiguous + &row("[\"x\", \"y\"]", "\"1\"") + &row("[\"x\", \"y\"]", "\"y\""),
    ] {
        let error = read("a.jsonl", &rows).expect_err("two readings").to_string();
        assert!(error.contains("a.jsonl:1: a: expected other rows") && error.contains("either"), "{rows}: {error}");
    }
}

#[test]
fn several_gold_outputs_are_references() {
    let dir = support::temp();
    let task = "input: q\noutput: answers.text\nmetric: f1\n";
    let row = r#"{"q": "who", "answers": {"text": ["Ada", "Ada L."], "start": [1, 1]}}"#;
    let unanswered = r#"{"q": "what", "answers": {"text": [], "start": []}}"#;
    let data = load(dir.path(), task, "a.jsonl", &format!("{row}\n{unanswered}\n")).expect("loads");
    assert_eq!(data.examples[0].gold().collect::<Vec<_>>(), ["Ada", "Ada L."]);
    assert_eq!((data.examples.len(), &data.skipped), (1, &BTreeMap::from([("no output", 1)])));
    assert_eq!(data.examples[0].columns["answers.text[1]"], "Ada L.");
}

#[test]
fn a_template_names_any_column() {
    let dir = support::temp();
    let task = "input: q\noutput: a\nlabels: [no, yes]\n\
                template: {query: \"{{{topic}}} {input}? {list[1]} {n.m} {q}:\", answer: \" {output}!\\n\"}\n";
    let row = r#"{"q": "is it ", "topic": "t{x}", "a": 1, "list": ["u", "v"], "n": {"m": 2.5}}"#;
    std::fs::write(dir.path().join("a.jsonl"), row).expect("writes");
    std::fs::write(dir.path().join("t.yaml"), format!("name: t\ntest: [a.jsonl]\n{task}")).expect("writes");
    let task = Task::read(&dir.path().join("t.yaml")).expect("a task");
    let data = task.data(Side::Test, &[], task.template()).expect("fits");
    assert_eq!(task.template().demonstration(&data.examples[0]), "{t{x}} is it? v 2.5 is it : yes!\n");
    assert!(!task.has_data(Side::Train));
    for (query, says) in [("{topik}", "{topik}"), ("{list[2]}", "{list[2]}"), ("{input} {nothing}", "{nothing}")] {
        let other = llamaprobe::task::Template::new(query, "{output}").expect("a template");
        let error = task.data(Side::Test, &[], &other).expect_err(query).to_string();
        let place = format!("{}: template.query: expected {{input}}", dir.path().join("a.jsonl").display());
        assert!(error.starts_with(&place) && error.contains(says) && error.contains("{topic}"), "{error}");
        let examples = [Example::new("x", "yes"), Example::new("y", "no")];
        let settings = ProbeSettings { template: other, queries: Some(1), ..ProbeSettings::new(task.clone()) };
        let tokenizer = Tokenizer::load(support::golden("tokenizers").join("llama")).expect("loads");
        let error = Plan::new(&tokenizer, &task, &examples, &examples, &settings).expect_err(query).to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn a_bad_task_file_is_an_error_that_names_the_key() {
    let dir = support::temp();
    let path = dir.path().join("t.yaml");
    for (text, says) in [
        ("nam: t", "nam"),
        ("input: x", "name"),
        ("name: a/b", "name"),
        ("name: ''", "name"),
        ("name: [t]", "name"),
        ("name: t\nlabels: yes", "labels"),
        ("name: t\nlabels: [[1], [2]]", "labels"),
        ("name: t\nlabels: [one]", "labels"),
        ("name: t\nlabels: [a, b, a]", "labels"),
        ("name: t\nlabels: [a, ' b']", "labels"),
        ("name: t\nlabels: [a, b]\nchoices: c", "choices"),
        ("name: t\nchoices: [c]", "choices"),
        ("name: t\nchoices: {a: b}", "choices"),
        ("name: t\nmetric: accuracy", "metric"),
        ("name: t\nmetric: meteor", "metric"),
        ("name: t\nmetric: blec", "metric"),
        ("name: t\ninput: x\noutput: x", "output"),
        ("name: t\ninput: ''", "input"),
        ("name: t\ntrain: {a: b}", "train"),
        ("name: t\ntrain: a.csv\nrows: [{input: a, output: b}]", "rows"),
        ("name: t\nrows: [a]", "rows"),
        ("name: t\nreader: sst", "reader"),
        ("name: t\nreader: sst2", "labels"),
        ("name: t\nreader: dart\nlabels: [a, b]", "labels"),
        ("name: t\nreader: dart\ninput: a", "input"),
        ("name: t\nreader: events\nlabels: [a, b]\ntrain: x.csv", "train"),
        ("name: t\ntemplate: x", "template"),
        ("name: t\ntemplate: {query: none}", "template.query"),
        ("name: t\ntemplate: {query: \"{output}\"}", "template.query"),
        ("name: t\noutput: label\ntemplate: {query: \"{input} {label}\"}", "template.query"),
        ("name: t\ntemplate: {answer: \"{input}\"}", "template.answer"),
        ("name: t\ntemplate: {quary: \"{input}\"}", "quary"),
        ("name: t\nname: u", "name"),
        ("- name: t", "t.yaml"),
        ("", "t.yaml"),
    ] {
        std::fs::write(&path, text).expect("writes");
        let error = Task::read(&path).expect_err(text).to_string();
        assert!(error.contains("t.yaml") && error.contains(says), "{text}: {error}");
    }
    assert!(Task::read(&dir.path().join("none.yaml")).expect_err("none").to_string().contains("none.yaml"));
}

#[test]
fn bad_data_are_an_error_with_row_and_column() {
    let dir = support::temp();
    let labels = "output: label\nlabels: [no, yes]\n";
    let choices = "choices: c\n";
    for (task, name, text, says) in [
        (labels, "a.csv", "input,label\nx,maybe\n", "a.csv:2: label: expected one of the labels no, yes, or an index"),
        (labels, "a.csv", "input,label\n\nx,yes\ny,2\n", "a.csv:4: label"),
        (labels, "a.csv", "input,label\n\"x\ny\",yes\nz,-1\n", "a.csv:4: label"),
        (labels, "a.jsonl", "{\"input\": \"x\", \"label\": 2}", "a.jsonl:1: label"),
        (labels, "a.jsonl", "{\"input\": \"x\", \"label\": 1.0}", "a.jsonl:1: label"),
        (
            labels,
            "a.json",
            "[{\"input\": \"x\", \"label\": 1}, {\"input\": \"y\", \"label\": true}]",
            "a.json[1]: label",
        ),
        (labels, "a.json", "[{\"input\": \"x\"}]", "a.json[0]: label: expected a column of that name"),
        (labels, "a.json", "[3]", "a.json[0]: row: expected an object"),
        (labels, "a.csv", "text,label\nx,1\n", "a.csv:2: input: expected a column"),
        (labels, "a.csv", "input,label\n ,1\n", "a.csv:2: input: expected a text"),
        (labels, "a.csv", "input,label\nx,1,2\n", "a.csv:2: fields: expected 2 as in the header, found 3"),
        (labels, "a.csv", "input,label\nx,1\n\"y,1\n", "a.csv:3: quotes"),
        (labels, "a.csv", "input,label\n\"x\" y,1\n", "a.csv:2: quotes"),
        (labels, "a.csv", "label,label\nx,1\n", "a.csv:1: header"),
        (labels, "a.csv", "", "a.csv: header"),
        (labels, "a.csv", "input,label\n", "a.csv: rows"),
        (labels, "a.csv", "input,label\nx,\n", "a.csv: rows: expected a row that can be used"),
        (labels, "a.csv", "PAR1", "a.csv: type: expected a text file in UTF-8, found Parquet"),
        (labels, "a.tsv", "input\tlabel\nx\n", "a.tsv:2: fields"),
        (labels, "a.txt", "input,label\nx,1\n", "a.txt: extension"),
        (
            choices,
            "a.jsonl",
            "{\"input\": \"x\", \"output\": 2, \"c\": [\"a\", \"b\"]}",
            "a.jsonl:1: output: expected one of the choices a, b",
        ),
        (choices, "a.jsonl", "{\"input\": \"x\", \"output\": 0, \"c\": [\"a\"]}", "a.jsonl:1: c: expected at least 2"),
        (choices, "a.jsonl", "{\"input\": \"x\", \"output\": 0, \"c\": \"a\"}", "a.jsonl:1: c: expected a list"),
        (
            choices,
            "a.jsonl",
            "{\"input\": \"x\", \"output\": 0, \"c\": [\"a\", null]}",
            "a.jsonl:1: c: expected a list",
        ),
        (choices, "a.csv", "input,output,c\nx,0,\"['a', 'b']\"\n", "a.csv:2: c: expected a list of answers (as JSON"),
        ("rows: []\n", "a.csv", "x\n", "a.csv: rows"),
    ] {
        let error = load(dir.path(), task, name, text).expect_err(text).to_string();
        assert!(error.contains(says), "{text:?}: {error}");
    }
}

#[test]
fn a_task_is_written_by_its_name_or_whole() {
    let dir = support::temp();
    for task in Task::all() {
        let written = serde_json::to_value(task).expect("JSON");
        assert_eq!(written, task.name());
        assert_eq!(serde_json::from_value::<Task>(written).expect("reads"), *task);
    }
    let text = "name: sst2\ntrain: a.csv\ntest: [b.csv, c.csv]\noutput: y\nchoices: [A, B]\nmetric: rouge_l\n\
                template: {query: \"{input} {A}\"}\n";
    std::fs::write(dir.path().join("t.yaml"), text).expect("writes");
    let task = Task::read(&dir.path().join("t.yaml")).expect("a task");
    assert_eq!((task.is_builtin(), task.metric(), task.is_closed()), (false, Metric::RougeL, true));
    let written = serde_json::to_value(&task).expect("JSON");
    assert_eq!(written["train"], json!([dir.path().join("a.csv")]), "beside the file");
    assert_eq!(serde_json::from_value::<Task>(written.clone()).expect("reads"), task);
    for (key, value) in [("metric", json!("none")), ("output", json!("input")), ("extra", json!(1))] {
        let mut other = written.clone();
        other[key] = value;
        assert!(serde_json::from_value::<Task>(other).is_err(), "{key}");
    }
    assert!(serde_json::from_value::<Task>(Value::from("nothing")).is_err());
    assert!(Task::named("sst2").expect("built in").is_builtin());
    let error = Task::named("sst").expect_err("no such task").to_string();
    assert!(error.contains("sst2") && error.contains("FILE.yaml"), "{error}");
    assert!(Task::named("./sst2").expect_err("a path").to_string().contains("./sst2"));
}

#[test]
fn tasks_without_files_have_their_examples() {
    let both = |task: &Task| {
        let side = |side| task.data(side, &[], task.template()).expect("examples").examples;
        (side(Side::Train), side(Side::Test))
    };
    let mut without = Vec::new();
    for task in Task::all() {
        if !task.has_data(Side::Train) {
            let error = task.data(Side::Train, &[], task.template()).expect_err("no data").to_string();
            assert!(error.starts_with("train: expected the task's data"), "{task}: {error}");
            continue;
        }
        let (train, test) = both(task);
        let inputs: BTreeSet<&str> = train.iter().map(|e| e.input.as_str()).collect();
        assert_eq!(inputs.len(), train.len(), "{task}: different inputs");
        if task.is_synthetic() {
            assert!(train.len() == 200 && test.iter().all(|e| !inputs.contains(e.input.as_str())), "{task}");
            assert_eq!(task.labels(), Some(&PROBED_LABELS.map(str::to_owned)[..]), "{task}");
            for labels in [&train, &test].map(|all| all.iter().filter(|e| e.output == PROBED_LABELS[0]).count()) {
                assert_eq!(labels, 100, "{task}");
            }
        } else {
            assert!(train.len() == 20 && train == test, "{task}");
            let settings = ProbeSettings::new(task.clone());
            assert_eq!((settings.queries, settings.demonstrations), (Some(10), 10), "{task}");
            let tokenizer = llamaprobe::formats::embedded::tokenizer().expect("loads");
            let plan = Plan::new(&tokenizer, task, &train, &test, &settings).expect("a plan");
            assert!(plan.seeds.iter().all(|seed| seed.demonstrations.iter().all(|&d| d >= 10)), "{task}");
        }
        without.push(task.name());
    }
    assert_eq!(without, ["events", "objects", "antonym", "capital", "plural", "translation"]);
    let [events, objects] = ["events", "objects"].map(|name| name.parse::<Task>().expect("built in"));
    assert_eq!(events.labels(), objects.labels());
    let inputs: BTreeSet<String> = both(&events).0.into_iter().map(|e| e.input).collect();
    assert!(both(&objects).0.iter().all(|e| !inputs.contains(&e.input)), "two tasks");
}

#[test]
fn forms_of_published_data_sets_are_read() {
    let dir = support::temp();
    let read = |name: &str, text: &str| {
        let task: Task = name.parse().expect("built in");
        let path = dir.path().join("a.jsonl");
        std::fs::write(&path, text).expect("writes");
        let mut data = task.data(Side::Train, &[path], task.template()).expect("reads");
        (
            task.template().demonstration(&data.examples[0]),
            Candidates::of(&task, &data.examples.remove(0)).expect("closed"),
        )
    };
    let (shown, candidates) = read("agnews", r#"{"text": "Stocks fell.", "label": 2}"#);
    assert_eq!(shown, "Article: Stocks fell.\nTopic: Business\n\n");
    assert_eq!((candidates.outputs.len(), candidates.gold), (4, 2));
    let mmlu = r#"{"question": "1 + 1?", "subject": "math", "choices": ["1", "2", "3", "4"], "answer": 1}"#;
    let (shown, candidates) = read("mmlu", mmlu);
    assert_eq!(shown, "Question: 1 + 1?\nAnswer: 2\n\n");
    assert_eq!((candidates.outputs.as_slice(), candidates.gold), (&["1", "2", "3", "4"].map(String::from)[..], 1));
    let (shown, candidates) = read("mmlu-letters", mmlu);
    assert_eq!(shown, "1 + 1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: B\n\n");
    assert_eq!((candidates.outputs.len(), candidates.gold), (4, 1));
}

#[test]
fn a_plan_has_the_answers_of_each_row() {
    let tokenizer = Tokenizer::load(support::golden("tokenizers").join("llama")).expect("loads");
    let row = |i: usize, choices: &[&str], gold: usize| Example {
        choices: Some(choices.iter().map(ToString::to_string).collect()),
        ..Example::new(format!("the inn {i}"), choices[gold])
    };
    let examples = [
        row(0, &["the", "in"], 1),
        row(1, &["a", "b", "c"], 2),
        row(2, &["re", "re", "he"], 1),
        row(3, &["x", "y"], 0),
    ];
    let task: Task = "mmlu".parse().expect("built in");
    let settings =
        ProbeSettings { queries: Some(3), demonstrations: 1, seeds: vec![0], ..ProbeSettings::new(task.clone()) };
    let plan = Plan::new(&tokenizer, &task, &examples, &examples, &settings).expect("a plan");
    assert_eq!((plan.labels.clone(), plan.is_closed()), (None, true));
    assert_eq!(plan.gold(), [1, 2, 0], "of equal choices the first");
    let counts = |answers: &[Vec<llamaprobe::task::Answer>]| answers.iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(counts(&plan.queries.iter().map(|q| q.answers.clone()).collect::<Vec<_>>()), [2, 3, 3]);
    assert_eq!(counts(&plan.seeds[0].icl_answers), [2, 3, 3]);
    plan.validate("plan", tokenizer.vocab_size()).expect("valid");
    let mut other = plan.clone();
    other.seeds[0].icl_answers[1].pop();
    let error = other.validate("plan", tokenizer.vocab_size()).expect_err("an answer less").to_string();
    assert!(error.contains("icl_answers[1].answers: expected one for each of 3"), "{error}");
    let written = serde_json::to_value(&plan).expect("JSON");
    assert_eq!(serde_json::from_value::<Plan>(written).expect("reads"), plan);
}
