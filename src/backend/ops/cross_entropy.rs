//! The head: logits, and the loss `lse - logit of the target` with its gradients, whose logits exist only a chunk at a time.

use super::check::{self, below, need, same};
use super::linear::{check_product, decoding, product_launches};
use super::{Launch, LinearDims, Op, Work, operations};
use crate::backend::blocks::FEW_ROWS;
use crate::backend::{Buffers, DeviceIndex, Len};

/// Logits that exist at a time on a GPU, at most (if one row has no more).
const LOGITS: usize = 16 << 20;

/// The chunks of label rows whose logits exist at a time on a GPU: first row, and the dimensions of the chunk.
pub fn chunks(dims: LinearDims) -> impl Iterator<Item = (usize, LinearDims)> {
    let step = (LOGITS / dims.output.max(1)).clamp(1, dims.rows.max(1));
    (0..dims.rows).step_by(step).map(move |from| (from, LinearDims { rows: step.min(dims.rows - from), ..dims }))
}

/// The product that makes logits, their bias and their cap.
fn logits(dims: LinearDims, biased: bool, softcap: Option<f64>) -> impl Iterator<Item = Launch> {
    let LinearDims { rows, input, output } = dims;
    let product = Work::moved(rows * output, rows * input, output * input).multiplied(dims.multiply_adds());
    let bias = biased.then(|| Launch::kernel(Work::moved(2 * rows * output, 0, output)));
    let cap = softcap.map(|_| Launch::kernel(Work::moved(2 * rows * output, 0, 0)));
    std::iter::once(Launch::product(product)).chain(bias).chain(cap)
}

#[track_caller]
fn check_head<B: Buffers + ?Sized>(op: &'static str, bias: Option<&B::Weight>, dims: LinearDims, softcap: Option<f64>) {
    same(op, "the bias's length", bias.map_or(dims.output, Len::len), dims.output);
    check::softcap(op, softcap);
}

/// `logits [M, V] = x [M, C] head^T + bias`, in the accumulation dtype.
pub struct LogitsFwd<'a, B: Buffers + ?Sized> {
    /// `[M, V]`, set.
    pub logits: &'a mut B::Acc,
    /// `[M, C]`.
    pub x: &'a B::Compute,
    /// `[V, C]`.
    pub head: &'a B::Weight,
    /// `[V]`, of a head that has one (Phi 1 and 2, GPT-J).
    pub bias: Option<&'a B::Weight>,
    /// Label rows M, width C and vocabulary V.
    pub dims: LinearDims,
    /// Soft cap of the logits (Gemma 2): `cap * tanh(logit / cap)` stands for each.
    pub softcap: Option<f64>,
}

impl<B: Buffers + ?Sized> Op for LogitsFwd<'_, B> {
    const NAME: &'static str = "logits_fwd";

    fn check(&self) {
        check_product(Self::NAME, [self.logits.len(), self.x.len(), self.head.len()], self.dims);
        check_head::<B>(Self::NAME, self.bias, self.dims, self.softcap);
    }

    fn work(&self) -> Work {
        let LinearDims { rows, input, output } = self.dims;
        let bias = self.bias.map_or(0, Len::len);
        Work::moved(rows * output, rows * input, bias).reading(self.head).multiplied(self.multiply_adds())
    }

    fn launches(&self) -> Vec<Launch> {
        let product = product_launches(self.head, self.work(), self.dims.rows <= FEW_ROWS);
        product.into_iter().chain(logits(self.dims, self.bias.is_some(), self.softcap).skip(1)).collect()
    }

    fn multiply_adds(&self) -> u64 {
        self.dims.multiply_adds()
    }
}

#[track_caller]
fn check_labels<B: Buffers + ?Sized>(
    op: &'static str,
    [loss, x, head]: [usize; 3],
    targets: &B::Index,
    dims: LinearDims,
) {
    need(op, "loss", loss, dims.rows);
    need(op, "x", x, dims.rows * dims.input);
    same(op, "the head's length", head, dims.output * dims.input);
    need(op, "targets", targets.len(), dims.rows);
    below(op, "a target", targets.bound().saturating_sub(1), dims.output.max(1));
}

/// `loss [M] = lse - logit of the target`.
pub struct CrossEntropyFwd<'a, B: Buffers + ?Sized> {
    /// `[M]`, set.
    pub loss: &'a mut B::Acc,
    /// `[M, C]`.
    pub x: &'a B::Compute,
    /// `[V, C]`.
    pub head: &'a B::Weight,
    /// `[V]`, of a head that has one (Phi 1 and 2, GPT-J).
    pub bias: Option<&'a B::Weight>,
    /// `[M]`, each below V.
    pub targets: &'a B::Index,
    /// Label rows M, width C and vocabulary V.
    pub dims: LinearDims,
    /// Soft cap of the logits (Gemma 2): `cap * tanh(logit / cap)` stands for each.
    pub softcap: Option<f64>,
}

impl<B: Buffers + ?Sized> Op for CrossEntropyFwd<'_, B> {
    const NAME: &'static str = "cross_entropy_fwd";

    fn check(&self) {
        check_labels::<B>(Self::NAME, [self.loss.len(), self.x.len(), self.head.len()], self.targets, self.dims);
        check_head::<B>(Self::NAME, self.bias, self.dims, self.softcap);
    }

    fn work(&self) -> Work {
        let LinearDims { rows, input, .. } = self.dims;
        let bias = self.bias.map_or(0, Len::len);
        Work::moved(rows, rows * input, bias).reading(self.head).multiplied(self.multiply_adds())
    }

    /// The head's decoding, then of each chunk its logits and their losses.
    fn launches(&self) -> Vec<Launch> {
        let of_chunk = |(_, chunk): (usize, LinearDims)| {
            let losses = Launch::kernel(Work::moved(chunk.rows * (chunk.output + 1), 0, 0));
            logits(chunk, self.bias.is_some(), self.softcap).chain([losses])
        };
        decoding(self.head).into_iter().chain(chunks(self.dims).flat_map(of_chunk)).collect()
    }

    fn multiply_adds(&self) -> u64 {
        self.dims.multiply_adds()
    }
}

/// Where the gradients of the head are added.
pub struct HeadGradient<'a, B: Buffers + ?Sized> {
    /// Flat gradients.
    pub d: &'a mut B::Acc,
    /// Where the head's `[V, C]` begins.
    pub weight: usize,
    /// Where its bias's `[V]` begins, if that is asked for.
    pub bias: Option<usize>,
}

/// The same `loss [M] =`, and in the same sweep `d_x [M, C] = row_weight * (softmax - onehot) head` and, if asked,
/// `d_head [V, C] +=` and `d_bias [V] +=`, the sum of `row_weight * (softmax - onehot)` over the rows.
pub struct CrossEntropyBwd<'a, B: Buffers + ?Sized> {
    /// `[M]`, set.
    pub loss: &'a mut B::Acc,
    /// `[M, C]`, set.
    pub d_x: &'a mut B::Acc,
    /// The head's own, added to.
    pub d_head: Option<HeadGradient<'a, B>>,
    /// `[M, C]`.
    pub x: &'a B::Compute,
    /// `[V, C]`.
    pub head: &'a B::Weight,
    /// `[V]`, of a head that has one (Phi 1 and 2, GPT-J).
    pub bias: Option<&'a B::Weight>,
    /// `[M]`, each below V.
    pub targets: &'a B::Index,
    /// `[M]`: the derivative of the total with respect to each row's loss.
    pub row_weights: &'a B::Acc,
    /// Label rows M, width C and vocabulary V.
    pub dims: LinearDims,
    /// Soft cap of the logits (Gemma 2): `cap * tanh(logit / cap)` stands for each.
    pub softcap: Option<f64>,
}

impl<B: Buffers + ?Sized> Op for CrossEntropyBwd<'_, B> {
    const NAME: &'static str = "cross_entropy_bwd";

    fn check(&self) {
        let (op, dims) = (Self::NAME, self.dims);
        check_labels::<B>(op, [self.loss.len(), self.x.len(), self.head.len()], self.targets, dims);
        need(op, "d_x", self.d_x.len(), dims.rows * dims.input);
        if let Some(HeadGradient { d, weight, bias }) = &self.d_head {
            need(op, "d_head", d.len(), weight + dims.output * dims.input);
            need(op, "biases", usize::from(self.bias.is_some()), usize::from(bias.is_some()));
            need(op, "d_bias", d.len(), bias.map_or(0, |bias| bias + dims.output));
        }
        need(op, "row_weights", self.row_weights.len(), dims.rows);
        check_head::<B>(op, self.bias, dims, self.softcap);
    }

    fn work(&self) -> Work {
        let LinearDims { rows, input, .. } = self.dims;
        let bias = self.bias.map_or(0, Len::len);
        let d_head = if self.d_head.is_some() { 2 * (self.head.len() + bias) } else { 0 };
        Work::moved(rows * (input + 2) + d_head, rows * input, bias).reading(self.head).multiplied(self.multiply_adds())
    }

    /// The head's decoding, then of each chunk its logits, their losses and gradients, and those of `x`, of the head and of its bias.
    fn launches(&self) -> Vec<Launch> {
        let of_chunk = |(_, chunk): (usize, LinearDims)| {
            let LinearDims { rows, input, output } = chunk;
            let len = rows * output;
            // The losses' kernel reads the logits twice: for their sum, and for each one's share.
            let losses = Launch::kernel(Work::moved(2 * len + 2 * rows, len, 0));
            let product = |work: Work| Launch::product(work.multiplied(chunk.multiply_adds()));
            let d_x = product(Work::moved(rows * input, len, output * input));
            let d_head = product(Work::moved(2 * output * input, len + rows * input, 0));
            let d_bias = Launch::kernel(Work::moved(2 * output, len, 0));
            let d_head = self.d_head.iter().flat_map(move |d| std::iter::once(d_head).chain(d.bias.map(|_| d_bias)));
            logits(chunk, self.bias.is_some(), self.softcap).chain([losses, d_x]).chain(d_head)
        };
        decoding(self.head).into_iter().chain(chunks(self.dims).flat_map(of_chunk)).collect()
    }

    fn multiply_adds(&self) -> u64 {
        self.dims.multiply_adds() * if self.d_head.is_some() { 3 } else { 2 }
    }
}

operations! {
    /// The head, forward and backward.
    CrossEntropyOps {
        logits_fwd(LogitsFwd);
        cross_entropy_fwd(CrossEntropyFwd);
        cross_entropy_bwd(CrossEntropyBwd);
    }
}
