//! The one error type of the library.
//!
//! Everything that can go wrong outside the program (files, arguments, devices, memory) is an [`Error`] that names
//! the thing, what was expected of it and what was found. A mistake inside the program is a panic with both numbers.

use std::path::{Path, PathBuf};

/// Result of everything fallible in llamaprobe.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in one line for the person at the terminal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an operation on a path.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        /// What was attempted, as a verb: "read", "create", "rename".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file does not follow its format; the source is the format's own error.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The format's own error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A field of a file holds something it may not.
    #[error("{path}: {field}: expected {expected}, found {found}")]
    Field {
        /// The file (with `:line` for line-oriented files).
        path: String,
        /// The key, tensor or column.
        field: String,
        /// What it must be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// An argument (of the command line, a configuration file or a library call) is out of its domain.
    #[error("{name}: expected {expected}, found {found}")]
    Argument {
        /// The argument's name, for the command line with its dashes.
        name: String,
        /// What it must be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// Something real that this version does not do.
    #[error("{what} is not supported: {found}; supported: {supported}")]
    Unsupported {
        /// The kind of thing: "rope_type", "model_type", "device".
        what: String,
        /// The value met.
        found: String,
        /// The values that are supported.
        supported: String,
    },
    /// A device reported a failure of an operation.
    #[error("{device}: {op}: {message}")]
    Device {
        /// The device, such as `cpu` or `cuda:0`.
        device: String,
        /// The operation.
        op: &'static str,
        /// The device's reason.
        message: String,
    },
    /// Whoever runs the work has stopped it.
    #[error("interrupted")]
    Interrupted,
    /// A computed value that must be finite is not.
    #[error("{what}: expected a finite value, found {found}")]
    NotFinite {
        /// The quantity and where it arose, such as "loss of run 3 at step 12".
        what: String,
        /// The value.
        found: f64,
    },
}

impl Error {
    /// An [`Error::Io`] for `map_err`: `fs::read(p).map_err(Error::io("read", p))`.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { action, path: path.as_ref().to_path_buf(), source }
    }

    /// An [`Error::File`] for `map_err`.
    pub fn file<E>(path: impl AsRef<Path>) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        move |source| Self::File { path: path.as_ref().to_path_buf(), source: source.into() }
    }

    /// An [`Error::Field`].
    pub fn field(
        path: impl AsRef<Path>,
        field: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self::Field {
            path: path.as_ref().display().to_string(),
            field: field.into(),
            expected: expected.into(),
            found: found.into(),
        }
    }

    /// An [`Error::Argument`].
    pub fn argument(name: impl Into<String>, expected: impl Into<String>, found: impl ToString) -> Self {
        Self::Argument { name: name.into(), expected: expected.into(), found: found.to_string() }
    }

    /// An [`Error::Unsupported`].
    pub fn unsupported(what: impl Into<String>, found: impl ToString, supported: impl Into<String>) -> Self {
        Self::Unsupported { what: what.into(), found: found.to_string(), supported: supported.into() }
    }
}

/// The name among `known` that a mistyped `name` was probably meant to be (Jaro and Winkler's similarity); of equals
/// the last.
pub fn nearest<S: AsRef<str>>(name: &str, known: impl IntoIterator<Item = S>) -> Option<S> {
    let similarity = |known: &S| strsim::jaro_winkler(known.as_ref(), name);
    known.into_iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b)))
}
