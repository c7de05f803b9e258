//! The shards of a capture on disk: which an index names, which an interrupted capture has left, and whether they are of one
//! capture.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{ActivationFile, FileLayout, Format, Layout, Start, read};
use crate::formats::atomic::entries;
use crate::formats::safetensors::{Checkpoint, Dtype};
use crate::{Error, Result};

/// A shard that an index names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Its file's name, in the directory of the index.
    pub file: String,
    /// Rows of each of its tensors.
    pub rows: usize,
}

/// Most positions of a document: a file that says more is damaged.
const MOST_POSITIONS: usize = 1 << 24;

/// The shards of an earlier capture, behind which another goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Earlier {
    /// The name that one file of all would have.
    path: PathBuf,
    /// What each shard says of itself.
    headers: Vec<BTreeMap<String, String>>,
    /// The shards, in order.
    pub shards: Vec<Shard>,
    /// Documents in all of them: the number of the next one.
    pub documents: usize,
    /// Positions of scores and patterns there.
    pub positions: usize,
}

impl Earlier {
    /// The shards whose index lies beside `path`, the name that one file would have.
    ///
    /// # Errors
    /// `append`: there is no index, or its files do not have what a capture writes.
    pub fn open(path: &Path) -> Result<Self> {
        let index = index_of(path);
        let none =
            || Error::argument("append", "an earlier capture in shards there", format!("no {}", index.display()));
        let Some(announced) = index.exists().then(|| read::announced(&index)).transpose()?.flatten() else {
            return Err(none());
        };
        let file = ActivationFile::open(&index)?;
        let rows: usize = announced.iter().map(|(_, rows)| rows).sum();
        let last = announced.last().map(|(name, _)| path.with_file_name(name)).ok_or_else(none)?;
        let documents = match file.labels("doc_id")?.and_then(|column| column.last().copied()) {
            None => 0,
            // Each document has a row at least.
            Some(id) => usize::try_from(id).ok().filter(|id| *id < rows).map(|id| id + 1).ok_or_else(|| {
                Error::field(&last, "doc_id", format!("numbers of documents below {rows}"), id.to_string())
            })?,
        };
        let header = |(name, _): &(String, usize)| Ok(Checkpoint::open(path.with_file_name(name))?.metadata().clone());
        let headers = announced.iter().map(header).collect::<Result<Vec<_>>>()?;
        let positions = headers.last().and_then(|header| header.get("n_positions"));
        let positions = match positions.and_then(|number| number.parse().ok()) {
            Some(positions) if positions <= MOST_POSITIONS => positions,
            _ => {
                let found = positions.map_or("none", String::as_str);
                return Err(Error::field(&last, "n_positions", format!("a number up to {MOST_POSITIONS}"), found));
            }
        };
        let shards = announced.into_iter().map(|(file, rows)| Shard { file, rows }).collect();
        Ok(Self { path: path.to_path_buf(), headers, shards, documents, positions })
    }

    /// These without the last `count`; none where nothing is left, or where another capture was begun behind them.
    pub fn without_last(&self, count: usize) -> Option<Self> {
        let left = self.shards.len().checked_sub(count).filter(|left| *left > 0)?;
        let stem = self.path.file_stem()?.to_string_lossy();
        let next = format!("{stem}-{:05}-of-", self.shards.len() + 1);
        let mut beside = entries(self.path.parent()?).into_iter();
        if beside.any(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&next))) {
            return None;
        }
        let number = |header: &BTreeMap<String, String>, key: &str| header.get(key)?.parse().ok();
        Some(Self {
            path: self.path.clone(),
            headers: self.headers[..left].to_vec(),
            shards: self.shards[..left].to_vec(),
            documents: number(self.headers.get(left)?, "first_doc")?,
            positions: number(&self.headers[left - 1], "n_positions")?,
        })
    }

    /// Whether the last shards say of their documents what these files would.
    pub fn ends_with(&self, files: &[FileLayout]) -> bool {
        let headers = self.headers.iter().rev().zip(files.iter().rev());
        let says = |(header, file): (&BTreeMap<String, String>, &FileLayout)| {
            file.metadata.iter().all(|(key, value)| header.get(key) == Some(value))
        };
        files.len() <= self.headers.len() && headers.into_iter().all(says)
    }
}

/// The index of the shards of a capture that one file would hold as `path`.
pub fn index_of(path: &Path) -> PathBuf {
    PathBuf::from(format!("{}.index.json", path.display()))
}

impl Layout {
    /// The file of a shard; the shards of an earlier capture count before it.
    pub(super) fn file(&self, path: &Path, shard: usize) -> PathBuf {
        if !self.sharded {
            return path.to_path_buf();
        }
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let before = self.earlier().len();
        let (number, all) = (before + shard + 1, before + self.files.len());
        path.with_file_name(format!("{stem}-{number:05}-of-{all:05}.safetensors"))
    }

    /// The shards of an earlier capture.
    pub(super) fn earlier(&self) -> &[Shard] {
        self.earlier.as_ref().map_or(&[], |earlier| &earlier.shards)
    }

    /// Whether the earlier shards are of a capture with the same settings.
    ///
    /// # Errors
    /// A file with its first key or tensor that is another.
    pub(super) fn check_earlier(&self, path: &Path) -> Result<()> {
        self.earlier().iter().try_for_each(|shard| self.check(&path.with_file_name(&shard.file), None))
    }

    /// How many of the shards are there already, from the first on.
    ///
    /// # Errors
    /// One is of a capture with other settings or other documents: its first key or tensor that is another.
    pub(super) fn whole(&self, path: &Path) -> Result<usize> {
        for shard in 0..self.files.len() {
            let file = self.file(path, shard);
            if !file.exists() {
                return Ok(shard);
            }
            self.check(&file, Some(shard))?;
        }
        Ok(self.files.len())
    }

    /// Whether a file is the shard of that number, or, without a number, one of another capture with the same settings.
    fn check(&self, file: &Path, shard: Option<usize>) -> Result<()> {
        let found = Checkpoint::open(file)?;
        let of_files = self.files.iter().flat_map(|file| &file.metadata).map(|(key, _)| key.as_str());
        let is_own = |key: &str| shard.is_none() && of_files.clone().any(|own| own == key);
        let own = shard.map_or(&[][..], |shard| &self.files[shard].metadata);
        let expected: BTreeMap<&str, &str> =
            self.metadata.iter().chain(own).map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let wrong = |field: &str, expected: String, found: &str| {
            Err(Error::field(file, field, format!("{expected} as in this capture"), found))
        };
        for (&key, &value) in &expected {
            match found.metadata().get(key) {
                Some(found) if found == value => {}
                other => return wrong(key, value.to_owned(), other.map_or("none", String::as_str)),
            }
        }
        let other = found.metadata().iter().find(|(key, _)| !expected.contains_key(key.as_str()) && !is_own(key));
        if let Some((key, value)) = other {
            return wrong(key, "none".to_owned(), value);
        }
        let rows = |rows: usize| shard.map_or(rows, |shard| self.files[shard].rows);
        let sites = self.sites.iter().map(|(name, width)| (name, self.dtype, Some(*width)));
        let labels = self.labels.iter().map(|name| (name, Dtype::I64, None));
        let mut known = 0;
        for (name, dtype, width) in sites.chain(labels) {
            let tensor = found.get(name);
            let held = tensor.as_ref().and_then(|tensor| tensor.shape.first()).copied().unwrap_or(0);
            let shape: Vec<usize> = std::iter::once(rows(held)).chain(width).collect();
            let found = tensor.map_or("none".to_owned(), |tensor| format!("{} {:?}", tensor.dtype, tensor.shape));
            let expected = format!("{dtype} {shape:?}");
            if found != expected {
                return wrong(name, expected, &found);
            }
            known += 1;
        }
        match found
            .names()
            .find(|name| !self.sites.iter().any(|(site, _)| site == name) && !self.labels.iter().any(|l| l == name))
        {
            Some(other) if found.len() > known => wrong(other, "no such tensor".to_owned(), "one"),
            _ => Ok(()),
        }
    }

    /// Refuses a place that has an earlier capture in another form or number of shards, which would be read beside the new one
    /// or in its place, and one that has what an interrupted capture left, which would be lost.
    pub(super) fn check_place(&self, path: &Path, start: Start) -> Result<()> {
        let refuse = |expected: &str, found: &Path| Err(Error::argument("output", expected, found.display()));
        let other_form = "a place without an earlier capture of another form (remove it, or choose another)";
        let index = index_of(path);
        let has_index = index.exists();
        let [single, arrays] = ["safetensors", "json"].map(|extension| path.with_extension(extension));
        // Of a capture in one form nothing may lie beside one in another.
        let others = match (self.format, self.sharded) {
            (Format::Npy, _) => vec![index_of(&single), single],
            (Format::Safetensors, false) => vec![index, arrays],
            (Format::Safetensors, true) => vec![single, arrays],
        };
        if let Some(found) = others.iter().find(|other| other.exists()) {
            return refuse(other_form, found);
        }
        if !self.sharded {
            return Ok(());
        }
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let own: Vec<PathBuf> = (0..self.files.len()).map(|shard| self.file(path, shard)).collect();
        for entry in entries(path.parent().unwrap_or(Path::new(""))) {
            let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let rest = name.strip_prefix(&format!("{stem}-")).filter(|rest| rest.contains("-of-"));
            let is_shard = rest.is_some_and(|rest| rest.ends_with(".safetensors"));
            if !is_shard || self.earlier().iter().any(|shard| shard.file == name) {
                continue;
            }
            if !own.iter().any(|file| file.file_name() == entry.file_name()) {
                let all = self.earlier().len() + own.len();
                let expected = format!("files of {all} in all, which these documents make at this size of shards");
                return refuse(if start == Start::Resume { &expected } else { other_form }, &entry);
            }
            // With an index it is whole, and to be replaced.
            if start == Start::New && (self.earlier.is_some() || !has_index) {
                let expected = "a place without shards of an interrupted capture (resume it, or remove them)";
                return refuse(expected, &entry);
            }
        }
        Ok(())
    }
}
