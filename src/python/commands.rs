//! The program's commands as functions.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use super::errors::{exception, refused};
use super::wait::{Listener, Said, wait};
use crate::cli;
use crate::cli::host::Host;

/// Stack of a thread that runs a command: as large as a main thread's.
pub const STACK: usize = 8 << 20;

/// Runs a thread.
pub fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> PyResult<()> {
    let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(STACK);
    thread.spawn(work).map(drop).map_err(|error| PyRuntimeError::new_err(format!("llamaprobe: no thread: {error}")))
}

/// The program itself, on a command line whose first word is its name; its exit code.
#[pyfunction]
pub fn main(py: Python<'_>, words: Vec<OsString>) -> u8 {
    py.detach(|| cli::status(words))
}

/// Runs a command with the flags of a mapping in JSON; gives what it prints with `--json`, and where it has written.
#[pyfunction]
#[pyo3(signature = (command, flags, warn, progress = None))]
pub fn call<'py>(
    py: Python<'py>,
    command: String,
    flags: String,
    warn: &Bound<'py, PyAny>,
    progress: Option<&Bound<'py, PyAny>>,
) -> PyResult<(String, Option<String>)> {
    let host = Arc::new(Host::default());
    let (sender, work) = channel::<Said<_, ()>>();
    let hosted = host.clone();
    spawn(&command.clone(), move || {
        let done = cli::call::call(&command, &flags, &hosted);
        // Nobody waits where the interpreter has ended.
        let _ = sender.send(Said::Done(done));
    })?;
    let done = wait(py, work, &host, &Listener { warn, progress }, |_, ()| Ok(()))?;
    done.map_err(|refusal| refused(py, &refusal))
}

/// Help and flags of a command, in JSON.
#[pyfunction]
pub fn describe(py: Python<'_>, command: &str) -> PyResult<String> {
    cli::call::describe(command).map_err(|error| exception(py, &error))
}

/// The page of a study's or a training's directory as HTML, and the series of its plots as CSV.
#[pyfunction]
pub fn page(py: Python<'_>, run: &str) -> PyResult<(String, String)> {
    cli::call::page(Path::new(run)).map_err(|error| exception(py, &error))
}
