//! Draws of demonstrations: the examples that are shown or tuned on.

use std::collections::HashSet;

use super::example::Example;
use crate::random::Rng;
use crate::{Error, Result};

/// Draws `count` indices of `pool` without replacement, in random order (Fisher and Yates, on random numbers of `seed`).
///
/// An example whose input is that of a query is never drawn, be the pools the same or not: a model shown the answer
/// to a query has nothing to learn for it.
///
/// # Errors
/// The pool has fewer than `count` examples besides the queries.
pub fn sample(pool: &[Example], queries: &[Example], count: usize, seed: u64) -> Result<Vec<usize>> {
    sample_of(pool, &(0..pool.len()).collect::<Vec<_>>(), queries, count, seed)
}

/// The same of a part of the pool, which is given by indices.
///
/// # Errors
/// See [`sample`].
pub fn sample_of(pool: &[Example], part: &[usize], queries: &[Example], count: usize, seed: u64) -> Result<Vec<usize>> {
    let queried: HashSet<&str> = queries.iter().map(|q| q.input.as_str()).collect();
    let left: Vec<usize> = part.iter().copied().filter(|&i| !queried.contains(pool[i].input.as_str())).collect();
    if count > left.len() {
        let found = format!("{count}, of {} examples of which {} are queries", part.len(), part.len() - left.len());
        return Err(Error::argument("demonstrations", format!("at most {}", left.len()), found));
    }
    Ok(draw(left, count, &mut Rng::new(seed)))
}

/// Draws for one query of its own: `count` indices of `pool` without replacement, in random order, from stream `stream` of
/// `seed`, the query's index among all queries. Never the query itself, which is example `pool_index` of the pool if it is
/// of the pool, nor an example with the same input.
///
/// # Errors
/// The pool has fewer than `count` others.
pub fn sample_for(
    pool: &[Example],
    query: &Example,
    pool_index: Option<usize>,
    count: usize,
    seed: u64,
    stream: u64,
) -> Result<Vec<usize>> {
    let left: Vec<usize> = (0..pool.len()).filter(|&i| Some(i) != pool_index && pool[i].input != query.input).collect();
    if count > left.len() {
        return Err(Error::argument("demonstrations", format!("at most {}", left.len()), count));
    }
    Ok(draw(left, count, &mut Rng::with_stream(seed, stream)))
}

/// `count` of `left` in random order (Fisher and Yates).
fn draw(mut left: Vec<usize>, count: usize, rng: &mut Rng) -> Vec<usize> {
    for i in 0..count {
        let j = i + rng.below(left.len() - i);
        left.swap(i, j);
    }
    left.truncate(count);
    left
}
