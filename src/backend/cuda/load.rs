//! Weights go from the file's mapping through pinned memory to the device, on a stream of their own.

use half::{bf16, f16};
use rayon::prelude::*;

use super::context::Context;
use super::driver::{CopyScope, error};
use super::dtype::ComputeDtype;
use super::memory::{ComputeBuffer, DevicePtr};
use super::weight::QuantizedBuffer;
use crate::backend::blocks::{BlockLayout, decoded_bytes};
use crate::formats::quantized::QuantizedView;
use crate::formats::safetensors::{Dtype, Element, SafetensorsError, TensorView};
use crate::{Error, Result};

/// Elements that one thread moves at a time.
const CHUNK_LEN: usize = 1 << 18;

/// A compute dtype as the host writes it.
trait HostElement: Element + bytemuck::Pod + Send + Sync {
    /// `x` rounded to nearest, ties to even.
    fn from_f64(x: f64) -> Self;
}

impl HostElement for f32 {
    fn from_f64(x: f64) -> Self {
        x as f32
    }
}

impl HostElement for bf16 {
    fn from_f64(x: f64) -> Self {
        bf16::from_f64(x)
    }
}

impl HostElement for f16 {
    fn from_f64(x: f64) -> Self {
        f16::from_f64(x)
    }
}

/// A weight, its elements those of the file rounded to the compute dtype. Work submitted later waits for it; the host goes
/// on as soon as the last chunk is in pinned memory.
///
/// # Errors
/// Elements that are not floating-point numbers or are misaligned, or a failure of the device.
pub fn weight(cx: &mut Context, view: &TensorView) -> Result<ComputeBuffer> {
    let op = "weight";
    if !matches!(view.dtype, Dtype::F64 | Dtype::F32 | Dtype::BF16 | Dtype::F16) {
        let found = format!("{} ({})", view.dtype, view.name);
        return Err(Error::unsupported("dtype of a weight", found, "F64, F32, BF16, F16"));
    }
    let buffer = cx.compute(op, view.len())?;
    let (dtype, size) = (cx.dtype, buffer.element_size());
    let mut first_error = None;
    fill(cx, op, (buffer.ptr(0), view.len() * size), &mut |at, bytes| {
        let converted = match dtype {
            ComputeDtype::F32 => convert::<f32>(bytes, view, at / size),
            ComputeDtype::Bf16 => convert::<bf16>(bytes, view, at / size),
            ComputeDtype::F16 => convert::<f16>(bytes, view, at / size),
        };
        if let Err(e) = converted {
            first_error.get_or_insert(e);
        }
    })?;
    match first_error {
        Some(e) => Err(error(cx.device.name(), op, &e.to_string())),
        None => Ok(buffer),
    }
}

/// A quantised weight, its codes and scales those of the file in the order of [`BlockLayout`]; see [`weight`].
///
/// # Errors
/// Parts that are not as long as the shape says, or a failure of the device.
pub fn quantized_weight(cx: &mut Context, view: &QuantizedView) -> Result<QuantizedBuffer> {
    let (op, matrix) = ("quantized_weight", view.matrix());
    matrix.check().map_err(|e| error(cx.device.name(), op, &format!("{}: {e}", view.name)))?;
    let layout = BlockLayout::new(&matrix);
    let together = cx.beside.pass();
    if together > 1 {
        cx.expect_decoded(together * decoded_bytes(view.shape, cx.dtype.size()));
    }
    let block = cx.block(op, layout.bytes())?;
    fill(cx, op, (block.ptr(), layout.bytes()), &mut |at, bytes| layout.write(&matrix, at, bytes))?;
    Ok(QuantizedBuffer::new(block, &matrix, cx.dtype.dtype()))
}

/// Fills so many bytes at an address that nobody else has, chunk by chunk from pinned memory, which `write` is given with its place.
/// The caller's memory must live until this returns: no copy is under way then, on any path.
fn fill(
    cx: &mut Context,
    op: &'static str,
    to: (DevicePtr, usize),
    write: &mut dyn FnMut(usize, &mut [u8]),
) -> Result<()> {
    // The block may have served work that is still to be done.
    cx.submit();
    let device = cx.device.clone();
    let scope = device.check(op, CopyScope::enter(&device))?;
    cx.stage_h2d(op, device.copy_stream(), to, write)?;
    device.check(op, scope.join())
}

/// `bytes =` the elements of a tensor from element `from` on.
fn convert<T: HostElement>(bytes: &mut [u8], view: &TensorView, from: usize) -> Result<(), SafetensorsError> {
    if view.dtype == T::DTYPE {
        let from = from * size_of::<T>();
        let source = &view.data[from..from + bytes.len()];
        let chunk = CHUNK_LEN * size_of::<T>();
        bytes.par_chunks_mut(chunk).zip(source.par_chunks(chunk)).for_each(|(out, source)| out.copy_from_slice(source));
        return Ok(());
    }
    let out: &mut [T] = bytemuck::cast_slice_mut(bytes);
    let range = from..from + out.len();
    match view.dtype {
        Dtype::F64 => each(out, &view.as_slice::<f64>()?[range], T::from_f64),
        Dtype::F32 => each(out, &view.as_slice::<f32>()?[range], |x| T::from_f64(f64::from(x))),
        Dtype::BF16 => each(out, &view.as_slice::<bf16>()?[range], |x| T::from_f64(x.to_f64())),
        _ => each(out, &view.as_slice::<f16>()?[range], |x| T::from_f64(x.to_f64())),
    }
    Ok(())
}

fn each<T: HostElement, F: Copy + Sync>(out: &mut [T], values: &[F], round: impl Fn(F) -> T + Sync) {
    out.par_chunks_mut(CHUNK_LEN).zip(values.par_chunks(CHUNK_LEN)).for_each(|(out, values)| {
        out.iter_mut().zip(values).for_each(|(out, &x)| *out = round(x));
    });
}
