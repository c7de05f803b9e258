//! The frozen weights on the device.

use super::param_id::{NormAt, ParamId};
use crate::Result;
use crate::arch::ModelConfig;
use crate::arch::Projection;
use crate::arch::{Norm as NormKind, Positions};
use crate::backend::Backend;
use crate::formats::quantized::WeightView;

/// One projection.
pub struct Linear<B: Backend> {
    /// `[output, input]`.
    pub weight: B::Weight,
    /// `[output]`.
    pub bias: Option<B::Weight>,
}

/// One norm.
pub struct Norm<B: Backend> {
    /// `[C]`.
    pub weight: B::Weight,
    /// `[C]`, of a layer norm.
    pub bias: Option<B::Weight>,
}

/// The weights of a block.
pub struct Layer<B: Backend> {
    /// The norms, in the order of [`NormAt::of_block`].
    norms: Vec<(NormAt, Norm<B>)>,
    /// The projections, by `Projection as usize`; an MLP without a gate has no gate projection.
    projections: [Option<Linear<B>>; 7],
}

impl<B: Backend> Layer<B> {
    /// One of the projections.
    ///
    /// # Panics
    /// If the model has no such projection.
    pub fn projection(&self, target: Projection) -> &Linear<B> {
        let projection = self.projections[target as usize].as_ref();
        projection.unwrap_or_else(|| panic!("weights: no projection {}", target.name()))
    }

    /// One of the norms.
    ///
    /// # Panics
    /// If the block has no such norm.
    pub fn norm(&self, at: NormAt) -> &Norm<B> {
        let norm = self.norms.iter().find(|(here, _)| *here == at);
        &norm.unwrap_or_else(|| panic!("weights: no norm {at:?}")).1
    }
}

/// All weights of a model.
pub struct Weights<B: Backend> {
    /// Embedding table `[V, E]`.
    pub embed: B::Weight,
    /// From the table's width to the residual stream's `[C, E]`.
    pub project_in: Option<B::Weight>,
    /// Learned positions.
    pub positions: Option<B::Weight>,
    /// Norm of the embeddings.
    pub embed_norm: Option<Norm<B>>,
    /// The blocks.
    pub layers: Vec<Layer<B>>,
    /// Final norm.
    pub final_norm: Option<Norm<B>>,
    /// From the residual stream's width to the head's `[E, C]`.
    pub project_out: Option<B::Weight>,
    /// Head `[V, E]`; none if it is the embedding table, or if the model has no head.
    pub head: Option<B::Weight>,
    /// Its bias `[V]`, also of a tied one.
    pub head_bias: Option<B::Weight>,
    /// Whether an adapter's own are among them ([`super::installed`]).
    pub(crate) owned: bool,
}

impl<B: Backend> Weights<B> {
    /// The weights of which these are the views, in the order of [`ParamId::all`], left in a file's mapping where the file's form and the
    /// device allow; each view is let go when the device has its weight.
    ///
    /// # Errors
    /// The first view that is an error; a device out of memory.
    pub(super) fn load(
        backend: &mut B,
        config: &ModelConfig,
        views: impl Iterator<Item = Result<WeightView>>,
    ) -> Result<Self> {
        let load = |(id, view)| {
            if let ParamId::Weight(_, target) = id {
                config.lay_beside(backend, target, usize::MAX);
            }
            match view? {
                WeightView::Plain(view) => backend.weight(&view),
                WeightView::Quantized(view) => backend.quantized_weight(&view),
            }
        };
        let weights = ParamId::all(config).into_iter().zip(views).map(load).collect::<Result<_>>()?;
        Ok(Self::assemble(config, weights))
    }

    /// Matrices that passes of many rows take as a whole before they come to the head.
    pub(super) fn before_head(&self) -> impl Iterator<Item = &B::Weight> {
        let projections = self.layers.iter().flat_map(|layer| layer.projections.iter().flatten());
        let others = [&self.project_in, &self.positions, &self.project_out].into_iter().flatten();
        projections.map(|linear| &linear.weight).chain(others)
    }

    /// The model's weights from those in the order of [`ParamId::all`].
    pub(super) fn assemble(config: &ModelConfig, weights: Vec<B::Weight>) -> Self {
        let mut weights = weights.into_iter();
        let mut next = || weights.next().expect("weights: one for every parameter");
        let projected = config.embed_size != config.hidden_size;
        let norm = |next: &mut dyn FnMut() -> B::Weight| Norm {
            weight: next(),
            bias: (config.norm == NormKind::Layer).then(next),
        };
        let embed = next();
        let project_in = projected.then(&mut next);
        let positions = matches!(config.positions, Positions::Learned { .. }).then(&mut next);
        let embed_norm = config.embed_norm.then(|| norm(&mut next));
        let mut layer = |layer| {
            let norms = NormAt::of_block(config, layer).into_iter().map(|at| (at, norm(&mut next))).collect();
            let mut projections = [const { None }; 7];
            for &target in config.targets() {
                let weight = next();
                let bias = config.bias(target).then(&mut next);
                projections[target as usize] = Some(Linear { weight, bias });
            }
            Layer { norms, projections }
        };
        let layers = (0..config.num_hidden_layers).map(&mut layer).collect();
        let final_norm = config.final_norm.then(|| norm(&mut next));
        let project_out = projected.then(&mut next);
        let head = (config.lm_head && !config.tie_word_embeddings).then(&mut next);
        let head_bias = (config.lm_head && config.head_bias).then(&mut next);
        let owned = false;
        Self { embed, project_in, positions, embed_norm, layers, final_norm, project_out, head, head_bias, owned }
    }

    /// The head `[V, E]`, of a model that has one ([`ModelConfig::require_head`]).
    pub fn head(&self) -> &B::Weight {
        self.head.as_ref().unwrap_or(&self.embed)
    }

    /// A norm.
    ///
    /// # Panics
    /// If the model has no such norm.
    pub fn norm(&self, at: NormAt) -> &Norm<B> {
        match at {
            NormAt::Embed => self.embed_norm.as_ref().expect("weights: no norm of the embeddings"),
            NormAt::Attn(layer)
            | NormAt::AttnOut(layer)
            | NormAt::Mlp(layer)
            | NormAt::MlpOut(layer)
            | NormAt::Q(layer)
            | NormAt::K(layer) => self.layers[layer].norm(at),
            NormAt::Final => self.final_norm.as_ref().expect("weights: no final norm"),
        }
    }

    /// Every weight, in the order of [`ParamId::all`].
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut B::Weight> {
        fn norm<B: Backend>(norm: &mut Norm<B>) -> impl Iterator<Item = &mut B::Weight> {
            std::iter::once(&mut norm.weight).chain(&mut norm.bias)
        }
        let layers = self.layers.iter_mut().flat_map(|layer| {
            let projections = layer.projections.iter_mut().flatten();
            let projections = projections.flat_map(|p| std::iter::once(&mut p.weight).chain(&mut p.bias));
            layer.norms.iter_mut().flat_map(|(_, weights)| norm(weights)).chain(projections)
        });
        std::iter::once(&mut self.embed)
            .chain(&mut self.project_in)
            .chain(&mut self.positions)
            .chain(self.embed_norm.iter_mut().flat_map(norm))
            .chain(layers)
            .chain(self.final_norm.iter_mut().flat_map(norm))
            .chain(&mut self.project_out)
            .chain(&mut self.head)
            .chain(&mut self.head_bias)
    }
}
