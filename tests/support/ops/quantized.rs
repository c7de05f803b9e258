//! Quantised weights of random codes, and their values.

use half::f16;
use llamaprobe::backend::Backend;
use llamaprobe::formats::quantized::{QuantizedView, RowOrderView, ScalesView};
use llamaprobe::quantization::BlockFormat;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A matrix `[rows, columns]`, the same for the same format and shape; its rows are the stored ones from the last to the first.
pub fn view(format: BlockFormat, [rows, columns]: [usize; 2]) -> QuantizedView {
    let mut rng = ChaCha8Rng::seed_from_u64((rows * 1000 + columns) as u64);
    let mut codes: Vec<u8> =
        (0..format.code_bytes(rows, columns).expect("whole blocks")).map(|_| rng.random()).collect();
    for block in codes.chunks_exact_mut(format.block_bytes()) {
        for &at in format.halves() {
            block[at..at + 2].copy_from_slice(&f16::from_f32(rng.random_range(1e-3..3e-3)).to_le_bytes());
        }
    }
    let scales: Vec<f32> = (0..format.scale_count(rows, columns)).map(|_| rng.random_range(0.3..0.8)).collect();
    let scales = if scales.is_empty() { ScalesView::Inline } else { ScalesView::Absmax(scales.into()) };
    let order = RowOrderView::Listed((0..rows as u32).rev().collect());
    let (name, shape, stored_rows) = ("weight".to_owned(), [rows, columns], rows);
    QuantizedView { name, format, shape, stored_rows, codes: codes.into(), scales, order, rounding: None }
}

/// The values `[rows, columns]` of [`view`].
pub fn values(format: BlockFormat, shape: [usize; 2]) -> Vec<f64> {
    view(format, shape).to_f32().into_iter().map(f64::from).collect()
}

/// The same on a device.
pub fn weight<B: Backend>(b: &mut B, format: BlockFormat, shape: [usize; 2]) -> B::Weight {
    b.quantized_weight(&view(format, shape)).unwrap()
}

/// Whether a device decodes quantised weights; where not, it says so by name.
pub fn decodes<B: Backend>(b: &mut B) -> bool {
    match b.quantized_weight(&view(BlockFormat::Int8Rows, [1, 1])) {
        Ok(_) => true,
        Err(error) => {
            assert!(error.to_string().contains("quantised weights on CUDA"), "{error}");
            false
        }
    }
}
