//! The quantised weights of bitsandbytes checkpoints, as transformers saves them, read and [written](write()).
//!
//! NF4: beside `X.weight` (two codes a byte) `X.weight.absmax`, `X.weight.quant_map`, and `X.weight.quant_state.bitsandbytes__nf4`,
//! the bytes of a JSON object; with double quantisation `absmax` is U8 and `X.weight.nested_absmax` and
//! `X.weight.nested_quant_map` decode it. LLM.int8: beside `X.weight` (I8) `X.SCB`, the rows' largest magnitudes, and
//! `X.weight_format`. The weights are always `[output, input]`, also where the family's own matrices are not. What is
//! decoded is what stands in the file.

mod write;

use std::sync::Arc;

use super::json::{self, Fields};
use super::quantized::{Floats, QuantizedView, RowOrderView, ScalesView};
use super::safetensors::{Checkpoint, Dtype, TensorView};
use crate::quantization::{BlockFormat, NF4_VALUES};
use crate::{Error, Result, arch};

pub use write::{config, write};

/// What ends the name of the tensor that describes an NF4 weight.
const NF4_STATE: &str = ".quant_state.bitsandbytes__nf4";
const FP4_STATE: &str = ".quant_state.bitsandbytes__fp4";
/// What else belongs to such a weight.
const NF4_PARTS: [&str; 4] = [".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"];
/// What ends the name of an int8 weight's scales, in place of `.weight`.
const INT8_SCALES: &str = ".SCB";
const INT8_LAYOUT: &str = ".weight_format";

/// A checkpoint with its quantised weights as such; one without any is itself.
///
/// # Errors
/// A part that is missing, of another dtype or of another length than the shape says, or that the description leaves
/// without a use; a description that is no JSON or says something that is not decoded here; codes of FP4.
pub fn quantized(checkpoint: Checkpoint) -> Result<Checkpoint> {
    let names: Vec<String> = checkpoint.names().map(str::to_owned).collect();
    let mut views = Vec::new();
    for name in &names {
        if let Some(weight) = name.strip_suffix(NF4_STATE) {
            views.push(nf4(&checkpoint, weight, name)?);
        } else if let Some(module) = name.strip_suffix(INT8_SCALES) {
            views.push(int8(&checkpoint, module)?);
        } else if name.ends_with(FP4_STATE) {
            let what = format!("{}: {name}: quant_type", checkpoint.path().display());
            return Err(Error::unsupported(what, "fp4", "nf4"));
        } else if let Some(module) = name.strip_suffix(INT8_LAYOUT) {
            part(&checkpoint, &format!("{module}{INT8_SCALES}"), Dtype::F32)?;
        }
    }
    let weights: Vec<String> = views.iter().map(|view| view.name.clone()).collect();
    let of_a_weight = move |name: &str| {
        let parts = NF4_PARTS.iter().chain([&NF4_STATE]).filter_map(|part| name.strip_suffix(part));
        let modules = [INT8_SCALES, INT8_LAYOUT].iter().filter_map(|part| name.strip_suffix(part));
        let modules = modules.map(|module| format!("{module}.weight"));
        parts.map(str::to_owned).chain(modules).any(|weight| weights.binary_search(&weight).is_ok())
    };
    views.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(checkpoint.quantized_as(views, of_a_weight))
}

/// A tensor of a weight that must be there in a dtype.
fn part(checkpoint: &Checkpoint, name: &str, dtype: Dtype) -> Result<TensorView> {
    let error = |found: &str| Error::field(checkpoint.path(), name, format!("a tensor of {dtype}"), found);
    let view = checkpoint.get(name).ok_or_else(|| error("none"))?;
    if view.dtype == dtype { Ok(view) } else { Err(error(&view.dtype.to_string())) }
}

fn checked(checkpoint: &Checkpoint, view: QuantizedView) -> Result<QuantizedView> {
    let wrong = |error: crate::quantization::Mismatch| {
        let field = format!("{}.{}", view.name, error.part);
        Error::field(checkpoint.path(), field, error.expected, error.found.to_string())
    };
    view.check().map_err(wrong)?;
    Ok(view)
}

fn nf4(checkpoint: &Checkpoint, weight: &str, name: &str) -> Result<QuantizedView> {
    let state = part(checkpoint, name, Dtype::U8)?;
    let path = checkpoint.path().join(name);
    let text = std::str::from_utf8(&state.data)
        .map_err(|_| Error::field(&path, "the tensor", "JSON in UTF-8", "other bytes"))?;
    let value = json::parse(&path, text)?;
    let f = Fields::new(&path, &value)?;
    let kind = f.require("quant_type", f.str("quant_type")?, "nf4")?;
    if kind != "nf4" {
        return Err(f.error("quant_type", "nf4"));
    }
    let block = f.require("blocksize", f.usize_in("blocksize", 2..=1 << 20)?, "a power of two")?;
    let shape = f.require("shape", f.list("shape")?, "two numbers")?;
    let shape: Option<Vec<usize>> = shape.iter().map(|n| n.as_u64().and_then(|n| usize::try_from(n).ok())).collect();
    let shape: [usize; 2] =
        shape.and_then(|shape| shape.try_into().ok()).ok_or_else(|| f.error("shape", "two numbers"))?;
    let part_of = |end: &str, dtype| part(checkpoint, &format!("{weight}{end}"), dtype);
    let table = part_of(".quant_map", Dtype::F32)?.to_f32().map_err(Error::file(checkpoint.path()))?;
    if table != NF4_VALUES {
        return Err(Error::field(checkpoint.path(), format!("{weight}.quant_map"), "the 16 values of NF4", "others"));
    }
    let nested = f.has("nested_offset");
    if let Some(end) = [".nested_absmax", ".nested_quant_map"]
        .iter()
        .find(|end| !nested && checkpoint.contains(&format!("{weight}{end}")))
    {
        let expected = "no such tensor, beside a quant_state without nested_offset";
        return Err(Error::field(checkpoint.path(), format!("{weight}{end}"), expected, "one"));
    }
    let scales = match nested {
        false => ScalesView::Absmax(Floats::new(&part_of(".absmax", Dtype::F32)?.data)),
        true => {
            let dtype = f.str("nested_dtype")?.unwrap_or("float32");
            if dtype != "float32" {
                return Err(f.error("nested_dtype", "float32"));
            }
            let block = f.usize_in("nested_blocksize", 1..=1 << 20)?;
            let offset = f.require("nested_offset", f.f64("nested_offset")?, "a number")?;
            let map = part_of(".nested_quant_map", Dtype::F32)?.to_f32().map_err(Error::file(checkpoint.path()))?;
            let found = map.len().to_string();
            let map: [f32; 256] = map.try_into().map_err(|_| {
                Error::field(checkpoint.path(), format!("{weight}.nested_quant_map"), "256 values", found)
            })?;
            ScalesView::Nested {
                codes: part_of(".absmax", Dtype::U8)?.data,
                map: Arc::new(map),
                absmax: Floats::new(&part_of(".nested_absmax", Dtype::F32)?.data),
                offset: offset as f32,
                block: f.require("nested_blocksize", block, "a power of two")? as u32,
            }
        }
    };
    let rounding = match f.require("dtype", f.str("dtype")?, "a dtype")? {
        "float32" => None,
        "bfloat16" => Some(arch::Dtype::BF16),
        "float16" => Some(arch::Dtype::F16),
        _ => return Err(f.error("dtype", "float32, bfloat16 or float16")),
    };
    // The codes may be packed in elements of any dtype: their bytes count.
    let codes = checkpoint.get(weight);
    let codes = codes.ok_or_else(|| Error::field(checkpoint.path(), weight, "the codes", "no such tensor"))?.data;
    let format = BlockFormat::Nf4 { block: block as u32 };
    let (name, order) = (weight.to_owned(), RowOrderView::From(0));
    checked(checkpoint, QuantizedView { name, format, shape, stored_rows: shape[0], codes, scales, order, rounding })
}

fn int8(checkpoint: &Checkpoint, module: &str) -> Result<QuantizedView> {
    let name = format!("{module}.weight");
    let codes = part(checkpoint, &name, Dtype::I8)?;
    let found = format!("{:?}", codes.shape);
    let shape: [usize; 2] =
        codes.shape.try_into().map_err(|_| Error::field(checkpoint.path(), &name, "a matrix", found))?;
    let layout = format!("{module}{INT8_LAYOUT}");
    if checkpoint.contains(&layout) {
        let layout_of = part(checkpoint, &layout, Dtype::U8)?;
        if layout_of.data[..] != [0] {
            let found = format!("{:?}", &layout_of.data[..layout_of.data.len().min(8)]);
            return Err(Error::field(checkpoint.path(), layout, "0, rows one after another", found));
        }
    }
    let scales = part(checkpoint, &format!("{module}{INT8_SCALES}"), Dtype::F32)?;
    let view = QuantizedView {
        name,
        format: BlockFormat::Int8Rows,
        shape,
        stored_rows: shape[0],
        codes: codes.data,
        scales: ScalesView::Absmax(Floats::new(&scales.data)),
        order: RowOrderView::From(0),
        rounding: None,
    };
    checked(checkpoint, view)
}

/// Checks what a `quantization_config` of this method says.
///
/// # Errors
/// FP4.
pub(super) fn check_config(config: &Fields) -> Result<()> {
    let four = config.bool("load_in_4bit")?.unwrap_or(false);
    if four && config.str("bnb_4bit_quant_type")?.unwrap_or("fp4") != "nf4" {
        let what = format!("{}: quantization_config.bnb_4bit_quant_type", config.path().display());
        return Err(Error::unsupported(what, "fp4", "nf4"));
    }
    Ok(())
}
