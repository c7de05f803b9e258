//! The rows of a pass whose results anybody reads. Of the others the last layer needs keys and values only.

use std::sync::Arc;

use super::forward::{DropoutPlan, Input};
use crate::Result;
use crate::backend::Backend;
use crate::pack::{Label, Pack, PackBuilder, Parent};

/// The rows that are read behind the last attention of a pass: by taps, as label rows, for their logits. Output
/// projection, MLP, norms and everything behind them run over these rows alone.
pub struct OutputRows<B: Backend> {
    /// Ascending, each once.
    pub(super) rows: Arc<[usize]>,
    pub(super) index: B::Index,
    /// The rows themselves, for operations that ask a pack for nothing but the run of each row.
    pack: Pack,
    device: B::Pack,
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
        let read = builder.build();
        let numbers: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
        let (index, device) = (backend.index(&numbers)?, backend.pack(&read)?);
        Ok(Some(Self { rows: rows.into(), index, pack: read, device }))
    }

    /// What goes into the part of a pass that runs over these rows; `keys` is memory for their keys of the dropout.
    pub(super) fn input<'a>(&'a self, of: &Input<'a, B>, keys: &'a mut Vec<u32>) -> Input<'a, B> {
        let dropout = of.dropout.map(|plan| {
            keys.extend(self.rows.iter().map(|&row| plan.keys[row]));
            DropoutPlan { keys, ..plan }
        });
        Input { pack: &self.pack, device: &self.device, adaptation: of.adaptation, dropout, read: None }
    }
}

/// Where the results of pack row `row` are, if only those of `read` are there.
///
/// # Panics
/// If they are not.
pub(super) fn place(read: Option<&[usize]>, row: usize) -> usize {
    let found = read.map_or(Ok(row), |rows| rows.binary_search(&row));
    found.unwrap_or_else(|_| panic!("output rows: row {row} is not among those that are read"))
}
