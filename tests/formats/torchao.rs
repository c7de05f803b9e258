//! Checkpoints of torchao that are damaged, or say what is not decoded.

use std::collections::BTreeMap;

use llamaprobe::arch::ModelConfig;
use llamaprobe::formats::safetensors::{Checkpoint, Dtype, Tensor, write};
use llamaprobe::formats::torchao;

use crate::support::{golden, temp};

const DOWN: &str = "model.layers.0.mlp.down_proj";

/// The tensors of a file, dtype, shape and bytes, and its metadata.
struct File {
    tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
    metadata: BTreeMap<String, String>,
}

impl File {
    fn part(&mut self, end: &str) -> &mut (Dtype, Vec<usize>, Vec<u8>) {
        self.tensors.get_mut(&format!("{DOWN}._weight_{end}")).expect(end)
    }
}

/// The error of the golden file with a change.
fn refused(change: impl FnOnce(&mut File)) -> String {
    let file = Checkpoint::open(golden("torchao/llama")).expect("the golden file");
    let tensors = file.iter().map(|view| (view.name, (view.dtype, view.shape, view.data.to_vec()))).collect();
    let mut file = File { tensors, metadata: file.metadata().clone() };
    change(&mut file);
    let dir = temp();
    let path = dir.path().join("model.safetensors");
    let list: Vec<_> =
        file.tensors.iter().map(|(name, (dtype, shape, data))| Tensor { name, dtype: *dtype, shape, data }).collect();
    let metadata: Vec<_> = file.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    write(&path, &list, &metadata).expect("writes");
    let error = torchao::quantized(Checkpoint::open(&path).expect("a file")).expect_err("refused").to_string();
    assert!(error.contains("model.safetensors") && error.contains("down_proj") && !error.contains('\n'), "{error}");
    error
}

#[test]
fn torchao_parts_that_do_not_fit_are_refused_by_name() {
    let says = |from: &'static str, to: &'static str| {
        move |file: &mut File| {
            let text = file.metadata.get_mut(&format!("{DOWN}.weight")).expect("a description");
            assert!(text.contains(from), "{text}");
            *text = text.replace(from, to);
        }
    };
    let gone = |end: &'static str| {
        move |file: &mut File| drop(file.tensors.remove(&format!("{DOWN}._weight_{end}")).expect(end))
    };
    let shaped = |end: &'static str, shape: &'static [usize]| move |file: &mut File| file.part(end).1 = shape.to_vec();
    for (error, words) in [
        (
            refused(|file| drop(file.metadata.remove(&format!("{DOWN}.weight")))),
            "__metadata__.model.layers.0.mlp.down_proj.weight: expected what its codes mean, found nothing",
        ),
        (refused(says("{\"_type\"", "{{\"_type\"")), "down_proj.weight"),
        (refused(says("Int8Tensor", "Int4Tensor")), "_type: expected Int8Tensor, found \"Int4Tensor\""),
        (refused(says("Int8Tensor", "Float8Tensor")), "_type: expected Int8Tensor, found \"Float8Tensor\""),
        (
            refused(says("\"act_quant_kwargs\": null", "\"act_quant_kwargs\": {\"reduce_range\": false}")),
            "_data.act_quant_kwargs: expected null (activations that are quantised are not computed), found {",
        ),
        (
            refused(says("\"qdata\", ", "\"qdata\", \"act_pre_scale\", ")),
            "_tensor_data_names: expected qdata, scale, zero_point alone, found [",
        ),
        (refused(says("[1, 20]", "[1, 10]")), "_data.block_size: expected [1, 20], one scale a row, found [1,10]"),
        (refused(says("[1, 20]", "[24, 20]")), "_data.block_size: expected [1, 20], one scale a row, found [24,20]"),
        (refused(says("bfloat16", "float64")), "_data.dtype._data: expected float32, bfloat16 or float16"),
        (refused(gone("scale")), "_weight_scale: expected a tensor of F32 or BF16 or F16, found none"),
        (refused(gone("zero_point")), "_weight_zero_point: expected a tensor of I8, found none"),
        (refused(shaped("scale", &[1, 24])), "_weight_scale: expected shape [24, 1], found [1, 24]"),
        (refused(shaped("qdata", &[2, 12, 20])), "_weight_qdata: expected a matrix, found [2, 12, 20]"),
        (refused(|file| file.part("qdata").0 = Dtype::U8), "_weight_qdata: expected a tensor of I8, found U8"),
        (refused(|file| file.part("zero_point").2[3] = 255), "_weight_zero_point: expected zeros, found -1"),
    ] {
        assert!(error.contains(words), "{words}: {error}");
    }
}

#[test]
fn torchao_configurations_of_other_formats_are_refused() {
    let text = std::fs::read_to_string(golden("torchao/llama/config.json")).expect("the golden file");
    let with = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        ModelConfig::parse("config.json", &text.replace(from, to)).map(drop)
    };
    with("{", "{").expect("a configuration");
    for (from, to, words) in [
        ("Int8WeightOnlyConfig", "Int4WeightOnlyConfig", "default._type: expected Int8WeightOnlyConfig, found \"Int4"),
        ("Int8WeightOnlyConfig", "Float8WeightOnlyConfig", "default._type: expected Int8WeightOnlyConfig, found"),
        (
            "Int8WeightOnlyConfig",
            "Int8DynamicActivationInt8WeightConfig",
            "default._type: expected Int8WeightOnlyConfig",
        ),
        ("PerRow", "PerGroup", "default._data.granularity._type: expected PerRow, found \"PerGroup\""),
        (
            "\"group_size\": null",
            "\"group_size\": 32",
            "default._data.group_size: expected null, one scale a row, found 32",
        ),
        ("\"default\"", "\"other\"", "quant_type.default: expected an object, found nothing"),
        ("\"quant_type\"", "\"quant\"", "quant_type: expected an object, as torchao 0.18 has it, found nothing"),
    ] {
        let error = with(from, to).expect_err(words).to_string();
        assert!(error.starts_with("config.json: quantization_config.quant_type") && error.contains(words), "{error}");
    }
}
