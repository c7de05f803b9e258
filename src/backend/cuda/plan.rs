//! What a plan must know of a GPU before anything runs.

use super::Cuda;
use super::adamw::{NORM_PARTS, STEP_FIELDS};
use super::attention::key_parts_bytes;
use super::blas::WORKSPACE;
use super::cross_entropy;
use super::lora_launch::{TOGETHER, split_k_bytes};
use super::memory::block_size;
use super::pack::usual_entries;
use crate::backend::ops::LinearDims;
use crate::backend::{OwnMemory, PassSize, Planning};

/// Bytes of device memory that such passes take for themselves, with elements of these sizes.
pub fn scratch(pass: &PassSize, (acc, compute): (usize, usize)) -> usize {
    let PassSize { rows, backward_rows, labels, heads, vocab, rank, adapted, terms, runs, .. } = *pass;
    // Tables of a pass and of its output rows, in a training and in its evaluation.
    let tables = 2 * (usual_entries(rows) + usual_entries(labels));
    let mut blocks = vec![WORKSPACE, tables * size_of::<i32>()];
    blocks.extend(split_k_bytes(rows, rank, adapted).into_iter().flatten());
    if labels > 0 {
        let logits = cross_entropy::chunk_len(LinearDims { rows: labels, input: 0, output: vocab });
        let queries = heads[0] * heads[1];
        blocks.extend(key_parts_bytes(backward_rows, heads).into_iter().flatten());
        // Logits and their gradients, d_z rounded, d_xa, terms of a gradient, parts of the norms, the steps' fields.
        blocks.extend([
            logits * acc,
            logits * compute,
            backward_rows * queries * compute,
            TOGETHER * backward_rows * rank * acc,
        ]);
        blocks.extend((terms > 0).then_some(terms * acc));
        blocks.extend([runs * NORM_PARTS * acc, runs * STEP_FIELDS * acc]);
    }
    blocks.into_iter().map(block_size).sum()
}

impl Planning for Cuda {
    const RUNS_AHEAD: bool = true;
    const REPEATS: bool = true;
    const ROW_INVARIANT: bool = false;
    const MAPS_WEIGHTS: bool = false;

    fn element_sizes(&self) -> (usize, usize) {
        (size_of::<f32>(), self.cx.dtype.size())
    }

    fn own_memory(&self, pass: &PassSize) -> OwnMemory {
        let PassSize { readbacks, captures, .. } = pass;
        let staged: usize = self.cx.staged(captures).into_iter().map(block_size).sum();
        let pinned = self.cx.pinned(readbacks.iter().chain(captures).copied());
        OwnMemory { scratch: scratch(pass, self.element_sizes()) + staged, pinned }
    }
}
