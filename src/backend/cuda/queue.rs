//! Commands that are queued first and submitted later, so that what repeats goes to the device as one graph.
//!
//! Operations append to the command list. Whatever needs their results, or puts new values where they read, submits the
//! list. A list seen for the first time goes to the stream command by command; the same list seen again (every kernel,
//! shape, address and value the same) is recorded as a CUDA graph, and from then on is one launch. Values that change from
//! step to step lie in device memory, so they do not make a list another one. Downloads go to the host's memory wherever there is some
//! free: they are no part of a list, but divide it.
//!
//! Where it is asked for ([`Settings::pdl`]), a kernel of a list that directly follows another may be launched while
//! that one still runs (programmatic dependent launch, in a graph an edge of that kind). It waits by itself, and so do all that are
//! launched so (`begin_kernel` of `kernels/prelude.cuh`): the end of one is the end of all before it. What is no kernel of ours waits
//! and is waited for as always.

use std::collections::HashMap;
use std::ffi::c_void;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::ptr::null_mut;
use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaGraph, result, sys};

use super::blas::Blas;
use super::driver::{Device, message};
use super::gemm::Gemm;
use super::launch::Args;
use super::memory::DevicePtr;
use super::settings::Settings;
use super::timeline::Timeline;
use crate::backend::ops::Op;

/// Shorter lists are not worth a graph.
const SHORTEST: usize = 4;
/// Lists that are remembered; above it the one that was not seen for the longest time is forgotten.
const REMEMBERED: usize = 64;
/// Commands of all lists that are remembered: those of some hundred steps of a model of 32 layers.
const REMEMBERED_COMMANDS: usize = 1 << 18;

/// A launch, as it is put into a graph or given to the driver.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Launch {
    /// The driver's handle of the kernel.
    pub function: usize,
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// Values of all parameters, in order.
    pub args: Args,
}

/// What the device is to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// One of our own kernels.
    Kernel(Box<Launch>),
    /// A dense product by cuBLASLt.
    Gemm(Gemm),
    /// `bytes` zero bytes at `to`.
    Zero {
        /// The first of them.
        to: DevicePtr,
        /// At least 1.
        bytes: usize,
    },
    /// `bytes` bytes from one place of the device to another that does not overlap it.
    Copy {
        /// Where they are written.
        to: DevicePtr,
        /// Where they are read.
        from: DevicePtr,
        /// At least 1.
        bytes: usize,
    },
    /// `bytes` bytes of the device to pinned memory of the host.
    Readback {
        /// Address on the host.
        to: usize,
        /// Where they are read.
        from: DevicePtr,
        /// At least 1.
        bytes: usize,
        /// Whether the copy may go on beside the commands after it, which then leave what is copied alone until the list
        /// is at its end.
        on_copy_stream: bool,
    },
}

impl Action {
    /// Asserts that all addresses are of `device`; those of a launch are looked at where its arguments are made.
    #[track_caller]
    pub fn assert_on(&self, op: &'static str, device: &Device) {
        match self {
            Self::Kernel(_) => {}
            Self::Gemm(gemm) => gemm.assert_on(op, device),
            Self::Zero { to: ptr, .. } | Self::Readback { from: ptr, .. } => {
                ptr.on(op, device);
            }
            Self::Copy { to, from, .. } => {
                to.on(op, device);
                from.on(op, device);
            }
        }
    }
}

/// An action and the operation that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Command {
    /// The operation of the contract, which errors name.
    pub op: &'static str,
    /// What is to be done.
    pub action: Action,
}

impl Command {
    /// Whether it writes to the host wherever there is room.
    fn is_download(&self) -> bool {
        matches!(self.action, Action::Readback { on_copy_stream: false, .. })
    }
}

/// Command lists that are long enough to be repeated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replays {
    /// How many there were.
    pub lists: u64,
    /// How many of them went to the device as one graph.
    pub replayed: u64,
    /// How many are remembered.
    pub remembered: usize,
}

/// A command that could not be submitted.
#[derive(Debug)]
pub struct LaunchError {
    /// The operation of the contract, which errors name.
    pub op: &'static str,
    /// The driver's or the library's words.
    pub message: String,
}

impl LaunchError {
    fn new(op: &'static str, e: result::DriverError) -> Self {
        Self { op, message: message(e) }
    }
}

/// A list that may come again.
struct RepeatedList {
    commands: Vec<Command>,
    graph: Option<Graph>,
    /// Number of the submission that it came with last.
    last_used: u64,
}

/// What one submission brought.
pub struct Submitted {
    /// The operations, neighbours that are the same once.
    pub ops: Vec<&'static str>,
    /// The first command that could not be submitted; those after it were not.
    pub outcome: Result<(), LaunchError>,
}

/// The command list, and the graphs of repeated lists.
pub struct Queue {
    device: Arc<Device>,
    fork: CopyFork,
    /// Never recorded: it only asks.
    probe: CudaEvent,
    blocking: bool,
    /// Whether kernels wait by themselves for the kernel before.
    pdl: bool,
    commands: Vec<Command>,
    repeated: HashMap<u64, RepeatedList>,
    submissions: u64,
    replays: Replays,
    /// What is recorded of it; then there are no graphs.
    timeline: Option<Timeline>,
}

impl Queue {
    /// An empty list. Settings that are `blocking` wait after each command and make no graphs, so that a failure has a name.
    ///
    /// # Errors
    /// If the device fails.
    pub fn new(device: Arc<Device>, settings: &Settings) -> Result<Self, result::DriverError> {
        let fork = CopyFork { fork: device.new_event()?, join: device.new_event()? };
        let probe = device.new_event()?;
        let (commands, repeated) = (Vec::new(), HashMap::new());
        let replays = Replays::default();
        let (blocking, pdl) = (settings.blocking, settings.pdl_on(&device));
        Ok(Self { device, fork, probe, blocking, pdl, commands, repeated, submissions: 0, replays, timeline: None })
    }

    /// The error that earlier commands have left the device with.
    pub fn sticky_error(&self) -> Option<result::DriverError> {
        self.device.sticky_error(&self.probe)
    }

    /// Appends a command.
    ///
    /// # Panics
    /// If it works on memory of another device.
    #[track_caller]
    pub fn push(&mut self, op: &'static str, action: Action) {
        action.assert_on(op, &self.device);
        self.commands.push(Command { op, action });
    }

    /// Records from now on when the device works at what.
    pub fn record(&mut self, timeline: Timeline) {
        self.timeline = Some(timeline);
    }

    /// Notes that an operation begins.
    #[inline]
    pub fn mark<O: Op>(&mut self, op: &O) {
        if let Some(timeline) = &mut self.timeline {
            timeline.mark(op, self.commands.len());
        }
    }

    /// Reads the times of what was recorded, for which it waits.
    pub fn collect(&mut self) {
        self.timeline.iter_mut().for_each(Timeline::collect);
    }

    /// How many lists there were, and how many of them went to the device as a graph.
    pub fn replays(&self) -> Replays {
        Replays { remembered: self.repeated.len(), ..self.replays }
    }

    /// Number of commands on the list.
    pub fn len(&self) -> usize {
        self.commands.len()
    }

    /// Notes that the commands of the operation that has just begun come later.
    pub fn defer(&mut self) {
        self.timeline.iter_mut().for_each(Timeline::defer);
    }

    /// Notes that the commands of what was deferred are those from `first` on; if `fused`, also those of the operation that has
    /// just begun.
    pub fn place_deferred(&mut self, first: usize, fused: bool) {
        if let Some(timeline) = &mut self.timeline {
            // What they need may have submitted what was on the list before.
            let first = if first > self.commands.len() { 0 } else { first };
            let commands = &self.commands[first..];
            timeline.place_deferred(first, fused, &commands.iter().map(|command| command.op).collect::<Vec<_>>());
        }
    }

    /// Drops the commands on the list.
    pub fn clear(&mut self) {
        self.commands.clear();
        self.timeline.iter_mut().for_each(Timeline::clear);
    }

    /// Gives the list to the device, alone or as a graph that it already has.
    pub fn submit(&mut self, blas: &Blas) -> Submitted {
        if self.commands.is_empty() {
            return Submitted { ops: Vec::new(), outcome: Ok(()) };
        }
        self.submissions += 1;
        let commands = std::mem::take(&mut self.commands);
        let mut ops: Vec<&'static str> = commands.iter().map(|command| command.op).collect();
        ops.dedup();
        let bound = self.device.bind().map_err(|e| LaunchError::new(ops[0], e));
        let outcome = bound.and_then(|()| self.submit_list(commands, blas));
        Submitted { ops, outcome }
    }

    fn submit_list(&mut self, commands: Vec<Command>, blas: &Blas) -> Result<(), LaunchError> {
        let issuer = Issuer { device: &self.device, fork: &self.fork, blas, pdl: self.pdl };
        if let Some(timeline) = &mut self.timeline {
            let (ops, blocking) = (commands.iter().map(|command| command.op).collect::<Vec<_>>(), self.blocking);
            let submit = |range: Range<usize>| {
                let last = ops[range.end - 1];
                issuer.issue(&commands[range])?;
                let waited = if blocking { self.device.synchronize() } else { Ok(()) };
                waited.map_err(|e| LaunchError::new(last, e))
            };
            return timeline.issue(&ops, submit, LaunchError::new);
        }
        if self.blocking {
            for command in &commands {
                issuer.issue(std::slice::from_ref(command))?;
                self.device.synchronize().map_err(|e| LaunchError::new(command.op, e))?;
            }
            return Ok(());
        }
        commands.chunk_by(|a, b| a.is_download() == b.is_download()).try_for_each(|list| self.submit_part(list, blas))
    }

    fn submit_part(&mut self, commands: &[Command], blas: &Blas) -> Result<(), LaunchError> {
        let issuer = Issuer { device: &self.device, fork: &self.fork, blas, pdl: self.pdl };
        if commands.len() < SHORTEST {
            return issuer.issue(commands);
        }
        self.replays.lists += 1;
        let mut hasher = DefaultHasher::new();
        commands.hash(&mut hasher);
        let key = hasher.finish();
        match self.repeated.get_mut(&key).filter(|known| known.commands == commands) {
            Some(known) => {
                known.last_used = self.submissions;
                if known.graph.is_none() {
                    known.graph = Some(Graph::record(&issuer, commands)?);
                }
                let graph = known.graph.as_ref().expect("made above");
                graph.0.launch().map_err(|e| LaunchError::new(commands[0].op, e))?;
                self.replays.replayed += 1;
            }
            None => {
                issuer.issue(commands)?;
                self.make_room(commands.len());
                let list = RepeatedList { commands: commands.to_vec(), graph: None, last_used: self.submissions };
                self.repeated.insert(key, list);
            }
        }
        Ok(())
    }

    /// Forgets the lists that were not seen for the longest time, until one more of so many commands can be remembered.
    fn make_room(&mut self, commands: usize) {
        let mut total = commands + self.repeated.values().map(|known| known.commands.len()).sum::<usize>();
        while self.repeated.len() >= REMEMBERED || total > REMEMBERED_COMMANDS {
            let oldest = self.repeated.iter().min_by_key(|(_, known)| known.last_used).map(|(&key, _)| key);
            let Some(forgotten) = oldest.and_then(|key| self.repeated.remove(&key)) else { return };
            total -= forgotten.commands.len();
        }
    }
}

/// Where the copy stream leaves the stream of work, and where it comes back.
struct CopyFork {
    fork: CudaEvent,
    join: CudaEvent,
}

/// Puts commands on the stream, whose context is current.
struct Issuer<'a> {
    device: &'a Device,
    fork: &'a CopyFork,
    blas: &'a Blas,
    pdl: bool,
}

impl Issuer<'_> {
    /// The commands in order. The copy stream comes back on every path: the memory of what it copies is reused in the
    /// order of the stream of work.
    fn issue(&self, commands: &[Command]) -> Result<(), LaunchError> {
        let mut forked = None;
        let mut issued = Ok(());
        let mut early = false;
        for Command { op, action } in commands {
            if matches!(action, Action::Readback { on_copy_stream: true, .. }) {
                forked = Some(*op);
            }
            issued = self.action(action, early).map_err(|message| LaunchError { op, message });
            early = self.pdl && matches!(action, Action::Kernel(_));
            if issued.is_err() {
                break;
            }
        }
        let joined = forked.map_or(Ok(()), |op| {
            let joined = self.fork.join.record(self.device.copy_stream());
            let joined = joined.and_then(|()| self.device.stream().wait(&self.fork.join));
            joined.map_err(|e| LaunchError::new(op, e))
        });
        issued.and(joined)
    }

    /// Puts one on the stream; a kernel may start `early`, before the kernel before it has ended.
    fn action(&self, action: &Action, early: bool) -> Result<(), String> {
        let stream = self.device.stream().cu_stream();
        match action {
            Action::Kernel(launch) => {
                let Launch { function, grid: [x, y, z], block, shared, ref args } = **launch;
                let function = function as sys::CUfunction;
                let mut args = args.encode().map_err(message)?;
                let mut addresses = args.addresses();
                // SAFETY: the function's module is unloaded after the queue; the arguments are those that the kernel's
                // text asks for (`Args::new`), and their addresses those of live buffers of this device of the sizes that
                // the operations have asserted, whose memory is reused in stream order only. A kernel that starts early was
                // built to wait for the one before it (`compile.rs`), and so was that one.
                unsafe {
                    if early {
                        launch_early(function, [x, y, z], block, shared, stream, &mut addresses)
                    } else {
                        result::launch_kernel(function, (x, y, z), (block, 1, 1), shared, stream, &mut addresses)
                    }
                }
                .map_err(message)
            }
            Action::Gemm(gemm) => self.blas.run(gemm),
            Action::Zero { to, bytes } => {
                // SAFETY: as for a kernel.
                unsafe { result::memset_d8_async(to.address(), 0, *bytes, stream) }.map_err(message)
            }
            Action::Copy { to, from, bytes } => {
                // SAFETY: as for a kernel.
                unsafe { result::memcpy_dtod_async(to.address(), from.address(), *bytes, stream) }.map_err(message)
            }
            Action::Readback { to, from, bytes, on_copy_stream: false } => {
                self.read_back((*to, *bytes), *from, stream).map_err(message)
            }
            Action::Readback { to, from, bytes, on_copy_stream: true } => {
                let copies = self.device.copy_stream();
                let forked = self.fork.fork.record(self.device.stream()).and_then(|()| copies.wait(&self.fork.fork));
                forked.and_then(|()| self.read_back((*to, *bytes), *from, copies.cu_stream())).map_err(message)
            }
        }
    }

    fn read_back(
        &self,
        (to, bytes): (usize, usize),
        from: DevicePtr,
        stream: sys::CUstream,
    ) -> Result<(), result::DriverError> {
        // SAFETY: `to` is a slot of pinned memory of at least `bytes` bytes that is held, and that nobody reads or writes
        // until its event has passed; `from` is as for a kernel.
        unsafe {
            let to = std::slice::from_raw_parts_mut(to as *mut u8, bytes);
            result::memcpy_dtoh_async(to, from.address(), stream)
        }
    }
}

/// [`result::launch_kernel`] of a kernel that may start before the end of the kernel before it.
///
/// # Safety
/// As for that; and the kernel waits by itself for the one before.
unsafe fn launch_early(
    function: sys::CUfunction,
    [x, y, z]: [u32; 3],
    block: u32,
    shared: u32,
    stream: sys::CUstream,
    args: &mut [*mut c_void],
) -> Result<(), result::DriverError> {
    let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
    value.programmaticStreamSerializationAllowed = 1;
    let id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    let mut attribute = sys::CUlaunchAttribute { id, pad: [0; 4], value };
    let config = sys::CUlaunchConfig {
        gridDimX: x,
        gridDimY: y,
        gridDimZ: z,
        blockDimX: block,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: shared,
        hStream: stream,
        attrs: &raw mut attribute,
        numAttrs: 1,
    };
    // SAFETY: as for the caller; the driver reads configuration and attribute before it returns.
    unsafe { sys::cuLaunchKernelEx(&raw const config, function, args.as_mut_ptr(), null_mut()) }.result()
}

/// A command list as the device keeps it.
struct Graph(CudaGraph);

// SAFETY: a graph is an object of the driver that one thread may use at a time: it is launched through `&mut Queue` and
// dropped with it.
unsafe impl Send for Graph {}

impl Graph {
    fn record(issuer: &Issuer<'_>, commands: &[Command]) -> Result<Self, LaunchError> {
        let op = commands[0].op;
        let stream = issuer.device.stream();
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).map_err(|e| LaunchError::new(op, e))?;
        let issued = issuer.issue(commands);
        // Recording ends on every path.
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags_enum(0));
        issued?;
        let graph = graph.map_err(|e| LaunchError::new(op, e))?;
        graph.map(Self).ok_or_else(|| LaunchError { op, message: "the driver recorded no graph".to_owned() })
    }
}
