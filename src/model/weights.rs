//! The frozen weights: which tensors a checkpoint must hold, and where they go.
//!
//! The only file that knows the names of a checkpoint's tensors.

use std::collections::HashSet;

use super::spec::Spec;
use crate::Result;
use crate::backend::Backend;
use crate::formats::adapter::Target;
use crate::formats::safetensors::Checkpoint;

/// One projection.
pub struct Projection<B: Backend> {
    /// `[output, input]`.
    pub weight: B::Weight,
    /// `[output]`.
    pub bias: Option<B::Weight>,
}

/// The weights of a block.
pub struct Layer<B: Backend> {
    /// Norm before the attention `[C]`.
    pub attn_norm: B::Weight,
    /// Norm before the MLP `[C]`.
    pub mlp_norm: B::Weight,
    /// The projections, by `Target as usize`.
    pub projections: [Projection<B>; 7],
}

impl<B: Backend> Layer<B> {
    /// One of the projections.
    pub fn projection(&self, target: Target) -> &Projection<B> {
        &self.projections[target as usize]
    }
}

/// All weights of a model.
pub struct Weights<B: Backend> {
    /// Embedding table `[V, C]`.
    pub embed: B::Weight,
    /// The blocks.
    pub layers: Vec<Layer<B>>,
    /// Final norm `[C]`.
    pub final_norm: B::Weight,
    /// Head `[V, C]`; none if it is the embedding table.
    pub head: Option<B::Weight>,
}

impl<B: Backend> Weights<B> {
    /// The weights of an opened checkpoint, left in its mapping where the device can.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape than `spec` says, or is unknown; a device out of memory.
    pub fn load(backend: &mut B, spec: &Spec, checkpoint: &Checkpoint) -> Result<Self> {
        let places = Place::all(spec);
        let known: HashSet<String> = places.iter().map(|place| place.tensor()).collect();
        // Old exports hold a table of the rotation, and some hold the tied head once more: neither is read.
        let passed_over =
            |name: &str| name.ends_with(".rotary_emb.inv_freq") || (spec.tied && name == Place::Head.tensor());
        checkpoint.deny_unexpected(|name| known.contains(name) || passed_over(name))?;
        let load = |place: &Place| backend.weight(&checkpoint.expect(&place.tensor(), &place.shape(spec))?);
        Ok(Self::assemble(spec, places.iter().map(load).collect::<Result<_>>()?))
    }

    /// Puts weights in the order of [`Place::all`] into their places.
    pub(super) fn assemble(spec: &Spec, weights: Vec<B::Weight>) -> Self {
        let mut weights = weights.into_iter();
        let mut next = || weights.next().expect("weights: one for every place");
        let embed = next();
        let layers = (0..spec.layers)
            .map(|_| Layer {
                attn_norm: next(),
                mlp_norm: next(),
                projections: Target::ALL.map(|target| Projection {
                    weight: next(),
                    bias: if spec.bias(target) { Some(next()) } else { None },
                }),
            })
            .collect();
        Self { embed, layers, final_norm: next(), head: if spec.tied { None } else { Some(next()) } }
    }

    /// The head `[V, C]`.
    pub fn head(&self) -> &B::Weight {
        self.head.as_ref().unwrap_or(&self.embed)
    }

    /// Every weight, in the order of [`Place::all`].
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut B::Weight> {
        let layers = self.layers.iter_mut().flat_map(|layer| {
            let projections =
                layer.projections.iter_mut().flat_map(|p| std::iter::once(&mut p.weight).chain(&mut p.bias));
            [&mut layer.attn_norm, &mut layer.mlp_norm].into_iter().chain(projections)
        });
        std::iter::once(&mut self.embed)
            .chain(layers)
            .chain(std::iter::once(&mut self.final_norm))
            .chain(&mut self.head)
    }
}

/// One weight of the base model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// Embedding table.
    Embed,
    /// Norm before a layer's attention.
    AttnNorm(usize),
    /// Norm before a layer's MLP.
    MlpNorm(usize),
    /// A projection of a layer.
    Weight(usize, Target),
    /// Its bias.
    Bias(usize, Target),
    /// Final norm.
    FinalNorm,
    /// Head, where it is not tied.
    Head,
}

impl Place {
    /// Every weight that a model has, in the one order of loading and of the flat parameters of full tuning.
    pub fn all(spec: &Spec) -> Vec<Self> {
        let mut all = vec![Self::Embed];
        for layer in 0..spec.layers {
            all.extend([Self::AttnNorm(layer), Self::MlpNorm(layer)]);
            for target in Target::ALL {
                all.push(Self::Weight(layer, target));
                if spec.bias(target) {
                    all.push(Self::Bias(layer, target));
                }
            }
        }
        all.push(Self::FinalNorm);
        if !spec.tied {
            all.push(Self::Head);
        }
        all
    }

    /// The tensor's name in a checkpoint.
    pub fn tensor(self) -> String {
        match self {
            Self::Embed => "model.embed_tokens.weight".to_owned(),
            Self::AttnNorm(layer) => format!("model.layers.{layer}.input_layernorm.weight"),
            Self::MlpNorm(layer) => format!("model.layers.{layer}.post_attention_layernorm.weight"),
            Self::Weight(layer, target) => format!("{}.weight", target.path(layer)),
            Self::Bias(layer, target) => format!("{}.bias", target.path(layer)),
            Self::FinalNorm => "model.norm.weight".to_owned(),
            Self::Head => "lm_head.weight".to_owned(),
        }
    }

    /// Its shape.
    pub fn shape(self, spec: &Spec) -> Vec<usize> {
        match self {
            Self::Embed | Self::Head => vec![spec.vocab, spec.width],
            Self::AttnNorm(_) | Self::MlpNorm(_) | Self::FinalNorm => vec![spec.width],
            Self::Weight(_, target) => {
                let (input, output) = spec.widths(target);
                vec![output, input]
            }
            Self::Bias(_, target) => vec![spec.widths(target).1],
        }
    }

    /// Number of elements.
    pub fn len(self, spec: &Spec) -> usize {
        self.shape(spec).iter().product()
    }
}
