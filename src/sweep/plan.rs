//! The cells of a sweep, each with the name that its result has.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::grid::Grid;
use crate::formats::json::word;
use crate::formats::{atomic, json as json_file};
use crate::hash::Hasher;
use crate::{Error, Result};

/// The file of a plan in the directory of a sweep.
pub const PLAN_FILE: &str = "sweep.json";
/// The folder of all plans that a directory has had, each under its digest: who works on one is not led astray by the next.
const PLANS: &str = "plans";
/// Hexadecimal digits of a cell's name: 128 bits.
const KEY_DIGITS: usize = 32;

/// What the result of a cell depends on.
#[derive(Clone, Debug)]
pub struct Identity<'a> {
    /// The subcommand of all cells, such as `probe`.
    pub command: &'a str,
    /// All its flags that may change the result, also those that nobody gave.
    pub flags: BTreeMap<String, Value>,
    /// By flag, the digests of the files that its value names.
    pub inputs: BTreeMap<String, Vec<String>>,
}

impl Identity<'_> {
    /// The name of the cell: digits of the SHA-256 of all of it and of the program's version.
    pub fn key(&self) -> String {
        let Self { command, flags, inputs } = self;
        let all = json!({ "version": env!("CARGO_PKG_VERSION"), "command": command, "flags": flags, "inputs": inputs });
        let mut hasher = Hasher::default();
        hasher.update(all.to_string().as_bytes());
        hasher.hex()[..KEY_DIGITS].to_owned()
    }
}

/// A run of the command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// Its name, see [`Identity::key`].
    pub key: String,
    /// The flags of the grid with the values that they have here.
    pub levels: Map<String, Value>,
    /// All flags that are given, as a configuration file has them.
    pub flags: Map<String, Value>,
    /// What cells have in common that may go through the model in the same passes, or one after another while it is loaded; none
    /// for one that goes alone.
    pub shares: Option<String>,
    /// The model, by which cells are ordered.
    pub model: String,
}

/// All cells of a sweep, in the order of the grid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Version of llamaprobe that made it.
    pub version: String,
    /// The grid as its file has it.
    pub grid: Grid,
    /// SHA-256 of the files that flags of cells name, by the names under which they are found.
    #[serde(default)]
    pub inputs: BTreeMap<String, String>,
    /// Its combinations, the last flag varying fastest.
    pub cells: Vec<Cell>,
}

impl Plan {
    /// Of the cells of a grid, whose file `path` is only for the error.
    ///
    /// # Errors
    /// Two combinations are the same cell.
    pub fn new(grid: Grid, cells: Vec<Cell>, path: &Path) -> Result<Self> {
        let mut seen: BTreeMap<&str, &Cell> = BTreeMap::new();
        for cell in &cells {
            if let Some(other) = seen.insert(&cell.key, cell) {
                let found = format!("{} and {}", words(&other.levels), words(&cell.levels));
                return Err(Error::field(path, "grid", "combinations that differ in what they compute", found));
            }
        }
        Ok(Self { version: env!("CARGO_PKG_VERSION").to_owned(), grid, inputs: BTreeMap::new(), cells })
    }

    /// Reads the plan of a sweep's directory.
    ///
    /// # Errors
    /// There is none, or it is of another version, whose cells have other names.
    pub fn read(dir: &Path) -> Result<Self> {
        Self::of_file(&dir.join(PLAN_FILE))
    }

    /// Reads the plan of a digest ([`Plan::digest`]), be it the newest of the directory or not.
    ///
    /// # Errors
    /// As [`Plan::read`]; a plan that is not what its name says.
    pub fn of_digest(dir: &Path, digest: &str) -> Result<Self> {
        let path = dir.join(PLANS).join(format!("{digest}.json"));
        let plan = Self::of_file(&path)?;
        match plan.digest() {
            found if found == digest => Ok(plan),
            found => Err(Error::field(&path, "SHA-256 of the plan", digest, found)),
        }
    }

    fn of_file(path: &Path) -> Result<Self> {
        let plan: Self = serde_json::from_value(json_file::read(path)?).map_err(Error::file(path))?;
        match plan.version == env!("CARGO_PKG_VERSION") {
            true => Ok(plan),
            false => Err(Error::field(path, "version", env!("CARGO_PKG_VERSION"), plan.version)),
        }
    }

    /// What names it among the plans of a directory: hexadecimal digits of the SHA-256 of all of it.
    pub fn digest(&self) -> String {
        let mut hasher = Hasher::default();
        hasher.update(json!(self).to_string().as_bytes());
        hasher.hex()[..KEY_DIGITS].to_owned()
    }

    /// Writes it into the directory of the sweep under its digest, and as the newest, unless it is that already; gives whether it
    /// was not.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn save(&self, dir: &Path) -> Result<bool> {
        let named = dir.join(PLANS).join(format!("{}.json", self.digest()));
        if !Self::of_file(&named).is_ok_and(|there| there == *self) {
            atomic::write_json(named, self)?;
        }
        let is_new = !Self::read(dir).is_ok_and(|there| there == *self);
        if is_new {
            atomic::write_json(dir.join(PLAN_FILE), self)?;
        }
        Ok(is_new)
    }
}

/// Levels in one line: `r=8 demos=4`.
pub fn words(levels: &Map<String, Value>) -> String {
    let all: Vec<String> = levels.iter().map(|(flag, value)| format!("{flag}={}", word(value))).collect();
    if all.is_empty() { "the only cell".to_owned() } else { all.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity<'static> {
        let flags = [("r".to_owned(), json!(8)), ("task".to_owned(), json!("events"))].into();
        let inputs = [("train".to_owned(), vec!["aa".to_owned()])].into();
        Identity { command: "probe", flags, inputs }
    }

    #[test]
    fn key_follows_command_flags_and_content() {
        let key = identity().key();
        assert!(key.len() == KEY_DIGITS && key == identity().key());
        let mut others = vec![Identity { command: "compare", ..identity() }];
        others.push(identity());
        others[1].flags.insert("r".to_owned(), json!(4));
        others.push(identity());
        others[2].inputs.insert("train".to_owned(), vec!["ab".to_owned()]);
        others.iter().for_each(|other| assert_ne!(other.key(), key));
    }

    #[test]
    fn equal_cells_are_refused() {
        let cell = |r: u64| {
            let levels: Map<String, Value> = [("r".to_owned(), json!(r))].into_iter().collect();
            Cell { key: "k".into(), flags: levels.clone(), levels, shares: None, model: "m".into() }
        };
        let grid = Grid { command: "probe".into(), flags: Map::new(), grid: Map::new() };
        let error = Plan::new(grid, vec![cell(4), cell(8)], Path::new("grid.yaml")).expect_err("equal").to_string();
        assert!(error.contains("r=4 and r=8"), "{error}");
    }

    #[test]
    fn plans_of_a_directory_stay_under_their_digests() {
        let dir = tempfile::tempdir().expect("a folder");
        let plan = |command: &str| {
            let grid = Grid { command: command.into(), flags: Map::new(), grid: Map::new() };
            Plan::new(grid, Vec::new(), Path::new("grid.yaml")).expect("a plan")
        };
        let [first, second] = ["probe", "compare"].map(plan);
        assert!(first.save(dir.path()).expect("saved") && !first.save(dir.path()).expect("saved"));
        assert!(second.save(dir.path()).expect("saved"));
        assert_eq!(Plan::read(dir.path()).expect("the newest"), second);
        assert_eq!(Plan::of_digest(dir.path(), &first.digest()).expect("the first"), first);
        let file = |plan: &Plan| dir.path().join(PLANS).join(format!("{}.json", plan.digest()));
        std::fs::copy(file(&second), file(&first)).expect("copied");
        let error = Plan::of_digest(dir.path(), &first.digest()).expect_err("another").to_string();
        assert!(error.contains("SHA-256 of the plan"), "{error}");
    }
}
