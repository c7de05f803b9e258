//! GGUF files that are written, against those that llama.cpp's converter makes: `golden/gguf_written.py`.

use std::path::Path;

use llamaprobe::arch::{Activation, Dtype, Mlp, ModelConfig, Positions, RopeKind};
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::formats::gguf::Gguf;
use llamaprobe::formats::quantized::WeightView;
use llamaprobe::formats::safetensors::Checkpoint;
use llamaprobe::model::quantize::gguf::{Plan, Written};
use llamaprobe::model::{Model, Source};

use crate::gguf::{difference, logits};
use crate::support::{golden, temp};

/// Largest difference allowed, as a share of the largest logit: less than three times what is measured (9e-7).
const LIMIT: f64 = 2e-6;

/// Writes the file of a golden model.
fn write(name: &str, to: &Path) -> Written {
    let dir = golden(&format!("gguf_written/{name}"));
    let config = ModelConfig::load(&dir).expect("the configuration loads");
    let checkpoint = Checkpoint::open(dir.join("model.safetensors")).expect("the weights open");
    let source = Source::new(&config, &checkpoint).expect("the model's weights");
    let plan = Plan::new(&source, None, name, to).expect("a plan");
    let mut seen = 0;
    let written = plan.write(to, || seen += 1).expect("a file");
    assert_eq!(seen, plan.len());
    written
}

fn bytes(view: WeightView) -> Vec<u8> {
    match view {
        WeightView::Plain(view) => view.data.to_vec(),
        WeightView::Quantized(view) => view.codes.to_vec(),
    }
}

#[test]
fn gguf_files_have_the_bytes_and_keys_of_the_converters() {
    let dir = temp();
    for (name, matrices) in [("llama", 8), ("llama3", 7), ("mistral", 8), ("qwen2", 7), ("qwen3", 8), ("gpt2", 5)] {
        let path = dir.path().join(format!("{name}.gguf"));
        let written = write(name, &path);
        // A row of 40 is no whole blocks.
        let halves = usize::from(name != "gpt2");
        assert_eq!((written.matrices, written.halves), (matrices, halves), "{name}");
        let [found, expected] =
            [path, golden(&format!("gguf_written/{name}.gguf"))].map(|path| Gguf::read(path).expect("a file"));
        for (key, value) in &expected.metadata {
            assert_eq!(found.metadata.get(key), Some(value), "{name}: {key}");
        }
        let more: Vec<_> = found.metadata.keys().filter(|key| !expected.metadata.contains_key(*key)).collect();
        assert!(more.iter().all(|key| key.contains("yarn_beta") || key.ends_with("_length")), "{name}: {more:?}");
        assert_eq!(found.entries.keys().collect::<Vec<_>>(), expected.entries.keys().collect::<Vec<_>>(), "{name}");
        for (tensor, entry) in &expected.entries {
            let own = &found.entries[tensor];
            assert_eq!((own.kind, &own.dims), (entry.kind, &entry.dims), "{name}: {tensor}");
            if tensor == "rope_freqs.weight" {
                let [own, other] = [&found, &expected].map(|file| file.floats(tensor).expect("floats").values);
                assert!(own.iter().zip(&other).all(|(a, b)| (a - b).abs() <= 1e-6 * b), "{own:?} {other:?}");
                continue;
            }
            let [own, other] = [&found, &expected].map(|file| bytes(file.tensor(tensor).expect("a tensor")));
            assert!(own == other, "{name}: {tensor}");
        }
    }
}

#[test]
fn gguf_files_that_are_written_give_the_logits_of_their_values() {
    let dir = temp();
    let mut cpu = Cpu::<f32>::new(Dtype::F32);
    for name in ["llama", "llama3", "mistral", "qwen2", "qwen3", "gpt2"] {
        let path = dir.path().join(format!("{name}.gguf"));
        write(name, &path);
        let base = golden(&format!("gguf_written/{name}"));
        let expected = Checkpoint::open(base.join("expected.safetensors")).expect("the expected values");
        let mut far = |path: &Path| {
            let model = Model::load(&mut cpu, path).expect("the model loads");
            difference(&logits(&model, &mut cpu, &expected), &expected, "logits")
        };
        let (close, exact) = (far(&path), far(&base));
        println!("{name}: {close:.1e} of the largest logit, limit {LIMIT:.0e}; quantisation itself {exact:.1e}");
        assert!(close <= LIMIT, "{name}: {close:.1e} of the largest logit, limit {LIMIT:.0e}");
        assert!(exact > 100.0 * LIMIT, "{name}: the weights before they were quantised would pass");
    }
}

#[test]
fn models_that_a_gguf_file_cannot_say_are_refused() {
    let dir = temp();
    let path = dir.path().join("model.gguf");
    let base = golden("gguf_written/llama");
    let checkpoint = Checkpoint::open(base.join("model.safetensors")).expect("the weights open");
    let refused = |change: fn(&mut ModelConfig)| {
        let mut config = ModelConfig::load(&base).expect("a configuration");
        change(&mut config);
        let source = Source::new(&config, &checkpoint).expect("the model's weights");
        Plan::new(&source, None, "llama", &path).map(drop).expect_err("refused").to_string()
    };
    let rope: fn(&mut ModelConfig) = |config| {
        let Positions::Rope(ropes) = &mut config.positions else { panic!("a rotation") };
        ropes.iter_mut().for_each(|rope| rope.kind = RopeKind::Dynamic { factor: 2.0, original: 16 });
    };
    let relu: fn(&mut ModelConfig) = |config| config.mlp = Mlp::Gated(Activation::Relu);
    for (change, words) in [
        (relu, "hidden_act in a GGUF file is not supported: Gated(Relu); supported: Gated(Silu)"),
        (|config| config.score_scales[0] *= 1.1, "scale in a GGUF file is not supported"),
        (rope, "rope_parameters in a GGUF file is not supported: 10000 8 Dynamic"),
    ] {
        let error = refused(change);
        assert!(error.contains(words), "{words}: {error}");
    }
    let gemma = golden("model-gemma2");
    let config = ModelConfig::load(&gemma).expect("a configuration");
    let checkpoint = Checkpoint::open(gemma.join("model.safetensors")).expect("the weights open");
    let source = Source::new(&config, &checkpoint).expect("the model's weights");
    let error = Plan::new(&source, None, "gemma", &path).map(drop).expect_err("refused").to_string();
    let words = "model_type in a GGUF file is not supported: gemma2; supported: llama, mistral, qwen2, qwen3, gpt2";
    assert!(error.contains(words), "{error}");
    assert!(!path.exists());
}
