//! `compare`.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::support::tiny_model::TinyModel;
use super::{leftovers, line, program, put, words, workplace};

/// Utterances with their parses, and triples with their sentences.
pub fn data(d: &Path) {
    let places = ["the park", "the inn", "a port", "the pier", "a path"];
    let row = |i: usize| {
        let (place, n) = (places[i % 5], i / 5 + 1);
        let question = format!("is there rain in {place} at {n}");
        let parse = format!("[IN:RAIN [SL:AT {place} ] [SL:N {n} ] ]");
        format!("{}\n", serde_json::json!({"question": question, "logical_form": parse}))
    };
    put(d, "train.jsonl", &(0..20).map(row).collect::<String>());
    put(d, "dev.jsonl", &(15..30).map(row).collect::<String>());
    let triple = |i: usize| {
        serde_json::json!({"tripleset": [[places[i % 5], "AT", i.to_string()]],
            "annotations": [{"source": "s", "text": format!("It is {i} in {}.", places[i % 5])}, {"text": "Here."}]})
    };
    put(d, "dart.json", &Value::Array((0..16).map(triple).collect()).to_string());
}

pub const COMPARE: &str = "compare --model {}/model --task mtop --train {}/train.jsonl --test {}/dev.jsonl --queries 6 \
                       --train-examples 8 --max-steps 3 --batch-size 4 --max-new-tokens 8 --seeds 2 --resamples 50 \
                       --device cpu";
const ALL: &str = "--num-virtual-tokens 2,5 --arms zero-shot,icl-random,icl-retrieved,lora,pt,ipt";

fn report(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("the report")).expect("JSON")
}

fn cells(out: &Path) -> usize {
    fs::read_dir(out.join("cells")).map_or(0, |dir| dir.filter_map(Result::ok).filter(|e| is_json(&e.path())).count())
}

fn is_json(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "json")
}

#[test]
fn compare_resumes_to_the_same_report_of_every_arm() {
    let dir = workplace();
    let d = dir.path();
    data(d);
    let shown = line(d, &format!("{COMPARE} {ALL} --out {{}}/a")).ok().out;
    assert!(
        shown.contains("icl-retrieved") && shown.contains("parse match") && shown.contains("report.json"),
        "{shown}"
    );
    let report = report(&d.join("a/report.json"));
    let rows = report["rows"].as_array().expect("rows");
    let of = |arm: &str| rows.iter().filter(|r| r["arm"] == arm).collect::<Vec<_>>();
    for (arm, lengths, seeds) in [
        ("zero-shot", 1, 1),
        ("icl-random", 1, 2),
        ("icl-retrieved", 1, 1),
        ("lora", 1, 2),
        ("pt", 2, 2),
        ("ipt", 2, 2),
    ] {
        let rows = of(arm);
        assert_eq!(rows.len(), lengths, "{arm}");
        for row in rows {
            assert_eq!(row["seeds"].as_array().map(Vec::len), Some(seeds), "{arm}");
            assert_eq!(row["bins"].as_array().map(Vec::len), Some(3), "{arm}");
            assert_eq!(row["similarity"].is_null(), ["zero-shot", "lora", "pt"].contains(&arm), "{arm}");
            assert_eq!(row["seeds"][0]["loss"].is_null(), !["lora", "pt", "ipt"].contains(&arm), "{arm}");
        }
    }
    let similarity = |arm: &str| of(arm)[0]["similarity"].as_f64().expect("a mean");
    assert!(similarity("icl-retrieved") > similarity("icl-random"));
    assert_eq!(similarity("icl-retrieved"), similarity("ipt"));
    assert_eq!(report["plan"]["data"][0]["counts"]["queries"], 6);
    let count = |what: &str| report["plan"]["data"][0]["counts"][what].as_u64().expect(what);
    let asked = count("train examples left out: input of a query");
    assert!(asked > 0 && asked + count("pool") == 20, "five examples are in both files: {asked}");
    assert_eq!(cells(&d.join("a")), 1 + 2 + 1 + 2 + 4 + 4);
    let cell = self::report(&d.join("a/cells/ipt.mtop.mtop.p5.seed-1.json"));
    for answer in cell["answers"].as_array().expect("answers") {
        assert_eq!(answer["demonstrations"].as_array().map(Vec::len), Some(1));
        assert!(answer["similarity"][0].as_f64().is_some_and(|s| s > 0.0));
    }
    for name in ["lora.mtop.seed-0", "pt.mtop.p2.seed-1", "ipt.mtop.p5.seed-0"] {
        assert!(d.join("a/adapters").join(name).join("adapter_model.safetensors").exists(), "{name}");
    }

    // Killed at several places, then repeated until it is done.
    let whole = fs::read(d.join("a/report.json")).expect("the report");
    let mut kills = 0;
    for wanted in [1, 3, 7, 12] {
        let mut child = program(words(d, &format!("{COMPARE} {ALL} --out {{}}/b")))
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("start");
        let begun = Instant::now();
        while cells(&d.join("b")) < wanted && begun.elapsed() < Duration::from_secs(120) {
            if child.try_wait().expect("wait").is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        kills += usize::from(child.kill().is_ok());
        child.wait().expect("wait");
    }
    assert!(kills > 0);
    line(d, &format!("{COMPARE} {ALL} --out {{}}/b")).ok();
    assert!(fs::read(d.join("b/report.json")).expect("the report") == whole, "another report after a kill");
    // Any cell that is gone is made again as it was, alone.
    for name in ["icl-random.mtop.seed-1", "pt.mtop.mtop.p2.seed-0", "ipt.mtop.mtop.p5.seed-1", "lora.mtop.mtop.seed-1"]
    {
        let path = d.join("b/cells").join(format!("{name}.json"));
        let before = fs::read(&path).expect("the cell");
        fs::remove_file(&path).expect("remove");
        fs::remove_file(d.join("b/adapters/pt.mtop.p2.seed-0.losses.json")).ok();
        line(d, &format!("{COMPARE} {ALL} --out {{}}/b --threads 1")).ok();
        assert!(fs::read(&path).expect("the cell") == before, "{name}");
    }
    assert!(fs::read(d.join("b/report.json")).expect("the report") == whole);
    assert_eq!(leftovers(d), Vec::<std::path::PathBuf>::new());
}

#[test]
fn compare_transfer_evaluates_on_the_other_task() {
    let dir = workplace();
    let d = dir.path();
    data(d);
    put(
        d,
        "data.yaml",
        &"mtop: {train: {}/train.jsonl, test: {}/dev.jsonl}\ndart: {train: {}/dart.json, test: [{}/dart.json]}\n"
            .replace("{}", &d.display().to_string()),
    );
    let shown = line(
        d,
        "compare --model {}/model --task mtop --transfer dart --data {}/data.yaml --queries 5 --train-examples 6 \
         --max-steps 2 --max-new-tokens 6 --seeds 2 --arms icl-random,ipt --num-virtual-tokens 3 --retrieval states \
         --num-beams 2 --device cpu --out {}/out",
    )
    .ok()
    .out;
    for part in [
        "ipt, 3 virtual tokens: trained on, judged on",
        "from dart",
        "on mtop (parse match)",
        "ipt of dart",
        "nrefs:2|case:mixed",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let report = report(&d.join("out/report.json"));
    let rows = report["rows"].as_array().expect("rows");
    assert_eq!(rows.iter().filter(|r| r["arm"] == "ipt").count(), 4, "two sources on two targets");
    let counts = &report["plan"]["data"][1]["counts"];
    assert_eq!((&counts["queries"], &counts["pool"]), (&5.into(), &11.into()), "one file is split: {counts}");
}

#[test]
fn compare_max_length_drops_demonstrations_and_never_truncates() {
    let dir = workplace();
    let d = dir.path();
    data(d);
    let run = |length: usize, out: &str| {
        let arms = "--arms icl-retrieved,ipt --demos 3 --num-virtual-tokens 4";
        line(d, &format!("{COMPARE} {arms} --seeds 1 --max-length {length} --out {{}}/{out}"))
    };
    run(180, "short").ok();
    let short = report(&d.join("short/report.json"));
    assert!(short["rows"][0]["shortened"].as_u64().is_some_and(|n| n > 0), "{:#}", short["rows"][0]);
    run(1000, "long").ok();
    let long = report(&d.join("long/report.json"));
    assert_eq!(long["rows"][0]["shortened"], 0);
    assert_eq!(long["plan"]["data"][0]["counts"]["test examples left out: longer than --max-length"], 0);
    let refused = run(40, "none").refused();
    assert!(refused.contains("mtop data: expected a query and two examples that fit"), "{refused}");
    assert!(!d.join("none").exists());
}

/// The positions that a model learned are a greatest length that nobody has to ask for.
#[test]
fn compare_fits_prompts_into_learned_positions() {
    let dir = workplace();
    let d = dir.path();
    let rows: String =
        (0..12).map(|i| format!("- {{input: {}{i}, output: x}}\n", "a".repeat(2 + i % 3 * 12))).collect();
    put(
        d,
        "t.yaml",
        &format!(
            "name: t\nmetric: exact_match\ntemplate: {{query: \"{{input}}:\", answer: \"{{output}}\\n\"}}\nrows:\n{rows}"
        ),
    );
    TinyModel::gpt2(40).write(&d.join("gpt2"));
    let compare = |flags: &str, out: &str| {
        let text = "compare --model {}/gpt2 --task {}/t.yaml --arms zero-shot,icl-random --demos 3 --seeds 1 --queries 4 \
                    --max-new-tokens 16 --resamples 10 --device cpu";
        line(d, &format!("{text} {flags} --out {{}}/{out}"))
    };
    let ran = compare("", "a").ok();
    let [learned, asked] = ["a", "b"].map(|out| {
        if out == "b" {
            compare("--max-length 40", "b").ok();
        }
        report(&d.join(out).join("report.json"))
    });
    assert_eq!(learned["rows"], asked["rows"]);
    assert!(learned["rows"][1]["shortened"].as_u64().is_some_and(|n| n > 0), "{}", learned["rows"][1]);
    let counts = &learned["plan"]["data"][0]["counts"];
    let long = counts["test examples left out: longer than the positions that the model learned"].as_u64();
    assert!(long.is_some_and(|n| n > 0), "{counts}");
    assert_eq!(long, asked["plan"]["data"][0]["counts"]["test examples left out: longer than --max-length"].as_u64());
    for said in
        ["left out, longer than the 40 positions that the model learned", "prompts lose demonstrations, to fit the 40"]
    {
        assert!(ran.err.contains(said), "{said}: {}", ran.err);
    }
}

#[test]
fn compare_refuses_bad_settings_and_data() {
    let dir = workplace();
    let d = dir.path();
    data(d);
    line(d, &format!("{COMPARE} --arms zero-shot --out {{}}/done")).ok();
    for (args, expected) in [
        ("--arms zero-shot --queries 7 --out {}/done", "plan.settings.queries: expected 7 as asked for now, found 6"),
        ("--arms zero-shot,zero-shot --out {}/x", "--arms"),
        ("--arms pt --num-virtual-tokens 0 --out {}/x", "--num-virtual-tokens"),
        ("--seeds 0 --out {}/x", "--seeds"),
        ("--demos 0 --out {}/x", "--demos"),
        ("--demos 50 --out {}/x", "--demos"),
        ("--retrieval vectors --out {}/x", "--vectors"),
        ("--train {}/none.jsonl --out {}/x", "mtop data: expected one file, found 2"),
        ("--task spider --out {}/x", "spider data"),
        ("--transfer mtop --data {} --out {}/x", "--data"),
        ("--arms lora --target-modules z_proj --out {}/x", "z_proj"),
        ("--arms zero-shot --out {}/model", "--out"),
    ] {
        let text = line(d, &format!("{COMPARE} {args}")).refused();
        assert!(text.contains(expected), "{args}: {text}");
    }
    assert!(!d.join("x/report.json").exists());
}

#[test]
fn compare_writes_under_edits_and_resumes_only_under_the_same() {
    let dir = workplace();
    let d = dir.path();
    data(d);
    put(d, "edit.yaml", "[{site: resid_post, layers: 0, positions: all, op: scale, scale: -2}]");
    let run =
        |out: &str, edit: &str| line(d, &format!("{COMPARE} --arms zero-shot,icl-random --out {{}}/{out} {edit}"));
    run("plain", "").ok();
    run("edited", "--edit {}/edit.yaml").ok();
    let [plain, edited] = ["plain", "edited"].map(|out| report(&d.join(out).join("report.json")));
    assert!(plain["plan"]["edits"].is_null() && edited["plan"]["edits"].is_string(), "{edited}");
    let cell = |out: &str| fs::read(d.join(out).join("cells/zero-shot.mtop.json")).expect("a cell");
    assert!(cell("plain") != cell("edited"), "an edit without effect");
    let again = cell("edited");
    run("edited", "--edit {}/edit.yaml").ok();
    assert_eq!(cell("edited"), again);
    put(d, "edit.yaml", "[{site: resid_post, layers: 0, positions: all, op: scale, scale: -3}]");
    let said = run("edited", "--edit {}/edit.yaml").refused();
    assert!(said.contains("plan.json") && said.contains("edits"), "{said}");
}

/// As lm-evaluation-harness logs samples: its keys in its order, and its hashes.
/// Where nothing is trained, weights are loaded for generation: what is written with them is what is written where something is.
#[test]
fn compare_of_quantised_weights_writes_the_same_whatever_else_is_compared() {
    let dir = workplace();
    let d = dir.path();
    data(d);
    TinyModel { width: 64, head_dim: 16, ffn: 64, ..TinyModel::default() }.write(&d.join("model"));
    let compare = format!("{COMPARE} --load-in int8 --dtype bf16");
    let written = |out: &str, arms: &str| {
        line(d, &format!("{compare} --arms {arms} --out {{}}/{out}")).ok();
        let report = report(&d.join(out).join("report.json"));
        report["rows"].as_array().expect("rows").iter().find(|row| row["arm"] == "icl-random").cloned()
    };
    let alone = written("alone", "icl-random");
    assert!(alone.is_some());
    assert_eq!(alone, written("both", "icl-random,lora"));
}

#[test]
fn compare_logs_samples_as_the_harness() {
    let dir = workplace();
    let d = dir.path();
    data(d);
    let arms = "--arms zero-shot,icl-retrieved --demos 2 --stop \\n\\n --log-samples";
    line(d, &format!("{COMPARE} {arms} --out {{}}/a")).ok();
    let report = report(&d.join("a/report.json"));
    let rows = report["rows"].as_array().expect("rows");
    for (cell, row) in [("zero-shot.mtop", &rows[0]), ("icl-retrieved.mtop", &rows[1])] {
        let path = d.join("a/samples").join(cell).join("samples_mtop.jsonl");
        let text = fs::read_to_string(&path).expect("samples");
        let samples: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(samples.len(), 6);
        let mut sum = 0.0;
        for sample in &samples {
            let keys: Vec<&str> = sample.as_object().expect("an object").keys().map(String::as_str).collect();
            let expected = "doc_id doc target arguments resps filtered_resps filter metrics doc_hash prompt_hash target_hash parse";
            assert_eq!(keys.join(" "), expected);
            let test = fs::read_to_string(d.join("dev.jsonl")).expect("the data");
            let row: Value = serde_json::from_str(
                test.lines().nth(sample["doc_id"].as_u64().expect("a number") as usize).expect("a row"),
            )
            .expect("JSON");
            assert_eq!((&sample["doc"]["input"], &sample["target"]), (&row["question"], &row["logical_form"]));
            let request = &sample["arguments"]["gen_args_0"];
            let prompt = request["arg_0"].as_str().expect("a prompt");
            let shown = prompt.matches("[IN:RAIN").count();
            assert_eq!(shown, if cell == "zero-shot.mtop" { 0 } else { 2 }, "{prompt}");
            assert!(prompt.contains(row["question"].as_str().expect("text")));
            assert_eq!(request["arg_1"]["until"], serde_json::json!(["\n\n", "\n"]));
            assert_eq!(request["arg_1"]["max_gen_toks"], 8);
            let [raw, judged] =
                [&sample["resps"][0][0], &sample["filtered_resps"][0]].map(|text| text.as_str().expect("text"));
            assert_eq!(raw.trim(), judged);
            let sha = |text: &str| -> String {
                use sha2::Digest;
                sha2::Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
            };
            assert_eq!(sample["prompt_hash"], sha(prompt));
            assert_eq!(sample["target_hash"], sha(sample["target"].as_str().expect("text")));
            assert_eq!(sample["doc_hash"], sha(&format!("{:#}", sample["doc"])));
            assert_eq!(sample["metrics"], serde_json::json!(["parse"]));
            sum += sample["parse"].as_f64().expect("a number");
        }
        let score = row["score"]["mean"].as_f64().expect("a score");
        assert!((100.0 * sum / 6.0 - score).abs() < 1e-9, "{sum} {score}");
    }
    // They come from what is there already.
    let before = fs::read(d.join("a/samples/zero-shot.mtop/samples_mtop.jsonl")).expect("samples");
    fs::remove_dir_all(d.join("a/samples")).expect("removes");
    let shown = line(d, &format!("{COMPARE} {arms} --out {{}}/a")).ok().err;
    assert!(!shown.contains("writes"), "{shown}");
    assert_eq!(fs::read(d.join("a/samples/zero-shot.mtop/samples_mtop.jsonl")).expect("samples"), before);
}

#[test]
fn compare_asks_half_of_a_tasks_own_rows() {
    let dir = workplace();
    let d = dir.path();
    let own = "compare --model {}/model --task antonym --arms zero-shot,icl-random --seeds 1 --max-new-tokens 1 --resamples 10 \
               --device cpu --out {}/own";
    line(d, own).ok();
    let counts = report(&d.join("own/report.json"))["plan"]["data"][0]["counts"].clone();
    assert_eq!((&counts["queries"], &counts["pool"]), (&10.into(), &10.into()), "{counts}");
    let text = line(d, &format!("{own} --queries 20")).refused();
    assert!(text.contains("--queries: expected so few that two examples of antonym"), "{text}");
}
