//! `probe --vary`: conditions in the report, the same again from it, and refusals.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::probe::data;
use super::{line, put, workplace};

const PROBE: &str = "probe --model {}/model --task sst2 --train {}/train.tsv --test {}/dev.tsv --demos 3 --queries 4 \
                     --seeds 2 --epochs 2 --r 2";

/// The report's text without the two things that are not of the experiment.
fn timeless(path: &Path) -> String {
    let mut report: Value = serde_json::from_slice(&fs::read(path).expect("the report")).expect("JSON");
    report["seconds"].take();
    report.to_string()
}

#[test]
fn study_report_has_every_condition_and_repeats_from_its_plan() {
    let dir = workplace();
    let d = dir.path();
    data(d);
    put(
        d,
        "other.yaml",
        "name: sst2\nlabels: [thin, fine]\nrows:\n- {input: a pen, output: thin}\n- {input: a path, output: fine}\n- {input: an inn, output: thin}\n",
    );
    let vary = "--vary demos=2,0 --vary source=sst2,{}/other.yaml --patch --save-adapters --position last";
    let first = line(d, &format!("{PROBE} {vary} --out {{}}/a --json")).json();
    let conditions = first["conditions"].as_array().expect("conditions");
    let levels: Vec<(u64, bool)> = conditions
        .iter()
        .map(|c| (c["levels"]["demos"].as_u64().expect("a level"), c["levels"]["source"] == "sst2"))
        .collect();
    assert_eq!(levels, [(2, true), (2, false), (0, true), (0, false)]);
    for (key, of) in [("seeds", &first["seeds"]), ("summary", &first["summary"]), ("plan", &first["plan"])] {
        assert_eq!(&conditions[0][key], of, "{key} of the first condition are the report's own");
    }
    // A source of the same name has rows of its own.
    let lessons = |c: usize| &conditions[c]["plan"]["seeds"][0]["train"];
    assert_ne!(lessons(0), lessons(1));
    let vectors = conditions[0]["seeds"][0]["patching"][1]["vectors"].as_array().expect("vectors");
    let names: Vec<&str> = vectors.iter().filter_map(|vector| vector["vector"].as_str()).collect();
    assert_eq!(names, ["icl", "it", "task_vector", "it_vector", "random", "other_task"]);
    for key in ["cosine", "norm_ratio", "cka", "cka_debiased", "svcca", "knn_overlap", "id_a"] {
        assert!(conditions[0]["summary"]["layers"][0][key]["mean"].is_number(), "{key}");
    }
    assert!(d.join("a/adapters/condition-1/seed-0/adapter_model.safetensors").exists());
    line(d, "probe --model {}/model --plan {}/a/report.json --save-adapters --out {}/b").ok();
    assert_eq!(timeless(&d.join("a/report.json")), timeless(&d.join("b/report.json")));
}

#[test]
fn study_of_models_has_a_condition_each() {
    let dir = workplace();
    let d = dir.path();
    data(d);
    super::TinyModel { seed: 9, layers: 1, ..super::TinyModel::default() }.write(&d.join("small"));
    let vary = "--vary model={}/model,{}/small --vary r=1,2";
    let found = line(d, &format!("{PROBE} {vary} --out {{}}/a --json")).json();
    let conditions = found["conditions"].as_array().expect("conditions");
    let layers: Vec<usize> = conditions.iter().map(|c| c["summary"]["layers"].as_array().map_or(0, Vec::len)).collect();
    assert_eq!(layers, [3, 3, 2, 2]);
    let with: Vec<Vec<u64>> = conditions
        .iter()
        .map(|c| c["lora_overlap"].as_array().into_iter().flatten().filter_map(|o| o["with"].as_u64()).collect())
        .collect();
    assert_eq!(with, [vec![], vec![0], vec![], vec![2]], "overlaps are with conditions of the same model");
    let again = line(d, "probe --model {}/model --plan {}/a/report.json --out {}/b --json").json();
    assert_eq!(again["conditions"], found["conditions"]);
}

#[test]
fn study_refuses_what_it_cannot_do() {
    let dir = workplace();
    let d = dir.path();
    data(d);
    put(d, "no.yaml", "no task\n");
    for (args, expected) in [
        ("--vary shots=1", &["factor", "shots", "demos, labels"][..]),
        ("--vary demos", &["--vary", "NAME=LEVELS"]),
        ("--vary demos=1 --vary demos=2", &["--vary", "demos twice"]),
        ("--vary demos=2,2", &["--vary", "demos", "2 twice"]),
        ("--vary demos=2,13", &["--demos", "at most 12", "13"]),
        ("--vary demos=-1", &["--vary", "demos", "-1"]),
        ("--vary labels=gold,wrong", &["--vary", "labels", "gold, half, flipped, random", "wrong"]),
        ("--vary similarity=close", &["--vary", "similarity", "near, random, far", "close"]),
        ("--vary source=sst2,agnews", &["--vary", "source", "agnews"]),
        ("--vary source=nothing", &["task", "nothing"]),
        ("--vary source={}/no.yaml", &["no.yaml"]),
        ("--vary template=default;nothing", &["template", "query and answer", "nothing"]),
        ("--vary template={query:x}", &["template"]),
        ("--vary model={}/model,{}/none", &["--model", "none"]),
        ("--vary r=0", &["--r", "at least 1"]),
        ("--vary steps=ten", &["--vary", "steps", "ten"]),
        ("--vary order=0", &["--vary", "order"]),
        ("--vary learning-rate=0.1,fast", &["--vary", "learning-rate", "fast"]),
        ("--vary target-modules=q_proj;z_proj", &["z_proj"]),
        ("--measures ckka", &["--measures", "ckka", "nearest is cka"]),
        ("--patch --position all", &["--position", "last", "all"]),
    ] {
        let found = line(d, &format!("{PROBE} {args} --out {{}}/out")).refused();
        expected.iter().for_each(|word| assert!(found.contains(word), "{args}: no {word} in {found}"));
        assert!(!d.join("out").exists(), "{args}");
    }
    for args in ["--position middle", "--tuning half", "--similarity-by words", "--vary demos=1 --plan {}/r.json"] {
        assert_eq!(line(d, &format!("{PROBE} {args} --out {{}}/out")).code, Some(2), "{args}");
    }
    put(d, "a.en", &(0..12).map(|i| format!("line {i}\n")).collect::<String>());
    put(d, "a.cs", &(0..12).map(|i| format!("rada {i}\n")).collect::<String>());
    let free = "probe --model {}/model --task en-cs --train {}/a.en,{}/a.cs --test {}/a.en,{}/a.cs --demos 2 \
                --queries 2 --seeds 1 --epochs 1 --out {}/out";
    let found = line(d, &format!("{free} --vary labels=gold,flipped")).refused();
    assert!(found.contains("en-cs") && found.contains("flipped"), "{found}");
    assert!(!d.join("out").exists());
}

#[test]
fn similarity_by_states_is_planned_by_the_model() {
    let dir = workplace();
    let d = dir.path();
    data(d);
    let probe = format!("{PROBE} --vary similarity=near,random,far --measures none --json");
    let by = |by: &str| line(d, &format!("{probe} --similarity-by {by} --out {{}}/{by}")).json();
    let (states, words) = (by("states"), by("bm25"));
    let drawn = |report: &Value, c: usize| report["conditions"][c]["plan"]["seeds"][0]["demonstrations"].clone();
    assert_eq!(drawn(&states, 1), drawn(&words, 1), "at random");
    assert_ne!((drawn(&states, 0), drawn(&states, 2)), (drawn(&words, 0), drawn(&words, 2)));
    assert_ne!(drawn(&states, 0), drawn(&states, 2));
    assert!(states["summary"]["layers"][0]["cka"].is_null(), "nothing more is measured");
}
