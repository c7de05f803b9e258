//! A capture as arrays of NumPy: a file for each tensor, and beside them a JSON file that says what they are, which comes last.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::formats::atomic::{remove_file_if_there, write_json};
use crate::formats::json;
use crate::formats::npy::NpyFile;
use crate::formats::safetensors::TensorSpec;
use crate::{Error, Result};

/// Arrays being written.
pub struct Arrays {
    /// The JSON file.
    path: PathBuf,
    files: BTreeMap<String, NpyFile>,
    list: Value,
}

/// The file of a tensor.
fn file(name: &str) -> String {
    format!("{name}.npy")
}

impl Arrays {
    /// Starts a file for each tensor, beside `path`.
    ///
    /// # Errors
    /// A dtype that NumPy has not, or files that cannot be made.
    pub fn create(path: &Path, specs: &[TensorSpec], metadata: &[(&str, &str)]) -> Result<Self> {
        let metadata: Map<String, Value> =
            metadata.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        let (mut files, mut tensors) = (BTreeMap::new(), Map::new());
        for TensorSpec { name, dtype, shape } in specs {
            files.insert(name.clone(), NpyFile::create(path.with_file_name(file(name)), *dtype, shape)?);
            tensors.insert(name.clone(), json!({"file": file(name), "dtype": dtype, "shape": shape}));
        }
        let list = json!({"metadata": metadata, "tensors": tensors});
        Ok(Self { path: path.to_path_buf(), files, list })
    }

    /// Appends elements to a tensor.
    ///
    /// # Errors
    /// The write fails.
    ///
    /// # Panics
    /// For a name that was not announced, or more than its shape holds.
    pub fn append(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.files.get_mut(name).unwrap_or_else(|| panic!("append to {name}, which is not announced")).append(bytes)
    }

    /// Gives all files their names. Those of an earlier capture that are no more go first.
    ///
    /// # Errors
    /// A file cannot be written, or what lies there as the list of an earlier capture is none.
    pub fn finish(self) -> Result<()> {
        if self.path.exists() {
            let earlier = json::read(&self.path)?;
            let tensors = earlier.get("tensors").and_then(Value::as_object);
            let tensors =
                tensors.ok_or_else(|| Error::field(&self.path, "tensors", "the list of a capture", "none"))?;
            remove_file_if_there(&self.path)?;
            let gone = tensors.keys().filter(|name| !self.files.contains_key(*name) && !name.contains(['/', '\\']));
            gone.into_iter().try_for_each(|name| remove_file_if_there(self.path.with_file_name(file(name))))?;
        }
        self.files.into_values().try_for_each(NpyFile::finish)?;
        write_json(&self.path, &self.list)
    }
}
