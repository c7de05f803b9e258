//! What a run is asked for, and what comes of it.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::array::{Array, Elements, Memory};
use super::taps::Recorded;
use crate::arch::ModelConfig;
use crate::capture::batch;
use crate::capture::metadata::axes;
use crate::capture::tensors::Tensors;
use crate::hooks::{Edit, Names, Selection};
use crate::pack::Sequence;
use crate::{Error, Result};

/// Passes over documents.
pub struct PassRequest {
    pub documents: Vec<Vec<u32>>,
    pub recorded: Selection,
    pub asked: Selection,
    pub names: Names,
    /// The rows that are recorded of each document; none is all.
    pub rows: Option<Vec<Vec<usize>>>,
    pub logits: bool,
    pub edits: Vec<Edit>,
    pub batch_tokens: usize,
}

/// What came of passes.
pub struct PassResult {
    /// With the axes of a row.
    pub recorded: Vec<(Recorded, &'static str)>,
    pub logits: Option<Recorded>,
    /// The first recorded row of each document, and behind them all the number of rows.
    pub starts: Vec<usize>,
    /// The position of each recorded row.
    pub positions: Vec<i64>,
    /// The token of each recorded row; -1 of a soft prompt's.
    pub tokens: Vec<i64>,
    /// The first row of each document among all.
    pub all_starts: Vec<usize>,
}

/// The rows of a pack that are recorded, ascending.
pub fn rows_of(request: &PassRequest, batch: &batch::Batch) -> Vec<usize> {
    let segments = batch.pack.segments();
    match &request.rows {
        None => (0..batch.pack.len()).collect(),
        Some(rows) => {
            let of = |(i, segment): (usize, &crate::pack::Segment)| {
                let start = segment.rows.start;
                rows[batch.first + i].iter().map(move |row| start + row)
            };
            segments.iter().enumerate().flat_map(of).collect()
        }
    }
}

impl PassResult {
    /// What comes of passes over these documents, before the first; a soft prompt has `prompt` rows before each.
    pub fn new(
        request: &PassRequest,
        documents: &[Sequence],
        prompt: usize,
        config: &ModelConfig,
        tensors: &Tensors,
    ) -> Result<Self> {
        let (mut starts, mut positions, mut tokens, mut all_starts) = (vec![0], Vec::new(), Vec::new(), vec![0]);
        for (i, document) in documents.iter().enumerate() {
            let len = document.tokens.len();
            let every: Vec<usize>;
            let rows = match &request.rows {
                Some(rows) => &rows[i],
                None => {
                    every = (0..len).collect();
                    &every
                }
            };
            let ascending = rows.is_sorted_by(|a, b| a < b);
            if rows.is_empty() || !ascending || rows.iter().any(|&row| row >= len) {
                let expected = format!("positions of document {i}, which has {len} rows, ascending, at least one");
                return Err(Error::argument("pos_slice", expected, format!("{rows:?}")));
            }
            positions.extend(rows.iter().map(|&row| row as i64));
            let ids = &request.documents[i];
            tokens.extend(rows.iter().map(|&row| row.checked_sub(prompt).map_or(-1, |at| i64::from(ids[at]))));
            starts.push(starts[i] + rows.len());
            all_starts.push(all_starts[i] + len);
        }
        let (count, all) = (positions.len(), all_starts[documents.len()]);
        let record = |name: String, width: usize, count: usize| Recorded { name, rows: None, width, count };
        let recorded = request.recorded.hooks.iter().zip(&tensors.widths);
        let recorded = recorded
            .map(|(&(site, _), (name, width))| (record(name.clone(), *width, count), axes(site, config)))
            .collect();
        let logits = request.logits.then(|| record("logits".to_owned(), config.vocab_size, all));
        Ok(Self { recorded, logits, starts, positions, tokens, all_starts })
    }
}

/// Elements as an array `[rows, width]`; of no rows where no pass has come to it.
fn array(py: Python<'_>, recorded: Recorded) -> PyResult<Py<Array>> {
    let elements = recorded.rows.unwrap_or(Elements::F32(Vec::new()));
    let rows = elements.len() / recorded.width.max(1);
    Py::new(py, Array::new(Memory::new(elements), vec![rows, recorded.width]))
}

impl PassResult {
    /// The result as Python has it.
    pub fn into_dict(self, py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
        let Self { recorded, logits, starts, positions, tokens, all_starts } = self;
        let arrays = PyDict::new(py);
        for (recorded, axes) in recorded {
            let name = recorded.name.clone();
            arrays.set_item(name, (array(py, recorded)?, axes))?;
        }
        let dict = PyDict::new(py);
        dict.set_item("arrays", arrays)?;
        dict.set_item("logits", logits.map(|logits| array(py, logits)).transpose()?)?;
        dict.set_item("starts", starts)?;
        dict.set_item("positions", positions)?;
        dict.set_item("tokens", tokens)?;
        dict.set_item("all_starts", all_starts)?;
        Ok(dict)
    }
}
