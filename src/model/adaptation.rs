//! Adapters of many runs, stacked in one flat buffer `[runs, stride]`, and where in it everything lies.

use std::ops::Range;

use super::lora_start;
use crate::arch::Family;
use crate::arch::ModelConfig;
use crate::arch::Projection;
use crate::backend::ops::{Cast, LoraSite, PromptSite, RunRange};
use crate::backend::{AccElement, Backend};
use crate::formats::adapter::{
    Adapter, AdapterConfig, LoraAdapter, LoraConfig, LoraModule, PromptAdapter, PromptConfig, PromptKind,
};
use crate::random::Rng;
use crate::{Error, Result};

/// A LoRA that is the same in every layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraShape {
    /// Rank R.
    pub rank: usize,
    /// Alpha; the update is multiplied by `alpha / R`, or `alpha / sqrt(R)`.
    pub alpha: f64,
    /// Whether it is `alpha / sqrt(R)` (Kalajdzievski 2023).
    pub rslora: bool,
    /// The adapted modules.
    pub targets: Vec<Projection>,
}

/// Where the parameters of a run lie.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// Elements of a run; those behind the end of a run's own LoRA are zero, and stay so.
    pub stride: usize,
    /// The LoRAs of all runs, of which consecutive ones that are alike share one.
    shapes: Vec<Shape>,
    layers: usize,
    /// The soft prompt.
    pub prompt: Option<PromptSite>,
    /// The prefix: for layer l the keys of all rows `[P, K D]`, then their values. Beside it the soft prompt is zero, and
    /// stays so: nothing reads what its rows become.
    pub prefix: Option<PromptSite>,
    /// Width of a row of the soft prompt, E.
    pub width: usize,
    /// Width of a layer's keys, K D.
    pub kv_width: usize,
    family: Family,
    head_dim: usize,
}

/// Where the LoRA of consecutive runs lies, which adapts the same modules with the same ranks and scales.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// The runs whose LoRA lies so.
    pub runs: RunRange,
    /// Elements of a run.
    size: usize,
    /// The adapted modules: layer, module, and the site of all of it. The parts of a fused module share its A, and their
    /// Bs lie one after another.
    modules: Vec<(usize, Projection, LoraSite)>,
    /// The adapted projections of each layer, by `Projection as usize`.
    lora: Vec<[Option<LoraSite>; 7]>,
}

impl Shape {
    /// No adapted module.
    fn empty(config: &ModelConfig, runs: RunRange) -> Self {
        Self { runs, size: 0, modules: Vec::new(), lora: vec![[None; 7]; config.num_hidden_layers] }
    }

    /// The shape of an adapter as read, whatever its ranks.
    fn of_adapter(config: &ModelConfig, adapter: &LoraAdapter, runs: RunRange) -> Result<Self> {
        let mut shape = Self::empty(config, runs);
        for module in &adapter.modules {
            let name = || format!("adapter module {}", config.family.path(module.layer, module.target));
            if module.layer >= config.num_hidden_layers {
                return Err(Error::argument(
                    name(),
                    format!("a layer below {}", config.num_hidden_layers),
                    module.layer,
                ));
            }
            if !config.family.modules().contains(&module.target) {
                let found = module.target.name();
                return Err(Error::argument("an adapter's module", config.family.module_names(), found));
            }
            let (input, output) = config.widths(module.target);
            let (a, b) = (module.r * input, output * module.r);
            if (module.a.len(), module.b.len()) != (a, b) {
                let found = format!("{} and {} elements", module.a.len(), module.b.len());
                return Err(Error::argument(name(), format!("A and B of {a} and {b} elements"), found));
            }
            if shape.modules.iter().any(|&(layer, target, _)| (layer, target) == (module.layer, module.target)) {
                return Err(Error::argument(name(), "one A and one B", "two"));
            }
            shape.push(config, module.layer, module.target, module.r, module.scale);
        }
        Ok(shape)
    }

    fn push(&mut self, config: &ModelConfig, layer: usize, target: Projection, rank: usize, scale: f64) {
        let (input, output) = config.widths(target);
        let (a, mut b) = (self.size, self.size + rank * input);
        let site = LoraSite { a, b, stride: 0, rank, input, output, scale, runs: self.runs };
        self.size = b + output * rank;
        self.modules.push((layer, target, site));
        for &part in target.parts() {
            let output = config.widths(part).1;
            self.lora[layer][part as usize] = Some(LoraSite { b, output, ..site });
            b += output * rank;
        }
    }

    /// Every adapted module, by layer, then in the family's order.
    pub fn modules(&self) -> impl Iterator<Item = (usize, Projection, LoraSite)> {
        self.modules.iter().copied()
    }
}

impl Layout {
    /// The layout of a LoRA that is the same in every layer.
    pub fn lora(config: &ModelConfig, shape: &LoraShape) -> Self {
        let root = if shape.rslora { (shape.rank as f64).sqrt() } else { shape.rank as f64 };
        let mut of_runs = Shape::empty(config, RunRange::ALL);
        for layer in 0..config.num_hidden_layers {
            for target in config.family.modules().iter().filter(|target| shape.targets.contains(target)) {
                of_runs.push(config, layer, *target, shape.rank, shape.alpha / root);
            }
        }
        Self { shapes: vec![of_runs], ..Self::empty(config) }.with_stride()
    }

    /// The layout of an adapter as read, whatever its ranks.
    ///
    /// # Errors
    /// A module in a layer that the model has not, or with other widths than the model's.
    pub fn of_adapter(config: &ModelConfig, adapter: &LoraAdapter) -> Result<Self> {
        let shape = Shape::of_adapter(config, adapter, RunRange::ALL)?;
        Ok(Self { shapes: vec![shape], ..Self::empty(config) }.with_stride())
    }

    /// The layout of several runs, an adapter each, of any modules, ranks and scales.
    ///
    /// # Errors
    /// Those of [`Layout::of_adapter`], for any of the adapters.
    pub fn of_runs(config: &ModelConfig, adapters: &[LoraAdapter]) -> Result<Self> {
        let mut shapes: Vec<Shape> = Vec::new();
        for (run, adapter) in adapters.iter().enumerate() {
            // One that is as the last one's is its continuation; sites name their runs, so they are compared with those.
            if let Some(last) = shapes.last_mut()
                && Shape::of_adapter(config, adapter, last.runs)? == *last
            {
                let runs = RunRange { first: last.runs.first, end: run + 1 };
                *last = Shape::of_adapter(config, adapter, runs)?;
                continue;
            }
            shapes.push(Shape::of_adapter(config, adapter, RunRange { first: run, end: run + 1 })?);
        }
        if let [shape] = shapes.as_mut_slice() {
            *shape = Shape::of_adapter(config, &adapters[0], RunRange::ALL)?;
        }
        Ok(Self { shapes, ..Self::empty(config) }.with_stride())
    }

    /// With a soft prompt of `rows` rows of the embedding table's width after everything else.
    pub fn with_prompt(mut self, rows: usize) -> Self {
        self.prompt = Some(PromptSite { offset: self.stride, stride: 0, rows });
        self.stride += rows * self.width;
        self.with_stride()
    }

    /// With a prefix of `rows` rows.
    pub fn with_prefix(self, rows: usize) -> Self {
        let mut layout = self.with_prompt(rows);
        // Everything is a whole number of keys, so that keys can be counted; zeros for a row of keys are there too.
        layout.stride = layout.stride.max(rows * layout.kv_width).next_multiple_of(layout.kv_width);
        layout.prefix = Some(PromptSite { offset: layout.stride, stride: 0, rows });
        layout.stride += layout.layers * 2 * rows * layout.kv_width;
        layout.with_stride()
    }

    /// Where the keys (`part` 0) or values (1) of a layer's prefix lie.
    pub fn prefix_part(&self, layer: usize, part: usize) -> Option<PromptSite> {
        let size = |site: PromptSite| site.rows * self.kv_width;
        self.prefix.map(|site| PromptSite { offset: site.offset + (2 * layer + part) * size(site), ..site })
    }

    /// No adapter at all.
    pub fn empty(config: &ModelConfig) -> Self {
        Self {
            stride: 0,
            shapes: vec![Shape::empty(config, RunRange::ALL)],
            layers: config.num_hidden_layers,
            prompt: None,
            prefix: None,
            width: config.embed_size,
            kv_width: config.kv_width(),
            family: config.family,
            head_dim: config.head_dim,
        }
    }

    /// With the stride, which is known now that everything has its offset, in every site.
    fn with_stride(mut self) -> Self {
        let stride = self.shapes.iter().map(|shape| shape.size).fold(self.stride, usize::max);
        self.stride = stride;
        for shape in &mut self.shapes {
            shape.modules.iter_mut().for_each(|(_, _, site)| site.stride = stride);
            shape.lora.iter_mut().flatten().flatten().for_each(|site| site.stride = stride);
        }
        self.prompt.iter_mut().chain(&mut self.prefix).for_each(|site| site.stride = stride);
        self
    }

    /// The site of a projection, if it is adapted, and by all runs alike.
    ///
    /// # Panics
    /// If the target is a fused module.
    pub fn site(&self, layer: usize, target: Projection) -> Option<LoraSite> {
        match self.shapes.as_slice() {
            [shape] => shape.lora[layer][target as usize],
            _ => None,
        }
    }

    /// The sites of a projection, with the number of the shape that has it.
    ///
    /// # Panics
    /// If the target is a fused module.
    pub fn sites(&self, layer: usize, target: Projection) -> impl Iterator<Item = (usize, LoraSite)> {
        let sites = self.shapes.iter().map(move |shape| shape.lora[layer][target as usize]);
        sites.enumerate().filter_map(|(shape, site)| Some((shape, site?)))
    }

    /// Whether a projection is adapted by any run.
    pub fn adapts(&self, layer: usize, target: Projection) -> bool {
        self.sites(layer, target).next().is_some()
    }

    /// The LoRAs of all runs, by run.
    pub fn shapes(&self) -> &[Shape] {
        &self.shapes
    }

    /// The LoRA of a run.
    fn shape(&self, run: usize) -> &Shape {
        let shape = self.shapes.iter().find(|shape| shape.runs.contains(run));
        shape.unwrap_or_else(|| panic!("layout: run {run} has no adapter"))
    }

    /// Every adapted module of any run, by shape, layer, then in the family's order.
    pub fn modules(&self) -> impl Iterator<Item = (usize, Projection, LoraSite)> {
        self.shapes.iter().flat_map(Shape::modules)
    }

    /// Where the Bs lie in the parameters of every run.
    ///
    /// # Errors
    /// Runs that have them in several places.
    pub fn ranges_of_b(&self) -> Result<Vec<Range<usize>>> {
        let range = |(_, _, site): (usize, Projection, LoraSite)| site.b..site.b + site.output * site.rank;
        let mut shapes = self.shapes.iter().map(|shape| shape.modules().map(range).collect::<Vec<_>>());
        let first = shapes.next().unwrap_or_default();
        match shapes.all(|ranges| ranges == first) {
            true => Ok(first),
            false => {
                let expected = "runs of one rank and one choice of modules, if B has a learning rate of its own";
                Err(Error::argument("loraplus_lr_ratio", expected, "several"))
            }
        }
    }

    /// The module that holds a projection.
    pub(super) fn module_of(&self, target: Projection) -> Projection {
        self.family.fused().iter().copied().find(|fused| fused.parts().contains(&target)).unwrap_or(target)
    }

    /// The rank of a projection in a layer of a shape; 0 if it is not adapted there.
    pub fn rank(&self, shape: usize, layer: usize, target: Projection) -> usize {
        self.shapes[shape].lora[layer][target as usize].map_or(0, |site| site.rank)
    }

    /// The first layer that holds an adapter: the backward need go no further down.
    pub fn lowest(&self) -> Option<usize> {
        (0..self.layers).find(|&layer| self.shapes.iter().any(|shape| shape.lora[layer].iter().any(Option::is_some)))
    }
}

/// The adapters of `runs` runs.
pub struct Adaptation<B: Backend> {
    /// Where everything lies.
    pub layout: Layout,
    /// Number of runs.
    pub runs: usize,
    /// `[runs, stride]`.
    pub params: B::Acc,
    /// Soft-prompt rows of each run, at most the layout's.
    pub prompts: Vec<usize>,
    /// Where all runs began, where the base model is without it (PiSSA): taken away from what they have learnt.
    start: Vec<LoraModule>,
    /// The parameters as the attention reads a prefix.
    pub(super) prefix: Option<B::Compute>,
}

impl<B: Backend> Adaptation<B> {
    /// Adapters of zeros, which change nothing.
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn new(backend: &mut B, layout: Layout, runs: usize) -> Result<Self> {
        let params = backend.acc(runs * layout.stride)?;
        let prompts = vec![layout.prompt.map_or(0, |site| site.rows); runs];
        let prefix = layout.prefix.map(|_| backend.compute(runs * layout.stride)).transpose()?;
        Ok(Self { layout, runs, params, prompts, start: Vec::new(), prefix })
    }

    /// The same where all runs begin at `start` over a base model that is without it: read out, adapters are for the base
    /// model as it was ([`LoraAdapter::since`]).
    pub fn started_at(self, start: Vec<LoraModule>) -> Self {
        Self { start, ..self }
    }

    /// Soft prompts or prefixes of zeros, of `rows[i]` rows for run i.
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn zeros(backend: &mut B, config: &ModelConfig, kind: PromptKind, rows: Vec<usize>) -> Result<Self> {
        let most = rows.iter().copied().max().unwrap_or(0);
        let layout = match kind {
            PromptKind::PrefixTuning => Layout::empty(config).with_prefix(most),
            PromptKind::PromptTuning | PromptKind::PTuning => Layout::empty(config).with_prompt(most),
        };
        Ok(Self { prompts: rows.clone(), ..Self::new(backend, layout, rows.len())? })
    }

    /// An adapter as read, as the only run.
    ///
    /// # Errors
    /// One that does not fit the model.
    pub fn of_adapter(backend: &mut B, config: &ModelConfig, adapter: &Adapter) -> Result<Self> {
        match adapter {
            Adapter::Lora(adapter) => Self::of_adapters(backend, config, std::slice::from_ref(adapter)),
            Adapter::Prompt(prompt) => {
                let rows = vec![prompt.config.num_virtual_tokens];
                let mut adaptation = Self::zeros(backend, config, prompt.config.kind, rows)?;
                adaptation.set_prompt(backend, 0, &prompt.rows)?;
                Ok(adaptation)
            }
        }
    }

    /// Where PEFT's rows of a run's prompt or prefix lie in the parameters `[runs * stride]`, seen as a matrix of rows of the
    /// width that comes first: its rows, in PEFT's order.
    pub fn param_rows(&self, run: usize) -> (usize, Vec<u32>) {
        let rows = self.prompts[run];
        let start = run * self.layout.stride;
        let (width, offsets): (usize, Vec<usize>) = match self.layout.prefix {
            None => {
                let offset = self.layout.prompt.map_or(0, |site| site.offset);
                (self.layout.width, (0..rows).map(|p| offset + p * self.layout.width).collect())
            }
            Some(_) => {
                let kv = self.layout.kv_width;
                let part = |layer, part| self.layout.prefix_part(layer, part).map_or(0, |site| site.offset);
                let row = |p: usize| (0..2 * self.layout.layers).map(move |i| part(i / 2, i % 2) + p * kv);
                (kv, (0..rows).flat_map(row).collect())
            }
        };
        assert!(start.is_multiple_of(width), "adaptation: runs of {} elements in rows of {width}", self.layout.stride);
        (width, offsets.into_iter().map(|offset| ((start + offset) / width) as u32).collect())
    }

    /// Makes passes use the present parameters: to be called after they have been changed.
    pub fn refresh(&mut self, backend: &mut B) {
        if let Some(prefix) = &mut self.prefix {
            backend.cast(Cast { out: prefix, x: &self.params, len: self.runs * self.layout.stride });
        }
    }

    /// Sets a run's soft prompt `[rows, C]`, or its prefix as PEFT lays it out.
    ///
    /// # Errors
    /// If it is not of the run's size.
    pub fn set_prompt(&mut self, backend: &mut B, run: usize, rows: &[f32]) -> Result<()> {
        assert!(run < self.runs, "adaptation: run {run} of {}", self.runs);
        let (width, param_rows) = self.param_rows(run);
        if rows.len() != param_rows.len() * width {
            return Err(Error::argument("prompt", format!("{} elements", param_rows.len() * width), rows.len()));
        }
        let mut values = self.download_run(backend, run)?;
        let start = run * self.layout.stride;
        for (row, to) in rows.chunks_exact(width).zip(param_rows) {
            let param_row = &mut values[to as usize * width - start..][..width];
            param_row.iter_mut().zip(row).for_each(|(v, x)| *v = B::Element::from_f64(f64::from(*x)));
        }
        self.upload_run(backend, run, &values)
    }

    /// Adapters as read, one a run; all must have the layout of the first.
    ///
    /// # Errors
    /// No adapter, one that does not fit the model, or one of another shape than the first.
    pub fn of_adapters(backend: &mut B, config: &ModelConfig, adapters: &[LoraAdapter]) -> Result<Self> {
        let first = adapters.first().ok_or_else(|| Error::argument("adapters", "at least one", "none"))?;
        let mut adaptation = Self::new(backend, Layout::of_adapter(config, first)?, adapters.len())?;
        for (run, adapter) in adapters.iter().enumerate() {
            adaptation.set_run(backend, config, run, adapter)?;
        }
        Ok(adaptation)
    }

    /// Sets a run to an adapter as read.
    ///
    /// # Errors
    /// If the adapter's modules, ranks or scales are not those of the run.
    pub fn set_run(&mut self, backend: &mut B, config: &ModelConfig, run: usize, adapter: &LoraAdapter) -> Result<()> {
        let theirs = Shape::of_adapter(config, adapter, RunRange::ALL)?;
        let shape = self.layout.shape(run);
        let find = |shape: &Shape, layer, target| {
            let site = shape.modules().find(|&(l, t, _)| (l, t) == (layer, target));
            site.map_or("no adapter".to_owned(), |(_, _, site)| format!("rank {} and scale {}", site.rank, site.scale))
        };
        for (layer, target, _) in shape.modules().chain(theirs.modules()) {
            let (ours, found) = (find(shape, layer, target), find(&theirs, layer, target));
            if ours != found {
                let name = format!("adapter module {}", config.family.path(layer, target));
                return Err(Error::argument(name, ours, found));
            }
        }
        let mut values = vec![B::Element::default(); self.layout.stride];
        for module in &adapter.modules {
            let is_it =
                |&(layer, target, _): &(usize, Projection, LoraSite)| (layer, target) == (module.layer, module.target);
            let (_, _, site) = shape.modules().find(is_it).expect("adaptation: compared above");
            let convert = |x: &f32| B::Element::from_f64(f64::from(*x));
            values[site.a..site.a + module.a.len()].iter_mut().zip(&module.a).for_each(|(v, x)| *v = convert(x));
            values[site.b..site.b + module.b.len()].iter_mut().zip(&module.b).for_each(|(v, x)| *v = convert(x));
        }
        self.upload_run(backend, run, &values)
    }

    /// Starts a run as PEFT does: A uniform in `±1 / sqrt(input)` (Kaiming's with a = sqrt 5), B zero. The same seed
    /// gives the same values on every device.
    ///
    /// # Errors
    /// If the device fails.
    pub fn init_run(&mut self, backend: &mut B, run: usize, seed: u64) -> Result<()> {
        let mut rng = Rng::new(seed);
        let mut values = vec![B::Element::default(); self.layout.stride];
        for (_, _, site) in self.layout.shape(run).modules() {
            lora_start::uniform(&mut rng, &mut values[site.a..site.a + site.rank * site.input], site.input);
        }
        self.upload_run(backend, run, &values)
    }

    /// Reads a run out, described by `config`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn read_out(&self, backend: &mut B, run: usize, config: &AdapterConfig) -> Result<Adapter> {
        match config {
            AdapterConfig::Lora(config) => self.adapter(backend, run, config).map(Adapter::Lora),
            AdapterConfig::Prompt(config) => self.prompt(backend, run, config).map(Adapter::Prompt),
        }
    }

    /// Reads a run's soft prompt out, described by `config`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn prompt(&self, backend: &mut B, run: usize, config: &PromptConfig) -> Result<PromptAdapter> {
        let values = self.download_run(backend, run)?;
        let (width, param_rows) = self.param_rows(run);
        let start = run * self.layout.stride;
        let row = |row: u32| values[row as usize * width - start..][..width].iter().map(|x| x.to_f64() as f32);
        Ok(PromptAdapter {
            config: config.clone(),
            rows: param_rows.into_iter().flat_map(row).collect(),
            encoder: None,
        })
    }

    /// Reads a run's LoRA out, described by `config`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn adapter(&self, backend: &mut B, run: usize, config: &LoraConfig) -> Result<LoraAdapter> {
        let values = self.download_run(backend, run)?;
        let matrix = |from: usize, len: usize| values[from..from + len].iter().map(|x| x.to_f64() as f32).collect();
        let modules = self.layout.shape(run).modules().map(|(layer, target, site)| LoraModule {
            layer,
            target,
            r: site.rank,
            scale: site.scale,
            a: matrix(site.a, site.rank * site.input),
            b: matrix(site.b, site.output * site.rank),
        });
        let Layout { family, head_dim, .. } = self.layout;
        let adapter = LoraAdapter { config: config.clone(), family, head_dim, modules: modules.collect() };
        Ok(if self.start.is_empty() { adapter } else { adapter.since(&self.start) })
    }

    /// The parameters of a run `[stride]`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn download_run(&self, backend: &mut B, run: usize) -> Result<Vec<B::Element>> {
        let mut values = vec![B::Element::default(); self.layout.stride];
        backend.download(&mut values, &self.params, run * self.layout.stride)?;
        Ok(values)
    }

    /// Sets the parameters of a run `[stride]`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn upload_run(&mut self, backend: &mut B, run: usize, values: &[B::Element]) -> Result<()> {
        assert!(run < self.runs, "adaptation: run {run} of {}", self.runs);
        assert!(values.len() == self.layout.stride, "adaptation: {} of {} values", values.len(), self.layout.stride);
        backend.upload(&mut self.params, run * self.layout.stride, values)?;
        self.refresh(backend);
        Ok(())
    }
}
