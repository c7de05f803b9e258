//! Embedding: a row is that of its token in the table, or that of its number in its run's soft prompt (Lester et al. 2021).

use super::check::{below, need};
use super::{Op, Work, operations};
use crate::backend::{Buffers, DevicePack, Len};
use crate::pack::{Pack, Token};

/// Where a soft prompt lies inside the flat parameters `[runs, stride]`: P rows of width E from `offset` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptSite {
    /// Offset of the prompt within a run.
    pub offset: usize,
    /// Elements of a run.
    pub stride: usize,
    /// Rows P of each run.
    pub rows: usize,
}

impl PromptSite {
    /// Asserts that the virtual tokens of a pack are rows of prompts that `params` elements hold.
    #[track_caller]
    fn check(self, op: &'static str, pack: &Pack, width: usize, params: usize) {
        need(op, "a run of the prompt", self.stride, self.offset + self.rows * width);
        for (row, token) in pack.tokens().iter().enumerate() {
            let Token::Virtual(p) = *token else { continue };
            below(op, "a virtual token", p as usize, self.rows);
            let run = pack.run_of(row).unwrap_or_else(|| panic!("{op}: row {row} is virtual token {p} of no run"));
            need(op, "prompt", params, (run + 1) * self.stride);
        }
    }
}

/// Rows of a pack that are virtual tokens.
fn virtual_rows(pack: &Pack) -> usize {
    pack.tokens().iter().filter(|token| matches!(token, Token::Virtual(_))).count()
}

/// `out [N, E] =` the table's row of each token times `scale`, rounded to the compute dtype, or for virtual token `p` of run
/// `r` the row at element `r * stride + offset + p * E` of the prompts.
pub struct EmbedFwd<'a, B: Buffers + ?Sized> {
    /// `[N, E]`, set.
    pub out: &'a mut B::Acc,
    /// The N tokens, with the runs of virtual ones.
    pub pack: &'a B::Pack,
    /// `[V, E]`.
    pub table: &'a B::Weight,
    /// `[runs, stride]`, and where the prompt lies in it; needed if the pack has virtual tokens.
    pub prompt: Option<(&'a B::Acc, PromptSite)>,
    /// Elements of a row of the embedding table, E.
    pub width: usize,
    /// What the table's rows are multiplied by, itself rounded to the compute dtype; 1 leaves them as they are.
    pub scale: f64,
}

impl<B: Buffers + ?Sized> Op for EmbedFwd<'_, B> {
    const NAME: &'static str = "embed_fwd";

    fn check(&self) {
        let (op, pack) = (Self::NAME, self.pack.host());
        need(op, "out", self.out.len(), pack.len() * self.width);
        for token in pack.tokens() {
            match token {
                Token::Id(id) => need(op, "table", self.table.len(), (*id as usize + 1) * self.width),
                Token::Virtual(p) => assert!(self.prompt.is_some(), "{op}: virtual token {p} and no prompt"),
            }
        }
        if let Some((params, site)) = self.prompt {
            site.check(op, pack, self.width, params.len());
        }
    }

    fn work(&self) -> Work {
        let pack = self.pack.host();
        let (rows, soft) = (pack.len(), virtual_rows(pack));
        Work::moved((rows + soft) * self.width, 0, (rows - soft) * self.width)
    }
}

/// `d_prompt [runs, stride] +=` the rows of `d_out [N, E]` at virtual tokens, in row order.
pub struct EmbedBwdPrompt<'a, B: Buffers + ?Sized> {
    /// `[runs, stride]`, added to.
    pub d_prompt: &'a mut B::Acc,
    /// `[N, E]`.
    pub d_out: &'a B::Acc,
    /// The N tokens, with the runs of virtual ones.
    pub pack: &'a B::Pack,
    /// Where the prompts lie in the parameters.
    pub site: PromptSite,
    /// Elements of a row of the embedding table, E.
    pub width: usize,
}

impl<B: Buffers + ?Sized> Op for EmbedBwdPrompt<'_, B> {
    const NAME: &'static str = "embed_bwd_prompt";

    fn check(&self) {
        let pack = self.pack.host();
        need(Self::NAME, "d_out", self.d_out.len(), pack.len() * self.width);
        self.site.check(Self::NAME, pack, self.width, self.d_prompt.len());
    }

    fn work(&self) -> Work {
        Work::moved(3 * virtual_rows(self.pack.host()) * self.width, 0, 0)
    }
}

/// `d_table [V, E] (from element `offset` on) +=` the rows of `d_out [N, E]` times `scale` at the rows' tokens, in row
/// order.
pub struct EmbedBwdTable<'a, B: Buffers + ?Sized> {
    /// `[V, E]` from element `offset` on, added to.
    pub d_table: &'a mut B::Acc,
    /// Where the table's gradient begins.
    pub offset: usize,
    /// `[N, E]`.
    pub d_out: &'a B::Acc,
    /// The N tokens, with the runs of virtual ones.
    pub pack: &'a B::Pack,
    /// Elements of a row of the embedding table, E.
    pub width: usize,
    /// The same as in the forward.
    pub scale: f64,
}

impl<B: Buffers + ?Sized> Op for EmbedBwdTable<'_, B> {
    const NAME: &'static str = "embed_bwd_table";

    fn check(&self) {
        let pack = self.pack.host();
        need(Self::NAME, "d_out", self.d_out.len(), pack.len() * self.width);
        for token in pack.tokens() {
            if let Token::Id(id) = token {
                need(Self::NAME, "d_table", self.d_table.len(), self.offset + (*id as usize + 1) * self.width);
            }
        }
    }

    fn work(&self) -> Work {
        let pack = self.pack.host();
        Work::moved(3 * (pack.len() - virtual_rows(pack)) * self.width, 0, 0)
    }
}

operations! {
    /// Embedding, forward and backward.
    EmbedOps {
        embed_fwd(EmbedFwd);
        embed_bwd_prompt(EmbedBwdPrompt);
        embed_bwd_table(EmbedBwdTable);
    }
}
