//! Taps that send the tensors of a pass to the file as they arise.

use super::tensors::Tensors;
use crate::backend::{Backend, Captured, HostSlice};
use crate::formats::activations::ActivationWriter;
use crate::formats::safetensors::Dtype;
use crate::hooks::{Selection, Site, Tapped, Taps, take};
use crate::{Error, Result};

/// Taps of one pass.
pub struct FileTaps<'a> {
    selection: &'a Selection,
    tensors: &'a Tensors,
    writer: &'a mut ActivationWriter,
    /// The pack rows that are captured.
    rows: Vec<usize>,
    /// Rows in flight, with their site, layer and width.
    pending: Vec<((Site, usize, usize), Captured)>,
}

impl<'a> FileTaps<'a> {
    /// Appends the pack rows `rows`, at each hook of the selection, to the file.
    pub fn new(
        selection: &'a Selection,
        tensors: &'a Tensors,
        writer: &'a mut ActivationWriter,
        rows: Vec<usize>,
    ) -> Self {
        Self { selection, tensors, writer, rows, pending: Vec::new() }
    }

    /// Appends the rows where they lie in the host's memory in the file's dtype; whether they do.
    fn write_in_place<B: Backend>(&mut self, backend: &B, tapped: &Tapped<'_, B>) -> Result<bool> {
        let same = |host: &HostSlice<'_>| match host {
            HostSlice::F64(_) => false,
            HostSlice::F32(_) => self.writer.dtype() == Dtype::F32,
            HostSlice::Bf16(_) => self.writer.dtype() == Dtype::BF16,
            HostSlice::F16(_) => self.writer.dtype() == Dtype::F16,
        };
        let by_row = fill_by_position(tapped.site).is_none();
        let Some(host) = tapped.host(backend).filter(|host| by_row && same(host)) else { return Ok(false) };
        let name = self.name(tapped.site, tapped.layer);
        for run in tapped.find_all(&self.rows).chunk_by(|a, b| a + 1 == *b) {
            let rows = host.range(run[0] * tapped.width..(run[0] + run.len()) * tapped.width);
            if !rows.is_finite() {
                let found = (0..rows.len()).map(|i| rows.get(i)).find(|x| !x.is_finite()).unwrap_or(f64::NAN);
                return Err(Error::NotFinite { what: name.to_owned(), found });
            }
            self.writer.push_bytes(name, rows.bytes())?;
        }
        Ok(true)
    }

    /// The name of a hook's tensor.
    fn name(&self, site: Site, layer: usize) -> &'a str {
        let hook = self.selection.index(site, layer).expect("a tapped hook was selected");
        &self.tensors.widths[hook].0
    }

    /// Appends rows of a site, layer and width.
    fn write(&mut self, (site, layer, width): (Site, usize, usize), rows: &[f32]) -> Result<()> {
        let Tensors { heads, longest, .. } = *self.tensors;
        let name = self.name(site, layer);
        // What a row does not see has a score of minus infinity.
        let bad = |x: &&f32| if site == Site::AttnScores { x.is_nan() } else { !x.is_finite() };
        if let Some(&found) = rows.iter().find(bad) {
            return Err(Error::NotFinite { what: name.to_owned(), found: f64::from(found) });
        }
        match fill_by_position(site) {
            Some(fill) => self.writer.push(name, &widened(rows, width / heads, longest, fill)),
            None => self.writer.push(name, rows),
        }
    }
}

impl<B: Backend> Taps<B> for FileTaps<'_> {
    fn wants(&self, site: Site, layer: usize) -> bool {
        self.selection.contains(site, layer)
    }

    fn tap(&mut self, backend: &mut B, tapped: Tapped<'_, B>) -> Result<()> {
        if self.write_in_place(backend, &tapped)? {
            return Ok(());
        }
        let rows = take(backend, &tapped, &self.rows);
        let hook = (tapped.site, tapped.layer, tapped.width);
        if rows.is_ready() {
            return self.write(hook, rows.rows());
        }
        self.pending.push((hook, rows));
        Ok(())
    }

    fn finish(&mut self, backend: &mut B) -> Result<()> {
        backend.sync()?;
        std::mem::take(&mut self.pending).into_iter().try_for_each(|(hook, rows)| self.write(hook, rows.rows()))
    }

    fn rows(&self) -> Option<&[usize]> {
        Some(&self.rows)
    }

    fn stop_at_layer(&self) -> Option<usize> {
        self.selection.stop_at_layer()
    }
}

/// For sites whose rows are `[heads, positions]`, what stands at positions that a sequence has not.
pub fn fill_by_position(site: Site) -> Option<f32> {
    match site {
        Site::AttnScores => Some(f32::NEG_INFINITY),
        Site::Pattern => Some(0.0),
        _ => None,
    }
}

/// Rows of `from` positions per head as rows of `to`: batches have different longest sequences, the file has one width.
pub fn widened(values: &[f32], from: usize, to: usize, fill: f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len() / from * to);
    for head in values.chunks_exact(from) {
        out.extend_from_slice(head);
        out.resize(out.len() + to - from, fill);
    }
    out
}
