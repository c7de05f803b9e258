//! What the null device asserts about lengths and dimensions, always with the operation and both numbers.

use super::{NullAcc, NullCompute, NullWeight};
use crate::backend::{AdamwStep, AttentionDims, Dropout, LinearDims, LoraSite, PromptSite};
use crate::pack::{Pack, Token};

/// Asserts that a buffer holds what `op` needs of it.
#[track_caller]
pub(super) fn need(op: &'static str, what: &str, has: usize, wanted: usize) {
    assert!(has >= wanted, "{op}: {what} has {has} elements, needs {wanted}");
}

/// Asserts that several buffers hold what `op` needs of each.
#[track_caller]
pub(super) fn needs(op: &'static str, wanted: usize, buffers: &[(&str, usize)]) {
    buffers.iter().for_each(|&(what, has)| need(op, what, has, wanted));
}

/// Asserts that two numbers agree.
#[track_caller]
pub(super) fn same(op: &'static str, what: &str, has: usize, wanted: usize) {
    assert!(has == wanted, "{op}: {what} is {has}, must be {wanted}");
}

/// Asserts that a number is below its bound.
#[track_caller]
pub(super) fn below(op: &'static str, what: &str, has: usize, bound: usize) {
    assert!(has < bound, "{op}: {what} is {has}, must be below {bound}");
}

/// How many runs the pack's highest run number asks for.
pub(super) fn runs(pack: &Pack) -> usize {
    pack.runs().iter().map(|(run, _)| run + 1).max().unwrap_or(0)
}

/// Rows of the cache that the pack's paths reach.
pub(super) fn cached_rows(pack: &Pack) -> usize {
    let spans = (0..pack.segments().len()).flat_map(|g| pack.path(g));
    spans.filter(|s| s.kept).map(|s| s.rows.end).max().unwrap_or(0)
}

pub(super) fn check_heads(op: &'static str, dims: AttentionDims) {
    assert!(
        dims.kv_heads > 0 && dims.heads.is_multiple_of(dims.kv_heads),
        "{op}: {} heads, must be a multiple of the {} key-value heads",
        dims.heads,
        dims.kv_heads
    );
    assert!(dims.window != Some(0), "{op}: window is 0, must be at least 1");
}

pub(super) fn check_steps(op: &'static str, steps: &[AdamwStep]) {
    for step in steps.iter().filter(|s| s.active) {
        assert!(step.step > 0, "{op}: step is {}, must be at least 1", step.step);
    }
}

pub(super) fn check_tokens(op: &'static str, pack: &Pack, table: usize, prompted: bool, width: usize) {
    for token in pack.tokens() {
        match token {
            Token::Id(t) => need(op, "table", table, (*t as usize + 1) * width),
            Token::Virtual(p) => assert!(prompted, "{op}: virtual token {p} and no prompt"),
        }
    }
}

pub(super) fn check_virtual(op: &'static str, pack: &Pack, site: PromptSite, width: usize, params: usize) {
    need(op, "a run of the prompt", site.stride, site.offset + site.rows * width);
    let virtual_rows = pack.tokens().iter().enumerate().filter_map(|(row, token)| match token {
        Token::Virtual(p) => Some((row, *p as usize)),
        Token::Id(_) => None,
    });
    for (row, p) in virtual_rows {
        below(op, "a virtual token", p, site.rows);
        let run = pack.run_of(row);
        let run = run.unwrap_or_else(|| panic!("{op}: row {row} is virtual token {p} of no run"));
        need(op, "prompt", params, (run + 1) * site.stride);
    }
}

pub(super) fn check_site(op: &'static str, site: LoraSite, params: usize, pack: &Pack) {
    need(op, "a run of the parameters (A)", site.stride, site.a + site.rank * site.input);
    need(op, "a run of the parameters (B)", site.stride, site.b + site.output * site.rank);
    need(op, "params", params, runs(pack) * site.stride);
}

pub(super) fn check_dropout(op: &'static str, dropout: Option<Dropout<'_>>, pack: &Pack) {
    if let Some(d) = dropout {
        assert!((0.0..1.0).contains(&d.p), "{op}: dropout is {}, must be in [0, 1)", d.p);
        need(op, "dropout seeds", d.seeds.len(), runs(pack));
        need(op, "dropout keys", d.keys.len(), pack.len());
    }
}

/// The checks that `linear_fwd` and `logits_fwd` share.
pub(super) fn product(op: &'static str, out: usize, x: usize, weight: NullWeight, dims: LinearDims) {
    need(op, "out", out, dims.rows * dims.output);
    need(op, "x", x, dims.rows * dims.input);
    same(op, "the weight's length", weight.0, dims.output * dims.input);
}

/// The checks that both gathers and the scatter share: `many` are the rows read or written out of order.
pub(super) fn rows_of(op: &'static str, many: usize, few: usize, rows: &[u32], width: usize) {
    need(op, "the selection", few, rows.len() * width);
    need(op, "the whole", many, rows.iter().max().map_or(0, |&r| (r as usize + 1) * width));
}

/// The checks that the forward and the backward of the cross-entropy share.
pub(super) fn labels(
    op: &'static str,
    loss: NullAcc,
    x: NullCompute,
    head: NullWeight,
    targets: &[u32],
    dims: LinearDims,
) {
    need(op, "loss", loss.0, dims.rows);
    need(op, "x", x.0, dims.rows * dims.input);
    same(op, "the head's length", head.0, dims.output * dims.input);
    need(op, "targets", targets.len(), dims.rows);
    targets.iter().for_each(|&t| below(op, "a target", t as usize, dims.output));
}
