//! ArmStates states and scores: the part that all arms have in common.

use super::packing::{Group, Packer};
use super::progress::Count;
use crate::Result;
use crate::backend::{AccElement, Backend};
use crate::hooks::{Record, Selection, Site};
use crate::model::{Activations, Adaptation, Cache, Gradients, Input, KvCache, Labels, Model, OutputRows, Save};

/// What an arm made of one group of prompts.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ArmStates {
    /// The state at the last token of every prompt `[prompts, C]`: of every layer's `hook_resid_post`, then of the
    /// final norm.
    pub states: Vec<Vec<f32>>,
    /// The log-probability of every answer of every prompt.
    pub log_probs: Vec<Vec<f64>>,
}

/// Reads groups of prompts; returns the states of each group and the number of rows computed.
///
/// What the prompts of a group share is computed once: it is one segment above them, and goes from pack to pack in a
/// cache where they need several packs of `rows` rows. `count` hears of every prompt read.
pub(super) fn read<B: Backend>(
    backend: &mut B,
    model: &Model<B>,
    adaptation: Option<&Adaptation<B>>,
    groups: &[Group],
    rows: usize,
    count: &mut Count<'_>,
) -> Result<(Vec<ArmStates>, usize)> {
    let config = &model.config;
    let hooks: Vec<(Site, usize)> =
        (0..config.num_hidden_layers).map(|l| (Site::ResidPost, l)).chain([(Site::FinalNorm, 0)]).collect();
    let selection =
        Selection::new(&[Site::ResidPost, Site::FinalNorm], &(0..config.num_hidden_layers).collect::<Vec<_>>());
    let mut states: Vec<ArmStates> =
        groups.iter().map(|g| ArmStates::empty(g, hooks.len(), config.hidden_size)).collect();

    let mut packer = Packer::new(groups, rows);
    let layout = adaptation.map(|a| &a.layout);
    let mut acts = Activations::new(backend, config, layout, packer.capacity(), Save::Layer)?;
    let mut cache = KvCache::new(backend, config.num_hidden_layers, packer.cache_rows(), config.kv_width())?;
    let mut computed = 0;
    while let Some(batch) = packer.next(&cache.segments) {
        let device = backend.pack(&batch.pack)?;
        let last: Vec<usize> = batch.last.iter().map(|&(_, _, row)| row).collect();
        let read =
            OutputRows::new(backend, &batch.pack, last.iter().copied().chain(batch.targets.iter().map(|t| t.row)))?;
        let mut input = Input::new(&batch.pack, &device).with_output_rows(read.as_ref());
        input.adaptation = adaptation;
        let mut record = Record::new(selection.clone(), last);
        let cached = Cache { cache: &mut cache, append: &batch.cached };
        model.forward(backend, &mut acts, &input, Some(cached), &mut record)?;
        for (l, &(site, layer)) in hooks.iter().enumerate() {
            let found = record.get(site, layer).expect("probe: the forward passes every layer");
            for (&(group, prompt, _), state) in batch.last.iter().zip(found.chunks_exact(config.hidden_size)) {
                states[group].states[l][prompt * config.hidden_size..][..config.hidden_size].copy_from_slice(state);
            }
        }

        let label_rows: Vec<u32> = batch.targets.iter().map(|t| t.row as u32).collect();
        let tokens: Vec<u32> = batch.targets.iter().map(|t| t.token).collect();
        let labels = Labels::new(backend, read.as_ref(), &label_rows, &tokens, &vec![1.0; tokens.len()])?;
        // Only losses are wanted: scratch for a backward of no rows.
        let mut scratch = Gradients::new(backend, config, 0, labels.count)?;
        model.loss(backend, &acts, &labels, &mut scratch);
        let mut losses = vec![B::Element::default(); labels.count];
        backend.download(&mut losses, &scratch.losses, 0)?;
        backend.sync()?;
        for (target, loss) in batch.targets.iter().zip(losses) {
            states[target.group].log_probs[target.prompt][target.answer] -= loss.to_f64();
        }
        computed += batch.pack.len();
        count.add(batch.last.len());
    }
    Ok((states, computed))
}

impl ArmStates {
    fn empty(group: &Group, layers: usize, width: usize) -> Self {
        Self {
            states: vec![vec![0.0; group.prompts.len() * width]; layers],
            log_probs: group.prompts.iter().map(|p| vec![0.0; p.answers.len()]).collect(),
        }
    }
}
