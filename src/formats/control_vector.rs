//! Control vectors in llama.cpp's form: a GGUF file with a direction for each of some layers, to be added to the residual
//! stream at every position.
//!
//! The tensor `direction.N` `[C]` is added to what block N leaves, blocks counted from 0 (`llama-adapter.cpp`: the data of
//! layer N begins at `C * (N - 1)`, and `build_cvec` adds it after the block's last residual sum). That is
//! `blocks.N.hook_resid_post`, or `hidden_states[N + 1]` of transformers. Block 0 has no direction: llama.cpp refuses
//! `direction.0`. Beside the tensors stand `general.architecture` = `controlvector`, `controlvector.model_hint` and
//! `controlvector.layer_count`, the number of directions; the last two are not acted on, there or here.

use std::collections::BTreeMap;
use std::path::Path;

use super::activations::{ActivationFile, Rows};
use super::gguf::{self, Gguf, Tensor, Value};
use crate::{Error, Result};

const ARCHITECTURE: &str = "controlvector";

/// Directions of a file, by the block at whose output they are added.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ControlVector {
    /// What the file says of the model that it is for.
    pub model_hint: String,
    /// By block, each of the residual width.
    pub directions: BTreeMap<usize, Vec<f32>>,
}

impl ControlVector {
    /// Reads a file.
    ///
    /// # Errors
    /// See [`Gguf::read`]; another architecture; a tensor that is no direction of a layer from 1 on, or of another width than
    /// the others; no tensor at all; an element that is not finite.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = Gguf::read(path)?;
        let architecture = file.string("general.architecture")?;
        if architecture != ARCHITECTURE {
            return Err(Error::field(path, "general.architecture", ARCHITECTURE, architecture));
        }
        let key = format!("{ARCHITECTURE}.model_hint");
        let model_hint = if file.metadata.contains_key(&key) { file.string(&key)?.to_owned() } else { String::new() };
        let mut directions: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
        let mut width = None;
        for name in file.entries.keys() {
            let Tensor { dims, values } = file.floats(name)?;
            let layer = name.strip_prefix("direction.").and_then(|layer| layer.parse::<usize>().ok());
            let layer = layer.filter(|&layer| layer > 0 && *name == format!("direction.{layer}")).ok_or_else(|| {
                Error::field(path, "tensors", "direction.N, N from 1 on", name.escape_default().to_string())
            })?;
            let expected = *width.get_or_insert(values.len());
            if dims.len() != 1 || values.len() != expected || values.is_empty() {
                return Err(Error::field(path, name, format!("a vector of {expected} elements"), format!("{dims:?}")));
            }
            if let Some(x) = values.iter().find(|x| !x.is_finite()) {
                return Err(Error::field(path, name, "finite elements", x.to_string()));
            }
            directions.insert(layer, values);
        }
        if directions.is_empty() {
            return Err(Error::field(path, "tensors", "at least one direction.N", "none"));
        }
        Ok(Self { model_hint, directions })
    }

    /// Writes the file.
    ///
    /// # Errors
    /// A direction of block 0, for which the form has no place; the file cannot be written.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        if self.directions.contains_key(&0) {
            return Err(Error::field(path, "directions", "blocks from 1 on", "a direction of block 0"));
        }
        let metadata = [
            ("general.architecture", Value::String(ARCHITECTURE.to_owned())),
            ("controlvector.model_hint", Value::String(self.model_hint.clone())),
            ("controlvector.layer_count", Value::Signed(self.directions.len() as i64)),
        ];
        let tensor = |(layer, values): (&usize, &Vec<f32>)| {
            (format!("direction.{layer}"), Tensor { dims: vec![values.len()], values: values.clone() })
        };
        gguf::write(path, &metadata, &self.directions.iter().map(tensor).collect::<Vec<_>>())
    }

    /// The difference of the means of two captures, at the output of every block that both have (Rimsky et al. 2024, from
    /// Turner et al. 2023), summed in `f64` in row order; block 0's is left out, as the form has no place for it.
    ///
    /// # Errors
    /// A file that cannot be read; states at other blocks or of another width in the two files; none at a block from 1 on;
    /// elements that are not finite.
    pub fn mean_difference(positive: &Path, negative: &Path, model_hint: &str) -> Result<Self> {
        let [mut a, b] = [means(positive)?, means(negative)?];
        let blocks = |means: &BTreeMap<usize, Vec<f64>>| means.keys().copied().collect::<Vec<_>>();
        if blocks(&a) != blocks(&b) {
            let expected = format!("states at the blocks {:?} of {}", blocks(&a), positive.display());
            return Err(Error::field(negative, "tensors", expected, format!("{:?}", blocks(&b))));
        }
        a.remove(&0);
        let mut directions = BTreeMap::new();
        for (layer, a) in a {
            let b = &b[&layer];
            if a.len() != b.len() {
                let name = format!("blocks.{layer}.hook_resid_post");
                return Err(Error::field(negative, name, format!("a width of {}", a.len()), b.len().to_string()));
            }
            directions.insert(layer, a.iter().zip(b).map(|(a, b)| (a - b) as f32).collect());
        }
        if directions.is_empty() {
            let expected = "blocks.N.hook_resid_post, N from 1 on (a control vector has no place for block 0)";
            return Err(Error::field(positive, "tensors", expected, "none"));
        }
        Ok(Self { model_hint: model_hint.to_owned(), directions })
    }
}

/// The mean over rows of every block's output, in one file or in shards: `blocks.N.hook_resid_post`, or under
/// TransformerLens 4's name `blocks.N.hook_out`.
fn means(path: &Path) -> Result<BTreeMap<usize, Vec<f64>>> {
    let file = ActivationFile::open(path)?;
    let mut means = BTreeMap::new();
    for site in file.sites() {
        let local = site.strip_prefix("blocks.").and_then(|rest| rest.split_once('.'));
        let Some((block, "hook_resid_post" | "hook_out")) = local else { continue };
        let Ok(block) = block.parse::<usize>() else { continue };
        let Rows { values, width } = file.rows(site)?;
        let mut sum = vec![0.0; width];
        for row in values.chunks_exact(width) {
            sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
        }
        let count = (values.len() / width) as f64;
        if means.insert(block, sum.into_iter().map(|sum| sum / count).collect()).is_some() {
            return Err(Error::field(path, site, "one tensor for the output of a block", "two"));
        }
    }
    Ok(means)
}
