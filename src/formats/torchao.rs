//! The int8 weights of torchao checkpoints (`Int8WeightOnlyConfig`), as transformers 5 saves them.
//!
//! A weight `X.weight` is the tensors `X._weight_qdata` (I8, `[output, input]`), `X._weight_scale` (`[output, 1]`) and
//! `X._weight_zero_point` (zeros); what they mean stands in the file's metadata under `X.weight`, as JSON. A value is a code
//! times its row's scale in f32, rounded to the dtype that the weight had: `Int8Tensor.dequantize` of torchao 0.18. Every
//! other tensor class of torchao is refused by its name.

use std::collections::BTreeSet;

use super::json::{self, Fields};
use super::quantized::{Floats, QuantizedView, RowOrderView, ScalesView};
use super::safetensors::{Checkpoint, Dtype, TensorView};
use crate::quantization::BlockFormat;
use crate::{Error, Result, arch};

const CODES: &str = "qdata";
const SCALES: &str = "scale";
const ZERO_POINTS: &str = "zero_point";

/// A checkpoint with its quantised weights as such; one without any is itself.
///
/// # Errors
/// Codes without a description, or with one of another class than `Int8Tensor`, of quantised activations or of scales that are
/// not one a row; a part that is missing or has another dtype or shape; zero points other than zero.
pub fn quantized(checkpoint: Checkpoint) -> Result<Checkpoint> {
    let weights: Vec<String> = checkpoint.names().filter_map(weight_of).collect();
    let mut parts = BTreeSet::new();
    let view = |weight: String| int8(&checkpoint, weight, &mut parts);
    let views: Vec<QuantizedView> = weights.into_iter().map(view).collect::<Result<_>>()?;
    Ok(checkpoint.quantized_as(views, |name| parts.contains(name)))
}

/// The weight whose codes a tensor is.
fn weight_of(name: &str) -> Option<String> {
    let (module, part) = name.rsplit_once('.')?;
    let weight = part.strip_prefix('_')?.strip_suffix(CODES)?.strip_suffix('_')?;
    Some(format!("{module}.{weight}"))
}

/// The name of the tensor that is a part of a weight.
fn part_of(weight: &str, part: &str) -> String {
    let (module, own) = weight.rsplit_once('.').unwrap_or(("", weight));
    format!("{module}._{own}_{part}")
}

/// The weight that the metadata describe, and the names of its tensors among `parts`.
fn int8(checkpoint: &Checkpoint, weight: String, parts: &mut BTreeSet<String>) -> Result<QuantizedView> {
    let path = checkpoint.path().join(&weight);
    let Some(text) = checkpoint.metadata().get(&weight) else {
        return Err(Error::field(
            checkpoint.path(),
            format!("__metadata__.{weight}"),
            "what its codes mean",
            "nothing",
        ));
    };
    let value = json::parse(&path, text)?;
    let f = Fields::new(&path, &value)?;
    if f.str("_type")? != Some("Int8Tensor") {
        return Err(f.error("_type", "Int8Tensor"));
    }
    let data = f.require("_data", f.object("_data")?, "an object")?;
    if data.get("act_quant_kwargs").is_some() {
        return Err(data.error("act_quant_kwargs", "null (activations that are quantised are not computed)"));
    }
    let names = f.require("_tensor_data_names", f.list("_tensor_data_names")?, "a list")?;
    let known = [CODES, SCALES, ZERO_POINTS];
    if !names.iter().all(|name| name.as_str().is_some_and(|name| known.contains(&name))) {
        return Err(f.error("_tensor_data_names", format!("{} alone", known.join(", "))));
    }
    let mut part = |part: &str, dtypes: &[Dtype]| {
        let name = part_of(&weight, part);
        let view = tensor(checkpoint, &name, dtypes)?;
        parts.insert(name);
        Ok::<_, Error>(view)
    };
    let codes = part(CODES, &[Dtype::I8])?;
    let found = format!("{:?}", codes.shape);
    let shape: [usize; 2] =
        codes.shape.try_into().map_err(|_| Error::field(checkpoint.path(), &codes.name, "a matrix", found))?;
    let block = data.require("block_size", data.list("block_size")?, "a list")?;
    if block != [serde_json::Value::from(1), shape[1].into()] {
        return Err(data.error("block_size", format!("[1, {}], one scale a row", shape[1])));
    }
    let scales = part(SCALES, &[Dtype::F32, Dtype::BF16, Dtype::F16])?;
    if scales.shape != [shape[0], 1] {
        let (expected, found) = (format!("shape [{}, 1]", shape[0]), format!("{:?}", scales.shape));
        return Err(Error::field(checkpoint.path(), &scales.name, expected, found));
    }
    if names.iter().any(|name| name == ZERO_POINTS) {
        let zeros = part(ZERO_POINTS, &[Dtype::I8])?;
        if let Some(other) = zeros.data.iter().find(|&&code| code != 0) {
            return Err(Error::field(checkpoint.path(), &zeros.name, "zeros", other.cast_signed().to_string()));
        }
    }
    let dtype = data.require("dtype", data.object("dtype")?, "an object")?;
    let rounding = match dtype.str("_data")? {
        Some("float32") => None,
        Some("bfloat16") => Some(arch::Dtype::BF16),
        Some("float16") => Some(arch::Dtype::F16),
        _ => return Err(dtype.error("_data", "float32, bfloat16 or float16")),
    };
    Ok(QuantizedView {
        name: weight,
        format: BlockFormat::Int8Rows,
        shape,
        stored_rows: shape[0],
        codes: codes.data,
        scales: ScalesView::Factor(Floats::from(scales.to_f32().map_err(Error::file(checkpoint.path()))?)),
        order: RowOrderView::From(0),
        rounding,
    })
}

/// A tensor that must be there in one of these dtypes.
fn tensor(checkpoint: &Checkpoint, name: &str, dtypes: &[Dtype]) -> Result<TensorView> {
    let expected = || dtypes.iter().map(Dtype::to_string).collect::<Vec<_>>().join(" or ");
    let error = |found: &str| Error::field(checkpoint.path(), name, format!("a tensor of {}", expected()), found);
    let view = checkpoint.get(name).ok_or_else(|| error("none"))?;
    if dtypes.contains(&view.dtype) { Ok(view) } else { Err(error(&view.dtype.to_string())) }
}

/// Checks what a `quantization_config` of the method `torchao` says.
///
/// # Errors
/// Anything but int8 weights with one scale a row.
pub(super) fn check_config(config: &Fields) -> Result<()> {
    let by_module = config.require("quant_type", config.object("quant_type")?, "an object, as torchao 0.18 has it")?;
    let default = by_module.require("default", by_module.object("default")?, "an object")?;
    if default.str("_type")? != Some("Int8WeightOnlyConfig") {
        return Err(default.error("_type", "Int8WeightOnlyConfig"));
    }
    let Some(data) = default.object("_data")? else { return Ok(()) };
    if data.get("group_size").is_some() {
        return Err(data.error("group_size", "null, one scale a row"));
    }
    let Some(granularity) = data.object("granularity")? else { return Ok(()) };
    match granularity.str("_type")? {
        Some("PerRow") => Ok(()),
        _ => Err(granularity.error("_type", "PerRow")),
    }
}
