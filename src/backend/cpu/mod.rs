//! The processor as a backend: threads of the pool that is current, vectors of the best instruction set there is.
//!
//! [`Cpu`] is generic over what arithmetic is done in and what matrix products read and write. Weights stay in their
//! file's mapping and are converted where they are read.

mod activation;
mod adamw;
#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
mod context;
mod cross_entropy;
mod embed;
mod gemm;
mod isa;
mod layer_norm;
mod linear;
mod lora;
mod pack;
mod parallel;
mod position;
mod rms_norm;
mod rope;
mod rows;
mod simd;
mod team;
mod thin;
mod tile;
mod weight;

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use super::{Activation, AdamwStep, AttentionDims, Backend, Dropout, HostSlice, LinearDims, LoraSite, PromptSite};
use crate::Result;
use crate::formats::safetensors::TensorView;
use crate::pack::Pack;
use context::Context;
pub use isa::Isa;
pub use simd::{Element, Float};
pub use weight::Weight;

/// The processor. `W` is the type of arithmetic and of wide buffers, `R` the compute dtype.
pub struct Cpu<W = f32, R = W> {
    cx: Context<W>,
    compute: PhantomData<R>,
}

/// Single precision throughout.
pub type CpuF32 = Cpu<f32>;
/// The oracle: double precision throughout.
pub type CpuF64 = Cpu<f64>;
/// Products read and write bfloat16; sums and everything wide are single precision.
pub type CpuBf16 = Cpu<f32, half::bf16>;
/// Products read and write half precision; sums and everything wide are single precision.
pub type CpuF16 = Cpu<f32, half::f16>;

impl<W: Float, R: Element<W>> Cpu<W, R> {
    /// With the current thread pool and the best instruction set.
    pub fn new() -> Self {
        Self::with_isa(Isa::detect())
    }

    /// With a given instruction set.
    ///
    /// # Panics
    /// If this processor does not have it.
    pub fn with_isa(isa: Isa) -> Self {
        assert!(Isa::available().contains(&isa), "cpu: {isa:?} on a processor with {:?}", Isa::available());
        Self { cx: Context::new(isa), compute: PhantomData }
    }
}

impl CpuF32 {
    /// Single precision whose products with weights are sums of products of bfloat16 in pairs: of three where a weight
    /// is single precision, of two where it is bfloat16. An element is wrong by at most `3 * 2^-18` of the sum of its
    /// terms' magnitudes; on random operands, K = 64 to 4096, the rms of the errors is below 4e-6 of that of the products,
    /// 2.4e-6 with weights in bfloat16. All else is as without: storage, sums, attention, adapters, and products whose
    /// right side is no weight.
    ///
    /// # Panics
    /// If the instruction set has no pairs ([`Isa::has_pairs`]).
    pub fn split(isa: Isa) -> Self {
        let mut cpu = Self::with_isa(isa);
        cpu.cx.gemm = cpu.cx.gemm.split();
        cpu
    }
}

impl<W: Float, R: Element<W>> Default for Cpu<W, R> {
    fn default() -> Self {
        Self::new()
    }
}

/// Zeros, or an error rather than an abort if there is no memory for them.
fn zeros<T: Default + Clone>(len: usize) -> Result<Vec<T>> {
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(len).map_err(|error| crate::Error::Device {
        device: "cpu".to_string(),
        op: "allocation",
        message: format!("{} bytes: {error}", len.saturating_mul(size_of::<T>())),
    })?;
    buffer.resize(len, T::default());
    Ok(buffer)
}

impl<W: Float, R: Element<W>> Backend for Cpu<W, R> {
    type Acc = Vec<W>;
    type Compute = Vec<R>;
    type Weight = Weight<W, R>;
    type Index = Vec<u32>;
    type Pack = Arc<Pack>;
    type Element = W;
    type PendingReadback = Vec<W>;
    const MAPS_WEIGHTS: bool = true;

    fn name(&self) -> String {
        let dtype = match R::host(&[]) {
            HostSlice::F64(_) => "f64",
            HostSlice::F32(_) if self.cx.gemm.splits() => "f32x3",
            HostSlice::F32(_) => "f32",
            HostSlice::Bf16(_) => "bf16",
            HostSlice::F16(_) => "f16",
        };
        format!("cpu {dtype}")
    }

    fn acc(&mut self, len: usize) -> Result<Vec<W>> {
        zeros(len)
    }

    fn compute(&mut self, len: usize) -> Result<Vec<R>> {
        zeros(len)
    }

    fn element_sizes(&self) -> (usize, usize) {
        (size_of::<W>(), size_of::<R>())
    }

    fn weight(&mut self, view: &TensorView) -> Result<Weight<W, R>> {
        Weight::mapped(view)
    }

    fn trainable_weight(&mut self, params: &Vec<W>, offset: usize, len: usize) -> Result<Weight<W, R>> {
        Ok(Weight::owned(self.cx.on.isa, &params[offset..offset + len]))
    }

    fn index(&mut self, values: &[u32]) -> Result<Vec<u32>> {
        Ok(values.to_vec())
    }

    fn pack(&mut self, pack: &Pack) -> Result<Arc<Pack>> {
        Ok(Arc::new(pack.clone()))
    }

    fn upload(&mut self, buffer: &mut Vec<W>, offset: usize, values: &[W]) -> Result<()> {
        buffer[offset..offset + values.len()].copy_from_slice(values);
        Ok(())
    }

    fn download(&mut self, values: &mut [W], buffer: &Vec<W>, offset: usize) -> Result<()> {
        values.copy_from_slice(&buffer[offset..offset + values.len()]);
        Ok(())
    }

    fn download_async(&mut self, buffer: &Vec<W>, len: usize) -> Result<Vec<W>> {
        Ok(buffer[..len].to_vec())
    }

    fn wait_readback(&mut self, arriving: Vec<W>) -> Result<Vec<W>> {
        Ok(arriving)
    }

    fn borrow_acc<'a>(&self, buffer: &'a Vec<W>) -> Option<HostSlice<'a>> {
        Some(<W as Element<W>>::host(buffer))
    }

    fn borrow_compute<'a>(&self, buffer: &'a Vec<R>) -> Option<HostSlice<'a>> {
        Some(R::host(buffer))
    }

    fn sync(&mut self) -> Result<()> {
        Ok(())
    }

    fn zero(&mut self, x: &mut Vec<W>) {
        x.fill(W::ZERO);
    }

    fn cast(&mut self, out: &mut Vec<R>, x: &Vec<W>, len: usize) {
        rows::cast(&self.cx.on, out, x, len);
    }

    fn widen(&mut self, out: &mut Vec<W>, x: &Vec<R>, len: usize) {
        rows::widen(&self.cx.on, out, x, len);
    }

    fn residual_fwd(&mut self, out: &mut Vec<W>, a: &Vec<W>, b: &Vec<R>, len: usize) {
        rows::residual_fwd(&self.cx.on, out, a, b, len);
    }

    fn gather_compute(&mut self, out: &mut Vec<R>, x: &Vec<R>, rows: &Vec<u32>, width: usize) {
        rows::gather(&self.cx.on.team, out, x, rows, width);
    }

    fn gather_acc(&mut self, out: &mut Vec<W>, x: &Vec<W>, rows: &Vec<u32>, width: usize) {
        rows::gather(&self.cx.on.team, out, x, rows, width);
    }

    fn scatter_add(&mut self, d_x: &mut Vec<W>, d_out: &Vec<W>, rows: &Vec<u32>, width: usize) {
        rows::scatter_add(self.cx.on.isa, d_x, d_out, rows, width);
    }

    fn embed_fwd(
        &mut self,
        out: &mut Vec<W>,
        pack: &Arc<Pack>,
        table: &Weight<W, R>,
        prompt: Option<(&Vec<W>, PromptSite)>,
        width: usize,
    ) {
        embed::fwd(&self.cx.on, out, pack, table, prompt.map(|(prompt, site)| (prompt.as_slice(), site)), width);
    }

    fn embed_bwd_prompt(
        &mut self,
        d_prompt: &mut Vec<W>,
        d_out: &Vec<W>,
        pack: &Arc<Pack>,
        site: PromptSite,
        width: usize,
    ) {
        embed::bwd_prompt(self.cx.on.isa, d_prompt, d_out, pack, site, width);
    }

    fn embed_bwd_table(&mut self, d_table: &mut Vec<W>, offset: usize, d_out: &Vec<W>, pack: &Arc<Pack>, width: usize) {
        embed::bwd_table(self.cx.on.isa, d_table, offset, d_out, pack, width);
    }

    fn position_fwd(&mut self, x: &mut Vec<W>, pack: &Arc<Pack>, table: &Weight<W, R>, first: usize, width: usize) {
        position::fwd(&self.cx.on, x, pack, table, first, width);
    }

    fn position_bwd_table(
        &mut self,
        d_table: &mut Vec<W>,
        offset: usize,
        d_x: &Vec<W>,
        pack: &Arc<Pack>,
        first: usize,
        width: usize,
    ) {
        position::bwd_table(self.cx.on.isa, &mut d_table[offset..], d_x, pack, first, width);
    }

    fn layer_norm_fwd(
        &mut self,
        out: &mut Vec<R>,
        mean: &mut Vec<W>,
        rstd: &mut Vec<W>,
        x: &Vec<W>,
        weight: &Weight<W, R>,
        bias: &Weight<W, R>,
        rows: usize,
        width: usize,
        eps: f64,
    ) {
        let affine = context::carve(&mut self.cx.memory, [width; 2]);
        layer_norm::fwd(&self.cx.on, affine, out, [mean, rstd], x, [weight, bias], rows, W::from_f64(eps));
    }

    fn layer_norm_bwd(
        &mut self,
        d_x: &mut Vec<W>,
        d_out: &Vec<W>,
        x: &Vec<W>,
        mean: &Vec<W>,
        rstd: &Vec<W>,
        weight: &Weight<W, R>,
        rows: usize,
        width: usize,
    ) {
        let scale = gemm::grow(&mut self.cx.memory, width);
        layer_norm::bwd(&self.cx.on, scale, d_x, d_out, x, [mean, rstd], weight, rows);
    }

    fn layer_norm_bwd_affine(
        &mut self,
        d_affine: &mut Vec<W>,
        offset: usize,
        d_out: &Vec<W>,
        x: &Vec<W>,
        mean: &Vec<W>,
        rstd: &Vec<W>,
        rows: usize,
        width: usize,
    ) {
        let d_affine = &mut d_affine[offset..offset + 2 * width];
        layer_norm::bwd_affine(&self.cx.on, d_affine, d_out, x, [&mean[..rows], &rstd[..rows]]);
    }

    fn rms_norm_fwd(
        &mut self,
        out: &mut Vec<R>,
        rstd: &mut Vec<W>,
        x: &Vec<W>,
        weight: &Weight<W, R>,
        rows: usize,
        width: usize,
        eps: f64,
    ) {
        let scale = gemm::grow(&mut self.cx.memory, width);
        rms_norm::fwd(&self.cx.on, scale, out, rstd, x, weight, rows, width, eps);
    }

    fn rms_norm_bwd(
        &mut self,
        d_x: &mut Vec<W>,
        d_out: &Vec<W>,
        x: &Vec<W>,
        rstd: &Vec<W>,
        weight: &Weight<W, R>,
        rows: usize,
        width: usize,
    ) {
        let scale = gemm::grow(&mut self.cx.memory, width);
        rms_norm::bwd(&self.cx.on, scale, d_x, d_out, x, rstd, weight, rows, width);
    }

    fn rms_norm_bwd_weight(
        &mut self,
        d_weight: &mut Vec<W>,
        offset: usize,
        d_out: &Vec<W>,
        x: &Vec<W>,
        rstd: &Vec<W>,
        rows: usize,
        width: usize,
    ) {
        rms_norm::bwd_weight(&self.cx.on, &mut d_weight[offset..], d_out, x, rstd, rows, width);
    }

    fn rope_fwd(
        &mut self,
        out: &mut Vec<R>,
        x: &Vec<R>,
        pack: &Arc<Pack>,
        cos_sin: &Vec<W>,
        heads: usize,
        head_dim: usize,
    ) {
        rope::fwd(&self.cx.on, out, x, pack, cos_sin, heads, head_dim);
    }

    fn rope_bwd(&mut self, d_x: &mut Vec<R>, pack: &Arc<Pack>, cos_sin: &Vec<W>, heads: usize, head_dim: usize) {
        rope::bwd(&self.cx.on, d_x, pack, cos_sin, heads, head_dim);
    }

    fn attention_fwd(
        &mut self,
        z: &mut Vec<R>,
        lse: &mut Vec<W>,
        q: &Vec<R>,
        k: &Vec<R>,
        v: &Vec<R>,
        kept: Option<(&Vec<R>, &Vec<R>)>,
        pack: &Arc<Pack>,
        dims: AttentionDims,
    ) {
        let kept = kept.map(|(k, v)| [k.as_slice(), v.as_slice()]);
        attention::forward::fwd(&mut self.cx, z, lse, q, [k, v], kept, pack, dims);
    }

    fn attention_bwd(
        &mut self,
        d_q: &mut Vec<R>,
        d_k: &mut Vec<R>,
        d_v: &mut Vec<R>,
        delta: &mut Vec<W>,
        d_z: &Vec<W>,
        z: &Vec<R>,
        lse: &Vec<W>,
        q: &Vec<R>,
        k: &Vec<R>,
        v: &Vec<R>,
        pack: &Arc<Pack>,
        dims: AttentionDims,
    ) {
        let inputs = attention::backward::Inputs { d_z, z, lse, q, k, v };
        attention::backward::bwd(&mut self.cx, [d_q, d_k, d_v], delta, &inputs, pack, dims);
    }

    fn attention_pattern(
        &mut self,
        out: &mut Vec<W>,
        q: &Vec<R>,
        k: &Vec<R>,
        kept: Option<&Vec<R>>,
        lse: &Vec<W>,
        rows: &[usize],
        pack: &Arc<Pack>,
        dims: AttentionDims,
        longest: usize,
        normalised: bool,
    ) {
        let kept = kept.map(Vec::as_slice);
        attention::patterns::pattern(&mut self.cx, out, q, k, kept, lse, rows, pack, dims, longest, normalised);
    }

    fn attention_result(
        &mut self,
        out: &mut Vec<W>,
        z: &Vec<R>,
        weight: &Weight<W, R>,
        rows: &[usize],
        heads: usize,
        head_dim: usize,
        width: usize,
    ) {
        attention::patterns::result(&mut self.cx, out, z, weight, rows, heads, head_dim, width);
    }

    fn keep(&mut self, cache: &mut Vec<R>, to: usize, x: &Vec<R>, from: Range<usize>, width: usize) {
        rows::keep(cache, to, x, from, width);
    }

    fn linear_fwd(
        &mut self,
        out: &mut Vec<R>,
        x: &Vec<R>,
        weight: &Weight<W, R>,
        bias: Option<&Weight<W, R>>,
        dims: LinearDims,
    ) {
        linear::fwd(&mut self.cx.gemm, &mut self.cx.memory, out, x, weight, bias, dims);
    }

    fn linear_bwd_input(
        &mut self,
        d_x: &mut Vec<W>,
        d_out: &Vec<R>,
        weight: &Weight<W, R>,
        dims: LinearDims,
        accumulate: bool,
    ) {
        linear::bwd_input(&mut self.cx.gemm, d_x, d_out, weight, dims, accumulate);
    }

    fn linear_bwd_weight(
        &mut self,
        d_weight: &mut Vec<W>,
        offset: usize,
        d_out: &Vec<R>,
        x: &Vec<R>,
        dims: LinearDims,
    ) {
        linear::bwd_weight(&mut self.cx.gemm, &mut d_weight[offset..], d_out, x, dims);
    }

    fn linear_bwd_bias(&mut self, d_bias: &mut Vec<W>, offset: usize, d_out: &Vec<R>, rows: usize, output: usize) {
        linear::bwd_bias(&self.cx.on, &mut d_bias[offset..], d_out, rows, output);
    }

    fn lora_fwd(
        &mut self,
        y: &mut Vec<R>,
        xa: &mut Vec<W>,
        x: &Vec<R>,
        params: &Vec<W>,
        pack: &Arc<Pack>,
        site: LoraSite,
        dropout: Option<Dropout<'_>>,
    ) {
        lora::fwd(&mut self.cx, y, xa, x, params, pack, site, dropout);
    }

    fn lora_bwd(
        &mut self,
        d_params: &mut Vec<W>,
        d_x: Option<&mut Vec<W>>,
        d_y: &Vec<R>,
        xa: &Vec<W>,
        x: &Vec<R>,
        params: &Vec<W>,
        pack: &Arc<Pack>,
        site: LoraSite,
        dropout: Option<Dropout<'_>>,
    ) {
        let d_x = d_x.map(Vec::as_mut_slice);
        lora::bwd(&mut self.cx, d_params, d_x, d_y, xa, x, params, pack, site, dropout);
    }

    fn lora_delta(&mut self, out: &mut Vec<W>, xa: &Vec<W>, params: &Vec<W>, pack: &Arc<Pack>, site: LoraSite) {
        lora::delta(&mut self.cx, out, xa, params, pack, site);
    }

    fn swiglu_fwd(&mut self, act: &mut Vec<R>, gate: &Vec<R>, up: &Vec<R>, len: usize) {
        activation::swiglu_fwd(&self.cx.on, act, gate, up, len);
    }

    fn swiglu_bwd(
        &mut self,
        d_gate: &mut Vec<R>,
        d_up: &mut Vec<R>,
        d_act: &Vec<W>,
        gate: &Vec<R>,
        up: &Vec<R>,
        len: usize,
    ) {
        activation::swiglu_bwd(&self.cx.on, d_gate, d_up, d_act, gate, up, len);
    }

    fn activation_fwd(&mut self, act: &mut Vec<R>, x: &Vec<R>, f: Activation, len: usize) {
        activation::fwd(&self.cx.on, act, x, f, len);
    }

    fn activation_bwd(&mut self, d_x: &mut Vec<R>, d_act: &Vec<W>, x: &Vec<R>, f: Activation, len: usize) {
        activation::bwd(&self.cx.on, d_x, d_act, x, f, len);
    }

    fn logits_fwd(&mut self, logits: &mut Vec<W>, x: &Vec<R>, head: &Weight<W, R>, dims: LinearDims) {
        cross_entropy::logits_fwd(&mut self.cx.gemm, logits, x, head, dims);
    }

    fn cross_entropy_fwd(
        &mut self,
        loss: &mut Vec<W>,
        x: &Vec<R>,
        head: &Weight<W, R>,
        targets: &Vec<u32>,
        dims: LinearDims,
    ) {
        cross_entropy::sweep(&mut self.cx.gemm, &mut self.cx.memory, loss, None, x, head, targets, dims);
    }

    fn cross_entropy_bwd(
        &mut self,
        loss: &mut Vec<W>,
        d_x: &mut Vec<W>,
        d_head: Option<(&mut Vec<W>, usize)>,
        x: &Vec<R>,
        head: &Weight<W, R>,
        targets: &Vec<u32>,
        row_weights: &Vec<W>,
        dims: LinearDims,
    ) {
        let d_head = d_head.map(|(d_head, offset)| &mut d_head[offset..]);
        let gradients = Some(cross_entropy::Gradients { d_x, d_head, row_weights });
        cross_entropy::sweep(&mut self.cx.gemm, &mut self.cx.memory, loss, gradients, x, head, targets, dims);
    }

    fn grad_norm(&mut self, norm_sq: &mut Vec<W>, d_params: &Vec<W>, runs: usize, stride: usize) {
        adamw::grad_norm(&self.cx.on, &mut self.cx.sums, norm_sq, d_params, runs, stride);
    }

    fn check_finite(&mut self, stop: &mut Vec<W>, values: &Vec<W>, len: usize) {
        if values[..len].iter().any(|x| !x.to_f64().is_finite()) {
            stop[0] = W::from_f64(1.0);
        }
    }

    fn adamw(
        &mut self,
        params: &mut Vec<W>,
        m: &mut Vec<W>,
        v: &mut Vec<W>,
        d_params: &Vec<W>,
        norm_sq: &Vec<W>,
        stop: &Vec<W>,
        steps: &[AdamwStep],
        stride: usize,
    ) {
        if stop[0].to_f64() != 0.0 {
            return;
        }
        adamw::adamw(&self.cx.on, params, m, v, d_params, norm_sq, steps, stride);
    }

    fn refresh_weight(&mut self, weight: &mut Weight<W, R>, params: &Vec<W>, offset: usize) {
        weight.refresh(self.cx.on.isa, &params[offset..]);
    }
}
