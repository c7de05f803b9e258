//! Checkpoints of bitsandbytes against transformers on the values that it decodes: `golden/bnb_models.py`.

use std::path::PathBuf;

use llamaprobe::arch::{Dtype, ModelConfig};
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::formats::bitsandbytes;
use llamaprobe::formats::quantized::{QuantizedView, ScalesView};
use llamaprobe::formats::safetensors::Checkpoint;
use llamaprobe::model::quantize::{self, QuantizeTo};
use llamaprobe::model::{Model, Source};

use crate::gguf::{difference, logits};
use crate::support;

/// Largest difference allowed, as a share of the largest logit: less than three times what is measured (8e-7).
const LIMIT: f64 = 2e-6;

fn golden(name: &str) -> PathBuf {
    support::golden(&format!("bnb/{name}"))
}

fn opened(name: &str) -> (ModelConfig, Checkpoint) {
    let config = ModelConfig::load(golden(name)).expect("the configuration loads");
    let checkpoint = Checkpoint::open(golden(name).join("model.safetensors")).expect("the weights open");
    (config, bitsandbytes::quantized(checkpoint).expect("quantised weights"))
}

/// How far the logits of a checkpoint's values are from those of transformers under a name.
fn far(config: &ModelConfig, checkpoint: Checkpoint, of: &str, name: &str) -> f64 {
    let mut cpu = Cpu::<f32>::new(Dtype::F32);
    let model = Model::new(&mut cpu, config, &checkpoint.dequantized()).expect("a model");
    let expected = Checkpoint::open(golden(of).join("expected.safetensors")).expect("the expected values");
    difference(&logits(&model, &mut cpu, &expected), &expected, name)
}

#[test]
fn bitsandbytes_logits_are_transformers() {
    for name in ["llama-nf4", "llama-nested", "gpt2-nf4", "llama-int8"] {
        let (config, checkpoint) = opened(name);
        let modules = if name == "gpt2-nf4" { 4 } else { 7 };
        assert_eq!(checkpoint.quantized().count(), modules, "{name}");
        let (close, exact) =
            (far(&config, checkpoint.clone(), name, "logits"), far(&config, checkpoint, name, "exact"));
        println!("{name}: {close:.1e} of the largest logit, limit {LIMIT:.0e}; quantisation itself {exact:.1e}");
        assert!(close <= LIMIT, "{name}: {close:.1e} of the largest logit, limit {LIMIT:.0e}");
        assert!(exact > 100.0 * LIMIT, "{name}: the weights before they were quantised would pass");
    }
}

#[test]
fn bitsandbytes_limits_see_small_mistakes() {
    let (config, checkpoint) = opened("llama-nested");
    let change = |change: fn(&mut QuantizedView)| {
        let views: Vec<QuantizedView> = checkpoint.quantized().cloned().collect();
        let changed = views.into_iter().map(|mut view| {
            change(&mut view);
            view
        });
        far(&config, checkpoint.clone().quantized_as(changed, |_| false), "llama-nested", "logits")
    };
    let without_offset = change(|view| {
        let ScalesView::Nested { offset, .. } = &mut view.scales else { panic!("nested") };
        *offset *= 1.001;
    });
    assert!(without_offset > 10.0 * LIMIT, "an offset a thousandth larger");
    let rounded = change(|view| view.rounding = Some(Dtype::BF16));
    assert!(rounded > 100.0 * LIMIT, "values rounded to bfloat16");
}

#[test]
fn quantised_while_loading_is_what_bitsandbytes_makes() {
    for (name, to) in [("llama-nf4", QuantizeTo::Nf4), ("gpt2-nf4", QuantizeTo::Nf4), ("llama-int8", QuantizeTo::Int8)]
    {
        let (config, expected) = opened(name);
        let base = Checkpoint::open(golden(name).join("base/model.safetensors")).expect("the weights open");
        let source = Source::new(&config, &base).expect("the model's weights");
        let found = quantize::quantized(&source, to).expect("quantised");
        assert_eq!(found.quantized().count(), expected.quantized().count(), "{name}");
        for (a, b) in found.quantized().zip(expected.quantized()) {
            assert_eq!((&a.name, a.format, a.shape, a.rounding), (&b.name, b.format, b.shape, b.rounding));
            assert!(a.codes[..] == b.codes[..], "{name}: {}", a.name);
            let (ScalesView::Absmax(x), ScalesView::Absmax(y)) = (&a.scales, &b.scales) else { panic!("scales") };
            assert_eq!(x.as_slice(), y.as_slice(), "{name}: {}", a.name);
        }
        let error = quantize::quantized(&Source::new(&config, &expected).expect("weights"), to).expect_err("again");
        assert!(error.to_string().contains("expected numbers, which this needs"), "{error}");
    }
}
