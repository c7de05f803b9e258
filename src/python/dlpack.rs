//! DLPack (github.com/dmlc/dlpack, version 1.0): an array as a capsule that any library of tensors takes without a copy.
//!
//! The capsule owns a managed tensor until a consumer renames it, and then the consumer does; its owner calls the deleter.

use std::any::Any;
use std::ffi::{CStr, c_void};
use std::ptr::NonNull;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyCapsule;
use pyo3::{Bound, ffi};

/// The device of the CPU's memory: its kind, and its number.
pub const CPU: (i32, i32) = (1, 0);

/// The code of signed integers.
pub const INT: u8 = 0;
/// The code of IEEE floats.
pub const FLOAT: u8 = 2;
/// The code of bfloat16.
pub const BFLOAT: u8 = 4;

const NAME: &CStr = c"dltensor";
const VERSIONED_NAME: &CStr = c"dltensor_versioned";

#[repr(C)]
struct Device {
    kind: i32,
    id: i32,
}

#[repr(C)]
struct DataType {
    code: u8,
    bits: u8,
    lanes: u16,
}

#[repr(C)]
struct Tensor {
    data: *mut c_void,
    device: Device,
    ndim: i32,
    dtype: DataType,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}

/// `DLManagedTensor`.
#[repr(C)]
struct Managed {
    tensor: Tensor,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Managed)>,
}

/// `DLManagedTensorVersioned`.
#[repr(C)]
struct Versioned {
    version: [u32; 2],
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Versioned)>,
    flags: u64,
    tensor: Tensor,
}

/// What is shared: elements at an address, which live as long as their owner does.
pub struct Shared<'a> {
    pub owner: Arc<dyn Any + Send + Sync>,
    /// Of the first element.
    pub address: usize,
    pub shape: &'a [usize],
    /// In elements.
    pub strides: &'a [usize],
    /// Of the type.
    pub code: u8,
    /// In bytes.
    pub element_size: usize,
}

/// What a managed tensor points to.
struct Context {
    #[allow(dead_code, reason = "it keeps the elements")]
    owner: Arc<dyn Any + Send + Sync>,
    /// Shape, and behind it the strides.
    extents: Vec<i64>,
}

/// The context and the tensor that points into it.
fn tensor(shared: Shared<'_>) -> (Box<Context>, Tensor) {
    let Shared { owner, address, shape, strides, code, element_size } = shared;
    let extents: Vec<i64> = shape.iter().chain(strides).map(|&n| n as i64).collect();
    let ndim = shape.len();
    let mut context = Box::new(Context { owner, extents });
    let shape = context.extents.as_mut_ptr();
    let tensor = Tensor {
        data: address as *mut c_void,
        device: Device { kind: CPU.0, id: CPU.1 },
        ndim: ndim as i32,
        dtype: DataType { code, bits: (8 * element_size) as u8, lanes: 1 },
        shape,
        strides: shape.wrapping_add(ndim),
        byte_offset: 0,
    };
    (context, tensor)
}

/// A capsule of what is shared: of version 1.0, or as before there were versions.
pub fn capsule<'py>(py: Python<'py>, shared: Shared<'_>, versioned: bool) -> PyResult<Bound<'py, PyCapsule>> {
    let (context, tensor) = tensor(shared);
    let context: *mut c_void = Box::into_raw(context).cast();
    let (pointer, name, destructor): (NonNull<c_void>, &'static CStr, unsafe extern "C" fn(*mut ffi::PyObject));
    if versioned {
        let deleter: unsafe extern "C" fn(*mut Versioned) = delete_versioned;
        let managed = Box::new(Versioned { version: [1, 0], context, deleter: Some(deleter), flags: 0, tensor });
        (pointer, name, destructor) = (NonNull::from(Box::leak(managed)).cast(), VERSIONED_NAME, drop_versioned);
    } else {
        let deleter: unsafe extern "C" fn(*mut Managed) = delete;
        let managed = Box::new(Managed { tensor, context, deleter: Some(deleter) });
        (pointer, name, destructor) = (NonNull::from(Box::leak(managed)).cast(), NAME, drop_unversioned);
    }
    // SAFETY: the pointer is that of a box of the struct that the name stands for in DLPack, valid until its deleter is called:
    // by the destructor while the capsule has its first name, or else once by the consumer who renamed it.
    unsafe { PyCapsule::new_with_pointer_and_destructor(py, pointer, name, Some(destructor)) }
}

/// Frees a managed tensor.
///
/// # Safety
/// It was leaked by [`capsule`], and nobody uses it any more.
unsafe extern "C" fn delete(managed: *mut Managed) {
    // SAFETY: as promised, both are boxes that were leaked, freed here for the only time.
    unsafe {
        let managed = Box::from_raw(managed);
        drop(Box::from_raw(managed.context.cast::<Context>()));
    }
}

/// The same of a versioned one.
///
/// # Safety
/// As [`delete`].
unsafe extern "C" fn delete_versioned(managed: *mut Versioned) {
    // SAFETY: as promised, both are boxes that were leaked, freed here for the only time.
    unsafe {
        let managed = Box::from_raw(managed);
        drop(Box::from_raw(managed.context.cast::<Context>()));
    }
}

/// Frees the tensor of a capsule that nobody has consumed: one that still has its first name.
///
/// # Safety
/// Python calls it with a capsule of [`capsule`] that is being destroyed.
unsafe extern "C" fn drop_unversioned(capsule: *mut ffi::PyObject) {
    // SAFETY: the capsule is alive during the call, and under this name its pointer is a tensor that nobody took.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, NAME.as_ptr()) == 1 {
            delete(ffi::PyCapsule_GetPointer(capsule, NAME.as_ptr()).cast());
        }
    }
}

/// The same of a versioned one.
///
/// # Safety
/// As [`drop_unversioned`].
unsafe extern "C" fn drop_versioned(capsule: *mut ffi::PyObject) {
    // SAFETY: the capsule is alive during the call, and under this name its pointer is a tensor that nobody took.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, VERSIONED_NAME.as_ptr()) == 1 {
            delete_versioned(ffi::PyCapsule_GetPointer(capsule, VERSIONED_NAME.as_ptr()).cast());
        }
    }
}
