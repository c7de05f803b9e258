//! Tasks through a model's chat template: `probe`, `compare` and `task` with `--apply-chat-template`.

use std::fs;
use std::path::Path;

use llamaprobe::formats::tokenizer::Tokenizer;
use serde_json::Value;

use super::{compare, line, probe, put, run, words, workplace};

/// Turns as LLaMA-2's template writes them.
const TEMPLATE: &str = "{% for m in messages %}{% if m.role == 'user' %}{{ '<s>[INST] ' + m.content + ' [/INST]' }}\
                        {% else %}{{ ' ' + m.content + ' </s>' }}{% endif %}{% endfor %}";

fn report(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("the report")).expect("JSON")
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).expect("token ids")
}

#[test]
fn probe_asks_in_a_conversation() {
    let dir = workplace();
    let d = dir.path();
    probe::data(d);
    let asked = "probe --model {}/model --task sst2 --train {}/train.tsv --test {}/dev.tsv --demos 2 --queries 3 --seeds 1 --epochs 1 \
                 --measures none --arms ipt --num-virtual-tokens 2 --out {}/run --apply-chat-template";
    let refused = line(d, asked).refused();
    assert!(refused.contains("chat_template: expected a chat_template") && !d.join("run").exists(), "{refused}");
    put(d, "model/chat_template.jinja", TEMPLATE);
    line(d, asked).ok();
    let found = report(&d.join("run/report.json"));
    assert_eq!(found["settings"]["template"]["chat"], true);
    let tokenizer = Tokenizer::load(d.join("model")).expect("the tokenizer");
    let encoded = |text: &str| tokenizer.encode(text, false).expect("encodes").ids;
    let rows = fs::read_to_string(d.join("train.tsv")).expect("the pool");
    let pool: Vec<(&str, &str)> = rows.lines().skip(1).map(|row| row.split_once('\t').expect("two columns")).collect();
    let turn = |text: &str| format!("<s>[INST] Review: {text}\nSentiment: [/INST]");
    let label = |label: &str| if label == "1" { "positive" } else { "negative" };
    let (query, seed) = (&found["plan"]["queries"][0], &found["plan"]["seeds"][0]);
    let alone = encoded(&turn("the pen number 100 is thin"));
    assert_eq!(ids(&query["token_ids"]), alone);
    // The label behind the space that the template writes before an answer.
    let gold = query["right"].as_u64().expect("an index") as usize;
    let answer = ids(&query["answers"][gold]["token_ids"]);
    assert_eq!([&alone[..], &answer].concat(), encoded(&(turn("the pen number 100 is thin") + " negative")));
    let shown = seed["demonstrations"]
        .as_array()
        .expect("indices")
        .iter()
        .map(|i| pool[i.as_u64().expect("an index") as usize]);
    let before: String = shown.map(|(text, of)| format!("{} {} </s>", turn(text), label(of))).collect();
    let behind = [ids(&seed["icl_prefix_token_ids"]), ids(&seed["icl_suffix_token_ids"][0])].concat();
    assert_eq!(behind, encoded(&(before + &turn("the pen number 100 is thin"))));
    // What is learnt is an answer, one turn deep, and behind the other demonstration's turn.
    for (list, turns) in [("train", 1), ("ipt_train", 2)] {
        let input = ids(&seed[list][0]["input_ids"]);
        assert_eq!(input.iter().filter(|&&id| Some(id) == tokenizer.bos()).count(), turns, "{list}");
        let labels: Vec<i64> = serde_json::from_value(seed[list][0]["labels"].clone()).expect("labels");
        let learnt: Vec<u32> = labels.iter().filter(|&&label| label >= 0).map(|&label| label as u32).collect();
        let text = tokenizer.decode(&learnt, true).expect("a text");
        assert!([" positive", " negative"].contains(&text.as_str()), "{list}: {text:?}");
    }
    let again = line(d, "probe --model {}/model --plan {}/run/report.json --out {}/b --json").json();
    assert_eq!((&found["summary"], &found["settings"]), (&again["summary"], &again["settings"]));
    // A level of a varied template is asked in turns too, unless it says otherwise.
    let mut asked = words(d, &asked.replace("--out {}/run", "--out {}/c"));
    asked.extend(["--vary", "template=default;{chat: false}"].map(str::to_owned));
    run(asked).ok();
    let varied = report(&d.join("c/report.json"));
    let first = |condition: usize| ids(&varied["conditions"][condition]["plan"]["queries"][0]["token_ids"]);
    let plain = tokenizer.encode("Review: the pen number 100 is thin\nSentiment:", true).expect("encodes").ids;
    assert_eq!([first(0), first(1)], [alone, plain]);
}

#[test]
fn free_text_is_written_in_a_conversation() {
    let dir = workplace();
    let d = dir.path();
    compare::data(d);
    put(d, "model/chat_template.jinja", TEMPLATE);
    let arms = "--arms zero-shot,icl-retrieved --demos 1 --log-samples --apply-chat-template --out {}/a";
    line(d, &format!("{} {arms}", compare::COMPARE)).ok();
    let found = report(&d.join("a/report.json"));
    assert_eq!(found["plan"]["data"][0]["template"]["chat"], true);
    for (cell, turns) in [("zero-shot.mtop", 1), ("icl-retrieved.mtop", 2)] {
        let text = fs::read_to_string(d.join("a/samples").join(cell).join("samples_mtop.jsonl")).expect("samples");
        for sample in text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")) {
            let request = &sample["arguments"]["gen_args_0"];
            let prompt = request["arg_0"].as_str().expect("a prompt");
            assert_eq!(
                (prompt.matches("<s>[INST] ").count(), prompt.matches(" </s>").count()),
                (turns, turns - 1),
                "{prompt}"
            );
            assert!(prompt.ends_with(" [/INST]"), "{prompt}");
            // No line end is the end of a turn.
            assert_eq!(request["arg_1"]["until"], serde_json::json!([]));
        }
    }
    // The same data in plain text are another comparison.
    let refused = line(d, &format!("{} {}", compare::COMPARE, arms.replace("--apply-chat-template", ""))).refused();
    assert!(refused.contains("template"), "{refused}");
}

#[test]
fn task_counts_and_asks_in_a_conversation() {
    let dir = workplace();
    let d = dir.path();
    probe::data(d);
    put(d, "model/chat_template.jinja", TEMPLATE);
    let task = |more: &str| line(d, &format!("task sst2 --train {{}}/train.tsv --test {{}}/dev.tsv {more}"));
    let longest = |more: &[&str]| {
        let check = words(d, "task sst2 --train {}/train.tsv --test {}/dev.tsv --check --model {}/model --json");
        let checked = run(check.iter().map(String::as_str).chain(more.iter().copied())).json();
        checked["sides"]["test"]["longest"].as_u64().expect("tokens")
    };
    assert!(longest(&["--apply-chat-template"]) > longest(&[]));
    assert_eq!(longest(&["--apply-chat-template"]), longest(&["--template", "{chat: true}"]));
    task("--evaluate --model {}/model --apply-chat-template --shots 0,2 --seeds 1 --queries 3 --device cpu").ok();
    let shown = task("--apply-chat-template").refused();
    assert!(shown.contains("--apply-chat-template: expected --check or --evaluate"), "{shown}");
    // A task of one's own says it in its template, and what is given beside the flag has the last word.
    put(d, "own.yaml", "name: own\nrows: [{input: a, output: b}, {input: c, output: d}]\ntemplate: {chat: true}\n");
    let own = line(d, "task {}/own.yaml").refused();
    assert!(own.contains("template.chat: expected --check or --evaluate"), "{own}");
    assert_eq!(longest(&["--apply-chat-template", "--template", "{chat: false}"]), longest(&[]));
    let synthetic = line(d, "task synthetic --apply-chat-template").refused();
    assert!(synthetic.contains("--apply-chat-template: expected a task of examples"), "{synthetic}");
}
