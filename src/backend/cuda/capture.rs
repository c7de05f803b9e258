//! Captures: a kernel writes rows straight into pinned memory of the host, where they are read without a copy.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::context::Context;
use super::launch::{real, wide};
use super::pinned::Pinned;
use super::{Compute, Cuda, rows};
use crate::Result;
use crate::backend::{Captured, Landing, Tensor};

/// Rows in a slot of the ring, which is not used again as long as this lives.
struct Rows {
    memory: Arc<Pinned>,
    len: usize,
    landed: Arc<AtomicBool>,
}

impl Landing for Rows {
    fn rows(&self) -> Option<&[f32]> {
        // SAFETY: the flag is set when the device has been waited for; the kernel that wrote here has finished, and
        // nothing else is given the slot while `memory` is held.
        self.landed.load(Ordering::Acquire).then(|| unsafe { self.memory.slice(self.len) })
    }
}

/// See [`Backend::capture`](crate::backend::Backend::capture). A ring full of captures that are held waits for the
/// device and moves the rows to memory of their own.
///
/// # Errors
/// A failure of the device.
pub fn capture<R: Compute>(cx: &mut Context, x: Tensor<'_, Cuda<R>>, rows: &[usize], width: usize) -> Result<Captured> {
    let op = "capture";
    let len = rows.len() * width;
    let wanted = rows.iter().max().map_or(0, |row| row + 1) * width;
    let x = match x {
        Tensor::Wide(buffer) => {
            buffer.need(op, "x", wanted);
            wide(buffer)
        }
        Tensor::Real(buffer) => {
            buffer.need(op, "x", wanted);
            real(buffer)
        }
    };
    let nothing = || Ok(Captured::Here(vec![0.0; len]));
    let list: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
    let Some(list) = cx.numbers(op, &list) else { return nothing() };
    let bytes = len * size_of::<f32>();
    if let Some((memory, landed)) = cx.landing(bytes)? {
        rows::capture(cx, memory.address, x, list, rows.len(), width);
        return Ok(Captured::Coming(Arc::new(Rows { memory, len, landed })));
    }
    let Some(out) = cx.scratch("a capture beside the ring", bytes) else { return nothing() };
    rows::capture(cx, out, x, list, rows.len(), width);
    let mut values = vec![0.0f32; len];
    cx.read(op, bytemuck::cast_slice_mut(&mut values), out)?;
    Ok(Captured::Here(values))
}
