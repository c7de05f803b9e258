//! Where a checkpoint has a weight, and how that becomes the model's own.

use rayon::prelude::*;

use crate::Result;
use crate::formats::quantized::WeightView;
use crate::formats::safetensors::{Bytes, Checkpoint, TensorView};

/// What of a tensor is a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it.
    Whole,
    /// `output` columns of a matrix stored as `[input, columns]`, transposed.
    Columns { from: usize },
    /// `output` rows one after another.
    Rows { from: usize },
    /// Rows of head after head, each with those of its query, key and value: `which` of the three.
    Heads { which: usize },
}

/// A weight in a checkpoint.
pub(super) struct Location {
    /// The name of its tensor.
    pub name: String,
    /// The shape of that.
    pub stored: Vec<usize>,
    /// What of it the weight is.
    pub part: Part,
    /// The shape of the weight.
    pub shape: Vec<usize>,
    /// Elements of a head.
    pub head_dim: usize,
}

impl Location {
    /// The weight of either kind, as [`Source::weight`](super::Source::weight) gives it.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
    pub fn weight(&self, checkpoint: &Checkpoint) -> Result<WeightView> {
        let view = match checkpoint.weight(&self.name, &self.stored)? {
            WeightView::Plain(view) => return Ok(WeightView::Plain(self.own(view))),
            WeightView::Quantized(view) => view,
        };
        let rows = self.shape[0];
        Ok(WeightView::Quantized(match self.part {
            Part::Whole => view,
            Part::Rows { from } => view.rows(from, rows),
            Part::Columns { .. } => unreachable!("a quantised matrix is [output, input]"),
            Part::Heads { which } => {
                let head = self.head_dim;
                let row = |row: usize| ((row / head * 3 + which) * head + row % head) as u32;
                view.listed(&(0..rows).map(row).collect::<Vec<_>>())
            }
        }))
    }

    /// The weight, which must not be quantised.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape or quantised.
    pub fn view(&self, checkpoint: &Checkpoint) -> Result<TensorView> {
        Ok(self.own(checkpoint.expect(&self.name, &self.stored)?))
    }

    /// The weight of its tensor.
    fn own(&self, view: TensorView) -> TensorView {
        let own = self.shape.clone();
        let row = own[1..].iter().product::<usize>() * view.element_size();
        let data = match self.part {
            Part::Whole => return view,
            Part::Rows { from } => view.data.slice(from * row..(from + own[0]) * row),
            Part::Columns { from } => Bytes::from(columns(&view, from, own[0])),
            Part::Heads { which } => {
                let head = self.head_dim * row;
                let heads = view.data.chunks_exact(3 * head).map(|three| &three[which * head..(which + 1) * head]);
                Bytes::from(heads.collect::<Vec<_>>().concat())
            }
        };
        TensorView { shape: own, data, ..view }
    }
}

/// Rows and columns that are transposed together, so that both sides stay in the cache.
const BLOCK: usize = 64;

/// Columns `from..from + count` of a matrix, as rows.
fn columns(view: &TensorView, from: usize, count: usize) -> Vec<u8> {
    let (rows, pitch, size) = (view.shape[0], view.shape[1], view.element_size());
    let mut out = vec![0; count * rows * size];
    out.par_chunks_mut(BLOCK * rows * size).enumerate().for_each(|(block, out)| {
        let first = from + block * BLOCK;
        for start in (0..rows).step_by(BLOCK) {
            for (i, out) in out.chunks_exact_mut(rows * size).enumerate() {
                for row in start..rows.min(start + BLOCK) {
                    let at = (row * pitch + first + i) * size;
                    out[row * size..(row + 1) * size].copy_from_slice(&view.data[at..at + size]);
                }
            }
        }
    });
    out
}
