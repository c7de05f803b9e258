//! Pinned host memory: the ring through which values go to the device, and the one in which readbacks arrive.
//!
//! A slot is host memory that the device copies to and from. It is in use as long as the device may be working
//! on it (its event has not passed) or somebody holds it ([`SlotState`]); a ring at its limit waits for the device, and
//! never overwrites.

use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaStream, result};

use super::driver::Device;
use super::slot_state::SlotState;

/// Bytes of the smallest slot, so that small requests share few of them.
const SMALLEST: usize = 64 << 10;

/// Pinned memory, which kernels do not reach.
struct Pinned {
    device: Arc<Device>,
    host: *mut u8,
    bytes: usize,
}

// SAFETY: the memory belongs to this value alone, and the driver frees it from any thread.
unsafe impl Send for Pinned {}
// SAFETY: as above; a shared reference only hands out the address and, unsafely, the bytes.
unsafe impl Sync for Pinned {}

impl Pinned {
    fn new(device: &Arc<Device>, bytes: usize) -> Result<Self, result::DriverError> {
        device.bind()?;
        // Not write-combined: the host reads it.
        // SAFETY: the context is current; the memory is freed once, in `drop`.
        let host = unsafe { result::malloc_host(bytes, 0) }?;
        Ok(Self { device: device.clone(), host: host.cast(), bytes })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.device.bind_in_drop();
        // SAFETY: the memory is this value's own; the driver waits for work on it.
        let _ = unsafe { result::free_host(self.host.cast()) };
    }
}

struct Slot {
    memory: Pinned,
    /// Passed when the device is done with the slot.
    event: CudaEvent,
    state: SlotState,
}

impl Slot {
    /// Whether neither a holder nor the device uses it.
    fn is_idle(&self, device: &Device) -> bool {
        self.state.is_free() && device.is_past(&self.event)
    }
}

/// A slot that is not given to anybody else as long as this or a clone of it lives.
pub struct Held(Arc<Slot>);

impl Held {
    fn new(slot: &Arc<Slot>) -> Self {
        slot.state.hold();
        Self(slot.clone())
    }

    /// Where the host sees the slot.
    pub fn host_address(&self) -> usize {
        self.0.memory.host as usize
    }

    /// The first `len` elements.
    ///
    /// # Safety
    /// The device is not writing to them.
    pub unsafe fn slice<T: bytemuck::Pod>(&self, len: usize) -> &[T] {
        let memory = &self.0.memory;
        assert!(len * size_of::<T>() <= memory.bytes, "pinned: {len} elements in {} bytes", memory.bytes);
        // SAFETY: the memory is at least this long, aligned to a page, and valid for any bits; the caller keeps the
        // device away, and no host writes to a slot that is shared (`bytes_mut` wants the only holder).
        unsafe { std::slice::from_raw_parts(memory.host.cast(), len) }
    }

    /// The first `len` bytes, to be written.
    ///
    /// # Safety
    /// The device is not working on them, and this is the only holder.
    pub unsafe fn bytes_mut(&mut self, len: usize) -> &mut [u8] {
        let memory = &self.0.memory;
        assert!(len <= memory.bytes, "pinned: {len} bytes in {}", memory.bytes);
        // SAFETY: the memory is at least this long; the caller keeps the device and other holders away, and the
        // exclusive borrow keeps this one.
        unsafe { std::slice::from_raw_parts_mut(memory.host, len) }
    }

    /// Marks that what was submitted to `stream` so far uses the slot.
    pub fn record(&self, stream: &CudaStream) -> Result<(), result::DriverError> {
        self.0.event.record(stream)
    }

    /// Waits until the device has done what was marked.
    pub fn wait(&self) -> Result<(), result::DriverError> {
        self.0.event.synchronize()
    }
}

impl Clone for Held {
    fn clone(&self) -> Self {
        Self::new(&self.0)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.state.release();
    }
}

/// Slots of pinned memory, up to a limit of bytes.
pub struct Ring {
    device: Arc<Device>,
    slots: Vec<Arc<Slot>>,
    limit: usize,
}

/// The size of the slot that is made for a request.
fn slot_size(bytes: usize) -> usize {
    bytes.next_power_of_two().max(SMALLEST)
}

impl Ring {
    /// A ring without slots, which grows up to `limit` bytes.
    pub fn new(device: Arc<Device>, limit: usize) -> Self {
        Self { device, slots: Vec::new(), limit }
    }

    /// Bytes that slots for these requests take when all are held at one time.
    pub fn planned(&self, requests: impl Iterator<Item = usize>) -> usize {
        requests.map(slot_size).sum::<usize>().min(self.limit)
    }

    /// How many of these requests, of which each is held, find a slot.
    pub fn fit(&self, requests: &[usize]) -> usize {
        let mut total = 0;
        let fits = |&&bytes: &&usize| {
            total += slot_size(bytes);
            total <= self.limit
        };
        requests.iter().take_while(fits).count()
    }

    /// A slot of at least `bytes` bytes that neither the device nor anybody else uses; none if the ring is at its limit
    /// and everything in it is held. Waits for the device where that gives a slot.
    ///
    /// # Errors
    /// If the device fails, or there is no memory to pin.
    pub fn take(&mut self, bytes: usize) -> Result<Option<Held>, result::DriverError> {
        let wanted = slot_size(bytes);
        let smallest = |usable: &dyn Fn(&Slot) -> bool| {
            let usable = self.slots.iter().filter(|slot| slot.memory.bytes >= bytes && usable(slot));
            usable.min_by_key(|slot| slot.memory.bytes)
        };
        if let Some(slot) = smallest(&|slot| slot.is_idle(&self.device)) {
            return Ok(Some(Held::new(slot)));
        }
        let total: usize = self.slots.iter().map(|slot| slot.memory.bytes).sum();
        if total + wanted <= self.limit || self.slots.is_empty() {
            return self.add(wanted).map(Some);
        }
        if let Some(slot) = smallest(&|slot| slot.state.is_free()) {
            slot.event.synchronize()?;
            return Ok(Some(Held::new(slot)));
        }
        // Nothing free is large enough: what is free makes room.
        let held = self.slots.iter().filter(|slot| !slot.state.is_free());
        if held.map(|slot| slot.memory.bytes).sum::<usize>() + wanted > self.limit {
            return Ok(None);
        }
        self.device.synchronize()?;
        self.slots.retain(|slot| !slot.state.is_free());
        self.add(wanted).map(Some)
    }

    fn add(&mut self, bytes: usize) -> Result<Held, result::DriverError> {
        let memory = Pinned::new(&self.device, bytes)?;
        let slot = Arc::new(Slot { memory, event: self.device.new_event()?, state: SlotState::new() });
        let held = Held::new(&slot);
        self.slots.push(slot);
        Ok(held)
    }
}
