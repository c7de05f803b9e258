//! A checkpoint's projections quantised while it is loaded, a matrix at a time.

pub mod gguf;

use std::path::Path;

use rayon::prelude::*;

use super::param_id::{ParamId, Source};
use crate::arch::{Dtype, Projection};
use crate::backend::cpu;
use crate::formats::bitsandbytes;
use crate::formats::digest::Digests;
use crate::formats::quantized::{Floats, QuantizedView, RowOrderView, ScalesView};
use crate::formats::safetensors::{Bytes, Checkpoint, TensorView};
use crate::hash::sha256_hex;
use crate::quantization::{BlockFormat, encode_int8, encode_nf4};
use crate::{Error, Result};

/// Elements of a block of NF4, as bitsandbytes has them by default.
const BLOCK: usize = 64;
/// Blocks that one thread decodes at a time.
const CHUNK: usize = 1024;

/// What weights are quantised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuantizeTo {
    /// bitsandbytes' NF4 in blocks of 64, without double quantisation.
    Nf4,
    /// LLM.int8's rows, without outliers.
    Int8,
}

impl QuantizeTo {
    /// As `--load-in` has it.
    pub const fn name(self) -> &'static str {
        self.format().name()
    }

    /// The blocks.
    pub const fn format(self) -> BlockFormat {
        match self {
            Self::Nf4 => BlockFormat::NF4,
            Self::Int8 => BlockFormat::Int8Rows,
        }
    }
}

/// The checkpoint with every projection of the blocks quantised, as transformers and bitsandbytes do it (fused modules as one
/// matrix); the embedding table, the head, norms and biases stay as they are. Matrices are read from the mapping, and
/// only their codes and scales are in memory.
///
/// # Errors
/// A tensor that is missing or of another shape, or quantised already; elements that are not finite, or that f16 cannot
/// hold where they are quantised to int8.
pub fn quantized(source: &Source, to: QuantizeTo) -> Result<Checkpoint> {
    let mut views = Vec::new();
    for (layer, module) in modules(source) {
        let (tensor, transposed) = source.module(layer, module)?;
        tensor.check_finite().map_err(Error::file(source.checkpoint().path()))?;
        let dtype = tensor.float();
        let matrix = if transposed { transposed_of(&tensor) } else { tensor };
        let view = match to {
            QuantizeTo::Nf4 => nf4(&matrix, dtype)?,
            QuantizeTo::Int8 => int8(&matrix, source.checkpoint().path())?,
        };
        views.push(view);
    }
    Ok(source.checkpoint().clone().quantized_as(views, |_| false))
}

/// The matrices of the blocks as the file has them, fused ones whole: their layers and modules.
fn modules(source: &Source) -> impl Iterator<Item = (usize, Projection)> {
    let config = &source.config;
    let fused = config.family.fused();
    let mut modules: Vec<Projection> = fused.to_vec();
    modules.extend(config.targets().iter().filter(|&target| !fused.iter().any(|f| f.parts().contains(target))));
    (0..config.num_hidden_layers).flat_map(move |layer| modules.clone().into_iter().map(move |module| (layer, module)))
}

/// The same, with the matrices in a file of `cache` that an earlier call wrote there, if there is one of these weights: otherwise
/// it is written, and used. The file is known by the content of the model's files, whose digests are kept beside it.
///
/// # Errors
/// As for [`quantized`]; a file of the model or of the cache cannot be read or written; one in the cache that has not exactly these
/// matrices.
pub fn cached(source: &Source, to: QuantizeTo, cache: &Path) -> Result<Checkpoint> {
    let checkpoint = source.checkpoint();
    let mut digests = Digests::open(cache.join("inputs.json"));
    let mut parts = vec![env!("CARGO_PKG_VERSION").to_owned(), to.name().to_owned()];
    for file in checkpoint.files() {
        // The embedded model has no file: the program's version says which it is.
        parts.push(if file.exists() { digests.of_file(file)? } else { file.display().to_string() });
    }
    parts.push(source.config.num_hidden_layers.to_string());
    let key = sha256_hex(parts.iter().map(|part| part.as_bytes()));
    let path = cache.join(format!("{}-{}.safetensors", &key[..32], to.name()));
    if !path.exists() {
        let made = quantized(source, to)?;
        let views: Vec<&QuantizedView> = made.quantized().collect();
        bitsandbytes::write(&path, &views, std::iter::empty(), &[])?;
    }
    digests.save()?;
    let kept = bitsandbytes::quantized(Checkpoint::open(&path)?)?;
    check_kept(source, to, &kept)?;
    Ok(checkpoint.clone().quantized_as(kept.quantized().cloned(), |_| false))
}

/// Refuses a file of a cache that has not the matrices of the model, all of them and no other, in the format.
fn check_kept(source: &Source, to: QuantizeTo, kept: &Checkpoint) -> Result<()> {
    let mut count = 0;
    for (layer, module) in modules(source) {
        let (tensor, transposed) = source.module(layer, module)?;
        let mut shape = tensor.shape.clone();
        if transposed {
            shape.reverse();
        }
        let found = kept.quantized().find(|view| view.name == tensor.name);
        if !found.is_some_and(|view| view.shape == shape[..] && view.format == to.format()) {
            let found = found.map_or_else(|| "none".to_owned(), |view| format!("{} {:?}", view.format, view.shape));
            return Err(Error::field(kept.path(), &tensor.name, format!("{} {shape:?}", to.name()), found));
        }
        count += 1;
    }
    match kept.len() {
        len if len == count => Ok(()),
        len => Err(Error::field(kept.path(), "the file", format!("{count} matrices"), len.to_string())),
    }
}

/// Names of the modules outside the blocks that transformers would quantise if it were not told.
pub fn skip_modules(source: &Source) -> Vec<String> {
    let config = &source.config;
    let projects = config.embed_size != config.hidden_size;
    let ids = [ParamId::Head]
        .into_iter()
        .chain(projects.then_some([ParamId::ProjectIn, ParamId::ProjectOut]).into_iter().flatten());
    let mut names: Vec<_> = ids.map(|id| source.own_name(id).trim_end_matches(".weight").to_owned()).collect();
    // What transformers 5 renames GPT-NeoX's `embed_out` to while it loads.
    if names[0] != "lm_head" {
        names.push("lm_head".to_owned());
    }
    names
}

/// A matrix stored as `[input, output]` the other way round, in memory.
fn transposed_of(view: &TensorView) -> TensorView {
    let (rows, columns, size) = (view.shape[0], view.shape[1], view.element_size());
    let mut data = vec![0; view.data.len()];
    data.par_chunks_exact_mut(rows * size).enumerate().for_each(|(column, out)| {
        for (row, out) in out.chunks_exact_mut(size).enumerate() {
            out.copy_from_slice(&view.data[(row * columns + column) * size..][..size]);
        }
    });
    TensorView { shape: vec![columns, rows], data: Bytes::from(data), ..view.clone() }
}

/// Elements `from..to` in f32.
fn floats(view: &TensorView, from: usize, to: usize) -> Result<Vec<f32>> {
    let size = view.element_size();
    let data = view.data.slice(from * size..to * size);
    let part = TensorView { shape: vec![to - from], data, ..view.clone() };
    part.to_f32().map_err(Error::file(&view.name))
}

fn nf4(view: &TensorView, dtype: Option<Dtype>) -> Result<QuantizedView> {
    let len = view.len();
    let (mut codes, mut absmax) = (cpu::zeros::<u8>(len.div_ceil(2))?, cpu::zeros::<f32>(len.div_ceil(BLOCK))?);
    let parts = codes.par_chunks_mut(CHUNK * BLOCK / 2).zip(absmax.par_chunks_mut(CHUNK)).enumerate();
    parts.try_for_each(|(at, (codes, absmax))| {
        let from = at * CHUNK * BLOCK;
        let values = floats(view, from, len.min(from + CHUNK * BLOCK))?;
        encode_nf4(&values, BLOCK, codes, absmax);
        Ok::<_, Error>(())
    })?;
    let rounding = dtype.filter(|dtype| matches!(dtype, Dtype::BF16 | Dtype::F16));
    Ok(assembled(view, BlockFormat::NF4, codes, absmax, rounding))
}

fn int8(view: &TensorView, path: &Path) -> Result<QuantizedView> {
    let columns = view.shape[1];
    let (mut codes, mut absmax) = (cpu::zeros::<u8>(view.len())?, cpu::zeros::<f32>(view.shape[0])?);
    let rows = codes.par_chunks_exact_mut(columns).zip(&mut absmax).enumerate();
    rows.try_for_each(|(row, (codes, absmax))| {
        *absmax = encode_int8(&floats(view, row * columns, (row + 1) * columns)?, codes);
        Ok::<_, Error>(())
    })?;
    // Codes are made of values rounded to f16, which these have become infinite in.
    if absmax.iter().any(|x| !x.is_finite()) {
        let largest = (0..view.shape[0]).try_fold(0.0f32, |most, row| {
            let values = floats(view, row * columns, (row + 1) * columns)?;
            Ok::<_, Error>(values.iter().fold(most, |most, x| most.max(x.abs())))
        })?;
        let expected = format!("magnitudes up to {}, for int8", half::f16::MAX);
        return Err(Error::field(path, &view.name, expected, largest.to_string()));
    }
    Ok(assembled(view, BlockFormat::Int8Rows, codes, absmax, None))
}

fn assembled(
    view: &TensorView,
    format: BlockFormat,
    codes: Vec<u8>,
    absmax: Vec<f32>,
    rounding: Option<Dtype>,
) -> QuantizedView {
    QuantizedView {
        name: view.name.clone(),
        format,
        shape: [view.shape[0], view.shape[1]],
        stored_rows: view.shape[0],
        codes: Bytes::from(codes),
        scales: ScalesView::Absmax(Floats::from(absmax)),
        order: RowOrderView::From(0),
        rounding,
    }
}
