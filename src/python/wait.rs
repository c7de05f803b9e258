//! Waiting for work on another thread: without the interpreter's lock, with Python's signals, notes and progress.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::cli::host::{Host, Progress};

/// Between two looks at signals and progress.
const LOOK: Duration = Duration::from_millis(50);

/// What a piece of work tells whoever waits for it: its end, or something on the way.
pub enum Said<T, E> {
    /// Something that wants an answer, or not.
    Event(E),
    /// The end.
    Done(T),
}

/// Whom to tell of notes and progress.
pub struct Listener<'a, 'py> {
    /// Called with every note.
    pub warn: &'a Bound<'py, PyAny>,
    /// Called with message, units done, units in all, and what they are; none wants no progress.
    pub progress: Option<&'a Bound<'py, PyAny>>,
}

impl Listener<'_, '_> {
    fn tell(&self, host: &Host, shown: &mut Option<Progress>) -> PyResult<()> {
        for note in host.take_notes() {
            self.warn.call1((note,))?;
        }
        let (Some(progress), Some(now)) = (self.progress, host.progress()) else { return Ok(()) };
        if shown.as_ref() != Some(&now) {
            progress.call1((&now.message, now.done, now.total, &now.unit))?;
            *shown = Some(now);
        }
        Ok(())
    }
}

/// Waits for the end of a piece of work. The first exception, of a signal's handler or of a callback, stops the work, and is
/// raised once it has ended.
pub fn wait<'py, T: Send, E: Send>(
    py: Python<'py>,
    work: Receiver<Said<T, E>>,
    host: &Arc<Host>,
    listener: &Listener<'_, 'py>,
    mut on_event: impl FnMut(Python<'py>, E) -> PyResult<()>,
) -> PyResult<T> {
    let work = Mutex::new(work);
    let mut failed: Option<PyErr> = None;
    let mut shown = None;
    loop {
        let said = py.detach(|| work.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(LOOK));
        let step = match said {
            Ok(Said::Done(done)) => {
                host.interrupt.set(false);
                listener.tell(host, &mut shown)?;
                return failed.map_or(Ok(done), Err);
            }
            Ok(Said::Event(event)) if failed.is_none() => on_event(py, event),
            // What is not answered is stopped.
            Ok(Said::Event(_)) | Err(RecvTimeoutError::Timeout) => Ok(()),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(failed.unwrap_or_else(|| PyRuntimeError::new_err("llamaprobe: its thread has ended")));
            }
        };
        let step = step.and_then(|()| py.check_signals()).and_then(|()| listener.tell(host, &mut shown));
        if let (Err(error), None) = (step, &failed) {
            host.interrupt.set(true);
            failed = Some(error);
        }
    }
}
