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
use super::pinned::{Pinned, Ring};
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

/// The state of a backend.
pub struct Context {
    /// The device.
    pub device: Arc<Device>,
    pool: Arc<Pool>,
    queue: Queue,
    kernels: Kernels,
    blas: Blas,
    staging: Ring,
    captures: Ring,
    /// Slots of captures that are written down and not yet given to the device, and their flags.
    landing: Vec<(usize, Arc<Pinned>, Arc<AtomicBool>)>,
    /// The flags of captures that the device is working on.
    flying: Vec<Arc<AtomicBool>>,
    error: Option<Error>,
    /// Operations given to the device since it was last waited for.
    since: Vec<&'static str>,
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
            queue: Queue::new(device.clone()),
            kernels: Kernels::new::<R>(device.clone(), settings),
            blas: Blas::new::<R>(device.clone(), settings, workspace)?,
            staging: Ring::new(device.clone(), STAGING),
            captures: Ring::new(device.clone(), settings.capture_bytes),
            landing: Vec::new(),
            flying: Vec::new(),
            error: None,
            since: Vec::new(),
            scratch: HashMap::new(),
            numbers: HashMap::new(),
            pool,
            device,
        })
    }

    /// Number of lists of work that went to the device as a graph.
    pub fn replays(&self) -> u64 {
        self.queue.replays()
    }

    /// Keeps the first error.
    pub fn fail(&mut self, error: Error) {
        self.queue.clear();
        self.error.get_or_insert(error);
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

    /// `buffer[..len] = 0`.
    pub fn zero<T: bytemuck::Zeroable>(&mut self, op: &'static str, buffer: &Buffer<T>, len: usize) {
        assert!(len <= buffer.len(), "{op}: {len} elements of {}", buffer.len());
        if len > 0 {
            self.push(op, Work::Zero { to: buffer.address(0), bytes: len * size_of::<T>() });
        }
    }

    /// Gives the list to the device.
    pub fn flush(&mut self) {
        match self.queue.flush(&self.blas) {
            Ok(ops) => self.since.extend(ops),
            Err((op, message)) => {
                let error = error(self.device.name(), op, &message);
                self.fail(error);
            }
        }
        for (slot, _, landed) in std::mem::take(&mut self.landing) {
            self.flying.push(landed);
            let recorded = self.captures.record(slot, self.device.stream);
            let recorded = self.device.check("capture", recorded);
            self.keep(recorded);
        }
    }

    /// Gives the list to the device, waits for it, and returns the first error since the last call.
    ///
    /// # Errors
    /// That error.
    pub fn wait(&mut self) -> Result<()> {
        self.flush();
        let waited = self.device.wait();
        self.done(waited);
        let flying = std::mem::take(&mut self.flying);
        self.error.take().map_or(Ok(()), Err)?;
        flying.into_iter().for_each(|landed| landed.store(true, Ordering::Release));
        Ok(())
    }

    /// Takes note of what the device says about the work since it was last waited for.
    fn done(&mut self, waited: Result<(), result::DriverError>) {
        let mut since = std::mem::take(&mut self.since);
        let Err(e) = waited else { return };
        since.sort_unstable();
        since.dedup();
        let what = match since.as_slice() {
            [op] => error(self.device.name(), op, &message(e)),
            _ => {
                let hint = "CUDA_LAUNCH_BLOCKING=1 names it";
                let message = format!("{}, in one of: {}; {hint}", message(e), since.join(", "));
                error(self.device.name(), "sync", &message)
            }
        };
        self.fail(what);
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
            let slot = self.staging.take(count)?.expect("nobody holds a slot of the staging ring");
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
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        let mut at = 0;
        for chunk in bytes.chunks_mut(CHUNK) {
            let slot = self.staging.take(chunk.len())?.expect("nobody holds a slot of the staging ring");
            let landed = self.staging.bytes_mut(slot, chunk.len());
            // SAFETY: the slot is pinned memory that nobody reads before the event below has passed.
            let copied = unsafe { result::memcpy_dtoh_async(landed, address + at, self.device.stream) };
            self.device.check(op, copied)?;
            self.device.check(op, self.staging.record(slot, self.device.stream))?;
            let waited = self.staging.wait(slot);
            self.done(waited);
            if let Some(error) = self.error.take() {
                return Err(error);
            }
            chunk.copy_from_slice(self.staging.bytes_mut(slot, chunk.len()));
            at += chunk.len() as u64;
        }
        Ok(())
    }

    /// Memory in which a capture of `bytes` bytes will land, and the flag that says when; none if the ring is full of
    /// captures that are held.
    ///
    /// # Errors
    /// If the device fails, or there is no memory to pin.
    pub fn landing(&mut self, bytes: usize) -> Result<Option<(Arc<Pinned>, Arc<AtomicBool>)>> {
        let Some(slot) = self.captures.take(bytes)? else { return Ok(None) };
        let landed = Arc::new(AtomicBool::new(false));
        let memory = self.captures.memory(slot).clone();
        self.landing.push((slot, memory.clone(), landed.clone()));
        Ok(Some((memory, landed)))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Pinned memory, graphs and modules go next: nothing may still be working on them.
        let _ = self.device.wait();
    }
}
