//! `capture`: states of a model at chosen sites, layers and tokens, as a safetensors file.

use std::collections::HashMap;

use serde_json::json;

use super::args::{CaptureArgs, StoreDtype, Tokens};
use super::device::{Job, dispatch};
use super::plan::Plan;
use super::resolve::{self, ModelFiles};
use super::{Failure, output, texts};
use crate::arch::ModelConfig;
use crate::backend::{Backend, Captured};
use crate::formats::activations::{self, ActivationWriter};
use crate::formats::adapter::Adapter;
use crate::formats::safetensors::Dtype;
use crate::hooks::capture::take;
use crate::hooks::{Selection, Site, Tapped, Taps};
use crate::model::{self, Activations, Adaptation, Input, Keep, Model, OutputRows};
use crate::pack::{Label, Pack, PackBuilder, Parent, Sequence, Token};
use crate::{Error, Result};

/// The file in the output directory.
const FILE: &str = "activations.safetensors";

/// Its label columns.
const LABELS: [&str; 3] = ["doc_id", "pos", "token_id"];

pub fn run(args: &CaptureArgs) -> Result<(), Failure> {
    let found = resolve::model(&args.model.model, &args.common)?;
    let layers = resolve::layers(&args.layers, found.config.num_hidden_layers)?;
    let selection = Selection::parse(&args.sites.join(","), &layers, found.config.num_hidden_layers)?;
    let adapter = resolve::adapter(args.model.adapter.as_deref(), &found)?;
    let docs = texts::read(&args.input, &found)?;
    let dtype = found.dtype;
    dispatch(&args.common, dtype, Capture { args, found, selection, adapter, docs })
}

struct Capture<'a> {
    args: &'a CaptureArgs,
    found: ModelFiles,
    selection: Selection,
    adapter: Option<Adapter>,
    docs: Vec<Vec<u32>>,
}

impl Job for Capture<'_> {
    fn run<B: Backend>(self, mut backend: B) -> Result<(), Failure> {
        let Self { args, found, selection, adapter, docs } = self;
        let model = Model::new(&mut backend, &found.config, &found.checkpoint)?;
        let adaptation = match &adapter {
            Some(adapter) => Some(Adaptation::of_adapter(&mut backend, &model.config, adapter)?),
            None => None,
        };
        let run = adaptation.as_ref().map(|_| 0);
        let prompt = adaptation.as_ref().map_or(0, |adaptation| adaptation.prompts[0]);
        let docs: Vec<Sequence> = docs.iter().map(|ids| Sequence::prompted(prompt, ids, run)).collect();
        let batches = batches(&docs, args.batch_tokens, model.config.scales_beyond())?;
        let rows = batches.iter().map(|docs| docs.pack.len()).max().unwrap_or(0);
        let layout = adaptation.as_ref().map(|a| &a.layout);
        let sink = Sink {
            selection: &selection,
            heads: model.config.num_attention_heads,
            longest: docs.iter().map(|doc| doc.tokens.len()).max().unwrap_or(0),
        };
        let sites = sink.sites(&model.config, layout)?;
        if args.dry_run {
            let kept = batches.iter().map(|docs| docs.rows(args.tokens).len()).max().unwrap_or(0);
            let landing = sites.iter().map(|(_, width)| kept * width * size_of::<f32>()).collect();
            let asked = sink.asked(&sites, [rows, kept]) * backend.element_sizes().0;
            return Plan::new(&backend, &found)
                .inference(&backend, &model.config, layout, rows, landing)
                .with("captures", asked)
                .print(args.common.json);
        }
        let mut acts = Activations::new(&mut backend, &model.config, layout, rows, Keep::Layer)?;
        let rows = docs.iter().map(|doc| if args.tokens == Tokens::All { doc.tokens.len() } else { 1 }).sum();
        let file = activations::Layout {
            sites: sites.clone(),
            labels: LABELS.map(str::to_owned).to_vec(),
            rows,
            dtype: match args.store_dtype {
                StoreDtype::F32 => Dtype::F32,
                StoreDtype::Bf16 => Dtype::BF16,
                StoreDtype::F16 => Dtype::F16,
            },
            max_rows: args.shard_tokens,
            metadata: vec![("format".to_owned(), "pt".to_owned())],
        };
        let dtype = file.dtype;
        let mut writer = ActivationWriter::create(args.out.join(FILE), file)?;
        let bar = output::progress(docs.iter().map(|doc| doc.tokens.len() as u64).sum(), "tokens");
        for batch in &batches {
            let device = backend.pack(&batch.pack)?;
            let kept = batch.rows(args.tokens);
            let read = OutputRows::new(&mut backend, &batch.pack, kept.iter().copied())?;
            let mut input = Input::new(&batch.pack, &device).with_output_rows(read.as_ref());
            input.adaptation = adaptation.as_ref();
            batch.label(&mut writer, &kept)?;
            let mut taps = Pass { sink: &sink, writer: &mut writer, rows: kept, coming: Vec::new(), error: None };
            let done = model.forward(&mut backend, &mut acts, &input, None, &mut taps);
            done.and(taps.error.map_or(Ok(()), Err)).map_err(|error| found.with_bad_weight(error))?;
            backend.sync()?;
            bar.inc(batch.pack.len() as u64);
        }
        bar.finish_and_clear();
        // The file of states comes last: where it is, all is.
        resolve::write_config(&args.out, "capture", args)?;
        let file = writer.finish()?;
        if args.common.json {
            let tensors: Vec<_> = sites
                .iter()
                .map(|(name, width)| json!({"name": name, "shape": [rows, width], "dtype": dtype.name()}))
                .collect();
            return output::json(&json!({"file": file, "documents": docs.len(), "tokens": rows, "tensors": tensors}));
        }
        let row = |(name, width): &(String, usize)| {
            vec![name.clone(), rows.to_string(), width.to_string(), dtype.to_string()]
        };
        output::table(&["tensor", "tokens", "width", "dtype"], sites.iter().map(row))?;
        output::line(file.display())
    }
}

/// Consecutive documents that are computed together. They share no rows, not even a soft prompt's: a document's numbers
/// must not depend on where its neighbours happen to begin alike, and a document's rows stand together in the file.
struct Batch {
    pack: Pack,
    /// Number of the first document.
    first: usize,
}

impl Batch {
    /// The pack rows to keep.
    fn rows(&self, tokens: Tokens) -> Vec<usize> {
        match tokens {
            Tokens::All => (0..self.pack.len()).collect(),
            Tokens::Last => self.pack.segments().iter().map(|s| s.rows.end - 1).collect(),
        }
    }

    /// Writes where the rows `kept` come from.
    fn label(&self, writer: &mut ActivationWriter, kept: &[usize]) -> Result<()> {
        let segments = self.pack.segments();
        let doc = |row: usize| (self.first + segments.partition_point(|s| s.rows.end <= row)) as i64;
        let position = |row: usize| i64::from(self.pack.positions()[row]);
        let token = |row: usize| match self.pack.tokens()[row] {
            Token::Id(id) => i64::from(id),
            Token::Virtual(_) => -1,
        };
        let labels: [&dyn Fn(usize) -> i64; 3] = [&doc, &position, &token];
        LABELS.into_iter().zip(labels).try_for_each(|(name, label)| {
            writer.push_labels(name, &kept.iter().map(|&row| label(row)).collect::<Vec<_>>())
        })
    }
}

/// Batches of at most `most` rows. Documents of more than `scaled` tokens are only with others as long, for the model
/// turns each length in another way.
fn batches(docs: &[Sequence], most: usize, scaled: Option<usize>) -> Result<Vec<Batch>> {
    if most == 0 {
        return Err(Error::argument("--batch-tokens", "at least 1", most));
    }
    let mut batches = Vec::new();
    let mut builder = PackBuilder::default();
    let (mut rows, mut first) = (0, 0);
    let turned = |doc: &Sequence| scaled.map(|own| doc.tokens.len().max(own));
    for (i, doc) in docs.iter().enumerate() {
        if rows > 0 && (rows + doc.tokens.len() > most || turned(doc) != turned(&docs[first])) {
            batches.push(Batch { pack: std::mem::take(&mut builder).build(), first });
            (rows, first) = (0, i);
        }
        builder.push(&doc.tokens, Parent::None, doc.run, Label::Text);
        rows += doc.tokens.len();
    }
    batches.push(Batch { pack: builder.build(), first });
    Ok(batches)
}

/// What goes into the file.
struct Sink<'a> {
    selection: &'a Selection,
    heads: usize,
    /// Positions of the longest document: the width of a row by position.
    longest: usize,
}

impl Sink<'_> {
    /// Name and width of every tensor.
    fn sites(&self, config: &ModelConfig, layout: Option<&model::Layout>) -> Result<Vec<(String, usize)>> {
        let site = |&(site, layer): &(Site, usize)| {
            let name = site.name(layer);
            if !config.has(site) {
                let expected = format!("a site that {} models have", config.family.name());
                return Err(Error::argument("--sites", expected, name));
            }
            let adapted = |target| layout.and_then(|l| l.site(layer, target));
            let width = match site {
                Site::Ln1Scale | Site::Ln2Scale | Site::FinalScale => 1,
                Site::Q | Site::RotQ | Site::Z => config.q_width(),
                Site::K | Site::V | Site::RotK => config.kv_width(),
                Site::AttnScores | Site::Pattern => self.heads * self.longest,
                Site::Result => self.heads * config.hidden_size,
                Site::MlpPre | Site::MlpPreLinear | Site::MlpPost => config.intermediate_size,
                Site::Embed => config.embed_size,
                Site::Logits => config.vocab_size,
                Site::LoraA(target) | Site::LoraDelta(target) => {
                    let lora = adapted(target).ok_or_else(|| {
                        Error::argument(
                            "--sites",
                            format!("an --adapter on {} for {name}", config.family.path(layer, target)),
                            "none",
                        )
                    })?;
                    if matches!(site, Site::LoraA(_)) { lora.rank } else { lora.output }
                }
                _ => config.hidden_size,
            };
            Ok((name, width))
        };
        self.selection.places.iter().map(site).collect()
    }

    /// Elements of the buffers of sites that a pass of so many rows, and of so many that are kept, makes only because
    /// they are asked for: one for each, which serves all layers.
    fn asked(&self, sites: &[(String, usize)], [rows, kept]: [usize; 2]) -> usize {
        let mut largest: HashMap<Site, usize> = HashMap::new();
        for (&(site, _), (_, width)) in self.selection.places.iter().zip(sites) {
            let rows = match site {
                Site::AttnScores | Site::Pattern | Site::Result | Site::Logits => kept,
                Site::PosEmbed | Site::LoraDelta(_) => rows,
                _ => continue,
            };
            let len = largest.entry(site).or_default();
            *len = (rows * width).max(*len);
        }
        largest.into_values().sum()
    }
}

/// Sends the tensors of one pass to the file as they arise.
struct Pass<'a> {
    sink: &'a Sink<'a>,
    writer: &'a mut ActivationWriter,
    rows: Vec<usize>,
    coming: Vec<((Site, usize, usize), Captured)>,
    error: Option<Error>,
}

impl Pass<'_> {
    /// Appends rows of a site, layer and width.
    fn write(&mut self, (site, layer, width): (Site, usize, usize), rows: &[f32]) -> Result<()> {
        let Sink { heads, longest, .. } = *self.sink;
        let name = site.name(layer);
        // What a row does not see has a score of minus infinity.
        let bad = |x: &&f32| if site == Site::AttnScores { x.is_nan() } else { !x.is_finite() };
        if let Some(&found) = rows.iter().find(bad) {
            return Err(Error::NotFinite { what: name, found: f64::from(found) });
        }
        match by_position(site) {
            Some(fill) => self.writer.push(&name, &widened(rows, width / heads, longest, fill)),
            None => self.writer.push(&name, rows),
        }
    }
}

impl<B: Backend> Taps<B> for Pass<'_> {
    fn wants(&self, site: Site, layer: usize) -> bool {
        self.error.is_none() && self.sink.selection.contains(site, layer)
    }

    fn tap(&mut self, backend: &mut B, tapped: Tapped<'_, B>) {
        let rows = take(backend, &tapped, &self.rows);
        let place = (tapped.site, tapped.layer, tapped.width);
        if !rows.is_ready() {
            self.coming.push((place, rows));
        } else if let Err(error) = self.write(place, rows.rows()) {
            self.error = Some(error);
        }
    }

    fn finish(&mut self, backend: &mut B) -> Result<()> {
        backend.sync()?;
        for (place, rows) in std::mem::take(&mut self.coming) {
            self.write(place, rows.rows())?;
        }
        Ok(())
    }

    fn rows(&self) -> Option<&[usize]> {
        Some(&self.rows)
    }

    fn stop_at_layer(&self) -> Option<usize> {
        self.sink.selection.stop_at_layer()
    }
}

/// For sites whose rows are `[heads, positions]`, what stands at positions that a sequence has not.
fn by_position(site: Site) -> Option<f32> {
    match site {
        Site::AttnScores => Some(f32::NEG_INFINITY),
        Site::Pattern => Some(0.0),
        _ => None,
    }
}

/// Rows of `from` positions per head as rows of `to`: batches have different longest sequences, the file has one width.
fn widened(values: &[f32], from: usize, to: usize, fill: f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len() / from * to);
    for head in values.chunks_exact(from) {
        out.extend_from_slice(head);
        out.resize(out.len() + to - from, fill);
    }
    out
}
