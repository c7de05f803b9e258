//! Products against sums in double precision, and against themselves in other company.
#![cfg(test)]

use half::{bf16, f16};

use super::super::isa::tests::isas;
use super::super::simd::Element;
use super::operand::Rounding;
use super::*;

/// The rms of the errors of split products, and the largest of some thousands, as shares of the rms of the products.
const PROMISED: [f64; 2] = [4e-6, 2e-5];
/// The same where the weights are bfloat16.
const PROMISED_OF_BF16: [f64; 2] = [2.4e-6, 1e-5];

pub(super) fn numbers(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / f64::from(1 << 24) - 0.5
    };
    (0..count).map(|_| next()).collect()
}

pub(super) fn stored<A: Float, S: Element<A>>(x: &[f64]) -> Vec<S> {
    x.iter().map(|&x| S::narrow(A::from_f64(x))).collect()
}

pub(super) fn run<A: Float>(gemm: &mut Gemm<A>, [m, n, k]: [usize; 3], left: Operand<A>, right: Operand<A>) -> Vec<A> {
    let mut out = vec![A::from_f64(f64::NAN); m * n];
    let shared = Shared::new(&mut out);
    gemm.product([m, n, k], left, right, &|row, column, x: &[A]| {
        // SAFETY: every element is stored by one task.
        unsafe { shared.at(row * n + column, x.len()) }.copy_from_slice(x);
    });
    out
}

fn check<A: Kernels, L: Element<A>, S: Element<A>>(shape: [usize; 3], tolerance: f64) {
    let [m, n, k] = shape;
    let (a, b): (Vec<L>, Vec<S>) = (stored::<A, L>(&numbers(m * k, 1)), stored::<A, S>(&numbers(n * k, 2)));
    let flip = |rows: usize, columns: usize| move |i: usize| (i % rows) * columns + i / rows;
    let at: Vec<L> = (0..m * k).map(flip(m, k)).map(|i| a[i]).collect();
    let bt: Vec<S> = (0..n * k).map(flip(n, k)).map(|i| b[i]).collect();
    let exact: Vec<f64> = (0..m * n)
        .map(|i| (0..k).map(|p| a[i / n * k + p].widen().to_f64() * b[i % n * k + p].widen().to_f64()).sum())
        .collect();
    for isa in isas() {
        let mut gemm = Gemm::new(isa, ThreadPool::new(3));
        let results = [
            run(&mut gemm, shape, Operand::new(&a, k), Operand::new(&b, k)),
            run(&mut gemm, shape, Operand::new(&a, k), Operand::new(&bt, n).transposed()),
            run(&mut gemm, shape, Operand::new(&at, m).transposed(), Operand::new(&bt, n).transposed()),
            run(&mut gemm, shape, Operand::new(&at, m).transposed(), Operand::new(&b, k)),
        ];
        // L left operand that is contiguous along its rows is not taken in pairs, and gives other bits.
        let pairs = gemm.pair_tiles().is_some() && in_pairs::<A>(&Operand::new(&a, k), &Operand::new(&b, k));
        for result in &results[..if pairs { 2 } else { 4 }] {
            assert!(*result == results[0], "{shape:?} {isa:?}: layouts differ");
        }
        for (i, (found, exact)) in results.iter().flat_map(|result| result.iter().zip(&exact)).enumerate() {
            let error = (found.to_f64() - exact).abs();
            assert!(error <= tolerance * (k as f64).sqrt(), "{shape:?} {isa:?} element {i}: {found:?}, not {exact}");
        }
    }
}

#[test]
fn gemm_of_every_dtype_layout_and_instruction_set_agrees_with_sums() {
    let shapes = [[1, 1, 1], [1, 50, 7], [3, 17, 320], [8, 49, 321], [9, 97, 33], [31, 64, 641], [70, 130, 100]];
    let larger = [[129, 200, 700], [40, 144, 96], [2, 3, 0], [2, 40, 333], [4, 70, 651]];
    // An interpreter has no time for more.
    let shapes = shapes.into_iter().chain(larger).filter(|[m, n, k]| !cfg!(miri) || m * n * k < 20_000);
    for shape in shapes {
        check::<f32, f32, f32>(shape, 1e-6);
        check::<f32, f32, bf16>(shape, 1e-6);
        check::<f32, f32, f16>(shape, 1e-6);
        check::<f32, f32, f64>(shape, 1e-6);
        check::<f32, bf16, bf16>(shape, 1e-6);
        check::<f64, f64, f64>(shape, 1e-15);
        check::<f64, f64, f32>(shape, 1e-15);
        check::<f64, f64, bf16>(shape, 1e-15);
        check::<f64, f64, f16>(shape, 1e-15);
    }
}

#[test]
#[cfg_attr(miri, ignore = "the plain path has nothing to round here")]
fn gemm_rounds_weights_to_bfloat16_as_if_they_were_stored_so() {
    for [m, n, k] in [[3, 50, 100], [40, 20, 96], [70, 130, 333]] {
        let a = stored::<f32, bf16>(&numbers(m * k, 5));
        for isa in isas() {
            let mut gemm = Gemm::new(isa, ThreadPool::alone());
            for transposed in [false, true] {
                let laid = |x| if transposed { Operand { stride: n, transposed, ..x } } else { x };
                let (wide, narrow) = (stored::<f32, f32>(&numbers(n * k, 6)), stored::<f32, bf16>(&numbers(n * k, 6)));
                let round: Rounding<f32> = |_, x| x.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
                let wide = laid(Operand::new(&wide, k)).rounded(Some(round));
                let found = run(&mut gemm, [m, n, k], Operand::new(&a, k), wide);
                let expected = run(&mut gemm, [m, n, k], Operand::new(&a, k), laid(Operand::new(&narrow, k)));
                assert!(found == expected, "{isa:?} {m} {n} {k} transposed {transposed}");
            }
        }
    }
}

/// The sums, and those of magnitudes, in double precision.
fn sums(a: &[f32], b: &[impl Element<f32>], [m, n, k]: [usize; 3]) -> Vec<(f64, f64)> {
    let sum = |i: usize| {
        let terms = (0..k).map(|p| f64::from(a[i / n * k + p]) * f64::from(b[i % n * k + p].widen()));
        terms.fold((0.0, 0.0), |(sum, magnitude), x| (sum + x, magnitude + x.abs()))
    };
    (0..m * n).map(sum).collect()
}

fn check_split<S: Element<f32>>(isa: Isa, [m, n, k]: [usize; 3], parts: f64) {
    let (a, b): (Vec<f32>, Vec<S>) = (stored::<f32, _>(&numbers(m * k, 7)), stored::<f32, _>(&numbers(n * k, 8)));
    let bt: Vec<S> = (0..n * k).map(|i| b[i % n * k + i / n]).collect();
    let mut gemm = Gemm::<f32>::new(isa, ThreadPool::new(2)).split();
    let left = Operand::new(&a, k);
    let found = run(&mut gemm, [m, n, k], left, Operand::new(&b, k).of_weight());
    let transposed = run(&mut gemm, [m, n, k], left, Operand::new(&bt, n).transposed().of_weight());
    assert!(found == transposed, "{isa:?} {m} {n} {k}: layouts differ");
    // What is left of the left operand's rests and of the right's, the product of both rests; the sums' own rounding.
    let bound = parts * 0.5f64.powi(18) + k as f64 * 0.5f64.powi(24);
    let (mut errors, mut squares, mut largest) = (0.0, 0.0, 0.0f64);
    for (i, (&found, (sum, magnitude))) in found.iter().zip(sums(&a, &b, [m, n, k])).enumerate() {
        let error = (f64::from(found) - sum).abs();
        assert!(error <= bound * magnitude, "{isa:?} {m} {n} {k} element {i}: {found}, not {sum}");
        (errors, squares, largest) = (errors + error * error, squares + sum * sum, largest.max(error));
    }
    let size = (squares / (m * n) as f64).sqrt();
    let (rms, largest) = ((errors / squares).sqrt(), largest / size);
    println!("{isa:?} {m} x {n} x {k}, {parts} rests: rms {rms:.2e}, largest {largest:.2e}");
    let promised = if parts > 1.0 { PROMISED } else { PROMISED_OF_BF16 };
    let few = m * n < 1000;
    assert!(few || rms < promised[0] && largest < promised[1], "{isa:?} {m} {n} {k}: rms {rms:.2e}, {largest:.2e}");
}

#[test]
fn gemm_split_products_are_wrong_by_what_the_documentation_says() {
    for isa in isas().into_iter().filter(|isa| isa.has_pairs()) {
        for k in [64, 129, 640, 1024, 4096] {
            // Weights as the vector operand and broadcast, with many rows and with few.
            for [m, n] in [[40, 30], [37, 90], [1, 90], [3, 40]] {
                check_split::<f32>(isa, [m, n, k], 3.0);
                check_split::<bf16>(isa, [m, n, k], 1.0);
                check_split::<f16>(isa, [m, n, k], 2.0);
            }
        }
    }
}

#[test]
fn gemm_splits_only_products_with_weights() {
    let (a, b) = (stored::<f32, f32>(&numbers(9 * 70, 9)), stored::<f32, f32>(&numbers(50 * 70, 10)));
    let (left, right, transposed) = (Operand::new(&a, 70), Operand::new(&b, 70), Operand::new(&a, 9).transposed());
    for isa in isas().into_iter().filter(|isa| isa.has_pairs()) {
        let (mut split, mut whole) =
            (Gemm::<f32>::new(isa, ThreadPool::alone()).split(), Gemm::new(isa, ThreadPool::alone()));
        let mut same =
            |left, right| run(&mut split, [9, 50, 70], left, right) == run(&mut whole, [9, 50, 70], left, right);
        assert!(same(left, right) && same(transposed, right.of_weight()) && !same(left, right.of_weight()), "{isa:?}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "millions of multiply-adds")]
fn gemm_bits_of_a_row_depend_on_no_other_row_and_on_no_thread() {
    for isa in isas() {
        let plain = |pool| Gemm::new(isa, pool);
        rows_alone::<f32, bf16>(plain, [300, 100, 777]);
        rows_alone::<bf16, bf16>(plain, [70, 100, 352]);
        rows_alone::<bf16, bf16>(plain, [40, 100, 777]);
        if isa.has_pairs() {
            let split = |pool| Gemm::new(isa, pool).split();
            rows_alone::<f32, f32>(split, [70, 100, 777]);
            rows_alone::<f32, bf16>(split, [70, 100, 352]);
            rows_alone::<f32, bf16>(split, [300, 40, 777]);
        }
    }
}

fn rows_alone<L: Element<f32>, S: Element<f32>>(make: impl Fn(ThreadPool) -> Gemm<f32>, [m, n, k]: [usize; 3]) {
    let (a, b) = (stored::<f32, L>(&numbers(m * k, 3)), stored::<f32, S>(&numbers(n * k, 4)));
    let right = Operand::new(&b, k).of_weight();
    let all = run(&mut make(ThreadPool::alone()), [m, n, k], Operand::new(&a, k), right);
    let mut gemm = make(ThreadPool::new(4));
    let isa = gemm.isa();
    for (first, rows) in [(0, 300), (0, 1), (299, 1), (5, 2), (9, 3), (4, 4), (7, 5), (100, 8), (33, 64), (1, 255)] {
        let (first, rows) = (first.min(m - 1), rows.min(m - first.min(m - 1)));
        let part = run(&mut gemm, [rows, n, k], Operand::new(&a[first * k..], k), right);
        assert!(part == all[first * n..(first + rows) * n], "{isa:?}: {rows} rows from {first}");
    }
}

/// Operands that lie a few elements behind the beginning of memory, and so anyhow in lines of the cache.
fn behind(x: &[bf16], by: usize) -> Vec<bf16> {
    [&vec![bf16::from_f32(f32::NAN); by], x].concat()
}

#[test]
#[cfg_attr(miri, ignore = "millions of multiply-adds")]
fn gemm_bits_of_many_rows_and_long_sums_are_those_of_few_wherever_operands_lie() {
    // More rows than a chunk and than go into panels, sums of several blocks, ragged strips, every way of prefetching.
    for [m, n, k] in [[420, 70, 288], [200, 100, 300], [140, 33, 352], [40, 70, 2112], [70, 40, 4300], [391, 40, 600]] {
        let (a, b) = (stored::<f32, bf16>(&numbers(m * k, 11)), stored::<f32, bf16>(&numbers(n * k, 12)));
        let bt: Vec<bf16> = (0..n * k).map(|i| b[i % n * k + i / n]).collect();
        for isa in isas().into_iter().filter(|&isa| isa != Isa::PLAIN) {
            let mut gemm = Gemm::<f32>::new(isa, ThreadPool::new(2));
            let mut found = |left: usize, right: usize| {
                let (a, b, bt) = (behind(&a, left), behind(&b, right), behind(&bt, right));
                let operand = Operand::new(&a[left..], k);
                let whole = run(&mut gemm, [m, n, k], operand, Operand::new(&b[right..], k));
                let transposed = run(&mut gemm, [m, n, k], operand, Operand::new(&bt[right..], n).transposed());
                assert!(whole == transposed, "{isa:?} {m} {n} {k}: layouts differ");
                whole
            };
            let all = found(0, 0);
            assert!(all == found(8, 4) && all == found(3, 32), "{isa:?} {m} {n} {k}: places in memory differ");
            // A few rows alone, with weights that begin anywhere in a line, and rows of weights that all do the same or not.
            for (row, off) in [(0, 0), (31, 4), (32, 30), (m / 2, 6), (m - 1, 16)] {
                let few = behind(&b, off);
                let rows = (row % 8 + 1).min(m - row);
                let left = Operand::new(&a[row * k..], k);
                let alone = run(&mut gemm, [rows, n, k], left, Operand::new(&few[off..], k));
                assert!(alone == all[row * n..][..rows * n], "{isa:?} {m} {n} {k}: {rows} rows from {row}");
                for (j, &found) in alone[..n].iter().enumerate() {
                    let terms = (0..k).map(|p| [a[row * k + p], b[j * k + p]].map(|x| f64::from(x.to_f32())));
                    let (sum, magnitude) = terms.fold((0.0, 0.0), |(s, t), [x, y]| (s + x * y, t + (x * y).abs()));
                    let error = (f64::from(found) - sum).abs();
                    assert!(error <= 4e-7 * magnitude, "{isa:?} {m} {n} {k} row {row}, {j}: {found}, not {sum}");
                }
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "millions of multiply-adds")]
fn gemm_sees_one_wrong_element_of_an_operand_where_it_counts_and_nowhere_else() {
    for [m, n, k] in [[400, 40, 64], [70, 40, 2112]] {
        let (a, b) = (stored::<f32, bf16>(&numbers(m * k, 13)), stored::<f32, bf16>(&numbers(n * k, 14)));
        for isa in isas().into_iter().filter(|isa| isa.has_pairs()) {
            let mut gemm = Gemm::<f32>::new(isa, ThreadPool::new(2));
            let right = run(&mut gemm, [m, n, k], Operand::new(&a, k), Operand::new(&b, k));
            for [i, j, p] in [[0, 0, 0], [31, 31, k - 1], [32, 32, 31], [m - 1, n - 1, k / 2]] {
                let (mut wrong_left, mut wrong_right) = (a.clone(), b.clone());
                wrong_left[i * k + p] += bf16::from_f32(0.5);
                wrong_right[j * k + p] += bf16::from_f32(0.5);
                let of_left = run(&mut gemm, [m, n, k], Operand::new(&wrong_left, k), Operand::new(&b, k));
                let of_right = run(&mut gemm, [m, n, k], Operand::new(&a, k), Operand::new(&wrong_right, k));
                let differing = |x: &[f32]| (0..m * n).filter(|&at| x[at] != right[at]).collect::<Vec<_>>();
                let row: Vec<usize> = (i * n..(i + 1) * n).collect();
                let column: Vec<usize> = (0..m).map(|row| row * n + j).collect();
                assert!(differing(&of_left) == row, "{isa:?} {m} {n} {k}: left element {i}, {p}");
                assert!(differing(&of_right) == column, "{isa:?} {m} {n} {k}: right element {j}, {p}");
            }
        }
    }
}

fn multiply(tiles: &Tiles<f32>, [rows, k, row, along]: [usize; 4], [broadcast, vector]: [usize; 2]) -> Vec<f32> {
    let (data, vectors, mut out) = (vec![1.0; broadcast], vec![1.0; vector], vec![f32::NAN; rows * 2 * tiles.lanes]);
    let broadcast = BroadcastOperand { data: &data, row, k: along };
    let vector = VectorOperand::plain(&vectors, 2 * tiles.lanes, tiles.lanes);
    tiles.multiply([rows, 2 * tiles.lanes, k], broadcast, vector, &mut out, 2 * tiles.lanes, false);
    out
}

/// Whether it panics, with the message printed.
fn refuses(call: impl FnOnce() -> Vec<f32>) -> bool {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).is_err()
}

#[test]
fn tiles_refuse_operands_that_kernels_would_read_beyond() {
    for isa in isas() {
        let tiles = f32::kernels(isa).tiles;
        let vector = 8 * 2 * tiles.lanes;
        assert_eq!(multiply(&tiles, [3, 8, 8, 1], [24, vector]), vec![8.0; 3 * 2 * tiles.lanes], "{isa:?}");
        assert_eq!(multiply(&tiles, [3, 0, 8, 1], [0, 0]), vec![0.0; 3 * 2 * tiles.lanes], "{isa:?}: no k");
        assert!(refuses(|| multiply(&tiles, [3, 8, 8, 1], [23, vector])), "{isa:?}: a short broadcast operand");
        assert!(refuses(|| multiply(&tiles, [3, 8, 8, 1], [24, vector - 1])), "{isa:?}: a short vector operand");
        assert!(refuses(|| multiply(&tiles, [3, 8, 8, 2], [64, vector])), "{isa:?}: no unit stride");
        // Two rows at half the address space: the sum of sizes overflows to 8.
        let row = usize::MAX / 2 + 1;
        assert!(refuses(|| multiply(&tiles, [3, 8, row, 1], [24, vector])), "{isa:?}: an overflow");
        let Some(pairs) = f32::kernels(isa).pair_tiles.filter(|tiles| tiles.step > 1) else { continue };
        let vector = 32 * 2 * pairs.lanes;
        assert!(!refuses(|| multiply(&pairs, [3, 16, 16, 1], [48, vector])), "{isa:?}: a step of k");
        assert!(refuses(|| multiply(&pairs, [3, 0, 16, 1], [48, vector])), "{isa:?}: no k");
        assert!(refuses(|| multiply(&pairs, [3, 17, 17, 1], [64, vector])), "{isa:?}: parts of a step");
        assert!(refuses(|| multiply(&pairs, [3, 16, 1, 3], [48, vector])), "{isa:?}: not contiguous along k");
    }
}
