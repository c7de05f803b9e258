#![doc = include_str!("python.md")]

use std::path::PathBuf;

use pyo3::prelude::*;

#[forbid(unsafe_code)]
mod array;
#[forbid(unsafe_code)]
mod commands;
mod dlpack;
#[forbid(unsafe_code)]
mod errors;
#[forbid(unsafe_code)]
mod run;
#[forbid(unsafe_code)]
mod session;
#[forbid(unsafe_code)]
mod states;
#[forbid(unsafe_code)]
mod taps;
#[forbid(unsafe_code)]
mod wait;

/// `llamaprobe._core`.
#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let interpreter: Option<PathBuf> = py.import("sys")?.getattr("executable")?.extract()?;
    interpreter.into_iter().filter(|path| !path.as_os_str().is_empty()).for_each(crate::cli::host::set_interpreter);
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("Error", py.get_type::<errors::Error>())?;
    module.add("UsageError", py.get_type::<errors::UsageError>())?;
    module.add_class::<array::Array>()?;
    module.add_class::<session::Session>()?;
    module.add_class::<states::States>()?;
    module.add_function(wrap_pyfunction!(commands::main, module)?)?;
    module.add_function(wrap_pyfunction!(commands::call, module)?)?;
    module.add_function(wrap_pyfunction!(commands::describe, module)?)?;
    module.add_function(wrap_pyfunction!(commands::page, module)?)?;
    Ok(())
}
