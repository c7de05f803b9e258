//! Pinned host memory: the ring through which values go to the device, and the one in which captures land.
//!
//! A slot is readable host memory that the device writes to directly. It is in use as long as the device may be working
//! on it or somebody holds it; a ring at its limit waits for the device, and never overwrites.

use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::driver::{Device, Event};

/// Smallest slot.
const SMALLEST: usize = 64 << 10;

/// Pinned memory that the device reaches under `address`.
pub struct Pinned {
    device: Arc<Device>,
    host: *mut u8,
    /// Where the device sees it.
    pub address: u64,
    bytes: usize,
}

// SAFETY: the memory belongs to this value alone, and the driver frees it from any thread.
unsafe impl Send for Pinned {}
// SAFETY: as above; a shared reference only reads.
unsafe impl Sync for Pinned {}

impl Pinned {
    fn new(device: &Arc<Device>, bytes: usize) -> Result<Self, result::DriverError> {
        device.bind();
        // Not write-combined: the host reads it.
        // SAFETY: the memory is freed once, in `drop`.
        let host = unsafe { result::malloc_host(bytes, sys::CU_MEMHOSTALLOC_DEVICEMAP) }?;
        let mut pinned = Self { device: device.clone(), host: host.cast(), address: 0, bytes };
        // SAFETY: the memory is pinned and mapped, and the address to fill is that of an integer.
        unsafe { sys::cuMemHostGetDevicePointer_v2(&raw mut pinned.address, host, 0) }.result()?;
        Ok(pinned)
    }

    /// Where the host sees it.
    pub fn host(&self) -> usize {
        self.host as usize
    }

    /// The first `len` elements.
    ///
    /// # Safety
    /// The device is not writing to them.
    pub unsafe fn slice<T: bytemuck::Pod>(&self, len: usize) -> &[T] {
        assert!(len * size_of::<T>() <= self.bytes, "pinned: {len} elements in {} bytes", self.bytes);
        // SAFETY: the memory is at least this long, aligned to a page, and valid for any bits; the caller keeps the
        // device away.
        unsafe { std::slice::from_raw_parts(self.host.cast(), len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.device.bind();
        // SAFETY: the memory is this value's own; the driver waits for work on it.
        let _ = unsafe { result::free_host(self.host.cast()) };
    }
}

struct Slot {
    memory: Arc<Pinned>,
    event: Event,
}

/// A slot of pinned memory: its number, and its memory, which keeps it.
#[derive(Clone)]
pub struct Held {
    /// Its number.
    pub slot: usize,
    /// Its memory.
    pub memory: Arc<Pinned>,
}

impl Slot {
    fn held(&self) -> bool {
        Arc::strong_count(&self.memory) > 1
    }
}

/// Slots of pinned memory, up to a limit of bytes.
pub struct Ring {
    device: Arc<Device>,
    slots: Vec<Slot>,
    limit: usize,
}

/// The size of the slot that is made for a request.
fn size(bytes: usize) -> usize {
    bytes.next_power_of_two().max(SMALLEST)
}

impl Ring {
    /// An empty ring.
    pub fn new(device: Arc<Device>, limit: usize) -> Self {
        Self { device, slots: Vec::new(), limit }
    }

    /// Bytes that slots for these requests take when all are held at one time.
    pub fn planned(&self, requests: &[usize]) -> usize {
        requests.iter().map(|&bytes| size(bytes)).sum::<usize>().min(self.limit)
    }

    /// A slot of at least `bytes` bytes that neither the device nor anybody else uses; none if the ring is at its limit
    /// and everything in it is held. Waits for the device where that gives a slot.
    ///
    /// # Errors
    /// If the device fails, or there is no memory to pin.
    pub fn take(&mut self, bytes: usize) -> Result<Option<usize>, result::DriverError> {
        let wanted = size(bytes);
        let fits = |slot: &Slot| !slot.held() && slot.memory.bytes >= bytes;
        let smallest = |slots: &[Slot], usable: &dyn Fn(&Slot) -> bool| {
            let usable = slots.iter().enumerate().filter(|(_, slot)| usable(slot));
            usable.min_by_key(|(_, slot)| slot.memory.bytes).map(|(i, _)| i)
        };
        if let Some(i) = smallest(&self.slots, &|slot| fits(slot) && slot.event.done()) {
            return Ok(Some(i));
        }
        let total: usize = self.slots.iter().map(|slot| slot.memory.bytes).sum();
        if total + wanted <= self.limit || self.slots.is_empty() {
            return self.add(wanted).map(Some);
        }
        if let Some(i) = smallest(&self.slots, &fits) {
            self.slots[i].event.wait()?;
            return Ok(Some(i));
        }
        // Nothing free is large enough: what is free makes room.
        let held = |slot: &Slot| slot.held();
        if self.slots.iter().filter(|slot| held(slot)).map(|slot| slot.memory.bytes).sum::<usize>() + wanted
            <= self.limit
        {
            self.device.wait()?;
            // Slots are known by their numbers, so those after a held one stay.
            while self.slots.last().is_some_and(|slot| !held(slot)) {
                self.slots.pop();
            }
            return self.add(wanted).map(Some);
        }
        Ok(None)
    }

    fn add(&mut self, bytes: usize) -> Result<usize, result::DriverError> {
        let memory = Arc::new(Pinned::new(&self.device, bytes)?);
        self.slots.push(Slot { memory, event: Event::new(&self.device)? });
        Ok(self.slots.len() - 1)
    }

    /// Keeps a slot.
    pub fn hold(&self, slot: usize) -> Held {
        Held { slot, memory: self.slots[slot].memory.clone() }
    }

    /// The bytes of a slot that [`Ring::take`] has just given.
    pub fn bytes_mut(&mut self, slot: usize, len: usize) -> &mut [u8] {
        let memory = &self.slots[slot].memory;
        assert!(len <= memory.bytes, "pinned: {len} bytes in {}", memory.bytes);
        // SAFETY: the memory is at least this long; `take` has seen that neither the device nor a holder uses it, and
        // the exclusive borrow of the ring keeps it so.
        unsafe { std::slice::from_raw_parts_mut(memory.host, len) }
    }

    /// Marks that what was given to `stream` so far uses the slot.
    pub fn record(&self, slot: usize, stream: sys::CUstream) -> Result<(), result::DriverError> {
        self.slots[slot].event.record(stream)
    }

    /// Waits until the device has done what was marked.
    pub fn wait(&self, slot: usize) -> Result<(), result::DriverError> {
        self.slots[slot].event.wait()
    }
}
