//! What operations assert about their arguments, always with the operation's name and both numbers.

use crate::backend::{Buffers, DeviceIndex};
use crate::pack::Pack;

/// Asserts that a buffer holds at least what `op` needs of it.
#[track_caller]
pub fn need(op: &'static str, what: &str, has: usize, wanted: usize) {
    assert!(has >= wanted, "{op}: {what} has {has} elements, needs {wanted}");
}

/// Asserts that several buffers hold at least as much each.
#[track_caller]
pub fn needs(op: &'static str, wanted: usize, buffers: &[(&str, usize)]) {
    buffers.iter().for_each(|&(what, has)| need(op, what, has, wanted));
}

/// Asserts that two numbers agree.
#[track_caller]
pub fn same(op: &'static str, what: &str, has: usize, wanted: usize) {
    assert!(has == wanted, "{op}: {what} is {has}, must be {wanted}");
}

/// Asserts that a number is below its bound.
#[track_caller]
pub fn below(op: &'static str, what: &str, has: usize, bound: usize) {
    assert!(has < bound, "{op}: {what} is {has}, must be below {bound}");
}

/// Asserts that a soft cap can be divided by.
#[track_caller]
pub fn softcap(op: &'static str, cap: Option<f64>) {
    if let Some(cap) = cap {
        assert!(cap > 0.0, "{op}: a soft cap is {cap}, must be above 0");
    }
}

/// One more than the highest run of the pack; 0 if all its rows are the base model's.
pub fn runs(pack: &Pack) -> usize {
    pack.runs().iter().map(|(run, _)| run + 1).max().unwrap_or(0)
}

/// Asserts that a selection of rows `[M, width]` and the whole `[N, width]` reach as far as `rows [M]` say.
#[track_caller]
pub fn selected<B: Buffers + ?Sized>(op: &'static str, [whole, selection]: [usize; 2], rows: &B::Index, width: usize) {
    need(op, "the selection", selection, rows.len() * width);
    need(op, "the whole", whole, rows.bound() * width);
}
