//! Arrays that share their memory with Python.

use std::ffi::c_void;
use std::sync::Arc;

use half::{bf16, f16};
use pyo3::exceptions::{PyBufferError, PyIndexError};
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyDict};

use super::dlpack;
use crate::backend::HostSlice;

/// Elements, as they were written.
pub enum Elements {
    F64(Vec<f64>),
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
    I64(Vec<i64>),
}

impl Elements {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F64(v) => v.len(),
            Self::F32(v) => v.len(),
            Self::Bf16(v) => v.len(),
            Self::F16(v) => v.len(),
            Self::I64(v) => v.len(),
        }
    }

    /// Their type's name.
    fn dtype(&self) -> &'static str {
        match self {
            Self::F64(_) => "f64",
            Self::F32(_) => "f32",
            Self::Bf16(_) => "bf16",
            Self::F16(_) => "f16",
            Self::I64(_) => "i64",
        }
    }

    /// Where they begin, to be read and written through this pointer alone.
    fn pointer(&mut self) -> *mut c_void {
        match self {
            Self::F64(v) => v.as_mut_ptr().cast(),
            Self::F32(v) => v.as_mut_ptr().cast(),
            Self::Bf16(v) => v.as_mut_ptr().cast(),
            Self::F16(v) => v.as_mut_ptr().cast(),
            Self::I64(v) => v.as_mut_ptr().cast(),
        }
    }
}

impl From<HostSlice<'_>> for Elements {
    fn from(host: HostSlice<'_>) -> Self {
        match host {
            HostSlice::F64(v) => Self::F64(v.to_vec()),
            HostSlice::F32(v) => Self::F32(v.to_vec()),
            HostSlice::Bf16(v) => Self::Bf16(v.to_vec()),
            HostSlice::F16(v) => Self::F16(v.to_vec()),
        }
    }
}

/// Elements that were handed out: whoever has the pointer reads and writes them, and Rust only frees them.
pub struct Memory {
    #[allow(dead_code, reason = "it owns what the pointer points to")]
    elements: Elements,
    pointer: usize,
    len: usize,
    /// `f32`, `bf16` …
    pub dtype: &'static str,
}

impl Memory {
    /// Takes the elements; nobody else has them.
    pub fn new(mut elements: Elements) -> Arc<Self> {
        let (len, dtype, pointer) = (elements.len(), elements.dtype(), elements.pointer() as usize);
        Arc::new(Self { elements, pointer, len, dtype })
    }

    /// Bytes of an element.
    pub fn element_size(&self) -> usize {
        match self.dtype {
            "f64" | "i64" => 8,
            "f32" => 4,
            _ => 2,
        }
    }
}

/// A strided view of memory. Shape and strides count elements.
#[pyclass(frozen, module = "llamaprobe._core")]
pub struct Array {
    pub memory: Arc<Memory>,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

impl Array {
    /// All of some memory, row-major.
    ///
    /// # Panics
    /// If the shape is of another number of elements.
    pub fn new(memory: Arc<Memory>, shape: Vec<usize>) -> Self {
        assert!(shape.iter().product::<usize>() == memory.len, "array: {shape:?} of {} elements", memory.len);
        let mut strides = vec![1; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis];
        }
        Self { memory, offset: 0, shape, strides }
    }

    /// The address of the first element.
    pub fn address(&self) -> usize {
        self.memory.pointer + self.offset * self.memory.element_size()
    }
}

#[pymethods]
impl Array {
    #[getter]
    fn shape(&self) -> Vec<usize> {
        self.shape.clone()
    }

    #[getter]
    fn strides(&self) -> Vec<usize> {
        self.strides.clone()
    }

    #[getter]
    fn dtype(&self) -> &'static str {
        self.memory.dtype
    }

    fn data_ptr(&self) -> usize {
        self.address()
    }

    /// Another view of the same memory, from an element of this one on.
    fn view(&self, offset: usize, shape: Vec<usize>, strides: Vec<usize>) -> PyResult<Self> {
        let outside = || PyIndexError::new_err(format!("a view {shape:?} by {strides:?} from {offset} is outside"));
        let reach = |(&n, &stride): (&usize, &usize)| n.saturating_sub(1).checked_mul(stride);
        let last = shape.iter().zip(&strides).map(reach).try_fold(0usize, |sum, part| sum.checked_add(part?));
        let from = self.offset.checked_add(offset).ok_or_else(outside)?;
        let end = last.and_then(|last| from.checked_add(last)).ok_or_else(outside)?;
        let empty = shape.contains(&0);
        if shape.len() != strides.len() || from > self.memory.len || (!empty && end >= self.memory.len) {
            return Err(outside());
        }
        Ok(Self { memory: self.memory.clone(), offset: from, shape, strides })
    }

    /// The array interface of numpy, version 3; of bfloat16 as `<u2`.
    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let size = self.memory.element_size();
        let typestr = match self.memory.dtype {
            "f64" => "<f8",
            "f32" => "<f4",
            "f16" => "<f2",
            "i64" => "<i8",
            _ => "<u2",
        };
        let interface = PyDict::new(py);
        interface.set_item("version", 3)?;
        interface.set_item("typestr", typestr)?;
        interface.set_item("shape", pyo3::types::PyTuple::new(py, &self.shape)?)?;
        interface.set_item("strides", pyo3::types::PyTuple::new(py, self.strides.iter().map(|s| s * size))?)?;
        interface.set_item("data", (self.address(), false))?;
        Ok(interface)
    }

    fn __dlpack_device__(&self) -> (i32, i32) {
        dlpack::CPU
    }

    #[pyo3(signature = (*, stream = None, max_version = None, dl_device = None, copy = None))]
    fn __dlpack__<'py>(
        &self,
        py: Python<'py>,
        stream: Option<Bound<'py, PyAny>>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(i32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        let _ = stream; // Of a device that has streams.
        if copy == Some(true) {
            return Err(PyBufferError::new_err("an array shares its memory: copy what was read of it"));
        }
        if dl_device.is_some_and(|device| device != dlpack::CPU) {
            return Err(PyBufferError::new_err("an array is in the memory of the CPU"));
        }
        let code = match self.memory.dtype {
            "i64" => dlpack::INT,
            "bf16" => dlpack::BFLOAT,
            _ => dlpack::FLOAT,
        };
        let shared = dlpack::Shared {
            owner: self.memory.clone(),
            address: self.address(),
            shape: &self.shape,
            strides: &self.strides,
            code,
            element_size: self.memory.element_size(),
        };
        dlpack::capsule(py, shared, max_version.is_some_and(|(major, _)| major >= 1))
    }
}
