//! When the device worked at each operation: two events of the stream of work around its commands.
//!
//! The inside of a graph has no events that could be read, so commands go to the stream one by one while it is recorded:
//! steps so short that launches have gaps between them have them in the profile too.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaEvent, result};

use super::driver::Device;
use crate::backend::ops::Op;
use crate::backend::profile::{Recorder, Span};

/// Operations whose events are not read yet, at most: a driver has many events, but not any number.
const PENDING: usize = 1 << 12;

/// An operation on the command list.
#[derive(Clone, Copy)]
struct Mark {
    /// Its first command, unless it has none.
    first: usize,
    span: Span,
}

/// An operation that was submitted.
struct Timed {
    span: Span,
    start: CudaEvent,
    end: CudaEvent,
}

/// What is recorded of a device.
pub struct Timeline {
    recorder: Recorder,
    device: Arc<Device>,
    element_sizes: (usize, usize),
    marks: Vec<Mark>,
    deferred: Vec<Mark>,
    pending: Vec<Timed>,
    /// The last event that was read, and the recorder's nanoseconds of it.
    last: (CudaEvent, u64),
}

impl Timeline {
    /// Of a device with elements of these sizes.
    ///
    /// # Errors
    /// Of the driver.
    pub fn new(
        device: Arc<Device>,
        recorder: Recorder,
        element_sizes: (usize, usize),
    ) -> Result<Self, result::DriverError> {
        // The clocks are compared where the device has nothing to do.
        device.synchronize()?;
        let origin = device.new_timed_event()?;
        origin.record(device.stream())?;
        origin.synchronize()?;
        let last = (origin, recorder.now());
        Ok(Self { recorder, device, element_sizes, marks: Vec::new(), deferred: Vec::new(), pending: Vec::new(), last })
    }

    /// Notes that an operation begins, whose first command will be number `first` of the list.
    pub fn mark<O: Op>(&mut self, op: &O, first: usize) {
        let work = op.work();
        let bytes = work.bytes(self.element_sizes);
        self.marks.push(Mark { first, span: Span { op: O::NAME, start: 0, nanos: 0, flops: work.flops, bytes } });
    }

    /// Notes that the commands of the operation that has just begun come later.
    pub fn defer(&mut self) {
        self.deferred.extend(self.marks.pop());
    }

    /// Notes that the commands of what was deferred are those from `first` on, of these operations; if `fused`, also those of the
    /// operation that has begun since, and else that they come before its own. The work of an operation without a command counts
    /// as that of the last.
    pub fn place_deferred(&mut self, first: usize, fused: bool, ops: &[&'static str]) {
        let begun = self.marks.pop_if(|mark| mark.first == first);
        let place = |mark: &Mark| ops.iter().position(|op| *op == mark.span.op).unwrap_or(ops.len().saturating_sub(1));
        let (fused, begun) = if fused { (begun, None) } else { (None, begun) };
        let deferred = self.deferred.drain(..).chain(fused);
        let mut deferred: Vec<Mark> = deferred.map(|mark| Mark { first: first + place(&mark), ..mark }).collect();
        deferred.sort_by_key(|mark| mark.first);
        self.marks.extend(deferred);
        self.marks.extend(begun.map(|mark| Mark { first: first + ops.len(), ..mark }));
    }

    /// Submits a list, of whose commands these are the operations' names, by `submit`, which is given some of them at a time;
    /// `failed` says what the driver has refused. An operation ends where the next begins. One without a command was nothing
    /// to do, or is done by the next: its work counts as that one's.
    ///
    /// # Errors
    /// The first.
    pub fn issue<E>(
        &mut self,
        commands: &[&'static str],
        submit: impl Fn(Range<usize>) -> Result<(), E>,
        failed: impl Fn(&'static str, result::DriverError) -> E,
    ) -> Result<(), E> {
        let mut marks = std::mem::take(&mut self.marks).into_iter().peekable();
        let mut at = 0;
        while at < commands.len() {
            let op = commands[at];
            let mut span = Span { op, start: 0, nanos: 0, flops: 0, bytes: 0 };
            while let Some(mark) = marks.next_if(|mark| mark.first <= at) {
                span.flops += mark.span.flops;
                span.bytes += mark.span.bytes;
            }
            // Commands of another name, such as readbacks, come between the operations.
            let next = marks.peek().map_or(commands.len(), |mark| mark.first.min(commands.len()));
            let end = at + commands[at..next].iter().take_while(|command| **command == op).count();
            let start = self.event().map_err(|e| failed(op, e))?;
            submit(at..end)?;
            let end_event = self.event().map_err(|e| failed(op, e))?;
            self.pending.push(Timed { span, start, end: end_event });
            at = end;
        }
        // An operation may submit what is before it, and only then begin.
        self.marks.extend(marks.map(|mark| Mark { first: 0, ..mark }));
        if self.pending.len() >= PENDING {
            self.collect();
        }
        Ok(())
    }

    /// An event that the stream of work is past when it is past what it has been given.
    fn event(&self) -> Result<CudaEvent, result::DriverError> {
        let event = self.device.new_timed_event()?;
        event.record(self.device.stream())?;
        Ok(event)
    }

    /// Drops what is marked and not submitted.
    pub fn clear(&mut self) {
        self.marks.clear();
        self.deferred.clear();
    }

    /// Reads the times of what was submitted, for which it waits. A device that fails has none.
    pub fn collect(&mut self) {
        for Timed { span, start, end } in self.pending.drain(..) {
            let times = (self.last.0.elapsed_ms(&start)).and_then(|before| Ok((before, start.elapsed_ms(&end)?)));
            let Ok((before, took)) = times else { continue };
            let nanos = |ms: f32| (f64::from(ms).max(0.0) * 1e6).round() as u64;
            let span = Span { start: self.last.1 + nanos(before), nanos: nanos(took), ..span };
            self.last = (end, span.start + span.nanos);
            self.recorder.add(span);
        }
    }
}
