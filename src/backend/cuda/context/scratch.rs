//! Memory that operations keep for themselves, from one call to the next.

use super::Context;
use crate::backend::cuda::memory::DevicePtr;

/// Where quantised weights are decoded, and bytes that there are: each use takes the place of what was there, in stream order.
#[derive(Clone, Copy)]
pub struct Room {
    /// Its first byte.
    pub at: DevicePtr,
    /// Its size.
    pub bytes: usize,
}

impl Context {
    /// At least `bytes` bytes that stay an operation's own, so that no other changes them. None after an error.
    pub fn scratch(&mut self, op: &'static str, bytes: usize) -> Option<DevicePtr> {
        let enough = self.scratch.get(op).is_some_and(|block| block.bytes() >= bytes);
        if !enough {
            self.scratch.remove(op);
            self.lists.remove(op);
            let block = self.block(op, bytes);
            let block = self.or_fail(block)?;
            self.scratch.insert(op, block);
        }
        Some(self.scratch[op].ptr())
    }

    /// A list of `int` that stays where it is while it is the same: a pass moves what all its launches read once. None after an error.
    pub fn cached_list(&mut self, list: &'static str, values: &[i32]) -> Option<DevicePtr> {
        let ptr = self.scratch(list, size_of_val(values))?;
        if self.lists.get(list).is_none_or(|known| known != values) {
            let written = self.write(list, ptr, bytemuck::cast_slice(values));
            self.or_fail(written)?;
            self.lists.insert(list, values.to_vec());
        }
        Some(ptr)
    }

    /// [`Context::cached_list`] of row numbers.
    pub fn row_list(&mut self, list: &'static str, rows: &[usize]) -> Option<DevicePtr> {
        let rows: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
        self.cached_list(list, &rows)
    }

    /// Sees to it that so many bytes of weights can be decoded side by side.
    pub fn expect_decoded(&mut self, bytes: usize) {
        self.decoded = self.decoded.max(bytes);
    }

    /// Where weights are decoded, so many bytes or more. None after an error.
    pub fn decoded(&mut self, bytes: usize) -> Option<Room> {
        if bytes > self.decoded {
            // What is deferred decodes to where the room was.
            self.flush();
            self.decoded = bytes;
        }
        let bytes = self.decoded;
        self.scratch("decoded weights", bytes).map(|at| Room { at, bytes })
    }
}
