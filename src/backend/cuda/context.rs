//! What all operations of one backend share: memory, the list of work, kernels, and the first error.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::{result, sys};

use super::blas::{Blas, Product, WORKSPACE};
use super::compile::Kernels;
use super::driver::{Device, error, message};
use super::launch::{Arg, Args};
use super::memory::{Block, Buffer, Pool};
use super::pinned::{Held, Ring};
use super::queue::{Launch, Queue, Work};
use super::{Compute, Settings};
use crate::{Error, Result};

/// Bytes of pinned memory through which values go to and from the device.
const STAGING: usize = 64 << 20;
/// Bytes of one transfer.
const CHUNK: usize = 16 << 20;

/// A kernel: its file, its name, and the head width that it is compiled for (0 where it does not vary).
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// File in `kernels/`.
    pub file: &'static str,
    /// Name.
    pub name: &'static str,
    /// Head width.
    pub head: usize,
}

impl Kernel {
    /// A kernel that does not vary with the head width.
    pub const fn new(file: &'static str, name: &'static str) -> Self {
        Self { file, name, head: 0 }
    }
}

/// Grid, threads of a block, bytes of dynamic shared memory.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Dynamic shared memory.
    pub shared: usize,
}

/// What lands in a slot of the ring once the list is given to the device.
struct Readback {
    held: Held,
    /// Says when it has landed, to what cannot wait for it.
    flag: Option<Arc<AtomicBool>>,
    /// Memory of the device that it is copied from, which nothing else is given before.
    from: Option<Block>,
}

/// Values on their way to the host.
pub enum PendingReadback {
    /// They are there: the ring was full.
    Ready(Vec<f32>),
    /// They land in a slot of the ring.
    Pending {
        /// The slot.
        held: Held,
        /// How many.
        len: usize,
        /// Number of the list with which they come.
        list: u64,
    },
}

/// A sum that is on the list.
struct Residual {
    /// Pieces of work on the list once it was there.
    list: usize,
    /// Address of the sum.
    sum: u64,
    len: usize,
    summands: [Arg; 2],
}

/// The state of a backend.
pub struct Context {
    /// The device.
    pub device: Arc<Device>,
    pool: Arc<Pool>,
    queue: Queue,
    kernels: Kernels,
    blas: Blas,
    staging: Ring,
    results: Ring,
    /// What will land once the list is given to the device.
    landing: Vec<Readback>,
    /// The flags of captures that the device is working on.
    flying: Vec<Arc<AtomicBool>>,
    /// The first error, and the number of the list that it belongs to.
    error: Option<(u64, Error)>,
    /// Whether the device is waited for after every operation, so that errors have names.
    blocking: bool,
    /// Number of lists given to the device.
    flushes: u64,
    /// Operations given to the device that it has not been waited for, and the number of their list.
    since: Vec<(u64, &'static str)>,
    /// The sum whose launch may be the last on the list.
    residual: Option<Residual>,
    scratch: HashMap<&'static str, Block>,
    numbers: HashMap<&'static str, Vec<i32>>,
}

impl Context {
    /// Opens device `ordinal`.
    ///
    /// # Errors
    /// No driver, device or library, or no memory.
    pub fn new<R: Compute>(ordinal: usize, settings: &Settings) -> Result<Self> {
        let device = Device::open(ordinal)?;
        let pool = Pool::new(device.clone());
        let workspace = device.check("start", pool.block(WORKSPACE))?;
        let workspace = workspace.ok_or_else(|| error(device.name(), "start", "no memory for cuBLASLt"))?;
        Ok(Self {
            queue: device.check("start", Queue::new(device.clone(), settings.blocking))?,
            kernels: Kernels::new::<R>(device.clone(), settings),
            blas: Blas::new::<R>(device.clone(), settings, workspace)?,
            staging: Ring::new(device.clone(), STAGING),
            results: Ring::new(device.clone(), settings.capture_bytes),
            landing: Vec::new(),
            flying: Vec::new(),
            error: None,
            blocking: settings.blocking,
            flushes: 0,
            since: Vec::new(),
            residual: None,
            scratch: HashMap::new(),
            numbers: HashMap::new(),
            pool,
            device,
        })
    }

    /// Pinned memory that transfers, and what lands on the host at one time, take at most.
    pub fn pinned(&self, landing: &[usize]) -> usize {
        STAGING + self.results.planned(landing)
    }

    /// Number of lists of work that went to the device as a graph.
    pub fn replays(&self) -> u64 {
        self.queue.replays()
    }

    /// Keeps the first error.
    pub fn fail(&mut self, error: Error) {
        self.queue.clear();
        if self.error.is_none() {
            self.error = Some((self.flushes + 1, self.blame(error)));
        }
    }

    /// A result whose error is that of the operation that is to blame.
    ///
    /// # Errors
    /// That one, if the result is one.
    pub fn blamed<T>(&mut self, result: Result<T>) -> Result<T> {
        result.map_err(|error| match self.error.take() {
            Some((_, first)) => first,
            None => self.blame(error),
        })
    }

    /// Work of the past fails in whatever is asked of the device next: then the error is that work's.
    fn blame(&self, error: Error) -> Error {
        match self.queue.lost() {
            Some(e) if !self.blocking && matches!(error, Error::Device { .. }) && !self.since.is_empty() => {
                self.past(e)
            }
            _ => error,
        }
    }

    /// The error of work that has not been waited for.
    fn past(&self, e: result::DriverError) -> Error {
        let mut since: Vec<&'static str> = self.since.iter().map(|(_, op)| *op).collect();
        since.sort_unstable();
        since.dedup();
        match since[..] {
            [op] => error(self.device.name(), op, &message(e)),
            _ => {
                let hint = "CUDA_LAUNCH_BLOCKING=1 names it";
                let message = format!("{}, in one of: {}; {hint}", message(e), since.join(", "));
                error(self.device.name(), "sync", &message)
            }
        }
    }

    /// Gives out the error that was kept, if it belongs to a list up to number `list`.
    fn failed(&mut self, list: u64) -> Result<()> {
        self.error.take_if(|(of, _)| *of <= list).map_or(Ok(()), |(_, error)| Err(error))
    }

    /// Keeps the error of a result.
    pub fn keep<T>(&mut self, result: Result<T>) -> Option<T> {
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
        // What is free may still be in use by work that has not been done.
        self.flush();
        self.device.check(op, self.device.wait())?;
        self.pool.trim();
        if let Some(block) = self.device.check(op, self.pool.block(bytes))? {
            return Ok(block);
        }
        let (free, total) = self.device.memory();
        let found = format!("out of memory: {bytes} bytes wanted, {free} of {total} free");
        Err(error(self.device.name(), op, &found))
    }

    /// `len` elements of any content.
    ///
    /// # Errors
    /// See [`Context::block`].
    pub fn buffer<T>(&mut self, op: &'static str, len: usize) -> Result<Buffer<T>> {
        Ok(Buffer::new(self.block(op, len * size_of::<T>())?, len))
    }

    /// `len` zeros.
    ///
    /// # Errors
    /// See [`Context::block`].
    pub fn zeros<T: bytemuck::Zeroable>(&mut self, op: &'static str, len: usize) -> Result<Buffer<T>> {
        let buffer = self.buffer(op, len)?;
        self.zero(op, &buffer, len);
        Ok(buffer)
    }

    /// The address of at least `bytes` bytes that stay an operation's own, so that no other changes them. None after an
    /// error.
    pub fn scratch(&mut self, op: &'static str, bytes: usize) -> Option<u64> {
        let enough = self.scratch.get(op).is_some_and(|block| block.bytes >= bytes);
        if !enough {
            self.scratch.remove(op);
            self.numbers.remove(op);
            let block = self.block(op, bytes);
            let block = self.keep(block)?;
            self.scratch.insert(op, block);
        }
        Some(self.scratch[op].address)
    }

    /// The address of a list of numbers that stays where it is as long as it is the same: what comes with every launch
    /// of a pass is moved once. None after an error.
    pub fn numbers(&mut self, list: &'static str, numbers: &[i32]) -> Option<u64> {
        let address = self.scratch(list, size_of_val(numbers))?;
        if self.numbers.get(list).is_none_or(|known| known != numbers) {
            let written = self.write(list, address, bytemuck::cast_slice(numbers));
            self.keep(written)?;
            self.numbers.insert(list, numbers.to_vec());
        }
        Some(address)
    }

    // Work

    /// Writes a piece of work on the list.
    pub fn push(&mut self, op: &'static str, work: Work) {
        if self.error.is_none() {
            self.queue.push(op, work);
        }
    }

    /// Writes a launch on the list; an empty grid is nothing to do.
    ///
    /// # Panics
    /// If the arguments are not what the kernel takes.
    pub fn launch(&mut self, op: &'static str, kernel: Kernel, shape: Shape, args: &[Arg]) {
        if self.error.is_some() || shape.grid.contains(&0) {
            return;
        }
        let shared = u32::try_from(shape.shared).expect("shared memory is kilobytes");
        let function = self.kernels.get(kernel.file, kernel.name, kernel.head, shared);
        let Some(function) = self.keep(function) else { return };
        let args = Args::new(kernel.name, &function.params, args);
        let function = function.handle as usize;
        let launch = Launch { function, grid: shape.grid, block: shape.block, shared, args };
        self.queue.push(op, Work::Kernel(Box::new(launch)));
    }

    /// Writes a product on the list; an empty one is nothing to do.
    pub fn product(&mut self, op: &'static str, product: Product) {
        let shape = product.shape;
        if self.error.is_some() || shape.m == 0 || shape.n == 0 || shape.k == 0 {
            return;
        }
        let planned = self.blas.plan(op, &shape);
        if self.keep(planned).is_some() {
            self.queue.push(op, Work::Product(product));
        }
    }

    /// Remembers that the launch on the list makes `out [len]`, the sum of these.
    pub fn note_residual(&mut self, out: &Buffer<f32>, len: usize, summands: [Arg; 2]) {
        self.residual = Some(Residual { list: self.queue.len(), sum: out.address(0), len, summands });
    }

    /// The summands of `x [len]`, if its launch is the last on the list, where it then is no longer.
    pub fn take_residual(&mut self, x: &Buffer<f32>, len: usize) -> Option<[Arg; 2]> {
        let Residual { list, sum, len: of, summands } = self.residual.take()?;
        let last = list > 0 && list == self.queue.len() && sum == x.address(0) && of == len;
        last.then(|| {
            self.queue.pop();
            summands
        })
    }

    /// `buffer[..len] = 0`.
    pub fn zero<T: bytemuck::Zeroable>(&mut self, op: &'static str, buffer: &Buffer<T>, len: usize) {
        assert!(len <= buffer.len(), "{op}: {len} elements of {}", buffer.len());
        if len > 0 {
            self.push(op, Work::Zero { to: buffer.address(0), bytes: len * size_of::<T>() });
        }
    }

    /// Gives the list to the device.
    pub fn flush(&mut self) {
        let list = self.flushes + 1;
        self.residual = None;
        let (ops, given) = self.queue.flush(&self.blas);
        self.since.extend(ops.into_iter().map(|op| (list, op)));
        if let Err((op, message)) = given {
            let error = error(self.device.name(), op, &message);
            self.fail(error);
        }
        for Readback { held, flag, from } in std::mem::take(&mut self.landing) {
            self.flying.extend(flag);
            let recorded = self.results.record(held.slot, self.device.stream);
            let recorded = self.device.check("results", recorded);
            self.keep(recorded);
            drop(from);
        }
        self.flushes = list;
    }

    /// Gives the list to the device, waits for it, and returns the first error since the last call.
    ///
    /// # Errors
    /// That error.
    pub fn wait(&mut self) -> Result<()> {
        self.flush();
        let waited = self.device.wait();
        self.done(waited, self.flushes);
        let flying = std::mem::take(&mut self.flying);
        self.failed(self.flushes)?;
        flying.into_iter().for_each(|landed| landed.store(true, Ordering::Release));
        Ok(())
    }

    /// Takes note of what the device says about the work up to list number `list`.
    fn done(&mut self, waited: Result<(), result::DriverError>, list: u64) {
        if let Err(e) = waited {
            let error = self.past(e);
            self.error.get_or_insert((list, error));
        }
        self.since.retain(|&(of, _)| of > list);
    }

    // Transfers

    /// The device's bytes at `address` `=` these, after the work written down so far.
    ///
    /// # Errors
    /// If the device fails.
    pub fn write(&mut self, op: &'static str, address: u64, bytes: &[u8]) -> Result<()> {
        self.flush();
        let stream = self.device.stream;
        self.feed(op, stream, address, bytes.len(), &mut |at, chunk| {
            chunk.copy_from_slice(&bytes[at..at + chunk.len()]);
        })
    }

    /// Fills `len` bytes at `address` on `stream`, from pinned memory that `fill` writes chunk by chunk, given the
    /// chunk's place.
    ///
    /// # Errors
    /// If the device fails.
    pub fn feed(
        &mut self,
        op: &'static str,
        stream: sys::CUstream,
        address: u64,
        len: usize,
        fill: &mut dyn FnMut(usize, &mut [u8]),
    ) -> Result<()> {
        self.device.bind();
        for at in (0..len).step_by(CHUNK) {
            let count = CHUNK.min(len - at);
            let slot =
                self.device.check(op, self.staging.take(count))?.expect("nobody holds a slot of the staging ring");
            let bytes = self.staging.bytes_mut(slot, count);
            fill(at, bytes);
            // SAFETY: the slot is pinned memory that stays untouched until the event below has passed; the address is
            // that of a live buffer with room for the bytes.
            let copied = unsafe { result::memcpy_htod_async(address + at as u64, bytes, stream) };
            self.device.check(op, copied)?;
            self.device.check(op, self.staging.record(slot, stream))?;
        }
        Ok(())
    }

    /// `bytes =` those at `address`, after all work.
    ///
    /// # Errors
    /// If the device fails, or has failed before.
    pub fn read(&mut self, op: &'static str, bytes: &mut [u8], address: u64) -> Result<()> {
        self.flush();
        self.failed(self.flushes)?;
        let mut at = 0;
        for chunk in bytes.chunks_mut(CHUNK) {
            let slot = self
                .device
                .check(op, self.staging.take(chunk.len()))?
                .expect("nobody holds a slot of the staging ring");
            let landed = self.staging.bytes_mut(slot, chunk.len());
            // SAFETY: the slot is pinned memory that nobody reads before the event below has passed.
            let copied = unsafe { result::memcpy_dtoh_async(landed, address + at, self.device.stream) };
            self.device.check(op, copied)?;
            self.device.check(op, self.staging.record(slot, self.device.stream))?;
            let waited = self.staging.wait(slot);
            self.done(waited, self.flushes);
            self.failed(self.flushes)?;
            chunk.copy_from_slice(self.staging.bytes_mut(slot, chunk.len()));
            at += chunk.len() as u64;
        }
        Ok(())
    }

    /// A slot of pinned memory in which `bytes` bytes will land with the list; none if the ring is full of what is held.
    ///
    /// # Errors
    /// If the device fails, or there is no memory to pin.
    fn slot(&mut self, op: &'static str, bytes: usize) -> Result<Option<Held>> {
        let slot = self.device.check(op, self.results.take(bytes))?;
        Ok(slot.map(|slot| self.results.hold(slot)))
    }

    /// Memory in which a capture of `bytes` bytes will land, the address to which the device writes it, and the flag that
    /// says when it is there; none if the ring is full of captures that are held. With `copied` the device writes to
    /// memory of its own, which is copied while it goes on; otherwise to that of the host.
    ///
    /// # Errors
    /// If the device fails, or there is no memory.
    pub fn landing(&mut self, bytes: usize, copied: bool) -> Result<Option<(Held, u64, Arc<AtomicBool>)>> {
        let Some(held) = self.slot("capture", bytes)? else { return Ok(None) };
        let from = if copied { Some(self.block("capture", bytes)?) } else { None };
        let to = from.as_ref().map_or(held.memory.address, |block| block.address);
        let flag = Arc::new(AtomicBool::new(false));
        self.landing.push(Readback { held: held.clone(), flag: Some(flag.clone()), from });
        Ok(Some((held, to, flag)))
    }

    /// Begins to move `len` wide elements at `address` to the host.
    ///
    /// # Errors
    /// If the device fails.
    pub fn begin_read(&mut self, op: &'static str, address: u64, len: usize) -> Result<PendingReadback> {
        let bytes = len * size_of::<f32>();
        let Some(held) = self.slot(op, bytes)? else {
            let mut values = vec![0.0; len];
            self.read(op, bytemuck::cast_slice_mut(&mut values), address)?;
            return Ok(PendingReadback::Ready(values));
        };
        if bytes > 0 {
            self.push(op, Work::Land { to: held.memory.host(), from: address, bytes, aside: false });
        }
        self.landing.push(Readback { held: held.clone(), flag: None, from: None });
        Ok(PendingReadback::Pending { held, len, list: self.flushes + 1 })
    }

    /// Waits for what [`Context::begin_read`] has begun.
    ///
    /// # Errors
    /// If the device fails, or has failed before.
    pub fn end_read(&mut self, arriving: PendingReadback) -> Result<Vec<f32>> {
        let (held, len, list) = match arriving {
            PendingReadback::Ready(values) => return Ok(values),
            PendingReadback::Pending { held, len, list } => (held, len, list),
        };
        if list > self.flushes {
            self.flush();
        }
        let waited = self.results.wait(held.slot);
        self.done(waited, list);
        self.failed(list)?;
        // SAFETY: the event after the copy has passed, and the slot is nobody else's while it is held.
        Ok(unsafe { held.memory.slice(len) }.to_vec())
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Pinned memory, graphs and modules go next: nothing may still be working on them.
        let _ = self.device.wait();
    }
}
