//! Looking into a pass: a forward is generic over [`Taps`], which is handed tensors as they are made.
//!
//! What a pass is to write rather than to read is an [`Edit`] ([`edit`]).
//!
//! [`NoTaps`] is a zero-sized type whose answers are constants, so that a pass without taps pays nothing. A tapped
//! tensor is a buffer that the forward makes anyway; the tap sees it before anything else is written to it. On the CPU
//! the host reads it in place ([`Tapped::host`]).
//!
//! # Examples
//!
//! A tap of one's own reads borrowed slices; nothing is copied:
//!
//! ```
//! use llamaprobe::Result;
//! use llamaprobe::backend::{Buffers, HostSlice, cpu::Cpu};
//! use llamaprobe::hooks::{Site, Tapped, Taps};
//! # use llamaprobe::arch::{Dtype, ModelConfig};
//! # use llamaprobe::model::{Activations, FullTuning, Input, Save};
//! # use llamaprobe::pack::{Label, PackBuilder, Parent, Token};
//! # let config = r#"{"model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
//! #     "num_attention_heads": 2, "vocab_size": 11}"#;
//! # let backend = &mut Cpu::new(Dtype::F32);
//! # let config = ModelConfig::parse("config.json", config)?;
//! # let (model, _) = FullTuning::random(backend, config, 0.2, 0)?;
//!
//! /// The largest value of the residual stream after each layer.
//! struct Largest(Vec<f32>);
//!
//! impl Taps<Cpu<f32>> for Largest {
//!     fn wants(&self, site: Site, _: usize) -> bool {
//!         site == Site::ResidPost
//!     }
//!     fn tap(&mut self, backend: &mut Cpu<f32>, tapped: Tapped<'_, Cpu<f32>>) -> Result<()> {
//!         if let Some(HostSlice::F32(values)) = tapped.host(backend) {
//!             let values = &values[..tapped.len() * tapped.width];
//!             self.0.push(values.iter().fold(f32::MIN, |a, &b| a.max(b)));
//!         }
//!         Ok(())
//!     }
//! }
//!
//! let mut builder = PackBuilder::default();
//! builder.push(&[1, 5, 7].map(Token::Id), Parent::None, None, Label::Text);
//! let pack = builder.build();
//! let device = backend.pack(&pack)?;
//! let mut acts = Activations::new(backend, &model.config, None, pack.len(), Save::Layer)?;
//! let mut largest = Largest(Vec::new());
//! model.forward(backend, &mut acts, &Input::new(&pack, &device), None, &mut largest)?;
//! assert_eq!(largest.0.len(), 2);
//!
//! // Ready-made taps copy rows, or leave one vector per sequence, at hooks asked for by name.
//! use llamaprobe::hooks::{Naming, Record, Reduce, Reduction, Selection};
//! let hooks = Selection::parse("resid_post,ln_final.hook_out", &[0, 1], &Naming::tl(&model.config))?;
//! let mut last = Record::new(hooks.clone(), vec![2]);
//! model.forward(backend, &mut acts, &Input::new(&pack, &device), None, &mut last)?;
//! assert_eq!(last.get(Site::FINAL_NORM, 0).map(<[f32]>::len), Some(8));
//!
//! let mut mean = Reduce::new(hooks, Reduction::Mean, vec![vec![0, 1, 2]]);
//! model.forward(backend, &mut acts, &Input::new(&pack, &device), None, &mut mean)?;
//! assert_eq!(mean.get(Site::ResidPost, 1).map(<[f32]>::len), Some(8));
//! # Ok::<(), llamaprobe::Error>(())
//! ```

use crate::Result;
use crate::backend::{Backend, HostSlice, Tensor};
use crate::pack::Pack;

pub mod edit;
pub mod names;
pub mod record;
pub mod site;

pub use edit::{Edit, EditOp, EditPlan, EditRows};
pub use names::{Names, Naming};
pub use record::{Record, Reduce, Reduction, take};
pub use site::{NormPart, NormSite, Selection, Site};

/// A tensor handed to a tap.
pub struct Tapped<'a, B: Backend> {
    /// Which tensor of the forward it is.
    pub site: Site,
    /// In which layer (0 outside the blocks).
    pub layer: usize,
    /// The pack rows that the tensor's rows belong to, ascending; none means every row of the pack. What comes after the
    /// last attention may be there only for the output rows (`model::OutputRows`), what is made on demand only for
    /// [`Taps::rows`].
    pub rows: Option<&'a [usize]>,
    /// Elements of a row.
    pub width: usize,
    /// The elements, `[rows, width]`; the buffer may be longer.
    pub data: Tensor<'a, B>,
    /// The pack of the pass, which tells a row's sequence and position.
    pub pack: &'a Pack,
}

impl<'a, B: Backend> Tapped<'a, B> {
    /// Number of the tensor's rows, in [`rows`](Self::rows) or in the pack.
    pub fn len(&self) -> usize {
        self.rows.map_or(self.pack.len(), <[usize]>::len)
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements in place, where the host can read them without a copy.
    pub fn host(&self, backend: &B) -> Option<HostSlice<'a>> {
        match self.data {
            Tensor::Acc(buffer) => backend.borrow_acc(buffer),
            Tensor::Compute(buffer) => backend.borrow_compute(buffer),
        }
    }

    /// The row of this tensor that belongs to pack row `row`, if it is there.
    pub fn find(&self, row: usize) -> Option<usize> {
        match self.rows {
            None => (row < self.pack.len()).then_some(row),
            Some(rows) => rows.binary_search(&row).ok(),
        }
    }

    /// The rows of this tensor that belong to pack rows.
    ///
    /// # Panics
    /// If one is not there.
    pub fn find_all(&self, rows: &[usize]) -> Vec<usize> {
        let missing = |row: usize| -> usize { panic!("{}: row {row} was not tapped", self.site.name(self.layer)) };
        rows.iter().map(|&row| self.find(row).unwrap_or_else(|| missing(row))).collect()
    }
}

/// What looks into a forward.
pub trait Taps<B: Backend> {
    /// Whether [`Taps::tap`] is to be called for a hook. Asked once per hook and pass.
    fn wants(&self, site: Site, layer: usize) -> bool;

    /// Called as soon as the tensor is there.
    ///
    /// # Errors
    /// Whatever ends the pass: the forward goes no further, and returns it.
    fn tap(&mut self, backend: &mut B, tapped: Tapped<'_, B>) -> Result<()>;

    /// Whether [`Taps::rewrite`] is asked at a hook, whose site can be edited ([`Site::is_editable`]).
    #[inline(always)]
    fn rewrites(&self, _: Site, _: usize) -> bool {
        false
    }

    /// What takes the place of all rows of a tensor, `[rows, width]`; none leaves it as it is. Asked after the pass's edits and
    /// before [`Taps::tap`], which sees what flows on. The pass has no way back through it.
    ///
    /// # Errors
    /// Whatever ends the pass.
    fn rewrite(&mut self, _: &mut B, _: Tapped<'_, B>) -> Result<Option<Vec<f32>>> {
        Ok(None)
    }

    /// Called once after the last tensor of a pass. What was captured is to be read after
    /// [`Transfer::sync`](crate::backend::Transfer::sync).
    ///
    /// # Errors
    /// Whatever stands in the way of what the taps are for.
    fn finish(&mut self, _: &mut B) -> Result<()> {
        Ok(())
    }

    /// The pack rows for which the sites computed on demand ([`Site::on_demand`]) are computed; none means all.
    fn rows(&self) -> Option<&[usize]> {
        None
    }

    /// The first layer that is not computed, if the rest of the model is not needed.
    fn stop_at_layer(&self) -> Option<usize> {
        None
    }
}

/// Looks at nothing and costs nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoTaps;

impl<B: Backend> Taps<B> for NoTaps {
    #[inline(always)]
    fn wants(&self, _: Site, _: usize) -> bool {
        false
    }

    #[inline(always)]
    fn tap(&mut self, _: &mut B, _: Tapped<'_, B>) -> Result<()> {
        Ok(())
    }
}
