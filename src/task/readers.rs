//! The original files of the data sets, row by row, as the values that the linearisations of
//! [`templates`](super::templates) are filled with.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::example::{Dataset, Example};
use super::metrics::{is_parse, sql_names};
use super::templates::{Linear, linearise};
use crate::formats::json::{self, Fields, show};
use crate::formats::jsonl;
use crate::formats::lines::{at, first};
use crate::formats::tables::{aligned, columns, tsv};
use crate::{Error, Result};

/// What reads the original files of a data set, or makes one; see [`synthetic`](super::synthetic).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reader {
    /// SST-2 as GLUE has it: TSV of sentence and label, 0 or 1.
    Sst2,
    /// Two files of the same number of lines, English and Czech, one sentence a line.
    #[serde(rename = "en-cs")]
    EnCs,
    /// ToTTo.
    Totto,
    /// DART.
    Dart,
    /// Logic2Text.
    Logic2Text,
    /// Spider.
    Spider,
    /// MTOP.
    Mtop,
    /// Good and bad events of the invented world ([`events`](super::synthetic::events)).
    Events,
    /// Animals and tools of the invented world ([`objects`](super::synthetic::objects)).
    Objects,
}

impl Reader {
    /// As task files spell it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Sst2 => "sst2",
            Self::EnCs => "en-cs",
            Self::Totto => "totto",
            Self::Dart => "dart",
            Self::Logic2Text => "logic2text",
            Self::Spider => "spider",
            Self::Mtop => "mtop",
            Self::Events => "events",
            Self::Objects => "objects",
        }
    }

    /// Reads the files of a task of some name and labels.
    ///
    /// # Errors
    /// Not the files that it takes, or files that are not of that form.
    pub(super) fn read(self, task: &str, labels: &[String], files: &[PathBuf]) -> Result<Dataset> {
        match (self, files) {
            (Self::Sst2, [file]) => {
                let [negative, positive] = labels else {
                    return Err(Error::argument("labels", "2", labels.len()));
                };
                sst2(file, [negative, positive])
            }
            (Self::EnCs, [english, czech]) => {
                let pair = |(e, c): (String, String)| Example::new(e.trim(), c.trim());
                Ok(aligned(english, czech)?.into_iter().map(pair).collect::<Vec<_>>().into())
            }
            (Self::Events | Self::Objects, _) => Err(Error::argument(format!("{task} data"), "no files", files.len())),
            (Self::Totto, [file]) => totto(file),
            (Self::Dart, [file]) => dart(file),
            (Self::Mtop, [file]) => mtop(file),
            (Self::Logic2Text, files) => logic2text(files),
            (Self::Spider, files) => spider(files),
            (Self::EnCs, _) => {
                Err(Error::argument(format!("{task} data"), "two aligned files, English and Czech", files.len()))
            }
            _ => Err(Error::argument(format!("{task} data"), "one file", files.len())),
        }
    }
}

/// DART (Nan et al. 2021): a JSON list of `{tripleset: [[s, r, o]], annotations: [{text}]}`. All texts of a row are
/// references; the first is learnt.
pub fn dart(path: &Path) -> Result<Dataset> {
    rows(path, list(path)?, |f| {
        let triples = f.require("tripleset", f.list("tripleset")?, "a list of triples")?;
        let triple = |t: &Value| t.as_array().is_some_and(|t| t.len() == 3 && t.iter().all(Value::is_string));
        if triples.is_empty() || !triples.iter().all(triple) {
            return Err(f.error("tripleset", "at least one [subject, relation, object]"));
        }
        let input = linearise(Linear::Dart, &json!({ "triples": triples }))?;
        example(f, input, "annotations", "text")
    })
}

/// ToTTo (Parikh et al. 2020): JSONL with the table, its highlighted cells and the annotators' final sentences. Rows
/// without a sentence (the hidden test set) or a highlighted cell are skipped.
pub fn totto(path: &Path) -> Result<Dataset> {
    rows(path, lines(path)?, |f| {
        let text = |key: &str| Ok(f.str(key)?.unwrap_or_default().trim());
        let table = Table::read(f)?;
        let cells = f.require("highlighted_cells", f.list("highlighted_cells")?, "a list of [row, column]")?;
        let cell = |indices: &Value| {
            let at = |i: usize| indices.get(i).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
            let found = at(0).zip(at(1)).and_then(|(row, column)| table.cell(row, column));
            found.ok_or_else(|| f.error("highlighted_cells", "indices of cells in the table"))
        };
        let cells: Vec<Value> = cells.iter().map(cell).collect::<Result<_>>()?;
        if cells.is_empty() {
            return Ok(Err("no highlighted cell"));
        }
        let values = json!({
            "page": text("table_page_title")?, "section": text("table_section_title")?, "cells": cells,
        });
        example(f, linearise(Linear::Totto, &values)?, "sentence_annotations", "final_sentence")
    })
}

/// Logic2Text (Chen et al. 2020): its JSON list, or the two aligned files of logic strings and sentences, which have
/// no tables: there the input is the logic alone.
pub fn logic2text(files: &[PathBuf]) -> Result<Dataset> {
    let row = |values: Value, logic: &str, sentence: &str| -> Result<Result<Example, &'static str>> {
        let mut example = Example::new(linearise(Linear::Logic2Text, &values)?, sentence);
        example.logical_form = Some(logic.to_string());
        Ok(Ok(example))
    };
    match files {
        [path] => rows(path, list(path)?, |f| {
            let text = |key: &str| f.require(key, f.str(key)?.map(str::trim).filter(|s| !s.is_empty()), "a text");
            let columns = f.require("table_header", f.list("table_header")?, "a list of columns")?;
            let (logic, sentence) = (text("logic_str")?, text("sent")?);
            row(json!({"caption": text("topic")?, "columns": columns, "logic": logic}), logic, sentence)
        }),
        [logic, sentences] => {
            let mut data = Dataset::default();
            for (logic, sentence) in aligned(logic, sentences)? {
                data.push(row(json!({"logic": logic.trim()}), logic.trim(), sentence.trim())?);
            }
            Ok(data)
        }
        _ => Err(Error::argument("logic2text data", "its JSON, or two aligned files, logic and text", files.len())),
    }
}

/// Spider (Yu et al. 2018): its JSON list and `tables.json`, or questions, queries and `tables.json`. Where the queries,
/// unlike those of its gold files, do not name their database behind a tab, it is the only one that has every table and
/// column of the query, and where there is no such one, or several, the pair is skipped.
pub fn spider(files: &[PathBuf]) -> Result<Dataset> {
    let (data, tables) = match files {
        [data, tables] => (std::slice::from_ref(data), tables),
        [_, _, tables] => (&files[..2], tables),
        _ => {
            let expected = "its JSON and tables.json, or two aligned files, questions and queries, and tables.json";
            return Err(Error::argument("spider data", expected, files.len()));
        }
    };
    let schemas = schemas(tables)?;
    let row = |schema: &Schema, question: &str, query: &str| -> Result<Result<Example, &'static str>> {
        let values = json!({"question": question, "database": schema.name, "tables": schema.tables});
        Ok(Ok(Example::new(linearise(Linear::Spider, &values)?, query)))
    };
    match data {
        [path] => rows(path, list(path)?, |f| {
            let text = |key: &str| f.require(key, f.str(key)?.map(str::trim).filter(|s| !s.is_empty()), "a text");
            let name = text("db_id")?;
            let schema = schemas.get(name);
            let schema = schema.ok_or_else(|| f.error("db_id", format!("a database of {}", tables.display())))?;
            row(schema, text("question")?, text("query")?)
        }),
        _ => {
            let mut out = Dataset::default();
            for (question, query) in aligned(&data[0], &data[1])? {
                // Its own gold files name the database behind each query.
                let named = query.rsplit_once('\t').map(|(query, name)| (query, schemas.get(name.trim())));
                if let Some((query, Some(schema))) = named {
                    out.push(row(schema, question.trim(), query.trim())?);
                    continue;
                }
                let (tables, names) = sql_names(&query);
                let fitting: Vec<&Schema> = schemas.values().filter(|schema| schema.fits(&tables, &names)).collect();
                out.push(match fitting[..] {
                    [schema] => row(schema, question.trim(), query.trim())?,
                    [] => Err("the query fits no database"),
                    _ => Err("the query fits several databases"),
                });
            }
            Ok(out)
        }
    }
}

/// MTOP (Li et al. 2021) in its published form, tab-separated: id, intent, slots, utterance, domain, locale, decoupled
/// form, tokens; or as JSON rows of `{question, logical_form}`.
pub fn mtop(path: &Path) -> Result<Dataset> {
    if first(path)?.is_some_and(|line| !line.trim_start().starts_with(['{', '['])) {
        let mut data = Dataset::default();
        for (line, [utterance, form]) in columns(path, 8, [3, 6])? {
            let texts = [("utterance", utterance.trim()), ("decoupled form", form.trim())];
            if let Some((field, _)) = texts.into_iter().find(|(_, text)| text.is_empty()) {
                return Err(Error::field(at(path, line), field, "a text", "nothing"));
            }
            if !is_parse(&form) {
                return Err(Error::field(at(path, line), "decoupled form", "one bracketed parse", show(&form.into())));
            }
            data.push(Ok(Example::new(utterance.trim(), form.trim())));
        }
        return Ok(data);
    }
    rows(path, lines(path)?, |f| {
        let text = |key: &str| f.require(key, f.str(key)?.map(str::trim).filter(|s| !s.is_empty()), "a text");
        let (question, parse) = (text("question")?, text("logical_form")?);
        if !is_parse(parse) {
            return Err(f.error("logical_form", "one bracketed parse"));
        }
        Ok(Ok(Example::new(question, parse)))
    })
}

/// SST-2 (Socher et al. 2013) as GLUE distributes it, tab-separated with the columns `sentence` and `label`, or without
/// a header; or as JSON rows of the two. `labels` are the words for 0 and 1.
pub fn sst2(path: &Path, labels: [&str; 2]) -> Result<Dataset> {
    let example = |location: PathBuf, sentence: &str, label: &str| {
        let output = match label.trim() {
            "0" => labels[0],
            "1" => labels[1],
            _ => return Err(Error::field(location, "label", "0 or 1", format!("{label:?}"))),
        };
        match sentence.trim() {
            "" => Err(Error::field(location, "sentence", "a text", "nothing")),
            input => Ok(Ok(Example::new(input, output))),
        }
    };
    let head = first(path)?.unwrap_or_default();
    if head.trim_start().starts_with(['{', '[']) && !head.contains('\t') {
        return rows(path, lines(path)?, |f| {
            let sentence = f.require("sentence", f.str("sentence")?, "a text")?;
            let label = f.require("label", f.usize("label")?, "0 or 1")?;
            example(f.path().to_owned(), sentence, &label.to_string())
        });
    }
    let table = match head.rsplit_once('\t') {
        Some((sentence, "0" | "1")) if !sentence.contains('\t') => columns(path, 2, [0, 1])?,
        _ => tsv(path, ["sentence", "label"])?,
    };
    let mut data = Dataset::default();
    for (line, [sentence, label]) in table {
        data.push(example(at(path, line), &sentence, &label)?);
    }
    Ok(data)
}

/// The elements of a JSON list with their locations, `path[index]`.
fn list(path: &Path) -> Result<Vec<(PathBuf, Value)>> {
    match json::read(path)? {
        Value::Array(rows) => {
            let located = |(i, row)| (PathBuf::from(format!("{}[{i}]", path.display())), row);
            Ok(rows.into_iter().enumerate().map(located).collect())
        }
        other => Err(Error::field(path, "top level", "a list", show(&other))),
    }
}

/// The rows of a JSON list or a JSONL file with their locations, `path[index]` or `path:line`.
fn lines(path: &Path) -> Result<Vec<(PathBuf, Value)>> {
    jsonl::rows(path)?.collect()
}

/// Every row by `read`, which gives an example, or the reason why the row is skipped.
fn rows(
    path: &Path,
    rows: Vec<(PathBuf, Value)>,
    read: impl Fn(&Fields) -> Result<Result<Example, &'static str>>,
) -> Result<Dataset> {
    if rows.is_empty() {
        return Err(Error::field(path, "rows", "at least one", "none"));
    }
    let mut data = Dataset::default();
    for (location, value) in &rows {
        data.push(read(&Fields::new(location, value)?)?);
    }
    Ok(data)
}

/// An example whose gold outputs are `key[..].text`.
fn example(f: &Fields, input: String, key: &str, text: &str) -> Result<Result<Example, &'static str>> {
    let list = f.require(key, f.list(key)?, "a list")?;
    let one = |value: &Value| {
        let found = value.get(text).and_then(Value::as_str).map(clean);
        found.ok_or_else(|| f.error(key, format!("objects with a text `{text}`")))
    };
    let mut texts = list.iter().map(one).collect::<Result<Vec<_>>>()?;
    texts.retain(|t| !t.is_empty());
    if texts.is_empty() {
        return Ok(Err("no reference"));
    }
    let mut example = Example::new(input, texts.remove(0));
    example.references = texts;
    Ok(Ok(example))
}

/// A text on one line: line ends, on which generation stops, and tabs are spaces.
fn clean(text: &str) -> String {
    text.trim().replace(['\n', '\r', '\t'], " ")
}

/// A ToTTo table: its cells with the columns that they span.
struct Table {
    rows: Vec<Vec<Cell>>,
}

struct Cell {
    value: String,
    header: bool,
    columns: std::ops::Range<usize>,
}

impl Table {
    fn read(f: &Fields) -> Result<Self> {
        let wrong = || f.error("table", "a list of rows of cells with value, is_header and column_span");
        let cell = |next: &mut usize, cell: &Value| {
            let value = cell.get("value")?.as_str()?;
            let span = usize::try_from(cell.get("column_span")?.as_u64()?).ok()?;
            let columns = *next..next.checked_add(span)?;
            *next = columns.end;
            Some(Cell { value: clean(value), header: cell.get("is_header")?.as_bool()?, columns })
        };
        let row = |row: &Value| {
            let mut next = 0;
            row.as_array()?.iter().map(|c| cell(&mut next, c)).collect::<Option<Vec<_>>>()
        };
        let table = f.require("table", f.list("table")?, "a list of rows")?;
        Ok(Self { rows: table.iter().map(row).collect::<Option<_>>().ok_or_else(wrong)? })
    }

    /// A cell with its headers, by ToTTo's own heuristic: column headers are header cells above that share a column,
    /// row headers are header cells to the left.
    fn cell(&self, row: usize, column: usize) -> Option<Value> {
        let cell = self.rows.get(row)?.get(column)?;
        let shares = |other: &&Cell| {
            other.header && other.columns.start < cell.columns.end && other.columns.end > cell.columns.start
        };
        let above = self.rows[..row].iter().flatten().filter(shares);
        let left = self.rows[row][..column].iter().filter(|c| c.header);
        Some(json!({
            "value": cell.value,
            "column_headers": above.map(|c| &c.value).collect::<Vec<_>>(),
            "row_headers": left.map(|c| &c.value).collect::<Vec<_>>(),
        }))
    }
}

/// A database of Spider.
struct Schema {
    name: String,
    /// `{name, columns}` of each table.
    tables: Vec<Value>,
    table_names: HashSet<String>,
    column_names: HashSet<String>,
}

impl Schema {
    /// Whether every table of a query is one of this database, and every other name one of its columns or tables.
    fn fits(&self, tables: &[String], names: &[String]) -> bool {
        let is_table = |name: &String| self.table_names.contains(name);
        tables.iter().all(is_table) && names.iter().all(|name| is_table(name) || self.column_names.contains(name))
    }
}

fn schemas(path: &Path) -> Result<BTreeMap<String, Schema>> {
    let mut out = BTreeMap::new();
    for (location, value) in &list(path)? {
        let f = Fields::new(location, value)?;
        let name = f.require("db_id", f.str("db_id")?, "a name")?.to_string();
        let tables = f.require("table_names_original", f.list("table_names_original")?, "a list of names")?;
        let columns = f.require("column_names_original", f.list("column_names_original")?, "a list")?;
        let column = |value: &Value| Some((value.get(0)?.as_i64()?, value.get(1)?.as_str()?.to_string()));
        let columns = columns.iter().map(column).collect::<Option<Vec<_>>>();
        let columns =
            columns.ok_or_else(|| f.error("column_names_original", "pairs of a table's number and a name"))?;
        let table_names = tables.iter().map(|t| t.as_str().map(str::to_string)).collect::<Option<Vec<_>>>();
        let table_names = table_names.ok_or_else(|| f.error("table_names_original", "names"))?;
        let table = |(number, name): (usize, &String)| {
            let own = columns.iter().filter(|(table, _)| usize::try_from(*table) == Ok(number));
            json!({"name": name, "columns": own.map(|(_, column)| column).collect::<Vec<_>>()})
        };
        let schema = Schema {
            name: name.clone(),
            tables: table_names.iter().enumerate().map(table).collect(),
            table_names: table_names.iter().map(|t| t.to_lowercase()).collect(),
            column_names: columns.iter().map(|(_, c)| c.to_lowercase()).collect(),
        };
        out.insert(name, schema);
    }
    Ok(out)
}
