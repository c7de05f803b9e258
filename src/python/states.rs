//! Files of captured states, as arrays.

use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use serde_json::json;

use super::array::{Array, Elements, Memory};
use super::errors::exception;
use crate::Error;
use crate::formats::activations::ActivationFile;
use crate::formats::safetensors::{Dtype, Element, SafetensorsError, TensorView};

/// An activation file, or the index of its shards.
#[pyclass(frozen, module = "llamaprobe._core")]
pub struct States {
    file: ActivationFile,
}

#[pymethods]
impl States {
    #[new]
    fn new(py: Python<'_>, path: std::path::PathBuf) -> PyResult<Self> {
        let file = py.detach(|| ActivationFile::open(path)).map_err(|error| exception(py, &error))?;
        Ok(Self { file })
    }

    /// The names of its tensors.
    fn names(&self) -> Vec<String> {
        self.file.sites().into_iter().map(str::to_owned).collect()
    }

    /// What it says of itself, in JSON.
    fn metadata(&self) -> String {
        json!(self.file.metadata()).to_string()
    }

    /// A column of labels, if it has it.
    fn labels(&self, py: Python<'_>, column: &str) -> PyResult<Option<Vec<i64>>> {
        self.file.labels(column).map_err(|error| exception(py, &error))
    }

    /// A tensor `[rows, width]` in its own dtype.
    fn tensor(&self, py: Python<'_>, name: &str) -> PyResult<Array> {
        let Some(shape) = self.file.shape(name) else { return Err(PyKeyError::new_err(name.to_owned())) };
        let parts = self.file.parts(name).unwrap_or_default();
        let read = py.detach(|| elements(parts).map_err(Error::file(self.file.path())));
        let read = read.map_err(|error| exception(py, &error))?;
        Ok(Array::new(Memory::new(read), shape.to_vec()))
    }
}

/// The elements of all parts.
fn elements(parts: &[TensorView]) -> Result<Elements, SafetensorsError> {
    fn joined<T: Element>(parts: &[TensorView]) -> Result<Vec<T>, SafetensorsError> {
        let slices: Vec<&[T]> = parts.iter().map(TensorView::as_slice).collect::<Result<_, _>>()?;
        Ok(slices.concat())
    }
    Ok(match parts.first().map(|part| part.dtype) {
        Some(Dtype::F64) => Elements::F64(joined(parts)?),
        Some(Dtype::F16) => Elements::F16(joined(parts)?),
        Some(Dtype::BF16) => Elements::Bf16(joined(parts)?),
        _ => Elements::F32(joined(parts)?),
    })
}
