//! Soft prompts that an MLP makes while they are trained.
//!
//! The parameters are those of an embedding and of the MLP behind it; the prompts that the model reads are
//! materialized from them after every step, and gradients of the prompts go back through it once a step, whatever the number of passes.

use super::adaptation::Adaptation;
use crate::Result;
use crate::arch::Activation;
use crate::backend::ops::{
    ActivationBwd, ActivationFwd, Cast, EmbedBwdTable, EmbedFwd, GatherAcc, LinearBwdBias, LinearBwdInput,
    LinearBwdWeight, LinearDims, LinearFwd, RefreshWeight, ResidualFwd, ScatterAdd, Zero,
};
use crate::backend::{AccElement, Backend};
use crate::formats::adapter::{EncoderShape, EncoderState, Reparameterization};
use crate::pack::{Label, PackBuilder, Parent, Token};
use crate::random::Rng;

/// Parameters that start a run of a prompt of `rows` rows: its embedding as given, the layers as torch's `Linear` begins,
/// uniform in `±1 / sqrt(input)`; the last layer of a residual MLP is zero, so that the start is the embedding.
pub fn fresh(shape: EncoderShape, rows: usize, embedding: &[f32], seed: u64) -> EncoderState {
    assert!(embedding.len() == rows * shape.input, "encoder: an embedding of {} elements", embedding.len());
    // The embedding and the order of the data draw from other streams of this seed.
    let mut rng = Rng::with_stream(seed, u64::MAX);
    let mut params = embedding.to_vec();
    let linears = shape.linears();
    for (i, (input, output)) in linears.iter().enumerate() {
        let bound = 1.0 / (*input as f32).sqrt();
        let still = shape.kind == Reparameterization::Residual && i + 1 == linears.len();
        params.extend((0..input * output + output).map(|_| if still { 0.0 } else { rng.symmetric(bound) }));
    }
    EncoderState { shape, params }
}

/// The MLPs of all runs, and the prompts that they make.
pub struct Encoder<B: Backend> {
    /// Their dimensions.
    pub shape: EncoderShape,
    /// Elements of a run.
    pub stride: usize,
    /// `[runs, stride]`, each run's laid out by [`EncoderShape::parts`].
    pub params: B::Acc,
    /// What they make.
    pub adaptation: Adaptation<B>,
    runs: Vec<Mlp<B>>,
    scratch: Scratch<B>,
    /// Width of the rows [`Mlp::param_rows`] of the prompts' parameters.
    row_width: usize,
}

/// One run's MLP as the products read it.
struct Mlp<B: Backend> {
    rows: usize,
    /// The rows' numbers, as tokens of the embedding.
    ids: B::Pack,
    /// The weights: embedding, then each layer's weight and bias, each with its first element.
    weights: Vec<(B::Weight, usize)>,
    /// Where the prompt's rows lie among the parameters of all prompts.
    param_rows: B::Index,
}

/// Room for the largest run's pass.
struct Scratch<B: Backend> {
    embedded: B::Acc,
    /// Input of each layer.
    x: Vec<B::Compute>,
    /// Output of each layer, before the activation.
    y: Vec<B::Compute>,
    zeros: B::Acc,
    out: B::Acc,
    d_y: B::Compute,
    d_x: B::Acc,
}

impl<B: Backend> Encoder<B> {
    /// MLPs whose runs start from `states`, one for each run of `adaptation`.
    ///
    /// # Errors
    /// If the device has no memory for them.
    ///
    /// # Panics
    /// If the states do not fit the adaptation.
    pub fn new(backend: &mut B, adaptation: Adaptation<B>, states: &[EncoderState]) -> Result<Self> {
        assert!(!states.is_empty() && states.len() == adaptation.runs, "encoder: {} states", states.len());
        let shape = states[0].shape;
        let stride = adaptation.prompts.iter().map(|&rows| shape.len(rows)).max().unwrap_or(0);
        let mut params = backend.acc(states.len() * stride)?;
        for (run, (state, &rows)) in states.iter().zip(&adaptation.prompts).enumerate() {
            assert!(state.shape == shape && state.params.len() == shape.len(rows), "encoder: state of run {run}");
            let values: Vec<B::Element> = state.params.iter().map(|&x| B::Element::from_f64(f64::from(x))).collect();
            backend.upload(&mut params, run * stride, &values)?;
        }
        let mut runs = Vec::with_capacity(states.len());
        let mut row_width = 0;
        for (run, &rows) in adaptation.prompts.iter().enumerate() {
            let mut weights = Vec::new();
            for (_, dims, from) in shape.parts(rows) {
                let offset = run * stride + from;
                weights.push((backend.trainable_weight(&params, offset, dims.iter().product())?, offset));
            }
            let ids: Vec<Token> = (0..rows as u32).map(Token::Id).collect();
            let mut builder = PackBuilder::default();
            builder.push(&ids, Parent::None, None, Label::Virtual);
            let (width, param_rows) = adaptation.param_rows(run);
            row_width = width;
            let (ids, param_rows) = (backend.pack(&builder.build())?, backend.index(&param_rows)?);
            runs.push(Mlp { rows, ids, weights, param_rows });
        }
        let scratch = Scratch::new(backend, shape, adaptation.prompts.iter().copied().max().unwrap_or(0))?;
        let mut encoder = Self { shape, stride, params, adaptation, runs, scratch, row_width };
        encoder.materialize(backend);
        Ok(encoder)
    }

    /// Bytes of the weights as the products read them, and of a pass.
    pub fn bytes(&self, element_sizes: (usize, usize)) -> usize {
        let rows = &self.adaptation.prompts;
        let copies: usize = rows.iter().map(|&rows| self.shape.len(rows)).sum();
        let most = rows.iter().copied().max().unwrap_or(0);
        copies * element_sizes.1 + Scratch::<B>::bytes(self.shape, most, element_sizes)
    }

    /// Makes the prompts from the present parameters: to be called after a step of the optimiser.
    pub fn refresh(&mut self, backend: &mut B) {
        for run in &mut self.runs {
            for (weight, offset) in &mut run.weights {
                backend.refresh_weight(RefreshWeight { weight, params: &self.params, offset: *offset });
            }
        }
        self.materialize(backend);
    }

    fn materialize(&mut self, backend: &mut B) {
        backend.zero(Zero { x: &mut self.adaptation.params });
        for run in &self.runs {
            forward(backend, self.shape, run, &mut self.scratch);
            backend.scatter_add(ScatterAdd {
                d_x: &mut self.adaptation.params,
                d_out: &self.scratch.out,
                rows: &run.param_rows,
                width: self.row_width,
            });
        }
        self.adaptation.refresh(backend);
    }

    /// `d_params [runs, stride] +=` the gradients, from those of the prompts `d_prompts` (laid out as the adaptation).
    pub fn backward(&mut self, backend: &mut B, d_params: &mut B::Acc, d_prompts: &B::Acc) {
        let (shape, scratch) = (self.shape, &mut self.scratch);
        let linears = shape.linears();
        for run in &self.runs {
            forward(backend, shape, run, scratch);
            let (rows, width) = (&run.param_rows, self.row_width);
            backend.gather_acc(GatherAcc { out: &mut scratch.out, x: d_prompts, rows, width });
            backend.cast(Cast { out: &mut scratch.d_y, x: &scratch.out, len: run.rows * shape.output });
            for (i, &(input, output)) in linears.iter().enumerate().rev() {
                let dims = LinearDims { rows: run.rows, input, output };
                let ((weight, at), (_, bias_at)) = (&run.weights[1 + 2 * i], &run.weights[2 + 2 * i]);
                backend.linear_bwd_weight(LinearBwdWeight {
                    d_weight: d_params,
                    offset: *at,
                    d_out: &scratch.d_y,
                    x: &scratch.x[i],
                    dims,
                });
                backend.linear_bwd_bias(LinearBwdBias {
                    d_bias: d_params,
                    offset: *bias_at,
                    d_out: &scratch.d_y,
                    rows: run.rows,
                    output,
                });
                if i > 0 {
                    backend.linear_bwd_input(LinearBwdInput {
                        d_x: &mut scratch.d_x,
                        d_out: &scratch.d_y,
                        weight,
                        dims,
                        accumulate: false,
                    });
                    let len = run.rows * input;
                    let f = activation(shape.kind);
                    backend.activation_bwd(ActivationBwd {
                        d_x: &mut scratch.d_y,
                        d_act: &scratch.d_x,
                        x: &scratch.y[i - 1],
                        f,
                        len,
                    });
                    continue;
                }
                // What the embedding adds to the output passes its gradient on as it is.
                let residual = shape.kind == Reparameterization::Residual;
                let d_embedded = if residual { &mut scratch.out } else { &mut scratch.d_x };
                backend.linear_bwd_input(LinearBwdInput {
                    d_x: d_embedded,
                    d_out: &scratch.d_y,
                    weight,
                    dims,
                    accumulate: residual,
                });
                backend.embed_bwd_table(EmbedBwdTable {
                    d_table: d_params,
                    offset: run.weights[0].1,
                    d_out: d_embedded,
                    pack: &run.ids,
                    width: input,
                    scale: 1.0,
                });
            }
        }
    }

    /// The parameters of a run.
    ///
    /// # Errors
    /// If the device fails.
    pub fn state(&self, backend: &mut B, run: usize) -> Result<EncoderState> {
        let mut values = vec![B::Element::default(); self.shape.len(self.adaptation.prompts[run])];
        backend.download(&mut values, &self.params, run * self.stride)?;
        Ok(EncoderState { shape: self.shape, params: values.into_iter().map(|x| x.to_f64() as f32).collect() })
    }
}

impl<B: Backend> Scratch<B> {
    fn new(backend: &mut B, shape: EncoderShape, rows: usize) -> Result<Self> {
        let linears = shape.linears();
        let widest = linears.iter().map(|&(input, output)| input.max(output)).max().unwrap_or(0);
        Ok(Self {
            embedded: backend.acc(rows * shape.input)?,
            x: linears.iter().map(|(input, _)| backend.compute(rows * input)).collect::<Result<_>>()?,
            y: linears.iter().map(|(_, output)| backend.compute(rows * output)).collect::<Result<_>>()?,
            zeros: backend.acc(rows * shape.output)?,
            out: backend.acc(rows * shape.output)?,
            d_y: backend.compute(rows * widest)?,
            d_x: backend.acc(rows * widest)?,
        })
    }

    fn bytes(shape: EncoderShape, rows: usize, element_sizes: (usize, usize)) -> usize {
        let linears = shape.linears();
        let widest = linears.iter().map(|&(input, output)| input.max(output)).max().unwrap_or(0);
        let compute = linears.iter().map(|(input, output)| input + output).sum::<usize>() + widest;
        rows * ((shape.input + 2 * shape.output + widest) * element_sizes.0 + compute * element_sizes.1)
    }
}

const fn activation(kind: Reparameterization) -> Activation {
    match kind {
        Reparameterization::Mlp | Reparameterization::Residual => Activation::Relu,
        Reparameterization::Projection => Activation::Tanh,
    }
}

/// A run's prompt into `scratch.out`, every layer's input and output beside it.
fn forward<B: Backend>(backend: &mut B, shape: EncoderShape, run: &Mlp<B>, scratch: &mut Scratch<B>) {
    let Scratch { embedded, x, y, zeros, out, .. } = scratch;
    backend.embed_fwd(EmbedFwd {
        out: embedded,
        pack: &run.ids,
        table: &run.weights[0].0,
        prompt: None,
        width: shape.input,
        scale: 1.0,
    });
    backend.cast(Cast { out: &mut x[0], x: embedded, len: run.rows * shape.input });
    let linears = shape.linears();
    for (i, &(input, output)) in linears.iter().enumerate() {
        let dims = LinearDims { rows: run.rows, input, output };
        let (weight, bias) = (&run.weights[1 + 2 * i].0, &run.weights[2 + 2 * i].0);
        backend.linear_fwd(LinearFwd { out: &mut y[i], x: &x[i], weight, bias: Some(bias), dims });
        if i + 1 < linears.len() {
            backend.activation_fwd(ActivationFwd {
                act: &mut x[i + 1],
                x: &y[i],
                f: activation(shape.kind),
                len: run.rows * output,
            });
        }
    }
    let base = if shape.kind == Reparameterization::Residual { embedded } else { zeros };
    backend.residual_fwd(ResidualFwd { out, a: base, b: &y[linears.len() - 1], len: run.rows * shape.output });
}
