//! All cells of a sweep as one table and one report: a function of the cells alone, so that its bytes are the same however
//! often who made them was killed, and wherever they were made.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::grid::Grid;
use super::plan::{Cell, Plan};
use super::store::Store;
use super::values::{self, Values};
use crate::Result;
use crate::formats::json::word;

/// A row of the table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// The cell's name; its files are in `cells/NAME`.
    pub cell: String,
    /// Its flags of the grid.
    pub levels: Map<String, Value>,
    /// What it says.
    #[serde(flatten)]
    pub values: Values,
}

/// A cell without a result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Missing {
    /// The cell's digest, by which its directory is named.
    pub cell: String,
    /// Its flags of the grid.
    pub levels: Map<String, Value>,
    /// Its error; none where it has not been run.
    pub error: Option<String>,
}

/// The content of a sweep's `report.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Merged {
    /// Version of llamaprobe that made the cells.
    pub version: String,
    /// The grid as its file has it.
    pub sweep: Grid,
    /// The rows, in the order of the grid.
    pub rows: Vec<Row>,
    /// Cells without a result.
    pub missing: Vec<Missing>,
}

impl Merged {
    /// Of the cells that are there.
    ///
    /// # Errors
    /// A cell's files are not what its command writes; the error names its directory.
    pub fn of(plan: &Plan, store: &Store) -> Result<Self> {
        let state = store.state();
        let (mut rows, mut missing) = (Vec::new(), Vec::new());
        for Cell { key, levels, .. } in &plan.cells {
            if state.done.contains(key) {
                store.check(key)?;
                let of = values::of_cell(&plan.grid.command, &store.cell(key));
                let of = of.map_err(|error| store.damaged(key, &error))?;
                rows.extend(of.into_iter().map(|values| Row { cell: key.clone(), levels: levels.clone(), values }));
            } else {
                let error = state.failed.contains(key).then(|| store.failure(key)).transpose()?;
                let error = error.map(|failure| failure.error);
                missing.push(Missing { cell: key.clone(), levels: levels.clone(), error });
            }
        }
        Ok(Self { version: plan.version.clone(), sweep: plan.grid.clone(), rows, missing })
    }

    /// The table: `cell`, the flags of the grid, what parts are told by, the values; a name of two of them is the flag's.
    pub fn table(&self) -> Table {
        let levels: Vec<String> = self.sweep.grid.keys().cloned().collect();
        let names = |of: fn(&Row) -> &Map<String, Value>| {
            let mut names: Vec<String> = Vec::new();
            for name in self.rows.iter().flat_map(|row| of(row).keys()) {
                if !names.contains(name) && !levels.contains(name) {
                    names.push(name.clone());
                }
            }
            names
        };
        let (parts, values) = (names(|row| &row.values.part), names(|row| &row.values.values));
        let cell = |row: &Row| {
            let of = |map: &Map<String, Value>, names: &[String]| -> Vec<String> {
                let text = |name| map.get(name).filter(|value| !value.is_null()).map_or_else(String::new, word);
                names.iter().map(text).collect()
            };
            let Values { part, values: found } = &row.values;
            [vec![row.cell.clone()], of(&row.levels, &levels), of(part, &parts), of(found, &values)].concat()
        };
        let rows = self.rows.iter().map(cell).collect();
        let header = [vec!["cell".to_owned()], levels, parts, values].concat();
        Table { header, rows }
    }
}

/// A table of texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Names of the columns.
    pub header: Vec<String>,
    /// The rows; numbers read back as the same f64, what is not there is empty.
    pub rows: Vec<Vec<String>>,
}
