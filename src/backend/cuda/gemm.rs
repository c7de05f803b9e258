//! Dense products, as cuBLASLt sees them.

use super::driver::Device;
use super::memory::DevicePtr;

/// A row-major product `d [n, m] = a op b`, as cuBLASLt sees it: column-major `d [m, n]`, inner length `k`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GemmShape {
    /// Columns of the row-major result.
    pub m: usize,
    /// Rows of the row-major result.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// Whether the first operand, `[k, m]` row-major, is stored as `[m, k]`.
    pub transpose_a: bool,
    /// Whether the second operand, `[n, k]` row-major, is stored as `[k, n]`.
    pub transpose_b: bool,
    /// Whether the result is of the accumulation dtype, not of the compute dtype.
    pub acc_out: bool,
    /// Whether `bias [m]` is added.
    pub bias: bool,
    /// Whether the product is added to the result's old value.
    pub accumulate: bool,
    /// Number of products of these sizes.
    pub count: usize,
    /// Elements from one product's first operand, second operand and result to the next one's.
    pub strides: [usize; 3],
    /// What the addresses of the operands and the result are multiples of, in bytes.
    pub alignment: u32,
}

/// Addresses of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Operands {
    /// First operand (the weights, as a rule).
    pub a: DevicePtr,
    /// Second operand (the activations, as a rule).
    pub b: DevicePtr,
    /// Result, of the accumulation or the compute dtype.
    pub d: DevicePtr,
    /// `[m]` of the compute dtype, where [`GemmShape::bias`] says so.
    pub bias: Option<DevicePtr>,
}

/// A product of operands at addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gemm {
    /// Sizes and layouts, by which cuBLASLt's plan is found.
    pub shape: GemmShape,
    /// Addresses, which change from call to call.
    pub operands: Operands,
}

impl Gemm {
    /// A product whose shape takes its alignment from the addresses.
    pub fn new(mut shape: GemmShape, operands: Operands) -> Self {
        let Operands { a, b, d, bias } = operands;
        // A stride of so many elements is a multiple of as many bytes at least.
        let strides = shape.strides.iter().fold(0, |all, &stride| all | stride as u64);
        let all = a.address() | b.address() | d.address() | bias.map_or(0, DevicePtr::address) | strides;
        shape.alignment = 1 << (all | 256).trailing_zeros();
        Self { shape, operands }
    }

    /// This and the next product as one, if they are of the same sizes and lie at the same distances as those that are one
    /// already; `size` is that of an element of the compute dtype in bytes. Results that may overlap stay apart.
    pub fn joined(&self, next: &Self, size: usize) -> Option<Self> {
        let alike = |shape: GemmShape| GemmShape { count: 1, strides: [0; 3], alignment: 1, ..shape };
        let (shape, of) = (alike(self.shape), |gemm: &Self| [gemm.operands.a, gemm.operands.b, gemm.operands.d]);
        if shape.bias || shape.accumulate || shape != alike(next.shape) || next.shape.count > 1 {
            return None;
        }
        let sizes = [size, size, if shape.acc_out { size_of::<f32>() } else { size }];
        let (first, last, count) = (of(self), of(next), self.shape.count);
        let stride = |i: usize| {
            let bytes = first[i].to(last[i])?;
            bytes.is_multiple_of(count * sizes[i]).then(|| bytes / (count * sizes[i]))
        };
        let strides = [stride(0)?, stride(1)?, stride(2)?];
        let known = count == 1 || strides == self.shape.strides;
        let shape = GemmShape { count: count + 1, strides, ..shape };
        (known && strides[2] >= shape.m * shape.n).then(|| Self::new(shape, self.operands))
    }

    /// Asserts that all operands are in the memory of `device`.
    #[track_caller]
    pub fn assert_on(&self, op: &'static str, device: &Device) {
        let Operands { a, b, d, bias } = self.operands;
        [Some(a), Some(b), Some(d), bias].into_iter().flatten().for_each(|ptr| {
            ptr.on(op, device);
        });
    }
}
