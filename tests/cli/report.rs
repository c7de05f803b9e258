//! `report`, and the pages of `probe`.

use std::fs;

use super::{line, put, workplace};

#[test]
fn report_makes_the_page_of_a_probe_again() {
    let dir = workplace();
    let d = dir.path();
    let rows = |n: usize| {
        let row = |i: usize| format!("the pen {i} is {}\t{}\n", ["thin", "fine"][i % 2], i % 2);
        std::iter::once("sentence\tlabel\n".to_owned()).chain((0..n).map(row)).collect::<String>()
    };
    put(d, "train.tsv", &rows(12));
    put(d, "dev.tsv", &rows(6).replace("pen", "pot"));
    let probe = "probe --model {}/model --task sst2 --train {}/train.tsv --test {}/dev.tsv --demos 3 --queries 4 --seeds 2 \
                 --epochs 2 --r 2 --csv --out {}/run";
    let shown = line(d, probe).ok().out;
    assert!(shown.contains("report.html") && shown.contains("series.csv"), "{shown}");
    let read = |name: &str| fs::read_to_string(d.join("run").join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let (html, csv) = (read("report.html"), read("series.csv"));
    assert!(html.contains("Did the states move?") && html.contains("--plan report.json"), "{html}");
    assert!(csv.starts_with("figure,series,x,mean,sd\nupdate,ICL–IT,0,"), "{csv}");
    fs::remove_file(d.join("run/report.html")).expect("removed");
    fs::remove_file(d.join("run/series.csv")).expect("removed");
    line(d, "report {}/run").ok();
    assert_eq!(read("report.html"), html);
    assert!(!d.join("run/series.csv").exists());
    #[cfg(unix)]
    {
        // What is no file keeps its name: a socket here, devices alike.
        let socket = d.join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
        let text = line(d, "report {}/run --out {}/socket").refused();
        assert!(text.contains("socket: expected a file to write, found a device, a pipe or a socket"), "{text}");
        assert!(!socket.metadata().expect("it is there").is_file());
    }
    line(d, "report {}/run/report.json --csv --out {}/other/page.html").ok();
    let other = |name: &str| fs::read_to_string(d.join("other").join(name)).expect("a file");
    assert_eq!((other("page.html"), other("series.csv")), (html, csv));
}

#[test]
fn report_refuses_what_is_no_report() {
    let dir = workplace();
    let d = dir.path();
    fs::create_dir(d.join("empty")).expect("a folder");
    put(d, "list.json", "[1, 2]");
    put(d, "half.json", "{\"summary\": {}, \"seeds\": [], \"settings\": {}}");
    for (args, expected) in [
        ("{}/empty", "report.json"),
        ("{}/none", "none"),
        ("{}/model/config.json", "the report.json of a probe, of a comparison or of a sweep"),
        ("{}/list.json", "no object"),
        ("{}/half.json", "half.json"),
    ] {
        let text = line(d, &format!("report {args}")).refused();
        assert!(text.contains(expected), "{args}: {text}");
    }
    assert!(!d.join("report.html").exists() && !d.join("model/report.html").exists());
}

#[test]
fn report_of_a_training_has_its_losses_by_run() {
    let dir = workplace();
    let d = dir.path();
    put(d, "train.jsonl", super::trained::DATA);
    put(d, "held.jsonl", super::grid::ASKED);
    let train = "train-lora --model {}/model --train {}/train.jsonl --batch-size 5 --max-steps 4 --eval {}/held.jsonl \
                 --eval-steps 2 --predict-with-generate --max-new-tokens 2";
    line(d, &format!("{train} --learning-rate 1e-2,1e-3 --seeds 4 --out {{}}/grid")).ok();
    line(d, "report {}/grid --csv").ok();
    let read = |name: &str| fs::read_to_string(d.join(name)).expect("a file");
    let (html, csv) = (read("grid/report.html"), read("grid/series.csv"));
    let best = serde_json::from_str::<serde_json::Value>(&read("grid/results.json")).expect("JSON")["best"].clone();
    let best = best.as_str().expect("a run").to_owned();
    for part in
        ["Training loss, runs 0 to 6", "Held-out loss", "Held-out exact match", "train-lora --config llamaprobe.yaml"]
    {
        assert!(html.contains(part), "{part}");
    }
    assert!(html.contains(&format!("Of 8 runs {best} is the best")) && html.contains(&format!("{best} (best)")));
    // Every value of the log is a point of its run.
    let lines = super::trained::log(&d.join("grid"));
    for (key, id) in [("loss", "loss"), ("eval_loss", "eval-loss"), ("eval_exact_match", "eval-exact-match")] {
        let mut count = 0;
        for logged in lines.iter().filter(|logged| logged.get(key).is_some()) {
            let run = logged["run"].as_u64().expect("a run");
            let (part, value) = (run / 7, logged[key].as_f64().expect("a number"));
            let row = format!("\n{id}-{part},run {run},{},{value},\n", logged["current_steps"]);
            assert!(csv.contains(&row), "{row}");
            count += 1;
        }
        assert_eq!(csv.matches(&format!("\n{id}-")).count(), count, "{key}");
    }
    line(d, "report {}/grid").ok();
    assert_eq!(read("grid/report.html"), html, "the same bytes");
    line(d, &format!("{train} --out {{}}/one")).ok();
    line(d, "report {}/one --out {}/page.html").ok();
    assert!(read("page.html").contains("held-out loss was lowest after step"));
    put(d, "one/trainer_log.jsonl", "{\"loss\": 1}\n");
    assert!(line(d, "report {}/one").refused().contains("trainer_log.jsonl"));
}
