//! Device memory: buffers whose blocks come from a pool and go back to it.
//!
//! The pool hands out the lowest free address of a size first, so that the same sequence of allocations gives the same
//! addresses: what was recorded for one step fits the next. Reuse is safe without waiting, because all work on buffers
//! is in one stream.

use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::result;
use cudarc::driver::sys::CUresult;

use super::driver::Device;

/// Smallest block, and the alignment of every block.
const ALIGN: usize = 256;
/// Blocks above this size are multiples of it.
const LARGE: usize = 1 << 20;

/// Memory of one device, used and kept for reuse.
pub struct Pool {
    device: Arc<Device>,
    free: Mutex<BTreeMap<usize, BTreeSet<u64>>>,
}

impl Pool {
    /// An empty pool.
    pub fn new(device: Arc<Device>) -> Arc<Self> {
        Arc::new(Self { device, free: Mutex::default() })
    }

    /// A block of at least `bytes` bytes with any content; none if the device has no room.
    pub fn block(self: &Arc<Self>, bytes: usize) -> Result<Option<Block>, result::DriverError> {
        let bytes = class(bytes);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = free.get_mut(&bytes).and_then(BTreeSet::pop_first);
        drop(free);
        let address = match kept {
            Some(address) => address,
            None => {
                self.device.bind();
                // SAFETY: the memory is given back once, in `trim`.
                match unsafe { result::malloc_sync(bytes) } {
                    Ok(address) => address,
                    Err(result::DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => return Ok(None),
                    Err(e) => return Err(e),
                }
            }
        };
        Ok(Some(Block { pool: self.clone(), address, bytes }))
    }

    /// Gives all blocks that are not in use back to the driver. No work that is still to come may use them.
    pub fn trim(&self) {
        self.device.bind();
        let free = std::mem::take(&mut *self.free.lock().unwrap_or_else(PoisonError::into_inner));
        for address in free.into_values().flatten() {
            // SAFETY: the block came from the driver, is in nobody's hands, and leaves the pool here.
            let _ = unsafe { result::free_sync(address) };
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.trim();
    }
}

/// The size of the block that serves a request.
pub fn class(bytes: usize) -> usize {
    let unit = if bytes > LARGE { LARGE } else { ALIGN };
    bytes.max(1).next_multiple_of(unit)
}

/// Device memory that goes back to its pool.
pub struct Block {
    pool: Arc<Pool>,
    /// Where it is.
    pub address: u64,
    /// How much it is.
    pub bytes: usize,
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut free = self.pool.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.entry(self.bytes).or_default().insert(self.address);
    }
}

/// `len` elements of type `T` on the device.
pub struct Buffer<T> {
    block: Block,
    len: usize,
    elements: PhantomData<T>,
}

impl<T> Buffer<T> {
    /// `len` elements in a block that has room for them.
    pub fn new(block: Block, len: usize) -> Self {
        assert!(len * size_of::<T>() <= block.bytes, "buffer: {len} elements in {} bytes", block.bytes);
        Self { block, len, elements: PhantomData }
    }

    /// Number of elements.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Asserts that there are as many elements as `op` needs.
    ///
    /// # Panics
    /// With both numbers, if there are not.
    #[track_caller]
    pub fn need(&self, op: &'static str, what: &str, wanted: usize) {
        assert!(self.len >= wanted, "{op}: {what} has {} elements, needs {wanted}", self.len);
    }

    /// Address of element `offset`.
    pub fn address(&self, offset: usize) -> u64 {
        self.block.address + (offset * size_of::<T>()) as u64
    }
}

/// Asserts that there are as many elements in each of several buffers as `op` needs.
#[track_caller]
pub fn needs<T>(op: &'static str, wanted: usize, buffers: &[(&str, &Buffer<T>)]) {
    buffers.iter().for_each(|(what, buffer)| buffer.need(op, what, wanted));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_hold_what_is_asked() {
        for bytes in [0, 1, 255, 256, 257, LARGE - 1, LARGE, LARGE + 1, 5 * LARGE + 3] {
            let block = class(bytes);
            assert!(block >= bytes && block.is_multiple_of(ALIGN) && block > 0);
            assert_eq!(class(block), block);
            assert!(block - bytes <= if bytes > LARGE { LARGE } else { ALIGN });
        }
    }
}
