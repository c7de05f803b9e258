//! Dense products by cuBLASLt: what algorithm serves a shape is asked once.

use std::collections::HashMap;
use std::sync::Arc;

use cudarc::cublaslt::{result, sys};

use super::driver::{Device, error};
use super::dtype::ComputeDtype;
use super::library;
use super::memory::{Block, DevicePtr};
use super::settings::Settings;
use crate::Result;
use crate::backend::scratch::WORKSPACE;

/// A row-major product `d [n, m] = a op b`, as cuBLASLt sees it: column-major `d [m, n]`, inner length `k`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GemmShape {
    /// Columns of the row-major result.
    pub m: usize,
    /// Rows of the row-major result.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// Whether the first operand, `[k, m]` row-major, is stored as `[m, k]`.
    pub transpose_a: bool,
    /// Whether the second operand, `[n, k]` row-major, is stored as `[k, n]`.
    pub transpose_b: bool,
    /// Whether the result is of the accumulation dtype, not of the compute dtype.
    pub acc_out: bool,
    /// Whether `bias [m]` is added.
    pub bias: bool,
    /// Whether the product is added to the result's old value.
    pub accumulate: bool,
    /// Number of products of these sizes.
    pub count: usize,
    /// Elements from one product's first operand, second operand and result to the next one's.
    pub strides: [usize; 3],
    /// What the addresses of the operands and the result are multiples of, in bytes.
    pub alignment: u32,
}

/// Addresses of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Operands {
    /// First operand (the weights, as a rule).
    pub a: DevicePtr,
    /// Second operand (the activations, as a rule).
    pub b: DevicePtr,
    /// Result, of the accumulation or the compute dtype.
    pub d: DevicePtr,
    /// `[m]` of the compute dtype, where [`GemmShape::bias`] says so.
    pub bias: Option<DevicePtr>,
}

/// A product of operands at addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gemm {
    /// Sizes and layouts, by which cuBLASLt's plan is found.
    pub shape: GemmShape,
    /// Addresses, which change from call to call.
    pub operands: Operands,
}

impl Gemm {
    /// A product whose shape takes its alignment from the addresses.
    pub fn new(mut shape: GemmShape, operands: Operands) -> Self {
        let Operands { a, b, d, bias } = operands;
        // A stride of so many elements is a multiple of as many bytes at least.
        let strides = shape.strides.iter().fold(0, |all, &stride| all | stride as u64);
        let all = a.address() | b.address() | d.address() | bias.map_or(0, DevicePtr::address) | strides;
        shape.alignment = 1 << (all | 256).trailing_zeros();
        Self { shape, operands }
    }

    /// This and the next product as one, if they are of the same sizes and lie at the same distances as those that are one
    /// already; `size` is that of an element of the compute dtype in bytes. Results that may overlap stay apart.
    pub fn joined(&self, next: &Self, size: usize) -> Option<Self> {
        let alike = |shape: GemmShape| GemmShape { count: 1, strides: [0; 3], alignment: 1, ..shape };
        let (shape, of) = (alike(self.shape), |gemm: &Self| [gemm.operands.a, gemm.operands.b, gemm.operands.d]);
        if shape.bias || shape.accumulate || shape != alike(next.shape) || next.shape.count > 1 {
            return None;
        }
        let sizes = [size, size, if shape.acc_out { size_of::<f32>() } else { size }];
        let (first, last, count) = (of(self), of(next), self.shape.count);
        let stride = |i: usize| {
            let bytes = first[i].to(last[i])?;
            bytes.is_multiple_of(count * sizes[i]).then(|| bytes / (count * sizes[i]))
        };
        let strides = [stride(0)?, stride(1)?, stride(2)?];
        let known = count == 1 || strides == self.shape.strides;
        let shape = GemmShape { count: count + 1, strides, ..shape };
        (known && strides[2] >= shape.m * shape.n).then(|| Self::new(shape, self.operands))
    }

    /// Asserts that all operands are in the memory of `device`.
    #[track_caller]
    pub fn assert_on(&self, op: &'static str, device: &Device) {
        let Operands { a, b, d, bias } = self.operands;
        [Some(a), Some(b), Some(d), bias].into_iter().flatten().for_each(|ptr| {
            ptr.on(op, device);
        });
    }
}

struct Plan {
    desc: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    d: sys::cublasLtMatrixLayout_t,
    algo: sys::cublasLtMatmulAlgo_t,
}

/// cuBLASLt with the plans made so far.
pub struct Blas {
    device: Arc<Device>,
    handle: sys::cublasLtHandle_t,
    data: sys::cudaDataType_t,
    workspace: Block,
    plans: HashMap<GemmShape, Plan>,
}

// SAFETY: handles and descriptors are plain objects of the library, used by one thread at a time (`&mut self`).
unsafe impl Send for Blas {}

impl Blas {
    /// Opens the library; `workspace` has [`WORKSPACE`] bytes.
    ///
    /// # Errors
    /// If it is not found, naming what to install, or does not start.
    pub fn new(device: Arc<Device>, dtype: ComputeDtype, settings: &Settings, workspace: Block) -> Result<Self> {
        library::find("cublasLt", &settings.library_dirs).map_err(|found| {
            error(device.name(), "start", &format!("{found}; matrix products need cuBLAS: pip install nvidia-cublas"))
        })?;
        device.check("start", device.bind())?;
        let handle = result::create_handle().map_err(|e| error(device.name(), "start", &format!("cuBLASLt: {e}")))?;
        Ok(Self { device, handle, data: dtype.cublas_type(), workspace, plans: HashMap::new() })
    }

    /// Sees to it that there is a plan for a shape.
    ///
    /// # Errors
    /// If cuBLASLt has no algorithm for it.
    pub fn plan(&mut self, op: &'static str, shape: &GemmShape) -> Result<()> {
        if !self.plans.contains_key(shape) {
            self.device.check(op, self.device.bind())?;
            let plan = make_plan(self.handle, self.data, shape);
            let plan = plan.map_err(|e| error(self.device.name(), op, &format!("cuBLASLt: {e} for {shape:?}")))?;
            self.plans.insert(*shape, plan);
        }
        Ok(())
    }

    /// Submits a product to the device's stream, whose context is current.
    ///
    /// # Errors
    /// cuBLASLt's own words.
    ///
    /// # Panics
    /// If there is no plan for its shape.
    pub fn run(&self, gemm: &Gemm) -> Result<(), String> {
        let Gemm { shape, operands: Operands { a, b, d, bias } } = gemm;
        let plan = self.plans.get(shape).unwrap_or_else(|| panic!("cuBLASLt: no plan for {shape:?}"));
        let (one, beta) = (1.0f32, if shape.accumulate { 1.0f32 } else { 0.0 });
        let bias_pointer = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
        // SAFETY: plan and handle live as long as `self`; the addresses are those of buffers of the plan's sizes, which
        // outlive the work on the stream because their memory is only reused in stream order.
        let done = unsafe {
            if let Some(bias) = bias {
                set_desc(plan.desc, bias_pointer, &bias.address()).map_err(|e| e.to_string())?;
            }
            result::matmul(
                self.handle,
                plan.desc,
                (&raw const one).cast(),
                (&raw const beta).cast(),
                a.address() as *const _,
                plan.a,
                b.address() as *const _,
                plan.b,
                d.address() as *const _,
                plan.d,
                d.address() as *mut _,
                plan.d,
                &raw const plan.algo,
                self.workspace.ptr().address() as *mut _,
                self.workspace.bytes(),
                self.device.stream().cu_stream().cast(),
            )
        };
        done.map_err(|e| format!("cuBLASLt: {e}"))
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        self.device.bind_in_drop();
        // SAFETY: each object was made by this value and is destroyed once.
        unsafe {
            for plan in self.plans.values() {
                let _ = result::destroy_matmul_desc(plan.desc);
                for layout in [plan.a, plan.b, plan.d] {
                    let _ = result::destroy_matrix_layout(layout);
                }
            }
            let _ = result::destroy_handle(self.handle);
        }
    }
}

/// Sets an attribute to a value of its own size.
///
/// # Safety
/// The descriptor exists, and the attribute is of type `T`.
unsafe fn set_desc<T>(
    desc: sys::cublasLtMatmulDesc_t,
    attribute: sys::cublasLtMatmulDescAttributes_t,
    value: &T,
) -> Result<(), result::CublasError> {
    // SAFETY: the caller's; the value is read before the call returns.
    unsafe { result::set_matmul_desc_attribute(desc, attribute, std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// Sets an attribute to a value of its own size.
///
/// # Safety
/// The layout exists, and the attribute is of type `T`.
unsafe fn set_layout<T>(
    layout: sys::cublasLtMatrixLayout_t,
    attribute: sys::cublasLtMatrixLayoutAttribute_t,
    value: &T,
) -> Result<(), result::CublasError> {
    // SAFETY: the caller's; the value is read before the call returns.
    unsafe { result::set_matrix_layout_attribute(layout, attribute, std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

fn make_plan(
    handle: sys::cublasLtHandle_t,
    data: sys::cudaDataType_t,
    shape: &GemmShape,
) -> Result<Plan, result::CublasError> {
    use sys::cublasLtMatmulDescAttributes_t as Desc;
    use sys::cublasLtMatmulPreferenceAttributes_t as Pref;
    use sys::cublasLtMatrixLayoutAttribute_t as Layout;
    let GemmShape { m, n, k, transpose_a, transpose_b, .. } = *shape;
    let acc = sys::cudaDataType_t::CUDA_R_32F;
    let layout = |dtype, rows: usize, columns: usize, stride: usize| {
        let layout = result::create_matrix_layout(dtype, rows as u64, columns as u64, rows as i64)?;
        if shape.count > 1 {
            // SAFETY: the layout has just been made; the count is a 32-bit integer, the stride one of 64.
            unsafe {
                set_layout(layout, Layout::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &(shape.count as i32))?;
                set_layout(layout, Layout::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &(stride as i64))?;
            }
        }
        Ok(layout)
    };
    let [of_a, of_b, of_d] = shape.strides;
    let desc = result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, acc)?;
    let transpose = |yes: bool| i32::from(yes);
    // SAFETY: the descriptor has just been made; these attributes are 32-bit integers.
    unsafe {
        set_desc(desc, Desc::CUBLASLT_MATMUL_DESC_TRANSA, &transpose(transpose_a))?;
        set_desc(desc, Desc::CUBLASLT_MATMUL_DESC_TRANSB, &transpose(transpose_b))?;
        if shape.bias {
            set_desc(desc, Desc::CUBLASLT_MATMUL_DESC_EPILOGUE, &sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS)?;
        }
    }
    let a = if transpose_a { layout(data, k, m, of_a)? } else { layout(data, m, k, of_a)? };
    let b = if transpose_b { layout(data, n, k, of_b)? } else { layout(data, k, n, of_b)? };
    let d = layout(if shape.acc_out { acc } else { data }, m, n, of_d)?;
    let preference = result::create_matmul_pref()?;
    // SAFETY: the preference has just been made, and is destroyed once; workspace is a `size_t`, alignments are 32-bit
    // integers; the layouts and the descriptor exist.
    let heuristic = unsafe {
        let set = |attribute, value: *const std::ffi::c_void, size| {
            result::set_matmul_pref_attribute(preference, attribute, value, size)
        };
        set(Pref::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::ptr::from_ref(&WORKSPACE).cast(), size_of::<usize>())?;
        for attribute in [
            Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            set(attribute, (&raw const shape.alignment).cast(), size_of::<u32>())?;
        }
        let heuristic = result::get_matmul_algo_heuristic(handle, desc, a, b, d, d, preference);
        result::destroy_matmul_pref(preference)?;
        heuristic?
    };
    Ok(Plan { desc, a, b, d, algo: heuristic.algo })
}
