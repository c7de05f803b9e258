//! Ready-made taps: [`Record`] copies rows to the host, [`Reduce`] leaves one vector per sequence.

use std::collections::BTreeMap;

use super::{Selection, Site, Tapped, Taps};
use crate::Result;
use crate::backend::{Backend, Captured};

/// Copies chosen rows at chosen hooks to the host as `f32`.
#[derive(Clone, Debug, Default)]
pub struct Record {
    selection: Selection,
    rows: Vec<usize>,
    /// By hook: width and rows.
    captured: Vec<Option<(usize, Captured)>>,
}

impl Record {
    /// Will copy, at every hook of `selection`, the pack rows `rows` in the order given.
    pub fn new(selection: Selection, rows: Vec<usize>) -> Self {
        let captured = selection.hooks.iter().map(|_| None).collect();
        Self { selection, rows, captured }
    }

    /// The rows of a hook, `[rows, width]`; none if the pass has not reached it.
    pub fn get(&self, site: Site, layer: usize) -> Option<&[f32]> {
        self.captured.get(self.selection.index(site, layer)?)?.as_ref().map(|(_, rows)| rows.rows())
    }

    /// The width of a hook, once the pass has reached it.
    pub fn width(&self, site: Site, layer: usize) -> Option<usize> {
        self.captured.get(self.selection.index(site, layer)?)?.as_ref().map(|(width, _)| *width)
    }

    /// Every hook that the pass has reached, with its width and rows, in the order of the selection.
    pub fn iter(&self) -> impl Iterator<Item = (Site, usize, usize, &[f32])> {
        self.selection.hooks.iter().zip(&self.captured).filter_map(|(&(site, layer), captured)| {
            captured.as_ref().map(|(width, rows)| (site, layer, *width, rows.rows()))
        })
    }
}

impl<B: Backend> Taps<B> for Record {
    fn wants(&self, site: Site, layer: usize) -> bool {
        self.selection.contains(site, layer)
    }

    fn tap(&mut self, backend: &mut B, tapped: Tapped<'_, B>) -> Result<()> {
        if let Some(hook) = self.selection.index(tapped.site, tapped.layer) {
            self.captured[hook] = Some((tapped.width, take(backend, &tapped, &self.rows)));
        }
        Ok(())
    }

    fn finish(&mut self, backend: &mut B) -> Result<()> {
        backend.sync()
    }

    fn rows(&self) -> Option<&[usize]> {
        Some(&self.rows)
    }

    fn stop_at_layer(&self) -> Option<usize> {
        self.selection.stop_at_layer()
    }
}

/// Captures the pack rows `rows` of a tapped tensor, `[rows, width]`.
///
/// # Panics
/// If the tensor has no such row.
pub fn take<B: Backend>(backend: &mut B, tapped: &Tapped<'_, B>, rows: &[usize]) -> Captured {
    backend.capture(tapped.data, &tapped.find_all(rows), tapped.width)
}

/// How a sequence's rows become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// The last of its rows.
    Last,
    /// The mean over its rows, summed in `f64` in row order.
    Mean,
}

/// Reduces chosen hooks to one vector per sequence while the pass runs, so that long sequences leave little behind.
#[derive(Clone, Debug)]
pub struct Reduce {
    selection: Selection,
    reduction: Reduction,
    sequences: Vec<Vec<usize>>,
    /// Every row of which anything is needed, ascending.
    every_row: Vec<usize>,
    /// Hook, width and rows that are still in flight.
    pending: Vec<(usize, usize, Captured)>,
    /// By hook: the vectors `[sequences, width]`.
    vectors: BTreeMap<usize, Vec<f32>>,
}

impl Reduce {
    /// Will compute, at every hook of `selection`, one vector for each of `sequences`, given as its pack rows.
    ///
    /// # Panics
    /// If a sequence has no rows.
    pub fn new(selection: Selection, reduction: Reduction, sequences: Vec<Vec<usize>>) -> Self {
        assert!(sequences.iter().all(|rows| !rows.is_empty()), "reduce: a sequence has at least one row");
        let mut every_row: Vec<usize> = match reduction {
            Reduction::Last => sequences.iter().filter_map(|rows| rows.last().copied()).collect(),
            Reduction::Mean => sequences.iter().flatten().copied().collect(),
        };
        every_row.sort_unstable();
        every_row.dedup();
        Self { selection, reduction, sequences, every_row, pending: Vec::new(), vectors: BTreeMap::new() }
    }

    /// The vectors of a hook, `[sequences, width]`; none if the pass has not reached it.
    pub fn get(&self, site: Site, layer: usize) -> Option<&[f32]> {
        self.vectors.get(&self.selection.index(site, layer)?).map(Vec::as_slice)
    }

    /// Reduces a hook's rows to one vector per sequence.
    fn reduce(&mut self, hook: usize, width: usize, rows: &[f32]) {
        let vectors = match self.reduction {
            Reduction::Last => rows.to_vec(),
            Reduction::Mean => {
                let mut means = Vec::with_capacity(self.sequences.len() * width);
                for sequence in &self.sequences {
                    let mut sum = vec![0.0f64; width];
                    for row in sequence {
                        let i = self.every_row.binary_search(row).expect("reduce: every row was listed");
                        let value = &rows[i * width..(i + 1) * width];
                        sum.iter_mut().zip(value).for_each(|(sum, &x)| *sum += f64::from(x));
                    }
                    means.extend(sum.iter().map(|sum| (sum / sequence.len() as f64) as f32));
                }
                means
            }
        };
        self.vectors.insert(hook, vectors);
    }
}

impl<B: Backend> Taps<B> for Reduce {
    fn wants(&self, site: Site, layer: usize) -> bool {
        self.selection.contains(site, layer)
    }

    fn tap(&mut self, backend: &mut B, tapped: Tapped<'_, B>) -> Result<()> {
        let Some(hook) = self.selection.index(tapped.site, tapped.layer) else { return Ok(()) };
        let width = tapped.width;
        let rows = match self.reduction {
            Reduction::Last => {
                let last: Vec<usize> = self.sequences.iter().filter_map(|rows| rows.last().copied()).collect();
                take(backend, &tapped, &last)
            }
            Reduction::Mean => take(backend, &tapped, &self.every_row),
        };
        if rows.is_ready() {
            self.reduce(hook, width, rows.rows());
        } else {
            self.pending.push((hook, width, rows));
        }
        Ok(())
    }

    fn finish(&mut self, backend: &mut B) -> Result<()> {
        backend.sync()?;
        for (hook, width, rows) in std::mem::take(&mut self.pending) {
            self.reduce(hook, width, rows.rows());
        }
        Ok(())
    }

    fn rows(&self) -> Option<&[usize]> {
        Some(&self.every_row)
    }

    fn stop_at_layer(&self) -> Option<usize> {
        self.selection.stop_at_layer()
    }
}
