//! Captures: rows arrive in pinned memory of the host, where they are read without a copy. A kernel writes them there
//! itself, or gathers them on the device, from where they are copied while the device goes on.

use std::sync::Arc;

use super::context::Context;
use super::launch::{acc, compute};
use super::queue::Action;
use super::readback::{CapturedRows, NoRows};
use super::rows::{self, CaptureRows};
use super::{Captures, Cuda};
use crate::Result;
use crate::backend::{Capture, Captured, Len, Tensor};

impl Capture for Cuda {
    fn capture(&mut self, x: Tensor<'_, Self>, rows: &[usize], width: usize) -> Captured {
        let captured = capture(&mut self.cx, x, rows, width, self.captures == Captures::Copied);
        // What fails here is what the next sync returns; until then nothing may pass for the rows.
        self.cx.or_fail(captured).flatten().unwrap_or_else(|| Captured::Pending(Arc::new(NoRows)))
    }
}

/// The capture; none after an error that the context keeps. A ring full of captures that are held waits for the device
/// and moves the rows to memory of their own.
///
/// # Errors
/// A failure of the device.
fn capture(
    cx: &mut Context,
    x: Tensor<'_, Cuda>,
    rows: &[usize],
    width: usize,
    copied: bool,
) -> Result<Option<Captured>> {
    let op = "capture";
    let len = rows.len() * width;
    let (x, has) = match x {
        Tensor::Acc(buffer) => (acc(buffer), buffer.len()),
        Tensor::Compute(buffer) => (compute(buffer), buffer.len()),
    };
    let wanted = rows.iter().max().map_or(0, |row| row + 1) * width;
    assert!(has >= wanted, "{op}: x has {has} elements, needs {wanted}");
    let Some(list) = cx.row_list(op, rows) else { return Ok(None) };
    let (bytes, count) = (len * size_of::<f32>(), rows.len());
    if let Some((slot, state, to)) = cx.capture_slot(bytes, copied)? {
        rows::capture(cx, CaptureRows { to, x, rows: list, count, width });
        if copied && bytes > 0 {
            let (host, from) = (slot.host_address(), to);
            cx.push(op, Action::Readback { to: host, from, bytes, on_copy_stream: true });
        }
        return Ok(Some(Captured::Pending(Arc::new(CapturedRows { slot, state, len }))));
    }
    let Some(to) = cx.scratch("a capture beside the ring", bytes) else { return Ok(None) };
    rows::capture(cx, CaptureRows { to, x, rows: list, count, width });
    let mut values = vec![0.0f32; len];
    cx.read(op, bytemuck::cast_slice_mut(&mut values), to)?;
    Ok(Some(Captured::Ready(values)))
}
