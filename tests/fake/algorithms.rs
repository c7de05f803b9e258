//! Algorithms of products: the quickest of several is taken, kept, and not timed again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use llamaprobe::arch::Dtype;
use llamaprobe::backend::cuda::{Cuda, Settings};
use llamaprobe::backend::ops::{Cast, LinearBwdInput, LinearDims, LinearOps, RowOps};
use llamaprobe::backend::{Buffers, Transfer};
use llamaprobe::formats::safetensors::{Bytes, Dtype as FileDtype, TensorView};
use serde_json::Value;

use super::{DAMAGE, TRAIN, cuda, on_fake, program, refuse, workplace};

/// Sides of a weight that is large enough for its products to be timed.
const SIDE: usize = 1024;
/// Runs of an algorithm that is timed: one before, and five that count.
const TIMED: u64 = 6;
/// Lists of products, the third of which is a graph, and products of each.
const LISTS: usize = 3;
const PRODUCTS: usize = 4;
/// Products with one number of rows.
const RAN: u64 = (LISTS * PRODUCTS) as u64;

/// The workspace, the operands, and less than they take a second time.
const LITTLE_MEMORY: (&str, &str) = ("FAKE_MEMORY", "40000000");

/// Small whole numbers of a matrix, whose products have no rounding.
fn values(rows: usize, value: fn(usize) -> f32) -> Vec<f32> {
    (0..rows * SIDE).map(value).collect()
}

/// They as a weight.
fn matrix(gpu: &mut Cuda, values: Vec<f32>) -> <Cuda as Buffers>::Weight {
    let rows = values.len() / SIDE;
    let data = Bytes::from_static(bytemuck::cast_slice(values.leak()));
    let view = TensorView { name: "w".into(), dtype: FileDtype::F32, shape: vec![rows, SIDE], data };
    gpu.weight(&view).expect("a weight")
}

/// Gradients of inputs with so many rows each, as the variable `ROWS` has them, added to ones in lists that come again.
#[test]
#[ignore = "started on the fake driver"]
fn products() {
    let settings = Settings { on_warning: |line| eprintln!("{line}"), ..cuda::settings() };
    let gpu = &mut Cuda::open(0, Dtype::F32, &settings).expect("a device");
    let rows = std::env::var("ROWS").expect("numbers of rows");
    let rows: Vec<usize> = rows.split(',').map(|rows| rows.parse().expect("a number")).collect();
    let most = rows.iter().copied().max().expect("a number");
    let (of_weight, of_d_out) = (|i| (i % 3) as f32 - 1.0, |i| (i % 5) as f32 - 2.0);
    let weight = matrix(gpu, values(SIDE, of_weight));
    let (mut x, mut d_out) = (gpu.acc(most * SIDE).expect("a buffer"), gpu.compute(most * SIDE).expect("a buffer"));
    gpu.upload(&mut x, 0, &values(most, of_d_out)).expect("an upload");
    gpu.cast(Cast { out: &mut d_out, x: &x, len: most * SIDE });
    let mut d_x = gpu.acc(most * SIDE).expect("a buffer");
    for rows in rows {
        gpu.upload(&mut d_x, 0, &vec![1.0; rows * SIDE]).expect("an upload");
        let dims = LinearDims { rows, input: SIDE, output: SIDE };
        for _ in 0..LISTS {
            for _ in 0..PRODUCTS {
                let (d_x, d_out, weight) = (&mut d_x, &d_out, &weight);
                gpu.linear_bwd_input(LinearBwdInput { d_x, d_out, weight, dims, accumulate: true });
            }
            gpu.sync().expect("the device works");
        }
        let mut found = vec![0.0; rows * SIDE];
        gpu.download(&mut found, &d_x, 0).expect("a download");
        for at in (0..rows * SIDE).step_by(61) {
            let (row, column) = (at / SIDE, at % SIDE);
            let sum: f32 = (0..SIDE).map(|k| of_d_out(row * SIDE + k) * of_weight(k * SIDE + column)).sum();
            assert_eq!(found[at], 1.0 + (LISTS * PRODUCTS) as f32 * sum, "[{row}, {column}] of {rows} rows");
        }
    }
    let replays = gpu.replays();
    assert!(LISTS as u64 * replays.replayed == (LISTS as u64 - 1) * replays.lists, "{replays:?}");
}

/// A place for choices, and how products are computed there.
struct Place(PathBuf);

impl Place {
    /// Computes products by algorithms of these times, and returns how many each of them has computed, and what was said.
    fn run(&self, rows: &str, algorithms: &str, variables: &[(&str, &str)]) -> (Vec<u64>, String) {
        let report = self.0.join(format!("report-{:?}.json", std::thread::current().id()));
        let mut command = std::process::Command::new(std::env::current_exe().expect("this program"));
        on_fake(command.args(["--exact", "algorithms::products", "--ignored", "--nocapture"]));
        command.env("LLAMAPROBE_CUDA_CACHE", self.0.join("cache")).env("FAKE_REPORT", &report);
        command.env("ROWS", rows).env("FAKE_ALGORITHMS", algorithms).envs(variables.iter().copied());
        let Output { status, stdout, stderr } = command.output().expect("start this program");
        let said = String::from_utf8_lossy(&stderr).into_owned();
        assert!(status.success(), "{said}\n{}", String::from_utf8_lossy(&stdout));
        (counts(&report), said)
    }

    /// The same, where there is nothing to say.
    fn counts(&self, rows: &str, algorithms: &str, variables: &[(&str, &str)]) -> Vec<u64> {
        let (counts, said) = self.run(rows, algorithms, variables);
        assert_eq!(said, "");
        counts
    }

    /// The files of choices.
    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.0.join("cache")).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "algorithm")).collect()
    }
}

/// How many products each algorithm has computed.
fn counts(report: &Path) -> Vec<u64> {
    let report: Value = serde_json::from_slice(&fs::read(report).expect("a report")).expect("JSON");
    report["algorithms"].as_array().expect("a list").iter().map(|count| count.as_u64().expect("a count")).collect()
}

#[test]
fn quickest_algorithm_is_taken_and_not_timed_again() {
    let dir = tempfile::tempdir().expect("a folder");
    let place = Place(dir.path().to_path_buf());
    assert_eq!(place.counts("4", "4,3,1,2", &[]), [TIMED, TIMED, TIMED + RAN, TIMED]);
    assert_eq!(place.files().len(), 1);
    // The choice stays, whatever a timing would say now.
    assert_eq!(place.counts("4", "1,2,3,4", &[]), [0, 0, RAN]);
    assert_eq!(place.counts("4", "1,2,3,4", &[("LLAMAPROBE_GEMM", "first")]), [RAN]);
    let again = [("LLAMAPROBE_GEMM", "retime")];
    assert_eq!(place.counts("4", "3,1,3,4", &again), [TIMED, TIMED + RAN, TIMED, TIMED]);
    assert_eq!(place.counts("4", "1,2,3,4", &[]), [0, RAN]);
}

#[test]
fn choices_that_cannot_be_kept_are_none() {
    let dir = tempfile::tempdir().expect("a folder");
    let place = Place(dir.path().to_path_buf());
    let file = dir.path().join("file");
    fs::write(&file, "").expect("a file");
    // What cannot be read is not timed; of what cannot be written the times do not count.
    let unreadable = (file.join("cache"), "cannot read", vec![2 * RAN]);
    let unwritable = (PathBuf::from("/proc/none"), "cannot create", vec![TIMED + 2 * RAN, TIMED]);
    for (cache, why, expected) in [unreadable, unwritable] {
        let cache = [("LLAMAPROBE_CUDA_CACHE", cache.to_str().expect("UTF-8"))];
        let (found, said) = place.run("4,5", "2,1", &cache);
        assert!(said.lines().count() == 1 && said.contains(why) && said.contains("are taken"), "{said}");
        assert_eq!(found, expected, "{why}");
    }
}

#[test]
fn processes_that_time_at_once_agree() {
    let dir = tempfile::tempdir().expect("a folder");
    let place = &Place(dir.path().to_path_buf());
    let found = std::thread::scope(|scope| {
        ["2,1", "1,2"]
            .map(|times| scope.spawn(move || place.counts("4", times, &[])))
            .map(|run| run.join().expect("a run"))
    });
    let kept = place.counts("4", "2,1", &[]);
    let chosen = |counts: &[u64]| counts.iter().position(|&count| count >= RAN);
    assert!(found.iter().all(|counts| chosen(counts) == chosen(&kept)), "{found:?}, and then {kept:?}");
}

#[test]
fn rows_share_choices() {
    let dir = tempfile::tempdir().expect("a folder");
    let place = Place(dir.path().to_path_buf());
    assert_eq!(place.counts("17,18", "2,1", &[]), [TIMED, TIMED + 2 * RAN]);
    assert_eq!(place.files().len(), 1);
    // A device times nothing after two seconds; what comes then has the first, and keeps it.
    assert_eq!(place.counts("4,5", "900,1", &[]), [TIMED + RAN, TIMED + RAN]);
    assert_eq!(place.counts("5,4", "900,1", &[]), [RAN, RAN]);
}

#[test]
fn what_cannot_be_timed_again_keeps_its_choice() {
    let dir = tempfile::tempdir().expect("a folder");
    let place = Place(dir.path().to_path_buf());
    let again = ("LLAMAPROBE_GEMM", "retime");
    assert_eq!(place.counts("4,5", "2,1", &[]), [2 * TIMED, 2 * TIMED + 2 * RAN]);
    let (found, said) = place.run("4,5", "1,2", &[again, LITTLE_MEMORY]);
    assert!(said.lines().count() == 1 && said.contains("bytes wanted to time"), "{said}");
    assert_eq!(found, [0, 2 * RAN]);
    // The first takes all the time that there is.
    assert_eq!(place.counts("4,5", "1,900", &[again]), [TIMED + RAN, TIMED + RAN]);
    assert_eq!(place.counts("5", "1,900", &[]), [0, RAN]);
}

#[test]
fn choices_that_are_no_use_are_made_again() {
    let dir = tempfile::tempdir().expect("a folder");
    let place = Place(dir.path().to_path_buf());
    let chosen = [TIMED, TIMED, TIMED + RAN];
    assert_eq!(place.counts("4", "3,2,1", &[]), chosen);
    let files = place.files();
    let [path] = &files[..] else { panic!("{files:?}") };
    let whole = fs::read(path).expect("a choice");
    let again = |why: &str| {
        let (found, said) = place.run("4", "3,2,1", &[]);
        let named = said.contains(&path.display().to_string());
        assert!(said.lines().count() == 1 && named && said.contains(why), "{why}: {said}");
        assert_eq!(found, chosen, "{why}");
        assert!(fs::read(path).expect("a choice") == whole, "{why}: not made anew");
    };
    for (_, damage) in DAMAGE {
        fs::write(path, damage(&whole)).expect("a file");
        again("damaged");
    }
    assert_eq!(place.counts("5", "3,2,1", &[]), chosen);
    let other = place.files().into_iter().find(|other| other != path).expect("another choice");
    fs::copy(other, path).expect("a file");
    again("of another product or device");
    // Of those that are offered now it is none, or it needs too large a workspace.
    for (algorithms, chosen) in [("1,2", vec![TIMED + RAN, TIMED]), ("3,2,1:40000000", vec![TIMED, TIMED + RAN])] {
        fs::write(path, &whole).expect("a file");
        let (found, said) = place.run("4", algorithms, &[]);
        assert!(said.lines().count() == 1 && said.contains("no algorithm that cuBLASLt takes"), "{said}");
        assert_eq!(found, chosen);
    }
}

#[test]
fn products_without_memory_to_time_them_take_the_first() {
    let dir = tempfile::tempdir().expect("a folder");
    let place = Place(dir.path().to_path_buf());
    let (found, said) = place.run("4,5", "2,1", &[LITTLE_MEMORY]);
    assert!(said.lines().count() == 1 && said.contains("bytes wanted to time"), "{said}");
    assert_eq!(found, [2 * RAN]);
    assert_eq!(place.counts("4,5", "2,1", &[]), [2 * RAN]);
}

#[test]
fn training_and_profile_are_of_the_algorithms_taken() {
    let dir = workplace(safetensors::Dtype::F32);
    let d = dir.path();
    let train = |out: &str| program(d, &format!("{TRAIN} --device cuda:0 --out {{}}/{out} --profile {{}}/{out}.json"));
    let Output { status, stderr, .. } = train("one").env("FAKE_ALGORITHMS", "1,2").output().expect("start the program");
    let said = String::from_utf8_lossy(&stderr).into_owned();
    assert!(status.success() && said.contains("one.json: otherData.algorithms says"), "{said}");
    let trace: Value = serde_json::from_slice(&fs::read(d.join("one.json")).expect("a trace")).expect("JSON");
    let algorithms = trace["otherData"]["algorithms"].as_object().expect("algorithms");
    let first = "algorithm 0, tile 1, split-K 1: the heuristic's first";
    assert!(!algorithms.is_empty() && algorithms.values().all(|said| said == first), "{algorithms:?}");
    assert!(algorithms.keys().any(|product| product.starts_with("linear_fwd [")), "{algorithms:?}");
    let error = refuse(train("never").env("LLAMAPROBE_GEMM", "best"));
    assert!(error.contains("LLAMAPROBE_GEMM") && error.contains("first, timed, retime"), "{error}");
}
