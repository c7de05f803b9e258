//! Device memory: buffers whose blocks come from a pool and go back to it.
//!
//! The pool hands out the lowest free address of a size first, so that the same sequence of allocations gives the same
//! addresses: what was recorded for one step fits the next. Reuse is safe without waiting, because all work on buffers
//! is in one stream, and because no address reaches the stream of another device ([`DevicePtr::on`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::result;
use cudarc::driver::sys::CUresult;

use super::driver::{Device, DeviceId};
use super::dtype::ComputeDtype;
use crate::backend::Len;
use crate::backend::scratch::{ALIGN, block_size};

/// An address in the memory of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DevicePtr {
    address: u64,
    /// Where the block begins that it is in.
    block: u64,
    device: DeviceId,
}

impl DevicePtr {
    /// The address `bytes` bytes further on.
    pub fn add(self, bytes: usize) -> Self {
        Self { address: self.address + bytes as u64, ..self }
    }

    /// The bare address, for a call of the driver on `device`.
    ///
    /// # Panics
    /// If it is another device's.
    #[track_caller]
    pub fn on(self, op: &'static str, device: &Device) -> u64 {
        let (id, of) = (device.id(), self.device);
        assert!(of == id, "{op}: memory of another device ({of:?}) on {} ({id:?})", device.name());
        self.address
    }

    /// Bytes from here to an address further on in the same block. What is in different blocks lies anywhere: nothing may depend on
    /// how far apart.
    pub fn to(self, further: Self) -> Option<usize> {
        let bytes = further.address.checked_sub(self.address).filter(|_| self.block == further.block)?;
        usize::try_from(bytes).ok()
    }

    /// The bare address, once it is known to be the device's.
    pub fn address(self) -> u64 {
        self.address
    }
}

/// Memory of one device, used and kept for reuse.
pub struct Pool {
    device: Arc<Device>,
    free: Mutex<BTreeMap<usize, BTreeSet<u64>>>,
}

impl Pool {
    /// A pool of a device, that holds nothing yet.
    pub fn new(device: Arc<Device>) -> Arc<Self> {
        Arc::new(Self { device, free: Mutex::default() })
    }

    /// A block of at least `bytes` bytes with any content; none if the device has no room.
    pub fn block(self: &Arc<Self>, bytes: usize) -> Result<Option<Block>, result::DriverError> {
        let bytes = block_size(bytes);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let reused = free.get_mut(&bytes).and_then(BTreeSet::pop_first);
        drop(free);
        let address = match reused {
            Some(address) => address,
            None => {
                self.device.bind()?;
                // SAFETY: the context is current; the memory is given back once, in `trim`.
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
        self.device.bind_in_drop();
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

/// Device memory that goes back to its pool.
pub struct Block {
    pool: Arc<Pool>,
    address: u64,
    bytes: usize,
}

impl Block {
    /// Its first byte, a multiple of 256.
    pub fn ptr(&self) -> DevicePtr {
        DevicePtr { address: self.address, block: self.address, device: self.pool.device.id() }
    }

    /// Its size in bytes, a multiple of 256.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut free = self.pool.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.entry(self.bytes).or_default().insert(self.address);
    }
}

/// Device memory of no pool, that is the driver's again when it goes: for what is done once.
pub struct Passing {
    device: Arc<Device>,
    address: u64,
}

impl Passing {
    /// `bytes` bytes, each `value`; none if the driver has no room. What a pool keeps for reuse is not given back for it: deferred work
    /// may still have its operands there.
    ///
    /// # Errors
    /// Of the driver.
    pub fn filled(device: &Arc<Device>, bytes: usize, value: u8) -> Result<Option<Self>, result::DriverError> {
        device.bind()?;
        // SAFETY: the context is current; the memory is given back once, when this goes.
        let address = match unsafe { result::malloc_sync(bytes.max(1)) } {
            Ok(address) => address,
            Err(result::DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => return Ok(None),
            Err(e) => return Err(e),
        };
        let passing = Self { device: device.clone(), address };
        // SAFETY: the memory is this value's, which waits for the stream before it goes.
        unsafe { result::memset_d8_async(address, value, bytes, device.stream().cu_stream()) }?;
        Ok(Some(passing))
    }

    /// Its first byte, a multiple of 256.
    pub fn ptr(&self) -> DevicePtr {
        DevicePtr { address: self.address, block: self.address, device: self.device.id() }
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        self.device.bind_in_drop();
        // What was begun on it may still be under way.
        let _ = self.device.stream().synchronize();
        // SAFETY: the memory came from the driver, and nothing uses it any more.
        let _ = unsafe { result::free_sync(self.address) };
    }
}

/// Some bytes of a block, which goes back to its pool when none of its parts is in use.
pub struct Part {
    block: Arc<Block>,
    start: usize,
    bytes: usize,
}

impl From<Block> for Part {
    fn from(block: Block) -> Self {
        Self { start: 0, bytes: block.bytes, block: Arc::new(block) }
    }
}

/// Parts of one block that are asked for one after another, all of one size.
#[derive(Default)]
pub struct Parts {
    /// How many are still to come.
    left: usize,
    /// The block that they are of, once the first is known, their bytes, and where the next begins.
    block: Option<(Arc<Block>, usize, usize)>,
}

impl Parts {
    /// So many that are to come.
    pub fn expected(count: usize) -> Self {
        Self { left: count, block: None }
    }

    /// Leaves the next one out, which has memory of its own. Returns how many are like it from there on.
    pub fn pass(&mut self) -> usize {
        let left = std::mem::take(self).left.max(1);
        self.left = left - 1;
        left
    }

    /// Bytes of the block that must be cut before the next, of `bytes` bytes; none where there is nothing to cut.
    pub fn whole(&self, bytes: usize) -> Option<usize> {
        (self.left > 1 && self.block.is_none()).then(|| self.left * bytes.next_multiple_of(ALIGN))
    }

    /// Takes the block that is cut into parts of `bytes` bytes.
    pub fn cut(&mut self, block: Block, bytes: usize) {
        self.block = Some((Arc::new(block), bytes.next_multiple_of(ALIGN), 0));
    }

    /// The next part, if that is of so many bytes; otherwise there are no more.
    pub fn next(&mut self, bytes: usize) -> Option<Part> {
        let (block, each, start) = self.block.take().filter(|(_, each, _)| *each == bytes.next_multiple_of(ALIGN))?;
        self.left -= 1;
        if self.left > 0 {
            self.block = Some((block.clone(), each, start + each));
        }
        Some(Part { block, start, bytes: each })
    }
}

/// `len` elements of `size` bytes in a part of a block.
struct Elements {
    part: Part,
    len: usize,
    size: usize,
}

impl Elements {
    fn new(part: Part, len: usize, size: usize) -> Self {
        assert!(len * size <= part.bytes, "buffer: {len} elements of {size} bytes in {} bytes", part.bytes);
        Self { part, len, size }
    }

    fn ptr(&self, offset: usize) -> DevicePtr {
        self.part.block.ptr().add(self.part.start + offset * self.size)
    }
}

/// Elements of the accumulation dtype, `f32`.
pub struct AccBuffer(Elements);

impl AccBuffer {
    /// `len` elements in a block that has room for them.
    pub(super) fn new(block: Block, len: usize) -> Self {
        Self(Elements::new(block.into(), len, size_of::<f32>()))
    }

    /// Element `offset`.
    pub(super) fn ptr(&self, offset: usize) -> DevicePtr {
        self.0.ptr(offset)
    }

    /// Asserts that it reaches as far as a transfer goes; operations check their arguments themselves.
    #[track_caller]
    pub(super) fn assert_holds(&self, op: &'static str, wanted: usize) {
        assert!(self.0.len >= wanted, "{op}: the buffer has {} elements, needs {wanted}", self.0.len);
    }
}

/// Elements of the compute dtype of the device, a buffer or a weight.
pub struct ComputeBuffer(Elements);

impl ComputeBuffer {
    /// `len` elements in a part of a block that has room for them.
    pub(super) fn new(part: Part, len: usize, dtype: ComputeDtype) -> Self {
        Self(Elements::new(part, len, dtype.size()))
    }

    /// Element `offset`.
    pub(super) fn ptr(&self, offset: usize) -> DevicePtr {
        self.0.ptr(offset)
    }

    /// Bytes of one element.
    pub(super) fn element_size(&self) -> usize {
        self.0.size
    }
}

/// Elements of `int`, which kernels find rows and segments by.
pub struct TableBuffer(Elements);

impl TableBuffer {
    /// `len` elements in a block that has room for them.
    pub fn new(block: Block, len: usize) -> Self {
        Self(Elements::new(block.into(), len, size_of::<i32>()))
    }

    /// Element `offset`.
    pub fn ptr(&self, offset: usize) -> DevicePtr {
        self.0.ptr(offset)
    }
}

impl Len for AccBuffer {
    fn len(&self) -> usize {
        self.0.len
    }
}

impl Len for ComputeBuffer {
    fn len(&self) -> usize {
        self.0.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_of_one_size_and_as_many_as_were_expected() {
        let parts = Parts::expected(3);
        assert_eq!([100, 256, 300].map(|bytes| parts.whole(bytes)), [Some(768), Some(768), Some(1536)]);
        assert_eq!([Parts::default().whole(100), Parts::expected(1).whole(100)], [None, None]);
        assert!(Parts::expected(3).next(100).is_none(), "a part of a block that is not there");
    }
}
