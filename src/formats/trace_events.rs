//! Profiles as `chrome://tracing` and Perfetto read them: JSON of the Trace Event Format, of which complete events (`ph`
//! X: a beginning and a duration, in microseconds) and the names of threads (`ph` M) are written.

use serde_json::{Map, Value, json};

use super::atomic::AtomicFile;
use crate::{Error, Result};

/// Number of the one process of a file.
const PROCESS: u32 = 1;

/// Something that took time on a thread.
#[derive(Clone, Debug)]
pub struct TraceEvent<'a> {
    /// Its name.
    pub name: &'a str,
    /// The thread's number.
    pub thread: usize,
    /// Nanoseconds from the beginning of the profile.
    pub start: u64,
    /// Nanoseconds that it took.
    pub nanos: u64,
    /// What a viewer shows of it.
    pub args: Vec<(&'static str, Value)>,
}

/// Writes a file: the names of its threads by number, its events, which a thread's must not overlap unless one contains
/// the other, and what else is to be known of the whole.
///
/// # Errors
/// The file cannot be written.
pub fn write<'a>(
    mut file: AtomicFile,
    threads: &[(usize, String)],
    events: impl IntoIterator<Item = TraceEvent<'a>>,
    about: Map<String, Value>,
) -> Result<()> {
    file.write(b"{\"traceEvents\":[")?;
    let mut line = |value: Value, first: bool| {
        let path = file.path().to_path_buf();
        let text = serde_json::to_string(&value).map_err(Error::file(path))?;
        file.write(if first { b"\n" } else { b",\n" })?;
        file.write(text.as_bytes())
    };
    let named = |what: &str, thread: usize, name: &str| json!({"name": what, "ph": "M", "pid": PROCESS, "tid": thread, "args": {"name": name}});
    line(named("process_name", 0, env!("CARGO_PKG_NAME")), true)?;
    for (thread, name) in threads {
        line(named("thread_name", *thread, name), false)?;
        let order = json!({"name": "thread_sort_index", "ph": "M", "pid": PROCESS, "tid": thread,
            "args": {"sort_index": thread}});
        line(order, false)?;
    }
    for TraceEvent { name, thread, start, nanos, args } in events {
        let args: Map<String, Value> = args.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let micros = |nanos: u64| nanos as f64 / 1e3;
        let event = json!({"name": name, "cat": "op", "ph": "X", "ts": micros(start), "dur": micros(nanos),
            "pid": PROCESS, "tid": thread, "args": args});
        line(event, false)?;
    }
    let about = serde_json::to_string(&about).map_err(Error::file(file.path()))?;
    file.write(format!("\n],\"displayTimeUnit\":\"ms\",\"otherData\":{about}}}\n").as_bytes())?;
    file.finish()
}
