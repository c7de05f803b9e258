//! What a training changes: adapters, what makes them, or the base's own weights.

use crate::backend::Backend;
use crate::model::{Adaptation, Encoder, FullTuning, Layout, Model};

/// What is trained, and how the model reads it.
pub enum Trainable<B: Backend> {
    /// An adapter (or soft prompt) per run, over the frozen base.
    Adapters(Adaptation<B>),
    /// An MLP per run that makes its soft prompt (the reparameterisation of Li and Liang 2021).
    Reparameterized(Encoder<B>),
    /// All base weights, in one run.
    Weights(FullTuning<B>),
}

impl<B: Backend> Trainable<B> {
    /// Number of runs and parameters of each.
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Self::Adapters(adaptation) => (adaptation.runs, adaptation.layout.stride),
            Self::Reparameterized(encoder) => (encoder.adaptation.runs, encoder.stride),
            Self::Weights(full) => (1, full.layout.total),
        }
    }

    /// The parameters `[runs, stride]`.
    pub fn params(&self) -> &B::Acc {
        match self {
            Self::Adapters(adaptation) => &adaptation.params,
            Self::Reparameterized(encoder) => &encoder.params,
            Self::Weights(full) => &full.params,
        }
    }

    /// The same, to be changed.
    pub fn params_mut(&mut self) -> &mut B::Acc {
        match self {
            Self::Adapters(adaptation) => &mut adaptation.params,
            Self::Reparameterized(encoder) => &mut encoder.params,
            Self::Weights(full) => &mut full.params,
        }
    }

    /// The adapters as the model reads them; none where its own weights are trained.
    pub fn adaptation(&self) -> Option<&Adaptation<B>> {
        match self {
            Self::Adapters(adaptation) => Some(adaptation),
            Self::Reparameterized(encoder) => Some(&encoder.adaptation),
            Self::Weights(_) => None,
        }
    }

    /// How the adapters lie in the parameters that the model reads.
    pub fn layout(&self) -> Option<&Layout> {
        self.adaptation().map(|adaptation| &adaptation.layout)
    }

    /// Bytes of what is made from the parameters, given those of an element of each kind of buffer.
    pub fn materialized_bytes(&self, element_sizes: (usize, usize)) -> usize {
        match self {
            Self::Reparameterized(encoder) => self.materialized() * element_sizes.0 + encoder.bytes(element_sizes),
            Self::Adapters(adaptation) => adaptation.layout.materialized_bytes(adaptation.runs, element_sizes),
            Self::Weights(_) => 0,
        }
    }

    /// Elements of what the model reads `[runs, stride of the prompts]`, where that is materialized from the parameters rather than
    /// the parameters themselves.
    pub(super) fn materialized(&self) -> usize {
        match self {
            Self::Reparameterized(encoder) => encoder.adaptation.runs * encoder.adaptation.layout.stride,
            Self::Adapters(_) | Self::Weights(_) => 0,
        }
    }

    /// Sees to it that `model` computes with the parameters as they are now.
    pub(super) fn refresh(&mut self, backend: &mut B, model: &mut Model<B>) {
        match self {
            Self::Adapters(adaptation) => {
                adaptation.refresh(backend);
                adaptation.refresh_weights(backend, model);
                adaptation.update_norms(backend, model);
            }
            Self::Reparameterized(encoder) => encoder.refresh(backend),
            Self::Weights(full) => full.refresh(backend, model),
        }
    }
}
