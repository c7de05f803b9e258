//! `completions` and `man` as a shell and a user call them.

use super::{leftovers, line, run};
use crate::support;

#[test]
fn bash_completes_commands_flags_and_values() {
    let dir = support::temp();
    let script = super::put(dir.path(), "llamaprobe.bash", &run(["completions", "bash"]).ok().out);
    let complete = |words: &str, expected: &str| {
        let count = words.split(' ').count();
        let lines = format!(
            "set -eu; source '{}'; COMP_WORDS=({words} ''); COMP_CWORD={count}; COMPREPLY=(); cur=; prev=; words=; cword=
             _llamaprobe llamaprobe '' {}; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            script.display(),
            words.rsplit(' ').next().unwrap_or_default(),
        );
        let out = std::process::Command::new("bash").args(["-c", &lines]).output().expect("start bash");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "{words}: {}", String::from_utf8_lossy(&out.stderr));
        assert!(text.lines().any(|line| line == expected), "{words}: {text}");
    };
    complete("llamaprobe", "train-lora");
    complete("llamaprobe capture", "--sites");
    complete("llamaprobe capture --tokens", "last");
}

#[test]
fn man_prints_a_page_and_writes_all() {
    let dir = support::temp();
    let d = dir.path();
    assert!(run(["man"]).ok().out.starts_with(".ie \\n(.g"));
    assert!(run(["man", "capture"]).ok().out.contains("\n.TH llamaprobe-capture 1"));
    assert!(run(["man", "sweep-status"]).ok().out.contains("\n.TH llamaprobe-sweep-status 1"));
    let text = run(["man", "captur"]).refused();
    assert_eq!(text, "llamaprobe: COMMAND: expected a command (nearest: capture), found captur");
    assert_eq!(run(["man", "capture", "--out", "d"]).code, Some(2));
    let listed = line(d, "man --out {}/man1").ok().out;
    for name in [
        "llamaprobe.1",
        "llamaprobe-capture.1",
        "llamaprobe-train-lora.1",
        "llamaprobe-man.1",
        "llamaprobe-sweep-merge.1",
    ] {
        assert!(d.join("man1").join(name).exists() && listed.contains(name), "{name}: {listed}");
    }
    assert!(!listed.contains("worker") && leftovers(d).is_empty());
}
