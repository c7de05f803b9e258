//! Captures: rows land in pinned memory of the host, where they are read without a copy. A kernel writes them there
//! itself, or gathers them on the device, from where they are copied while the device goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::context::Context;
use super::launch::{real, wide};
use super::pinned::Held;
use super::queue::Work;
use super::{Compute, Cuda, rows};
use crate::Result;
use crate::backend::{Captured, Readback, Tensor};

/// Rows in a slot of the ring, which is not used again as long as this lives.
struct Rows {
    held: Held,
    len: usize,
    landed: Arc<AtomicBool>,
}

impl Readback for Rows {
    fn rows(&self) -> Option<&[f32]> {
        // SAFETY: the flag is set when the device has been waited for; what wrote here has finished, and nothing else is
        // given the slot while it is held.
        self.landed.load(Ordering::Acquire).then(|| unsafe { self.held.memory.slice(self.len) })
    }
}

/// See [`Backend::capture`](crate::backend::Backend::capture). A ring full of captures that are held waits for the
/// device and moves the rows to memory of their own.
///
/// # Errors
/// A failure of the device.
pub fn capture<R: Compute>(
    cx: &mut Context,
    x: Tensor<'_, Cuda<R>>,
    rows: &[usize],
    width: usize,
    copied: bool,
) -> Result<Captured> {
    let op = "capture";
    let len = rows.len() * width;
    let wanted = rows.iter().max().map_or(0, |row| row + 1) * width;
    let x = match x {
        Tensor::Acc(buffer) => {
            buffer.need(op, "x", wanted);
            wide(buffer)
        }
        Tensor::Compute(buffer) => {
            buffer.need(op, "x", wanted);
            real(buffer)
        }
    };
    let nothing = || Ok(Captured::Ready(vec![0.0; len]));
    let list: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
    let Some(list) = cx.numbers(op, &list) else { return nothing() };
    let bytes = len * size_of::<f32>();
    if let Some((held, address, landed)) = cx.landing(bytes, copied)? {
        rows::capture(cx, address, x, list, rows.len(), width);
        if copied && bytes > 0 {
            cx.push(op, Work::Land { to: held.memory.host(), from: address, bytes, aside: true });
        }
        return Ok(Captured::Pending(Arc::new(Rows { held, len, landed })));
    }
    let Some(out) = cx.scratch("a capture beside the ring", bytes) else { return nothing() };
    rows::capture(cx, out, x, list, rows.len(), width);
    let mut values = vec![0.0f32; len];
    cx.read(op, bytemuck::cast_slice_mut(&mut values), out)?;
    Ok(Captured::Ready(values))
}
