//! What the tests of the trainings share: their data, what they leave, and how they are torn.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use super::{leftovers, line, program, words};

/// Lines of every form.
pub const DATA: &str = "{\"prompt\": \"the pen is\", \"completion\": \" in the pot\"}\n\
                    {\"prompt\": \"the pot is\", \"completion\": \" thin\"}\n\
                    {\"text\": \"there is a pen in the pot\"}\n\
                    {\"input_ids\": [1, 30, 31, 32, 33], \"labels\": [-100, -100, 31, 32, 33]}\n\
                    {\"prompt\": \"a\", \"completion\": \" b\"}\n";

/// The lines of a training's log.
pub fn log(out: &Path) -> Vec<Value> {
    let text = fs::read_to_string(out.join("trainer_log.jsonl")).expect("the log");
    text.lines().map(|l| serde_json::from_str(l).expect("a line of JSON")).collect()
}

/// The files of an adapter.
pub fn files(dir: &Path) -> Vec<Vec<u8>> {
    let names = ["adapter_model.safetensors", "adapter_config.json", "prompt_encoder.safetensors"];
    names.iter().filter_map(|name| fs::read(dir.join(name)).ok()).collect()
}

/// Kills a training again and again; at last it must end as an undisturbed one, whose log has `lines` lines.
pub fn survives(d: &Path, train: &str, outputs: &[&str], lines: usize) {
    line(d, &format!("{train} --out {{}}/calm")).ok();
    let args = words(d, &format!("{train} --out {{}}/torn --resume-from-checkpoint latest"));
    let written = || fs::read_to_string(d.join("torn/trainer_log.jsonl")).map_or(0, |log| log.lines().count());
    let mut killed = 0;
    // From before the first file on, in uneven strides: percent of the log that an undisturbed training writes.
    for percent in [0, 15, 3, 10, 7, 18, 8, 12] {
        let enough = written() + lines * percent / 100;
        let mut child = program(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start");
        let mut runs = || child.try_wait().expect("its state").is_none();
        while runs() && written() < enough {
            std::thread::sleep(Duration::from_millis(1));
        }
        killed += usize::from(runs());
        child.kill().expect("SIGKILL");
        child.wait().expect("its end");
    }
    assert!(killed > 2, "the runs ended before they could be killed");
    line(d, &format!("{train} --out {{}}/torn --resume-from-checkpoint latest")).ok();
    for output in outputs {
        let (calm, torn) = (files(&d.join("calm").join(output)), files(&d.join("torn").join(output)));
        assert!(!calm.is_empty() && calm == torn, "{output}");
    }
    let (calm, torn) = (log(&d.join("calm")), log(&d.join("torn")));
    assert_eq!((calm.len(), torn.len()), (lines, lines));
    for (a, b) in calm.iter().zip(&torn) {
        let fields =
            ["run", "current_steps", "loss", "lr", "epoch", "grad_norm", "total_tokens", "eval_loss", "eval_accuracy"];
        for field in fields {
            assert_eq!(a[field], b[field], "{field} of step {}", a["current_steps"]);
        }
    }
    assert!(leftovers(&d.join("torn")).is_empty());
}
