//! `capture`: states of a model at chosen sites, layers and tokens, as a safetensors file or arrays of NumPy.

use std::path::Path;

use serde_json::json;

use super::args::{self, CaptureArgs, FormatArg, NamesArg, StoreDtype};
use super::device::{Job, dispatch};
use super::plan::Plan;
use super::resolve::{self, ModelFiles, Used};
use super::series::{Each, OnModel, Series};
use super::{Failure, edits, output, texts};
use crate::Result;
use crate::backend::Backend;
use crate::capture::{Capture, CaptureMemory, CaptureSettings, Tokens};
use crate::formats::activations::{Earlier, Format, Start};
use crate::formats::adapter::{self, Adapter};
use crate::formats::gguf::Gguf;
use crate::formats::safetensors::Dtype;
use crate::formats::{atomic, hub};
use crate::hash::sha256_hex;
use crate::hooks::{Edit, Names, Naming, Selection, Site, site};
use crate::model::{Adaptation, Model};

/// The file in the output directory.
const FILE: &str = "activations.safetensors";
/// The list of the arrays in the output directory.
const ARRAYS: &str = "activations.json";

pub fn run(args: &CaptureArgs) -> Result<(), Failure> {
    let files = resolve::model(&args.model.model, &args.common)?;
    let inputs = Inputs::read(args, &files)?;
    let dtype = files.dtype;
    dispatch(&args.common, dtype, CaptureJob { args, files, inputs })
}

/// Runs captures of one model, which is loaded once; `each` runs each.
///
/// # Errors
/// Of the model or the device, or of `each`.
pub fn run_in_turn(all: &[&CaptureArgs], each: Each<'_>) -> Result<(), Failure> {
    let CaptureArgs { model, common, .. } = all[0];
    let files = resolve::model(&model.model, common)?;
    let dtype = files.dtype;
    dispatch(common, dtype, Series { files, commands: all, each })
}

/// What a capture needs beside its model.
struct Inputs {
    settings: CaptureSettings,
    adapter: Option<Adapter>,
    docs: Vec<Vec<u32>>,
    tokenizer: Option<String>,
}

impl Inputs {
    fn read(args: &CaptureArgs, files: &ModelFiles) -> Result<Self> {
        let depth = files.config.num_hidden_layers;
        let layers = site::layers(&args.layers, depth)?;
        let names = match args.names {
            NamesArg::Tl => Names::Tl,
            NamesArg::Tl4 => Names::Tl4,
            NamesArg::Llamaprobe1 => Names::Llamaprobe1,
        };
        let naming = Naming { names, config: &files.config };
        let settings = CaptureSettings {
            selection: Selection::parse(&args.sites.join(","), &layers, &naming)?,
            tokens: match args.tokens {
                args::Tokens::All => Tokens::All,
                args::Tokens::Last => Tokens::Last,
            },
            batch_tokens: args.batch_tokens,
            shard_tokens: args.shard_tokens,
            edits: edits::of_texts(args.edit.as_deref(), &naming)?,
            dtype: match args.store_dtype {
                StoreDtype::F32 => Dtype::F32,
                StoreDtype::Bf16 => Dtype::BF16,
                StoreDtype::F16 => Dtype::F16,
            },
            format: match args.format {
                FormatArg::Safetensors => Format::Safetensors,
                FormatArg::Npy => Format::Npy,
            },
            names,
            metadata: Vec::new(),
            start: start(args),
            append: args.append.then(|| Earlier::open(&args.out.join(FILE))).transpose()?,
        };
        let adapter = resolve::adapter(args.model.adapter.as_deref(), files)?;
        let (docs, tokenizer) = texts::read_with_tokenizer(&args.input, files, args.add_generation_prompt)?;
        Ok(Self { settings, adapter, docs, tokenizer })
    }

    /// What a file of states says of where they come from.
    fn provenance(&self, args: &CaptureArgs, files: &ModelFiles, used: &Used) -> Result<Vec<(String, String)>> {
        let (model, revision) = hub::identity(&files.path);
        let adapter_dir = resolve::adapter_dir(args.model.adapter.as_deref(), files)?;
        let adapter = adapter_dir.as_deref().map(hub::identity);
        let edits = args.edit.as_ref().map(|path| hub::identity(path).0);
        let all = [
            ("model", Some(model)),
            ("revision", revision),
            ("adapter", adapter.as_ref().map(|(name, _)| name.clone())),
            ("adapter_revision", adapter.and_then(|(_, revision)| revision)),
            ("tokenizer", self.tokenizer.clone()),
            ("edits", edits),
            ("dtype", Some(used.dtype.clone())),
            ("device", Some(used.device.clone())),
        ];
        let mut all: Vec<_> = all.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
        if args.shard_tokens.is_some() {
            all.extend(self.of_shards(files, adapter_dir.as_deref())?);
        }
        Ok(all)
    }

    /// What shards say further, by which those of another capture are told: names are no weights.
    fn of_shards(&self, files: &ModelFiles, adapter: Option<&Path>) -> Result<Vec<(String, String)>> {
        let mut all = vec![
            ("batch_tokens".to_owned(), self.settings.batch_tokens.to_string()),
            ("weights".to_owned(), files.checkpoint.fingerprint()),
        ];
        all.extend(files.config_digest()?.map(|digest| ("config".to_owned(), digest)));
        if let Some(dir) = adapter {
            let files = if Gguf::is_one(dir) { vec![dir.to_path_buf()] } else { adapter::files(dir)?.to_vec() };
            let read = |file| atomic::read_if_there(file).map(Option::unwrap_or_default);
            let contents: Vec<Vec<u8>> = files.into_iter().map(read).collect::<Result<_>>()?;
            all.push(("adapter_sha256".to_owned(), sha256_hex(contents.iter().map(Vec::as_slice))));
        }
        if !self.settings.edits.is_empty() {
            all.push(("edits_hash".to_owned(), Edit::fingerprint(&self.settings.edits)));
        }
        Ok(all)
    }

    /// Runs the capture.
    fn run<B: Backend>(
        self,
        args: &CaptureArgs,
        files: &ModelFiles,
        backend: &mut B,
        model: &mut Model<B>,
    ) -> Result<(), Failure> {
        let used = Used::of(backend);
        let metadata = self.provenance(args, files, &used)?;
        let Self { settings, adapter, docs, .. } = self;
        let settings = CaptureSettings { metadata, ..settings };
        let adaptation = match &adapter {
            Some(adapter) => Some(Adaptation::applied(backend, model, adapter)?),
            None => None,
        };
        let (dtype, with_head) = (settings.dtype, with_head(&settings));
        let capture = Capture::new(&model.config, adaptation.as_ref(), settings, &docs)?;
        if args.dry_run {
            let CaptureMemory { rows, on_demand, captures } = capture.memory();
            let (acc, compute) = backend.element_sizes();
            let captures = captures.into_iter().map(|[wide, narrow]| wide * acc + narrow * compute).collect();
            let layout = adaptation.as_ref().map(|adaptation| &adaptation.layout);
            return Plan::new(backend, files, with_head)
                .inference(backend, &model.config, layout, rows, captures)
                .with("captures", on_demand * acc)
                .print(args.common.json);
        }
        let _claim = atomic::Claim::new(&args.out)?;
        if args.resume_from_checkpoint.is_some() {
            atomic::sweep(&args.out)?;
        }
        let file = if args.format == FormatArg::Npy { ARRAYS } else { FILE };
        let bar = output::progress(capture.pass_rows() as u64, "tokens");
        let mut progress = |rows| bar.inc(rows as u64);
        let writer = capture
            .run(backend, model, adaptation.as_ref(), &args.out.join(file), &mut progress)
            .map_err(|error| files.with_bad_weight(error))?;
        bar.finish_and_clear();
        if args.resume_from_checkpoint.is_some() {
            let (rows, all) = (writer.resumed(), capture.rows());
            output::note(format_args!("{rows} of {all} tokens were in whole shards of {}", args.out.display()));
        }
        // The file of states comes last: where it is, all is. That of the first inputs stands for the settings of all.
        if !args.append {
            resolve::write_used_config(&args.out, "capture", args, &used)?;
        }
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

/// Whether logits are captured.
fn with_head(settings: &CaptureSettings) -> bool {
    settings.selection.hooks.iter().any(|&(site, _)| site == Site::Logits)
}

/// Where the writing begins.
fn start(args: &CaptureArgs) -> Start {
    if args.resume_from_checkpoint.is_some() { Start::Resume } else { Start::New }
}

impl OnModel for CaptureArgs {
    fn on<B: Backend>(&self, files: &ModelFiles, backend: &mut B, model: &mut Model<B>) -> Result<(), Failure> {
        Inputs::read(self, files)?.run(self, files, backend, model)
    }
}

struct CaptureJob<'a> {
    args: &'a CaptureArgs,
    files: ModelFiles,
    inputs: Inputs,
}

impl Job for CaptureJob<'_> {
    fn run<B: Backend>(self, mut backend: B) -> Result<(), Failure> {
        let Self { args, files, inputs } = self;
        let load = if with_head(&inputs.settings) { Model::new } else { Model::for_states };
        let mut model = load(&mut backend, &files.config, &files.checkpoint)?;
        inputs.run(args, &files, &mut backend, &mut model)
    }
}
