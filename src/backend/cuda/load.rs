//! Weights go from the file's mapping through pinned memory to the device, on a stream of their own.

use rayon::prelude::*;

use super::Compute;
use super::context::Context;
use super::driver::error;
use super::memory::Buffer;
use crate::formats::safetensors::{Dtype, SafetensorsError, TensorView};
use crate::{Error, Result};

/// Elements that one thread moves at a time.
const PIECE: usize = 1 << 18;

/// A weight, its elements those of the file rounded to the compute dtype. Work given to the device later waits for it;
/// the host goes on as soon as the last chunk is in pinned memory.
///
/// # Errors
/// Elements that are not floating-point numbers or lie askew, or a failure of the device.
pub fn weight<R: Compute>(cx: &mut Context, view: &TensorView) -> Result<Buffer<R>> {
    let op = "weight";
    if !matches!(view.dtype, Dtype::F64 | Dtype::F32 | Dtype::BF16 | Dtype::F16) {
        let found = format!("{} ({})", view.dtype, view.name);
        return Err(Error::unsupported("dtype of a weight", found, "F64, F32, BF16, F16"));
    }
    let buffer: Buffer<R> = cx.buffer(op, view.len())?;
    // The block may have served work that is still to be done.
    cx.flush();
    let (device, stream) = (cx.device.clone(), cx.device.copies);
    let event = device.event(op)?;
    device.check(op, event.record(device.stream).and_then(|()| event.block(stream)))?;
    let mut askew = None;
    cx.feed(op, stream, buffer.address(0), view.len() * size_of::<R>(), &mut |at, bytes| {
        let out: &mut [R] = bytemuck::cast_slice_mut(bytes);
        if let Err(e) = convert(out, view, at / size_of::<R>()) {
            askew.get_or_insert(e);
        }
    })?;
    if let Some(e) = askew {
        return Err(error(device.name(), op, &e.to_string()));
    }
    device.check(op, event.record(stream).and_then(|()| event.block(device.stream)))?;
    Ok(buffer)
}

/// `out =` the elements of a tensor from `from` on.
fn convert<R: Compute>(out: &mut [R], view: &TensorView, from: usize) -> Result<(), SafetensorsError> {
    let to = from + out.len();
    if view.dtype == R::DTYPE {
        let size = size_of::<R>();
        let bytes = &view.data[from * size..to * size];
        let out: &mut [u8] = bytemuck::cast_slice_mut(out);
        out.par_chunks_mut(PIECE).zip(bytes.par_chunks(PIECE)).for_each(|(out, bytes)| out.copy_from_slice(bytes));
        return Ok(());
    }
    match view.dtype {
        Dtype::F64 => each(out, &view.as_slice::<f64>()?[from..to], R::from_f64),
        Dtype::F32 => each(out, &view.as_slice::<f32>()?[from..to], |x| R::from_f64(f64::from(x))),
        Dtype::BF16 => each(out, &view.as_slice::<half::bf16>()?[from..to], |x| R::from_f64(x.to_f64())),
        _ => each(out, &view.as_slice::<half::f16>()?[from..to], |x| R::from_f64(x.to_f64())),
    }
    Ok(())
}

fn each<R: Compute, T: Copy + Sync>(out: &mut [R], values: &[T], round: impl Fn(T) -> R + Sync) {
    out.par_chunks_mut(PIECE).zip(values.par_chunks(PIECE)).for_each(|(out, values)| {
        out.iter_mut().zip(values).for_each(|(out, &x)| *out = round(x));
    });
}
