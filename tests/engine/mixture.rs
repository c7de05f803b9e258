//! Several files of examples as one.

use llamaprobe::train::mixture::{MixStrategy, Mixture};

fn mixture(strategy: MixStrategy, probabilities: Option<&[f64]>) -> Mixture {
    Mixture { strategy, probabilities: probabilities.map(<[f64]>::to_vec) }
}

/// The orders that the documentation of datasets' `interleave_datasets` shows, files numbered by tens.
#[test]
fn interleaving_in_turn_is_that_of_datasets() {
    let shown = |lengths: &[usize], strategy| -> Vec<usize> {
        let order = mixture(strategy, None).order(lengths, 42);
        order.into_iter().map(|(file, example)| 10 * file + example).collect()
    };
    let under = [0, 10, 20, 1, 11, 21, 2, 12, 22];
    assert_eq!(shown(&[3, 4, 5], MixStrategy::InterleaveUnder), under);
    let over = [0, 10, 20, 1, 11, 21, 2, 12, 22, 0, 13, 23, 1, 10, 24];
    assert_eq!(shown(&[3, 4, 5], MixStrategy::InterleaveOver), over);
    assert_eq!(shown(&[2, 1, 2], MixStrategy::Concat), [0, 1, 10, 20, 21]);
}

#[test]
fn interleaving_by_probabilities_draws_each_file_as_often_as_it_should() {
    let (lengths, p) = ([3000, 900, 800], [0.6, 0.3, 0.1]);
    for strategy in [MixStrategy::InterleaveUnder, MixStrategy::InterleaveOver] {
        let mix = mixture(strategy, Some(&p));
        mix.validate(3).expect("valid");
        let order = mix.order(&lengths, 7);
        assert_eq!(order, mix.order(&lengths, 7));
        assert_ne!(order, mix.order(&lengths, 8));
        for (file, (&length, p)) in lengths.iter().zip(p).enumerate() {
            let of_file: Vec<usize> = order.iter().filter(|(f, _)| *f == file).map(|(_, example)| *example).collect();
            // In the file's order, from the beginning again where it was used up.
            assert!(of_file.iter().enumerate().all(|(i, &example)| example == i % length), "file {file}");
            let (n, count) = (order.len() as f64, of_file.len() as f64);
            let deviation = (count - n * p).abs() / (n * p * (1.0 - p)).sqrt();
            println!("{strategy:?}, file {file}: {count} of {n}, {deviation:.2} standard deviations off");
            // The stop depends on the counts, which widens the deviation of the file that is the last.
            assert!(deviation < 3.0, "file {file}: {deviation}");
            assert!((count - n * (p + 0.1)).abs() / (n * p * (1.0 - p)).sqrt() > 3.0, "the check cannot fail");
        }
        let used_up = lengths
            .iter()
            .enumerate()
            .filter(|(file, length)| order.iter().filter(|(f, _)| f == file).count() >= **length);
        let expected = if strategy == MixStrategy::InterleaveUnder { 1 } else { 3 };
        assert_eq!(used_up.count(), expected);
        // The last example is the one that ended it.
        let (file, example) = order[order.len() - 1];
        assert_eq!(example + 1, lengths[file]);
    }
}

#[test]
fn mixtures_that_mean_nothing_are_refused() {
    use MixStrategy::{Concat, InterleaveUnder};
    for (strategy, p, expected) in [
        (Concat, &[0.5, 0.5][..], "mix_strategy"),
        (InterleaveUnder, &[0.5, 0.3, 0.2], "one for each of 2 files"),
        (InterleaveUnder, &[1.0, 0.0], "numbers above 0"),
        (InterleaveUnder, &[0.5, f64::NAN], "numbers above 0"),
        (InterleaveUnder, &[0.7, 0.2], "a sum of 1"),
    ] {
        let error = mixture(strategy, Some(p)).validate(2).expect_err(expected).to_string();
        assert!(error.starts_with("interleave_probs") && error.contains(expected), "{error}");
    }
}
