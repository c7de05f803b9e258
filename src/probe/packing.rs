//! Prompts and their answers as packs: what is shared is in a pack once, and goes from pack to pack in a cache.

use crate::pack::{CachedSegment, Forest, Label, Pack, PackBuilder, Parent, Sequence, Token, forest};
use crate::task::prompts::{Prompt, common_prefix};

/// Prompts that are read through the same weights and that begin alike.
pub(super) struct Group {
    /// The adapter; none is the base model.
    pub run: Option<usize>,
    /// Rows of the run's soft prompt before everything.
    pub soft: usize,
    /// What the shared beginning is.
    pub label: Label,
    /// The prompts.
    pub prompts: Vec<Prompt>,
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
    /// The segments that later packs continue.
    pub keep: Vec<usize>,
    /// Group, prompt and last row of every prompt in it.
    pub last: Vec<(usize, usize, usize)>,
    /// The answers' tokens.
    pub targets: Vec<ScoredToken>,
}

/// A group laid out: a soft prompt and a trunk, and for each prompt the tree of its rest and its answers. The trees of two prompts never
/// mix, so that a prompt's rows are the same whatever prompts share its pack.
struct Laid<'a> {
    group: &'a Group,
    trunk: Vec<u32>,
    trees: Vec<Forest>,
}

/// Fills pack after pack with groups, in order.
pub(super) struct Packer<'a> {
    groups: Vec<Laid<'a>>,
    rows: usize,
    /// The next group and the next prompt of it.
    next: (usize, usize),
    /// The kept trunk of the next group, if it has begun.
    kept: Option<usize>,
}

impl<'a> Packer<'a> {
    /// Packs of at most `rows` rows, or of one prompt where even that is more.
    pub fn new(groups: &'a [Group], rows: usize) -> Self {
        Self { groups: groups.iter().map(Laid::new).collect(), rows, next: (0, 0), kept: None }
    }

    /// Rows that the largest pack can have.
    pub fn capacity(&self) -> usize {
        let one = |g: &Laid| g.trees.iter().map(|t| g.shared() + t.pack.len()).max().unwrap_or(0);
        let all: usize = self.groups.iter().map(Laid::rows).sum();
        self.groups.iter().map(one).max().unwrap_or(0).max(self.rows.min(all))
    }

    /// Rows of a cache for all trunks; 0 if everything fits one pack.
    pub fn cache_rows(&self) -> usize {
        let all: usize = self.groups.iter().map(Laid::rows).sum();
        if all > self.rows { self.groups.iter().map(Laid::shared).sum() } else { 0 }
    }

    /// The next pack, given what the cache holds; none at the end.
    pub fn next(&mut self, kept: &[CachedSegment]) -> Option<Batch> {
        let mut filling = Filling { builder: PackBuilder::new(kept), rows: 0, last: Vec::new(), targets: Vec::new() };
        let mut keep = Vec::new();
        let mut trunk = self.kept.map_or(Parent::None, Parent::Cached);
        while let Some(laid) = self.groups.get(self.next.0) {
            let (g, p) = self.next;
            let own = if p == 0 { laid.shared() } else { 0 };
            if filling.rows > 0 && filling.rows + own + laid.trees[p].pack.len() > self.rows {
                break;
            }
            if p == 0 {
                self.kept = None;
                trunk = filling.trunk(laid);
            }
            filling.tree(laid, g, p, trunk);
            self.next = if p + 1 < laid.trees.len() { (g, p + 1) } else { (g + 1, 0) };
        }
        if let (Parent::Pack(segment), true) = (trunk, self.next.1 > 0) {
            // The soft prompt's segment is the one before the trunk's.
            let laid = &self.groups[self.next.0];
            let both = laid.group.soft > 0 && !laid.trunk.is_empty();
            keep.extend(segment - usize::from(both)..=segment);
            self.kept = Some(kept.len() + keep.len() - 1);
        }
        let Filling { builder, last, targets, .. } = filling;
        (!last.is_empty()).then(|| Batch { pack: builder.build(), keep, last, targets })
    }
}

impl<'a> Laid<'a> {
    fn new(group: &'a Group) -> Self {
        let wholes: Vec<Vec<Vec<u32>>> =
            group.prompts.iter().map(|p| p.answers.iter().map(|a| a.after(&p.token_ids)).collect()).collect();
        // The trunk ends before any row that is read: a kept row's results are gone.
        let mut trunk = usize::MAX;
        let first = &group.prompts[0].token_ids;
        for (prompt, wholes) in group.prompts.iter().zip(&wholes) {
            let read = prompt.token_ids.len() - 1;
            trunk = trunk.min(common_prefix(first, &prompt.token_ids)).min(read);
            for (whole, answer) in wholes.iter().zip(&prompt.answers) {
                trunk = trunk.min(common_prefix(first, whole)).min(whole.len() - answer.scored - 1);
            }
        }
        let tree = |(prompt, wholes): (&Prompt, &Vec<Vec<u32>>)| {
            let rest = Sequence::ids(&prompt.token_ids[trunk..], group.run, Label::Query);
            // The last token of an answer is predicted, never read.
            let answers = wholes.iter().zip(&prompt.answers).map(|(whole, answer)| {
                let mut s = Sequence::ids(&whole[trunk..whole.len() - 1], group.run, Label::Query);
                s.labels.push((whole.len() - answer.scored - trunk, Label::Answer));
                s
            });
            forest(&std::iter::once(rest).chain(answers).collect::<Vec<_>>(), 1)
        };
        let trees = group.prompts.iter().zip(&wholes).map(tree).collect();
        Self { group, trunk: first[..trunk].to_vec(), trees }
    }

    /// Rows above all prompts.
    fn shared(&self) -> usize {
        self.group.soft + self.trunk.len()
    }

    fn rows(&self) -> usize {
        self.shared() + self.trees.iter().map(|t| t.pack.len()).sum::<usize>()
    }
}

/// A pack being filled.
struct Filling<'c> {
    builder: PackBuilder<'c>,
    rows: usize,
    last: Vec<(usize, usize, usize)>,
    targets: Vec<ScoredToken>,
}

impl Filling<'_> {
    fn trunk(&mut self, laid: &Laid) -> Parent {
        let soft = (0..laid.group.soft as u32).map(Token::Virtual).collect();
        let trunk = laid.trunk.iter().map(|&t| Token::Id(t)).collect();
        let parts: [(Vec<Token>, Label); 2] = [(soft, Label::Virtual), (trunk, laid.group.label)];
        let mut parent = Parent::None;
        for (tokens, label) in parts.into_iter().filter(|(tokens, _)| !tokens.is_empty()) {
            self.rows += tokens.len();
            parent = Parent::Pack(self.builder.push(&tokens, parent, laid.group.run, label));
        }
        parent
    }

    fn tree(&mut self, laid: &Laid, group: usize, prompt: usize, trunk: Parent) {
        let Forest { pack, .. } = &laid.trees[prompt];
        let mut places = Vec::with_capacity(pack.segments().len());
        for segment in pack.segments() {
            let parent = match segment.parent {
                Parent::Pack(p) => Parent::Pack(places[p]),
                _ => trunk,
            };
            places.push(self.builder.push(&pack.tokens()[segment.rows.clone()], parent, segment.run, segment.label));
        }
        let row =
            |sequence: usize, token: usize| self.rows + laid.trees[prompt].row(sequence, token - laid.trunk.len());
        let source = &laid.group.prompts[prompt];
        self.last.push((group, prompt, row(0, source.token_ids.len() - 1)));
        for (answer, config) in source.answers.iter().enumerate() {
            let whole = config.after(&source.token_ids);
            for (i, &token) in whole.iter().enumerate().skip(whole.len() - config.scored) {
                self.targets.push(ScoredToken { group, prompt, answer, row: row(answer + 1, i - 1), token });
            }
        }
        self.rows += pack.len();
    }
}
