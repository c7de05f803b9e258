//! The parts of training that need no model: schedules, settings, data order, and how batches become packs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use llamaprobe::pack::Token;
use llamaprobe::train::data::{IGNORE_INDEX, TrainSequence};
use llamaprobe::train::order::{DataCursor, Order};
use llamaprobe::train::passes::{Packing, Pass};
use llamaprobe::train::schedule::{Schedule, Warmup};
use llamaprobe::train::settings::{Length, RunSettings};
use proptest::prelude::*;

/// The factors of every golden schedule with a changed step, warm-up and length, beside transformers'.
fn factors(change: fn([u64; 3]) -> [u64; 3]) -> Vec<(String, Vec<[f64; 2]>)> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/peft/schedules.json");
    let text = std::fs::read_to_string(path).expect("the golden file");
    let golden: BTreeMap<String, Vec<f64>> = serde_json::from_str(&text).expect("JSON");
    assert_eq!(golden.len(), 15);
    let schedule = |(name, factors): (String, Vec<f64>)| {
        let parts: Vec<&str> = name.split('-').collect();
        let schedule: Schedule = parts[0].parse().expect("a known name");
        let [warmup, total] = [parts[1], parts[2]].map(|part| part.parse().expect("a number"));
        let found = factors.iter().enumerate().map(|(step, &expected)| {
            let [step, warmup, total] = change([step as u64, warmup, total]);
            [schedule.factor(step, warmup, total), expected]
        });
        (name, found.collect())
    };
    golden.into_iter().map(schedule).collect()
}

/// One rounding: the cosine is the system's.
const LIMIT: f64 = f64::EPSILON;

fn worst(factors: &[[f64; 2]]) -> f64 {
    factors.iter().fold(0.0, |worst, [found, expected]| worst.max((found - expected).abs()))
}

#[test]
fn schedule_limits_see_small_mistakes() {
    // What does not change with a mistake: the constant part of a rate, and what lies beyond the last step.
    type Mistake = (&'static str, fn([u64; 3]) -> [u64; 3], fn(&str) -> bool);
    let mistakes: [Mistake; 3] = [
        (
            "a step later",
            |[step, warmup, total]| [step + 1, warmup, total],
            |name| name.starts_with("constant_with_warmup-0-"),
        ),
        ("a warm-up that is a step longer", |[step, warmup, total]| [step, warmup + 1, total], |_| false),
        (
            "a length of a step more",
            |[step, warmup, total]| [step, warmup, total + 1],
            |name| name.starts_with("constant") || name.ends_with("-12-10") || name == "cosine-10-10",
        ),
    ];
    for (mistake, change, hidden) in mistakes {
        for (name, factors) in factors(change) {
            let far = worst(&factors);
            assert_eq!(far > LIMIT, !hidden(&name), "{name}, {mistake}: {far:.1e}");
        }
    }
}

#[test]
fn schedules_are_those_of_transformers() {
    for (name, factors) in factors(|steps| steps) {
        let far = worst(&factors);
        assert!(far <= LIMIT, "{name}: {far:.1e}");
    }
    assert_eq!("cosine".parse::<Schedule>().expect("a known name").to_string(), "cosine");
    let error = "polynomial".parse::<Schedule>().expect_err("no such schedule").to_string();
    assert!(error.contains("polynomial") && error.contains("cosine"), "{error}");
    assert_eq!((Warmup::Ratio(0.1).steps(21), Warmup::Steps(5).steps(21), Warmup::Ratio(0.0).steps(9)), (3, 5, 0));
}

#[test]
fn steps_are_counted_as_transformers_does() {
    let settings =
        |batch_size, accumulation, length| RunSettings { batch_size, accumulation, length, ..Default::default() };
    assert_eq!(settings(4, 1, Length::Epochs(3.0)).total_steps(10), 9);
    assert_eq!(settings(4, 2, Length::Epochs(3.0)).total_steps(10), 6);
    assert_eq!(settings(4, 2, Length::Epochs(2.5)).total_steps(10), 5);
    assert_eq!(settings(4, 2, Length::Epochs(0.1)).total_steps(10), 1);
    assert_eq!(settings(64, 2, Length::Steps(7)).total_steps(10), 7);
}

#[test]
fn run_settings_out_of_their_domain_are_named() {
    let good = RunSettings::default;
    good().validate().expect("the defaults are valid");
    let bad = [
        (RunSettings { batch_size: 0, ..good() }, "batch_size"),
        (RunSettings { accumulation: 0, ..good() }, "accumulation"),
        (RunSettings { accumulation: usize::MAX, ..good() }, "accumulation"),
        (RunSettings { learning_rate: f64::NAN, ..good() }, "learning_rate"),
        (RunSettings { length: Length::Epochs(0.0), ..good() }, "epochs"),
        (RunSettings { length: Length::Steps(0), ..good() }, "max_steps"),
        (RunSettings { warmup: Warmup::Ratio(1.5), ..good() }, "warmup_ratio"),
        (RunSettings { beta2: 1.0, ..good() }, "beta2"),
        (RunSettings { epsilon: 0.0, ..good() }, "epsilon"),
        (RunSettings { weight_decay: -1.0, ..good() }, "weight_decay"),
        (RunSettings { max_grad_norm: Some(0.0), ..good() }, "max_grad_norm"),
    ];
    for (settings, name) in bad {
        let error = settings.validate().expect_err(name).to_string();
        assert!(error.starts_with(name), "{error}");
    }
}

#[test]
fn order_of_an_epoch_is_a_permutation_and_a_cursor_is_the_whole_state() {
    let mut order = Order::new(10, Some(7));
    let mut cursors = vec![order.cursor()];
    let mut batches = Vec::new();
    for _ in 0..9 {
        batches.push(order.take(4).to_vec());
        cursors.push(order.cursor());
    }
    assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 2, 4, 4, 2, 4, 4, 2]);
    for epoch in batches.chunks(3) {
        let mut all = epoch.concat();
        all.sort_unstable();
        assert_eq!(all, (0..10).collect::<Vec<_>>());
    }
    assert_ne!(batches[..3], batches[3..6]);
    assert_ne!(batches[..3].concat(), Order::new(10, Some(8)).take(10), "the seed matters");
    assert_eq!((order.cursor(), order.epochs()), (DataCursor { epoch: 2, position: 10 }, 3.0));
    for (i, cursor) in cursors.iter().take(9).enumerate() {
        let mut resumed = Order::new(10, Some(7));
        assert!(resumed.seek(*cursor));
        assert_eq!(resumed.take(4), batches[i], "from {cursor:?}");
    }
    assert!(!order.seek(DataCursor { epoch: 0, position: 11 }));
    let mut plain = Order::new(3, None);
    assert_eq!([plain.take(2).to_vec(), plain.take(2).to_vec(), plain.take(9).to_vec()].concat(), [0, 1, 2, 0, 1, 2]);
}

fn sequence(ids: &[u32], learnt: impl Fn(usize) -> bool) -> TrainSequence {
    TrainSequence::marked(ids.to_vec(), learnt)
}

const PACKING: Packing =
    Packing { budget: 100, min_shared: 2, prompts: Vec::new(), ignore_first: false, adapted: true, is_causal: true };

fn build(packing: &Packing, data: &[Vec<TrainSequence>], pieces: &[llamaprobe::train::passes::Piece]) -> Pass {
    packing.pass(pieces, |run| &data[run])
}

#[test]
fn labels_find_their_rows_and_rows_after_the_last_label_are_dropped() {
    let data = vec![
        vec![sequence(&[1, 5, 6, 7, 8], |i| i == 3), sequence(&[1, 5, 6, 7, 9, 9], |i| i == 3 || i == 4)],
        vec![sequence(&[1, 5, 6, 7], |i| i > 0)],
    ];
    let pieces: Vec<_> = (0..2).flat_map(|run| PACKING.pieces(run, &data[run], &[0, 1][..data[run].len()])).collect();
    let pass = build(&PACKING, &data, &pieces);
    // Run 0: rows 1 5 6 are shared, 7 is the second sequence's alone. Run 1: rows 1 5 6; its last token has no row.
    let tokens: Vec<Token> = [1, 5, 6, 7, 1, 5, 6].map(Token::Id).to_vec();
    assert_eq!(pass.pack.tokens(), tokens);
    assert_eq!(pass.pack.runs(), [(0, 0..4), (1, 4..7)]);
    // The label 7 after the shared row 2 is one label that counts twice.
    assert_eq!(pass.rows, [2, 3, 4, 5, 6]);
    assert_eq!(pass.targets, [7, 9, 5, 6, 7]);
    assert_eq!(pass.counts, [2, 1, 1, 1, 1]);
    assert_eq!(pass.runs, [0, 0, 1, 1, 1]);
}

#[test]
fn soft_prompt_stands_before_every_sequence_and_predicts_its_first_token() {
    let packing = Packing { prompts: vec![2], ..PACKING };
    let data = vec![vec![TrainSequence::all(vec![4, 5]), sequence(&[6, 7], |i| i == 1)]];
    let pass = build(&packing, &data, &packing.pieces(0, &data[0], &[0, 1]));
    use Token::{Id, Virtual};
    assert_eq!(pass.pack.tokens(), [Virtual(0), Virtual(1), Id(4), Id(6)]);
    assert_eq!((pass.rows, pass.targets), (vec![1, 2, 3], vec![4, 5, 7]));
    assert_eq!(packing.capacity([(data[0].as_slice(), 2)].into_iter()), (4, 3), "the prompt counts once");
}

#[test]
fn soft_prompts_differ_in_length_between_runs() {
    let packing = Packing { prompts: vec![3, 1], min_shared: 9, ..PACKING };
    let data = vec![vec![TrainSequence::all(vec![4, 5]), TrainSequence::all(vec![6, 7])]; 2];
    let pieces: Vec<_> = (0..2).flat_map(|run| packing.pieces(run, &data[run], &[0, 1])).collect();
    let pass = build(&packing, &data, &pieces);
    use Token::{Id, Virtual};
    let run = |rows: u32| (0..rows).map(Virtual).chain([Id(4), Id(6)]);
    assert_eq!(pass.pack.tokens(), run(3).chain(run(1)).collect::<Vec<_>>(), "each prompt stands once, however short");
    assert_eq!(pass.pack.runs(), [(0, 0..5), (1, 5..8)]);
    assert_eq!(pass.pack.len(), pieces.iter().map(|p| p.rows).sum::<usize>());
    assert_eq!(pass.rows, [2, 2, 3, 4, 5, 5, 6, 7]);
    assert_eq!(pass.pack.segments()[0].label, llamaprobe::pack::Label::Virtual);
}

#[test]
fn base_rows_belong_to_no_run() {
    let packing = Packing { adapted: false, ..PACKING };
    let data = vec![vec![TrainSequence::all(vec![4, 5, 6])]];
    assert!(build(&packing, &data, &packing.pieces(0, &data[0], &[0])).pack.runs().is_empty());
}

#[test]
fn sequences_truncated_to_a_length_keep_ids_and_labels_together() {
    let mut sequence = sequence(&[1, 2, 3, 4], |i| i > 1);
    assert_eq!(sequence.labels, [IGNORE_INDEX, IGNORE_INDEX, 3, 4]);
    assert!(!sequence.truncate(4));
    assert!(sequence.truncate(3));
    assert_eq!((sequence.ids, sequence.labels), (vec![1, 2, 3], vec![IGNORE_INDEX, IGNORE_INDEX, 3]));
}

fn any_sequence() -> impl Strategy<Value = TrainSequence> {
    (proptest::collection::vec(0u32..3, 2..30), 1usize..29).prop_map(|(ids, from)| {
        let from = from.min(ids.len() - 1);
        TrainSequence::marked(ids, |i| i >= from)
    })
}

proptest! {
    #[test]
    fn passes_fit_the_plan_and_hold_every_label_once(
        data in proptest::collection::vec(proptest::collection::vec(any_sequence(), 1..9), 1..5),
        budget in 1usize..120,
        min_shared in 1usize..5,
    ) {
        let packing = Packing { budget, min_shared, ..PACKING };
        let (rows, labels) = packing.capacity(data.iter().map(|run| (run.as_slice(), run.len())));
        let alone: Vec<Vec<_>> = data.iter().enumerate()
            .map(|(run, sequences)| packing.pieces(run, sequences, &(0..sequences.len()).collect::<Vec<_>>()))
            .collect();
        let passes = packing.group(alone.clone());
        let mut found: Vec<Vec<_>> = vec![Vec::new(); data.len()];
        let mut learnt = vec![0; data.len()];
        for pieces in &passes {
            let pass = packing.pass(pieces, |run| &data[run]);
            prop_assert!(pass.pack.len() <= rows, "{} rows of {rows}", pass.pack.len());
            prop_assert!(pass.rows.len() <= labels, "{} labels of {labels}", pass.rows.len());
            let single = pieces.iter().all(|p| p.sequences.len() == 1) && pieces.len() == 1;
            prop_assert!(single || pass.pack.len() <= budget, "{} rows for {budget}", pass.pack.len());
            let runs: Vec<usize> = pieces.iter().map(|p| p.run).collect();
            prop_assert!(runs.windows(2).all(|w| w[0] < w[1]), "two pieces of a run in a pass: {runs:?}");
            for (i, &row) in pass.rows.iter().enumerate() {
                prop_assert_eq!(pass.pack.run_of(row as usize), Some(pass.runs[i]));
                learnt[pass.runs[i]] += pass.counts[i] as usize;
            }
            for piece in pieces {
                found[piece.run].push(piece.clone());
            }
        }
        // Each run's pieces come in its own order, whatever the others do.
        prop_assert_eq!(found, alone);
        for (run, sequences) in data.iter().enumerate() {
            prop_assert_eq!(learnt[run], sequences.iter().map(|s| s.targets(0).count()).sum::<usize>());
        }
    }
}
