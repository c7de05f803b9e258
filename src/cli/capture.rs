//! `capture`: states of a model at chosen sites, layers and tokens, as a safetensors file.

use serde_json::json;

use super::args::{self, CaptureArgs, StoreDtype};
use super::device::{Job, dispatch};
use super::plan::Plan;
use super::resolve::{self, ModelFiles};
use super::{Failure, edits, output, texts};
use crate::Result;
use crate::backend::Backend;
use crate::capture::{Capture, CaptureMemory, CaptureSettings, Tokens};
use crate::formats::adapter::Adapter;
use crate::formats::safetensors::Dtype;
use crate::hooks::{Selection, site};
use crate::model::{Adaptation, Model};

/// The file in the output directory.
const FILE: &str = "activations.safetensors";

pub fn run(args: &CaptureArgs) -> Result<(), Failure> {
    let files = resolve::model(&args.model.model, &args.common)?;
    let depth = files.config.num_hidden_layers;
    let layers = site::layers(&args.layers, depth)?;
    let settings = CaptureSettings {
        selection: Selection::parse(&args.sites.join(","), &layers, depth)?,
        tokens: match args.tokens {
            args::Tokens::All => Tokens::All,
            args::Tokens::Last => Tokens::Last,
        },
        batch_tokens: args.batch_tokens,
        shard_tokens: args.shard_tokens,
        edits: edits::of_texts(args.edit.as_deref(), &files.config)?,
        dtype: match args.store_dtype {
            StoreDtype::F32 => Dtype::F32,
            StoreDtype::Bf16 => Dtype::BF16,
            StoreDtype::F16 => Dtype::F16,
        },
    };
    let adapter = resolve::adapter(args.model.adapter.as_deref(), &files)?;
    let docs = texts::read(&args.input, &files, args.add_generation_prompt)?;
    let dtype = files.dtype;
    dispatch(&args.common, dtype, CaptureJob { args, files, settings, adapter, docs })
}

struct CaptureJob<'a> {
    args: &'a CaptureArgs,
    files: ModelFiles,
    settings: CaptureSettings,
    adapter: Option<Adapter>,
    docs: Vec<Vec<u32>>,
}

impl Job for CaptureJob<'_> {
    fn run<B: Backend>(self, mut backend: B) -> Result<(), Failure> {
        let Self { args, files, settings, adapter, docs } = self;
        let model = Model::new(&mut backend, &files.config, &files.checkpoint)?;
        let adaptation = match &adapter {
            Some(adapter) => Some(Adaptation::of_adapter(&mut backend, &model.config, adapter)?),
            None => None,
        };
        let dtype = settings.dtype;
        let capture = Capture::new(&model.config, adaptation.as_ref(), settings, &docs)?;
        if args.dry_run {
            let CaptureMemory { rows, on_demand, readbacks } = capture.memory();
            let layout = adaptation.as_ref().map(|adaptation| &adaptation.layout);
            return Plan::new(&backend, &files)
                .inference(&backend, &model.config, layout, rows, readbacks)
                .with("captures", on_demand * backend.element_sizes().0)
                .print(args.common.json);
        }
        let bar = output::progress(capture.pass_rows() as u64, "tokens");
        let mut progress = |rows| bar.inc(rows as u64);
        let writer = capture
            .run(&mut backend, &model, adaptation.as_ref(), &args.out.join(FILE), &mut progress)
            .map_err(|error| files.with_bad_weight(error))?;
        bar.finish_and_clear();
        // The file of states comes last: where it is, all is.
        resolve::write_config(&args.out, "capture", args)?;
        let file = writer.finish()?;
        let (tensors, rows) = (capture.tensors(), capture.rows());
        if args.common.json {
            let tensors: Vec<_> = tensors
                .iter()
                .map(|(name, width)| json!({"name": name, "shape": [rows, width], "dtype": dtype}))
                .collect();
            return output::json(&json!({"file": file, "documents": docs.len(), "tokens": rows, "tensors": tensors}));
        }
        let row = |(name, width): &(String, usize)| {
            vec![name.clone(), rows.to_string(), width.to_string(), dtype.to_string()]
        };
        output::table(&["tensor", "tokens", "width", "dtype"], tensors.iter().map(row))?;
        output::line(file.display())
    }
}
