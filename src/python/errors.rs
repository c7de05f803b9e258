//! The library's errors as exceptions, with its messages.

use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyKeyboardInterrupt};
use pyo3::prelude::*;

use crate as library;
use crate::cli::call::Refusal;

create_exception!(llamaprobe, Error, PyException, "What went wrong, in the words of the program.");
create_exception!(llamaprobe, UsageError, Error, "What the parser of flags refuses, in its words.");

/// The exception of an error. Its attributes are `file`, `field`, `expected` and `found`, None where the error has none.
pub fn exception(py: Python<'_>, error: &library::Error) -> PyErr {
    let (file, field, expected, found) = match error {
        library::Error::Interrupted => return PyKeyboardInterrupt::new_err(()),
        library::Error::Io { path, .. } | library::Error::File { path, .. } => {
            (Some(path.display().to_string()), None, None, None)
        }
        library::Error::Field { path, field, expected, found } => {
            (Some(path.clone()), Some(field.clone()), Some(expected.clone()), Some(found.clone()))
        }
        library::Error::Argument { name, expected, found } => {
            (None, Some(name.clone()), Some(expected.clone()), Some(found.clone()))
        }
        library::Error::Unsupported { what, found, supported } => {
            (None, Some(what.clone()), Some(supported.clone()), Some(found.clone()))
        }
        library::Error::NotFinite { what, found } => {
            (None, Some(what.clone()), Some("a finite value".to_owned()), Some(found.to_string()))
        }
        library::Error::Device { op, .. } => (None, Some((*op).to_owned()), None, None),
    };
    described(py, Error::new_err(error.to_string()), [file, field, expected, found])
}

/// The exception with its attributes.
fn described(py: Python<'_>, exception: PyErr, attributes: [Option<String>; 4]) -> PyErr {
    let value = exception.value(py);
    let mut named = ["file", "field", "expected", "found"].into_iter().zip(attributes);
    match named.try_for_each(|(name, text)| value.setattr(name, text)) {
        Ok(()) => exception,
        Err(other) => other,
    }
}

/// The exception of a refusal.
pub fn refused(py: Python<'_>, refusal: &Refusal) -> PyErr {
    match refusal {
        Refusal::Usage(text) => described(py, UsageError::new_err(text.clone()), [None, None, None, None]),
        Refusal::Error(error) => exception(py, error),
    }
}
