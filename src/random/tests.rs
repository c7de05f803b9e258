//! Fixed values: a seed must stand for the same draws for ever.

use super::Rng;

fn repeat<T>(count: usize, draw: impl FnMut(usize) -> T) -> Vec<T> {
    (0..count).map(draw).collect()
}

#[test]
fn draws_of_a_seed_are_fixed() {
    let rng = &mut Rng::new(7);
    let mut short: Vec<u32> = (0..10).collect();
    rng.shuffle(&mut short);
    assert_eq!(short, [0, 7, 5, 2, 9, 1, 6, 8, 3, 4]);
    // Longer than the indices that one draw yields.
    let mut long: Vec<u32> = (0..40).collect();
    rng.shuffle(&mut long);
    let expected = [
        20, 11, 37, 18, 39, 0, 21, 30, 13, 10, 4, 15, 32, 9, 1, 12, 22, 26, 25, 17, 14, 6, 27, 31, 16, 33, 36, 29, 19,
        3, 24, 28, 2, 23, 38, 34, 5, 35, 8, 7,
    ];
    assert_eq!(long, expected);
    assert_eq!([10, 1000, 3_000_000_000, 1 << 40].map(|n| rng.below(n)), [3, 242, 249178580, 933804073793]);
    assert_eq!([(0, 4), (2, 4), (7, 7)].map(|(low, high)| rng.inclusive(low, high)), [1, 3, 7]);
    assert_eq!(repeat(8, |_| *rng.choose(&[1, 2, 3])), [3, 2, 1, 3, 2, 2, 2, 3]);
    let chosen = repeat(8, |_| rng.choose_unsized(0..20).expect("one of twenty"));
    assert_eq!(chosen, [15, 13, 10, 13, 3, 12, 2, 14]);
    assert_eq!(repeat(3, |_| rng.choose_many(0..20, 4)), [[12, 5, 7, 6], [5, 9, 17, 3], [8, 13, 19, 5]]);
    assert_eq!(repeat(8, |_| rng.coin()), [true, true, false, true, false, false, false, true]);
    assert_eq!(repeat(8, |_| rng.chance(0.3)), [false, false, true, false, false, false, false, false]);
    assert_eq!(repeat(3, |_| rng.unit()), [0.6996554047735135, 0.7275976859352031, 0.12131855883731368]);
    assert_eq!(repeat(3, |_| rng.symmetric(0.3)), [-0.12275584, 0.15238783, -0.2569311]);
    let normal = [-0.9272524596952604, 0.8438360247070175, 0.197444903256385, -0.1394128660034927];
    assert_eq!(repeat(4, |_| rng.normal()), normal);
    // Every layer of the ziggurat, and its tail.
    let many = repeat(100_000, |_| rng.normal());
    let tail: Vec<f64> = many.iter().copied().filter(|x| x.abs() > 3.654152885361009).collect();
    assert_eq!((tail.len(), tail.last()), (22, Some(&3.7139773028111005)));
    assert_eq!(many.iter().sum::<f64>(), -86.29401517145185);
}

#[test]
fn draws_are_of_their_distribution() {
    let rng = &mut Rng::with_stream(3, 9);
    let n = 60_000;
    let share = |hits: usize| hits as f64 / n as f64;
    // Five standard deviations of a share.
    let near = |found: f64, p: f64| (found - p).abs() < 5.0 * (p * (1.0 - p) / n as f64).sqrt();
    assert!(near(share((0..n).filter(|_| rng.chance(0.2)).count()), 0.2));
    assert!(near(share((0..n).filter(|_| rng.coin()).count()), 0.5));
    assert!((0..100).all(|_| rng.chance(1.0) && !rng.chance(0.0)));
    for value in 0..3 {
        assert!(near(share((0..n).filter(|_| rng.below(3) == value).count()), 1.0 / 3.0), "{value}");
        assert!(near(share((0..n).filter(|_| rng.inclusive(5, 7) == 5 + value).count()), 1.0 / 3.0), "{value}");
        let first = |rng: &mut Rng| {
            let mut order = [0, 1, 2];
            rng.shuffle(&mut order);
            order[0]
        };
        assert!(near(share((0..n).filter(|_| first(rng) == value).count()), 1.0 / 3.0), "{value}");
    }
    for value in 0..5 {
        assert!(near(share((0..n).filter(|_| rng.choose_unsized(0..5) == Some(value)).count()), 0.2), "{value}");
        let among = |rng: &mut Rng| rng.choose_many(0..5, 2).contains(&value);
        assert!(near(share((0..n).filter(|_| among(rng)).count()), 0.4), "{value}");
    }
    let normal = repeat(n, |_| rng.normal());
    let mean = normal.iter().sum::<f64>() / n as f64;
    let variance = normal.iter().map(|x| x * x).sum::<f64>() / n as f64;
    assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03, "{mean} {variance}");
}

#[test]
fn short_sequences_are_not_drawn_from() {
    let rng = &mut Rng::new(0);
    assert_eq!(rng.choose_unsized(std::iter::empty::<u8>()), None);
    assert_eq!(rng.choose_many(0..2, 5), [0, 1]);
    rng.shuffle::<u8>(&mut []);
    rng.shuffle(&mut [1]);
    assert_eq!(rng.next_u32(), Rng::new(0).next_u32(), "no bits were taken");
}
