#![allow(missing_docs)]
use half::bf16;
use llamaprobe::backend::cpu::{Cpu, Isa};
use llamaprobe::backend::{Backend, LinearDims};
use std::time::Instant;
fn main() {
    let only: Vec<String> = std::env::args().skip(1).collect();
    for (name, input, output) in [
        ("15Ma", 288, 288),
        ("15Mm", 288, 768),
        ("15Md", 768, 288),
        ("110", 768, 768),
        ("1B", 2048, 5632),
        ("7Ba", 4096, 4096),
        ("7Bm", 4096, 11008),
        ("7Bd", 11008, 4096),
    ] {
        if !only.is_empty() && !only.iter().any(|o| name.starts_with(o.as_str())) {
            continue;
        }
        for rows in [1usize, 2, 4, 16, 64, 256, 512] {
            let dims = LinearDims { rows, input, output };
            print!("{name} {rows:4}");
            let mut bs: Vec<_> = [Isa::Avx512, Isa::Avx512Bf16]
                .iter()
                .filter(|i| Isa::available().contains(i))
                .map(|&i| Cpu::<f32, bf16>::with_isa(i))
                .collect();
            let b = &mut bs[0];
            let w: Vec<f32> = (0..output * input).map(|i| (i % 13) as f32 * 0.1).collect();
            let params = w;
            let weight = b.trainable_weight(&params, 0, output * input).unwrap();
            let x = vec![bf16::from_f32(0.5); rows * input];
            let mut out = vec![bf16::ZERO; rows * output];
            let mut dx = vec![0f32; rows * input];
            let mut best = vec![[f64::MAX; 2]; bs.len()];
            let reps = (2e8 / (rows * input * output) as f64).clamp(3.0, 200.0) as usize;
            for _ in 0..5 {
                for (i, b) in bs.iter_mut().enumerate() {
                    for _ in 0..reps {
                        let t = Instant::now();
                        b.linear_fwd(&mut out, &x, &weight, None, dims);
                        best[i][0] = best[i][0].min(t.elapsed().as_secs_f64());
                        let t = Instant::now();
                        b.linear_bwd_input(&mut dx, &out, &weight, dims, false);
                        best[i][1] = best[i][1].min(t.elapsed().as_secs_f64());
                    }
                }
            }
            for t in &best {
                for t in t {
                    print!(" {:8.1}", 2e-9 * (rows * input * output) as f64 / t);
                }
                print!(" |");
            }
            println!(" GFLOP/s fwd bwd; {:.1} GB/s", 2e-9 * (input * output) as f64 / best.last().unwrap()[0]);
        }
    }
}
