//! States of a model on many documents, at chosen hooks and tokens, as an activation file.
//!
//! [`Capture::new`] plans: which documents go through the model together, how wide each tensor of the file is, how much
//! memory it takes. [`Capture::run`] runs the passes; rows go to the file as they arise, so that nothing of a file's size
//! is in memory. The file has, beside the tensors of the hooks, the columns `doc_id` (number of the document), `pos`
//! (position in it, the soft prompt's included) and `token_id` (-1 for a soft prompt's rows). What a file says of itself is in
//! `capture/metadata.rs`.
//!
//! ```
//! use llamaprobe::backend::cpu::Cpu;
//! use llamaprobe::capture::{Capture, CaptureSettings, Tokens};
//! use llamaprobe::formats::activations::{Format, Start};
//! use llamaprobe::formats::safetensors;
//! use llamaprobe::hooks::{Names, Naming, Selection};
//! # use llamaprobe::arch::{Dtype, ModelConfig};
//! # use llamaprobe::model::{Adaptation, FullTuning};
//! # let config = r#"{"model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
//! #     "num_attention_heads": 2, "vocab_size": 11}"#;
//! # let backend = &mut Cpu::new(Dtype::F32);
//! # let config = ModelConfig::parse("config.json", config)?;
//! # let (model, _) = FullTuning::random(backend, config, 0.2, 0)?;
//! # let folder = tempfile::tempdir().expect("a temporary directory");
//! # let path = folder.path().join("activations.safetensors");
//!
//! let settings = CaptureSettings {
//!     selection: Selection::parse("embed,resid_post", &[1], &Naming::tl(&model.config))?,
//!     tokens: Tokens::Last,
//!     batch_tokens: 2048,
//!     shard_tokens: None,
//!     edits: Vec::new(),
//!     dtype: safetensors::Dtype::F32,
//!     format: Format::Safetensors,
//!     names: Names::Tl,
//!     metadata: Vec::new(),
//!     start: Start::New,
//!     append: None,
//! };
//! let documents = [vec![1, 5, 7], vec![1, 9]];
//! let capture = Capture::new(&model.config, None::<&Adaptation<Cpu>>, settings, &documents)?;
//! assert_eq!(capture.tensors(), [("hook_embed".to_owned(), 8), ("blocks.1.hook_resid_post".to_owned(), 8)]);
//! let writer = capture.run(backend, &model, None, &path, &mut |_rows| ())?;
//! assert_eq!((capture.rows(), writer.finish()?), (2, path));
//! # Ok::<(), llamaprobe::Error>(())
//! ```

use std::ops::Range;
use std::path::Path;

use crate::arch::ModelConfig;
use crate::backend::Backend;
use crate::formats::activations::{ActivationWriter, Earlier, FileLayout, Format, Layout, Start};
use crate::formats::safetensors::Dtype;
use crate::hooks::{Edit, EditPlan, Names, Naming, Selection, Site};
use crate::model::{self, Activations, Adaptation, EditSet, Input, Model, OutputRows, PassEdits, Save};
use crate::pack::Sequence;
use crate::{Error, Result};

pub(crate) mod batch;
pub(crate) mod file;
pub(crate) mod metadata;
pub(crate) mod tensors;

use batch::Batch;
use file::FileTaps;
use tensors::Tensors;

/// Tokens of each document whose rows are captured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tokens {
    /// Every one, those of a soft prompt included.
    #[default]
    All,
    /// The last one alone.
    Last,
}

/// What is captured, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct CaptureSettings {
    /// The tensors that are written, by site and layer.
    pub selection: Selection,
    /// Which rows of each document are written.
    pub tokens: Tokens,
    /// Most rows of one pass, at least 1; a longer document is a pass of its own.
    pub batch_tokens: usize,
    /// Most rows of one file, which holds whole documents: a longer one has a file of its own. None means a single file.
    pub shard_tokens: Option<usize>,
    /// Edits of every document; what is captured at an edited hook is what they left.
    pub edits: Vec<Edit>,
    /// Dtype of the tensors in the file: F32, F16 or BF16.
    pub dtype: Dtype,
    /// The form of the files.
    pub format: Format,
    /// Whose names the tensors of the file have.
    pub names: Names,
    /// What else the file's metadata are to say, such as the model's name.
    pub metadata: Vec<(String, String)>,
    /// Whether shards that an interrupted capture has left are kept, if they are of the same settings and documents. What comes of
    /// it is then what would have come of it without the interruption, byte for byte. Where the last shards of `append` have these
    /// documents already, nothing is added.
    pub start: Start,
    /// Shards of an earlier capture with the same settings, behind whose documents these follow.
    pub append: Option<Earlier>,
}

/// Memory that a capture takes, beside the model and its activations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureMemory {
    /// Rows of the largest pass.
    pub rows: usize,
    /// Elements, of the accumulation dtype, of tensors that are computed only because they are asked for.
    pub on_demand: usize,
    /// Elements, of the accumulation and of the compute dtype, of each tensor that is on its way to the host during a pass.
    pub captures: Vec<[usize; 2]>,
}

/// A capture that has been planned.
pub struct Capture {
    settings: CaptureSettings,
    tensors: Tensors,
    batches: Vec<Batch>,
    /// Which tokens of the documents are edited.
    plan: EditPlan,
    /// Captured rows of each document.
    rows: Vec<usize>,
    /// The files that are written.
    files: Vec<FileLayout>,
    /// What each file says of itself.
    metadata: Vec<(String, String)>,
}

impl Capture {
    /// A capture of documents (token ids, none of them empty), after the soft prompt of an adapter if it has one. With an
    /// adaptation every document runs through its run 0.
    ///
    /// # Errors
    /// `sites`: one that the model lacks, or that the names have no name for; `adapter`: one that a site needs is missing;
    /// `batch_tokens` or `shard_tokens` is 0, or the latter none where shards are kept; edits at positions that a document has
    /// not; `append`: documents that have more positions than scores and patterns in the earlier shards.
    pub fn new<B: Backend>(
        config: &ModelConfig,
        adaptation: Option<&Adaptation<B>>,
        settings: CaptureSettings,
        documents: &[Vec<u32>],
    ) -> Result<Self> {
        let run = adaptation.map(|_| 0);
        let prompt = adaptation.map_or(0, |adaptation| adaptation.prompts[0]);
        let ids = documents;
        let mut documents: Vec<Sequence> = documents.iter().map(|ids| Sequence::prompted(prompt, ids, run)).collect();
        let plan = EditPlan::new(&settings.edits, &mut documents)?;
        let batches = batch::batches(&documents, settings.batch_tokens, config)?;
        let captured = |document: &Sequence| match settings.tokens {
            Tokens::All => document.tokens.len(),
            Tokens::Last => 1,
        };
        let rows: Vec<usize> = documents.iter().map(captured).collect();
        let settings = not_yet_appended(settings, &rows, &documents, ids);
        let longest = longest(&documents, &settings)?;
        let layout = adaptation.map(|adaptation| &adaptation.layout);
        match (settings.shard_tokens, settings.format) {
            (Some(0), _) => return Err(Error::argument("shard_tokens", "at least 1", 0)),
            (Some(found), Format::Npy) => {
                return Err(Error::argument("shard_tokens", "none for arrays of NumPy, which are whole", found));
            }
            _ => {}
        }
        let naming = Naming { names: settings.names, config };
        let tensors = Tensors::new(&naming, layout, &settings.selection, longest)?;
        let files = files(&settings, &rows, longest, ids);
        let metadata = metadata::of_capture(config, &settings)?;
        Ok(Self { settings, tensors, batches, plan, rows, files, metadata })
    }

    /// Name and width of each of the file's tensors, without the columns of labels.
    pub fn tensors(&self) -> &[(String, usize)] {
        &self.tensors.widths
    }

    /// Rows of each of the file's tensors.
    pub fn rows(&self) -> usize {
        self.rows.iter().sum()
    }

    /// Rows of all passes together.
    pub fn pass_rows(&self) -> usize {
        self.batches.iter().map(|batch| batch.pack.len()).sum()
    }

    /// What the largest pass takes.
    pub fn memory(&self) -> CaptureMemory {
        let rows = self.batches.iter().map(|batch| batch.pack.len()).max().unwrap_or(0);
        let selected = self.batches.iter().map(|batch| batch.selected(self.settings.tokens).len()).max().unwrap_or(0);
        let on_demand = self.tensors.on_demand(&self.settings.selection, [rows, selected]);
        let elements = |(&(site, _), (_, width)): (&(Site, usize), &(String, usize))| match site.is_accumulated() {
            true => [selected * width, 0],
            false => [0, selected * width],
        };
        let captures = self.settings.selection.hooks.iter().zip(self.tensors()).map(elements).collect();
        CaptureMemory { rows, on_demand, captures }
    }

    /// Runs every pass, but those whose rows are there already, and writes the file `path`, which ends in `.safetensors`, or of
    /// arrays in `.json`.
    /// `progress` hears of the rows of each pass that is done. The file is complete, and has its name, once the writer has been finished: by the caller, after
    /// everything that is to be there before it.
    ///
    /// # Errors
    /// A state that is not finite, named by its hook; a failure of the device or of the file; shards that are of another capture.
    pub fn run<B: Backend>(
        &self,
        backend: &mut B,
        model: &Model<B>,
        adaptation: Option<&Adaptation<B>>,
        path: &Path,
        progress: &mut dyn FnMut(usize),
    ) -> Result<ActivationWriter> {
        let CaptureSettings { selection, tokens, shard_tokens, dtype, edits, append, start, format, .. } =
            &self.settings;
        let layout: Option<&model::Layout> = adaptation.map(|adaptation| &adaptation.layout);
        let mut acts = Activations::new(backend, &model.config, layout, self.memory().rows, Save::Layer)?;
        let file = Layout {
            sites: self.tensors.widths.clone(),
            labels: batch::LABELS.map(str::to_owned).to_vec(),
            format: *format,
            files: self.files.clone(),
            dtype: *dtype,
            sharded: shard_tokens.is_some(),
            metadata: self.metadata.clone(),
            earlier: append.clone(),
        };
        let mut writer = ActivationWriter::create(path, file, *start)?;
        let earlier = append.as_ref().map_or(0, |earlier| earlier.documents);
        let edits = match edits.as_slice() {
            [] => None,
            edits => Some(EditSet::new(backend, &model.config, edits)?),
        };
        let mut done = 0;
        for batch in &self.batches {
            let rows = batch.selected(*tokens);
            done += rows.len();
            // Where the end of a shard lies within a batch, the batch is computed as it was: on a GPU other batches may round otherwise.
            if done <= writer.resumed() {
                writer.skip(rows.len());
                progress(batch.pack.len());
                continue;
            }
            let device = backend.pack(&batch.pack)?;
            let output = OutputRows::new(backend, &batch.pack, rows.iter().copied())?;
            let mut input = Input::new(&batch.pack, &device).with_output_rows(output.as_ref());
            input.adaptation = adaptation;
            let edited = edits.as_ref().map(|set| (set, batch.edited(&self.plan)));
            let edited = edited.map(|(set, rows)| PassEdits::new(backend, set, &rows, output.as_ref())).transpose()?;
            input.edits = edited.as_ref();
            batch.write_labels(&mut writer, &rows, earlier)?;
            let mut taps = FileTaps::new(selection, &self.tensors, &mut writer, rows);
            model.forward(backend, &mut acts, &input, None, &mut taps)?;
            progress(batch.pack.len());
        }
        Ok(writer)
    }
}

/// The same settings without those of the earlier shards that have these documents, where a capture is resumed: it was through.
fn not_yet_appended(
    settings: CaptureSettings,
    rows: &[usize],
    documents: &[Sequence],
    ids: &[Vec<u32>],
) -> CaptureSettings {
    let resumed = settings.append.as_ref().filter(|_| settings.start == Start::Resume);
    let before = resumed.zip(settings.shard_tokens).and_then(|(earlier, most)| {
        let append = earlier.without_last(metadata::shards(rows, most).len())?;
        let before = CaptureSettings { append: Some(append), ..settings.clone() };
        let longest = longest(documents, &before).ok()?;
        earlier.ends_with(&files(&before, rows, longest, ids)).then_some(before)
    });
    before.unwrap_or(settings)
}

/// Positions of the longest document, those of an earlier capture included.
fn longest(documents: &[Sequence], settings: &CaptureSettings) -> Result<usize> {
    let longest = documents.iter().map(|document| document.tokens.len()).max().unwrap_or(0);
    if settings.shard_tokens.is_none() && (settings.append.is_some() || settings.start == Start::Resume) {
        return Err(Error::argument("shard_tokens", "a number, since whole shards are kept", "none"));
    }
    let Some(earlier) = &settings.append else { return Ok(longest) };
    let by_position = |(site, _): &(Site, usize)| file::fill_by_position(*site).is_some();
    if longest > earlier.positions && settings.selection.hooks.iter().any(by_position) {
        let expected = format!("documents of at most {} tokens, as scores and patterns have there", earlier.positions);
        return Err(Error::argument("append", expected, longest));
    }
    Ok(longest.max(earlier.positions))
}

/// The files that are written, of documents with so many captured rows and of these token ids.
fn files(settings: &CaptureSettings, rows: &[usize], longest: usize, ids: &[Vec<u32>]) -> Vec<FileLayout> {
    let first = settings.append.as_ref().map_or(0, |earlier| earlier.documents);
    let file = |documents: Range<usize>| {
        let rows = &rows[documents.clone()];
        let ids = settings.shard_tokens.map(|_| &ids[documents.clone()]);
        let metadata = metadata::of_documents(first + documents.start, rows, longest, ids);
        FileLayout { rows: rows.iter().sum(), metadata }
    };
    metadata::shards(rows, settings.shard_tokens.unwrap_or(usize::MAX)).into_iter().map(file).collect()
}
