//! The contract on the null device: what is asserted and logged of each operation.

use std::ops::Range;

use super::check::{
    below, cached_rows, check_dropout, check_heads, check_site, check_steps, check_tokens, check_virtual, labels, need,
    needs, product, rows_of, runs, same,
};
use super::{NullAcc, NullCompute, NullWeight, Trace};
use crate::Result;
use crate::backend::{
    Activation, AdamwStep, AttentionDims, Backend, Captured, Dropout, HostSlice, LinearDims, LoraSite, PromptSite,
    Tensor,
};
use crate::formats::safetensors::TensorView;
use crate::pack::{Pack, Parent, Token};

impl Backend for Trace {
    type Acc = NullAcc;
    type Compute = NullCompute;
    type Weight = NullWeight;
    type Index = Vec<u32>;
    type Pack = Pack;
    type Element = f32;
    type PendingReadback = Vec<f32>;

    fn name(&self) -> String {
        "trace".into()
    }

    fn acc(&mut self, len: usize) -> Result<NullAcc> {
        self.elements.0 += len;
        Ok(NullAcc(self.allocate(len)))
    }

    fn compute(&mut self, len: usize) -> Result<NullCompute> {
        self.elements.1 += len;
        Ok(NullCompute(self.allocate(len)))
    }

    fn element_sizes(&self) -> (usize, usize) {
        (4, 4)
    }

    fn weight(&mut self, view: &TensorView) -> Result<NullWeight> {
        Ok(self.null_weight(view.len()))
    }

    fn trainable_weight(&mut self, params: &NullAcc, offset: usize, len: usize) -> Result<NullWeight> {
        need("trainable_weight", "params", params.0, offset + len);
        Ok(self.null_weight(len))
    }

    fn index(&mut self, values: &[u32]) -> Result<Vec<u32>> {
        self.allocate(values.len());
        Ok(values.to_vec())
    }

    fn pack(&mut self, pack: &Pack) -> Result<Pack> {
        self.allocations += 1;
        Ok(pack.clone())
    }

    fn upload(&mut self, buffer: &mut NullAcc, offset: usize, values: &[f32]) -> Result<()> {
        need(self.log("upload"), "buffer", buffer.0, offset + values.len());
        Ok(())
    }

    fn download(&mut self, values: &mut [f32], buffer: &NullAcc, offset: usize) -> Result<()> {
        need(self.log("download"), "buffer", buffer.0, offset + values.len());
        self.syncs += 1;
        values.fill(0.0);
        Ok(())
    }

    fn download_async(&mut self, buffer: &NullAcc, len: usize) -> Result<Vec<f32>> {
        need(self.log("download_async"), "buffer", buffer.0, len);
        Ok(vec![0.0; len])
    }

    fn wait_readback(&mut self, arriving: Vec<f32>) -> Result<Vec<f32>> {
        self.syncs += 1;
        Ok(arriving)
    }

    fn borrow_acc<'a>(&self, _: &'a NullAcc) -> Option<HostSlice<'a>> {
        None
    }

    fn borrow_compute<'a>(&self, _: &'a NullCompute) -> Option<HostSlice<'a>> {
        None
    }

    fn capture(&mut self, x: Tensor<'_, Self>, rows: &[usize], width: usize) -> Captured {
        let op = self.log("capture");
        let (Tensor::Acc(NullAcc(len)) | Tensor::Compute(NullCompute(len))) = x;
        need(op, "x", *len, rows.iter().max().map_or(0, |row| row + 1) * width);
        Captured::Ready(vec![0.0; rows.len() * width])
    }

    fn sync(&mut self) -> Result<()> {
        self.syncs += 1;
        Ok(())
    }

    fn zero(&mut self, _: &mut NullAcc) {
        self.log("zero");
    }

    fn cast(&mut self, out: &mut NullCompute, x: &NullAcc, len: usize) {
        needs(self.log("cast"), len, &[("out", out.0), ("x", x.0)]);
    }

    fn widen(&mut self, out: &mut NullAcc, x: &NullCompute, len: usize) {
        needs(self.log("widen"), len, &[("out", out.0), ("x", x.0)]);
    }

    fn residual_fwd(&mut self, out: &mut NullAcc, a: &NullAcc, b: &NullCompute, len: usize) {
        needs(self.log("residual_fwd"), len, &[("out", out.0), ("a", a.0), ("b", b.0)]);
    }

    fn gather_compute(&mut self, out: &mut NullCompute, x: &NullCompute, rows: &Vec<u32>, width: usize) {
        rows_of(self.log("gather_compute"), x.0, out.0, rows, width);
    }

    fn gather_acc(&mut self, out: &mut NullAcc, x: &NullAcc, rows: &Vec<u32>, width: usize) {
        rows_of(self.log("gather_acc"), x.0, out.0, rows, width);
    }

    fn scatter_add(&mut self, d_x: &mut NullAcc, d_out: &NullAcc, rows: &Vec<u32>, width: usize) {
        rows_of(self.log("scatter_add"), d_x.0, d_out.0, rows, width);
    }

    fn embed_fwd(
        &mut self,
        out: &mut NullAcc,
        pack: &Pack,
        table: &NullWeight,
        prompt: Option<(&NullAcc, PromptSite)>,
        width: usize,
    ) {
        let op = self.log("embed_fwd");
        need(op, "out", out.0, pack.len() * width);
        check_tokens(op, pack, table.0, prompt.is_some(), width);
        if let Some((params, site)) = prompt {
            check_virtual(op, pack, site, width, params.0);
        }
    }

    fn embed_bwd_prompt(
        &mut self,
        d_prompt: &mut NullAcc,
        d_out: &NullAcc,
        pack: &Pack,
        site: PromptSite,
        width: usize,
    ) {
        let op = self.log("embed_bwd_prompt");
        need(op, "d_out", d_out.0, pack.len() * width);
        check_virtual(op, pack, site, width, d_prompt.0);
    }

    fn embed_bwd_table(&mut self, d_table: &mut NullAcc, offset: usize, d_out: &NullAcc, pack: &Pack, width: usize) {
        let op = self.log("embed_bwd_table");
        need(op, "d_out", d_out.0, pack.len() * width);
        for token in pack.tokens() {
            if let Token::Id(t) = token {
                need(op, "d_table", d_table.0, offset + (*t as usize + 1) * width);
            }
        }
    }

    fn position_fwd(&mut self, x: &mut NullAcc, pack: &Pack, table: &NullWeight, first: usize, width: usize) {
        let op = self.log("position_fwd");
        need(op, "x", x.0, pack.len() * width);
        need(op, "table", table.0, (first + pack.longest()) * width);
    }

    fn position_bwd_table(
        &mut self,
        d_table: &mut NullAcc,
        offset: usize,
        d_x: &NullAcc,
        pack: &Pack,
        first: usize,
        width: usize,
    ) {
        let op = self.log("position_bwd_table");
        need(op, "d_x", d_x.0, pack.len() * width);
        need(op, "d_table", d_table.0, offset + (first + pack.longest()) * width);
    }

    fn layer_norm_fwd(
        &mut self,
        out: &mut NullCompute,
        mean: &mut NullAcc,
        rstd: &mut NullAcc,
        x: &NullAcc,
        weight: &NullWeight,
        bias: &NullWeight,
        rows: usize,
        width: usize,
        _eps: f64,
    ) {
        let op = self.log("layer_norm_fwd");
        needs(op, rows * width, &[("out", out.0), ("x", x.0)]);
        needs(op, rows, &[("mean", mean.0), ("rstd", rstd.0)]);
        same(op, "the weight's length", weight.0, width);
        same(op, "the bias's length", bias.0, width);
    }

    fn layer_norm_bwd(
        &mut self,
        d_x: &mut NullAcc,
        d_out: &NullAcc,
        x: &NullAcc,
        mean: &NullAcc,
        rstd: &NullAcc,
        weight: &NullWeight,
        rows: usize,
        width: usize,
    ) {
        let op = self.log("layer_norm_bwd");
        needs(op, rows * width, &[("d_x", d_x.0), ("d_out", d_out.0), ("x", x.0)]);
        needs(op, rows, &[("mean", mean.0), ("rstd", rstd.0)]);
        same(op, "the weight's length", weight.0, width);
    }

    fn layer_norm_bwd_affine(
        &mut self,
        d_affine: &mut NullAcc,
        offset: usize,
        d_out: &NullAcc,
        x: &NullAcc,
        mean: &NullAcc,
        rstd: &NullAcc,
        rows: usize,
        width: usize,
    ) {
        let op = self.log("layer_norm_bwd_affine");
        need(op, "d_affine", d_affine.0, offset + 2 * width);
        needs(op, rows * width, &[("d_out", d_out.0), ("x", x.0)]);
        needs(op, rows, &[("mean", mean.0), ("rstd", rstd.0)]);
    }

    fn rms_norm_fwd(
        &mut self,
        out: &mut NullCompute,
        rstd: &mut NullAcc,
        x: &NullAcc,
        weight: &NullWeight,
        rows: usize,
        width: usize,
        _eps: f64,
    ) {
        let op = self.log("rms_norm_fwd");
        needs(op, rows * width, &[("out", out.0), ("x", x.0)]);
        need(op, "rstd", rstd.0, rows);
        same(op, "the weight's length", weight.0, width);
    }

    fn rms_norm_bwd(
        &mut self,
        d_x: &mut NullAcc,
        d_out: &NullAcc,
        x: &NullAcc,
        rstd: &NullAcc,
        weight: &NullWeight,
        rows: usize,
        width: usize,
    ) {
        let op = self.log("rms_norm_bwd");
        needs(op, rows * width, &[("d_x", d_x.0), ("d_out", d_out.0), ("x", x.0)]);
        need(op, "rstd", rstd.0, rows);
        same(op, "the weight's length", weight.0, width);
    }

    fn rms_norm_bwd_weight(
        &mut self,
        d_weight: &mut NullAcc,
        offset: usize,
        d_out: &NullAcc,
        x: &NullAcc,
        rstd: &NullAcc,
        rows: usize,
        width: usize,
    ) {
        let op = self.log("rms_norm_bwd_weight");
        need(op, "d_weight", d_weight.0, offset + width);
        needs(op, rows * width, &[("d_out", d_out.0), ("x", x.0)]);
        need(op, "rstd", rstd.0, rows);
    }

    fn rope_fwd(
        &mut self,
        out: &mut NullCompute,
        x: &NullCompute,
        pack: &Pack,
        cos_sin: &NullAcc,
        heads: usize,
        head_dim: usize,
    ) {
        let op = self.log("rope_fwd");
        same(op, "the head width modulo 2", head_dim % 2, 0);
        needs(op, pack.len() * heads * head_dim, &[("out", out.0), ("x", x.0)]);
        need(op, "cos_sin", cos_sin.0, pack.longest() * head_dim);
    }

    fn rope_bwd(&mut self, d_x: &mut NullCompute, pack: &Pack, cos_sin: &NullAcc, heads: usize, head_dim: usize) {
        let op = self.log("rope_bwd");
        same(op, "the head width modulo 2", head_dim % 2, 0);
        need(op, "d_x", d_x.0, pack.len() * heads * head_dim);
        need(op, "cos_sin", cos_sin.0, pack.longest() * head_dim);
    }

    fn attention_fwd(
        &mut self,
        z: &mut NullCompute,
        lse: &mut NullAcc,
        q: &NullCompute,
        k: &NullCompute,
        v: &NullCompute,
        kept: Option<(&NullCompute, &NullCompute)>,
        pack: &Pack,
        dims: AttentionDims,
    ) {
        let op = self.log("attention_fwd");
        check_heads(op, dims);
        let (queries, keys) = (pack.len() * dims.heads * dims.head_dim, pack.len() * dims.kv_heads * dims.head_dim);
        needs(op, queries, &[("z", z.0), ("q", q.0)]);
        need(op, "lse", lse.0, pack.len() * dims.heads);
        needs(op, keys, &[("k", k.0), ("v", v.0)]);
        let (kept_k, kept_v) = kept.map_or((0, 0), |(k, v)| (k.0, v.0));
        needs(
            op,
            cached_rows(pack) * dims.kv_heads * dims.head_dim,
            &[("the kept keys", kept_k), ("the kept values", kept_v)],
        );
    }

    fn attention_bwd(
        &mut self,
        d_q: &mut NullCompute,
        d_k: &mut NullCompute,
        d_v: &mut NullCompute,
        delta: &mut NullAcc,
        d_z: &NullAcc,
        z: &NullCompute,
        lse: &NullAcc,
        q: &NullCompute,
        k: &NullCompute,
        v: &NullCompute,
        pack: &Pack,
        dims: AttentionDims,
    ) {
        let op = self.log("attention_bwd");
        check_heads(op, dims);
        if let Some(g) = pack.segments().iter().position(|s| matches!(s.parent, Parent::Cached(_))) {
            panic!("{op}: segment {g} continues a kept one, which no backward can pass");
        }
        let (queries, keys) = (pack.len() * dims.heads * dims.head_dim, pack.len() * dims.kv_heads * dims.head_dim);
        needs(op, queries, &[("d_q", d_q.0), ("d_z", d_z.0), ("z", z.0), ("q", q.0)]);
        needs(op, keys, &[("d_k", d_k.0), ("d_v", d_v.0), ("k", k.0), ("v", v.0)]);
        needs(op, pack.len() * dims.heads, &[("delta", delta.0), ("lse", lse.0)]);
    }

    fn attention_pattern(
        &mut self,
        out: &mut NullAcc,
        q: &NullCompute,
        k: &NullCompute,
        kept: Option<&NullCompute>,
        lse: &NullAcc,
        rows: &[usize],
        pack: &Pack,
        dims: AttentionDims,
        longest: usize,
        _normalised: bool,
    ) {
        let op = self.log("attention_pattern");
        check_heads(op, dims);
        need(op, "out", out.0, rows.len() * dims.heads * longest);
        need(op, "q", q.0, pack.len() * dims.heads * dims.head_dim);
        need(op, "k", k.0, pack.len() * dims.kv_heads * dims.head_dim);
        need(op, "the kept keys", kept.map_or(0, |k| k.0), cached_rows(pack) * dims.kv_heads * dims.head_dim);
        need(op, "lse", lse.0, pack.len() * dims.heads);
        for &row in rows {
            below(op, "a row", row, pack.len());
            below(op, "a row's position", pack.positions()[row] as usize, longest);
        }
    }

    fn attention_result(
        &mut self,
        out: &mut NullAcc,
        z: &NullCompute,
        weight: &NullWeight,
        rows: &[usize],
        heads: usize,
        head_dim: usize,
        width: usize,
    ) {
        let op = self.log("attention_result");
        need(op, "out", out.0, rows.len() * heads * width);
        need(op, "z", z.0, rows.iter().max().map_or(0, |row| row + 1) * heads * head_dim);
        same(op, "the weight's length", weight.0, width * heads * head_dim);
    }

    fn keep(&mut self, cache: &mut NullCompute, to: usize, x: &NullCompute, from: Range<usize>, width: usize) {
        let op = self.log("keep");
        need(op, "cache", cache.0, (to + from.len()) * width);
        need(op, "x", x.0, from.end * width);
    }

    fn linear_fwd(
        &mut self,
        out: &mut NullCompute,
        x: &NullCompute,
        weight: &NullWeight,
        bias: Option<&NullWeight>,
        dims: LinearDims,
    ) {
        let op = self.log_products("linear_fwd", 1, dims);
        product(op, out.0, x.0, *weight, dims);
        same(op, "the bias's length", bias.map_or(dims.output, |b| b.0), dims.output);
    }

    fn linear_bwd_input(
        &mut self,
        d_x: &mut NullAcc,
        d_out: &NullCompute,
        weight: &NullWeight,
        dims: LinearDims,
        _accumulate: bool,
    ) {
        product(self.log_products("linear_bwd_input", 1, dims), d_out.0, d_x.0, *weight, dims);
    }

    fn linear_bwd_weight(
        &mut self,
        d_weight: &mut NullAcc,
        offset: usize,
        d_out: &NullCompute,
        x: &NullCompute,
        dims: LinearDims,
    ) {
        let op = self.log_products("linear_bwd_weight", 1, dims);
        need(op, "d_weight", d_weight.0, offset + dims.output * dims.input);
        need(op, "d_out", d_out.0, dims.rows * dims.output);
        need(op, "x", x.0, dims.rows * dims.input);
    }

    fn linear_bwd_bias(
        &mut self,
        d_bias: &mut NullAcc,
        offset: usize,
        d_out: &NullCompute,
        rows: usize,
        output: usize,
    ) {
        let op = self.log("linear_bwd_bias");
        need(op, "d_bias", d_bias.0, offset + output);
        need(op, "d_out", d_out.0, rows * output);
    }

    fn lora_fwd(
        &mut self,
        y: &mut NullCompute,
        xa: &mut NullAcc,
        x: &NullCompute,
        params: &NullAcc,
        pack: &Pack,
        site: LoraSite,
        dropout: Option<Dropout<'_>>,
    ) {
        let op = self.log("lora_fwd");
        check_site(op, site, params.0, pack);
        check_dropout(op, dropout, pack);
        need(op, "y", y.0, pack.len() * site.output);
        need(op, "xa", xa.0, pack.len() * site.rank);
        need(op, "x", x.0, pack.len() * site.input);
    }

    fn lora_bwd(
        &mut self,
        d_params: &mut NullAcc,
        d_x: Option<&mut NullAcc>,
        d_y: &NullCompute,
        xa: &NullAcc,
        x: &NullCompute,
        params: &NullAcc,
        pack: &Pack,
        site: LoraSite,
        dropout: Option<Dropout<'_>>,
    ) {
        let op = self.log("lora_bwd");
        check_site(op, site, params.0, pack);
        check_dropout(op, dropout, pack);
        need(op, "d_params", d_params.0, runs(pack) * site.stride);
        needs(op, pack.len() * site.input, &[("d_x", d_x.map_or(usize::MAX, |d| d.0)), ("x", x.0)]);
        need(op, "d_y", d_y.0, pack.len() * site.output);
        need(op, "xa", xa.0, pack.len() * site.rank);
    }

    fn lora_delta(&mut self, out: &mut NullAcc, xa: &NullAcc, params: &NullAcc, pack: &Pack, site: LoraSite) {
        let op = self.log("lora_delta");
        check_site(op, site, params.0, pack);
        need(op, "out", out.0, pack.len() * site.output);
        need(op, "xa", xa.0, pack.len() * site.rank);
    }

    fn swiglu_fwd(&mut self, act: &mut NullCompute, gate: &NullCompute, up: &NullCompute, len: usize) {
        needs(self.log("swiglu_fwd"), len, &[("act", act.0), ("gate", gate.0), ("up", up.0)]);
    }

    fn swiglu_bwd(
        &mut self,
        d_gate: &mut NullCompute,
        d_up: &mut NullCompute,
        d_act: &NullAcc,
        gate: &NullCompute,
        up: &NullCompute,
        len: usize,
    ) {
        let op = self.log("swiglu_bwd");
        needs(op, len, &[("d_gate", d_gate.0), ("d_up", d_up.0), ("d_act", d_act.0), ("gate", gate.0), ("up", up.0)]);
    }

    fn activation_fwd(&mut self, act: &mut NullCompute, x: &NullCompute, _: Activation, len: usize) {
        let op = self.log("activation_fwd");
        needs(op, len, &[("act", act.0), ("x", x.0)]);
    }

    fn activation_bwd(&mut self, d_x: &mut NullCompute, d_act: &NullAcc, x: &NullCompute, _: Activation, len: usize) {
        let op = self.log("activation_bwd");
        needs(op, len, &[("d_x", d_x.0), ("d_act", d_act.0), ("x", x.0)]);
    }

    fn logits_fwd(&mut self, logits: &mut NullAcc, x: &NullCompute, head: &NullWeight, dims: LinearDims) {
        product(self.log_products("logits_fwd", 1, dims), logits.0, x.0, *head, dims);
    }

    fn cross_entropy_fwd(
        &mut self,
        loss: &mut NullAcc,
        x: &NullCompute,
        head: &NullWeight,
        targets: &Vec<u32>,
        dims: LinearDims,
    ) {
        labels(self.log_products("cross_entropy_fwd", 1, dims), *loss, *x, *head, targets, dims);
    }

    fn cross_entropy_bwd(
        &mut self,
        loss: &mut NullAcc,
        d_x: &mut NullAcc,
        d_head: Option<(&mut NullAcc, usize)>,
        x: &NullCompute,
        head: &NullWeight,
        targets: &Vec<u32>,
        row_weights: &NullAcc,
        dims: LinearDims,
    ) {
        let op = self.log_products("cross_entropy_bwd", if d_head.is_some() { 3 } else { 2 }, dims);
        labels(op, *loss, *x, *head, targets, dims);
        need(op, "d_x", d_x.0, dims.rows * dims.input);
        if let Some((d_head, offset)) = d_head {
            need(op, "d_head", d_head.0, offset + dims.output * dims.input);
        }
        need(op, "row_weights", row_weights.0, dims.rows);
    }

    fn grad_norm(&mut self, norm_sq: &mut NullAcc, d_params: &NullAcc, runs: usize, stride: usize) {
        let op = self.log("grad_norm");
        need(op, "norm_sq", norm_sq.0, runs);
        need(op, "d_params", d_params.0, runs * stride);
    }

    fn check_finite(&mut self, stop: &mut NullAcc, values: &NullAcc, len: usize) {
        need(self.log("check_finite"), "values", values.0, len);
        need("check_finite", "stop", stop.0, 1);
    }

    fn adamw(
        &mut self,
        params: &mut NullAcc,
        m: &mut NullAcc,
        v: &mut NullAcc,
        d_params: &NullAcc,
        norm_sq: &NullAcc,
        stop: &NullAcc,
        steps: &[AdamwStep],
        stride: usize,
    ) {
        let op = self.log("adamw");
        needs(op, steps.len() * stride, &[("params", params.0), ("m", m.0), ("v", v.0), ("d_params", d_params.0)]);
        need(op, "norm_sq", norm_sq.0, steps.len());
        need(op, "stop", stop.0, 1);
        check_steps(op, steps);
    }

    fn refresh_weight(&mut self, weight: &mut NullWeight, params: &NullAcc, offset: usize) {
        need(self.log("refresh_weight"), "params", params.0, offset + weight.0);
    }
}
