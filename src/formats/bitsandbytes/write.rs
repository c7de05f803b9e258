//! Quantised weights written as transformers and bitsandbytes save them.

use std::borrow::Cow;
use std::path::Path;

use serde_json::{Value, json};

use super::{INT8_LAYOUT, INT8_SCALES, NF4_STATE};
use crate::formats::quantized::{QuantizedView, RowOrderView, ScalesView};
use crate::formats::safetensors::{Dtype, TensorFile, TensorSpec, TensorView};
use crate::quantization::{BlockFormat, NF4_VALUES};
use crate::{Error, Result, arch};

/// A tensor of a quantised weight.
struct Part<'a> {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    data: Cow<'a, [u8]>,
}

/// Writes a safetensors file of quantised weights, and of tensors beside them: with the checkpoint's other tensors it is a
/// model's `model.safetensors`.
///
/// # Errors
/// A weight of another format than NF4 without double quantisation or int8 by rows, or whose rows lie in another order; the
/// file cannot be written.
pub fn write(
    path: &Path,
    views: &[&QuantizedView],
    plain: impl Iterator<Item = TensorView> + Clone,
    metadata: &[(&str, &str)],
) -> Result<()> {
    let parts: Vec<Vec<Part<'_>>> = views.iter().map(|view| parts(path, view)).collect::<Result<_>>()?;
    let parts: Vec<Part<'_>> = parts.into_iter().flatten().collect();
    let of_part =
        |part: &Part<'_>| TensorSpec { name: part.name.clone(), dtype: part.dtype, shape: part.shape.clone() };
    let of_plain = |t: TensorView| TensorSpec { name: t.name, dtype: t.dtype, shape: t.shape };
    let specs = parts.iter().map(of_part).chain(plain.clone().map(of_plain)).collect();
    let mut file = TensorFile::create(path, specs, metadata)?;
    for part in &parts {
        file.append(&part.name, &part.data)?;
    }
    for tensor in plain {
        file.append(&tensor.name, &tensor.data)?;
    }
    file.finish()
}

/// What `config.json` says of weights in such a format: `dtype` is that of the model, `kept` are modules that stay numbers.
///
/// # Panics
/// If the format is none of bitsandbytes.
pub fn config(format: BlockFormat, dtype: arch::Dtype, kept: &[String]) -> Value {
    let four = match format {
        BlockFormat::Nf4 { .. } => true,
        BlockFormat::Int8Rows => false,
        other => panic!("{other} is no format of bitsandbytes"),
    };
    json!({
        "quant_method": "bitsandbytes",
        "load_in_4bit": four,
        "load_in_8bit": !four,
        "bnb_4bit_compute_dtype": dtype.full_name(),
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": if four { "nf4" } else { "fp4" },
        "bnb_4bit_use_double_quant": false,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": kept,
        // Without outliers: the products are those of the values.
        "llm_int8_threshold": 0.0,
    })
}

fn parts<'a>(path: &Path, view: &'a QuantizedView) -> Result<Vec<Part<'a>>> {
    let refused = |what: String| Error::field(path, &view.name, "codes of bitsandbytes, rows in their order", what);
    if !matches!(view.order, RowOrderView::From(0)) || view.stored_rows != view.shape[0] {
        return Err(refused("rows of another matrix".to_owned()));
    }
    let ScalesView::Absmax(absmax) = &view.scales else {
        return Err(refused(format!("{} with other scales", view.format)));
    };
    let name = &view.name;
    let floats = |values: &'a [f32]| Cow::Borrowed(bytemuck::cast_slice::<f32, u8>(values));
    let part = |name: String, dtype, shape: &[usize], data| Part { name, dtype, shape: shape.to_vec(), data };
    let (values, codes) = (absmax.as_slice(), Cow::Borrowed(&view.codes[..]));
    match view.format {
        BlockFormat::Nf4 { block } => {
            let dtype = view.rounding.unwrap_or(arch::Dtype::F32).full_name();
            let [rows, columns] = view.shape;
            // The text that bitsandbytes writes, spaces and all.
            let state = format!(
                "{{\"quant_type\": \"nf4\", \"blocksize\": {block}, \"dtype\": \"{dtype}\", \"shape\": [{rows}, {columns}]}}"
            );
            Ok(vec![
                part(name.clone(), Dtype::U8, &[view.codes.len(), 1], codes),
                part(format!("{name}.absmax"), Dtype::F32, &[values.len()], floats(values)),
                part(format!("{name}.quant_map"), Dtype::F32, &[NF4_VALUES.len()], floats(&NF4_VALUES)),
                part(format!("{name}{NF4_STATE}"), Dtype::U8, &[state.len()], Cow::Owned(state.into_bytes())),
            ])
        }
        BlockFormat::Int8Rows => {
            let module = name.strip_suffix(".weight").ok_or_else(|| refused("a name without .weight".to_owned()))?;
            Ok(vec![
                part(name.clone(), Dtype::I8, &view.shape, codes),
                part(format!("{module}{INT8_SCALES}"), Dtype::F32, &[values.len()], floats(values)),
                part(format!("{module}{INT8_LAYOUT}"), Dtype::U8, &[], Cow::Owned(vec![0])),
            ])
        }
        other => Err(refused(format!("blocks of {other}"))),
    }
}
