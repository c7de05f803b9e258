//! The tensors of a model: one file, or shards with an index.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use super::header::{Header, Info};
use super::{Bytes, Loading, SafetensorsError, TensorView, element_size};
use crate::arch::Family;
use crate::error::nearest;
use crate::formats::atomic;
use crate::formats::json::{self, Fields};
use crate::formats::quantized::{QuantizedView, WeightView};
use crate::hash::sha256_hex;
use crate::{Error, Result};

/// File name of a model in one file.
const SINGLE: &str = "model.safetensors";
/// File name of the index of a model in shards.
const INDEX: &str = "model.safetensors.index.json";

/// An open set of tensors, their headers checked.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<(PathBuf, Bytes)>,
    /// By name: index into `files`, and the byte range in that file.
    tensors: BTreeMap<String, (usize, Info)>,
    /// Matrices that are no numbers one after another, by name: none of them is among `tensors`.
    quantized: BTreeMap<String, QuantizedView>,
    /// Tensors whose rows are stored in another order: which stored row each of theirs is.
    row_orders: BTreeMap<String, Arc<[u32]>>,
    /// Whether matrices are `[output, input]` in families too whose own checkpoints have them the other way.
    output_major: bool,
    /// Matrices of numbers of which that is true, where it is not of all.
    turned: BTreeSet<String>,
    /// What the file calls the tensor of a name, where it has other names.
    stored_names: Option<StoredNames>,
    metadata: BTreeMap<String, String>,
}

/// The family of a checkpoint whose format has names of its own, and what these are for the family's.
pub type StoredNames = (Family, fn(Family, &str) -> Option<String>);

/// The weights in a directory that are not of the names that are read, and how they become so.
fn other_weights(directory: &Path) -> String {
    let names = atomic::entries(directory).into_iter().filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()));
    let endings = [".safetensors", ".bin", ".pth", ".pt", ".gguf", ".h5", ".msgpack"];
    let weights = |name: &String| endings.iter().any(|ending| name.ends_with(ending));
    match names.filter(weights).min_by_key(|name| !name.starts_with("pytorch_model")) {
        Some(name) if name.starts_with("pytorch_model") => format!(
            "{name}, which PyTorch pickled (AutoModelForCausalLM.from_pretrained(\"{0}\").save_pretrained(\"{0}\") of \
             transformers writes safetensors beside it)",
            directory.display()
        ),
        Some(name) => format!("{name}, which is not read under this name"),
        None => "neither".to_owned(),
    }
}

impl Checkpoint {
    /// Opens a safetensors file, an index file (`*.index.json`), or a directory that holds `model.safetensors` or
    /// `model.safetensors.index.json` (the first when both are there). The files are mapped, and must not change while
    /// the checkpoint or a view of it lives: [`Bytes::map`] says what happens if they do.
    ///
    /// # Errors
    /// Nothing to open, an invalid file ([`SafetensorsError`] inside [`Error::File`]), or an index and shards that
    /// do not agree.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_as(path, Loading::Mapped)
    }

    /// As [`Checkpoint::open`], the files mapped or copied: a copied checkpoint has all data in memory and does not
    /// change with its files.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_as(path: impl AsRef<Path>, loading: Loading) -> Result<Self> {
        let path = path.as_ref();
        if !path.is_dir() {
            return if path.extension().is_some_and(|e| e == "json") {
                Self::open_index(path, loading)
            } else {
                Self::from_bytes(path, Bytes::open(path, loading)?)
            };
        }
        if path.join(SINGLE).exists() {
            return Self::open_as(path.join(SINGLE), loading);
        }
        if path.join(INDEX).exists() {
            return Self::open_index(&path.join(INDEX), loading);
        }
        Err(Error::field(path, "weights", format!("{SINGLE} or {INDEX}"), other_weights(path)))
    }

    /// A checkpoint in memory; `path` names it in errors.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_bytes(path: impl AsRef<Path>, bytes: Bytes) -> Result<Self> {
        let path = path.as_ref();
        let header = Header::parse(&bytes).map_err(Error::file(path))?;
        Ok(Self {
            tensors: header.tensors.into_iter().map(|t| (t.name.clone(), (0, t))).collect(),
            metadata: header.metadata,
            files: vec![(path.to_path_buf(), bytes)],
            ..Self::empty(path)
        })
    }

    fn empty(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
            quantized: BTreeMap::new(),
            row_orders: BTreeMap::new(),
            output_major: false,
            turned: BTreeSet::new(),
            stored_names: None,
            metadata: BTreeMap::new(),
        }
    }

    /// A checkpoint of the weights of another format, which holds every matrix as `[output, input]`; a weight's rows are
    /// where the list beside it says, if there is one.
    pub fn of_weights(path: &Path, weights: impl IntoIterator<Item = (WeightView, Option<Arc<[u32]>>)>) -> Self {
        let mut all = Self { output_major: true, ..Self::empty(path) };
        for (weight, rows) in weights {
            match (weight, rows) {
                (WeightView::Plain(view), rows) => {
                    let name = view.name.clone();
                    all = all.with([view]);
                    all.row_orders.extend(rows.map(|rows| (name, rows)));
                }
                (WeightView::Quantized(view), rows) => {
                    let view = rows.map_or_else(|| view.clone(), |rows| view.listed(&rows));
                    all.quantized.insert(view.name.clone(), view);
                }
            }
        }
        all
    }

    /// The same checkpoint, in whose errors a tensor is called what the file calls it.
    #[must_use]
    pub fn stored_as(self, names: StoredNames) -> Self {
        Self { stored_names: Some(names), ..self }
    }

    /// What the file calls a tensor.
    fn stored_name(&self, name: &str) -> String {
        self.stored_names.and_then(|(family, names)| names(family, name)).unwrap_or_else(|| name.to_owned())
    }

    /// The same checkpoint with quantised matrices in place of the tensors of these names, and without the tensors for
    /// which `part` says that they are parts of one.
    pub fn quantized_as(mut self, views: impl IntoIterator<Item = QuantizedView>, part: impl Fn(&str) -> bool) -> Self {
        self.quantized.extend(views.into_iter().map(|view| (view.name.clone(), view)));
        let quantized = &self.quantized;
        self.tensors.retain(|name, _| !quantized.contains_key(name) && !part(name));
        self
    }

    /// Lets go of the quantised matrices that are in memory and in no file; views of them stay.
    pub fn release_quantized(&mut self) {
        self.quantized.retain(|_, view| view.codes.is_mapped());
    }

    /// The shards that an index names, in their order.
    ///
    /// # Errors
    /// No index, or one that names no file of its own directory.
    pub fn shards(index: &Path) -> Result<Vec<PathBuf>> {
        let mut files: Vec<String> = Self::weight_map(index)?.into_values().collect();
        // Their numbers may have more digits than they are padded to.
        files.sort_unstable_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
        files.dedup();
        let dir = index.parent().unwrap_or(Path::new("."));
        Ok(files.into_iter().map(|file| dir.join(file)).collect())
    }

    /// The file of each tensor that an index names.
    fn weight_map(path: &Path) -> Result<BTreeMap<String, String>> {
        let value = json::read(path)?;
        let top = Fields::new(path, &value)?;
        let map = top.require("weight_map", top.object("weight_map")?, "an object of tensor names and file names")?;
        let mut shard_of = BTreeMap::new();
        for name in map.keys() {
            let shard = map.require(name, map.str(name)?, "a file name")?;
            // An index must not reach outside its own directory.
            let inside = Path::new(shard).components().all(|part| matches!(part, Component::Normal(_)));
            if shard.is_empty() || shard.contains(['\\', '\0']) || !inside {
                return Err(map.error(name, "the name of a file in the directory of the index"));
            }
            shard_of.insert(name.to_owned(), shard.to_owned());
        }
        if shard_of.is_empty() {
            return Err(top.error("weight_map", "at least one tensor"));
        }
        Ok(shard_of)
    }

    fn open_index(path: &Path, loading: Loading) -> Result<Self> {
        let shard_of = Self::weight_map(path)?;
        let dir = path.parent().unwrap_or(Path::new("."));
        let mut shards: Vec<&str> = shard_of.values().map(String::as_str).collect();
        shards.sort_unstable();
        shards.dedup();
        let mut disagree: Vec<String> = Vec::new();
        let mut all = Self::empty(path);
        for shard in shards {
            let file = dir.join(shard);
            if !file.exists() {
                return Err(Error::field(path, "weight_map", format!("a shard {shard}"), "no such file"));
            }
            let one = Self::from_bytes(&file, Bytes::open(&file, loading)?)?;
            all.metadata.extend(one.metadata);
            let at = all.files.len();
            all.files.extend(one.files);
            for (name, (_, info)) in one.tensors {
                if shard_of.get(&name).map(String::as_str) != Some(shard) {
                    disagree.push(name.clone());
                }
                all.insert(name, at, info)?;
            }
        }
        disagree.extend(shard_of.keys().filter(|name| !all.tensors.contains_key(*name)).cloned());
        disagree.sort_unstable();
        if let Some(first) = disagree.first() {
            let (path, n) = (path.display(), disagree.len());
            log::warn!("{path}: the index and the shards disagree on {n} tensors, such as {first}; the shards count");
        }
        Ok(all)
    }

    /// Adds a tensor of file `at`, which another file may hold too: with the same bytes.
    fn insert(&mut self, name: String, at: usize, info: Info) -> Result<()> {
        if let Some((first, other)) = self.tensors.get(&name) {
            let equal = (other.dtype, &other.shape) == (info.dtype, &info.shape)
                && self.view(*first, other).data[..] == self.view(at, &info).data[..];
            if !equal {
                let expected = format!("the tensor of {}", self.files[*first].0.display());
                return Err(Error::field(&self.files[at].0, name, expected, "another of the same name"));
            }
            return Ok(());
        }
        self.tensors.insert(name, (at, info));
        Ok(())
    }

    /// The same checkpoint with other values of some tensors.
    #[must_use]
    pub fn with(mut self, tensors: impl IntoIterator<Item = TensorView>) -> Self {
        for TensorView { name, dtype, shape, data } in tensors {
            self.row_orders.remove(&name);
            let info = Info { name: name.clone(), dtype, shape, begin: 0, end: data.len() };
            self.tensors.insert(name, (self.files.len(), info));
            self.files.push((self.path.clone(), data));
        }
        self
    }

    /// The same checkpoint with every quantised matrix as its values in f32, in memory.
    #[must_use]
    pub fn dequantized(mut self) -> Self {
        for (name, view) in std::mem::take(&mut self.quantized) {
            self.turned.insert(name.clone());
            let (shape, values) = (view.shape.to_vec(), view.to_f32());
            let data = Bytes::from(bytemuck::cast_slice::<f32, u8>(&values).to_vec()).aligned(size_of::<f32>());
            self = self.with([TensorView { name, dtype: super::Dtype::F32, shape, data }]);
        }
        self
    }

    /// What was opened: a file, or the index.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files, in shard order.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }

    /// The tensors' names, sorted, and those of the quantised matrices behind them.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().chain(self.quantized.keys()).map(String::as_str)
    }

    /// Whether there is a tensor or a quantised matrix of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name) || self.quantized.contains_key(name)
    }

    /// The quantised matrices, by name.
    pub fn quantized(&self) -> impl Iterator<Item = &QuantizedView> {
        self.quantized.values()
    }

    /// Whether a matrix is `[output, input]` whatever the family's own checkpoints have.
    pub fn is_output_major(&self, name: &str) -> bool {
        self.output_major || self.quantized.contains_key(name) || self.turned.contains(name)
    }

    /// The `__metadata__` of the file, of all shards together.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Number of tensors in all files, quantised matrices among them.
    pub fn len(&self) -> usize {
        self.tensors.len() + self.quantized.len()
    }

    /// Whether there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty() && self.quantized.is_empty()
    }

    /// What tells these weights from others: SHA-256 over every tensor's name, dtype, shape and up to 64 evenly spaced pieces of
    /// 64 bytes, of a quantised one of its codes, its scales and the order of its rows each. A training moves nearly every
    /// number of a tensor, so that the pieces see it; to read them is quick whatever the size.
    pub fn fingerprint(&self) -> String {
        const PIECES: usize = 64;
        const BYTES: usize = 64;
        let plain = self.iter().map(|t| (format!("{} {} {:?}\n", t.name, t.dtype, t.shape), t.data));
        let quantized = self.quantized.values().flat_map(QuantizedView::parts);
        let mut parts: Vec<Vec<u8>> = Vec::new();
        for (what, data) in plain.chain(quantized) {
            parts.push(what.into_bytes());
            let Some(room) = data.len().checked_sub(PIECES * BYTES) else {
                parts.push(data.to_vec());
                continue;
            };
            let at = |piece: usize| piece * BYTES + (room as u128 * piece as u128 / (PIECES as u128 - 1)) as usize;
            parts.extend((0..PIECES).map(|piece| data[at(piece)..at(piece) + BYTES].to_vec()));
        }
        sha256_hex(parts.iter().map(Vec::as_slice))
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> usize {
        let plain: usize = self.tensors.values().map(|(_, t)| t.end - t.begin).sum();
        plain + self.quantized.values().map(QuantizedView::stored_bytes).sum::<usize>()
    }

    /// A tensor of numbers, if there is one of that name.
    pub fn get(&self, name: &str) -> Option<TensorView> {
        self.tensors.get(name).map(|(file, info)| self.view(*file, info))
    }

    /// All tensors of numbers, by name.
    pub fn iter(&self) -> impl Iterator<Item = TensorView> {
        self.tensors.values().map(|(file, info)| self.view(*file, info))
    }

    /// A tensor that must be there with this shape.
    ///
    /// # Errors
    /// [`SafetensorsError::Missing`] (with the nearest name), [`SafetensorsError::WrongShape`].
    pub fn expect(&self, name: &str, shape: &[usize]) -> Result<TensorView> {
        match self.weight(name, shape)? {
            WeightView::Plain(view) => Ok(view),
            WeightView::Quantized(view) => {
                let found = format!("blocks of {}", view.format);
                Err(Error::field(
                    &self.path,
                    self.stored_name(name),
                    "numbers, which this needs (a checkpoint that is not quantised)",
                    found,
                ))
            }
        }
    }

    /// A weight of either kind that must be there with this shape.
    ///
    /// # Errors
    /// As [`Checkpoint::expect`].
    pub fn weight(&self, name: &str, shape: &[usize]) -> Result<WeightView> {
        if let Some(view) = self.quantized.get(name) {
            if view.shape != shape {
                let (name, expected, found) = (self.stored_name(name), shape.to_vec(), view.shape.to_vec());
                return Err(self.error(SafetensorsError::WrongShape { name, expected, found }));
            }
            return Ok(view.clone().into());
        }
        let Some((file, info)) = self.tensors.get(name) else {
            return Err(self.missing(name));
        };
        let path = &self.files[*file].0;
        if info.shape != shape {
            let (name, expected, found) = (self.stored_name(name), shape.to_vec(), info.shape.clone());
            return Err(Error::file(path)(SafetensorsError::WrongShape { name, expected, found }));
        }
        Ok(self.view(*file, info).into())
    }

    /// A tensor that must be there, `[width]` or `[rows, width]`, all elements finite: its elements as f32, and its width.
    ///
    /// # Errors
    /// [`SafetensorsError::Missing`] (with the nearest name); another number of dimensions, or no elements; elements of
    /// another type, or that are not finite.
    pub fn rows(&self, name: &str) -> Result<(Vec<f32>, usize)> {
        let Some((file, info)) = self.tensors.get(name) else {
            return Err(self.missing(name));
        };
        let path = &self.files[*file].0;
        let width = match *info.shape.as_slice() {
            [width] | [_, width] if info.shape.iter().all(|&n| n > 0) => width,
            _ => return Err(Error::field(path, name, "a shape [width] or [rows, width]", format!("{:?}", info.shape))),
        };
        let view = self.view(*file, info);
        view.check_finite().map_err(Error::file(path))?;
        Ok((view.to_f32().map_err(Error::file(path))?, width))
    }

    /// Checks that there is no tensor but the `known` ones.
    ///
    /// # Errors
    /// [`SafetensorsError::Unexpected`] with the first other.
    pub fn deny_unexpected(&self, known: impl Fn(&str) -> bool) -> Result<()> {
        if let Some(view) = self.quantized.values().find(|view| !known(&view.name)) {
            let (name, shape) = (self.stored_name(&view.name), view.shape.to_vec());
            return Err(self.error(SafetensorsError::Unexpected { name, shape }));
        }
        match self.tensors.iter().find(|(name, _)| !known(name)) {
            Some((name, (file, info))) => {
                let (name, shape) = (self.stored_name(name), info.shape.clone());
                Err(Error::file(&self.files[*file].0)(SafetensorsError::Unexpected { name, shape }))
            }
            None => Ok(()),
        }
    }

    /// Reads all data and checks that every float is finite, and every value that blocks decode to.
    ///
    /// # Errors
    /// [`SafetensorsError::NotFinite`], [`SafetensorsError::Misaligned`].
    pub fn check_finite(&self) -> Result<()> {
        for view in self.quantized.values() {
            if let Some((index, value)) = view.first_not_finite() {
                let name = self.stored_name(&view.name);
                return Err(self.error(SafetensorsError::NotFinite { name, index, value }));
            }
        }
        let all: Vec<_> = self.tensors.values().collect();
        let check = |(file, info): &&(usize, Info)| {
            let view = TensorView { name: self.stored_name(&info.name), ..self.view(*file, info) };
            view.check_finite().map_err(Error::file(&self.files[*file].0))
        };
        // The first error by name, whichever thread meets one first.
        all.par_iter().map(check).find_first(Result::is_err).unwrap_or(Ok(()))
    }

    /// An error about this checkpoint.
    pub fn error(&self, error: SafetensorsError) -> Error {
        Error::file(&self.path)(error)
    }

    fn view(&self, file: usize, info: &Info) -> TensorView {
        let (path, bytes) = &self.files[file];
        let (data, size) = (bytes.slice(info.begin..info.end), element_size(info.dtype));
        if !(data.as_ptr() as usize).is_multiple_of(size) {
            log::warn!("{}: tensors are not aligned, and are copied when they are read", path.display());
        }
        let data = match self.row_orders.get(&info.name) {
            Some(rows) => gathered(&data, rows),
            None => data.aligned(size),
        };
        TensorView { name: info.name.clone(), dtype: info.dtype, shape: info.shape.clone(), data }
    }

    fn missing(&self, name: &str) -> Error {
        self.error(SafetensorsError::Missing { name: self.stored_name(name), hint: self.nearest(name) })
    }

    fn nearest(&self, name: &str) -> String {
        nearest(name, self.names()).map_or(String::new(), |n| format!("; the nearest is {}", self.stored_name(n)))
    }
}

/// The rows of `data` in the order of the list, which has every one.
fn gathered(data: &Bytes, rows: &[u32]) -> Bytes {
    let row = data.len() / rows.len().max(1);
    let mut words = vec![0u8; data.len()];
    for (out, &from) in words.chunks_exact_mut(row.max(1)).zip(rows) {
        out.copy_from_slice(&data[from as usize * row..][..row]);
    }
    Bytes::from(words).aligned(size_of::<u64>())
}
