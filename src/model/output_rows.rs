//! The rows of a pass whose output is wanted. Of the others the last layer needs keys and values only.

use std::sync::Arc;

use crate::Result;
use crate::arch::ModelConfig;
use crate::backend::Backend;
use crate::pack::{Label, Pack, PackBuilder, Parent};

/// The M rows that are needed after the last attention of a pass: by taps, as label rows, for their logits. Output
/// projection, MLP, norms and everything after them run over these rows alone.
pub struct OutputRows<B: Backend> {
    /// `[M]` rows of the pack, ascending, each once.
    pub(super) rows: Arc<[usize]>,
    /// The same on the device.
    pub(super) index: B::Index,
    /// The rows themselves `[M]`, for operations that ask a pack for nothing but the run of each row.
    pub(super) pack: Pack,
    /// The same on the device.
    pub(super) device: B::Pack,
}

impl<B: Backend> OutputRows<B> {
    /// Rows of a pack, in any order; none if that is all of them, so that nothing can be saved.
    ///
    /// # Errors
    /// If the device has no memory for their tables.
    ///
    /// # Panics
    /// If there is no row, or one that the pack has not.
    pub fn new(backend: &mut B, pack: &Pack, rows: impl IntoIterator<Item = usize>) -> Result<Option<Self>> {
        let mut rows: Vec<usize> = rows.into_iter().collect();
        rows.sort_unstable();
        rows.dedup();
        let last = rows.last().unwrap_or_else(|| panic!("output rows: no row of {}", pack.len()));
        assert!(*last < pack.len(), "output rows: row {last} of {}", pack.len());
        if rows.len() == pack.len() {
            return Ok(None);
        }
        let mut builder = PackBuilder::default();
        for segment in pack.segments() {
            let own = rows.partition_point(|&row| row < segment.rows.start)
                ..rows.partition_point(|&row| row < segment.rows.end);
            if !own.is_empty() {
                let tokens: Vec<_> = rows[own].iter().map(|&row| pack.tokens()[row]).collect();
                builder.push(&tokens, Parent::None, segment.run, Label::Text);
            }
        }
        let selected = builder.build();
        let indices: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
        let (index, device) = (backend.index(&indices)?, backend.pack(&selected)?);
        Ok(Some(Self { rows: rows.into(), index, pack: selected, device }))
    }
}

/// The output row of pack row `row`, if only those of `outputs` (ascending) come out.
///
/// # Panics
/// If it does not come out.
pub(super) fn output_row(outputs: Option<&[usize]>, row: usize) -> usize {
    let found = outputs.map_or(Ok(row), |rows| rows.binary_search(&row));
    found.unwrap_or_else(|_| panic!("output rows: row {row} is not an output row"))
}

/// Logits of label rows that exist at a time, at most (if one row has no more); those of a teacher's table are all there, see
/// [`PassTeacher::table_bytes`](super::PassTeacher::table_bytes).
const LOGITS: usize = 1 << 22;

/// Label rows whose logits exist at a time, of `labels` in all.
pub(super) fn logit_rows(config: &ModelConfig, labels: usize) -> usize {
    (LOGITS / config.vocab_size).clamp(1, labels.max(1))
}
