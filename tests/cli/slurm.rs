//! `sweep --executor slurm`, by a real Slurm on this machine, and what is refused without one.

use std::path::Path;
use std::process::Command;

use super::support::skips::{Reason, skip};
use super::{line, put, workplace};

/// 20 cells on two nodes, one of which dies, and a driver that is killed: see the script.
#[test]
fn sweep_by_slurm_is_that_of_one_machine() {
    if std::env::var("LLAMAPROBE_TEST_SLURM").is_ok_and(|value| value == "1") {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/slurm/run.sh");
        let ran = Command::new(script).arg(env!("CARGO_BIN_EXE_llamaprobe")).output().expect("start the script");
        let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        println!("{out}");
        assert!(ran.status.success(), "{err}");
        assert!(out.contains("the bytes of one machine"), "{out}");
    } else {
        skip(Reason::Slurm);
    }
}

#[test]
fn flags_of_slurm_are_refused_where_they_say_nothing() {
    let dir = workplace();
    let d = dir.path();
    put(d, "grid.yaml", "command: probe\ngrid: {r: [2, 4]}");
    for (flags, expected) in [
        ("--time 10", "--time: expected --executor slurm beside it"),
        ("--sbatch=--gres=gpu:1", "--sbatch: expected --executor slurm beside it"),
        ("--executor slurm --shard 1/2", "--shard: expected none beside --executor slurm"),
        ("--executor slurm --jobs-per-minute 0", "--jobs-per-minute: expected from 1 to 100000"),
        ("--executor slurm --poll=-1", "--poll: expected seconds from 0 to 86400"),
        ("--executor slurm --poll 1e30", "--poll: expected seconds from 0 to 86400"),
        ("--poll 3", "--poll: expected --executor slurm beside it"),
        ("--jobs-per-minute 60", "--jobs-per-minute: expected --executor slurm beside it"),
        ("--jobs 0", "--jobs: expected from 1 to 100000"),
        ("--jobs 18446744073709551615", "--jobs: expected from 1 to 100000"),
        ("--threads 0", "--threads: expected from 1 to 1024"),
    ] {
        let error = line(d, &format!("sweep {{}}/grid.yaml --out {{}}/out {flags}")).refused();
        assert!(error.contains(expected), "{flags}: {error}");
    }
    for time in ["1:2:3:4", "18446744073709551615", "99999999-0"] {
        assert_eq!(
            line(d, &format!("sweep {{}}/grid.yaml --out {{}}/out --executor slurm --time {time}")).code,
            Some(2)
        );
    }
    assert!(!d.join("out").exists(), "nothing is made before it is known what for");
    // Without Slurm it is an error that says so, and nothing is lost: the cells can be run here.
    let words = super::words(d, "sweep {}/grid.yaml --out {}/out --executor slurm --poll 0");
    let ran = super::program(words).env("PATH", d).output().expect("start the program");
    let error = String::from_utf8(ran.stderr).expect("UTF-8");
    assert!(ran.status.code() == Some(1) && error.contains("squeue: cannot start"), "{error}");
}
