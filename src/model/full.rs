//! Full tuning: all base weights as one flat buffer of parameters in the accumulation dtype, `[1, total]`.

use std::collections::HashMap;
use std::path::Path;

use super::Model;
use super::param_id::{ParamId, Source};
use super::rounded::encode;
use super::weights::Weights;
use crate::arch::{Family, ModelConfig};
use crate::backend::ops::RefreshWeight;
use crate::backend::{AccElement, Backend};
use crate::formats::safetensors::{Checkpoint, Dtype, TensorFile, TensorSpec, TensorView};
use crate::random::Rng;
use crate::{Error, Result};

/// Where each weight lies in the flat parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightLayout {
    /// Number of parameters.
    pub total: usize,
    params: Vec<(ParamId, usize)>,
    offsets: HashMap<ParamId, usize>,
}

impl WeightLayout {
    /// The layout of a model's weights.
    pub fn new(config: &ModelConfig) -> Self {
        Self::of(config, ParamId::all(config), 0)
    }

    /// That of some of its weights, in the order of [`ParamId::all`], from element `first` on.
    pub(super) fn of(config: &ModelConfig, ids: Vec<ParamId>, first: usize) -> Self {
        let mut end = first;
        let mut params = Vec::new();
        for id in ids {
            params.push((id, end));
            end += id.len(config);
        }
        let offsets = params.iter().copied().collect();
        Self { total: end - first, params, offsets }
    }

    /// The tensors that hold these weights.
    pub fn names(&self, family: Family) -> Vec<String> {
        self.params.iter().map(|(id, _)| id.tensor(family)).collect()
    }

    /// The first element of a weight, if it is one of these.
    pub(super) fn get(&self, id: ParamId) -> Option<usize> {
        self.offsets.get(&id).copied()
    }

    /// The first element of a weight.
    ///
    /// # Panics
    /// If the model has no such weight.
    pub fn offset(&self, id: ParamId) -> usize {
        *self.offsets.get(&id).unwrap_or_else(|| panic!("weight layout: no {id:?}"))
    }

    /// Every weight with its first element, in the order of [`ParamId::all`].
    pub fn params(&self) -> &[(ParamId, usize)] {
        &self.params
    }
}

/// Trainable copies of all base weights.
pub struct FullTuning<B: Backend> {
    /// Where each weight lies.
    pub layout: WeightLayout,
    /// The weights `[total]`, in the accumulation dtype.
    pub params: B::Acc,
}

impl<B: Backend> FullTuning<B> {
    /// A model of a checkpoint's weights, to be trained.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape or dtype; a device out of memory.
    pub fn load(backend: &mut B, config: ModelConfig, checkpoint: &Checkpoint) -> Result<(Model<B>, Self)> {
        let source = Source::new(&config, checkpoint)?;
        let layout = WeightLayout::new(&source.config);
        let mut params = backend.acc(layout.total)?;
        for &(id, offset) in layout.params() {
            let values: Vec<B::Element> = elements(&source.view(id)?)?;
            backend.upload(&mut params, offset, &values)?;
        }
        Self::new(backend, source.config, params)
    }

    /// A model of random weights, to be trained from the start: matrices normal with standard deviation `std`, norms one,
    /// biases zero. The same seed gives the same weights on every device.
    ///
    /// # Errors
    /// A device out of memory.
    pub fn random(backend: &mut B, config: ModelConfig, std: f64, seed: u64) -> Result<(Model<B>, Self)> {
        let layout = WeightLayout::new(&config);
        let mut params = backend.acc(layout.total)?;
        let mut rng = Rng::new(seed);
        for &(id, offset) in layout.params() {
            let mut value = |id| match id {
                ParamId::Norm(_) => 1.0,
                ParamId::NormBias(_) | ParamId::Bias(..) | ParamId::HeadBias => 0.0,
                _ => std * rng.normal(),
            };
            let values: Vec<_> = (0..id.len(&config)).map(|_| B::Element::from_f64(value(id))).collect();
            backend.upload(&mut params, offset, &values)?;
        }
        Self::new(backend, config, params)
    }

    /// A model whose weights are the parameters `params`, laid out as [`WeightLayout`] says.
    ///
    /// # Errors
    /// A device out of memory.
    pub fn new(backend: &mut B, config: ModelConfig, params: B::Acc) -> Result<(Model<B>, Self)> {
        let layout = WeightLayout::new(&config);
        let copies = layout
            .params()
            .iter()
            .map(|&(id, offset)| backend.trainable_weight(&params, offset, id.len(&config)))
            .collect::<Result<_>>()?;
        let weights = Weights::assemble(&config, copies);
        Ok((Model { config, weights }, Self { layout, params }))
    }

    /// Writes the weights of a LLaMA to a safetensors file, rounded to `dtype`, which is f32, bf16 or f16.
    ///
    /// # Errors
    /// The device fails, or the file cannot be written.
    pub fn save(&self, backend: &mut B, config: &ModelConfig, path: &Path, dtype: Dtype) -> Result<()> {
        let mut host = vec![B::Element::default(); self.layout.total];
        backend.download(&mut host, &self.params, 0)?;
        backend.sync()?;
        let specs = self.layout.params().iter().map(|(id, _)| {
            let (name, shape) = (id.tensor(config.family), id.shape(config));
            TensorSpec { name, dtype, shape }
        });
        let mut file = TensorFile::create(path, specs.collect(), &[("format", "pt")])?;
        for &(id, offset) in self.layout.params() {
            let (name, values) = (id.tensor(config.family), &host[offset..offset + id.len(config)]);
            let values: Vec<f32> = values.iter().map(|x| x.to_f64() as f32).collect();
            file.append(&name, &encode(&name, &values, dtype)?)?;
        }
        file.finish()
    }

    /// Makes `model` compute with the present parameters: to be called after a step of the optimiser.
    pub fn refresh(&self, backend: &mut B, model: &mut Model<B>) {
        for (weight, &(_, offset)) in model.weights.iter_mut().zip(self.layout.params()) {
            backend.refresh_weight(RefreshWeight { weight, params: &self.params, offset });
        }
    }
}

fn elements<E: AccElement>(view: &TensorView) -> Result<Vec<E>> {
    if view.dtype == Dtype::F64 {
        let values = view.as_slice::<f64>().map_err(Error::file(&view.name))?;
        return Ok(values.iter().map(|&x| E::from_f64(x)).collect());
    }
    let values = view.to_f32().map_err(Error::file(&view.name))?;
    Ok(values.into_iter().map(|x| E::from_f64(f64::from(x))).collect())
}
