//! LoRA over stacked runs: stretches of rows of one run are tasks if there are enough of them, or else one after another with
//! all threads on each. The sums of a run's gradients run over its rows in order.

use std::borrow::Cow;
use std::ops::Range;

use super::Cpu;
use super::aligned::AlignedVec;
use super::context::{Context, carve};
use super::gemm::{Gemm, Operand};
use super::isa::Isa;
use super::kernel::Kernel;
use super::parallel::{Shared, each_part, rows, workers};
use super::rows::accumulate;
use super::simd::{self, Element, Float, multiversion};
use crate::backend::HostSlice;
use crate::backend::ops::{Dropout, LoraBwd, LoraDelta, LoraDeltaBwd, LoraFwd, LoraOps, LoraSite, RunRange};
use crate::hash::{column_draw, splitmix64};
use crate::pack::Pack;

impl<A: Float> LoraOps for Cpu<A> {
    fn lora_fwd(&mut self, op: LoraFwd<'_, Self>) {
        let _span = self.begin(&op);
        self.run(op);
    }

    fn lora_bwd(&mut self, op: LoraBwd<'_, Self>) {
        let _span = self.begin(&op);
        let LoraBwd { d_params, accumulate, d_x, d_y, xa, x, params, pack, site, dropout } = op;
        if !accumulate {
            let LoraSite { a, b, stride, rank, input, output, .. } = site;
            for (run, _) in stretches(pack, site).iter() {
                let of_run = &mut d_params[run * stride..][..stride];
                of_run[a..a + rank * input].fill(A::ZERO);
                of_run[b..b + output * rank].fill(A::ZERO);
            }
        }
        let (d_params, d_x) = (Shared::new(d_params), d_x.map(|d_x| Shared::new(d_x)));
        let b = BackwardB { d_params, d_y: d_y.view(), xa, params, site };
        let backward = Backward { b, d_x, x: x.view(), dropout };
        each_run(&mut self.cx, &stretches(pack, site), |gemm, memory, stretch| backward.stretch(gemm, memory, stretch));
    }

    fn lora_delta(&mut self, op: LoraDelta<'_, Self>) {
        let _span = self.begin(&op);
        let LoraDelta { out, xa, params, pack, site } = op;
        let LoraSite { rank, output, .. } = site;
        let scale = A::from_f64(site.scale);
        let out = &mut out[..pack.len() * output];
        out.fill(A::ZERO);
        let out = Shared::new(out);
        each_stretch(&mut self.cx, &stretches(pack, site), |gemm, _, (run, rows)| {
            let left = Operand::new(&xa[rows.start * rank..], rank);
            let right = Operand::new(&params[run * site.stride + site.b..], rank);
            gemm.product([rows.len(), output, rank], left, right, &|row, column, sums| {
                // SAFETY: a stretch has rows of its own, and a product stores every element once.
                let to = unsafe { out.at((rows.start + row) * output + column, sums.len()) };
                to.iter_mut().zip(sums).for_each(|(to, &x)| *to = x * scale);
            });
        });
    }

    fn lora_delta_bwd(&mut self, op: LoraDeltaBwd<'_, Self>) {
        let _span = self.begin(&op);
        let LoraDeltaBwd { d_params, d_xa, d_y, xa, params, pack, site } = op;
        let d_xa = &mut d_xa[..pack.len() * site.rank];
        d_xa.fill(A::ZERO);
        let d_xa = Shared::new(d_xa);
        let b = BackwardB { d_params: Shared::new(d_params), d_y: d_y.view(), xa, params, site };
        each_run(&mut self.cx, &stretches(pack, site), |gemm, _, stretch| {
            let rows = &stretch.1;
            // SAFETY: a stretch has rows of its own.
            b.stretch(gemm, unsafe { d_xa.at(rows.start * site.rank, rows.len() * site.rank) }, stretch);
        });
    }
}

impl<A: Float> Kernel<A> for LoraFwd<'_, Cpu<A>> {
    fn run<C: Element<A>>(self, cx: &mut Context<A>) {
        let Self { y, xa, x, params, pack, site, dropout } = self;
        let LoraSite { rank, input, output, .. } = site;
        xa[..pack.len() * rank].fill(A::ZERO);
        let (y, xa) = (y.map(|y| Shared::new(C::slice_mut(y))), Shared::new(xa));
        each_stretch(cx, &stretches(pack, site), |gemm, memory, stretch| {
            let (isa, (run, rows)) = (gemm.isa(), stretch);
            let adapter = &params[run * site.stride..][..site.stride];
            // SAFETY: a stretch has rows of its own.
            let xa = unsafe { xa.at(rows.start * rank, rows.len() * rank) };
            let x_memory = memory.grow(if dropout.is_some() { rows.len() * input } else { 0 });
            let left = dropped(gemm, x_memory, (x.view(), input), stretch, dropout);
            let shrunk = Shared::new(xa);
            let a = Operand::new(&adapter[site.a..], input);
            gemm.product([rows.len(), rank, input], left, a, &|row, column, sums| {
                // SAFETY: a product stores every element once.
                unsafe { shrunk.at(row * rank + column, sums.len()) }.copy_from_slice(sums);
            });
            let Some(y) = &y else { return };
            let (left, right) = (Operand::new(xa, rank), Operand::new(&adapter[site.b..], rank));
            gemm.product([rows.len(), output, rank], left, right, &|row, column, sums| {
                // SAFETY: as above, and a stretch has rows of its own.
                let y = unsafe { y.at((rows.start + row) * output + column, sums.len()) };
                add_scaled(isa, y, sums, A::from_f64(site.scale));
            });
        });
    }
}

/// What the backward of every stretch has in common, as far as B goes.
struct BackwardB<'a, A> {
    d_params: Shared<'a, A>,
    d_y: HostSlice<'a>,
    xa: &'a [A],
    params: &'a [A],
    site: LoraSite,
}

impl<A: Float> BackwardB<'_, A> {
    /// Adds to a run's parameters from element `to` on.
    fn add(&self, isa: Isa, run: usize, to: usize, sums: &[A], scale: A) {
        // SAFETY: one thread has the run, and a product stores every element once.
        let to = unsafe { self.d_params.at(run * self.site.stride + to, sums.len()) };
        add_scaled(isa, to, sums, scale);
    }

    /// The gradient of B from a stretch of rows of one run, and `d_xa [rows, R] =`. No two threads have stretches of the same
    /// run.
    fn stretch(&self, gemm: &mut Gemm<A>, d_xa: &mut [A], (run, rows): &(usize, Range<usize>)) {
        let LoraSite { rank, output, .. } = self.site;
        let (isa, n, scale) = (gemm.isa(), rows.len(), A::from_f64(self.site.scale));
        let adapter = &self.params[run * self.site.stride..][..self.site.stride];
        let d_y = Operand::host(self.d_y, output).skip(rows.start);
        let xa = Operand::new(&self.xa[rows.start * rank..][..n * rank], rank);
        gemm.product([output, rank, n], d_y.transposed(), xa.transposed(), &|i, j, sums| {
            self.add(isa, *run, self.site.b + i * rank + j, sums, scale);
        });
        let shared = Shared::new(d_xa);
        let right = Operand::new(&adapter[self.site.b..], rank).transposed();
        gemm.product([n, rank, output], d_y, right, &|i, j, sums| {
            // SAFETY: a product stores every element once.
            let to = unsafe { shared.at(i * rank + j, sums.len()) };
            to.iter_mut().zip(sums).for_each(|(to, &x)| *to = x * scale);
        });
    }
}

/// The same of A and the input.
struct Backward<'a, A> {
    b: BackwardB<'a, A>,
    d_x: Option<Shared<'a, A>>,
    x: HostSlice<'a>,
    dropout: Option<Dropout<'a>>,
}

impl<A: Float> Backward<'_, A> {
    /// The gradients of a stretch of rows of one run. No two threads have stretches of the same run.
    fn stretch(&self, gemm: &mut Gemm<A>, memory: &mut AlignedVec<A>, stretch: &(usize, Range<usize>)) {
        let (site, (run, rows)) = (self.b.site, stretch);
        let LoraSite { rank, input, .. } = site;
        let (isa, n) = (gemm.isa(), rows.len());
        let adapter = &self.b.params[run * site.stride..][..site.stride];
        let dropped_len = if self.dropout.is_some() { n * input } else { 0 };
        let [d_xa, x_memory] = carve(memory, [n * rank, dropped_len]);
        self.b.stretch(gemm, d_xa, stretch);
        let left = Operand::new(&*d_xa, rank);
        let right = dropped(gemm, x_memory, (self.x, input), stretch, self.dropout).transposed();
        gemm.product([rank, input, n], left.transposed(), right, &|i, j, sums| {
            self.b.add(isa, *run, site.a + i * input + j, sums, A::ONE);
        });
        let Some(d_x) = &self.d_x else { return };
        let right = Operand::new(&adapter[site.a..], input).transposed();
        gemm.product([n, input, rank], left, right, &|i, j, sums| {
            // SAFETY: a stretch has rows of its own, and a product stores every element once.
            let to = unsafe { d_x.at((rows.start + i) * input + j, sums.len()) };
            match self.dropout {
                None => accumulate(isa, to, sums),
                Some(dropout) => add_survivors(to, sums, Mask::new(dropout, *run, rows.start + i), j),
            }
        });
    }
}

/// The stretches of rows of one run each, of the runs that have the site.
fn stretches(pack: &Pack, site: LoraSite) -> Cow<'_, [(usize, Range<usize>)]> {
    match site.runs {
        RunRange::ALL => pack.runs().into(),
        runs => pack.runs().iter().filter(|(run, _)| runs.contains(*run)).cloned().collect(),
    }
}

/// Handles all items, side by side if there are enough, or else one after another with all threads on each.
fn each_stretch<A: Float, T: Sync>(
    cx: &mut Context<A>,
    items: &[T],
    f: impl Fn(&mut Gemm<A>, &mut AlignedVec<A>, &T) + Sync,
) {
    if items.len() < 2 * cx.tasks.len() {
        items.iter().for_each(|item| f(&mut cx.gemm, &mut cx.memory, item));
    } else {
        workers(&cx.exec.pool, &mut cx.tasks, items.len(), |task, i| f(&mut task.gemm, &mut task.memory, &items[i]));
    }
}

/// Handles the stretches of all runs, those of one run one after another on one thread.
fn each_run<A: Float>(
    cx: &mut Context<A>,
    stretches: &[(usize, Range<usize>)],
    f: impl Fn(&mut Gemm<A>, &mut AlignedVec<A>, &(usize, Range<usize>)) + Sync,
) {
    let mut runs: Vec<usize> = stretches.iter().map(|(run, _)| *run).collect();
    runs.sort_unstable();
    runs.dedup();
    each_stretch(cx, &runs, |gemm, memory, run| {
        stretches.iter().filter(|(r, _)| r == run).for_each(|stretch| f(gemm, memory, stretch));
    });
}

multiversion! {
    fn add_scaled[A: Float, S: Element<A>](out: &mut [S], x: &[A], scale: A) {
        for (o, &x) in out.iter_mut().zip(x) {
            *o = S::narrow(o.widen() + x * scale);
        }
    }
}

/// The rows of `x` after dropout: in place if there is none, in `memory` otherwise.
fn dropped<'a, A: Float>(
    gemm: &Gemm<A>,
    memory: &'a mut [A],
    (x, width): (HostSlice<'a>, usize),
    (run, span): &(usize, Range<usize>),
    dropout: Option<Dropout<'_>>,
) -> Operand<'a, A> {
    let Some(dropout) = dropout else { return Operand::host(x, width).skip(span.start) };
    let out = memory;
    let isa = gemm.isa();
    each_part(gemm.pool(), span.len(), width, rows("lora", &mut *out, span.len(), width), |first, part| {
        for (i, out) in part.chunks_exact_mut(width).enumerate() {
            let row = first + i;
            simd::read(isa, out, x, (span.start + row) * width);
            let mask = Mask::<A>::new(dropout, *run, span.start + row);
            out.iter_mut().enumerate().for_each(|(column, x)| *x = mask.apply(column, *x));
        }
    });
    Operand::new(&*out, width)
}

fn add_survivors<A: Float>(out: &mut [A], x: &[A], mask: Mask<A>, column: usize) {
    out.iter_mut().zip(x).enumerate().for_each(|(i, (o, &x))| *o += mask.apply(column + i, x));
}

/// Which columns of a row survive, by their [`column_draw`].
#[derive(Clone, Copy)]
struct Mask<A> {
    row: u64,
    threshold: u64,
    scale: A,
}

impl<A: Float> Mask<A> {
    fn new(dropout: Dropout<'_>, run: usize, row: usize) -> Self {
        let key = splitmix64(splitmix64(dropout.seeds[run]) ^ dropout.site);
        Self {
            row: splitmix64(key ^ u64::from(dropout.keys[row])),
            threshold: (dropout.p * 2f64.powi(32)) as u64,
            scale: A::from_f64(1.0 / (1.0 - dropout.p)),
        }
    }

    fn apply(self, column: usize, x: A) -> A {
        if u64::from(column_draw(self.row, column)) < self.threshold { A::ZERO } else { x * self.scale }
    }
}
