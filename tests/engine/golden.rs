//! The forward against files made by the reference framework (`tests/golden/model.py`, `tests/golden/families.py`).

use std::path::PathBuf;

use llamaprobe::arch::ModelConfig;
use llamaprobe::backend::Backend;
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::formats::adapter::LoraAdapter;
use llamaprobe::formats::safetensors::Checkpoint;
use llamaprobe::hooks::{Record, Selection, Site};
use llamaprobe::model::{Activations, Adaptation, Input, Model, Save};
use llamaprobe::pack::{Label, Pack, Sequence, forest};

/// Largest difference allowed, as a share of the expected tensor's largest magnitude.
const LIMIT: f64 = 2e-5;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("model-{name}"))
}

fn floats(expected: &Checkpoint, name: &str) -> Vec<f32> {
    expected.get(name).unwrap_or_else(|| panic!("no {name}")).to_f32().expect("floats")
}

fn ids(expected: &Checkpoint, s: usize) -> Vec<u32> {
    let view = expected.get(&format!("ids.{s}")).expect("ids");
    view.as_slice::<i64>().expect("i64").iter().map(|&id| id as u32).collect()
}

/// The largest difference as a share of the expected tensor's largest magnitude.
fn difference(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0f64, |m, &x| m.max(f64::from(x).abs()));
    found.iter().zip(expected).fold(0.0f64, |m, (&a, &b)| m.max((f64::from(a) - f64::from(b)).abs())) / largest
}

/// Runs sequences in one pack, through an adapter if there is one; the record holds all rows, sequence by sequence.
fn run<B: Backend>(
    backend: &mut B,
    model: &Model<B>,
    sequences: &[Vec<u32>],
    adaptation: Option<&Adaptation<B>>,
) -> Record {
    let active = adaptation.map(|_| 0);
    let sequences: Vec<Sequence> = sequences.iter().map(|ids| Sequence::ids(ids, active, Label::Text)).collect();
    let planted = forest(&sequences, 1);
    let pack: &Pack = &planted.pack;
    let rows = sequences.iter().enumerate().flat_map(|(s, q)| (0..q.tokens.len()).map(move |i| (s, i)));
    let rows: Vec<usize> = rows.map(|(s, i)| planted.row(s, i)).collect();
    let layers: Vec<usize> = (0..model.config.num_hidden_layers).collect();
    let sites = [Site::ResidPre, Site::ResidPost, Site::FinalNorm, Site::Logits];
    let mut record = Record::new(Selection::new(&sites, &layers), rows);
    let device = backend.pack(pack).expect("pack");
    let layout = adaptation.map(|adaptation| &adaptation.layout);
    let mut acts = Activations::new(backend, &model.config, layout, pack.len(), Save::Layer).expect("buffers");
    let input = Input { pack, device: &device, adaptation, dropout: None, read: None };
    model.forward(backend, &mut acts, &input, None, &mut record).expect("forward");
    backend.sync().expect("sync");
    record
}

fn check<B: Backend>(backend: &mut B, name: &str, together: bool) {
    let path = golden(name);
    let model = Model::load(backend, &path).expect("the checkpoint loads");
    let expected = Checkpoint::open(path.join("expected.safetensors")).expect("the expected values load");
    let all: Vec<Vec<u32>> = (0..3).map(|s| ids(&expected, s)).collect();
    let groups: Vec<Vec<usize>> = if together { vec![vec![0, 1, 2]] } else { vec![vec![0], vec![1], vec![2]] };
    let mut worst = (0.0, String::new());
    for group in groups {
        let sequences: Vec<Vec<u32>> = group.iter().map(|&s| all[s].clone()).collect();
        let record = run(backend, &model, &sequences, None);
        let first = if expected.get("embed.0").is_some() { "embed" } else { "resid_pre" };
        let mut places = vec![(Site::ResidPre, 0, first.to_owned()), (Site::FinalNorm, 0, "final_norm".to_owned())];
        places.push((Site::Logits, 0, "logits".to_owned()));
        places.extend(
            (0..model.config.num_hidden_layers).map(|layer| (Site::ResidPost, layer, format!("resid_post.{layer}"))),
        );
        for (site, layer, tensor) in places {
            let found = record.get(site, layer).expect("recorded");
            let width = record.width(site, layer).expect("recorded");
            let mut from = 0;
            for (&s, sequence) in group.iter().zip(&sequences) {
                let rows = &found[from * width..(from + sequence.len()) * width];
                from += sequence.len();
                let tensor = format!("{tensor}.{s}");
                let far = difference(rows, &floats(&expected, &tensor));
                assert!(far <= LIMIT, "{name}: {tensor}: {far:.1e} of its largest magnitude, limit {LIMIT:.0e}");
                if far > worst.0 {
                    worst = (far, tensor);
                }
            }
        }
    }
    println!("{name} on {}: worst {:.1e} at {}, limit {LIMIT:.0e}", backend.name(), worst.0, worst.1);
}

#[test]
fn every_family_and_rotation_matches_the_reference() {
    for name in ["gqa-llama3", "biases-linear", "yarn", "mistral-window", "qwen2"] {
        check(&mut Cpu::<f32>::new(), name, true);
        check(&mut Cpu::<f64>::new(), name, true);
    }
    // The reference's dynamic scaling depends on the longest sequence of the batch.
    check(&mut Cpu::<f32>::new(), "dynamic", false);
}

const FAMILIES: [&str; 4] = ["gpt2", "opt", "opt-behind", "bloom"];

#[test]
fn the_other_families_match_the_reference() {
    for name in FAMILIES {
        check(&mut Cpu::<f32>::new(), name, true);
        check(&mut Cpu::<f64>::new(), name, false);
    }
}

/// Adapters of PEFT on every family's own modules: fused, transposed, named after nothing else.
#[test]
fn adapters_of_the_other_families_match_peft() {
    let backend = &mut Cpu::<f32>::new();
    for name in FAMILIES {
        let path = golden(name);
        let expected = Checkpoint::open(path.join("expected.safetensors")).expect("the expected values load");
        let model = Model::load(backend, &path).expect("the checkpoint loads");
        let config = ModelConfig::load(&path).expect("the configuration loads");
        let adapter = LoraAdapter::read(path.join("adapter"), &config).expect("the adapter loads");
        let adaptation =
            Adaptation::of_adapters(backend, &model.config, std::slice::from_ref(&adapter)).expect("memory");
        let all: Vec<Vec<u32>> = (0..3).map(|s| ids(&expected, s)).collect();
        let record = run(backend, &model, &all, Some(&adaptation));
        let found = record.get(Site::Logits, 0).expect("recorded");
        let wanted: Vec<f32> = (0..3).flat_map(|s| floats(&expected, &format!("adapted.{s}"))).collect();
        let plain: Vec<f32> = (0..3).flat_map(|s| floats(&expected, &format!("logits.{s}"))).collect();
        let (far, moved) = (difference(found, &wanted), difference(&plain, &wanted));
        println!("{name} adapted: {far:.1e} of the largest logit; the adapter moves them by {moved:.1e}");
        assert!(far <= LIMIT && moved > 1e-2, "{name}: {far:.1e}, moved by {moved:.1e}");

        let dir = tempfile::tempdir().expect("a directory");
        let read = adaptation.adapter(backend, 0, &adapter.config).expect("read out");
        read.write(dir.path().join("adapter")).expect("written");
        let bytes = |dir: PathBuf| std::fs::read(dir.join("adapter_model.safetensors")).expect("the file");
        assert!(bytes(dir.path().join("adapter")) == bytes(path.join("adapter")), "{name}: other bytes than PEFT's");
    }
}

#[test]
fn a_difference_of_twice_the_limit_is_found() {
    let expected = [1.0f32, -4.0, 2.0];
    let mut found = expected;
    found[0] += (2.0 * LIMIT * 4.0) as f32;
    assert!(difference(&found, &expected) > LIMIT);
    assert!(difference(&expected, &expected) == 0.0);
}
