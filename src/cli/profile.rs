//! `--profile`: what a command computed, as a trace for viewers and as a table on stderr.

use std::path::PathBuf;

use serde_json::{Map, json};

use super::args::ProfileArg;
use super::{Failure, output};
use crate::backend::profile::{Ceiling, Profile, Recorder, Total};
use crate::formats::atomic::AtomicFile;
use crate::formats::trace_events::{self, TraceEvent};

/// A profile that will be written when the command has ended.
pub struct Recording {
    path: PathBuf,
    recorder: Recorder,
}

impl Recording {
    /// Of a command that has the flag. That the file cannot be written should not be found hours later; but it is begun when
    /// all is computed, since a training clears its directory of what was begun before.
    pub fn begin(asked: &ProfileArg) -> Result<Self, Failure> {
        drop(AtomicFile::create(&asked.path)?);
        Ok(Self { path: asked.path.clone(), recorder: asked.recorder.clone() })
    }

    /// Writes the file, and the table to stderr.
    pub fn finish(self) -> Result<(), Failure> {
        let Self { path, recorder } = self;
        let profile = recorder.take();
        if profile.totals.is_empty() {
            output::note(format_args!("--profile: nothing was computed, {} is not written", path.display()));
            return Ok(());
        }
        write(AtomicFile::create(&path)?, &profile)?;
        let path = path.display();
        let header = ["op", "calls", "time", "share", "rate", "of ceiling"];
        output::note_table(&header, rows(&profile));
        output::note(match profile.ceiling {
            Some(Ceiling { flops, bytes }) => {
                let [flops, bytes] = [flops, bytes].map(|rate| rate / 1e9);
                format!(
                    "ceiling, measured now: {flops:.0} GFLOP/s in registers, {bytes:.1} GB/s of memory (more comes from a cache)"
                )
            }
            None => "ceiling: not measured on this device".to_owned(),
        });
        if !profile.algorithms.is_empty() {
            let count = profile.algorithms.len();
            output::note(format_args!(
                "{path}: otherData.algorithms says by which of its library's algorithms each of {count} products was computed"
            ));
        }
        if profile.left_out > 0 {
            let kept = profile.spans.len();
            output::note(format_args!("{path}: the first {kept} operations and their threads; the table has all"));
        }
        output::note(format_args!("{path}: open it in https://ui.perfetto.dev or chrome://tracing"));
        Ok(())
    }
}

/// The operations on one line, and below it a line for each thread.
fn write(file: AtomicFile, profile: &Profile) -> Result<(), Failure> {
    let threads = profile.busy.iter().map(|busy| busy.thread + 1).max().unwrap_or(0);
    let names = (0..threads).map(|thread| (thread + 1, format!("thread {thread}")));
    let names: Vec<(usize, String)> = std::iter::once((0, "operations".to_owned())).chain(names).collect();
    let spans = profile.spans.iter().zip(profile.threads()).map(|(span, (threads, busy))| {
        let mut args = vec![("flops", json!(span.flops)), ("bytes", json!(span.bytes))];
        if threads > 0 {
            args.extend([("threads", json!(threads)), ("busy_us", json!(busy as f64 / 1e3))]);
        }
        TraceEvent { name: span.op, thread: 0, start: span.start, nanos: span.nanos, args }
    });
    let busy = profile.busy.iter().map(|busy| {
        let behind = profile.spans.partition_point(|span| span.start <= busy.start);
        let name = behind.checked_sub(1).map_or("outside operations", |at| profile.spans[at].op);
        let (start, nanos) = (busy.start, busy.nanos);
        TraceEvent { name, thread: busy.thread + 1, start, nanos, args: Vec::new() }
    });
    let mut about = Map::new();
    if let Some(Ceiling { flops, bytes }) = profile.ceiling {
        about.insert("ceiling_flops_per_second".to_owned(), json!(flops));
        about.insert("ceiling_bytes_per_second".to_owned(), json!(bytes));
    }
    if !profile.algorithms.is_empty() {
        about.insert("algorithms".to_owned(), json!(profile.algorithms));
    }
    if profile.left_out > 0 {
        about.insert("left_out".to_owned(), json!(profile.left_out));
    }
    Ok(trace_events::write(file, &names, spans.chain(busy), about)?)
}

/// The rows of the table, the longest time first: the operations, what was beside them, and the whole, whose shares are of
/// the time from the first operation to the last.
fn rows(profile: &Profile) -> Vec<Vec<String>> {
    let whole = profile.end - profile.first;
    let mut ops: Vec<(&str, Total)> = profile.totals.iter().map(|(op, total)| (*op, *total)).collect();
    ops.sort_by_key(|(_, total)| std::cmp::Reverse(total.nanos));
    let within = ops.iter().map(|(_, total)| total.nanos).sum::<u64>();
    let beside = ("outside operations", Total { nanos: whole.saturating_sub(within), ..Total::default() });
    let all = ("all", Total { nanos: whole.max(within), calls: ops.iter().map(|(_, t)| t.calls).sum(), ..beside.1 });
    let flops = ops.iter().map(|(_, total)| total.flops).sum::<u64>();
    let all = (all.0, Total { flops, ..all.1 });
    let row = |(op, total): (&str, Total)| {
        let (rate, share) = rate(&total, profile.ceiling);
        let calls = if total.calls > 0 { total.calls.to_string() } else { String::new() };
        let of_time = format!("{:.1} %", 100.0 * total.nanos as f64 / all.1.nanos.max(1) as f64);
        vec![op.to_owned(), calls, time(total.nanos), of_time, rate, share]
    };
    ops.into_iter().chain([beside, all]).map(row).collect()
}

/// The rate of an operation, and its share of the ceiling that is nearer: of products, or of memory.
fn rate(total: &Total, ceiling: Option<Ceiling>) -> (String, String) {
    // Operations in a nanosecond are thousands of millions in a second.
    let [flops, bytes] = [total.flops, total.bytes].map(|count| count as f64 / total.nanos.max(1) as f64);
    let shares = ceiling.map(|ceiling| (1e9 * flops / ceiling.flops, 1e9 * bytes / ceiling.bytes));
    let multiplies = shares.map_or(total.flops > 0, |(flops, bytes)| flops >= bytes && total.flops > 0);
    let share = shares.map(|(flops, bytes)| if multiplies { flops } else { bytes });
    match (multiplies, total.bytes) {
        (false, 0) => (String::new(), String::new()),
        _ => {
            let rate =
                if multiplies { format!("{} GFLOP/s", digits(flops)) } else { format!("{} GB/s", digits(bytes)) };
            (rate, share.map_or_else(String::new, |share| format!("{:.0} %", 100.0 * share)))
        }
    }
}

/// A rate with three digits, or as many as there are before the point.
fn digits(x: f64) -> String {
    let digits = if x > 0.0 { x.log10().floor() as i64 } else { 0 };
    format!("{x:.0$}", (2 - digits).clamp(0, 5) as usize)
}

/// A time with a unit.
fn time(nanos: u64) -> String {
    match nanos {
        0..1_000_000 => format!("{:.1} us", nanos as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} ms", nanos as f64 / 1e6),
        _ => format!("{:.2} s", nanos as f64 / 1e9),
    }
}
