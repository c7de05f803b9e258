//! Ready-made taps: [`Record`] keeps rows, [`Reduce`] keeps one vector per sequence, [`Stream`] sends rows to a file.

use std::collections::BTreeMap;

use super::{Selection, Site, Tapped, Taps};
use crate::backend::{Backend, Captured};
use crate::formats::activations::ActivationWriter;
use crate::{Error, Result};

/// Copies chosen rows of chosen places to the host as `f32`.
#[derive(Clone, Debug, Default)]
pub struct Record {
    selection: Selection,
    rows: Vec<usize>,
    taken: Vec<Option<(usize, Captured)>>,
}

impl Record {
    /// Will keep, at every place of `selection`, the pack rows `rows` in the order given.
    pub fn new(selection: Selection, rows: Vec<usize>) -> Self {
        let taken = selection.places.iter().map(|_| None).collect();
        Self { selection, rows, taken }
    }

    /// The rows of a place, `[rows, width]`; none if the pass has not reached it.
    pub fn get(&self, site: Site, layer: usize) -> Option<&[f32]> {
        self.taken.get(self.place(site, layer)?)?.as_ref().map(|(_, rows)| rows.rows())
    }

    /// The width of a place, once the pass has reached it.
    pub fn width(&self, site: Site, layer: usize) -> Option<usize> {
        self.taken.get(self.place(site, layer)?)?.as_ref().map(|(width, _)| *width)
    }

    /// Every place that the pass has reached, with its width and rows, in the order of the selection.
    pub fn iter(&self) -> impl Iterator<Item = (Site, usize, usize, &[f32])> {
        self.selection.places.iter().zip(&self.taken).filter_map(|(&(site, layer), taken)| {
            taken.as_ref().map(|(width, rows)| (site, layer, *width, rows.rows()))
        })
    }

    fn place(&self, site: Site, layer: usize) -> Option<usize> {
        self.selection.places.iter().position(|&place| place == (site, layer))
    }
}

impl<B: Backend> Taps<B> for Record {
    fn wants(&self, site: Site, layer: usize) -> bool {
        self.selection.contains(site, layer)
    }

    fn tap(&mut self, backend: &mut B, tapped: Tapped<'_, B>) {
        let Some(place) = self.place(tapped.site, tapped.layer) else { return };
        self.taken[place] = Some((tapped.width, take(backend, &tapped, &self.rows)));
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

/// Appends chosen rows of chosen places to an activation file as they arise; nothing stays in memory.
///
/// One stream serves one pass. The file's sites are named by [`Site::name`] and must have the tensors' widths.
pub struct Stream<'w> {
    writer: &'w mut ActivationWriter,
    selection: Selection,
    rows: Vec<usize>,
    coming: Vec<(String, Captured)>,
    error: Option<Error>,
}

impl<'w> Stream<'w> {
    /// Will append, for every place of `selection`, the pack rows `rows` in the order given.
    pub fn new(writer: &'w mut ActivationWriter, selection: Selection, rows: Vec<usize>) -> Self {
        Self { writer, selection, rows, coming: Vec::new(), error: None }
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// The first write that failed; nothing was written after it.
    pub fn close(self) -> Result<()> {
        self.error.map_or(Ok(()), Err)
    }
}

impl<B: Backend> Taps<B> for Stream<'_> {
    fn wants(&self, site: Site, layer: usize) -> bool {
        self.error.is_none() && self.selection.contains(site, layer)
    }

    fn tap(&mut self, backend: &mut B, tapped: Tapped<'_, B>) {
        let rows = take(backend, &tapped, &self.rows);
        let name = tapped.site.name(tapped.layer);
        if !rows.is_ready() {
            self.coming.push((name, rows));
        } else if let Err(error) = self.writer.push(&name, rows.rows()) {
            self.error = Some(error);
        }
    }

    fn finish(&mut self, backend: &mut B) -> Result<()> {
        backend.sync()?;
        for (name, rows) in std::mem::take(&mut self.coming) {
            self.writer.push(&name, rows.rows())?;
        }
        Ok(())
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
    let place = |&row: &usize| {
        tapped.find(row).unwrap_or_else(|| panic!("{}: row {row} was not tapped", tapped.site.name(tapped.layer)))
    };
    let found: Vec<usize> = rows.iter().map(place).collect();
    backend.capture(tapped.data, &found, tapped.width)
}

/// How a sequence's rows become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// The last of its rows.
    Last,
    /// The mean over its rows, summed in `f64` in row order.
    Mean,
}

/// Reduces chosen places to one vector per sequence while the pass runs, so that long sequences leave little behind.
#[derive(Clone, Debug)]
pub struct Reduce {
    selection: Selection,
    reduction: Reduction,
    sequences: Vec<Vec<usize>>,
    every_row: Vec<usize>,
    coming: Vec<(usize, usize, Captured)>,
    taken: BTreeMap<usize, (usize, Vec<f32>)>,
}

impl Reduce {
    /// Will keep, at every place of `selection`, one vector for each of `sequences`, given as its pack rows.
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
        Self { selection, reduction, sequences, every_row, coming: Vec::new(), taken: BTreeMap::new() }
    }

    /// The vectors of a place, `[sequences, width]`; none if the pass has not reached it.
    pub fn get(&self, site: Site, layer: usize) -> Option<&[f32]> {
        let place = self.selection.places.iter().position(|&place| place == (site, layer))?;
        self.taken.get(&place).map(|(_, vectors)| vectors.as_slice())
    }
}

impl Reduce {
    /// Keeps one vector per sequence of a place's rows.
    fn reduce(&mut self, place: usize, width: usize, rows: &[f32]) {
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
        self.taken.insert(place, (width, vectors));
    }
}

impl<B: Backend> Taps<B> for Reduce {
    fn wants(&self, site: Site, layer: usize) -> bool {
        self.selection.contains(site, layer)
    }

    fn tap(&mut self, backend: &mut B, tapped: Tapped<'_, B>) {
        let Some(place) = self.selection.places.iter().position(|&p| p == (tapped.site, tapped.layer)) else { return };
        let width = tapped.width;
        let rows = match self.reduction {
            Reduction::Last => {
                let last: Vec<usize> = self.sequences.iter().filter_map(|rows| rows.last().copied()).collect();
                take(backend, &tapped, &last)
            }
            Reduction::Mean => take(backend, &tapped, &self.every_row),
        };
        if rows.is_ready() {
            self.reduce(place, width, rows.rows());
        } else {
            self.coming.push((place, width, rows));
        }
    }

    fn finish(&mut self, backend: &mut B) -> Result<()> {
        backend.sync()?;
        for (place, width, rows) in std::mem::take(&mut self.coming) {
            self.reduce(place, width, rows.rows());
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
