//! What the backend takes of itself, before it takes it.

use super::adamw::{NORM_PARTS, NUMBERS};
use super::blas::WORKSPACE;
use super::context::Context;
use super::cross_entropy;
use super::memory::class;
use crate::backend::{LinearDims, OwnMemory, PassSize};

/// Numbers in a pack's tables for each of its rows, if most segments are no shorter than a tile of the attention.
const TABLES: usize = 24;

/// See [`Backend::own_memory`](crate::backend::Backend::own_memory).
pub fn own_memory<R>(cx: &Context, pass: &PassSize) -> OwnMemory {
    let PassSize { rows, labels, queries, vocab, rank, runs, ref landing } = *pass;
    let (wide, real) = (size_of::<f32>(), size_of::<R>());
    let mut blocks = vec![WORKSPACE, rows * TABLES * size_of::<i32>()];
    if labels > 0 {
        let logits = cross_entropy::chunk(LinearDims { rows: labels, input: 0, output: vocab });
        // Logits and their gradients, d_z rounded, d_xa, parts of the norms, the steps' numbers.
        blocks.extend([logits * wide, logits * real, rows * queries * real, rows * rank * wide]);
        blocks.extend([runs * NORM_PARTS * wide, runs * NUMBERS * wide]);
    }
    OwnMemory { scratch: blocks.into_iter().map(class).sum(), pinned: cx.pinned(landing) }
}
