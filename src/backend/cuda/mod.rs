//! NVIDIA GPUs, through kernels of our own (`kernels/*.cu`) and cuBLASLt.
//!
//! The driver and the libraries are loaded at run time: a build needs no toolkit, and a machine without a GPU gets an
//! error that says so. Operations only write down what is to be done, and lists that come again are graphs.

mod activation;
mod adamw;
mod attention;
mod blas;
mod capture;
mod compile;
mod compute;
mod context;
mod cross_entropy;
mod driver;
mod embed;
mod forest;
mod geometry;
mod launch;
mod layer_norm;
mod library;
mod linear;
mod load;
mod lora;
mod memory;
mod pack;
mod pinned;
mod plan;
mod position;
mod queue;
mod rms_norm;
mod rope;
mod rows;
mod settings;
mod variant;

use std::marker::PhantomData;
use std::ops::Range;

use half::bf16;

pub use self::compute::Compute;
use self::context::Context;
pub use self::context::PendingReadback;
pub use self::memory::Buffer;
pub use self::pack::{Index, Pack};
pub use self::settings::{Captures, Settings};
use super::{
    Activation, AdamwStep, AttentionDims, Backend, Captured, Dropout, HostSlice, LinearDims, LoraSite, OwnMemory,
    PassSize, PromptSite, Tensor,
};
use crate::formats::safetensors::TensorView;
use crate::{Error, Result};

/// The number of devices.
///
/// # Errors
/// If there is no driver, or it does not start.
pub fn devices() -> Result<usize> {
    driver::count()
}

/// A GPU; `R` is the compute dtype.
pub struct Cuda<R = bf16> {
    cx: Context,
    captures: Captures,
    compute: PhantomData<R>,
}

impl<R: Compute> Cuda<R> {
    /// Opens device `ordinal`.
    ///
    /// # Errors
    /// No driver, no such device, a device older than compute capability 8.0, or cuBLASLt that is not found: one error
    /// that says which, and what to install.
    pub fn new(ordinal: usize, settings: &Settings) -> Result<Self> {
        let named = |error| match error {
            Error::Device { op, message, .. } => Error::Device { device: format!("cuda:{ordinal}"), op, message },
            other => other,
        };
        let cx = Context::new::<R>(ordinal, settings).map_err(named)?;
        Ok(Self { cx, captures: settings.captures, compute: PhantomData })
    }

    /// How often work that came again went to the device as one graph.
    pub fn replays(&self) -> u64 {
        self.cx.replays()
    }
}

impl<R: Compute> Backend for Cuda<R> {
    type Acc = Buffer<f32>;
    type Compute = Buffer<R>;
    type Weight = Buffer<R>;
    type Index = Index;
    type Pack = Pack;
    type Element = f32;
    type PendingReadback = PendingReadback;
    const RUNS_AHEAD: bool = true;

    fn name(&self) -> String {
        format!("{} {}", self.cx.device.name(), R::NAME)
    }

    fn acc(&mut self, len: usize) -> Result<Buffer<f32>> {
        let zeros = self.cx.zeros("wide", len);
        self.cx.blamed(zeros)
    }

    fn compute(&mut self, len: usize) -> Result<Buffer<R>> {
        let zeros = self.cx.zeros("real", len);
        self.cx.blamed(zeros)
    }

    fn element_sizes(&self) -> (usize, usize) {
        (size_of::<f32>(), size_of::<R>())
    }

    fn own_memory(&self, pass: &PassSize) -> OwnMemory {
        plan::own_memory::<R>(&self.cx, pass)
    }

    fn weight(&mut self, view: &TensorView) -> Result<Buffer<R>> {
        let weight = load::weight(&mut self.cx, view);
        self.cx.blamed(weight)
    }

    fn trainable_weight(&mut self, params: &Buffer<f32>, offset: usize, len: usize) -> Result<Buffer<R>> {
        let weight = self.cx.buffer("trainable_weight", len);
        let weight = self.cx.blamed(weight)?;
        rows::cast(&mut self.cx, "trainable_weight", &weight, params, offset, len);
        Ok(weight)
    }

    fn index(&mut self, values: &[u32]) -> Result<Index> {
        let index = Index::new(&mut self.cx, values);
        self.cx.blamed(index)
    }

    fn pack(&mut self, pack: &crate::pack::Pack) -> Result<Pack> {
        let pack = Pack::new(&mut self.cx, pack);
        self.cx.blamed(pack)
    }

    fn upload(&mut self, buffer: &mut Buffer<f32>, offset: usize, values: &[f32]) -> Result<()> {
        buffer.need("upload", "buffer", offset + values.len());
        let written = self.cx.write("upload", buffer.address(offset), bytemuck::cast_slice(values));
        self.cx.blamed(written)
    }

    fn download(&mut self, values: &mut [f32], buffer: &Buffer<f32>, offset: usize) -> Result<()> {
        buffer.need("download", "buffer", offset + values.len());
        let read = self.cx.read("download", bytemuck::cast_slice_mut(values), buffer.address(offset));
        self.cx.blamed(read)
    }

    fn download_async(&mut self, buffer: &Buffer<f32>, len: usize) -> Result<PendingReadback> {
        buffer.need("download", "buffer", len);
        let begun = self.cx.begin_read("download", buffer.address(0), len);
        self.cx.blamed(begun)
    }

    fn wait_readback(&mut self, arriving: PendingReadback) -> Result<Vec<f32>> {
        let values = self.cx.end_read(arriving);
        self.cx.blamed(values)
    }

    fn borrow_acc<'a>(&self, _: &'a Buffer<f32>) -> Option<HostSlice<'a>> {
        None
    }

    fn borrow_compute<'a>(&self, _: &'a Buffer<R>) -> Option<HostSlice<'a>> {
        None
    }

    fn capture(&mut self, x: Tensor<'_, Self>, rows: &[usize], width: usize) -> Captured {
        let captured = capture::capture(&mut self.cx, x, rows, width, self.captures == Captures::Copied);
        self.cx.keep(captured).unwrap_or_else(|| Captured::Ready(vec![0.0; rows.len() * width]))
    }

    fn sync(&mut self) -> Result<()> {
        self.cx.wait()
    }

    fn zero(&mut self, x: &mut Buffer<f32>) {
        self.cx.zero("zero", x, x.len());
    }

    fn cast(&mut self, out: &mut Buffer<R>, x: &Buffer<f32>, len: usize) {
        rows::cast(&mut self.cx, "cast", out, x, 0, len);
    }

    fn widen(&mut self, out: &mut Buffer<f32>, x: &Buffer<R>, len: usize) {
        rows::widen(&mut self.cx, out, x, len);
    }

    fn residual_fwd(&mut self, out: &mut Buffer<f32>, a: &Buffer<f32>, b: &Buffer<R>, len: usize) {
        rows::residual_fwd(&mut self.cx, out, a, b, len);
    }

    fn gather_compute(&mut self, out: &mut Buffer<R>, x: &Buffer<R>, rows: &Index, width: usize) {
        rows::gather_compute(&mut self.cx, out, x, rows, width);
    }

    fn gather_acc(&mut self, out: &mut Buffer<f32>, x: &Buffer<f32>, rows: &Index, width: usize) {
        rows::gather_acc(&mut self.cx, out, x, rows, width);
    }

    fn scatter_add(&mut self, d_x: &mut Buffer<f32>, d_out: &Buffer<f32>, rows: &Index, width: usize) {
        rows::scatter_add(&mut self.cx, d_x, d_out, rows, width);
    }

    fn embed_fwd(
        &mut self,
        out: &mut Buffer<f32>,
        pack: &Pack,
        table: &Buffer<R>,
        prompt: Option<(&Buffer<f32>, PromptSite)>,
        width: usize,
    ) {
        embed::fwd(&mut self.cx, out, pack, table, prompt, width);
    }

    fn embed_bwd_prompt(
        &mut self,
        d_prompt: &mut Buffer<f32>,
        d_out: &Buffer<f32>,
        pack: &Pack,
        site: PromptSite,
        width: usize,
    ) {
        embed::bwd_prompt(&mut self.cx, d_prompt, d_out, pack, site, width);
    }

    fn embed_bwd_table(
        &mut self,
        d_table: &mut Buffer<f32>,
        offset: usize,
        d_out: &Buffer<f32>,
        pack: &Pack,
        width: usize,
    ) {
        embed::bwd_table(&mut self.cx, d_table, offset, d_out, pack, width);
    }

    fn position_fwd(&mut self, x: &mut Buffer<f32>, pack: &Pack, table: &Buffer<R>, first: usize, width: usize) {
        position::fwd(&mut self.cx, x, pack, table, first, width);
    }

    fn position_bwd_table(
        &mut self,
        d_table: &mut Buffer<f32>,
        offset: usize,
        d_x: &Buffer<f32>,
        pack: &Pack,
        first: usize,
        width: usize,
    ) {
        position::bwd_table(&mut self.cx, d_table, offset, d_x, pack, first, width);
    }

    fn layer_norm_fwd(
        &mut self,
        out: &mut Buffer<R>,
        mean: &mut Buffer<f32>,
        rstd: &mut Buffer<f32>,
        x: &Buffer<f32>,
        weight: &Buffer<R>,
        bias: &Buffer<R>,
        rows: usize,
        width: usize,
        eps: f64,
    ) {
        layer_norm::fwd(&mut self.cx, out, [mean, rstd], x, [weight, bias], rows, width, eps);
    }

    fn layer_norm_bwd(
        &mut self,
        d_x: &mut Buffer<f32>,
        d_out: &Buffer<f32>,
        x: &Buffer<f32>,
        mean: &Buffer<f32>,
        rstd: &Buffer<f32>,
        weight: &Buffer<R>,
        rows: usize,
        width: usize,
    ) {
        layer_norm::bwd(&mut self.cx, d_x, d_out, x, [mean, rstd], weight, rows, width);
    }

    fn layer_norm_bwd_affine(
        &mut self,
        d_affine: &mut Buffer<f32>,
        offset: usize,
        d_out: &Buffer<f32>,
        x: &Buffer<f32>,
        mean: &Buffer<f32>,
        rstd: &Buffer<f32>,
        rows: usize,
        width: usize,
    ) {
        layer_norm::bwd_affine(&mut self.cx, d_affine, offset, d_out, x, [mean, rstd], rows, width);
    }

    fn rms_norm_fwd(
        &mut self,
        out: &mut Buffer<R>,
        rstd: &mut Buffer<f32>,
        x: &Buffer<f32>,
        weight: &Buffer<R>,
        rows: usize,
        width: usize,
        eps: f64,
    ) {
        rms_norm::fwd(&mut self.cx, out, rstd, x, weight, rows, width, eps);
    }

    fn rms_norm_bwd(
        &mut self,
        d_x: &mut Buffer<f32>,
        d_out: &Buffer<f32>,
        x: &Buffer<f32>,
        rstd: &Buffer<f32>,
        weight: &Buffer<R>,
        rows: usize,
        width: usize,
    ) {
        rms_norm::bwd(&mut self.cx, d_x, d_out, x, rstd, weight, rows, width);
    }

    fn rms_norm_bwd_weight(
        &mut self,
        d_weight: &mut Buffer<f32>,
        offset: usize,
        d_out: &Buffer<f32>,
        x: &Buffer<f32>,
        rstd: &Buffer<f32>,
        rows: usize,
        width: usize,
    ) {
        rms_norm::bwd_weight(&mut self.cx, d_weight, offset, d_out, x, rstd, rows, width);
    }

    fn rope_fwd(
        &mut self,
        out: &mut Buffer<R>,
        x: &Buffer<R>,
        pack: &Pack,
        cos_sin: &Buffer<f32>,
        heads: usize,
        head_dim: usize,
    ) {
        rope::fwd(&mut self.cx, out, x, pack, cos_sin, heads, head_dim);
    }

    fn rope_bwd(&mut self, d_x: &mut Buffer<R>, pack: &Pack, cos_sin: &Buffer<f32>, heads: usize, head_dim: usize) {
        rope::bwd(&mut self.cx, d_x, pack, cos_sin, heads, head_dim);
    }

    fn attention_fwd(
        &mut self,
        z: &mut Buffer<R>,
        lse: &mut Buffer<f32>,
        q: &Buffer<R>,
        k: &Buffer<R>,
        v: &Buffer<R>,
        kept: Option<(&Buffer<R>, &Buffer<R>)>,
        pack: &Pack,
        dims: AttentionDims,
    ) {
        attention::fwd(&mut self.cx, z, lse, q, [k, v], kept.map(|(k, v)| [k, v]), pack, dims);
    }

    fn attention_bwd(
        &mut self,
        d_q: &mut Buffer<R>,
        d_k: &mut Buffer<R>,
        d_v: &mut Buffer<R>,
        delta: &mut Buffer<f32>,
        d_z: &Buffer<f32>,
        z: &Buffer<R>,
        lse: &Buffer<f32>,
        q: &Buffer<R>,
        k: &Buffer<R>,
        v: &Buffer<R>,
        pack: &Pack,
        dims: AttentionDims,
    ) {
        let saved = attention::Saved { d_z, z, lse, q, k, v };
        attention::bwd(&mut self.cx, [d_q, d_k, d_v], delta, &saved, pack, dims);
    }

    fn attention_pattern(
        &mut self,
        out: &mut Buffer<f32>,
        q: &Buffer<R>,
        k: &Buffer<R>,
        kept: Option<&Buffer<R>>,
        lse: &Buffer<f32>,
        rows: &[usize],
        pack: &Pack,
        dims: AttentionDims,
        longest: usize,
        normalised: bool,
    ) {
        attention::pattern(&mut self.cx, out, q, k, kept, lse, rows, pack, dims, longest, normalised);
    }

    fn attention_result(
        &mut self,
        out: &mut Buffer<f32>,
        z: &Buffer<R>,
        weight: &Buffer<R>,
        rows: &[usize],
        heads: usize,
        head_dim: usize,
        width: usize,
    ) {
        attention::result(&mut self.cx, out, z, weight, rows, heads, head_dim, width);
    }

    fn keep(&mut self, cache: &mut Buffer<R>, to: usize, x: &Buffer<R>, from: Range<usize>, width: usize) {
        rows::keep(&mut self.cx, cache, to, x, from, width);
    }

    fn linear_fwd(
        &mut self,
        out: &mut Buffer<R>,
        x: &Buffer<R>,
        weight: &Buffer<R>,
        bias: Option<&Buffer<R>>,
        dims: LinearDims,
    ) {
        linear::fwd(&mut self.cx, out, x, weight, bias, dims);
    }

    fn linear_bwd_input(
        &mut self,
        d_x: &mut Buffer<f32>,
        d_out: &Buffer<R>,
        weight: &Buffer<R>,
        dims: LinearDims,
        accumulate: bool,
    ) {
        linear::bwd_input(&mut self.cx, d_x, d_out, weight, dims, accumulate);
    }

    fn linear_bwd_weight(
        &mut self,
        d_weight: &mut Buffer<f32>,
        offset: usize,
        d_out: &Buffer<R>,
        x: &Buffer<R>,
        dims: LinearDims,
    ) {
        linear::bwd_weight(&mut self.cx, d_weight, offset, d_out, x, dims);
    }

    fn linear_bwd_bias(
        &mut self,
        d_bias: &mut Buffer<f32>,
        offset: usize,
        d_out: &Buffer<R>,
        rows: usize,
        output: usize,
    ) {
        linear::bwd_bias(&mut self.cx, d_bias, offset, d_out, rows, output);
    }

    fn lora_fwd(
        &mut self,
        y: &mut Buffer<R>,
        xa: &mut Buffer<f32>,
        x: &Buffer<R>,
        params: &Buffer<f32>,
        pack: &Pack,
        site: LoraSite,
        dropout: Option<Dropout<'_>>,
    ) {
        lora::fwd(&mut self.cx, y, xa, x, params, pack, site, dropout);
    }

    fn lora_bwd(
        &mut self,
        d_params: &mut Buffer<f32>,
        d_x: Option<&mut Buffer<f32>>,
        d_y: &Buffer<R>,
        xa: &Buffer<f32>,
        x: &Buffer<R>,
        params: &Buffer<f32>,
        pack: &Pack,
        site: LoraSite,
        dropout: Option<Dropout<'_>>,
    ) {
        lora::bwd(&mut self.cx, d_params, d_x.map(|d_x| &*d_x), d_y, xa, x, params, pack, site, dropout);
    }

    fn lora_delta(
        &mut self,
        out: &mut Buffer<f32>,
        xa: &Buffer<f32>,
        params: &Buffer<f32>,
        pack: &Pack,
        site: LoraSite,
    ) {
        lora::delta(&mut self.cx, out, xa, params, pack, site);
    }

    fn swiglu_fwd(&mut self, act: &mut Buffer<R>, gate: &Buffer<R>, up: &Buffer<R>, len: usize) {
        activation::swiglu_fwd(&mut self.cx, act, gate, up, len);
    }

    fn swiglu_bwd(
        &mut self,
        d_gate: &mut Buffer<R>,
        d_up: &mut Buffer<R>,
        d_act: &Buffer<f32>,
        gate: &Buffer<R>,
        up: &Buffer<R>,
        len: usize,
    ) {
        activation::swiglu_bwd(&mut self.cx, d_gate, d_up, d_act, gate, up, len);
    }

    fn activation_fwd(&mut self, act: &mut Buffer<R>, x: &Buffer<R>, f: Activation, len: usize) {
        activation::fwd(&mut self.cx, act, x, f, len);
    }

    fn activation_bwd(&mut self, d_x: &mut Buffer<R>, d_act: &Buffer<f32>, x: &Buffer<R>, f: Activation, len: usize) {
        activation::bwd(&mut self.cx, d_x, d_act, x, f, len);
    }

    fn logits_fwd(&mut self, logits: &mut Buffer<f32>, x: &Buffer<R>, head: &Buffer<R>, dims: LinearDims) {
        cross_entropy::logits(&mut self.cx, logits, x, head, dims);
    }

    fn cross_entropy_fwd(
        &mut self,
        loss: &mut Buffer<f32>,
        x: &Buffer<R>,
        head: &Buffer<R>,
        targets: &Index,
        dims: LinearDims,
    ) {
        cross_entropy::fwd(&mut self.cx, loss, x, head, targets, dims);
    }

    fn cross_entropy_bwd(
        &mut self,
        loss: &mut Buffer<f32>,
        d_x: &mut Buffer<f32>,
        d_head: Option<(&mut Buffer<f32>, usize)>,
        x: &Buffer<R>,
        head: &Buffer<R>,
        targets: &Index,
        row_weights: &Buffer<f32>,
        dims: LinearDims,
    ) {
        let d_head = d_head.map(|(d_head, offset)| (&*d_head, offset));
        cross_entropy::bwd(&mut self.cx, loss, d_x, d_head, x, head, targets, row_weights, dims);
    }

    fn grad_norm(&mut self, norm_sq: &mut Buffer<f32>, d_params: &Buffer<f32>, runs: usize, stride: usize) {
        adamw::grad_norm(&mut self.cx, norm_sq, d_params, runs, stride);
    }

    fn check_finite(&mut self, stop: &mut Buffer<f32>, values: &Buffer<f32>, len: usize) {
        adamw::check_finite(&mut self.cx, stop, values, len);
    }

    fn adamw(
        &mut self,
        params: &mut Buffer<f32>,
        m: &mut Buffer<f32>,
        v: &mut Buffer<f32>,
        d_params: &Buffer<f32>,
        norm_sq: &Buffer<f32>,
        stop: &Buffer<f32>,
        steps: &[AdamwStep],
        stride: usize,
    ) {
        adamw::adamw(&mut self.cx, params, m, v, d_params, norm_sq, stop, steps, stride);
    }

    fn refresh_weight(&mut self, weight: &mut Buffer<R>, params: &Buffer<f32>, offset: usize) {
        rows::cast(&mut self.cx, "refresh_weight", weight, params, offset, weight.len());
    }
}
