//! Files of captured activations: one row per token, written while the model runs.
//!
//! A file `NAME.safetensors` holds for each site a tensor `[tokens, width]` and for each label column (such as
//! `doc_id`, `pos`, `token_id`) an i64 tensor `[tokens]`; row i of all of them belongs to one token. With a limit of
//! rows it becomes shards `NAME-00001-of-0000N.safetensors` with `NAME.safetensors.index.json`; a tensor's part in
//! shard k is named `{tensor}/{k:05}`, and the index's `weight_map` names the file of each part.
//!
//! Rows are written to disk at once; only small buffers are in memory. A file gets its name when it is
//! complete, the index comes last, and what an abandoned writer had finished is removed.

mod read;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use serde_json::{Map, Value, json};

pub use read::{ActivationFile, Rows};

use super::atomic::write_json;
use super::safetensors::{Dtype, TensorFile, TensorSpec, element_size};
use crate::{Error, Result};

/// What a file will hold.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Sites: name and width of a row.
    pub sites: Vec<(String, usize)>,
    /// Label columns of i64.
    pub labels: Vec<String>,
    /// Rows of the whole, over all shards.
    pub rows: usize,
    /// Type of the activations in the file: F32, F16 or BF16 (rounded to nearest even).
    pub dtype: Dtype,
    /// Most rows of one file; `None` for a single file.
    pub max_rows: Option<usize>,
    /// The header's `__metadata__`, such as the model's name.
    pub metadata: Vec<(String, String)>,
}

/// How far a tensor is written.
struct Column {
    name: String,
    /// Bytes of a row.
    width: usize,
    /// Rows written so far, over all shards.
    rows: usize,
}

/// Writes an activation file, see the module's documentation.
pub struct ActivationWriter {
    path: PathBuf,
    layout: Layout,
    columns: Vec<Column>,
    index: HashMap<String, usize>,
    /// Open shards by number.
    open: HashMap<usize, TensorFile>,
    finished: Vec<PathBuf>,
    shards: usize,
    scratch: Vec<u8>,
    done: bool,
}

impl ActivationWriter {
    /// Starts the file `path`, which ends in `.safetensors`.
    ///
    /// # Errors
    /// A dtype other than F32, F16 and BF16, a row limit of zero, a repeated name, or a file that cannot be made.
    pub fn create(path: impl AsRef<Path>, layout: Layout) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        if !matches!(layout.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(Error::argument("store dtype", "F32, F16 or BF16", layout.dtype));
        }
        if layout.max_rows == Some(0) {
            return Err(Error::argument("max_rows", "at least 1", 0));
        }
        if path.extension().is_none_or(|e| e != "safetensors") {
            return Err(Error::argument("output", "a name that ends in .safetensors", path.display()));
        }
        let mut columns = Vec::new();
        for (name, width) in &layout.sites {
            columns.push(Column { name: name.clone(), width: width * element_size(layout.dtype), rows: 0 });
        }
        for name in &layout.labels {
            columns.push(Column { name: name.clone(), width: element_size(Dtype::I64), rows: 0 });
        }
        let mut index = HashMap::new();
        for (i, column) in columns.iter().enumerate() {
            if index.insert(column.name.clone(), i).is_some() {
                return Err(Error::argument("site", "each name once", &column.name));
            }
        }
        let shards = layout.max_rows.map_or(1, |max| layout.rows.div_ceil(max)).max(1);
        let (open, finished, scratch) = (HashMap::new(), Vec::new(), Vec::new());
        let mut writer = Self { path, layout, columns, index, open, finished, shards, scratch, done: false };
        // The first file at once: a directory that cannot be written to is found before the model runs.
        writer.shard(0)?;
        Ok(writer)
    }

    /// Appends rows `[n, width]` to a site.
    ///
    /// # Errors
    /// A finite value that the file's dtype cannot hold; the write fails.
    ///
    /// # Panics
    /// For an unknown site, a part of a row, or more rows than announced.
    pub fn push(&mut self, site: &str, values: &[f32]) -> Result<()> {
        let dtype = self.layout.dtype;
        let finite = values.iter().copied().filter(|x| x.is_finite());
        if let Some(found) = finite.max_by(|a, b| a.abs().total_cmp(&b.abs())).filter(|&x| !holds(dtype, x)) {
            let expected = format!("values up to {}, the largest of {dtype}", largest(dtype));
            return Err(Error::argument(site, expected, found));
        }
        let mut bytes = std::mem::take(&mut self.scratch);
        bytes.clear();
        match self.layout.dtype {
            Dtype::F16 => {
                let mut rounded = vec![f16::ZERO; values.len()];
                rounded.convert_from_f32_slice(values);
                bytes.extend_from_slice(bytemuck::cast_slice(&rounded));
            }
            Dtype::BF16 => {
                let mut rounded = vec![bf16::ZERO; values.len()];
                rounded.convert_from_f32_slice(values);
                bytes.extend_from_slice(bytemuck::cast_slice(&rounded));
            }
            _ => bytes.extend_from_slice(bytemuck::cast_slice(values)),
        }
        let written = self.rows(site, &bytes);
        self.scratch = bytes;
        written
    }

    /// Appends labels, one per row, to a label column.
    ///
    /// # Errors
    /// The write fails.
    ///
    /// # Panics
    /// For an unknown column, or more rows than announced.
    pub fn push_labels(&mut self, column: &str, labels: &[i64]) -> Result<()> {
        self.rows(column, bytemuck::cast_slice(labels))
    }

    /// Completes the files; returns the file, or the index of the shards.
    ///
    /// # Errors
    /// The write fails; nothing is left then.
    ///
    /// # Panics
    /// When rows are missing.
    pub fn finish(mut self) -> Result<PathBuf> {
        for column in &self.columns {
            let (name, rows, expected) = (&column.name, column.rows, self.layout.rows);
            assert!(rows == expected, "finish: {name} has {rows} rows of {expected}");
        }
        let mut open: Vec<usize> = self.open.keys().copied().collect();
        open.sort_unstable();
        for shard in open {
            self.close(shard)?;
        }
        let result = if self.layout.max_rows.is_some() { self.write_index()? } else { self.path.clone() };
        self.done = true;
        Ok(result)
    }

    /// Appends whole rows in bytes, over as many shards as they reach.
    fn rows(&mut self, name: &str, mut bytes: &[u8]) -> Result<()> {
        let i = *self.index.get(name).unwrap_or_else(|| panic!("rows for {name}, which is not in this file"));
        let width = self.columns[i].width;
        assert!(width > 0 && bytes.len().is_multiple_of(width), "{name}: {} bytes, rows of {width}", bytes.len());
        while !bytes.is_empty() {
            let at = self.columns[i].rows;
            let limit = self.layout.max_rows.unwrap_or(self.layout.rows).max(1);
            let shard = at / limit;
            let room = limit.min(self.layout.rows - shard * limit) - at % limit;
            assert!(at < self.layout.rows, "{name}: more than {} rows", self.layout.rows);
            let n = room.min(bytes.len() / width);
            let (now, later) = bytes.split_at(n * width);
            let part = self.part(name, shard);
            self.shard(shard)?.append(&part, now)?;
            self.columns[i].rows += n;
            let end = (shard * limit + limit).min(self.layout.rows);
            // A shard is done before the whole is; a single file gets its name in `finish`.
            if self.layout.max_rows.is_some() && self.columns.iter().all(|c| c.rows >= end) {
                self.close(shard)?;
            }
            bytes = later;
        }
        Ok(())
    }

    fn part(&self, name: &str, shard: usize) -> String {
        if self.layout.max_rows.is_some() { format!("{name}/{:05}", shard + 1) } else { name.to_string() }
    }

    fn file(&self, shard: usize) -> PathBuf {
        if self.layout.max_rows.is_none() {
            return self.path.clone();
        }
        let stem = self.path.file_stem().unwrap_or_default().to_string_lossy();
        self.path.with_file_name(format!("{stem}-{:05}-of-{:05}.safetensors", shard + 1, self.shards))
    }

    fn shard(&mut self, shard: usize) -> Result<&mut TensorFile> {
        if !self.open.contains_key(&shard) {
            let limit = self.layout.max_rows.unwrap_or(self.layout.rows);
            let rows = limit.min(self.layout.rows - shard * limit);
            let spec =
                |name: &str, dtype: Dtype, shape: Vec<usize>| TensorSpec { name: self.part(name, shard), dtype, shape };
            let sites = self.layout.sites.iter().map(|(name, width)| spec(name, self.layout.dtype, vec![rows, *width]));
            let labels = self.layout.labels.iter().map(|name| spec(name, Dtype::I64, vec![rows]));
            let metadata: Vec<_> = self.layout.metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            let file = TensorFile::create(self.file(shard), sites.chain(labels).collect(), &metadata)?;
            self.open.insert(shard, file);
        }
        Ok(self.open.get_mut(&shard).expect("inserted above"))
    }

    fn close(&mut self, shard: usize) -> Result<()> {
        if let Some(file) = self.open.remove(&shard) {
            file.finish()?;
            self.finished.push(self.file(shard));
        }
        Ok(())
    }

    fn write_index(&mut self) -> Result<PathBuf> {
        let mut map = Map::new();
        let mut size = 0;
        for column in &self.columns {
            size += column.width * column.rows;
            for shard in 0..self.shards {
                let file = self.file(shard);
                let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
                map.insert(self.part(&column.name, shard), Value::String(name));
            }
        }
        let path = PathBuf::from(format!("{}.index.json", self.path.display()));
        write_json(&path, &json!({"metadata": {"total_size": size}, "weight_map": map}))?;
        Ok(path)
    }
}

/// The largest number of a dtype of activations.
fn largest(dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F16 => f16::MAX.to_f32(),
        Dtype::BF16 => bf16::MAX.to_f32(),
        _ => f32::MAX,
    }
}

/// Whether a finite number stays finite when it is rounded to a dtype of activations.
fn holds(dtype: Dtype, x: f32) -> bool {
    match dtype {
        Dtype::F16 => f16::from_f32(x).is_finite(),
        Dtype::BF16 => bf16::from_f32(x).is_finite(),
        _ => true,
    }
}

impl Drop for ActivationWriter {
    fn drop(&mut self) {
        if !self.done {
            for path in &self.finished {
                // Nothing to report to: the error that led here is already on its way.
                let _ = fs::remove_file(path);
            }
        }
    }
}
