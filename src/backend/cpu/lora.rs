//! LoRA over stacked runs: `y += scale * B A dropout(x)` with the adapter of each row's run (Hu et al. 2021).

use std::ops::Range;

use super::context::{Context, carve};
use super::gemm::{Gemm, Operand, grow};
use super::parallel::{Shared, each_part, rows, workers};
use super::rows::accumulate;
use super::simd::{Element, Float, multiversion};
use crate::backend::{Dropout, LoraSite};
use crate::hash::{GOLDEN_GAMMA, splitmix64};
use crate::pack::Pack;

/// See [`Backend::lora_fwd`](crate::backend::Backend::lora_fwd).
#[allow(clippy::too_many_arguments)]
pub fn fwd<W: Float, R: Element<W>>(
    cx: &mut Context<W>,
    y: &mut [R],
    xa: &mut [W],
    x: &[R],
    params: &[W],
    pack: &Pack,
    site: LoraSite,
    dropout: Option<Dropout<'_>>,
) {
    let LoraSite { rank, input, output, .. } = site;
    xa[..pack.len() * rank].fill(W::ZERO);
    let (y, xa) = (Shared::new(y), Shared::new(xa));
    each_stretch(cx, pack.runs(), |gemm, memory, (run, rows)| {
        let isa = gemm.isa();
        let adapter = &params[run * site.stride..][..site.stride];
        // SAFETY: a stretch has rows of its own.
        let xa = unsafe { xa.at(rows.start * rank, rows.len() * rank) };
        let x_memory = grow(memory, if dropout.is_some() { rows.len() * input } else { 0 });
        let left = dropped(gemm, x_memory, x, *run, rows, input, dropout);
        let shrunk = Shared::new(xa);
        gemm.product([rows.len(), rank, input], left, Operand::new(&adapter[site.a..], input), &|row, column, sums| {
            // SAFETY: a product stores every element once.
            unsafe { shrunk.at(row * rank + column, sums.len()) }.copy_from_slice(sums);
        });
        let (left, right) = (Operand::new(xa, rank), Operand::new(&adapter[site.b..], rank));
        gemm.product([rows.len(), output, rank], left, right, &|row, column, sums| {
            // SAFETY: as above, and a stretch has rows of its own.
            let y = unsafe { y.at((rows.start + row) * output + column, sums.len()) };
            add_scaled(isa, y, sums, W::from_f64(site.scale));
        });
    });
}

/// See [`Backend::lora_bwd`](crate::backend::Backend::lora_bwd).
#[allow(clippy::too_many_arguments)]
pub fn bwd<W: Float, R: Element<W>>(
    cx: &mut Context<W>,
    d_params: &mut [W],
    d_x: Option<&mut [W]>,
    d_y: &[R],
    xa: &[W],
    x: &[R],
    params: &[W],
    pack: &Pack,
    site: LoraSite,
    dropout: Option<Dropout<'_>>,
) {
    let LoraSite { rank, input, output, .. } = site;
    let scale = W::from_f64(site.scale);
    let (d_params, d_x) = (Shared::new(d_params), d_x.map(Shared::new));
    let backward = |gemm: &mut Gemm<W>, memory: &mut Vec<W>, (run, rows): &(usize, Range<usize>)| {
        let (isa, n) = (gemm.isa(), rows.len());
        let adapter = &params[run * site.stride..][..site.stride];
        let add = |to: usize, sums: &[W], scale: W| {
            // SAFETY: one thread has the run, and a product stores every element once.
            let to = unsafe { d_params.at(run * site.stride + to, sums.len()) };
            add_scaled(isa, to, sums, scale);
        };
        let (d_y, xa) = (&d_y[rows.start * output..][..n * output], &xa[rows.start * rank..][..n * rank]);
        let (left, right) = (Operand::new(d_y, output).transposed(), Operand::new(xa, rank).transposed());
        gemm.product([output, rank, n], left, right, &|i, j, sums| add(site.b + i * rank + j, sums, scale));

        let dropped_len = if dropout.is_some() { n * input } else { 0 };
        let [d_xa, x_memory] = carve(memory, [n * rank, dropped_len]);
        let shared = Shared::new(&mut *d_xa);
        let (left, right) = (Operand::new(d_y, output), Operand::new(&adapter[site.b..], rank).transposed());
        gemm.product([n, rank, output], left, right, &|i, j, sums| {
            // SAFETY: a product stores every element once.
            let to = unsafe { shared.at(i * rank + j, sums.len()) };
            to.iter_mut().zip(sums).for_each(|(to, &x)| *to = x * scale);
        });
        let left = Operand::new(&*d_xa, rank);
        let right = dropped(gemm, x_memory, x, *run, rows, input, dropout).transposed();
        gemm.product([rank, input, n], left.transposed(), right, &|i, j, sums| {
            add(site.a + i * input + j, sums, W::ONE);
        });
        if let Some(d_x) = &d_x {
            let right = Operand::new(&adapter[site.a..], input).transposed();
            gemm.product([n, input, rank], left, right, &|i, j, sums| {
                // SAFETY: a stretch has rows of its own, and a product stores every element once.
                let to = unsafe { d_x.at((rows.start + i) * input + j, sums.len()) };
                match dropout {
                    None => accumulate(isa, to, sums),
                    Some(dropout) => add_kept(to, sums, Mask::new(dropout, *run, rows.start + i), j),
                }
            });
        }
    };
    let mut runs: Vec<usize> = pack.runs().iter().map(|(run, _)| *run).collect();
    runs.sort_unstable();
    runs.dedup();
    each_stretch(cx, &runs, |gemm, memory, run| {
        pack.runs().iter().filter(|(r, _)| r == run).for_each(|stretch| backward(gemm, memory, stretch));
    });
}

/// See [`Backend::lora_delta`](crate::backend::Backend::lora_delta).
pub fn delta<W: Float>(cx: &mut Context<W>, out: &mut [W], xa: &[W], params: &[W], pack: &Pack, site: LoraSite) {
    let LoraSite { rank, output, .. } = site;
    let scale = W::from_f64(site.scale);
    let out = &mut out[..pack.len() * output];
    out.fill(W::ZERO);
    let out = Shared::new(out);
    each_stretch(cx, pack.runs(), |gemm, _, (run, rows)| {
        let left = Operand::new(&xa[rows.start * rank..], rank);
        let right = Operand::new(&params[run * site.stride + site.b..], rank);
        gemm.product([rows.len(), output, rank], left, right, &|row, column, sums| {
            // SAFETY: a stretch has rows of its own, and a product stores every element once.
            let to = unsafe { out.at((rows.start + row) * output + column, sums.len()) };
            to.iter_mut().zip(sums).for_each(|(to, &x)| *to = x * scale);
        });
    });
}

/// Handles all items, side by side if there are enough, or else one after another with all threads on each.
fn each_stretch<W: Float, T: Sync>(cx: &mut Context<W>, items: &[T], f: impl Fn(&mut Gemm<W>, &mut Vec<W>, &T) + Sync) {
    if items.len() < 2 * cx.tasks.len() {
        items.iter().for_each(|item| f(&mut cx.gemm, &mut cx.memory, item));
    } else {
        workers(&cx.on.team, &mut cx.tasks, items.len(), |task, i| f(&mut task.gemm, &mut task.memory, &items[i]));
    }
}

multiversion! {
    fn add_scaled[W: Float, S: Element<W>](out: &mut [S], x: &[W], scale: W) {
        for (o, &x) in out.iter_mut().zip(x) {
            *o = S::narrow(o.widen() + x * scale);
        }
    }
}

/// The rows of `x` after dropout: in place if there is none, in `memory` otherwise.
fn dropped<'a, W: Float, R: Element<W>>(
    gemm: &Gemm<W>,
    memory: &'a mut [W],
    x: &'a [R],
    run: usize,
    span: &Range<usize>,
    width: usize,
    dropout: Option<Dropout<'_>>,
) -> Operand<'a, W> {
    let x = &x[span.start * width..][..span.len() * width];
    let Some(dropout) = dropout else { return Operand::new(x, width) };
    let out = memory;
    let isa = gemm.isa();
    each_part(gemm.team(), span.len(), width, rows("lora", &mut *out, span.len(), width), |first, part| {
        for (i, out) in part.chunks_exact_mut(width).enumerate() {
            let row = first + i;
            super::simd::widen(isa, out, &x[row * width..][..width]);
            let mask = Mask::<W>::new(dropout, run, span.start + row);
            out.iter_mut().enumerate().for_each(|(column, x)| *x = mask.apply(column, *x));
        }
    });
    Operand::new(&*out, width)
}

fn add_kept<W: Float>(out: &mut [W], x: &[W], mask: Mask<W>, column: usize) {
    out.iter_mut().zip(x).enumerate().for_each(|(i, (o, &x))| *o += mask.apply(column + i, x));
}

/// Which columns of a row survive: a counter-based hash, one draw of 64 bits for two columns.
#[derive(Clone, Copy)]
struct Mask<W> {
    row: u64,
    threshold: u64,
    scale: W,
}

impl<W: Float> Mask<W> {
    fn new(dropout: Dropout<'_>, run: usize, row: usize) -> Self {
        let key = splitmix64(splitmix64(dropout.seeds[run]) ^ dropout.site);
        Self {
            row: splitmix64(key ^ u64::from(dropout.keys[row])),
            threshold: (dropout.p * 2f64.powi(32)) as u64,
            scale: W::from_f64(1.0 / (1.0 - dropout.p)),
        }
    }

    fn apply(self, column: usize, x: W) -> W {
        let draw = splitmix64(self.row.wrapping_add((column as u64 / 2).wrapping_mul(GOLDEN_GAMMA)));
        let draw = (draw >> (32 * (column % 2))) & 0xffff_ffff;
        if draw < self.threshold { W::ZERO } else { x * self.scale }
    }
}
