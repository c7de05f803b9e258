//! Runs operations on any device, arrays in and arrays out.

use llamaprobe::backend::ops::{Cast, ResidualFwd};
use llamaprobe::backend::{AccElement, Backend, Buffers};

use super::operation::{Operation, Role};

/// Elements beside a gradient that lies inside a larger buffer; they must stay what they are.
pub const BEFORE: usize = 5;
const AFTER: usize = 3;
/// What stands where something is to be written, or is not to be touched.
pub const SENTINEL: f64 = -1234.0;

/// A buffer of the accumulation dtype, of these values.
pub fn acc<B: Backend>(b: &mut B, values: &[f64]) -> B::Acc {
    let mut buffer = b.acc(values.len()).unwrap();
    let elements: Vec<B::Element> = values.iter().map(|&x| B::Element::from_f64(x)).collect();
    b.upload(&mut buffer, 0, &elements).unwrap();
    buffer
}

/// A buffer of the compute dtype, of these values, rounded.
pub fn compute<B: Backend>(b: &mut B, values: &[f64]) -> B::Compute {
    let x = acc(b, values);
    let mut out = b.compute(values.len()).unwrap();
    b.cast(Cast { out: &mut out, x: &x, len: values.len() });
    out
}

/// A weight of these values, rounded.
pub fn weight<B: Backend>(b: &mut B, values: &[f64]) -> B::Weight {
    let params = acc(b, values);
    b.trainable_weight(&params, 0, values.len()).unwrap()
}

/// The first `len` elements of a buffer of the accumulation dtype.
pub fn read_acc<B: Backend>(b: &mut B, buffer: &B::Acc, len: usize) -> Vec<f64> {
    let mut values = vec![B::Element::default(); len];
    b.download(&mut values, buffer, 0).unwrap();
    b.sync().unwrap();
    values.into_iter().map(AccElement::to_f64).collect()
}

/// The first `len` elements of a buffer of the compute dtype (a sum with 0 is exact).
pub fn read_compute<B: Backend>(b: &mut B, buffer: &B::Compute, len: usize) -> Vec<f64> {
    let zeros = b.acc(len).unwrap();
    let mut sum = b.acc(len).unwrap();
    b.residual_fwd(ResidualFwd { out: &mut sum, a: &zeros, b: buffer, len });
    read_acc(b, &sum, len)
}

/// A gradient `start` inside a buffer with something on both sides.
pub fn inside<B: Backend>(b: &mut B, start: &[f64]) -> B::Acc {
    let padded = [&[SENTINEL; BEFORE], start, &[SENTINEL; AFTER]].concat();
    acc(b, &padded)
}

/// What became of it.
pub fn read_inside<B: Backend>(b: &mut B, buffer: &B::Acc, len: usize) -> Vec<f64> {
    let all = read_acc(b, buffer, BEFORE + len + AFTER);
    let beside = all[..BEFORE].iter().chain(&all[BEFORE + len..]);
    // A null device reads zeros.
    assert!(beside.clone().all(|&x| x == SENTINEL) || b.name() == "trace", "written beside a gradient: {beside:?}");
    all[BEFORE..BEFORE + len].to_vec()
}

/// Where an operation writes: buffers for its outputs, in their order, longer than they need be.
pub struct Outputs<B: Backend> {
    pub acc: Vec<B::Acc>,
    pub compute: Vec<B::Compute>,
    /// What they hold before.
    pub fill: f64,
}

/// The outputs of `op`, whose buffers hold `fill` before.
pub fn forward<B: Backend>(b: &mut B, op: &impl Operation, inputs: &[Vec<f64>], fill: f64) -> Vec<Vec<f64>> {
    let outputs = op.outputs();
    let mut out = Outputs { acc: Vec::new(), compute: Vec::new(), fill };
    for output in &outputs {
        let values = vec![fill; output.len + AFTER];
        match output.role {
            Role::Acc => out.acc.push(acc(b, &values)),
            Role::Compute => out.compute.push(compute(b, &values)),
        }
    }
    op.forward(b, inputs, &mut out);
    let (mut accs, mut computes) = (out.acc.iter(), out.compute.iter());
    let read = outputs.iter().map(|output| match output.role {
        Role::Acc => read_acc(b, accs.next().unwrap(), output.len),
        Role::Compute => read_compute(b, computes.next().unwrap(), output.len),
    });
    read.collect()
}

/// What a backward is given.
pub struct Given<'a> {
    pub inputs: &'a [Vec<f64>],
    pub d_outputs: &'a [Vec<f64>],
    /// What the gradients' buffers hold before.
    pub start: &'a [Vec<f64>],
    /// For the one gradient that can be set or added to.
    pub accumulate: bool,
}

impl Given<'_> {
    /// The length of input `i`.
    pub fn len(&self, i: usize) -> usize {
        self.inputs[i].len()
    }
}

/// The gradients of the inputs, none where the contract has none. What a backward needs of a forward it runs itself.
pub fn backward<B: Backend>(b: &mut B, op: &impl Operation, given: &Given<'_>) -> Vec<Option<Vec<f64>>> {
    if op.has_backward() { op.backward(b, given) } else { vec![None; given.inputs.len()] }
}

/// A call with wrong arguments, and what it must say.
pub struct Refusal<B> {
    pub says: &'static str,
    pub call: fn(&mut B),
}

/// Buffers of each kind on a device.
type Inputs<B, const A: usize, const C: usize, const W: usize> =
    ([<B as Buffers>::Acc; A], [<B as Buffers>::Compute; C], [<B as Buffers>::Weight; W]);

/// Buffers of so many zeros, of the accumulation dtype, the compute dtype, and weights.
pub fn buffers<B: Backend, const A: usize, const C: usize, const W: usize>(
    b: &mut B,
    acc: [usize; A],
    compute: [usize; C],
    weights: [usize; W],
) -> Inputs<B, A, C, W> {
    let acc = acc.map(|len| b.acc(len).unwrap());
    let compute = compute.map(|len| b.compute(len).unwrap());
    (acc, compute, weights.map(|len| weight(b, &vec![0.0; len])))
}
