//! Leading singular vectors of matrices whose decomposition is planted.

use llamaprobe::measures::singular::leading;
use llamaprobe::random::Rng;

/// `I - 2 v v'` of a random unit vector: orthogonal, and its own transpose.
fn reflection(rng: &mut Rng, n: usize) -> Vec<f64> {
    let v: Vec<f64> = (0..n).map(|_| rng.normal()).collect();
    let square: f64 = v.iter().map(|x| x * x).sum();
    let entry = |i: usize, j: usize| f64::from(u8::from(i == j)) - 2.0 * v[i] * v[j] / square;
    (0..n * n).map(|at| entry(at / n, at % n)).collect()
}

#[test]
fn singular_vectors_are_those_planted() {
    let mut rng = Rng::new(11);
    for (rows, columns, r) in [(9, 20, 3), (20, 9, 9), (300, 330, 4), (310, 290, 6)] {
        let side = rows.min(columns);
        let (left, right) = (reflection(&mut rng, rows), reflection(&mut rng, columns));
        // As slowly as those of weights.
        let planted: Vec<f64> = (0..side).map(|k| 3.0 / (1.0 + 0.02 * k as f64)).collect();
        let entry = |i: usize, j: usize| {
            planted.iter().enumerate().map(|(k, s)| s * left[i * rows + k] * right[k * columns + j]).sum::<f64>() as f32
        };
        let matrix: Vec<f32> = (0..rows * columns).map(|at| entry(at / columns, at % columns)).collect();
        let found = leading(&matrix, columns, r);
        assert_eq!((found.values.len(), found.left.len(), found.right.len()), (r, r * rows, r * columns));
        for k in 0..r {
            assert!((found.values[k] / planted[k] - 1.0).abs() < 1e-6, "{rows} x {columns}, value {k}");
            let (u, v) = (&found.left[k * rows..(k + 1) * rows], &found.right[k * columns..(k + 1) * columns]);
            let along = |x: &[f64], planted: &dyn Fn(usize) -> f64| {
                x.iter().enumerate().map(|(i, x)| x * planted(i)).sum::<f64>()
            };
            let (a, b) = (along(u, &|i| left[i * rows + k]), along(v, &|j| right[k * columns + j]));
            // Both signs together are chance; f32 rounds the matrix.
            assert!(
                (a * b - 1.0).abs() < 1e-6 && (a.abs() - 1.0).abs() < 1e-6,
                "{rows} x {columns}, vector {k}: {a}, {b}"
            );
        }
    }
}

#[test]
fn singular_values_of_a_matrix_of_rank_one_end_at_zero() {
    let matrix: Vec<f32> = (0..6).flat_map(|i| (0..4).map(move |j| (i * j) as f32)).collect();
    let found = leading(&matrix, 4, 3);
    assert!((found.values[0] - (55f64 * 14.0).sqrt()).abs() < 1e-9, "{:?}", found.values);
    assert!(found.values[1..].iter().all(|&value| value < 1e-5), "{:?}", found.values);
    assert!(found.left.iter().chain(&found.right).all(|x| x.is_finite()));
}
