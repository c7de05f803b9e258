//! Learned scales: norms by rows of the weight; rows of a run are tasks forward, columns backward, so that each sum runs over
//! the rows in order.

use std::ops::Range;

use super::Cpu;
use super::context::Context;
use super::kernel::Kernel;
use super::parallel::{Shared, Split, each_part, rows};
use super::simd::{Element, Float, multiversion, sum};
use crate::backend::TensorMut;
use crate::backend::ops::{LoraSite, RunRange, ScaleBwd, ScaleDelta, ScaleFwd, ScaleOps, ScaleSite, WeightNorm};
use crate::pack::Pack;

/// Columns of a weight's row that are summed together: with those of A they stay in the first cache.
const COLUMNS: usize = 256;
/// Columns of the gradient that are summed together, as in the layer norm.
const SUMMED: usize = 64;

impl<A: Float> ScaleOps for Cpu<A> {
    fn weight_norm(&mut self, op: WeightNorm<'_, Self>) {
        let _span = self.begin(&op);
        let WeightNorm { norms, weight, params, site, to, runs } = op;
        let LoraSite { rank, input, output, .. } = site;
        let exec = &self.cx.exec;
        for run in (0..runs).filter(|&run| site.runs.contains(run)) {
            let adapter = &params[run * site.stride..][..site.stride];
            let norms = &mut norms[run * to.stride + to.at..][..output];
            each_part(&exec.pool, output, input * (rank + 1), rows("weight_norm", norms, output, 1), |first, norms| {
                for (i, norm) in norms.iter_mut().enumerate() {
                    let row = first + i;
                    let (a, b) = (&adapter[site.a..], &adapter[site.b + row * rank..][..rank]);
                    let (mut squares, mut w) = (A::ZERO, [A::ZERO; COLUMNS]);
                    for from in (0..input).step_by(COLUMNS) {
                        let w = &mut w[..COLUMNS.min(input - from)];
                        weight.read(exec.isa, w, row * input + from);
                        squares += adapted_squares(exec.isa, w, &a[from..], b, input, A::from_f64(site.scale));
                    }
                    *norm = squares.sqrt();
                }
            });
        }
    }

    fn scale_fwd(&mut self, op: ScaleFwd<'_, Self>) {
        let _span = self.begin(&op);
        self.run(op);
    }

    fn scale_bwd(&mut self, op: ScaleBwd<'_, Self>) {
        let _span = self.begin(&op);
        self.run(op);
    }

    fn scale_delta(&mut self, op: ScaleDelta<'_, Self>) {
        let _span = self.begin(&op);
        self.run(op);
    }
}

multiversion! {
    /// The sum of the squares of `w + scale b A` in some columns; `w` is changed.
    fn adapted_squares[A: Float](w: &mut [A], a: &[A], b: &[A], input: usize, scale: A) -> A {
        let mut delta = [A::ZERO; COLUMNS];
        let delta = &mut delta[..w.len()];
        for (r, &b) in b.iter().enumerate() {
            let a = &a[r * input..][..w.len()];
            for (d, &a) in delta.iter_mut().zip(a) {
                *d += b * a;
            }
        }
        for (w, &d) in w.iter_mut().zip(&*delta) {
            *w += scale * d;
        }
        sum(w.len(), |i| w[i] * w[i])
    }
}

/// The factors and the norms of a run.
struct Factors<'a, A> {
    params: &'a [A],
    norms: Option<&'a [A]>,
    site: ScaleSite,
}

impl<'a, A: Float> Factors<'a, A> {
    /// The parameters of a run `[width]`, and what they are divided by.
    fn of(&self, run: usize) -> (&'a [A], Option<&'a [A]>) {
        let ScaleSite { at, stride, width, norms, .. } = self.site;
        let norms = self.norms.zip(norms).map(|(norms, site)| &norms[run * site.stride + site.at..][..width]);
        (&self.params[run * stride + at..][..width], norms)
    }
}

/// `f` of some columns.
fn factors<A: Float>(out: &mut [A], (params, norms): (&[A], Option<&[A]>)) {
    out.copy_from_slice(params);
    if let Some(norms) = norms {
        out.iter_mut().zip(norms).for_each(|(f, &norm)| *f = *f / norm);
    }
}

/// The stretches of rows of one run each, of the runs that have the site.
fn stretches(pack: &Pack, runs: RunRange) -> impl Iterator<Item = &(usize, Range<usize>)> {
    pack.runs().iter().filter(move |(run, _)| runs.contains(*run))
}

impl<A: Float> Kernel<A> for ScaleFwd<'_, Cpu<A>> {
    fn run<C: Element<A>>(self, cx: &mut Context<A>) {
        let Self { y, unscaled, params, norms, bias, pack, site } = self;
        let (y, mut unscaled, width) = (C::slice_mut(y), unscaled.map(|x| C::slice_mut(x)), site.width);
        let all = Factors { params, norms: norms.map(Vec::as_slice), site };
        let Context { exec, memory, .. } = cx;
        let (f, bias_values) = memory.grow(2 * width).split_at_mut(width);
        bias_values.fill(A::ZERO);
        if let Some(bias) = bias {
            bias.read(exec.isa, bias_values, 0);
        }
        for (run, span) in stretches(pack, site.runs) {
            factors(f, all.of(*run));
            let (f, bias, part) = (&*f, &*bias_values, span.start * width..span.end * width);
            let y = rows("scale_fwd", &mut y[part.clone()], span.len(), width);
            match &mut unscaled {
                None => each_part(&exec.pool, span.len(), width, y, |_, y| scale_rows(exec.isa, y, f, bias)),
                Some(unscaled) => {
                    let unscaled = rows("scale_fwd", &mut unscaled[part], span.len(), width);
                    each_part(&exec.pool, span.len(), width, (y, unscaled), |_, (y, unscaled)| {
                        fwd_rows(exec.isa, y, unscaled, f, bias);
                    });
                }
            }
        }
    }
}

multiversion! {
    fn scale_rows[A: Float, C: Element<A>](y: &mut [C], f: &[A], bias: &[A]) {
        for y in y.chunks_exact_mut(f.len()) {
            for i in 0..f.len() {
                y[i] = C::narrow(f[i] * (y[i].widen() - bias[i]) + bias[i]);
            }
        }
    }
}

multiversion! {
    fn fwd_rows[A: Float, C: Element<A>](y: &mut [C], unscaled: &mut [C], f: &[A], bias: &[A]) {
        let width = f.len();
        for (y, unscaled) in y.chunks_exact_mut(width).zip(unscaled.chunks_exact_mut(width)) {
            for i in 0..width {
                let x = y[i].widen() - bias[i];
                unscaled[i] = C::narrow(x);
                y[i] = C::narrow(f[i] * x + bias[i]);
            }
        }
    }
}

impl<A: Float> Kernel<A> for ScaleBwd<'_, Cpu<A>> {
    fn run<C: Element<A>>(self, cx: &mut Context<A>) {
        let Self { d_params, d_y, unscaled, params, norms, pack, site } = self;
        let backward = Backward {
            d_params: &mut d_params[..],
            unscaled: C::slice(unscaled),
            all: Factors { params, norms: norms.map(Vec::as_slice), site },
            pack,
        };
        match d_y {
            TensorMut::Acc(d_y) => backward.run(cx, &mut d_y[..]),
            TensorMut::Compute(d_y) => backward.run(cx, C::slice_mut(d_y)),
        }
    }
}

/// What the backward has for gradients of either dtype.
struct Backward<'a, A, C> {
    d_params: &'a mut [A],
    unscaled: &'a [C],
    all: Factors<'a, A>,
    pack: &'a Pack,
}

/// Columns that are a task: each part is the numbers of its columns.
struct Columns(Range<usize>);

impl Split for Columns {
    type Part = Range<usize>;
    fn split(self, row: usize) -> (Self, Self) {
        let Range { start, end } = self.0;
        (Self(start..start + row), Self(start + row..end))
    }
    fn part(self) -> Range<usize> {
        self.0
    }
}

impl<A: Float, C: Element<A>> Backward<'_, A, C> {
    fn run<D: Element<A>>(self, cx: &mut Context<A>, d_y: &mut [D]) {
        let Self { d_params, unscaled, all, pack } = self;
        let (site, width) = (all.site, all.site.width);
        let d_y = Shared::new(d_y);
        for (run, span) in stretches(pack, site.runs) {
            let (params, norms) = all.of(*run);
            let d_params = Shared::new(&mut d_params[run * site.stride + site.at..][..width]);
            let unscaled = &unscaled[span.start * width..span.end * width];
            each_part(&cx.exec.pool, width, span.len(), Columns(0..width), |_, columns| {
                for from in columns.clone().step_by(SUMMED) {
                    let to = columns.end.min(from + SUMMED);
                    let (mut f, mut sums) = ([A::ZERO; SUMMED], [A::ZERO; SUMMED]);
                    let (f, sums) = (&mut f[..to - from], &mut sums[..to - from]);
                    factors(f, (&params[from..to], norms.map(|norms| &norms[from..to])));
                    for row in 0..span.len() {
                        // SAFETY: one thread has the columns.
                        let d_y = unsafe { d_y.at((span.start + row) * width + from, to - from) };
                        bwd_row(cx.exec.isa, d_y, sums, &unscaled[row * width + from..], f);
                    }
                    // SAFETY: as above.
                    let d_params = unsafe { d_params.at(from, to - from) };
                    for (i, (d, &sum)) in d_params.iter_mut().zip(&*sums).enumerate() {
                        *d += norms.map_or(sum, |norms| sum / norms[from + i]);
                    }
                }
            });
        }
    }
}

multiversion! {
    fn bwd_row[A: Float, C: Element<A>, D: Element<A>](d_y: &mut [D], sums: &mut [A], unscaled: &[C], f: &[A]) {
        for (i, d_y) in d_y.iter_mut().enumerate() {
            let d = d_y.widen();
            sums[i] += d * unscaled[i].widen();
            *d_y = D::narrow(f[i] * d);
        }
    }
}

impl<A: Float> Kernel<A> for ScaleDelta<'_, Cpu<A>> {
    fn run<C: Element<A>>(self, cx: &mut Context<A>) {
        let Self { out, unscaled, params, norms, pack, site } = self;
        let (unscaled, width) = (C::slice(unscaled), site.width);
        let all = Factors { params, norms: norms.map(Vec::as_slice), site };
        let Context { exec, memory, .. } = cx;
        let f = memory.grow(width);
        for (run, span) in stretches(pack, site.runs) {
            factors(f, all.of(*run));
            let part = span.start * width..span.end * width;
            delta_rows(exec.isa, &mut out[part.clone()], &unscaled[part], f);
        }
    }
}

multiversion! {
    fn delta_rows[A: Float, C: Element<A>](out: &mut [A], unscaled: &[C], f: &[A]) {
        for (out, unscaled) in out.chunks_exact_mut(f.len()).zip(unscaled.chunks_exact(f.len())) {
            for i in 0..f.len() {
                out[i] += (f[i] - A::ONE) * unscaled[i].widen();
            }
        }
    }
}
