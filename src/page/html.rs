//! A page as one HTML file: the template and the style sheet beside this file, figures as SVG inside.

use serde_json::{Value, json};

use super::model::{Answer, Block, Figure, Kind, Page, Section, Series, Table, Tone};
use super::svg;
use super::words::{escape, mean_sd};
use crate::formats::jinja::{Fail, Template};
use crate::{Error, Result};

const TEMPLATE: &str = include_str!("page.html.jinja");
const STYLE: &str = include_str!("page.css");
/// Values of a figure that are shown as a table too, at most.
const LONGEST: usize = 2000;

/// The page as a file's text: the same bytes for the same page.
///
/// # Errors
/// A figure cannot be drawn, or the page is larger than a template may make it.
pub fn render(page: &Page) -> Result<String> {
    let failed = |fail: Fail| Error::argument("page", "one that the template can show", fail);
    let answers: Vec<Value> = page.answers.iter().map(answer).collect();
    let sections: Vec<Value> = page.sections.iter().map(|own| section(own, &page.over)).collect::<Result<_>>()?;
    let mut variables = escaped(json!({
        "title": page.title,
        "asked": page.asked,
        "verdict": page.verdict,
        "answers": answers,
        "command": page.command,
    }));
    variables["sections"] = sections.into();
    variables["summary"] = blocks(&page.summary, &page.over)?;
    variables["style"] = STYLE.into();
    let template = Template::parse(TEMPLATE).map_err(failed)?;
    Ok(template.render(&variables, |_| String::new()).map_err(failed)?.text)
}

/// The same with every text escaped: nothing that comes from a file gets past here, whatever the template does.
fn escaped(value: Value) -> Value {
    match value {
        Value::String(text) => escape(&text).into(),
        Value::Array(list) => list.into_iter().map(escaped).collect(),
        Value::Object(map) => map.into_iter().map(|(key, value)| (key, escaped(value))).collect(),
        other => other,
    }
}

fn answer(answer: &Answer) -> Value {
    let tone = match answer.tone {
        Tone::Yes => "yes",
        Tone::Partly => "partly",
        Tone::No => "no",
        Tone::Open => "open",
    };
    json!({"question": answer.question, "word": answer.word, "tone": tone, "text": answer.text})
}

fn section(section: &Section, over: &str) -> Result<Value> {
    let mut value = escaped(json!({"id": section.id, "title": section.title, "text": section.text}));
    value["blocks"] = blocks(&section.blocks, over)?;
    Ok(value)
}

/// `over` is what means and SDs of figures are over.
fn blocks(blocks: &[Block], over: &str) -> Result<Value> {
    let one = |block: &Block| match block {
        Block::Figure(shown) => figure(shown, over),
        Block::Table(shown) => Ok(json!({"table": table(shown)})),
    };
    blocks.iter().map(one).collect()
}

fn table(table: &Table) -> Value {
    escaped(json!({"caption": table.caption, "header": table.header, "rows": table.rows, "text": table.text}))
}

fn figure(figure: &Figure, over: &str) -> Result<Value> {
    let mut value = escaped(json!({"id": figure.id, "title": figure.title, "note": figure.note}));
    let spread = figure.series.iter().flat_map(|series| &series.points).any(|point| point.y.sd.is_some());
    let key = |series: &Series| Ok(json!({"name": escape(&series.name), "key": svg::key(series.look, figure.kind)?}));
    value["svg"] = svg::draw(figure)?.into();
    let shown = figure.series.iter().filter(|series| !is_named(figure, series));
    value["legend"] = shown.map(key).collect::<Result<Vec<Value>>>()?.into();
    value["numbers"] = numbers(figure, spread.then_some(over)).map_or(Value::Null, |numbers| table(&numbers));
    Ok(json!({"figure": value}))
}

/// Whether a series is of bars that have its name beside them.
fn is_named(figure: &Figure, series: &Series) -> bool {
    figure.kind == Kind::Bars && series.points.iter().all(|point| figure.x(point) == series.name)
}

/// A figure's values as a table: a row for every x; none where a table would be unreadable.
fn numbers(figure: &Figure, over: Option<&str>) -> Option<Table> {
    let points: usize = figure.series.iter().map(|series| series.points.len()).sum();
    if figure.kind == Kind::Scatter || points > LONGEST {
        return None;
    }
    let caption = over.map_or_else(String::new, |over| format!("Mean ± SD over {over}"));
    if figure.series.iter().all(|series| series.points.len() == 1 && is_named(figure, series)) {
        let row = |series: &Series| vec![series.name.clone(), mean_sd(series.points[0].y, 4)];
        let (header, rows) =
            (vec![figure.x_label.clone(), figure.y_label.clone()], figure.series.iter().map(row).collect());
        return Some(Table { caption, header, rows, text: false });
    }
    let mut places: Vec<(f64, String)> = Vec::new();
    for point in figure.series.iter().flat_map(|series| &series.points) {
        if !places.iter().any(|(x, _)| *x == point.x) {
            places.push((point.x, figure.x(point)));
        }
    }
    places.sort_by(|a, b| a.0.total_cmp(&b.0));
    let row = |(x, name): &(f64, String)| {
        let cell = |series: &Series| {
            let point = series.points.iter().find(|point| point.x == *x);
            point.map_or_else(|| "–".to_owned(), |point| mean_sd(point.y, 4))
        };
        std::iter::once(name.clone()).chain(figure.series.iter().map(cell)).collect()
    };
    let names = figure.series.iter().map(|series| series.name.clone());
    Some(Table {
        caption,
        header: std::iter::once(figure.x_label.clone()).chain(names).collect(),
        rows: places.iter().map(row).collect(),
        text: false,
    })
}
