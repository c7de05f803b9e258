//! The memory plan of a run, known before it: bytes by purpose.

use serde_json::{Map, Value, json};

use super::resolve::Found;
use super::{Failure, output};
use crate::backend::Backend;
use crate::formats::safetensors::Dtype;
use crate::model::places::Place;
use crate::model::{Activations, Gradients, Keep, Layout, Spec};
use crate::train::optim::Optimizer;

/// Bytes by purpose.
pub struct Plan {
    lines: Vec<(&'static str, usize)>,
    element_sizes: (usize, usize),
}

impl Plan {
    /// The plan of a model's weights on a backend.
    pub fn new<B: Backend>(backend: &B, found: &Found) -> Self {
        let element_sizes = backend.element_sizes();
        Self { lines: vec![weights(found, element_sizes.1)], element_sizes }
    }

    /// With another purpose.
    pub fn with(mut self, purpose: &'static str, bytes: usize) -> Self {
        self.lines.push((purpose, bytes));
        self
    }

    /// With the buffers of a forward over packs of `rows` rows.
    pub fn inference<B: Backend>(self, spec: &Spec, layout: Option<&Layout>, rows: usize) -> Self {
        let bytes = Activations::<B>::bytes(spec, layout, rows, Keep::Layer, self.element_sizes);
        let adapter = layout.map_or(0, |l| l.stride * self.element_sizes.0);
        self.with("adapters", adapter).with("activations", bytes)
    }

    /// With the adapters of `runs` runs, and what a pass of `rows` rows with its backward and the optimiser need.
    pub fn tuning<B: Backend>(self, spec: &Spec, layout: &Layout, runs: usize, rows: usize) -> Self {
        let sizes = self.element_sizes;
        self.with("adapters", runs * layout.stride * sizes.0)
            .with("activations", Activations::<B>::bytes(spec, Some(layout), rows, Keep::All, sizes))
            .with("gradients", Gradients::<B>::bytes(spec, rows, rows, sizes))
            .with("optimiser", Optimizer::<B>::bytes(runs, layout.stride, sizes))
    }

    /// As JSON: bytes by purpose, and their sum.
    pub fn json(&self) -> Value {
        let mut map: Map<String, Value> =
            self.lines.iter().map(|(purpose, bytes)| (purpose.replace([' ', ','], "_"), json!(bytes))).collect();
        map.insert("total".to_owned(), json!(self.total()));
        Value::Object(map)
    }

    /// Prints it as the result of a dry run.
    pub fn print(&self, as_json: bool) -> Result<(), Failure> {
        if as_json {
            return output::json(&json!({ "plan": self.json() }));
        }
        let total = std::iter::once(("total", self.total()));
        output::table(
            &["memory", "bytes", ""],
            self.lines
                .iter()
                .copied()
                .chain(total)
                .map(|(what, n)| vec![what.to_owned(), n.to_string(), output::bytes(n)]),
        )
    }

    fn total(&self) -> usize {
        self.lines.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// Weights in the compute dtype stay in the file's mapping; others are converted into memory of their own.
fn weights(found: &Found, element: usize) -> (&'static str, usize) {
    let elements: usize = Place::all(&found.spec).into_iter().map(|place| place.len(&found.spec)).sum();
    let mapped = found.checkpoint.iter().next().is_some_and(|t| t.dtype.size() == element && t.dtype != Dtype::I64);
    (if mapped { "weights, mapped" } else { "weights, converted" }, elements * element)
}
