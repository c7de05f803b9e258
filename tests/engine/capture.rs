//! Captures as the library makes them: what is refused, and what the plan says.

use std::path::Path;

use half::{bf16, f16};
use llamaprobe::arch::{Dtype, Projection};
use llamaprobe::backend::Planning;
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::backend::trace::Trace;
use llamaprobe::capture::{Capture, CaptureSettings, Tokens};
use llamaprobe::formats::activations::{Format, Start};
use llamaprobe::formats::safetensors::{self, Checkpoint};
use llamaprobe::hooks::{Names, Naming, NormPart, NormSite, Selection, Site};
use llamaprobe::model::{Activations, Adaptation, Layout, LoraShape, Model, Save};
use llamaprobe::{Error, Result};

use crate::support;
use crate::support::training::model;

const DOCUMENTS: [&[u32]; 4] = [&[1, 5, 7, 9], &[1, 6], &[1, 5, 7], &[2, 3, 4, 5, 6]];

fn documents() -> Vec<Vec<u32>> {
    DOCUMENTS.map(<[u32]>::to_vec).to_vec()
}

fn settings(sites: &[Site], batch_tokens: usize) -> CaptureSettings {
    CaptureSettings {
        selection: Selection::new(sites, &[0, 1]),
        tokens: Tokens::All,
        batch_tokens,
        shard_tokens: None,
        edits: Vec::new(),
        dtype: safetensors::Dtype::F32,
        format: Format::Safetensors,
        names: Names::Tl,
        metadata: Vec::new(),
        start: Start::New,
        append: None,
    }
}

fn refused(result: Result<impl Sized>) -> (String, String) {
    match result.map(|_| ()).expect_err("refused") {
        Error::Argument { name, expected, .. } => (name, expected),
        other => panic!("another error: {other}"),
    }
}

#[test]
fn capture_names_the_setting_that_it_refuses() {
    let backend = &mut Trace::new();
    let config = model(backend).config;
    let none = None::<&Adaptation<Trace>>;
    let new = |sites: &[Site], rows| Capture::new(&config, none, settings(sites, rows), &documents());
    assert_eq!(refused(new(&[Site::ResidPost], 0)).0, "batch_tokens");
    assert_eq!(refused(new(&[Site::PosEmbed], 9)).0, "sites");
    let (name, expected) = refused(new(&[Site::LoraA(Projection::Q)], 9));
    assert!(name == "adapter" && expected.contains("blocks.0.q_proj.hook_lora_a"), "{name}: {expected}");
    for (names, layers) in [("nonsense", vec![0]), ("", vec![0]), ("resid_post7", vec![0])] {
        assert_eq!(refused(Selection::parse(names, &layers, &Naming::tl(&config))).0, "sites");
    }
    assert_eq!(refused(Selection::parse("resid_post", &[2], &Naming::tl(&config))).0, "layers");
}

#[test]
fn capture_takes_the_memory_of_its_plan() {
    let backend = &mut Trace::new();
    let model: Model<Trace> = model(backend);
    let shape =
        LoraShape { rank: 2, alpha: 4.0, rslora: false, dora: false, layers: None, targets: vec![Projection::Q] };
    let adaptation = Adaptation::new(backend, Layout::lora(&model.config, &shape), 1).expect("memory");
    let sites = [Site::Pattern, Site::Result, Site::Logits, Site::LoraDelta(Projection::Q), Site::ResidPost];
    for tokens in [Tokens::All, Tokens::Last] {
        let settings = CaptureSettings { tokens, ..settings(&sites, usize::MAX) };
        let capture = Capture::new(&model.config, Some(&adaptation), settings, &documents()).expect("a plan");
        let memory = capture.memory();
        let rows = if tokens == Tokens::All { 14 } else { 4 };
        assert_eq!((capture.rows(), capture.pass_rows(), memory.rows), (rows, 14, 14));
        let captures: Vec<[usize; 2]> = capture.tensors().iter().map(|(_, width)| [rows * width, 0]).collect();
        assert_eq!(memory.captures, captures);
        let dir = support::temp();
        backend.clear();
        let path = dir.path().join("a.safetensors");
        let writer = capture.run(backend, &model, Some(&adaptation), &path, &mut |_| ()).expect("runs");
        assert_eq!(writer.finish().expect("a file"), path);
        // On the null device every layer's tensor on demand is an allocation of its own; logits also gather their rows.
        let sizes = backend.element_sizes();
        let acts = Activations::<Trace>::bytes(&model.config, Some(&adaptation.layout), 14, Save::Layer, sizes);
        let in_blocks = |site: &Site| if site.in_block() { 2 } else { 1 };
        let width = |site: Site| capture.tensors().iter().find(|(name, _)| *name == site.name(0)).expect("a tensor").1;
        let on_demand = |site: &Site| match site {
            Site::LoraDelta(_) => 14 * width(*site),
            _ => rows * width(*site),
        };
        let all: usize = sites[..4].iter().map(|site| in_blocks(site) * on_demand(site)).sum();
        assert_eq!(memory.on_demand, sites[..4].iter().map(on_demand).sum::<usize>());
        let gathered = rows * model.config.hidden_size;
        let index = if tokens == Tokens::All { 0 } else { 4 * rows };
        assert_eq!(backend.bytes(), acts + sizes.0 * all + sizes.1 * gathered + index, "{tokens:?}");
    }
}

#[test]
fn capture_of_an_adapted_heads_logits_takes_the_memory_of_its_plan() {
    let backend = &mut Trace::new();
    let model: Model<Trace> = model(backend);
    let adapter = support::training::adapter_of_tables(&model.config);
    let adaptation = Adaptation::of_adapters(backend, &model, std::slice::from_ref(&adapter)).expect("an adapter");
    let settings = settings(&[Site::Logits], usize::MAX);
    let capture = Capture::new(&model.config, Some(&adaptation), settings, &documents()).expect("a plan");
    let (rows, vocab) = (capture.rows(), model.config.vocab_size);
    assert_eq!(capture.memory().on_demand, rows * (2 * vocab + 2));
    let dir = support::temp();
    backend.clear();
    let path = dir.path().join("a.safetensors");
    let writer = capture.run(backend, &model, Some(&adaptation), &path, &mut |_| ()).expect("runs");
    writer.finish().expect("a file");
    let sizes = backend.element_sizes();
    let acts = Activations::<Trace>::bytes(&model.config, Some(&adaptation.layout), rows, Save::Layer, sizes);
    let gathered = sizes.1 * rows * model.config.hidden_size;
    // What is left are lists of rows.
    let lists = backend.bytes() - acts - gathered - sizes.0 * capture.memory().on_demand;
    assert!(lists <= 32 * rows, "{lists}");
}

/// Of an RMS norm and a layer norm, of a stream and of heads: the plan is at least what is allocated, and less than three times that (the
/// heads of a row share their weights).
#[test]
fn parts_of_norms_take_no_more_memory_than_planned() {
    let parts = [NormPart::Scale, NormPart::Normalized];
    for (name, at) in [("gqa-llama3", NormSite::Ln1), ("gpt2", NormSite::Ln1), ("qwen3", NormSite::Q)] {
        for (part, tokens) in parts.into_iter().flat_map(|part| [(part, Tokens::All), (part, Tokens::Last)]) {
            let backend = &mut Trace::new();
            let model = Model::<Trace>::load(backend, &support::golden(&format!("model-{name}"))).expect("a model");
            let selection = Selection::new(&[Site::Norm(at, part)], &[0]);
            let settings = CaptureSettings { selection, tokens, ..settings(&[], usize::MAX) };
            let none = None::<&Adaptation<Trace>>;
            let documents = if tokens == Tokens::All { documents() } else { documents()[..1].to_vec() };
            let capture = Capture::new(&model.config, none, settings, &documents).expect("a plan");
            let (rows, pass, planned) = (capture.rows(), capture.pass_rows(), 4 * capture.memory().on_demand);
            let dir = support::temp();
            backend.clear();
            capture.run(backend, &model, none, &dir.path().join("a.safetensors"), &mut |_| ()).expect("runs");
            let acts = Activations::<Trace>::bytes(&model.config, None, pass, Save::Layer, backend.element_sizes());
            let allocated = backend.bytes() - acts - 4 * rows;
            assert!(
                allocated <= planned && planned < 3 * allocated,
                "{name}: {part:?}, {tokens:?}: {planned}, {allocated}"
            );
        }
    }
}

/// In the dtype of the pass they are written from where they lie, in another after a rounding.
#[test]
fn states_are_stored_with_the_bits_of_the_files_dtype() {
    use safetensors::Dtype::{BF16, F16, F32};
    for (dtype, stored) in [(Dtype::F32, [F32, BF16]), (Dtype::BF16, [BF16, F16]), (Dtype::F16, [F16, BF16])] {
        let backend = &mut Cpu::new(dtype);
        let model = model(backend);
        for tokens in [Tokens::All, Tokens::Last] {
            let sites = [Site::Pattern, Site::Z, Site::MlpPost, Site::ResidPost, Site::FINAL_NORM, Site::Logits];
            let mut capture = |dtype| {
                let (dir, settings) = (support::temp(), CaptureSettings { tokens, dtype, ..settings(&sites, 7) });
                let none = None::<&Adaptation<Cpu>>;
                let capture = Capture::new(&model.config, none, settings, &documents()).expect("a plan");
                let path = dir.path().join("a.safetensors");
                capture.run(backend, &model, none, &path, &mut |_| ()).expect("runs").finish().expect("a file");
                let file = Checkpoint::open(&path).expect("the file opens");
                capture
                    .tensors()
                    .iter()
                    .map(|(name, _)| file.get(name).expect(name).to_f32().expect("floats"))
                    .collect()
            };
            let exact: Vec<Vec<f32>> = capture(F32);
            for stored in stored {
                let round = |x: &f32| match stored {
                    BF16 => bf16::from_f32(*x).to_f32(),
                    F16 => f16::from_f32(*x).to_f32(),
                    _ => *x,
                };
                let rounded: Vec<Vec<f32>> = exact.iter().map(|x| x.iter().map(round).collect()).collect();
                assert!(capture(stored) == rounded, "{dtype} as {stored}, {tokens:?}");
            }
        }
    }
}

#[test]
fn capture_of_a_state_that_is_not_finite_names_the_hook() {
    for (dtype, stored) in [(Dtype::F32, safetensors::Dtype::F32), (Dtype::BF16, safetensors::Dtype::BF16)] {
        let backend = &mut Cpu::new(dtype);
        let dir = support::temp();
        support::tiny_model::TinyModel { scale: f32::INFINITY, ..Default::default() }.write(dir.path());
        let model = Model::load(backend, dir.path()).expect("loads");
        let none = None::<&Adaptation<Cpu>>;
        let settings = CaptureSettings { dtype: stored, ..settings(&[Site::MlpPost], 9) };
        let capture = Capture::new(&model.config, none, settings, &documents()).expect("a plan");
        let file: &Path = &dir.path().join("a.safetensors");
        let error = capture.run(backend, &model, None, file, &mut |_| ()).map(|_| ()).expect_err("not finite");
        assert!(matches!(&error, Error::NotFinite { what, .. } if what.starts_with("blocks.")), "{error}");
        assert!(!file.exists(), "what was begun is removed");
    }
}

#[test]
fn metadata_of_a_capture_have_each_key_once() {
    let backend = &mut Trace::new();
    let model: Model<Trace> = model(backend);
    for keys in [&["family"][..], &["doc_start"], &["n_positions"], &["mine", "mine"]] {
        let metadata = keys.iter().map(|key| ((*key).to_owned(), "x".to_owned())).collect();
        let settings = CaptureSettings { metadata, ..settings(&[Site::ResidPost], usize::MAX) };
        let none = None::<&Adaptation<Trace>>;
        assert_eq!(refused(Capture::new(&model.config, none, settings, &documents())).0, "metadata", "{keys:?}");
    }
}
