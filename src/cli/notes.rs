//! What the library has to say that stops nothing: its warnings to the `log` crate, each once, a line on stderr.
//!
//! While inputs are read they are held back, so that an error in them is the only line; once the work begins they are
//! written.

use std::sync::{Mutex, PoisonError};

use log::{LevelFilter, Log, Metadata, Record};

use super::output;

/// Those that came, and how many of them are written; `None` of `written` holds them back.
struct Notes(Mutex<State>);

struct State {
    said: Vec<String>,
    written: Option<usize>,
}

static NOTES: Notes = Notes(Mutex::new(State { said: Vec::new(), written: None }));

impl Log for Notes {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.target().starts_with(env!("CARGO_CRATE_NAME"))
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let note = record.args().to_string();
        if !state.said.contains(&note) {
            state.said.push(note);
        }
        state.write();
    }

    fn flush(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.written.get_or_insert(0);
        state.write();
    }
}

impl State {
    fn write(&mut self) {
        if let Some(written) = &mut self.written {
            self.said[*written..].iter().for_each(output::note);
            *written = self.said.len();
        }
    }
}

/// Begins to listen to the library.
pub fn listen() {
    // Whoever runs commands in a program with a logger of its own has the warnings there.
    if log::set_logger(&NOTES).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
}

/// Begins anew, with notes that were said before: another command runs.
pub fn begin() {
    listen();
    let mut state = NOTES.0.lock().unwrap_or_else(PoisonError::into_inner);
    *state = State { said: Vec::new(), written: None };
}

/// Writes what was held back, and from now on everything at once.
pub fn release() {
    log::logger().flush();
}
