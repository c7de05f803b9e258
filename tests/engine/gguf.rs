//! Models of GGUF files against transformers on the same values: `golden/gguf_models.py`.

use std::path::PathBuf;

use llamaprobe::arch::Dtype;
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::formats::adapter::LoraAdapter;
use llamaprobe::formats::gguf::model::GgufModel;
use llamaprobe::formats::quantized::QuantizedView;
use llamaprobe::formats::safetensors::{Checkpoint, Loading};
use llamaprobe::hooks::{Record, Selection, Site};
use llamaprobe::model::{Activations, Adaptation, Input, Model, Save, Source};
use llamaprobe::pack::{Label, Sequence, forest};

use crate::support;

/// Largest difference allowed, as a share of the largest logit: three times what is measured (2e-6, of llama, whose factors of the frequencies are of f32 in the file).
const LIMIT: f64 = 6e-6;

fn golden(name: &str, extension: &str) -> PathBuf {
    support::golden(&format!("gguf/{name}.{extension}"))
}

/// The logits of every sequence of a golden file, each alone.
pub fn logits(model: &Model<Cpu<f32>>, cpu: &mut Cpu<f32>, expected: &Checkpoint) -> Vec<Vec<f32>> {
    adapted_logits(model, cpu, expected, None)
}

/// The same through an adapter.
fn adapted_logits(
    model: &Model<Cpu<f32>>,
    cpu: &mut Cpu<f32>,
    expected: &Checkpoint,
    adaptation: Option<&Adaptation<Cpu<f32>>>,
) -> Vec<Vec<f32>> {
    let layout = adaptation.map(|adaptation| &adaptation.layout);
    let one = |s: usize| {
        let ids = expected.get(&format!("ids.{s}")).expect("ids");
        let ids: Vec<u32> = ids.as_slice::<i64>().expect("i64").iter().map(|&id| id as u32).collect();
        let planted = forest(&[Sequence::ids(&ids, adaptation.map(|_| 0), Label::Text)], 1);
        let rows = (0..ids.len()).map(|i| planted.row(0, i)).collect();
        let mut record = Record::new(Selection::new(&[Site::Logits], &[0]), rows);
        let (pack, device) = (&planted.pack, llamaprobe::backend::Buffers::pack(cpu, &planted.pack).expect("a pack"));
        let mut acts = Activations::new(cpu, &model.config, layout, pack.len(), Save::Layer).expect("buffers");
        let input = Input { adaptation, ..Input::new(pack, &device) };
        model.forward(cpu, &mut acts, &input, None, &mut record).expect("a pass");
        record.get(Site::Logits, 0).expect("recorded").to_vec()
    };
    (0..3).map(one).collect()
}

pub fn difference(found: &[Vec<f32>], expected: &Checkpoint, name: &str) -> f64 {
    let far = |(s, found): (usize, &Vec<f32>)| {
        let expected = expected.get(&format!("{name}.{s}")).expect(name).to_f32().expect("floats");
        assert_eq!(found.len(), expected.len(), "{name}.{s}");
        let largest = expected.iter().fold(0.0f64, |m, &x| m.max(f64::from(x).abs()));
        found.iter().zip(&expected).fold(0.0f64, |m, (&a, &b)| m.max((f64::from(a) - f64::from(b)).abs())) / largest
    };
    found.iter().enumerate().map(far).fold(0.0, f64::max)
}

fn found(name: &str) -> (Vec<Vec<f32>>, Checkpoint) {
    let mut cpu = Cpu::<f32>::new(Dtype::F32);
    let model = Model::load(&mut cpu, &golden(name, "gguf")).expect("the model loads");
    let expected = Checkpoint::open(golden(name, "safetensors")).expect("the expected values");
    (logits(&model, &mut cpu, &expected), expected)
}

#[test]
fn gguf_logits_are_transformers() {
    for name in
        ["llama", "llama-f16", "llama-blocks", "qwen2", "qwen2-blocks", "qwen3", "gemma2", "gemma3", "gpt2", "phi3"]
    {
        let (logits, expected) = found(name);
        let far = difference(&logits, &expected, "logits");
        println!("{name}: {far:.1e} of the largest logit, limit {LIMIT:.0e}");
        assert!(far <= LIMIT, "{name}: {far:.1e} of the largest logit, limit {LIMIT:.0e}");
    }
}

#[test]
fn gguf_limits_see_small_mistakes() {
    let (logits, expected) = found("llama");
    assert!(difference(&logits, &expected, "unpermuted") > 100.0 * LIMIT, "rows of q and k left as they are stored");
    let mut cpu = Cpu::<f32>::new(Dtype::F32);
    let mut far = |name: &str, change: fn(&mut GgufModel)| {
        let mut model = GgufModel::open(golden(name, "gguf"), Loading::Mapped).expect("the file opens");
        change(&mut model);
        let expected = Checkpoint::open(golden(name, "safetensors")).expect("the expected values");
        let model = Model::new(&mut cpu, &model.config, &model.checkpoint).expect("a model");
        difference(&logits_of(&model, &mut cpu, &expected), &expected, "logits")
    };
    use self::logits as logits_of;
    use llamaprobe::arch::{Activation, Mlp, Norm, Positions, RmsWeight, RopeKind};
    let plain: fn(&mut GgufModel) = |model| {
        let Positions::Rope(ropes) = &mut model.config.positions else { panic!("a rotation") };
        ropes.iter_mut().for_each(|rope| rope.kind = RopeKind::Default);
    };
    for name in ["llama", "gemma3", "phi3"] {
        assert!(far(name, plain) > 10.0 * LIMIT, "{name}: without its scaling");
    }
    let exact: fn(&mut GgufModel) = |model| model.config.norm = Norm::Rms(RmsWeight::Exact);
    assert!(far("gemma2", exact) > 100.0 * LIMIT, "norms without 1 +");
    let erf: fn(&mut GgufModel) = |model| model.config.mlp = Mlp::Plain(Activation::Gelu);
    assert!(far("gpt2", erf) > 10.0 * LIMIT, "the other GELU");
    let scale: fn(&mut GgufModel) = |model| model.config.score_scales[0] *= 1.1;
    assert!(far("qwen3", scale) > 100.0 * LIMIT, "another scale of the scores");
}

#[test]
fn quantised_model_has_the_bits_of_its_values() {
    for name in ["llama-blocks", "qwen2-blocks"] {
        let (_, expected) = found(name);
        let GgufModel { config, checkpoint, .. } =
            GgufModel::open(golden(name, "gguf"), Loading::Mapped).expect("a model");
        let decoded = checkpoint.clone().dequantized();
        assert!(checkpoint.quantized().count() == 8 && decoded.quantized().next().is_none());
        for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
            let mut cpu = Cpu::<f32>::new(dtype);
            let [blocks, numbers] = [&checkpoint, &decoded].map(|checkpoint| {
                let model = Model::new(&mut cpu, &config, checkpoint).expect("a model");
                logits(&model, &mut cpu, &expected)
            });
            assert!(blocks == numbers && blocks.iter().flatten().any(|&x| x != 0.0), "{name}, {dtype}");
            let mut released = checkpoint.clone();
            let loaded = Model::for_generation(&mut cpu, &config, &mut released).expect("a model");
            assert!(logits(&loaded, &mut cpu, &expected) == blocks, "{name}, {dtype}: loaded for generation");
            assert_eq!(released.quantized().count(), 8, "what is in a file is left there");
        }
    }
}

#[test]
fn quantised_head_is_tied_where_it_has_the_tables_values() {
    let GgufModel { config, checkpoint, .. } =
        GgufModel::open(golden("llama-blocks", "gguf"), Loading::Mapped).expect("a model");
    let table = checkpoint.quantized().find(|view| view.name == "model.embed_tokens.weight").expect("a table").clone();
    let head = |change: fn(&mut QuantizedView)| {
        let mut head = QuantizedView { name: "lm_head.weight".to_owned(), ..table.clone() };
        change(&mut head);
        let checkpoint = checkpoint.clone().quantized_as([head], |_| false);
        Source::new(&config, &checkpoint).expect("weights").config.tie_word_embeddings
    };
    assert!(
        config.tie_word_embeddings && Source::new(&config, &checkpoint).expect("weights").config.tie_word_embeddings
    );
    assert!(head(|_| ()), "the same codes");
    assert!(head(|head| *head = head.listed(&(0..29).collect::<Vec<_>>())), "the same rows, named one by one");
    assert!(!head(|head| head.codes = head.codes.iter().rev().copied().collect::<Vec<_>>().into()), "other codes");
    assert!(!head(|head| head.rounding = Some(Dtype::BF16)), "the same codes, rounded");
}

#[test]
fn gguf_adapters_are_those_that_were_written() {
    let mut cpu = Cpu::<f32>::new(Dtype::F32);
    let model = Model::load(&mut cpu, &golden("llama", "gguf")).expect("the model loads");
    let expected = Checkpoint::open(golden("llama", "safetensors")).expect("the expected values");
    let adapter = LoraAdapter::read(golden("lora", "gguf"), &model.config).expect("an adapter");
    assert_eq!(adapter.modules.len(), 6);
    let slots = adapter.config.slots(adapter.family, 2).expect("its modules");
    let order: Vec<_> = adapter.modules.iter().map(|module| (module.layer, module.target, module.r)).collect();
    assert_eq!(slots.blocks.iter().map(|slot| (slot.layer, slot.target, slot.r)).collect::<Vec<_>>(), order);
    let mut far = |adapter: &LoraAdapter, name: &str| {
        let adaptation =
            Adaptation::of_adapters(&mut cpu, &model, std::slice::from_ref(adapter)).expect("an adaptation");
        difference(&adapted_logits(&model, &mut cpu, &expected, Some(&adaptation)), &expected, name)
    };
    assert!(far(&adapter, "adapted") <= LIMIT, "{:.1e} of the largest logit", far(&adapter, "adapted"));
    assert!(far(&adapter, "logits") > 100.0 * LIMIT, "the adapter changes nothing");
    // The mistake of leaving the rows of B as the base's file has them.
    let mut stored = adapter.clone();
    for module in &mut stored.modules {
        let (heads, r) = (module.b.len() / module.r / 8, module.r);
        if module.a.len() == 16 * r && heads < 3 {
            let row = |row: usize| (row / 8) * 8 + (row % 2) * 4 + row % 8 / 2;
            module.b = (0..8 * heads).flat_map(|at| adapter_row(&module.b, row(at), r)).collect();
        }
    }
    assert!(far(&stored, "adapted") > 100.0 * LIMIT, "rows of B in the order of the file");
}

fn adapter_row(b: &[f32], row: usize, r: usize) -> Vec<f32> {
    b[row * r..(row + 1) * r].to_vec()
}
