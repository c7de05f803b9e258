//! States as points of a plane: the first two principal components.

use super::linear::{Eigen, centred, gram, product, transposed};

/// Rows along their first two principal components.
#[derive(Clone, Debug, PartialEq)]
pub struct Projection {
    /// The share of the variance along each.
    pub variance: [f64; 2],
    /// `[n]`; of each component the coordinate of the largest magnitude is positive.
    pub points: Vec<[f64; 2]>,
}

/// Projects rows `[n, width]`, column-centred, on their first two principal components; none where no row differs from
/// another.
///
/// # Panics
/// If `width` is 0 or the length is no multiple of it.
pub fn projection(rows: &[f32], width: usize) -> Option<Projection> {
    assert!(width > 0 && rows.len().is_multiple_of(width), "projection: {} elements of width {width}", rows.len());
    let n = rows.len() / width;
    let (x, scale) = centred(rows, width);
    // The smaller of X X' and X' X: of many rows the first would take a time of their number's third power.
    let of_rows = n <= width;
    let eigen =
        if of_rows { Eigen::of(&gram(&x, width), n) } else { Eigen::of(&gram(&transposed(&x, width), n), width) };
    let total: f64 = eigen.values.iter().map(|value| value.max(0.0)).sum();
    if eigen.rank(n.max(width)) == 0 {
        return None;
    }
    let value = |k: usize| eigen.values.get(k).map_or(0.0, |value| value.max(0.0));
    let along = |k: usize| -> Vec<f64> {
        let side = if of_rows { n } else { width };
        let points: Vec<f64> = match eigen.vectors.get(k * side..(k + 1) * side) {
            Some(vector) if of_rows => vector.iter().map(|u| u * value(k).sqrt()).collect(),
            Some(vector) => product(&x, vector, width),
            None => vec![0.0; n],
        };
        let largest = points.iter().copied().fold(0.0, |most: f64, x| if x.abs() > most.abs() { x } else { most });
        points.into_iter().map(|x| if largest < 0.0 { -x / scale } else { x / scale }).collect()
    };
    let (first, second) = (along(0), along(1));
    Some(Projection {
        variance: [value(0) / total, value(1) / total],
        points: first.into_iter().zip(second).map(|(x, y)| [x, y]).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::projection;

    #[test]
    fn projection_of_a_plane_keeps_distances() {
        // Four corners of a rectangle of 6 by 2, in three dimensions.
        let rows = [3.0, 1.0, 5.0, 3.0, -1.0, 5.0, -3.0, 1.0, 5.0, -3.0, -1.0, 5.0];
        let found = projection(&rows, 3).expect("rows that differ");
        assert!((found.variance[0] - 0.9).abs() < 1e-12 && (found.variance[1] - 0.1).abs() < 1e-12);
        let distance = |a: usize, b: usize| {
            let [p, q] = [found.points[a], found.points[b]];
            ((p[0] - q[0]).powi(2) + (p[1] - q[1]).powi(2)).sqrt()
        };
        for (a, b, expected) in [(0, 1, 2.0), (0, 2, 6.0), (0, 3, 40f64.sqrt())] {
            assert!((distance(a, b) - expected).abs() < 1e-12, "{a} {b}");
        }
        assert_eq!(projection(&[1.0, 2.0, 1.0, 2.0], 2), None, "equal rows");
    }

    #[test]
    fn projection_of_many_rows_is_that_of_few() {
        // The same rows twice have the same directions; five rows of two columns go by columns, two of them by rows.
        let few = [1.0, 2.0, -3.0, 5.0];
        let many: Vec<f32> = few.repeat(3);
        let (few, many) = (projection(&few, 2).expect("two rows"), projection(&many, 2).expect("six rows"));
        for (i, point) in many.points.iter().enumerate() {
            for k in 0..2 {
                assert!((point[k].abs() - few.points[i % 2][k].abs()).abs() < 1e-12, "{point:?}");
            }
        }
        assert!((many.variance[0] - 1.0).abs() < 1e-12 && many.points[0][0] * many.points[1][0] < 0.0);
        assert!(many.points.iter().map(|point| point[0]).fold(0.0f64, f64::max) > 0.0);
    }
}
