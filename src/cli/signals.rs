//! Signals that end the program: what it has not finished is removed before they do what they always do.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Once};
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;
use signal_hook::{flag, low_level};

use crate::formats::atomic::{self, unfinished};

/// Listens from now on, on a thread of its own.
pub fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if !is_ignored(SIGXFSZ) {
            // Whoever writes past the size that the shell allows has an error then. Without it the signal ends the program.
            let _ = flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
        }
        // The thread registers them itself: without it nobody would hear them.
        let _ = thread::Builder::new().name("signals".to_owned()).spawn(|| {
            let heard = [SIGHUP, SIGINT, SIGTERM].into_iter().filter(|&signal| !is_ignored(signal));
            let Ok(mut signals) = Signals::new(heard) else { return };
            for signal in signals.forever() {
                unfinished::remove_and(|| {
                    let _ = low_level::emulate_default_handler(signal);
                });
            }
        });
    });
}

/// Whether the process was started with a signal ignored, as `nohup` and shells do for what goes on behind them. Known on Linux alone.
fn is_ignored(signal: i32) -> bool {
    let status = atomic::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}
