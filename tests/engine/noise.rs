//! Noise on embeddings.

use llamaprobe::arch::Dtype;
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::backend::{Buffers, Transfer};
use llamaprobe::hooks::{Record, Selection, Site};
use llamaprobe::model::{Activations, EmbedNoise, Input, Save};
use llamaprobe::train::noise::Noise;
use llamaprobe::train::passes::{Packing, Pass};

use crate::support::training::{data, model};

const WIDTH: usize = 24;

/// A pass of two runs, each with a soft prompt of two rows, in which no row is of two sequences.
fn pass() -> Pass {
    let packing = Packing {
        budget: 1000,
        min_shared: usize::MAX,
        prompts: vec![2, 2],
        ignore_first: false,
        adapted: true,
        is_causal: true,
    };
    let data = [data(1, 4), data(2, 5)];
    let pieces: Vec<_> = (0..2).flat_map(|run| packing.pieces(run, &data[run], &[0, 2, 3])).collect();
    packing.pass(&pieces, |run| &data[run])
}

#[test]
fn noise_is_uniform_within_the_bound_of_its_sequence() {
    let (pass, alpha) = (pass(), 5.0);
    let keys: Vec<u32> = (0..pass.pack.len() as u32).collect();
    let noise = Noise::new(&pass, alpha, WIDTH, &[7, 8], &keys);
    // Four rows are a soft prompt's, and have none.
    assert_eq!(noise.rows.len(), pass.pack.len() - 4);
    let (mut shares, mut lengths) = (Vec::new(), Vec::new());
    for (&row, values) in noise.rows.iter().zip(noise.values.chunks_exact(WIDTH)) {
        let length = pass.lengths[row as usize];
        let bound = alpha / ((length * WIDTH) as f64).sqrt();
        shares.extend(values.iter().map(|&x| f64::from(x) / bound));
        lengths.push(length);
    }
    lengths.dedup();
    assert!(lengths.len() >= 4, "sequences of other lengths: {lengths:?}");
    assert!(shares.iter().all(|share| (-1.0..1.0 + 1e-6).contains(share)));
    // Mean 0 and variance 1/3 of a uniform number, within three standard errors.
    let n = shares.len() as f64;
    let (mean, square) = (shares.iter().sum::<f64>() / n, shares.iter().map(|x| x * x).sum::<f64>() / n);
    println!("{n} numbers: mean {mean:.4}, mean square {square:.4}");
    assert!(mean.abs() < 3.0 * (1.0 / 3.0 / n).sqrt() && (square - 1.0 / 3.0).abs() < 3.0 * (4.0 / 45.0 / n).sqrt());
    // Another key, another seed: other numbers.
    let other = Noise::new(&pass, alpha, WIDTH, &[7, 9], &keys);
    let differ = |row: usize| noise.values[row * WIDTH..][..WIDTH] != other.values[row * WIDTH..][..WIDTH];
    let runs: Vec<_> = noise.rows.iter().map(|&row| pass.pack.run_of(row as usize)).collect();
    assert!(runs.iter().enumerate().all(|(i, run)| differ(i) == (*run == Some(1))));
    let rows: Vec<&[f32]> = noise.values.chunks_exact(WIDTH).collect();
    assert!(rows.iter().enumerate().all(|(i, row)| !rows[..i].contains(row)), "no two rows have the same noise");
}

#[test]
fn noise_is_added_to_the_embeddings_of_tokens() {
    let b = &mut Cpu::new(Dtype::F32);
    let model = model(b);
    let packed = llamaprobe::pack::forest(
        &[llamaprobe::pack::Sequence::ids(&[5, 6, 7, 8], None, llamaprobe::pack::Label::Text)],
        1,
    );
    let device = b.pack(&packed.pack).expect("a pack");
    let mut acts = Activations::new(b, &model.config, None, 4, Save::Layer).expect("memory");
    let mut values = b.acc(3 * WIDTH).expect("memory");
    let added: Vec<f32> = (0..2 * WIDTH).map(|i| i as f32 / 64.0 - 0.3).collect();
    b.upload(&mut values, 0, &added).expect("an upload");
    let rows = b.index(&[1, 3]).expect("an index");
    let mut embedded = |noise| {
        let mut record = Record::new(Selection::new(&[Site::Embed], &[0]), vec![0, 1, 2, 3]);
        let input = Input { noise, ..Input::new(&packed.pack, &device) };
        model.forward(b, &mut acts, &input, None, &mut record).expect("a forward");
        record.get(Site::Embed, 0).expect("recorded").to_vec()
    };
    let plain = embedded(None);
    let noisy = embedded(Some(EmbedNoise { values: &values, rows: &rows }));
    for (i, (plain, noisy)) in plain.iter().zip(&noisy).enumerate() {
        let expected = match i / WIDTH {
            1 => plain + added[i - WIDTH],
            3 => plain + added[i - 2 * WIDTH],
            _ => *plain,
        };
        assert_eq!(*noisy, expected, "element {i}");
    }
}
