//! What a device did and when: one span for every operation, and for every thread the time that it worked.
//!
//! A device records for whoever gave it a [`Recorder`] when it was opened. One that has none asks a single time an operation whether
//! it has, and computes the work of none.
//!
//! The CPU's spans are by the host's clock. A GPU's lie between two events of its stream, so that they are what the device
//! took, and its commands go to it one by one, since the inside of a graph has no events; what is in the list between two
//! operations (captures, downloads) is a span of its own name without work.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::op::{Op, Work};

/// Spans, and stretches of all threads together, that are kept one by one; the totals go on.
pub const MOST: usize = 1 << 20;

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its name.
    pub op: &'static str,
    /// Nanoseconds from the recorder's first to its beginning.
    pub start: u64,
    /// How many it took.
    pub nanos: u64,
    /// Floating-point operations of its products.
    pub flops: u64,
    /// Bytes that it must read and write at least ([`Work`]).
    pub bytes: u64,
}

/// A stretch of time that a thread worked for an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy {
    /// The thread's number; the calling one is 0.
    pub thread: usize,
    /// Nanoseconds from the recorder's first to its beginning.
    pub start: u64,
    /// How many it took.
    pub nanos: u64,
}

/// All spans of an operation together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// How many there are.
    pub calls: u64,
    /// Nanoseconds.
    pub nanos: u64,
    /// Floating-point operations of products.
    pub flops: u64,
    /// Bytes that must be read and written.
    pub bytes: u64,
}

impl Total {
    fn add(&mut self, span: &Span) {
        self.calls += 1;
        self.nanos += span.nanos;
        self.flops += span.flops;
        self.bytes += span.bytes;
    }
}

/// The most that a device can do, as it was measured on this machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceiling {
    /// Floating-point operations a second, in products of the compute dtype on operands in registers.
    pub flops: f64,
    /// Bytes a second, read from memory or copied, whichever is more.
    pub bytes: f64,
}

/// What was recorded.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// The operations in order, of which [`MOST`] at most.
    pub spans: Vec<Span>,
    /// The threads' stretches, each thread's in order, of which [`MOST`] at most.
    pub busy: Vec<Busy>,
    /// All operations by name, those beyond the kept ones too.
    pub totals: BTreeMap<&'static str, Total>,
    /// From the beginning of the first operation.
    pub first: u64,
    /// To the end of the last, in nanoseconds.
    pub end: u64,
    /// Spans and stretches that were not kept.
    pub left_out: u64,
    /// What the device could do at best; none where nobody measured it.
    pub ceiling: Option<Ceiling>,
    /// By which algorithm products of each shape are computed, and why by that one, where a library has several.
    pub algorithms: BTreeMap<String, String>,
}

impl Profile {
    fn add(&mut self, span: Span) {
        if self.totals.is_empty() {
            self.first = span.start;
        }
        self.end = self.end.max(span.start + span.nanos);
        self.totals.entry(span.op).or_default().add(&span);
        if self.spans.len() < MOST { self.spans.push(span) } else { self.left_out += 1 }
    }

    fn add_busy(&mut self, busy: Busy) {
        if self.busy.len() < MOST { self.busy.push(busy) } else { self.left_out += 1 }
    }

    /// Threads that worked for each span, and their nanoseconds together; 0 of both where no stretch says.
    pub fn threads(&self) -> Vec<(u32, u64)> {
        let mut found = vec![(0, 0); self.spans.len()];
        let mut last: Vec<Option<usize>> = Vec::new();
        for busy in &self.busy {
            let behind = self.spans.partition_point(|span| span.start <= busy.start);
            let Some(at) = behind.checked_sub(1) else { continue };
            last.resize(last.len().max(busy.thread + 1), None);
            let (threads, nanos) = &mut found[at];
            *threads += u32::from(last[busy.thread].replace(at) != Some(at));
            *nanos += busy.nanos;
        }
        found
    }
}

/// Where a device records; clones are the same.
#[derive(Clone, Debug)]
pub struct Recorder(Arc<Recording>);

#[derive(Debug)]
struct Recording {
    clock: Instant,
    profile: Mutex<Profile>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self(Arc::new(Recording { clock: Instant::now(), profile: Mutex::default() }))
    }
}

impl Recorder {
    fn profile(&self) -> MutexGuard<'_, Profile> {
        self.0.profile.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nanoseconds since it was made.
    pub fn now(&self) -> u64 {
        u64::try_from(self.0.clock.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Begins an operation on a device whose elements are of these sizes; it ends when the guard is dropped.
    pub(super) fn begin<O: Op>(&self, op: &O, element_sizes: (usize, usize)) -> OpSpan {
        let work = op.work();
        OpSpan { recorder: self.clone(), op: O::NAME, work, bytes: work.bytes(element_sizes), start: self.now() }
    }

    /// Adds an operation whose time is known.
    pub(super) fn add(&self, span: Span) {
        self.profile().add(span);
    }

    /// Adds what a thread did from `start` until now.
    pub(super) fn worked(&self, thread: usize, start: u64) {
        let nanos = self.now().saturating_sub(start);
        self.profile().add_busy(Busy { thread, start, nanos });
    }

    /// Whether nothing has been recorded.
    pub fn is_empty(&self) -> bool {
        self.profile().totals.is_empty()
    }

    /// Says what the device could do at best.
    pub fn set_ceiling(&self, ceiling: Ceiling) {
        self.profile().ceiling = Some(ceiling);
    }

    /// Says by which algorithm products of a shape are computed, and why.
    pub fn set_algorithm(&self, shape: String, algorithm: String) {
        self.profile().algorithms.insert(shape, algorithm);
    }

    /// What has been recorded; the recorder is empty again.
    pub fn take(&self) -> Profile {
        std::mem::take(&mut self.profile())
    }
}

/// An operation under way.
pub(super) struct OpSpan {
    recorder: Recorder,
    op: &'static str,
    work: Work,
    bytes: u64,
    start: u64,
}

impl Drop for OpSpan {
    fn drop(&mut self) {
        let Self { recorder, op, work, bytes, start } = self;
        let nanos = recorder.now().saturating_sub(*start);
        recorder.add(Span { op, start: *start, nanos, flops: work.flops, bytes: *bytes });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profile_counts_the_threads_of_each_span() {
        let recorder = Recorder::default();
        let span = |start| Span { op: "zero", start, nanos: 10, flops: 0, bytes: 4 };
        [span(0), span(10), span(30)].into_iter().for_each(|span| recorder.add(span));
        let busy = [(0, 0, 9), (1, 2, 5), (0, 10, 3), (0, 14, 3), (1, 31, 9)];
        for (thread, start, nanos) in busy {
            recorder.profile().add_busy(Busy { thread, start, nanos });
        }
        let profile = recorder.take();
        assert_eq!(profile.threads(), [(2, 14), (1, 6), (1, 9)]);
        assert_eq!((profile.first, profile.end), (0, 40));
        assert_eq!(profile.totals["zero"], Total { calls: 3, nanos: 30, flops: 0, bytes: 12 });
        assert!(recorder.take().spans.is_empty());
    }

    #[test]
    fn profile_keeps_totals_beyond_the_spans() {
        let mut profile = Profile::default();
        for start in 0..MOST as u64 + 2 {
            profile.add(Span { op: "zero", start, nanos: 1, flops: 2, bytes: 3 });
        }
        assert_eq!((profile.spans.len(), profile.left_out), (MOST, 2));
        let calls = MOST as u64 + 2;
        assert_eq!(profile.totals["zero"], Total { calls, nanos: calls, flops: 2 * calls, bytes: 3 * calls });
    }
}
