//! The taps of a call from Python: rows in memory in their own dtype, hooks that answer, and a look at whether to stop.

use super::array::Elements;
use crate::backend::{Backend, Captured, HostSlice, Interrupt};
use crate::capture::file::{fill_by_position, widened};
use crate::capture::tensors::Tensors;
use crate::hooks::{Selection, Site, Tapped, Taps, take};
use crate::{Error, Result};

/// The rows of one hook, of all passes, one after another.
pub struct Recorded {
    /// The hook's name.
    pub name: String,
    /// None before the first pass.
    pub rows: Option<Elements>,
    /// Elements of a row.
    pub width: usize,
    /// Rows in all.
    pub count: usize,
}

/// Room for elements, or an error rather than an abort if there is no memory for them.
fn room<T>(len: usize) -> Result<Vec<T>> {
    let mut room = Vec::new();
    room.try_reserve_exact(len).map_err(|error| Error::Device {
        device: "cpu".to_owned(),
        op: "allocation",
        message: format!("{} bytes: {error}", len.saturating_mul(size_of::<T>())),
    })?;
    Ok(room)
}

/// Appends rows of `width`; neighbours are copied together.
fn append<T: Copy>(out: &mut Vec<T>, from: &[T], rows: &[usize], width: usize) {
    for run in rows.chunk_by(|a, b| a + 1 == *b) {
        out.extend_from_slice(&from[run[0] * width..(run[run.len() - 1] + 1) * width]);
    }
}

impl Recorded {
    /// Appends the rows `rows` of a tensor where the host reads it in place.
    fn append(&mut self, from: HostSlice<'_>, rows: &[usize]) -> Result<()> {
        let (width, len) = (self.width, self.width * self.count);
        if self.rows.is_none() {
            self.rows = Some(match from {
                HostSlice::F64(_) => Elements::F64(room(len)?),
                HostSlice::F32(_) => Elements::F32(room(len)?),
                HostSlice::Bf16(_) => Elements::Bf16(room(len)?),
                HostSlice::F16(_) => Elements::F16(room(len)?),
            });
        }
        match (self.rows.as_mut(), from) {
            (Some(Elements::F64(out)), HostSlice::F64(from)) => append(out, from, rows, width),
            (Some(Elements::F32(out)), HostSlice::F32(from)) => append(out, from, rows, width),
            (Some(Elements::Bf16(out)), HostSlice::Bf16(from)) => append(out, from, rows, width),
            (Some(Elements::F16(out)), HostSlice::F16(from)) => append(out, from, rows, width),
            _ => unreachable!("{}: a tensor has one dtype", self.name),
        }
        Ok(())
    }

    /// Refuses what is not finite among the elements from `from` on; what a row does not see has a score of minus infinity.
    fn check(&self, from: usize, site: Site) -> Result<()> {
        let bad = |x: &f64| if site == Site::AttnScores { x.is_nan() } else { !x.is_finite() };
        let found = match self.rows.as_ref() {
            None | Some(Elements::I64(_)) => None,
            Some(Elements::F64(v)) => v[from..].iter().copied().find(bad),
            Some(Elements::F32(v)) => v[from..].iter().map(|&x| f64::from(x)).find(bad),
            Some(Elements::Bf16(v)) => v[from..].iter().map(|x| x.to_f64()).find(bad),
            Some(Elements::F16(v)) => v[from..].iter().map(|x| x.to_f64()).find(bad),
        };
        found.map_or(Ok(()), |found| Err(Error::NotFinite { what: self.name.clone(), found }))
    }
}

/// The rows of a tensor that a hook is asked about.
pub struct Question {
    /// The number of the hook in the selection.
    pub hook: usize,
    /// `[rows, width]`, in the tensor's own dtype.
    pub elements: Elements,
    /// Elements of a row.
    pub width: usize,
    /// The number of the pass's first document.
    pub first: usize,
    /// The first row of each document of the pass, and behind them all the number of rows.
    pub starts: Vec<usize>,
}

/// Taps of one pass.
pub struct CallTaps<'a> {
    /// The hooks that are recorded, and where.
    pub recorded: (&'a Selection, &'a mut [Recorded]),
    /// Widths of rows by position.
    pub tensors: &'a Tensors,
    /// The hooks that are asked.
    pub asked: &'a Selection,
    /// Where logits go, if they are wanted.
    pub logits: Option<&'a mut Recorded>,
    /// The pack rows that are recorded, ascending.
    pub rows: Vec<usize>,
    /// The number of the pass's first document.
    pub first: usize,
    /// Rows in flight: the number of their hook (none is the logits), their site, and the rows.
    pub pending: Vec<(Option<usize>, Site, Captured)>,
    /// Gives the rows that take the place of a question's.
    pub ask: &'a mut dyn FnMut(Question) -> Result<Option<Vec<f32>>>,
    pub interrupt: &'a Interrupt,
}

impl CallTaps<'_> {
    fn target(&mut self, hook: Option<usize>) -> Option<&mut Recorded> {
        match hook {
            Some(hook) => self.recorded.1.get_mut(hook),
            None => self.logits.as_deref_mut(),
        }
    }

    /// Appends rows that have come from a device, by position widened to the longest document.
    fn append(&mut self, hook: Option<usize>, site: Site, rows: &Captured) -> Result<()> {
        let Tensors { heads, longest, .. } = *self.tensors;
        let Some(target) = self.target(hook) else { return Ok(()) };
        let from = target.rows.as_ref().map_or(0, Elements::len);
        match fill_by_position(site) {
            Some(fill) => {
                let (count, rows) = (self.rows.len(), rows.rows());
                let rows = widened(rows, rows.len() / count / heads, longest, fill);
                self.append_all(hook, HostSlice::F32(&rows))?;
            }
            None => self.append_all(hook, rows.elements())?,
        }
        self.target(hook).map_or(Ok(()), |target| target.check(from, site))
    }

    fn append_all(&mut self, hook: Option<usize>, rows: HostSlice<'_>) -> Result<()> {
        let Some(target) = self.target(hook) else { return Ok(()) };
        let all: Vec<usize> = (0..rows.len() / target.width.max(1)).collect();
        target.append(rows, &all)
    }

    /// Records a tensor: the chosen rows, or of the logits all.
    fn record<B: Backend>(&mut self, backend: &mut B, tapped: &Tapped<'_, B>, hook: Option<usize>) -> Result<()> {
        let every: Vec<usize>;
        let rows = match hook {
            Some(_) => &self.rows,
            None => {
                every = (0..tapped.pack.len()).collect();
                &every
            }
        };
        let in_place = tapped.host(backend).filter(|_| fill_by_position(tapped.site).is_none());
        if let Some(host) = in_place {
            let rows = tapped.find_all(rows);
            let Some(target) = self.target(hook) else { return Ok(()) };
            let from = target.rows.as_ref().map_or(0, Elements::len);
            target.append(host, &rows)?;
            return target.check(from, tapped.site);
        }
        let captured = take(backend, tapped, rows);
        if captured.is_ready() {
            return self.append(hook, tapped.site, &captured);
        }
        self.pending.push((hook, tapped.site, captured));
        Ok(())
    }
}

impl<B: Backend> Taps<B> for CallTaps<'_> {
    fn wants(&self, site: Site, layer: usize) -> bool {
        // What enters a layer is always looked at, for a look at whether to stop.
        let logits = site == Site::Logits && self.logits.is_some();
        site == Site::ResidPre || logits || self.recorded.0.contains(site, layer)
    }

    fn tap(&mut self, backend: &mut B, tapped: Tapped<'_, B>) -> Result<()> {
        self.interrupt.check()?;
        let hook = self.recorded.0.index(tapped.site, tapped.layer);
        if hook.is_some() {
            self.record(backend, &tapped, hook)?;
        }
        if tapped.site == Site::Logits {
            self.record(backend, &tapped, None)?;
        }
        Ok(())
    }

    fn rewrites(&self, site: Site, layer: usize) -> bool {
        self.asked.contains(site, layer)
    }

    fn rewrite(&mut self, backend: &mut B, tapped: Tapped<'_, B>) -> Result<Option<Vec<f32>>> {
        let Some(hook) = self.asked.index(tapped.site, tapped.layer) else { return Ok(None) };
        let len = tapped.len() * tapped.width;
        let elements = match tapped.host(backend).map(|host| host.range(0..len)) {
            Some(host) => Elements::from(host),
            None => {
                let rows: Vec<usize> = tapped.rows.map_or_else(|| (0..tapped.pack.len()).collect(), <[usize]>::to_vec);
                let captured = take(backend, &tapped, &rows);
                backend.sync()?;
                Elements::from(captured.elements())
            }
        };
        let mut starts: Vec<usize> = tapped.pack.segments().iter().map(|segment| segment.rows.start).collect();
        starts.push(tapped.pack.len());
        let question = Question { hook, elements, width: tapped.width, first: self.first, starts };
        let answer = (self.ask)(question)?;
        self.interrupt.check()?;
        Ok(answer)
    }

    fn finish(&mut self, backend: &mut B) -> Result<()> {
        backend.sync()?;
        for (hook, site, captured) in std::mem::take(&mut self.pending) {
            self.append(hook, site, &captured)?;
        }
        Ok(())
    }

    fn rows(&self) -> Option<&[usize]> {
        // Logits are of every row.
        if self.logits.is_some() { None } else { Some(&self.rows) }
    }

    fn stop_at_layer(&self) -> Option<usize> {
        if self.logits.is_some() {
            return None;
        }
        // The end of the model is behind every layer.
        let stops = [self.recorded.0, self.asked].map(Selection::stop_at_layer);
        stops[0].zip(stops[1]).map(|(a, b)| a.max(b))
    }
}
