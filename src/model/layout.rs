//! Where the adapters of many runs lie in one flat buffer `[runs, stride]`.

use std::ops::Range;

use super::saved_modules::SavedModules;
use super::token_site::TokenSite;
use crate::arch::{Family, ModelConfig, Projection};
use crate::backend::ops::{LoraSite, NormSite, PromptSite, RunRange, ScaleSite};
use crate::formats::adapter::{Ia3Adapter, Ia3Module, LoraAdapter, Table, TableLora};
use crate::{Error, Result};

/// A LoRA that is the same in every layer that it adapts.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraShape {
    /// Rank R.
    pub rank: usize,
    /// Alpha; the update is multiplied by `alpha / R`, or `alpha / sqrt(R)`.
    pub alpha: f64,
    /// Whether it is `alpha / sqrt(R)` (Kalajdzievski 2023).
    pub rslora: bool,
    /// Whether rows of the adapted weights have magnitudes (DoRA).
    pub dora: bool,
    /// The adapted layers; none means all.
    pub layers: Option<Vec<usize>>,
    /// The adapted modules.
    pub targets: Vec<Projection>,
}

/// Where the parameters of a run lie.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// Elements of a run; those behind the end of a run's own LoRA are zero, and stay so.
    pub stride: usize,
    /// Norms of a run: of the rows of all weights that have a magnitude.
    pub norms: usize,
    /// The LoRAs of all runs, of which consecutive ones that are alike share one.
    shapes: Vec<Shape>,
    pub(super) layers: usize,
    /// The soft prompt.
    pub prompt: Option<PromptSite>,
    /// The prefix: for layer l the keys of all rows `[P, K D]`, then their values. Beside it the soft prompt is zero, and
    /// stays so: nothing reads what its rows become.
    pub prefix: Option<PromptSite>,
    /// The saved modules of a run, behind its adapters; such a layout is of one run.
    pub(super) saved: Option<SavedModules>,
    /// Rows of the embedding table that a run trains, behind those; such a layout is of one run.
    pub tokens: Option<TokenSite>,
    /// Width of a row of the soft prompt, E.
    pub width: usize,
    /// Width of a layer's keys, K D.
    pub kv_width: usize,
    /// The base model's family, which names modules.
    pub family: Family,
    pub(super) head_dim: usize,
}

/// Where the LoRA of consecutive runs lies, which adapts the same modules with the same ranks and scales.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// The runs whose LoRA lies so.
    pub runs: RunRange,
    /// Elements of a run.
    size: usize,
    /// Norms of a run.
    norms: usize,
    /// The adapted modules. The parts of a fused module share its A, and their Bs and magnitudes lie one after another.
    modules: Vec<AdaptedModule>,
    /// The adapted projections of each layer, by `Projection as usize`.
    lora: Vec<[Option<LoraSite>; 7]>,
    /// The modules that have a vector beside no LoRA (IA3).
    vectors: Vec<ScaledModule>,
    /// The LoRAs of the tables of tokens, by `Table as usize`; A of the embedding table lies transposed, `[V, R]`, at the
    /// beginning, so that its rows can be counted.
    tables: [Option<LoraSite>; 2],
    /// The scales of the projections' outputs of each layer, and of their inputs.
    scales: Vec<[Option<ScaleSite>; 7]>,
    input_scales: Vec<[Option<ScaleSite>; 7]>,
}

/// A module whose output or input is multiplied by a vector, and the site of all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScaledModule {
    /// Layer, from 0.
    pub layer: usize,
    /// The projection, or fused projections.
    pub target: Projection,
    /// Whether the input is multiplied.
    pub feedforward: bool,
    /// The vector.
    pub site: ScaleSite,
}

/// A module with a LoRA, and the sites of all of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdaptedModule {
    /// Layer, from 0.
    pub layer: usize,
    /// The projection, or fused projections.
    pub target: Projection,
    /// A and B.
    pub lora: LoraSite,
    /// Magnitudes of the rows of its weight, of a DoRA.
    pub magnitude: Option<ScaleSite>,
}

impl AdaptedModule {
    /// Whether it is this module.
    pub(super) fn is(&self, layer: usize, target: Projection) -> bool {
        (self.layer, self.target) == (layer, target)
    }

    /// What two adapters of one shape have in common.
    pub fn describe(&self) -> String {
        let dora = if self.magnitude.is_some() { " and magnitudes (DoRA)" } else { "" };
        format!("rank {}, scale {}{dora}", self.lora.rank, self.lora.scale)
    }
}

impl Shape {
    /// No adapted module.
    fn empty(config: &ModelConfig, runs: RunRange) -> Self {
        let layers = config.num_hidden_layers;
        let (modules, vectors, lora) = (Vec::new(), Vec::new(), vec![[None; 7]; layers]);
        let (scales, input_scales) = (vec![[None; 7]; layers], vec![[None; 7]; layers]);
        Self { runs, size: 0, norms: 0, modules, lora, vectors, tables: [None; 2], scales, input_scales }
    }

    /// The shape of an IA3 as read.
    fn of_vectors(config: &ModelConfig, adapter: &Ia3Adapter, runs: RunRange) -> Result<Self> {
        let mut shape = Self::empty(config, runs);
        for &Ia3Module { layer, target, feedforward, ref vector } in &adapter.modules {
            let name = || format!("adapter module {}", config.family.path(layer, target));
            if layer >= config.num_hidden_layers {
                return Err(Error::argument(name(), format!("a layer below {}", config.num_hidden_layers), layer));
            }
            let width = Ia3Module::width(config, target, feedforward);
            if vector.len() != width {
                return Err(Error::argument(name(), format!("a vector of {width} elements"), vector.len()));
            }
            if feedforward && !matches!(target, Projection::O | Projection::Down) {
                return Err(Error::argument(
                    name(),
                    "an input that no other module reads, if that is scaled",
                    "another",
                ));
            }
            if shape.vectors.iter().any(|known| (known.layer, known.target) == (layer, target)) {
                return Err(Error::argument(name(), "one vector", "two"));
            }
            let site = ScaleSite { at: shape.size, stride: 0, width, norms: None, runs };
            shape.size += width;
            shape.vectors.push(ScaledModule { layer, target, feedforward, site });
            let mut at = site.at;
            for &part in target.parts() {
                if feedforward {
                    shape.input_scales[layer][part as usize] = Some(site);
                    continue;
                }
                let width = config.widths(part).1;
                shape.scales[layer][part as usize] = Some(ScaleSite { at, width, ..site });
                at += width;
            }
        }
        Ok(shape)
    }

    /// The shape of an adapter as read, whatever its ranks.
    pub(super) fn of_adapter(config: &ModelConfig, adapter: &LoraAdapter, runs: RunRange) -> Result<Self> {
        let mut shape = Self::empty(config, runs);
        for table in &adapter.tables {
            shape.push_table(config, table)?;
        }
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
            if let Some(magnitude) = module.magnitude.as_ref().filter(|magnitude| magnitude.len() != output) {
                let found = format!("{} elements", magnitude.len());
                return Err(Error::argument(name(), format!("a magnitude of {output} elements"), found));
            }
            if shape.modules.iter().any(|adapted| adapted.is(module.layer, module.target)) {
                return Err(Error::argument(name(), "one A and one B", "two"));
            }
            shape.push(config, (module.layer, module.target), module.r, module.scale, module.magnitude.is_some());
        }
        Ok(shape)
    }

    fn push_table(&mut self, config: &ModelConfig, table: &TableLora) -> Result<()> {
        let TableLora { at, r: rank, scale, .. } = *table;
        let name = || format!("adapter module {}", config.family.table_path(at));
        if at == Table::Head {
            config.require_head()?;
            if let Some(cap) = config.logit_softcap {
                return Err(Error::argument(
                    name(),
                    "none, of a model that caps its logits",
                    format!("a cap of {cap}"),
                ));
            }
        }
        let (input, output) = match at {
            Table::Embed => (config.vocab_size, config.embed_size),
            Table::Head => (config.embed_size, config.vocab_size),
        };
        let (a, b) = (rank * input, output * rank);
        if (table.a.len(), table.b.len()) != (a, b) {
            let found = format!("{} and {} elements", table.a.len(), table.b.len());
            return Err(Error::argument(name(), format!("A and B of {a} and {b} elements"), found));
        }
        let out_of_order = self.tables[at as usize..].iter().any(Option::is_some) || !self.modules.is_empty();
        assert!(!out_of_order, "layout: the embedding table comes first, then the head, then the blocks");
        let site = LoraSite { a: self.size, b: self.size + a, stride: 0, rank, input, output, scale, runs: self.runs };
        self.size += a + b;
        self.tables[at as usize] = Some(site);
        Ok(())
    }

    /// The LoRA of a table.
    pub fn table(&self, at: Table) -> Option<LoraSite> {
        self.tables[at as usize]
    }

    fn push(
        &mut self,
        config: &ModelConfig,
        (layer, target): (usize, Projection),
        rank: usize,
        scale: f64,
        magnitude: bool,
    ) {
        let (input, output) = config.widths(target);
        let (a, mut b) = (self.size, self.size + rank * input);
        let lora = LoraSite { a, b, stride: 0, rank, input, output, scale, runs: self.runs };
        self.size = b + output * rank;
        let of = |at, norms, width| {
            let norms = Some(NormSite { at: norms, stride: 0 });
            ScaleSite { at, stride: 0, width, norms, runs: lora.runs }
        };
        let (mut at, mut norms) = (self.size, self.norms);
        if magnitude {
            self.size += output;
            self.norms += output;
        }
        let magnitude = magnitude.then(|| of(at, norms, output));
        self.modules.push(AdaptedModule { layer, target, lora, magnitude });
        for &part in target.parts() {
            let output = config.widths(part).1;
            self.lora[layer][part as usize] = Some(LoraSite { b, output, ..lora });
            self.scales[layer][part as usize] = magnitude.map(|_| of(at, norms, output));
            (b, at, norms) = (b + output * rank, at + output, norms + output);
        }
    }

    /// Every module with a LoRA, by layer, then in the family's order.
    pub fn modules(&self) -> impl Iterator<Item = AdaptedModule> {
        self.modules.iter().copied()
    }

    /// Every module with a vector, likewise.
    pub fn vectors(&self) -> impl Iterator<Item = ScaledModule> {
        self.vectors.iter().copied()
    }

    /// The site of a projection.
    pub(super) fn site(&self, layer: usize, target: Projection) -> Option<LoraSite> {
        self.lora[layer][target as usize]
    }

    /// The scales of all projections, with their layers.
    pub(super) fn scales(&self) -> impl Iterator<Item = (usize, Projection, ScaleSite)> {
        self.scales.iter().enumerate().flat_map(|(layer, scales)| {
            let of = move |&part: &Projection| Some((layer, part, scales[part as usize]?));
            Projection::ALL.iter().filter_map(of)
        })
    }
}

impl Layout {
    /// The layout of a LoRA that is the same in every layer that it adapts.
    pub fn lora(config: &ModelConfig, shape: &LoraShape) -> Self {
        let root = if shape.rslora { (shape.rank as f64).sqrt() } else { shape.rank as f64 };
        let mut of_runs = Shape::empty(config, RunRange::ALL);
        let adapted = |layer: &usize| shape.layers.as_ref().is_none_or(|layers| layers.contains(layer));
        for layer in (0..config.num_hidden_layers).filter(adapted) {
            for target in config.family.modules().iter().filter(|target| shape.targets.contains(target)) {
                of_runs.push(config, (layer, *target), shape.rank, shape.alpha / root, shape.dora);
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
        let mut layout = Self { shapes: vec![shape], ..Self::empty(config) }.with_stride();
        layout.saved = SavedModules::new(config, adapter, layout.stride)?;
        layout.stride += layout.saved.as_ref().map_or(0, |saved| saved.layout.total);
        let tokens = adapter.tokens.as_deref().map(|tokens| TokenSite::new(config, tokens, layout.stride));
        layout.tokens = tokens.transpose()?;
        layout.stride = layout.tokens.as_ref().map_or(layout.stride, TokenSite::end);
        Ok(layout.with_stride())
    }

    /// The layout of runs of an IA3.
    ///
    /// # Errors
    /// As [`Layout::of_adapter`].
    pub fn of_vectors(config: &ModelConfig, adapter: &Ia3Adapter) -> Result<Self> {
        let shape = Shape::of_vectors(config, adapter, RunRange::ALL)?;
        Ok(Self { shapes: vec![shape], ..Self::empty(config) }.with_stride())
    }

    /// The layout of several runs, an adapter each, of any modules, ranks and scales.
    ///
    /// # Errors
    /// Those of [`Layout::of_adapter`], for any of the adapters; tables of tokens that several runs adapt.
    pub fn of_runs(config: &ModelConfig, adapters: &[LoraAdapter]) -> Result<Self> {
        if let [adapter] = adapters {
            return Self::of_adapter(config, adapter);
        }
        adapters.iter().try_for_each(|adapter| one_run(config, adapter, adapters.len()))?;
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
            norms: 0,
            shapes: vec![Shape::empty(config, RunRange::ALL)],
            layers: config.num_hidden_layers,
            prompt: None,
            prefix: None,
            saved: None,
            tokens: None,
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
        let norm_stride = self.shapes.iter().map(|shape| shape.norms).max().unwrap_or(0);
        self.norms = norm_stride;
        for shape in &mut self.shapes {
            let of_modules =
                shape.modules.iter_mut().map(|module| &mut module.lora).chain(shape.tables.iter_mut().flatten());
            of_modules.chain(shape.lora.iter_mut().flatten().flatten()).for_each(|site| site.stride = stride);
            let of_modules = shape.modules.iter_mut().filter_map(|module| module.magnitude.as_mut());
            let of_modules = of_modules.chain(shape.vectors.iter_mut().map(|module| &mut module.site));
            let of_parts = shape.scales.iter_mut().chain(&mut shape.input_scales).flatten().flatten();
            for site in of_modules.chain(of_parts) {
                site.stride = stride;
                site.norms.iter_mut().for_each(|norms| norms.stride = norm_stride);
            }
        }
        self.prompt.iter_mut().chain(&mut self.prefix).for_each(|site| site.stride = stride);
        self
    }

    /// The saved modules of a run.
    pub fn saved_modules(&self) -> Option<&SavedModules> {
        self.saved.as_ref()
    }

    /// The LoRA of the head, or that which stands for trained rows of a tied one ([`TokenSite::tied`]).
    pub fn head(&self) -> Option<LoraSite> {
        self.table(Table::Head).or_else(|| self.tokens.as_ref().and_then(TokenSite::head))
    }

    /// The LoRA of a table of tokens; such a layout is of one run.
    pub fn table(&self, at: Table) -> Option<LoraSite> {
        self.shapes.first().and_then(|shape| shape.table(at))
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

    /// Whether a backward through rows of every run reaches each of the parameters once: there are LoRAs of single projections, and
    /// nothing else.
    pub fn is_set(&self) -> bool {
        let others = self.prompt.is_some() || self.prefix.is_some() || self.saved.is_some() || self.tokens.is_some();
        let plain = |module: &AdaptedModule| module.magnitude.is_none() && module.target.parts().len() == 1;
        let alone = |shape: &Shape| {
            shape.vectors.is_empty() && shape.tables.iter().all(Option::is_none) && shape.modules.iter().all(plain)
        };
        !others && self.shapes.iter().all(alone)
    }

    /// The scales of a projection's output, of all shapes that have one.
    pub fn scales(&self, layer: usize, target: Projection) -> impl Iterator<Item = ScaleSite> {
        self.shapes.iter().filter_map(move |shape| shape.scales[layer][target as usize])
    }

    /// Those of its input.
    pub fn input_scales(&self, layer: usize, target: Projection) -> impl Iterator<Item = ScaleSite> {
        self.shapes.iter().filter_map(move |shape| shape.input_scales[layer][target as usize])
    }

    /// Whether a projection is adapted by any run.
    pub fn adapts(&self, layer: usize, target: Projection) -> bool {
        let mut scales = self.scales(layer, target).chain(self.input_scales(layer, target));
        self.sites(layer, target).next().is_some() || scales.next().is_some()
    }

    /// The LoRAs of all runs, by run.
    pub fn shapes(&self) -> &[Shape] {
        &self.shapes
    }

    /// The LoRA of a run.
    pub(super) fn shape(&self, run: usize) -> &Shape {
        let shape = self.shapes.iter().find(|shape| shape.runs.contains(run));
        shape.unwrap_or_else(|| panic!("layout: run {run} has no adapter"))
    }

    /// Every adapted module of any run, by shape, layer, then in the family's order.
    pub fn modules(&self) -> impl Iterator<Item = AdaptedModule> {
        self.shapes.iter().flat_map(Shape::modules)
    }

    /// Where the Bs, the magnitudes, and the vectors of a run's own lie in the parameters of every run: what LoRA+ gives another
    /// learning rate, as PEFT's `create_loraplus_optimizer` groups them.
    ///
    /// # Errors
    /// Runs that have them in several places.
    pub fn ranges_of_b(&self) -> Result<Vec<Range<usize>>> {
        let ranges = |module: AdaptedModule| {
            let magnitude = module.magnitude.map(|site| site.at..site.at + site.width);
            std::iter::once(module.lora.b..module.lora.b + module.lora.output * module.lora.rank).chain(magnitude)
        };
        if self.table(Table::Embed).is_some() {
            let expected = "none beside an adapter of the embedding table, to which PEFT gives a rate of its own";
            return Err(Error::argument("loraplus_lr_ratio", expected, "a ratio"));
        }
        let head = |shape: &Shape| shape.table(Table::Head).map(|site| site.b..site.b + site.output * site.rank);
        let of_shape =
            |shape: &Shape| head(shape).into_iter().chain(shape.modules().flat_map(ranges)).collect::<Vec<_>>();
        let mut shapes = self.shapes.iter().map(of_shape);
        let first = shapes.next().unwrap_or_default();
        match shapes.all(|ranges| ranges == first) {
            true => Ok(first.into_iter().chain(self.saved.iter().flat_map(|saved| saved.vectors.clone())).collect()),
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

    /// Bytes of the parameters of `runs` runs, and of what is made from them; `element_sizes` as in
    /// [`Planning::element_sizes`](crate::backend::Planning::element_sizes).
    pub fn bytes(&self, runs: usize, element_sizes: (usize, usize)) -> usize {
        runs * self.stride * element_sizes.0 + self.materialized_bytes(runs, element_sizes)
    }

    /// Bytes of what is made from the parameters of `runs` runs: norms, copies of saved modules, a head's trained rows.
    pub fn materialized_bytes(&self, runs: usize, element_sizes: (usize, usize)) -> usize {
        let saved = self.saved_modules().map_or(0, |saved| saved.layout.total);
        let tokens = self.tokens.as_ref().map_or(0, TokenSite::materialized);
        (runs * self.norms + tokens) * element_sizes.0 + saved * element_sizes.1
    }

    /// The first layer whose input an adapter or a saved module may change, or that holds an adapter: the backward need
    /// go no further down.
    pub fn lowest(&self) -> Option<usize> {
        if self.table(Table::Embed).is_some() || self.saved.is_some() || self.tokens.is_some() {
            return Some(0);
        }
        let adapts = |layer: &usize| Projection::ALL.iter().any(|&target| self.adapts(*layer, target));
        (0..self.layers).find(adapts)
    }
}

/// Refuses several runs of what only one run can have: adapters of tables of tokens, saved modules, and trained rows.
pub(super) fn one_run(config: &ModelConfig, adapter: &LoraAdapter, runs: usize) -> Result<()> {
    if runs > 1 && !adapter.saved.is_empty() {
        return Err(Error::argument("modules_to_save", "one run beside it", format!("{runs} runs")));
    }
    if runs > 1 && adapter.tokens.is_some() {
        return Err(Error::argument("trainable_token_indices", "one run beside it", format!("{runs} runs")));
    }
    match adapter.tables.first().filter(|_| runs > 1) {
        None => Ok(()),
        Some(table) => {
            let expected = format!("one run, if {} is adapted", config.family.table_path(table.at));
            Err(Error::argument("target_modules", expected, format!("{runs} runs")))
        }
    }
}
