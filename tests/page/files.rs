//! The files of a page: HTML and CSV.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use llamaprobe::page::{Study, render, series, write};
use serde_json::{Value, json};

use super::page;
use super::planted::{Planted, comparison, full, training};

/// Text that is markup unless it is escaped, in an element and in an attribute.
const MARKUP: &str = "<script>alert(1)</script>\"'&{{ 1 + 1 }}\u{0}";

/// Every text of a report but the names that its meaning depends on, replaced.
fn poisoned(value: &mut Value) {
    match value {
        Value::String(text) => *text = MARKUP.to_owned(),
        Value::Array(list) => list.iter_mut().for_each(poisoned),
        Value::Object(map) => {
            let meaning = ["arms", "arm", "vector", "source", "target"];
            map.iter_mut().filter(|(key, _)| !meaning.contains(&key.as_str())).for_each(|(_, value)| poisoned(value));
        }
        _ => {}
    }
}

#[test]
fn texts_of_a_report_are_no_markup() {
    let mut probe = full();
    poisoned(&mut probe);
    let arms = |report: &mut Value| report["pca"]["arms"][0]["arm"] = json!(MARKUP);
    arms(&mut probe);
    let mut compared = comparison();
    poisoned(&mut compared);
    for row in compared["rows"].as_array_mut().expect("rows") {
        (row["arm"], row["target"]) = (json!(MARKUP), json!(MARKUP));
    }
    for report in [probe, compared] {
        let html = render(&page(&report)).expect("HTML");
        assert!(html.contains("&lt;script&gt;"), "the text is shown");
        assert!(!html.to_lowercase().contains("<script"), "a text became an element");
        assert!(!html.contains('\u{0}') && !html.contains("\"'&{{"), "a text is not escaped");
        assert!(html.contains("{{ 1 + 1 }}"), "a text is not a template");
    }
}

#[test]
fn page_is_one_file_without_a_network() {
    for report in [Planted::default().report(), full(), comparison()] {
        let html = render(&page(&report)).expect("HTML");
        for word in ["<script", "src=", "@import", "url(", "href=\"http", "<img", "<iframe"] {
            assert!(!html.contains(word), "{word}");
        }
        assert_eq!(html.matches("<svg").count(), html.matches("</svg>").count());
        // What looks like anything is left to the style sheet.
        assert!(!html.contains("fill=\"#") && !html.contains("stroke=\"#") && !html.contains("font-family=\""));
    }
}

#[test]
fn figures_are_drawn_named_and_described() {
    let page = page(&full());
    let html = render(&page).expect("HTML");
    let ids: Vec<&str> = page.figures().map(|figure| figure.id.as_str()).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "two figures of one name: {ids:?}");
    assert_eq!(html.matches("role=\"img\"").count(), ids.len());
    for figure in page.figures() {
        assert!(html.contains(&format!("<figure id=\"{}\">", figure.id)), "{}", figure.id);
        assert!(html.contains(&format!("<title id=\"{}-title\">{}</title>", figure.id, figure.title)), "{}", figure.id);
        let alt = figure.alt();
        assert!(figure.series.iter().all(|series| alt.contains(&series.name)), "{alt}");
    }
    let update = page.figures().find(|figure| figure.id == "update").expect("the update cosine").alt();
    assert!(update.contains("ICL–IT: 0.800 at 0, 0.800 at final, between 0.800 and 0.800."), "{update}");
}

#[test]
fn series_are_told_apart_without_colour() {
    for figure in page(&full()).figures() {
        let looks: BTreeSet<u8> = figure.series.iter().map(|series| series.look.0).collect();
        assert_eq!(looks.len(), figure.series.len(), "{}: two series look the same", figure.id);
    }
}

#[test]
fn same_report_gives_the_same_bytes() {
    for report in [full(), comparison()] {
        let again: Value = serde_json::from_str(&report.to_string()).expect("JSON");
        let (first, second) = (page(&report), page(&again));
        assert_eq!(render(&first).expect("HTML"), render(&second).expect("HTML"));
        assert_eq!(series(&first), series(&second));
    }
}

/// The cells of a line of CSV, in which no cell has a line end.
fn cells(line: &str) -> Vec<String> {
    let (mut cells, mut quoted) = (vec![String::new()], false);
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => cells.push(String::new()),
            c => cells.last_mut().expect("a cell").push(c),
        }
    }
    cells
}

#[test]
fn csv_has_every_value_of_every_series() {
    let mut report = full();
    report["summary"]["layers"][1]["update"] = json!({"mean": 0.1 + 0.2, "sd": null});
    let page = page(&report);
    let text = series(&page);
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("figure,series,x,mean,sd"));
    let mut found: Vec<Vec<String>> = lines.map(cells).collect();
    found.reverse();
    for figure in page.figures() {
        for series in &figure.series {
            for point in &series.points {
                let row = found.pop().expect("a line for every value");
                assert_eq!(row[..3], [figure.id.clone(), series.name.clone(), figure.x(point)]);
                let number = |cell: &String| (!cell.is_empty()).then(|| cell.parse::<f64>().expect("a number"));
                assert_eq!([number(&row[3]), number(&row[4])], [point.y.mean, point.y.sd]);
            }
        }
    }
    assert!(found.is_empty(), "lines of no series: {found:?}");
    assert!(text.contains("update,ICL–IT,1,0.30000000000000004,\n"), "numbers read back as they were");
}

#[test]
fn reports_are_told_apart_by_their_content() {
    let of = |report: &Value| Study::of(report, Path::new("x/report.json"));
    assert_eq!(of(&full()).expect("a probe"), Study::Probe);
    assert_eq!(of(&comparison()).expect("a comparison"), Study::Compare);
    assert_eq!(of(&training()).expect("a training"), Study::Training);
    for (other, found) in [(json!({"model_type": "llama"}), "model_type"), (json!([]), "no object")] {
        let error = of(&other).expect_err("no report").to_string();
        assert!(error.contains("x/report.json") && error.contains(found), "{error}");
    }
}

/// Pages with everything on them, which `.ci/run` opens in a browser.
#[test]
fn pages_are_written_with_their_series() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pages");
    for (name, report) in [("probe", full()), ("compare", comparison()), ("training", training())] {
        let (html, csv) = (folder.join(format!("{name}.html")), folder.join(format!("{name}.csv")));
        let page = page(&report);
        write(&page, &html, Some(&csv)).expect("written");
        assert_eq!(fs::read_to_string(html).expect("HTML"), render(&page).expect("HTML"));
        assert_eq!(fs::read_to_string(csv).expect("CSV"), series(&page));
    }
}
