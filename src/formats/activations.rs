//! Files of captured activations: one row per token, written while the model runs.
//!
//! A file `NAME.safetensors` holds for each site a tensor `[tokens, width]` and for each label column (such as
//! `doc_id`, `pos`, `token_id`) an i64 tensor `[tokens]`; row i of all of them belongs to one token. In shards
//! `NAME-00001-of-0000N.safetensors` each file has all tensors, with some of the rows, under the same names. Beside them lies
//! `NAME.safetensors.index.json`. Its `weight_map` must name one file for each key, so that the part of a tensor in shard k
//! has the key `{tensor}/{k:05}` there: who loads every file of the map (as transformers does) finds them all, and who looks
//! up a tensor's name finds none rather than a part. `metadata.shards` has the rows of each file. Files of version 0.1 had these
//! keys as names in the shards too, and are read.
//!
//! [`Format::Npy`] is the same as arrays of NumPy: `{tensor}.npy` for each, and `NAME.json` with `metadata` and `tensors`, which
//! comes last.
//!
//! Rows are written to disk at once; only small buffers are in memory. A file gets its name when it is
//! complete, and the index comes last. Whole shards of a writer that was abandoned, or killed, stay: one that is told to resume
//! ([`Start::Resume`]) begins behind them, if they are what it would write. Behind the shards of a whole capture
//! another may go on ([`Earlier`]): its shards get the numbers that follow, and one new index names all.

mod arrays;
mod read;
mod shards;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use serde_json::{Map, Value, json};

use arrays::Arrays;
pub use read::{ActivationFile, Rows};
pub use shards::{Earlier, Shard, index_of};

use super::atomic::{remove_file_if_there, write_json};
use super::safetensors::{Dtype, TensorFile, TensorSpec, element_size};
use crate::{Error, Result};

/// What a file will hold.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Sites: name and width of a row.
    pub sites: Vec<(String, usize)>,
    /// Label columns of i64.
    pub labels: Vec<String>,
    /// The form of the files.
    pub format: Format,
    /// The files: one, or the shards in order.
    pub files: Vec<FileLayout>,
    /// Whether the files are shards with an index, even if there is only one.
    pub sharded: bool,
    /// Type of the activations in the file: F32, F16 or BF16 (rounded to nearest even).
    pub dtype: Dtype,
    /// The `__metadata__` of every file's header, such as the model's name.
    pub metadata: Vec<(String, String)>,
    /// Shards of an earlier capture with the same settings, behind which these go on.
    pub earlier: Option<Earlier>,
}

/// The form of the files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// safetensors.
    #[default]
    Safetensors,
    /// Arrays of NumPy, without shards and without bfloat16.
    Npy,
}

/// Where a writer begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// With the first file.
    #[default]
    New,
    /// Behind the shards that are there already.
    Resume,
}

/// What one of the files will hold.
#[derive(Clone, Debug, Default)]
pub struct FileLayout {
    /// Rows of every tensor, one a captured token.
    pub rows: usize,
    /// What its `__metadata__` have beside those of every file.
    pub metadata: Vec<(String, String)>,
}

/// A file that is open.
enum Open {
    Tensors(TensorFile),
    Arrays(Arrays),
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
    open: HashMap<usize, Open>,
    /// Rows of all files up to each one's end.
    ends: Vec<usize>,
    /// Rows that are in whole shards from before.
    resumed: usize,
}

impl ActivationWriter {
    /// Starts the file `path`, which ends in `.safetensors`, or of arrays in `.json`.
    ///
    /// # Errors
    /// A dtype other than F32, F16 and BF16, a repeated name, or a file that cannot be made; shards that are there and of other
    /// settings, or of an interrupted capture where this one is new.
    ///
    /// # Panics
    /// Without a file, or with several that are not shards; with arrays in shards.
    pub fn create(path: impl AsRef<Path>, layout: Layout, start: Start) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        if !matches!(layout.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(Error::argument("store dtype", "F32, F16 or BF16", layout.dtype));
        }
        let count = layout.files.len();
        assert!(count == 1 || (count > 0 && layout.sharded), "an activation file of {count} parts");
        assert!(layout.format == Format::Safetensors || !layout.sharded, "arrays in shards");
        let extension = if layout.format == Format::Npy { "json" } else { "safetensors" };
        if path.extension().is_none_or(|e| e != extension) {
            return Err(Error::argument("output", format!("a name that ends in .{extension}"), path.display()));
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
        let ends = layout.files.iter().scan(0, |end, file| {
            *end += file.rows;
            Some(*end)
        });
        let ends: Vec<usize> = ends.collect();
        layout.check_place(&path, start)?;
        layout.check_earlier(&path)?;
        let whole = if start == Start::Resume && layout.sharded { layout.whole(&path)? } else { 0 };
        let resumed = whole.checked_sub(1).map_or(0, |last| ends[last]);
        let mut writer = Self { path, layout, columns, index, open: HashMap::new(), ends, resumed };
        // The first file at once: a directory that cannot be written to is found before the model runs.
        if whole < writer.ends.len() {
            writer.shard(whole)?;
        }
        Ok(writer)
    }

    /// Rows, from the first on, that are in whole shards from before: they are not written again.
    pub fn resumed(&self) -> usize {
        self.resumed
    }

    /// Passes over rows of every tensor.
    ///
    /// # Panics
    /// If they are not all in whole shards from before.
    pub fn skip(&mut self, rows: usize) {
        for column in &mut self.columns {
            column.rows += rows;
            assert!(
                column.rows <= self.resumed,
                "{}: {} rows of {} passed over",
                column.name,
                column.rows,
                self.resumed
            );
        }
    }

    /// Appends rows `[n, width]` to a site.
    ///
    /// # Errors
    /// A finite value that the file's dtype cannot hold; the write fails.
    ///
    /// # Panics
    /// For an unknown site, a part of a row, or more rows than announced.
    pub fn push(&mut self, site: &str, values: &[f32]) -> Result<()> {
        match self.layout.dtype {
            Dtype::F16 => {
                let mut rounded = vec![f16::ZERO; values.len()];
                rounded.convert_from_f32_slice(values);
                self.check_held(site, values, rounded.iter().map(|x| x.is_finite()))?;
                self.rows(site, bytemuck::cast_slice(&rounded))
            }
            Dtype::BF16 => {
                let mut rounded = vec![bf16::ZERO; values.len()];
                rounded.convert_from_f32_slice(values);
                self.check_held(site, values, rounded.iter().map(|x| x.is_finite()))?;
                self.rows(site, bytemuck::cast_slice(&rounded))
            }
            _ => self.rows(site, bytemuck::cast_slice(values)),
        }
    }

    /// Appends rows `[n, width]` to a site, in bytes of elements of the file's dtype.
    ///
    /// # Errors
    /// The write fails.
    ///
    /// # Panics
    /// As [`ActivationWriter::push`].
    pub fn push_bytes(&mut self, site: &str, bytes: &[u8]) -> Result<()> {
        self.rows(site, bytes)
    }

    /// The dtype of the activations in the file.
    pub fn dtype(&self) -> Dtype {
        self.layout.dtype
    }

    /// Refuses finite values that are not finite any more when they are rounded to the file's dtype.
    fn check_held(&self, site: &str, values: &[f32], rounded: impl Iterator<Item = bool>) -> Result<()> {
        let is_lost = |(x, held): (&f32, bool)| x.is_finite() & !held;
        if !values.iter().zip(rounded).fold(false, |any, of| any | is_lost(of)) {
            return Ok(());
        }
        let dtype = self.layout.dtype;
        let finite = values.iter().copied().filter(|x| x.is_finite());
        let found = finite.max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap_or(f32::NAN);
        Err(Error::argument(site, format!("values up to {}, the largest of {dtype}", largest(dtype)), found))
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
    /// The write fails; whole shards are left then.
    ///
    /// # Panics
    /// When rows are missing.
    pub fn finish(mut self) -> Result<PathBuf> {
        for column in &self.columns {
            let (name, rows, expected) = (&column.name, column.rows, self.total());
            assert!(rows == expected, "finish: {name} has {rows} rows of {expected}");
        }
        let mut open: Vec<usize> = self.open.keys().copied().collect();
        open.sort_unstable();
        for shard in open {
            self.close(shard)?;
        }
        if self.layout.sharded { self.write_index() } else { Ok(self.path.clone()) }
    }

    /// Appends whole rows in bytes, over as many shards as they reach.
    fn rows(&mut self, name: &str, mut bytes: &[u8]) -> Result<()> {
        let i = *self.index.get(name).unwrap_or_else(|| panic!("rows for {name}, which is not in this file"));
        let width = self.columns[i].width;
        assert!(width > 0 && bytes.len().is_multiple_of(width), "{name}: {} bytes, rows of {width}", bytes.len());
        while !bytes.is_empty() {
            let at = self.columns[i].rows;
            assert!(at < self.total(), "{name}: more than {} rows", self.total());
            if at < self.resumed {
                let n = (self.resumed - at).min(bytes.len() / width);
                self.columns[i].rows += n;
                bytes = &bytes[n * width..];
                continue;
            }
            let shard = self.ends.partition_point(|&end| end <= at);
            let end = self.ends[shard];
            let n = (end - at).min(bytes.len() / width);
            let (now, later) = bytes.split_at(n * width);
            match self.shard(shard)? {
                Open::Tensors(file) => file.append(name, now)?,
                Open::Arrays(arrays) => arrays.append(name, now)?,
            }
            self.columns[i].rows += n;
            // A shard is done before the whole is; a single file gets its name in `finish`.
            if self.layout.sharded && self.columns.iter().all(|c| c.rows >= end) {
                self.close(shard)?;
            }
            bytes = later;
        }
        Ok(())
    }

    /// Rows of all files.
    fn total(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    fn shard(&mut self, shard: usize) -> Result<&mut Open> {
        if !self.open.contains_key(&shard) {
            let FileLayout { rows, metadata } = &self.layout.files[shard];
            let spec = |name: &str, dtype: Dtype, shape: Vec<usize>| TensorSpec { name: name.to_owned(), dtype, shape };
            let sites =
                self.layout.sites.iter().map(|(name, width)| spec(name, self.layout.dtype, vec![*rows, *width]));
            let labels = self.layout.labels.iter().map(|name| spec(name, Dtype::I64, vec![*rows]));
            let metadata = self.layout.metadata.iter().chain(metadata);
            let metadata: Vec<_> = metadata.map(|(k, v)| (k.as_str(), v.as_str())).collect();
            let (path, specs) = (self.layout.file(&self.path, shard), sites.chain(labels).collect::<Vec<_>>());
            let file = match self.layout.format {
                Format::Safetensors => Open::Tensors(TensorFile::create(path, specs, &metadata)?),
                Format::Npy => Open::Arrays(Arrays::create(&path, &specs, &metadata)?),
            };
            self.open.insert(shard, file);
        }
        Ok(self.open.get_mut(&shard).expect("inserted above"))
    }

    fn close(&mut self, shard: usize) -> Result<()> {
        if let Some(file) = self.open.remove(&shard) {
            if shard == 0 && self.layout.sharded && self.layout.earlier.is_none() {
                // Of a capture that this one replaces nothing may be read beside it.
                let others = (1..self.ends.len()).map(|shard| self.layout.file(&self.path, shard));
                std::iter::once(index_of(&self.path)).chain(others).try_for_each(remove_file_if_there)?;
            }
            match file {
                Open::Tensors(file) => file.finish()?,
                Open::Arrays(arrays) => arrays.finish()?,
            }
        }
        Ok(())
    }

    fn write_index(&self) -> Result<PathBuf> {
        let own = self.layout.files.iter().enumerate().map(|(shard, file)| {
            let path = self.layout.file(&self.path, shard);
            Shard { file: path.file_name().unwrap_or_default().to_string_lossy().into_owned(), rows: file.rows }
        });
        let (mut map, mut shards, mut first) = (Map::new(), Vec::new(), 0);
        for (shard, Shard { file, rows }) in self.layout.earlier().iter().cloned().chain(own).enumerate() {
            for column in &self.columns {
                map.insert(format!("{}/{:05}", column.name, shard + 1), Value::String(file.clone()));
            }
            shards.push(json!({"file": file, "rows": [first, first + rows]}));
            first += rows;
        }
        let size: usize = self.columns.iter().map(|column| column.width * first).sum();
        let path = index_of(&self.path);
        write_json(&path, &json!({"metadata": {"total_size": size, "shards": shards}, "weight_map": map}))?;
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
