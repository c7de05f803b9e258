use rand::seq::{IndexedRandom, IteratorRandom, SliceRandom};
use rand::{Rng as _, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

use super::Rng;

/// Temporary: equal to the crates.
#[test]
fn cross() {
    for seed in 0..400u64 {
        for stream in [0, 1, u64::MAX] {
            let mut a = Rng::with_stream(seed, stream);
            let mut b = ChaCha8Rng::seed_from_u64(seed);
            b.set_stream(stream);
            assert_eq!(a.next_u32(), b.random::<u32>());
            assert_eq!(a.next_u64(), b.random::<u64>());
            for len in [0, 1, 2, 3, 5, 12, 13, 14, 40, 300, 2000] {
                let mut x: Vec<usize> = (0..len).collect();
                let mut y = x.clone();
                a.shuffle(&mut x);
                y.shuffle(&mut b);
                assert_eq!(x, y);
                if len > 0 {
                    assert_eq!(a.choose(&x), x.choose(&mut b).unwrap());
                    assert_eq!(a.below(len), b.random_range(0..len));
                    assert_eq!(5 + a.below(len), b.random_range(5..5 + len));
                    assert_eq!(a.inclusive(2, 1 + len as u32), b.random_range(2..=1 + len));
                }
                assert_eq!(
                    a.choose_unsized(x.iter().filter(|x| **x % 3 != 1)),
                    y.iter().filter(|x| **x % 3 != 1).choose(&mut b)
                );
                for count in [1, 2, 4, 7] {
                    assert_eq!(
                        a.choose_many(x.iter().copied(), count),
                        y.iter().copied().choose_multiple(&mut b, count)
                    );
                }
            }
            for _ in 0..50 {
                assert_eq!(a.coin(), b.random::<bool>());
                assert_eq!(a.chance(0.3), b.random_bool(0.3));
                assert_eq!(a.chance(1.0), b.random_bool(1.0));
                assert_eq!(a.chance(0.25), b.random_ratio(1, 4));
                assert_eq!(a.unit(), b.random::<f64>());
                assert_eq!(a.below(1 << 40), b.random_range(0..1usize << 40));
                assert_eq!(a.below(3_000_000_000), b.random_range(0..3_000_000_000usize));
                assert_eq!(a.below(3_000_000_000), b.random_range(0..3_000_000_000u32) as usize);
                let bound = 1.0 / 7f32.sqrt();
                assert_eq!(a.symmetric(bound), b.random_range(-bound..bound));
                for _ in 0..20 {
                    assert_eq!(a.normal(), b.sample::<f64, _>(StandardNormal));
                    assert_eq!(a.normal() as f32, b.sample::<f32, _>(StandardNormal));
                }
            }
        }
    }
    let mut a = Rng::new(7);
    let mut x: Vec<u32> = (0..10).collect();
    a.shuffle(&mut x);
    println!("shuffle {x:?}");
    let mut x: Vec<u32> = (0..40).collect();
    a.shuffle(&mut x);
    println!("shuffle {x:?}");
    let mut b = |f: fn(&mut Rng) -> String| println!("{}", f(&mut a));
    b(|a| format!("below {:?}", [10, 1000, 3_000_000_000, 1 << 40].map(|n| a.below(n))));
    b(|a| format!("inclusive {:?}", [(0, 4), (2, 4), (7, 7)].map(|(l, h)| a.inclusive(l, h))));
    b(|a| format!("choose {:?}", (0..8).map(|_| *a.choose(&[1, 2, 3])).collect::<Vec<_>>()));
    b(|a| format!("unsized {:?}", (0..8).map(|_| a.choose_unsized(0..20)).collect::<Vec<_>>()));
    b(|a| format!("many {:?}", (0..3).map(|_| a.choose_many(0..20, 4)).collect::<Vec<_>>()));
    b(|a| format!("coin {:?}", (0..8).map(|_| a.coin()).collect::<Vec<_>>()));
    b(|a| format!("chance {:?}", (0..8).map(|_| a.chance(0.3)).collect::<Vec<_>>()));
    b(|a| format!("unit {:?}", (0..3).map(|_| a.unit()).collect::<Vec<_>>()));
    b(|a| format!("sym {:?}", (0..3).map(|_| a.symmetric(0.3)).collect::<Vec<_>>()));
    b(|a| format!("normal {:?}", (0..4).map(|_| a.normal()).collect::<Vec<_>>()));
    let mut tails = 0;
    let (mut sum, mut last) = (0.0, 0.0);
    for _ in 0..100_000 {
        let x = a.normal();
        if x.abs() > 3.654152885361008796 {
            tails += 1;
            last = x;
        }
        sum += x;
    }
    println!("tails {tails} {last:?} {sum:?}");
}
