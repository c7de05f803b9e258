//! Cases: an operation with the numbers that go in.

use super::operation::Operation;
use super::{Op, normal};

/// What cases are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// Small enough for finite differences: odd sizes, grouped heads, forests with parting parents, several runs beside
    /// base rows, virtual tokens, windows, dropout.
    Small,
    /// Of the sizes that blocked loops have edges at.
    Large,
    /// Of [`ROWS`] rows that stand alone.
    Rows,
    /// On the forest [`packs::large_forest`](super::packs::large_forest).
    Forest,
}

/// Rows of the cases whose rows stand alone.
pub const ROWS: usize = 131;

/// A named operation with the numbers that go in.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    pub op: Op,
    pub inputs: Vec<Vec<f64>>,
    /// The gradients of the outputs, for the backward.
    pub d_outputs: Vec<Vec<f64>>,
}

impl Case {
    /// A case of normal numbers, the same for the same name.
    pub fn new(name: impl Into<String>, op: impl Into<Op>) -> Self {
        let (name, op) = (name.into(), op.into());
        let seed = name.bytes().fold(17, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let inputs = op.inputs().into_iter().zip(0..).map(|(array, i)| {
            let sign = |x: f64| if array.positive { x.abs() } else { x };
            normal(seed + i, array.len).into_iter().map(|x| sign(array.scale * x)).collect()
        });
        let inputs = inputs.collect();
        let d_outputs = op.outputs().into_iter().zip(100..).map(|(array, i)| normal(seed + i, array.len)).collect();
        Self { name, op, inputs, d_outputs }
    }

    /// Zeros of the lengths of the inputs.
    pub fn zeros(&self) -> Vec<Vec<f64>> {
        self.inputs.iter().map(|x| vec![0.0; x.len()]).collect()
    }
}
