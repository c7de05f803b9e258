//! What all operations of one device share: memory, the command list, kernels, and the first error.

pub mod scratch;

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

use cudarc::driver::{CudaStream, result};

use super::blas::Blas;
use super::compile::Kernels;
use super::driver::{Device, error, message};
use super::dtype::ComputeDtype;
use super::gemm::Gemm;
use super::launch::{Arg, Args, Kernel, LaunchDims, assert_on};
use super::memory::{AccBuffer, Block, ComputeBuffer, DevicePtr, Part, Parts, Pool};
use super::pinned::{Held, Ring};
use super::queue::{Action, Launch, Queue, Replays};
use super::readback::{PendingReadback, PendingValues, QueuedReadback, ReadbackState};
use super::settings::Settings;
use super::timeline::Timeline;
use crate::backend::Len;
use crate::backend::ops::Op;
use crate::backend::profile::Recorder;
use crate::backend::scratch::WORKSPACE;
use crate::{Error, Result};

/// Bytes of pinned memory through which values go to and from the device.
const STAGING: usize = 64 << 20;
/// Bytes of one transfer.
const CHUNK: usize = 16 << 20;

/// What an operation has asked for and is not on the command list yet: the operation after it may do it in a launch of its
/// own, and any other command puts it there first.
pub trait Deferred: Any + Send {
    /// Puts it on the list.
    fn launch(self: Box<Self>, cx: &mut Context);
}

/// The first error, not yet given out.
struct FirstError {
    /// Number of the submission that it belongs to.
    submission: u64,
    error: Error,
}

/// The state of an opened device.
pub struct Context {
    /// The device that everything here lives on.
    pub device: Arc<Device>,
    /// The dtype that kernels and products read and write.
    pub dtype: ComputeDtype,
    pool: Arc<Pool>,
    queue: Queue,
    kernels: Kernels,
    blas: Blas,
    /// Through which values go to and from the device at once.
    staging: Ring,
    /// In which captures and downloads arrive.
    readbacks: Ring,
    /// Readbacks whose commands are on the list.
    queued: Vec<QueuedReadback>,
    /// Captures that the device is working on, and the memory that they are copied from.
    in_flight: Vec<(ReadbackState, Option<Block>)>,
    first_error: Option<FirstError>,
    /// Whether the device is waited for after every command, so that errors have names.
    blocking: bool,
    /// Number of submissions so far.
    submissions: u64,
    /// Operations submitted since the device was last waited for, and the number of their submission.
    unsynced: Vec<(u64, &'static str)>,
    deferred: Option<Box<dyn Deferred>>,
    /// Buffers of the compute dtype that are to lie side by side.
    pub beside: Parts,
    /// What operations keep for themselves, and what the lists there hold (`scratch.rs`).
    scratch: HashMap<&'static str, Block>,
    lists: HashMap<&'static str, Vec<i32>>,
    /// Most bytes of quantised weights that are decoded side by side.
    decoded: usize,
}

impl Context {
    /// Opens device `ordinal`.
    ///
    /// # Errors
    /// No driver, device or library, or no memory.
    pub fn open(ordinal: usize, dtype: ComputeDtype, settings: &Settings) -> Result<Self> {
        let device = Device::open(ordinal)?;
        let pool = Pool::new(device.clone());
        let workspace = device.check("start", pool.block(WORKSPACE))?;
        let workspace = workspace.ok_or_else(|| error(device.name(), "start", "no memory for cuBLASLt"))?;
        Ok(Self {
            queue: device.check("start", Queue::new(device.clone(), settings))?,
            kernels: Kernels::new(device.clone(), dtype, settings),
            blas: Blas::new(device.clone(), dtype, settings, workspace)?,
            staging: Ring::new(device.clone(), STAGING),
            readbacks: Ring::new(device.clone(), settings.capture_bytes),
            queued: Vec::new(),
            in_flight: Vec::new(),
            first_error: None,
            blocking: settings.blocking,
            submissions: 0,
            unsynced: Vec::new(),
            deferred: None,
            beside: Parts::default(),
            scratch: HashMap::new(),
            lists: HashMap::new(),
            decoded: 0,
            pool,
            device,
            dtype,
        })
    }

    /// Pinned memory that transfers, and what arrives on the host at one time, take at most, in bytes.
    pub fn pinned(&self, readbacks: impl Iterator<Item = usize>) -> usize {
        STAGING + self.readbacks.planned(readbacks)
    }

    /// Bytes of the blocks that captures on their way to the host at one time are copied from.
    pub fn staged(&self, captures: &[usize]) -> Vec<usize> {
        let (fit, beside) = captures.split_at(self.readbacks.fit(captures));
        fit.iter().copied().chain(beside.iter().copied().max()).collect()
    }

    /// See [`Queue::replays`].
    pub fn replays(&self) -> Replays {
        self.queue.replays()
    }

    /// Records from now on when the device works at what.
    ///
    /// # Errors
    /// Of the device.
    pub fn record(&mut self, recorder: &Recorder) -> Result<()> {
        self.submit();
        let timeline = Timeline::new(self.device.clone(), recorder.clone(), (size_of::<f32>(), self.dtype.size()));
        self.queue.record(self.device.check("start", timeline)?);
        self.blas.record(recorder);
        Ok(())
    }

    /// Notes that an operation begins.
    #[inline]
    pub fn mark<O: Op>(&mut self, op: &O) {
        self.queue.mark(op);
    }

    // Errors

    /// Keeps an error, if it is the first. The command list is dropped, and what was to be read back with it.
    pub fn fail(&mut self, error: Error) {
        self.queue.clear();
        self.deferred = None;
        self.queued.drain(..).for_each(|readback| readback.state.discard());
        if self.first_error.is_none() {
            let error = self.attribute_error(error);
            self.first_error = Some(FirstError { submission: self.submissions + 1, error });
        }
    }

    /// A result whose error is the first one.
    ///
    /// # Errors
    /// That one, if the result is one.
    pub fn attributed<T>(&mut self, result: Result<T>) -> Result<T> {
        result.map_err(|error| match self.first_error.take() {
            Some(first) => first.error,
            None => self.attribute_error(error),
        })
    }

    /// Submitted work that fails leaves an error that every later call returns: such an error is that work's, not the call's.
    fn attribute_error(&self, error: Error) -> Error {
        match self.queue.sticky_error() {
            Some(e) if !self.blocking && matches!(error, Error::Device { .. }) && !self.unsynced.is_empty() => {
                self.error_of_unsynced(e)
            }
            _ => error,
        }
    }

    /// The error of work that has not been waited for.
    fn error_of_unsynced(&self, e: result::DriverError) -> Error {
        let mut ops: Vec<&'static str> = self.unsynced.iter().map(|(_, op)| *op).collect();
        ops.sort_unstable();
        ops.dedup();
        match ops[..] {
            [op] => error(self.device.name(), op, &message(e)),
            _ => {
                let hint = "CUDA_LAUNCH_BLOCKING=1 names it";
                let message = format!("{}, in one of: {}; {hint}", message(e), ops.join(", "));
                error(self.device.name(), "sync", &message)
            }
        }
    }

    /// Gives out the first error, if it belongs to a submission up to this one.
    fn give_out_error(&mut self, submission: u64) -> Result<()> {
        let first = self.first_error.take_if(|first| first.submission <= submission);
        first.map_or(Ok(()), |first| Err(first.error))
    }

    /// The value of a result; its error is kept, if it is the first.
    pub fn or_fail<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|e| self.fail(e)).ok()
    }

    // Memory

    /// A block of `bytes` bytes of any content.
    ///
    /// # Errors
    /// If the device has no room for it, even after what is free has been given back.
    pub fn block(&mut self, op: &'static str, bytes: usize) -> Result<Block> {
        if let Some(block) = self.device.check(op, self.pool.block(bytes))? {
            return Ok(block);
        }
        // What is free may still be in use by work that has not been done, and what is copied from by copies.
        self.submit();
        self.device.check(op, self.device.synchronize())?;
        self.in_flight.iter_mut().for_each(|(_, staged)| *staged = None);
        self.pool.trim();
        if let Some(block) = self.device.check(op, self.pool.block(bytes))? {
            return Ok(block);
        }
        let (free, total) = self.device.memory();
        let found = format!("out of memory: {bytes} bytes wanted, {free} of {total} free");
        Err(error(self.device.name(), op, &found))
    }

    /// `len` elements of the accumulation dtype, of any content.
    ///
    /// # Errors
    /// See [`Context::block`].
    pub fn acc(&mut self, op: &'static str, len: usize) -> Result<AccBuffer> {
        Ok(AccBuffer::new(self.block(op, len * size_of::<f32>())?, len))
    }

    /// `len` elements of the compute dtype, of any content.
    ///
    /// # Errors
    /// See [`Context::block`].
    pub fn compute(&mut self, op: &'static str, len: usize) -> Result<ComputeBuffer> {
        let bytes = len * self.dtype.size();
        if let Some(whole) = self.beside.whole(bytes) {
            let block = self.block(op, whole)?;
            self.beside.cut(block, bytes);
        }
        let part = self.beside.next(bytes).map_or_else(|| Ok(Part::from(self.block(op, bytes)?)), Ok)?;
        Ok(ComputeBuffer::new(part, len, self.dtype))
    }

    // Commands

    /// Appends a command.
    ///
    /// # Panics
    /// If it works on memory of another device.
    #[track_caller]
    pub fn push(&mut self, op: &'static str, action: Action) {
        action.assert_on(op, &self.device);
        self.flush();
        if self.first_error.is_none() {
            self.queue.push(op, action);
        }
    }

    /// Appends a launch; an empty grid is nothing to do.
    ///
    /// # Panics
    /// If the arguments are not what the kernel takes, or one of them is another device's.
    #[track_caller]
    pub fn launch(&mut self, op: &'static str, kernel: Kernel, dims: LaunchDims, args: &[Arg]) {
        assert_on(op, args, &self.device);
        if self.first_error.is_some() || dims.grid.contains(&0) {
            return;
        }
        self.flush();
        let shared = u32::try_from(dims.shared).expect("shared memory is kilobytes");
        let function = self.kernels.get(kernel, shared);
        let Some(function) = self.or_fail(function) else { return };
        let args = Args::new(kernel.name, &function.params, args);
        let function = function.handle.cu_function() as usize;
        let launch = Launch { function, grid: dims.grid, block: dims.block, shared, args };
        self.queue.push(op, Action::Kernel(Box::new(launch)));
    }

    /// Appends a product; an empty one is nothing to do.
    ///
    /// # Panics
    /// If an operand is another device's.
    #[track_caller]
    pub fn gemm(&mut self, op: &'static str, gemm: Gemm) {
        gemm.assert_on(op, &self.device);
        let shape = gemm.shape;
        if self.first_error.is_some() || shape.m == 0 || shape.n == 0 || shape.k == 0 {
            return;
        }
        self.flush();
        let planned = self.blas.plan(op, &shape);
        if self.or_fail(planned).is_some() {
            self.queue.push(op, Action::Gemm(gemm));
        }
    }

    /// Leaves the work of the operation that has just begun, which reads and writes `args`, to the next, if that takes it.
    ///
    /// # Panics
    /// If one of them is another device's.
    #[track_caller]
    pub fn defer(&mut self, op: &'static str, args: &[Arg], work: impl Deferred) {
        assert_on(op, args, &self.device);
        self.flush();
        if self.first_error.is_none() {
            self.queue.defer();
            self.deferred = Some(Box::new(work));
        }
    }

    /// Does deferred work, if it is of this kind and fits, with the operation that has just begun. Returns whether it did.
    pub fn fuse<D: Deferred>(&mut self, fits: impl FnOnce(&D) -> bool, launch: impl FnOnce(D, &mut Self)) -> bool {
        let Some(work) = self.take_deferred(fits) else { return false };
        let first = self.queue.len();
        launch(work, self);
        self.queue.place_deferred(first, true);
        true
    }

    /// Takes deferred work, if it is of this kind and fits, into what the operation that has just begun defers.
    pub fn take_deferred<D: Deferred>(&mut self, fits: impl FnOnce(&D) -> bool) -> Option<D> {
        let fits = |work: &mut Box<dyn Deferred>| (&**work as &dyn Any).downcast_ref().is_some_and(fits);
        let work = self.deferred.take_if(fits).map(|work| work as Box<dyn Any>);
        work.and_then(|work| work.downcast().ok()).map(|work| *work)
    }

    /// The deferred work, to which that of the operation that has just begun is to be added, if it is of this kind and fits.
    pub fn join_deferred<D: Deferred>(&mut self, fits: impl FnOnce(&D) -> bool) -> Option<&mut D> {
        let work = self.deferred.as_deref_mut()? as &mut dyn Any;
        let work = work.downcast_mut().filter(|work| fits(work))?;
        self.queue.defer();
        Some(work)
    }

    /// Puts deferred work on the list.
    fn flush(&mut self) {
        if let Some(work) = self.deferred.take() {
            let first = self.queue.len();
            work.launch(self);
            self.queue.place_deferred(first, false);
        }
    }

    /// `buffer[..len] = 0`.
    pub fn zero_acc(&mut self, op: &'static str, buffer: &AccBuffer, len: usize) {
        assert!(len <= buffer.len(), "{op}: {len} elements of {}", buffer.len());
        self.zero(op, buffer.ptr(0), len * size_of::<f32>());
    }

    /// `bytes` zero bytes at `to`.
    pub fn zero(&mut self, op: &'static str, to: DevicePtr, bytes: usize) {
        if bytes > 0 {
            self.push(op, Action::Zero { to, bytes });
        }
    }

    /// Submits the command list.
    pub fn submit(&mut self) {
        self.flush();
        let submission = self.submissions + 1;
        let queued = std::mem::take(&mut self.queued);
        let submitted = self.queue.submit(&self.blas);
        self.unsynced.extend(submitted.ops.into_iter().map(|op| (submission, op)));
        let failed = submitted.outcome.is_err();
        if let Err(e) = submitted.outcome {
            self.fail(error(self.device.name(), e.op, &e.message));
        }
        for QueuedReadback { slot, state, staged, ready_at_sync } in queued {
            // Also of a list that was submitted in part: the device may be writing to the slot.
            let recorded = self.device.check("results", slot.record(self.device.stream()));
            if self.or_fail(recorded).is_none() || failed {
                state.discard();
            } else if ready_at_sync {
                self.in_flight.push((state, staged));
            }
        }
        self.submissions = submission;
    }

    /// Submits the command list, waits for it, and returns the first error since the last call.
    ///
    /// # Errors
    /// That error.
    pub fn sync(&mut self) -> Result<()> {
        self.submit();
        let waited = self.device.synchronize();
        self.note_waited(waited, self.submissions);
        let in_flight = std::mem::take(&mut self.in_flight);
        let outcome = self.give_out_error(self.submissions);
        for (state, _) in in_flight {
            if outcome.is_ok() { state.set_ready() } else { state.discard() }
        }
        outcome
    }

    /// Takes note of what the device says about the work up to this submission.
    fn note_waited(&mut self, waited: Result<(), result::DriverError>, submission: u64) {
        if let Err(e) = waited {
            let error = self.error_of_unsynced(e);
            self.first_error.get_or_insert(FirstError { submission, error });
            self.in_flight.drain(..).for_each(|(state, _)| state.discard());
        }
        self.unsynced.retain(|&(of, _)| of > submission);
    }

    // Transfers

    /// The device's bytes at `to` `=` these, after the commands so far.
    ///
    /// # Errors
    /// If the device fails.
    pub fn write(&mut self, op: &'static str, to: DevicePtr, bytes: &[u8]) -> Result<()> {
        self.submit();
        let stream = self.device.stream().clone();
        self.stage_h2d(op, &stream, (to, bytes.len()), &mut |at, chunk| {
            chunk.copy_from_slice(&bytes[at..at + chunk.len()]);
        })
    }

    /// Fills `len` bytes at `to` on `stream`, from pinned memory that `fill` writes chunk by chunk, given the chunk's
    /// place.
    ///
    /// # Errors
    /// If the device fails.
    pub fn stage_h2d(
        &mut self,
        op: &'static str,
        stream: &CudaStream,
        (to, len): (DevicePtr, usize),
        fill: &mut dyn FnMut(usize, &mut [u8]),
    ) -> Result<()> {
        let address = to.on(op, &self.device);
        for at in (0..len).step_by(CHUNK) {
            let count = CHUNK.min(len - at);
            let mut slot = self.staging_slot(op, count)?;
            // SAFETY: the slot has just been taken: the device is done with it, and nobody else holds it.
            let bytes = unsafe { slot.bytes_mut(count) };
            fill(at, bytes);
            let copied = self.device.bind().and_then(|()| {
                // SAFETY: the slot is pinned memory that stays untouched until the event below has passed; the address
                // is that of a live buffer of this device with room for the bytes.
                unsafe { result::memcpy_htod_async(address + at as u64, bytes, stream.cu_stream()) }
            });
            self.device.check(op, copied)?;
            self.device.check(op, slot.record(stream))?;
        }
        Ok(())
    }

    /// A slot of the staging ring, which nobody holds for longer than a transfer.
    fn staging_slot(&mut self, op: &'static str, bytes: usize) -> Result<Held> {
        let slot = self.device.check(op, self.staging.take(bytes))?;
        Ok(slot.expect("nobody holds a slot of the staging ring"))
    }

    /// `bytes =` those at `from`, after all commands.
    ///
    /// # Errors
    /// If the device fails, or has failed before.
    pub fn read(&mut self, op: &'static str, bytes: &mut [u8], from: DevicePtr) -> Result<()> {
        let mut address = from.on(op, &self.device);
        self.submit();
        self.give_out_error(self.submissions)?;
        for chunk in bytes.chunks_mut(CHUNK) {
            let mut slot = self.staging_slot(op, chunk.len())?;
            // SAFETY: the slot has just been taken: the device is done with it, and nobody else holds it.
            let arrived = unsafe { slot.bytes_mut(chunk.len()) };
            let copied = self.device.bind().and_then(|()| {
                // SAFETY: the slot is pinned memory that nobody reads before the event below has passed; the address is
                // that of a live buffer of this device that has the bytes.
                unsafe { result::memcpy_dtoh_async(arrived, address, self.device.stream().cu_stream()) }
            });
            self.device.check(op, copied)?;
            self.device.check(op, slot.record(self.device.stream()))?;
            self.note_waited(slot.wait(), self.submissions);
            self.give_out_error(self.submissions)?;
            // SAFETY: the event after the copy has passed.
            chunk.copy_from_slice(unsafe { slot.slice(chunk.len()) });
            address += chunk.len() as u64;
        }
        Ok(())
    }

    /// A slot in which `bytes` bytes arrive; none if the ring is full of what is held.
    fn readback_slot(&mut self, op: &'static str, bytes: usize) -> Result<Option<Held>> {
        self.device.check(op, self.readbacks.take(bytes))
    }

    /// The state of a readback that comes with the command list; after an error it is discarded already.
    fn queue_readback(&mut self, slot: &Held, staged: Option<Block>, ready_at_sync: bool) -> ReadbackState {
        let state = ReadbackState::new();
        if self.first_error.is_some() {
            state.discard();
        } else {
            let (slot, state) = (slot.clone(), state.clone());
            self.queued.push(QueuedReadback { slot, state, staged, ready_at_sync });
        }
        state
    }

    /// Where a capture of `bytes` bytes arrives, and the memory of the device that it is copied from; none if the ring is
    /// full of captures that are held.
    ///
    /// # Errors
    /// If the device fails, or there is no memory.
    pub fn capture_slot(&mut self, bytes: usize) -> Result<Option<(Held, ReadbackState, DevicePtr)>> {
        let op = "capture";
        let Some(slot) = self.readback_slot(op, bytes)? else { return Ok(None) };
        let staged = self.block(op, bytes)?;
        let from = staged.ptr();
        let state = self.queue_readback(&slot, Some(staged), true);
        Ok(Some((slot, state, from)))
    }

    /// Begins to move `len` elements of the accumulation dtype at `from` to the host.
    ///
    /// # Errors
    /// If the device fails.
    pub fn begin_read(&mut self, op: &'static str, from: DevicePtr, len: usize) -> Result<PendingReadback> {
        let (device, bytes) = (self.device.id(), len * size_of::<f32>());
        from.on(op, &self.device);
        let Some(slot) = self.readback_slot(op, bytes)? else {
            let mut values = vec![0.0; len];
            self.read(op, bytemuck::cast_slice_mut(&mut values), from)?;
            return Ok(PendingReadback { device, values: PendingValues::Ready(values) });
        };
        if bytes > 0 {
            self.push(op, Action::Readback { to: slot.host_address(), from, bytes, on_copy_stream: false });
        }
        let state = self.queue_readback(&slot, None, false);
        let values = PendingValues::InFlight { slot, state, len, submission: self.submissions + 1 };
        Ok(PendingReadback { device, values })
    }

    /// Waits for what [`Context::begin_read`] has begun.
    ///
    /// # Errors
    /// If the device fails, or has failed before, or the readback is another device's.
    pub fn end_read(&mut self, op: &'static str, pending: PendingReadback) -> Result<Vec<f32>> {
        let PendingReadback { device, values } = pending;
        if device != self.device.id() {
            let found = format!("the readback is another device's ({device:?}, this is {:?})", self.device.id());
            return Err(error(self.device.name(), op, &found));
        }
        let (slot, state, len, submission) = match values {
            PendingValues::Ready(values) => return Ok(values),
            PendingValues::InFlight { slot, state, len, submission } => (slot, state, len, submission),
        };
        if submission > self.submissions {
            self.submit();
        }
        self.note_waited(slot.wait(), submission);
        self.give_out_error(submission)?;
        if state.is_discarded() {
            let found = "what was to be read was discarded after an error of an earlier operation";
            return Err(error(self.device.name(), op, found));
        }
        // SAFETY: the event after the copy has passed, and the slot is nobody else's while it is held.
        Ok(unsafe { slot.slice(len) }.to_vec())
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Pinned memory, graphs and modules go next: nothing may still be working on them.
        let _ = self.device.synchronize();
        self.queue.collect();
    }
}
