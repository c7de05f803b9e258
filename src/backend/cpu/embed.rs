//! Embedding; a task is some rows of the forward, and the backward adds row by row, in order.

use super::Cpu;
use super::parallel::{each_part, rows};
use super::rows::accumulate;
use super::simd::{Float, Isa, multiversion, rounding};
use crate::backend::ops::{EmbedBwdPrompt, EmbedBwdTable, EmbedFwd, EmbedOps, PromptSite};
use crate::pack::{Pack, Token};

/// Where the prompt row of a virtual token begins.
fn prompt_row(pack: &Pack, row: usize, p: u32, site: PromptSite, width: usize) -> usize {
    let run = pack.run_of(row).unwrap_or_else(|| panic!("embed: row {row} is virtual, but of no run"));
    run * site.stride + site.offset + p as usize * width
}

impl<A: Float> EmbedOps for Cpu<A> {
    fn embed_fwd(&mut self, op: EmbedFwd<'_, Self>) {
        let _span = self.begin(&op);
        let EmbedFwd { out, pack, table, prompt, width, scale } = op;
        let (exec, round) = (&self.cx.exec, rounding::<A>(self.dtype));
        let scale = (scale != 1.0).then(|| rounded(exec.isa, round, scale));
        each_part(&exec.pool, pack.len(), width, rows("embed_fwd", out, pack.len(), width), |first, part| {
            for (i, out) in part.chunks_exact_mut(width).enumerate() {
                match pack.tokens()[first + i] {
                    Token::Id(id) => {
                        table.read(exec.isa, out, id as usize * width);
                        if let Some(scale) = scale {
                            multiply(exec.isa, out, scale);
                            round(exec.isa, out);
                        }
                    }
                    Token::Virtual(p) => {
                        let (prompt, site) = prompt.expect("embed_fwd: a pack with virtual tokens needs a prompt");
                        out.copy_from_slice(&prompt[prompt_row(pack, first + i, p, site, width)..][..width]);
                    }
                }
            }
        });
    }

    fn embed_bwd_prompt(&mut self, op: EmbedBwdPrompt<'_, Self>) {
        let _span = self.begin(&op);
        let EmbedBwdPrompt { d_prompt, d_out, pack, site, width } = op;
        for (row, token) in pack.tokens().iter().enumerate() {
            if let Token::Virtual(p) = *token {
                let to = prompt_row(pack, row, p, site, width);
                accumulate(self.cx.exec.isa, &mut d_prompt[to..to + width], &d_out[row * width..][..width]);
            }
        }
    }

    fn embed_bwd_table(&mut self, op: EmbedBwdTable<'_, Self>) {
        let _span = self.begin(&op);
        let EmbedBwdTable { d_table, offset, d_out, pack, width, scale } = op;
        let isa = self.cx.exec.isa;
        let scale = (scale != 1.0).then(|| rounded(isa, rounding(self.dtype), scale));
        let mut scaled = vec![A::ZERO; if scale.is_some() { width } else { 0 }];
        for (row, token) in pack.tokens().iter().enumerate() {
            if let Token::Id(id) = *token {
                let to = offset + id as usize * width;
                let mut d_row = &d_out[row * width..][..width];
                if let Some(scale) = scale {
                    scaled.copy_from_slice(d_row);
                    multiply(isa, &mut scaled, scale);
                    d_row = &scaled;
                }
                accumulate(isa, &mut d_table[to..to + width], d_row);
            }
        }
    }
}

/// A number, rounded to the compute dtype.
fn rounded<A: Float>(isa: Isa, round: fn(Isa, &mut [A]), x: f64) -> A {
    let mut x = [A::from_f64(x)];
    round(isa, &mut x);
    x[0]
}

multiversion! {
    /// `x *= by`.
    fn multiply[A: Float](x: &mut [A], by: A) {
        for x in x {
            *x = *x * by;
        }
    }
}
