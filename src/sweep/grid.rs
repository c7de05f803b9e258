//! A sweep as its file says it: a command, flags of all its runs, and flags of which every value is tried.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::formats::json::StrictValue;
use crate::formats::{atomic, yaml};
use crate::{Error, Result};

/// Most cells of a sweep: more is a typing error.
pub const MOST_CELLS: usize = 100_000;

/// The content of GRID.yaml.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a mapping with command, flags and grid")]
pub struct Grid {
    /// The subcommand that every cell is a run of.
    pub command: String,
    /// Its flags that are the same in all cells, with their values as a configuration file has them.
    #[serde(default)]
    pub flags: Map<String, Value>,
    /// Its flags that vary, each with the list of its values.
    #[serde(default)]
    pub grid: Map<String, Value>,
}

impl Grid {
    /// Reads a grid's file.
    ///
    /// # Errors
    /// It cannot be read, is no such mapping, a flag stands twice, or one of the grid has no values.
    pub fn read(path: &Path) -> Result<Self> {
        let text = atomic::read_to_string(path)?;
        // A flag that stands twice, of which serde would take the last.
        yaml::parse::<StrictValue>(&text).map_err(Error::file(path))?;
        let grid: Self = yaml::parse(&text).map_err(Error::file(path))?;
        for (flag, values) in &grid.grid {
            let field = || format!("grid.{flag}");
            let Some(values) = values.as_array() else {
                let found = crate::formats::json::show(values);
                return Err(Error::field(path, field(), "a list of values", found));
            };
            if values.is_empty() {
                return Err(Error::field(path, field(), "at least one value", "none"));
            }
            if let Some((i, twice)) = values.iter().enumerate().find(|(i, value)| values[..*i].contains(value)) {
                let found = format!("{} again, as value {}", crate::formats::json::show(twice), i + 1);
                return Err(Error::field(path, field(), "each value once", found));
            }
        }
        match grid.size() {
            Some(cells) if cells <= MOST_CELLS => Ok(grid),
            _ => Err(Error::field(path, "grid", format!("at most {MOST_CELLS} cells"), "more")),
        }
    }

    /// Number of cells; none where it is no number of this machine.
    fn size(&self) -> Option<usize> {
        self.values().map(|(_, values)| values.len()).try_fold(1_usize, |cells, values| cells.checked_mul(values))
    }

    fn values(&self) -> impl Iterator<Item = (&String, &Vec<Value>)> {
        self.grid.iter().filter_map(|(flag, values)| Some((flag, values.as_array()?)))
    }

    /// The levels of every cell: all combinations, in the order of the file, the last flag varying fastest.
    pub fn levels(&self) -> Vec<Map<String, Value>> {
        let mut all = vec![Map::new()];
        for (flag, values) in self.values() {
            let with = |levels: &Map<String, Value>, value: &Value| {
                let mut levels = levels.clone();
                levels.insert(flag.clone(), value.clone());
                levels
            };
            all = all.iter().flat_map(|levels| values.iter().map(move |value| with(levels, value))).collect();
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Grid> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("written");
        Grid::read(file.path())
    }

    #[test]
    fn grid_is_all_combinations_in_the_order_of_the_file() {
        let grid = read("command: probe\nflags: {task: events}\ngrid: {r: [4, 8], demos: [1, 2, 3]}").expect("a grid");
        let levels: Vec<String> =
            grid.levels().iter().map(|levels| Value::Object(levels.clone()).to_string()).collect();
        assert_eq!(levels.len(), 6);
        assert_eq!(
            levels[..4],
            [r#"{"r":4,"demos":1}"#, r#"{"r":4,"demos":2}"#, r#"{"r":4,"demos":3}"#, r#"{"r":8,"demos":1}"#]
        );
        assert_eq!(read("command: probe").expect("one cell").levels(), [Map::new()]);
    }

    #[test]
    fn grids_out_of_their_domain_are_refused_by_field() {
        for (text, field, found) in [
            ("command: probe\ngrid: {r: 4}", "grid.r", "a list of values, found 4"),
            ("command: probe\ngrid: {r: []}", "grid.r", "at least one value, found none"),
            ("command: probe\ngrid: {r: [4, 8, 4]}", "grid.r", "each value once, found 4 again, as value 3"),
            ("command: probe\nflag: {}", "flag", "unknown field"),
            ("flags: {}", "command", "missing field"),
            ("command: probe\nflags: {r: 4, r: 8}", "r", "expected once, found twice"),
            ("command: probe\ngrid: {r: [4], demos: [1], r: [8]}", "r", "expected once, found twice"),
            ("probe", "", "expected a mapping with command, flags and grid"),
        ] {
            let error = read(text).expect_err(text).to_string();
            assert!(error.contains(field) && error.contains(found), "{text}: {error}");
        }
        let many: Vec<String> = (0..400).map(|i| i.to_string()).collect();
        let list = many.join(", ");
        let text = format!("command: probe\ngrid: {{a: [{list}], b: [{list}]}}");
        assert!(read(&text).expect_err("too many").to_string().contains("at most 100000 cells"));
    }
}
