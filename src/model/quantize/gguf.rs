//! A model as a GGUF file with its matrices in Q8_0, tensor by tensor from the mapping, as llama.cpp's converter writes it.

use std::collections::HashSet;
use std::path::Path;

use half::f16;
use rayon::prelude::*;

use super::{floats, transposed_of};
use crate::arch::{ModelConfig, Projection};
use crate::formats::gguf::{GgufFile, TensorSpec, TensorType, export, vocabulary};
use crate::formats::safetensors::TensorView;
use crate::formats::tokenizer::Tokenizer;
use crate::model::param_id::{ParamId, Source};
use crate::quantization::encode_q8_0;
use crate::{Error, Result};

/// What a file has of a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Matrices in Q8_0.
    pub matrices: usize,
    /// Matrices in F16, since their rows are no whole blocks.
    pub halves: usize,
    /// Bytes of all tensors.
    pub bytes: usize,
}

/// A file that is planned: everything but the data is known, and checked.
pub struct Plan<'a> {
    source: &'a Source<'a>,
    pairs: export::Pairs,
    tensors: Vec<TensorSpec>,
    /// What each tensor is; LLaMA 3's divisors of the frequencies, the last, are none.
    ids: Vec<ParamId>,
}

impl<'a> Plan<'a> {
    /// Plans a file of a model of this name, with the vocabulary of a tokenizer if there is one; `path` names it in errors.
    ///
    /// # Errors
    /// A family that is not written, or what of the model or its tokenizer the format cannot say.
    pub fn new(source: &'a Source, tokenizer: Option<&Tokenizer>, name: &str, path: &Path) -> Result<Self> {
        let config = &source.config;
        let mut pairs = export::metadata(config, name)?;
        if let Some(tokenizer) = tokenizer {
            pairs.extend(vocabulary::metadata(tokenizer, config.vocab_size)?);
        }
        let ids = stored(config);
        let mut tensors: Vec<TensorSpec> = ids.iter().map(|&id| spec(config, id)).collect();
        if let Some(divisors) = export::divisors(config) {
            let (name, kind) = (export::DIVISORS.to_owned(), TensorType::F32);
            tensors.push(TensorSpec { name, dims: vec![divisors.len()], kind });
        }
        export::check(path, config, tokenizer, &pairs, &tensors)?;
        Ok(Self { source, pairs, tensors, ids })
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Writes the file, and calls `progress` behind every tensor.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape or quantised; elements that are not finite, or not in F16 where they are
    /// stored so; the file cannot be written.
    pub fn write(&self, path: &Path, mut progress: impl FnMut()) -> Result<Written> {
        let mut written = Written::default();
        let mut file = GgufFile::create(path, &self.pairs, &self.tensors)?;
        for (&id, spec) in self.ids.iter().zip(&self.tensors) {
            file.append(&encoded(self.source, id, spec)?)?;
            match spec.kind {
                TensorType::Blocks(_) => written.matrices += 1,
                TensorType::F16 => written.halves += 1,
                _ => {}
            }
            progress();
        }
        if let Some(divisors) = export::divisors(&self.source.config) {
            file.append(bytemuck::cast_slice(&divisors))?;
            progress();
        }
        written.bytes = self.tensors.iter().map(TensorSpec::bytes).sum();
        file.finish()?;
        Ok(written)
    }
}

/// The weights as a file has them: fused modules whole.
fn stored(config: &ModelConfig) -> Vec<ParamId> {
    let whole = |target: Projection| {
        let fused = config.family.fused().iter().find(|module| module.parts().contains(&target));
        fused.copied().unwrap_or(target)
    };
    let module = |id| match id {
        ParamId::Weight(layer, target) => ParamId::Weight(layer, whole(target)),
        ParamId::Bias(layer, target) => ParamId::Bias(layer, whole(target)),
        other => other,
    };
    let mut seen = HashSet::new();
    ParamId::all(config).into_iter().map(module).filter(|id| seen.insert(*id)).collect()
}

fn spec(config: &ModelConfig, id: ParamId) -> TensorSpec {
    let name = export::tensor_name(config.family, &id.tensor(config.family));
    let dims: Vec<usize> = id.shape(config).into_iter().rev().collect();
    TensorSpec { kind: export::tensor_type(&name, &dims), name, dims }
}

/// A weight as `[output, input]`, fused ones whole.
fn view(source: &Source, id: ParamId) -> Result<TensorView> {
    match id {
        ParamId::Weight(layer, module) => {
            let (view, transposed) = source.module(layer, module)?;
            Ok(if transposed { transposed_of(&view) } else { view })
        }
        ParamId::Bias(layer, module) => Ok(source.bias(layer, module)?.expect("a bias of the configuration")),
        other => source.view(other),
    }
}

/// The bytes of a tensor of the file.
fn encoded(source: &Source, id: ParamId, spec: &TensorSpec) -> Result<Vec<u8>> {
    let view = view(source, id)?;
    view.check_finite().map_err(Error::file(source.checkpoint().path()))?;
    let order = match id {
        ParamId::Weight(_, target) | ParamId::Bias(_, target) => export::stored_rows(&source.config, target),
        _ => None,
    };
    let (rows, columns) = (view.shape[0], view.shape[1..].iter().product::<usize>());
    let mut out = vec![0u8; spec.bytes()];
    let encode = |(row, out): (usize, &mut [u8])| {
        let row = order.as_ref().map_or(row, |order| order[row] as usize);
        let values = floats(&view, row * columns, (row + 1) * columns)?;
        match spec.kind {
            TensorType::F32 => out.copy_from_slice(bytemuck::cast_slice(&values)),
            TensorType::F16 => {
                for (out, &x) in out.chunks_exact_mut(2).zip(&values) {
                    out.copy_from_slice(&finite(source, &view, f16::from_f32(x), x)?.to_le_bytes());
                }
            }
            _ => {
                for (block, values) in out.chunks_exact_mut(34).zip(values.chunks_exact(32)) {
                    let block: &mut [u8; 34] = block.try_into().expect("a block");
                    encode_q8_0(values.try_into().expect("32 values"), block);
                    let scale = f16::from_le_bytes([block[0], block[1]]);
                    finite(source, &view, scale, values.iter().fold(0.0f32, |most, x| most.max(x.abs())))?;
                }
            }
        }
        Ok::<_, Error>(())
    };
    out.par_chunks_exact_mut(spec.bytes() / rows).enumerate().try_for_each(encode)?;
    Ok(out)
}

/// A number in half precision, which `x` must fit.
fn finite(source: &Source, view: &TensorView, half: f16, x: f32) -> Result<f16> {
    if half.is_finite() {
        return Ok(half);
    }
    let expected = format!("magnitudes up to {}, for F16 and the scales of Q8_0", f16::MAX);
    Err(Error::field(source.checkpoint().path(), &view.name, expected, x.to_string()))
}
