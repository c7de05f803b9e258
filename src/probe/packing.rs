//! Prompts and their answers as packs: what is shared is in a pack once, and goes from pack to pack in a cache.

use std::ops::Range;

use super::points::Points;
use crate::Result;
use crate::hooks::edit::{Edit, EditPlan, EditRows, Positions};
use crate::pack::{CachedSegment, Forest, Label, Pack, PackBuilder, Parent, Sequence, Token, forest};
use crate::task::prompts::{Prompt, common_prefix};

/// Prompts that are read through the same weights and that begin alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Group {
    /// The adapter; none is the base model.
    pub run: Option<usize>,
    /// Rows of the run's soft prompt before everything.
    pub soft: usize,
    /// Whether the shared beginning is of demonstrations.
    pub demonstrations: bool,
    /// At least one.
    pub prompts: Vec<Prompt>,
    /// The states that are read, of each prompt.
    pub points: Vec<Points>,
}

impl Group {
    /// What the shared beginning is.
    fn label(&self) -> Label {
        if self.demonstrations { Label::Demonstration } else { Label::Query }
    }

    /// A prompt behind its soft prompt, with the labels of its tokens.
    fn labelled(&self, prompt: &Prompt, points: &Points) -> Sequence {
        let mut sequence = Sequence::prompted(self.soft, &prompt.token_ids, self.run);
        let query = if self.demonstrations { prompt.token_ids.len() - points.query } else { 0 };
        sequence.labels =
            vec![(0, Label::Virtual), (self.soft, Label::Demonstration), (self.soft + query, Label::Query)];
        sequence
    }

    /// Rows of all prompts with all their answers, at most.
    pub fn most_rows(&self) -> usize {
        let answers = |prompt: &Prompt| prompt.answers.iter().map(|answer| answer.token_ids.len()).sum::<usize>();
        self.soft + self.prompts.iter().map(|prompt| prompt.token_ids.len() + answers(prompt)).sum::<usize>()
    }

    /// Rows of states of all prompts.
    pub fn state_rows(&self) -> usize {
        self.points.iter().map(Points::rows).sum()
    }
}

/// The pack rows whose states are read of one prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StateRows {
    pub group: usize,
    /// The first of its rows in the group's states.
    pub first: usize,
    pub rows: Vec<usize>,
    /// Whether their mean is one state.
    pub mean: bool,
    /// The prompt.
    pub prompt: usize,
    /// See [`Points::own`].
    pub own: usize,
}

/// One answer's token in a pack, and the row that predicts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ScoredToken {
    pub group: usize,
    pub prompt: usize,
    pub answer: usize,
    pub row: usize,
    pub token: u32,
}

/// A pack and what is read from it.
pub(super) struct Batch {
    pub pack: Pack,
    /// Whose its rows are, in order: a group and the group's own rows.
    pub origin: Vec<(usize, Range<usize>)>,
    /// The segments that are cached, since later packs continue them.
    pub cached: Vec<usize>,
    /// The states that are read, of every prompt in it.
    pub states: Vec<StateRows>,
    /// The tokens that are scored, of every answer in it.
    pub targets: Vec<ScoredToken>,
    /// The rows that are edited.
    pub edited: EditRows,
}

/// A group as rows: a soft prompt and a shared prefix, and for each prompt the tree of its rest and its answers. The trees of two
/// prompts never mix, so that a prompt's rows are the same whatever prompts share its pack.
pub(super) struct GroupLayout<'a> {
    group: &'a Group,
    pub shared_prefix: Vec<u32>,
    pub trees: Vec<Forest>,
    edits: &'a [Edit],
    /// Of the prompts, behind their soft prompt.
    edited: EditPlan,
}

/// Fills pack after pack with groups, in order.
pub(super) struct Packer<'a> {
    groups: Vec<GroupLayout<'a>>,
    rows: usize,
    /// The next group and the next prompt of it.
    next: (usize, usize),
    /// The cached segment of the next group's shared prefix, if the group has begun.
    cached_prefix: Option<usize>,
}

impl<'a> Packer<'a> {
    /// Packs of at most `rows` rows, or of one prompt where even that is more.
    ///
    /// # Errors
    /// Edits at a position that a prompt does not have.
    pub fn new(groups: &'a [Group], edits: &'a [Edit], rows: usize) -> Result<Self> {
        let groups = groups.iter().map(|group| GroupLayout::new(group, edits)).collect::<Result<_>>()?;
        Ok(Self { groups, rows, next: (0, 0), cached_prefix: None })
    }

    /// Rows that the largest pack can have.
    pub fn capacity(&self) -> usize {
        let one = |g: &GroupLayout| g.trees.iter().map(|t| g.shared() + t.pack.len()).max().unwrap_or(0);
        let all: usize = self.groups.iter().map(GroupLayout::rows).sum();
        self.groups.iter().map(one).max().unwrap_or(0).max(self.rows.min(all))
    }

    /// Rows of a cache for all shared prefixes; 0 if everything fits one pack.
    pub fn cache_rows(&self) -> usize {
        let all: usize = self.groups.iter().map(GroupLayout::rows).sum();
        if all > self.rows { self.groups.iter().map(GroupLayout::shared).sum() } else { 0 }
    }

    /// The next pack, given what the cache holds; none at the end.
    pub fn next(&mut self, cached: &[CachedSegment]) -> Option<Batch> {
        let mut fill = PackFill::new(cached);
        let mut to_cache = Vec::new();
        let mut prefix = self.cached_prefix.map_or(Parent::None, Parent::Cached);
        while let Some(layout) = self.groups.get(self.next.0) {
            let (g, p) = self.next;
            let shared = if p == 0 { layout.shared() } else { 0 };
            if fill.rows > 0 && fill.rows + shared + layout.trees[p].pack.len() > self.rows {
                break;
            }
            if p == 0 {
                self.cached_prefix = None;
                prefix = fill.shared_prefix(layout, g);
            }
            fill.tree(layout, g, p, prefix);
            self.next = if p + 1 < layout.trees.len() { (g, p + 1) } else { (g + 1, 0) };
        }
        if let (Parent::Pack(segment), true) = (prefix, self.next.1 > 0) {
            // The soft prompt's segment is the one before the shared prefix's.
            let layout = &self.groups[self.next.0];
            let both = layout.group.soft > 0 && !layout.shared_prefix.is_empty();
            to_cache.extend(segment - usize::from(both)..=segment);
            self.cached_prefix = Some(cached.len() + to_cache.len() - 1);
        }
        (!fill.states.is_empty()).then(|| fill.finish(to_cache))
    }
}

impl<'a> GroupLayout<'a> {
    pub fn new(group: &'a Group, edits: &'a [Edit]) -> Result<Self> {
        let wholes: Vec<Vec<Vec<u32>>> =
            group.prompts.iter().map(|p| p.answers.iter().map(|a| a.after(&p.token_ids)).collect()).collect();
        // The shared prefix ends before any row that is read: a cached row's results are gone.
        let mut shared = usize::MAX;
        let first = &group.prompts[0].token_ids;
        for ((prompt, wholes), points) in group.prompts.iter().zip(&wholes).zip(&group.points) {
            let first_state = if points.rows() == 0 { usize::MAX } else { points.tokens.start };
            let read = first_state.min(prompt.token_ids.len() - 1);
            shared = shared.min(common_prefix(first, &prompt.token_ids)).min(read);
            for (whole, answer) in wholes.iter().zip(&prompt.answers) {
                shared = shared.min(common_prefix(first, whole)).min(whole.len() - answer.scored - 1);
            }
        }
        let mut sequences: Vec<Sequence> =
            group.prompts.iter().zip(&group.points).map(|(prompt, points)| group.labelled(prompt, points)).collect();
        let edited = EditPlan::new(edits, &mut sequences)?;
        // What is edited in one prompt and not in another is nothing that they share.
        let marked = |sequence: &Sequence, token: usize| {
            sequence.marks.iter().find(|&&(at, _)| at == token).map(|&(_, mark)| mark)
        };
        let same = |&token: &usize| sequences.iter().all(|s| marked(s, token) == marked(&sequences[0], token));
        shared = (group.soft..group.soft + shared).take_while(same).count();
        let tree = |((prompt, wholes), points): ((&Prompt, &Vec<Vec<u32>>), &Points)| {
            let rest = Sequence::ids(&prompt.token_ids[shared..], group.run, Label::Query);
            let answers = wholes.iter().zip(&prompt.answers).enumerate().map(|(c, (whole, answer))| {
                // The last token of an answer is predicted, and read only for its state.
                let end = whole.len() - usize::from(points.answer != Some(c));
                let mut s = Sequence::ids(&whole[shared..end], group.run, Label::Query);
                s.labels.push((whole.len() - answer.scored - shared, Label::Answer));
                s
            });
            forest(&std::iter::once(rest).chain(answers).collect::<Vec<_>>(), 1)
        };
        let trees = group.prompts.iter().zip(&wholes).zip(&group.points).map(tree).collect();
        Ok(Self { group, shared_prefix: first[..shared].to_vec(), trees, edits, edited })
    }

    /// Rows above all prompts.
    fn shared(&self) -> usize {
        self.group.soft + self.shared_prefix.len()
    }

    /// Rows of the shared beginning and of all trees.
    pub fn rows(&self) -> usize {
        self.first_row(self.trees.len())
    }

    /// The first row of a prompt's tree among all of the group.
    fn first_row(&self, prompt: usize) -> usize {
        self.shared() + self.trees[..prompt].iter().map(|t| t.pack.len()).sum::<usize>()
    }
}

/// A pack being filled.
pub(super) struct PackFill<'c> {
    builder: PackBuilder<'c>,
    pub rows: usize,
    origin: Vec<(usize, Range<usize>)>,
    states: Vec<StateRows>,
    targets: Vec<ScoredToken>,
    edited: Vec<Vec<(usize, usize)>>,
}

impl<'c> PackFill<'c> {
    /// An empty one, whose segments may continue those that are cached.
    pub fn new(cached: &'c [CachedSegment]) -> Self {
        Self {
            builder: PackBuilder::new(cached),
            rows: 0,
            origin: Vec::new(),
            states: Vec::new(),
            targets: Vec::new(),
            edited: Vec::new(),
        }
    }

    /// The pack, of which the segments `cached` are to be cached.
    pub fn finish(self, cached: Vec<usize>) -> Batch {
        let mut edited = self.edited;
        edited.iter_mut().for_each(|rows| rows.sort_unstable());
        edited.iter_mut().for_each(Vec::dedup);
        Batch {
            pack: self.builder.build(),
            origin: self.origin,
            cached,
            states: self.states,
            targets: self.targets,
            edited: EditRows(edited),
        }
    }

    /// Notes the edited rows among `tokens` of a prompt and its soft prompt, of which `row` says where they lie.
    fn edit(&mut self, layout: &GroupLayout, prompt: usize, tokens: Range<usize>, row: impl Fn(usize) -> usize) {
        self.edited.resize(layout.edits.len(), Vec::new());
        let at = |_, token: usize| if tokens.contains(&token) { row(token) } else { usize::MAX };
        let EditRows(found) = layout.edited.rows(prompt..prompt + 1, at);
        for (all, found) in self.edited.iter_mut().zip(found) {
            all.extend(found.into_iter().filter(|&(row, _)| row != usize::MAX));
        }
    }

    /// Adds the soft prompt and shared prefix of a group; what its trees continue.
    fn shared_prefix(&mut self, layout: &GroupLayout, group: usize) -> Parent {
        let soft = (0..layout.group.soft as u32).map(Token::Virtual).collect();
        let prefix = layout.shared_prefix.iter().map(|&t| Token::Id(t)).collect();
        let parts: [(Vec<Token>, Label); 2] = [(soft, Label::Virtual), (prefix, layout.group.label())];
        let from = self.rows;
        self.edit(layout, 0, 0..layout.shared(), |token| from + token);
        self.origin.push((group, 0..layout.shared()));
        let mut parent = Parent::None;
        for (tokens, label) in parts.into_iter().filter(|(tokens, _)| !tokens.is_empty()) {
            self.rows += tokens.len();
            parent = Parent::Pack(self.builder.push(&tokens, parent, layout.group.run, label));
        }
        parent
    }

    /// Adds a prompt's tree behind its shared prefix, and notes what is read of it.
    pub fn tree(&mut self, layout: &GroupLayout, group: usize, prompt: usize, prefix: Parent) {
        let Forest { pack, .. } = &layout.trees[prompt];
        let mut segments = Vec::with_capacity(pack.segments().len());
        for segment in pack.segments() {
            let parent = match segment.parent {
                Parent::Pack(p) => Parent::Pack(segments[p]),
                _ => prefix,
            };
            segments.push(self.builder.push(&pack.tokens()[segment.rows.clone()], parent, segment.run, segment.label));
        }
        let row = |sequence: usize, token: usize| {
            self.rows + layout.trees[prompt].row(sequence, token - layout.shared_prefix.len())
        };
        let source = &layout.group.prompts[prompt];
        let points = &layout.group.points[prompt];
        let sequence = points.answer.map_or(0, |c| c + 1);
        self.states.push(StateRows {
            group,
            first: layout.group.points[..prompt].iter().map(Points::rows).sum(),
            rows: points.tokens.clone().map(|token| row(sequence, token)).collect(),
            mean: points.mean,
            prompt,
            own: points.own,
        });
        for (index, answer) in source.answers.iter().enumerate() {
            let whole = answer.after(&source.token_ids);
            for (i, &token) in whole.iter().enumerate().skip(whole.len() - answer.scored) {
                self.targets.push(ScoredToken { group, prompt, answer: index, row: row(index + 1, i - 1), token });
            }
        }
        let from = self.rows;
        let (soft, shared) = (layout.group.soft, layout.shared());
        let tree = &layout.trees[prompt];
        self.edit(layout, prompt, shared..soft + source.token_ids.len(), |token| from + tree.row(0, token - shared));
        // What an answer makes of the prompt's last tokens is the prompt's as well; its own tokens are not edited.
        let run = layout.group.run;
        for (e, edit) in layout.edits.iter().enumerate().filter(|(_, edit)| edit.applies_to(run)) {
            for (index, answer) in source.answers.iter().enumerate() {
                let begin = source.token_ids.len() - answer.replaces;
                let end = begin + answer.token_ids.len() - answer.scored;
                let tokens = match edit.positions {
                    Positions::All | Positions::Query => begin..end,
                    Positions::Last => begin.max(end.saturating_sub(1))..end,
                    Positions::Demonstrations | Positions::At(_) => end..end,
                };
                let rows = tokens.map(|token| (from + tree.row(index + 1, token - layout.shared_prefix.len()), 0));
                self.edited[e].extend(rows);
            }
        }
        let first = layout.first_row(prompt);
        self.origin.push((group, first..first + pack.len()));
        self.rows += pack.len();
    }
}
