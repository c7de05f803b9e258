//! Activation patching: a state of one arm put into the run of the query alone, and what comes of its answers.
//!
//! Patching layer l replaces `blocks.{l}.hook_resid_post` at the token that predicts the answer (Hendel et al., arXiv
//! 2310.15916; Todd et al., arXiv 2310.15213). Rows before that token are those of the query alone, whose keys and values
//! are cached once; a patched pass computes the rows from that token on, from layer l + 1 on. So all layers together cost
//! about as much as half a pass of those rows each.

use std::ops::Range;

use super::packing::{Batch, Group, GroupLayout, PackFill};
use super::points::Points;
use super::progress::Count;
use super::states::Reading;
use crate::Result;
use crate::backend::Backend;
use crate::hooks::{NoTaps, Record, Selection, Site};
use crate::model::{Activations, Cache, Input, KvCache, OutputRows, Save, Start, StartRows};
use crate::pack::Label;
use crate::pack::{PackBuilder, Parent, Token};
use crate::task::prompts::Prompt;

/// Log-probabilities by layer, vector, query and answer.
pub(super) type PatchedLogProbs = Vec<Vec<Vec<Vec<f64>>>>;

/// Queries alone, into whose runs states are put.
pub(super) struct Patching<'a, B: Backend> {
    pub reading: Reading<'a, B>,
    pub prompts: &'a [Prompt],
    /// Number of states that are tried at every layer and query.
    pub vectors: usize,
    /// The state `[C]` that a layer's output is replaced with, by layer, vector and query.
    pub state: &'a (dyn Fn(usize, usize, usize) -> Vec<f32> + 'a),
}

/// Some of the queries: what their patched passes continue.
struct Queries<'a, B: Backend> {
    layouts: Vec<GroupLayout<'a>>,
    /// Number of the first of them.
    first: usize,
    cache: KvCache<B>,
    /// What the segment of each query continues.
    parents: Vec<Parent>,
    /// The rows of each query among `resid`.
    rows: Vec<Range<usize>>,
    /// The rows that are replaced, counted from the query's first.
    replaced: Vec<Vec<usize>>,
    /// By layer: `hook_resid_post` of all rows `[rows, C]`.
    resid: Vec<Vec<f32>>,
}

impl<B: Backend> Patching<'_, B> {
    /// The log-probability of every answer of every query, with each layer patched by each vector.
    pub fn run(&self, backend: &mut B, count: &mut Count<'_>) -> Result<PatchedLogProbs> {
        let depth = self.reading.model.config.num_hidden_layers;
        let empty: Vec<Vec<f64>> = self.prompts.iter().map(|prompt| vec![0.0; prompt.answers.len()]).collect();
        let mut out = vec![vec![empty; self.vectors]; depth];
        let groups: Vec<Group> = self.prompts.iter().map(alone).collect();
        let mut first = 0;
        while first < groups.len() {
            let mut used = 0;
            let fits = groups[first..].iter().take_while(|group| {
                used += group.most_rows();
                used <= self.reading.rows
            });
            let last = first + fits.count().max(1);
            let layouts: Vec<GroupLayout> =
                groups[first..last].iter().map(|group| GroupLayout::new(group, &[])).collect::<Result<_>>()?;
            let capacity = self.reading.rows.max(groups[first..last].iter().map(Group::most_rows).max().unwrap_or(0));
            let model = self.reading.model;
            let mut acts = Activations::new(backend, &model.config, None, capacity, Save::Layer)?;
            let mut queries = Queries::new(&self.reading, backend, &mut acts, layouts, first)?;
            for (layer, found) in out.iter_mut().enumerate() {
                self.layer(backend, &mut acts, &mut queries, layer, found)?;
                count.add(self.vectors * (last - first));
            }
            first = last;
        }
        Ok(out)
    }

    /// All vectors at one layer.
    fn layer(
        &self,
        backend: &mut B,
        acts: &mut Activations<B>,
        queries: &mut Queries<'_, B>,
        layer: usize,
        found: &mut [Vec<Vec<f64>>],
    ) -> Result<()> {
        let width = self.reading.model.config.hidden_size;
        let of = queries.layouts.len();
        let mut next = 0;
        while next < self.vectors * of {
            let mut fill = PackFill::new(&queries.cache.segments);
            let mut resid = Vec::new();
            let begin = next;
            while next < self.vectors * of {
                let (vector, q) = (next / of, next % of);
                let rows = queries.rows[q].clone();
                if next > begin && fill.rows + rows.len() > self.reading.rows {
                    break;
                }
                let at = resid.len();
                resid.extend_from_slice(&queries.resid[layer][rows.start * width..rows.end * width]);
                let state = (self.state)(layer, vector, queries.first + q);
                for row in &queries.replaced[q] {
                    resid[at + row * width..at + (row + 1) * width].copy_from_slice(&state);
                }
                fill.tree(&queries.layouts[q], next, 0, queries.parents[q]);
                next += 1;
            }
            let Batch { pack, targets, .. } = fill.finish(Vec::new());
            let device = backend.pack(&pack)?;
            let read = OutputRows::new(backend, &pack, targets.iter().map(|target| target.row))?;
            let start = Start { layer: layer + 1, resid: StartRows::Host(&resid) };
            let input = Input::new(&pack, &device).with_output_rows(read.as_ref()).starting(start);
            let cache = Cache { cache: &mut queries.cache, append: &[] };
            self.reading.model.forward(backend, acts, &input, Some(cache), &mut NoTaps)?;
            self.reading.score(backend, acts, read.as_ref(), &targets, |target, log_prob| {
                let (vector, q) = (target.group / of, target.group % of);
                found[vector][queries.first + q][target.answer] += log_prob;
            })?;
        }
        Ok(())
    }
}

impl<'a, B: Backend> Queries<'a, B> {
    /// Caches what stands before the last tokens, and records the residual stream of what stands after.
    fn new(
        reading: &Reading<'_, B>,
        backend: &mut B,
        acts: &mut Activations<B>,
        layouts: Vec<GroupLayout<'a>>,
        first: usize,
    ) -> Result<Self> {
        let (model, config) = (reading.model, &reading.model.config);
        let cached = layouts.iter().map(|layout| layout.shared_prefix.len()).sum();
        let mut cache = KvCache::new(backend, config.num_hidden_layers, cached, config.kv_width())?;
        let mut parents = Vec::new();
        if cached > 0 {
            let mut builder = PackBuilder::default();
            for layout in &layouts {
                let tokens: Vec<Token> = layout.shared_prefix.iter().map(|&id| Token::Id(id)).collect();
                parents.push(match tokens.is_empty() {
                    true => Parent::None,
                    false => Parent::Cached(builder.push(&tokens, Parent::None, None, Label::Query)),
                });
            }
            let pack = builder.build();
            let device = backend.pack(&pack)?;
            // Nothing comes out of it but keys and values.
            let read = OutputRows::new(backend, &pack, [0])?;
            let append: Vec<usize> = (0..pack.segments().len()).collect();
            let input = Input::new(&pack, &device).with_output_rows(read.as_ref());
            model.forward(backend, acts, &input, Some(Cache { cache: &mut cache, append: &append }), &mut NoTaps)?;
        } else {
            parents.resize(layouts.len(), Parent::None);
        }

        let mut fill = PackFill::new(&cache.segments);
        let mut rows = Vec::new();
        for (q, (layout, &parent)) in layouts.iter().zip(&parents).enumerate() {
            let from = fill.rows;
            fill.tree(layout, q, 0, parent);
            rows.push(from..fill.rows);
        }
        let Batch { pack, states, targets, .. } = fill.finish(Vec::new());
        let mut replaced: Vec<Vec<usize>> = states.iter().map(|s| s.rows.clone()).collect();
        for pair in targets.windows(2).chain(targets.get(..1)) {
            // The row before an answer's first scored token, where that is another one than the prompt's last.
            let target = pair[pair.len() - 1];
            if pair.len() == 1 || (pair[0].group, pair[0].answer) != (target.group, target.answer) {
                replaced[target.group].push(target.row);
            }
        }
        for (of_query, rows) in replaced.iter_mut().zip(&rows) {
            of_query.iter_mut().for_each(|row| *row -= rows.start);
            of_query.sort_unstable();
            of_query.dedup();
        }
        let device = backend.pack(&pack)?;
        let hooks: Vec<(Site, usize)> = (0..config.num_hidden_layers).map(|layer| (Site::ResidPost, layer)).collect();
        let mut record = Record::new(Selection { hooks: hooks.clone() }, (0..pack.len()).collect());
        let input = Input::new(&pack, &device);
        model.forward(backend, acts, &input, Some(Cache { cache: &mut cache, append: &[] }), &mut record)?;
        let resid = hooks
            .iter()
            .map(|&(site, layer)| record.get(site, layer).expect("patching: the forward passes every layer").to_vec());
        let resid = resid.collect();
        Ok(Self { layouts, first, cache, parents, rows, replaced, resid })
    }
}

/// A query of its own.
fn alone(prompt: &Prompt) -> Group {
    Group {
        run: None,
        soft: 0,
        demonstrations: false,
        prompts: vec![prompt.clone()],
        points: vec![Points::last(prompt)],
    }
}
