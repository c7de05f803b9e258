//! chrF with n-grams of up to 6 characters, no words and beta 2, to the digit that of sacreBLEU with its defaults.

use std::collections::HashMap;

use super::words;

/// Characters of the longest n-grams that are counted, as in sacreBLEU; of words there are none.
const ORDER: usize = 6;
/// The weight of recall against precision, squared.
const FACTOR: f64 = 4.0;

/// `[output's n-grams, reference's n-grams, matches]` of each order, against the reference that gives the best score.
pub fn statistics<'a>(output: &str, references: impl Iterator<Item = &'a str>) -> Vec<f64> {
    let output = Grams::of(output);
    let mut best: Option<(f64, Vec<f64>)> = None;
    for reference in references {
        let against = output.against(&Grams::of(reference));
        let score = score(&against);
        if best.as_ref().is_none_or(|(highest, _)| score > *highest) {
            best = Some((score, against));
        }
    }
    best.map_or_else(|| vec![0.0; 3 * ORDER], |(_, statistics)| statistics)
}

/// From sums of statistics: F of precision and recall averaged over the orders that both sides have.
pub fn score(sums: &[f64]) -> f64 {
    let (mut precision, mut recall, mut orders) = (0.0, 0.0, 0.0);
    for order in sums.chunks_exact(3) {
        if order[0] > 0.0 && order[1] > 0.0 {
            precision += order[2] / order[0];
            recall += order[2] / order[1];
            orders += 1.0;
        }
    }
    if precision + recall == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (precision / orders, recall / orders);
    100.0 * (1.0 + FACTOR) * precision * recall / (FACTOR * precision + recall)
}

/// The n-grams of each order with their counts; white space is not counted.
struct Grams([Counts; ORDER]);

type Counts = HashMap<Vec<char>, usize>;

impl Grams {
    fn of(text: &str) -> Self {
        let chars: Vec<char> = words(text).flat_map(str::chars).collect();
        Self(std::array::from_fn(|n| {
            let mut counts = HashMap::new();
            chars.windows(n + 1).for_each(|gram| *counts.entry(gram.to_vec()).or_default() += 1);
            counts
        }))
    }

    fn against(&self, reference: &Self) -> Vec<f64> {
        let order = |(output, reference): (&Counts, &Counts)| {
            let hits = output.iter().map(|(gram, count)| count.min(reference.get(gram).unwrap_or(&0)));
            // Without any n-gram in the reference, those of the output are no misses.
            let total = if reference.is_empty() { 0 } else { output.values().sum::<usize>() };
            [total as f64, reference.values().sum::<usize>() as f64, hits.sum::<usize>() as f64]
        };
        self.0.iter().zip(&reference.0).flat_map(order).collect()
    }
}
