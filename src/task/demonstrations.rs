//! Which examples are shown or tuned on.

use std::collections::HashSet;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::datasets::Example;
use crate::{Error, Result};

/// Draws `count` indices of `pool` without replacement, in random order (Fisher and Yates; ChaCha8 from `seed`).
///
/// An example whose input is that of a query is never drawn, be the pools the same or not: a model shown the answer
/// to a query has nothing to learn for it.
///
/// # Errors
/// The pool has fewer than `count` examples besides the queries.
pub fn sample(pool: &[Example], queries: &[Example], count: usize, seed: u64) -> Result<Vec<usize>> {
    let queried: HashSet<&str> = queries.iter().map(|q| q.input.as_str()).collect();
    let mut left: Vec<usize> = (0..pool.len()).filter(|&i| !queried.contains(pool[i].input.as_str())).collect();
    if count > left.len() {
        let found = format!("{count}, of {} examples of which {} are queries", pool.len(), pool.len() - left.len());
        return Err(Error::argument("--demos", format!("at most {}", left.len()), found));
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for i in 0..count {
        let j = rng.random_range(i..left.len());
        left.swap(i, j);
    }
    left.truncate(count);
    Ok(left)
}
