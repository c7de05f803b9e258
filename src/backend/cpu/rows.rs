//! Rows moved, converted and added; a task is a stretch of elements or of rows.

use super::Cpu;
use super::context::Context;
use super::kernel::Kernel;
use super::parallel::{each_part, rows};
use super::simd::{self, Element, Float, multiversion};
use super::thread_pool::ThreadPool;
use crate::backend::ops::{
    Cast, GatherAcc, GatherCompute, KvAppend, ResidualFwd, RowOps, ScatterAdd, ScatterAddCompute, Widen, Zero,
};

impl<A: Float> RowOps for Cpu<A> {
    fn zero(&mut self, op: Zero<'_, Self>) {
        let _span = self.begin(&op);
        op.x.fill(A::ZERO);
    }

    fn cast(&mut self, op: Cast<'_, Self>) {
        let _span = self.begin(&op);
        self.run(op);
    }

    fn widen(&mut self, op: Widen<'_, Self>) {
        let _span = self.begin(&op);
        let (exec, x) = (&self.cx.exec, op.x.view());
        each_part(&exec.pool, op.len, 1, rows("widen", op.out, op.len, 1), |from, out| {
            simd::read(exec.isa, out, x, from);
        });
    }

    fn residual_fwd(&mut self, op: ResidualFwd<'_, Self>) {
        let _span = self.begin(&op);
        self.run(op);
    }

    fn gather_compute(&mut self, op: GatherCompute<'_, Self>) {
        let _span = self.begin(&op);
        self.run(op);
    }

    fn gather_acc(&mut self, op: GatherAcc<'_, Self>) {
        let _span = self.begin(&op);
        gather(&self.cx.exec.pool, op.out, op.x, op.rows, op.width);
    }

    fn scatter_add(&mut self, op: ScatterAdd<'_, Self>) {
        let _span = self.begin(&op);
        let ScatterAdd { d_x, d_out, rows, width } = op;
        for (d_out, &row) in d_out.chunks_exact(width).zip(rows) {
            accumulate(self.cx.exec.isa, &mut d_x[row as usize * width..][..width], d_out);
        }
    }

    fn scatter_add_compute(&mut self, op: ScatterAddCompute<'_, Self>) {
        let _span = self.begin(&op);
        self.run(op);
    }

    fn kv_append(&mut self, op: KvAppend<'_, Self>) {
        let _span = self.begin(&op);
        self.run(op);
    }
}

impl<A: Float> Kernel<A> for Cast<'_, Cpu<A>> {
    fn run<C: Element<A>>(self, cx: &mut Context<A>) {
        let Self { out, x, len } = self;
        let exec = &cx.exec;
        each_part(&exec.pool, len, 1, rows("cast", C::slice_mut(out), len, 1), |from, out| {
            simd::narrow(exec.isa, out, &x[from..from + out.len()])
        });
    }
}

impl<A: Float> Kernel<A> for ResidualFwd<'_, Cpu<A>> {
    fn run<C: Element<A>>(self, cx: &mut Context<A>) {
        let Self { out, a, b, len } = self;
        let (exec, b) = (&cx.exec, C::slice(b));
        each_part(&exec.pool, len, 1, rows("residual_fwd", out, len, 1), |from, out| {
            let range = from..from + out.len();
            add(exec.isa, out, &a[range.clone()], &b[range]);
        });
    }
}

impl<A: Float> Kernel<A> for GatherCompute<'_, Cpu<A>> {
    fn run<C: Element<A>>(self, cx: &mut Context<A>) {
        gather(&cx.exec.pool, C::slice_mut(self.out), C::slice(self.x), self.rows, self.width);
    }
}

impl<A: Float> Kernel<A> for ScatterAddCompute<'_, Cpu<A>> {
    fn run<C: Element<A>>(self, cx: &mut Context<A>) {
        let Self { d_x, d_out, rows, width } = self;
        let d_x = C::slice_mut(d_x);
        // What adds up in one row is summed before it is rounded.
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|&i| rows[i]);
        let mut sum = vec![A::ZERO; width];
        for same in order.chunk_by(|&a, &b| rows[a] == rows[b]) {
            let row = &mut d_x[rows[same[0]] as usize * width..][..width];
            simd::widen(cx.exec.isa, &mut sum, row);
            for &i in same {
                accumulate(cx.exec.isa, &mut sum, &d_out[i * width..][..width]);
            }
            simd::narrow(cx.exec.isa, row, &sum);
        }
    }
}

impl<A: Float> Kernel<A> for KvAppend<'_, Cpu<A>> {
    fn run<C: Element<A>>(self, _: &mut Context<A>) {
        let Self { cache, to, x, from, width } = self;
        let cache = &mut C::slice_mut(cache)[to * width..(to + from.len()) * width];
        cache.copy_from_slice(&C::slice(x)[from.start * width..from.end * width]);
    }
}

/// `out [M, width] = x [_, width]` at the rows `from [M]`.
fn gather<T: Copy + Send + Sync>(pool: &ThreadPool, out: &mut [T], x: &[T], from: &[u32], width: usize) {
    each_part(pool, from.len(), width, rows("gather", out, from.len(), width), |first, part| {
        for (out, &row) in part.chunks_exact_mut(width).zip(&from[first..]) {
            out.copy_from_slice(&x[row as usize * width..][..width]);
        }
    });
}

multiversion! {
    fn add[A: Float, C: Element<A>](out: &mut [A], a: &[A], b: &[C]) {
        for ((o, &a), b) in out.iter_mut().zip(a).zip(b) {
            *o = a + b.widen();
        }
    }
}

multiversion! {
    /// `out += x`.
    pub fn accumulate[A: Float](out: &mut [A], x: &[A]) {
        for (o, &x) in out.iter_mut().zip(x) {
            *o += x;
        }
    }
}
