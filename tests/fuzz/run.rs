//! Runs a target: case after case from one seed, each within limits.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use llamaprobe::Result;
use rand::SeedableRng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use super::files::{File, lay_out};
use super::limits::measured;
use super::mutate::mutate;

/// Cases of each target where `LLAMAPROBE_FUZZ_CASES` does not say how many.
const CASES: u64 = 150;
/// Seed of all cases where `LLAMAPROBE_FUZZ_SEED` says none.
const SEED: u64 = 0;
/// A case may not take longer, of three tries the fastest.
const LONGEST: Duration = Duration::from_secs(1);
/// A case that has not ended after this time never will.
const HANGS: Duration = Duration::from_secs(120);
/// Bytes that a case may hold at one time.
const MEMORY: usize = 512 << 20;
/// The stack of a thread of Rust's own and of rayon's.
const STACK: usize = 2 << 20;
/// Failures after which a target gives up.
const ENOUGH: usize = 12;

/// A reader, with valid inputs.
pub struct Target {
    pub name: &'static str,
    pub seeds: Vec<Vec<File>>,
    /// Reads the files of a folder, and does with what they hold what the program would do first.
    pub read: fn(&Path) -> Result<()>,
}

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}: expected a number, found {text:?}")))
}

/// The files of a case: from a seed, damaged.
fn case(target: &Target, seed: u64, number: u64) -> Vec<File> {
    let stream = llamaprobe::hash::fnv1a(target.name.bytes().chain(number.to_le_bytes()));
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    let mut files = target.seeds.choose(&mut rng).expect("a target has seeds").clone();
    mutate(&mut files, &target.seeds, &mut rng);
    files
}

/// What is wrong with how a reader takes the files of a folder; that it refuses them is not.
fn problem(target: &Target, dir: &Path) -> Option<String> {
    let mut fastest = Duration::MAX;
    for _ in 0..3 {
        let begin = Instant::now();
        let (outcome, bytes) = measured(|| catch_unwind(AssertUnwindSafe(|| (target.read)(dir).map_err(drop))));
        fastest = fastest.min(begin.elapsed());
        if let Err(panic) = outcome {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("of an unknown kind");
            return Some(format!("a panic: {text}"));
        }
        if bytes > MEMORY {
            return Some(format!("{} MB of memory", bytes >> 20));
        }
        if fastest <= LONGEST {
            return None;
        }
    }
    Some(format!("{:.1} seconds", fastest.as_secs_f64()))
}

/// The valid inputs are read; the damaged ones give a result or an error.
pub fn run(target: Target) {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("fuzz").join(target.name);
    for (i, files) in target.seeds.iter().enumerate() {
        lay_out(&dir, files);
        (target.read)(&dir).unwrap_or_else(|error| panic!("{}: seed {i} is not valid: {error}", target.name));
    }
    let seed = variable("LLAMAPROBE_FUZZ_SEED").unwrap_or(SEED);
    let range = match variable("LLAMAPROBE_FUZZ_CASE") {
        Some(number) => number..number + 1,
        None => 0..variable("LLAMAPROBE_FUZZ_CASES").unwrap_or(CASES),
    };
    let name = target.name;
    let (last, begin) = (range.end, Instant::now());
    // The case that runs, and when it began; the watch below reads both.
    let now = Arc::new((AtomicU64::new(range.start), AtomicU64::new(0)));
    let shown = now.clone();
    let work = move || {
        let mut failures: BTreeMap<String, u64> = BTreeMap::new();
        for number in range {
            now.0.store(number, Ordering::Relaxed);
            now.1.store(begin.elapsed().as_millis() as u64, Ordering::Relaxed);
            lay_out(&dir, &case(&target, seed, number));
            if let Some(problem) = problem(&target, &dir) {
                failures.entry(problem).or_insert(number);
            }
            if failures.len() >= ENOUGH {
                break;
            }
        }
        (target, dir, failures)
    };
    let thread = std::thread::Builder::new().name(name.to_string()).stack_size(STACK).spawn(work).expect("a thread");
    while !thread.is_finished() {
        std::thread::sleep(Duration::from_millis(20));
        let running = begin.elapsed().saturating_sub(Duration::from_millis(shown.1.load(Ordering::Relaxed)));
        let number = shown.0.load(Ordering::Relaxed);
        assert!(running < HANGS, "{name}: seed {seed}, case {number} has not ended after {HANGS:?}");
    }
    let (target, dir, failures) = thread.join().expect("cases catch their panics");
    let _ = std::fs::remove_dir_all(&dir);
    let report = |(problem, number): (&String, &u64)| {
        let shown = |file: &File| {
            format!(
                "\n    {}: {}",
                file.name,
                file.bytes.escape_ascii().to_string().chars().take(1500).collect::<String>()
            )
        };
        let files: String = case(&target, seed, *number).iter().map(shown).collect();
        format!("LLAMAPROBE_FUZZ_SEED={seed} LLAMAPROBE_FUZZ_CASE={number}: {problem}{files}")
    };
    let reports: Vec<String> = failures.iter().map(report).collect();
    assert!(reports.is_empty(), "{name}: {} kinds of failures\n{}", reports.len(), reports.join("\n"));
    println!("{name}: {last} cases in {:.1} s", begin.elapsed().as_secs_f64());
}
