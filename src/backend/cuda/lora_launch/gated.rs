//! LoRAs of which a gated activation, or its gradients, is made by the launch that adds them, and the ranks of those that read that.

use super::{Common, FILE, Group, InputGradient, Lora, WIDE_BLOCK, groups};
use crate::backend::cuda::context::Context;
use crate::backend::cuda::geometry::blocks3;
use crate::backend::cuda::launch::{Arg, Kernel, LaunchDims, Param, acc_ptr, float, int, long, table};
use crate::backend::scratch::{COLUMNS, RANKS, made_in_parts};

impl Group<'_> {
    /// Whether a launch that makes `width` columns of what others read in all rows can make their ranks.
    fn makes_ranks_of(&self, next: &Group<'_>, width: usize) -> bool {
        let key = |Common { params, rows, stride, in_vectors, .. }: &Common| (*params, *rows, *stride, *in_vectors);
        let alike = key(self.common) == key(next.common) && self.common.in_vectors && !self.common.rows.others;
        alike && next.common.rank <= RANKS && made_in_parts(width)
    }

    /// The only one, if these are one, of so many LoRAs, that is so.
    fn next<'a>(&self, loras: &'a [Lora], width: usize, fits: impl FnOnce(&'a [Lora]) -> bool) -> Option<Group<'a>> {
        let next = groups(loras).next().filter(|next| next.loras.len() == loras.len())?;
        (self.makes_ranks_of(&next, width) && fits(loras)).then_some(next)
    }
}

/// The forward of those of a gate and an up-projection, whose `xa` may be there already, with their gated activation `act [N, output]`.
/// Returns the `xa` of the LoRA that reads it, if that is made as well.
pub fn forward(
    cx: &mut Context,
    op: &'static str,
    loras: &[Lora],
    xa: Option<Arg>,
    act: Arg,
    next: &[Lora],
) -> Option<Arg> {
    let group = Group { loras, common: &loras[0].common };
    if xa.is_none() {
        group.shrink(cx, op)?;
    }
    let &Common { params, rows, rank, stride, scale, .. } = group.common;
    let ([gate, up, _], [xa, xa1, _]) = (group.y(), group.each(|lora| lora.xa));
    let ([b, b1, _], output) = (group.each(|lora| long(lora.b)), loras[0].output);
    let reads = |next: &[Lora]| matches!(next, [one] if one.common.d_params.is_none() && one.common.x == act);
    let next = group.next(next, output, reads);
    let (next_xa, ranks) = match next {
        Some(next) => {
            let &Common { rank, .. } = next.common;
            let workspace = next.workspace(cx, output / COLUMNS)?;
            let [seeds, keys, draw, _, _, threshold, factor] = next.dropout();
            let of_a = [next.loras[0].xa, int(rank), long(next.loras[0].a)];
            (Some(of_a[0]), [&of_a[..], &workspace, &[seeds, keys, draw, threshold, factor]].concat())
        }
        None => {
            let [acc, none] = [Param::Acc, Param::Table].map(Arg::null);
            let of_a = [acc, int(0), long(0), acc, none, long(0)];
            (None, [&of_a[..], &[none, none, long(0), int(0), float(1.0)]].concat())
        }
    };
    let sizes = [int(rank), int(output), long(stride), b, b1, float(scale)];
    let args = [&[gate, up, act, xa, xa1, params, table(rows.tiles.0)], &sizes[..], &ranks].concat();
    let dims = LaunchDims { grid: blocks3(rows.tiles.1, output.div_ceil(COLUMNS), 1), block: WIDE_BLOCK, shared: 0 };
    cx.launch(op, Kernel::new(FILE, "lora_fwd_expand_gated"), dims, &args);
    next_xa
}

/// The backward of that of a down-projection, whose `d_xa` may be there already: of its input's gradient `d_gate`, `d_up`, of `gate` and
/// `up` `[N, input]`. Returns the `d_xa [LoRAs, N, R]` of the gate's and the up-projection's, if that is made as well.
pub fn backward(
    cx: &mut Context,
    op: &'static str,
    lora: &Lora,
    d_xa: Option<Arg>,
    d_act: InputGradient,
    gate: [Arg; 4],
    next: &[Lora],
) -> Option<Arg> {
    let group = Group { loras: std::slice::from_ref(lora), common: &lora.common };
    let d_xa = d_xa.or_else(|| group.backward_xa_apart(cx, op))?;
    let &Common { x, params, rank, input, stride, scale, .. } = group.common;
    let reads = |next: &[Lora]| {
        let backward = next.iter().all(|lora| lora.common.d_params.is_some() && lora.output == input);
        backward && matches!(next, [of_gate, of_up] if [of_gate.y, of_up.y] == [gate[0], gate[1]].map(Some))
    };
    let next = group.next(next, input, reads);
    let (next_d_xa, ranks) = match next {
        Some(next) => {
            let &Common { rank, scale, .. } = next.common;
            let bytes = next.loras.len() * next.pitch() * size_of::<f32>();
            let d_xa = acc_ptr(cx.scratch("lora_bwd of the next", bytes)?);
            let [b, b1, _] = next.each(|lora| long(lora.b));
            let workspace = next.workspace(cx, input / COLUMNS)?;
            (Some(d_xa), [&[d_xa, int(rank), b, b1, float(scale)], &workspace[..]].concat())
        }
        None => {
            let [acc, none] = [Param::Acc, Param::Table].map(Arg::null);
            (None, vec![acc, int(0), long(0), long(0), float(1.0), acc, none, long(0)])
        }
    };
    let [seeds, keys, draw, _, _, threshold, factor] = group.dropout();
    let read = [group.y()[0], lora.xa, x, d_xa, params];
    let dropout = [seeds, keys, draw, threshold, factor];
    let sizes = [int(rank), int(input), int(lora.output), long(stride), long(lora.a), long(lora.b), float(scale)];
    let args = [&group.summed(Some(d_act))[..], &gate, &read, &group.tiles(), &dropout, &sizes, &ranks].concat();
    cx.launch(op, Kernel::new(FILE, "lora_bwd_gated"), group.inputs_dims(input, true), &args);
    next_d_xa
}
