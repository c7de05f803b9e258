//! Buffers taken row by row: casts, sums, gathers and their backward, keeping keys and values.

use std::ops::Range;

use super::context::Exec;
use super::parallel::{each_part, rows};
use super::simd::{self, Element, Float, Isa, multiversion};
use super::thread_pool::ThreadPool;

/// See [`Backend::cast`](crate::backend::Backend::cast).
pub fn cast<W: Float, R: Element<W>>(exec: &Exec, out: &mut [R], x: &[W], len: usize) {
    each_part(&exec.pool, len, 1, rows("cast", out, len, 1), |from, out| {
        simd::narrow(exec.isa, out, &x[from..from + out.len()])
    });
}

/// See [`Backend::widen`](crate::backend::Backend::widen).
pub fn widen<W: Float, R: Element<W>>(exec: &Exec, out: &mut [W], x: &[R], len: usize) {
    each_part(&exec.pool, len, 1, rows("widen", out, len, 1), |from, out| {
        simd::widen(exec.isa, out, &x[from..from + out.len()])
    });
}

/// See [`Backend::residual_fwd`](crate::backend::Backend::residual_fwd).
pub fn residual_fwd<W: Float, R: Element<W>>(exec: &Exec, out: &mut [W], a: &[W], b: &[R], len: usize) {
    each_part(&exec.pool, len, 1, rows("residual_fwd", out, len, 1), |from, out| {
        let range = from..from + out.len();
        add(exec.isa, out, &a[range.clone()], &b[range]);
    });
}

multiversion! {
    fn add[W: Float, R: Element<W>](out: &mut [W], a: &[W], b: &[R]) {
        for ((o, &a), b) in out.iter_mut().zip(a).zip(b) {
            *o = a + b.widen();
        }
    }
}

multiversion! {
    /// `out += x`.
    pub fn accumulate[W: Float](out: &mut [W], x: &[W]) {
        for (o, &x) in out.iter_mut().zip(x) {
            *o += x;
        }
    }
}

/// See [`Backend::gather_compute`](crate::backend::Backend::gather_compute).
pub fn gather<T: Copy + Send + Sync>(pool: &ThreadPool, out: &mut [T], x: &[T], from: &[u32], width: usize) {
    each_part(pool, from.len(), width, rows("gather", out, from.len(), width), |first, part| {
        for (out, &row) in part.chunks_exact_mut(width).zip(&from[first..]) {
            out.copy_from_slice(&x[row as usize * width..][..width]);
        }
    });
}

/// See [`Backend::scatter_add`](crate::backend::Backend::scatter_add).
pub fn scatter_add<W: Float>(isa: Isa, d_x: &mut [W], d_out: &[W], to: &[u32], width: usize) {
    for (d_out, &row) in d_out.chunks_exact(width).zip(to) {
        accumulate(isa, &mut d_x[row as usize * width..][..width], d_out);
    }
}

/// See [`Backend::keep`](crate::backend::Backend::keep).
pub fn keep<R: Copy>(cache: &mut [R], to: usize, x: &[R], from: Range<usize>, width: usize) {
    cache[to * width..(to + from.len()) * width].copy_from_slice(&x[from.start * width..from.end * width]);
}
