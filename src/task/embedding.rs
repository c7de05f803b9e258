//! Texts as vectors of the model's own: the mean of the final norm's output over a text's tokens.

use crate::Result;
use crate::backend::Backend;
use crate::hooks::{Reduce, Reduction, Selection, Site};
use crate::model::{Activations, Input, Model, Save};
use crate::pack::{Label, Sequence};

/// Shortest common beginning that is computed once.
const MIN_SHARED: usize = 8;

/// One vector for each sequence of token ids, `[sequences, C]`, in packs of at most `rows` rows (or of one sequence).
///
/// # Errors
/// A failure of the device.
///
/// # Panics
/// If a sequence is empty.
pub fn mean_states<B: Backend>(
    backend: &mut B,
    model: &Model<B>,
    sequences: &[Vec<u32>],
    rows: usize,
) -> Result<Vec<f32>> {
    let longest = sequences.iter().map(Vec::len).max().unwrap_or(0);
    let mut acts = Activations::new(backend, &model.config, None, rows.max(longest), Save::Layer)?;
    let mut out = Vec::with_capacity(sequences.len() * model.config.hidden_size);
    let mut left = sequences;
    while !left.is_empty() {
        let mut used = 0;
        let mut fits = |ids: &Vec<u32>| {
            used += ids.len();
            used <= rows
        };
        let (batch, rest) = left.split_at(left.iter().take_while(|ids| fits(ids)).count().max(1));
        left = rest;
        let batch: Vec<Sequence> = batch.iter().map(|ids| Sequence::ids(ids, None, Label::Text)).collect();
        let packed = model.config.pack(&batch, MIN_SHARED);
        let rows_of = (0..batch.len()).map(|s| packed.paths[s].iter().cloned().flatten().collect()).collect();
        let mut means = Reduce::new(Selection::new(&[Site::FINAL_NORM], &[]), Reduction::Mean, rows_of);
        let device = backend.pack(&packed.pack)?;
        model.forward(backend, &mut acts, &Input::new(&packed.pack, &device), None, &mut means)?;
        out.extend_from_slice(means.get(Site::FINAL_NORM, 0).expect("embedding: the forward passes the final norm"));
    }
    Ok(out)
}
