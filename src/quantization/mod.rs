//! Matrices of quantised weights: what the bytes of each block format mean, and their values, bit for bit those of the
//! library that defines the format.
//!
//! Below the readers of files and the devices, which both speak of nothing else: a file's reader finds the parts and
//! checks them once ([`QuantizedMatrix::check`]), a device decodes rows, or parts of rows, on the way into its product
//! ([`QuantizedMatrix::dequantize_row`], or loops of its own that give the same bits). A matrix is `[output, input]`,
//! row-major. Every value is made in f32 by the multiplications that [`BlockFormat`] names, in that order.
//!
#![doc = include_str!("measures.md")]

mod blocks;
mod encode;
mod format;
mod matrix;
mod nf4;

pub use blocks::{five_bits, q3_k_scales, q4_0, q4_k, q5_k, q6_k, q8_0};
pub use encode::{encode_int8, encode_nf4, encode_q8_0};
pub use format::BlockFormat;
pub use matrix::{INT8_STEP, Mismatch, QuantizedMatrix, RowOrder, Scales};
pub use nf4::NF4_VALUES;
