//! Linear maps: `out = x weight^T + bias`, and the gradients of input, weight and bias.

use super::check::{need, same};
use super::{Launch, Op, Projected, Work, operations};
use crate::backend::blocks::FEW_ROWS;
use crate::backend::{Buffers, Len};

/// Rows, input width and output width of a matrix product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearDims {
    /// Number of rows, N.
    pub rows: usize,
    /// Elements of an input row.
    pub input: usize,
    /// Elements of an output row.
    pub output: usize,
}

impl LinearDims {
    /// Multiply-adds of one product.
    pub(super) fn multiply_adds(self) -> u64 {
        (self.rows * self.input * self.output) as u64
    }
}

/// Asserts the lengths of `out [N, output]`, `x [N, input]` and `weight [output, input]`.
#[track_caller]
pub(super) fn check_product(op: &'static str, [out, x, weight]: [usize; 3], dims: LinearDims) {
    need(op, "out", out, dims.rows * dims.output);
    need(op, "x", x, dims.rows * dims.input);
    same(op, "the weight's length", weight, dims.output * dims.input);
}

/// How a GPU launches a product with a weight, of this work: a quantised one is decoded before it, or as it goes for few rows.
pub(super) fn product_launches(weight: &impl Len, work: Work, few: bool) -> Vec<Launch> {
    let decoded = Work::moved(0, weight.len(), 0);
    match decoding(weight) {
        None => vec![Launch::product(work)],
        Some(_) if few => vec![Launch::kernel(work)],
        Some(decoding) => {
            vec![decoding, Launch::product(work.without(Work::default().reading(weight)).and(decoded))]
        }
    }
}

/// How a GPU launches a kernel that reads the elements of a weight: a quantised one is decoded before it.
pub(super) fn kernel_launches(weight: &impl Len, work: Work) -> Vec<Launch> {
    decoding(weight).into_iter().chain([Launch::kernel(work)]).collect()
}

/// How a GPU decodes a weight as a whole, if it is quantised.
pub(super) fn decoding(weight: &impl Len) -> Option<Launch> {
    weight.quantized_bytes().map(|_| Launch::kernel(Work::moved(0, weight.len(), 0).reading(weight)))
}

/// `out [N, output] = x [N, input] weight^T + bias`.
pub struct LinearFwd<'a, B: Buffers + ?Sized> {
    /// `[N, output]`, set.
    pub out: &'a mut B::Compute,
    /// `[N, input]`.
    pub x: &'a B::Compute,
    /// `[output, input]`.
    pub weight: &'a B::Weight,
    /// `[output]`.
    pub bias: Option<&'a B::Weight>,
    /// Rows and widths of the product.
    pub dims: LinearDims,
}

impl<B: Buffers + ?Sized> Op for LinearFwd<'_, B> {
    const NAME: &'static str = "linear_fwd";

    fn check(&self) {
        check_product(Self::NAME, [self.out.len(), self.x.len(), self.weight.len()], self.dims);
        let bias = self.bias.map_or(self.dims.output, |bias| bias.len());
        same(Self::NAME, "the bias's length", bias, self.dims.output);
    }

    fn work(&self) -> Work {
        let LinearDims { rows, input, output } = self.dims;
        let bias = self.bias.map_or(0, |bias| bias.len());
        Work::moved(0, rows * (input + output), bias).reading(self.weight).multiplied(self.multiply_adds())
    }

    fn projected(&self) -> Option<Projected> {
        let LinearDims { rows, input, output } = self.dims;
        Some(Projected::Product { dims: [rows, input, output], bias: self.bias.is_some() })
    }

    fn launches(&self) -> Vec<Launch> {
        product_launches(self.weight, self.work(), self.dims.rows <= FEW_ROWS)
    }

    fn multiply_adds(&self) -> u64 {
        self.dims.multiply_adds()
    }
}

/// `d_x [N, input] = d_out [N, output] weight`, or `+=` if `accumulate`. Where a LoRA's gradient is added to `d_x` next, a device may round
/// the product to the compute dtype before both are added up in the accumulation dtype: the CUDA backend does.
pub struct LinearBwdInput<'a, B: Buffers + ?Sized> {
    /// `[N, input]`, set, or added to if `accumulate`.
    pub d_x: &'a mut B::Acc,
    /// `[N, output]`.
    pub d_out: &'a B::Compute,
    /// `[output, input]`.
    pub weight: &'a B::Weight,
    /// Rows and widths, as in the forward.
    pub dims: LinearDims,
    /// Whether `d_x` is added to.
    pub accumulate: bool,
}

impl<B: Buffers + ?Sized> Op for LinearBwdInput<'_, B> {
    const NAME: &'static str = "linear_bwd_input";

    fn check(&self) {
        need(Self::NAME, "d_x", self.d_x.len(), self.dims.rows * self.dims.input);
        need(Self::NAME, "d_out", self.d_out.len(), self.dims.rows * self.dims.output);
        same(Self::NAME, "the weight's length", self.weight.len(), self.dims.output * self.dims.input);
    }

    fn work(&self) -> Work {
        let LinearDims { rows, input, output } = self.dims;
        let d_x = rows * input * if self.accumulate { 2 } else { 1 };
        Work::moved(d_x, rows * output, 0).reading(self.weight).multiplied(self.multiply_adds())
    }

    fn projected(&self) -> Option<Projected> {
        let LinearDims { rows, input, output } = self.dims;
        Some(Projected::InputGradient { dims: [rows, input, output], adds: self.accumulate })
    }

    fn launches(&self) -> Vec<Launch> {
        product_launches(self.weight, self.work(), false)
    }

    fn multiply_adds(&self) -> u64 {
        self.dims.multiply_adds()
    }
}

/// `d_weight [output, input] (from element `offset` on) += d_out^T x`.
pub struct LinearBwdWeight<'a, B: Buffers + ?Sized> {
    /// `[output, input]` from element `offset` on, added to.
    pub d_weight: &'a mut B::Acc,
    /// Where the weight's gradient begins.
    pub offset: usize,
    /// `[N, output]`.
    pub d_out: &'a B::Compute,
    /// `[N, input]`.
    pub x: &'a B::Compute,
    /// Rows and widths, as in the forward.
    pub dims: LinearDims,
}

impl<B: Buffers + ?Sized> Op for LinearBwdWeight<'_, B> {
    const NAME: &'static str = "linear_bwd_weight";

    fn check(&self) {
        need(Self::NAME, "d_weight", self.d_weight.len(), self.offset + self.dims.output * self.dims.input);
        need(Self::NAME, "d_out", self.d_out.len(), self.dims.rows * self.dims.output);
        need(Self::NAME, "x", self.x.len(), self.dims.rows * self.dims.input);
    }

    fn work(&self) -> Work {
        let LinearDims { rows, input, output } = self.dims;
        Work::moved(2 * output * input, rows * (input + output), 0).multiplied(self.multiply_adds())
    }

    fn launches(&self) -> Vec<Launch> {
        vec![Launch::product(self.work())]
    }

    fn multiply_adds(&self) -> u64 {
        self.dims.multiply_adds()
    }
}

/// `d_bias [output] (from element `offset` on) +=` the sum over rows of `d_out`, in row order.
pub struct LinearBwdBias<'a, B: Buffers + ?Sized> {
    /// `[output]` from element `offset` on, added to.
    pub d_bias: &'a mut B::Acc,
    /// Where the bias's gradient begins.
    pub offset: usize,
    /// `[N, output]`.
    pub d_out: &'a B::Compute,
    /// Rows of the pack, N.
    pub rows: usize,
    /// Elements of an output row.
    pub output: usize,
}

impl<B: Buffers + ?Sized> Op for LinearBwdBias<'_, B> {
    const NAME: &'static str = "linear_bwd_bias";

    fn check(&self) {
        need(Self::NAME, "d_bias", self.d_bias.len(), self.offset + self.output);
        need(Self::NAME, "d_out", self.d_out.len(), self.rows * self.output);
    }

    fn work(&self) -> Work {
        Work::moved(2 * self.output, self.rows * self.output, 0)
    }
}

operations! {
    /// Linear maps, forward and backward.
    LinearOps {
        linear_fwd(LinearFwd);
        linear_bwd_input(LinearBwdInput);
        linear_bwd_weight(LinearBwdWeight);
        linear_bwd_bias(LinearBwdBias);
    }
}
