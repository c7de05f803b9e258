//! Embedding with soft-prompt rows.

use super::launch::{Arg, Kernel, LaunchDims, Param, acc, acc_at, compute, float, int, long, table};
use super::{Cuda, weight};
use crate::backend::ops::{EmbedBwdPrompt, EmbedBwdTable, EmbedFwd, EmbedOps, Op};

const FILE: &str = "embed";

impl EmbedOps for Cuda {
    fn embed_fwd(&mut self, op: EmbedFwd<'_, Self>) {
        self.begin(&op);
        let (name, pack) = (EmbedFwd::<Self>::NAME, op.pack);
        let (params, stride, offset) =
            op.prompt.map_or((Arg::null(Param::Acc), 0, 0), |(params, site)| (acc(params), site.stride, site.offset));
        let rows = [params, table(pack.tokens()), table(pack.run()), int(pack.len())];
        let places = [long(stride), long(offset), float(op.scale)];
        let (kernel, args) = match op.table.blocks() {
            None => {
                let args = [&[acc(op.out), compute(op.table.dense())], &rows[..], &[int(op.width)], &places].concat();
                (Kernel::new(FILE, name), args)
            }
            Some(blocks) => {
                let args = [&[acc(op.out)], &blocks.args()[..], &rows, &places].concat();
                (Kernel::new(weight::FILE, "embed_quantized_fwd"), args)
            }
        };
        self.cx.launch(name, kernel, LaunchDims::rows(pack.len()), &args);
    }

    fn embed_bwd_prompt(&mut self, op: EmbedBwdPrompt<'_, Self>) {
        self.begin(&op);
        let name = EmbedBwdPrompt::<Self>::NAME;
        let (groups, runs) = op.pack.by_prompt();
        let [ids, starts, order] = groups.tables();
        let args = [
            acc(op.d_prompt),
            acc(op.d_out),
            ids,
            table(runs),
            starts,
            order,
            int(groups.count),
            int(op.width),
            long(op.site.stride),
            long(op.site.offset),
        ];
        self.cx.launch(name, Kernel::new(FILE, name), LaunchDims::rows(groups.count), &args);
    }

    fn embed_bwd_table(&mut self, op: EmbedBwdTable<'_, Self>) {
        self.begin(&op);
        let name = EmbedBwdTable::<Self>::NAME;
        let groups = op.pack.by_token();
        let [ids, starts, order] = groups.tables();
        let sizes = [int(groups.count), int(op.width), float(op.scale)];
        let args = [&[acc_at(op.d_table, op.offset), acc(op.d_out), ids, starts, order], &sizes[..]].concat();
        self.cx.launch(name, Kernel::new(FILE, name), LaunchDims::rows(groups.count), &args);
    }
}
