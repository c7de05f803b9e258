//! A loaded model: on a thread of its own, which runs one call after another.

use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use serde_json::{Value, json};

use super::array::{Array, Memory};
use super::commands::spawn;
use super::errors::{self, exception, refused};
use super::run::{PassRequest, PassResult, rows_of};
use super::taps::{CallTaps, Question, Recorded};
use super::wait::{Listener, Said, wait};
use crate::arch::ModelConfig;
use crate::backend::Backend;
use crate::capture::batch;
use crate::capture::metadata::axes;
use crate::capture::tensors::Tensors;
use crate::cli::Failure;
use crate::cli::args::GenerateArgs;
use crate::cli::call::{self, Loaded, Refusal};
use crate::cli::device::Job;
use crate::cli::generate::Continuation;
use crate::cli::host::{self, Host};
use crate::cli::texts;
use crate::formats::edits::{self, Values};
use crate::formats::json;
use crate::formats::tokenizer::Tokenizer;
use crate::hooks::{Edit, EditPlan, Names, Naming, Selection, Site};
use crate::model::{Activations, Adaptation, EditSet, Input, Model, OutputRows, PassEdits, Save};
use crate::pack::Sequence;
use crate::{Error, Result};

/// What a session is asked to do.
enum Request {
    Pass(Box<PassRequest>),
    Generate(Box<GenerateRequest>),
}

/// Continuations of prompts.
struct GenerateRequest {
    args: GenerateArgs,
    prompts: Vec<Vec<u32>>,
    edits: Vec<Edit>,
}

/// What comes of a request.
pub enum Asked {
    Pass(Result<PassResult>),
    Generate(Result<Vec<(Vec<u32>, Option<String>)>>),
}

/// What a session says on the way.
pub enum SessionEvent {
    /// A hook is asked.
    Hook(Question),
    /// Token `1` of prompt `0`.
    Token(usize, u32),
}

/// A request with the channels of whoever waits for it.
struct Call {
    request: Request,
    events: Sender<Said<Asked, SessionEvent>>,
    answers: Receiver<Option<Vec<f32>>>,
}

/// Opens a model, and runs calls until there are no more.
struct Serve {
    loaded: Loaded,
    tokenizer: Option<Arc<Tokenizer>>,
    host: Arc<Host>,
    opened: Sender<Said<std::result::Result<Opened, Refusal>, ()>>,
    calls: Receiver<Call>,
}

/// What an opened session is.
struct Opened {
    device: String,
    prompt_rows: usize,
}

impl Job for Serve {
    fn run<B: Backend>(self, mut backend: B) -> std::result::Result<(), Failure> {
        let Self { mut loaded, tokenizer, host, opened, calls } = self;
        host::adopt(Some(host.clone()));
        let mut model = Model::for_generation(&mut backend, &loaded.files.config, &mut loaded.files.checkpoint)?;
        let adaptation = match &loaded.adapter {
            Some(adapter) => Some(Adaptation::applied(&mut backend, &mut model, adapter)?),
            None => None,
        };
        let prompt_rows = adaptation.as_ref().map_or(0, |adaptation| adaptation.prompts[0]);
        if opened.send(Said::Done(Ok(Opened { device: backend.name(), prompt_rows }))).is_err() {
            return Ok(());
        }
        drop(opened);
        let mut engine = Engine { backend, model, adaptation, acts: None };
        for Call { request, events, answers } in calls {
            let done = match request {
                Request::Pass(request) => {
                    let done = engine.pass(&request, &events, &answers, &host);
                    Asked::Pass(done.map_err(|error| loaded.files.with_bad_weight(error)))
                }
                Request::Generate(request) => {
                    Asked::Generate(engine.generate(&request, &loaded, tokenizer.as_deref(), &events))
                }
            };
            // Who no longer waits wants no answer.
            let _ = events.send(Said::Done(done));
        }
        Ok(())
    }
}

/// A model on its device.
struct Engine<B: Backend> {
    backend: B,
    model: Model<B>,
    adaptation: Option<Adaptation<B>>,
    /// Buffers of the last passes.
    acts: Option<Activations<B>>,
}

impl<B: Backend> Engine<B> {
    fn pass(
        &mut self,
        request: &PassRequest,
        events: &Sender<Said<Asked, SessionEvent>>,
        answers: &Receiver<Option<Vec<f32>>>,
        host: &Host,
    ) -> Result<PassResult> {
        let Self { backend, model, adaptation, acts } = self;
        let (config, adaptation) = (&model.config, adaptation.as_ref());
        let (run, prompt) = (adaptation.map(|_| 0), adaptation.map_or(0, |adaptation| adaptation.prompts[0]));
        let mut documents: Vec<Sequence> =
            request.documents.iter().map(|ids| Sequence::prompted(prompt, ids, run)).collect();
        let plan = EditPlan::new(&request.edits, &mut documents)?;
        let batches = batch::batches(&documents, request.batch_tokens, config)?;
        let longest = documents.iter().map(|document| document.tokens.len()).max().unwrap_or(0);
        let naming = Naming { names: request.names, config };
        let layout = adaptation.map(|adaptation| &adaptation.layout);
        let tensors = Tensors::new(&naming, layout, &request.recorded, longest)?;
        if request.logits {
            config.require_head()?;
        }
        let mut result = PassResult::new(request, &documents, prompt, config, &tensors)?;
        let most = batches.iter().map(|batch| batch.pack.len()).max().unwrap_or(0);
        let acts = match acts.take().filter(|acts| acts.rows >= most) {
            Some(there) => acts.insert(there),
            None => acts.insert(Activations::new(backend, config, layout, most, Save::Layer)?),
        };
        let edits = match request.edits.as_slice() {
            [] => None,
            edits => Some(EditSet::new(backend, config, edits)?),
        };
        let mut recorded: Vec<Recorded> = Vec::new();
        let mut of_rows: Vec<&'static str> = Vec::new();
        for (record, axes) in result.recorded.drain(..) {
            recorded.push(record);
            of_rows.push(axes);
        }
        // Whoever does not answer has stopped.
        let mut ask = |question| {
            let asked = events.send(Said::Event(SessionEvent::Hook(question)));
            asked.ok().and_then(|()| answers.recv().ok()).ok_or(Error::Interrupted)
        };
        for batch in &batches {
            let device = backend.pack(&batch.pack)?;
            let rows = rows_of(request, batch);
            let every = request.logits || !request.asked.hooks.is_empty();
            let output = match every {
                true => None,
                false => OutputRows::new(backend, &batch.pack, rows.iter().copied())?,
            };
            let mut input = Input::new(&batch.pack, &device).with_output_rows(output.as_ref());
            input.adaptation = adaptation;
            let edited = edits.as_ref().map(|set| (set, batch.edited(&plan)));
            let edited = edited.map(|(set, rows)| PassEdits::new(backend, set, &rows, output.as_ref())).transpose()?;
            input.edits = edited.as_ref();
            let mut taps = CallTaps {
                recorded: (&request.recorded, &mut recorded),
                tensors: &tensors,
                asked: &request.asked,
                logits: result.logits.as_mut(),
                rows,
                first: batch.first,
                pending: Vec::new(),
                ask: &mut ask,
                interrupt: &host.interrupt,
            };
            model.forward(backend, acts, &input, None, &mut taps)?;
        }
        result.recorded = recorded.into_iter().zip(of_rows).collect();
        Ok(result)
    }

    fn generate(
        &mut self,
        request: &GenerateRequest,
        loaded: &Loaded,
        tokenizer: Option<&Tokenizer>,
        events: &Sender<Said<Asked, SessionEvent>>,
    ) -> Result<Vec<(Vec<u32>, Option<String>)>> {
        let GenerateRequest { args, prompts, edits } = request;
        let mut work = || -> Result<Vec<(Vec<u32>, Option<String>)>> {
            let continuation = Continuation::new(args, &loaded.files, tokenizer, edits)?;
            let mut told = |prompt, token| {
                // Who no longer listens stops the device.
                let _ = events.send(Said::Event(SessionEvent::Token(prompt, token)));
            };
            let done =
                continuation.run(&mut self.backend, &self.model, self.adaptation.as_ref(), prompts, &mut told)?;
            done.into_iter().map(|ids| continuation.text(&ids).map(|text| (ids, text))).collect()
        };
        work().map_err(|error| call::in_words_of("generate", error))
    }
}

/// Edits: none, the path of a YAML file, or a list in JSON whose values are numbers of the rows beside it, each with their width.
type GivenEdits = (Option<String>, Vec<(Vec<f32>, usize)>);

/// A loaded model.
#[pyclass(frozen, module = "llamaprobe._core")]
pub struct Session {
    calls: Mutex<Option<Sender<Call>>>,
    /// The thread that a hook's function runs on, for whose answer a pass waits.
    in_hook: Mutex<Option<ThreadId>>,
    host: Arc<Host>,
    config: ModelConfig,
    tokenizer: Option<Arc<Tokenizer>>,
    info: Value,
}

/// Which names.
fn names(py: Python<'_>, name: &str) -> PyResult<Names> {
    Names::ALL.into_iter().find(|names| names.name() == name).ok_or_else(|| {
        let all = Names::ALL.map(Names::name).join(", ");
        exception(py, &Error::argument("names", format!("one of {all}"), name))
    })
}

#[pymethods]
impl Session {
    /// Opens a model by the flags that all commands have for it.
    #[staticmethod]
    #[pyo3(signature = (flags, warn))]
    fn load<'py>(py: Python<'py>, flags: String, warn: &Bound<'py, PyAny>) -> PyResult<Self> {
        let host = Arc::new(Host::default());
        let (opened, opening) = channel::<Said<std::result::Result<Opened, Refusal>, ()>>();
        let (calls, served) = channel();
        let (found, finding) = channel();
        let hosted = host.clone();
        spawn("model", move || {
            let failed = opened.clone();
            let work = || -> std::result::Result<(), Refusal> {
                let loaded = call::load(&flags, &hosted)?;
                let tokenizer = loaded.files.tokenizer_if_any()?.map(Arc::new);
                let files = &loaded.files;
                let _ = found.send((files.config.clone(), tokenizer.clone(), files.path.display().to_string()));
                host::adopt(Some(hosted.clone()));
                let host = hosted.clone();
                call::dispatched(loaded, |loaded| Serve { loaded, tokenizer, host, opened, calls: served })
            };
            if let Err(refusal) = work() {
                let _ = failed.send(Said::Done(Err(refusal)));
            }
        })?;
        let listener = Listener { warn, progress: None };
        let opened = wait(py, opening, &host, &listener, |_, ()| Ok(()))?.map_err(|refusal| refused(py, &refusal))?;
        let gone = |_| PyRuntimeError::new_err("llamaprobe: its thread has ended");
        let (config, tokenizer, path) = finding.recv().map_err(gone)?;
        let (device, dtype) = opened.device.split_once(' ').unwrap_or((&opened.device, ""));
        let info = json!({
            "path": path,
            "device": device,
            "dtype": dtype,
            "family": config.family.name(),
            "n_layers": config.num_hidden_layers,
            "d_model": config.hidden_size,
            "n_heads": config.num_attention_heads,
            "n_kv_heads": config.num_key_value_heads,
            "d_head": config.head_dim,
            "d_mlp": config.intermediate_size,
            "d_vocab": config.vocab_size,
            "n_ctx": config.max_position_embeddings,
            "prompt_rows": opened.prompt_rows,
        });
        Ok(Self { calls: Mutex::new(Some(calls)), in_hook: Mutex::new(None), host, config, tokenizer, info })
    }

    /// What it is, in JSON.
    fn info(&self) -> String {
        self.info.to_string()
    }

    /// Ends its thread, and frees its memory.
    fn close(&self) {
        drop(self.calls.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// The names of all sites that the model has, in the order of the forward, without those of adapters and each head's result.
    fn hook_names(&self, py: Python<'_>, names_of: &str) -> PyResult<Vec<String>> {
        let naming = Naming { names: names(py, names_of)?, config: &self.config };
        let left_out = |site: &Site| matches!(site, Site::Result | Site::LoraA(_) | Site::LoraDelta(_) | Site::Logits);
        let sites: Vec<Site> =
            Site::all().into_iter().filter(|&site| self.config.has(site) && !left_out(&site)).collect();
        let layers: Vec<usize> = (0..self.config.num_hidden_layers).collect();
        let all = Selection::new(&sites, &layers);
        Ok(all.hooks.into_iter().filter_map(|(site, layer)| naming.name(site, layer).ok()).collect())
    }

    /// The axes of a row of each hook that a list of names stands for, in the order of [`Self::resolve`].
    fn axes(&self, py: Python<'_>, list: Vec<String>, names_of: &str) -> PyResult<Vec<&'static str>> {
        let naming = Naming { names: names(py, names_of)?, config: &self.config };
        let selection = self.select(&list, &naming).map_err(|error| exception(py, &error))?;
        Ok(selection.hooks.iter().map(|&(site, _)| axes(site, &self.config)).collect())
    }

    /// The names, as they are written, of the hooks that a list of names in any spelling stands for.
    fn resolve(&self, py: Python<'_>, list: Vec<String>, names_of: &str) -> PyResult<Vec<String>> {
        let naming = Naming { names: names(py, names_of)?, config: &self.config };
        let found = self.select(&list, &naming).and_then(|selection| {
            selection.hooks.iter().map(|&(site, layer)| naming.name(site, layer)).collect::<Result<_>>()
        });
        found.map_err(|error| exception(py, &error))
    }

    /// The token ids of a text.
    #[pyo3(signature = (text, add_special_tokens = true))]
    fn encode(&self, py: Python<'_>, text: &str, add_special_tokens: bool) -> PyResult<Vec<u32>> {
        let tokenizer = self.tokenizer(py)?;
        tokenizer.encode(text, add_special_tokens).map(|encoding| encoding.ids).map_err(|error| exception(py, &error))
    }

    /// The text of token ids.
    #[pyo3(signature = (ids, skip_special_tokens = true))]
    fn decode(&self, py: Python<'_>, ids: Vec<u32>, skip_special_tokens: bool) -> PyResult<String> {
        self.tokenizer(py)?.decode(&ids, skip_special_tokens).map_err(|error| exception(py, &error))
    }

    /// Runs documents through the model. `ask(hook, array, first, starts)` gives the new rows as the bytes of f32, or None.
    #[pyo3(signature = (documents, warn, *, recorded, names_of, rows, logits, edits, batch_tokens, asked, ask))]
    #[allow(clippy::too_many_arguments, reason = "keywords, from the one place that calls it")]
    fn run<'py>(
        &self,
        py: Python<'py>,
        documents: Vec<Vec<u32>>,
        warn: &Bound<'py, PyAny>,
        recorded: Vec<String>,
        names_of: &str,
        rows: Option<Vec<Vec<usize>>>,
        logits: bool,
        edits: GivenEdits,
        batch_tokens: usize,
        asked: Vec<String>,
        ask: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let naming = Naming { names: names(py, names_of)?, config: &self.config };
        let request = || -> Result<PassRequest> {
            let documents = self.checked(documents)?;
            let recorded = self.select(&recorded, &naming)?;
            let asked = self.select_outputs(&asked, &naming)?;
            let edits = self.edits(edits, &naming)?;
            Ok(PassRequest { documents, recorded, asked, names: naming.names, rows, logits, edits, batch_tokens })
        };
        let request = request().map_err(|error| exception(py, &error))?;
        if request.rows.as_ref().is_some_and(|rows| rows.len() != request.documents.len()) {
            return Err(PyValueError::new_err("rows: one list for each document"));
        }
        let done = self.ask(py, Request::Pass(Box::new(request)), warn, |py, answers, event| {
            let SessionEvent::Hook(question) = event else { return Ok(()) };
            let Question { hook, elements, width, first, starts } = question;
            let rows = elements.len() / width.max(1);
            let array = Py::new(py, Array::new(Memory::new(elements), vec![rows, width]))?;
            let ask = ask.as_ref().ok_or_else(|| PyValueError::new_err("hooks without a function"))?;
            self.set_in_hook(Some(thread::current().id()));
            let answer = ask.call1((hook, array, first, starts));
            self.set_in_hook(None);
            let answer: Option<Vec<u8>> = answer?.extract()?;
            let floats = |bytes: Vec<u8>| {
                bytes.chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect::<Vec<f32>>()
            };
            let answer = answer.map(floats);
            if answer.as_ref().is_some_and(|answer| answer.len() != rows * width) {
                return Err(PyValueError::new_err(format!("a hook's answer of another shape than [{rows}, {width}]")));
            }
            // A session that has stopped needs no answer.
            let _ = answers.send(answer);
            Ok(())
        })?;
        let Asked::Pass(done) = done else { return Err(PyRuntimeError::new_err("another request's answer")) };
        done.map_err(|error| exception(py, &error))?.into_dict(py)
    }

    /// Continues prompts, by the flags of `generate`; `on_token(prompt, id)` hears of every token.
    #[pyo3(signature = (prompts, flags, warn, *, edits, on_token))]
    fn generate<'py>(
        &self,
        py: Python<'py>,
        prompts: Vec<Vec<u32>>,
        flags: &str,
        warn: &Bound<'py, PyAny>,
        edits: GivenEdits,
        on_token: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Vec<(Vec<u32>, Option<String>)>> {
        let args = call::generate_args(flags).map_err(|refusal| refused(py, &refusal))?;
        let request = || -> Result<GenerateRequest> {
            self.config.require_head()?;
            let prompts = self.checked(prompts)?;
            let edits = self.edits(edits, &Naming::tl(&self.config))?;
            Ok(GenerateRequest { args, prompts, edits })
        };
        let request = request().map_err(|error| exception(py, &error))?;
        let done =
            self.ask(py, Request::Generate(Box::new(request)), warn, |_, _, event| match (event, &on_token) {
                (SessionEvent::Token(prompt, id), Some(on_token)) => on_token.call1((prompt, id)).map(drop),
                _ => Ok(()),
            })?;
        let Asked::Generate(done) = done else { return Err(PyRuntimeError::new_err("another request's answer")) };
        done.map_err(|error| exception(py, &error))
    }
}

impl Session {
    fn tokenizer(&self, py: Python<'_>) -> PyResult<&Tokenizer> {
        self.tokenizer.as_deref().ok_or_else(|| {
            let path = self.info["path"].as_str().unwrap_or_default();
            exception(py, &Error::field(path, "tokenizer.json", "a file, or token ids in place of texts", "none"))
        })
    }

    /// Documents that are token ids of the model, at least one each.
    fn checked(&self, documents: Vec<Vec<u32>>) -> Result<Vec<Vec<u32>>> {
        if documents.is_empty() {
            return Err(Error::argument("inputs", "at least one text or list of token ids", "none"));
        }
        let named = |(i, ids)| texts::check_ids(ids, &format!("inputs[{i}]"), &self.config);
        documents.into_iter().enumerate().map(named).collect()
    }

    fn select(&self, list: &[String], naming: &Naming<'_>) -> Result<Selection> {
        let layers: Range<usize> = 0..self.config.num_hidden_layers;
        match list {
            [] => Ok(Selection::default()),
            list => Selection::parse(&list.join(","), &layers.collect::<Vec<_>>(), naming),
        }
    }

    /// The hooks of functions: tensors that can be edited, as an edit's.
    fn select_outputs(&self, list: &[String], naming: &Naming<'_>) -> Result<Selection> {
        let layers: Range<usize> = 0..self.config.num_hidden_layers;
        if list.is_empty() {
            return Ok(Selection::default());
        }
        let found = Selection::parse_outputs(&list.join(","), &layers.collect::<Vec<_>>(), naming)?;
        for &(site, layer) in &found.hooks {
            if !site.is_editable() || !self.config.has(site) {
                let there = |site: &Site| site.is_editable() && self.config.has(*site);
                let names: Vec<String> = Site::all().into_iter().filter(there).map(Site::local).collect();
                let expected = format!("one of {}", names.join(", "));
                return Err(Error::argument("fwd_hooks", expected, site.name(layer)));
            }
        }
        Ok(found)
    }

    /// Edits that fit the model.
    fn edits(&self, (given, values): GivenEdits, naming: &Naming<'_>) -> Result<Vec<Edit>> {
        let Some(text) = given.as_deref() else { return Ok(Vec::new()) };
        let entries = match text.starts_with('[') {
            true => {
                let values: Vec<Values> = values.into_iter().map(|(rows, width)| Values { rows, width }).collect();
                edits::entries("edits", &json::parse("edits", text)?, &values)?
            }
            false => edits::read(text)?,
        };
        let edits = Edit::of_file(entries, naming)?;
        self.config.check_edits(&edits)?;
        Ok(edits)
    }

    fn set_in_hook(&self, thread: Option<ThreadId>) {
        *self.in_hook.lock().unwrap_or_else(PoisonError::into_inner) = thread;
    }

    /// Sends a request, and waits for what comes of it.
    fn ask<'py>(
        &self,
        py: Python<'py>,
        request: Request,
        warn: &Bound<'py, PyAny>,
        mut on_event: impl FnMut(Python<'py>, &Sender<Option<Vec<f32>>>, SessionEvent) -> PyResult<()>,
    ) -> PyResult<Asked> {
        let in_hook = *self.in_hook.lock().unwrap_or_else(PoisonError::into_inner);
        if in_hook == Some(thread::current().id()) {
            // Its pass would wait for the hook, and the hook for the end of the pass.
            let used = "llamaprobe: the model is in a pass, whose hook's function cannot run it: use another model";
            return Err(errors::Error::new_err(used));
        }
        let (events, said) = channel();
        let (answer, answers) = channel();
        let closed = || PyRuntimeError::new_err("llamaprobe: the model is closed");
        {
            let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
            let sent = calls.as_ref().ok_or_else(closed)?.send(Call { request, events, answers });
            sent.map_err(|_| closed())?;
        }
        let mut answer = Some(answer);
        let listener = Listener { warn, progress: None };
        wait(py, said, &self.host, &listener, |py, event| {
            let Some(sender) = &answer else { return Ok(()) };
            let heard = on_event(py, sender, event);
            if heard.is_err() {
                // Nobody will answer.
                answer = None;
            }
            heard
        })
    }
}
