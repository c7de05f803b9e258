//! Several files of examples as one, as `concatenate_datasets` and `interleave_datasets` of Hugging Face's datasets make one of them,
//! under the names that LLaMA-Factory gives these ways.

use serde::Serialize;

use crate::random::Rng;
use crate::{Error, Result};

/// The stream of a seed from which files are drawn; the order of epoch `e` is that of stream `e + 1`.
const STREAM: u64 = u64::MAX;

/// How the examples of several files follow each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MixStrategy {
    /// One file after another.
    #[default]
    Concat,
    /// From one file and another, in turn or by their probabilities, until the first of them is used up (`first_exhausted`).
    InterleaveUnder,
    /// The same until every one has been used up, of which the shorter ones begin again (`all_exhausted`).
    InterleaveOver,
}

/// How several files become the examples of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mixture {
    /// How they follow each other.
    pub strategy: MixStrategy,
    /// Of interleaved files, the probability of each; none takes from them in turn.
    pub probabilities: Option<Vec<f64>>,
}

impl Mixture {
    /// Checks the fields against a number of files.
    ///
    /// # Errors
    /// [`Error::Argument`] for probabilities that are not one for each file, above 0 and of sum 1, or beside `concat`.
    pub fn validate(&self, files: usize) -> Result<()> {
        let Some(probabilities) = &self.probabilities else { return Ok(()) };
        let refuse = |expected: String, found: String| Err(Error::argument("interleave_probs", expected, found));
        if self.strategy == MixStrategy::Concat {
            return refuse("a mix_strategy that interleaves beside them".to_owned(), "concat".to_owned());
        }
        if probabilities.len() != files {
            return refuse(format!("one for each of {files} files"), probabilities.len().to_string());
        }
        if let Some(p) = probabilities.iter().find(|p| !(p.is_finite() && **p > 0.0)) {
            return refuse("numbers above 0".to_owned(), p.to_string());
        }
        let sum: f64 = probabilities.iter().sum();
        if (sum - 1.0).abs() > 1e-8 {
            return refuse("a sum of 1".to_owned(), sum.to_string());
        }
        Ok(())
    }

    /// Which example of which file comes when: (file, example). `lengths` are the files' numbers of examples, none of them 0.
    pub fn order(&self, lengths: &[usize], seed: u64) -> Vec<(usize, usize)> {
        assert!(lengths.iter().all(|&length| length > 0), "mixture: a file without examples");
        let over = match self.strategy {
            MixStrategy::Concat => {
                let files = lengths.iter().enumerate();
                return files.flat_map(|(file, &length)| (0..length).map(move |example| (file, example))).collect();
            }
            MixStrategy::InterleaveUnder => false,
            MixStrategy::InterleaveOver => true,
        };
        let Some(probabilities) = &self.probabilities else {
            let rounds = if over { lengths.iter().max() } else { lengths.iter().min() }.copied().unwrap_or(0);
            let round = |i: usize| lengths.iter().enumerate().map(move |(file, &length)| (file, i % length));
            return (0..rounds).flat_map(round).collect();
        };
        let mut rng = Rng::with_stream(seed, STREAM);
        let (mut next, mut used_up, mut order) = (vec![0; lengths.len()], vec![false; lengths.len()], Vec::new());
        let ended = |used_up: &[bool]| if over { used_up.iter().all(|&x| x) } else { used_up.iter().any(|&x| x) };
        while !ended(&used_up) {
            let file = drawn(probabilities, rng.unit());
            order.push((file, next[file]));
            next[file] = (next[file] + 1) % lengths[file];
            used_up[file] |= next[file] == 0;
        }
        order
    }
}

/// The file in whose share of `[0, 1)` a number lies.
fn drawn(probabilities: &[f64], x: f64) -> usize {
    let mut end = 0.0;
    let inside = probabilities.iter().position(|p| {
        end += p;
        x < end
    });
    inside.unwrap_or(probabilities.len() - 1)
}
