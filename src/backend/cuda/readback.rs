//! What is in flight to the host: captures and downloads, from the command that writes them to the host that reads.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use super::driver::DeviceId;
use super::dtype::ComputeDtype;
use super::memory::Block;
use super::pinned::Held;
use crate::backend::{HostSlice, Readback};

const PENDING: u8 = 0;
const READY: u8 = 1;
const DISCARDED: u8 = 2;

/// Whether the device has written a readback. It is pending first, and then ready or discarded for good: its commands
/// were dropped after an error, or the device failed while they were in flight.
#[derive(Clone)]
pub struct ReadbackState(Arc<AtomicU8>);

impl ReadbackState {
    /// Pending.
    pub fn new() -> Self {
        Self(Arc::new(AtomicU8::new(PENDING)))
    }

    fn leave_pending(&self, to: u8) {
        // Release: who sees it ready sees what the device wrote before it was waited for.
        let _ = self.0.compare_exchange(PENDING, to, Ordering::Release, Ordering::Relaxed);
    }

    /// The device has been waited for, and has not failed.
    pub fn set_ready(&self) {
        self.leave_pending(READY);
    }

    /// It will never be written, or nobody knows whether it was.
    pub fn discard(&self) {
        self.leave_pending(DISCARDED);
    }

    fn is_ready(&self) -> bool {
        self.0.load(Ordering::Acquire) == READY
    }

    /// Whether it will never be ready.
    pub fn is_discarded(&self) -> bool {
        self.0.load(Ordering::Acquire) == DISCARDED
    }
}

/// A readback whose commands are queued.
pub struct QueuedReadback {
    /// The pinned memory that it is written to.
    pub slot: Held,
    /// How far it is.
    pub state: ReadbackState,
    /// Memory of the device that it is copied from, which nothing else is given before the device has been waited for.
    pub staged: Option<Block>,
    /// Whether it is ready once everything has been waited for, and not before: a capture.
    pub ready_at_sync: bool,
}

/// Values in flight to the host, of one device, which alone makes and reads them: nobody can give out a slot that no
/// copy has been submitted for.
///
/// ```
/// use llamaprobe::backend::cuda::PendingReadback;
/// let take = |pending: PendingReadback| drop(pending);
/// ```
///
/// ```compile_fail,E0616
/// use llamaprobe::backend::cuda::PendingReadback;
/// let take = |pending: PendingReadback| drop(pending.values);
/// ```
pub struct PendingReadback {
    pub(super) device: DeviceId,
    pub(super) values: PendingValues,
}

/// Where the values of a [`PendingReadback`] are.
pub enum PendingValues {
    /// On the host already: the ring was full.
    Ready(Vec<f32>),
    /// They arrive in a slot of the ring.
    InFlight {
        /// The slot, with the event that the copy records.
        slot: Held,
        /// How far they are.
        state: ReadbackState,
        /// Number of elements.
        len: usize,
        /// Number of the submission that they come with.
        submission: u64,
    },
}

/// Captured rows on the host.
pub struct CapturedRows {
    memory: RowMemory,
    /// Number of elements.
    len: usize,
    dtype: ComputeDtype,
    /// The elements as `f32`, once somebody has asked, where they are of another dtype.
    widened: OnceLock<Vec<f32>>,
}

/// Where captured rows are.
pub enum RowMemory {
    /// In a slot of the ring, where they arrive, and which is not used again as long as this lives.
    Slot(Held, ReadbackState),
    /// In memory of their own: the ring was full.
    Own(Vec<u32>),
}

impl CapturedRows {
    /// `len` elements of a dtype.
    pub fn new(memory: RowMemory, len: usize, dtype: ComputeDtype) -> Self {
        Self { memory, len, dtype, widened: OnceLock::new() }
    }

    /// Their bytes, aligned to elements.
    fn bytes(&self) -> Option<&[u8]> {
        let bytes = self.len * self.dtype.size();
        match &self.memory {
            // SAFETY: the device has been waited for: what copied to here has finished, and nothing else is given the slot while
            // it is held.
            RowMemory::Slot(slot, state) => state.is_ready().then(|| unsafe { slot.slice(bytes) }),
            RowMemory::Own(words) => Some(&bytemuck::cast_slice(words)[..bytes]),
        }
    }
}

impl Readback for CapturedRows {
    fn elements(&self) -> Option<HostSlice<'_>> {
        let bytes = self.bytes()?;
        Some(match self.dtype {
            ComputeDtype::F32 => HostSlice::F32(bytemuck::cast_slice(bytes)),
            ComputeDtype::Bf16 => HostSlice::Bf16(bytemuck::cast_slice(bytes)),
            ComputeDtype::F16 => HostSlice::F16(bytemuck::cast_slice(bytes)),
        })
    }

    fn rows(&self) -> Option<&[f32]> {
        Some(match self.elements()? {
            HostSlice::F32(rows) => rows,
            elements => self.widened.get_or_init(|| {
                let mut rows = vec![0.0; elements.len()];
                elements.copy_f32(0, &mut rows);
                rows
            }),
        })
    }
}

/// Rows of a capture that failed: never there.
pub struct NoRows;

impl Readback for NoRows {
    fn elements(&self) -> Option<HostSlice<'_>> {
        None
    }

    fn rows(&self) -> Option<&[f32]> {
        None
    }
}
