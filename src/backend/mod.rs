//! The contract between the model and a device: a narrow set of fused operations, each forward with its backward.
//!
//! [`Backend`] is the sum of small traits: [`Buffers`] (memory), [`Transfer`] (between host and device), [`Capture`],
//! [`Planning`] (what a plan must know), and the operations of [`ops`], a trait for each file there.
//!
//! **Buffers.** [`Buffers::Acc`], of the accumulation dtype, holds what must not lose digits: the residual stream, norm
//! statistics, log-sum-exps, losses, adapters, their gradients and moments. [`Buffers::Compute`], of the compute dtype, is
//! what matrix products read and write; which dtype that is, a device is told when it is opened. [`Buffers::Weight`] is a
//! frozen matrix or vector of the checkpoint, left in the file's mapping where the device can. Matrices are row-major and
//! dense. A buffer may be longer than its shape (it was planned for a larger pack): operations use its leading elements.
//!
//! **Errors.** Operations return nothing: the backend keeps its first error with the operation's name, and
//! [`Transfer::sync`] reports it. Wrong lengths are a mistake of the caller: [`ops::Op::check`] panics with both numbers,
//! the same on every device.
//!
//! **Determinism.** Every reduction has a fixed order; the same inputs give the same bits. A row of an output depends
//! only on its own inputs (for attention: on its segment's path), bit for bit, whatever else is in the pack, if that has as many
//! rows; if it has others, where the device is [`Planning::ROW_INVARIANT`].

use crate::Result;
use crate::formats::quantized::QuantizedView;
use crate::formats::safetensors::TensorView;
use crate::pack::Pack;

pub mod blocks;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod launches;
mod op;
pub mod ops;
pub mod prediction;
pub mod profile;
pub mod scratch;
pub mod trace;
mod values;

pub use values::{AccElement, Captured, HostSlice, Interrupt, OwnMemory, PassSize, Readback, Tensor, TensorMut};

/// Something with a number of elements.
pub trait Len {
    /// Number of elements.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of a quantised weight as it is stored; none of what is not quantised.
    fn quantized_bytes(&self) -> Option<usize> {
        None
    }
}

impl<T> Len for Vec<T> {
    fn len(&self) -> usize {
        self.len()
    }
}

/// A list of row numbers or ids on a device.
pub trait DeviceIndex {
    /// Number of entries.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One more than the greatest; 0 if there are none.
    fn bound(&self) -> usize;
}

impl DeviceIndex for Vec<u32> {
    fn len(&self) -> usize {
        self.len()
    }

    fn bound(&self) -> usize {
        self.iter().max().map_or(0, |&i| i as usize + 1)
    }
}

/// A pack's tables on a device.
pub trait DevicePack {
    /// The pack as the host knows it.
    fn host(&self) -> &Pack;
}

impl DevicePack for Pack {
    fn host(&self) -> &Pack {
        self
    }
}

impl DevicePack for std::sync::Arc<Pack> {
    fn host(&self) -> &Pack {
        self
    }
}

/// A device's memory: its kinds, and how they are had.
pub trait Buffers {
    /// Buffer of the accumulation dtype.
    type Acc: Len;
    /// Buffer of the compute dtype.
    type Compute: Len;
    /// Frozen weight of the checkpoint, or one that is trained.
    type Weight: Len;
    /// List of row numbers or ids.
    type Index: DeviceIndex;
    /// A pack's tables on the device.
    type Pack: DevicePack;
    /// Element of [`Buffers::Acc`] as the host sees it.
    type Element: AccElement;

    /// The device and the compute dtype, such as `cpu f32`.
    fn name(&self) -> String;
    /// A buffer of the accumulation dtype, all zeros.
    ///
    /// # Errors
    /// If there is no memory for it.
    fn acc(&mut self, len: usize) -> Result<Self::Acc>;
    /// A buffer of the compute dtype, all zeros.
    ///
    /// # Errors
    /// If there is no memory for it.
    fn compute(&mut self, len: usize) -> Result<Self::Compute>;
    /// The next `count` buffers or weights of the compute dtype are operands of products that a device may make at once, if they are of
    /// one length and it lays them side by side.
    fn beside(&mut self, count: usize) {
        let _ = count;
    }
    /// A frozen weight, its elements those of the file rounded to the compute dtype.
    ///
    /// # Errors
    /// If the elements are no floating-point numbers, or there is no memory for them.
    fn weight(&mut self, view: &TensorView) -> Result<Self::Weight>;
    /// Whether the weights that come from now on are for passes of a few rows, as when text is generated: a device may copy them into
    /// memory of its own, if that is faster.
    fn expect_few_rows(&mut self, expected: bool) {
        let _ = expected;
    }
    /// A weight will be the operand of products of many rows: a device that decodes one for them may make room for the largest at once.
    fn expect_whole(&mut self, weight: &Self::Weight) {
        let _ = weight;
    }
    /// A frozen weight that is quantised, `[rows, columns]`: its values are decoded to the compute dtype wherever they are read,
    /// as if the file had those.
    ///
    /// # Errors
    /// If its parts are not as long as its shape says, or the device has nothing that decodes.
    fn quantized_weight(&mut self, view: &QuantizedView) -> Result<Self::Weight>;
    /// A weight to be trained: a copy of `len` elements of `params` from `offset` on, rounded to the compute dtype.
    ///
    /// # Errors
    /// If there is no memory for it.
    fn trainable_weight(&mut self, params: &Self::Acc, offset: usize, len: usize) -> Result<Self::Weight>;
    /// A list of row numbers or ids.
    ///
    /// # Errors
    /// If there is no memory for it.
    fn index(&mut self, values: &[u32]) -> Result<Self::Index>;
    /// The tables of a pack.
    ///
    /// # Errors
    /// If there is no memory for them.
    fn pack(&mut self, pack: &Pack) -> Result<Self::Pack>;
}

/// Between host and device.
pub trait Transfer: Buffers {
    /// A download that has been begun.
    type PendingReadback;

    /// `buffer[offset..] = values`.
    ///
    /// # Errors
    /// Of the device.
    fn upload(&mut self, buffer: &mut Self::Acc, offset: usize, values: &[Self::Element]) -> Result<()>;
    /// `values = buffer[offset..]`, after everything before it has run.
    ///
    /// # Errors
    /// Of the device.
    fn download(&mut self, values: &mut [Self::Element], buffer: &Self::Acc, offset: usize) -> Result<()>;
    /// Begins to download `buffer[..len]` as it is after everything before it has run; does not wait for that.
    ///
    /// # Errors
    /// Of the device.
    fn download_async(&mut self, buffer: &Self::Acc, len: usize) -> Result<Self::PendingReadback>;
    /// Ends a download of this device: waits for it, and not for what was asked of the device since.
    ///
    /// # Errors
    /// Of the device, or if the download is another device's.
    fn wait_readback(&mut self, pending: Self::PendingReadback) -> Result<Vec<Self::Element>>;
    /// The whole of a buffer where the host can read it in place, without a copy.
    fn borrow_acc<'a>(&self, buffer: &'a Self::Acc) -> Option<HostSlice<'a>>;
    /// The whole of a buffer where the host can read it in place, without a copy.
    fn borrow_compute<'a>(&self, buffer: &'a Self::Compute) -> Option<HostSlice<'a>>;
    /// Waits for everything.
    ///
    /// # Errors
    /// The first of the device since the last call, with the operation's name.
    fn sync(&mut self) -> Result<()>;
}

/// Rows of a tensor on their way to the host.
pub trait Capture: Buffers {
    /// `x [N, width]` at `rows`, as `f32` on the host, to be read after the next [`Transfer::sync`].
    fn capture(&mut self, x: Tensor<'_, Self>, rows: &[usize], width: usize) -> Captured;
}

/// What a plan must know of a device before anything runs.
pub trait Planning {
    /// Whether the device works while the host goes on, so that it is worth while to give it the next work before the
    /// results of the last are read.
    const RUNS_AHEAD: bool;
    /// Whether a pass of the sizes of an earlier one costs less than others, so that passes are worth filling up to few sizes.
    const REPEATS: bool;
    /// Whether weights in the compute dtype stay in the file's mapping.
    const MAPS_WEIGHTS: bool;
    /// Whether a row's bits are the same in passes of any number of rows. Where a library of the vendor multiplies, it chooses an
    /// algorithm by that number.
    const ROW_INVARIANT: bool;

    /// Bytes of one element of the accumulation dtype and of the compute dtype.
    fn element_sizes(&self) -> (usize, usize);
    /// What the device takes of itself for such passes, beside the buffers that it is asked for.
    fn own_memory(&self, pass: &PassSize) -> OwnMemory;
}

/// Makes the sum of traits that is a device, and lets whatever has all of them be one.
macro_rules! backend {
    ($($part:path),*) => {
        /// A device: its memory and all operations.
        pub trait Backend: $($part +)* {}

        impl<B: $($part +)*> Backend for B {}
    };
}
backend! {
    Transfer,
    Capture,
    Planning,
    ops::RowOps,
    ops::EditOps,
    ops::EmbedOps,
    ops::PositionOps,
    ops::LayerNormOps,
    ops::RmsNormOps,
    ops::RopeOps,
    ops::AttentionOps,
    ops::LinearOps,
    ops::LoraOps,
    ops::ScaleOps,
    ops::ActivationOps,
    ops::CrossEntropyOps,
    ops::DistillationOps,
    ops::AdamwOps
}
