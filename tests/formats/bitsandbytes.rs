//! Checkpoints of bitsandbytes that are damaged, or say what is not decoded.

use std::collections::BTreeMap;

use llamaprobe::arch::{self, ModelConfig};
use llamaprobe::formats::quantized::{Floats, QuantizedView, ScalesView};
use llamaprobe::formats::safetensors::{Bytes, Checkpoint, Dtype, Tensor, TensorView, write};
use llamaprobe::formats::{bitsandbytes, prequantized};
use llamaprobe::model::param_id::Source;
use llamaprobe::model::quantize::{self, QuantizeTo};

use crate::support::{golden, temp};

const DOWN: &str = "model.layers.0.mlp.down_proj";

/// The tensors of a file: dtype, shape, bytes.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn tensors(name: &str) -> Tensors {
    let file = Checkpoint::open(golden(&format!("bnb/{name}/model.safetensors"))).expect("the golden file");
    file.iter().map(|view| (view.name, (view.dtype, view.shape, view.data.to_vec()))).collect()
}

/// The error of a file with its tensors changed.
fn refused(name: &str, change: impl Fn(&mut Tensors)) -> String {
    let mut all = tensors(name);
    change(&mut all);
    let dir = temp();
    let path = dir.path().join("model.safetensors");
    let list: Vec<_> =
        all.iter().map(|(name, (dtype, shape, data))| Tensor { name, dtype: *dtype, shape, data }).collect();
    write(&path, &list, &[("format", "pt")]).expect("writes");
    let opened = Checkpoint::open(&path).expect("a file");
    let error = bitsandbytes::quantized(opened).expect_err("refused").to_string();
    assert!(error.contains("model.safetensors") && error.contains("down_proj") && !error.contains('\n'), "{error}");
    error
}

/// The description of the weight with another text in place of one.
fn described(all: &mut Tensors, from: &str, to: &str) {
    let (_, shape, data) = all.get_mut(&format!("{DOWN}.weight.quant_state.bitsandbytes__nf4")).expect("the state");
    let text = String::from_utf8(data.clone()).expect("JSON");
    assert!(text.contains(from), "{text}");
    *data = text.replace(from, to).into_bytes();
    *shape = vec![data.len()];
}

#[test]
fn bitsandbytes_parts_that_do_not_fit_are_refused_by_name() {
    let cut = |end: &'static str| {
        move |all: &mut Tensors| {
            let (dtype, shape, data) = all.get_mut(&format!("{DOWN}{end}")).expect(end);
            let size = if *dtype == Dtype::F32 { 4 } else { 1 };
            data.truncate(data.len() - size);
            *shape = vec![data.len() / size];
        }
    };
    let gone = |end: &'static str| move |all: &mut Tensors| drop(all.remove(&format!("{DOWN}{end}")).expect(end));
    let says = |from: &'static str, to: &'static str| move |all: &mut Tensors| described(all, from, to);
    let nested = "llama-nested";
    for (error, words) in [
        (refused(nested, gone(".weight")), "down_proj.weight: expected the codes, found no such tensor"),
        (refused(nested, gone(".weight.absmax")), "weight.absmax: expected a tensor of U8, found none"),
        (refused(nested, gone(".weight.nested_absmax")), "weight.nested_absmax: expected a tensor of F32, found none"),
        (refused(nested, gone(".weight.quant_map")), "weight.quant_map: expected a tensor of F32, found none"),
        (refused(nested, cut(".weight")), "weight.codes: expected 240, found 239"),
        (refused(nested, cut(".weight.absmax")), "weight.absmax: expected 8, found 7"),
        (refused(nested, cut(".weight.nested_absmax")), "weight.nested_absmax: expected 1, found 0"),
        (refused(nested, cut(".weight.nested_quant_map")), "nested_quant_map: expected 256 values, found 255"),
        (refused(nested, cut(".weight.quant_map")), "weight.quant_map: expected the 16 values of NF4"),
        (refused(nested, says("\"nf4\"", "\"fp4\"")), "quant_type: expected nf4"),
        (refused(nested, says("64", "48")), "weight.blocksize: expected a power of two, found 48"),
        (refused(nested, says("64", "-1")), "blocksize: expected"),
        (refused(nested, says("[24, 20]", "[24, 21]")), "weight.codes: expected 252, found 240"),
        (refused(nested, says("[24, 20]", "[480]")), "shape: expected two numbers"),
        (refused(nested, says("[24, 20]", "[9223372036854775807, 8]")), "weight.shape: expected fewer elements"),
        (refused(nested, says("\"dtype\": \"float32\"", "\"dtype\": \"float8\"")), "dtype: expected float32, bfloat16"),
        (refused(nested, says("{", "{{")), "nf4"),
        (
            refused(nested, says("nested_offset", "another_offset")),
            "weight.nested_absmax: expected no such tensor, beside a quant_state without nested_offset",
        ),
        (refused("llama-int8", gone(".SCB")), "down_proj.SCB: expected a tensor of F32, found none"),
        (refused("llama-nf4", cut(".weight.absmax")), "weight.absmax: expected 8, found 7"),
        (refused("llama-int8", gone(".weight")), "down_proj.weight: expected a tensor of I8, found none"),
        (refused("llama-int8", cut(".SCB")), "weight.absmax: expected 24, found 23"),
        (
            refused("llama-int8", |all| all.get_mut(&format!("{DOWN}.weight_format")).expect("a format").2 = vec![1]),
            "weight_format: expected 0, rows one after another, found [1]",
        ),
        (
            refused("llama-nf4", |all| {
                let state = all.remove(&format!("{DOWN}.weight.quant_state.bitsandbytes__nf4")).expect("the state");
                all.insert(format!("{DOWN}.weight.quant_state.bitsandbytes__fp4"), state);
            }),
            "quant_type is not supported: fp4; supported: nf4",
        ),
    ] {
        assert!(error.contains(words), "{words}: {error}");
    }
}

#[test]
fn bitsandbytes_configurations_of_other_methods_are_refused() {
    let text = std::fs::read_to_string(golden("bnb/llama-nf4/config.json")).expect("the golden file");
    let with = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        ModelConfig::parse("config.json", &text.replace(from, to)).map(drop)
    };
    with("\"bitsandbytes\"", "\"bitsandbytes\"").expect("a configuration");
    for (from, to, words) in [
        ("\"bitsandbytes\"", "\"gptq\"", "quantization_config.quant_method is not supported: gptq"),
        ("\"nf4\"", "\"fp4\"", "bnb_4bit_quant_type is not supported: fp4"),
    ] {
        let error = with(from, to).expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn bitsandbytes_tensors_must_be_what_the_configuration_says_of_them() {
    let dir = temp();
    let opened = |name: &str, from: &str, to: &str| {
        let text = std::fs::read_to_string(golden(&format!("bnb/{name}/config.json"))).expect("the golden file");
        assert!(text.contains(from), "{from}");
        std::fs::write(dir.path().join("config.json"), text.replace(from, to)).expect("writes");
        let checkpoint = Checkpoint::open(golden(&format!("bnb/{name}/model.safetensors"))).expect("a file");
        prequantized::quantized_model(dir.path(), checkpoint).map(drop)
    };
    let [four, eight] = ["\"load_in_4bit\": ", "\"load_in_8bit\": "];
    for name in ["llama-nf4", "llama-nested", "llama-int8", "gpt2-nf4"] {
        opened(name, "{", "{").unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    for (name, key, from, to, words) in [
        ("llama-nf4", four, "true", "false", "quantization_config.load_in_4bit: expected true, as model.layers.0"),
        ("llama-nf4", eight, "false", "true", "quantization_config.load_in_8bit: expected false, as no weight"),
        ("llama-int8", eight, "true", "false", "quantization_config.load_in_8bit: expected true, as model.layers.0"),
        ("llama-int8", four, "false", "true", "quantization_config.load_in_4bit: expected false, as no weight"),
    ] {
        let error = opened(name, &format!("{key}{from}"), &format!("{key}{to}")).expect_err(words).to_string();
        assert!(error.contains("config.json: ") && error.contains(words), "{words}: {error}");
    }
}

#[test]
fn fingerprints_tell_the_scales_of_quantised_weights_and_their_rounding() {
    let file = Checkpoint::open(golden("bnb/llama-nested/model.safetensors")).expect("the golden file");
    let file = bitsandbytes::quantized(file).expect("quantised weights");
    let first = file.quantized().next().expect("a quantised weight").clone();
    let ScalesView::Nested { codes, map, absmax, offset, block } = first.scales.clone() else { panic!("nested") };
    let scales = |codes: &Bytes, absmax: &Floats, offset: f32| ScalesView::Nested {
        codes: codes.clone(),
        map: map.clone(),
        absmax: absmax.clone(),
        offset,
        block,
    };
    let moved = Floats::from(absmax.as_slice().iter().map(|x| x + 1.0).collect::<Vec<_>>());
    let other = Bytes::from(codes.iter().map(|code| code ^ 1).collect::<Vec<_>>());
    let rows: Vec<u32> = (0..first.shape[0] as u32).rev().collect();
    let with = |scales| QuantizedView { scales, ..first.clone() };
    let views = [
        first.clone(),
        with(scales(&other, &absmax, offset)),
        with(scales(&codes, &moved, offset)),
        with(scales(&codes, &absmax, offset + 1.0)),
        QuantizedView { rounding: Some(arch::Dtype::BF16), ..first.clone() },
        first.listed(&rows),
    ];
    let prints = views.map(|view| file.clone().quantized_as([view], |_| false).fingerprint());
    assert_eq!(prints[0], file.fingerprint());
    for (i, print) in prints.iter().enumerate() {
        assert!(!prints[..i].contains(print), "{i}");
    }
}

#[test]
fn weights_beyond_the_range_of_f16_are_not_quantised_to_int8() {
    let base = golden("bnb/llama-int8/base");
    let config = ModelConfig::load(&base).expect("a configuration");
    let file = Checkpoint::open(&base).expect("a file");
    let name = format!("{DOWN}.weight");
    let view = file.get(&name).expect("the weight");
    let quantized = |largest: f32, to| {
        let mut values = view.to_f32().expect("numbers");
        values[7] = -largest;
        let data = Bytes::from(values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>());
        let file = file.clone().with([TensorView { dtype: Dtype::F32, data, ..view.clone() }]);
        quantize::quantized(&Source::new(&config, &file)?, to).map(drop)
    };
    quantized(65504.0, QuantizeTo::Int8).expect("quantised");
    quantized(1e6, QuantizeTo::Nf4).expect("quantised");
    let error = quantized(1e6, QuantizeTo::Int8).expect_err("refused").to_string();
    let words = format!("{name}: expected magnitudes up to 65504, for int8, found 1000000");
    assert!(error.contains("model.safetensors") && error.contains(&words), "{error}");
}
