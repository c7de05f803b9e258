//! Products with quantised weights against those with the same values stored as numbers: bit for bit.
#![cfg(test)]

use half::{bf16, f16};

use super::super::dequantize::{Coded, dequantize};
use super::super::interleaved::Interleaved;
use super::super::isa::{InstructionSet, tests::isas};
use super::super::simd::{Element, rounding};
use super::tests::{numbers, run, stored};
use super::*;
use crate::arch::Dtype;
use crate::quantization::{BlockFormat, QuantizedMatrix, RowOrder, Scales};

/// A matrix of some format with random codes.
pub(super) struct Random {
    format: BlockFormat,
    rows: usize,
    columns: usize,
    codes: Vec<u8>,
    floats: Vec<f32>,
    nested: Option<(Vec<u8>, Box<[f32; 256]>)>,
    order: Vec<u32>,
}

/// Codes of one of `absmax` of a nested scale.
const NESTED: u32 = 4;

impl Random {
    pub(super) fn new(format: BlockFormat, [rows, columns]: [usize; 2], seed: u64) -> Self {
        let random = |count: usize, seed: u64| numbers(count, seed).into_iter().map(|x| ((x + 0.5) * 256.0) as u8);
        let mut codes: Vec<u8> = random(format.code_bytes(rows, columns).expect("whole blocks"), seed).collect();
        // Scales of ordinary size.
        for (i, block) in codes.chunks_exact_mut(format.block_bytes()).enumerate() {
            for &at in format.halves() {
                let scale = f16::from_f32((i % 13) as f32 * 1e-3 + 2e-3);
                block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
            }
        }
        let count = format.scale_count(rows, columns);
        let scales = |count: usize| numbers(count, seed + 1).into_iter().map(|x| (x + 0.6) as f32 * 0.1).collect();
        Self {
            format,
            rows,
            columns,
            codes,
            floats: scales(count),
            nested: None,
            order: (0..rows as u32).rev().collect(),
        }
    }

    /// The same with scales that are quantised themselves.
    fn nested(self, seed: u64) -> Self {
        let count = self.floats.len();
        let codes = numbers(count, seed).into_iter().map(|x| ((x + 0.5) * 256.0) as u8).collect();
        let floats = self.floats[..count.div_ceil(NESTED as usize)].to_vec();
        let map = Box::new(std::array::from_fn(|i| (i as f32 - 100.0) * 0.007));
        Self { nested: Some((codes, map)), floats, ..self }
    }

    /// The same with scales that are numbers of half precision.
    fn short(self) -> Self {
        let floats = self.floats.iter().map(|&x| f16::from_f32(x).to_f32()).collect();
        Self { floats, ..self }
    }

    /// The matrix, or the one whose rows are its own from the last to the first.
    pub(super) fn matrix(&self, reversed: bool) -> QuantizedMatrix<'_> {
        let &Self { format, rows, columns, ref codes, ref floats, ref nested, ref order } = self;
        let scales = match (format, nested) {
            (_, Some((codes, map))) => Scales::Nested { codes, map, absmax: floats, offset: 0.03, block: NESTED },
            (BlockFormat::Int8Rows | BlockFormat::Nf4 { .. }, None) => Scales::Absmax(floats),
            _ => Scales::Inline,
        };
        let order = if reversed { RowOrder::Listed(order) } else { RowOrder::From(0) };
        let matrix = QuantizedMatrix { format, rows, columns, stored_rows: rows, codes, scales, order, rounding: None };
        matrix.check().expect("a matrix of its format");
        matrix
    }
}

/// Its values, by plain loops.
pub(super) fn values(matrix: &QuantizedMatrix<'_>) -> Vec<f32> {
    let mut out = vec![0.0; matrix.rows * matrix.columns];
    for (row, out) in out.chunks_exact_mut(matrix.columns).enumerate() {
        matrix.dequantize_row(row, 0..matrix.columns, out);
    }
    out
}

const FORMATS: [BlockFormat; 12] = [
    BlockFormat::Int8Rows,
    BlockFormat::NF4,
    BlockFormat::Q8_0,
    BlockFormat::Q4_0,
    BlockFormat::Q4_1,
    BlockFormat::Q5_0,
    BlockFormat::Q5_1,
    BlockFormat::Q2K,
    BlockFormat::Q3K,
    BlockFormat::Q4K,
    BlockFormat::Q5K,
    BlockFormat::Q6K,
];

/// Formats with a length of rows that is whole blocks, of NF4 also ones whose blocks go over the ends of rows.
fn shapes() -> impl Iterator<Item = (BlockFormat, usize)> {
    let ragged = [(BlockFormat::NF4, 333), (BlockFormat::NF4, 96), (BlockFormat::Nf4 { block: 32 }, 352)];
    FORMATS.into_iter().map(|format| (format, 512)).chain(ragged)
}

#[test]
fn dequantize_gives_the_bits_of_plain_loops_on_every_instruction_set() {
    for (format, columns) in shapes() {
        let random = Random::new(format, [5, columns], 21);
        for random in [
            Some(Random::new(format, [5, columns], 21).nested(22)).filter(|_| format == BlockFormat::NF4),
            Some(random),
        ] {
            let Some(random) = random else { continue };
            for rounding in [None, Some(Dtype::BF16), Some(Dtype::F16)] {
                let matrix = QuantizedMatrix { rounding, ..random.matrix(true) };
                let expected = values(&matrix);
                for isa in isas() {
                    for (row, from, len) in
                        [(0, 0, columns), (4, 1, 40), (3, columns - 33, 33), (2, 64, 0), (1, 31, 65)]
                    {
                        let mut out = vec![f32::NAN; len];
                        dequantize(isa, &mut out, &matrix, row, from);
                        let expected = &expected[row * columns + from..][..len];
                        let wrong = (0..len).find(|&i| out[i].to_bits() != expected[i].to_bits());
                        assert_eq!(wrong, None, "{isa:?} {format} row {row}, {len} from {from}, {rounding:?}");
                    }
                }
            }
        }
    }
}

/// The product with the quantised matrix and with its values, on one instruction set.
fn both<L: Element<f32>>(
    gemm: &mut Gemm<f32>,
    m: usize,
    matrix: QuantizedMatrix<'_>,
    transposed: bool,
    rounded: Option<Dtype>,
) -> [Vec<f32>; 2] {
    let (stored_values, stride) = (values(&matrix), matrix.columns);
    let [n, k] = if transposed { [stride, matrix.rows] } else { [matrix.rows, stride] };
    let left: Vec<L> = stored::<f32, L>(&numbers(m * k, 3));
    let right = [Operand::quantized(matrix), Operand::new(&stored_values, stride).of_weight()];
    right.map(|right| {
        let right = right.rounded(rounded.map(rounding));
        let right = if transposed { right.transposed() } else { right };
        run(gemm, [m, n, k], Operand::new(&left, k), right)
    })
}

/// Whether both products are the same for every number of rows, in a compute dtype.
fn check<L: Element<f32>>(gemm: &mut Gemm<f32>, random: &Random, rounded: Option<Dtype>) {
    let isa = gemm.isa();
    let (format, rows, columns) = (random.format, random.rows, random.columns);
    for m in [1, 3, 8, 9, 40, 391] {
        for (transposed, reversed) in [(false, true), (true, false)] {
            // Tiles that are emulated take their time: nothing but the format is of the format's own there.
            let slow =
                isa.set() == InstructionSet::Amx && !matches!(format, BlockFormat::Nf4 { .. } | BlockFormat::Q4K);
            if (transposed && matches!(m, 3 | 8 | 9)) || (slow && m != 9) {
                continue;
            }
            let [found, expected] = both::<L>(gemm, m, random.matrix(reversed), transposed, rounded);
            let what = format!("{isa:?} {format} [{rows}, {columns}], {m} rows, transposed {transposed}, {rounded:?}");
            assert!(found.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()), "{what}");
            assert!(found.iter().any(|&x| x != 0.0), "{what}: zeros");
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "millions of multiply-adds")]
fn gemm_of_quantised_weights_has_the_bits_of_their_values_for_any_number_of_rows() {
    for isa in isas() {
        for (format, columns) in shapes() {
            let random = Random::new(format, [37, columns], 31);
            let mut gemm = Gemm::<f32>::new(isa, ThreadPool::new(2));
            check::<f32>(&mut gemm, &random, None);
            check::<bf16>(&mut gemm, &random, Some(Dtype::BF16));
            check::<f16>(&mut gemm, &random, Some(Dtype::F16));
            if isa.has_pairs() {
                check::<f32>(&mut Gemm::new(isa, ThreadPool::new(2)).split(), &random, None);
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "millions of multiply-adds")]
fn gemm_of_quantised_weights_takes_long_rows_and_nested_scales() {
    for isa in isas() {
        for (format, columns) in
            [(BlockFormat::NF4, 1408), (BlockFormat::Int8Rows, 704), (BlockFormat::Q4K, 768), (BlockFormat::Q8_0, 704)]
        {
            let random = Random::new(format, [33, columns], 41);
            let random = match format {
                BlockFormat::NF4 => random.nested(42),
                BlockFormat::Int8Rows => random.short(),
                _ => random,
            };
            let mut gemm = Gemm::<f32>::new(isa, ThreadPool::new(2));
            for m in [1, 2, 3, 4, 5] {
                let [found, expected] = both::<bf16>(&mut gemm, m, random.matrix(false), false, Some(Dtype::BF16));
                assert!(found == expected && found.iter().any(|&x| x != 0.0), "{isa:?} {format} {m} rows");
            }
        }
    }
}

#[test]
fn gemm_of_quantised_weights_in_double_precision_is_that_of_their_values() {
    for (format, columns) in shapes() {
        let random = Random::new(format, [9, columns], 51);
        let (matrix, wide) = (random.matrix(true), values(&random.matrix(true)));
        for isa in isas() {
            let mut gemm = Gemm::<f64>::new(isa, ThreadPool::new(2));
            for (transposed, [n, k]) in [(false, [9, columns]), (true, [columns, 9])] {
                let left: Vec<f64> = stored::<f64, f64>(&numbers(3 * k, 5));
                let mut product = |right: Operand<'_, f64>| {
                    let right = if transposed { right.transposed() } else { right };
                    run(&mut gemm, [3, n, k], Operand::new(&left, k), right)
                };
                let found = product(Operand::quantized(matrix));
                assert!(found == product(Operand::new(&wide, columns)), "{isa:?} {format} transposed {transposed}");
            }
        }
    }
}

/// The matrix in groups of rows, on an instruction set that has kernels for these.
fn grouped(isa: Isa, matrix: &QuantizedMatrix<'_>) -> Option<Interleaved> {
    Interleaved::of(isa, &ThreadPool::new(2), matrix).expect("memory")
}

#[test]
#[cfg_attr(miri, ignore = "millions of multiply-adds")]
fn gemm_of_weights_in_groups_has_the_bits_of_their_values_for_any_number_of_rows() {
    for isa in isas() {
        for (format, rows) in FORMATS.into_iter().flat_map(|format| [(format, 37), (format, 150)]) {
            // Eleven blocks of NF4, of which four share a largest magnitude where scales are quantised.
            let columns = if format.block_values() < 256 { 704 } else { 512 };
            let random = Random::new(format, [rows, columns], 61);
            // The larger of NF4 with scales that are quantised.
            let random = if format == BlockFormat::NF4 && rows > 64 { random.nested(62) } else { random };
            for (matrix, reversed) in [true, false].map(|reversed| (random.matrix(reversed), reversed)) {
                let matrix = QuantizedMatrix { rounding: reversed.then_some(Dtype::BF16), ..matrix };
                let Some(interleaved) = grouped(isa, &matrix) else {
                    assert!(isa.set() != InstructionSet::Avx512Bf16, "{format}");
                    continue;
                };
                let wide = values(&matrix);
                let mut gemm = Gemm::<f32>::new(isa, ThreadPool::new(2));
                // Rows, elements along k from one on or the other way round, and how many of them.
                let forward = if reversed { &[1, 2, 3, 4, 7, 16, 391][..] } else { &[4, 40] };
                let forward = forward.iter().map(|&m| (m, false, 0, columns));
                for (m, transposed, from, k) in
                    forward.chain([(1, false, 64, 256), (9, false, 40, 80), (9, true, 0, rows)])
                {
                    let n = if transposed { columns } else { rows };
                    let left: Vec<bf16> = stored::<f32, bf16>(&numbers(m * k, 7));
                    let [found, expected] =
                        [Operand::interleaved(&interleaved), Operand::new(&wide, columns).of_weight()].map(|right| {
                            let right = right.rounded(Some(rounding(Dtype::BF16))).along(from);
                            let right = if transposed { right.transposed() } else { right };
                            run(&mut gemm, [m, n, k], Operand::new(&left, k), right)
                        });
                    let what = format!(
                        "{format} [{rows}, {columns}] {reversed}: {m} rows, transposed {transposed}, {k} from {from}"
                    );
                    assert!(found.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()), "{what}");
                    assert!(found.iter().any(|&x| x != 0.0), "{what}: zeros");
                }
            }
        }
    }
}

#[test]
fn weights_in_groups_are_read_as_their_values_rounded() {
    for (isa, format) in isas().into_iter().flat_map(|isa| FORMATS.map(|format| (isa, format))) {
        let random = Random::new(format, [70, 512], 71);
        let matrix = random.matrix(true);
        let Some(interleaved) = grouped(isa, &matrix) else { continue };
        let expected: Vec<u32> = values(&matrix).into_iter().map(|x| bf16::from_f32(x).to_f32().to_bits()).collect();
        for (row, from, len) in [(0, 0, 512), (63, 31, 2), (64, 1, 500), (69, 64, 0), (69, 479, 33)] {
            let mut found = vec![f32::NAN; len];
            Coded::Interleaved(&interleaved).dequantize(isa, &mut found, row, from);
            let found: Vec<u32> = found.iter().map(|x| x.to_bits()).collect();
            assert!(found == expected[row * 512 + from..][..len], "{format} row {row}, {len} from {from}");
        }
    }
}
