//! `sweep`: cells are computed once, wherever and however often they are begun.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

use super::compare::COMPARE;
use super::trained::DATA;
use super::{leftovers, line, program, put, words, workplace};

/// Twelve probes of the embedded model.
const PROBES: &str = "command: probe\nflags: {queries: 5, seeds: 2, measures: none, epochs: 2, device: cpu}\n\
                      grid: {demos: [2, 3, 4], labels: [gold, flipped], r: [2, 4]}\n";

/// Writes a grid of captures of a model with these flags varied, if any.
fn captures(dir: &Path, model: &str, varied: &str) {
    let grid = if varied.is_empty() { String::new() } else { format!("grid: {{{varied}}}\n") };
    let text =
        format!("command: capture\nflags: {{model: {{}}/{model}, input: {{}}/texts.jsonl, device: cpu}}\n{grid}");
    put(dir, "grid.yaml", &text.replace("{}", &dir.display().to_string()));
}

/// What a sweep merges.
fn merged(out: &Path) -> Vec<String> {
    ["table.csv", "report.json", "report.html"]
        .map(|name| fs::read_to_string(out.join(name)).unwrap_or_else(|e| panic!("{name}: {e}")))
        .into()
}

/// The names of all cells that are done.
fn done(out: &Path) -> Vec<String> {
    let entries = fs::read_dir(out.join("cells")).into_iter().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn table(out: &Path) -> Vec<Vec<String>> {
    let text = fs::read_to_string(out.join("table.csv")).expect("a table");
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(text.as_bytes());
    reader.records().map(|row| row.expect("CSV").iter().map(str::to_owned).collect()).collect()
}

/// The values of a column of a table.
fn column(table: &[Vec<String>], name: &str) -> Vec<String> {
    let at = table[0].iter().position(|column| column == name).unwrap_or_else(|| panic!("{name}: {:?}", table[0]));
    table[1..].iter().map(|row| row[at].clone()).collect()
}

#[test]
fn sweep_of_probes_is_the_same_by_processes_shards_and_one_after_another() {
    let dir = workplace();
    let d = dir.path();
    put(d, "grid.yaml", PROBES);
    line(d, "sweep {}/grid.yaml --out {}/one").ok();
    let (one, rows) = (merged(&d.join("one")), table(&d.join("one")));
    assert_eq!((rows.len(), done(&d.join("one")).len()), (13, 12));
    assert_eq!(rows[0][..4], ["cell", "demos", "labels", "r"]);
    assert_eq!(rows[2][1..4], ["2", "gold", "4"]);
    // A cell is what the command alone writes.
    let alone =
        "probe --queries 5 --seeds 2 --measures none --epochs 2 --device cpu --demos 2 --r 4 --vary labels=gold";
    line(d, &format!("{alone} --out {{}}/alone")).ok();
    let read = |path: PathBuf| -> Value { serde_json::from_slice(&fs::read(path).expect("a report")).expect("JSON") };
    let (cell, alone) =
        (read(d.join("one/cells").join(&rows[2][0]).join("report.json")), read(d.join("alone/report.json")));
    for part in ["summary", "seeds", "plan", "settings"] {
        assert_eq!(cell[part], alone[part], "{part}");
    }
    assert_eq!(column(&rows, "accuracy_icl")[1], alone["summary"]["accuracy"]["icl"]["mean"].to_string());
    // Processes, and shards without a launcher, of which the last finds all cells done.
    let json = line(d, "sweep {}/grid.yaml --out {}/two --jobs 2 --json").json();
    assert_eq!((&json["cells"], &json["done"]), (&Value::from(12), &Value::from(12)));
    assert!(merged(&d.join("two")) == one, "by two processes");
    for (shard, jobs) in [(1, 1), (2, 2), (3, 1)] {
        assert!(!d.join("parts/report.json").exists());
        line(d, &format!("sweep {{}}/grid.yaml --out {{}}/parts --shard {shard}/3 --jobs {jobs}")).ok();
    }
    assert!(merged(&d.join("parts")) == one, "by shards");
    fs::remove_file(d.join("parts/table.csv")).expect("a table");
    line(d, "sweep merge {}/parts").ok();
    assert!(merged(&d.join("parts")) == one, "merged again");
    line(d, "report {}/parts").ok();
    assert!(merged(&d.join("parts")) == one, "its page again");
    let status = line(d, "sweep status {}/parts --json").json();
    assert_eq!((&status["done"], &status["running"], &status["waiting"]), (&12.into(), &0.into(), &0.into()));
    assert!(leftovers(&d.join("parts")).is_empty());
}

/// The processes that a process has started.
fn children(of: u32) -> Vec<u32> {
    let tasks = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    tasks.split_whitespace().filter_map(|id| id.parse().ok()).collect()
}

fn driver(d: &Path, out: &str) -> Child {
    let words = words(d, &format!("sweep {{}}/grid.yaml --out {{}}/{out} --jobs 2"));
    program(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start the program")
}

#[test]
#[cfg(target_os = "linux")]
fn killed_processes_lose_nothing_and_do_nothing_twice() {
    let dir = workplace();
    let d = dir.path();
    put(d, "grid.yaml", PROBES);
    line(d, "sweep {}/grid.yaml --out {}/calm").ok();
    // Moments that are the same in every run of this test.
    let mut moment = 12345_u64;
    let mut next = |below: u64| {
        moment = moment.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (moment >> 33) % below
    };
    let mut killed = 0;
    let mut running = driver(d, "wild");
    for turn in 1..=10 {
        // The first soon, whatever the machine's speed; later ones when cells are done.
        sleep(Duration::from_millis(next(50 * turn)));
        let before = done(&d.join("wild"));
        let workers = children(running.id());
        match workers.get(next(3) as usize) {
            Some(worker) => drop(Command::new("kill").args(["-9", &worker.to_string()]).status().expect("kill")),
            None if running.try_wait().expect("its state").is_some() => break,
            None => {
                running.kill().expect("kill");
                running.wait().expect("it ended");
                // Its workers end with it.
                let mut waits = 0;
                while workers.iter().any(|id| is_at_work(*id)) {
                    waits += 1;
                    assert!(waits < 500, "workers without a driver");
                    sleep(Duration::from_millis(10));
                }
                running = driver(d, "wild");
            }
        }
        killed += 1;
        let after = done(&d.join("wild"));
        assert!(before.iter().all(|cell| after.contains(cell)), "a cell was lost");
    }
    assert!(running.wait().expect("its end").success());
    assert!(killed >= 1, "the sweep was too fast to be killed");
    assert!(merged(&d.join("wild")) == merged(&d.join("calm")), "after {killed} kills");
    assert_eq!(done(&d.join("wild")), done(&d.join("calm")));
}

/// Whether a process is there and no zombie.
fn is_at_work(id: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(' ') && !rest.starts_with(" Z"))
}

#[test]
fn cells_are_known_by_flags_and_content() {
    let dir = workplace();
    let d = dir.path();
    let grid = |tokens: &str| captures(d, "model", &format!("tokens: [{tokens}], layers: [0, 1]"));
    grid("last");
    line(d, "sweep {}/grid.yaml --out {}/out").ok();
    let first = done(&d.join("out"));
    assert_eq!(first.len(), 2);
    let rows = table(&d.join("out"));
    assert_eq!(column(&rows, "tokens"), ["last", "last"]);
    assert_eq!(column(&rows, "documents"), ["4", "4"]);
    // A larger grid has the old cells, and computes the others.
    let records: Vec<String> = first.iter().map(|key| record(&d.join("out"), key)).collect();
    grid("last, all");
    line(d, "sweep {}/grid.yaml --out {}/out --threads 1").ok();
    assert_eq!(done(&d.join("out")).len(), 4);
    let again: Vec<String> = first.iter().map(|key| record(&d.join("out"), key)).collect();
    assert_eq!(again, records, "computed again");
    // Another content is another cell under the same name of the file.
    put(d, "texts.jsonl", "{\"text\": \"a pen\"}\n");
    line(d, "sweep {}/grid.yaml --out {}/out").ok();
    assert_eq!(done(&d.join("out")).len(), 8);
    assert_eq!(column(&table(&d.join("out")), "documents"), ["1"; 4]);
}

#[test]
fn cells_follow_tokenizers_and_gguf_files() {
    let dir = workplace();
    let d = dir.path();
    let golden = crate::support::golden("gguf/llama-f16.gguf");
    fs::create_dir(d.join("tok")).expect("a folder");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(d.join("model").join(name), d.join("tok").join(name)).expect("copied");
    }
    fs::copy(golden, d.join("m.gguf")).expect("copied");
    put(d, "texts.jsonl", "{\"input_ids\": [5, 6, 7]}\n");
    let sweep = || {
        for model in ["model, tokenizer: {}/tok", "m.gguf"] {
            captures(d, model, "");
            line(d, "sweep {}/grid.yaml --out {}/out").ok();
        }
    };
    sweep();
    let first = done(&d.join("out"));
    assert_eq!(first.len(), 2);
    // Other bytes that say the same: blank space behind JSON, and a number that nobody reads in the file of GGUF.
    let config = d.join("tok/tokenizer_config.json");
    fs::write(&config, fs::read_to_string(&config).expect("a file") + "\n").expect("written");
    let (before, mut bytes) = (d.join("m.gguf"), fs::read(d.join("m.gguf")).expect("a file"));
    bytes.extend([0; 32]);
    fs::write(before, bytes).expect("written");
    sweep();
    assert_eq!(done(&d.join("out")).len(), 4);
}

#[test]
fn plans_of_a_directory_and_their_tables_do_not_mix() {
    let dir = workplace();
    let d = dir.path();
    let out = d.join("out");
    let grid = |tokens: &str| captures(d, "model", &format!("tokens: [{tokens}], layers: [0, 1]"));
    grid("last");
    line(d, "sweep {}/grid.yaml --out {}/out").ok();
    let first = done(&out);
    let plan = fs::read_dir(out.join("plans")).expect("plans").next().expect("a plan").expect("an entry").path();
    let plan = plan.file_stem().expect("a name").to_string_lossy().into_owned();
    assert!(out.join("table.csv").exists());
    grid("all");
    line(d, "sweep {}/grid.yaml --out {}/out --shard 1/2").ok();
    for name in ["table.csv", "report.json", "report.html"] {
        assert!(!out.join(name).exists(), "{name} of another grid");
    }
    // A process of the first plan works on its cells, whatever is the newest.
    fs::remove_dir_all(out.join("cells").join(&first[0])).expect("removed");
    line(d, &format!("sweep worker {{}}/out --plan {plan}")).ok();
    assert!(done(&out).contains(&first[0]) && done(&out).len() == 3);
    // Inputs that are others by then are named, by each cell that has them.
    fs::remove_dir_all(out.join("cells").join(&first[0])).expect("removed");
    put(d, "texts.jsonl", "{\"text\": \"a pen\"}\n");
    line(d, &format!("sweep worker {{}}/out --plan {plan}")).ok();
    let failure = fs::read_to_string(out.join("failed").join(format!("{}.json", first[0]))).expect("a failure");
    assert!(failure.contains("texts.jsonl: expected the content that it had when the sweep was planned"), "{failure}");
    assert_eq!(line(d, "sweep worker {}/out --plan nowhere").code, Some(1));
}

#[test]
fn damaged_cells_are_named_with_what_to_remove() {
    let dir = workplace();
    let d = dir.path();
    captures(d, "model", "format: [npy, safetensors]");
    line(d, "sweep {}/grid.yaml --out {}/out").ok();
    let rows = table(&d.join("out"));
    let digests = column(&rows, "sha256");
    assert!(digests[0].split(' ').count() > 1 && digests.iter().all(|digest| digest.len() >= 64), "{digests:?}");
    let cell = d.join("out/cells").join(&rows[1][0]);
    let whole = fs::read(cell.join("cell.json")).expect("a record");
    fs::write(cell.join("cell.json"), &whole[..20]).expect("written");
    for command in ["sweep {}/grid.yaml --out {}/out", "sweep merge {}/out"] {
        let error = line(d, command).refused();
        assert!(error.contains(&rows[1][0]) && error.contains("remove this directory"), "{command}: {error}");
    }
    let status = line(d, "sweep status {}/out --json").json();
    assert_eq!((&status["done"], &status["failed"][0]["cell"]), (&1.into(), &rows[1][0].as_str().into()));
    fs::remove_dir_all(cell).expect("removed");
    line(d, "sweep {}/grid.yaml --out {}/out").ok();
    assert_eq!(table(&d.join("out")), rows);
}

fn record(out: &Path, key: &str) -> String {
    fs::read_to_string(out.join("cells").join(key).join("cell.json")).expect("a record")
}

#[test]
fn trainings_and_comparisons_have_rows_of_their_parts() {
    let dir = workplace();
    let d = dir.path();
    put(d, "train.jsonl", DATA);
    let text = format!(
        "command: train-lora\nflags: {{model: {0}/model, train: {0}/train.jsonl, max_steps: 2, eval: {0}/train.jsonl, device: cpu}}\n\
         grid: {{r: [2, 3], lr: [1e-3, 1e-2]}}\n",
        d.display()
    );
    put(d, "lora.yaml", &text);
    line(d, "sweep {}/lora.yaml --out {}/lora").ok();
    let rows = table(&d.join("lora"));
    assert_eq!(rows[0][..3], ["cell", "r", "learning_rate"]);
    let losses = column(&rows, "eval_loss");
    assert!(
        rows.len() == 5 && losses.iter().all(|loss| loss.parse::<f64>().is_ok_and(|loss| loss > 0.0)),
        "{losses:?}"
    );
    assert!(d.join("lora/cells").join(&rows[1][0]).join("adapter_model.safetensors").is_file());
    // Trained in the same passes, each has the bytes that it has alone, and the lines of its log but for the times.
    let alone = "train-lora --model {}/model --train {}/train.jsonl --max-steps 2 --eval {}/train.jsonl --device cpu --r 2 --lr 1e-2";
    line(d, &format!("{alone} --out {{}}/alone")).ok();
    let together = d.join("lora/cells").join(&rows[2][0]);
    for name in ["adapter_model.safetensors", "adapter_config.json"] {
        let read = |dir: &Path| fs::read(dir.join(name)).expect("a file");
        assert!(read(&together) == read(&d.join("alone")), "{name}");
    }
    let keys = |dir: &Path| -> Vec<(Vec<String>, Value)> {
        let lines = super::trained::log(dir).into_iter();
        lines.map(|line| (line.as_object().expect("a line").keys().cloned().collect(), line["loss"].clone())).collect()
    };
    assert_eq!(keys(&together), keys(&d.join("alone")));
    assert!(leftovers(&d.join("lora")).is_empty());
    super::compare::data(d);
    let (_, flags) = COMPARE.split_once(' ').expect("flags");
    let flags = flags.replace("{}", &d.display().to_string());
    let flags: Vec<&str> = flags.split_whitespace().collect();
    let pairs: Vec<String> =
        flags.chunks(2).map(|pair| format!("{}: {}", pair[0].trim_start_matches("--"), pair[1])).collect();
    put(
        d,
        "compare.yaml",
        &format!(
            "command: compare\nflags: {{{}, arms: [zero-shot, pt], num-virtual-tokens: 2}}\ngrid: {{demos: [1, 2]}}",
            pairs.join(", ")
        ),
    );
    line(d, "sweep {}/compare.yaml --out {}/compared").ok();
    let rows = table(&d.join("compared"));
    assert_eq!(column(&rows, "arm"), ["zero-shot", "pt", "zero-shot", "pt"]);
    assert_eq!(column(&rows, "demos"), ["1", "1", "2", "2"]);
}

#[test]
fn cells_that_fail_are_named_and_tried_again_and_others_are_done() {
    let dir = workplace();
    let d = dir.path();
    let grid = |queries: &str| {
        let text = format!(
            "command: probe\nflags: {{seeds: 1, measures: none, epochs: 1, demos: 2, device: cpu}}\ngrid: {{queries: [{queries}]}}\n"
        );
        put(d, "grid.yaml", &text);
    };
    grid("4, 0, 3");
    let error = line(d, "sweep {}/grid.yaml --out {}/out").refused();
    assert!(error.contains("1 of 3 failed, the first (queries=0)") && error.contains("--queries"), "{error}");
    assert_eq!(done(&d.join("out")).len(), 2);
    let status = line(d, "sweep status {}/out").ok().out;
    assert!(status.contains("queries=0"), "{status}");
    let error = line(d, "sweep merge {}/out").refused();
    assert!(error.contains("1 of 3 without one (--partial"), "{error}");
    assert!(!d.join("out/report.json").exists());
    line(d, "sweep merge {}/out --partial").ok();
    assert!(fs::read_to_string(d.join("out/report.html")).expect("a page").contains("Cells without a result"));
    // By processes as well; and what failed is tried again.
    let again = line(d, "sweep {}/grid.yaml --out {}/out --jobs 2").refused();
    assert!(again.contains("1 of 3 failed"), "{again}");
    grid("4, 3");
    line(d, "sweep {}/grid.yaml --out {}/out").ok();
    assert_eq!(table(&d.join("out")).len(), 3);
}

#[test]
fn grids_are_refused_before_anything_runs() {
    let dir = workplace();
    let d = dir.path();
    for (grid, expected) in [
        ("command: generate", "command: expected one of probe, compare, train-lora, capture, found generate"),
        ("command: probe\ngrid: {demo: [1]}", "demo: expected a flag of probe (nearest: demos)"),
        ("command: probe\nflags: {out: x}", "flags.out: expected a flag that is not the sweep's own"),
        ("command: probe\nflags: {r: 4}\ngrid: {lora_r: [8]}", "grid.lora_r: expected each flag once, found r again"),
        ("command: probe\ngrid: {r: [x, 8]}", "invalid value 'x'"),
        ("command: probe\ngrid: {r: [x, 8]}", "(in r=x)"),
        ("command: probe\ngrid: {labels: [gold, golden]}", "golden"),
        ("command: probe\nflags: {vary: [\"model=embedded,other\"]}", "models as values of the flag model of the grid"),
        ("command: probe\nflags: {model: nowhere}", "model: expected a directory"),
        ("command: compare\nflags: {task: sst2}", "--model <DIR|org/name>"),
        ("command: probe\ngrid: {threads: [1, 2]}", "expected combinations that differ in what they compute"),
        ("command: probe\ngrid: {r: [2], demos: [3], r: [4]}", "r: expected once, found twice"),
        ("[probe]", "expected a mapping with command, flags and grid"),
    ] {
        put(d, "grid.yaml", grid);
        let error = line(d, "sweep {}/grid.yaml --out {}/out").refused();
        assert!(error.contains(expected), "{grid}: {error}");
        assert!(!d.join("out").exists(), "{grid}");
    }
    assert!(line(d, "sweep merge {}/out").refused().contains("sweep.json"));
    for usage in ["sweep", "sweep {}/grid.yaml", "sweep {}/grid.yaml --out {}/o --shard 0/2", "sweep merge"] {
        assert_eq!(line(d, usage).code, Some(2), "{usage}");
    }
}
