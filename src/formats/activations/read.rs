//! Reading of captured activations, in one file or in shards.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::formats::json;
use crate::formats::safetensors::{Checkpoint, Dtype, TensorView};
use crate::{Error, Result};

/// An open activation file: of `capture`, or any with tensors `[rows, width]` of floats and label columns `[rows]` of i64.
#[derive(Debug)]
pub struct ActivationFile {
    path: PathBuf,
    /// The parts of each tensor, in the order of the shards.
    tensors: BTreeMap<String, Vec<TensorView>>,
    labels: BTreeMap<String, Vec<TensorView>>,
    metadata: BTreeMap<String, String>,
}

/// The rows of a site.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    /// `[rows, width]`.
    pub values: Vec<f32>,
    /// Elements of a row, at least 1.
    pub width: usize,
}

impl ActivationFile {
    /// Opens a safetensors file, or the index of shards by its own name or by the name that the file would have.
    ///
    /// # Errors
    /// No such file, an invalid one, or a tensor of another form.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let named = path.as_ref();
        if named.is_dir() {
            let files =
                format!("{0}/activations.safetensors or {0}/activations.safetensors.index.json", named.display());
            let expected = format!("a file of captured states, such as {files}");
            return Err(Error::argument(named.display().to_string(), expected, "a directory"));
        }
        let index = PathBuf::from(format!("{}.index.json", named.display()));
        let path = if !named.exists() && index.exists() { index } else { named.to_path_buf() };
        let sharded = path.extension().is_some_and(|e| e == "json");
        let shards = if sharded { Checkpoint::shards(&path)? } else { vec![path.clone()] };
        let announced = if sharded { announced(&path)? } else { None };
        if let Some(files) = announced.as_ref().filter(|files| files.len() != shards.len()) {
            let expected = format!("the {} files of weight_map", shards.len());
            return Err(Error::field(&path, "metadata.shards", expected, files.len().to_string()));
        }
        let mut file = Self { path, tensors: BTreeMap::new(), labels: BTreeMap::new(), metadata: BTreeMap::new() };
        for (i, shard) in shards.iter().enumerate() {
            let checkpoint = Checkpoint::open(shard)?;
            for tensor in checkpoint.iter() {
                file.add(shard, tensor, sharded)?;
            }
            if let Some((name, rows)) = announced.as_ref().map(|files| &files[i]) {
                let found = checkpoint.iter().next().map_or(0, |tensor| tensor.shape[0]);
                let own = shard.file_name().unwrap_or_default().to_string_lossy();
                if (own.as_ref(), found) != (name.as_str(), *rows) {
                    let expected = format!("{found} rows of {own}");
                    return Err(Error::field(&file.path, "metadata.shards", expected, format!("{rows} of {name}")));
                }
            }
            if i == 0 {
                file.metadata.clone_from(checkpoint.metadata());
            }
            // Rows of different sites belong together by their number.
            let parts = file.tensors.iter().chain(&file.labels);
            if let Some((name, parts)) = parts.into_iter().find(|(_, parts)| parts.len() != i + 1) {
                let expected = format!("{} shards that have it", i + 1);
                return Err(Error::field(&file.path, name, expected, parts.len().to_string()));
            }
        }
        Ok(file)
    }

    /// Adds a tensor of a file, or a shard's part of it, behind those that are there.
    fn add(&mut self, path: &Path, tensor: TensorView, sharded: bool) -> Result<()> {
        // Version 0.1 numbered the parts.
        let part = tensor.name.rsplit_once('/').filter(|(_, part)| part.bytes().all(|b| b.is_ascii_digit()));
        let name = part.filter(|_| sharded).map_or(tensor.name.as_str(), |(name, _)| name).to_owned();
        let kind = match (tensor.dtype, &tensor.shape[..]) {
            (Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16, [_, width]) if *width > 0 => &mut self.tensors,
            (Dtype::I64, [_]) => &mut self.labels,
            (dtype, shape) => {
                let expected = "floats of shape [rows, width] or i64 of shape [rows]";
                return Err(Error::field(path, tensor.name, expected, format!("{dtype} of shape {shape:?}")));
            }
        };
        let parts = kind.entry(name).or_insert_with(Vec::new);
        if let Some(first) = parts.first().filter(|first| first.shape[1..] != tensor.shape[1..]) {
            let expected = format!("rows of shape {:?}, as {} has", &first.shape[1..], first.name);
            return Err(Error::field(path, tensor.name, expected, format!("{:?}", &tensor.shape[1..])));
        }
        parts.push(tensor);
        Ok(())
    }

    /// What was opened: the file, or the index.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the header says, of shards that of the first.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The sites, sorted by name, of which numbers count as such: `blocks.2` is before `blocks.10`.
    pub fn sites(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.tensors.keys().map(String::as_str).collect();
        names.sort_by_cached_key(|name| natural(name));
        names
    }

    /// Rows and width of a site.
    pub fn shape(&self, site: &str) -> Option<[usize; 2]> {
        let parts = self.tensors.get(site)?;
        Some([parts.iter().map(|part| part.shape[0]).sum(), parts.first()?.shape[1]])
    }

    /// The parts of a site `[rows, width]`, in the order of the shards; none if the file has no such site.
    pub fn parts(&self, site: &str) -> Option<&[TensorView]> {
        self.tensors.get(site).map(Vec::as_slice)
    }

    /// The rows of a site, as f32 whatever the file's dtype.
    ///
    /// # Errors
    /// There is no such site, or an element is not finite.
    pub fn rows(&self, site: &str) -> Result<Rows> {
        let parts = self.tensors.get(site).ok_or_else(|| Error::field(&self.path, site, "a tensor", "none"))?;
        let mut out = Rows { values: Vec::new(), width: parts[0].shape[1] };
        for part in parts {
            part.check_finite().map_err(Error::file(&self.path))?;
            out.values.extend(part.to_f32().map_err(Error::file(&self.path))?);
        }
        // A finite f64 may be beyond f32.
        match out.values.iter().find(|x| !x.is_finite()) {
            Some(_) => Err(Error::field(&self.path, site, "values that f32 holds", "a larger f64")),
            None => Ok(out),
        }
    }

    /// A label column, if the file has it.
    ///
    /// # Errors
    /// The data cannot be read.
    pub fn labels(&self, column: &str) -> Result<Option<Vec<i64>>> {
        let Some(parts) = self.labels.get(column) else { return Ok(None) };
        let mut out = Vec::new();
        for part in parts {
            out.extend(part.as_slice::<i64>().map_err(Error::file(&self.path))?);
        }
        Ok(Some(out))
    }
}

/// Name and number of rows of each shard, if an index says so in `metadata.shards`.
pub(super) fn announced(index: &Path) -> Result<Option<Vec<(String, usize)>>> {
    let value = json::read(index)?;
    let Some(shards) = value.pointer("/metadata/shards") else { return Ok(None) };
    let field = |found: &Value| {
        Error::field(index, "metadata.shards", "a list of {file, rows: [first, end]}", json::show(found))
    };
    let shard = |shard: &Value| {
        let end = |i: usize| usize::try_from(shard.get("rows")?.get(i)?.as_u64()?).ok();
        let name = shard.get("file").and_then(Value::as_str);
        name.zip(end(0)).zip(end(1)).and_then(|((name, first), end)| Some((name.to_owned(), end.checked_sub(first)?)))
    };
    let shards = shards.as_array().ok_or_else(|| field(shards))?;
    shards.iter().map(|one| shard(one).ok_or_else(|| field(one))).collect::<Result<_>>().map(Some)
}

/// A key by which names sort with their numbers as numbers.
fn natural(name: &str) -> Vec<(String, u64)> {
    let mut key = vec![(String::new(), 0u64)];
    let mut digits = false;
    for c in name.chars() {
        let last = key.last_mut().expect("never empty");
        match c.to_digit(10) {
            Some(digit) => (last.1, digits) = (last.1.saturating_mul(10).saturating_add(digit.into()), true),
            None if digits => {
                key.push((c.to_string(), 0));
                digits = false;
            }
            None => last.0.push(c),
        }
    }
    key
}
