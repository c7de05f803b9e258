//! A quantised weight where it lies in its file, and a weight of either kind.

use std::sync::Arc;

use rayon::prelude::*;

use super::safetensors::{Bytes, TensorView};
use crate::arch::Dtype;
use crate::quantization::{BlockFormat, Mismatch, QuantizedMatrix, RowOrder, Scales};

/// Numbers of f32 that are shared, without a copy where they lie aligned in a file.
#[derive(Clone, Debug)]
pub struct Floats(Bytes);

impl Floats {
    /// The numbers that these little-endian bytes are; bytes after the last whole number are left out.
    pub fn new(bytes: &Bytes) -> Self {
        let whole = bytes.len() / size_of::<f32>() * size_of::<f32>();
        Self(bytes.slice(0..whole).aligned(align_of::<f32>()))
    }

    /// The floats, in the order in which they are stored.
    ///
    /// # Panics
    /// Never: the bytes were aligned when the numbers were made.
    pub fn as_slice(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0)
    }
}

impl From<Vec<f32>> for Floats {
    fn from(values: Vec<f32>) -> Self {
        Self::new(&Bytes::from(bytemuck::cast_slice::<f32, u8>(&values).to_vec()))
    }
}

/// As [`Scales`], sharing what they lie in.
#[derive(Clone, Debug)]
pub enum ScalesView {
    /// Among the codes.
    Inline,
    /// The largest magnitude of each row or block.
    Absmax(Floats),
    /// A factor for each row.
    Factor(Floats),
    /// Largest magnitudes that are quantised themselves.
    Nested {
        /// One a block of the matrix.
        codes: Bytes,
        /// The values of the 256 codes.
        map: Arc<[f32; 256]>,
        /// One for each `block` codes.
        absmax: Floats,
        /// Added to all.
        offset: f32,
        /// Codes that share one of `absmax`.
        block: u32,
    },
}

/// As [`RowOrder`], sharing the list.
#[derive(Clone, Debug)]
pub enum RowOrderView {
    /// Row `first + r` of the stored ones.
    From(usize),
    /// Row `list[r]`.
    Listed(Arc<[u32]>),
}

/// A quantised matrix of an open file, or in memory. Cloning copies no data.
#[derive(Clone, Debug)]
pub struct QuantizedView {
    /// Name in the file.
    pub name: String,
    /// What the bytes mean.
    pub format: BlockFormat,
    /// `[rows, columns]` of this matrix.
    pub shape: [usize; 2],
    /// Rows of the matrix that the codes are.
    pub stored_rows: usize,
    /// The codes of the stored matrix, row after row.
    pub codes: Bytes,
    /// What the codes of each block, or row, are multiplied by.
    pub scales: ScalesView,
    /// Where the rows are among the stored ones.
    pub order: RowOrderView,
    /// The dtype to which the library that wrote it rounds the values, where that is not f32.
    pub rounding: Option<Dtype>,
}

impl QuantizedView {
    /// The matrix, to decode.
    pub fn matrix(&self) -> QuantizedMatrix<'_> {
        let scales = match &self.scales {
            ScalesView::Inline => Scales::Inline,
            ScalesView::Absmax(absmax) => Scales::Absmax(absmax.as_slice()),
            ScalesView::Factor(factor) => Scales::Factor(factor.as_slice()),
            ScalesView::Nested { codes, map, absmax, offset, block } => {
                Scales::Nested { codes, map, absmax: absmax.as_slice(), offset: *offset, block: *block }
            }
        };
        let order = match &self.order {
            RowOrderView::From(first) => RowOrder::From(*first),
            RowOrderView::Listed(list) => RowOrder::Listed(list),
        };
        let [rows, columns] = self.shape;
        let (format, stored_rows, codes) = (self.format, self.stored_rows, &*self.codes);
        QuantizedMatrix { format, rows, columns, stored_rows, codes, scales, order, rounding: self.rounding }
    }

    /// [`QuantizedMatrix::check`].
    ///
    /// # Errors
    /// The first part that has another length than the shape says.
    pub fn check(&self) -> Result<(), Mismatch> {
        self.matrix().check()
    }

    /// Rows `from..from + count` as a matrix of their own.
    ///
    /// # Panics
    /// If there are not so many rows.
    pub fn rows(&self, from: usize, count: usize) -> Self {
        assert!(from + count <= self.shape[0], "rows {from} and {count} more of {}", self.shape[0]);
        let order = match &self.order {
            RowOrderView::From(first) => RowOrderView::From(first + from),
            RowOrderView::Listed(list) => RowOrderView::Listed(list[from..from + count].into()),
        };
        Self { shape: [count, self.shape[1]], order, ..self.clone() }
    }

    /// The rows of a list as a matrix of their own.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn listed(&self, rows: &[u32]) -> Self {
        let list = rows.iter().map(|&row| match &self.order {
            RowOrderView::From(first) => *first as u32 + row,
            RowOrderView::Listed(list) => list[row as usize],
        });
        Self { shape: [rows.len(), self.shape[1]], order: RowOrderView::Listed(list.collect()), ..self.clone() }
    }

    /// The first value that is not finite, with its flat index.
    pub fn first_not_finite(&self) -> Option<(usize, f64)> {
        let (matrix, [rows, columns]) = (self.matrix(), self.shape);
        let first = |row: usize| {
            let mut values = vec![0.0; columns];
            matrix.dequantize_row(row, 0..columns, &mut values);
            let at = values.iter().position(|x| !x.is_finite())?;
            Some((row * columns + at, f64::from(values[at])))
        };
        (0..rows).into_par_iter().find_map_first(first)
    }

    /// Whether every value is that of another matrix at its place, however either is stored.
    pub fn has_values_of(&self, other: &Self) -> bool {
        let ([a, b], [rows, columns]) = ([self.matrix(), other.matrix()], self.shape);
        let values = |matrix: &QuantizedMatrix<'_>, row: usize| {
            let mut values = vec![0.0; columns];
            matrix.dequantize_row(row, 0..columns, &mut values);
            values
        };
        self.shape == other.shape && (0..rows).into_par_iter().all(|row| values(&a, row) == values(&b, row))
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape[0] * self.shape[1]
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the codes and scales of the stored matrix.
    pub fn stored_bytes(&self) -> usize {
        let floats = |floats: &Floats| size_of_val(floats.as_slice());
        let scales = match &self.scales {
            ScalesView::Inline => 0,
            ScalesView::Absmax(scales) | ScalesView::Factor(scales) => floats(scales),
            ScalesView::Nested { codes, map, absmax, .. } => codes.len() + size_of_val(&**map) + floats(absmax),
        };
        self.codes.len() + scales
    }

    /// Everything that its values are made of, as bytes: what each part is, with the name and what is said of the matrix,
    /// and the part.
    pub(super) fn parts(&self) -> Vec<(String, Bytes)> {
        let order = match &self.order {
            RowOrderView::From(first) => first.to_string(),
            RowOrderView::Listed(_) => "listed".to_owned(),
        };
        let said =
            format!("{:?} {:?} of {} rows {order} {:?}", self.format, self.shape, self.stored_rows, self.rounding);
        let mut parts = vec![(said, self.codes.clone())];
        match &self.scales {
            ScalesView::Inline => {}
            ScalesView::Absmax(scales) => parts.push(("absmax".to_owned(), scales.0.clone())),
            ScalesView::Factor(scales) => parts.push(("factor".to_owned(), scales.0.clone())),
            ScalesView::Nested { codes, map, absmax, offset, block } => {
                parts.push((format!("nested {offset} {block}"), codes.clone()));
                parts.push(("map".to_owned(), Floats::from(map.to_vec()).0));
                parts.push(("nested absmax".to_owned(), absmax.0.clone()));
            }
        }
        if let RowOrderView::Listed(list) = &self.order {
            parts.push(("rows".to_owned(), Bytes::from(bytemuck::cast_slice::<u32, u8>(list).to_vec())));
        }
        parts.into_iter().map(|(what, data)| (format!("{} {what}\n", self.name), data)).collect()
    }

    /// All values `[rows, columns]`, in f32.
    pub fn to_f32(&self) -> Vec<f32> {
        let (matrix, [rows, columns]) = (self.matrix(), self.shape);
        let mut out = vec![0.0; rows * columns];
        let decode = |(row, out): (usize, &mut [f32])| matrix.dequantize_row(row, 0..columns, out);
        out.par_chunks_exact_mut(columns.max(1)).enumerate().for_each(decode);
        out
    }
}

/// A weight as a file has it.
#[derive(Clone, Debug)]
pub enum WeightView {
    /// Numbers, one after another.
    Plain(TensorView),
    /// A quantised matrix.
    Quantized(QuantizedView),
}

impl WeightView {
    /// Name in the file.
    pub fn name(&self) -> &str {
        match self {
            Self::Plain(view) => &view.name,
            Self::Quantized(view) => &view.name,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::Plain(view) => view.len(),
            Self::Quantized(view) => view.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<TensorView> for WeightView {
    fn from(view: TensorView) -> Self {
        Self::Plain(view)
    }
}

impl From<QuantizedView> for WeightView {
    fn from(view: QuantizedView) -> Self {
        Self::Quantized(view)
    }
}
