//! Embedding: `out = table[token]`, or a row of the run's soft prompt.

use super::context::Exec;
use super::parallel::{each_part, rows};
use super::rows::accumulate;
use super::simd::{Element, Float, Isa};
use super::weight::Weight;
use crate::backend::PromptSite;
use crate::pack::{Pack, Token};

/// Where the prompt row of a virtual token begins.
fn prompt_row(pack: &Pack, row: usize, p: u32, site: PromptSite, width: usize) -> usize {
    let run = pack.run_of(row).unwrap_or_else(|| panic!("embed: row {row} is virtual, but of no run"));
    assert!((p as usize) < site.rows, "embed: virtual token {p} of a prompt of {} rows", site.rows);
    run * site.stride + site.offset + p as usize * width
}

/// See [`Backend::embed_fwd`](crate::backend::Backend::embed_fwd).
pub fn fwd<W: Float, R: Element<W>>(
    exec: &Exec,
    out: &mut [W],
    pack: &Pack,
    table: &Weight<W, R>,
    prompt: Option<(&[W], PromptSite)>,
    width: usize,
) {
    each_part(&exec.pool, pack.len(), width, rows("embed_fwd", out, pack.len(), width), |first, part| {
        for (i, out) in part.chunks_exact_mut(width).enumerate() {
            match pack.tokens()[first + i] {
                Token::Id(id) => table.read(exec.isa, out, id as usize * width),
                Token::Virtual(p) => {
                    let (prompt, site) = prompt.expect("embed_fwd: a pack with virtual tokens needs a prompt");
                    out.copy_from_slice(&prompt[prompt_row(pack, first + i, p, site, width)..][..width]);
                }
            }
        }
    });
}

/// See [`Backend::embed_bwd_prompt`](crate::backend::Backend::embed_bwd_prompt).
pub fn bwd_prompt<W: Float>(isa: Isa, d_prompt: &mut [W], d_out: &[W], pack: &Pack, site: PromptSite, width: usize) {
    for (row, token) in pack.tokens().iter().enumerate() {
        if let Token::Virtual(p) = *token {
            let to = prompt_row(pack, row, p, site, width);
            accumulate(isa, &mut d_prompt[to..to + width], &d_out[row * width..][..width]);
        }
    }
}

/// See [`Backend::embed_bwd_table`](crate::backend::Backend::embed_bwd_table).
pub fn bwd_table<W: Float>(isa: Isa, d_table: &mut [W], offset: usize, d_out: &[W], pack: &Pack, width: usize) {
    for (row, token) in pack.tokens().iter().enumerate() {
        if let Token::Id(id) = *token {
            let to = offset + id as usize * width;
            accumulate(isa, &mut d_table[to..to + width], &d_out[row * width..][..width]);
        }
    }
}
