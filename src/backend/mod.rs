//! The contract between the model and a device: a narrow set of fused operations, each forward with its backward.
//!
//! **Buffers.** [`Backend::Acc`] holds what must not lose digits: the residual stream, norm statistics,
//! log-sum-exps, losses, adapters, their gradients and moments. [`Backend::Compute`] holds the compute dtype that matrix
//! products read and write. [`Backend::Weight`] is a frozen matrix or vector of the checkpoint, left in the file's
//! mapping where the device can. Shapes stand in the doc comments; matrices are row-major and dense. A buffer may be
//! longer than its shape (it was planned for a larger pack): operations use its leading elements.
//!
//! **Order of arguments.** Outputs, what is saved for the backward, inputs, weights, dims, scalars.
//!
//! **`=` or `+=`.** Each output says which. Activations and their gradients are `=` except where several
//! contributions meet; gradients of parameters are always `+=`.
//!
//! **Errors.** Operations return nothing: the backend keeps its first error with the operation's name, and
//! [`Backend::sync`] reports it. Wrong lengths are a mistake of the caller and panic with both numbers.
//!
//! **Determinism.** Every reduction has a fixed order; the same inputs give the same bits. A row of an output depends
//! only on its own inputs (for attention: on its segment's path), bit for bit, whatever else is in the pack.

use crate::Result;
use crate::formats::safetensors::TensorView;
use crate::pack::Pack;

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod trace;
mod values;

pub use crate::arch::Activation;
pub use values::{
    AccElement, AdamwStep, AttentionDims, Captured, Dropout, HostSlice, KvCache, LinearDims, LoraSite, OwnMemory,
    PassSize, PromptSite, Readback, Tensor,
};

/// A device and its operations. See the module's documentation for the conventions.
///
/// Dimensions: N rows of the pack, C residual width, H query heads, K key-value heads, D head width, F feed-forward
/// width, V vocabulary, R rank, P soft-prompt length, M label rows.
pub trait Backend {
    /// Wide buffer; see the module's documentation.
    type Acc;
    /// Compute-dtype buffer.
    type Compute;
    /// Frozen weight of the checkpoint.
    type Weight;
    /// List of row numbers or ids.
    type Index;
    /// A pack's tables on the device.
    type Pack;
    /// Wide element as the host sees it.
    type Element: AccElement;
    /// A download that has been begun.
    type PendingReadback;
    /// Whether the device works while the host goes on, so that it is worth while to give it the next work before the
    /// results of the last are read.
    const RUNS_AHEAD: bool = false;
    /// Whether weights in the compute dtype stay in the file's mapping.
    const MAPS_WEIGHTS: bool = false;

    /// The device and dtype, such as `cpu f32`.
    fn name(&self) -> String;

    // Memory

    /// A wide buffer of zeros.
    fn acc(&mut self, len: usize) -> Result<Self::Acc>;
    /// A compute-dtype buffer of zeros.
    fn compute(&mut self, len: usize) -> Result<Self::Compute>;
    /// Bytes of one element of a wide and of a compute-dtype buffer.
    fn element_sizes(&self) -> (usize, usize);
    /// What the backend takes of itself for such passes, beside the buffers that it is asked for. The default is for a
    /// device whose operations need next to nothing.
    fn own_memory(&self, _pass: &PassSize) -> OwnMemory {
        OwnMemory::default()
    }
    /// A frozen weight, its elements those of the file rounded to the compute dtype.
    fn weight(&mut self, view: &TensorView) -> Result<Self::Weight>;
    /// A weight to be trained: a copy of `len` elements of wide parameters, from `offset` on.
    fn trainable_weight(&mut self, params: &Self::Acc, offset: usize, len: usize) -> Result<Self::Weight>;
    /// A list of numbers.
    fn index(&mut self, values: &[u32]) -> Result<Self::Index>;
    /// The tables of a pack.
    fn pack(&mut self, pack: &Pack) -> Result<Self::Pack>;
    /// `buffer[offset..] = values`.
    fn upload(&mut self, buffer: &mut Self::Acc, offset: usize, values: &[Self::Element]) -> Result<()>;
    /// `values = buffer[offset..]`, after everything before it has run.
    fn download(&mut self, values: &mut [Self::Element], buffer: &Self::Acc, offset: usize) -> Result<()>;
    /// Begins to download `buffer[..len]` as it is after everything before it has run; does not wait for that.
    fn download_async(&mut self, buffer: &Self::Acc, len: usize) -> Result<Self::PendingReadback>;
    /// Ends a download: waits for it, and not for what was asked of the device since.
    fn wait_readback(&mut self, arriving: Self::PendingReadback) -> Result<Vec<Self::Element>>;
    /// The whole of a wide buffer where the host can read it in place, without a copy.
    fn borrow_acc<'a>(&self, buffer: &'a Self::Acc) -> Option<HostSlice<'a>>;
    /// The whole of a compute-dtype buffer where the host can read it in place, without a copy.
    fn borrow_compute<'a>(&self, buffer: &'a Self::Compute) -> Option<HostSlice<'a>>;
    /// Capture: `x [N, width]` at `rows`, as `f32` on the host, to be read after the next [`Backend::sync`].
    ///
    /// The default copies in place; a device that the host cannot read brings its own.
    fn capture(&mut self, x: Tensor<'_, Self>, rows: &[usize], width: usize) -> Captured {
        let host = match x {
            Tensor::Acc(buffer) => self.borrow_acc(buffer),
            Tensor::Compute(buffer) => self.borrow_compute(buffer),
        };
        let host = host.expect("capture: the host reads this device's buffers in place");
        let mut out = vec![0.0; rows.len() * width];
        for (out, &row) in out.chunks_exact_mut(width).zip(rows) {
            host.copy_f32(row * width, out);
        }
        Captured::Ready(out)
    }
    /// Waits for everything and reports the first error since the last call.
    fn sync(&mut self) -> Result<()>;

    // Rows

    /// `x = 0`.
    fn zero(&mut self, x: &mut Self::Acc);
    /// `out [rows, width] = x`, rounded to the compute dtype.
    fn cast(&mut self, out: &mut Self::Compute, x: &Self::Acc, len: usize);
    /// `out [rows, width] = x`, exactly.
    fn widen(&mut self, out: &mut Self::Acc, x: &Self::Compute, len: usize);
    /// `out [N, C] = a + b`.
    fn residual_fwd(&mut self, out: &mut Self::Acc, a: &Self::Acc, b: &Self::Compute, len: usize);
    /// `out [M, width] = x [N, width]` at `rows [M]`.
    fn gather_compute(&mut self, out: &mut Self::Compute, x: &Self::Compute, rows: &Self::Index, width: usize);
    /// `out [M, width] = x [N, width]` at `rows [M]`.
    fn gather_acc(&mut self, out: &mut Self::Acc, x: &Self::Acc, rows: &Self::Index, width: usize);
    /// Backward of the gathers: `d_x [N, width] += d_out [M, width]` at `rows [M]`, which may repeat; added in the
    /// order of `rows`.
    fn scatter_add(&mut self, d_x: &mut Self::Acc, d_out: &Self::Acc, rows: &Self::Index, width: usize);

    // Embedding

    /// `out [N, C] = table [V, C]` at the row's token, or for a virtual token `p` of run `r` the prompt row at element
    /// `r * stride + offset + p * C` of `prompt`.
    fn embed_fwd(
        &mut self,
        out: &mut Self::Acc,
        pack: &Self::Pack,
        table: &Self::Weight,
        prompt: Option<(&Self::Acc, PromptSite)>,
        width: usize,
    );
    /// `d_prompt += d_out` at virtual rows, in row order.
    fn embed_bwd_prompt(
        &mut self,
        d_prompt: &mut Self::Acc,
        d_out: &Self::Acc,
        pack: &Self::Pack,
        site: PromptSite,
        width: usize,
    );
    /// `d_table [V, C] (from element `offset` on) += d_out` at the rows' tokens, in row order.
    fn embed_bwd_table(
        &mut self,
        d_table: &mut Self::Acc,
        offset: usize,
        d_out: &Self::Acc,
        pack: &Self::Pack,
        width: usize,
    );

    // Learned position embedding (Gehring et al. 2017)

    /// `x [N, C] += table [_, C]` at `first +` the row's position.
    fn position_fwd(&mut self, x: &mut Self::Acc, pack: &Self::Pack, table: &Self::Weight, first: usize, width: usize);
    /// `d_table [_, C] (from element `offset` on) += d_x` at `first +` the rows' positions, in row order.
    fn position_bwd_table(
        &mut self,
        d_table: &mut Self::Acc,
        offset: usize,
        d_x: &Self::Acc,
        pack: &Self::Pack,
        first: usize,
        width: usize,
    );

    // Layer norm (Ba et al. 2016)

    /// `out [N, C] = (x - mean) * rstd * weight + bias`, `mean [N]`, `rstd [N] = 1 / sqrt(mean((x - mean)^2) + eps)`.
    #[allow(clippy::too_many_arguments)]
    fn layer_norm_fwd(
        &mut self,
        out: &mut Self::Compute,
        mean: &mut Self::Acc,
        rstd: &mut Self::Acc,
        x: &Self::Acc,
        weight: &Self::Weight,
        bias: &Self::Weight,
        rows: usize,
        width: usize,
        eps: f64,
    );
    /// `d_x [N, C] +=` the gradient through the norm of `d_out [N, C]`.
    #[allow(clippy::too_many_arguments)]
    fn layer_norm_bwd(
        &mut self,
        d_x: &mut Self::Acc,
        d_out: &Self::Acc,
        x: &Self::Acc,
        mean: &Self::Acc,
        rstd: &Self::Acc,
        weight: &Self::Weight,
        rows: usize,
        width: usize,
    );
    /// `d_affine [2, C] (from element `offset` on) +=` the gradient of the weight, `sum over rows of d_out * (x - mean) *
    /// rstd`, then that of the bias, `sum over rows of d_out`.
    #[allow(clippy::too_many_arguments)]
    fn layer_norm_bwd_affine(
        &mut self,
        d_affine: &mut Self::Acc,
        offset: usize,
        d_out: &Self::Acc,
        x: &Self::Acc,
        mean: &Self::Acc,
        rstd: &Self::Acc,
        rows: usize,
        width: usize,
    );

    // RMS norm (Zhang and Sennrich 2019)

    /// `out [N, C] = x * rstd * weight`, `rstd [N] = 1 / sqrt(mean(x^2) + eps)`.
    ///
    /// `x * rstd` is rounded to the compute dtype before the weight multiplies it, as the reference does.
    #[allow(clippy::too_many_arguments)]
    fn rms_norm_fwd(
        &mut self,
        out: &mut Self::Compute,
        rstd: &mut Self::Acc,
        x: &Self::Acc,
        weight: &Self::Weight,
        rows: usize,
        width: usize,
        eps: f64,
    );
    /// `d_x [N, C] +=` the gradient through the norm of `d_out [N, C]`.
    #[allow(clippy::too_many_arguments)]
    fn rms_norm_bwd(
        &mut self,
        d_x: &mut Self::Acc,
        d_out: &Self::Acc,
        x: &Self::Acc,
        rstd: &Self::Acc,
        weight: &Self::Weight,
        rows: usize,
        width: usize,
    );
    /// `d_weight [C] (from element `offset` on) += sum over rows of d_out * x * rstd`.
    #[allow(clippy::too_many_arguments)]
    fn rms_norm_bwd_weight(
        &mut self,
        d_weight: &mut Self::Acc,
        offset: usize,
        d_out: &Self::Acc,
        x: &Self::Acc,
        rstd: &Self::Acc,
        rows: usize,
        width: usize,
    );

    // Rotary position embedding (Su et al. 2021), halves rotated as in the LLaMA checkpoints

    /// `out [N, heads, D] =` each pair `(x[i], x[i + D/2])` turned by `angle[position, i]`; `cos_sin [positions, D]`
    /// holds the cosines `[D/2]`, then the sines `[D/2]` of each position, with any attention factor multiplied in.
    fn rope_fwd(
        &mut self,
        out: &mut Self::Compute,
        x: &Self::Compute,
        pack: &Self::Pack,
        cos_sin: &Self::Acc,
        heads: usize,
        head_dim: usize,
    );
    /// `d_x [N, heads, D] =` the gradient: `d_x` (which holds the gradient of the output on entry) turned back.
    fn rope_bwd(
        &mut self,
        d_x: &mut Self::Compute,
        pack: &Self::Pack,
        cos_sin: &Self::Acc,
        heads: usize,
        head_dim: usize,
    );

    // Attention over the forest (online softmax: Milakov and Gimelshein 2018; Dao et al. 2022)

    /// `z [N, H, D] = softmax(scale * q k^T + bias) v` over each row's path; `lse [N, H]` the log-sum-exp of its scores.
    ///
    /// The bias is 0, or ALiBi's ([`AttentionDims::slope`]).
    ///
    /// `q [N, H, D]`, `k, v [N, K, D]`; `kept` are the keys and values `[rows of the cache, K, D]` of kept ancestors,
    /// needed if the pack has any. No N x N matrix is made.
    #[allow(clippy::too_many_arguments)]
    fn attention_fwd(
        &mut self,
        z: &mut Self::Compute,
        lse: &mut Self::Acc,
        q: &Self::Compute,
        k: &Self::Compute,
        v: &Self::Compute,
        kept: Option<(&Self::Compute, &Self::Compute)>,
        pack: &Self::Pack,
        dims: AttentionDims,
    );
    /// `d_q [N, H, D] =`, `d_k, d_v [N, K, D] =` from `d_z [N, H, D]`; a key's gradient collects from its own segment
    /// and then from its readers in ascending order. `delta [N, H]` is scratch: `sum(d_z * z)` per row and head.
    #[allow(clippy::too_many_arguments)]
    fn attention_bwd(
        &mut self,
        d_q: &mut Self::Compute,
        d_k: &mut Self::Compute,
        d_v: &mut Self::Compute,
        delta: &mut Self::Acc,
        d_z: &Self::Acc,
        z: &Self::Compute,
        lse: &Self::Acc,
        q: &Self::Compute,
        k: &Self::Compute,
        v: &Self::Compute,
        pack: &Self::Pack,
        dims: AttentionDims,
    );
    /// `out [rows, H, longest]`: for each of `rows`, per head, its scores over its path by position and then
    /// `-inf` (`normalised = false`), or `exp(score - lse)` and then 0 (`normalised = true`).
    #[allow(clippy::too_many_arguments)]
    fn attention_pattern(
        &mut self,
        out: &mut Self::Acc,
        q: &Self::Compute,
        k: &Self::Compute,
        kept: Option<&Self::Compute>,
        lse: &Self::Acc,
        rows: &[usize],
        pack: &Self::Pack,
        dims: AttentionDims,
        longest: usize,
        normalised: bool,
    );
    /// `out [rows, H, C] =` each head's share of the output projection: `z` of that head times the columns of `weight
    /// [C, H D]` that read it.
    #[allow(clippy::too_many_arguments)]
    fn attention_result(
        &mut self,
        out: &mut Self::Acc,
        z: &Self::Compute,
        weight: &Self::Weight,
        rows: &[usize],
        heads: usize,
        head_dim: usize,
        width: usize,
    );
    /// `cache[to..] [rows, width] = x [N, width]` at the consecutive rows `from`: keeps keys or values for later
    /// passes.
    fn keep(
        &mut self,
        cache: &mut Self::Compute,
        to: usize,
        x: &Self::Compute,
        from: std::ops::Range<usize>,
        width: usize,
    );

    // Linear

    /// `out [N, output] = x [N, input] weight^T + bias`, `weight [output, input]`, `bias [output]`.
    fn linear_fwd(
        &mut self,
        out: &mut Self::Compute,
        x: &Self::Compute,
        weight: &Self::Weight,
        bias: Option<&Self::Weight>,
        dims: LinearDims,
    );
    /// `d_x [N, input] = d_out weight`, or `+=` if `accumulate`.
    fn linear_bwd_input(
        &mut self,
        d_x: &mut Self::Acc,
        d_out: &Self::Compute,
        weight: &Self::Weight,
        dims: LinearDims,
        accumulate: bool,
    );
    /// `d_weight [output, input] (from element `offset` on) += d_out^T x`.
    fn linear_bwd_weight(
        &mut self,
        d_weight: &mut Self::Acc,
        offset: usize,
        d_out: &Self::Compute,
        x: &Self::Compute,
        dims: LinearDims,
    );
    /// `d_bias [output] (from element `offset` on) += sum over rows of d_out`.
    fn linear_bwd_bias(
        &mut self,
        d_bias: &mut Self::Acc,
        offset: usize,
        d_out: &Self::Compute,
        rows: usize,
        output: usize,
    );

    // LoRA over stacked runs (Hu et al. 2021): rows of run r pass through adapter r, base rows through none

    /// `y [N, output] += scale * B A dropout(x)`, `xa [N, R] = A dropout(x)` (0 for base rows).
    #[allow(clippy::too_many_arguments)]
    fn lora_fwd(
        &mut self,
        y: &mut Self::Compute,
        xa: &mut Self::Acc,
        x: &Self::Compute,
        params: &Self::Acc,
        pack: &Self::Pack,
        site: LoraSite,
        dropout: Option<Dropout<'_>>,
    );
    /// `d_params += ` the gradients of A and B, `d_x [N, input] +=` that of the input, from `d_y [N, output]`.
    ///
    /// `d_x` is none where nobody below needs it. Each run's sums run over its rows in row order.
    #[allow(clippy::too_many_arguments)]
    fn lora_bwd(
        &mut self,
        d_params: &mut Self::Acc,
        d_x: Option<&mut Self::Acc>,
        d_y: &Self::Compute,
        xa: &Self::Acc,
        x: &Self::Compute,
        params: &Self::Acc,
        pack: &Self::Pack,
        site: LoraSite,
        dropout: Option<Dropout<'_>>,
    );
    /// `out [N, output] = scale * B xa`: what the adapter adds, for captures; 0 for base rows.
    fn lora_delta(
        &mut self,
        out: &mut Self::Acc,
        xa: &Self::Acc,
        params: &Self::Acc,
        pack: &Self::Pack,
        site: LoraSite,
    );

    // SwiGLU (Shazeer 2020)

    /// `act [len] = silu(gate) * up`.
    fn swiglu_fwd(&mut self, act: &mut Self::Compute, gate: &Self::Compute, up: &Self::Compute, len: usize);
    /// `d_gate, d_up [len] =` from `d_act [len]`.
    fn swiglu_bwd(
        &mut self,
        d_gate: &mut Self::Compute,
        d_up: &mut Self::Compute,
        d_act: &Self::Acc,
        gate: &Self::Compute,
        up: &Self::Compute,
        len: usize,
    );

    // Activations of a feed-forward layer without a gate

    /// `act [len] = f(x)`.
    fn activation_fwd(&mut self, act: &mut Self::Compute, x: &Self::Compute, f: Activation, len: usize);
    /// `d_x [len] = d_act * f'(x)`.
    fn activation_bwd(
        &mut self,
        d_x: &mut Self::Compute,
        d_act: &Self::Acc,
        x: &Self::Compute,
        f: Activation,
        len: usize,
    );

    // Head

    /// `logits [M, V] = x [M, C] head^T`, wide.
    fn logits_fwd(&mut self, logits: &mut Self::Acc, x: &Self::Compute, head: &Self::Weight, dims: LinearDims);
    /// `loss [M] = lse - logit of the target` for rows `x [M, C]`, `head [V, C]`, `targets [M] < V`; the logits exist
    /// only a chunk at a time.
    fn cross_entropy_fwd(
        &mut self,
        loss: &mut Self::Acc,
        x: &Self::Compute,
        head: &Self::Weight,
        targets: &Self::Index,
        dims: LinearDims,
    );
    /// The same `loss [M] =`, and in the same sweep `d_x [M, C] = row_weight * (softmax - onehot) head`, and if asked
    /// `d_head [V, C] (from element `offset` on) +=`; `row_weights [M]` is d total / d loss.
    #[allow(clippy::too_many_arguments)]
    fn cross_entropy_bwd(
        &mut self,
        loss: &mut Self::Acc,
        d_x: &mut Self::Acc,
        d_head: Option<(&mut Self::Acc, usize)>,
        x: &Self::Compute,
        head: &Self::Weight,
        targets: &Self::Index,
        row_weights: &Self::Acc,
        dims: LinearDims,
    );

    // Optimiser, over all runs at once: parameters and everything beside them are [runs, stride]

    /// `norm_sq [runs] = sum of squares of the run's gradient`.
    fn grad_norm(&mut self, norm_sq: &mut Self::Acc, d_params: &Self::Acc, runs: usize, stride: usize);
    /// `stop[0] = 1` if any of `values [len]` is not finite; otherwise it stays as it is.
    fn check_finite(&mut self, stop: &mut Self::Acc, values: &Self::Acc, len: usize);
    /// One step of every active run; gradients are cut by `norm_sq` first. `d_params` is read only. Nothing moves if
    /// `stop[0]` is not 0.
    #[allow(clippy::too_many_arguments)]
    fn adamw(
        &mut self,
        params: &mut Self::Acc,
        m: &mut Self::Acc,
        v: &mut Self::Acc,
        d_params: &Self::Acc,
        norm_sq: &Self::Acc,
        stop: &Self::Acc,
        steps: &[AdamwStep],
        stride: usize,
    );
    /// `weight = params` from element `offset` on, rounded to the compute dtype: after a step of full tuning.
    fn refresh_weight(&mut self, weight: &mut Self::Weight, params: &Self::Acc, offset: usize);
}
