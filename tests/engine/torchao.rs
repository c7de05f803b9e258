//! Checkpoints of torchao against transformers on the values that it decodes: `golden/torchao_models.py`.

use llamaprobe::arch::{Dtype, ModelConfig};
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::formats::prequantized;
use llamaprobe::formats::quantized::{Floats, QuantizedView, ScalesView};
use llamaprobe::formats::safetensors::Checkpoint;
use llamaprobe::model::Model;

use crate::gguf::{difference, logits};
use crate::support::golden;

/// Largest difference allowed, as a share of the largest logit: less than three times what is measured (9e-7).
const LIMIT: f64 = 2e-6;

/// The model, and what the script computed.
fn opened(name: &str) -> (ModelConfig, Checkpoint, Checkpoint) {
    let dir = golden(&format!("torchao/{name}"));
    let checkpoint = Checkpoint::open(&dir).expect("the weights open");
    let checkpoint = prequantized::quantized_model(&dir, checkpoint).expect("quantised weights");
    let expected = Checkpoint::open(dir.join("expected.safetensors")).expect("the expected values");
    (ModelConfig::load(&dir).expect("the configuration loads"), checkpoint, expected)
}

#[test]
fn torchao_logits_are_transformers() {
    for (name, matrices) in [("llama", 7), ("llama-head", 8), ("opt", 6), ("gpt2", 0)] {
        let (config, checkpoint, expected) = opened(name);
        assert_eq!(checkpoint.quantized().count(), matrices, "{name}");
        let mut cpu = Cpu::<f32>::new(Dtype::F32);
        let model = Model::new(&mut cpu, &config, &checkpoint).expect("a model");
        let found = logits(&model, &mut cpu, &expected);
        let (close, exact) = (difference(&found, &expected, "logits"), difference(&found, &expected, "exact"));
        println!("{name}: {close:.1e} of the largest logit, limit {LIMIT:.0e}; quantisation itself {exact:.1e}");
        assert!(close <= LIMIT, "{name}: {close:.1e} of the largest logit, limit {LIMIT:.0e}");
        assert!(matrices == 0 || exact > 100.0 * LIMIT, "{name}: the weights before they were quantised would pass");
    }
}

#[test]
fn torchao_values_have_its_bits() {
    for name in ["llama", "llama-head", "opt"] {
        let (_, checkpoint, expected) = opened(name);
        for view in checkpoint.quantized() {
            let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            let every_fifth = |view: &QuantizedView| view.to_f32().into_iter().step_by(5).collect::<Vec<_>>();
            let values = expected.get(&view.name).expect("its values").to_f32().expect("floats");
            assert_eq!(bits(&every_fifth(view)), bits(&values), "{name}: {}", view.name);
            let ScalesView::Factor(scales) = &view.scales else { panic!("factors") };
            let moved = Floats::from(scales.as_slice().iter().map(|x| x.next_up()).collect::<Vec<_>>());
            let other = match view.rounding {
                None => QuantizedView { scales: ScalesView::Factor(moved), ..view.clone() },
                Some(_) => QuantizedView { rounding: None, ..view.clone() },
            };
            assert_ne!(bits(&every_fifth(&other)), bits(&values), "{name}: {} by another rule", view.name);
        }
    }
}

#[test]
fn torchao_weights_have_the_bits_of_their_values_in_every_dtype() {
    for name in ["llama", "llama-head", "opt"] {
        let (config, checkpoint, expected) = opened(name);
        for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
            let mut cpu = Cpu::<f32>::new(dtype);
            let [codes, values] = [checkpoint.clone(), checkpoint.clone().dequantized()].map(|checkpoint| {
                let model = Model::new(&mut cpu, &config, &checkpoint).expect("a model");
                logits(&model, &mut cpu, &expected)
            });
            assert!(codes == values && codes.iter().flatten().any(|&x| x != 0.0), "{name}: {dtype}");
        }
    }
}
