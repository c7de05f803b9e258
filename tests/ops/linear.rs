//! Linear maps.

use llamaprobe::backend::blocks::FEW_ROWS;
use llamaprobe::backend::ops::LinearDims;
use llamaprobe::backend::{Backend, ops};
use llamaprobe::formats::quantized::{QuantizedView, RowOrderView};
use llamaprobe::pack::Pack;
use llamaprobe::quantization::BlockFormat;

use super::cases::{Case, ROWS, Set};
use super::device::{self, BEFORE, Given, Outputs, Refusal};
use super::naive::{self, Precision};
use super::operation::{Array, Factors, Operation, Role, RowResults, compute};
use super::quantized;
use super::simt::recorder::{Recorder, rows};
use super::simt::tape::Arg::{At, Inside, Int, Null};

/// x, weight, bias -> out
#[derive(Clone, Debug)]
pub struct Linear {
    pub dims: LinearDims,
    pub bias: bool,
}

pub fn dims(rows: usize, input: usize, output: usize) -> LinearDims {
    LinearDims { rows, input, output }
}

/// The product `[rows, output]` that is `alone` by itself, between two others of the same input, where weights and outputs lie side by
/// side: `weight` makes its weight, or with `true` that of the others, which is another unless it is the `same`. A library that
/// multiplies all at once may sum in another order.
fn between_others<B: Backend>(
    b: &mut B,
    weight: impl Fn(&mut B, bool) -> B::Weight,
    x: &B::Compute,
    (dims, alone, same): (LinearDims, &[f64], bool),
) {
    b.beside(3);
    let weights = [true, false, true].map(|other| weight(b, other));
    b.beside(3);
    let mut outs = [(); 3].map(|()| b.compute(alone.len()).unwrap());
    for (out, weight) in outs.iter_mut().zip(&weights) {
        b.linear_fwd(ops::LinearFwd { out, x, weight, bias: None, dims });
    }
    let [first, between, last] = outs.map(|out| device::read_compute(b, &out, alone.len()));
    let most = alone.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    let near = |found: &[f64]| found.iter().zip(alone).all(|(a, b)| (a - b).abs() <= 0.02 * most);
    assert!(near(&between), "linear_fwd: {between:?} between others, {alone:?} alone");
    // The null device has nothing but zeros.
    let differ = near(&first) == same || most == 0.0;
    assert!(first == last && differ, "linear_fwd: of others {first:?}, {last:?}");
}

impl Operation for Linear {
    fn factors(&self) -> Factors {
        Factors::Weights
    }

    fn inputs(&self) -> Vec<Array> {
        let LinearDims { rows, input, output } = self.dims;
        let bias = compute("bias", if self.bias { output } else { 0 }).scaled(0.5);
        vec![
            compute("x", rows * input).gradient(Role::Acc),
            compute("weight", output * input).scaled(0.5).gradient_added(),
            if self.bias { bias.gradient_added() } else { bias },
        ]
    }

    fn outputs(&self) -> Vec<Array> {
        vec![compute("out", self.dims.rows * self.dims.output).gradient(Role::Compute)]
    }

    fn naive_forward(&self, p: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let out = naive::product(p, self.dims, &inputs[0], &inputs[1]);
        let with_bias = |(i, x): (usize, f64)| p.c(if self.bias { x + inputs[2][i % self.dims.output] } else { x });
        vec![out.into_iter().enumerate().map(with_bias).collect()]
    }

    fn naive_backward(&self, p: Precision, inputs: &[Vec<f64>], d_out: &[f64], d: &mut [Vec<f64>]) {
        naive::product_backward(p, d, self.dims, inputs, d_out);
        for (i, x) in d_out.iter().enumerate().filter(|_| self.bias) {
            p.add(&mut d[2][i % self.dims.output], *x);
        }
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        let (x, weight) = (device::compute(b, &inputs[0]), device::weight(b, &inputs[1]));
        let bias = self.bias.then(|| device::weight(b, &inputs[2]));
        let (out, bias) = (&mut out.compute[0], bias.as_ref());
        b.linear_fwd(ops::LinearFwd { out, x: &x, weight: &weight, bias, dims: self.dims });
        if !self.bias {
            let alone = device::read_compute(b, out, self.dims.rows * self.dims.output);
            let (weight, reversed) = (&inputs[1], inputs[1].iter().rev().copied().collect::<Vec<_>>());
            let of = |b: &mut B, other| device::weight(b, if other { &reversed } else { weight });
            between_others(b, of, &x, (self.dims, &alone, reversed == *weight));
        }
    }

    fn backward<B: Backend>(&self, b: &mut B, given: &Given<'_>) -> Vec<Option<Vec<f64>>> {
        let (dims, accumulate) = (self.dims, given.accumulate);
        let (x, weight) = (&device::compute(b, &given.inputs[0]), &device::weight(b, &given.inputs[1]));
        let d_out = &device::compute(b, &given.d_outputs[0]);
        let (mut d_x, mut d_weight) = (device::acc(b, &given.start[0]), device::inside(b, &given.start[1]));
        b.linear_bwd_input(ops::LinearBwdInput { d_x: &mut d_x, d_out, weight, dims, accumulate });
        b.linear_bwd_weight(ops::LinearBwdWeight { d_weight: &mut d_weight, offset: BEFORE, d_out, x, dims });
        let d_bias = self.bias.then(|| {
            let LinearDims { rows, output, .. } = dims;
            let mut d_bias = device::inside(b, &given.start[2]);
            b.linear_bwd_bias(ops::LinearBwdBias { d_bias: &mut d_bias, offset: BEFORE, d_out, rows, output });
            device::read_inside(b, &d_bias, output)
        });
        vec![
            Some(device::read_acc(b, &d_x, given.len(0))),
            Some(device::read_inside(b, &d_weight, given.len(1))),
            d_bias,
        ]
    }

    fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
        if !self.bias {
            return false;
        }
        // The product is cuBLASLt's; 0 + bias is no result of the case, so only the bias's gradient is compared.
        let d_bias = Inside(r.sum(3, self.dims.output, BEFORE), 4 * BEFORE);
        let d_out = At(r.tape.compute(&case.d_outputs[0]));
        let args = [d_bias, d_out, Int(self.dims.rows), Int(self.dims.output)];
        r.run("linear_bwd_bias", rows(self.dims.output.div_ceil(32)), &args);
        true
    }

    fn row_results(&self) -> Option<RowResults> {
        Some(RowResults { inputs: &[0], gradients: &[true, false, false] })
    }

    fn select(&self, rows: &[usize], _: Option<Pack>) -> Option<Self> {
        Some(Self { dims: LinearDims { rows: rows.len(), ..self.dims }, ..*self })
    }
}

/// x -> out, where the weight is quantised.
#[derive(Clone, Debug)]
pub struct LinearQuantized {
    pub dims: LinearDims,
    pub format: BlockFormat,
}

impl LinearQuantized {
    fn shape(&self) -> [usize; 2] {
        [self.dims.output, self.dims.input]
    }

    /// The values as the device has them.
    fn values(&self, p: Precision) -> Vec<f64> {
        quantized::values(self.format, self.shape()).into_iter().map(|x| p.c(x)).collect()
    }
}

impl Operation for LinearQuantized {
    fn factors(&self) -> Factors {
        Factors::Weights
    }

    fn inputs(&self) -> Vec<Array> {
        vec![compute("x", self.dims.rows * self.dims.input).gradient(Role::Acc)]
    }

    fn outputs(&self) -> Vec<Array> {
        vec![compute("out", self.dims.rows * self.dims.output).gradient(Role::Compute)]
    }

    fn naive_forward(&self, p: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let out = naive::product(p, self.dims, &inputs[0], &self.values(p));
        vec![out.into_iter().map(|x| p.c(x)).collect()]
    }

    fn naive_backward(&self, p: Precision, inputs: &[Vec<f64>], d_out: &[f64], d: &mut [Vec<f64>]) {
        let (weight, d_x) = (self.values(p), std::mem::take(&mut d[0]));
        let mut both = [d_x, vec![0.0; weight.len()]];
        naive::product_backward(p, &mut both, self.dims, &[inputs[0].clone(), weight], d_out);
        d[0] = std::mem::take(&mut both[0]);
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        let (x, weight) = (device::compute(b, &inputs[0]), quantized::weight(b, self.format, self.shape()));
        let (out, dims) = (&mut out.compute[0], self.dims);
        b.linear_fwd(ops::LinearFwd { out, x: &x, weight: &weight, bias: None, dims });
        let alone = device::read_compute(b, out, dims.rows * dims.output);
        // The others have their rows in the order in which they are stored.
        let view = quantized::view(self.format, self.shape());
        let order = |other| if other { RowOrderView::From(0) } else { view.order.clone() };
        let of = |b: &mut B, other| b.quantized_weight(&QuantizedView { order: order(other), ..view.clone() }).unwrap();
        between_others(b, of, &x, (dims, &alone, dims.output == 1));
    }

    fn backward<B: Backend>(&self, b: &mut B, given: &Given<'_>) -> Vec<Option<Vec<f64>>> {
        let (dims, accumulate) = (self.dims, given.accumulate);
        let weight = &quantized::weight(b, self.format, self.shape());
        let (d_out, mut d_x) = (&device::compute(b, &given.d_outputs[0]), device::acc(b, &given.start[0]));
        b.linear_bwd_input(ops::LinearBwdInput { d_x: &mut d_x, d_out, weight, dims, accumulate });
        vec![Some(device::read_acc(b, &d_x, given.len(0)))]
    }

    /// Of few rows, by themselves and in f32; of more the product is cuBLASLt's.
    fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
        let LinearDims { rows: count, output, .. } = self.dims;
        if count > FEW_ROWS {
            return false;
        }
        let x = At(r.tape.compute(&case.inputs[0]));
        let matrix = quantized::args(r.tape, &quantized::view(self.format, self.shape()));
        for (name, role, bias) in
            [("quantized_linear_fwd", Role::Compute, &[Null][..]), ("quantized_logits_fwd", Role::Acc, &[])]
        {
            let out = At(r.output(0, count * output, role));
            let args = [&[out, x], bias, &matrix, &[Int(count), Int(output)]].concat();
            r.run(name, rows(output.div_ceil(16)), &args);
        }
        true
    }

    fn row_results(&self) -> Option<RowResults> {
        Some(RowResults { inputs: &[0], gradients: &[true] })
    }

    fn select(&self, rows: &[usize], _: Option<Pack>) -> Option<Self> {
        Some(Self { dims: LinearDims { rows: rows.len(), ..self.dims }, ..*self })
    }
}

fn quantized_cases(set: Set) -> Vec<Case> {
    use BlockFormat::{Int8Rows, Nf4, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
    let shapes: &[(BlockFormat, usize, usize, usize)] = match set {
        Set::Small => &[
            (Int8Rows, 5, 7, 3),
            (Nf4 { block: 64 }, 3, 35, 5),
            (Q8_0, 2, 32, 3),
            (Q4_0, 2, 32, 5),
            (Q4_1, 2, 32, 3),
            (Q5_0, 1, 64, 3),
            (Q5_1, 2, 32, 2),
            (Q2K, 1, 256, 2),
            (Q3K, 1, 256, 3),
            (Q4K, 1, 256, 3),
            (Q5K, 1, 256, 2),
            (Q6K, 2, 256, 1),
        ],
        Set::Large => &[
            (Int8Rows, 130, 33, 65),
            (Nf4 { block: 64 }, 70, 288, 100),
            (Nf4 { block: 64 }, 1, 1344, 70),
            (Q8_0, 7, 608, 300),
            (Q4_0, 9, 320, 65),
            (Q4_1, 7, 352, 65),
            (Q5_0, 70, 896, 33),
            (Q5_1, 5, 320, 70),
            (Q2K, 7, 512, 65),
            (Q3K, 9, 768, 65),
            (Q4K, 7, 768, 100),
            (Q5K, 70, 256, 65),
            (Q6K, 70, 512, 33),
        ],
        Set::Rows => &[(Int8Rows, ROWS, 300, 41), (Nf4 { block: 64 }, ROWS, 704, 96), (Q4K, ROWS, 768, 70)],
        Set::Forest => &[],
    };
    let case = |&(format, rows, input, output): &(BlockFormat, usize, usize, usize)| {
        Case::new(
            format!("linear {format} {rows}x{input}x{output}"),
            LinearQuantized { dims: dims(rows, input, output), format },
        )
    };
    shapes.iter().map(case).collect()
}

pub fn cases<B: Backend>(_: &mut B, set: Set) -> Vec<Case> {
    [float_cases(set), quantized_cases(set)].concat()
}

fn float_cases(set: Set) -> Vec<Case> {
    let case =
        |name: &str, rows, input, output, bias| Case::new(name, Linear { dims: dims(rows, input, output), bias });
    match set {
        Set::Small => vec![
            case("linear 0", 1, 1, 1, false),
            case("linear 0 bias", 1, 1, 1, true),
            case("linear 1", 5, 7, 3, false),
            case("linear 1 bias", 5, 7, 3, true),
            case("linear 2", 9, 4, 17, false),
            case("linear 2 bias", 9, 4, 17, true),
        ],
        Set::Large => vec![
            case("large linear 70x288x100", 70, 288, 100, true),
            case("large linear 7x600x300", 7, 600, 300, true),
            case("large linear 130x33x65", 130, 33, 65, true),
        ],
        Set::Rows => vec![
            case("linear wide", ROWS, 288, 96, true),
            case("linear odd", ROWS, 37, 41, false),
            case("linear deep", ROWS, 1100, 19, false),
            case("linear large", ROWS, 300, 700, false),
        ],
        Set::Forest => vec![],
    }
}

pub fn refusals<B: Backend>() -> Vec<Refusal<B>> {
    vec![
        Refusal {
            says: "linear_fwd: the weight's length is 7, must be 6",
            call: |b| {
                let ([], [mut out, x], [weight]) = device::buffers(b, [], [9, 9], [7]);
                let (out, x, weight) = (&mut out, &x, &weight);
                b.linear_fwd(ops::LinearFwd { out, x, weight, bias: None, dims: dims(3, 2, 3) });
            },
        },
        Refusal {
            says: "linear_fwd: the bias's length is 2, must be 3",
            call: |b| {
                let ([], [mut out, x], [weight, bias]) = device::buffers(b, [], [9, 9], [6, 2]);
                let (out, x, weight, bias) = (&mut out, &x, &weight, Some(&bias));
                b.linear_fwd(ops::LinearFwd { out, x, weight, bias, dims: dims(3, 2, 3) });
            },
        },
        Refusal {
            says: "linear_bwd_input: d_x has 5 elements, needs 6",
            call: |b| {
                let ([mut d_x], [d_out], [weight]) = device::buffers(b, [5], [9], [6]);
                let (d_x, d_out, weight) = (&mut d_x, &d_out, &weight);
                b.linear_bwd_input(ops::LinearBwdInput { d_x, d_out, weight, dims: dims(3, 2, 3), accumulate: false });
            },
        },
        Refusal {
            says: "linear_bwd_weight: d_weight has 6 elements, needs 7",
            call: |b| {
                let ([mut d_weight], [d_out, x], []) = device::buffers(b, [6], [9, 6], []);
                let (d_weight, d_out, x) = (&mut d_weight, &d_out, &x);
                b.linear_bwd_weight(ops::LinearBwdWeight { d_weight, offset: 1, d_out, x, dims: dims(3, 2, 3) });
            },
        },
        Refusal {
            says: "linear_bwd_bias: d_out has 8 elements, needs 9",
            call: |b| {
                let ([mut d_bias], [d_out], []) = device::buffers(b, [3], [8], []);
                let (d_bias, d_out) = (&mut d_bias, &d_out);
                b.linear_bwd_bias(ops::LinearBwdBias { d_bias, offset: 0, d_out, rows: 3, output: 3 });
            },
        },
    ]
}
