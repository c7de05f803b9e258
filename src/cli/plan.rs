//! The memory plan of a run, known before it: bytes by purpose.

use serde_json::{Map, Value, json};

use super::resolve::Found;
use super::{Failure, output};
use crate::arch::ModelConfig;
use crate::backend::{Backend, OwnMemory, PassSize};
use crate::model::param_id::ParamId;
use crate::model::{Activations, Gradients, Layout, Save};
use crate::train::optim::Optimizer;
use crate::train::passes::pass_size;

/// Bytes by purpose.
pub struct Plan {
    lines: Vec<(&'static str, usize)>,
    /// Host memory that the device reaches, at most; no part of the sum, which is the device's.
    pinned: usize,
    element_sizes: (usize, usize),
}

impl Plan {
    /// The plan of a model's weights on a backend.
    pub fn new<B: Backend>(backend: &B, found: &Found) -> Self {
        let element_sizes = backend.element_sizes();
        Self { lines: vec![weights::<B>(found, element_sizes.1)], pinned: 0, element_sizes }
    }

    /// With another purpose.
    pub fn with(mut self, purpose: &'static str, bytes: usize) -> Self {
        self.lines.push((purpose, bytes));
        self
    }

    /// With what the backend takes of itself.
    pub fn own<B: Backend>(mut self, backend: &B, pass: &PassSize) -> Self {
        let OwnMemory { scratch, pinned } = backend.own_memory(pass);
        self.pinned = pinned;
        if scratch > 0 { self.with("scratch", scratch) } else { self }
    }

    /// With the buffers of a forward over packs of `rows` rows, of which captures of so many bytes each leave the device.
    pub fn inference<B: Backend>(
        self,
        backend: &B,
        config: &ModelConfig,
        layout: Option<&Layout>,
        rows: usize,
        landing: Vec<usize>,
    ) -> Self {
        let bytes = Activations::<B>::bytes(config, layout, rows, Save::Layer, self.element_sizes);
        let adapter = layout.map_or(0, |l| l.stride * self.element_sizes.0);
        let pass = PassSize { rows, landing, ..PassSize::default() };
        self.with("adapters", adapter).with("activations", bytes).own(backend, &pass)
    }

    /// With the adapters of `runs` runs, and what a pass of `rows` rows with its backward and the optimiser need.
    pub fn tuning<B: Backend>(
        self,
        backend: &B,
        config: &ModelConfig,
        layout: &Layout,
        runs: usize,
        rows: usize,
    ) -> Self {
        let sizes = self.element_sizes;
        let pass = pass_size(config, Some(layout), runs, (rows, rows));
        self.with("adapters", runs * layout.stride * sizes.0)
            .with("activations", Activations::<B>::bytes(config, Some(layout), rows, Save::All, sizes))
            .with("gradients", Gradients::<B>::bytes(config, rows, rows, sizes))
            .with("optimiser", Optimizer::<B>::bytes(runs, layout.stride, sizes))
            .own(backend, &pass)
    }

    /// As JSON: bytes by purpose, and their sum.
    pub fn json(&self) -> Value {
        let mut map: Map<String, Value> =
            self.lines.iter().map(|(purpose, bytes)| (purpose.replace([' ', ','], "_"), json!(bytes))).collect();
        map.insert("total".to_owned(), json!(self.total()));
        if self.pinned > 0 {
            map.insert("pinned".to_owned(), json!(self.pinned));
        }
        Value::Object(map)
    }

    /// Prints it as the result of a dry run.
    pub fn print(&self, as_json: bool) -> Result<(), Failure> {
        if as_json {
            return output::json(&json!({ "plan": self.json() }));
        }
        let total = std::iter::once(("total", self.total()));
        let pinned = (self.pinned > 0).then_some(("host memory, pinned, at most", self.pinned));
        output::table(
            &["memory", "bytes", ""],
            self.lines
                .iter()
                .copied()
                .chain(total)
                .chain(pinned)
                .map(|(what, n)| vec![what.to_owned(), n.to_string(), output::bytes(n)]),
        )
    }

    fn total(&self) -> usize {
        self.lines.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// The weights, and where they lie: in the file's mapping, or in memory of their own.
fn weights<B: Backend>(found: &Found, element: usize) -> (&'static str, usize) {
    let elements: usize = ParamId::all(&found.config).into_iter().map(|place| place.len(&found.config)).sum();
    let same = found.checkpoint.iter().next().is_some_and(|t| t.element_size() == element && t.float().is_some());
    let purpose = match (B::MAPS_WEIGHTS, same) {
        (true, true) => "weights, mapped",
        (true, false) => "weights, converted",
        (false, _) => "weights",
    };
    (purpose, elements * element)
}
