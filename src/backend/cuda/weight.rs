//! Weights: elements of the compute dtype, or a quantised matrix, whose values exist for one product, or one operation, at a time.

use super::context::Context;
use super::context::scratch::Room;
use super::gemm::Gemm;
use super::geometry::elements;
use super::launch::{Arg, Kernel, LaunchDims, Param, acc_ptr, compute_ptr, float, int, table};
use super::memory::{Block, ComputeBuffer, DevicePtr};
use crate::arch::Dtype;
use crate::backend::Len;
use crate::backend::blocks::{BlockLayout, FEW_ROWS, decoded_bytes};
use crate::quantization::{BlockFormat, INT8_STEP, QuantizedMatrix, Scales};

/// The kernels of quantised matrices.
pub const FILE: &str = "quantized";

/// Rows of a matrix that a block of a product of few rows takes.
const OUTPUTS: usize = 16;

/// A weight of the checkpoint, or one that is trained.
pub enum Weight {
    /// Its elements.
    Dense(ComputeBuffer),
    /// A matrix `[rows, columns]` of codes and scales.
    Quantized(QuantizedBuffer),
}

/// A quantised matrix.
pub struct QuantizedBuffer {
    block: Block,
    layout: BlockLayout,
    step: f32,
    rounding: Option<Dtype>,
}

impl QuantizedBuffer {
    /// Of a matrix in a block that has room for it, to be filled as its layout says. Values are rounded to `compute` in the end.
    pub(super) fn new(block: Block, matrix: &QuantizedMatrix<'_>, compute: Dtype) -> Self {
        let step = match (matrix.format, matrix.scales) {
            (BlockFormat::Int8Rows, Scales::Absmax(_)) => INT8_STEP,
            _ => 1.0,
        };
        let rounding = matrix.rounding.filter(|&dtype| dtype != compute);
        Self { block, layout: BlockLayout::new(matrix), step, rounding }
    }
}

/// A quantised matrix where it lies.
#[derive(Clone, Copy)]
pub struct Blocks {
    codes: DevicePtr,
    scales: DevicePtr,
    layout: BlockLayout,
    step: f32,
    rounding: Option<Dtype>,
}

impl Blocks {
    /// What every kernel is told of it.
    pub fn args(self) -> [Arg; 7] {
        let rounding = match self.rounding {
            Some(Dtype::BF16) => 1,
            Some(Dtype::F16) => 2,
            _ => 0,
        };
        let [format, shift] = [self.layout.number(), self.layout.shift() as usize].map(int);
        let (columns, step) = (int(self.layout.columns), float(f64::from(self.step)));
        [table(self.codes), table(self.scales), columns, format, shift, step, int(rounding)]
    }

    /// Bytes of its values in elements of so many bytes, up to where the next ones may begin.
    pub fn decoded_bytes(self, element: usize) -> usize {
        decoded_bytes([self.layout.rows, self.layout.columns], element)
    }

    /// Puts on the list that its values `[rows, columns]` are written to `to`.
    #[track_caller]
    pub fn decode(self, cx: &mut Context, op: &'static str, to: DevicePtr) {
        let BlockLayout { rows, columns, .. } = self.layout;
        let args = [&[compute_ptr(to)], &self.args()[..], &[int(rows)]].concat();
        let dims = LaunchDims::new(elements(rows * columns.next_multiple_of(8)));
        cx.launch(op, Kernel::new(FILE, "dequantize"), dims, &args);
    }

    /// Puts on the list the product of a forward whose first operand it is, of at most [`FEW_ROWS`]
    /// rows: decoded there.
    #[track_caller]
    pub fn multiply(self, cx: &mut Context, op: &'static str, Gemm { shape, operands }: &Gemm) {
        let (rows, output) = (int(shape.n), int(shape.m));
        let bias = operands.bias.map_or_else(|| Arg::null(Param::Compute), compute_ptr);
        let (kernel, out) = match shape.acc_out {
            true => ("quantized_logits_fwd", vec![acc_ptr(operands.d), compute_ptr(operands.b)]),
            false => ("quantized_linear_fwd", vec![compute_ptr(operands.d), compute_ptr(operands.b), bias]),
        };
        let args = [&out, &self.args()[..], &[rows, output]].concat();
        cx.launch(op, Kernel::new(FILE, kernel), LaunchDims::rows(shape.m.div_ceil(OUTPUTS)), &args);
    }
}

/// A weight as the operand of a product.
#[derive(Clone, Copy)]
pub enum Operand {
    /// Elements.
    Dense(DevicePtr),
    /// Codes, which the product decodes itself.
    Codes(Blocks),
    /// What must be decoded just before the product, and where.
    Quantized(Blocks, Room),
}

impl Operand {
    /// Where its elements, or codes, are when the product reads them, if nothing else is decoded for the same product.
    pub fn ptr(self) -> DevicePtr {
        match self {
            Self::Dense(ptr) => ptr,
            Self::Codes(blocks) => blocks.codes,
            Self::Quantized(_, room) => room.at,
        }
    }
}

impl Weight {
    /// Its elements.
    ///
    /// # Panics
    /// If it is quantised: vectors, and weights that are trained, never are.
    #[track_caller]
    pub(super) fn dense(&self) -> &ComputeBuffer {
        match self {
            Self::Dense(buffer) => buffer,
            Self::Quantized(_) => panic!("cuda: a quantised matrix where a vector or a weight that is trained must be"),
        }
    }

    /// Its codes, if it is quantised.
    pub(super) fn blocks(&self) -> Option<Blocks> {
        let Self::Quantized(QuantizedBuffer { block, layout, step, rounding }) = self else { return None };
        let (codes, scales) = (block.ptr(), block.ptr().add(layout.scales_at()));
        Some(Blocks { codes, scales, layout: *layout, step: *step, rounding: *rounding })
    }

    /// As the operand of a product. None after an error.
    pub(super) fn operand(&self, cx: &mut Context) -> Option<Operand> {
        let Some(blocks) = self.blocks() else { return Some(Operand::Dense(self.dense().ptr(0))) };
        let room = cx.decoded(blocks.decoded_bytes(cx.dtype.size()))?;
        Some(Operand::Quantized(blocks, room))
    }

    /// As the operand of the product of a forward of so many rows. None after an error.
    pub(super) fn forward_operand(&self, cx: &mut Context, rows: usize) -> Option<Operand> {
        match self.blocks() {
            Some(blocks) if rows <= FEW_ROWS => Some(Operand::Codes(blocks)),
            _ => self.operand(cx),
        }
    }

    /// Its elements, for what is put on the list next: decoded there if it is quantised. None after an error.
    #[track_caller]
    pub(super) fn elements(&self, cx: &mut Context, op: &'static str) -> Option<DevicePtr> {
        let operand = self.operand(cx)?;
        if let Operand::Quantized(blocks, room) = operand {
            blocks.decode(cx, op, room.at);
        }
        Some(operand.ptr())
    }
}

impl Len for Weight {
    fn len(&self) -> usize {
        match self {
            Self::Dense(buffer) => buffer.len(),
            Self::Quantized(QuantizedBuffer { layout, .. }) => layout.rows * layout.columns,
        }
    }

    fn quantized_bytes(&self) -> Option<usize> {
        match self {
            Self::Dense(_) => None,
            Self::Quantized(QuantizedBuffer { layout, .. }) => Some(layout.bytes()),
        }
    }
}
