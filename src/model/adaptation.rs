//! Adapters of many runs, stacked in one flat buffer `[runs, stride]`.

use std::sync::Arc;

use super::Model;
use super::activations::some;
use super::layout::{AdaptedModule, Layout, ScaledModule, Shape, one_run};
use super::lora_start;
use super::param_id::ParamId;
use super::token_site::TokenHead;
use crate::arch::{ModelConfig, Projection};
use crate::backend::ops::{Cast, LoraSite, RunRange, WeightNorm};
use crate::backend::{AccElement, Backend};
use crate::formats::adapter::{
    Adapter, AdapterConfig, BaseTable, Ia3Adapter, Ia3Config, Ia3Module, LoraAdapter, LoraConfig, LoraModule,
    PromptAdapter, PromptConfig, PromptKind, SavedTensor, Table, TableLora, TrainedTokens,
};
use crate::random::Rng;
use crate::{Error, Result};

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
    /// The base model's tables of tokens as files of the adapters have them, by `Table as usize`.
    base_tables: [Option<Arc<BaseTable>>; 2],
    /// Names and shapes of its saved modules, and where they lie.
    saved_names: Vec<(String, Vec<usize>, usize)>,
    /// Norms of the rows of the weights that have a magnitude `[runs, norms of a run]`, and whether they are those of the
    /// present parameters.
    norms: Option<(B::Acc, bool)>,
    /// What a tied head computes with where rows of the embedding table are trained.
    pub(super) token_head: Option<TokenHead<B>>,
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
        let norms = some(layout.norms > 0, || backend.acc(runs * layout.norms))?.map(|norms| (norms, false));
        Ok(Self {
            layout,
            runs,
            params,
            prompts,
            start: Vec::new(),
            base_tables: [None, None],
            saved_names: Vec::new(),
            norms,
            token_head: None,
            prefix,
        })
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
    pub fn of_adapter(backend: &mut B, model: &Model<B>, adapter: &Adapter) -> Result<Self> {
        match adapter {
            Adapter::Lora(adapter) => Self::of_adapters(backend, model, std::slice::from_ref(adapter)),
            Adapter::Ia3(ia3) => {
                let mut adaptation = Self::new(backend, Layout::of_vectors(&model.config, ia3)?, 1)?;
                adaptation.set_vectors(backend, 0, ia3)?;
                Ok(adaptation)
            }
            Adapter::Prompt(prompt) => {
                let rows = vec![prompt.config.num_virtual_tokens];
                let mut adaptation = Self::zeros(backend, &model.config, prompt.config.kind, rows)?;
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

    /// Makes passes use the present parameters: to be called after they have been changed. Norms of adapted weights are then
    /// outdated, until [`Adaptation::update_norms`] is called.
    pub fn refresh(&mut self, backend: &mut B) {
        if let Some(prefix) = &mut self.prefix {
            backend.cast(Cast { out: prefix, x: &self.params, len: self.runs * self.layout.stride });
        }
        if let Some(head) = &mut self.token_head {
            head.refresh(backend, &self.params);
        }
        if let Some((_, current)) = &mut self.norms {
            *current = false;
        }
    }

    /// Makes passes divide magnitudes by the norms of the weights as they are adapted now; nothing without magnitudes.
    pub fn update_norms(&mut self, backend: &mut B, model: &Model<B>) {
        let Some((norms, current)) = &mut self.norms else { return };
        for shape in self.layout.shapes() {
            for (layer, target, scale) in shape.scales() {
                let site = shape.site(layer, target);
                let (Some(site), Some(to)) = (site, scale.norms) else { continue };
                let (weight, params) = (&model.weights.layers[layer].projection(target).weight, &self.params);
                backend.weight_norm(WeightNorm { norms: &mut *norms, weight, params, site, to, runs: self.runs });
            }
        }
        *current = true;
    }

    /// Starts the magnitudes of all runs at the norms, as PEFT does: the model is then what it is without them.
    ///
    /// # Errors
    /// If the device fails.
    pub fn start_magnitudes(&mut self, backend: &mut B, model: &Model<B>) -> Result<()> {
        self.update_norms(backend, model);
        let Some((norms, _)) = &self.norms else { return Ok(()) };
        let mut of_all = vec![B::Element::default(); self.runs * self.layout.norms];
        backend.download(&mut of_all, norms, 0)?;
        for run in 0..self.runs {
            let mut values = self.download_run(backend, run)?;
            for site in self.layout.shape(run).modules().filter_map(|module| module.magnitude) {
                let Some(from) = site.norms else { continue };
                let norms = &of_all[run * from.stride + from.at..][..site.width];
                values[site.at..site.at + site.width].copy_from_slice(norms);
            }
            self.upload_run(backend, run, &values)?;
        }
        self.update_norms(backend, model);
        Ok(())
    }

    /// The norms that magnitudes are divided by.
    ///
    /// # Panics
    /// If the parameters have been changed since they were computed.
    pub(super) fn norms(&self) -> Option<&B::Acc> {
        let (norms, current) = self.norms.as_ref()?;
        assert!(current, "adaptation: parameters have been changed, and update_norms was not called");
        Some(norms)
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
    pub fn of_adapters(backend: &mut B, model: &Model<B>, adapters: &[LoraAdapter]) -> Result<Self> {
        let config = &model.config;
        let first = adapters.first().ok_or_else(|| Error::argument("adapters", "at least one", "none"))?;
        one_run(config, first, adapters.len())?;
        let mut adaptation = Self::new(backend, Layout::of_adapter(config, first)?, adapters.len())?;
        for (run, adapter) in adapters.iter().enumerate() {
            adaptation.set_run(backend, config, run, adapter)?;
        }
        adaptation.update_norms(backend, model);
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
            let module = shape.modules().find(|module| module.is(layer, target));
            module.map_or("no adapter".to_owned(), |module| module.describe())
        };
        for AdaptedModule { layer, target, .. } in shape.modules().chain(theirs.modules()) {
            let (ours, found) = (find(shape, layer, target), find(&theirs, layer, target));
            if ours != found {
                let name = format!("adapter module {}", config.family.path(layer, target));
                return Err(Error::argument(name, ours, found));
            }
        }
        for at in Table::ALL {
            let describe = |site: Option<LoraSite>| match site {
                Some(site) => format!("rank {}, scale {}", site.rank, site.scale),
                None => "no adapter".to_owned(),
            };
            let (ours, found) = (describe(shape.table(at)), describe(theirs.table(at)));
            if ours != found {
                return Err(Error::argument(format!("adapter module {}", config.family.table_path(at)), ours, found));
            }
        }
        let mut values = vec![B::Element::default(); self.layout.stride];
        for table in &adapter.tables {
            let site = shape.table(table.at).expect("adaptation: compared above");
            let mut set = |at: usize, from: &mut dyn Iterator<Item = f32>| {
                values[at..].iter_mut().zip(from).for_each(|(v, x)| *v = B::Element::from_f64(f64::from(x)));
            };
            match table.at {
                Table::Embed => set(site.a, &mut transposed(&table.a, site.rank)),
                Table::Head => set(site.a, &mut table.a.iter().copied()),
            }
            set(site.b, &mut table.b.iter().copied());
            self.base_tables[table.at as usize] = table.base.clone();
        }
        for SavedTensor { name, values: own, .. } in &adapter.saved {
            let offset = ParamId::of_peft(config, name).and_then(|id| self.layout.saved.as_ref()?.layout.get(id));
            let offset = offset.ok_or_else(|| Error::argument(name, "no saved module", "one"))?;
            values[offset..].iter_mut().zip(own).for_each(|(v, x)| *v = B::Element::from_f64(f64::from(*x)));
        }
        if let (Some(site), Some(tokens)) = (&self.layout.tokens, &adapter.tokens) {
            let own = values[site.elements()].iter_mut().zip(&tokens.rows);
            own.for_each(|(v, x)| *v = B::Element::from_f64(f64::from(*x)));
        }
        for module in &adapter.modules {
            let ours = shape.modules().find(|ours| ours.is(module.layer, module.target));
            let ours = ours.expect("adaptation: compared above");
            let mut set = |at: usize, from: &[f32]| {
                let to = values[at..at + from.len()].iter_mut().zip(from);
                to.for_each(|(v, x)| *v = B::Element::from_f64(f64::from(*x)));
            };
            set(ours.lora.a, &module.a);
            set(ours.lora.b, &module.b);
            if let (Some(site), Some(magnitude)) = (ours.magnitude, &module.magnitude) {
                set(site.at, magnitude);
            }
        }
        let saved = self.layout.saved.iter().flat_map(|saved| saved.layout.params());
        self.saved_names = saved.map(|&(id, offset)| (id.peft_name(config), id.shape(config), offset)).collect();
        self.upload_run(backend, run, &values)
    }

    /// Sets a run to an IA3 of the layout.
    ///
    /// # Errors
    /// If the adapter's modules are not those of the run.
    pub fn set_vectors(&mut self, backend: &mut B, run: usize, adapter: &Ia3Adapter) -> Result<()> {
        let mut values = vec![B::Element::default(); self.layout.stride];
        let sites: Vec<ScaledModule> = self.layout.shape(run).vectors().collect();
        if sites.len() != adapter.modules.len() {
            return Err(Error::argument("adapter", format!("{} modules", sites.len()), adapter.modules.len()));
        }
        for (ours, module) in sites.iter().zip(&adapter.modules) {
            let key = |layer, target: Projection, feedforward, width| {
                let what = if feedforward { "inputs" } else { "outputs" };
                format!("a vector of {width} {what} of {}", self.layout.family.path(layer, target))
            };
            let expected = key(ours.layer, ours.target, ours.feedforward, ours.site.width);
            let found = key(module.layer, module.target, module.feedforward, module.vector.len());
            if expected != found {
                return Err(Error::argument("adapter module", expected, found));
            }
            let to = values[ours.site.at..].iter_mut().zip(&module.vector);
            to.for_each(|(v, x)| *v = B::Element::from_f64(f64::from(*x)));
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
        for AdaptedModule { lora: site, .. } in self.layout.shape(run).modules() {
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
            AdapterConfig::Ia3(config) => self.vectors(backend, run, config).map(Adapter::Ia3),
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

    /// Reads a run's IA3 out, described by `config`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn vectors(&self, backend: &mut B, run: usize, config: &Ia3Config) -> Result<Ia3Adapter> {
        let values = self.download_run(backend, run)?;
        let modules = self.layout.shape(run).vectors().map(|ScaledModule { layer, target, feedforward, site }| {
            let vector = values[site.at..site.at + site.width].iter().map(|x| x.to_f64() as f32).collect();
            Ia3Module { layer, target, feedforward, vector }
        });
        let Layout { family, head_dim, .. } = self.layout;
        Ok(Ia3Adapter { config: config.clone(), family, head_dim, modules: modules.collect() })
    }

    /// Reads a run's LoRA out, described by `config`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn adapter(&self, backend: &mut B, run: usize, config: &LoraConfig) -> Result<LoraAdapter> {
        let values = self.download_run(backend, run)?;
        let matrix = |from: usize, len: usize| -> Vec<f32> {
            values[from..from + len].iter().map(|x| x.to_f64() as f32).collect()
        };
        let modules =
            self.layout.shape(run).modules().map(|AdaptedModule { layer, target, lora, magnitude }| LoraModule {
                layer,
                target,
                r: lora.rank,
                scale: lora.scale,
                a: matrix(lora.a, lora.rank * lora.input),
                b: matrix(lora.b, lora.output * lora.rank),
                magnitude: magnitude.map(|site| matrix(site.at, site.width)),
            });
        let table = |at: Table| {
            let site = self.layout.shape(run).table(at)?;
            let a = matrix(site.a, site.rank * site.input);
            Some(TableLora {
                at,
                r: site.rank,
                scale: site.scale,
                a: if at == Table::Embed { transposed(&a, site.input).collect() } else { a },
                b: matrix(site.b, site.output * site.rank),
                base: self.base_tables[at as usize].clone(),
            })
        };
        let tables = Table::ALL.into_iter().filter_map(table).collect();
        let own = |name: &String, shape: &Vec<usize>, offset: usize| {
            let values = matrix(offset, shape.iter().product());
            SavedTensor { name: name.clone(), shape: shape.clone(), values }
        };
        let saved = self.saved_names.iter().map(|(name, shape, offset)| own(name, shape, *offset)).collect();
        let Layout { family, head_dim, .. } = self.layout;
        let modules = modules.collect();
        let ties_head = self.layout.saved.as_ref().is_some_and(|saved| saved.ties_head);
        let tokens = self.layout.tokens.as_ref().map(|site| {
            let elements = site.elements();
            Box::new(TrainedTokens { ids: site.ids.clone(), rows: matrix(elements.start, elements.len()) })
        });
        let config = config.clone();
        let adapter = LoraAdapter { config, family, head_dim, modules, tables, saved, ties_head, tokens };
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

/// The elements of a matrix of so many rows, column after column.
fn transposed(matrix: &[f32], rows: usize) -> impl Iterator<Item = f32> {
    let columns = matrix.len() / rows;
    (0..columns).flat_map(move |column| matrix.iter().skip(column).step_by(columns).copied())
}
