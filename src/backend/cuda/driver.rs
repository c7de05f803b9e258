//! The driver: one context, its streams, and what it reports as [`Error`].

use std::ffi::CStr;
use std::sync::Arc;

use cudarc::driver::{result, sys};

use crate::{Error, Result};

/// A device that has been opened: its primary context, the stream of all work and the stream of loading.
pub struct Device {
    name: String,
    device: sys::CUdevice,
    context: sys::CUcontext,
    /// Where everything is computed, in order.
    pub stream: sys::CUstream,
    /// Where weights are loaded.
    pub copies: sys::CUstream,
    /// Compute capability, such as `(9, 0)`.
    pub arch: (i32, i32),
}

// SAFETY: the handles are addresses of objects of the driver, which may be used from any thread; every use binds the
// context to its thread first.
unsafe impl Send for Device {}
// SAFETY: as above; the driver locks what calls share.
unsafe impl Sync for Device {}

/// Number of devices there are.
///
/// # Errors
/// If there is no driver, or it does not start, with the reason.
pub fn count() -> Result<usize> {
    // SAFETY: the call only tries to open the library by its usual names.
    if !unsafe { sys::is_culib_present() } {
        return Err(error("cuda", "start", "no NVIDIA driver: libcuda.so.1 was not found"));
    }
    let count = result::init().and_then(|()| result::device::get_count());
    match count {
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
    /// If there is no driver or no such device, or the driver refuses.
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
        let device = result::device::get(ordinal as i32).map_err(fail)?;
        let attribute = |which| {
            // SAFETY: the device handle is one that the driver has just given.
            unsafe { result::device::get_attribute(device, which) }.map_err(fail)
        };
        let arch = (
            attribute(sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        if arch < (8, 0) {
            let found = format!("compute capability {}.{}, needs 8.0 or newer", arch.0, arch.1);
            return Err(error(&name, "start", &found));
        }
        // SAFETY: as above; the context is released in `drop`.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(fail)?;
        let null = std::ptr::null_mut();
        let mut opened = Self { name: name.clone(), device, context, stream: null, copies: null, arch };
        opened.bind();
        opened.stream = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(fail)?;
        opened.copies = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(fail)?;
        Ok(Arc::new(opened))
    }

    /// Such as `cuda:0`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes the context current on this thread; an error shows in whatever is called next.
    pub fn bind(&self) {
        // SAFETY: the context is retained as long as `self` lives.
        let _ = unsafe { result::ctx::set_current(self.context) };
    }

    /// Gives a driver's error the device's name and the operation's.
    pub fn check<T>(&self, op: &'static str, result: Result<T, result::DriverError>) -> Result<T> {
        result.map_err(|e| error(&self.name, op, &message(e)))
    }

    /// Waits for all work of both streams.
    pub fn wait(&self) -> Result<(), result::DriverError> {
        self.bind();
        // SAFETY: the streams live as long as `self`.
        unsafe {
            result::stream::synchronize(self.copies)?;
            result::stream::synchronize(self.stream)
        }
    }

    /// Free and total bytes.
    pub fn memory(&self) -> (usize, usize) {
        self.bind();
        result::mem_get_info().unwrap_or_default()
    }

    /// An event without timing.
    pub fn event(self: &Arc<Self>, op: &'static str) -> Result<Event> {
        self.check(op, Event::new(self))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.bind();
        // SAFETY: streams and context are this value's own, and nothing can use them any more.
        unsafe {
            for stream in [self.stream, self.copies] {
                if !stream.is_null() {
                    let _ = result::stream::destroy(stream);
                }
            }
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

/// A mark in a stream.
pub struct Event {
    device: Arc<Device>,
    event: sys::CUevent,
}

// SAFETY: an event is an object of the driver, which may be used from any thread.
unsafe impl Send for Event {}

impl Event {
    /// A mark that stands nowhere yet.
    pub fn new(device: &Arc<Device>) -> Result<Self, result::DriverError> {
        device.bind();
        let event = result::event::create(sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING)?;
        Ok(Self { device: device.clone(), event })
    }

    /// Marks what has been given to `stream` so far.
    pub fn record(&self, stream: sys::CUstream) -> Result<(), result::DriverError> {
        self.device.bind();
        // SAFETY: the event is this value's own; streams of a device live as long as the device.
        unsafe { result::event::record(self.event, stream) }
    }

    /// Whether the device is past the mark.
    pub fn done(&self) -> bool {
        self.device.bind();
        // SAFETY: as above.
        unsafe { result::event::query(self.event) }.is_ok()
    }

    /// The error that earlier work has left the device with, if it has.
    pub fn lost(&self) -> Option<result::DriverError> {
        self.device.bind();
        // SAFETY: as above.
        let asked = unsafe { result::event::query(self.event) };
        asked.err().filter(|e| e.0 != sys::CUresult::CUDA_ERROR_NOT_READY)
    }

    /// Waits until the device is past the mark.
    pub fn wait(&self) -> Result<(), result::DriverError> {
        self.device.bind();
        // SAFETY: as above.
        unsafe { result::event::synchronize(self.event) }
    }

    /// Makes `stream` wait for the mark.
    pub fn block(&self, stream: sys::CUstream) -> Result<(), result::DriverError> {
        self.device.bind();
        // SAFETY: as above.
        unsafe { result::stream::wait_event(stream, self.event, sys::CUevent_wait_flags_enum::CU_EVENT_WAIT_DEFAULT) }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.device.bind();
        // SAFETY: the event is this value's own; the driver keeps it until it has completed.
        let _ = unsafe { result::event::destroy(self.event) };
    }
}
