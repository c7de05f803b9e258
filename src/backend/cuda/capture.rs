//! Captures: rows are gathered on the device, in their own dtype, and copied to pinned memory of the host while the device
//! goes on. No kernel writes to the host.

use std::sync::Arc;

use super::Cuda;
use super::context::Context;
use super::dtype::ComputeDtype;
use super::launch::{Kernel, LaunchDims, acc, acc_ptr, compute, compute_ptr, int, table};
use super::memory::DevicePtr;
use super::queue::Action;
use super::readback::{CapturedRows, NoRows, RowMemory};
use super::rows::FILE;
use crate::Result;
use crate::backend::{Capture, Captured, Len, Tensor};

impl Capture for Cuda {
    fn capture(&mut self, x: Tensor<'_, Self>, rows: &[usize], width: usize) -> Captured {
        let captured = capture(&mut self.cx, x, rows, width);
        // What fails here is what the next sync returns; until then nothing may pass for the rows.
        self.cx.or_fail(captured).flatten().unwrap_or_else(|| Captured::Pending(Arc::new(NoRows)))
    }
}

/// The capture; none after an error that the context keeps. A ring full of captures that are held waits for the device
/// and moves the rows to memory of their own.
///
/// # Errors
/// A failure of the device.
fn capture(cx: &mut Context, x: Tensor<'_, Cuda>, rows: &[usize], width: usize) -> Result<Option<Captured>> {
    let op = "capture";
    let len = rows.len() * width;
    let (dtype, has) = match x {
        Tensor::Acc(buffer) => (ComputeDtype::F32, buffer.len()),
        Tensor::Compute(buffer) => (cx.dtype, buffer.len()),
    };
    let wanted = rows.iter().max().map_or(0, |row| row + 1) * width;
    assert!(has >= wanted, "{op}: x has {has} elements, needs {wanted}");
    let Some(list) = cx.row_list(op, rows) else { return Ok(None) };
    let bytes = len * dtype.size();
    let gather = |cx: &mut Context, to: DevicePtr| {
        let (kernel, out, x) = match x {
            Tensor::Acc(x) => ("gather_acc", acc_ptr(to), acc(x)),
            Tensor::Compute(x) => ("gather_compute", compute_ptr(to), compute(x)),
        };
        let args = [out, x, table(list), int(rows.len()), int(width)];
        cx.launch(op, Kernel::new(FILE, kernel), LaunchDims::rows(rows.len()), &args);
    };
    let captured = |memory| Captured::Pending(Arc::new(CapturedRows::new(memory, len, dtype)));
    if let Some((slot, state, from)) = cx.capture_slot(bytes)? {
        gather(cx, from);
        if bytes > 0 {
            cx.push(op, Action::Readback { to: slot.host_address(), from, bytes, on_copy_stream: true });
        }
        return Ok(Some(captured(RowMemory::Slot(slot, state))));
    }
    let Some(from) = cx.scratch("a capture beside the ring", bytes) else { return Ok(None) };
    gather(cx, from);
    let mut words = vec![0u32; bytes.div_ceil(size_of::<u32>())];
    cx.read(op, &mut bytemuck::cast_slice_mut(&mut words)[..bytes], from)?;
    Ok(Some(captured(RowMemory::Own(words))))
}
