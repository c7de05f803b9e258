//! Saved modules of a run of adapters ([`super::saved_modules`]), in a model in the place of those that it was loaded with.

use super::Model;
use super::adaptation::Adaptation;
use super::param_id::ParamId;
use super::token_site::TokenHead;
use crate::Result;
use crate::backend::Backend;
use crate::backend::ops::RefreshWeight;
use crate::formats::adapter::Adapter;

impl<B: Backend> Adaptation<B> {
    /// An adapter as read, as the only run; its saved modules take the place of the model's.
    ///
    /// # Errors
    /// As [`Adaptation::of_adapter`].
    pub fn applied(backend: &mut B, model: &mut Model<B>, adapter: &Adapter) -> Result<Self> {
        let mut adaptation = Self::of_adapter(backend, model, adapter)?;
        adaptation.install(backend, model)?;
        Ok(adaptation)
    }

    /// Puts its saved modules in the place of the model's, and prepares trained rows of the embedding table; nothing where there
    /// are none.
    ///
    /// # Errors
    /// If the device has no memory for them.
    ///
    /// # Panics
    /// If the model has another adapter's.
    pub fn install(&mut self, backend: &mut B, model: &mut Model<B>) -> Result<()> {
        if let Some(tokens) = &self.layout.tokens {
            self.token_head = TokenHead::new(backend, &model.weights.embed, tokens)?;
            self.refresh(backend);
            self.update_norms(backend, model);
        }
        let Some(saved) = &self.layout.saved else { return Ok(()) };
        assert!(!model.weights.owned, "install: the model has an adapter's weights");
        for &(id, offset) in saved.layout.params() {
            let own = backend.trainable_weight(&self.params, offset, id.len(&model.config))?;
            let tied = model.config.tie_word_embeddings;
            match id {
                ParamId::Head if tied => {
                    model.weights.head = Some(own);
                    model.config.tie_word_embeddings = false;
                }
                // The head stays what it was.
                ParamId::Embed if tied && !saved.ties_head => {
                    model.weights.head = Some(std::mem::replace(&mut model.weights.embed, own));
                    model.config.tie_word_embeddings = false;
                }
                _ => *model.weight_mut(id) = own,
            }
        }
        model.weights.owned = true;
        Ok(())
    }

    /// Makes `model`, which has its weights, compute with the present ones.
    pub fn refresh_weights(&self, backend: &mut B, model: &mut Model<B>) {
        for &(id, offset) in self.layout.saved.iter().flat_map(|saved| saved.layout.params()) {
            backend.refresh_weight(RefreshWeight { weight: model.weight_mut(id), params: &self.params, offset });
        }
    }
}

impl<B: Backend> Model<B> {
    /// One of the weights.
    ///
    /// # Panics
    /// If the model has no such weight.
    fn weight_mut(&mut self, id: ParamId) -> &mut B::Weight {
        let mut all = ParamId::all(&self.config).into_iter().zip(self.weights.iter_mut());
        all.find(|(here, _)| *here == id).unwrap_or_else(|| panic!("weights: no {id:?}")).1
    }
}
