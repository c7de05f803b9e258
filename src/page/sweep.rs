//! The page of a sweep: what varies with what, and a row for every cell.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::model::{Answer, Block, Figure, Kind, Look, Page, Section, Series, Table, Tone};
use super::words::{count, list, number};
use crate::formats::json::word;
use crate::probe::statistics::MeanSd;
use crate::{Error, Result};

/// Most rows that are shown; `table.csv` has all.
const MOST_ROWS: usize = 500;
/// Decimals of a value.
const DIGITS: usize = 4;

/// What the page needs of a sweep's `report.json`, see [`crate::sweep::merge`].
#[derive(Deserialize)]
struct Report {
    sweep: Grid,
    rows: Vec<Row>,
    missing: Vec<Missing>,
}

#[derive(Deserialize)]
struct Grid {
    command: String,
    flags: Map<String, Value>,
    grid: Map<String, Value>,
}

#[derive(Deserialize)]
struct Row {
    cell: String,
    levels: Map<String, Value>,
    part: Map<String, Value>,
    values: Map<String, Value>,
}

#[derive(Deserialize)]
struct Missing {
    levels: Map<String, Value>,
    error: Option<String>,
}

/// A quantity of cells, by what the columns of the table are called.
struct Quantity {
    title: &'static str,
    unit: &'static str,
    /// Columns with their names in the legend.
    columns: &'static [(&'static str, &'static str)],
    /// Whether more is better, of the first column that is there; none where neither is.
    greater: Option<bool>,
}

/// Of each command the quantities, the first of which the verdict is about.
const QUANTITIES: [Quantity; 6] = [
    Quantity {
        title: "Accuracy",
        unit: "share of queries",
        columns: &[
            ("accuracy_icl", "ICL"),
            ("accuracy_it", "IT"),
            ("accuracy_anchor", "query alone"),
            ("accuracy_pt", "PT"),
            ("accuracy_ipt", "IPT"),
        ],
        greater: Some(true),
    },
    Quantity {
        title: "Cosine of the updates of ICL and IT",
        unit: "cosine, mean over the layers",
        columns: &[("update", "same query"), ("update_shuffled", "other queries")],
        greater: None,
    },
    Quantity { title: "Score", unit: "score, 0 to 100", columns: &[("score", "score")], greater: Some(true) },
    Quantity {
        title: "Held-out loss",
        unit: "nats a label token",
        columns: &[("eval_loss", "held out")],
        greater: Some(false),
    },
    Quantity {
        title: "Training loss",
        unit: "nats a label token",
        columns: &[("loss", "last step")],
        greater: Some(false),
    },
    Quantity { title: "Tokens", unit: "tokens", columns: &[("tokens", "tokens")], greater: None },
];

impl Report {
    fn has(&self, column: &str) -> bool {
        self.rows.iter().any(|row| row.value(column).is_some())
    }

    /// The quantities that some row has.
    fn quantities(&self) -> impl Iterator<Item = &'static Quantity> {
        QUANTITIES.iter().filter(|quantity| quantity.columns.iter().any(|(column, _)| self.has(column)))
    }

    /// Flags of the grid with more than one value, and the values.
    fn varied(&self) -> impl Iterator<Item = (&String, &Vec<Value>)> {
        let all = self.sweep.grid.iter().filter_map(|(flag, values)| Some((flag, values.as_array()?)));
        all.filter(|(_, values)| values.len() > 1)
    }

    fn cells(&self) -> usize {
        let mut names: Vec<&str> = self.rows.iter().map(|row| row.cell.as_str()).collect();
        names.dedup();
        names.len() + self.missing.len()
    }
}

impl Row {
    fn value(&self, column: &str) -> Option<f64> {
        self.values.get(column)?.as_f64()
    }

    /// What tells it from other rows.
    fn name(&self) -> String {
        let told = self.levels.iter().chain(&self.part).filter(|(name, value)| !value.is_null() && *name != "sha256");
        told.map(|(name, value)| format!("{name}={}", word(value))).collect::<Vec<_>>().join(" ")
    }
}

/// The page of the content of a sweep's `report.json`, which stands at `path`; `command` repeats it.
///
/// # Errors
/// It is not a sweep's report.
pub fn page(report: &Value, path: &Path, command: &str) -> Result<Page> {
    let report = Report::deserialize(report).map_err(Error::file(path))?;
    let summary = report.quantities().next().map(|quantity| figures(&report, quantity)).unwrap_or_default();
    let further = report.quantities().skip(1).map(|quantity| section(quantity, figures(&report, quantity)));
    let sections = further.chain([cells(&report)]).chain(missing(&report)).chain([settings(&report)]);
    Ok(Page {
        title: format!("{} of {}", count(report.cells(), "cell", "cells"), report.sweep.command),
        asked: vec![asked(&report)],
        verdict: verdict(&report),
        answers: report.varied().filter_map(|(flag, values)| answer(&report, flag, values)).collect(),
        over: "all rows with this value".to_owned(),
        summary,
        sections: sections.filter(|section| !section.blocks.is_empty()).collect(),
        command: command.to_owned(),
    })
}

fn asked(report: &Report) -> String {
    let flags: Vec<String> = report.varied().map(|(flag, values)| format!("{flag} ({})", values.len())).collect();
    let over = if flags.is_empty() { "one combination of flags".to_owned() } else { list(&flags) };
    format!("What does {} find over {over}? Every combination is a cell, a run of its own.", report.sweep.command)
}

/// The value by which cells are told better or worse, and whether more is better.
fn criterion(report: &Report) -> Option<(&'static Quantity, &'static str, bool)> {
    let quantity = report.quantities().find(|quantity| quantity.greater.is_some())?;
    let (column, _) = quantity.columns.iter().find(|(column, _)| report.has(column))?;
    Some((quantity, column, quantity.greater?))
}

fn verdict(report: &Report) -> String {
    let lacking = match report.missing.len() {
        0 => String::new(),
        n => format!("{} of {} without a result; ", count(n, "cell", "cells"), report.cells()),
    };
    let Some((quantity, column, greater)) = criterion(report) else {
        return format!("{lacking}{} of values", count(report.rows.len(), "row", "rows"));
    };
    let order = |a: &f64, b: &f64| if greater { a.total_cmp(b) } else { b.total_cmp(a) };
    let values = report.rows.iter().filter_map(|row| Some((row, row.value(column)?)));
    // Of equal ones the first.
    let best = values.reduce(|best, next| if order(&best.1, &next.1).is_lt() { next } else { best });
    match best {
        None => format!("{lacking}no cell has a value"),
        Some((row, value)) => {
            let equals = report.rows.iter().filter(|row| row.value(column) == Some(value)).count();
            let name = quantity.columns.iter().find(|(name, _)| *name == column).map_or("", |(_, name)| *name);
            let (what, value) = (format!("{} ({name})", quantity.title), number(value, DIGITS));
            match (equals, report.rows.len()) {
                (1, _) => format!("{lacking}{what} is best at {}: {value}", row.name()),
                (equals, all) if equals == all => format!("{lacking}{what} is {value} in every row"),
                (equals, _) => {
                    let others = count(equals - 1, "other row", "other rows");
                    format!("{lacking}{what} is best at {} and {others}: {value}", row.name())
                }
            }
        }
    }
}

/// The means of a column by the values of a flag, over all other flags.
fn means(report: &Report, flag: &str, values: &[Value], column: &str) -> Vec<MeanSd> {
    let of = |value: &Value| {
        let rows = report.rows.iter().filter(|row| row.levels.get(flag) == Some(value));
        MeanSd::of(rows.filter_map(|row| row.value(column)))
    };
    values.iter().map(of).collect()
}

/// Whether a flag matters: the range of its means, beside the range of all rows.
fn answer(report: &Report, flag: &str, values: &[Value]) -> Option<Answer> {
    let (quantity, column, _) = criterion(report)?;
    let of = means(report, flag, values, column);
    let range = |values: &mut dyn Iterator<Item = f64>| {
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        high - low
    };
    let own = range(&mut of.iter().filter_map(|mean| mean.mean));
    let whole = range(&mut report.rows.iter().filter_map(|row| row.value(column)));
    if !own.is_finite() || !whole.is_finite() {
        return None;
    }
    let share = if whole > 0.0 { own / whole } else { 0.0 };
    let (word, tone) = match share {
        share if share >= 0.5 => ("Yes", Tone::Yes),
        share if share >= 0.2 => ("Partly", Tone::Partly),
        _ => ("Hardly", Tone::No),
    };
    let shown =
        |(value, mean): (&Value, &MeanSd)| Some(format!("{} at {}", number(mean.mean?, DIGITS), self::word(value)));
    let shown: Vec<String> = values.iter().zip(&of).filter_map(shown).collect();
    Some(Answer {
        question: format!("Does {flag} matter for {}?", quantity.title.to_lowercase()),
        word: word.to_owned(),
        tone,
        text: format!(
            "Means over all other flags: {}. They span {:.0} % of the range of all rows (from 50 % on yes, from 20 % on partly).",
            list(&shown),
            100.0 * share
        ),
    })
}

/// A figure of a quantity for every flag that varies: means and SD over all other flags.
fn figures(report: &Report, quantity: &Quantity) -> Vec<Block> {
    let figure = |(flag, values): (&String, &Vec<Value>)| {
        let series = |(i, (column, name)): (usize, &(&str, &str))| {
            Series::placed(*name, Look::nth(i), means(report, flag, values, column).into_iter().map(Some))
        };
        let slug = |text: &str| text.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let figure = Figure {
            id: format!("{}-by-{}", slug(quantity.title), slug(flag)),
            title: format!("{} by {flag}", quantity.title),
            note: "Mean over all rows with this value, band or line: SD over them.".to_owned(),
            x_label: flag.clone(),
            y_label: quantity.unit.to_owned(),
            ticks: values.iter().map(word).collect(),
            y_range: None,
            kind: Kind::Lines,
            series: quantity.columns.iter().enumerate().map(series).collect(),
        };
        figure.filled().map(Block::Figure)
    };
    report.varied().filter_map(figure).collect()
}

fn section(quantity: &Quantity, blocks: Vec<Block>) -> Section {
    let id = quantity.title.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    Section { id: format!("of-{id}"), title: quantity.title.to_owned(), text: Vec::new(), blocks }
}

fn cells(report: &Report) -> Section {
    let mut columns: Vec<&str> = Vec::new();
    for quantity in report.quantities() {
        columns.extend(quantity.columns.iter().map(|(column, _)| *column).filter(|column| report.has(column)));
    }
    let row = |row: &Row| {
        let value = |column: &&str| row.value(column).map_or_else(|| "–".to_owned(), |value| number(value, DIGITS));
        std::iter::once(row.name()).chain(columns.iter().map(value)).chain([row.cell.clone()]).collect()
    };
    let header = std::iter::once("levels").chain(columns.iter().copied()).chain(["cell"]).map(str::to_owned).collect();
    let rows: Vec<Vec<String>> = report.rows.iter().take(MOST_ROWS).map(row).collect();
    let left_out = report.rows.len() - rows.len();
    let mut text = vec!["table.csv has all values; the files of a cell lie in cells/ under its name.".to_owned()];
    if left_out > 0 {
        text.push(format!("{} more are in table.csv alone.", count(left_out, "row", "rows")));
    }
    let table = Table { caption: String::new(), header, rows, text: false };
    Section { id: "cells".to_owned(), title: "Cells".to_owned(), text, blocks: vec![Block::Table(table)] }
}

fn missing(report: &Report) -> Option<Section> {
    let row = |missing: &Missing| {
        let name: Vec<String> = missing.levels.iter().map(|(flag, value)| format!("{flag}={}", word(value))).collect();
        vec![name.join(" "), missing.error.clone().unwrap_or_else(|| "not run".to_owned())]
    };
    let rows: Vec<Vec<String>> = report.missing.iter().map(row).collect();
    let header = vec!["levels".to_owned(), "error".to_owned()];
    let table = Table { caption: String::new(), header, rows, text: true };
    (!report.missing.is_empty()).then(|| Section {
        id: "missing".to_owned(),
        title: "Cells without a result".to_owned(),
        text: Vec::new(),
        blocks: vec![Block::Table(table)],
    })
}

fn settings(report: &Report) -> Section {
    let flags: BTreeMap<&String, String> = report.sweep.flags.iter().map(|(flag, value)| (flag, word(value))).collect();
    let rows = flags.into_iter().map(|(flag, value)| vec![flag.clone(), value]);
    let of_grid = report.sweep.grid.iter().map(|(flag, values)| {
        let values = values.as_array().into_iter().flatten().map(word).collect::<Vec<_>>().join(" · ");
        vec![flag.clone(), values]
    });
    let header = vec!["flag".to_owned(), "value".to_owned()];
    let table = Table { caption: String::new(), header, rows: rows.chain(of_grid).collect(), text: true };
    Section {
        id: "settings".to_owned(),
        title: "Settings".to_owned(),
        text: Vec::new(),
        blocks: vec![Block::Table(table)],
    }
}
