//! Quantised weights of random codes, their values, and their bytes as kernels read them.

use half::f16;
use llamaprobe::arch::Dtype;
use llamaprobe::backend::Backend;
use llamaprobe::formats::quantized::{Floats, QuantizedView, RowOrderView, ScalesView};
use llamaprobe::quantization::{BlockFormat, INT8_STEP};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::simt::tape::{Arg, Tape};

/// A matrix `[rows, columns]`, the same for the same format and shape; its rows are the stored ones from the last to the first.
pub fn view(format: BlockFormat, [rows, columns]: [usize; 2]) -> QuantizedView {
    let mut rng = ChaCha8Rng::seed_from_u64((rows * 1000 + columns) as u64);
    let codes: Vec<u8> = (0..format.code_bytes(rows, columns).expect("whole blocks")).map(|_| rng.random()).collect();
    let inline: Vec<f16> = (0..codes.len()).map(|_| f16::from_f32(rng.random_range(1e-3..3e-3))).collect();
    let scales: Vec<f32> = (0..format.scale_count(rows, columns)).map(|_| rng.random_range(0.3..0.8)).collect();
    let scales = if scales.is_empty() { ScalesView::Inline } else { ScalesView::Absmax(scales.into()) };
    let order = RowOrderView::Listed((0..rows as u32).rev().collect());
    let (name, shape, stored_rows) = ("weight".to_owned(), [rows, columns], rows);
    let codes = codes.into();
    with_scales(QuantizedView { name, format, shape, stored_rows, codes, scales, order, rounding: None }, |i| inline[i])
}

/// The same with other scales among the codes, by number.
fn with_scales(view: QuantizedView, scale: impl Fn(usize) -> f16) -> QuantizedView {
    let (mut codes, places) = (view.codes.to_vec(), view.format.halves());
    for (i, block) in codes.chunks_exact_mut(view.format.block_bytes()).enumerate() {
        for (j, &at) in places.iter().enumerate() {
            block[at..at + 2].copy_from_slice(&scale(places.len() * i + j).to_le_bytes());
        }
    }
    QuantizedView { codes: codes.into(), ..view }
}

/// The values `[rows, columns]` of [`view`].
pub fn values(format: BlockFormat, shape: [usize; 2]) -> Vec<f64> {
    view(format, shape).to_f32().into_iter().map(f64::from).collect()
}

/// The same on a device.
pub fn weight<B: Backend>(b: &mut B, format: BlockFormat, shape: [usize; 2]) -> B::Weight {
    b.quantized_weight(&view(format, shape)).unwrap()
}

/// Matrices of a format and shape, of rows in another order than they are stored in and of some in a row, with every kind of scales that
/// the format has, whose values are rounded or not.
pub fn variants(format: BlockFormat, [rows, columns]: [usize; 2]) -> Vec<QuantizedView> {
    let stored = view(format, [rows + 3, columns]);
    let in_order = QuantizedView { order: RowOrderView::From(0), ..stored.clone() };
    let mut all = vec![stored, in_order.clone()];
    let rounded = |dtype| QuantizedView { rounding: Some(dtype), ..in_order.clone() };
    all.extend([Dtype::BF16, Dtype::F16].map(rounded));
    let count = format.scale_count(rows + 3, columns);
    let mut rng = ChaCha8Rng::seed_from_u64(columns as u64);
    let mut floats = |n: usize| Floats::from((0..n).map(|_| rng.random_range(-0.5..0.5f32)).collect::<Vec<_>>());
    match format {
        BlockFormat::Int8Rows => all.push(QuantizedView { scales: ScalesView::Factor(floats(count)), ..in_order }),
        BlockFormat::Nf4 { .. } => {
            let (block, absmax) = (4, floats(count.div_ceil(4)));
            let map: [f32; 256] = std::array::from_fn(|i| i as f32 / 300.0 - 0.2);
            let codes = (0..count).map(|i| (i * 37) as u8).collect::<Vec<_>>().into();
            let scales = ScalesView::Nested { codes, map: map.into(), absmax, offset: 0.125, block };
            let listed = RowOrderView::Listed((0..rows as u32 + 3).rev().collect());
            all.push(QuantizedView { scales, order: listed, ..in_order });
        }
        // Scales of every size: zeros, the smallest, negative and the largest.
        _ => {
            let bits = [0x0001, 0x83ff, 0x0000, 0x7bff, 0x0400, 0xc2f5];
            all.push(with_scales(in_order, |i| f16::from_bits(bits[i % bits.len()])));
        }
    }
    all.into_iter().map(|view| view.rows(2, rows)).collect()
}

/// The codes and the scales of a matrix as kernels read them (`src/backend/blocks.rs`), made element by element; the elements that
/// share a scale of NF4, as a power of two.
pub fn device_bytes(view: &QuantizedView) -> (Vec<u8>, Vec<u8>, u32) {
    let (matrix, [rows, columns]) = (view.matrix(), view.shape);
    let (mut codes, mut scales, mut shift) = (Vec::new(), Vec::new(), 0);
    let block = view.format.block_bytes();
    let moved = view.format.halves().iter().filter(|_| !block.is_multiple_of(16));
    let moved: Vec<usize> = moved.flat_map(|&at| [at, at + 1]).collect();
    if let BlockFormat::Nf4 { block } = view.format {
        shift = (0..).take_while(|i| block % (2 << i) == 0 && columns % (2 << i) == 0).count() as u32;
    }
    for row in 0..rows {
        match view.format {
            BlockFormat::Int8Rows => {
                codes.extend(matrix.row_codes(row));
                scales.extend(matrix.absmax(matrix.stored_row(row)).to_le_bytes());
            }
            BlockFormat::Nf4 { block } => {
                let at = |column: usize| matrix.stored_row(row) * columns + column;
                let code = |i: usize| matrix.codes.get(i / 2).map_or(0, |byte| byte >> (4 * (1 - i % 2)) & 15);
                codes.extend((0..columns).step_by(2).map(|c| code(at(c)) << 4 | code(at(c + 1))));
                let of = |c: usize| matrix.absmax(at(c) / block as usize).to_le_bytes();
                scales.extend((0..columns).step_by(1 << shift).flat_map(of));
            }
            _ => {
                for block in matrix.row_codes(row).chunks_exact(block) {
                    let apart = |i: &usize| moved.contains(i);
                    codes.extend((0..block.len()).filter(|i| !apart(i)).map(|i| block[i]));
                    scales.extend((0..block.len()).filter(apart).map(|i| block[i]));
                }
            }
        }
    }
    (codes, scales, shift)
}

/// What kernels are told of a matrix.
pub fn args(tape: &mut Tape, view: &QuantizedView) -> [Arg; 7] {
    let (codes, scales, shift) = device_bytes(view);
    let [codes, scales] = [codes, scales].map(|bytes| Arg::At(tape.raw(bytes)));
    use BlockFormat::{Int8Rows, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
    let nf4 = |format| if matches!(format, BlockFormat::Nf4 { .. }) { BlockFormat::NF4 } else { format };
    let numbers = [Int8Rows, BlockFormat::NF4, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2K, Q3K, Q4K, Q5K, Q6K];
    let number = numbers.iter().position(|format| *format == nf4(view.format)).unwrap();
    let step = match (view.format, &view.scales) {
        (BlockFormat::Int8Rows, ScalesView::Absmax(_)) => INT8_STEP,
        _ => 1.0,
    };
    let rounding = match view.rounding {
        Some(Dtype::BF16) => 1,
        Some(Dtype::F16) => 2,
        _ => 0,
    };
    let [columns, number, shift, rounding] = [view.shape[1], number, shift as usize, rounding].map(Arg::Int);
    [codes, scales, columns, number, shift, Arg::Float(step.into()), rounding]
}
