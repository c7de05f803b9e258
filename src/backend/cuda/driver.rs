//! The driver: one context, its two streams, and what it reports as [`Error`].
//!
//! Contexts, streams, events, modules and graphs are those of cudarc's safe level. What that level has no call for is
//! asked of the driver directly, where it is needed: memory at fixed addresses (`memory.rs`: cudarc's allocations belong
//! to typed slices, ours to a pool whose addresses repeat), pinned memory that the device writes to (`pinned.rs`: cudarc
//! gives no device address and waits on an event of its own before every look), and launches and copies whose arguments
//! are values of a command list (`queue.rs`).

use std::ffi::CStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, result, sys};

use crate::{Error, Result};

/// Which opened device: no two that a process opens have the same, even if they are the same GPU. Memory is reused in
/// the order of its device's stream, so it is of use to no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceId(u64);

impl DeviceId {
    fn next() -> Self {
        static OPENED: AtomicU64 = AtomicU64::new(0);
        Self(OPENED.fetch_add(1, Ordering::Relaxed))
    }
}

/// A device that has been opened: its primary context, the stream of all work and the stream of copies beside it.
pub struct Device {
    name: String,
    id: DeviceId,
    /// Compute capability, such as `(9, 0)`.
    arch: (i32, i32),
    multiprocessors: usize,
    stream: Arc<CudaStream>,
    copy_stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
}

/// Number of devices there are.
///
/// # Errors
/// If there is no driver, or it does not start, with the reason.
pub fn count() -> Result<usize> {
    // SAFETY: the call only tries to open the library by its usual names.
    if !unsafe { sys::is_culib_present() } {
        return Err(error("cuda", "start", "no NVIDIA driver: libcuda.so.1 was not found"));
    }
    match CudaContext::device_count() {
        Ok(count) => Ok(count as usize),
        Err(result::DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Ok(0),
        Err(e) => Err(error("cuda", "start", &message(e))),
    }
}

/// An [`Error::Device`].
pub fn error(device: &str, op: &'static str, message: &str) -> Error {
    Error::Device { device: device.to_owned(), op, message: message.to_owned() }
}

/// The driver's own words for an error.
pub fn message(error: result::DriverError) -> String {
    let text = |text: Result<&CStr, _>| text.map(|t| t.to_string_lossy().into_owned()).unwrap_or_default();
    format!("{} ({})", text(error.error_string().map_err(drop)), text(error.error_name().map_err(drop)))
}

impl Device {
    /// Opens device `ordinal`.
    ///
    /// # Errors
    /// If there is no driver or no such device, or the driver reports an error.
    pub fn open(ordinal: usize) -> Result<Arc<Self>> {
        let name = format!("cuda:{ordinal}");
        let count = count()?;
        if ordinal >= count {
            let found = match count {
                0 => "the driver sees no device".to_owned(),
                n => format!("the driver sees {n} device(s), cuda:0 to cuda:{}", n - 1),
            };
            return Err(error(&name, "start", &found));
        }
        let fail = |e| error(&name, "start", &message(e));
        let context = CudaContext::new(ordinal).map_err(fail)?;
        let arch = context.compute_capability().map_err(fail)?;
        if arch < (8, 0) {
            let found = format!("compute capability {}.{}, needs 8.0 or newer", arch.0, arch.1);
            return Err(error(&name, "start", &found));
        }
        let multiprocessors = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let multiprocessors = context.attribute(multiprocessors).map_err(fail)? as usize;
        // SAFETY: events are tracked for cudarc's slices only, of which none is ever made here.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(fail)?;
        let copy_stream = context.new_stream().map_err(fail)?;
        Ok(Arc::new(Self { name, id: DeviceId::next(), arch, multiprocessors, stream, copy_stream, context }))
    }

    /// Such as `cuda:0`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Which of all devices that have been opened.
    pub fn id(&self) -> DeviceId {
        self.id
    }

    /// Compute capability, such as `(9, 0)`.
    pub fn arch(&self) -> (i32, i32) {
        self.arch
    }

    /// Number of its multiprocessors.
    pub fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    /// The context, to make events and modules in.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// Where everything is computed, in order.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Where weights are loaded and captures copied, beside the work.
    pub fn copy_stream(&self) -> &Arc<CudaStream> {
        &self.copy_stream
    }

    /// Makes the context current on this thread.
    ///
    /// # Errors
    /// Of the driver, also one that a destructor has met.
    pub fn bind(&self) -> Result<(), result::DriverError> {
        self.context.bind_to_thread()
    }

    /// [`Device::bind`] where no error can be passed on: in a destructor.
    pub fn bind_in_drop(&self) {
        // The first call gives out what another destructor has met, and then does nothing else.
        let _ = self.bind().or_else(|_| self.bind());
    }

    /// Gives a driver's error the device's name and the operation's.
    pub fn check<T>(&self, op: &'static str, result: Result<T, result::DriverError>) -> Result<T> {
        result.map_err(|e| error(&self.name, op, &message(e)))
    }

    /// Waits for all work of both streams.
    pub fn synchronize(&self) -> Result<(), result::DriverError> {
        self.copy_stream.synchronize()?;
        self.stream.synchronize()
    }

    /// Free and total bytes.
    pub fn memory(&self) -> (usize, usize) {
        self.context.mem_get_info().unwrap_or_default()
    }

    /// An event without timing, recorded nowhere yet.
    pub fn new_event(&self) -> Result<CudaEvent, result::DriverError> {
        self.context.new_event(None)
    }

    /// An event whose time can be read, recorded nowhere yet.
    ///
    /// # Errors
    /// Of the driver.
    pub fn new_timed_event(&self) -> Result<CudaEvent, result::DriverError> {
        self.context.new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT))
    }

    /// Whether the device is past an event of its own.
    pub fn is_past(&self, event: &CudaEvent) -> bool {
        self.bind().is_ok() && event.is_complete()
    }

    /// The error that earlier work has left the device with, which every later call returns; `probe` is an event that is
    /// never recorded.
    pub fn sticky_error(&self, probe: &CudaEvent) -> Option<result::DriverError> {
        self.bind().and_then(|()| probe.try_is_complete().map(drop)).err()
    }
}

/// While this lives, copies to or from memory of the pool may be under way on the copy stream. When it goes, on whatever
/// path, the stream of work waits for them: memory that is freed is reused in the order of that stream.
pub struct CopyScope<'a> {
    device: &'a Device,
    event: CudaEvent,
    joined: bool,
}

impl<'a> CopyScope<'a> {
    /// Makes the copy stream wait for the work submitted so far.
    ///
    /// # Errors
    /// Of the driver.
    pub fn enter(device: &'a Device) -> Result<Self, result::DriverError> {
        let event = device.new_event()?;
        event.record(device.stream())?;
        device.copy_stream().wait(&event)?;
        Ok(Self { device, event, joined: false })
    }

    /// Makes the work submitted from here on wait for the copies.
    ///
    /// # Errors
    /// Of the driver.
    pub fn join(mut self) -> Result<(), result::DriverError> {
        self.joined = true;
        self.wait_for_copies()
    }

    fn wait_for_copies(&self) -> Result<(), result::DriverError> {
        let ordered = self.event.record(self.device.copy_stream());
        ordered.and_then(|()| self.device.stream().wait(&self.event)).inspect_err(|_| {
            // In order or not, the copies must be over before their memory is another's.
            let _ = self.device.copy_stream().synchronize();
        })
    }
}

impl Drop for CopyScope<'_> {
    fn drop(&mut self) {
        if !self.joined {
            let _ = self.wait_for_copies();
        }
    }
}
