//! Whoever runs commands in place of a terminal: hears what they say and how far they are, and may stop them.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use indicatif::ProgressBar;

use crate::backend::Interrupt;

/// What a command has said, and by which it is stopped.
#[derive(Default)]
pub struct Host {
    /// Results, as they would stand on stdout.
    results: Mutex<String>,
    /// Notes that nobody has taken yet.
    notes: Mutex<Vec<String>>,
    /// The newest bar, and what it counts.
    bar: Mutex<Option<(ProgressBar, String)>>,
    /// Stops the work.
    pub interrupt: Interrupt,
}

/// How far some work is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg(feature = "python")]
pub struct Progress {
    /// What is done, and how it goes.
    pub message: String,
    /// Units done.
    pub done: u64,
    /// Units in all.
    pub total: u64,
    /// What is counted.
    pub unit: String,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Host {
    /// Of work that somebody else may stop too.
    pub fn stopped_by(interrupt: Interrupt) -> Self {
        Self { interrupt, ..Self::default() }
    }

    /// Hears a line of result.
    pub fn line(&self, text: &str) {
        *locked(&self.results) += &format!("{text}\n");
    }

    /// Hears a note.
    pub fn note(&self, text: String) {
        locked(&self.notes).push(text);
    }

    /// Hears of a bar.
    pub fn follow(&self, bar: &ProgressBar, unit: &str) {
        *locked(&self.bar) = Some((bar.clone(), unit.to_owned()));
    }
}

impl Host {
    /// The results since the last call.
    pub fn take_results(&self) -> String {
        std::mem::take(&mut locked(&self.results))
    }

    /// The notes since the last call.
    pub fn take_notes(&self) -> Vec<String> {
        std::mem::take(&mut locked(&self.notes))
    }

    /// How far the newest bar is; none where there is none or it has ended.
    #[cfg(feature = "python")]
    pub fn progress(&self) -> Option<Progress> {
        let (bar, unit) = locked(&self.bar).clone().filter(|(bar, _)| !bar.is_finished())?;
        let total = bar.length().unwrap_or(0);
        Some(Progress { message: bar.message(), done: bar.position(), total, unit })
    }
}

/// The interpreter in which this program is a module.
static INTERPRETER: OnceLock<PathBuf> = OnceLock::new();

/// Says by what path the interpreter was called: that of a virtual environment is a link, which its packages belong to.
#[cfg(feature = "python")]
pub fn set_interpreter(path: PathBuf) {
    // It is one for all modules of a process.
    let _ = INTERPRETER.set(path);
}

/// The interpreter in which this program is a module, if it is one.
pub fn interpreter() -> Option<&'static Path> {
    INTERPRETER.get().map(PathBuf::as_path)
}

thread_local! {
    /// Of what runs on this thread.
    static OWN: RefCell<Option<Arc<Host>>> = const { RefCell::new(None) };
}

/// Of the command that runs, whatever its threads.
static COMMAND: Mutex<Option<Arc<Host>>> = Mutex::new(None);

/// Who is to hear what is said on this thread; none is the terminal.
pub fn current() -> Option<Arc<Host>> {
    OWN.with_borrow(Clone::clone).or_else(|| locked(&COMMAND).clone())
}

/// What runs on this thread from now on is heard by `host`; none is whoever hears the command.
pub fn adopt(host: Option<Arc<Host>>) {
    OWN.set(host);
}

/// Runs what is heard by `host` on this thread and on those that adopt it, and then as before.
pub fn heard_by<T>(host: Arc<Host>, work: impl FnOnce() -> T) -> T {
    /// As before, whatever becomes of the work.
    struct Restore(Option<Arc<Host>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            OWN.set(self.0.take());
        }
    }
    let _restore = Restore(OWN.replace(Some(host)));
    work()
}

/// Runs a command that is heard by `host` on all its threads. One runs at a time: others wait for it.
#[cfg(feature = "python")]
pub fn hosting<T>(host: &Arc<Host>, command: impl FnOnce() -> T) -> T {
    /// The terminal hears again, whatever becomes of the command.
    struct Restore;
    impl Drop for Restore {
        fn drop(&mut self) {
            *locked(&COMMAND) = None;
        }
    }
    static ONE: Mutex<()> = Mutex::new(());
    let _one = locked(&ONE);
    let _restore = Restore;
    *locked(&COMMAND) = Some(host.clone());
    command()
}
