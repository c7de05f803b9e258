//! What a page says in words.

use llamaprobe::page::model::{Block, Series, Tone};
use serde_json::json;

use super::planted::{Planted, comparison, conditions, full, mean_sd, patching, training};
use super::{answer, page};

/// Planted numbers, words of the headline, the answer to whether the states moved, and that to the direction.
fn cases() -> Vec<(Planted, &'static str, &'static str, &'static str)> {
    let planted = Planted::default();
    let still = Planted { anchor_icl: 0.995, anchor_it: 0.996, icl_it: 0.994, sd: 0.001, ..planted.clone() };
    vec![
        (planted.clone(), "in the same direction, query by query", "Both moved", "Yes"),
        (Planted { shuffled: 0.6, ..planted.clone() }, "most of it common to all queries", "Both moved", "Yes"),
        // The trap: the raw cosine is high because nothing moved, whatever the updates say.
        (still.clone(), "Neither ICL nor instruction tuning moved", "Neither moved", "Does not apply"),
        (Planted { update: 0.05, shuffled: 0.04, ..still.clone() }, "says nothing", "Neither moved", "Does not apply"),
        // As far from 1 as the planted move, but within the spread of the seeds.
        (Planted { sd: 0.31, ..planted.clone() }, "Neither", "Neither moved", "Does not apply"),
        (
            Planted { anchor_it: 0.999, ..planted.clone() },
            "instruction tuning did not",
            "Only ICL moved",
            "Does not apply",
        ),
        (Planted { anchor_icl: 0.999, ..planted.clone() }, "ICL did not", "Only IT moved", "Does not apply"),
        (Planted { update: 0.02, shuffled: 0.01, ..planted.clone() }, "in different directions", "Both moved", "No"),
        (
            Planted { update: -0.6, shuffled: 0.0, ..planted.clone() },
            "in opposite directions",
            "Both moved",
            "Opposite",
        ),
        (Planted { update: 0.35, shuffled: 0.1, ..planted.clone() }, "alike only in part", "Both moved", "In part"),
        (Planted { update: 0.8, shuffled: 0.79, ..planted }, "one shift", "Both moved", "Only a common shift"),
    ]
}

#[test]
fn verdict_says_what_the_numbers_are() {
    for (i, (planted, headline, moved, direction)) in cases().into_iter().enumerate() {
        let page = page(&planted.report());
        assert!(page.verdict.contains(headline), "case {i}: {}", page.verdict);
        let found = ["states move?", "same direction?"].map(|question| answer(&page, question).word.as_str());
        assert_eq!(found, [moved, direction], "case {i}");
    }
}

#[test]
fn verdict_warns_of_a_high_cosine_of_states_that_stayed() {
    let still = Planted { anchor_icl: 0.995, anchor_it: 0.996, icl_it: 0.994, sd: 0.001, ..Planted::default() };
    let page = page(&still.report());
    let text = &answer(&page, "states move?").text;
    assert!(text.contains("the 0.994 ± 0.001 of ICL–IT is no likeness") && text.contains("0.995 ± 0.001"), "{text}");
}

#[test]
fn verdict_names_baselines_with_their_spread() {
    let text = &answer(&page(&Planted::default().report()), "same direction?").text.clone();
    for number in ["0.800 ± 0.020", "0.300 ± 0.020", "0.001 ± 0.020", "3 of 3 layers"] {
        assert!(text.contains(number), "{number}: {text}");
    }
}

/// Recoveries of ICL's state and of the random vector, accuracy of ICL, and the answer.
#[test]
fn patching_is_a_cause_only_above_the_random_vector() {
    let gains = [0.5, 0.95, 0.93];
    for (blocks, accuracy, word, tone) in [
        (vec![[0.1, 0.0], [0.9, 0.05], [1.0, 0.0]], gains, "Yes", Tone::Yes),
        (vec![[0.1, 0.0], [0.9, 0.5], [1.0, 0.0]], gains, "In part", Tone::Partly),
        (vec![[0.1, 0.0], [0.5, 0.05], [1.0, 0.0]], gains, "In part", Tone::Partly),
        (vec![[0.1, 0.0], [0.9, 0.85], [1.0, 0.9]], gains, "No", Tone::No),
        // After the last block the state is all that the answer is made of: that is no evidence.
        (vec![[0.0, 0.0], [0.05, 0.0], [1.0, 0.0]], gains, "No", Tone::No),
        (vec![[0.0, 0.0], [3.0, 0.0], [1.0, 0.0]], [0.5, 0.51, 0.93], "Nothing to recover", Tone::Open),
    ] {
        let mut report = Planted { accuracy, ..Planted::default() }.report();
        report["summary"]["patching"] = patching(&blocks);
        let page = page(&report);
        let found = answer(&page, "cause the answers?");
        assert_eq!((found.word.as_str(), found.tone), (word, tone), "{blocks:?}: {}", found.text);
    }
    let untested = page(&Planted::default().report());
    assert_eq!(answer(&untested, "cause the answers?").word, "Not tested");
}

#[test]
fn patching_is_in_the_headline() {
    let mut report = Planted::default().report();
    for (blocks, words) in
        [([[0.9, 0.0], [1.0, 0.0]], "enough for its answers"), ([[0.1, 0.0], [1.0, 0.0]], "does not bring")]
    {
        report["summary"]["patching"] = patching(&blocks);
        let verdict = page(&report).verdict;
        assert!(verdict.contains(words), "{verdict}");
    }
}

#[test]
fn scores_agree_where_both_gain_alike() {
    for (accuracy, word) in [
        ([0.5, 0.95, 0.93], "Both learn, equally well"),
        ([0.5, 0.95, 0.7], "Both learn, not equally well"),
        ([0.5, 0.95, 0.51], "Only ICL clearly learns"),
        ([0.5, 0.51, 0.95], "Only IT clearly learns"),
        ([0.5, 0.51, 0.5], "Neither is above the query alone"),
    ] {
        let page = page(&Planted { accuracy, ..Planted::default() }.report());
        assert_eq!(answer(&page, "answers agree?").word, word);
    }
}

#[test]
fn factors_matter_where_the_numbers_change() {
    let mut report = Planted::default().report();
    assert_eq!(answer(&page(&report), "depend?").word, "Not varied");
    report["conditions"] = conditions(&[("10", 0.8, 0.95), ("0", 0.1, 0.5), ("2", 0.5, 0.8)]);
    let varied = page(&report);
    let found = answer(&varied, "depend?");
    assert_eq!((found.word.as_str(), found.tone), ("Demos", Tone::Yes));
    assert!(found.text.contains("Demos: update cosine 0.10 (0) to 0.80 (10)"), "{}", found.text);
    let figure = varied.figures().find(|figure| figure.id == "demos-accuracy").expect("a figure of the factor");
    assert_eq!(figure.ticks, ["0", "2", "10"], "numbers in their order");
    report["conditions"] = conditions(&[("10", 0.8, 0.95), ("12", 0.81, 0.94)]);
    assert_eq!(answer(&page(&report), "depend?").tone, Tone::No);
}

#[test]
fn measures_are_drawn_with_their_baselines() {
    let page = page(&full());
    for (id, series) in [
        ("cosine", vec![("anchor–ICL", 0.4), ("anchor–IT", 0.45), ("ICL–IT", 0.9)]),
        ("measure-cka", vec![("anchor–ICL", 0.4), ("ICL–IT", 0.8), ("shuffled queries", 0.1), ("Gaussian noise", 0.2)]),
        ("measure-sim_aou", vec![("ICL–IT", 0.5), ("Gaussian noise", 0.0)]),
        ("measure-id", vec![("anchor", 6.0), ("ICL", 3.0), ("IT", 3.0), ("ICL, Gaussian noise", 40.0)]),
        ("measure-lora_overlap", vec![("between seeds", 0.3), ("random updates", 0.1)]),
        ("readout-probe_accuracy", vec![("ICL", 0.9), ("IT", 0.9), ("ICL, shuffled labels", 0.5)]),
    ] {
        let figure = page.figures().find(|figure| figure.id == id).unwrap_or_else(|| panic!("{id}"));
        let first = |series: &Series| (series.name.clone(), series.points[0].y.mean.expect("a value"));
        let expected: Vec<_> = series.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        assert_eq!(figure.series.iter().map(first).collect::<Vec<_>>(), expected, "{id}");
    }
}

/// Measures of the answers stand in a table, with those of shuffled queries.
#[test]
fn answers_are_measured_in_a_table() {
    let page = page(&full());
    let section = page.sections.iter().find(|section| section.id == "answers").expect("a section");
    let table = section.blocks.iter().find_map(|block| match block {
        Block::Table(table) => Some(table),
        Block::Figure(_) => None,
    });
    let rows = &table.expect("a table").rows;
    assert_eq!(rows[0][1..], ["ICL–IT", "0.970 ± 0.010", "0.500 ± 0.000"]);
    assert_eq!(rows[1][1..], ["ICL", "0.100 ± 0.010", "–"]);
    assert_eq!(rows[2][1..], ["", "95.000 ± 2.000", "60.000 ± 2.000"]);
    assert!(answer(&page, "answers agree?").text.contains("the same answer to 0.970"));
}

#[test]
fn examples_show_their_tokens_apart() {
    let page = page(&full());
    let section = page.sections.iter().find(|section| section.id == "examples").expect("a section");
    let Some(Block::Table(table)) = section.blocks.first() else { panic!("{:?}", section.blocks) };
    assert_eq!(table.rows[0][..3], ["Review:| fine| &| dandy|⏎\n|Sentiment:", "yes", "yes\nno: −2.40\nyes: −0.10"]);
}

/// A task of a file stands in the settings whole; choices are of a query.
#[test]
fn task_of_a_file_is_named_and_choices_and_lengths_are_said() {
    let mut report = full();
    report["settings"]["task"] = json!({"name": "my-task", "train": ["train.csv"], "input": "text"});
    report["settings"]["length_normalization"] = json!("bytes");
    report["plan"] = json!({"labels": null, "queries": [{"index": 0, "choices": ["fish", "a fowl"]}]});
    report["examples"][0]["answers"][0]["predicted"] = json!("a fowl");
    let page = page(&report);
    assert!(
        page.title.ends_with("on my-task") && page.asked[0].contains("demonstrations of my-task before"),
        "{:?}",
        page.asked
    );
    assert!(answer(&page, "answers agree?").text.starts_with("Accuracy per byte (acc_bytes): "));
    let scores = page.summary.iter().find_map(|block| if let Block::Table(table) = block { Some(table) } else { None });
    assert_eq!(scores.expect("scores").header[1], "accuracy per byte (acc_bytes)");
    let section = page.sections.iter().find(|section| section.id == "examples").expect("a section");
    let Some(Block::Table(table)) = section.blocks.first() else { panic!("{:?}", section.blocks) };
    assert_eq!(table.rows[0][2], "a fowl\nfish: −2.40\na fowl: −0.10");
    let figure = page.figures().find(|figure| figure.id == "accuracy").expect("a figure");
    assert_eq!(figure.note, "Guessing among each query’s choices: 0.500.");
}

/// Free text has no accuracy: what ICL gains is then log-probability.
#[test]
fn patching_of_free_text_recovers_log_probability() {
    let mut report = full();
    for arm in ["anchor", "icl", "it"] {
        report["summary"]["accuracy"][arm] = json!({"mean": null, "sd": null});
    }
    for block in report["summary"]["patching"].as_array_mut().expect("blocks") {
        for vector in block["vectors"].as_array_mut().expect("vectors") {
            vector["recovery_accuracy"] = json!({"mean": null, "sd": null});
        }
    }
    let page = page(&report);
    let found = answer(&page, "cause the answers?");
    assert_eq!(found.word, "Yes");
    assert!(found.text.contains("93% of ICL’s gain of 0.600 nats"), "{}", found.text);
}

#[test]
fn soft_prompts_are_further_arms() {
    let mut report = Planted::default().report();
    let layer = json!({"layer": 0, "anchor": mean_sd(0.3, 0.01), "pairs": [{"with": "icl", "cosine": mean_sd(0.6, 0.02),
        "update": mean_sd(0.55, 0.02), "update_shuffled": mean_sd(0.1, 0.02)}]});
    report["summary"]["soft"] = json!([{"arm": "pt", "accuracy": mean_sd(0.8, 0.05), "log_prob": mean_sd(-0.3, 0.1),
        "loss": [mean_sd(1.0, 0.1), mean_sd(0.4, 0.1)], "layers": [layer, layer, layer]}]);
    let page = page(&report);
    assert!(page.asked[0].ends_with("Beside them: PT (a soft prompt)."), "{:?}", page.asked);
    let names = |id: &str| {
        let figure = page.figures().find(|figure| figure.id == id).unwrap_or_else(|| panic!("{id}"));
        figure.series.iter().map(|series| series.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(names("cosine-pt"), ["anchor–PT", "ICL–PT"]);
    assert_eq!(names("update-pt"), ["ICL–PT"]);
    assert_eq!(names("loss"), ["IT", "PT"]);
    assert_eq!(names("cosine"), ["anchor–ICL", "anchor–IT", "ICL–IT"]);
}

#[test]
fn one_seed_is_said_to_have_no_spread() {
    let mut report = Planted::default().report();
    report["seeds"].as_array_mut().expect("seeds").truncate(1);
    assert!(answer(&page(&report), "same direction?").text.contains("One seed"));
}

#[test]
fn page_has_a_section_for_all_that_is_there() {
    let sections =
        |report: &serde_json::Value| page(report).sections.into_iter().map(|section| section.id).collect::<Vec<_>>();
    let least = ["measures", "answers", "tuning", "settings"];
    assert_eq!(sections(&Planted::default().report()), least);
    let all =
        ["measures", "factor-demos", "answers", "patching", "readouts", "components", "tuning", "examples", "settings"];
    assert_eq!(sections(&full()), all);
    assert_eq!(page(&full()).command, "llamaprobe probe --vary demos=10,0,2 --out run");
    // Free text has no labels and no accuracy.
    let mut report = Planted::default().report();
    for arm in ["anchor", "icl", "it"] {
        report["summary"]["accuracy"][arm] = json!({"mean": null, "sd": null});
    }
    let page = page(&report);
    assert_eq!(answer(&page, "answers agree?").word, "No accuracy");
    assert!(page.figures().all(|figure| figure.id != "accuracy"));
}

#[test]
fn comparison_says_who_is_above_whom() {
    let page = page(&comparison());
    assert!(
        page.verdict.contains("ipt (32) scores highest (55.0 ± 2.0 parse match), clearly above"),
        "{}",
        page.verdict
    );
    for (question, word) in [
        ("Does a soft prompt beat", "Yes"),
        ("help a soft prompt?", "Yes"),
        ("steadier", "Yes"),
        ("likeness", "Higher where they are alike"),
    ] {
        assert_eq!(answer(&page, question).word, word, "{question}");
    }
    assert!(page.asked[0].contains("Judged by parse match; "), "{}", page.asked[0]);
    let mut other = comparison();
    other["metrics"][0]["metric"] = json!("BLEU");
    other["metrics"][0]["signature"] = json!("nrefs:1|tok:13a");
    assert!(super::page(&other).asked[0].contains("Judged by BLEU (nrefs:1|tok:13a); "));
    // Bars of one value each are a row each in the table of their numbers.
    let html = llamaprobe::page::render(&page).expect("a page");
    let table = html.split("<summary>Numbers</summary>").nth(1).expect("a table");
    let table = table.split("</table>").next().expect("its end").replace(['\n', ' '], "");
    assert!(table.contains("pt(8)") && table.contains("30.0000±4.0000") && !table.contains('–'), "{table}");
    let mut same = comparison();
    for row in same["rows"].as_array_mut().expect("rows") {
        row["interval"] = json!({"low": 0.0, "high": 100.0});
    }
    assert_eq!(answer(&super::page(&same), "Does a soft prompt beat").word, "Not told apart");
}

#[test]
fn comparison_shows_what_was_written() {
    let page = page(&comparison());
    let section = page.sections.iter().find(|section| section.id == "examples").expect("a section");
    let Some(Block::Table(table)) = section.blocks.first() else { panic!("{:?}", section.blocks) };
    assert_eq!(table.header, ["query", "gold", "zero-shot", "icl-retrieved", "pt (32)", "ipt (32)"]);
    assert_eq!(table.rows[0][..3], ["ring <him>", "[IN:CALL ]", "zero-shot writes⏎\nthis"]);
    let mut earlier = comparison();
    earlier["metrics"][0].as_object_mut().expect("an object").remove("examples");
    assert!(super::page(&earlier).sections.iter().all(|section| section.id != "examples"));
}

/// Rows of a sweep over two flags, with these accuracies.
fn sweep(accuracies: [f64; 4]) -> serde_json::Value {
    let row = |(i, accuracy): (usize, f64)| {
        let (demos, r) = ([2, 4][i / 2], [8, 16][i % 2]);
        json!({"cell": format!("{i}"), "levels": {"demos": demos, "r": r}, "part": {}, "values": {"accuracy_icl": accuracy}})
    };
    let rows: Vec<_> = accuracies.into_iter().enumerate().map(row).collect();
    json!({"sweep": {"command": "probe", "flags": {}, "grid": {"demos": [2, 4], "r": [8, 16]}}, "rows": rows, "missing": []})
}

#[test]
fn sweep_says_how_many_rows_are_best_and_what_its_means_are_over() {
    for (accuracies, verdict) in [
        ([0.5, 0.6, 0.7, 0.4], "Accuracy (ICL) is best at demos=4 r=8: 0.7000"),
        ([0.5, 0.7, 0.7, 0.4], "Accuracy (ICL) is best at demos=2 r=16 and 1 other row: 0.7000"),
        ([0.5; 4], "Accuracy (ICL) is 0.5000 in every row"),
    ] {
        assert_eq!(page(&sweep(accuracies)).verdict, verdict);
    }
    let html = llamaprobe::page::render(&page(&sweep([0.5, 0.6, 0.7, 0.4]))).expect("a page");
    assert!(html.contains("Mean ± SD over all rows with this value") && !html.contains("over the seeds"));
    let html = llamaprobe::page::render(&page(&full())).expect("a page");
    assert!(html.contains("Mean ± SD over the seeds"));
}

#[test]
fn training_is_told_by_its_best_run_and_by_what_losses_did() {
    let page = page(&training());
    assert_eq!(page.verdict, "Of 9 runs run-000 is the best, with eval_chrf 50.0000.");
    let fell = answer(&page, "training loss fall");
    assert_eq!((fell.word.as_str(), fell.tone), ("Yes", Tone::Yes));
    // Mean of the nine: 3.0 - 0.1 + 0.4 and 3.0 - 2.0 + 0.4.
    assert!(fell.text.contains("3.3000 and 1.4000"), "{}", fell.text);
    let rose = answer(&page, "rise again");
    assert_eq!((rose.word.as_str(), rose.tone), ("8 of 9", Tone::Partly), "{}", rose.text);
    // One run alone, without results: words of the curve itself.
    let mut alone = training();
    let log = alone["log"].as_array_mut().expect("lines");
    log.retain(|line| line["run"] == 0);
    log.iter_mut().for_each(|line| drop(line.as_object_mut().expect("an object").remove("run")));
    alone["results"] = serde_json::Value::Null;
    let page = super::page(&alone);
    assert_eq!(page.verdict, "The held-out loss was lowest after step 10: 2.0000.");
    assert_eq!(answer(&page, "rise again").word, "Yes");
}
