//! The taps and edits of a pass, with what they are told about the tensors at one point of it.

use super::edits::{PassEdits, replace};
use crate::Result;
use crate::backend::{Backend, Tensor, TensorMut};
use crate::hooks::{Site, Tapped, Taps};
use crate::pack::Pack;

/// Taps at one point of a pass.
pub(super) struct PassTaps<'a, B: Backend, T: Taps<B>> {
    taps: &'a mut T,
    pack: &'a Pack,
    /// The pack rows that the tensors' rows belong to, ascending; none means all.
    rows: Option<&'a [usize]>,
    /// 0 outside the blocks.
    layer: usize,
    edits: Option<&'a PassEdits<'a, B>>,
}

impl<'a, B: Backend, T: Taps<B>> PassTaps<'a, B, T> {
    /// Taps and edits of a pass over `pack`, where its tensors have a row for each of the pack's.
    pub fn new(taps: &'a mut T, pack: &'a Pack, edits: Option<&'a PassEdits<'a, B>>) -> Self {
        Self { taps, pack, rows: None, layer: 0, edits }
    }

    /// The taps in a layer, at tensors of these pack rows (none means all).
    pub fn at<'b>(&'b mut self, layer: usize, rows: Option<&'b [usize]>) -> PassTaps<'b, B, T> {
        PassTaps { taps: &mut *self.taps, pack: self.pack, rows, layer, edits: self.edits }
    }

    /// See [`Taps::stop_at_layer`].
    pub fn stop_at_layer(&self) -> Option<usize> {
        self.taps.stop_at_layer()
    }

    /// Whether a site is wanted here.
    #[inline(always)]
    pub fn wants(&self, site: Site) -> bool {
        self.taps.wants(site, self.layer)
    }

    /// Whether a site is edited here.
    #[inline(always)]
    pub fn edits(&self, site: Site) -> bool {
        self.edits.is_some_and(|edits| edits.at(site, self.layer)) || self.taps.rewrites(site, self.layer)
    }

    /// Edits a tensor `[rows, width]` as the pass is to, and hands it over, if it is wanted.
    #[inline(always)]
    pub fn edit(&mut self, backend: &mut B, site: Site, mut data: TensorMut<'_, B>, width: usize) -> Result<()> {
        if let Some(edits) = self.edits {
            edits.forward(backend, (site, self.layer), self.rows.is_some(), data.reborrow(), width);
        }
        if self.taps.rewrites(site, self.layer) {
            self.rewrite(backend, site, data.reborrow(), width)?;
        }
        self.tap(backend, site, data.read(), width)
    }

    /// Lets the taps put other rows in place of those of a tensor `[rows, width]`.
    fn rewrite(&mut self, backend: &mut B, site: Site, mut data: TensorMut<'_, B>, width: usize) -> Result<()> {
        let Self { pack, rows, layer, .. } = *self;
        let tapped = Tapped { site, layer, rows, width, data: data.reborrow().read(), pack };
        let (count, name) = (tapped.len(), || site.name(layer));
        let Some(values) = self.taps.rewrite(backend, tapped)? else { return Ok(()) };
        assert!(values.len() == count * width, "{}: {} elements for [{count}, {width}]", name(), values.len());
        replace(backend, data, width, &values)
    }

    /// Hands over a tensor `[rows, width]`, if it is wanted.
    #[inline(always)]
    pub fn tap(&mut self, backend: &mut B, site: Site, data: Tensor<'_, B>, width: usize) -> Result<()> {
        if !self.wants(site) {
            return Ok(());
        }
        let Self { pack, rows, layer, .. } = *self;
        self.taps.tap(backend, Tapped { site, layer, rows, width, data, pack })
    }

    /// Hands over a tensor `[rows, width]` that was computed on demand for these pack rows.
    pub fn tap_rows(
        &mut self,
        backend: &mut B,
        site: Site,
        data: Tensor<'_, B>,
        width: usize,
        rows: &[usize],
    ) -> Result<()> {
        self.taps.tap(backend, Tapped { site, layer: self.layer, rows: Some(rows), width, data, pack: self.pack })
    }

    /// Where the tensors at this point have these pack rows.
    ///
    /// # Panics
    /// If they have not all of them.
    pub fn indices(&self, site: Site, rows: &[usize]) -> Vec<u32> {
        let index = |&row: &usize| match self.rows {
            None => row,
            Some(rows) => rows
                .binary_search(&row)
                .unwrap_or_else(|_| panic!("{}: row {row} was not tapped", site.name(self.layer))),
        };
        rows.iter().map(|row| index(row) as u32).collect()
    }

    /// The pack rows, ascending, for which what is computed on demand is wanted.
    pub fn rows_on_demand(&self) -> Vec<usize> {
        let rows = self.taps.rows().or(self.rows);
        let mut rows = rows.map_or_else(|| (0..self.pack.len()).collect(), <[usize]>::to_vec);
        rows.sort_unstable();
        rows.dedup();
        rows
    }
}
