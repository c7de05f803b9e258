//! What a plan must know of a GPU before anything runs.

use super::Cuda;
use crate::backend::scratch::{block_size, scratch};
use crate::backend::{OwnMemory, PassSize, Planning};

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
