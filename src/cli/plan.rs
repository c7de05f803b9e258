//! The memory plan of a run, known before it: bytes by purpose.

use serde_json::{Map, Value, json};

use super::resolve::ModelFiles;
use super::{Failure, output};
use crate::arch::ModelConfig;
use crate::backend::{Backend, OwnMemory, PassSize};
use crate::formats::quantized::QuantizedView;
use crate::model::param_id::{ParamId, Source};
use crate::model::{Activations, Gradients, Layout, Save};
use crate::train::fill::room;
use crate::train::optim::Optimizer;
use crate::train::passes::{adapter_size, pass_size};

/// Device memory in bytes by purpose.
pub struct Plan {
    lines: Vec<(&'static str, usize)>,
    /// Pinned host memory in bytes, at most; no part of the total, which is the device's.
    pinned: usize,
    /// Bytes of an element of the backend's accumulation dtype and of its compute dtype.
    element_sizes: (usize, usize),
}

impl Plan {
    /// The plan of a model's weights alone, for passes that end with the head or before it.
    pub fn new<B: Backend>(backend: &B, files: &ModelFiles, with_head: bool) -> Self {
        let element_sizes = backend.element_sizes();
        Self { lines: weights::<B>(files, element_sizes.1, with_head), pinned: 0, element_sizes }
    }

    /// Adds a line of so many bytes.
    pub fn with(mut self, purpose: &'static str, bytes: usize) -> Self {
        self.lines.push((purpose, bytes));
        self
    }

    /// Adds the memory that the backend takes for itself in passes of at most this size.
    pub fn own<B: Backend>(mut self, backend: &B, pass: &PassSize) -> Self {
        let OwnMemory { scratch, pinned } = backend.own_memory(pass);
        self.pinned = pinned;
        if scratch > 0 { self.with("scratch", scratch) } else { self }
    }

    /// Adds the buffers of a forward pass over packs of `rows` rows, from which captures of so many bytes each leave the
    /// device.
    pub fn inference<B: Backend>(
        self,
        backend: &B,
        config: &ModelConfig,
        layout: Option<&Layout>,
        rows: usize,
        captures: Vec<usize>,
    ) -> Self {
        let bytes = Activations::<B>::bytes(config, layout, rows, Save::Layer, self.element_sizes);
        let adapter = layout.map_or(0, |layout| layout.bytes(1, self.element_sizes));
        let (rank, adapted) = layout.map_or((0, 0), adapter_size);
        let pass = PassSize { rows, rank, adapted, captures, ..PassSize::default() };
        self.with("adapters", adapter).with("activations", bytes).own(backend, &pass)
    }

    /// Adds the adapters of `runs` runs, a forward and backward pass of `rows` rows, and the optimiser's state.
    pub fn tuning<B: Backend>(
        self,
        backend: &B,
        config: &ModelConfig,
        layout: &Layout,
        runs: usize,
        rows: usize,
    ) -> Self {
        let (sizes, rows) = (self.element_sizes, room::<B>(None, rows));
        let pass = pass_size(config, Some(layout), runs, (rows, rows));
        self.with("adapters", layout.bytes(runs, sizes))
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

    /// Refuses what needs more than `memory` bytes; none is as much as there is.
    ///
    /// # Errors
    /// A plan that takes more than `memory` bytes.
    pub fn check(&self, memory: Option<usize>) -> crate::Result<()> {
        match memory.filter(|&memory| self.total() > memory) {
            Some(memory) => {
                let expected = format!("a plan of at most {}", output::bytes(memory));
                Err(crate::Error::argument("memory", expected, output::bytes(self.total())))
            }
            None => Ok(()),
        }
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

    /// All of it but pinned host memory.
    pub fn total(&self) -> usize {
        self.lines.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// The lines of the weights: used in the file's mapping as they are, or converted into memory of their own; the quantised ones, by what
/// they take as they are stored, or on a GPU; and there the most of them that exist decoded at a time.
fn weights<B: Backend>(files: &ModelFiles, element: usize, with_head: bool) -> Vec<(&'static str, usize)> {
    let source = Source::new(&files.config, &files.checkpoint);
    let is_number = |param: &ParamId| source.as_ref().map_or(true, |source| !source.is_quantized(*param));
    let params = ParamId::all(&files.config).into_iter().filter(is_number);
    let elements: usize = params.map(|param| param.len(&files.config)).sum();
    let mut floats = files.checkpoint.iter().filter(|t| t.float().is_some());
    let same = floats.next().is_some_and(|t| t.element_size() == element);
    let purpose = match (B::MAPS_WEIGHTS, same) {
        (true, true) => "weights, mapped",
        (true, false) => "weights, converted",
        (false, _) => "weights",
    };
    let stored = || files.checkpoint.quantized().map(QuantizedView::stored_bytes).sum();
    let (quantized, decoded) = match &source {
        Ok(source) if !B::MAPS_WEIGHTS => source.quantized_bytes(element, with_head).unwrap_or((stored(), 0)),
        _ => (stored(), 0),
    };
    let lines = [(purpose, elements * element), ("weights, quantised", quantized), ("weights, decoded", decoded)];
    lines.into_iter().filter(|&(line, bytes)| bytes > 0 || line == purpose).collect()
}
