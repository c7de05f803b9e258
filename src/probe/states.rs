//! States and scores of prompts: the part that all arms have in common.

use super::arm_states::ArmStates;
use super::below::{Below, BelowGroup, WithStream, beginning};
use super::packing::{Batch, Group, Packer, ScoredToken};
use super::progress::Count;
use crate::Result;
use crate::backend::{AccElement, Backend};
use crate::hooks::Edit;
use crate::hooks::{Record, Selection, Site};
use crate::model::{
    Activations, Adaptation, Cache, EditSet, Gradients, Input, KvCache, Labels, Model, OutputRows, PassEdits, Save,
};

/// The hooks of a probe: every layer's `hook_resid_post`, the final norm's output, and further `sites` of every layer,
/// attention scores the last of them.
pub(super) fn hooks(depth: usize, sites: &[Site]) -> Vec<(Site, usize)> {
    let of = |site: Site| (0..depth).map(move |layer| (site, layer));
    of(Site::ResidPost).chain([(Site::FINAL_NORM, 0)]).chain(sites.iter().flat_map(|&site| of(site))).collect()
}

/// What is read, and how.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a, B: Backend> {
    /// The model that reads.
    pub model: &'a Model<B>,
    /// The adapters of the groups' runs.
    pub adaptation: Option<&'a Adaptation<B>>,
    /// Where states are read.
    pub hooks: &'a [(Site, usize)],
    /// Rows of a pass at most.
    pub rows: usize,
    /// What is written into the states, in every arm.
    pub edits: &'a [Edit],
    /// What is known of the layers below the adapters.
    pub below: Option<&'a Below>,
}

impl<B: Backend> Reading<'_, B> {
    /// Reads groups of prompts, those of a list together; returns what was read of each group, in order, and the number of
    /// rows computed.
    ///
    /// What the prompts of a group share is computed once: it is one segment above them, and goes from pack to pack in a
    /// cache where they need several packs. `count` hears of every prompt read.
    pub fn read(
        &self,
        backend: &mut B,
        lists: &[Vec<Group>],
        count: &mut Count<'_>,
    ) -> Result<(Vec<ArmStates>, usize)> {
        self.read_and_keep(backend, lists, count, None)
    }

    /// Reads, and keeps what an adapted reading can begin with.
    pub fn read_and_keep(
        &self,
        backend: &mut B,
        lists: &[Vec<Group>],
        count: &mut Count<'_>,
        mut keep: Option<&mut Below>,
    ) -> Result<(Vec<ArmStates>, usize)> {
        let config = &self.model.config;
        let layout = self.adaptation.map(|a| &a.layout);
        let mut packers: Vec<Packer> =
            lists.iter().map(|groups| Packer::new(groups, self.edits, self.rows)).collect::<Result<_>>()?;
        let capacity = packers.iter().map(Packer::capacity).max().unwrap_or(0);
        let mut acts = Activations::new(backend, config, layout, capacity, Save::Layer)?;
        let edits = match self.edits {
            [] => None,
            edits => Some(EditSet::new(backend, config, edits)?),
        };
        let (mut out, mut computed) = (Vec::new(), 0);
        for (groups, packer) in lists.iter().zip(&mut packers) {
            let below: Vec<Option<&BelowGroup>> = groups.iter().map(|group| self.below?.group(group)).collect();
            let begun =
                |(group, below): (&Group, &Option<&BelowGroup>)| match below.and_then(|below| below.states.as_ref()) {
                    Some(states) => states.unscored(),
                    None => ArmStates::empty(group, self.hooks, config.hidden_size),
                };
            let mut states: Vec<ArmStates> = groups.iter().zip(&below).map(begun).collect();
            let keep = keep.as_deref_mut();
            let known = (groups.as_slice(), below.as_slice());
            computed += self.list(backend, (&mut acts, edits.as_ref()), packer, known, &mut states, (count, keep))?;
            out.extend(states);
        }
        Ok((out, computed))
    }

    /// Reads the groups of a list into `states`; returns the number of rows computed.
    fn list(
        &self,
        backend: &mut B,
        (acts, edits): (&mut Activations<B>, Option<&EditSet<B>>),
        packer: &mut Packer<'_>,
        (groups, below): (&[Group], &[Option<&BelowGroup>]),
        states: &mut [ArmStates],
        (count, mut keep): (&mut Count<'_>, Option<&mut Below>),
    ) -> Result<usize> {
        let config = &self.model.config;
        let mut cache = KvCache::new(backend, config.num_hidden_layers, packer.cache_rows(), config.kv_width())?;
        let mut computed = 0;
        while let Some(batch) = packer.next(&cache.segments) {
            let device = backend.pack(&batch.pack)?;
            let rows: Vec<usize> = batch.states.iter().flat_map(|s| s.rows.iter().copied()).collect();
            let read =
                OutputRows::new(backend, &batch.pack, rows.iter().copied().chain(batch.targets.iter().map(|t| t.row)))?;
            let mut input = Input::new(&batch.pack, &device).with_output_rows(read.as_ref());
            input.adaptation = self.adaptation;
            let edits = edits.filter(|_| !batch.edited.is_empty());
            let edits = edits.map(|set| PassEdits::new(backend, set, &batch.edited, read.as_ref())).transpose()?;
            input.edits = edits.as_ref();
            let resid = beginning(below, &batch, config.hidden_size);
            input.start = self.below.zip(resid.as_deref()).map(|(below, x)| below.start(x));
            let record = Record::new(Selection { hooks: self.hooks.to_vec() }, rows);
            let mut taps = WithStream { record, layer: keep.as_ref().map(|below| below.layer), stream: None };
            let cached = Cache { cache: &mut cache, append: &batch.cached };
            self.model.forward(backend, acts, &input, Some(cached), &mut taps)?;
            let WithStream { record, stream, .. } = taps;
            if let Some((below, stream)) = keep.as_deref_mut().zip(stream) {
                below.keep(groups, &batch, stream.rows());
            }
            let wide = self.hooks.iter().filter(|(site, _)| *site == Site::AttnScores);
            wide.for_each(|&(site, layer)| self.own_scores(&record, (site, layer), &batch, states));
            for (h, &(site, layer)) in self.hooks.iter().enumerate() {
                if site == Site::AttnScores {
                    continue;
                }
                if input.start.as_ref().is_some_and(|start| Below::is_below((site, layer), start.layer)) {
                    continue; // As the base model's reading left it.
                }
                let found = record.get(site, layer).expect("probe: the forward passes every layer");
                let mut found = found.chunks_exact(config.hidden_size);
                for part in &batch.states {
                    let into = &mut states[part.group].states[h][part.first * config.hidden_size..];
                    land(into, found.by_ref().take(part.rows.len()), part.rows.len(), part.mean);
                }
            }

            self.score(backend, acts, read.as_ref(), &batch.targets, |target, log_prob| {
                states[target.group].log_probs[target.prompt][target.answer] += log_prob;
            })?;
            computed += batch.pack.len();
            count.add(batch.states.len());
        }
        Ok(computed)
    }
}

impl<B: Backend> Reading<'_, B> {
    /// Takes the attention scores of a batch's last tokens over their own tokens.
    fn own_scores(&self, record: &Record, (site, layer): (Site, usize), batch: &Batch, states: &mut [ArmStates]) {
        let (Some(found), Some(width)) = (record.get(site, layer), record.width(site, layer)) else { return };
        let positions = width / self.model.config.num_attention_heads;
        let mut rows = found.chunks_exact(width);
        for part in &batch.states {
            let scores = rows.by_ref().take(part.rows.len()).last();
            let (Some(&row), Some(scores)) = (part.rows.last(), scores) else { continue };
            let last = batch.pack.positions()[row] as usize + 1;
            let heads = scores.chunks_exact(positions);
            states[part.group].scores[layer][part.prompt] =
                heads.flat_map(|head| head[last - part.own..last].iter().copied()).collect();
        }
    }

    /// Hands over the log-probability of each of `targets`, of a pass of which the rows `read` come out.
    pub fn score(
        &self,
        backend: &mut B,
        acts: &Activations<B>,
        read: Option<&OutputRows<B>>,
        targets: &[ScoredToken],
        mut found: impl FnMut(&ScoredToken, f64),
    ) -> Result<()> {
        if targets.is_empty() {
            return Ok(());
        }
        let label_rows: Vec<u32> = targets.iter().map(|t| t.row as u32).collect();
        let tokens: Vec<u32> = targets.iter().map(|t| t.token).collect();
        let labels = Labels::new(backend, read, &label_rows, &tokens, &vec![1.0; tokens.len()])?;
        // Only losses are wanted: scratch for a backward of no rows.
        let mut scratch = Gradients::new(backend, &self.model.config, 0, labels.count)?;
        self.model.loss(backend, acts, &labels, &mut scratch);
        let mut losses = vec![B::Element::default(); labels.count];
        backend.download(&mut losses, &scratch.losses, 0)?;
        backend.sync()?;
        targets.iter().zip(losses).for_each(|(target, loss)| found(target, -loss.to_f64()));
        Ok(())
    }
}

/// Puts `count` rows, or their mean (summed in `f64` in row order), where a prompt's states are.
fn land<'a>(into: &mut [f32], rows: impl Iterator<Item = &'a [f32]>, count: usize, mean: bool) {
    let mut sum = Vec::new();
    for (i, row) in rows.enumerate() {
        if mean {
            sum.resize(row.len(), 0.0f64);
            sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
        } else {
            into[i * row.len()..][..row.len()].copy_from_slice(row);
        }
    }
    into.iter_mut().zip(&sum).for_each(|(x, sum)| *x = (sum / count as f64) as f32);
}
