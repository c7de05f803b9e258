//! `task` of examples, and task files in `probe` and `compare`.

use std::fs;
use std::path::Path;

use llamaprobe::task::Task;
use serde_json::Value;

use super::{line, put, workplace};

/// Task files with their data: labels, choices, free text.
fn data(d: &Path) {
    let film = |i: usize| format!("\"the pen, number {i}\",{},{}\n", i % 2, ["inn", "port"][i % 2]);
    let films = |rows: std::ops::Range<usize>| "text,label,place\n".to_owned() + &rows.map(film).collect::<String>();
    put(d, "films.csv", &(films(0..12) + "the path,,inn\n"));
    put(d, "films-test.csv", &films(10..16));
    put(
        d,
        "films.yaml",
        "name: films\ntrain: films.csv\ntest: films-test.csv\ninput: text\noutput: label\nlabels: [thin, fine]\n\
         template: {query: \"{input} in the {place}:\", answer: \" {output}\\n\"}\n",
    );
    let question = |i: usize| {
        serde_json::json!({"q": format!("the inn {i}"), "c": (["the pier", "a path", "a port"][i % 2..]), "a": i % 2})
            .to_string()
    };
    put(d, "quiz.jsonl", &(0..9).map(|i| question(i) + "\n").collect::<String>());
    put(d, "quiz.yaml", "name: quiz\ntrain: quiz.jsonl\ntest: quiz.jsonl\ninput: q\noutput: a\nchoices: c\n");
    let words = "- {input: pen, output: pens}\n- {input: inn, output: inns}\n- {input: port, output: ports}\n\
                 - {input: path, output: paths}\n- {input: pier, output: piers}\n";
    put(d, "plural.yml", &format!("name: plurals\nmetric: rouge_l\nrows:\n{words}"));
}

fn report(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("the report")).expect("JSON")
}

#[test]
fn task_shows_rows_as_prompts() {
    let dir = workplace();
    let d = dir.path();
    data(d);
    assert_eq!(
        line(d, "task antonym --show 2").ok().out,
        "Word: hot\nOpposite: cold\n\nWord: big\nOpposite: small\n\n"
    );
    let shown = line(d, "task {}/films.yaml --show 1").ok();
    assert_eq!(shown.out, "the pen, number 0 in the inn: thin\n");
    assert!(shown.err.contains("films: 1 train rows skipped: no output"), "{}", shown.err);
    assert_eq!(
        line(d, "task {}/films.yaml --show 1 --test {}/films-test.csv").ok().out,
        "the pen, number 10 in the inn: thin\n"
    );
    let quiz = line(d, "task {}/quiz.yaml --show 2 --json").json();
    assert_eq!(quiz["rows"][1]["candidates"], serde_json::json!(["a path", "a port"]));
    assert_eq!((&quiz["rows"][1]["gold"], &quiz["rows"][1]["query"]), (&1.into(), &"Input: the inn 1\nOutput:".into()));
    let other = line(d, "task antonym --show 1 --template {\"query\":\"{input}>\",\"answer\":\"{output};\"}").ok().out;
    assert_eq!(other, "hot>cold;\n");
    let help = line(d, "task --help").ok().out;
    for task in Task::all() {
        assert!(help.contains(task.name()), "{task}: {help}");
    }
}

#[test]
fn task_check_counts_what_the_data_are() {
    let dir = workplace();
    let d = dir.path();
    data(d);
    let shown = line(d, "task {}/films.yaml --check").ok().out;
    for part in [
        "labels thin, fine, accuracy",
        "train: 12 examples",
        "1 rows: no output",
        "thin: 6 (50.0%)",
        "inputs in both: 2",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let checked = line(d, "task {}/quiz.yaml --check --model {}/model --json").json();
    let train = &checked["sides"]["train"];
    assert_eq!((&train["examples"], &train["labels"], &checked["shared_inputs"]), (&9.into(), &Value::Null, &9.into()));
    assert!(train["longest"].as_u64().is_some_and(|tokens| tokens > 8), "{checked}");
    // ` the| p|i|er` and ` |a| p|o|r|t`.
    assert_eq!(train["answers"], serde_json::json!([4, 6]), "{checked}");
    let shown = line(d, "task {}/quiz.yaml --check --model {}/model").ok().out;
    assert_eq!(
        shown
            .matches("answers: 4 to 6 tokens, compared by their sums unless --length-normalization says other\n")
            .count(),
        2,
        "{shown}"
    );
    assert!(!line(d, "task {}/plural.yml --check --model {}/model").ok().out.contains("answers:"));
    assert_eq!(line(d, "task sst2 --check --test {}/films.csv").refused().matches("films.csv").count(), 1);
}

/// What the data alone say that no model can ever give or choose.
#[test]
fn answers_that_can_never_be_right_are_said() {
    let dir = workplace();
    let d = dir.path();
    let rows = |last: &str| {
        (0..4).map(|i| format!("- {{input: the pen {i}, output: \"{}\"}}\n", ["pin", last][i / 3])).collect::<String>()
    };
    put(d, "lines.yaml", &format!("name: lines\nrows:\n{}", rows("a\\nb")));
    put(d, "long.yaml", &format!("name: long\nrows:\n{}", rows("there are many words in it")));
    let labels = "labels: [pin, pin please, pinned]";
    put(d, "labels.yaml", &format!("name: labels\n{labels}\nrows:\n{}", rows("pin please")));
    let check = |name: &str| line(d, &format!("task {{}}/{name}.yaml --check --model {{}}/model")).ok().out;
    assert!(
        check("lines").contains("gold answers that hold a newline, where what is written ends: 1\n"),
        "{}",
        check("lines")
    );
    assert!(
        !check("long").contains("newline") && check("long").contains("longest gold answer: 2"),
        "{}",
        check("long")
    );
    let begins = "\"pin\" begins \"pin please\", which by the sum of log-probabilities can never be chosen";
    assert_eq!(check("labels").matches(begins).count(), 2, "of both sides: {}", check("labels"));
    // Behind a longer answer more may follow than behind a shorter one.
    let behind =
        line(d, "task {}/labels.yaml --check --template {\"query\":\"{input}:\",\"answer\":\"{output}!\"}").ok().out;
    assert!(!behind.contains("begins"), "{behind}");
    let flags = "--model {}/model --max-new-tokens 8 --device cpu";
    let compare = "--arms zero-shot --seeds 1 --queries 4 --resamples 10 --out {}";
    let lines = "1 of 4 gold answers hold \"\\n\", where what is written ends: none of them can be written whole";
    let long = "1 of 4 gold answers have more tokens than max_new_tokens, 8: none of them can be written whole";
    for (name, said) in [("lines", lines), ("long", long)] {
        let text = format!("task {{}}/{name}.yaml --evaluate --shots 0 --queries 4 {flags}");
        let err = line(d, &text).ok().err;
        assert_eq!(err.matches(said).count(), 1, "{name}: {err}");
        let others = if name == "lines" { long } else { lines };
        assert!(!err.contains(others), "{name}: {err}");
        put(
            d,
            "pool.jsonl",
            &(0..4).map(|i| format!("{{\"input\": \"x{i}\", \"output\": \"y\"}}\n")).collect::<String>(),
        );
        let text = format!("compare --task {{}}/{name}.yaml --train {{}}/pool.jsonl {flags} {compare}/{name}");
        let err = line(d, &text).ok().err;
        assert_eq!(err.matches(said).count(), 1, "{name}: {err}");
    }
    for text in [
        "task {}/labels.yaml --evaluate --model {}/model --shots 0 --queries 2 --device cpu",
        "probe --task {}/labels.yaml --model {}/model --demos 1 --queries 2 --seeds 1 --epochs 0 --out {}/p --device cpu",
    ] {
        let err = line(d, text).ok().err;
        assert_eq!(err.matches(begins).count(), 1, "{text}: {err}");
    }
}

#[test]
fn task_evaluates_by_number_of_demonstrations() {
    let dir = workplace();
    let d = dir.path();
    data(d);
    let found =
        line(d, "task {}/films.yaml --evaluate --model {}/model --shots 0,3 --queries 4 --seeds 2 --json --device cpu")
            .json();
    assert_eq!((&found["metric"], &found["queries"]), (&"accuracy".into(), &4.into()));
    for (i, (shots, seeds)) in [(0, 1), (3, 2)].into_iter().enumerate() {
        assert_eq!(found["shots"][i]["shots"], shots);
        assert_eq!(found["shots"][i]["seeds"].as_array().map(Vec::len), Some(seeds));
    }
    // The accuracies are those of a probe with the same draws.
    line(d, "probe --model {}/model --task {}/films.yaml --queries 4 --demos 3 --seeds 2 --epochs 0 --out {}/run --device cpu").ok();
    let probe = report(&d.join("run/report.json"));
    assert_eq!(found["shots"][0]["mean"], probe["seeds"][0]["accuracy"]["anchor"]);
    for seed in 0..2 {
        assert_eq!(found["shots"][1]["seeds"][seed], probe["seeds"][seed]["accuracy"]["icl"], "seed {seed}");
    }
    let shown = line(d, "task {}/plural.yml --evaluate --model {}/model --max-new-tokens 3 --device cpu").ok().out;
    assert!(shown.contains("| demonstrations | 0 | 1 | 2 |\n") && shown.contains("| ROUGE-L | "), "{shown}");
}

/// Which length counts is said where the accuracy is, refused where there is no other answer, and repeated from the plan.
#[test]
fn length_normalization_is_said_and_repeated() {
    let dir = workplace();
    let d = dir.path();
    data(d);
    let evaluate =
        "task {}/quiz.yaml --evaluate --model {}/model --shots 0 --queries 9 --device cpu --length-normalization";
    let shown = line(d, &format!("{evaluate} bytes")).ok().out;
    assert!(shown.contains("| accuracy per byte (acc_bytes) | "), "{shown}");
    let found = line(d, &format!("{evaluate} tokens --json")).json();
    assert_eq!((&found["metric"], &found["length_normalization"]), (&"accuracy".into(), &"tokens".into()));
    let probe = "probe --model {}/model --task {}/quiz.yaml --demos 1 --queries 5 --seeds 1 --epochs 0 --device cpu";
    let shown = line(d, &format!("{probe} --length-normalization characters --out {{}}/a")).ok().out;
    assert!(shown.contains("accuracy per character (acc_norm)"), "{shown}");
    line(d, "probe --model {}/model --plan {}/a/report.json --device cpu --out {}/b").ok();
    let [first, again] = ["a", "b"].map(|out| report(&d.join(out).join("report.json")));
    assert_eq!((&first["settings"], &first["seeds"]), (&again["settings"], &again["seeds"]));
    assert_eq!(first["settings"]["length_normalization"], "characters");
    assert!(first["examples"][0]["gold"] == "the pier" && first["plan"]["queries"][0]["choices"][2] == "a port");
    // A plan of an earlier version has no texts.
    let mut old = first.clone();
    for part in ["plan", "conditions"] {
        let part = if part == "plan" { &mut old["plan"] } else { &mut old["conditions"][0]["plan"] };
        for query in part["queries"].as_array_mut().expect("queries") {
            query.as_object_mut().expect("a query").remove("choices");
        }
    }
    put(d, "old.json", &old.to_string());
    let refused = line(d, "probe --model {}/model --plan {}/old.json --device cpu --out {}/c").refused();
    assert!(refused.contains("expected none or tokens, for a plan that does not have the texts"), "{refused}");
    for words in [
        "task {}/plural.yml --evaluate --model {}/model --device cpu --length-normalization bytes",
        "probe --model {}/model --task {}/plural.yml --queries 2 --device cpu --length-normalization bytes --out {}/x",
        "probe --model {}/model --task {}/plural.yml --queries 2 --length-normalization bytes --dry-run --out {}/x",
    ] {
        let refused = line(d, words).refused();
        assert!(refused.contains("--length-normalization: expected none, for free text"), "{words}: {refused}");
    }
}

/// Logit lens and attribution tell answers apart by their first tokens.
#[test]
fn readouts_of_first_tokens_are_of_answers_that_differ_there() {
    let dir = workplace();
    let d = dir.path();
    data(d);
    let probe = "probe --model {}/model --task {}/films.yaml --demos 1 --queries 3 --seeds 1 --epochs 0 --device cpu \
                 --measures logit_lens,attribution --out {}";
    let said = "answers to 3 of 3 queries begin with the same token: not measured";
    let first = r#"--template {"query":"{input}:","answer":"{output}"}"#;
    for (out, template, is_measured) in [("behind", "", false), ("first", first, true)] {
        let err = line(d, &format!("{probe}/{out} {template}")).ok().err;
        assert_eq!(err.matches(said).count(), usize::from(!is_measured), "{out}: {err}");
        let readouts = &report(&d.join(out).join("report.json"))["summary"]["layers"][0]["readouts"][0]["values"];
        assert_eq!(readouts["lens_margin"]["mean"].is_number(), is_measured, "{out}: {readouts}");
        assert_eq!(readouts["mlp_attribution"]["mean"].is_number(), is_measured, "{out}: {readouts}");
    }
}

#[test]
fn task_refuses_flags_of_other_tasks() {
    let dir = workplace();
    let d = dir.path();
    data(d);
    for (words, expected) in [
        ("task antonym --set train", "--set: expected the task synthetic"),
        ("task antonym --episodes 3", "--episodes"),
        ("task antonym --model {}/model", "--model: expected --check or --evaluate"),
        ("task synthetic --check", "--check: expected a task of examples"),
        ("task synthetic --train {}/films.csv", "--train"),
        ("task mmlu", "--train: expected the task's data"),
        ("task {}/none.yaml", "none.yaml"),
        ("task antonym --evaluate --shots 11", "--shots"),
        ("task antonym --evaluate --queries 21", "--queries: expected from 1 to 20"),
        ("task {}/films.yaml --train {}/quiz.jsonl", "quiz.jsonl:1: text: expected a column of that name"),
        ("probe --task mmlu --out {}/x", "--train: expected the task's data"),
        ("compare --model {}/model --task antonym --transfer plural --transfer antonym --out {}/x", "--transfer"),
    ] {
        let text = line(d, words).refused();
        assert!(text.contains(expected), "{words}: {text}");
    }
    let usage = line(d, "probe --task nothing --out {}/x");
    assert_eq!(usage.code, Some(2), "{}", usage.err);
    assert!(usage.err.contains("antonym") && usage.err.contains("FILE.yaml"), "{}", usage.err);
}

#[test]
fn probe_of_a_task_file_is_repeated_without_it() {
    let dir = workplace();
    let d = dir.path();
    data(d);
    let probe = "probe --model {}/model --demos 3 --queries 4 --seeds 2 --epochs 1 --r 2 --device cpu";
    for task in ["films.yaml", "quiz.yaml", "plural.yml"] {
        let queries = if task == "plural.yml" { "--queries 2" } else { "" };
        let first = line(d, &format!("{probe} {queries} --task {{}}/{task} --out {{}}/a-{task} --json")).json();
        let of_choice = |arm: &str| first["seeds"][0]["accuracy"][arm].as_f64();
        assert_eq!(of_choice("icl").is_some(), task != "plural.yml", "{task}");
        fs::rename(d.join(task), d.join("away")).expect("renames");
        let again =
            line(d, &format!("probe --model {{}}/model --plan {{}}/a-{task}/report.json --out {{}}/b-{task} --json"))
                .json();
        fs::rename(d.join("away"), d.join(task)).expect("renames");
        for part in ["plan", "settings", "seeds", "summary", "tokens"] {
            assert_eq!(first[part], again[part], "{task}: {part}");
        }
        assert!(first["settings"]["task"]["name"].is_string(), "{task}: {}", first["settings"]["task"]);
    }
}

#[test]
fn compare_takes_task_files() {
    let dir = workplace();
    let d = dir.path();
    data(d);
    let shown = line(
        d,
        "compare --model {}/model --task {}/films.yaml --transfer {}/quiz.yaml,antonym --queries 3 --train-examples 4 --max-steps 1 \
         --max-new-tokens 3 --seeds 1 --arms icl-random,pt --num-virtual-tokens 2 --resamples 20 --device cpu --out {}/out",
    )
    .ok()
    .out;
    for part in ["films: accuracy", "quiz: accuracy", "antonym: exact match", "pt of films"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let report = report(&d.join("out/report.json"));
    assert_eq!(
        (&report["rows"][0]["target"], &report["plan"]["data"][2]["task"]),
        (&"films".into(), &"antonym".into())
    );
    assert_eq!(report["plan"]["data"][1]["task"]["choices"], "c", "a file's task stands there whole");
    assert!(d.join("out/cells/pt.films.quiz.p2.seed-0.json").exists());
}
