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

    /// Whether elements of a site are those of the file as they are.
    fn is_as_in_file(&self, site: Site, elements: HostSlice<'_>) -> bool {
        let stored = match elements {
            HostSlice::F64(_) => Dtype::F64,
            HostSlice::F32(_) => Dtype::F32,
            HostSlice::Bf16(_) => Dtype::BF16,
            HostSlice::F16(_) => Dtype::F16,
        };
        fill_by_position(site).is_none() && stored == self.writer.dtype()
    }

    /// Appends rows in the file's dtype from where they lie.
    fn push_elements(&mut self, name: &str, rows: HostSlice<'_>) -> Result<()> {
        if !rows.is_finite() {
            let found = (0..rows.len()).map(|i| rows.get(i)).find(|x| !x.is_finite()).unwrap_or(f64::NAN);
            return Err(Error::NotFinite { what: name.to_owned(), found });
        }
        self.writer.push_bytes(name, rows.bytes())
    }

    /// Appends the rows where they lie in the host's memory in the file's dtype; whether they do.
    fn write_in_place<B: Backend>(&mut self, backend: &B, tapped: &Tapped<'_, B>) -> Result<bool> {
        let Some(host) = tapped.host(backend).filter(|host| self.is_as_in_file(tapped.site, *host)) else {
            return Ok(false);
        };
        let name = self.name(tapped.site, tapped.layer);
        for run in tapped.find_all(&self.rows).chunk_by(|a, b| a + 1 == *b) {
            self.push_elements(name, host.range(run[0] * tapped.width..(run[0] + run.len()) * tapped.width))?;
        }
        Ok(true)
    }

    /// The name of a hook's tensor.
    fn name(&self, site: Site, layer: usize) -> &'a str {
        let hook = self.selection.index(site, layer).expect("a tapped hook was selected");
        &self.tensors.widths[hook].0
    }

    /// Appends rows of a site, layer and width.
    fn write(&mut self, (site, layer, width): (Site, usize, usize), rows: &Captured) -> Result<()> {
        let Tensors { heads, longest, .. } = *self.tensors;
        let name = self.name(site, layer);
        if self.is_as_in_file(site, rows.elements()) {
            return self.push_elements(name, rows.elements());
        }
        let rows = rows.rows();
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
            return self.write(hook, &rows);
        }
        self.pending.push((hook, rows));
        Ok(())
    }

    fn finish(&mut self, backend: &mut B) -> Result<()> {
        backend.sync()?;
        std::mem::take(&mut self.pending).into_iter().try_for_each(|(hook, rows)| self.write(hook, &rows))
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use half::{bf16, f16};

    use super::*;
    use crate::backend::Readback;
    use crate::formats::activations::{FileLayout, Format, Layout, Start};
    use crate::formats::embedded;
    use crate::formats::safetensors::Checkpoint;
    use crate::hooks::{Names, Naming};

    /// Rows of a device that nobody may widen.
    enum Rows {
        Bf16(Vec<bf16>),
        F16(Vec<f16>),
    }

    impl Readback for Rows {
        fn elements(&self) -> Option<HostSlice<'_>> {
            Some(match self {
                Self::Bf16(rows) => HostSlice::Bf16(rows),
                Self::F16(rows) => HostSlice::F16(rows),
            })
        }

        fn rows(&self) -> Option<&[f32]> {
            panic!("rows in the file's dtype were widened")
        }
    }

    #[test]
    fn rows_of_a_device_in_the_files_dtype_are_written_as_they_arrived() -> Result<()> {
        let config = embedded::config()?;
        let (width, hook) = (config.hidden_size, (Site::ResidPost, 0));
        let selection = Selection::new(&[hook.0], &[hook.1]);
        let tensors = Tensors::new(&Naming { names: Names::default(), config: &config }, None, &selection, 4)?;
        let values: Vec<f32> = (0..2 * width).map(|i| 0.1 + i as f32).collect();
        let bf16s = || -> Vec<bf16> { values.iter().map(|&x| bf16::from_f32(x)).collect() };
        let f16s = || -> Vec<f16> { values.iter().map(|&x| f16::from_f32(x)).collect() };
        let mut infinite = bf16s();
        infinite[width] = bf16::INFINITY;
        let bytes = |rows: &[u8]| Some(rows.to_vec());
        for (dtype, rows, wanted) in [
            (Dtype::BF16, Rows::Bf16(bf16s()), bytes(bytemuck::cast_slice(&bf16s()))),
            (Dtype::F16, Rows::F16(f16s()), bytes(bytemuck::cast_slice(&f16s()))),
            (Dtype::BF16, Rows::Bf16(infinite), None),
        ] {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let path = dir.path().join("a.safetensors");
            let layout = Layout {
                sites: tensors.widths.clone(),
                labels: Vec::new(),
                format: Format::Safetensors,
                files: vec![FileLayout { rows: 2, metadata: Vec::new() }],
                sharded: false,
                dtype,
                metadata: Vec::new(),
                earlier: None,
            };
            let mut writer = ActivationWriter::create(&path, layout, Start::New)?;
            let mut taps = FileTaps::new(&selection, &tensors, &mut writer, vec![0, 1]);
            let written = taps.write((hook.0, hook.1, width), &Captured::Pending(Arc::new(rows)));
            let name = &tensors.widths[0].0;
            match wanted {
                Some(wanted) => {
                    written?;
                    writer.finish()?;
                    assert_eq!(Checkpoint::open(&path)?.get(name).expect("the tensor").data.as_ref(), wanted);
                }
                None => assert!(matches!(written, Err(Error::NotFinite { what, .. }) if what == *name)),
            }
        }
        Ok(())
    }
}
