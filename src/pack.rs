//! What one pass works on: a [`Pack`] of token rows that form a forest of segments, never padding.
//!
//! A segment continues its parent: its positions go on where the parent's end, and its rows attend to every row of
//! its ancestors and causally to their own, in a bidirectional pack to all of their own. Sequences that share a beginning therefore share its rows, computed
//! once. [`PackBuilder`] declares a forest; [`forest`] finds it from token ids.

use std::collections::HashMap;
use std::ops::Range;

/// One input row before the embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Token {
    /// A vocabulary id, `< V`.
    Id(u32),
    /// Row `p` of the soft prompt of the segment's run.
    Virtual(u32),
}

/// What a segment's rows are to the experiment; carried through to captures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Label {
    /// Soft-prompt rows.
    Virtual,
    /// Demonstrations in the prompt.
    Demonstration,
    /// The query.
    Query,
    /// The answer.
    Answer,
    /// Anything else.
    #[default]
    Text,
}

/// Where a segment's path goes on to the left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Parent {
    /// Nowhere: the segment starts a sequence.
    #[default]
    None,
    /// An earlier segment of the same pack.
    Pack(usize),
    /// A cached segment of an earlier pass (its keys and values lie in a cache); inference only.
    Cached(usize),
}

/// A run of consecutive rows of the pack that belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its rows in the pack; never empty.
    pub rows: Range<usize>,
    /// What it continues.
    pub parent: Parent,
    /// The adapter that its rows pass through; none is the base model. A child has its parent's.
    pub run: Option<usize>,
    /// What it is.
    pub label: Label,
    /// The position of its first row in its sequence.
    pub position: usize,
}

/// A stretch of a segment's ancestors whose keys lie one after another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Whether `rows` counts rows of the cache rather than of the pack.
    pub cached: bool,
    /// The rows.
    pub rows: Range<usize>,
}

/// A ragged pack of segments. Immutable once built; every table that the passes need is made at once.
#[derive(Clone, Debug, Default)]
pub struct Pack {
    tokens: Vec<Token>,
    positions: Vec<u32>,
    segments: Vec<Segment>,
    paths: Vec<Vec<Span>>,
    descendants: Vec<Vec<usize>>,
    runs: Vec<(usize, Range<usize>)>,
    bidirectional: bool,
}

impl Pack {
    /// Number of rows N.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The input rows `[N]`.
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// The position of each row in its sequence `[N]`.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// The segments, in row order, parents before children.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The ancestors' rows of segment `g`, root first; their lengths add up to `segments()[g].position`.
    pub fn path(&self, g: usize) -> &[Span] {
        &self.paths[g]
    }

    /// The descendants of segment `g`, which attend to the whole of it, ascending.
    pub fn descendants(&self, g: usize) -> &[usize] {
        &self.descendants[g]
    }

    /// The maximal stretches of rows with one run, in row order; rows of the base model are in none.
    pub fn runs(&self) -> &[(usize, Range<usize>)] {
        &self.runs
    }

    /// The run of a row, none for the base model.
    pub fn run_of(&self, row: usize) -> Option<usize> {
        self.runs.iter().find(|(_, rows)| rows.contains(&row)).map(|(run, _)| *run)
    }

    /// Whether rows attend to later rows of their segment too.
    pub fn is_bidirectional(&self) -> bool {
        self.bidirectional
    }

    /// The segment of a row.
    pub fn segment_of(&self, row: usize) -> usize {
        self.segments.partition_point(|segment| segment.rows.end <= row)
    }

    /// The positions of its path that a row attends to: without a `window` all up to its own, in a bidirectional pack up
    /// to the end of its segment. A window of w leaves those greater than its own minus w, in a bidirectional pack those
    /// at most w away, as transformers has it.
    pub fn visible(&self, row: usize, window: Option<usize>) -> Range<usize> {
        let position = self.positions[row] as usize;
        if !self.bidirectional {
            return window.map_or(0, |window| (position + 1).saturating_sub(window))..position + 1;
        }
        let segment = &self.segments[self.segment_of(row)];
        let end = segment.position + segment.rows.len();
        match window {
            None => 0..end,
            Some(window) => position.saturating_sub(window)..end.min(position + window + 1),
        }
    }

    /// Whether any segment continues a cached one, which no backward can pass.
    pub fn has_cached(&self) -> bool {
        self.segments.iter().any(|s| matches!(s.parent, Parent::Cached(_)))
    }

    /// The number of positions of the longest sequence.
    pub fn longest(&self) -> usize {
        self.segments.iter().map(|s| s.position + s.rows.len()).max().unwrap_or(0)
    }
}

/// A segment whose keys and values outlive their pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedSegment {
    /// Its rows in the cache.
    pub rows: Range<usize>,
    /// The cached segment that it continues.
    pub parent: Option<usize>,
    /// Its run.
    pub run: Option<usize>,
    /// The position after its last row.
    pub end: usize,
}

/// Declares a [`Pack`] segment by segment.
#[derive(Clone, Debug, Default)]
pub struct PackBuilder<'c> {
    pack: Pack,
    cached: &'c [CachedSegment],
}

impl<'c> PackBuilder<'c> {
    /// A builder whose segments may continue those of a cache.
    pub fn new(cached: &'c [CachedSegment]) -> Self {
        Self { pack: Pack::default(), cached }
    }

    /// The same, whose pack is bidirectional or not.
    pub fn bidirectional(mut self, bidirectional: bool) -> Self {
        self.pack.bidirectional = bidirectional;
        self
    }

    /// Appends a segment and returns its index.
    ///
    /// # Panics
    /// If `tokens` is empty, the parent does not exist, `run` is not the parent's, or a cached parent's `end` is not the
    /// number of rows up to there.
    pub fn push(&mut self, tokens: &[Token], parent: Parent, run: Option<usize>, label: Label) -> usize {
        assert!(!tokens.is_empty(), "pack: a segment has at least one row");
        let (position, path) = match parent {
            Parent::None => (0, Vec::new()),
            Parent::Pack(p) => {
                let s = self.pack.segments.get(p).unwrap_or_else(|| panic!("pack: no parent segment {p}"));
                assert!(s.run == run, "pack: run {run:?} under a parent of run {:?}", s.run);
                let mut path = self.pack.paths[p].clone();
                match path.last_mut() {
                    Some(last) if !last.cached && last.rows.end == s.rows.start => last.rows.end = s.rows.end,
                    _ => path.push(Span { cached: false, rows: s.rows.clone() }),
                }
                (s.position + s.rows.len(), path)
            }
            Parent::Cached(p) => {
                let s = self.cached.get(p).unwrap_or_else(|| panic!("pack: no cached segment {p}"));
                assert!(s.run == run, "pack: run {run:?} under a cached parent of run {:?}", s.run);
                let path = self.cached_path(p);
                let rows: usize = path.iter().map(|span| span.rows.len()).sum();
                assert!(rows == s.end, "pack: cached segment {p} ends at position {}, its path has {rows} rows", s.end);
                (s.end, path)
            }
        };
        let g = self.pack.segments.len();
        let mut ancestor = parent;
        while let Parent::Pack(p) = ancestor {
            self.pack.descendants[p].push(g);
            ancestor = self.pack.segments[p].parent;
        }
        let start = self.pack.tokens.len();
        let rows = start..start + tokens.len();
        self.pack.tokens.extend_from_slice(tokens);
        self.pack.positions.extend((position..position + tokens.len()).map(|p| p as u32));
        if let Some(run) = run {
            match self.pack.runs.last_mut() {
                Some((last, stretch)) if *last == run && stretch.end == start => stretch.end = rows.end,
                _ => self.pack.runs.push((run, rows.clone())),
            }
        }
        self.pack.segments.push(Segment { rows, parent, run, label, position });
        self.pack.paths.push(path);
        self.pack.descendants.push(Vec::new());
        g
    }

    /// Appends the segments of another pack behind those that are there.
    ///
    /// # Panics
    /// If it continues cached segments.
    pub fn append(&mut self, other: &Pack) {
        let first = self.pack.segments.len();
        for segment in &other.segments {
            let parent = match segment.parent {
                Parent::None => Parent::None,
                Parent::Pack(p) => Parent::Pack(first + p),
                Parent::Cached(p) => panic!("pack: cached segment {p} of another pack"),
            };
            self.push(&other.tokens[segment.rows.clone()], parent, segment.run, segment.label);
        }
    }

    /// The finished pack.
    pub fn build(self) -> Pack {
        self.pack
    }

    fn cached_path(&self, leaf: usize) -> Vec<Span> {
        let mut path: Vec<Span> = Vec::new();
        let mut next = Some(leaf);
        while let Some(k) = next {
            let s = &self.cached[k];
            match path.last_mut() {
                Some(first) if first.rows.start == s.rows.end => first.rows.start = s.rows.start,
                _ => path.push(Span { cached: true, rows: s.rows.clone() }),
            }
            next = s.parent;
        }
        path.reverse();
        path
    }
}

/// A sequence to be inserted into a forest by [`forest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Its rows, from the first position on; not empty.
    pub tokens: Vec<Token>,
    /// Its run; only sequences of one run share rows.
    pub run: Option<usize>,
    /// The label of each stretch of its tokens: `(first token, label)`, ascending; before the first, [`Label::Text`].
    pub labels: Vec<(usize, Label)>,
    /// Tokens whose rows something is done to: `(token, what)`, ascending. Only tokens with the same mark, or without one,
    /// share a row.
    pub marks: Vec<(usize, u32)>,
}

impl Sequence {
    /// A sequence of vocabulary ids with one label.
    pub fn ids(ids: &[u32], run: Option<usize>, label: Label) -> Self {
        Self { tokens: ids.iter().map(|&t| Token::Id(t)).collect(), run, labels: vec![(0, label)], marks: Vec::new() }
    }

    /// A sequence of vocabulary ids after the first `prompt` rows of its run's soft prompt.
    pub fn prompted(prompt: usize, ids: &[u32], run: Option<usize>) -> Self {
        let tokens = (0..prompt as u32).map(Token::Virtual).chain(ids.iter().map(|&t| Token::Id(t))).collect();
        Self { tokens, run, labels: vec![(0, Label::Virtual), (prompt, Label::Text)], marks: Vec::new() }
    }

    /// The label of a token.
    pub fn label_at(&self, token: usize) -> Label {
        self.labels.iter().rev().find(|(from, _)| *from <= token).map_or(Label::Text, |(_, label)| *label)
    }

    fn mark_at(&self, token: usize) -> Option<u32> {
        self.marks.binary_search_by_key(&token, |(marked, _)| *marked).ok().map(|i| self.marks[i].1)
    }
}

/// A pack found by [`forest`], with the rows of every sequence in it.
#[derive(Clone, Debug)]
pub struct Forest {
    /// The pack.
    pub pack: Pack,
    /// For each sequence, its rows in the pack as consecutive stretches from its first token to its last.
    pub paths: Vec<Vec<Range<usize>>>,
}

impl Forest {
    /// The pack row of token `i` of sequence `s`.
    pub fn row(&self, s: usize, i: usize) -> usize {
        let mut skipped = 0;
        for rows in &self.paths[s] {
            if i < skipped + rows.len() {
                return rows.start + i - skipped;
            }
            skipped += rows.len();
        }
        panic!("forest: token {i} of sequence {s}, which has {skipped}");
    }

    /// The pack row of the last token of sequence `s`.
    pub fn last_row(&self, s: usize) -> usize {
        self.paths[s].last().map(|rows| rows.end - 1).expect("forest: a sequence has at least one row")
    }
}

/// Packs sequences so that common beginnings (within a run) are rows only once.
///
/// The beginnings are the longest common prefixes of the token ids (labels and marks must agree too). A stretch is shared if it
/// has at least `min_shared` tokens, counted from the last parting: with 1 nothing common is repeated, with more there
/// are no tiny segments, and at most `min_shared - 1` common tokens are repeated per parting. A soft prompt is shared
/// however short it is. Segments come in depth-first order, sequences in the order given within their parent.
///
/// # Panics
/// If a sequence is empty.
pub fn forest(sequences: &[Sequence], min_shared: usize) -> Forest {
    let min_shared = min_shared.max(1);
    let mut groups: Vec<(Option<usize>, Vec<usize>)> = Vec::new();
    let mut group_of: HashMap<Option<usize>, usize> = HashMap::new();
    for (i, s) in sequences.iter().enumerate() {
        assert!(!s.tokens.is_empty(), "forest: sequence {i} is empty");
        let group = *group_of.entry(s.run).or_insert_with(|| {
            groups.push((s.run, Vec::new()));
            groups.len() - 1
        });
        groups[group].1.push(i);
    }
    let mut forest = ForestBuilder {
        sequences,
        min_shared,
        builder: PackBuilder::default(),
        paths: vec![Vec::new(); sequences.len()],
    };
    for (run, members) in groups {
        forest.insert(&members, 0, Parent::None, run);
    }
    Forest { pack: forest.builder.build(), paths: forest.paths }
}

/// Packs sequences for a bidirectional model: each is one segment, for nothing can be shared where every row sees the
/// whole sequence. A segment's label is that of its last token.
///
/// # Panics
/// If a sequence is empty.
pub fn bidirectional(sequences: &[Sequence]) -> Forest {
    let mut builder = PackBuilder::default().bidirectional(true);
    let mut path = |sequence: &Sequence| {
        let label = sequence.label_at(sequence.tokens.len().saturating_sub(1));
        let g = builder.push(&sequence.tokens, Parent::None, sequence.run, label);
        vec![builder.pack.segments[g].rows.clone()]
    };
    let paths = sequences.iter().map(&mut path).collect();
    Forest { pack: builder.build(), paths }
}

struct ForestBuilder<'a> {
    sequences: &'a [Sequence],
    min_shared: usize,
    builder: PackBuilder<'a>,
    paths: Vec<Vec<Range<usize>>>,
}

impl ForestBuilder<'_> {
    /// Inserts `members`, whose tokens before `from` are there already as the path of `parent`.
    fn insert(&mut self, members: &[usize], from: usize, parent: Parent, run: Option<usize>) {
        let mut left: Vec<usize> = members.iter().copied().filter(|&m| self.sequences[m].tokens.len() > from).collect();
        while let Some(&first) = left.first() {
            let share = |m: usize| self.shared(first, m, from);
            let prompt = matches!(self.sequences[first].tokens[from], Token::Virtual(_));
            let enough = if prompt { 1 } else { self.min_shared };
            let (together, apart): (Vec<usize>, Vec<usize>) =
                left.iter().partition(|&&m| m == first || share(m) >= enough);
            left = apart;
            let end = from + together.iter().map(|&m| share(m)).min().unwrap_or(0);
            let parent = self.push(&together, from, end, parent, run);
            self.insert(&together, end, parent, run);
        }
    }

    /// Adds the tokens `from..end`, one segment per label, as rows of all `members`.
    fn push(&mut self, members: &[usize], from: usize, end: usize, parent: Parent, run: Option<usize>) -> Parent {
        let sequence = &self.sequences[members[0]];
        let mut parent = parent;
        let mut start = from;
        while start < end {
            let label = sequence.label_at(start);
            let stop = (start + 1..end).find(|&i| sequence.label_at(i) != label).unwrap_or(end);
            let g = self.builder.push(&sequence.tokens[start..stop], parent, run, label);
            let rows = self.builder.pack.segments[g].rows.clone();
            for &m in members {
                match self.paths[m].last_mut() {
                    Some(last) if last.end == rows.start => last.end = rows.end,
                    _ => self.paths[m].push(rows.clone()),
                }
            }
            parent = Parent::Pack(g);
            start = stop;
        }
        parent
    }

    /// How many tokens from `from` on (with their labels) two sequences have in common.
    fn shared(&self, a: usize, b: usize, from: usize) -> usize {
        let (a, b) = (&self.sequences[a], &self.sequences[b]);
        let n = a.tokens.len().min(b.tokens.len());
        let same =
            |&i: &usize| a.tokens[i] == b.tokens[i] && a.label_at(i) == b.label_at(i) && a.mark_at(i) == b.mark_at(i);
        (from..n).take_while(same).count()
    }
}
