//! A LoRA in the weights: `W + scale B A` in place of `W` (Hu et al., arXiv 2106.09685), in the base model's own file; of a
//! DoRA its rows at their magnitudes (Liu et al., arXiv 2402.09353). An IA3 multiplies rows with their biases, or columns (Liu et
//! al., arXiv 2205.05638).
//!
//! Where the head is tied to the embedding table and an adapter changes one of them, or each in its own way, the merged model has
//! two tables: PEFT's own merge changes both alike, and so the model.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::{AddAssign, Div, Mul};
use std::path::Path;

use rayon::prelude::*;

use super::param_id::{ParamId, Source};
use super::rounded::{encode, finite};
use super::saved_modules::saved_params;
use crate::arch;
use crate::formats::adapter::{Adapter, LoraAdapter, LoraModule, Table, TableLora, TrainedTokens};
use crate::formats::safetensors::{Bytes, Dtype, TensorFile, TensorSpec, TensorView};
use crate::{Error, Result};

/// Writes the base model's tensors with an adapter in them. Each keeps its dtype, or all floats get `dtype`; a changed one is
/// computed in f32 (f64 where it is saved so) and rounded once.
///
/// # Errors
/// A module whose tensor is missing, a weight that is not finite, a value that is not finite in the dtype, or the file cannot be written.
///
/// # Panics
/// If it is a soft prompt, which lies in no weight.
pub fn write(source: &Source, adapter: &Adapter, dtype: Option<arch::Dtype>, path: &Path) -> Result<()> {
    let checkpoint = source.checkpoint();
    let changes = changes(source, adapter)?;
    let saved = |view: &TensorView| match (view.float(), dtype.map(of)) {
        (Some(_), Some(dtype)) => dtype,
        _ => view.dtype,
    };
    let mut views: Vec<TensorView> = checkpoint.iter().collect();
    if unties(source, adapter) {
        let table = source.view(ParamId::Embed)?;
        let names = [ParamId::Embed, ParamId::Head].map(|id| source.own_name(id));
        let missing = names.into_iter().filter(|name| checkpoint.get(name).is_none());
        views.extend(missing.map(|name| TensorView { name, ..table.clone() }));
    }
    let spec = |t: &TensorView| TensorSpec { dtype: saved(t), shape: t.shape.clone(), name: t.name.clone() };
    let specs: Vec<TensorSpec> = views.iter().map(spec).collect();
    let mut metadata = checkpoint.metadata().clone();
    // transformers refuses files that do not name who wrote them.
    metadata.insert("format".to_owned(), "pt".to_owned());
    let metadata: Vec<(&str, &str)> = metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let mut file = TensorFile::create(path, specs, &metadata)?;
    for view in views {
        let dtype = saved(&view);
        match changes.get(&view.name) {
            Some(Change::Lora(lora, module)) => file.append(&view.name, &merged(source, lora, module, dtype)?.data)?,
            Some(Change::Saved(values)) => file.append(&view.name, &encode(&view.name, values, dtype)?)?,
            Some(Change::Rows(tokens)) => file.append(&view.name, &replaced(source, &view, tokens, dtype)?)?,
            Some(Change::Table(table)) => file.append(&view.name, &added(source, &view, table, dtype)?)?,
            Some(Change::Factors(factors)) => file.append(&view.name, &multiplied(source, &view, factors, dtype)?)?,
            None if dtype == view.dtype => {
                view.check_finite().map_err(Error::file(checkpoint.path()))?;
                file.append(&view.name, &view.data)?;
            }
            None => {
                let values = view.to_f32().map_err(Error::file(checkpoint.path()))?;
                file.append(&view.name, &encode(&view.name, &values, dtype)?)?;
            }
        }
    }
    file.finish()
}

/// Whether a head that is tied to the embedding table is no longer, once an adapter is merged.
pub fn unties(source: &Source, adapter: &Adapter) -> bool {
    let Adapter::Lora(lora) = adapter else { return false };
    let saved = |id: ParamId| lora.saved.iter().any(|tensor| tensor.name == id.peft_name(&source.config));
    let of_its_own = (saved(ParamId::Embed) && !lora.ties_head) || saved(ParamId::Head);
    source.config.tie_word_embeddings && (of_its_own || !lora.tables.is_empty())
}

/// What becomes of a tensor.
enum Change<'a> {
    Table(&'a TableLora),
    /// It is a saved module's.
    Saved(&'a [f32]),
    /// Some rows are.
    Rows(&'a TrainedTokens),
    Lora(&'a LoraAdapter, &'a LoraModule),
    Factors(Factors<'a>),
}

/// What a tensor is multiplied by: each row of a matrix by its factor, or each element of a row by its own.
struct Factors<'a> {
    by_row: bool,
    values: Cow<'a, [f32]>,
}

/// The tensors of the base model's file that an adapter changes, by name.
fn changes<'a>(source: &Source, adapter: &'a Adapter) -> Result<BTreeMap<String, Change<'a>>> {
    let mut changes = BTreeMap::new();
    match adapter {
        Adapter::Lora(lora) => {
            for module in &lora.modules {
                let (view, _) = source.module(module.layer, module.target)?;
                changes.insert(view.name, Change::Lora(lora, module));
            }
            for id in saved_params(&source.config, lora)? {
                let name = id.peft_name(&source.config);
                let tensor = lora.saved.iter().find(|tensor| tensor.name == name).expect("a saved module");
                changes.insert(source.own_name(id), Change::Saved(&tensor.values));
                if id == ParamId::Embed && lora.ties_head {
                    changes.insert(source.own_name(ParamId::Head), Change::Saved(&tensor.values));
                }
            }
            if let Some(tokens) = lora.tokens.as_deref() {
                changes.insert(source.own_name(ParamId::Embed), Change::Rows(tokens));
                if source.config.tie_word_embeddings {
                    changes.insert(source.own_name(ParamId::Head), Change::Rows(tokens));
                }
            }
            for table in &lora.tables {
                let id = if table.at == Table::Embed { ParamId::Embed } else { ParamId::Head };
                changes.insert(source.own_name(id), Change::Table(table));
            }
        }
        Adapter::Ia3(ia3) => {
            for module in &ia3.modules {
                let (view, transposed) = source.module(module.layer, module.target)?;
                let values = ia3.stored(module);
                let factors = Factors { by_row: module.feedforward == transposed, values: values.clone() };
                changes.insert(view.name, Change::Factors(factors));
                if let Some(bias) = source.bias(module.layer, module.target)?.filter(|_| !module.feedforward) {
                    changes.insert(bias.name, Change::Factors(Factors { by_row: false, values }));
                }
            }
        }
        Adapter::Prompt(_) => panic!("merge: a soft prompt lies in no weight"),
    }
    Ok(changes)
}

/// A tensor times its factors, in `dtype`.
fn multiplied(source: &Source, view: &TensorView, factors: &Factors, dtype: Dtype) -> Result<Vec<u8>> {
    let width = view.shape.last().copied().unwrap_or(1);
    let factor = |i: usize| factors.values[if factors.by_row { i / width } else { i % width }];
    let error = Error::file(source.checkpoint().path());
    if (view.dtype, dtype) == (Dtype::F64, Dtype::F64) {
        let values = view.as_slice::<f64>().map_err(error)?.iter().enumerate();
        let values: Vec<f64> = values.map(|(i, x)| x * f64::from(factor(i))).collect();
        finite(&view.name, values.iter().copied())?;
        return Ok(bytemuck::cast_slice(&values).to_vec());
    }
    let mut values = view.to_f32().map_err(error)?;
    values.par_iter_mut().enumerate().for_each(|(i, x)| *x *= factor(i));
    encode(&view.name, &values, dtype)
}

/// A table of tokens with some of its rows an adapter's own, in `dtype`.
fn replaced(source: &Source, view: &TensorView, tokens: &TrainedTokens, dtype: Dtype) -> Result<Vec<u8>> {
    let error = Error::file(source.checkpoint().path());
    let rows = || tokens.ids.iter().zip(tokens.rows.chunks_exact(source.config.embed_size));
    if (view.dtype, dtype) == (Dtype::F64, Dtype::F64) {
        let mut values = view.as_slice::<f64>().map_err(error)?.to_vec();
        rows().for_each(|(&id, row)| {
            let to = values[id as usize * row.len()..].iter_mut().zip(row);
            to.for_each(|(v, x)| *v = f64::from(*x));
        });
        finite(&view.name, values.iter().copied())?;
        return Ok(bytemuck::cast_slice(&values).to_vec());
    }
    let mut values = view.to_f32().map_err(error)?;
    rows().for_each(|(&id, row)| values[id as usize * row.len()..][..row.len()].copy_from_slice(row));
    encode(&view.name, &values, dtype)
}

/// A table of tokens with its update, in `dtype`.
fn added(source: &Source, view: &TensorView, table: &TableLora, dtype: Dtype) -> Result<Vec<u8>> {
    let r = table.r;
    // The table is left [V, R] times right [R, E].
    let factors = match table.at {
        Table::Embed => (flipped(&table.a, r), flipped(&table.b, table.b.len() / r)),
        Table::Head => (table.b.clone(), table.a.clone()),
    };
    let error = Error::file(source.checkpoint().path());
    if (view.dtype, dtype) == (Dtype::F64, Dtype::F64) {
        let mut values = view.as_slice::<f64>().map_err(error)?.to_vec();
        add_product(&mut values, r, &factors, table.scale);
        finite(&view.name, values.iter().copied())?;
        return Ok(bytemuck::cast_slice(&values).to_vec());
    }
    let mut values = view.to_f32().map_err(error)?;
    add_product(&mut values, r, &factors, table.scale as f32);
    encode(&view.name, &values, dtype)
}

/// The tensor of a module with its update, as the file has it, in `dtype`.
///
/// # Errors
/// It is missing or of another shape; a value that is not finite in the dtype.
pub fn merged(source: &Source, adapter: &LoraAdapter, module: &LoraModule, dtype: Dtype) -> Result<TensorView> {
    let (view, transposed) = source.module(module.layer, module.target)?;
    let error = Error::file(source.checkpoint().path());
    let data = if (view.dtype, dtype) == (Dtype::F64, Dtype::F64) {
        let mut values = view.as_slice::<f64>().map_err(error)?.to_vec();
        update(&mut values, adapter, module, transposed, module.scale);
        rescale(&mut values, adapter, module, transposed, f64::sqrt);
        finite(&view.name, values.iter().copied())?;
        bytemuck::cast_slice(&values).to_vec()
    } else {
        let mut values = view.to_f32().map_err(error)?;
        update(&mut values, adapter, module, transposed, module.scale as f32);
        rescale(&mut values, adapter, module, transposed, f32::sqrt);
        encode(&view.name, &values, dtype)?
    };
    Ok(TensorView { dtype, data: Bytes::from(data), ..view })
}

/// Adds `scale B A` to a matrix `[output, input]`, or transposed to one `[input, output]`.
fn update<T>(values: &mut [T], adapter: &LoraAdapter, module: &LoraModule, transposed: bool, scale: T)
where
    T: Copy + Send + Sync + From<f32> + AddAssign + Mul<Output = T>,
{
    let r = module.r;
    let b = adapter.stored_b(module);
    // The matrix is left [rows, R] times right [R, columns].
    let factors = match transposed {
        false => (b.to_vec(), module.a.clone()),
        true => (flipped(&module.a, r), flipped(&b, b.len() / r)),
    };
    add_product(values, r, &factors, scale);
}

/// Adds `scale` times left `[rows, R]` times right `[R, columns]` to a matrix.
fn add_product<T>(values: &mut [T], r: usize, (left, right): &(Vec<f32>, Vec<f32>), scale: T)
where
    T: Copy + Send + Sync + From<f32> + AddAssign + Mul<Output = T>,
{
    let columns = right.len() / r;
    values.par_chunks_exact_mut(columns).zip(left.par_chunks_exact(r)).for_each(|(row, left)| {
        let mut delta = vec![T::from(0.0); columns];
        for (&x, right) in left.iter().zip(right.chunks_exact(columns)) {
            delta.iter_mut().zip(right).for_each(|(d, &y)| *d += T::from(x) * T::from(y));
        }
        row.iter_mut().zip(delta).for_each(|(w, d)| *w += scale * d);
    });
}

/// Brings the rows of a matrix `[output, input]`, or the columns of one `[input, output]`, from their norms to their
/// magnitudes.
fn rescale<T>(values: &mut [T], adapter: &LoraAdapter, module: &LoraModule, transposed: bool, root: fn(T) -> T)
where
    T: Copy + Send + Sync + From<f32> + AddAssign + Mul<Output = T> + Div<Output = T>,
{
    let Some(magnitude) = adapter.stored_magnitude(module) else { return };
    let output = magnitude.len();
    let input = values.len() / output;
    let mut squares = vec![T::from(0.0); output];
    if transposed {
        for row in values.chunks_exact(output) {
            squares.iter_mut().zip(row).for_each(|(sum, &w)| *sum += w * w);
        }
    } else {
        let sums = squares.par_iter_mut().zip(values.par_chunks_exact(input));
        sums.for_each(|(sum, row)| row.iter().for_each(|&w| *sum += w * w));
    }
    let factors: Vec<T> = magnitude.iter().zip(squares).map(|(&m, sum)| T::from(m) / root(sum)).collect();
    if transposed {
        values
            .par_chunks_exact_mut(output)
            .for_each(|row| row.iter_mut().zip(&factors).for_each(|(w, &f)| *w = *w * f));
    } else {
        let rows = values.par_chunks_exact_mut(input).zip(&factors);
        rows.for_each(|(row, &f)| row.iter_mut().for_each(|w| *w = *w * f));
    }
}

/// The transpose of a matrix of so many rows.
fn flipped(matrix: &[f32], rows: usize) -> Vec<f32> {
    let columns = matrix.len() / rows;
    (0..columns).flat_map(|column| matrix.iter().skip(column).step_by(columns).copied()).collect()
}

const fn of(dtype: arch::Dtype) -> Dtype {
    match dtype {
        arch::Dtype::F64 => Dtype::F64,
        arch::Dtype::F32 => Dtype::F32,
        arch::Dtype::BF16 => Dtype::BF16,
        arch::Dtype::F16 => Dtype::F16,
    }
}
