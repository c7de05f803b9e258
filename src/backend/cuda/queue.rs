//! Work that is written down first and given to the device later, so that what repeats goes there as one graph.
//!
//! Operations append to a list. Whatever needs their results, or puts new values where they read, flushes the list. A
//! list seen for the first time goes to the stream piece by piece; the same list seen again (every kernel, shape,
//! address and number the same) is recorded as a CUDA graph, and from then on is one launch. Numbers that change from
//! step to step lie in device memory, so they do not make a list another one.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::blas::{Blas, Product};
use super::driver::{Device, Event, message};
use super::launch::Args;

/// Shorter lists are not worth a graph.
const SHORTEST: usize = 4;
/// Lists that are remembered.
const REMEMBERED: usize = 64;

/// A kernel launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Launch {
    /// The driver's handle of the kernel.
    pub function: usize,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// Arguments.
    pub args: Args,
}

/// One piece of work.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Work {
    /// A kernel.
    Kernel(Box<Launch>),
    /// A dense product.
    Product(Product),
    /// `bytes` zero bytes at `to`.
    Zero {
        /// Address.
        to: u64,
        /// How many.
        bytes: usize,
    },
    /// `bytes` bytes from one place of the device to another that does not overlap it.
    Copy {
        /// Address.
        to: u64,
        /// Address.
        from: u64,
        /// How many.
        bytes: usize,
    },
    /// `bytes` bytes of the device to pinned memory of the host.
    Land {
        /// Address on the host.
        to: usize,
        /// Address.
        from: u64,
        /// How many.
        bytes: usize,
        /// Whether the copy may go on beside the work after it, which then leaves what is copied alone until the list
        /// is at its end.
        aside: bool,
    },
}

/// A piece of work and the operation that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Command {
    /// The operation.
    pub op: &'static str,
    /// The work.
    pub work: Work,
}

/// An operation that the device refused, and why.
pub type Refusal = (&'static str, String);

struct Remembered {
    commands: Vec<Command>,
    graph: Option<Graph>,
    last_used: u64,
}

/// The list, and the graphs of lists that came again.
pub struct Queue {
    device: Arc<Device>,
    aside: Aside,
    /// Never recorded: it only asks.
    probe: Event,
    blocking: bool,
    commands: Vec<Command>,
    graphs: HashMap<u64, Remembered>,
    flushes: u64,
    replays: u64,
}

impl Queue {
    /// An empty list. `blocking` waits after each piece of work and makes no graphs, so that a failure has a name.
    ///
    /// # Errors
    /// If the device fails.
    pub fn new(device: Arc<Device>, blocking: bool) -> Result<Self, result::DriverError> {
        let aside = Aside { fork: Event::new(&device)?, join: Event::new(&device)? };
        let probe = Event::new(&device)?;
        let (commands, graphs) = (Vec::new(), HashMap::new());
        Ok(Self { device, aside, probe, blocking, commands, graphs, flushes: 0, replays: 0 })
    }

    /// The error that some work of the past has left the device with.
    pub fn lost(&self) -> Option<result::DriverError> {
        self.probe.lost()
    }

    /// Appends a piece of work.
    pub fn push(&mut self, op: &'static str, work: Work) {
        self.commands.push(Command { op, work });
    }

    /// Number of lists that went to the device as a graph.
    pub fn replays(&self) -> u64 {
        self.replays
    }

    /// Pieces of work on the list.
    pub fn len(&self) -> usize {
        self.commands.len()
    }

    /// Takes the last piece of work off the list.
    pub fn pop(&mut self) {
        self.commands.pop();
    }

    /// Forgets what is on the list.
    pub fn clear(&mut self) {
        self.commands.clear();
    }

    /// Gives everything on the list to the stream; returns the operations' names, and the first operation that was
    /// refused, and why.
    pub fn flush(&mut self, blas: &Blas) -> (Vec<&'static str>, Result<(), Refusal>) {
        if self.commands.is_empty() {
            return (Vec::new(), Ok(()));
        }
        self.device.bind();
        self.flushes += 1;
        let commands = std::mem::take(&mut self.commands);
        let mut ops: Vec<&'static str> = commands.iter().map(|command| command.op).collect();
        ops.dedup();
        (ops, self.give(commands, blas))
    }

    fn give(&mut self, commands: Vec<Command>, blas: &Blas) -> Result<(), Refusal> {
        if self.blocking {
            for command in &commands {
                issue(&self.device, &self.aside, blas, std::slice::from_ref(command))?;
                self.device.wait().map_err(|e| (command.op, message(e)))?;
            }
            return Ok(());
        }
        if commands.len() < SHORTEST {
            return issue(&self.device, &self.aside, blas, &commands);
        }
        let mut hasher = DefaultHasher::new();
        commands.hash(&mut hasher);
        let key = hasher.finish();
        let now = self.flushes;
        match self.graphs.get_mut(&key).filter(|known| known.commands == commands) {
            Some(known) => {
                known.last_used = now;
                if known.graph.is_none() {
                    known.graph = Some(Graph::record(&self.device, &self.aside, blas, &commands)?);
                }
                known.graph.as_ref().expect("made above").launch().map_err(|e| (commands[0].op, message(e)))?;
                self.replays += 1;
            }
            None => {
                issue(&self.device, &self.aside, blas, &commands)?;
                if self.graphs.len() >= REMEMBERED {
                    let oldest = self.graphs.iter().min_by_key(|(_, known)| known.last_used).map(|(&key, _)| key);
                    oldest.and_then(|key| self.graphs.remove(&key));
                }
                self.graphs.insert(key, Remembered { commands, graph: None, last_used: now });
            }
        }
        Ok(())
    }
}

/// Where the stream of copies leaves the stream of work, and where it comes back.
struct Aside {
    fork: Event,
    join: Event,
}

/// Gives each piece of work to the stream.
fn issue(device: &Device, aside: &Aside, blas: &Blas, commands: &[Command]) -> Result<(), Refusal> {
    let mut last = None;
    for Command { op, work } in commands {
        let stream = device.stream;
        // SAFETY: kernels get the arguments that their text asks for (`Args::new`), addresses are those of live buffers
        // of the sizes that the operations have asserted, and memory is reused in stream order only; the places where
        // copies land are slots that stay untouched until their events have passed.
        let done = unsafe {
            match work {
                Work::Kernel(launch) => {
                    let [x, y, z] = launch.grid;
                    let mut args = launch.args;
                    let function = launch.function as sys::CUfunction;
                    let mut addresses = args.addresses();
                    let block = (launch.block, 1, 1);
                    result::launch_kernel(function, (x, y, z), block, launch.shared, stream, &mut addresses)
                        .map_err(message)
                }
                Work::Product(product) => blas.run(product),
                Work::Zero { to, bytes } => result::memset_d8_async(*to, 0, *bytes, stream).map_err(message),
                Work::Copy { to, from, bytes } => {
                    result::memcpy_dtod_async(*to, *from, *bytes, stream).map_err(message)
                }
                Work::Land { to, from, bytes, aside: beside } => {
                    let to = std::slice::from_raw_parts_mut(*to as *mut u8, *bytes);
                    let copies = if *beside { device.copies } else { stream };
                    let mut ready = Ok(());
                    if *beside {
                        last = Some(*op);
                        ready = aside.fork.record(stream).and_then(|()| aside.fork.block(copies));
                    }
                    ready.and_then(|()| result::memcpy_dtoh_async(to, *from, copies)).map_err(message)
                }
            }
        };
        done.map_err(|message| (*op, message))?;
    }
    if let Some(op) = last {
        let joined = aside.join.record(device.copies).and_then(|()| aside.join.block(device.stream));
        joined.map_err(|e| (op, message(e)))?;
    }
    Ok(())
}

/// A list as the device keeps it.
struct Graph {
    device: Arc<Device>,
    exec: sys::CUgraphExec,
}

// SAFETY: a graph is an object of the driver, used by one thread at a time.
unsafe impl Send for Graph {}

impl Graph {
    fn record(device: &Arc<Device>, aside: &Aside, blas: &Blas, commands: &[Command]) -> Result<Self, Refusal> {
        let op = commands[0].op;
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let fail = |e| (op, message(e));
        // SAFETY: the stream is the device's own and not the legacy one; recording ends on every path.
        unsafe { result::stream::begin_capture(device.stream, mode) }.map_err(fail)?;
        let issued = issue(device, aside, blas, commands);
        // SAFETY: as above; the recorded graph is destroyed once, after what is made of it.
        let exec = unsafe {
            let graph = result::stream::end_capture(device.stream);
            issued?;
            let graph = graph.map_err(fail)?;
            let exec = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags_enum(0));
            let _ = result::graph::destroy(graph);
            exec.map_err(fail)?
        };
        Ok(Self { device: device.clone(), exec })
    }

    fn launch(&self) -> Result<(), result::DriverError> {
        // SAFETY: the graph and the stream exist.
        unsafe { result::graph::launch(self.exec, self.device.stream) }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.device.bind();
        // SAFETY: the graph is this value's own; the driver keeps it until it has completed.
        let _ = unsafe { result::graph::exec_destroy(self.exec) };
    }
}
