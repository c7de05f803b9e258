//! What the base model and its adapted ones have in common: everything below the first adapted layer.
//!
//! A row's state there depends on its own prompt alone, bit for bit where the device is [`ROW_INVARIANT`], so that the base model's
//! reading of a query gives the residual stream with which an adapted reading of the same query begins.
//!
//! [`ROW_INVARIANT`]: crate::backend::Planning::ROW_INVARIANT

use std::collections::HashMap;

use super::arm_states::ArmStates;
use super::packing::{Batch, Group};
use crate::Result;
use crate::backend::{Backend, Captured};
use crate::hooks::{Record, Site, Tapped, Taps, take};
use crate::model::{Activations, Model, Save, Start, StartRows};

/// What the base model's readings leave to adapted ones.
pub(super) struct Below {
    /// The lowest adapted layer.
    pub layer: usize,
    groups: HashMap<Group, BelowGroup>,
}

/// The same of one group.
#[derive(Default)]
pub(super) struct BelowGroup {
    /// The residual stream that enters the layer, of all rows of the group `[rows, C]`.
    stream: Vec<f32>,
    /// What was read, above the layer as well.
    pub states: Option<ArmStates>,
}

impl Below {
    /// None where a layer below is adapted or none is, or the device computes other bits in another pass.
    pub fn new<B: Backend>(layer: Option<usize>) -> Option<Self> {
        let exact = B::ROW_INVARIANT && size_of::<B::Element>() == size_of::<f32>();
        let layer = layer.filter(|&layer| layer > 0 && exact)?;
        Some(Self { layer, groups: HashMap::new() })
    }

    /// Whether the streams of all `groups` take no more memory than the activations of a pass of `rows` rows.
    pub fn fit<B: Backend>(&self, model: &Model<B>, groups: &[Group], rows: usize) -> bool {
        let kept: usize = groups.iter().map(Group::most_rows).sum();
        let sizes = (size_of::<f32>(), size_of::<f32>());
        let activations = Activations::<B>::bytes(&model.config, None, rows, Save::Layer, sizes);
        kept * model.config.hidden_size * size_of::<f32>() <= activations
    }

    /// Keeps the rows `[N, C]` of a batch of `groups`.
    pub fn keep(&mut self, groups: &[Group], batch: &Batch, rows: &[f32]) {
        let width = rows.len() / batch.pack.len();
        let mut rows = rows.chunks_exact(width);
        for (group, own) in &batch.origin {
            let stream = &mut self.groups.entry(groups[*group].clone()).or_default().stream;
            debug_assert_eq!(stream.len(), own.start * width, "below: a group's rows come in order");
            stream.extend(rows.by_ref().take(own.len()).flatten());
        }
    }

    /// Keeps what was read of a group.
    pub fn keep_states(&mut self, group: &Group, states: &ArmStates) {
        if let Some(kept) = self.groups.get_mut(group) {
            kept.states = Some(states.clone());
        }
    }

    /// None where the base model has not read the group's prompts.
    pub fn group(&self, group: &Group) -> Option<&BelowGroup> {
        self.groups.get(&Group { run: None, ..group.clone() }).filter(|group| group.states.is_some())
    }

    /// Where a pass of such rows begins.
    pub fn start<'a, B: Backend>(&self, resid: &'a [f32]) -> Start<'a, B> {
        Start { layer: self.layer, resid: StartRows::Host(resid) }
    }

    /// Whether a pass that begins at layer `start` does not come to a hook.
    pub fn is_below((site, layer): (Site, usize), start: usize) -> bool {
        site != Site::FINAL_NORM && layer < start
    }
}

/// The residual stream `[N, C]` with which a batch can begin: none where a group's is not known, or where keys of the batch have to be
/// cached in all layers.
pub(super) fn beginning(groups: &[Option<&BelowGroup>], batch: &Batch, width: usize) -> Option<Vec<f32>> {
    if !batch.cached.is_empty() {
        return None;
    }
    let mut resid = Vec::with_capacity(batch.pack.len() * width);
    for (group, own) in &batch.origin {
        resid.extend_from_slice(&groups[*group]?.stream[own.start * width..own.end * width]);
    }
    Some(resid)
}

/// A record that also takes the residual stream of all rows where it enters a layer.
pub(super) struct WithStream {
    pub record: Record,
    /// None if it is not wanted.
    pub layer: Option<usize>,
    pub stream: Option<Captured>,
}

impl WithStream {
    fn is_stream(&self, site: Site, layer: usize) -> bool {
        site == Site::ResidPost && Some(layer + 1) == self.layer
    }
}

impl<B: Backend> Taps<B> for WithStream {
    fn wants(&self, site: Site, layer: usize) -> bool {
        Taps::<B>::wants(&self.record, site, layer) || self.is_stream(site, layer)
    }

    fn tap(&mut self, backend: &mut B, tapped: Tapped<'_, B>) -> Result<()> {
        if self.is_stream(tapped.site, tapped.layer) {
            let all: Vec<usize> = (0..tapped.pack.len()).collect();
            self.stream = Some(take(backend, &tapped, &all));
        }
        self.record.tap(backend, tapped)
    }

    fn finish(&mut self, backend: &mut B) -> Result<()> {
        self.record.finish(backend)
    }

    fn rows(&self) -> Option<&[usize]> {
        Taps::<B>::rows(&self.record)
    }

    fn stop_at_layer(&self) -> Option<usize> {
        Taps::<B>::stop_at_layer(&self.record)
    }
}
