//! How the A and B of a new LoRA start, by the schemes of PEFT 0.21 ([`InitLoraWeights`]), on the host: the same seed gives the
//! same values on every device. Those of the embedding table start as PEFT's do: A at zero and B normal, or without a scheme both
//! normal.

use std::path::Path;
use std::sync::Arc;

use half::{bf16, f16};

use super::merge;
use super::param_id::{ParamId, Source};
use super::saved_modules::saved_tensors;
use crate::backend::AccElement;
use crate::formats::adapter::{
    BaseTable, InitLoraWeights, LoraAdapter, LoraConfig, LoraModule, Table, TableLora, TrainedTokens,
};
use crate::formats::safetensors::Checkpoint;
use crate::measures::singular::leading;
use crate::random::Rng;
use crate::{Error, Result};

/// Sets the values of all modules of an adapter, whose sizes and scales stay as they are.
///
/// # Errors
/// A rank or alpha that the scheme does not take; a base weight that is missing or not finite.
pub fn start(adapter: &mut LoraAdapter, source: &Source, seed: u64) -> Result<()> {
    let mut rng = Rng::new(seed);
    let how = adapter.config.init_lora_weights;
    let family = adapter.family;
    for module in &mut adapter.modules {
        let LoraModule { r, layer, target, .. } = *module;
        let refuse = |name: &str, expected: String, found: String| {
            Error::argument(name, format!("{expected}, of {}", family.path(layer, target)), found)
        };
        let input = module.a.len() / r;
        match how {
            InitLoraWeights::True => uniform(&mut rng, &mut module.a, input),
            InitLoraWeights::False => {
                uniform(&mut rng, &mut module.a, input);
                uniform(&mut rng, &mut module.b, r);
            }
            InitLoraWeights::Gaussian => {
                module.a.iter_mut().for_each(|x| *x = (rng.normal() / r as f64) as f32);
            }
            InitLoraWeights::Orthogonal if r % 2 == 1 => {
                let field = if adapter.config.r == r { "r" } else { "rank_pattern" };
                return Err(refuse(field, "an even rank for an orthogonal start".to_owned(), r.to_string()));
            }
            InitLoraWeights::Orthogonal => orthogonal(&mut rng, r, &mut module.a, &mut module.b),
            InitLoraWeights::Pissa => {
                let most = input.min(module.b.len() / r);
                if r > most {
                    return Err(refuse("r", format!("at most {most} singular vectors"), r.to_string()));
                }
                if module.scale <= 0.0 {
                    return Err(refuse("lora_alpha", "a scale above 0".to_owned(), module.scale.to_string()));
                }
                pissa(module, &weight(source, module)?);
            }
        }
    }
    adapter.saved = saved_tensors(source, &adapter.config.saved_modules(&source.config)?)?;
    adapter.tokens = tokens(&adapter.config, source)?.map(Box::new);
    tables(adapter, source, &mut rng)
}

/// The base model's rows of the tokens that are trained.
fn tokens(config: &LoraConfig, source: &Source) -> Result<Option<TrainedTokens>> {
    let (ids, width) = (&config.trainable_token_indices, source.config.embed_size);
    if ids.is_empty() {
        return Ok(None);
    }
    let table = source.view(ParamId::Embed)?.to_f32().map_err(Error::file(source.checkpoint().path()))?;
    let rows: Vec<f32> = ids.iter().flat_map(|&id| &table[id as usize * width..][..width]).copied().collect();
    match rows.iter().position(|x| !x.is_finite()) {
        None => Ok(Some(TrainedTokens { ids: ids.to_vec(), rows })),
        Some(at) => Err(Error::argument("trainable_token_indices", "rows of finite numbers", ids[at / width])),
    }
}

/// The same for the tables of tokens; with the base weights where PEFT saves them.
fn tables(adapter: &mut LoraAdapter, source: &Source, rng: &mut Rng) -> Result<()> {
    let (how, family) = (adapter.config.init_lora_weights, adapter.family);
    let saved = adapter.config.saves_tables(family)?;
    for table in &mut adapter.tables {
        let (path, r) = (family.table_path(table.at), table.r);
        let refuse = |name: &str, expected: &str, found: String| {
            Err(Error::argument(name, format!("{expected}, of {path}"), found))
        };
        let width = table.a.len() / r;
        let mut normal =
            |values: &mut Vec<f32>, factor: f64| values.iter_mut().for_each(|x| *x = (factor * rng.normal()) as f32);
        match (how, table.at) {
            (InitLoraWeights::Pissa, _) => {
                return refuse("init_lora_weights", "a start that leaves the base model as it is", "pissa".to_owned());
            }
            (InitLoraWeights::False, Table::Embed) => {
                normal(&mut table.a, 1.0);
                normal(&mut table.b, 1.0);
            }
            (_, Table::Embed) => normal(&mut table.b, 1.0),
            (InitLoraWeights::Gaussian, Table::Head) => normal(&mut table.a, 1.0 / r as f64),
            (InitLoraWeights::Orthogonal, Table::Head) if r % 2 == 1 => {
                return refuse("r", "an even rank for an orthogonal start", r.to_string());
            }
            (InitLoraWeights::Orthogonal, Table::Head) => orthogonal(rng, r, &mut table.a, &mut table.b),
            (InitLoraWeights::True, Table::Head) => uniform(rng, &mut table.a, width),
            (InitLoraWeights::False, Table::Head) => {
                uniform(rng, &mut table.a, width);
                uniform(rng, &mut table.b, r);
            }
        }
        if saved {
            table.base = Some(Arc::new(base(source, table.at)?));
        }
    }
    Ok(())
}

/// The base model's table.
fn base(source: &Source, at: Table) -> Result<BaseTable> {
    let values = |id: ParamId| {
        let view = source.view(id)?;
        view.check_finite().and_then(|()| view.to_f32()).map_err(Error::file(source.checkpoint().path()))
    };
    let tied = source.config.tie_word_embeddings;
    let bias = (at == Table::Head && source.config.head_bias).then_some(ParamId::HeadBias);
    Ok(BaseTable {
        weight: values(if at == Table::Embed || tied { ParamId::Embed } else { ParamId::Head })?,
        bias: bias.map(values).transpose()?,
    })
}

/// Refuses an adapter, read from `path`, whose file has another base model's tables: PEFT puts those in the model's place. Where they
/// are the model's rounded to 16 bits, as PEFT saves them from a model that it loaded so, the model's own stay, and a warning says it.
///
/// # Errors
/// Such a table.
pub fn check_base(adapter: &LoraAdapter, path: &Path, source: &Source) -> Result<()> {
    let to_bf16: fn(f32) -> f32 = |x| bf16::from_f32(x).to_f32();
    let to_f16: fn(f32) -> f32 = |x| f16::from_f32(x).to_f32();
    let roundings = [("bfloat16", to_bf16), ("float16", to_f16)];
    for TableLora { at, base: of_file, .. } in &adapter.tables {
        let Some(of_file) = of_file else { continue };
        let own = base(source, *at)?;
        let biases = own.bias.as_ref().zip(of_file.bias.as_ref()).map(|(own, of_file)| ("bias", own, of_file));
        for (kind, own, of_file) in [("weight", &own.weight, &of_file.weight)].into_iter().chain(biases) {
            if own == of_file {
                continue;
            }
            let name = format!("{}.base_layer.{kind}", adapter.family.table_path(*at));
            let same = |round: fn(f32) -> f32| own.iter().zip(of_file).all(|(own, of_file)| round(*own) == *of_file);
            match roundings.into_iter().find(|&(_, round)| same(round)) {
                Some((dtype, _)) => log::warn!(
                    "{}: {name}: the base model's values rounded to {dtype}; the model's own are used, where PEFT takes these",
                    path.display()
                ),
                None => return Err(Error::field(path, name, "the values that the base model has", "others")),
            }
        }
    }
    Ok(())
}

/// The base model without what its adapter starts with: `W - scale B A`, in each tensor's dtype.
///
/// # Errors
/// A base weight that is missing, or a value that is not finite.
pub fn without(adapter: &LoraAdapter, source: &Source) -> Result<Checkpoint> {
    let mut negative = adapter.clone();
    negative.modules.iter_mut().flat_map(|module| &mut module.b).for_each(|x| *x = -*x);
    let residual = |module: &LoraModule| {
        let (view, _) = source.module(module.layer, module.target)?;
        merge::merged(source, &negative, module, view.dtype)
    };
    let tensors = negative.modules.iter().map(residual).collect::<Result<Vec<_>>>()?;
    Ok(source.checkpoint().clone().with(tensors))
}

/// Kaiming's uniform distribution with a = sqrt 5, that of PyTorch's linear layers.
pub(super) fn uniform<E: AccElement>(rng: &mut Rng, values: &mut [E], input: usize) {
    let bound = 1.0 / (input as f32).sqrt();
    values.iter_mut().for_each(|x| *x = E::from_f64(f64::from(rng.symmetric(bound))));
}

/// Of an orthogonal matrix `[R, R]`, A is made of the even rows and B of the odd ones: `B A = 0`.
fn orthogonal(rng: &mut Rng, r: usize, a: &mut [f32], b: &mut [f32]) {
    let mut rows: Vec<Vec<f64>> = Vec::with_capacity(r);
    while rows.len() < r {
        let mut row: Vec<f64> = (0..r).map(|_| rng.normal()).collect();
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        // Twice, since the first leaves what rounding puts back.
        for other in rows.iter().chain(&rows) {
            let along = dot(&row, other);
            row.iter_mut().zip(other).for_each(|(x, y)| *x -= along * y);
        }
        let norm = dot(&row, &row).sqrt();
        if norm > 1e-6 {
            row.iter_mut().for_each(|x| *x /= norm);
            rows.push(row);
        }
    }
    let mut mix = |first: usize| -> Vec<f64> {
        let parts: Vec<f64> = (0..r / 2).map(|_| rng.normal() / 10.0).collect();
        (0..r).map(|j| parts.iter().zip(rows.iter().skip(first).step_by(2)).map(|(x, row)| x * row[j]).sum()).collect()
    };
    let input = a.len() / r;
    for i in 0..input {
        mix(0).into_iter().enumerate().for_each(|(j, x)| a[j * input + i] = x as f32);
    }
    for row in b.chunks_exact_mut(r) {
        row.iter_mut().zip(mix(1)).for_each(|(b, x)| *b = x as f32);
    }
}

/// `A = sqrt(S / scale) V'` and `B = U sqrt(S / scale)` of the leading singular values.
fn pissa(module: &mut LoraModule, weight: &[f32]) {
    let input = module.a.len() / module.r;
    let found = leading(weight, input, module.r);
    for (i, &value) in found.values.iter().enumerate() {
        let root = (value / module.scale).sqrt();
        let a = &mut module.a[i * input..(i + 1) * input];
        a.iter_mut().zip(&found.right[i * input..]).for_each(|(a, v)| *a = (root * v) as f32);
        let b = module.b.iter_mut().skip(i).step_by(module.r);
        b.zip(&found.left[i * weight.len() / input..]).for_each(|(b, u)| *b = (root * u) as f32);
    }
}

/// The base weight `[output, input]` of a module; of a fused one its parts one after another, as in B.
fn weight(source: &Source, module: &LoraModule) -> Result<Vec<f32>> {
    let mut all = Vec::new();
    for &part in module.target.parts() {
        let view = source.view(ParamId::Weight(module.layer, part))?;
        let error = Error::file(source.checkpoint().path());
        all.extend(view.check_finite().and_then(|()| view.to_f32()).map_err(error)?);
    }
    Ok(all)
}
