//! Noise on embeddings (NEFTune, Jain et al., arXiv 2310.05914), as the Trainer of transformers adds it: to every element of a
//! token's embedding a uniform number from `[-a, a)`, `a = alpha / sqrt(L E)`. There L is the length of the padded batch, here that of
//! the sequence. Soft prompts have none.
//!
//! A number is a hash of `(seed of the run and step, key of the row, column)`, as the decisions of
//! [`Dropout`](crate::backend::ops::Dropout) are, so that it does not depend on the pack.

use super::passes::Pass;
use crate::hash::{column_draw, splitmix64};
use crate::pack::Token;

/// Stands where [`Dropout::site`](crate::backend::ops::Dropout::site) numbers a projection.
const SITE: u64 = u64::MAX;

/// What is added to the rows of a pass.
pub struct Noise {
    /// The pack rows of tokens, ascending.
    pub rows: Vec<u32>,
    /// What is added to each of them `[rows, width]`.
    pub values: Vec<f32>,
}

impl Noise {
    /// The noise of a pass whose rows each belong to one sequence, with a seed for each run and a key for each row.
    pub fn new(pass: &Pass, alpha: f64, width: usize, seeds: &[u64], keys: &[u32]) -> Self {
        let mut noise = Self { rows: Vec::new(), values: Vec::new() };
        let tokens =
            pass.pack.tokens()[..pass.own_rows()].iter().enumerate().filter(|(_, token)| matches!(token, Token::Id(_)));
        for (row, _) in tokens {
            // A teacher's rows are the base model's. (Those that fill the pack up have no sequence whose length counts.)
            let Some(run) = pass.pack.run_of(row) else { continue };
            let bound = (alpha / (pass.lengths[row] as f64 * width as f64).sqrt()) as f32;
            let hash = splitmix64(splitmix64(splitmix64(seeds[run]) ^ SITE) ^ u64::from(keys[row]));
            noise.rows.push(row as u32);
            noise.values.extend((0..width).map(|column| bound * uniform(hash, column)));
        }
        noise
    }
}

/// A number from `[-1, 1)`, of 24 bits.
fn uniform(row: u64, column: usize) -> f32 {
    (column_draw(row, column) >> 8) as f32 / (1 << 23) as f32 - 1.0
}
