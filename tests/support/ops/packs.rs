//! The packs, heads and tables that cases are made of.

use llamaprobe::backend::ops::AttentionDims;
use llamaprobe::pack::{CachedSegment, Label, Pack, PackBuilder, Parent, Token};

/// Ids below this stand in the packs.
pub const VOCAB: usize = 11;
/// Runs of the packs, one of which no row belongs to.
pub const RUNS: usize = 4;
/// Virtual tokens of a run.
pub const PROMPT: usize = 3;

fn tokens(n: usize, seed: usize) -> Vec<Token> {
    (0..n).map(|i| Token::Id(((i * 7 + seed * 5) % VOCAB) as u32)).collect()
}

/// A pack of independent segments of the base model.
pub fn flat(lengths: &[usize]) -> Pack {
    let mut b = PackBuilder::default();
    for (i, &n) in lengths.iter().enumerate() {
        b.push(&tokens(n, i), Parent::None, None, Label::Text);
    }
    b.build()
}

/// A pack of independent segments of uneven lengths.
pub fn ragged() -> Pack {
    flat(&[1, 6, 2])
}

/// Trees of runs 0, 1 and 3 with parting parents, gaps in paths, virtual rows, base rows in between, and a run that
/// comes back.
pub fn trees() -> Pack {
    let mut b = PackBuilder::default();
    let push = |b: &mut PackBuilder, n, parent, run| b.push(&tokens(n, n), parent, run, Label::Text);
    let root = push(&mut b, 4, Parent::None, Some(0));
    let left = push(&mut b, 3, Parent::Pack(root), Some(0));
    push(&mut b, 2, Parent::Pack(left), Some(0));
    push(&mut b, 1, Parent::Pack(left), Some(0));
    let right = push(&mut b, 2, Parent::Pack(root), Some(0));
    push(&mut b, 3, Parent::Pack(right), Some(0));
    let base = push(&mut b, 5, Parent::None, None);
    push(&mut b, 1, Parent::Pack(base), None);
    push(&mut b, 2, Parent::Pack(base), None);
    for run in [3, 1] {
        let prompt: Vec<Token> = (0..PROMPT as u32).map(Token::Virtual).collect();
        let prompt = b.push(&prompt, Parent::None, Some(run), Label::Virtual);
        push(&mut b, 2, Parent::Pack(prompt), Some(run));
        push(&mut b, 4, Parent::Pack(prompt), Some(run));
    }
    push(&mut b, 2, Parent::None, Some(0));
    push(&mut b, 1, Parent::None, None);
    b.build()
}

/// A pack that continues segments in a cache of 11 rows, and those segments.
pub fn continued() -> (Pack, Vec<CachedSegment>) {
    let cached = vec![
        CachedSegment { rows: 1..4, parent: None, run: None, end: 3 },
        CachedSegment { rows: 7..9, parent: Some(0), run: None, end: 5 },
        CachedSegment { rows: 9..11, parent: Some(1), run: None, end: 7 },
    ];
    let mut b = PackBuilder::new(&cached);
    let top = b.push(&tokens(3, 1), Parent::Cached(2), None, Label::Query);
    b.push(&tokens(2, 2), Parent::Pack(top), None, Label::Answer);
    b.push(&tokens(1, 3), Parent::Pack(top), None, Label::Answer);
    b.push(&tokens(4, 4), Parent::Cached(0), None, Label::Query);
    b.push(&tokens(2, 5), Parent::None, None, Label::Text);
    (b.build(), cached)
}

/// Two runs and the base model, with segments as long as the blocks of loops.
pub fn large() -> Pack {
    let mut b = PackBuilder::default();
    let root = b.push(&tokens(70, 1), Parent::None, Some(0), Label::Demonstration);
    for n in [1, 33, 5] {
        let child = b.push(&tokens(n, n), Parent::Pack(root), Some(0), Label::Query);
        b.push(&tokens(9, n), Parent::Pack(child), Some(0), Label::Answer);
    }
    b.push(&tokens(40, 3), Parent::None, Some(1), Label::Text);
    b.push(&tokens(17, 4), Parent::None, None, Label::Text);
    b.build()
}

/// A forest large enough to cross the blocks of any loop, beside other trees.
pub fn large_forest() -> Pack {
    let mut b = PackBuilder::default();
    let tokens = |n: usize| tokens(n, 0);
    b.push(&tokens(13), Parent::None, Some(3), Label::Text);
    for (run, first) in [(Some(0), 67), (None, 5)] {
        let root = b.push(&tokens(first), Parent::None, run, Label::Text);
        let left = b.push(&tokens(35), Parent::Pack(root), run, Label::Text);
        b.push(&tokens(1), Parent::Pack(left), run, Label::Text);
        b.push(&tokens(70), Parent::Pack(left), run, Label::Text);
        b.push(&tokens(2), Parent::Pack(root), run, Label::Text);
    }
    let prompt: Vec<Token> = (0..PROMPT as u32).map(Token::Virtual).collect();
    let prompt = b.push(&prompt, Parent::None, Some(1), Label::Virtual);
    b.push(&tokens(9), Parent::Pack(prompt), Some(1), Label::Text);
    b.push(&tokens(40), Parent::Pack(prompt), Some(1), Label::Text);
    b.build()
}

/// Heads with the usual scale.
pub fn heads(heads: usize, kv_heads: usize, head_dim: usize, window: Option<usize>) -> AttentionDims {
    let scale = 1.0 / (head_dim as f64).sqrt();
    AttentionDims { heads, kv_heads, head_dim, scale, window, alibi: false, softcap: None }
}

/// The same segments, whose rows see all of them.
pub fn bidirectional(pack: &Pack, cached: &[CachedSegment]) -> Pack {
    let mut builder = PackBuilder::new(cached).bidirectional(true);
    for segment in pack.segments() {
        builder.push(&pack.tokens()[segment.rows.clone()], segment.parent, segment.run, segment.label);
    }
    builder.build()
}
