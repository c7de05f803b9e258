//! A session of decoding: passes over a growing cache, whose buffers are made once.

use super::Model;
use super::activations::{Activations, Save, counted};
use super::adaptation::Adaptation;
use super::edits::{EditSet, PassEdits};
use super::input::Input;
use super::kv_cache::{Cache, KvCache};
use super::layout::Layout;
use super::logit_buffers::LogitBuffers;
use super::output_rows::OutputRows;
use crate::Result;
use crate::arch::ModelConfig;
use crate::backend::Backend;
use crate::hooks::{Edit, EditRows, NoTaps};
use crate::pack::{CachedSegment, Pack};

/// What a session has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecoderSize {
    /// Rows of the largest pass.
    pub rows: usize,
    /// Rows of all segments that are cached.
    pub cache_rows: usize,
    /// Rows whose logits a pass gives, at most.
    pub logit_rows: usize,
    /// Positions of the longest sequence.
    pub positions: usize,
}

impl DecoderSize {
    /// Bytes of a session of this size, without making it.
    pub fn bytes(self, config: &ModelConfig, layout: Option<&Layout>, element_sizes: (usize, usize)) -> usize {
        counted(element_sizes, |device| {
            let mut acts = Activations::new(device, config, layout, self.rows, Save::Layer)?;
            acts.reserve_positions(device, self.positions)?;
            KvCache::new(device, config.num_hidden_layers, self.cache_rows, config.kv_width())?;
            LogitBuffers::new(device, config, layout, self.logit_rows)
        })
    }
}

/// A model, adapters, and the buffers and the cache of their passes. A pass allocates no buffer and computes nothing that
/// depends on earlier tokens, except through the cache.
pub struct Decoder<'a, B: Backend> {
    model: &'a Model<B>,
    adaptation: Option<&'a Adaptation<B>>,
    edits: Option<EditSet<B>>,
    acts: Activations<B>,
    cache: KvCache<B>,
    buffers: LogitBuffers<B>,
    /// Logits of the last pass on the host, `[logit_rows, V]`.
    logits: Vec<B::Element>,
}

impl<'a, B: Backend> Decoder<'a, B> {
    /// A session with an empty cache.
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn new(
        backend: &mut B,
        model: &'a Model<B>,
        adaptation: Option<&'a Adaptation<B>>,
        size: DecoderSize,
    ) -> Result<Self> {
        let (config, layout) = (&model.config, adaptation.map(|adaptation| &adaptation.layout));
        let mut acts = Activations::new(backend, config, layout, size.rows, Save::Layer)?;
        acts.reserve_positions(backend, size.positions)?;
        let cache = KvCache::new(backend, config.num_hidden_layers, size.cache_rows, config.kv_width())?;
        let buffers = LogitBuffers::new(backend, config, layout, size.logit_rows)?;
        let logits = vec![B::Element::default(); size.logit_rows * config.vocab_size];
        Ok(Self { model, adaptation, edits: None, acts, cache, buffers, logits })
    }

    /// The same with edits, none of which are no edits at all.
    ///
    /// # Errors
    /// See [`EditSet::new`].
    pub fn edited(self, backend: &mut B, edits: &[Edit]) -> Result<Self> {
        let edits = match edits {
            [] => None,
            edits => Some(EditSet::new(backend, &self.model.config, edits)?),
        };
        Ok(Self { edits, ..self })
    }

    /// The segments in the cache, which packs may continue.
    pub fn cached(&self) -> &[CachedSegment] {
        &self.cache.segments
    }

    /// Empties the cache.
    pub fn forget(&mut self) {
        (self.cache.segments, self.cache.used) = (Vec::new(), 0);
    }

    /// One pass without edits, whose segments `append` are added to the cache; the logits `[rows, V]` after the pack rows
    /// `rows`.
    ///
    /// # Errors
    /// See [`Model::forward`]; a failing device.
    ///
    /// # Panics
    /// If pack, cache or rows are more than the session has room for.
    pub fn pass(&mut self, backend: &mut B, pack: &Pack, append: &[usize], rows: &[usize]) -> Result<&[B::Element]> {
        self.edited_pass(backend, pack, append, rows, &EditRows::default())
    }

    /// The same with the session's edits at the pack rows `edited`.
    ///
    /// # Errors
    /// See [`Decoder::pass`].
    ///
    /// # Panics
    /// See [`Decoder::pass`].
    pub fn edited_pass(
        &mut self,
        backend: &mut B,
        pack: &Pack,
        append: &[usize],
        rows: &[usize],
        edited: &EditRows,
    ) -> Result<&[B::Element]> {
        let device = backend.pack(pack)?;
        let output = OutputRows::new(backend, pack, rows.iter().copied())?;
        let mut input = Input::new(pack, &device).with_output_rows(output.as_ref());
        input.adaptation = self.adaptation;
        let edits = self.edits.as_ref().filter(|_| !edited.is_empty());
        let edits = edits.map(|set| PassEdits::new(backend, set, edited, output.as_ref())).transpose()?;
        input.edits = edits.as_ref();
        let cache = Cache { cache: &mut self.cache, append };
        self.model.forward(backend, &mut self.acts, &input, Some(cache), &mut NoTaps)?;
        self.model.logits_on_device(backend, &self.acts, Some(&input), rows, &mut self.buffers)?;
        let logits = &mut self.logits[..rows.len() * self.model.config.vocab_size];
        backend.download(logits, &self.buffers.logits, 0)?;
        backend.sync()?;
        Ok(logits)
    }
}
