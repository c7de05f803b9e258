//! `analyze`.

use std::fs;
use std::path::Path;

use half::f16;
use llamaprobe::formats::activations::{ActivationWriter, FileLayout, Format, Layout, Start};
use llamaprobe::formats::safetensors::Dtype;
use llamaprobe::measures::{self, Settings, similarity};
use serde_json::Value;

use super::{line, put, workplace};
use crate::support::temp;

const WIDTH: usize = 6;
const ROWS: usize = 12;

/// Rows of a stream.
fn rows(stream: u64, n: usize) -> Vec<f32> {
    (0..n).flat_map(|row| similarity::gaussian(stream, 0, row, WIDTH)).map(|x| x as f32).collect()
}

/// A file as `capture` writes it.
struct Written<'a> {
    sites: Vec<(&'a str, usize, Vec<f32>)>,
    documents: Vec<i64>,
    positions: Vec<i64>,
    dtype: Dtype,
    shard: Option<usize>,
    /// What the names of norms mean, if the file says it.
    names: Option<&'a str>,
}

impl Default for Written<'_> {
    fn default() -> Self {
        let ids: Vec<i64> = (0..ROWS as i64).collect();
        Self { sites: Vec::new(), positions: ids.clone(), documents: ids, dtype: Dtype::F32, shard: None, names: None }
    }
}

impl<'a> Written<'a> {
    fn of(sites: &[(&'a str, &[f32])]) -> Self {
        let sites = sites.iter().map(|(name, rows)| (*name, WIDTH, rows.to_vec())).collect();
        Self { sites, ..Self::default() }
    }

    fn write(self, dir: &Path, name: &str) {
        let most = self.shard.unwrap_or(usize::MAX);
        let starts = (0..self.documents.len().max(1)).step_by(most);
        let files =
            starts.map(|first| FileLayout { rows: (self.documents.len() - first).min(most), ..FileLayout::default() });
        let layout = Layout {
            sites: self.sites.iter().map(|(name, width, _)| ((*name).to_owned(), *width)).collect(),
            labels: vec!["doc_id".to_owned(), "pos".to_owned()],
            files: files.collect(),
            dtype: self.dtype,
            sharded: self.shard.is_some(),
            metadata: self.names.iter().map(|names| ("conventions".to_owned(), (*names).to_owned())).collect(),
            format: Format::Safetensors,
            earlier: None,
        };
        let path = dir.join(format!("{name}.safetensors"));
        let mut writer = ActivationWriter::create(path, layout, Start::New).expect("a file of activations");
        self.sites.iter().for_each(|(name, _, rows)| writer.push(name, rows).expect("rows"));
        writer.push_labels("doc_id", &self.documents).expect("labels");
        writer.push_labels("pos", &self.positions).expect("labels");
        writer.finish().expect("a complete file");
    }
}

const SITES: [&str; 3] = ["blocks.2.hook_resid_post", "blocks.10.hook_resid_post", "ln_final.hook_normalized"];

/// One name, two tensors: no numbers rather than wrong ones.
#[test]
fn analyze_refuses_names_that_mean_two_things() {
    let dir = temp();
    let d = dir.path();
    let written = |name: &'static str, names| Written { names, ..Written::of(&[(name, &rows(1, ROWS))]) };
    for site in ["blocks.0.ln1.hook_scale", "ln_final.hook_normalized"] {
        written(site, Some("one")).write(d, "a");
        written(site, Some("other")).write(d, "b");
        written(site, None).write(d, "c");
        for other in ["b", "c"] {
            let error = line(d, &format!("analyze {{}}/a.safetensors {{}}/{other}.safetensors")).refused();
            assert!(error.contains(site) && error.contains("one"), "{error}");
        }
        line(d, "analyze {}/a.safetensors {}/a.safetensors").ok();
        line(d, "analyze {}/c.safetensors {}/c.safetensors").ok();
    }
    written("ln_final.hook_out", Some("one")).write(d, "a");
    written("ln_final.hook_out", None).write(d, "b");
    line(d, "analyze {}/a.safetensors {}/b.safetensors").ok();
}

#[test]
fn analyze_gives_the_measures_of_every_layer() {
    let dir = temp();
    let d = dir.path();
    let of = |first: u64| [0, 1, 2].map(|i| rows(first + i, ROWS));
    let (a, b, anchor) = (of(1), of(11), of(21));
    for (name, rows) in [("a", &a), ("b", &b), ("o", &anchor)] {
        Written::of(&[(SITES[1], &rows[1]), (SITES[2], &rows[2]), (SITES[0], &rows[0])]).write(d, name);
    }
    let command = "analyze {}/a.safetensors {}/b.safetensors --subspace 3 --json --seed 4";
    let found = line(d, &format!("{command} --anchor {{}}/o.safetensors")).json();
    let settings = Settings { subspace: 3, seed: 4, ..Settings::default() };
    let layers = found["layers"].as_array().expect("layers");
    assert_eq!(layers.len(), 3);
    for (i, layer) in layers.iter().enumerate() {
        assert_eq!(layer["name"], SITES[i], "numbers sort as such");
        let expected = measures::compare(&a[i], &b[i], Some(&anchor[i]), WIDTH, &settings);
        let fields: Vec<&str> = layer.as_object().expect("a layer").keys().map(String::as_str).collect();
        let names = ["cosine", "update", "norm_ratio", "cka", "cka_debiased", "svcca", "knn_overlap", "id_a", "id_b"];
        assert_eq!(fields, [&["name"][..], &names, &["subspace_overlap", "baselines"]].concat());
        let Value::Object(expected) = serde_json::to_value(expected).expect("JSON") else { panic!("no struct") };
        for (name, value) in expected {
            assert_eq!(layer[&name], value, "{name}");
        }
        let base = measures::baselines(&a[i], &b[i], Some(&anchor[i]), WIDTH, i, &settings);
        assert_eq!(layer["baselines"], serde_json::to_value(base).expect("JSON"));
    }
    let alone = line(d, &format!("{command} --measures update,id")).json();
    assert!(alone["layers"][0]["update"].is_null());
    assert_eq!(alone["layers"][0].as_object().expect("a layer").len(), 5, "{alone}");
    let text = line(d, "analyze {}/a.safetensors {}/b.safetensors --measures cka,knn_overlap").ok().out;
    assert!(text.contains("cka") && text.contains(SITES[2]) && text.contains("shuffled") && text.contains("Gaussian"));
    assert!(!text.contains("svcca"), "{text}");
}

#[test]
fn analyze_reads_shards_and_halves() {
    let dir = temp();
    let d = dir.path();
    // Numbers that f16 holds.
    let exact = |rows: Vec<f32>| rows.into_iter().map(|x| f16::from_f32(x).to_f32()).collect::<Vec<_>>();
    let (a, b) = (exact(rows(1, ROWS)), exact(rows(2, ROWS)));
    Written::of(&[(SITES[0], &a)]).write(d, "a");
    Written::of(&[(SITES[0], &b)]).write(d, "b");
    Written { shard: Some(5), ..Written::of(&[(SITES[0], &a)]) }.write(d, "shards");
    Written { dtype: Dtype::F16, ..Written::of(&[(SITES[0], &b)]) }.write(d, "half");
    let expected = line(d, "analyze {}/a.safetensors {}/b.safetensors --json").json();
    for name in ["shards.safetensors", "shards.safetensors.index.json"] {
        let found = line(d, &format!("analyze {{}}/{name} {{}}/half.safetensors --json")).json();
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn analyze_compares_captures() {
    let dir = workplace();
    let d = dir.path();
    let capture = "capture --model {}/model --input {}/texts.jsonl --sites resid_post --out";
    line(d, &format!("{capture} {{}}/a")).ok();
    line(d, &format!("{capture} {{}}/b --shard-tokens 7")).ok();
    let states = "analyze {}/a/activations.safetensors {}/b/activations.safetensors";
    let found = line(d, &format!("{states} --json --subspace 2")).json();
    assert_eq!(line(d, &format!("{states} --json --subspace 2 --threads 1")).json(), found);
    for layer in found["layers"].as_array().expect("layers") {
        for name in ["cosine", "norm_ratio", "cka", "cka_debiased", "knn_overlap"] {
            assert_eq!(layer[name], 1.0, "{name}: {layer}");
        }
    }
}

#[test]
fn analyze_refuses_what_does_not_match() {
    let dir = temp();
    let d = dir.path();
    let (a, b) = (rows(1, ROWS), rows(2, ROWS));
    Written::of(&[(SITES[0], &a)]).write(d, "a");
    let refused = |other: Written, flags: &str, expected: &[&str]| {
        other.write(d, "b");
        let text = line(d, &format!("analyze {{}}/a.safetensors {{}}/b.safetensors {flags}")).refused();
        for part in expected {
            assert!(text.contains(part), "{part}: {text}");
        }
    };
    let same = || Written::of(&[(SITES[0], &b)]);
    let fewer: Vec<i64> = (0..ROWS as i64 - 1).collect();
    let short = vec![(SITES[0], WIDTH, b[WIDTH..].to_vec())];
    let less = Written { sites: short, documents: fewer.clone(), positions: fewer, ..Written::default() };
    refused(less, "", &["a.safetensors", "b.safetensors", "12", "11"]);
    let narrow = Written { sites: vec![(SITES[0], WIDTH / 2, b[..ROWS * WIDTH / 2].to_vec())], ..Written::default() };
    refused(narrow, "", &["a.safetensors", "b.safetensors", SITES[0], "[12, 6]", "[12, 3]"]);
    refused(Written::of(&[(SITES[1], &b)]), "", &["b.safetensors", SITES[0], SITES[1]]);
    let mut others: Vec<i64> = (0..ROWS as i64).collect();
    others[3] = 77;
    refused(Written { documents: others.clone(), ..same() }, "", &["doc_id", "b.safetensors", "77", "row 3"]);
    let mut odd = b.clone();
    odd[5] = f32::NAN;
    refused(Written::of(&[(SITES[0], &odd)]), "", &["b.safetensors", SITES[0], "NaN"]);
    refused(same(), "--measures cosin", &["--measures", "cosin", "knn_overlap"]);
    refused(same(), "--threads 0", &["--threads", "found 0"]);
    refused(same(), "--knn 12", &["--knn", "12"]);
    refused(same(), "--knn 0", &["--knn", "0"]);
    refused(same(), "--subspace 7", &["--subspace", "7"]);
    refused(same(), "--anchor {}/nowhere.safetensors", &["nowhere.safetensors"]);
    let empty =
        Written { sites: vec![(SITES[0], WIDTH, vec![])], documents: vec![], positions: vec![], ..Written::default() };
    refused(empty, "", &["12", "0"]);
    put(d, "b.safetensors", "not tensors");
    line(d, "analyze {}/a.safetensors {}/b.safetensors").refused();
    fs::remove_file(d.join("b.safetensors")).expect("removed");
    assert!(line(d, "analyze {}/a.safetensors {}/b.safetensors").refused().contains("b.safetensors"));
}

/// Rows of several tokens of a document are told apart by their positions; a document's only row may have moved.
#[test]
fn analyze_tells_rows_by_document_and_position() {
    let dir = temp();
    let d = dir.path();
    let (a, b) = (rows(1, ROWS), rows(2, ROWS));
    let moved: Vec<i64> = (0..ROWS as i64).map(|i| i + 40).collect();
    Written::of(&[(SITES[0], &a)]).write(d, "a");
    Written { positions: moved.clone(), ..Written::of(&[(SITES[0], &b)]) }.write(d, "b");
    let said = line(d, "analyze {}/a.safetensors {}/b.safetensors").ok().err;
    assert!(said.contains("other positions"), "{said}");
    let documents: Vec<i64> = (0..ROWS as i64).map(|i| i / 2).collect();
    Written { documents: documents.clone(), ..Written::of(&[(SITES[0], &a)]) }.write(d, "a");
    Written { documents, positions: moved, ..Written::of(&[(SITES[0], &b)]) }.write(d, "b");
    let text = line(d, "analyze {}/a.safetensors {}/b.safetensors").refused();
    assert!(text.contains("pos") && text.contains("40"), "{text}");
}

#[test]
fn analyze_names_tensors_of_one_file() {
    let dir = temp();
    let d = dir.path();
    let (a, b) = (rows(1, ROWS), rows(2, ROWS));
    Written::of(&[(SITES[0], &a), (SITES[1], &b)]).write(d, "a");
    Written::of(&[(SITES[0], &b)]).write(d, "b");
    let ran = line(d, "analyze {}/a.safetensors {}/b.safetensors --json").ok();
    assert!(ran.err.contains("a.safetensors") && ran.err.contains(SITES[1]), "{}", ran.err);
    assert!(!ran.out.contains(SITES[1]), "{}", ran.out);
}
