//! cuBLASLt's objects: products described to it, the algorithms that it offers for them, and its call.

use std::sync::Arc;

use cudarc::cublaslt::result::CublasError;
use cudarc::cublaslt::{result, sys};

use super::driver::{Device, error};
use super::dtype::ComputeDtype;
use super::gemm::{GemmShape, Operands};
use super::library;
use super::memory::{Block, DevicePtr};
use super::settings::Settings;
use crate::Result;
use crate::backend::scratch::WORKSPACE;

/// How a product is computed: NVIDIA's opaque bytes, which "can be trivially serialized and later restored for use with the same
/// version of cuBLAS library" (`cublasLt.h`, and the documentation of `cublasLtMatmulAlgo_t`).
pub type Algorithm = sys::cublasLtMatmulAlgo_t;

/// What cuBLASLt says of an algorithm for a product.
type Said = sys::cublasLtMatmulHeuristicResult_t;

/// That it has said nothing.
const UNKNOWN: Said = Said {
    algo: Algorithm { data: [0; 8] },
    workspaceSize: 0,
    state: sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED,
    wavesCount: 0.0,
    reserved: [0; 4],
};

/// Parts of a sum may be computed beside each other only if they are kept in f32 and added up in a step of its own: never in the
/// result's dtype, which may have 16 bits, nor in the order in which they come. What is summed in one go is always allowed.
const REDUCTION: u32 = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;

/// The library, for the products of one device and compute dtype.
pub struct CublasLt {
    /// Where they are computed.
    pub device: Arc<Device>,
    /// The dtype of the operands, and of results unless they are f32.
    pub dtype: ComputeDtype,
    handle: sys::cublasLtHandle_t,
    workspace: Block,
}

// SAFETY: the handle is a plain object of the library, used by one thread at a time (`&mut Blas`).
unsafe impl Send for CublasLt {}

impl CublasLt {
    /// Opens it; `workspace` has [`WORKSPACE`] bytes.
    ///
    /// # Errors
    /// If it is not found, naming what to install, or does not start.
    pub fn new(device: Arc<Device>, dtype: ComputeDtype, settings: &Settings, workspace: Block) -> Result<Self> {
        library::find("cublasLt", &settings.library_dirs).map_err(|found| {
            error(device.name(), "start", &format!("{found}; matrix products need cuBLAS: pip install nvidia-cublas"))
        })?;
        device.check("start", device.bind())?;
        let handle = result::create_handle().map_err(|e| error(device.name(), "start", &format!("cuBLASLt: {e}")))?;
        Ok(Self { device, dtype, handle, workspace })
    }

    /// Its version, as in `130401`.
    pub fn version(&self) -> usize {
        // SAFETY: the call has no conditions.
        unsafe { sys::cublasLtGetVersion() }
    }

    /// Describes products of a shape.
    ///
    /// # Errors
    /// If there can be none.
    pub fn descriptors(&self, op: &'static str, shape: &GemmShape) -> Result<Descriptors> {
        self.device.check(op, self.device.bind())?;
        Descriptors::new(self.dtype.cublas_type(), shape).map_err(|e| self.refused(op, shape, e))
    }

    /// The algorithms that its heuristic has for products of a shape, the best first as it expects: one at least, `most` at most.
    ///
    /// # Errors
    /// If there is none.
    pub fn offers(&self, op: &'static str, shape: &GemmShape, of: &Descriptors, most: usize) -> Result<Vec<Algorithm>> {
        let offers = self.heuristic(shape, of, most).and_then(|offers| match offers.len() {
            0 => Err(CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED)),
            _ => Ok(offers),
        });
        offers.map_err(|e| self.refused(op, shape, e))
    }

    fn refused(&self, op: &'static str, shape: &GemmShape, e: CublasError) -> crate::Error {
        error(self.device.name(), op, &format!("cuBLASLt: {e} for {shape:?}"))
    }

    fn heuristic(&self, shape: &GemmShape, of: &Descriptors, most: usize) -> Result<Vec<Algorithm>, CublasError> {
        let preference = Preference::new(shape)?;
        let (mut found, mut count) = (vec![UNKNOWN; most], 0);
        let Descriptors { desc, a, b, d } = of;
        // SAFETY: all objects exist; there is room for `most` results.
        unsafe {
            let (found, most, count) = (found.as_mut_ptr(), most as i32, &raw mut count);
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                desc.0,
                a.0,
                b.0,
                d.0,
                d.0,
                preference.0,
                most,
                found,
                count,
            )
            .result()?;
        }
        found.truncate(count.max(0) as usize);
        Ok(found.into_iter().filter(|found| self.is_usable(found)).map(|found| found.algo).collect())
    }

    /// Whether what cuBLASLt says of an algorithm allows it, within the workspace.
    fn is_usable(&self, said: &Said) -> bool {
        said.state.result().is_ok() && said.workspaceSize <= self.workspace.bytes()
    }

    /// Whether an algorithm can compute such products, within the workspace.
    pub fn takes(&self, of: &Descriptors, algorithm: &Algorithm) -> bool {
        // The call never writes `algo`, and the header does not say that it writes `state`.
        let mut said = Said { state: sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS, ..UNKNOWN };
        let Descriptors { desc, a, b, d } = of;
        // SAFETY: all objects exist; the result is one before the call, whichever of its fields that writes.
        let checked = unsafe {
            let algorithm = std::ptr::from_ref(algorithm);
            sys::cublasLtMatmulAlgoCheck(self.handle, desc.0, a.0, b.0, d.0, d.0, algorithm, &raw mut said)
        };
        checked.result().is_ok() && self.is_usable(&said)
    }

    /// Submits a product to the device's stream, whose context is current.
    ///
    /// # Errors
    /// cuBLASLt's own words.
    pub fn run(
        &self,
        of: &Descriptors,
        algorithm: &Algorithm,
        accumulate: bool,
        operands: &Operands,
    ) -> Result<(), String> {
        let Operands { a, b, d, bias } = operands;
        let (one, beta) = (1.0f32, if accumulate { 1.0f32 } else { 0.0 });
        // SAFETY: all objects exist; the addresses are those of buffers of the sizes described, which outlive the work on the
        // stream because their memory is only reused in stream order.
        let done = unsafe {
            if let Some(bias) = bias {
                of.desc.set_bias(*bias).map_err(|e| e.to_string())?;
            }
            result::matmul(
                self.handle,
                of.desc.0,
                (&raw const one).cast(),
                (&raw const beta).cast(),
                a.address() as *const _,
                of.a.0,
                b.address() as *const _,
                of.b.0,
                d.address() as *const _,
                of.d.0,
                d.address() as *mut _,
                of.d.0,
                std::ptr::from_ref(algorithm),
                self.workspace.ptr().address() as *mut _,
                self.workspace.bytes(),
                self.device.stream().cu_stream().cast(),
            )
        };
        done.map_err(|e| format!("cuBLASLt: {e}"))
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        self.device.bind_in_drop();
        // SAFETY: the handle was made by this value and is destroyed once.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// What an algorithm is, in words: the numbers that NVIDIA gives its parts, and into how many parts sums are split.
pub fn described(algorithm: &Algorithm) -> String {
    use sys::cublasLtMatmulAlgoConfigAttributes_t as Config;
    let number = |attribute| {
        let (mut value, mut written) = (0u32, 0);
        // SAFETY: these attributes have 32 bits.
        let read = unsafe {
            let value = (&raw mut value).cast();
            sys::cublasLtMatmulAlgoConfigGetAttribute(algorithm, attribute, value, size_of::<u32>(), &raw mut written)
        };
        read.result().map_or_else(|_| "?".to_owned(), |()| value.to_string())
    };
    let parts = [Config::CUBLASLT_ALGO_CONFIG_ID, Config::CUBLASLT_ALGO_CONFIG_TILE_ID];
    let [id, tile] = parts.map(number);
    let splits = number(Config::CUBLASLT_ALGO_CONFIG_SPLITK_NUM);
    format!("algorithm {id}, tile {tile}, split-K {splits}")
}

/// Products of one shape, described.
pub struct Descriptors {
    desc: Description,
    a: Layout,
    b: Layout,
    d: Layout,
}

// SAFETY: plain objects of the library, used by one thread at a time (`&mut Blas`).
unsafe impl Send for Descriptors {}

impl Descriptors {
    fn new(data: sys::cudaDataType_t, shape: &GemmShape) -> Result<Self, CublasError> {
        let GemmShape { m, n, k, transpose_a, transpose_b, .. } = *shape;
        let layout = |dtype, rows, columns, stride| Layout::new(dtype, [rows, columns], shape.count, stride);
        let [of_a, of_b, of_d] = shape.strides;
        let desc = Description::new(shape)?;
        let a = if transpose_a { layout(data, k, m, of_a)? } else { layout(data, m, k, of_a)? };
        let b = if transpose_b { layout(data, n, k, of_b)? } else { layout(data, k, n, of_b)? };
        let d = layout(if shape.acc_out { ACC } else { data }, m, n, of_d)?;
        Ok(Self { desc, a, b, d })
    }
}

/// The accumulation dtype.
const ACC: sys::cudaDataType_t = sys::cudaDataType_t::CUDA_R_32F;

struct Description(sys::cublasLtMatmulDesc_t);

impl Description {
    fn new(shape: &GemmShape) -> Result<Self, CublasError> {
        use sys::cublasLtMatmulDescAttributes_t as Desc;
        let desc = Self(result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, ACC)?);
        let transpose = |yes: bool| i32::from(yes);
        // SAFETY: these attributes are 32-bit integers.
        unsafe {
            desc.set(Desc::CUBLASLT_MATMUL_DESC_TRANSA, &transpose(shape.transpose_a))?;
            desc.set(Desc::CUBLASLT_MATMUL_DESC_TRANSB, &transpose(shape.transpose_b))?;
            if shape.bias {
                desc.set(Desc::CUBLASLT_MATMUL_DESC_EPILOGUE, &sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS)?;
            }
        }
        Ok(desc)
    }

    fn set_bias(&self, bias: DevicePtr) -> Result<(), CublasError> {
        // SAFETY: the attribute is a pointer.
        unsafe { self.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias.address()) }
    }

    /// Sets an attribute to a value of its own size.
    ///
    /// # Safety
    /// The attribute is of type `T`.
    unsafe fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<(), CublasError> {
        // SAFETY: the caller's; the value is read before the call returns.
        unsafe {
            result::set_matmul_desc_attribute(self.0, attribute, std::ptr::from_ref(value).cast(), size_of::<T>())
        }
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: it was made by this value and is destroyed once.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    /// Of `count` matrices, column-major, each `stride` elements behind the one before.
    fn new(
        dtype: sys::cudaDataType_t,
        [rows, columns]: [usize; 2],
        count: usize,
        stride: usize,
    ) -> Result<Self, CublasError> {
        use sys::cublasLtMatrixLayoutAttribute_t as Attribute;
        let layout = Self(result::create_matrix_layout(dtype, rows as u64, columns as u64, rows as i64)?);
        if count > 1 {
            // SAFETY: the count is a 32-bit integer, the stride one of 64.
            unsafe {
                layout.set(Attribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &(count as i32))?;
                layout.set(Attribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &(stride as i64))?;
            }
        }
        Ok(layout)
    }

    /// Sets an attribute to a value of its own size.
    ///
    /// # Safety
    /// The attribute is of type `T`.
    unsafe fn set<T>(&self, attribute: sys::cublasLtMatrixLayoutAttribute_t, value: &T) -> Result<(), CublasError> {
        // SAFETY: the caller's; the value is read before the call returns.
        unsafe {
            result::set_matrix_layout_attribute(self.0, attribute, std::ptr::from_ref(value).cast(), size_of::<T>())
        }
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: it was made by this value and is destroyed once.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// What the heuristic is asked for.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new(shape: &GemmShape) -> Result<Self, CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Pref;
        let preference = Self(result::create_matmul_pref()?);
        // SAFETY: the workspace is a `size_t`, the others are 32-bit integers.
        unsafe {
            preference.set(Pref::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE)?;
            preference.set(Pref::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &REDUCTION)?;
            preference.set(Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &shape.alignment)?;
            preference.set(Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &shape.alignment)?;
            preference.set(Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &shape.alignment)?;
            preference.set(Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &shape.alignment)?;
        }
        Ok(preference)
    }

    /// Sets an attribute to a value of its own size.
    ///
    /// # Safety
    /// The attribute is of type `T`.
    unsafe fn set<T>(
        &self,
        attribute: sys::cublasLtMatmulPreferenceAttributes_t,
        value: &T,
    ) -> Result<(), CublasError> {
        // SAFETY: the caller's; the value is read before the call returns.
        unsafe {
            result::set_matmul_pref_attribute(self.0, attribute, std::ptr::from_ref(value).cast(), size_of::<T>())
        }
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: it was made by this value and is destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
