//! Packs and forests: every table against what the sequences themselves say.

use std::collections::HashSet;
use std::ops::Range;

use llamaprobe::pack::{
    CachedSegment, Forest, Label, Pack, PackBuilder, Parent, Segment, Sequence, Span, Token, forest,
};
use proptest::prelude::*;

fn ids(ids: &[u32]) -> Vec<Token> {
    ids.iter().map(|&t| Token::Id(t)).collect()
}

fn text(tokens: &[u32]) -> Sequence {
    Sequence::ids(tokens, None, Label::Text)
}

fn span(rows: Range<usize>) -> Span {
    Span { cached: false, rows }
}

fn cached(rows: Range<usize>) -> Span {
    Span { cached: true, rows }
}

/// The labels of the rows.
fn labels(pack: &Pack) -> Vec<Label> {
    pack.segments().iter().flat_map(|s| vec![s.label; s.rows.len()]).collect()
}

/// What must hold for every pack whose cached segments (if any) end at `cached_ends`.
fn check_tables(pack: &Pack, cached_ends: &[usize]) {
    let mut rows = 0;
    for (g, s) in pack.segments().iter().enumerate() {
        assert!(!s.rows.is_empty());
        assert_eq!(s.rows.start, rows, "segments follow one another");
        rows = s.rows.end;
        let (position, run) = match s.parent {
            Parent::None => (0, s.run),
            Parent::Pack(p) => {
                assert!(p < g, "parents come before children");
                let parent = &pack.segments()[p];
                (parent.position + parent.rows.len(), parent.run)
            }
            Parent::Cached(k) => (cached_ends[k], s.run),
        };
        assert_eq!((s.position, s.run), (position, run));
        assert_eq!(pack.path(g).iter().map(|s| s.rows.len()).sum::<usize>(), s.position);
        let positions: Vec<u32> = (position..position + s.rows.len()).map(|p| p as u32).collect();
        assert_eq!(pack.positions()[s.rows.clone()], positions);
        for row in s.rows.clone() {
            assert_eq!(pack.run_of(row), s.run);
        }
        let descends = |&d: &usize| {
            let mut at = pack.segments()[d].parent;
            while let Parent::Pack(p) = at {
                if p == g {
                    return true;
                }
                at = pack.segments()[p].parent;
            }
            false
        };
        assert_eq!(pack.descendants(g), (0..pack.segments().len()).filter(descends).collect::<Vec<_>>());
        let mut ancestors = Vec::new();
        let mut at = s.parent;
        while let Parent::Pack(p) = at {
            ancestors.push(pack.segments()[p].rows.clone());
            at = pack.segments()[p].parent;
        }
        let in_pack: Vec<usize> = pack.path(g).iter().filter(|s| !s.cached).flat_map(|s| s.rows.clone()).collect();
        assert_eq!(in_pack, ancestors.into_iter().rev().flatten().collect::<Vec<_>>());
        assert!(pack.path(g).windows(2).all(|w| w[0].cached != w[1].cached || w[0].rows.end != w[1].rows.start));
    }
    assert_eq!((rows, rows), (pack.len(), pack.tokens().len()));
    assert!(pack.runs().windows(2).all(|w| w[0].0 != w[1].0 || w[0].1.end < w[1].1.start), "runs are maximal");
    let in_runs: usize = pack.runs().iter().map(|(_, rows)| rows.len()).sum();
    assert_eq!(in_runs, (0..rows).filter(|&row| pack.run_of(row).is_some()).count());
}

/// The rows of sequence `s` have its tokens, positions, labels and run.
fn check_sequence(found: &Forest, s: usize, sequence: &Sequence) {
    let pack = &found.pack;
    let rows: Vec<usize> = found.paths[s].iter().flat_map(Clone::clone).collect();
    assert_eq!(rows.iter().map(|&r| pack.tokens()[r]).collect::<Vec<_>>(), sequence.tokens);
    assert!(rows.iter().enumerate().all(|(i, &r)| pack.positions()[r] as usize == i && found.row(s, i) == r));
    assert_eq!(found.last_row(s), *rows.last().unwrap());
    assert!(rows.iter().all(|&r| pack.run_of(r) == sequence.run));
    let all = labels(pack);
    for (i, &row) in rows.iter().enumerate() {
        let label = sequence.labels.iter().rfind(|(from, _)| *from <= i).map_or(Label::Text, |(_, label)| *label);
        assert_eq!(all[row], label);
    }
    // The last row's segment continues exactly the rows before it.
    let g = pack.segments().iter().position(|s| s.rows.contains(rows.last().unwrap())).unwrap();
    let mut path: Vec<usize> = pack.path(g).iter().flat_map(|s| s.rows.clone()).collect();
    path.extend(pack.segments()[g].rows.clone());
    assert_eq!(path, rows);
}

#[test]
fn builder_makes_every_table() {
    let mut b = PackBuilder::default();
    let root = b.push(&ids(&[1, 2]), Parent::None, Some(1), Label::Demonstration);
    let left = b.push(&ids(&[3]), Parent::Pack(root), Some(1), Label::Query);
    let leaf = b.push(&ids(&[4, 5]), Parent::Pack(left), Some(1), Label::Answer);
    let right = b.push(&ids(&[6]), Parent::Pack(root), Some(1), Label::Query);
    let base = b.push(&ids(&[7]), Parent::None, None, Label::Text);
    let other = b.push(&[Token::Virtual(0), Token::Virtual(1)], Parent::None, Some(1), Label::Virtual);
    let pack = b.build();
    check_tables(&pack, &[]);
    assert_eq!((pack.len(), pack.longest(), pack.is_empty(), pack.has_cached()), (9, 5, false, false));
    assert_eq!(pack.positions(), [0, 1, 2, 3, 4, 2, 0, 0, 1]);
    assert_eq!(pack.descendants(root), [left, leaf, right]);
    assert_eq!(pack.descendants(left), [leaf]);
    assert!(pack.descendants(other).is_empty());
    // The root and its first child lie one after another, the root and its second child do not.
    assert_eq!(pack.path(leaf), [span(0..3)]);
    assert_eq!(pack.path(right), [span(0..2)]);
    assert_eq!(pack.path(base), []);
    assert_eq!(pack.runs(), [(1, 0..6), (1, 7..9)]);
    assert_eq!((pack.run_of(5), pack.run_of(6), pack.run_of(7)), (Some(1), None, Some(1)));
    let segment = Segment { rows: 5..6, parent: Parent::Pack(root), run: Some(1), label: Label::Query, position: 2 };
    assert_eq!(pack.segments()[right], segment);
}

#[test]
fn path_with_a_gap_has_one_span_per_stretch() {
    let mut b = PackBuilder::default();
    let root = b.push(&ids(&[1, 2]), Parent::None, None, Label::Text);
    b.push(&ids(&[3]), Parent::Pack(root), None, Label::Text);
    let right = b.push(&ids(&[4]), Parent::Pack(root), None, Label::Text);
    let leaf = b.push(&ids(&[5]), Parent::Pack(right), None, Label::Text);
    let pack = b.build();
    check_tables(&pack, &[]);
    assert_eq!(pack.path(leaf), [span(0..2), span(3..4)]);
}

#[test]
fn cached_ancestors_come_first_and_join_where_they_touch() {
    let cache = [
        CachedSegment { rows: 4..7, parent: None, run: Some(0), end: 3 },
        CachedSegment { rows: 0..2, parent: Some(0), run: Some(0), end: 5 },
        CachedSegment { rows: 2..4, parent: Some(1), run: Some(0), end: 7 },
    ];
    let mut b = PackBuilder::new(&cache);
    let top = b.push(&ids(&[1, 2]), Parent::Cached(2), Some(0), Label::Query);
    let leaf = b.push(&ids(&[3]), Parent::Pack(top), Some(0), Label::Answer);
    let other = b.push(&ids(&[3]), Parent::Cached(0), Some(0), Label::Answer);
    let free = b.push(&ids(&[3]), Parent::None, None, Label::Answer);
    let pack = b.build();
    check_tables(&pack, &[3, 5, 7]);
    assert!(pack.has_cached());
    assert_eq!(pack.path(top), [cached(4..7), cached(0..4)]);
    assert_eq!(pack.path(leaf), [cached(4..7), cached(0..4), span(0..2)]);
    assert_eq!(pack.path(other), [cached(4..7)]);
    assert_eq!(pack.path(free), []);
    assert_eq!(pack.positions(), [7, 8, 9, 3, 0]);
    assert_eq!(pack.longest(), 10);
    assert_eq!(pack.descendants(top), [leaf]);
}

#[test]
#[should_panic(expected = "at least one row")]
fn segment_that_is_empty_is_refused() {
    PackBuilder::default().push(&[], Parent::None, None, Label::Text);
}

#[test]
#[should_panic(expected = "no parent segment 0")]
fn parent_that_is_missing_is_refused() {
    PackBuilder::default().push(&ids(&[1]), Parent::Pack(0), None, Label::Text);
}

#[test]
#[should_panic(expected = "no cached segment 3")]
fn cached_parent_that_is_missing_is_refused() {
    PackBuilder::default().push(&ids(&[1]), Parent::Cached(3), None, Label::Text);
}

#[test]
#[should_panic(expected = "run Some(2) under a parent of run Some(1)")]
fn child_of_another_run_is_refused() {
    let mut b = PackBuilder::default();
    b.push(&ids(&[1]), Parent::None, Some(1), Label::Text);
    b.push(&ids(&[1]), Parent::Pack(0), Some(2), Label::Text);
}

#[test]
#[should_panic(expected = "cached segment 0 ends at position 5, its path has 3 rows")]
fn cached_segment_with_a_wrong_end_is_refused() {
    let mut b = PackBuilder::new(&[CachedSegment { rows: 0..3, parent: None, run: None, end: 5 }]);
    b.push(&ids(&[1]), Parent::Cached(0), None, Label::Text);
}

#[test]
#[should_panic(expected = "sequence 1 is empty")]
fn sequence_that_is_empty_is_refused() {
    forest(&[text(&[1]), text(&[])], 1);
}

#[test]
#[should_panic(expected = "token 2 of sequence 0, which has 2")]
fn row_of_a_token_past_the_end_is_refused() {
    forest(&[text(&[1, 2])], 1).row(0, 2);
}

#[test]
fn forest_of_no_sequences_is_an_empty_pack() {
    let found = forest(&[], 1);
    assert!(found.pack.is_empty() && found.paths.is_empty());
    assert_eq!(found.pack.longest(), 0);
}

#[test]
#[allow(clippy::single_range_in_vec_init, reason = "a path of one stretch")]
fn forest_stores_the_longest_common_prefix_once() {
    let sequences = [text(&[1, 2, 3, 4]), text(&[1, 2, 3, 5]), text(&[1, 2, 6]), text(&[9])];
    let found = forest(&sequences, 1);
    assert_eq!(found.pack.tokens(), ids(&[1, 2, 3, 4, 5, 6, 9]));
    assert_eq!(found.paths, [vec![0..4], vec![0..3, 4..5], vec![0..2, 5..6], vec![6..7]]);
    let parents: Vec<Parent> = found.pack.segments().iter().map(|s| s.parent).collect();
    let [none, root, third] = [Parent::None, Parent::Pack(0), Parent::Pack(1)];
    assert_eq!(parents, [none, root, third, third, root, none]);
}

#[test]
fn forest_needs_no_rows_for_equal_sequences_and_prefixes_of_others() {
    let found = forest(&[text(&[1, 2]), text(&[1, 2, 3]), text(&[1, 2]), text(&[1])], 1);
    assert_eq!(found.pack.tokens(), ids(&[1, 2, 3]));
    assert_eq!([0, 1, 2, 3].map(|s| found.last_row(s)), [1, 2, 1, 0]);
}

#[test]
fn runs_share_nothing_and_keep_together() {
    let sequences = [Some(1), None, Some(1), Some(0), None].map(|run| Sequence::ids(&[1, 2], run, Label::Text));
    let found = forest(&sequences, 1);
    assert_eq!(found.pack.len(), 6);
    assert_eq!(found.pack.runs(), [(1, 0..2), (0, 4..6)]);
    assert_eq!([0, 1, 2, 3, 4].map(|s| found.last_row(s)), [1, 3, 1, 5, 3]);
}

#[test]
fn labels_cut_segments_and_forbid_sharing() {
    let with = |labels: &[(usize, Label)]| Sequence {
        tokens: ids(&[1, 2, 3]),
        run: None,
        labels: labels.to_vec(),
        marks: Vec::new(),
    };
    let same = [with(&[(1, Label::Query)]), with(&[(1, Label::Query)])];
    let found = forest(&same, 1);
    assert_eq!(labels(&found.pack), [Label::Text, Label::Query, Label::Query]);
    assert_eq!(found.pack.segments().len(), 2);
    assert_eq!(found.pack.path(1), [span(0..1)]);
    let differ = [with(&[(1, Label::Query)]), with(&[(2, Label::Query)])];
    let found = forest(&differ, 1);
    assert_eq!(found.pack.len(), 5, "only the first token has both its id and its label in common");
    assert_eq!(labels(&found.pack), [Label::Text, Label::Query, Label::Query, Label::Text, Label::Query]);
}

#[test]
fn virtual_token_is_not_the_id_of_the_same_number() {
    let prompt =
        |token| Sequence { tokens: vec![token, Token::Id(4)], run: Some(0), labels: Vec::new(), marks: Vec::new() };
    assert_eq!(forest(&[prompt(Token::Virtual(1)), prompt(Token::Id(1))], 1).pack.len(), 4);
    assert_eq!(forest(&[prompt(Token::Virtual(1)), prompt(Token::Virtual(1))], 1).pack.len(), 2);
}

#[test]
fn forest_does_not_share_stretches_shorter_than_the_minimum() {
    let sequences = [text(&[1, 2, 3]), text(&[1, 2, 4])];
    assert_eq!(forest(&sequences, 2).pack.len(), 4);
    assert_eq!(forest(&sequences, 3).pack.len(), 6);
    assert_eq!(forest(&sequences, 0).pack.len(), 4, "0 is taken as 1");
}

fn sequences() -> impl Strategy<Value = Vec<Sequence>> {
    let label = prop_oneof![Just(Label::Text), Just(Label::Query), Just(Label::Answer)];
    let token = prop_oneof![4 => (0..3u32).prop_map(Token::Id), 1 => (0..2u32).prop_map(Token::Virtual)];
    let sequence = (
        prop::collection::vec(token, 1..9),
        prop::option::of(0..2usize),
        prop::collection::btree_map(0..8usize, label, 0..3),
    );
    let sequence = sequence.prop_map(|(tokens, run, labels)| {
        let labels = labels.into_iter().filter(|(_, label)| *label != Label::Text).collect();
        Sequence { tokens, run, labels, marks: Vec::new() }
    });
    prop::collection::vec(sequence, 0..9)
}

/// What identifies a row when everything common is shared: its run and the tokens and labels up to it.
type Beginning = (Option<usize>, Vec<(Token, Label)>);

fn beginnings(sequence: &Sequence) -> Vec<Beginning> {
    let label = |i| sequence.labels.iter().rfind(|(from, _)| *from <= i).map_or(Label::Text, |(_, label)| *label);
    let all: Vec<(Token, Label)> = sequence.tokens.iter().enumerate().map(|(i, &t)| (t, label(i))).collect();
    (1..=all.len()).map(|n| (sequence.run, all[..n].to_vec())).collect()
}

proptest! {
    #[test]
    fn forest_holds_every_sequence(sequences in sequences(), min_shared in 1..5usize) {
        let found = forest(&sequences, min_shared);
        check_tables(&found.pack, &[]);
        for (s, sequence) in sequences.iter().enumerate() {
            check_sequence(&found, s, sequence);
        }
        // Every row belongs to a sequence.
        let used: HashSet<usize> = found.paths.iter().flatten().flat_map(Clone::clone).collect();
        prop_assert_eq!(used.len(), found.pack.len());
    }

    #[test]
    fn forest_stores_every_common_beginning_once(sequences in sequences()) {
        let distinct: HashSet<Beginning> = sequences.iter().flat_map(beginnings).collect();
        prop_assert_eq!(forest(&sequences, 1).pack.len(), distinct.len());
    }

    #[test]
    fn forest_shares_stretches_of_the_minimum_and_misses_none(
        sequences in sequences(),
        min_shared in 2..5usize,
    ) {
        let found = forest(&sequences, min_shared);
        for (s, a) in sequences.iter().enumerate() {
            for (t, b) in sequences.iter().enumerate().skip(s + 1) {
                let (a, b) = (beginnings(a), beginnings(b));
                let common = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
                let shared = (0..common).take_while(|&i| found.row(s, i) == found.row(t, i)).count();
                // Two sequences part where fewer than the minimum are left in common.
                prop_assert!(common - shared < min_shared, "{} of {} common tokens shared", shared, common);
                let prompt = matches!(sequences[s].tokens[0], Token::Virtual(_));
                prop_assert!(shared == 0 || shared >= min_shared || prompt);
                let apart = |&i: &usize| found.row(s, i) != found.row(t, i);
                prop_assert_eq!((shared..a.len().min(b.len())).filter(apart).count(), a.len().min(b.len()) - shared);
            }
        }
    }
}
