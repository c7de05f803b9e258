//! Embedding with soft-prompt rows.

use super::context::{Context, Kernel};
use super::launch::{floats, int, long, real, table, wide, wide_at};
use super::memory::Buffer;
use super::pack::Pack;
use super::rows::each;
use crate::backend::PromptSite;
use crate::pack::Token;

const FILE: &str = "embed";

fn ids(pack: &Pack) -> usize {
    let ids = pack.host.tokens().iter().map(|token| match token {
        Token::Id(id) => *id as usize + 1,
        Token::Virtual(_) => 0,
    });
    ids.max().unwrap_or(0)
}

fn prompt_rows(op: &'static str, pack: &Pack, rows: usize) -> bool {
    let virtual_rows = pack.host.tokens().iter().filter_map(|token| match token {
        Token::Virtual(p) => Some(*p as usize),
        Token::Id(_) => None,
    });
    let most = virtual_rows.map(|p| p + 1).max().unwrap_or(0);
    assert!(most <= rows, "{op}: virtual tokens up to {most}, the prompt has {rows} rows");
    most > 0
}

/// See [`Backend::embed_fwd`](crate::backend::Backend::embed_fwd).
pub fn fwd<R>(
    cx: &mut Context,
    out: &Buffer<f32>,
    pack: &Pack,
    weight: &Buffer<R>,
    prompt: Option<(&Buffer<f32>, PromptSite)>,
    width: usize,
) {
    let op = "embed_fwd";
    out.need(op, "out", pack.len() * width);
    weight.need(op, "table", ids(pack) * width);
    if prompt_rows(op, pack, prompt.map_or(0, |(_, site)| site.rows))
        && let Some((params, site)) = prompt
    {
        params.need(op, "prompt", pack.runs() * site.stride);
    }
    let (params, stride, offset) =
        prompt.map_or((floats(0), 0, 0), |(params, site)| (wide(params), site.stride, site.offset));
    let args = [
        wide(out),
        real(weight),
        params,
        table(pack.tokens()),
        table(pack.run()),
        int(pack.len()),
        int(width),
        long(stride),
        long(offset),
    ];
    cx.launch(op, Kernel::new(FILE, op), each(pack.len()), &args);
}

/// See [`Backend::embed_bwd_prompt`](crate::backend::Backend::embed_bwd_prompt).
pub fn bwd_prompt(
    cx: &mut Context,
    d_prompt: &Buffer<f32>,
    d_out: &Buffer<f32>,
    pack: &Pack,
    site: PromptSite,
    width: usize,
) {
    let op = "embed_bwd_prompt";
    d_out.need(op, "d_out", pack.len() * width);
    if prompt_rows(op, pack, site.rows) {
        d_prompt.need(op, "d_prompt", pack.runs() * site.stride);
    }
    let groups = pack.by_prompt();
    let args = [
        wide(d_prompt),
        wide(d_out),
        table(groups.ids),
        table(groups.runs),
        table(groups.starts),
        table(groups.order),
        int(groups.count),
        int(width),
        long(site.stride),
        long(site.offset),
    ];
    cx.launch(op, Kernel::new(FILE, op), each(groups.count), &args);
}

/// See [`Backend::embed_bwd_table`](crate::backend::Backend::embed_bwd_table).
pub fn bwd_table(
    cx: &mut Context,
    d_table: &Buffer<f32>,
    offset: usize,
    d_out: &Buffer<f32>,
    pack: &Pack,
    width: usize,
) {
    let op = "embed_bwd_table";
    d_table.need(op, "d_table", offset + ids(pack) * width);
    d_out.need(op, "d_out", pack.len() * width);
    let groups = pack.by_token();
    let args = [
        wide_at(d_table, offset),
        wide(d_out),
        table(groups.ids),
        table(groups.starts),
        table(groups.order),
        int(groups.count),
        int(width),
    ];
    cx.launch(op, Kernel::new(FILE, op), each(groups.count), &args);
}
